//! Why an image cannot be opened, changed or handed over.

use std::io;
use std::path::{Path, PathBuf};

use ringway_memory::MapError;
use ringway_vhost::handover::HandoverError;
use thiserror::Error;

use super::Qcow2Error;
use crate::nbd::NbdError;

/// Why there is no image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The kernel's error.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// Which image.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Something else than a file of bytes.
    #[error("{0} is neither a regular file nor a block device")]
    NotAnImage(PathBuf),
    /// Another program uses it.
    #[error("{path} is in use by {}", by_whom(*by))]
    InUse {
        /// Which image.
        path: PathBuf,
        /// Who has it, if that is known.
        by: Option<i32>,
    },
    /// The page cache cannot be passed by.
    #[error("the file system of {0} has no direct I/O; --cache=writeback does without")]
    NoDirect(PathBuf),
    /// The storage has no blocks that small.
    #[error("{image} cannot have logical blocks of {given} bytes: {why} needs {needed}")]
    BlockSize {
        /// Which image.
        image: String,
        /// What it is that needs more.
        why: &'static str,
        /// What was asked for.
        given: u32,
        /// The least there can be.
        needed: u32,
    },
    /// A size that no disk's block has.
    #[error("a logical block has 512 to 65536 bytes, a power of two, and not {0}")]
    BadBlockSize(u32),
    /// It would lose bytes, which nobody asked for.
    #[error("the disk has {from} bytes, and would lose some with {to}")]
    WouldShrink {
        /// The size it has.
        from: u64,
        /// The size it was to get.
        to: u64,
    },
    /// Its size is what it is.
    #[error("{0} cannot be resized here")]
    NotResizable(String),
    /// No memory for a disk.
    #[error("cannot keep a disk in memory: {0}")]
    Memory(#[from] MapError),
    /// An image that cannot be used.
    #[error("cannot open {path}: {problem}")]
    Qcow2 {
        /// Which image.
        path: PathBuf,
        /// Why not.
        problem: Qcow2Error,
    },
    /// No export of an NBD server.
    #[error("cannot use {uri}: {problem}")]
    Nbd {
        /// Which export.
        uri: String,
        /// Why not.
        problem: Box<NbdError>,
    },
    /// What another process handed over.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// Another process has another image, or has opened it in another way.
    #[error("the image handed over is {theirs}, and the one to open is {ours}")]
    Other {
        /// What the other process has.
        theirs: String,
        /// What was asked for here.
        ours: String,
    },
}

impl ImageError {
    pub(super) fn io(path: &Path, what: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), what, source }
    }
}

fn by_whom(pid: Option<i32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
