//! The server that takes over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringway_device::net::NetDevice;
use ringway_vhost::endpoint::Endpoint;
use ringway_vhost::handover::{FilesIn, FilesOut, Link};
use tracing::{info, warn};

use super::{FromNew, FromOld, LINK, LONG_PAUSE, PAUSE_LIMIT, READY_LIMIT, State, clock, status};
use crate::inherit;
use crate::serve::Server;
use crate::setup::Plan;

/// The server that started this one, to be replaced by it.
pub(crate) struct Predecessor {
    link: Link,
    pid: u32,
}

impl Predecessor {
    /// Finds it, if this program was started for an upgrade.
    pub(crate) fn find() -> Result<Option<Self>> {
        let Some(number) = std::env::var_os(LINK) else { return Ok(None) };
        let number =
            number.to_str().and_then(|n| n.parse().ok()).with_context(|| format!("{LINK} is no number"))?;
        let link = Link::new(inherit::take(number).context(LINK)?);
        Ok(Some(Self { link, pid: std::os::unix::process::parent_id() }))
    }

    /// Takes everything over; when this returns, this server runs and the other does not.
    pub(crate) fn take_over(self, plan: &Plan) -> Result<Server> {
        let taken = self.try_to_take_over(plan);
        if let Err(error) = &taken {
            // The other server goes on, and says why in its log too.
            let failed = FromNew::Failed(format!("{error:#}"));
            let _ = self.link.send(&failed, &FilesOut::default(), Instant::now() + Duration::from_secs(1));
        }
        taken.with_context(|| format!("cannot take over from process {}", self.pid))
    }

    fn try_to_take_over(&self, plan: &Plan) -> Result<Server> {
        // What the arguments are wrong for shows before anything stands still.
        let devices = plan.devices()?;
        self.say(&FromNew::Ready)?;
        let (message, files) = self.link.receive(Instant::now() + READY_LIMIT + PAUSE_LIMIT)?;
        let FromOld::State(state) = message else { bail!("told to go without a state") };
        let since = state.since;
        let mut server = restore(plan, devices, state, files)?;
        self.say(&FromNew::SetUp)?;
        let go = self.link.receive(Instant::now() + PAUSE_LIMIT).context("not told to go")?;
        ensure!(matches!(go, (FromOld::Go, _)), "two states");
        server.plane.resume();
        let pause = Duration::from_nanos(clock().saturating_sub(since));
        server.endpoints.iter_mut().for_each(Endpoint::take_over);
        let text = format!(
            "took over from process {}: rings paused for {:.1} ms",
            self.pid,
            pause.as_secs_f64() * 1e3
        );
        if pause > LONG_PAUSE {
            warn!("{text}");
        } else {
            info!("{text}");
        }
        status::send(self.pid, &status::Status::Done { pid: std::process::id(), pause });
        Ok(server)
    }

    fn say(&self, message: &FromNew) -> Result<()> {
        Ok(self.link.send(message, &FilesOut::default(), Instant::now() + PAUSE_LIMIT)?)
    }
}

/// A server that goes on where the other was, once its plane is resumed.
fn restore(plan: &Plan, devices: Vec<NetDevice>, state: State, mut files: FilesIn) -> Result<Server> {
    let State { since: _, ports, plane: mut plane_state } = state;
    let names = plan.names();
    let guests = names.len() - plan.uplinks().len();
    ensure!(ports.iter().map(|port| &port.name).eq(&names[..guests]), "the other server has other ports");
    let uplinks = (guests..).zip(plan.uplinks());
    let uplinks = uplinks.map(|(port, kind)| plane_state.take_uplink(port, kind, &mut files));
    let uplinks = uplinks.collect::<Result<_, _>>()?;
    let plane = plan.restore_plane(uplinks, &plane_state)?;
    let endpoints = ports.into_iter().zip(plan.guest_devices(devices, &plane)).map(|(port, mut device)| {
        let name = port.name.clone();
        let endpoint = device
            .restore(&port.device)
            .and_then(|()| Endpoint::restore(port.name, port.endpoint, device, &mut files));
        endpoint.with_context(|| format!("port {name}"))
    });
    let endpoints = endpoints.collect::<Result<_>>()?;
    let captures = plan.captures(&plane, true)?;
    Ok(Server { endpoints, plane, names, captures })
}
