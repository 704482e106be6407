//! [`RingArea`] for models of the memory's ordering. It takes the place of `area` under `cfg(loom)`: its words are
//! loom's, whose loads return each value that a processor might see.
//!
//! An aligned word does not tear on a processor, so here it is one atomic, whatever its size; it is therefore always
//! reached by that size, as the words of a ring are. A pair is two words.
//!
//! Which order of two accesses is worth trying, loom judges by the last access only: where a thread loads a word and
//! then stores to it, as both sides of a packed ring do, it forgets the loads of others in between
//! (<https://github.com/tokio-rs/loom/issues/166>). So every access takes a turn first: a swap, of which loom tries
//! all orders. It is relaxed, and orders nothing in the model.

use alloc::sync::Arc;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::AtomicUsize;

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Backing, Gpa};

/// Size of the smallest word: a word at offset `n` is number `n / SMALLEST`.
const SMALLEST: usize = 2;

/// A range of a model's memory that holds one area of a ring. Each side has a clone of it.
#[derive(Clone)]
pub struct RingArea {
    words: Arc<[Word]>,
    /// Which of the words are in the area.
    range: Range<usize>,
}

/// The word that begins at an offset.
#[derive(Default)]
struct Word {
    value: AtomicU64,
    turn: AtomicBool,
    /// Which word, of what size, these bytes were reached by. Loom does not see it.
    reached_by: AtomicUsize,
}

macro_rules! words {
    ($word:ty, $load:ident, $load_acquire:ident, $store:ident, $store_release:ident) => {
        /// Reads a word with relaxed ordering.
        pub fn $load(&self, offset: usize) -> $word {
            self.word(offset, size_of::<$word>()).load(Ordering::Relaxed) as $word
        }

        /// Reads a word; what the peer wrote before it published the word is visible after.
        pub fn $load_acquire(&self, offset: usize) -> $word {
            self.word(offset, size_of::<$word>()).load(Ordering::Acquire) as $word
        }

        /// Writes a word with relaxed ordering.
        pub fn $store(&self, offset: usize, value: $word) {
            self.word(offset, size_of::<$word>()).store(value.into(), Ordering::Relaxed);
        }

        /// Publishes a word: a peer that sees it sees all we wrote before.
        pub fn $store_release(&self, offset: usize, value: $word) {
            self.word(offset, size_of::<$word>()).store(value.into(), Ordering::Release);
        }
    };
}

macro_rules! pairs {
    ($word:ty, $load:ident, $load_acquire:ident, $load_pair:ident, $store:ident, $store_pair:ident) => {
        /// Reads two adjoining words: the second, then the first; what the peer wrote before it published the second
        /// is visible in the first, and after.
        pub fn $load_pair(&self, offset: usize) -> ($word, $word) {
            let second = self.$load_acquire(offset + size_of::<$word>());
            (self.$load(offset), second)
        }

        /// Writes two adjoining words with relaxed ordering.
        pub fn $store_pair(&self, offset: usize, (first, second): ($word, $word)) {
            self.$store(offset, first);
            self.$store(offset + size_of::<$word>(), second);
        }
    };
}

impl RingArea {
    /// An area of `len` bytes, a multiple of 2, all 0. Only inside of a model.
    pub fn model(len: usize) -> Self {
        Self { words: (0..len / SMALLEST).map(|_| Word::default()).collect(), range: 0..len / SMALLEST }
    }

    /// A part of the area, by its offsets in bytes, multiples of 2.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "a part of ours is in the area");
        let at = |offset: usize| self.range.start + offset / SMALLEST;
        Self { words: Arc::clone(&self.words), range: at(range.start)..at(range.end) }
    }

    /// Nobody takes a model's memory away.
    pub fn is_intact(&self) -> bool {
        true
    }

    /// Stands where that of mapped memory does.
    ///
    /// # Panics
    /// Always: loom does not see what happens to mapped memory.
    ///
    /// # Safety
    /// Nothing is asked.
    pub(crate) unsafe fn from_raw(_: NonNull<u8>, _: usize, _: Gpa, _: Arc<dyn Backing>) -> Self {
        panic!("a model's areas come from `RingArea::model`")
    }

    /// Whether it starts at a multiple of `align` bytes; a model's areas have no address.
    pub fn is_aligned(&self, _: u64) -> bool {
        true
    }

    /// Where it begins in guest-physical memory; a model's areas have no address.
    pub fn gpa(&self) -> Gpa {
        Gpa::default()
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an area is never empty")]
    pub fn len(&self) -> usize {
        self.range.len() * SMALLEST
    }

    words!(u16, load_u16, load_u16_acquire, store_u16, store_u16_release);
    words!(u32, load_u32, load_u32_acquire, store_u32, store_u32_release);
    words!(u64, load_u64, load_u64_acquire, store_u64, store_u64_release);
    pairs!(u32, load_u32, load_u32_acquire, load_u32_pair, store_u32, store_u32_pair);
    pairs!(u64, load_u64, load_u64_acquire, load_u64_pair, store_u64, store_u64_pair);

    /// There is nothing to fetch.
    pub fn prefetch(&self, _: usize) {}

    /// There is nothing to fetch.
    pub fn prefetch_to_write(&self, _: usize) {}

    /// Takes a turn at the word of `size` bytes at `offset`.
    fn word(&self, offset: usize, size: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(size), "a ring offset of ours is aligned");
        let covered = &self.words[self.range.clone()][offset / SMALLEST..][..size / SMALLEST];
        let word = offset * 16 + size;
        for Word { reached_by, .. } in covered {
            let before = reached_by.swap(word, Ordering::Relaxed);
            assert!(before == 0 || before == word, "a word is always reached as a whole");
        }
        covered[0].turn.swap(true, Ordering::Relaxed);
        &covered[0].value
    }
}

/// As for mapped memory. Buffers are mapped memory in models too.
pub(crate) const CACHE_LINE: usize = 64;

/// Saves nothing in a model.
pub(crate) fn prefetch_to_write(_: NonNull<u8>) {}

/// Saves nothing in a model.
pub(crate) fn prefetch(_: NonNull<u8>) {}
