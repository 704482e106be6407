//! Images in QEMU's copy-on-write format, and those behind them, by crate `imago`.
//!
//! ```text
//!   Pool ──► Qcow2 ──► imago ──► disk.qcow2 ──backing file──► base.qcow2 ──► … ──► base.raw
//!              │ a copy            writable                   read only
//!            guest memory
//! ```
//!
//! `imago` works on Rust slices, which guest memory is not: all goes through buffers of ours.
//!
//! A server may be killed while its guest goes on, and finds what was written in what is left: the file. So a write is done
//! when what says where it is has been written too, and does not stay in memory until a flush ([`Settled`]). Writes that come
//! at once share that.
//!
//! Whoever can write to a file that is opened as [`Format::Auto`](super::Format::Auto) can make it one of these: a guest, to a
//! raw image. So a format that was found out follows no name that the file gives; see [`Trust`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockWriteGuard};

use imago::file::File as Storage;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2 as Format;
use imago::raw::Raw;
use imago::{FormatAccess, StorageOpenOptions};
use ringway_memory::GuestBuf;
use thiserror::Error;

use super::raw::{Bounce, Flusher, open_locked};
use super::{Cache, Facts, ImageError, OpenOptions, ZEROES};
use crate::job::{BlockingImage, Range};

type Access = FormatAccess<Storage>;

/// The first bytes of an image.
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Requests at once. With more they wait for each other, at the tables that say where clusters are.
pub(super) const MOST_THREADS: usize = 8;
/// The longest chain of images behind each other.
const MAX_CHAIN: usize = 64;

/// What can be wrong with an image.
#[derive(Debug, Error)]
pub enum Qcow2Error {
    /// It does not begin like one.
    #[error("it is no qcow2 image")]
    Magic,
    /// Who wrote to it last did not finish.
    #[error("it was not closed properly; `qemu-img check -r all` repairs it")]
    Dirty,
    /// It is known to be broken.
    #[error("it is marked as corrupt; `qemu-img check -r all` may repair it")]
    Corrupt,
    /// A feature that we do not have.
    #[error("it has {0}, which is not supported")]
    Feature(&'static str),
    /// Features that nobody here knows.
    #[error("it has features that are not known: {0:#x}")]
    Features(u64),
    /// Others may write to it at the same time.
    #[error(
        "others cannot write to it at the same time (--share-rw): each would have its own idea of its tables"
    )]
    Shared,
    /// Its format was found out, and it has a backing file.
    #[error("it names a backing file, which is used only if the format is given: --format=qcow2")]
    Untrusted,
    /// It does not say what its backing file holds, and that looks like an image.
    #[error("it does not say which format its backing file {0:?} has; `qemu-img rebase -u -F` does")]
    BackingFormat(String),
    /// Its backing file holds something else.
    #[error("its backing file {name:?} has the format {format}, which is not supported")]
    BackingFormatUnknown {
        /// Its name.
        name: String,
        /// Its format.
        format: String,
    },
    /// Its backing file is no file.
    #[error("its backing file {0:?} is not the name of a file")]
    BackingName(String),
    /// Too many images.
    #[error("it is behind {MAX_CHAIN} others, or behind itself")]
    Chain,
    /// A block is smaller than half a kilobyte, or what is read makes no sense.
    #[error(transparent)]
    Format(#[from] io::Error),
}

/// Whether to follow the name of another file in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Somebody said that it is an image, and so what is in it.
    Names,
    /// It looks like one: its own bytes are a guest's to see, but no other file's.
    Nothing,
}

/// Whether a file looks like an image.
///
/// # Errors
/// The kernel's.
pub(super) fn probe(file: &File) -> io::Result<bool> {
    let mut bounce = Bounce::new(4096);
    let bytes = bounce.bytes(4096);
    let n = file.read_at(bytes, 0)?;
    Ok(bytes[..n].starts_with(&MAGIC))
}

/// An image.
pub struct Qcow2 {
    file: File,
    path: PathBuf,
    options: OpenOptions,
    trust: Trust,
    /// None while another process has it. Locked for as long as a request needs what it maps.
    access: RwLock<Option<Access>>,
    settled: Settled,
    flusher: Flusher,
    /// The most bytes that the file had. If it has fewer, somebody has taken some away.
    end: AtomicU64,
}

impl Qcow2 {
    /// An image whose file is open, as the options say, and locked.
    ///
    /// # Errors
    /// [`ImageError`].
    pub(super) fn adopt(
        file: File,
        path: &Path,
        options: &OpenOptions,
        trust: Trust,
    ) -> Result<Self, ImageError> {
        let image = Self {
            file,
            path: path.to_owned(),
            options: options.clone(),
            trust,
            access: RwLock::default(),
            settled: Settled::default(),
            flusher: Flusher::default(),
            end: AtomicU64::default(),
        };
        image.resume()?;
        Ok(image)
    }

    /// The file.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What there is to know of it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn facts(&self) -> io::Result<Facts> {
        let block_size = self.options.logical_block_size.unwrap_or(512);
        let can_write = !self.options.read_only;
        self.with(|access| {
            // Nothing is given back of images of version 2, and zeroes are written out.
            let cluster = access.inner().zero_granularity();
            let size = access.size();
            Ok(Facts {
                physical_block_size: block_size.max(4096),
                read_only: !can_write,
                can_discard: can_write && cluster.is_some(),
                discard_alignment: cluster.unwrap_or(block_size.into()),
                can_write_zeroes: can_write,
                zeroes_may_unmap: can_write && cluster.is_some(),
                ..Facts::new(size - size % u64::from(block_size), block_size)
            })
        })
    }

    /// Changes the size.
    ///
    /// # Errors
    /// The kernel's, `imago`'s.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        self.with_alone(|access| {
            // What is behind it may be longer than it was.
            access.resize(size, PreallocateMode::Zero)?;
            access.flush()
        })
    }

    /// Writes all to the file and forgets what is in it: another process may open it.
    ///
    /// # Errors
    /// The kernel's; the image stays open then.
    pub fn suspend(&self) -> io::Result<()> {
        let mut access = self.access_alone();
        if let Some(access) = access.as_ref() {
            access.flush().map_err(plain)?;
        }
        *access = None;
        Ok(())
    }

    /// Opens the image again, after no other process has.
    ///
    /// # Errors
    /// As for opening it.
    pub fn resume(&self) -> Result<(), ImageError> {
        let fail = |e| ImageError::io(&self.path, "open", e);
        let mut access = self.access_alone();
        if access.is_none() {
            let file = self.file.try_clone().map_err(fail)?;
            *access = Some(open(file, &self.path, &self.options, self.trust, 0)?);
            self.end.store(self.file.metadata().map_err(fail)?.len(), Ordering::Release);
        }
        Ok(())
    }

    /// Does what others may do at the same time.
    fn with<R>(&self, act: impl FnOnce(&Access) -> io::Result<R>) -> io::Result<R> {
        self.check_end()?;
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        act(access.as_ref().ok_or_else(away)?).map_err(plain)
    }

    /// Does what changes more than others expect, who read or write at the same time.
    fn with_alone<R>(&self, act: impl FnOnce(&mut Access) -> io::Result<R>) -> io::Result<R> {
        self.check_end()?;
        let mut access = self.access_alone();
        act(access.as_mut().ok_or_else(away)?).map_err(plain)
    }

    fn access_alone(&self) -> RwLockWriteGuard<'_, Option<Access>> {
        self.access.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error if bytes of the file are gone; they would read as zeroes.
    fn check_end(&self) -> io::Result<()> {
        let most = self.end.load(Ordering::Acquire);
        // It had as many before it was looked at now.
        if self.file.metadata()?.len() < most {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    /// Writes what says where written bytes are.
    fn settle(&self, access: &Access) -> io::Result<()> {
        self.settled.run(|| {
            access.flush()?;
            self.end.fetch_max(self.file.metadata()?.len(), Ordering::Release);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.flusher.flush(self.file.as_fd(), self.options.cache != Cache::Direct)
    }

    /// Writes zeroes as data.
    fn write_out_zeroes(&self, range: Range) -> io::Result<()> {
        self.with(|access| {
            let mut at = range.offset;
            while at < range.end() {
                let n = (range.end() - at).min(ZEROES.0.len() as u64);
                access.write(&ZEROES.0[..n as usize], at)?;
                at += n;
            }
            self.settle(access)
        })
    }
}

impl BlockingImage for Qcow2 {
    fn read(&self, mut offset: u64, mut to: GuestBuf<'_>) -> io::Result<()> {
        let mut bounce = Bounce::new(to.len());
        self.with(|access| {
            while !to.is_empty() {
                let bytes = bounce.bytes(to.len());
                access.read(&mut *bytes, offset)?;
                let n = to.write(bytes);
                (offset, to) = (offset + n as u64, to.advance(n));
            }
            Ok(())
        })
    }

    fn write(&self, mut offset: u64, mut from: GuestBuf<'_>, stable: bool) -> io::Result<()> {
        let mut bounce = Bounce::new(from.len());
        self.with(|access| {
            while !from.is_empty() {
                let bytes = bounce.bytes(from.len());
                let n = from.read(bytes);
                access.write(&*bytes, offset)?;
                (offset, from) = (offset + n as u64, from.advance(n));
            }
            self.settle(access)
        })?;
        if stable { self.sync() } else { Ok(()) }
    }

    fn flush(&self) -> io::Result<()> {
        self.with(|access| self.settle(access))?;
        self.sync()
    }

    fn discard(&self, range: Range) -> io::Result<()> {
        self.with_alone(|access| {
            access.discard_to_any(range.offset, range.len)?;
            self.settle(access)
        })
    }

    fn write_zeroes(&self, range: Range, unmap: bool) -> io::Result<()> {
        let Range { offset, len } = range;
        // Where a range ends inside of a cluster whose rest is zeroes, all of it becomes zeroes: nobody may write to the rest
        // meanwhile.
        let result = self.with_alone(|access| {
            if unmap {
                access.discard_to_zero(offset, len)?;
            } else {
                access.write_zeroes(offset, len)?;
            }
            self.settle(access)
        });
        match result {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => self.write_out_zeroes(range),
            result => result,
        }
    }

    fn secure_erase(&self, _range: Range) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The image is another process's.
fn away() -> io::Error {
    io::Error::from_raw_os_error(libc::EBUSY)
}

/// An error of `imago`'s as one with a number, which counters and logs go by, if it has one.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        _ if error.raw_os_error().is_some() => error,
        io::ErrorKind::StorageFull => io::Error::from_raw_os_error(libc::ENOSPC),
        _ => error,
    }
}

/// Something that is to be done after each of many events, and once for all that came before it began.
#[derive(Default)]
struct Settled {
    /// Events so far.
    events: AtomicU64,
    /// The last event that it was done after.
    upto: Mutex<u64>,
}

impl Settled {
    /// Does it, or waits for who does, after this event.
    fn run(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let event = self.events.fetch_add(1, Ordering::SeqCst) + 1;
        let mut upto = self.upto.lock().unwrap_or_else(PoisonError::into_inner);
        if *upto < event {
            let all = self.events.load(Ordering::SeqCst);
            act()?;
            *upto = all;
        }
        Ok(())
    }
}

/// Opens an image, and those behind it, which are `depth` deep.
fn open(
    file: File,
    path: &Path,
    options: &OpenOptions,
    trust: Trust,
    depth: usize,
) -> Result<Access, ImageError> {
    let fail = |problem| ImageError::Qcow2 { path: path.to_owned(), problem };
    if depth > MAX_CHAIN {
        return Err(fail(Qcow2Error::Chain));
    }
    check_header(&file).map_err(fail)?;
    let is_writable = !options.read_only;
    if options.share && is_writable {
        return Err(fail(Qcow2Error::Shared));
    }
    let storage = storage(file, path, options).map_err(|e| fail(e.into()))?;
    let mut image: Format<Storage> = Format::open_image(storage, is_writable).map_err(|e| fail(e.into()))?;
    image.set_data_file(None);
    let backing = match image.implicit_backing_file().cloned() {
        None => None,
        Some(_) if trust == Trust::Nothing => return Err(fail(Qcow2Error::Untrusted)),
        Some(name) => {
            let format = image.implicit_backing_format().map(String::as_str);
            Some(open_backing(path, &name, format, options, depth)?)
        }
    };
    image.set_backing(backing);
    Ok(FormatAccess::new(image))
}

/// Opens what is behind an image: it is named from where that is, and nobody may write to it.
fn open_backing(
    front: &Path,
    name: &str,
    format: Option<&str>,
    options: &OpenOptions,
    depth: usize,
) -> Result<Access, ImageError> {
    let fail = |problem| ImageError::Qcow2 { path: front.to_owned(), problem };
    let (start, _) = name.split_once('/').unwrap_or((name, ""));
    let file_name = match name.strip_prefix("file:") {
        Some(rest) => rest,
        // As QEMU has it, a protocol or options.
        None if start.contains(':') => return Err(fail(Qcow2Error::BackingName(name.to_owned()))),
        None => name,
    };
    let path = front.parent().unwrap_or(Path::new("")).join(file_name);
    let options = OpenOptions { read_only: true, share: false, ..options.clone() };
    let file = open_locked(&path, &options)?;
    let broken = |e: io::Error| ImageError::io(&path, "read", e);
    let is_image = match format {
        Some("qcow2") => true,
        Some("raw" | "file") => false,
        Some(format) => {
            let (name, format) = (name.to_owned(), format.to_owned());
            return Err(fail(Qcow2Error::BackingFormatUnknown { name, format }));
        }
        // It was perhaps raw, and a guest's, once.
        None if probe(&file).map_err(broken)? => {
            return Err(fail(Qcow2Error::BackingFormat(name.to_owned())));
        }
        None => false,
    };
    if is_image {
        return open(file, &path, &options, Trust::Names, depth + 1);
    }
    let storage = storage(file, &path, &options).map_err(broken)?;
    Ok(FormatAccess::new(Raw::open_image(storage, false).map_err(broken)?))
}

fn storage(file: File, path: &Path, options: &OpenOptions) -> io::Result<Storage> {
    let how = StorageOpenOptions::new().filename(path).write(!options.read_only);
    Storage::from_open_file(file, how.direct(options.cache == Cache::Direct))
}

/// Refuses what must not be opened, before anything is written.
fn check_header(file: &File) -> Result<(), Qcow2Error> {
    const DIRTY: u64 = 1 << 0;
    const CORRUPT: u64 = 1 << 1;
    const DATA_FILE: u64 = 1 << 2;
    const COMPRESSION: u64 = 1 << 3;
    const EXTENDED_L2: u64 = 1 << 4;
    let mut bounce = Bounce::new(4096);
    let bytes = bounce.bytes(4096);
    let n = file.read_at(bytes, 0)?;
    let header = &bytes[..n];
    let word = |at: usize| {
        let word = header.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map(u32::from_be_bytes).ok_or(Qcow2Error::Magic)
    };
    if !header.starts_with(&MAGIC) {
        return Err(Qcow2Error::Magic);
    }
    let version = word(4)?;
    if word(32)? != 0 {
        return Err(Qcow2Error::Feature("encryption"));
    }
    if version < 3 {
        return Ok(());
    }
    let features = u64::from(word(72)?) << 32 | u64::from(word(76)?);
    match features {
        0 => Ok(()),
        _ if features & CORRUPT != 0 => Err(Qcow2Error::Corrupt),
        _ if features & DIRTY != 0 => Err(Qcow2Error::Dirty),
        _ if features & DATA_FILE != 0 => Err(Qcow2Error::Feature("an external data file")),
        _ if features & COMPRESSION != 0 => Err(Qcow2Error::Feature("another compression than deflate")),
        _ if features & EXTENDED_L2 != 0 => Err(Qcow2Error::Feature("subclusters")),
        _ => Err(Qcow2Error::Features(features)),
    }
}
