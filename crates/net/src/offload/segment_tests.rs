//! What the kernel cannot be asked (`tests/kernel.rs` asks it): lies, and fragments behind extension headers.

use ringway_spec::net::GSO_UDP_L4;

use super::*;

/// A frame with `payload` bytes to be segmented into pieces of `size`, and the header before it.
fn frame(gso_type: u8, is_v6: bool, payload: usize, size: u16) -> (Header, Vec<u8>) {
    let is_tcp = matches!(gso_type & !GSO_ECN, GSO_TCPV4 | GSO_TCPV6);
    let (protocol, transport_len, csum_offset) = if is_tcp { (TCP, 20, 16_u16) } else { (UDP, 8, 6) };
    let len = transport_len + payload;
    let mut frame = vec![2; 12];
    if is_v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, (len >> 8) as u8, len as u8, protocol, 64]);
        frame.extend([1; 32]);
    } else {
        let len = len + 20;
        frame.extend([8, 0, 0x45, 0, (len >> 8) as u8, len as u8, 0, 7, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend([1; 8]);
    }
    let csum_start = frame.len();
    if is_tcp {
        frame.extend([0, 1, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0xff, 1, 1, 0, 0, 0, 0]);
    } else {
        frame.extend([0, 1, 0, 2, (len >> 8) as u8, len as u8, 0, 0]);
    }
    // Addresses and protocol, let us say, sum up to this.
    let sum = Sum::from(0x1000) + Sum::from(len as u16);
    let field = csum_start + usize::from(csum_offset);
    frame[field..field + 2].copy_from_slice(&sum.partial().get().to_be_bytes());
    frame.extend((0..payload).map(|n| n as u8));
    let header = Header {
        flags: HDR_F_NEEDS_CSUM,
        gso_type,
        gso_size: size.into(),
        csum_start: (csum_start as u16).into(),
        csum_offset: csum_offset.into(),
        ..Header::default()
    };
    (header, frame)
}

fn cut((header, frame): &(Header, Vec<u8>)) -> Result<Vec<Vec<u8>>, SegmentError> {
    let mut segmenter = Segmenter::new(*header, frame, frame.len())?;
    let mut segments = Vec::new();
    while let Some(segment) = segmenter.next_segment() {
        segments.push([segment.headers, &frame[segment.payload]].concat());
    }
    Ok(segments)
}

/// Every header that is cut off, and every length and position that is a lie.
#[test]
fn lies_are_found() {
    for (gso_type, is_v6) in
        [(GSO_TCPV4, false), (GSO_TCPV6, true), (GSO_UDP, false), (GSO_UDP, true), (GSO_UDP_L4, true)]
    {
        let (header, right) = frame(gso_type, is_v6, 100, 40);
        assert!(cut(&(header, right.clone())).unwrap().len() >= 3);
        for len in 0..right.len() {
            assert!(Segmenter::new(header, &right[..len], len).is_err(), "{len} bytes of {gso_type}");
        }
        let headers = usize::from(Segmenter::new(header, &right, right.len()).unwrap().hdr_len());
        for len in 0..headers {
            let result = Segmenter::new(header, &right[..len], right.len());
            assert_eq!(result.unwrap_err(), SegmentError::Truncated, "{len} bytes seen of {gso_type}");
        }
        let mut longer = right.clone();
        longer.push(0);
        assert!(matches!(cut(&(header, longer)), Err(SegmentError::Length { .. })));
        for (start, offset) in [(1, 0), (u16::MAX, 0), (0, 1), (0, u16::MAX)] {
            let header = Header {
                csum_start: header.csum_start.get().wrapping_add(start).into(),
                csum_offset: header.csum_offset.get().wrapping_add(offset).into(),
                ..header
            };
            assert_eq!(cut(&(header, right.clone())), Err(SegmentError::Checksum));
        }
        for other in [0, 2, 6, 0x21, 0x7f] {
            let result = cut(&(Header { gso_type: other, ..header }, right.clone()));
            assert_eq!(result, Err(SegmentError::Type(other)));
        }
        let size = |size: u16| cut(&(Header { gso_size: size.into(), ..header }, right.clone()));
        assert_eq!(size(0), Err(SegmentError::Size(0)));
        assert_eq!(size(7).is_err(), gso_type == GSO_UDP, "a fragment has eight bytes at least");
    }
}

/// A byte changed, and what is said of it.
#[test]
fn headers_that_contradict_the_frame() {
    let is = |gso_type, is_v6, at: usize, byte: u8| {
        let (header, mut bytes) = frame(gso_type, is_v6, 100, 40);
        bytes[at] = byte;
        cut(&(header, bytes)).err()
    };
    let v4 = |at, byte| is(GSO_TCPV4, false, at, byte);
    let v6 = |at, byte| is(GSO_TCPV6, true, at, byte);
    assert_eq!(v4(12, 0x86), Some(SegmentError::Protocol(0x8600)));
    assert_eq!(v4(14, 0x55), Some(SegmentError::Header), "another version");
    assert_eq!(v4(14, 0x44), Some(SegmentError::Header), "a header of four words");
    assert_eq!(v4(20, 0x20), Some(SegmentError::Fragment), "more fragments");
    assert_eq!(v4(21, 1), Some(SegmentError::Fragment), "not the first");
    assert_eq!(v4(23, UDP), Some(SegmentError::Protocol(17)));
    assert_eq!(v4(46, 0x40), Some(SegmentError::Header), "a TCP header of four words");
    assert_eq!(v4(46, 0xf0), None, "payload as good as options");
    assert_eq!(v6(14, 0x45), Some(SegmentError::Header));
    assert_eq!(v6(20, FRAGMENT), Some(SegmentError::Fragment));
    assert_eq!(v6(20, 50), Some(SegmentError::Protocol(50)));
    assert_eq!(is(GSO_UDP_L4, false, 39, 9), Some(SegmentError::Length { says: 9, are: 108 }));
    // The types of IP and the segmentation have to go together.
    let (header, bytes) = frame(GSO_TCPV6, false, 100, 40);
    assert_eq!(cut(&(header, bytes)), Err(SegmentError::Protocol(TYPE_IPV4)));
    let (header, bytes) = frame(GSO_TCPV4, true, 100, 40);
    assert_eq!(cut(&(header, bytes)), Err(SegmentError::Protocol(TYPE_IPV6)));
}

/// Puts extension headers, of these types and lengths in units of eight bytes, behind IPv6's own.
fn extend((mut header, mut frame): (Header, Vec<u8>), chain: &[(u8, u8)]) -> (Header, Vec<u8>) {
    for &(kind, units) in chain.iter().rev() {
        let next = std::mem::replace(&mut frame[20], kind);
        let len = (usize::from(units) + 1) * 8;
        frame.splice(54..54, [next, units].into_iter().chain(std::iter::repeat_n(0, len - 2)));
        header.csum_start = (header.csum_start.get() + len as u16).into();
    }
    let len = frame.len() as u16 - 54;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    (header, frame)
}

/// Extension headers end at the end of the frame, or of what is looked at.
#[test]
fn a_chain_of_extension_headers_ends() {
    let tcp = |chain: &[(u8, u8)]| extend(frame(GSO_TCPV6, true, 3000, 1000), chain);
    assert_eq!(
        cut(&tcp(&[(HOP_BY_HOP, 0), (DESTINATION, 9), (ROUTING, 2), (DESTINATION, 0)])).unwrap().len(),
        3
    );
    assert_eq!(cut(&tcp(&[(DESTINATION, 0); 50])).unwrap().len(), 3, "54 + 400 + 20 bytes");
    for chain in [&[(DESTINATION, 0); 60][..], &[(ROUTING, 255)], &[(HOP_BY_HOP, 255); 9]] {
        assert_eq!(cut(&tcp(chain)), Err(SegmentError::Truncated));
    }
    let (header, mut loops) = tcp(&[(DESTINATION, 0); 50]);
    for at in (54..454).step_by(8) {
        loops[at] = DESTINATION;
    }
    // The TCP header reads as options then: ports 1 and 2, of which the first is the length.
    loops[454] = DESTINATION;
    assert!(cut(&(header, loops)).is_err());
}

/// The place of a fragment, whether more follow, and what it carries.
fn fragment(frame: &[u8], at: usize) -> (usize, bool, &[u8]) {
    let word = usize::from(u16::from_be_bytes([frame[at + 2], frame[at + 3]]));
    (word & !7, word & 1 != 0, &frame[at + 8..])
}

/// Fragments repeat what is in front of their own header, and carry the rest, the other extension headers included, where
/// it belongs (RFC 8200, 4.5).
#[test]
fn fragments_behind_extension_headers() {
    for (chain, repeated) in [
        (&[][..], 0),
        (&[(HOP_BY_HOP, 1)], 16),
        (&[(DESTINATION, 1)], 0),
        (&[(HOP_BY_HOP, 0), (DESTINATION, 1)], 8),
        (&[(HOP_BY_HOP, 0), (DESTINATION, 1), (ROUTING, 0), (DESTINATION, 2)], 32),
    ] {
        let whole = extend(frame(GSO_UDP, true, 1000, 100), chain);
        let at = 54 + repeated;
        let fragments = cut(&whole).unwrap();
        let last_kind = if repeated == 0 { 20 } else { at - chain_tail(chain) };
        let mut payload: Vec<u8> = Vec::new();
        for (n, bytes) in fragments.iter().enumerate() {
            assert_eq!(bytes[..18], whole.1[..18]);
            assert_eq!(usize::from(u16::from_be_bytes([bytes[18], bytes[19]])), bytes.len() - 54);
            assert_eq!(bytes[last_kind], FRAGMENT);
            assert_eq!(bytes[at], whole.1[last_kind], "the fragment header says what was said before");
            assert_eq!(bytes[at + 4..at + 8], fragments[0][at + 4..at + 8], "one number");
            let (place, has_more, carried) = fragment(bytes, at);
            assert_eq!((place, has_more), (payload.len(), n + 1 < fragments.len()));
            assert!(carried.len() == 96 || !has_more, "{}: 100, a multiple of eight", carried.len());
            payload.extend(carried);
        }
        assert_eq!(payload, whole.1[at..], "{chain:?}");
    }
    let (other, one) =
        [frame(GSO_UDP, true, 100, 40), frame(GSO_UDP, true, 100, 40)].map(|f| cut(&f).unwrap()).into();
    assert_ne!(one[0][58..62], other[0][58..62], "each datagram has its own number");
    // The first fragment has all headers (RFC 7112).
    let deep = extend(frame(GSO_UDP, true, 1000, 64), &[(DESTINATION, 7)]);
    assert_eq!(cut(&deep), Err(SegmentError::Size(64)));
}

/// Length of the last header that fragments repeat.
fn chain_tail(chain: &[(u8, u8)]) -> usize {
    let end = chain.iter().rposition(|(kind, _)| *kind != DESTINATION).expect("one is repeated");
    (usize::from(chain[end].1) + 1) * 8
}

/// What fits one segment is one, and as it was: not everybody counts the headers alike.
#[test]
fn a_frame_that_fits() {
    for (gso_type, is_v6) in [(GSO_TCPV4, false), (GSO_TCPV6, true), (GSO_UDP, true), (GSO_UDP_L4, true)] {
        for (payload, size) in [(0, 1), (1, 9), (100, 108), (100, u16::MAX)] {
            if gso_type == GSO_UDP && payload + 8 > size {
                continue;
            }
            let whole = frame(gso_type, is_v6, payload.into(), size);
            let segments = cut(&whole).unwrap();
            assert_eq!(segments.len(), 1);
            let sum = if is_v6 { 0..0 } else { 24..26 };
            let mut same = segments[0].clone();
            same[sum.clone()].copy_from_slice(&whole.1[sum]);
            assert_eq!(same, whole.1);
        }
    }
}

/// The longest packets, in the shortest pieces and in the longest.
#[test]
fn the_longest_packets() {
    let v4 = 65535 - 40;
    assert_eq!(cut(&frame(GSO_TCPV4, false, v4, 1)).unwrap().len(), v4);
    let v6 = 65535 - 20;
    assert_eq!(cut(&frame(GSO_TCPV6, true, v6, 1)).unwrap().len(), v6);
    let udp = 65535 - 8;
    assert_eq!(cut(&frame(GSO_UDP, true, udp, 8)).unwrap().len(), 8192);
    assert_eq!(cut(&frame(GSO_UDP, true, udp, 65_520)).unwrap().len(), 2);
    assert_eq!(
        cut(&frame(GSO_UDP, true, udp, 65_528)),
        Err(SegmentError::Size(65_528)),
        "with its header too long"
    );
}

/// Whoever takes partial checksums is told where; it is the sum of the pseudo-header again.
#[test]
fn a_segment_says_where_its_checksum_is() {
    let (header, bytes) = frame(GSO_TCPV4, false, 100, 60);
    let mut segmenter = Segmenter::new(header, &bytes, bytes.len()).unwrap();
    for len in [60_u16, 40] {
        let segment = segmenter.next_segment().unwrap();
        let expected = Header {
            flags: HDR_F_NEEDS_CSUM,
            csum_start: 34.into(),
            csum_offset: 16.into(),
            ..Header::default()
        };
        assert_eq!(segment.header(), expected);
        assert_eq!(segment.headers[50..52], (0x1000 + 20 + len).to_be_bytes());
    }
    assert!(segmenter.next_segment().is_none());
    // A fragment's is in the first, and complete.
    let (header, bytes) = frame(GSO_UDP, false, 100, 40);
    let mut segmenter = Segmenter::new(header, &bytes, bytes.len()).unwrap();
    assert_eq!(segmenter.whole_checksum(), Some(Checksum { start: 34, at: 40 }));
    assert_eq!(segmenter.next_segment().unwrap().header(), Header::default());
}
