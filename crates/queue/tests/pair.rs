//! Both halves together: every format, every set of features, sizes and positions around every wrap. What is
//! right is said by the model in `loopback/mod.rs`.

mod common;
mod loopback;

use common::Guest;
use loopback::{Config, Pair, feature_sets};
use ringway_queue::AddError;
use ringway_spec::feature::RING_PACKED;

/// Chains by the number of their device-readable and device-writable segments.
type Shape = (u16, u16);

/// Entries of the indirect tables: some of the shapes fit, some do not.
const TABLE: u16 = 4;

fn config(size: u16, features: u64, start: u64) -> Config {
    Config { size, features, start, max_chain: size, table: TABLE }
}

/// One segment, three, a table more than full, the whole queue.
fn shapes(size: u16) -> Vec<Shape> {
    let all =
        [(1, 0), (0, 1), (2, 1), (1, 2), (2, 2), (3, 2), (size.div_ceil(2), size / 2), (size, 0), (0, size)];
    let mut shapes: Vec<Shape> =
        all.into_iter().filter(|(r, w)| (1..=size.min(1024)).contains(&(r + w))).collect();
    shapes.dedup();
    shapes
}

fn lens(count: u16, salt: u32) -> Vec<u32> {
    (0..u32::from(count)).map(|i| (salt * 13 + i * 29) % (loopback::SEGMENT + 1)).collect()
}

/// Adds up to `max` chains, as many as there is room for.
fn fill(pair: &mut Pair, (readable, writable): Shape, max: usize) -> usize {
    for n in 0..max {
        let salt = n as u32;
        match pair.add(&lens(readable, salt), &lens(writable, salt + 1)) {
            Ok(()) => {}
            Err(AddError::Full) => return n,
            Err(error) => panic!("a chain that fits: {error}"),
        }
    }
    max
}

/// Completes all chains in flight, in their order or, where that is allowed, in one of three others.
fn complete(pair: &mut Pair, order: usize) {
    loop {
        let last = match pair.counts().in_flight {
            0 => return,
            n => n - 1,
        };
        let i = match order % 4 {
            _ if pair.config.is_in_order() => 0,
            0 => 0,
            1 => last,
            2 => last / 2,
            _ => last.min(1),
        };
        pair.complete(i);
    }
}

/// Bursts of one shape go round until the indices are past where they began: through the whole ring and more.
fn rounds(pair: &mut Pair, shape: Shape, burst: usize, count: usize) {
    for round in 0..count {
        match round % 4 {
            0 => {}
            1 => {
                let _ = (pair.arm_kicks(), pair.arm_calls());
            }
            2 => {
                pair.suppress_kicks();
                pair.suppress_calls();
            }
            _ => {
                let _ = pair.arm_kicks();
                pair.suppress_calls();
            }
        }
        fill(pair, shape, burst);
        pair.publish();
        // Half of them; what was not handled is given back, the device stops and goes on.
        pair.take(pair.counts().available.div_ceil(2));
        for _ in 0..pair.counts().waiting.div_ceil(2) {
            pair.handle((round * 51) as u8);
        }
        if round % 3 == 1 {
            complete(pair, round);
            pair.rewind();
        }
        if round % 3 == 2 {
            pair.restart();
        }
        while pair.counts().available > 0 {
            pair.take(64);
        }
        while pair.counts().waiting > 0 {
            pair.handle(255);
        }
        complete(pair, round);
        if round % 2 == 0 {
            let _ = pair.arm_calls();
        }
        pair.publish_used();
        while pair.reclaim() {}
    }
    assert_eq!(pair.counts().used, 0);
}

fn all_shapes(guest: &Guest, config: Config, counts: [usize; 3]) {
    let mut pair = Pair::new(guest, config);
    for shape in shapes(config.size) {
        for (burst, count) in [1, 3, usize::from(config.size)].into_iter().zip(counts) {
            rounds(&mut pair, shape, burst, count);
        }
    }
}

#[test]
fn split_halves_agree() {
    let guest = Guest::new();
    for features in feature_sets(0) {
        for size in [1, 2, 4, 8] {
            for start in (65530..=65535).chain([0]) {
                all_shapes(&guest, config(size, features, start), [4, 12, 6]);
            }
        }
        for start in [65533, 0] {
            all_shapes(&guest, config(256, features, start), [4, 4, 3]);
        }
    }
}

#[test]
fn packed_halves_agree() {
    let guest = Guest::new();
    for features in feature_sets(RING_PACKED) {
        for size in [1, 2, 3, 4, 5, 7, 8, 12] {
            let lap = u64::from(size);
            for start in [0, lap - 1, lap, 2 * lap - 1].into_iter().chain(lap.checked_sub(2)) {
                all_shapes(&guest, config(size, features, start), [4, 12, 6]);
            }
        }
        for size in [256, 300] {
            let lap = u64::from(size);
            for start in [0, lap - 3, 2 * lap - 2] {
                all_shapes(&guest, config(size, features, start), [4, 4, 2]);
            }
        }
    }
}

/// As large as a ring can be: full once, then once more past the wrap.
fn largest(guest: &Guest, config: Config) {
    let mut pair = Pair::new(guest, config);
    for salt in [7, 30] {
        let _ = pair.arm_kicks();
        while pair.add(&[salt], &[salt]).is_ok() {}
        pair.publish();
        let _ = pair.arm_calls();
        while pair.take(64) > 0 {
            while pair.counts().waiting > 0 {
                pair.handle(200);
            }
            complete(&mut pair, 1);
            if pair.counts().available.is_multiple_of(4096) {
                pair.restart();
            }
        }
        pair.publish_used();
        while pair.reclaim() {}
    }
}

#[test]
fn the_largest_queues_go_round() {
    let guest = Guest::new();
    for features in feature_sets(0) {
        largest(&guest, Config { table: 2, ..config(32768, features, 65534) });
    }
    for features in feature_sets(RING_PACKED) {
        largest(&guest, Config { table: 2, ..config(32768, features, 32767) });
    }
}

/// A side that sleeps until it is notified.
#[derive(PartialEq, Eq)]
enum Side {
    Awake,
    Asleep,
}

/// Sends `count` chains with both sides asleep whenever they have nothing to do, `burst` at a time.
fn no_side_sleeps_forever(guest: &Guest, config: Config, burst: usize, mut count: usize) {
    let mut pair = Pair::new(guest, config);
    let (mut driver, mut device) = (Side::Awake, Side::Asleep);
    let _ = pair.arm_kicks();
    let mut reclaimed = 0;
    let total = count;
    while reclaimed < total {
        assert!(driver == Side::Awake || device == Side::Awake, "both sleep");
        if driver == Side::Awake {
            pair.suppress_calls();
            while pair.reclaim() {
                reclaimed += 1;
            }
            count -= fill(&mut pair, (1, 1), burst.min(count));
            if pair.publish() {
                device = Side::Awake;
            }
            if !pair.arm_calls() {
                driver = Side::Asleep;
            }
        }
        if device == Side::Awake {
            pair.suppress_kicks();
            pair.take(burst);
            while pair.counts().waiting > 0 {
                pair.next(99);
            }
            complete(&mut pair, reclaimed);
            if pair.publish_used() {
                driver = Side::Awake;
            }
            if !pair.arm_kicks() {
                device = Side::Asleep;
            }
        }
    }
}

#[test]
fn sides_that_sleep_are_woken() {
    let guest = Guest::new();
    for size in [2, 8] {
        for (burst, start) in [(1, 0), (2, 65530), (5, 65533), (8, 3)] {
            feature_sets(0).for_each(|f| no_side_sleeps_forever(&guest, config(size, f, start), burst, 100));
        }
    }
    for size in [2, 5, 8] {
        for (burst, start) in [(1, 0), (2, 1), (5, 7), (8, 3)] {
            feature_sets(RING_PACKED)
                .for_each(|f| no_side_sleeps_forever(&guest, config(size, f, start), burst, 100));
        }
    }
}
