//! Frames to be segmented: what a guest sends of them, and what others get.

use std::path::Path;

use ringway_testkit::frontend::frame::{self, Checksum};
use ringway_testkit::frontend::wire::feature::{
    NET_CSUM, NET_GUEST_CSUM, NET_GUEST_ECN, NET_GUEST_TSO4, NET_GUEST_TSO6, NET_GUEST_UFO, NET_GUEST_USO4,
    NET_GUEST_USO6, NET_HOST_ECN, NET_HOST_TSO4, NET_HOST_TSO6, NET_HOST_UFO, NET_HOST_USO, NET_MTU,
};
use ringway_testkit::frontend::{Arrangement, NetFrontend, Options, VnetHeader};
use ringway_testkit::server::Server;

use crate::common::{FEATURES, PROGRAM, QUIET, SOON, eventually, options, switch, up};
use crate::{flow, payload, segment};

/// All that a sender may leave to the device.
const HOST: u64 = NET_CSUM | NET_HOST_TSO4 | NET_HOST_TSO6 | NET_HOST_ECN | NET_HOST_UFO | NET_HOST_USO;
/// All that a receiver may take on itself.
const GUEST: u64 = NET_GUEST_CSUM
    | NET_GUEST_TSO4
    | NET_GUEST_TSO6
    | NET_GUEST_ECN
    | NET_GUEST_UFO
    | NET_GUEST_USO4
    | NET_GUEST_USO6;

/// The receivers of the tests, by what they take.
const RECEIVERS: [(&str, u64); 9] = [
    ("all", GUEST),
    ("tcp", NET_GUEST_CSUM | NET_GUEST_TSO4 | NET_GUEST_TSO6),
    ("four", NET_GUEST_CSUM | NET_GUEST_TSO4 | NET_GUEST_ECN),
    ("six", NET_GUEST_CSUM | NET_GUEST_TSO6 | NET_GUEST_ECN),
    ("ufo", NET_GUEST_CSUM | NET_GUEST_UFO),
    ("uso", NET_GUEST_CSUM | NET_GUEST_USO4 | NET_GUEST_USO6),
    ("uso4", NET_GUEST_CSUM | NET_GUEST_USO4),
    ("csum", NET_GUEST_CSUM),
    ("none", 0),
];

/// What a receiver of all frames of a type takes, beside checksums.
fn needs(gso_type: u8) -> u64 {
    let ecn = if gso_type & VnetHeader::GSO_ECN == 0 { 0 } else { NET_GUEST_ECN };
    ecn | match gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_TCPV4 => NET_GUEST_TSO4,
        VnetHeader::GSO_TCPV6 => NET_GUEST_TSO6,
        VnetHeader::GSO_UDP => NET_GUEST_UFO,
        _ => NET_GUEST_USO4 | NET_GUEST_USO6,
    }
}

/// A frame to be segmented.
struct Large {
    header: VnetHeader,
    bytes: Vec<u8>,
    is_v6: bool,
    /// Bytes of a tag.
    tag: usize,
}

impl Large {
    fn new(gso_type: u8, is_v6: bool, len: usize, gso_size: u16, tag: Option<u16>) -> Self {
        let is_tcp = !matches!(gso_type, VnetHeader::GSO_UDP | VnetHeader::GSO_UDP_L4);
        let bytes = segment(is_tcp, is_v6, &payload(len), Checksum::Partial);
        let bytes = if let Some(tag) = tag { frame::tagged(&bytes, tag) } else { bytes };
        let partial = frame::partial_header(&bytes).unwrap();
        let hdr_len = partial.csum_start + if is_tcp { 20 } else { 8 };
        let header = VnetHeader { gso_type, gso_size, hdr_len, ..partial };
        Self { header, bytes, is_v6, tag: tag.map_or(0, |_| 4) }
    }

    /// Of each type and IP, with a tag and without, of one full segment and of as many as a frame has.
    fn all() -> Vec<Self> {
        let (tcp4, tcp6) = (VnetHeader::GSO_TCPV4, VnetHeader::GSO_TCPV6);
        let (udp, datagrams, ecn) = (VnetHeader::GSO_UDP, VnetHeader::GSO_UDP_L4, VnetHeader::GSO_ECN);
        let types = [(tcp4, false), (tcp4 | ecn, false), (tcp6, true), (tcp6 | ecn, true)];
        let types =
            types.into_iter().chain([(udp, false), (udp, true), (datagrams, false), (datagrams, true)]);
        let sizes = [(60_001, 1448), (1449, 1448), (5000, 400), (700, 16)];
        let tags = [None, Some(0x2005)];
        types
            .flat_map(|(gso_type, is_v6)| sizes.map(|(len, size)| (gso_type, is_v6, len, size)))
            .flat_map(|(gso_type, is_v6, len, size)| {
                tags.map(|tag| Self::new(gso_type, is_v6, len, size, tag))
            })
            .collect()
    }

    fn ip(&self) -> usize {
        14 + self.tag
    }

    /// What a receiver gets that takes no such frames.
    fn expect_segments(&self, to: &mut NetFrontend, is_partial: bool) -> u64 {
        let gso_size = usize::from(self.header.gso_size);
        if self.header.gso_type == VnetHeader::GSO_UDP {
            return self.expect_fragments(to, gso_size / 8 * 8);
        }
        let headers = usize::from(self.header.hdr_len);
        let mut got: Vec<u8> = Vec::new();
        let mut count = 0;
        while got.len() < self.bytes.len() - headers {
            let (header, mut bytes) = to.recv_frame(SOON).unwrap().expect("a segment");
            assert_eq!((header.gso_type, header.num_buffers > 0), (VnetHeader::GSO_NONE, true));
            assert_eq!(header.flags, if is_partial { VnetHeader::NEEDS_CSUM } else { 0 });
            if is_partial {
                let VnetHeader { csum_start, csum_offset, .. } = self.header;
                assert_eq!((header.csum_start, header.csum_offset), (csum_start, csum_offset));
                frame::complete(&header, &mut bytes).unwrap();
            }
            frame::check(&bytes).unwrap();
            assert_eq!(bytes[..self.ip()], self.bytes[..self.ip()], "Ethernet and its tag");
            let left = self.bytes.len() - headers - got.len();
            assert_eq!(bytes.len() - headers, left.min(gso_size));
            if headers - usize::from(self.header.csum_start) == 20 {
                let at = usize::from(self.header.csum_start) + 4;
                let sequence = |bytes: &[u8]| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
                assert_eq!(sequence(&bytes) as usize, sequence(&self.bytes) as usize + got.len());
            }
            got.extend(&bytes[headers..]);
            count += 1;
        }
        assert!(got == self.bytes[headers..]);
        count
    }

    /// Fragments are the datagram, complete, in pieces.
    fn expect_fragments(&self, to: &mut NetFrontend, size: usize) -> u64 {
        let start = usize::from(self.header.csum_start);
        let headers = start + if self.is_v6 { 8 } else { 0 };
        let mut whole = self.bytes.clone();
        frame::complete(&self.header, &mut whole).unwrap();
        let mut got: Vec<u8> = Vec::new();
        let mut count = 0;
        while got.len() < whole.len() - start {
            let (header, bytes) = to.recv_frame(SOON).unwrap().expect("a fragment");
            assert_eq!((header.flags, header.gso_type), (0, VnetHeader::GSO_NONE));
            let place = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
            let is_last = got.len() + size >= whole.len() - start;
            if self.is_v6 {
                assert_eq!((bytes[self.ip() + 6], bytes[start]), (44, frame::UDP), "a fragment header");
                assert_eq!(place(start + 2), got.len() | usize::from(!is_last));
            } else {
                let more = if is_last { 0 } else { 0x2000 };
                assert_eq!(place(self.ip() + 6), (got.len() / 8) | more);
            }
            got.extend(&bytes[headers..]);
            count += 1;
        }
        assert!(got == whole[start..]);
        count
    }
}

/// Room for the longest frame twice.
fn roomy() -> Options {
    Options { ring_size: 1024, rx_chain: vec![2048], ..options() }
}

/// [DEV-NET-processing-of-incoming-packets-05] [DEV-NET-processing-of-incoming-packets-06]
/// [DEV-NET-processing-of-incoming-packets-07] [DEV-NET-processing-of-incoming-packets-08]
/// [DEV-NET-processing-of-incoming-packets-09] [DEV-NET-processing-of-incoming-packets-12]
/// [DEV-NET-processing-of-incoming-packets-16] [DEV-NET-processing-of-incoming-packets-17]
/// [DEV-NET-processing-of-incoming-packets-20] [DEV-NET-processing-of-incoming-packets-21]
/// [DEV-NET-processing-of-incoming-packets-24] Every type of frame to be segmented reaches guests of every kind at once:
/// as it is who takes it, in segments with partial checksums or complete ones who does not.
#[test]
fn every_type_to_every_guest() {
    let names: Vec<_> = ["a"].into_iter().chain(RECEIVERS.map(|(name, _)| name)).collect();
    let server = switch(&names);
    let mut a = up(&server, "a", FEATURES | HOST, options());
    assert_eq!(a.features() & HOST, HOST);
    let mut guests = RECEIVERS.map(|(name, features)| {
        let guest = up(&server, name, FEATURES | features, roomy());
        assert_eq!(guest.features() & GUEST, features);
        guest
    });
    let mut segments = [0; RECEIVERS.len()];
    let mut segmented = [0; RECEIVERS.len()];
    let frames = Large::all();
    for large in &frames {
        // A device that knows better does not rely on the hint.
        let header = VnetHeader { hdr_len: 3, ..large.header };
        a.send_frame_with_header(&header, &large.bytes, &Arrangement::header_apart()).unwrap();
        for (n, ((name, features), guest)) in RECEIVERS.iter().zip(&mut guests).enumerate() {
            println!("{:?} to {name}", large.header);
            if features & needs(large.header.gso_type) == needs(large.header.gso_type) {
                let (header, bytes) = guest.recv_frame(SOON).unwrap().expect("the frame");
                assert_eq!(VnetHeader { num_buffers: 0, ..header }, large.header);
                assert!(bytes == large.bytes, "as it was sent");
            } else {
                segments[n] += large.expect_segments(guest, features & NET_GUEST_CSUM != 0);
                segmented[n] += 1;
            }
        }
    }
    let counters = server.counters().unwrap();
    for (n, (name, _)) in RECEIVERS.iter().enumerate() {
        assert_eq!(counters.dropped(name), 0, "{name}");
        assert_eq!(counters.get(name, "segmented"), segmented[n], "{name}");
        assert_eq!(counters.get(name, "segments"), segments[n], "{name}");
        assert_eq!(counters.get(name, "to"), frames.len() as u64 - segmented[n] + segments[n], "{name}");
    }
    assert_eq!((counters.get("a", "from"), counters.dropped("a")), (frames.len() as u64, 0));
    assert_eq!((segmented[0], segmented[RECEIVERS.len() - 1]), (0, frames.len() as u64));
}

/// However a sender spreads its frame, in more pieces than segments are made of too.
#[test]
fn frames_in_many_pieces() {
    let server = switch(&["a", "csum", "none"]);
    let long = Options { ring_size: 1024, ..options() };
    let mut a = up(&server, "a", FEATURES | HOST, long);
    let mut csum = up(&server, "csum", FEATURES | NET_GUEST_CSUM, roomy());
    let mut none = up(&server, "none", FEATURES, roomy());
    let many: Vec<usize> = std::iter::once(12).chain(std::iter::repeat_n(37, 150)).collect();
    // Of too many pieces a copy is made, and then the sum too.
    for (arrangement, is_partial) in [
        (Arrangement::whole(), true),
        (Arrangement::pieces(&[12, 14, 20, 20, 3]), true),
        (Arrangement::pieces(&[5, 8, 1, 33, 3]).indirect(), true),
        (Arrangement::pieces(&many).indirect(), false),
    ] {
        let large = Large::new(VnetHeader::GSO_TCPV4, false, 9000, 1000, Some(7));
        a.send_frame_with_header(&large.header, &large.bytes, &arrangement).unwrap();
        large.expect_segments(&mut csum, is_partial);
        large.expect_segments(&mut none, false);
    }
}

/// [DEV-NET-packet-transmission-01] [DEV-NET-packet-transmission-07] [DEV-NET-packet-transmission-08]
/// [DEV-NET-packet-transmission-10] A header that lies costs its frame, wherever that goes; a wrong `hdr_len` or a flag
/// unknown is none.
#[test]
fn lies_about_segments() {
    for mode in ["switch", "sink"] {
        let server = match mode {
            "switch" => switch(&["net", "b"]),
            _ => Server::net(Path::new(PROGRAM), mode, &[]).unwrap(),
        };
        let mut a = up(&server, "net", FEATURES | HOST, options());
        let mut b = (mode == "switch").then(|| up(&server, "b", FEATURES, roomy()));
        let large = Large::new(VnetHeader::GSO_TCPV4, false, 5000, 1000, None);
        let right = large.header;
        let gso = |gso_type| VnetHeader { gso_type, ..right };
        let lies = [
            VnetHeader { gso_size: 0, ..right },
            VnetHeader { flags: 0, ..right },
            VnetHeader { flags: VnetHeader::DATA_VALID, ..right },
            VnetHeader { csum_start: 33, ..right },
            VnetHeader { csum_start: u16::MAX, ..right },
            VnetHeader { csum_offset: 6, ..right },
            VnetHeader { csum_offset: u16::MAX, ..right },
            gso(VnetHeader::GSO_TCPV6),
            gso(VnetHeader::GSO_UDP),
            gso(VnetHeader::GSO_UDP_L4),
            gso(VnetHeader::GSO_UDP_L4 | VnetHeader::GSO_ECN),
            gso(VnetHeader::GSO_ECN),
            gso(2),
            // Tunnels of UDP.
            gso(VnetHeader::GSO_TCPV4 | 0x20),
            gso(VnetHeader::GSO_TCPV4 | 0x40),
            gso(VnetHeader::GSO_TCPV4 | 0x60),
        ];
        for header in &lies {
            a.send_frame_with_header(header, &large.bytes, &Arrangement::whole()).unwrap();
        }
        // The frame lies, its header does not.
        for (at, byte) in [(14, 0x65), (14, 0x4f), (17, 1), (20, 0x20), (23, frame::UDP), (46, 0x40), (46, 0)]
        {
            let mut bytes = large.bytes.clone();
            bytes[at] = byte;
            a.send_frame_with_header(&right, &bytes, &Arrangement::whole()).unwrap();
        }
        let mut good = 0;
        for hdr_len in [0, 54, 55, u16::MAX] {
            let header = VnetHeader { hdr_len, flags: right.flags | 0xf0, ..right };
            a.send_frame_with_header(&header, &large.bytes, &Arrangement::header_apart()).unwrap();
            good += 1;
            if let Some(b) = &mut b {
                assert_eq!(large.expect_segments(b, false), 5);
            }
        }
        a.pair(0).wait_sent(SOON).unwrap();
        let malformed = lies.len() as u64 + 7;
        eventually("all are counted", || server.counters().unwrap().get("net", "from") == malformed + good);
        let counters = server.counters().unwrap();
        assert_eq!((counters.get("net", "malformed"), counters.get("net", "failed rings")), (malformed, 0));
        if let Some(b) = &mut b {
            assert_eq!(counters.get("b", "segmented"), good);
            assert!(b.recv_frame(QUIET).unwrap().is_none());
        }
    }
}

/// Segments so short that a frame would be tens of thousands of them go nowhere, and cost no buffer.
#[test]
fn too_many_segments() {
    let server = switch(&["a", "b"]);
    let mut a = up(&server, "a", FEATURES | HOST, options());
    let mut b = up(&server, "b", FEATURES, roomy());
    let flood = Large::new(VnetHeader::GSO_TCPV4, false, 60_000, 1, None);
    a.send_frame_with_header(&flood.header, &flood.bytes, &Arrangement::whole()).unwrap();
    let short = Large::new(VnetHeader::GSO_TCPV4, false, 500, 1, None);
    a.send_frame_with_header(&short.header, &short.bytes, &Arrangement::whole()).unwrap();
    assert_eq!(short.expect_segments(&mut b, false), 500);
    assert_eq!(server.counters().unwrap().get("b", "unsegmentable"), 1);
}

/// A guest that runs out of buffers loses the rest of the frame, which counts as one.
#[test]
fn a_guest_without_buffers_for_all_segments() {
    let server = switch(&["a", "b"]);
    let mut a = up(&server, "a", FEATURES | HOST, options());
    let mut b = up(&server, "b", FEATURES, Options { ring_size: 16, rx_chain: vec![2048], ..options() });
    let large = Large::new(VnetHeader::GSO_TCPV4, false, 60_000, 1000, None);
    a.send_frame_with_header(&large.header, &large.bytes, &Arrangement::whole()).unwrap();
    for n in 0..16 {
        let (_, bytes) = b.recv_frame(SOON).unwrap().expect("a segment");
        assert!(bytes[54..] == large.bytes[54 + n * 1000..][..1000]);
    }
    let counters = server.counters().unwrap();
    assert_eq!((counters.get("b", "no-buffer"), counters.get("b", "segmented")), (1, 0));
    assert_eq!(counters.get("b", "segments"), 16);
}

/// [DEV-NET-cfg-05] The MTU binds segments, and not the frame that they are made of.
#[test]
fn the_mtu_of_segments() {
    let server = switch(&["a", "b,mtu=1500", "c,mtu=1500"]);
    let mut a = up(&server, "a", FEATURES | HOST, options());
    let mut b = up(&server, "b", FEATURES | NET_MTU, roomy());
    let mut c = up(&server, "c", FEATURES | NET_MTU | GUEST, roomy());
    for (size, fits) in [(1460, true), (1461, false)] {
        let large = Large::new(VnetHeader::GSO_TCPV4, false, 20_000, size, Some(9));
        a.send_frame_with_header(&large.header, &large.bytes, &Arrangement::whole()).unwrap();
        assert!(c.recv_frame(SOON).unwrap().unwrap().1 == large.bytes);
        if fits {
            large.expect_segments(&mut b, false);
        }
    }
    let counters = server.counters().unwrap();
    assert_eq!((counters.get("b", "too-long"), counters.dropped("c")), (1, 0));
}

/// An echo gives back what the guest takes, whatever it sends.
#[test]
fn an_echo_of_segments() {
    for features in [0, NET_GUEST_CSUM, GUEST] {
        let server = Server::net(Path::new(PROGRAM), "echo", &[]).unwrap();
        let mut guest = up(&server, "net", FEATURES | HOST | features, roomy());
        for is_v6 in [false, true] {
            let gso_type = if is_v6 { VnetHeader::GSO_TCPV6 } else { VnetHeader::GSO_TCPV4 };
            let mut large = Large::new(gso_type, is_v6, 30_000, 1200, None);
            guest.send_frame_with_header(&large.header, &large.bytes, &Arrangement::whole()).unwrap();
            let flow = flow(is_v6, 0);
            large.bytes[..12].copy_from_slice(&[flow.src_mac, flow.dst_mac].concat());
            if features == GUEST {
                let (header, bytes) = guest.recv_frame(SOON).unwrap().unwrap();
                assert_eq!(VnetHeader { num_buffers: 0, ..header }, large.header);
                assert!(bytes == large.bytes);
            } else {
                large.expect_segments(&mut guest, features != 0);
            }
        }
    }
}
