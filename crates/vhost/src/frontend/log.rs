//! The log of pages that a back-end wrote to: a bitmap in a file, a bit for each 4096 bytes of guest memory.
//!
//! Bits are set by the back-end and never cleared by either side. To see what was written *since*, give the back-end
//! a new log ([`Frontend::start_log`](super::Frontend::start_log)), and when it has taken that, read the old one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use ringway_memory::Gpa;
use rustix::fs::{MemfdFlags, memfd_create};

/// Bytes of guest memory that a bit stands for.
const PAGE: u64 = 4096;

/// A log, at first without a page in it.
pub struct DirtyLog {
    file: File,
    len: u64,
}

impl DirtyLog {
    /// A log for guest memory up to `end`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(end: Gpa) -> io::Result<Self> {
        let file = File::from(memfd_create("ringway-log", MemfdFlags::CLOEXEC)?);
        // In whole words, as back-ends set them.
        let len = end.0.div_ceil(PAGE).div_ceil(64) * 8;
        file.set_len(len)?;
        Ok(Self { file, len })
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "whether a page is in it is another question")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The first guest address that it has no bit for.
    pub fn end(&self) -> Gpa {
        Gpa(self.len * 8 * PAGE)
    }

    /// Its file once more, to be sent to the back-end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// The pages in it now, by their first addresses, in order.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pages(&self) -> io::Result<impl Iterator<Item = Gpa> + use<>> {
        let mut bitmap = vec![0; usize::try_from(self.len).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bitmap, 0)?;
        let bits = (0_u64..).zip(bitmap).filter(|(_, byte)| *byte != 0).flat_map(|(at, byte)| {
            (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| Gpa((at * 8 + bit) * PAGE))
        });
        Ok(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_pages() {
        for (end, len) in [(1, 8), (64 * PAGE, 8), (64 * PAGE + 1, 16)] {
            assert_eq!(DirtyLog::new(Gpa(end)).unwrap().len(), len);
        }
        let log = DirtyLog::new(Gpa(128 * PAGE)).unwrap();
        assert_eq!(log.pages().unwrap().count(), 0);
        log.file.write_all_at(&[0x81], 0).unwrap();
        log.file.write_all_at(&[0x80], 15).unwrap();
        let pages: Vec<_> = log.pages().unwrap().map(|page| page.0 / PAGE).collect();
        assert_eq!(pages, [0, 7, 127]);
    }
}
