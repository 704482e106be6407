//! `ringway console`: ports that lead to terminals, sockets and files.
//!
//! ```text
//!   driver ──transmit──► port ──► end       what it does not take now stays in the ring
//!          ◄──receive─── port ◄── end       what the driver has no room for stays where it is
//!          ◄──control──►  who is there, how large, by which name
//! ```
//!
//! Nothing is kept in between. What is sent to an end where nobody is, is dropped: a driver's kernel does not wait for somebody
//! to look at its console.

mod end;
mod pty;
mod socket;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ringway_device::console::{ConsoleDevice, PortSettings, Role, Settings as ModelSettings, Size};
use ringway_queue::{Burst, DeviceQueue, QueueError};
use ringway_vhost::handover::{FilesIn, FilesOut};
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use self::end::{End, EndState};
use crate::args::{self, ConsolePort, EndArg};
use crate::serve;
use crate::simple::{Nothing, Plan, Served, Server, Service};

/// How large a terminal is that does not say so.
const USUAL: Size = Size { cols: 80, rows: 24 };

/// The most ports: a vring is named by 8 bits, each port has two, and two are for messages.
const MAX_PORTS: usize = 127;

/// `ringway console`.
pub(crate) fn console(args: &args::Console) -> Result<()> {
    serve::run::<Server<Console>>(|| {
        ensure!(!args.ports.is_empty(), "say what its ports are: --port=NAME=pty, for example");
        ensure!(args.ports.len() <= MAX_PORTS, "a console has {MAX_PORTS} ports at most");
        let mut names = HashSet::new();
        for port in &args.ports {
            ensure!(names.insert(&port.name), "{}: the name is given twice", port.label());
        }
        let settings = Settings { ports: args.ports.clone(), iommu: args.iommu };
        Plan::one(Console::KIND, &args.attach, settings)
    })
}

/// What the command line says of it.
pub(crate) struct Settings {
    ports: Vec<ConsolePort>,
    iommu: bool,
}

/// A console and what its ports lead to.
pub(crate) struct Console {
    device: ConsoleDevice,
    ports: Vec<Port>,
    has_new_config: bool,
}

struct Port {
    /// How messages call it.
    name: String,
    is_console: bool,
    end: Box<dyn End>,
    /// What of its streams would go on if the end could.
    wanted: PollFlags,
    size: Option<Size>,
    is_open: bool,
    /// A failure was told.
    is_told: bool,
    counters: Counters,
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
struct Counters {
    sent: u64,
    received: u64,
    dropped: u64,
}

/// What another process goes on with.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    is_ready: bool,
    ports: Vec<PortState>,
}

#[derive(Serialize, Deserialize)]
struct PortState {
    name: String,
    end: EndState,
    told: u8,
    passed_on: usize,
    counters: Counters,
}

impl Console {
    fn new(settings: &Settings, ends: Vec<Box<dyn End>>) -> Result<Self> {
        let is_single = ends.len() == 1;
        let port = |(arg, end): (&ConsolePort, Box<dyn End>)| Port {
            name: arg.label(),
            is_console: false,
            end,
            wanted: PollFlags::empty(),
            size: None,
            is_open: false,
            is_told: false,
            counters: Counters::default(),
        };
        let mut ports: Vec<_> = settings.ports.iter().zip(ends).map(port).collect();
        ports[0].is_console = true;
        let is_terminal = matches!(settings.ports[0].end, EndArg::Pty(_) | EndArg::Stdio);
        let model = ModelSettings {
            ports: (settings.ports.iter().zip(&ports))
                .map(|(arg, port)| PortSettings {
                    name: (!is_single).then(|| arg.name.clone()),
                    is_console: port.is_console,
                })
                .collect(),
            max_ports: u16::try_from(ports.len()).unwrap_or(u16::MAX),
            size: is_terminal.then(|| ports[0].end.size().unwrap_or(USUAL)),
            iommu: settings.iommu,
        };
        Ok(Self { device: ConsoleDevice::new(model)?, ports, has_new_config: false })
    }

    /// Looks at all ends: who is there, and how large they are.
    fn look(&mut self) {
        for (id, port) in (0..).zip(&mut self.ports) {
            port.end.turn();
            let is_open = port.end.is_open();
            if is_open != port.is_open {
                info!("{}: {}", port.name, if is_open { "somebody is there" } else { "nobody is there" });
                port.is_open = is_open;
            }
            // A console is there for its guest, whoever looks at it.
            self.device.set_open(id, is_open || port.is_console);
            if let Some(size) = port.end.size().filter(|size| port.size != Some(*size)) {
                port.size = Some(size);
                self.has_new_config |= self.device.resize(id, size);
            }
        }
    }
}

impl Port {
    /// Passes on what the driver sent; returns how much of it is done with.
    fn write(&mut self, bytes: &[u8]) -> usize {
        if !self.end.is_open() {
            return self.drop(bytes);
        }
        match self.end.write(bytes) {
            Ok(written) => {
                self.counters.received += written as u64;
                written
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                self.wanted |= PollFlags::OUT;
                0
            }
            Err(error) => {
                if self.end.is_open() && !std::mem::replace(&mut self.is_told, true) {
                    warn!("{}: what is sent to it is dropped: {error}", self.name);
                }
                self.drop(bytes)
            }
        }
    }

    fn drop(&mut self, bytes: &[u8]) -> usize {
        self.counters.dropped += bytes.len() as u64;
        bytes.len()
    }

    /// Fetches what the driver is to get.
    fn read(&mut self, to: &mut [u8]) -> usize {
        // Nothing, an end, or a failure: there may be something later.
        let read = self.end.read(to).unwrap_or(0);
        self.counters.sent += read as u64;
        if read == 0 {
            self.wanted |= PollFlags::IN;
        }
        read
    }
}

impl Service for Console {
    const KIND: &'static str = "console";
    type Model = ConsoleDevice;
    type Settings = Settings;
    type State = State;
    type Question = Nothing;
    type Answer = Nothing;

    fn open(_name: &str, settings: &Settings) -> Result<Self> {
        let open = |arg: &ConsolePort| end::open(&arg.label(), &arg.end).with_context(|| arg.label());
        Self::new(settings, settings.ports.iter().map(open).collect::<Result<_>>()?)
    }

    fn model(&self) -> &ConsoleDevice {
        &self.device
    }

    fn model_mut(&mut self) -> &mut ConsoleDevice {
        &mut self.device
    }

    fn serve(
        &mut self,
        index: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Served, QueueError> {
        let Self { device, ports, .. } = self;
        let mut is_blocked = false;
        let call = match device.role(index) {
            Some(Role::Transmit(id)) if usize::from(id) < ports.len() => {
                let port = &mut ports[usize::from(id)];
                port.wanted -= PollFlags::OUT;
                device.transmit(id, queue, burst, &mut |bytes| {
                    let taken = port.write(bytes);
                    is_blocked = taken < bytes.len();
                    if is_blocked {
                        port.wanted |= PollFlags::OUT;
                    }
                    taken
                })?
            }
            Some(Role::Receive(id)) if usize::from(id) < ports.len() => {
                let port = &mut ports[usize::from(id)];
                port.wanted -= PollFlags::IN;
                // A driver that has not opened the port says when it does.
                is_blocked = !device.is_open_in_driver(id);
                device.receive(id, queue, burst, &mut |to| {
                    let filled = port.read(to);
                    is_blocked = filled == 0;
                    filled
                })?
            }
            Some(Role::ControlReceive) => {
                // There may be something to say at any time.
                is_blocked = true;
                device.control_receive(queue, burst)?
            }
            Some(Role::ControlTransmit) => device.control_transmit(queue, burst, &mut |_| {})?,
            _ => false,
        };
        Ok(Served { call, is_blocked })
    }

    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.ports.iter().flat_map(|port| port.end.interests(port.wanted)).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        self.ports.iter().filter_map(|port| port.end.deadline()).min()
    }

    fn reset(&mut self) {
        self.ports.iter_mut().for_each(|port| port.wanted = PollFlags::empty());
    }

    fn turn(&mut self) {
        self.look();
        let emergency: Vec<_> = self.device.emergency_bytes().collect();
        if !emergency.is_empty() {
            let port = &mut self.ports[0];
            let written = port.write(&emergency);
            port.drop(&emergency[written..]);
        }
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.has_new_config)
    }

    fn answer(&mut self, question: Nothing) -> Result<Nothing> {
        Ok(question)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let sum = |of: fn(&Counters) -> u64| self.ports.iter().map(|port| of(&port.counters)).sum();
        vec![
            ("received", sum(|counters| counters.received)),
            ("sent", sum(|counters| counters.sent)),
            ("dropped", sum(|counters| counters.dropped)),
            ("refused messages", self.device.refused()),
        ]
    }

    fn state<'s>(&'s self, files: &mut FilesOut<'s>) -> State {
        let known = self.device.state();
        let ports = self.ports.iter().zip(known.ports).map(|(port, known)| PortState {
            name: port.name.clone(),
            end: port.end.state(files),
            told: known.told,
            passed_on: known.passed_on,
            counters: port.counters,
        });
        State { is_ready: known.is_ready, ports: ports.collect() }
    }

    fn restore(_name: &str, settings: &Settings, state: State, files: &mut FilesIn) -> Result<Self> {
        let names = settings.ports.iter().map(ConsolePort::label);
        ensure!(
            names.eq(state.ports.iter().map(|port| port.name.clone())),
            "the other server has other ports"
        );
        let mut ends = Vec::new();
        let mut known = ringway_device::console::State { is_ready: state.is_ready, ports: Vec::new() };
        let mut counters = Vec::new();
        for (arg, port) in settings.ports.iter().zip(state.ports) {
            ends.push(end::restore(&arg.end, port.end, files).with_context(|| arg.label())?);
            let PortState { told, passed_on, .. } = port;
            known.ports.push(ringway_device::console::PortState { told, passed_on });
            counters.push(port.counters);
        }
        let mut console = Self::new(settings, ends)?;
        console.device.restore(&known);
        // A size that the other server had not seen yet is not known to be new here.
        console.has_new_config = true;
        for (port, counters) in console.ports.iter_mut().zip(counters) {
            port.counters = counters;
        }
        Ok(console)
    }

    fn hand_over(&mut self) {
        self.ports.iter_mut().for_each(|port| port.end.own(false));
    }

    fn take_over(&mut self) {
        self.ports.iter_mut().for_each(|port| port.end.own(true));
    }
}
