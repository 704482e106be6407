//! Who serves a disk, and from what.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use ringway_testkit::process::{Process, find_program};
use rustix::process::Signal;
use tempfile::TempDir;

use super::Options;
use super::images::Images;
use crate::bench::machine::processor_time;
use crate::bench::wait_listening;

/// A started server listens within this time.
const START_LIMIT: Duration = Duration::from_secs(10);
/// For it to print its counters.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The most bytes of a disk in memory: it is written before each sample.
const MEMORY: u64 = 256 << 20;

/// Whose program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Side {
    /// The program of this project
    Ringway,
    /// Another build of it, given with --baseline
    Baseline,
    /// qemu-storage-daemon, with an I/O thread
    Qemu,
    /// fio with `io_uring` on the file itself
    Fio,
}

/// What is behind a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// Nothing.
    Null,
    /// The server's own memory.
    Memory,
    /// A file in memory.
    Tmpfs,
    /// A file on a disk.
    File,
}

impl Side {
    /// Its name on the page.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ringway => "ringway",
            Self::Baseline => "ringway, baseline",
            Self::Qemu => "qemu-storage-daemon",
            Self::Fio => "fio io_uring",
        }
    }

    /// The same where one side has two kinds of storage.
    pub(super) fn title(self, storage: Storage) -> String {
        let behind = if storage == Storage::Memory { " mem:" } else { "" };
        format!("{}{behind}", self.name())
    }

    /// Whether it has such a disk.
    pub(super) fn serves(self, storage: Storage) -> bool {
        match self {
            Self::Ringway | Self::Baseline => true,
            Self::Qemu => storage != Storage::Memory,
            Self::Fio => matches!(storage, Storage::Tmpfs | Storage::File),
        }
    }
}

impl Storage {
    /// Its name on the page.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Null => "nothing behind",
            Self::Memory => "memory",
            Self::Tmpfs => "file on tmpfs",
            Self::File => "file on a disk",
        }
    }
}

/// A server of one disk, on its core.
pub(super) struct Server {
    process: Process,
    side: Side,
    socket: PathBuf,
    /// The socket's directory goes last.
    _directory: TempDir,
}

/// The first reading of two.
pub(super) struct Mark {
    at: Instant,
    time: Duration,
    polling: Duration,
}

/// What a server took to do its work, between two readings.
pub(super) struct Effort {
    /// Processors that it worked with: without those that it polled on in vain, if it counts that.
    pub(super) busy: f64,
    /// Processors that it took.
    pub(super) processor: f64,
}

impl Server {
    /// Starts it; it listens on return.
    pub(super) fn start(
        options: &Options,
        images: &Images,
        side: Side,
        storage: Storage,
        queues: u16,
    ) -> Result<Self> {
        let directory = tempfile::tempdir().context("a directory for a socket")?;
        let socket = directory.path().join("disk");
        let mut command = Command::new(find_program("taskset")?);
        command.arg("-c").arg(options.common.backend_core.to_string());
        match side {
            Side::Ringway => command.arg(&options.common.ringway),
            Side::Baseline => command.arg(options.common.baseline()?),
            Side::Qemu => command.arg(find_program("qemu-storage-daemon")?),
            Side::Fio => bail!("fio serves no disk"),
        };
        if side == Side::Qemu {
            command.args(qemu(&qemu_storage(images, storage)?, queues, &socket));
        } else {
            command.args(ringway(&ringway_storage(images, storage)?, queues, &socket));
            command.args(&options.common.ringway_arg);
        }
        let process = Process::start(side.name(), &mut command)?;
        wait_listening(&socket, START_LIMIT, || process.output())?;
        Ok(Self { process, side, socket, _directory: directory })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Begins to look at its effort.
    pub(super) fn mark(&self) -> Result<Mark> {
        let polling = self.polling()?;
        Ok(Mark { at: Instant::now(), time: processor_time(self.pid())?, polling })
    }

    /// Its effort since.
    pub(super) fn since(&self, mark: &Mark) -> Result<Effort> {
        let interval = mark.at.elapsed();
        let time = processor_time(self.pid())?.saturating_sub(mark.time);
        let polling = self.polling()?.saturating_sub(mark.polling);
        let share = |time: Duration| time.as_secs_f64() / interval.as_secs_f64();
        Ok(Effort { busy: share(time.saturating_sub(polling)), processor: share(time) })
    }

    /// How long it has polled in vain, if it counts that.
    fn polling(&self) -> Result<Duration> {
        if self.side == Side::Qemu {
            return Ok(Duration::ZERO);
        }
        let from = self.process.output().len();
        self.process.signal(Signal::USR1)?;
        let end = self.process.wait_for_from(from, "all: served", ANSWER_LIMIT)?;
        polling(&self.process.output()[from..end])
    }
}

/// Reads `disk NAME: …, polling S s, …` of ringway's counters.
fn polling(counters: &str) -> Result<Duration> {
    let seconds =
        counters.split_once(", polling ").and_then(|(_, rest)| rest.split_once(" s")?.0.parse().ok());
    let seconds = seconds.with_context(|| format!("unknown counters:\n{counters}"))?;
    Duration::try_from_secs_f64(seconds).context("a time")
}

/// The arguments of ringway.
fn ringway(image: &str, queues: u16, socket: &Path) -> Vec<String> {
    let socket = format!("--socket-path={}", socket.display());
    vec!["blk".into(), socket, format!("--blk-file={image}"), format!("--num-queues={queues}")]
}

/// What ringway is told of the storage: a file is opened past the page cache unless it is told otherwise.
fn ringway_storage(images: &Images, storage: Storage) -> Result<String> {
    Ok(match storage {
        Storage::Null => format!("null:{}", images.size),
        Storage::Memory => format!("mem:{}", images.size.min(MEMORY)),
        Storage::Tmpfs | Storage::File => images.path(storage)?.display().to_string(),
    })
}

/// The arguments of qemu-storage-daemon: an I/O thread for the disk, as its own documents advise.
fn qemu(storage: &str, queues: u16, socket: &Path) -> Vec<String> {
    let export = format!(
        "vhost-user-blk,id=disk,node-name=image,writable=on,iothread=io,num-queues={queues},addr.type=unix,addr.path={}",
        socket.display()
    );
    let [object, export] = [["--object", "iothread,id=io"], ["--export", &export]];
    let blockdev = ["--blockdev", &format!("{storage},node-name=image")].map(String::from);
    blockdev.into_iter().chain([object, export].concat().into_iter().map(String::from)).collect()
}

/// What qemu-storage-daemon is told of the storage.
fn qemu_storage(images: &Images, storage: Storage) -> Result<String> {
    Ok(match storage {
        Storage::Null => format!("driver=null-co,size={}", images.size),
        Storage::Memory => bail!("qemu-storage-daemon has no disk in memory"),
        Storage::Tmpfs | Storage::File => {
            let file = images.path(storage)?.display();
            // The kernel may still be busy with the ring, and so the lock, of the server before this one.
            format!("driver=file,filename={file},aio=io_uring,cache.direct=on,locking=off")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_are_told() {
        let told = ringway("null:1G", 2, Path::new("/s")).join(" ");
        assert_eq!(told, "blk --socket-path=/s --blk-file=null:1G --num-queues=2");
        let told = qemu("driver=null-co,size=9", 2, Path::new("/s")).join(" ");
        assert!(told.starts_with(
            "--blockdev driver=null-co,size=9,node-name=image --object iothread,id=io --export "
        ));
        assert!(told.contains("num-queues=2") && told.ends_with("addr.path=/s"), "{told}");
    }

    #[test]
    fn what_ringway_counts() {
        let text = "disk a: read 1 requests 2 bytes, malformed 0, busy 1.000 s, polling 0.250 s, asleep 9.000 s\nall: ";
        assert_eq!(polling(text).unwrap(), Duration::from_millis(250));
        assert!(polling("all: served 0 requests").is_err());
    }

    #[test]
    fn fio_needs_a_file() {
        assert!(Side::Fio.serves(Storage::Tmpfs) && !Side::Fio.serves(Storage::Null));
        assert!(!Side::Qemu.serves(Storage::Memory));
    }
}
