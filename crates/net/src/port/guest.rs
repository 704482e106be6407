//! A port with a guest behind it: the running rings of one vhost-user session.
//!
//! A transmit ring belongs to one worker, which takes frames from it. A receive ring is written to by any worker, one
//! at a time: it is behind a lock, which a worker takes once for a burst. Receive chains are taken ahead of need, a burst
//! at a time, and wait in [`RxQueue`]; they are given back when the ring stops.
//!
//! Every ring's chains are completed in the order in which they were taken: the device offers `IN_ORDER`. A frame
//! that cannot be delivered uses none.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ringway_device::net::{Hash, HeaderError, Offloads, Work, header_len};
use ringway_memory::{GuestBuf, GuestSlice};
use ringway_queue::{Burst, Missing, QueueError, ResumeState};
use ringway_spec::feature;
use ringway_spec::net::{F_MRG_RXBUF, GSO_NONE, HDR_LEN, HDR_LEN_HASH, HashReport, Header};
use ringway_vhost::{Kick, Running, Serving};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::counters::{Counters, DropReason};
use crate::frame::{ETHERNET_LEN, Ethernet, Frame, Prefix};
use crate::offload::{self, MAX_FRAME};
use crate::plane::lock;

/// The header before a frame that says nothing but that it is all in one buffer.
pub(crate) const PLAIN_HEADER: [u8; HDR_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// How many receive chains are taken ahead.
const RX_BURST: usize = 64;

/// What a driver negotiated for its frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub(crate) offloads: Offloads,
    /// Length of the header before each frame.
    header_len: usize,
    can_merge: bool,
    /// The guest's IOMMU has to be asked where buffers are, which takes a while.
    pub(crate) has_iommu: bool,
}

impl Format {
    pub(crate) fn new(acked: u64, offloads: Offloads) -> Self {
        Self {
            offloads,
            header_len: header_len(acked),
            can_merge: acked & F_MRG_RXBUF != 0,
            has_iommu: acked & feature::ACCESS_PLATFORM != 0,
        }
    }
}

/// A running transmit ring.
pub(crate) struct TxRing {
    pub(crate) port: usize,
    pub(crate) session: u64,
    pub(crate) index: u16,
    pub(crate) vring: Serving,
    pub(crate) format: Format,
    pub(crate) enabled: bool,
    /// Frames were taken from it since the clock was read last, and when that was so before.
    pub(crate) is_active: bool,
    pub(crate) active_at: Instant,
    /// When its port may send again, if it may not now.
    pub(crate) resume_at: Option<Instant>,
}

impl TxRing {
    pub(crate) fn new(port: usize, session: u64, index: u16, running: Running, format: Format) -> Self {
        let enabled = running.enabled;
        let mut vring = Serving::from(running);
        // All that is in it is sent, whatever a driver calls it.
        vring.queue.ignore_write_flag_in_tables();
        let (is_active, active_at, resume_at) = (true, Instant::now(), None);
        Self { port, session, index, vring, format, enabled, is_active, active_at, resume_at }
    }
}

impl Format {
    /// Reads the beginning of a frame and of the header before it, once.
    ///
    /// Its parts are kept apart, in registers, and only made a [`Frame`] for those frames that need one: what is stored in
    /// pieces and loaded whole waits for all stores before it, and these go to memory of other processors.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "as above: a call would store what it returns")]
    pub(crate) fn begin<'c>(&self, buffer: GuestBuf<'c>) -> Result<Begun<'c>, DropReason> {
        let data = buffer.advance(self.header_len);
        if !(ETHERNET_LEN..=MAX_FRAME).contains(&data.len()) {
            return Err(DropReason::Malformed);
        }
        let ethernet = Ethernet::read(data).ok_or(DropReason::Malformed)?;
        let low = u64::from_le_bytes(buffer.read_array().ok_or(DropReason::Malformed)?);
        Ok(Begun { low, ethernet, data })
    }

    /// Reads what else there is of a frame.
    #[inline(never)]
    pub(crate) fn finish<'c>(&self, buffer: GuestBuf<'c>, begun: Begun<'c>) -> Result<Frame<'c>, DropReason> {
        let Begun { low, ethernet, data } = begun;
        let header = if begun.is_plain() { None } else { Some(self.header(low, buffer, data)?) };
        Ok(Frame { header, ethernet, prefix: Prefix::default(), data })
    }

    /// The header before a frame, which begins with `low`. A legacy header begins as a modern one does; the field it
    /// lacks means nothing here.
    fn header(&self, low: u64, buffer: GuestBuf<'_>, data: GuestBuf<'_>) -> Result<Header, DropReason> {
        let low = low.to_le_bytes();
        let csum_offset = buffer.advance(8).read_array::<2>().ok_or(DropReason::Malformed)?;
        let mut bytes = [0; size_of::<Header>()];
        bytes[..8].copy_from_slice(&low);
        bytes[8..10].copy_from_slice(&csum_offset);
        let sent: Header = zerocopy::transmute!(bytes);
        let header = self.offloads.check_sent(sent, data.len())?;
        if header.gso_type == GSO_NONE {
            return Ok(header);
        }
        offload::check(header, data).map_err(|_| DropReason::Malformed)
    }
}

/// A frame of which the beginning was read.
#[derive(Clone, Copy)]
pub(crate) struct Begun<'c> {
    /// The first bytes of the header before it.
    low: u64,
    pub(crate) ethernet: Ethernet,
    pub(crate) data: GuestBuf<'c>,
}

impl Begun<'_> {
    /// Whether the header before it says nothing: no partial checksum (bit 0 of `flags`), nothing to segment
    /// (`gso_type`). So it is with nearly all frames.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.low & 0xff01 == 0
    }
}

/// A running receive ring, as workers and the control thread share it.
pub(crate) struct RxRing {
    pub(crate) port: usize,
    pub(crate) session: u64,
    pub(crate) index: u16,
    has_kick: bool,
    pub(crate) queue: Mutex<RxQueue>,
}

impl RxRing {
    pub(crate) fn new(port: usize, session: u64, index: u16, running: Running, format: Format) -> Self {
        let is_open = running.enabled;
        let vring = Serving::from(running);
        let has_kick = !matches!(vring.kick, Kick::Polled);
        let queue =
            RxQueue { vring, format, is_open, ahead: Burst::default(), is_dirty: false, is_starved: false };
        Self { port, session, index, has_kick, queue: Mutex::new(queue) }
    }

    /// Whether its driver cannot kick.
    pub(crate) fn is_polled(&self) -> bool {
        !self.has_kick
    }

    /// Whether frames may go to it.
    pub(crate) fn is_open(&self) -> bool {
        let queue = lock(&self.queue);
        queue.is_open && !queue.vring.has_failed()
    }

    /// Stops it; its state to resume from.
    pub(crate) fn stop(self) -> ResumeState {
        let mut queue = self.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        queue.retake();
        queue.vring.stop()
    }
}

/// A running receive ring, with chains taken ahead.
pub(crate) struct RxQueue {
    pub(crate) vring: Serving,
    format: Format,
    /// It is enabled.
    pub(crate) is_open: bool,
    ahead: Burst,
    /// Something was completed and not yet published.
    is_dirty: bool,
    /// The last frame found no buffers.
    is_starved: bool,
}

/// Why a frame was not delivered: a reason to count, or a ring that failed.
#[derive(Debug)]
pub(crate) enum Undelivered {
    Dropped(DropReason),
    Failed(QueueError),
}

impl From<DropReason> for Undelivered {
    fn from(reason: DropReason) -> Self {
        Self::Dropped(reason)
    }
}

impl From<HeaderError> for DropReason {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Malformed => Self::Malformed,
            HeaderError::TooLong => Self::TooLong,
        }
    }
}

/// The header before a frame as two words, `num_buffers` being the last two bytes, and the hash. A legacy header lacks
/// these, and most lack the hash.
#[derive(Clone, Copy)]
struct HeaderBytes {
    low: u64,
    high: u32,
    hash: HashReport,
    len: usize,
}

impl HeaderBytes {
    /// The header to deliver, or one that says nothing but the hash, before a frame spread over `count` buffers.
    #[inline]
    fn new(header: Option<Header>, hash: Hash, count: usize, len: usize) -> Self {
        let num_buffers = u32::from(count as u16) << 16;
        let hash = hash.report();
        let Some(header) = header else { return Self { low: 0, high: num_buffers, hash, len } };
        let [low, mid, high]: [U32; 3] = zerocopy::transmute!(header);
        let low = u64::from(low.get()) | u64::from(mid.get()) << 32;
        Self { low, high: high.get() & 0xffff | num_buffers, hash, len }
    }

    fn to_bytes(self) -> [u8; HDR_LEN_HASH] {
        let mut bytes = [0; HDR_LEN_HASH];
        bytes[..8].copy_from_slice(&self.low.to_le_bytes());
        bytes[8..HDR_LEN].copy_from_slice(&self.high.to_le_bytes());
        bytes[HDR_LEN..].copy_from_slice(self.hash.as_bytes());
        bytes
    }
}

impl RxQueue {
    /// Whether the memory of the ring is still the peer's.
    #[inline]
    pub(crate) fn is_memory_intact(&self) -> bool {
        self.vring.queue.is_memory_intact()
    }

    /// The driver wants other offloads.
    pub(crate) fn set_offloads(&mut self, offloads: Offloads) {
        self.format.offloads = offloads;
    }

    /// The ring is of no more use until the session stops it; whether it was until now.
    pub(crate) fn fail(&mut self, counters: &Counters) -> bool {
        let is_news = counters.count_failure(self.vring.fail());
        self.retake();
        is_news
    }

    /// Gives back what was taken ahead, to be taken anew: where its buffers are may have changed.
    pub(crate) fn retake(&mut self) {
        self.vring.queue.rewind(&mut self.ahead);
    }

    /// Takes chains before there are frames for them: it may take a while until it is known where they are. An
    /// error is met again when there is a frame.
    pub(crate) fn take_ahead(&mut self) {
        if !self.vring.has_failed() && self.lacks_chains() && self.vring.queue.has_available() {
            let _ = self.vring.queue.take(&mut self.ahead, RX_BURST);
        }
    }

    /// A translation that the ring waits for, and that was not told yet.
    #[inline]
    pub(crate) fn missing(&mut self) -> Option<Missing> {
        self.vring.queue.missing()
    }

    /// Asks for a kick if chains are to be taken before there are frames for them, or frames wait for buffers and that is
    /// asked for too. Returns whether there are some.
    pub(crate) fn arm(&mut self, awaits_buffers: bool) -> bool {
        let is_lacking = self.format.has_iommu && self.lacks_chains();
        let is_starved = awaits_buffers && self.is_starved && self.is_open;
        !self.vring.has_failed() && (is_lacking || is_starved) && self.vring.queue.arm()
    }

    pub(crate) fn suppress(&mut self) {
        self.vring.queue.suppress();
    }

    /// Writes a frame that has no header of its own, as [`RxQueue::deliver`] does; false if that is not all there is to it.
    /// It begins with [`PLAIN_HEADER`] and what stands in the place of as many bytes; `data` follows.
    #[inline]
    pub(crate) fn deliver_plain<const N: usize>(
        &mut self,
        ethernet_len: usize,
        head: [u8; N],
        data: GuestBuf<'_>,
    ) -> bool {
        let room = N + data.len();
        if self.vring.has_failed()
            || self.format.header_len != HDR_LEN
            || self.format.offloads.check_len((room - HDR_LEN).saturating_sub(ethernet_len)).is_err()
            || (self.ahead.next_writable_len() as usize) < room
        {
            return false;
        }
        let Some(chain) = self.ahead.next() else { return false };
        let buffer = chain.writable();
        if !buffer.write_behind(head, data) {
            buffer.write(&head);
            data.copy_to(buffer.advance(N));
        }
        self.vring.queue.complete(chain, room as u32);
        self.is_dirty = true;
        true
    }

    /// Writes a frame to the guest. It sees it after [`RxQueue::publish`].
    #[inline(never)]
    pub(crate) fn deliver(
        &mut self,
        frame: &Frame<'_>,
        hash: Hash,
        scratch: &mut Vec<u8>,
        counters: &Counters,
    ) -> Result<(), Undelivered> {
        if self.vring.has_failed() {
            return Err(DropReason::NotReady.into());
        }
        let Format { offloads, header_len, can_merge, .. } = self.format;
        let len = frame.len();
        // A frame may end inside of its tag.
        let payload_len = len.saturating_sub(frame.ethernet.len);
        let (header, work) = match frame.header {
            None => offloads.check_len(payload_len).map(|()| (None, Work::Nothing)),
            Some(sent) => offloads.receive(sent, payload_len).map(|r| (Some(r.header), r.work)),
        }
        .map_err(DropReason::from)?;
        if work == Work::Segment {
            return self.deliver_segments(frame, hash, scratch, counters);
        }
        let count = self.reserve(header_len + len, can_merge)?;
        let header = HeaderBytes::new(header, hash, count, header_len);
        if let Work::Complete(checksum) = work {
            let bytes = offload::complete_checksum(frame, checksum, scratch).ok_or(DropReason::TooLong)?;
            counters.copies.add(1);
            let slices = [GuestSlice::from_mut(bytes)];
            self.write(count, header, Prefix::default(), GuestBuf::new(&slices));
        } else {
            self.write(count, header, frame.prefix, frame.data);
        }
        counters.to_frames.add(1);
        counters.to_bytes.add(len as u64);
        counters.copies.add(1);
        Ok(())
    }

    /// As [`RxQueue::deliver`], for a frame that the guest takes in segments only. The first one that it does not take
    /// is the last.
    #[inline(never)]
    fn deliver_segments(
        &mut self,
        frame: &Frame<'_>,
        hash: Hash,
        scratch: &mut Vec<u8>,
        counters: &Counters,
    ) -> Result<(), Undelivered> {
        let is_partial = self.format.offloads.completes_checksums();
        // Nothing is left to be done for a segment that it would take room for.
        let mut no_room = Vec::new();
        let is_copied = offload::cut(frame, is_partial, scratch, |segment| {
            self.deliver(segment, hash, &mut no_room, counters)?;
            counters.segments.add(1);
            Ok::<_, Undelivered>(())
        })?;
        counters.segmented.add(1);
        counters.copies.add(is_copied.into());
        Ok(())
    }

    /// Publishes what was delivered since the last call, and calls the driver if it asked.
    #[inline]
    pub(crate) fn publish(&mut self, counters: &Counters) {
        if std::mem::take(&mut self.is_dirty) {
            counters.count_call(self.vring.publish());
        }
    }

    /// Whether fewer chains are taken ahead than a burst of frames may need.
    fn lacks_chains(&self) -> bool {
        self.ahead.len() < RX_BURST
    }

    /// Finds room for `len` bytes in the chains that come next; returns how many these are. Takes more chains
    /// as needed, and uses none.
    #[inline]
    fn reserve(&mut self, len: usize, can_merge: bool) -> Result<usize, Undelivered> {
        loop {
            let mut room = 0;
            for (count, writable) in self.ahead.writable_lens().enumerate() {
                room += writable as usize;
                if room >= len {
                    return Ok(count + 1);
                }
                if !can_merge {
                    return Err(DropReason::TooLong.into());
                }
            }
            if self.ahead.len() >= usize::from(self.vring.queue.size()) {
                // All the driver can give at once is not enough.
                return Err(DropReason::TooLong.into());
            }
            let taken = self.vring.queue.take(&mut self.ahead, RX_BURST);
            self.is_starved = taken == Ok(0);
            match taken {
                Ok(0) => return Err(DropReason::NoBuffer.into()),
                Ok(_) => {}
                Err(error) => return Err(Undelivered::Failed(error)),
            }
        }
    }

    /// Writes header and frame to the next `count` chains, which have room for them.
    #[inline]
    fn write(&mut self, count: usize, header: HeaderBytes, prefix: Prefix, data: GuestBuf<'_>) {
        self.is_dirty = true;
        if count != 1 || header.len != HDR_LEN {
            self.write_spread(count, header, prefix, data);
        } else if let Some(chain) = self.ahead.next() {
            let room = chain.writable();
            let start = room.advance(HDR_LEN);
            room.write_array(header.low.to_le_bytes());
            room.advance(8).write_array(header.high.to_le_bytes());
            let copied = if prefix.is_empty() {
                data.copy_to(start)
            } else {
                prefix.write(start);
                prefix.len() + data.copy_to(start.advance(prefix.len()))
            };
            self.vring.queue.complete(chain, (HDR_LEN + copied) as u32);
        }
    }

    /// As [`RxQueue::write`], for the frames that are not alike: spread over several chains, or with a header of
    /// another length.
    #[inline(never)]
    fn write_spread(&mut self, count: usize, header: HeaderBytes, prefix: Prefix, data: GuestBuf<'_>) {
        let header_bytes = header.to_bytes();
        let prefix_bytes = prefix.to_bytes();
        // A driver may give less room in the first chain than the header needs (it should not): then the header goes on
        // in the next, as all that follows does.
        let mut heads = [&header_bytes[..header.len], &prefix_bytes[..prefix.len()]];
        let mut left = data;
        for _ in 0..count {
            let Some(chain) = self.ahead.next() else { break };
            let mut room = chain.writable();
            let mut written = 0;
            for head in &mut heads {
                let n = room.write(head);
                *head = &head[n..];
                room = room.advance(n);
                written += n;
            }
            let copied = left.copy_to(room);
            left = left.advance(copied);
            self.vring.queue.complete(chain, (written + copied) as u32);
        }
    }
}
