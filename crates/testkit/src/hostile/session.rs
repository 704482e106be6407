//! A front-end that says what it likes in any order, with any file descriptors, and a device that serves
//! whatever it gets running.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use ringway_queue::{Burst, ResumeState};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1};
use ringway_vhost::backend::{Device, Session};
use ringway_vhost::message::{
    F_PROTOCOL_FEATURES, HEADER_LEN, Header, Kind, MAX_FDS, Request, protocol_feature as pf,
};
use ringway_vhost::socket::Message;
use ringway_vhost::{Notifier, Running};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;

use super::{Input, MAX_STEPS};

const QUEUES: u16 = 4;
const SPLIT: u64 = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC;
const OFFERED: u64 = SPLIT | RING_PACKED | IN_ORDER;
/// Length of each of the front-end's files: a few pages.
const FILE_LEN: u64 = 0x8000;
/// Where the front-end has its memory.
const VA: u64 = 0x7f00_0000_0000;

/// Runs sessions with a front-end that follows `data`: a session that ends is followed by another.
///
/// # Panics
/// If the session or the device's half of a ring does what it must never do.
pub fn session(data: &[u8]) {
    let mut input = Input(data);
    let files = [(); 2].map(|()| {
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.set_len(FILE_LEN).expect("its length");
        file
    });
    let mut session = Session::new("a", Served::default());
    let mut steps = 0;
    while steps < MAX_STEPS && !input.is_empty() {
        steps += 1;
        let kind = input.u8();
        let messages = match kind % 16 {
            0 => any_message(&mut input, &files).into_iter().collect(),
            1 => {
                write(&mut input, &files);
                continue;
            }
            2 => {
                let file = &files[usize::from(kind >> 4 & 1)];
                file.set_len(u64::from(input.u8()) * 0x100).expect("a length");
                continue;
            }
            3 => set_up(&mut input, &files),
            _ => vec![likely_message(&mut input, &files)],
        };
        for message in messages {
            if !handle(&mut session, message) {
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

/// Handles a message; false if the session is to be ended.
fn handle(session: &mut Session<Served>, message: Message) -> bool {
    let Message { header, .. } = message;
    match session.handle(message) {
        Err(_) => false,
        Ok(None) => {
            assert!(!Request::is_question(header.request), "a question is answered");
            true
        }
        Ok(Some(reply)) => {
            let reply = reply.bytes;
            assert!(Request::is_question(header.request) || header.needs_reply(), "an answer to nothing");
            let word =
                |at: usize| u32::from_le_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]]);
            assert_eq!((word(0), word(4)), (header.request, 5), "of this request, version 1, a reply");
            assert_eq!(word(8) as usize, reply.len() - HEADER_LEN);
            true
        }
    }
}

/// Lets the device serve; a session whose memory was taken away is ended, as the program does it.
fn serve(session: Session<Served>) -> Session<Served> {
    let is_intact = session.is_memory_intact();
    session.device().serve();
    if is_intact { session } else { Session::new("a", session.end()) }
}

// The front-end

/// A message's header, payload and files, all at random; `None` if the header alone is refused.
fn any_message(input: &mut Input<'_>, files: &[File; 2]) -> Option<Message> {
    let header = Header::decode(input.array(), Kind::Request).ok()?;
    let fds = fds(input, files);
    let mut payload = input.bytes(header.payload_len()).to_vec();
    payload.resize(header.payload_len(), 0);
    Some(Message { header, payload, fds })
}

/// Up to as many file descriptors as a message may have.
fn fds(input: &mut Input<'_>, files: &[File; 2]) -> Vec<OwnedFd> {
    let [count, kinds] = input.array();
    (0..usize::from(count) % (MAX_FDS + 1)).map(|i| fd(kinds >> (i % 4 * 2), files)).collect()
}

/// A file of memory, or an event.
fn fd(kind: u8, files: &[File; 2]) -> OwnedFd {
    match kind & 3 {
        n @ (0 | 1) => files[usize::from(n)].try_clone().expect("a clone").into(),
        _ => eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd"),
    }
}

fn message(request: u32, need_reply: bool, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
    let flags = if need_reply { 9 } else { 1 };
    let mut head = [0; HEADER_LEN];
    for (bytes, word) in head.chunks_mut(4).zip([request, flags, payload.len() as u32]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Message { header: Header::decode(head, Kind::Request).expect("a good header"), payload, fds }
}

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Where region `n` is: address in the guest, length, address in the front-end, start in the file.
fn region(n: u8) -> [u64; 4] {
    let (place, shape) = (u64::from(n & 3), u64::from(n >> 2));
    let len = if shape & 1 == 0 { FILE_LEN } else { 0x1000 };
    let offset = if shape & 2 == 0 { 0 } else { 0x800 };
    [place * FILE_LEN + (shape & 4) * 0x400, len - offset, VA + place * FILE_LEN, offset]
}

/// Addresses of a ring, in the region of its number more often than not.
fn addresses(index: u32, at: u8) -> Vec<u8> {
    let base = VA + u64::from(at >> 6) * FILE_LEN + u64::from(at & 31) * 0x100;
    [words32(&[index, 0]), words64(&[base, base + 0x800, base + 0x400, 0])].concat()
}

/// A message of the right form, whose values are more or less good.
fn likely_message(input: &mut Input<'_>, files: &[File; 2]) -> Message {
    const REQUESTS: [u32; 26] =
        [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 24, 25, 34, 36, 37, 38, 39, 40];
    let [which, how, value] = input.array();
    let request = REQUESTS[usize::from(which) % REQUESTS.len()];
    let index = u32::from(how & 7) % u32::from(QUEUES + 1);
    let number = match value {
        255 => input.u64(),
        254 => OFFERED | F_PROTOCOL_FEATURES,
        253 => pf::MQ | pf::REPLY_ACK | pf::CONFIG | pf::CONFIGURE_MEM_SLOTS | pf::RESET_DEVICE | pf::STATUS,
        n => n.into(),
    };
    let state = || words32(&[index, number as u32]);
    let mut fd_count = 0;
    let payload = match request {
        2 => words64(&[number | if how & 8 == 0 { VERSION_1 | F_PROTOCOL_FEATURES } else { 0 }]),
        16 | 20 | 39 => words64(&[number]),
        5 => {
            fd_count = value & 3;
            let regions = (0..fd_count).flat_map(|n| words64(&region(value >> 2 ^ n)));
            words32(&[fd_count.into(), 0]).into_iter().chain(regions).collect()
        }
        8 if how & 8 == 0 => words32(&[index, 1 << (value % 8)]),
        8 | 10 | 11 => state(),
        9 => addresses(index, value),
        12..=14 => {
            fd_count = value & 1;
            words64(&[u64::from(index) | if fd_count == 0 { 0x100 } else { 0 }])
        }
        18 => words32(&[index, u32::from(value & 1)]),
        21 => {
            fd_count = 1;
            vec![]
        }
        24 | 25 => [words32(&[how.into(), value.into(), 0]), vec![how; value.into()]].concat(),
        37 | 38 => {
            fd_count = u8::from(request == 37);
            [words64(&[0]), words64(&region(value))].concat()
        }
        _ => vec![],
    };
    // Memory comes from files, and signals by events; unless they do not.
    let first = if matches!(request, 5 | 37) { how >> 5 & 1 } else { 2 };
    let fds =
        (0..fd_count).map(|n| fd(if how & 16 == 0 { first ^ n & 1 } else { how >> 5 }, files)).collect();
    message(request, how & 0x80 != 0, payload, fds)
}

/// The messages that get a ring running, if nothing before them is in the way.
fn set_up(input: &mut Input<'_>, files: &[File; 2]) -> Vec<Message> {
    let [how, at, base] = input.array();
    let index = u32::from(how) % u32::from(QUEUES);
    let ring = u64::from(index);
    let event = || vec![fd(2, files)];
    let table = [words32(&[1, 0]), words64(&region(0))].concat();
    let packed = if base & 4 == 0 { 0 } else { RING_PACKED | IN_ORDER };
    let features = packed | if how & 4 == 0 { SPLIT } else { VERSION_1 | F_PROTOCOL_FEATURES };
    // New packed rings, as three front-ends name their base, and anything small.
    let base = [0, 0x8000, 0x8000_8000, base.into()][usize::from(base & 3)];
    vec![
        message(16, false, words64(&[pf::REPLY_ACK | pf::CONFIGURE_MEM_SLOTS | pf::CONFIG]), vec![]),
        message(2, true, words64(&[features]), vec![]),
        message(5, true, table, vec![fd(how >> 3 & 1, files)]),
        message(8, true, words32(&[index, 1 << (how >> 5)]), vec![]),
        message(9, true, addresses(index, at & 31), vec![]),
        message(10, true, words32(&[index, base]), vec![]),
        message(13, true, words64(&[ring]), event()),
        message(12, true, words64(&[ring]), event()),
        message(18, true, words32(&[index, 1]), vec![]),
    ]
}

/// Writes to a file: any bytes anywhere, or descriptors, either packed ones or with an available ring that names
/// them.
fn write(input: &mut Input<'_>, files: &[File; 2]) {
    let [how, at, len] = input.array();
    let file = &files[usize::from(how & 1)];
    let base = u64::from(at & 31) * 0x100;
    if how & 2 == 0 {
        file.write_all_at(input.bytes(len.into()), base + u64::from(at >> 5)).expect("written");
        return;
    }
    for i in 0..u64::from(len % 16) {
        let [flags, next, a, b] = input.array();
        let descriptor = words64(&[u64::from(a) * 0x80 + u64::from(b & 7), u64::from(b) << 2]);
        file.write_all_at(&descriptor, base + i * 16).expect("written");
        if how & 4 != 0 {
            // AVAIL and USED are the highest bits of the flags' bytes.
            let packed = [next, 0, flags & 0x87, flags << 1 & 0x80];
            file.write_all_at(&packed, base + i * 16 + 12).expect("written");
            continue;
        }
        file.write_all_at(&[flags & 7, 0, next % 16, 0], base + i * 16 + 12).expect("written");
        file.write_all_at(&[i as u8, 0], base + 0x404 + i * 2).expect("written");
    }
    file.write_all_at(&input.u16().to_le_bytes(), base + 0x402).expect("written");
}

// The device

/// A device that serves all rings that run, and sees that nobody forgets one.
#[derive(Default)]
struct Served {
    /// The session and whoever serves reach them.
    vrings: RefCell<[Option<Vring>; QUEUES as usize]>,
    status: u8,
}

struct Vring {
    running: Running,
    burst: Burst,
}

impl Served {
    fn vring(&mut self, index: u16) -> &mut Option<Vring> {
        &mut self.vrings.get_mut()[usize::from(index)]
    }

    fn is_idle(&self) -> bool {
        self.vrings.borrow().iter().all(Option::is_none)
    }

    /// Takes a burst of each ring, completes some of it, and publishes that.
    fn serve(&self) {
        for Vring { running, burst } in self.vrings.borrow_mut().iter_mut().flatten() {
            if running.queue.take(burst, 32).is_err() {
                running.err.notify();
            }
            let keep = usize::from(running.enabled);
            while burst.len() > keep {
                let chain = burst.next().expect("there is more than one");
                let written = chain.readable().copy_to(chain.writable());
                assert!(written <= chain.writable_len() as usize);
                running.queue.complete(chain, written as u32);
            }
            if running.queue.publish() {
                running.call.notify();
            }
            let _ = running.queue.arm();
        }
    }
}

impl Device for Served {
    fn features(&self) -> u64 {
        OFFERED
    }

    fn protocol_features(&self) -> u64 {
        pf::CONFIG | pf::MTU
    }

    fn max_queues(&self) -> u16 {
        QUEUES
    }

    fn queue_num(&self) -> u64 {
        u64::from(QUEUES / 2)
    }

    fn ack_features(&mut self, features: u64) -> Result<(), String> {
        if features & !OFFERED == 0 { Ok(()) } else { Err("not offered".to_owned()) }
    }

    fn status(&self) -> u8 {
        self.status
    }

    fn set_status(&mut self, status: u8) {
        assert_ne!(status, 0, "0 is a reset");
        self.status = status;
    }

    fn reset(&mut self) {
        assert!(self.is_idle(), "vrings are stopped before a reset");
        self.status = 0;
    }

    fn read_config(&self, _: usize, to: &mut [u8]) {
        to.fill(1);
    }

    fn start_vring(&mut self, index: u16, running: Running) {
        let before = self.vring(index).replace(Vring { running, burst: Burst::default() });
        assert!(before.is_none(), "a vring is stopped before it starts again");
    }

    fn stop_vring(&mut self, index: u16) -> ResumeState {
        let mut vring = self.vring(index).take().expect("only a running vring stops");
        vring.running.queue.rewind(&mut vring.burst);
        vring.running.queue.stop()
    }

    fn enable_vring(&mut self, index: u16, enabled: bool) {
        self.vring(index).as_mut().expect("only a running vring is enabled").running.enabled = enabled;
    }

    fn set_call(&mut self, index: u16, call: Notifier) {
        self.vring(index).as_mut().expect("only a running vring gets a call").running.call = call;
    }

    fn set_err(&mut self, index: u16, err: Notifier) {
        self.vring(index).as_mut().expect("only a running vring gets an err").running.err = err;
    }

    fn has_vring(&self, index: u16) -> bool {
        index + 1 < self.max_queues()
    }
}
