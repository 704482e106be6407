//! A guest that moves with its disk: from one QEMU to another, each with a `ringway` of its own on the same image, while
//! `fio` writes and looks at what it wrote.
//!
//! ```text
//!            ┌─ ringway ── QEMU, guest
//!   image ───┤                  │ migration
//!            └─ ringway ── QEMU ▼
//! ```
//!
//! Both have the image open (`--share-rw`): QEMU attaches at the new place before it stops at the old one. It starts a ring
//! there only when all that was under way here has been done.

#[path = "common/disks.rs"]
mod disks;

use std::path::PathBuf;
use std::time::Duration;

use disks::{Image, LONG, SOON, disk, expect_no_complaint, expect_no_warning, start_qemu};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::guest::{BOOT_LIMIT, FioJob, Guest, QemuOptions};
use ringway_testkit::qmp::Monitor;
use ringway_testkit::server::Server;
use ringway_testkit::soak_factor;

const MIGRATION: Duration = Duration::from_mins(1);
/// Bytes a second.
const FAST: u64 = 1 << 30;

/// QEMU at one of the two places, with the guest or waiting for it.
struct Machine {
    guest: Guest,
    monitor: Monitor,
    /// Where it awaits a guest.
    incoming: PathBuf,
    _dir: tempfile::TempDir,
}

fn machine(server: &Server, properties: &str, extra: &[&str]) -> Machine {
    let dir = tempfile::tempdir().unwrap();
    let [monitor, incoming] = ["monitor", "incoming"].map(|name| dir.path().join(name));
    let mut options = QemuOptions::with_disks([disk(server).property(properties)]);
    options.memory = 192;
    options.args.extend(Monitor::arguments(&monitor));
    options.args.extend(extra.iter().map(|&word| word.to_owned()));
    let guest = start_qemu(&options);
    let monitor = Monitor::connect(&monitor).unwrap();
    Machine { guest, monitor, incoming, _dir: dir }
}

/// There and back again, `hops` times in all.
fn moves(properties: &str, hops: usize) {
    let image = Image::new(64);
    let servers = [0; 2].map(|_| image.serve(&["--share-rw"]));
    let mut here = machine(&servers[0], properties, &[]);
    here.guest.wait_ready(BOOT_LIMIT).unwrap();
    let is_packed = here.guest.disk_features("vda").unwrap() & feature::RING_PACKED != 0;
    assert_eq!(is_packed, properties.contains("packed=on"));
    here.guest.make_ext4("vda").unwrap();
    let keep = "dd if=/dev/urandom of=/tmp/vda/kept bs=1M count=8 && sha256sum /tmp/vda/kept >/tmp/sum";
    here.guest.run(keep, SOON).unwrap();

    let job = FioJob::new("/tmp/vda/fio", 8).command();
    let rounds = format!("touch /tmp/go; while [ -e /tmp/go ]; do {job} || break; done; echo ended $?");
    let fio = here.guest.start_background(&rounds, "/tmp/fio.log").unwrap();
    for hop in 1..=hops {
        let mut there = machine(&servers[hop % 2], properties, &["-incoming", "defer"]);
        there.monitor.await_migration(&there.incoming).unwrap();
        here.monitor.limit_migration(FAST).unwrap();
        here.monitor.migrate(&there.incoming).unwrap();
        let migration = here.monitor.wait_migrated(MIGRATION).unwrap();
        println!("{migration:?}");
        // The file system's pages are forgotten first: what is read is on the disk.
        there.guest.run("echo 1 >/proc/sys/vm/drop_caches && sha256sum -c /tmp/sum", LONG).unwrap();
        here = there;
    }
    let mut guest = here.guest;
    guest.run(&format!("rm /tmp/go; while kill -0 {fio}; do usleep 50000; done 2>/dev/null"), LONG).unwrap();
    let log = guest.run("cat /tmp/fio.log", SOON).unwrap();
    assert!(log.ends_with("ended 0\n"), "{log}");
    let written: u64 =
        log.lines().filter(|l| l.starts_with("3;")).map(|l| guest.fio_written(l).unwrap()).sum();
    println!("{} MiB written and read again", written >> 20);
    guest.unmount_clean("vda").unwrap();
    servers.iter().for_each(expect_no_warning);
    expect_no_complaint(&mut guest, &servers[hops % 2]);
}

/// With split rings.
#[test]
fn a_guest_with_split_rings_moves_with_its_disk() {
    moves("packed=off", 2);
}

/// With packed rings.
#[test]
fn a_guest_with_packed_rings_moves_with_its_disk() {
    moves("packed=on", 2);
}

/// Many hops.
#[test]
#[ignore = "long: make soak"]
fn soak_a_guest_moves_with_its_disk() {
    for format in ["packed=off", "packed=on"] {
        moves(format, 20 * soak_factor() as usize);
    }
}
