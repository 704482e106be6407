//! The messages of vhost-user: a header of 12 bytes, a payload, and file descriptors beside them.
//!
//! ```text
//! request u32 | flags u32 | size u32 | payload[size]
//!               bits 0-1 version (1), 2 reply, 3 need_reply
//! ```
//!
//! [`Request::decode`] checks all that can be checked without knowing the session: the size of the payload,
//! the number of file descriptors, the ranges of fields.

use std::os::fd::OwnedFd;

use ringway_memory::{FrontendVa, Gpa};
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of a message's header in bytes.
pub const HEADER_LEN: usize = 12;
/// The longest payload taken, in bytes. The longest that exists is a configuration space of a few hundred.
pub const MAX_PAYLOAD: usize = 4096;
/// The most file descriptors of one message.
pub const MAX_FDS: usize = 8;
/// The most memory regions of one `SET_MEM_TABLE`.
pub const MAX_TABLE_REGIONS: usize = 8;

/// Feature bit of the transport: `GET_PROTOCOL_FEATURES` and its sibling exist, and rings start disabled.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features, by their bits.
pub mod protocol_feature {
    /// `GET_QUEUE_NUM`.
    pub const MQ: u64 = 1 << 0;
    /// The front-end can ask for an answer to any request.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// `NET_SET_MTU`.
    pub const MTU: u64 = 1 << 4;
    /// `SET_BACKEND_REQ_FD`: a channel for requests of the back-end.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// `GET_CONFIG`, `SET_CONFIG`.
    pub const CONFIG: u64 = 1 << 9;
    /// `RESET_DEVICE`.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// `GET_MAX_MEM_SLOTS`, `ADD_MEM_REG`, `REM_MEM_REG`.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// `SET_STATUS`, `GET_STATUS`.
    pub const STATUS: u64 = 1 << 16;
}

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// Payload of kick, call and err: no file descriptor comes with it.
const NO_FD: u64 = 1 << 8;
const INDEX_MASK: u64 = 0xff;

/// Why bytes are not a request. Each ends the session: what follows cannot be trusted to be a message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageError {
    /// The flags' version is not 1, or a front-end sent a reply.
    #[error("message {request} has flags {flags:#x}, neither version 1 nor a request")]
    BadFlags {
        /// The request's number.
        request: u32,
        /// Its flags.
        flags: u32,
    },
    /// The payload is longer than any message has.
    #[error("message {request} says it has {size} bytes, more than {MAX_PAYLOAD}")]
    TooLong {
        /// The request's number.
        request: u32,
        /// The size field.
        size: u32,
    },
    /// The payload's size is not the request's.
    #[error("{name} has a payload of {size} bytes")]
    BadSize {
        /// The request's name.
        name: &'static str,
        /// Its payload's size.
        size: usize,
    },
    /// The number of file descriptors is not the request's.
    #[error("{name} came with {count} file descriptors")]
    BadFdCount {
        /// The request's name.
        name: &'static str,
        /// How many there were.
        count: usize,
    },
    /// A field has a value it cannot have.
    #[error("{name}: {field} cannot be {value:#x}")]
    BadValue {
        /// The request's name.
        name: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A request that this back-end does not know.
    #[error("request {0} is not supported")]
    Unsupported(u32),
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The request's number.
    pub request: u32,
    flags: u32,
    size: u32,
}

impl Header {
    /// Reads a header; the payload's size is in bounds then.
    ///
    /// # Errors
    /// [`MessageError::BadFlags`], [`MessageError::TooLong`].
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, MessageError> {
        let [request, flags, size] = zerocopy::transmute!(bytes);
        let [request, flags, size] = [request, flags, size].map(|w: U32| w.get());
        if flags & VERSION_MASK != VERSION || flags & FLAG_REPLY != 0 {
            return Err(MessageError::BadFlags { request, flags });
        }
        if size as usize > MAX_PAYLOAD {
            return Err(MessageError::TooLong { request, size });
        }
        Ok(Self { request, flags, size })
    }

    /// Length of the payload in bytes.
    pub fn payload_len(&self) -> usize {
        self.size as usize
    }

    /// Whether the front-end asks for an answer; it counts only if `REPLY_ACK` was negotiated.
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// The bytes of the reply to this request.
    pub fn reply(&self, payload: &[u8]) -> Vec<u8> {
        let words = [self.request, VERSION | FLAG_REPLY, payload.len() as u32].map(U32::new);
        [words.as_bytes(), payload].concat()
    }
}

/// A memory region, as described by the front-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionDescription {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Its length in bytes.
    pub len: u64,
    /// Where the front-end has it.
    pub frontend_va: FrontendVa,
    /// Where it begins in its file.
    pub offset: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireRegion {
    gpa: U64,
    len: U64,
    frontend_va: U64,
    offset: U64,
}

impl From<&WireRegion> for RegionDescription {
    fn from(wire: &WireRegion) -> Self {
        Self {
            gpa: Gpa(wire.gpa.get()),
            len: wire.len.get(),
            frontend_va: FrontendVa(wire.frontend_va.get()),
            offset: wire.offset.get(),
        }
    }
}

/// Where a vring's areas are in the front-end's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddresses {
    /// Descriptor area.
    pub descriptor: FrontendVa,
    /// Driver area (available ring).
    pub driver: FrontendVa,
    /// Device area (used ring).
    pub device: FrontendVa,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireAddresses {
    index: U32,
    flags: U32,
    descriptor: U64,
    device: U64,
    driver: U64,
    log: U64,
}

/// A request of the front-end. Indices of vrings are not checked here: the device knows how many it has.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant is the message of its name, each field that of the document")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(RegionDescription, OwnedFd)>),
    SetVringNum { index: u32, num: u32 },
    SetVringAddr { index: u32, addresses: VringAddresses },
    SetVringBase { index: u32, base: u32 },
    GetVringBase { index: u32 },
    SetVringKick { index: u32, fd: Option<OwnedFd> },
    SetVringCall { index: u32, fd: Option<OwnedFd> },
    SetVringErr { index: u32, fd: Option<OwnedFd> },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable { index: u32, enable: bool },
    NetSetMtu(u64),
    SetBackendReqFd(OwnedFd),
    GetConfig { offset: u32, size: u32, flags: u32 },
    SetConfig { offset: u32, flags: u32, bytes: Vec<u8> },
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionDescription, OwnedFd),
    RemMemReg(RegionDescription),
    SetStatus(u64),
    GetStatus,
}

impl Request {
    /// Reads the request that `header` announced. File descriptors that a request has no use for are an error,
    /// and closed.
    ///
    /// # Errors
    /// [`MessageError`], all but `BadFlags` and `TooLong`.
    pub fn decode(header: &Header, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Self, MessageError> {
        let mut parts = Parts { name: name(header.request), payload, fds };
        let request = match header.request {
            1 => parts.empty(Self::GetFeatures)?,
            2 => Self::SetFeatures(parts.u64()?),
            3 => parts.empty(Self::SetOwner)?,
            4 => parts.empty(Self::ResetOwner)?,
            5 => Self::SetMemTable(parts.mem_table()?),
            8 => parts.state().map(|(index, num)| Self::SetVringNum { index, num })?,
            9 => parts.addresses()?,
            10 => parts.state().map(|(index, base)| Self::SetVringBase { index, base })?,
            11 => parts.state().map(|(index, _)| Self::GetVringBase { index })?,
            12 => parts.vring_fd().map(|(index, fd)| Self::SetVringKick { index, fd })?,
            13 => parts.vring_fd().map(|(index, fd)| Self::SetVringCall { index, fd })?,
            14 => parts.vring_fd().map(|(index, fd)| Self::SetVringErr { index, fd })?,
            15 => parts.empty(Self::GetProtocolFeatures)?,
            16 => Self::SetProtocolFeatures(parts.u64()?),
            17 => parts.empty(Self::GetQueueNum)?,
            18 => parts.enable()?,
            20 => Self::NetSetMtu(parts.u64()?),
            21 => {
                parts.empty(())?;
                Self::SetBackendReqFd(parts.one_fd()?)
            }
            24 => parts.config().map(|(offset, size, flags, _)| Self::GetConfig { offset, size, flags })?,
            25 => {
                let (offset, _, flags, bytes) = parts.config()?;
                Self::SetConfig { offset, flags, bytes: bytes.to_vec() }
            }
            34 => parts.empty(Self::ResetDevice)?,
            36 => parts.empty(Self::GetMaxMemSlots)?,
            37 => {
                let region = parts.region()?;
                Self::AddMemReg(region, parts.one_fd()?)
            }
            38 => {
                let region = parts.region()?;
                // Front-ends exist that send the region's file along; it is closed unused.
                if parts.fds.len() == 1 {
                    parts.fds.clear();
                }
                Self::RemMemReg(region)
            }
            39 => Self::SetStatus(parts.u64()?),
            40 => parts.empty(Self::GetStatus)?,
            other => return Err(MessageError::Unsupported(other)),
        };
        match parts.fds.len() {
            0 => Ok(request),
            count => Err(MessageError::BadFdCount { name: parts.name, count }),
        }
    }

    /// Whether an answer comes whatever the flags say, since the request is a question.
    pub fn is_question(number: u32) -> bool {
        matches!(number, 1 | 11 | 15 | 17 | 24 | 36 | 40)
    }
}

/// The name of a request, for messages to people.
pub fn name(request: u32) -> &'static str {
    match request {
        1 => "GET_FEATURES",
        2 => "SET_FEATURES",
        3 => "SET_OWNER",
        4 => "RESET_OWNER",
        5 => "SET_MEM_TABLE",
        6 => "SET_LOG_BASE",
        7 => "SET_LOG_FD",
        8 => "SET_VRING_NUM",
        9 => "SET_VRING_ADDR",
        10 => "SET_VRING_BASE",
        11 => "GET_VRING_BASE",
        12 => "SET_VRING_KICK",
        13 => "SET_VRING_CALL",
        14 => "SET_VRING_ERR",
        15 => "GET_PROTOCOL_FEATURES",
        16 => "SET_PROTOCOL_FEATURES",
        17 => "GET_QUEUE_NUM",
        18 => "SET_VRING_ENABLE",
        19 => "SEND_RARP",
        20 => "NET_SET_MTU",
        21 => "SET_BACKEND_REQ_FD",
        22 => "IOTLB_MSG",
        23 => "SET_VRING_ENDIAN",
        24 => "GET_CONFIG",
        25 => "SET_CONFIG",
        31 => "GET_INFLIGHT_FD",
        32 => "SET_INFLIGHT_FD",
        34 => "RESET_DEVICE",
        36 => "GET_MAX_MEM_SLOTS",
        37 => "ADD_MEM_REG",
        38 => "REM_MEM_REG",
        39 => "SET_STATUS",
        40 => "GET_STATUS",
        _ => "an unknown request",
    }
}

/// A message being taken apart.
struct Parts<'a> {
    name: &'static str,
    payload: &'a [u8],
    fds: Vec<OwnedFd>,
}

impl Parts<'_> {
    fn bad_size(&self) -> MessageError {
        MessageError::BadSize { name: self.name, size: self.payload.len() }
    }

    fn bad_value(&self, field: &'static str, value: impl Into<u64>) -> MessageError {
        MessageError::BadValue { name: self.name, field, value: value.into() }
    }

    /// The whole payload as a `T`.
    fn exactly<T: FromBytes>(&self) -> Result<T, MessageError> {
        T::read_from_bytes(self.payload).map_err(|_| self.bad_size())
    }

    fn empty<T>(&self, result: T) -> Result<T, MessageError> {
        if self.payload.is_empty() { Ok(result) } else { Err(self.bad_size()) }
    }

    fn u64(&self) -> Result<u64, MessageError> {
        Ok(self.exactly::<U64>()?.get())
    }

    fn state(&self) -> Result<(u32, u32), MessageError> {
        let [index, value] = self.exactly::<[U32; 2]>()?;
        Ok((index.get(), value.get()))
    }

    fn enable(&self) -> Result<Request, MessageError> {
        match self.state()? {
            (index, enable @ (0 | 1)) => Ok(Request::SetVringEnable { index, enable: enable == 1 }),
            (_, other) => Err(self.bad_value("enable", other)),
        }
    }

    fn addresses(&self) -> Result<Request, MessageError> {
        let wire: WireAddresses = self.exactly()?;
        let [descriptor, driver, device] =
            [wire.descriptor, wire.driver, wire.device].map(|a| FrontendVa(a.get()));
        let addresses = VringAddresses { descriptor, driver, device };
        Ok(Request::SetVringAddr { index: wire.index.get(), addresses })
    }

    fn one_fd(&mut self) -> Result<OwnedFd, MessageError> {
        let count = self.fds.len();
        self.fds.pop().filter(|_| count == 1).ok_or(MessageError::BadFdCount { name: self.name, count })
    }

    fn vring_fd(&mut self) -> Result<(u32, Option<OwnedFd>), MessageError> {
        let value = self.u64()?;
        if value & !(INDEX_MASK | NO_FD) != 0 {
            return Err(self.bad_value("vring index", value));
        }
        let fd = if value & NO_FD == 0 { Some(self.one_fd()?) } else { None };
        Ok(((value & INDEX_MASK) as u32, fd))
    }

    fn region(&self) -> Result<RegionDescription, MessageError> {
        let (_padding, region): (U64, WireRegion) = {
            let (padding, rest) = U64::read_from_prefix(self.payload).map_err(|_| self.bad_size())?;
            (padding, WireRegion::read_from_bytes(rest).map_err(|_| self.bad_size())?)
        };
        Ok((&region).into())
    }

    fn mem_table(&mut self) -> Result<Vec<(RegionDescription, OwnedFd)>, MessageError> {
        let (head, rest) = <[U32; 2]>::read_from_prefix(self.payload).map_err(|_| self.bad_size())?;
        let count = head[0].get() as usize;
        if count > MAX_TABLE_REGIONS {
            return Err(self.bad_value("number of regions", head[0].get()));
        }
        // Some front-ends send the whole array, whatever the count.
        let (regions, rest) =
            <[WireRegion]>::ref_from_prefix_with_elems(rest, count).map_err(|_| self.bad_size())?;
        if rest.len() > (MAX_TABLE_REGIONS - count) * size_of::<WireRegion>() {
            return Err(self.bad_size());
        }
        if self.fds.len() != count {
            return Err(MessageError::BadFdCount { name: self.name, count: self.fds.len() });
        }
        Ok(regions.iter().map(RegionDescription::from).zip(self.fds.drain(..)).collect())
    }

    /// Offset, size, flags and bytes of a configuration space message.
    fn config(&self) -> Result<(u32, u32, u32, &[u8]), MessageError> {
        let (head, bytes) = <[U32; 3]>::read_from_prefix(self.payload).map_err(|_| self.bad_size())?;
        let [offset, size, flags] = head.map(U32::get);
        if size as usize != bytes.len() {
            return Err(self.bad_size());
        }
        Ok((offset, size, flags, bytes))
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
