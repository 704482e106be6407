//! What is measured: a cell of the table, and who takes part.

use std::fmt;

use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1};

/// Chains that a contestant has buffers for: the largest burst.
pub(crate) const CHAINS: u16 = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    /// From the driver to the device and back, one thread.
    Both,
    Device,
    Driver,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) half: Half,
    /// Of a chain: the first is to be read, the others are to be written.
    pub(crate) segments: u16,
    pub(crate) indirect: bool,
    /// Chains that are made available at once, and used at once.
    pub(crate) burst: u16,
}

impl Cell {
    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let halves = [Half::Both, Half::Device, Half::Driver];
        let chains = [(1, false), (3, false), (3, true)];
        let bursts = [1, 32, CHAINS];
        halves.into_iter().flat_map(move |half| {
            chains.into_iter().flat_map(move |(segments, indirect)| {
                bursts.map(|burst| Self { half, segments, indirect, burst })
            })
        })
    }

    /// Descriptors of the ring that a chain takes.
    pub(crate) fn slots(self) -> u16 {
        if self.indirect { 1 } else { self.segments }
    }

    /// Bytes that a device says it wrote.
    pub(crate) fn written(self) -> u32 {
        u32::from(self.segments - 1)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let half = match self.half {
            Half::Both => "both",
            Half::Device => "device",
            Half::Driver => "driver",
        };
        let Self { segments, indirect, burst, .. } = self;
        write!(f, "{half}/{segments}{}/{burst}", if *indirect { "-indirect" } else { "" })
    }
}

/// A ring format of ours, or the other crates, which have the split ring alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Split,
    Packed,
    PackedInOrder,
    Theirs,
}

impl Who {
    pub(crate) const ALL: [Self; 4] = [Self::Split, Self::Packed, Self::PackedInOrder, Self::Theirs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Packed => "packed",
            Self::PackedInOrder => "packed-in-order",
            Self::Theirs => "theirs",
        }
    }

    /// The features negotiated.
    pub(crate) fn features(self) -> u64 {
        let common = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC;
        match self {
            Self::Split | Self::Theirs => common,
            Self::Packed => common | RING_PACKED,
            Self::PackedInOrder => common | RING_PACKED | IN_ORDER,
        }
    }
}

/// One who sends chains there and back.
pub(crate) trait Contestant {
    /// Does so with that many bursts.
    fn run(&mut self, bursts: u64);
}
