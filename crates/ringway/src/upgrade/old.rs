//! The server that is replaced.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use ringway_vhost::handover::{FilesOut, HandoverError, Link};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use tracing::{error, info};

use super::{FromNew, FromOld, LINK, PAUSE_LIMIT, READY_LIMIT, State, clock, status};
use crate::notify;
use crate::serve::Server;

/// For a message that has begun to come.
const MOMENT: Duration = Duration::from_millis(100);

/// How this program was started.
pub(crate) struct Program {
    path: PathBuf,
    args: Vec<OsString>,
}

impl Program {
    /// To be called at the start, while what this program was started from is still in its place.
    pub(crate) fn find() -> Self {
        let mut args = std::env::args_os();
        let name = args.next().unwrap_or_default();
        // The path as it was given, a symbolic link perhaps, which may lead to another version later.
        let found = if name.as_encoded_bytes().contains(&b'/') {
            std::path::absolute(&name).ok()
        } else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|dir| dir.join(&name)).find(|path| path.is_file())
        };
        let running = std::env::current_exe().unwrap_or_default();
        let path = found.filter(|path| is_same(path, &running)).unwrap_or(running);
        Self { path, args: args.collect() }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    id(one).is_some_and(|one| Some(one) == id(other))
}

/// The new program, from its start until it has taken over; killed if it does not.
pub(crate) struct Successor {
    child: Option<Child>,
    link: Link,
    deadline: Instant,
}

/// Starts the new program.
pub(crate) fn begin(program: &Program) -> Option<Successor> {
    info!("upgrade: starting {}", program.path.display());
    match Successor::start(program) {
        Ok(successor) => Some(successor),
        Err(error) => {
            give_up(&error);
            None
        }
    }
}

/// Hands everything over, or goes on; returns whether it was handed over.
pub(crate) fn hand_over(successor: Successor, server: &mut impl Server) -> bool {
    match successor.take_over(server) {
        Ok(pid) => {
            info!("upgrade: process {pid} has taken over");
            true
        }
        Err(error) => {
            give_up(&error);
            false
        }
    }
}

fn give_up(error: &anyhow::Error) {
    error!("upgrade failed, this program goes on: {error:#}");
    status::send(std::process::id(), &status::Status::Failed(format!("{error:#}")));
}

impl Successor {
    fn start(program: &Program) -> Result<Self> {
        let (link, theirs) = Link::pair().context("no socket for the new program")?;
        // The only file descriptor beside the standard streams that it inherits; nothing else is started meanwhile.
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let child = Command::new(&program.path)
            .args(&program.args)
            .env(LINK, theirs.as_raw_fd().to_string())
            .spawn()
            .with_context(|| format!("cannot start {}", program.path.display()))?;
        Ok(Self { child: Some(child), link, deadline: Instant::now() + READY_LIMIT })
    }

    /// When to ask [`Successor::is_due`] even if its file descriptor is not readable.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether it has said something, or should have.
    pub(crate) fn is_due(&self) -> bool {
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.link, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&no_wait)), Ok(1..)) || Instant::now() >= self.deadline
    }

    /// Hands everything over; returns its process id. If it fails, the server runs as before.
    fn take_over(mut self, server: &mut impl Server) -> Result<u32> {
        // What it says first is short and comes whole.
        self.hear(Instant::now() + MOMENT, "it was ready")?;
        let (since, deadline) = (clock(), Instant::now() + PAUSE_LIMIT);
        let held = server.suspend()?;
        if let Err(error) = self.transfer(server, &held, since, deadline) {
            // It is gone before a ring is touched here.
            drop(self);
            server.resume(held);
            return Err(error);
        }
        server.hand_over(held);
        let pid = self.child.take().map_or(0, |child| child.id());
        notify::send(&format!("MAINPID={pid}\nREADY=1"));
        Ok(pid)
    }

    /// Sends the state of a server that stands still, and says go once all is set up there.
    fn transfer<S: Server>(
        &mut self,
        server: &S,
        held: &S::Held,
        since: u64,
        deadline: Instant,
    ) -> Result<()> {
        let mut files = FilesOut::default();
        let state = FromOld::State(State { since, server: server.state(held, &mut files)? });
        let set_up = "all was set up";
        match self.link.send(&state, &files, deadline) {
            // What it said before it ended is the reason.
            Ok(()) | Err(HandoverError::Closed) => self.hear(deadline, set_up)?,
            Err(error) => return Err(self.explain(error, set_up)),
        }
        self.link
            .send(&FromOld::<S::State>::Go, &FilesOut::default(), deadline)
            .map_err(|error| self.explain(error, "it went"))
    }

    /// Waits until it says that all is well so far.
    fn hear(&mut self, deadline: Instant, what: &str) -> Result<()> {
        match self.link.receive(deadline) {
            Ok((FromNew::Ready | FromNew::SetUp, _)) => Ok(()),
            Ok((FromNew::Failed(why), _)) => bail!("the new program: {why}"),
            Err(error) => Err(self.explain(error, what)),
        }
    }

    fn explain(&mut self, error: HandoverError, what: &str) -> anyhow::Error {
        match error {
            HandoverError::Closed => match self.end() {
                Some(status) => anyhow!("the new program ended before {what} ({status})"),
                None => anyhow!("the new program ended before {what}"),
            },
            HandoverError::TimedOut => anyhow!("the new program did not say in time that {what}"),
            other => anyhow::Error::new(other).context("the new program cannot take over"),
        }
    }

    /// Kills it, unless it has taken over or ended; its status.
    fn end(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        // One that has ended by itself keeps its status.
        let _ = child.kill();
        child.wait().ok()
    }
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        self.end();
    }
}
