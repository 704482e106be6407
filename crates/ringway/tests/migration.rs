//! Guests that move: from one QEMU to another, each with a `ringway` of its own, and back, while they run and their
//! network does too.
//!
//! ```text
//!                 ┌─ tap ── ringway ── QEMU, guest
//!   host ─ bridge ┤                        │ migration
//!                 └─ tap ── ringway ── QEMU ▼
//! ```
//!
//! QEMU copies the guest's memory while the guest runs, and copies again what has changed. What the guest writes it
//! sees; what `ringway` writes, frames and used rings, it only learns of from the log of dirty pages.

#[path = "common/lan.rs"]
mod lan;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lan::{HOST, HOST_MAC, Lan, SOON, expect_no_complaint};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::guest::{Guest, Nic, QemuOptions};
use ringway_testkit::qmp::Monitor;
use ringway_testkit::server::Server;
use ringway_testkit::soak_factor;
use ringway_testkit::stream::{self, Echo};

const TAPS: [&str; 2] = ["tap0", "tap1"];
const MAC: &str = "02:00:00:00:08:02";
/// Until no page is left to copy but those that change all the time.
const MIGRATION: Duration = Duration::from_mins(1);
/// Bytes a second of the first copy, of one that is to wait, and of the rest.
const STEADY: u64 = 32 << 20;
const SLOW: u64 = 256 << 10;
const FAST: u64 = 1 << 30;
/// Bytes a second that follow a guest which runs where its memory is not: a tenth of it.
const POSTCOPY: u64 = 8 << 20;

/// Two places where a guest can be, on one network.
struct World {
    lan: Lan,
    servers: [Server; 2],
    /// The network card's properties, the same at both.
    properties: &'static str,
    /// Whether a guest may run before its memory has arrived.
    postcopy: bool,
}

impl World {
    fn new(properties: &'static str, postcopy: bool) -> Self {
        let lan = Lan::new();
        let extra: &[_] = if postcopy { &["--postcopy"] } else { &[] };
        let servers = TAPS.map(|tap| lan.server(tap, extra));
        Self { lan, servers, properties, postcopy }
    }

    /// A guest that boots at the first place.
    fn boot(&self) -> Machine {
        let mut machine = self.machine(0, lan::boot, &[]);
        let is_packed = machine.guest.features().unwrap() & feature::RING_PACKED != 0;
        assert_eq!(is_packed, self.properties.contains("packed=on"));
        machine
    }

    /// A QEMU that awaits a guest.
    fn target(&self, place: usize) -> Machine {
        let mut machine = self.machine(place, lan::start, &["-incoming", "defer"]);
        machine.monitor.await_migration(&machine.incoming).unwrap();
        machine
    }

    fn machine(&self, place: usize, start: fn(&QemuOptions) -> Guest, extra: &[&str]) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let [monitor, incoming] = ["monitor", "incoming"].map(|name| dir.path().join(name));
        let nic = Nic::new(self.servers[place].socket("net")).mac(MAC).property(self.properties);
        let mut options = QemuOptions::new([nic]);
        options.memory = 192;
        // Without it a guest says nothing unasked.
        options.kernel_args = "ipv6.disable=1".into();
        options.args.extend(Monitor::arguments(&monitor));
        options.args.extend(extra.iter().map(|&word| word.to_owned()));
        let guest = start(&options);
        let mut monitor = Monitor::connect(&monitor).unwrap();
        if self.postcopy {
            monitor.allow_in_migration("postcopy-ram").unwrap();
        }
        Machine { guest, monitor, incoming, _dir: dir }
    }

    fn expect_no_warning(&self) {
        self.servers.iter().for_each(lan::expect_no_warning);
    }
}

/// QEMU at one of the two places, with the guest or waiting for it.
struct Machine {
    guest: Guest,
    monitor: Monitor,
    /// Where it awaits a guest.
    incoming: PathBuf,
    _dir: tempfile::TempDir,
}

/// A connection on which the guest has received, and not read: the bytes lie where the server wrote them.
struct Unread {
    socket: TcpStream,
}

impl Unread {
    const LEN: usize = 512 << 10;

    /// A connection whose reader in the guest sleeps, and so much room that the kernel takes all for it.
    fn connect(lan: &Lan, guest: &mut Guest) -> Self {
        let listener = lan.listen(9);
        let room = "echo 4096 2097152 4194304 >/proc/sys/net/ipv4/tcp_rmem";
        let reader = r"sh -c 'echo $$ >/tmp/reader; kill -STOP $$; exec cat'";
        guest.run(room, SOON).unwrap();
        guest.start_background(&format!("nc {HOST} 9 -e {reader}"), "/tmp/reader.log").unwrap();
        Self { socket: stream::accept(&listener, SOON).unwrap() }
    }

    /// Sends, and waits until all of it is in the guest's memory.
    fn fill(&mut self, guest: &mut Guest) {
        let mut bytes = vec![0; Self::LEN];
        stream::fill(0, &mut bytes);
        self.socket.set_write_timeout(Some(SOON)).unwrap();
        self.socket.write_all(&bytes).unwrap();
        let arrived = format!("netstat -tn | grep -q ' {} .*{HOST}:9 '", Self::LEN);
        guest.run(&format!("until {arrived}; do usleep 50000; done"), SOON).unwrap();
    }

    /// Has the guest read, and looks at what it read.
    fn check(mut self, guest: &mut Guest) {
        guest.run("kill -CONT $(cat /tmp/reader)", SOON).unwrap();
        self.socket.shutdown(Shutdown::Write).unwrap();
        self.socket.set_read_timeout(Some(SOON)).unwrap();
        let mut read = Vec::new();
        self.socket.read_to_end(&mut read).unwrap();
        let mut expected = vec![0; Self::LEN];
        stream::fill(0, &mut expected);
        assert_eq!(read.len(), expected.len());
        let wrong = (0..read.len()).find(|&i| read[i] != expected[i]);
        assert_eq!(wrong, None, "the first byte that is not what was received before the move");
    }
}

/// Moves the guest under its traffic. Before it goes, data comes in, most of it into pages which were copied already.
fn migrate(lan: &Lan, from: Machine, mut to: Machine, echo: &Echo) -> Machine {
    let Machine { mut guest, mut monitor, .. } = from;
    let mut unread = Unread::connect(lan, &mut guest);
    monitor.limit_migration(STEADY).unwrap();
    monitor.migrate(&to.incoming).unwrap();
    monitor.wait_copied(3, 4, MIGRATION).unwrap();
    monitor.limit_migration(SLOW).unwrap();
    unread.fill(&mut guest);
    assert!(!monitor.is_migrated().unwrap(), "it ended before the data came");
    echo.take_longest_pause();
    monitor.limit_migration(FAST).unwrap();
    let migration = monitor.wait_migrated(MIGRATION).unwrap();
    // Nothing but the log and the new server's ring state decides from here on.
    drop((guest, monitor));
    echo.wait_for(1 << 20, SOON).expect("the session goes on at the new place");
    unread.check(&mut to.guest);
    println!("{migration:?}, longest pause of the session {:?}", echo.take_longest_pause());
    to
}

/// There and back again, `hops` times in all, with a TCP session under way whose every byte is checked.
fn moves(properties: &'static str, hops: usize) {
    let world = World::new(properties, false);
    let mut machine = world.boot();
    let keep = "dd if=/dev/urandom of=/tmp/kept bs=1M count=16 && sha256sum /tmp/kept >/tmp/sum";
    machine.guest.run(keep, SOON).unwrap();
    let echo = world.lan.start_echo(&mut machine.guest);
    for hop in 1..=hops {
        machine = migrate(&world.lan, machine, world.target(hop % 2), &echo);
        machine.guest.run("sha256sum -c /tmp/sum", SOON).unwrap();
        expect_no_complaint(&mut machine.guest);
    }
    let mebibytes = echo.finish(SOON).unwrap() >> 20;
    println!("{mebibytes} MiB each way");
    world.expect_no_warning();
}

/// [VU-BE-migration-01] [VU-FB-migration-01] Split rings: what was written is there after the move.
#[test]
fn a_guest_with_split_rings_moves_there_and_back() {
    moves("packed=off", 2);
}

/// The same with packed rings.
#[test]
fn a_guest_with_packed_rings_moves_there_and_back() {
    moves("packed=on", 2);
}

/// Many hops.
#[test]
#[ignore = "long: make soak"]
fn soak_a_guest_moves_to_and_fro() {
    for format in ["packed=off", "packed=on"] {
        moves(format, 20 * soak_factor() as usize);
    }
}

/// A guest that says nothing and cannot announce itself is found after its move: the new server tells the network.
#[test]
fn a_silent_guest_is_found_after_its_move() {
    let [before, after] = moves_silently("guest_announce=off");
    assert_eq!(after, before, "the guest itself has said nothing");
}

/// One that can announce itself does.
#[test]
fn a_guest_announces_itself_after_its_move() {
    let [before, after] = moves_silently("guest_announce=on");
    assert!(after > before, "{after} frames after {before}");
}

/// Moves a guest that says nothing of its own accord, until its network has found it. How many frames it had sent before,
/// and then.
fn moves_silently(property: &'static str) -> [u64; 2] {
    let world = World::new(property, false);
    let lan = &world.lan;
    let mut from = world.boot();
    // Or each would ask for the other's address sooner or later, and be found by that.
    lan.knows_guest(MAC);
    from.guest.run(&format!("arp -s {HOST} {HOST_MAC}"), SOON).unwrap();
    lan.reaches_guest();
    let sent = sent_frames(&mut from.guest);
    assert_eq!(lan.port_of(MAC).as_deref(), Some(TAPS[0]));

    let mut to = world.target(1);
    from.monitor.migrate(&to.incoming).unwrap();
    from.monitor.wait_migrated(MIGRATION).unwrap();
    let start = Instant::now();
    while lan.port_of(MAC).as_deref() != Some(TAPS[1]) {
        assert!(start.elapsed() < SOON, "the bridge has not learned where the guest is");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("found after {:?}", start.elapsed());
    let sent = [sent, sent_frames(&mut to.guest)];
    lan.reaches_guest();
    world.expect_no_warning();
    sent
}

fn sent_frames(guest: &mut Guest) -> u64 {
    guest.run("cat /sys/class/net/eth0/statistics/tx_packets", SOON).unwrap().trim().parse().unwrap()
}

/// The guest runs at its new place before its memory is there, and so does its session: what the server touches is
/// fetched for it.
#[test]
fn a_guest_moves_before_its_memory() {
    for format in ["packed=off", "packed=on"] {
        let world = World::new(format, true);
        let mut from = world.boot();
        let echo = world.lan.start_echo(&mut from.guest);
        let mut to = world.target(1);
        from.monitor.limit_migration(SLOW).unwrap();
        from.monitor.migrate(&to.incoming).unwrap();
        echo.wait_for(1 << 20, SOON).unwrap();
        echo.take_longest_pause();
        from.monitor.limit_postcopy(POSTCOPY).unwrap();
        from.monitor.start_postcopy().unwrap();
        from.monitor.wait_in_postcopy(SOON).unwrap();
        let time = echo.wait_for(1 << 20, SOON).unwrap();
        assert!(!from.monitor.is_migrated().unwrap(), "it ended before the session went on");
        from.monitor.limit_postcopy(FAST).unwrap();
        let migration = from.monitor.wait_migrated(MIGRATION).unwrap();
        println!("a MiB later after {time:?}, longest pause {:?}; {migration:?}", echo.take_longest_pause());
        drop(from);
        echo.wait_for(1 << 20, SOON).unwrap();
        expect_no_complaint(&mut to.guest);
        echo.finish(SOON).unwrap();
        world.expect_no_warning();
    }
}
