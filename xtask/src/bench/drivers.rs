//! Rows with Ringway's own network driver next to DPDK's, both on the driver's core and with the same back-end: Ringway's.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringway_testkit::process::Process;
use serde::Deserialize;

use super::Options;
use super::backends::{Backend, Kind, Role};
use super::frames::{self, Setup};
use super::results::{Detail, Figure};
use super::sampling::{Cell, Taken, take};

/// For the driver to be attached, or to answer after its time.
const LIMIT: Duration = Duration::from_secs(15);
/// What it says before its figures.
const MEASURING: &str = "measuring\n";

/// What the driver counted.
#[derive(Debug, PartialEq, Deserialize)]
struct Report {
    sent: f64,
    received: f64,
    full: f64,
    seconds: f64,
    busy: f64,
}

/// Each role in which the back-end has no other peer, with every kind of rings, at the first size.
pub(super) fn measure(options: &Options, topic: &str) -> Taken {
    let mut taken = Taken::default();
    let roles = [(Role::Sink, "sent"), (Role::Generate, "received"), (Role::Echo, "echoed")];
    for (role, title) in roles {
        for (size, rings) in frames::shortest(options) {
            let setup = Setup { role, kind: Kind::Ringway, rings, size, huge_pages: false, idle: 0 };
            let case = format!("{size} B {title}, {rings}");
            let ours = Cell::new(case.clone(), "ringway's driver", move || sample(options, setup));
            let dpdk = Cell::new(case, "DPDK virtio_user", move || frames::sample(options, setup));
            taken.extend(take(topic, vec![ours, dpdk], options.samples()));
        }
    }
    taken
}

/// Starts the back-end and the driver, measures once, and ends them.
fn sample(options: &Options, setup: Setup) -> Result<Figure> {
    let Setup { role, kind, size, .. } = setup;
    let directory = tempfile::tempdir().context("a directory for a socket")?;
    let sockets = [directory.path().join("p0")];
    let mut backend = Backend::start(options, kind, role, size, &sockets)?;
    let driver = Process::start("net-driver", &mut command(options, setup, &sockets[0])?)?;
    let ((report, effort), distance) = options.common.watch().during(|| {
        let from = driver.wait_for(MEASURING, LIMIT)?;
        let mark = backend.mark()?;
        let end = driver.wait_for_from(from, "\n", options.interval() + LIMIT)?;
        let effort = backend.since(&mark)?;
        let report = serde_json::from_str(&driver.output()[from..end]).context("what the driver says")?;
        Ok::<(Report, _), anyhow::Error>((report, effort))
    })?;
    let Report { sent, received, full, seconds, busy } = report;
    let moved = if role == Role::Sink { sent } else { received };
    ensure!(moved > 0.0, "no frame moved; the back-end said:\n{}", backend.output());
    let frames_per_second = moved / seconds;
    let mut details = BTreeMap::from([(Detail::NanosPerFrame, 1e9 * effort.processor / frames_per_second)]);
    details.extend(effort.busy.map(|busy| (Detail::Busy, 100.0 * busy)));
    let limit = if role == Role::Generate {
        details.insert(Detail::FrontBusy, 100.0 * busy);
        frames::limit_by_share(Some(busy), effort.busy)
    } else {
        let full = full / (sent + full);
        details.insert(Detail::RingFull, 100.0 * full);
        Some(frames::limit_by_full_ring(full))
    };
    Ok(Figure { value: frames_per_second / 1e6, distance, limit, details })
}

/// What the driver is told.
fn command(options: &Options, setup: Setup, socket: &Path) -> Result<Command> {
    let Setup { role, rings, size, .. } = setup;
    let role = match role {
        Role::Sink => "sink",
        Role::Generate => "generate",
        Role::Echo => "echo",
        Role::Switch => anyhow::bail!("the driver has one port"),
    };
    let mut command = Command::new(&options.net_driver);
    command.arg("--socket").arg(socket).args(["--role", role]);
    command.args(["--core", &options.common.driver_core.to_string(), "--size", &size.to_string()]);
    command.args(["--queue-size", &options.queue_size.to_string()]);
    command.args(["--time", &options.interval().as_millis().to_string()]);
    command.args(rings.is_packed().then_some("--packed"));
    command.args(rings.is_in_order().then_some("--in-order"));
    command.args(options.mrg_rxbuf.then_some("--mrg-rxbuf"));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::super::frames::Rings;
    use super::super::tests::options;
    use super::*;

    #[test]
    fn what_the_driver_is_told() {
        let options = options(&["--net-driver=/d", "--driver-core=2", "--seconds=0.5", "--mrg-rxbuf"]);
        let setup = Setup {
            role: Role::Echo,
            kind: Kind::Ringway,
            rings: Rings::PackedVectorized,
            size: 64,
            huge_pages: false,
            idle: 0,
        };
        let told = command(&options, setup, Path::new("/s")).unwrap();
        let told: Vec<_> = told.get_args().map(|argument| argument.to_str().unwrap()).collect();
        assert_eq!(
            told.join(" "),
            "--socket /s --role echo --core 2 --size 64 --queue-size 256 --time 500 --packed --in-order --mrg-rxbuf"
        );
        let split = Setup { rings: Rings::Split, role: Role::Sink, ..setup };
        let told = command(&options, split, Path::new("/s")).unwrap();
        assert!(told.get_args().all(|argument| argument != "--packed" && argument != "--in-order"));
    }

    #[test]
    fn what_the_driver_says() {
        let line = r#"{"sent":5,"received":3,"full":1,"seconds":0.5,"busy":0.25}"#;
        let report: Report = serde_json::from_str(line).unwrap();
        assert_eq!(report, Report { sent: 5.0, received: 3.0, full: 1.0, seconds: 0.5, busy: 0.25 });
    }
}
