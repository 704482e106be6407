//! What drivers negotiate about frames: checksums, segmentation, mergeable buffers, sizes, headers, queue pairs.

mod common;
#[path = "offloads/queues.rs"]
mod queues;
#[path = "offloads/segments.rs"]
mod segments;
#[path = "offloads/steering.rs"]
mod steering;

use std::net::IpAddr;

use common::{FEATURES, SOON, eventually, exchange, expect_number, numbered, options, switch, up};
use ringway_testkit::frontend::frame::{self, BROADCAST, Checksum, Flow, Mac};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{Arrangement, NetFrontend, Options, VnetHeader};
use ringway_testkit::server::Server;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const D: Mac = [2, 0, 0, 0, 0, 0xd];
const CSUM: u64 = feature::NET_CSUM;
const GUEST_CSUM: u64 = feature::NET_GUEST_CSUM;

/// A flow from a to all.
fn flow(is_v6: bool, src_port: u16) -> Flow {
    let ip = |n: u8| -> IpAddr {
        if is_v6 { [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n].into() } else { [10, 0, 0, n].into() }
    };
    Flow { src_mac: A, dst_mac: BROADCAST, src_ip: ip(1), dst_ip: ip(2), src_port, dst_port: 5001 }
}

fn segment(is_tcp: bool, is_v6: bool, payload: &[u8], checksum: Checksum) -> Vec<u8> {
    let flow = flow(is_v6, 1234);
    if is_tcp { frame::tcp(&flow, 1, 0x18, payload, checksum) } else { frame::udp(&flow, payload, checksum) }
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + 3) as u8).collect()
}

// ---- Checksums ----

/// The guests of the checksum tests: a sends, b takes partial checksums, d does not.
fn checksum_guests() -> (Server, [NetFrontend; 3]) {
    let server = switch(&["a", "b", "d"]);
    let long = Options { rx_chain: vec![4096], ..options() };
    let guests = [("a", CSUM), ("b", GUEST_CSUM), ("d", 0)]
        .map(|(port, features)| up(&server, port, FEATURES | features, long.clone()));
    (server, guests)
}

/// One frame to b and to d: b gets it as it was sent, d gets it complete.
fn send_partial(guests: &mut [NetFrontend; 3], bytes: &[u8], arrangement: &Arrangement) {
    let [a, b, d] = guests;
    let header = frame::partial_header(bytes).unwrap();
    a.send_frame_with_header(&header, bytes, arrangement).unwrap();
    let (got_header, got) = b.recv_frame(SOON).unwrap().expect("b gets the frame");
    assert_eq!(got_header, VnetHeader { num_buffers: 1, ..header });
    assert!(got == bytes, "b gets the bytes as they were sent");
    let (got_header, got) = d.recv_frame(SOON).unwrap().expect("d gets the frame");
    assert_eq!(got_header, VnetHeader { num_buffers: 1, ..VnetHeader::default() });
    frame::check(&got).unwrap();
    let mut complete = bytes.to_vec();
    frame::complete(&header, &mut complete).unwrap();
    let at = usize::from(header.csum_start + header.csum_offset);
    assert!(got[..at] == complete[..at] && got[at + 2..] == complete[at + 2..], "d gets all other bytes");
}

/// [DEV-NET-processing-of-incoming-packets-05] [DEV-NET-processing-of-incoming-packets-16]
/// [DEV-NET-processing-of-incoming-packets-17] [DEV-NET-processing-of-incoming-packets-20] A partial checksum
/// reaches a guest that takes them untouched, and is completed for one that does not: UDP and TCP, IPv4 and
/// IPv6, with a tag and without, of odd and even lengths, however the frame is spread.
#[test]
fn partial_checksums() {
    let (server, mut guests) = checksum_guests();
    let arrangements = [
        Arrangement::whole(),
        Arrangement::header_apart(),
        Arrangement::pieces(&[12, 14, 20, 7]),
        Arrangement::pieces(&[5, 8, 1, 33, 3]).indirect(),
    ];
    for (is_tcp, is_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        for (n, len) in [0, 1, 2, 3, 18, 101, 1400, 1401, 3001].into_iter().enumerate() {
            let bytes = segment(is_tcp, is_v6, &payload(len), Checksum::Partial);
            send_partial(&mut guests, &bytes, &arrangements[n % 4]);
            send_partial(&mut guests, &frame::tagged(&bytes, 0x2005), &arrangements[(n + 1) % 4]);
        }
    }
    let counters = server.counters().unwrap();
    assert_eq!((counters.dropped("a"), counters.dropped("b"), counters.dropped("d")), (0, 0, 0));
}

/// A sum of zero is sent as 0xffff: in UDP, zero says that there is none.
#[test]
fn a_checksum_that_is_zero() {
    let (_server, mut guests) = checksum_guests();
    let is_zero = |n: &u16| {
        let udp = segment(false, false, &n.to_be_bytes(), Checksum::Complete);
        udp[14 + 20 + 6..][..2] == [0xff, 0xff]
    };
    let number = (0..=u16::MAX).find(is_zero).expect("one payload of all has it");
    let bytes = segment(false, false, &number.to_be_bytes(), Checksum::Partial);
    let [a, _, d] = &mut guests;
    a.send_frame_with_header(&frame::partial_header(&bytes).unwrap(), &bytes, &Arrangement::whole()).unwrap();
    let (_, got) = d.recv_frame(SOON).unwrap().unwrap();
    assert_eq!(got[14 + 20 + 6..][..2], [0xff, 0xff]);
}

/// [DEV-NET-packet-transmission-01] [DEV-NET-packet-transmission-02] [DEV-NET-packet-transmission-11]
/// [DEV-NET-processing-of-incoming-packets-23] [DEV-NET-processing-of-incoming-packets-25]
/// [DEV-NET-processing-of-incoming-packets-30] A complete frame stays as it is, right or wrong, whatever the
/// header says beside; no flag is passed on that the device cannot stand for.
#[test]
fn complete_checksums_are_left_alone() {
    let (_server, mut guests) = checksum_guests();
    let [a, b, d] = &mut guests;
    for checksum in [Checksum::Complete, Checksum::Raw(0x1234)] {
        for flags in [0, VnetHeader::DATA_VALID, 4, 0xfe] {
            let bytes = segment(false, false, &payload(99), checksum);
            let header =
                VnetHeader { flags, csum_start: 60_000, csum_offset: 60_000, ..VnetHeader::default() };
            a.send_frame_with_header(&header, &bytes, &Arrangement::whole()).unwrap();
            for guest in [&mut *b, &mut *d] {
                let (header, got) = guest.recv_frame(SOON).unwrap().unwrap();
                assert_eq!(header, VnetHeader { num_buffers: 1, ..VnetHeader::default() });
                assert!(got == bytes);
            }
        }
    }
}

/// A header that lies costs its frame, and is counted; the ring goes on.
#[test]
fn lying_headers() {
    let (server, mut guests) = checksum_guests();
    let [a, b, _] = &mut guests;
    let bytes = segment(false, false, &payload(50), Checksum::Partial);
    let len = bytes.len() as u16;
    let needs = |csum_start, csum_offset| VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        csum_start,
        csum_offset,
        ..VnetHeader::default()
    };
    let right = frame::partial_header(&bytes).unwrap();
    let gso = |gso_type, gso_size| VnetHeader { gso_type, gso_size, hdr_len: 42, ..right };
    let lies = [
        needs(len, 0),
        needs(len - 1, 0),
        needs(len + 1, 0),
        needs(34, len - 34 - 1),
        needs(0, len - 1),
        needs(0, u16::MAX),
        needs(u16::MAX, 0),
        needs(u16::MAX, u16::MAX),
        // Segmentation was not negotiated.
        gso(VnetHeader::GSO_TCPV4, 1000),
        gso(VnetHeader::GSO_TCPV6, 1000),
        gso(VnetHeader::GSO_UDP, 1000),
        gso(VnetHeader::GSO_UDP_L4, 1000),
        gso(VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN, 1000),
        gso(VnetHeader::GSO_ECN, 1000),
        gso(0x7f, 1000),
        gso(VnetHeader::GSO_TCPV4, 0),
    ];
    for header in &lies {
        a.send_frame_with_header(header, &bytes, &Arrangement::whole()).unwrap();
    }
    // These are no lies: they spoil the sender's own frame.
    for header in [needs(0, 0), needs(len - 2, 0), needs(1, len - 3)] {
        a.send_frame_with_header(&header, &bytes, &Arrangement::whole()).unwrap();
        let (got_header, got) = b.recv_frame(SOON).unwrap().unwrap();
        assert_eq!((got_header.csum_start, got == bytes), (header.csum_start, true));
    }
    let counters = server.counters().unwrap();
    assert_eq!(counters.get("a", "malformed"), lies.len() as u64);
    assert_eq!((counters.get("b", "to"), counters.get("d", "to")), (3, 3));
    assert_eq!(counters.get("a", "failed rings"), 0);
}

// ---- Buffers ----

/// A guest on a that sends, one on d with receive chains of these lengths.
fn pair_of(features: u64, rx_chain: &[u32]) -> (Server, NetFrontend, NetFrontend) {
    let server = switch(&["a", "d"]);
    let a = up(&server, "a", FEATURES, options());
    let receiver = Options { ring_size: 256, rx_chain: rx_chain.to_vec(), ..options() };
    let d = up(&server, "d", features, receiver);
    (server, a, d)
}

fn sized(len: usize) -> Vec<u8> {
    let mut bytes = frame::ethernet(BROADCAST, A, common::EXPERIMENT, &payload(len.saturating_sub(14)));
    bytes.truncate(len);
    bytes
}

/// [DEV-NET-setting-up-receive-buffers-01] [DEV-NET-processing-of-incoming-packets-02]
/// [DEV-NET-processing-of-incoming-packets-03] [DEV-NET-processing-of-incoming-packets-04] With mergeable
/// buffers a frame takes as many as it needs, all but the last full, all used at once: the front-end checks
/// each of these. Lengths are around the buffers' own.
#[test]
fn mergeable_buffers() {
    for rx_chain in [&[64][..], &[65], &[20, 13], &[12, 100], &[1526], &[2048], &[4096, 4096]] {
        let (server, mut a, mut d) = pair_of(FEATURES, rx_chain);
        let room = rx_chain.iter().sum::<u32>() as usize;
        let edges = [1, 2, 3].map(|n| n * room - 12).into_iter().flat_map(|l| [l - 1, l, l + 1]);
        let most = room * (256 / rx_chain.len()) - 12;
        let lens = edges.chain([14, 60, 61, 1514, 4000]).filter(|l| (14..=most).contains(l));
        for len in lens {
            a.send_frame(&sized(len)).unwrap();
            let (header, got) = d.recv_frame(SOON).unwrap().unwrap();
            assert_eq!(usize::from(header.num_buffers), (len + 12).div_ceil(room), "{len} in {rx_chain:?}");
            assert!(got == sized(len), "{len} in {rx_chain:?}");
        }
        assert_eq!(server.counters().unwrap().dropped("d"), 0, "{rx_chain:?}");
    }
}

/// Long frames over many small buffers, and one that all buffers together do not hold.
#[test]
fn long_frames_in_small_buffers() {
    let (server, mut a, mut d) = pair_of(FEATURES, &[256]);
    for (n, len) in [9014, 9018, 30_000, 65_000, 256 * 256 - 12].into_iter().enumerate() {
        a.send_frame(&sized(len)).unwrap();
        let (header, got) = d.recv_frame(SOON).unwrap().unwrap();
        assert_eq!(usize::from(header.num_buffers), (len + 12).div_ceil(256));
        assert!(got == sized(len), "{len}");
        a.send_frame(&sized(256 * 256 - 12 + 1)).unwrap();
        eventually("it is too long", || server.counters().unwrap().get("d", "too-long") == n as u64 + 1);
    }
    exchange((&mut a, A), (&mut d, D));
}

/// [DEV-NET-setting-up-receive-buffers-02] [DEV-NET-processing-of-incoming-packets-01] Without mergeable buffers
/// a frame is in one chain, of however many descriptors, and `num_buffers` is 1; a frame that is longer is
/// dropped and counted, and costs no buffer.
#[test]
fn buffers_that_do_not_merge() {
    for rx_chain in [&[100][..], &[12, 88], &[1; 100], &[50, 50]] {
        let (server, mut a, mut d) = pair_of(feature::VERSION_1, rx_chain);
        let mut too_long = 0;
        for len in [14, 60, 87, 88, 89, 100, 1514, 88, 14] {
            a.send_frame(&sized(len)).unwrap();
            if len <= 88 {
                let (header, got) = d.recv_frame(SOON).unwrap().unwrap();
                assert_eq!(header.num_buffers, 1);
                assert!(got == sized(len), "{len} in {rx_chain:?}");
            } else {
                too_long += 1;
            }
        }
        let counters = server.counters().unwrap();
        assert_eq!((counters.get("d", "too-long"), counters.dropped("d")), (too_long, too_long));
    }
}

/// The header has ten bytes for a driver of neither version 1 nor mergeable buffers, and twelve for any other.
#[test]
fn legacy_headers() {
    for features in [0, feature::NET_MRG_RXBUF, feature::VERSION_1, CSUM | GUEST_CSUM] {
        let (_server, mut a, mut d) = pair_of(features, &[2048]);
        assert_eq!(d.pair(0).header_len(), if features & !(CSUM | GUEST_CSUM) == 0 { 10 } else { 12 });
        for len in [14, 60, 1514] {
            a.send_frame(&sized(len)).unwrap();
            assert!(d.recv_frame(SOON).unwrap().unwrap().1 == sized(len));
        }
        // A legacy driver has the header in a descriptor of its own.
        let apart = Arrangement::pieces(&[d.pair(0).header_len()]);
        d.send_frame_with_header(&VnetHeader::default(), &numbered(A, D, 3), &apart).unwrap();
        expect_number(&mut a, D, 3);
    }
}

// ---- MTU ----

/// [DEV-NET-cfg-06] A frame of the MTU passes, with a tag and without; a longer one is dropped and counted.
#[test]
fn the_mtu() {
    let server = switch(&["a", "d,mtu=1500"]);
    let mut a = up(&server, "a", FEATURES, options());
    let mut d = up(&server, "d", FEATURES | feature::NET_MTU, options());
    for len in [1500, 1514] {
        a.send_frame(&sized(len)).unwrap();
        assert_eq!(d.recv_frame(SOON).unwrap().unwrap().1.len(), len);
        a.send_frame(&frame::tagged(&sized(len), 5)).unwrap();
        assert_eq!(d.recv_frame(SOON).unwrap().unwrap().1.len(), len + 4);
    }
    a.send_frame(&sized(1519)).unwrap();
    a.send_frame(&frame::tagged(&sized(1515), 5)).unwrap();
    a.send_frame(&sized(9000)).unwrap();
    exchange((&mut a, A), (&mut d, D));
    assert_eq!(server.counters().unwrap().get("d", "too-long"), 3);
    // A driver that knows no MTU takes what it has room for.
    drop(d);
    let mut d = up(&server, "d", FEATURES, options());
    a.send_frame(&sized(1800)).unwrap();
    assert_eq!(d.recv_frame(SOON).unwrap().unwrap().1.len(), 1800);
    d.send_frame(&numbered(B, D, 0)).unwrap();
}

/// [DEV-NET-cfg-05] The MTU is of what is in the frame: without a tag, four bytes less are too many already.
#[test]
fn the_mtu_of_a_frame_without_tag() {
    let server = switch(&["a", "d,mtu=1500"]);
    let mut a = up(&server, "a", FEATURES, options());
    let mut d = up(&server, "d", FEATURES | feature::NET_MTU, options());
    for len in 1515..=1518 {
        a.send_frame(&sized(len)).unwrap();
    }
    exchange((&mut a, A), (&mut d, D));
    assert_eq!(server.counters().unwrap().get("d", "too-long"), 4);
}
