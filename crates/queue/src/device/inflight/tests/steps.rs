//! The document's steps, one by one; what a region may hold, and what is refused.

use std::vec;

use proptest::prelude::*;
use ringway_spec::packed as ring;

use super::super::{DESC_NUM, FEATURES, InflightError, REGION_VERSION, VERSION, packed, split};
use super::*;

fn world(features: u64, size: u16, start: u16) -> World {
    World::new(Setup { size, features, start, seed: 1 })
}

impl Process {
    /// Takes up to `max` chains and returns their tags.
    fn take(&mut self, max: usize) -> Vec<u32> {
        self.queue.take(&mut self.burst, max).expect("a good ring");
        let before = self.in_flight.len();
        self.in_flight.extend(std::iter::from_fn(|| next(&mut self.burst)));
        self.in_flight.iter().skip(before).map(|(tag, ..)| *tag).collect()
    }

    fn complete(&mut self, which: usize) {
        let (_, _, chain) = self.in_flight.remove(which).expect("a chain in flight");
        self.queue.complete(chain, 0);
    }

    fn publish(&mut self) {
        let _ = self.queue.publish();
    }
}

/// A field of a state.
fn split_state(head: u16, offset: usize) -> usize {
    split::HEAD_SIZE + usize::from(head) * split::STATE_SIZE + offset
}

fn packed_state(index: u16, offset: usize) -> usize {
    packed::HEAD_SIZE + usize::from(index) * packed::STATE_SIZE + offset
}

/// The head in the available ring at `index`.
fn available(world: &World, index: u16) -> u16 {
    let size = usize::from(world.setup.size);
    let ring = world.memory.area(FrontendVa(DRIVER), 4 + 2 * size, 2).expect("the available ring");
    ring.load_u16(4 + 2 * (usize::from(index) % size))
}

fn used_idx(world: &World) -> u16 {
    areas(&world.memory, world.setup).device.load_u16(IDX)
}

#[test]
fn a_new_region_is_initialised() {
    for features in [0, RING_PACKED] {
        let world = world(features, 4, 2);
        let region = world.region();
        world.start();
        assert_eq!((region.load_u64(FEATURES), region.load_u16(REGION_VERSION)), (0, VERSION));
        assert_eq!(region.load_u16(DESC_NUM), 4);
    }
}

/// [VU-BE-inflight-i-o-tracking-01] [VU-BE-inflight-i-o-tracking-02] [VU-BE-inflight-i-o-tracking-03]
/// [VU-BE-inflight-i-o-tracking-04] a chain taken from a split ring is recorded by its head, with the number of
/// those before it, and a chain that is not taken is not.
#[test]
fn what_is_taken_from_a_split_ring_is_recorded() {
    let mut world = world(0, 4, 65534);
    let (region, mut process) = (world.region(), world.start());
    for _ in 0..4 {
        world.add_chain(1, 0);
    }
    assert_eq!(process.take(3), [0, 1, 2]);
    for (counter, index) in (0..3).zip([65534, 65535, 0]) {
        let head = available(&world, index);
        assert_eq!(region.load_u16(split_state(head, split::INFLIGHT)), 1);
        assert_eq!(region.load_u64(split_state(head, split::COUNTER)), counter);
    }
    assert_eq!(region.load_u16(split_state(available(&world, 1), split::INFLIGHT)), 0);
}

/// [VU-BE-inflight-i-o-tracking-05] [VU-BE-inflight-i-o-tracking-06] [VU-BE-inflight-i-o-tracking-07]
/// [VU-BE-inflight-i-o-tracking-08] [VU-BE-inflight-i-o-tracking-09] [VU-BE-inflight-i-o-tracking-10]
/// [VU-BE-inflight-i-o-tracking-11] a batch of a split ring is a list before the used index passes it, is recorded
/// until then, and has its states cleared before the region's used index follows. Killed at any store in between, the
/// device leaves the stores before it.
#[test]
fn a_batch_of_a_split_ring_is_used_step_by_step() {
    for stores in 0.. {
        let mut world = world(0, 4, 65534);
        let (region, mut process) = (world.region(), world.start());
        (0..3).for_each(|_| world.add_chain(1, 0));
        process.take(3);
        let heads = [65534, 65535, 0].map(|index| available(&world, index));
        // The third, then the first.
        process.complete(2);
        process.complete(0);
        let is_done = until_killed(&mut { stores }, || process.publish()).is_some();

        let is_list = region.load_u16(split::LAST_BATCH_HEAD) == heads[0]
            && region.load_u16(split_state(heads[0], split::NEXT)) == heads[2];
        let is_used = used_idx(&world) == 0;
        let [first, second, third] =
            heads.map(|head| region.load_u16(split_state(head, split::INFLIGHT)) == 1);
        let is_recorded_used = region.load_u16(split::USED_IDX) == 0;
        assert!(is_list || !is_used, "store {stores}");
        assert!(is_used || first && third, "store {stores}");
        assert!(!first && !third || !is_recorded_used, "store {stores}");
        assert!(second, "store {stores}");
        if is_done {
            assert!(is_list && is_used && is_recorded_used);
            break;
        }
    }
}

/// [VU-BE-inflight-i-o-tracking-12] [VU-BE-inflight-i-o-tracking-13] [VU-BE-inflight-i-o-tracking-14]
/// [VU-BE-inflight-i-o-tracking-15] of a split ring, the last batch is as long as the ring's used index is ahead of the
/// region's; its states are cleared, the others taken again in the order of their counters.
#[test]
fn a_split_queue_finishes_the_last_batch() {
    let mut world = world(0, 8, 65534);
    let (region, mut process) = (world.region(), world.start());
    (0..6).for_each(|_| world.add_chain(1, 0));
    process.take(5);
    let heads = [65534, 65535, 0, 1, 2].map(|index| available(&world, index));
    for which in [4, 1] {
        process.complete(which);
    }
    process.publish();
    drop(process);
    // As if it had been killed before it cleared them; and two that were taken the other way round.
    for head in [heads[4], heads[1]] {
        region.store_u16(split_state(head, split::INFLIGHT), 1);
    }
    region.store_u16(split::USED_IDX, 65534);
    region.store_u64(split_state(heads[0], split::COUNTER), 9);

    let mut process = world.start();
    for (head, inflight) in heads.into_iter().zip([1, 0, 1, 1, 0]) {
        assert_eq!(region.load_u16(split_state(head, split::INFLIGHT)), inflight);
    }
    assert_eq!(region.load_u16(split::USED_IDX), 0);
    assert!(process.queue.has_available());
    // 5 was available all the time, and is taken from the ring.
    assert_eq!(process.take(9), [2, 3, 0, 5]);
    // Numbers go on behind the largest.
    assert_eq!(region.load_u64(split_state(available(&world, 3), split::COUNTER)), 10);
}

/// [VU-BE-inflight-i-o-tracking-16] [VU-BE-inflight-i-o-tracking-17] [VU-BE-inflight-i-o-tracking-18]
/// [VU-BE-inflight-i-o-tracking-19] [VU-BE-inflight-i-o-tracking-20] [VU-BE-inflight-i-o-tracking-21]
/// [VU-BE-inflight-i-o-tracking-22] [VU-BE-inflight-i-o-tracking-23] [VU-BE-inflight-i-o-tracking-24]
/// [VU-BE-inflight-i-o-tracking-25] a chain taken from a packed ring is copied to free states, and these are free no
/// more.
#[test]
fn what_is_taken_from_a_packed_ring_is_copied() {
    let mut world = world(RING_PACKED, 5, 0);
    let (region, mut process) = (world.region(), world.start());
    world.add_chain(2, 1);
    world.add_chain(1, 0);
    assert_eq!(process.take(9), [0, 1]);
    let ring = areas(&world.memory, world.setup).descriptor;
    for index in 0..4 {
        let at = usize::from(index) * ring::DESC_SIZE;
        let (addr, tail) = (ring.load_u64(at), ring.load_u64(at + ring::TAIL));
        let copy = region.load_u64(packed_state(index, packed::ID_FLAGS_LEN));
        let expected = (addr, ring::tail_id(tail), ring::tail_flags(tail), ring::tail_len(tail));
        let addr = region.load_u64(packed_state(index, packed::ADDR));
        assert_eq!((addr, copy as u16, (copy >> 16) as u16, (copy >> 32) as u32), expected);
    }
    for (head, counter, last, num) in [(0, 0, 2, 3), (3, 1, 3, 1)] {
        let field = |offset| region.load_u16(packed_state(head, offset));
        assert_eq!((field(packed::INFLIGHT), field(packed::LAST), field(packed::NUM)), (1, last, num));
        assert_eq!(region.load_u64(packed_state(head, packed::COUNTER)), counter);
    }
    for index in [1, 2, 4] {
        assert_eq!(region.load_u16(packed_state(index, packed::INFLIGHT)), 0);
    }
    assert_eq!((region.load_u16(packed::FREE_HEAD), region.load_u16(packed::OLD_FREE_HEAD)), (4, 4));
}

/// The used position and the old one, each as index and wrap counter.
fn positions(region: &RingArea) -> [(u16, u8); 2] {
    let word = region.load_u64(packed::POSITIONS);
    [(word as u16, (word >> 32) as u8), ((word >> 16) as u16, (word >> 40) as u8)]
}

/// [VU-BE-inflight-i-o-tracking-26] [VU-BE-inflight-i-o-tracking-27] [VU-BE-inflight-i-o-tracking-28]
/// [VU-BE-inflight-i-o-tracking-29] [VU-BE-inflight-i-o-tracking-30] [VU-BE-inflight-i-o-tracking-31]
/// [VU-BE-inflight-i-o-tracking-32] [VU-BE-inflight-i-o-tracking-33] [VU-BE-inflight-i-o-tracking-34] the states of a
/// batch of a packed ring are free and the used position has moved before the driver can see it used; then they are
/// cleared, and the old fields follow. Killed at any store in between, the device leaves the stores before it.
#[test]
fn a_batch_of_a_packed_ring_is_used_step_by_step() {
    for stores in 0.. {
        // Three slots from slot 3 of 5 on: the batch ends in the next lap.
        let mut world = world(RING_PACKED, 5, 3);
        let (region, mut process) = (world.region(), world.start());
        world.add_chain(1, 0);
        world.add_chain(2, 0);
        world.add_chain(1, 0);
        process.take(9);
        // The second, of two slots, then the first.
        process.complete(1);
        process.complete(0);
        let is_done = until_killed(&mut { stores }, || process.publish()).is_some();

        let [used, old] = positions(&region);
        let next = |index| region.load_u16(packed_state(index, packed::NEXT));
        let is_free = region.load_u16(packed::FREE_HEAD) == 0 && next(0) == 1 && next(2) == 4;
        let is_moved = used == (1, 0);
        let is_used = world.driver.has_used();
        let [first, second, third] =
            [0, 1, 3].map(|index| region.load_u16(packed_state(index, packed::INFLIGHT)) == 1);
        let has_followed = (region.load_u16(packed::OLD_FREE_HEAD) == 0, old == (1, 0));
        assert!(is_moved || used == (3, 1), "store {stores}");
        assert!(old == (1, 0) || old == (3, 1), "store {stores}");
        assert!(is_free || !is_moved, "store {stores}");
        assert!(is_moved || !is_used, "store {stores}");
        assert!(is_used || first && second, "store {stores}");
        assert!(!first && !second || has_followed == (false, false), "store {stores}");
        assert!(third, "store {stores}");
        if is_done {
            assert!(is_used && has_followed == (true, true));
            break;
        }
    }
}

/// [VU-BE-inflight-i-o-tracking-35] [VU-BE-inflight-i-o-tracking-36] [VU-BE-inflight-i-o-tracking-37]
/// [VU-BE-inflight-i-o-tracking-38] [VU-BE-inflight-i-o-tracking-39] [VU-BE-inflight-i-o-tracking-40] a batch of a packed
/// ring that the driver can see is carried out, another one is taken back; what is free is cleared, and the rest taken
/// again in the order of its counters. A batch may be all of the ring: then the wrap counters alone differ.
#[test]
fn a_packed_queue_carries_out_or_takes_back_the_last_batch() {
    for (batch, is_published) in [(2, false), (2, true), (4, false), (4, true)] {
        let mut world = world(RING_PACKED, 4, 3);
        let (region, mut process) = (world.region(), world.start());
        (0..4).for_each(|_| world.add_chain(1, 0));
        process.take(4);
        (0..batch).for_each(|_| process.complete(0));
        // Two stores for each chain and one for the positions; then the first used descriptor.
        let mut stores = 2 * batch + 1 + usize::from(is_published);
        assert!(until_killed(&mut stores, || process.publish()).is_none());
        let [used, old] = positions(&region);
        assert!(used != old && world.driver.has_used() == is_published);

        let mut process = world.start();
        let [now, old] = positions(&region);
        assert_eq!(now, if is_published { used } else { (3, 1) });
        assert_eq!((old, region.load_u16(packed::OLD_FREE_HEAD)), (now, region.load_u16(packed::FREE_HEAD)));
        let in_flight = (0..4).filter(|i| region.load_u16(packed_state(*i, packed::INFLIGHT)) == 1).count();
        let first = if is_published { batch as u32 } else { 0 };
        assert_eq!(in_flight, 4 - first as usize);
        assert_eq!(process.take(9), (first..4).collect::<Vec<_>>());
        drop(process);

        // The same, if the counters say so, the other way round.
        for (index, counter) in (first as u16..4).zip((0..4).rev()) {
            region.store_u64(packed_state(index, packed::COUNTER), counter);
        }
        assert_eq!(world.start().take(9), (first..4).rev().collect::<Vec<_>>());
    }
}

/// What is wrong with a region that these stores spoilt: it was one with three chains in flight, the second of two
/// descriptors, and one used.
fn refusal(features: u64, stores: &[(usize, u16)]) -> Option<ConfigError> {
    let mut world = world(features, 8, 0);
    let (region, mut process) = (world.region(), world.start());
    for readable in [1, 2, 1, 1] {
        world.add_chain(readable, 0);
    }
    process.take(9);
    process.complete(3);
    process.publish();
    drop(process);
    for (offset, value) in stores {
        region.store_u16(*offset, *value);
    }
    let before: Vec<_> = (0..region.len() / 8).map(|i| region.load_u64(i * 8)).collect();
    let error = world.try_start().err();
    let after: Vec<_> = (0..region.len() / 8).map(|i| region.load_u64(i * 8)).collect();
    assert!(error.is_none() || before == after, "a region that is refused is not written to");
    error
}

/// A format, what is stored to the region, and what is wrong then.
type Case<'a> = (u64, &'a [(usize, u16)], Option<InflightError>);

#[test]
fn a_region_that_no_device_wrote_is_refused() {
    use InflightError as E;
    let cases: [Case<'_>; 19] = [
        (0, &[], None),
        (0, &[(REGION_VERSION, 2)], Some(E::Version(2))),
        (0, &[(DESC_NUM, 4)], Some(E::Size { found: 4, size: 8 })),
        (0, &[(split::USED_IDX, 0), (split::LAST_BATCH_HEAD, 8)], Some(E::Index { index: 8, size: 8 })),
        (0, &[(split::USED_IDX, 2)], Some(E::Batch { recorded: 2, idx: 1, size: 8 })),
        (RING_PACKED, &[], None),
        (RING_PACKED, &[(REGION_VERSION, 65535)], Some(E::Version(65535))),
        (RING_PACKED, &[(DESC_NUM, 9)], Some(E::Size { found: 9, size: 8 })),
        (RING_PACKED, &[(packed::POSITIONS, 8)], Some(E::Position { index: 8, wrap: 1, size: 8 })),
        (RING_PACKED, &[(packed::POSITIONS + 2, 9)], Some(E::Position { index: 9, wrap: 1, size: 8 })),
        (RING_PACKED, &[(packed::POSITIONS + 4, 0x0201)], Some(E::Position { index: 1, wrap: 2, size: 8 })),
        (RING_PACKED, &[(packed::OLD_FREE_HEAD, 9)], Some(E::Index { index: 9, size: 8 })),
        // The free list, which goes 4, 5, 6, 7: a loop, and one that ends too early.
        (RING_PACKED, &[(packed_state(7, packed::NEXT), 5)], Some(E::Twice(5))),
        (RING_PACKED, &[(packed_state(6, packed::NEXT), 8)], Some(E::Lost(7))),
        // The chain of states 1 and 2.
        (RING_PACKED, &[(packed_state(1, packed::NEXT), 3)], Some(E::Chain(1))),
        (RING_PACKED, &[(packed_state(1, packed::NEXT), 5)], Some(E::Twice(5))),
        (RING_PACKED, &[(packed_state(1, packed::NUM), 0)], Some(E::Chain(1))),
        (RING_PACKED, &[(packed_state(1, packed::NUM), 3)], Some(E::Chain(1))),
        (RING_PACKED, &[(packed_state(1, packed::INFLIGHT), 0)], Some(E::Lost(1))),
    ];
    for (features, stores, error) in cases {
        assert_eq!(refusal(features, stores), error.map(ConfigError::Inflight), "{stores:?}");
    }
}

/// With nothing in flight, a driver may have begun anew; the used index is then anything.
#[test]
fn a_split_ring_may_begin_anew_when_nothing_is_in_flight() {
    let mut world = world(0, 4, 100);
    let mut process = world.start();
    world.add_chain(1, 0);
    process.take(1);
    process.complete(0);
    let _ = process.queue.stop();
    areas(&world.memory, world.setup).device.store_u16(IDX, 0);
    let process = world.start();
    assert_eq!(process.queue.stop(), ResumeState::Split { next_avail: 0 });
    assert_eq!(world.region().load_u16(split::USED_IDX), 0);
}

/// A region begins empty. Chains that were in flight before it was there would be counted for none.
#[test]
fn a_new_region_is_for_a_queue_with_nothing_in_flight() {
    for (features, untracked) in [(0, 3), (RING_PACKED, 3)] {
        let mut world = world(features, 4, 1);
        let resume = match world.setup.resume() {
            ResumeState::Split { next_avail } => ResumeState::Split { next_avail: next_avail + 3 },
            ResumeState::Packed { avail, used } => ResumeState::Packed { avail: avail.advance(3, 4), used },
        };
        world.resume = Some(resume);
        let error = world.try_start().err();
        assert_eq!(error, Some(ConfigError::Inflight(InflightError::Untracked(untracked))));
        assert_eq!(world.region().load_u16(REGION_VERSION), 0);
    }
}

/// Where the front-end says that the queue goes on is not asked for: it does not know what is in flight.
#[test]
fn a_region_in_use_says_where_to_go_on() {
    for features in [0, RING_PACKED] {
        let mut world = world(features, 4, 1);
        let mut process = world.start();
        (0..3).for_each(|_| world.add_chain(1, 0));
        process.take(2);
        process.complete(1);
        let stopped = process.queue.stop();
        world.reclaim();
        world.resume = Some(ResumeState::start(features));
        let mut process = world.start();
        assert_eq!(process.take(9), [0, 2]);
        process.queue.rewind(&mut process.burst);
        let next = match stopped {
            ResumeState::Split { next_avail } => ResumeState::Split { next_avail: next_avail + 1 },
            ResumeState::Packed { avail, used } => ResumeState::Packed { avail: avail.advance(1, 4), used },
        };
        assert_eq!(process.queue.stop(), next);
    }
}

#[test]
fn a_region_has_room_for_the_queue() {
    let world = world(RING_PACKED, 4, 0);
    let start = |range| {
        let region = area::resolved(world.region().part(range));
        world.try_start_with(Some(region)).err()
    };
    let needed = region_size(4, RING_PACKED);
    assert_eq!(start(0..needed), None);
    assert_eq!(start(0..needed - 1), Some(ConfigError::SmallArea { needed, len: needed - 1 }));
    assert_eq!(start(4..needed), Some(ConfigError::MisalignedArea { align: 8 }));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 3000, ..ProptestConfig::default() })]

    /// Whatever is in a region, the device starts or does not; takes no more than fits in the queue; and ends.
    #[test]
    fn no_bytes_in_a_region_do_harm(
        is_packed in any::<bool>(),
        size_log in 0u32..5,
        is_random in prop::bool::weighted(0.3),
        bytes in prop::collection::vec(any::<u8>(), 1024),
        stores in prop::collection::vec((0usize..540, prop_oneof![0u16..17, any::<u16>()]), 0..6),
        load in any::<u64>(),
    ) {
        let features = if is_packed { RING_PACKED } else { 0 };
        let mut world = World::new(Setup { size: 1 << size_log, features, start: 3, seed: load });
        let (region, mut process) = (world.region(), world.start());
        for _ in 0..6 {
            world.add();
            process.take(2);
            if process.in_flight.len() > 2 {
                process.complete(1);
                process.publish();
            }
        }
        drop(process);
        if is_random {
            for (i, chunk) in bytes.chunks_exact(2).enumerate().take(region.len() / 2) {
                region.store_u16(2 * i, u16::from_le_bytes([chunk[0], chunk[1]]) % 17);
            }
            region.store_u16(REGION_VERSION, VERSION);
            region.store_u16(DESC_NUM, world.setup.size);
        }
        for (at, value) in stores {
            region.store_u16(2 * at % region.len(), value);
        }
        if let Ok(mut queue) = world.try_start() {
            let (mut burst, mut taken) = (Burst::default(), vec![]);
            while queue.take(&mut burst, 3).is_ok_and(|count| count > 0) {
                taken.extend(std::iter::from_fn(|| next_of_any(&mut burst)));
                prop_assert!(taken.len() <= usize::from(world.setup.size));
            }
            for chain in taken {
                queue.complete(chain, 0);
            }
            let _ = queue.stop();
        }
    }
}

/// The next chain that waits, whatever is in it.
fn next_of_any(burst: &mut Burst) -> Option<InFlight> {
    Some(burst.next()?.detach())
}
