//! Queue pairs: flows are spread over those that are in use, and the control queue says how many these are.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ringway_testkit::frontend::frame::{self, Checksum, Flow};
use ringway_testkit::frontend::wire::{self, NO_FD, VringAddress, feature, protocol, request};
use ringway_testkit::frontend::{Buffer, NetFrontend, Options, RingLayout, SplitRing};
use ringway_testkit::server::Server;

use crate::common::{
    FEATURES, Mark, PROTOCOL, QUIET, SOON, eventually, expect_number, numbered, options, switch, up,
};
use crate::{A, D};

const MQ: u64 = feature::NET_MQ;
const CTRL: u64 = feature::NET_CTRL_VQ;
pub(crate) const OK: u8 = 0;
pub(crate) const ERROR: u8 = 1;
/// Where the answer is, behind room for the longest command.
const ANSWER: u64 = 68 << 10;
/// Class and command: set the number of pairs.
const PAIRS: [u8; 2] = [4, 0];

/// Ports a and d; eight pairs on a, one on d.
fn eight_pairs(features: u64) -> (Server, NetFrontend, NetFrontend) {
    let server = switch(&["a", "d"]);
    let eight = Options { queue_pairs: 8, ring_size: 256, max_frame: 2000, ..options() };
    let mut a = up(&server, "a", FEATURES | features, eight);
    let mut d = up(&server, "d", FEATURES, Options { ring_size: 64, ..options() });
    a.send_frame(&numbered(frame::BROADCAST, A, 0)).unwrap();
    expect_number(&mut d, A, 0);
    (server, a, d)
}

/// A control queue.
pub(crate) struct Control {
    ring: SplitRing,
    buffer: u64,
}

impl Control {
    pub(crate) fn start(guest: &NetFrontend, index: u32) -> Self {
        let memory = guest.memory();
        let at = memory.allocate(4096, 4096).unwrap();
        let layout = RingLayout::contiguous(64, at, 16);
        let mut ring = SplitRing::new(Arc::clone(memory), layout, 0).unwrap();
        ring.event_idx = guest.features() & feature::EVENT_IDX != 0;
        let address = VringAddress {
            index,
            descriptor: memory.frontend_va(layout.descriptors),
            available: memory.frontend_va(layout.available),
            used: memory.frontend_va(layout.used),
            ..VringAddress::default()
        };
        let number = u64::from(index);
        guest.tell(request::SET_VRING_NUM, &wire::vring_state(index, 64), &[]).unwrap();
        guest.tell(request::SET_VRING_BASE, &wire::vring_state(index, 0), &[]).unwrap();
        guest.tell(request::SET_VRING_ADDR, &address.to_bytes(), &[]).unwrap();
        guest.tell(request::SET_VRING_CALL, &(number | NO_FD).to_le_bytes(), &[]).unwrap();
        guest.tell(request::SET_VRING_KICK, &number.to_le_bytes(), &[ring.kick.as_fd()]).unwrap();
        guest.tell(request::SET_VRING_ENABLE, &wire::vring_state(index, 1), &[]).unwrap();
        Self { ring, buffer: memory.allocate(ANSWER + 64, 64).unwrap() }
    }

    /// Sends a command in pieces of at most `piece` bytes; the answer, and how many bytes were written.
    pub(crate) fn command(&mut self, bytes: &[u8], piece: usize, room: u32) -> (u8, u32) {
        let memory = Arc::clone(self.ring.memory());
        let answer = self.buffer + ANSWER;
        memory.write(self.buffer, bytes).unwrap();
        memory.write(answer, &[0xee; 4]).unwrap();
        let starts = (0..bytes.len()).step_by(piece);
        let mut buffers: Vec<_> = starts
            .map(|at| Buffer::readable(self.buffer + at as u64, piece.min(bytes.len() - at) as u32))
            .collect();
        if room > 0 {
            buffers.push(Buffer::writable(answer, room));
        }
        self.ring.add(&buffers).unwrap().unwrap();
        self.ring.publish_and_kick().unwrap();
        let used = self.ring.wait_used(SOON).unwrap();
        assert_eq!(used.len(), 1, "the command is carried out");
        (memory.read_vec(answer, 1).unwrap()[0], used[0].1)
    }

    fn set_pairs(&mut self, pairs: u16) -> u8 {
        self.command(&[&PAIRS[..], &pairs.to_le_bytes()].concat(), 2, 1).0
    }
}

/// A frame of a flow of its own.
fn frame_of(port: u16, number: u64) -> Vec<u8> {
    let flow = Flow { src_mac: D, dst_mac: A, src_port: port, ..crate::flow(port.is_multiple_of(2), port) };
    frame::udp(&flow, &number.to_be_bytes(), Checksum::Complete)
}

/// Sends two frames of each of 64 flows to a; the pairs they came in on, by flow. A flow keeps its pair, and its
/// frames their order.
fn spread(a: &mut NetFrontend, d: &mut NetFrontend, pairs: usize) -> HashMap<u16, usize> {
    let mut at = HashMap::new();
    for flow in 0..64 {
        for number in 0..2 {
            d.send_frame(&frame_of(flow, number)).unwrap();
        }
    }
    let mut frames = vec![Vec::new(); pairs];
    eventually("all frames arrived", || {
        for (pair, frames) in frames.iter_mut().enumerate() {
            frames.extend(std::iter::from_fn(|| a.pair(pair).recv(Duration::ZERO).unwrap()));
        }
        frames.iter().flatten().count() == 2 * 64
    });
    for (pair, frames) in frames.into_iter().enumerate() {
        let mut last = None;
        for (_, bytes) in frames {
            let flow = (0..64).find(|f| (0..2).any(|n| bytes == frame_of(*f, n))).expect("a frame of ours");
            let number = u64::from(bytes == frame_of(flow, 1));
            assert!(at.insert(flow, pair).is_none_or(|p| p == pair), "flow {flow} has one pair");
            assert!(number == 0 || last == Some(flow), "flow {flow} is in order");
            last = Some(flow);
        }
    }
    assert_eq!(at.len(), 64, "all flows arrived");
    at
}

fn used(at: &HashMap<u16, usize>) -> Vec<usize> {
    let mut pairs: Vec<_> = at.values().copied().collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// [DEV-NET-automatic-receive-steering-in-multiqueue-mode-01]
/// [DEV-NET-automatic-receive-steering-in-multiqueue-mode-02] Before the driver says how many pairs it uses it
/// gets all frames on the first; after, on as many as it said, and no other.
#[test]
fn the_driver_says_how_many() {
    let (server, mut a, mut d) = eight_pairs(MQ | CTRL);
    assert_eq!(a.max_queues(), Some(8));
    let mut control = Control::start(&a, 16);
    assert_eq!(used(&spread(&mut a, &mut d, 8)), [0]);
    for pairs in [8, 2, 5, 1, 8] {
        assert_eq!(control.set_pairs(pairs), OK);
        let expected: Vec<_> = (0..usize::from(pairs)).collect();
        assert_eq!(used(&spread(&mut a, &mut d, 8)), expected, "{pairs} pairs");
    }
    for wrong in [0, 9, 0x8000, u16::MAX] {
        assert_eq!(control.set_pairs(wrong), ERROR);
    }
    assert_eq!(used(&spread(&mut a, &mut d, 8)).len(), 8, "an error changes nothing");
    let counters = server.counters().unwrap();
    assert_eq!((counters.dropped("a"), counters.dropped("d")), (0, 0));
}

/// Commands that are unknown, too short, too long, without room for the answer, in pieces.
#[test]
fn control_commands() {
    let (server, a, _d) = eight_pairs(MQ | CTRL);
    let mut control = Control::start(&a, 16);
    for (command, answer) in [
        (&[4, 0, 2, 0][..], OK),
        (&[4, 1, 2, 0], ERROR),
        (&[0, 0, 1], ERROR),
        (&[1, 1, 2, 0, 0, 0, 0, 1], ERROR),
        (&[255, 255, 255, 255], ERROR),
        (&[4, 0, 2], ERROR),
        (&[4, 0, 2, 0, 0], ERROR),
        (&[4], ERROR),
        (&[4; 65], ERROR),
        (&[0; 4096], ERROR),
    ] {
        for piece in [1000, 1, 3] {
            if command.len().div_ceil(piece) < 64 {
                assert_eq!(control.command(command, piece, 1), (answer, 1), "{command:?} in {piece}");
            }
        }
        assert_eq!(control.command(command, 4096, 4), (answer, 1), "one byte of four");
        assert_eq!(control.command(command, 4096, 0), (0xee, 0), "no room");
    }
    assert_eq!(server.counters().unwrap().get("a", "failed rings"), 0);
}

/// [DEV-NET-gratuitous-packet-sending-01] A guest that has arrived is announced, and asked to announce itself if it can,
/// until it says that it has seen that.
#[test]
fn a_guest_is_asked_to_announce_itself() {
    let announce = feature::NET_GUEST_ANNOUNCE | feature::NET_STATUS;
    for (features, asked) in [(CTRL | announce, 2), (CTRL | feature::NET_STATUS, 0), (announce, 0)] {
        let server = switch(&["a", "d"]);
        let more = Options { protocol_features: PROTOCOL | protocol::RARP, ..options() };
        let a = up(&server, "a", FEATURES | features, more);
        let mut d = up(&server, "d", FEATURES, options());
        let status = || {
            let head = [6u32, 2, 0].map(u32::to_le_bytes).concat();
            let question = [&head[..], &[0; 2]].concat();
            a.connection().request_reply(request::GET_CONFIG, &question).unwrap()[12..].to_vec()
        };
        assert_eq!(status(), [1, 0]);
        a.tell(request::SEND_RARP, &[2, 0, 0, 0, 0, 0xa, 0, 0], &[]).unwrap();
        let (_, rarp) = d.recv_frame(SOON).unwrap().unwrap();
        assert_eq!((&rarp[6..12], &rarp[12..14]), (&A[..], &[0x80, 0x35][..]));
        assert_eq!(status(), [1 | asked, 0]);
        if features & CTRL != 0 {
            let mut control = Control::start(&a, 2);
            let answer = if asked == 0 { ERROR } else { OK };
            assert_eq!(control.command(&[3, 0], 2, 1), (answer, 1));
            assert_eq!(status(), [1, 0]);
        }
    }
}

/// A control queue that is broken stops alone.
#[test]
fn a_broken_control_queue() {
    let (mut server, mut a, mut d) = eight_pairs(MQ | CTRL);
    let mut control = Control::start(&a, 16);
    assert_eq!(control.set_pairs(2), OK);
    let mark = Mark::now(&server);
    control.ring.push_raw(0xffff).unwrap();
    control.ring.publish_and_kick().unwrap();
    mark.wait_for(&mut server, "WARN");
    assert_eq!(used(&spread(&mut a, &mut d, 8)), [0, 1]);
    mark.expect_one_warning(&server, "a head out of range", "a", "vring 16 ");
    assert_eq!(server.counters().unwrap().get("a", "failed rings"), 1);
}

/// With a control queue and one pair, the control queue is vring 2.
#[test]
fn a_control_queue_without_pairs() {
    let server = switch(&["a", "d"]);
    let a = up(&server, "a", FEATURES | CTRL, options());
    let mut control = Control::start(&a, 2);
    assert_eq!(control.command(&[0, 0, 1], 3, 1), (ERROR, 1));
}

/// A front-end that has the control queue for itself says by the rings it enables which pairs are used.
#[test]
fn rings_that_are_enabled_are_used() {
    let (_server, mut a, mut d) = eight_pairs(MQ);
    assert_eq!(used(&spread(&mut a, &mut d, 8)), [0, 1, 2, 3, 4, 5, 6, 7]);
    for disabled in [3, 0, 7] {
        a.enable_ring(disabled * 2, false).unwrap();
        assert!(!used(&spread(&mut a, &mut d, 8)).contains(&disabled));
    }
    assert_eq!(used(&spread(&mut a, &mut d, 8)), [1, 2, 4, 5, 6]);
    // A ring that stops is out as well, and one that comes back is in.
    let base = a.stop_ring(4).unwrap();
    a.enable_ring(0, true).unwrap();
    assert_eq!(used(&spread(&mut a, &mut d, 8)), [0, 1, 4, 5, 6]);
    a.restart_ring(4, base).unwrap();
    assert_eq!(used(&spread(&mut a, &mut d, 8)), [0, 1, 2, 4, 5, 6]);
}

/// Every transmit ring sends.
#[test]
fn all_pairs_send() {
    let (server, mut a, mut d) = eight_pairs(MQ);
    for round in 0..20 {
        for pair in 0..8 {
            a.pair(pair).send(&numbered(D, A, round * 8 + pair as u64)).unwrap();
        }
        for _ in 0..8 {
            assert!(d.recv_frame(SOON).unwrap().is_some());
        }
    }
    a.enable_ring(7, false).unwrap();
    a.pair(3).send(&numbered(D, A, 1)).unwrap();
    a.pair(3).wait_sent(SOON).unwrap();
    assert_eq!(d.recv_frame(QUIET).unwrap(), None);
    assert_eq!(server.counters().unwrap().get("a", "disabled"), 1);
    a.pair(4).send(&numbered(D, A, 2)).unwrap();
    expect_number(&mut d, A, 2);
}
