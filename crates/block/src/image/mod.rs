//! What is behind a disk: an image, of one of several kinds, what there is to know of it, and how queues reach it.
//!
//! ```text
//!   ImageSpec ──open──► Image ─┬─ Facts    what the device model is made of
//!                              └─ Way      null │ here, in memory │ a file, for io_uring │ elsewhere: an Executor
//! ```
//!
//! A file is locked for as long as it is open (`lock.rs`); which of its bytes a guest may reach, and when, is decided by the
//! device model and its queues.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use ringway_vhost::handover::{FdIndex, FilesIn, FilesOut, HandoverError};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::job::{BlockingImage, Executor};
use crate::nbd;

mod error;
mod lock;
mod memory;
mod pool;
mod qcow2;
mod raw;
mod spec;
mod sys;

pub use error::ImageError;
pub use memory::MemoryDisk;
pub use pool::Pool;
pub use qcow2::{Qcow2, Qcow2Error};
pub use raw::Raw;
pub use spec::{ImageSpec, SpecError, parse_size};

/// The largest logical block.
const MAX_BLOCK_SIZE: u32 = 1 << 16;

/// Zeroes to write, where direct I/O takes them.
#[repr(align(4096))]
struct Zeroes([u8; 1 << 16]);
static ZEROES: Zeroes = Zeroes([0; 1 << 16]);

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Format {
    /// What its first bytes say. A guest that can write to a raw image can make these say [`Format::Qcow2`] the next time,
    /// and have more bytes than it was given then; but no other file's, for a name in it is not followed. Who knows the
    /// format says it.
    #[default]
    Auto,
    /// The disk's bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// How writes get to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Cache {
    /// Past the page cache. What was written is stable once it was flushed.
    #[default]
    Direct,
    /// Through the page cache. What was written is stable once it was flushed.
    Writeback,
    /// Through the page cache. What was written is stable, as long as the driver does not ask for less.
    Writethrough,
}

/// How an image is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The guest cannot write.
    pub read_only: bool,
    /// What the file holds.
    pub format: Format,
    /// How writes get to the file.
    pub cache: Cache,
    /// The disk's logical block size, or what fits the image.
    pub logical_block_size: Option<u32>,
    /// Others may write to the image at the same time: guests that know what they do, or one that migrates.
    pub share: bool,
    /// What to do when an NBD server does not answer.
    pub nbd: nbd::Options,
}

/// What there is to know of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an answer of its own")]
pub struct Facts {
    /// Bytes, a multiple of the logical block size.
    pub size: u64,
    /// What requests are multiples of.
    pub logical_block_size: u32,
    /// What the storage writes as a whole; at least the logical block size.
    pub physical_block_size: u32,
    /// The smallest I/O that costs no more than it must, in bytes; 0 if not known.
    pub min_io: u32,
    /// The best size of a long I/O, in bytes; 0 if there is none.
    pub opt_io: u32,
    /// Where the first physical block begins, in bytes.
    pub alignment_offset: u32,
    /// Nothing can be written.
    pub read_only: bool,
    /// Ranges can be discarded.
    pub can_discard: bool,
    /// What ranges should be multiples of to be discarded, in bytes.
    pub discard_alignment: u64,
    /// Ranges can be made zeroes.
    pub can_write_zeroes: bool,
    /// Zeroes may give space back.
    pub zeroes_may_unmap: bool,
    /// Ranges can be erased for good.
    pub can_secure_erase: bool,
    /// There is something to flush.
    pub can_flush: bool,
    /// What the addresses and lengths of buffers must be multiples of for the file of [`Way::File`] to take them; the
    /// executor beside it takes any.
    pub memory_alignment: u32,
}

impl Facts {
    /// Of a writable image that can all but erase, in blocks of one size.
    pub(crate) fn new(size: u64, block_size: u32) -> Self {
        Self {
            size,
            logical_block_size: block_size,
            physical_block_size: block_size,
            min_io: 0,
            opt_io: 0,
            alignment_offset: 0,
            read_only: false,
            can_discard: true,
            discard_alignment: block_size.into(),
            can_write_zeroes: true,
            zeroes_may_unmap: true,
            can_secure_erase: false,
            can_flush: true,
            memory_alignment: 1,
        }
    }

    /// Of an image that is no file, as the options say.
    fn plain(size: u64, options: &OpenOptions) -> Self {
        let can_write = !options.read_only;
        let block_size = options.logical_block_size.unwrap_or(512);
        Self {
            size: size - size % u64::from(block_size),
            read_only: options.read_only,
            can_discard: can_write,
            can_write_zeroes: can_write,
            zeroes_may_unmap: can_write,
            physical_block_size: block_size.max(4096),
            ..Self::new(size, block_size)
        }
    }

    /// Of what a server has, as the options say.
    fn of_export(export: &nbd::Export, spec: &ImageSpec, options: &OpenOptions) -> Result<Self, ImageError> {
        let needed = export.min_block.max(512);
        let block_size = options.logical_block_size.unwrap_or(needed);
        if block_size < needed {
            let (image, why) = (spec.to_string(), "the server");
            return Err(ImageError::BlockSize { image, why, given: block_size, needed });
        }
        let can_write = !options.read_only && !export.is_read_only();
        let can_write_zeroes = can_write && export.can_write_zeroes();
        Ok(Self {
            physical_block_size: export.preferred_block.clamp(block_size, MAX_BLOCK_SIZE),
            min_io: export.preferred_block,
            read_only: !can_write,
            can_discard: can_write && export.can_discard(),
            discard_alignment: export.preferred_block.max(block_size).into(),
            can_write_zeroes,
            zeroes_may_unmap: can_write_zeroes,
            can_flush: export.can_flush(),
            ..Self::new(export.size - export.size % u64::from(block_size), block_size)
        })
    }
}

/// How queues reach an image.
#[derive(Clone)]
pub enum Way {
    /// There is nothing to reach: all is done at once.
    Null,
    /// It is in memory, and calls do not wait: by calling it.
    Here(Arc<dyn BlockingImage>),
    /// Reads and writes can be given to the kernel.
    File {
        /// The file.
        file: Arc<OwnedFd>,
        /// Flushes too: what one could not write, the next one does not claim to have written.
        flushes: bool,
        /// Who does all else, and these too if the kernel does not take them.
        aside: Arc<dyn Executor>,
    },
    /// Somebody else does all.
    Elsewhere(Arc<dyn Executor>),
}

/// An open image.
pub struct Image {
    spec: ImageSpec,
    options: OpenOptions,
    facts: Facts,
    kind: Kind,
}

enum Kind {
    Null,
    Memory(Arc<MemoryDisk>),
    Raw(Arc<Raw>, Arc<Pool>),
    Qcow2(Arc<Qcow2>, Arc<Pool>),
    Nbd(Arc<nbd::Client>, nbd::Export),
}

/// What an image is in another process.
#[derive(Debug, Serialize, Deserialize)]
pub struct ImageState {
    spec: String,
    format: Format,
    read_only: bool,
    direct: bool,
    size: u64,
    block_size: u32,
    file: Option<FdIndex>,
}

impl Image {
    /// Opens an image.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(spec: &ImageSpec, options: &OpenOptions) -> Result<Self, ImageError> {
        Self::check(options)?;
        let kind = match spec {
            ImageSpec::Null(_) => Kind::Null,
            ImageSpec::Memory(size) => Kind::Memory(Arc::new(MemoryDisk::new(*size)?)),
            ImageSpec::File(path) => Kind::open(raw::open_locked(path, options)?, path, options)?,
            ImageSpec::Nbd(uri) => Kind::nbd(uri, options)?,
        };
        let size = if let ImageSpec::Null(size) = spec { *size } else { 0 };
        Self::with_kind(spec, options, kind, size)
    }

    fn with_kind(
        spec: &ImageSpec,
        options: &OpenOptions,
        kind: Kind,
        null_size: u64,
    ) -> Result<Self, ImageError> {
        let facts = Facts::plain(null_size, options);
        let mut image = Self { spec: spec.clone(), options: options.clone(), facts, kind };
        image.look()?;
        Ok(image)
    }

    fn check(options: &OpenOptions) -> Result<(), ImageError> {
        match options.logical_block_size {
            Some(size) if !size.is_power_of_two() || !(512..=MAX_BLOCK_SIZE).contains(&size) => {
                Err(ImageError::BadBlockSize(size))
            }
            _ => Ok(()),
        }
    }

    /// What it was opened by.
    pub fn spec(&self) -> &ImageSpec {
        &self.spec
    }

    /// What there is to know of it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// How queues reach it.
    pub fn way(&self) -> Way {
        match &self.kind {
            Kind::Null => Way::Null,
            Kind::Memory(disk) => Way::Here(Arc::clone(disk) as _),
            Kind::Raw(raw, _) if raw.is_in_memory() => Way::Here(Arc::clone(raw) as _),
            Kind::Raw(raw, pool) => {
                let (file, aside) = (Arc::clone(raw.file()), Arc::clone(pool));
                Way::File { file, flushes: !raw.is_buffered(), aside }
            }
            Kind::Qcow2(_, pool) => Way::Elsewhere(Arc::clone(pool) as _),
            Kind::Nbd(client, _) => Way::Elsewhere(Arc::clone(client) as _),
        }
    }

    /// Looks at the image again: somebody may have made it longer. Waits for the server if it has one.
    ///
    /// # Errors
    /// The kernel's, the server's.
    pub fn refresh(&mut self) -> Result<&Facts, ImageError> {
        if let Kind::Nbd(client, export) = &mut self.kind {
            let uri = self.spec.to_string();
            *export = client.refresh().map_err(|problem| ImageError::Nbd { uri, problem: problem.into() })?;
        }
        self.look()
    }

    /// What there is to know of it now.
    fn look(&mut self) -> Result<&Facts, ImageError> {
        self.facts = match (&self.kind, &self.spec) {
            (Kind::Raw(raw, _), ImageSpec::File(path)) => raw.facts(path, &self.options)?,
            (Kind::Qcow2(qcow2, _), ImageSpec::File(path)) => {
                qcow2.facts().map_err(|e| ImageError::io(path, "look at", e))?
            }
            (Kind::Nbd(_, export), spec) => Facts::of_export(export, spec, &self.options)?,
            (Kind::Memory(disk), _) => Facts::plain(disk.size(), &self.options),
            _ => Facts::plain(self.facts.size, &self.options),
        };
        Ok(&self.facts)
    }

    /// Changes the size; bytes are lost only if `may_shrink`.
    ///
    /// # Errors
    /// [`ImageError::WouldShrink`], [`ImageError::NotResizable`], the kernel's.
    pub fn resize(&mut self, size: u64, may_shrink: bool) -> Result<&Facts, ImageError> {
        let from = self.refresh()?.size;
        if size < from && !may_shrink {
            return Err(ImageError::WouldShrink { from, to: size });
        }
        if self.options.read_only {
            return Err(ImageError::NotResizable(self.spec.to_string()));
        }
        match (&self.kind, &self.spec) {
            (Kind::Raw(raw, _), ImageSpec::File(path)) => match raw.set_end(size) {
                Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                    return Err(ImageError::NotResizable(self.spec.to_string()));
                }
                result => result.map_err(|e| ImageError::io(path, "resize", e))?,
            },
            (Kind::Qcow2(qcow2, _), ImageSpec::File(path)) => {
                qcow2.resize(size).map_err(|e| ImageError::io(path, "resize", e))?;
            }
            (Kind::Nbd(..), _) => return Err(ImageError::NotResizable(self.spec.to_string())),
            (Kind::Memory(disk), _) => disk.resize(size)?,
            _ => self.facts.size = size,
        }
        self.refresh()
    }

    /// Lets go of what is not in the image's files yet, before another process opens them. No request may be under way, or come
    /// before [`Image::resume`].
    ///
    /// # Errors
    /// The kernel's; nothing has changed then.
    pub fn suspend(&self) -> Result<(), ImageError> {
        match (&self.kind, &self.spec) {
            (Kind::Qcow2(qcow2, _), ImageSpec::File(path)) => {
                qcow2.suspend().map_err(|e| ImageError::io(path, "write", e))
            }
            _ => Ok(()),
        }
    }

    /// Goes on, if the other process does not.
    ///
    /// # Errors
    /// As for opening it.
    pub fn resume(&self) -> Result<(), ImageError> {
        if let Kind::Qcow2(qcow2, _) = &self.kind { qcow2.resume() } else { Ok(()) }
    }

    /// The state to hand over; the files, and with them locks and memory, are added to `files`.
    pub fn state<'f>(&'f self, files: &mut FilesOut<'f>) -> ImageState {
        let file = match &self.kind {
            Kind::Null | Kind::Nbd(..) => None,
            Kind::Memory(disk) => Some(disk.as_fd()),
            Kind::Raw(raw, _) => Some(raw.file().as_fd()),
            Kind::Qcow2(qcow2, _) => Some(qcow2.file()),
        };
        let format = if let Kind::Qcow2(..) = self.kind { Format::Qcow2 } else { Format::Raw };
        ImageState {
            spec: self.spec.to_string(),
            format,
            read_only: self.options.read_only,
            direct: self.options.cache == Cache::Direct,
            size: self.facts.size,
            block_size: self.facts.logical_block_size,
            file: file.map(|file| files.add(file)),
        }
    }

    /// The image that another process had, with what it has locked and kept.
    ///
    /// # Errors
    /// [`ImageError::Other`] if it is not what is to be opened, and those of [`Image::open`].
    pub fn restore(
        spec: &ImageSpec,
        options: &OpenOptions,
        state: &ImageState,
        files: &mut FilesIn,
    ) -> Result<Self, ImageError> {
        Self::check(options)?;
        if options.format != Format::Auto && options.format != state.format {
            let [theirs, ours] = [state.format, options.format].map(|format| format!("{format:?}"));
            return Err(ImageError::Other { theirs, ours });
        }
        state.check(spec, options, state.block_size)?;
        let file = state.file.map(|index| files.take(index)).transpose()?;
        let kind = match (spec, file) {
            (ImageSpec::Null(_), None) => Kind::Null,
            // The server has two clients for a while, of which one has requests.
            (ImageSpec::Nbd(uri), None) => Kind::nbd(uri, options)?,
            (ImageSpec::Memory(_), Some(file)) => Kind::Memory(Arc::new(MemoryDisk::adopt(file)?)),
            (ImageSpec::File(path), Some(file)) if is_open_as(&file, options) => {
                // It is what it was, whatever it looks like by now.
                match state.format {
                    Format::Qcow2 => Kind::qcow2(file.into(), path, options)?,
                    Format::Raw | Format::Auto => Kind::raw(file.into(), path, options)?,
                }
            }
            _ => return Err(HandoverError::BadValue("the file of an image").into()),
        };
        let image = Self::with_kind(spec, options, kind, state.size)?;
        state.check(spec, options, image.facts.logical_block_size)?;
        Ok(image)
    }
}

impl ImageState {
    /// An error if the image is not to be opened here as it is there.
    fn check(&self, spec: &ImageSpec, options: &OpenOptions, block_size: u32) -> Result<(), ImageError> {
        let theirs = describe(&self.spec, self.read_only, self.direct, self.block_size);
        let is_direct = options.cache == Cache::Direct;
        let ours = describe(&spec.to_string(), options.read_only, is_direct, block_size);
        if theirs == ours { Ok(()) } else { Err(ImageError::Other { theirs, ours }) }
    }
}

fn describe(spec: &str, read_only: bool, direct: bool, block_size: u32) -> String {
    let access = if read_only { "read-only" } else { "writable" };
    let cache = if direct { "direct I/O" } else { "page cache" };
    format!("{spec} ({access}, {cache}, blocks of {block_size} bytes)")
}

/// Whether a file is open as it must be.
fn is_open_as(file: &OwnedFd, options: &OpenOptions) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| {
        let is_read_only = flags & OFlags::RWMODE == OFlags::RDONLY;
        let is_direct = flags.contains(OFlags::DIRECT);
        is_read_only == options.read_only && is_direct == (options.cache == Cache::Direct)
    })
}

impl Kind {
    /// An image in a file that is open and locked.
    fn open(file: File, path: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        let is_qcow2 = match options.format {
            Format::Auto => qcow2::probe(&file).map_err(|e| ImageError::io(path, "read", e))?,
            Format::Qcow2 => true,
            Format::Raw => false,
        };
        if is_qcow2 { Self::qcow2(file, path, options) } else { Self::raw(file, path, options) }
    }

    fn raw(file: File, path: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        let raw = Arc::new(Raw::adopt(file, path, options)?);
        let pool = Arc::new(Pool::new(raw.clone()));
        Ok(Self::Raw(raw, pool))
    }

    fn qcow2(file: File, path: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        let is_said = options.format == Format::Qcow2;
        let trust = if is_said { qcow2::Trust::Names } else { qcow2::Trust::Nothing };
        let qcow2 = Arc::new(Qcow2::adopt(file, path, options, trust)?);
        let pool = Arc::new(Pool::with_most_threads(qcow2.clone(), qcow2::MOST_THREADS));
        Ok(Self::Qcow2(qcow2, pool))
    }

    fn nbd(uri: &nbd::Uri, options: &OpenOptions) -> Result<Self, ImageError> {
        let connected = nbd::Client::connect(uri, &options.nbd);
        let (client, export) =
            connected.map_err(|problem| ImageError::Nbd { uri: uri.to_string(), problem: problem.into() })?;
        Ok(Self::Nbd(client, export))
    }
}
