//! A function's configuration space: 256 bytes, of which the guest may write some bits. That is all there is to most of
//! it: a BAR's size is found by which of its bits take a value (PCI Local Bus 3.0, 6.2.5.1).

use ringway_spec::pci::header::{
    BAR, BAR_TYPE_64, CAPABILITIES, CLASS_CODE, COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE,
    COMMAND_MEMORY, DEVICE_ID, INTERRUPT_LINE, INTERRUPT_PIN, REVISION_ID, SIZE, SPACE, STATUS,
    STATUS_CAPABILITIES, STATUS_INTERRUPT, SUBSYSTEM_ID, SUBSYSTEM_VENDOR_ID, VENDOR_ID,
};
use ringway_spec::pci::{capability, msix};

/// The cache line's size, which software keeps here.
const CACHE_LINE_SIZE: usize = 0x0c;
/// What says that a BAR's address is one.
const BAR_FLAGS: u64 = BAR_TYPE_64 as u64;

/// What tells one kind of function from another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) vendor: u16,
    pub(super) device: u16,
    pub(super) revision: u8,
    /// Class, subclass, programming interface.
    pub(super) class: [u8; 3],
}

/// The bytes, and which bits of each the guest may write.
#[derive(Debug, Clone)]
pub(super) struct ConfigSpace {
    bytes: [u8; SPACE],
    writable: [u8; SPACE],
    /// Where the next capability goes.
    end: usize,
    /// Where the byte is that shall name it.
    link: usize,
}

impl ConfigSpace {
    /// A function without capabilities, with one memory BAR of 64 bits of `bar_len` bytes, a power of two, and with INTA#.
    pub(super) fn new(identity: Identity, bar_len: u64) -> Self {
        let mut space = Self { bytes: [0; SPACE], writable: [0; SPACE], end: SIZE, link: CAPABILITIES };
        let Identity { vendor, device, revision, class: [class, subclass, interface] } = identity;
        space.put(VENDOR_ID, &vendor.to_le_bytes());
        space.put(DEVICE_ID, &device.to_le_bytes());
        space.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        space.put(REVISION_ID, &[revision]);
        space.put(CLASS_CODE, &[interface, subclass, class]);
        space.put(BAR, &BAR_FLAGS.to_le_bytes());
        space.put(SUBSYSTEM_VENDOR_ID, &vendor.to_le_bytes());
        space.put(SUBSYSTEM_ID, &device.to_le_bytes());
        space.put(INTERRUPT_PIN, &[1]);
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(CACHE_LINE_SIZE, &[0xff]);
        space.allow(BAR, &(!(bar_len - 1)).to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a capability to the end of the list; `bytes` are all of it, and its link is written here. Returns where it is.
    pub(super) fn add_capability(&mut self, bytes: &[u8]) -> usize {
        let at = self.end;
        self.put(at, bytes);
        self.put(self.link, &[at as u8]);
        self.link = at + capability::NEXT;
        self.end = (at + bytes.len()).next_multiple_of(4);
        at
    }

    /// Writes what the guest cannot.
    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Lets the guest write these bits.
    pub(super) fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..][..mask.len()].copy_from_slice(mask);
    }

    /// The guest reads; there is nothing past the end.
    pub(super) fn read(&self, offset: usize, to: &mut [u8]) {
        to.fill(0);
        for (to, from) in to.iter_mut().zip(self.bytes.get(offset..).unwrap_or_default()) {
            *to = *from;
        }
    }

    /// The guest writes.
    pub(super) fn write(&mut self, offset: usize, from: &[u8]) {
        let places = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), from) in places.zip(from) {
            *byte = *byte & !writable | from & writable;
        }
    }

    /// The bytes at `offset`.
    pub(super) fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        core::array::from_fn(|i| self.bytes[offset + i])
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes(self.get(COMMAND))
    }

    /// Where the BAR is, if it answers.
    pub(super) fn bar(&self) -> Option<u64> {
        let is_on = self.command() & COMMAND_MEMORY != 0;
        is_on.then(|| u64::from_le_bytes(self.get(BAR)) & !BAR_FLAGS)
    }

    /// Whether the device may write to memory, which is how messages are sent too.
    pub(super) fn is_bus_master(&self) -> bool {
        self.command() & COMMAND_BUS_MASTER != 0
    }

    /// Whether INTA# is not turned off.
    pub(super) fn has_pin(&self) -> bool {
        self.command() & COMMAND_INTX_DISABLE == 0
    }

    /// Says in the status whether an interrupt is pending for INTA#, be that turned off or not.
    pub(super) fn set_interrupt_status(&mut self, is_pending: bool) {
        let pending = if is_pending { STATUS_INTERRUPT } else { 0 };
        self.put(STATUS, &(STATUS_CAPABILITIES | pending).to_le_bytes());
    }

    /// What the MSI-X capability at `at` has in its control field.
    pub(super) fn msix_control(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at + msix::CONTROL))
    }
}
