//! The messages of vhost-user: a header of 12 bytes, a payload, and file descriptors beside them.
//!
//! ```text
//! request u32 | flags u32 | size u32 | payload[size]
//!               bits 0-1 version (1), 2 reply, 3 need_reply
//! ```
//!
//! [`Request`] is what a front-end says to a back-end, [`ChannelRequest`] what a back-end says to a front-end on the
//! channel that it was given for that. Each can be made into a message and read from one. Reading checks all that
//! can be checked without knowing the session: the size of the payload, the number of file descriptors, the ranges
//! of fields.

mod channel;
mod payload;
mod request;

use std::os::fd::OwnedFd;

use thiserror::Error;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

pub use channel::{ChannelRequest, SharedMemoryMap, VringArea};
pub use payload::{
    DeviceStateTransfer, InflightDescription, Iotlb, IotlbKind, RegionDescription, StateDirection, Uuid,
    VringAddresses,
};
pub(crate) use payload::{config, state};
pub use request::{Request, name};

/// Size of a message's header in bytes.
pub const HEADER_LEN: usize = 12;
/// The longest payload taken, in bytes. The longest that exists is a configuration space of a few hundred.
pub const MAX_PAYLOAD: usize = 4096;
/// The most file descriptors of one message.
pub const MAX_FDS: usize = 8;
/// The most memory regions of one `SET_MEM_TABLE`.
pub const MAX_TABLE_REGIONS: usize = 8;
/// The longest part of a configuration space that one message reads or writes, in bytes.
pub const MAX_CONFIG: u32 = 256;

/// Feature bit of the transport: `GET_PROTOCOL_FEATURES` and its sibling exist, and rings start disabled.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Feature bit of the transport: what the back-end writes to the guest's memory is logged.
pub const F_LOG_ALL: u64 = 1 << 26;

/// Flag of `SET_VRING_ADDR`: what the back-end writes to the used ring is logged.
pub const VRING_F_LOG: u32 = 1 << 0;
/// Flag of `SET_CONFIG`: a migration writes, to any field; 0 is the driver.
pub const CONFIG_MIGRATION: u32 = 1;
/// In the answer to `SET_DEVICE_STATE_FD`: no file descriptor comes with it, the front-end's own is used.
pub const DEVICE_STATE_NO_FD: u64 = 1 << 8;

/// Protocol features, by their bits.
pub mod protocol_feature {
    /// `GET_QUEUE_NUM`.
    pub const MQ: u64 = 1 << 0;
    /// `SET_LOG_BASE` comes with the log's file.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// `SEND_RARP`.
    pub const RARP: u64 = 1 << 2;
    /// The front-end can ask for an answer to any request.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// `NET_SET_MTU`.
    pub const MTU: u64 = 1 << 4;
    /// `SET_BACKEND_REQ_FD`: a channel for requests of the back-end.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// `SET_VRING_ENDIAN`.
    pub const CROSS_ENDIAN: u64 = 1 << 6;
    /// `CREATE_CRYPTO_SESSION`, `CLOSE_CRYPTO_SESSION`.
    pub const CRYPTO_SESSION: u64 = 1 << 7;
    /// `POSTCOPY_ADVISE`, `POSTCOPY_LISTEN`, `POSTCOPY_END`.
    pub const PAGEFAULT: u64 = 1 << 8;
    /// `GET_CONFIG`, `SET_CONFIG`.
    pub const CONFIG: u64 = 1 << 9;
    /// File descriptors on the back-end's channel.
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    /// `BACKEND_VRING_HOST_NOTIFIER_MSG`.
    pub const HOST_NOTIFIER: u64 = 1 << 11;
    /// `GET_INFLIGHT_FD`, `SET_INFLIGHT_FD`.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// `RESET_DEVICE`.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// `VRING_KICK`, `BACKEND_VRING_CALL`, `BACKEND_VRING_ERR`.
    pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
    /// `GET_MAX_MEM_SLOTS`, `ADD_MEM_REG`, `REM_MEM_REG`.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// `SET_STATUS`, `GET_STATUS`.
    pub const STATUS: u64 = 1 << 16;
    /// Regions that are to be mapped piece by piece (Xen).
    pub const XEN_MMAP: u64 = 1 << 17;
    /// `GET_SHARED_OBJECT`, and the back-end's messages about shared objects.
    pub const SHARED_OBJECT: u64 = 1 << 18;
    /// `SET_DEVICE_STATE_FD`, `CHECK_DEVICE_STATE`.
    pub const DEVICE_STATE: u64 = 1 << 19;
    /// `GET_VRING_BASE` may leave chains in flight, recorded in the in-flight region.
    pub const GET_VRING_BASE_INFLIGHT: u64 = 1 << 20;
    /// `GET_SHMEM_CONFIG`, and the back-end's messages that map shared memory.
    pub const SHMEM: u64 = 1 << 22;
}

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Why bytes are not a message of the kind expected. Each ends the session: what follows cannot be trusted to be one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MessageError {
    /// The flags' version is not 1, or it is a reply where a request should be, or the other way round.
    #[error("message {request} has flags {flags:#x}, which are not version 1 or not of a {expected}")]
    BadFlags {
        /// The request's number.
        request: u32,
        /// Its flags.
        flags: u32,
        /// What was expected: a request, or a reply.
        expected: &'static str,
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
    /// A request that is not known.
    #[error("request {0} is not supported")]
    Unsupported(u32),
}

/// Which way a message goes: it asks, or it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Request,
    /// The reply to one.
    Reply,
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The request's number; a reply has that of its request.
    pub request: u32,
    flags: u32,
    size: u32,
}

impl Header {
    /// The header of a request with `size` bytes of payload.
    pub fn request(request: u32, size: usize, need_reply: bool) -> Self {
        let flags = VERSION | if need_reply { FLAG_NEED_REPLY } else { 0 };
        Self { request, flags, size: size as u32 }
    }

    /// Reads a header; the payload's size is in bounds then.
    ///
    /// # Errors
    /// [`MessageError::BadFlags`], [`MessageError::TooLong`].
    pub fn decode(bytes: [u8; HEADER_LEN], kind: Kind) -> Result<Self, MessageError> {
        let [request, flags, size] = zerocopy::transmute!(bytes);
        let [request, flags, size] = [request, flags, size].map(|w: U32| w.get());
        let (reply, expected) = match kind {
            Kind::Request => (0, "request"),
            Kind::Reply => (FLAG_REPLY, "reply"),
        };
        if flags & (VERSION_MASK | FLAG_REPLY) != VERSION | reply {
            return Err(MessageError::BadFlags { request, flags, expected });
        }
        if size as usize > MAX_PAYLOAD {
            return Err(MessageError::TooLong { request, size });
        }
        Ok(Self { request, flags, size })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        zerocopy::transmute!([self.request, self.flags, self.size].map(U32::new))
    }

    /// Length of the payload in bytes.
    pub fn payload_len(&self) -> usize {
        self.size as usize
    }

    /// Whether its sender asks for an answer; it counts only if `REPLY_ACK` was negotiated.
    pub fn needs_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// The bytes of the reply to this request.
    pub fn reply(&self, payload: &[u8]) -> Vec<u8> {
        let head = Self { request: self.request, flags: VERSION | FLAG_REPLY, size: payload.len() as u32 };
        [head.encode().as_bytes(), payload].concat()
    }
}

/// A message to be sent: its bytes, and the file descriptors that go with the first of them.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// The file descriptors, [`MAX_FDS`] at most.
    pub fds: Vec<OwnedFd>,
}

impl Outgoing {
    /// The request `number`.
    pub fn request(number: u32, payload: &[u8], fds: Vec<OwnedFd>, need_reply: bool) -> Self {
        let header = Header::request(number, payload.len(), need_reply);
        Self { bytes: [header.encode().as_bytes(), payload].concat(), fds }
    }

    /// The number of the request that it is, or answers.
    pub fn number(&self) -> u32 {
        self.bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}

impl From<Vec<u8>> for Outgoing {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, fds: Vec::new() }
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
