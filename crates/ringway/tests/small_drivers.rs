//! `ringway rng`, `ringway console` and `ringway balloon` with a driver in user space, which does what guests do not: it breaks
//! its rings, names pages that are not there, sends faster than anybody reads, and outlives the server.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::Segment;
use ringway_spec::balloon::{DEFLATE_QUEUE, INFLATE_QUEUE, PAGE_SIZE};
use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED, VERSION_1};
use ringway_testkit::server::Server;
use ringway_vhost::frontend::{
    Connection, Frontend, Inflight, Memory, PROTOCOL_FEATURES, Pages, Vring, VringConfig,
};
use rustix::fs::OFlags;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");
const SOON: Duration = Duration::from_secs(5);
const RING_SIZE: u16 = 64;
const BUFFER: u32 = 4096;
const MIB: u64 = 1 << 20;
/// Where the guest's memory begins.
const BASE: Gpa = Gpa(1 << 30);
const FORMATS: [u64; 2] = [0, RING_PACKED | RING_EVENT_IDX];

fn serve(kind: &str, extra: &[&str]) -> Server {
    Server::device(Path::new(PROGRAM), kind, extra).expect("ringway starts")
}

/// A driver of any device.
struct Driver {
    frontend: Frontend,
    vrings: Vec<Vring<SharedBuf>>,
    memory: Memory,
    inflight: Inflight,
    idle: Vec<SharedBuf>,
}

impl Driver {
    /// One that runs, with as many queues.
    fn start(server: &Server, name: &str, features: u64, queues: u16) -> Self {
        let mut frontend = negotiate(server, name, features | VERSION_1);
        let mut memory = Memory::new(BASE, 8 * MIB, Pages::Small).unwrap();
        let vring = |index| frontend.set_up_vring(VringConfig::new(index, RING_SIZE), &mut memory).unwrap();
        let vrings = (0..queues.into()).map(vring).collect();
        let inflight = frontend.inflight(queues, RING_SIZE).unwrap();
        let idle = memory.buffers(RING_SIZE.into(), BUFFER).unwrap();
        let mut driver = Self { frontend, vrings, memory, inflight, idle };
        driver.run();
        driver
    }

    fn run(&mut self) {
        self.frontend.add_memory([&self.memory]).unwrap();
        self.frontend.set_inflight(&self.inflight).unwrap();
        for vring in &mut self.vrings {
            self.frontend.enable(vring, true).unwrap();
            self.frontend.start(vring).unwrap();
        }
        self.frontend.set_driver_ok().unwrap();
    }

    /// Goes on with the next server.
    fn reconnect(&mut self, server: &Server, name: &str) {
        self.frontend = negotiate(server, name, self.frontend.features());
        self.vrings.iter_mut().for_each(Vring::recover);
        self.run();
    }

    /// Sends these bytes, 4096 at most.
    fn send(&mut self, queue: usize, bytes: &[u8]) {
        let mut buffer = self.idle.pop().expect("a buffer");
        assert_eq!(buffer.write(bytes), bytes.len());
        let chain = [Segment { len: bytes.len() as u32, ..Segment::from(&buffer) }];
        assert!(self.vrings[queue].queue_mut().add(&chain, &[], buffer).is_ok());
        self.vrings[queue].publish().unwrap();
    }

    /// Gives room for as many bytes.
    fn ask(&mut self, queue: usize, len: u32) {
        let buffer = self.idle.pop().expect("a buffer");
        let chain = [Segment { len, ..Segment::from(&buffer) }];
        assert!(self.vrings[queue].queue_mut().add(&[], &chain, buffer).is_ok());
        self.vrings[queue].publish().unwrap();
    }

    /// What the next chain comes back with, `None` if it does not come in time.
    fn used(&mut self, queue: usize, limit: Duration) -> Option<Vec<u8>> {
        let vring = &mut self.vrings[queue];
        if !vring.wait(limit).unwrap() {
            return None;
        }
        let used = vring.queue_mut().reclaim().unwrap()?;
        let mut bytes = vec![0; used.written as usize];
        used.owner.read(&mut bytes);
        self.idle.push(used.owner);
        Some(bytes)
    }
}

fn negotiate(server: &Server, name: &str, features: u64) -> Frontend {
    let connection = Connection::connect(server.socket(name)).unwrap();
    let frontend = Frontend::negotiate(connection, features, PROTOCOL_FEATURES).unwrap();
    assert_eq!(frontend.features() & features, features);
    frontend
}

/// Lines of the log that warn.
fn warnings(server: &Server) -> Vec<String> {
    server
        .output()
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .map(str::to_owned)
        .collect()
}

/// How much processor time the server takes while nothing is done.
fn expect_idle(server: &Server) {
    let before = server.cpu_ticks().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(server.cpu_ticks().unwrap() - before <= 2, "it does something");
}

// --- entropy --------------------------------------------------------------------------------------------

/// Each guest gets what the rate allows, whatever the other wants; and who waits costs nothing.
#[test]
fn a_rate_is_kept_for_each_guest() {
    let server = Server::devices(Path::new(PROGRAM), "rng", &["a", "b"], &["--rate=2000"]).unwrap();
    let mut greedy = Driver::start(&server, "a", 0, 1);
    let mut modest = Driver::start(&server, "b", 0, 1);
    let start = Instant::now();
    for _ in 0..5 {
        greedy.ask(0, 1000);
    }
    let mut got = 0;
    while got < 4000 {
        let bytes = greedy.used(0, SOON).expect("there are more soon");
        assert!(!bytes.is_empty() && bytes.iter().any(|&byte| byte != bytes[0]), "{bytes:?}");
        got += bytes.len();
        greedy.ask(0, 1000);
        if got < 3000 {
            modest.ask(0, 16);
            assert_eq!(modest.used(0, Duration::from_millis(500)).map(|bytes| bytes.len()), Some(16));
        }
    }
    let took = start.elapsed();
    println!("{got} bytes in {took:?}");
    // A second's worth at once, and the rest in its time.
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(4), "{took:?}");
    assert_eq!(warnings(&server), [""; 0]);
}

/// Requests that a server had taken and not answered when it was killed are answered by the next.
#[test]
fn requests_outlive_the_server() {
    for features in FORMATS {
        let mut server = serve("rng", &["--rate=64"]);
        let mut driver = Driver::start(&server, "rng", features, 1);
        for _ in 0..3 {
            driver.ask(0, 64);
        }
        assert_eq!(driver.used(0, SOON).unwrap().len(), 64);
        server.restart().unwrap();
        driver.reconnect(&server, "rng");
        for _ in 0..2 {
            assert_eq!(driver.used(0, SOON).unwrap().len(), 64);
        }
        // And through an upgrade, which the driver does not notice.
        driver.ask(0, 64);
        server.upgrade().unwrap();
        assert_eq!(driver.used(0, SOON).unwrap().len(), 64);
        expect_idle(&server);
        assert_eq!(warnings(&server), [""; 0]);
    }
}

/// A driver that breaks its ring is told once, and no other guest notices.
#[test]
fn a_broken_ring_costs_itself() {
    let server = Server::devices(Path::new(PROGRAM), "rng", &["a", "b"], &[]).unwrap();
    let mut hostile = Driver::start(&server, "a", 0, 1);
    let buffer = hostile.idle.pop().unwrap();
    let outside = [Segment { addr: Gpa(0), len: 16 }];
    assert!(hostile.vrings[0].queue_mut().add(&[], &outside, buffer).is_ok());
    hostile.vrings[0].publish().unwrap();
    assert_eq!(hostile.vrings[0].err().wait(SOON).unwrap(), 1);
    hostile.ask(0, 16);
    assert_eq!(hostile.used(0, Duration::from_millis(100)), None);
    let mut honest = Driver::start(&server, "b", 0, 1);
    honest.ask(0, 16);
    assert_eq!(honest.used(0, SOON).unwrap().len(), 16);
    let told = warnings(&server);
    assert!(told.len() == 1 && told[0].contains("rng a: vring 0 is stopped"), "{told:?}");
    assert_eq!(server.counters().unwrap().get("a", "failed rings"), 1);
    expect_idle(&server);
}

// --- console --------------------------------------------------------------------------------------------

/// Line `n` of what a driver sends: as long as a buffer.
fn line(n: usize) -> Vec<u8> {
    let mut line = format!("{n:>4095}").into_bytes();
    line.push(b'\n');
    line
}

/// Reads so many lines, and that they are what was sent.
fn expect_lines(from: &mut impl Read, mut each: impl FnMut(), lines: std::ops::Range<usize>) {
    let deadline = Instant::now() + SOON;
    for n in lines {
        let (mut due, mut got) = (line(n), Vec::new());
        while got.len() < due.len() {
            each();
            let mut bytes = vec![0; due.len() - got.len()];
            match from.read(&mut bytes) {
                Ok(0) => panic!("line {n}: the end"),
                Ok(n) => got.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "line {n} does not come");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(got == due, "line {n}");
        due.clear();
    }
}

/// Sends lines until the ring is full, and stays so; how many.
fn fill(driver: &mut Driver) -> usize {
    let mut sent = 0;
    loop {
        while driver.vrings[1].queue_mut().has_used() {
            driver.used(1, SOON).unwrap();
        }
        if driver.idle.is_empty() {
            if driver.used(1, Duration::from_millis(300)).is_none() {
                return sent;
            }
            continue;
        }
        driver.send(1, &line(sent));
        sent += 1;
    }
}

/// Who is there and does not read stops the driver's ring, and nothing else: no memory fills up, no time is spent. All arrives when
/// it reads on, in order, through an upgrade in the middle of a chain too.
fn a_slow_reader_holds_the_driver_up(port: &str, open: impl Fn() -> Box<dyn Read>) {
    for features in FORMATS {
        let mut server = serve("console", &[port]);
        let mut driver = Driver::start(&server, "console", features, 2);
        let mut reader = open();
        let deadline = Instant::now() + SOON;
        while !server.output().contains("somebody is there") {
            assert!(Instant::now() < deadline, "{}", server.output());
            std::thread::sleep(Duration::from_millis(5));
        }
        let sent = fill(&mut driver);
        let received = server.counters().unwrap().get("console", "received");
        println!("{sent} lines sent, {received} bytes passed on");
        assert!(sent as u64 * u64::from(BUFFER) > received && received < MIB);
        expect_idle(&server);
        server.upgrade().unwrap();
        expect_lines(&mut reader, || (), 0..sent);
        assert_eq!(server.counters().unwrap().get("console", "dropped"), 0);
        assert_eq!(warnings(&server), [""; 0]);
        // It leaves: what is sent is dropped, and the driver does not wait.
        drop(reader);
        while driver.used(1, Duration::from_millis(100)).is_some() {}
        for _ in 0..4 * RING_SIZE {
            driver.send(1, &line(0));
            assert!(driver.used(1, SOON).is_some(), "nobody is waited for");
        }
        expect_idle(&server);
    }
}

#[test]
fn a_slow_terminal_holds_the_driver_up() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("terminal");
    a_slow_reader_holds_the_driver_up(&format!("--port=a=pty:{}", link.display()), || {
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        Box::new(File::options().read(true).write(true).custom_flags(flags).open(&link).unwrap())
    });
}

#[test]
fn a_slow_client_holds_the_driver_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    a_slow_reader_holds_the_driver_up(&format!("--port=a=socket:{}", path.display()), || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_nonblocking(true).unwrap();
        Box::new(stream)
    });
}

/// What is typed waits for a driver that has no room, and what a client said last is not lost with it. The next one comes then.
#[test]
fn input_waits_for_the_driver() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let server = serve("console", &[&format!("--port=a=socket:{}", path.display())]);
    let mut driver = Driver::start(&server, "console", 0, 2);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"typed").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    expect_idle(&server);
    driver.ask(0, 3);
    assert_eq!(driver.used(0, SOON).unwrap(), b"typ");
    let mut next = UnixStream::connect(&path).unwrap();
    next.write_all(b"next").unwrap();
    client.write_all(b" and gone").unwrap();
    drop(client);
    driver.ask(0, 100);
    assert_eq!(driver.used(0, SOON).unwrap(), b"ed and gone");
    driver.ask(0, 100);
    assert_eq!(driver.used(0, SOON).unwrap(), b"next");
    // What the driver writes to the emergency register is shown.
    let at = ringway_spec::console::CONFIG_EMERG_WR as u32;
    driver.frontend.set_config(at, &u32::from(b'!').to_le_bytes()).unwrap();
    let mut byte = [0];
    next.set_read_timeout(Some(SOON)).unwrap();
    next.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"!");
    assert_eq!(warnings(&server), [""; 0]);
}

// --- balloon --------------------------------------------------------------------------------------------

/// Pages of the guest's memory that the host gives.
fn pages(driver: &Driver) -> u64 {
    let (file, _) = driver.memory.region().file().unwrap();
    File::from(file.try_clone_to_owned().unwrap()).metadata().unwrap().blocks() * 512 / PAGE_SIZE
}

/// The numbers of pages as a driver writes them.
fn numbers(of: impl IntoIterator<Item = u64>) -> Vec<u8> {
    of.into_iter().flat_map(|number| (number as u32).to_le_bytes()).collect()
}

/// Pages that a driver names leave its memory, each once; numbers of no page are counted and do nothing; and a driver that gives
/// its own rings away has itself to blame.
#[test]
fn pages_that_are_there_are_removed_and_no_others() {
    for features in FORMATS {
        let mut server = serve("balloon", &["--target=1M"]);
        let mut driver = Driver::start(&server, "balloon", features, 2);
        assert_eq!(driver.frontend.config(0, 8).unwrap(), [0, 1, 0, 0, 0, 0, 0, 0], "256 pages are wanted");
        let mut used = driver.memory.buffers(1, 1 << 20).unwrap().pop().unwrap();
        assert_eq!(used.write(&vec![7; MIB as usize]), MIB as usize);
        // The buffers for what it says are in use as well.
        for buffer in &mut driver.idle {
            buffer.write(&[0; BUFFER as usize]);
        }
        let (first, before) = (used.addr().0.div_ceil(PAGE_SIZE), pages(&driver));

        // 100 pages in no order, some of them twice; then such as are not there, and what is no number.
        let good = (0..100).map(|n| first + n * 37 % 100).chain([first + 7, first + 7, first]);
        driver.send(INFLATE_QUEUE.into(), &numbers(good));
        assert_eq!(driver.used(INFLATE_QUEUE.into(), SOON).unwrap(), b"");
        assert_eq!(pages(&driver), before - 100);
        let outside = [0, 1, BASE.0 / PAGE_SIZE - 1, (BASE.0 + 8 * MIB) / PAGE_SIZE, u64::from(u32::MAX)];
        driver.send(INFLATE_QUEUE.into(), &[&numbers(outside)[..], &[1, 2, 3]].concat());
        assert_eq!(driver.used(INFLATE_QUEUE.into(), SOON).unwrap(), b"");
        let counters = server.counters().unwrap();
        assert_eq!(counters.get("balloon", "inflated"), 100 * PAGE_SIZE);
        assert_eq!(counters.get("balloon", "released"), 100 * PAGE_SIZE);
        assert!(counters.get("balloon", "refused") >= outside.len() as u64, "{counters:?}");
        assert_eq!(pages(&driver), before - 100);

        // The rest of the page that is removed by and by is the driver's again.
        driver.send(DEFLATE_QUEUE.into(), &numbers(first..first + 100));
        assert_eq!(driver.used(DEFLATE_QUEUE.into(), SOON).unwrap(), b"");
        assert_eq!(used.write(&vec![8; MIB as usize]), MIB as usize);
        assert_eq!(pages(&driver), before);
        // The target is written by the device, what there is by the driver; both stay through an upgrade.
        driver.frontend.set_config(4, &5_u32.to_le_bytes()).unwrap();
        server.upgrade().unwrap();
        assert_eq!(driver.frontend.config(0, 8).unwrap(), [0, 1, 0, 0, 5, 0, 0, 0]);

        driver.send(INFLATE_QUEUE.into(), &numbers(BASE.0 / PAGE_SIZE..BASE.0 / PAGE_SIZE + 64));
        let deadline = Instant::now() + SOON;
        while server.counters().unwrap().get("balloon", "released") < 164 * PAGE_SIZE {
            assert!(Instant::now() < deadline, "they are not removed");
        }
        drop(driver);
        let mut next = Driver::start(&server, "balloon", features, 2);
        next.send(INFLATE_QUEUE.into(), &numbers([0]));
        assert_eq!(next.used(INFLATE_QUEUE.into(), SOON).unwrap(), b"");
        assert_eq!(next.frontend.config(4, 4).unwrap(), [0; 4], "the next driver has given nothing");
        expect_idle(&server);
    }
}
