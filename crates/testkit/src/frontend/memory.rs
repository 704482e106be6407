//! The guest's memory: memfds, reached by guest physical address.
//!
//! `pread` and `pwrite` see the pages that the back-end has mapped, so this is shared memory without a
//! mapping of our own. A single index is moved as part of an aligned word of eight bytes: the kernel copies
//! such a word at once, two bytes perhaps one after the other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::wire::{self, RegionDescription};

/// What is added to a guest address to make the address in the front-end. No mapping is there; it only has
/// to differ, so that a back-end that mixes the two up is caught.
const FRONTEND_VA: u64 = 0x7a00_0000_0000;

/// A piece of guest memory.
#[derive(Debug)]
pub struct Region {
    /// As messages describe it.
    pub description: RegionDescription,
    file: OwnedFd,
    /// The first byte not yet handed out by [`GuestMemory::allocate`], from the region's start.
    next: AtomicU64,
    /// How much of it the file still backs; a write beyond would make the file grow again.
    backed: AtomicU64,
}

/// All of a guest's memory.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    /// Regions `(gpa, size)`, each at the start of a file of its own.
    pub fn new(regions: &[(u64, u64)]) -> Result<Self> {
        Self::with_offsets(&regions.iter().map(|&(gpa, size)| (gpa, size, 0)).collect::<Vec<_>>())
    }

    /// Regions `(gpa, size, mmap_offset)`, each in a file of its own that is longer by the offset.
    pub fn with_offsets(regions: &[(u64, u64, u64)]) -> Result<Self> {
        let regions = regions.iter().map(|&(gpa, size, mmap_offset)| {
            let file = memfd_create("guest", MemfdFlags::CLOEXEC).context("memfd_create")?;
            ftruncate(&file, size + mmap_offset).context("size a memfd")?;
            let description = RegionDescription { gpa, size, frontend_va: FRONTEND_VA + gpa, mmap_offset };
            Ok(Region { description, file, next: AtomicU64::new(0), backed: AtomicU64::new(size) })
        });
        Ok(Self { regions: regions.collect::<Result<_>>()? })
    }

    /// The regions.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Their descriptions, to be sent as they are or spoiled first.
    pub fn descriptions(&self) -> Vec<RegionDescription> {
        self.regions.iter().map(|region| region.description).collect()
    }

    /// Their files, in the same order.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.regions.iter().map(|region| region.file.as_fd()).collect()
    }

    /// The payload of `SET_MEM_TABLE`; [`fds`](Self::fds) go with it.
    pub fn table_payload(&self) -> Vec<u8> {
        wire::mem_table(self.regions.len() as u32, &self.descriptions())
    }

    /// Hands out memory that was not handed out before, from the first region with room.
    pub fn allocate(&self, len: u64, align: u64) -> Result<u64> {
        for region in &self.regions {
            let RegionDescription { gpa, size, .. } = region.description;
            let at = (gpa + region.next.load(Ordering::Relaxed)).next_multiple_of(align) - gpa;
            if at + len <= size {
                region.next.store(at + len, Ordering::Relaxed);
                return Ok(gpa + at);
            }
        }
        anyhow::bail!("no {len} bytes of guest memory are left")
    }

    /// Reads at a guest address, within one region.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<()> {
        let (region, mut offset) = self.locate(gpa, bytes.len())?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let done = rustix::io::pread(&region.file, &mut *rest, offset).context("read guest memory")?;
            ensure!(done > 0, "guest memory at {gpa:#x} has no file behind it");
            rest = &mut rest[done..];
            offset += done as u64;
        }
        Ok(())
    }

    /// Reads `len` bytes at a guest address.
    pub fn read_vec(&self, gpa: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(gpa, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes at a guest address, within one region.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let (region, mut offset) = self.locate(gpa, bytes.len())?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let done = rustix::io::pwrite(&region.file, rest, offset).context("write guest memory")?;
            rest = &rest[done..];
            offset += done as u64;
        }
        Ok(())
    }

    /// Loads a 16-bit number that the back-end may be changing.
    pub fn load_u16(&self, gpa: u64) -> Result<u16> {
        let (word, at) = aligned_word(gpa);
        let mut bytes = [0; 8];
        if self.locate(word, 8).is_ok() {
            self.read(word, &mut bytes)?;
        } else {
            self.read(gpa, &mut bytes[at..at + 2])?;
        }
        // What the peer published before this number is read after it.
        fence(Ordering::Acquire);
        Ok(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
    }

    /// Stores a 16-bit number that the back-end may be reading. If `own_word`, the aligned eight bytes around
    /// it are rewritten too: they must be written by nobody else.
    pub fn store_u16(&self, gpa: u64, value: u16, own_word: bool) -> Result<()> {
        let (word, at) = aligned_word(gpa);
        // What was written before is seen before this number.
        fence(Ordering::Release);
        if own_word && self.locate(word, 8).is_ok() {
            let mut bytes = [0; 8];
            self.read(word, &mut bytes)?;
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
            self.write(word, &bytes)
        } else {
            self.write(gpa, &value.to_le_bytes())
        }
    }

    /// The front-end's virtual address of a guest address. An address in no region is translated as if it
    /// were in one: it is for the back-end to find out.
    pub fn frontend_va(&self, gpa: u64) -> u64 {
        gpa.wrapping_add(FRONTEND_VA)
    }

    /// Cuts a region to `len` bytes: whoever touches a mapped page beyond gets SIGBUS. More bytes give it back.
    pub fn truncate(&self, region: usize, len: u64) -> Result<()> {
        let region = &self.regions[region];
        region.backed.store(len, Ordering::Relaxed);
        ftruncate(&region.file, region.description.mmap_offset + len).context("truncate guest memory")
    }

    /// The region that holds `len` bytes at `gpa`, and where they stand in its file.
    fn locate(&self, gpa: u64, len: usize) -> Result<(&Region, u64)> {
        let found = self.regions.iter().find_map(|region| {
            let RegionDescription { gpa: start, size, mmap_offset, .. } = region.description;
            let backed = size.min(region.backed.load(Ordering::Relaxed));
            let offset = gpa.checked_sub(start)?;
            (offset.checked_add(len as u64)? <= backed).then_some((region, mmap_offset + offset))
        });
        found.with_context(|| format!("no guest memory of {len} bytes at {gpa:#x}"))
    }
}

/// The aligned word of eight bytes around an address, and the place in it.
fn aligned_word(gpa: u64) -> (u64, usize) {
    (gpa & !7, (gpa & 7) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_apart_and_offsets_are_heeded() {
        let memory = GuestMemory::with_offsets(&[(0, 0x2000, 0), (0x10_0000, 0x1000, 0x3000)]).unwrap();
        memory.write(0x10_0ffe, &[1, 2]).unwrap();
        assert_eq!(memory.read_vec(0x10_0ffe, 2).unwrap(), [1, 2]);
        let mut raw = [0; 2];
        rustix::io::pread(memory.fds()[1], &mut raw, 0x3ffe).unwrap();
        assert_eq!(raw, [1, 2]);
        assert!(memory.write(0x1fff, &[0; 2]).is_err(), "across a region's end");
        assert!(memory.read_vec(u64::MAX, 2).is_err());
    }

    #[test]
    fn allocations_do_not_overlap_and_move_to_the_next_region() {
        let memory = GuestMemory::new(&[(0x1000, 0x1000), (0x8000, 0x1000)]).unwrap();
        assert_eq!(memory.allocate(10, 1).unwrap(), 0x1000);
        assert_eq!(memory.allocate(10, 16).unwrap(), 0x1010);
        assert_eq!(memory.allocate(0x1000, 4096).unwrap(), 0x8000);
        assert!(memory.allocate(0x1000, 1).is_err());
    }

    #[test]
    fn a_stored_index_leaves_its_neighbours_alone() {
        let memory = GuestMemory::new(&[(0, 0x1000)]).unwrap();
        memory.write(0, &[0x11; 16]).unwrap();
        memory.store_u16(2, 0xabcd, true).unwrap();
        memory.store_u16(14, 0x1234, false).unwrap();
        let bytes = memory.read_vec(0, 16).unwrap();
        assert_eq!(bytes[..5], [0x11, 0x11, 0xcd, 0xab, 0x11]);
        assert_eq!((memory.load_u16(2).unwrap(), memory.load_u16(14).unwrap()), (0xabcd, 0x1234));
    }

    #[test]
    fn truncated_memory_cannot_be_touched() {
        let memory = GuestMemory::new(&[(0, 0x2000)]).unwrap();
        memory.truncate(0, 0x1000).unwrap();
        assert!(memory.read_vec(0xfff, 1).is_ok());
        assert!(memory.read_vec(0x1000, 1).is_err());
        assert!(memory.write(0x1000, &[0]).is_err());
        memory.truncate(0, 0x2000).unwrap();
        assert!(memory.write(0x1000, &[0]).is_ok());
    }
}
