//! For tests: both buses as a driver and a VMM see them, so that what is true of both is shown of both.

use alloc::vec::Vec;

use ringway_spec::feature::{NOTIFICATION_DATA, RING_RESET, VERSION_1};
use ringway_spec::mmio as reg;
use ringway_spec::pci::common as field;
use ringway_spec::status::DeviceStatus;

use super::{Action, QueueSetup, Settings};
use crate::mmio::MmioDevice;
use crate::model::DeviceModel;
use crate::pci::PciDevice;
use crate::status::Negotiation;

/// A feature of the model.
pub(crate) const A: u64 = 1;
/// One that requires it.
pub(crate) const NEEDS_A: u64 = 2;
/// Bytes of the model's configuration, of which the driver may write the first.
pub(crate) const CONFIG_LEN: usize = 8;
/// Index of the queue that the model lacks; there are those before it, and the one after.
pub(crate) const GAP: u16 = 2;

/// A device of no known kind.
#[derive(Debug, Clone)]
pub(crate) struct Thing {
    negotiation: Negotiation,
    pub(crate) config: [u8; CONFIG_LEN],
}

impl Thing {
    pub(crate) fn new(features: u64) -> Self {
        let negotiation = Negotiation::new(A | NEEDS_A | features, &[(NEEDS_A, A)]);
        Self { negotiation, config: core::array::from_fn(|i| i as u8 + 100) }
    }
}

impl DeviceModel for Thing {
    fn id(&self) -> u32 {
        42
    }

    fn negotiation(&self) -> &Negotiation {
        &self.negotiation
    }

    fn negotiation_mut(&mut self) -> &mut Negotiation {
        &mut self.negotiation
    }

    fn reset(&mut self) {
        self.negotiation.reset();
    }

    fn max_queues(&self) -> u16 {
        4
    }

    fn has_queue(&self, index: u16) -> bool {
        index < 4 && index != GAP
    }

    fn config_len(&self) -> usize {
        CONFIG_LEN
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        to.fill(0);
        for (to, from) in to.iter_mut().zip(self.config.get(offset..).unwrap_or_default()) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let is_allowed = offset == 0 && bytes.len() == 1;
        if is_allowed {
            self.config[0] = bytes[0];
        }
        is_allowed
    }
}

/// What both buses have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    Status,
    Generation,
    QueueSelect,
    /// What the driver writes, and on PCI reads.
    QueueSize,
    /// What it can be at most.
    QueueMax,
    Enable,
    Reset,
    /// Halves of the areas: descriptor, driver, device.
    Area(usize, bool),
    /// What interrupts there are; read once, for on PCI that acknowledges.
    Interrupts,
}

pub(crate) use Field::{Enable, Generation, Interrupts, QueueMax, QueueSelect, QueueSize, Reset, Status};

/// A device on some bus.
pub(crate) trait Bus {
    fn get(&mut self, field: Field) -> u32;
    fn set(&mut self, field: Field, value: u32);
    fn kick(&mut self, index: u16, value: u32);
    fn read_config(&mut self, offset: u64, to: &mut [u8]);
    fn write_config(&mut self, offset: u64, from: &[u8]);
    fn model(&mut self) -> &mut Thing;
    fn next(&mut self) -> Option<Action>;
    fn queue(&self, index: u16) -> Option<QueueSetup>;
    fn used(&mut self, index: u16);
    fn config_changed(&mut self);
    fn need_reset(&mut self);
    fn queue_was_reset(&mut self, index: u16);

    /// All that is to be done.
    fn actions(&mut self) -> Vec<Action> {
        core::iter::from_fn(|| self.next()).collect()
    }

    fn status(&mut self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.get(Status) as u8)
    }

    /// Adds to the status, as a driver does; returns whether all of it stuck.
    fn step(&mut self, step: DeviceStatus) -> bool {
        let status = self.status() | step;
        self.set(Status, status.bits().into());
        self.status() == status
    }

    fn offered(&mut self) -> u64 {
        let [low, high] = [0, 1].map(|half| {
            self.set(Field::DeviceFeatureSelect, half);
            u64::from(self.get(Field::DeviceFeature))
        });
        low | high << 32
    }

    fn accept(&mut self, features: u64) {
        for half in [0, 1] {
            self.set(Field::DriverFeatureSelect, half);
            self.set(Field::DriverFeature, (features >> (32 * half)) as u32);
        }
    }

    /// Up to `FEATURES_OK`; whether that stuck.
    fn negotiate(&mut self, features: u64) -> bool {
        self.set(Status, 0);
        assert!(self.step(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER));
        self.accept(features);
        self.step(DeviceStatus::FEATURES_OK)
    }

    /// Sets a queue up, and enables it.
    fn set_up(&mut self, index: u16, size: u16) {
        self.set(QueueSelect, index.into());
        self.set(QueueSize, size.into());
        for (area, addr) in areas(index).into_iter().enumerate() {
            self.set(Field::Area(area, false), addr as u32);
            self.set(Field::Area(area, true), (addr >> 32) as u32);
        }
        self.set(Enable, 1);
    }

    /// All the way, with queues 0 and 1 of 8; the VMM has not looked yet what there is to do.
    fn go_live_untold(&mut self, features: u64) {
        assert!(self.negotiate(VERSION_1 | features));
        self.set_up(0, 8);
        self.set_up(1, 8);
        assert!(self.step(DeviceStatus::DRIVER_OK));
    }

    /// The same; it has.
    fn go_live(&mut self, features: u64) {
        self.go_live_untold(features);
        self.actions();
    }
}

/// Where a queue's areas are in these tests.
pub(crate) fn areas(index: u16) -> [u64; 3] {
    [0x1_0000, 0x1_4000, 0x1_8000].map(|addr| 0x12_0000_0000 + addr + (u64::from(index) << 20))
}

/// Both buses, with all that can be offered.
pub(crate) fn both(test: impl Fn(&mut dyn Bus)) {
    both_with(0, test);
}

/// The same, for a model that offers these too.
pub(crate) fn both_with(features: u64, test: impl Fn(&mut dyn Bus)) {
    let settings = Settings { queue_size: 64, features: RING_RESET | NOTIFICATION_DATA };
    test(&mut MmioDevice::new(Thing::new(features), settings).unwrap());
    test(&mut PciDevice::new(Thing::new(features), settings, 4).unwrap());
}

macro_rules! vmm_side {
    () => {
        fn model(&mut self) -> &mut Thing {
            self.model_mut()
        }

        fn next(&mut self) -> Option<Action> {
            self.next_action()
        }

        fn queue(&self, index: u16) -> Option<QueueSetup> {
            self.queue(index)
        }

        fn used(&mut self, index: u16) {
            self.used(index);
        }

        fn config_changed(&mut self) {
            self.config_changed();
        }

        fn need_reset(&mut self) {
            self.need_reset();
        }

        fn queue_was_reset(&mut self, index: u16) {
            self.queue_was_reset(index);
        }
    };
}

impl Bus for MmioDevice<Thing> {
    fn get(&mut self, field: Field) -> u32 {
        let mut word = [0; 4];
        self.read(register(field), &mut word);
        u32::from_le_bytes(word)
    }

    fn set(&mut self, field: Field, value: u32) {
        self.write(register(field), &value.to_le_bytes());
    }

    fn kick(&mut self, _index: u16, value: u32) {
        self.write(reg::QUEUE_NOTIFY as u64, &value.to_le_bytes());
    }

    fn read_config(&mut self, offset: u64, to: &mut [u8]) {
        self.read(reg::CONFIG as u64 + offset, to);
    }

    fn write_config(&mut self, offset: u64, from: &[u8]) {
        self.write(reg::CONFIG as u64 + offset, from);
    }

    vmm_side!();
}

impl Bus for PciDevice<Thing> {
    fn get(&mut self, field: Field) -> u32 {
        let (offset, len) = place(field);
        let mut word = [0; 4];
        self.read(offset, &mut word[..len]);
        u32::from_le_bytes(word)
    }

    fn set(&mut self, field: Field, value: u32) {
        let (offset, len) = place(field);
        self.write(offset, &value.to_le_bytes()[..len]);
    }

    fn kick(&mut self, index: u16, value: u32) {
        self.write(self.notify_offset(index), &value.to_le_bytes());
    }

    fn read_config(&mut self, offset: u64, to: &mut [u8]) {
        self.read(0x2000 + offset, to);
    }

    fn write_config(&mut self, offset: u64, from: &[u8]) {
        self.write(0x2000 + offset, from);
    }

    vmm_side!();
}

/// Where MMIO has it.
fn register(field: Field) -> u64 {
    let offset = match field {
        Field::DeviceFeatureSelect => reg::DEVICE_FEATURES_SEL,
        Field::DeviceFeature => reg::DEVICE_FEATURES,
        Field::DriverFeatureSelect => reg::DRIVER_FEATURES_SEL,
        Field::DriverFeature => reg::DRIVER_FEATURES,
        Status => reg::STATUS,
        Generation => reg::CONFIG_GENERATION,
        QueueSelect => reg::QUEUE_SEL,
        QueueSize => reg::QUEUE_SIZE,
        QueueMax => reg::QUEUE_SIZE_MAX,
        Enable => reg::QUEUE_READY,
        Reset => reg::QUEUE_RESET,
        Field::Area(area, is_high) => reg::QUEUE_DESC_LOW + 0x10 * area + 4 * usize::from(is_high),
        Interrupts => reg::INTERRUPT_STATUS,
    };
    offset as u64
}

/// Where PCI has it, and how wide.
fn place(of: Field) -> (u64, usize) {
    let (offset, len) = match of {
        Field::DeviceFeatureSelect => (field::DEVICE_FEATURE_SELECT, 4),
        Field::DeviceFeature => (field::DEVICE_FEATURE, 4),
        Field::DriverFeatureSelect => (field::DRIVER_FEATURE_SELECT, 4),
        Field::DriverFeature => (field::DRIVER_FEATURE, 4),
        Status => (field::DEVICE_STATUS, 1),
        Generation => (field::CONFIG_GENERATION, 1),
        QueueSelect => (field::QUEUE_SELECT, 2),
        QueueSize | QueueMax => (field::QUEUE_SIZE, 2),
        Enable => (field::QUEUE_ENABLE, 2),
        Reset => (field::QUEUE_RESET, 2),
        Field::Area(area, is_high) => (field::QUEUE_DESC + 8 * area + 4 * usize::from(is_high), 4),
        Interrupts => (0x1000, 1),
    };
    (offset as u64, len)
}
