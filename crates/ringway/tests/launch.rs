//! The launcher (`examples/launch`): guests on KVM, with devices by the register models of `ringway-device`, in its process
//! and by vhost-user.
//!
//! Other people's drivers are the proof: `guests/peer` has those of the crate `virtio-drivers`, over MMIO, with real exits
//! and interrupts. How far a stock kernel gets is up to the machine: where KVM emulates every instruction, as far as it
//! knows them all. A machine without KVM has nothing to test; it is told on standard error.

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use common::{FEATURES, PROGRAM, options, switch, up};
use ringway_testkit::guest;
use ringway_testkit::process::{Process, target_dir};
use ringway_testkit::server::Server;
use tempfile::TempDir;

/// Some machines emulate everything twice.
const LIMIT: Duration = Duration::from_mins(2);
/// Before its first line a kernel runs tens of millions of instructions; emulated one by one they take half a minute.
const BOOT_LIMIT: Duration = Duration::from_secs(170);
/// The launcher's exit status where there is no KVM.
const NO_KVM: i32 = 3;
/// The launcher's exit status when the guest's checks went well: as QEMU's `isa-debug-exit`.
const ALL_WELL: i32 = 33;

const SECTOR: usize = 512;
const DISK: u64 = 1 << 20;

/// Runs a command that builds something; what it says is told if it fails.
fn build(command: &mut Command) {
    let run = command.output().unwrap();
    assert!(run.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&run.stderr));
}

fn cargo() -> Command {
    Command::new(env!("CARGO"))
}

/// The launcher; built here, for who runs this test alone has no examples.
fn launcher() -> Command {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let target = Path::new(PROGRAM).ancestors().nth(2).unwrap();
        build(
            cargo()
                .args(["build", "--quiet", "--package=ringway", "--example=launch", "--target-dir"])
                .arg(target),
        );
        target.join("debug/examples/launch")
    });
    Command::new(path)
}

/// The guest with other people's drivers.
fn peer() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let target = target_dir().join("peer");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/peer");
        // Flags that are meant for programs of an operating system; its own are in its directory.
        let mut command = cargo();
        for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
            command.env_remove(flags);
        }
        let arguments = ["build", "--quiet", "--release", "--locked", "--target-dir"];
        build(command.current_dir(sources).args(arguments).arg(&target));
        target.join("x86_64-unknown-linux-gnu/release/peer")
    });
    path.clone()
}

/// Whether there is no KVM here, which is told.
fn is_without_kvm() -> bool {
    let run = launcher().arg("/nonexistent/kernel").output().unwrap();
    let is_without = run.status.code() == Some(NO_KVM);
    if is_without {
        eprintln!("SKIPPED: {}", String::from_utf8_lossy(&run.stderr).trim_end());
    }
    is_without
}

/// A disk whose first sector is told apart.
fn disk(dir: &TempDir) -> (PathBuf, File) {
    let path = dir.path().join("disk");
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).unwrap();
    file.set_len(DISK).unwrap();
    file.write_all_at(&[0xa7; SECTOR], 0).unwrap();
    (path, file)
}

/// The guest has copied the first sector to the last.
fn expect_copied(disk: &File) {
    let mut sector = [0; SECTOR];
    disk.read_exact_at(&mut sector, DISK - SECTOR as u64).unwrap();
    assert_eq!(sector, [0xa7; SECTOR]);
}

/// What the guest found of each device, once it has ended.
fn findings(mut process: Process) -> Vec<String> {
    process.wait_for("done\n", LIMIT).unwrap();
    let status = process.wait(LIMIT).unwrap();
    let output = process.output();
    let mut found: Vec<_> =
        output.lines().filter(|l| l.starts_with("ok ") || l.starts_with("not ok ")).map(Into::into).collect();
    found.sort();
    assert_eq!(
        status.code() == Some(ALL_WELL),
        found.iter().all(|line: &String| line.starts_with("ok ")),
        "{status}\n{output}"
    );
    found
}

#[test]
fn without_kvm_it_says_so_and_ends() {
    for kvm in ["/nonexistent/kvm", "/dev/null"] {
        let run = launcher().args(["--kvm", kvm, "/nonexistent/kernel"]).output().unwrap();
        assert_eq!(run.status.code(), Some(NO_KVM));
        let text = String::from_utf8(run.stderr).unwrap();
        assert!(text.starts_with(&format!("launch: no virtual machine without {kvm}: ")), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

/// All five devices in the launcher's process.
#[test]
fn other_peoples_drivers_use_the_devices_of_this_process() {
    if is_without_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, disk) = disk(&dir);
    let (here, there) = (dir.path().join("card"), dir.path().join("wire"));
    let wire = UnixDatagram::bind(&there).unwrap();
    wire.set_read_timeout(Some(LIMIT)).unwrap();
    let mut command = launcher();
    command.arg(peer()).args(["--memory=64", "--rng", "--console", "--balloon=1"]);
    command.arg("--blk").arg(&path).arg("--net").arg(format!("{},{}", here.display(), there.display()));
    let mut process = Process::start("launch", &mut command).unwrap();
    let echo = thread::spawn(move || {
        let mut frame = [0; 2048];
        let (len, from) = wire.recv_from(&mut frame).unwrap();
        wire.send_to_addr(&frame[..len], &from).unwrap();
        len
    });
    process.wait_for("console: type\n", LIMIT).unwrap();
    process.write("typed\n").unwrap();
    assert_eq!(findings(process), ["ok balloon", "ok blk", "ok console", "ok net", "ok rng"]);
    assert_eq!(echo.join().unwrap(), 200);
    expect_copied(&disk);
}

/// A disk and a card of `ringway`, beside a device in the launcher's process.
#[test]
fn other_peoples_drivers_use_devices_of_ringway() {
    if is_without_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, disk) = disk(&dir);
    let disks = Server::blk(Path::new(PROGRAM), path.to_str().unwrap(), &[]).unwrap();
    let network = switch(&["guest", "echo"]);
    let mut echo = up(&network, "echo", FEATURES, options());
    let mut command = launcher();
    command.arg(peer()).args(["--memory=64", "--rng"]);
    for (option, socket) in [("--blk", disks.socket("disk")), ("--net", network.socket("guest"))] {
        command.arg(option).arg(format!("vhost-user:{}", socket.display()));
    }
    let process = Process::start("launch", &mut command).unwrap();
    let (_, frame) = echo.recv_frame(LIMIT).unwrap().expect("the guest's frame");
    echo.send_frame(&frame).unwrap();
    assert_eq!(findings(process), ["ok blk", "ok net", "ok rng"]);
    expect_copied(&disk);
}

/// Starts Debian's kernel by PVH, and waits for these lines of its console.
fn boot_stock_kernel(lines: &[&str]) {
    let images = guest::ensure_images().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("vmlinux");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/vmlinux.sh");
    build(Command::new(script).arg(&images.kernel).arg(&kernel));
    let mut command = launcher();
    command.arg(&kernel).arg("--initrd").arg(&images.qemu_initrd).args(["--rng", "--memory=128"]);
    command.arg("--cmdline=console=ttyS0 earlyprintk=ttyS0 nokaslr panic=-1");
    let mut process = Process::start("launch", &mut command).unwrap();
    for line in lines {
        process.wait_for(line, BOOT_LIMIT).unwrap();
    }
    assert!(process.is_running(), "{}", process.output());
}

/// Its console, and its command line with the devices.
#[test]
fn a_stock_kernel_begins_to_boot() {
    if !is_without_kvm() {
        boot_stock_kernel(&["Linux version ", " virtio_mmio.device=4096@0xd0000000:5"]);
    }
}

/// Its memory map, and what it is told to be on: where KVM emulates, that is minutes away.
#[test]
#[ignore = "takes minutes where KVM emulates"]
fn soak_a_stock_kernel_knows_its_machine() {
    if !is_without_kvm() {
        let memory = "[mem 0x0000000000100000-0x0000000007ffffff] usable";
        boot_stock_kernel(&["Linux version ", memory, "Hypervisor detected: KVM"]);
    }
}
