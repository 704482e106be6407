//! What payloads are made of, and how one is taken apart.

use std::fmt;
use std::os::fd::OwnedFd;

use ringway_memory::{FrontendVa, Gpa};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MAX_TABLE_REGIONS, MessageError};

/// Payload of kick, call and err: no file descriptor comes with it.
const NO_FD: u64 = 1 << 8;
const INDEX_MASK: u64 = 0xff;

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

impl From<&RegionDescription> for WireRegion {
    fn from(region: &RegionDescription) -> Self {
        let RegionDescription { gpa, len, frontend_va, offset } = *region;
        let [gpa, len, frontend_va, offset] = [gpa.0, len, frontend_va.0, offset].map(U64::new);
        Self { gpa, len, frontend_va, offset }
    }
}

impl RegionDescription {
    /// The payload of a request about this region alone.
    pub fn encode(&self) -> Vec<u8> {
        [U64::ZERO.as_bytes(), WireRegion::from(self).as_bytes()].concat()
    }

    /// The payload that describes a whole table.
    pub fn encode_table<'a>(regions: impl ExactSizeIterator<Item = &'a Self>) -> Vec<u8> {
        let mut payload = [U32::new(regions.len() as u32), U32::ZERO].as_bytes().to_vec();
        for region in regions {
            payload.extend_from_slice(WireRegion::from(region).as_bytes());
        }
        payload
    }
}

/// Where a vring's areas are: in the front-end's process, or with an IOMMU on the device's bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VringAddresses {
    /// Descriptor area.
    pub descriptor: FrontendVa,
    /// Driver area (available ring).
    pub driver: FrontendVa,
    /// Device area (used ring).
    pub device: FrontendVa,
    /// Where writes to the used ring are logged, as if it began there; `None`: they are not logged.
    pub log: Option<Gpa>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireAddresses {
    index: U32,
    flags: U32,
    descriptor: U64,
    device: U64,
    driver: U64,
    log: U64,
}

impl VringAddresses {
    pub(super) fn encode(&self, index: u32) -> Vec<u8> {
        let Self { descriptor, driver, device, log } = *self;
        let flags = if log.is_some() { super::VRING_F_LOG } else { 0 };
        let [descriptor, device, driver, log] =
            [descriptor.0, device.0, driver.0, log.unwrap_or_default().0].map(U64::new);
        let (index, flags) = (index.into(), flags.into());
        WireAddresses { index, flags, descriptor, device, driver, log }.as_bytes().to_vec()
    }
}

/// The in-flight region: where it is in its file, and for how many vrings of what size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightDescription {
    /// The region's length in bytes.
    pub len: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// Number of vrings.
    pub queues: u16,
    /// Number of descriptors of each.
    pub queue_size: u16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireInflight {
    len: U64,
    offset: U64,
    queues: U16,
    queue_size: U16,
}

impl InflightDescription {
    /// As a payload: with the padding that compilers put behind it, which front-ends wait for.
    pub fn encode(&self) -> Vec<u8> {
        let Self { len, offset, queues, queue_size } = *self;
        let wire = WireInflight {
            len: len.into(),
            offset: offset.into(),
            queues: queues.into(),
            queue_size: queue_size.into(),
        };
        [wire.as_bytes(), &[0; 4]].concat()
    }
}

/// What a message about the IOMMU's translations says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IotlbKind {
    /// To the front-end: this translation is wanted.
    Miss,
    /// To the back-end: here is one.
    Update,
    /// To the back-end: this one is void.
    Invalidate,
    /// To the front-end: the driver may not do this.
    AccessFail,
}

impl IotlbKind {
    const ALL: [(u8, Self); 4] =
        [(1, Self::Miss), (2, Self::Update), (3, Self::Invalidate), (4, Self::AccessFail)];
}

/// A message about the IOMMU's translations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iotlb {
    /// Where the device finds it: an I/O virtual address.
    pub iova: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the front-end has it.
    pub frontend_va: FrontendVa,
    /// The device may, or wants to, read.
    pub read: bool,
    /// The device may, or wants to, write.
    pub write: bool,
    /// What is said of it.
    pub kind: IotlbKind,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WireIotlb {
    iova: U64,
    len: U64,
    frontend_va: U64,
    access: u8,
    kind: u8,
    padding: [u8; 6],
}

impl Iotlb {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { iova, len, frontend_va, read, write, kind } = *self;
        let kind = IotlbKind::ALL.into_iter().find(|(_, k)| *k == kind).map_or(0, |(number, _)| number);
        let access = u8::from(read) | u8::from(write) << 1;
        let [iova, len, frontend_va] = [iova, len, frontend_va.0].map(U64::new);
        WireIotlb { iova, len, frontend_va, access, kind, padding: [0; 6] }.as_bytes().to_vec()
    }
}

/// The name of a shared object.
pub type Uuid = [u8; 16];

/// Whether a device's state is to be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateDirection {
    /// The back-end writes its state: it is the source of a migration.
    Save,
    /// The back-end reads its state: it is the destination.
    Load,
}

/// How a device's state goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceStateTransfer {
    /// Which way.
    pub direction: StateDirection,
    /// In which phase of a migration; 0, while the device is stopped, is the only one there is.
    pub phase: u32,
}

impl DeviceStateTransfer {
    pub(super) fn encode(self) -> Vec<u8> {
        let direction = match self.direction {
            StateDirection::Save => 0,
            StateDirection::Load => 1,
        };
        [direction, self.phase].map(U32::new).as_bytes().to_vec()
    }
}

/// A message being taken apart.
pub(super) struct Parts<'a> {
    pub(super) name: &'static str,
    pub(super) payload: &'a [u8],
    pub(super) fds: Vec<OwnedFd>,
}

impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} bytes, {} fds", self.name, self.payload.len(), self.fds.len())
    }
}

impl Parts<'_> {
    pub(super) fn bad_size(&self) -> MessageError {
        MessageError::BadSize { name: self.name, size: self.payload.len() }
    }

    pub(super) fn bad_value(&self, field: &'static str, value: impl Into<u64>) -> MessageError {
        MessageError::BadValue { name: self.name, field, value: value.into() }
    }

    pub(super) fn bad_fd_count(&self) -> MessageError {
        MessageError::BadFdCount { name: self.name, count: self.fds.len() }
    }

    /// `request`, unless file descriptors are left that it has no use for.
    pub(super) fn finish<T>(&self, request: T) -> Result<T, MessageError> {
        if self.fds.is_empty() { Ok(request) } else { Err(self.bad_fd_count()) }
    }

    /// The whole payload as a `T`.
    fn exactly<T: FromBytes>(&self) -> Result<T, MessageError> {
        T::read_from_bytes(self.payload).map_err(|_| self.bad_size())
    }

    pub(super) fn empty<T>(&self, result: T) -> Result<T, MessageError> {
        if self.payload.is_empty() { Ok(result) } else { Err(self.bad_size()) }
    }

    pub(super) fn u64(&self) -> Result<u64, MessageError> {
        Ok(self.exactly::<U64>()?.get())
    }

    /// Several numbers.
    pub(super) fn numbers<const N: usize>(&self) -> Result<[u64; N], MessageError> {
        Ok(self.exactly::<[U64; N]>()?.map(U64::get))
    }

    /// An index and a value.
    pub(super) fn state(&self) -> Result<(u32, u32), MessageError> {
        let [index, value] = self.exactly::<[U32; 2]>()?;
        Ok((index.get(), value.get()))
    }

    /// An index, and a value that is yes or no.
    pub(super) fn flag(&self, field: &'static str) -> Result<(u32, bool), MessageError> {
        match self.state()? {
            (index, value @ (0 | 1)) => Ok((index, value == 1)),
            (_, other) => Err(self.bad_value(field, other)),
        }
    }

    pub(super) fn addresses(&self) -> Result<(u32, VringAddresses), MessageError> {
        let wire: WireAddresses = self.exactly()?;
        let [descriptor, driver, device] =
            [wire.descriptor, wire.driver, wire.device].map(|a| FrontendVa(a.get()));
        let log = (wire.flags.get() & super::VRING_F_LOG != 0).then_some(Gpa(wire.log.get()));
        Ok((wire.index.get(), VringAddresses { descriptor, driver, device, log }))
    }

    pub(super) fn inflight(&self) -> Result<InflightDescription, MessageError> {
        // Compilers put padding behind it, and most front-ends send that too.
        let (wire, rest) = WireInflight::read_from_prefix(self.payload).map_err(|_| self.bad_size())?;
        if !matches!(rest.len(), 0 | 4) {
            return Err(self.bad_size());
        }
        Ok(InflightDescription {
            len: wire.len.get(),
            offset: wire.offset.get(),
            queues: wire.queues.get(),
            queue_size: wire.queue_size.get(),
        })
    }

    pub(super) fn iotlb(&self) -> Result<Iotlb, MessageError> {
        let wire: WireIotlb = self.exactly()?;
        let kind = IotlbKind::ALL.into_iter().find(|(number, _)| *number == wire.kind);
        let (_, kind) = kind.ok_or_else(|| self.bad_value("type", wire.kind))?;
        if wire.access > 3 {
            return Err(self.bad_value("permissions", wire.access));
        }
        Ok(Iotlb {
            iova: wire.iova.get(),
            len: wire.len.get(),
            frontend_va: FrontendVa(wire.frontend_va.get()),
            read: wire.access & 1 != 0,
            write: wire.access & 2 != 0,
            kind,
        })
    }

    pub(super) fn uuid(&self) -> Result<Uuid, MessageError> {
        self.exactly()
    }

    pub(super) fn device_state(&self) -> Result<DeviceStateTransfer, MessageError> {
        let (direction, phase) = self.state()?;
        let direction = match direction {
            0 => StateDirection::Save,
            1 => StateDirection::Load,
            other => return Err(self.bad_value("direction", other)),
        };
        Ok(DeviceStateTransfer { direction, phase })
    }

    pub(super) fn one_fd(&mut self) -> Result<OwnedFd, MessageError> {
        let error = self.bad_fd_count();
        let is_one = self.fds.len() == 1;
        self.fds.pop().filter(|_| is_one).ok_or(error)
    }

    /// The file descriptor that may come with it.
    pub(super) fn optional_fd(&mut self) -> Result<Option<OwnedFd>, MessageError> {
        if self.fds.is_empty() { Ok(None) } else { self.one_fd().map(Some) }
    }

    pub(super) fn vring_fd(&mut self) -> Result<(u32, Option<OwnedFd>), MessageError> {
        let value = self.u64()?;
        if value & !(INDEX_MASK | NO_FD) != 0 {
            return Err(self.bad_value("vring index", value));
        }
        let fd = if value & NO_FD == 0 { Some(self.one_fd()?) } else { None };
        Ok(((value & INDEX_MASK) as u32, fd))
    }

    pub(super) fn region(&self) -> Result<RegionDescription, MessageError> {
        let (_padding, region): (U64, WireRegion) = {
            let (padding, rest) = U64::read_from_prefix(self.payload).map_err(|_| self.bad_size())?;
            (padding, WireRegion::read_from_bytes(rest).map_err(|_| self.bad_size())?)
        };
        Ok((&region).into())
    }

    /// The regions of a table.
    pub(super) fn regions(&self) -> Result<Vec<RegionDescription>, MessageError> {
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
        Ok(regions.iter().map(RegionDescription::from).collect())
    }

    pub(super) fn mem_table(&mut self) -> Result<Vec<(RegionDescription, OwnedFd)>, MessageError> {
        let regions = self.regions()?;
        if self.fds.len() != regions.len() {
            return Err(self.bad_fd_count());
        }
        Ok(regions.into_iter().zip(self.fds.drain(..)).collect())
    }

    /// Offset, flags and bytes of a configuration space message.
    pub(super) fn config(&self) -> Result<(u32, u32, &[u8]), MessageError> {
        let (head, bytes) = <[U32; 3]>::read_from_prefix(self.payload).map_err(|_| self.bad_size())?;
        let [offset, size, flags] = head.map(U32::get);
        if size as usize != bytes.len() {
            return Err(self.bad_size());
        }
        Ok((offset, flags, bytes))
    }
}

/// An index and a value.
pub(crate) fn state(index: u32, value: u32) -> Vec<u8> {
    [index, value].map(U32::new).as_bytes().to_vec()
}

/// The payload of kick, call and err.
pub(super) fn vring_fd(index: u32, has_fd: bool) -> Vec<u8> {
    let value = u64::from(index) & INDEX_MASK | if has_fd { 0 } else { NO_FD };
    value.to_le_bytes().to_vec()
}

/// The payload of a configuration space message.
pub(crate) fn config(offset: u32, flags: u32, bytes: &[u8]) -> Vec<u8> {
    let head = [offset, bytes.len() as u32, flags].map(U32::new);
    [head.as_bytes(), bytes].concat()
}
