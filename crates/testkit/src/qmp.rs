//! QEMU's monitor as programs use it (QMP): one connection, a command at a time, and migration.
//!
//! Events are passed over: what a test waits for it asks for.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// How long QEMU may take for an answer. It answers between two turns of its guest's processor.
const LIMIT: Duration = Duration::from_secs(20);

/// A connection to the monitor.
pub struct Monitor {
    reader: BufReader<UnixStream>,
}

/// What a migration cost, as QEMU tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// From the command to its end.
    pub total: Duration,
    /// How long the guest ran nowhere.
    pub downtime: Duration,
    /// How much went over.
    pub bytes: u64,
    /// How often QEMU collected which pages had changed.
    pub rounds: u64,
}

impl Monitor {
    /// The arguments for QEMU that make a monitor listen at `path`.
    pub fn arguments(path: &Path) -> [String; 2] {
        ["-qmp".into(), format!("unix:{},server=on,wait=off", path.display())]
    }

    /// Connects, as soon as QEMU listens at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(e) => ensure!(Instant::now() < deadline, "no monitor at {}: {e}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        socket.set_read_timeout(Some(LIMIT))?;
        let mut monitor = Self { reader: BufReader::new(socket) };
        monitor.receive().context("QEMU's greeting")?;
        monitor.run("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs a command; returns what it returns, and an error if it fails.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut answer = self.receive().with_context(|| format!("the answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or_default());
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line)? > 0, "QEMU has closed its monitor");
        Ok(serde_json::from_str(&line)?)
    }

    /// Sets how many bytes a second a migration may send.
    pub fn limit_migration(&mut self, bytes_per_second: u64) -> Result<()> {
        self.run("migrate-set-parameters", &json!({ "max-bandwidth": bytes_per_second }))?;
        Ok(())
    }

    /// Turns a capability of migration on, such as `postcopy-ram`. Both sides must agree.
    pub fn allow_in_migration(&mut self, capability: &str) -> Result<()> {
        let on = json!([{ "capability": capability, "state": true }]);
        self.run("migrate-set-capabilities", &json!({ "capabilities": on }))?;
        Ok(())
    }

    /// Has a QEMU that was started with `-incoming defer` await its guest at `path`.
    pub fn await_migration(&mut self, path: &Path) -> Result<()> {
        self.run("migrate-incoming", &json!({ "uri": format!("unix:{}", path.display()) }))?;
        Ok(())
    }

    /// Sets how many bytes a second may follow a guest that runs at its new place already, beside those that are
    /// touched there, which are sent at once.
    pub fn limit_postcopy(&mut self, bytes_per_second: u64) -> Result<()> {
        self.run("migrate-set-parameters", &json!({ "max-postcopy-bandwidth": bytes_per_second }))?;
        Ok(())
    }

    /// Lets the guest run at its new place from now on, if `postcopy-ram` was allowed.
    pub fn start_postcopy(&mut self) -> Result<()> {
        self.run("migrate-start-postcopy", &json!({}))?;
        Ok(())
    }

    /// Waits until the guest runs at its new place with its memory still to come.
    pub fn wait_in_postcopy(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.migration_status()?["status"] != "postcopy-active" {
            ensure!(Instant::now() < deadline, "not in postcopy within {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Begins to migrate to the QEMU that awaits it at `path`.
    pub fn migrate(&mut self, path: &Path) -> Result<()> {
        self.run("migrate", &json!({ "uri": format!("unix:{}", path.display()) }))?;
        Ok(())
    }

    /// Waits until `part` of `whole` of the guest's memory has been copied once.
    pub fn wait_copied(&mut self, part: u64, whole: u64, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let ram = self.migration_status()?["ram"].take();
            let number = |name: &str| ram[name].as_u64().unwrap_or(0);
            let (total, left) = (number("total"), number("remaining"));
            if number("dirty-sync-count") > 0 && (total - left.min(total)) * whole >= total * part {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not {part}/{whole} copied within {limit:?}: {ram}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the guest has gone.
    pub fn is_migrated(&mut self) -> Result<bool> {
        Ok(self.migration_status()?["status"] == "completed")
    }

    /// Waits for the end of a migration; an error if it fails.
    pub fn wait_migrated(&mut self, limit: Duration) -> Result<Migration> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.migration_status()?;
            if status["status"] == "completed" {
                let number = |value: &Value| value.as_u64().with_context(|| format!("no number in {status}"));
                return Ok(Migration {
                    total: Duration::from_millis(number(&status["total-time"])?),
                    downtime: Duration::from_millis(number(&status["downtime"])?),
                    bytes: number(&status["ram"]["transferred"])?,
                    rounds: number(&status["ram"]["dirty-sync-count"])?,
                });
            }
            ensure!(Instant::now() < deadline, "not migrated within {limit:?}: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn migration_status(&mut self) -> Result<Value> {
        let status = self.run("query-migrate", &json!({}))?;
        ensure!(status["status"] != "failed", "migration failed: {}", status["error-desc"]);
        Ok(status)
    }
}
