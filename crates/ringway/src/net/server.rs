//! The switch or the one device as it runs: its control thread, which is the program's main one.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use ringway_memory::MemoryError;
use ringway_net::control::GuestDevice;
use ringway_net::handover::{DeviceState, HeldPlane, PlaneState};
use ringway_net::plane::{Plane, PortSpec};
use ringway_net::{Event, Uplink};
use ringway_queue::QueueError;
use ringway_vhost::endpoint::Endpoint;
use ringway_vhost::handover::{EndpointState, FilesIn, FilesOut, HandoverError};
use rustix::event::PollFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::Plan;
use crate::args::UplinkArg;
use crate::capture::Captures;
use crate::serve::{Deadline, Interest, Server};

/// Ports, workers and captures.
pub(crate) struct NetServer {
    /// The guests'.
    endpoints: Vec<Endpoint<GuestDevice>>,
    plane: Plane,
    /// The ports', in the plane's order; the guests' come first.
    names: Vec<String>,
    /// Last: they end when the workers have.
    captures: Captures,
}

/// A server that stands still, for its successor.
#[derive(Serialize, Deserialize)]
pub(crate) struct NetState {
    /// The guests' ports, in order.
    ports: Vec<Port>,
    plane: PlaneState,
}

#[derive(Serialize, Deserialize)]
struct Port {
    name: String,
    device: DeviceState,
    endpoint: EndpointState,
}

impl Server for NetServer {
    type Plan = Plan;
    type State = NetState;
    type Held = HeldPlane;

    fn start(plan: Plan) -> Result<Self> {
        let open = |uplink: &UplinkArg| {
            let opened = Uplink::open(&uplink.spec, plan.options.workers)?;
            if let Some(mac) = uplink.mac {
                uplink.spec.set_mac(mac)?;
            }
            anyhow::Ok(opened)
        };
        let uplinks = plan.uplinks.iter().map(open).collect::<Result<_>>()?;
        let open = |guest: &super::Guest| guest.place.open(&format!("port {}", guest.name));
        let sources = plan.guests.iter().map(open).collect::<Result<Vec<_>>>()?;
        let plane = Plane::start(plan.ports(uplinks), &plan.options).context("cannot start the workers")?;
        let names = plan.names();
        let captures = Captures::start(&plan.captures, &names, &plane, false)?;
        let endpoints = plan.devices(&plane).into_iter().zip(sources).zip(&names);
        let endpoints = endpoints
            .map(|((device, source), name)| Endpoint::new(format!("port {name}"), source, device))
            .collect();
        Ok(Self { endpoints, plane, names, captures })
    }

    fn interests(&self) -> impl Iterator<Item = Interest<'_>> {
        let sockets = self.endpoints.iter().enumerate().flat_map(|(port, endpoint)| {
            endpoint.interests().map(move |(fd, flags)| (Some(port), fd, flags))
        });
        let own = std::iter::once(self.plane.event_fd()).chain(self.captures.interests());
        sockets.chain(own.map(|fd| (None, fd, PollFlags::IN)))
    }

    fn deadlines(&self) -> impl Iterator<Item = Deadline> {
        let endpoints = self.endpoints.iter().enumerate();
        endpoints.filter_map(|(port, endpoint)| Some((Some(port), endpoint.next_try()?)))
    }

    fn turn(&mut self, parts: &[usize]) {
        for &port in parts {
            self.endpoints[port].turn();
        }
        self.captures.turn(&self.plane, &self.names);
        for event in self.plane.events() {
            self.obey(event);
        }
    }

    fn is_spent(&self) -> bool {
        self.endpoints.iter().all(Endpoint::is_spent)
    }

    fn counters(&self) -> String {
        counters(&self.plane, &self.names)
    }

    fn end(&mut self) {
        self.endpoints.clear();
    }

    fn suspend(&mut self) -> Result<HeldPlane> {
        let held = self.plane.suspend();
        self.endpoints.iter_mut().for_each(Endpoint::suspend);
        Ok(held)
    }

    fn state<'s>(&'s self, held: &'s HeldPlane, files: &mut FilesOut<'s>) -> Result<NetState, HandoverError> {
        let ports = self.names.iter().zip(&self.endpoints).map(|(name, endpoint)| {
            let device = endpoint.device().state();
            Ok(Port { name: name.clone(), device, endpoint: endpoint.state(files)? })
        });
        let ports = ports.collect::<Result<_, HandoverError>>()?;
        Ok(NetState { ports, plane: held.state(&self.plane, files)? })
    }

    fn resume(&mut self, _held: HeldPlane) {
        self.endpoints.iter_mut().for_each(Endpoint::resume);
        self.plane.resume();
    }

    fn hand_over(&mut self, _held: HeldPlane) {
        self.endpoints.iter_mut().for_each(Endpoint::hand_over);
    }

    fn restore(plan: Plan, state: NetState, mut files: FilesIn) -> Result<Self> {
        let NetState { ports, plane: mut plane_state } = state;
        let names = plan.names();
        let guests = plan.guests.len();
        ensure!(ports.iter().map(|port| &port.name).eq(&names[..guests]), "the other server has other ports");
        let uplinks = (guests..).zip(&plan.uplinks);
        let uplinks =
            uplinks.map(|(port, uplink)| plane_state.take_uplink(port, uplink.spec.kind, &mut files));
        let uplinks = uplinks.collect::<Result<_, _>>()?;
        let plane = Plane::restore(plan.ports(uplinks), &plan.options, &plane_state)
            .context("cannot start the workers")?;
        let captures = Captures::start(&plan.captures, &names, &plane, true)?;
        let endpoints = ports.into_iter().zip(plan.devices(&plane)).map(|(port, mut device)| {
            let name = format!("port {}", port.name);
            let endpoint = device
                .restore(&port.device)
                .and_then(|()| Endpoint::restore(name.clone(), port.endpoint, device, &mut files));
            endpoint.context(name)
        });
        let endpoints = endpoints.collect::<Result<_>>()?;
        Ok(Self { endpoints, plane, names, captures })
    }

    fn take_over(&mut self) {
        self.plane.resume();
        self.endpoints.iter_mut().for_each(Endpoint::take_over);
    }
}

impl Plan {
    /// The ports' names, the uplinks' last.
    fn names(&self) -> Vec<String> {
        let uplinks = self.uplinks.iter().map(|uplink| uplink.spec.to_string());
        self.guests.iter().map(|guest| guest.name.clone()).chain(uplinks).collect()
    }

    /// The plane's ports: the guests, then the uplinks.
    fn ports(&self, uplinks: Vec<Uplink>) -> Vec<PortSpec> {
        let guests = self.guests.iter().map(|_| PortSpec::Guest);
        guests.chain(uplinks.into_iter().map(PortSpec::Uplink)).collect()
    }

    /// The guests' devices, as their sessions see them.
    fn devices(self, plane: &Plane) -> Vec<GuestDevice> {
        let guests = self.guests.into_iter().enumerate();
        let device = |(port, super::Guest { device, mtu, postcopy, .. })| {
            GuestDevice::new(port, device, mtu, postcopy, plane)
        };
        guests.map(device).collect()
    }
}

impl NetServer {
    /// Acts on what a worker tells. Each is one line of the log.
    fn obey(&mut self, event: Event) {
        let Self { endpoints, names, .. } = self;
        match event {
            Event::QueueFailed { port, session, index, error } => {
                if endpoints[port].device().session() == session {
                    queue_failed(&mut endpoints[port], index, error);
                }
            }
            Event::MemoryFault { port, session } => {
                if endpoints[port].device().session() == session {
                    endpoints[port].device_mut().lose_memory();
                    endpoints[port].cut_off("the front-end took away memory that it had shared");
                }
            }
            Event::TranslationMissing { port, session, missing } => {
                if endpoints[port].device().session() == session {
                    endpoints[port].ask_translation(missing);
                }
            }
            Event::Command { port } => serve_control(&mut endpoints[port]),
            Event::UplinkFailed { port, error }
                if error.raw_os_error() == Some(Errno::NETDOWN.raw_os_error()) =>
            {
                warn!("port {}: the interface is down; frames go on when it is up", names[port]);
            }
            Event::UplinkFailed { port, error } => {
                error!("port {}: the interface is gone: {error}", names[port]);
            }
        }
    }
}

/// A driver broke a ring.
fn queue_failed(endpoint: &mut Endpoint<GuestDevice>, index: u16, error: QueueError) {
    warn!("{}: vring {index} is stopped until the driver resets it: {error}", endpoint.name());
    endpoint.device_mut().need_reset();
    endpoint.config_changed();
    if let QueueError::Memory(MemoryError::Denied { iova, access }) = error {
        endpoint.access_failed(iova, access);
    }
}

/// Carries out the commands of a control queue.
fn serve_control(endpoint: &mut Endpoint<GuestDevice>) {
    match endpoint.device_mut().serve_control() {
        Ok(None) => {}
        Ok(Some(missing)) => endpoint.ask_translation(missing),
        Err((index, error)) => queue_failed(endpoint, index, error),
    }
}

/// The counters of every port and worker, and what they come to.
#[allow(clippy::cast_precision_loss, reason = "ratios for people")]
fn counters(plane: &Plane, names: &[String]) -> String {
    let ports: Vec<_> = (0..plane.ports()).map(|port| plane.port_counters(port)).collect();
    let mut text = String::new();
    for (name, counters) in names.iter().zip(&ports) {
        _ = writeln!(text, "port {name}: {counters}");
    }
    for (number, worker) in plane.workers().enumerate() {
        let [busy, polling, asleep] =
            [&worker.busy, &worker.polling, &worker.asleep].map(|time| time.get() as f64 / 1e9);
        _ = writeln!(text, "worker {number}: busy {busy:.3} s, polling {polling:.3} s, asleep {asleep:.3} s");
    }
    let sum = |of: fn(&ringway_net::counters::Counters) -> u64| ports.iter().map(of).sum::<u64>();
    let frames = sum(|c| c.to_frames.get());
    let syscalls = sum(|c| c.syscalls.get()) + plane.waits();
    let per_frame = |n: u64| n as f64 / frames.max(1) as f64;
    _ = writeln!(
        text,
        "all: delivered {frames} frames, copies per frame {:.3}, syscalls per frame {:.3}",
        per_frame(sum(|c| c.copies.get())),
        per_frame(syscalls),
    );
    text
}
