//! A front-end that says what it likes in any order, with any file descriptors, and a device that serves
//! whatever it gets running.

mod device;
mod frontend;

use std::os::fd::OwnedFd;

use ringway_spec::feature::{
    ACCESS_PLATFORM, IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1,
};
use ringway_vhost::backend::{Device, SESSION_FEATURES, Session};
use ringway_vhost::message::{HEADER_LEN, Header, Outgoing, Request};
use ringway_vhost::socket::Message;
use rustix::event::{EventfdFlags, eventfd};

use self::device::Served;
use self::frontend::Peer;
use super::{Input, MAX_STEPS};

const QUEUES: u16 = 4;
const SPLIT: u64 = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC;
const OFFERED: u64 = SPLIT | RING_PACKED | IN_ORDER | ACCESS_PLATFORM;

// Requests whose answers are special.
const SET_MEM_TABLE: u32 = 5;
const SET_LOG_BASE: u32 = 6;
const POSTCOPY_ADVISE: u32 = 28;
const GET_INFLIGHT_FD: u32 = 31;
const ADD_MEM_REG: u32 = 37;
const GET_SHARED_OBJECT: u32 = 41;
const CHECK_DEVICE_STATE: u32 = 43;

/// Runs sessions with a front-end that follows `data`: a session that ends is followed by another.
///
/// # Panics
/// If the session or the device's half of a ring does what it must never do.
pub fn session(data: &[u8]) {
    let mut input = Input(data);
    // A front-end that takes pages away from a watched region would have us wait for them.
    let may_wait = data.len() % 4 == 3;
    let device = Served::new(may_wait);
    let mut peer = Peer::new(SESSION_FEATURES | device.protocol_features());
    let mut session = Session::new("a", device);
    let mut steps = 0;
    while steps < MAX_STEPS && !input.is_empty() {
        steps += 1;
        let kind = input.u8();
        let messages = match kind % 16 {
            0 => frontend::any_message(&mut input, &mut peer).into_iter().collect(),
            1 => {
                frontend::write(&mut input, &peer);
                continue;
            }
            2 => {
                let len = u64::from(input.u8()) * 0x100;
                if !may_wait {
                    peer.files[usize::from(kind >> 4 & 1)].set_len(len).expect("a length");
                }
                continue;
            }
            3 => frontend::set_up(&mut input, &mut peer),
            4 => {
                peer.use_ends(&mut input);
                assert!(session.turn().is_none(), "nothing is owed");
                continue;
            }
            5 if kind & 16 == 0 => frontend::transfer(kind >> 5, &mut peer),
            5 => {
                session.config_changed();
                continue;
            }
            6 => frontend::postcopy(&mut input, &mut peer),
            7..10 => vec![frontend::other_message(&mut input, &mut peer)],
            _ => vec![frontend::likely_message(&mut input, &mut peer)],
        };
        for message in messages {
            if !handle(&mut session, message, &mut peer) {
                let device = session.end();
                assert!(device.is_idle(), "the end stops all");
                session = Session::new("a", device);
            }
            session = serve(session);
        }
    }
    let device = session.end();
    assert!(device.is_idle(), "the end stops all");
}

fn event() -> OwnedFd {
    // Signalled: as a kick it starts a ring.
    eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

/// Handles a message; false if the session is to be ended.
fn handle(session: &mut Session<Served>, message: Message, peer: &mut Peer) -> bool {
    let header = message.header;
    let Ok(reply) = session.handle(message) else { return false };
    assert_eq!(session.owes_reply(), reply.is_none() && header.request == CHECK_DEVICE_STATE);
    let reply = if session.owes_reply() { Some(wait(session, peer)) } else { reply };
    match reply {
        None => assert!(!Request::is_question(header.request), "a question is answered"),
        Some(reply) => {
            check(&header, &reply, session.device().may_wait);
            peer.take(reply);
        }
    }
    true
}

/// The answer that comes when the device's state has arrived, at the latest when nobody has the channel any more.
fn wait(session: &mut Session<Served>, peer: &mut Peer) -> Outgoing {
    peer.read_ends();
    session.turn().unwrap_or_else(|| {
        peer.close_ends();
        session.turn().expect("the transfer is over")
    })
}

fn check(header: &Header, reply: &Outgoing, may_wait: bool) {
    let Outgoing { bytes, fds } = reply;
    let request = header.request;
    // Some are answered unasked: where regions are mapped in postcopy, and the log.
    let is_special = request == SET_LOG_BASE || may_wait && matches!(request, SET_MEM_TABLE | ADD_MEM_REG);
    let is_due = Request::is_question(request) || header.needs_reply() || is_special;
    assert!(is_due, "an answer to nothing");
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    assert_eq!((word(0), word(4)), (request, 5), "of this request, version 1, a reply");
    assert_eq!(word(8) as usize, bytes.len() - HEADER_LEN);
    let may_bring = matches!(request, POSTCOPY_ADVISE | GET_INFLIGHT_FD | GET_SHARED_OBJECT);
    assert!(fds.len() <= usize::from(may_bring), "{} file descriptors with {request}", fds.len());
}

/// Lets the device serve; a session whose memory was taken away is ended, as the program does it.
fn serve(mut session: Session<Served>) -> Session<Served> {
    let is_intact = session.is_memory_intact();
    for missing in session.device().serve() {
        session.ask_translation(missing);
    }
    if is_intact { session } else { Session::new("a", session.end()) }
}
