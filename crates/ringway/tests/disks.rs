//! Disks as the program serves them: several at once, resized, and handed over in an upgrade while requests are under way.

mod common;
#[path = "disks/failures.rs"]
mod failures;
#[path = "disks/resize.rs"]
mod resize;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use ringway_memory::Gpa;
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{BlkFrontend, BlkOptions};
use ringway_testkit::server::Server;
use ringway_vhost::frontend::{
    Channel, Connection, Frontend, Memory, PROTOCOL_FEATURES, Pages, Vring, VringConfig,
};

use crate::common::{PROGRAM, SOON, eventually, warnings};

const FEATURES: u64 = feature::VERSION_1
    | feature::BLK_FLUSH
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::BLK_CONFIG_WCE;
const SECTOR: usize = 512;
const MIB: u64 = 1 << 20;

/// Disks of these images.
fn disks(disks: &[(&str, &str)]) -> Server {
    Server::disks(Path::new(PROGRAM), disks, &[]).unwrap()
}

fn up(server: &Server, disk: &str) -> BlkFrontend {
    BlkFrontend::up(server.socket(disk), FEATURES, BlkOptions::default()).unwrap()
}

/// A driver with a ring that runs, and no requests.
fn idle_driver(server: &Server, disk: &str) -> (Frontend, Channel, (Vring<()>, Memory)) {
    let connection = Connection::connect(server.socket(disk)).unwrap();
    let mut frontend = Frontend::negotiate(connection, FEATURES, PROTOCOL_FEATURES).unwrap();
    let channel = frontend.open_channel().unwrap();
    let mut memory = Memory::new(Gpa(1 << 30), 1 << 20, Pages::Small).unwrap();
    let mut ring = frontend.set_up_vring::<()>(VringConfig::new(0, 16), &mut memory).unwrap();
    frontend.add_memory([&memory]).unwrap();
    frontend.enable(&ring, true).unwrap();
    frontend.start(&mut ring).unwrap();
    frontend.set_driver_ok().unwrap();
    ring.kick().signal().unwrap();
    (frontend, channel, (ring, memory))
}

/// A raw image in a directory that goes with it.
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new(len: u64) -> Self {
        let image = Self { dir: tempfile::tempdir().unwrap() };
        File::create(image.path()).unwrap().set_len(len).unwrap();
        image
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// As the command line has it, with options.
    fn with(&self, options: &str) -> String {
        format!("{}{options}", self.path().display())
    }

    fn sector(&self, sector: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        File::open(self.path()).unwrap().read_exact_at(&mut bytes, sector * SECTOR as u64).unwrap();
        bytes
    }
}

/// What stands in a sector once number `n` was written to it.
fn sector(n: u64) -> Vec<u8> {
    n.to_le_bytes().repeat(SECTOR / 8)
}

/// A guest that goes on writing numbers and reading them again, some at a time, in a thread of its own. Each request must
/// succeed, and each read bring what was written last.
struct Busy {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<BlkFrontend>>,
}

impl Busy {
    /// At most so many requests at a time.
    const DEPTH: u64 = 8;
    const SECTORS: u64 = 64;

    fn start(mut guest: BlkFrontend) -> Self {
        use ringway_testkit::frontend::DiskRequest;
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&rounds), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let round = counted.load(Ordering::Relaxed);
                let numbers = round * Self::DEPTH..(round + 1) * Self::DEPTH;
                let place = |n: u64| n % Self::SECTORS;
                let writes: Vec<_> =
                    numbers.clone().map(|n| DiskRequest::write(place(n), &sector(n))).collect();
                let reads: Vec<_> =
                    numbers.clone().map(|n| DiskRequest::read(place(n), SECTOR as u32)).collect();
                for requests in [writes, vec![DiskRequest::flush()]] {
                    for answer in guest.requests(0, &requests).unwrap() {
                        assert_eq!(answer.status, 0, "round {round}");
                    }
                }
                for (n, answer) in numbers.zip(guest.requests(0, &reads).unwrap()) {
                    assert!(answer.status == 0 && answer.data == sector(n), "number {n}");
                }
                counted.store(round + 1, Ordering::Relaxed);
            }
            guest
        });
        let busy = Self { rounds, stop, thread: Some(thread) };
        busy.check();
        busy
    }

    /// Checks that requests of now are still served.
    fn check(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        eventually("requests are served", || {
            assert!(self.thread.as_ref().is_some_and(|t| !t.is_finished()), "a request failed");
            self.rounds.load(Ordering::Relaxed) > before + 1
        });
    }

    /// Ends it; the guest, and how many rounds it made.
    fn finish(mut self) -> (BlkFrontend, u64) {
        self.check();
        self.stop.store(true, Ordering::Relaxed);
        let guest = self.thread.take().unwrap().join().expect("all requests succeed");
        (guest, self.rounds.load(Ordering::Relaxed))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Disks of all kinds in one server, each with its own front-end, options and counters.
#[test]
fn several_disks() {
    let image = Image::new(4 * MIB);
    let file = image.with(",serial=file,cache=writethrough,format=raw");
    let server = disks(&[("a", &file), ("b", "mem:1M,serial=mem,read-only"), ("c", "null:1T,num-queues=2")]);
    let (mut a, mut b, c) = (up(&server, "a"), up(&server, "b"), up(&server, "c"));
    let capacities = [&a, &b, &c].map(|guest| guest.capacity().unwrap() * SECTOR as u64);
    assert_eq!(capacities, [4 * MIB, MIB, 1 << 40]);
    assert_eq!([a.max_queues(), c.max_queues()], [Some(64), Some(2)]);
    assert_ne!(b.offered() & feature::BLK_RO, 0);
    assert_eq!(a.offered() & feature::BLK_RO, 0);
    a.write(3, &sector(7)).unwrap();
    assert_eq!(image.sector(3), sector(7), "it is there as soon as it is written");
    assert!(b.read(0, 512).unwrap().iter().all(|&byte| byte == 0));
    assert!(b.write(0, &sector(1)).is_err(), "read-only");
    let counters = server.counters().unwrap();
    assert_eq!((counters.get("a", "written"), counters.get("a", "written bytes")), (1, 512));
    assert_eq!((counters.get("b", "read"), counters.get("b", "refused")), (1, 1));
    assert_eq!((counters.get("c", "sessions"), counters.get("c", "read")), (1, 0));
    let sockets = ["a", "b", "c"].map(|name| server.socket(name));
    assert!(sockets.iter().all(|socket| socket.exists()));
    let (status, counters) = server.terminate().unwrap();
    assert!(status.success());
    assert_eq!(counters.get("a", "written"), 1);
    assert!(sockets.iter().all(|socket| !socket.exists()));
}

/// Two servers cannot write to one image. The lock is on it all the time, and an upgrade hands it over.
#[test]
fn an_image_has_one_writer() {
    let image = Image::new(MIB);
    let mut server = disks(&[("a", &image.with(""))]);
    server.upgrade().unwrap();
    let socket = format!("--socket-path={}", image.path().with_extension("sock").display());
    let file = format!("--blk-file={}", image.path().display());
    // It waits a while for the other to go.
    let other = std::process::Command::new(PROGRAM).args(["blk", &socket, &file]).output().unwrap();
    let error = String::from_utf8(other.stderr).unwrap();
    assert!(!other.status.success());
    assert!(error.contains("in use") && error.contains("disk.img"), "{error}");
}

/// Requests go on through one upgrade after the other: none fails, none is lost, and what was counted is counted on.
#[test]
fn busy_guests_notice_nothing() {
    let image = Image::new(MIB);
    let name = image.with(",cache=writeback");
    let mut server = disks(&[("a", &name), ("b", "mem:1M"), ("idle", "null:1M")]);
    let [a, b] = ["a", "b"].map(|disk| Busy::start(up(&server, disk)));
    for _ in 0..10 {
        let pause = server.upgrade().unwrap();
        println!("paused for {pause:?}");
        a.check();
        b.check();
    }
    let (_a, rounds) = a.finish();
    // What was in memory still is.
    let (_b, _) = b.finish();
    let counters = server.counters().unwrap();
    assert_eq!(counters.get("a", "written"), rounds * Busy::DEPTH);
    assert_eq!(counters.get("a", "flushes"), rounds);
    assert_eq!([counters.get("a", "sessions"), counters.get("idle", "sessions")], [1, 0]);
    // On a busy machine a pause may be worth a line.
    assert!(warnings(&server.output()).iter().all(|line| line.contains("took over")));
    let last = (rounds * Busy::DEPTH) - 1;
    assert_eq!(image.sector(last % Busy::SECTORS), sector(last));
}

/// What a driver has chosen is its choice after an upgrade too. The image's file is handed over: that it could not be opened
/// any more is no matter.
#[test]
fn what_is_open_stays_open() {
    let image = Image::new(MIB);
    let mut server = disks(&[("a", &image.with(",cache=writethrough"))]);
    let mut a = up(&server, "a");
    assert_eq!(a.config().unwrap()[32], 0, "the cache is off");
    a.set_writeback(true).unwrap();
    std::fs::rename(image.path(), image.path().with_extension("elsewhere")).unwrap();
    std::fs::write(image.path(), "another file").unwrap();
    server.upgrade().unwrap();
    assert_eq!(a.config().unwrap()[32], 1, "the cache is on");
    a.write(0, &sector(9)).unwrap();
    std::fs::rename(image.path().with_extension("elsewhere"), image.path()).unwrap();
    assert_eq!(image.sector(0), sector(9));
}

/// A kick without a request, which QEMU makes when it starts a ring, wakes a queue up once and not for ever.
#[test]
fn a_kick_for_nothing_costs_little() {
    // Where the image lies decides how it is reached: not in memory, if there is a disk.
    let image = Image { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
    File::create(image.path()).unwrap().set_len(MIB).unwrap();
    let server = disks(&[("file", &image.with(",cache=writeback")), ("memory", "mem:1M")]);
    for disk in ["file", "memory"] {
        let (_frontend, _channel, (ring, _memory)) = idle_driver(&server, disk);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            ring.kick().signal().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        let counters = server.counters().unwrap();
        assert_eq!(counters.get(disk, "sessions"), 1);
        let syscalls = counters.get(disk, "syscalls");
        assert!(syscalls < 50, "{disk}: {syscalls} system calls");
    }
}

/// Front-ends attach and go after an upgrade as before, and the socket is removed by the last server.
#[test]
fn sockets_go_on() {
    let mut server = disks(&[("a", "mem:1M")]);
    up(&server, "a").write(0, &sector(1)).unwrap();
    server.upgrade().unwrap();
    assert_eq!(up(&server, "a").read(0, 512).unwrap(), sector(1));
    server.upgrade().unwrap();
    let socket = server.socket("a");
    assert!(socket.exists());
    let begin = Instant::now();
    assert!(server.terminate().unwrap().0.success());
    assert!(begin.elapsed() < SOON && !socket.exists());
}

/// An inherited connection is served until its front-end goes, which is the end of the server.
#[test]
fn an_inherited_connection_is_all() {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
    let mut command = std::process::Command::new(PROGRAM);
    command.args(["blk", "--blk-file=null:1M", &format!("--fd={}", theirs.as_raw_fd())]);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    drop(theirs);
    let question = [1u32, 1, 0].map(u32::to_le_bytes).concat();
    std::io::Write::write_all(&mut &ours, &question).unwrap();
    std::io::Read::read_exact(&mut &ours, &mut [0; 20]).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    drop(ours);
    eventually("it ends", || child.try_wait().unwrap().is_some_and(|status| status.success()));
}
