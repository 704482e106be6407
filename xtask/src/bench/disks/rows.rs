//! The rows: their names, in the order of the page, and what the page says of each.

use clap::ValueEnum;

use crate::bench::comparison::{Comparison, Part};
use crate::bench::machine::{package, said};

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::bench) enum Row {
    /// Disks that do nothing but complete: what the protocol costs
    Null,
    /// A file in memory
    Tmpfs,
    /// A file, without the page cache
    File,
    /// One request at a time
    Latency,
    /// System calls for a request
    Calls,
    /// A disk that nobody uses
    Idle,
}

impl Comparison for Row {
    const PART: Part = Part {
        name: "disks",
        title: "Disks",
        reading: READING,
        plots: "disk-",
        results: "disks.json",
        peers: || vec![("qemu-storage-daemon", package("qemu-utils")), ("fio", said("fio", &["--version"]))],
    };

    fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Tmpfs => "tmpfs",
            Self::File => "file",
            Self::Latency => "latency",
            Self::Calls => "calls",
            Self::Idle => "idle",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Null => "Nothing behind the disk",
            Self::Tmpfs => "A file in memory",
            Self::File => "A file on a disk",
            Self::Latency => "One request at a time",
            Self::Calls => "System calls of a disk",
            Self::Idle => "An idle disk",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Null | Self::Tmpfs | Self::File => "thousand IOPS",
            Self::Latency => "µs, p50",
            Self::Calls => "system calls/1000 requests",
            Self::Idle => "MiB",
        }
    }

    fn higher_is_better(self) -> bool {
        matches!(self, Self::Null | Self::Tmpfs | Self::File)
    }

    fn about(self) -> &'static str {
        match self {
            Self::Null => {
                "`null:` next to `null-co`: requests are parsed and completed, and no data is touched. What is left is \
                 the price of the protocol."
            }
            Self::Tmpfs => {
                "The same file on tmpfs behind every side, opened with `O_DIRECT`; and `mem:`, a disk in the server's \
                 own memory."
            }
            Self::File => {
                "The same file behind every side, opened with `O_DIRECT`: written throughout before, so that there are \
                 no holes."
            }
            Self::Latency => {
                "4 KiB read anywhere, one request in flight. The middle latency of a sample is its value."
            }
            Self::Calls => {
                "4 KiB read anywhere, 32 requests in flight, with `strace -c -f` on the server, or on fio: it stops them at \
                 system calls only, but makes each slower, so that more requests share one."
            }
            Self::Idle => {
                "A disk with a driver attached and a queue that runs and has nothing in it, watched for five seconds. \
                 Memory is the server's own; what it maps of the driver's is not."
            }
        }
    }
}

const READING: &str = "
- The driver is the crate `virtio-driver` in a process of its own (`disk-driver`), pinned to one core, the server to the
  other. It polls for completions and asks for no calls, for each server alike; depths are those of each queue. Its
  busy share is of rounds that had completions.
- fio has the file to itself, on the server's core: no driver, no protocol, no second process. Its io_uring engine with
  `direct=1`, a job for each queue; by its defaults it submits each request by a call of its own, and takes what has
  completed without one: see the system calls below. io_uring cannot read or write tmpfs without blocking, and hands
  each request to a thread of the kernel's.
- *CPU s/10⁶* is processor time for a million requests, all threads of the process together; spinning counts, so the
  driver's is at least what a request takes.
- *limit* is what a case waits for: the driver, if it is busy more than 90 % of the time; else the server, if it is
  (by its own count of work where it has one, else by its processor time); else neither: the storage, or each other.
";
