//! From the command line to ports, a worker, and the sockets where front-ends attach.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ringway_device::net::{NetDevice, Settings};
use ringway_net::control::GuestDevice;
use ringway_net::worker::{PortSpec, Worker};
use ringway_net::{Forward, Mac, Tap};
use ringway_vhost::endpoint::{Endpoint, Source};

use crate::serve::Signals;
use crate::{args, inherit, serve};

/// What `--print-capabilities` prints (`docs/interop/vhost-user.json` of QEMU).
pub(crate) fn capabilities() -> String {
    format!("{:#}\n", serde_json::json!({ "type": "net" }))
}

/// A guest's port to be.
struct Guest {
    name: String,
    source: Source,
    settings: Settings,
    postcopy: bool,
}

/// `ringway switch`.
pub(crate) fn switch(args: &args::Switch) -> Result<()> {
    let signals = signals()?;
    let mut names = HashSet::new();
    let mut guests = Vec::new();
    for port in &args.ports {
        if !names.insert(&port.name) {
            bail!("port {}: the name is given twice", port.name);
        }
        let source = if port.client {
            Source::Connect(port.socket.clone())
        } else {
            listen(&port.name, &port.socket)?
        };
        // The receivers of a frame are not known before it comes, and not all take frames to be segmented.
        let settings = Settings {
            mac: port.mac.map(Mac::octets),
            mtu: port.mtu,
            max_pairs: port.queues,
            segmentation: false,
            iommu: port.iommu,
        };
        guests.push(Guest { name: port.name.clone(), source, settings, postcopy: port.postcopy });
    }
    run(guests, args.uplink.as_deref(), Forward::Switch, &args.worker, &signals)
}

/// `ringway net`.
pub(crate) fn net(args: &args::Net) -> Result<()> {
    let signals = signals()?;
    let source = match (&args.socket_path, args.fd) {
        (Some(path), None) => listen("net", path)?,
        (None, Some(fd)) => inherit::socket(fd)?,
        _ => bail!("say where front-ends attach: --socket-path=PATH, or --fd=N for an inherited socket"),
    };
    let (forward, tap) = match &args.uplink {
        args::Uplink::Tap(name) => (Forward::Wire, Some(name.as_str())),
        args::Uplink::Sink => (Forward::Sink, None),
        args::Uplink::Echo => (Forward::Echo, None),
        args::Uplink::Generate(size) => (Forward::Generate(*size), None),
    };
    // The kernel segments what a tap is given, and a sink takes anything. What an echo returns must be what the
    // guest takes.
    let segmentation = matches!(forward, Forward::Wire | Forward::Sink);
    let settings = Settings {
        mac: args.mac.map(Mac::octets),
        mtu: args.mtu,
        max_pairs: args.queues,
        segmentation,
        iommu: args.iommu,
    };
    let guest = Guest { name: "net".into(), source, settings, postcopy: args.postcopy };
    run(vec![guest], tap, forward, &args.worker, &signals)
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

/// Starts the worker and serves until the end.
fn run(
    guests: Vec<Guest>,
    tap: Option<&str>,
    forward: Forward,
    worker: &args::Worker,
    signals: &Signals,
) -> Result<()> {
    let mut names = Vec::new();
    let mut specs = Vec::new();
    let mut devices = Vec::new();
    for guest in &guests {
        let device = NetDevice::new(guest.settings).with_context(|| format!("port {}", guest.name))?;
        let device = Arc::new(Mutex::new(device));
        specs.push(PortSpec::Guest(Arc::clone(&device)));
        devices.push(device);
        names.push(guest.name.clone());
    }
    if let Some(name) = tap {
        specs.push(PortSpec::Tap(Tap::open(name)?));
        names.push(format!("tap:{name}"));
    }
    let busy_poll = Duration::from_micros(worker.busy_poll);
    let worker = Worker::start(specs, forward, busy_poll).context("cannot start the worker")?;
    let endpoints = guests
        .into_iter()
        .zip(devices)
        .enumerate()
        .map(|(port, (guest, device))| {
            let device = GuestDevice::new(port, device, guest.settings.mtu, guest.postcopy, worker.mailbox());
            Endpoint::new(guest.name, guest.source, device)
        })
        .collect();
    serve::serve(endpoints, &worker, &names, signals)
}
