use ringway_spec::net::{
    CTRL_OK, CTRL_RX_ALLMULTI, CTRL_RX_PROMISC, F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX,
    F_CTRL_RX_EXTRA, F_CTRL_VLAN, F_CTRL_VQ, F_GUEST_ANNOUNCE, F_GUEST_CSUM, F_GUEST_TSO4, F_HASH_REPORT,
    F_MQ, F_MTU, F_RSS,
};

use super::super::Settings;
use super::super::command::RssConfig;
use super::super::filter::AddressTable;
use super::super::rss::{HASH_TYPES, HashConfig, QueueTable};
use super::super::tests::SETTINGS;
use super::*;

const ALL: Settings = Settings { mtu: Some(1500), rss: true, filters: true, ..SETTINGS };
const ACKED: u64 = F_CTRL_VQ
    | F_MQ
    | F_MTU
    | F_RSS
    | F_HASH_REPORT
    | F_CTRL_RX
    | F_CTRL_RX_EXTRA
    | F_CTRL_VLAN
    | F_CTRL_MAC_ADDR
    | F_CTRL_GUEST_OFFLOADS
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_ANNOUNCE;

fn device(settings: Settings) -> NetDevice {
    NetDevice::new(settings).unwrap()
}

/// Every command there is, each with something to remember.
fn commands() -> Vec<Command> {
    let hash = HashConfig { types: HASH_TYPES, key: [0x5a; 40], key_len: 40 };
    let table = QueueTable { entries: [3, 1, 2, 0].into(), unclassified: 4 };
    Vec::from([
        Command::Pairs(3),
        Command::Hash(HashConfig { types: 1, ..hash }),
        Command::Rss(RssConfig { hash, table, transmit: 5 }),
        Command::Address([2, 0, 0, 0, 0, 9]),
        Command::Receive { mode: CTRL_RX_PROMISC, on: false },
        Command::Receive { mode: CTRL_RX_ALLMULTI, on: true },
        Command::Addresses(AddressTable::new([[2; 6], [4; 6]].into(), [[1; 6]].into())),
        Command::Vlan { vlan: 4095, wanted: true },
        Command::Vlan { vlan: 1, wanted: true },
        Command::Vlan { vlan: 1, wanted: false },
        Command::Offloads(F_GUEST_CSUM),
        Command::Announced,
    ])
}

/// What is written is read again; one byte less or more is no command.
#[test]
fn commands_and_their_bytes() {
    for command in commands() {
        let bytes = command.to_bytes();
        assert_eq!(Command::parse(&bytes).as_ref(), Some(&command));
        assert_eq!(Command::parse(&[&bytes[..], &[0]].concat()), None, "{command:?}");
        for len in 0..bytes.len() {
            assert_eq!(Command::parse(&bytes[..len]), None, "{command:?} in {len} bytes");
        }
    }
}

/// Whatever a byte of a command is changed to, it is carried out or changes nothing; what is ordered then can be used and
/// saved.
#[test]
fn commands_with_a_wrong_byte() {
    let mut device = device(ALL);
    device.negotiation_mut().ack(ACKED).unwrap();
    let mut answers = [0; 2];
    for command in commands() {
        let good = command.to_bytes();
        for at in 0..good.len() {
            for value in [0, 1, 2, 8, 0x3f, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let before = device.orders.clone();
                let answer = device.control(&bytes);
                answers[usize::from(answer)] += 1;
                assert!(answer == CTRL_OK || device.orders == before, "{bytes:?}");
                let mut other = NetDevice::new(ALL).unwrap();
                other.load(&device.save()).unwrap();
                assert_eq!(other.orders, device.orders, "{bytes:?}");
                assert!((1..=ALL.max_pairs).contains(&device.active_pairs()), "{bytes:?}");
                let (steering, frame) = (device.steering(), [0x45; 128]);
                let queue = steering.queue(steering.hash(&frame));
                assert!(queue.is_none_or(|queue| queue < ALL.max_pairs), "{bytes:?}");
            }
        }
    }
    assert!(answers.iter().all(|&count| count > 100), "some are refused, some are not: {answers:?}");
}

/// Another device goes on with what the driver ordered, after each of its commands.
#[test]
fn orders_are_saved_and_loaded() {
    let mut here = device(ALL);
    here.negotiation_mut().ack(ACKED).unwrap();
    for command in commands() {
        assert_eq!(here.control(&command.to_bytes()), CTRL_OK, "{command:?}");
        let mut there = device(ALL);
        there.load(&here.save()).unwrap();
        assert_eq!(there.orders, here.orders, "{command:?}");
        // What was acked may come later, and is what counts then.
        there.negotiation_mut().ack(ACKED).unwrap();
        assert_eq!(there.active_pairs(), here.active_pairs());
        assert_eq!(there.filter(), here.filter());
    }
    here.reset();
    assert_eq!(here.save(), [2], "nothing is left to say");
}

/// The version before is read; what is neither changes nothing.
#[test]
fn forms_are_told_apart() {
    let mut device = device(ALL);
    device.load(&[1, 5, 0]).unwrap();
    assert_eq!(device.orders.pairs, 5);
    NetDevice::new(Settings { max_pairs: 1, ..SETTINGS }).unwrap().load(&[1, 1, 0]).unwrap();
    let before = device.orders.clone();
    let wrong = StateError::Command { class: 4, number: 0 };
    for (state, error) in [
        (&[][..], StateError::Form(0)),
        (&[0], StateError::Form(1)),
        (&[3], StateError::Form(1)),
        (&[1, 5], StateError::Form(2)),
        (&[1, 5, 0, 0], StateError::Form(4)),
        (&[1, 9, 0], wrong),
        (&[1, 0, 0], wrong),
        (&[2, 4], StateError::Form(2)),
        (&[2, 5, 0, 4, 0, 3, 0], StateError::Form(7)),
        (&[2, 0, 0], StateError::Form(3)),
        (&[2, 1, 0, 4], StateError::Form(4)),
        (&[2, 4, 0, 4, 0, 9, 0], wrong),
        (&[2, 4, 0, 4, 0, 3, 0, 2, 0, 9, 9], StateError::Command { class: 9, number: 9 }),
    ] {
        assert_eq!(device.load(state), Err(error), "{state:?}");
        assert_eq!(device.orders, before);
    }
}

/// Another device goes on with all that the driver made of it; one that has less does not.
#[test]
fn another_device_goes_on() {
    let mut here = device(ALL);
    here.negotiation_mut().ack(ACKED).unwrap();
    here.negotiation_mut().write_status(15);
    for command in commands() {
        here.control(&command.to_bytes());
    }
    here.announce();
    here.negotiation_mut().need_reset();
    let mut there = device(ALL);
    for state in [there.state(), here.state()] {
        there.restore(&state).unwrap();
        assert_eq!(there.state(), state);
    }
    assert!(there.negotiation().is_live() && there.orders.announce);
    let fewer = device(Settings { max_pairs: 2, ..ALL }).restore(&here.state());
    assert_eq!(fewer, Err(StateError::Command { class: 4, number: 0 }.into()));
    let features = device(Settings { mtu: None, ..ALL }).restore(&here.state());
    assert_eq!(features, Err(FeatureError::NotOffered(F_MTU).into()));
}
