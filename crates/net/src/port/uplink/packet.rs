//! A packet socket on an interface of any kind: a network card, a virtual function of one, a macvlan, a veth.
//!
//! ```text
//!   interface ──► fanout by flow ─┬─► ring ─► worker 0        no system call, no copy but the kernel's
//!                                 └─► ring ─► worker 1
//!   interface ◄── writev ◄─────────── any worker              the kernel copies from the guest's memory
//! ```
//!
//! The interface is promiscuous as long as the socket is open; what the host itself sends by it is not seen here. To read
//! from a ring takes half the time of `recvmmsg` (450 ns a frame of 1514 bytes, 880); a ring to send by would save no
//! copy. Around the queueing disciplines (`PACKET_QDISC_BYPASS`) it is no faster either.
//!
//! An interface that goes down takes and gives no frames until it is up again; the socket stays.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ringway_memory::{GuestBuf, PacketRing};
use ringway_spec::net::{HDR_F_NEEDS_CSUM, HDR_LEN, Header};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::{UplinkError, UplinkSpec, received, sys};
use crate::counters::{Counters, DropReason};

/// What may wait to be sent, in bytes: a burst of the longest frames. The default is three of them.
const SEND_BUFFER: usize = 4 << 20;

/// Opens a socket for each of `count` workers.
pub(super) fn open(spec: &UplinkSpec, count: usize) -> Result<Vec<PacketSource>, UplinkError> {
    let index = sys::index(&spec.interface).map_err(spec.setup("find the interface"))?;
    let open = |_| open_one(spec, index.cast_signed());
    let mut sources = (0..count).map(open).collect::<Result<Vec<_>, _>>()?;
    if count > 1 {
        join(&sources).map_err(spec.setup("spread frames over several sockets"))?;
        // Until then each socket was shown every frame.
        for source in &mut sources {
            while source.ring.next_frame().is_some() {}
        }
    }
    Ok(sources)
}

fn open_one(spec: &UplinkSpec, index: i32) -> Result<PacketSource, UplinkError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Of no protocol: it gets nothing before it is bound.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
        .map_err(|e| UplinkError::Socket { name: spec.interface.clone(), error: e.into() })?;
    let fd = socket.as_fd();
    sys::set_option(fd, libc::PACKET_VNET_HDR, &1_i32)
        .map_err(spec.setup("have headers before the frames"))?;
    sys::set_option(fd, libc::PACKET_IGNORE_OUTGOING, &1_i32)
        .map_err(spec.setup("ignore the host's own frames"))?;
    sys::set_option(fd, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as i32))
        .and_then(|()| sys::set_option(fd, libc::PACKET_RX_RING, &PacketRing::request()))
        .map_err(spec.setup("have a ring"))?;
    let ring = PacketRing::map(fd, 0).map_err(spec.setup("map the ring"))?;
    // Beyond the limit for all only with a privilege; less costs frames in a flood, and nothing else.
    let _ = sockopt::set_socket_send_buffer_size_force(fd, SEND_BUFFER)
        .or_else(|_| sockopt::set_socket_send_buffer_size(fd, SEND_BUFFER));
    sys::set_promiscuous(fd, index).map_err(spec.setup("take frames for any address"))?;
    sys::bind_packet(fd, index).map_err(spec.setup("bind to the interface"))?;
    Ok(PacketSource { socket: socket.into(), ring })
}

/// A socket and its ring.
pub(super) struct PacketSource {
    pub(super) socket: Arc<OwnedFd>,
    ring: PacketRing,
}

impl PacketSource {
    /// Goes on with a socket of another process, whose ring stands at `position`.
    pub(super) fn adopt(socket: OwnedFd, position: usize) -> io::Result<Self> {
        if sockopt::socket_domain(&socket)? != AddressFamily::PACKET {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let ring = PacketRing::map(socket.as_fd(), position)?;
        Ok(Self { socket: socket.into(), ring })
    }

    /// Whether a frame waits. No system call.
    #[inline]
    pub(super) fn has_frame(&self) -> bool {
        self.ring.has_frame()
    }

    /// Where the ring stands.
    pub(super) fn position(&self) -> usize {
        self.ring.position()
    }

    /// Reads up to `max` frames.
    pub(super) fn read(
        &mut self,
        max: usize,
        counters: &Counters,
        mut each: impl FnMut(Header, GuestBuf<'_>),
    ) -> io::Result<usize> {
        let mut count = 0;
        while count < max
            && let Some(frame) = self.ring.next_frame()
        {
            count += 1;
            if frame.is_whole() {
                each(header(frame.header(), frame.tag_len()), GuestBuf::new(&[frame.data()]));
            } else {
                counters.from_frames.add(1);
                counters.count_drop(DropReason::TooLong);
            }
        }
        if count == 0 {
            // Woken for something else: the interface went down.
            counters.syscalls.add(1);
            sockopt::socket_error(&self.socket)??;
        }
        Ok(count)
    }
}

/// Has the kernel give each frame to one of the sockets, by its flow.
fn join(sources: &[PacketSource]) -> io::Result<()> {
    let hash = libc::PACKET_FANOUT_HASH.cast_signed();
    let mut group = 0;
    for (i, source) in sources.iter().enumerate() {
        if i == 0 {
            // The kernel chooses the group's number, in the low half.
            let unique = libc::PACKET_FANOUT_FLAG_UNIQUEID.cast_signed();
            sys::set_option(source.socket.as_fd(), libc::PACKET_FANOUT, &((hash | unique) << 16))?;
            group = sys::packet_option(source.socket.as_fd(), libc::PACKET_FANOUT)? & 0xffff;
        } else {
            sys::set_option(source.socket.as_fd(), libc::PACKET_FANOUT, &(hash << 16 | group))?;
        }
    }
    Ok(())
}

/// The header of a frame in which a tag of `tag_len` bytes, which it does not count, was put back.
fn header(bytes: [u8; ringway_memory::PACKET_HDR_LEN], tag_len: usize) -> Header {
    let mut whole = [0; HDR_LEN];
    whole[..bytes.len()].copy_from_slice(&bytes);
    let mut header: Header = zerocopy::transmute!(whole);
    if header.flags & HDR_F_NEEDS_CSUM != 0 {
        header.csum_start += tag_len as u16;
    }
    if header.hdr_len.get() != 0 {
        header.hdr_len += tag_len as u16;
    }
    received(header)
}
