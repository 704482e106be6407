//! Our network driver over vhost-user: drivers of our own on a switch of our own, and one on a back-end that is not of this
//! project.

mod common;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_driver::net::{
    Checksum, Kind, Mac, Mode, Net, Offload, Options, PLAIN, Partial, RECEIVE_CHECKSUMS, RECEIVE_SEGMENTS,
    Received, Rss, SEND_SEGMENTS, Segments, SendError,
};
use ringway_driver::transport::vhost_user::{Pages, SharedMemory, VhostUser};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_PACKED};
use ringway_spec::net::{DEVICE_ID, F_GUEST_CSUM, F_MRG_RXBUF, HASH_TYPE_IPV4, HASH_TYPE_UDPV4};
use ringway_testkit::backend::{Backend, Project};
use ringway_testkit::frontend::VnetHeader;
use ringway_testkit::frontend::frame::{self, BROADCAST, Flow};
use ringway_testkit::server::Server;

use crate::common::{EXPERIMENT, PROGRAM, QUIET, mac, numbered, switch};

const LIMIT: Duration = Duration::from_secs(20);
/// What a driver leaves out for its rings to be of this kind.
const KINDS: [u64; 4] = [RING_PACKED, RING_PACKED | RING_EVENT_IDX | IN_ORDER, 0, RING_EVENT_IDX];

/// A driver that sleeps when nothing comes.
struct Guest {
    net: Net<VhostUser>,
}

impl Guest {
    fn up(socket: impl AsRef<Path>, options: &Options) -> Self {
        let memory = SharedMemory::new(64 << 20, Pages::Small).unwrap();
        let transport = VhostUser::connect(socket, DEVICE_ID, &memory).unwrap();
        Self { net: Net::new(transport, Arc::new(memory), options).unwrap() }
    }

    /// Sends a frame, when there is room for it.
    fn send(&mut self, frame: &[u8], offload: &Offload) {
        let deadline = Instant::now() + LIMIT;
        let tx = &mut self.net.pair(0).tx;
        while let Err(error) = tx.send(frame, offload) {
            assert_eq!(error, SendError::Full);
            assert!(Instant::now() < deadline, "there is no room");
            tx.flush();
            std::thread::yield_now();
        }
    }

    fn flush(&mut self) {
        self.net.pair(0).tx.flush();
    }

    /// What comes next on a pair within `limit`, slept for on the queue's call.
    fn next_on(&mut self, pair: usize, limit: Duration) -> Option<Received> {
        let deadline = Instant::now() + limit;
        let call = Arc::clone(self.net.transport_mut().call(2 * pair as u16).unwrap());
        loop {
            let rx = &mut self.net.pair(pair).rx;
            if let Some(received) = rx.next().unwrap() {
                return Some(received);
            }
            rx.flush();
            if !rx.arm() {
                let left = deadline.saturating_duration_since(Instant::now());
                if call.wait(left).unwrap() == 0 && !rx.has_work() {
                    return None;
                }
            }
            rx.suppress();
        }
    }

    /// The bytes of what comes next, and what its header says.
    fn expect(&mut self) -> (Vec<u8>, Checksum, Option<Segments>) {
        let Received { frame, checksum, segments } = self.next_on(0, LIMIT).expect("a frame");
        let mut bytes = vec![0; frame.len()];
        frame.read(0, &mut bytes);
        self.net.pair(0).rx.recycle(frame);
        self.net.pair(0).rx.flush();
        (bytes, checksum, segments)
    }

    /// Sends a frame until it comes to all the others: a ring starts some time after its driver has kicked.
    fn meet(&mut self, others: &mut [&mut Guest]) {
        for other in others {
            let hello = frame::ethernet(BROADCAST, mac(9), EXPERIMENT, &[9; 46]);
            let deadline = Instant::now() + LIMIT;
            loop {
                self.send(&hello, &Offload::None);
                self.flush();
                if let Some(received) = other.next_on(0, QUIET) {
                    other.net.pair(0).rx.recycle(received.frame);
                    break;
                }
                assert!(Instant::now() < deadline, "nobody hears");
            }
            other.drain();
        }
    }

    /// Passes over what is on its way.
    fn drain(&mut self) {
        while let Some(received) = self.next_on(0, QUIET) {
            self.net.pair(0).rx.recycle(received.frame);
        }
    }

    /// Nothing comes.
    fn expect_nothing(&mut self) {
        assert!(self.next_on(0, QUIET).is_none());
    }
}

fn guest(server: &Server, port: &str, options: &Options) -> Guest {
    Guest::up(server.socket(port), options)
}

/// All that the driver understands.
fn all(without: u64) -> Options {
    let features = PLAIN | SEND_SEGMENTS | RECEIVE_CHECKSUMS | RECEIVE_SEGMENTS;
    Options { features, without, ..Options::default() }
}

/// A frame of so many bytes with a number in it.
fn sized(number: u64, len: usize) -> Vec<u8> {
    let mut frame = numbered(BROADCAST, mac(1), number);
    frame.resize(len, number as u8);
    frame
}

/// Frames of all sizes go over the switch, whole and in order, whatever the rings are and however many buffers they need.
#[test]
fn frames_cross_a_switch() {
    for (without, merged) in KINDS.into_iter().flat_map(|kind| [(kind, 0), (kind, F_MRG_RXBUF)]) {
        let server = switch(&["a", "b"]);
        let options = Options { without: without | merged, mtu: 9000, buffer_len: 600, ..Options::default() };
        let (mut a, mut b) = (guest(&server, "a", &options), guest(&server, "b", &options));
        a.meet(&mut [&mut b]);
        for burst in 0..50 {
            let frame = |i: u64| sized(i, 60 + (i as usize * 977) % 8900);
            let numbers = burst * 20..burst * 20 + 20;
            numbers.clone().for_each(|i| a.send(&frame(i), &Offload::None));
            a.flush();
            numbers.for_each(|i| assert!(b.expect().0 == frame(i), "{without:#x} {i}"));
        }
        assert_eq!(b.net.pair(0).rx.dropped(), ringway_driver::net::Dropped::default());
        a.net.stop().unwrap();
        b.net.stop().unwrap();
    }
}

fn flow() -> Flow {
    Flow {
        src_mac: mac(1),
        dst_mac: BROADCAST,
        src_ip: Ipv4Addr::new(192, 0, 2, 1).into(),
        dst_ip: Ipv4Addr::new(192, 0, 2, 2).into(),
        src_port: 7,
        dst_port: 4000,
    }
}

fn partial(frame: &[u8]) -> Partial {
    let VnetHeader { csum_start, csum_offset, .. } = frame::partial_header(frame).unwrap();
    Partial { start: csum_start, offset: csum_offset }
}

/// A partial checksum reaches a driver that takes it as it
/// is, and others completed: what the driver said of its place was right.
#[test]
fn checksums_are_left_to_the_device() {
    for kind in KINDS {
        let server = switch(&["a", "able", "unable"]);
        let mut a = guest(&server, "a", &all(kind));
        let mut able = guest(&server, "able", &all(kind));
        let mut unable = guest(&server, "unable", &Options { without: kind, ..Options::default() });
        a.meet(&mut [&mut able, &mut unable]);
        able.drain();
        for payload in [0, 1, 100, 1400] {
            let bytes = frame::udp(&flow(), &vec![7; payload], frame::Checksum::Partial);
            let place = partial(&bytes);
            a.send(&bytes, &Offload::Checksum(place));
            a.flush();
            let received = able.expect();
            assert!(received == (bytes, Checksum::Partial(place), None));
            let (bytes, checksum, _) = unable.expect();
            assert_eq!(checksum, Checksum::Unknown);
            frame::check(&bytes).unwrap();
        }
    }
}

/// A frame of 60 000 bytes reaches a driver that takes segments as one, over many buffers, and others cut.
#[test]
fn segments_are_left_to_the_device() {
    for kind in KINDS {
        let server = switch(&["a", "able", "unable"]);
        let mut a = guest(&server, "a", &all(kind));
        let mut able = guest(&server, "able", &all(kind));
        let mut unable = guest(&server, "unable", &Options { without: kind, ..Options::default() });
        a.meet(&mut [&mut able, &mut unable]);
        able.drain();
        let payload: Vec<_> = (0..60_000_u32).map(|i| (i % 251) as u8).collect();
        let bytes = frame::tcp(&flow(), 1, 0x10, &payload, frame::Checksum::Partial);
        let segments = Segments { kind: Kind::TcpV4, ecn: false, size: 1400 };
        let header_len = (bytes.len() - payload.len()) as u16;
        let checksum = partial(&bytes);
        for _ in 0..20 {
            a.send(&bytes, &Offload::Segment { segments, header_len, checksum });
            a.flush();
            let received = able.expect();
            assert!(received == (bytes.clone(), Checksum::Partial(checksum), Some(segments)));
            for part in payload.chunks(1400) {
                let (segment, _, segments) = unable.expect();
                assert_eq!(segments, None);
                frame::check(&segment).unwrap();
                assert!(segment[header_len.into()..] == *part);
            }
        }
    }
}

/// The control queue: the device does what it is told, and the next frames show it.
#[test]
fn the_device_does_as_it_is_told() {
    const OWN: Mac = [2, 0, 0, 0, 0, 0xa];
    const OTHER: Mac = [2, 0, 0, 0, 0, 0xb];
    const GROUP: Mac = [3, 0, 0, 0, 0, 0xc];
    for kind in KINDS {
        let server = switch(&["a,queues=4,mac=02:00:00:00:00:0a,rss,filters", "b"]);
        let mut a = guest(&server, "a", &Options { pairs: 4, ..all(kind) });
        let mut b = guest(&server, "b", &all(kind));
        assert_eq!(a.net.mac(), OWN);
        b.meet(&mut [&mut a]);
        let mut reaches = |a: &mut Guest, to: Mac| {
            b.send(&frame::ethernet(to, mac(2), EXPERIMENT, &[0; 46]), &Offload::None);
            b.flush();
            // One that a always takes follows.
            b.send(&frame::ethernet(BROADCAST, mac(2), EXPERIMENT, &[1; 46]), &Offload::None);
            b.flush();
            let (first, ..) = a.expect();
            let is_there = first[..6] == to;
            if is_there {
                assert_eq!(a.expect().0[..6], BROADCAST);
            }
            is_there
        };
        a.net.set_mode(Mode::Promiscuous, false).unwrap();
        assert_eq!([OWN, OTHER, GROUP].map(|to| reaches(&mut a, to)), [true, false, false]);
        a.net.set_addresses(&[OTHER], &[GROUP]).unwrap();
        assert_eq!([OWN, OTHER, GROUP].map(|to| reaches(&mut a, to)), [true, true, true]);
        a.net.set_addresses(&[], &[]).unwrap();
        a.net.set_mac(OTHER).unwrap();
        assert_eq!([OWN, OTHER, GROUP].map(|to| reaches(&mut a, to)), [false, true, false]);
        a.net.set_mode(Mode::Promiscuous, true).unwrap();
        assert_eq!([OWN, OTHER, GROUP].map(|to| reaches(&mut a, to)), [true, true, true]);
        a.net.set_mode(Mode::Promiscuous, false).unwrap();
        a.net.set_vlan(100, true).unwrap();
        a.net.set_vlan(100, false).unwrap();
        a.net.announced().unwrap();

        // Offloads off: what is partial is completed.
        let bytes = frame::udp(&flow(), &[7; 100], frame::Checksum::Partial);
        for (on, is_partial) in [(0, false), (F_GUEST_CSUM, true)] {
            a.net.set_guest_offloads(on).unwrap();
            b.send(&bytes, &Offload::Checksum(partial(&bytes)));
            b.flush();
            assert_eq!(matches!(a.expect().1, Checksum::Partial(_)), is_partial);
        }

        // Queues by a hash: all flows go where the table says.
        for pair in [3, 1] {
            a.net
                .set_rss(&Rss {
                    hash_types: HASH_TYPE_IPV4 | HASH_TYPE_UDPV4,
                    table: &[pair; 8],
                    unclassified: 0,
                    transmit: 4,
                    key: b"a key of forty bytes, as drivers have it",
                })
                .unwrap();
            b.send(&bytes, &Offload::Checksum(partial(&bytes)));
            b.flush();
            let received = a.next_on(pair.into(), LIMIT).expect("a frame");
            a.net.pair(pair.into()).rx.recycle(received.frame);
        }
        a.net.set_pairs(1).unwrap();
        b.send(&bytes, &Offload::Checksum(partial(&bytes)));
        b.flush();
        a.expect();
        a.expect_nothing();
    }
}

/// Frames come back from back-ends that return them: ours, and DPDK's.
#[test]
fn frames_come_back() {
    // DPDK has no configuration for who is not a hypervisor: features whose fields would be there are not accepted.
    for project in [Project::Ringway, Project::Dpdk] {
        for without in KINDS {
            let backend = Backend::start(project, Path::new(PROGRAM)).unwrap();
            let options = Options { without, ..Options::default() };
            let mut guest = Guest::up(backend.socket(), &options);
            for burst in 0..100 {
                let numbers = burst * 32..burst * 32 + 32;
                let frame = |i: u64| sized(i, 60 + (i as usize * 977) % 1400);
                numbers.clone().for_each(|i| guest.send(&frame(i), &Offload::None));
                guest.flush();
                for i in numbers {
                    // Ours exchanges the addresses.
                    assert!(guest.expect().0[12..] == frame(i)[12..], "{project:?} {without:#x} {i}");
                }
            }
            guest.net.stop().unwrap();
        }
    }
}
