//! The region of a split queue.
//!
//! ```text
//! head    features u64 │ version u16 │ desc_num u16 │ last_batch_head u16 │ used_idx u16
//! state   inflight u8 │ 5 bytes │ next u16 │ counter u64          one for each head descriptor
//! ```
//!
//! A chain is in flight from when its state's `inflight` is 1 to when the used ring's `idx` passes it. The states of a
//! batch are cleared after that; until then they are a list, and `used_idx` is behind `idx` by the list's length.

use alloc::vec;
use alloc::vec::Vec;

use super::{InflightError, Resubmissions, begin_use, is_in_use};
use crate::Burst;
use crate::area::RingArea;

/// Size of a region's head in bytes.
pub(super) const HEAD_SIZE: usize = 16;
/// Offset of the head of the list of the last batch.
pub(super) const LAST_BATCH_HEAD: usize = 12;
/// Offset of the used ring's `idx`, as of the last batch.
pub(super) const USED_IDX: usize = 14;

/// Size of a descriptor's state in bytes.
pub(super) const STATE_SIZE: usize = 16;
/// Offset of whether the chain is in flight; the byte after it is padding.
pub(super) const INFLIGHT: usize = 0;
/// Offset of the next one of the batch.
pub(super) const NEXT: usize = 6;
/// Offset of the number that tells in which order chains were taken.
pub(super) const COUNTER: usize = 8;

/// The field at `offset` of the state of a descriptor.
const fn state(index: u16, offset: usize) -> usize {
    HEAD_SIZE + index as usize * STATE_SIZE + offset
}

/// A region that a queue records its chains in, by their heads.
pub(crate) struct Region {
    area: RingArea,
    /// The number of the next chain.
    counter: u64,
    last_batch_head: u16,
    /// Chains completed and not published.
    batch: Vec<u16>,
    resubmissions: Resubmissions<u16>,
}

impl Region {
    /// Opens the region of a queue whose used ring is at `used_idx`, and which is to go on at `next_avail` if the
    /// region is new. If it is not, the queue goes on where the region says.
    pub(crate) fn open(
        area: RingArea,
        size: u16,
        used_idx: u16,
        next_avail: u16,
    ) -> Result<Self, InflightError> {
        let in_flight = if is_in_use(&area, size)? {
            recover(&area, size, used_idx)?
        } else {
            initialize(&area, size, used_idx, next_avail)?;
            Vec::new()
        };
        let counter = in_flight.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(Self {
            area,
            counter,
            last_batch_head: 0,
            batch: Vec::with_capacity(size.into()),
            resubmissions: Resubmissions::new(in_flight.into_iter().map(|(_, head)| head).collect()),
        })
    }

    /// How many chains were in flight when the queue started.
    pub(crate) fn recovered(&self) -> u16 {
        self.resubmissions.chains.len() as u16
    }

    pub(crate) fn is_intact(&self) -> bool {
        self.area.is_intact()
    }

    /// The next chain to take again.
    pub(crate) fn resubmission(&self) -> Option<u16> {
        self.resubmissions.peek()
    }

    /// It was taken again.
    pub(crate) fn resubmitted(&mut self) {
        self.resubmissions.next += 1;
    }

    /// Records a chain taken from the ring.
    pub(crate) fn taken(&mut self, head: u16) {
        self.area.store_u64_release(state(head, COUNTER), self.counter);
        self.area.store_u16_release(state(head, INFLIGHT), 1);
        self.counter = self.counter.wrapping_add(1);
        self.resubmissions.later += 1;
    }

    /// Chains completed and not published.
    pub(crate) fn completed(&self) -> u32 {
        self.batch.len() as u32
    }

    /// Puts a chain into the batch.
    #[cold]
    pub(crate) fn complete(&mut self, head: u16) {
        self.batch.push(head);
    }

    /// Links the batch; the used ring's `idx` is stored next.
    pub(crate) fn begin_publish(&mut self) {
        for &head in &self.batch {
            self.area.store_u16_release(state(head, NEXT), self.last_batch_head);
            self.area.store_u16_release(LAST_BATCH_HEAD, head);
            self.last_batch_head = head;
        }
    }

    /// The used ring's `idx` is `used_idx` now, and what was in the batch is in flight no more.
    pub(crate) fn end_publish(&mut self, used_idx: u16) {
        for head in self.batch.drain(..) {
            self.area.store_u16_release(state(head, INFLIGHT), 0);
        }
        self.area.store_u16_release(USED_IDX, used_idx);
    }

    /// Gives back the chains that wait, the last first, so that those in flight are always the first ones of the ring.
    /// Returns how many go back to the ring.
    #[cold]
    pub(crate) fn rewind(&mut self, burst: &Burst) -> u16 {
        let waiting = burst.len();
        let later = self.resubmissions.give_back(waiting);
        for ticket in burst.tickets(waiting - later).rev() {
            self.area.store_u16_release(state(ticket.id(), INFLIGHT), 0);
        }
        later as u16
    }
}

fn initialize(area: &RingArea, size: u16, used_idx: u16, next_avail: u16) -> Result<(), InflightError> {
    if next_avail != used_idx {
        return Err(InflightError::Untracked(next_avail.wrapping_sub(used_idx).into()));
    }
    for index in 0..size {
        area.store_u16(state(index, INFLIGHT), 0);
        area.store_u16(state(index, NEXT), 0);
        area.store_u64(state(index, COUNTER), 0);
    }
    area.store_u16(LAST_BATCH_HEAD, 0);
    area.store_u16(USED_IDX, used_idx);
    begin_use(area, size);
    Ok(())
}

/// Finishes what a device was doing when it ended. Returns the chains in flight, oldest first, as counters and heads.
fn recover(area: &RingArea, size: u16, used_idx: u16) -> Result<Vec<(u64, u16)>, InflightError> {
    let is_in_flight = |index: &u16| area.load_u16(state(*index, INFLIGHT)) as u8 == 1;
    let mut in_flight: Vec<_> =
        (0..size).filter(is_in_flight).map(|index| (area.load_u64(state(index, COUNTER)), index)).collect();
    let recorded = area.load_u16(USED_IDX);
    let batch = used_idx.wrapping_sub(recorded);
    if batch <= size {
        // The driver saw the batch used, but its states may not be cleared.
        let batch = last_batch(area, size, batch)?;
        in_flight.retain(|(_, head)| !batch[usize::from(*head)]);
        for head in (0..size).filter(|head| batch[usize::from(*head)]) {
            area.store_u16_release(state(head, INFLIGHT), 0);
        }
    } else if !in_flight.is_empty() {
        // With nothing in flight, the driver has begun anew.
        return Err(InflightError::Batch { recorded, idx: used_idx, size });
    }
    area.store_u16_release(USED_IDX, used_idx);
    in_flight.sort_unstable();
    Ok(in_flight)
}

/// Which states are among the `count` of the last batch's list.
fn last_batch(area: &RingArea, size: u16, count: u16) -> Result<Vec<bool>, InflightError> {
    let mut batch = vec![false; size.into()];
    let mut index = area.load_u16(LAST_BATCH_HEAD);
    for _ in 0..count {
        let is_used = batch.get_mut(usize::from(index)).ok_or(InflightError::Index { index, size })?;
        *is_used = true;
        index = area.load_u16(state(index, NEXT));
    }
    Ok(batch)
}
