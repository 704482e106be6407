//! `ringway rng`: random bytes, of the host's kernel or of a source that it names.
//!
//! ```text
//!   source ──► what it gave last time? ──► rate ──► chains
//!                    └─ the same again: it is broken, and not read any more
//! ```

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_device::entropy::EntropyDevice;
use ringway_queue::{Burst, DeviceQueue, QueueError};
use ringway_vhost::handover::{FilesIn, FilesOut};
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::simple::{Nothing, Plan, Served, Server, Service};
use crate::{args, serve};

/// `ringway rng`.
pub(crate) fn rng(args: &args::Rng) -> Result<()> {
    serve::run::<Server<Rng>>(|| {
        let settings = Settings { source: args.source.clone(), rate: args.rate, iommu: args.iommu };
        Plan::several(Rng::KIND, &args.attach, &args.guests, settings)
    })
}

/// What the command line says of it.
pub(crate) struct Settings {
    source: Option<std::path::PathBuf>,
    rate: Option<u64>,
    iommu: bool,
}

/// A source of entropy, and its device.
pub(crate) struct Rng {
    name: String,
    device: EntropyDevice,
    source: Source,
    rate: Option<Rate>,
    /// The source had nothing; when to look again, if it cannot say.
    dry_until: Option<Instant>,
    bytes: u64,
}

/// What was counted before an upgrade.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    bytes: u64,
}

impl Service for Rng {
    const KIND: &'static str = "rng";
    type Model = EntropyDevice;
    type Settings = Settings;
    type State = State;
    type Question = Nothing;
    type Answer = Nothing;

    fn open(name: &str, settings: &Settings) -> Result<Self> {
        let source = match &settings.source {
            Some(path) => Source::open(path).with_context(|| format!("source {}", path.display()))?,
            None => Source::Kernel,
        };
        let device = EntropyDevice::new(settings.iommu);
        let rate = settings.rate.map(|rate| Rate::new(rate, Instant::now()));
        Ok(Self { name: name.to_owned(), device, source, rate, dry_until: None, bytes: 0 })
    }

    fn model(&self) -> &EntropyDevice {
        &self.device
    }

    fn model_mut(&mut self) -> &mut EntropyDevice {
        &mut self.device
    }

    fn serve(
        &mut self,
        _index: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Served, QueueError> {
        let Self { name, device, source, rate, dry_until, bytes } = self;
        let mut is_blocked = false;
        let call = device.serve(queue, burst, &mut |to| {
            let wanted = rate.as_mut().map_or(to.len(), |rate| rate.allows(to.len()));
            let filled = source.fill(name, &mut to[..wanted]);
            *dry_until = (wanted > 0 && filled == 0).then(|| Instant::now() + RETRY);
            is_blocked = filled == 0;
            *bytes += filled as u64;
            if let Some(rate) = rate {
                rate.spend(filled);
            }
            filled
        })?;
        Ok(Served { call, is_blocked })
    }

    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let fifo = match &self.source {
            Source::File(file) if file.can_be_waited_for => self.dry_until.map(|_| file.file.as_fd()),
            _ => None,
        };
        fifo.map(|fd| (fd, PollFlags::IN)).into_iter().collect()
    }

    fn deadline(&self) -> Option<Instant> {
        let refill = self.rate.as_ref().and_then(Rate::next);
        let retry = match &self.source {
            Source::File(file) if file.can_be_waited_for => None,
            Source::File(_) | Source::Kernel => self.dry_until,
            Source::Broken => None,
        };
        refill.into_iter().chain(retry).min()
    }

    fn turn(&mut self) {
        if let Some(rate) = &mut self.rate {
            rate.refill(Instant::now());
        }
    }

    fn answer(&mut self, question: Nothing) -> Result<Nothing> {
        Ok(question)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("bytes", self.bytes)]
    }

    fn state<'s>(&'s self, _files: &mut FilesOut<'s>) -> State {
        State { bytes: self.bytes }
    }

    fn restore(name: &str, settings: &Settings, state: State, _files: &mut FilesIn) -> Result<Self> {
        Ok(Self { bytes: state.bytes, ..Self::open(name, settings)? })
    }
}

/// How long to wait for a device that has nothing, and cannot say when it has.
const RETRY: Duration = Duration::from_millis(20);
/// What is compared: so many bytes of a good source are the same as those before once in 2¹²⁸ times.
const BLOCK: usize = 16;

/// Where random bytes come from.
enum Source {
    Kernel,
    File(FileSource),
    /// It has failed, which was told.
    Broken,
}

struct FileSource {
    file: File,
    can_be_waited_for: bool,
    /// The last that it gave, a whole block if `len` says so.
    last: [u8; BLOCK],
    len: usize,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path)?.file_type();
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        // A FIFO that somebody can write to does not end.
        let file = File::options().read(true).write(kind.is_fifo()).custom_flags(flags).open(path)?;
        ensure!(
            kind.is_char_device() || kind.is_fifo(),
            "it is neither a character device nor a FIFO: what is in a file is not random twice"
        );
        let mut source = FileSource { file, can_be_waited_for: kind.is_fifo(), last: [0; BLOCK], len: 0 };
        if kind.is_char_device() {
            // What is there of it at once: a device without anything may have it later.
            let mut first = [0; 4 * BLOCK];
            match source.read(&mut first) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Self::File(source))
    }

    /// Fills what it can now; returns how many bytes.
    fn fill(&mut self, name: &str, to: &mut [u8]) -> usize {
        let result = match self {
            // The pool is initialized when a host can run this.
            Self::Kernel => getrandom(&mut *to, GetRandomFlags::NONBLOCK).map_err(io::Error::from),
            Self::File(file) => file.read(to),
            Self::Broken => return 0,
        };
        match result {
            Ok(filled) => filled,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(error) => {
                error!("{name}: the source has failed, and is not used any more: {error}");
                *self = Self::Broken;
                0
            }
        }
    }
}

impl FileSource {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let filled = self.file.read(to)?;
        if filled == 0 && !self.can_be_waited_for && !to.is_empty() {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "it has come to its end"));
        }
        if self.check(&to[..filled]) {
            return Ok(filled);
        }
        to.fill(0);
        Err(io::Error::new(ErrorKind::InvalidData, "it repeats itself"))
    }

    /// Whether no block of this is the one before it.
    fn check(&mut self, bytes: &[u8]) -> bool {
        for block in bytes.chunks(BLOCK) {
            if self.len == BLOCK && block == self.last {
                return false;
            }
            self.last[..block.len()].copy_from_slice(block);
            self.len = block.len();
        }
        true
    }
}

/// The fewest bytes that are given at a time, if more are wanted and a second brings as many.
const LEAST: u64 = 64;
const NANOS: u128 = 1_000_000_000;

/// How many bytes may be given: as many as a second brings, and no more are saved.
struct Rate {
    per_second: u64,
    left: u64,
    /// When so many were left.
    since: Instant,
    /// Somebody wanted bytes, and got none.
    is_short: bool,
}

impl Rate {
    fn new(per_second: u64, now: Instant) -> Self {
        Self { per_second, left: per_second, since: now, is_short: false }
    }

    /// Counts the time that has passed.
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        let bytes = u128::from(self.per_second) * passed.as_nanos() / NANOS;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if bytes >= self.per_second {
            (self.left, self.since) = (self.per_second, now);
        } else {
            self.left = self.left.saturating_add(bytes).min(self.per_second);
            // What it takes to bring these, and not all that has passed: no part of a byte is lost.
            self.since += nanoseconds(u128::from(bytes) * NANOS / u128::from(self.per_second));
        }
    }

    /// How many of these may be given; none if it is too few to be worth it.
    fn allows(&mut self, wanted: usize) -> usize {
        let least = LEAST.min(wanted as u64).min(self.per_second);
        self.is_short = self.left < least;
        if self.is_short { 0 } else { wanted.min(usize::try_from(self.left).unwrap_or(usize::MAX)) }
    }

    fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes as u64);
    }

    /// When there is enough for who got none.
    fn next(&self) -> Option<Instant> {
        let missing = LEAST.min(self.per_second).saturating_sub(self.left);
        let time = (u128::from(missing) * NANOS).div_ceil(u128::from(self.per_second));
        self.is_short.then(|| self.since + nanoseconds(time))
    }
}

fn nanoseconds(n: u128) -> Duration {
    Duration::from_nanos(u64::try_from(n).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given in a time is what the rate says, and what one second brings at most at once.
    #[test]
    fn a_rate_is_kept() {
        for per_second in [1, 10, 64, 1000, 1_000_000] {
            let start = Instant::now();
            let mut rate = Rate::new(per_second, start);
            let (mut now, mut given) = (start, 0);
            // Asked at odd times for ten seconds, and when it says.
            while now < start + Duration::from_secs(10) {
                rate.refill(now);
                loop {
                    let allowed = rate.allows(1024);
                    rate.spend(allowed);
                    given += allowed as u64;
                    assert_eq!(allowed == 0, rate.next().is_some());
                    if allowed == 0 {
                        break;
                    }
                }
                now += Duration::from_micros(6_789);
            }
            let expected = 11 * per_second;
            assert!(
                given <= expected && given + per_second.min(LEAST) + 1 >= expected - expected / 50,
                "{per_second}: {given}"
            );
        }
    }

    /// Who got nothing gets something at the time it is told.
    #[test]
    fn it_says_when_there_is_enough() {
        for per_second in [1, 3, 64, 1000] {
            let start = Instant::now();
            let mut rate = Rate::new(per_second, start);
            let all = rate.allows(1 << 20);
            assert_eq!(all as u64, per_second);
            rate.spend(all);
            assert_eq!((rate.allows(1 << 20), rate.next().is_some()), (0, true));
            let then = rate.next().unwrap();
            rate.refill(then.checked_sub(Duration::from_millis(1)).unwrap());
            assert_eq!(rate.allows(1 << 20), 0, "{per_second}: not before");
            rate.refill(then);
            assert!(rate.allows(1 << 20) > 0 && rate.next().is_none(), "{per_second}");
        }
    }

    /// A source that repeats itself, or ends, is not used; one that does not is.
    #[test]
    fn a_source_is_looked_at() {
        for (path, is_good) in
            [("/dev/urandom", true), ("/dev/zero", false), ("/dev/null", false), ("/etc/passwd", false)]
        {
            assert_eq!(Source::open(Path::new(path)).is_ok(), is_good, "{path}");
        }
        let file = File::open("/dev/null").unwrap();
        let mut source = FileSource { file, can_be_waited_for: false, last: [0; BLOCK], len: 0 };
        let bytes: Vec<u8> = (0..64).collect();
        assert!(source.check(&bytes) && source.check(&bytes), "no block is the one before it");
        assert!(source.check(&[7; BLOCK]) && !source.check(&[7; BLOCK]));
        assert!(source.check(&[7; 3]) && source.check(&[7; BLOCK]), "after a part of a block");
    }

    /// One that fails later gives nothing more.
    #[test]
    fn a_source_may_break() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let mut source = Source::open(&path).unwrap();
        let mut to = [0; 64];
        assert_eq!(source.fill("test", &mut to), 0, "nobody has written to it");
        let mut writer = File::options().write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut writer, b"0123456789").unwrap();
        assert_eq!((source.fill("test", &mut to), &to[..10]), (10, &b"0123456789"[..]));
        drop(writer);
        assert_eq!(source.fill("test", &mut to), 0, "another may come");
        assert!(matches!(source, Source::File(_)));
        let mut writer = File::options().write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut writer, &[1; 64]).unwrap();
        assert_eq!(source.fill("test", &mut to), 0);
        assert!(matches!(source, Source::Broken) && to == [0; 64]);
    }
}
