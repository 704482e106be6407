//! Open vSwitch with DPDK, run privately: its database, sockets and logs are in a directory that goes when it does.
//!
//! It is the learning switch of its action NORMAL between ports of type `dpdkvhostuser`, its polling thread on the
//! back-end's core and all else of it there too. It needs huge pages.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringway_testkit::process::Process;

use super::machine::said;
use super::peer;

/// For a daemon to be ready, or to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// A running switch. Dropping it kills both of its processes.
pub(super) struct Ovs {
    daemon: Process,
    _database: Process,
    directory: PathBuf,
}

impl Ovs {
    /// Starts a bridge whose ports' sockets are those, all in one directory.
    pub(super) fn start(sockets: &[PathBuf], core: usize) -> Result<Self> {
        let directory = sockets[0].parent().context("a socket is in a directory")?.to_owned();
        let remote = format!("unix:{}", directory.join("db.sock").display());
        let file = directory.join("conf.db");
        let schema = peer("usr/share/openvswitch/vswitch.ovsschema");
        command("usr/bin/ovsdb-tool", &directory).arg("create").arg(&file).arg(&schema).run()?;

        let mut server = command("usr/sbin/ovsdb-server", &directory);
        server.0.arg(&file).arg(format!("--remote=p{remote}"));
        server.0.arg(format!("--unixctl={}", directory.join("db.ctl").display()));
        let database = Process::start("ovsdb-server", &mut server.0)?;
        wait_for(&directory.join("db.sock"), &database)?;

        let vsctl =
            || command("usr/bin/ovs-vsctl", &directory).arg(format!("--db={remote}")).arg("--no-wait");
        vsctl().arg("init").run()?;
        let mask = format!("{:#x}", 1_u64 << core);
        let mut settings = vsctl().arg("set").arg("Open_vSwitch").arg(".");
        for setting in [
            "dpdk-init=true".to_owned(),
            format!("pmd-cpu-mask={mask}"),
            format!("dpdk-lcore-mask={mask}"),
            "dpdk-extra=\"--socket-mem 512 --no-pci --no-telemetry\"".to_owned(),
        ] {
            settings = settings.arg(format!("other_config:{setting}"));
        }
        settings.run()?;
        vsctl()
            .arg("add-br")
            .arg("br0")
            .args(&["--", "set", "bridge", "br0", "datapath_type=netdev"])
            .run()?;
        for socket in sockets {
            let name = socket.file_name().and_then(|name| name.to_str()).context("a socket has a name")?;
            vsctl()
                .args(&["add-port", "br0", name, "--", "set", "Interface", name, "type=dpdkvhostuser"])
                .run()?;
        }

        let mut switch = Command::new("taskset");
        switch.arg("-c").arg(core.to_string()).arg(peer("usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"));
        switch.arg(&remote).arg(format!("--unixctl={}", directory.join("vs.ctl").display()));
        let daemon = Process::start("ovs-vswitchd", environment(&mut switch, &directory))?;
        for socket in sockets {
            wait_for(socket, &daemon)?;
        }
        Ok(Self { daemon, _database: database, directory })
    }

    pub(super) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// What it logged.
    pub(super) fn output(&self) -> String {
        self.daemon.output()
    }

    /// Starts to count the polling thread's cycles anew.
    pub(super) fn clear_stats(&self) -> Result<()> {
        self.ask("dpif-netdev/pmd-stats-clear").map(drop)
    }

    /// The share of its cycles since in which the polling thread had packets.
    pub(super) fn busy(&self) -> Result<f64> {
        let said = self.ask("dpif-netdev/pmd-stats-show")?;
        parse_busy(&said).with_context(|| format!("no cycles in:\n{said}"))
    }

    fn ask(&self, question: &str) -> Result<String> {
        let control = self.directory.join("vs.ctl");
        command("usr/bin/ovs-appctl", &self.directory).arg("-t").arg(control).arg(question).run()
    }
}

/// Its version.
pub(super) fn version() -> String {
    let program = peer("usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk");
    let line = said(&program.to_string_lossy(), &["--version"]);
    line.rsplit(' ').next().unwrap_or_default().to_owned()
}

/// One of its tools.
struct Tool(Command);

/// Its programs take all their places from the environment.
fn environment<'a>(command: &'a mut Command, directory: &Path) -> &'a mut Command {
    for place in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(place, directory);
    }
    command
}

fn command(program: &str, directory: &Path) -> Tool {
    let mut command = Command::new(peer(program));
    environment(&mut command, directory);
    Tool(command)
}

impl Tool {
    fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.0.arg(argument);
        self
    }

    fn args(mut self, arguments: &[&str]) -> Self {
        self.0.args(arguments);
        self
    }

    /// Runs it to its end; what it printed.
    fn run(mut self) -> Result<String> {
        let output = self.0.output().with_context(|| format!("cannot start {:?}", self.0))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", self.0.get_program().display(), error.trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Waits for a socket that a daemon makes.
fn wait_for(socket: &Path, daemon: &Process) -> Result<()> {
    super::wait_listening(socket, LIMIT, || daemon.output())
}

/// Reads the share of `processing cycles: N (x%)`, which the first polling thread alone has.
fn parse_busy(text: &str) -> Option<f64> {
    let (_, rest) = text.split_once("processing cycles:")?;
    let (_, share) = rest.lines().next()?.split_once('(')?;
    let percent: f64 = share.strip_suffix("%)")?.parse().ok()?;
    Some(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_of_the_polling_thread() {
        let text = "pmd thread numa_id 0 core_id 1:\n  packets received: 123\n  idle cycles: 75 (75.00%)\n  \
                    processing cycles: 25 (25.00%)\n  avg cycles per packet: 9.00 (100/9)\nmain thread:\n  \
                    packets received: 0\n";
        assert_eq!(parse_busy(text), Some(0.25));
        assert_eq!(parse_busy("main thread:\n  packets received: 0\n"), None);
    }
}
