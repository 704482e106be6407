//! Linux guests with a disk: file systems, `fio` that looks at what it wrote, a disk that grows, and what a guest is told
//! of its disk.

#[path = "common/disks.rs"]
mod disks;

use disks::{Image, LONG, MIB, SOON, disk, expect_no_complaint, qemu, uml};
use ringway_spec::blk;
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::guest::{BOOT_LIMIT, FioJob, Guest, QemuOptions};
use ringway_testkit::server::Server;

/// What a guest does with a disk in its life: a file system, files in it that are written at random and looked at, and
/// given back; then it boots again and finds all it wrote.
fn lives(guest: &mut Guest, server: &Server, image: &Image) {
    guest.make_ext4("vda").unwrap();
    guest
        .run(
            "dd if=/dev/urandom of=/tmp/vda/kept bs=1M count=8 && sha256sum /tmp/vda/kept >/tmp/vda/sum",
            SOON,
        )
        .unwrap();
    let written = guest.fio(&FioJob::new("/tmp/vda/fio", 16).jobs(2), LONG).unwrap();
    guest.run("sync", SOON).unwrap();
    let full = image.allocated();
    println!("{}: {} MiB written, {} MiB of the image in use", guest.name(), written >> 20, full >> 20);
    assert!(written >= 32 * MIB && full > 40 * MIB, "{written} {full}");

    // What the file had is given back to whom the image is from.
    guest.run("rm /tmp/vda/fio && sync && fstrim /tmp/vda", LONG).unwrap();
    let trimmed = image.allocated();
    assert!(trimmed + 24 * MIB < full, "{trimmed} bytes of {full} are still in use");
    guest.unmount_clean("vda").unwrap();

    guest.reboot(BOOT_LIMIT).unwrap();
    guest.mount("vda").unwrap();
    guest.run("sha256sum -c /tmp/vda/sum", SOON).unwrap();
    guest.unmount_clean("vda").unwrap();
    expect_no_complaint(guest, server);
}

fn qemu_lives(properties: &str) {
    let image = Image::new(96);
    let server = image.serve(&[]);
    let mut guest = qemu(&QemuOptions::with_disks([disk(&server).property(properties)]));
    let is_packed = guest.disk_features("vda").unwrap() & feature::RING_PACKED != 0;
    assert_eq!(is_packed, properties.contains("packed=on"));
    lives(&mut guest, &server, &image);
}

/// Under QEMU with split rings.
#[test]
fn a_qemu_guest_with_split_rings_has_a_disk() {
    qemu_lives("packed=off");
}

/// Under QEMU with packed rings.
#[test]
fn a_qemu_guest_with_packed_rings_has_a_disk() {
    qemu_lives("packed=on");
}

/// User-Mode Linux.
#[test]
fn a_uml_guest_has_a_disk() {
    let image = Image::new(96);
    let server = image.serve(&[]);
    lives(&mut uml(&server), &server, &image);
}

/// Behind an IOMMU whose driver takes every mapping back at once: an address that is used too late is a fault.
#[test]
fn a_guest_behind_an_iommu_has_a_disk() {
    for format in ["packed=off", "packed=on"] {
        let image = Image::new(96);
        let server = image.serve(&["--iommu"]);
        let disk = disk(&server).property("iommu_platform=on,ats=on,disable-legacy=on").property(format);
        let mut options = QemuOptions::with_disks([disk]);
        options.kernel_args = "intel_iommu=on iommu=strict iommu.strict=1".into();
        options.args = ["-device", "intel-iommu,device-iotlb=on,intremap=off"].map(str::to_owned).into();
        let mut guest = qemu(&options);
        assert_ne!(guest.disk_features("vda").unwrap() & feature::ACCESS_PLATFORM, 0);
        // "DMA" is the strict one; the other is "DMA-FQ".
        let group = "cat /sys/block/vda/device/../iommu_group/type";
        assert_eq!(guest.run(group, SOON).unwrap().trim(), "DMA");
        lives(&mut guest, &server, &image);
        // From when its driver has the disk: the firmware leaves a ring running, in memory that the kernel does not map.
        let faults = "dmesg | sed '1,/\\[vda\\]/d' | grep 'DMAR.*fault'";
        let (status, said) = guest.run_status(faults, SOON).unwrap();
        assert_eq!(status, 1, "{said}");
        let (status, _) = guest.run_status("dmesg | grep -q '\\[vda\\]'", SOON).unwrap();
        assert_eq!(status, 0, "the driver says when it has the disk");
    }
}

/// With logical blocks of 4 KiB and a queue for each of two processors.
#[test]
fn a_guest_has_large_blocks_and_two_queues() {
    let image = Image::new(96);
    let server = image.serve(&["--logical-block-size=4096", "--num-queues=2"]);
    let mut options = QemuOptions::with_disks([disk(&server).queues(2).property("packed=on")]);
    options.cpus = 2;
    let mut guest = qemu(&options);
    assert_eq!(guest.disk_attribute("vda", "queue/logical_block_size").unwrap(), 4096);
    assert_eq!(guest.disk_queues("vda").unwrap(), 2);
    lives(&mut guest, &server, &image);
}

/// What the device says of itself is what the guest finds.
#[test]
fn a_guest_is_told_of_its_disk() {
    let image = Image::new(64);
    let server = image.serve(&["--num-queues=2", "--serial=ringway-1", "--cache=writethrough"]);
    let mut options = QemuOptions::with_disks([disk(&server).queues(2)]);
    options.cpus = 2;
    let mut qemu = qemu(&options);
    let mut uml = {
        let image = Image::new(64);
        let server = image.serve(&["--serial=ringway-1", "--cache=writethrough"]);
        (uml(&server), server, image)
    };
    for (guest, server) in [(&mut qemu, &server), (&mut uml.0, &uml.1)] {
        let wanted = blk::F_SEG_MAX
            | blk::F_BLK_SIZE
            | blk::F_FLUSH
            | blk::F_TOPOLOGY
            | blk::F_CONFIG_WCE
            | blk::F_DISCARD
            | blk::F_WRITE_ZEROES;
        assert_eq!(guest.disk_features("vda").unwrap() & (wanted | blk::F_RO), wanted, "{}", guest.name());
        assert_eq!(guest.disk_size("vda").unwrap(), 64 * MIB);
        assert!(guest.disk_attribute("vda", "queue/discard_max_bytes").unwrap() > 0);
        assert!(guest.disk_attribute("vda", "queue/write_zeroes_max_bytes").unwrap() > 0);
        assert_eq!(guest.run("cat /sys/block/vda/serial", SOON).unwrap().trim(), "ringway-1");
        // The driver chooses between a cache and none.
        for cache in ["write through", "write back", "write through"] {
            if guest.run("cat /sys/block/vda/cache_type", SOON).unwrap().trim() != cache {
                guest.run(&format!("echo {cache} >/sys/block/vda/cache_type"), SOON).unwrap();
            }
            assert_eq!(guest.run("cat /sys/block/vda/cache_type", SOON).unwrap().trim(), cache);
            guest.fio(&FioJob::new("/dev/vda", 2), LONG).unwrap();
        }
        expect_no_complaint(guest, server);
    }
    assert_ne!(qemu.disk_features("vda").unwrap() & blk::F_MQ, 0);
    assert_eq!(qemu.disk_queues("vda").unwrap(), 2);
}

/// A disk that can only be read: the guest knows it, mounts it, and the image stays as it is.
#[test]
fn a_guest_reads_a_disk_that_it_cannot_write() {
    let image = Image::new(32);
    image.make_ext4();
    let before = std::fs::read(image.path()).unwrap();
    let server = image.serve(&["--read-only"]);
    // A second server may read the same.
    let other = image.serve(&["--read-only"]);
    for (mut guest, server) in
        [(qemu(&QemuOptions::with_disks([disk(&server)])), &server), (uml(&other), &other)]
    {
        assert_ne!(guest.disk_features("vda").unwrap() & blk::F_RO, 0, "{}", guest.name());
        assert_eq!(guest.disk_attribute("vda", "ro").unwrap(), 1);
        guest
            .run("mkdir /tmp/vda && mount -t ext4 -o ro /dev/vda /tmp/vda && ls -d /tmp/vda/lost+found", SOON)
            .unwrap();
        assert_ne!(
            guest.run_status("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync", SOON).unwrap().0,
            0
        );
        guest.run("umount /tmp/vda", SOON).unwrap();
        expect_no_complaint(&mut guest, server);
    }
    assert!(std::fs::read(image.path()).unwrap() == before, "the image has changed");
}

/// A disk that grows under a mounted file system, which then does too.
#[test]
fn a_disk_grows_while_it_is_used() {
    let image = Image::new(48);
    let server = image.serve(&[]);
    let mut guest = qemu(&QemuOptions::with_disks([disk(&server).property("packed=on")]));
    guest.make_ext4("vda").unwrap();
    // Once by the command, once the file has grown already.
    for (mebibytes, size) in [(96, Some(96 * MIB)), (128, None)] {
        let job = FioJob::new("/tmp/vda/fio", 8).command();
        guest.run("rm -f /tmp/vda/fio", SOON).unwrap();
        let fio = guest.start_background(&format!("{job}; echo ended $?"), "/tmp/fio.log").unwrap();
        if size.is_none() {
            image.set_len(mebibytes * MIB);
        }
        server.resize(size).unwrap();
        let grown = format!(
            "until [ $(cat /sys/block/vda/size) = {} ]; do usleep 20000; done",
            mebibytes * MIB / 512
        );
        guest.run(&grown, SOON).unwrap();
        guest.run("resize2fs /dev/vda", LONG).unwrap();
        guest.run(&format!("while kill -0 {fio}; do usleep 50000; done 2>/dev/null"), LONG).unwrap();
        let log = guest.run("cat /tmp/fio.log", SOON).unwrap();
        assert!(log.ends_with("ended 0\n"), "{log}");
        // More than there was room for before.
        let fill = format!("dd if=/dev/urandom of=/tmp/vda/large bs=1M count={} && sync", mebibytes * 3 / 4);
        guest.run(&fill, LONG).unwrap();
    }
    guest.unmount_clean("vda").unwrap();
    expect_no_complaint(&mut guest, &server);
}
