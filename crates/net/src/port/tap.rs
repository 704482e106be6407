//! A tap: a network interface of the host's kernel, frame by frame over a file descriptor, each with a
//! virtio-net header before it (`IFF_VNET_HDR`), so that checksums and segmentation pass through.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use ringway_device::net::Offloads;
use ringway_spec::net::{
    F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, GSO_NONE, HDR_F_NEEDS_CSUM, HDR_LEN, Header,
};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::counters::DropReason;
use crate::frame::Frame;
use crate::offload::MAX_FRAME;

/// Why there is no tap.
#[derive(Debug, Error)]
pub enum TapError {
    /// The name is no interface's name.
    #[error("{0:?} is not the name of an interface (1 to 15 characters, no slash)")]
    BadName(String),
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open /dev/net/tun: {0}")]
    Open(io::Error),
    /// The interface cannot be attached to.
    #[error(
        "cannot attach to tap {name}: {error} (create it with `ip tuntap add {name} mode tap vnet_hdr user $USER`, \
         or run as root)"
    )]
    Attach {
        /// The interface.
        name: String,
        /// The kernel's reason.
        error: io::Error,
    },
    /// The interface lacks something that this program needs.
    #[error("tap {name}: {what}: {error}")]
    Setup {
        /// The interface.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        error: io::Error,
    },
}

/// A tap that we are attached to.
pub struct Tap {
    file: File,
}

/// Room for a frame of a tap, behind its header.
pub(crate) struct TapBuffer(Box<[u8]>);

impl Default for TapBuffer {
    fn default() -> Self {
        Self(vec![0; HDR_LEN + MAX_FRAME].into())
    }
}

impl Tap {
    /// Attaches to the tap `name`, or creates it for as long as this process lives.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0']) {
            return Err(TapError::BadName(name.to_owned()));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options.open("/dev/net/tun").map_err(TapError::Open)?;
        sys::attach(&file, name).map_err(|error| TapError::Attach { name: name.to_owned(), error })?;
        let setup = |what| move |error| TapError::Setup { name: name.to_owned(), what, error };
        sys::set_header_len(&file, HDR_LEN).map_err(setup("cannot set the header's length"))?;
        let tap = Self { file };
        tap.set_offloads(Offloads::default()).map_err(setup("cannot set the offloads"))?;
        Ok(tap)
    }

    /// Goes on with a file that another process attached to a tap. It may have another name by now.
    ///
    /// # Errors
    /// The kernel's, if it is no such file; `InvalidInput` if it is attached otherwise than by [`Tap::open`].
    pub(crate) fn adopt(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        if sys::flags(&file)? & sys::FLAGS != sys::FLAGS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self { file })
    }

    /// Another file descriptor of it, for another process.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// Says which frames may be read from the tap: with partial checksums, to be segmented.
    pub(crate) fn set_offloads(&self, receiver: Offloads) -> io::Result<()> {
        let mut flags = 0;
        for (feature, flag) in [
            (F_GUEST_CSUM, libc::TUN_F_CSUM),
            (F_GUEST_TSO4, libc::TUN_F_TSO4),
            (F_GUEST_TSO6, libc::TUN_F_TSO6),
            (F_GUEST_ECN, libc::TUN_F_TSO_ECN),
        ] {
            if receiver.acked() & feature != 0 {
                flags |= flag;
            }
        }
        sys::set_offload(&self.file, flags)
    }

    /// Reads a frame, if there is one, and its header.
    pub(crate) fn read<'b>(&self, buffer: &'b mut TapBuffer) -> io::Result<Option<(Header, &'b mut [u8])>> {
        let len = match (&self.file).read(&mut buffer.0) {
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        };
        let (head, frame) = buffer.0.split_at_mut(HDR_LEN);
        let Ok(mut header) = Header::read_from_bytes(head) else { return Ok(None) };
        // The kernel also tells what it has verified (DATA_VALID); a frame that goes to several receivers
        // carries only what they all must know.
        header.flags &= HDR_F_NEEDS_CSUM;
        header.num_buffers = 0.into();
        Ok(Some((header, &mut frame[..len.saturating_sub(HDR_LEN)])))
    }

    /// Writes a frame from where it is, in one system call.
    pub(crate) fn write(&self, frame: &Frame<'_>) -> Result<(), DropReason> {
        let mut header = frame.header.unwrap_or_default();
        header.num_buffers = 0.into();
        if header.gso_type != GSO_NONE {
            // The driver's hint may be wrong; the kernel wants at least the headers up to the checksum.
            let least = header.csum_start.get().saturating_add(header.csum_offset.get()).saturating_add(2);
            header.hdr_len = header.hdr_len.get().max(least).into();
        }
        let mut head = [0; HDR_LEN + 16];
        head[..HDR_LEN].copy_from_slice(header.as_bytes());
        head[HDR_LEN..].copy_from_slice(&frame.prefix.to_bytes());
        let head = &mut head[..HDR_LEN + frame.prefix.len()];
        match ringway_memory::io::write_frame(self.file.as_fd(), head, frame.data) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(DropReason::NoBuffer),
            // The interface is down, or deleted.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EBADFD)) => Err(DropReason::NotReady),
            Err(_) => Err(DropReason::Malformed),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The ioctls of `/dev/net/tun`.
#[allow(unsafe_code, reason = "ioctls have no safe wrapper in a crate we use")]
mod sys {
    use super::{AsRawFd, File, io};

    /// Ethernet frames, each with a header of virtio-net and no other.
    pub(super) const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

    pub(super) fn attach(file: &File, name: &str) -> io::Result<()> {
        // SAFETY: all-zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
        // SAFETY: TUNSETIFF reads an `ifreq`, which lives for the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
    }

    /// How it is attached.
    pub(super) fn flags(file: &File) -> io::Result<libc::c_int> {
        // SAFETY: all-zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes an `ifreq`, which lives for the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: TUNGETIFF fills in the flags; any bits are a number.
        Ok(unsafe { request.ifr_ifru.ifru_flags }.into())
    }

    pub(super) fn set_header_len(file: &File, len: usize) -> io::Result<()> {
        let len = i32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: TUNSETVNETHDRSZ reads an int, which lives for the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
    }

    pub(super) fn set_offload(file: &File, flags: libc::c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
    }

    fn check(result: libc::c_int) -> io::Result<()> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
