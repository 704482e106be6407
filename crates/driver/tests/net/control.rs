//! Commands to the device, and what becomes of its answers.

use ringway_driver::Error;
use ringway_driver::net::{Mode, Net, Offload, Rss, SendError};
use ringway_spec::feature::RING_PACKED;
use ringway_spec::net::{
    CTRL_ERR, CTRL_OK, F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_CTRL_VLAN,
    F_CTRL_VQ, F_GUEST_ANNOUNCE, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_MAC,
    F_MQ, F_RSS, F_STATUS, HASH_TYPE_IPV4, HASH_TYPE_TCPV4, HASH_TYPE_UDPV4,
};
use ringway_spec::status::DeviceStatus;

use crate::common::{FakeTransport, RINGS};
use crate::lab::{Bench, Lab, MAC, frame};

/// All features that let commands be sent.
const ALL: u64 = F_CTRL_VQ
    | F_CTRL_RX
    | F_CTRL_RX_EXTRA
    | F_CTRL_VLAN
    | F_CTRL_MAC_ADDR
    | F_GUEST_ANNOUNCE
    | F_STATUS
    | F_MQ
    | F_MAC
    | F_CTRL_GUEST_OFFLOADS
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_ECN;

const OWN: [u8; 6] = [2, 1, 2, 3, 4, 5];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

fn several(features: u64) -> Lab {
    Bench::new(features).options(|options| options.pairs = 4).up()
}

type Command = fn(&mut Net<FakeTransport>) -> Result<(), Error>;

/// Each command, its bytes, and what it needs beside the control queue.
fn commands() -> Vec<(Command, Vec<u8>, u64)> {
    let table = [&[1, 0][..], &[2, 0, 0, 0], &OWN, &MAC, &[1, 0, 0, 0], &GROUP].concat();
    let offloads = [&[5, 0][..], &(F_GUEST_CSUM | F_GUEST_TSO4).to_le_bytes()].concat();
    let all: [(Command, &[u8], u64); 13] = [
        (|net| net.set_mode(Mode::Promiscuous, true), &[0, 0, 1], F_CTRL_RX),
        (|net| net.set_mode(Mode::AllMulticast, false), &[0, 1, 0], F_CTRL_RX),
        (|net| net.set_mode(Mode::AllUnicast, true), &[0, 2, 1], F_CTRL_RX_EXTRA),
        (|net| net.set_mode(Mode::NoMulticast, true), &[0, 3, 1], F_CTRL_RX_EXTRA),
        (|net| net.set_mode(Mode::NoUnicast, true), &[0, 4, 1], F_CTRL_RX_EXTRA),
        (|net| net.set_mode(Mode::NoBroadcast, false), &[0, 5, 0], F_CTRL_RX_EXTRA),
        (|net| net.set_addresses(&[OWN, MAC], &[GROUP]), &table, F_CTRL_RX),
        (|net| net.set_addresses(&[], &[]), &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], F_CTRL_RX),
        (|net| net.set_mac(OWN), &[1, 1, 2, 1, 2, 3, 4, 5], F_CTRL_RX | F_CTRL_MAC_ADDR),
        (|net| net.set_vlan(0x123, true), &[2, 0, 0x23, 1], F_CTRL_VLAN),
        (|net| net.set_vlan(4095, false), &[2, 1, 0xff, 0xf], F_CTRL_VLAN),
        (|net| net.announced(), &[3, 0], F_GUEST_ANNOUNCE),
        (|net| net.set_pairs(3), &[4, 0, 3, 0], F_MQ),
    ];
    let mut all: Vec<_> = all.into_iter().map(|(run, bytes, needs)| (run, bytes.to_vec(), needs)).collect();
    all.push((|net| net.set_guest_offloads(F_GUEST_CSUM | F_GUEST_TSO4), offloads, F_CTRL_GUEST_OFFLOADS));
    all
}

/// [DRV-NET-setting-mac-address-filtering-02] [DRV-NET-setting-mac-address-filtering-03]
/// [DRV-NET-gratuitous-packet-sending-02] Commands are what the text wants them to be, byte for byte, and their answers count.
#[test]
fn commands_are_byte_for_byte() {
    for rings in RINGS {
        let mut lab = several(ALL | rings);
        let seen = lab.obey();
        for (run, bytes, _) in commands() {
            run(&mut lab.net).unwrap();
            assert_eq!(seen.lock().unwrap().pop().unwrap(), bytes);
            assert!(seen.lock().unwrap().is_empty());
        }
        assert_eq!(lab.net.mac(), OWN);
        let mut lab = several(ALL | rings);
        lab.serve(|_| Some(CTRL_ERR));
        for (run, bytes, _) in commands() {
            assert!(matches!(run(&mut lab.net), Err(Error::Refused { .. })), "{bytes:?}");
        }
        assert_eq!(lab.net.mac(), MAC, "as it was");
    }
}

/// [DRV-NET-packet-receive-filtering-01] [DRV-NET-packet-receive-filtering-02]
/// [DRV-NET-setting-mac-address-filtering-01] No command is sent whose feature was not negotiated, nor any without the control
/// queue.
#[test]
fn no_command_is_sent_that_was_not_negotiated() {
    for (run, bytes, needs) in commands() {
        let one = |bit: u32| (1 << bit) & needs;
        for missing in (0..64).map(one).chain([F_CTRL_VQ]).filter(|feature| *feature != 0) {
            let mut lab = several(ALL & !missing | RING_PACKED);
            let has_queue = missing != F_CTRL_VQ;
            let seen = has_queue.then(|| lab.obey());
            let error = run(&mut lab.net).unwrap_err();
            // Of pairs there is but one then.
            let is_right = matches!(error, Error::NotNegotiated { feature } if feature & missing != 0 || !has_queue)
                || matches!(error, Error::BadArgument { .. });
            assert!(is_right, "{bytes:?}: {error}");
            assert!(seen.is_none_or(|seen| seen.lock().unwrap().is_empty()), "{bytes:?}");
        }
    }
}

/// [DRV-NET-setting-mac-address-filtering-03] [DRV-NET-automatic-receive-steering-in-multiqueue-mode-02]
/// [DRV-NET-setting-offloads-state-01] What cannot be asked is not asked.
#[test]
fn impossible_commands_are_not_sent() {
    let mut lab = several(ALL);
    let seen = lab.obey();
    let long = [OWN; 700];
    let impossible: [Command; 14] = [
        |net| net.set_mac(GROUP),
        |net| net.set_addresses(&[GROUP], &[]),
        |net| net.set_addresses(&[], &[GROUP, OWN]),
        |net| net.set_vlan(4096, true),
        |net| net.set_vlan(u16::MAX, false),
        |net| net.set_pairs(0),
        |net| net.set_pairs(5),
        |net| net.set_pairs(u16::MAX),
        |net| net.set_guest_offloads(F_GUEST_TSO4),
        |net| net.set_guest_offloads(F_GUEST_CSUM | F_GUEST_TSO6),
        |net| net.set_guest_offloads(F_GUEST_CSUM | F_GUEST_ECN),
        |net| net.set_guest_offloads(F_GUEST_USO4),
        |net| net.set_guest_offloads(u64::MAX),
        |net| net.set_guest_offloads(1),
    ];
    for run in impossible {
        assert!(matches!(run(&mut lab.net), Err(Error::BadArgument { .. })));
    }
    assert!(matches!(lab.net.set_addresses(&long, &[]), Err(Error::BadArgument { .. })));
    assert!(seen.lock().unwrap().is_empty());
    assert!(lab.net.set_addresses(&long[..681], &[]).is_ok(), "as many as there is room for");
    assert!(lab.net.set_guest_offloads(0).is_ok());
}

/// [DRV-NET-automatic-receive-steering-in-multiqueue-mode-01] [DRV-NET-automatic-receive-steering-in-multiqueue-mode-03]
/// [DRV-NET-automatic-receive-steering-in-multiqueue-mode-04] Frames are sent on the first pair only until the device uses
/// more, and on none from the moment on when it may have heard to leave it.
#[test]
fn frames_are_sent_on_pairs_in_use() {
    let mut lab = several(ALL);
    let sends = |lab: &mut Lab| -> Vec<_> {
        let mut send = |pair: usize| lab.net.pair(pair).tx.send(&frame(60), &Offload::None);
        (0..4)
            .filter(|pair| match send(*pair) {
                Ok(()) => true,
                Err(error) => {
                    assert_eq!(error, SendError::Inactive);
                    false
                }
            })
            .collect()
    };
    let set_up: Vec<_> = lab.fake.state().queues.keys().copied().collect();
    assert_eq!(set_up, [0, 1, 2, 3, 4, 5, 6, 7, 8], "before any command");
    assert_eq!(sends(&mut lab), [0]);

    // 3 pairs; 2 of them, refused; 2, done; 4, with an answer that is none; 1, without an answer.
    let mut answers = [Some(CTRL_OK), Some(CTRL_ERR), Some(CTRL_OK), Some(7), None].into_iter();
    lab.serve(move |_| answers.next().unwrap());
    lab.net.set_pairs(3).unwrap();
    assert_eq!((lab.net.active_pairs(), sends(&mut lab)), (3, vec![0, 1, 2]));
    assert!(matches!(lab.net.set_pairs(2), Err(Error::Refused { .. })));
    assert_eq!(sends(&mut lab), [0, 1, 2], "as before");
    lab.net.set_pairs(2).unwrap();
    assert_eq!(sends(&mut lab), [0, 1]);
    assert!(matches!(lab.net.set_pairs(4), Err(Error::BadAnswer { .. })));
    assert_eq!(sends(&mut lab), [0, 1], "nobody knows");
    assert!(matches!(lab.net.set_pairs(1), Err(Error::BadAnswer { .. })));
    assert_eq!(sends(&mut lab), [0]);
}

const KEY: [u8; 40] = [0x6d; 40];
const RSS: Rss<'_> =
    Rss { hash_types: HASH_TYPE_IPV4, table: &[0, 1, 2, 0], unclassified: 1, transmit: 3, key: &KEY };

/// A device that scales: so many bytes of key, so many entries, hashes of IPv4 and TCP over it, and one that nobody knows.
fn scaling(features: u64) -> Lab {
    let bench = Bench::new(features).config(|config| {
        config.rss_max_key_size = 40;
        config.rss_max_indirection_table_length = 128.into();
        config.supported_hash_types = (1 << 31 | HASH_TYPE_IPV4 | HASH_TYPE_TCPV4).into();
    });
    bench.options(|options| options.pairs = 3).up()
}

/// The command is what the text wants, and as many pairs are used to transmit as it says.
#[test]
fn scaling_is_commanded_byte_for_byte() {
    for features in [F_RSS | F_CTRL_VQ, F_RSS | F_CTRL_VQ | F_MQ] {
        let mut lab = scaling(features);
        assert_eq!(lab.net.rss_limits().table_len, 128);
        let seen = lab.obey();
        lab.net.set_rss(&RSS).unwrap();
        let words = [3, 1, 0, 1, 2, 0, 3u16].map(u16::to_le_bytes);
        let expected = [&[4, 1, 1, 0, 0, 0][..], words.as_flattened(), &[40], &KEY].concat();
        assert_eq!(*seen.lock().unwrap(), [expected]);
        assert_eq!(lab.net.active_pairs(), 3);
        lab.net.set_rss(&Rss { transmit: 1, key: &[], table: &[2], ..RSS }).unwrap();
        let expected = [4, 1, 1, 0, 0, 0, 0, 0, 1, 0, 2, 0, 1, 0, 0];
        assert_eq!(seen.lock().unwrap()[1], expected);
        assert_eq!(lab.net.active_pairs(), 1);
    }
}

/// [DRV-NET-receive-side-scaling-rss-01] [DRV-NET-receive-side-scaling-rss-02] [DRV-NET-receive-side-scaling-rss-03]
/// [DRV-NET-receive-side-scaling-rss-04] [DRV-NET-receive-side-scaling-rss-05] What the device cannot do is not commanded: a
/// table that is too long or of no power of two, pairs that there are not, hashes that are not supported, keys too long.
#[test]
fn impossible_scaling_is_not_commanded() {
    let mut lab = scaling(F_RSS | F_CTRL_VQ);
    let seen = lab.obey();
    for impossible in [
        Rss { hash_types: HASH_TYPE_UDPV4, ..RSS },
        Rss { hash_types: HASH_TYPE_IPV4 | 1 << 30, ..RSS },
        Rss { table: &[], ..RSS },
        Rss { table: &[0, 1, 2], ..RSS },
        Rss { table: &[0; 256], ..RSS },
        Rss { table: &[0, 3], ..RSS },
        Rss { unclassified: 3, ..RSS },
        Rss { transmit: 0, ..RSS },
        Rss { transmit: 4, ..RSS },
        Rss { key: &[0; 41], ..RSS },
    ] {
        assert!(matches!(lab.net.set_rss(&impossible), Err(Error::BadArgument { .. })), "{impossible:?}");
    }
    assert!(seen.lock().unwrap().is_empty());
    assert!(lab.net.set_rss(&Rss { table: &[0; 128], ..RSS }).is_ok());

    let mut lab = scaling(F_MQ | F_CTRL_VQ);
    let seen = lab.obey();
    for rss in [RSS, Rss { table: &[], ..RSS }] {
        assert!(matches!(lab.net.set_rss(&rss), Err(Error::NotNegotiated { feature: F_RSS })));
    }
    assert!(seen.lock().unwrap().is_empty());
}

/// A device that answers nothing is given up, and its late answer is not taken for another one.
#[test]
fn late_answers_are_of_no_interest() {
    for rings in RINGS {
        let mut lab = several(ALL | rings);
        for _ in 0..3 {
            assert!(matches!(lab.net.set_vlan(1, true), Err(Error::TimedOut { .. })));
        }
        // It refuses the one that was given up, and carries out the one that comes now.
        let mut answers = [CTRL_ERR, CTRL_OK].into_iter();
        let seen = lab.serve(move |_| answers.next());
        assert!(matches!(lab.net.set_vlan(2, true), Err(Error::TimedOut { .. })), "the memory is not back");
        lab.run_hook();
        assert!(lab.net.set_vlan(3, true).is_ok());
        assert_eq!(*seen.lock().unwrap(), [[2, 0, 1, 0], [2, 0, 3, 0]]);
    }
}

/// A device that has failed is not waited for any longer than any other, and it is told what it is.
#[test]
fn a_command_to_a_device_that_failed_says_so() {
    let mut lab = several(ALL);
    lab.fake.state().status |= DeviceStatus::DEVICE_NEEDS_RESET;
    assert!(matches!(lab.net.set_vlan(1, true), Err(Error::NeedsReset)));
}
