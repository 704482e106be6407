//! The device's half of a split ring, against a driver's half written for these tests.

mod common;

use common::{BASE, BUFFERS, Driver, LEN};
use ringway_memory::{FrontendVa, Gpa, MemoryError, MemoryTable};
use ringway_queue::{Areas, Burst, ConfigError, DeviceQueue, QueueConfig, QueueError, ResumeState};
use ringway_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use ringway_spec::split::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

/// Ring bases near every wrap of a 16-bit index and of small rings.
const BASES: [u16; 6] = [0, 1, 255, 65533, 65534, 65535];

fn buffer(n: u64) -> u64 {
    BASE + BUFFERS + n * 0x1000
}

/// Takes all that is available, one burst.
fn take(queue: &mut DeviceQueue, burst: &mut Burst) -> usize {
    queue.take(burst, 64).expect("a good ring")
}

/// Completes every chain of a burst with what `work` wrote.
fn complete(queue: &mut DeviceQueue, burst: &mut Burst, written: u32) {
    while let Some(chain) = burst.next() {
        queue.complete(chain, written);
    }
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
                driver.write(buffer(0), format!("{round:05}").as_bytes());
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
                assert_eq!(driver.read(buffer(1), 5), format!("{round:05}").into_bytes());
                assert_eq!(driver.read(buffer(0), 5), format!("{round:05}").into_bytes(), "not written to");
            }
            assert_eq!(driver.descriptors(), table);
            assert_eq!(queue.stop(), ResumeState { next_avail: base.wrapping_add(600) });
        }
    }
}

/// [DEV-SPLIT-used-buffer-notification-suppression-04] [DEV-SPLIT-used-buffer-notification-suppression-05]
/// [DEV-SPLIT-used-buffer-notification-suppression-06] With EVENT_IDX the driver is called exactly if
/// `used_event` lies in what was published, whatever the flag says; bursts included.
#[test]
fn event_idx_calls_when_the_event_is_passed() {
    for base in BASES {
        for count in [1i16, 2, 7] {
            for offset in -3i16..12 {
                for flags in [0, 1] {
                    let mut driver = Driver::new(8, base);
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
}

/// [DEV-SPLIT-available-buffer-notification-suppression-05] Arming sees a chain that came before it; looking at
/// an empty ring, as after a kick for nothing, is no error.
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
            driver.write(at, piece);
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

/// Address, length, flags, next.
type Entry = (u64, u32, u16, u16);

fn write_table(driver: &Driver, at: u64, entries: &[Entry]) {
    for (entry, i) in entries.iter().zip(0..) {
        let (addr, len, flags, next) = *entry;
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        driver.write(at + i * 16, &bytes);
    }
}

/// [DEV-SPLIT-indirect-descriptors-01] [DEV-SPLIT-indirect-descriptors-02] Zero and more descriptors before an
/// indirect one, which may carry a meaningless WRITE flag.
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
            write_table(
                &driver,
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
        write_table(&driver, table, entries);
        let mut queue = driver.start(RING_INDIRECT_DESC);
        let mut burst = Burst::default();
        driver.offer(0);
        let error = queue.take(&mut burst, 1).expect_err("malformed");
        driver.set_descriptor(0, buffer(0), 1, 0, 0);
        driver.offer(0);
        assert_eq!(queue.take(&mut burst, 1), Err(error), "the queue is stopped");
        assert!(!queue.has_available());
        assert!(burst.is_empty());
        assert_eq!(queue.stop().next_avail, 65535);
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
    assert_eq!(queue.stop().next_avail, 2);
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
        assert_eq!(queue.stop().next_avail, base.wrapping_add(2));
        assert_eq!(driver.reclaim(), Some((0, 1)));
        assert_eq!(driver.reclaim(), Some((1, 2)));
    }
}

/// A queue goes on where another stopped: the available index as it was told, the used index as the ring has it.
#[test]
fn a_queue_resumes() {
    let mut driver = Driver::new(4, 65534);
    driver.set_descriptor(0, buffer(0), 1, 0, 0);
    let mut state = ResumeState { next_avail: 65534 };
    for _ in 0..10 {
        let mut queue = driver.start_at(RING_EVENT_IDX, state.next_avail);
        let mut burst = Burst::default();
        driver.offer(0);
        assert_eq!(take(&mut queue, &mut burst), 1);
        complete(&mut queue, &mut burst, 0);
        state = queue.stop();
        assert_eq!(driver.reclaim(), Some((0, 0)), "a stop publishes");
        assert_eq!(driver.reclaim(), None);
    }
}

/// A queue of an impossible size or format is not started.
#[test]
fn configurations_are_checked() {
    let driver = Driver::new(4, 0);
    let config = |size, features| {
        let at = FrontendVa(common::FRONTEND);
        let areas = Areas::resolve_split(&driver.memory, 4, at, at, at).expect("areas");
        let memory = driver.memory.clone();
        DeviceQueue::start(QueueConfig { size, features, areas, memory, resume: ResumeState::default() })
            .err()
    };
    for size in [0, 3, 5, 32767, 32769, 65535] {
        assert_eq!(config(size, 0), Some(ConfigError::BadSize(size)));
    }
    assert_eq!(config(4, RING_PACKED), Some(ConfigError::Packed));
    assert_eq!(config(4, 0), None);
}

#[test]
fn areas_are_checked() {
    let driver = Driver::new(4, 0);
    let (start, end) = (common::FRONTEND, common::FRONTEND + LEN);
    let resolve = |memory: &MemoryTable, desc, avail, used| {
        Areas::resolve_split(memory, 256, FrontendVa(desc), FrontendVa(avail), FrontendVa(used)).map(|_| ())
    };
    assert_eq!(resolve(&driver.memory, start, start, start), Ok(()));
    let unmapped = |addr, len| Err(MemoryError::UnmappedArea { addr: FrontendVa(addr), len });
    for addr in [0, start - 16, end, end - 4096 + 16, u64::MAX - 15] {
        assert_eq!(resolve(&driver.memory, addr, start, start), unmapped(addr, 4096));
    }
    assert_eq!(resolve(&driver.memory, start, end - 516, start), unmapped(end - 516, 518));
    assert_eq!(resolve(&driver.memory, start, start, end - 2052), unmapped(end - 2052, 2054));
    for (desc, avail, used, addr, align) in
        [(8, 0, 0, 8, 16), (0, 1, 0, 1, 2), (0, 0, 2, 2, 4), (0, 0, 1, 1, 4)]
    {
        let error = MemoryError::Misaligned { addr: FrontendVa(start + addr), align };
        assert_eq!(resolve(&driver.memory, start + desc, start + avail, start + used), Err(error));
    }
}
