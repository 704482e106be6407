//! A sender who leaves a frame to be segmented, and lies about it.
//!
//! The input is the kind of a well-formed frame, then changes of it: a place and what is written there. So most
//! frames are nearly right, which reaches further than chance does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ringway_net::offload::{MAX_HEADERS, Segmenter, checksum::Sum, complete};
use ringway_spec::net::{HDR_LEN, Header};
use zerocopy::FromBytes;

use super::{Input, MAX_STEPS};
use crate::frontend::VnetHeader;
use crate::frontend::frame::{self, Checksum, Flow};

/// Cuts the frame that `data` describes; what comes of it is made of the frame, all of it, and says its lengths.
///
/// # Panics
/// If it is not.
pub fn segmenter(data: &[u8]) {
    let mut input = Input(data);
    let (mut header, mut frame) = well_formed(&mut input);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let (at, bytes) = (usize::from(input.u16()), input.array::<2>());
        match at {
            // A longer frame, or a shorter one.
            0xffff => frame.resize(u16::from_le_bytes(bytes).into(), 0x55),
            0xff00.. => header[at % HDR_LEN] = bytes[0],
            _ if frame.is_empty() => {}
            _ => {
                let at = at % frame.len().min(MAX_HEADERS + 100);
                frame[at] = bytes[0];
                if let Some(next) = frame.get_mut(at + 1) {
                    *next = bytes[1];
                }
            }
        }
    }
    let header = Header::read_from_bytes(&header).expect("a header's length");
    cut(header, &frame);
}

/// A frame of the input's choice, and its header.
fn well_formed(input: &mut Input<'_>) -> ([u8; HDR_LEN], Vec<u8>) {
    let [kind, tags, ip, extensions] = input.array();
    let gso_type =
        [VnetHeader::GSO_TCPV4, VnetHeader::GSO_TCPV6, VnetHeader::GSO_UDP, VnetHeader::GSO_UDP_L4];
    let gso_type = gso_type[usize::from(kind % 4)];
    let is_tcp = kind % 4 < 2;
    let is_v6 = kind % 4 == 1 || (!is_tcp && ip & 1 != 0);
    let address = |n: u8| -> IpAddr {
        if is_v6 { Ipv6Addr::from([n; 16]).into() } else { Ipv4Addr::from([n; 4]).into() }
    };
    let flow = Flow {
        src_mac: [2; 6],
        dst_mac: [4; 6],
        src_ip: address(1),
        dst_ip: address(2),
        src_port: 1,
        dst_port: 2,
    };
    let (gso_size, payload) = (input.u16(), vec![0xa5; usize::from(input.u16()) % 3000]);
    let mut frame = if is_tcp {
        frame::tcp(&flow, u32::MAX - 5, 0xff, &payload, Checksum::Partial)
    } else {
        frame::udp(&flow, &payload, Checksum::Partial)
    };
    let header = frame::partial_header(&frame).expect("a frame of ours");
    let mut csum_start = header.csum_start;
    if is_v6 {
        for n in 0..extensions % 4 {
            csum_start += 8;
            insert_extension(&mut frame, [60, 43, 0][usize::from(n)]);
        }
    }
    for _ in 0..tags % 4 {
        csum_start += 4;
        frame = frame::tagged(&frame, 5);
    }
    let bytes = VnetHeader { gso_type, gso_size, csum_start, ..header }.to_bytes();
    (std::array::from_fn(|i| bytes[i]), frame)
}

/// Puts an extension header of eight bytes behind IPv6's own.
fn insert_extension(frame: &mut Vec<u8>, kind: u8) {
    let next = std::mem::replace(&mut frame[20], kind);
    frame.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
    let len = u16::from_be_bytes([frame[18], frame[19]]) + 8;
    frame[18..20].copy_from_slice(&len.to_be_bytes());
}

fn cut(header: Header, frame: &[u8]) {
    let Ok(mut segmenter) = Segmenter::new(header, &frame[..frame.len().min(MAX_HEADERS)], frame.len())
    else {
        return;
    };
    let mut frame = frame.to_vec();
    let hdr_len = usize::from(segmenter.hdr_len());
    assert!(hdr_len <= frame.len() && hdr_len >= 14 + 20 + 8);
    if let Some(checksum) = segmenter.whole_checksum() {
        assert!(complete(&mut frame, checksum));
    }
    let mut at = None;
    while let Some(mut segment) = segmenter.next_segment() {
        let range = segment.payload.clone();
        assert_eq!(*at.get_or_insert(range.start), range.start, "no byte is left out, none comes twice");
        assert!(range.len() <= usize::from(header.gso_size.get()));
        assert!(segment.headers.len() <= MAX_HEADERS);
        at = Some(range.end);
        let payload = &frame[range];
        segment.complete(payload);
        check(&[segment.headers, payload].concat());
    }
    assert_eq!(at, Some(frame.len()), "all of it is sent");
}

/// A segment says its own length, and the sum of IPv4's header is right.
fn check(segment: &[u8]) {
    let mut ip = 14;
    while ip < 22 && matches!(segment[ip - 2..ip], [0x81, 0x00] | [0x88, 0xa8]) {
        ip += 4;
    }
    let word = |at: usize| usize::from(u16::from_be_bytes([segment[ip + at], segment[ip + at + 1]]));
    if segment[ip] >> 4 == 6 {
        assert_eq!(word(4) + 40, segment.len() - ip);
    } else {
        assert_eq!(word(2), segment.len() - ip);
        let header = &segment[ip..ip + usize::from(segment[ip] & 15) * 4];
        assert_eq!(Sum::of(header).partial().get(), 0xffff);
    }
}
