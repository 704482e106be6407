//! One connection to a back-end: requests, and what comes back within the time allowed.
//!
//! Dropped, it waits until the back-end has noticed: many serve one front-end at a time.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ringway_vhost::frontend::{Connection, FrontendError, Reply};
use ringway_vhost::message::{Outgoing, Request, name, protocol_feature as pf};
use ringway_vhost::socket::SocketError;
use rustix::net::Shutdown;

use crate::case::{Verdict, fail};
use crate::context::Context;

/// How long a back-end may take to notice that a front-end has gone.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Session<'c> {
    pub(crate) context: &'c Context,
    /// The features that were negotiated.
    pub(crate) features: u64,
    protocol_features: u64,
    connection: Connection,
}

impl<'c> Session<'c> {
    pub(crate) fn new(context: &'c Context, mut connection: Connection) -> Self {
        connection.set_limit(context.patience());
        Self { context, features: 0, protocol_features: 0, connection }
    }

    /// Whether these protocol features were acked.
    pub(crate) fn has_protocol(&self, features: u64) -> bool {
        self.protocol_features & features == features
    }

    fn has_ack(&self) -> bool {
        self.has_protocol(pf::REPLY_ACK)
    }

    /// Sends a request that asks for no answer.
    pub(crate) fn tell(&mut self, request: Request) -> Result<(), Verdict> {
        self.send(request, false)
    }

    /// Sends a request with or without a wish for an answer.
    fn send(&mut self, request: Request, need_reply: bool) -> Result<(), Verdict> {
        let name = name(request.number());
        self.context.note_sent(name);
        let sent = self.connection.send(request, need_reply);
        sent.map_err(|error| self.verdict(&error, &format!("it reads {name}")))
    }

    /// Sends any bytes with any file descriptors. A back-end that has closed the connection is no error.
    pub(crate) fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        self.context.note_sent(format!("{} raw bytes, {} fds", bytes.len(), fds.len()));
        let _ = self.connection.send_raw(bytes, fds);
    }

    /// Sends a message as it is. A back-end that has closed the connection is no error.
    pub(crate) fn send_outgoing(&mut self, message: &Outgoing) {
        let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
        self.context.note_sent(format!("{}, {} fds", name(message.number()), fds.len()));
        let _ = self.connection.send_raw(&message.bytes, &fds);
    }

    /// Sends a message whose payload may be none of its request's.
    pub(crate) fn send_message(&mut self, number: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let message = Outgoing::request(number, payload, Vec::new(), false);
        self.context.note_sent(format!("{} of {} bytes, {} fds", name(number), payload.len(), fds.len()));
        let _ = self.connection.send_raw(&message.bytes, fds);
    }

    /// What the back-end did instead of `expected`.
    fn verdict(&self, error: &FrontendError, expected: &str) -> Verdict {
        let seen = match error {
            FrontendError::TimedOut { .. } => format!("nothing in {:?}", self.context.patience()),
            error if is_end(error) => "it closed the connection".into(),
            other => other.to_string(),
        };
        fail(expected, seen)
    }

    fn next(&mut self, limit: Duration) -> Result<Option<Reply>, FrontendError> {
        self.connection.reply_within(limit)
    }

    /// The answer to request `number`, which is the next message.
    pub(crate) fn reply(&mut self, number: u32) -> Result<Reply, Verdict> {
        let expected = format!("an answer to {}", name(number));
        self.connection.set_limit(self.context.time_left());
        let reply = self.connection.reply().map_err(|error| self.verdict(&error, &expected))?;
        if reply.header.request == number {
            Ok(reply)
        } else {
            Err(fail(expected, format!("an answer to {}", name(reply.header.request))))
        }
    }

    /// The answer to request `number`: a 64-bit number.
    pub(crate) fn reply_u64(&mut self, number: u32) -> Result<u64, Verdict> {
        let reply = self.reply(number)?;
        let bytes = reply.payload.as_slice().try_into().map_err(|_| {
            fail(format!("8 bytes in answer to {}", name(number)), format!("{} bytes", reply.payload.len()))
        })?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Asks a question.
    pub(crate) fn ask(&mut self, request: Request) -> Result<Reply, Verdict> {
        let number = request.number();
        self.tell(request)?;
        self.reply(number)
    }

    /// Asks a question whose answer is a number.
    pub(crate) fn ask_u64(&mut self, request: Request) -> Result<u64, Verdict> {
        let number = request.number();
        self.tell(request)?;
        self.reply_u64(number)
    }

    /// Asks where a vring stands, which stops it.
    pub(crate) fn vring_base(&mut self, index: u32) -> Result<u32, Verdict> {
        let answer = self.ask_u64(Request::GetVringBase { index })?;
        if answer as u32 == index {
            Ok((answer >> 32) as u32)
        } else {
            Err(fail(format!("the base of vring {index}"), format!("that of vring {}", answer as u32)))
        }
    }

    /// Sends a request and asks how it went; needs `REPLY_ACK`.
    pub(crate) fn ack(&mut self, request: Request) -> Result<u64, Verdict> {
        let number = request.number();
        self.send(request, true)?;
        self.reply_u64(number)
    }

    /// Sends a request that must succeed.
    pub(crate) fn set(&mut self, request: Request) -> Result<(), Verdict> {
        if !self.has_ack() {
            return self.tell(request);
        }
        let number = request.number();
        match self.ack(request)? {
            0 => Ok(()),
            other => Err(fail(format!("{} succeeds", name(number)), format!("it answers {other}"))),
        }
    }

    /// Acks protocol features, and goes by them from then on.
    pub(crate) fn set_protocol_features(&mut self, features: u64) -> Result<(), Verdict> {
        self.tell(Request::SetProtocolFeatures(features))?;
        self.protocol_features = features;
        Ok(())
    }

    /// Sends a request that must fail: with an answer other than zero, or the end of the connection.
    pub(crate) fn refused(&mut self, request: Request) -> Result<String, Verdict> {
        let number = request.number();
        self.send(request, true)?;
        let expected = format!("{} fails", name(number));
        match self.next(self.context.time_left()) {
            Ok(Some(reply)) if reply.payload.iter().any(|byte| *byte != 0) => Ok("it refuses".into()),
            Ok(Some(_)) => Err(fail(expected, "it answers 0")),
            Ok(None) => Err(fail(expected, format!("nothing in {:?}", self.context.patience()))),
            Err(error) if is_end(&error) => Ok("it closes the connection".into()),
            Err(error) => Err(self.verdict(&error, &expected)),
        }
    }

    /// Waits until all that was sent has been handled: the next message is the answer to a question asked now.
    pub(crate) fn barrier(&mut self) -> Result<(), Verdict> {
        self.ask(Request::GetFeatures).map(drop)
    }

    /// Nothing must come for a while.
    pub(crate) fn is_quiet(&mut self, time: Duration) -> Result<(), Verdict> {
        match self.next(time) {
            Ok(None) => Ok(()),
            Ok(Some(message)) => Err(fail("no message", name(message.header.request))),
            Err(error) => Err(self.verdict(&error, "no message, and no end")),
        }
    }

    /// Whether the back-end closes the connection in time; what it says before is of no interest.
    pub(crate) fn is_closed(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            match self.next(end.saturating_duration_since(Instant::now())) {
                Ok(Some(_)) => {}
                Err(error) => return is_end(&error),
                Ok(None) => return false,
            }
        }
    }

    /// Lets the back-end know that nothing more will come.
    pub(crate) fn hang_up(&self) {
        let _ = rustix::net::shutdown(self.connection.as_fd(), Shutdown::Write);
    }
}

/// Whether the back-end has closed the connection.
fn is_end(error: &FrontendError) -> bool {
    matches!(error, FrontendError::Socket(SocketError::Closed | SocketError::Truncated | SocketError::Io(_)))
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.hang_up();
        self.is_closed(CLOSE_LIMIT);
    }
}
