//! Linux guests with a device of `ringway rng`, `ringway console` or `ringway balloon`.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ringway_testkit::guest::{
    BOOT_LIMIT, Guest, QemuOptions, UmlOptions, boot_qemu, boot_uml, ensure_images,
};
use ringway_testkit::server::{Counters, Server};
use rustix::fs::OFlags;
use rustix::termios::{Winsize, tcsetwinsize};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");
/// For anything that must happen; emulated guests are slow on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn serve(kind: &str, extra: &[&str]) -> Server {
    Server::device(Path::new(PROGRAM), kind, extra).expect("ringway starts")
}

fn expect_no_warning(server: &Server) {
    let output = server.output();
    assert!(!output.contains("WARN") && !output.contains("ERROR"), "{output}");
}

// --- entropy --------------------------------------------------------------------------------------------

/// A guest under QEMU with an entropy device. Its QEMU does not connect again.
fn qemu_with_rng(server: &Server) -> Guest {
    let images = ensure_images().expect("guests/setup.sh gets the guests' images");
    let mut options = QemuOptions::new([]);
    options.args = vec![
        "-chardev".into(),
        format!("socket,id=r0,path={}", server.socket("rng").display()),
        "-device".into(),
        "vhost-user-rng-pci,chardev=r0".into(),
    ];
    let mut guest = boot_qemu("qemu", &images, &options).expect("it starts");
    guest.wait_ready(BOOT_LIMIT).expect("it boots");
    guest
}

/// As many bytes of the guest's entropy device, in hexadecimal digits.
fn random(guest: &mut Guest, bytes: u32) -> String {
    let command =
        format!("dd if=/dev/hwrng bs={bytes} count=1 iflag=fullblock 2>/dev/null | xxd -p | tr -d '\\n'");
    let digits = guest.run(&command, SOON).expect("there are random bytes");
    assert_eq!(digits.len(), 2 * bytes as usize, "{digits}");
    digits
}

/// The digits look random: each of the 16 is about as frequent as the others.
fn expect_random(digits: &str) {
    let expected = digits.len() / 16;
    for digit in "0123456789abcdef".chars() {
        let count = digits.chars().filter(|&c| c == digit).count();
        // Five times the deviation of a fair coin with 16 sides, for 8192 digits.
        assert!(count.abs_diff(expected) < 110, "{digit} is there {count} times, not about {expected}");
    }
}

/// A guest reads random bytes, others every time, after an upgrade and a reboot too. QEMU passes on what
/// the device offers, so the ring is packed.
#[test]
fn a_guest_has_random_bytes() {
    let mut server = serve("rng", &[]);
    let mut guest = qemu_with_rng(&server);
    let current = guest.run("cat /sys/class/misc/hw_random/rng_current", SOON).unwrap();
    assert!(current.starts_with("virtio_rng"), "{current}");
    let features = guest.run("cat /sys/bus/virtio/devices/virtio*/features", SOON).unwrap();
    assert_eq!(features.chars().nth(34), Some('1'), "{features}");
    let mut seen = Vec::new();
    for step in ["first", "again", "after an upgrade", "after a reboot", "again"] {
        match step {
            "after a reboot" => guest.reboot(BOOT_LIMIT).unwrap(),
            "after an upgrade" => println!("paused for {:?}", server.upgrade().unwrap()),
            _ => {}
        }
        let digits = random(&mut guest, 4096);
        expect_random(&digits);
        assert!(!seen.contains(&digits), "{step}: the same bytes");
        seen.push(digits);
    }
    let counters = server.counters().unwrap();
    assert!(counters.get("rng", "bytes") >= 5 * 4096, "{counters:?}");
    assert_eq!((counters.get("rng", "failed rings")), 0);
    expect_no_warning(&server);
}

// --- console --------------------------------------------------------------------------------------------

/// The other end of a port: a terminal's slave, or a client of a socket.
struct Wire<T>(T, Vec<u8>);

impl<T: Read + Write> Wire<T> {
    fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until this has come.
    fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + SOON;
        let mut looked_at = 0;
        while !self.1[looked_at..].windows(text.len()).any(|part| part == text.as_bytes()) {
            looked_at = self.1.len().saturating_sub(text.len());
            let heard = String::from_utf8_lossy(&self.1[self.1.len().saturating_sub(99)..]).into_owned();
            assert!(Instant::now() < deadline, "{text:?} does not come, but {heard:?}");
            let mut bytes = vec![0; 1 << 16];
            match self.0.read(&mut bytes) {
                Ok(n) => self.1.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
        self.1.clear();
    }
}

fn terminal(path: &Path) -> Wire<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    Wire(File::options().read(true).write(true).custom_flags(flags).open(path).unwrap(), Vec::new())
}

fn client(path: &Path) -> Wire<UnixStream> {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_nonblocking(true).unwrap();
    Wire(stream, Vec::new())
}

fn uml(kind: &str, id: u32, server: &Server) -> Guest {
    let images = ensure_images().expect("guests/setup.sh gets the guests' images");
    let options = UmlOptions::with_others([(server.socket(kind), id)]);
    let mut guest = boot_uml("uml", &images, &options).expect("it starts");
    guest.wait_ready(BOOT_LIMIT).expect("it boots");
    guest
}

/// Lines go both ways over hvc0 and a pseudo-terminal, whoever comes and goes there; the guest sees how large it is; and an
/// upgrade in the midst of it loses nothing.
#[test]
fn a_guest_has_a_console() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("console");
    let mut server = serve("console", &[&format!("--port=con=pty:{}", link.display())]);
    let path = std::fs::read_link(&link).unwrap();
    let printed = format!("port con: {}\n", path.display());
    server.process().wait_for_from(0, &printed, SOON).expect("its path is printed");
    let mut guest = uml("console", 3, &server);
    // Nobody is there, and nobody is waited for.
    guest.run("seq 1 2000 >/dev/hvc0", SOON).unwrap();
    assert!(server.counters().unwrap().get("console", "dropped") >= 2000);
    // When the last program closes it, its line discipline is the usual one again, and what was typed is gone.
    let hold = "exec 3<>/dev/hvc0; stty raw -echo <&3; echo ready; sleep 1000";
    guest.start_background(hold, "/tmp/holder").unwrap();
    guest.run("until grep -q ready /tmp/holder; do usleep 20000; done", SOON).unwrap();
    for (round, (rows, cols)) in [("first", (50, 132)), ("second", (40, 100)), ("upgraded", (30, 90))] {
        let mut terminal = terminal(&link);
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal.0, size).unwrap();
        guest.start_background("read line </dev/hvc0 && echo heard $line >/dev/hvc0", "/tmp/log").unwrap();
        if round == "upgraded" {
            println!("paused for {:?}", server.upgrade().unwrap());
        }
        terminal.say(&format!("typed {round}\n"));
        terminal.expect(&format!("heard typed {round}"));
        guest.run(&format!("echo written {round} >/dev/hvc0"), SOON).unwrap();
        terminal.expect(&format!("written {round}"));
        // What was typed had it looked at, and the driver told.
        let sized = format!(
            "until stty -F /dev/hvc0 size 2>/dev/null | grep -q '{rows} {cols}'; do usleep 20000; done"
        );
        guest.run(&sized, SOON).unwrap();
    }
    guest.reboot(BOOT_LIMIT).unwrap();
    let mut terminal = terminal(&link);
    guest.run("echo after a reboot >/dev/hvc0", SOON).unwrap();
    terminal.expect("after a reboot");
    expect_no_warning(&server);
    drop(guest);
    server.terminate().unwrap();
    assert!(!link.is_symlink(), "the link is gone with it");
}

/// A port among several has a name, tells the guest whether somebody is there, and holds it up while that one does not read;
/// a megabyte arrives whole, both ways.
#[test]
fn a_guest_has_several_ports() {
    let directory = tempfile::tempdir().unwrap();
    let [agent, log, con] = ["agent", "log", "con"].map(|name| directory.path().join(name));
    let ports = [
        format!("--port=con=pty:{}", con.display()),
        format!("--port=org.agent.0=socket:{}", agent.display()),
        format!("--port=log=file:{}", log.display()),
    ];
    let mut server = serve("console", &ports.each_ref().map(String::as_str));
    let mut guest = uml("console", 3, &server);
    let named = "for p in /sys/class/virtio-ports/*; do echo $(basename $p)=$(cat $p/name); done";
    assert_eq!(guest.run(named, SOON).unwrap(), "vport0p0=con\nvport0p1=org.agent.0\nvport0p2=log\n");
    guest.run("echo to a file >/dev/vport0p2", SOON).unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "to a file\n");

    // A program that writes waits until somebody is there.
    guest
        .start_background("echo hello >/dev/vport0p1; seq 1 1200000 >/dev/vport0p1; echo sent", "/tmp/sent")
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(guest.run("cat /tmp/sent", SOON).unwrap(), "");
    let mut first = client(&agent);
    first.expect("hello\n1\n");
    // It does not read on: the guest's program waits, and what is under way is bounded.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(guest.run("cat /tmp/sent", SOON).unwrap(), "");
    assert!(server.counters().unwrap().get("console", "received") < 2_000_000);
    println!("paused for {:?}", server.upgrade().unwrap());
    first.expect("\n1200000\n");
    guest.run("until grep -q sent /tmp/sent; do usleep 20000; done", SOON).unwrap();
    assert_eq!(server.counters().unwrap().get("console", "dropped"), 0);

    // The other way, to a guest that takes its time.
    let text = (0..150_000).map(|n| n.to_string() + "\n").collect::<String>();
    let take = format!("(sleep 1; head -c {} | sha256sum) </dev/vport0p1; echo done", text.len());
    guest.start_background(&take, "/tmp/sum").unwrap();
    first.0.set_nonblocking(false).unwrap();
    first.say(&text);
    guest.run("until grep -q done /tmp/sum; do usleep 20000; done", SOON).unwrap();
    let sum = guest.run("cat /tmp/sum", SOON).unwrap();
    let due = guest.run("seq 0 149999 | sha256sum", SOON).unwrap();
    assert_eq!(sum.lines().next(), due.lines().next());

    // The next client comes when this one has gone.
    drop(first);
    let mut second = client(&agent);
    guest.run("echo again >/dev/vport0p1", SOON).unwrap();
    second.expect("again\n");
    // The console is one beside the others.
    let mut terminal = terminal(&con);
    guest.run("echo console >/dev/hvc0", SOON).unwrap();
    terminal.expect("console");
    expect_no_warning(&server);
}

// --- balloon --------------------------------------------------------------------------------------------

const MIB: u64 = 1 << 20;

/// Says how much the guest is to give; what the command prints.
fn balloon_target(server: &mut Server, size: Option<u64>) -> String {
    let mut command = Command::new(PROGRAM);
    command.args(["balloon-target", "--pid", &server.process().pid().to_string()]);
    if let Some(size) = size {
        command.args(["--size", &size.to_string()]);
    }
    let run = command.output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// Waits until the counter is as it should be; all counters then.
fn wait_for(server: &Server, counter: &str, is_so: impl Fn(u64) -> bool) -> Counters {
    let deadline = Instant::now() + SOON;
    loop {
        let counters = server.counters().unwrap();
        if is_so(counters.get("balloon", counter)) {
            return counters;
        }
        assert!(Instant::now() < deadline, "{counter}: {counters:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a guest gives leaves the file that its memory is, page by page; what it takes back it can use. An upgrade keeps the
/// target, and the guest's statistics are there for who asks.
#[test]
fn memory_comes_back_from_a_guest() {
    let mut server = serve("balloon", &["--no-reporting"]);
    let mut guest = uml("balloon", 5, &server);
    // All of it has been in use: what is free in the guest is not free here.
    let fill = "dd if=/dev/zero of=/tmp/filled bs=1M count=120 2>/dev/null; sync; rm /tmp/filled";
    guest.run(fill, SOON).unwrap();
    let counters = server.counters().unwrap();
    let (memory, before) = (counters.get("balloon", "memory"), counters.get("balloon", "host memory"));
    println!("{} MiB, the host gives {} MiB", memory / MIB, before / MIB);
    assert!(before > 150 * MIB, "{before}");

    let said = balloon_target(&mut server, Some(128 * MIB));
    println!("{said}");
    assert!(said.contains("target 134217728 bytes") && said.contains("guest: free "), "{said}");
    let counters = wait_for(&server, "actual", |actual| actual == 128 * MIB);
    let after = counters.get("balloon", "host memory");
    println!("with 128 MiB in the balloon the host gives {} MiB", after / MIB);
    assert_eq!(counters.get("balloon", "inflated"), 128 * MIB);
    assert_eq!(counters.get("balloon", "released"), 128 * MIB);
    // Nothing else goes back, and the guest needs some pages to do this.
    assert!(before - after > 116 * MIB && before - after <= 128 * MIB, "{before} {after}");

    println!("paused for {:?}", server.upgrade().unwrap());
    balloon_target(&mut server, Some(32 * MIB));
    let counters = wait_for(&server, "actual", |actual| actual == 32 * MIB);
    assert_eq!(counters.get("balloon", "deflated"), 96 * MIB);
    // It has them back, and they are good.
    let use_it = "dd if=/dev/urandom of=/tmp/a bs=1M count=60 2>/dev/null; cp /tmp/a /tmp/b; cmp /tmp/a /tmp/b && rm /tmp/?";
    guest.run(use_it, SOON).unwrap();
    // It gives no more than it has, and is alive.
    balloon_target(&mut server, Some(1 << 40));
    let target = server.counters().unwrap().get("balloon", "target");
    assert_eq!(target, memory);
    balloon_target(&mut server, Some(16 * MIB));
    wait_for(&server, "actual", |actual| actual == 16 * MIB);

    // The target is the guest's after a reboot too.
    guest.reboot(BOOT_LIMIT).unwrap();
    let counters = wait_for(&server, "actual", |actual| actual == 16 * MIB);
    assert_eq!((counters.get("balloon", "not released"), counters.get("balloon", "refused")), (0, 0));
    assert_eq!(counters.get("balloon", "failed rings"), 0);
    expect_no_warning(&server);
}

/// A guest reports what it does not use by itself.
#[test]
fn free_memory_is_reported() {
    let server = serve("balloon", &[]);
    let mut guest = uml("balloon", 5, &server);
    guest.run("dd if=/dev/zero of=/tmp/filled bs=1M count=120 2>/dev/null", SOON).unwrap();
    let full = server.counters().unwrap().get("balloon", "host memory");
    guest.run("rm /tmp/filled", SOON).unwrap();
    let counters = wait_for(&server, "host memory", |now| now + 100 * MIB < full);
    println!(
        "{} MiB with 120 MiB in use, {} MiB without",
        full / MIB,
        counters.get("balloon", "host memory") / MIB
    );
    assert!(counters.get("balloon", "reported") > 100 * MIB);
    assert_eq!((counters.get("balloon", "not released"), counters.get("balloon", "failed rings")), (0, 0));
    // And it is there when it is used.
    guest
        .run(
            "dd if=/dev/urandom of=/tmp/a bs=1M count=60 2>/dev/null; cp /tmp/a /tmp/b; cmp /tmp/a /tmp/b",
            SOON,
        )
        .unwrap();
    expect_no_warning(&server);
}
