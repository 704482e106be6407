//! The demonstration: two unmodified Linux guests, one under QEMU and one as User-Mode Linux, exchange traffic
//! through `ringway switch`; then one has a disk of `ringway blk`. Prints what it sees, ends with PASS or FAIL, leaves
//! nothing behind.

mod disk;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringway_testkit::guest::{
    BOOT_LIMIT, Guest, Images, Nic, QemuOptions, Transfer, UmlOptions, boot_qemu, boot_uml, ensure_images,
    transfer,
};
use ringway_testkit::server::Server;

const QEMU: (&str, &str) = ("10.0.0.1", "02:00:00:00:00:0a");
const UML: (&str, &str) = ("10.0.0.2", "02:00:00:00:00:0b");
/// How long the part with guests may take in all.
const LIMIT: Duration = Duration::from_mins(3);
const MEBIBYTES: u32 = 64;

/// What the demonstration runs.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The program
    #[arg(long, value_name = "PATH", default_value = "target/release/ringway")]
    ringway: PathBuf,
}

/// Runs it.
pub(crate) fn run(options: &Options) -> ExitCode {
    match demonstrate(options) {
        Ok(()) => {
            println!("\nPASS");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("\nFAIL: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line with the time since the start.
struct Teller(Instant);

impl Teller {
    fn say(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.0.elapsed().as_secs_f64());
    }

    /// Gives up when the time is over.
    fn left(&self) -> Result<Duration> {
        let left = LIMIT.saturating_sub(self.0.elapsed());
        ensure!(!left.is_zero(), "it took longer than {} s", LIMIT.as_secs());
        Ok(left.min(BOOT_LIMIT))
    }
}

fn demonstrate(options: &Options) -> Result<()> {
    println!("Getting guest kernels and programs (only the first time takes a while) …");
    let images = ensure_images()?;
    let teller = Teller(Instant::now());
    demonstrate_network(options, &images, &teller)?;
    disk::demonstrate(options, &images, &teller)
}

fn demonstrate_network(options: &Options, images: &Images, teller: &Teller) -> Result<()> {
    let ports = [format!("qemu,mac={}", QEMU.1), format!("uml,mac={}", UML.1)];
    let server = Server::switch(&options.ringway, &ports.each_ref().map(String::as_str), &[])?;
    teller.say("ringway switch runs, with the ports qemu and uml");

    let (mut qemu, mut uml) = boot(&server, images, teller)?;
    ping_both_ways(&mut qemu, &mut uml, teller)?;
    for reverse in [false, true] {
        let (from, to, address) =
            if reverse { (&mut uml, &mut qemu, QEMU.0) } else { (&mut qemu, &mut uml, UML.0) };
        let title = format!("{} → {}", from.name(), to.name());
        let done = transfer(from, to, address, 5000, MEBIBYTES)?;
        tell_transfer(&title, &done, teller)?;
        teller.left()?;
    }
    reboot_one(&server, &mut qemu, &mut uml, teller)?;

    qemu.power_off(teller.left()?)?;
    uml.power_off(teller.left()?)?;
    let (status, counters) = server.terminate()?;
    ensure!(status.success(), "ringway ended with {status}");
    teller.say("both guests are off, ringway has ended; its counters:");
    for port in ["qemu", "uml"] {
        println!(
            "    port {port}: {} frames from the guest, {} to it, {} dropped, {} copies, {} kicks, {} calls, {} sessions",
            counters.get(port, "from"),
            counters.get(port, "to"),
            counters.dropped(port),
            counters.get(port, "copies"),
            counters.get(port, "kicks"),
            counters.get(port, "calls"),
            counters.get(port, "sessions"),
        );
    }
    println!("    {}", counters.summary);
    Ok(())
}

fn boot(server: &Server, images: &Images, teller: &Teller) -> Result<(Guest, Guest)> {
    let nic = Nic::new(server.socket("qemu")).mac(QEMU.1).reconnect();
    let mut qemu = boot_qemu("qemu", images, &QemuOptions::new([nic]))?;
    let mut uml = boot_uml("uml", images, &UmlOptions::new([server.socket("uml")]))?;
    teller.say("two Linux guests boot: one under QEMU, one as User-Mode Linux");
    for (guest, (address, _)) in [(&mut uml, UML), (&mut qemu, QEMU)] {
        wait_booted(guest, teller)?;
        let release = guest.run("uname -r", Duration::from_secs(10))?;
        guest.configure(&format!("{address}/24"), None)?;
        let features = guest.features()?;
        teller.say(&format!(
            "{} is up: Linux {}, {address}, virtio features {features:#x}",
            guest.name(),
            release.trim()
        ));
    }
    for guest in [&mut qemu, &mut uml] {
        // Reading it fails while the interface is down.
        let carrier = guest.run("cat /sys/class/net/eth0/carrier", Duration::from_secs(10))?;
        ensure!(carrier.trim() == "1", "{}: its link is down", guest.name());
    }
    teller.say("both links are up");
    Ok((qemu, uml))
}

/// Waits until a guest has booted, and tells every few seconds that it has not.
fn wait_booted(guest: &mut Guest, teller: &Teller) -> Result<()> {
    loop {
        match guest.wait_ready(teller.left()?.min(Duration::from_secs(3))) {
            Err(_) if guest.process().is_running() => teller.say(&format!("{} still boots", guest.name())),
            other => return other,
        }
        teller.left()?;
    }
}

fn ping_both_ways(qemu: &mut Guest, uml: &mut Guest, teller: &Teller) -> Result<()> {
    for (guest, to) in [(&mut *qemu, UML.0), (uml, QEMU.0)] {
        let stats = guest.ping(to, 5)?;
        teller.say(&format!("{} pings {to}: {} of {} answered", guest.name(), stats.received, stats.sent));
        ensure!(stats.received > 0, "{} does not reach {to}", guest.name());
        teller.left()?;
    }
    Ok(())
}

fn tell_transfer(title: &str, done: &Transfer, teller: &Teller) -> Result<()> {
    teller.say(&format!(
        "{title}: {MEBIBYTES} MiB over TCP in {:.2} s, {:.0} MB/s, SHA-256 {}…",
        done.seconds,
        done.megabytes_per_second(),
        done.sha256_received.get(..16).unwrap_or(&done.sha256_received),
    ));
    if !done.is_intact() {
        bail!("{title}: what arrived is not what was sent");
    }
    Ok(())
}

/// One guest reboots; the other's session and system go on.
fn reboot_one(server: &Server, qemu: &mut Guest, uml: &mut Guest, teller: &Teller) -> Result<()> {
    let uptime = |guest: &mut Guest| -> Result<f64> {
        let text = guest.run("cat /proc/uptime", Duration::from_secs(10))?;
        text.split(' ').next().and_then(|t| t.trim().parse().ok()).context("an uptime")
    };
    let (qemu_before, uml_before) = (uptime(qemu)?, uptime(uml)?);
    teller.say("qemu reboots");
    qemu.reboot(teller.left()?)?;
    qemu.configure(&format!("{}/24", QEMU.0), None)?;
    let (qemu_after, uml_after) = (uptime(qemu)?, uptime(uml)?);
    ensure!(qemu_after < qemu_before, "qemu did not reboot");
    ensure!(uml_after > uml_before, "uml rebooted too");
    ping_both_ways(qemu, uml, teller)?;
    let sessions = server.counters()?.get("uml", "sessions");
    ensure!(sessions == 1, "uml's session ended");
    teller
        .say(&format!("qemu is back after {qemu_after:.0} s; uml kept its session, up for {uml_after:.0} s"));
    Ok(())
}
