//! Segmentation against the kernel's own, byte for byte: frames to be segmented go into a bridge by a tap, and come out
//! of another one that takes nothing but whole frames. It needs root, for a network namespace.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ringway_device::net::Checksum;
use ringway_net::offload::{Segmenter, complete};
use ringway_net::{Uplink, UplinkKind, UplinkSpec};
use ringway_spec::net::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM,
    HDR_LEN, Header,
};
use ringway_testkit::netns::{self, Netns};
use zerocopy::IntoBytes;

const LIMIT: Duration = Duration::from_secs(10);
const SRC: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const DST: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
/// A type of Ethernet for experiments: the frame that says that all before it are there.
const MARK: u16 = 0x88b5;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Two taps of a bridge in a namespace of their own.
struct Kernel {
    _host: Netns,
    sent: Uplink,
    cut: Uplink,
}

impl Kernel {
    fn new() -> Self {
        let host = Netns::new().unwrap();
        host.add_bridge("br0", "02:00:00:00:00:01", "10.8.0.1/24").unwrap();
        let open = || {
            let name = netns::interface_name();
            let spec = UplinkSpec { kind: UplinkKind::Tap, interface: name.clone() };
            let tap = host.enter(|| Uplink::open(&spec, 1)).unwrap().unwrap();
            host.run("ip", &["link", "set", &name, "mtu", "65521", "txqueuelen", "5000"]).unwrap();
            host.run("ip", &["link", "set", &name, "master", "br0", "up"]).unwrap();
            // Nothing that sorts frames by flow.
            host.run("tc", &["qdisc", "replace", "dev", &name, "root", "noqueue"]).unwrap();
            tap
        };
        let (sent, cut) = (open(), open());
        Self { _host: host, sent, cut }
    }

    /// What the kernel makes of a frame.
    fn segments(&self, header: Header, frame: &[u8]) -> Vec<Vec<u8>> {
        let mark = [&DST[..], &SRC, &MARK.to_be_bytes(), &[0; 46]].concat();
        for (header, frame) in [(header, frame), (Header::default(), &mark)] {
            let bytes = [header.as_bytes(), frame].concat();
            assert_eq!(rustix::io::write(self.sent.as_fd(), &bytes), Ok(bytes.len()), "{header:?}");
        }
        let mut frames = Vec::new();
        loop {
            let frame = self.read();
            if frame == mark {
                return frames;
            }
            // The bridge may have something of its own to say.
            if frame[6..12] == SRC {
                frames.push(frame);
            }
        }
    }

    fn read(&self) -> Vec<u8> {
        let deadline = Instant::now() + LIMIT;
        let mut bytes = vec![0; 70_000];
        loop {
            match rustix::io::read(self.cut.as_fd(), &mut bytes).map_err(std::io::Error::from) {
                Ok(len) => {
                    // That a checksum was verified is no work left to be done.
                    bytes[0] &= !HDR_F_DATA_VALID;
                    assert_eq!(bytes[..10], [0; 10], "a whole frame");
                    return bytes[HDR_LEN..len].to_vec();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                Err(e) => panic!("no frame within {LIMIT:?}: {e}"),
            }
        }
    }
}

/// What we make of it.
fn ours(header: Header, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut frame = frame.to_vec();
    let mut segmenter = Segmenter::new(header, &frame, frame.len()).unwrap();
    if let Some(checksum) = segmenter.whole_checksum() {
        assert!(complete(&mut frame, checksum));
    }
    let mut segments = Vec::new();
    while let Some(mut segment) = segmenter.next_segment() {
        let payload = &frame[segment.payload.clone()];
        // Completed here, or by the receiver.
        let mut partial = [segment.headers, payload].concat();
        let checksum = segment.checksum;
        segment.complete(payload);
        segments.push([segment.headers, payload].concat());
        if let Some(checksum) = checksum {
            assert!(complete(&mut partial, checksum));
            partial[checksum.at..checksum.at + 2]
                .copy_from_slice(&segments.last().unwrap()[checksum.at..][..2]);
            assert_eq!(&partial, segments.last().unwrap());
        }
    }
    segments
}

/// The finaliser of `SplitMix64`, counting.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A frame to be, all but its addresses.
#[derive(Debug, Clone)]
struct Sample {
    gso_type: u8,
    gso_size: u16,
    is_v6: bool,
    tags: Vec<(u16, u16)>,
    /// IPv4's options, in words, or IPv6's extension headers: their types and lengths in units of eight bytes.
    options: usize,
    extensions: Vec<(u8, u8)>,
    /// TCP's flags, and its options in words.
    flags: u8,
    tcp_options: usize,
    id: u16,
    frag_off: u16,
    sequence: u32,
    payload: usize,
}

impl Sample {
    fn random(random: &mut Random, gso_type: u8, is_v6: bool) -> Self {
        let is_fragments = gso_type == GSO_UDP;
        let tags = match random.below(4) {
            0 => vec![(0x8100, random.next() as u16)],
            1 => vec![(0x88a8, random.next() as u16), (0x8100, random.next() as u16)],
            _ => Vec::new(),
        };
        // The kernel says the place of a fragment wrong behind extension headers.
        let extensions = match random.below(3) {
            0 if is_v6 && !is_fragments => {
                let chain = [(0, 0), (60, 1), (43, 2), (60, 0)];
                chain.into_iter().filter(|_| random.below(2) == 0).collect()
            }
            _ => Vec::new(),
        };
        let gso_size = match random.below(4) {
            0 => 1 + random.below(16),
            1 => 1 + random.below(600),
            2 => 1448,
            _ => 1 + random.below(9000),
        };
        // The kernel's fragments of other sizes do not fit together.
        let gso_size = if is_fragments { gso_size.next_multiple_of(8).max(16) } else { gso_size };
        let headers = 200;
        // The kernel takes 128 datagrams at once.
        let most = (65_535 - headers).min(gso_size * if gso_type == GSO_UDP_L4 { 128 } else { 1000 });
        Self {
            gso_type,
            gso_size: gso_size as u16,
            is_v6,
            tags,
            options: if is_v6 { 0 } else { random.pick(&[0, 0, 1, 10]) },
            extensions,
            flags: random.next() as u8,
            tcp_options: random.pick(&[0, 3, 10]),
            id: random.pick(&[0, 1, 0xfffe, 0x1234]),
            frag_off: random.pick(&[0, 0x4000]),
            sequence: random.pick(&[0, u32::MAX - 100, 0x1234_5678]),
            // Fewer bytes than this are nothing to be cut.
            payload: gso_size + 1 + random.below(most - gso_size),
        }
    }

    fn frame(&self, random: &mut Random) -> (Header, Vec<u8>) {
        let is_tcp = !matches!(self.gso_type, GSO_UDP | GSO_UDP_L4);
        let payload: Vec<u8> = (0..self.payload).map(|_| random.next() as u8).collect();
        let mut transport = random.next().to_be_bytes()[..4].to_vec();
        let (protocol, csum_offset) = if is_tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend([0x11, 0x22, 0x33, 0x44, (5 + self.tcp_options as u8) << 4, self.flags]);
            transport.extend([0xff, 0xff, 0, 0, 0, 0]);
            transport.extend([1; 40].iter().take(self.tcp_options * 4));
            (TCP, 16)
        } else {
            transport.extend((8 + self.payload as u16).to_be_bytes());
            transport.extend([0; 2]);
            (UDP, 6)
        };
        let headers = transport.len();
        transport.extend(payload);
        let ip = self.ip(protocol, &mut transport, csum_offset, random);
        let mut frame = [DST, SRC].concat();
        for (tpid, tag) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(if self.is_v6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(ip);
        let csum_start = frame.len();
        frame.extend(transport);
        let header = Header {
            flags: HDR_F_NEEDS_CSUM,
            gso_type: self.gso_type,
            hdr_len: ((csum_start + headers) as u16).into(),
            gso_size: self.gso_size.into(),
            csum_start: (csum_start as u16).into(),
            csum_offset: (csum_offset as u16).into(),
            ..Header::default()
        };
        (header, frame)
    }

    /// The IP headers; the partial checksum is stored in the transport header.
    fn ip(&self, protocol: u8, transport: &mut [u8], csum_offset: usize, random: &mut Random) -> Vec<u8> {
        let len = transport.len();
        let mut address = |n: usize| (0..n).map(|_| random.next() as u8).collect::<Vec<_>>();
        let (packet, addresses) = if self.is_v6 {
            let mut chain = Vec::new();
            let types = self.extensions.iter().map(|(t, _)| *t).chain([protocol]).collect::<Vec<_>>();
            for ((kind, units), next) in self.extensions.iter().zip(&types[1..]) {
                let room = usize::from(*units) * 8 + 6;
                chain.extend([*next, *units]);
                if *kind == 43 {
                    // A routing header of no segments left, of a type for experiments.
                    chain.extend([253, 0]);
                    chain.extend(vec![0; room - 2]);
                } else {
                    // One option that pads.
                    chain.extend([1, room as u8 - 2]);
                    chain.extend(vec![0; room - 2]);
                }
            }
            let addresses = [[0xfd; 16], [0xfd; 16]].concat();
            let [high, low] = ((chain.len() + len) as u16).to_be_bytes();
            let head = [0x60, 0x12, 0x34, 0x56, high, low, types[0], 64];
            ([&head[..], &addresses, &chain].concat(), addresses)
        } else {
            let addresses = [&[10][..], &address(3), &[10], &address(3)].concat();
            let words = 5 + self.options;
            let [high, low] = ((words * 4 + len) as u16).to_be_bytes();
            let ([id_high, id_low], [off_high, off_low]) =
                (self.id.to_be_bytes(), self.frag_off.to_be_bytes());
            let mut head = vec![
                0x40 | words as u8,
                0x03,
                high,
                low,
                id_high,
                id_low,
                off_high,
                off_low,
                64,
                protocol,
                0,
                0,
            ];
            head.extend(&addresses);
            // Options that do nothing.
            head.extend(vec![1; self.options * 4]);
            let sum = !sum(&head);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            (head, addresses)
        };
        let pseudo = [&addresses[..], &[0, protocol], &(len as u16).to_be_bytes()].concat();
        transport[csum_offset..csum_offset + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
        packet
    }
}

/// The sum of words in ones' complement.
fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum: u16, pair| {
        let (sum, carry) =
            sum.overflowing_add(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum + u16::from(carry)
    })
}

/// Both make the same of `count` frames of a type.
fn compare(gso_types: &[u8], is_v6: bool, count: usize) {
    let kernel = Kernel::new();
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    });
    println!("SEED={seed}");
    let mut random = Random(seed);
    let mut segments = 0;
    for _ in 0..count {
        let gso_type = random.pick(gso_types);
        let sample = Sample::random(&mut random, gso_type, is_v6);
        let (header, frame) = sample.frame(&mut random);
        let mut theirs = kernel.segments(header, &frame);
        let mut ours = ours(header, &frame);
        if is_v6 && gso_type == GSO_UDP {
            // A number that nobody foretells, but the same for all of a datagram.
            let at = 14 + sample.tags.len() * 4 + 40 + 4;
            for frames in [&mut theirs, &mut ours] {
                let id: [u8; 4] = frames[0][at..at + 4].try_into().unwrap();
                for frame in frames {
                    assert_eq!(frame[at..at + 4], id);
                    frame[at..at + 4].fill(0);
                }
            }
        }
        assert_eq!(ours.len(), theirs.len(), "{sample:?}");
        for (n, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            let first = ours.iter().zip(theirs).position(|(a, b)| a != b);
            assert!(ours == theirs, "segment {n} differs at {first:?}: {sample:?}\n{ours:x?}\n{theirs:x?}");
        }
        segments += ours.len();
    }
    println!("{count} frames, {segments} segments");
    assert!(segments > 5 * count, "nothing was cut");
}

/// A checksum alone is completed as the kernel does it.
#[test]
fn checksums() {
    let kernel = Kernel::new();
    let mut random = Random(1);
    for n in 0..200 {
        let (gso_type, is_v6) =
            random.pick(&[(GSO_TCPV4, false), (GSO_TCPV6, true), (GSO_UDP, false), (GSO_UDP, true)]);
        let mut sample = Sample::random(&mut random, gso_type, is_v6);
        sample.payload = random.pick(&[n, 1448, 20_000]);
        let (header, mut frame) = sample.frame(&mut random);
        let header = Header { gso_type: GSO_NONE, ..header };
        let theirs = kernel.segments(header, &frame);
        let start = usize::from(header.csum_start.get());
        assert!(complete(&mut frame, Checksum { start, at: start + usize::from(header.csum_offset.get()) }));
        assert!(theirs == [frame], "{sample:?}");
    }
}

#[test]
fn tcp_over_ipv4() {
    compare(&[GSO_TCPV4, GSO_TCPV4 | GSO_ECN], false, 300);
}

#[test]
fn tcp_over_ipv6() {
    compare(&[GSO_TCPV6, GSO_TCPV6 | GSO_ECN], true, 300);
}

#[test]
fn udp_datagrams() {
    compare(&[GSO_UDP_L4], false, 200);
    compare(&[GSO_UDP_L4], true, 200);
}

#[test]
fn udp_fragments() {
    compare(&[GSO_UDP], false, 200);
    compare(&[GSO_UDP], true, 200);
}
