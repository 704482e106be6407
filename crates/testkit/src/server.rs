//! `ringway` itself, as a test runs it: a process with sockets in a directory of its own, and counters.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::netns::Netns;
use crate::process::{Process, adopt_orphans};

/// How long a socket may take to appear.
const START: Duration = Duration::from_secs(10);

/// A running `ringway`. Dropped, it is killed and its directory removed.
pub struct Server {
    process: Process,
    /// How it was started.
    command: Command,
    /// The program that upgrades it: itself, unless that is replaced.
    upgrader: PathBuf,
    names: Vec<String>,
    /// Outlives the process.
    dir: tempfile::TempDir,
}

impl Server {
    /// Starts `program switch` with a port for each name; the socket of port `a` is [`Server::socket`]`("a")`.
    /// `extra` are further arguments.
    pub fn switch(program: &Path, ports: &[&str], extra: &[&str]) -> Result<Self> {
        Self::switch_in(program, ports, extra, &[])
    }

    /// The same, with these environment variables.
    pub fn switch_in(
        program: &Path,
        ports: &[&str],
        extra: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Result<Self> {
        let dir = tempfile::tempdir().context("make a directory for sockets")?;
        let mut command = Command::new(program);
        command.arg("switch").envs(environment.iter().copied());
        for port in ports {
            // Options of a port follow its name after a comma.
            let (name, options) =
                port.split_once(',').map_or((*port, String::new()), |(n, o)| (n, format!(",{o}")));
            command.arg(format!("--port={name}={}{options}", socket(dir.path(), name).display()));
        }
        let names: Vec<_> = ports.iter().map(|p| p.split(',').next().unwrap_or(p)).collect();
        command.args(extra);
        Self::start(command, dir, &names)
    }

    /// Starts `program net` on the socket [`Server::socket`]`("net")`.
    pub fn net(program: &Path, uplink: &str, extra: &[&str]) -> Result<Self> {
        Self::start_net(Command::new(program), uplink, extra)
    }

    /// The same in a namespace, whose interfaces are then the uplinks.
    pub fn net_in(host: &Netns, program: &str, uplink: &str, extra: &[&str]) -> Result<Self> {
        Self::start_net(host.command(program)?, uplink, extra)
    }

    fn start_net(mut command: Command, uplink: &str, extra: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir().context("make a directory for sockets")?;
        command.arg("net").arg(format!("--socket-path={}", socket(dir.path(), "net").display()));
        command.arg(format!("--uplink={uplink}")).args(extra);
        Self::start(command, dir, &["net"])
    }

    /// Starts `program net` on an inherited socket, by the number of its file descriptor.
    pub fn net_on(program: &Path, fd: i32, uplink: &str) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("net").arg(format!("--fd={fd}")).arg(format!("--uplink={uplink}"));
        Self::start(command, tempfile::tempdir().context("make a directory for sockets")?, &[])
    }

    /// Starts `program blk` with one disk, on the socket [`Server::socket`]`("disk")`.
    pub fn blk(program: &Path, image: &str, extra: &[&str]) -> Result<Self> {
        Self::blk_by(Command::new(program), image, extra)
    }

    /// The same, by a command that becomes the program with the arguments that are added to it.
    pub fn blk_by(mut command: Command, image: &str, extra: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir().context("make a directory for sockets")?;
        command.arg("blk").arg(format!("--socket-path={}", socket(dir.path(), "disk").display()));
        command.arg(format!("--blk-file={image}")).args(extra);
        Self::start(command, dir, &["disk"])
    }

    /// Starts `program blk` with a disk for each name and image, on the socket [`Server::socket`]`(name)`.
    pub fn disks(program: &Path, disks: &[(&str, &str)], extra: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir().context("make a directory for sockets")?;
        let mut command = Command::new(program);
        command.arg("blk").args(extra);
        for (name, image) in disks {
            command.arg(format!("--disk={name}={},{image}", socket(dir.path(), name).display()));
        }
        let names: Vec<_> = disks.iter().map(|(name, _)| *name).collect();
        Self::start(command, dir, &names)
    }

    /// Starts `program rng`, or another command with one device, on the socket [`Server::socket`]`("rng")`.
    pub fn device(program: &Path, kind: &str, extra: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir().context("make a directory for sockets")?;
        let mut command = Command::new(program);
        command.arg(kind).arg(format!("--socket-path={}", socket(dir.path(), kind).display())).args(extra);
        Self::start(command, dir, &[kind])
    }

    /// The same with a device for each of these guests, on the socket [`Server::socket`]`(guest)`.
    pub fn devices(program: &Path, kind: &str, guests: &[&str], extra: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir().context("make a directory for sockets")?;
        let mut command = Command::new(program);
        command.arg(kind).args(extra);
        for guest in guests {
            command.arg(format!("--guest={guest}={}", socket(dir.path(), guest).display()));
        }
        Self::start(command, dir, guests)
    }

    fn start(mut command: Command, dir: tempfile::TempDir, names: &[&str]) -> Result<Self> {
        if std::env::var_os("RINGWAY_LOG").is_none() {
            command.env("RINGWAY_LOG", "info");
        }
        let process = Process::start("ringway", &mut command)?;
        let names = names.iter().map(|&n| n.to_owned()).collect();
        let upgrader = command.get_program().into();
        let mut server = Self { process, command, upgrader, names, dir };
        server.wait_ready()?;
        Ok(server)
    }

    /// `ringway upgrade` is to be this program's, whatever becomes of the server's.
    #[must_use]
    pub fn upgraded_by(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.upgrader);
        self
    }

    /// Waits until it listens on all its sockets.
    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        for name in &self.names {
            let path = socket(self.dir.path(), name);
            while !path.exists() {
                if !self.process.is_running() || Instant::now() > deadline {
                    bail!(
                        "ringway does not listen at {}; it said:\n{}",
                        path.display(),
                        self.process.output()
                    );
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Kills it, as a crash would, and starts it again on the same sockets.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill();
        self.process = Process::start("ringway", &mut self.command)?;
        // The sockets' files are there already; what counts is that they are replaced.
        let deadline = Instant::now() + START;
        for name in &self.names {
            while UnixStream::connect(socket(self.dir.path(), name)).is_err() {
                if !self.process.is_running() || Instant::now() > deadline {
                    bail!("ringway does not listen again; it said:\n{}", self.process.output());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Replaces it by the program that now lies where it was started from (`ringway upgrade`). Returns how long it said
    /// that the rings paused; an error with what the command said if it goes on as before.
    pub fn upgrade(&mut self) -> Result<Duration> {
        adopt_orphans()?;
        let pid = self.process.pid().to_string();
        let mut command = Command::new(&self.upgrader);
        let run = command.args(["upgrade", "--pid", &pid]).output()?;
        let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        ensure!(run.status.success(), "{err}");
        let (pid, pause) = parse_upgrade(&out).with_context(|| format!("an unknown answer: {out:?}"))?;
        let status = self.process.follow(pid, Duration::from_secs(1))?;
        ensure!(status.success(), "the old server ended with {status}");
        Ok(pause)
    }

    /// Has it give its one disk another size in bytes, or look how long the image is now (`ringway resize`).
    pub fn resize(&self, size: Option<u64>) -> Result<()> {
        let mut command = Command::new(self.command.get_program());
        command.args(["resize", "--pid", &self.process.pid().to_string()]);
        if let Some(size) = size {
            command.args(["--size", &size.to_string()]);
        }
        let run = command.output()?;
        ensure!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        Ok(())
    }

    /// The socket of a port, or of a disk.
    pub fn socket(&self, port: &str) -> PathBuf {
        socket(self.dir.path(), port)
    }

    /// The process, with all it printed.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it logged and printed so far.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// The counters of every port now.
    pub fn counters(&self) -> Result<Counters> {
        let from = self.process.output().len();
        self.process.signal(Signal::USR1)?;
        let end = self.process.wait_for_from(from, "\nall: ", Duration::from_secs(5))?;
        // The rest of the last line.
        self.process.wait_for_from(end, "\n", Duration::from_secs(5))?;
        Counters::parse(&self.process.output()[from..])
    }

    /// Asks it to end; returns how it did and the last counters.
    pub fn terminate(mut self) -> Result<(ExitStatus, Counters)> {
        let from = self.process.output().len();
        let status = self.process.terminate(Duration::from_secs(5))?;
        let end = self.process.wait_for_from(from, "\nall: ", Duration::from_secs(1))?;
        self.process.wait_for_from(end, "\n", Duration::from_secs(1))?;
        Ok((status, Counters::parse(&self.process.output()[from..])?))
    }

    /// How many file descriptors it has open.
    pub fn open_fds(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.process.pid()))?.count())
    }

    /// How many shared file mappings it has: guests' memory.
    pub fn guest_mappings(&self) -> Result<usize> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.process.pid()))?;
        Ok(maps.lines().filter(|l| l.split_whitespace().nth(1).is_some_and(|p| p.ends_with('s'))).count())
    }

    /// Processor time used so far, in clock ticks of 1/100 s.
    pub fn cpu_ticks(&self) -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.pid()))?;
        // Fields are counted after the name, which may hold anything.
        let rest = stat.rsplit_once(')').context("a stat line")?.1;
        let fields: Vec<_> = rest.split_whitespace().collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    }
}

fn socket(dir: &Path, port: &str) -> PathBuf {
    dir.join(format!("{port}.sock"))
}

/// The counters that `ringway` printed, by port and name: `from`, `to` (frames), `from bytes`, `to bytes`,
/// `copies`, `kicks`, `calls`, `syscalls`, `sessions`, `failed rings`, and every reason for a drop. Of a disk: `read`,
/// `written` (requests), `read bytes`, `written bytes`, `flushes`, `ranges`, `other`, those from `kicks` on, and every reason
/// for an error. Of other devices: what they are called in the line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    ports: BTreeMap<String, BTreeMap<String, u64>>,
    /// How long all workers together were busy with frames; nothing if it does not say.
    pub busy: Option<Duration>,
    /// The line about all ports together.
    pub summary: String,
}

impl Counters {
    /// Reads what `ringway` prints on SIGUSR1 and in the end.
    pub fn parse(text: &str) -> Result<Self> {
        let mut counters = Self::default();
        for line in text.lines() {
            if let Some(summary) = line.strip_prefix("all: ") {
                summary.clone_into(&mut counters.summary);
            } else if line.starts_with("worker ") {
                let busy = parse_busy(line).with_context(|| format!("counters line {line:?}"))?;
                *counters.busy.get_or_insert_default() += busy;
            } else if let Some((name, rest)) =
                line.strip_prefix("port ").and_then(|l| l.split_once(": from "))
            {
                let values = parse_port(rest).with_context(|| format!("counters line {line:?}"))?;
                counters.ports.insert(name.to_owned(), values);
            } else if let Some((name, rest)) =
                line.strip_prefix("disk ").and_then(|l| l.split_once(": read "))
            {
                let values = parse_disk(rest).with_context(|| format!("counters line {line:?}"))?;
                counters.ports.insert(name.to_owned(), values);
            } else if let Some((name, rest)) = parse_device(line) {
                let values = rest.split(", ").map(|pair| {
                    let (name, value) = pair.rsplit_once(' ')?;
                    Some((name.to_owned(), value.parse().ok()?))
                });
                let values = values.collect::<Option<_>>();
                let values = values.with_context(|| format!("counters line {line:?}"))?;
                counters.ports.insert(name.to_owned(), values);
            }
        }
        ensure!(!counters.ports.is_empty(), "no counters in {text:?}");
        Ok(counters)
    }

    /// A counter of a port, or of a disk.
    ///
    /// # Panics
    /// If there is no such port or counter: a test that asks so is wrong.
    pub fn get(&self, port: &str, name: &str) -> u64 {
        let values = self.ports.get(port).unwrap_or_else(|| panic!("no port {port} in {self:?}"));
        *values.get(name).unwrap_or_else(|| panic!("no counter {name} of port {port} in {self:?}"))
    }

    /// All frames that a port dropped.
    pub fn dropped(&self, port: &str) -> u64 {
        let reasons = [
            "no-buffer",
            "not-ready",
            "too-long",
            "unsegmentable",
            "malformed",
            "disabled",
            "filtered",
            "vlan",
            "secured",
            "storm",
            "limited",
        ];
        reasons.iter().map(|r| self.get(port, r)).sum()
    }
}

/// Takes name and counters out of the line of a device that is neither a port nor a disk.
fn parse_device(line: &str) -> Option<(&str, &str)> {
    let (kind, rest) = line.split_once(' ')?;
    ["rng", "console", "balloon"].contains(&kind).then(|| rest.split_once(": "))?
}

/// Reads `process NEW has taken over from process OLD; rings paused for MS ms`.
fn parse_upgrade(text: &str) -> Option<(u32, Duration)> {
    let words: Vec<_> = text.split_whitespace().collect();
    let ["process", pid, "has", "taken", "over", .., pause, "ms"] = words[..] else { return None };
    Some((pid.parse().ok()?, Duration::from_secs_f64(pause.parse::<f64>().ok()? / 1e3)))
}

/// Reads `worker N: busy S s, polling …`.
fn parse_busy(line: &str) -> Option<Duration> {
    let (_, rest) = line.split_once(": busy ")?;
    let (seconds, _) = rest.split_once(" s")?;
    Duration::try_from_secs_f64(seconds.parse().ok()?).ok()
}

/// Reads `N frames N bytes, to N frames N bytes, name N, …, dropped reason N …`.
fn parse_port(rest: &str) -> Option<BTreeMap<String, u64>> {
    let (counted, dropped) = rest.split_once(", dropped ")?;
    let mut values = BTreeMap::new();
    for (i, part) in counted.split(", ").enumerate() {
        let words: Vec<_> = part.trim_start_matches("to ").split(' ').collect();
        if let [frames, "frames", bytes, "bytes"] = words[..] {
            let side = if i == 0 { "from" } else { "to" };
            values.insert(side.to_owned(), frames.parse().ok()?);
            values.insert(format!("{side} bytes"), bytes.parse().ok()?);
        } else {
            let (name, value) = part.rsplit_once(' ')?;
            values.insert(name.to_owned(), value.parse().ok()?);
        }
    }
    for pair in dropped.split(' ').collect::<Vec<_>>().chunks(2) {
        values.insert(pair[0].to_owned(), pair.get(1)?.parse().ok()?);
    }
    Some(values)
}

/// Reads `N requests N bytes, written N requests N bytes, name N, …, errors reason N …, busy S s, …`.
fn parse_disk(rest: &str) -> Option<BTreeMap<String, u64>> {
    let (counted, rest) = rest.split_once(", errors ")?;
    let (errors, _) = rest.split_once(", busy ")?;
    let mut values = BTreeMap::new();
    for (i, part) in counted.split(", ").enumerate() {
        let words: Vec<_> = part.trim_start_matches("written ").split(' ').collect();
        if let [requests, "requests", bytes, "bytes"] = words[..] {
            let way = if i == 0 { "read" } else { "written" };
            values.insert(way.to_owned(), requests.parse().ok()?);
            values.insert(format!("{way} bytes"), bytes.parse().ok()?);
        } else {
            let (name, value) = part.rsplit_once(' ')?;
            values.insert(name.to_owned(), value.parse().ok()?);
        }
    }
    for pair in errors.split(' ').collect::<Vec<_>>().chunks(2) {
        values.insert(pair[0].to_owned(), pair.get(1)?.parse().ok()?);
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let text = "noise\nport a: from 7 frames 420 bytes, to 3 frames 180 bytes, copies 3, kicks 1, calls 2, \
                    syscalls 4, sessions 1, failed rings 5, dropped no-buffer 1 not-ready 2 too-long 0 \
                    unsegmentable 0 malformed 0 disabled 0 filtered 4 vlan 0 secured 0 \
                    storm 0 limited 0\n\
                    worker 0: busy 1.250 s, polling 0.100 s, asleep 3.000 s\n\
                    worker 1: busy 0.500 s, polling 0.000 s, asleep 3.850 s\nall: delivered 3 frames, more\n";
        let counters = Counters::parse(text).unwrap();
        assert_eq!(counters.get("a", "from"), 7);
        assert_eq!(counters.get("a", "to bytes"), 180);
        assert_eq!(counters.get("a", "failed rings"), 5);
        assert_eq!(counters.dropped("a"), 7);
        assert_eq!(counters.busy, Some(Duration::from_millis(1750)));
        assert_eq!(counters.summary, "delivered 3 frames, more");
        assert!(Counters::parse("nothing").is_err());
    }
    #[test]
    fn counters_of_disks_are_read() {
        let text = "disk a: read 7 requests 3584 bytes, written 2 requests 1024 bytes, flushes 1, ranges 0, other 3, \
                    kicks 4, calls 5, syscalls 6, sessions 1, failed rings 0, errors storage 8 refused 9 \
                    unsupported 0 malformed 0, busy 0.100 s, polling 0.200 s, asleep 3.000 s\n\
                    all: served 13 requests, more\n";
        let counters = Counters::parse(text).unwrap();
        assert_eq!((counters.get("a", "read"), counters.get("a", "written bytes")), (7, 1024));
        assert_eq!((counters.get("a", "failed rings"), counters.get("a", "refused")), (0, 9));
        assert_eq!(counters.summary, "served 13 requests, more");
    }
}
