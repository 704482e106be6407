//! Queues: how the driver says what they shall be, and the notifications that go both ways (2.3, 2.6, 2.9).

use ringway_memory::Gpa;
use ringway_queue::NotificationData;
use ringway_spec::feature::{NOTIFICATION_DATA, RING_PACKED, RING_RESET};
use ringway_spec::pci::ISR_QUEUE;
use ringway_spec::status::DeviceStatus;

use super::super::queue::{Phase, Queue};
use super::super::{Action, QueueSetup};
use super::{Area, Registers, half, set_half};
use crate::model::DeviceModel;

impl<D: DeviceModel> Registers<D> {
    /// The selected queue, if there is one.
    fn selected(&self) -> Option<&Queue> {
        let queue = self.queues.get(usize::from(self.queue_select))?;
        self.model.has_queue(self.queue_select).then_some(queue)
    }

    /// The selected queue, if the driver may say how it shall be.
    fn in_setup(&mut self) -> Option<&mut Queue> {
        self.selected().filter(|queue| queue.phase == Phase::SetUp)?;
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The most entries of the selected queue; 0 if there is none.
    pub(crate) fn max_size(&self) -> u16 {
        self.selected().map_or(0, |_| self.queue_size)
    }

    /// The entries of the selected queue; 0 if there is none, or if the driver wrote a number that cannot be.
    pub(crate) fn size(&self) -> u16 {
        self.selected().map_or(0, |queue| queue.size)
    }

    pub(crate) fn set_size(&mut self, size: u16) {
        let is_good = size <= self.queue_size && (size.is_power_of_two() || self.has(RING_PACKED));
        if let Some(queue) = self.in_setup() {
            queue.size = if is_good { size } else { 0 };
        }
    }

    pub(crate) fn area(&self, area: Area, is_high: bool) -> u32 {
        self.selected().map_or(0, |queue| half(queue.areas[area as usize], is_high.into()))
    }

    pub(crate) fn set_area(&mut self, area: Area, is_high: bool, value: u32) {
        if let Some(queue) = self.in_setup() {
            set_half(&mut queue.areas[area as usize], is_high, value);
        }
    }

    /// The vector of the selected queue.
    pub(crate) fn vector(&self) -> Option<u16> {
        self.selected().map(|queue| queue.vector)
    }

    /// Mapped at any time (4.1.5.1.2): drivers do so before they enable a queue, and take it back after.
    pub(crate) fn set_vector(&mut self, vector: u16) {
        if self.selected().is_some() {
            self.queues[usize::from(self.queue_select)].vector = vector;
        }
    }

    /// Whether the device has the selected queue.
    pub(crate) fn is_ready(&self) -> bool {
        self.selected().is_some_and(|queue| queue.phase != Phase::SetUp)
    }

    /// Whether the reset of the selected queue is under way.
    pub(crate) fn is_resetting(&self) -> bool {
        self.has(RING_RESET) && self.selected().is_some_and(|queue| queue.phase == Phase::Stopping)
    }

    /// The driver enables the selected queue. If it wrote a size that cannot be, the device has failed: this driver will use
    /// the queue as it thinks it is.
    pub(crate) fn enable(&mut self) {
        let (index, is_live) = (self.queue_select, self.is_live());
        if !self.status().contains(DeviceStatus::FEATURES_OK) {
            return;
        }
        match self.in_setup() {
            Some(queue) if queue.size == 0 => self.need_reset(),
            Some(queue) => {
                queue.phase = Phase::Enabled;
                if is_live {
                    self.tell(index).start = true;
                }
            }
            None => {}
        }
    }

    /// The driver resets the selected queue (2.6.1).
    pub(crate) fn reset_queue(&mut self) {
        if self.has(RING_RESET) {
            self.stop();
        }
    }

    /// The driver wants the selected queue back.
    pub(crate) fn stop(&mut self) {
        let (index, size, is_live) = (self.queue_select, self.queue_size, self.is_live());
        let Some(queue) = self.selected() else {
            return;
        };
        let (phase, is_unknown) = (queue.phase, !is_live || queue.due.start);
        let queue = &mut self.queues[usize::from(index)];
        match phase {
            // The VMM never had it.
            Phase::Enabled if is_unknown => queue.reset(size),
            Phase::Enabled => {
                queue.phase = Phase::Stopping;
                queue.due.notification = None;
                self.tell(index).stop = true;
            }
            Phase::SetUp | Phase::Stopping => {}
        }
    }

    /// The VMM let go of a queue that it was told the driver wanted back.
    pub(crate) fn queue_was_reset(&mut self, index: u16) {
        let is_wanted = |queue: &&mut Queue| queue.phase == Phase::Stopping && !queue.due.stop;
        if let Some(queue) = self.queues.get_mut(usize::from(index)).filter(is_wanted) {
            queue.reset(self.queue_size);
        }
    }

    /// The queue, if the device may use it.
    pub(crate) fn queue(&self, index: u16) -> Option<QueueSetup> {
        let queue = self.running(index)?;
        let [descriptor, driver, device] = queue.areas.map(Gpa);
        let features = self.model.negotiation().acked();
        Some(QueueSetup { size: queue.size, features, descriptor, driver, device })
    }

    pub(super) fn is_enabled(&self, index: u16) -> bool {
        self.queues.get(usize::from(index)).is_some_and(|queue| queue.phase == Phase::Enabled)
    }

    fn running(&self, index: u16) -> Option<&Queue> {
        let queue = self.queues.get(usize::from(index))?;
        (self.is_live() && queue.phase == Phase::Enabled).then_some(queue)
    }

    /// The driver made buffers available in queue `index`, if that runs; `word` is what it wrote.
    pub(crate) fn notify(&mut self, index: u16, word: u32) {
        let is_broken = self.status().contains(DeviceStatus::DEVICE_NEEDS_RESET);
        if self.running(index).is_some() && !is_broken {
            let data = self.has(NOTIFICATION_DATA).then(|| NotificationData::from_word(word));
            self.tell(index).notification = Some(Action::Notified { index, data });
        }
    }

    /// Where a kick of the selected queue goes, and what it carries if the device may say so: the queue's index.
    pub(crate) fn notify_index(&self) -> u16 {
        self.selected().map_or(0, |_| self.queue_select)
    }

    /// The device used buffers of a queue: the vector of its interrupt, if the driver is to be told.
    pub(crate) fn used(&self, index: u16) -> Option<u16> {
        self.running(index).map(|queue| queue.vector)
    }

    /// Without messages, an interrupt is about all queues.
    pub(crate) fn raise_queue(&mut self) {
        self.isr |= ISR_QUEUE;
    }
}
