//! A device in its window: registers that the guest reads and writes, queues that are served, an interrupt line.
//!
//! ```text
//!   processor's thread                                         main thread
//!   read, write ──► MmioDevice ──actions──► queues start, stop
//!   QueueNotify ──► (KVM: ioeventfd) ─────────────────────────► kick: serve the queue
//!                         line ◄── used(queue) ◄─────────────── buffers were used
//!                                                               source (a socket, standard input): likewise
//! ```
//!
//! Both threads lock a device for as long as they deal with it. Kicks do not stop the processor: KVM turns the write into
//! a count of an eventfd, and only what is no plain queue number (`NOTIFICATION_DATA`) comes here as a write.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_ioctls::{IoEventAddress, VmFd};
use ringway_device::mmio::MmioDevice;
use ringway_device::model::DeviceModel;
use ringway_device::registers::{Action, Settings};
use ringway_memory::MemoryTable;
use ringway_queue::{Burst, DeviceQueue, QueueError};
use ringway_spec::mmio::QUEUE_NOTIFY;
use ringway_vhost::frontend::{Event, Memory};
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use vmm_sys_util::eventfd::EventFd;

/// Bytes of a window.
pub(crate) const WINDOW_LEN: u64 = 0x1000;

/// What the main thread is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// This queue was kicked; of a device in another process, it used buffers of it.
    Queue(u16),
    /// What a device reads from has something, or takes something again.
    Source,
}

/// A device as the two threads see it.
pub(crate) trait Device: Send {
    /// The guest reads at an offset of the window.
    fn read(&mut self, offset: u64, to: &mut [u8]);
    /// The guest writes.
    fn write(&mut self, offset: u64, from: &[u8]);
    /// The main thread was woken.
    fn wake(&mut self, wake: Wake);
}

/// What a device has of its machine.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) table: Arc<MemoryTable>,
    /// What the main thread waits on.
    pub(crate) epoll: Arc<OwnedFd>,
    /// The device's number: where its window is, which interrupt it has, and by which it is woken.
    pub(crate) number: u32,
}

impl Slot {
    /// Where windows begin: above all memory that a guest may have here, below the interrupt controllers.
    const WINDOWS: u64 = 0xd000_0000;
    /// Interrupts of a PC that nothing else has.
    pub(crate) const IRQS: [u32; 5] = [5, 9, 10, 11, 12];

    /// The device's interrupt.
    pub(crate) fn irq(&self) -> u32 {
        Self::IRQS[self.number as usize]
    }

    /// Where its window is.
    pub(crate) fn window(&self) -> u64 {
        Self::WINDOWS + u64::from(self.number) * WINDOW_LEN
    }

    /// Which device's window this is, and where in it.
    pub(crate) fn find(address: u64) -> Option<(usize, u64)> {
        let offset = address.checked_sub(Self::WINDOWS)?;
        Some(((offset / WINDOW_LEN) as usize, offset % WINDOW_LEN))
    }

    /// Whose source it is, or which queue's kick.
    pub(crate) fn decode(data: u64) -> (usize, Wake) {
        let wake = u16::try_from(data as u32).map_or(Wake::Source, Wake::Queue);
        ((data >> 32) as usize, wake)
    }

    /// Wakes the main thread whenever `fd` becomes readable: at the edge, so nobody has to read it.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, wake: Wake) -> Result<()> {
        let low = match wake {
            Wake::Queue(index) => index.into(),
            Wake::Source => u32::MAX,
        };
        let data = epoll::EventData::new_u64(u64::from(self.number) << 32 | u64::from(low));
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN | epoll::EventFlags::ET).context("epoll")
    }

    /// Wakes nobody any more for `fd`, which others may keep open.
    pub(crate) fn forget(&self, fd: BorrowedFd<'_>) -> Result<()> {
        epoll::delete(&self.epoll, fd).context("epoll")
    }

    /// Has KVM count kicks of a queue in `event`, or no longer.
    pub(crate) fn set_kick(&self, queue: u16, event: &Event, on: bool) -> Result<()> {
        let fd = event.share()?.into_raw_fd();
        // SAFETY: the descriptor is a copy made above, which nobody else has.
        let event = unsafe { EventFd::from_raw_fd(fd) };
        let address = IoEventAddress::Mmio(self.window() + QUEUE_NOTIFY as u64);
        let queue = u32::from(queue);
        if on {
            self.vm.register_ioevent(&event, &address, queue).context("KVM_IOEVENTFD")
        } else {
            self.vm.unregister_ioevent(&event, &address, queue).context("KVM_IOEVENTFD")
        }
    }

    /// Sets the interrupt line.
    pub(crate) fn set_line(&self, level: bool) -> Result<()> {
        self.vm.set_irq_line(self.irq(), level).context("KVM_IRQ_LINE")
    }
}

/// What a device of this process does with its queues.
pub(crate) trait Work: Send {
    /// What it is to a driver.
    type Model: DeviceModel + Send;

    /// Serves a queue, a few chains at most. `burst` is empty, and stays so.
    fn serve(
        &mut self,
        model: &mut Self::Model,
        index: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Served, QueueError>;

    /// What it reads from, and the queue that this is for.
    fn source(&self) -> Option<(BorrowedFd<'_>, u16)> {
        None
    }
}

/// What came of serving a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Served {
    /// The driver is to be called.
    pub(crate) call: bool,
    /// There may be more to do at once: what is left in the queue does not wait for somebody else.
    pub(crate) more: bool,
}

/// A device of this process.
pub(crate) struct Local<W: Work> {
    slot: Slot,
    registers: MmioDevice<W::Model>,
    work: W,
    queues: Vec<Option<DeviceQueue>>,
    /// Nobody reads them: they are watched as long as they are open.
    _kicks: Vec<Event>,
    burst: Burst,
}

impl<W: Work> Local<W> {
    /// A device after reset.
    pub(crate) fn new(slot: Slot, model: W::Model, work: W) -> Result<Self> {
        let kicks = (0..model.max_queues()).map(|index| {
            let kick = Event::new()?;
            slot.set_kick(index, &kick, true)?;
            slot.watch(kick.as_fd(), Wake::Queue(index))?;
            Ok(kick)
        });
        let kicks = kicks.collect::<Result<Vec<_>>>()?;
        let queues = kicks.iter().map(|_| None).collect();
        if let Some((source, _)) = work.source() {
            // What is always ready, such as a file, is read whenever the driver has room.
            let _ = slot.watch(source, Wake::Source);
        }
        let features = ringway_spec::feature::RING_RESET | ringway_spec::feature::NOTIFICATION_DATA;
        let registers = MmioDevice::new(model, Settings { features, ..Settings::default() })?;
        Ok(Self { slot, registers, work, queues, _kicks: kicks, burst: Burst::default() })
    }

    fn serve(&mut self, index: u16) {
        let Some(Some(queue)) = self.queues.get_mut(usize::from(index)) else {
            return;
        };
        loop {
            match self.work.serve(self.registers.model_mut(), index, queue, &mut self.burst) {
                Ok(served) => {
                    if served.call {
                        self.registers.used(index);
                    }
                    if !(queue.arm() && served.more) {
                        return;
                    }
                }
                Err(error) => return self.fail(index, &error),
            }
        }
    }

    /// Gives up a queue, and with it the device.
    fn fail(&mut self, index: u16, error: &dyn std::error::Error) {
        eprintln!("launch: device {}, queue {index}: {error}", self.registers.model().id());
        self.queues[usize::from(index)] = None;
        self.registers.need_reset();
    }

    fn start(&mut self, index: u16) {
        let Some(setup) = self.registers.queue(index) else { return };
        match setup.start(&self.slot.table) {
            Ok(queue) => {
                self.queues[usize::from(index)] = Some(queue);
                // What was made available before is told by no kick that is heard now.
                self.serve(index);
            }
            Err(error) => self.fail(index, &error),
        }
    }

    /// Does what is to be done after anything was told the registers.
    fn settle(&mut self) {
        while let Some(action) = self.registers.next_action() {
            match action {
                Action::Reset => self.queues.fill_with(|| None),
                Action::QueueStarted(index) => self.start(index),
                Action::QueueReset(index) => {
                    self.queues[usize::from(index)] = None;
                    self.registers.queue_was_reset(index);
                }
                Action::Notified { index, .. } => self.serve(index),
                Action::Line(level) => {
                    if let Err(error) = self.slot.set_line(level) {
                        eprintln!("launch: {error:#}");
                    }
                }
                Action::Started | Action::ConfigWritten | Action::Message { .. } | Action::Mapped(_) => {}
            }
        }
    }
}

impl<W: Work> Device for Local<W> {
    fn read(&mut self, offset: u64, to: &mut [u8]) {
        self.registers.read(offset, to);
        self.settle();
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        self.registers.write(offset, from);
        self.settle();
    }

    fn wake(&mut self, wake: Wake) {
        let index = match wake {
            Wake::Queue(index) => Some(index),
            Wake::Source => self.work.source().map(|(_, index)| index),
        };
        if let Some(index) = index {
            self.serve(index);
        }
        self.settle();
    }
}
