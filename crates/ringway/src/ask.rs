//! What commands such as `ringway capture` and a running server say to each other: JSON, a message in a packet, over a
//! socket whose abstract address has the server's process id in it.
//!
//! Who asks is the server's own user, or root. Who answers is the process that was asked, and not somebody else who took
//! its address.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, bind, listen,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

/// The longest message: the names of some thousand ports.
const MAX_LEN: usize = 1 << 16;

/// Where a server is asked. Those who may not ask get no further.
pub(crate) struct Listener(Option<OwnedFd>);

impl Listener {
    /// Listens for a command of `ringway`. If that cannot be, the server does without.
    pub(crate) fn open(command: &str) -> Self {
        let open = || {
            let socket = socket(SocketFlags::NONBLOCK)?;
            bind(&socket, &address(command, std::process::id())?)?;
            listen(&socket, 8)?;
            Ok(socket)
        };
        let opened: io::Result<_> = open();
        let opened =
            opened.inspect_err(|error| warn!("`ringway {command}` will not reach this process: {error}"));
        Self(opened.ok())
    }

    /// What to poll, to read.
    pub(crate) fn interest(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    /// The next that has come to ask, and whether it may.
    pub(crate) fn accept(&self) -> Option<(OwnedFd, bool)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, _) = acceptfrom_with(self.0.as_ref()?, flags).ok()?;
        let is_ours = is_ours(&socket);
        Some((socket, is_ours))
    }
}

/// Why it may not.
pub(crate) const NOT_OURS: &str = "you are neither the user that it runs as nor root";

fn is_ours(socket: &OwnedFd) -> bool {
    let us = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(socket).is_ok_and(|peer| peer.uid == us || peer.uid.is_root())
}

/// Connects to the server that is process `pid`, for this command. `does` says what such a server does.
pub(crate) fn connect(command: &str, pid: i32, does: &str) -> Result<OwnedFd> {
    let owner = std::fs::metadata(format!("/proc/{pid}"))
        .with_context(|| format!("there is no process {pid}"))?
        .uid();
    let socket = socket(SocketFlags::empty())?;
    rustix::net::connect(&socket, &address(command, pid.cast_unsigned())?)
        .with_context(|| format!("process {pid} is no server that {does}"))?;
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    ensure!(
        peer.pid.as_raw_pid() == pid && peer.uid.as_raw() == owner,
        "somebody else answers for process {pid}"
    );
    Ok(socket)
}

/// Where the server with this process id is asked.
fn address(command: &str, pid: u32) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(format!("ringway-{command}-{pid}").as_bytes())?)
}

/// A socket for such messages.
fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends a message, perhaps with a file; it does not wait for who does not read.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let data = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.into_iter().collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&data)], &mut control, flags)?;
    Ok(())
}

/// Receives a message if there is one (else `WouldBlock`), and the file that came with it; `None` when the other side
/// has closed its own.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, file)))
}

/// What the server replies. That the connection was closed with our request unread is told before what the server said.
pub(crate) fn hear<T: DeserializeOwned>(server: &OwnedFd) -> io::Result<Option<T>> {
    let reply = match receive(server) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => receive(server)?,
        reply => reply?,
    };
    Ok(reply.map(|(reply, _)| reply))
}
