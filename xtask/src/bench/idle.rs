//! Ports with front-ends that do nothing: what a thousand of them cost.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{NetFrontend, Options as FrontendOptions};
use ringway_testkit::process::Process;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::backends::counters;
use super::machine::processor_time;
use super::results::{Detail, Figure};
use super::sampling::{Cell, Taken, take};
use super::{Options, wait_listening};

const PORTS: usize = 1000;
/// For the server to make its sockets.
const START_LIMIT: Duration = Duration::from_secs(30);
/// What front-ends are attached with has settled.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the server is watched.
const WATCHED: Duration = Duration::from_secs(5);

/// One sample is enough: nothing here is fast or slow.
pub(super) fn measure(options: &Options, topic: &str) -> Result<Taken> {
    // Each front-end has its own end of each descriptor.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).context("more files")?;
    let cell = Cell::new(format!("{PORTS} ports"), "ringway", || sample(options));
    Ok(take(topic, vec![cell], 1))
}

/// A front-end whose rings run, and that sends nothing.
pub(super) fn attach(socket: &Path) -> Result<NetFrontend> {
    let features = feature::VERSION_1 | feature::NET_MRG_RXBUF;
    NetFrontend::up(socket, features, FrontendOptions::default()).context("an idle port")
}

fn sample(options: &Options) -> Result<Figure> {
    let directory = tempfile::tempdir().context("a directory for sockets")?;
    let sockets: Vec<PathBuf> = (0..PORTS).map(|i| directory.path().join(format!("p{i}"))).collect();
    let mut command = Command::new(&options.common.ringway);
    command.arg("switch");
    for (index, socket) in sockets.iter().enumerate() {
        command.arg("--port").arg(format!("p{index}={},queues=1", socket.display()));
    }
    command.args(&options.common.ringway_arg);
    let server = Process::start("ringway", &mut command)?;
    wait_listening(&sockets[PORTS - 1], START_LIMIT, || server.output())?;

    let before = own_memory(server.pid())?;
    let _frontends: Vec<NetFrontend> = sockets.iter().map(|socket| attach(socket)).collect::<Result<_>>()?;
    std::thread::sleep(SETTLE);
    let counters = counters(&server)?;
    for index in 0..PORTS {
        let name = format!("p{index}");
        let (sessions, failed) = (counters.get(&name, "sessions"), counters.get(&name, "failed rings"));
        ensure!((sessions, failed) == (1, 0), "port {name} does not run");
    }
    let (time, start) = (processor_time(server.pid())?, Instant::now());
    std::thread::sleep(WATCHED);
    let time = processor_time(server.pid())?.saturating_sub(time);
    let cpu = 100.0 * time.as_secs_f64() / start.elapsed().as_secs_f64();
    let after = own_memory(server.pid())?;
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let value = after.saturating_sub(before) as f64 / PORTS as f64;
    let distance = options.common.watch().distance()?;
    Ok(Figure { value, distance, limit: None, details: BTreeMap::from([(Detail::Cpu, cpu)]) })
}

/// The memory of a process in KiB, less what it shares with others: what they made it map is theirs.
pub(super) fn own_memory(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("/proc/PID/status")?;
    let field = |name| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let own = field("RssAnon:").zip(field("RssFile:")).map(|(anonymous, files)| anonymous + files);
    own.context("no sizes in /proc/PID/status")
}
