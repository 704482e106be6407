//! A queue of a tap or a macvtap: frames over a file descriptor, each with a virtio-net header before it
//! (`IFF_VNET_HDR`), so that checksums and segmentation pass through.
//!
//! A frame is one system call. Bursts by `io_uring` cost more, a frame of 1514 bytes 860 ns and `writev` 815: the
//! kernel's work on a frame is many times that of entering it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use ringway_device::net::Offloads;
use ringway_memory::{GuestBuf, GuestSlice};
use ringway_spec::net::{
    F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_UFO, F_GUEST_USO4, F_GUEST_USO6, HDR_LEN,
    Header,
};
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::{UplinkError, UplinkSpec, macvtap, received, sys};
use crate::counters::Counters;
use crate::offload::MAX_FRAME;

/// Attaches to a tap, or creates it for as long as a process is attached. One file comes back if it is persistent and
/// has only one queue.
pub(super) fn open_tap(spec: &UplinkSpec, count: usize) -> Result<Vec<TapSource>, UplinkError> {
    let name = &spec.interface;
    let attach = |multi_queue| {
        let file = open_device(Path::new("/dev/net/tun")).map_err(UplinkError::OpenTun)?;
        sys::attach_tap(file.as_fd(), name, multi_queue)
            .map_err(|error| UplinkError::Attach { name: name.clone(), error })?;
        Ok(file)
    };
    let wants_several = count > 1;
    let mut files = match attach(wants_several) {
        // A persistent tap is attached to as it was made, for one queue or for several.
        Err(UplinkError::Attach { error, .. }) if error.raw_os_error() == Some(libc::EINVAL) => {
            vec![attach(!wants_several)?]
        }
        first => vec![first?],
    };
    let flags = sys::tap_flags(files[0].as_fd()).map_err(spec.setup("ask how the tap is attached"))?;
    while files.len() < count && flags & libc::IFF_MULTI_QUEUE != 0 {
        files.push(attach(true)?);
    }
    files.into_iter().map(|file| set_up(spec, file)).collect()
}

/// Attaches to a macvtap.
pub(super) fn open_macvtap(spec: &UplinkSpec, count: usize) -> Result<Vec<TapSource>, UplinkError> {
    let device = macvtap::Device::find(&spec.interface)?;
    let open = |_| {
        let file = device.open()?;
        sys::attach_tap(file.as_fd(), &spec.interface, count > 1)
            .map_err(spec.setup("have headers before the frames"))?;
        set_up(spec, file)
    };
    (0..count).map(open).collect()
}

fn set_up(spec: &UplinkSpec, file: OwnedFd) -> Result<TapSource, UplinkError> {
    sys::set_header_len(file.as_fd(), HDR_LEN).map_err(spec.setup("set the header's length"))?;
    set_offloads(file.as_fd(), Offloads::default(), false).map_err(spec.setup("set the offloads"))?;
    Ok(TapSource::new(file))
}

/// Opens a device that does not wait.
pub(super) fn open_device(path: &Path) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    options.open(path).map(OwnedFd::from)
}

/// Says which frames may be read, by any queue of the interface.
pub(super) fn set_offloads(file: BorrowedFd<'_>, receiver: Offloads, knows_uso: bool) -> io::Result<()> {
    // The kernel has one switch for UDP over both versions of IP.
    const USO: u64 = F_GUEST_USO4 | F_GUEST_USO6;
    let flags = [
        (F_GUEST_CSUM, libc::TUN_F_CSUM),
        (F_GUEST_TSO4, libc::TUN_F_TSO4),
        (F_GUEST_TSO6, libc::TUN_F_TSO6),
        (F_GUEST_ECN, libc::TUN_F_TSO_ECN),
        (F_GUEST_UFO, libc::TUN_F_UFO),
        (USO, if knows_uso { libc::TUN_F_USO4 | libc::TUN_F_USO6 } else { 0 }),
    ];
    let flags = flags.into_iter().filter(|(features, _)| receiver.acked() & features == *features);
    sys::set_offload(file, flags.map(|(_, flag)| flag).sum())
}

/// An attached file, read frame by frame.
pub(super) struct TapSource {
    pub(super) file: Arc<OwnedFd>,
    /// Room for a frame behind its header.
    buffer: Box<[u8]>,
}

impl TapSource {
    fn new(file: OwnedFd) -> Self {
        Self { file: file.into(), buffer: vec![0; HDR_LEN + MAX_FRAME].into() }
    }

    /// Goes on with a file that another process attached. The interface may have another name by now.
    pub(super) fn adopt(file: OwnedFd) -> io::Result<Self> {
        if sys::tap_flags(file.as_fd())? & sys::TAP_FLAGS != sys::TAP_FLAGS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self::new(file))
    }

    /// Reads up to `max` frames.
    pub(super) fn read(
        &mut self,
        max: usize,
        counters: &Counters,
        mut each: impl FnMut(Header, GuestBuf<'_>),
    ) -> io::Result<usize> {
        for count in 0..max {
            counters.syscalls.add(1);
            let len = match rustix::io::read(&self.file, &mut self.buffer[..]) {
                Ok(len) => len,
                Err(Errno::AGAIN) => return Ok(count),
                Err(errno) => return Err(errno.into()),
            };
            let (head, frame) = self.buffer[..len.max(HDR_LEN)].split_at_mut(HDR_LEN);
            let header = Header::read_from_bytes(head).unwrap_or_default();
            each(received(header), GuestBuf::new(&[GuestSlice::from_mut(frame)]));
        }
        Ok(max)
    }
}
