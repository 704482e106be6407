//! The entropy driver (5.4): random bytes from the host.
//!
//! One request is under way at a time. Whoever can wait [fills](Entropy::fill) what is to be filled; whoever cannot makes a
//! [request](Entropy::request), does something else until there is an interrupt, and [receives](Entropy::receive) the answer.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use ringway_driver::entropy::{self, Entropy};
//! # use ringway_driver::{Error, Platform, Transport};
//! # trait Generator { fn seed(&mut self, bytes: &[u8]); fn wait_for_interrupt(&self); }
//! /// Seeds a generator at once, and then again whenever the device has something.
//! fn feed<T: Transport>(transport: T, platform: Arc<dyn Platform>, generator: &mut dyn Generator) -> Result<(), Error> {
//!     let mut entropy = Entropy::new(transport, platform, &entropy::Options::default())?;
//!     let mut bytes = [0; 32];
//!     entropy.fill(&mut bytes)?;
//!     generator.seed(&bytes);
//!     loop {
//!         entropy.request(32)?;
//!         // An answer that came before arming comes without an interrupt.
//!         while !entropy.arm() {
//!             generator.wait_for_interrupt();
//!             entropy.interrupt()?;
//!         }
//!         if let Some(len) = entropy.receive(&mut bytes)? {
//!             generator.seed(&bytes[..len]);
//!         }
//!     }
//! }
//! ```
//!
//! How random the bytes are is the host's word, and a driver cannot check it.
#![forbid(unsafe_code)]

use alloc::sync::Arc;

use ringway_memory::SharedBuf;
use ringway_queue::Segment;
use ringway_spec::entropy::DEVICE_ID;

use crate::{Device, Error, Interrupt, Platform, QueueOptions, Transport, Virtqueue, Wanted};

/// The queue of requests (5.4.2).
const REQUEST_QUEUE: u16 = 0;
/// Descriptors of it: one is in use.
const QUEUE_SIZE: u16 = 8;

/// How a device shall be used.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The most bytes of one request.
    pub max_len: u32,
    /// Features of any kind that are not to be accepted, as of the rings.
    pub without: u64,
    /// The interrupt for answers, where there are several (MSI-X).
    pub vector: Option<u16>,
}

impl Default for Options {
    /// 256 bytes, no interrupt of its own.
    fn default() -> Self {
        Self { max_len: 256, without: 0, vector: None }
    }
}

/// An entropy device. Dropped, it is reset.
pub struct Entropy<T: Transport> {
    device: Device<T>,
    queue: Virtqueue<SharedBuf, T::Notifier>,
    /// Room for an answer, unless the device has it.
    buffer: Option<SharedBuf>,
}

impl<T: Transport> Entropy<T> {
    /// Sets the device up.
    ///
    /// # Errors
    /// Those of [`Device::set_up`].
    pub fn new(transport: T, platform: Arc<dyn Platform>, options: &Options) -> Result<Self, Error> {
        let wanted =
            Wanted { id: DEVICE_ID, features: 0, required: 0, requires: &[], without: options.without };
        let (device, (mut queue, buffer)) = Device::set_up(transport, platform, &wanted, |device| {
            let queue_options =
                QueueOptions { max_size: QUEUE_SIZE, table_entries: 0, vector: options.vector };
            Ok((device.queue(REQUEST_QUEUE, queue_options)?, device.buffers(1, options.max_len)?.pop()))
        })?;
        queue.suppress();
        Ok(Self { device, queue, buffer })
    }

    /// Asks for `len` random bytes, or as many as a request can be for. False if a request is under way already, or `len`
    /// is 0.
    ///
    /// # Errors
    /// Those of the queue.
    pub fn request(&mut self, len: u32) -> Result<bool, Error> {
        let Some(buffer) = self.buffer.take_if(|_| len > 0) else { return Ok(false) };
        let room = Segment { addr: buffer.addr(), len: len.min(buffer.len()) };
        if let Err(not_added) = self.queue.add(&[], &[room], buffer) {
            self.buffer = Some(not_added.owner);
            return Err(not_added.error.into());
        }
        self.queue.publish();
        Ok(true)
    }

    /// The answer, if there is one: how many bytes it has, which are in `to` then. The device may have fewer than it was
    /// asked for, even none; what does not fit in `to` is lost.
    ///
    /// # Errors
    /// [`Error::Device`] if the device breaks the rules of its queue.
    pub fn receive(&mut self, to: &mut [u8]) -> Result<Option<usize>, Error> {
        let Some(used) = self.queue.reclaim()? else { return Ok(None) };
        let len = to.len().min(used.written as usize);
        let received = used.owner.read(&mut to[..len]);
        self.buffer = Some(used.owner);
        Ok(Some(received))
    }

    /// Fills `to` with random bytes. Waits for them, as long as the platform does.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the device answers nothing, or nothing but empty answers; [`Error::NeedsReset`] if it says that
    /// it has failed; [`Error::Device`] if it breaks the rules of its queue.
    pub fn fill(&mut self, mut to: &mut [u8]) -> Result<(), Error> {
        self.queue.suppress();
        let mut round = 0;
        while !to.is_empty() {
            self.request(to.len().try_into().unwrap_or(u32::MAX))?;
            match self.receive(to)? {
                Some(len) if len > 0 => {
                    to = &mut to[len..];
                    round = 0;
                }
                _ if self.device.wait(round) => round = round.saturating_add(1),
                _ => {
                    self.device.check()?;
                    return Err(Error::TimedOut { what: "an answer with random bytes" });
                }
            }
        }
        Ok(())
    }

    /// Asks for an interrupt at the next answer. Returns whether there is one already; only if not is there something to wait
    /// for.
    #[must_use = "an answer that came before arming comes without an interrupt"]
    pub fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    /// What the interrupt that has come is about. It is acknowledged with this.
    ///
    /// # Errors
    /// [`Error::NeedsReset`] if the device has failed.
    pub fn interrupt(&mut self) -> Result<Interrupt, Error> {
        self.device.interrupt()
    }

    /// The way to the device.
    pub fn transport_mut(&mut self) -> &mut T {
        self.device.transport_mut()
    }

    /// Stops the device, and gives its memory back.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the device is not reset.
    pub fn stop(self) -> Result<T, Error> {
        let stopped = self.device.stop()?;
        self.queue.retire(&stopped);
        Ok(stopped.into_transport())
    }
}
