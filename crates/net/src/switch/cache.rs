//! What a worker remembers of its decisions: most frames come in trains.
//!
//! It holds for a second, so that addresses in use are seen to be, and until the table changes an answer. The rules of
//! ports do not change.

use super::PortIndex;
use super::vlan::Retag;
use crate::frame::Ethernet;

/// Ways kept; a power of two.
const LINES: usize = 256;

/// All that the way of a frame to one port depends on, beside what the table and the rules say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    dst: u64,
    /// With the tag: its VLAN, and whether there is one.
    src: u64,
    from: u32,
}

impl Flow {
    #[inline]
    pub(super) fn new(from: PortIndex, frame: &Ethernet) -> Self {
        let tag = u64::from(frame.vlan) << 1 | u64::from(frame.is_tagged());
        Self { dst: frame.dst.bits(), src: frame.src.bits() | tag << 48, from: from as u32 }
    }

    /// The high bits of a product depend on all bits below (Knuth's multiplicative hash).
    #[inline]
    fn place(self) -> usize {
        let mixed = (self.dst ^ self.src.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (u64::BITS - LINES.ilog2())) as usize
    }
}

/// A way that was decided.
#[derive(Clone, Copy)]
struct Line {
    flow: Flow,
    to: u32,
    retag: Retag,
    /// The epoch that it holds in.
    epoch: u32,
}

/// A worker's own; see the module.
pub(crate) struct Cache {
    version: u64,
    second: u64,
    /// Counts what made all lines old. None holds in epoch 0.
    epoch: u32,
    lines: Box<[Line; LINES]>,
}

impl Default for Cache {
    fn default() -> Self {
        let none = Line { flow: Flow { dst: 0, src: 0, from: 0 }, to: 0, retag: Retag::Keep, epoch: 0 };
        Self { version: 0, second: 0, epoch: 1, lines: Box::new([none; LINES]) }
    }
}

impl Cache {
    /// Forgets what no longer holds.
    #[inline]
    pub(super) fn renew(&mut self, version: u64, second: u64) {
        if (self.version, self.second) != (version, second) {
            (self.version, self.second) = (version, second);
            self.epoch = self.epoch.checked_add(1).unwrap_or_else(|| {
                self.lines.iter_mut().for_each(|line| line.epoch = 0);
                1
            });
        }
    }

    #[inline]
    pub(super) fn get(&self, flow: Flow) -> Option<(PortIndex, Retag)> {
        let Line { flow: known, to, retag, epoch } = self.lines[flow.place()];
        (known == flow && epoch == self.epoch).then_some((to as PortIndex, retag))
    }

    pub(super) fn set(&mut self, flow: Flow, to: PortIndex, retag: Retag) {
        self.lines[flow.place()] = Line { flow, to: to as u32, retag, epoch: self.epoch };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Mac;

    fn flow(from: PortIndex, vlan: u16, len: usize) -> Flow {
        let (dst, src) = (Mac::new([0; 6]), Mac::new([0; 6]));
        Flow::new(from, &Ethernet { dst, src, vlan, len })
    }

    #[test]
    fn ways_hold_until_something_changes() {
        let mut cache = Cache::default();
        assert_eq!(cache.get(flow(0, 0, 14)), None, "a frame of zeros is not known either");
        cache.set(flow(0, 0, 14), 3, Retag::Pop);
        for (version, second) in [(0, 0), (1, 0), (1, 1), (0, 0)] {
            cache.renew(version, second);
            let is_first = cache.epoch == 1;
            assert_eq!(cache.get(flow(0, 0, 14)), is_first.then_some((3, Retag::Pop)));
        }
    }

    /// What differs in its port or its tag goes another way.
    #[test]
    fn all_of_a_flow_counts() {
        let mut cache = Cache::default();
        cache.set(flow(0, 0, 14), 3, Retag::Keep);
        for other in [flow(1, 0, 14), flow(0, 0, 18), flow(0, 7, 18)] {
            assert_eq!(cache.get(other), None);
        }
    }

    /// When the epochs come to their end, no line of the first ones holds again.
    #[test]
    fn epochs_end() {
        let mut cache = Cache::default();
        cache.renew(1, 0);
        cache.set(flow(0, 0, 14), 3, Retag::Keep);
        cache.epoch = u32::MAX;
        cache.renew(2, 0);
        cache.renew(3, 0);
        assert_eq!((cache.epoch, cache.get(flow(0, 0, 14))), (2, None));
    }
}
