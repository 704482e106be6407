//! The control thread: front-ends attach and talk, signals come, the worker tells what went wrong, and another process
//! takes over.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringway_memory::MemoryError;
use ringway_net::Event;
use ringway_net::control::GuestDevice;
use ringway_net::plane::Plane;
use ringway_queue::QueueError;
use ringway_vhost::endpoint::Endpoint;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use tracing::{error, warn};

use crate::capture::Captures;
use crate::upgrade::{self, Program, Successor};

/// The longest wait at a time.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// Signals, as file descriptors to poll. Installed before the first socket is made: whoever sees a socket may
/// send a signal.
pub(crate) struct Signals {
    end: UnixStream,
    print: UnixStream,
    upgrade: UnixStream,
}

impl Signals {
    pub(crate) fn install() -> std::io::Result<Self> {
        Ok(Self { end: pipe(&[SIGTERM, SIGINT])?, print: pipe(&[SIGUSR1])?, upgrade: pipe(&[SIGUSR2])? })
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

/// All that runs.
pub(crate) struct Server {
    pub(crate) endpoints: Vec<Endpoint<GuestDevice>>,
    pub(crate) plane: Plane,
    /// The ports', in the plane's order; the endpoints' come first.
    pub(crate) names: Vec<String>,
    /// Last: they end when the workers have.
    pub(crate) captures: Captures,
}

/// Serves until a signal ends it, until no front-end can come any more, or until another process has taken over.
/// Prints the counters in the end, unless they go on there.
pub(crate) fn serve(mut server: Server, signals: &Signals, program: &Program) -> Result<()> {
    let mut successor: Option<Successor> = None;
    let mut turns: Vec<_> = (0..server.endpoints.len()).collect();
    loop {
        server.turn(&turns);
        if server.endpoints.iter().all(Endpoint::is_spent) {
            break;
        }
        turns = wait(&server, signals, successor.as_ref()).context("cannot wait for events")?;
        if has_come(&signals.end) {
            break;
        }
        if has_come(&signals.print) {
            server.print_counters();
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
    let Server { endpoints, plane, names, captures } = server;
    // Front-ends are let go before the counters are read: nothing moves any more.
    drop(endpoints);
    Server { endpoints: Vec::new(), plane, names, captures }.print_counters();
    Ok(())
}

impl Server {
    /// Does what can be done now, for these endpoints and beside them.
    fn turn(&mut self, turns: &[usize]) {
        for &index in turns {
            self.endpoints[index].turn();
        }
        self.captures.turn(&self.plane, &self.names);
        for event in self.plane.events() {
            obey(event, &mut self.endpoints, &self.names);
        }
    }

    /// Prints the counters of every port, and what they come to.
    fn print_counters(&self) {
        print_counters(&self.plane, &self.names);
    }
}

/// Waits until something is ready, or an endpoint wants its turn; returns those that do. A thousand others cost no system
/// call each then.
fn wait(server: &Server, signals: &Signals, successor: Option<&Successor>) -> rustix::io::Result<Vec<usize>> {
    let Server { endpoints, plane, captures, .. } = server;
    let sockets = endpoints.iter().enumerate().flat_map(|(index, endpoint)| {
        endpoint.interests().map(move |(fd, flags)| (index, PollFd::from_borrowed_fd(fd, flags)))
    });
    let (mut owners, mut fds): (Vec<_>, Vec<_>) = sockets.unzip();
    let own = [signals.end.as_fd(), signals.print.as_fd(), signals.upgrade.as_fd(), plane.event_fd()];
    let own = own.into_iter().chain(captures.interests()).chain(successor.map(AsFd::as_fd));
    fds.extend(own.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    let next_try = endpoints.iter().filter_map(Endpoint::next_try);
    let limit = next_try.chain(successor.map(Successor::deadline)).min().map(|at| {
        let left = at.saturating_duration_since(Instant::now()).min(MAX_WAIT);
        Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
    });
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    owners.retain(|_| ready.next() == Some(true));
    owners.dedup();
    let now = Instant::now();
    let is_due = |endpoint: &Endpoint<GuestDevice>| endpoint.next_try().is_some_and(|at| at <= now);
    let due = endpoints.iter().enumerate().filter(|(_, endpoint)| is_due(endpoint)).map(|(index, _)| index);
    owners.extend(due);
    Ok(owners)
}

fn has_come(mut signal: &UnixStream) -> bool {
    let mut bytes = [0; 16];
    matches!(signal.read(&mut bytes), Ok(1..))
}

/// Acts on what the worker tells. Each is one line of the log.
fn obey(event: Event, endpoints: &mut [Endpoint<GuestDevice>], names: &[String]) {
    match event {
        Event::QueueFailed { port, session, index, error } => {
            if endpoints[port].device().session() == session {
                queue_failed(&mut endpoints[port], &names[port], index, error);
            }
        }
        Event::MemoryFault { port, session } => {
            if endpoints[port].device().session() == session {
                endpoints[port].device_mut().lose_memory();
                endpoints[port].cut_off("the front-end took away memory that it had shared");
            }
        }
        Event::TranslationMissing { port, session, missing } => {
            if endpoints[port].device().session() == session {
                endpoints[port].ask_translation(missing);
            }
        }
        Event::Command { port } => serve_control(&mut endpoints[port], &names[port]),
        Event::UplinkFailed { port, error }
            if error.raw_os_error() == Some(Errno::NETDOWN.raw_os_error()) =>
        {
            warn!("port {}: the interface is down; frames go on when it is up", names[port]);
        }
        Event::UplinkFailed { port, error } => error!("port {}: the interface is gone: {error}", names[port]),
    }
}

/// A driver broke a ring.
fn queue_failed(endpoint: &mut Endpoint<GuestDevice>, name: &str, index: u16, error: QueueError) {
    warn!("port {name}: vring {index} is stopped until the driver resets it: {error}");
    endpoint.device_mut().need_reset();
    endpoint.config_changed();
    if let QueueError::Memory(MemoryError::Denied { iova, access }) = error {
        endpoint.access_failed(iova, access);
    }
}

/// Carries out the commands of a control queue.
fn serve_control(endpoint: &mut Endpoint<GuestDevice>, name: &str) {
    match endpoint.device_mut().serve_control() {
        Ok(None) => {}
        Ok(Some(missing)) => endpoint.ask_translation(missing),
        Err((index, error)) => queue_failed(endpoint, name, index, error),
    }
}

/// Prints the counters of every port and worker, and what they come to.
#[allow(clippy::cast_precision_loss, reason = "ratios for people")]
fn print_counters(plane: &Plane, names: &[String]) {
    let ports: Vec<_> = (0..plane.ports()).map(|port| plane.port_counters(port)).collect();
    let mut text = String::new();
    for (name, counters) in names.iter().zip(&ports) {
        _ = writeln!(text, "port {name}: {counters}");
    }
    for (number, worker) in plane.workers().enumerate() {
        let [busy, polling, asleep] =
            [&worker.busy, &worker.polling, &worker.asleep].map(|time| time.get() as f64 / 1e9);
        _ = writeln!(text, "worker {number}: busy {busy:.3} s, polling {polling:.3} s, asleep {asleep:.3} s");
    }
    let sum = |of: fn(&ringway_net::counters::Counters) -> u64| ports.iter().map(of).sum::<u64>();
    let frames = sum(|c| c.to_frames.get());
    let syscalls = sum(|c| c.syscalls.get()) + plane.waits();
    let per_frame = |n: u64| n as f64 / frames.max(1) as f64;
    _ = writeln!(
        text,
        "all: delivered {frames} frames, copies per frame {:.3}, syscalls per frame {:.3}",
        per_frame(sum(|c| c.copies.get())),
        per_frame(syscalls),
    );
    // Whoever reads it may be gone.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
