//! Disks as they run, seen from the main thread.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_block::handover::DiskState;
use ringway_block::image::{Image, ImageState};
use ringway_vhost::Signal;
use ringway_vhost::endpoint::Endpoint;
use ringway_vhost::handover::{EndpointState, FilesIn, FilesOut, HandoverError};
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};

use super::counters::{self, DiskCounters};
use super::disk::{Disk, Parts};
use super::plan::{DiskPlan, Plan};
use super::resize::Resizes;
use crate::serve::{Deadline, Interest, Server};

/// How long a disk may take until it stands still for an upgrade. Its guest waits meanwhile, and those of the others.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// How long the end of the program waits for disks.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Disks.
pub(crate) struct BlkServer {
    disks: Vec<Disk>,
    /// Of disks that were restored, until they go.
    waiting: Held,
    resizes: Resizes,
    /// Rung by the disks' threads.
    bell: Arc<Signal>,
}

/// What disks that stand still are made of, in their order.
pub(super) type Held = Vec<Box<Parts>>;

/// Disks that stand still, for the successor.
#[derive(Serialize, Deserialize)]
pub(crate) struct BlkState {
    disks: Vec<OneState>,
}

#[derive(Serialize, Deserialize)]
struct OneState {
    name: String,
    device: DiskState,
    endpoint: EndpointState,
    image: ImageState,
}

impl Server for BlkServer {
    type Plan = Plan;
    type State = BlkState;
    type Held = Held;

    fn start(plan: Plan) -> Result<Self> {
        let open = |disk: &DiskPlan| {
            let image = Image::open(&disk.image, &disk.open_options()).with_context(|| disk.label())?;
            let device = disk.device(&image, plan.busy_poll).with_context(|| disk.label())?;
            anyhow::Ok((image, device))
        };
        // Who sees a socket can rely on the image.
        let opened = plan.disks.iter().map(open).collect::<Result<Vec<_>>>()?;
        let attach = |(disk, (image, device)): (&DiskPlan, _)| {
            let source = disk.place.open(&disk.label())?;
            Ok(Box::new(Parts { endpoint: Endpoint::new(disk.label(), source, device), image }))
        };
        let parts = plan.disks.iter().zip(opened).map(attach).collect::<Result<_>>()?;
        let mut server = Self::new(&plan, parts)?;
        server.go();
        Ok(server)
    }

    fn interests(&self) -> impl Iterator<Item = Interest<'_>> {
        let fds = std::iter::once(self.bell.as_fd()).chain(self.resizes.interests());
        fds.map(|fd| (None, fd, PollFlags::IN))
    }

    fn deadlines(&self) -> impl Iterator<Item = Deadline> {
        std::iter::empty()
    }

    fn turn(&mut self, _parts: &[usize]) {
        self.bell.clear();
        self.resizes.turn(&self.disks);
    }

    fn is_spent(&self) -> bool {
        self.disks.iter().all(Disk::is_spent)
    }

    fn counters(&self) -> String {
        counters::print(self.disks.iter().map(|disk| (disk.name.as_str(), &disk.counters)))
    }

    fn end(&mut self) {
        self.disks.iter_mut().for_each(Disk::end);
        let until = Instant::now() + END_LIMIT;
        self.disks.iter().for_each(|disk| disk.wait(until));
    }

    fn suspend(&mut self) -> Result<Held> {
        let until = Instant::now() + DRAIN_LIMIT;
        // All at once: what each has to wait for is not waited for by the next.
        let suspended: Vec<_> = self.disks.iter().map(|disk| disk.suspend(until)).collect();
        let mut held = Held::new();
        for suspended in suspended {
            match suspended.parts() {
                Ok(parts) => held.push(parts),
                Err(error) => {
                    self.resume(held);
                    return Err(error);
                }
            }
        }
        Ok(held)
    }

    fn state<'s>(&'s self, held: &'s Held, files: &mut FilesOut<'s>) -> Result<BlkState, HandoverError> {
        let state = |(disk, parts): (&Disk, &'s Parts)| {
            let Parts { endpoint, image } = parts;
            let (device, endpoint) = (endpoint.device().state(), endpoint.state(files)?);
            Ok(OneState { name: disk.name.clone(), device, endpoint, image: image.state(files) })
        };
        Ok(BlkState {
            disks: self
                .disks
                .iter()
                .zip(held.iter().map(Box::as_ref))
                .map(state)
                .collect::<Result<_, HandoverError>>()?,
        })
    }

    fn resume(&mut self, held: Held) {
        for (disk, parts) in self.disks.iter().zip(held) {
            disk.go(parts);
        }
    }

    fn hand_over(&mut self, mut held: Held) {
        for parts in &mut held {
            parts.endpoint.hand_over();
        }
    }

    fn restore(plan: Plan, state: BlkState, mut files: FilesIn) -> Result<Self> {
        let names = plan.disks.iter().map(|disk| &disk.name);
        ensure!(state.disks.iter().map(|disk| &disk.name).eq(names), "the other server has other disks");
        let restore = |(disk, state): (&DiskPlan, OneState)| {
            disk.restore(state, plan.busy_poll, &mut files).with_context(|| disk.label())
        };
        let parts = plan.disks.iter().zip(state.disks).map(restore).collect::<Result<_>>()?;
        Self::new(&plan, parts)
    }

    fn take_over(&mut self) {
        for parts in &mut self.waiting {
            parts.endpoint.take_over();
            parts.endpoint.device_mut().release();
        }
        self.go();
    }
}

impl BlkServer {
    /// Disks that wait until they are to go.
    pub(super) fn new(plan: &Plan, parts: Held) -> Result<Self> {
        let bell = Arc::new(Signal::new()?);
        let disk = |(disk, parts): (&DiskPlan, &Parts)| {
            let counters = DiskCounters(parts.endpoint.device().counting());
            Disk::new(&disk.name, counters, &bell)
        };
        let disks = plan.disks.iter().zip(parts.iter().map(Box::as_ref)).map(disk).collect::<Result<_>>()?;
        Ok(Self { disks, waiting: parts, resizes: Resizes::open(), bell })
    }

    pub(super) fn go(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.resume(waiting);
    }
}

impl DiskPlan {
    /// The disk that another server had.
    fn restore(&self, state: OneState, busy_poll: Duration, files: &mut FilesIn) -> Result<Box<Parts>> {
        let image = Image::restore(&self.image, &self.open_options(), &state.image, files)?;
        let mut device = self.device(&image, busy_poll)?;
        device.restore(&state.device)?;
        // Until the other server is gone, no ring is touched here.
        device.hold();
        let endpoint = Endpoint::restore(self.label(), state.endpoint, device, files)?;
        Ok(Box::new(Parts { endpoint, image }))
    }
}
