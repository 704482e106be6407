//! What a plane and its ports hand to those of another process: counters, learned addresses, uplinks, and what the
//! drivers negotiated. The rings are the sessions' to stop and to start again.
//!
//! ```text
//!   here    Plane::suspend ──► (sessions stop their rings) ──► HeldPlane::state ──► sent
//!              └──── Plane::resume, if it failed
//!   there   Plane::restore ──► (sessions start their rings) ──► Plane::resume
//! ```
//!
//! Suspended workers look at no ring and no uplink. All rings stop after that, so no frame meets a receiver that has stopped
//! already; and all start before a worker of the other process looks at the first.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use ringway_device::net::{RestoreError, State};
use ringway_vhost::handover::{FdIndex, FilesIn, FilesOut, HandoverError};
use serde::{Deserialize, Serialize};

use crate::control::GuestDevice;
use crate::{Uplink, UplinkKind};

/// The state of a suspended plane.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct PlaneState {
    /// Seconds since the first of the planes started.
    pub(crate) now: u64,
    /// System calls made to wait.
    pub(crate) waits: u64,
    pub(crate) learned: Vec<Learned>,
    pub(crate) ports: Vec<PortState>,
}

/// An address that the switch has learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Learned {
    /// The VLAN and the address.
    pub(crate) key: u64,
    pub(crate) port: usize,
    pub(crate) seen: u64,
}

/// What a port has come to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct PortState {
    /// By their names.
    pub(crate) counters: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    uplink: Vec<QueueState>,
}

/// What one worker reads an uplink by.
#[derive(Debug, Serialize, Deserialize)]
struct QueueState {
    file: FdIndex,
    /// The slot of a packet socket's ring to go on at.
    position: usize,
}

/// What the workers told when they were suspended.
pub struct HeldPlane {
    pub(crate) now: u64,
    pub(crate) learned: Vec<Learned>,
    /// By port, what its uplink is read by; nothing of a guest's.
    pub(crate) uplinks: Vec<Vec<io::Result<(OwnedFd, usize)>>>,
}

impl HeldPlane {
    /// The state to hand over, with the plane's counters; the uplinks are added to `files`.
    ///
    /// # Errors
    /// The kernel's, if there is no file descriptor left for an uplink.
    pub fn state<'w>(
        &'w self,
        plane: &crate::plane::Plane,
        files: &mut FilesOut<'w>,
    ) -> Result<PlaneState, HandoverError> {
        let ports = self.uplinks.iter().enumerate().map(|(port, queues)| {
            let queues = queues.iter().map(|queue| match queue {
                Ok((file, position)) => Ok(QueueState { file: files.add(file.as_fd()), position: *position }),
                Err(error) => Err(HandoverError::from(io::Error::from(error.kind()))),
            });
            let uplink = queues.collect::<Result<_, _>>()?;
            let counters = plane.port_counters(port);
            let counters = counters.named().map(|(name, counter)| (name.to_owned(), counter.get()));
            Ok(PortState { counters: counters.collect(), uplink })
        });
        Ok(PlaneState {
            now: self.now,
            waits: plane.waits(),
            learned: self.learned.clone(),
            ports: ports.collect::<Result<_, HandoverError>>()?,
        })
    }
}

impl PlaneState {
    /// Takes the uplink of a port.
    ///
    /// # Errors
    /// [`HandoverError`] if it has none, or other files.
    pub fn take_uplink(
        &mut self,
        port: usize,
        kind: UplinkKind,
        files: &mut FilesIn,
    ) -> Result<Uplink, HandoverError> {
        let queues =
            self.ports.get_mut(port).map(|port| std::mem::take(&mut port.uplink)).unwrap_or_default();
        let queues = queues.into_iter().map(|queue| Ok((files.take(queue.file)?, queue.position)));
        let queues = queues.collect::<Result<Vec<_>, HandoverError>>()?;
        Uplink::adopt(kind, queues).map_err(|_| HandoverError::BadValue("an uplink"))
    }
}

/// What a driver negotiated.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeviceState {
    acked: Option<u64>,
    status: u8,
    announce: bool,
    orders: Vec<u8>,
    session: u64,
    /// The last session that was counted.
    counted: Option<u64>,
}

impl GuestDevice {
    /// Its state.
    pub fn state(&self) -> DeviceState {
        let State { acked, status, announce, orders } = self.device.state();
        DeviceState { acked, status, announce, orders, session: self.session, counted: self.counted }
    }

    /// A new device goes on where another was.
    ///
    /// # Errors
    /// [`HandoverError::Features`] if it does not offer what was acked, [`HandoverError::BadValue`] if it cannot do
    /// what the driver ordered.
    pub fn restore(&mut self, state: &DeviceState) -> Result<(), HandoverError> {
        let DeviceState { acked, status, announce, session, counted, .. } = *state;
        let features = acked.unwrap_or_default() & !self.device.negotiation().offered();
        let state = State { acked, status, announce, orders: state.orders.clone() };
        self.device.restore(&state).map_err(|error| match error {
            RestoreError::Features(_) => HandoverError::Features { kind: "virtio", features },
            RestoreError::Orders(_) => HandoverError::BadValue("a driver's orders"),
        })?;
        self.session = session;
        self.counted = counted;
        Ok(())
    }
}
