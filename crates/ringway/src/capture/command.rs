//! `ringway capture`: has a running server capture some of its ports until this command ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{COMMAND, Reply, Request};
use crate::serve::pipe;
use crate::{args, ask};

/// How long a server may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Captures until a signal comes, or until the server ends it.
pub(crate) fn run(args: &args::Capture) -> Result<()> {
    let stop = pipe(&[SIGINT, SIGTERM])?;
    let server = ask::connect(COMMAND, args.pid, "captures")?;
    ask(&server, args)?;
    let mut deadline = Some(Instant::now() + LIMIT);
    let mut stop = Some(&stop);
    loop {
        let (has_said, must_stop) = wait(&server, stop, deadline)?;
        if has_said {
            match ask::hear(&server)? {
                Some(Reply::Started) => deadline = deadline.filter(|_| stop.is_none()),
                Some(Reply::Refused(why)) => bail!("process {}: {why}", args.pid),
                Some(Reply::Ended { captured, dropped, error }) => {
                    eprintln!("{captured} frames captured, {dropped} dropped");
                    return error.map_or(Ok(()), |error| bail!("the capture ended early: {error}"));
                }
                None => bail!("process {} has ended", args.pid),
            }
        } else if must_stop {
            rustix::net::shutdown(&server, Shutdown::Write)?;
            deadline = Some(Instant::now() + LIMIT);
            stop = None;
        } else {
            bail!("process {} does not answer: see its log", args.pid);
        }
    }
}

/// Opens the file, and sends the request with it.
fn ask(server: &OwnedFd, args: &args::Capture) -> Result<()> {
    // A reader is waited for, if it is a FIFO. The server has it alone in the end: who reads is to see its end.
    let file = open(&args.write).with_context(|| format!("cannot write to {}", args.write.display()))?;
    let request = Request { ports: args.ports.clone(), snaplen: args.snaplen };
    let Err(error) = ask::send(server, &request, Some(file.as_fd())) else { return Ok(()) };
    // Perhaps it has told why it closed the connection.
    match ask::hear(server) {
        Ok(Some(Reply::Refused(why))) => bail!("process {}: {why}", args.pid),
        _ => Err(error).context("cannot ask the server"),
    }
}

/// Waits until the server says something, or a signal comes; returns which of them, neither if it takes too long.
fn wait(server: &OwnedFd, stop: Option<&UnixStream>, deadline: Option<Instant>) -> Result<(bool, bool)> {
    let limit = deadline.map(|at| {
        let left = at.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
    });
    let mut fds = vec![PollFd::new(server, PollFlags::IN)];
    fds.extend(stop.map(|stop| PollFd::new(stop, PollFlags::IN)));
    rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref()))?;
    let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
    Ok((is_ready(0), is_ready(1)))
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    if path.as_os_str() == "-" {
        return io::stdout().as_fd().try_clone_to_owned();
    }
    Ok(File::create(path)?.into())
}
