//! What a front-end says to a back-end.

use std::os::fd::OwnedFd;

use super::payload::{
    DeviceStateTransfer, InflightDescription, Iotlb, Parts, RegionDescription, Uuid, VringAddresses, config,
    state, vring_fd,
};
use super::{Header, MAX_CONFIG, MessageError, Outgoing};

/// A request of the front-end. Indices of vrings are not checked here: the device knows how many it has.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant is the message of its name, each field that of the document")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(RegionDescription, OwnedFd)>),
    /// The log's file, where it begins there, and its length in bytes.
    SetLogBase {
        len: u64,
        offset: u64,
        fd: OwnedFd,
    },
    /// The log as an address of the front-end's process, which is of use to nobody else.
    SetLogAddress(u64),
    SetLogFd(OwnedFd),
    SetVringNum {
        index: u32,
        num: u32,
    },
    SetVringAddr {
        index: u32,
        addresses: VringAddresses,
    },
    SetVringBase {
        index: u32,
        base: u32,
    },
    GetVringBase {
        index: u32,
    },
    SetVringKick {
        index: u32,
        fd: Option<OwnedFd>,
    },
    SetVringCall {
        index: u32,
        fd: Option<OwnedFd>,
    },
    SetVringErr {
        index: u32,
        fd: Option<OwnedFd>,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable {
        index: u32,
        enable: bool,
    },
    /// The guest's hardware address, in the lower six bytes, first byte first.
    SendRarp(u64),
    NetSetMtu(u64),
    SetBackendReqFd(OwnedFd),
    Iotlb(Iotlb),
    SetVringEndian {
        index: u32,
        is_big: bool,
    },
    GetConfig {
        offset: u32,
        size: u32,
        flags: u32,
    },
    SetConfig {
        offset: u32,
        flags: u32,
        bytes: Vec<u8>,
    },
    PostcopyAdvise,
    PostcopyListen,
    PostcopyEnd,
    GetInflightFd(InflightDescription),
    SetInflightFd(InflightDescription, OwnedFd),
    ResetDevice,
    VringKick {
        index: u32,
    },
    GetMaxMemSlots,
    AddMemReg(RegionDescription, OwnedFd),
    /// `ADD_MEM_REG` or `REM_MEM_REG` with a number alone, or `SET_MEM_TABLE` without regions: in postcopy the front-end
    /// has learned where the regions are mapped.
    PostcopyMemoryAck,
    RemMemReg(RegionDescription),
    SetStatus(u64),
    GetStatus,
    GetSharedObject(Uuid),
    SetDeviceStateFd(DeviceStateTransfer, OwnedFd),
    CheckDeviceState,
    GetShmemConfig,
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
            6 if payload.len() == size_of::<u64>() => Self::SetLogAddress(parts.u64()?),
            6 => {
                let [len, offset] = parts.numbers()?;
                Self::SetLogBase { len, offset, fd: parts.one_fd()? }
            }
            7 => {
                parts.empty(())?;
                Self::SetLogFd(parts.one_fd()?)
            }
            8 => parts.state().map(|(index, num)| Self::SetVringNum { index, num })?,
            9 => parts.addresses().map(|(index, addresses)| Self::SetVringAddr { index, addresses })?,
            10 => parts.state().map(|(index, base)| Self::SetVringBase { index, base })?,
            11 => parts.state().map(|(index, _)| Self::GetVringBase { index })?,
            12 => parts.vring_fd().map(|(index, fd)| Self::SetVringKick { index, fd })?,
            13 => parts.vring_fd().map(|(index, fd)| Self::SetVringCall { index, fd })?,
            14 => parts.vring_fd().map(|(index, fd)| Self::SetVringErr { index, fd })?,
            15 => parts.empty(Self::GetProtocolFeatures)?,
            16 => Self::SetProtocolFeatures(parts.u64()?),
            17 => parts.empty(Self::GetQueueNum)?,
            18 => parts.flag("enable").map(|(index, enable)| Self::SetVringEnable { index, enable })?,
            19 => Self::SendRarp(parts.u64()?),
            20 => Self::NetSetMtu(parts.u64()?),
            21 => {
                parts.empty(())?;
                Self::SetBackendReqFd(parts.one_fd()?)
            }
            22 => Self::Iotlb(parts.iotlb()?),
            23 => parts.flag("endianness").map(|(index, is_big)| Self::SetVringEndian { index, is_big })?,
            24 => {
                let (offset, flags, bytes) = parts.config()?;
                Self::GetConfig { offset, size: bytes.len() as u32, flags }
            }
            25 => {
                let (offset, flags, bytes) = parts.config()?;
                Self::SetConfig { offset, flags, bytes: bytes.to_vec() }
            }
            28 => parts.empty(Self::PostcopyAdvise)?,
            29 => parts.empty(Self::PostcopyListen)?,
            30 => parts.empty(Self::PostcopyEnd)?,
            31 => Self::GetInflightFd(parts.inflight()?),
            32 => {
                let description = parts.inflight()?;
                Self::SetInflightFd(description, parts.one_fd()?)
            }
            34 => parts.empty(Self::ResetDevice)?,
            35 => parts.state().map(|(index, _)| Self::VringKick { index })?,
            36 => parts.empty(Self::GetMaxMemSlots)?,
            37 if payload.len() == size_of::<u64>() => match parts.u64()? {
                0 => Self::PostcopyMemoryAck,
                other => return Err(parts.bad_value("acknowledgement", other)),
            },
            37 => {
                let region = parts.region()?;
                Self::AddMemReg(region, parts.one_fd()?)
            }
            38 if payload.len() == size_of::<u64>() && parts.fds.is_empty() => match parts.u64()? {
                0 => Self::PostcopyMemoryAck,
                other => return Err(parts.bad_value("acknowledgement", other)),
            },
            38 => {
                let region = parts.region()?;
                // Front-ends exist that send the region's file along; it is closed unused.
                parts.optional_fd()?;
                Self::RemMemReg(region)
            }
            39 => Self::SetStatus(parts.u64()?),
            40 => parts.empty(Self::GetStatus)?,
            41 => Self::GetSharedObject(parts.uuid()?),
            42 => {
                let transfer = parts.device_state()?;
                Self::SetDeviceStateFd(transfer, parts.one_fd()?)
            }
            43 => parts.empty(Self::CheckDeviceState)?,
            44 => parts.empty(Self::GetShmemConfig)?,
            other => return Err(MessageError::Unsupported(other)),
        };
        parts.finish(request)
    }

    /// Makes the message. `need_reply` asks for an answer; what is a question is answered in any case.
    pub fn encode(self, need_reply: bool) -> Outgoing {
        let number = self.number();
        let (payload, fds) = self.into_parts();
        Outgoing::request(number, &payload, fds, need_reply)
    }

    /// Payload and file descriptors.
    fn into_parts(self) -> (Vec<u8>, Vec<OwnedFd>) {
        let number = |n: u64| n.to_le_bytes().to_vec();
        let payload = match self {
            Self::GetFeatures
            | Self::SetOwner
            | Self::ResetOwner
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::PostcopyAdvise
            | Self::PostcopyListen
            | Self::PostcopyEnd
            | Self::ResetDevice
            | Self::GetMaxMemSlots
            | Self::GetStatus
            | Self::CheckDeviceState
            | Self::GetShmemConfig => Vec::new(),
            Self::SetFeatures(n)
            | Self::SetProtocolFeatures(n)
            | Self::SetLogAddress(n)
            | Self::SendRarp(n)
            | Self::NetSetMtu(n)
            | Self::SetStatus(n) => number(n),
            Self::PostcopyMemoryAck => number(0),
            Self::SetMemTable(table) => {
                let (regions, fds): (Vec<_>, _) = table.into_iter().unzip();
                return (RegionDescription::encode_table(regions.iter()), fds);
            }
            Self::SetLogBase { len, offset, fd } => {
                return ([number(len), number(offset)].concat(), vec![fd]);
            }
            Self::SetLogFd(fd) | Self::SetBackendReqFd(fd) => return (Vec::new(), vec![fd]),
            Self::SetVringNum { index, num: value } | Self::SetVringBase { index, base: value } => {
                state(index, value)
            }
            Self::SetVringAddr { index, addresses } => addresses.encode(index),
            Self::GetVringBase { index } | Self::VringKick { index } => state(index, 0),
            Self::SetVringKick { index, fd }
            | Self::SetVringCall { index, fd }
            | Self::SetVringErr { index, fd } => {
                return (vring_fd(index, fd.is_some()), fd.into_iter().collect());
            }
            Self::SetVringEnable { index, enable: yes } | Self::SetVringEndian { index, is_big: yes } => {
                state(index, yes.into())
            }
            Self::Iotlb(message) => message.encode(),
            Self::GetConfig { offset, size, flags } => {
                config(offset, flags, &vec![0; size.min(MAX_CONFIG) as usize])
            }
            Self::SetConfig { offset, flags, bytes } => config(offset, flags, &bytes),
            Self::GetInflightFd(description) => description.encode(),
            Self::SetInflightFd(description, fd) => return (description.encode(), vec![fd]),
            Self::AddMemReg(region, fd) => return (region.encode(), vec![fd]),
            Self::RemMemReg(region) => region.encode(),
            Self::GetSharedObject(uuid) => uuid.to_vec(),
            Self::SetDeviceStateFd(transfer, fd) => return (transfer.encode(), vec![fd]),
        };
        (payload, Vec::new())
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        match self {
            Self::GetFeatures => 1,
            Self::SetFeatures(_) => 2,
            Self::SetOwner => 3,
            Self::ResetOwner => 4,
            Self::SetMemTable(_) => 5,
            Self::SetLogBase { .. } | Self::SetLogAddress(_) => 6,
            Self::SetLogFd(_) => 7,
            Self::SetVringNum { .. } => 8,
            Self::SetVringAddr { .. } => 9,
            Self::SetVringBase { .. } => 10,
            Self::GetVringBase { .. } => 11,
            Self::SetVringKick { .. } => 12,
            Self::SetVringCall { .. } => 13,
            Self::SetVringErr { .. } => 14,
            Self::GetProtocolFeatures => 15,
            Self::SetProtocolFeatures(_) => 16,
            Self::GetQueueNum => 17,
            Self::SetVringEnable { .. } => 18,
            Self::SendRarp(_) => 19,
            Self::NetSetMtu(_) => 20,
            Self::SetBackendReqFd(_) => 21,
            Self::Iotlb(_) => 22,
            Self::SetVringEndian { .. } => 23,
            Self::GetConfig { .. } => 24,
            Self::SetConfig { .. } => 25,
            Self::PostcopyAdvise => 28,
            Self::PostcopyListen => 29,
            Self::PostcopyEnd => 30,
            Self::GetInflightFd(_) => 31,
            Self::SetInflightFd(..) => 32,
            Self::ResetDevice => 34,
            Self::VringKick { .. } => 35,
            Self::GetMaxMemSlots => 36,
            Self::AddMemReg(..) | Self::PostcopyMemoryAck => 37,
            Self::RemMemReg(_) => 38,
            Self::SetStatus(_) => 39,
            Self::GetStatus => 40,
            Self::GetSharedObject(_) => 41,
            Self::SetDeviceStateFd(..) => 42,
            Self::CheckDeviceState => 43,
            Self::GetShmemConfig => 44,
        }
    }

    /// Whether an answer comes whatever the flags say, since the request is a question.
    pub fn is_question(number: u32) -> bool {
        matches!(number, 1 | 11 | 15 | 17 | 22 | 24 | 28 | 30 | 31 | 36 | 40..=44)
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
        26 => "CREATE_CRYPTO_SESSION",
        27 => "CLOSE_CRYPTO_SESSION",
        28 => "POSTCOPY_ADVISE",
        29 => "POSTCOPY_LISTEN",
        30 => "POSTCOPY_END",
        31 => "GET_INFLIGHT_FD",
        32 => "SET_INFLIGHT_FD",
        33 => "GPU_SET_SOCKET",
        34 => "RESET_DEVICE",
        35 => "VRING_KICK",
        36 => "GET_MAX_MEM_SLOTS",
        37 => "ADD_MEM_REG",
        38 => "REM_MEM_REG",
        39 => "SET_STATUS",
        40 => "GET_STATUS",
        41 => "GET_SHARED_OBJECT",
        42 => "SET_DEVICE_STATE_FD",
        43 => "CHECK_DEVICE_STATE",
        44 => "GET_SHMEM_CONFIG",
        _ => "an unknown request",
    }
}
