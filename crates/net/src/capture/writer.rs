//! The thread that writes a capture's file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::pcapng::{self, Statistics};
use super::probe::Batch;
use super::{Interface, Shared, Summary, Target};

/// Between two looks whether what is waited for has come.
const RETRY: Duration = Duration::from_millis(20);
/// How long a reader that does not read may hold up the end, in milliseconds.
const PATIENCE: i64 = 500;
/// What a pipe takes without a wait, if it takes anything (`PIPE_BUF`).
const PIPE_CHUNK: usize = 4096;

impl Target {
    /// Opens a file, which is begun anew; or a FIFO, which may not have a reader yet. With `goes_on` the file may be that
    /// of a process which is about to end, and is gone on with.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if another process writes to the file, and is not about to end.
    pub fn open(path: &Path, goes_on: bool) -> io::Result<Self> {
        if path.metadata().is_ok_and(|meta| meta.file_type().is_fifo()) {
            return Ok(Self::Fifo(path.to_owned()));
        }
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        if goes_on {
            return Ok(Self::Shared(file));
        }
        if file.metadata()?.is_file() {
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            file.set_len(0)?;
        }
        Ok(Self::File(file))
    }

    /// Waits until it can be written to.
    fn ready(self, shared: &Shared) -> io::Result<File> {
        match self {
            Self::File(file) => Ok(file),
            Self::Fifo(path) => {
                let mut options = OpenOptions::new();
                options.write(true).custom_flags(libc::O_NONBLOCK);
                // Without a reader it is no device or address.
                retry(shared, Errno::NXIO, || options.open(&path))
            }
            Self::Shared(file) => {
                let lock = || Ok(flock(&file, FlockOperation::NonBlockingLockExclusive)?);
                retry(shared, Errno::WOULDBLOCK, lock)?;
                Ok(file)
            }
        }
    }
}

/// Tries until it is not `errno` that it fails with, or until the capture ends.
fn retry<T>(shared: &Shared, errno: Errno, attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(errno.raw_os_error()) => {
                if shared.is_ending.load(Ordering::Relaxed) {
                    return Err(error);
                }
                std::thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}

/// The writer of a capture.
pub(super) struct Writer {
    /// The interfaces' names, snaplens and packets written.
    interfaces: Vec<(String, u32, u64)>,
    shared: Arc<Shared>,
    filled: Receiver<Batch>,
    /// By worker.
    empties: Vec<SyncSender<Batch>>,
}

impl Writer {
    pub(super) fn new(
        interfaces: &[Interface],
        shared: Arc<Shared>,
        filled: Receiver<Batch>,
        empties: Vec<SyncSender<Batch>>,
    ) -> Self {
        let interfaces = interfaces.iter().map(|i| (i.name.clone(), i.snaplen, 0)).collect();
        Self { interfaces, shared, filled, empties }
    }

    /// Writes until all probes are gone, or until it fails; probes that are left find nobody then.
    pub(super) fn run(mut self, target: Target) -> Summary {
        let error = self.write(target).err();
        let dropped = self.shared.dropped.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        let captured = self.interfaces.iter().map(|(_, _, packets)| packets).sum();
        Summary { captured, dropped, error }
    }

    fn write(&mut self, target: Target) -> io::Result<()> {
        let mut output = Output::new(target.ready(&self.shared)?)?;
        let result = self.write_packets(&mut output);
        if result.is_err() {
            output.cut();
        }
        let statistics = output.write(&self.statistics(), &self.shared);
        if statistics.is_err() {
            output.cut();
        }
        result.and(statistics)
    }

    fn write_packets(&mut self, output: &mut Output) -> io::Result<()> {
        let mut head = Vec::new();
        pcapng::section(&mut head, concat!("ringway ", env!("CARGO_PKG_VERSION")));
        for (name, snaplen, _) in &self.interfaces {
            pcapng::interface(&mut head, name, *snaplen);
        }
        output.write(&head, &self.shared)?;
        while let Ok(mut batch) = self.filled.recv() {
            output.write(batch.blocks(), &self.shared)?;
            for ((_, _, written), packets) in self.interfaces.iter_mut().zip(&batch.packets) {
                *written += packets;
            }
            batch.clear();
            // There is room for all of a worker's batches; its probe may be gone.
            let _ = self.empties[batch.worker].try_send(batch);
        }
        Ok(())
    }

    fn statistics(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (start, end) = (self.shared.epoch, self.shared.now());
        for ((interface, (_, _, packets)), dropped) in (0..).zip(&self.interfaces).zip(&self.shared.dropped) {
            let dropped = dropped.load(Ordering::Relaxed);
            let received = packets + dropped;
            pcapng::statistics(&mut out, &Statistics { interface, start, end, received, dropped });
        }
        out
    }
}

/// An open file.
struct Output {
    file: File,
    /// Up to where a file has whole blocks; `None` of what is no file.
    end: Option<u64>,
}

impl Output {
    fn new(mut file: File) -> io::Result<Self> {
        let end = if file.metadata()?.is_file() { Some(file.seek(SeekFrom::End(0))?) } else { None };
        Ok(Self { file, end })
    }

    fn write(&mut self, blocks: &[u8], shared: &Shared) -> io::Result<()> {
        let Some(end) = &mut self.end else { return self.write_to_reader(blocks, shared) };
        self.file.write_all(blocks)?;
        *end += blocks.len() as u64;
        Ok(())
    }

    /// Writes to who may not read. A pipe that somebody else opened may not be made one that does not block.
    fn write_to_reader(&self, mut bytes: &[u8], shared: &Shared) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
            let limit = Timespec { tv_sec: 0, tv_nsec: PATIENCE * 1_000_000 };
            if rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)))? == 0 {
                if shared.is_ending.load(Ordering::Relaxed) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                continue;
            }
            match rustix::io::write(&self.file, &bytes[..bytes.len().min(PIPE_CHUNK)]) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Takes back a block of which only a part was written.
    fn cut(&mut self) {
        if let Some(end) = self.end {
            // What cannot be cut stays as it is: readers say so.
            let _ = self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::Start(end)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file ends with a whole block, and can be gone on with there.
    #[test]
    fn a_part_of_a_block_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "before ").unwrap();
        let mut output = Output::new(OpenOptions::new().write(true).open(&path).unwrap()).unwrap();
        let write = |output: &mut Output, block: &[u8]| {
            output.file.write_all(block).unwrap();
            output.end = output.end.map(|end| end + block.len() as u64);
        };
        write(&mut output, b"block ");
        output.file.write_all(b"blo").unwrap();
        output.cut();
        write(&mut output, b"statistics");
        assert_eq!(std::fs::read(&path).unwrap(), b"before block statistics");
    }
}
