//! The network driver (5.1).
//!
//! ```text
//!   Net ──┬── Device       negotiation, configuration: address, MTU, link
//!         ├── control      commands: filters, pairs, offloads; each waits for its answer
//!         └── Pair, …  ─┬─ rx: Receiver      device ──► Received ──► recycle
//!                       └─ tx: Transmitter   frame ──► submit ──► device
//! ```
//!
//! Frames go in bursts: what is received, given back and sent is shown to the device by a flush, with one kick at most. The data
//! path allocates nothing, and copies nothing but for who wants a copy ([`Receiver::receive`], [`Transmitter::send`]):
//! [`Receiver::next`] hands the frame over where it is, and [`Transmitter::exchange`] takes it from there.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use ringway_driver::net::{self, Net, Offload};
//! # use ringway_driver::{Error, Platform, Transport};
//! /// Answers every frame with itself, addresses exchanged.
//! fn echo<T: Transport>(transport: T, platform: Arc<dyn Platform>, random: [u8; 6]) -> Result<(), Error> {
//!     let mut net = Net::new(transport, platform, &net::Options { random, ..Default::default() })?;
//!     let pair = net.pair(0);
//!     loop {
//!         while let Some(mut received) = pair.rx.next()? {
//!             let mut header = [0; 12];
//!             received.frame.read(0, &mut header);
//!             header.rotate_left(6);
//!             received.frame.write(0, &header);
//!             // The frame is sent from where it came to, and another buffer takes its place.
//!             let room = pair.tx.exchange(received.frame, &Offload::None);
//!             pair.rx.recycle(room.unwrap_or_else(|not_sent| not_sent.frame));
//!         }
//!         pair.rx.flush();
//!         pair.tx.flush();
//!         if !pair.rx.arm() {
//!             // Sleep until there is an interrupt, and ask `net.interrupt()` what it is about.
//!         }
//!         pair.rx.suppress();
//!     }
//! }
//! ```
//!
//! What a device says is checked: a header that was not negotiated or contradicts its frame costs the frame, which is
//! [counted](Receiver::dropped). The rest is the stack's: the pseudo-header's sum of a partial checksum, what is in a frame, and
//! whether a checksum of which nothing is known is right.
//!
//! Not negotiated are reports of hashes, fragments of UDP datagrams (`UFO`), tunnels, `IPsec`, flow filters,
//! coalescing of notifications, statistics, and standby devices.
#![forbid(unsafe_code)]

mod control;
mod frame;
mod header;
mod receive;
mod transmit;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::offset_of;

use ringway_spec::net::{
    Config, DEVICE_ID, DUPLEX_FULL, DUPLEX_HALF, F_CSUM, F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX,
    F_CTRL_RX_EXTRA, F_CTRL_VLAN, F_CTRL_VQ, F_GUEST_ANNOUNCE, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_HDRLEN,
    F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO,
    F_MAC, F_MQ, F_MRG_RXBUF, F_MTU, F_RSS, F_SPEED_DUPLEX, F_STATUS, HDR_LEN, MQ_PAIRS_MAX, MQ_PAIRS_MIN,
    MTU_MIN, S_ANNOUNCE, S_LINK_UP, SPEED_MAX,
};

pub use self::control::{Mode, Rss, RssLimits};
pub use self::frame::Frame;
pub use self::header::{Checksum, Kind, Offload, Partial, Segments, Unsendable};
pub use self::receive::{Dropped, Received, Receiver};
pub use self::transmit::{NotSent, SendError, Transmitter};

use self::control::Control;
use self::frame::MAX_BUFFERS;
use self::header::Format;
use crate::{Device, Error, Interrupt, Platform, QueueOptions, Transport, Wanted};

/// A cache line.
const LINE: usize = 64;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Features that ask nothing of the network stack: frames come as they would from a wire.
pub const PLAIN: u64 = F_MAC
    | F_STATUS
    | F_MTU
    | F_SPEED_DUPLEX
    | F_MRG_RXBUF
    | F_CSUM
    | F_CTRL_VQ
    | F_CTRL_RX
    | F_CTRL_RX_EXTRA
    | F_CTRL_VLAN
    | F_CTRL_MAC_ADDR
    | F_GUEST_ANNOUNCE
    | F_MQ
    | F_RSS;
/// Frames may be given to the device to be segmented.
pub const SEND_SEGMENTS: u64 = F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | F_HOST_USO | F_GUEST_HDRLEN;
/// Frames may come with a [partial](Checksum::Partial) checksum, or a checked one.
pub const RECEIVE_CHECKSUMS: u64 = F_GUEST_CSUM | F_CTRL_GUEST_OFFLOADS;
/// Frames may come that stand for several [segments](Segments); with [`RECEIVE_CHECKSUMS`].
pub const RECEIVE_SEGMENTS: u64 = F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_USO4 | F_GUEST_USO6;

const UNDERSTOOD: u64 = PLAIN | SEND_SEGMENTS | RECEIVE_CHECKSUMS | RECEIVE_SEGMENTS;

/// Features and what each requires one of (5.1.3.1).
const REQUIRES: &[(u64, u64)] = &[
    (F_GUEST_TSO4, F_GUEST_CSUM),
    (F_GUEST_TSO6, F_GUEST_CSUM),
    (F_GUEST_ECN, F_GUEST_TSO4 | F_GUEST_TSO6),
    (F_GUEST_USO4, F_GUEST_CSUM),
    (F_GUEST_USO6, F_GUEST_CSUM),
    (F_HOST_TSO4, F_CSUM),
    (F_HOST_TSO6, F_CSUM),
    (F_HOST_ECN, F_HOST_TSO4 | F_HOST_TSO6),
    (F_HOST_USO, F_CSUM),
    (F_CTRL_RX, F_CTRL_VQ),
    (F_CTRL_RX_EXTRA, F_CTRL_VQ),
    (F_CTRL_VLAN, F_CTRL_VQ),
    (F_CTRL_MAC_ADDR, F_CTRL_VQ),
    (F_CTRL_GUEST_OFFLOADS, F_CTRL_VQ),
    (F_GUEST_ANNOUNCE, F_CTRL_VQ),
    (F_MQ, F_CTRL_VQ),
    (F_RSS, F_CTRL_VQ),
];

/// How a device shall be used.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Features to accept if they are offered: [`PLAIN`], and what the stack can do.
    pub features: u64,
    /// Features of any kind that are not to be accepted, as of the rings.
    pub without: u64,
    /// The most descriptors of each queue for frames.
    pub queue_size: u16,
    /// The most pairs of queues to set up; one is in use until [`Net::set_pairs`] says otherwise.
    pub pairs: u16,
    /// The longest IP packets, in bytes, if the device does not say (`MTU`).
    pub mtu: u16,
    /// The size of buffers, where a received frame may be spread over several (`MRG_RXBUF`). Else, or if so many do not
    /// go together, they are as long as need be.
    pub buffer_len: u32,
    /// Random bytes: a locally administered address is made of them if the device has none.
    pub random: [u8; 6],
    /// The interrupt of each queue by its index, where there are several (MSI-X).
    pub vector: fn(u16) -> Option<u16>,
    /// The interrupt for changes of the configuration, where there are several.
    pub config_vector: Option<u16>,
}

impl Default for Options {
    /// One pair of 256 descriptors each, frames of 1500 bytes as from a wire, no interrupts of their own.
    fn default() -> Self {
        Self {
            features: PLAIN,
            without: 0,
            queue_size: 256,
            pairs: 1,
            mtu: 1500,
            buffer_len: 1600,
            random: [0; 6],
            vector: |_| None,
            config_vector: None,
        }
    }
}

/// A pair of queues for frames. The two have nothing to do with each other.
pub struct Pair<N> {
    /// Frames from the device.
    pub rx: Receiver<N>,
    /// Frames to it.
    pub tx: Transmitter<N>,
}

/// The link, as the device says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Frames can pass. So it is if the device does not say.
    pub is_up: bool,
    /// In Mbit/s, if it is known.
    pub speed: Option<u32>,
    /// Whether frames can pass both ways at once, if it is known.
    pub is_full_duplex: Option<bool>,
}

/// What has changed, by an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Queues may have something: see [`Receiver::has_work`].
    pub queues: bool,
    /// The link is another now.
    pub link: Option<Link>,
    /// The device may be elsewhere in its network. Tell it where, by a frame from the own address to all, and then the
    /// device that that was done: [`Net::announced`].
    pub announce: bool,
}

/// A network device. Dropped, it is reset.
pub struct Net<T: Transport> {
    // The device goes first: it is reset before what it may write to is freed.
    device: Device<T>,
    control: Option<Control<T::Notifier>>,
    pairs: Vec<Pair<T::Notifier>>,
    /// Pairs in use.
    active: u16,
    mac: Mac,
    format: Format,
    link: Link,
    rss_limits: RssLimits,
}

impl<T: Transport> Net<T> {
    /// Sets the device up, and lends it buffers to receive into.
    ///
    /// # Errors
    /// Those of [`Device::set_up`]; [`Error::BadConfig`] if the device says what cannot be.
    pub fn new(transport: T, platform: Arc<dyn Platform>, options: &Options) -> Result<Self, Error> {
        let several = if options.pairs > 1 { 0 } else { F_MQ | F_RSS };
        let wanted = Wanted {
            id: DEVICE_ID,
            features: UNDERSTOOD & options.features & !several,
            required: 0,
            requires: REQUIRES,
            without: options.without,
        };
        let (device, (facts, parts)) = Device::set_up(transport, platform, &wanted, |device| {
            let facts = Facts::read(device, options)?;
            let parts = Parts::new(device, &facts, options)?;
            Ok((facts, parts))
        })?;
        let Parts { pairs, control } = parts;
        let Facts { mac, format, link, rss_limits, .. } = facts;
        let mut net = Self { device, control, pairs, active: 0, mac, format, link, rss_limits };
        net.activate(1);
        net.pairs.iter_mut().for_each(|pair| pair.rx.flush());
        Ok(net)
    }

    /// The negotiated features.
    pub fn features(&self) -> u64 {
        self.device.features()
    }

    /// The device's address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Bytes of the longest IP packet.
    pub fn mtu(&self) -> u16 {
        self.format.mtu
    }

    /// The link, as it was when the device was last asked.
    pub fn link(&self) -> Link {
        self.link
    }

    /// What the device can do of receive-side scaling; nothing without `RSS`.
    pub fn rss_limits(&self) -> RssLimits {
        self.rss_limits
    }

    /// A pair of queues.
    ///
    /// # Panics
    /// If there are not so many: see [`Net::pairs_mut`].
    pub fn pair(&mut self, number: usize) -> &mut Pair<T::Notifier> {
        &mut self.pairs[number]
    }

    /// All pairs that were set up, as for several threads.
    pub fn pairs_mut(&mut self) -> &mut [Pair<T::Notifier>] {
        &mut self.pairs
    }

    /// How many pairs are in use.
    pub fn active_pairs(&self) -> u16 {
        self.active
    }

    /// The way to the device.
    pub fn transport_mut(&mut self) -> &mut T {
        self.device.transport_mut()
    }

    /// What the interrupt that has come is about. It is acknowledged with this.
    ///
    /// # Errors
    /// [`Error::NeedsReset`] if the device has failed.
    pub fn interrupt(&mut self) -> Result<Change, Error> {
        let interrupt = self.device.interrupt()?;
        let queues = interrupt.contains(Interrupt::QUEUE);
        if interrupt.contains(Interrupt::CONFIG) {
            Ok(Change { queues, ..self.config_changed()? })
        } else {
            Ok(Change { queues, link: None, announce: false })
        }
    }

    /// What is another in the configuration: where changes have an interrupt of their own.
    ///
    /// # Errors
    /// [`Error::NeedsReset`] if the device has failed.
    pub fn config_changed(&mut self) -> Result<Change, Error> {
        self.device.check()?;
        let (link, announce) = read_link(&mut self.device)?;
        let before = core::mem::replace(&mut self.link, link);
        Ok(Change { queues: false, link: (link != before).then_some(link), announce })
    }

    /// Stops the device, and gives its memory back.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the device is not reset.
    pub fn stop(self) -> Result<T, Error> {
        let Self { device, control, pairs, .. } = self;
        let stopped = device.stop()?;
        for Pair { rx, tx } in pairs {
            rx.into_queue().retire(&stopped);
            tx.into_queue().retire(&stopped);
        }
        if let Some(control) = control {
            control.into_queue().retire(&stopped);
        }
        Ok(stopped.into_transport())
    }
}

/// What the configuration says once and for all.
struct Facts {
    mac: Mac,
    format: Format,
    link: Link,
    /// The most pairs that the device has.
    max_pairs: u16,
    rss_limits: RssLimits,
}

impl Facts {
    fn read<T: Transport>(device: &mut Device<T>, options: &Options) -> Result<Self, Error> {
        let features = device.features();
        let has = |feature| features & feature != 0;
        let (mac, max_pairs, mtu, rss_limits) = device.config(|config| {
            let mac = has(F_MAC).then(|| config.bytes(offset_of!(Config, mac))).transpose()?;
            let pairs =
                has(F_MQ | F_RSS).then(|| config.u16(offset_of!(Config, max_virtqueue_pairs))).transpose()?;
            let mtu = has(F_MTU).then(|| config.u16(offset_of!(Config, mtu))).transpose()?;
            let rss = has(F_RSS).then(|| {
                Ok::<_, Error>(RssLimits {
                    key_len: config.u8(offset_of!(Config, rss_max_key_size))?,
                    table_len: config.u16(offset_of!(Config, rss_max_indirection_table_length))?,
                    hash_types: config.u32(offset_of!(Config, supported_hash_types))?,
                })
            });
            Ok((mac, pairs.unwrap_or(1), mtu, rss.transpose()?.unwrap_or_default()))
        })?;
        if !(MQ_PAIRS_MIN..=MQ_PAIRS_MAX).contains(&max_pairs) {
            return Err(Error::BadConfig { what: "number of queue pairs" });
        }
        if mtu.is_some_and(|mtu| mtu < MTU_MIN) {
            return Err(Error::BadConfig { what: "MTU" });
        }
        let mut local = options.random;
        local[0] = local[0] & !1 | 2;
        let format = Format::new(features, mtu.unwrap_or(options.mtu));
        let (link, _) = read_link(device)?;
        Ok(Self { mac: mac.unwrap_or(local), format, link, max_pairs, rss_limits })
    }
}

/// The link, and whether the driver shall announce itself.
fn read_link<T: Transport>(device: &mut Device<T>) -> Result<(Link, bool), Error> {
    let features = device.features();
    let has = |feature| features & feature != 0;
    device.config(|config| {
        let status = if has(F_STATUS) { config.u16(offset_of!(Config, status))? } else { S_LINK_UP };
        let mut link = Link { is_up: status & S_LINK_UP != 0, speed: None, is_full_duplex: None };
        if has(F_SPEED_DUPLEX) {
            link.speed = Some(config.u32(offset_of!(Config, speed))?).filter(|speed| *speed <= SPEED_MAX);
            link.is_full_duplex = match config.u8(offset_of!(Config, duplex))? {
                DUPLEX_HALF => Some(false),
                DUPLEX_FULL => Some(true),
                _ => None,
            };
        }
        Ok((link, has(F_GUEST_ANNOUNCE) && status & S_ANNOUNCE != 0))
    })
}

/// The queues.
struct Parts<N> {
    pairs: Vec<Pair<N>>,
    control: Option<Control<N>>,
}

impl<N: crate::Notify> Parts<N> {
    fn new<T: Transport<Notifier = N>>(
        device: &mut Device<T>,
        facts: &Facts,
        options: &Options,
    ) -> Result<Self, Error> {
        device.transport_mut().set_config_vector(options.config_vector)?;
        let count = options.pairs.clamp(1, facts.max_pairs);
        let pairs = (0..count).map(|pair| new_pair(device, pair, facts.format, options));
        let pairs = pairs.collect::<Result<_, _>>()?;
        let control = device.has(F_CTRL_VQ).then(|| {
            let index = 2 * facts.max_pairs;
            Control::new(device, index, (options.vector)(index))
        });
        Ok(Self { pairs, control: control.transpose()? })
    }
}

fn new_pair<T: Transport>(
    device: &mut Device<T>,
    pair: u16,
    format: Format,
    options: &Options,
) -> Result<Pair<T::Notifier>, Error> {
    let queue = |index| QueueOptions {
        max_size: options.queue_size,
        table_entries: 0,
        vector: (options.vector)(index),
    };
    let rx = device.queue(2 * pair, queue(2 * pair))?;
    let size = rx.queue().size().into();
    let len = buffer_len(format, size, options, device.has(F_MRG_RXBUF));
    let rx = Receiver::new(rx, format, device.buffers(size, len)?);
    let tx = device.queue(2 * pair + 1, queue(2 * pair + 1))?;
    let size = tx.queue().size().into();
    let tx = Transmitter::new(tx, format, device.buffers(size, len)?);
    Ok(Pair { rx, tx })
}

/// How long buffers are (5.1.6.3.1): so that the longest frame goes into one, or into as many as may go together.
fn buffer_len(format: Format, queue_size: usize, options: &Options, is_merged: bool) -> u32 {
    let longest = format.max_received();
    let len = if is_merged {
        let least = longest.div_ceil(queue_size.min(MAX_BUFFERS));
        least.max(options.buffer_len as usize).clamp(HDR_LEN, longest)
    } else {
        longest
    };
    // An odd number of cache lines, so that the frames' beginnings are not all in the same few sets of the cache.
    ((len.div_ceil(LINE) | 1) * LINE) as u32
}
