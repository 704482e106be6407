//! The device's half of a packed ring, against a driver's half written for these tests.

mod common;
#[path = "packed/malformed.rs"]
mod malformed;
#[path = "packed/model.rs"]
mod model;
#[path = "packed/notifications.rs"]
mod notifications;
#[path = "packed/resume.rs"]
mod resume;

use std::sync::Arc;

use common::packed::{Buffer, Desc, Driver, LAP, Used, used};
use common::{FRONTEND, Guest, buffer, complete, take};
use ringway_memory::FrontendVa;
use ringway_queue::{Areas, Burst, Chain, ConfigError, DeviceQueue, QueueConfig, ResumeState};
use ringway_spec::feature::{IN_ORDER, RING_INDIRECT_DESC, RING_PACKED};
use ringway_spec::packed::{DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE};

/// Positions near the end of either lap.
fn positions(size: u16) -> impl Iterator<Item = u64> {
    let size = u64::from(size);
    [0, size - 1, size, 2 * size - 1].into_iter().chain(2 * size.max(3) - 3..2 * size)
}

/// [DEV-PACKED-desc-table-01] [DEV-PACKED-scatter-gather-support-01] Request and answer, across every wrap,
/// in chains of every length that go around the ring's edge: their buffers come in the order of the list, and
/// the answer's bytes are there when the used descriptor is. What is the driver's to write stays as it was.
#[test]
fn chains_go_round_across_every_wrap() {
    let guest = Guest::new();
    for size in [1, 2, 3, 5, 7, 8, 12, 256, 32768] {
        for start in positions(size) {
            let mut driver = Driver::in_guest(guest.clone(), size, start);
            let mut queue = driver.start(0);
            let mut burst = Burst::default();
            let end = start + u64::from(size.min(300)) * 2 + 20;
            let mut round = 0;
            while driver.avail < end {
                // All lengths, and in each all ways to part it.
                let slots = 1 + round % u64::from(size.min(6));
                let readable = round / 6 % (slots + 1);
                let request: Vec<u8> = (0..readable * 3).map(|i| (round * 7 + i) as u8).collect();
                let mut buffers: Vec<Buffer> = Vec::new();
                for (piece, i) in request.chunks(3).zip(0..) {
                    driver.guest.write(buffer(i), piece);
                    buffers.push((buffer(i), 3, 0));
                }
                buffers.extend((readable..slots).map(|i| (buffer(i), 2, DESC_F_WRITE)));
                let id = (round * 31) as u16;
                driver.offer(id, &buffers);

                assert_eq!(take(&mut queue, &mut burst), 1);
                let chain = burst.next().expect("one chain");
                let mut got = vec![0; 100];
                assert_eq!(chain.readable().read(&mut got), request.len());
                assert_eq!(got[..request.len()], request);
                assert_eq!(u64::from(chain.writable_len()), (slots - readable) * 2);
                let answer: Vec<u8> =
                    (0..chain.writable_len()).map(|i| (round + 100) as u8 ^ i as u8).collect();
                let written = chain.writable().write(&answer) as u32;
                queue.complete(chain, written);
                assert_eq!(driver.peek(), None, "not published yet");
                assert!(queue.publish());
                assert_eq!(driver.reclaim(slots), Some(used(id, written)), "size {size}, round {round}");
                let answered = (readable..slots).flat_map(|i| driver.guest.read(buffer(i), 2));
                assert!(answered.eq(answer));
                let requested = (0..readable).flat_map(|i| driver.guest.read(buffer(i), 3));
                assert!(requested.eq(request), "not written to");
                round += 1;
            }
            assert_eq!(queue.stop(), driver.state(driver.avail, driver.used));
        }
    }
}

/// [DEV-PACKED-vq-01] Chains come in the order in which they are in the ring, whatever their IDs, whole rings
/// full of them.
#[test]
fn chains_come_in_the_order_of_the_ring() {
    let guest = Guest::new();
    for size in [1, 4, 5, 16, 32768] {
        for start in positions(size) {
            let mut driver = Driver::in_guest(guest.clone(), size, start);
            let mut queue = driver.start(0);
            let mut burst = Burst::default();
            for i in 0..size {
                driver.offer(i % 3, &[(buffer(0), u32::from(i) + 1, DESC_F_WRITE)]);
            }
            let mut next = 1;
            while take(&mut queue, &mut burst) > 0 {
                while let Some(chain) = burst.next() {
                    assert_eq!(chain.writable_len(), next);
                    next += 1;
                    queue.complete(chain, 0);
                }
            }
            assert_eq!(next, u32::from(size) + 1);
            assert!(queue.publish());
            let ids = std::iter::from_fn(|| driver.reclaim(1)).take(size.into());
            assert!(ids.eq((0..size).map(|i| used(i % 3, 0))));
        }
    }
}

/// [DEV-PACKED-desc-table-02] Of all that AVAIL and USED can be, one combination makes a slot available, and
/// it is the other one in the next lap.
#[test]
fn only_what_was_made_available_is_taken() {
    let guest = Guest::new();
    for size in [1, 3, 8] {
        for at in 0..2 * u64::from(size) {
            for lap_flags in [0, DESC_F_AVAIL, DESC_F_USED, DESC_F_AVAIL | DESC_F_USED] {
                let driver = Driver::in_guest(guest.clone(), size, at);
                let mut queue = driver.start(0);
                let mut burst = Burst::default();
                let others = DESC_F_WRITE | 0x3f00;
                driver.set(at, Desc { addr: buffer(0), len: 5, id: 0, flags: lap_flags | others });
                let expected = if at < u64::from(size) { DESC_F_AVAIL } else { DESC_F_USED };
                assert_eq!(queue.has_available(), lap_flags == expected, "at {at} of {size}: {lap_flags:#x}");
                assert_eq!(take(&mut queue, &mut burst), usize::from(lap_flags == expected));
                complete(&mut queue, &mut burst, 0);
            }
        }
    }
}

/// [DEV-PACKED-desc-table-02] The same for every slot of a cache line: what comes after one that was not made available
/// is not taken either.
#[test]
fn only_what_was_made_available_of_a_line_is_taken() {
    let guest = Guest::new();
    for start in 0..32 {
        for odd in 0..8 {
            for lap_flags in [0, DESC_F_AVAIL, DESC_F_USED, DESC_F_AVAIL | DESC_F_USED] {
                let mut driver = Driver::in_guest(guest.clone(), 16, start);
                let mut queue = driver.start(0);
                let mut burst = Burst::default();
                (0..8).for_each(|id| driver.offer(id, &[(buffer(0), 5, 0)]));
                let at = start + odd;
                driver.set(at, Desc { flags: lap_flags, ..driver.desc(at) });
                let is_available = lap_flags == if at / 16 % 2 == 0 { DESC_F_AVAIL } else { DESC_F_USED };
                let expected = if is_available { 8 } else { odd as usize };
                assert_eq!(take(&mut queue, &mut burst), expected, "{lap_flags:#x} at {at} from {start}");
                complete(&mut queue, &mut burst, 0);
            }
        }
    }
}

/// [DEV-PACKED-vq-02] [DEV-PACKED-desc-table-03] Used descriptors are written in the order of completion, one
/// after the other by the slots of their chains, and nothing else of the ring is written: not the address of
/// a slot, not a slot in between, and none that was used before.
#[test]
fn used_descriptors_stand_where_the_driver_looks() {
    let guest = Guest::new();
    for size in [8, 9, 12] {
        for start in 0..2 * u64::from(size) {
            let mut driver = Driver::in_guest(guest.clone(), size, start);
            let mut queue = driver.start(0);
            let mut burst = Burst::default();
            let (read, write) = ((buffer(0), 10, 0), (buffer(1), 20, DESC_F_WRITE));
            driver.offer(7, &[read, write]);
            driver.offer(5, &[write]);
            driver.offer(9, &[read, read, write]);
            driver.offer(6, &[write, write]);
            let mut expected = driver.ring();

            assert_eq!(take(&mut queue, &mut burst), 4);
            let mut chains: Vec<_> = std::iter::from_fn(|| burst.next().map(Chain::detach)).collect();
            // The last first; one wrote nothing where it could have.
            let mut used_at = |position, id, len, flags| {
                let slot = &mut expected[usize::from(driver.slot(position))];
                let flags = flags | driver.used_flags(position);
                *slot = Desc { addr: slot.addr, len, id, flags };
            };
            used_at(start, 6, 33, DESC_F_WRITE);
            used_at(start + 2, 7, 0, 0);
            used_at(start + 4, 9, 20, DESC_F_WRITE);
            used_at(start + 7, 5, 1, DESC_F_WRITE);
            queue.complete(chains.remove(3), 33);
            queue.complete(chains.remove(0), 0);
            queue.complete(chains.remove(1), 20);
            assert_eq!(driver.peek(), None, "not published yet");
            assert!(queue.publish());
            assert_eq!(driver.reclaim(2), Some(used(6, 33)));
            assert_eq!(driver.reclaim(2), Some(used(7, 0)));
            assert_eq!(driver.reclaim(3), Some(used(9, 20)));
            assert_eq!(driver.peek(), None, "the last one is in flight");

            queue.complete(chains.remove(0), 1);
            assert_eq!(driver.peek(), None);
            assert!(queue.publish());
            assert_eq!(driver.reclaim(1), Some(used(5, 1)));
            queue.suppress();
            assert!(!queue.arm());
            assert!(!queue.publish());
            let _ = queue.stop();
            assert_eq!(driver.ring(), expected, "size {size} from {start}");
        }
    }
}

/// What the driver sees before a burst is published: the slot where it looks is as it left it, whatever was
/// written behind.
#[test]
fn nothing_is_visible_before_it_is_published() {
    let guest = Guest::new();
    for size in [3, 8] {
        for start in 0..2 * u64::from(size) {
            let mut driver = Driver::in_guest(guest.clone(), size, start);
            let mut queue = driver.start(0);
            let mut burst = Burst::default();
            (0..3).for_each(|id| driver.offer(id, &[(buffer(0), 4, DESC_F_WRITE)]));
            let first = driver.desc(start);
            assert_eq!(take(&mut queue, &mut burst), 3);
            while let Some(chain) = burst.next() {
                queue.complete(chain, 4);
                assert_eq!(driver.desc(start), first);
            }
            assert!(queue.publish());
            for id in 0..3 {
                assert_eq!(driver.reclaim(1), Some(used(id, 4)));
            }
        }
    }
}

/// With `IN_ORDER`: what a batch of chains, each of some slots and device-writable or not, is told by. Slots
/// are counted from the batch's first.
fn in_order(guest: &Guest, start: u64, chains: &[(usize, bool)]) -> Vec<(u64, Used)> {
    let mut driver = Driver::in_guest(guest.clone(), 13, start);
    let mut queue = driver.start(IN_ORDER);
    let mut burst = Burst::default();
    for (id, (slots, is_writable)) in (0..).zip(chains) {
        let flags = if *is_writable { DESC_F_WRITE } else { 0 };
        driver.offer(id, &vec![(buffer(0), 9, flags); *slots]);
    }
    take(&mut queue, &mut burst);
    while let Some(chain) = burst.next() {
        let written = chain.writable_len();
        queue.complete(chain, written);
    }
    assert_eq!(driver.peek(), None, "not published yet");
    assert!(queue.publish());
    assert_eq!(queue.stop(), driver.state(driver.avail, driver.avail));
    let mut written = Vec::new();
    for offset in 0..driver.avail - start {
        driver.used = start + offset;
        written.extend(driver.peek().map(|used| (offset, used)));
    }
    written
}

/// [DEV-CORE-reserved-feature-bits-05] Chains are used in the order in which they were made available. A
/// batch that begins with device-readable chains tells of them by the last one, in the slot of the first;
/// chains with a device-writable part have a used descriptor each, in their own place.
#[test]
fn in_order_merges_chains_that_are_only_read() {
    let (read, write) = ((1, false), (1, true));
    let guest = Guest::new();
    for start in 0..26 {
        let in_order = |chains: &[_]| in_order(&guest, start, chains);
        assert_eq!(in_order(&[read]), [(0, used(0, 0))]);
        assert_eq!(in_order(&[read; 13]), [(0, used(12, 0))]);
        assert_eq!(in_order(&[(4, false), (1, false), (3, false)]), [(0, used(2, 0))]);
        assert_eq!(in_order(&[write, write, write]), [(0, used(0, 9)), (1, used(1, 9)), (2, used(2, 9))]);
        assert_eq!(in_order(&[read, (2, false), write]), [(0, used(1, 0)), (3, used(2, 9))]);
        assert_eq!(in_order(&[write, read, read]), [(0, used(0, 9)), (1, used(1, 0)), (2, used(2, 0))]);
        assert_eq!(
            in_order(&[(2, false), read, (3, true), read, (2, false), (2, true)]),
            [(0, used(1, 0)), (3, used(2, 27)), (6, used(3, 0)), (7, used(4, 0)), (9, used(5, 18))]
        );
    }
}

/// What is merged ends where it is published: the next batch has a used descriptor of its own.
#[test]
fn in_order_batches_end_where_they_are_published() {
    let mut driver = Driver::new(7, 5);
    let mut queue = driver.start(IN_ORDER);
    let mut burst = Burst::default();
    (0..7).for_each(|id| driver.offer(id, &[(buffer(0), 9, 0)]));
    for (batch, last) in [(3, 2), (1, 3), (3, 6)] {
        assert_eq!(queue.take(&mut burst, batch), Ok(batch));
        complete(&mut queue, &mut burst, 0);
        assert!(queue.publish());
        assert_eq!(driver.reclaim(batch as u64), Some(used(last, 0)));
        assert_eq!(driver.peek(), None);
    }
}

/// Indirect tables are sized by the length of the descriptor that refers to them, whose WRITE flag means
/// nothing. In a table only WRITE means something. Its chain takes one slot.
#[test]
fn indirect_tables_are_sized_by_their_length() {
    let guest = Guest::new();
    let table = buffer(8) + 4;
    for start in 0..10 {
        for flag in [0, DESC_F_WRITE] {
            for (entries, readable, writable) in
                [(1, 7, 0), (2, 17, 0), (3, 17, 9), (4, 17, 9), (5, 17, 1009)]
            {
                let mut driver = Driver::in_guest(guest.clone(), 5, start);
                let mut queue = driver.start(RING_INDIRECT_DESC);
                let mut burst = Burst::default();
                driver.guest.write(buffer(9), b"request");
                driver.guest.write(buffer(10), b"'s payload");
                driver.guest.write_table(
                    table,
                    &[
                        (buffer(9), 7, 9, 0),
                        (buffer(10), 10, 0, DESC_F_NEXT),
                        (buffer(11), 9, 77, DESC_F_WRITE | LAP),
                        (buffer(12), 0, 0, DESC_F_WRITE | DESC_F_NEXT | DESC_F_INDIRECT),
                        (buffer(13), 1000, 0, DESC_F_WRITE),
                    ],
                );
                driver.offer(3, &[(table, entries * 16, DESC_F_INDIRECT | flag)]);
                driver.offer(4, &[(buffer(0), 1, 0)]);
                assert_eq!(take(&mut queue, &mut burst), 2);
                let chain = burst.next().expect("a chain");
                let mut got = [0; 100];
                assert_eq!(chain.readable().read(&mut got), readable);
                assert_eq!(got[..readable], b"request's payload"[..readable]);
                assert_eq!(chain.writable_len(), writable);
                queue.complete(chain, writable);
                complete(&mut queue, &mut burst, 0);
                assert!(queue.publish());
                assert_eq!(driver.reclaim(1), Some(used(3, writable)));
                assert_eq!(driver.reclaim(1), Some(used(4, 0)));
            }
        }
    }
}

/// A table may be longer than the ring, up to what a chain may have.
#[test]
fn indirect_tables_have_up_to_1024_entries() {
    let mut driver = Driver::new(1, 0);
    let mut queue = driver.start(RING_INDIRECT_DESC);
    let mut burst = Burst::default();
    driver.guest.write_table(buffer(8), &[(buffer(0), 4, 0, DESC_F_WRITE); 1024]);
    driver.offer(0, &[(buffer(8), 1024 * 16, DESC_F_INDIRECT)]);
    assert_eq!(take(&mut queue, &mut burst), 1);
    assert!(burst.writable_lens().eq([4096]));
    complete(&mut queue, &mut burst, 0);
}

/// Chains given back are taken again, the same ones in the same order, chains of several slots among them.
#[test]
fn rewound_chains_come_again() {
    let guest = Guest::new();
    for start in 0..18 {
        let mut driver = Driver::in_guest(guest.clone(), 9, start);
        let mut queue = driver.start(0);
        let mut burst = Burst::default();
        for (id, slots) in [(0, 1), (1, 2), (2, 1), (3, 3), (4, 1), (5, 1)] {
            driver.offer(id, &vec![(buffer(0), u32::from(id) + 1, DESC_F_WRITE); slots]);
        }
        assert_eq!(queue.take(&mut burst, 4), Ok(4));
        let chain = burst.next().expect("a chain");
        queue.complete(chain, 1);
        queue.rewind(&mut burst);
        assert!(burst.is_empty());
        assert_eq!(queue.take(&mut burst, 2), Ok(2));
        assert_eq!(queue.take(&mut burst, 9), Ok(3), "appended to those that wait");
        assert!(burst.writable_lens().eq([4, 3, 12, 5, 6]));
        let first = burst.next().expect("a chain");
        queue.complete(first, 2);
        queue.rewind(&mut burst);
        assert!(queue.has_available());
        assert_eq!(queue.stop(), driver.state(start + 3, start + 3));
        assert_eq!(driver.reclaim(1), Some(used(0, 1)));
        assert_eq!(driver.reclaim(2), Some(used(1, 2)));
        assert_eq!(driver.peek(), None);
    }
}

/// One chain at a time, without a burst of the device's own size; and completed after the burst, the last
/// first.
#[test]
fn chains_come_one_by_one_and_complete_in_any_order() {
    let mut driver = Driver::new(5, 9);
    let mut queue = driver.start(0);
    let mut burst = Burst::default();
    (0..5).for_each(|id| driver.offer(id, &[(buffer(0), 9, DESC_F_WRITE)]));
    let mut in_flight = Vec::new();
    while let Some(chain) = queue.next(&mut burst).expect("a good ring") {
        in_flight.push(chain.detach());
    }
    assert_eq!(in_flight.len(), 5);
    for (chain, id) in in_flight.into_iter().rev().zip((0..5).rev()) {
        queue.complete(chain, id);
    }
    assert!(queue.publish());
    for id in (0..5).rev() {
        assert_eq!(driver.reclaim(1), Some(used(id, id.into())));
    }
    assert!(queue.next(&mut burst).expect("a good ring").is_none());
}

/// A driver that makes slots available again before it saw them used: no more are in flight than the ring is
/// long, and a device that sleeps does not spin on what it cannot take.
#[test]
fn no_more_are_in_flight_than_the_ring_is_long() {
    let guest = Guest::new();
    for size in [1, 3, 4, 8] {
        for start in 0..2 * u64::from(size) {
            let mut driver = Driver::in_guest(guest.clone(), size, start);
            let mut queue = driver.start(0);
            let mut burst = Burst::default();
            let mut in_flight = Vec::new();
            (0..size).for_each(|id| driver.offer(id, &[(buffer(0), 9, 0)]));
            while let Some(chain) = queue.next(&mut burst).expect("a good ring") {
                in_flight.push(chain.detach());
            }
            assert_eq!(in_flight.len(), size.into());
            (0..size).for_each(|id| driver.offer(id, &[(buffer(0), 9, 0)]));
            assert!(!queue.has_available());
            assert!(!queue.arm());
            assert_eq!(take(&mut queue, &mut burst), 0);
            queue.complete(in_flight.remove(0), 0);
            assert!(queue.arm());
            assert_eq!(take(&mut queue, &mut burst), 1);
            assert!(!queue.has_available());
            queue.rewind(&mut burst);
            assert!(queue.has_available());
        }
    }
}

/// [DEV-CORE-virtqueue-reset-01] [DEV-CORE-virtqueue-reset-02] [DEV-CORE-virtqueue-re-enable-01]
/// [DEV-CORE-device-reset-02] A queue is reset by dropping it: the ring stays as it is, also with chains
/// waiting, in flight, and completed but not published. Started again it begins from the start, with the size
/// it has now.
#[test]
fn a_dropped_queue_leaves_the_ring_and_starts_anew() {
    let mut driver = Driver::new(9, 0);
    for size in [4, 32768, 1, 7] {
        let mut queue = driver.start(0);
        let mut burst = Burst::default();
        let slots = driver.size.min(60);
        (0..slots).for_each(|id| driver.offer(id, &[(buffer(0), 9, DESC_F_WRITE)]));
        assert_eq!(take(&mut queue, &mut burst), slots.into());
        let mut complete_next = |queue: &mut DeviceQueue| {
            if let Some(chain) = burst.next() {
                queue.complete(chain, 9);
            }
        };
        complete_next(&mut queue);
        assert!(queue.publish());
        assert_eq!(driver.reclaim(1), Some(used(0, 9)));
        complete_next(&mut queue);
        complete_next(&mut queue);
        let _in_flight = burst.next().map(Chain::detach);
        let before = driver.guest.ring_bytes();
        drop(queue);
        drop(burst);
        assert!(driver.guest.ring_bytes() == before, "nothing is written by a reset");
        assert_eq!(driver.peek(), None);

        driver = Driver::in_guest(driver.guest, size, 0);
    }
}

/// A device that only reads may take all of a table for readable; what is in the ring stays what it is.
#[test]
fn the_write_flag_of_tables_can_be_ignored() {
    let guest = Guest::new();
    guest.write_table(buffer(8), &[(buffer(0), 12, 0, DESC_F_WRITE), (buffer(1), 60, 0, 0)]);
    let mut driver = Driver::in_guest(guest, 8, 3);
    let mut queue = driver.start(RING_INDIRECT_DESC);
    queue.ignore_write_flag_in_tables();
    let mut burst = Burst::default();
    driver.offer(1, &[(buffer(8), 32, DESC_F_INDIRECT)]);
    driver.offer(2, &[(buffer(1), 60, 0), (buffer(0), 12, DESC_F_WRITE)]);
    assert_eq!(take(&mut queue, &mut burst), 2);
    for lens in [(72, 0), (60, 12)] {
        let chain = burst.next().expect("a chain");
        assert_eq!((chain.readable().len(), chain.writable_len()), lens);
        queue.complete(chain, 0);
    }
    assert!(queue.publish());
    assert_eq!((driver.reclaim(1), driver.reclaim(2)), (Some(used(1, 0)), Some(used(2, 0))));
    driver.offer(3, &[(buffer(0), 12, DESC_F_WRITE), (buffer(1), 60, 0)]);
    assert!(queue.take(&mut burst, 1).is_err(), "not in a table");
}

/// Areas that do not lie where their alignment allows are of no queue, wherever they come from.
#[test]
fn areas_must_be_aligned() {
    let memory = Guest::new().memory;
    let area = |offset: u64, len| memory.area(FrontendVa(FRONTEND + offset), len, 1).expect("in memory");
    for (offsets, align) in [([8, 0x100, 0x200], 16), ([0, 0x102, 0x200], 4), ([0, 0x100, 0x201], 4)] {
        let [descriptor, driver, device] = offsets.map(|offset| area(offset, 64));
        let config = QueueConfig {
            size: 4,
            features: RING_PACKED,
            areas: Areas { descriptor, driver, device },
            memory: Arc::clone(&memory),
            used_log: None,
            resume: ResumeState::start(RING_PACKED),
            inflight: None,
        };
        assert_eq!(DeviceQueue::start(config).err(), Some(ConfigError::MisalignedArea { align }));
    }
}
