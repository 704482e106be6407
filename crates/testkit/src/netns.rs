//! A network of its own on this host: a namespace that holds one end of a tap, with sockets in it.
//!
//! The namespace has no name and is held by a process that ends with its input, so that nothing is left
//! behind, however a test ends. Making one needs root.
//!
//! ```no_run
//! use std::net::UdpSocket;
//! use ringway_testkit::netns::Netns;
//!
//! # fn main() -> anyhow::Result<()> {
//! let host = Netns::new()?;
//! host.adopt("tap7", "10.7.0.1/24")?;
//! let socket = host.enter(|| UdpSocket::bind("10.7.0.1:7"))??;
//! # Ok(())
//! # }
//! ```

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Process, find_program};

/// For a namespace or an interface to appear.
const LIMIT: Duration = Duration::from_secs(10);

/// A network namespace, gone when dropped. IPv6 is off there, so that no frame comes unasked for.
pub struct Netns {
    holder: Process,
    namespace: File,
}

/// What an interface counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct LinkCounters {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
}

impl Netns {
    /// Makes a namespace with nothing but a loopback interface.
    pub fn new() -> Result<Self> {
        let mut command = Command::new(find_program("unshare")?);
        command.args(["--net", "sh", "-c"]);
        command.arg(
            "for of in all default; do echo 1 >/proc/sys/net/ipv6/conf/$of/disable_ipv6; done; echo up; cat",
        );
        let holder = Process::start("network namespace", &mut command)?;
        holder.wait_for("up\n", LIMIT).context("no network namespace (are you root?)")?;
        let namespace = File::open(format!("/proc/{}/ns/net", holder.pid()))?;
        let this = Self { holder, namespace };
        this.run("ip", &["link", "set", "lo", "up"])?;
        Ok(this)
    }

    /// Moves an interface of the host here as soon as there is one, and brings it up with an address
    /// (`10.0.0.1/24`).
    pub fn adopt(&self, interface: &str, address: &str) -> Result<()> {
        let path = Path::new("/sys/class/net").join(interface);
        let deadline = Instant::now() + LIMIT;
        while !path.exists() {
            ensure!(Instant::now() < deadline, "no interface {interface} within {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = self.holder.pid().to_string();
        output(Command::new(find_program("ip")?).args(["link", "set", interface, "netns", &pid]))?;
        self.run("ip", &["addr", "add", address, "dev", interface])?;
        self.run("ip", &["link", "set", interface, "up"])?;
        Ok(())
    }

    /// Makes a bridge here, up and with a hardware address and one of IP (`10.0.0.1/24`).
    pub fn add_bridge(&self, name: &str, mac: &str, address: &str) -> Result<()> {
        self.run("ip", &["link", "add", name, "address", mac, "type", "bridge"])?;
        self.run("ip", &["addr", "add", address, "dev", name])?;
        self.run("ip", &["link", "set", name, "up"])?;
        Ok(())
    }

    /// Makes a tap here that is a port of a bridge. It stays when the program that is attached to it ends.
    pub fn add_tap(&self, name: &str, bridge: &str) -> Result<()> {
        self.run("ip", &["tuntap", "add", name, "mode", "tap", "vnet_hdr"])?;
        self.run("ip", &["link", "set", name, "master", bridge, "up"])?;
        Ok(())
    }

    /// Makes a wire: `inside` is its end here, up with an address of IP (`10.0.0.1/24`), and `outside` its end in the
    /// namespace of the caller, up and of no use to IP. It is gone with this namespace.
    pub fn add_wire(&self, outside: &str, inside: &str, address: &str) -> Result<()> {
        let ip = |args: &[&str]| output(Command::new(find_program("ip")?).args(args));
        ip(&["link", "add", outside, "type", "veth", "peer", "name", inside])?;
        silence(outside)?;
        ip(&["link", "set", outside, "up"])?;
        self.adopt(inside, address)
    }

    /// A command to be run here; the program's name, or its whole path.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(find_program("nsenter")?);
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.pid()));
        command.arg(find_program(program)?);
        Ok(command)
    }

    /// Runs a program here to its end; returns what it printed, and an error if it fails.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        output(self.command(program)?.args(args))
    }

    /// Carries out `work` on a thread that is here. Sockets made there stay here wherever they are used.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        let inside = || {
            move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .context("cannot enter the network namespace")?;
            Ok(work())
        };
        std::thread::scope(|scope| {
            scope.spawn(inside).join().map_err(|_| anyhow!("a panic in the network namespace"))?
        })
    }

    /// What an interface has counted.
    pub fn link_counters(&self, interface: &str) -> Result<LinkCounters> {
        let text = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        parse_counters(&text, interface).with_context(|| format!("no {interface} in:\n{text}"))
    }
}

/// A name for an interface that nobody else uses.
pub fn interface_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("rw{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Has an interface of the caller's namespace send nothing unasked for.
pub fn silence(interface: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    std::fs::write(&path, "1").with_context(|| path)
}

/// Runs a command to its end.
fn output(command: &mut Command) -> Result<String> {
    let run = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(run.status.success(), "{command:?}: {}: {}", run.status, text(&run.stderr));
    Ok(text(&run.stdout))
}

/// Reads `/proc/net/dev`.
fn parse_counters(text: &str, interface: &str) -> Option<LinkCounters> {
    let line = text.lines().find_map(|l| l.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
    Some(LinkCounters {
        rx_bytes: *numbers.first()?,
        rx_packets: *numbers.get(1)?,
        tx_bytes: *numbers.get(8)?,
        tx_packets: *numbers.get(9)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_an_interface() {
        let text = "Inter-|   Receive                      |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
                    lo: 1 2 0 0 0 0 0 0 1 2 0 0 0 0 0 0\n  rw1-0: 12345 99 0 0 0 0 0 0 678 7 0 0 0 0 0 0\n";
        let counters = LinkCounters { rx_bytes: 12345, rx_packets: 99, tx_bytes: 678, tx_packets: 7 };
        assert_eq!(parse_counters(text, "rw1-0"), Some(counters));
        assert_eq!(parse_counters(text, "rw1"), None);
    }
}
