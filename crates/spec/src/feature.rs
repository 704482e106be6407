//! Feature bits that belong to every device (2.2, 6).

/// The driver passes descriptors that refer to a table of descriptors (2.7.5.3).
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// `used_event` and `avail_event` replace the notification flags (2.7.7, 2.7.10).
pub const RING_EVENT_IDX: u64 = 1 << 29;
/// A modern device: everything of version 1, all fields little-endian.
pub const VERSION_1: u64 = 1 << 32;
/// The device reaches memory through addresses that an IOMMU translates.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Packed virtqueues (2.8).
pub const RING_PACKED: u64 = 1 << 34;
/// Buffers are used in the order in which they were made available.
pub const IN_ORDER: u64 = 1 << 35;
/// The device needs the barriers of the platform's devices, not those between processors.
pub const ORDER_PLATFORM: u64 = 1 << 36;
/// The device can have virtual functions (PCI only).
pub const SR_IOV: u64 = 1 << 37;
/// Kicks carry more than the queue's index (2.9).
pub const NOTIFICATION_DATA: u64 = 1 << 38;
/// Kicks carry what the device says for a queue, in place of the queue's index (PCI only).
pub const NOTIF_CONFIG_DATA: u64 = 1 << 39;
/// A single queue can be reset.
pub const RING_RESET: u64 = 1 << 40;
/// There are administration virtqueues (PCI only).
pub const ADMIN_VQ: u64 = 1 << 41;
/// The driver can suspend the device.
pub const SUSPEND: u64 = 1 << 43;
