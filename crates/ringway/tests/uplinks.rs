//! Uplinks of each kind: frames between a guest and a host that lives in a namespace of its own, behind a tap, a macvtap
//! or a packet socket. It is the kernel at the other end of the wire that says whether they are right.
//!
//! ```text
//!   guest ── ringway ── tap                      ── host          (the tap itself is in the namespace)
//!   guest ── ringway ── macvtap ── veth ─ veth   ── host
//!   guest ── ringway ── packet socket on veth ─ veth ── host
//! ```

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ringway_testkit::frontend::frame::{self, Checksum, Flow, Mac};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{Arrangement, NetFrontend, Options, VnetHeader};
use ringway_testkit::guest::{self, Guest, UmlOptions};
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
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const GUEST_MAC: Mac = [2, 0, 0, 0, 0, 1];
const GUEST_MAC_TEXT: &str = "02:00:00:00:00:01";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tap,
    Macvtap,
    Packet,
}

const KINDS: [Kind; 3] = [Kind::Tap, Kind::Macvtap, Kind::Packet];

/// A `ringway` with an uplink, and a host behind that.
struct Bench {
    server: Server,
    host: Netns,
    /// The host's interface.
    inside: String,
    /// The uplink's interface; of a tap, the same.
    outside: String,
    /// The uplink's port.
    port: String,
}

impl Bench {
    /// `options` follow the interface's name; `extra` are further arguments.
    fn new(kind: Kind, options: &str, extra: &[&str]) -> Self {
        let host = Netns::new().unwrap();
        let (inside, outside) = (netns::interface_name(), netns::interface_name());
        let (outside, port) = match kind {
            Kind::Tap => (inside.clone(), format!("tap:{inside}")),
            Kind::Macvtap => {
                host.add_wire(&outside, &inside, HOST_NET).unwrap();
                let macvtap = netns::interface_name();
                ip(&["link", "add", "link", &outside, "name", &macvtap, "type", "macvtap", "mode", "bridge"]);
                netns::silence(&macvtap).unwrap();
                ip(&["link", "set", &macvtap, "up"]);
                let port = format!("macvtap:{macvtap}");
                (macvtap, port)
            }
            Kind::Packet => {
                host.add_wire(&outside, &inside, HOST_NET).unwrap();
                let port = format!("packet:{outside}");
                (outside, port)
            }
        };
        let server = Server::net(Path::new(PROGRAM), &format!("{port}{options}"), extra).unwrap();
        if kind == Kind::Tap {
            host.adopt(&inside, HOST_NET).unwrap();
        }
        Self { server, host, inside, outside, port }
    }

    fn counters(&self) -> Counters {
        self.server.counters().unwrap()
    }

    /// Sets the uplink's interface up or down.
    fn set_link(&self, state: &str) {
        if self.inside == self.outside {
            self.host.run("ip", &["link", "set", &self.inside, state]).unwrap();
        } else {
            ip(&["link", "set", &self.outside, state]);
        }
    }

    /// Boots a Linux, which has an address and reaches the host.
    fn boot(&self) -> Guest {
        let images = guest::ensure_images().unwrap();
        let mut linux =
            guest::boot_uml("guest", &images, &UmlOptions::new([self.server.socket("net")])).unwrap();
        linux.wait_ready(guest::BOOT_LIMIT).unwrap();
        linux.configure(&format!("{GUEST}/24"), None).unwrap();
        linux
    }

    /// Attaches a driver of ours, whom the host knows.
    fn attach(&self, features: u64) -> NetFrontend {
        let neighbour =
            ["neigh", "replace", &GUEST.to_string(), "lladdr", GUEST_MAC_TEXT, "dev", &self.inside];
        self.host.run("ip", &[&neighbour[..], &["nud", "permanent"]].concat()).unwrap();
        let frontend = NetFrontend::up(self.server.socket("net"), features, Options::default()).unwrap();
        assert_eq!(frontend.features() & features, features);
        frontend
    }

    /// From the guest to the host.
    fn flow(&self) -> Flow {
        Flow {
            src_mac: GUEST_MAC,
            dst_mac: self.host_mac(),
            src_ip: GUEST.into(),
            dst_ip: HOST.into(),
            src_port: 4000,
            dst_port: 7000,
        }
    }

    fn host_mac(&self) -> Mac {
        let link = self.host.run("ip", &["-o", "link", "show", &self.inside]).unwrap();
        mac_of(&link)
    }
}

/// The address in a line of `ip link`.
fn mac_of(link: &str) -> Mac {
    let text = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("an address");
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Runs `ip` outside of the host.
fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn assert_reaches(linux: &mut Guest) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let pings = linux.ping(&HOST.to_string(), 2).unwrap();
        if pings.received == pings.sent {
            return;
        }
        assert!(Instant::now() < deadline, "{pings:?}");
    }
}

/// TCP between guest and host for two seconds, in Gbit/s.
fn iperf(bench: &Bench, linux: &mut Guest, direction: &str) -> f64 {
    let limit = Duration::from_secs(30);
    let mut server = bench.host.command("iperf3").unwrap();
    let server = Process::start("iperf3", server.args(["--server", "--one-off", "--forceflush"])).unwrap();
    server.wait_for("Server listening", limit).unwrap();
    let report = linux.run(&format!("iperf3 --client {HOST} --time 2 --json {direction}"), limit).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let received = &report["end"]["sum_received"];
    assert!(received["bytes"].as_u64().unwrap() > 10 << 20, "{received}");
    received["bits_per_second"].as_f64().unwrap() / 1e9
}

/// A real guest and a host: pings, TCP both ways with and without segments that are cut at the end only, the interface
/// down and up again, and an upgrade.
fn a_linux_guest_talks(kind: Kind) {
    let mut bench = Bench::new(kind, "", &[]);
    let mut linux = bench.boot();
    assert_reaches(&mut linux);
    let mut ping = bench.host.command("busybox").unwrap();
    let mut ping = Process::start("ping", ping.args(["ping", "-c", "3", &GUEST.to_string()])).unwrap();
    assert!(ping.wait(Duration::from_secs(10)).unwrap().success(), "{}", ping.output());

    let (to_host, to_guest) = (iperf(&bench, &mut linux, ""), iperf(&bench, &mut linux, "--reverse"));
    println!("{kind:?}: guest to host {to_host:.2} Gbit/s, host to guest {to_guest:.2} Gbit/s");
    let counters = bench.counters();
    for direction in ["from", "to"] {
        let (frames, bytes) =
            (counters.get("net", direction), counters.get("net", &format!("{direction} bytes")));
        println!("{direction} the guest: {} bytes a frame", bytes / frames);
    }
    let frames = counters.get("net", "from") + counters.get("net", "to");
    let moved = counters.get("net", "from bytes") + counters.get("net", "to bytes");
    assert!(moved / frames > 1514, "segments pass whole: {} bytes in a frame", moved / frames);
    bench.host.run("ip", &["link", "set", &bench.inside, "gso_max_segs", "1"]).unwrap();
    println!(
        "{kind:?}: host to guest in single segments {:.2} Gbit/s",
        iperf(&bench, &mut linux, "--reverse")
    );

    for _ in 0..2 {
        bench.set_link("down");
        let pings = linux.ping(&HOST.to_string(), 2).unwrap();
        assert_eq!(pings.received, 0, "the interface is down");
        bench.set_link("up");
        assert_reaches(&mut linux);
    }
    let told = bench.server.output().matches("the interface is").count();
    assert_eq!(told, if kind == Kind::Packet { 2 } else { 0 }, "{}", bench.server.output());

    for _ in 0..3 {
        bench.server.upgrade().unwrap();
        assert_reaches(&mut linux);
    }
    let counters = bench.counters();
    assert!(counters.get(&bench.port, "to") <= counters.get("net", "from"), "{counters:?}");
    assert_eq!(counters.get("net", "failed rings"), 0);
    assert_eq!(counters.get("net", "malformed") + counters.get("net", "unsegmentable"), 0, "{counters:?}");
}

#[test]
fn a_linux_guest_talks_by_a_tap() {
    a_linux_guest_talks(Kind::Tap);
}

#[test]
fn a_linux_guest_talks_by_a_macvtap() {
    a_linux_guest_talks(Kind::Macvtap);
}

#[test]
fn a_linux_guest_talks_by_a_packet_socket() {
    a_linux_guest_talks(Kind::Packet);
}

/// The next frame of IPv4; the host may ask for addresses in between.
fn next_datagram(frontend: &mut NetFrontend) -> Option<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    while let Some((_, frame)) =
        frontend.recv_frame(deadline.saturating_duration_since(Instant::now())).unwrap()
    {
        if frame[12..14] == frame::IPV4.to_be_bytes() {
            return Some(frame);
        }
    }
    None
}

/// With several workers each frame comes once, whatever its flow, and goes out by any; also through a tap that has one
/// queue only.
#[test]
fn workers_share_an_uplink() {
    const FLOWS: u16 = 64;
    const ROUNDS: u8 = 4;
    for kind in KINDS {
        // A macvtap takes frames for its own address.
        let options = if kind == Kind::Macvtap { format!(",mac={GUEST_MAC_TEXT}") } else { String::new() };
        let bench = Bench::new(kind, &options, &["--workers=2"]);
        if kind == Kind::Tap {
            bench
                .host
                .run("ip", &["-d", "link", "show", &bench.inside])
                .map(|link| {
                    assert!(link.contains("multi_queue numqueues 2"), "{link}");
                })
                .unwrap();
        }
        share(&bench, FLOWS, ROUNDS);
    }
    let host = Netns::new().unwrap();
    let tap = netns::interface_name();
    ip(&["tuntap", "add", &tap, "mode", "tap", "vnet_hdr"]);
    let port = format!("tap:{tap}");
    let server = Server::net(Path::new(PROGRAM), &port, &["--workers=2"]).unwrap();
    host.adopt(&tap, HOST_NET).unwrap();
    share(&Bench { server, host, inside: tap.clone(), outside: tap, port }, FLOWS, ROUNDS);
}

fn share(bench: &Bench, flows: u16, rounds: u8) {
    let mut frontend = bench.attach(feature::VERSION_1 | feature::NET_MRG_RXBUF);
    let open = |_| bench.host.enter(|| UdpSocket::bind((HOST, 0))).unwrap().unwrap();
    let sockets: Vec<UdpSocket> = (0..flows).map(open).collect();
    let mut seen = std::collections::BTreeMap::new();
    for round in 0..rounds {
        for socket in &sockets {
            socket.send_to(&[round; 32], (GUEST, 4000)).unwrap();
        }
        for _ in &sockets {
            let datagram = next_datagram(&mut frontend).expect("every datagram arrives");
            let port = u16::from_be_bytes([datagram[34], datagram[35]]);
            let before = seen.insert(port, datagram[42]);
            assert_eq!(before, round.checked_sub(1), "in the order of its flow, once");
        }
    }
    assert_eq!(seen.len(), sockets.len());
    assert_eq!(frontend.recv_frame(SHORT).unwrap(), None, "none twice");

    let receiver = bench.host.enter(|| UdpSocket::bind((HOST, 7000))).unwrap().unwrap();
    receiver.set_read_timeout(Some(LIMIT)).unwrap();
    let mut text = [0; 64];
    for number in 0..100u8 {
        let datagram = frame::udp(&bench.flow(), &[number; 20], Checksum::Complete);
        frontend.send_frame(&datagram).unwrap();
        assert_eq!(receiver.recv(&mut text).unwrap(), 20);
        assert_eq!(text[..20], [number; 20]);
    }
}

/// Between two packet sockets a frame stays as it is: its tag, which the kernel takes out on the way, where its checksum
/// has to be completed, how it is to be segmented.
#[test]
fn packet_sockets_change_nothing() {
    let bench = Bench::new(Kind::Packet, "", &[]);
    let other = Server::net_in(&bench.host, PROGRAM, &format!("packet:{}", bench.inside), &[]).unwrap();
    let features = feature::VERSION_1 | feature::NET_MRG_RXBUF | feature::NET_CSUM | feature::NET_GUEST_CSUM;
    let features = features | feature::NET_HOST_TSO4 | feature::NET_GUEST_TSO4;
    let mut a = bench.attach(features);
    let mut b = NetFrontend::up(other.socket("net"), features, Options::default()).unwrap();

    let flow = Flow { dst_mac: [2, 0, 0, 0, 0, 2], ..bench.flow() };
    let whole = frame::udp(&flow, b"whole", Checksum::Complete);
    let partial = frame::udp(&flow, b"a partial checksum", Checksum::Partial);
    let needs_csum = frame::partial_header(&partial).unwrap();
    let text = [0x5a; 1000].repeat(20);
    let segments = frame::tcp(&flow, 1, 0x10, &text, Checksum::Partial);
    let gso_type = VnetHeader::GSO_TCPV4;
    let needs_gso = frame::partial_header(&segments).unwrap();
    let needs_gso = VnetHeader { gso_type, gso_size: 1460, hdr_len: 54, ..needs_gso };
    for (frame, header) in [(whole, VnetHeader::default()), (partial, needs_csum), (segments, needs_gso)] {
        for is_tagged in [false, true] {
            let (mut frame, mut header) = (frame.clone(), header);
            if is_tagged {
                frame = frame::tagged(&frame, 0x6005);
                header.csum_start += if header.csum_start == 0 { 0 } else { 4 };
                header.hdr_len += if header.hdr_len == 0 { 0 } else { 4 };
            }
            a.send_frame_with_header(&header, &frame, &Arrangement::whole()).unwrap();
            let (received, arrived) = b.recv_frame(LIMIT).unwrap().expect("the frame");
            assert!(arrived == frame, "{is_tagged} {header:?}: {arrived:02x?}");
            let same = (received.flags, received.gso_type, received.gso_size, received.csum_start);
            assert_eq!(same, (header.flags, header.gso_type, header.gso_size, header.csum_start));
            assert_eq!(received.csum_offset, header.csum_offset);
        }
    }
}

/// An uplink has rules as any port has: its host knows no tags, the guest sees them, and what comes too fast is dropped.
#[test]
fn an_uplink_has_rules() {
    let (host, inside) = (Netns::new().unwrap(), netns::interface_name());
    let uplink = format!("--uplink=tap:{inside},vlan=7,tx-frames=1");
    let mirror = format!("--mirror=tap:{inside}=m");
    let server = Server::switch(Path::new(PROGRAM), &["a", "m"], &[&uplink, &mirror]).unwrap();
    host.adopt(&inside, HOST_NET).unwrap();
    let [mut a, mut m] = ["a", "m"]
        .map(|port| NetFrontend::up(server.socket(port), feature::VERSION_1, Options::default()).unwrap());
    // Who has the host's address? Tell the guest (RFC 826).
    let ask = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &GUEST_MAC, &GUEST.octets(), &[0; 6], &HOST.octets()].concat();
    let ask = frame::ethernet(frame::BROADCAST, GUEST_MAC, 0x0806, &ask);
    a.send_frame(&ask).unwrap();
    a.send_frame(&frame::tagged(&ask, 8)).unwrap();
    for _ in 0..100 {
        a.send_frame(&frame::tagged(&ask, 7)).unwrap();
    }
    loop {
        let (_, got) = a.recv_frame(LIMIT).unwrap().expect("the host's answer");
        assert_eq!(got[12..16], [0x81, 0, 0, 7], "all that the host sends is in the VLAN");
        // It has other things to say, too.
        if got[16..18] == [8, 6] && got[24..26] == [0, 2] {
            break;
        }
    }
    while m.recv_frame(LIMIT).unwrap().expect("the watcher sees the question").1 != ask {}
    let deadline = Instant::now() + LIMIT;
    while server.counters().unwrap().get(&format!("tap:{inside}"), "limited") < 50 {
        assert!(Instant::now() < deadline, "{:?}", server.counters());
    }
    assert_eq!(server.counters().unwrap().get("a", "filtered"), 2, "nobody else is in the other VLANs");
}

/// The interface gets the address that is said, and a macvtap's is the device's.
#[test]
fn uplinks_have_addresses() {
    for kind in KINDS {
        let bench = Bench::new(kind, ",mac=02:00:00:00:07:07", &[]);
        let show = ["-o", "link", "show", &bench.outside];
        let link = if kind == Kind::Tap { bench.host.run("ip", &show).unwrap() } else { ip(&show) };
        assert_eq!(mac_of(&link), [2, 0, 0, 0, 7, 7]);
        let frontend =
            NetFrontend::up(bench.server.socket("net"), feature::VERSION_1, Options::default()).unwrap();
        let offers_mac = frontend.offered() & feature::NET_MAC != 0;
        assert_eq!(offers_mac, kind == Kind::Macvtap, "a macvtap takes frames for its own address");
    }
}

/// A switch has several uplinks: hosts behind them reach each other, with segments yet to be cut and upgrades between.
#[test]
fn uplinks_of_a_switch_reach_each_other() {
    let [near, far] = [(); 2].map(|()| Netns::new().unwrap());
    let [tap, outside, inside] = [(); 3].map(|()| netns::interface_name());
    far.add_wire(&outside, &inside, "10.9.0.3/24").unwrap();
    let uplinks = [format!("--uplink=tap:{tap}"), format!("--uplink=packet:{outside}"), "--workers=2".into()];
    let uplinks: Vec<&str> = uplinks.iter().map(String::as_str).collect();
    let mut server = Server::switch(Path::new(PROGRAM), &["a"], &uplinks).unwrap();
    near.adopt(&tap, HOST_NET).unwrap();
    let ping = |from: &Netns, to: &str| from.run("busybox", &["ping", "-c", "3", "-i", "0.2", to]).unwrap();
    ping(&near, "10.9.0.3");
    for (from, to, address) in [(&near, &far, "10.9.0.3"), (&far, &near, "10.9.0.1")] {
        let mut listen = to.command("iperf3").unwrap();
        let listen =
            Process::start("iperf3", listen.args(["--server", "--one-off", "--forceflush"])).unwrap();
        listen.wait_for("Server listening", LIMIT).unwrap();
        let report = from.run("iperf3", &["--client", address, "--time", "1", "--json"]).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert!(report["end"]["sum_received"]["bytes"].as_u64().unwrap() > 10 << 20, "{report}");
    }
    server.upgrade().unwrap();
    ping(&far, "10.9.0.1");
    let counters = server.counters().unwrap();
    for port in [format!("tap:{tap}"), format!("packet:{outside}")] {
        assert_eq!(
            counters.get(&port, "malformed") + counters.get(&port, "unsegmentable"),
            0,
            "{counters:?}"
        );
    }
}

/// A macvtap is found where its node in `/dev` is missing, or is another device.
#[test]
fn a_macvtap_needs_no_node() {
    let bench = Bench::new(Kind::Macvtap, "", &[]);
    let link = ip(&["-o", "link", "show", &bench.outside]);
    let node = format!("/dev/tap{}", link.split(':').next().unwrap());
    std::fs::remove_file(&node).unwrap();
    drop(Server::net(Path::new(PROGRAM), &bench.port, &[]).unwrap());
    // The zero device, say.
    let made = Command::new("mknod").args([&node, "c", "1", "5"]).status().unwrap();
    assert!(made.success());
    let server = Server::net(Path::new(PROGRAM), &bench.port, &[]);
    std::fs::remove_file(&node).unwrap();
    server.unwrap();
}

/// What cannot be an uplink is refused with a reason, in one line.
#[test]
fn wrong_uplinks_are_refused() {
    for (uplink, reason) in [
        ("packet:nosuch0", "No such device"),
        ("macvtap:lo", "lo is not a macvtap"),
        ("macvtap:nosuch0", "No such device"),
        ("tap:lo", "cannot attach to tap lo"),
        ("packet:a-name-too-long-for-one", "is not the name of an interface"),
        ("packet:lo,mak=1", "\"mak=1\" is none of mac=ADDRESS"),
        ("bridge:br0", "it is tap:IFNAME, macvtap:IFNAME, packet:IFNAME"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let socket = format!("--socket-path={}", dir.path().join("s").display());
        let run = Command::new(PROGRAM).args(["net", &socket, "--uplink", uplink]).output().unwrap();
        let text = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success() && text.contains(reason), "{uplink}: {text}");
    }
}
