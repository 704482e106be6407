use super::*;
use ringway_memory::GuestSlice;

fn hash(mut bytes: Vec<u8>) -> u32 {
    let slices = [GuestSlice::from_mut(&mut bytes)];
    let data = GuestBuf::new(&slices);
    let Some(ethernet) = Ethernet::read(data) else { return 0 };
    Frame { header: None, ethernet, prefix: Prefix::default(), data }.flow_hash()
}

#[test]
fn macs_are_read_and_written() {
    let mac: Mac = "02:00:5e:10:fF:01".parse().unwrap();
    assert_eq!(mac.octets(), [2, 0, 0x5e, 0x10, 0xff, 1]);
    assert_eq!(mac, Mac::new(mac.octets()));
    assert_eq!(mac.to_string(), "02:00:5e:10:ff:01");
    for wrong in [
        "",
        "02:00:5e:10:ff",
        "02:00:5e:10:ff:01:02",
        "2:0:0:0:0:1",
        "02-00-5e-10-ff-01",
        "02:00:5e:10:ff:0g",
    ] {
        assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
    }
}

fn read(mut bytes: Vec<u8>) -> Option<Ethernet> {
    let slices = [GuestSlice::from_mut(&mut bytes)];
    Ethernet::read(GuestBuf::new(&slices))
}

#[test]
fn headers_are_read() {
    let mut bytes = vec![1, 2, 3, 4, 5, 6, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0x81, 0, 0xe1, 5, 8, 0];
    let (dst, src) = (Mac::new([1, 2, 3, 4, 5, 6]), Mac::new([0xa, 0xb, 0xc, 0xd, 0xe, 0xf]));
    assert_eq!(read(bytes.clone()), Some(Ethernet { dst, src, vlan: 0x105, len: 18 }));
    bytes[12] = 0x88;
    assert_eq!(read(bytes.clone()), Some(Ethernet { dst, src, vlan: 0, len: 14 }));
    for len in 14..=18 {
        assert_eq!(read(bytes[..len].to_vec()), Some(Ethernet { dst, src, vlan: 0, len: 14 }));
    }
    assert_eq!(read(bytes[..13].to_vec()), None);
    bytes[12] = 0x81;
    for len in 14..18 {
        assert_eq!(read(bytes[..len].to_vec()), None, "it ends inside of its tag");
    }
}

/// A tag is added, changed and taken away; the rest of the frame stays, and places in it move along.
#[test]
fn tags_are_changed() {
    let plain: Vec<u8> = (0..40).map(|n| n * 3).collect();
    let tagged = |tci: u16| [&plain[..12], &[0x81, 0], &tci.to_be_bytes()[..], &plain[12..]].concat();
    let cases = [
        (plain.clone(), Retag::Keep, plain.clone(), 0),
        (plain.clone(), Retag::Push(7), tagged(7), 4),
        (tagged(0xa000), Retag::Set(7), tagged(0xa007), 0),
        (tagged(0xb007), Retag::Pop, plain.clone(), -4),
    ];
    for (mut bytes, retag, wanted, moved) in cases {
        let slices = [GuestSlice::from_mut(&mut bytes)];
        let data = GuestBuf::new(&slices);
        let ethernet = Ethernet::read(data).unwrap();
        let header =
            Header { csum_start: 34.into(), csum_offset: 6.into(), hdr_len: 38.into(), ..Header::default() };
        let frame = Frame { header: Some(header), ethernet, prefix: Prefix::default(), data };
        let frame = frame.retagged(retag);
        let mut got = Vec::new();
        frame.copy_to(&mut got);
        assert_eq!(got, wanted, "{retag:?}");
        assert_eq!(Some(frame.ethernet), read(wanted), "{retag:?}");
        let Header { csum_start, csum_offset, hdr_len, .. } = frame.header.unwrap();
        let places = [csum_start, csum_offset, hdr_len].map(|place| i32::from(place.get()));
        assert_eq!(places, [34 + moved, 6, 38 + moved], "{retag:?}");
    }
}

#[test]
fn kinds_of_addresses() {
    assert!(
        Mac::new([0xff; 6]).is_multicast() && !Mac::new([2, 0xff, 0xff, 0xff, 0xff, 0xff]).is_multicast()
    );
    assert!(
        Mac::new([1, 0x80, 0xc2, 0, 0, 0]).is_link_local()
            && Mac::new([1, 0x80, 0xc2, 0, 0, 15]).is_link_local()
    );
    assert!(!Mac::new([1, 0x80, 0xc2, 0, 0, 16]).is_link_local());
}

/// Every prefix of a frame has a hash, and what belongs to a flow changes it while other bytes do not.
#[test]
fn flows_are_told_apart() {
    let mut udp = vec![0xff; 12];
    udp.extend([8, 0, 0x45, 0, 0, 40, 1, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4, 9, 9]);
    for len in 0..udp.len() {
        hash(udp[..len].to_vec());
    }
    let with = |at: usize, value: u8| {
        let mut other = udp.clone();
        other[at] = value;
        hash(other)
    };
    let same = hash(udp.clone());
    assert_eq!(with(18, 77), same, "the datagram's number is no part of the flow");
    assert_eq!(with(38, 77), same, "nor is the payload");
    for at in [23, 26, 30, 34, 37] {
        assert_ne!(with(at, 77), same, "byte {at}");
    }
    let fragments = [with(20, 0x20), {
        let mut f = udp.clone();
        f[20] = 0x20;
        f[34] = 77;
        hash(f)
    }];
    assert_eq!(fragments[0], fragments[1], "a fragment's payload is not its ports");
}

/// Other addresses come before the rest of the frame, wherever the room for them ends, and its flow stays what it was.
#[test]
fn addresses_are_replaced() {
    let mut bytes: Vec<u8> = (0..64).collect();
    bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
    let flow = hash(bytes.clone());
    let mut wanted = bytes.clone();
    wanted[..12].copy_from_slice(&[6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]);
    let slices = [GuestSlice::from_mut(&mut bytes)];
    let data = GuestBuf::new(&slices);
    let ethernet = Ethernet::read(data).unwrap();
    let mut frame = Frame { header: None, ethernet, prefix: Prefix::default(), data };
    frame.set_addresses(ethernet.src, ethernet.dst);
    assert_eq!((frame.len(), frame.flow_hash()), (64, flow));
    let mut copy = vec![0xff; 3];
    frame.copy_to(&mut copy);
    assert_eq!(copy, wanted);
    for first in 1..16 {
        let mut room = [0; 16];
        let (one, other) = room.split_at_mut(first);
        let slices = [GuestSlice::from_mut(one), GuestSlice::from_mut(other)];
        frame.prefix.write(GuestBuf::new(&slices));
        assert_eq!(room[..12], wanted[..12], "{first}");
        assert_eq!(room[12..], [0; 4], "{first}");
    }
}

/// A tag is 4 bytes behind the addresses.
#[test]
fn a_prefix_may_have_a_tag() {
    let prefix = Prefix::new(Mac::new([1, 2, 3, 4, 5, 6]), Mac::new([7, 8, 9, 10, 11, 12]), Some(0x2123));
    assert_eq!(prefix.len(), 16);
    assert_eq!(prefix.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x81, 0, 0x21, 0x23]);
}

/// What a sender writes after it was looked at changes neither the addresses nor the tag that a frame is delivered with.
#[test]
fn what_was_read_is_what_is_delivered() {
    let tag = [0x81, 0, 0x60, 5, 8, 0];
    for kind in [&[8, 0][..], &tag] {
        let mut bytes = [&[2; 6][..], &[4; 6], kind, &[7; 50]].concat();
        let wanted = bytes.clone();
        let slices = [GuestSlice::from_mut(&mut bytes)];
        let data = GuestBuf::new(&slices);
        let ethernet = Ethernet::read(data).unwrap();
        let frame = Frame { header: None, ethernet, prefix: Prefix::default(), data };
        // Another source, and another VLAN if there is one.
        data.advance(6).write(&[9; 6]);
        if kind.len() > 2 {
            data.advance(14).write(&[0x60, 6]);
        }
        let settled = frame.settled().unwrap();
        assert_eq!((settled.len(), settled.ethernet), (wanted.len(), ethernet));
        assert_eq!(settled.flow_hash(), hash(wanted.clone()));
        let mut copy = Vec::new();
        settled.copy_to(&mut copy);
        assert_eq!(copy, wanted);
        let mut room = vec![0; 20];
        settled.prefix.write(GuestBuf::new(&[GuestSlice::from_mut(&mut room)]));
        assert_eq!(room[..settled.prefix.len()], wanted[..settled.prefix.len()]);
        // A tag where there was none.
        data.advance(12).write(&tag);
        assert_eq!(frame.settled().is_none(), kind.len() == 2);
    }
}
