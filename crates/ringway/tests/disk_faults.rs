//! What goes wrong around a disk, and what it costs: a front-end that goes away with requests under way, an image that is cut
//! short, storage that is full. The request fails, the driver is told, and the server goes on.

#[path = "common/disks.rs"]
mod disks;

use std::process::Command;
use std::time::Duration;

use disks::{
    Image, LONG, MIB, PROGRAM, SOON, disk, expect_no_warning, qemu, request, seed, uml, user_space_driver,
};
use ringway_spec::blk;
use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED};
use ringway_testkit::disk::checker::Checker;
use ringway_testkit::disk::{Ask, DiskDriver, DiskOptions};
use ringway_testkit::guest::{FioJob, QemuOptions};
use ringway_testkit::server::Server;
use ringway_vhost::frontend::Connection;

fn connect(server: &Server) -> Connection {
    Connection::connect(server.socket("disk")).unwrap()
}

/// Front-ends that go away with dozens of requests under way, one after the other. The next one finds the disk as it was
/// acknowledged, and nothing that its predecessor wrote undoes what it writes.
#[test]
fn a_front_end_goes_away_with_requests_under_way() {
    for format in [0, RING_PACKED] {
        let image = Image::new(8);
        let server = image.serve(&["--num-queues=2"]);
        let options = DiskOptions { queues: 2, ..DiskOptions::new(RING_EVENT_IDX | format) };
        let mut checker = Checker::start(connect(&server), options, seed()).unwrap();
        for _ in 0..50 {
            let run = checker.below(20_000);
            checker.run(Duration::from_micros(run)).unwrap();
            checker.fill().unwrap();
            checker.replace(|| connect(&server), options).unwrap();
        }
        checker.run(Duration::from_millis(100)).unwrap();
        checker.finish(SOON).unwrap();
        checker.look_at(&image.path()).unwrap();
        println!("{:?}", checker.tally());
        expect_no_warning(&server);
    }
}

/// A driver with more requests at once than a queue has under way: all are done, the rest when there is room.
#[test]
fn more_requests_than_are_under_way() {
    const COUNT: u16 = 1500;
    let image = Image::new(8);
    let server = image.serve(&[]);
    for format in [0, RING_PACKED] {
        let options = DiskOptions { depth: COUNT, ..DiskOptions::new(RING_EVENT_IDX | format) };
        let mut driver = DiskDriver::start(connect(&server), options).unwrap();
        for round in 0..3 {
            for tag in 0..u64::from(COUNT) {
                let ask = Ask { kind: blk::T_OUT, sector: tag * 8, len: 4096, tag };
                driver.submit(0, ask, &[round; 4096]).unwrap();
            }
            driver.publish(0).unwrap();
            let mut tags = Vec::new();
            while tags.len() < COUNT.into() {
                assert!(driver.wait(0, SOON).unwrap(), "{} of {COUNT} are done", tags.len());
                while let Some(done) = driver.completed(0).unwrap() {
                    assert_eq!(done.status, blk::S_OK);
                    tags.push(done.ask.tag);
                }
            }
            tags.sort_unstable();
            assert!(tags.into_iter().eq(0..COUNT.into()));
        }
    }
    expect_no_warning(&server);
}

/// A virtual machine that is killed while it writes; the next one finds a file system that it can mend, and goes on.
#[test]
fn a_guest_is_killed_while_it_writes() {
    let image = Image::new(64);
    let server = image.serve(&[]);
    let mut guest = qemu(&QemuOptions::with_disks([disk(&server)]));
    guest.make_ext4("vda").unwrap();
    guest.run("dd if=/dev/urandom of=/tmp/vda/kept bs=1M count=8 && sha256sum /tmp/vda/kept >/tmp/vda/sum && sync", SOON).unwrap();
    guest.start_background(&FioJob::new("/tmp/vda/fio", 16).command(), "/tmp/fio.log").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    guest.kill();
    let mut next = uml(&server);
    // The journal is played back when it is mounted.
    next.mount("vda").unwrap();
    next.run("sha256sum -c /tmp/vda/sum", SOON).unwrap();
    next.unmount_clean("vda").unwrap();
    expect_no_warning(&server);
}

/// An image that somebody cuts short: what is not there any more cannot be read, and all else can; once it is long again
/// so can that.
#[test]
fn an_image_is_cut_short() {
    for cache in ["--cache=direct", "--cache=writeback"] {
        let image = Image::new(16);
        let server = image.serve(&[cache]);
        let mut driver = user_space_driver(&server, "disk");
        for at in [2, 12] {
            assert_eq!(request(&mut driver, blk::T_OUT, at), blk::S_OK);
        }
        image.set_len(4 * MIB);
        assert_eq!(request(&mut driver, blk::T_IN, 12), blk::S_IOERR, "{cache}");
        assert_eq!(request(&mut driver, blk::T_IN, 2), blk::S_OK);
        image.set_len(16 * MIB);
        for at in [2, 12] {
            assert_eq!(request(&mut driver, blk::T_IN, at), blk::S_OK);
            assert_eq!(request(&mut driver, blk::T_OUT, at), blk::S_OK);
        }
    }
}

/// A disk of 64 MiB on storage of 16: writes fail when that is full, and the server lives. When something is discarded
/// there is room again.
#[test]
fn storage_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    let mut command = Command::new("unshare");
    // In a mount namespace of the server's own, which goes when it does.
    let script = format!(
        "mount -t tmpfs -o size=16M tmpfs {} && truncate -s 64M {} && exec \"$@\"",
        dir.path().display(),
        image.display()
    );
    command.args(["--mount", "sh", "-c", &script, "sh", PROGRAM]);
    let server = Server::blk_by(command, image.to_str().unwrap(), &["--cache=writeback"]).unwrap();

    let mut guest = uml(&server);
    let write = |mebibytes| format!("dd if=/dev/zero of=/dev/vda bs=1M count={mebibytes} oflag=direct");
    guest.run(&write(8), LONG).unwrap();
    let (status, said) = guest.run_status(&write(24), LONG).unwrap();
    assert!(status != 0 && said.contains("Input/output error"), "{said}");
    guest.run("dd if=/dev/vda of=/dev/null bs=1M count=8 iflag=direct", SOON).unwrap();
    guest.run("blkdiscard /dev/vda", SOON).unwrap();
    guest.run(&write(8), LONG).unwrap();
    guest.power_off(SOON).unwrap();

    let mut driver = user_space_driver(&server, "disk");
    let statuses: Vec<_> = (0..32).map(|at| request(&mut driver, blk::T_OUT, at)).collect();
    assert!(statuses.contains(&blk::S_OK), "{statuses:?}");
    assert_eq!(driver.size().unwrap(), 64 * MIB);
}
