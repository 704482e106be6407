//! The files behind the disks: written throughout, and removed with this.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

use super::Options;
use super::contestants::Storage;

const MEBIBYTE: usize = 1 << 20;
/// The kernel's file system in memory that everybody may use.
const TMPFS: &str = "/dev/shm";

/// The files that a row needs.
pub(super) struct Images {
    /// Bytes of every disk, whatever is behind it.
    pub(super) size: u64,
    files: Vec<(Storage, NamedTempFile)>,
}

impl Images {
    pub(super) fn make(options: &Options, storages: &[Storage]) -> Result<Self> {
        let mut files = Vec::new();
        for &storage in storages {
            let directory = match storage {
                Storage::Tmpfs => Path::new(TMPFS),
                Storage::File => &options.directory,
                Storage::Null | Storage::Memory => continue,
            };
            let made = make(directory, options.bytes());
            files.push((storage, made.with_context(|| format!("a file in {}", directory.display()))?));
        }
        Ok(Self { size: options.bytes(), files })
    }

    pub(super) fn path(&self, storage: Storage) -> Result<&Path> {
        let file = self.files.iter().find(|(of, _)| *of == storage);
        file.map(|(_, file)| file.path()).with_context(|| format!("{storage:?} has no file"))
    }
}

/// A file full of bytes that are not zero, all of them on the disk.
fn make(directory: &Path, size: u64) -> Result<NamedTempFile> {
    fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new().prefix("ringway-bench-").suffix(".img").tempfile_in(directory)?;
    let piece: Vec<u8> = (0..MEBIBYTE).map(|at| (at % 251) as u8 + 1).collect();
    for _ in 0..size / MEBIBYTE as u64 {
        ensure!(!ringway_testkit::process::is_interrupted(), "interrupted");
        file.write_all(&piece)?;
    }
    file.as_file().sync_all()?;
    Ok(file)
}
