//! vhost-user: the device is a back-end in another process, reached by messages on a Unix socket.
//!
//! ```text
//!   VhostUser ──messages──► back-end         features, status, configuration, where rings are
//!   Kick ──────eventfd────► its ring         VhostUser::call: the eventfd the other way, to sleep on
//!   SharedMemory ═══════════ mapped there    rings and buffers: one file, which both sides map
//! ```
//!
//! What of virtio the protocol has no message for is kept here: the status, for back-ends that do not, and the
//! configuration's generation. A queue is told to the back-end as the driver becomes ready (`DRIVER_OK`), not before,
//! because a back-end may look at a ring as soon as it knows its kick.
//!
//! There is no IOMMU here, so `ACCESS_PLATFORM` is not passed on to the driver. A device that has lost its back-end is lost:
//! no in-flight region is shared, and nothing connects again.

mod memory;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::vec::Vec;

use ringway_queue::ResumeState;
use ringway_spec::feature::{ACCESS_PLATFORM, RING_RESET};
use ringway_spec::net;
use ringway_spec::status::DeviceStatus;
use ringway_vhost::frontend::{
    BareVring, Channel, Connection, Event, Frontend, FrontendError, Signals, VringPlace, wait_used,
};
use ringway_vhost::message::{ChannelRequest, MAX_CONFIG, VringAddresses, protocol_feature as pf};

pub use memory::SharedMemory;
pub use ringway_vhost::frontend::Pages;

use crate::{Interrupt, Notify, QueueSetup, Transport, TransportError, Virtqueue};

/// The protocol features that are of use to a driver.
const PROTOCOL_FEATURES: u64 = pf::MQ
    | pf::REPLY_ACK
    | pf::BACKEND_REQ
    | pf::CONFIG
    | pf::RESET_DEVICE
    | pf::CONFIGURE_MEM_SLOTS
    | pf::STATUS;
/// Features of a network device that a driver finds in the configuration.
const NET_FIELDS: u64 = net::F_MAC
    | net::F_STATUS
    | net::F_MTU
    | net::F_MQ
    | net::F_RSS
    | net::F_HASH_REPORT
    | net::F_SPEED_DUPLEX
    | net::F_GUEST_ANNOUNCE;
/// The most requests of the back-end that are looked at in one go.
const MAX_REQUESTS: usize = 64;
/// Of any ring (2.7, 2.8): no message says what a back-end can do.
const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// The way to a device that is a vhost-user back-end.
pub struct VhostUser {
    frontend: Frontend,
    memory: SharedMemory,
    is_memory_shared: bool,
    device_id: u32,
    /// How many queues there can be; `None` if the back-end does not say.
    max_queues: Option<u64>,
    /// As the driver wrote it.
    status: DeviceStatus,
    /// A ring has failed since the device was reset.
    has_failed: bool,
    queues: BTreeMap<u16, Queue>,
    config: Snapshot,
    channel: Option<Channel>,
}

/// A queue that was set up, and how often it was kicked.
struct Queue {
    vring: BareVring,
    kicks: Arc<AtomicU64>,
}

impl Queue {
    /// A ring starts with its first kick (Starting and stopping rings), and a device of which none has started says nothing,
    /// not even that its configuration has changed. So the front-end gives one, whenever the driver gives its own.
    fn wake(&self) -> io::Result<()> {
        self.vring.kick().signal()
    }
}

/// The configuration as it was last fetched.
#[derive(Default)]
struct Snapshot {
    /// The start of it, as far as the driver has ever read.
    bytes: Vec<u8>,
    /// It need not be fetched again before the next look at the generation.
    is_fresh: bool,
    generation: u32,
}

impl VhostUser {
    /// Connects to the back-end that listens at `path`, or will in a few seconds. No message tells of which type its device
    /// is: that is for the caller to know. Rings and buffers are to be in `memory`, which is the driver's
    /// [`Platform`](crate::Platform).
    ///
    /// # Errors
    /// [`TransportError::VhostUser`].
    pub fn connect(
        path: impl AsRef<Path>,
        device_id: u32,
        memory: &SharedMemory,
    ) -> Result<Self, TransportError> {
        Self::new(Connection::connect(path)?, device_id, memory)
    }

    /// Begins a session on a connection: see [`VhostUser::connect`].
    ///
    /// # Errors
    /// [`TransportError::VhostUser`].
    pub fn new(
        connection: Connection,
        device_id: u32,
        memory: &SharedMemory,
    ) -> Result<Self, TransportError> {
        let mut frontend = Frontend::open(connection, PROTOCOL_FEATURES)?;
        let protocol_features = frontend.protocol_features();
        let max_queues = frontend.queue_num()?.map(|number| match device_id {
            // Back-ends count pairs, beside which there is the control queue, or count queues.
            net::DEVICE_ID => number.saturating_mul(2).saturating_add(1),
            _ => number,
        });
        let channel =
            (protocol_features & pf::BACKEND_REQ != 0).then(|| frontend.open_channel()).transpose()?;
        Ok(Self {
            frontend,
            memory: memory.clone(),
            is_memory_shared: false,
            device_id,
            max_queues,
            status: DeviceStatus::empty(),
            has_failed: false,
            queues: BTreeMap::new(),
            config: Snapshot::default(),
            channel,
        })
    }

    /// The counter that the device calls by when it has used chains of a queue, if the driver has [armed](Virtqueue::arm)
    /// it; `None` if there is no such queue. It can be polled, and outlives the queue.
    pub fn call(&self, index: u16) -> Option<&Arc<Event>> {
        self.queues.get(&index).map(|queue| queue.vring.call())
    }

    /// How often a queue was kicked since it was set up; `None` if there is no such queue.
    pub fn kicks(&self, index: u16) -> Option<u64> {
        self.queues.get(&index).map(|queue| queue.kicks.load(Ordering::Relaxed))
    }

    /// Where the back-end speaks first, for instance of a configuration that has changed; `None` if this one never does.
    /// When it can be read, it is time for [`Device::interrupt`](crate::Device::interrupt). A back-end may wait for that.
    pub fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// Sleeps until the device has used a chain of `queue`, or did wrong; false if neither came within `limit`.
    ///
    /// # Errors
    /// [`TransportError::NoQueue`], [`TransportError::VhostUser`].
    pub fn wait<O>(&self, queue: &mut Virtqueue<O, Kick>, limit: Duration) -> Result<bool, TransportError> {
        let index = queue.index();
        let call = self.call(index).ok_or(TransportError::NoQueue(index))?;
        Ok(wait_used(queue.queue_mut(), call, limit)?)
    }

    /// Whether the back-end keeps the device status.
    fn keeps_status(&self) -> bool {
        self.frontend.protocol_features() & pf::STATUS != 0
    }

    /// Tells the back-end of a queue, and that it may be used.
    fn start(&mut self, index: u16) -> Result<(), TransportError> {
        let Some(Queue { vring, .. }) = self.queues.get_mut(&index) else { return Ok(()) };
        self.frontend.start_unkicked(vring)?;
        Ok(self.frontend.enable(vring, true)?)
    }

    /// Has the back-end touch no ring any more. It has answered what it had taken, then, or forgotten it.
    fn stop(&mut self, index: u16) -> Result<(), TransportError> {
        if let Some(Queue { vring, .. }) = self.queues.get_mut(&index)
            && vring.is_started()
        {
            self.frontend.stop(vring)?;
        }
        self.queues.remove(&index);
        Ok(())
    }

    /// Notices what the back-end says of failed rings.
    fn look_for_failures(&mut self) -> io::Result<bool> {
        for queue in self.queues.values() {
            self.has_failed |= queue.vring.err().take()? > 0;
        }
        Ok(self.has_failed)
    }

    /// Fetches the configuration's first `len` bytes, all by one message, so that they belong together.
    fn fetch(&mut self, len: usize) -> Result<(), TransportError> {
        let bytes = self.frontend.config(0, len as u32)?;
        let config = &mut self.config;
        if !bytes.starts_with(&config.bytes) {
            config.generation = config.generation.wrapping_add(1);
        }
        config.bytes = bytes;
        config.is_fresh = true;
        Ok(())
    }
}

impl Transport for VhostUser {
    type Notifier = Kick;

    fn device_id(&self) -> u32 {
        self.device_id
    }

    fn carries(&self) -> u64 {
        RING_RESET
    }

    fn offered(&mut self) -> Result<u64, TransportError> {
        // That a back-end can work behind an IOMMU is for the front-end to know, which has none.
        let mut offered = self.frontend.offered() & !ACCESS_PLATFORM;
        if self.device_id == net::DEVICE_ID && self.frontend.protocol_features() & pf::CONFIG == 0 {
            // A hypervisor makes the configuration up, beside a back-end that has none; here nobody does.
            offered &= !NET_FIELDS;
        }
        Ok(offered)
    }

    fn accept(&mut self, features: u64) -> Result<(), TransportError> {
        self.frontend.accept(features)?;
        if !self.is_memory_shared {
            self.memory.share_with(&mut self.frontend)?;
            self.is_memory_shared = true;
        }
        Ok(())
    }

    fn status(&mut self) -> Result<DeviceStatus, TransportError> {
        let mut status = self.frontend.status()?.unwrap_or(self.status);
        // The protocol's word for the same.
        if self.look_for_failures()? {
            status |= DeviceStatus::DEVICE_NEEDS_RESET;
        }
        Ok(status)
    }

    fn set_status(&mut self, status: DeviceStatus) -> Result<(), TransportError> {
        if status.contains(DeviceStatus::DRIVER_OK) && !self.status.contains(DeviceStatus::DRIVER_OK) {
            let waiting: Vec<_> = self.queues.keys().copied().collect();
            waiting.into_iter().try_for_each(|index| self.start(index))?;
        }
        self.frontend.set_status(status)?;
        self.status = status;
        if status.contains(DeviceStatus::DRIVER_OK) {
            self.queues.values().try_for_each(Queue::wake)?;
        }
        Ok(())
    }

    fn begin_reset(&mut self) -> Result<(), TransportError> {
        // This, every back-end knows.
        let all: Vec<_> = self.queues.keys().copied().collect();
        all.into_iter().try_for_each(|index| self.stop(index))?;
        if self.keeps_status() {
            self.frontend.set_status(DeviceStatus::empty())?;
        } else if !self.status.is_empty() {
            match self.frontend.reset_device() {
                // Its rings are stopped, and what else it has is told anew.
                Ok(()) | Err(FrontendError::NotNegotiated { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.status = DeviceStatus::empty();
        self.has_failed = false;
        self.config.is_fresh = false;
        Ok(())
    }

    fn generation(&mut self) -> Result<u32, TransportError> {
        // A back-end says that something has changed later than it changes it, or never: what counts is what is read.
        self.config.is_fresh = false;
        Ok(self.config.generation)
    }

    fn read_config(&mut self, offset: usize, to: &mut [u8]) -> Result<(), TransportError> {
        let end = offset.saturating_add(to.len());
        if end > MAX_CONFIG as usize {
            return Err(TransportError::ShortConfig { offset, len: to.len() });
        }
        let known = self.config.bytes.len();
        if !self.config.is_fresh || end > known {
            self.fetch(end.max(known))?;
        }
        to.copy_from_slice(&self.config.bytes[offset..end]);
        Ok(())
    }

    fn write_config(&mut self, offset: usize, from: &[u8]) -> Result<(), TransportError> {
        self.config.is_fresh = false;
        Ok(self.frontend.set_config(offset as u32, from)?)
    }

    fn max_queue_size(&mut self, index: u16) -> Result<u16, TransportError> {
        let exists = self.max_queues.is_none_or(|max| u64::from(index) < max);
        Ok(if exists { MAX_QUEUE_SIZE } else { 0 })
    }

    fn set_up_queue(&mut self, index: u16, setup: &QueueSetup) -> Result<Kick, TransportError> {
        if self.queues.contains_key(&index) {
            return Err(TransportError::QueueInUse(index));
        }
        // Rings are named by the front-end's addresses, which are no more than names here.
        let named = |gpa| self.memory.frontend_va(gpa);
        let addresses = VringAddresses {
            descriptor: named(setup.descriptor),
            driver: named(setup.driver),
            device: named(setup.device),
            log: None,
        };
        let place = VringPlace {
            index: index.into(),
            size: setup.size,
            addresses,
            log: setup.device,
            start: ResumeState::start(setup.features),
        };
        let vring = BareVring::new(place, setup.features, Signals::Events)?;
        let kick = Kick { event: Arc::clone(vring.kick()), count: Arc::default() };
        self.queues.insert(index, Queue { vring, kicks: Arc::clone(&kick.count) });
        if self.status.contains(DeviceStatus::DRIVER_OK) {
            self.start(index)?;
            self.queues.get(&index).map_or(Ok(()), Queue::wake)?;
        }
        Ok(kick)
    }

    fn reset_queue(&mut self, index: u16) -> Result<(), TransportError> {
        self.stop(index)
    }

    fn is_queue_reset(&mut self, index: u16) -> Result<bool, TransportError> {
        Ok(!self.queues.contains_key(&index))
    }

    /// Answers what the back-end asks. Queues have their [calls](VhostUser::call), so that nothing is said of them.
    fn interrupt(&mut self) -> Result<Interrupt, TransportError> {
        let mut has_changed = self.look_for_failures()?;
        let Some(channel) = &mut self.channel else {
            return Ok(if has_changed { Interrupt::CONFIG } else { Interrupt::empty() });
        };
        for _ in 0..MAX_REQUESTS {
            let Some(incoming) = channel.next(Duration::ZERO)? else { break };
            let is_change = matches!(incoming.request, ChannelRequest::ConfigChange);
            has_changed |= is_change;
            channel.answer(incoming.answer, u64::from(!is_change))?;
        }
        Ok(if has_changed { Interrupt::CONFIG } else { Interrupt::empty() })
    }
}

/// Kicks a ring by its event counter.
#[derive(Debug, Clone)]
pub struct Kick {
    event: Arc<Event>,
    count: Arc<AtomicU64>,
}

impl Notify for Kick {
    #[inline]
    fn notify(&self, _next: u16) {
        // A write of 1 to a counter of our own fails in no other way than when there is a kick already.
        let _ = self.event.signal();
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

impl From<FrontendError> for TransportError {
    fn from(error: FrontendError) -> Self {
        Self::VhostUser(error)
    }
}

impl From<io::Error> for TransportError {
    fn from(error: io::Error) -> Self {
        Self::VhostUser(error.into())
    }
}
