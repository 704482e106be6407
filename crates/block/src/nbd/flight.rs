//! Jobs that a server was asked to do, and what of it has no answer yet; without a socket.
//!
//! ```text
//!   begin ─► outgoing: [header, data …] … ─pieces_out, sent─►
//!            requests, by cookie
//!   done  ◄─ answer   [header] [data …]   ◄─pieces_in, received─
//! ```
//!
//! A job is one request, or several if it is longer than the server takes. Data go from and to the guest's memory as they
//! stand there; only headers are ours. A reply to what was not sent, or for the second time, ends the connection.
//!
//! A job may be given up while the server works on it. Then its answer is waited for all the same, and new jobs are not to
//! begin before it has come if it was a write, which would else overwrite what came after it.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use arrayvec::ArrayVec;
use ringway_memory::io::MAX_PIECES;
use ringway_memory::{GuestBuf, GuestSlice};

use super::NbdError;
use super::protocol::{
    Command, Export, FLAG_FUA, FLAG_NO_HOLE, ProtocolError, REPLY_LEN, REQUEST_LEN, Reply, request,
};
use crate::job::{Job, Operation, Range};

/// Requests without data are for at most so many bytes, a multiple of every block.
const MAX_RANGE: u32 = 1 << 30;
/// A job has so many requests without an answer at most.
const WINDOW: u32 = 16;
/// Room for replies without data, which are taken many at once.
const REPLIES_LEN: usize = 64 * REPLY_LEN;

/// Memory to send from or to receive to.
pub(super) type Pieces<'a> = ArrayVec<GuestSlice<'a>, MAX_PIECES>;

/// What a connection has to do.
pub(super) struct Flight {
    export: Export,
    /// Jobs begun, by the number of their first request.
    tasks: BTreeMap<u64, Task>,
    /// What has no answer yet, by its cookie.
    requests: BTreeMap<u64, Request>,
    /// What was not sent yet, by rising cookies; of the first one, `begun` bytes were.
    outgoing: VecDeque<Outgoing>,
    begun: usize,
    next_cookie: u64,
    /// Requests of `requests` that are answered with data.
    reads: usize,
    /// Requests of `requests` that write, and whose job was given up.
    stray_writes: usize,
    /// Of whose data what is received next is.
    incoming: Option<Incoming>,
    /// Replies, the last one perhaps not whole; nothing while data come.
    replies: Box<[u8; REPLIES_LEN]>,
    replies_len: usize,
    /// How many writes were answered that may still be lost, and how many of the first of them are flushed.
    written: u64,
    flushed: u64,
    /// The flush before the connection's end, for which there is no job.
    settling: Option<u64>,
    /// It has failed.
    is_in_doubt: bool,
    /// Only one request is sent at once: to find which one's memory is gone.
    is_narrow: bool,
}

struct Task {
    job: Job,
    command: Command,
    flags: u16,
    offset: u64,
    len: u64,
    /// The longest part.
    max: u32,
    /// Bytes that requests were made for.
    asked: u64,
    unanswered: u32,
    error: Option<io::Error>,
    /// A flush has to follow.
    then_flush: bool,
    /// Of a flush: how many writes were answered when it was asked for.
    covers: u64,
}

struct Request {
    /// None if its job was given up.
    task: Option<u64>,
    command: Command,
    /// Where in the job's buffer.
    at: usize,
    len: u32,
}

struct Outgoing {
    header: [u8; REQUEST_LEN],
    cookie: u64,
    task: u64,
    at: usize,
    /// Length of the data behind the header.
    payload: usize,
}

struct Incoming {
    cookie: u64,
    /// None if its job was given up: the data are thrown away.
    task: Option<u64>,
    at: usize,
    left: usize,
}

impl Flight {
    /// Nothing to do, on a connection to this export.
    pub(super) fn new(export: Export) -> Self {
        Self {
            export,
            tasks: BTreeMap::new(),
            requests: BTreeMap::new(),
            outgoing: VecDeque::new(),
            begun: 0,
            next_cookie: 0,
            reads: 0,
            stray_writes: 0,
            incoming: None,
            replies: Box::new([0; REPLIES_LEN]),
            replies_len: 0,
            written: 0,
            flushed: 0,
            settling: None,
            is_in_doubt: false,
            is_narrow: false,
        }
    }

    /// Whether jobs may begin.
    pub(super) fn is_clear(&self) -> bool {
        self.stray_writes == 0
    }

    /// Whether no answer is waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether there is something to send.
    pub(super) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether writes were answered that were not flushed since.
    pub(super) fn has_unflushed(&self) -> bool {
        self.written > self.flushed
    }

    /// Whether writes that were answered may be lost, whatever flushes come.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// Makes ready for the connection's end, once it is idle: a flush by another connection is not for what was written by
    /// this one, unless the server says so. Returns whether it is ready.
    pub(super) fn settle(&mut self) -> bool {
        if !self.is_idle() {
            return false;
        }
        if !self.has_unflushed() || !self.export.can_flush() {
            return true;
        }
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.settling = Some(cookie);
        let header = request(Command::Flush, 0, cookie, 0, 0);
        self.outgoing.push_back(Outgoing { header, cookie, task: cookie, at: 0, payload: 0 });
        self.requests.insert(cookie, Request { task: None, command: Command::Flush, at: 0, len: 0 });
        false
    }

    /// The jobs that are not done, in the order that they came in.
    pub(super) fn into_jobs(self) -> impl DoubleEndedIterator<Item = Job> {
        self.tasks.into_values().map(|task| task.job)
    }

    /// Asks for a job, or does it if there is nothing to ask for.
    pub(super) fn begin(&mut self, job: Job) {
        match self.plan(job) {
            Ok(task) => {
                let id = self.next_cookie;
                self.tasks.insert(id, task);
                self.ask(id);
            }
            Err((job, result)) => job.done(result),
        }
    }

    /// What to ask for, or how it went already.
    fn plan(&self, job: Job) -> Result<Task, (Job, io::Result<()>)> {
        let Export { max_payload, .. } = self.export;
        let data_len = job.data().len() as u64;
        let unsupported = || Err(io::ErrorKind::Unsupported.into());
        let (command, flags, range, max) = match job.operation() {
            Operation::Read { offset } => (Command::Read, 0, Range { offset, len: data_len }, max_payload),
            Operation::Write { offset, stable } => {
                let flags = if stable && self.export.can_write_stably() { FLAG_FUA } else { 0 };
                (Command::Write, flags, Range { offset, len: data_len }, max_payload)
            }
            // Nothing is known of its caches: it can only be taken to have none.
            Operation::Flush if !self.export.can_flush() => return Err((job, Ok(()))),
            Operation::Flush => (Command::Flush, 0, Range { offset: 0, len: 0 }, 0),
            Operation::Discard(range) if self.export.can_discard() => (Command::Trim, 0, range, MAX_RANGE),
            Operation::WriteZeroes { range, unmap } if self.export.can_write_zeroes() => {
                (Command::WriteZeroes, if unmap { 0 } else { FLAG_NO_HOLE }, range, MAX_RANGE)
            }
            Operation::Discard(_) | Operation::WriteZeroes { .. } | Operation::SecureErase(_) => {
                return Err((job, unsupported()));
            }
        };
        if range.len == 0 && command != Command::Flush {
            return Err((job, Ok(())));
        }
        let is_stable = matches!(job.operation(), Operation::Write { stable: true, .. });
        Ok(Task {
            job,
            command,
            flags,
            offset: range.offset,
            len: range.len,
            max,
            asked: 0,
            unanswered: 0,
            error: None,
            then_flush: is_stable && flags & FLAG_FUA == 0 && self.export.can_flush(),
            covers: self.written,
        })
    }

    /// Makes the next requests of a task that has some to make.
    fn ask(&mut self, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        loop {
            let left = task.len - task.asked;
            let len = u32::try_from(left).unwrap_or(u32::MAX).min(task.max);
            let (cookie, at) = (self.next_cookie, task.asked as usize);
            self.next_cookie += 1;
            let offset = task.offset.saturating_add(task.asked);
            let header = request(task.command, task.flags, cookie, offset, len);
            let payload = if task.command == Command::Write { len as usize } else { 0 };
            self.outgoing.push_back(Outgoing { header, cookie, task: id, at, payload });
            self.requests.insert(cookie, Request { task: Some(id), command: task.command, at, len });
            self.reads += usize::from(task.command == Command::Read);
            task.asked += u64::from(len);
            task.unanswered += 1;
            if task.asked == task.len || task.unanswered == WINDOW {
                break;
            }
        }
    }

    /// What to send next.
    pub(super) fn pieces_out(&mut self) -> Pieces<'_> {
        let mut pieces = Pieces::new();
        let most = if self.is_narrow { 1 } else { MAX_PIECES };
        let mut begun = self.begun;
        for outgoing in self.outgoing.iter_mut().take(most) {
            let header = &mut outgoing.header[begun.min(REQUEST_LEN)..];
            let data_begun = begun.saturating_sub(REQUEST_LEN);
            begun = 0;
            if !header.is_empty() && pieces.try_push(GuestSlice::from_mut(header)).is_err() {
                break;
            }
            if outgoing.payload > 0
                && let Some(task) = self.tasks.get(&outgoing.task)
            {
                let data =
                    task.job.data().advance(outgoing.at).truncate(outgoing.payload).advance(data_begun);
                if !push_all(&mut pieces, data) {
                    break;
                }
            }
        }
        pieces
    }

    /// So many bytes of the pieces were sent.
    pub(super) fn sent(&mut self, mut n: usize) {
        self.is_narrow = false;
        while let Some(first) = self.outgoing.front() {
            let left = REQUEST_LEN + first.payload - self.begun;
            if n < left {
                self.begun += n;
                return;
            }
            n -= left;
            self.begun = 0;
            self.outgoing.pop_front();
        }
    }

    /// Where to receive to next.
    pub(super) fn pieces_in(&mut self) -> Pieces<'_> {
        let mut pieces = Pieces::new();
        match &self.incoming {
            None => {
                // Behind a reply may be data, which are not for this buffer.
                let room = if self.reads > 0 { REPLY_LEN } else { REPLIES_LEN };
                pieces.push(GuestSlice::from_mut(&mut self.replies[self.replies_len..room]));
            }
            Some(Incoming { task, at, left, .. }) => match task.and_then(|id| self.tasks.get(&id)) {
                Some(task) => {
                    if push_all(&mut pieces, task.job.data().advance(*at).truncate(*left)) {
                        // The reply behind it; if there is no more room, it is received later.
                        let _ = pieces.try_push(GuestSlice::from_mut(&mut self.replies[..REPLY_LEN]));
                    }
                }
                None => pieces.push(GuestSlice::from_mut(&mut self.replies[..(*left).min(REPLIES_LEN)])),
            },
        }
        pieces
    }

    /// So many bytes were received to the pieces. Returns how many requests they answer.
    pub(super) fn received(&mut self, n: usize) -> Result<usize, NbdError> {
        let mut answers = 0;
        if let Some(incoming) = &mut self.incoming {
            let data = n.min(incoming.left);
            incoming.left -= data;
            incoming.at += data;
            if incoming.left > 0 {
                return Ok(0);
            }
            let cookie = incoming.cookie;
            self.incoming = None;
            self.replies_len = n - data;
            self.answered(cookie, None);
            answers += 1;
        } else {
            self.replies_len += n;
        }
        let mut start = 0;
        while let Some(reply) = self.replies[start..self.replies_len].first_chunk() {
            let reply = Reply::parse(*reply)?;
            start += REPLY_LEN;
            answers += usize::from(self.reply(reply)?);
        }
        self.replies.copy_within(start..self.replies_len, 0);
        self.replies_len -= start;
        Ok(answers)
    }

    /// A reply's header has come. Returns whether it is whole.
    fn reply(&mut self, reply: Reply) -> Result<bool, NbdError> {
        let Reply { cookie, .. } = reply;
        let is_sent = self.outgoing.front().is_none_or(|first| cookie < first.cookie);
        let Some(request) = self.requests.get(&cookie).filter(|_| is_sent) else {
            return Err(ProtocolError::Unexpected { what: "a reply to a request", got: cookie }.into());
        };
        if reply.is_shutdown() {
            return Err(NbdError::ShutDown);
        }
        let error = reply.error();
        if request.command == Command::Read && error.is_none() {
            self.incoming =
                Some(Incoming { cookie, task: request.task, at: request.at, left: request.len as usize });
            return Ok(false);
        }
        self.answered(cookie, error);
        Ok(true)
    }

    /// A request is done.
    fn answered(&mut self, cookie: u64, error: Option<io::Error>) {
        let Some(request) = self.requests.remove(&cookie) else { return };
        self.reads -= usize::from(request.command == Command::Read);
        let Some((id, task)) = request.task.and_then(|id| Some((id, self.tasks.get_mut(&id)?))) else {
            self.stray_writes -= usize::from(writes(request.command));
            if self.settling == Some(cookie) {
                self.flushed = self.written;
                self.is_in_doubt |= error.is_some();
            }
            return;
        };
        task.unanswered -= 1;
        if task.error.is_none() {
            task.error = error;
        }
        if task.error.is_none() && task.asked < task.len {
            self.ask(id);
        } else if task.unanswered == 0 {
            self.end(id);
        }
    }

    /// All requests of a task are answered.
    fn end(&mut self, id: u64) {
        let Some(mut task) = self.tasks.remove(&id) else { return };
        if task.then_flush && task.error.is_none() {
            (task.command, task.flags, task.offset) = (Command::Flush, 0, 0);
            (task.len, task.asked, task.max) = (0, 0, 0);
            (task.then_flush, task.covers) = (false, self.written);
            self.tasks.insert(id, task);
            return self.ask(id);
        }
        if task.error.is_none() {
            if task.command == Command::Flush {
                self.flushed = self.flushed.max(task.covers);
            } else if writes(task.command) && task.flags & FLAG_FUA == 0 {
                self.written += 1;
            }
        }
        task.job.done(task.error.map_or(Ok(()), Err));
    }

    /// Gives up the jobs whose queues have given them up.
    pub(super) fn abandon(&mut self) -> Result<(), NbdError> {
        let is_abandoned = |(id, task): (&u64, &Task)| task.job.is_abandoned().then_some(*id);
        let ids: Vec<_> = self.tasks.iter().filter_map(is_abandoned).collect();
        ids.into_iter().try_for_each(|id| self.give_up(id, io::ErrorKind::TimedOut.into()))
    }

    /// The memory to send from is gone.
    pub(super) fn cannot_send(&mut self) -> Result<(), NbdError> {
        match self.outgoing.front() {
            Some(first) if self.is_narrow => {
                self.give_up(first.task, io::Error::from_raw_os_error(libc::EFAULT))
            }
            _ => {
                self.is_narrow = true;
                Ok(())
            }
        }
    }

    /// The memory to receive to is gone.
    pub(super) fn cannot_receive(&mut self) -> Result<(), NbdError> {
        match self.incoming {
            Some(Incoming { task: Some(id), .. }) => {
                self.give_up(id, io::Error::from_raw_os_error(libc::EFAULT))
            }
            _ => Err(io::Error::from_raw_os_error(libc::EFAULT).into()),
        }
    }

    /// Ends a job whatever the server does. An error means that a request of it was sent in part, and can never be whole.
    fn give_up(&mut self, id: u64, error: io::Error) -> Result<(), NbdError> {
        let Some(task) = self.tasks.remove(&id) else { return Ok(()) };
        task.job.done(Err(error));
        if self.begun > 0 && self.outgoing.front().is_some_and(|first| first.task == id) {
            return Err(NbdError::HalfSent);
        }
        let Self { outgoing, requests, reads, stray_writes, .. } = self;
        outgoing.retain(|outgoing| {
            let is_kept = outgoing.task != id;
            if !is_kept && let Some(request) = requests.remove(&outgoing.cookie) {
                *reads -= usize::from(request.command == Command::Read);
            }
            is_kept
        });
        for request in requests.values_mut().filter(|request| request.task == Some(id)) {
            request.task = None;
            *stray_writes += usize::from(writes(request.command));
        }
        if let Some(incoming) = self.incoming.as_mut().filter(|incoming| incoming.task == Some(id)) {
            incoming.task = None;
        }
        Ok(())
    }
}

/// Whether it changes what is on the disk.
fn writes(command: Command) -> bool {
    matches!(command, Command::Write | Command::Trim | Command::WriteZeroes)
}

/// Appends the buffer's pieces; whether there was room for all.
fn push_all<'a>(pieces: &mut Pieces<'a>, data: GuestBuf<'a>) -> bool {
    data.pieces().all(|piece| pieces.try_push(piece).is_ok())
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
