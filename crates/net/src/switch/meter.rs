//! How fast frames may flow: the token bucket as one number (GCRA, ITU-T I.371), shared by all workers.
//!
//! ```text
//!           now                  due
//!  ──────────┼────────────────────┼─────────────► time        each frame moves `due` by the time it costs
//!            └──── burst ────┘                                at most a burst ahead of now: it may pass
//! ```
//!
//! A frame may pass if anything of its burst is left, so one that is longer than the burst does too, and the next
//! waits the longer. Time is an argument, in nanoseconds; nothing here asks a clock or waits.

use std::sync::atomic::{AtomicU64, Ordering};

use super::policy::Limit;

/// A nanosecond. Finer than one, for a short frame costs less at the fastest rates.
const TICKS: u64 = 16;
const SECOND: u64 = 1_000_000_000 * TICKS;
/// The depth of a bucket is what a rate gives in this time.
const BURST: u64 = SECOND / 50;
/// A bucket of frames holds so many at least.
const LEAST_FRAMES: u64 = 8;
/// A bucket of bytes holds so many at least.
const LEAST_BYTES: u64 = 16 * 1024;
/// What a frame whose length is not known yet may have, in bytes.
const UNKNOWN: u64 = 64 * 1024;
/// Fraction bits of a byte's cost.
const FRACTION: u32 = 16;

/// A bucket that refills at one rate.
struct Bucket {
    /// When all that has passed will have been paid for, in ticks.
    due: AtomicU64,
    /// Ticks that one of what is counted costs, with a fraction.
    cost: u64,
    /// Ticks.
    burst: u64,
}

impl Bucket {
    fn new(per_second: u64, least: u64) -> Self {
        let cost = ((u128::from(SECOND) << FRACTION) / u128::from(per_second.max(1))) as u64;
        let least = cost.saturating_mul(least) >> FRACTION;
        Self { due: AtomicU64::new(0), cost, burst: least.max(BURST) }
    }

    fn cost(&self, count: u64) -> u64 {
        self.cost.saturating_mul(count) >> FRACTION
    }

    /// Ticks until something may pass; 0 if it may now.
    fn wait(&self, now: u64) -> u64 {
        self.due.load(Ordering::Relaxed).saturating_sub(now.saturating_add(self.burst))
    }

    /// How many of `size` each fit in what is left of the burst.
    fn fitting(&self, size: u64, now: u64) -> u64 {
        let due = self.due.load(Ordering::Relaxed).max(now);
        let left = now.saturating_add(self.burst).saturating_sub(due);
        left / self.cost(size).max(1)
    }

    /// Counts what passes.
    fn take(&self, count: u64, now: u64) {
        let cost = self.cost(count);
        // Never refused: the closure always has an answer.
        let _ = self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
            Some(due.max(now).saturating_add(cost))
        });
    }
}

/// The limits of one direction of a port.
pub(crate) struct Meter {
    bytes: Option<Bucket>,
    frames: Option<Bucket>,
}

/// Whether a sender's frames may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowance {
    /// So many at a time, at least 1.
    Frames(usize),
    /// None for so many nanoseconds.
    Wait(u64),
}

impl Meter {
    /// A meter, if anything is limited.
    pub(super) fn new(limit: Limit) -> Option<Self> {
        let bytes = limit.bits.map(|bits| Bucket::new(bits.div_ceil(8), LEAST_BYTES));
        let frames = limit.frames.map(|frames| Bucket::new(frames, LEAST_FRAMES));
        (bytes.is_some() || frames.is_some()).then_some(Self { bytes, frames })
    }

    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.bytes.iter().chain(&self.frames)
    }

    /// Whether a frame of `bytes` may pass at `now`; it is counted if so.
    pub(crate) fn admit(&self, bytes: usize, now: u64) -> bool {
        let may_pass = self.buckets().all(|bucket| bucket.wait(now * TICKS) == 0);
        if may_pass {
            self.count(1, bytes as u64, now);
        }
        may_pass
    }

    /// How many frames may be taken at `now`, whatever their sizes. Those taken are to be counted.
    pub(crate) fn allowance(&self, now: u64) -> Allowance {
        let now = now * TICKS;
        let wait = self.buckets().map(|bucket| bucket.wait(now)).max().unwrap_or_default();
        if wait > 0 {
            return Allowance::Wait(wait.div_ceil(TICKS));
        }
        let of_bytes = self.bytes.as_ref().map(|bytes| bytes.fitting(UNKNOWN, now));
        let of_frames = self.frames.as_ref().map(|frames| frames.fitting(1, now));
        let frames = of_bytes.into_iter().chain(of_frames).min().unwrap_or(u64::MAX);
        Allowance::Frames(frames.clamp(1, usize::MAX as u64) as usize)
    }

    /// Counts frames that were taken.
    pub(crate) fn count(&self, frames: u64, bytes: u64, now: u64) {
        let now = now * TICKS;
        if let Some(bucket) = &self.bytes {
            bucket.take(bytes, now);
        }
        if let Some(bucket) = &self.frames {
            bucket.take(frames, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn meter(bits: Option<u64>, frames: Option<u64>) -> Meter {
        Meter::new(Limit { bits, frames }).unwrap()
    }

    /// How many of so many frames of `bytes` pass, one offered every `every` nanoseconds.
    fn passed(meter: &Meter, frames: u64, bytes: usize, every: u64) -> u64 {
        (0..frames).map(|n| u64::from(meter.admit(bytes, n * every))).sum()
    }

    #[test]
    fn nothing_limited_is_no_meter() {
        assert!(Meter::new(Limit::default()).is_none());
    }

    /// Slow and fast, short frames and long ones: the rate, and a burst at most.
    #[test]
    fn rates_hold() {
        for (bits, bytes, every) in
            [(1_000_000, 60, 10_000), (100_000_000, 1514, 10_000), (100_000_000_000, 60, 2)]
        {
            let frames = 1_000_000;
            let wanted = bits / 8 * frames * every / SECOND_NS;
            let got = passed(&meter(Some(bits), None), frames, bytes, every) * bytes as u64;
            let burst = (bits / 50 / 8).max(LEAST_BYTES);
            let most = wanted + wanted / 50 + burst;
            assert!((wanted - wanted / 1000..=most).contains(&got), "{bits} {bytes}: {got} of {wanted}");
        }
        let got = passed(&meter(None, Some(1000)), 200_000, 60, 10_000);
        assert!((2000..=2021).contains(&got), "{got}");
    }

    /// The stricter of two limits counts, and what one refuses the other has not counted.
    #[test]
    fn both_limits_hold() {
        let got = passed(&meter(Some(8_000_000), Some(100)), 20_000, 1000, 100_000);
        assert!((200..=209).contains(&got), "{got} frames");
        let got = passed(&meter(Some(8_000_000), Some(100_000)), 20_000, 1000, 100_000);
        assert!((2000..=2041).contains(&got), "{got} frames of 1000 bytes");
    }

    /// Who has been silent for long has a burst to send, not all that it did not use.
    #[test]
    fn silence_is_not_saved_up() {
        let meter = meter(None, Some(100));
        let now = 3600 * SECOND_NS;
        let burst = (0..1000).filter(|_| meter.admit(60, now)).count();
        assert!((8..=9).contains(&burst), "{burst}");
    }

    /// A frame longer than the burst passes, and the next waits until it is paid for; the wait is exact.
    #[test]
    fn a_long_frame_is_paid_for_later() {
        let meter = meter(Some(800_000), None);
        assert!(meter.admit(65_000, 0));
        let Allowance::Wait(wait) = meter.allowance(0) else { panic!("it has to be paid for") };
        assert!(!meter.admit(60, wait - 1));
        assert!(matches!(meter.allowance(wait), Allowance::Frames(1)));
        let burst = SECOND_NS * LEAST_BYTES / 100_000;
        assert_eq!(wait, SECOND_NS * 65_000 / 100_000 - burst);
    }

    /// A sender gets to send as many frames as the limits have room for, whatever their sizes.
    #[test]
    fn allowances_are_whole_frames() {
        assert_eq!(meter(None, Some(1000)).allowance(SECOND_NS), Allowance::Frames(20));
        assert_eq!(meter(Some(1_000_000), None).allowance(SECOND_NS), Allowance::Frames(1));
        let fast = meter(Some(10_000_000_000), Some(1_000_000));
        assert_eq!(fast.allowance(SECOND_NS), Allowance::Frames(25_000_000 / 65_536));
        fast.count(20_000, 60, SECOND_NS);
        assert_eq!(fast.allowance(SECOND_NS), Allowance::Frames(1), "as many as are left, and one");
        fast.count(2, 60, SECOND_NS);
        assert!(matches!(fast.allowance(SECOND_NS), Allowance::Wait(1..=2000)));
    }

    /// Absurd rates neither panic nor let nothing pass.
    #[test]
    fn absurd_rates() {
        for limit in [0, 1, u64::MAX] {
            let meter = meter(Some(limit), Some(limit));
            assert!(meter.admit(65_553, 0), "{limit}");
            meter.count(u64::MAX, u64::MAX, u64::MAX / TICKS);
            meter.allowance(0);
        }
    }
}
