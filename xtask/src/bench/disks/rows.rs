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
    /// Ringway's own driver next to another
    Drivers,
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
            Self::Drivers => "drivers",
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
            Self::Drivers => "Drivers in user space",
            Self::Latency => "One request at a time",
            Self::Calls => "System calls of a disk",
            Self::Idle => "An idle disk",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Null | Self::Tmpfs | Self::File | Self::Drivers => "thousand IOPS",
            Self::Latency => "µs, p50",
            Self::Calls => "system calls/1000 requests",
            Self::Idle => "MiB",
        }
    }

    fn higher_is_better(self) -> bool {
        matches!(self, Self::Null | Self::Tmpfs | Self::File | Self::Drivers)
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
            Self::Drivers => {
                "Ringway's `null:` driven by `ringway-driver` over vhost-user and by the crate `virtio-driver`, under the same \
                 loop."
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
Who takes part, and what the columns say:

- The driver, but where a table compares two, is the crate `virtio-driver` in a process of its own (`benches/disk-driver`), pinned to one core, the server
  to the other. It polls for completions and asks for no calls, the same for every server. Depths are those of each queue;
  all queues have the one core on either side.
- `qemu-storage-daemon` has an I/O thread for its disk, `aio=io_uring` and `cache.direct=on`.
- fio has the file to itself, on the server's core: no driver, no protocol, no second process. Its io_uring engine with
  `direct=1` and a job for each queue; as it comes, it submits each request by a call of its own, as the row of system
  calls shows. The kernel hands what would block to threads of its own: on tmpfs that is every request of an io_uring.
- *CPU s/10⁶* is processor time for a million requests, of all threads of the process. Who polls takes the whole core, so
  what the driver needs is its busy share of that: of rounds that had completions.
- *limit* is what a case waits for: the driver, if it is busy more than 90 % of the time; else the server, if it is; else
  neither, but the storage, or each for the other. A server's busy share is its processor time, less what it has polled in
  vain if it counts that, as Ringway does.
";
