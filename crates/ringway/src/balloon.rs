//! `ringway balloon`: memory that a guest gives up goes back to the host, and its target is set while it runs.
//!
//! ```text
//!   ringway balloon-target ──► target ──► driver ──inflate──► pages ──┐
//!                                         driver ──report───► pages ──┴─► removed from the guest's file
//!                                                ◄─deflate──  (a page that is used again comes by itself)
//! ```

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use ringway_device::balloon::{self, BalloonDevice, Role, Statistics};
use ringway_memory::{GuestSlice, MemoryTable};
use ringway_queue::{Burst, DeviceQueue, QueueError};
use ringway_spec::balloon::PAGE_SIZE;
use ringway_vhost::handover::{FilesIn, FilesOut};
use rustix::fs::fstat;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::simple::{Plan, Question, Served, Server, Service};
use crate::{args, ask, serve};

/// How it is asked ([`ask`]).
const COMMAND: &str = "balloon-target";
/// How long a server may take to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the command waits for statistics of now.
const STATISTICS_LIMIT: Duration = Duration::from_secs(1);
/// The names of statistics, by their tags (5.5.6.4).
const STATISTICS: [&str; 10] = [
    "swapped in",
    "swapped out",
    "major faults",
    "minor faults",
    "free",
    "total",
    "available",
    "caches",
    "huge pages allocated",
    "huge pages failed",
];

/// `ringway balloon`.
pub(crate) fn balloon(args: &args::Balloon) -> Result<()> {
    serve::run::<Server<Balloon>>(|| {
        let args::Balloon { target, no_reporting, deflate_on_oom, .. } = *args;
        let settings = Settings { target, reporting: !no_reporting, deflate_on_oom };
        Plan::several(Balloon::KIND, &args.attach, &args.guests, settings)
    })
}

/// `ringway balloon-target`.
pub(crate) fn set_target(args: &args::BalloonTarget) -> Result<()> {
    let ask = |size| {
        let question = Question { guest: args.guest.clone(), question: Wish { size } };
        ask::question::<Told>(COMMAND, args.pid, &question, "has balloons", (LIMIT, "it may be stopped"))
    };
    let mut told = ask(args.size)?;
    // The question was also one to the driver.
    let deadline = Instant::now() + STATISTICS_LIMIT;
    let before = told.statistics_heard;
    while told.statistics_asked && told.statistics_heard == before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        told = ask(None)?;
    }
    print!("{told}");
    Ok(())
}

/// What the command line says of it.
pub(crate) struct Settings {
    target: u64,
    reporting: bool,
    deflate_on_oom: bool,
}

/// What is asked for: another target, or only how it is.
#[derive(Serialize, Deserialize)]
pub(crate) struct Wish {
    size: Option<u64>,
}

/// How it is. All are bytes.
#[derive(Serialize, Deserialize)]
pub(crate) struct Told {
    target: u64,
    actual: u64,
    /// The guest's memory, and how much of it the host has given.
    memory: Option<(u64, u64)>,
    released: u64,
    /// By their names; and whether the driver was asked for them, and how often it has told.
    statistics: Vec<(String, u64)>,
    statistics_asked: bool,
    statistics_heard: u64,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { target, actual, memory, released, statistics, .. } = self;
        writeln!(f, "balloon: target {target} bytes, actual {actual} bytes")?;
        if let Some((memory, host)) = memory {
            writeln!(
                f,
                "memory: {memory} bytes, of the host's {host} bytes, released so far {released} bytes"
            )?;
        }
        for (name, value) in statistics {
            writeln!(f, "guest: {name} {value}")?;
        }
        Ok(())
    }
}

/// A balloon of one guest.
pub(crate) struct Balloon {
    device: BalloonDevice,
    /// Bytes that are wanted, whatever the guest has.
    wish: u64,
    /// The guest's, while a ring runs.
    memory: Option<Arc<MemoryTable>>,
    removal: Removal,
    statistics: Statistics,
    /// How often the driver has told, and whether it is to.
    heard: u64,
    is_wanted: bool,
    has_statistics: bool,
    counters: Counters,
    has_new_config: bool,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
struct Counters {
    inflated: u64,
    deflated: u64,
    reported: u64,
    refused: u64,
}

/// How pages go back to the host.
struct Removal {
    /// How messages call the device.
    name: String,
    /// A failure was told.
    is_told: bool,
    released: u64,
    failed: u64,
}

/// What another process goes on with.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    wish: u64,
    actual: u32,
    poison: u32,
    served: [usize; 2],
    is_read: bool,
    counters: Counters,
    released: u64,
    failed: u64,
}

impl Removal {
    /// Removes a range, as far as the kernel takes it.
    fn remove(&mut self, bytes: GuestSlice<'_>) {
        let len = bytes.len() as u64;
        match ringway_memory::io::remove(bytes) {
            Ok(()) => self.released += len,
            Err(error) => {
                self.failed += len;
                self.tell(&error);
            }
        }
    }

    fn tell(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_told, true) {
            warn!("{}: memory that the guest gives stays where it is: {error}", self.name);
        }
    }
}

impl Balloon {
    /// Has the driver told the target, as much of it as the guest has.
    fn set_target(&mut self) {
        let most = self.memory.as_ref().map_or(u64::MAX, |memory| size(memory));
        let pages = u32::try_from(self.wish.min(most) / PAGE_SIZE).unwrap_or(u32::MAX);
        self.has_new_config |= self.device.set_target(pages);
    }
}

/// Bytes of a guest's memory.
fn size(memory: &MemoryTable) -> u64 {
    memory.regions().iter().map(ringway_memory::Region::len).sum()
}

/// Bytes that the files of a guest's memory take up.
fn allocated(memory: &MemoryTable) -> u64 {
    let mut files = HashSet::new();
    let stats = memory.regions().iter().filter_map(|region| fstat(region.file()?.0).ok());
    let new = stats.filter(|stat| files.insert((stat.st_dev, stat.st_ino)));
    new.map(|stat| u64::try_from(stat.st_blocks).unwrap_or_default() * 512).sum()
}

impl Service for Balloon {
    const KIND: &'static str = "balloon";
    type Model = BalloonDevice;
    type Settings = Settings;
    type State = State;
    const COMMAND: Option<&'static str> = Some(COMMAND);
    type Question = Wish;
    type Answer = Told;

    fn open(name: &str, settings: &Settings) -> Result<Self> {
        let device = BalloonDevice::new(balloon::Settings {
            statistics: true,
            deflate_on_oom: settings.deflate_on_oom,
            page_poison: true,
            page_reporting: settings.reporting,
            ..balloon::Settings::default()
        });
        let removal = Removal { name: name.to_owned(), is_told: false, released: 0, failed: 0 };
        let mut balloon = Self {
            device,
            wish: settings.target,
            memory: None,
            removal,
            statistics: Statistics::default(),
            heard: 0,
            is_wanted: false,
            has_statistics: false,
            counters: Counters::default(),
            has_new_config: false,
        };
        balloon.set_target();
        Ok(balloon)
    }

    fn model(&self) -> &BalloonDevice {
        &self.device
    }

    fn model_mut(&mut self) -> &mut BalloonDevice {
        &mut self.device
    }

    fn serve(
        &mut self,
        index: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Served, QueueError> {
        let Self { device, removal, counters, .. } = self;
        let mut is_blocked = false;
        let call = match device.role(index) {
            Some(Role::Inflate) => {
                let memory = Arc::clone(queue.memory());
                device.inflate(queue, burst, &mut |range| {
                    counters.inflated += range.len;
                    memory.slices(range.addr, range.len).for_each(|bytes| removal.remove(bytes));
                })?
            }
            Some(Role::Deflate) => {
                device.deflate(queue, burst, &mut |range| counters.deflated += range.len)?
            }
            Some(Role::Reports) => device.reports(queue, burst, &mut |bytes| {
                counters.reported += bytes.len() as u64;
                removal.remove(bytes);
            })?,
            Some(Role::Statistics) => {
                if let Some(statistics) = device.statistics(queue, burst)? {
                    self.statistics = statistics;
                    self.heard += 1;
                }
                // Its buffer stays until they are wanted anew.
                is_blocked = true;
                std::mem::take(&mut self.is_wanted) && device.ask(queue, burst)?
            }
            Some(Role::Hints) | None => false,
        };
        Ok(Served { call, is_blocked })
    }

    fn started(&mut self, index: u16, queue: &DeviceQueue) {
        self.has_statistics |= self.device.role(index) == Some(Role::Statistics);
        self.memory = Some(Arc::clone(queue.memory()));
        self.set_target();
    }

    fn reset(&mut self) {
        self.memory = None;
        (self.is_wanted, self.has_statistics, self.statistics) = (false, false, Statistics::default());
        self.set_target();
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.has_new_config)
    }

    fn answer(&mut self, wish: Wish) -> Result<Told> {
        if let Some(size) = wish.size {
            info!("{}: the target is {size} bytes", self.removal.name);
            self.wish = size;
            self.set_target();
        }
        let named = |(tag, value): (u16, u64)| Some(((*STATISTICS.get(usize::from(tag))?).to_owned(), value));
        let told = Told {
            target: u64::from(self.device.target()) * PAGE_SIZE,
            actual: u64::from(self.device.actual()) * PAGE_SIZE,
            memory: self.memory.as_ref().map(|memory| (size(memory), allocated(memory))),
            released: self.removal.released,
            statistics: self.statistics.iter().filter_map(named).collect(),
            statistics_asked: self.has_statistics,
            statistics_heard: self.heard,
        };
        self.is_wanted = true;
        Ok(told)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { inflated, deflated, reported, refused } = self.counters;
        vec![
            ("target", u64::from(self.device.target()) * PAGE_SIZE),
            ("actual", u64::from(self.device.actual()) * PAGE_SIZE),
            ("inflated", inflated),
            ("deflated", deflated),
            ("reported", reported),
            ("released", self.removal.released),
            ("not released", self.removal.failed),
            ("refused", refused + self.device.refused()),
            ("memory", self.memory.as_ref().map_or(0, |memory| size(memory))),
            ("host memory", self.memory.as_ref().map_or(0, |memory| allocated(memory))),
        ]
    }

    fn state<'s>(&'s self, _files: &mut FilesOut<'s>) -> State {
        let balloon::State { actual, poison, served, is_read } = self.device.state();
        let refused = self.counters.refused + self.device.refused();
        let counters = Counters { refused, ..self.counters };
        let Removal { released, failed, .. } = self.removal;
        State { wish: self.wish, actual, poison, served, is_read, counters, released, failed }
    }

    fn restore(name: &str, settings: &Settings, state: State, _files: &mut FilesIn) -> Result<Self> {
        let mut balloon = Self::open(name, settings)?;
        let State { wish, actual, poison, served, is_read, counters, released, failed } = state;
        balloon.device.restore(&balloon::State { actual, poison, served, is_read });
        (balloon.wish, balloon.counters) = (wish, counters);
        (balloon.removal.released, balloon.removal.failed) = (released, failed);
        balloon.set_target();
        // The other server may not have told it yet.
        balloon.has_new_config = true;
        Ok(balloon)
    }
}
