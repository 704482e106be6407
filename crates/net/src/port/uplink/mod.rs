//! Uplinks: ports whose frames go to the host's kernel and come from there.
//!
//! ```text
//!   Uplink (control thread)                      worker 0            worker 1
//!     tap:IFNAME      a tap of this host     ┌─► UplinkReader    ┌─► UplinkReader    …    one each, nothing shared
//!     macvtap:IFNAME  a macvtap              │   UplinkWriter    │   UplinkWriter
//!     packet:IFNAME   any interface ─────────┴───────────────────┘
//! ```
//!
//! The kernel chooses by a frame's flow whose queue it comes to. Whoever reads it, a header of virtio-net is before it:
//! checksums are completed and segments cut where they have to be, and nowhere before.
//!
//! Not here: which frames go to an uplink, and whether a reader can take what comes (`offload`).

mod macvtap;
mod packet;
mod sys;
mod tap;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::Arc;

use ringway_device::net::Offloads;
use ringway_memory::{GuestBuf, PACKET_HDR_LEN};
use ringway_spec::net::{GSO_NONE, GSO_UDP_L4, HDR_F_NEEDS_CSUM, HDR_LEN, Header};
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::counters::{Counters, DropReason};
use crate::frame::{Frame, Mac};
use packet::PacketSource;
use tap::TapSource;

/// The most bytes that come before those of a frame's sender.
const MAX_PREFIX: usize = 16;

/// Why there is no uplink.
#[derive(Debug, Error)]
pub enum UplinkError {
    /// The name is no interface's name.
    #[error("{0:?} is not the name of an interface (1 to 15 characters, no slash)")]
    BadName(String),
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open /dev/net/tun: {0}")]
    OpenTun(io::Error),
    /// The tap cannot be attached to.
    #[error(
        "cannot attach to tap {name}: {error} (create it with `ip tuntap add {name} mode tap vnet_hdr multi_queue user \
         $USER`, or run as root)"
    )]
    Attach {
        /// The interface.
        name: String,
        /// The kernel's reason.
        error: io::Error,
    },
    /// The interface is not there, or no macvtap.
    #[error(
        "{name} is not a macvtap of this network namespace (create it with `ip link add link ETH name {name} type \
         macvtap mode bridge`)"
    )]
    NoMacvtap {
        /// The interface.
        name: String,
    },
    /// The macvtap's device cannot be opened.
    #[error("cannot open {path}, the device of macvtap {name}: {error} (it has to be yours, or run as root)")]
    OpenMacvtap {
        /// The interface.
        name: String,
        /// The device.
        path: String,
        /// The kernel's reason.
        error: io::Error,
    },
    /// A packet socket cannot be had.
    #[error("cannot open a packet socket on {name}: {error} (it takes the capability CAP_NET_RAW, or root)")]
    Socket {
        /// The interface.
        name: String,
        /// The kernel's reason.
        error: io::Error,
    },
    /// The interface, or the kernel, lacks something that this program needs.
    #[error("uplink {uplink}: cannot {what}: {error}")]
    Setup {
        /// The uplink.
        uplink: UplinkSpec,
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        error: io::Error,
    },
}

/// What kind of uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UplinkKind {
    /// A tap, created if there is none of this name.
    Tap,
    /// A macvtap that is there.
    Macvtap,
    /// A packet socket on any interface.
    Packet,
}

impl UplinkKind {
    const ALL: [Self; 3] = [Self::Tap, Self::Macvtap, Self::Packet];

    fn name(self) -> &'static str {
        match self {
            Self::Tap => "tap",
            Self::Macvtap => "macvtap",
            Self::Packet => "packet",
        }
    }
}

/// Which uplink: `tap:IFNAME`, `macvtap:IFNAME`, `packet:IFNAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkSpec {
    /// What kind.
    pub kind: UplinkKind,
    /// The interface.
    pub interface: String,
}

impl FromStr for UplinkSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, interface) = text.split_once(':').unwrap_or((text, ""));
        let kind = UplinkKind::ALL.into_iter().find(|k| k.name() == kind);
        let kind = kind.ok_or("it is tap:IFNAME, macvtap:IFNAME or packet:IFNAME")?;
        if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || interface.contains(['/', '\0']) {
            return Err(UplinkError::BadName(interface.to_owned()).to_string());
        }
        Ok(Self { kind, interface: interface.to_owned() })
    }
}

impl fmt::Display for UplinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.interface)
    }
}

impl UplinkSpec {
    /// The address of the interface, which a macvtap takes frames for.
    ///
    /// # Errors
    /// The kernel's, if there is no such interface.
    pub fn mac(&self) -> Result<Mac, UplinkError> {
        sys::mac(&self.interface).map_err(self.setup("ask for the interface's MAC address"))
    }

    /// Gives the interface an address.
    ///
    /// # Errors
    /// The kernel's: few interfaces take another while they are up.
    pub fn set_mac(&self, mac: Mac) -> Result<(), UplinkError> {
        sys::set_mac(&self.interface, mac).map_err(self.setup("set the interface's MAC address"))
    }

    fn setup(&self, what: &'static str) -> impl Fn(io::Error) -> UplinkError {
        move |error| UplinkError::Setup { uplink: self.clone(), what, error }
    }
}

/// An open uplink.
pub struct Uplink {
    /// At most one for each worker; a tap may have fewer.
    readers: Vec<UplinkReader>,
    writer: UplinkWriter,
}

impl Uplink {
    /// Opens it, with a queue for each of `count` workers.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub fn open(spec: &UplinkSpec, count: usize) -> Result<Self, UplinkError> {
        let sources: Vec<_> = match spec.kind {
            UplinkKind::Tap => tap::open_tap(spec, count)?.into_iter().map(Source::Tap).collect(),
            UplinkKind::Macvtap => tap::open_macvtap(spec, count)?.into_iter().map(Source::Tap).collect(),
            UplinkKind::Packet => packet::open(spec, count)?.into_iter().map(Source::Packet).collect(),
        };
        Self::new(sources).map_err(spec.setup("use it without a queue"))
    }

    /// Goes on with the queues of another process, each a file and where it stands.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` if a file is of another kind than the uplink, or there is none.
    pub(crate) fn adopt(
        kind: UplinkKind,
        files: impl IntoIterator<Item = (OwnedFd, usize)>,
    ) -> io::Result<Self> {
        let adopt = |(file, position): (OwnedFd, usize)| match kind {
            UplinkKind::Tap | UplinkKind::Macvtap => TapSource::adopt(file).map(Source::Tap),
            UplinkKind::Packet => PacketSource::adopt(file, position).map(Source::Packet),
        };
        Self::new(files.into_iter().map(adopt).collect::<io::Result<_>>()?)
    }

    fn new(sources: Vec<Source>) -> io::Result<Self> {
        let first = sources.first().ok_or(io::ErrorKind::InvalidInput)?;
        let writer =
            UplinkWriter { file: Arc::clone(first.file()), kind: first.kind(), knows_uso: sys::knows_uso() };
        let readers = sources.into_iter().enumerate();
        let readers = readers.map(|(i, source)| UplinkReader { source, is_ready: true, tells: i == 0 });
        Ok(Self { readers: readers.collect(), writer })
    }

    /// Says which frames may be read, as far as the kernel can change them before: with partial checksums, to be
    /// segmented. A packet socket shows what the interface got.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn set_offloads(&self, receiver: Offloads) -> io::Result<()> {
        self.writer.set_offloads(receiver)
    }

    /// What each of `count` workers has of it. Workers without a queue of their own write to another's.
    pub(crate) fn divide(self, count: usize) -> Vec<(Option<UplinkReader>, UplinkWriter)> {
        let mut readers = self.readers.into_iter();
        // More queues than workers, after an upgrade, are closed: the kernel chooses among the others.
        let queues = (0..count).map(|_| {
            let reader = readers.next();
            let file = reader.as_ref().map_or(&self.writer.file, |reader| reader.source.file());
            let writer = UplinkWriter { file: Arc::clone(file), ..self.writer };
            (reader, writer)
        });
        queues.collect()
    }
}

impl AsFd for Uplink {
    /// Its first queue.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.writer.file.as_fd()
    }
}

/// Where a worker reads the frames of an uplink.
pub(crate) struct UplinkReader {
    source: Source,
    /// There may be something to read.
    is_ready: bool,
    /// What befalls the interface is seen by all queues, and told by one.
    tells: bool,
}

enum Source {
    Tap(TapSource),
    Packet(PacketSource),
}

impl Source {
    fn file(&self) -> &Arc<OwnedFd> {
        match self {
            Self::Tap(tap) => &tap.file,
            Self::Packet(packet) => &packet.socket,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Tap(_) => Kind::Tap,
            Self::Packet(_) => Kind::Packet,
        }
    }
}

impl UplinkReader {
    /// What becomes readable when there may be frames. Who watches for that calls [`UplinkReader::set_ready`].
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.file().as_fd()
    }

    /// There may be something to read.
    pub(crate) fn set_ready(&mut self) {
        self.is_ready = true;
    }

    /// Whether it takes a system call to see that there is something to read.
    pub(crate) fn needs_look(&self) -> bool {
        matches!(self.source, Source::Tap(_))
    }

    /// Whether there may be something to read.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        match &self.source {
            Source::Tap(_) => self.is_ready,
            Source::Packet(packet) => self.is_ready || packet.has_frame(),
        }
    }

    /// Reads up to `max` frames; returns how many there were. Each call of `each` gets one.
    ///
    /// # Errors
    /// The interface is down or gone, which is told once.
    pub(crate) fn read(
        &mut self,
        max: usize,
        counters: &Counters,
        each: impl FnMut(Header, GuestBuf<'_>),
    ) -> io::Result<usize> {
        let result = match &mut self.source {
            Source::Tap(tap) => tap.read(max, counters, each),
            Source::Packet(packet) => packet.read(max, counters, each),
        };
        self.is_ready = matches!(result, Ok(count) if count == max);
        if self.tells { result } else { Ok(result.unwrap_or_default()) }
    }

    /// Its file for another process, and where it stands there.
    pub(crate) fn file(&self) -> io::Result<(OwnedFd, usize)> {
        let position = match &self.source {
            Source::Tap(_) => 0,
            Source::Packet(packet) => packet.position(),
        };
        Ok((self.as_fd().try_clone_to_owned()?, position))
    }
}

/// How frames are sent by an uplink.
pub(crate) struct UplinkWriter {
    file: Arc<OwnedFd>,
    kind: Kind,
    /// The kernel segments UDP.
    knows_uso: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Tap,
    Packet,
}

impl UplinkWriter {
    /// See [`Uplink::set_offloads`].
    pub(crate) fn set_offloads(&self, receiver: Offloads) -> io::Result<()> {
        match self.kind {
            Kind::Tap => tap::set_offloads(self.file.as_fd(), receiver, self.knows_uso),
            Kind::Packet => Ok(()),
        }
    }

    /// Whether the kernel takes a frame with this header as it is.
    pub(crate) fn takes(&self, header: Option<Header>) -> bool {
        self.knows_uso || header.is_none_or(|header| header.gso_type != GSO_UDP_L4)
    }

    /// Writes a frame from where it is, in one system call.
    pub(crate) fn write(&self, frame: &Frame<'_>) -> Result<(), DropReason> {
        let header = sent(frame.header.unwrap_or_default());
        let header_len = match self.kind {
            Kind::Tap => HDR_LEN,
            Kind::Packet => PACKET_HDR_LEN,
        };
        let mut head = [0; HDR_LEN + MAX_PREFIX];
        head[..header_len].copy_from_slice(&header.as_bytes()[..header_len]);
        head[header_len..header_len + MAX_PREFIX].copy_from_slice(&frame.prefix.to_bytes());
        let head_len = header_len + frame.prefix.len();
        match ringway_memory::io::write_frame(self.file.as_fd(), &mut head[..head_len], frame.data) {
            Ok(_) => Ok(()),
            Err(error) => Err(reason(&error)),
        }
    }
}

/// The header as the kernel is to have it.
fn sent(mut header: Header) -> Header {
    header.num_buffers = 0.into();
    if header.gso_type != GSO_NONE {
        // The driver's hint may be wrong; the kernel wants at least the headers up to the checksum.
        let least = header.csum_start.get().saturating_add(header.csum_offset.get()).saturating_add(2);
        header.hdr_len = header.hdr_len.get().max(least).into();
    }
    header
}

/// A header as the kernel gave it.
fn received(mut header: Header) -> Header {
    // The kernel also tells what it has verified (DATA_VALID); a frame that goes to several receivers carries only
    // what they all must know.
    header.flags &= HDR_F_NEEDS_CSUM;
    header.num_buffers = 0.into();
    header
}

/// Why the kernel did not take a frame.
fn reason(error: &io::Error) -> DropReason {
    match error.raw_os_error().unwrap_or_default() {
        libc::EAGAIN | libc::ENOBUFS => DropReason::NoBuffer,
        // The interface is down, or deleted.
        libc::EIO | libc::EBADFD | libc::ENETDOWN | libc::ENXIO | libc::ENODEV | libc::ENOLINK => {
            DropReason::NotReady
        }
        libc::EMSGSIZE => DropReason::TooLong,
        _ => DropReason::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplinks_are_named() {
        for (text, kind) in [
            ("tap:tap0", UplinkKind::Tap),
            ("macvtap:m", UplinkKind::Macvtap),
            ("packet:a23456789012345", UplinkKind::Packet),
        ] {
            let spec: UplinkSpec = text.parse().unwrap();
            assert_eq!((spec.kind, spec.to_string().as_str()), (kind, text));
        }
        for wrong in ["", "tap", "tap:", "tap0", "bridge:br0", "tap:a/b", "packet:a234567890123456", "tap:\0"]
        {
            assert!(wrong.parse::<UplinkSpec>().is_err(), "{wrong}");
        }
    }
}
