//! A whole vhost-user-blk session: a driver with queues, and requests in descriptors as a test arranges them.
//!
//! [`BlkFrontend::up`] does everything; [`connect`](BlkFrontend::connect), [`negotiate`](BlkFrontend::negotiate) and
//! [`start`](BlkFrontend::start) are its steps. For bad manners, reach for [`connection`](BlkFrontend::connection),
//! [`memory`](BlkFrontend::memory) and [`ring`](BlkFrontend::ring).
//!
//! ```no_run
//! # use ringway_testkit::frontend::{BlkFrontend, BlkOptions, wire::feature};
//! # fn main() -> anyhow::Result<()> {
//! let features = feature::VERSION_1 | feature::BLK_FLUSH;
//! let mut guest = BlkFrontend::up("/run/disk.sock", features, BlkOptions::default())?;
//! guest.write(8, &[7; 512])?;
//! assert_eq!(guest.read(8, 512)?, [7; 512]);
//! # Ok(())
//! # }
//! ```

mod request;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use self::request::{Answer, DiskRequest, Layout, kind, status};
use super::connection::Connection;
use super::memory::GuestMemory;
use super::net::Arrangement;
use super::ring::{Buffer, DESC_LEN, KickPolicy, RingLayout, SplitRing};
use super::wire::{self, VringAddress, feature, protocol, request as message};

/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Left free between the pieces of a request, as between those of a frame: a device that goes past one's end is seen.
const GAP: u64 = 13;
/// The most pieces that a request is put into.
const MAX_PIECES: u64 = 256;
/// What buffers hold before the device writes to them.
const FILLING: u8 = 0xa5;
/// Bytes of the configuration space.
const CONFIG_LEN: usize = 96;

/// The choices of a session.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// Protocol features to ack if they are offered.
    pub protocol_features: u64,
    /// How many queues.
    pub queues: u16,
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// Where all rings start: 65530 for tests of the wrap.
    pub vring_base: u16,
    /// Memory regions `(gpa, size, mmap_offset)`.
    pub memory: Vec<(u64, u64, u64)>,
    /// The most data of a request.
    pub max_data: u64,
    /// When the device is kicked.
    pub kick_policy: KickPolicy,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            protocol_features: protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::RESET_DEVICE,
            queues: 1,
            ring_size: 256,
            vring_base: 0,
            // Below and above 4 GiB, as a PC has it.
            memory: vec![(0, 512 << 20, 0), (4 << 30, 512 << 20, 0)],
            max_data: 1 << 20,
            kick_policy: KickPolicy::Always,
        }
    }
}

/// A request that the device has.
#[derive(Debug)]
struct Lent {
    slot: u64,
    /// Where the device writes, piece by piece; the last byte is the status.
    writable: Vec<Buffer>,
}

/// A ring, and places for requests.
#[derive(Debug)]
struct Queue {
    ring: SplitRing,
    idle: Vec<u64>,
    /// By head.
    lent: BTreeMap<u32, Lent>,
}

/// A driver and the session in which a back-end serves it.
#[derive(Debug)]
pub struct BlkFrontend {
    connection: Connection,
    memory: Arc<GuestMemory>,
    queues: Vec<Queue>,
    options: BlkOptions,
    offered: u64,
    features: u64,
    protocol_features: u64,
    max_queues: Option<u64>,
}

impl BlkFrontend {
    /// Connects to the back-end at `path`, negotiates `features` (those that it offers) and starts.
    pub fn up(path: impl AsRef<Path>, features: u64, options: BlkOptions) -> Result<Self> {
        let mut frontend = Self::connect(path, options)?;
        frontend.negotiate(features)?;
        frontend.start()?;
        Ok(frontend)
    }

    /// Connects to a back-end that listens at `path`. Nothing is said yet.
    pub fn connect(path: impl AsRef<Path>, options: BlkOptions) -> Result<Self> {
        let connection = Connection::connect(path)?;
        let memory = Arc::new(GuestMemory::with_offsets(&options.memory)?);
        let queues = (0..options.queues).map(|_| Queue::new(&memory, &options)).collect::<Result<_>>()?;
        Ok(Self {
            connection,
            memory,
            queues,
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

    /// What `GET_QUEUE_NUM` said, if it was asked.
    pub fn max_queues(&self) -> Option<u64> {
        self.max_queues
    }

    /// A queue's ring.
    pub fn ring(&mut self, queue: usize) -> &mut SplitRing {
        &mut self.queues[queue].ring
    }

    // ---- Set-up ----

    /// Agrees on the features of `wanted` that are offered; they are acked by [`start`](Self::start).
    pub fn negotiate(&mut self, wanted: u64) -> Result<u64> {
        let connection = &self.connection;
        connection.request(message::SET_OWNER, &[], &[])?;
        self.offered = connection.request_u64(message::GET_FEATURES)?;
        self.features = self.offered & (wanted | feature::PROTOCOL_FEATURES);
        ensure!(self.offered & feature::PROTOCOL_FEATURES != 0, "a disk without protocol features");
        let offered = connection.request_u64(message::GET_PROTOCOL_FEATURES)?;
        self.protocol_features = offered & self.options.protocol_features;
        let payload = self.protocol_features.to_le_bytes();
        connection.request(message::SET_PROTOCOL_FEATURES, &payload, &[])?;
        if self.protocol_features & protocol::MQ != 0 {
            self.max_queues = Some(connection.request_u64(message::GET_QUEUE_NUM)?);
        }
        Ok(self.features)
    }

    /// Acks the features, shares the memory, starts every ring where it stands and enables it.
    pub fn start(&mut self) -> Result<()> {
        self.tell(message::SET_FEATURES, &self.features.to_le_bytes())?;
        self.connection.request_accepted(
            message::SET_MEM_TABLE,
            &self.memory.table_payload(),
            &self.memory.fds(),
        )?;
        for index in 0..self.queues.len() {
            self.start_ring(index)?;
        }
        Ok(())
    }

    /// Starts a ring where the used ring says, and enables it.
    pub fn start_ring(&mut self, index: usize) -> Result<()> {
        let event_idx = self.features & feature::EVENT_IDX != 0;
        let ring = &mut self.queues[index].ring;
        ring.event_idx = event_idx;
        let (number, layout) = (index as u32, ring.layout());
        let base = ring.used_index()?;
        let address = VringAddress {
            index: number,
            flags: 0,
            descriptor: self.memory.frontend_va(layout.descriptors),
            used: self.memory.frontend_va(layout.used),
            available: self.memory.frontend_va(layout.available),
            log: 0,
        };
        self.tell(message::SET_VRING_NUM, &wire::vring_state(number, layout.size.into()))?;
        self.tell(message::SET_VRING_BASE, &wire::vring_state(number, base.into()))?;
        self.tell(message::SET_VRING_ADDR, &address.to_bytes())?;
        let (connection, ring) = (&self.connection, &self.queues[index].ring);
        let payload = (index as u64).to_le_bytes();
        // A ring starts with its first kick. As QEMU does, that is made at once.
        ring.kick.signal()?;
        for (request, event) in [
            (message::SET_VRING_KICK, &ring.kick),
            (message::SET_VRING_CALL, &ring.call),
            (message::SET_VRING_ERR, &ring.error),
        ] {
            connection.request_accepted(request, &payload, &[event.as_fd()])?;
        }
        self.tell(message::SET_VRING_ENABLE, &wire::vring_state(number, 1))
    }

    /// Stops a ring; the base to start it again at. What it had taken is done.
    pub fn stop_ring(&self, index: usize) -> Result<u16> {
        let payload = wire::vring_state(index as u32, 0);
        let reply = self.connection.request_reply(message::GET_VRING_BASE, &payload)?;
        let (number, base) = wire::parse_vring_state(&reply).context("the base is not a vring state")?;
        ensure!(number as usize == index, "asked for the base of ring {index}, told that of {number}");
        u16::try_from(base).with_context(|| format!("{base} is no base of a split ring"))
    }

    /// Sends a request that must be acknowledged.
    fn tell(&self, request: u32, payload: &[u8]) -> Result<()> {
        self.connection.request_accepted(request, payload, &[])
    }

    // ---- The configuration space ----

    /// All of it.
    pub fn config(&self) -> Result<Vec<u8>> {
        let head = [0, CONFIG_LEN as u32, 0].map(u32::to_le_bytes).concat();
        let payload = [&head[..], &[0; CONFIG_LEN]].concat();
        let reply = self.connection.request_reply(message::GET_CONFIG, &payload)?;
        ensure!(reply.len() == payload.len(), "a configuration of {} bytes", reply.len());
        Ok(reply[head.len()..].to_vec())
    }

    /// The capacity in sectors.
    pub fn capacity(&self) -> Result<u64> {
        let config = self.config()?;
        config.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).context("no capacity")
    }

    /// Writes to it, as a driver does; whether the back-end takes it.
    pub fn write_config(&self, offset: u32, bytes: &[u8]) -> Result<bool> {
        let head = [offset, bytes.len() as u32, 0].map(u32::to_le_bytes).concat();
        let payload = [&head[..], bytes].concat();
        Ok(self.connection.request_with_ack(message::SET_CONFIG, &payload, &[])? == 0)
    }

    /// Turns the device's cache on or off.
    pub fn set_writeback(&self, on: bool) -> Result<()> {
        ensure!(self.write_config(32, &[on.into()])?, "the cache mode was refused");
        Ok(())
    }

    // ---- Requests ----

    /// Puts a request into a queue, unseen by the device; its head. An error if there is no room.
    pub fn enqueue(&mut self, queue: usize, request: &DiskRequest, layout: &Layout) -> Result<u32> {
        self.queues[queue].enqueue(&self.memory, request, layout)
    }

    /// Shows the device what was put into a queue.
    pub fn flush_queue(&mut self, queue: usize) -> Result<()> {
        self.queues[queue].ring.publish_and_kick().map(drop)
    }

    /// The requests of a queue that have ended by now, at least one unless the time is over.
    pub fn answers(&mut self, queue: usize, limit: Duration) -> Result<Vec<(u32, Answer)>> {
        self.queues[queue].answers(&self.memory, limit)
    }

    /// Makes a request and waits for its end.
    pub fn request_on(&mut self, queue: usize, request: &DiskRequest, layout: &Layout) -> Result<Answer> {
        let due = self.enqueue(queue, request, layout)?;
        self.flush_queue(queue)?;
        let mut answers = self.answers(queue, LIMIT)?;
        ensure!(answers.len() == 1, "{} requests ended in {LIMIT:?}", answers.len());
        let (head, answer) = answers.remove(0);
        ensure!(head == due, "request {due} was made, {head} ended");
        Ok(answer)
    }

    /// The same on the first queue, in the usual layout.
    pub fn request(&mut self, request: &DiskRequest) -> Result<Answer> {
        self.request_on(0, request, &Layout::usual(request))
    }

    /// Makes many requests on a queue at once, in the usual layout, and waits for all; their answers in their order.
    pub fn requests(&mut self, queue: usize, requests: &[DiskRequest]) -> Result<Vec<Answer>> {
        let heads = requests.iter().map(|request| self.enqueue(queue, request, &Layout::usual(request)));
        let heads = heads.collect::<Result<Vec<_>>>()?;
        self.flush_queue(queue)?;
        let mut answers = BTreeMap::new();
        let deadline = Instant::now() + LIMIT;
        while answers.len() < heads.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            let more = self.answers(queue, left)?;
            if more.is_empty() {
                bail!("{} of {} requests ended in {LIMIT:?}", answers.len(), heads.len());
            }
            answers.extend(more);
        }
        heads.iter().map(|head| answers.remove(head).context("an answer to another request")).collect()
    }

    /// Reads, and must succeed.
    pub fn read(&mut self, sector: u64, len: u32) -> Result<Vec<u8>> {
        let answer = self.request(&DiskRequest::read(sector, len))?;
        ensure!(answer.status == status::OK, "a read from {sector} on ended with {}", answer.status);
        Ok(answer.data)
    }

    /// Writes, and must succeed.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        let answer = self.request(&DiskRequest::write(sector, data))?;
        ensure!(answer.status == status::OK, "a write from {sector} on ended with {}", answer.status);
        Ok(())
    }
}

impl Queue {
    fn new(memory: &Arc<GuestMemory>, options: &BlkOptions) -> Result<Self> {
        let size = options.ring_size;
        let start = memory.allocate(RingLayout::contiguous(size, 0, 64).end(), 4096)?;
        let layout = RingLayout::contiguous(size, start, 64);
        let mut ring = SplitRing::new(Arc::clone(memory), layout, options.vring_base)?;
        ring.kick_policy = options.kick_policy;
        let slot_len = options.max_data + MAX_PIECES * (DESC_LEN + GAP) + 4096;
        // Every chain of the usual kind has two descriptors or more.
        let idle = (0..size).map(|_| memory.allocate(slot_len, 64)).collect::<Result<_>>()?;
        Ok(Self { ring, idle, lent: BTreeMap::new() })
    }

    fn enqueue(&mut self, memory: &GuestMemory, request: &DiskRequest, layout: &Layout) -> Result<u32> {
        let slot = self.idle.pop().context("all places for requests are taken")?;
        let readable = request.readable();
        let room = request.room as usize + usize::from(!layout.no_status);
        let lengths = |pieces: &[usize], total| Arrangement::pieces(pieces).lengths(total);
        let readable_lengths = lengths(&layout.readable, readable.len());
        let writable_lengths = lengths(&layout.writable, room);
        ensure!((readable_lengths.len() + writable_lengths.len()) as u64 <= MAX_PIECES, "too many pieces");
        let mut at = slot + MAX_PIECES * DESC_LEN;
        let mut place = |len: usize| {
            let start = at + GAP;
            at = start + len as u64;
            start
        };
        let (mut buffers, mut rest) = (Vec::new(), &readable[..]);
        for len in readable_lengths {
            let (piece, after) = rest.split_at(len);
            let start = place(len);
            memory.write(start, piece)?;
            buffers.push(Buffer::readable(start, len as u32));
            rest = after;
        }
        let mut writable = Vec::new();
        for len in writable_lengths {
            let start = place(len);
            memory.write(start, &vec![FILLING; len])?;
            writable.push(Buffer::writable(start, len as u32));
        }
        buffers.extend(&writable);
        let head = if layout.indirect {
            self.ring.add_indirect(slot, &buffers)?
        } else {
            self.ring.add(&buffers)?
        };
        let head = head.context("the ring is full")?.into();
        self.lent.insert(head, Lent { slot, writable });
        Ok(head)
    }

    fn answers(&mut self, memory: &GuestMemory, limit: Duration) -> Result<Vec<(u32, Answer)>> {
        let mut answers = Vec::new();
        for (head, written) in self.ring.wait_used(limit)? {
            let Lent { slot, writable } = self.lent.remove(&head).context("not a request of ours")?;
            let mut data = Vec::new();
            for buffer in &writable {
                data.extend(memory.read_vec(buffer.addr, buffer.len as usize)?);
            }
            ensure!(written as usize <= data.len(), "{written} bytes written to {}", data.len());
            self.idle.push(slot);
            let status = data.pop().unwrap_or(FILLING);
            answers.push((head, Answer { status, data, written }));
        }
        Ok(answers)
    }
}
