//! A connection to a back-end: requests out, replies in, each waited for no longer than a limit.
//!
//! What the session is about is not known here. So this is also what tests a back-end's manners: it sends requests at
//! any time, and bytes that are none.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown};

use super::FrontendError;
use super::event::wait_until;
use crate::message::{Header, Kind, Outgoing, Request, name};
use crate::socket::{self, Message, Socket, SocketError};

/// How long a peer may take for anything, unless said otherwise.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(5);
/// The most file descriptors that the kernel passes with one message (`SCM_MAX_FD`).
const MAX_SENT_FDS: usize = 253;

/// A reply, whole.
#[derive(Debug)]
pub struct Reply {
    /// Its header, which says what was asked.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Reply {
    /// The payload as the number that most replies are, without file descriptors.
    ///
    /// # Errors
    /// [`FrontendError::WrongReply`].
    pub fn number(&self) -> Result<u64, FrontendError> {
        if !self.fds.is_empty() {
            return Err(self.wrong(format!("{} file descriptors", self.fds.len())));
        }
        Ok(u64::from_le_bytes(self.exactly()?))
    }

    /// The payload, if it has this length.
    ///
    /// # Errors
    /// [`FrontendError::WrongReply`].
    pub fn exactly<const N: usize>(&self) -> Result<[u8; N], FrontendError> {
        let payload = self.payload.as_slice();
        payload.try_into().map_err(|_| self.wrong(format!("{} bytes", payload.len())))
    }

    /// The error that it is not what it should be.
    pub fn wrong(&self, what: String) -> FrontendError {
        FrontendError::WrongReply { request: name(self.header.request), what }
    }
}

/// A connected socket, on which the peer is the back-end.
pub struct Connection {
    socket: Socket,
    limit: Duration,
    is_acking: bool,
}

impl Connection {
    /// Connects to the back-end that listens at `path`, or will in a few seconds.
    ///
    /// # Errors
    /// [`FrontendError::TimedOut`] if nobody does, [`FrontendError::Io`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, FrontendError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match socket::connect(path.as_ref()) {
                Ok(stream) => return Ok(Self::from_stream(stream)?),
                // Not there yet, nobody listens yet, too many wait already.
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(RETRY);
                }
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) => {
                    return Err(FrontendError::TimedOut { what: "listening back-end", limit: LIMIT });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for a back-end that connects to us.
    ///
    /// # Errors
    /// [`FrontendError::TimedOut`], [`FrontendError::Io`].
    pub fn accept(listener: &UnixListener) -> Result<Self, FrontendError> {
        if !wait_until(listener.as_fd(), PollFlags::IN, Instant::now() + LIMIT)? {
            return Err(FrontendError::TimedOut { what: "connecting back-end", limit: LIMIT });
        }
        Ok(Self::from_stream(listener.accept()?.0)?)
    }

    /// Takes a connected stream.
    ///
    /// # Errors
    /// The kernel's.
    pub fn from_stream(stream: UnixStream) -> io::Result<Self> {
        Ok(Self { socket: Socket::new(stream, Kind::Reply)?, limit: LIMIT, is_acking: false })
    }

    /// How long the peer may take to send a reply, or to read a request, from now on. It is 5 seconds at first.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// How long the peer may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether [`Connection::call`] asks for an answer to every request: for when `REPLY_ACK` was acked.
    pub fn set_acking(&mut self, is_acking: bool) {
        self.is_acking = is_acking;
    }

    /// Sends a request; `need_reply` asks for an answer to one that is no question. Waits for none.
    ///
    /// # Errors
    /// [`FrontendError::TimedOut`] if the peer does not read, [`FrontendError::Socket`].
    pub fn send(&mut self, request: Request, need_reply: bool) -> Result<(), FrontendError> {
        let Outgoing { bytes, fds } = request.encode(need_reply);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.send_raw(&bytes, &fds)
    }

    /// Sends any bytes, with any file descriptors beside the first of them.
    ///
    /// # Errors
    /// As of [`Connection::send`].
    pub fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), FrontendError> {
        let deadline = Instant::now() + self.limit;
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::TOOMANYREFS.into());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::sendmsg(&self.socket, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    control.clear();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, "reader of requests", deadline)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(SocketError::Closed.into()),
                Err(error) => return Err(SocketError::from(error).into()),
            }
        }
        Ok(())
    }

    /// The next reply, whatever it answers.
    ///
    /// # Errors
    /// [`FrontendError::TimedOut`], [`FrontendError::Socket`].
    pub fn reply(&mut self) -> Result<Reply, FrontendError> {
        let limit = self.limit;
        self.reply_within(limit)?.ok_or(FrontendError::TimedOut { what: "reply", limit })
    }

    /// The next reply, `None` if none is whole within `limit`.
    ///
    /// # Errors
    /// [`FrontendError::Socket`].
    pub fn reply_within(&mut self, limit: Duration) -> Result<Option<Reply>, FrontendError> {
        let message = receive(&mut self.socket, Instant::now() + limit)?;
        Ok(message.map(|Message { header, payload, fds }| Reply { header, payload, fds }))
    }

    /// The reply to this request, which has been sent.
    ///
    /// # Errors
    /// [`FrontendError::WrongReply`] if it answers another, and as of [`Connection::reply`].
    pub fn reply_to(&mut self, request: u32) -> Result<Reply, FrontendError> {
        let reply = self.reply()?;
        if reply.header.request == request {
            return Ok(reply);
        }
        let what = format!("a reply to {}", name(reply.header.request));
        Err(FrontendError::WrongReply { request: name(request), what })
    }

    /// Sends a question and returns the reply.
    ///
    /// # Errors
    /// As of [`Connection::send`] and [`Connection::reply_to`].
    pub fn ask(&mut self, question: Request) -> Result<Reply, FrontendError> {
        let number = question.number();
        self.send(question, false)?;
        self.reply_to(number)
    }

    /// Sends a question whose reply is a number, and returns that.
    ///
    /// # Errors
    /// As of [`Connection::ask`] and [`Reply::number`].
    pub fn ask_number(&mut self, question: Request) -> Result<u64, FrontendError> {
        self.ask(question)?.number()
    }

    /// Sends a request and, if [acking](Connection::set_acking), waits until it is carried out. A question's reply is
    /// waited for in any case, and to be 0.
    ///
    /// # Errors
    /// [`FrontendError::Refused`], and as of [`Connection::send`] and [`Connection::reply_to`].
    pub fn call(&mut self, request: Request) -> Result<(), FrontendError> {
        if self.is_acking || Request::is_question(request.number()) {
            return self.call_acked(request);
        }
        self.send(request, false)
    }

    /// Sends a request with `NEED_REPLY` and waits until it is carried out.
    ///
    /// # Errors
    /// As of [`Connection::call`].
    pub fn call_acked(&mut self, request: Request) -> Result<(), FrontendError> {
        let number = request.number();
        self.send(request, true)?;
        match self.reply_to(number)?.number()? {
            0 => Ok(()),
            value => Err(FrontendError::Refused { request: name(number), value }),
        }
    }

    /// Waits until the peer has closed the connection; false if it has not within `limit`. Replies that come are
    /// thrown away.
    ///
    /// # Errors
    /// [`FrontendError::Socket`] if what comes is no reply.
    pub fn is_closed_within(&mut self, limit: Duration) -> Result<bool, FrontendError> {
        let deadline = Instant::now() + limit;
        loop {
            match receive(&mut self.socket, deadline) {
                Ok(Some(_)) if Instant::now() < deadline => {}
                Ok(_) => return Ok(false),
                Err(FrontendError::Socket(SocketError::Closed)) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes the connection: nothing more goes out, nothing more comes in.
    pub fn close(&mut self) {
        // That the peer has closed it before is as good.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    fn wait(&self, flags: PollFlags, what: &'static str, deadline: Instant) -> Result<(), FrontendError> {
        if wait_until(self.socket.as_fd(), flags, deadline)? {
            return Ok(());
        }
        Err(FrontendError::TimedOut { what, limit: self.limit })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The next message, `None` if none is whole when the deadline comes.
pub(super) fn receive(socket: &mut Socket, deadline: Instant) -> Result<Option<Message>, FrontendError> {
    loop {
        match socket.receive() {
            Ok(Some(message)) => return Ok(Some(message)),
            Ok(None) => {}
            // A peer that closes with requests unread resets the connection.
            Err(SocketError::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(SocketError::Closed.into());
            }
            Err(error) => return Err(error.into()),
        }
        if !wait_until(socket.as_fd(), PollFlags::IN, deadline)? {
            return Ok(None);
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
