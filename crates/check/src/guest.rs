//! The memory that is shared with a back-end: one file, of which a part is the rings and the rest buffers.
//!
//! Rings are read and written through a mapping; all else by `pread` and `pwrite`, which see the same pages.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use ringway_memory::{FrontendVa, Gpa, MemoryTable};
use ringway_queue::Areas;
use ringway_vhost::frontend::Memory;
use ringway_vhost::message::{RegionDescription, VringAddresses};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::case::{Verdict, trouble};

/// Where the guest has it.
const GPA: u64 = 0x1000_0000;
/// Its length in bytes.
pub(crate) const LEN: u64 = 4 << 20;
/// Room for one ring of up to 1024 descriptors.
const RING_ROOM: u64 = 0x1_0000;
const DRIVER_AREA: u64 = 0x8000;
const DEVICE_AREA: u64 = 0xa000;
/// Where buffers begin: behind 16 rings.
const BUFFERS: u64 = 16 * RING_ROOM;

/// An empty memory file of this length.
pub(crate) fn memory_file(len: u64) -> Result<OwnedFd, Verdict> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("ringway-check", flags).map_err(|e| trouble("memfd_create", e))?;
    ftruncate(&fd, len).map_err(|e| trouble("ftruncate", e))?;
    Ok(fd)
}

/// A file descriptor once more.
pub(crate) fn dup(fd: &OwnedFd) -> Result<OwnedFd, Verdict> {
    fd.try_clone().map_err(|e| trouble("dup", e))
}

/// See the module. All offsets are from the start of the region.
pub(crate) struct Guest {
    file: File,
    memory: Memory,
    table: MemoryTable,
    next_buffer: Cell<u64>,
}

impl Guest {
    /// New memory, which begins at this offset in its file.
    pub(crate) fn new(file_offset: u64) -> Result<Self, Verdict> {
        let file = File::from(memory_file(file_offset + LEN)?);
        let copy = file.try_clone().map_err(|e| trouble("dup", e))?;
        let memory =
            Memory::from_file(copy, file_offset, Gpa(GPA), LEN).map_err(|e| trouble("map memory", e))?;
        let table =
            MemoryTable::new(vec![memory.region().clone()]).map_err(|e| trouble("memory table", e))?;
        Ok(Self { file, memory, table, next_buffer: Cell::new(BUFFERS) })
    }

    /// How it is described to a back-end.
    pub(crate) fn description(&self) -> RegionDescription {
        self.memory.description()
    }

    /// Its file, to be sent.
    pub(crate) fn fd(&self) -> Result<OwnedFd, Verdict> {
        self.memory.share().map_err(|e| trouble("dup", e))
    }

    /// Description and file.
    pub(crate) fn region(&self) -> Result<(RegionDescription, OwnedFd), Verdict> {
        Ok((self.description(), self.fd()?))
    }

    /// Where the areas of ring `index` are: descriptor, driver, device.
    pub(crate) fn ring(index: u32) -> [u64; 3] {
        let at = u64::from(index) * RING_ROOM;
        [at, at + DRIVER_AREA, at + DEVICE_AREA]
    }

    /// The address of an offset, for the device.
    pub(crate) fn gpa(offset: u64) -> Gpa {
        Gpa(GPA + offset)
    }

    /// The payload of `SET_VRING_ADDR` for ring `index`.
    pub(crate) fn addresses(&self, index: u32, log: Option<Gpa>) -> VringAddresses {
        let [descriptor, driver, device] = Self::ring(index).map(|at| self.memory.frontend_va(at));
        VringAddresses { descriptor, driver, device, log }
    }

    /// The areas of ring `index` as the driver's half of a queue wants them.
    pub(crate) fn areas(&self, index: u32, size: u16, features: u64) -> Result<Areas, Verdict> {
        let VringAddresses { descriptor, driver, device, .. } = self.addresses(index, None);
        Areas::resolve(&self.table, size, features, descriptor, driver, device)
            .map_err(|e| trouble("ring areas", e))
    }

    /// The table, for indirect tables of descriptors.
    pub(crate) fn table(&self) -> &MemoryTable {
        &self.table
    }

    /// Where we say that we have it.
    pub(crate) fn frontend_va(&self, offset: u64) -> FrontendVa {
        self.memory.frontend_va(offset)
    }

    /// A fresh buffer; when the memory is used up, the first ones come again.
    pub(crate) fn buffer(&self, len: u64) -> u64 {
        let mut at = self.next_buffer.get();
        if at + len > LEN {
            at = BUFFERS;
        }
        self.next_buffer.set((at + len).next_multiple_of(64));
        at
    }

    pub(crate) fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], Verdict> {
        let mut bytes = [0; N];
        self.read_to(offset, &mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn read_to(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Verdict> {
        self.file
            .read_exact_at(bytes, self.description().offset + offset)
            .map_err(|e| trouble("read memory", e))
    }

    pub(crate) fn read_u16(&self, offset: u64) -> Result<u16, Verdict> {
        self.read(offset).map(u16::from_le_bytes)
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Verdict> {
        self.file
            .write_all_at(bytes, self.description().offset + offset)
            .map_err(|e| trouble("write memory", e))
    }

    /// Cuts its file.
    pub(crate) fn truncate(&self, len: u64) -> Result<(), Verdict> {
        self.file.set_len(self.description().offset + len).map_err(|e| trouble("truncate", e))
    }

    /// All of it, as it is now.
    pub(crate) fn snapshot(&self) -> Result<Vec<u8>, Verdict> {
        let mut bytes = vec![0; LEN as usize];
        self.read_to(0, &mut bytes)?;
        Ok(bytes)
    }
}
