use ringway_spec::net::{
    CTRL_ERR, CTRL_OK, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_NEEDS_CSUM, Header,
};

use super::*;

pub(super) const SETTINGS: Settings = Settings {
    mac: None,
    mtu: None,
    max_pairs: 8,
    segmentation: true,
    iommu: false,
    speed: None,
    rss: false,
    filters: false,
};

fn device(acked: u64) -> NetDevice {
    let mut device = NetDevice::new(Settings { mtu: Some(1500), ..SETTINGS }).unwrap();
    device.negotiation_mut().ack(acked).unwrap();
    device
}

/// [DEV-NET-cfg-01] [DEV-NET-cfg-02] `max_virtqueue_pairs` and `mtu` are in range, or there is no device.
#[test]
fn settings_out_of_range_make_no_device() {
    for mtu in [0, 67] {
        assert_eq!(
            NetDevice::new(Settings { mtu: Some(mtu), ..SETTINGS }).unwrap_err(),
            SettingsError::Mtu(mtu)
        );
    }
    for pairs in [0, 0x8001] {
        let settings = Settings { max_pairs: pairs, ..SETTINGS };
        assert_eq!(NetDevice::new(settings).unwrap_err(), SettingsError::Pairs(pairs));
    }
    let settings = Settings { mac: Some([0xff; 6]), ..SETTINGS };
    assert_eq!(NetDevice::new(settings).unwrap_err(), SettingsError::MulticastMac);
}

/// [DEV-CORE-features-01] [DEV-CORE-reserved-feature-bits-01] [DEV-CORE-reserved-feature-bits-09]
/// No feature is offered without what it requires; `VERSION_1` always, `SR_IOV` (bit 37) never.
#[test]
fn offers_are_complete() {
    for pairs in [1, 8] {
        for segmentation in [false, true] {
            let device = NetDevice::new(Settings { max_pairs: pairs, segmentation, ..SETTINGS }).unwrap();
            let offered = device.negotiation().offered();
            for (feature, requires) in REQUIRES.iter().chain(&[(F_MQ, F_CTRL_VQ)]) {
                assert!(offered & feature == 0 || offered & requires != 0);
            }
            assert_ne!(offered & feature::VERSION_1, 0);
            assert_eq!(offered & (1 << 37), 0);
            assert_eq!(offered & F_HOST_TSO4 != 0, segmentation);
            let rings = feature::RING_PACKED | feature::IN_ORDER;
            assert_eq!(offered & rings, rings, "of every device, whatever its settings");
        }
    }
}

/// [DEV-CORE-features-02] The format of rings, the order in which they are used and how they are notified are
/// for the driver to choose, one without the other.
#[test]
fn the_driver_chooses_its_rings() {
    let (packed, in_order) = (feature::RING_PACKED, feature::IN_ORDER);
    for rings in [0, packed, in_order, packed | in_order] {
        for events in [0, feature::RING_EVENT_IDX, feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC] {
            for buffers in [0, F_MRG_RXBUF] {
                let acked = feature::VERSION_1 | rings | events | buffers;
                assert_eq!(device(acked).negotiation().acked(), acked, "{acked:#x}");
                assert_eq!(header_len(acked), 12);
            }
        }
    }
}

/// [DEV-CORE-device-configuration-space-01] The configuration reads the same before and after negotiation, at
/// any offset and length.
#[test]
fn config_is_readable_from_the_start() {
    let settings = Settings { mac: Some([2, 1, 2, 3, 4, 5]), mtu: Some(9000), ..SETTINGS };
    let device = NetDevice::new(settings).unwrap();
    let whole = [2, 1, 2, 3, 4, 5, 1, 0, 8, 0, 0x28, 0x23, 0, 0, 0, 0];
    for offset in 0..whole.len() {
        let mut bytes = [0xaa; 4];
        device.read_config(offset, &mut bytes);
        let mut wanted = [0; 4];
        for (i, byte) in wanted.iter_mut().enumerate() {
            *byte = whole.get(offset + i).copied().unwrap_or(0);
        }
        assert_eq!(bytes, wanted, "at {offset}");
    }
    let mut bytes = [1; 3];
    device.read_config(usize::MAX, &mut bytes);
    assert_eq!(bytes, [0; 3]);
}

/// The control queue is the last, wherever the negotiation puts it.
#[test]
fn roles_follow_the_negotiation() {
    let with_mq = device(F_MQ | F_CTRL_VQ);
    assert_eq!(with_mq.role(0), Some(Role::Receive(0)));
    assert_eq!(with_mq.role(1), Some(Role::Transmit(0)));
    assert_eq!(with_mq.role(2), Some(Role::Receive(1)));
    assert_eq!(with_mq.role(16), Some(Role::Control));
    assert_eq!(with_mq.role(17), None);
    assert_eq!(device(F_CTRL_VQ).role(2), Some(Role::Control));
    assert_eq!(device(F_MQ).role(2), Some(Role::Receive(1)));
    assert_eq!(device(F_MQ).role(16), None);
}

/// [DEV-NET-automatic-receive-steering-in-multiqueue-mode-01] One pair after reset, then what the driver says,
/// within the offer.
#[test]
fn the_pairs_command_is_checked() {
    let mut device = device(F_MQ | F_CTRL_VQ);
    assert_eq!(device.active_pairs(), 1);
    assert_eq!(device.control(&[4, 0, 8, 0]), CTRL_OK);
    assert_eq!(device.active_pairs(), 8);
    for wrong in
        [&[4, 0, 0, 0][..], &[4, 0, 9, 0], &[4, 0, 1], &[4, 0, 1, 0, 0], &[4, 1, 1, 0], &[0, 0, 1], &[]]
    {
        assert_eq!(device.control(wrong), CTRL_ERR, "{wrong:?}");
        assert_eq!(device.active_pairs(), 8);
    }
    device.reset();
    device.negotiation_mut().ack(F_MQ | F_CTRL_VQ).unwrap();
    assert_eq!(device.active_pairs(), 1);
    device.reset();
    device.negotiation_mut().ack(F_MQ).unwrap();
    assert_eq!(device.active_pairs(), 8, "without a control queue the transport decides");
}

/// What needs a checksum offload, or TCP of either IP, has no effect without it, and costs nobody the session.
#[test]
fn features_need_others() {
    let effect = |features| device(features).offloads().acked();
    for feature in [F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_UFO, F_GUEST_USO4, F_GUEST_USO6] {
        assert_eq!(effect(feature | F_CSUM), F_CSUM, "{feature:#x}");
        assert_eq!(effect(feature | F_GUEST_CSUM), feature | F_GUEST_CSUM);
    }
    for feature in [F_HOST_TSO4, F_HOST_TSO6, F_HOST_UFO, F_HOST_USO] {
        assert_eq!(effect(feature | F_GUEST_CSUM), F_GUEST_CSUM, "{feature:#x}");
        assert_eq!(effect(feature | F_CSUM), feature | F_CSUM);
    }
    for (ecn, csum, tcp, udp) in [
        (F_GUEST_ECN, F_GUEST_CSUM, [F_GUEST_TSO4, F_GUEST_TSO6], F_GUEST_UFO),
        (F_HOST_ECN, F_CSUM, [F_HOST_TSO4, F_HOST_TSO6], F_HOST_USO),
    ] {
        for tcp in tcp {
            assert_eq!(effect(ecn | csum | tcp), ecn | csum | tcp);
            assert_eq!(effect(ecn | tcp), 0, "one needs the other, which needs a third");
        }
        assert_eq!(effect(ecn | csum | udp), csum | udp);
    }
}

fn partial(start: u16, offset: u16) -> Header {
    Header {
        flags: HDR_F_NEEDS_CSUM,
        csum_start: start.into(),
        csum_offset: offset.into(),
        ..Header::default()
    }
}

/// [DEV-NET-packet-transmission-01] [DEV-NET-packet-transmission-02] Unknown flags are ignored, and positions
/// without `NEEDS_CSUM` are not looked at.
#[test]
fn a_header_without_needs_csum_says_nothing() {
    let sent =
        Header { flags: 0xfe, csum_start: 60000.into(), csum_offset: 60000.into(), ..Header::default() };
    assert_eq!(device(F_CSUM).offloads().check_sent(sent, 60), Ok(Header::default()));
}

/// A lie about the checksum's place costs the frame.
#[test]
fn a_checksum_outside_of_the_frame_is_malformed() {
    let offloads = device(F_CSUM).offloads();
    assert_eq!(offloads.check_sent(partial(34, 16), 52), Ok(partial(34, 16)));
    for (start, offset) in [(34, 17), (65535, 65535), (0, 51), (52, 0)] {
        assert_eq!(offloads.check_sent(partial(start, offset), 52), Err(HeaderError::Malformed));
    }
    let without = device(0).offloads();
    assert_eq!(
        without.check_sent(partial(65535, 65535), 52),
        Ok(Header::default()),
        "not negotiated, not used"
    );
}

/// Each type of frame to be segmented, with the features by which it is sent and by which it is received.
const TYPES: [(u8, u64, u64); 6] = [
    (GSO_TCPV4, F_HOST_TSO4, F_GUEST_TSO4),
    (GSO_TCPV6, F_HOST_TSO6, F_GUEST_TSO6),
    (GSO_TCPV4 | GSO_ECN, F_HOST_TSO4 | F_HOST_ECN, F_GUEST_TSO4 | F_GUEST_ECN),
    (GSO_TCPV6 | GSO_ECN, F_HOST_TSO6 | F_HOST_ECN, F_GUEST_TSO6 | F_GUEST_ECN),
    (GSO_UDP, F_HOST_UFO, F_GUEST_UFO),
    (GSO_UDP_L4, F_HOST_USO, F_GUEST_USO4 | F_GUEST_USO6),
];
const HOST: u64 = F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | F_HOST_UFO | F_HOST_USO;
const GUEST: u64 = F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_UFO | F_GUEST_USO4 | F_GUEST_USO6;

fn gso(gso_type: u8) -> Header {
    Header { gso_type, gso_size: 1448.into(), hdr_len: 54.into(), ..partial(34, 16) }
}

/// [DEV-NET-packet-transmission-08] [DEV-NET-packet-transmission-10] A type that was not negotiated, is unknown (a
/// tunnel's too), or comes without its checksum or its size is malformed.
#[test]
fn segmentation_is_checked() {
    let ok = |acked, header: Header| Offloads::new(acked, None).check_sent(header, 3000).is_ok();
    for (gso_type, needed, _) in TYPES {
        let sent = gso(gso_type);
        let acked = F_CSUM | needed;
        assert_eq!(Offloads::new(acked, None).check_sent(sent, 3000), Ok(sent));
        assert!(!ok(F_CSUM | HOST & !needed, sent), "{gso_type}");
        assert!(!ok(needed, sent), "without CSUM the checksum is nothing to be completed");
        assert!(!ok(acked, Header { flags: 0, ..sent }));
        assert!(!ok(acked, Header { gso_size: 0.into(), ..sent }));
        assert!(!ok(acked, Header { csum_start: 2983.into(), ..sent }));
    }
    let known = TYPES.map(|(gso_type, ..)| gso_type);
    for unknown in (1..=u8::MAX).filter(|t| !known.contains(t)) {
        assert!(!ok(F_CSUM | HOST, gso(unknown)), "{unknown}");
    }
}

/// [DEV-NET-packet-transmission-10] [DEV-NET-processing-of-incoming-packets-10]
/// [DEV-NET-processing-of-incoming-packets-18] [DEV-NET-processing-of-incoming-packets-19] Offloads of tunnels are not
/// offered: no frame that needs one is taken, so that none is given.
#[test]
fn tunnels_are_not_accepted() {
    let all = NetDevice::new(SETTINGS).unwrap().negotiation().offered() & !F_MTU;
    let offloads = device(all).offloads();
    for tunnel in [0x20, 0x40, 0x60] {
        for flags in 0..=u8::MAX {
            for inner in [GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_TCPV4 | GSO_ECN] {
                let gso_type = tunnel | inner;
                let header = Header { flags, gso_type, gso_size: 1448.into(), ..partial(34, 16) };
                assert_eq!(offloads.check_sent(header, 3000), Err(HeaderError::Malformed), "{header:?}");
            }
        }
    }
}

/// [DEV-NET-processing-of-incoming-packets-11] [DEV-NET-processing-of-incoming-packets-23]
/// [DEV-NET-processing-of-incoming-packets-30] [DEV-NET-processing-of-incoming-packets-33] Whatever a sender says, no
/// receiver is told of tunnels, coalesced segments or security.
#[test]
fn flags_that_mean_nothing_are_not_passed_on() {
    let all = NetDevice::new(SETTINGS).unwrap().negotiation().offered() & !F_MTU;
    let offloads = device(all).offloads();
    for flags in 0..=u8::MAX {
        let sent = offloads.check_sent(Header { flags, ..partial(34, 16) }, 100).unwrap();
        let got = offloads.receive(sent, 100).unwrap().header;
        assert_eq!(got.flags, flags & HDR_F_NEEDS_CSUM);
    }
}

/// [DEV-NET-processing-of-incoming-packets-05] [DEV-NET-processing-of-incoming-packets-01]
/// [DEV-NET-processing-of-incoming-packets-16] [DEV-NET-processing-of-incoming-packets-17]
/// A partial checksum goes on to who can complete it, and is completed for who cannot.
#[test]
fn checksums_are_passed_on_or_completed() {
    let sent = partial(34, 16);
    let passed = device(F_GUEST_CSUM).offloads().receive(sent, 100).unwrap();
    assert_eq!(passed, Receive { header: Header { num_buffers: 1.into(), ..sent }, work: Work::Nothing });
    let completed = device(0).offloads().receive(sent, 100).unwrap();
    assert_eq!(completed.header, Header { num_buffers: 1.into(), ..Header::default() });
    assert_eq!(completed.work, Work::Complete(Checksum { start: 34, at: 50 }));
}

/// [DEV-NET-processing-of-incoming-packets-06] [DEV-NET-processing-of-incoming-packets-07]
/// [DEV-NET-processing-of-incoming-packets-08] [DEV-NET-processing-of-incoming-packets-09]
/// [DEV-NET-processing-of-incoming-packets-12] [DEV-NET-processing-of-incoming-packets-20]
/// [DEV-NET-processing-of-incoming-packets-21] A frame to be segmented reaches as it is only who negotiated its
/// type; others get its segments.
#[test]
fn segmentation_is_passed_on_only_if_negotiated() {
    for (gso_type, _, needed) in TYPES {
        let sent = gso(gso_type);
        let receive = |acked| Offloads::new(acked, None).receive(sent, 60_000).unwrap();
        let header = Header { num_buffers: 1.into(), ..sent };
        let passed = Receive { header, work: Work::Nothing };
        assert_eq!(receive(F_GUEST_CSUM | needed), passed);
        assert_eq!(receive(F_GUEST_CSUM | GUEST), passed);
        for bit in (0..64).map(|n| 1 << n).filter(|bit| needed & bit != 0) {
            assert_eq!(receive(F_GUEST_CSUM | GUEST & !bit).work, Work::Segment, "{gso_type} {bit:#x}");
        }
        for acked in [0, F_GUEST_CSUM, GUEST] {
            assert_eq!(receive(acked), Receive { header, work: Work::Segment });
        }
    }
    let plain = Offloads::new(F_GUEST_CSUM | GUEST, None).receive(Header::default(), 60).unwrap();
    assert_eq!((plain.header.gso_type, plain.work), (GSO_NONE, Work::Nothing));
}

/// [DEV-NET-cfg-05] [DEV-NET-cfg-06] The MTU binds if it was negotiated, what is to be segmented apart.
#[test]
fn frames_longer_than_the_mtu_are_not_delivered() {
    let frame = Header::default();
    assert!(device(F_MTU).offloads().receive(frame, 1500).is_ok());
    assert_eq!(device(F_MTU).offloads().receive(frame, 1501), Err(HeaderError::TooLong));
    assert!(device(0).offloads().receive(frame, 9000).is_ok());
    let offloads = device(F_MTU | F_GUEST_CSUM | F_GUEST_TSO4).offloads();
    assert_eq!(offloads.receive(gso(GSO_TCPV4), 60_000).unwrap().work, Work::Nothing);
    assert_eq!(offloads.receive(gso(GSO_TCPV6), 60_000).unwrap().work, Work::Segment);
}

/// The header of a legacy driver lacks `num_buffers` unless it merges buffers.
#[test]
fn header_lengths() {
    assert_eq!(header_len(0), 10);
    assert_eq!(header_len(F_MRG_RXBUF), 12);
    assert_eq!(header_len(feature::VERSION_1), 12);
    let all = feature::VERSION_1 | F_MRG_RXBUF | F_HASH_REPORT;
    assert_eq!(header_len(all), 20);
}

/// [DEV-NET-gratuitous-packet-sending-01] The status asks a driver that can to announce itself, until it acknowledges.
#[test]
fn announcements_are_acknowledged() {
    let status = |device: &NetDevice| {
        let mut bytes = [0; 2];
        device.read_config(6, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    let acked = F_GUEST_ANNOUNCE | F_STATUS | F_CTRL_VQ;
    let mut able = device(acked);
    assert_eq!(status(&able), S_LINK_UP);
    assert!(able.announce());
    assert_eq!(status(&able), S_LINK_UP | S_ANNOUNCE);
    for wrong in [&[3, 1][..], &[3, 0, 0], &[3]] {
        assert_eq!(able.control(wrong), CTRL_ERR);
    }
    assert_eq!(status(&able), S_LINK_UP | S_ANNOUNCE);
    assert_eq!(able.control(&[3, 0]), CTRL_OK);
    assert_eq!(status(&able), S_LINK_UP);
    able.announce();
    able.reset();
    able.negotiation_mut().ack(acked).unwrap();
    assert_eq!(status(&able), S_LINK_UP, "a driver that begins announces itself anyway");
    // One that cannot, and one whose front-end has the control queue.
    for acked in [F_STATUS | F_CTRL_VQ, F_GUEST_ANNOUNCE | F_STATUS] {
        let mut device = device(acked);
        assert!(!device.announce());
        assert_eq!(status(&device), S_LINK_UP);
    }
}

/// [DEV-NET-cfg-10] [DEV-NET-cfg-11] [DEV-NET-cfg-12] A speed in range, both ways, for good.
#[test]
fn the_speed_is_said() {
    let of = |speed| NetDevice::new(Settings { speed: Some(speed), ..SETTINGS });
    assert_eq!(of(0x8000_0000).unwrap_err(), SettingsError::Speed(0x8000_0000));
    for speed in [0, 25_000, 0x7fff_ffff] {
        let mut device = of(speed).unwrap();
        assert_ne!(device.negotiation().offered() & F_SPEED_DUPLEX, 0);
        device.negotiation_mut().ack(F_SPEED_DUPLEX | F_STATUS | F_CTRL_VQ | F_MQ).unwrap();
        for pairs in 1..=8 {
            device.control(&[4, 0, pairs, 0]);
            let mut bytes = [0xee; 5];
            device.read_config(12, &mut bytes);
            assert_eq!((&bytes[..4], bytes[4]), (&speed.to_le_bytes()[..], 0));
        }
    }
    assert_eq!(NetDevice::new(SETTINGS).unwrap().negotiation().offered() & F_SPEED_DUPLEX, 0);
}

/// [DEV-NET-cfg-04] The MTU is what it was at the start, whatever the driver does.
#[test]
fn the_mtu_stays() {
    let mut device = device(F_MTU | F_MQ | F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS);
    let mtu = |device: &NetDevice| {
        let mut bytes = [0; 2];
        device.read_config(10, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    for class in 0..8 {
        for number in 0..8 {
            device.control(&[class, number, 1, 0]);
            assert_eq!(mtu(&device), 1500);
        }
    }
    device.reset();
    assert_eq!(mtu(&device), 1500);
}

/// Offloads of the receive side go off and on again, of those negotiated; none without its checksums.
#[test]
fn receive_offloads_are_the_drivers() {
    let acked = F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS | F_GUEST_CSUM | F_GUEST_TSO4 | F_CSUM;
    let mut device = device(acked);
    let set = |device: &mut NetDevice, on: u64| device.control(&[&[5, 0][..], &on.to_le_bytes()].concat());
    for (on, answer) in [
        (0, CTRL_OK),
        (F_GUEST_CSUM, CTRL_OK),
        (F_GUEST_CSUM | F_GUEST_TSO4, CTRL_OK),
        (F_GUEST_TSO4, CTRL_ERR),
        (F_GUEST_CSUM | F_GUEST_TSO6, CTRL_ERR),
        (F_GUEST_CSUM | F_CSUM, CTRL_ERR),
        (u64::MAX, CTRL_ERR),
    ] {
        let before = device.offloads();
        assert_eq!(set(&mut device, on), answer, "{on:#x}");
        let expected = if answer == CTRL_OK { acked & !GUEST_OFFLOADS | on } else { before.acked() };
        assert_eq!(device.offloads().acked(), expected);
    }
    set(&mut device, 0);
    device.reset();
    device.negotiation_mut().ack(acked).unwrap();
    assert_eq!(device.offloads().acked(), acked);
}

/// With receive-side scaling the control queue comes after all pairs too.
#[test]
fn scaling_has_all_pairs() {
    let mut device = NetDevice::new(Settings { rss: true, ..SETTINGS }).unwrap();
    device.negotiation_mut().ack(F_RSS | F_CTRL_VQ).unwrap();
    assert_eq!(device.role(16), Some(Role::Control));
    assert_eq!(device.control(&[4, 0, 3, 0]), CTRL_OK);
    assert_eq!(device.active_pairs(), 3);
}
