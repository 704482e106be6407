//! Memory that a driver shares with a device: a file without a name, mapped here and by the back-end.
//!
//! Rings and buffers are cut from it from front to back, and nothing is given back: a driver makes them once. The
//! addresses in the front-end's process, by which vhost-user names rings, are labels: they lie far from the guest
//! addresses, so that a side which mixes the two up is found out.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryError, Region, SharedBuf};
use rustix::fs::{MemfdFlags, memfd_create};

use super::FrontendError;
use crate::message::RegionDescription;

/// Where the front-end's addresses begin: that of guest address 0.
const LABELS: u64 = 0x5000_0000_0000;

/// What pages memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// The kernel's own.
    #[default]
    Small,
    /// Huge pages of the kernel's default size, reserved by its administrator.
    Huge,
}

/// A memory region of our own.
pub struct Memory {
    file: File,
    region: Region,
    offset: u64,
    /// What is cut off already, from the front.
    allocated: u64,
}

impl Memory {
    /// `len` zeros at guest address `gpa`.
    ///
    /// # Errors
    /// [`FrontendError::Io`], [`FrontendError::Map`].
    pub fn new(gpa: Gpa, len: u64, pages: Pages) -> Result<Self, FrontendError> {
        let huge = if pages == Pages::Huge { MemfdFlags::HUGETLB } else { MemfdFlags::empty() };
        let file = File::from(memfd_create("ringway-guest", MemfdFlags::CLOEXEC | huge)?);
        file.set_len(len)?;
        Self::from_file(file, 0, gpa, len)
    }

    /// `len` bytes of a file of the caller's, from `offset` on, at guest address `gpa`.
    ///
    /// # Errors
    /// [`FrontendError::Io`], [`FrontendError::Map`].
    pub fn from_file(file: File, offset: u64, gpa: Gpa, len: u64) -> Result<Self, FrontendError> {
        let bad = MemoryError::BadSize { addr: gpa, len };
        let frontend_va = FrontendVa(LABELS).checked_add(gpa.0).ok_or(bad)?;
        let region = Mapping::region(file.try_clone()?.into(), offset, len, gpa, frontend_va)?;
        Ok(Self { file, region, offset, allocated: 0 })
    }

    /// What `SET_MEM_TABLE`, `ADD_MEM_REG` and `REM_MEM_REG` say of it.
    pub fn description(&self) -> RegionDescription {
        RegionDescription {
            gpa: self.region.gpa(),
            len: self.region.len(),
            frontend_va: self.region.frontend_va(),
            offset: self.offset,
        }
    }

    /// The file once more, to be sent to the back-end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn share(&self) -> Result<OwnedFd, FrontendError> {
        Ok(self.file.try_clone()?.into())
    }

    /// The region as it is mapped here.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Cuts off `len` bytes at a multiple of `align`; returns where they begin in the region.
    ///
    /// # Errors
    /// [`FrontendError::Memory`] if so many are not left.
    pub fn allocate(&mut self, len: u64, align: u64) -> Result<u64, FrontendError> {
        let start = self.allocated.checked_next_multiple_of(align);
        let end = start.and_then(|start| start.checked_add(len)).filter(|end| *end <= self.region.len());
        let (Some(start), Some(end)) = (start, end) else {
            let addr = self.gpa(self.allocated);
            return Err(MemoryError::Unmapped { addr, len }.into());
        };
        self.allocated = end;
        Ok(start)
    }

    /// Cuts off `count` buffers of `len` bytes each, the first at the start of a page.
    ///
    /// # Errors
    /// [`FrontendError::Memory`] if there is no room for them, or `len` is 0.
    pub fn buffers(&mut self, count: usize, len: u32) -> Result<Vec<SharedBuf>, FrontendError> {
        let total = (count as u64).checked_mul(len.into());
        let total = total.ok_or(MemoryError::BadSize { addr: self.region.gpa(), len: u64::MAX })?;
        let start = self.allocate(total, 4096)?;
        Ok(SharedBuf::divide(&self.region, start..start + total, len)?.collect())
    }

    /// Where the guest has the byte at `offset`.
    pub fn gpa(&self, offset: u64) -> Gpa {
        Gpa(self.region.gpa().0 + offset)
    }

    /// Where the front-end has the byte at `offset`.
    pub fn frontend_va(&self, offset: u64) -> FrontendVa {
        FrontendVa(self.region.frontend_va().0 + offset)
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 0x10000;

    fn memory() -> Memory {
        Memory::new(Gpa(0x10_0000), LEN, Pages::Small).expect("memory")
    }

    #[test]
    fn what_is_cut_off_lies_apart_and_inside() {
        let mut memory = memory();
        assert_eq!(memory.allocate(10, 16).unwrap(), 0);
        assert_eq!(memory.allocate(10, 16).unwrap(), 16);
        let buffers = memory.buffers(3, 0x1000).unwrap();
        let places: Vec<_> = buffers.iter().map(|b| (b.addr().0, b.len())).collect();
        assert_eq!(places, [(0x10_1000, 0x1000), (0x10_2000, 0x1000), (0x10_3000, 0x1000)]);
        assert!(matches!(memory.allocate(LEN, 1), Err(FrontendError::Memory(_))));
        assert!(matches!(memory.buffers(usize::MAX, 2), Err(FrontendError::Memory(_))));
        assert_eq!(memory.allocate(LEN - 0x4000, 1).unwrap(), 0x4000);
        assert!(memory.allocate(1, 1).is_err());
    }

    #[test]
    fn another_mapping_of_the_file_sees_what_is_written() {
        let mut ours = memory();
        let mut theirs = Memory::from_file(ours.share().unwrap().into(), 0x1000, Gpa(0), 0x1000).unwrap();
        ours.allocate(0x1000, 1).unwrap();
        let (mut written, read) = (ours.buffers(1, 64).unwrap(), theirs.buffers(1, 64).unwrap());
        written[0].write(b"seen");
        let mut text = [0; 4];
        read[0].read(&mut text);
        assert_eq!(&text, b"seen");
        let description = theirs.description();
        assert_eq!((description.offset, description.len), (0x1000, 0x1000));
        assert_ne!(description.frontend_va.0, description.gpa.0);
    }
}
