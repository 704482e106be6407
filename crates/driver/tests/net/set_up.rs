//! Features, the configuration, and the buffers that follow from them.

use ringway_driver::net::{Link, PLAIN, RECEIVE_CHECKSUMS, RECEIVE_SEGMENTS, SEND_SEGMENTS};
use ringway_driver::{Error, Interrupt};
use ringway_spec::feature::{RING_PACKED, VERSION_1};
use ringway_spec::net::{
    F_CSUM, F_CTRL_GUEST_OFFLOADS, F_CTRL_RX_EXTRA, F_CTRL_VQ, F_GUEST_ANNOUNCE, F_GUEST_CSUM, F_GUEST_ECN,
    F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_HASH_REPORT, F_HOST_ECN, F_HOST_TSO4, F_MAC, F_MQ,
    F_MRG_RXBUF, F_MTU, F_RSS, F_SPEED_DUPLEX, F_STATUS, HDR_LEN,
};

use crate::common::{Event, RINGS};
use crate::lab::{Bench, ETH, Lab, MAC, frame};

/// [DRV-NET-cfg-02] [DRV-NET-cfg-06] [DRV-NET-cfg-12] [DRV-NET-cfg-13] [DRV-NET-packet-transmission-30] Of each set that is
/// offered, what is understood is accepted, unless it lacks what it requires. Hashes are never reported.
#[test]
fn features_are_accepted_with_what_they_require() {
    let all = PLAIN | SEND_SEGMENTS | RECEIVE_CHECKSUMS | RECEIVE_SEGMENTS;
    for (offered, accepted) in [
        (!RING_PACKED, all),
        (F_MAC | F_MTU, F_MAC | F_MTU),
        (F_CTRL_RX_EXTRA | F_GUEST_ANNOUNCE | F_MQ | F_CTRL_GUEST_OFFLOADS | F_HASH_REPORT | F_RSS, 0),
        (F_HASH_REPORT | F_RSS | F_CTRL_VQ, F_RSS | F_CTRL_VQ),
        (F_GUEST_TSO4 | F_GUEST_ECN | F_GUEST_USO4 | F_HOST_TSO4 | F_HOST_ECN, 0),
        (F_GUEST_ECN | F_GUEST_CSUM | F_HOST_ECN | F_CSUM, F_GUEST_CSUM | F_CSUM),
        (F_GUEST_ECN | F_GUEST_TSO6 | F_GUEST_CSUM, F_GUEST_ECN | F_GUEST_TSO6 | F_GUEST_CSUM),
    ] {
        let lab = Bench::new(offered).options(|options| options.pairs = 4).up();
        let device_features = ((1 << 24) - 1) | (!0 << 50);
        assert_eq!(lab.net.features() & device_features, accepted & device_features, "{offered:#x}");
        assert_ne!(lab.fake.state().accepted & VERSION_1, 0);
    }
}

/// What is not wanted is not accepted, and several pairs only if they are.
#[test]
fn features_can_be_left_out() {
    let lab = Bench::new(u64::MAX).options(|o| (o.features, o.without) = (PLAIN, RING_PACKED)).up();
    assert_eq!(lab.net.features() & (F_GUEST_CSUM | F_MQ | F_RSS | RING_PACKED), 0);
    assert_ne!(lab.net.features() & (F_CTRL_VQ | F_MRG_RXBUF), 0);
}

/// [DRV-NET-cfg-03] [DRV-NET-cfg-04] The address is the device's, or a locally administered one.
#[test]
fn the_address_is_the_devices_or_a_local_one() {
    assert_eq!(Lab::new(F_MAC).net.mac(), MAC);
    for random in [[0xff; 6], [0; 6], [0x13, 1, 2, 3, 4, 5]] {
        let lab = Bench::new(0).options(|options| options.random = random).up();
        let mac = lab.net.mac();
        assert_eq!((mac[0] & 3, &mac[1..]), (2, &random[1..]), "local, and of one device");
    }
}

/// [DRV-NET-cfg-05] The link is up, unless the device says otherwise.
#[test]
fn the_link_is_up_unless_the_device_says_otherwise() {
    for (features, status, is_up) in
        [(0, 0, true), (F_STATUS, 0, false), (F_STATUS, 1, true), (F_STATUS, 6, false)]
    {
        let lab = Bench::new(features).config(|config| config.status = status.into()).up();
        assert_eq!(lab.net.link().is_up, is_up, "{features:#x} {status}");
    }
}

/// [DRV-NET-cfg-10] Speeds and duplexes that there are not are not known.
#[test]
fn impossible_speeds_are_unknown() {
    for (speed, duplex, expected) in [
        (10_000, 1, (Some(10_000), Some(false))),
        (0x7fff_ffff, 0, (Some(0x7fff_ffff), Some(true))),
        (0x8000_0000, 2, (None, None)),
        (u32::MAX, 0xff, (None, None)),
    ] {
        let bench = Bench::new(F_SPEED_DUPLEX).config(|c| (c.speed, c.duplex) = (speed.into(), duplex));
        let link = bench.up().net.link();
        assert_eq!((link.speed, link.is_full_duplex), expected, "{speed:#x} {duplex:#x}");
    }
    let link = Lab::new(0).net.link();
    assert_eq!((link.speed, link.is_full_duplex), (None, None), "it does not say");
}

/// [DRV-NET-cfg-11] [DRV-NET-gratuitous-packet-sending-01] An interrupt for the configuration has the link read again, and tells
/// that the network is to be told where the driver is.
#[test]
fn a_change_of_the_configuration_is_told() {
    let features = F_STATUS | F_SPEED_DUPLEX | F_CTRL_VQ | F_GUEST_ANNOUNCE;
    let mut lab = Lab::new(features);
    assert!(!lab.net.interrupt().unwrap().queues);
    lab.fake.state().interrupt = Interrupt::QUEUE;
    let change = lab.net.interrupt().unwrap();
    assert_eq!((change.queues, change.link, change.announce), (true, None, false));

    {
        let mut state = lab.fake.state();
        state.interrupt = Interrupt::CONFIG;
        state.config[6] = 2;
        state.config[12..16].copy_from_slice(&25_000u32.to_le_bytes());
    }
    let change = lab.net.interrupt().unwrap();
    let link = Link { is_up: false, speed: Some(25_000), is_full_duplex: Some(false) };
    assert_eq!((change.queues, change.link, change.announce), (false, Some(link), true));
    assert_eq!(lab.net.link(), link);
    assert_eq!(lab.net.config_changed().unwrap().link, None, "told once");

    let mut lab = Lab::new(F_STATUS);
    lab.fake.state().config[6] = 3;
    assert!(!lab.net.config_changed().unwrap().announce, "not negotiated");
}

/// A device that has failed says so by the same interrupt.
#[test]
fn a_device_that_failed_is_told() {
    use ringway_spec::status::DeviceStatus;
    let mut lab = Lab::new(F_STATUS);
    lab.fake.state().interrupt = Interrupt::CONFIG;
    lab.fake.state().status |= DeviceStatus::DEVICE_NEEDS_RESET;
    assert!(matches!(lab.net.interrupt(), Err(Error::NeedsReset)));
}

/// [DRV-CORE-device-configuration-space-02] Every field belongs to a feature: without any, none is read.
#[test]
fn fields_of_features_not_offered_are_not_read() {
    let lab = Lab::new(0);
    let log = lab.fake.take_log();
    assert!(!log.iter().any(|event| matches!(event, Event::ReadConfig(..))), "{log:?}");
}

/// [DRV-NET-cfg-01] Whatever is done, nothing of the configuration is written.
#[test]
fn the_configuration_is_never_written() {
    let mut lab = Bench::new(u64::MAX).options(|options| options.pairs = 2).up();
    lab.obey();
    lab.net.set_mac([2; 6]).unwrap();
    lab.net.set_pairs(2).unwrap();
    lab.net.config_changed().unwrap();
    let fake = lab.fake.clone();
    lab.net.stop().unwrap();
    let log = fake.take_log();
    assert!(log.iter().any(|event| matches!(event, Event::ReadConfig(..))));
    assert!(!log.iter().any(|event| matches!(event, Event::WriteConfig(..))), "{log:?}");
}

/// [DRV-NET-cfg-07] Whatever MTU the device says, a frame of it finds buffers, tagged or not.
#[test]
fn a_frame_of_the_mtu_finds_buffers() {
    for rings in RINGS {
        for (features, mtu) in
            [0, F_MRG_RXBUF].into_iter().flat_map(|f| [68, 1500, 9000, 65535].map(|m| (f, m)))
        {
            let bench = Bench::new(F_MTU | features | rings).config(|config| config.mtu = mtu.into());
            let mut lab = bench.options(|options| options.queue_size = 64).up();
            assert_eq!(lab.net.mtu(), mtu);
            for len in [usize::from(mtu) + ETH, usize::from(mtu) + ETH + 4] {
                let frame = frame(len);
                lab.give_merged(&frame);
                assert!(lab.received(0) == [frame], "{features:#x} {mtu}");
            }
        }
    }
}

/// [DRV-NET-setting-up-receive-buffers-01] [DRV-NET-setting-up-receive-buffers-02]
/// [DRV-NET-setting-up-receive-buffers-03] [DRV-NET-setting-up-receive-buffers-04] Buffers are as long as the text wants them,
/// the ring is full of them, and they are in the device's hands when it is live.
#[test]
fn buffers_are_as_long_as_need_be() {
    for (features, least) in [
        (0, 1526),
        (F_GUEST_CSUM, 1526),
        (F_GUEST_CSUM | F_GUEST_TSO4, 65601),
        (F_GUEST_CSUM | F_GUEST_TSO6, 65601),
        (F_GUEST_CSUM | F_GUEST_USO4, 65601),
        (F_MRG_RXBUF, HDR_LEN),
        (F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4, HDR_LEN),
    ] {
        for buffer_len in [0, 1, 1600, 100_000] {
            let bench = Bench::new(features);
            let mut lab = bench.options(|o| (o.queue_size, o.buffer_len) = (64, buffer_len)).up();
            let len = lab.buffer_len();
            assert!(len >= least && len <= 65728, "{features:#x}: {len} bytes");
            assert_eq!(lab.buffers(0), 64);
        }
    }
}

/// [DRV-NET-setting-up-receive-buffers-05] Each receive queue that can be used has buffers, and the device was kicked for them
/// after it went live.
#[test]
fn all_pairs_have_buffers() {
    let mut lab = Bench::new(F_MQ | F_CTRL_VQ).options(|options| options.pairs = 3).up();
    for pair in 0..3 {
        assert_eq!(lab.buffers(pair), 256);
        assert_eq!(lab.fake.kicks(2 * pair as u16), 1);
    }
    let log = lab.fake.take_log();
    let live = log.iter().rposition(|event| matches!(event, Event::Status(_))).unwrap();
    let kicked = log.iter().position(|event| matches!(event, Event::Kick(..))).unwrap();
    assert!(live < kicked);
    assert_eq!(
        log.iter().filter(|event| matches!(event, Event::Queue(8, _))).count(),
        1,
        "the control queue is the last"
    );
}

/// A configuration that cannot be is no device to work with.
#[test]
fn an_impossible_configuration_is_refused() {
    let bench = Bench::new(F_MTU).config(|config| config.mtu = 67.into());
    assert!(matches!(bench.try_up().err(), Some(Error::BadConfig { what: "MTU" })));
    for pairs in [0, 0x8001] {
        let bench = Bench::new(F_MQ | F_CTRL_VQ).config(|config| config.max_virtqueue_pairs = pairs.into());
        let result = bench.options(|options| options.pairs = 4).try_up();
        assert!(matches!(result.err(), Some(Error::BadConfig { what: "number of queue pairs" })));
    }
}
