//! Frames from the device.

use proptest::prelude::*;
use ringway_driver::net::{
    Checksum, Dropped, Kind, Offload, Partial, RECEIVE_CHECKSUMS, RECEIVE_SEGMENTS, Segments,
};
use ringway_spec::net::{
    F_CTRL_VQ, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6,
    F_MRG_RXBUF, F_MTU, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_DATA_VALID,
    HDR_F_NEEDS_CSUM, HDR_F_RSC_INFO, Header,
};

use crate::common::RINGS;
use crate::lab::{Bench, Lab, bytes, frame, with_header};

const ALL: u64 = RECEIVE_CHECKSUMS | RECEIVE_SEGMENTS | F_CTRL_VQ;
const TUNNEL_IPV4: u8 = 0x20;
const TUNNEL_IPV6: u8 = 0x40;

fn dropped(lab: &mut Lab) -> Dropped {
    lab.net.pair(0).rx.dropped()
}

/// What the driver makes of a frame of 100 bytes with this header; `None` if it drops it.
fn judge(lab: &mut Lab, header: Header) -> Option<(Checksum, Option<Segments>)> {
    let before = dropped(lab).frames;
    lab.give(Header { num_buffers: 1.into(), ..header }, &frame(100));
    let rx = &mut lab.net.pair(0).rx;
    let received = rx.next().expect("a good device");
    let result = received.map(|received| {
        assert!(bytes(&received.frame) == frame(100));
        rx.recycle(received.frame);
        (received.checksum, received.segments)
    });
    rx.flush();
    assert_eq!(dropped(lab).frames - before, u64::from(result.is_none()));
    result
}

/// Frames come whole, in the order in which they came, however many buffers they are in, and their buffers go back.
#[test]
fn frames_come_whole_and_in_order() {
    for rings in RINGS {
        let bench = Bench::new(rings | F_MRG_RXBUF);
        let mut lab = bench.options(|options| (options.queue_size, options.buffer_len) = (64, 200)).up();
        for round in 0..100 {
            let frames: Vec<_> = [60, 1514, 14, 179, 180, 181, 1000].map(|len| frame(len + round)).into();
            for frame in &frames {
                lab.give_merged(frame);
            }
            assert!(lab.received(0) == frames, "round {round}");
            assert_eq!(lab.buffers(0), 64);
        }
        assert_eq!(dropped(&mut lab), Dropped::default());
    }
}

/// Whoever stops asking in the middle of a burst does not sleep on what the queue has given already; a part of a frame is
/// nothing to wake for.
#[test]
fn a_receiver_does_not_sleep_on_what_it_holds() {
    for rings in RINGS {
        let mut lab = Bench::new(rings | F_MRG_RXBUF).options(|options| options.buffer_len = 200).up();
        for len in [60, 61, 62] {
            lab.give_merged(&frame(len));
        }
        for len in [60, 61, 62] {
            let rx = &mut lab.net.pair(0).rx;
            assert!(rx.has_work() && rx.arm(), "frame {len}");
            let received = rx.next().unwrap().expect("a frame");
            assert_eq!(received.frame.len(), len);
            rx.recycle(received.frame);
        }
        let half = with_header(Header { num_buffers: 2.into(), ..Header::default() }, &frame(300));
        lab.fill(0, &half[..192], &[192]);
        let rx = &mut lab.net.pair(0).rx;
        assert!(rx.arm(), "it has to be looked at");
        assert!(rx.next().unwrap().is_none());
        assert!(!rx.has_work() && !rx.arm());
    }
}

/// The rest of a frame may come later.
#[test]
fn a_frame_is_waited_for_until_it_is_whole() {
    for rings in RINGS {
        let mut lab = Bench::new(rings | F_MRG_RXBUF).options(|options| options.buffer_len = 200).up();
        let frame = frame(300);
        let header = Header { num_buffers: 2.into(), ..Header::default() };
        let bytes = with_header(header, &frame);
        lab.fill(0, &bytes[..192], &[192]);
        assert!(lab.received(0).is_empty());
        assert!(lab.received(0).is_empty());
        lab.fill(0, &bytes[192..], &[bytes.len() - 192]);
        assert!(lab.received(0) == [frame]);
        assert_eq!(dropped(&mut lab), Dropped::default());
    }
}

/// A device need not fill a buffer before it goes on to the next. What is appended to such a frame is behind it all the same.
#[test]
fn buffers_need_not_be_full() {
    let bench = Bench::new(F_MRG_RXBUF | F_MTU).config(|config| config.mtu = 9000.into());
    let mut lab = bench.options(|options| options.buffer_len = 256).up();
    let room = lab.buffer_len();
    let whole = frame(1000);
    let bytes_of = |frame: &[u8]| with_header(Header { num_buffers: 5.into(), ..Header::default() }, frame);
    lab.fill(0, &bytes_of(&whole[..278]), &[100, 0, 40, 150, 0]);
    let mut received = lab.net.pair(0).rx.next().unwrap().expect("a frame").frame;
    assert!(bytes(&received) == whole[..278]);
    assert_eq!(received.capacity(), 278 + (room - 150) + room);
    assert_eq!(received.extend(&whole[278..400]), 122);
    assert!(bytes(&received) == whole[..400]);
    let left = received.capacity() - 400;
    assert_eq!(received.extend(&whole[400..]), left.min(600));
    assert!(bytes(&received) == whole[..received.len()]);
    let sent = received.len();
    let pair = lab.net.pair(0);
    let room =
        pair.tx.exchange(received, &Offload::None).unwrap_or_else(|not_sent| panic!("{}", not_sent.error));
    pair.rx.recycle(room);
    pair.rx.flush();
    pair.tx.flush();
    assert!(lab.sent(0)[0].1 == whole[..sent]);
    assert_eq!(lab.buffers(0), 256);
}

/// Of a burst the device is told once, and not as long as frames are kept.
#[test]
fn buffers_go_back_when_they_are_given_back() {
    for rings in RINGS {
        let mut lab = Bench::new(rings).options(|options| options.queue_size = 8).up();
        let frames: Vec<_> = (0..8).map(|i| frame(60 + i)).collect();
        for frame in &frames {
            lab.give(Header::default(), frame);
        }
        let mut kept = Vec::new();
        while let Some(received) = lab.net.pair(0).rx.next().unwrap() {
            kept.push(received.frame);
        }
        assert_eq!(lab.buffers(0), 0);
        assert!(kept.iter().map(bytes).eq(frames));
        assert!(!lab.net.pair(0).rx.has_work());
        lab.fake.take_log();
        for frame in kept {
            lab.net.pair(0).rx.recycle(frame);
        }
        assert_eq!(lab.buffers(0), 0, "not before the flush");
        lab.net.pair(0).rx.flush();
        assert_eq!(lab.buffers(0), 8);
        assert!(lab.fake.kicks(0) <= 1);
    }
}

/// Who sleeps is woken by what comes, and does not sleep if it came before.
#[test]
fn arming_tells_what_came_before() {
    for rings in RINGS {
        let mut lab = Lab::new(rings);
        let call = |lab: &mut Lab| {
            let mut burst = ringway_queue::Burst::default();
            let queue = lab.queue(0);
            let chain = queue.next(&mut burst).unwrap().unwrap();
            let written = chain.writable().write(&with_header(Header::default(), &frame(60)));
            queue.complete(chain, written as u32);
            queue.publish()
        };
        // The first may be told, as nothing was asked for yet.
        let _ = call(&mut lab);
        assert!(!call(&mut lab), "polled at first");
        assert!(lab.net.pair(0).rx.arm());
        assert_eq!(lab.received(0).len(), 2);
        assert!(!lab.net.pair(0).rx.arm());
        assert!(call(&mut lab));
        lab.net.pair(0).rx.suppress();
        assert_eq!(lab.received(0).len(), 1);
        assert!(!call(&mut lab));
    }
}

/// A frame is sent from where it came to, and what was sent is received into.
#[test]
fn frames_are_passed_on_without_a_copy() {
    for rings in RINGS {
        let bench = Bench::new(rings | F_MRG_RXBUF);
        let mut lab = bench.options(|options| (options.queue_size, options.buffer_len) = (16, 300)).up();
        for round in 0..100 {
            let frames: Vec<_> = [60, 1514, 300].map(|len| frame(len - round % 40)).into();
            for frame in &frames {
                lab.give_merged(frame);
            }
            let pair = lab.net.pair(0);
            while let Some(received) = pair.rx.next().unwrap() {
                let address = received.frame.pieces().next().unwrap().as_ptr();
                let room = pair.tx.exchange(received.frame, &Offload::None);
                let room = room.unwrap_or_else(|not_sent| panic!("{}", not_sent.error));
                assert_ne!(room.pieces().next().map(|piece| piece.as_ptr()), Some(address));
                pair.rx.recycle(room);
            }
            pair.rx.flush();
            pair.tx.flush();
            let sent = lab.sent(0);
            assert!(sent.iter().map(|(_, frame)| frame).eq(&frames));
            assert!(sent.iter().all(|(header, _)| *header == Header::default()), "not the one that came");
            assert_eq!(lab.buffers(0), 16, "round {round}");
        }
    }
}

/// [DRV-NET-processing-of-incoming-packets-01] [DRV-NET-processing-of-incoming-packets-04]
/// [DRV-NET-processing-of-incoming-packets-07] Of the flags only those count that are known and were negotiated: a checksum is
/// right if the device says so, has a place if it is partial, and else nothing is known of it.
#[test]
fn flags_say_what_is_known_of_the_checksum() {
    let sum = |flags| Header { flags, csum_start: 34.into(), csum_offset: 16.into(), ..Header::default() };
    let partial = Checksum::Partial(Partial { start: 34, offset: 16 });
    let unknown = !(HDR_F_NEEDS_CSUM | HDR_F_DATA_VALID | HDR_F_RSC_INFO);
    let mut able = Lab::new(F_GUEST_CSUM);
    let mut unable = Lab::new(0);
    for others in [0, unknown] {
        for (flags, expected) in [
            (0, Checksum::Unknown),
            (HDR_F_DATA_VALID, Checksum::Valid),
            (HDR_F_NEEDS_CSUM, partial),
            (HDR_F_NEEDS_CSUM | HDR_F_DATA_VALID, partial),
            (HDR_F_RSC_INFO, Checksum::Unknown),
            (HDR_F_RSC_INFO | HDR_F_NEEDS_CSUM, Checksum::Unknown),
            (HDR_F_RSC_INFO | HDR_F_DATA_VALID, Checksum::Valid),
        ] {
            assert_eq!(judge(&mut able, sum(flags | others)), Some((expected, None)), "{flags:#x}");
            let expected = (flags & HDR_F_NEEDS_CSUM == 0).then_some((Checksum::Unknown, None));
            assert_eq!(judge(&mut unable, sum(flags | others)), expected, "{flags:#x}");
        }
    }
}

/// A checksum outside of its frame costs the frame.
#[test]
fn a_checksum_is_inside_of_its_frame() {
    let mut lab = Lab::new(F_GUEST_CSUM);
    for (start, offset, is_inside) in [
        (0, 0, true),
        (98, 0, true),
        (82, 16, true),
        (99, 0, false),
        (83, 16, false),
        (u16::MAX, u16::MAX, false),
    ] {
        let header = Header {
            flags: HDR_F_NEEDS_CSUM,
            csum_start: start.into(),
            csum_offset: offset.into(),
            ..Header::default()
        };
        assert_eq!(judge(&mut lab, header).is_some(), is_inside, "{start} {offset}");
    }
}

/// [DRV-NET-processing-of-incoming-packets-08] [DRV-NET-processing-of-incoming-packets-10] Types that were not negotiated cost
/// the frame; those of tunnels never are.
#[test]
fn segments_are_of_what_was_negotiated() {
    let types = [
        (GSO_TCPV4, F_GUEST_TSO4, Kind::TcpV4),
        (GSO_TCPV6, F_GUEST_TSO6, Kind::TcpV6),
        (GSO_UDP_L4, F_GUEST_USO4, Kind::Udp),
        (GSO_UDP_L4, F_GUEST_USO6, Kind::Udp),
    ];
    let header = |gso_type| Header { gso_type, gso_size: 50.into(), ..Header::default() };
    for set in 0..32 {
        let chosen =
            types.iter().enumerate().filter(|(i, _)| set >> i & 1 != 0).map(|(_, (_, feature, _))| feature);
        let ecn = if set & 16 != 0 { F_GUEST_ECN } else { 0 };
        let mut lab = Lab::new(F_GUEST_CSUM | ecn | chosen.fold(0, |all, feature| all | feature));
        let features = lab.net.features();
        for gso_type in (0..=u8::MAX).filter(|gso_type| *gso_type != GSO_NONE) {
            let known =
                types.iter().find(|(t, feature, _)| *t == gso_type & !GSO_ECN && features & feature != 0);
            let ecn = gso_type & GSO_ECN != 0;
            let expected =
                known.filter(|(_, _, kind)| !ecn || features & F_GUEST_ECN != 0 && *kind != Kind::Udp);
            let expected = expected.map(|(_, _, kind)| Some(Segments { kind: *kind, ecn, size: 50 }));
            let found = judge(&mut lab, header(gso_type)).map(|(_, segments)| segments);
            assert_eq!(found, expected, "{features:#x} {gso_type:#x}");
        }
    }
    let mut lab = Lab::new(ALL);
    assert_eq!(
        judge(&mut lab, Header { gso_size: 0.into(), ..header(GSO_TCPV4) }),
        None,
        "segments of nothing"
    );
    for gso_type in [GSO_UDP, TUNNEL_IPV4 | TUNNEL_IPV6 | GSO_TCPV4, TUNNEL_IPV4 | GSO_TCPV4, TUNNEL_IPV6] {
        for flags in [0, HDR_F_NEEDS_CSUM, HDR_F_DATA_VALID] {
            assert_eq!(judge(&mut lab, Header { flags, ..header(gso_type) }), None, "{gso_type:#x}");
        }
    }
}

/// [DRV-NET-processing-of-incoming-packets-05] [DRV-NET-processing-of-incoming-packets-06] Whatever the headers' length is said
/// to be, nothing follows from it.
#[test]
fn the_headers_length_is_not_relied_on() {
    let mut lab = Lab::new(ALL);
    let header = Header { gso_type: GSO_TCPV4, gso_size: 50.into(), ..Header::default() };
    let expected = judge(&mut lab, header);
    assert!(expected.is_some());
    for hdr_len in [1, 54, 100, 101, u16::MAX] {
        assert_eq!(judge(&mut lab, Header { hdr_len: hdr_len.into(), ..header }), expected);
    }
}

proptest! {
    /// Whatever a header says, the frame is handed out as it came or dropped, and the driver goes on.
    #[test]
    fn any_header(header in any::<[u8; 12]>(), len in 0..200_usize, features in any::<u64>(), merged in any::<bool>()) {
        let features = features & ALL | if merged { F_MRG_RXBUF } else { 0 };
        let mut lab = Bench::new(features).options(|options| options.queue_size = 16).up();
        let header: Header = zerocopy::transmute!(header);
        let payload: Vec<_> = (0..len).map(|i| i as u8).collect();
        lab.give(header, &payload);
        let count = if merged { usize::from(header.num_buffers.get()) } else { 1 };
        let rx = &mut lab.net.pair(0).rx;
        let received = rx.next().unwrap();
        if let Some(received) = received {
            prop_assert_eq!(bytes(&received.frame), payload);
            if let Checksum::Partial(partial) = received.checksum {
                prop_assert!(usize::from(partial.start) + usize::from(partial.offset) + 2 <= len);
            }
            prop_assert_eq!(count, 1);
            rx.recycle(received.frame);
        } else if (2..=16).contains(&count) {
            prop_assert_eq!(rx.dropped(), Dropped::default());
            // The rest comes.
            for _ in 1..count {
                lab.fill(0, &[], &[0]);
            }
            let rx = &mut lab.net.pair(0).rx;
            if let Some(received) = rx.next().unwrap() {
                prop_assert_eq!(bytes(&received.frame), payload);
                rx.recycle(received.frame);
            } else {
                prop_assert_eq!(rx.dropped().frames, 1);
            }
        } else {
            prop_assert_eq!(rx.dropped().frames + rx.dropped().buffers, 1);
        }
        lab.net.pair(0).rx.flush();
        prop_assert_eq!(lab.buffers(0), 16);
        lab.give(Header { num_buffers: 1.into(), ..Header::default() }, &frame(60));
        prop_assert!(lab.received(0) == [frame(60)]);
    }
}
