//! The registers that both buses have, by what they mean: here those of the whole device, [`queues`] has the rest.

mod queues;

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use ringway_spec::feature::VERSION_1;
use ringway_spec::pci::ISR_CONFIG;
use ringway_spec::split;
use ringway_spec::status::DeviceStatus;

use super::queue::{self, Queue};
use super::{Action, Settings, SettingsError};
use crate::model::DeviceModel;

/// An area of a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Area {
    Descriptor,
    Driver,
    Device,
}

/// A device behind its registers.
#[derive(Debug, Clone)]
pub(crate) struct Registers<D> {
    pub(crate) model: D,
    pub(crate) device_feature_select: u32,
    pub(crate) driver_feature_select: u32,
    /// What the driver wrote, before `FEATURES_OK` makes it an answer.
    driver_features: u64,
    /// The driver accepted a feature past those 64, of which none was offered.
    is_beyond: bool,
    pub(crate) queue_select: u16,
    queues: Vec<Queue>,
    /// The most entries of a queue.
    queue_size: u16,
    generation: u32,
    /// Whether the driver has read of the configuration what may be old by the next change.
    is_config_read: bool,
    /// MMIO's `InterruptStatus`, PCI's ISR status: [`ISR_QUEUE`](ringway_spec::pci::ISR_QUEUE), [`ISR_CONFIG`].
    pub(crate) isr: u8,
    /// A message about the configuration is due, where interrupts are messages.
    pub(crate) is_config_due: bool,
    due: Due,
}

/// What the VMM is to be told.
#[derive(Debug, Clone, Default)]
struct Due {
    reset: bool,
    start: bool,
    config_written: bool,
    /// Queues that have something, each once.
    queues: VecDeque<u16>,
}

impl<D: DeviceModel> Registers<D> {
    /// A device after reset; `allowed` are the features that the transport can have offered.
    pub(crate) fn new(mut model: D, settings: Settings, allowed: u64) -> Result<Self, SettingsError> {
        let Settings { queue_size, features } = settings;
        if !queue_size.is_power_of_two() || queue_size > split::MAX_SIZE {
            return Err(SettingsError::QueueSize(queue_size));
        }
        if features & !allowed != 0 {
            return Err(SettingsError::Features(features & !allowed));
        }
        model.negotiation_mut().offer(features | VERSION_1);
        let queues = vec![Queue::new(queue_size); model.max_queues().into()];
        Ok(Self {
            model,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            is_beyond: false,
            queue_select: 0,
            queues,
            queue_size,
            generation: 0,
            is_config_read: false,
            isr: 0,
            is_config_due: false,
            due: Due::default(),
        })
    }

    /// Whether this was negotiated.
    pub(crate) fn has(&self, feature: u64) -> bool {
        self.model.negotiation().acked() & feature != 0
    }

    fn is_live(&self) -> bool {
        self.model.negotiation().is_live()
    }

    // Features and status (2.1, 2.2, 3.1).

    /// The selected 32 bits of what the device offers.
    pub(crate) fn offered(&self) -> u32 {
        half(self.model.negotiation().offered(), self.device_feature_select)
    }

    /// The selected 32 bits of what the driver wrote.
    pub(crate) fn accepted(&self) -> u32 {
        half(self.driver_features, self.driver_feature_select)
    }

    /// The driver writes the selected 32 bits. After `FEATURES_OK` it is too late (3.1.1).
    pub(crate) fn accept(&mut self, bits: u32) {
        if self.status().contains(DeviceStatus::FEATURES_OK) {
            return;
        }
        match self.driver_feature_select {
            select @ (0 | 1) => set_half(&mut self.driver_features, select == 1, bits),
            _ => self.is_beyond |= bits != 0,
        }
    }

    pub(crate) fn status(&self) -> DeviceStatus {
        self.model.negotiation().status()
    }

    /// The driver writes the status, without 0, which is [`reset`](Self::reset). Bits go up only: the way down is a reset
    /// (2.1.1).
    pub(crate) fn write_status(&mut self, value: u8) {
        let before = self.status();
        let mut status = before | DeviceStatus::from_bits_truncate(value);
        let negotiation = self.model.negotiation_mut();
        if status.contains(DeviceStatus::FEATURES_OK) && !before.contains(DeviceStatus::FEATURES_OK) {
            let is_modern = self.driver_features & VERSION_1 != 0 && !self.is_beyond;
            if !is_modern || negotiation.ack(self.driver_features).is_err() {
                status.remove(DeviceStatus::FEATURES_OK);
            }
        }
        if !status.contains(DeviceStatus::FEATURES_OK) {
            status.remove(DeviceStatus::DRIVER_OK);
        }
        negotiation.write_status(status.bits());
        if self.status() != before {
            // What a configuration holds may depend on what was negotiated.
            self.config_may_differ();
        }
        if self.is_live() && !before.contains(DeviceStatus::DRIVER_OK) {
            self.due.start = true;
            for index in 0..self.model.max_queues() {
                if self.is_enabled(index) {
                    self.tell(index).start = true;
                }
            }
        }
    }

    /// The driver resets the device (2.4).
    pub(crate) fn reset(&mut self) {
        self.model.reset();
        self.config_may_differ();
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.is_beyond = false;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = Queue::new(self.queue_size);
        }
        self.isr = 0;
        self.is_config_due = false;
        self.due = Due { reset: true, ..Due::default() };
    }

    /// The device has failed; a driver that uses it is told so by way of its configuration (2.1.2).
    pub(crate) fn need_reset(&mut self) {
        self.model.negotiation_mut().need_reset();
        self.config_changed();
    }

    // The configuration space (2.5).

    /// Another value if the driver may have read what is no longer so.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    pub(crate) fn read_config(&mut self, offset: usize, to: &mut [u8]) {
        self.is_config_read = true;
        if offset < self.model.config_len() {
            self.model.read_config(offset, to);
        } else {
            to.fill(0);
        }
    }

    pub(crate) fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let is_inside = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.model.config_len());
        if is_inside && self.model.write_config(offset, bytes) {
            self.config_may_differ();
            self.due.config_written = true;
        }
    }

    /// The generation is seen through 8 bits by some: it goes on once between two reads of the configuration, however often
    /// that changes, so it cannot come round while a driver reads.
    fn config_may_differ(&mut self) {
        if core::mem::take(&mut self.is_config_read) {
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// The configuration has changed. A driver that does not use the device yet is not told.
    pub(crate) fn config_changed(&mut self) {
        self.config_may_differ();
        if self.is_live() {
            self.isr |= ISR_CONFIG;
            self.is_config_due = true;
        }
    }

    // What is due.

    /// What is due of a queue, to have something added.
    fn tell(&mut self, index: u16) -> &mut queue::Due {
        let queue = &mut self.queues[usize::from(index)];
        if !core::mem::replace(&mut queue.is_listed, true) {
            self.due.queues.push_back(index);
        }
        &mut queue.due
    }

    /// The next of what is due, without interrupts.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        for (is_due, action) in [
            (&mut self.due.reset, Action::Reset),
            (&mut self.due.start, Action::Started),
            (&mut self.due.config_written, Action::ConfigWritten),
        ] {
            if core::mem::take(is_due) {
                return Some(action);
            }
        }
        while let Some(&index) = self.due.queues.front() {
            let queue = &mut self.queues[usize::from(index)];
            if let Some(action) = queue.next_action(index) {
                return Some(action);
            }
            queue.is_listed = false;
            self.due.queues.pop_front();
        }
        None
    }
}

/// 32 of 64 bits; there are none past those.
fn half(bits: u64, select: u32) -> u32 {
    bits.checked_shr(select.saturating_mul(32)).unwrap_or(0) as u32
}

/// Writes the upper or lower 32 of 64 bits.
fn set_half(bits: &mut u64, is_high: bool, value: u32) {
    let shift = 32 * u32::from(is_high);
    *bits = *bits & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
}
