//! A pair of rings: frames go out on one and come in on the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::super::memory::GuestMemory;
use super::super::ring::{Buffer, DESC_LEN, RingLayout, SplitRing};
use super::super::wire::feature;
use super::{Arrangement, Options, RxPolicy, VnetHeader};

/// How long a frame to be sent waits for room in the ring.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Left free between the pieces of a frame: adjacent buffers would hide a device that reads past one's end,
/// and an odd number leaves none of them aligned.
const GAP: u64 = 13;
/// Room in a transmit slot for gaps and an indirect table.
const SLOT_EXTRA: u64 = 8192;

/// A receive and a transmit ring with their buffers.
#[derive(Debug)]
pub struct QueuePair {
    /// The receive ring.
    pub rx: SplitRing,
    /// The transmit ring.
    pub tx: SplitRing,
    memory: Arc<GuestMemory>,
    features: u64,
    policy: RxPolicy,
    tolerate_no_num_buffers: bool,
    /// Receive chains that are not posted.
    rx_idle: Vec<Vec<Buffer>>,
    /// Receive chains that are, by head.
    rx_posted: BTreeMap<u32, Vec<Buffer>>,
    /// Used receive buffers that are not yet taken as frames.
    rx_used: VecDeque<(u32, u32)>,
    slot_len: u64,
    /// Places for frames to be sent.
    tx_idle: Vec<u64>,
    /// Those in use, by head.
    tx_posted: BTreeMap<u32, u64>,
}

impl QueuePair {
    /// Lays out the rings and their buffers; nothing is posted yet.
    pub(super) fn new(memory: &Arc<GuestMemory>, options: &Options) -> Result<Self> {
        let size = options.ring_size;
        let ring = || {
            let start = memory.allocate(RingLayout::contiguous(size, 0, 64).end(), 4096)?;
            let mut ring = SplitRing::new(
                Arc::clone(memory),
                RingLayout::contiguous(size, start, 64),
                options.vring_base,
            )?;
            ring.kick_policy = options.kick_policy;
            Ok::<_, anyhow::Error>(ring)
        };
        let (rx, tx) = (ring()?, ring()?);
        ensure!(!options.rx_chain.is_empty(), "receive chains without buffers");
        let rx_idle = (0..usize::from(size) / options.rx_chain.len()).map(|_| {
            let buffers = options
                .rx_chain
                .iter()
                .map(|&len| Ok(Buffer::writable(memory.allocate(len.into(), 64)?, len)));
            buffers.collect::<Result<Vec<_>>>()
        });
        let rx_idle = rx_idle.collect::<Result<_>>()?;
        let slot_len = (VnetHeader::HASH_LEN + options.max_frame) as u64 + SLOT_EXTRA;
        let tx_idle = (0..size).map(|_| memory.allocate(slot_len, 64)).collect::<Result<_>>()?;
        Ok(Self {
            rx,
            tx,
            memory: Arc::clone(memory),
            features: 0,
            policy: options.rx_policy,
            tolerate_no_num_buffers: options.tolerate_no_num_buffers,
            rx_idle,
            rx_posted: BTreeMap::new(),
            rx_used: VecDeque::new(),
            slot_len,
            tx_idle,
            tx_posted: BTreeMap::new(),
        })
    }

    /// Bytes of the header in front of frames.
    pub fn header_len(&self) -> usize {
        match self.features {
            f if f & feature::NET_HASH_REPORT != 0 => VnetHeader::HASH_LEN,
            f if f & (feature::VERSION_1 | feature::NET_MRG_RXBUF) != 0 => VnetHeader::LEN,
            _ => VnetHeader::LEGACY_LEN,
        }
    }

    /// Receive buffers that the device has.
    pub fn posted(&self) -> usize {
        self.rx_posted.len()
    }

    /// Takes over the features acked, then posts the receive buffers unless they are to be withheld.
    pub(super) fn begin(&mut self, features: u64) -> Result<()> {
        self.features = features;
        for ring in [&mut self.rx, &mut self.tx] {
            ring.event_idx = features & feature::EVENT_IDX != 0;
        }
        if self.policy == RxPolicy::Never { Ok(()) } else { self.post() }
    }

    /// Posts every idle receive chain, whatever the policy.
    pub fn post(&mut self) -> Result<()> {
        while let Some(chain) = self.rx_idle.pop() {
            let head = self.rx.add(&chain)?.context("the receive ring has no room for its own buffers")?;
            self.rx_posted.insert(head.into(), chain);
        }
        self.rx.publish_and_kick().map(drop)
    }

    /// Takes all buffers back and leaves both rings empty at `base`, as a driver does after it has reset its
    /// device. No buffer is posted.
    pub fn reset(&mut self, base: u16) -> Result<()> {
        self.rx_idle.extend(std::mem::take(&mut self.rx_posted).into_values());
        self.tx_idle.extend(std::mem::take(&mut self.tx_posted).into_values());
        self.rx_used.clear();
        self.rx.reset(base)?;
        self.tx.reset(base)
    }

    /// Sends a frame with a header of zeros, in one descriptor.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.send_arranged(&VnetHeader::default(), frame, &Arrangement::whole())
    }

    /// Sends a frame as told. Waits for room in the ring, but not for the device to take the frame.
    pub fn send_arranged(
        &mut self,
        header: &VnetHeader,
        frame: &[u8],
        arrangement: &Arrangement,
    ) -> Result<()> {
        let deadline = Instant::now() + SEND_LIMIT;
        while !self.enqueue(header, frame, arrangement)? {
            // What is enqueued before may be unknown to the device.
            self.flush()?;
            if self.reclaim(Duration::from_millis(100))? == 0 && Instant::now() >= deadline {
                bail!("the transmit ring was full for {SEND_LIMIT:?}");
            }
        }
        self.flush()
    }

    /// Puts a frame into the ring but does not publish it; whether there was room. With [`flush`](Self::flush)
    /// after many of these the device sees them all at once.
    pub fn enqueue(&mut self, header: &VnetHeader, frame: &[u8], arrangement: &Arrangement) -> Result<bool> {
        self.reclaim(Duration::ZERO)?;
        let Some(slot) = self.tx_idle.pop() else { return Ok(false) };
        let bytes = [&header.to_bytes()[..self.header_len()], frame].concat();
        let lengths = arrangement.lengths(bytes.len());
        let pieces = lengths.len() as u64;
        let needed = pieces * (DESC_LEN + GAP) + bytes.len() as u64;
        ensure!(needed <= self.slot_len, "a frame of {} bytes in {pieces} pieces: no room", frame.len());
        let mut at = slot + pieces * DESC_LEN;
        let (mut buffers, mut rest) = (Vec::new(), &bytes[..]);
        for length in lengths {
            let (piece, after) = rest.split_at(length);
            at += GAP;
            self.memory.write(at, piece)?;
            buffers.push(Buffer::readable(at, length as u32));
            at += length as u64;
            rest = after;
        }
        let head = if arrangement.indirect {
            self.tx.add_indirect(slot, &buffers)?
        } else {
            ensure!(buffers.len() <= self.tx.layout().size.into(), "a chain longer than the ring");
            self.tx.add(&buffers)?
        };
        match head {
            Some(head) => _ = self.tx_posted.insert(head.into(), slot),
            None => self.tx_idle.push(slot),
        }
        Ok(head.is_some())
    }

    /// Shows the device what was enqueued.
    pub fn flush(&mut self) -> Result<()> {
        self.tx.publish_and_kick().map(drop)
    }

    /// Waits until the device has taken every frame; an error if it does not in time.
    pub fn wait_sent(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.tx_posted.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.reclaim(left)? == 0 && left.is_zero() {
                bail!("{} frames were not taken within {limit:?}", self.tx_posted.len());
            }
        }
        Ok(())
    }

    /// Takes the next frame that came in, or `None` if none did in time.
    pub fn recv(&mut self, limit: Duration) -> Result<Option<(VnetHeader, Vec<u8>)>> {
        if self.rx_used.is_empty() {
            self.rx_used.extend(self.rx.wait_used(limit)?);
        }
        if self.rx_used.is_empty() {
            return Ok(None);
        }
        let (header, frame) = self.take_frame()?;
        if self.policy == RxPolicy::Recycle && self.rx_used.is_empty() {
            self.post()?;
        }
        Ok(Some((header, frame)))
    }

    /// Takes back the slots of frames that are sent; how many.
    fn reclaim(&mut self, limit: Duration) -> Result<usize> {
        let used = if limit.is_zero() { self.tx.poll()? } else { self.tx.wait_used(limit)? };
        for &(id, len) in &used {
            ensure!(len == 0, "the device says that it wrote {len} bytes of a frame to be sent");
            // A chain that a test added by itself has no slot.
            self.tx_idle.extend(self.tx_posted.remove(&id));
        }
        Ok(used.len())
    }

    /// Puts the first frame together from used buffers, and checks what the device says of them.
    fn take_frame(&mut self) -> Result<(VnetHeader, Vec<u8>)> {
        let (mut bytes, mut full) = self.take_buffer()?;
        let header_len = self.header_len();
        let header = bytes.get(..header_len).and_then(VnetHeader::from_bytes);
        let header = header
            .with_context(|| format!("a used buffer of {} bytes: no room for a header", bytes.len()))?;
        for number in 1..self.buffers_of(&header)? {
            ensure!(full, "buffer {number} of {} is not the last and not full", header.num_buffers);
            let more;
            (more, full) = self.take_buffer().context("the buffers of one frame were not used together")?;
            ensure!(!more.is_empty(), "a merged buffer is empty");
            bytes.extend_from_slice(&more);
        }
        bytes.drain(..header_len);
        Ok((header, bytes))
    }

    /// How many buffers the frame is in, checked against the features.
    fn buffers_of(&self, header: &VnetHeader) -> Result<u16> {
        let count = header.num_buffers;
        if self.features & feature::NET_MRG_RXBUF != 0 {
            ensure!(count > 0, "num_buffers is zero");
            return Ok(count);
        }
        let legacy = self.header_len() == VnetHeader::LEGACY_LEN;
        let tolerated = legacy || (count == 0 && self.tolerate_no_num_buffers);
        ensure!(count == 1 || tolerated, "num_buffers is {count} though buffers are not mergeable");
        Ok(1)
    }

    /// The bytes of the next used buffer, and whether it is full. The buffer is idle again.
    fn take_buffer(&mut self) -> Result<(Vec<u8>, bool)> {
        let (id, len) = self.rx_used.pop_front().context("no used buffer is left")?;
        let chain = self.rx_posted.remove(&id).with_context(|| format!("chain {id} is no receive buffer"))?;
        let room: u32 = chain.iter().map(|buffer| buffer.len).sum();
        ensure!(len <= room, "the device says that it wrote {len} bytes into a buffer of {room}");
        let (mut bytes, mut left) = (Vec::with_capacity(len as usize), len);
        for buffer in &chain {
            let part = left.min(buffer.len);
            bytes.extend(self.memory.read_vec(buffer.addr, part as usize)?);
            left -= part;
        }
        if self.tolerate_no_num_buffers {
            // What the device leaves alone is to be zero the next time too, not a number of an older frame.
            self.memory.write(chain[0].addr, &vec![0; chain[0].len.min(VnetHeader::LEN as u32) as usize])?;
        }
        self.rx_idle.push(chain);
        Ok((bytes, len == room))
    }
}
