//! Images, servers of disks and guests that use them: what the tests with disks have in common.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringway_spec::blk;
use ringway_spec::feature::RING_EVENT_IDX;
use ringway_testkit::disk::{Ask, DiskDriver, DiskOptions, MAX_DATA};
use ringway_testkit::guest::{
    BOOT_LIMIT, Disk, Guest, QemuOptions, UmlOptions, boot_qemu, boot_uml, ensure_images,
};
use ringway_testkit::process::find_program;
use ringway_testkit::server::Server;
use ringway_vhost::frontend::Connection;

/// For anything that must happen; emulated guests are slow on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// For `fio` in a guest, or anything else that goes through some dozen MiB.
pub(crate) const LONG: Duration = Duration::from_mins(2);
/// MiB.
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");

/// A raw image, in a directory that goes with it.
pub(crate) struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    /// One of so many MiB, without a block.
    pub(crate) fn new(mebibytes: u64) -> Self {
        let image = Self { dir: tempfile::tempdir().unwrap() };
        File::create(image.path()).unwrap();
        image.set_len(mebibytes * MIB);
        image
    }

    /// The same in QEMU's copy-on-write format.
    pub(crate) fn new_qcow2(mebibytes: u64) -> Self {
        let image = Self { dir: tempfile::tempdir().unwrap() };
        qemu_img(&["create", "-q", "-f", "qcow2", &image.name(), &format!("{mebibytes}M")]);
        image
    }

    /// What is on the disk, as a file. An image that has tables is sound, but for space that nobody uses.
    pub(crate) fn to_raw(&self) -> PathBuf {
        if !std::fs::read(self.path()).unwrap().starts_with(b"QFI\xfb") {
            return self.path();
        }
        assert!(
            matches!(qemu_img(&["check", "-q", "-f", "qcow2", &self.name()]), 0 | 3),
            "the image is damaged"
        );
        let raw = self.dir.path().join("raw.img");
        assert_eq!(qemu_img(&["convert", "-O", "raw", &self.name(), raw.to_str().unwrap()]), 0);
        raw
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    pub(crate) fn name(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    pub(crate) fn set_len(&self, len: u64) {
        File::options().write(true).open(self.path()).unwrap().set_len(len).unwrap();
    }

    /// Makes a file system of kind ext4 on it.
    pub(crate) fn make_ext4(&self) {
        let program = find_program("mkfs.ext4").unwrap();
        let status = Command::new(program).args(["-q", "-F"]).arg(self.path()).status().unwrap();
        assert!(status.success());
    }

    /// Waits until somebody writes to it, from now on.
    pub(crate) fn wait_written(&self) {
        let modified = || self.path().metadata().unwrap().modified().unwrap();
        let (before, deadline) = (modified(), Instant::now() + SOON);
        while modified() == before {
            assert!(Instant::now() < deadline, "nothing is written");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Bytes that it takes up on the disk it lies on.
    pub(crate) fn allocated(&self) -> u64 {
        self.path().metadata().unwrap().blocks() * 512
    }

    /// A server of it.
    pub(crate) fn serve(&self, extra: &[&str]) -> Server {
        Server::blk(Path::new(PROGRAM), &self.name(), extra).expect("ringway starts")
    }
}

/// Runs `qemu-img`; its exit status.
fn qemu_img(arguments: &[&str]) -> i32 {
    let status = Command::new(find_program("qemu-img").unwrap()).args(arguments).status().unwrap();
    status.code().expect("it ends by itself")
}

/// How QEMU gets to the disk of a server.
pub(crate) fn disk(server: &Server) -> Disk {
    Disk::new(server.socket("disk"))
}

/// A guest under QEMU that has booted.
pub(crate) fn qemu(options: &QemuOptions) -> Guest {
    let mut guest = start_qemu(options);
    guest.wait_ready(BOOT_LIMIT).expect("it boots");
    guest
}

/// A guest that boots, or waits to be migrated.
pub(crate) fn start_qemu(options: &QemuOptions) -> Guest {
    let images = ensure_images().expect("guests/setup.sh gets the guests' images");
    boot_qemu("qemu", &images, options).expect("it starts")
}

/// A User-Mode Linux that has booted, with the disk of a server.
pub(crate) fn uml(server: &Server) -> Guest {
    let images = ensure_images().expect("guests/setup.sh gets the guests' images");
    let mut guest =
        boot_uml("uml", &images, &UmlOptions::with_disks([server.socket("disk")])).expect("it starts");
    guest.wait_ready(BOOT_LIMIT).expect("it boots");
    guest
}

/// Neither the guest's kernel nor the server has seen anything go wrong.
pub(crate) fn expect_no_complaint(guest: &mut Guest, server: &Server) {
    assert_eq!(guest.disk_complaints().unwrap(), "", "{}", guest.name());
    expect_no_warning(server);
}

/// A driver in user space, on a disk of a server.
pub(crate) fn user_space_driver(server: &Server, disk: &str) -> DiskDriver {
    let connection = Connection::connect(server.socket(disk)).unwrap();
    DiskDriver::start(connection, DiskOptions::new(RING_EVENT_IDX)).expect("it negotiates")
}

/// Has the driver read, write or flush at so many MiB; the status.
pub(crate) fn request(driver: &mut DiskDriver, kind: u32, mebibyte: u64) -> u8 {
    let (sector, len) =
        if kind == blk::T_FLUSH { (0, 0) } else { (mebibyte * MIB / u64::from(blk::SECTOR_SIZE), MAX_DATA) };
    let data = if kind == blk::T_OUT { vec![7; MAX_DATA as usize] } else { Vec::new() };
    driver.call(Ask { kind, sector, len, tag: 0 }, &data, SOON).unwrap().status
}

/// Whatever it has warned of, the server has come to no harm.
pub(crate) fn expect_no_error(server: &Server) {
    let output = server.output();
    assert!(!output.contains("ERROR") && !output.contains("panicked"), "{output}");
}

pub(crate) fn expect_no_warning(server: &Server) {
    let output = server.output();
    assert!(
        !output.contains("WARN") && !output.contains("ERROR") && !output.contains("panicked"),
        "{output}"
    );
}

/// Another one each time; a failure prints it.
pub(crate) fn seed() -> u64 {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    seed
}
