//! What survives the server of a disk: killed while requests are under way, dozens of times, and started again.
//!
//! Two drivers look at that, each in its own way: a Linux guest whose `fio` reads back what it wrote, and a driver in user
//! space that keeps a record of what was acknowledged.

#[path = "common/disks.rs"]
mod disks;

use std::time::{Duration, Instant};

use disks::{Image, LONG, PROGRAM, SOON, disk, expect_no_complaint, expect_no_warning, qemu, seed};
use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED};
use ringway_testkit::disk::checker::{Checker, Random};
use ringway_testkit::disk::{DiskDriver, DiskOptions};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::guest::{FioJob, QemuOptions};
use ringway_testkit::server::Server;
use ringway_testkit::soak_factor;
use ringway_vhost::frontend::Connection;
use rustix::process::Signal;

/// Kills the server of an image of zeroes at random moments, `count` times.
fn crashes(count: u32, image: &Image, arguments: &[&str], options: DiskOptions) {
    let mut server = image.serve(arguments);
    let socket = server.socket("disk");
    let connect = || Connection::connect(&socket).unwrap();
    let mut checker = Checker::start(connect(), options, seed()).unwrap();
    checker.run(Duration::from_millis(100)).unwrap();
    let mut times = Vec::new();
    for crash in 0..count {
        let run = checker.below(40_000);
        checker.run(Duration::from_micros(run)).unwrap_or_else(|e| panic!("before crash {crash}: {e:#}"));
        server.process().signal(Signal::KILL).unwrap();
        // The driver does not know yet.
        checker.fill().unwrap();
        let start = Instant::now();
        server.restart().unwrap();
        checker.reconnect(connect()).unwrap_or_else(|e| panic!("after crash {crash}: {e:#}"));
        checker.settle(SOON).unwrap_or_else(|e| panic!("after crash {crash}: {e:#}"));
        times.push(start.elapsed());
        expect_no_warning(&server);
    }
    checker.finish(SOON).unwrap();
    drop(server);
    checker.look_at(&image.to_raw()).unwrap();
    times.sort();
    let [median, longest] = [times.len() / 2, times.len() - 1].map(|i| times[i].as_millis());
    println!(
        "{count} crashes, {:?}; all done again after {median} ms, at most {longest} ms",
        checker.tally()
    );
}

/// Dozens of requests are under way all the time, on one queue or two, of an image with or without the page cache.
#[test]
fn a_driver_in_user_space_outlives_50_crashes() {
    for (cache, format, queues) in
        [("direct", 0, 1), ("direct", RING_PACKED, 2), ("writeback", 0, 2), ("writeback", RING_PACKED, 1)]
    {
        let options = DiskOptions { queues, ..DiskOptions::new(RING_EVENT_IDX | format) };
        crashes(50, &Image::new(8), &[&format!("--cache={cache}"), "--num-queues=2"], options);
    }
}

/// The same with an image that has tables of where everything is.
#[test]
fn a_qcow2_image_outlives_50_crashes() {
    let options = DiskOptions::new(RING_EVENT_IDX | RING_PACKED);
    crashes(50, &Image::new_qcow2(8), &["--format=qcow2"], options);
}

/// A driver says once whether the disk is to cache writes; it holds after crashes of the server, too.
#[test]
fn the_cache_stays_as_the_driver_wants_it() {
    const CONFIG_WCE: u64 = 1 << 11;
    const FLUSH: u64 = 1 << 9;
    const WRITEBACK: u32 = 32;
    for (mode, ordered) in [("direct", 0), ("writethrough", 1)] {
        let image = Image::new(1);
        let mut server = image.serve(&[&format!("--cache={mode}")]);
        let socket = server.socket("disk");
        let connect = || Connection::connect(&socket).unwrap();
        let mut driver = DiskDriver::start(connect(), DiskOptions::new(CONFIG_WCE | FLUSH)).unwrap();
        let first = driver.frontend.config(WRITEBACK, 1).unwrap();
        assert_ne!(first, [ordered], "{mode}");
        let mut crash = |driver: &mut DiskDriver| {
            server.process().signal(Signal::KILL).unwrap();
            server.restart().unwrap();
            driver.reconnect(connect()).unwrap();
            driver.frontend.config(WRITEBACK, 1).unwrap()
        };
        assert_eq!(crash(&mut driver), first, "{mode}: nothing was ordered");
        driver.frontend.set_config(WRITEBACK, &[ordered]).unwrap();
        for _ in 0..2 {
            assert_eq!(crash(&mut driver), [ordered], "{mode}");
        }
        // Another driver, another record.
        drop(driver);
        let mut driver = DiskDriver::start(connect(), DiskOptions::new(CONFIG_WCE | FLUSH)).unwrap();
        assert_eq!(driver.frontend.config(WRITEBACK, 1).unwrap(), first, "{mode}");
    }
}

/// A disk that keeps nothing is found out at once, and one that forgets in a crash after it.
#[test]
fn a_disk_that_forgets_is_found_out() {
    for image in ["null:8M", "mem:8M"] {
        let mut server = Server::blk(PROGRAM.as_ref(), image, &[]).unwrap();
        let connect = |server: &Server| Connection::connect(server.socket("disk")).unwrap();
        let mut checker = Checker::start(connect(&server), DiskOptions::new(RING_EVENT_IDX), seed()).unwrap();
        let before = checker.run(Duration::from_millis(100));
        assert_eq!(before.is_err(), image.starts_with("null"), "{image}: {before:?}");
        if before.is_ok() {
            server.restart().unwrap();
            checker.reconnect(connect(&server)).unwrap();
            checker.run(Duration::from_secs(1)).unwrap_err();
        }
    }
}

/// The same for longer.
#[test]
#[ignore = "long: make soak"]
fn soak_a_driver_in_user_space_outlives_crashes() {
    for format in [0, RING_PACKED] {
        let options = DiskOptions { queues: 2, ..DiskOptions::new(RING_EVENT_IDX | format) };
        crashes(500 * soak_factor(), &Image::new(8), &["--num-queues=2"], options);
    }
}

/// Kills the server under a guest's `fio`, `count` times. QEMU reconnects; the guest does not know.
fn guest_crashes(count: u32, properties: &str) {
    let image = Image::new(64);
    let mut server = image.serve(&["--num-queues=2"]);
    let mut options = QemuOptions::with_disks([disk(&server).queues(2).reconnect(100).property(properties)]);
    options.cpus = 2;
    let mut guest = qemu(&options);
    let is_packed = guest.disk_features("vda").unwrap() & feature::RING_PACKED != 0;
    assert_eq!(is_packed, properties.contains("packed=on"));

    let job = FioJob::new("/dev/vda", 8).jobs(2).command();
    guest.run("touch /tmp/go", SOON).unwrap();
    let rounds = format!("while [ -e /tmp/go ]; do {job} || break; done; echo ended $?");
    let fio = guest.start_background(&rounds, "/tmp/fio.log").unwrap();
    let mut random = Random(seed());
    let start = Instant::now();
    for _ in 0..count {
        image.wait_written();
        std::thread::sleep(Duration::from_millis(random.below(150)));
        expect_no_warning(&server);
        server.restart().unwrap();
    }
    let time = start.elapsed();
    guest.run(&format!("rm /tmp/go; while kill -0 {fio}; do usleep 50000; done 2>/dev/null"), LONG).unwrap();
    let log = guest.run("cat /tmp/fio.log", SOON).unwrap();
    assert!(log.ends_with("ended 0\n"), "{log}");
    let written: u64 =
        log.lines().filter(|l| l.starts_with("3;")).map(|l| guest.fio_written(l).unwrap()).sum();
    println!("{count} crashes in {time:?}; {} MiB written and read again", written >> 20);
    assert!(written > 16 << 20);
    expect_no_complaint(&mut guest, &server);
}

/// Split rings.
#[test]
fn a_guest_with_split_rings_outlives_50_crashes() {
    guest_crashes(50, "packed=off");
}

/// Packed rings.
#[test]
fn a_guest_with_packed_rings_outlives_50_crashes() {
    guest_crashes(50, "packed=on");
}

/// Both for longer.
#[test]
#[ignore = "long: make soak"]
fn soak_a_guest_outlives_crashes() {
    for properties in ["packed=off", "packed=on"] {
        guest_crashes(300 * soak_factor(), properties);
    }
}
