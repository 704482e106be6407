use core::net::IpAddr;

use ringway_spec::net::{
    CTRL_ERR, CTRL_OK, F_CTRL_VQ, F_HASH_REPORT, F_MQ, F_RSS, HASH_TYPE_IPV4, HASH_TYPE_IPV6,
    HASH_TYPE_TCPV4, HASH_TYPE_TCPV6, HASH_TYPE_UDPV4, HASH_TYPE_UDPV6, RSS_TABLE_LEN,
};

use super::super::command::{Command, RssConfig};
use super::super::tests::SETTINGS;
use super::super::{NetDevice, Settings};
use super::*;

/// The key of Microsoft's "Verifying the RSS Hash Calculation".
const KEY: Key = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// An address and a port.
type Station = (&'static str, u16);

/// Its table: destination, source, the hash of the addresses, and of the ports too.
const VECTORS: [(Station, Station, u32, u32); 8] = [
    (("161.142.100.80", 1766), ("66.9.149.187", 2794), 0x323e_8fc2, 0x51cc_c178),
    (("65.69.140.83", 4739), ("199.92.111.2", 14230), 0xd718_262a, 0xc626_b0ea),
    (("12.22.207.184", 38024), ("24.19.198.95", 12898), 0xd2d0_a5de, 0x5c2b_394a),
    (("209.142.163.6", 2217), ("38.27.205.30", 48228), 0x8298_9176, 0xafc7_327f),
    (("202.188.127.2", 1303), ("153.39.163.191", 44251), 0x5d18_09c5, 0x10e8_28a2),
    (("3ffe:2501:200:3::1", 1766), ("3ffe:2501:200:1fff::7", 2794), 0x2cc1_8cd5, 0x4020_7d3d),
    (("ff02::1", 4739), ("3ffe:501:8::260:97ff:fe40:efab", 14230), 0x0f0c_461c, 0xdde5_1bbf),
    (
        ("fe80::200:f8ff:fe21:67cf", 38024),
        ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251),
        0x4b61_e985,
        0x02d1_feef,
    ),
];

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A frame with these tags before its type, and these extension headers (their kind, and their bytes but for the next
/// one's kind) before its payload of ports.
fn frame(n: usize, protocol: u8, tags: &[[u8; 4]], extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let ((dst, dst_port), (src, src_port), ..) = VECTORS[n];
    let (dst, src): (IpAddr, IpAddr) = (dst.parse().unwrap(), src.parse().unwrap());
    let mut frame = Vec::from([0; 12]);
    frame.extend(tags.iter().flatten());
    match (dst, src) {
        (IpAddr::V4(dst), IpAddr::V4(src)) => {
            frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(src.octets().iter().chain(&dst.octets()));
        }
        (IpAddr::V6(dst), IpAddr::V6(src)) => {
            let kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).chain([protocol]).collect();
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, kinds[0], 64]);
            frame.extend(src.octets().iter().chain(&dst.octets()));
            for ((_, bytes), next) in extensions.iter().zip(&kinds[1..]) {
                frame.push(*next);
                frame.extend(*bytes);
            }
        }
        _ => unreachable!(),
    }
    frame.extend(src_port.to_be_bytes());
    frame.extend(dst_port.to_be_bytes());
    frame.extend([0; 16]);
    frame
}

fn steering(types: u32) -> Steering {
    Steering::new(Some(&HashConfig { types, key: KEY, key_len: 40 }), None)
}

fn hash(value: u32, kind: u32) -> Hash {
    Hash { value, report: kind.trailing_zeros() as u16 + 1 }
}

/// [DEV-NET-rss-processing-01] The hash is Microsoft's, of each type, and the type that covers most is the one.
#[test]
fn hashes_are_those_of_the_verification_suite() {
    for (n, &(.., addresses, ports)) in VECTORS.iter().enumerate() {
        let [ip, tcp, udp] = if n < 5 {
            [HASH_TYPE_IPV4, HASH_TYPE_TCPV4, HASH_TYPE_UDPV4]
        } else {
            [HASH_TYPE_IPV6, HASH_TYPE_TCPV6, HASH_TYPE_UDPV6]
        };
        for (protocol, types, expected) in [
            (TCP, HASH_TYPES, hash(ports, tcp)),
            (UDP, HASH_TYPES, hash(ports, udp)),
            (TCP, ip, hash(addresses, ip)),
            (TCP, ip | udp, hash(addresses, ip)),
            (UDP, ip | tcp, hash(addresses, ip)),
            (UDP, udp, hash(ports, udp)),
            (1, HASH_TYPES, hash(addresses, ip)),
            (TCP, HASH_TYPES & !(ip | tcp), Hash::default()),
            (1, tcp | udp, Hash::default()),
            (TCP, 0, Hash::default()),
        ] {
            let steering = steering(types);
            for tags in [&[][..], &[[0x81, 0, 0, 7]], &[[0x88, 0xa8, 0, 7], [0x81, 0, 0, 7]]] {
                let found = steering.hash(&frame(n, protocol, tags, &[]));
                assert_eq!(found, expected, "{n}, protocol {protocol}, types {types:#x}, tags {tags:?}");
            }
        }
    }
}

/// What a driver reads in the header is the number of the type, from 1 on.
#[test]
fn reports_are_named_by_their_type() {
    let types =
        [HASH_TYPE_IPV4, HASH_TYPE_TCPV4, HASH_TYPE_UDPV4, HASH_TYPE_IPV6, HASH_TYPE_TCPV6, HASH_TYPE_UDPV6];
    let frames = [(0, 1), (0, TCP), (0, UDP), (5, 1), (5, TCP), (5, UDP)];
    for (i, (kind, (n, protocol))) in types.into_iter().zip(frames).enumerate() {
        let report = steering(kind).hash(&frame(n, protocol, &[], &[])).report();
        assert_eq!((usize::from(report.report.get()), report.padding.get()), (i + 1, 0));
        assert_ne!(report.value.get(), 0);
    }
    assert_eq!(steering(HASH_TYPES).hash(&[0; 60]).report(), HashReport::default());
}

/// A fragment is hashed by its addresses, whichever part of its datagram it is.
#[test]
fn fragments_have_no_ports() {
    let steering = steering(HASH_TYPES);
    for [high, low] in [[0x20, 0], [0x20, 5], [0, 5], [1, 0]] {
        let mut bytes = frame(0, UDP, &[], &[]);
        (bytes[20], bytes[21]) = (high, low);
        assert_eq!(steering.hash(&bytes), hash(VECTORS[0].2, HASH_TYPE_IPV4));
    }
    for (high, low, expected) in [
        (0, 1, hash(VECTORS[5].2, HASH_TYPE_IPV6)),
        (0, 8, hash(VECTORS[5].2, HASH_TYPE_IPV6)),
        (1, 0, hash(VECTORS[5].2, HASH_TYPE_IPV6)),
        // The whole datagram in one fragment.
        (0, 6, hash(VECTORS[5].3, HASH_TYPE_UDPV6)),
    ] {
        let fragment = (44, &[0, high, low, 0, 0, 0, 0][..]);
        assert_eq!(steering.hash(&frame(5, UDP, &[], &[fragment])), expected, "{high} {low}");
    }
}

/// Extension headers are stepped over, to the ports; too many, and to none.
#[test]
fn extension_headers_are_stepped_over() {
    let steering = steering(HASH_TYPES);
    let options = (0, &[0, 0, 0, 0, 0, 0, 0][..]);
    let long = (60, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]);
    let routing = (43, &[0, 0, 0, 0, 0, 0, 0][..]);
    let authentication = (51, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]);
    let with_ports = hash(VECTORS[6].3, HASH_TYPE_TCPV6);
    for extensions in [&[options][..], &[long], &[options, routing, long, authentication]] {
        assert_eq!(steering.hash(&frame(6, TCP, &[], extensions)), with_ports, "{extensions:?}");
    }
    let addresses = hash(VECTORS[6].2, HASH_TYPE_IPV6);
    assert_eq!(steering.hash(&frame(6, TCP, &[], &[options; 8])), addresses);
}

/// [DEV-NET-inner-header-hash-01] A packet in a tunnel is hashed by its outer headers.
#[test]
fn tunnels_are_hashed_outside() {
    let steering = steering(HASH_TYPES);
    let inner = frame(1, TCP, &[], &[]);
    for (protocol, expected) in [
        (4, hash(VECTORS[0].2, HASH_TYPE_IPV4)),
        (47, hash(VECTORS[0].2, HASH_TYPE_IPV4)),
        (UDP, hash(VECTORS[0].3, HASH_TYPE_UDPV4)),
    ] {
        let outer = frame(0, protocol, &[], &[]);
        let headers = if protocol == UDP { 14 + 20 + 8 } else { 14 + 20 };
        let inner = if protocol == UDP { &inner[..] } else { &inner[14..] };
        assert_eq!(steering.hash(&[&outer[..headers], inner].concat()), expected, "{protocol}");
    }
}

/// What is cut off is not read; whatever the bytes, there is an answer.
#[test]
fn frames_may_end_anywhere() {
    let steering = steering(HASH_TYPES);
    let extensions: [(u8, &[u8]); 2] = [(0, &[0; 7]), (51, &[255, 0, 0, 0, 0, 0, 0])];
    for bytes in [frame(0, TCP, &[[0x81, 0, 0, 1]], &[]), frame(5, UDP, &[], &extensions)] {
        for len in 0..bytes.len() {
            let cut = steering.hash(&bytes[..len]);
            let whole = steering.hash(&bytes);
            assert!(cut == whole || cut.report < whole.report, "{len}");
        }
    }
    let whole = frame(0, TCP, &[], &[]);
    let mut short = whole.clone();
    short[14] = 0x44;
    assert_eq!(steering.hash(&short), hash(VECTORS[0].2, HASH_TYPE_IPV4), "a header of 16 bytes is none");
    assert_eq!(steering.hash(&[[0x81, 0].as_slice(); 40].concat()), Hash::default(), "tags without an end");
}

fn device() -> NetDevice {
    let mut device = NetDevice::new(Settings { rss: true, ..SETTINGS }).unwrap();
    device.negotiation_mut().ack(F_RSS | F_HASH_REPORT | F_MQ | F_CTRL_VQ).unwrap();
    device
}

fn rss(types: u32, entries: &[u16], unclassified: u16) -> RssConfig {
    let table = QueueTable { entries: entries.to_vec(), unclassified };
    RssConfig { hash: HashConfig { types, key: KEY, key_len: 40 }, table, transmit: 1 }
}

/// [DEV-NET-rss-processing-02] [DEV-NET-rss-processing-03] The masked hash is an index into the table; without a hash
/// the frame goes to the queue for these.
#[test]
fn the_table_leads_to_queues() {
    let mut device = device();
    assert_eq!(
        device.steering().queue(Hash::default()),
        None,
        "before the driver says so the device chooses"
    );
    for bits in 0..=7 {
        let entries: Vec<u16> = (0..1_u16 << bits).map(|i| (i * 5 + 1) % 8).collect();
        let command = Command::Rss(rss(HASH_TYPES, &entries, 3)).to_bytes();
        assert_eq!(device.control(&command), CTRL_OK);
        let steering = device.steering();
        for (n, &(.., value)) in VECTORS.iter().enumerate() {
            let hash = steering.hash(&frame(n, TCP, &[], &[]));
            let expected = entries[value as usize & (entries.len() - 1)];
            assert_eq!(steering.queue(hash), Some(expected), "{n}, {bits} bits");
        }
        assert_eq!(steering.queue(steering.hash(&[0; 60])), Some(3));
    }
    assert_eq!(device.active_pairs(), 8);
}

/// The command as its bytes: the reserved bit of a queue is not looked at, a short key is filled up.
#[test]
fn the_command_is_as_specified() {
    let mut device = device();
    let head = [4, 1, 0x3f, 0, 0, 0, 1, 0, 2, 0x80, 1, 0x80, 0, 0, 4, 0];
    assert_eq!(device.control(&[&head[..], &[3], &KEY[..3]].concat()), CTRL_OK);
    let mut key = [0; 40];
    key[..3].copy_from_slice(&KEY[..3]);
    let hash = HashConfig { types: 0x3f, key, key_len: 3 };
    assert_eq!(device.orders.hash, Some(hash));
    let table = QueueTable { entries: Vec::from([1, 0]), unclassified: 2 };
    assert_eq!(device.orders.rss, Some((table, 4)));
    assert_eq!(device.active_pairs(), 3);
}

/// A command that asks for what is not there changes nothing.
#[test]
fn impossible_tables_are_refused() {
    let mut device = device();
    let good = rss(HASH_TYPES, &[0, 1], 0);
    assert_eq!(device.control(&Command::Rss(good.clone()).to_bytes()), CTRL_OK);
    let before = device.orders.clone();
    let refused = [
        rss(HASH_TYPES | 1 << 6, &[0], 0),
        rss(HASH_TYPES, &[0, 8], 0),
        rss(HASH_TYPES, &[0], 8),
        rss(HASH_TYPES, &[0, 1, 2], 0),
        rss(HASH_TYPES, &[0; 256], 0),
        RssConfig { transmit: 0, ..good.clone() },
        RssConfig { transmit: 9, ..good.clone() },
    ];
    for config in refused {
        assert_eq!(device.control(&Command::Rss(config.clone()).to_bytes()), CTRL_ERR, "{config:?}");
    }
    let bytes = Command::Rss(good.clone()).to_bytes();
    for len in 0..bytes.len() {
        assert_eq!(device.control(&bytes[..len]), CTRL_ERR, "{len} bytes");
    }
    let long_key = [&bytes[..bytes.len() - 41], &[41], &KEY, &[0]].concat();
    assert_eq!(device.control(&long_key), CTRL_ERR);
    assert_eq!(device.control(&[&bytes[..], &[0]].concat()), CTRL_ERR);
    let hash = HashConfig { types: 1 << 6, ..good.hash };
    assert_eq!(device.control(&Command::Hash(hash).to_bytes()), CTRL_ERR);
    assert_eq!(device.orders, before);
}

/// Hashes can be reported while the device chooses the queues; and again, after a table, by the other command.
#[test]
fn hashes_without_a_table() {
    let mut device = device();
    let config = rss(HASH_TYPES, &[5], 5);
    let bytes = frame(0, TCP, &[], &[]);
    for command in [Command::Hash(config.hash), Command::Pairs(4)] {
        assert_eq!(device.control(&Command::Rss(config.clone()).to_bytes()), CTRL_OK);
        assert_eq!(device.steering().queue(device.steering().hash(&bytes)), Some(5));
        assert_eq!(device.control(&command.to_bytes()), CTRL_OK);
        let steering = device.steering();
        assert_eq!(steering.hash(&bytes), hash(VECTORS[0].3, HASH_TYPE_TCPV4));
        assert_eq!(steering.queue(steering.hash(&bytes)), None);
    }
    assert_eq!(device.active_pairs(), 4);
    device.reset();
    device.negotiation_mut().ack(F_RSS | F_CTRL_VQ).unwrap();
    assert_eq!(device.control(&Command::Hash(config.hash).to_bytes()), CTRL_ERR, "not negotiated");
    assert!(!device.steering().hashes(), "a reset forgets");
}

/// [DEV-NET-cfg-07] [DEV-NET-cfg-08] [DEV-NET-cfg-13] What drivers need to know to set it up, and what it needs.
#[test]
fn the_configuration_says_how_much() {
    let device = device();
    let mut bytes = [0; 24];
    device.read_config(0, &mut bytes);
    assert!(bytes[17] >= 40);
    assert!(u16::from_le_bytes([bytes[18], bytes[19]]) >= RSS_TABLE_LEN);
    assert_eq!(bytes[20..], HASH_TYPES.to_le_bytes());
    let needed = F_CTRL_VQ | F_HASH_REPORT | F_RSS;
    assert_eq!(device.negotiation().offered() & needed, needed);
    let without = NetDevice::new(SETTINGS).unwrap();
    assert_eq!(without.negotiation().offered() & needed, F_CTRL_VQ);
    without.read_config(0, &mut bytes);
    assert_eq!(bytes[12..], [0; 12]);
}
