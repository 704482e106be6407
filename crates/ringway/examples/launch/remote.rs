//! A device of another process, by vhost-user: its registers are here, its queues are not.
//!
//! ```text
//!   launch:  ask what it offers, its configuration       (a session that nothing else is done in)
//!   driver:  DRIVER_OK ──► a session: memory, features, vrings with ioeventfd as kick
//!                          call ──► main thread ──► InterruptStatus, line
//!            reset     ──► the session ends
//! ```
//!
//! A session for each time that a driver sets the device up is the shortest way to a device that is as after reset, with
//! every back-end. What the driver may choose is what one queue pair, or one queue, can do.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ringway_device::mmio::MmioDevice;
use ringway_device::model::DeviceModel;
use ringway_device::registers::{Action, QueueSetup, Settings};
use ringway_device::status::Negotiation;
use ringway_memory::Gpa;
use ringway_queue::ResumeState;
use ringway_spec::status::DeviceStatus;
use ringway_spec::{blk, feature, net};
use ringway_vhost::frontend::{BareVring, Connection, Frontend, PROTOCOL_FEATURES, Signals, VringPlace};
use ringway_vhost::message::{VringAddresses, protocol_feature as pf};

use crate::window::{Device, Slot, Wake};

/// Of what a back-end has, this is asked for: nobody here listens to what it says first.
const PROTOCOL: u64 = PROTOCOL_FEATURES & !(pf::BACKEND_REQ | pf::INBAND_NOTIFICATIONS);
/// What nobody here does for the driver: an IOMMU, and the cache mode that it writes to a disk's configuration.
const WITHOUT: u64 = feature::ACCESS_PLATFORM;
const BLK_WITHOUT: u64 = blk::F_MQ | blk::F_CONFIG_WCE;
/// More than one pair of queues, and the control queue with all that is said there.
const NET_WITHOUT: u64 = net::F_MQ
    | net::F_CTRL_VQ
    | net::F_CTRL_RX
    | net::F_CTRL_VLAN
    | net::F_CTRL_RX_EXTRA
    | net::F_CTRL_MAC_ADDR
    | net::F_CTRL_GUEST_OFFLOADS
    | net::F_GUEST_ANNOUNCE
    | net::F_RSS
    | net::F_HASH_REPORT;

/// What a driver sees of the device.
struct Model {
    id: u32,
    queues: u16,
    negotiation: Negotiation,
    config: Vec<u8>,
}

impl DeviceModel for Model {
    fn id(&self) -> u32 {
        self.id
    }

    fn negotiation(&self) -> &Negotiation {
        &self.negotiation
    }

    fn negotiation_mut(&mut self) -> &mut Negotiation {
        &mut self.negotiation
    }

    fn reset(&mut self) {
        self.negotiation.reset();
    }

    fn max_queues(&self) -> u16 {
        self.queues
    }

    fn config_len(&self) -> usize {
        self.config.len()
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        to.fill(0);
        let from = self.config.get(offset..).unwrap_or_default();
        let len = from.len().min(to.len());
        to[..len].copy_from_slice(&from[..len]);
    }
}

/// What runs between `DRIVER_OK` and a reset.
struct Session {
    frontend: Frontend,
    vrings: Vec<BareVring>,
}

/// A device of another process.
pub(crate) struct Remote {
    slot: Slot,
    registers: MmioDevice<Model>,
    path: PathBuf,
    session: Option<Session>,
}

impl Remote {
    /// A device of this ID, whose back-end listens at `path`.
    pub(crate) fn connect(slot: Slot, id: u32, path: &Path) -> Result<Self> {
        let name = path.display();
        let connect = || anyhow::Ok(Frontend::open(Connection::connect(path)?, PROTOCOL)?);
        let mut frontend = connect().with_context(|| format!("back-end {name}"))?;
        let (queues, config_len, without) = match id {
            net::DEVICE_ID => (2, size_of::<net::Config>(), NET_WITHOUT),
            _ => (1, size_of::<blk::Config>(), BLK_WITHOUT),
        };
        let offered = frontend.offered() & !(WITHOUT | without);
        ensure!(offered & feature::VERSION_1 != 0, "back-end {name} is older than virtio 1.0");
        // A network device may have nothing to say there.
        let config = frontend.config(0, config_len as u32);
        let config = if id == net::DEVICE_ID { config.unwrap_or_default() } else { config? };
        let model = Model { id, queues, negotiation: Negotiation::new(offered, &[]), config };
        let registers = MmioDevice::new(model, Settings::default())?;
        Ok(Self { slot, registers, path: path.to_owned(), session: None })
    }

    /// The driver has set the device up: so is the back-end's now (3.1.1). Queues follow.
    fn start(&mut self) -> Result<()> {
        let mut frontend = Frontend::open(Connection::connect(&self.path)?, PROTOCOL)?;
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        frontend.set_status(status)?;
        frontend.accept(self.registers.model().negotiation.acked())?;
        status |= DeviceStatus::FEATURES_OK;
        frontend.set_status(status)?;
        frontend.add_memory([&*self.slot.memory])?;
        frontend.set_status(status | DeviceStatus::DRIVER_OK)?;
        self.session = Some(Session { frontend, vrings: Vec::new() });
        Ok(())
    }

    fn start_queue(&mut self, index: u16) -> Result<()> {
        let Some(setup) = self.registers.queue(index) else { return Ok(()) };
        let Some(session) = &mut self.session else { return Ok(()) };
        let mut vring = vring(&self.slot, index, &setup)?;
        self.slot.set_kick(index, vring.kick(), true)?;
        self.slot.watch(vring.call().as_fd(), Wake::Queue(index))?;
        session.frontend.enable(&vring, true)?;
        session.frontend.start(&mut vring)?;
        session.vrings.push(vring);
        Ok(())
    }

    /// Takes back the queues that are meant.
    fn stop_queues(&mut self, is_meant: impl Fn(u32) -> bool) -> Result<()> {
        let Some(Session { frontend, vrings }) = &mut self.session else { return Ok(()) };
        for mut vring in vrings.extract_if(.., |vring| is_meant(vring.index())) {
            self.slot.set_kick(vring.index() as u16, vring.kick(), false)?;
            self.slot.forget(vring.call().as_fd())?;
            // When it is answered, the back-end is done with the ring, and with all buffers.
            frontend.stop(&mut vring)?;
        }
        Ok(())
    }

    /// Does an action; an error is one that the driver is to mend by a reset.
    fn act(&mut self, action: Action) -> Result<()> {
        match action {
            Action::Started => self.start(),
            Action::QueueStarted(index) => self.start_queue(index),
            Action::QueueReset(index) => {
                let stopped = self.stop_queues(|stopped| stopped == u32::from(index));
                self.registers.queue_was_reset(index);
                stopped
            }
            Action::Reset => {
                let stopped = self.stop_queues(|_| true);
                self.session = None;
                stopped
            }
            Action::Line(level) => self.slot.set_line(level),
            // KVM counts kicks itself.
            _ => Ok(()),
        }
    }

    fn settle(&mut self) {
        while let Some(action) = self.registers.next_action() {
            if let Err(error) = self.act(action) {
                eprintln!("launch: back-end {}: {error:#}", self.path.display());
                if self.session.take().is_some() {
                    self.registers.need_reset();
                }
            }
        }
    }
}

impl Device for Remote {
    fn read(&mut self, offset: u64, to: &mut [u8]) {
        self.registers.read(offset, to);
        self.settle();
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        self.registers.write(offset, from);
        self.settle();
    }

    fn wake(&mut self, wake: Wake) {
        if let Wake::Queue(index) = wake
            && self.session.is_some()
        {
            self.registers.used(index);
        }
        self.settle();
    }
}

/// The vring that the driver set up, as the back-end will find it.
fn vring(slot: &Slot, index: u16, setup: &QueueSetup) -> Result<BareVring> {
    let place = VringPlace {
        index: index.into(),
        size: setup.size,
        addresses: VringAddresses {
            descriptor: slot.memory.frontend_va(setup.descriptor.0),
            driver: slot.memory.frontend_va(setup.driver.0),
            device: slot.memory.frontend_va(setup.device.0),
            log: None,
        },
        log: Gpa(setup.device.0),
        start: ResumeState::start(setup.features),
    };
    Ok(BareVring::new(place, setup.features, Signals::Events)?)
}
