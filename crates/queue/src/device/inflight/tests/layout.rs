//! A region's bytes are where the document, libvhost-user and `rte_vhost` have them.

use std::mem::{offset_of, size_of};

use super::super::{DESC_NUM, FEATURES, REGION_VERSION, packed, split};
use super::*;

/// The document's structures. The compiler lays them out as one for C does.
#[allow(dead_code, reason = "only their layout is of interest")]
mod document {
    #[repr(C)]
    pub(super) struct DescStateSplit {
        pub(super) inflight: u8,
        pub(super) padding: [u8; 5],
        pub(super) next: u16,
        pub(super) counter: u64,
    }

    #[repr(C)]
    pub(super) struct QueueRegionSplit {
        pub(super) features: u64,
        pub(super) version: u16,
        pub(super) desc_num: u16,
        pub(super) last_batch_head: u16,
        pub(super) used_idx: u16,
        pub(super) desc: [DescStateSplit; 0],
    }

    #[repr(C)]
    pub(super) struct DescStatePacked {
        pub(super) inflight: u8,
        pub(super) padding: u8,
        pub(super) next: u16,
        pub(super) last: u16,
        pub(super) num: u16,
        pub(super) counter: u64,
        pub(super) id: u16,
        pub(super) flags: u16,
        pub(super) len: u32,
        pub(super) addr: u64,
    }

    #[repr(C)]
    pub(super) struct QueueRegionPacked {
        pub(super) features: u64,
        pub(super) version: u16,
        pub(super) desc_num: u16,
        pub(super) free_head: u16,
        pub(super) old_free_head: u16,
        pub(super) used_idx: u16,
        pub(super) old_used_idx: u16,
        pub(super) used_wrap_counter: u8,
        pub(super) old_used_wrap_counter: u8,
        pub(super) padding: [u8; 7],
        pub(super) desc: [DescStatePacked; 0],
    }
}

use document::{DescStatePacked, DescStateSplit, QueueRegionPacked, QueueRegionSplit};

#[test]
fn the_layout_of_a_split_queues_region_is_the_documents() {
    let head = [
        (offset_of!(QueueRegionSplit, features), FEATURES),
        (offset_of!(QueueRegionSplit, version), REGION_VERSION),
        (offset_of!(QueueRegionSplit, desc_num), DESC_NUM),
        (offset_of!(QueueRegionSplit, last_batch_head), split::LAST_BATCH_HEAD),
        (offset_of!(QueueRegionSplit, used_idx), split::USED_IDX),
        (offset_of!(QueueRegionSplit, desc), split::HEAD_SIZE),
    ];
    let state = [
        (offset_of!(DescStateSplit, inflight), split::INFLIGHT),
        (offset_of!(DescStateSplit, next), split::NEXT),
        (offset_of!(DescStateSplit, counter), split::COUNTER),
        (size_of::<DescStateSplit>(), split::STATE_SIZE),
    ];
    for (theirs, ours) in head.into_iter().chain(state) {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn the_layout_of_a_packed_queues_region_is_the_documents() {
    let positions = packed::POSITIONS;
    let head = [
        (offset_of!(QueueRegionPacked, features), FEATURES),
        (offset_of!(QueueRegionPacked, version), REGION_VERSION),
        (offset_of!(QueueRegionPacked, desc_num), DESC_NUM),
        (offset_of!(QueueRegionPacked, free_head), packed::FREE_HEAD),
        (offset_of!(QueueRegionPacked, old_free_head), packed::OLD_FREE_HEAD),
        (offset_of!(QueueRegionPacked, used_idx), positions),
        (offset_of!(QueueRegionPacked, old_used_idx), positions + 2),
        (offset_of!(QueueRegionPacked, used_wrap_counter), positions + 4),
        (offset_of!(QueueRegionPacked, old_used_wrap_counter), positions + 5),
        (offset_of!(QueueRegionPacked, desc), packed::HEAD_SIZE),
    ];
    let state = [
        (offset_of!(DescStatePacked, inflight), packed::INFLIGHT),
        (offset_of!(DescStatePacked, next), packed::NEXT),
        (offset_of!(DescStatePacked, last), packed::LAST),
        (offset_of!(DescStatePacked, num), packed::NUM),
        (offset_of!(DescStatePacked, counter), packed::COUNTER),
        (offset_of!(DescStatePacked, id), packed::ID_FLAGS_LEN),
        (offset_of!(DescStatePacked, flags), packed::ID_FLAGS_LEN + 2),
        (offset_of!(DescStatePacked, len), packed::ID_FLAGS_LEN + 4),
        (offset_of!(DescStatePacked, addr), packed::ADDR),
        (size_of::<DescStatePacked>(), packed::STATE_SIZE),
    ];
    for (theirs, ours) in head.into_iter().chain(state) {
        assert_eq!(ours, theirs);
    }
}

/// What libvhost-user and `rte_vhost` reserve for a queue, as they compute it.
#[test]
fn a_region_is_as_large_as_others_have_it() {
    for log in 0..=15 {
        let size = 1 << log;
        let (libvhost_user, rte_vhost) = (16 * usize::from(size) + 2, 16 * usize::from(size) + 16);
        assert_eq!(region_size(size, 0), rte_vhost.next_multiple_of(64));
        assert_eq!(region_size(size, 0), libvhost_user.next_multiple_of(64));
    }
    for size in 1..=32768u16 {
        let rte_vhost = 32 * usize::from(size) + 8 + 6 * 2 + 9;
        assert_eq!(region_size(size, RING_PACKED), rte_vhost.next_multiple_of(64));
    }
}
