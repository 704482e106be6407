//! Virtio over PCI (4.1): which function is a virtio device, and the structures that it is driven by. Offsets are
//! within the structure that the module is about; everything is little-endian.
//!
//! ```text
//! configuration space        capability (9: vendor's)        a BAR
//! 0x00 vendor, device        type, bar, offset, length ────► common configuration │ ISR │ …
//! 0x10 BARs 0 to 5           next ─► capability …
//! 0x34 first capability      capability (0x11: MSI-X) ─────► table: address, data, mask of each vector
//! ```

/// The PCI vendor ID of every virtio device.
pub const VENDOR_ID: u16 = 0x1af4;
/// The PCI device ID of a modern device, less its virtio device ID.
pub const DEVICE_ID_BASE: u16 = 0x1040;
/// The last PCI device ID of a modern device.
pub const DEVICE_ID_LAST: u16 = 0x107f;
/// The device types that also have a transitional PCI device ID: that, and the virtio device ID.
pub const TRANSITIONAL: [(u16, u16); 7] =
    [(0x1000, 1), (0x1001, 2), (0x1002, 5), (0x1003, 3), (0x1004, 8), (0x1005, 4), (0x1009, 9)];

/// No vector: the event causes no message.
pub const MSI_NO_VECTOR: u16 = 0xffff;

/// In the ISR status: the device has used buffers of some queue.
pub const ISR_QUEUE: u8 = 1;
/// In the ISR status: the device configuration has changed.
pub const ISR_CONFIG: u8 = 2;

/// The header of a function's configuration space (PCI Local Bus 3.0, 6.1).
pub mod header {
    /// 16 bits.
    pub const VENDOR_ID: usize = 0x00;
    /// 16 bits.
    pub const DEVICE_ID: usize = 0x02;
    /// 16 bits: [`COMMAND_IO`] and the like.
    pub const COMMAND: usize = 0x04;
    /// 16 bits: [`STATUS_INTERRUPT`], [`STATUS_CAPABILITIES`].
    pub const STATUS: usize = 0x06;
    /// 8 bits.
    pub const REVISION_ID: usize = 0x08;
    /// 24 bits: programming interface, subclass, class.
    pub const CLASS_CODE: usize = 0x09;
    /// 8 bits.
    pub const HEADER_TYPE: usize = 0x0e;
    /// 32 bits each, [`BARS`] of them.
    pub const BAR: usize = 0x10;
    /// 16 bits.
    pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
    /// 16 bits.
    pub const SUBSYSTEM_ID: usize = 0x2e;
    /// 8 bits: where the first capability is; its two lowest bits are reserved.
    pub const CAPABILITIES: usize = 0x34;
    /// 8 bits: software's.
    pub const INTERRUPT_LINE: usize = 0x3c;
    /// 8 bits: 1 for INTA#, 0 for none.
    pub const INTERRUPT_PIN: usize = 0x3d;
    /// Bytes of the header; capabilities come after it.
    pub const SIZE: usize = 0x40;

    /// Bytes of a function's configuration space, without PCI Express.
    pub const SPACE: usize = 0x100;
    /// How many BARs there are.
    pub const BARS: usize = 6;

    /// The function answers in I/O space.
    pub const COMMAND_IO: u16 = 1;
    /// The function answers in memory space.
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    /// The function may reach memory.
    pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
    /// The function's interrupt pin is off.
    pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

    /// The function's interrupt is pending, whether or not the pin is off.
    pub const STATUS_INTERRUPT: u16 = 1 << 3;
    /// There is a list of capabilities.
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;

    /// The BAR is of I/O space.
    pub const BAR_IO: u32 = 1;
    /// Which kind of memory BAR it is.
    pub const BAR_TYPE: u32 = 3 << 1;
    /// A memory BAR of 64 bits, whose upper half is the next BAR.
    pub const BAR_TYPE_64: u32 = 2 << 1;
    /// Reading the memory has no side effect.
    pub const BAR_PREFETCHABLE: u32 = 1 << 3;
    /// The bits of a memory BAR that are no address.
    pub const BAR_MEMORY_FLAGS: u32 = 0xf;
    /// The bits of an I/O BAR that are no address.
    pub const BAR_IO_FLAGS: u32 = 0x3;
}

/// A virtio structure capability (4.1.4), `virtio_pci_cap`: where one of the device's structures is.
pub mod capability {
    /// 8 bits: the capability's ID, [`ID_VENDOR`] or another.
    pub const ID: usize = 0;
    /// 8 bits: where the next capability is, 0 for none.
    pub const NEXT: usize = 1;
    /// 8 bits: bytes of this capability.
    pub const LEN: usize = 2;
    /// 8 bits: [`COMMON_CFG`] and the like.
    pub const CFG_TYPE: usize = 3;
    /// 8 bits: 0 to 5.
    pub const BAR: usize = 4;
    /// 8 bits: tells capabilities of one type apart, where the type says so.
    pub const CAP_ID: usize = 5;
    /// 32 bits: where in the BAR the structure begins.
    pub const OFFSET: usize = 8;
    /// 32 bits: bytes of the structure.
    pub const LENGTH: usize = 12;
    /// Bytes of `virtio_pci_cap`.
    pub const SIZE: usize = 16;

    /// 32 bits, of [`NOTIFY_CFG`]: what a queue's `queue_notify_off` is multiplied by.
    pub const NOTIFY_OFF_MULTIPLIER: usize = 16;
    /// Bytes of `virtio_pci_notify_cap`.
    pub const NOTIFY_SIZE: usize = 20;

    /// 8, 16 or 32 bits, of [`PCI_CFG`]: the window.
    pub const PCI_CFG_DATA: usize = 16;
    /// Bytes of `virtio_pci_cfg_cap`.
    pub const PCI_CFG_SIZE: usize = 20;

    /// 32 bits, of [`SHARED_MEMORY_CFG`]: the upper half of the offset.
    pub const OFFSET_HI: usize = 16;
    /// 32 bits, of [`SHARED_MEMORY_CFG`]: the upper half of the length.
    pub const LENGTH_HI: usize = 20;
    /// Bytes of `virtio_pci_cap64`.
    pub const SIZE_64: usize = 24;

    /// The ID of a vendor's capability, as all of virtio's are.
    pub const ID_VENDOR: u8 = 0x09;

    /// The common configuration (4.1.4.3): [`super::common`].
    pub const COMMON_CFG: u8 = 1;
    /// Where to write kicks (4.1.4.4).
    pub const NOTIFY_CFG: u8 = 2;
    /// The ISR status (4.1.4.5).
    pub const ISR_CFG: u8 = 3;
    /// The device configuration (4.1.4.6).
    pub const DEVICE_CFG: u8 = 4;
    /// A window to all of these (4.1.4.9).
    pub const PCI_CFG: u8 = 5;
    /// A shared memory region (4.1.4.7).
    pub const SHARED_MEMORY_CFG: u8 = 8;
    /// A vendor's data (4.1.4.8).
    pub const VENDOR_CFG: u8 = 9;
}

/// The common configuration (4.1.4.3), `virtio_pci_common_cfg`.
pub mod common {
    /// 32 bits, RW: 0 for features 0 to 31, 1 for 32 to 63.
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    /// 32 bits, R: features that the device offers.
    pub const DEVICE_FEATURE: usize = 0x04;
    /// 32 bits, RW: 0 for features 0 to 31, 1 for 32 to 63.
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    /// 32 bits, RW: features that the driver accepts.
    pub const DRIVER_FEATURE: usize = 0x0c;
    /// 16 bits, RW: the vector of configuration changes.
    pub const CONFIG_MSIX_VECTOR: usize = 0x10;
    /// 16 bits, R: how many virtqueues there can be.
    pub const NUM_QUEUES: usize = 0x12;
    /// 8 bits, RW: the device status (2.1); writing 0 resets the device.
    pub const DEVICE_STATUS: usize = 0x14;
    /// 8 bits, R: another value whenever the device configuration has changed.
    pub const CONFIG_GENERATION: usize = 0x15;
    /// 16 bits, RW: the virtqueue that the fields named `QUEUE_…` are about.
    pub const QUEUE_SELECT: usize = 0x16;
    /// 16 bits, RW: how many entries the queue can have, then how many it has; 0: there is no such queue.
    pub const QUEUE_SIZE: usize = 0x18;
    /// 16 bits, RW: the queue's vector.
    pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
    /// 16 bits, RW: 1 while the device may use the queue.
    pub const QUEUE_ENABLE: usize = 0x1c;
    /// 16 bits, R: where the queue's kicks go, see [`super::capability::NOTIFY_OFF_MULTIPLIER`].
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    /// 64 bits, RW: where the descriptor area is.
    pub const QUEUE_DESC: usize = 0x20;
    /// 64 bits, RW: where the driver area is.
    pub const QUEUE_DRIVER: usize = 0x28;
    /// 64 bits, RW: where the device area is.
    pub const QUEUE_DEVICE: usize = 0x30;
    /// 16 bits, R, with `NOTIF_CONFIG_DATA`: what kicks carry for the queue's index.
    pub const QUEUE_NOTIF_CONFIG_DATA: usize = 0x38;
    /// 16 bits, RW, with `RING_RESET`: writing 1 resets the queue, and it reads 1 until that is done.
    pub const QUEUE_RESET: usize = 0x3a;
    /// 16 bits, R, with `ADMIN_VQ`: the first administration virtqueue.
    pub const ADMIN_QUEUE_INDEX: usize = 0x3c;
    /// 16 bits, R, with `ADMIN_VQ`: how many administration virtqueues there are.
    pub const ADMIN_QUEUE_NUM: usize = 0x3e;
    /// Bytes of the whole structure.
    pub const SIZE: usize = 0x40;
    /// Bytes of it that every device has.
    pub const BASIC_SIZE: usize = 0x38;
}

/// MSI-X (PCI Local Bus 3.0, 6.8.2): the capability, the table of vectors, the pending bits.
pub mod msix {
    /// The capability's ID.
    pub const CAPABILITY_ID: u8 = 0x11;
    /// In the capability, 16 bits: [`CONTROL_TABLE_SIZE`] and the like.
    pub const CONTROL: usize = 2;
    /// In the capability, 32 bits: the table's BAR in the lowest three bits, its offset in the others.
    pub const TABLE: usize = 4;
    /// In the capability, 32 bits: the same of the pending bits.
    pub const PBA: usize = 8;
    /// Bytes of the capability.
    pub const CAPABILITY_SIZE: usize = 12;

    /// How many vectors there are, less one; read-only.
    pub const CONTROL_TABLE_SIZE: u16 = 0x7ff;
    /// No vector sends a message.
    pub const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
    /// Messages are sent, and the interrupt pin is off.
    pub const CONTROL_ENABLE: u16 = 1 << 15;

    /// Of [`TABLE`] and [`PBA`]: the BAR.
    pub const BIR: u32 = 7;

    /// The most vectors that a table can have.
    pub const MAX_VECTORS: u16 = 0x800;
    /// Bytes of a vector in the table.
    pub const ENTRY_SIZE: usize = 16;
    /// In an entry, 32 bits: where the message is written to, as is the next.
    pub const ENTRY_ADDRESS_LOW: usize = 0;
    /// In an entry, 32 bits.
    pub const ENTRY_ADDRESS_HIGH: usize = 4;
    /// In an entry, 32 bits: what is written.
    pub const ENTRY_DATA: usize = 8;
    /// In an entry, 32 bits: [`ENTRY_MASKED`].
    pub const ENTRY_CONTROL: usize = 12;
    /// The vector sends no message.
    pub const ENTRY_MASKED: u32 = 1;
}
