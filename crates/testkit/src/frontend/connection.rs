//! The socket of a session: requests and replies, and raw bytes for tests of the back-end's manners.
//!
//! Every read and write has a time limit, so no test hangs on a peer that is silent.

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::event::wait_readable;
use super::wire::{HEADER_LEN, flag, message, parse_u64, request};

/// How long a reply may take.
const REPLY_LIMIT: Duration = Duration::from_secs(5);
/// The longest payload taken from a peer; the protocol's longest are a few hundred bytes.
const MAX_PAYLOAD: usize = 64 * 1024;
/// The most descriptors the kernel passes with one message (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;

/// A message as it came in.
#[derive(Debug)]
pub struct Message {
    /// The request's number.
    pub request: u32,
    /// The header's flags.
    pub flags: u32,
    /// The payload.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connected socket to a back-end, or the other end of its channel of requests to us.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

/// Closed for good at once: a process that another test is starting meanwhile holds a copy of the descriptor until it
/// runs its program, and the back-end would see nobody hang up.
impl Drop for Connection {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Connection {
    /// Connects to a back-end that listens at `path`, which may still be about to appear.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let deadline = Instant::now() + REPLY_LIMIT;
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Self::from_stream(stream),
                Err(error) => {
                    let may_come = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
                    if !may_come || Instant::now() >= deadline {
                        return Err(error).with_context(|| format!("connect to {}", path.display()));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for a back-end that connects to us.
    pub fn accept(listener: &UnixListener) -> Result<Self> {
        ensure!(wait_readable(listener.as_fd(), REPLY_LIMIT)?, "no back-end connected in {REPLY_LIMIT:?}");
        Self::from_stream(listener.accept().context("accept a back-end")?.0)
    }

    /// Takes a connected socket.
    pub fn from_stream(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        stream.set_write_timeout(Some(REPLY_LIMIT))?;
        Ok(Self { stream })
    }

    /// Sends any bytes with any descriptors: nothing is checked.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let rights = SendAncillaryMessage::ScmRights(fds);
        // The kernel wants the space aligned; the buffer starts a little later then.
        let mut space = vec![MaybeUninit::uninit(); rights.size() + 64];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(control.push(rights), "no room for {} descriptors", fds.len());
        }
        let mut sent = 0;
        while sent < bytes.len() {
            let part = [IoSlice::new(&bytes[sent..])];
            sent += sendmsg(&self.stream, &part, &mut control, SendFlags::NOSIGNAL).context("send")?;
            // Descriptors travel with the first byte only.
            control.clear();
        }
        Ok(())
    }

    /// Sends a well-formed request that expects nothing back.
    pub fn request(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send_raw(&message(request, 0, payload), fds).with_context(|| format!("request {request}"))
    }

    /// Sends a request whose reply has a payload, and returns that.
    pub fn request_reply(&self, request: u32, payload: &[u8]) -> Result<Vec<u8>> {
        self.request(request, payload, &[])?;
        Ok(self.reply(request)?.payload)
    }

    /// Sends a request whose reply is a 64-bit number, and returns that.
    pub fn request_u64(&self, request: u32) -> Result<u64> {
        let payload = self.request_reply(request, &[])?;
        parse_u64(&payload)
            .with_context(|| format!("request {request}: the reply is {} bytes", payload.len()))
    }

    /// Sends a request with `NEED_REPLY` and returns the acknowledgement: zero if all went well.
    pub fn request_with_ack(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<u64> {
        self.send_raw(&message(request, flag::NEED_REPLY, payload), fds)
            .with_context(|| format!("request {request}"))?;
        let reply = self.reply(request)?;
        parse_u64(&reply.payload).with_context(|| {
            format!("request {request}: the acknowledgement is {} bytes", reply.payload.len())
        })
    }

    /// Sends a request with `NEED_REPLY`; an error unless it is acknowledged with zero.
    pub fn request_accepted(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let ack = self.request_with_ack(request, payload, fds)?;
        ensure!(ack == 0, "request {request} was refused with {ack}");
        Ok(())
    }

    /// Sends a request with `NEED_REPLY`; an error unless it is refused with a number other than zero.
    pub fn request_refused(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let ack = self.request_with_ack(request, payload, fds)?;
        ensure!(ack != 0, "request {request} was accepted");
        Ok(())
    }

    /// Receives the reply to `request` and checks its header.
    pub fn reply(&self, request: u32) -> Result<Message> {
        let reply = self.receive().with_context(|| format!("the reply to request {request}"))?;
        ensure!(reply.request == request, "the reply to request {request} says {}", reply.request);
        let (version, is_reply) = (reply.flags & flag::VERSION_MASK, reply.flags & flag::REPLY != 0);
        ensure!(
            version == flag::VERSION && is_reply,
            "request {request}: the reply's flags are {:#x}",
            reply.flags
        );
        Ok(reply)
    }

    /// Receives one message, whatever it is.
    pub fn receive(&self) -> Result<Message> {
        let mut header = [0; HEADER_LEN];
        let mut fds = Vec::new();
        self.receive_exact(&mut header, &mut fds)?;
        let field =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = field(8) as usize;
        ensure!(length <= MAX_PAYLOAD, "a payload of {length} bytes");
        let mut payload = vec![0; length];
        self.receive_exact(&mut payload, &mut fds)?;
        Ok(Message { request: field(0), flags: field(4), payload, fds })
    }

    /// Makes the channel on which the back-end sends requests, hands it over, and returns our end.
    pub fn open_backend_channel(&self) -> Result<Connection> {
        let (ours, theirs) = UnixStream::pair().context("socketpair")?;
        self.request(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
        Self::from_stream(ours)
    }

    /// Answers a message that came in with a 64-bit number.
    pub fn answer(&self, to: &Message, value: u64) -> Result<()> {
        self.send_raw(&message(to.request, flag::REPLY, &value.to_le_bytes()), &[])
    }

    /// Waits until the peer has closed the socket; what it still sends is thrown away.
    pub fn is_closed(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        let mut scrap = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if wait_readable(self.stream.as_fd(), left)? {
                match (&self.stream).read(&mut scrap) {
                    Ok(0) => return Ok(true),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(true),
                    Err(error) => return Err(error).context("read"),
                }
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// Fills `bytes`, collecting descriptors on the way.
    fn receive_exact(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut part = [IoSliceMut::new(&mut bytes[done..])];
            let received = recvmsg(&self.stream, &mut part, &mut control, RecvFlags::CMSG_CLOEXEC)
                .context("receive")?
                .bytes;
            for ancillary in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                    fds.extend(rights);
                }
            }
            if received == 0 {
                bail!("the peer closed the socket");
            }
            done += received;
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::event::Event;

    fn pair() -> (Connection, Connection) {
        let (a, b) = UnixStream::pair().unwrap();
        (Connection::from_stream(a).unwrap(), Connection::from_stream(b).unwrap())
    }

    #[test]
    fn a_message_with_descriptors_arrives_whole() {
        let (ours, theirs) = pair();
        let event = Event::new().unwrap();
        ours.request(request::SET_VRING_KICK, &7u64.to_le_bytes(), &[event.as_fd(); 3]).unwrap();
        let message = theirs.receive().unwrap();
        assert_eq!((message.request, message.flags), (request::SET_VRING_KICK, flag::VERSION));
        assert_eq!((parse_u64(&message.payload), message.fds.len()), (Some(7), 3));
    }

    #[test]
    fn an_acknowledgement_is_told_from_a_refusal() {
        let (ours, theirs) = pair();
        for value in [0, 5] {
            theirs
                .send_raw(&message(request::SET_OWNER, flag::REPLY, &u64::to_le_bytes(value)), &[])
                .unwrap();
        }
        ours.request_accepted(request::SET_OWNER, &[], &[]).unwrap();
        ours.request_refused(request::SET_OWNER, &[], &[]).unwrap();
    }

    #[test]
    fn a_closed_socket_is_noticed() {
        let (ours, theirs) = pair();
        assert!(!ours.is_closed(Duration::from_millis(1)).unwrap());
        theirs.send_raw(b"left over", &[]).unwrap();
        drop(theirs);
        assert!(ours.is_closed(Duration::from_secs(1)).unwrap());
        assert!(ours.receive().is_err());
    }

    #[test]
    fn as_many_descriptors_as_the_kernel_passes() {
        let (ours, theirs) = pair();
        let event = Event::new().unwrap();
        ours.send_raw(&message(1, 0, &[]), &[event.as_fd(); MAX_FDS]).unwrap();
        assert_eq!(theirs.receive().unwrap().fds.len(), MAX_FDS);
    }
}
