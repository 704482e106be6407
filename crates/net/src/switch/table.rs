//! The addresses that the switch has learned, for all workers at once.
//!
//! ```text
//!  VLAN, address ──hash──► two buckets, a cache line each:   sequence │ key value │ key value │ key value
//!                                                            odd while a slot is written
//! ```
//!
//! Who looks an address up takes no lock and writes nothing: the sequence tells it whether the line changed
//! meanwhile. Who learns one takes the lock, if it is free; if not, the next frame is soon enough. A known
//! address costs its sender one store a second, without the lock.
//!
//! Addresses are a guest's to choose. So a port has a limit, a part of the table is reserved for each port, and
//! an address that finds no room is flooded; nobody's live address makes room for another's. The hash is seeded
//! anew in each process: nobody can choose addresses that share a bucket.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use super::PortIndex;
use crate::frame::Mac;
use crate::handover::Learned;

/// Seconds after which an address that sent nothing is forgotten.
pub(super) const MAX_AGE: u64 = 300;
/// The most addresses in the table, if the ports' limits allow more: so many, or so many for each port, or twice the
/// largest limit.
const CAPACITY: usize = 32 * 1024;
const CAPACITY_PER_PORT: usize = 64;
/// How many sweeps look at the whole table once.
const SWEEPS: usize = 8;
/// How often a line is read that somebody is writing, before its addresses pass for unknown.
const READS: usize = 16;

/// An address in a VLAN. Never 0, which is a free slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(u64);

impl Key {
    const TAKEN: u64 = 1 << 63;

    #[inline]
    pub(super) fn new(vlan: u16, mac: Mac) -> Self {
        Self(Self::TAKEN | u64::from(vlan & 0xfff) << 48 | mac.bits())
    }
}

/// Where an address was last seen, and in which second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    port: u32,
    seen: u32,
}

impl Entry {
    fn new(port: PortIndex, seen: u64) -> Self {
        Self { port: port as u32, seen: seen as u32 }
    }

    const fn unpack(value: u64) -> Self {
        Self { port: (value >> 32) as u32, seen: value as u32 }
    }

    const fn pack(self) -> u64 {
        (self.port as u64) << 32 | self.seen as u64
    }

    fn port(self) -> PortIndex {
        self.port as PortIndex
    }

    fn is_old(self, now: u64) -> bool {
        now.saturating_sub(self.seen.into()) > MAX_AGE
    }
}

#[derive(Default)]
struct Slot {
    key: AtomicU64,
    value: AtomicU64,
}

impl Slot {
    /// The key and its entry; for who holds the lock.
    fn get(&self) -> Option<(Key, Entry)> {
        let key = self.key.load(Ordering::Relaxed);
        (key != 0).then(|| (Key(key), Entry::unpack(self.value.load(Ordering::Relaxed))))
    }
}

/// A cache line.
#[derive(Default)]
#[repr(align(64))]
struct Bucket {
    sequence: AtomicU64,
    slots: [Slot; 3],
}

impl Bucket {
    /// The slot of a key, and what it held at one moment.
    #[inline]
    fn find(&self, key: Key) -> Option<(&Slot, Entry)> {
        for _ in 0..READS {
            let before = self.sequence.load(Ordering::Acquire);
            let slot = self.slots.iter().find(|slot| slot.key.load(Ordering::Relaxed) == key.0);
            let found = slot.map(|slot| (slot, Entry::unpack(slot.value.load(Ordering::Relaxed))));
            // Pairs with the one in `write`: if we saw any of what it wrote, we see its sequence.
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.sequence.load(Ordering::Relaxed) == before {
                return found;
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Writes a slot of this bucket; for who holds the lock.
    fn write(&self, slot: &Slot, key: u64, value: u64) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        slot.key.store(key, Ordering::Relaxed);
        slot.value.store(value, Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    fn free(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.get().is_none())
    }
}

/// How many addresses a port has, may have, and may have whatever the others do.
struct Account {
    learned: AtomicU32,
    limit: u32,
    reserved: u32,
}

/// See the module.
pub(super) struct Table {
    buckets: Box<[Bucket]>,
    hasher: RandomState,
    accounts: Box<[Account]>,
    /// Addresses beyond what is reserved for their ports, and the most of these.
    beyond: AtomicU32,
    most_beyond: u32,
    /// Counts what makes an answer wrong that somebody may have kept.
    version: AtomicU64,
    /// The lock: who changes what is learned, and the bucket that the next sweep begins at.
    writer: Mutex<usize>,
}

impl Table {
    /// A table for ports with these limits.
    pub(super) fn new(limits: impl IntoIterator<Item = usize>) -> Self {
        let limits: Vec<usize> = limits.into_iter().collect();
        let ports = limits.len().max(1);
        let total = limits.iter().fold(1, |sum: usize, &limit| sum.saturating_add(limit));
        let largest = limits.iter().copied().max().unwrap_or_default();
        let capacity = total.min(CAPACITY.max(CAPACITY_PER_PORT * ports).max(largest.saturating_mul(2)));
        let reserved = |limit: usize| limit.min(capacity / ports / 2);
        let most_beyond = capacity - limits.iter().map(|&limit| reserved(limit)).sum::<usize>();
        let account = |&limit| Account {
            learned: AtomicU32::new(0),
            limit: limit as u32,
            reserved: reserved(limit) as u32,
        };
        // One address in three slots at most: both buckets of an address are hardly ever full.
        let buckets = (0..capacity.next_power_of_two()).map(|_| Bucket::default());
        Self {
            buckets: buckets.collect(),
            hasher: RandomState::default(),
            accounts: limits.iter().map(account).collect(),
            beyond: AtomicU32::new(0),
            most_beyond: most_beyond as u32,
            version: AtomicU64::new(0),
            writer: Mutex::new(0),
        }
    }

    /// Changes whenever an address has another port or none any more.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The port behind which an address is.
    #[inline]
    pub(super) fn find(&self, key: Key, now: u64) -> Option<PortIndex> {
        let (_, _, entry) = self.find_slot(key)?;
        (!entry.is_old(now)).then(|| entry.port())
    }

    /// Learns that an address is behind a port; returns whether the table says so now.
    pub(super) fn learn(&self, key: Key, port: PortIndex, now: u64) -> bool {
        let entry = Entry::new(port, now);
        match self.find_slot(key) {
            Some((_, slot, known)) if known.port == entry.port => {
                if known.seen < entry.seen {
                    // Whoever changes the slot meanwhile knows better.
                    let _ = slot.value.compare_exchange(
                        known.pack(),
                        entry.pack(),
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                }
                true
            }
            // At its limit a port does not even take the lock.
            _ => self.has_room(port) && self.writer.try_lock().is_ok_and(|_lock| self.put(key, entry)),
        }
    }

    /// Frees some of the slots of addresses that have sent nothing for long. To be called every now and then.
    pub(super) fn sweep(&self, now: u64) {
        let Ok(mut begin) = self.writer.try_lock() else { return };
        let end = (*begin + self.buckets.len().div_ceil(SWEEPS)).min(self.buckets.len());
        self.forget(&self.buckets[*begin..end], |entry| entry.is_old(now));
        *begin = end % self.buckets.len();
    }

    /// Forgets the addresses of a port.
    pub(super) fn forget_port(&self, port: PortIndex) {
        let _lock = self.lock();
        self.forget(&self.buckets, |entry| entry.port() == port);
    }

    /// All that is known.
    pub(super) fn learned(&self, now: u64) -> Vec<Learned> {
        let _lock = self.lock();
        let slots = self.buckets.iter().flat_map(|bucket| &bucket.slots);
        let live = slots.filter_map(Slot::get).filter(|(_, entry)| !entry.is_old(now));
        let learned = live.map(|(key, entry)| Learned {
            key: key.0 & !Key::TAKEN,
            port: entry.port(),
            seen: entry.seen.into(),
        });
        learned.collect()
    }

    /// Learns what another table had learned, within the bounds of this one.
    pub(super) fn learn_again(&self, learned: &[Learned], now: u64) {
        for &Learned { key, port, seen } in learned.iter().filter(|l| l.port < self.accounts.len()) {
            self.learn(Key(key | Key::TAKEN), port, seen.min(now));
        }
    }

    /// How many addresses a port has.
    #[cfg(test)]
    pub(super) fn count(&self, port: PortIndex) -> usize {
        self.accounts[port].learned.load(Ordering::Relaxed) as usize
    }

    #[inline]
    fn find_slot(&self, key: Key) -> Option<(&Bucket, &Slot, Entry)> {
        self.buckets_of(key).into_iter().find_map(|bucket| {
            let (slot, entry) = bucket.find(key)?;
            Some((bucket, slot, entry))
        })
    }

    #[inline]
    fn buckets_of(&self, key: Key) -> [&Bucket; 2] {
        let hash = self.hasher.hash_one(key.0) as usize;
        let mask = self.buckets.len() - 1;
        [&self.buckets[hash & mask], &self.buckets[hash >> 32 & mask]]
    }

    // Under the lock, but for `has_room`, which may be wrong by the time it is known

    fn lock(&self) -> MutexGuard<'_, usize> {
        // A panic leaves no address half written, only its count wrong.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, port: PortIndex) -> bool {
        let Account { learned, limit, reserved } = &self.accounts[port];
        let learned = learned.load(Ordering::Relaxed);
        let may_go_beyond = || self.beyond.load(Ordering::Relaxed) < self.most_beyond;
        learned < *limit && (learned < *reserved || may_go_beyond())
    }

    fn put(&self, key: Key, entry: Entry) -> bool {
        if !self.has_room(entry.port()) {
            return false;
        }
        // Another worker may have been faster.
        if let Some((bucket, slot, known)) = self.find_slot(key) {
            if known.port != entry.port {
                bucket.write(slot, key.0, entry.pack());
                self.leave(known.port());
                self.enter(entry.port());
                self.version.fetch_add(1, Ordering::Release);
            }
            return true;
        }
        let [first, second] = self.buckets_of(key);
        let bucket = if second.free().count() > first.free().count() { second } else { first };
        let Some(slot) = bucket.free().next() else { return false };
        bucket.write(slot, key.0, entry.pack());
        self.enter(entry.port());
        true
    }

    fn forget(&self, buckets: &[Bucket], is_gone: impl Fn(Entry) -> bool) {
        let mut any = false;
        for bucket in buckets {
            for slot in &bucket.slots {
                if let Some((_, entry)) = slot.get().filter(|(_, entry)| is_gone(*entry)) {
                    bucket.write(slot, 0, 0);
                    self.leave(entry.port());
                    any = true;
                }
            }
        }
        if any {
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    /// A port has one address more.
    fn enter(&self, port: PortIndex) {
        let Account { learned, reserved, .. } = &self.accounts[port];
        if learned.fetch_add(1, Ordering::Relaxed) >= *reserved {
            self.beyond.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A port has one address less.
    fn leave(&self, port: PortIndex) {
        let Account { learned, reserved, .. } = &self.accounts[port];
        if learned.fetch_sub(1, Ordering::Relaxed) > *reserved {
            self.beyond.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
