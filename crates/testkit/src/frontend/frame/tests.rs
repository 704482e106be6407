//! Tests of the frame builder against the checker and against frames with known checksums.

use super::*;

fn flow(src: &str, dst: &str) -> Flow {
    Flow {
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        src_ip: src.parse().unwrap(),
        dst_ip: dst.parse().unwrap(),
        src_port: 1000,
        dst_port: 2000,
    }
}

fn flows() -> [Flow; 2] {
    [flow("10.0.0.1", "10.0.0.2"), flow("fd00::1", "fd00::2")]
}

#[test]
fn a_datagram_summed_by_hand() {
    let frame = udp(&flow("10.0.0.1", "10.0.0.2"), b"hi", Checksum::Complete);
    // 4500 + 001e + 4000 + 4011 + 0a00 + 0001 + 0a00 + 0002 = d932; its complement:
    assert_eq!(frame[24..26], [0x26, 0xcd]);
    // 0a00 + 0001 + 0a00 + 0002 + 0011 + 000a, then 03e8 + 07d0 + 000a + 6869 = 8849; its complement:
    assert_eq!(frame[40..42], [0x77, 0xb6]);
    check(&frame).unwrap();
}

#[test]
fn complete_checksums_hold_for_all_lengths() {
    for flow in flows() {
        for length in 0..300 {
            let payload: Vec<u8> = (0..length).map(|i: u16| (i * 7) as u8).collect();
            check(&udp(&flow, &payload, Checksum::Complete)).unwrap();
            check(&tcp(&flow, 77, 0x18, &payload, Checksum::Complete)).unwrap();
        }
    }
}

#[test]
fn a_partial_checksum_is_wrong_until_completed() {
    for flow in flows() {
        for mut frame in
            [udp(&flow, b"payload", Checksum::Partial), tcp(&flow, 1, 0x10, b"odd", Checksum::Partial)]
        {
            assert!(check(&frame).is_err());
            let header = partial_header(&frame).unwrap();
            complete(&header, &mut frame).unwrap();
            check(&frame).unwrap();
        }
    }
}

#[test]
fn one_changed_byte_is_noticed() {
    let frame = tcp(&flows()[0], 1, 0x10, b"payload", Checksum::Complete);
    for at in ETHERNET_LEN..frame.len() {
        let mut spoiled = frame.clone();
        spoiled[at] ^= 0x10;
        assert!(check(&spoiled).is_err(), "byte {at}");
    }
}

#[test]
fn a_tag_and_padding_change_nothing_for_the_checker() {
    let mut frame = tagged(&udp(&flows()[0], b"x", Checksum::Complete), 0x2005);
    assert_eq!(frame[12..18], [0x81, 0x00, 0x20, 0x05, 0x08, 0x00]);
    frame.resize(64, 0);
    check(&frame).unwrap();
}
