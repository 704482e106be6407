//! A device that is a function of a PCI bus (4.1), modern only.
//!
//! ```text
//!   configuration space                          BAR 0
//!   IDs, command, BAR 0 ──────address─────────►  0x0000  common configuration ──► Registers
//!   capabilities: ────────where they are──────►  0x1000  ISR status
//!     common, notify, ISR, device,               0x2000  the device's configuration
//!     the window ─────────an access of its own►  0x3000  MSI-X: pending bits
//!     MSI-X: enable, mask                        0x8000  MSI-X: table
//!                                               0x10000  kicks, 4 bytes for each queue
//! ```
//!
//! Kicks are on pages of their own, as a VMM wants them that gives them to the kernel (`ioeventfd`). While MSI-X is not
//! enabled, interrupts are INTA#'s. There is no power management, no reset of the function, and no PCI Express capability: a
//! guest has no use for them here.

mod capabilities;
mod common;
mod config_space;
mod msix;

use ringway_spec::feature::{NOTIF_CONFIG_DATA, NOTIFICATION_DATA, RING_RESET};
use ringway_spec::pci::msix::{CONTROL_ENABLE, CONTROL_FUNCTION_MASK, ENTRY_SIZE, MAX_VECTORS};
use ringway_spec::pci::{self as spec, DEVICE_ID_BASE, DEVICE_ID_LAST, MSI_NO_VECTOR, VENDOR_ID};
use ringway_spec::{blk, console, net};

use self::capabilities::{Capabilities, notify_len};
use self::config_space::{ConfigSpace, Identity};
use self::msix::MsiX;
use crate::model::DeviceModel;
use crate::registers::{Action, QueueSetup, Registers, Settings, SettingsError};

/// Where the structures are.
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const PBA: u64 = 0x3000;
const TABLE: u64 = 0x8000;
const NOTIFY: u64 = 0x1_0000;
/// The most bytes of a configuration space, and of the pending bits.
pub(crate) const DEVICE_LEN: usize = (PBA - DEVICE) as usize;
/// Bytes of a table of all vectors that there can be.
const TABLE_LEN: u64 = MAX_VECTORS as u64 * ENTRY_SIZE as u64;
/// Bytes from one queue's place for kicks to the next: a power of two, and room for notification data.
const MULTIPLIER: u32 = 4;
/// A modern device is of revision 1 or higher.
const REVISION: u8 = 1;

/// A device behind a PCI function.
#[derive(Debug, Clone)]
pub struct PciDevice<D> {
    registers: Registers<D>,
    space: ConfigSpace,
    capabilities: Capabilities,
    msix: MsiX,
    config_vector: u16,
    /// The level that the VMM knows INTA# to have.
    line: bool,
    /// Where the VMM knows the BAR to be.
    bar: Option<u64>,
}

impl<D: DeviceModel> PciDevice<D> {
    /// A device after reset, with this many MSI-X vectors: one for each queue and one for the configuration is what drivers
    /// can make use of; 0: no MSI-X.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(model: D, settings: Settings, vectors: u16) -> Result<Self, SettingsError> {
        let (id, config_len) = (model.id(), model.config_len());
        let device = u16::try_from(id).ok().and_then(|id| DEVICE_ID_BASE.checked_add(id));
        let device = device.filter(|_| id != 0).filter(|device| *device <= DEVICE_ID_LAST);
        let device = device.ok_or(SettingsError::Id(id))?;
        if vectors == 1 || vectors > MAX_VECTORS {
            return Err(SettingsError::Vectors(vectors));
        }
        if config_len > DEVICE_LEN {
            return Err(SettingsError::ConfigLen(config_len));
        }
        let registers = Registers::new(model, settings, RING_RESET | NOTIFICATION_DATA | NOTIF_CONFIG_DATA)?;
        let queues = registers.model.max_queues();
        let identity = Identity { vendor: VENDOR_ID, device, revision: REVISION, class: class(id) };
        let mut space = ConfigSpace::new(identity, bar_len(queues));
        let capabilities = Capabilities::add(&mut space, queues, config_len, vectors);
        let msix = MsiX::new(vectors);
        Ok(Self {
            registers,
            space,
            capabilities,
            msix,
            config_vector: MSI_NO_VECTOR,
            line: false,
            bar: None,
        })
    }

    /// The device.
    pub fn model(&self) -> &D {
        &self.registers.model
    }

    /// The device, to be changed. What changes its configuration is followed by [`config_changed`](Self::config_changed).
    pub fn model_mut(&mut self) -> &mut D {
        &mut self.registers.model
    }

    /// Bytes of the BAR, a power of two.
    pub fn bar_len(&self) -> u64 {
        bar_len(self.registers.model.max_queues())
    }

    /// Where in the BAR the driver writes kicks of a queue.
    pub fn notify_offset(&self, index: u16) -> u64 {
        NOTIFY + u64::from(index) * u64::from(MULTIPLIER)
    }

    /// The guest reads `to.len()` bytes of the configuration space.
    pub fn read_config_space(&mut self, offset: u16, to: &mut [u8]) {
        let offset = usize::from(offset);
        if self.capabilities.is_window(offset, to.len())
            && let Some(access) = self.capabilities.access(&self.space)
        {
            let mut data = [0; 4];
            self.read(access.offset, &mut data[..access.len]);
            self.capabilities.put_data(&mut self.space, &data[..access.len]);
        }
        let is_pending = !self.is_msix() && self.registers.isr != 0;
        self.space.set_interrupt_status(is_pending);
        self.space.read(offset, to);
    }

    /// The guest writes `from` to the configuration space.
    pub fn write_config_space(&mut self, offset: u16, from: &[u8]) {
        let offset = usize::from(offset);
        self.space.write(offset, from);
        if self.capabilities.is_window(offset, from.len())
            && let Some(access) = self.capabilities.access(&self.space)
        {
            let data = self.capabilities.data(&self.space);
            self.write(access.offset, &data[..access.len]);
        }
    }

    /// The guest reads `to.len()` bytes at `offset` of the BAR.
    pub fn read(&mut self, offset: u64, to: &mut [u8]) {
        match (offset, to) {
            (DEVICE..PBA, to) => self.registers.read_config((offset - DEVICE) as usize, to),
            // Reading acknowledges (4.1.4.5).
            (ISR, [to]) => *to = core::mem::take(&mut self.registers.isr),
            (_, to) if to.len() == 8 => {
                let (low, high) = to.split_at_mut(4);
                self.read(offset, low);
                self.read(offset.saturating_add(4), high);
            }
            (_, to) if is_field(offset, to.len()) => {
                let value = self.read_field(offset, to.len()).to_le_bytes();
                to.copy_from_slice(&value[..to.len()]);
            }
            (_, to) => to.fill(0),
        }
    }

    /// The guest writes `from` to `offset` of the BAR.
    pub fn write(&mut self, offset: u64, from: &[u8]) {
        match (offset, from) {
            (DEVICE..PBA, _) => self.registers.write_config((offset - DEVICE) as usize, from),
            (_, [low @ .., _, _, _, _]) if low.len() == 4 => {
                self.write(offset, low);
                self.write(offset.saturating_add(4), &from[4..]);
            }
            _ if is_field(offset, from.len()) => {
                let mut value = [0; 4];
                value[..from.len()].copy_from_slice(from);
                self.write_field(offset, from.len(), u32::from_le_bytes(value));
            }
            _ => {}
        }
    }

    /// The next thing to do, if there is one.
    pub fn next_action(&mut self) -> Option<Action> {
        let action = self.registers.next_action();
        action.or_else(|| self.moved()).or_else(|| self.line_changed()).or_else(|| self.message())
    }

    /// Queue `index` as the driver set it up; `None` while the device may not use it.
    pub fn queue(&self, index: u16) -> Option<QueueSetup> {
        self.registers.queue(index)
    }

    /// The device has used buffers of a queue, and the driver wants to know:
    /// [`DeviceQueue::publish`](ringway_queue::DeviceQueue::publish) said so.
    pub fn used(&mut self, index: u16) {
        match self.registers.used(index) {
            Some(vector) if self.is_msix() => self.msix.raise(vector),
            Some(_) => self.registers.raise_queue(),
            None => {}
        }
    }

    /// The configuration has changed.
    pub fn config_changed(&mut self) {
        self.registers.config_changed();
    }

    /// The device met an error that only a reset mends, such as a [`QueueError`](ringway_queue::QueueError).
    pub fn need_reset(&mut self) {
        self.registers.need_reset();
    }

    /// The queue of an [`Action::QueueReset`] is no longer used.
    pub fn queue_was_reset(&mut self, index: u16) {
        self.registers.queue_was_reset(index);
    }

    /// A field of `len` bytes of the BAR, which is not of the device's configuration.
    fn read_field(&self, offset: u64, len: usize) -> u32 {
        match offset {
            COMMON..ISR => self.read_common((offset - COMMON) as usize, len),
            PBA..TABLE if len == 4 => self.msix.read_pending((offset - PBA) as usize),
            TABLE..NOTIFY if len == 4 => self.msix.read_table((offset - TABLE) as usize),
            _ => 0,
        }
    }

    /// Writes such a field.
    fn write_field(&mut self, offset: u64, len: usize, value: u32) {
        match offset {
            COMMON..ISR => self.write_common((offset - COMMON) as usize, len, value),
            TABLE..NOTIFY if len == 4 => self.msix.write_table((offset - TABLE) as usize, value),
            NOTIFY.. if len != 1 => {
                let index = (offset - NOTIFY) / u64::from(MULTIPLIER);
                if let Ok(index) = u16::try_from(index) {
                    self.registers.notify(index, value);
                }
            }
            _ => {}
        }
    }

    /// The driver resets the device. The function goes on: its BAR, its command register and its MSI-X table are PCI's.
    fn reset(&mut self) {
        self.registers.reset();
        self.config_vector = MSI_NO_VECTOR;
        self.msix.forget();
    }

    /// Whether interrupts are messages.
    fn is_msix(&self) -> bool {
        self.capabilities.msix_control(&self.space) & CONTROL_ENABLE != 0
    }

    fn message(&mut self) -> Option<Action> {
        if core::mem::take(&mut self.registers.is_config_due) && self.is_msix() {
            self.msix.raise(self.config_vector);
        }
        let control = self.capabilities.msix_control(&self.space);
        let may_send = control & CONTROL_ENABLE != 0 && control & CONTROL_FUNCTION_MASK == 0;
        if may_send && self.space.is_bus_master() { self.msix.next_message() } else { None }
    }

    fn line_changed(&mut self) -> Option<Action> {
        let line = self.registers.isr != 0 && !self.is_msix() && self.space.has_pin();
        let is_new = core::mem::replace(&mut self.line, line) != line;
        is_new.then_some(Action::Line(line))
    }

    fn moved(&mut self) -> Option<Action> {
        let bar = self.space.bar();
        let is_new = core::mem::replace(&mut self.bar, bar) != bar;
        is_new.then_some(Action::Mapped(bar))
    }
}

/// Bytes of the BAR of a device with so many queues.
fn bar_len(queues: u16) -> u64 {
    (NOTIFY + notify_len(queues) as u64).next_power_of_two()
}

/// Whether an access is one that a field can have.
fn is_field(offset: u64, len: usize) -> bool {
    matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u64)
}

/// Class, subclass and interface of a device, for those who look for drivers by class; they need not be told more.
fn class(id: u32) -> [u8; 3] {
    match id {
        // Network controller: Ethernet.
        net::DEVICE_ID => [0x02, 0x00, 0x00],
        // Mass storage: other.
        blk::DEVICE_ID => [0x01, 0x80, 0x00],
        // Communication: other.
        console::DEVICE_ID => [0x07, 0x80, 0x00],
        // None of the classes.
        _ => [0xff, 0x00, 0x00],
    }
}

const _: () = assert!(TABLE + TABLE_LEN <= NOTIFY && spec::common::SIZE as u64 <= ISR);

#[cfg(test)]
mod tests;
