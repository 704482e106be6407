//! The tap: frames between a guest and the host's own network stack, which here lives in a namespace of its
//! own. It is the kernel that says whether a frame, its checksum and its segments are right.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use ringway_testkit::frontend::frame::{self, Checksum, Flow, Mac};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{Arrangement, NetFrontend, Options, VnetHeader};
use ringway_testkit::guest::{self, UmlOptions};
use ringway_testkit::netns::{self, Netns};
use ringway_testkit::process::Process;
use ringway_testkit::server::{Counters, Server};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");
/// For anything that takes a moment.
const LIMIT: Duration = Duration::from_secs(5);
/// For something that shall not come.
const SHORT: Duration = Duration::from_millis(200);

const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const HOST_NET: &str = "10.9.0.1/24";
/// Guests are `GUEST`, and the next ones.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const GUEST_MAC: Mac = [2, 0, 0, 0, 0, 1];
const ARP: u16 = 0x0806;
const ICMP: u8 = 1;

const CSUM: u64 = feature::VERSION_1 | feature::NET_CSUM;
const HOST_TSO: u64 = CSUM | feature::NET_HOST_TSO4;
const GUEST_CSUM: u64 = feature::VERSION_1 | feature::NET_MRG_RXBUF | feature::NET_GUEST_CSUM;
const GUEST_TSO: u64 = GUEST_CSUM | feature::NET_GUEST_TSO4;

/// A host behind the tap of a running `ringway`.
struct Bench {
    server: Server,
    host: Netns,
    tap: String,
}

impl Bench {
    fn new(start: impl FnOnce(&str) -> Server) -> Self {
        let host = Netns::new().unwrap();
        let tap = netns::interface_name();
        let server = start(&format!("tap:{tap}"));
        host.adopt(&tap, HOST_NET).unwrap();
        Self { server, host, tap }
    }

    /// One guest.
    fn net() -> Self {
        Self::new(|uplink| Server::net(Path::new(PROGRAM), uplink, &[]).unwrap())
    }

    /// A guest of port `a`, and one of port `b`.
    fn switch() -> Self {
        let start = |uplink: &str| {
            Server::switch(Path::new(PROGRAM), &["a", "b"], &[&format!("--uplink={uplink}")]).unwrap()
        };
        Self::new(start)
    }

    /// Attaches a guest; it has made itself known to the host.
    fn guest(&self, port: &str, number: u8, features: u64) -> Guest {
        let frontend = NetFrontend::up(self.server.socket(port), features, Options::default()).unwrap();
        assert_eq!(frontend.features() & features, features, "ringway does not offer all of {features:#x}");
        let mut mac = GUEST_MAC;
        mac[5] += number;
        let [a, b, c, d] = GUEST.octets();
        let mut guest = Guest { frontend, mac, ip: [a, b, c, d + number].into(), host_mac: frame::BROADCAST };
        guest.meet_host();
        guest
    }

    fn counters(&self) -> Counters {
        self.server.counters().unwrap()
    }

    /// A counter of the tap's port.
    fn tap_counter(&self, name: &str) -> u64 {
        self.counters().get(&format!("tap:{}", self.tap), name)
    }

    /// Waits until a counter of the tap's port says so: a frame is counted when it has gone.
    fn wait_tap_counter(&self, name: &str, value: u64) {
        let deadline = Instant::now() + LIMIT;
        while self.tap_counter(name) != value && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.tap_counter(name), value, "{name}");
    }
}

/// A guest whose network stack is the test.
struct Guest {
    frontend: NetFrontend,
    mac: Mac,
    ip: Ipv4Addr,
    host_mac: Mac,
}

impl Guest {
    /// Asks for the host's address, which tells the host this guest's.
    fn meet_host(&mut self) {
        let request = arp(1, (self.mac, self.ip), ([0; 6], HOST));
        self.frontend.send_frame(&frame::ethernet(frame::BROADCAST, self.mac, ARP, &request)).unwrap();
        let (header, reply) = self.recv(LIMIT).expect("an answer to ARP");
        self.host_mac = reply[6..12].try_into().unwrap();
        let expected = arp(2, (self.host_mac, HOST), (self.mac, self.ip));
        assert_eq!(reply, frame::ethernet(self.mac, self.host_mac, ARP, &expected));
        assert_eq!(header, VnetHeader { num_buffers: 1, ..VnetHeader::default() });
    }

    fn recv(&mut self, limit: Duration) -> Option<(VnetHeader, Vec<u8>)> {
        self.frontend.recv_frame(limit).unwrap()
    }

    /// The next IPv4 frame; the host may ask for addresses in between.
    fn recv_ip(&mut self) -> (VnetHeader, Vec<u8>) {
        let deadline = Instant::now() + LIMIT;
        while let Some((header, frame)) = self.recv(deadline.saturating_duration_since(Instant::now())) {
            if frame[12..14] == frame::IPV4.to_be_bytes() {
                return (header, frame);
            }
        }
        panic!("no IPv4 frame within {LIMIT:?}");
    }

    /// Sends an ICMP message to the host.
    fn send_icmp(&mut self, message: &[u8]) {
        let frame = frame::ethernet(self.host_mac, self.mac, frame::IPV4, &icmp(self.ip, HOST, message));
        self.frontend.send_frame(&frame).unwrap();
    }

    fn send_with(&mut self, header: &VnetHeader, frame: &[u8]) {
        self.frontend.send_frame_with_header(header, frame, &Arrangement::whole()).unwrap();
    }

    /// From this guest to a port of the host.
    fn flow(&self, dst_port: u16) -> Flow {
        Flow {
            src_mac: self.mac,
            dst_mac: self.host_mac,
            src_ip: self.ip.into(),
            dst_ip: HOST.into(),
            src_port: 4000,
            dst_port,
        }
    }
}

/// The Internet checksum.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(*p.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, ip) in [sender, target] {
        packet.extend(mac);
        packet.extend(ip.octets());
    }
    packet
}

/// An IPv4 packet with an ICMP message, whose checksum is filled in.
fn icmp(from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    let [high, low] = (20 + message.len() as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, ICMP, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(message);
    packet
}

/// An echo request of ICMP.
fn echo_request(payload: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0x12, 0x34, 0, 1][..], payload].concat()
}

/// A ping by the host's own program.
fn start_ping(host: &Netns, to: Ipv4Addr, count: u32) -> Process {
    let mut command = host.command("busybox").unwrap();
    command.args(["ping", "-c", &count.to_string(), "-W", "5", &to.to_string()]);
    Process::start("ping", &mut command).unwrap()
}

/// Whole frames, both ways, byte by byte; and the interface counts what ringway counts.
#[test]
fn frames_go_both_ways() {
    let bench = Bench::net();
    let before = bench.host.link_counters(&bench.tap).unwrap();
    let counted = bench.counters();
    let mut guest = bench.guest("net", 0, feature::VERSION_1);

    for length in [0, 1, 56, 1472] {
        let request = echo_request(&vec![0x5a; length]);
        guest.send_icmp(&request);
        let (header, reply) = guest.recv_ip();
        assert_eq!(header, VnetHeader { num_buffers: 1, ..VnetHeader::default() });
        assert_eq!(reply.len(), 14 + 20 + request.len());
        assert_eq!(reply[..14], frame::ethernet(guest.mac, guest.host_mac, frame::IPV4, &[]));
        let message = &reply[34..];
        assert_eq!((message[0], &message[4..]), (0, &request[4..]), "an answer with the same bytes");
        assert_eq!(checksum(message), [0, 0]);
    }

    let mut ping = start_ping(&bench.host, guest.ip, 1);
    let (_, request) = guest.recv_ip();
    assert_eq!((request[23], request[34]), (ICMP, 8), "a request of ping");
    let mut reply = request[34..].to_vec();
    reply[0] = 0;
    guest.send_icmp(&reply);
    assert!(ping.wait(LIMIT).unwrap().success(), "{}", ping.output());

    let after = bench.host.link_counters(&bench.tap).unwrap();
    let tap = format!("tap:{}", bench.tap);
    bench.wait_tap_counter("to", counted.get(&tap, "to") + after.rx_packets - before.rx_packets);
    let counters = bench.counters();
    let moved = |port: &str, name: &str| counters.get(port, name) - counted.get(port, name);
    assert_eq!(moved(&tap, "to bytes"), after.rx_bytes - before.rx_bytes);
    assert_eq!(moved(&tap, "from"), after.tx_packets - before.tx_packets);
    assert_eq!(moved(&tap, "from bytes"), after.tx_bytes - before.tx_bytes);
    assert_eq!((moved("net", "from"), moved("net", "to")), (moved(&tap, "to"), moved(&tap, "from")));
    assert_eq!((counters.dropped(&tap), moved("net", "no-buffer")), (0, 0), "{counters:?}");
}

/// The tap is handed over with all that waits in it: a TCP connection between a guest and the host outlives upgrades, and
/// the interface is never away.
#[test]
fn the_tap_outlives_upgrades() {
    for mut bench in [Bench::net(), Bench::switch()] {
        let port = if bench.server.socket("net").exists() { "net" } else { "a" };
        let mut guest = bench.guest(port, 0, feature::VERSION_1 | feature::NET_MRG_RXBUF);
        let mut connection = Connection::open(&bench, &mut guest, 7010);
        let before = bench.server.open_fds().unwrap();
        let index = interface_index(&bench);
        for round in 0..5u8 {
            connection.host.write_all(&[round; 3000]).unwrap();
            bench.server.upgrade().unwrap();
            connection.host.write_all(&[round; 3000]).unwrap();
            let mut bytes: Vec<u8> = Vec::new();
            while bytes.len() < 6000 {
                let (_, frame) = guest.recv_ip();
                // The host may have sent again what was not acknowledged in time.
                if sequence(&frame) == connection.expected {
                    bytes.extend(&frame[54..]);
                    connection.expected += frame.len() as u32 - 54;
                }
                let ack = segment(&connection.flow, connection.sequence, connection.expected, &[]);
                guest.frontend.send_frame(&complete(ack)).unwrap();
            }
            assert_eq!(bytes, [round; 6000]);
            let ack = segment(&connection.flow, connection.sequence, connection.expected, &[round; 100]);
            guest.frontend.send_frame(&complete(ack)).unwrap();
            connection.sequence += 100;
            let mut text = [0; 100];
            connection.host.read_exact(&mut text).unwrap();
            assert_eq!(text, [round; 100]);
        }
        assert_eq!(interface_index(&bench), index, "the same interface");
        assert_eq!(bench.server.open_fds().unwrap(), before);
        assert_eq!(bench.tap_counter("not-ready"), 0);
    }
}

/// The number of the tap's interface, which another of the same name would not have.
fn interface_index(bench: &Bench) -> String {
    let link = bench.host.run("ip", &["-o", "link", "show", &bench.tap]).unwrap();
    link.split(':').next().unwrap().to_owned()
}

/// [DEV-NET-packet-transmission-02] A partial checksum reaches the kernel as such, and only if the driver says
/// so and has negotiated it.
#[test]
fn partial_checksums_reach_the_host() {
    for (features, is_negotiated) in [(CSUM, true), (feature::VERSION_1, false)] {
        let bench = Bench::net();
        let mut guest = bench.guest("net", 0, features);
        let socket = bench.host.enter(|| UdpSocket::bind((HOST, 7000))).unwrap().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let flow = guest.flow(7000);
        let partial = |text: &[u8]| frame::udp(&flow, text, Checksum::Partial);

        let datagram = partial(b"partial");
        guest.send_with(&frame::partial_header(&datagram).unwrap(), &datagram);
        // Its positions mean nothing without the flag.
        let unsaid = VnetHeader { flags: 0, ..frame::partial_header(&datagram).unwrap() };
        guest.send_with(&unsaid, &partial(b"partial, but not said"));
        guest.send_with(&unsaid, &frame::udp(&flow, b"complete", Checksum::Complete));

        let expected: &[&[u8]] = if is_negotiated { &[b"partial", b"complete"] } else { &[b"complete"] };
        let mut text = [0; 100];
        for expected in expected {
            let (len, from) = socket.recv_from(&mut text).unwrap();
            assert_eq!(&text[..len], *expected);
            assert_eq!(from, SocketAddr::from((guest.ip, 4000)));
        }
        // The host's kernel refused the others, not ringway.
        bench.wait_tap_counter("to", 4);
    }
}

/// A TCP connection that the guest opened, with segments of 1460 bytes, and both sides of it.
struct Connection {
    flow: Flow,
    host: TcpStream,
    /// The number of the next byte that the guest sends.
    sequence: u32,
    /// The number of the next byte that the host sends.
    expected: u32,
}

const SEGMENT: usize = 1460;
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

impl Connection {
    fn open(bench: &Bench, guest: &mut Guest, port: u16) -> Self {
        let listener = bench.host.enter(|| TcpListener::bind((HOST, port))).unwrap().unwrap();
        let flow = guest.flow(port);
        // The option that says the segment's size is part of the header, which is six words long then.
        let mut syn = frame::tcp(&flow, 1000, SYN, &[2, 4, 0x05, 0xb4], Checksum::Partial);
        syn[46] = 0x60;
        guest.frontend.send_frame(&complete(syn)).unwrap();
        let (_, answer) = guest.recv_ip();
        assert_eq!(answer[47], SYN | ACK, "the host accepts");
        let expected = sequence(&answer) + 1;
        let ack = segment(&flow, 1001, expected, &[]);
        guest.frontend.send_frame(&complete(ack)).unwrap();
        let (host, _) = listener.accept().unwrap();
        host.set_read_timeout(Some(LIMIT)).unwrap();
        Self { flow, host, sequence: 1001, expected }
    }

    /// Takes what the host sends until `len` bytes are there; each frame with its header.
    fn receive(&mut self, guest: &mut Guest, len: usize) -> (Vec<u8>, Vec<(VnetHeader, Vec<u8>)>) {
        let (mut bytes, mut frames) = (Vec::new(), Vec::new());
        while bytes.len() < len {
            let (header, frame) = guest.recv_ip();
            assert_eq!(sequence(&frame), self.expected, "in order, once");
            let payload = &frame[54..];
            self.expected += payload.len() as u32;
            bytes.extend(payload);
            frames.push((header, frame));
        }
        (bytes, frames)
    }
}

/// A TCP segment over IPv4, whose checksum is partial.
fn segment(flow: &Flow, sequence: u32, acknowledged: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame::tcp(flow, sequence, ACK, payload, Checksum::Partial);
    frame[42..46].copy_from_slice(&acknowledged.to_be_bytes());
    frame
}

/// The same frame with its checksum completed.
fn complete(mut frame: Vec<u8>) -> Vec<u8> {
    frame::complete(&frame::partial_header(&frame).unwrap(), &mut frame).unwrap();
    frame
}

/// The sequence number of a TCP segment over IPv4.
fn sequence(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[38..42].try_into().unwrap())
}

/// Bytes that are not all alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// [DEV-NET-packet-transmission-07] A frame of many segments reaches the host as one frame, whatever `hdr_len`
/// says; without the feature it goes nowhere, and is counted.
#[test]
fn large_segments_reach_the_host() {
    for (features, is_negotiated) in [(HOST_TSO, true), (CSUM, false)] {
        large_segments(&Bench::net(), "net", features, is_negotiated);
        large_segments(&Bench::switch(), "a", features, is_negotiated);
    }
}

fn large_segments(bench: &Bench, port: &str, features: u64, is_negotiated: bool) {
    let mut guest = bench.guest(port, 0, features);
    let mut connection = Connection::open(bench, &mut guest, 7001);
    let before = bench.host.link_counters(&bench.tap).unwrap();
    let text = pattern(20_000);
    let frame = segment(&connection.flow, connection.sequence, connection.expected, &text);
    let header = VnetHeader {
        gso_type: VnetHeader::GSO_TCPV4,
        gso_size: SEGMENT as u16,
        hdr_len: 54,
        ..frame::partial_header(&frame).unwrap()
    };
    guest.send_with(&header, &frame);
    if !is_negotiated {
        guest.frontend.pair(0).wait_sent(LIMIT).unwrap();
        // What is behind it goes on.
        let text = pattern(1000);
        guest.send_with(
            &frame::partial_header(&frame).unwrap(),
            &segment(&connection.flow, connection.sequence, connection.expected, &text),
        );
        let mut received = [0; 1000];
        connection.host.read_exact(&mut received).unwrap();
        assert_eq!(received[..], text);
        assert_eq!(bench.counters().get(port, "malformed"), 1);
        return;
    }
    let mut received = vec![0; text.len()];
    connection.host.read_exact(&mut received).unwrap();
    assert!(received == text, "the same bytes");
    let after = bench.host.link_counters(&bench.tap).unwrap();
    assert_eq!(after.rx_packets - before.rx_packets, 1, "one frame");
    assert_eq!(after.rx_bytes - before.rx_bytes, frame.len() as u64);

    // A wrong hint is only that.
    connection.sequence += text.len() as u32;
    for hdr_len in [0, 65535] {
        let frame = segment(&connection.flow, connection.sequence, connection.expected, &text);
        guest.send_with(&VnetHeader { hdr_len, ..header }, &frame);
        connection.host.read_exact(&mut received).unwrap();
        assert!(received == text, "the same bytes");
        connection.sequence += text.len() as u32;
    }
    assert_eq!(bench.counters().dropped(port), 0);
}

/// [DEV-NET-processing-of-incoming-packets-05] [DEV-NET-processing-of-incoming-packets-06]
/// [DEV-NET-processing-of-incoming-packets-16] [DEV-NET-processing-of-incoming-packets-17]
/// [DEV-NET-processing-of-incoming-packets-20] [DEV-NET-processing-of-incoming-packets-21]
/// [DEV-NET-processing-of-incoming-packets-24] What the guest negotiated is what is left undone of what the host sends:
/// nothing, checksums, or segments too. On a wire the host's kernel does the rest, behind a switch it leaves all.
#[test]
fn the_guest_gets_what_it_negotiated() {
    for features in [feature::VERSION_1 | feature::NET_MRG_RXBUF, GUEST_CSUM, GUEST_TSO] {
        gets_what_it_negotiated(&Bench::net(), "net", features);
        let bench = Bench::switch();
        gets_what_it_negotiated(&bench, "a", features);
        assert!(bench.tap_counter("from") < 2 + 1 + 9, "frames of several segments");
        assert_eq!(bench.counters().get("a", "segmented") > 0, features != GUEST_TSO);
    }
}

fn gets_what_it_negotiated(bench: &Bench, port: &str, features: u64) {
    let mut guest = bench.guest(port, 0, features);
    let needs_csum = features & feature::NET_GUEST_CSUM != 0;

    let socket = bench.host.enter(|| UdpSocket::bind((HOST, 7000))).unwrap().unwrap();
    socket.send_to(b"datagram", (guest.ip, 4000)).unwrap();
    let (header, mut datagram) = guest.recv_ip();
    assert_eq!(header.flags, if needs_csum { VnetHeader::NEEDS_CSUM } else { 0 });
    assert_eq!(header.gso_type, VnetHeader::GSO_NONE);
    if needs_csum {
        frame::complete(&header, &mut datagram).unwrap();
    }
    frame::check(&datagram).unwrap();
    assert_eq!(&datagram[42..], b"datagram");

    let mut connection = Connection::open(bench, &mut guest, 7001);
    // As much as TCP sends before it waits for an acknowledgement.
    let text = pattern(9 * SEGMENT);
    connection.host.write_all(&text).unwrap();
    let (received, frames) = connection.receive(&mut guest, text.len());
    assert!(received == text, "the same bytes");
    for (header, mut frame) in frames {
        let is_large = frame.len() > 54 + SEGMENT;
        assert_eq!(header.flags, if needs_csum { VnetHeader::NEEDS_CSUM } else { 0 });
        if needs_csum {
            frame::complete(&header, &mut frame).unwrap();
        }
        frame::check(&frame).unwrap();
        if is_large {
            assert_eq!(features, GUEST_TSO, "a frame of {} bytes", frame.len());
            assert_eq!(header.gso_type, VnetHeader::GSO_TCPV4);
            assert_eq!(usize::from(header.gso_size), SEGMENT);
            assert!(header.hdr_len >= 54, "{header:?}");
        } else {
            assert_eq!(header.gso_type, VnetHeader::GSO_NONE, "{header:?}");
        }
    }
    let counters = bench.counters();
    assert_eq!(counters.dropped(port), 0, "{counters:?}");
    // Nine segments in fewer frames, or in one each.
    let to_guest = counters.get(port, "to");
    assert_eq!(to_guest < 2 + 1 + 9, features == GUEST_TSO, "{counters:?}");
}

/// A guest that comes after another, with other features, gets what it negotiated itself.
#[test]
fn the_next_guest_negotiates_anew() {
    let bench = Bench::net();
    for features in [GUEST_TSO, feature::VERSION_1, GUEST_CSUM, feature::VERSION_1] {
        let mut guest = bench.guest("net", 0, features);
        let socket = bench.host.enter(|| UdpSocket::bind((HOST, 7000))).unwrap().unwrap();
        socket.send_to(b"datagram", (guest.ip, 4000)).unwrap();
        let (header, datagram) = guest.recv_ip();
        let needs_csum = features & feature::NET_GUEST_CSUM != 0;
        assert_eq!(header.flags, if needs_csum { VnetHeader::NEEDS_CSUM } else { 0 });
        assert_eq!(frame::check(&datagram).is_ok(), !needs_csum);
        guest.frontend.stop().unwrap();
    }
}

/// [DEV-NET-processing-of-incoming-packets-05] The host is a station of the switch like the guests are: found
/// where it is, and not disturbed by others' frames; what it sends to all reaches each as it has negotiated.
#[test]
fn the_switch_has_a_host() {
    let bench = Bench::switch();
    let mut a = bench.guest("a", 0, feature::VERSION_1);
    let mut b = bench.guest("b", 1, GUEST_CSUM);
    // b's question was for all.
    let (_, asked) = a.recv(LIMIT).unwrap();
    assert_eq!((&asked[..6], &asked[6..12]), (&frame::BROADCAST[..], &b.mac[..]));

    let before = bench.host.link_counters(&bench.tap).unwrap();
    let request = echo_request(b"for a");
    a.send_icmp(&request);
    assert_eq!(a.recv_ip().1[38..], request[4..]);
    b.send_icmp(&request);
    assert_eq!(b.recv_ip().1[38..], request[4..]);
    // From guest to guest, past the host.
    let message = frame::ethernet(b.mac, a.mac, 0x88b5, b"from a to b, and long enough to need no padding");
    for _ in 0..10 {
        a.frontend.send_frame(&message).unwrap();
        assert_eq!(b.recv(LIMIT).unwrap().1, message);
    }
    let after = bench.host.link_counters(&bench.tap).unwrap();
    assert_eq!(after.rx_packets - before.rx_packets, 2, "two requests");

    // One frame for all: each gets it as it has negotiated.
    let socket = bench.host.enter(|| UdpSocket::bind((HOST, 7000))).unwrap().unwrap();
    socket.set_broadcast(true).unwrap();
    socket.send_to(b"for all", (Ipv4Addr::new(10, 9, 0, 255), 4000)).unwrap();
    let (header, whole) = a.recv_ip();
    assert_eq!((header.flags, header.gso_type), (0, VnetHeader::GSO_NONE));
    frame::check(&whole).unwrap();
    let (header, partial) = b.recv_ip();
    assert_eq!((header.flags, header.gso_type), (VnetHeader::NEEDS_CSUM, VnetHeader::GSO_NONE));
    assert_eq!(complete(partial), whole);

    // The host leaves segments to the switch, and b takes none.
    let mut connection = Connection::open(&bench, &mut b, 7001);
    let text = pattern(9 * SEGMENT);
    connection.host.write_all(&text).unwrap();
    let (received, frames) = connection.receive(&mut b, text.len());
    assert!(received == text, "the same bytes");
    for (header, frame) in frames {
        assert_eq!(header.gso_type, VnetHeader::GSO_NONE);
        frame::check(&complete(frame)).unwrap();
    }
    assert_eq!(a.recv(SHORT), None, "nothing of that was for a");
}

/// An interface that is down takes no frames, and goes on when it is up; one that is deleted takes none any
/// more, costs nothing, and does not end the program.
#[test]
fn the_interface_goes_down_and_away() {
    let bench = Bench::net();
    let mut guest = bench.guest("net", 0, feature::VERSION_1);
    let request = echo_request(b"are you there");

    bench.host.run("ip", &["link", "set", &bench.tap, "down"]).unwrap();
    guest.send_icmp(&request);
    assert_eq!(guest.recv(SHORT), None);
    bench.wait_tap_counter("not-ready", 1);
    bench.host.run("ip", &["link", "set", &bench.tap, "up"]).unwrap();
    guest.meet_host();
    guest.send_icmp(&request);
    assert_eq!(guest.recv_ip().1[38..], request[4..]);

    bench.host.run("ip", &["link", "del", &bench.tap]).unwrap();
    guest.send_icmp(&request);
    assert_eq!(guest.recv(SHORT), None);
    let ticks = bench.server.cpu_ticks().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(bench.server.cpu_ticks().unwrap() - ticks < 10, "it waits for nothing without a pause");
    bench.wait_tap_counter("not-ready", 2);
    guest.frontend.stop().unwrap();
    let (status, _) = bench.server.terminate().unwrap();
    assert!(status.success());
}

/// A real guest and its host: each pings the other, and iperf3 measures TCP both ways.
#[test]
fn a_linux_guest_talks_to_its_host() {
    let bench = Bench::net();
    let images = guest::ensure_images().unwrap();
    let options = UmlOptions::new([bench.server.socket("net")]);
    let mut linux = guest::boot_uml("guest", &images, &options).unwrap();
    linux.wait_ready(guest::BOOT_LIMIT).unwrap();
    linux.configure(&format!("{GUEST}/24"), None).unwrap();
    let features = linux.features().unwrap();
    let offloads = HOST_TSO | GUEST_TSO | feature::EVENT_IDX;
    assert_eq!(features & offloads, offloads, "{features:#x}");

    let pings = linux.ping(&HOST.to_string(), 3).unwrap();
    assert_eq!((pings.sent, pings.received), (3, 3));
    let mut ping = start_ping(&bench.host, GUEST, 3);
    assert!(ping.wait(Duration::from_secs(10)).unwrap().success());
    assert!(ping.output().contains("3 packets received"), "{}", ping.output());

    let limit = Duration::from_secs(30);
    let mut rates = [0.0; 2];
    for (rate, direction) in rates.iter_mut().zip(["", "--reverse"]) {
        let host = HOST.to_string();
        let mut server = bench.host.command("iperf3").unwrap();
        let server =
            Process::start("iperf3", server.args(["--server", "--one-off", "--forceflush"])).unwrap();
        server.wait_for("Server listening", limit).unwrap();
        let report =
            linux.run(&format!("iperf3 --client {host} --time 2 --json {direction}"), limit).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let received = &report["end"]["sum_received"];
        assert!(received["bytes"].as_u64().unwrap() > 10 << 20, "{received}");
        *rate = received["bits_per_second"].as_f64().unwrap() / 1e9;
    }
    let [to_host, to_guest] = rates;

    let counters = bench.counters();
    println!("guest to host {to_host:.2} Gbit/s, host to guest {to_guest:.2} Gbit/s");
    let frames = counters.get("net", "from") + counters.get("net", "to");
    let moved = counters.get("net", "from bytes") + counters.get("net", "to bytes");
    assert!(moved / frames > 1514, "segments pass whole: {} bytes in a frame", moved / frames);
    assert_eq!(counters.get("net", "failed rings"), 0);
    assert_eq!(counters.get("net", "malformed") + counters.get("net", "unsegmentable"), 0);
}
