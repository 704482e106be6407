//! Real Linux guests, under QEMU and as User-Mode Linux, on a switch.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ringway_testkit::frontend::wire::feature;
use ringway_testkit::guest::{
    BOOT_LIMIT, Guest, Images, Nic, QemuOptions, UmlOptions, boot_qemu, boot_uml, ensure_images, transfer,
};
use ringway_testkit::server::Server;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");
const SHORT: Duration = Duration::from_secs(20);

fn switch(ports: &[&str]) -> Server {
    Server::switch(Path::new(PROGRAM), ports, &[]).expect("ringway starts")
}

fn images() -> Images {
    ensure_images().expect("guests/setup.sh gets the guests' images")
}

/// A User-Mode Linux guest on a port, up with an address.
fn uml(server: &Server, port: &str, address: &str) -> Guest {
    let mut guest = boot_uml(port, &images(), &UmlOptions::new([server.socket(port)])).expect("it starts");
    ready(&mut guest, address);
    guest
}

/// A guest under QEMU on a port, up with an address.
fn qemu(nic: Nic, name: &str, address: &str) -> Guest {
    let mut guest = boot_qemu(name, &images(), &QemuOptions::new([nic])).expect("it starts");
    ready(&mut guest, address);
    guest
}

fn ready(guest: &mut Guest, address: &str) {
    guest.wait_ready(BOOT_LIMIT).expect("it boots");
    guest.configure(&format!("{address}/24"), None).expect("it has a virtio network interface");
}

/// Pings until an answer comes: a peer may just have come back.
fn reaches(guest: &mut Guest, address: &str) {
    let deadline = Instant::now() + SHORT;
    loop {
        let answered = guest.ping(address, 2).is_ok_and(|stats| stats.received > 0);
        if answered {
            return;
        }
        assert!(Instant::now() < deadline, "{} does not reach {address}", guest.name());
    }
}

fn moves(from: &mut Guest, to: &mut Guest, address: &str) {
    let done = transfer(from, to, address, 5000, 16).expect("a transfer");
    assert!(done.is_intact(), "{} to {}: {done:?}", from.name(), to.name());
    println!("{} to {}: {:.0} MB/s", from.name(), to.name(), done.megabytes_per_second());
}

/// Traffic both ways, then each guest reboots while the other's session goes on.
#[test]
fn two_guests_exchange_traffic_and_reboot() {
    let server = switch(&["a", "b,mac=02:00:00:00:00:0b"]);
    let mut a = qemu(Nic::new(server.socket("a")).mac("02:00:00:00:00:0a"), "a", "10.0.0.1");
    let mut b = uml(&server, "b", "10.0.0.2");
    assert_eq!(b.mac().unwrap(), "02:00:00:00:00:0b", "the port's address reached the driver");
    reaches(&mut a, "10.0.0.2");
    reaches(&mut b, "10.0.0.1");
    moves(&mut a, &mut b, "10.0.0.2");
    moves(&mut b, &mut a, "10.0.0.1");

    let counters = server.counters().unwrap();
    let copies = counters.get("a", "copies") + counters.get("b", "copies");
    let frames = counters.get("a", "to") + counters.get("b", "to");
    assert_eq!(copies, frames, "one copy per frame: both guests complete checksums themselves");
    for (port, other) in [("a", "b"), ("b", "a")] {
        let lost =
            counters.get(port, "malformed") + counters.get(port, "filtered") + counters.get(port, "disabled");
        let undelivered = counters.get(other, "no-buffer") + counters.get(other, "not-ready");
        assert_eq!(counters.get(port, "from"), counters.get(other, "to") + lost + undelivered);
    }

    a.reboot(BOOT_LIMIT).unwrap();
    a.configure("10.0.0.1/24", None).unwrap();
    reaches(&mut b, "10.0.0.1");
    assert_eq!(server.counters().unwrap().get("b", "sessions"), 1);
    b.reboot(BOOT_LIMIT).unwrap();
    b.configure("10.0.0.2/24", None).unwrap();
    reaches(&mut a, "10.0.0.2");
    moves(&mut a, &mut b, "10.0.0.2");

    a.power_off(SHORT).unwrap();
    b.power_off(SHORT).unwrap();
    let output = server.output();
    assert!(!output.contains("WARN") && !output.contains("ERROR"), "{output}");
    assert!(server.terminate().unwrap().0.success());
}

/// A driver whose control queue is served here says which frames it wants and which address it has, and takes the header
/// with a hash.
#[test]
fn a_guest_says_what_it_wants() {
    const STRANGER: &str = "02:00:00:00:00:99";
    let server = switch(&["a,mac=02:00:00:00:00:0a,rss,filters,speed=25000", "b,mac=02:00:00:00:00:0b"]);
    let (mut a, mut b) = (uml(&server, "a", "10.0.0.1"), uml(&server, "b", "10.0.0.2"));
    let wanted = feature::NET_RSS
        | feature::NET_HASH_REPORT
        | feature::NET_CTRL_RX
        | feature::NET_CTRL_VLAN
        | feature::NET_CTRL_MAC_ADDR
        | feature::NET_CTRL_GUEST_OFFLOADS
        | feature::NET_GUEST_ANNOUNCE
        | feature::NET_SPEED_DUPLEX;
    assert_eq!(a.features().unwrap() & wanted, wanted);
    assert_eq!(a.run("cat /sys/class/net/eth0/speed", SHORT).unwrap().trim(), "25000");
    reaches(&mut a, "10.0.0.2");
    moves(&mut a, &mut b, "10.0.0.2");
    moves(&mut b, &mut a, "10.0.0.1");

    // To an address that nobody has, so they go everywhere.
    b.run(&format!("arp -s 10.0.0.9 {STRANGER}"), SHORT).unwrap();
    let mut strangers = |a: &mut Guest| {
        let before = server.counters().unwrap().get("a", "filtered");
        assert_eq!(b.ping("10.0.0.9", 3).unwrap().received, 0);
        let received = a.run("cat /sys/class/net/eth0/statistics/rx_packets", SHORT).unwrap();
        (server.counters().unwrap().get("a", "filtered") - before, received.trim().parse::<u64>().unwrap())
    };
    let (filtered, _) = strangers(&mut a);
    assert!(filtered >= 3, "{filtered}");
    let (_, before) = strangers(&mut a);
    a.run("ip link set eth0 promisc on", SHORT).unwrap();
    let (filtered, received) = strangers(&mut a);
    assert!(filtered == 0 && received >= before + 3, "{filtered}, {received} after {before}");
    a.run("ip link set eth0 promisc off", SHORT).unwrap();
    assert!(strangers(&mut a).0 >= 3);

    a.run(
        &format!("ip link set eth0 down && ip link set eth0 address {STRANGER} && ip link set eth0 up"),
        SHORT,
    )
    .unwrap();
    let (filtered, received) = strangers(&mut a);
    assert!(filtered == 0 && received >= before + 6, "{filtered}, {received} after {before}");
    b.run("arp -d 10.0.0.1", SHORT).unwrap();
    reaches(&mut b, "10.0.0.1");
    let output = server.output();
    assert!(!output.contains("WARN") && !output.contains("ERROR"), "{output}");
}

/// A card with packed rings of this size, and more properties.
fn packed(server: &Server, port: &str, size: u16, properties: &str) -> Nic {
    let sizes = format!("rx_queue_size={size},tx_queue_size={size}");
    Nic::new(server.socket(port)).property("packed=on").property(&sizes).property(properties)
}

/// A guest with packed rings under QEMU, and a User-Mode Linux, which takes them whenever they are offered.
fn two_packed_guests(server: &Server, nic: Nic, options: impl FnOnce(&mut QemuOptions)) -> [Guest; 2] {
    let mut options_of_a = QemuOptions::new([nic.mac("02:00:00:00:00:0a")]);
    options(&mut options_of_a);
    let mut a = boot_qemu("a", &images(), &options_of_a).expect("it starts");
    ready(&mut a, "10.0.0.1");
    let mut b = uml(server, "b", "10.0.0.2");
    for guest in [&mut a, &mut b] {
        assert_ne!(guest.features().unwrap() & feature::RING_PACKED, 0, "{}", guest.name());
    }
    reaches(&mut a, "10.0.0.2");
    [a, b]
}

fn expect_no_warning(server: &Server) {
    let output = server.output();
    assert!(!output.contains("WARN") && !output.contains("ERROR"), "{output}");
}

/// Short packed rings, with events by index: traffic both ways, before and after each guest reboots.
#[test]
fn guests_with_packed_rings_exchange_traffic_and_reboot() {
    let server = switch(&["a", "b,mac=02:00:00:00:00:0b"]);
    let [mut a, mut b] = two_packed_guests(&server, packed(&server, "a", 256, "event_idx=on"), |_| ());
    assert_ne!(a.features().unwrap() & feature::EVENT_IDX, 0);
    moves(&mut a, &mut b, "10.0.0.2");
    moves(&mut b, &mut a, "10.0.0.1");
    for (guest, address, other) in [(&mut a, "10.0.0.1", "10.0.0.2"), (&mut b, "10.0.0.2", "10.0.0.1")] {
        guest.reboot(BOOT_LIMIT).unwrap();
        guest.configure(&format!("{address}/24"), None).unwrap();
        assert_ne!(guest.features().unwrap() & feature::RING_PACKED, 0);
        reaches(guest, other);
    }
    moves(&mut b, &mut a, "10.0.0.1");
    expect_no_warning(&server);
}

/// [VU-BE-get-vring-base-00] [VU-BE-set-vring-base-00] Long packed rings, without events by index: QEMU pauses its
/// guest, which stops the rings, and they go on where they were; the guest's driver is taken off and put on again,
/// and they begin anew. Linux 6.12 does not take `IN_ORDER`, offered or not.
#[test]
fn packed_rings_stop_and_go_on() {
    let server = switch(&["a", "b,mac=02:00:00:00:00:0b"]);
    let monitor = server.socket("a").with_extension("monitor");
    let nic = packed(&server, "a", 1024, "event_idx=off,in_order=on");
    let [mut a, mut b] = two_packed_guests(&server, nic, |options| {
        options.args = vec!["-monitor".into(), format!("unix:{},server=on,wait=off", monitor.display())];
    });
    let features = a.features().unwrap();
    assert_eq!(features & (feature::EVENT_IDX | feature::IN_ORDER), 0, "{features:#x}");
    let mut monitor = UnixStream::connect(monitor).unwrap();
    for _ in 0..3 {
        moves(&mut b, &mut a, "10.0.0.1");
        monitor.write_all(b"stop\n").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(b.ping("10.0.0.1", 1).unwrap().received, 0, "it is paused");
        monitor.write_all(b"cont\n").unwrap();
        reaches(&mut b, "10.0.0.1");
    }
    moves(&mut a, &mut b, "10.0.0.2");
    let driver = "/sys/bus/virtio/drivers/virtio_net";
    let again = "for i in virtio*; do echo $i >unbind; echo $i >bind; done";
    for _ in 0..3 {
        a.run(&format!("cd {driver} && {again}"), SHORT).unwrap();
        a.configure("10.0.0.1/24", None).unwrap();
        reaches(&mut b, "10.0.0.1");
    }
    moves(&mut b, &mut a, "10.0.0.1");
    expect_no_warning(&server);
}

/// The server is killed under packed rings. Where they stand only the server knew: QEMU says that they begin, and
/// nothing moves before the guest reboots; after that all is well.
#[test]
fn a_guest_with_packed_rings_reconnects_and_reboots() {
    let mut server = switch(&["a", "b,mac=02:00:00:00:00:0b"]);
    let nic = packed(&server, "a", 256, "event_idx=on").reconnect();
    let [mut a, mut b] = two_packed_guests(&server, nic, |_| ());
    b.kill();
    server.restart().unwrap();
    a.reboot(BOOT_LIMIT).unwrap();
    a.configure("10.0.0.1/24", None).unwrap();
    let mut b = uml(&server, "b", "10.0.0.2");
    reaches(&mut b, "10.0.0.1");
    moves(&mut a, &mut b, "10.0.0.2");
}

/// A guest is killed while it sends; another attaches to its port; the third never notices.
#[test]
fn a_killed_guest_makes_room_for_another() {
    let server = switch(&["a,mac=02:00:00:00:00:0a", "b,mac=02:00:00:00:00:0b", "c,mac=02:00:00:00:00:0c"]);
    let mut b = uml(&server, "b", "10.0.0.2");
    let mut c = uml(&server, "c", "10.0.0.3");
    for round in 1..=3 {
        let mut a = uml(&server, "a", "10.0.0.1");
        reaches(&mut a, "10.0.0.2");
        let port = 6000 + round;
        b.start_background(&format!("nc -l -p {port} -e dd of=/dev/null bs=64k"), "/tmp/log").unwrap();
        // It may not listen yet.
        let send = format!("until nc 10.0.0.2 {port} -e dd if=/dev/zero bs=64k; do sleep 0.1; done");
        a.start_background(&send, "/tmp/log").unwrap();
        let before = server.counters().unwrap().get("a", "from");
        let deadline = Instant::now() + SHORT;
        while server.counters().unwrap().get("a", "from") < before + 1000 {
            assert!(Instant::now() < deadline, "it does not send");
            std::thread::sleep(Duration::from_millis(50));
        }
        a.kill();
        reaches(&mut c, "10.0.0.2");
        assert_eq!(server.counters().unwrap().get("a", "sessions"), round);
    }
    let counters = server.counters().unwrap();
    assert_eq!((counters.get("b", "sessions"), counters.get("c", "sessions")), (1, 1));
}

/// A guest with four queue pairs uses as many as it wants, and its peer's traffic reaches those alone.
#[test]
fn a_guest_with_several_queue_pairs() {
    for format in ["packed=off", "packed=on"] {
        several_queue_pairs(format);
    }
}

fn several_queue_pairs(format: &str) {
    let server = switch(&["a", "b,mac=02:00:00:00:00:0b"]);
    let nic = Nic::new(server.socket("a")).mac("02:00:00:00:00:0a").queues(4).property(format);
    let mut options = QemuOptions::new([nic]);
    options.cpus = 2;
    let mut a = boot_qemu("a", &images(), &options).unwrap();
    ready(&mut a, "10.0.0.1");
    let mut b = uml(&server, "b", "10.0.0.2");
    let features = a.features().unwrap();
    assert_ne!(features & (1 << 22), 0, "multi-queue is negotiated");
    assert_eq!(features & feature::RING_PACKED != 0, format == "packed=on");
    // Linux uses as many pairs as it has processors.
    let queues = a.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l", SHORT).unwrap();
    assert_eq!(queues.trim(), "2");
    reaches(&mut a, "10.0.0.2");
    moves(&mut b, &mut a, "10.0.0.1");
    moves(&mut a, &mut b, "10.0.0.2");
}

/// The server is killed and started anew: a front-end that reconnects finds its network again.
#[test]
fn a_guest_reconnects_to_a_new_server() {
    let mut server = switch(&["a", "b,mac=02:00:00:00:00:0b"]);
    let sockets = ["a", "b"].map(|port| server.socket(port));
    let mut a = qemu(Nic::new(&sockets[0]).mac("02:00:00:00:00:0a").reconnect(), "a", "10.0.0.1");
    {
        let mut b = uml(&server, "b", "10.0.0.2");
        reaches(&mut a, "10.0.0.2");
        b.kill();
    }
    server.restart().unwrap();
    // User-Mode Linux does not reconnect, so another guest takes its place.
    let mut b = uml(&server, "b", "10.0.0.2");
    reaches(&mut b, "10.0.0.1");
    reaches(&mut a, "10.0.0.2");
    moves(&mut a, &mut b, "10.0.0.2");
}

/// What a driver under QEMU does not get offered.
const NO_SEGMENTS: &str = "guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
                           host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off";

/// [DEV-NET-processing-of-incoming-packets-05] [DEV-NET-processing-of-incoming-packets-06] Guests that leave segments to
/// the device talk to such that take none, and to such that take no partial checksums: the receivers' kernels verify each
/// segment. Between two that take all, frames are longer than any segment.
#[test]
fn guests_with_unlike_offloads() {
    let server = switch(&["a", "b", "c", "d,mac=02:00:00:00:00:0d"]);
    let nic = |port: &str, n: u8| Nic::new(server.socket(port)).mac(&format!("02:00:00:00:00:0{n}"));
    let mut all = uml(&server, "d", "10.0.0.4");
    let offloads =
        feature::NET_CSUM | feature::NET_GUEST_CSUM | feature::NET_HOST_TSO4 | feature::NET_GUEST_TSO4;
    assert_eq!(all.features().unwrap() & offloads, offloads);
    let mut sums = qemu(nic("b", 2).property(NO_SEGMENTS), "b", "10.0.0.2");
    assert_eq!(sums.features().unwrap() & offloads, feature::NET_CSUM | feature::NET_GUEST_CSUM);
    // Linux acks segmentation all the same, which needs checksums, and does not use it.
    let mut none = qemu(nic("c", 3).property("csum=off,guest_csum=off"), "c", "10.0.0.3");
    let segmentation = feature::NET_HOST_TSO4 | feature::NET_GUEST_TSO4;
    assert_eq!(none.features().unwrap() & offloads, segmentation);
    for (guest, address, port) in [(&mut sums, "10.0.0.2", "b"), (&mut none, "10.0.0.3", "c")] {
        reaches(&mut all, address);
        moves(&mut all, guest, address);
        moves(guest, &mut all, "10.0.0.4");
        let counters = server.counters().unwrap();
        assert!(counters.get(port, "segmented") > 100, "{}", counters.get(port, "segmented"));
        assert_eq!(counters.get(port, "unsegmentable"), 0);
    }
    let before = server.counters().unwrap();
    let mut other = uml(&server, "a", "10.0.0.1");
    reaches(&mut other, "10.0.0.4");
    moves(&mut all, &mut other, "10.0.0.1");
    let counters = server.counters().unwrap();
    let moved = |name: &str| counters.get("a", name) - before.get("a", name);
    assert!(moved("to bytes") / moved("to") > 1514, "{} bytes in a frame", moved("to bytes") / moved("to"));
    assert_eq!((moved("segmented"), counters.get("d", "malformed")), (0, 0));
    expect_no_warning(&server);
}

/// TCP from one User-Mode Linux to another, by iperf3: segments cross whole.
#[test]
fn tcp_between_guests() {
    let server = switch(&["a", "b"]);
    let [mut a, mut b] = ["a", "b"].map(|port| {
        let address = if port == "a" { "10.0.0.1" } else { "10.0.0.2" };
        uml(&server, port, address)
    });
    reaches(&mut a, "10.0.0.2");
    b.start_background("iperf3 --server", "/tmp/iperf3").unwrap();
    let report = a.run("sleep 1; iperf3 --client 10.0.0.2 --time 3 --json", SHORT).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let received = &report["end"]["sum_received"];
    assert!(received["bytes"].as_u64().unwrap() > 10 << 20, "{received}");
    let counters = server.counters().unwrap();
    let mean = counters.get("b", "to bytes") / counters.get("b", "to");
    println!("{:.2} Gbit/s, {mean} bytes in a frame", received["bits_per_second"].as_f64().unwrap() / 1e9);
    assert!(mean > 4096, "{mean} bytes in a frame");
    assert_eq!((counters.get("b", "segmented"), counters.get("a", "malformed")), (0, 0));
}
