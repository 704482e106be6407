//! The words of a ring: those of `ringway-memory`. In this crate's own tests, whoever stores to them can be killed at
//! any store.

#[cfg(test)]
#[allow(unreachable_pub, reason = "public types have areas as fields")]
pub use killable::{RingArea, until_killed};
#[cfg(not(test))]
pub(crate) use ringway_memory::RingArea;

/// An area as this crate sees it.
#[cfg(not(test))]
pub(crate) fn resolved(area: RingArea) -> RingArea {
    area
}

#[cfg(test)]
pub(crate) fn resolved(area: ringway_memory::RingArea) -> RingArea {
    RingArea(area)
}

/// Killing at a store, as SIGKILL does: those before it have happened, it and those behind it do not.
#[cfg(test)]
#[allow(unreachable_pub, reason = "public types have areas as fields")]
mod killable {
    extern crate std;

    use core::cell::Cell;
    use core::ops::Deref;
    use std::boxed::Box;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    std::thread_local! {
        /// How many stores are left to whom is running, if anyone is counted.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    struct Killed;

    /// Runs `process` for as long as it makes no more than `stores` stores, and deducts those it makes. `None`: it was
    /// killed.
    pub fn until_killed<T>(stores: &mut usize, process: impl FnOnce() -> T) -> Option<T> {
        LEFT.set(Some(*stores));
        let result = catch_unwind(AssertUnwindSafe(process));
        *stores = LEFT.take().expect("a count");
        match result {
            Ok(result) => Some(result),
            Err(panic) if panic.is::<Killed>() => None,
            Err(panic) => resume_unwind(panic),
        }
    }

    fn count_store() {
        match LEFT.get() {
            None => {}
            Some(0) => resume_unwind(Box::new(Killed)),
            Some(left) => LEFT.set(Some(left - 1)),
        }
    }

    /// An area with counted stores.
    pub struct RingArea(pub(super) ringway_memory::RingArea);

    impl Deref for RingArea {
        type Target = ringway_memory::RingArea;

        fn deref(&self) -> &ringway_memory::RingArea {
            &self.0
        }
    }

    macro_rules! stores {
        ($($store:ident: $word:ty),*) => {
            impl RingArea {
                $(pub fn $store(&self, offset: usize, value: $word) {
                    count_store();
                    self.0.$store(offset, value);
                })*

                pub fn store_u32_pair(&self, offset: usize, (first, second): (u32, u32)) {
                    self.store_u32(offset, first);
                    self.store_u32(offset + 4, second);
                }

                pub fn store_u64_pair(&self, offset: usize, (first, second): (u64, u64)) {
                    self.store_u64(offset, first);
                    self.store_u64(offset + 8, second);
                }
            }
        };
    }
    stores!(
        store_u16: u16, store_u16_release: u16, store_u32: u32,
        store_u32_release: u32, store_u64: u64, store_u64_release: u64
    );
}
