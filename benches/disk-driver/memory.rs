//! The memory that requests' data is in, shared with the back-end.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, memfd_create};

/// A file in memory, mapped here.
pub(crate) struct Memory {
    file: File,
    map: MmapRaw,
}

impl Memory {
    /// So many bytes, with something in each page.
    pub(crate) fn new(len: usize) -> Result<Self> {
        let mut file = File::from(memfd_create("disk-driver", MemfdFlags::CLOEXEC)?);
        let data: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        file.write_all(&data).context("fill memory")?;
        let map = MmapOptions::new().len(len).map_raw(&file).context("map memory")?;
        Ok(Self { file, map })
    }

    /// The address of a byte.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.map.len());
        self.map.as_mut_ptr().wrapping_add(offset)
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
