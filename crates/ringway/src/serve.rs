//! The main thread, whatever is served: sockets are ready, signals come, and another process takes over.
//!
//! ```text
//!   start ──────┐                    signals: end, counters, upgrade
//!   restore ────┴─► turn ◄─► wait ─┬─► (counters) ends
//!                    ▲             └─► suspend ─► state ─► hand over ─► ends
//!                    └──── resume, if it failed ◄────┘
//! ```
//!
//! Not here: what a server is made of ([`crate::net`]), who sends what in an upgrade ([`crate::upgrade`]).

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringway_vhost::handover::{FilesIn, FilesOut, HandoverError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::notify;
use crate::upgrade::{self, Predecessor, Program, Successor};

/// The longest wait at a time.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// All that runs: a switch with its ports, or disks.
pub(crate) trait Server: Sized {
    /// What the command line comes to.
    type Plan;
    /// What is handed over in an upgrade.
    type State: Serialize + DeserializeOwned;
    /// What stands still meanwhile.
    type Held;

    /// Starts it. Who sees a socket can rely on the rest.
    fn start(plan: Self::Plan) -> Result<Self>;

    /// What to poll for, and which part's turn it is then.
    fn interests(&self) -> impl Iterator<Item = Interest<'_>>;

    /// When parts want their turn even if nothing is ready.
    fn deadlines(&self) -> impl Iterator<Item = Deadline>;

    /// Does what can be done now, for these parts and beside them.
    fn turn(&mut self, parts: &[usize]);

    /// No front-end can come any more.
    fn is_spent(&self) -> bool;

    /// The counters, as they are printed.
    fn counters(&self) -> String;

    /// Lets all front-ends go: nothing moves any more.
    fn end(&mut self);

    /// Stops all rings. If that cannot be, all runs as before.
    fn suspend(&mut self) -> Result<Self::Held>;

    /// The state of a server that stands still; its files are added to `files`.
    fn state<'s>(
        &'s self,
        held: &'s Self::Held,
        files: &mut FilesOut<'s>,
    ) -> Result<Self::State, HandoverError>;

    /// Goes on.
    fn resume(&mut self, held: Self::Held);

    /// Another process has it now.
    fn hand_over(&mut self, held: Self::Held);

    /// A server that goes on where another was, once it is told to take over. Until then it touches no ring.
    fn restore(plan: Self::Plan, state: Self::State, files: FilesIn) -> Result<Self>;

    /// Goes on.
    fn take_over(&mut self);
}

/// What to poll for: the part that it belongs to, if it is one's, and its file descriptor.
pub(crate) type Interest<'s> = (Option<usize>, BorrowedFd<'s>, PollFlags);
/// When a part wants its turn.
pub(crate) type Deadline = (Option<usize>, Instant);

/// Signals, as file descriptors to poll.
struct Signals {
    end: UnixStream,
    print: UnixStream,
    upgrade: UnixStream,
}

impl Signals {
    fn install() -> Result<Self> {
        let install = || {
            Ok(Self { end: pipe(&[SIGTERM, SIGINT])?, print: pipe(&[SIGUSR1])?, upgrade: pipe(&[SIGUSR2])? })
        };
        install().map_err(|error: std::io::Error| error).context("cannot install signal handlers")
    }
}

/// A stream that becomes readable when one of these signals comes.
pub(crate) fn pipe(signals: &[i32]) -> std::io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for &signal in signals {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

fn has_come(mut signal: &UnixStream) -> bool {
    let mut bytes = [0; 16];
    matches!(signal.read(&mut bytes), Ok(1..))
}

/// Makes a plan, starts what it says or takes it over from the server that started this one, and serves until the end.
pub(crate) fn run<S: Server>(plan: impl FnOnce() -> Result<S::Plan>) -> Result<()> {
    // Before the first socket is made: whoever sees one may send a signal.
    let signals = Signals::install()?;
    let plan = plan()?;
    let program = Program::find();
    let server = if let Some(predecessor) = Predecessor::find()? {
        predecessor.take_over(plan)?
    } else {
        let server = S::start(plan)?;
        notify::send("READY=1");
        server
    };
    serve(server, &signals, &program)
}

/// Serves until a signal ends it, until no front-end can come any more, or until another process has taken over.
/// Prints the counters in the end, unless they go on there.
fn serve<S: Server>(mut server: S, signals: &Signals, program: &Program) -> Result<()> {
    let mut successor: Option<Successor> = None;
    let parts = server.interests().map(|(part, ..)| part).chain(server.deadlines().map(|(part, _)| part));
    let mut turns: Vec<_> = parts.flatten().collect();
    turns.sort_unstable();
    turns.dedup();
    loop {
        server.turn(&turns);
        if server.is_spent() {
            break;
        }
        turns = wait_for_all(&server, signals, successor.as_ref()).context("cannot wait for events")?;
        if has_come(&signals.end) {
            break;
        }
        if has_come(&signals.print) {
            print(&server.counters());
        }
        if has_come(&signals.upgrade) && successor.is_none() {
            successor = upgrade::begin(program);
        }
        if let Some(successor) = successor.take_if(|s| s.is_due())
            && upgrade::hand_over(successor, &mut server)
        {
            return Ok(());
        }
    }
    // A program that was about to take over ends first.
    drop(successor);
    server.end();
    print(&server.counters());
    Ok(())
}

/// Waits for the server's parts, signals, and the program that is to take over.
fn wait_for_all<S: Server>(
    server: &S,
    signals: &Signals,
    successor: Option<&Successor>,
) -> rustix::io::Result<Vec<usize>> {
    let own = [&signals.end, &signals.print, &signals.upgrade].map(AsFd::as_fd);
    let own = own.into_iter().chain(successor.map(AsFd::as_fd)).map(|fd| (None, fd, PollFlags::IN));
    let limit = successor.map(|successor| (None, successor.deadline()));
    wait(server.interests().chain(own), server.deadlines().chain(limit))
}

/// Waits until something is ready, or a part wants its turn; returns the parts whose turn it is. A thousand others cost no
/// system call each then.
pub(crate) fn wait<'s>(
    interests: impl Iterator<Item = Interest<'s>>,
    deadlines: impl Iterator<Item = Deadline>,
) -> rustix::io::Result<Vec<usize>> {
    let interests = interests.map(|(part, fd, flags)| (part, PollFd::from_borrowed_fd(fd, flags)));
    let (parts, mut fds): (Vec<_>, Vec<_>) = interests.unzip();
    let deadlines: Vec<_> = deadlines.collect();
    let limit = deadlines.iter().map(|&(_, at)| at).min().map(|at| {
        let left = at.saturating_duration_since(Instant::now()).min(MAX_WAIT);
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
    });
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    let now = Instant::now();
    let ready = parts.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|(part, _)| part);
    let due = deadlines.into_iter().filter(|&(_, at)| at <= now).map(|(part, _)| part);
    let mut turns: Vec<_> = ready.chain(due).flatten().collect();
    turns.dedup();
    Ok(turns)
}

fn print(text: &str) {
    // Whoever reads it may be gone.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
