//! A disk on an NBD server, nbdkit, that fails, is slow, or is killed and started again.

#[path = "common/disks.rs"]
mod disks;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use disks::{Image, MIB, PROGRAM, SOON, expect_no_error, request, seed, user_space_driver};
use ringway_spec::blk;
use ringway_spec::feature::RING_EVENT_IDX;
use ringway_testkit::disk::checker::Checker;
use ringway_testkit::disk::{Ask, DiskOptions, MAX_DATA};
use ringway_testkit::process::{Process, find_program};
use ringway_testkit::server::Server;
use ringway_vhost::frontend::Connection;

/// nbdkit with an image, and with filters that make it do wrong.
struct Nbdkit {
    image: Image,
    dir: tempfile::TempDir,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Nbdkit {
    fn new(image: Image, filter: &[&str]) -> Self {
        let arguments = filter.iter().map(|&word| word.to_owned()).collect();
        let mut server = Self { image, dir: tempfile::tempdir().unwrap(), arguments, process: None };
        server.start();
        server
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd")
    }

    /// As an image for `ringway`.
    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    fn start(&mut self) {
        let (filters, parameters): (Vec<_>, Vec<_>) =
            self.arguments.iter().partition(|a| a.starts_with("--"));
        let mut command = Command::new(find_program("nbdkit").unwrap());
        command.arg("--foreground").arg("--unix").arg(self.socket()).args(filters);
        command.arg("file").arg(self.image.path()).args(parameters);
        self.process = Some(Process::start("nbdkit", &mut command).unwrap());
        let deadline = Instant::now() + SOON;
        while !self.socket().exists() {
            assert!(Instant::now() < deadline, "nbdkit does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills it; what it was about to write it never will.
    fn kill(&mut self) {
        self.process = None;
        fs::remove_file(self.socket()).unwrap();
    }
}

/// Storage that fails: reads and writes do, and when it is well again they do not.
#[test]
fn storage_fails() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken");
    let file = format!("error-file={}", broken.display());
    let nbd = Nbdkit::new(Image::new(16), &["--filter=error", "error=EIO", "error-rate=100%", &file]);
    let server = Server::blk(PROGRAM.as_ref(), &nbd.uri(), &[]).unwrap();
    let mut driver = user_space_driver(&server, "disk");
    for _ in 0..2 {
        for kind in [blk::T_OUT, blk::T_IN, blk::T_FLUSH] {
            assert_eq!(request(&mut driver, kind, 1), blk::S_OK, "request {kind}");
        }
        fs::write(&broken, "").unwrap();
        // The filter has no errors for flushes.
        for kind in [blk::T_OUT, blk::T_IN] {
            assert_eq!(request(&mut driver, kind, 1), blk::S_IOERR, "request {kind}");
        }
        fs::remove_file(&broken).unwrap();
    }
    assert_eq!(request(&mut driver, blk::T_IN, 1), blk::S_OK);
    assert!(server.output().contains("WARN"), "the log says that the storage failed");
}

/// A disk whose storage takes a second for every request, beside one on a file: the other is as fast as ever, and its
/// front-ends come and go.
#[test]
fn a_slow_disk_delays_no_other() {
    let slow = Nbdkit::new(Image::new(16), &["--filter=delay", "rdelay=1", "wdelay=1"]);
    let image = Image::new(16);
    let server =
        Server::disks(PROGRAM.as_ref(), &[("slow", &slow.uri()), ("fast", &image.name())], &[]).unwrap();
    let mut stuck = user_space_driver(&server, "slow");
    let asked = Instant::now();
    for tag in 0..16 {
        let ask = Ask { kind: blk::T_IN, sector: tag * MIB / 512 / 2, len: MAX_DATA, tag };
        stuck.submit(0, ask, &[]).unwrap();
    }
    stuck.publish(0).unwrap();

    let mut times = Vec::new();
    while asked.elapsed() < Duration::from_millis(800) {
        let mut driver = user_space_driver(&server, "fast");
        for _ in 0..20 {
            let start = Instant::now();
            assert_eq!(request(&mut driver, blk::T_OUT, 1), blk::S_OK);
            assert_eq!(request(&mut driver, blk::T_IN, 1), blk::S_OK);
            times.push(start.elapsed());
        }
    }
    assert!(stuck.completed(0).unwrap().is_none(), "the slow disk was slow");
    times.sort();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{} writes and reads: {median:?}, at most {longest:?}", times.len());
    assert!(times.len() >= 20 && median < Duration::from_millis(100) && longest < Duration::from_millis(700));

    let mut done = 0;
    while done < 16 {
        assert!(stuck.wait(0, SOON).unwrap(), "{done} requests are done");
        while let Some(request) = stuck.completed(0).unwrap() {
            assert_eq!(request.status, blk::S_OK);
            done += 1;
        }
    }
    expect_no_error(&server);
}

/// The NBD server is killed under random writes, and started again, 20 times: the driver waits, nothing is lost, and
/// nothing comes late.
#[test]
fn an_nbd_server_is_started_again() {
    let mut nbd = Nbdkit::new(Image::new(8), &[]);
    let server = Server::blk(PROGRAM.as_ref(), &nbd.uri(), &[]).unwrap();
    let connection = Connection::connect(server.socket("disk")).unwrap();
    let mut checker = Checker::start(connection, DiskOptions::new(RING_EVENT_IDX), seed()).unwrap();
    let mut times = Vec::new();
    for _ in 0..20 {
        let run = checker.below(40_000);
        checker.run(Duration::from_micros(run)).unwrap();
        nbd.kill();
        checker.run(Duration::from_millis(20)).unwrap();
        let start = Instant::now();
        nbd.start();
        checker.settle(SOON).unwrap();
        times.push(start.elapsed());
    }
    checker.finish(SOON).unwrap();
    checker.look_at(&nbd.image.path()).unwrap();
    times.sort();
    println!("{:?}; all done again after {:?}, at most {:?}", checker.tally(), times[10], times[19]);
    expect_no_error(&server);
}
