use ringway_spec::net::{
    CTRL_ERR, CTRL_OK, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_CTRL_VLAN, F_CTRL_VQ, F_MAC,
};

use super::super::command::Command;
use super::super::tests::SETTINGS;
use super::super::{MAX_COMMAND, NetDevice, Settings};
use super::*;

const OWN: Address = [2, 0, 0, 0, 0, 1];
const LISTED: Address = [2, 0, 0, 0, 0, 2];
const OTHER: Address = [2, 0, 0, 0, 0, 3];
const GROUP: Address = [1, 0, 0x5e, 0, 0, 1];
const OTHER_GROUP: Address = [0x33, 0x33, 0, 0, 0, 1];
const ALL: [Address; 6] = [OWN, LISTED, OTHER, GROUP, OTHER_GROUP, BROADCAST];

const ADDRESSES: u64 = F_CTRL_VQ | F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR | F_MAC;

fn device(acked: u64) -> NetDevice {
    let mut device = NetDevice::new(Settings { mac: Some(OWN), filters: true, ..SETTINGS }).unwrap();
    device.negotiation_mut().ack(acked).unwrap();
    device
}

fn order(device: &mut NetDevice, command: &Command) {
    assert_eq!(device.control(&command.to_bytes()), CTRL_OK, "{command:?}");
}

fn mode(device: &mut NetDevice, mode: u8, on: bool) {
    order(device, &Command::Receive { mode, on });
}

fn list(device: &mut NetDevice) {
    // In no order, and one twice.
    let table = [[4, 9, 9, 9, 9, 9], LISTED, LISTED, [2; 6]];
    order(device, &Command::Addresses(AddressTable::new(table.into(), [GROUP].into())));
}

/// Of [`ALL`] those that the device takes for its driver.
fn accepted(device: &NetDevice) -> Vec<Address> {
    let filter = device.filter();
    ALL.into_iter().filter(|dst| filter.as_ref().is_none_or(|f| f.accepts(*dst, None))).collect()
}

/// [DEV-NET-packet-receive-filtering-01] [DEV-NET-packet-receive-filtering-02] Promiscuous after reset, and again if
/// it is turned on; in between only what the driver asked for.
#[test]
fn promiscuous_is_everything() {
    let mut device = device(ADDRESSES);
    assert_eq!(accepted(&device), ALL);
    mode(&mut device, CTRL_RX_PROMISC, false);
    assert_eq!(accepted(&device), [OWN, BROADCAST]);
    mode(&mut device, CTRL_RX_PROMISC, true);
    assert_eq!(accepted(&device), ALL);
}

/// [DEV-NET-packet-receive-filtering-03] Promiscuous is stronger than what suppresses.
#[test]
fn promiscuous_is_the_strongest() {
    let mut device = device(ADDRESSES | F_CTRL_VLAN);
    for suppressed in [CTRL_RX_NOMULTI, CTRL_RX_NOUNI, CTRL_RX_NOBCAST] {
        mode(&mut device, suppressed, true);
    }
    assert_eq!(accepted(&device), ALL);
    assert!(device.filter().unwrap().accepts(OTHER, Some(5)));
    mode(&mut device, CTRL_RX_PROMISC, false);
    assert_eq!(accepted(&device), [[0; 6]; 0]);
}

/// [DEV-NET-packet-receive-filtering-04] [DEV-NET-packet-receive-filtering-05]
/// [DEV-NET-packet-receive-filtering-06] [DEV-NET-packet-receive-filtering-07] All of a kind, on and off.
#[test]
fn all_of_a_kind() {
    let mut device = device(ADDRESSES);
    mode(&mut device, CTRL_RX_PROMISC, false);
    mode(&mut device, CTRL_RX_ALLMULTI, true);
    assert_eq!(accepted(&device), [OWN, GROUP, OTHER_GROUP, BROADCAST]);
    mode(&mut device, CTRL_RX_ALLMULTI, false);
    mode(&mut device, CTRL_RX_ALLUNI, true);
    assert_eq!(accepted(&device), [OWN, LISTED, OTHER, BROADCAST]);
    mode(&mut device, CTRL_RX_ALLUNI, false);
    assert_eq!(accepted(&device), [OWN, BROADCAST]);
}

/// [DEV-NET-packet-receive-filtering-08] [DEV-NET-packet-receive-filtering-09]
/// [DEV-NET-packet-receive-filtering-10] [DEV-NET-packet-receive-filtering-11] No multicast, even of all; broadcast is
/// another matter.
#[test]
fn multicast_is_suppressed() {
    let mut device = device(ADDRESSES);
    mode(&mut device, CTRL_RX_PROMISC, false);
    list(&mut device);
    assert_eq!(accepted(&device), [OWN, LISTED, GROUP, BROADCAST]);
    mode(&mut device, CTRL_RX_NOMULTI, true);
    assert_eq!(accepted(&device), [OWN, LISTED, BROADCAST]);
    mode(&mut device, CTRL_RX_ALLMULTI, true);
    assert_eq!(accepted(&device), [OWN, LISTED, BROADCAST]);
    mode(&mut device, CTRL_RX_NOMULTI, false);
    assert_eq!(accepted(&device), [OWN, LISTED, GROUP, OTHER_GROUP, BROADCAST]);
}

/// [DEV-NET-packet-receive-filtering-12] [DEV-NET-packet-receive-filtering-13]
/// [DEV-NET-packet-receive-filtering-14] No unicast, even of all.
#[test]
fn unicast_is_suppressed() {
    let mut device = device(ADDRESSES);
    mode(&mut device, CTRL_RX_PROMISC, false);
    list(&mut device);
    mode(&mut device, CTRL_RX_ALLUNI, true);
    mode(&mut device, CTRL_RX_NOUNI, true);
    assert_eq!(accepted(&device), [GROUP, BROADCAST]);
    mode(&mut device, CTRL_RX_NOUNI, false);
    assert_eq!(accepted(&device), [OWN, LISTED, OTHER, GROUP, BROADCAST]);
}

/// [DEV-NET-packet-receive-filtering-15] [DEV-NET-packet-receive-filtering-16]
/// [DEV-NET-packet-receive-filtering-17] No broadcast, even with all multicast.
#[test]
fn broadcast_is_suppressed() {
    let mut device = device(ADDRESSES);
    mode(&mut device, CTRL_RX_PROMISC, false);
    mode(&mut device, CTRL_RX_NOBCAST, true);
    assert_eq!(accepted(&device), [OWN]);
    mode(&mut device, CTRL_RX_ALLMULTI, true);
    assert_eq!(accepted(&device), [OWN, GROUP, OTHER_GROUP]);
    mode(&mut device, CTRL_RX_NOBCAST, false);
    assert_eq!(accepted(&device), [OWN, GROUP, OTHER_GROUP, BROADCAST]);
}

/// [DEV-NET-setting-mac-address-filtering-01] [DEV-NET-setting-mac-address-filtering-02]
/// [DEV-NET-setting-mac-address-filtering-04] The table is empty at first, is what the last command made it when that
/// is answered, and is empty after a reset.
#[test]
fn the_table_of_addresses() {
    let mut device = device(ADDRESSES);
    for _ in 0..2 {
        mode(&mut device, CTRL_RX_PROMISC, false);
        assert_eq!(accepted(&device), [OWN, BROADCAST]);
        list(&mut device);
        assert_eq!(accepted(&device), [OWN, LISTED, GROUP, BROADCAST]);
        order(&mut device, &Command::Addresses(AddressTable::new([OTHER].into(), [OTHER_GROUP].into())));
        assert_eq!(accepted(&device), [OWN, OTHER, OTHER_GROUP, BROADCAST]);
        order(&mut device, &Command::Addresses(AddressTable::default()));
        assert_eq!(accepted(&device), [OWN, BROADCAST]);
        list(&mut device);
        device.reset();
        device.negotiation_mut().ack(ADDRESSES).unwrap();
    }
}

/// A table that claims more addresses than it has is refused, and one that is longer than any command.
#[test]
fn tables_are_checked() {
    let mut device = device(ADDRESSES);
    mode(&mut device, CTRL_RX_PROMISC, false);
    list(&mut device);
    let head = |count: u32| [&[1, 0][..], &count.to_le_bytes()].concat();
    for wrong in [
        head(0),
        [head(2), [0; 10].into()].concat(),
        [head(u32::MAX), [0; 64].into()].concat(),
        [head(0), [0, 0, 0, 0x80].into()].concat(),
        [head(0), [0; 5].into()].concat(),
    ] {
        assert_eq!(device.control(&wrong), CTRL_ERR, "{wrong:?}");
    }
    let addresses = (MAX_COMMAND - 10) / 6;
    let of = |count| {
        Command::Addresses(AddressTable {
            unicast: (0..count as u32).map(|i| [2, 0, 0, (i >> 16) as u8, (i >> 8) as u8, i as u8]).collect(),
            multicast: Vec::new(),
        })
    };
    assert_eq!(device.control(&of(addresses + 1).to_bytes()), CTRL_ERR);
    assert_eq!(accepted(&device), [OWN, LISTED, GROUP, BROADCAST], "refused, so nothing changed");
    assert_eq!(device.control(&of(addresses).to_bytes()), CTRL_OK);
    assert!(device.filter().unwrap().accepts([2, 0, 0, 0, 0x10, 0], None));
}

/// [DEV-NET-setting-mac-address-filtering-03] The configuration has the address that the driver set, when the command
/// is answered; and that one is received.
#[test]
fn the_address_is_the_drivers() {
    let mut device = device(ADDRESSES);
    mode(&mut device, CTRL_RX_PROMISC, false);
    let mut mac = [0; 6];
    for address in [OTHER, LISTED] {
        order(&mut device, &Command::Address(address));
        device.read_config(0, &mut mac);
        assert_eq!(mac, address);
        assert_eq!(accepted(&device), [address, BROADCAST]);
    }
    assert_eq!(device.control(&Command::Address(GROUP).to_bytes()), CTRL_ERR, "a group is nobody's address");
    device.reset();
    device.read_config(0, &mut mac);
    assert_eq!(mac, OWN);
}

/// A device whose driver knows no address of it takes any unicast frame: it may be for that.
#[test]
fn an_address_that_is_not_known() {
    let mut device = device(F_CTRL_VQ | F_CTRL_RX);
    mode(&mut device, CTRL_RX_PROMISC, false);
    assert_eq!(accepted(&device), [OWN, LISTED, OTHER, BROADCAST]);
}

/// [DEV-NET-vlan-filtering-01] Without the feature every VLAN is accepted, with and without a filter of addresses.
#[test]
fn without_vlan_filtering_every_vlan_is_accepted() {
    let mut addresses = device(ADDRESSES);
    mode(&mut addresses, CTRL_RX_PROMISC, false);
    let filter = addresses.filter().unwrap();
    assert!((0..4096).all(|vlan| filter.accepts(OWN, Some(vlan))));
    assert!(device(F_CTRL_VQ).filter().is_none());
}

/// [DEV-NET-vlan-filtering-02] With it those of the table are, frames without a tag, and no others.
#[test]
fn vlans_are_filtered() {
    let mut device = device(F_CTRL_VQ | F_CTRL_VLAN);
    let wanted = [0, 1, 63, 64, 100, 4095];
    for vlan in wanted.into_iter().chain([7]) {
        order(&mut device, &Command::Vlan { vlan, wanted: true });
    }
    order(&mut device, &Command::Vlan { vlan: 7, wanted: false });
    let filter = device.filter().unwrap();
    let accepted: Vec<u16> = (0..4096).filter(|vlan| filter.accepts(OTHER, Some(*vlan))).collect();
    assert_eq!(accepted, wanted);
    assert!(filter.accepts(OTHER, None));
    for vlan in [4096, u16::MAX] {
        assert_eq!(device.control(&Command::Vlan { vlan, wanted: true }.to_bytes()), CTRL_ERR);
    }
}

/// [DEV-NET-cfg-14] Commands of features that were not negotiated are errors, and so are modes that are no 0 or 1; all
/// of them need the control queue, which is offered.
#[test]
fn modes_are_negotiated() {
    let mut device = device(F_CTRL_VQ | F_CTRL_RX);
    for (command, answer) in [
        (&[0, 0, 1][..], CTRL_OK),
        (&[0, 1, 0], CTRL_OK),
        (&[0, 2, 1], CTRL_ERR),
        (&[0, 5, 1], CTRL_ERR),
        (&[0, 6, 1], CTRL_ERR),
        (&[0, 0, 2], CTRL_ERR),
        (&[0, 0], CTRL_ERR),
        (&[0, 0, 1, 1], CTRL_ERR),
        (&[1, 1, 2, 0, 0, 0, 0, 9], CTRL_ERR),
        (&[2, 0, 1, 0], CTRL_ERR),
        (&[3, 0], CTRL_ERR),
    ] {
        assert_eq!(device.control(command), answer, "{command:?}");
    }
    let offered = device.negotiation().offered();
    assert_ne!(offered & F_CTRL_RX_EXTRA, 0);
    assert_ne!(offered & F_CTRL_VQ, 0);
    let all = F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_VLAN | F_CTRL_MAC_ADDR;
    assert_eq!(NetDevice::new(SETTINGS).unwrap().negotiation().offered() & all, 0);
}

/// A front-end that has the control queue for itself acks what is about it, and nothing is filtered for it.
#[test]
fn without_the_control_queue_nothing_is_filtered() {
    assert!(device(F_CTRL_RX | F_CTRL_VLAN).filter().is_none());
}
