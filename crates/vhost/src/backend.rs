//! The back-end's side of a session: requests in, replies out, vrings started and stopped in between.
//!
//! ```text
//!                        ┌─ memory     regions, the log, postcopy
//!   request ──► Session ─┼─ vrings     set up, start, stop ──► Device
//!   reply   ◄──          ├─ state      the device's, to another back-end and back
//!                        └─ channel ──► the front-end: calls, misses, changes
//! ```
//!
//! A request that cannot be carried out is refused: with a non-zero answer if the front-end asked for one
//! (`REPLY_ACK`) or the request is a question, else by the end of the session, for then there is no other way to
//! tell it.
//!
//! Not here: the socket ([`crate::socket`]), what a device does with its vrings ([`Device`]).

pub(crate) mod channel;
mod device;
mod error;
pub(crate) mod handover;
mod iotlb;
mod memory;
mod state;
mod vrings;

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringway_memory::{Access, DirtyLog, Iotlb, MemoryTable};
use rustix::event::PollFlags;
use tracing::{debug, warn};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

pub use device::Device;
pub use error::{RequestError, SessionError};

use self::channel::{Channel, Note};
use self::memory::Postcopy;
use self::state::Transfer;
use crate::base::Base;
use crate::inflight::InflightFile;
use crate::message::{
    CONFIG_MIGRATION, DEVICE_STATE_NO_FD, DeviceStateTransfer, F_LOG_ALL, F_PROTOCOL_FEATURES, Header,
    InflightDescription, MAX_CONFIG, MessageError, Outgoing, Request, StateDirection, name,
    protocol_feature as pf,
};
use crate::socket::Message;
use crate::vring::Vring;

/// The most memory regions of a session: what QEMU asks for at most.
pub const MAX_REGIONS: usize = 509;

/// The protocol features that every session offers, whatever the device; see [`Device::protocol_features`].
pub const SESSION_FEATURES: u64 = pf::MQ
    | pf::LOG_SHMFD
    | pf::REPLY_ACK
    | pf::BACKEND_REQ
    | pf::BACKEND_SEND_FD
    | pf::INFLIGHT_SHMFD
    | pf::INBAND_NOTIFICATIONS
    | pf::CONFIGURE_MEM_SLOTS
    | pf::RESET_DEVICE
    | pf::STATUS
    | pf::GET_VRING_BASE_INFLIGHT;

/// Features of the transport, which the device knows nothing of.
const TRANSPORT_FEATURES: u64 = F_PROTOCOL_FEATURES | F_LOG_ALL;

/// Protocol features that mean nothing without others.
const NEEDS: [(u64, u64, &str); 2] = [
    (
        pf::INBAND_NOTIFICATIONS,
        pf::BACKEND_REQ | pf::REPLY_ACK,
        "INBAND_NOTIFICATIONS needs BACKEND_REQ and REPLY_ACK",
    ),
    (pf::GET_VRING_BASE_INFLIGHT, pf::INFLIGHT_SHMFD, "GET_VRING_BASE_INFLIGHT needs INFLIGHT_SHMFD"),
];

/// What becomes of a request that was carried out.
enum Answer {
    /// Nothing to say but that.
    Done,
    /// Its own reply.
    Reply(Vec<u8>, Option<OwnedFd>),
    /// The reply comes later: [`Session::turn`].
    Later,
}

impl Answer {
    fn number(n: u64) -> Self {
        Self::Reply(U64::new(n).as_bytes().to_vec(), None)
    }
}

/// A session with one front-end.
pub struct Session<D: Device> {
    /// How messages call it.
    name: String,
    device: D,
    vrings: Vec<Vring>,
    /// The guest's memory, with the log if it is on.
    memory: Arc<MemoryTable>,
    /// The virtio features acked, those of the transport included; `None` before.
    features: Option<u64>,
    protocol_features: u64,
    /// The channel for requests of ours.
    channel: Option<Arc<Channel>>,
    /// Where to log what is written to the memory, while `F_LOG_ALL` is on.
    log: Option<Arc<DirtyLog>>,
    /// Where to record what is in flight.
    inflight: Option<InflightFile>,
    /// The driver has written to the configuration space since the device was reset.
    has_orders: bool,
    /// What is known of the guest's IOMMU, with `ACCESS_PLATFORM`.
    translations: Arc<Iotlb>,
    /// What was asked for and not answered yet, by address.
    asked: BTreeMap<u64, Access>,
    postcopy: Postcopy,
    /// The device's state on its way.
    transfer: Option<Transfer>,
    /// A request that is still to be answered.
    owed: Option<Header>,
    /// The configuration space has changed, and the front-end was not told.
    is_config_new: bool,
}

impl<D: Device> Session<D> {
    /// A new session: all vrings stopped and disabled. `name` is how messages call it.
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
            channel: None,
            log: None,
            inflight: None,
            has_orders: false,
            translations: Arc::default(),
            asked: BTreeMap::new(),
            postcopy: Postcopy::default(),
            transfer: None,
            owed: None,
            is_config_new: false,
        }
    }

    /// The device, to be told what happened to it.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
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
        // First: whoever serves a vring may be waiting for a page that will not arrive any more.
        self.stop_watching();
        self.stop_all();
        self.device.reset();
        self.device
    }

    /// Tells the front-end that the device's configuration space or status has changed by itself.
    pub fn config_changed(&mut self) {
        self.is_config_new = true;
        self.tell_config_changed();
    }

    /// A suspended device sends nothing (Suspended device state): what changes meanwhile is told when a ring runs.
    fn tell_config_changed(&mut self) {
        if !self.is_any_running() || !std::mem::take(&mut self.is_config_new) {
            return;
        }
        if self.has_protocol(pf::CONFIG)
            && let Some(channel) = &self.channel
        {
            channel.say(Note::ConfigChange);
        }
    }

    /// What to poll for beside the session's socket; then [`Session::turn`].
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let channel = self.channel.as_ref().map(|channel| channel.interest());
        let transfer = self.transfer.as_ref().and_then(Transfer::interest);
        let kicks = self.first_kicks().map(|kick| (kick, PollFlags::IN));
        channel.into_iter().chain(transfer).chain(kicks)
    }

    /// Does what can be done now without a request. Returns a reply that was owed.
    pub fn turn(&mut self) -> Option<Outgoing> {
        if let Some(channel) = &self.channel {
            channel.turn();
        }
        if let Some(transfer) = &mut self.transfer {
            transfer.proceed();
        }
        self.look_for_first_kicks();
        let header = self.owed.take()?;
        if let Answer::Reply(payload, _) = self.check_device_state() {
            return Some(header.reply(&payload).into());
        }
        self.owed = Some(header);
        None
    }

    /// Whether a reply is owed that [`Session::turn`] will return. Until then no request is to be read: replies go
    /// in the order of their requests.
    pub fn owes_reply(&self) -> bool {
        self.owed.is_some()
    }

    /// Carries out a request. Returns the reply, if there is one now.
    ///
    /// # Errors
    /// [`SessionError`]; the session is to be ended.
    pub fn handle(&mut self, message: Message) -> Result<Option<Outgoing>, SessionError> {
        let Message { header, payload, fds } = message;
        if self.owes_reply() {
            return Err(SessionError::OwesReply(name(header.request)));
        }
        let request = match Request::decode(&header, &payload, fds) {
            Err(MessageError::Unsupported(_)) if self.wants_ack(&header) => {
                return Ok(Some(header.reply(U64::new(1).as_bytes()).into()));
            }
            other => other?,
        };
        debug!(request = name(header.request), "request");
        let reply = |payload: &[u8], fd: Option<OwnedFd>| {
            Ok(Some(Outgoing { bytes: header.reply(payload), fds: fd.into_iter().collect() }))
        };
        match self.carry_out(request) {
            Ok(Answer::Reply(payload, fd)) => reply(&payload, fd),
            Ok(Answer::Later) => {
                self.owed = Some(header);
                Ok(None)
            }
            Ok(Answer::Done) if self.wants_ack(&header) => reply(U64::ZERO.as_bytes(), None),
            Ok(Answer::Done) => Ok(None),
            Err(error) => match self.refusal(&header) {
                Some(payload) => {
                    warn!("{}: {} refused: {error}", self.name, name(header.request));
                    reply(&payload, None)
                }
                None => Err(SessionError::Request { request: name(header.request), error }),
            },
        }
    }

    /// Whether the request is to be answered with success or failure: what counts is that `REPLY_ACK` was
    /// acked, whether or not the front-end ever asked for the protocol features. A question has its own answer.
    fn wants_ack(&self, header: &Header) -> bool {
        header.needs_reply() && self.has_protocol(pf::REPLY_ACK) && !Request::is_question(header.request)
    }

    /// The payload that tells the front-end that its request was refused, if there is a way to tell it.
    fn refusal(&self, header: &Header) -> Option<Vec<u8>> {
        let number = |n: u64| Some(U64::new(n).as_bytes().to_vec());
        match header.request {
            SET_LOG_BASE if self.has_protocol(pf::LOG_SHMFD) => number(1),
            IOTLB_MSG | POSTCOPY_END | CHECK_DEVICE_STATE => number(1),
            SET_DEVICE_STATE_FD => number(DEVICE_STATE_NO_FD | 1),
            // No region: no file comes with it.
            GET_INFLIGHT_FD => {
                Some(InflightDescription { len: 0, offset: 0, queues: 0, queue_size: 0 }.encode())
            }
            // An empty configuration space; no file.
            GET_CONFIG | POSTCOPY_ADVISE | GET_SHARED_OBJECT => Some(Vec::new()),
            _ if self.wants_ack(header) => number(1),
            _ => None,
        }
    }

    fn has_protocol(&self, feature: u64) -> bool {
        self.protocol_features & feature != 0
    }

    fn require(&self, feature: u64) -> Result<(), RequestError> {
        if self.has_protocol(feature) { Ok(()) } else { Err(RequestError::NotNegotiated) }
    }

    fn offered_protocol_features(&self) -> u64 {
        let without = if self.device.is_told_status() { 0 } else { pf::STATUS };
        SESSION_FEATURES & !without | self.device.protocol_features()
    }

    /// Carries out a request.
    fn carry_out(&mut self, request: Request) -> Result<Answer, RequestError> {
        match request {
            Request::GetFeatures => return Ok(Answer::number(self.device.features() | TRANSPORT_FEATURES)),
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::GetProtocolFeatures => return Ok(Answer::number(self.offered_protocol_features())),
            Request::SetProtocolFeatures(features) => self.set_protocol_features(features)?,
            // Both are of no consequence: a session has one owner, who leaves by closing the socket.
            Request::SetOwner | Request::ResetOwner => {}
            Request::GetQueueNum => return Ok(Answer::number(self.device.queue_num())),
            Request::GetMaxMemSlots => return Ok(Answer::number(MAX_REGIONS as u64)),

            Request::SetMemTable(regions) => return self.set_mem_table(regions),
            Request::AddMemReg(region, file) => return self.add_mem_reg(region, file),
            Request::PostcopyMemoryAck => self.postcopy_memory_ack()?,
            Request::RemMemReg(region) => self.rem_mem_reg(region)?,
            Request::SetLogBase { len, offset, fd } => return self.set_log_base(fd, offset, len),
            Request::SetLogAddress(_) => return Err(RequestError::LogAddress),
            // The front-end looks at the log when it wants to, so nobody needs to be told that it has changed.
            Request::SetLogFd(fd) => drop(fd),
            Request::PostcopyAdvise => return self.postcopy_advise(),
            Request::PostcopyListen => self.postcopy_listen()?,
            Request::PostcopyEnd => return self.postcopy_end(),

            Request::GetInflightFd(wanted) => return self.get_inflight_fd(wanted),
            Request::SetInflightFd(description, fd) => self.set_inflight_fd(description, fd)?,

            Request::SetVringNum { index, num } => self.set_vring_num(index, num)?,
            Request::SetVringAddr { index, addresses } => self.set_vring_addr(index, addresses)?,
            Request::SetVringBase { index, base } => self.set_vring_base(index, base)?,
            Request::GetVringBase { index } => return self.get_vring_base(index),
            Request::SetVringKick { index, fd } => self.set_vring_kick(index, fd)?,
            Request::SetVringCall { index, fd } => self.set_vring_call(index, fd)?,
            Request::SetVringErr { index, fd } => self.set_vring_err(index, fd)?,
            Request::SetVringEnable { index, enable } => self.set_vring_enable(index, enable)?,
            Request::VringKick { index } => self.vring_kick(index)?,
            Request::Iotlb(message) => return self.iotlb(message),
            Request::SetVringEndian { .. } => return Err(RequestError::CrossEndian),

            Request::SendRarp(address) => {
                self.require(pf::RARP)?;
                let [address @ .., _, _] = address.to_le_bytes();
                if self.device.announce(address) {
                    self.config_changed();
                }
            }
            Request::NetSetMtu(mtu) => {
                self.require(pf::MTU)?;
                self.accept(|device| device.set_mtu(mtu))?;
            }
            Request::GetConfig { offset, size, flags } => return self.get_config(offset, size, flags),
            Request::SetConfig { offset, flags, bytes } => {
                self.require(pf::CONFIG)?;
                let is_migration = flags == CONFIG_MIGRATION;
                self.accept(|device| device.write_config(offset as usize, &bytes, is_migration))?;
                self.has_orders = true;
                self.record_orders();
            }
            Request::SetBackendReqFd(fd) => self.set_channel(fd)?,
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
                return Ok(Answer::number(self.device.status().into()));
            }
            Request::GetSharedObject(uuid) => {
                self.require(pf::SHARED_OBJECT)?;
                return Ok(Answer::Reply(Vec::new(), self.device.shared_object(uuid)));
            }
            Request::SetDeviceStateFd(transfer, fd) => return self.set_device_state_fd(transfer, fd),
            Request::CheckDeviceState => {
                self.require(pf::DEVICE_STATE)?;
                return Ok(self.check_device_state());
            }
            // No device here has memory that it shares with the guest.
            Request::GetShmemConfig => return Err(RequestError::NotNegotiated),
        }
        Ok(Answer::Done)
    }

    fn is_any_running(&self) -> bool {
        self.vrings.iter().any(|vring| vring.is_running)
    }

    /// Has the device do what it may refuse.
    fn accept(&mut self, f: impl FnOnce(&mut D) -> bool) -> Result<(), RequestError> {
        if f(&mut self.device) { Ok(()) } else { Err(RequestError::Refused) }
    }

    // Features and status

    fn set_features(&mut self, features: u64) -> Result<(), RequestError> {
        let is_new = |of: u64| self.features.is_none_or(|before| (before ^ features) & of != 0);
        let (is_new_device, is_new_log) = (is_new(!TRANSPORT_FEATURES), is_new(F_LOG_ALL));
        if is_new_device || is_new_log {
            // What a ring is made of depends on the features: those that run start over.
            self.pause_all();
        }
        if is_new_device {
            self.features = None;
            self.device.ack_features(features & !TRANSPORT_FEATURES).map_err(RequestError::Features)?;
        }
        self.features = Some(features);
        self.update_memory();
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
        for (feature, needed, why) in NEEDS {
            if features & feature != 0 && features & needed != needed {
                return Err(RequestError::Features(why.to_owned()));
            }
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
        self.has_orders = false;
        if self.inflight.as_ref().is_some_and(|file| file.orders().is_some()) {
            self.record_orders();
        }
        // Nothing is in flight any more. Who wants it recorded again gives another file, or the same.
        self.inflight = None;
        self.translations = Arc::default();
        self.asked.clear();
        self.update_memory();
    }

    // The device's configuration and state

    fn get_config(&self, offset: u32, size: u32, flags: u32) -> Result<Answer, RequestError> {
        self.require(pf::CONFIG)?;
        if offset.saturating_add(size) > MAX_CONFIG {
            return Err(RequestError::Refused);
        }
        let mut bytes = vec![0; size as usize];
        self.device.read_config(offset as usize, &mut bytes);
        Ok(Answer::Reply(crate::message::config(offset, flags, &bytes), None))
    }

    fn set_device_state_fd(
        &mut self,
        transfer: DeviceStateTransfer,
        fd: OwnedFd,
    ) -> Result<Answer, RequestError> {
        self.require(pf::DEVICE_STATE)?;
        if self.is_any_running() {
            return Err(RequestError::OutOfTurn("a vring is running"));
        }
        if transfer.phase != 0 {
            return Err(RequestError::Refused);
        }
        self.transfer = Some(match transfer.direction {
            StateDirection::Save => Transfer::save(fd, self.device.save_state())?,
            StateDirection::Load => Transfer::load(fd)?,
        });
        Ok(Answer::number(DEVICE_STATE_NO_FD))
    }

    /// How the transfer of the device's state went; once it is known.
    fn check_device_state(&mut self) -> Answer {
        let Some(mut transfer) = self.transfer.take() else { return Answer::number(1) };
        transfer.proceed();
        let result = match transfer.finish() {
            Err(unfinished) => {
                self.transfer = Some(unfinished);
                return Answer::Later;
            }
            Ok(Ok(Some(_))) if self.is_any_running() => Err(RequestError::OutOfTurn("a vring is running")),
            Ok(Ok(Some(state))) => {
                let result = self.device.load_state(&state);
                self.is_config_new |= result.is_ok();
                result.map_err(RequestError::DeviceState)
            }
            Ok(other) => other.map(|_| ()),
        };
        if let Err(error) = &result {
            warn!("{}: {error}", self.name);
        }
        Answer::number(result.is_err().into())
    }
}

// Requests whose refusal has a form of its own.
const SET_LOG_BASE: u32 = 6;
const IOTLB_MSG: u32 = 22;
const GET_CONFIG: u32 = 24;
const POSTCOPY_ADVISE: u32 = 28;
const POSTCOPY_END: u32 = 30;
const GET_INFLIGHT_FD: u32 = 31;
const GET_SHARED_OBJECT: u32 = 41;
const SET_DEVICE_STATE_FD: u32 = 42;
const CHECK_DEVICE_STATE: u32 = 43;

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
