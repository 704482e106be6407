//! DPDK's `virtio_user` driver as the front-end. Both ends count frames, and the numbers are equal: what the
//! driver sent came from its port, what went to the port the driver received, and the rest has a name.

use std::path::Path;
use std::time::{Duration, Instant};

use ringway_testkit::dpdk::{self, Forward, NetVhost, TestPmd, Totals, Traffic, VirtioUser};
use ringway_testkit::frontend::Connection;
use ringway_testkit::frontend::wire::{feature, request};
use ringway_testkit::server::{Counters, Server};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");
/// For anything that takes a moment.
const LIMIT: Duration = Duration::from_secs(10);
/// How long to send at full rate.
const FULL_RATE: Duration = Duration::from_millis(200);
/// Frames of a burst.
const BURST: u64 = 32;
/// The addresses of two drivers.
const MACS: [&str; 2] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"];

fn net(uplink: &str) -> Server {
    ready(Server::net(Path::new(PROGRAM), uplink, &[]).unwrap(), "net")
}

fn switch(ports: &[&str], extra: &[&str]) -> Server {
    ready(Server::switch(Path::new(PROGRAM), ports, extra).unwrap(), ports[0])
}

/// The server when it answers, and so can be asked for its counters too.
fn ready(server: Server, port: &str) -> Server {
    let connection = Connection::connect(server.socket(port)).unwrap();
    connection.request_u64(request::GET_FEATURES).unwrap();
    server
}

/// Asks until the answer is `Ok`; it fails with the last other one.
fn wait_until(mut is_done: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + LIMIT;
    while let Err(why) = is_done() {
        assert!(Instant::now() < deadline, "{why}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a port has counted this much.
fn wait_counter(server: &Server, port: &str, name: &str, least: u64) {
    wait_until(|| {
        let counters = server.counters().unwrap();
        if counters.get(port, name) >= least { Ok(()) } else { Err(format!("{port} {name}: {counters:?}")) }
    });
}

/// A driver and what both ends have counted since it attached.
struct Driver<'s> {
    pmd: TestPmd,
    server: &'s Server,
    ports: Vec<&'static str>,
    /// Ringway's counters before.
    base: Counters,
    /// The driver's, of all its runs that have ended.
    past: Totals,
}

impl<'s> Driver<'s> {
    /// Attaches to these ports.
    fn attach(server: &'s Server, ports: &[&'static str], options: &VirtioUser, traffic: &Traffic) -> Self {
        let base = server.counters().unwrap();
        let sockets = ports.iter().map(|p| server.socket(p)).collect();
        let pmd = TestPmd::virtio_user(&VirtioUser { sockets, ..options.clone() }, traffic).unwrap();
        Self::new(pmd, server, ports, base)
    }

    fn new(pmd: TestPmd, server: &'s Server, ports: &[&'static str], base: Counters) -> Self {
        let past = Totals { ports: vec![dpdk::Counters::default(); ports.len()] };
        Self { pmd, server, ports: ports.to_vec(), base, past }
    }

    /// The only driver of `ringway net`.
    fn alone(server: &'s Server, options: &VirtioUser, packet_size: u16) -> Self {
        Self::attach(server, &["net"], options, &Traffic { packet_size, ..Traffic::new(Forward::TxOnly) })
    }

    /// One of two: it has the address `MACS[number]` and sends to the other.
    fn one_of_two(server: &'s Server, port: &'static str, number: usize, forward: Forward) -> Self {
        let options = VirtioUser { macs: vec![MACS[number].into()], ..VirtioUser::new("") };
        let peers = vec![MACS[1 - number].into()];
        Self::attach(server, &[port], &options, &Traffic { peers, ..Traffic::new(forward) })
    }

    /// Waits until both ends agree, frame by frame, on what was sent and received; the driver runs, and
    /// receives. Then it stops. The result is what it has counted since it attached.
    fn finish(&mut self) -> Totals {
        wait_until(|| {
            let now = self.pmd.totals().unwrap();
            self.compare(&self.past.ports.iter().zip(&now.ports).map(|(a, b)| a.plus(b)).collect::<Vec<_>>())
        });
        self.stop();
        self.compare(&self.past.ports).unwrap();
        self.past.clone()
    }

    /// Whether ringway's counters say the same.
    fn compare(&self, ports: &[dpdk::Counters]) -> Result<(), String> {
        let counters = self.server.counters().unwrap();
        for (port, own) in self.ports.iter().zip(ports) {
            let counted = |name| counters.get(port, name) - self.base.get(port, name);
            if (own.tx_packets, own.rx_packets) != (counted("from"), counted("to")) {
                return Err(format!("port {port}: {own:?} and {counters:?}"));
            }
            assert_eq!(own.rx_errors, 0, "{own:?}");
        }
        Ok(())
    }

    /// Stops at once.
    fn stop(&mut self) {
        let run = self.pmd.stop().unwrap();
        for (past, now) in self.past.ports.iter_mut().zip(&run.ports) {
            *past = past.plus(now);
        }
    }

    fn start(&mut self, forward: &str) {
        self.pmd.command(&format!("set fwd {forward}"), LIMIT).unwrap();
        self.pmd.start().unwrap();
    }

    /// Sends `bursts` on every queue of every port, and then receives. No frame finds its ring full.
    fn send(&mut self, bursts: u32) -> Totals {
        let before = self.past.total().tx_dropped;
        self.pmd.send_exactly(bursts, LIMIT).unwrap();
        let totals = self.finish();
        assert_eq!(totals.total().tx_dropped, before, "{totals:?}");
        totals
    }

    /// Sends and receives at full rate for a moment. (Frames that find the transmit ring full are the driver's
    /// loss, and in neither end's count of frames sent.)
    fn send_and_receive(&mut self) -> Totals {
        let before = self.past.total().rx_packets;
        self.start("flowgen");
        std::thread::sleep(FULL_RATE);
        self.stop();
        self.receive();
        assert!(self.past.total().rx_packets > before + 1000, "{:?}", self.past);
        self.past.clone()
    }

    /// Receives what has come.
    fn receive(&mut self) -> Totals {
        self.start("rxonly");
        self.finish()
    }
}

/// Every choice of rings, buffers and instructions, each with a frame size. Each option is met with short rings and
/// with long ones; `other` swaps them.
fn variants(other: bool) -> impl Iterator<Item = (VirtioUser, u16)> {
    (0..16_u32).map(move |choice| {
        let is_set = |bit: u32| choice >> bit & 1 != 0;
        let is_long = (choice.count_ones() % 2 != 0) != other;
        let options = VirtioUser {
            packed: is_set(0),
            in_order: is_set(1),
            mrg_rxbuf: is_set(2),
            vectorized: is_set(3),
            queue_size: if is_long { 1024 } else { 256 },
            ..VirtioUser::new("")
        };
        (options, if is_long { 1514 } else { 64 })
    })
}

/// How the driver is to send and receive with these options: as DPDK's documentation of virtio says, and its log.
/// Its SIMD path for packed rings wants `IN_ORDER` and AVX-512.
fn expected_paths(options: &VirtioUser) -> [String; 2] {
    let VirtioUser { packed, in_order, mrg_rxbuf, vectorized, .. } = *options;
    let (tx, rx) = if packed {
        let has_simd = vectorized && in_order && std::arch::is_x86_feature_detected!("avx512f");
        let rx = if mrg_rxbuf { "mergeable buffer" } else { "standard" };
        (
            if has_simd { "packed ring vectorized" } else { "packed ring standard" }.to_owned(),
            format!("packed ring {}", if has_simd && !mrg_rxbuf { "vectorized" } else { rx }),
        )
    } else {
        let rx = match (in_order, mrg_rxbuf, vectorized) {
            (true, ..) => "inorder",
            (_, true, _) => "mergeable buffer",
            (.., true) => "vectorized",
            _ => "standard",
        };
        (if in_order { "inorder" } else { "standard" }.to_owned(), rx.to_owned())
    };
    [format!("{tx} Tx path on port 0"), format!("{rx} Rx path on port 0")]
}

/// The options took effect: the features are those asked for, and the data path is theirs.
fn check_negotiation(driver: &TestPmd, options: &VirtioUser) {
    let features = driver.features().unwrap();
    for (bit, is_asked) in [
        (feature::VERSION_1, true),
        (feature::RING_PACKED, options.packed),
        (feature::IN_ORDER, options.in_order),
        (feature::NET_MRG_RXBUF, options.mrg_rxbuf),
    ] {
        assert_eq!(features & bit != 0, is_asked, "{bit:#x} of {features:#x}");
    }
    assert_eq!(driver.data_paths(), expected_paths(options), "{options:?}");
}

/// [DEV-CORE-features-02] Every data path of the driver sends frames, and all of them come.
#[test]
fn the_sink_takes_every_frame() {
    for (options, size) in variants(false) {
        let server = net("sink");
        let mut driver = Driver::alone(&server, &options, size);
        check_negotiation(&driver.pmd, &options);
        let sent = driver.send(500).total();
        assert_eq!(sent, dpdk::Counters { tx_packets: 500 * BURST, ..dpdk::Counters::default() });
        driver.pmd.quit().unwrap();
        let (status, counters) = server.terminate().unwrap();
        assert!(status.success());
        assert_eq!(counters.get("net", "from"), sent.tx_packets, "{options:?}");
        assert_eq!(counters.get("net", "from bytes"), sent.tx_packets * u64::from(size));
        assert_eq!((counters.dropped("net"), counters.get("net", "failed rings")), (0, 0), "{counters:?}");
    }
}

/// Frames in several buffers, which this driver hands over in indirect tables, and eight or more of them in the
/// ring itself. In tables of packed rings it says that the header is device-writable, though data to read follows. The
/// tables come first: after chains in a packed ring they crash this driver, with DPDK's own back-end too.
#[test]
fn frames_in_segments_are_put_together() {
    let split = VirtioUser { in_order: false, ..VirtioUser::new("") };
    let packed = VirtioUser { packed: true, ..split.clone() };
    let eight = "60,60,60,60,60,60,60,60";
    let twelve = "1,60,60,513,60,60,60,2,60,60,60,60";
    for options in [
        &split,
        &VirtioUser { in_order: true, ..split.clone() },
        &packed,
        &VirtioUser { in_order: true, ..packed.clone() },
        &VirtioUser { in_order: true, mrg_rxbuf: false, vectorized: true, ..packed.clone() },
    ] {
        let server = net("sink");
        let mut driver = Driver::alone(&server, options, 64);
        check_negotiation(&driver.pmd, options);
        assert_ne!(driver.pmd.features().unwrap() & feature::INDIRECT_DESC, 0);
        let mut bytes = 0;
        let arrangements = ["64,1450", "1000,1,513", "60", eight, twelve];
        for segments in arrangements {
            driver.pmd.command(&format!("set txpkts {segments}"), LIMIT).unwrap();
            driver.send(200);
            bytes += 200 * BURST * segments.split(',').map(|s| s.parse::<u64>().unwrap()).sum::<u64>();
        }
        let counters = server.counters().unwrap();
        assert_eq!(counters.get("net", "from"), arrangements.len() as u64 * 200 * BURST);
        assert_eq!(counters.get("net", "from bytes"), bytes);
        assert_eq!(counters.dropped("net"), 0, "{counters:?}");
    }
}

/// A packed ring may have any size.
#[test]
fn packed_rings_need_no_power_of_two() {
    let simd = VirtioUser { mrg_rxbuf: false, vectorized: true, ..VirtioUser::new("") };
    for (options, size) in [(VirtioUser::new(""), 96), (VirtioUser::new(""), 999), (simd, 1000)] {
        let options = VirtioUser { packed: true, queue_size: size, ..options };
        let server = net("echo");
        let mut driver = Driver::alone(&server, &options, 64);
        check_negotiation(&driver.pmd, &options);
        driver.send(100);
        let sums = driver.send_and_receive().total();
        let counters = server.counters().unwrap();
        assert_eq!(sums.tx_packets, sums.rx_packets + counters.get("net", "no-buffer"), "{counters:?}");
        driver.pmd.quit().unwrap();
    }
}

/// What comes back is what was sent, but for frames that found no buffer: first all at once (the driver takes
/// nothing before it has sent all), then in both directions at full rate.
#[test]
fn the_echo_returns_every_frame_that_has_room() {
    for (options, size) in variants(true) {
        let server = net("echo");
        let mut driver = Driver::alone(&server, &options, size);
        check_negotiation(&driver.pmd, &options);
        assert_eq!(driver.send(200).total().tx_packets, 200 * BURST);
        assert!(server.counters().unwrap().get("net", "no-buffer") > 0, "6400 frames do not fit in a ring");
        let sums = driver.send_and_receive().total();
        let counters = server.counters().unwrap();
        assert_eq!(sums.tx_packets, sums.rx_packets + counters.get("net", "no-buffer"), "{counters:?}");
        assert_eq!(counters.dropped("net"), counters.get("net", "no-buffer"), "{counters:?}");
        driver.pmd.quit().unwrap();
    }
}

/// [DEV-NET-processing-of-incoming-packets-02] The driver receives every frame that was given to it; a frame
/// of 9000 bytes in five buffers too, if it merges them. Without that, such a frame is not given.
#[test]
fn every_generated_frame_is_received() {
    let plain = VirtioUser { mrg_rxbuf: false, ..VirtioUser::new("") };
    let merging = VirtioUser { queue_size: 1024, ..VirtioUser::new("") };
    let [packed, packed_merging] = [&plain, &merging].map(|o| VirtioUser { packed: true, ..o.clone() });
    let simd = VirtioUser { vectorized: true, ..packed.clone() };
    let unordered = VirtioUser { in_order: false, ..packed_merging.clone() };
    for (options, size) in [
        (&plain, 60),
        (&merging, 60),
        (&plain, 1514),
        (&merging, 9000),
        (&plain, 9000),
        (&packed, 1514),
        (&packed_merging, 60),
        (&packed_merging, 9000),
        (&unordered, 9000),
        (&simd, 60),
        (&simd, 9000),
    ] {
        let server = net(&format!("generate:{size}"));
        let mut driver = Driver::alone(&server, options, 64);
        driver.start("rxonly");
        std::thread::sleep(FULL_RATE);
        // The driver goes on receiving what is in the ring when ringway has gone.
        let Driver { mut pmd, .. } = driver;
        let (status, counters) = server.terminate().unwrap();
        assert!(status.success());
        let delivered = counters.get("net", "to");
        wait_until(|| {
            let received = pmd.totals().unwrap().total();
            if received.rx_packets == delivered {
                Ok(())
            } else {
                Err(format!("{received:?} of {delivered}"))
            }
        });
        let received = pmd.stop().unwrap().total();
        assert_eq!((received.rx_packets, received.rx_errors), (delivered, 0));
        let is_given = size < 2000 || options.mrg_rxbuf;
        assert_eq!(delivered > 1000, is_given, "{options:?} {size}: {delivered}");
        let said = pmd.command("show port stats 0", LIMIT).unwrap();
        assert_eq!(number_after(&said, "RX-bytes:"), delivered * size, "{said}");
    }
}

/// The number after a word of testpmd's answer.
fn number_after(text: &str, word: &str) -> u64 {
    let mut words = text.split_whitespace().skip_while(|w| *w != word).skip(1);
    words.next().unwrap_or_default().parse().unwrap_or_else(|_| panic!("no {word} in {text}"))
}

/// Two pairs of queues: both send, and flows are spread over both to receive.
#[test]
fn all_queues_are_served() {
    for packed in [false, true] {
        all_queues_of(&VirtioUser { queues: 2, packed, ..VirtioUser::new("") });
    }
}

fn all_queues_of(options: &VirtioUser) {
    let server = net("echo");
    let traffic = Traffic { multi_flow: true, ..Traffic::new(Forward::TxOnly) };
    let mut driver = Driver::attach(&server, &["net"], options, &traffic);
    let totals = driver.send(300).total();
    assert_eq!(totals.tx_packets, 2 * 300 * BURST);
    let counters = server.counters().unwrap();
    // The driver does not wait until its second pair is enabled, and sends on it: such frames are for nobody.
    let lost = counters.get("net", "no-buffer") + counters.get("net", "disabled");
    assert_eq!(totals.tx_packets, totals.rx_packets + lost, "{counters:?}");
    let said = driver.pmd.command("show fwd stats all", LIMIT).unwrap();
    for queue in 0..2 {
        let (_, section) = said
            .split_once(&format!("RX Port= 0/Queue= {queue} "))
            .unwrap_or_else(|| panic!("no queue {queue} in {said}"));
        assert!(number_after(section, "RX-packets:") > 0, "queue {queue}: {said}");
        assert!(number_after(section, "TX-packets:") > 0, "queue {queue}: {said}");
    }
}

/// Two ports, each sending to the other.
#[test]
fn the_switch_loses_no_frame_without_a_name() {
    let server = switch(&["a", "b"], &[]);
    let options = VirtioUser { macs: MACS.map(Into::into).to_vec(), ..VirtioUser::new("") };
    let peers = vec![MACS[1].into(), MACS[0].into()];
    let traffic = Traffic { peers, ..Traffic::new(Forward::TxOnly) };
    let mut drivers = Driver::attach(&server, &["a", "b"], &options, &traffic);
    drivers.send(200);
    let sums = drivers.send_and_receive();
    let counters = server.counters().unwrap();
    for (number, other) in [(0, "b"), (1, "a")] {
        let sent = sums.ports[number].tx_packets;
        assert_eq!(sent, counters.get(other, "to") + counters.get(other, "no-buffer"), "{counters:?}");
        assert_eq!(counters.dropped(other), counters.get(other, "no-buffer"), "{counters:?}");
    }
}

/// Drivers with unlike rings and buffers: what one sends in a burst the other receives.
#[test]
fn unlike_drivers_reach_each_other() {
    let server = switch(&["a", "b"], &[]);
    let driver = |name, number: usize, options: VirtioUser| {
        let options = VirtioUser { macs: vec![MACS[number].into()], ..options };
        let peers = vec![MACS[1 - number].into()];
        let traffic = Traffic { peers, packet_size: 1514, ..Traffic::new(Forward::RxOnly) };
        Driver::attach(&server, &[name], &options, &traffic)
    };
    let simd = VirtioUser { mrg_rxbuf: false, vectorized: true, ..VirtioUser::new("") };
    for (packed, other_packed) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut a = driver("a", 0, VirtioUser { packed, queue_size: 1024, ..VirtioUser::new("") });
        let mut b = driver("b", 1, VirtioUser { packed: other_packed, ..simd.clone() });
        for _ in 0..5 {
            // Few enough for the other's ring, which nobody empties meanwhile.
            a.send(7);
            b.send(7);
        }
        for totals in [a.receive(), b.receive()] {
            assert_eq!(totals.total().tx_packets, 5 * 7 * BURST);
            assert_eq!(totals.total().rx_packets, 5 * 7 * BURST);
        }
        a.pmd.quit().unwrap();
        b.pmd.quit().unwrap();
    }
}

/// The driver listens, and the port connects; and again to the next driver there.
#[test]
fn a_port_connects_to_a_driver() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("listening");
    let server = switch(&["a"], &[&format!("--port=b={},client", socket.display())]);
    let mut a = Driver::one_of_two(&server, "a", 0, Forward::RxOnly);
    a.pmd.start().unwrap();
    for _ in 0..2 {
        let base = server.counters().unwrap();
        let options = VirtioUser { server: true, macs: vec![MACS[1].into()], ..VirtioUser::new(&socket) };
        let mut pmd = TestPmd::virtio_user(&options, &Traffic::new(Forward::RxOnly)).unwrap();
        pmd.wait_link_up(LIMIT).unwrap();
        let mut b = Driver::new(pmd, &server, &["b"], base);
        assert_eq!(b.send(100).total().tx_packets, 100 * BURST);
        drop(b);
        assert!(!socket.exists());
    }
    let received = a.finish().total().rx_packets;
    let counters = server.counters().unwrap();
    assert_eq!(counters.get("b", "sessions"), 2);
    assert_eq!(counters.get("b", "from"), received + counters.get("a", "no-buffer"));
}

/// The driver listens, and outlives ringway. When the port connects again, split rings go on where they were, and the
/// driver starts packed ones anew.
#[test]
fn a_driver_outlives_the_server() {
    for packed in [false, true] {
        outlives_the_server(packed);
    }
}

fn outlives_the_server(packed: bool) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("listening");
    let mut server = switch(&["a"], &[&format!("--port=b={},client", socket.display())]);
    let options = VirtioUser { server: true, packed, ..VirtioUser::new(&socket) };
    let mut pmd = TestPmd::virtio_user(&options, &Traffic::new(Forward::RxOnly)).unwrap();
    pmd.wait_link_up(LIMIT).unwrap();
    // Not a whole number of rounds.
    for bursts in [101, 77] {
        pmd.send_exactly(bursts, LIMIT).unwrap();
        assert_eq!(pmd.stop().unwrap().total().tx_packets, u64::from(bursts) * BURST);
        wait_counter(&server, "b", "from", u64::from(bursts) * BURST);
        server.restart().unwrap();
        wait_counter(&server, "b", "sessions", 1);
    }
}

/// A driver that is killed while it sends leaves nothing behind, and the next one works.
#[test]
fn a_killed_driver_makes_room_for_the_next() {
    let server = switch(&["a", "b"], &[]);
    let mut b = Driver::one_of_two(&server, "b", 1, Forward::RxOnly);
    b.pmd.start().unwrap();
    let resources = || (server.open_fds().unwrap(), server.guest_mappings().unwrap());
    let before = resources();
    for _ in 0..3 {
        let mut killed = Driver::one_of_two(&server, "a", 0, Forward::TxOnly);
        killed.pmd.start().unwrap();
        wait_counter(&server, "a", "from", killed.base.get("a", "from") + 10_000);
        drop(killed);
        wait_until(|| {
            let now = resources();
            if now == before {
                Ok(())
            } else {
                Err(format!("files and mappings: {now:?}, {before:?} before"))
            }
        });
    }

    let mut a = Driver::one_of_two(&server, "a", 0, Forward::RxOnly);
    assert_eq!(a.send(200).total().tx_packets, 200 * BURST);
    let received = b.finish().total().rx_packets;
    let counters = server.counters().unwrap();
    let undelivered = counters.dropped("a") + counters.dropped("b");
    assert_eq!(counters.get("a", "from"), received + undelivered, "{counters:?}");
    assert_eq!((counters.get("a", "sessions"), counters.get("a", "failed rings")), (4, 0));
}

/// One driver goes and another comes while a third sends without noticing.
#[test]
fn a_driver_leaves_while_the_other_sends() {
    let server = switch(&["a", "b"], &[]);
    let mut a = Driver::one_of_two(&server, "a", 0, Forward::TxOnly);
    let mut b = Driver::one_of_two(&server, "b", 1, Forward::RxOnly);
    b.pmd.start().unwrap();
    a.pmd.start().unwrap();
    wait_counter(&server, "b", "to", 10_000);
    b.stop();
    b.pmd.quit().unwrap();
    let (received, alone) = (b.past.total().rx_packets, server.counters().unwrap());
    let first = alone.get("b", "to");
    assert!((received..=received + 256).contains(&first), "the rest was in the ring: {received} of {first}");

    // Nobody is there: the frames have a name, and go on.
    wait_counter(&server, "a", "from", alone.get("a", "from") + 10_000);
    let more = server.counters().unwrap();
    assert_eq!(more.get("b", "to"), first);
    assert!(more.dropped("a") + more.dropped("b") >= alone.dropped("a") + alone.dropped("b") + 10_000);

    let mut b = Driver::one_of_two(&server, "b", 1, Forward::RxOnly);
    b.pmd.start().unwrap();
    wait_counter(&server, "b", "to", first + 10_000);
    a.stop();
    let sent = a.past.total().tx_packets;
    wait_counter(&server, "a", "from", sent);
    a.compare(&a.past.ports).unwrap();
    b.finish();
    let counters = server.counters().unwrap();
    let undelivered = counters.dropped("a") + counters.dropped("b");
    assert_eq!(sent, counters.get("b", "to") + undelivered, "{counters:?}");
    assert_eq!((counters.get("a", "sessions"), counters.get("b", "sessions")), (1, 2));
}

/// The same numbers without ringway, DPDK's front-end against DPDK's back-end: what the other tests rely on.
#[test]
fn dpdk_agrees_with_itself() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    for (server, packed) in [(false, false), (true, true)] {
        let front = VirtioUser { server, packed, vectorized: packed, ..VirtioUser::new(&socket) };
        let back = NetVhost { client: server, ..NetVhost::new(&socket) };
        let (mut driver, mut sink);
        if server {
            driver = TestPmd::virtio_user(&front, &Traffic::new(Forward::TxOnly)).unwrap();
            sink = TestPmd::net_vhost(&back, &Traffic::new(Forward::RxOnly)).unwrap();
        } else {
            sink = TestPmd::net_vhost(&back, &Traffic::new(Forward::RxOnly)).unwrap();
            driver = TestPmd::virtio_user(&front, &Traffic::new(Forward::TxOnly)).unwrap();
        }
        driver.wait_link_up(LIMIT).unwrap();
        sink.wait_link_up(LIMIT).unwrap();
        let features = driver.features().unwrap();
        assert_eq!(features & feature::RING_PACKED != 0, packed, "{features:#x}");
        sink.start().unwrap();
        driver.send_exactly(200, LIMIT).unwrap();
        let sent = driver.stop().unwrap().total();
        assert_eq!(sent, dpdk::Counters { tx_packets: 200 * BURST, ..dpdk::Counters::default() });
        let expected = dpdk::Counters { rx_packets: 200 * BURST, ..dpdk::Counters::default() };
        wait_until(|| {
            let received = sink.totals().unwrap().total();
            if received == expected { Ok(()) } else { Err(format!("{received:?}")) }
        });
        driver.quit().unwrap();
        drop(sink);
        assert!(!socket.exists());
    }
}

/// A front-end that finds no back-end is an error, and not a test that passes.
#[test]
fn no_back_end_is_an_error() {
    let port = VirtioUser::new("/nonexistent/socket");
    let error = TestPmd::virtio_user(&port, &Traffic::new(Forward::RxOnly)).err().unwrap();
    assert!(error.to_string().contains("connect error"), "{error:#}");
}
