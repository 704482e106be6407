//! What a back-end says to a front-end, on the channel that `SET_BACKEND_REQ_FD` gave it. The numbers are of their own.

use std::os::fd::OwnedFd;

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::payload::{Iotlb, Parts, Uuid, state};
use super::{Header, MessageError, Outgoing};

/// Where a device's own memory is that a driver may kick a vring at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringArea {
    /// The vring's index.
    pub index: u32,
    /// Length in bytes, that of a page of the host.
    pub len: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// A piece of a file to be mapped into, or taken out of, one of a device's shared memory regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedMemoryMap {
    /// The shared memory region.
    pub region: u8,
    /// Zero.
    pub padding: [u8; 7],
    /// Where the piece begins in its file.
    pub file_offset: U64,
    /// Where it is to be in the region.
    pub region_offset: U64,
    /// Length in bytes.
    pub len: U64,
    /// Bit 0: writable.
    pub flags: U64,
}

/// A request of the back-end.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant is the message of its name, each field that of the document")]
pub enum ChannelRequest {
    Iotlb(Iotlb),
    ConfigChange,
    VringHostNotifier(VringArea, Option<OwnedFd>),
    VringCall { index: u32 },
    VringErr { index: u32 },
    SharedObjectAdd(Uuid),
    SharedObjectRemove(Uuid),
    SharedObjectLookup(Uuid),
    ShmemMap(SharedMemoryMap, OwnedFd),
    ShmemUnmap(SharedMemoryMap),
}

/// Payload of a vring's area: no file descriptor comes with it, the area is taken back.
const AREA_NO_FD: u64 = 1 << 8;
const AREA_INDEX: u64 = 0xff;

impl ChannelRequest {
    /// Reads the request that `header` announced. File descriptors that a request has no use for are an error,
    /// and closed.
    ///
    /// # Errors
    /// [`MessageError`], all but `BadFlags` and `TooLong`.
    pub fn decode(header: &Header, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Self, MessageError> {
        let mut parts = Parts { name: name(header.request), payload, fds };
        let request = match header.request {
            1 => Self::Iotlb(parts.iotlb()?),
            2 => parts.empty(Self::ConfigChange)?,
            3 => {
                let [index, len, offset] = parts.numbers()?;
                if index & !(AREA_INDEX | AREA_NO_FD) != 0 {
                    return Err(parts.bad_value("vring index", index));
                }
                let fd = if index & AREA_NO_FD == 0 { Some(parts.one_fd()?) } else { None };
                Self::VringHostNotifier(VringArea { index: (index & AREA_INDEX) as u32, len, offset }, fd)
            }
            4 => Self::VringCall { index: parts.state()?.0 },
            5 => Self::VringErr { index: parts.state()?.0 },
            6 => Self::SharedObjectAdd(parts.uuid()?),
            7 => Self::SharedObjectRemove(parts.uuid()?),
            8 => Self::SharedObjectLookup(parts.uuid()?),
            9 => {
                let map = SharedMemoryMap::read_from_bytes(payload).map_err(|_| parts.bad_size())?;
                Self::ShmemMap(map, parts.one_fd()?)
            }
            10 => Self::ShmemUnmap(SharedMemoryMap::read_from_bytes(payload).map_err(|_| parts.bad_size())?),
            other => return Err(MessageError::Unsupported(other)),
        };
        parts.finish(request)
    }

    /// Makes the message. `need_reply` asks for an answer, which `REPLY_ACK` allows; a lookup is answered in any case.
    pub fn encode(self, need_reply: bool) -> Outgoing {
        let number = self.number();
        let (payload, fd) = match self {
            Self::Iotlb(message) => (message.encode(), None),
            Self::ConfigChange => (Vec::new(), None),
            Self::VringHostNotifier(VringArea { index, len, offset }, fd) => {
                let flag = if fd.is_some() { 0 } else { AREA_NO_FD };
                let words = [u64::from(index) & AREA_INDEX | flag, len, offset].map(U64::new);
                (words.as_bytes().to_vec(), fd)
            }
            Self::VringCall { index } | Self::VringErr { index } => (state(index, 0), None),
            Self::SharedObjectAdd(uuid) | Self::SharedObjectRemove(uuid) | Self::SharedObjectLookup(uuid) => {
                (uuid.to_vec(), None)
            }
            Self::ShmemMap(map, fd) => (map.as_bytes().to_vec(), Some(fd)),
            Self::ShmemUnmap(map) => (map.as_bytes().to_vec(), None),
        };
        Outgoing::request(number, &payload, fd.into_iter().collect(), need_reply)
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        match self {
            Self::Iotlb(_) => 1,
            Self::ConfigChange => 2,
            Self::VringHostNotifier(..) => 3,
            Self::VringCall { .. } => 4,
            Self::VringErr { .. } => 5,
            Self::SharedObjectAdd(_) => 6,
            Self::SharedObjectRemove(_) => 7,
            Self::SharedObjectLookup(_) => 8,
            Self::ShmemMap(..) => 9,
            Self::ShmemUnmap(_) => 10,
        }
    }
}

/// The name of a request, for messages to people.
fn name(request: u32) -> &'static str {
    match request {
        1 => "BACKEND_IOTLB_MSG",
        2 => "BACKEND_CONFIG_CHANGE_MSG",
        3 => "BACKEND_VRING_HOST_NOTIFIER_MSG",
        4 => "BACKEND_VRING_CALL",
        5 => "BACKEND_VRING_ERR",
        6 => "BACKEND_SHARED_OBJECT_ADD",
        7 => "BACKEND_SHARED_OBJECT_REMOVE",
        8 => "BACKEND_SHARED_OBJECT_LOOKUP",
        9 => "BACKEND_SHMEM_MAP",
        10 => "BACKEND_SHMEM_UNMAP",
        _ => "an unknown request of the back-end",
    }
}
