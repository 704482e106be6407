//! Virtio over MMIO (4.2): the registers of a device, as offsets from the first. Each is 32 bits wide and little-endian.

/// R: [`MAGIC`].
pub const MAGIC_VALUE: usize = 0x000;
/// R: [`VERSION_MODERN`].
pub const VERSION: usize = 0x004;
/// R: the virtio device ID (5); 0 where there is no device.
pub const DEVICE_ID: usize = 0x008;
/// R: who made the device.
pub const VENDOR_ID: usize = 0x00c;
/// R: 32 of the features that the device offers, which ones says [`DEVICE_FEATURES_SEL`].
pub const DEVICE_FEATURES: usize = 0x010;
/// W: 0 for bits 0 to 31, 1 for bits 32 to 63.
pub const DEVICE_FEATURES_SEL: usize = 0x014;
/// W: 32 of the features that the driver accepts, which ones says [`DRIVER_FEATURES_SEL`].
pub const DRIVER_FEATURES: usize = 0x020;
/// W: 0 for bits 0 to 31, 1 for bits 32 to 63.
pub const DRIVER_FEATURES_SEL: usize = 0x024;
/// W: the virtqueue that the registers named `QUEUE_…` are about.
pub const QUEUE_SEL: usize = 0x030;
/// R: how many entries the queue can have; 0: there is no such queue.
pub const QUEUE_SIZE_MAX: usize = 0x034;
/// W: how many entries the queue has.
pub const QUEUE_SIZE: usize = 0x038;
/// RW: 1 while the device may use the queue.
pub const QUEUE_READY: usize = 0x044;
/// W: a kick: the queue's index, or notification data (2.9).
pub const QUEUE_NOTIFY: usize = 0x050;
/// R: [`INTERRUPT_USED_BUFFER`], [`INTERRUPT_CONFIG_CHANGE`].
pub const INTERRUPT_STATUS: usize = 0x060;
/// W: which of these have been handled.
pub const INTERRUPT_ACK: usize = 0x064;
/// RW: the device status (2.1); writing 0 resets the device.
pub const STATUS: usize = 0x070;
/// W: where the descriptor area is, as are the five after it of their areas.
pub const QUEUE_DESC_LOW: usize = 0x080;
/// W: see [`QUEUE_DESC_LOW`].
pub const QUEUE_DESC_HIGH: usize = 0x084;
/// W: see [`QUEUE_DESC_LOW`].
pub const QUEUE_DRIVER_LOW: usize = 0x090;
/// W: see [`QUEUE_DESC_LOW`].
pub const QUEUE_DRIVER_HIGH: usize = 0x094;
/// W: see [`QUEUE_DESC_LOW`].
pub const QUEUE_DEVICE_LOW: usize = 0x0a0;
/// W: see [`QUEUE_DESC_LOW`].
pub const QUEUE_DEVICE_HIGH: usize = 0x0a4;
/// W: the shared memory region that the registers named `SHM_…` are about.
pub const SHM_SEL: usize = 0x0ac;
/// R: the region's length; all ones where there is no such region.
pub const SHM_LEN_LOW: usize = 0x0b0;
/// R: see [`SHM_LEN_LOW`].
pub const SHM_LEN_HIGH: usize = 0x0b4;
/// R: where the region begins; all ones where there is no such region.
pub const SHM_BASE_LOW: usize = 0x0b8;
/// R: see [`SHM_BASE_LOW`].
pub const SHM_BASE_HIGH: usize = 0x0bc;
/// RW, with `RING_RESET`: writing 1 resets the queue, and it reads 1 until that is done.
pub const QUEUE_RESET: usize = 0x0c0;
/// R: another value whenever the device configuration has changed.
pub const CONFIG_GENERATION: usize = 0x0fc;
/// RW: the device configuration begins here, with accesses as wide as its fields.
pub const CONFIG: usize = 0x100;

/// What [`MAGIC_VALUE`] reads: `virt`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// What [`VERSION`] reads.
pub const VERSION_MODERN: u32 = 2;

/// The device has used buffers of some queue.
pub const INTERRUPT_USED_BUFFER: u32 = 1;
/// The device configuration has changed.
pub const INTERRUPT_CONFIG_CHANGE: u32 = 2;
