//! The back-ends that DPDK's driver is connected to, each on the back-end's core: what they are told, and what they
//! say of their time.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use ringway_testkit::dpdk::{Forward, NetVhost, TestPmd, Traffic};
use ringway_testkit::process::{Process, find_program};
use ringway_testkit::server::Counters;
use rustix::process::Signal;

use super::machine::processor_time;
use super::ovs::Ovs;
use super::{Options, wait_listening};

/// A started back-end listens within this time.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Frames of one burst of testpmd.
pub(super) const BURST: u16 = 32;

/// What the back-end does.
///
/// | role       | driver                | back-end      | counted at the driver          |
/// |------------|-----------------------|---------------|--------------------------------|
/// | `sink`     | `txonly`              | receives      | frames the back-end took       |
/// | `generate` | `rxonly`              | sends         | frames received                |
/// | `echo`     | `flowgen`             | sends back    | frames received                |
/// | `switch`   | two ports in `mac`    | two ports     | frames received on both ports  |
///
/// `switch` runs a closed loop: a fixed number of frames, half a ring for each port, goes round through the back-end in
/// both directions, with the ports' own MAC addresses as source and destination. The driver forwards what one port
/// receives to the other, so one process on one core both sends and receives, no ring ever overflows, and each address
/// stays on one port of a learning switch (`flowgen` would send one source address from both ports, and `txonly` never
/// receives).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Sink,
    Generate,
    Echo,
    Switch,
}

/// Whose back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// The program of this project
    Ringway,
    /// Another build of it, given with --baseline
    Baseline,
    /// Open vSwitch with DPDK
    Ovs,
    /// testpmd with `net_vhost` ports
    Dpdk,
}

impl Kind {
    /// Its name on the page.
    pub(super) fn side(self, role: Role) -> &'static str {
        match (self, role) {
            (Self::Ringway, _) => "ringway",
            (Self::Baseline, _) => "ringway, baseline",
            (Self::Ovs, _) => "OVS-DPDK",
            (Self::Dpdk, Role::Sink) => "testpmd rxonly",
            (Self::Dpdk, Role::Generate) => "testpmd txonly",
            (Self::Dpdk, Role::Echo) => "testpmd macswap",
            (Self::Dpdk, Role::Switch) => "testpmd io",
        }
    }

    /// Whether it can play a role; Open vSwitch is a switch only.
    pub(super) fn plays(self, role: Role) -> bool {
        self != Self::Ovs || role == Role::Switch
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.side(Role::Switch))
    }
}

/// The side under test.
pub(super) enum Backend {
    Ringway(Process),
    Dpdk(TestPmd),
    Ovs(Ovs),
}

/// What a back-end took to do its work, between two readings.
pub(super) struct Effort {
    /// The share of the time in which it had frames to move, as it counts itself.
    pub(super) busy: Option<f64>,
    /// Processors that it took.
    pub(super) processor: f64,
}

/// The first reading of two.
pub(super) struct Mark {
    at: Instant,
    time: Duration,
    /// Of those that count on.
    busy: Option<Duration>,
}

impl Backend {
    /// Starts it on its core; it listens on return.
    pub(super) fn start(
        options: &Options,
        kind: Kind,
        role: Role,
        size: u16,
        sockets: &[PathBuf],
    ) -> Result<Self> {
        let backend = match kind {
            Kind::Ringway | Kind::Baseline => {
                Self::Ringway(Process::start("ringway", &mut ringway(options, kind, role, size, sockets)?)?)
            }
            Kind::Dpdk => {
                let forward = match role {
                    Role::Sink => Forward::RxOnly,
                    Role::Generate => Forward::TxOnly,
                    Role::Echo => Forward::MacSwap,
                    Role::Switch => Forward::Io,
                };
                let core = options.common.backend_core;
                let traffic = Traffic { core, packet_size: size, burst: BURST, ..Traffic::new(forward) };
                let ports = NetVhost { sockets: sockets.to_vec(), queues: 1, client: false };
                Self::Dpdk(TestPmd::net_vhost(&ports, &traffic)?)
            }
            Kind::Ovs => {
                ensure!(role == Role::Switch, "Open vSwitch is a switch");
                Self::Ovs(Ovs::start(sockets, options.common.backend_core)?)
            }
        };
        for socket in sockets {
            wait_listening(socket, START_LIMIT, || backend.output())?;
        }
        Ok(backend)
    }

    /// Lets it go, once a front-end is attached.
    pub(super) fn start_traffic(&mut self) -> Result<()> {
        match self {
            Self::Ringway(_) | Self::Ovs(_) => Ok(()),
            Self::Dpdk(testpmd) => {
                testpmd.wait_link_up(START_LIMIT)?;
                testpmd.record_cycles()?;
                testpmd.start()
            }
        }
    }

    /// Begins to look at its effort.
    pub(super) fn mark(&mut self) -> Result<Mark> {
        let busy = match self {
            Self::Ovs(ovs) => {
                ovs.clear_stats()?;
                None
            }
            _ => self.busy_time()?,
        };
        Ok(Mark { at: Instant::now(), time: processor_time(self.pid())?, busy })
    }

    /// Its effort since.
    pub(super) fn since(&mut self, mark: &Mark) -> Result<Effort> {
        let processor_time = processor_time(self.pid())?.saturating_sub(mark.time);
        let processor = processor_time.as_secs_f64() / mark.at.elapsed().as_secs_f64();
        let busy = if let Self::Ovs(ovs) = self {
            Some(ovs.busy()?)
        } else {
            let busy = mark.busy.zip(self.busy_time()?);
            // Its answer may take a moment, at either end.
            let interval = mark.at.elapsed().as_secs_f64();
            busy.map(|(before, now)| now.saturating_sub(before).as_secs_f64() / interval)
        };
        Ok(Effort { busy, processor })
    }

    /// How long it was busy with frames since its start.
    fn busy_time(&mut self) -> Result<Option<Duration>> {
        match self {
            Self::Ringway(process) => Ok(counters(process)?.busy),
            Self::Dpdk(testpmd) => testpmd.busy_time(),
            Self::Ovs(_) => Ok(None),
        }
    }

    /// Its counters, if it is ours.
    pub(super) fn counters(&self) -> Result<Option<Counters>> {
        match self {
            Self::Ringway(process) => counters(process).map(Some),
            Self::Dpdk(_) | Self::Ovs(_) => Ok(None),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        match self {
            Self::Ringway(process) => process.pid(),
            Self::Dpdk(testpmd) => testpmd.pid(),
            Self::Ovs(ovs) => ovs.pid(),
        }
    }

    /// What it said.
    pub(super) fn output(&self) -> String {
        match self {
            Self::Ringway(process) => process.output(),
            Self::Dpdk(testpmd) => testpmd.log(),
            Self::Ovs(ovs) => ovs.output(),
        }
    }
}

/// The counters of a running ringway.
pub(super) fn counters(ringway: &Process) -> Result<Counters> {
    const LIMIT: Duration = Duration::from_secs(10);
    let from = ringway.output().len();
    ringway.signal(Signal::USR1)?;
    let end = ringway.wait_for_from(from, "\nall: delivered", LIMIT)?;
    // The rest of the last line.
    ringway.wait_for_from(end, "\n", LIMIT)?;
    Counters::parse(&ringway.output()[from..])
}

/// The ringway program in a role, on its core.
fn ringway(options: &Options, kind: Kind, role: Role, size: u16, sockets: &[PathBuf]) -> Result<Command> {
    let mut command = Command::new(find_program("taskset")?);
    command.arg("-c").arg(options.common.backend_core.to_string()).arg(options.program(kind)?);
    let uplink = match role {
        Role::Sink => "sink".to_owned(),
        Role::Generate => format!("generate:{size}"),
        Role::Echo => "echo".to_owned(),
        Role::Switch => {
            command.arg("switch");
            for (index, socket) in sockets.iter().enumerate() {
                command.arg("--port").arg(format!("p{index}={}", socket.display()));
            }
            return Ok(with_arguments(command, options));
        }
    };
    command.arg("net");
    command.arg(format!("--socket-path={}", sockets[0].display())).arg(format!("--uplink={uplink}"));
    Ok(with_arguments(command, options))
}

fn with_arguments(mut command: Command, options: &Options) -> Command {
    command.args(&options.common.ringway_arg);
    command
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;
    use super::*;

    #[test]
    fn ringway_in_each_role() {
        let options = options(&["--ringway=/r", "--backend-core=3", "--ringway-arg=--workers=1"]);
        let sockets = ["/s/0".into(), "/s/1".into()];
        let arguments = |role| -> String {
            let command = ringway(&options, Kind::Ringway, role, 128, &sockets).unwrap();
            command.get_args().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        let net = "-c 3 /r net --socket-path=/s/0";
        assert_eq!(arguments(Role::Sink), format!("{net} --uplink=sink --workers=1"));
        assert_eq!(arguments(Role::Generate), format!("{net} --uplink=generate:128 --workers=1"));
        assert_eq!(arguments(Role::Echo), format!("{net} --uplink=echo --workers=1"));
        assert_eq!(arguments(Role::Switch), "-c 3 /r switch --port p0=/s/0 --port p1=/s/1 --workers=1");
    }
}
