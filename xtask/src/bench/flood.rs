//! A guest's pings, calm and beside two other guests that flood the switch with all that they can send.
//!
//! The server has a core to itself. The guests share the other, where those that flood are the least important: what is
//! compared is how the server shares itself, not how the host's scheduler does.

use std::fs;

use anyhow::{Context, Result};
use ringway_testkit::dpdk::{Forward, TestPmd, Traffic, VirtioUser};
use ringway_testkit::guest::{BOOT_LIMIT, Guest, Images, ensure_images};
use ringway_testkit::server::Server;
use rustix::process::{Pid, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::Options;
use super::guests::{configure, pings, uml_pair};
use super::results::Figure;
use super::sampling::{Cell, Taken, take};

const ADDRESSES: [&str; 2] = ["10.9.0.2", "10.9.0.3"];
/// Whom the two that flood send to: each other.
const FLOOD: [&str; 2] = ["02:00:00:00:03:00", "02:00:00:00:03:01"];

/// Pings between two guests while two others are quiet, and while they flood.
pub(super) fn fairness(options: &Options, topic: &str) -> Result<Taken> {
    let images = ensure_images()?;
    let bench = std::cell::RefCell::new(Bench::start(options, &images)?);
    let cell = |(side, floods): (&str, bool)| {
        let bench = &bench;
        Cell::new("UML guest to guest", side, move || bench.borrow_mut().sample(options, floods))
    };
    Ok(take(topic, [("calm", false), ("beside a flood", true)].map(cell).into(), options.samples()))
}

struct Bench {
    guests: [Guest; 2],
    server: Server,
}

impl Bench {
    fn start(options: &Options, images: &Images) -> Result<Self> {
        let arguments: Vec<_> = options.common.ringway_arg.iter().map(String::as_str).collect();
        let ports = ["a,mac=02:00:00:00:02:00", "b,mac=02:00:00:00:02:01", "c", "d"];
        let server = on_core(options.common.backend_core, || {
            Server::switch(&options.common.ringway, &ports, &arguments)
        })?;
        let mut guests = on_core(options.common.driver_core, || uml_pair(&server, images))?;
        for (guest, address) in guests.iter_mut().zip(ADDRESSES) {
            guest.wait_ready(BOOT_LIMIT)?;
            configure(guest, address)?;
        }
        Ok(Self { guests, server })
    }

    fn sample(&mut self, options: &Options, floods: bool) -> Result<Figure> {
        let _flood = floods.then(|| flood(options, &self.server)).transpose()?;
        Ok(pings(options, &mut self.guests[0], ADDRESSES[1])?.worst())
    }
}

/// Starts the two that flood.
fn flood(options: &Options, server: &Server) -> Result<TestPmd> {
    let ports = VirtioUser {
        sockets: vec![server.socket("c"), server.socket("d")],
        macs: FLOOD.map(String::from).to_vec(),
        ..VirtioUser::new("")
    };
    let traffic = Traffic {
        peers: FLOOD.iter().rev().map(ToString::to_string).collect(),
        ..Traffic::new(Forward::TxOnly).on_core(options.common.driver_core)
    };
    let mut testpmd = TestPmd::virtio_user(&ports, &traffic)?;
    testpmd.start()?;
    for thread in fs::read_dir(format!("/proc/{}/task", testpmd.pid())).context("testpmd's threads")? {
        let thread = thread?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        setpriority_process(thread, 19).context("make testpmd the least important")?;
    }
    Ok(testpmd)
}

/// Starts processes that stay on a core.
fn on_core<T>(core: usize, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None)?;
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("pin to core {core}"))?;
    let started = start();
    sched_setaffinity(None, &before)?;
    started
}
