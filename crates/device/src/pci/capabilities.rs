//! The capabilities that say where in the BAR the structures are (4.1.4), and the window to them from the configuration
//! space (4.1.4.9).
//!
//! ```text
//!   0x40 common ─► notify ─► ISR ─► device ─► window ─► MSI-X
//!                                     │                   │
//!                 if it has a configuration       if it has vectors
//! ```

use ringway_spec::pci::capability::{
    BAR, CFG_TYPE, COMMON_CFG, DEVICE_CFG, ID, ID_VENDOR, ISR_CFG, LEN, LENGTH, NOTIFY_CFG,
    NOTIFY_OFF_MULTIPLIER, NOTIFY_SIZE, OFFSET, PCI_CFG, PCI_CFG_DATA, PCI_CFG_SIZE, SIZE,
};
use ringway_spec::pci::{common, msix};

use super::config_space::ConfigSpace;
use super::{COMMON, DEVICE, ISR, MULTIPLIER, NOTIFY, PBA, TABLE};

/// Where in the configuration space the capabilities are that are not only read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capabilities {
    window: usize,
    msix: Option<usize>,
}

/// An access through the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    /// Where in the BAR.
    pub(super) offset: u64,
    /// 1, 2 or 4 bytes.
    pub(super) len: usize,
}

impl Capabilities {
    /// Adds them all to a configuration space.
    pub(super) fn add(space: &mut ConfigSpace, queues: u16, config_len: usize, vectors: u16) -> Self {
        space.add_capability(&structure(COMMON_CFG, COMMON, common::SIZE));
        let mut notify = [0; NOTIFY_SIZE];
        notify[..SIZE].copy_from_slice(&structure(NOTIFY_CFG, NOTIFY, notify_len(queues)));
        notify[NOTIFY_OFF_MULTIPLIER..].copy_from_slice(&MULTIPLIER.to_le_bytes());
        notify[LEN] = NOTIFY_SIZE as u8;
        space.add_capability(&notify);
        space.add_capability(&structure(ISR_CFG, ISR, 1));
        if config_len != 0 {
            space.add_capability(&structure(DEVICE_CFG, DEVICE, config_len));
        }
        let mut window = [0; PCI_CFG_SIZE];
        window[..SIZE].copy_from_slice(&structure(PCI_CFG, 0, 0));
        window[LEN] = PCI_CFG_SIZE as u8;
        let window = space.add_capability(&window);
        for (field, len) in [(BAR, 1), (OFFSET, 4), (LENGTH, 4), (PCI_CFG_DATA, 4)] {
            space.allow(window + field, &[0xff; 4][..len]);
        }
        Self { window, msix: (vectors != 0).then(|| add_msix(space, vectors)) }
    }

    /// What is in the control field of MSI-X; 0 if there is none.
    pub(super) fn msix_control(self, space: &ConfigSpace) -> u16 {
        self.msix.map_or(0, |at| space.msix_control(at))
    }

    /// Whether an access of the configuration space is one to the window's data.
    pub(super) fn is_window(self, offset: usize, len: usize) -> bool {
        let data = self.window + PCI_CFG_DATA;
        offset < data + 4 && offset.saturating_add(len) > data
    }

    /// The access that the window stands for; none if the driver named one that it may not (4.1.4.9.2).
    pub(super) fn access(self, space: &ConfigSpace) -> Option<Access> {
        let word = |field| u32::from_le_bytes(space.get(self.window + field));
        let (offset, len, [bar]) = (word(OFFSET), word(LENGTH), space.get(self.window + BAR));
        let is_good = bar == 0 && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        is_good.then_some(Access { offset: offset.into(), len: len as usize })
    }

    /// The window's data.
    pub(super) fn data(self, space: &ConfigSpace) -> [u8; 4] {
        space.get(self.window + PCI_CFG_DATA)
    }

    /// Sets the first bytes of the window's data.
    pub(super) fn put_data(self, space: &mut ConfigSpace, bytes: &[u8]) {
        space.put(self.window + PCI_CFG_DATA, bytes);
    }
}

/// Bytes that the kicks of so many queues are written to.
pub(super) fn notify_len(queues: u16) -> usize {
    usize::from(queues.max(1)) * MULTIPLIER as usize
}

/// A capability about a structure in the BAR.
fn structure(kind: u8, offset: u64, len: usize) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[ID] = ID_VENDOR;
    bytes[LEN] = SIZE as u8;
    bytes[CFG_TYPE] = kind;
    bytes[OFFSET..][..4].copy_from_slice(&(offset as u32).to_le_bytes());
    bytes[LENGTH..][..4].copy_from_slice(&(len as u32).to_le_bytes());
    bytes
}

fn add_msix(space: &mut ConfigSpace, vectors: u16) -> usize {
    let mut bytes = [0; msix::CAPABILITY_SIZE];
    bytes[ID] = msix::CAPABILITY_ID;
    bytes[msix::CONTROL..][..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    bytes[msix::TABLE..][..4].copy_from_slice(&(TABLE as u32).to_le_bytes());
    bytes[msix::PBA..][..4].copy_from_slice(&(PBA as u32).to_le_bytes());
    let at = space.add_capability(&bytes);
    let writable = msix::CONTROL_ENABLE | msix::CONTROL_FUNCTION_MASK;
    space.allow(at + msix::CONTROL, &writable.to_le_bytes());
    at
}
