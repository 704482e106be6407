//! A block driver in user space: Ringway's own front-end and driver half, for tests that have requests under way while
//! their back-end is killed, or answers them slowly. What such a driver has been told it believes; [`checker`] does not.

pub mod checker;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::Segment;
use ringway_spec::blk::{self, RequestHeader};
use ringway_spec::feature::VERSION_1;
use ringway_vhost::frontend::{
    Connection, Frontend, Inflight, Memory, PROTOCOL_FEATURES, Pages, Vring, VringConfig,
};
use ringway_vhost::message::protocol_feature;
use zerocopy::IntoBytes;

/// A request's room for data.
pub const MAX_DATA: u32 = 64 << 10;
/// What a status byte is before the device writes it.
pub const NO_STATUS: u8 = 0xee;

/// How a driver is to be.
#[derive(Clone, Copy, Debug)]
pub struct DiskOptions {
    /// Virtio features, beside `VERSION_1`. The back-end must have them.
    pub features: u64,
    /// How many queues.
    pub queues: u16,
    /// How many requests may be under way on each.
    pub depth: u16,
}

impl DiskOptions {
    /// One queue of 32 requests.
    pub fn new(features: u64) -> Self {
        Self { features, queues: 1, depth: 32 }
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// [`blk::T_IN`] or one of its siblings.
    pub kind: u32,
    /// Where.
    pub sector: u64,
    /// Bytes of data.
    pub len: u32,
    /// For whoever asks.
    pub tag: u64,
}

/// A request that the device has used.
#[derive(Debug)]
pub struct Done {
    /// What was asked.
    pub ask: Ask,
    /// The device's status.
    pub status: u8,
    /// What a request for data brought.
    pub data: Vec<u8>,
}

/// The memory of a request; the device's while the request is under way.
struct Slot {
    header: SharedBuf,
    data: SharedBuf,
    status: SharedBuf,
    ask: Ask,
}

/// A driver with its queues.
pub struct DiskDriver {
    /// The session.
    pub frontend: Frontend,
    queues: Vec<Vring<Slot>>,
    memory: Memory,
    /// What the back-end has taken and not used, for the next one, if this one records it.
    inflight: Option<Inflight>,
    idle: Vec<Slot>,
    /// Requests under way on a queue at most.
    depth: u16,
}

impl DiskDriver {
    /// A driver that has negotiated, with its queues running.
    ///
    /// # Errors
    /// If the back-end lacks a feature, and all that can go wrong.
    pub fn start(connection: Connection, options: DiskOptions) -> Result<Self> {
        let DiskOptions { features, queues, depth } = options;
        let mut frontend = negotiate(connection, features | VERSION_1)?;
        // A request has at most four descriptors.
        let size = (depth * 4).next_power_of_two();
        let slots = usize::from(depth) * usize::from(queues);
        let len = (slots as u64 * u64::from(MAX_DATA) + (4 << 20)).next_multiple_of(1 << 20);
        let mut memory = Memory::new(Gpa(1 << 30), len, Pages::Small)?;
        let make = |index| frontend.set_up_vring(VringConfig::new(index, size), &mut memory);
        let vrings = (0..queues.into()).map(make).collect::<Result<Vec<_>, _>>()?;
        let data = memory.buffers(slots, MAX_DATA)?;
        let headers = memory.buffers(slots, size_of::<RequestHeader>() as u32)?;
        let statuses = memory.buffers(slots, 1)?;
        let idle = data
            .into_iter()
            .zip(headers)
            .zip(statuses)
            .map(|((data, header), status)| Slot { header, data, status, ask: NOTHING })
            .collect();
        let records = frontend.protocol_features() & protocol_feature::INFLIGHT_SHMFD != 0;
        let inflight = records.then(|| frontend.inflight(queues, size)).transpose()?;
        let mut driver = Self { frontend, queues: vrings, memory, inflight, idle, depth };
        driver.run()?;
        Ok(driver)
    }

    /// Goes on with another back-end after the one before has gone, with what was in flight.
    ///
    /// # Errors
    /// As of [`DiskDriver::start`].
    pub fn reconnect(&mut self, connection: Connection) -> Result<()> {
        self.frontend = negotiate(connection, self.frontend.features())?;
        self.queues.iter_mut().for_each(Vring::recover);
        self.run()
    }

    /// Starts all queues.
    fn run(&mut self) -> Result<()> {
        self.frontend.add_memory([&self.memory])?;
        if let Some(inflight) = &self.inflight {
            self.frontend.set_inflight(inflight)?;
        }
        for queue in &mut self.queues {
            self.frontend.enable(queue, true)?;
            self.frontend.start(queue)?;
        }
        self.frontend.set_driver_ok()?;
        Ok(())
    }

    /// The disk's bytes, as the device says.
    ///
    /// # Errors
    /// If it does not say.
    pub fn size(&mut self) -> Result<u64> {
        let sectors = self.frontend.config(0, 8)?;
        Ok(u64::from_le_bytes(sectors.try_into().ok().context("8 bytes")?) * u64::from(blk::SECTOR_SIZE))
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Whether a request can be added to a queue.
    pub fn has_room(&self, queue: usize) -> bool {
        self.queues[queue].queue().in_flight() < self.depth
    }

    /// Adds a request to a queue; `data` is what the device is to read, if it is. [`DiskDriver::publish`] shows it.
    ///
    /// # Errors
    /// If all are under way, or the queue takes it not.
    pub fn submit(&mut self, queue: usize, ask: Ask, data: &[u8]) -> Result<()> {
        ensure!(ask.len <= MAX_DATA, "{} bytes", ask.len);
        let mut slot = self.idle.pop().context("all requests are under way")?;
        let header = RequestHeader { kind: ask.kind.into(), sector: ask.sector.into(), ..Default::default() };
        slot.header.write(header.as_bytes());
        slot.status.write(&[NO_STATUS]);
        slot.ask = ask;
        let mut chain = vec![Segment::from(&slot.header)];
        // In one piece or in two, the first of a sector.
        let first = if ask.tag.is_multiple_of(2) { ask.len } else { ask.len.min(blk::SECTOR_SIZE) };
        let whole = Segment::from(&slot.data);
        let pieces = [(0, first), (first, ask.len - first)];
        let pieces = pieces.into_iter().filter(|(_, len)| *len > 0);
        let pieces = pieces.map(|(at, len)| Segment { addr: Gpa(whole.addr.0 + u64::from(at)), len });
        let status = Segment::from(&slot.status);
        let readable = if ask.kind == blk::T_IN || ask.kind == blk::T_GET_ID {
            slot.data.write(&vec![NO_STATUS; ask.len as usize]);
            chain.extend(pieces.chain([status]));
            1
        } else {
            ensure!(data.len() == ask.len as usize, "{} bytes of {}", data.len(), ask.len);
            slot.data.write(data);
            chain.extend(pieces);
            chain.push(status);
            chain.len() - 1
        };
        let (readable, writable) = chain.split_at(readable);
        self.queues[queue].queue_mut().add(readable, writable, slot).map_err(|refused| refused.error)?;
        Ok(())
    }

    /// Shows the device what was added to a queue.
    ///
    /// # Errors
    /// The kernel's.
    pub fn publish(&mut self, queue: usize) -> Result<()> {
        Ok(self.queues[queue].publish()?)
    }

    /// The next request of a queue that the device has used, `None` if there is none yet.
    ///
    /// # Errors
    /// If the device did wrong: it used what it was not given, or wrote more or less than it says.
    pub fn completed(&mut self, queue: usize) -> Result<Option<Done>> {
        let Some(used) = self.queues[queue].queue_mut().reclaim()? else { return Ok(None) };
        let Slot { ask, .. } = used.owner;
        let mut status = [NO_STATUS];
        used.owner.status.read(&mut status);
        let [status] = status;
        let mut data = Vec::new();
        let mut due = 1;
        if ask.kind == blk::T_IN || ask.kind == blk::T_GET_ID {
            data.resize(ask.len as usize, 0);
            used.owner.data.read(&mut data);
            due += ask.len;
        }
        self.idle.push(used.owner);
        // Of a read that failed any part may have been written.
        let is_due = used.written == due || (status != blk::S_OK && used.written >= 1);
        ensure!(
            is_due && status != NO_STATUS,
            "{ask:?}: status {status:#x}, {} bytes of {due}",
            used.written
        );
        Ok(Some(Done { ask, status, data }))
    }

    /// Waits until the device has used a request of this queue; false if it has not within `limit`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self, queue: usize, limit: Duration) -> Result<bool> {
        Ok(self.queues[queue].wait(limit)?)
    }

    /// Carries out one request, alone.
    ///
    /// # Errors
    /// If it does not come back within `limit`, and all that can go wrong.
    pub fn call(&mut self, ask: Ask, data: &[u8], limit: Duration) -> Result<Done> {
        self.submit(0, ask, data)?;
        self.publish(0)?;
        ensure!(self.wait(0, limit)?, "{ask:?}: not within {limit:?}");
        let done = self.completed(0)?.context("a call without a request used")?;
        ensure!(done.ask == ask, "{ask:?}: {done:?}");
        Ok(done)
    }
}

const NOTHING: Ask = Ask { kind: blk::T_FLUSH, sector: 0, len: 0, tag: 0 };

fn negotiate(connection: Connection, features: u64) -> Result<Frontend> {
    let frontend = Frontend::negotiate(connection, features, PROTOCOL_FEATURES)?;
    let lacking = features & !frontend.features();
    ensure!(lacking == 0, "the back-end does not offer features {lacking:#x}");
    Ok(frontend)
}
