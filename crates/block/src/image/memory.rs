//! A disk in memory: fast, and gone with the server; a live upgrade takes it along.
//!
//! Its pages are of a file that no file system shows, mapped: a page that was never written to takes no memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use ringway_memory::{FrontendVa, Gpa, GuestBuf, GuestSlice, MapError, Mapping, Region};
use rustix::fs::{FallocateFlags, MemfdFlags};

use super::ZEROES;
use crate::job::{BlockingImage, Range};

/// A disk in memory.
pub struct MemoryDisk {
    file: OwnedFd,
    /// None if the disk has no bytes. Another one takes its place when the size changes.
    region: RwLock<Option<Region>>,
}

impl MemoryDisk {
    /// A disk that reads as zeroes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(size: u64) -> Result<Self, MapError> {
        let file = rustix::fs::memfd_create("ringway-disk", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
        rustix::fs::ftruncate(&file, size).map_err(io::Error::from)?;
        Self::adopt(file)
    }

    /// The disk of another process, whose file this is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn adopt(file: OwnedFd) -> Result<Self, MapError> {
        let region = RwLock::new(map(file.as_fd())?);
        Ok(Self { file, region })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.region().as_ref().map_or(0, Region::len)
    }

    /// Changes the size.
    ///
    /// # Errors
    /// The kernel's; the size is what it was.
    pub fn resize(&self, size: u64) -> Result<(), MapError> {
        let mut region = self.region.write().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::ftruncate(&self.file, size).map_err(io::Error::from)?;
        *region = map(self.file.as_fd())?;
        Ok(())
    }

    /// Does something to a range that is there.
    fn with<R>(&self, range: Range, act: impl FnOnce(GuestSlice<'_>) -> R) -> io::Result<R> {
        let eio = || io::Error::from_raw_os_error(libc::EIO);
        let region = self.region();
        let region = region.as_ref().ok_or_else(eio)?;
        let result = act(region.bytes(range.offset, range.len).ok_or_else(eio)?);
        // Memory that the kernel had not got was zeroes of our own.
        if region.is_intact() { Ok(result) } else { Err(eio()) }
    }

    fn region(&self) -> RwLockReadGuard<'_, Option<Region>> {
        self.region.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing of it waits for long. `EIO` is for bytes that are not there, and for memory that the kernel has not got.
impl BlockingImage for MemoryDisk {
    fn read(&self, offset: u64, to: GuestBuf<'_>) -> io::Result<()> {
        self.with(Range { offset, len: to.len() as u64 }, |bytes| {
            GuestBuf::new(&[bytes]).copy_to(to);
        })
    }

    fn write(&self, offset: u64, from: GuestBuf<'_>, _stable: bool) -> io::Result<()> {
        self.with(Range { offset, len: from.len() as u64 }, |bytes| {
            from.copy_to(GuestBuf::new(&[bytes]));
        })
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, range: Range) -> io::Result<()> {
        self.write_zeroes(range, true)
    }

    fn write_zeroes(&self, range: Range, unmap: bool) -> io::Result<()> {
        self.with(range, |bytes| {
            if unmap && range.len > 0 {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                return Ok(rustix::fs::fallocate(&self.file, flags, range.offset, range.len)?);
            }
            let all = [bytes];
            let mut rest = GuestBuf::new(&all);
            while !rest.is_empty() {
                let done = rest.write(&ZEROES.0);
                rest = rest.advance(done);
            }
            Ok(())
        })?
    }

    fn secure_erase(&self, _range: Range) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// To be given to another process.
impl AsFd for MemoryDisk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn map(file: BorrowedFd<'_>) -> Result<Option<Region>, MapError> {
    let size = rustix::fs::fstat(file).map_err(io::Error::from)?.st_size.cast_unsigned();
    if size == 0 {
        return Ok(None);
    }
    let file = file.try_clone_to_owned()?;
    Mapping::region(file, 0, size, Gpa(0), FrontendVa(0)).map(Some)
}
