//! Memory that a driver shares with a back-end: a file without a name, cut into pieces that come back.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringway_memory::{Backing, FrontendVa, Gpa, GuestBuf, Region};
use ringway_vhost::frontend::{Frontend, FrontendError, Memory, Pages};

use crate::{OutOfMemory, Platform, TransportError};

/// The device's address of the first byte. Not that of any front-end's, so that a mix-up shows.
const START: Gpa = Gpa(1 << 30);
/// Pieces begin at multiples of it.
const ALIGN: u64 = 4096;
/// Looks at a device without a pause: it may be about to answer.
const SPINS: u32 = 10_000;
/// Between later looks.
const PAUSE: Duration = Duration::from_micros(50);
/// Looks after which a device will not answer any more: 30 seconds and more.
const PATIENCE: u32 = 600_000;

/// The [`Platform`] of drivers whose devices are vhost-user back-ends. A clone is the same memory.
#[derive(Clone)]
pub struct SharedMemory(Arc<Arena>);

struct Arena {
    memory: Memory,
    free: Mutex<FreeList>,
}

impl SharedMemory {
    /// So many bytes, of which the kernel gives what is used. Of [huge](Pages::Huge) pages it is to be whole ones.
    ///
    /// # Errors
    /// [`TransportError::VhostUser`]: the kernel refused.
    pub fn new(len: u64, pages: Pages) -> Result<Self, TransportError> {
        let memory = Memory::new(START, len, pages)?;
        Ok(Self(Arc::new(Arena { memory, free: Mutex::new(FreeList::new(len)) })))
    }

    /// Has a back-end map it.
    pub(super) fn share_with(&self, frontend: &mut Frontend) -> Result<(), FrontendError> {
        frontend.add_memory([&self.0.memory])
    }

    /// The front-end's name for what the device finds at `gpa`.
    pub(super) fn frontend_va(&self, gpa: Gpa) -> FrontendVa {
        self.0.memory.frontend_va(gpa.0.wrapping_sub(START.0))
    }
}

// SAFETY: a piece is given out once until its last user lets go of it, and back-ends map the whole file at the address that
// the pieces' are counted from.
unsafe impl Platform for SharedMemory {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        let out = OutOfMemory { len };
        let offset = self.0.free().take(len).ok_or(out)?;
        // From here on it is given back whatever happens.
        let piece = Arc::new(Piece { arena: Arc::clone(&self.0), offset, len });
        let base = piece.bytes().and_then(|bytes| NonNull::new(bytes.as_ptr())).ok_or(out)?;
        let memory = &self.0.memory;
        // SAFETY: the piece holds `len` bytes from `base` on, which are mapped as long as the arena that it keeps is; only
        // the memory crate reaches them, and never by a reference.
        unsafe { Region::new(memory.gpa(offset), memory.frontend_va(offset), base, len, piece) }
            .map_err(|_| out)
    }

    fn wait(&self, round: u32) -> bool {
        if round < SPINS {
            core::hint::spin_loop();
        } else {
            std::thread::sleep(PAUSE);
        }
        round < PATIENCE
    }
}

impl Arena {
    fn free(&self) -> MutexGuard<'_, FreeList> {
        // Whoever panicked left the list as it was, or changed.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece that is in use.
struct Piece {
    arena: Arc<Arena>,
    offset: u64,
    len: u64,
}

impl Piece {
    fn bytes(&self) -> Option<ringway_memory::GuestSlice<'_>> {
        self.arena.memory.region().bytes(self.offset, self.len)
    }
}

impl Backing for Piece {
    fn is_intact(&self) -> bool {
        self.arena.memory.region().is_intact()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // The next user is promised zeros.
        if let Some(bytes) = self.bytes() {
            let mut left = GuestBuf::new(core::slice::from_ref(&bytes));
            while !left.is_empty() {
                left = left.advance(left.write(&[0; ALIGN as usize]));
            }
        }
        self.arena.free().give_back(self.offset, self.len);
    }
}

/// What is free: where each run begins, and its length. No two touch.
struct FreeList(BTreeMap<u64, u64>);

impl FreeList {
    fn new(len: u64) -> Self {
        Self(BTreeMap::from([(0, len - len % ALIGN)]))
    }

    /// Takes `len` bytes of the first run that has as many.
    fn take(&mut self, len: u64) -> Option<u64> {
        let len = len.checked_next_multiple_of(ALIGN).filter(|len| *len > 0)?;
        let (&start, &free) = self.0.iter().find(|(_, free)| **free >= len)?;
        self.0.remove(&start);
        if free > len {
            self.0.insert(start + len, free - len);
        }
        Some(start)
    }

    /// Gives back what was taken.
    fn give_back(&mut self, start: u64, len: u64) {
        let mut start = start;
        let mut len = len.next_multiple_of(ALIGN);
        if let Some(behind) = self.0.remove(&(start + len)) {
            len += behind;
        }
        if let Some((&before, &free)) = self.0.range(..start).next_back()
            && before + free == start
        {
            start = before;
            len += free;
        }
        self.0.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 0x10_0000;

    /// What is given back can be taken again, in any order, as one piece in the end.
    #[test]
    fn pieces_come_back() {
        let mut free = FreeList::new(LEN + 1);
        let mut taken: std::vec::Vec<_> = (0..LEN / ALIGN).map(|_| free.take(1).unwrap()).collect();
        assert!(free.take(1).is_none() && free.take(0).is_none() && free.take(u64::MAX).is_none());
        // Every third first, so that there are holes on both sides of others.
        taken.sort_by_key(|start| (start / ALIGN % 3, *start));
        for start in taken {
            free.give_back(start, 1);
        }
        assert_eq!(free.0, BTreeMap::from([(0, LEN)]));
        assert_eq!(free.take(LEN), Some(0));
    }

    /// Pieces lie apart, at multiples of a page for the device, and are zeroed however often they were used.
    #[test]
    fn memory_is_zeroed_and_apart() {
        let memory = SharedMemory::new(LEN, Pages::Small).unwrap();
        let first = memory.allocate(100).unwrap();
        let second = memory.allocate(LEN - ALIGN).unwrap();
        assert!(matches!(memory.allocate(1), Err(OutOfMemory { len: 1 })));
        assert_eq!((first.gpa(), first.len()), (START, 100));
        assert_eq!(second.gpa(), Gpa(START.0 + ALIGN));
        assert_eq!(memory.frontend_va(second.gpa()), second.frontend_va());
        let fill = |region: &Region, byte: u8| {
            let bytes = region.bytes(0, region.len()).unwrap();
            GuestBuf::new(&[bytes]).write(&std::vec![byte; region.len() as usize])
        };
        assert_eq!((fill(&first, 1), fill(&second, 2)), (100, (LEN - ALIGN) as usize));
        let clone = second.clone();
        drop(second);
        assert!(memory.allocate(LEN - ALIGN).is_err(), "a clone keeps it");
        drop((first, clone));
        let all = memory.allocate(LEN).unwrap();
        let mut bytes = std::vec![0xff; LEN as usize];
        GuestBuf::new(&[all.bytes(0, LEN).unwrap()]).read(&mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert!(all.is_intact());
    }
}
