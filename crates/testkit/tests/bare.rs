//! Ringway's drivers without an operating system: `guests/bare` on QEMU's devices, by PCI and by MMIO, with every kind of
//! ring.
//!
//! QEMU's devices are the proof: nobody here has written them. What must be checked is listed here, so that a check that
//! is not made is noticed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringway_testkit::bare::{Bare, Machine};
use ringway_testkit::qmp::Monitor;
use serde_json::json;

/// How long one machine may take; it takes seconds.
const LIMIT: Duration = Duration::from_secs(90);

/// How long anything may take that QEMU does at once.
const SOON: Duration = Duration::from_secs(20);

/// The kinds of rings.
const VARIANTS: [&str; 4] = ["packed", "packed-plain", "split", "split-plain"];

/// What the program is to say of these checks, made with every kind of ring.
fn expected(device: &str, checks: &[&str]) -> Vec<String> {
    VARIANTS
        .iter()
        .flat_map(|variant| checks.iter().map(move |check| format!("{device} {variant}: {check}")))
        .collect()
}

/// Who does what the program asks for.
struct Host {
    /// Where chardevs listen.
    dir: PathBuf,
    /// The connections to them, by their names.
    ports: BTreeMap<String, UnixStream>,
}

impl Host {
    fn new(bare: &Bare) -> Self {
        Self { dir: bare.dir().to_owned(), ports: BTreeMap::new() }
    }

    fn answer(&mut self, monitor: &mut Monitor, request: &str) -> Result<()> {
        let words: Vec<_> = request.split(' ').collect();
        match words[..] {
            ["resize", disk, bytes] => {
                let bytes: u64 = bytes.parse().context("a size")?;
                monitor.run("block_resize", &json!({ "device": disk, "size": bytes }))?;
            }
            ["link", card, state] => {
                monitor.run("set_link", &json!({ "name": card, "up": state == "up" }))?;
            }
            ["connect", port] => {
                let mut stream = UnixStream::connect(self.dir.join(port))?;
                stream.set_read_timeout(Some(SOON))?;
                wait_for_chardev(monitor, port, true)?;
                stream.write_all(b"hello")?;
                self.ports.insert(port.to_owned(), stream);
            }
            ["disconnect", port] => {
                self.ports.remove(port).context("it is not connected")?;
                wait_for_chardev(monitor, port, false)?;
            }
            ["echo", port, len] => {
                let mut bytes = vec![0; len.parse().context("a length")?];
                let stream = self.ports.get_mut(port).context("it is not connected")?;
                stream.read_exact(&mut bytes).context("what the program sends")?;
                stream.write_all(&bytes)?;
            }
            ["balloon", mib] => {
                let bytes = mib.parse::<u64>().context("a size")? << 20;
                monitor.run("balloon", &json!({ "value": bytes }))?;
            }
            ["expect-balloon", mib] => {
                let bytes = mib.parse::<u64>().context("a size")? << 20;
                let found = monitor.run("query-balloon", &json!({}))?;
                ensure!(found["actual"] == bytes, "QEMU says {found}");
            }
            ["statistics", free] => statistics(monitor, free.parse().context("a number")?)?,
            ["plug", port] => plug(monitor, port)?,
            ["unplug", port] => {
                monitor.run("device_del", &json!({ "id": port }))?;
            }
            _ => bail!("nobody can do that"),
        }
        Ok(())
    }
}

/// Tries until it succeeds, for a while.
fn wait_for<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        match attempt() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            result => return result,
        }
    }
}

/// Waits until QEMU has noticed that somebody has connected to a chardev, or has gone.
fn wait_for_chardev(monitor: &mut Monitor, name: &str, connected: bool) -> Result<()> {
    wait_for(|| {
        let all = monitor.run("query-chardev", &json!({}))?;
        let found = all.as_array().into_iter().flatten().find(|chardev| chardev["label"] == name);
        let filename = found.and_then(|chardev| chardev["filename"].as_str()).context("no such chardev")?;
        ensure!(filename.contains("disconnected") != connected, "{name} is {filename}");
        Ok(())
    })
}

/// Adds a port to the console device: as soon as one of that name, that was there before, is all gone.
fn plug(monitor: &mut Monitor, port: &str) -> Result<()> {
    let device = json!({
        "driver": "virtserialport", "bus": "ser0.0", "id": port, "nr": 2, "chardev": "late", "name": "ringway.late",
    });
    wait_for(|| monitor.run("device_add", &device).map(drop))
}

/// Asks for statistics each second, and waits until they say that so much memory is free.
fn statistics(monitor: &mut Monitor, free: u64) -> Result<()> {
    let path = "/machine/peripheral/bal0";
    let interval = json!({ "path": path, "property": "guest-stats-polling-interval", "value": 1 });
    monitor.run("qom-set", &interval)?;
    wait_for(|| {
        let found = monitor.run("qom-get", &json!({ "path": path, "property": "guest-stats" }))?;
        ensure!(found["stats"]["stat-free-memory"] == free, "QEMU says {found}");
        Ok(())
    })
}

/// Boots the program, and expects these checks of it.
fn run(bare: &Bare, checks: &str, expected: &[String]) {
    let mut host = Host::new(bare);
    let answer = |monitor: &mut Monitor, request: &str| host.answer(monitor, request);
    bare.run(&format!("checks={checks}"), LIMIT, answer).unwrap().expect(expected).unwrap();
}

/// What holds for all devices, with QEMU's entropy device.
fn core_rules(machine: Machine) {
    // By MMIO, QEMU offers to reset a queue, and then does not.
    let (properties, resets) = match machine {
        Machine::Q35 => ("", true),
        Machine::Microvm => ("queue_reset=off", false),
    };
    let bare = Bare::new(machine).unwrap().device("virtio-rng", properties);
    let mut checks = expected(
        "core",
        &[
            "features are those chosen",
            "buffers are filled",
            "the driver fills what it is given",
            "interrupts come when asked for",
            "a ring wraps around",
            "set up 100 times",
            "what is missing is told",
        ],
    );
    if resets {
        checks.extend(expected("core", &["a queue is reset"]));
    }
    // QEMU spins when a packed ring breaks.
    let broken = expected("core", &["a broken ring needs a reset"]);
    checks.extend(broken.into_iter().filter(|name| name.contains("split")));
    run(&bare, "core", &checks);
}

#[test]
fn core_rules_hold_by_pci() {
    core_rules(Machine::Q35);
}

#[test]
fn core_rules_hold_by_mmio() {
    core_rules(Machine::Microvm);
}

/// What the program expects of a disk: every sector has its number in all its words.
fn write_disk(path: &Path) -> Result<()> {
    const SECTORS: u64 = 32768;
    let bytes: Vec<u8> = (0..SECTORS).flat_map(|sector| sector.to_le_bytes().repeat(64)).collect();
    Ok(std::fs::write(path, bytes)?)
}

/// QEMU's disk, of two queues, and another that cannot be written to.
fn disks(machine: Machine) {
    let bare = Bare::new(machine).unwrap();
    let [first, second] = ["first", "second"].map(|name| bare.dir().join(name));
    write_disk(&first).unwrap();
    write_disk(&second).unwrap();
    let first = format!("if=none,id=d0,format=raw,discard=unmap,file={}", first.display());
    let second = format!("if=none,id=d1,format=raw,read-only=on,file={}", second.display());
    let bare = bare
        .arguments(&["-drive", &first, "-drive", &second])
        .device("virtio-blk", "drive=d0,num-queues=2,serial=ringway-bare")
        .device("virtio-blk", "drive=d1");
    let checks = expected(
        "blk",
        &[
            "what the disk says",
            "what the host wrote is read",
            "what was written is read",
            "zeroes and discards",
            "10000 requests, many at once",
            "an interrupt for each queue",
            "past the end",
            "stopped with requests in flight",
            "another size",
            "a disk that cannot be written to",
        ],
    );
    run(&bare, "blk", &checks);
}

#[test]
fn disks_work_by_pci() {
    disks(Machine::Q35);
}

#[test]
fn disks_work_by_mmio() {
    disks(Machine::Microvm);
}

/// QEMU's network cards: one in its own network, two on one wire.
fn cards(machine: Machine) {
    let bare = Bare::new(machine)
        .unwrap()
        .arguments(&["-netdev", "user,id=n0,restrict=on"])
        .arguments(&["-netdev", "hubport,id=n1,hubid=1", "-netdev", "hubport,id=n2,hubid=1"])
        .device("virtio-net", "netdev=n0,id=card0,mac=52:54:00:12:34:56")
        .device("virtio-net", "netdev=n1,mac=02:00:00:00:00:01")
        .device("virtio-net", "netdev=n2,mac=02:00:00:00:00:02");
    let checks = expected(
        "net",
        &[
            "what the card says",
            "the gateway answers",
            "the gateway answers, a buffer for each frame",
            "frames arrive whole and in order",
            "frames arrive in a buffer each",
            "frames interrupt",
            "only what is wanted arrives",
            "only wanted VLANs arrive",
            "the link goes down and up",
        ],
    );
    run(&bare, "net", &checks);
}

#[test]
fn cards_work_by_pci() {
    cards(Machine::Q35);
}

#[test]
fn cards_work_by_mmio() {
    cards(Machine::Microvm);
}

/// QEMU's console, with a port beside it, and one that comes and goes.
fn consoles(machine: Machine) {
    let bare = Bare::new(machine).unwrap();
    let chardev =
        |name: &str| format!("socket,id={name},path={},server=on,wait=off", bare.dir().join(name).display());
    let (first, second) = (chardev("port0"), chardev("port1"));
    let bare = bare
        .arguments(&["-chardev", &first, "-chardev", &second, "-chardev", "null,id=late"])
        .device("virtio-serial", "id=ser0,max_ports=4")
        .arguments(&["-device", "virtconsole,bus=ser0.0,chardev=port0"])
        .arguments(&["-device", "virtserialport,bus=ser0.0,chardev=port1,nr=1,name=ringway.port"]);
    let checks = expected(
        "console",
        &[
            "ports are told",
            "a port opens, echoes and closes",
            "a console echoes",
            "a console alone echoes",
            "a byte in an emergency",
            "a port comes and goes",
        ],
    );
    run(&bare, "console", &checks);
}

#[test]
fn consoles_work_by_pci() {
    consoles(Machine::Q35);
}

#[test]
fn consoles_work_by_mmio() {
    consoles(Machine::Microvm);
}

/// QEMU's balloon.
fn balloons(machine: Machine) {
    let bare = Bare::new(machine).unwrap().device("virtio-balloon", "id=bal0,free-page-reporting=on");
    let checks =
        expected("balloon", &["it is filled and emptied", "free pages are reported", "statistics are told"]);
    run(&bare, "balloon", &checks);
}

#[test]
fn balloons_work_by_pci() {
    balloons(Machine::Q35);
}

#[test]
fn balloons_work_by_mmio() {
    balloons(Machine::Microvm);
}
