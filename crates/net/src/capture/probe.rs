//! A worker's end of a capture.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use ringway_memory::GuestBuf;
use ringway_spec::net::{GSO_NONE, HDR_F_NEEDS_CSUM, Header};

use super::pcapng::{Packet, flag};
use super::{BATCH, BATCHES, Interface, MAX_CAPTURED, Shared};

/// Which way a frame goes, seen from the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From a port.
    From,
    /// To a port.
    To,
}

/// Blocks on their way to the file.
#[derive(Debug)]
pub(super) struct Batch {
    /// Whose it is.
    pub(super) worker: usize,
    /// Packets in it, by interface.
    pub(super) packets: Box<[u64]>,
    bytes: Box<[u8]>,
    len: usize,
}

impl Batch {
    fn new(worker: usize, interfaces: usize) -> Self {
        Self { worker, packets: vec![0; interfaces].into(), bytes: vec![0; BATCH].into(), len: 0 }
    }

    pub(super) fn blocks(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(super) fn clear(&mut self) {
        self.packets.fill(0);
        self.len = 0;
    }

    /// Adds a packet; returns whether there was room.
    fn push(&mut self, packet: &Packet, prefix: &[u8], data: GuestBuf<'_>) -> bool {
        let Some((len, place)) = packet.write(&mut self.bytes[self.len..]) else { return false };
        let (first, rest) = place.split_at_mut(prefix.len().min(place.len()));
        first.copy_from_slice(&prefix[..first.len()]);
        data.read(rest);
        self.packets[packet.interface as usize] += 1;
        self.len += len;
        true
    }
}

/// What a worker captures with.
#[derive(Debug)]
pub(crate) struct Probe {
    /// By port: the interface's number and its snaplen.
    interfaces: Vec<Option<(u32, usize)>>,
    shared: Arc<Shared>,
    /// The batch at hand, and the empty ones; the others are on their way.
    batch: Option<Batch>,
    spare: Vec<Batch>,
    full: SyncSender<Batch>,
    emptied: Receiver<Batch>,
    /// The time of this burst's frames.
    now: u64,
    /// Nobody writes any more.
    has_ended: bool,
}

impl Probe {
    pub(super) fn new(
        worker: usize,
        interfaces: &[Interface],
        shared: Arc<Shared>,
        full: SyncSender<Batch>,
        emptied: Receiver<Batch>,
    ) -> Self {
        let ports = interfaces.iter().map(|interface| interface.port + 1).max().unwrap_or_default();
        let mut by_port = vec![None; ports];
        for (number, interface) in (0..).zip(interfaces) {
            by_port[interface.port] = Some((number, interface.snaplen as usize));
        }
        let now = shared.now();
        let spare = (0..BATCHES).map(|_| Batch::new(worker, interfaces.len())).collect();
        Self { interfaces: by_port, shared, batch: None, spare, full, emptied, now, has_ended: false }
    }

    /// Captures a frame, if its port is; a frame's first bytes may be apart from the others.
    fn record(
        &mut self,
        port: usize,
        direction: Direction,
        header: Option<&Header>,
        prefix: &[u8],
        data: GuestBuf<'_>,
    ) {
        let Some(&Some((interface, snaplen))) = self.interfaces.get(port) else { return };
        if self.has_ended {
            return;
        }
        let len = prefix.len() + data.len();
        let captured = len.min(snaplen).min(MAX_CAPTURED);
        let packet = Packet { interface, time: self.now, captured, len, flags: flags(direction, header) };
        if self.push(&packet, prefix, data) {
            return;
        }
        self.hand_over();
        self.reclaim();
        self.batch = self.spare.pop();
        if !self.push(&packet, prefix, data) {
            self.shared.dropped[interface as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn push(&mut self, packet: &Packet, prefix: &[u8], data: GuestBuf<'_>) -> bool {
        self.batch.as_mut().is_some_and(|batch| batch.push(packet, prefix, data))
    }

    /// Takes back what was written.
    fn reclaim(&mut self) {
        self.spare.extend(self.emptied.try_iter());
    }

    fn hand_over(&mut self) {
        if let Some(batch) = self.batch.take_if(|batch| batch.len > 0) {
            // There is room for all batches, so nobody is there.
            self.has_ended |= self.full.try_send(batch).is_err();
        }
    }

    /// Hands over what was captured, if the writer has nothing to do. If the worker goes to `sleep`, then also if the writer
    /// is not far behind: batches with little in them would use up all there are.
    fn flush(&mut self, sleep: bool) {
        if self.batch.as_ref().is_none_or(|batch| batch.len == 0) {
            return;
        }
        self.reclaim();
        let wanted = if sleep { BATCHES / 2 } else { BATCHES - 1 };
        if self.spare.len() >= wanted {
            self.hand_over();
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.hand_over();
    }
}

fn flags(direction: Direction, header: Option<&Header>) -> u32 {
    let direction = match direction {
        Direction::From => flag::INBOUND,
        Direction::To => flag::OUTBOUND,
    };
    let Some(header) = header else { return direction };
    let checksum = if header.flags & HDR_F_NEEDS_CSUM == 0 { 0 } else { flag::CHECKSUM_NOT_READY };
    let segments = if header.gso_type == GSO_NONE { 0 } else { flag::SEGMENTATION_OFFLOADED };
    direction | checksum | segments
}

/// The probes of a worker.
#[derive(Debug, Default)]
pub(crate) struct Probes(Vec<Probe>);

impl Probes {
    /// Whether anything is captured at all.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, probe: Probe) {
        self.0.push(probe);
    }

    /// Forgets captures that are to end.
    pub(crate) fn sweep(&mut self) {
        self.0.retain(|probe| !probe.shared.is_ending.load(Ordering::Relaxed));
    }

    /// The frames to come are of now.
    pub(crate) fn tell_time(&mut self) {
        for probe in &mut self.0 {
            probe.now = probe.shared.now();
        }
    }

    /// Captures a frame: see [`Probe::record`].
    #[cold]
    pub(crate) fn record(
        &mut self,
        port: usize,
        direction: Direction,
        header: Option<&Header>,
        prefix: &[u8],
        data: GuestBuf<'_>,
    ) {
        for probe in &mut self.0 {
            probe.record(port, direction, header, prefix, data);
        }
    }

    /// Hands over what was captured: see [`Probe::flush`]. Forgets captures that nobody writes any more.
    pub(crate) fn flush(&mut self, sleep: bool) {
        self.0.retain_mut(|probe| {
            probe.flush(sleep);
            !probe.has_ended
        });
    }
}
