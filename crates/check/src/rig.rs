//! A front-end with everything: a session, memory that both sides have, and rings with a driver.

use std::thread::sleep;
use std::time::{Duration, Instant};

use ringway_memory::Gpa;
use ringway_queue::{DriverConfig, DriverQueue, ResumeState, Segment};
use ringway_spec::feature;
use ringway_vhost::frontend::Event;
use ringway_vhost::message::{F_PROTOCOL_FEATURES, Request};

use crate::case::{Verdict, fail, trouble};
use crate::context::QUIET;
use crate::device::Device;
use crate::event::{event, share};
use crate::guest::Guest;
use crate::session::Session;

/// Descriptors of a ring, where nothing else is said.
pub(crate) const SIZE: u16 = 256;
/// Between two looks at a ring.
const STEP: Duration = Duration::from_micros(200);

/// A chain that the device has: where it may write.
#[derive(Debug, Clone)]
pub(crate) struct Lent {
    /// Offset and length of the device-writable parts.
    pub(crate) writable: Vec<(u64, u32)>,
}

/// A ring with its driver.
pub(crate) struct Vring {
    pub(crate) index: u32,
    pub(crate) size: u16,
    /// What the back-end is told of where it begins.
    pub(crate) base: u32,
    pub(crate) queue: DriverQueue<Lent>,
    pub(crate) kick: Event,
    pub(crate) call: Event,
    pub(crate) err: Event,
}

/// How a ring is kicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KickBy {
    /// By an event counter.
    Fd,
    /// Not at all: the device polls.
    Polling,
}

/// See the module.
pub(crate) struct Rig<'c> {
    pub(crate) session: Session<'c>,
    pub(crate) guest: Guest,
    pub(crate) vrings: Vec<Vring>,
    device: Device,
}

impl<'c> Rig<'c> {
    /// Rings of the usual size, with nothing in them, for a session whose features are negotiated.
    pub(crate) fn new(session: Session<'c>) -> Result<Self, Verdict> {
        Self::with_guest(session, Guest::new(0)?)
    }

    pub(crate) fn with_guest(session: Session<'c>, guest: Guest) -> Result<Self, Verdict> {
        let device = session.context.device;
        let mut rig = Self { session, guest, vrings: Vec::new(), device };
        for index in 0..device.vrings() {
            let vring = rig.vring(index, SIZE, ResumeState::start(rig.session.features))?;
            rig.vrings.push(vring);
        }
        Ok(rig)
    }

    /// A new ring at `index`, empty.
    pub(crate) fn vring(&self, index: u32, size: u16, start: ResumeState) -> Result<Vring, Verdict> {
        let features = self.session.features;
        let areas = self.guest.areas(index, size, features)?;
        let config = DriverConfig { size, features, areas, start, max_chain: size, tables: None };
        let queue = DriverQueue::new(config).map_err(|e| trouble("queue", e))?;
        let base = match start {
            ResumeState::Split { next_avail } => next_avail.into(),
            ResumeState::Packed { avail, used } => {
                u32::from(avail.to_off_wrap()) | u32::from(used.to_off_wrap()) << 16
            }
        };
        let (kick, call, err) = (event()?, event()?, event()?);
        Ok(Vring { index, size, base, queue, kick, call, err })
    }

    /// Tells the back-end of the memory.
    pub(crate) fn share_memory(&mut self) -> Result<(), Verdict> {
        let region = self.guest.region()?;
        self.session.set(Request::SetMemTable(vec![region]))
    }

    /// Tells where ring `at` is, and nothing of how either side notifies the other.
    pub(crate) fn describe_ring(&mut self, at: usize, log: Option<Gpa>) -> Result<(), Verdict> {
        let Vring { index, size, base, .. } = self.vrings[at];
        let addresses = self.guest.addresses(index, log);
        let session = &mut self.session;
        session.set(Request::SetVringNum { index, num: size.into() })?;
        session.set(Request::SetVringBase { index, base })?;
        session.set(Request::SetVringAddr { index, addresses })
    }

    /// Sets ring `at` up, all but its kick.
    pub(crate) fn describe(&mut self, at: usize, log: Option<Gpa>) -> Result<(), Verdict> {
        self.describe_ring(at, log)?;
        let Vring { index, ref call, ref err, .. } = self.vrings[at];
        let (call, err) = (share(call)?, share(err)?);
        self.session.set(Request::SetVringCall { index, fd: Some(call) })?;
        self.session.set(Request::SetVringErr { index, fd: Some(err) })
    }

    /// Gives ring `at` its kick.
    pub(crate) fn connect_kick(&mut self, at: usize, by: KickBy) -> Result<(), Verdict> {
        let Vring { index, ref kick, .. } = self.vrings[at];
        let fd = match by {
            KickBy::Fd => Some(share(kick)?),
            KickBy::Polling => None,
        };
        self.session.set(Request::SetVringKick { index, fd })
    }

    /// Enables or disables ring `at`; without protocol features all rings are enabled.
    pub(crate) fn enable(&mut self, at: usize, enable: bool) -> Result<(), Verdict> {
        if self.session.features & F_PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        let index = self.vrings[at].index;
        self.session.set(Request::SetVringEnable { index, enable })
    }

    /// Sets all rings up and enables them; none has been kicked.
    pub(crate) fn set_up_all(&mut self) -> Result<(), Verdict> {
        for at in 0..self.vrings.len() {
            self.describe(at, None)?;
            self.connect_kick(at, KickBy::Fd)?;
            self.enable(at, true)?;
        }
        self.session.barrier()
    }

    /// Sets all rings up, enables and kicks them.
    pub(crate) fn start_all(&mut self) -> Result<(), Verdict> {
        self.set_up_all()?;
        self.kick_all();
        Ok(())
    }

    pub(crate) fn kick_all(&self) {
        for vring in &self.vrings {
            let _ = vring.kick.signal();
        }
        self.session.context.note_sent("kick");
    }

    /// Starts ring `at`, which was described.
    pub(crate) fn start(&mut self, at: usize) -> Result<(), Verdict> {
        self.connect_kick(at, KickBy::Fd)?;
        self.enable(at, true)?;
        self.session.barrier()?;
        let _ = self.vrings[at].kick.signal();
        self.session.context.note_sent("kick");
        Ok(())
    }

    /// How many descriptors a request takes.
    pub(crate) fn slots_of_request(&self) -> u32 {
        let shape = self.device.request();
        (shape.readable.len() + shape.writable.len()) as u32
    }

    /// Stops ring `at` and returns its base.
    pub(crate) fn stop(&mut self, at: usize) -> Result<u32, Verdict> {
        let index = self.vrings[at].index;
        self.session.vring_base(index)
    }

    /// The ring that requests go to.
    pub(crate) fn data(&mut self) -> &mut Vring {
        &mut self.vrings[self.device.request_vring()]
    }

    /// Its place among the rings.
    pub(crate) fn data_at(&self) -> usize {
        self.device.request_vring()
    }

    /// Writes a request to memory: its segments, and where the device may write.
    pub(crate) fn write_request(&self) -> Result<(Vec<Segment>, Vec<Segment>, Lent), Verdict> {
        let shape = self.device.request();
        let mut readable = Vec::new();
        for bytes in &shape.readable {
            let at = self.guest.buffer(bytes.len() as u64);
            self.guest.write(at, bytes)?;
            readable.push(Segment { addr: Guest::gpa(at), len: bytes.len() as u32 });
        }
        let mut lent = Lent { writable: Vec::new() };
        for &len in &shape.writable {
            let at = self.guest.buffer(len.into());
            self.guest.write(at, &vec![0xa5; len as usize])?;
            lent.writable.push((at, len));
        }
        let writable = lent.writable.iter().map(|&(at, len)| Segment { addr: Guest::gpa(at), len });
        Ok((readable, writable.collect(), lent))
    }

    /// Makes `count` requests available, without a kick.
    pub(crate) fn offer(&mut self, count: u16) -> Result<(), Verdict> {
        for _ in 0..count {
            let (readable, writable, lent) = self.write_request()?;
            self.add(&readable, &writable, lent)?;
        }
        self.publish();
        Ok(())
    }

    /// Adds a chain to the ring of requests.
    pub(crate) fn add(
        &mut self,
        readable: &[Segment],
        writable: &[Segment],
        lent: Lent,
    ) -> Result<(), Verdict> {
        let added = self.data().queue.add(readable, writable, lent);
        added.map_err(|refused| trouble("add a chain", refused.error))
    }

    /// Shows what was added; kicks are the caller's.
    pub(crate) fn publish(&mut self) {
        let _ = self.data().queue.publish();
        self.session.context.note_sent("make available");
    }

    /// Kicks the ring of requests.
    pub(crate) fn kick(&mut self) {
        let _ = self.data().kick.signal();
        self.session.context.note_sent("kick");
    }

    /// Waits until `count` chains of ring `at` are used; returns them with the bytes written.
    pub(crate) fn used_of(&mut self, at: usize, count: u16) -> Result<Vec<(Lent, u32)>, Verdict> {
        let limit = Instant::now() + self.session.context.time_left();
        let found = self.used_until(at, count, limit)?;
        if found.len() == usize::from(count) {
            return Ok(found);
        }
        let patience = self.session.context.patience();
        Err(fail(format!("{count} chains are used"), format!("{} are in {patience:?}", found.len())))
    }

    /// The chains used until `limit`, at most `count`.
    fn used_until(&mut self, at: usize, count: u16, limit: Instant) -> Result<Vec<(Lent, u32)>, Verdict> {
        let mut found = Vec::new();
        while found.len() < count.into() {
            match self.vrings[at].queue.reclaim() {
                Ok(Some(used)) => found.push((used.owner, used.written)),
                Ok(None) if Instant::now() >= limit => break,
                Ok(None) => sleep(STEP),
                Err(error) => return Err(fail("used entries that name chains in flight", error.to_string())),
            }
        }
        Ok(found)
    }

    /// Waits until `count` requests are used.
    pub(crate) fn used(&mut self, count: u16) -> Result<Vec<(Lent, u32)>, Verdict> {
        self.used_of(self.data_at(), count)
    }

    /// No request must be used for a while.
    pub(crate) fn nothing_used(&mut self, because: &str) -> Result<(), Verdict> {
        let found = self.used_until(self.data_at(), 1, Instant::now() + QUIET)?;
        if found.is_empty() {
            return Ok(());
        }
        Err(fail(format!("no chain is used: {because}"), "one was used"))
    }

    /// Makes requests, kicks, and waits until they are carried out.
    pub(crate) fn requests_are_used(&mut self, count: u16) -> Result<(), Verdict> {
        self.offer(count)?;
        self.kick();
        let found = self.used(count)?;
        self.check_answers(&found)
    }

    /// Whether the answers are in place: the last byte that a device writes has changed.
    pub(crate) fn check_answers(&self, used: &[(Lent, u32)]) -> Result<(), Verdict> {
        for (lent, _) in used {
            let Some(&(at, len)) = lent.writable.last() else { continue };
            let [status] = self.guest.read(at + u64::from(len) - 1)?;
            if status != 0 {
                return Err(fail("the request succeeds (status 0)", format!("status {status:#x}")));
            }
        }
        Ok(())
    }

    /// Whether the ring is packed.
    pub(crate) fn is_packed(&self) -> bool {
        self.session.features & feature::RING_PACKED != 0
    }
}
