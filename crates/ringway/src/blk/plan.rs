//! What the command line comes to: which disks there are, and what each is made of.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ringway_block::disk::DiskDevice;
use ringway_block::image::{Cache, Facts, Image, ImageSpec, OpenOptions};
use ringway_block::nbd;
use ringway_device::blk::{BlkDevice, Limits, Settings};

use crate::args::{self, DiskOptions};
use crate::place::Place;

/// The most sectors that a request may discard, zero or erase at a time, in each of its segments: 1 GiB. Who waits for one
/// request waits for it to end.
const RANGE_SECTORS: u32 = 1 << 21;
/// The most segments of such a request.
const RANGE_SEGMENTS: u32 = 32;
const SECTOR: u64 = 512;

/// Disks to be.
pub(crate) struct Plan {
    pub(super) disks: Vec<DiskPlan>,
    pub(super) busy_poll: Duration,
}

/// A disk to be.
pub(crate) struct DiskPlan {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) image: ImageSpec,
    pub(super) options: DiskOptions,
}

/// What `ringway blk` was told.
pub(super) fn plan(args: &args::Blk) -> Result<Plan> {
    let disks = if args.disks.is_empty() { vec![one(args)?] } else { several(&args.disks)? };
    Ok(Plan { disks, busy_poll: Duration::from_micros(args.busy_poll) })
}

fn one(args: &args::Blk) -> Result<DiskPlan> {
    let place = match (&args.socket_path, args.fd) {
        (Some(path), None) => args::place(path, args.options.client),
        (None, Some(fd)) if !args.options.client => Place::Inherited(fd),
        (None, Some(_)) => bail!("--client connects to --socket-path=PATH, and --fd=N is a socket already"),
        _ => bail!(
            "say where front-ends attach: --socket-path=PATH, or --fd=N for an inherited socket; \
             or --disk=NAME=SOCKET,IMAGE for each of several disks"
        ),
    };
    let image = args.image.clone().context("say what is on the disk: --blk-file=IMAGE")?;
    Ok(DiskPlan { name: "blk".into(), place, image, options: args.options.clone() })
}

fn several(disks: &[args::DiskArg]) -> Result<Vec<DiskPlan>> {
    let (mut names, mut sockets, mut plans) = (HashSet::new(), HashMap::new(), Vec::new());
    for disk in disks {
        let args::DiskArg { name, socket, image, options } = disk;
        ensure!(names.insert(name), "disk {name}: the name is given twice");
        if let Some(other) = sockets.insert(socket, name) {
            bail!("disk {name}: disk {other} has the socket {} already", socket.display());
        }
        let (place, image) = (args::place(socket, options.client), image.clone());
        plans.push(DiskPlan { name: name.clone(), place, image, options: options.clone() });
    }
    Ok(plans)
}

impl DiskPlan {
    /// How messages call it.
    pub(super) fn label(&self) -> String {
        format!("disk {}", self.name)
    }

    /// How its image is opened.
    pub(super) fn open_options(&self) -> OpenOptions {
        let DiskOptions { read_only, format, cache, logical_block_size, share_rw: share, .. } = self.options;
        let nbd = nbd::Options {
            reconnect: Duration::from_secs(self.options.nbd_reconnect),
            silence: self.options.nbd_timeout.map(Duration::from_secs),
            ..nbd::Options::default()
        };
        OpenOptions { read_only, format, cache, logical_block_size, share, nbd }
    }

    /// Its device, on this image.
    pub(super) fn device(&self, image: &Image, busy_poll: Duration) -> Result<DiskDevice> {
        let model = BlkDevice::new(self.settings(image.facts()))?;
        Ok(DiskDevice::new(self.name.clone(), model, image.way(), busy_poll)?)
    }

    /// What the device tells its driver of the image.
    fn settings(&self, facts: &Facts) -> Settings {
        let DiskOptions { num_queues, cache, iommu, .. } = self.options;
        let block = facts.logical_block_size.max(1);
        let blocks = |bytes: u32| bytes / block;
        let alignment = u32::try_from(facts.discard_alignment / SECTOR).unwrap_or_default().max(1);
        let limits = |can: bool, alignment| {
            can.then_some(Limits { sectors: RANGE_SECTORS, segments: RANGE_SEGMENTS, alignment })
        };
        Settings {
            size: facts.size,
            block_size: facts.logical_block_size,
            physical_block_exp: (facts.physical_block_size / block).max(1).ilog2() as u8,
            alignment_offset: u8::try_from(blocks(facts.alignment_offset)).unwrap_or_default(),
            min_io_size: u16::try_from(blocks(facts.min_io)).unwrap_or_default(),
            opt_io_size: blocks(facts.opt_io),
            read_only: facts.read_only,
            queues: num_queues,
            writeback: cache != Cache::Writethrough,
            flush: facts.can_flush,
            discard: limits(facts.can_discard, alignment),
            write_zeroes: limits(facts.can_write_zeroes, alignment),
            zeroes_may_unmap: facts.zeroes_may_unmap,
            secure_erase: limits(facts.can_secure_erase, alignment),
            id: self.id(),
            iommu,
        }
    }

    /// What it answers to `GET_ID`.
    fn id(&self) -> [u8; 20] {
        let mut id = [0; 20];
        let serial = self.options.serial.as_deref().unwrap_or_default();
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        id
    }
}
