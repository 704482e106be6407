//! The back-end's side of a session: requests in, replies out, vrings started and stopped in between.
//!
//! A request that cannot be carried out is refused: with a non-zero answer if the front-end asked for one
//! (`REPLY_ACK`), else by the end of the session, for then there is no other way to tell it.
//!
//! Not here: the socket ([`crate::socket`]), what a device does with its vrings ([`Device`]).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringway_memory::{MapError, Mapping, MemoryError, MemoryTable, Region};
use ringway_queue::{ConfigError, ResumeState};
use ringway_spec::packed;
use ringway_spec::status::DeviceStatus;
use thiserror::Error;
use tracing::debug;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::base::Base;
use crate::message::{
    F_PROTOCOL_FEATURES, MAX_CONFIG, MessageError, Outgoing, RegionDescription, Request, VringAddresses,
    name, protocol_feature as pf,
};
use crate::socket::Message;
use crate::vring::{Kick, Notifier, Running, Vring, check_kick};

/// The most memory regions of a session: what QEMU asks for at most.
pub const MAX_REGIONS: usize = 509;

/// What every session offers, whatever the device.
///
/// `BACKEND_REQ` though nothing is ever sent on its channel: User-Mode Linux sets its interrupts up only with it.
const PROTOCOL_FEATURES: u64 =
    pf::MQ | pf::REPLY_ACK | pf::BACKEND_REQ | pf::CONFIGURE_MEM_SLOTS | pf::RESET_DEVICE | pf::STATUS;

/// A device behind a session. Vrings are named by their index, below [`Device::max_queues`].
pub trait Device {
    /// The virtio features offered.
    fn features(&self) -> u64;

    /// The protocol features that this device adds to those of every session: `CONFIG`, `MTU`.
    fn protocol_features(&self) -> u64 {
        0
    }

    /// How many vrings there can be.
    fn max_queues(&self) -> u16;

    /// The answer to `GET_QUEUE_NUM`: queue pairs for a network device, queues for others.
    fn queue_num(&self) -> u64;

    /// The driver acked these features. The message of an error is for people.
    fn ack_features(&mut self, features: u64) -> Result<(), String>;

    /// The device status.
    fn status(&self) -> u8;

    /// The driver wrote the device status, not 0.
    fn set_status(&mut self, status: u8);

    /// Back to the state of the start; all vrings have been stopped.
    fn reset(&mut self);

    /// Copies the configuration space from `offset` on.
    fn read_config(&self, offset: usize, to: &mut [u8]);

    /// The driver wrote to the configuration space; false if it may not.
    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) -> bool {
        false
    }

    /// The front-end's MTU; false if the device cannot have it.
    fn set_mtu(&mut self, _mtu: u64) -> bool {
        false
    }

    /// Whether this vring exists by what was negotiated.
    fn has_vring(&self, index: u16) -> bool;

    /// A vring runs from now on. The device looks at the ring at once: a kick may have come before.
    fn start_vring(&mut self, index: u16, vring: Running);

    /// A running vring stops: chains in flight are completed, and the ring is not touched after.
    fn stop_vring(&mut self, index: u16) -> ResumeState;

    /// A running vring is enabled or disabled.
    fn enable_vring(&mut self, index: u16, enabled: bool);

    /// Another call file descriptor for a running vring. It is signalled once: a call may have gone to the one
    /// before.
    fn set_call(&mut self, index: u16, call: Notifier);

    /// Another err file descriptor for a running vring.
    fn set_err(&mut self, index: u16, err: Notifier);
}

/// Why a request is refused.
#[derive(Debug, Error)]
pub enum RequestError {
    /// There is no such vring.
    #[error("vring {index} does not exist, there are {count}")]
    NoVring {
        /// The index named.
        index: u32,
        /// How many there are.
        count: u16,
    },
    /// The feature that the request belongs to was not negotiated.
    #[error("its feature was not negotiated")]
    NotNegotiated,
    /// Features that were not offered, or do not go together.
    #[error("{0}")]
    Features(String),
    /// The vring's size.
    #[error("vring size {0} is not from 1 to 32768")]
    VringSize(u32),
    /// A split vring's base.
    #[error("vring base {0:#x} has more than 16 bits, and the ring is not packed")]
    VringBase(u32),
    /// The request is for a stopped vring.
    #[error("vring {0} is running")]
    IsRunning(u32),
    /// An area is outside of the memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The region cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The queue cannot start.
    #[error(transparent)]
    Queue(#[from] ConfigError),
    /// No such region to remove.
    #[error("there is no memory region of {} bytes at guest address {}", .0.len, .0.gpa)]
    NoRegion(RegionDescription),
    /// Too many regions.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooManyRegions,
    /// The device refuses the value.
    #[error("the device does not allow it")]
    Refused,
    /// A kick, call or err that is no file of events.
    #[error("its file descriptor is no event counter, pipe or socket")]
    NotAnEvent,
    /// The vring cannot start with what was negotiated.
    #[error("vring {0} does not exist by the features negotiated")]
    NotNegotiatedVring(u16),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<rustix::io::Errno> for RequestError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Why a session ends.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The bytes are no request.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The request could not be carried out, and the front-end did not ask for an answer.
    #[error("{request}: {error}")]
    Request {
        /// The request's name.
        request: &'static str,
        /// Why.
        error: RequestError,
    },
}

/// A session with one front-end.
pub struct Session<D: Device> {
    /// How the user calls it.
    name: String,
    device: D,
    vrings: Vec<Vring>,
    memory: Arc<MemoryTable>,
    /// The virtio features acked, `F_PROTOCOL_FEATURES` included; `None` before.
    features: Option<u64>,
    protocol_features: u64,
    /// The channel for requests of ours, open for as long as the front-end may look at it.
    backend_channel: Option<OwnedFd>,
}

impl<D: Device> Session<D> {
    /// A new session: all vrings stopped and disabled. `name` is how the user calls it.
    pub fn new(name: &str, device: D) -> Self {
        let name = name.to_owned();
        let vrings = (0..device.max_queues()).map(|_| Vring::default()).collect();
        Self {
            name,
            device,
            vrings,
            memory: Arc::default(),
            features: None,
            protocol_features: 0,
            backend_channel: None,
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Whether the front-end took memory away that it had given.
    pub fn is_memory_intact(&self) -> bool {
        self.memory.is_intact()
    }

    /// Ends the session: all vrings are stopped, the device is reset and returned.
    pub fn end(mut self) -> D {
        self.stop_all();
        self.device.reset();
        self.device
    }

    /// Carries out a request. Returns the reply, if there is one.
    ///
    /// # Errors
    /// [`SessionError`]; the session is to be ended.
    pub fn handle(&mut self, message: Message) -> Result<Option<Outgoing>, SessionError> {
        let Message { header, payload, fds } = message;
        let request = match Request::decode(&header, &payload, fds) {
            Err(MessageError::Unsupported(_)) if self.wants_ack(&header) => {
                return Ok(Some(header.reply(U64::new(1).as_bytes()).into()));
            }
            other => other?,
        };
        debug!(request = name(header.request), "request");
        match self.carry_out(request) {
            Ok(Some(reply)) => Ok(Some(header.reply(&reply).into())),
            Ok(None) if self.wants_ack(&header) => Ok(Some(header.reply(U64::new(0).as_bytes()).into())),
            Ok(None) => Ok(None),
            Err(error) if self.wants_ack(&header) => {
                tracing::warn!("port {}: {} refused: {error}", self.name, name(header.request));
                Ok(Some(header.reply(U64::new(1).as_bytes()).into()))
            }
            Err(error) => Err(SessionError::Request { request: name(header.request), error }),
        }
    }

    /// Whether the request is to be answered with success or failure: what counts is that `REPLY_ACK` was
    /// acked, whether or not the front-end ever asked for the protocol features. A question has its own answer.
    fn wants_ack(&self, header: &crate::message::Header) -> bool {
        header.needs_reply() && self.has_protocol(pf::REPLY_ACK) && !Request::is_question(header.request)
    }

    fn has_protocol(&self, feature: u64) -> bool {
        self.protocol_features & feature != 0
    }

    fn require(&self, feature: u64) -> Result<(), RequestError> {
        if self.has_protocol(feature) { Ok(()) } else { Err(RequestError::NotNegotiated) }
    }

    fn offered_protocol_features(&self) -> u64 {
        PROTOCOL_FEATURES | self.device.protocol_features()
    }

    /// Carries out a request; returns the payload of its own reply, if it is a question.
    fn carry_out(&mut self, request: Request) -> Result<Option<Vec<u8>>, RequestError> {
        let number = |n: u64| Ok(Some(U64::new(n).as_bytes().to_vec()));
        match request {
            Request::GetFeatures => return number(self.device.features() | F_PROTOCOL_FEATURES),
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::GetProtocolFeatures => return number(self.offered_protocol_features()),
            Request::SetProtocolFeatures(features) => self.set_protocol_features(features)?,
            // Both are of no consequence: a session has one owner, who leaves by closing the socket.
            Request::SetOwner | Request::ResetOwner => {}
            Request::GetQueueNum => return number(self.device.queue_num()),
            Request::GetMaxMemSlots => return number(MAX_REGIONS as u64),

            Request::SetMemTable(regions) => self.set_mem_table(regions)?,
            Request::AddMemReg(region, file) => self.add_mem_reg(region, file)?,
            Request::RemMemReg(region) => self.rem_mem_reg(region)?,

            Request::SetVringNum { index, num } => self.set_vring_num(index, num)?,
            Request::SetVringAddr { index, addresses } => self.set_vring_addr(index, addresses)?,
            Request::SetVringBase { index, base } => self.set_vring_base(index, base)?,
            Request::GetVringBase { index } => return self.get_vring_base(index).map(Some),
            Request::SetVringKick { index, fd } => self.set_vring_kick(index, fd)?,
            Request::SetVringCall { index, fd } => self.set_vring_call(index, fd)?,
            Request::SetVringErr { index, fd } => self.set_vring_err(index, fd)?,
            Request::SetVringEnable { index, enable } => self.set_vring_enable(index, enable)?,

            Request::NetSetMtu(mtu) => {
                self.require(pf::MTU)?;
                if !self.device.set_mtu(mtu) {
                    return Err(RequestError::Refused);
                }
            }
            Request::SetBackendReqFd(fd) => {
                self.require(pf::BACKEND_REQ)?;
                self.backend_channel = Some(fd);
            }
            Request::GetConfig { offset, size, flags } => {
                if !self.has_protocol(pf::CONFIG) || offset.saturating_add(size) > MAX_CONFIG {
                    // The question is answered, with nothing.
                    return Ok(Some(Vec::new()));
                }
                let mut bytes = vec![0; size as usize];
                self.device.read_config(offset as usize, &mut bytes);
                let head = [offset, size, flags].map(U32::new);
                return Ok(Some([head.as_bytes(), &bytes].concat()));
            }
            Request::SetConfig { offset, flags: _, bytes } => {
                self.require(pf::CONFIG)?;
                if !self.device.write_config(offset as usize, &bytes) {
                    return Err(RequestError::Refused);
                }
            }
            Request::ResetDevice => {
                self.require(pf::RESET_DEVICE)?;
                self.reset();
            }
            Request::SetStatus(status) => {
                self.require(pf::STATUS)?;
                self.set_status(status)?;
            }
            Request::GetStatus => {
                self.require(pf::STATUS)?;
                return number(self.device.status().into());
            }
            _ => return Err(RequestError::NotNegotiated),
        }
        Ok(None)
    }

    fn set_features(&mut self, features: u64) -> Result<(), RequestError> {
        if self.features == Some(features) {
            self.enable_all_unless(features & F_PROTOCOL_FEATURES != 0);
            return Ok(());
        }
        // What a ring is made of depends on the features: those that run start over.
        self.pause_all();
        self.features = None;
        self.device.ack_features(features & !F_PROTOCOL_FEATURES).map_err(RequestError::Features)?;
        self.features = Some(features);
        self.enable_all_unless(features & F_PROTOCOL_FEATURES != 0);
        self.start_ready()
    }

    /// Enables all rings, unless the front-end will say itself which.
    fn enable_all_unless(&mut self, says_which: bool) {
        for (index, vring) in (0..).zip(&mut self.vrings).filter(|_| !says_which) {
            let was_enabled = std::mem::replace(&mut vring.enabled, true);
            if vring.is_running && !was_enabled {
                self.device.enable_vring(index, true);
            }
        }
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<(), RequestError> {
        let unknown = features & !self.offered_protocol_features();
        if unknown != 0 {
            return Err(RequestError::Features(format!(
                "protocol features {unknown:#x} were acked but not offered"
            )));
        }
        self.protocol_features = features;
        Ok(())
    }

    fn set_status(&mut self, status: u64) -> Result<(), RequestError> {
        match u8::try_from(status) {
            Ok(0) => self.reset(),
            Ok(status) => self.device.set_status(status),
            Err(_) => return Err(RequestError::Refused),
        }
        self.start_ready()
    }

    /// Back to the start: no ring runs, nothing is acked, rings begin at their beginning. The memory stays, and
    /// what else the front-end said of the rings: it says it anew before it starts them, but for call, which not
    /// every front-end does.
    fn reset(&mut self) {
        self.stop_all();
        for vring in &mut self.vrings {
            vring.enabled = false;
            vring.base = Base::Start;
        }
        self.features = None;
        self.device.reset();
    }

    // Memory

    fn set_mem_table(&mut self, regions: Vec<(RegionDescription, OwnedFd)>) -> Result<(), RequestError> {
        let regions = regions.into_iter().map(|(r, file)| map(r, file)).collect::<Result<_, _>>()?;
        self.replace_memory(regions)
    }

    fn add_mem_reg(&mut self, region: RegionDescription, file: OwnedFd) -> Result<(), RequestError> {
        self.require(pf::CONFIGURE_MEM_SLOTS)?;
        if self.memory.regions().len() >= MAX_REGIONS {
            return Err(RequestError::TooManyRegions);
        }
        let mut regions = self.memory.regions().to_vec();
        regions.push(map(region, file)?);
        self.replace_memory(regions)
    }

    fn rem_mem_reg(&mut self, region: RegionDescription) -> Result<(), RequestError> {
        self.require(pf::CONFIGURE_MEM_SLOTS)?;
        let is_other =
            |r: &&Region| (r.gpa(), r.len(), r.frontend_va()) != (region.gpa, region.len, region.frontend_va);
        let left: Vec<_> = self.memory.regions().iter().filter(is_other).cloned().collect();
        if left.len() == self.memory.regions().len() {
            return Err(RequestError::NoRegion(region));
        }
        self.replace_memory(left)
    }

    /// Rings that run go on in the new memory; their areas may have moved. Memory that a running ring is not in
    /// is refused, and the old one stays.
    fn replace_memory(&mut self, regions: Vec<Region>) -> Result<(), RequestError> {
        let table = Arc::new(MemoryTable::new(regions)?);
        // Rings run by the features that were acked.
        let features = self.features.unwrap_or_default();
        for vring in self.vrings.iter().filter(|v| v.is_running) {
            vring.resolve(features, &table)?;
        }
        self.pause_all();
        self.memory = table;
        self.start_ready()
    }

    // Vrings

    fn vring(&mut self, index: u32) -> Result<(u16, &mut Vring), RequestError> {
        let count = self.vrings.len() as u16;
        match self.vrings.get_mut(index as usize) {
            Some(vring) => Ok((index as u16, vring)),
            None => Err(RequestError::NoVring { index, count }),
        }
    }

    fn stopped_vring(&mut self, index: u32) -> Result<&mut Vring, RequestError> {
        let (_, vring) = self.vring(index)?;
        if vring.is_running { Err(RequestError::IsRunning(index)) } else { Ok(vring) }
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<(), RequestError> {
        let vring = self.stopped_vring(index)?;
        // Whether it has to be a power of two depends on the features, which may come later.
        match u16::try_from(num) {
            Ok(size @ 1..=packed::MAX_SIZE) => vring.num = Some(size),
            _ => return Err(RequestError::VringSize(num)),
        }
        self.start_ready()
    }

    fn set_vring_addr(&mut self, index: u32, addresses: VringAddresses) -> Result<(), RequestError> {
        let (index, vring) = self.vring(index)?;
        let was_running = vring.is_running;
        vring.addresses = Some(addresses);
        if was_running {
            self.pause(index);
        }
        self.start_ready()
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<(), RequestError> {
        self.stopped_vring(index)?.base = Base::Told(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<Vec<u8>, RequestError> {
        let (at, _) = self.vring(index)?;
        self.pause(at);
        let features = self.features.unwrap_or_default();
        let (_, vring) = self.vring(index)?;
        // The ring is stopped, not reset: it goes on with the next kick file descriptor.
        vring.kick = None;
        let base = vring.base.to_word(features);
        Ok([index, base].map(U32::new).as_bytes().to_vec())
    }

    fn set_vring_kick(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), RequestError> {
        if let Some(fd) = &fd {
            check_kick(fd)?;
        }
        let (index, vring) = self.vring(index)?;
        vring.kick = Some(fd.map_or(Kick::Polled, Kick::Fd));
        self.pause(index);
        self.start_ready()
    }

    fn set_vring_call(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), RequestError> {
        let (at, vring) = self.vring(index)?;
        vring.call = Notifier::new(fd)?;
        if vring.is_running {
            let call = vring.call.try_clone()?;
            self.device.set_call(at, call);
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), RequestError> {
        let (at, vring) = self.vring(index)?;
        vring.err = Notifier::new(fd)?;
        if vring.is_running {
            let err = vring.err.try_clone()?;
            self.device.set_err(at, err);
        }
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<(), RequestError> {
        let (index, vring) = self.vring(index)?;
        vring.enabled = enable;
        if vring.is_running {
            self.device.enable_vring(index, enable);
        }
        Ok(())
    }

    /// Whether the session allows rings to run: features are acked, and the driver is ready if it says so.
    fn may_run(&self) -> Option<u64> {
        let is_live =
            DeviceStatus::from_bits_truncate(self.device.status()).contains(DeviceStatus::DRIVER_OK);
        self.features.filter(|_| is_live || !self.has_protocol(pf::STATUS))
    }

    /// Starts the rings that are complete and do not run. One that cannot start holds no other up: it needs
    /// another kick file descriptor before it is tried again, and the first error is returned.
    fn start_ready(&mut self) -> Result<(), RequestError> {
        let Some(features) = self.may_run() else { return Ok(()) };
        let mut result = Ok(());
        for (index, vring) in (0..).zip(&mut self.vrings) {
            if vring.is_running || !vring.is_complete() {
                continue;
            }
            let started = if self.device.has_vring(index) {
                vring.start(features, &self.memory)
            } else {
                Err(RequestError::NotNegotiatedVring(index))
            };
            match started {
                Ok(running) => self.device.start_vring(index, running),
                Err(error) => {
                    vring.kick = None;
                    result = result.and(Err(error));
                }
            }
        }
        result
    }

    /// Stops a ring, if it runs, and keeps where it was.
    fn pause(&mut self, index: u16) {
        let vring = &mut self.vrings[usize::from(index)];
        if vring.is_running {
            vring.base = Base::Stopped(self.device.stop_vring(index));
            vring.is_running = false;
        }
    }

    fn pause_all(&mut self) {
        for index in 0..self.vrings.len() as u16 {
            self.pause(index);
        }
    }

    /// Stops all rings for good: each needs a new kick file descriptor.
    fn stop_all(&mut self) {
        self.pause_all();
        for vring in &mut self.vrings {
            vring.kick = None;
        }
    }
}

fn map(region: RegionDescription, file: OwnedFd) -> Result<Region, MapError> {
    let RegionDescription { gpa, len, frontend_va, offset } = region;
    Mapping::region(file, offset, len, gpa, frontend_va)
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
