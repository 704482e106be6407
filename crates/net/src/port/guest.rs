//! A port with a guest behind it: the running rings of one vhost-user session.
//!
//! Frames from the guest are taken by the worker (it must look at where they go); frames to the guest are
//! written here. Receive chains are taken ahead of need, a burst at a time, and wait in [`RxQueue`]; they are
//! given back when the ring stops.
//!
//! Every ring's chains are completed in the order in which they were taken: the device offers `IN_ORDER`. A frame
//! that cannot be delivered uses none.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use ringway_device::net::{HeaderError, NetDevice, Offloads, Role, header_len};
use ringway_memory::{GuestBuf, GuestSlice};
use ringway_queue::{Burst, DeviceQueue, Missing, QueueError, ResumeState};
use ringway_spec::feature;
use ringway_spec::net::{CTRL_ERR, F_MRG_RXBUF, HDR_LEN, Header};
use ringway_vhost::{Kick, Notifier, Running};
use zerocopy::little_endian::U32;

use crate::counters::{Counters, DropReason};
use crate::frame::{Frame, Mac, flow_hash};
use crate::offload;

/// How many receive chains are taken ahead.
const RX_BURST: usize = 64;
/// The longest control command that is looked at; those the device knows are shorter.
const MAX_COMMAND: usize = 64;

/// The rings of a guest, by their role.
pub(crate) struct GuestPort {
    pub(crate) counters: Arc<Counters>,
    /// Shared with the session: the driver negotiates there and sends control commands here.
    device: Arc<Mutex<NetDevice>>,
    /// By the number of the pair.
    pub(crate) tx: Vec<Option<Vring>>,
    rx: Vec<Option<RxQueue>>,
    control: Option<(u16, Vring)>,
    /// The receive queues that frames may go to now.
    steering: Vec<usize>,
    offloads: Offloads,
    header_len: usize,
    can_merge: bool,
    /// The guest's IOMMU has to be asked where buffers are, which takes a while.
    has_iommu: bool,
    /// The number of the session that started the rings, and of the last one counted.
    session: u64,
    pub(crate) counted: Option<u64>,
}

/// A running ring.
pub(crate) struct Vring {
    pub(crate) queue: DeviceQueue,
    pub(crate) kick: Kick,
    call: Notifier,
    err: Notifier,
    pub(crate) enabled: bool,
    /// The ring failed: it is not looked at until the session stops it.
    pub(crate) failed: bool,
}

impl From<Running> for Vring {
    fn from(running: Running) -> Self {
        let Running { queue, kick, call, err, enabled, is_resumed } = running;
        if is_resumed {
            call.notify();
        }
        Self { queue, kick, call, err, enabled, failed: false }
    }
}

impl Vring {
    /// Whether it has something to take; a ring that fails when it is looked at closer counts too.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        !self.failed && self.queue.has_available()
    }

    /// Publishes what was completed, and calls the driver if it asked.
    #[inline]
    pub(crate) fn publish(&mut self, counters: &Counters) {
        if self.queue.publish() && self.call.notify() {
            counters.calls.add(1);
            counters.syscalls.add(1);
        }
    }

    /// Notes that the ring is of no more use, and tells the front-end.
    pub(crate) fn fail(&mut self, counters: &Counters) {
        self.failed = true;
        self.err.notify();
        counters.failures.add(1);
    }
}

/// A running receive ring, with chains taken ahead.
struct RxQueue {
    vring: Vring,
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
    Failed(u16, QueueError),
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
            HeaderError::Unsegmentable => Self::Unsegmentable,
            HeaderError::TooLong => Self::TooLong,
        }
    }
}

impl GuestPort {
    pub(crate) fn new(device: Arc<Mutex<NetDevice>>, counters: Arc<Counters>) -> Self {
        let pairs = usize::from(lock(&device).max_pairs());
        Self {
            counters,
            device,
            tx: (0..pairs).map(|_| None).collect(),
            rx: (0..pairs).map(|_| None).collect(),
            control: None,
            steering: Vec::new(),
            offloads: Offloads::default(),
            header_len: 0,
            can_merge: false,
            has_iommu: false,
            session: 0,
            counted: None,
        }
    }

    /// The number of the session that started the rings.
    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Whether the memory of the rings that run is still the peer's.
    pub(crate) fn is_memory_intact(&mut self) -> bool {
        // All rings of a session are in the same memory.
        self.vrings().next().is_none_or(|(_, vring)| vring.queue.is_memory_intact())
    }

    /// What the guest negotiated for its frames.
    pub(crate) fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Length of the header before each frame.
    pub(crate) fn header_len(&self) -> usize {
        self.header_len
    }

    // Set-up, on behalf of the session

    /// A ring runs from now on.
    pub(crate) fn start(&mut self, session: u64, index: u16, running: Running) {
        let device = lock(&self.device);
        let Some(role) = device.role(index) else { return };
        self.session = session;
        if self.counted.replace(session) != Some(session) {
            self.counters.sessions.add(1);
        }
        self.offloads = device.offloads();
        let acked = device.negotiation().acked();
        drop(device);
        self.header_len = header_len(acked);
        self.can_merge = acked & F_MRG_RXBUF != 0;
        self.has_iommu = acked & feature::ACCESS_PLATFORM != 0;
        let mut vring = Vring::from(running);
        vring.queue.suppress();
        match role {
            Role::Receive(pair) => {
                let queue = RxQueue { vring, ahead: Burst::default(), is_dirty: false, is_starved: false };
                self.rx[usize::from(pair)] = Some(queue);
            }
            Role::Transmit(pair) => {
                // All that is in it is sent, whatever a driver calls it.
                vring.queue.ignore_write_flag_in_tables();
                self.tx[usize::from(pair)] = Some(vring);
            }
            Role::Control => self.control = Some((index, vring)),
        }
        self.steer();
    }

    /// A ring stops; its state to resume from.
    pub(crate) fn stop(&mut self, index: u16) -> ResumeState {
        let vring = if self.control.as_ref().is_some_and(|(at, _)| *at == index) {
            self.control.take().map(|(_, vring)| vring)
        } else if index.is_multiple_of(2) {
            self.rx[usize::from(index / 2)].take().map(|mut rx| {
                rx.vring.queue.rewind(&mut rx.ahead);
                rx.vring
            })
        } else {
            self.tx[usize::from(index / 2)].take()
        };
        self.steer();
        let mut vring = vring.expect("the session stops only rings it started");
        vring.publish(&self.counters);
        vring.queue.stop()
    }

    /// The running ring of this index.
    fn vring_mut(&mut self, index: u16) -> Option<&mut Vring> {
        match &mut self.control {
            Some((at, vring)) if *at == index => Some(vring),
            _ if index.is_multiple_of(2) => {
                self.rx.get_mut(usize::from(index / 2))?.as_mut().map(|rx| &mut rx.vring)
            }
            _ => self.tx.get_mut(usize::from(index / 2))?.as_mut(),
        }
    }

    pub(crate) fn enable(&mut self, index: u16, enabled: bool) {
        if let Some(vring) = self.vring_mut(index) {
            vring.enabled = enabled;
        }
        self.steer();
    }

    pub(crate) fn set_call(&mut self, index: u16, call: Notifier) {
        if let Some(vring) = self.vring_mut(index) {
            vring.call = call;
            // The one before may have got a call that nobody looks for any more.
            vring.call.notify();
        }
    }

    pub(crate) fn set_err(&mut self, index: u16, err: Notifier) {
        if let Some(vring) = self.vring_mut(index) {
            vring.err = err;
            if vring.failed {
                vring.err.notify();
            }
        }
    }

    /// The kick file descriptor of a running ring.
    pub(crate) fn kick(&mut self, index: u16) -> Option<&OwnedFd> {
        match &self.vring_mut(index)?.kick {
            Kick::Fd(fd) => Some(fd),
            Kick::InBand | Kick::Polled => None,
        }
    }

    /// Finds anew which receive queues frames may go to.
    fn steer(&mut self) {
        let active = usize::from(lock(&self.device).active_pairs());
        let is_open =
            |rx: &Option<RxQueue>| rx.as_ref().is_some_and(|rx| rx.vring.enabled && !rx.vring.failed);
        let pairs = self.rx.iter().enumerate().take(active);
        self.steering = pairs.filter(|(_, rx)| is_open(rx)).map(|(pair, _)| pair).collect();
    }

    /// The running rings that the driver sends by, frames or commands.
    pub(crate) fn senders(&mut self) -> impl Iterator<Item = &mut Vring> {
        let control = self.control.as_mut().map(|(_, vring)| vring);
        self.tx.iter_mut().flatten().chain(control).filter(|vring| !vring.failed)
    }

    /// Every running ring that has not failed, with its index.
    pub(crate) fn vrings(&mut self) -> impl Iterator<Item = (u16, &mut Vring)> {
        let rx = (0..).step_by(2).zip(&mut self.rx).filter_map(|(i, rx)| Some((i, &mut rx.as_mut()?.vring)));
        let tx = (1..).step_by(2).zip(&mut self.tx).filter_map(|(i, tx)| Some((i, tx.as_mut()?)));
        let control = self.control.as_mut().map(|(i, vring)| (*i, vring));
        rx.chain(tx).chain(control).filter(|(_, vring)| !vring.failed)
    }

    /// Takes receive chains before there are frames for them: it may take a while until it is known where they are. An
    /// error is met again when there is a frame.
    pub(crate) fn take_ahead(&mut self) {
        for rx in self.rx.iter_mut().flatten().filter(|rx| !rx.vring.failed) {
            if rx.lacks_chains() && rx.vring.queue.has_available() {
                let _ = rx.vring.queue.take(&mut rx.ahead, RX_BURST);
            }
        }
    }

    /// Whether the guest's IOMMU has to be asked where buffers are.
    pub(crate) fn has_iommu(&self) -> bool {
        self.has_iommu
    }

    /// A translation that a ring waits for, and that was not told yet.
    pub(crate) fn missing(&mut self) -> Option<Missing> {
        self.vrings().find_map(|(_, vring)| vring.queue.missing())
    }

    /// The receive rings whose chains are to be taken before there are frames for them, and are not there yet.
    pub(crate) fn lacking(&mut self) -> impl Iterator<Item = &mut Vring> {
        let has_iommu = self.has_iommu;
        let is_lacking = move |rx: &&mut RxQueue| has_iommu && rx.lacks_chains() && !rx.vring.failed;
        self.rx.iter_mut().flatten().filter(is_lacking).map(|rx| &mut rx.vring)
    }

    /// Gives back what was taken ahead, to be taken anew: where its buffers are may have changed.
    pub(crate) fn retake(&mut self) {
        for rx in self.rx.iter_mut().flatten() {
            rx.vring.queue.rewind(&mut rx.ahead);
        }
    }

    // Control commands

    /// Carries out the control commands that are available; returns how many.
    pub(crate) fn serve_control(&mut self, burst: &mut Burst) -> Result<usize, QueueError> {
        let Some((_, vring)) = &mut self.control else { return Ok(0) };
        if vring.failed {
            return Ok(0);
        }
        let count = vring.queue.take(burst, 16)?;
        while let Some(chain) = burst.next() {
            let mut command = [0; MAX_COMMAND];
            let len = chain.readable().read(&mut command);
            let is_whole = len == chain.readable().len();
            let answer = if is_whole { lock(&self.device).control(&command[..len]) } else { CTRL_ERR };
            let written = chain.writable().write(&[answer]);
            vring.queue.complete(chain, written as u32);
        }
        if count > 0 {
            vring.publish(&self.counters);
            self.steer();
        }
        Ok(count)
    }

    /// The control ring's index, if it runs.
    pub(crate) fn control_index(&self) -> Option<u16> {
        self.control.as_ref().map(|(index, _)| *index)
    }

    // Frames to the guest

    /// Whether a receive queue is open.
    pub(crate) fn can_receive(&self) -> bool {
        !self.steering.is_empty()
    }

    /// Writes a frame to the guest. It sees it after [`GuestPort::publish`].
    #[inline]
    pub(crate) fn deliver(&mut self, frame: Frame<'_>, scratch: &mut Vec<u8>) -> Result<(), Undelivered> {
        let pair = match self.steering[..] {
            [] => return Err(DropReason::NotReady.into()),
            [only] => only,
            ref several => several[flow_hash(frame.data) as usize % several.len()],
        };
        let len = frame.data.len();
        let payload_len = len - frame.ethernet_len;
        let receive = match frame.header {
            None => self.offloads.check_len(payload_len).map(|()| None),
            Some(sent) => self.offloads.receive(sent, payload_len).map(Some),
        }
        .map_err(DropReason::from)?;
        let Some(rx) = &mut self.rx[pair] else { return Err(DropReason::NotReady.into()) };
        let room = self.header_len + len;
        let count = rx.reserve(room, self.can_merge).map_err(|e| e.of(pair))?;
        let header = HeaderBytes::new(receive.map(|r| r.header), count, self.header_len);
        match receive.and_then(|r| r.checksum) {
            None => rx.write(count, header, frame.data, frame.addresses),
            Some(checksum) => {
                let bytes =
                    offload::complete_checksum(frame.data, checksum, scratch).ok_or(DropReason::TooLong)?;
                self.counters.copies.add(1);
                let slices = [GuestSlice::from_mut(bytes)];
                rx.write(count, header, GuestBuf::new(&slices), frame.addresses);
            }
        }
        self.counters.to_frames.add(1);
        self.counters.to_bytes.add(len as u64);
        self.counters.copies.add(1);
        Ok(())
    }

    /// Publishes what was delivered since the last call, and calls the driver where it asked. Returns whether
    /// there was something.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        let mut was_dirty = false;
        for rx in self.rx.iter_mut().flatten() {
            if std::mem::take(&mut rx.is_dirty) {
                rx.vring.publish(&self.counters);
                was_dirty = true;
            }
        }
        was_dirty
    }

    /// The receive rings that frames wait for: open, and without buffers.
    pub(crate) fn starved(&mut self) -> impl Iterator<Item = &mut Vring> {
        let is_starved = |rx: &&mut RxQueue| rx.is_starved && rx.vring.enabled && !rx.vring.failed;
        self.rx.iter_mut().flatten().filter(is_starved).map(|rx| &mut rx.vring)
    }

    /// A ring failed: it is not used until the session stops it.
    pub(crate) fn fail(&mut self, index: u16) {
        let counters = Arc::clone(&self.counters);
        if let Some(vring) = self.vring_mut(index) {
            vring.fail(&counters);
        }
        if index.is_multiple_of(2)
            && let Some(Some(rx)) = self.rx.get_mut(usize::from(index / 2))
        {
            rx.vring.queue.rewind(&mut rx.ahead);
        }
        self.steer();
    }
}

/// The header before a frame as two words, `num_buffers` being the last two bytes. A legacy header lacks these.
#[derive(Clone, Copy)]
struct HeaderBytes {
    low: u64,
    high: u32,
    len: usize,
}

impl HeaderBytes {
    /// The header to deliver, or one that says nothing, before a frame spread over `count` buffers.
    #[inline]
    fn new(header: Option<Header>, count: usize, len: usize) -> Self {
        let num_buffers = u32::from(count as u16) << 16;
        let Some(header) = header else { return Self { low: 0, high: num_buffers, len } };
        let [low, mid, high]: [U32; 3] = zerocopy::transmute!(header);
        let low = u64::from(low.get()) | u64::from(mid.get()) << 32;
        Self { low, high: high.get() & 0xffff | num_buffers, len }
    }

    fn to_bytes(self) -> [u8; HDR_LEN] {
        let mut bytes = [0; HDR_LEN];
        bytes[..8].copy_from_slice(&self.low.to_le_bytes());
        bytes[8..].copy_from_slice(&self.high.to_le_bytes());
        bytes
    }
}

/// Why a ring cannot take a frame.
enum Refused {
    NoBuffer,
    TooLong,
    Failed(QueueError),
}

impl Refused {
    /// The same, of the receive queue of a pair.
    fn of(self, pair: usize) -> Undelivered {
        match self {
            Self::NoBuffer => Undelivered::Dropped(DropReason::NoBuffer),
            Self::TooLong => Undelivered::Dropped(DropReason::TooLong),
            Self::Failed(error) => Undelivered::Failed(pair as u16 * 2, error),
        }
    }
}

impl RxQueue {
    /// Whether fewer chains are taken ahead than a burst of frames may need.
    fn lacks_chains(&self) -> bool {
        self.ahead.len() < RX_BURST
    }

    /// Finds room for `len` bytes in the chains that come next; returns how many these are. Takes more chains
    /// as needed, and uses none.
    #[inline]
    fn reserve(&mut self, len: usize, can_merge: bool) -> Result<usize, Refused> {
        loop {
            let mut room = 0;
            for (count, writable) in self.ahead.writable_lens().enumerate() {
                room += writable as usize;
                if room >= len {
                    return Ok(count + 1);
                }
                if !can_merge {
                    return Err(Refused::TooLong);
                }
            }
            if self.ahead.len() >= usize::from(self.vring.queue.size()) {
                // All the driver can give at once is not enough.
                return Err(Refused::TooLong);
            }
            let taken = self.vring.queue.take(&mut self.ahead, RX_BURST);
            self.is_starved = taken == Ok(0);
            match taken {
                Ok(0) => return Err(Refused::NoBuffer),
                Ok(_) => {}
                Err(error) => return Err(Refused::Failed(error)),
            }
        }
    }

    /// Writes header and frame to the next `count` chains, which have room for them.
    #[inline]
    fn write(
        &mut self,
        count: usize,
        header: HeaderBytes,
        data: GuestBuf<'_>,
        addresses: Option<(Mac, Mac)>,
    ) {
        self.is_dirty = true;
        if count != 1 || header.len != HDR_LEN {
            self.write_spread(count, header, data, addresses);
        } else if let Some(chain) = self.ahead.next() {
            let room = chain.writable();
            let start = room.advance(HDR_LEN);
            room.write_array(header.low.to_le_bytes());
            room.advance(8).write_array(header.high.to_le_bytes());
            let copied = data.copy_to(start);
            if let Some((dst, src)) = addresses {
                start.write_array((dst.bits() | src.bits() << 48).to_le_bytes());
                start.advance(8).write_array(((src.bits() >> 16) as u32).to_le_bytes());
            }
            self.vring.queue.complete(chain, (HDR_LEN + copied) as u32);
        }
    }

    /// As [`RxQueue::write`], for the frames that are not alike: spread over several chains, or with the header
    /// of a legacy driver.
    #[inline(never)]
    fn write_spread(
        &mut self,
        count: usize,
        header: HeaderBytes,
        data: GuestBuf<'_>,
        addresses: Option<(Mac, Mac)>,
    ) {
        let addresses = addresses.map(|(dst, src)| [dst.octets(), src.octets()].concat());
        let bytes = header.to_bytes();
        let mut header = Some(&bytes[..header.len]);
        let mut left = data;
        for _ in 0..count {
            let Some(chain) = self.ahead.next() else { break };
            let mut room = chain.writable();
            let mut written = 0;
            // The first chain begins with the header; a driver may give less room than that (it should not),
            // and then the header goes on in the next.
            if let Some(bytes) = header.take() {
                written += room.write(bytes);
                room = room.advance(written);
                if written < bytes.len() {
                    header = Some(&bytes[written..]);
                }
            }
            if header.is_none() {
                let at = data.len() - left.len();
                let copied = left.copy_to(room);
                if let Some(rest) = addresses.as_ref().and_then(|a| a.get(at..)) {
                    room.truncate(copied).write(rest);
                }
                left = left.advance(copied);
                written += copied;
            }
            self.vring.queue.complete(chain, written as u32);
        }
    }
}

/// The device, which the session and the worker share. A panic of either leaves it whole: no method does more
/// than set fields.
pub(crate) fn lock(device: &Mutex<NetDevice>) -> std::sync::MutexGuard<'_, NetDevice> {
    device.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
