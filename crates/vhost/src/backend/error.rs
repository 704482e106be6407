//! Why a request is refused, and why a session ends.

use std::io;

use ringway_memory::{MapError, MemoryError};
use ringway_queue::ConfigError;
use thiserror::Error;

use super::MAX_REGIONS;
use crate::inflight::InflightFileError;
use crate::message::{MessageError, RegionDescription};

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
    /// Rings are little-endian, as those of all but legacy devices are.
    #[error("rings of another byte order are not supported, CROSS_ENDIAN was not offered")]
    CrossEndian,
    /// The log as an address of another process.
    #[error("the log's file did not come with it: LOG_SHMFD was not negotiated")]
    LogAddress,
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
    /// What is in flight cannot be recorded there.
    #[error(transparent)]
    Inflight(#[from] InflightFileError),
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
    /// A channel for the back-end's requests that nothing can be said on.
    #[error("its file descriptor is no socket or pipe")]
    NotAChannel,
    /// The vring cannot start with what was negotiated.
    #[error("vring {0} does not exist by the features negotiated")]
    NotNegotiatedVring(u16),
    /// A request that has its place in a sequence, out of it.
    #[error("it comes out of turn: {0}")]
    OutOfTurn(&'static str),
    /// The device's state cannot be taken over.
    #[error("the device's state cannot be loaded: {0}")]
    DeviceState(String),
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
    /// A request was handed over while [`Session::owes_reply`](super::Session::owes_reply).
    #[error("{0} came before the request before it was answered")]
    OwesReply(&'static str),
    /// The request could not be carried out, and the front-end did not ask for an answer.
    #[error("{request}: {error}")]
    Request {
        /// The request's name.
        request: &'static str,
        /// Why.
        error: RequestError,
    },
}
