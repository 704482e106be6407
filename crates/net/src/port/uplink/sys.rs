//! The system calls of uplinks that have no safe wrapper: ioctls of taps and interfaces, options of packet sockets.
#![allow(unsafe_code, reason = "these calls have no safe wrapper in a crate we use")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::frame::Mac;

/// Ethernet frames, each with a header of virtio-net and no other.
pub(super) const TAP_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Whether the kernel segments UDP: Linux does since 6.2.
pub(super) fn knows_uso() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 2)
}

/// Attaches to a tap, which is created if there is none of this name.
pub(super) fn attach_tap(fd: BorrowedFd<'_>, name: &str, multi_queue: bool) -> io::Result<()> {
    let flags = if multi_queue { TAP_FLAGS | libc::IFF_MULTI_QUEUE } else { TAP_FLAGS };
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which lives for the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// How a tap is attached to.
pub(super) fn tap_flags(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut request = request("");
    // SAFETY: TUNGETIFF writes an `ifreq`, which lives for the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF fills in the flags; any bits are a number.
    Ok(unsafe { request.ifr_ifru.ifru_flags }.into())
}

/// Sets the length of the header before each frame of a tap.
pub(super) fn set_header_len(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let len = i32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETVNETHDRSZ reads an int, which lives for the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// Sets what may be read from a tap.
pub(super) fn set_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// The address of an interface.
pub(super) fn mac(name: &str) -> io::Result<Mac> {
    let mut request = request(name);
    let socket = any_socket()?;
    // SAFETY: SIOCGIFHWADDR reads and writes an `ifreq`, which lives for the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) })?;
    // SAFETY: SIOCGIFHWADDR fills in an address; any bytes are one.
    let bytes = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
    let mut octets = [0; 6];
    for (to, from) in octets.iter_mut().zip(bytes) {
        *to = from.cast_unsigned();
    }
    Ok(Mac::new(octets))
}

/// Sets the address of an interface of Ethernet.
pub(super) fn set_mac(name: &str, mac: Mac) -> io::Result<()> {
    let mut request = request(name);
    // SAFETY: all-zero is a valid `sockaddr`.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac.octets()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_hwaddr = address;
    let socket = any_socket()?;
    // SAFETY: SIOCSIFHWADDR reads an `ifreq`, which lives for the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR, &raw mut request) })
}

/// Binds a packet socket to an interface: it gets all of its frames from now on.
pub(super) fn bind_packet(socket: BorrowedFd<'_>, index: i32) -> io::Result<()> {
    // SAFETY: all-zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of the address, which lives for the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })
}

/// Has the interface take frames for any address, as long as the socket is open.
pub(super) fn set_promiscuous(socket: BorrowedFd<'_>, index: i32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(socket, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Reads a number of a packet socket.
pub(super) fn packet_option(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<i32> {
    let mut value = 0_i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    let (fd, to) = (socket.as_raw_fd(), (&raw mut value).cast());
    // SAFETY: the kernel writes at most `len` bytes to `value`, which live for the call.
    check(unsafe { libc::getsockopt(fd, libc::SOL_PACKET, name, to, &raw mut len) })?;
    Ok(value)
}

/// Sets an option of a packet socket, whose type is that of `value`.
pub(super) fn set_option<T>(socket: BorrowedFd<'_>, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let (fd, value) = (socket.as_raw_fd(), std::ptr::from_ref(value).cast());
    // SAFETY: the kernel reads `len` bytes at `value`, which live for the call.
    check(unsafe { libc::setsockopt(fd, libc::SOL_PACKET, name, value, len) })
}

/// A request about an interface.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

/// A socket to ask the kernel about interfaces by.
fn any_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// The number of an interface.
pub(super) fn index(name: &str) -> io::Result<u32> {
    Ok(rustix::net::netdevice::name_to_index(any_socket()?.as_fd(), name)?)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
