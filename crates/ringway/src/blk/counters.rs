//! The counters of disks, as they are printed.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use ringway_block::counters::Counters;

/// The counters of a disk: of each of its queues, and of what none of them has counted. They may be read at any time,
/// whatever the disk's threads are waiting for.
pub(super) struct DiskCounters(pub(super) Vec<Arc<Counters>>);

impl DiskCounters {
    fn total(&self) -> Counters {
        let total = Counters::default();
        self.0.iter().for_each(|counters| total.add(counters));
        total
    }
}

/// Prints the counters of disks, by name, and what they come to.
#[allow(clippy::cast_precision_loss, reason = "ratios for people")]
pub(super) fn print<'d>(disks: impl Iterator<Item = (&'d str, &'d DiskCounters)>) -> String {
    let (mut text, all) = (String::new(), Counters::default());
    for (name, counters) in disks {
        let total = counters.total();
        _ = writeln!(text, "disk {name}: {}", Line(&total));
        all.add(&total);
    }
    let requests = requests(&all);
    let per_request = |n: u64| n as f64 / requests.max(1) as f64;
    _ = writeln!(
        text,
        "all: served {requests} requests, syscalls per request {:.3}, calls per request {:.3}",
        per_request(all.syscalls.get()),
        per_request(all.calls.get()),
    );
    text
}

/// Those that went well.
fn requests(counters: &Counters) -> u64 {
    let Counters { reads, writes, flushes, range_requests, other_requests, .. } = counters;
    [reads, writes, flushes, range_requests, other_requests].iter().map(|counter| counter.get()).sum()
}

/// A disk's counters, on a line.
struct Line<'c>(&'c Counters);

impl fmt::Display for Line<'_> {
    #[allow(clippy::cast_precision_loss, reason = "seconds for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counters { reads, read_bytes, writes, written_bytes, flushes, .. } = self.0;
        let Counters { range_requests, other_requests, kicks, calls, syscalls, sessions, .. } = self.0;
        let Counters { failures, storage_errors, refused, unsupported, malformed, .. } = self.0;
        let Counters { busy, polling, asleep, .. } = self.0;
        write!(
            f,
            "read {} requests {} bytes, written {} requests {} bytes, flushes {}, ranges {}, other {}, ",
            reads.get(),
            read_bytes.get(),
            writes.get(),
            written_bytes.get(),
            flushes.get(),
            range_requests.get(),
            other_requests.get(),
        )?;
        write!(
            f,
            "kicks {}, calls {}, syscalls {}, sessions {}, failed rings {}, ",
            kicks.get(),
            calls.get(),
            syscalls.get(),
            sessions.get(),
            failures.get(),
        )?;
        write!(
            f,
            "errors storage {} refused {} unsupported {} malformed {}, ",
            storage_errors.get(),
            refused.get(),
            unsupported.get(),
            malformed.get(),
        )?;
        let [busy, polling, asleep] = [busy, polling, asleep].map(|time| time.get() as f64 / 1e9);
        write!(f, "busy {busy:.3} s, polling {polling:.3} s, asleep {asleep:.3} s")
    }
}
