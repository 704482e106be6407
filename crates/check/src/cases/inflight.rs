//! The region in which a back-end records what it has in flight, and what it makes of one that a back-end before it
//! left behind.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use ringway_queue::Cursor;
use ringway_spec::feature::RING_PACKED;
use ringway_vhost::message::{InflightDescription, Request, protocol_feature as pf};

use crate::case::{Case, Seen, Verdict, expect, fail, trouble};
use crate::context::Context;
use crate::device::Device;
use crate::guest::{Guest, dup};
use crate::rig::{Rig, SIZE};
use crate::session::Session;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "get-inflight-fd",
        &["VU-BE-get-inflight-fd-00"],
        "GET_INFLIGHT_FD is answered with a region of zeros, and its file",
        get_inflight_fd,
    )
    .with_protocol(pf::INFLIGHT_SHMFD),
    Case::must(
        "set-inflight-fd",
        &["VU-BE-set-inflight-fd-00"],
        "SET_INFLIGHT_FD with the region succeeds",
        set_inflight_fd,
    )
    .with_protocol(pf::INFLIGHT_SHMFD | pf::REPLY_ACK),
    Case::should(
        "inflight-tracked-split",
        &["VU-BE-inflight-i-o-tracking-11", "VU-BE-inflight-i-o-tracking-10"],
        "after requests the region has the used index, and nothing in flight",
        tracked_split,
    )
    .with_protocol(pf::INFLIGHT_SHMFD)
    .with_requests(),
    Case::should(
        "inflight-counted-split",
        &["VU-BE-inflight-i-o-tracking-02", "VU-BE-inflight-i-o-tracking-03"],
        "requests have counters that grow",
        counted_split,
    )
    .with_protocol(pf::INFLIGHT_SHMFD)
    .with_requests(),
    Case::should(
        "inflight-resubmitted-split",
        &["VU-BE-inflight-i-o-tracking-15"],
        "what a back-end before it had in flight is carried out, the oldest first",
        resubmitted_split,
    )
    .with_protocol(pf::INFLIGHT_SHMFD)
    .with_requests(),
    Case::should(
        "inflight-last-batch-split",
        &[
            "VU-BE-inflight-i-o-tracking-12",
            "VU-BE-inflight-i-o-tracking-13",
            "VU-BE-inflight-i-o-tracking-14",
        ],
        "what a back-end before it had used, but not yet struck off, is not carried out again",
        last_batch_split,
    )
    .with_protocol(pf::INFLIGHT_SHMFD)
    .with_requests(),
    Case::should(
        "inflight-tracked-packed",
        &["VU-BE-inflight-i-o-tracking-33", "VU-BE-inflight-i-o-tracking-34"],
        "after requests in a packed ring the region has where it stands, and nothing in flight",
        tracked_packed,
    )
    .with_features(RING_PACKED)
    .with_protocol(pf::INFLIGHT_SHMFD)
    .with_requests(),
    Case::should(
        "inflight-resubmitted-packed",
        &["VU-BE-inflight-i-o-tracking-40"],
        "what a back-end before it had in flight in a packed ring is carried out",
        resubmitted_packed,
    )
    .with_features(RING_PACKED)
    .with_protocol(pf::INFLIGHT_SHMFD)
    .with_requests(),
];

/// A split queue's header: features, version, size, head of the last batch, used index.
mod split {
    pub(super) const VERSION: u64 = 8;
    pub(super) const LAST_BATCH_HEAD: u64 = 12;
    pub(super) const USED_IDX: u64 = 14;
    /// Descriptors' states follow, of so many bytes each: in flight, padding, next, counter.
    pub(super) const STATE: u64 = 16;
    pub(super) const COUNTER: u64 = 8;
}

/// A packed queue's header: features, version, size, heads of the free list now and before, used index and lap now
/// and before.
mod packed {
    pub(super) const FREE_HEAD: u64 = 12;
    pub(super) const USED_IDX: u64 = 16;
    pub(super) const USED_WRAP: u64 = 20;
    /// Descriptors' states follow, of so many bytes each: in flight, next, last, number, counter, descriptor.
    pub(super) const STATE: u64 = 32;
}

/// The region.
struct Inflight {
    description: InflightDescription,
    file: File,
}

impl Inflight {
    /// Asks for one.
    fn get(session: &mut Session<'_>, queues: u16) -> Result<Self, Verdict> {
        let wish = InflightDescription { len: 0, offset: 0, queues, queue_size: SIZE };
        let reply = session.ask(Request::GetInflightFd(wish))?;
        let expected = "a description and a file descriptor";
        let number = |at: usize| {
            let bytes = reply.payload.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let (Some(len), Some(offset)) = (number(0), number(8)) else {
            return Err(fail(expected, format!("{} bytes", reply.payload.len())));
        };
        let Some(fd) = reply.fds.into_iter().next() else { return Err(fail(expected, "no file descriptor")) };
        Ok(Self { description: InflightDescription { len, offset, ..wish }, file: fd.into() })
    }

    /// Gives it to a back-end.
    fn set(&self, session: &mut Session<'_>) -> Result<(), Verdict> {
        let fd: OwnedFd = self.file.try_clone().map_err(|e| trouble("dup", e))?.into();
        session.set(Request::SetInflightFd(self.description, dup(&fd)?))
    }

    /// Where a byte of queue `index` is in the file.
    fn at(&self, index: u32, offset: u64) -> u64 {
        let stride = self.description.len / u64::from(self.description.queues);
        self.description.offset + u64::from(index) * stride + offset
    }

    fn read<const N: usize>(&self, index: u32, offset: u64) -> Result<[u8; N], Verdict> {
        let mut bytes = [0; N];
        let read = self.file.read_exact_at(&mut bytes, self.at(index, offset));
        read.map_err(|e| fail("a region as long as it is said to be", e.to_string()))?;
        Ok(bytes)
    }

    fn write(&self, index: u32, offset: u64, bytes: &[u8]) -> Result<(), Verdict> {
        let written = self.file.write_all_at(bytes, self.at(index, offset));
        written.map_err(|e| fail("a region that can be written to", e.to_string()))
    }

    fn u16(&self, index: u32, offset: u64) -> Result<u16, Verdict> {
        self.read(index, offset).map(u16::from_le_bytes)
    }

    /// How many of a queue's descriptors are in flight.
    fn count(&self, index: u32, state: u64) -> Result<usize, Verdict> {
        let mut count = 0;
        for slot in 0..u64::from(SIZE) {
            count += usize::from(self.read::<1>(index, state + slot * state)? != [0]);
        }
        Ok(count)
    }

    /// Fills in what both formats begin with: the version, and the number of descriptors.
    fn write_head(&self, index: u32) -> Result<(), Verdict> {
        self.write(index, split::VERSION, &[1, 0, SIZE as u8, (SIZE >> 8) as u8])
    }
}

/// A front-end whose rings are not set up yet, and the region of its back-end.
fn rig_with_region(context: &Context, format: u64) -> Result<(Rig<'_>, Inflight), Verdict> {
    let mut rig = context.rig(format, pf::INFLIGHT_SHMFD)?;
    let queues = rig.vrings.len() as u16;
    let inflight = Inflight::get(&mut rig.session, queues)?;
    Ok((rig, inflight))
}

fn get_inflight_fd(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::INFLIGHT_SHMFD)?;
    // Two, if the device has as many.
    let queues = if context.offer.queue_num == Some(1) { 1 } else { 2 };
    let inflight = Inflight::get(&mut session, queues)?;
    let InflightDescription { len, offset, .. } = inflight.description;
    let least = u64::from(queues) * (16 + 16 * u64::from(SIZE));
    expect(len >= least, &format!("{least} bytes at least"), || len.to_string())?;
    let size = inflight.file.metadata().map_err(|e| trouble("stat", e))?.len();
    expect(size >= offset + len, "a file as long as the region", || format!("{size} bytes"))?;
    let mut bytes = vec![0; len as usize];
    inflight.file.read_exact_at(&mut bytes, offset).map_err(|e| trouble("read a file", e))?;
    // The header may be filled in already; no descriptor is in flight.
    let used: usize = (0..queues.into()).map(|q| inflight.count(q, split::STATE)).sum::<Result<_, _>>()?;
    expect(used == 0, "nothing in flight", || format!("{used} descriptors are"))?;
    Ok(format!("{len} bytes"))
}

fn set_inflight_fd(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::INFLIGHT_SHMFD)?;
    let inflight = Inflight::get(&mut session, 1)?;
    inflight.set(&mut session)?;
    Ok("taken".into())
}

fn tracked_split(context: &Context) -> Seen {
    let (mut rig, inflight) = rig_with_region(context, 0)?;
    inflight.set(&mut rig.session)?;
    rig.start_all()?;
    rig.requests_are_used(5)?;
    let (at, index) = (rig.data_at(), rig.data().index);
    rig.stop(at)?;
    let used = inflight.u16(index, split::USED_IDX)?;
    expect(used == 5, "used index 5", || used.to_string())?;
    let count = inflight.count(index, split::STATE)?;
    expect(count == 0, "nothing in flight", || format!("{count} descriptors are"))?;
    Ok("used index 5, nothing in flight".into())
}

fn counted_split(context: &Context) -> Seen {
    let (mut rig, inflight) = rig_with_region(context, 0)?;
    inflight.set(&mut rig.session)?;
    rig.start_all()?;
    let (index, [_, driver, _]) = (rig.data().index, Guest::ring(rig.data().index));
    let mut counters = Vec::new();
    for request in 0..3 {
        rig.requests_are_used(1)?;
        let head = rig.guest.read_u16(driver + 4 + request * 2)?;
        let at = split::STATE + u64::from(head) * split::STATE + split::COUNTER;
        counters.push(u64::from_le_bytes(inflight.read(index, at)?));
    }
    let grows = counters.is_sorted_by(|a, b| a < b);
    expect(grows, "counters that grow", || format!("{counters:?}"))?;
    Ok(format!("{counters:?}"))
}

fn resubmitted_split(context: &Context) -> Seen {
    let (mut rig, inflight) = rig_with_region(context, 0)?;
    rig.offer(2)?;
    let (index, [_, driver, _]) = (rig.data().index, Guest::ring(rig.data().index));
    inflight.write_head(index)?;
    // Both were taken, the second one first.
    for (entry, counter) in [(0, 2_u8), (1, 1)] {
        let head = rig.guest.read_u16(driver + 4 + entry * 2)?;
        let state = split::STATE + u64::from(head) * split::STATE;
        inflight.write(index, state, &[1])?;
        inflight.write(index, state + split::COUNTER, &[counter])?;
    }
    rig.data().base = 2;
    inflight.set(&mut rig.session)?;
    rig.start_all()?;
    rig.used(2)?;
    let [_, _, device] = Guest::ring(index);
    let first = u32::from_le_bytes(rig.guest.read(device + 4)?);
    let oldest = u32::from(rig.guest.read_u16(driver + 4 + 2)?);
    // A block device may complete them in any order.
    if context.device == Device::Net {
        expect(first == oldest, "the oldest is used first", || "another".into())?;
    }
    rig.requests_are_used(2)?;
    Ok("both are used, and the ring goes on".into())
}

fn last_batch_split(context: &Context) -> Seen {
    let (mut rig, inflight) = rig_with_region(context, 0)?;
    rig.offer(1)?;
    let (index, [_, driver, device]) = (rig.data().index, Guest::ring(rig.data().index));
    let head = rig.guest.read_u16(driver + 4)?;
    // It was used, and the back-end ended before it struck it off.
    inflight.write_head(index)?;
    inflight.write(index, split::LAST_BATCH_HEAD, &head.to_le_bytes())?;
    inflight.write(index, split::STATE + u64::from(head) * split::STATE, &[1])?;
    rig.guest.write(device + 4, &u32::from(head).to_le_bytes())?;
    rig.guest.write(device + 2, &1_u16.to_le_bytes())?;
    rig.used(1)?;
    rig.data().base = 1;
    inflight.set(&mut rig.session)?;
    rig.start_all()?;
    rig.nothing_used("the only request was used before")?;
    rig.requests_are_used(2)?;
    let used = inflight.u16(index, split::USED_IDX)?;
    expect(used == 3, "used index 3", || used.to_string())?;
    Ok("used once".into())
}

fn tracked_packed(context: &Context) -> Seen {
    let (mut rig, inflight) = rig_with_region(context, RING_PACKED)?;
    inflight.set(&mut rig.session)?;
    rig.start_all()?;
    rig.requests_are_used(5)?;
    let (at, index, slots) = (rig.data_at(), rig.data().index, 5 * rig.slots_of_request());
    rig.stop(at)?;
    let used = inflight.u16(index, packed::USED_IDX)?;
    expect(u32::from(used) == slots, &format!("used index {slots}"), || used.to_string())?;
    // Nothing is in progress: what was the state before is the state now.
    for at in [packed::FREE_HEAD, packed::USED_IDX] {
        let (now, before) = (inflight.u16(index, at)?, inflight.u16(index, at + 2)?);
        expect(now == before, "an update that is finished", || format!("{before}, then {now}"))?;
    }
    let count = inflight.count(index, packed::STATE)?;
    expect(count == 0, "nothing in flight", || format!("{count} descriptors are"))?;
    Ok(format!("used index {used}, nothing in flight"))
}

fn resubmitted_packed(context: &Context) -> Seen {
    let (mut rig, inflight) = rig_with_region(context, RING_PACKED)?;
    rig.offer(1)?;
    let (index, [descriptor, ..]) = (rig.data().index, Guest::ring(rig.data().index));
    let slots = rig.slots_of_request() as u16;
    inflight.write_head(index)?;
    // The free list runs through all entries; the chain has the first ones.
    for slot in 0..SIZE {
        let state = packed::STATE + u64::from(slot) * packed::STATE;
        inflight.write(index, state + 2, &(slot + 1).to_le_bytes())?;
    }
    for slot in 0..slots {
        let state = packed::STATE + u64::from(slot) * packed::STATE;
        let desc: [u8; 16] = rig.guest.read(descriptor + u64::from(slot) * 16)?;
        let (addr, len, id, flags) = (&desc[..8], &desc[8..12], &desc[12..14], &desc[14..]);
        inflight.write(index, state + 16, &[id, flags, len, addr].concat())?;
    }
    let first = packed::STATE;
    inflight.write(index, first, &[1])?;
    inflight.write(index, first + 4, &[slots - 1, slots].map(u16::to_le_bytes).concat())?;
    inflight.write(index, packed::FREE_HEAD, &[slots, slots].map(u16::to_le_bytes).concat())?;
    inflight.write(index, packed::USED_WRAP, &[1, 1])?;
    let avail = Cursor::START.advance(slots, SIZE).to_off_wrap();
    rig.data().base = u32::from(avail) | u32::from(Cursor::START.to_off_wrap()) << 16;
    inflight.set(&mut rig.session)?;
    rig.start_all()?;
    rig.used(1)?;
    rig.requests_are_used(2)?;
    Ok("it is used, and the ring goes on".into())
}
