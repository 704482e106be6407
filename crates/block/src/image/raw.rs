//! Raw images: regular files and block devices.
//!
//! ```text
//!   queues ──io_uring──► file ◄──preadv, pwritev2, fallocate, ioctl── Raw ◄── Pool
//! ```
//!
//! What `io_uring` does not do, and all where there is none, is done here, by calls that block. A guest's buffers that direct I/O
//! cannot use where they are go through one of ours.
//!
//! An image never grows because a guest writes to it: bytes that a file does not have, since somebody cut it short, are an error.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_memory::{GuestBuf, GuestSlice};
use rustix::fs::{AtFlags, FallocateFlags, SeekFrom, StatxFlags};

use super::lock::{self, Usage};
use super::sys::{self, Holder};
use super::{Cache, Facts, ImageError, ZEROES};
use crate::job::{BlockingImage, Range};

/// The smallest logical block.
const SECTOR: u32 = 512;
/// The longest buffer of ours that bytes go through.
const BOUNCE_LEN: usize = 1 << 20;
/// What memory is aligned to that anything takes.
const PAGE: usize = 4096;

/// A raw image.
pub struct Raw {
    file: Arc<OwnedFd>,
    is_device: bool,
    /// What a buffer's address and length must be multiples of.
    memory_alignment: usize,
    /// The smallest block that the file takes, a power of two.
    block_size: u32,
    is_buffered: bool,
    /// Its file system has no storage under it.
    is_in_memory: bool,
    /// What the storage said it never can.
    cannot: Cannot,
    flusher: Flusher,
}

/// Puts a file on stable storage, and remembers if that failed.
#[derive(Default)]
pub(super) struct Flusher {
    /// What the page cache could not write it has dropped: no later flush writes it, and none may claim to have.
    has_lost: AtomicBool,
}

impl Flusher {
    /// All that was written to the file is on stable storage.
    pub(super) fn flush(&self, file: BorrowedFd<'_>, is_buffered: bool) -> io::Result<()> {
        if self.has_lost.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let result = rustix::io::retry_on_intr(|| rustix::fs::fdatasync(file));
        if result.is_err() && is_buffered {
            self.has_lost.store(true, Ordering::Relaxed);
        }
        Ok(result?)
    }
}

#[derive(Default)]
struct Cannot {
    discard: AtomicBool,
    punch: AtomicBool,
    zero_range: AtomicBool,
}

impl Raw {
    /// Opens and locks a file.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(path: &Path, options: &super::OpenOptions) -> Result<Self, ImageError> {
        let file = open_locked(path, options)?;
        Self::adopt(file, path, options)
    }

    /// An image whose file is open, as the options say, and locked.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn adopt(file: File, path: &Path, options: &super::OpenOptions) -> Result<Self, ImageError> {
        let fail = |e| ImageError::io(path, "look at", e);
        let is_device = file.metadata().map_err(fail)?.file_type().is_block_device();
        let is_buffered = options.cache != Cache::Direct;
        let is_in_memory = !is_device && is_in_memory(&file).map_err(fail)?;
        let (memory_alignment, block_size) =
            if is_buffered { (1, SECTOR) } else { direct_alignment(&file, is_device).map_err(fail)? };
        Ok(Self {
            file: Arc::new(file.into()),
            is_device,
            memory_alignment,
            block_size,
            is_buffered,
            is_in_memory,
            cannot: Cannot::default(),
            flusher: Flusher::default(),
        })
    }

    /// The file.
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Whether reads and writes go through the page cache.
    pub fn is_buffered(&self) -> bool {
        self.is_buffered
    }

    /// Whether the file is in memory, so that no call waits for storage. `io_uring` would give each to a thread.
    pub fn is_in_memory(&self) -> bool {
        self.is_in_memory
    }

    /// Where the file ends.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end(&self) -> io::Result<u64> {
        if self.is_device {
            return Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?);
        }
        Ok(rustix::fs::fstat(&self.file)?.st_size.cast_unsigned())
    }

    /// Makes the file longer or shorter.
    ///
    /// # Errors
    /// The kernel's; [`Unsupported`](io::ErrorKind::Unsupported) for a block device.
    pub fn set_end(&self, size: u64) -> io::Result<()> {
        if self.is_device {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(rustix::fs::ftruncate(&self.file, size)?)
    }

    /// What there is to know of it.
    ///
    /// # Errors
    /// [`ImageError::BlockSize`] if the block size asked for is too small, [`ImageError::Io`].
    pub fn facts(&self, path: &Path, options: &super::OpenOptions) -> Result<Facts, ImageError> {
        let fail = |e| ImageError::io(path, "look at", e);
        let wanted = options.logical_block_size;
        if let Some(given) = wanted.filter(|&given| given < self.block_size) {
            let (image, why) = (path.display().to_string(), "direct I/O (--cache=writeback does without)");
            return Err(ImageError::BlockSize { image, why, given, needed: self.block_size });
        }
        let end = self.end().map_err(fail)?;
        let mut facts =
            if self.is_device { self.device_facts(wanted) } else { self.file_facts(wanted) }.map_err(fail)?;
        facts.size = end - end % u64::from(facts.logical_block_size);
        facts.read_only = options.read_only;
        facts.memory_alignment = self.memory_alignment as u32;
        if options.read_only {
            facts.can_discard = false;
            facts.can_write_zeroes = false;
            facts.zeroes_may_unmap = false;
            facts.can_secure_erase = false;
        }
        if facts.size != end {
            let (path, lost) = (path.display(), end - facts.size);
            tracing::warn!("{path}: the last {lost} bytes are no whole block, and not part of the disk");
        }
        Ok(facts)
    }

    fn file_facts(&self, block_size: Option<u32>) -> io::Result<Facts> {
        let logical = block_size.unwrap_or(self.block_size);
        let unit = u32::try_from(rustix::fs::fstat(&self.file)?.st_blksize).unwrap_or_default();
        let is_unit = unit.is_power_of_two() && (logical..=super::MAX_BLOCK_SIZE).contains(&unit);
        let unit = if is_unit { unit } else { logical };
        // Behind the end there is nothing to lose.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let can_punch = rustix::fs::fallocate(&self.file, flags, self.end()?, PAGE as u64).is_ok();
        Ok(Facts {
            physical_block_size: unit,
            min_io: unit,
            can_discard: can_punch,
            discard_alignment: unit.into(),
            zeroes_may_unmap: can_punch,
            ..Facts::new(0, logical)
        })
    }

    fn device_facts(&self, block_size: Option<u32>) -> io::Result<Facts> {
        let own = rustix::fs::ioctl_blksszget(&self.file)?;
        let logical = block_size.unwrap_or(own);
        let fd = self.file.as_fd();
        let physical = rustix::fs::ioctl_blkpbszget(&self.file)?.max(logical);
        let queue = DeviceQueue::of(&self.file)?;
        let discard_max = queue.limit("discard_max_bytes");
        Ok(Facts {
            physical_block_size: physical,
            min_io: sys::min_io(fd)?,
            opt_io: sys::opt_io(fd)?,
            alignment_offset: u32::try_from(sys::alignment_offset(fd)?).unwrap_or_default(),
            can_discard: discard_max > 0,
            discard_alignment: queue.limit("discard_granularity").max(logical.into()),
            zeroes_may_unmap: queue.limit("write_zeroes_unmap_max_bytes") > 0 || discard_max > 0,
            can_secure_erase: can_secure_erase(fd),
            ..Facts::new(0, logical)
        })
    }

    /// An error if the file ends before the range does.
    fn check_end(&self, range: Range) -> io::Result<()> {
        // A device's end does not move for a write.
        if !self.is_device && range.end() > self.end()? {
            return Err(past_end());
        }
        Ok(())
    }

    fn takes(&self, buf: GuestBuf<'_>) -> bool {
        let mask = self.memory_alignment - 1;
        let mut pieces = 0;
        let is_aligned = buf.pieces().all(|piece| {
            pieces += 1;
            (piece.as_ptr() as usize | piece.len()) & mask == 0
        });
        is_aligned && pieces <= sys::MAX_PIECES
    }

    /// Reads the file to a buffer that it takes.
    fn read_straight(&self, mut offset: u64, mut to: GuestBuf<'_>) -> io::Result<()> {
        while !to.is_empty() {
            let pieces: Vec<_> = to.pieces().collect();
            match sys::read(self.file.as_fd(), &pieces, offset)? {
                0 => return Err(past_end()),
                n => (to, offset) = (to.advance(n), offset + n as u64),
            }
        }
        Ok(())
    }

    /// Writes a buffer that the file takes.
    fn write_straight(&self, mut offset: u64, mut from: GuestBuf<'_>, stable: bool) -> io::Result<()> {
        while !from.is_empty() {
            let pieces: Vec<_> = from.pieces().collect();
            match sys::write(self.file.as_fd(), &pieces, offset, stable)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => (from, offset) = (from.advance(n), offset + n as u64),
            }
        }
        Ok(())
    }

    /// Writes zeroes as data.
    fn write_out_zeroes(&self, range: Range) -> io::Result<()> {
        let mut at = range.offset;
        while at < range.end() {
            let n = (range.end() - at).min(ZEROES.0.len() as u64) as usize;
            match rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.file, &ZEROES.0[..n], at))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => at += n as u64,
            }
        }
        Ok(())
    }

    fn fallocate(&self, flags: FallocateFlags, range: Range) -> io::Result<()> {
        let flags = flags | FallocateFlags::KEEP_SIZE;
        let result =
            rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.file, flags, range.offset, range.len));
        Ok(result?)
    }
}

/// Whether the file is of a file system that is all in memory.
fn is_in_memory(file: &File) -> io::Result<bool> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    Ok([libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&kind))
}

impl BlockingImage for Raw {
    fn read(&self, offset: u64, to: GuestBuf<'_>) -> io::Result<()> {
        if self.takes(to) {
            return self.read_straight(offset, to);
        }
        let mut bounce = Bounce::new(to.len());
        let (mut offset, mut to) = (offset, to);
        while !to.is_empty() {
            let bytes = bounce.bytes(to.len());
            self.read_straight(offset, GuestBuf::new(&[GuestSlice::from_mut(bytes)]))?;
            to.write(bytes);
            (offset, to) = (offset + bytes.len() as u64, to.advance(bytes.len()));
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: GuestBuf<'_>, stable: bool) -> io::Result<()> {
        self.check_end(Range { offset, len: from.len() as u64 })?;
        if self.takes(from) {
            return self.write_straight(offset, from, stable);
        }
        let mut bounce = Bounce::new(from.len());
        let (mut offset, mut from) = (offset, from);
        while !from.is_empty() {
            let bytes = bounce.bytes(from.len());
            let n = from.read(bytes);
            self.write_straight(offset, GuestBuf::new(&[GuestSlice::from_mut(bytes)]), stable)?;
            (offset, from) = (offset + n as u64, from.advance(n));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.flusher.flush(self.file.as_fd(), self.is_buffered)
    }

    fn discard(&self, range: Range) -> io::Result<()> {
        if range.len == 0 {
            return Ok(());
        }
        attempt(&self.cannot.discard, || {
            if self.is_device {
                // A device refuses parts of blocks; a range is of no more use only if all of it is.
                let block = u64::from(rustix::fs::ioctl_blksszget(&self.file)?);
                let (start, end) = (range.offset.next_multiple_of(block), range.end() - range.end() % block);
                let range = Range { offset: start, len: end.saturating_sub(start) };
                return if range.len == 0 { Ok(()) } else { sys::discard(self.file.as_fd(), range) };
            }
            self.fallocate(FallocateFlags::PUNCH_HOLE, range)
        })
    }

    fn write_zeroes(&self, range: Range, unmap: bool) -> io::Result<()> {
        self.check_end(range)?;
        if range.len == 0 {
            return Ok(());
        }
        let ways = [
            (unmap, &self.cannot.punch, FallocateFlags::PUNCH_HOLE),
            (true, &self.cannot.zero_range, FallocateFlags::ZERO_RANGE),
        ];
        for (_, cannot, flags) in ways.into_iter().filter(|(may, ..)| *may) {
            match attempt(cannot, || self.fallocate(flags, range)) {
                Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
                result => return result,
            }
        }
        self.write_out_zeroes(range)
    }

    fn secure_erase(&self, range: Range) -> io::Result<()> {
        if !self.is_device {
            return Err(io::ErrorKind::Unsupported.into());
        }
        sys::secure_erase(self.file.as_fd(), range)
    }
}

/// Does what the storage may not be able to; if it says so it is not asked again.
fn attempt(cannot: &AtomicBool, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if cannot.load(Ordering::Relaxed) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let result = act();
    let is_never = result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::Unsupported);
    if is_never {
        cannot.store(true, Ordering::Relaxed);
    }
    result
}

/// Whether a block device can erase. No file tells; but what is wrong with a range that is no whole sectors depends on it.
fn can_secure_erase(fd: BorrowedFd<'_>) -> bool {
    let result = sys::secure_erase(fd, Range { offset: 1, len: 1 });
    result.is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
}

fn past_end() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// Memory that direct I/O takes.
pub(super) struct Bounce {
    memory: Vec<u8>,
    start: usize,
}

impl Bounce {
    /// Memory to move so many bytes through.
    pub(super) fn new(len: usize) -> Self {
        let memory = vec![0; len.min(BOUNCE_LEN) + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Self { memory, start }
    }

    /// Memory for so many bytes, or for as many as there are at once.
    pub(super) fn bytes(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(self.memory.len() - PAGE);
        &mut self.memory[self.start..][..len]
    }
}

/// Opens a regular file or a block device, and locks it; waits a while for another process that has it.
pub(super) fn open_locked(path: &Path, options: &super::OpenOptions) -> Result<File, ImageError> {
    // Opening anything else might wait, or do something.
    let kind = std::fs::metadata(path).map_err(|e| ImageError::io(path, "open", e))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(ImageError::NotAnImage(path.to_owned()));
    }
    let usage = match (options.read_only, options.share) {
        (true, _) => Usage::Read,
        (false, true) => Usage::WriteShared,
        (false, false) => Usage::Write,
    };
    let mut flags = libc::O_NOCTTY;
    if options.cache == Cache::Direct {
        flags |= libc::O_DIRECT;
    }
    if usage == Usage::Write && kind.is_block_device() {
        // Not one that is mounted, or part of another device.
        flags |= libc::O_EXCL;
    }
    let mut how = OpenOptions::new();
    how.read(true).write(!options.read_only).custom_flags(flags);
    let attempt = || match how.open(path) {
        Ok(file) => match lock::acquire(file.as_fd(), usage) {
            Ok(None) => Ok(Ok(file)),
            Ok(Some(holder)) => Ok(Err(holder)),
            Err(e) => Err(ImageError::io(path, "lock", e)),
        },
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(Err(Holder::Somebody)),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput && options.cache == Cache::Direct => {
            Err(ImageError::NoDirect(path.to_owned()))
        }
        Err(e) => Err(ImageError::io(path, "open", e)),
    };
    let say = || {
        let (path, limit) = (path.display(), lock::PATIENCE.as_secs());
        tracing::info!("{path} is in use; waiting up to {limit} s for who has it to let go");
    };
    lock::patiently(attempt, say)?.map_err(|holder| {
        let by = if let Holder::Process(pid) = holder { Some(pid) } else { None };
        ImageError::InUse { path: path.to_owned(), by }
    })
}

/// What direct I/O on this file needs: memory aligned to this, and blocks of this size.
fn direct_alignment(file: &File, is_device: bool) -> io::Result<(usize, u32)> {
    let known = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let has = StatxFlags::from_bits_retain(known.stx_mask).contains(StatxFlags::DIOALIGN);
    let (memory, block) = (known.stx_dio_mem_align, known.stx_dio_offset_align);
    if has && memory.is_power_of_two() && block.is_power_of_two() {
        return Ok((memory as usize, block.max(SECTOR)));
    }
    if is_device {
        let block = rustix::fs::ioctl_blksszget(file)?;
        return Ok((block as usize, block));
    }
    // A file system that does not tell, as before Linux 6.1: the first block that can be read.
    let mut bounce = Bounce::new(super::MAX_BLOCK_SIZE as usize);
    let mut block = SECTOR;
    while block < super::MAX_BLOCK_SIZE {
        match rustix::io::pread(file, bounce.bytes(block as usize), 0) {
            Err(rustix::io::Errno::INVAL) => block *= 2,
            result => {
                result?;
                break;
            }
        }
    }
    Ok((block as usize, block))
}

/// What the kernel tells of a block device in files.
struct DeviceQueue(std::path::PathBuf);

impl DeviceQueue {
    fn of(file: &OwnedFd) -> io::Result<Self> {
        let number = File::from(file.try_clone()?).metadata()?.rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let device = std::path::PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let own = device.join("queue");
        // A partition has that of its disk.
        Ok(Self(if own.exists() { own } else { device.join("../queue") }))
    }

    /// One of its limits, 0 if it is not told.
    fn limit(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(self.0.join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }
}
