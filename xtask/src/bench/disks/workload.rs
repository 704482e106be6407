//! What is asked of a disk.

use std::fmt;

use clap::ValueEnum;

/// Which requests, in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Pattern {
    /// 4 KiB read anywhere
    RandRead,
    /// 4 KiB written anywhere
    RandWrite,
    /// 128 KiB read, one behind the other
    SeqRead,
    /// 128 KiB written, one behind the other
    SeqWrite,
}

impl Pattern {
    /// All of them on the command line.
    pub(super) const NAMES: [&str; 4] = ["rand-read", "rand-write", "seq-read", "seq-write"];

    pub(super) fn is_write(self) -> bool {
        matches!(self, Self::RandWrite | Self::SeqWrite)
    }

    pub(super) fn is_sequential(self) -> bool {
        matches!(self, Self::SeqRead | Self::SeqWrite)
    }

    /// Bytes of a request.
    pub(super) fn block(self) -> u32 {
        if self.is_sequential() { 128 << 10 } else { 4 << 10 }
    }
}

/// Whose driver asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The crate `virtio-driver`.
    VirtioDriver,
    /// Ringway's own.
    Ringway,
}

impl Whose {
    /// Its name, on the page and on the driver's command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::VirtioDriver => "virtio-driver",
            Self::Ringway => "ringway",
        }
    }
}

/// A pattern, and how much of it at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) pattern: Pattern,
    /// In each queue.
    pub(super) depth: u16,
    pub(super) queues: u16,
    pub(super) driver: Whose,
}

impl Workload {
    /// Whether several queues can be of use: small requests, more than one of them.
    pub(super) fn needs_queues(self) -> bool {
        self.depth > 1 && !self.pattern.is_sequential()
    }

    /// Bytes of a request.
    pub(super) fn bytes(self) -> f64 {
        f64::from(self.pattern.block())
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pattern = match self.pattern {
            Pattern::RandRead => "4K random read",
            Pattern::RandWrite => "4K random write",
            Pattern::SeqRead => "128K read",
            Pattern::SeqWrite => "128K write",
        };
        write!(f, "{pattern}, depth {}", self.depth)?;
        if self.queues > 1 { write!(f, ", {} queues", self.queues) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_their_names() {
        let names =
            Pattern::value_variants().iter().map(|p| p.to_possible_value().unwrap().get_name().to_owned());
        assert_eq!(names.collect::<Vec<_>>(), Pattern::NAMES);
    }

    #[test]
    fn cases_are_named() {
        let driver = Whose::VirtioDriver;
        let one = Workload { pattern: Pattern::SeqWrite, depth: 32, queues: 1, driver };
        assert_eq!(one.to_string(), "128K write, depth 32");
        let two = Workload { pattern: Pattern::RandRead, depth: 1, queues: 2, driver };
        assert_eq!(two.to_string(), "4K random read, depth 1, 2 queues");
    }
}
