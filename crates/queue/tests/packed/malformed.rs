//! Chains that no driver may make.

use ringway_memory::{Gpa, MemoryError};
use ringway_queue::{Burst, Chain, QueueError};
use ringway_spec::feature::RING_INDIRECT_DESC;
use ringway_spec::packed::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

use crate::common::packed::{Buffer, Desc, Driver, used};
use crate::common::{BASE, Entry, Guest, LEN, buffer, complete, take};

const END: u64 = BASE + LEN;
const SIZE: u16 = 4;

fn unmapped(addr: u64, len: u64) -> QueueError {
    QueueError::Memory(MemoryError::Unmapped { addr: Gpa(addr), len })
}

/// The error of one chain, with the table at `buffer(8)`, in each slot of each lap, of which there is the
/// head to compare with. It is an error of no chain and of no further chain, and nothing of the ring is
/// touched.
fn check(features: u64, chain: &[Buffer], entries: &[Entry], expected: impl Fn(u16) -> QueueError) {
    let guest = Guest::new();
    guest.write_table(buffer(8), entries);
    for start in 0..2 * u64::from(SIZE) {
        let mut driver = Driver::in_guest(guest.clone(), SIZE, start);
        let mut queue = driver.start(features);
        let mut burst = Burst::default();
        driver.offer(1, chain);
        let ring = driver.ring();
        assert!(queue.has_available());
        let error = queue.take(&mut burst, 8).expect_err("malformed");
        assert_eq!(error, expected(driver.slot(start)), "at {start}");
        assert!(burst.is_empty());
        assert!(!queue.has_available(), "it was told");
        assert!(!queue.arm());
        assert!(!queue.publish());
        assert_eq!(driver.ring(), ring);

        driver.avail = start;
        driver.offer(2, &[(buffer(0), 1, 0)]);
        assert_eq!(queue.take(&mut burst, 8), Err(error), "the queue is stopped");
        assert_eq!(queue.next(&mut burst).err(), Some(error));
        assert_eq!(queue.stop(), driver.state(start, start));
    }
}

#[test]
fn chains_that_go_on_wrongly() {
    let (next, write) = (DESC_F_NEXT, DESC_F_WRITE);
    let one = |flags| (buffer(0), 1, flags);
    let not_available =
        |ahead| move |head: u16| QueueError::NotAvailable { head, index: (head + ahead) % SIZE };
    check(0, &[one(next)], &[], not_available(1));
    check(0, &[one(0), one(0), one(write | next)], &[], not_available(3));
    // A loop: every slot says that the chain goes on, the last at the head.
    check(0, &[one(next); SIZE as usize], &[], |head| QueueError::TooLong { head, limit: SIZE });
    let order = |head| QueueError::ReadableAfterWritable { head };
    check(0, &[one(write), one(0)], &[], order);
    check(0, &[one(0), one(write), (buffer(0), 0, 0)], &[], order);
}

#[test]
fn buffers_outside_of_memory() {
    let check = |addr, len, flags| {
        check(0, &[(addr, len, flags)], &[], |_| unmapped(addr, len.into()));
        check(0, &[(buffer(0), 0, 0), (addr, len, flags)], &[], |_| unmapped(addr, len.into()));
    };
    check(END, 1, 0);
    check(END - 1, 2, DESC_F_WRITE);
    check(BASE - 1, 1, 0);
    check(u64::MAX, 2, DESC_F_WRITE);
    check(buffer(0), u32::MAX, 0);
}

#[test]
fn indirect_descriptors_where_none_may_be() {
    let indirect = |flags| (buffer(8), 16, DESC_F_INDIRECT | flags);
    let bad = |head| QueueError::BadIndirect { head };
    let entry = [(buffer(0), 1, 0, 0)];
    check(0, &[indirect(0)], &entry, bad);
    check(RING_INDIRECT_DESC, &[indirect(DESC_F_NEXT)], &entry, bad);
    check(RING_INDIRECT_DESC, &[indirect(0), (buffer(0), 1, 0)], &entry, bad);
    check(RING_INDIRECT_DESC, &[(buffer(0), 1, 0), indirect(0)], &entry, bad);
}

#[test]
fn bad_indirect_tables() {
    let table = buffer(8);
    let check = |addr, len, entries: &[Entry], expected: &dyn Fn(u16) -> QueueError| {
        check(RING_INDIRECT_DESC, &[(addr, len, DESC_F_INDIRECT)], entries, expected);
    };
    for len in [0, 15, 17, 16 * 1025, u32::MAX] {
        check(table, len, &[], &|head| QueueError::BadIndirectLen { head, len });
    }
    check(END - 16, 32, &[], &|_| unmapped(END - 16, 32));
    check(END, 16, &[], &|_| unmapped(END, 16));
    check(table, 32, &[(BASE, 1, 0, 0), (END, 1, 0, 0)], &|_| unmapped(END, 1));
    let order = |head| QueueError::ReadableAfterWritable { head };
    check(table, 32, &[(BASE, 1, 0, DESC_F_WRITE), (BASE, 1, 0, 0)], &order);
    check(table, 4096, &[(BASE, LEN as u32, 0, 0); 256], &|head| QueueError::TooManyBytes { head });
}

#[test]
fn a_chain_of_4_gib_is_malformed() {
    for (count, is_good) in [(255, true), (256, false)] {
        let mut driver = Driver::new(256, 100);
        let mut queue = driver.start(0);
        driver.offer(1, &vec![(BASE, LEN as u32, DESC_F_WRITE); count]);
        let expected = if is_good { Ok(1) } else { Err(QueueError::TooManyBytes { head: 100 }) };
        assert_eq!(queue.take(&mut Burst::default(), 1), expected);
    }
}

/// In a ring that is longer than a chain may be.
#[test]
fn a_chain_of_more_than_1024_descriptors_is_malformed() {
    for (count, is_good) in [(1024, true), (1025, false)] {
        let mut driver = Driver::new(1500, 1000);
        let mut queue = driver.start(0);
        driver.offer(1, &vec![(buffer(0), 1, 0); count]);
        let expected = if is_good { Ok(1) } else { Err(QueueError::TooLong { head: 1000, limit: 1024 }) };
        assert_eq!(queue.take(&mut Burst::default(), 1), expected);
    }
}

/// A chain that goes on into slots which are in flight, made available once more though the driver did not
/// see them used.
#[test]
fn a_chain_of_more_slots_than_are_free_is_malformed() {
    let guest = Guest::new();
    for start in 0..10 {
        for (count, is_good) in [(3, true), (4, false)] {
            let mut driver = Driver::in_guest(guest.clone(), 5, start);
            let mut queue = driver.start(0);
            let mut burst = Burst::default();
            driver.offer(0, &[(buffer(0), 1, 0)]);
            driver.offer(1, &[(buffer(0), 1, 0)]);
            assert_eq!(take(&mut queue, &mut burst), 2);
            let in_flight: Vec<_> = std::iter::from_fn(|| burst.next().map(Chain::detach)).collect();
            driver.offer(2, &vec![(buffer(0), 1, 0); count]);
            let head = driver.slot(start + 2);
            let expected = if is_good { Ok(1) } else { Err(QueueError::TooLong { head, limit: 3 }) };
            assert_eq!(queue.take(&mut burst, 8), expected);
            drop(in_flight);
        }
    }
}

/// The good chains before a malformed one are served, also where it shares a cache line with them; then the
/// error is told once by `has_available`, and by every `take`.
#[test]
fn chains_before_a_malformed_one_are_taken() {
    let guest = Guest::new();
    let faulty: [Buffer; 2] = [(END, 1, 0), (buffer(0), 16, DESC_F_INDIRECT)];
    for start in 0..32 {
        for count in 1..=11u16 {
            for bad in faulty {
                let mut driver = Driver::in_guest(guest.clone(), 16, start);
                let mut queue = driver.start(0);
                let mut burst = Burst::default();
                (0..count).for_each(|id| driver.offer(id, &[(buffer(0), 1, DESC_F_WRITE)]));
                driver.offer(99, &[bad]);
                (0..4).for_each(|id| driver.offer(id, &[(buffer(0), 1, DESC_F_WRITE)]));
                assert_eq!(queue.take(&mut burst, 64), Ok(count.into()));
                assert!(queue.has_available(), "an error is to be told");
                complete(&mut queue, &mut burst, 1);
                assert!(queue.publish());
                let head = driver.slot(start + u64::from(count));
                let error = if bad.0 == END { unmapped(END, 1) } else { QueueError::BadIndirect { head } };
                assert_eq!(queue.take(&mut burst, 64), Err(error));
                assert!(!queue.has_available());
                assert_eq!(queue.take(&mut burst, 64), Err(error));
                for id in 0..count {
                    assert_eq!(driver.reclaim(1), Some(used(id, 1)));
                }
                assert_eq!(driver.peek(), None);
                let at = start + u64::from(count);
                assert_eq!(queue.stop(), driver.state(at, at));
            }
        }
    }
}

/// Rings of random bytes: chains and errors, but no more chains than the ring has slots, no end without one,
/// no panic.
#[test]
fn rings_of_anything_are_survived() {
    use proptest::prelude::*;
    let guest = Guest::new();
    let desc = (
        prop_oneof![Just(buffer(0)), Just(buffer(8)), Just(END - 8), any::<u64>()],
        prop_oneof![0..64u32, Just(16), Just(32), any::<u32>()],
        any::<u16>(),
        prop_oneof![
            any::<u16>(),
            (0..8u16, 0..4u16).prop_map(|(low, lap)| low | (lap & 1) << 7 | (lap >> 1) << 15)
        ],
    );
    let ring = (1..12usize).prop_flat_map(move |size| prop::collection::vec(desc.clone(), size));
    proptest!(|(ring in ring, start in 0..24u64, takes in prop::collection::vec(1..9usize, 1..9))| {
        let size = ring.len() as u16;
        let driver = Driver::in_guest(guest.clone(), size, start % (2 * u64::from(size)));
        for (slot, (addr, len, id, flags)) in (0..).zip(ring) {
            driver.set(slot, Desc { addr, len, id, flags });
            driver.guest.write_table(buffer(8) + slot * 16, &[(addr, len, id, flags)]);
        }
        let mut queue = driver.start(RING_INDIRECT_DESC);
        let mut burst = Burst::default();
        let mut taken = 0;
        for max in takes {
            match queue.take(&mut burst, max) {
                Ok(n) => taken += n,
                Err(error) => prop_assert_eq!(queue.take(&mut burst, max), Err(error)),
            }
        }
        prop_assert!(taken <= usize::from(size));
        prop_assert_eq!(burst.len(), taken);
        while let Some(chain) = burst.next() {
            prop_assert_eq!(chain.writable().len(), chain.writable_len() as usize);
            queue.complete(chain, 0);
        }
        prop_assert!(!queue.publish() || taken > 0);
    });
}
