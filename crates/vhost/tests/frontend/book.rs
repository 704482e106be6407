//! A back-end that writes down what it is told, and answers as it was told to. All it carries out is the transfer of
//! a device's state.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use ringway_vhost::frontend::{Connection, Frontend, FrontendError};
use ringway_vhost::message::{
    DEVICE_STATE_NO_FD, InflightDescription, Kind, Outgoing, Request, StateDirection,
};
use ringway_vhost::socket::{Message, Socket, SocketError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};

/// How long a peer may take.
const LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// A request as it came.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) request: Request,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: usize,
    pub(crate) needs_reply: bool,
}

/// What the back-end offers and answers.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) features: u64,
    pub(crate) protocol_features: u64,
    /// Status bits that are never taken on.
    pub(crate) stuck: u64,
    pub(crate) slots: u64,
    pub(crate) base: u32,
    /// Answers that take the place of the proper ones: to this request, this payload with these file descriptors.
    pub(crate) instead: VecDeque<(u32, Vec<u8>, Vec<OwnedFd>)>,
    pub(crate) status: u64,
    /// The device's state.
    pub(crate) state: Vec<u8>,
}

/// A back-end at work; in the end it tells what it heard.
pub(crate) struct Open(JoinHandle<Vec<Heard>>);

impl Open {
    /// What it heard, once the front-end has closed the connection.
    pub(crate) fn close(self) -> Vec<Heard> {
        self.0.join().expect("the back-end found nothing wrong")
    }

    /// The numbers of the requests that it heard.
    pub(crate) fn close_numbers(self) -> Vec<u32> {
        self.close().iter().map(|heard| heard.request.number()).collect()
    }
}

impl Book {
    pub(crate) fn new(features: u64, protocol_features: u64) -> Self {
        Self { features, protocol_features, slots: 8, ..Self::default() }
    }

    pub(crate) fn instead(mut self, request: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Self {
        self.instead.push_back((request, payload.to_vec(), fds));
        self
    }

    /// Starts it; the front-end's end of the connection.
    pub(crate) fn open(self) -> (Connection, Open) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let socket = Socket::new(theirs, Kind::Request).expect("a socket");
        let back_end = std::thread::spawn(|| self.listen(socket));
        (Connection::from_stream(ours).expect("a connection"), Open(back_end))
    }

    /// Starts it, and negotiates all that it offers.
    pub(crate) fn negotiate(self) -> (Frontend, Open) {
        let (frontend, open) = self.try_negotiate();
        (frontend.expect("a session"), open)
    }

    pub(crate) fn try_negotiate(self) -> (Result<Frontend, FrontendError>, Open) {
        let (connection, open) = self.open();
        (Frontend::negotiate(connection, u64::MAX, u64::MAX), open)
    }

    fn listen(mut self, mut socket: Socket) -> Vec<Heard> {
        let mut all = Vec::new();
        while let Some(message) = receive(&mut socket) {
            let Message { header, payload, fds } = message;
            let count = fds.len();
            let request = Request::decode(&header, &payload, fds).expect("a good request");
            if let Some((answer, fds)) = self.answer(&request, header.needs_reply(), &payload) {
                socket.send(Outgoing { bytes: header.reply(&answer), fds }).expect("a reader");
            }
            // Not kept: its end is told by closing it.
            if let Request::SetDeviceStateFd(transfer, fd) = request {
                self.transfer(transfer.direction, fd.into());
                continue;
            }
            all.push(Heard { request, payload, fds: count, needs_reply: header.needs_reply() });
        }
        all
    }

    fn transfer(&mut self, direction: StateDirection, mut channel: File) {
        match direction {
            // The front-end may have enough before it has all.
            StateDirection::Save => drop(channel.write_all(&self.state)),
            StateDirection::Load => {
                self.state.clear();
                channel.read_to_end(&mut self.state).expect("a state");
            }
        }
    }

    fn answer(&mut self, to: &Request, needs_reply: bool, asked: &[u8]) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        if let Some((_, payload, fds)) = self.instead.pop_front_if(|(number, ..)| *number == to.number()) {
            return Some((payload, fds));
        }
        let number = match to {
            Request::GetFeatures => self.features,
            Request::GetProtocolFeatures => self.protocol_features,
            Request::GetQueueNum => 3,
            Request::GetMaxMemSlots => self.slots,
            Request::GetStatus => self.status,
            Request::GetVringBase { index } => u64::from(*index) | u64::from(self.base) << 32,
            Request::GetConfig { size, .. } => {
                let bytes: Vec<_> = (0..*size).map(|at| at as u8).collect();
                return Some(([&asked[..12], &bytes].concat(), Vec::new()));
            }
            Request::GetInflightFd(asked) => {
                let file = memfd_create("inflight", MemfdFlags::CLOEXEC).expect("a file");
                return Some((InflightDescription { len: 4096, ..*asked }.encode(), vec![file]));
            }
            Request::SetStatus(status) => {
                self.status = status & !self.stuck;
                return needs_reply.then(|| (vec![0; 8], Vec::new()));
            }
            Request::SetDeviceStateFd(..) => DEVICE_STATE_NO_FD,
            Request::SetLogBase { .. } | Request::Iotlb(_) | Request::CheckDeviceState => 0,
            _ if needs_reply => 0,
            _ => return None,
        };
        Some((number.to_le_bytes().to_vec(), Vec::new()))
    }
}

/// The next message; `None` when the peer has closed.
pub(crate) fn receive(socket: &mut Socket) -> Option<Message> {
    loop {
        match socket.receive() {
            Ok(Some(message)) => return Some(message),
            Ok(None) => {}
            Err(SocketError::Closed) => return None,
            Err(error) => panic!("{error}"),
        }
        let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
        assert!(poll(&mut fds, Some(&LIMIT)).expect("a poll") > 0, "the front-end is silent");
    }
}
