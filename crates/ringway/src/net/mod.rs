//! `ringway switch` and `ringway net`: from the command line to what the server is made of ([`server`]).

mod server;

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ringway_device::net::{NetDevice, Settings};
use ringway_net::plane::Options;
use ringway_net::switch::{Mirror, PortPolicy};
use ringway_net::{Forward, Mac, UplinkKind};

use self::server::NetServer;
use crate::args::{self, UplinkArg};
use crate::place::Place;
use crate::serve;

/// A server to be.
pub(crate) struct Plan {
    guests: Vec<Guest>,
    uplinks: Vec<UplinkArg>,
    options: Options,
    captures: Vec<args::CaptureArg>,
}

/// A guest's port to be.
struct Guest {
    name: String,
    place: Place,
    device: NetDevice,
    mtu: Option<u16>,
    postcopy: bool,
}

impl Guest {
    fn new(name: &str, place: Place, settings: Settings, postcopy: bool) -> Result<Self> {
        let device = NetDevice::new(settings).with_context(|| format!("port {name}"))?;
        Ok(Self { name: name.to_owned(), place, device, mtu: settings.mtu, postcopy })
    }
}

/// `ringway switch`.
pub(crate) fn switch(args: &args::Switch) -> Result<()> {
    serve::run::<NetServer>(|| plan_switch(args))
}

/// `ringway net`.
pub(crate) fn net(args: &args::Net) -> Result<()> {
    serve::run::<NetServer>(|| plan_net(args))
}

fn plan_switch(args: &args::Switch) -> Result<Plan> {
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
        guests.push(Guest::new(&port.name, place, settings, port.postcopy)?);
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
    Ok(Plan { guests, uplinks: args.uplinks.clone(), options, captures: args.captures.captures.clone() })
}

fn plan_net(args: &args::Net) -> Result<Plan> {
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
    Ok(Plan {
        guests: vec![Guest::new("net", place, settings, args.postcopy)?],
        uplinks: uplink.into_iter().collect(),
        options: options(&args.workers, forward),
        captures: args.captures.captures.clone(),
    })
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
