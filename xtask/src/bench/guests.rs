//! Rows with Linux guests: TCP and pings between two of them, and between one and the host.
//!
//! The guests of a row are all started once and stay; while one pair is measured the others sleep. They run where the
//! host's scheduler puts them.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_testkit::guest::{
    BOOT_LIMIT, Guest, Images, Nic, QemuOptions, UmlOptions, boot_qemu, boot_qemu_in, boot_uml, boot_uml_in,
    ensure_images,
};
use ringway_testkit::netns::Netns;
use ringway_testkit::process::Process;
use ringway_testkit::server::Server;

use super::frames::Trace;
use super::machine::{processor_time, threads};
use super::results::{Detail, Figure};
use super::sampling::{Cell, Disturbed, Taken, Watch, take};
use super::{Options, peer, wait_listening};

/// Of a guest's shell, apart from the time that its work takes.
const LIMIT: Duration = Duration::from_secs(20);
/// The kernel's own work for taps counts as nobody's.
const KERNEL: f64 = 25.0;
/// Between two pings, so that everybody has gone to sleep.
const PAUSE: f64 = 0.01;
/// Where TCP is fast.
const WARM_UP: Duration = Duration::from_millis(300);

const HOST: &str = "10.9.0.1";
const GUESTS: [&str; 2] = ["10.9.0.2", "10.9.0.3"];
const MACS: [&str; 2] = ["02:00:00:00:02:00", "02:00:00:00:02:01"];
const TAP: &str = "tap0";
const PORT: u16 = 5201;

/// How guests of User-Mode Linux reach each other.
#[derive(Clone, Copy)]
enum Between {
    Ringway,
    /// UML's `vector` transport on taps, with offloads, and the kernel's bridge.
    Bridge,
    /// UML's `daemon` transport and its own switch.
    Daemon,
}

/// How a guest reaches the host.
#[derive(Clone, Copy)]
enum ToHost {
    /// `ringway net` and a tap.
    Ringway,
    /// UML's `vector` transport or QEMU's own tap back-end.
    Own,
}

#[derive(Clone, Copy)]
enum Kernel {
    Uml,
    Qemu,
}

/// TCP between two guests by iperf3.
pub(super) fn tcp(options: &Options, topic: &str) -> Result<Taken> {
    let images = ensure_images()?;
    let sides = [Between::Ringway, Between::Bridge, Between::Daemon].map(|way| {
        let mut kept = Kept(None);
        let images = &images;
        Cell::new("one connection", way.side(), move || {
            kept.with(
                || Pair::start(options, images, way),
                |pair| {
                    let (value, distance) = watch(options).during(|| pair.iperf(options.interval()))?;
                    Ok(Figure { value, distance, limit: None, details: BTreeMap::new() })
                },
            )
        })
    });
    Ok(take(topic, sides.into(), options.samples()))
}

/// Pings of guests that have nothing else to do.
pub(super) fn latency(options: &Options, topic: &str) -> Result<Taken> {
    let images = ensure_images()?;
    let mut taken = Taken::default();
    let between = [Between::Ringway, Between::Bridge, Between::Daemon].map(|way| {
        let mut kept = Kept(None);
        let images = &images;
        Cell::new("UML guest to guest", way.side(), move || {
            kept.with(
                || Pair::start(options, images, way),
                |pair| pings(options, &mut pair.guests[0], GUESTS[1]).map(Pings::typical),
            )
        })
    });
    taken.extend(take(topic, between.into(), options.samples()));
    for kernel in [Kernel::Uml, Kernel::Qemu] {
        let to_host = [ToHost::Ringway, ToHost::Own].map(|way| {
            let mut kept = Kept(None);
            let images = &images;
            Cell::new(format!("{} guest to host", kernel.name()), way.side(kernel), move || {
                kept.with(
                    || Uplink::start(options, images, kernel, way),
                    |uplink| pings(options, &mut uplink.guest, HOST).map(Pings::typical),
                )
            })
        });
        taken.extend(take(topic, to_host.into(), options.samples()));
    }
    Ok(taken)
}

/// TCP between a guest under QEMU and the host.
pub(super) fn host(options: &Options, topic: &str) -> Result<Taken> {
    let images = ensure_images()?;
    let mut taken = Taken::default();
    for (case, sends) in [("guest to host", true), ("host to guest", false)] {
        let sides = [ToHost::Ringway, ToHost::Own].map(|way| {
            let mut kept = Kept(None);
            let images = &images;
            Cell::new(case, way.side(Kernel::Qemu), move || {
                kept.with(
                    || Uplink::start(options, images, Kernel::Qemu, way),
                    |uplink| uplink.stream(options, sends),
                )
            })
        });
        taken.extend(take(topic, sides.into(), options.samples()));
    }
    Ok(taken)
}

impl Between {
    fn side(self) -> &'static str {
        match self {
            Self::Ringway => "ringway",
            Self::Bridge => "vector tap, kernel bridge",
            Self::Daemon => "daemon, uml_switch",
        }
    }
}

impl ToHost {
    fn side(self, kernel: Kernel) -> &'static str {
        match (self, kernel) {
            (Self::Ringway, _) => "ringway",
            (Self::Own, Kernel::Uml) => "vector tap",
            (Self::Own, Kernel::Qemu) => "QEMU tap",
        }
    }
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::Uml => "UML",
            Self::Qemu => "QEMU",
        }
    }
}

/// What a side needs for all its samples, made with the first one, and anew after a failure.
struct Kept<T>(Option<T>);

impl<T> Kept<T> {
    fn with<R>(
        &mut self,
        start: impl FnOnce() -> Result<T>,
        sample: impl FnOnce(&mut T) -> Result<R>,
    ) -> Result<R> {
        if self.0.is_none() {
            self.0 = Some(start()?);
        }
        let result = self.0.as_mut().context("just made").and_then(sample);
        if result.as_ref().is_err_and(|error| !error.is::<Disturbed>()) {
            self.0 = None;
        }
        result
    }
}

fn watch(options: &Options) -> Watch {
    let watch = options.common.watch();
    Watch { others: watch.others.max(KERNEL), ..watch }
}

// --- two guests -----------------------------------------------------------------------------------------

/// Two guests that reach each other.
pub(super) struct Pair {
    pub(super) guests: [Guest; 2],
    /// What is between them; it goes after them.
    _way: Box<dyn Any>,
}

impl Pair {
    fn start(options: &Options, images: &Images, way: Between) -> Result<Self> {
        let (way, guests): (Box<dyn Any>, _) = match way {
            Between::Ringway => {
                let [a, b] = MACS;
                let ports = [format!("a,mac={a}"), format!("b,mac={b}")];
                let ports: Vec<_> = ports.iter().map(String::as_str).collect();
                let arguments: Vec<_> = options.common.ringway_arg.iter().map(String::as_str).collect();
                let server = Server::switch(&options.common.ringway, &ports, &arguments)?;
                let guests = uml_pair(&server, images)?;
                (Box::new(server), guests)
            }
            Between::Bridge => {
                let host = Netns::new()?;
                host.add_bridge("br0", "02:00:00:00:02:ff", &format!("{HOST}/24"))?;
                let boot = |(tap, mac): (&str, &str)| {
                    host.add_tap(tap, "br0")?;
                    boot_uml_in(&host, "a guest on a tap", images, &own_nic(vector(tap, mac)))
                };
                let guests = [boot(("tap0", MACS[0]))?, boot(("tap1", MACS[1]))?];
                (Box::new(host), guests)
            }
            Between::Daemon => {
                let directory = tempfile::tempdir().context("a directory for a socket")?;
                let socket = directory.path().join("switch");
                let mut command = Command::new(peer("usr/bin/uml_switch"));
                // It ends with its input, which stays open as long as it is wanted.
                let switch = Process::start("uml_switch", command.arg("-unix").arg(&socket))?;
                wait_listening(&socket, LIMIT, || switch.output())?;
                let nic = |mac| format!("eth0=daemon,{mac},unix,{}", socket.display());
                let boot = |mac| boot_uml("a guest of uml_switch", images, &own_nic(nic(mac)));
                let guests = [boot(MACS[0])?, boot(MACS[1])?];
                (Box::new((switch, directory)), guests)
            }
        };
        let mut this = Self { guests, _way: way };
        this.configure()?;
        Ok(this)
    }

    /// Waits for both, gives them addresses, and starts a server of iperf3 in the second.
    fn configure(&mut self) -> Result<()> {
        for (guest, address) in self.guests.iter_mut().zip(GUESTS) {
            guest.wait_ready(BOOT_LIMIT)?;
            configure(guest, address)?;
        }
        self.guests[1].run(&format!("iperf3 -s -D -p {PORT}"), LIMIT)?;
        let answer = self.guests[0].ping(GUESTS[1], 3)?;
        ensure!(answer.received > 0, "the guests do not reach each other");
        Ok(())
    }

    /// Gigabits per second from the first guest to the second.
    fn iperf(&mut self, interval: Duration) -> Result<f64> {
        let seconds = interval.as_secs_f64().ceil().max(1.0);
        let to = GUESTS[1];
        let said = self.guests[0].run(
            &format!("iperf3 -c {to} -p {PORT} -t {seconds} -J"),
            LIMIT + Duration::from_secs_f64(seconds),
        )?;
        parse_iperf(&said).with_context(|| format!("iperf3 said:\n{said}"))
    }
}

/// Two guests on the ports `a` and `b` of a server, still booting.
pub(super) fn uml_pair(server: &Server, images: &Images) -> Result<[Guest; 2]> {
    let boot = |port| boot_uml("a guest of ringway", images, &UmlOptions::new([server.socket(port)]));
    Ok([boot("a")?, boot("b")?])
}

/// Gives a guest's only card an address.
pub(super) fn configure(guest: &mut Guest, address: &str) -> Result<()> {
    let name = guest.run("ls /sys/class/net | grep -E '^(eth|vec)[0-9]+$'", LIMIT)?;
    guest.configure_interface(name.trim(), &format!("{address}/24"), None)
}

/// A card of User-Mode Linux's own on a tap, with the tap's offloads.
fn vector(tap: &str, mac: &str) -> String {
    format!("vec0:transport=tap,ifname={tap},depth=128,gro=1,mac={mac}")
}

fn own_nic(argument: String) -> UmlOptions {
    UmlOptions { kernel_args: vec![argument], ..UmlOptions::new(Vec::<PathBuf>::new()) }
}

fn parse_iperf(text: &str) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(text)?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.context("no rate")? / 1e9)
}

// --- a guest and the host -------------------------------------------------------------------------------

/// A guest that reaches the host, a namespace, through a tap.
struct Uplink {
    guest: Guest,
    server: Option<Server>,
    host: Netns,
}

impl Uplink {
    fn start(options: &Options, images: &Images, kernel: Kernel, way: ToHost) -> Result<Self> {
        let host = Netns::new()?;
        host.run("ip", &["tuntap", "add", TAP, "mode", "tap", "vnet_hdr"])?;
        host.run("ip", &["addr", "add", &format!("{HOST}/24"), "dev", TAP])?;
        host.run("ip", &["link", "set", TAP, "up"])?;
        let server = match way {
            ToHost::Ringway => {
                let program = options.common.ringway.canonicalize().context("the ringway program")?;
                let arguments: Vec<_> = options.common.ringway_arg.iter().map(String::as_str).collect();
                let mac = format!("--mac={}", MACS[0]);
                let arguments = [&[mac.as_str()], &arguments[..]].concat();
                Some(Server::net_in(&host, &program.to_string_lossy(), &format!("tap:{TAP}"), &arguments)?)
            }
            ToHost::Own => None,
        };
        let name = "a guest of the host";
        let mut guest = match (kernel, &server) {
            (Kernel::Uml, Some(server)) => boot_uml(name, images, &UmlOptions::new([server.socket("net")]))?,
            (Kernel::Uml, None) => boot_uml_in(&host, name, images, &own_nic(vector(TAP, MACS[0])))?,
            (Kernel::Qemu, Some(server)) => {
                boot_qemu(name, images, &qemu([Nic::new(server.socket("net")).mac(MACS[0])].into(), &[]))?
            }
            (Kernel::Qemu, None) => {
                let netdev = format!("tap,id=t0,ifname={TAP},script=no,downscript=no");
                let device = format!("virtio-net-pci,netdev=t0,romfile=,mac={}", MACS[0]);
                let options = qemu(Vec::new(), &["-netdev", &netdev, "-device", &device]);
                boot_qemu_in(&host, name, images, &options)?
            }
        };
        guest.wait_ready(BOOT_LIMIT)?;
        configure(&mut guest, GUESTS[0])?;
        ensure!(guest.ping(HOST, 3)?.received > 0, "the guest does not reach the host");
        Ok(Self { guest, server, host })
    }

    /// Sends as much as it can for a while, one way; gigabits per second and what they cost.
    fn stream(&mut self, options: &Options, guest_sends: bool) -> Result<Figure> {
        let listener = self.host.enter(|| TcpListener::bind((HOST, PORT)))??;
        let program = if guest_sends { "dd if=/dev/zero bs=64k" } else { "dd of=/dev/null bs=64k" };
        // `nc` alone moves 1 KiB at a time.
        self.guest.start_background(&format!("nc {HOST} {PORT} -e {program}"), "/dev/null")?;
        let mut socket = accept(&listener)?;
        for limit in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            limit(&socket, Some(Duration::from_millis(200)))?;
        }
        pump(&mut socket, guest_sends, WARM_UP)?;

        let (measured, distance) = watch(options).during(|| {
            let (all, backend, start) = (self.all_time()?, self.backend_time()?, Instant::now());
            let bytes = pump(&mut socket, guest_sends, options.interval())?;
            Ok((
                bytes,
                start.elapsed(),
                self.all_time()?.saturating_sub(all),
                self.backend_time()?.saturating_sub(backend),
            ))
        })?;
        let (bytes, interval, all, backend) = measured;
        ensure!(bytes > 0, "nothing was sent");
        #[expect(clippy::cast_precision_loss, reason = "bytes of some seconds")]
        let gigabits = bytes as f64 * 8.0 / 1e9;
        let mut details = BTreeMap::from([
            (Detail::AllCpu, all.as_secs_f64() / gigabits),
            (Detail::BackendCpu, backend.as_secs_f64() / gigabits),
        ]);
        details.insert(Detail::SystemCalls, self.calls_per_frame(&mut socket, guest_sends)? * 1e3);
        Ok(Figure { value: gigabits / interval.as_secs_f64(), distance, limit: None, details })
    }

    /// Processor time of the guest and of its back-end.
    fn all_time(&mut self) -> Result<Duration> {
        self.pids().into_iter().map(processor_time).sum()
    }

    /// The same less the guest's own processors. What QEMU does besides is waiting for kicks and calls, and
    /// the back-end's work if it is its own.
    fn backend_time(&mut self) -> Result<Duration> {
        self.pids().into_iter().map(|pid| threads(pid, |name| !name.starts_with("CPU "))).sum()
    }

    fn pids(&mut self) -> Vec<u32> {
        let guest = self.guest.process().pid();
        [guest].into_iter().chain(self.server.as_mut().map(|server| server.process().pid())).collect()
    }

    /// System calls of all that take part, as strace counts them, for each frame on the tap.
    fn calls_per_frame(&mut self, socket: &mut TcpStream, guest_sends: bool) -> Result<f64> {
        let frames = |host: &Netns| -> Result<u64> {
            let counters = host.link_counters(TAP)?;
            Ok(counters.rx_packets + counters.tx_packets)
        };
        let pids = self.pids();
        let mut trace = Trace::start(&pids)?;
        let before = frames(&self.host)?;
        pump(socket, guest_sends, WARM_UP)?;
        let moved = frames(&self.host)? - before;
        let (calls, _) = trace.finish()?;
        #[expect(clippy::cast_precision_loss, reason = "frames of a moment")]
        Ok(f64::from(calls) / moved.max(1) as f64)
    }
}

fn qemu(nics: Vec<Nic>, arguments: &[&str]) -> QemuOptions {
    let named = ["-name", "guest,debug-threads=on"];
    let args = named.iter().chain(arguments).map(ToString::to_string).collect();
    QemuOptions { args, ..QemuOptions::new(nics) }
}

/// Waits for the guest's connection, not for ever.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false)?;
                return Ok(socket);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("the guest's connection"),
        }
        ensure!(Instant::now() < deadline, "the guest does not connect within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Receives, or sends, for a while; how many bytes.
fn pump(socket: &mut TcpStream, receive: bool, interval: Duration) -> Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    let end = Instant::now() + interval;
    while Instant::now() < end {
        let moved = if receive { socket.read(&mut buffer) } else { socket.write(&buffer) };
        match moved {
            Ok(0) => break,
            Ok(count) => bytes += count as u64,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("the guest's connection"),
        }
    }
    Ok(bytes)
}

// --- pings ----------------------------------------------------------------------------------------------

/// Round trips in microseconds, in ascending order, and a figure that lacks only its value.
pub(super) struct Pings {
    times: Vec<f64>,
    figure: Figure,
}

/// Pings for about the time of a sample.
pub(super) fn pings(options: &Options, guest: &mut Guest, to: &str) -> Result<Pings> {
    let count = (options.interval().as_secs_f64() / PAUSE).max(20.0);
    let limit = LIMIT + 2 * options.interval();
    let command = format!("ping -c {count:.0} -i {PAUSE} -W 1 {to}");
    let (said, distance) = watch(options).during(|| guest.run(&command, limit))?;
    let mut times: Vec<f64> = said.lines().filter_map(parse_ping).collect();
    ensure!(!times.is_empty(), "ping said:\n{said}");
    times.sort_by(f64::total_cmp);
    Ok(Pings { times, figure: Figure { value: 0.0, distance, limit: None, details: BTreeMap::new() } })
}

impl Pings {
    /// The middle one, and the worst of a hundred beside it.
    fn typical(self) -> Figure {
        let details = BTreeMap::from([(Detail::P99, self.percentile(99))]);
        Figure { value: self.percentile(50), details, ..self.figure }
    }

    /// The other way round.
    pub(super) fn worst(self) -> Figure {
        let details = BTreeMap::from([(Detail::P50, self.percentile(50))]);
        Figure { value: self.percentile(99), details, ..self.figure }
    }

    fn percentile(&self, percent: usize) -> f64 {
        self.times[(self.times.len() * percent / 100).min(self.times.len() - 1)]
    }
}

/// Reads the microseconds of `64 bytes from 10.9.0.2: seq=0 ttl=64 time=0.123 ms`.
fn parse_ping(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once(" time=")?;
    let milliseconds: f64 = rest.strip_suffix(" ms")?.parse().ok()?;
    Some(milliseconds * 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::machine::Distance;
    use super::*;

    #[test]
    fn round_trips() {
        assert_eq!(parse_ping("64 bytes from 10.9.0.2: seq=0 ttl=64 time=0.125 ms"), Some(125.0));
        assert_eq!(parse_ping("round-trip min/avg/max = 0.1/0.2/0.3 ms"), None);
    }

    #[test]
    fn percentiles() {
        let figure = Figure { value: 0.0, distance: Distance::Near, limit: None, details: BTreeMap::new() };
        let pings = Pings { times: (1..=100).map(f64::from).collect(), figure };
        let figure = pings.typical();
        assert_eq!((figure.value, figure.details[&Detail::P99]), (51.0, 100.0));
    }

    #[test]
    fn a_report_of_iperf3() {
        let report = r#"{"end": {"sum_received": {"bits_per_second": 2.5e9}}}"#;
        assert!((parse_iperf(report).unwrap() - 2.5).abs() < 1e-9);
        assert!(parse_iperf(r#"{"error": "unable to connect"}"#).is_err());
    }

    #[test]
    fn what_is_kept_lasts_until_it_fails() {
        let mut kept = Kept(None);
        let mut started = 0;
        for fails in [None, Some(false), None, Some(true), None] {
            let sample = |_: &mut u32| match fails {
                None => Ok(()),
                Some(false) => Err(Disturbed::new("moved").into()),
                Some(true) => Err(anyhow::anyhow!("the guest has crashed")),
            };
            let start = || {
                started += 1;
                Ok(started)
            };
            let _ = kept.with(start, sample);
        }
        assert_eq!(started, 2);
    }
}
