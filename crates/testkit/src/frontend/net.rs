//! A whole vhost-user-net session: a driver with pairs of rings, set up in the order QEMU keeps.
//!
//! [`NetFrontend::up`] does everything; [`connect`](NetFrontend::connect) or
//! [`accept`](NetFrontend::accept), [`negotiate`](NetFrontend::negotiate) and [`start`](NetFrontend::start)
//! are its steps, for tests that put something between them. For bad manners, reach for
//! [`connection`](NetFrontend::connection), [`memory`](NetFrontend::memory) and [`ring`](NetFrontend::ring).
//!
//! ```no_run
//! # use std::time::Duration;
//! # use ringway_testkit::frontend::{NetFrontend, Options, frame, wire::feature};
//! # fn main() -> anyhow::Result<()> {
//! let features = feature::VERSION_1 | feature::NET_MRG_RXBUF;
//! let options = Options { vring_base: 65530, rx_chain: vec![200], ..Options::default() };
//! let mut guest = NetFrontend::up("/run/net.sock", features, options)?;
//! guest.send_frame(&frame::ethernet(frame::BROADCAST, [2, 0, 0, 0, 0, 1], 0x88b5, b"hello"))?;
//! let answer = guest.recv_frame(Duration::from_secs(1))?;
//! # Ok(())
//! # }
//! ```

mod header;
mod options;
mod pair;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use self::header::VnetHeader;
pub use self::options::{Arrangement, Enable, MemoryMethod, Options, RxPolicy};
pub use self::pair::QueuePair;
use super::connection::Connection;
use super::memory::GuestMemory;
use super::ring::SplitRing;
use super::wire::{self, VringAddress, feature, protocol, request};

/// A driver and the session in which a back-end serves it.
#[derive(Debug)]
pub struct NetFrontend {
    connection: Connection,
    memory: Arc<GuestMemory>,
    pairs: Vec<QueuePair>,
    options: Options,
    offered: u64,
    features: u64,
    protocol_features: u64,
    max_queues: Option<u64>,
}

impl NetFrontend {
    /// Connects to the back-end at `path`, negotiates `features` (those that it offers) and starts.
    pub fn up(path: impl AsRef<Path>, features: u64, options: Options) -> Result<Self> {
        let mut frontend = Self::connect(path, options)?;
        frontend.negotiate(features)?;
        frontend.start()?;
        Ok(frontend)
    }

    /// Connects to a back-end that listens at `path`. Nothing is said yet.
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        Self::new(Connection::connect(path)?, options)
    }

    /// Waits for a back-end that connects to us. Nothing is said yet.
    pub fn accept(listener: &UnixListener, options: Options) -> Result<Self> {
        Self::new(Connection::accept(listener)?, options)
    }

    /// Makes memory and rings for a session on `connection`.
    pub fn new(connection: Connection, options: Options) -> Result<Self> {
        let memory = Arc::new(GuestMemory::with_offsets(&options.memory)?);
        let pairs =
            (0..options.queue_pairs).map(|_| QueuePair::new(&memory, &options)).collect::<Result<_>>()?;
        Ok(Self {
            connection,
            memory,
            pairs,
            options,
            offered: 0,
            features: 0,
            protocol_features: 0,
            max_queues: None,
        })
    }

    /// The session's socket.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Features that the back-end offered.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// Features acked.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Protocol features acked.
    pub fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// What `GET_QUEUE_NUM` said, if it was asked.
    pub fn max_queues(&self) -> Option<u64> {
        self.max_queues
    }

    /// A pair of rings.
    pub fn pair(&mut self, number: usize) -> &mut QueuePair {
        &mut self.pairs[number]
    }

    /// A ring by its index: 2n receives for pair n, 2n + 1 transmits.
    pub fn ring(&mut self, index: usize) -> &mut SplitRing {
        let pair = &mut self.pairs[index / 2];
        if index.is_multiple_of(2) { &mut pair.rx } else { &mut pair.tx }
    }

    // ---- Set-up ----

    /// Agrees on the features of `wanted` that are offered; they are acked by [`start`](Self::start).
    pub fn negotiate(&mut self, wanted: u64) -> Result<u64> {
        let connection = &self.connection;
        connection.request(request::SET_OWNER, &[], &[])?;
        self.offered = connection.request_u64(request::GET_FEATURES)?;
        self.features = self.offered & (wanted | feature::PROTOCOL_FEATURES);
        if self.offered & feature::PROTOCOL_FEATURES != 0 {
            let offered = connection.request_u64(request::GET_PROTOCOL_FEATURES)?;
            self.protocol_features = offered & self.options.protocol_features;
            let payload = self.protocol_features.to_le_bytes();
            connection.request(request::SET_PROTOCOL_FEATURES, &payload, &[])?;
        }
        if self.protocol_features & protocol::MQ != 0 {
            self.max_queues = Some(connection.request_u64(request::GET_QUEUE_NUM)?);
        }
        Ok(self.features)
    }

    /// Acks the features, shares the memory, starts every ring at its base, enables it, and posts buffers.
    pub fn start(&mut self) -> Result<()> {
        let bases = vec![self.options.vring_base; self.rings()];
        self.start_at(&bases)
    }

    /// Changes what [`start`](Self::start) acks, as a guest does that reboots into another driver: those of
    /// `wanted` that are offered.
    pub fn ack_anew(&mut self, wanted: u64) {
        self.features = self.offered & (wanted | feature::PROTOCOL_FEATURES);
    }

    /// Goes on with the same memory and rings on a new connection, as after a crash of the back-end: every
    /// ring starts where the used ring says. The back-end must offer all that was acked before.
    pub fn reconnect(&mut self, connection: Connection) -> Result<()> {
        self.connection = connection;
        let before = self.features;
        self.negotiate(before)?;
        ensure!(self.features == before, "features were {before:#x} and are now {:#x}", self.features);
        let bases =
            (0..self.rings()).map(|index| self.ring(index).used_index()).collect::<Result<Vec<_>>>()?;
        self.start_at(&bases)
    }

    /// Tells the back-end about the memory, by the method chosen.
    pub fn share_memory(&self) -> Result<()> {
        match self.options.memory_method {
            MemoryMethod::Table => {
                self.tell(request::SET_MEM_TABLE, &self.memory.table_payload(), &self.memory.fds())
            }
            MemoryMethod::AddRegions => {
                let known = self.protocol_features & protocol::CONFIGURE_MEM_SLOTS != 0;
                ensure!(known, "the back-end does not offer CONFIGURE_MEM_SLOTS");
                let slots = self.connection.request_u64(request::GET_MAX_MEM_SLOTS)?;
                let regions = self.memory.descriptions();
                ensure!(regions.len() as u64 <= slots, "the back-end has {slots} slots for memory");
                regions.iter().zip(self.memory.fds()).try_for_each(|(region, fd)| {
                    self.tell(request::ADD_MEM_REG, &wire::single_region(region), &[fd])
                })
            }
        }
    }

    /// The addresses of a ring, as [`start_ring`](Self::start_ring) sends them.
    pub fn vring_address(&mut self, index: usize) -> VringAddress {
        let layout = self.ring(index).layout();
        VringAddress {
            index: index as u32,
            flags: 0,
            descriptor: self.memory.frontend_va(layout.descriptors),
            used: self.memory.frontend_va(layout.used),
            available: self.memory.frontend_va(layout.available),
            log: 0,
        }
    }

    /// Describes a ring that starts at `base` to the back-end and starts it: with the kick's descriptor.
    pub fn start_ring(&mut self, index: usize, base: u16) -> Result<()> {
        let number = index as u32;
        let address = self.vring_address(index).to_bytes();
        let size = self.options.ring_size.into();
        self.tell(request::SET_VRING_NUM, &wire::vring_state(number, size), &[])?;
        self.tell(request::SET_VRING_BASE, &wire::vring_state(number, base.into()), &[])?;
        self.tell(request::SET_VRING_ADDR, &address, &[])?;
        let pair = &self.pairs[index / 2];
        let ring = if index.is_multiple_of(2) { &pair.rx } else { &pair.tx };
        let payload = (index as u64).to_le_bytes();
        // A ring starts with its first kick. As QEMU does, that is made at once.
        ring.kick.signal()?;
        self.tell(request::SET_VRING_KICK, &payload, &[ring.kick.as_fd()])?;
        self.tell(request::SET_VRING_CALL, &payload, &[ring.call.as_fd()])?;
        self.tell(request::SET_VRING_ERR, &payload, &[ring.error.as_fd()])
    }

    /// Enables or disables a ring.
    pub fn enable_ring(&self, index: usize, enable: bool) -> Result<()> {
        self.tell(request::SET_VRING_ENABLE, &wire::vring_state(index as u32, enable.into()), &[])
    }

    /// Stops a ring; the base to start it again at.
    pub fn stop_ring(&self, index: usize) -> Result<u16> {
        let reply =
            self.connection.request_reply(request::GET_VRING_BASE, &wire::vring_state(index as u32, 0))?;
        let (number, base) = wire::parse_vring_state(&reply).context("the base is not a vring state")?;
        ensure!(number as usize == index, "asked for the base of ring {index}, told that of {number}");
        u16::try_from(base).with_context(|| format!("{base} is no base of a split ring"))
    }

    /// Starts a stopped ring again and enables it.
    pub fn restart_ring(&mut self, index: usize, base: u16) -> Result<()> {
        self.start_ring(index, base)?;
        self.enable_if_known(index)
    }

    /// Stops every ring; their bases.
    pub fn stop(&self) -> Result<Vec<u16>> {
        (0..self.rings()).map(|index| self.stop_ring(index)).collect()
    }

    /// Sends a request; if everything is to be acknowledged and can be, checks that it is.
    pub fn tell(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if self.options.ack_everything && self.protocol_features & protocol::REPLY_ACK != 0 {
            self.connection.request_accepted(request, payload, fds)
        } else {
            self.connection.request(request, payload, fds)
        }
    }

    // ---- Frames, on the first pair of rings ----

    /// Sends a frame with a header of zeros, in one descriptor.
    pub fn send_frame(&mut self, frame: &[u8]) -> Result<()> {
        self.pairs[0].send(frame)
    }

    /// Sends a frame with its header, arranged in descriptors as told.
    pub fn send_frame_with_header(
        &mut self,
        header: &VnetHeader,
        frame: &[u8],
        arrangement: &Arrangement,
    ) -> Result<()> {
        self.pairs[0].send_arranged(header, frame, arrangement)
    }

    /// Takes the next frame that came in, or `None` if none did in time.
    pub fn recv_frame(&mut self, limit: Duration) -> Result<Option<(VnetHeader, Vec<u8>)>> {
        self.pairs[0].recv(limit)
    }

    /// How many rings there are.
    fn rings(&self) -> usize {
        self.pairs.len() * 2
    }

    /// The start, with the base of every ring.
    fn start_at(&mut self, bases: &[u16]) -> Result<()> {
        if matches!(self.options.enable, Enable::BeforeStart | Enable::Twice) {
            (0..bases.len()).try_for_each(|index| self.enable_if_known(index))?;
        }
        self.tell(request::SET_FEATURES, &self.features.to_le_bytes(), &[])?;
        self.share_memory()?;
        for (index, &base) in bases.iter().enumerate() {
            self.start_ring(index, base)?;
        }
        if matches!(self.options.enable, Enable::AfterStart | Enable::Twice) {
            (0..bases.len()).try_for_each(|index| self.enable_if_known(index))?;
        }
        self.pairs.iter_mut().try_for_each(|pair| pair.begin(self.features))
    }

    /// Enables a ring; without protocol features there is no such request and rings start enabled.
    fn enable_if_known(&self, index: usize) -> Result<()> {
        if self.features & feature::PROTOCOL_FEATURES == 0 { Ok(()) } else { self.enable_ring(index, true) }
    }
}
