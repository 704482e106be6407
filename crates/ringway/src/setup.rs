//! From the command line to ports, workers, and the sockets where front-ends attach.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ringway_device::net::{NetDevice, Settings};
use ringway_net::control::GuestDevice;
use ringway_net::handover::PlaneState;
use ringway_net::plane::{Options, Plane, PortSpec};
use ringway_net::switch::{Mirror, PortPolicy};
use ringway_net::{Forward, Mac, Uplink, UplinkKind};
use ringway_vhost::endpoint::{Endpoint, Source};

use crate::args::UplinkArg;
use crate::capture::Captures;
use crate::serve::{Server, Signals};
use crate::upgrade::{Predecessor, Program};
use crate::{args, inherit, notify, serve};

/// What `--print-capabilities` prints (`docs/interop/vhost-user.json` of QEMU).
pub(crate) fn capabilities() -> String {
    format!("{:#}\n", serde_json::json!({ "type": "net" }))
}

/// Where a port's front-ends attach.
enum Place {
    Listen(PathBuf),
    Connect(PathBuf),
    Inherited(i32),
}

/// A guest's port to be.
struct Guest {
    name: String,
    place: Place,
    settings: Settings,
    postcopy: bool,
}

/// A server to be.
pub(crate) struct Plan {
    guests: Vec<Guest>,
    uplinks: Vec<UplinkArg>,
    options: Options,
    captures: Vec<args::CaptureArg>,
}

/// `ringway switch`.
pub(crate) fn switch(args: &args::Switch) -> Result<()> {
    let signals = signals()?;
    let mut names = HashSet::new();
    let mut guests = Vec::new();
    for port in &args.ports {
        if !names.insert(port.name.clone()) {
            bail!("port {}: the name is given twice", port.name);
        }
        let path = port.socket.clone();
        let place = if port.client { Place::Connect(path) } else { Place::Listen(path) };
        let settings = Settings {
            mac: port.mac.map(Mac::octets),
            mtu: port.mtu,
            max_pairs: port.queues,
            segmentation: true,
            iommu: port.iommu,
            speed: port.speed,
            rss: port.rss,
            filters: port.filters,
        };
        guests.push(Guest { name: port.name.clone(), place, settings, postcopy: port.postcopy });
    }
    let mut options = options(&args.workers, Forward::Switch);
    let policies = policies(args);
    check_pins(&policies)?;
    options.mirrors = mirrors(args, &policies)?;
    options.policies = policies.into_iter().map(|(_, policy)| policy).collect();
    for uplink in &args.uplinks {
        if !names.insert(uplink.spec.to_string()) {
            bail!("uplink {}: it is given twice", uplink.spec);
        }
    }
    Plan { guests, uplinks: args.uplinks.clone(), options, captures: args.captures.captures.clone() }
        .run(&signals)
}

/// `ringway net`.
pub(crate) fn net(args: &args::Net) -> Result<()> {
    let signals = signals()?;
    let place = match (&args.socket_path, args.fd) {
        (Some(path), None) => Place::Listen(path.clone()),
        (None, Some(fd)) => Place::Inherited(fd),
        _ => bail!("say where front-ends attach: --socket-path=PATH, or --fd=N for an inherited socket"),
    };
    let (forward, uplink) = match &args.uplink {
        args::Uplink::Host(uplink) => (Forward::Wire, Some(uplink.clone())),
        args::Uplink::Sink => (Forward::Sink, None),
        args::Uplink::Echo => (Forward::Echo, None),
        args::Uplink::Generate(size) => (Forward::Generate(*size), None),
    };
    // A macvtap takes frames for one address: the driver is told to use it.
    let macvtap = uplink.as_ref().filter(|uplink| uplink.spec.kind == UplinkKind::Macvtap);
    let macvtap_mac = macvtap.map(|uplink| uplink.mac.map_or_else(|| uplink.spec.mac(), Ok)).transpose()?;
    let settings = Settings {
        mac: args.mac.or(macvtap_mac).map(Mac::octets),
        mtu: args.mtu,
        max_pairs: args.queues,
        segmentation: true,
        iommu: args.iommu,
        speed: args.speed,
        rss: args.rss,
        filters: args.filters,
    };
    let guest = Guest { name: "net".into(), place, settings, postcopy: args.postcopy };
    let options = options(&args.workers, forward);
    Plan {
        guests: vec![guest],
        uplinks: uplink.into_iter().collect(),
        options,
        captures: args.captures.captures.clone(),
    }
    .run(&signals)
}

fn options(args: &args::Workers, forward: Forward) -> Options {
    let busy_poll = Duration::from_micros(args.busy_poll);
    let (policies, mirrors) = (Vec::new(), Vec::new());
    Options { workers: args.count, pin: args.pin.clone(), busy_poll, forward, policies, mirrors }
}

/// The rules of the switch's ports, each with its port's name: the guests', then the uplinks'.
fn policies(args: &args::Switch) -> Vec<(String, PortPolicy)> {
    let guests = args.ports.iter().map(|port| (port.name.clone(), port.policy.clone()));
    let uplinks = args.uplinks.iter().map(|uplink| (uplink.spec.to_string(), uplink.policy.clone()));
    guests.chain(uplinks).collect()
}

/// Who watches whom, by the ports' places.
fn mirrors(args: &args::Switch, ports: &[(String, PortPolicy)]) -> Result<Vec<Mirror>> {
    let place = |name: &str| {
        let place = ports.iter().position(|(port, _)| port == name);
        place.with_context(|| format!("--mirror: there is no port {name}"))
    };
    let mirror = |mirror: &args::MirrorArg| {
        if args.mirrors.iter().any(|other| other.from == mirror.to) {
            bail!("--mirror: port {} watches and cannot be watched", mirror.to);
        }
        Ok(Mirror { from: place(&mirror.from)?, to: place(&mirror.to)? })
    };
    args.mirrors.iter().map(mirror).collect()
}

/// No address is pinned to two ports that share a VLAN: neither could be trusted to be it.
fn check_pins(ports: &[(String, PortPolicy)]) -> Result<()> {
    for (at, (name, policy)) in ports.iter().enumerate() {
        for (other_name, other) in &ports[..at] {
            let shared = policy.pinned.iter().find(|mac| other.pinned.contains(mac));
            if let Some(mac) = shared.filter(|_| policy.mode.meets(&other.mode)) {
                bail!("{mac} is pinned to port {other_name} and to port {name}, which share a VLAN");
            }
        }
    }
    Ok(())
}

fn listen(name: &str, path: &Path) -> Result<Source> {
    Source::listen(path).with_context(|| {
        format!(
            "port {name}: cannot listen at {} (is its directory there, and yours to write to?)",
            path.display()
        )
    })
}

/// Signals are watched from the start on.
fn signals() -> Result<Signals> {
    Signals::install().context("cannot install signal handlers")
}

impl Place {
    fn open(&self, name: &str) -> Result<Source> {
        match self {
            Self::Listen(path) => listen(name, path),
            Self::Connect(path) => Ok(Source::Connect(path.clone())),
            Self::Inherited(number) => inherit::socket(*number),
        }
    }
}

impl Plan {
    /// Serves until the end.
    fn run(self, signals: &Signals) -> Result<()> {
        let program = Program::find();
        let server = match Predecessor::find()? {
            None => self.start()?,
            Some(predecessor) => predecessor.take_over(&self)?,
        };
        serve::serve(server, signals, &program)
    }

    /// Opens the uplinks and the sockets, and starts the workers.
    fn start(&self) -> Result<Server> {
        // Who sees a socket can rely on the rest.
        let uplinks = self.uplinks.iter().map(|uplink| self.open_uplink(uplink)).collect::<Result<_>>()?;
        let open = |guest: &Guest| guest.place.open(&guest.name);
        let sources = self.guests.iter().map(open).collect::<Result<Vec<_>>>()?;
        let devices = self.devices()?;
        let plane = Plane::start(self.ports(uplinks), &self.options).context("cannot start the workers")?;
        let devices = self.guest_devices(devices, &plane);
        let endpoints = self.guests.iter().zip(sources).zip(devices);
        let endpoints =
            endpoints.map(|((guest, source), device)| Endpoint::new(guest.name.clone(), source, device));
        let endpoints = endpoints.collect();
        let captures = self.captures(&plane, false)?;
        let server = Server { endpoints, plane, names: self.names(), captures };
        notify::send("READY=1");
        Ok(server)
    }

    fn open_uplink(&self, uplink: &UplinkArg) -> Result<Uplink> {
        let opened = Uplink::open(&uplink.spec, self.options.workers)?;
        if let Some(mac) = uplink.mac {
            uplink.spec.set_mac(mac)?;
        }
        Ok(opened)
    }

    /// The captures that it starts with.
    pub(crate) fn captures(&self, plane: &Plane, goes_on: bool) -> Result<Captures> {
        Captures::start(&self.captures, &self.names(), plane, goes_on)
    }

    /// The ports' names, the uplinks' last.
    pub(crate) fn names(&self) -> Vec<String> {
        let uplinks = self.uplinks.iter().map(|uplink| uplink.spec.to_string());
        self.guests.iter().map(|guest| guest.name.clone()).chain(uplinks).collect()
    }

    /// The last ports are uplinks, of these kinds.
    pub(crate) fn uplinks(&self) -> impl ExactSizeIterator<Item = UplinkKind> {
        self.uplinks.iter().map(|uplink| uplink.spec.kind)
    }

    /// The guests' devices.
    pub(crate) fn devices(&self) -> Result<Vec<NetDevice>> {
        let device =
            |guest: &Guest| NetDevice::new(guest.settings).with_context(|| format!("port {}", guest.name));
        self.guests.iter().map(device).collect()
    }

    /// A plane that goes on where another was, once it is resumed.
    pub(crate) fn restore_plane(&self, uplinks: Vec<Uplink>, state: &PlaneState) -> Result<Plane> {
        Plane::restore(self.ports(uplinks), &self.options, state).context("cannot start the workers")
    }

    /// The devices as their sessions see them.
    pub(crate) fn guest_devices(
        &self,
        devices: Vec<NetDevice>,
        plane: &Plane,
    ) -> impl Iterator<Item = GuestDevice> {
        self.guests.iter().zip(devices).enumerate().map(|(port, (guest, device))| {
            GuestDevice::new(port, device, guest.settings.mtu, guest.postcopy, plane)
        })
    }

    /// The plane's ports: the guests, then the uplinks.
    fn ports(&self, uplinks: Vec<Uplink>) -> Vec<PortSpec> {
        let guests = self.guests.iter().map(|_| PortSpec::Guest);
        guests.chain(uplinks.into_iter().map(PortSpec::Uplink)).collect()
    }
}
