//! Where a queue begins and goes on.

use ringway_memory::{FrontendVa, MemoryError, RingArea};
use ringway_queue::{Areas, Burst, Chain, ConfigError, Cursor, DeviceQueue, QueueConfig, ResumeState};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_PACKED};
use ringway_spec::packed::DESC_F_WRITE;

use crate::common::packed::{Driver, used};
use crate::common::{BASE, FRONTEND, Guest, LEN, buffer, complete, take};

/// A queue goes on where another stopped, and a stop publishes.
#[test]
fn a_queue_resumes() {
    let mut driver = Driver::new(5, 0);
    let mut state = ResumeState::start(RING_PACKED);
    for round in 0..20 {
        let mut queue = driver.resume(RING_EVENT_IDX, state);
        let mut burst = Burst::default();
        driver.offer(1, &[(buffer(0), 1, 0), (buffer(0), 1, DESC_F_WRITE)]);
        driver.offer(2, &[(buffer(0), 1, DESC_F_WRITE)]);
        assert_eq!(take(&mut queue, &mut burst), 2);
        complete(&mut queue, &mut burst, 1);
        state = queue.stop();
        assert_eq!(state, driver.state(3 * (round + 1), 3 * (round + 1)));
        assert_eq!(driver.reclaim(2), Some(used(1, 1)));
        assert_eq!(driver.reclaim(1), Some(used(2, 1)));
        assert_eq!(driver.peek(), None);
    }
}

/// What is in flight at a stop stands between the two cursors, and is not taken again. Its slots stay
/// occupied.
#[test]
fn chains_in_flight_are_counted_on() {
    let guest = Guest::new();
    for start in 0..10 {
        let mut driver = Driver::in_guest(guest.clone(), 5, start);
        let mut queue = driver.start(0);
        let mut burst = Burst::default();
        for id in 0..3 {
            driver.offer(id, &[(buffer(0), 1, 0)]);
        }
        assert_eq!(take(&mut queue, &mut burst), 3);
        let in_flight: Vec<_> = std::iter::from_fn(|| burst.next().map(Chain::detach)).collect();
        let state = queue.stop();
        assert_eq!(state, driver.state(start + 3, start));

        let mut queue = driver.resume(0, state);
        assert!(!queue.has_available());
        (3..6).for_each(|id| driver.offer(id, &[(buffer(0), 1, 0)]));
        assert_eq!(take(&mut queue, &mut burst), 2, "three of five are occupied");
        assert!(!queue.has_available());
        // The chain of the queue before, by what was kept of it.
        queue.complete(in_flight.into_iter().next().expect("a chain"), 0);
        assert!(queue.publish());
        assert_eq!(driver.reclaim(1), Some(used(0, 0)));
    }
}

/// A queue that stands at slot 0 with nothing in flight tells its lap: in every lap, used one by one, in
/// chains that leave slots out, and merged; and however many are available again.
#[test]
fn the_lap_is_found_at_slot_0() {
    let guest = Guest::new();
    for size in [1, 2, 3, 5, 8, 12] {
        for (slots, batch) in [(1, 1), (1, 64), (2, 1), (2, 3), (3, 2), (5, 1), (8, 1), (12, 1)] {
            if slots > size {
                continue;
            }
            let mut driver = Driver::in_guest(guest.clone(), size, 0);
            let mut queue = driver.start(IN_ORDER);
            let mut burst = Burst::default();
            let areas = guest.areas(size, RING_PACKED);
            let mut stood_at_0 = 0;
            while stood_at_0 < 7 {
                let at = driver.avail;
                if driver.slot(at) == 0 {
                    stood_at_0 += 1;
                    let expected = driver.state(at, at);
                    assert_eq!(ResumeState::find_lap(&areas, size), expected, "{slots} of {size} at {at}");
                    let ring = driver.ring();
                    for count in 1..=size {
                        driver.offer(0, &[(buffer(0), 1, 0)]);
                        assert_eq!(
                            ResumeState::find_lap(&areas, size),
                            expected,
                            "{slots} of {size} at {at}, {count} available"
                        );
                    }
                    driver.avail = at;
                    (0..).zip(ring).for_each(|(slot, desc)| driver.set(slot, desc));
                }
                let chains = (size / slots).min(batch);
                for id in 0..chains {
                    driver.offer(id, &vec![(buffer(0), 1, 0); slots.into()]);
                }
                assert_eq!(take(&mut queue, &mut burst), chains.into());
                complete(&mut queue, &mut burst, 0);
                let _ = queue.publish();
                driver.used = driver.avail;
            }
        }
    }
}

fn start(guest: &Guest, size: u16, areas: Areas, resume: ResumeState) -> Result<u16, ConfigError> {
    let memory = guest.memory.clone();
    let config = QueueConfig {
        size,
        features: RING_PACKED | RING_EVENT_IDX,
        areas,
        memory,
        used_log: None,
        resume,
        inflight: None,
    };
    DeviceQueue::start(config).map(|queue| queue.size())
}

/// A queue of an impossible size, state or area is not started, and its ring not touched.
#[test]
fn configurations_are_checked() {
    let guest = Guest::new();
    guest.write(BASE, &vec![0x5a; 0x10_0000]);
    let before = guest.ring_bytes();
    let areas = || guest.areas(4, RING_PACKED);
    let first = ResumeState::start(RING_PACKED);
    for size in [0, 32769, 65535] {
        assert_eq!(start(&guest, size, areas(), first), Err(ConfigError::BadPackedSize(size)));
    }
    let at = |index, wrap| Cursor::new(index, wrap);
    for resume in [
        ResumeState::Split { next_avail: 0 },
        ResumeState::Packed { avail: at(4, true), used: at(0, true) },
        ResumeState::Packed { avail: at(0, false), used: at(4, true) },
        ResumeState::Packed { avail: at(0x7fff, true), used: at(0x7fff, true) },
        // More in flight than the ring is long: by one, and by two laps less one.
        ResumeState::Packed { avail: at(2, false), used: at(1, true) },
        ResumeState::Packed { avail: at(0, true), used: at(1, true) },
    ] {
        let bad = ConfigError::BadResume { size: 4, resume };
        assert_eq!(start(&guest, 4, areas(), resume), Err(bad));
    }

    let area = |len| -> RingArea { guest.memory.area(FrontendVa(FRONTEND), len, 4).expect("an area") };
    let small = |lens: [usize; 3]| {
        let [descriptor, driver, device] = lens.map(area);
        start(&guest, 4, Areas { descriptor, driver, device }, first).expect_err("too small")
    };
    assert_eq!(small([63, 4, 4]), ConfigError::SmallArea { needed: 64, len: 63 });
    assert_eq!(small([64, 3, 4]), ConfigError::SmallArea { needed: 4, len: 3 });
    assert_eq!(small([64, 4, 3]), ConfigError::SmallArea { needed: 4, len: 3 });
    assert!(guest.ring_bytes() == before);

    for size in [1, 3, 4] {
        assert_eq!(start(&guest, size, areas(), first), Ok(size));
    }
    let full = ResumeState::Packed { avail: at(1, false), used: at(1, true) };
    assert_eq!(start(&guest, 4, areas(), full), Ok(4));
}

#[test]
fn areas_are_checked() {
    let guest = Guest::new();
    let (start, end) = (FRONTEND, FRONTEND + LEN);
    let resolve = |descriptor, driver, device| {
        let [descriptor, driver, device] = [descriptor, driver, device].map(FrontendVa);
        Areas::resolve(&guest.memory, 7, RING_PACKED, descriptor, driver, device).map(|_| ())
    };
    let unmapped = |addr, len| Err(MemoryError::UnmappedArea { addr: FrontendVa(addr), len });
    let misaligned = |addr, align| Err(MemoryError::Misaligned { addr: FrontendVa(addr), align });
    assert_eq!(resolve(end - 112, end - 4, end - 4), Ok(()));
    assert_eq!(resolve(end - 96, start, start), unmapped(end - 96, 112));
    assert_eq!(resolve(start, end, start), unmapped(end, 4));
    assert_eq!(resolve(start, start, start - 4), unmapped(start - 4, 4));
    assert_eq!(resolve(start + 8, start, start), misaligned(start + 8, 16));
    assert_eq!(resolve(start, start + 2, start), misaligned(start + 2, 4));
    assert_eq!(resolve(start, start, start + 1), misaligned(start + 1, 4));
}
