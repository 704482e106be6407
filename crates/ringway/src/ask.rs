//! What commands such as `ringway capture` and a running server say to each other: JSON, a message in a packet, over a
//! socket whose abstract address has the server's process id in it.
//!
//! Who asks is the server's own user, or root. Who answers is the process that was asked, and not somebody else who took
//! its address.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::PollFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, bind, listen,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::serve;

/// The longest message: the names of some thousand ports.
const MAX_LEN: usize = 1 << 16;
/// The most that wait to ask.
const MAX_CLIENTS: usize = 16;

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

/// What a server answers to a question.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply<T> {
    Done(T),
    Refused(String),
}

/// Who has asked, and waits for the answer.
pub(crate) struct Client(OwnedFd);

impl Client {
    /// Tells it how it went.
    pub(crate) fn answer<T: Serialize>(&self, result: Result<T>) {
        let reply = match result {
            Ok(done) => Reply::Done(done),
            Err(error) => Reply::Refused(format!("{error:#}")),
        };
        // It may have gone.
        let _ = send(&self.0, &reply, None);
    }
}

/// Where a server takes questions, each of which has one answer.
pub(crate) struct Desk {
    listener: Listener,
    /// They have not asked yet.
    clients: Vec<Client>,
}

impl Desk {
    /// Takes those of a command of `ringway`.
    pub(crate) fn open(command: &str) -> Self {
        Self { listener: Listener::open(command), clients: Vec::new() }
    }

    /// What to poll, to read.
    pub(crate) fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listener.interest().into_iter().chain(self.clients.iter().map(|client| client.0.as_fd()))
    }

    /// The questions that have come.
    pub(crate) fn questions<Q: DeserializeOwned>(&mut self) -> Vec<(Q, Client)> {
        while let Some((socket, is_ours)) = self.listener.accept() {
            let refusal = match self.clients.len() {
                _ if !is_ours => NOT_OURS,
                MAX_CLIENTS.. => "too many ask at a time",
                _ => {
                    self.clients.push(Client(socket));
                    continue;
                }
            };
            Client(socket).answer::<()>(Err(anyhow::Error::msg(refusal)));
        }
        let mut questions = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            match receive(&client.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.clients.push(client),
                Ok(Some((question, _))) => questions.push((question, client)),
                // It has gone, or said what it should not.
                _ => {}
            }
        }
        questions
    }
}

/// Asks the server that is process `pid`, and waits for its answer. `does` says what such a server does; `hang` why it may not
/// answer in time.
pub(crate) fn question<T: DeserializeOwned>(
    command: &str,
    pid: i32,
    question: &impl Serialize,
    does: &str,
    (limit, hang): (Duration, &str),
) -> Result<T> {
    let server = connect(command, pid, does)?;
    let sent = send(&server, question, None);
    let deadline = (None, Instant::now() + limit);
    loop {
        match hear(&server) {
            Ok(Some(Reply::Done(done))) => return Ok(done),
            Ok(Some(Reply::Refused(why))) => bail!("process {pid}: {why}"),
            Ok(None) => bail!("process {pid} has ended"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && sent.is_ok() => {}
            // If it did not take the request it may have told why, which would have been heard.
            Err(error) => return Err(sent.err().unwrap_or(error)).context("cannot ask the server"),
        }
        if Instant::now() >= deadline.1 {
            bail!("process {pid} does not answer: {hang}; see its log");
        }
        serve::wait(std::iter::once((None, server.as_fd(), PollFlags::IN)), std::iter::once(deadline))?;
    }
}
