//! Between a front-end and a good back-end: passes messages on, but for one fault.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use ringway_vhost::message::{Header, Kind, Outgoing};
use ringway_vhost::socket::{Message, Socket};

const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const REM_MEM_REG: u32 = 38;
const SET_STATUS: u32 = 39;

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    ReplyFlagMissing,
    ReplyToAnother,
    ReplyTooLong,
    BaseForgotten,
    BaseWithReservedBits,
    StopsNothing,
    NoAnswerToSetVringNum,
    AnswersUnasked,
    AnswersQuestionsTwice,
    FailuresHidden,
    AlwaysEnabled,
    KickLost,
    NoKickNeeded,
    CallNeverReplaced,
    MemoryNeverReplaced,
    MemoryNeverUnmapped,
    FilesNeverClosed,
    ConfigOffsetIgnored,
    StatusForgotten,
    ResetIgnored,
    DiesOfUnknownRequests,
}

/// Which cases must fail for it.
pub(crate) const FAULTS: &[(Fault, &[&str])] = &[
    (Fault::ReplyFlagMissing, &["reply-header", "base-is-kept-split"]),
    (Fault::ReplyToAnother, &["reply-header", "base-is-kept-split"]),
    (Fault::ReplyTooLong, &["base-is-kept-split"]),
    (Fault::BaseForgotten, &["base-is-kept-split", "base-is-kept-packed"]),
    (Fault::BaseWithReservedBits, &["base-is-kept-split", "base-counts-split"]),
    (Fault::StopsNothing, &["stopped", "stopped-packed", "suspended-writes-nothing"]),
    (Fault::NoAnswerToSetVringNum, &["ack-set-vring-num"]),
    (Fault::AnswersUnasked, &["no-ack-unless-asked"]),
    (Fault::AnswersQuestionsTwice, &["questions-unchanged"]),
    (Fault::FailuresHidden, &["failure-is-told", "set-config-refusal"]),
    (Fault::AlwaysEnabled, &["disabled-receives-nothing"]),
    (Fault::KickLost, &["started-and-enabled", "polling"]),
    (Fault::NoKickNeeded, &["stopped-at-first"]),
    (Fault::CallNeverReplaced, &["call-replaced", "without-call"]),
    (Fault::MemoryNeverReplaced, &["mem-table-replaced"]),
    (Fault::MemoryNeverUnmapped, &["rem-mem-reg", "rem-mem-reg-offset"]),
    (Fault::FilesNeverClosed, &["fds-are-closed", "rem-mem-reg-fd"]),
    (Fault::ConfigOffsetIgnored, &["get-config-part"]),
    (Fault::StatusForgotten, &["set-status"]),
    (Fault::ResetIgnored, &["status-zero", "status-zero-stops"]),
];

/// A socket that front-ends connect to; each is passed on.
pub(crate) struct Proxy {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How often a thread looks.
const STEP: Duration = Duration::from_millis(1);

impl Proxy {
    /// A back-end with this fault, which otherwise is the one at `target`.
    pub(crate) fn start(target: &Path, fault: Fault) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("bind");
        listener.set_nonblocking(true).expect("non-blocking");
        let (ended, target) = (Arc::new(AtomicBool::new(false)), target.to_owned());
        let is_ended = Arc::clone(&ended);
        let thread = spawn(move || {
            while !is_ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((front, _)) => pass_on(front, &target, fault, &is_ended),
                    Err(_) => sleep(STEP),
                }
            }
        });
        Self { _dir: dir, socket, ended, thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the proxy did not panic");
        }
    }
}

/// Passes on what one front-end says, until an end closes.
fn pass_on(front: UnixStream, target: &Path, fault: Fault, ended: &AtomicBool) {
    let back = UnixStream::connect(target).expect("the good back-end listens");
    let mut front = Socket::new(front, Kind::Request).expect("a socket");
    let mut back = Socket::new(back, Kind::Reply).expect("a socket");
    let mut faulty = Faulty { fault, seen: 0, kept: Vec::new() };
    while !ended.load(Ordering::Relaxed) {
        let (asked, answered) = (front.receive(), back.receive());
        let (Ok(asked), Ok(answered)) = (asked, answered) else { return };
        if asked.is_none() && answered.is_none() {
            sleep(STEP);
        }
        if let Some(request) = asked {
            if fault == Fault::DiesOfUnknownRequests && !(1..=44).contains(&request.header.request) {
                ended.store(true, Ordering::Relaxed);
                return;
            }
            match faulty.request(request) {
                Next::Pass(message) => drop(back.send(message)),
                Next::Answer(message) => drop(front.send(message)),
                Next::Nothing => {}
            }
        }
        for reply in answered.into_iter().flat_map(|reply| faulty.reply(reply)) {
            drop(front.send(reply));
        }
    }
}

/// What becomes of a request.
enum Next {
    Pass(Outgoing),
    Answer(Outgoing),
    Nothing,
}

/// The fault, and what it has seen.
struct Faulty {
    fault: Fault,
    /// Requests of the kind that the fault is about.
    seen: u32,
    kept: Vec<OwnedFd>,
}

/// The message as it came.
fn whole(header: Header, payload: &[u8], fds: Vec<OwnedFd>) -> Outgoing {
    Outgoing { bytes: [&header.encode()[..], payload].concat(), fds }
}

impl Faulty {
    fn request(&mut self, message: Message) -> Next {
        let Message { header, mut payload, mut fds } = message;
        let number = header.request;
        let success =
            || if header.needs_reply() { Next::Answer(header.reply(&[0; 8]).into()) } else { Next::Nothing };
        match (self.fault, number) {
            (Fault::BaseForgotten, SET_VRING_BASE) => payload[4..].fill(0),
            (Fault::StopsNothing, GET_VRING_BASE) => return Next::Answer(header.reply(&payload).into()),
            (Fault::NoAnswerToSetVringNum, SET_VRING_NUM) => {
                return Next::Pass(Outgoing::request(number, &payload, fds, false));
            }
            (Fault::AlwaysEnabled, SET_VRING_ENABLE) => payload[4] = 1,
            (Fault::KickLost, SET_VRING_KICK)
            | (Fault::MemoryNeverUnmapped, REM_MEM_REG)
            | (Fault::StatusForgotten, SET_STATUS) => return success(),
            (Fault::ResetIgnored, SET_STATUS) if payload[0] == 0 => return success(),
            (Fault::CallNeverReplaced, SET_VRING_CALL) | (Fault::MemoryNeverReplaced, SET_MEM_TABLE) => {
                // There are two rings; memory there is once.
                self.seen += 1;
                if self.seen > if number == SET_VRING_CALL { 2 } else { 1 } {
                    return success();
                }
            }
            (Fault::NoKickNeeded, SET_VRING_KICK) => {
                for kick in &fds {
                    rustix::io::write(kick, &1u64.to_ne_bytes()).expect("an event");
                }
            }
            (Fault::FilesNeverClosed, SET_VRING_CALL | REM_MEM_REG) => {
                let copies = fds.iter().map(|fd| fd.try_clone().expect("a copy"));
                self.kept.extend(copies);
            }
            (Fault::ConfigOffsetIgnored, GET_CONFIG) => payload[..4].fill(0),
            (Fault::AnswersUnasked, SET_OWNER) => return Next::Answer(header.reply(&[0; 8]).into()),
            _ => {}
        }
        Next::Pass(whole(header, &payload, std::mem::take(&mut fds)))
    }

    fn reply(&mut self, message: Message) -> Vec<Outgoing> {
        let Message { header, mut payload, fds } = message;
        match (self.fault, header.request) {
            (Fault::ReplyFlagMissing, GET_VRING_BASE) => {
                return vec![Outgoing::request(header.request, &payload, fds, false)];
            }
            (Fault::ReplyToAnother, GET_VRING_BASE) => {
                return vec![Header::request(SET_OWNER, 8, false).reply(&payload).into()];
            }
            (Fault::ReplyTooLong, GET_VRING_BASE) => {
                payload.push(0);
                return vec![header.reply(&payload).into()];
            }
            (Fault::BaseWithReservedBits, GET_VRING_BASE) => payload[6] = 1,
            (Fault::AnswersQuestionsTwice, GET_VRING_BASE) => {
                return vec![header.reply(&payload).into(), header.reply(&payload).into()];
            }
            (Fault::FailuresHidden, SET_MEM_TABLE | SET_CONFIG) => payload.fill(0),
            _ => {}
        }
        vec![whole(header, &payload, fds)]
    }
}
