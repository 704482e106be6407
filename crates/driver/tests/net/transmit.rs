//! Frames to the device, and their headers.

use ringway_driver::net::{Kind, Offload, Partial, SEND_SEGMENTS, Segments, SendError, Unsendable};
use ringway_queue::DriverError;
use ringway_spec::feature::RING_PACKED;
use ringway_spec::net::{
    F_CSUM, F_GUEST_HDRLEN, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6, F_HOST_UFO, F_HOST_USO, F_MRG_RXBUF, F_MTU,
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HDR_F_NEEDS_CSUM, Header,
};

use crate::common::RINGS;
use crate::lab::{Bench, ETH, Lab, frame};

const TCP: Partial = Partial { start: 34, offset: 16 };
const SUM: Offload = Offload::Checksum(TCP);

fn segments(kind: Kind, ecn: bool) -> Offload {
    Offload::Segment { segments: Segments { kind, ecn, size: 1448 }, header_len: 66, checksum: TCP }
}

/// What a device is asked at all.
fn offloads() -> Vec<Offload> {
    let kinds = [Kind::TcpV4, Kind::TcpV6, Kind::Udp];
    let segments = kinds.into_iter().flat_map(|kind| [false, true].map(|ecn| segments(kind, ecn)));
    [Offload::None, SUM].into_iter().chain(segments).collect()
}

/// Sends a frame, and returns the header.
fn send(lab: &mut Lab, frame: &[u8], offload: &Offload) -> Result<Header, SendError> {
    lab.net.pair(0).tx.send(frame, offload)?;
    lab.net.pair(0).tx.flush();
    let sent = lab.sent(0);
    assert_eq!(sent.len(), 1);
    assert!(sent[0].1 == frame, "what was sent is what came");
    Ok(sent[0].0)
}

/// [DRV-NET-packet-transmission-01] [DRV-NET-packet-transmission-02] [DRV-NET-packet-transmission-03] A plain frame has a
/// header of zeros, as long as on the receive side, and no flag; an offload is an error if the device does none.
#[test]
fn a_plain_frame_has_a_header_of_zeros() {
    for rings in RINGS {
        for features in [0, F_MRG_RXBUF, F_CSUM] {
            let mut lab = Lab::new(rings | features);
            assert_eq!(send(&mut lab, &frame(60), &Offload::None), Ok(Header::default()));
        }
        let mut lab = Lab::new(rings);
        let refused = SendError::Unsendable(Unsendable::NotNegotiated(F_CSUM));
        assert_eq!(send(&mut lab, &frame(60), &SUM), Err(refused));
    }
}

/// [DRV-NET-packet-transmission-17] The place of a checksum is where the caller says, inside of the frame, and nowhere else.
#[test]
fn a_checksum_is_inside_of_its_frame() {
    let mut lab = Lab::new(F_CSUM);
    let header = send(&mut lab, &frame(60), &SUM).unwrap();
    let expected = Header {
        flags: HDR_F_NEEDS_CSUM,
        csum_start: 34.into(),
        csum_offset: 16.into(),
        ..Header::default()
    };
    assert_eq!(header, expected);
    assert!(send(&mut lab, &frame(52), &SUM).is_ok(), "the last two bytes");
    for checksum in [TCP, Partial { start: u16::MAX, offset: u16::MAX }, Partial { start: 50, offset: 0 }] {
        let refused = Err(Unsendable::BadChecksum(checksum).into());
        assert_eq!(send(&mut lab, &frame(51), &Offload::Checksum(checksum)), refused);
    }
}

/// [DRV-NET-packet-transmission-05] [DRV-NET-packet-transmission-06] [DRV-NET-packet-transmission-07]
/// [DRV-NET-packet-transmission-08] [DRV-NET-packet-transmission-09] [DRV-NET-packet-transmission-10]
/// [DRV-NET-packet-transmission-13] [DRV-NET-packet-transmission-14] [DRV-NET-packet-transmission-15]
/// [DRV-NET-packet-transmission-16] [DRV-NET-packet-transmission-20] [DRV-NET-packet-transmission-21]
/// [DRV-NET-packet-transmission-28] [DRV-NET-packet-transmission-29] [DRV-NET-packet-transmission-31]
/// [DRV-NET-packet-transmission-32] Whatever a device offers and whatever is asked for, a header says only what was negotiated
/// for it, and all that belongs to it; no flag and no type but these is ever set.
#[test]
fn headers_say_only_what_was_negotiated() {
    let hosts = [F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO, F_HOST_ECN, F_HOST_UFO, F_GUEST_HDRLEN];
    // Tunnels and all that is not known are offered too.
    let others = !(SEND_SEGMENTS | F_HOST_UFO | F_CSUM | F_MTU | RING_PACKED);
    for set in 0..1 << hosts.len() {
        let hosts = hosts.iter().enumerate().filter(|(i, _)| set >> i & 1 != 0).map(|(_, feature)| feature);
        let mut lab = Lab::new(others | F_CSUM | hosts.fold(0, |all, feature| all | feature));
        let has = |feature| lab.net.features() & feature == feature;
        let host = [(Kind::TcpV4, F_HOST_TSO4), (Kind::TcpV6, F_HOST_TSO6), (Kind::Udp, F_HOST_USO)];
        let able: Vec<_> = host.into_iter().filter(|(_, f)| has(*f)).map(|(kind, _)| kind).collect();
        let ecn_able = has(F_HOST_ECN);
        for offload in offloads() {
            let result = send(&mut lab, &frame(1400), &offload);
            let Offload::Segment { segments, .. } = offload else {
                let header = result.unwrap();
                assert_eq!((header.gso_type, header.gso_size.get()), (GSO_NONE, 0));
                assert_eq!(header.flags, if offload == SUM { HDR_F_NEEDS_CSUM } else { 0 });
                // As long as any header of the frame, where that is of interest.
                let hint = if able.is_empty() { 0 } else { 1400 };
                assert_eq!(header.hdr_len.get(), hint);
                continue;
            };
            let is_able =
                able.contains(&segments.kind) && (!segments.ecn || ecn_able && segments.kind != Kind::Udp);
            assert_eq!(result.is_ok(), is_able, "{segments:?}");
            let Ok(header) = result else { continue };
            let gso_type = match segments.kind {
                Kind::TcpV4 => GSO_TCPV4,
                Kind::TcpV6 => GSO_TCPV6,
                Kind::Udp => GSO_UDP_L4,
            };
            let expected = Header {
                flags: HDR_F_NEEDS_CSUM,
                gso_type: gso_type | if segments.ecn { GSO_ECN } else { 0 },
                hdr_len: 66.into(),
                gso_size: 1448.into(),
                csum_start: 34.into(),
                csum_offset: 16.into(),
                num_buffers: 0.into(),
            };
            assert_eq!(header, expected);
        }
    }
}

/// [DRV-NET-packet-transmission-22] [DRV-NET-packet-transmission-23] The headers' length is exact where there are segments, and
/// no less than it where there are none.
#[test]
fn the_headers_length_is_exact_of_segments() {
    let mut lab = Lab::new(F_CSUM | F_HOST_TSO4 | F_GUEST_HDRLEN);
    assert_ne!(lab.net.features() & F_GUEST_HDRLEN, 0);
    let mut cut = |header_len, size, len| {
        let segments = Segments { kind: Kind::TcpV4, ecn: false, size };
        let offload = Offload::Segment { segments, header_len, checksum: TCP };
        send(&mut lab, &frame(len), &offload).map(|header| header.hdr_len.get())
    };
    for header_len in [54, 66, 74, 1000] {
        assert_eq!(cut(header_len, 1448, 1000), Ok(header_len));
    }
    let segments = |size| Segments { kind: Kind::TcpV4, ecn: false, size };
    assert_eq!(cut(1001, 1448, 1000), Err(Unsendable::BadSegments(segments(1448)).into()));
    assert_eq!(cut(54, 0, 1000), Err(Unsendable::BadSegments(segments(0)).into()));
    assert_eq!(cut(51, 1448, 1000), Err(Unsendable::BadChecksum(TCP).into()), "not of the headers");
    for len in [14, 60, 1514] {
        assert_eq!(send(&mut lab, &frame(len), &Offload::None).unwrap().hdr_len.get(), len as u16);
    }
}

/// [DRV-NET-cfg-08] What is longer than the MTU is not sent, unless it is to be cut; a tag is not counted, nor is the header.
#[test]
fn what_is_longer_than_the_mtu_is_not_sent() {
    for (features, mtu) in [(F_MTU, 68), (F_MTU, 9000), (F_MTU, 65535), (0, 1500)] {
        let bench = Bench::new(features | F_CSUM | F_HOST_TSO4).config(|config| config.mtu = mtu.into());
        let mut lab = bench.up();
        let max = usize::from(mtu) + ETH;
        for offload in [Offload::None, SUM] {
            assert!(send(&mut lab, &frame(max), &offload).is_ok());
            let long = |len| Err(Unsendable::Long { len, max }.into());
            assert_eq!(send(&mut lab, &frame(max + 1), &offload), long(max + 1));
            let mut tagged = frame(max + 4);
            tagged[12..14].copy_from_slice(&[0x81, 0]);
            assert!(send(&mut lab, &tagged, &offload).is_ok());
            tagged.push(0);
            assert_eq!(send(&mut lab, &tagged, &offload), long(max + 5));
        }
        assert!(send(&mut lab, &frame(65535 + ETH), &segments(Kind::TcpV4, false)).is_ok());
    }
}

/// A frame of no Ethernet header, or longer than any, is none.
#[test]
fn impossible_frames_are_not_sent() {
    let mut lab = Lab::new(F_CSUM | F_HOST_TSO4);
    for len in [0, 1, 13] {
        assert_eq!(
            lab.net.pair(0).tx.send(&[0; 13][..len], &Offload::None),
            Err(Unsendable::Short(len).into())
        );
    }
    let long = vec![0; 65535 + ETH + 5];
    let refused = lab.net.pair(0).tx.send(&long, &segments(Kind::TcpV4, false));
    assert!(matches!(refused, Err(SendError::Unsendable(Unsendable::Long { .. }))));
    let huge = vec![0; 1 << 20];
    let refused = lab.net.pair(0).tx.send(&huge, &segments(Kind::TcpV4, false));
    assert!(matches!(refused, Err(SendError::Unsendable(Unsendable::Long { .. }))));
    lab.net.pair(0).tx.flush();
    assert!(lab.sent(0).is_empty());
    // Nothing was lost by that.
    for _ in 0..256 {
        assert_eq!(lab.net.pair(0).tx.send(&frame(60), &Offload::None), Ok(()));
    }
}

/// A burst is shown at once, with one kick; a full queue says so, and goes on when the device has sent something.
#[test]
fn a_burst_costs_one_kick() {
    for rings in RINGS {
        let mut lab = Lab::new(rings);
        lab.fake.take_log();
        let frames: Vec<_> = (0..256).map(|i| frame(60 + i)).collect();
        for frame in &frames {
            assert_eq!(lab.net.pair(0).tx.send(frame, &Offload::None), Ok(()));
        }
        assert_eq!(lab.net.pair(0).tx.send(&frames[0], &Offload::None), Err(SendError::Full));
        assert!(lab.sent(0).is_empty(), "not before the flush");
        lab.net.pair(0).tx.flush();
        assert_eq!(lab.fake.kicks(1), 1);
        assert!(lab.sent(0).iter().map(|(_, frame)| frame).eq(&frames));
        assert!(lab.net.pair(0).tx.has_work());
        for _ in 0..1000 {
            assert!(send(&mut lab, &frames[7], &Offload::None).is_ok());
        }
        assert!(lab.net.pair(0).tx.arm(), "the last was sent before");
    }
}

/// What the device has sent is taken back when no buffer is left, all at once, and not looked for before: the ring is the
/// device's to write to.
#[test]
fn buffers_are_taken_back_when_none_is_left() {
    let mut lab = Bench::new(0).options(|options| options.queue_size = 4).up();
    for round in 0..10 {
        let mut addresses = std::collections::BTreeSet::new();
        for _ in 0..4 {
            let mut frame = lab.net.pair(0).tx.frame(60).unwrap();
            frame.extend(&[0; 60]);
            addresses.insert(frame.pieces().next().unwrap().as_ptr());
            lab.net.pair(0).tx.submit(frame, &Offload::None).unwrap_or_else(|_| panic!("room"));
            lab.net.pair(0).tx.flush();
            assert_eq!(lab.sent(0).len(), 1);
        }
        assert_eq!(addresses.len(), 4, "round {round}");
        assert!(lab.net.pair(0).tx.has_work());
    }
}

/// A frame is put together where the device finds it, over as many buffers as it needs.
#[test]
fn frames_are_built_in_place() {
    for rings in RINGS {
        let mut lab = Lab::new(rings | F_CSUM | F_HOST_TSO4);
        let whole = frame(40_000);
        for step in [1, 13, 1588, 1600, 40_000] {
            let tx = &mut lab.net.pair(0).tx;
            let mut frame = tx.frame(whole.len()).unwrap();
            assert!(frame.is_empty() && frame.capacity() >= whole.len());
            for part in whole.chunks(step) {
                assert_eq!(frame.extend(part), part.len());
            }
            assert_eq!(frame.write(5000, b"here"), 4);
            assert_eq!(frame.write(39_998, b"here"), 2, "it does not grow");
            let mut part = [0; 6];
            assert_eq!(frame.read(4999, &mut part), 6);
            assert_eq!(&part[1..5], b"here");
            let result = tx.submit(frame, &segments(Kind::TcpV4, false));
            assert!(result.is_ok());
            tx.flush();
            let (_, sent) = lab.sent(0).remove(0);
            assert_eq!((&sent[5000..5004], &sent[39_998..]), (&b"here"[..], &b"he"[..]));
            assert!(sent[5004..39_998] == whole[5004..39_998] && sent[..5000] == whole[..5000]);
        }
    }
}

/// What does not fit in the ring is given back whole.
#[test]
fn a_frame_of_too_many_buffers_is_given_back() {
    let bench = Bench::new(F_CSUM | F_HOST_TSO4 | F_MRG_RXBUF);
    let mut lab = bench.options(|options| options.queue_size = 8).up();
    let refused = lab.net.pair(0).tx.send(&frame(60_000), &segments(Kind::TcpV4, false));
    assert!(refused.is_err());
    for _ in 0..8 {
        assert_eq!(lab.net.pair(0).tx.send(&frame(60), &Offload::None), Ok(()));
    }
}

/// A device that breaks the transmit queue is found out, and stays so.
#[test]
fn a_broken_transmit_queue_is_told() {
    let mut lab = Bench::new(0).options(|options| options.queue_size = 4).up();
    for _ in 0..4 {
        assert!(lab.net.pair(0).tx.send(&frame(60), &Offload::None).is_ok());
    }
    lab.net.pair(0).tx.flush();
    lab.break_queue(1, 77);
    for _ in 0..2 {
        let error = lab.net.pair(0).tx.send(&frame(60), &Offload::None);
        let expected = DriverError::IndexJump { idx: 77, next: 0, in_flight: 4 };
        assert_eq!(error, Err(SendError::Device(expected)));
    }
}
