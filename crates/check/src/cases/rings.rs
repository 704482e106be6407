//! What a device does with a ring's chains.

use ringway_memory::RingArea;
use ringway_queue::{DriverConfig, DriverQueue, IndirectTables, ResumeState, Segment};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};

use crate::case::{Case, Seen, Verdict, expect, trouble};
use crate::context::Context;
use crate::guest::Guest;
use crate::rig::{Rig, SIZE};

pub(super) const CASES: &[Case] = &[
    Case::must(
        "arrangements-split",
        &["DEV-SPLIT-message-framing-01"],
        "a request in one descriptor, in the usual ones, or cut into many is the same request",
        |c| arrangements(c, 0),
    )
    .with_requests(),
    Case::must(
        "arrangements-packed",
        &["DEV-SPLIT-message-framing-01", "DEV-PACKED-scatter-gather-support-01"],
        "the same in a packed ring",
        |c| arrangements(c, RING_PACKED),
    )
    .with_features(RING_PACKED)
    .with_requests(),
    Case::must(
        "indirect-split",
        &["DEV-SPLIT-indirect-descriptors-02"],
        "requests in indirect tables are carried out",
        |c| indirect(c, 0),
    )
    .with_features(RING_INDIRECT_DESC)
    .with_requests(),
    Case::must(
        "indirect-packed",
        &["DEV-PACKED-scatter-gather-support-01"],
        "requests in indirect tables of a packed ring are carried out",
        |c| indirect(c, RING_PACKED),
    )
    .with_features(RING_INDIRECT_DESC | RING_PACKED)
    .with_requests(),
    Case::must(
        "used-length",
        &["DEV-SPLIT-used-ring-02", "DEV-SPLIT-used-ring-01"],
        "a used entry's length is what was written",
        used_length,
    )
    .with_requests(),
    Case::must(
        "descriptors-are-left-alone",
        &["DEV-SPLIT-desc-table-02", "DEV-SPLIT-desc-table-01"],
        "the device writes to no descriptor of a split ring, and to no buffer that it reads",
        descriptors_are_left_alone,
    )
    .with_requests(),
    Case::must(
        "in-order-split",
        &["DEV-CORE-reserved-feature-bits-05"],
        "with IN_ORDER chains are used in the order in which they were made available",
        |c| in_order(c, 0),
    )
    .with_features(IN_ORDER)
    .with_requests(),
    Case::must("in-order-packed", &["DEV-CORE-reserved-feature-bits-05"], "the same in a packed ring", |c| {
        in_order(c, RING_PACKED)
    })
    .with_features(IN_ORDER | RING_PACKED)
    .with_requests(),
    Case::must(
        "used-flags",
        &["DEV-SPLIT-available-buffer-notification-suppression-01"],
        "without EVENT_IDX the used ring's flags are 0 or 1",
        |c| used_flags(c, 0, &[0, 1]),
    )
    .with_requests(),
    Case::must(
        "used-flags-event-idx",
        &["DEV-SPLIT-available-buffer-notification-suppression-03"],
        "with EVENT_IDX the used ring's flags are 0",
        |c| used_flags(c, RING_EVENT_IDX, &[0]),
    )
    .with_features(RING_EVENT_IDX)
    .with_requests(),
    Case::must(
        "full-ring-split",
        &["VU-BE-ring-states-05"],
        "a split ring filled to the last descriptor is used up, again and again",
        |c| full_ring(c, 0),
    )
    .with_requests(),
    Case::must(
        "full-ring-packed",
        &["VU-BE-ring-states-05", "DEV-PACKED-vq-01"],
        "a packed ring filled to the last descriptor is used up, again and again",
        |c| full_ring(c, RING_PACKED),
    )
    .with_features(RING_PACKED)
    .with_requests(),
];

/// Cuts a segment into pieces of `len` bytes.
fn cut(segment: &Segment, len: u32) -> Vec<Segment> {
    let piece = |at: u32| Segment {
        addr: ringway_memory::Gpa(segment.addr.0 + u64::from(at)),
        len: len.min(segment.len - at),
    };
    (0..segment.len).step_by(len as usize).map(piece).collect()
}

/// A request whose readable part lies in one piece.
fn in_one_piece(rig: &Rig<'_>) -> Result<Segment, Verdict> {
    let bytes = rig.session.context.device.request().readable.concat();
    let at = rig.guest.buffer(bytes.len() as u64);
    rig.guest.write(at, &bytes)?;
    Ok(Segment { addr: Guest::gpa(at), len: bytes.len() as u32 })
}

fn arrangements(context: &Context, format: u64) -> Seen {
    let mut rig = context.running(format, 0)?;
    rig.requests_are_used(1)?;
    for len in [u32::MAX, 40, 12, 7, 5] {
        let (_, writable, lent) = rig.write_request()?;
        let readable = cut(&in_one_piece(&rig)?, len);
        rig.add(&readable, &writable, lent)?;
        rig.publish();
        rig.kick();
        let used = rig.used(1)?;
        rig.check_answers(&used)?;
    }
    Ok("6 arrangements".into())
}

/// Memory for indirect tables of `entries` descriptors each, 128 at most, where rings would be that no case has.
fn tables(rig: &Rig<'_>, entries: u16) -> Result<IndirectTables, Verdict> {
    let [at, ..] = Guest::ring(8);
    let len = usize::from(SIZE) * usize::from(entries) * 16;
    let area: RingArea = rig
        .guest
        .table()
        .area(rig.guest.frontend_va(at), len, 16)
        .map_err(|e| trouble("indirect tables", e))?;
    Ok(IndirectTables { area, addr: Guest::gpa(at), entries })
}

/// Gives the driver of ring `at`, which has not started, indirect tables of so many descriptors each.
pub(super) fn lend_tables(rig: &mut Rig<'_>, at: usize, entries: u16) -> Result<(), Verdict> {
    let (index, features) = (rig.vrings[at].index, rig.session.features);
    let config = DriverConfig {
        size: SIZE,
        features,
        areas: rig.guest.areas(index, SIZE, features)?,
        start: ResumeState::start(features),
        max_chain: SIZE,
        tables: Some(tables(rig, entries)?),
    };
    rig.vrings[at].queue = DriverQueue::new(config).map_err(|e| trouble("queue", e))?;
    Ok(())
}

fn indirect(context: &Context, format: u64) -> Seen {
    let mut rig = context.rig(format | RING_INDIRECT_DESC, 0)?;
    let at = rig.data_at();
    lend_tables(&mut rig, at, 8)?;
    rig.start_all()?;
    for _ in 0..3 {
        rig.requests_are_used(100)?;
    }
    Ok("300 requests".into())
}

fn used_length(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    rig.requests_are_used(3)?;
    let [_, _, device] = Guest::ring(rig.data().index);
    let due = context.device.written();
    for entry in 0..3 {
        let len = u32::from_le_bytes(rig.guest.read(device + 4 + entry * 8 + 4)?);
        expect(len <= due, &format!("length {due} at most"), || len.to_string())?;
    }
    Ok(format!("{due} bytes at most"))
}

fn descriptors_are_left_alone(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    rig.offer(20)?;
    let [descriptor, ..] = Guest::ring(rig.data().index);
    let table = |rig: &Rig<'_>| rig.guest.read::<4096>(descriptor);
    let (before, chain) = (table(&rig)?, in_one_piece(&rig)?);
    rig.kick();
    rig.used(20)?;
    expect(table(&rig)? == before, "descriptors as the driver wrote them", || "others".into())?;
    let mut bytes = vec![0; chain.len as usize];
    rig.guest.read_to(chain.addr.0 - Guest::gpa(0).0, &mut bytes)?;
    let whole = context.device.request().readable.concat();
    expect(bytes == whole, "a readable buffer as the driver wrote it", || "another".into())?;
    Ok("unchanged".into())
}

fn in_order(context: &Context, format: u64) -> Seen {
    let mut rig = context.running(format | IN_ORDER, 0)?;
    for _ in 0..5 {
        let mut due = Vec::new();
        for _ in 0..30 {
            let (readable, writable, lent) = rig.write_request()?;
            due.push(lent.writable.clone());
            rig.add(&readable, &writable, lent)?;
        }
        rig.publish();
        rig.kick();
        let used = rig.used(30)?;
        let order: Vec<_> = used.iter().map(|(lent, _)| lent.writable.clone()).collect();
        expect(order == due, "the order of the driver", || "another".into())?;
    }
    Ok("150 requests".into())
}

fn used_flags(context: &Context, features: u64, allowed: &[u16]) -> Seen {
    let mut rig = context.running(features, 0)?;
    let [_, _, device] = Guest::ring(rig.data().index);
    for _ in 0..5 {
        rig.requests_are_used(4)?;
        let flags = rig.guest.read_u16(device)?;
        expect(allowed.contains(&flags), &format!("one of {allowed:?}"), || flags.to_string())?;
    }
    Ok(format!("only {allowed:?}"))
}

fn full_ring(context: &Context, format: u64) -> Seen {
    let mut rig = context.running(format, 0)?;
    let count = SIZE / rig.slots_of_request() as u16;
    for _ in 0..4 {
        rig.requests_are_used(count)?;
    }
    Ok(format!("4 times {count} requests"))
}
