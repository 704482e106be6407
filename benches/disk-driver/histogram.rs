//! How often each latency occurred, in buckets that are a 64th of their value wide.

use std::time::Duration;

/// Bits that are kept of a value besides its first.
const BITS: u32 = 6;
/// Buckets for every value of 64 bits.
const BUCKETS: usize = (64 - BITS as usize + 1) << BITS;

/// Counts of nanoseconds.
pub(crate) struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; BUCKETS].into(), count: 0 }
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        self.buckets[bucket(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX))] += 1;
        self.count += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// What a share of the latencies did not exceed, in microseconds: the middle of its bucket. 0 without any.
    #[expect(clippy::cast_precision_loss, reason = "latencies and counts of a measurement")]
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let rank = self.count as f64 * percent / 100.0;
        let mut below = 0;
        let found = self.buckets.iter().position(|count| {
            below += count;
            below > 0 && below as f64 >= rank
        });
        found.map_or(0.0, |index| f64::midpoint(lowest(index) as f64, lowest(index + 1) as f64) / 1e3)
    }
}

/// Where a value belongs: small ones alone, greater ones by their first bit and those behind it.
fn bucket(value: u64) -> usize {
    let exponent = (u64::BITS - value.leading_zeros()).saturating_sub(BITS + 1);
    ((exponent as usize) << BITS) + (value >> exponent) as usize
}

/// The lowest value of a bucket.
fn lowest(index: usize) -> u64 {
    let exponent = (index >> BITS).saturating_sub(1);
    ((index - (exponent << BITS)) as u64) << exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(lowest(index)), index);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for value in [63, 64, 127, 128, 1000, 123_456_789] {
            let (low, next) = (lowest(bucket(value)), lowest(bucket(value) + 1));
            assert!(
                low <= value && value < next && next - low <= (value / 64).max(1),
                "{low} {value} {next}"
            );
        }
    }

    #[test]
    fn percentiles() {
        let mut histogram = Histogram::new();
        assert!(histogram.percentile(50.0).abs() < f64::EPSILON);
        for micros in 1..=1000 {
            histogram.add(Duration::from_micros(micros));
        }
        for (percent, expected) in [(50.0, 500.0), (99.0, 990.0), (99.9, 999.0)] {
            let seen = histogram.percentile(percent);
            assert!((seen / expected - 1.0).abs() < 0.02, "{percent} %: {seen}");
        }
        assert_eq!(histogram.count(), 1000);
    }
}
