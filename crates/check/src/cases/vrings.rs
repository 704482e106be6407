//! Setting vrings up: sizes, bases, and where they go on.

use ringway_queue::{Cursor, ResumeState};
use ringway_spec::feature::{self, RING_PACKED};
use ringway_vhost::message::Request;

use crate::case::{Case, Seen, Verdict, expect};
use crate::context::Context;
use crate::guest::Guest;
use crate::rig::Rig;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "base-is-kept-split",
        &[
            "VU-BE-set-vring-base-00",
            "VU-BE-get-vring-base-00",
            "VU-FB-a-vring-descriptor-index-for-split-virtqueues-01",
        ],
        "GET_VRING_BASE of a ring that never ran gives what SET_VRING_BASE said, 16 bits of it",
        base_is_kept,
    ),
    Case::must(
        "base-is-kept-packed",
        &["VU-BE-set-vring-base-00", "VU-BE-get-vring-base-00"],
        "the base of a packed ring that never ran holds both indices and both laps",
        base_is_kept_packed,
    )
    .with_features(RING_PACKED),
    Case::must(
        "base-counts-split",
        &["VU-BE-get-vring-base-00"],
        "after requests, the base of a split ring is the next available index",
        |c| base_counts(c, 0),
    )
    .with_requests(),
    Case::must(
        "base-counts-packed",
        &["VU-BE-get-vring-base-00"],
        "after requests, the base of a packed ring is where both sides stand",
        |c| base_counts(c, RING_PACKED),
    )
    .with_features(RING_PACKED)
    .with_requests(),
    Case::must(
        "drained-split",
        &["VU-BE-get-vring-base-01"],
        "GET_VRING_BASE completes what a split ring has in flight",
        |c| drained(c, 0),
    )
    .with_requests(),
    Case::must(
        "drained-packed",
        &["VU-BE-get-vring-base-01"],
        "GET_VRING_BASE completes what a packed ring has in flight",
        |c| drained(c, RING_PACKED),
    )
    .with_features(RING_PACKED)
    .with_requests(),
    Case::must(
        "goes-on-split",
        &["VU-BE-set-vring-base-00", "VU-BE-ring-states-07"],
        "a split ring that was stopped goes on at its base",
        |c| goes_on(c, 0),
    )
    .with_requests(),
    Case::must(
        "goes-on-packed",
        &["VU-BE-set-vring-base-00", "VU-BE-ring-states-07"],
        "a packed ring that was stopped goes on at its base",
        |c| goes_on(c, RING_PACKED),
    )
    .with_features(RING_PACKED)
    .with_requests(),
    Case::must("index-wraps", &["VU-BE-set-vring-base-00"], "a split ring works across index 65535", |c| {
        starts_at(c, 0, ResumeState::Split { next_avail: 0xfffa })
    })
    .with_requests(),
    Case::must(
        "lap-wraps",
        &["VU-BE-set-vring-base-00"],
        "a packed ring works across its end, in either lap",
        |c| {
            for wrap in [true, false] {
                let at = Cursor::new(crate::rig::SIZE - 3, wrap);
                starts_at(c, RING_PACKED, ResumeState::Packed { avail: at, used: at })?;
            }
            Ok("12 requests in each lap".into())
        },
    )
    .with_features(RING_PACKED)
    .with_requests(),
    Case::should(
        "used-index-from-ring",
        &["VU-BE-set-vring-base-01"],
        "the used index is found in the ring, not in the base",
        used_index_from_ring,
    )
    .with_requests(),
    Case::must(
        "sizes-split",
        &["VU-BE-set-vring-num-00"],
        "split rings of 16 to 1024 descriptors work",
        |c| sizes(c, 0, &[16, 256, 1024]),
    )
    .with_requests(),
    Case::must(
        "sizes-packed",
        &["VU-BE-set-vring-num-00"],
        "packed rings of 16 to 1024 descriptors work, and of sizes that are no powers of two",
        |c| sizes(c, RING_PACKED, &[16, 100, 1024]),
    )
    .with_features(RING_PACKED)
    .with_requests(),
];

fn base_is_kept(context: &Context) -> Seen {
    let mut rig = context.rig(0, 0)?;
    for base in [0x1234, 0xffff, 0] {
        rig.session.set(Request::SetVringBase { index: 0, base })?;
        let found = rig.session.vring_base(0)?;
        expect(found == base, &format!("base {base:#x}"), || format!("{found:#x}"))?;
    }
    Ok("three bases".into())
}

fn base_is_kept_packed(context: &Context) -> Seen {
    let mut rig = context.rig(RING_PACKED, 0)?;
    // A lap's end for one side, the next lap's beginning for the other.
    for base in [0x8010_8010, 0x0010_0010, 0x80fe_0001] {
        rig.session.set(Request::SetVringNum { index: 0, num: 256 })?;
        rig.session.set(Request::SetVringBase { index: 0, base })?;
        let found = rig.session.vring_base(0)?;
        expect(found == base, &format!("base {base:#x}"), || format!("{found:#x}"))?;
    }
    Ok("three bases".into())
}

fn base_counts(context: &Context, format: u64) -> Seen {
    let mut rig = context.running(format, 0)?;
    rig.requests_are_used(5)?;
    let (at, slots) = (rig.data_at(), 5 * rig.slots_of_request());
    let base = rig.stop(at)?;
    let due = if rig.is_packed() { (0x8000 | slots) * 0x1_0001 } else { 5 };
    expect(base == due, &format!("base {due:#x}"), || format!("{base:#x}"))?;
    Ok(format!("{base:#x}"))
}

fn drained(context: &Context, format: u64) -> Seen {
    let mut rig = context.running(format, 0)?;
    rig.offer(40)?;
    rig.kick();
    let at = rig.data_at();
    let base = rig.stop(at)?;
    // What the device took by then is used by now.
    let mut used = 0_u32;
    while let Ok(Some(_)) = rig.data().queue.reclaim() {
        used += 1;
    }
    let slots = if rig.is_packed() { rig.slots_of_request() } else { 1 };
    let taken = (base & 0x7fff) / slots;
    expect(taken == used, &format!("all {taken} requests taken are used"), || used.to_string())?;
    Ok(format!("{used} of 40 taken, and all used"))
}

fn goes_on(context: &Context, format: u64) -> Seen {
    let mut rig = context.running(format, 0)?;
    for _ in 0..3 {
        rig.requests_are_used(7)?;
        let at = rig.data_at();
        rig.vrings[at].base = rig.stop(at)?;
        expect(!rig.data().queue.has_used(), "each request is used once", || "one was used again".into())?;
        rig.describe(at, None)?;
        rig.start(at)?;
    }
    rig.requests_are_used(7)?;
    Ok("28 requests in 4 runs".into())
}

/// Replaces the ring of requests by one that starts here, and sets all up.
fn rig_at(context: &Context, format: u64, start: ResumeState) -> Result<Rig<'_>, Verdict> {
    let mut rig = context.rig(format, 0)?;
    let at = rig.data_at();
    rig.vrings[at] = rig.vring(at as u32, crate::rig::SIZE, start)?;
    rig.start_all()?;
    Ok(rig)
}

fn starts_at(context: &Context, format: u64, start: ResumeState) -> Seen {
    let mut rig = rig_at(context, format, start)?;
    for _ in 0..4 {
        rig.requests_are_used(3)?;
    }
    Ok("12 requests".into())
}

fn used_index_from_ring(context: &Context) -> Seen {
    let mut rig = rig_at(context, feature::VERSION_1, ResumeState::Split { next_avail: 0x100 })?;
    rig.requests_are_used(3)?;
    let [_, _, device] = Guest::ring(rig.data().index);
    let idx = rig.guest.read_u16(device + 2)?;
    expect(idx == 0x103, "used index 0x103", || format!("{idx:#x}"))?;
    Ok(format!("{idx:#x} after 3 requests from 0x100 on"))
}

fn sizes(context: &Context, format: u64, sizes: &[u16]) -> Seen {
    for &size in sizes {
        let mut rig = context.rig(format, 0)?;
        for at in 0..rig.vrings.len() {
            rig.vrings[at] = rig.vring(at as u32, size, ResumeState::start(format))?;
        }
        rig.start_all()?;
        // Several laps.
        for _ in 0..10 {
            rig.requests_are_used(size / 4)?;
        }
    }
    Ok(format!("{sizes:?}"))
}
