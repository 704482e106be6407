//! The program that needs no operating system (`guests/bare`), under QEMU: built, booted, and read.
//!
//! It says on its serial line what it found, and asks for what only the host can do:
//!
//! ```text
//! ok NAME                 a check that went well
//! not ok NAME: why        one that did not
//! ask: REQUEST            the host is to do something; the program waits for its effect
//! done: N ok, M failed    the end
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::process::{Process, find_program, target_dir};
use crate::qmp::Monitor;

const QEMU: &str = "qemu-system-x86_64";

/// QEMU's exit status when all checks went well.
const ALL_WELL: i32 = 33;

/// Which machine, and so which transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Virtio over PCI.
    Q35,
    /// Virtio over MMIO.
    Microvm,
}

/// A machine to boot the program on.
pub struct Bare {
    machine: Machine,
    /// For QEMU.
    arguments: Vec<String>,
    /// Where the monitor listens, and whatever a test has there.
    dir: tempfile::TempDir,
}

/// What the program has said.
#[derive(Debug, Default)]
pub struct Report {
    /// Checks that went well.
    pub ok: Vec<String>,
    /// Checks that did not, and why.
    pub not_ok: Vec<String>,
}

impl Bare {
    /// A machine without any device.
    pub fn new(machine: Machine) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ringway-bare-").tempdir()?;
        Ok(Self { machine, arguments: Vec::new(), dir })
    }

    /// A directory that lasts as long as this.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds arguments for QEMU.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Adds a device that QEMU calls `virtio-KIND-pci` or `virtio-KIND-device`; with packed rings for drivers that want
    /// them.
    #[must_use]
    pub fn device(mut self, kind: &str, properties: &str) -> Self {
        let device = match self.machine {
            // Firmware is not to boot from it.
            Machine::Q35 => format!("{kind}-pci,disable-legacy=on,packed=on,romfile="),
            Machine::Microvm => format!("{kind}-device,packed=on"),
        };
        let comma = if properties.is_empty() { "" } else { "," };
        self.arguments.extend(["-device".to_owned(), device + comma + properties]);
        self
    }

    /// Boots the program with this command line, does what it asks for, and returns what it said when it has ended:
    /// an error, if that is not within `limit`.
    pub fn run(
        &self,
        command_line: &str,
        limit: Duration,
        answer: impl FnMut(&mut Monitor, &str) -> Result<()>,
    ) -> Result<Report> {
        let said = || std::fs::read_to_string(self.errors()).unwrap_or_default();
        self.converse(command_line, limit, answer).with_context(|| format!("QEMU itself said: {:?}", said()))
    }

    fn converse(
        &self,
        command_line: &str,
        limit: Duration,
        mut answer: impl FnMut(&mut Monitor, &str) -> Result<()>,
    ) -> Result<Report> {
        let deadline = Instant::now() + limit;
        let left = || deadline.saturating_duration_since(Instant::now());
        let socket = self.dir.path().join("monitor");
        let mut process = Process::start("bare", &mut self.command(&socket, command_line)?)?;
        let mut monitor = Monitor::connect(&socket)?;
        let mut report = Report::default();
        let mut seen = 0;
        loop {
            let end = process.wait_for_from(seen, "\n", left())?;
            let line = process.output()[seen..end].trim_end().to_owned();
            seen = end;
            if let Some(name) = line.strip_prefix("ok ") {
                report.ok.push(name.to_owned());
            } else if let Some(name) = line.strip_prefix("not ok ") {
                report.not_ok.push(name.to_owned());
            } else if let Some(request) = line.strip_prefix("ask: ") {
                answer(&mut monitor, request).with_context(|| format!("the program asked: {request}"))?;
            } else if let Some(counts) = line.strip_prefix("done: ") {
                let expected = format!("{} ok, {} failed", report.ok.len(), report.not_ok.len());
                ensure!(counts == expected, "the program counted {counts}, and was read as {expected}");
                break;
            } else if line.starts_with("panic: ") {
                bail!("{line}");
            }
        }
        let status = process.wait(left())?;
        let is_well = status.code() == Some(ALL_WELL);
        ensure!(is_well == report.not_ok.is_empty(), "{status} after {report:?}");
        Ok(report)
    }

    /// Where QEMU's own messages go: a character of the serial line at a time is written, and they would come between.
    fn errors(&self) -> PathBuf {
        self.dir.path().join("errors")
    }

    fn command(&self, monitor: &Path, command_line: &str) -> Result<Command> {
        let mut qemu = Command::new("sh");
        qemu.args(["-c", "exec \"$@\" 2>\"$0\""]).arg(self.errors()).arg(find_program(QEMU)?);
        let machine: &[&str] = match self.machine {
            Machine::Q35 => &["-machine", "q35"],
            // Without ACPI the command line says where the devices are.
            Machine::Microvm => {
                &["-machine", "microvm,acpi=off", "-global", "virtio-mmio.force-legacy=false"]
            }
        };
        qemu.args(["-accel", "tcg", "-cpu", "max"])
            .args(machine)
            .args(["-m", "256M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-device", "isa-debug-exit"])
            .args(Monitor::arguments(monitor))
            .args(&self.arguments)
            .arg("-kernel")
            .arg(build()?)
            .args(["-append", command_line]);
        Ok(qemu)
    }
}

impl Report {
    /// Fails unless these checks and no others were made, and all went well.
    ///
    /// # Errors
    /// What failed, is missing, or was not expected.
    pub fn expect(&self, expected: &[String]) -> Result<()> {
        ensure!(self.not_ok.is_empty(), "these checks failed:\n{}", self.not_ok.join("\n"));
        let missing: Vec<_> = expected.iter().filter(|name| !self.ok.contains(name)).collect();
        let more: Vec<_> = self.ok.iter().filter(|name| !expected.contains(name)).collect();
        ensure!(missing.is_empty() && more.is_empty(), "not made: {missing:?}; not expected: {more:?}");
        Ok(())
    }
}

/// Builds the program, once per process, and says where it is.
pub fn build() -> Result<PathBuf> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PROGRAM.get_or_init(|| try_build().map_err(|e| format!("{e:#}"))).clone().map_err(|e| anyhow!(e))
}

fn try_build() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/bare/build.sh");
    let run = Command::new("bash").arg(&script).output().context("cannot start bash")?;
    ensure!(run.status.success(), "guests/bare/build.sh failed:\n{}", String::from_utf8_lossy(&run.stderr));
    let program = target_dir().join("bare/x86_64-unknown-linux-gnu/release/bare");
    program.canonicalize().context("guests/bare/build.sh made no program")
}
