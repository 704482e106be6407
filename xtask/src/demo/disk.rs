//! The second part: a guest with a disk, whose server is killed while the guest writes.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringway_testkit::guest::{Disk, FioJob, Images, QemuOptions, boot_qemu};
use ringway_testkit::server::Server;

use super::{Options, Teller, wait_booted};

const MEBIBYTES: u64 = 96;
const CRASHES: u32 = 5;
const SHORT: Duration = Duration::from_secs(20);

/// Runs it.
pub(super) fn demonstrate(options: &Options, images: &Images, teller: &Teller) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("disk.img");
    File::create(&image)?.set_len(MEBIBYTES << 20)?;
    let image = image.to_str().context("a path that can be said")?;
    let mut server = Server::blk(&options.ringway, image, &["--cache=writeback"])?;
    teller.say(&format!("ringway blk runs, with an image of {MEBIBYTES} MiB"));

    let disk = Disk::new(server.socket("disk")).reconnect(100).property("packed=on");
    let mut guest = boot_qemu("qemu", images, &QemuOptions::with_disks([disk]))?;
    wait_booted(&mut guest, teller)?;
    guest.make_ext4("vda")?;
    teller.say(&format!(
        "qemu has a disk of {} MiB, and made a file system on it",
        guest.disk_size("vda")? >> 20
    ));

    guest.run("touch /tmp/go", SHORT)?;
    let job = FioJob::new("/tmp/vda/file", 16).command();
    let rounds = format!("while [ -e /tmp/go ]; do {job} || break; done; echo ended $?");
    let fio = guest.start_background(&rounds, "/tmp/fio.log")?;
    for _ in 0..CRASHES {
        std::thread::sleep(Duration::from_millis(700));
        server.restart()?;
    }
    teller.say(&format!(
        "ringway was killed {CRASHES} times and started again, while the guest wrote and read back"
    ));
    guest.run(
        &format!("rm /tmp/go; while kill -0 {fio}; do usleep 50000; done 2>/dev/null"),
        teller.left()?,
    )?;
    let log = guest.run("cat /tmp/fio.log", SHORT)?;
    ensure!(log.ends_with("ended 0\n"), "the guest found errors:\n{log}");
    let rounds = log.lines().filter(|line| line.starts_with("3;"));
    let written = rounds.map(|line| guest.fio_written(line)).sum::<Result<u64>>()?;
    guest.unmount_clean("vda")?;
    let complaints = guest.disk_complaints()?;
    ensure!(complaints.is_empty(), "the guest complains:\n{complaints}");
    teller.say(&format!(
        "{} MiB were written and read again without an error; the file system is clean",
        written >> 20
    ));

    guest.power_off(teller.left()?)?;
    let (status, counters) = server.terminate()?;
    ensure!(status.success(), "ringway ended with {status}");
    teller.say("the guest is off, ringway has ended; since its last start:");
    println!("    {}", counters.summary);
    Ok(())
}
