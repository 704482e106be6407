//! A session by the book, once features are negotiated: what may be asked is asked in the order that back-ends expect,
//! and what was not negotiated is not asked.
//!
//! After a reply that is none, or none in time, the connection is closed: what came next could not be told apart.

mod memory;
mod migration;

use std::os::fd::OwnedFd;
use std::time::Duration;

use ringway_memory::{FrontendVa, MemoryError};
use ringway_spec::feature;
use ringway_spec::status::DeviceStatus;

use super::bare::{BareVring, Signals};
use super::channel::Channel;
use super::vring::{Vring, VringConfig};
use super::{Connection, FrontendError, Memory, Reply};
use crate::message::{
    F_LOG_ALL, F_PROTOCOL_FEATURES, InflightDescription, Iotlb, IotlbKind, MAX_CONFIG, RegionDescription,
    Request, VringAddresses, name, protocol_feature as pf,
};

/// The protocol features that a [`Frontend`] can use.
pub const PROTOCOL_FEATURES: u64 = pf::MQ
    | pf::LOG_SHMFD
    | pf::RARP
    | pf::REPLY_ACK
    | pf::MTU
    | pf::BACKEND_REQ
    | pf::CONFIG
    | pf::BACKEND_SEND_FD
    | pf::HOST_NOTIFIER
    | pf::INFLIGHT_SHMFD
    | pf::RESET_DEVICE
    | pf::INBAND_NOTIFICATIONS
    | pf::CONFIGURE_MEM_SLOTS
    | pf::STATUS
    | pf::SHARED_OBJECT
    | pf::DEVICE_STATE
    | pf::GET_VRING_BASE_INFLIGHT
    | pf::SHMEM;

/// What makes no sense without something else: the feature, and what it needs.
const NEEDS: [(u64, u64); 2] = [
    (pf::INBAND_NOTIFICATIONS, pf::BACKEND_REQ | pf::REPLY_ACK),
    (pf::GET_VRING_BASE_INFLIGHT, pf::INFLIGHT_SHMFD),
];

/// The region in which a back-end records what it has taken and not used, to be given to the next one.
#[derive(Debug)]
pub struct Inflight {
    /// What it is.
    pub description: InflightDescription,
    /// Its file.
    pub file: OwnedFd,
}

/// A ring that was started in this session, for the log's sake: logging may begin later.
struct Started {
    index: u32,
    /// Where it is, with the place of its used ring in the log.
    addresses: VringAddresses,
}

/// A session with a back-end.
pub struct Frontend {
    connection: Connection,
    /// How long the back-end may take.
    limit: Duration,
    /// The virtio features that the device offers, without those of the transport.
    offered: u64,
    /// Those acked, likewise.
    features: u64,
    has_protocol_features: bool,
    protocol_features: u64,
    memory: Vec<(RegionDescription, OwnedFd)>,
    /// How many regions there can be; not known at first.
    max_regions: Option<u64>,
    started: Vec<Started>,
    offers_log: bool,
    is_logging: bool,
}

impl Frontend {
    /// Begins a session: acks those of the wanted virtio features, and protocol features, that the back-end offers.
    /// Of the latter only those that this type can use ([`PROTOCOL_FEATURES`]).
    ///
    /// # Errors
    /// [`FrontendError::FeaturesRefused`] if the device does not accept what it offered, and any of a connection's.
    pub fn negotiate(
        connection: Connection,
        features: u64,
        protocol_features: u64,
    ) -> Result<Self, FrontendError> {
        let mut session = Self::open(connection, protocol_features)?;
        session.features = features & session.offered;
        session.set_up_device()?;
        Ok(session)
    }

    /// Begins a session with these protocol features, and leaves it to the caller to set up the device (3.1.1), by
    /// [`Frontend::set_status`] and [`Frontend::accept`].
    ///
    /// # Errors
    /// Any of a connection's.
    pub fn open(connection: Connection, protocol_features: u64) -> Result<Self, FrontendError> {
        let mut session = Self {
            limit: connection.limit(),
            connection,
            offered: 0,
            features: 0,
            has_protocol_features: false,
            protocol_features: 0,
            memory: Vec::new(),
            max_regions: None,
            started: Vec::new(),
            offers_log: false,
            is_logging: false,
        };
        let offered = session.ask_number(Request::GetFeatures)?;
        session.has_protocol_features = offered & F_PROTOCOL_FEATURES != 0;
        session.offers_log = offered & F_LOG_ALL != 0;
        session.offered = offered & !(F_PROTOCOL_FEATURES | F_LOG_ALL);
        if session.has_protocol_features {
            let offered = session.ask_number(Request::GetProtocolFeatures)?;
            let mut acked = protocol_features & offered & PROTOCOL_FEATURES;
            for (feature, needed) in NEEDS {
                if acked & needed != needed {
                    acked &= !feature;
                }
            }
            session.call(Request::SetProtocolFeatures(acked))?;
            session.protocol_features = acked;
            session.connection.set_acking(acked & pf::REPLY_ACK != 0);
        }
        session.call(Request::SetOwner)?;
        Ok(session)
    }

    /// What a driver does with a device that was reset, up to the features (3.1.1).
    fn set_up_device(&mut self) -> Result<(), FrontendError> {
        let mut status = DeviceStatus::ACKNOWLEDGE;
        self.set_status(status)?;
        status |= DeviceStatus::DRIVER;
        self.set_status(status)?;
        self.set_features()?;
        self.set_status(status | DeviceStatus::FEATURES_OK)?;
        match self.status()? {
            Some(status) if !status.contains(DeviceStatus::FEATURES_OK) => {
                Err(FrontendError::FeaturesRefused { features: self.features })
            }
            _ => Ok(()),
        }
    }

    /// Acks virtio features, those of them that are offered.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn accept(&mut self, features: u64) -> Result<(), FrontendError> {
        self.features = features & self.offered;
        self.set_features()
    }

    fn set_features(&mut self) -> Result<(), FrontendError> {
        let protocol = if self.has_protocol_features { F_PROTOCOL_FEATURES } else { 0 };
        let log = if self.is_logging { F_LOG_ALL } else { 0 };
        self.call(Request::SetFeatures(self.features | protocol | log))
    }

    /// The virtio features that the device offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The virtio features negotiated.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The protocol features negotiated.
    pub fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// The connection, for what the protocol has and this type has not.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    // The device

    /// How many queues the device has, in its own unit; `None` if the back-end does not say.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn queue_num(&mut self) -> Result<Option<u64>, FrontendError> {
        if self.has(pf::MQ) { self.ask_number(Request::GetQueueNum).map(Some) } else { Ok(None) }
    }

    /// The device status; `None` if the back-end does not keep it.
    ///
    /// # Errors
    /// Those of a connection, [`FrontendError::WrongReply`] if it has more than 8 bits.
    pub fn status(&mut self) -> Result<Option<DeviceStatus>, FrontendError> {
        if !self.has(pf::STATUS) {
            return Ok(None);
        }
        let status = self.ask_number(Request::GetStatus)?;
        let Ok(bits) = u8::try_from(status) else {
            let request = name(Request::GetStatus.number());
            return self.checked(Err(FrontendError::WrongReply { request, what: format!("{status:#x}") }));
        };
        Ok(Some(DeviceStatus::from_bits_truncate(bits)))
    }

    /// Writes the device status, if the back-end keeps it.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn set_status(&mut self, status: DeviceStatus) -> Result<(), FrontendError> {
        if self.has(pf::STATUS) { self.call(Request::SetStatus(status.bits().into())) } else { Ok(()) }
    }

    /// Says that the driver is set up: from now on the device is live (3.1.1).
    ///
    /// # Errors
    /// Those of a connection.
    pub fn set_driver_ok(&mut self) -> Result<(), FrontendError> {
        use DeviceStatus as S;
        self.set_status(S::ACKNOWLEDGE | S::DRIVER | S::FEATURES_OK | S::DRIVER_OK)
    }

    /// Resets the device and negotiates the same features again. It touches no ring any more; each is to be
    /// [recovered](Vring::recover), or retired and made anew.
    ///
    /// # Errors
    /// [`FrontendError::NotNegotiated`] if the back-end knows no reset, and those of a connection.
    pub fn reset(&mut self) -> Result<(), FrontendError> {
        self.reset_device()?;
        self.set_up_device()
    }

    /// Resets the device, and leaves it so.
    ///
    /// # Errors
    /// As of [`Frontend::reset`].
    pub fn reset_device(&mut self) -> Result<(), FrontendError> {
        if self.has(pf::RESET_DEVICE) {
            self.call(Request::ResetDevice)?;
        } else {
            self.require(pf::STATUS, &Request::ResetDevice)?;
            self.set_status(DeviceStatus::empty())?;
        }
        self.started.clear();
        Ok(())
    }

    /// Reads `len` bytes of the configuration space, 256 at most.
    ///
    /// # Errors
    /// [`FrontendError::WrongReply`] if other bytes came, or none: the device has no such.
    pub fn config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, FrontendError> {
        let len = len.min(MAX_CONFIG);
        let question = Request::GetConfig { offset, size: len, flags: 0 };
        self.require(pf::CONFIG, &question)?;
        let Reply { header, mut payload, fds } = self.ask(question)?;
        let head = [offset, len].map(u32::to_le_bytes).concat();
        if payload.len() == 12 + len as usize && payload.starts_with(&head) && fds.is_empty() {
            payload.drain(..12);
            return Ok(payload);
        }
        let reply = Reply { header, payload, fds };
        let what = format!("{} bytes that are not those from {offset} on", reply.payload.len());
        // The back-end says no by an empty reply.
        if reply.payload.is_empty() { Err(reply.wrong(what)) } else { self.checked(Err(reply.wrong(what))) }
    }

    /// Writes to the configuration space, as the driver.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), FrontendError> {
        self.call_with(pf::CONFIG, Request::SetConfig { offset, flags: 0, bytes: bytes.to_vec() })
    }

    /// Tells a network device the MTU of the host.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn set_mtu(&mut self, mtu: u16) -> Result<(), FrontendError> {
        self.call_with(pf::MTU, Request::NetSetMtu(mtu.into()))
    }

    /// Asks a network device to announce its guest after a migration.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn send_rarp(&mut self, mac: [u8; 6]) -> Result<(), FrontendError> {
        let mut address = [0; 8];
        address[..6].copy_from_slice(&mac);
        self.call_with(pf::RARP, Request::SendRarp(u64::from_le_bytes(address)))
    }

    // Vrings

    /// Makes a vring in `memory`, by the features negotiated. The back-end learns of it by [`Frontend::start`].
    ///
    /// # Errors
    /// As of [`Vring::new`].
    pub fn set_up_vring<T>(
        &self,
        config: VringConfig,
        memory: &mut Memory,
    ) -> Result<Vring<T>, FrontendError> {
        Vring::new(self.features, config, memory)
    }

    /// Starts a vring where it is to go on: the device looks at it from now on, if it is live. A ring is best
    /// [enabled](Frontend::enable) before: a network device, for one, drops what it finds in a transmit ring that is not.
    ///
    /// # Errors
    /// [`FrontendError::InUse`] if it is started, [`FrontendError::OtherFeatures`] if it was made for others, and
    /// those of a connection.
    pub fn start(&mut self, vring: &mut impl AsMut<BareVring>) -> Result<(), FrontendError> {
        let vring = vring.as_mut();
        self.start_unkicked(vring)?;
        // A ring starts with its first kick (Starting and stopping rings).
        match vring.signals() {
            Signals::Events => Ok(vring.kick().signal()?),
            Signals::Polled => Ok(()),
            Signals::Inband => self.call(Request::VringKick { index: vring.index() }),
        }
    }

    /// Tells the back-end all that it needs to start a vring, and leaves the first kick to the driver.
    ///
    /// # Errors
    /// As of [`Frontend::start`].
    pub fn start_unkicked(&mut self, vring: &mut impl AsMut<BareVring>) -> Result<(), FrontendError> {
        let vring = vring.as_mut();
        let index = vring.index();
        if vring.is_started {
            return Err(FrontendError::InUse { index });
        }
        if vring.features() != self.features {
            return Err(FrontendError::OtherFeatures { index });
        }
        if vring.signals() == Signals::Inband {
            self.require(pf::INBAND_NOTIFICATIONS, &Request::VringKick { index })?;
        }
        let addresses = VringAddresses { log: Some(vring.log), ..vring.addresses() };
        self.call(Request::SetVringNum { index, num: vring.size().into() })?;
        self.call(Request::SetVringBase { index, base: vring.base })?;
        self.set_vring_addr(index, addresses)?;
        match vring.signals() {
            Signals::Events => {
                self.call(Request::SetVringErr { index, fd: Some(vring.err().share()?) })?;
                self.call(Request::SetVringCall { index, fd: Some(vring.call().share()?) })?;
                self.call(Request::SetVringKick { index, fd: Some(vring.kick().share()?) })?;
            }
            Signals::Polled => {
                self.call(Request::SetVringCall { index, fd: None })?;
                self.call(Request::SetVringKick { index, fd: None })?;
            }
            Signals::Inband => {}
        }
        vring.is_started = true;
        self.started.push(Started { index, addresses });
        Ok(())
    }

    /// Says where a ring is, and whether its used ring is logged.
    fn set_vring_addr(&mut self, index: u32, addresses: VringAddresses) -> Result<(), FrontendError> {
        let log = addresses.log.filter(|_| self.is_logging);
        self.call(Request::SetVringAddr { index, addresses: VringAddresses { log, ..addresses } })
    }

    /// Enables a vring or disables it. Without protocol features a ring is enabled as long as it is started.
    ///
    /// # Errors
    /// [`FrontendError::NotNegotiated`] to disable one that way, and those of a connection.
    pub fn enable(&mut self, vring: &impl AsRef<BareVring>, enable: bool) -> Result<(), FrontendError> {
        let request = Request::SetVringEnable { index: vring.as_ref().index(), enable };
        match (self.has_protocol_features, enable) {
            (true, _) => self.call(request),
            (false, true) => Ok(()),
            (false, false) => Err(FrontendError::NotNegotiated {
                request: name(request.number()),
                feature: F_PROTOCOL_FEATURES,
            }),
        }
    }

    /// Stops a vring. The device touches it no more, and goes on from the base returned when it is started again.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn stop(&mut self, vring: &mut impl AsMut<BareVring>) -> Result<u32, FrontendError> {
        let vring = vring.as_mut();
        let reply = self.ask(Request::GetVringBase { index: vring.index() })?;
        let answer = reply.exactly::<8>().map(|bytes| {
            let both = u64::from_le_bytes(bytes);
            (both as u32, (both >> 32) as u32)
        });
        let (index, base) = self.checked(answer)?;
        if index != vring.index() {
            return self.checked(Err(reply.wrong(format!("the base of vring {index}"))));
        }
        vring.is_started = false;
        vring.base = base;
        self.started.retain(|started| started.index != index);
        Ok(base)
    }

    /// Publishes what was added to a vring, and kicks it if the device asked for that, by a message if that is how it is
    /// kicked.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn publish<T>(&mut self, vring: &mut Vring<T>) -> Result<(), FrontendError> {
        if vring.signals() != Signals::Inband {
            return Ok(vring.publish()?);
        }
        let index = vring.index();
        if vring.queue_mut().publish() { self.call(Request::VringKick { index }) } else { Ok(()) }
    }

    // IOMMU

    /// Tells the back-end where `len` bytes at the I/O address `iova` are.
    ///
    /// # Errors
    /// [`FrontendError::Memory`] if no shared memory is there, and those of a connection.
    pub fn update_iotlb(
        &mut self,
        iova: u64,
        len: u64,
        frontend_va: FrontendVa,
        read: bool,
        write: bool,
    ) -> Result<(), FrontendError> {
        let holds = |(r, _): &(RegionDescription, OwnedFd)| {
            let offset = frontend_va.0.wrapping_sub(r.frontend_va.0);
            offset < r.len && len <= r.len - offset
        };
        if !self.memory.iter().any(holds) {
            return Err(MemoryError::UnmappedArea { addr: frontend_va, len }.into());
        }
        self.iotlb(Iotlb { iova, len, frontend_va, read, write, kind: IotlbKind::Update })
    }

    /// Takes back what the back-end was told of `len` bytes at `iova`. When this returns, it uses them no more.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn invalidate_iotlb(&mut self, iova: u64, len: u64) -> Result<(), FrontendError> {
        let frontend_va = FrontendVa(0);
        self.iotlb(Iotlb { iova, len, frontend_va, read: false, write: false, kind: IotlbKind::Invalidate })
    }

    /// Answers a miss as an IOMMU does that maps all shared memory where the guest has it, for reading and writing;
    /// false if no memory is there.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn answer_miss(&mut self, miss: &Iotlb) -> Result<bool, FrontendError> {
        let holds = |r: &&RegionDescription| miss.iova.wrapping_sub(r.gpa.0) < r.len;
        let Some(region) = self.memory.iter().map(|(region, _)| region).find(holds).copied() else {
            return Ok(false);
        };
        self.update_iotlb(region.gpa.0, region.len, region.frontend_va, true, true)?;
        Ok(true)
    }

    fn iotlb(&mut self, message: Iotlb) -> Result<(), FrontendError> {
        let request = Request::Iotlb(message);
        if self.features & feature::ACCESS_PLATFORM == 0 {
            let request = name(request.number());
            return Err(FrontendError::NotNegotiated { request, feature: feature::ACCESS_PLATFORM });
        }
        self.call(request)
    }

    // The back-end's requests

    /// Gives the back-end a channel for requests of its own.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn open_channel(&mut self) -> Result<Channel, FrontendError> {
        let (channel, theirs) = Channel::new(self.has(pf::REPLY_ACK))?;
        self.call_with(pf::BACKEND_REQ, Request::SetBackendReqFd(theirs))?;
        Ok(channel)
    }

    // Requests

    fn has(&self, feature: u64) -> bool {
        self.protocol_features & feature != 0
    }

    fn require(&self, feature: u64, request: &Request) -> Result<(), FrontendError> {
        if self.has(feature) {
            return Ok(());
        }
        Err(FrontendError::NotNegotiated { request: name(request.number()), feature })
    }

    fn call_with(&mut self, feature: u64, request: Request) -> Result<(), FrontendError> {
        self.require(feature, &request)?;
        self.call(request)
    }

    fn call(&mut self, request: Request) -> Result<(), FrontendError> {
        let result = self.connection.call(request);
        self.checked(result)
    }

    fn ask(&mut self, question: Request) -> Result<Reply, FrontendError> {
        let result = self.connection.ask(question);
        self.checked(result)
    }

    fn ask_number(&mut self, question: Request) -> Result<u64, FrontendError> {
        let result = self.connection.ask_number(question);
        self.checked(result)
    }

    /// Closes the connection after an error that leaves it unknown what comes next.
    fn checked<T>(&mut self, result: Result<T, FrontendError>) -> Result<T, FrontendError> {
        if let Err(error) = &result
            && error.is_final()
        {
            self.connection.close();
        }
        result
    }
}
