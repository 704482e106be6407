//! A place where front-ends attach, one at a time: a listening socket, or a path to connect to.
//!
//! ```text
//!            a front-end connects (or we reach it)
//!   waiting ───────────────────────────────────────► attached
//!      ▲                                                │
//!      └── it closes, breaks the protocol, is cut off ──┘
//! ```
//!
//! The owner polls [`Endpoint::interests`] and calls [`Endpoint::turn`] when one is ready or
//! [`Endpoint::next_try`] has come. Nothing here waits.

pub(crate) mod handover;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringway_memory::{Access, Iova};
use ringway_queue::Missing;
use rustix::event::PollFlags;
use rustix::io::Errno;
use tracing::{debug, info, warn};

use crate::backend::{Device, Session, SessionError};
use crate::message::Kind;
use crate::socket::{Socket, SocketError, connect};

/// How long a client waits before it tries to connect again.
const RETRY: Duration = Duration::from_millis(500);
/// Messages handled before other endpoints get their turn.
const MESSAGES_PER_TURN: usize = 64;
/// How long a front-end may stop inside a message, or not read what it was sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where front-ends come from.
pub enum Source {
    /// They connect to us. The socket's file is removed in the end, if we made it.
    Listen(UnixListener, Option<SocketFile>),
    /// We connect to them.
    Connect(PathBuf),
    /// One is connected already, and no other will be.
    Connected(UnixStream),
    /// The connected one has been and gone.
    Spent,
}

impl Source {
    /// Listens at `path`. The file of a socket on which nobody listens any more is replaced.
    ///
    /// # Errors
    /// The kernel's; `AddrInUse` if somebody listens, or if the file is no socket.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let in_use = |why: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, why.to_owned()));
        if let Ok(meta) = std::fs::symlink_metadata(path) {
            if !meta.file_type().is_socket() {
                return in_use("a file that is no socket is in the way");
            }
            match connect(path) {
                // A listener whose backlog is full is a listener too.
                Ok(_) | Err(Errno::AGAIN) => return in_use("another program listens there"),
                Err(Errno::CONNREFUSED) => std::fs::remove_file(path)?,
                Err(e) => return Err(e.into()),
            }
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self::Listen(listener, Some(SocketFile { path: path.to_owned(), is_ours: true })))
    }
}

/// The file of a socket that we made; removed when dropped, unless another server has it then.
pub struct SocketFile {
    path: PathBuf,
    is_ours: bool,
}

impl SocketFile {
    /// The file of a socket that another process made.
    pub fn found(path: PathBuf) -> Self {
        Self { path, is_ours: false }
    }

    /// Whether it is to be removed.
    pub fn own(&mut self, is_ours: bool) {
        self.is_ours = is_ours;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

enum State<D: Device> {
    Waiting(D),
    Attached(Box<Session<D>>, Socket),
    /// Between two states, inside a method.
    Moving,
}

/// A device and the place where front-ends attach to it.
pub struct Endpoint<D: Device> {
    name: String,
    source: Source,
    state: State<D>,
    /// When to connect, or to accept, after a failure.
    next_try: Instant,
    /// The last failure to connect or to accept has been told.
    told: bool,
    /// The socket stands still halfway: how many bytes it had moved, and since when it has moved none.
    stall: Option<(u64, Instant)>,
}

impl<D: Device> Endpoint<D> {
    /// `name` is how messages call it: `port a`.
    pub fn new(name: String, source: Source, device: D) -> Self {
        Self {
            name,
            source,
            state: State::Waiting(device),
            next_try: Instant::now(),
            told: false,
            stall: None,
        }
    }

    /// How messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device, to be told what happened to it.
    pub fn device_mut(&mut self) -> &mut D {
        match &mut self.state {
            State::Waiting(device) => device,
            State::Attached(session, _) => session.device_mut(),
            State::Moving => unreachable!("no method returns in this state"),
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        match &self.state {
            State::Waiting(device) => device,
            State::Attached(session, _) => session.device(),
            State::Moving => unreachable!("no method returns in this state"),
        }
    }

    /// Whether a front-end is attached.
    pub fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached(..))
    }

    /// Whether no front-end will come any more.
    pub fn is_spent(&self) -> bool {
        matches!((&self.source, &self.state), (Source::Spent, State::Waiting(_)))
    }

    /// What to poll for.
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listener = match &self.source {
            Source::Listen(listener, _) if !self.told => Some((listener.as_fd(), PollFlags::IN)),
            _ => None,
        };
        let attached = match &self.state {
            State::Attached(session, socket) => Some((session, socket)),
            _ => None,
        };
        let sockets = attached.into_iter().flat_map(|(session, socket)| {
            let out = if socket.has_unsent() { PollFlags::OUT } else { PollFlags::empty() };
            // While a reply is owed, nothing is read; a hang-up is seen all the same.
            let read = if session.owes_reply() { PollFlags::empty() } else { PollFlags::IN };
            std::iter::once((socket.as_fd(), read | out)).chain(session.interests())
        });
        listener.into_iter().chain(sockets)
    }

    /// When to call [`Endpoint::turn`] even if nothing is ready.
    pub fn next_try(&self) -> Option<Instant> {
        let waits = matches!(self.state, State::Waiting(_));
        let tries = match self.source {
            Source::Connect(_) | Source::Connected(_) => waits,
            Source::Listen(..) => self.told,
            Source::Spent => false,
        };
        let end_of_patience = self.stall.map(|(_, since)| since + PATIENCE);
        tries.then_some(self.next_try).into_iter().chain(end_of_patience).min()
    }

    /// Does what can be done now.
    pub fn turn(&mut self) {
        // The session first: a front-end that has gone makes room for one that waits.
        self.serve();
        match &mut self.source {
            Source::Listen(..) if self.told && Instant::now() < self.next_try => {}
            Source::Listen(listener, _) => match listener.accept() {
                Ok((stream, _)) => self.attach(stream),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    self.told = false;
                }
                // Out of file descriptors, most likely: the front-end waits, and so do we.
                Err(e) => {
                    if !self.told {
                        warn!("{}: cannot accept a front-end, trying on: {e}", self.name);
                    }
                    self.told = true;
                    self.next_try = Instant::now() + RETRY;
                }
            },
            Source::Connect(path) => {
                if matches!(self.state, State::Waiting(_)) && Instant::now() >= self.next_try {
                    self.next_try = Instant::now() + RETRY;
                    match connect(path) {
                        Ok(stream) => self.attach(stream),
                        Err(e) if !self.told => {
                            self.told = true;
                            info!("{}: {}: {e}; trying on", self.name, path.display());
                        }
                        Err(_) => {}
                    }
                }
            }
            Source::Spent => {}
            Source::Connected(_) => {
                if let Source::Connected(stream) = std::mem::replace(&mut self.source, Source::Spent) {
                    self.attach(stream);
                }
            }
        }
    }

    /// Tells the front-end that the device's configuration space or status has changed by itself.
    pub fn config_changed(&mut self) {
        if let State::Attached(session, _) = &mut self.state {
            session.config_changed();
        }
    }

    /// Asks the front-end for a translation that a vring waits for.
    pub fn ask_translation(&mut self, missing: Missing) {
        if let State::Attached(session, _) = &mut self.state {
            session.ask_translation(missing);
        }
    }

    /// Tells the front-end that the driver had the device do what its IOMMU does not allow.
    pub fn access_failed(&self, iova: Iova, access: Access) {
        if let State::Attached(session, _) = &self.state {
            session.access_failed(iova, access);
        }
    }

    /// Ends the session, if there is one, for a reason of the data path.
    pub fn cut_off(&mut self, reason: &str) {
        if self.is_attached() {
            warn!("{}: session ended: {reason}", self.name);
            self.detach();
        }
    }

    fn attach(&mut self, stream: UnixStream) {
        self.let_go_of_the_gone();
        if self.is_attached() {
            // One vhost-user socket is one device. A front-end that finds it taken is told by the close.
            warn!("{}: a second front-end was turned away, one is attached", self.name);
            return;
        }
        match Socket::new(stream, Kind::Request) {
            Ok(socket) => {
                info!("{}: front-end attached", self.name);
                self.told = false;
                if let State::Waiting(device) = std::mem::replace(&mut self.state, State::Moving) {
                    self.state = State::Attached(Box::new(Session::new(&self.name, device)), socket);
                }
                self.serve();
            }
            Err(e) => warn!("{}: {e}", self.name),
        }
    }

    /// Ends the session of a front-end that has hung up, whatever it has said before.
    fn let_go_of_the_gone(&mut self) {
        if let State::Attached(_, socket) = &self.state
            && socket.has_hung_up()
        {
            info!("{}: front-end detached", self.name);
            self.detach();
        }
    }

    fn detach(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Moving) {
            State::Attached(session, _) => State::Waiting(session.end()),
            other => other,
        };
        // `next_try` stays: it is past, unless the front-end left as soon as it was reached.
    }

    /// Handles the messages that have arrived.
    fn serve(&mut self) {
        let State::Attached(session, socket) = &mut self.state else { return };
        match exchange(session, socket) {
            Ok(()) => {}
            Err(Ended::Socket(SocketError::Closed)) => {
                info!("{}: front-end detached", self.name);
                self.detach();
            }
            Err(Ended::Socket(SocketError::Io(e)))
                if matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) =>
            {
                info!("{}: front-end gone", self.name);
                self.detach();
            }
            Err(Ended::Socket(e)) => self.cut_off(&e.to_string()),
            Err(Ended::Session(e)) => self.cut_off(&e.to_string()),
        }
        self.watch_patience();
    }

    /// A front-end that goes on halfway after a while is one that was held up; one that does not has lost its way, and
    /// its port is another's.
    fn watch_patience(&mut self) {
        let halfway = match &self.state {
            State::Attached(_, socket) => socket.halfway(),
            _ => None,
        };
        let now = Instant::now();
        self.stall = match (halfway, self.stall) {
            (None, _) => None,
            (Some(moved), Some((before, since))) if moved == before => Some((moved, since)),
            (Some(moved), _) => Some((moved, now)),
        };
        if self.stall.is_some_and(|(_, since)| now >= since + PATIENCE) {
            self.stall = None;
            self.cut_off(&format!(
                "the front-end has stood still for {} s inside of a message, or does not read the replies",
                PATIENCE.as_secs()
            ));
        }
    }
}

/// Rings that run are stopped: when an endpoint is gone, nothing of its front-end's is touched any more.
impl<D: Device> Drop for Endpoint<D> {
    fn drop(&mut self) {
        self.detach();
    }
}

enum Ended {
    Socket(SocketError),
    Session(SessionError),
}

impl From<SocketError> for Ended {
    fn from(error: SocketError) -> Self {
        Self::Socket(error)
    }
}

fn exchange<D: Device>(session: &mut Session<D>, socket: &mut Socket) -> Result<(), Ended> {
    socket.flush()?;
    if let Some(reply) = session.turn() {
        socket.send(reply)?;
    }
    for _ in 0..MESSAGES_PER_TURN {
        if session.owes_reply() {
            return if socket.has_hung_up() { Err(SocketError::Closed.into()) } else { Ok(()) };
        }
        let Some(message) = socket.receive()? else { return Ok(()) };
        if let Some(reply) = session.handle(message).map_err(Ended::Session)? {
            socket.send(reply)?;
        }
    }
    debug!("a front-end sends message after message; others get their turn");
    Ok(())
}
