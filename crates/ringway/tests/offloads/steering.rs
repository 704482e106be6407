//! What a driver wants of the frames it receives: queues by hash and table, hashes in the header, addresses, VLANs,
//! offloads for a while.

use std::time::{Duration, Instant};

use ringway_testkit::frontend::frame::{self, BROADCAST, Checksum, Flow, Mac};
use ringway_testkit::frontend::wire::{feature, request};
use ringway_testkit::frontend::{Arrangement, NetFrontend, Options, VnetHeader};
use ringway_testkit::server::Server;

use crate::common::{FEATURES, QUIET, SOON, expect_number, mac, number_of, numbered, options, switch, up};
use crate::queues::{Control, ERROR, OK};
use crate::{A, D};

const CTRL: u64 = feature::NET_CTRL_VQ;
const RSS: u64 = feature::NET_MQ | feature::NET_RSS;
const HASH: u64 = feature::NET_HASH_REPORT;
const FILTERS: u64 = feature::NET_CTRL_RX
    | feature::NET_CTRL_RX_EXTRA
    | feature::NET_CTRL_VLAN
    | feature::NET_CTRL_MAC_ADDR
    | feature::NET_MAC;

const PAIRS: usize = 4;
const KEY: [u8; 40] = *b"a key of forty bytes, as drivers have it";
/// All types that are offered.
const TYPES: u32 = 0x3f;

/// How many pairs a driver with these features has.
fn pairs(features: u64) -> u16 {
    if features & RSS == 0 { 1 } else { PAIRS as u16 }
}

/// Ports a, which offers everything, and d.
fn guests(features: u64) -> (Server, NetFrontend, NetFrontend) {
    let server = switch(&["a,queues=4,mac=02:00:00:00:00:0a,rss,filters", "d"]);
    let several = Options { queue_pairs: pairs(features), ring_size: 256, max_frame: 2000, ..options() };
    let mut a = up(&server, "a", features, several);
    let mut d = up(&server, "d", FEATURES, Options { ring_size: 64, ..options() });
    a.send_frame(&numbered(BROADCAST, A, 0)).unwrap();
    expect_number(&mut d, A, 0);
    (server, a, d)
}

/// The control queue of a.
fn control(a: &NetFrontend) -> Control {
    Control::start(a, 2 * u32::from(pairs(a.features())))
}

fn order(control: &mut Control, command: &[u8]) -> u8 {
    control.command(command, 7, 1).0
}

/// The command for a table.
fn scale(types: u32, table: &[u16], unclassified: u16) -> Vec<u8> {
    let head = [&[4, 1][..], &types.to_le_bytes()].concat();
    let mask = table.len() as u16 - 1;
    let queues: Vec<u8> =
        [&[mask, unclassified], table, &[4]].concat().iter().flat_map(|queue| queue.to_le_bytes()).collect();
    [&head[..], &queues, &[KEY.len() as u8], &KEY].concat()
}

/// The hash as the specification defines it, bit by bit.
fn toeplitz(input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], at: usize| u32::from(bytes[at / 8] >> (7 - at % 8) & 1);
    let window = |at: usize| (0..32).fold(0, |word, i| word << 1 | bit(&KEY, at + i));
    (0..input.len() * 8).filter(|&at| bit(input, at) == 1).fold(0, |sum, at| sum ^ window(at))
}

/// A frame to a with what its header is to say: the hash, and what that covers (1 to 6, as the types are numbered).
fn hashed(number: u16) -> (Vec<u8>, u32, u16) {
    let is_v6 = number & 1 != 0;
    let flow = Flow { src_mac: D, dst_mac: A, ..crate::flow(is_v6, 1000 + number) };
    let (ip, addresses) = if is_v6 { (4, 22..54) } else { (1, 26..34) };
    match number / 2 % 3 {
        0 => {
            let mut bytes = frame::udp(&flow, &[0; 30], Checksum::Complete);
            // Another protocol: no ports.
            bytes[if is_v6 { 20 } else { 23 }] = 89;
            bytes[addresses.end + 8..].copy_from_slice(&[number as u8; 30]);
            let hash = toeplitz(&bytes[addresses]);
            (bytes, hash, ip)
        }
        1 => {
            let bytes = frame::tcp(&flow, 7, 0x10, &[0; 30], Checksum::Complete);
            let hash = toeplitz(&bytes[addresses.start..addresses.end + 4]);
            (bytes, hash, ip + 1)
        }
        _ => {
            let bytes = frame::udp(&flow, &[0; 30], Checksum::Complete);
            let hash = toeplitz(&bytes[addresses.start..addresses.end + 4]);
            (bytes, hash, ip + 2)
        }
    }
}

/// What comes in within the time, on any pair: all that is there once there is something, each frame with its header and
/// its pair. A frame is sent before it is received: who waited for the one waits for the other still.
fn received(a: &mut NetFrontend, within: Duration) -> Vec<(usize, VnetHeader, Vec<u8>)> {
    let deadline = Instant::now() + within;
    loop {
        let mut frames = Vec::new();
        for pair in 0..PAIRS {
            let ring = a.pair(pair);
            while let Some((header, bytes)) = ring.recv(Duration::ZERO).unwrap() {
                frames.push((pair, header, bytes));
            }
        }
        if !frames.is_empty() || Instant::now() > deadline {
            return frames;
        }
    }
}

fn send(d: &mut NetFrontend, bytes: &[u8]) {
    d.send_frame(bytes).unwrap();
    d.pair(0).wait_sent(SOON).unwrap();
}

/// [DEV-NET-rss-processing-01] [DEV-NET-rss-processing-02] [DEV-NET-rss-processing-03] Frames come in on the queue that
/// hash and table lead to, behind a header that tells the hash, if that was asked for; frames without a hash on the
/// queue for these. A tag changes nothing. Frames with a long header are sent as well.
#[test]
fn hash_and_table_choose_the_queue() {
    for features in
        [FEATURES | CTRL | RSS | HASH, FEATURES | CTRL | RSS, feature::VERSION_1 | CTRL | RSS | HASH]
    {
        let (server, mut a, mut d) = guests(features);
        let mut control = control(&a);
        send(&mut d, &hashed(2).0);
        assert!(matches!(&received(&mut a, SOON)[..], [(0, header, _)] if header.hash_report == 0));
        for (table, unclassified) in [(&[3, 1, 0, 2][..], 1), (&[2], 0), (&[0, 1, 2, 3, 3, 3, 3, 3], 2)] {
            assert_eq!(order(&mut control, &scale(TYPES, table, unclassified)), OK);
            for number in 0..24 {
                let (bytes, hash, report) = hashed(number);
                for bytes in [frame::tagged(&bytes, 5), bytes] {
                    send(&mut d, &bytes);
                    let frames = received(&mut a, SOON);
                    let [(pair, header, got)] = &frames[..] else { panic!("{number}: {frames:?}") };
                    assert!(*got == bytes);
                    assert_eq!(*pair, usize::from(table[hash as usize % table.len()]), "{number}");
                    let told = if features & HASH == 0 { (0, 0) } else { (hash, report) };
                    assert_eq!(
                        (header.hash_value, header.hash_report, header.num_buffers),
                        (told.0, told.1, 1)
                    );
                }
            }
            let other = numbered(A, D, 1);
            send(&mut d, &other);
            let frames = received(&mut a, SOON);
            let [(pair, header, got)] = &frames[..] else { panic!("{frames:?}") };
            assert_eq!((*pair, header.hash_value, header.hash_report), (unclassified.into(), 0, 0));
            assert!(*got == other);
        }
        for number in 0..8 {
            a.pair(usize::from(number as u8) % PAIRS).send(&numbered(D, A, number)).unwrap();
            expect_number(&mut d, A, number);
        }
        let counters = server.counters().unwrap();
        assert_eq!((counters.dropped("a"), counters.dropped("d")), (0, 0));
    }
}

/// Hashes are reported while the device chooses queues, and for frames in several buffers.
#[test]
fn hashes_are_reported_without_a_table() {
    let server = switch(&["a,rss", "d"]);
    let small = Options { rx_chain: vec![64], ring_size: 256, ..options() };
    let mut a = up(&server, "a", FEATURES | CTRL | HASH, small);
    let mut d = up(&server, "d", FEATURES, options());
    a.send_frame(&numbered(BROADCAST, A, 0)).unwrap();
    expect_number(&mut d, A, 0);
    let mut control = Control::start(&a, 2);
    let config = |types: u32| [&[4, 2][..], &types.to_le_bytes(), &[0; 8], &[40], &KEY].concat();
    assert_eq!(order(&mut control, &scale(TYPES, &[0], 0)), ERROR, "not negotiated");
    assert_eq!(order(&mut control, &config(TYPES)), OK);
    for number in 0..12 {
        let (bytes, hash, report) = hashed(number);
        send(&mut d, &bytes);
        let (header, got) = a.recv_frame(SOON).unwrap().unwrap();
        assert!(got == bytes);
        assert_eq!((header.hash_value, header.hash_report), (hash, report));
        assert_eq!(usize::from(header.num_buffers), (bytes.len() + VnetHeader::HASH_LEN).div_ceil(64));
    }
    assert_eq!(order(&mut control, &config(0)), OK);
    send(&mut d, &hashed(2).0);
    assert_eq!(a.recv_frame(SOON).unwrap().unwrap().0.hash_report, 0);
}

/// A front-end that has the control queue for itself gets the long header, nothing in it, and frames on all queues.
#[test]
fn a_front_end_that_keeps_the_control_queue() {
    let (_server, mut a, mut d) = guests(FEATURES | RSS | HASH | FILTERS);
    let mut pairs = [0; PAIRS];
    for number in 0..48 {
        let (bytes, ..) = hashed(number);
        send(&mut d, &bytes);
        let frames = received(&mut a, SOON);
        let [(pair, header, got)] = &frames[..] else { panic!("{number}: {frames:?}") };
        pairs[*pair] += 1;
        assert!(*got == bytes);
        assert_eq!((header.hash_value, header.hash_report), (0, 0));
    }
    assert!(pairs.iter().all(|&frames| frames > 0), "{pairs:?}");
}

/// A table may lead to a queue that does not run: its frames are dropped, and counted.
#[test]
fn a_queue_that_does_not_run_gets_nothing() {
    let (server, mut a, mut d) = guests(FEATURES | CTRL | RSS);
    let mut control = control(&a);
    assert_eq!(order(&mut control, &scale(TYPES, &[1], 2)), OK);
    let base = a.stop_ring(2).unwrap();
    send(&mut d, &hashed(2).0);
    assert!(received(&mut a, QUIET).is_empty());
    assert_eq!(server.counters().unwrap().get("a", "not-ready"), 1);
    a.restart_ring(2, base).unwrap();
    send(&mut d, &hashed(2).0);
    assert!(matches!(&received(&mut a, SOON)[..], [(1, ..)]));
}

/// [DEV-NET-packet-receive-filtering-01] [DEV-NET-packet-receive-filtering-04]
/// [DEV-NET-packet-receive-filtering-06] [DEV-NET-packet-receive-filtering-08]
/// [DEV-NET-packet-receive-filtering-12] [DEV-NET-packet-receive-filtering-15]
/// [DEV-NET-setting-mac-address-filtering-02] [DEV-NET-setting-mac-address-filtering-03] Once a command is answered,
/// frames come in or do not as it said, and the configuration has the address.
#[test]
fn commands_filter_frames() {
    const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 0xee];
    let (server, mut a, mut d) = guests(FEATURES | CTRL | FILTERS);
    let mut control = control(&a);
    let mut number = 0;
    let mut dropped = 0;
    let mut expect = |a: &mut NetFrontend, wanted: &[Mac]| {
        for dst in [A, mac(9), OTHER, GROUP, BROADCAST] {
            number += 1;
            send(&mut d, &numbered(dst, D, number));
            let within = if wanted.contains(&dst) { SOON } else { QUIET };
            let got = a.recv_frame(within).unwrap();
            let got = got.and_then(|(_, bytes)| number_of(&bytes, D));
            assert_eq!(got, wanted.contains(&dst).then_some(number), "to {dst:x?}");
            dropped += u64::from(got.is_none());
        }
    };
    expect(&mut a, &[A, mac(9), OTHER, GROUP, BROADCAST]);
    assert_eq!(order(&mut control, &[0, 0, 0]), OK);
    expect(&mut a, &[A, BROADCAST]);
    let table = [&[1, 0, 1, 0, 0, 0][..], &mac(9), &[1, 0, 0, 0], &GROUP].concat();
    assert_eq!(order(&mut control, &table), OK);
    expect(&mut a, &[A, mac(9), GROUP, BROADCAST]);
    for (mode, wanted) in [
        (2, &[A, mac(9), OTHER, GROUP, BROADCAST][..]),
        (4, &[GROUP, BROADCAST]),
        (3, &[BROADCAST]),
        (5, &[]),
    ] {
        assert_eq!(order(&mut control, &[0, mode, 1]), OK);
        expect(&mut a, wanted);
    }
    for mode in 2..=5 {
        assert_eq!(order(&mut control, &[0, mode, 0]), OK);
    }
    assert_eq!(order(&mut control, &[0, 1, 1]), OK);
    assert_eq!(order(&mut control, &[&[1, 1][..], &OTHER].concat()), OK);
    expect(&mut a, &[mac(9), OTHER, GROUP, BROADCAST]);
    let head = [0u32, 6, 0].map(u32::to_le_bytes).concat();
    let reply = a.connection().request_reply(request::GET_CONFIG, &[&head[..], &[0; 6]].concat()).unwrap();
    assert_eq!(reply[12..], OTHER);
    assert_eq!(server.counters().unwrap().get("a", "filtered"), dropped);
}

/// [DEV-NET-vlan-filtering-01] [DEV-NET-vlan-filtering-02] VLANs come in if the driver wants them, and all of them if it
/// cannot say.
#[test]
fn commands_filter_vlans() {
    for features in [FEATURES | CTRL, FEATURES | CTRL | feature::NET_CTRL_VLAN] {
        let (_server, mut a, mut d) = guests(features);
        let mut control = control(&a);
        let answer = if features & feature::NET_CTRL_VLAN == 0 { ERROR } else { OK };
        let mut wanted: Vec<u16> = if answer == OK { vec![] } else { (0..4096).collect() };
        for (command, vlan) in [(0, 5), (0, 4094), (1, 5)] {
            for tag in [0, 5, 6, 0x6005, 4094] {
                let bytes = frame::tagged(&numbered(A, D, tag.into()), tag);
                send(&mut d, &bytes);
                let is_wanted = wanted.contains(&(tag & 0xfff));
                let got = a.recv_frame(if is_wanted { SOON } else { QUIET }).unwrap();
                assert_eq!(got.map(|(_, got)| got), is_wanted.then_some(bytes), "{tag:#x}");
            }
            send(&mut d, &numbered(A, D, 1));
            assert!(a.recv_frame(SOON).unwrap().is_some(), "without a tag");
            let [low, high] = u16::to_le_bytes(vlan);
            assert_eq!(order(&mut control, &[2, command, low, high]), answer);
            if answer == OK {
                wanted.retain(|&v| v != vlan);
                wanted.extend((command == 0).then_some(vlan));
            }
        }
    }
}

/// [DEV-NET-flow-filter-22] [DEV-NET-flow-filter-24] [DEV-NET-flow-filter-25] What the driver does not want goes to no
/// queue, not even that for frames without a hash; the rest to the queue that the table says.
#[test]
fn filters_come_before_tables() {
    let (server, mut a, mut d) = guests(FEATURES | CTRL | RSS | HASH | FILTERS);
    let mut control = control(&a);
    assert_eq!(order(&mut control, &scale(TYPES, &[3, 1, 0, 2], 1)), OK);
    assert_eq!(order(&mut control, &[0, 0, 0]), OK);
    assert_eq!(order(&mut control, &[0, 5, 1]), OK);
    for number in 0..12 {
        let (mut bytes, hash, _) = hashed(number);
        send(&mut d, &bytes);
        let frames = received(&mut a, SOON);
        let [(pair, header, _)] = &frames[..] else { panic!("{number}: {frames:?}") };
        assert_eq!((*pair, header.hash_value), ([3, 1, 0, 2][hash as usize & 3], hash));
        bytes[..6].copy_from_slice(&BROADCAST);
        send(&mut d, &bytes);
        send(&mut d, &numbered(BROADCAST, D, 1));
        assert!(received(&mut a, QUIET).is_empty(), "{number}");
    }
    assert_eq!(server.counters().unwrap().get("a", "filtered"), 24);
}

/// What a driver has ordered holds after an upgrade of the server, until it orders something else.
#[test]
fn orders_outlive_an_upgrade() {
    let (mut server, mut a, mut d) = guests(FEATURES | CTRL | RSS | HASH | FILTERS);
    let mut control = control(&a);
    for command in [&scale(TYPES, &[3, 1, 0, 2], 1)[..], &[0, 0, 0], &[2, 0, 5, 0]] {
        assert_eq!(order(&mut control, command), OK);
    }
    server.upgrade().unwrap();
    for number in 0..12 {
        let (bytes, hash, report) = hashed(number);
        send(&mut d, &frame::tagged(&bytes, 6));
        send(&mut d, &numbered(mac(9), D, 1));
        send(&mut d, &frame::tagged(&bytes, 5));
        let frames = received(&mut a, SOON);
        let [(pair, header, _)] = &frames[..] else { panic!("{number}: {frames:?}") };
        assert_eq!((*pair, header.hash_value), ([3, 1, 0, 2][hash as usize & 3], hash));
        assert_eq!(header.hash_report, report);
    }
    assert_eq!(order(&mut control, &[0, 0, 1]), OK);
    send(&mut d, &numbered(mac(9), D, 1));
    assert!(matches!(&received(&mut a, SOON)[..], [(1, ..)]));
}

/// A driver turns its offloads off for a while: checksums are completed for it meanwhile.
#[test]
fn receive_offloads_come_and_go() {
    let server = switch(&["a", "d"]);
    let offloads = feature::NET_GUEST_CSUM | feature::NET_CTRL_GUEST_OFFLOADS;
    let mut a = up(&server, "a", FEATURES | CTRL | offloads, options());
    let mut d = up(&server, "d", FEATURES | feature::NET_CSUM, options());
    let mut control = Control::start(&a, 2);
    let bytes = crate::segment(false, false, &crate::payload(100), Checksum::Partial);
    let header = frame::partial_header(&bytes).unwrap();
    for (on, answer, is_passed) in [
        (feature::NET_GUEST_CSUM, OK, true),
        (0, OK, false),
        (feature::NET_GUEST_TSO4, ERROR, false),
        (feature::NET_GUEST_CSUM, OK, true),
    ] {
        assert_eq!(order(&mut control, &[&[5, 0][..], &on.to_le_bytes()].concat()), answer);
        d.send_frame_with_header(&header, &bytes, &Arrangement::whole()).unwrap();
        let (got_header, got) = a.recv_frame(SOON).unwrap().unwrap();
        if is_passed {
            assert_eq!((got_header.flags, &got), (VnetHeader::NEEDS_CSUM, &bytes));
        } else {
            assert_eq!(got_header.flags, 0);
            frame::check(&got).unwrap();
        }
    }
    assert_eq!(a.recv_frame(QUIET).unwrap(), None);
}

/// As many addresses as a command can have; more are refused.
#[test]
fn tables_of_addresses_are_bounded() {
    let (_server, mut a, mut d) = guests(FEATURES | CTRL | FILTERS);
    let mut control = Control::start(&a, 2);
    assert_eq!(order(&mut control, &[0, 0, 0]), OK);
    let table = |count: u32| {
        let addresses = (0..count).flat_map(|n| [&[2, 1][..], &n.to_be_bytes()].concat());
        let bytes: Vec<u8> = [1, 0].into_iter().chain(count.to_le_bytes()).chain(addresses).collect();
        [bytes, vec![0; 4]].concat()
    };
    assert_eq!(control.command(&table(600), 4096, 1).0, OK);
    send(&mut d, &numbered([2, 1, 0, 0, 2, 0], D, 1));
    assert!(a.recv_frame(SOON).unwrap().is_some());
    send(&mut d, &numbered([2, 1, 0, 0, 2, 0x58], D, 2));
    assert!(a.recv_frame(QUIET).unwrap().is_none());
    assert_eq!(control.command(&table(10_920), 65_536, 1).0, OK);
    assert_eq!(control.command(&table(10_921), 65_536, 1).0, ERROR);
}

/// [DEV-NET-processing-of-incoming-packets-07] [DEV-NET-processing-of-incoming-packets-09] However a frame of UDP is to be
/// cut, no driver is asked to do it that did not say that it can.
#[test]
fn udp_to_be_cut_is_for_who_takes_it() {
    let server = switch(&["a", "b", "d"]);
    let sends = feature::NET_CSUM | feature::NET_HOST_UFO | feature::NET_HOST_USO;
    let takes = feature::NET_GUEST_CSUM | feature::NET_GUEST_TSO4 | feature::NET_GUEST_TSO6;
    let long = Options { rx_chain: vec![4096], max_frame: 4096, ..options() };
    let mut a = up(&server, "a", FEATURES | sends, long.clone());
    let mut others = [("b", takes), ("d", 0)].map(|(port, f)| up(&server, port, FEATURES | f, long.clone()));
    for is_v6 in [false, true] {
        let bytes = crate::segment(false, is_v6, &crate::payload(3000), Checksum::Partial);
        let hdr_len = bytes.len() as u16 - 3000;
        for gso_type in [VnetHeader::GSO_UDP, VnetHeader::GSO_UDP_L4] {
            let header =
                VnetHeader { gso_type, gso_size: 1000, hdr_len, ..frame::partial_header(&bytes).unwrap() };
            a.send_frame_with_header(&header, &bytes, &Arrangement::whole()).unwrap();
            a.pair(0).wait_sent(SOON).unwrap();
        }
        // Behind them, so that nothing is on its way any more.
        a.send_frame(&numbered(BROADCAST, A, 1)).unwrap();
        for other in &mut others {
            loop {
                let (header, bytes) = other.recv_frame(SOON).unwrap().expect("the frame behind");
                assert_eq!(header.gso_type, VnetHeader::GSO_NONE);
                if number_of(&bytes, A).is_some() {
                    break;
                }
            }
        }
    }
}
