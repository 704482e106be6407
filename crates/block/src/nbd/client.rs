//! The client's thread: it sends, receives, and connects anew when it has to.
//!
//! ```text
//!                      lost                      after a while
//!   Up(stream, flight) ────► Down(when to retry) ────► Connecting (a thread of its own: names are looked up)
//!          ▲  jobs go back to `waiting`    ▲ failed         │
//!          └───────────────────────────────┴────────────────┘ connected, the same export
//! ```
//!
//! While a disk is idle the thread sleeps in `poll`. Nobody waits for it: jobs are put into an inbox.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use ringway_memory::GuestSlice;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tracing::{debug, error, info, warn};

use super::flight::Flight;
use super::protocol::{Command, Export, request};
use super::stream::{Stream, establish, is_retry};
use super::uri::Uri;
use super::{NbdError, Options};
use crate::job::{Executor, Job, Operation};

/// How long to wait before the first attempt to connect anew; each one after waits twice as long as the one before.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// So many sends and receives before it is looked at what else there is.
const ROUNDS: usize = 64;

/// A connection that nothing was asked of yet.
type Fresh = (Stream, Export);

/// A client of one export: an [`Executor`] that gives up its connection when it is dropped.
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Connects, and says what the export is.
    ///
    /// # Errors
    /// Any [`NbdError`]: the first connection is not tried for twice.
    pub fn connect(uri: &Uri, options: &Options) -> Result<(Arc<Self>, Export), NbdError> {
        let (stream, export) = establish(uri, options)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|e| NbdError::Io(e.into()))?;
        let (uri, options) = (uri.clone(), *options);
        let shared =
            Arc::new(Shared { uri, options, export: Mutex::new(export), inbox: Mutex::default(), wake });
        let worker = Worker {
            shared: Arc::clone(&shared),
            link: Link::Up { stream, flight: Flight::new(export) },
            next: None,
            waiting: VecDeque::new(),
            trouble: None,
            in_doubt: false,
            heard: Instant::now(),
            may_receive: false,
        };
        let thread = thread::Builder::new().name("nbd".to_owned()).spawn(|| worker.run());
        let thread = Some(thread.map_err(NbdError::Thread)?);
        Ok((Arc::new(Self { shared, thread }), export))
    }

    /// Asks the server for the export's size, as it is now, by a new connection, which is gone on with if the size is
    /// another one. Waits for the server.
    ///
    /// # Errors
    /// Any [`NbdError`]; all is then as it was.
    pub fn refresh(&self) -> Result<Export, NbdError> {
        let (stream, now) = establish(&self.shared.uri, &self.shared.options)?;
        let mut export = self.shared.export();
        if let Some(change) = now.change_since(&export.with_size(now.size)) {
            return Err(NbdError::Changed(change));
        }
        if now.size != export.size {
            export.size = now.size;
            self.shared.lock().next = Some((stream, now));
            self.shared.wake();
        }
        Ok(*export)
    }
}

impl Executor for Client {
    fn submit(&self, jobs: &mut Vec<Job>) {
        let mut inbox = self.shared.lock();
        let is_first = inbox.jobs.is_empty();
        inbox.jobs.append(jobs);
        drop(inbox);
        if is_first {
            self.shared.wake();
        }
    }

    fn abandon(&self) {
        self.shared.lock().abandon = true;
        self.shared.wake();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread is told.
#[derive(Default)]
struct Inbox {
    jobs: Vec<Job>,
    /// How an attempt to connect anew has ended.
    attempt: Option<Result<Fresh, NbdError>>,
    /// A connection to go on with.
    next: Option<Fresh>,
    abandon: bool,
    stop: bool,
}

struct Shared {
    uri: Uri,
    options: Options,
    /// What it was at first, with the size that was asked for last: what it has to be.
    export: Mutex<Export>,
    inbox: Mutex<Inbox>,
    wake: OwnedFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn export(&self) -> MutexGuard<'_, Export> {
        self.export.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A counter at its limit is readable, which is all that is wanted.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn take(&self) -> Inbox {
        // Before it is looked at: what comes later wakes anew.
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        mem::take(&mut *self.lock())
    }
}

#[allow(clippy::large_enum_variant, reason = "there is one for a disk, and it seldom moves")]
enum Link {
    Up { stream: Stream, flight: Flight },
    Down { retry: Instant },
    Connecting,
}

/// The server has been away, and has not answered a request since.
struct Trouble {
    since: Instant,
    /// Attempts to connect anew.
    attempts: u32,
    /// Why the last one failed.
    reason: String,
    /// Jobs have failed.
    gave_up: bool,
}

struct Worker {
    shared: Arc<Shared>,
    link: Link,
    /// A connection to go on with as soon as the one before has no request left.
    next: Option<Fresh>,
    waiting: VecDeque<Job>,
    trouble: Option<Trouble>,
    /// The next flush is to fail.
    in_doubt: bool,
    /// When the server said something last, or had nothing to say.
    heard: Instant,
    /// There may be something to receive, whatever `poll` says: TLS takes more from the socket than it is asked for.
    may_receive: bool,
}

impl Worker {
    fn run(mut self) {
        let mut is_woken = true;
        loop {
            let inbox = if is_woken { self.shared.take() } else { Inbox::default() };
            if inbox.stop {
                return self.disconnect();
            }
            self.waiting.extend(inbox.jobs);
            if let Some(attempt) = inbox.attempt {
                self.attempted(attempt);
            }
            self.next = inbox.next.or(self.next);
            if inbox.abandon {
                self.abandon();
            }
            let may_send = self.receive().and_then(|()| self.go_on()).unwrap_or_else(|reason| {
                self.lost(&reason);
                false
            });
            self.look_at_clock();
            is_woken = self.sleep(may_send);
        }
    }

    /// Asks the server for what waits.
    fn begin_jobs(&mut self) {
        let Link::Up { flight, .. } = &mut self.link else { return };
        while flight.is_clear()
            && self.next.is_none()
            && let Some(job) = self.waiting.pop_front()
        {
            if self.in_doubt && job.operation() == Operation::Flush {
                self.in_doubt = false;
                warn!(
                    "{}: a flush fails: writes before it were answered by a server that was lost since",
                    self.shared.uri
                );
                job.done(Err(io::Error::from_raw_os_error(libc::EIO)));
            } else {
                flight.begin(job);
            }
        }
    }

    /// Receives what is there.
    fn receive(&mut self) -> Result<(), NbdError> {
        let Link::Up { stream, flight } = &mut self.link else { return Ok(()) };
        stream.flush()?;
        if mem::take(&mut self.may_receive) {
            let answers;
            (self.may_receive, answers) = receive_some(stream, flight)?;
            self.heard = Instant::now();
            if answers > 0 {
                self.trouble = None;
            }
        }
        Ok(())
    }

    /// Sends what there is to send. Returns whether more can be sent.
    fn go_on(&mut self) -> Result<bool, NbdError> {
        if let Link::Up { flight, .. } = &self.link
            && flight.is_idle()
        {
            self.heard = Instant::now();
        }
        self.change_over();
        self.begin_jobs();
        let Link::Up { stream, flight } = &mut self.link else { return Ok(false) };
        send_some(stream, flight)
    }

    /// The connection is of no more use.
    fn lost(&mut self, reason: &NbdError) {
        let Link::Up { flight, .. } = mem::replace(&mut self.link, Link::Connecting) else { return };
        self.may_receive = false;
        self.in_doubt |= self.shared.options.fail_flush_after_loss && flight.has_unflushed();
        for job in flight.into_jobs().rev() {
            self.waiting.push_front(job);
        }
        let waits = self.waiting.len();
        warn!("{}: connection lost, {waits} requests wait: {reason}", self.shared.uri);
        self.abandon();
        self.retry_later();
    }

    fn retry_later(&mut self) {
        let now = Instant::now();
        let trouble = self.trouble.get_or_insert_with(|| Trouble {
            since: now,
            attempts: 0,
            reason: String::new(),
            gave_up: false,
        });
        let wait = FIRST_RETRY.saturating_mul(1 << trouble.attempts.min(16)).min(LAST_RETRY);
        trouble.attempts = trouble.attempts.saturating_add(1);
        self.link = Link::Down { retry: now + wait };
    }

    /// An attempt to connect anew has ended.
    fn attempted(&mut self, attempt: Result<Fresh, NbdError>) {
        if !matches!(self.link, Link::Connecting) {
            return;
        }
        let attempt = attempt.and_then(|(stream, now)| match now.change_since(&self.shared.export()) {
            Some(change) => Err(NbdError::Changed(change)),
            None => Ok((stream, now)),
        });
        match attempt {
            Ok(fresh) => self.connected(fresh),
            Err(reason) => {
                let reason = reason.to_string();
                if let Some(trouble) = self.trouble.as_mut().filter(|trouble| trouble.reason != reason) {
                    warn!("{}: {reason}", self.shared.uri);
                    trouble.reason = reason;
                }
                self.retry_later();
            }
        }
    }

    fn connected(&mut self, (stream, export): Fresh) {
        info!("{}: connected again, {} requests go on", self.shared.uri, self.waiting.len());
        self.link = Link::Up { stream, flight: Flight::new(export) };
        // With nothing to ask for, that it answers is not known before there is.
        if self.waiting.is_empty() {
            self.trouble = None;
        }
    }

    /// Goes on with the next connection if there is one and the one before is done with.
    fn change_over(&mut self) {
        if self.next.is_none() {
            return;
        }
        if let Link::Up { flight, .. } = &mut self.link {
            if !flight.settle() {
                return;
            }
            self.in_doubt |= flight.is_in_doubt();
            self.disconnect();
            self.may_receive = false;
        }
        if let Some(fresh) = self.next.take() {
            self.connected(fresh);
        }
    }

    /// Ends what nobody waits for.
    fn abandon(&mut self) {
        self.waiting.retain(|job| !job.is_abandoned());
        if let Link::Up { flight, .. } = &mut self.link
            && let Err(reason) = flight.abandon()
        {
            self.lost(&reason);
        }
    }

    /// Does what is due: tries to connect, gives up waiting, notices silence.
    fn look_at_clock(&mut self) {
        let now = Instant::now();
        if let Link::Up { flight, .. } = &self.link {
            if let Some(limit) = self.shared.options.silence
                && !flight.is_idle()
                && now.duration_since(self.heard) >= limit
            {
                self.lost(&NbdError::Silent(limit));
            }
        } else if let Some(trouble) = &mut self.trouble
            && now.duration_since(trouble.since) >= self.shared.options.reconnect
            && !self.waiting.is_empty()
        {
            if !mem::replace(&mut trouble.gave_up, true) {
                let limit = self.shared.options.reconnect;
                error!(
                    "{}: the server was away for {limit:?}: requests fail until it is back",
                    self.shared.uri
                );
            }
            for job in self.waiting.drain(..) {
                job.done(Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)));
            }
        }
        if let Link::Down { retry } = self.link
            && now >= retry
        {
            self.attempt();
        }
    }

    fn attempt(&mut self) {
        self.link = Link::Connecting;
        let shared = Arc::clone(&self.shared);
        let connect = move || {
            let attempt = establish(&shared.uri, &shared.options);
            shared.lock().attempt = Some(attempt);
            shared.wake();
        };
        debug!("{}: connecting", self.shared.uri);
        if let Err(e) = thread::Builder::new().name("nbd-connect".to_owned()).spawn(connect) {
            self.attempted(Err(NbdError::Thread(e)));
        }
    }

    /// When [`Worker::look_at_clock`] has something to do next.
    fn next_due(&self) -> Option<Instant> {
        let is_waiting = !self.waiting.is_empty();
        let trouble = self.trouble.as_ref().filter(|_| is_waiting);
        let give_up = trouble.and_then(|trouble| trouble.since.checked_add(self.shared.options.reconnect));
        match &self.link {
            Link::Up { flight, .. } if flight.is_idle() => None,
            Link::Up { .. } => self.shared.options.silence.and_then(|limit| self.heard.checked_add(limit)),
            Link::Down { retry } => Some(give_up.map_or(*retry, |at| at.min(*retry))),
            Link::Connecting => give_up,
        }
    }

    /// Waits until there is something to do. Returns whether there is something in the inbox.
    fn sleep(&mut self, may_send: bool) -> bool {
        let left = if may_send || self.may_receive {
            Some(Duration::ZERO)
        } else {
            self.next_due().map(|due| due.saturating_duration_since(Instant::now()))
        };
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        });
        let wake = PollFd::new(&self.shared.wake, PollFlags::IN);
        let Link::Up { stream, flight } = &self.link else {
            let _ = poll(&mut [wake], left.as_ref());
            return true;
        };
        let is_sending = flight.has_outgoing() || stream.wants_write();
        let events = if is_sending { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = [wake, PollFd::new(stream, events)];
        if poll(&mut fds, left.as_ref()).is_err() {
            return true;
        }
        self.may_receive |= !fds[1].revents().difference(PollFlags::OUT).is_empty();
        !fds[0].revents().is_empty()
    }

    /// Tells the server that this is the end. Jobs that are not done fail as they are dropped.
    fn disconnect(&mut self) {
        if let Link::Up { stream, flight } = &mut self.link
            && flight.is_idle()
        {
            let mut bytes = request(Command::Disconnect, 0, 0, 0, 0);
            let _ = stream.send(&[GuestSlice::from_mut(&mut bytes)]);
        }
    }
}

/// Sends; whether there was room for more.
fn send_some(stream: &mut Stream, flight: &mut Flight) -> Result<bool, NbdError> {
    for _ in 0..ROUNDS {
        if !flight.has_outgoing() {
            return Ok(false);
        }
        let sent = stream.send(&flight.pieces_out());
        match sent {
            Ok(n) => flight.sent(n),
            Err(e) if is_retry(&e) => return Ok(false),
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => flight.cannot_send()?,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

/// Receives; whether there may be more, and how many requests were answered.
fn receive_some(stream: &mut Stream, flight: &mut Flight) -> Result<(bool, usize), NbdError> {
    let mut answers = 0;
    for _ in 0..ROUNDS {
        let pieces = flight.pieces_in();
        let room: usize = pieces.iter().map(GuestSlice::len).sum();
        let received = stream.receive(&pieces);
        drop(pieces);
        match received {
            Ok(0) => return Err(NbdError::Closed),
            Ok(n) => {
                answers += flight.received(n)?;
                if n < room {
                    return Ok((false, answers));
                }
            }
            Err(e) if is_retry(&e) => return Ok((false, answers)),
            Err(e) if e.raw_os_error() == Some(libc::EFAULT) => flight.cannot_receive()?,
            Err(e) => return Err(e.into()),
        }
    }
    Ok((true, answers))
}
