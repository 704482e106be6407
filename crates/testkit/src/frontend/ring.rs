//! The driver's half of a split virtqueue in the guest's memory.
//!
//! [`SplitRing::add`], [`publish`](SplitRing::publish), [`kick`](SplitRing::kick) and
//! [`poll`](SplitRing::poll) make an honest driver; the `write_…` methods put anything anywhere.

mod layout;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::layout::chained;
pub use self::layout::{
    AVAIL_NO_INTERRUPT, Buffer, DESC_INDIRECT, DESC_LEN, DESC_NEXT, DESC_WRITE, Descriptor, RingLayout,
    USED_NO_NOTIFY, passes,
};
use super::event::Event;
use super::memory::GuestMemory;

/// When a published chain is kicked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KickPolicy {
    /// Always, even if the device does not want it.
    #[default]
    Always,
    /// If the device asks: by its flag, or by `avail_event` if that was negotiated.
    IfWanted,
    /// Never, as of a driver that trusts a polling device.
    Never,
}

/// A split virtqueue, seen by the driver.
#[derive(Debug)]
pub struct SplitRing {
    /// Signalled by us: there is something available.
    pub kick: Event,
    /// Signalled by the device: there is something used.
    pub call: Event,
    /// Signalled by the device: the ring is broken.
    pub error: Event,
    /// When to kick.
    pub kick_policy: KickPolicy,
    /// Whether `EVENT_IDX` was negotiated.
    pub event_idx: bool,
    memory: Arc<GuestMemory>,
    layout: RingLayout,
    free: Vec<u16>,
    /// The descriptors of each chain in flight, by head.
    in_flight: BTreeMap<u16, Vec<u16>>,
    /// The next available index: entries below are written, perhaps not published.
    next_avail: u16,
    /// What the device was shown last.
    published: u16,
    /// The next used entry to look at.
    next_used: u16,
}

impl SplitRing {
    /// An empty ring whose indices both start at `base`.
    pub fn new(memory: Arc<GuestMemory>, layout: RingLayout, base: u16) -> Result<Self> {
        ensure!(layout.size.is_power_of_two(), "a split ring of {}", layout.size);
        let ring = Self {
            kick: Event::new()?,
            call: Event::new()?,
            error: Event::new()?,
            kick_policy: KickPolicy::default(),
            event_idx: false,
            memory,
            layout,
            // Popped from the back: the first chain takes descriptor 0.
            free: (0..layout.size).rev().collect(),
            in_flight: BTreeMap::new(),
            next_avail: base,
            published: base,
            next_used: base,
        };
        ring.write_indices(base)?;
        Ok(ring)
    }

    /// Where its areas stand.
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// The memory that it stands in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Descriptors that are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Chains that the device has not returned.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The available index that the next chain gets.
    pub fn next_available(&self) -> u16 {
        self.next_avail
    }

    /// The used index up to which [`poll`](Self::poll) has looked.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    // ---- The honest driver ----

    /// Adds a chain; its head, or `None` if there are too few free descriptors. Not yet published.
    pub fn add(&mut self, buffers: &[Buffer]) -> Result<Option<u16>> {
        ensure!(!buffers.is_empty(), "a chain without buffers");
        let Some(indices) = self.take(buffers.len()) else { return Ok(None) };
        for (at, buffer) in buffers.iter().enumerate() {
            self.write_descriptor(indices[at], chained(*buffer, indices.get(at + 1).copied()))?;
        }
        self.push(indices).map(Some)
    }

    /// Adds a chain of one descriptor that refers to a table of all `buffers`, written at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Result<Option<u16>> {
        let Some(indices) = self.take(1) else { return Ok(None) };
        for (at, buffer) in buffers.iter().enumerate() {
            let next = (at + 1 < buffers.len()).then_some(at as u16 + 1);
            self.memory.write(table + DESC_LEN * at as u64, &chained(*buffer, next).to_bytes())?;
        }
        let len = DESC_LEN as u32 * buffers.len() as u32;
        self.write_descriptor(indices[0], Descriptor { addr: table, len, flags: DESC_INDIRECT, next: 0 })?;
        self.push(indices).map(Some)
    }

    /// Shows the device all chains added since the last time; whether the device wants a kick for them.
    pub fn publish(&mut self) -> Result<bool> {
        self.write_available_index(self.next_avail)?;
        let before = std::mem::replace(&mut self.published, self.next_avail);
        // The index is out before the device's wish is read: else both sides may go to sleep.
        fence(Ordering::SeqCst);
        if self.event_idx {
            Ok(passes(self.memory.load_u16(self.layout.avail_event())?, before, self.published))
        } else {
            Ok(self.memory.load_u16(self.layout.used)? & USED_NO_NOTIFY == 0)
        }
    }

    /// Publishes, then kicks as the policy says; whether it kicked.
    pub fn publish_and_kick(&mut self) -> Result<bool> {
        let something = self.published != self.next_avail;
        let wanted = self.publish()?;
        let kick = match self.kick_policy {
            KickPolicy::Always => something,
            KickPolicy::IfWanted => something && wanted,
            KickPolicy::Never => false,
        };
        if kick {
            self.kick.signal()?;
        }
        Ok(kick)
    }

    /// Takes what the device has used by now: `(id, len)` of each, in its order. Their descriptors are free
    /// again. An id that is not in flight, and more used entries than chains in flight, are errors.
    pub fn poll(&mut self) -> Result<Vec<(u32, u32)>> {
        let index = self.used_index()?;
        let count = index.wrapping_sub(self.next_used);
        ensure!(
            usize::from(count) <= self.in_flight.len(),
            "the used index went from {} to {index}, with {} chains in flight",
            self.next_used,
            self.in_flight.len()
        );
        let mut used = Vec::with_capacity(count.into());
        for _ in 0..count {
            let (id, len) = self.read_used_entry(self.next_used)?;
            let chain = u16::try_from(id).ok().and_then(|head| self.in_flight.remove(&head));
            self.free.extend(
                chain.with_context(|| format!("the device used chain {id}, which is not in flight"))?,
            );
            self.next_used = self.next_used.wrapping_add(1);
            used.push((id, len));
        }
        if self.event_idx && count > 0 {
            // Ask to be called for the very next one.
            self.write_used_event(self.next_used)?;
        }
        Ok(used)
    }

    /// Polls until there is something used; empty if nothing came in time.
    pub fn wait_used(&mut self, limit: Duration) -> Result<Vec<(u32, u32)>> {
        let deadline = Instant::now() + limit;
        for turn in 0.. {
            let used = self.poll()?;
            if !used.is_empty() || Instant::now() >= deadline {
                return Ok(used);
            }
            // The back-end may need this CPU.
            if turn < 16 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        unreachable!("the loop has no end of its own")
    }

    /// Gives up all chains in flight and starts again at `base`, as a driver does after a reset.
    pub fn reset(&mut self, base: u16) -> Result<()> {
        self.free = (0..self.layout.size).rev().collect();
        self.in_flight.clear();
        (self.next_avail, self.published, self.next_used) = (base, base, base);
        self.write_indices(base)
    }

    // ---- Anything anywhere ----

    /// Writes a descriptor of the table.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) -> Result<()> {
        self.memory.write(self.layout.descriptor(index), &descriptor.to_bytes())
    }

    /// Writes the entry of the available ring for the free-running index `index`.
    pub fn write_available_entry(&self, index: u16, head: u16) -> Result<()> {
        self.memory.write(self.layout.available_entry(index), &head.to_le_bytes())
    }

    /// Writes the available index.
    pub fn write_available_index(&self, index: u16) -> Result<()> {
        self.memory.store_u16(self.layout.available + 2, index, self.owns_available_words())
    }

    /// Writes the available ring's flags.
    pub fn write_available_flags(&self, flags: u16) -> Result<()> {
        self.memory.store_u16(self.layout.available, flags, self.owns_available_words())
    }

    /// Writes `used_event`: the used index at which the device is to call.
    pub fn write_used_event(&self, index: u16) -> Result<()> {
        self.memory.store_u16(self.layout.used_event(), index, self.owns_available_words())
    }

    /// Writes the used index, which is the device's to write once the ring is started.
    pub fn write_used_index(&self, index: u16) -> Result<()> {
        self.memory.store_u16(self.layout.used + 2, index, false)
    }

    /// Makes a head available that [`add`](Self::add) did not make: not published, not in the books.
    pub fn push_raw(&mut self, head: u16) -> Result<()> {
        self.write_available_entry(self.next_avail, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(())
    }

    /// Makes as many chains available as were used, without a look at them; returns how many. A ring full of chains that
    /// are used in order never runs dry so, for next to nothing. The books are of no use from then on.
    pub fn renew(&mut self) -> Result<u16> {
        let used = self.used_index()?;
        let count = used.wrapping_sub(self.next_used);
        self.next_used = used;
        self.next_avail = self.next_avail.wrapping_add(count);
        self.publish_and_kick()?;
        Ok(count)
    }

    /// Reads the used index.
    pub fn used_index(&self) -> Result<u16> {
        self.memory.load_u16(self.layout.used + 2)
    }

    /// Reads the used ring's flags.
    pub fn used_flags(&self) -> Result<u16> {
        self.memory.load_u16(self.layout.used)
    }

    /// Reads `avail_event`: the available index at which the device wants a kick.
    pub fn avail_event(&self) -> Result<u16> {
        self.memory.load_u16(self.layout.avail_event())
    }

    /// Reads the entry `(id, len)` of the used ring for the free-running index `index`.
    pub fn read_used_entry(&self, index: u16) -> Result<(u32, u32)> {
        let mut bytes = [0; 8];
        self.memory.read(self.layout.used_entry(index), &mut bytes)?;
        let both = u64::from_le_bytes(bytes);
        Ok((both as u32, (both >> 32) as u32))
    }

    /// Leaves both indices at `base`, and both event indices as two idle sides leave them there: the next chain
    /// is kicked, the next use is called. With zeros, a ring that starts elsewhere would sleep for ever.
    fn write_indices(&self, base: u16) -> Result<()> {
        self.write_available_index(base)?;
        self.write_used_index(base)?;
        self.write_used_event(base)?;
        self.memory.store_u16(self.layout.avail_event(), base, false)
    }

    /// Takes `count` free descriptors, if there are so many.
    fn take(&mut self, count: usize) -> Option<Vec<u16>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.drain(rest..).rev().collect())
    }

    /// Puts a chain into the next entry of the available ring and into the books.
    fn push(&mut self, indices: Vec<u16>) -> Result<u16> {
        let head = indices[0];
        self.push_raw(head)?;
        self.in_flight.insert(head, indices);
        Ok(head)
    }

    /// Whether the words of eight bytes around the available ring are the driver's alone: it starts at one,
    /// and nothing of the device's follows in the word of its last bytes.
    fn owns_available_words(&self) -> bool {
        let end = (self.layout.used_event() + 2).next_multiple_of(8);
        self.layout.available.is_multiple_of(8) && !(self.layout.available..end).contains(&self.layout.used)
    }
}

#[cfg(test)]
mod tests;
