//! Simple devices as they run, for [`serve`].

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringway_memory::MemoryError;
use ringway_queue::QueueError;
use ringway_vhost::endpoint::Endpoint;
use ringway_vhost::handover::{EndpointState, FilesIn, FilesOut, HandoverError};
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::host::{Event, Host, HostState};
use super::{Plan, Question, Service};
use crate::ask::Desk;
use crate::serve::{self, Deadline, Interest};

/// Devices of a kind.
pub(crate) struct Server<S: Service> {
    units: Vec<Unit<S>>,
    desk: Option<Desk>,
}

/// A device and the place where front-ends attach to it.
struct Unit<S: Service> {
    name: String,
    endpoint: Endpoint<Host<S>>,
    reminder: Option<Reminder>,
}

/// The driver was told that the configuration has changed, and has not looked yet. User-Mode Linux takes one message from its
/// channel when several have come, and the others with the next: so it is told again, a few times.
struct Reminder {
    at: Instant,
    pause: Duration,
}

/// How long it is first waited for a driver to look, and how long at last.
const REMINDERS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Devices that stand still, for the successor.
#[derive(Serialize, Deserialize)]
pub(crate) struct ServerState<T> {
    units: Vec<UnitState<T>>,
}

#[derive(Serialize, Deserialize)]
struct UnitState<T> {
    name: String,
    service: T,
    device: HostState,
    endpoint: EndpointState,
}

impl<S: Service> serve::Server for Server<S> {
    type Plan = Plan<S::Settings>;
    type State = ServerState<S::State>;
    type Held = ();

    fn start(plan: Self::Plan) -> Result<Self> {
        let open = |unit: &super::UnitPlan| {
            let label = unit.label(S::KIND);
            let service = S::open(&label, &plan.settings).with_context(|| label.clone())?;
            Ok((label.clone(), Host::new(label, service)?))
        };
        // Who sees a socket can rely on what is behind it.
        let opened = plan.units.iter().map(open).collect::<Result<Vec<_>>>()?;
        let attach = |(unit, (label, host)): (&super::UnitPlan, (String, _))| {
            let source = unit.place.open(&label)?;
            let endpoint = Endpoint::new(label, source, host);
            Ok(Unit { name: unit.name.clone(), endpoint, reminder: None })
        };
        Ok(Self::new(plan.units.iter().zip(opened).map(attach).collect::<Result<_>>()?))
    }

    fn interests(&self) -> impl Iterator<Item = Interest<'_>> {
        let questions = self.desk.iter().flat_map(Desk::interests).map(|fd| (None, fd, PollFlags::IN));
        let units = self.units.iter().enumerate().flat_map(|(place, unit)| {
            let host = unit.endpoint.device();
            let kicks = std::iter::once((host.kicks(), PollFlags::IN));
            let fds = kicks.chain(unit.endpoint.interests()).chain(host.service().interests());
            fds.map(move |(fd, flags)| (Some(place), fd, flags))
        });
        questions.chain(units)
    }

    fn deadlines(&self) -> impl Iterator<Item = Deadline> {
        self.units.iter().enumerate().flat_map(|(place, unit)| {
            let host = unit.endpoint.device();
            let reminder = unit.reminder.as_ref().map(|reminder| reminder.at);
            let times = [unit.endpoint.next_try(), host.deadline(), host.service().deadline(), reminder];
            times.into_iter().flatten().map(move |at| (Some(place), at))
        })
    }

    fn turn(&mut self, parts: &[usize]) {
        let questions = self.desk.as_mut().map(Desk::questions).unwrap_or_default();
        for (Question { guest, question }, client) in questions {
            client.answer(self.find(guest.as_deref()).and_then(|unit| unit.answer(question)));
        }
        for &place in parts {
            if let Some(unit) = self.units.get_mut(place) {
                unit.turn();
            }
        }
    }

    fn is_spent(&self) -> bool {
        self.units.iter().all(|unit| unit.endpoint.is_spent())
    }

    fn counters(&self) -> String {
        let mut text = String::new();
        for Unit { name, endpoint, .. } in &self.units {
            let counters = endpoint.device().counters();
            let counters: Vec<_> = counters.iter().map(|(name, value)| format!("{name} {value}")).collect();
            _ = writeln!(text, "{} {name}: {}", S::KIND, counters.join(", "));
        }
        _ = writeln!(text, "all: {} of kind {}", self.units.len(), S::KIND);
        text
    }

    /// Each session ends when its endpoint is dropped.
    fn end(&mut self) {}

    fn suspend(&mut self) -> Result<()> {
        self.units.iter_mut().for_each(|unit| unit.endpoint.suspend());
        Ok(())
    }

    fn state<'s>(&'s self, _held: &'s (), files: &mut FilesOut<'s>) -> Result<Self::State, HandoverError> {
        let state = |unit: &'s Unit<S>| {
            let host = unit.endpoint.device();
            let (service, device) = (host.service().state(files), host.state());
            Ok(UnitState { name: unit.name.clone(), service, device, endpoint: unit.endpoint.state(files)? })
        };
        Ok(ServerState { units: self.units.iter().map(state).collect::<Result<_, HandoverError>>()? })
    }

    fn resume(&mut self, _held: ()) {
        self.units.iter_mut().for_each(|unit| unit.endpoint.resume());
    }

    fn hand_over(&mut self, _held: ()) {
        for unit in &mut self.units {
            unit.endpoint.hand_over();
            unit.endpoint.device_mut().service_mut().hand_over();
        }
    }

    fn restore(plan: Self::Plan, state: Self::State, mut files: FilesIn) -> Result<Self> {
        let names = plan.units.iter().map(|unit| &unit.name);
        ensure!(state.units.iter().map(|unit| &unit.name).eq(names), "the other server has other devices");
        let restore = |(unit, state): (&super::UnitPlan, UnitState<S::State>)| {
            let label = unit.label(S::KIND);
            let service = S::restore(&label, &plan.settings, state.service, &mut files);
            let mut host = Host::new(label.clone(), service.with_context(|| label.clone())?)?;
            host.restore(&state.device)?;
            // Until the other server is gone, no ring is touched here.
            host.hold();
            let endpoint = Endpoint::restore(label, state.endpoint, host, &mut files)?;
            anyhow::Ok(Unit { name: state.name, endpoint, reminder: None })
        };
        Ok(Self::new(plan.units.iter().zip(state.units).map(restore).collect::<Result<_>>()?))
    }

    fn take_over(&mut self) {
        for unit in &mut self.units {
            unit.endpoint.take_over();
            unit.endpoint.device_mut().service_mut().take_over();
            unit.endpoint.device_mut().release();
        }
    }
}

impl<S: Service> Server<S> {
    fn new(units: Vec<Unit<S>>) -> Self {
        Self { units, desk: S::COMMAND.map(Desk::open) }
    }

    /// The device of a guest; the only one there is, if none is named.
    fn find(&mut self, guest: Option<&str>) -> Result<&mut Unit<S>> {
        let all = self.units.iter().map(|unit| unit.name.as_str()).collect::<Vec<_>>().join(", ");
        match (guest, &mut self.units[..]) {
            (None, [unit]) => Ok(unit),
            (None, _) => bail!("say which guest; there are {all}"),
            (Some(name), units) => {
                let unit = units.iter_mut().find(|unit| unit.name == name);
                unit.with_context(|| format!("there is no guest {name:?}; there are {all}"))
            }
        }
    }
}

impl<S: Service> Unit<S> {
    fn answer(&mut self, question: S::Question) -> Result<S::Answer> {
        let answer = self.endpoint.device_mut().service_mut().answer(question);
        // What it changed is told, and done.
        self.turn();
        answer
    }

    /// Does what can be done now: what the front-end said first, then rings.
    fn turn(&mut self) {
        self.endpoint.turn();
        for event in self.endpoint.device_mut().turn() {
            self.obey(&event);
        }
        if self.endpoint.device_mut().service_mut().take_config_change() {
            self.tell_config_changed(REMINDERS.0);
        }
        if self.endpoint.device().take_config_read() {
            self.reminder = None;
        }
        if let Some(Reminder { pause, .. }) = self.reminder.take_if(|reminder| Instant::now() >= reminder.at)
            && pause < REMINDERS.1
        {
            self.tell_config_changed(pause * 2);
        }
    }

    /// Tells it, and once more after a pause.
    fn tell_config_changed(&mut self, pause: Duration) {
        self.endpoint.device().take_config_read();
        self.endpoint.config_changed();
        self.reminder = Some(Reminder { at: Instant::now() + pause, pause });
    }

    /// Acts on what happened to a ring. Each is one line of the log.
    fn obey(&mut self, event: &Event) {
        match *event {
            Event::QueueFailed { index, ref error } => {
                warn!(
                    "{}: vring {index} is stopped until the driver resets it: {error}",
                    self.endpoint.name()
                );
                self.endpoint.device_mut().need_reset();
                self.endpoint.config_changed();
                if let QueueError::Memory(MemoryError::Denied { iova, access }) = *error {
                    self.endpoint.access_failed(iova, access);
                }
            }
            Event::MemoryFault => {
                self.endpoint.device_mut().lose_memory();
                self.endpoint.cut_off("the front-end took away memory that it had shared");
            }
            Event::TranslationMissing(missing) => self.endpoint.ask_translation(missing),
        }
    }
}
