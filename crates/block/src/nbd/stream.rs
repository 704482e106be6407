//! A connection: a socket that never blocks, perhaps with TLS on it; and how one is made, which waits, but not for ever.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ringway_memory::GuestSlice;
use ringway_memory::io::{receive, send};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::protocol::{Export, Handshake, Step};
use super::tls::Session;
use super::uri::{Server, Uri};
use super::{NbdError, Options};

/// A server's host that is gone is noticed after so long: unasked while nothing is under way, and by what is not
/// acknowledged.
const DEAD_AFTER: Duration = Duration::from_secs(30);
const PROBES: u32 = 3;
/// However patient one is, in clocks that can be reckoned with.
const LONGEST_HANDSHAKE: Duration = Duration::from_hours(1);

/// A connection to a server.
pub(super) struct Stream {
    socket: OwnedFd,
    tls: Option<Box<Session>>,
}

impl Stream {
    /// Sends the start of these pieces; `WouldBlock` if nothing can be sent now.
    pub(super) fn send(&mut self, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            None => send(self.socket.as_fd(), pieces),
            Some(tls) => tls.send(self.socket.as_fd(), pieces),
        }
    }

    /// Receives to these pieces; `WouldBlock` if there is nothing now, 0 if the server has closed the connection.
    pub(super) fn receive(&mut self, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            None => receive(self.socket.as_fd(), pieces),
            Some(tls) => tls.receive(self.socket.as_fd(), pieces),
        }
    }

    /// Sends what was taken by [`Stream::send`] and is still here.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(()), |tls| tls.flush(self.socket.as_fd()))
    }

    /// Whether [`Stream::flush`] has something to do.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Connects, and comes to terms with the server.
pub(super) fn establish(uri: &Uri, options: &Options) -> Result<(Stream, Export), NbdError> {
    let addresses = match &uri.server {
        Server::Tcp { host, port } => resolve(host, *port)?,
        _ => Vec::new(),
    };
    let whole = options.handshake.min(LONGEST_HANDSHAKE);
    let limit = Limit { at: Instant::now() + whole, whole };
    let socket = match &uri.server {
        Server::Tcp { .. } => tcp(&addresses, &limit)?,
        Server::Unix(path) => unix(&SocketAddrUnix::new(path).map_err(|e| NbdError::Connect(e.into()))?)?,
        Server::Abstract(name) => {
            unix(&SocketAddrUnix::new_abstract_name(name).map_err(|e| NbdError::Connect(e.into()))?)?
        }
    };
    let mut stream = Stream { socket, tls: None };
    let (mut handshake, mut step) = Handshake::new(&uri.export, uri.tls.is_some());
    let mut heard = Vec::new();
    loop {
        match (step, &uri.tls) {
            (Step::Exchange { mut say, hear }, _) => {
                stream.send_all(&mut say, &limit)?;
                heard.resize(hear, 0);
                stream.receive_all(&mut heard, &limit)?;
            }
            (Step::StartTls, Some(tls)) => {
                stream.secure(Session::new(tls)?, &limit)?;
                heard.clear();
            }
            (Step::StartTls, None) => unreachable!("asked for only by a handshake with TLS"),
            (Step::Done(export), _) => return Ok((stream, export)),
        }
        step = handshake.next(&heard)?;
    }
}

/// When patience ends, and how long it was.
struct Limit {
    at: Instant,
    whole: Duration,
}

impl Limit {
    fn left(&self) -> Result<Duration, NbdError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(NbdError::Silent(self.whole)) } else { Ok(left) }
    }

    /// Waits for one of these events.
    fn wait(&self, socket: BorrowedFd<'_>, events: PollFlags) -> Result<(), NbdError> {
        let left = self.left()?;
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(socket, events)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(NbdError::Io(e.into())),
        }
    }
}

/// What goes on while a connection is made: it waits.
impl Stream {
    fn send_all(&mut self, bytes: &mut [u8], limit: &Limit) -> Result<(), NbdError> {
        let mut sent = 0;
        while sent < bytes.len() || self.wants_write() {
            let result = match &mut bytes[sent..] {
                [] => self.flush().map(|()| 0),
                rest => self.send(&[GuestSlice::from_mut(rest)]),
            };
            match result {
                Ok(n) => sent += n,
                Err(e) if is_retry(&e) => {}
                Err(e) => return Err(e.into()),
            }
            if sent < bytes.len() || self.wants_write() {
                limit.wait(self.socket.as_fd(), PollFlags::OUT)?;
            }
        }
        Ok(())
    }

    fn receive_all(&mut self, bytes: &mut [u8], limit: &Limit) -> Result<(), NbdError> {
        let mut received = 0;
        while received < bytes.len() {
            match self.receive(&[GuestSlice::from_mut(&mut bytes[received..])]) {
                Ok(0) => return Err(NbdError::Closed),
                Ok(n) => received += n,
                Err(e) if is_retry(&e) => limit.wait(self.socket.as_fd(), PollFlags::IN)?,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// TLS's own handshake.
    fn secure(&mut self, mut session: Session, limit: &Limit) -> Result<(), NbdError> {
        while session.is_handshaking() {
            session.flush(self.socket.as_fd())?;
            if session.wants_write() {
                limit.wait(self.socket.as_fd(), PollFlags::OUT)?;
                continue;
            }
            match session.fill(self.socket.as_fd()) {
                Ok(0) => return Err(NbdError::Closed),
                Ok(_) => {}
                Err(e) if is_retry(&e) => limit.wait(self.socket.as_fd(), PollFlags::IN)?,
                Err(e) => return Err(NbdError::Tls(e.to_string())),
            }
        }
        self.tls = Some(Box::new(session));
        Ok(())
    }
}

/// Whether it is only that nothing can be done now.
pub(super) fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The addresses of a host. The resolver has a time limit of its own.
fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, NbdError> {
    let addresses = (host, port).to_socket_addrs();
    Ok(addresses.map_err(|error| NbdError::Resolve { host: host.to_owned(), error })?.collect())
}

/// Connects to the first of these addresses that answers; none of them but the last gets all the time.
fn tcp(addresses: &[SocketAddr], limit: &Limit) -> Result<OwnedFd, NbdError> {
    let mut last = NbdError::Connect(io::ErrorKind::AddrNotAvailable.into());
    for (i, address) in addresses.iter().enumerate() {
        let share = limit.left()? / (addresses.len() - i) as u32;
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                let socket = stream.into();
                watch(&socket).map_err(|e| NbdError::Io(e.into()))?;
                return Ok(socket);
            }
            Err(e) => last = NbdError::Connect(e),
        }
    }
    Err(last)
}

/// Small requests go at once, and a host that is gone is noticed.
fn watch(socket: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, DEAD_AFTER / (PROBES + 1))?;
    sockopt::set_tcp_keepintvl(socket, DEAD_AFTER / (PROBES + 1))?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    sockopt::set_tcp_user_timeout(socket, DEAD_AFTER.as_millis() as u32)
}

/// A server that has no room for one more client is as one that is not there: this does not wait.
fn unix(address: &SocketAddrUnix) -> Result<OwnedFd, NbdError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let socket = socket.map_err(|e| NbdError::Connect(e.into()))?;
    rustix::net::connect(&socket, address).map_err(|e| NbdError::Connect(e.into()))?;
    Ok(socket)
}
