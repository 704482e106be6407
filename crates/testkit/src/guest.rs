//! Real Linux guests for tests and the demo: a Debian kernel under QEMU's emulation and a User-Mode Linux,
//! each with network cards and disks behind vhost-user sockets.
//!
//! `guests/setup.sh` makes what they boot from ([`ensure_images`]). Both run `guests/init`, which takes
//! shell commands on the console, so a test says what a person would type:
//!
//! ```no_run
//! # use std::time::Duration;
//! # use ringway_testkit::guest::{self, Nic, QemuOptions, UmlOptions};
//! # fn main() -> anyhow::Result<()> {
//! let images = guest::ensure_images()?;
//! let mut alice = guest::boot_qemu("alice", &images, &QemuOptions::new([Nic::new("/tmp/alice.sock")]))?;
//! let mut bob = guest::boot_uml("bob", &images, &UmlOptions::new(["/tmp/bob.sock"]))?;
//! for guest in [&mut alice, &mut bob] {
//!     guest.wait_ready(guest::BOOT_LIMIT)?;
//! }
//! alice.configure("10.0.0.1/24", None)?;
//! bob.configure("10.0.0.2/24", None)?;
//! assert_eq!(alice.ping("10.0.0.2", 3)?.received, 3);
//! # Ok(()) }
//! ```
//!
//! Dropping a [`Guest`] ends it at once and leaves nothing behind.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::netns::Netns;
use crate::process::{Process, find_program, target_dir};

mod disk;

pub use disk::{Disk, FioJob};

/// A generous limit for [`Guest::wait_ready`]; a busy machine emulates slowly.
pub const BOOT_LIMIT: Duration = Duration::from_secs(90);

const QEMU: &str = "qemu-system-x86_64";
const UML: &str = "linux.uml";

/// The limit for commands that only look at or set something.
const SHORT: Duration = Duration::from_secs(20);

// --- images ---------------------------------------------------------------------------------------------

/// What guests boot from, made by `guests/setup.sh`.
#[derive(Clone, Debug)]
pub struct Images {
    /// The kernel for QEMU. (User-Mode Linux is its own kernel.)
    pub kernel: PathBuf,
    /// The initial RAM disk for QEMU.
    pub qemu_initrd: PathBuf,
    /// The same with programs for disks, which take a while to unpack.
    pub qemu_disk_initrd: PathBuf,
    /// The initial RAM disk for User-Mode Linux.
    pub uml_initrd: PathBuf,
}

/// Runs `guests/setup.sh`, once per process, and says where the images are. With all in place already it
/// takes a tenth of a second and needs neither root nor network.
pub fn ensure_images() -> Result<Images> {
    static IMAGES: OnceLock<Result<Images, String>> = OnceLock::new();
    IMAGES.get_or_init(|| make_images().map_err(|e| format!("{e:#}"))).clone().map_err(|e| anyhow!(e))
}

fn make_images() -> Result<Images> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/setup.sh");
    let run = Command::new("bash").arg(&script).output().context("cannot start bash")?;
    ensure!(run.status.success(), "guests/setup.sh failed:\n{}", String::from_utf8_lossy(&run.stderr));
    let dir = target_dir().join("guests").canonicalize().context("guests/setup.sh made no target/guests")?;
    Ok(Images {
        kernel: dir.join("vmlinuz"),
        qemu_initrd: dir.join("qemu-initrd.gz"),
        qemu_disk_initrd: dir.join("qemu-disk-initrd.gz"),
        uml_initrd: dir.join("uml-initrd.gz"),
    })
}

// --- booting under QEMU ---------------------------------------------------------------------------------

/// A virtio-net card of a QEMU guest, behind a vhost-user socket that a back-end listens on.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The socket.
    pub socket: PathBuf,
    /// The card's address; by default QEMU's choice, which is the same in every QEMU.
    pub mac: Option<String>,
    /// Queue pairs; more than one turns `mq` on.
    pub queues: u16,
    /// Whether QEMU reconnects, twice a second, after the back-end has gone away.
    pub reconnect: bool,
    /// Further properties of `-device virtio-net-pci`, such as `packed=on`, separated by commas.
    pub properties: String,
}

impl Nic {
    /// A card with one queue pair that does not reconnect.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), mac: None, queues: 1, reconnect: false, properties: String::new() }
    }

    /// Sets the card's address.
    #[must_use]
    pub fn mac(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self
    }

    /// Sets the number of queue pairs.
    #[must_use]
    pub fn queues(mut self, pairs: u16) -> Self {
        self.queues = pairs;
        self
    }

    /// Has QEMU reconnect after the back-end has gone away.
    #[must_use]
    pub fn reconnect(mut self) -> Self {
        self.reconnect = true;
        self
    }

    /// Adds a property of the device, such as `packed=on`.
    #[must_use]
    pub fn property(mut self, property: &str) -> Self {
        if !self.properties.is_empty() {
            self.properties.push(',');
        }
        self.properties.push_str(property);
        self
    }

    /// The arguments for QEMU that make this the card number `index`.
    fn arguments(&self, index: usize) -> [String; 6] {
        let mut chardev = format!("socket,id=c{index},path={}", self.socket.display());
        if self.reconnect {
            chardev += ",reconnect-ms=500";
        }
        let netdev = format!("vhost-user,id=n{index},chardev=c{index},queues={}", self.queues);
        let mut device = format!("virtio-net-pci,netdev=n{index},romfile=");
        if let Some(mac) = &self.mac {
            let _ = write!(device, ",mac={mac}");
        }
        if self.queues > 1 {
            // A vector for each queue, one for the control queue and one for the configuration.
            let _ = write!(device, ",mq=on,vectors={}", 2 * self.queues + 2);
        }
        if !self.properties.is_empty() {
            let _ = write!(device, ",{}", self.properties);
        }
        ["-chardev".into(), chardev, "-netdev".into(), netdev, "-device".into(), device]
    }
}

/// How a guest under QEMU is to be.
#[derive(Clone, Debug)]
pub struct QemuOptions {
    /// Its network cards, in the order of its PCI slots.
    pub nics: Vec<Nic>,
    /// Its disks, in slots after the cards': `vda` is the first.
    pub disks: Vec<Disk>,
    /// Its memory in MiB, all of it shared with the back-ends.
    pub memory: u32,
    /// Its processors.
    pub cpus: u32,
    /// Whether a reboot (also after a panic) ends QEMU rather than booting again.
    pub no_reboot: bool,
    /// Further words for the kernel's command line.
    pub kernel_args: String,
    /// Further arguments for QEMU.
    pub args: Vec<String>,
}

impl QemuOptions {
    /// One processor, 256 MiB, and reboots work.
    pub fn new(nics: impl IntoIterator<Item = Nic>) -> Self {
        Self {
            nics: nics.into_iter().collect(),
            disks: Vec::new(),
            memory: 256,
            cpus: 1,
            no_reboot: false,
            kernel_args: String::new(),
            args: Vec::new(),
        }
    }

    /// The same with disks, and no network card.
    pub fn with_disks(disks: impl IntoIterator<Item = Disk>) -> Self {
        Self { disks: disks.into_iter().collect(), ..Self::new([]) }
    }
}

/// Starts a guest under QEMU; `name` stands in messages. [`Guest::wait_ready`] comes next.
pub fn boot_qemu(name: &str, images: &Images, options: &QemuOptions) -> Result<Guest> {
    start_qemu(Command::new(find_program(QEMU)?), name, images, options)
}

/// The same in a namespace, whose taps are then in QEMU's reach.
pub fn boot_qemu_in(host: &Netns, name: &str, images: &Images, options: &QemuOptions) -> Result<Guest> {
    start_qemu(host.command(QEMU)?, name, images, options)
}

fn start_qemu(mut qemu: Command, name: &str, images: &Images, options: &QemuOptions) -> Result<Guest> {
    let memory = options.memory;
    // The best of processors, less what makes emulation slow: with "fast" string instructions the kernel
    // copies memory ten times slower, and a fifth level of page tables is one more to walk.
    let cpu = "max,erms=off,fsrm=off,la57=off";
    qemu.args(["-accel", "tcg", "-cpu", cpu, "-machine", "q35,memory-backend=mem"])
        .args(["-m", &format!("{memory}M"), "-smp", &options.cpus.to_string()])
        .args(["-object", &format!("memory-backend-memfd,id=mem,size={memory}M,share=on")])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&images.kernel)
        .arg("-initrd")
        .arg(if options.disks.is_empty() { &images.qemu_initrd } else { &images.qemu_disk_initrd })
        .arg("-append")
        // All but the console is about booting fast: no measuring of clocks, no waiting for entropy.
        .arg(format!(
            "console=ttyS0 panic=-1 quiet loglevel=1 tsc=reliable no_timer_check mitigations=off \
             random.trust_cpu=on {}",
            options.kernel_args
        ));
    if options.no_reboot {
        qemu.arg("-no-reboot");
    }
    // An IOMMU among them comes before the devices that are behind it.
    qemu.args(&options.args);
    for (index, nic) in options.nics.iter().enumerate() {
        qemu.args(nic.arguments(index));
    }
    for (index, disk) in options.disks.iter().enumerate() {
        qemu.args(disk.arguments(index));
    }
    Ok(Guest::new(Process::start(name, &mut qemu)?, None))
}

// --- booting User-Mode Linux ----------------------------------------------------------------------------

/// How a User-Mode Linux guest is to be.
#[derive(Clone, Debug)]
pub struct UmlOptions {
    /// The vhost-user sockets of its network cards. Their addresses are for the back-end to say, or for
    /// [`Guest::set_mac`] once the guest runs.
    pub nics: Vec<PathBuf>,
    /// The vhost-user sockets of its disks: `vda` is the first.
    pub disks: Vec<PathBuf>,
    /// The vhost-user sockets of other devices, each with its virtio device ID.
    pub others: Vec<(PathBuf, u32)>,
    /// Its memory in MiB, all of it shared with the back-ends.
    pub memory: u32,
    /// Whether a reboot (also after a panic) ends the guest rather than booting again.
    pub no_reboot: bool,
    /// Further words for the kernel's command line.
    pub kernel_args: Vec<String>,
}

impl UmlOptions {
    /// 256 MiB, and reboots work.
    pub fn new<P: Into<PathBuf>>(nics: impl IntoIterator<Item = P>) -> Self {
        Self {
            nics: nics.into_iter().map(Into::into).collect(),
            disks: Vec::new(),
            others: Vec::new(),
            memory: 256,
            no_reboot: false,
            kernel_args: Vec::new(),
        }
    }

    /// The same with disks, and no network card.
    pub fn with_disks<P: Into<PathBuf>>(disks: impl IntoIterator<Item = P>) -> Self {
        let disks = disks.into_iter().map(Into::into).collect();
        Self { disks, ..Self::new(Vec::<PathBuf>::new()) }
    }

    /// The same with other devices alone, each with its virtio device ID.
    pub fn with_others<P: Into<PathBuf>>(others: impl IntoIterator<Item = (P, u32)>) -> Self {
        let others = others.into_iter().map(|(socket, id)| (socket.into(), id)).collect();
        Self { others, ..Self::new(Vec::<PathBuf>::new()) }
    }
}

/// Starts a User-Mode Linux guest; `name` stands in messages. [`Guest::wait_ready`] comes next.
pub fn boot_uml(name: &str, images: &Images, options: &UmlOptions) -> Result<Guest> {
    start_uml(Command::new(find_program(UML)?), name, images, options)
}

/// The same in a namespace, whose taps are then in its reach.
pub fn boot_uml_in(host: &Netns, name: &str, images: &Images, options: &UmlOptions) -> Result<Guest> {
    start_uml(host.command(UML)?, name, images, options)
}

fn start_uml(mut uml: Command, name: &str, images: &Images, options: &UmlOptions) -> Result<Guest> {
    // Its pid file and control socket; by default they would stay in ~/.uml.
    let dir = tempfile::Builder::new().prefix("ringway-uml-").tempdir().context("no temporary directory")?;
    // The guest's memory is a file there, which UML unlinks at once: it is what back-ends map.
    uml.env("TMPDIR", "/dev/shm")
        .arg(format!("mem={}M", options.memory))
        .arg(format!("initrd={}", images.uml_initrd.display()))
        .args(["root=/dev/ram0", "con=null", "con0=fd:0,fd:1", "panic=-1", "quiet", "umid=guest"])
        .arg(format!("uml_dir={}/", dir.path().display()));
    if options.no_reboot {
        uml.arg("noreboot");
    }
    // 1 is virtio's number for a network card, 2 for a block device.
    for (sockets, id) in [(&options.nics, 1), (&options.disks, 2)] {
        for socket in sockets {
            uml.arg(format!("virtio_uml.device={}:{id}", socket.display()));
        }
    }
    for (socket, id) in &options.others {
        uml.arg(format!("virtio_uml.device={}:{id}", socket.display()));
    }
    uml.args(&options.kernel_args);
    // Each process of the guest is one on the host, so only its group ends all of them.
    Ok(Guest::new(Process::start_group(name, &mut uml)?, Some(dir)))
}

// --- a running guest ------------------------------------------------------------------------------------

/// A guest. Dropping it kills it.
pub struct Guest {
    process: Process,
    /// How much of the output earlier waits have used up.
    seen: usize,
    /// The number of the next command.
    next_id: u64,
    /// Files of User-Mode Linux; they go when the guest does.
    _dir: Option<tempfile::TempDir>,
}

impl Guest {
    fn new(process: Process, dir: Option<tempfile::TempDir>) -> Self {
        Self { process, seen: 0, next_id: 1, _dir: dir }
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        self.process.name()
    }

    /// The process on the host, for signals and for all that it has printed.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until the guest has booted and takes commands. After a reboot it waits for the next time.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let start = self.seen;
        self.seen = self.process.wait_for_from(start, "RINGWAY-GUEST-READY", limit)?;
        if let Some(broken) =
            self.process.output()[start..self.seen].lines().find(|l| l.contains("RINGWAY-GUEST-BROKEN"))
        {
            bail!("{}: {broken}", self.name());
        }
        Ok(())
    }

    /// Runs a shell command (one line) and returns what it printed, stderr included; an error if it fails
    /// or does not end in time. After a missed limit the guest is still busy with it.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        let (status, output) = self.run_status(command, limit)?;
        ensure!(status == 0, "{}: `{command}` failed with status {status}:\n{output}", self.name());
        Ok(output)
    }

    /// Like [`Guest::run`], but hands the exit status back too.
    pub fn run_status(&mut self, command: &str, limit: Duration) -> Result<(u8, String)> {
        let id = self.submit(command)?;
        let begin = format!("RINGWAY-BEGIN {id}\n");
        let end = format!("RINGWAY-END {id} ");
        let deadline = Instant::now() + limit;
        let left = || deadline.saturating_duration_since(Instant::now());
        let context = || format!("command `{command}`");

        let start = self.process.wait_for_from(self.seen, &begin, left()).with_context(context)?;
        let mark = self.process.wait_for_from(start, &end, left()).with_context(context)?;
        self.seen = self.process.wait_for_from(mark, "\n", left()).with_context(context)?;
        let text = self.process.output();
        let status = text[mark..self.seen].trim_end().parse().with_context(context)?;
        Ok((status, text[start..mark - end.len()].to_owned()))
    }

    /// Starts a shell command that runs on while others do; its output goes to `log` in the guest.
    /// Returns its process id there.
    pub fn start_background(&mut self, command: &str, log: &str) -> Result<u32> {
        let output = self.run(&format!("({command}) >{log} 2>&1 & echo $!"), SHORT)?;
        output.trim().parse().with_context(|| format!("{}: no process id: {output:?}", self.name()))
    }

    /// Sends a command without waiting for anything; returns the id that its markers carry.
    fn submit(&mut self, command: &str) -> Result<u64> {
        // A terminal takes at most 4095 bytes as one line and drops the rest.
        ensure!(!command.contains('\n') && command.len() < 4000, "a command must be one line, not too long");
        let id = self.next_id;
        self.next_id += 1;
        self.process.write(&format!("{id} {command}\n"))?;
        Ok(id)
    }

    /// Reboots the guest, without any orderly shutdown, and waits until it is ready again.
    pub fn reboot(&mut self, limit: Duration) -> Result<()> {
        self.submit("reboot -f")?;
        self.wait_ready(limit)
    }

    /// Turns the guest off and waits for the end of its process.
    pub fn power_off(&mut self, limit: Duration) -> Result<()> {
        self.submit("poweroff -f")?;
        let status = self.process.wait(limit)?;
        ensure!(status.success(), "{}: ended with {status}", self.name());
        Ok(())
    }

    /// Kills the guest, as if its power had failed.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

// --- what tests do in a guest ---------------------------------------------------------------------------

/// The outcome of [`Guest::ping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingStats {
    /// Requests sent.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
}

impl Guest {
    /// The names of its virtio network interfaces, in the order of their devices.
    pub fn interfaces(&mut self) -> Result<Vec<String>> {
        let paths = "/sys/bus/virtio/devices/*/net/*";
        let names = self.run(&format!("for i in {paths}; do [ ! -e $i ] || basename $i; done"), SHORT)?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Its first virtio network interface.
    fn interface(&mut self) -> Result<String> {
        let name = self.interfaces()?.into_iter().next();
        name.with_context(|| format!("{}: has no virtio network interface", self.name()))
    }

    /// Brings its first virtio network interface up with `address` (`10.0.0.1/24`) and an MTU, in place of
    /// any address it had. Returns the interface's name.
    pub fn configure(&mut self, address: &str, mtu: Option<u32>) -> Result<String> {
        let name = self.interface()?;
        self.configure_interface(&name, address, mtu)?;
        Ok(name)
    }

    /// Like [`Guest::configure`], for one of several interfaces.
    pub fn configure_interface(&mut self, name: &str, address: &str, mtu: Option<u32>) -> Result<()> {
        let mtu = mtu.map_or_else(String::new, |mtu| format!("mtu {mtu}"));
        let set = format!(
            "ip addr flush dev {name} && ip addr add {address} dev {name} && ip link set {name} {mtu} up"
        );
        self.run(&set, SHORT)?;
        Ok(())
    }

    /// The hardware address of its first virtio network interface.
    pub fn mac(&mut self) -> Result<String> {
        let name = self.interface()?;
        Ok(self.run(&format!("cat /sys/class/net/{name}/address"), SHORT)?.trim().to_owned())
    }

    /// Sets the hardware address of its first virtio network interface.
    pub fn set_mac(&mut self, mac: &str) -> Result<()> {
        let name = self.interface()?;
        self.run(&format!("ip link set {name} address {mac}"), SHORT)?;
        Ok(())
    }

    /// The feature bits that the driver of its first network card has agreed on with the device.
    pub fn features(&mut self) -> Result<u64> {
        let name = self.interface()?;
        parse_features(&self.run(&format!("cat /sys/class/net/{name}/device/features"), SHORT)?)
    }

    /// Sends `count` pings, five a second, and counts the replies; a second is the longest wait for one.
    /// An error if it cannot even send, as without an address or a route.
    pub fn ping(&mut self, to: &str, count: u32) -> Result<PingStats> {
        let limit = SHORT + Duration::from_millis(200) * count;
        let (_, output) = self.run_status(&format!("ping -c {count} -i 0.2 -W 1 {to}"), limit)?;
        parse_ping(&output).with_context(|| format!("{}: ping said:\n{output}", self.name()))
    }
}

/// Takes a feature string of sysfs, a `0` or `1` for each bit from bit 0 up.
fn parse_features(text: &str) -> Result<u64> {
    let bits = text.trim();
    ensure!(bits.len() == 64, "not 64 feature bits: {bits:?}");
    bits.chars().rev().try_fold(0, |value, bit| match bit {
        '0' => Ok(value << 1),
        '1' => Ok(value << 1 | 1),
        _ => bail!("not feature bits: {bits:?}"),
    })
}

/// Takes the numbers out of `3 packets transmitted, 3 packets received, 0% packet loss`.
fn parse_ping(output: &str) -> Result<PingStats> {
    let line = output.lines().find(|l| l.contains(" packets transmitted, ")).context("no statistics")?;
    let number_before = |words: &str| -> Result<u32> {
        let (before, _) = line.split_once(words).with_context(|| format!("no{words}"))?;
        Ok(before.rsplit(' ').next().unwrap_or_default().parse()?)
    };
    Ok(PingStats {
        sent: number_before(" packets transmitted")?,
        received: number_before(" packets received")?,
    })
}

/// The outcome of [`transfer`].
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    /// How much was sent.
    pub bytes: u64,
    /// How long it took, from the start of the sender until the receiver had all of it.
    pub seconds: f64,
    /// SHA-256 of what was sent.
    pub sha256_sent: String,
    /// SHA-256 of what arrived.
    pub sha256_received: String,
}

impl Transfer {
    /// Whether just what was sent has arrived.
    pub fn is_intact(&self) -> bool {
        self.sha256_sent == self.sha256_received
    }

    /// Millions of bytes in a second.
    #[allow(clippy::cast_precision_loss, reason = "a rate for people to read")]
    pub fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e6
    }
}

/// Sends `mebibytes` of random bytes over TCP from one guest to another, at `to_ip` and `port`, and
/// hashes them on both sides. The bytes lie in the guests' memory, which must have room for them.
pub fn transfer(
    from: &mut Guest,
    to: &mut Guest,
    to_ip: &str,
    port: u16,
    mebibytes: u32,
) -> Result<Transfer> {
    // Emulated guests are slow; a rate of 1 MiB in a second is still well below what they manage.
    let limit = SHORT + Duration::from_secs(1) * mebibytes;
    from.run(&format!("dd if=/dev/urandom of=/tmp/sent bs=1M count={mebibytes} 2>/dev/null"), limit)?;
    // `nc` alone moves 1 KiB at a time, and system calls are what is slow in User-Mode Linux (35 us each).
    let receive = format!("nc -l -p {port} -e dd of=/tmp/received bs=64k");
    let receiver = to.start_background(&receive, "/tmp/receiver.log")?;
    to.run(&format!("until netstat -ltn | grep -q ':{port} '; do usleep 50000; done"), SHORT)?;

    let start = Instant::now();
    let sent = from.run(&format!("nc {to_ip} {port} -e dd if=/tmp/sent bs=64k"), limit).and_then(|_| {
        // The sender only knows that its kernel has taken all of it.
        to.run(&format!("while kill -0 {receiver}; do usleep 5000; done 2>/dev/null"), limit)
    });
    let seconds = start.elapsed().as_secs_f64();
    if let Err(error) = sent {
        // The next transfer may want the port.
        to.run_status(&format!("kill {receiver}"), SHORT)?;
        return Err(error);
    }

    let hash = |guest: &mut Guest, file: &str| -> Result<String> {
        let output = guest.run(&format!("sha256sum {file}; rm {file}"), limit)?;
        Ok(output.split_whitespace().next().unwrap_or_default().to_owned())
    };
    Ok(Transfer {
        bytes: u64::from(mebibytes) << 20,
        seconds,
        sha256_sent: hash(from, "/tmp/sent")?,
        sha256_received: hash(to, "/tmp/received")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_statistics() {
        let output = "PING 10.0.0.2 (10.0.0.2): 56 data bytes\n\n--- 10.0.0.2 ping statistics ---\n\
                      5 packets transmitted, 4 packets received, 20% packet loss\n";
        assert_eq!(parse_ping(output).unwrap(), PingStats { sent: 5, received: 4 });
        assert!(parse_ping("ping: sendto: Network is unreachable\n").is_err());
    }

    #[test]
    fn feature_bits_count_from_the_left() {
        let text = format!("101{}1{}\n", "0".repeat(29), "0".repeat(31));
        assert_eq!(parse_features(&text).unwrap(), 1 << 32 | 0b101);
        assert!(parse_features("10").is_err());
        assert!(parse_features(&"x".repeat(64)).is_err());
    }

    #[test]
    fn a_nic_in_qemu_words() {
        let nic = Nic::new("/s").mac("02:00:00:00:00:01").queues(2).reconnect().property("packed=on");
        assert_eq!(
            nic.arguments(1).join(" "),
            "-chardev socket,id=c1,path=/s,reconnect-ms=500 -netdev vhost-user,id=n1,chardev=c1,queues=2 \
             -device virtio-net-pci,netdev=n1,romfile=,mac=02:00:00:00:00:01,mq=on,vectors=6,packed=on"
        );
    }
}
