//! The device's half of a split ring, against a driver's half written for these tests.

mod common;

use common::split::Driver;
use common::{BASE, Entry, Guest, LEN, buffer, complete, take};
use ringway_memory::{FrontendVa, Gpa, MemoryError, MemoryTable};
use ringway_queue::{
    Areas, Burst, Chain, ConfigError, Cursor, DeviceQueue, QueueConfig, QueueError, ResumeState,
};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC};
use ringway_spec::split::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

/// Ring bases near every wrap of a 16-bit index and of small rings.
const BASES: [u16; 6] = [0, 1, 255, 65533, 65534, 65535];

/// Where a split queue goes on.
fn at(next_avail: u16) -> ResumeState {
    ResumeState::Split { next_avail }
}

/// [DEV-SPLIT-used-ring-01] [DEV-SPLIT-used-ring-02] [DEV-SPLIT-desc-table-01] [DEV-SPLIT-desc-table-02]
/// Request and answer, across every wrap: the answer's bytes and length are there when the index shows them;
/// what is the driver's to write stays as it was.
#[test]
fn chains_go_round_across_every_wrap() {
    for base in BASES {
        for size in [2, 4, 256] {
            let mut driver = Driver::new(size, base);
            let mut queue = driver.start(RING_EVENT_IDX);
            let mut burst = Burst::default();
            driver.set_descriptor(1, buffer(0), 5, DESC_F_NEXT, 0);
            driver.set_descriptor(0, buffer(1), 100, DESC_F_WRITE, 77);
            let table = driver.descriptors();
            for round in 0..600u32 {
                driver.guest.write(buffer(0), format!("{round:05}").as_bytes());
                driver.offer(1);
                assert_eq!(take(&mut queue, &mut burst), 1);
                let chain = burst.next().expect("one chain");
                let mut request = [0; 8];
                assert_eq!(chain.readable().read(&mut request), 5);
                assert_eq!((chain.readable().len(), chain.writable_len()), (5, 100));
                let written = chain.writable().write(&request[..5]) as u32;
                queue.complete(chain, written);
                assert_eq!(driver.reclaim(), None, "not published yet");
                let _ = queue.publish();
                assert_eq!(driver.reclaim(), Some((1, 5)));
                assert_eq!(driver.guest.read(buffer(1), 5), format!("{round:05}").into_bytes());
                assert_eq!(
                    driver.guest.read(buffer(0), 5),
                    format!("{round:05}").into_bytes(),
                    "not written to"
                );
            }
            assert_eq!(driver.descriptors(), table);
            assert_eq!(queue.stop(), at(base.wrapping_add(600)));
        }
    }
}

/// [DEV-SPLIT-used-buffer-notification-suppression-04] [DEV-SPLIT-used-buffer-notification-suppression-05]
/// [DEV-SPLIT-used-buffer-notification-suppression-06] With EVENT_IDX the driver is called exactly if
/// `used_event` lies in what was published, whatever the flag says; bursts included.
#[test]
fn event_idx_calls_when_the_event_is_passed() {
    let guest = Guest::new();
    for base in BASES {
        for count in [1i16, 2, 7] {
            for offset in -3i16..12 {
                for flags in [0, 1] {
                    let mut driver = Driver::in_guest(guest.clone(), 8, base);
                    let mut queue = driver.start(RING_EVENT_IDX);
                    let mut burst = Burst::default();
                    driver.set_descriptor(0, buffer(0), 1, 0, 0);
                    driver.set_used_event(base.wrapping_add_signed(offset));
                    driver.set_avail_flags(flags);
                    (0..count).for_each(|_| driver.offer(0));
                    assert_eq!(take(&mut queue, &mut burst), usize::from(count.unsigned_abs()));
                    complete(&mut queue, &mut burst, 0);
                    let wanted = (0..count).contains(&offset);
                    assert_eq!(queue.publish(), wanted, "base {base}, {count} chains, event {offset}");
                    assert!(!queue.publish(), "nothing new, nobody to call");
                }
            }
        }
    }
}

/// [DEV-SPLIT-used-buffer-notification-suppression-01] [DEV-SPLIT-used-buffer-notification-suppression-02]
/// [DEV-SPLIT-used-buffer-notification-suppression-03] Without EVENT_IDX the flag alone decides.
#[test]
fn without_event_idx_the_flag_decides() {
    for (flags, wanted) in [(0, true), (1, false), (2, true), (3, false)] {
        for event in [0, 1, 500] {
            let mut driver = Driver::new(8, 0);
            let mut queue = driver.start(0);
            let mut burst = Burst::default();
            driver.set_descriptor(0, buffer(0), 1, 0, 0);
            driver.set_used_event(event);
            driver.set_avail_flags(flags);
            driver.offer(0);
            take(&mut queue, &mut burst);
            complete(&mut queue, &mut burst, 0);
            assert_eq!(queue.publish(), wanted, "flags {flags}");
        }
    }
}

/// [DEV-SPLIT-available-buffer-notification-suppression-01]
/// [DEV-SPLIT-available-buffer-notification-suppression-03] The used ring's flags are 0 or 1, and 0 with
/// EVENT_IDX, where `avail_event` says the same.
#[test]
fn kicks_are_armed_and_suppressed() {
    let driver = Driver::new(8, 65535);
    let mut queue = driver.start(0);
    queue.suppress();
    assert_eq!(driver.used_flags(), 1);
    assert!(!queue.arm());
    assert_eq!(driver.used_flags(), 0);

    let mut driver = Driver::new(8, 65535);
    let mut queue = driver.start(RING_EVENT_IDX);
    let mut burst = Burst::default();
    driver.set_descriptor(0, buffer(0), 1, 0, 0);
    assert!(!queue.arm());
    assert_eq!(driver.avail_event(), 65535, "a kick for the very next chain");
    driver.offer(0);
    take(&mut queue, &mut burst);
    complete(&mut queue, &mut burst, 0);
    queue.suppress();
    assert_eq!((driver.used_flags(), driver.avail_event()), (0, 65535), "the event stays behind");
    assert!(!queue.arm());
    assert_eq!((driver.used_flags(), driver.avail_event()), (0, 0));
    driver.offer(0);
    take(&mut queue, &mut burst);
    assert!(!queue.arm());
    assert_eq!(driver.avail_event(), 1, "for what is not taken yet, whatever is in flight");
}

/// [DEV-SPLIT-available-buffer-notification-suppression-05] Arming sees a chain that came before it; looking
/// at an empty ring, as after a kick for nothing, is no error.
#[test]
fn arming_looks_again() {
    for features in [0, RING_EVENT_IDX] {
        let mut driver = Driver::new(8, 0);
        let mut queue = driver.start(features);
        let mut burst = Burst::default();
        assert_eq!(queue.take(&mut burst, 64), Ok(0));
        assert!(!queue.has_available());
        driver.set_descriptor(0, buffer(0), 1, 0, 0);
        driver.offer(0);
        assert!(queue.arm());
        assert!(queue.has_available());
        assert_eq!(take(&mut queue, &mut burst), 1);
        complete(&mut queue, &mut burst, 0);
        assert!(!queue.arm());
    }
}

/// [DEV-SPLIT-message-framing-01] However a driver cuts its buffers, the device sees the same bytes.
#[test]
fn framing_does_not_matter() {
    let request: Vec<u8> = (0..=255).collect();
    for pieces in [1, 2, 3, 100, 256] {
        let mut driver = Driver::new(512, 0);
        let mut queue = driver.start(0);
        let mut burst = Burst::default();
        let mut index = 0;
        for piece in request.chunks(request.len().div_ceil(pieces)) {
            let at = buffer(0) + u64::from(index) * 0x300;
            driver.guest.write(at, piece);
            driver.set_descriptor(index, at, piece.len() as u32, DESC_F_NEXT, index + 1);
            index += 1;
            // Empty buffers are buffers too.
            driver.set_descriptor(index, buffer(0), 0, DESC_F_NEXT, index + 1);
            index += 1;
        }
        driver.set_descriptor(index - 1, buffer(0), 0, 0, 0);
        driver.offer(0);
        assert_eq!(take(&mut queue, &mut burst), 1);
        let chain = burst.next().expect("a chain");
        let mut got = vec![0; 300];
        assert_eq!(chain.readable().read(&mut got), 256);
        assert_eq!(got[..256], request);
        assert_eq!(chain.writable_len(), 0);
        queue.complete(chain, 0);
    }
}

/// [DEV-SPLIT-indirect-descriptors-01] [DEV-SPLIT-indirect-descriptors-02] Zero and more descriptors before
/// an indirect one, which may carry a meaningless WRITE flag.
#[test]
fn indirect_tables_end_chains() {
    for before in 0..3 {
        for flag in [0, DESC_F_WRITE] {
            let mut driver = Driver::new(8, 0);
            let mut queue = driver.start(RING_INDIRECT_DESC);
            let mut burst = Burst::default();
            for i in 0..before {
                driver.set_descriptor(i, buffer(i.into()), 10, DESC_F_NEXT, i + 1);
            }
            let table = buffer(8) + 4;
            driver.guest.write_table(
                table,
                &[
                    (buffer(9), 7, DESC_F_NEXT, 2),
                    (buffer(9), 1 << 30, DESC_F_INDIRECT, 9),
                    (buffer(10), 9, DESC_F_WRITE, 0),
                ],
            );
            driver.set_descriptor(before, table, 48, DESC_F_INDIRECT | flag, 0);
            driver.offer(0);
            assert_eq!(take(&mut queue, &mut burst), 1);
            let chain = burst.next().expect("a chain");
            assert_eq!(chain.readable().len(), usize::from(before) * 10 + 7);
            assert_eq!(chain.writable_len(), 9);
            queue.complete(chain, 9);
            let _ = queue.publish();
            assert_eq!(driver.reclaim(), Some((0, 9)));
        }
    }
}

/// Every way to be malformed: an error of its own, no chain, and no further chain either.
#[test]
fn malformed_chains_stop_the_queue() {
    let (next, write, indirect) = (DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT);
    let end = BASE + LEN;
    let table = buffer(8);
    let chain = |descriptors: &[Entry], entries: &[Entry]| {
        let mut driver = Driver::new(4, 65535);
        for (d, i) in descriptors.iter().zip(0..) {
            driver.set_descriptor(i, d.0, d.1, d.2, d.3);
        }
        driver.guest.write_table(table, entries);
        let mut queue = driver.start(RING_INDIRECT_DESC);
        let mut burst = Burst::default();
        driver.offer(0);
        let error = queue.take(&mut burst, 1).expect_err("malformed");
        driver.set_descriptor(0, buffer(0), 1, 0, 0);
        driver.offer(0);
        assert_eq!(queue.take(&mut burst, 1), Err(error), "the queue is stopped");
        assert!(!queue.has_available());
        assert!(burst.is_empty());
        assert_eq!(queue.stop(), at(65535));
        error
    };
    let good = buffer(0);
    let unmapped = |addr, len| QueueError::Memory(MemoryError::Unmapped { addr: Gpa(addr), len });
    assert_eq!(chain(&[(good, 1, next, 4)], &[]), QueueError::BadIndex { index: 4, size: 4 });
    assert_eq!(chain(&[(good, 1, next, 0)], &[]), QueueError::TooLong { head: 0, limit: 4 });
    assert_eq!(
        chain(&[(good, 1, next | write, 1), (good, 1, 0, 0)], &[]),
        QueueError::ReadableAfterWritable { head: 0 }
    );
    assert_eq!(chain(&[(end, 1, 0, 0)], &[]), unmapped(end, 1));
    assert_eq!(chain(&[(end - 1, 2, 0, 0)], &[]), unmapped(end - 1, 2));
    assert_eq!(chain(&[(BASE - 1, 1, 0, 0)], &[]), unmapped(BASE - 1, 1));
    assert_eq!(chain(&[(u64::MAX, 2, write, 0)], &[]), unmapped(u64::MAX, 2));
    assert_eq!(chain(&[(good, u32::MAX, 0, 0)], &[]), unmapped(good, u32::MAX.into()));
    assert_eq!(chain(&[(table, 16, indirect | next, 1)], &[]), QueueError::BadIndirect { head: 0 });
    for len in [0, 15, 17, 16 * 1025, u32::MAX] {
        assert_eq!(chain(&[(table, len, indirect, 0)], &[]), QueueError::BadIndirectLen { head: 0, len });
    }
    assert_eq!(chain(&[(end - 16, 32, indirect, 0)], &[]), unmapped(end - 16, 32));
    assert_eq!(
        chain(&[(table, 16, indirect, 0)], &[(0, 16, DESC_F_INDIRECT, 0)]),
        QueueError::BadIndirect { head: 0 }
    );
    assert_eq!(
        chain(&[(table, 32, indirect, 0)], &[(BASE, 1, DESC_F_NEXT, 2)]),
        QueueError::BadIndex { index: 2, size: 2 }
    );
    assert_eq!(
        chain(&[(table, 32, indirect, 0)], &[(BASE, 1, DESC_F_NEXT, 1), (BASE, 1, DESC_F_NEXT, 0)]),
        QueueError::TooLong { head: 0, limit: 2 }
    );
    assert_eq!(
        chain(&[(good, 1, write | next, 1), (table, 16, indirect, 0)], &[(BASE, 1, 0, 0)]),
        QueueError::ReadableAfterWritable { head: 0 }
    );
}

#[test]
fn a_chain_of_4_gib_is_malformed() {
    let mut driver = Driver::new(1024, 0);
    let mut queue = driver.start(0);
    let mut burst = Burst::default();
    for i in 0..300 {
        driver.set_descriptor(i, BASE, LEN as u32, DESC_F_NEXT, i + 1);
    }
    driver.offer(0);
    assert_eq!(queue.take(&mut burst, 1), Err(QueueError::TooManyBytes { head: 0 }));
}

#[test]
fn indirect_tables_must_be_negotiated() {
    let mut driver = Driver::new(4, 0);
    let mut queue = driver.start(0);
    driver.set_descriptor(0, buffer(0), 16, DESC_F_INDIRECT, 0);
    driver.offer(0);
    assert_eq!(queue.take(&mut Burst::default(), 1), Err(QueueError::BadIndirect { head: 0 }));
}

/// The good chains before a malformed one are served.
#[test]
fn chains_before_a_malformed_one_are_taken() {
    let mut driver = Driver::new(4, 0);
    let mut queue = driver.start(0);
    let mut burst = Burst::default();
    driver.set_descriptor(0, buffer(0), 1, 0, 0);
    driver.offer(0);
    driver.offer(0);
    driver.offer(9);
    assert_eq!(queue.take(&mut burst, 8), Ok(2));
    complete(&mut queue, &mut burst, 0);
    assert!(queue.publish());
    assert_eq!(queue.take(&mut burst, 8), Err(QueueError::BadIndex { index: 9, size: 4 }));
    assert_eq!(queue.stop(), at(2));
}

#[test]
fn an_index_that_jumps_is_malformed() {
    for base in BASES {
        for (ahead, good) in [(0, true), (4, true), (5, false), (32768, false), (65535, false)] {
            let driver = Driver::new(4, base);
            driver.set_descriptor(0, buffer(0), 1, 0, 0);
            let mut queue = driver.start(0);
            let mut burst = Burst::default();
            driver.set_avail_idx(base.wrapping_add(ahead));
            assert_eq!(queue.take(&mut burst, 8).is_ok(), good, "{ahead} ahead of {base}");
            while let Some(chain) = burst.next() {
                queue.complete(chain, 0);
            }
        }
    }
}

/// Chains given back are taken again, the same ones in the same order.
#[test]
fn rewound_chains_come_again() {
    for base in BASES {
        let mut driver = Driver::new(8, base);
        let mut queue = driver.start(0);
        let mut burst = Burst::default();
        for head in 0..6 {
            driver.set_descriptor(head, buffer(head.into()), u32::from(head) + 1, DESC_F_WRITE, 0);
            driver.offer(head);
        }
        assert_eq!(queue.take(&mut burst, 4), Ok(4));
        let chain = burst.next().expect("a chain");
        queue.complete(chain, 1);
        queue.rewind(&mut burst);
        assert_eq!(queue.take(&mut burst, 2), Ok(2));
        assert_eq!(queue.take(&mut burst, 8), Ok(3), "appended to those that wait");
        assert_eq!(burst.writable_lens().collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        let first = burst.next().expect("a chain");
        assert_eq!(first.writable_len(), 2);
        queue.complete(first, 2);
        queue.rewind(&mut burst);
        assert_eq!(queue.stop(), at(base.wrapping_add(2)));
        assert_eq!(driver.reclaim(), Some((0, 1)));
        assert_eq!(driver.reclaim(), Some((1, 2)));
    }
}

/// A queue goes on where another stopped: the available index as it was told, the used index as the ring has
/// it.
#[test]
fn a_queue_resumes() {
    let mut driver = Driver::new(4, 65534);
    driver.set_descriptor(0, buffer(0), 1, 0, 0);
    let mut next_avail = 65534;
    for _ in 0..10 {
        let mut queue = driver.start_at(RING_EVENT_IDX, next_avail);
        let mut burst = Burst::default();
        driver.offer(0);
        assert_eq!(take(&mut queue, &mut burst), 1);
        complete(&mut queue, &mut burst, 0);
        next_avail = next_avail.wrapping_add(1);
        assert_eq!(queue.stop(), at(next_avail));
        assert_eq!(driver.reclaim(), Some((0, 0)), "a stop publishes");
        assert_eq!(driver.reclaim(), None);
    }
}

/// The smallest ring and the largest, filled to the brim across the wrap of the index.
#[test]
fn sizes_from_1_to_32768_work() {
    for size in [1u16, 32768] {
        let mut driver = Driver::new(size, 65535);
        let mut queue = driver.start(RING_EVENT_IDX);
        let mut burst = Burst::default();
        for head in 0..size {
            driver.set_descriptor(head, buffer(0), u32::from(head) + 1, DESC_F_WRITE, 0);
        }
        for _ in 0..3 {
            (0..size).for_each(|head| driver.offer(head));
            let mut taken = 0;
            while take(&mut queue, &mut burst) > 0 {
                while let Some(chain) = burst.next() {
                    taken += 1;
                    assert_eq!(chain.writable_len(), taken);
                    queue.complete(chain, taken);
                }
            }
            assert_eq!(taken, u32::from(size));
            assert!(queue.publish());
            for head in 0..u32::from(size) {
                assert_eq!(driver.reclaim(), Some((head, head + 1)));
            }
            assert_eq!(driver.reclaim(), None);
            driver.set_used_event(driver.next_used);
        }
    }
}

/// One chain at a time, without a burst of the device's own size.
#[test]
fn chains_come_one_by_one() {
    let mut driver = Driver::new(4, 65535);
    let mut queue = driver.start(0);
    let mut burst = Burst::default();
    for head in 0..3 {
        driver.set_descriptor(head, buffer(0), u32::from(head) + 1, DESC_F_WRITE, 0);
        driver.offer(head);
    }
    driver.offer(7);
    for head in 0..3 {
        let chain = queue.next(&mut burst).expect("a good chain").expect("a chain");
        assert_eq!(chain.writable_len(), head + 1);
        queue.complete(chain, head);
        assert!(queue.publish());
        assert_eq!(driver.reclaim(), Some((head, head)));
    }
    let bad = QueueError::BadIndex { index: 7, size: 4 };
    assert_eq!(queue.next(&mut burst).err(), Some(bad));
    assert_eq!(queue.stop(), at(2));

    let mut queue = driver.start_at(0, driver.next_avail);
    assert!(queue.next(&mut burst).expect("a good ring").is_none());
}

/// Chains whose work goes on after their burst are completed in any order.
#[test]
fn chains_complete_in_any_order() {
    for base in BASES {
        let mut driver = Driver::new(4, base);
        let mut queue = driver.start(0);
        let mut burst = Burst::default();
        for head in 0..4 {
            driver.set_descriptor(head, buffer(0), 9, DESC_F_WRITE, 0);
            driver.offer(head);
        }
        let mut in_flight = Vec::new();
        while let Some(chain) = queue.next(&mut burst).expect("a good ring") {
            in_flight.push(Some(chain.detach()));
        }
        for head in [2, 0, 3, 1u16] {
            let chain = in_flight[usize::from(head)].take().expect("in flight");
            queue.complete(chain, head.into());
        }
        assert_eq!(driver.reclaim(), None, "not published yet");
        assert!(queue.publish());
        for head in [2, 0, 3, 1] {
            assert_eq!(driver.reclaim(), Some((head, head)));
        }
    }
}

/// A driver that makes more available than it has descriptors: no more are in flight than the ring is long,
/// and a device that sleeps does not spin on what it cannot take.
#[test]
fn no_more_are_in_flight_than_the_ring_is_long() {
    for base in BASES {
        let mut driver = Driver::new(4, base);
        let mut queue = driver.start(0);
        let mut burst = Burst::default();
        driver.set_descriptor(0, buffer(0), 9, 0, 0);
        (0..4).for_each(|_| driver.offer(0));
        let mut in_flight = Vec::new();
        while let Some(chain) = queue.next(&mut burst).expect("a good ring") {
            in_flight.push(chain.detach());
        }
        assert_eq!(in_flight.len(), 4);
        (0..4).for_each(|_| driver.offer(0));
        assert!(!queue.has_available());
        assert!(!queue.arm());
        assert_eq!(take(&mut queue, &mut burst), 0);
        for chain in in_flight.drain(..3) {
            queue.complete(chain, 0);
        }
        assert!(queue.arm());
        assert_eq!(queue.take(&mut burst, 2), Ok(2));
        assert_eq!(queue.take(&mut burst, 2), Ok(1), "one is in flight still");
        queue.rewind(&mut burst);
        assert!(queue.has_available());
        assert_eq!(take(&mut queue, &mut burst), 3);
    }
}

/// With `IN_ORDER`: a chain of a batch, device-writable or not, and what its used entry is told by.
fn in_order(base: u16, chains: &[bool]) -> Vec<(u32, u32)> {
    const UNWRITTEN: (u32, u32) = (u32::MAX, u32::MAX);
    let mut driver = Driver::new(16, base);
    let mut queue = driver.start(IN_ORDER);
    let mut burst = Burst::default();
    for (head, is_writable) in (0..).zip(chains) {
        let flags = if *is_writable { DESC_F_WRITE } else { 0 };
        driver.set_descriptor(head, buffer(0), 9, flags, 0);
        driver.offer(head);
        driver.set_used_entry(base.wrapping_add(head), UNWRITTEN.0, UNWRITTEN.1);
    }
    take(&mut queue, &mut burst);
    while let Some(chain) = burst.next() {
        let written = chain.writable_len();
        queue.complete(chain, written);
    }
    assert_eq!(driver.reclaim(), None, "not published yet");
    assert!(queue.publish());
    let count = chains.len() as u16;
    assert_eq!(driver.used_idx(), base.wrapping_add(count), "the index tells of all");
    (0..count).map(|i| driver.used_entry(base.wrapping_add(i))).filter(|entry| *entry != UNWRITTEN).collect()
}

/// [DEV-CORE-reserved-feature-bits-05] Chains are used in the order in which they were made available. A
/// batch that begins with device-readable chains tells of them by the last one, in the entry of the first;
/// chains with a device-writable part have an entry each, in their own place.
#[test]
fn in_order_merges_chains_that_are_only_read() {
    let (read, write) = (false, true);
    for base in BASES {
        assert_eq!(in_order(base, &[read]), [(0, 0)]);
        assert_eq!(in_order(base, &[read; 16]), [(15, 0)]);
        assert_eq!(in_order(base, &[write, write, write]), [(0, 9), (1, 9), (2, 9)]);
        assert_eq!(in_order(base, &[read, read, write]), [(1, 0), (2, 9)]);
        assert_eq!(in_order(base, &[write, read, read]), [(0, 9), (1, 0), (2, 0)]);
        assert_eq!(in_order(base, &[read, read, write, read, read]), [(1, 0), (2, 9), (3, 0), (4, 0)]);
    }
}

/// What is merged ends where it is published: the next batch has an entry of its own.
#[test]
fn in_order_batches_end_where_they_are_published() {
    let mut driver = Driver::new(8, 65534);
    let mut queue = driver.start(IN_ORDER);
    let mut burst = Burst::default();
    for head in 0..8 {
        driver.set_descriptor(head, buffer(0), 9, 0, 0);
        driver.offer(head);
    }
    for (batch, last) in [(3, 2), (1, 3), (4, 7)] {
        assert_eq!(queue.take(&mut burst, batch), Ok(batch));
        complete(&mut queue, &mut burst, 0);
        let _ = queue.publish();
        assert_eq!(driver.used_entry(driver.next_used), (last, 0));
        driver.next_used = driver.used_idx();
    }
    assert_eq!(driver.used_idx(), 65534u16.wrapping_add(8));
}

/// Without `IN_ORDER` every chain has its entry.
#[test]
fn chains_are_not_merged_without_in_order() {
    let mut driver = Driver::new(4, 65534);
    let mut queue = driver.start(0);
    let mut burst = Burst::default();
    for head in 0..3 {
        driver.set_descriptor(head, buffer(0), 9, 0, 0);
        driver.offer(head);
    }
    take(&mut queue, &mut burst);
    complete(&mut queue, &mut burst, 0);
    let _ = queue.publish();
    assert_eq!([driver.reclaim(), driver.reclaim(), driver.reclaim()], [0, 1, 2].map(|head| Some((head, 0))));
}

/// [DEV-CORE-virtqueue-reset-01] [DEV-CORE-virtqueue-reset-02] [DEV-CORE-virtqueue-re-enable-01]
/// [DEV-CORE-device-reset-02] A queue is reset by dropping it: the ring stays as it is, also with chains
/// waiting, in flight, and completed but not published. Started again it begins from the start, with the size
/// it has now.
#[test]
fn a_dropped_queue_leaves_the_ring_and_starts_anew() {
    let mut driver = Driver::new(8, 0);
    for size in [4, 16, 1, 8] {
        let mut queue = driver.start(RING_EVENT_IDX);
        let mut burst = Burst::default();
        driver.set_descriptor(0, buffer(0), 9, DESC_F_WRITE, 0);
        (0..driver.size).for_each(|_| driver.offer(0));
        assert_eq!(take(&mut queue, &mut burst), driver.size.into());
        let mut complete_next = |queue: &mut DeviceQueue| {
            if let Some(chain) = burst.next() {
                queue.complete(chain, 9);
            }
        };
        complete_next(&mut queue);
        assert!(queue.publish());
        assert_eq!(driver.reclaim(), Some((0, 9)));
        complete_next(&mut queue);
        let _in_flight = burst.next().map(Chain::detach);
        let before = driver.guest.ring_bytes();
        drop(queue);
        drop(burst);
        assert!(driver.guest.ring_bytes() == before, "nothing is written by a reset");
        assert_eq!(driver.reclaim(), None);

        driver = Driver::in_guest(driver.guest, size, 0);
    }
}

/// A queue of an impossible size, state or area is not started, and its ring not touched.
#[test]
fn configurations_are_checked() {
    let driver = Driver::new(4, 0);
    driver.set_used_entry(0, 7, 7);
    let before = driver.guest.ring_bytes();
    let start = |size, areas, resume| {
        let memory = driver.guest.memory.clone();
        let config = QueueConfig {
            size,
            features: RING_EVENT_IDX,
            areas,
            memory,
            used_log: None,
            resume,
            inflight: None,
        };
        DeviceQueue::start(config).map(|queue| queue.size())
    };
    for size in [0, 3, 5, 6, 32767, 32769, 65535] {
        assert_eq!(start(size, driver.guest.areas(4, 0), at(0)), Err(ConfigError::BadSplitSize(size)));
    }
    let packed = ResumeState::Packed { avail: Cursor::START, used: Cursor::START };
    let bad = ConfigError::BadResume { size: 4, resume: packed };
    assert_eq!(start(4, driver.guest.areas(4, 0), packed), Err(bad));

    let area = |len| driver.guest.memory.area(FrontendVa(common::FRONTEND), len, 4).expect("an area");
    let small = |lens: [usize; 3]| {
        let [descriptor, driver, device] = lens.map(area);
        start(4, Areas { descriptor, driver, device }, at(0)).expect_err("too small")
    };
    assert_eq!(small([63, 14, 38]), ConfigError::SmallArea { needed: 64, len: 63 });
    assert_eq!(small([64, 13, 38]), ConfigError::SmallArea { needed: 14, len: 13 });
    assert_eq!(small([64, 14, 37]), ConfigError::SmallArea { needed: 38, len: 37 });
    assert!(driver.guest.ring_bytes() == before);
    assert_eq!(start(4, driver.guest.areas(4, 0), at(0)), Ok(4));
}

#[test]
fn areas_are_checked() {
    let driver = Driver::new(4, 0);
    let (start, end) = (common::FRONTEND, common::FRONTEND + LEN);
    let resolve = |memory: &MemoryTable, desc, avail, used| {
        let [desc, avail, used] = [desc, avail, used].map(FrontendVa);
        Areas::resolve(memory, 256, 0, desc, avail, used).map(|_| ())
    };
    assert_eq!(resolve(&driver.guest.memory, start, start, start), Ok(()));
    let unmapped = |addr, len| Err(MemoryError::UnmappedArea { addr: FrontendVa(addr), len });
    for addr in [0, start - 16, end, end - 4096 + 16, u64::MAX - 15] {
        assert_eq!(resolve(&driver.guest.memory, addr, start, start), unmapped(addr, 4096));
    }
    assert_eq!(resolve(&driver.guest.memory, start, end - 516, start), unmapped(end - 516, 518));
    assert_eq!(resolve(&driver.guest.memory, start, start, end - 2052), unmapped(end - 2052, 2054));
    for (desc, avail, used, addr, align) in
        [(8, 0, 0, 8, 16), (0, 1, 0, 1, 2), (0, 0, 2, 2, 4), (0, 0, 1, 1, 4)]
    {
        let error = MemoryError::Misaligned { addr: FrontendVa(start + addr), align };
        assert_eq!(resolve(&driver.guest.memory, start + desc, start + avail, start + used), Err(error));
    }
}
