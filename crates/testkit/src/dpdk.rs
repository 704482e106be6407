//! DPDK's `dpdk-testpmd` as a peer: a vhost-user front-end (`virtio_user`) or back-end (`net_vhost`).
//!
//! It is driven through its interactive prompt, which gives exact counters: after
//! [`stop`](TestPmd::stop) every frame is sent, received or named as dropped. No hugepages and no
//! privileges are needed beyond a writable runtime directory, which is removed afterwards.
//!
//! ```no_run
//! use std::time::Duration;
//! use ringway_testkit::dpdk::{Forward, TestPmd, Traffic, VirtioUser};
//!
//! # fn main() -> anyhow::Result<()> {
//! let port = VirtioUser { mrg_rxbuf: false, ..VirtioUser::new("/tmp/net.sock") };
//! let mut driver = TestPmd::virtio_user(&port, &Traffic::new(Forward::TxOnly).on_core(0))?;
//! driver.start()?;
//! println!("{:.0} frames/s", driver.measure(Duration::from_secs(1))?.tx_pps);
//! println!("{} sent", driver.stop()?.total().tx_packets);
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::process::{Process, find_program};

/// What testpmd prints when it is ready for the next command.
const PROMPT: &str = "testpmd> ";
/// The file that takes DPDK's log.
const LOG: &str = "log";
/// Arguments for memory that a back-end can map.
const ORDINARY_PAGES: &[&str] = &["--no-huge"];
/// The same of huge pages, which no file system has to be mounted for.
const HUGE_PAGES: &[&str] = &["--in-memory", "--single-file-segments"];
/// The start-up (mapping and touching all memory) on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Any command that only asks or sets something.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// A front-end on one or more vhost-user sockets: DPDK's `virtio_user` driver.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the driver, named as there")]
pub struct VirtioUser {
    /// One port for each socket.
    pub sockets: Vec<PathBuf>,
    /// The ports' MAC addresses, in order; a port without one gets a random address.
    pub macs: Vec<String>,
    /// Queue pairs of each port. More than one brings DPDK's own control queue with it, which never
    /// reaches the back-end: `virtio_user` answers it itself.
    pub queues: u16,
    /// Entries of each ring.
    pub queue_size: u16,
    /// Offers `VIRTIO_NET_F_MRG_RXBUF`.
    pub mrg_rxbuf: bool,
    /// Offers `VIRTIO_F_IN_ORDER`.
    pub in_order: bool,
    /// Offers `VIRTIO_F_RING_PACKED`.
    pub packed: bool,
    /// Lets the driver use its SIMD data path, where the other options permit one.
    pub vectorized: bool,
    /// The driver listens and the back-end connects. DPDK opens the sockets one by one: it listens on
    /// the second when the first has been connected to.
    pub server: bool,
    /// Its memory is of huge pages, which must have been reserved, in place of ordinary ones.
    pub huge_pages: bool,
}

impl VirtioUser {
    /// One port on one socket, with the driver's own defaults: one queue pair of 256 entries, split
    /// rings, mergeable buffers, in order.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            sockets: vec![socket.into()],
            macs: Vec::new(),
            queues: 1,
            queue_size: 256,
            mrg_rxbuf: true,
            in_order: true,
            packed: false,
            vectorized: false,
            server: false,
            huge_pages: false,
        }
    }

    /// The `--vdev` argument of port `index`.
    fn vdev(&self, index: usize, socket: &Path) -> String {
        let flag = u8::from;
        let mut arguments = vec![
            format!("net_virtio_user{index}"),
            format!("path={}", socket.display()),
            format!("queues={}", self.queues),
            format!("queue_size={}", self.queue_size),
            format!("mrg_rxbuf={}", flag(self.mrg_rxbuf)),
            format!("in_order={}", flag(self.in_order)),
            format!("packed_vq={}", flag(self.packed)),
            format!("vectorized={}", flag(self.vectorized)),
        ];
        if self.queues > 1 {
            arguments.push("cq=1".into());
        }
        if self.server {
            arguments.push("server=1".into());
        }
        arguments.extend(self.macs.get(index).map(|mac| format!("mac={mac}")));
        arguments.join(",")
    }
}

/// A back-end on one or more vhost-user sockets: DPDK's `net_vhost` driver.
#[derive(Clone, Debug)]
pub struct NetVhost {
    /// One port for each socket.
    pub sockets: Vec<PathBuf>,
    /// The most queue pairs of each port.
    pub queues: u16,
    /// The back-end connects and the front-end listens.
    pub client: bool,
}

impl NetVhost {
    /// One listening port with one queue pair.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { sockets: vec![socket.into()], queues: 1, client: false }
    }

    /// The `--vdev` argument of port `index`.
    fn vdev(&self, index: usize, socket: &Path) -> String {
        let client = if self.client { ",client=1" } else { "" };
        format!("net_vhost{index},iface={},queues={}{client}", socket.display(), self.queues)
    }
}

/// What testpmd does with frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Sends on every port; receives nothing, so its receive rings fill and stay full.
    TxOnly,
    /// Receives and frees.
    RxOnly,
    /// Sends on every port, receives and frees what comes.
    FlowGen,
    /// Sends what it receives on the paired port (with one port: on the same), unchanged.
    Io,
    /// As [`Io`](Self::Io), with the sending port's MAC as source and its
    /// [peer](Traffic::peers) as destination.
    Mac,
    /// As [`Io`](Self::Io), with the two MAC addresses exchanged.
    MacSwap,
    /// Receives and answers pings only. Unlike [`RxOnly`](Self::RxOnly), testpmd can
    /// [send exactly](TestPmd::send_exactly) in this mode.
    IcmpEcho,
}

impl Forward {
    /// The mode's name for testpmd.
    fn name(self) -> &'static str {
        match self {
            Self::TxOnly => "txonly",
            Self::RxOnly => "rxonly",
            Self::FlowGen => "flowgen",
            Self::Io => "io",
            Self::Mac => "mac",
            Self::MacSwap => "macswap",
            Self::IcmpEcho => "icmpecho",
        }
    }
}

/// What an instance does with frames, and on which core.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// The forwarding mode.
    pub forward: Forward,
    /// The processor that runs both testpmd's forwarding thread and its prompt.
    pub core: usize,
    /// Bytes of a generated frame.
    pub packet_size: u16,
    /// Generated frames (`TxOnly`) come from changing IP addresses.
    pub multi_flow: bool,
    /// Frames of one burst, at most 512.
    pub burst: u16,
    /// Each port's destination MAC for generated frames and for `Mac`; `02:00:00:00:00:0N` otherwise.
    pub peers: Vec<String>,
}

impl Traffic {
    /// 64-byte frames in bursts of 32 on processor 0.
    pub fn new(forward: Forward) -> Self {
        Self { forward, core: 0, packet_size: 64, multi_flow: false, burst: 32, peers: Vec::new() }
    }

    /// The same on another processor.
    #[must_use]
    pub fn on_core(self, core: usize) -> Self {
        Self { core, ..self }
    }
}

/// One port's frames since the last start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Received frames.
    pub rx_packets: u64,
    /// Frames the port lost before it received them.
    pub rx_dropped: u64,
    /// Frames received in error.
    pub rx_errors: u64,
    /// Frames lost because no buffer was free.
    pub rx_no_buffer: u64,
    /// Frames the other side was given.
    pub tx_packets: u64,
    /// Frames that found the ring full and were dropped.
    pub tx_dropped: u64,
}

impl Counters {
    /// The sum of two counters.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            rx_packets: self.rx_packets + other.rx_packets,
            rx_dropped: self.rx_dropped + other.rx_dropped,
            rx_errors: self.rx_errors + other.rx_errors,
            rx_no_buffer: self.rx_no_buffer + other.rx_no_buffer,
            tx_packets: self.tx_packets + other.tx_packets,
            tx_dropped: self.tx_dropped + other.tx_dropped,
        }
    }
}

/// Every port's counters, by port number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The ports.
    pub ports: Vec<Counters>,
}

impl Totals {
    /// All ports together.
    pub fn total(&self) -> Counters {
        self.ports.iter().fold(Counters::default(), |sum, port| sum.plus(port))
    }
}

/// Frames per second of all ports over a measured interval.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// The interval.
    pub interval: Duration,
    /// Received frames per second.
    pub rx_pps: f64,
    /// Sent frames per second.
    pub tx_pps: f64,
    /// Frames per second that found the ring full.
    pub tx_dropped_pps: f64,
    /// The share of the time that was spent on bursts that moved a frame, if
    /// [cycles are recorded](TestPmd::record_cycles). A mode that makes frames is always busy.
    pub busy: Option<f64>,
}

impl Rates {
    /// The rates between two readings.
    fn between(before: &Counters, after: &Counters, interval: Duration) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "frames of a few seconds stay far below 2^52")]
        let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / interval.as_secs_f64();
        Self {
            interval,
            rx_pps: rate(before.rx_packets, after.rx_packets),
            tx_pps: rate(before.tx_packets, after.tx_packets),
            tx_dropped_pps: rate(before.tx_dropped, after.tx_dropped),
            busy: None,
        }
    }
}

/// A running testpmd. Dropping it kills it and removes its runtime directory and its own sockets.
pub struct TestPmd {
    process: Process,
    /// Holds the log.
    directory: TempDir,
    prefix: String,
    /// Sockets this side listens on; a killed testpmd leaves them.
    listening: Vec<PathBuf>,
    /// The ports asked for.
    ports: usize,
    /// The output's offset just past the last prompt; zero until the first.
    seen: usize,
}

impl TestPmd {
    /// Starts a front-end. The back-end must be listening, and the links are up on return.
    ///
    /// As the [server](VirtioUser::server) it listens on return and does no more before the back-end
    /// connects: call [`wait_link_up`](Self::wait_link_up) next.
    pub fn virtio_user(ports: &VirtioUser, traffic: &Traffic) -> Result<Self> {
        let vdevs = ports.sockets.iter().enumerate().map(|(i, s)| ports.vdev(i, s)).collect();
        let listening = if ports.server { ports.sockets.clone() } else { Vec::new() };
        let memory = if ports.huge_pages { HUGE_PAGES } else { ORDINARY_PAGES };
        let mut this =
            Self::launch("virtio_user", vdevs, memory, ports.queues, ports.queue_size, traffic, listening)?;
        if ports.server {
            this.wait_listening(START_LIMIT)?;
        } else {
            this.wait_link_up(START_LIMIT)?;
        }
        Ok(this)
    }

    /// Starts a back-end. Its links come up as front-ends connect: see
    /// [`wait_link_up`](Self::wait_link_up).
    pub fn net_vhost(ports: &NetVhost, traffic: &Traffic) -> Result<Self> {
        let vdevs = ports.sockets.iter().enumerate().map(|(i, s)| ports.vdev(i, s)).collect();
        let listening = if ports.client { Vec::new() } else { ports.sockets.clone() };
        let mut this =
            Self::launch("net_vhost", vdevs, ORDINARY_PAGES, ports.queues, 1024, traffic, listening)?;
        this.finish_start(START_LIMIT)?;
        Ok(this)
    }

    /// Starts the program with these devices.
    fn launch(
        name: &str,
        vdevs: Vec<String>,
        memory: &[&str],
        queues: u16,
        queue_size: u16,
        traffic: &Traffic,
        listening: Vec<PathBuf>,
    ) -> Result<Self> {
        static INSTANCES: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("ringway-{}-{}", std::process::id(), INSTANCES.fetch_add(1, Ordering::Relaxed));
        let ports = vdevs.len();
        // Both rings full, what the driver holds back, and the caches of the threads.
        let buffers = 8192 + ports * usize::from(queues) * usize::from(queue_size) * 3;
        // A buffer is 2176 bytes and its header; the rest (rings, DPDK's heap) takes the other 128 MiB.
        let megabytes = 128 + buffers * 2560 / (1 << 20);

        // The prompt is written letter by letter. Nothing may come between them: the log goes to a file,
        // and no events are reported (--mask-event). Without a terminal testpmd keeps its output in a
        // buffer; stdbuf makes it write every line.
        let directory = tempfile::tempdir().context("a directory for testpmd's log")?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"exec 2>"$0" stdbuf -oL "$@""#]).arg(directory.path().join(LOG));
        command.arg(find_program("dpdk-testpmd")?);
        command.arg(format!("--lcores=0@{0},1@{0}", traffic.core));
        command.args(["--force-max-simd-bitwidth=512", "--no-pci", "--no-telemetry"]);
        command.args(memory);
        command.args(["-m", &megabytes.to_string(), &format!("--file-prefix={prefix}")]);
        // Says which features were agreed and which data path was taken.
        command.arg("--log-level=pmd.net.virtio.init:debug");
        for vdev in vdevs {
            command.args(["--vdev", &vdev]);
        }
        command.args([
            "--",
            "-i",
            "--mask-event=all",
            "--no-mlockall",
            // What came while it was stopped is received, and counted, when it starts again.
            "--no-flush-rx",
            &format!("--total-num-mbufs={buffers}"),
        ]);
        command.arg(format!("--forward-mode={}", traffic.forward.name()));
        command.args([format!("--txpkts={}", traffic.packet_size), format!("--burst={}", traffic.burst)]);
        command.args([format!("--rxq={queues}"), format!("--txq={queues}")]);
        // By default it uses half of a large ring.
        command.args([format!("--rxd={queue_size}"), format!("--txd={queue_size}")]);
        if traffic.multi_flow {
            command.arg("--txonly-multi-flow");
        }
        for (port, mac) in traffic.peers.iter().enumerate() {
            command.arg(format!("--eth-peer={port},{mac}"));
        }

        let process = Process::start(&format!("testpmd {name}"), &mut command)?;
        Ok(Self { process, directory, prefix, listening, ports, seen: 0 })
    }

    /// Waits until a front-end listens on its first socket.
    fn wait_listening(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.log().contains("waiting for client connection") {
            if Instant::now() >= deadline || !self.process.is_running() {
                bail!("testpmd does not listen; it said:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits for the first prompt and for all ports to be there.
    fn finish_start(&mut self, limit: Duration) -> Result<()> {
        self.seen = self.process.wait_for(PROMPT, limit).with_context(|| self.log())?;
        let found = self.links()?.len();
        if found != self.ports {
            // A port whose socket does not answer is left out, which need not end the program.
            bail!("testpmd: {found} of {} ports started; it said:\n{}", self.ports, self.log());
        }
        Ok(())
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What DPDK logged so far; the answers to commands are not in it.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join(LOG)).unwrap_or_default()
    }

    /// Runs one command of testpmd's prompt and returns what it printed.
    pub fn command(&mut self, line: &str, limit: Duration) -> Result<String> {
        self.process.write(&format!("{line}\n"))?;
        let end = self.process.wait_for_from(self.seen, PROMPT, limit);
        let end = end.with_context(|| format!("testpmd command {line:?}; its log:\n{}", self.log()))?;
        let said = self.process.output()[self.seen..end].to_owned();
        self.seen = end;
        if said.contains("Bad arguments") || said.contains("Command not found") {
            bail!("testpmd refused {line:?}");
        }
        Ok(said)
    }

    /// Starts to forward, from zeroed counters.
    pub fn start(&mut self) -> Result<()> {
        self.command("start", COMMAND_LIMIT).map(drop)
    }

    /// Sends `bursts` bursts on every queue of every port, then starts to forward. A frame that finds
    /// the ring full is dropped, and counted.
    pub fn start_with_bursts(&mut self, bursts: u32) -> Result<()> {
        self.command(&format!("start tx_first {bursts}"), COMMAND_LIMIT).map(drop)
    }

    /// Sends exactly `bursts` bursts on every queue of every port, trying again while a ring is full,
    /// then receives and frees what comes, in mode [`IcmpEcho`](Forward::IcmpEcho). Nothing is
    /// received until all is sent; [`stop`](Self::stop) gives the counters.
    ///
    /// A burst that made no progress for a second is dropped, and counted.
    pub fn send_exactly(&mut self, bursts: u32, limit: Duration) -> Result<()> {
        self.command("set fwd icmpecho retry", COMMAND_LIMIT)?;
        self.command("set burst tx delay 10 retry 100000", COMMAND_LIMIT)?;
        self.command(&format!("start tx_first {bursts}"), limit).map(drop)
    }

    /// Stops forwarding; returns the counters since the start.
    pub fn stop(&mut self) -> Result<Totals> {
        self.command("stop", COMMAND_LIMIT)?;
        self.totals()
    }

    /// The counters since the last start, still running or stopped.
    pub fn totals(&mut self) -> Result<Totals> {
        let said = self.command("show fwd stats all", COMMAND_LIMIT)?;
        parse_totals(&said).with_context(|| format!("no counters in testpmd's answer:\n{said}"))
    }

    /// Waits until no counter changed for `quiet`; returns the counters.
    pub fn wait_quiet(&mut self, quiet: Duration, limit: Duration) -> Result<Totals> {
        let deadline = Instant::now() + limit;
        let mut before = self.totals()?;
        while Instant::now() < deadline {
            std::thread::sleep(quiet);
            let after = self.totals()?;
            if after == before {
                return Ok(after);
            }
            before = after;
        }
        bail!("testpmd still moves frames after {limit:?}: {before:?}")
    }

    /// Counts from now on the processor's cycles of bursts that move a frame.
    pub fn record_cycles(&mut self) -> Result<()> {
        self.command("set record-core-cycles on", COMMAND_LIMIT).map(drop)
    }

    /// The rates of the running instance, from its counters at both ends of an interval.
    pub fn measure(&mut self, interval: Duration) -> Result<Rates> {
        let (before, busy_before) = self.reading()?;
        let start = Instant::now();
        std::thread::sleep(interval);
        let (after, busy_after) = self.reading()?;
        let rates = Rates::between(&before, &after, start.elapsed());
        let busy = busy_before.zip(busy_after).map(|(before, after)| after.saturating_sub(before));
        Ok(Rates { busy: busy.map(|busy| busy.as_secs_f64() / rates.interval.as_secs_f64()), ..rates })
    }

    /// The time spent so far on bursts that moved a frame, if [cycles are recorded](Self::record_cycles).
    pub fn busy_time(&mut self) -> Result<Option<Duration>> {
        Ok(self.reading()?.1)
    }

    /// The counters, and the time spent on bursts that moved a frame if it is recorded.
    fn reading(&mut self) -> Result<(Counters, Option<Duration>)> {
        let said = self.command("show fwd stats all", COMMAND_LIMIT)?;
        let totals = parse_totals(&said);
        let totals = totals.with_context(|| format!("no counters in testpmd's answer:\n{said}"))?;
        Ok((totals.total(), parse_busy(&said)))
    }

    /// Each port's link state.
    pub fn links(&mut self) -> Result<Vec<bool>> {
        Ok(parse_links(&self.command("show port summary all", COMMAND_LIMIT)?))
    }

    /// Waits until every port's link is up: the other side has connected and is ready.
    pub fn wait_link_up(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        if self.seen == 0 {
            self.finish_start(limit)?;
        }
        while !self.links()?.iter().all(|up| *up) {
            if Instant::now() >= deadline {
                bail!("testpmd: a link is still down after {limit:?}; it said:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// A front-end's virtio features as last negotiated.
    ///
    /// They are the driver's own view: `virtio_user` keeps what it implements itself (control queue,
    /// MAC, status) from the back-end, and adds `VHOST_USER_F_PROTOCOL_FEATURES` for it.
    pub fn features(&self) -> Option<u64> {
        parse_features(&self.log())
    }

    /// A front-end's data paths as DPDK names them, such as `inorder Rx path on port 0`: how to see
    /// that an option took effect.
    pub fn data_paths(&self) -> Vec<String> {
        parse_data_paths(&self.log())
    }

    /// Ends it in good order: the ports are stopped and closed, which a back-end sees as
    /// `GET_VRING_BASE` and the end of the connection.
    pub fn quit(mut self) -> Result<()> {
        self.process.write("quit\n")?;
        let status = self.process.wait(COMMAND_LIMIT)?;
        if !status.success() {
            bail!("testpmd ended with {status}; it said:\n{}", self.log());
        }
        Ok(())
    }
}

impl Drop for TestPmd {
    fn drop(&mut self) {
        self.process.kill();
        // Root's place, a session's, and the last resort; the prefix is this instance's alone.
        let session = std::env::var_os("XDG_RUNTIME_DIR").unwrap_or_default();
        for base in [Path::new("/var/run"), Path::new(&session), Path::new("/tmp")] {
            if base.is_absolute() {
                // Only one of them exists.
                let _ = std::fs::remove_dir_all(base.join("dpdk").join(&self.prefix));
            }
        }
        for socket in &self.listening {
            // Gone already if it ended by itself.
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Reads the answer to `show fwd stats all`; `None` without the sum that ends it.
fn parse_totals(text: &str) -> Option<Totals> {
    let mut ports = Vec::new();
    // Sections of single queues come before their port's, and the sum after all.
    let mut current: Option<Counters> = None;
    for line in text.lines() {
        if line.contains("Forward statistics for port") {
            current = Some(Counters::default());
        } else if line.contains("Accumulated forward statistics") {
            return Some(Totals { ports });
        } else if let Some(counters) = &mut current {
            if line.trim_start().starts_with("-----") {
                ports.push(*counters);
                current = None;
            } else {
                read_counters(line, counters);
            }
        }
    }
    None
}

/// Reads `CPU cycles/packet=N (total cycles=N / total io packets=N) at N MHz Clock` as a time.
fn parse_busy(text: &str) -> Option<Duration> {
    let (_, rest) = text.split_once("(total cycles=")?;
    let cycles: f64 = rest.split_whitespace().next()?.parse().ok()?;
    let (clock, _) = rest.split_once(") at ")?.1.split_once(" MHz Clock")?;
    let clock: f64 = clock.parse().ok()?;
    Duration::try_from_secs_f64(cycles / (clock * 1e6)).ok()
}

/// Takes the `NAME: NUMBER` pairs of one line.
fn read_counters(line: &str, counters: &mut Counters) {
    let words: Vec<&str> = line.split_whitespace().collect();
    for pair in words.windows(2) {
        let (name, Ok(number)) = (pair[0], pair[1].parse()) else { continue };
        match name {
            "RX-packets:" => counters.rx_packets = number,
            "RX-dropped:" => counters.rx_dropped = number,
            "RX-error:" => counters.rx_errors = number,
            "RX-nombufs:" => counters.rx_no_buffer = number,
            "TX-packets:" => counters.tx_packets = number,
            "TX-dropped:" => counters.tx_dropped = number,
            _ => {}
        }
    }
}

/// Reads the answer to `show port summary all`: each port's link state.
fn parse_links(text: &str) -> Vec<bool> {
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| {
            words.len() >= 5 && words[0].parse::<u16>().is_ok() && words[1].matches(':').count() == 5
        })
        .map(|words| words[4] == "up")
        .collect()
}

/// The last negotiated features in a front-end's log.
fn parse_features(log: &str) -> Option<u64> {
    let (_, after) = log.rsplit_once("features after negotiate = ")?;
    u64::from_str_radix(after.split_whitespace().next()?, 16).ok()
}

/// The data paths in a front-end's log.
fn parse_data_paths(log: &str) -> Vec<String> {
    log.lines()
        .filter_map(|line| line.split_once("virtio: using "))
        .map(|(_, path)| path.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = "show fwd stats all

  ------- Forward Stats for RX Port= 0/Queue= 0 -> TX Port= 0/Queue= 0 -------
  RX-packets: 7              TX-packets: 103328         TX-dropped: 216672        

  ---------------------- Forward statistics for port 0  ----------------------
  RX-packets: 7              RX-dropped: 1             RX-total: 8
  RX-error: 2
  RX-nombufs: 3             
  TX-packets: 103584         TX-dropped: 536416        TX-total: 640000
  ----------------------------------------------------------------------------

  ---------------------- Forward statistics for port 1  ----------------------
  RX-packets: 103584         RX-dropped: 0             RX-total: 103584
  TX-packets: 0              TX-dropped: 0             TX-total: 0
  ----------------------------------------------------------------------------

  +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
  RX-packets: 103591         RX-dropped: 1             RX-total: 103592
  TX-packets: 103584         TX-dropped: 536416        TX-total: 640000
  ++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++
";

    #[test]
    fn counters_of_each_port() {
        let totals = parse_totals(STATS).unwrap();
        let port0 = Counters {
            rx_packets: 7,
            rx_dropped: 1,
            rx_errors: 2,
            rx_no_buffer: 3,
            tx_packets: 103_584,
            tx_dropped: 536_416,
        };
        let port1 = Counters { rx_packets: 103_584, ..Counters::default() };
        assert_eq!(totals.ports, [port0, port1]);
        assert_eq!(totals.total().rx_packets, 103_591);
    }

    #[test]
    fn a_cut_answer_is_no_answer() {
        assert_eq!(parse_totals(STATS.split("  ++++").next().unwrap()), None);
        assert_eq!(parse_totals(""), None);
    }

    #[test]
    fn link_states() {
        let text = "show port summary all
Number of available ports: 2
Port MAC Address       Name         Driver         Status   Link
0    2A:40:BE:9C:15:13 net_virtio_user0 net_virtio_user up       Unknown
1    2A:40:BE:9C:15:14 net_virtio_user1 net_virtio_user down     None
";
        assert_eq!(parse_links(text), [true, false]);
        assert!(parse_links("Number of available ports: 0").is_empty());
    }

    #[test]
    fn the_last_negotiation_counts() {
        let log = "virtio_ethdev_negotiate_features(): features after negotiate = 910018000
virtio_ethdev_negotiate_features(): features after negotiate = 110018000
set_rxtx_funcs(): virtio: using inorder Tx path on port 0
";
        assert_eq!(parse_features(log), Some(0x1_1001_8000));
        assert_eq!(parse_features("no driver here"), None);
        assert_eq!(parse_data_paths(log), ["inorder Tx path on port 0"]);
    }

    #[test]
    fn rates_from_two_readings() {
        let before = Counters { rx_packets: 100, tx_packets: 50, ..Counters::default() };
        let after = Counters { rx_packets: 300, tx_packets: 150, ..Counters::default() };
        let rates = Rates::between(&before, &after, Duration::from_millis(500));
        assert!((rates.rx_pps - 400.0).abs() < 1e-6 && (rates.tx_pps - 200.0).abs() < 1e-6);
    }

    #[test]
    fn busy_time() {
        let line = "  CPU cycles/packet=130.00 (total cycles=1300000000 / total mac packets=10000000) at 2600 MHz Clock";
        assert_eq!(parse_busy(&format!("{STATS}\n{line}\n")), Some(Duration::from_millis(500)));
        assert_eq!(parse_busy(STATS), None);
    }

    #[test]
    fn device_arguments() {
        let mut ports = VirtioUser::new("/run/s");
        assert_eq!(
            ports.vdev(0, &ports.sockets[0]),
            "net_virtio_user0,path=/run/s,queues=1,queue_size=256,mrg_rxbuf=1,in_order=1,packed_vq=0,vectorized=0"
        );
        ports.queues = 2;
        ports.server = true;
        ports.macs = vec!["02:00:00:00:00:09".into()];
        assert!(ports.vdev(0, &ports.sockets[0]).ends_with(",cq=1,server=1,mac=02:00:00:00:00:09"));
        let back = NetVhost { client: true, ..NetVhost::new("/run/s") };
        assert_eq!(back.vdev(1, &back.sockets[0]), "net_vhost1,iface=/run/s,queues=1,client=1");
    }
}
