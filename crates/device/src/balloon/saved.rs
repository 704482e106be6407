//! What a driver has made of a balloon, for another device to go on with. What the host wants is the other's own.

use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{BalloonDevice, Hinting};

/// First byte of a saved state, for others to come.
const VERSION: u8 = 1;

/// [`Saved::flags`]: the statistics that are in the queue have been read.
const IS_READ: u8 = 1;
/// There is an oldest ID.
const HAS_OLDEST: u8 = 2;

/// A saved state is not of a form that this version reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0} bytes are not the state of a memory balloon, or of another version")]
pub struct StateError(usize);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Saved {
    version: u8,
    flags: u8,
    actual: U32,
    poison: U32,
    /// Of the rounds of hints: what is wanted, what was heard, the last ID, the oldest.
    hinting: [U32; 4],
    served: [U32; 2],
}

impl BalloonDevice {
    /// What another device of the same settings needs to go on where this one stopped, beside the features that were
    /// acked: a transport moves those itself.
    pub fn save(&self) -> Vec<u8> {
        let Hinting { wanted, heard, last, oldest } = self.hinting;
        let flags = if self.is_read { IS_READ } else { 0 } | if oldest.is_some() { HAS_OLDEST } else { 0 };
        let saved = Saved {
            version: VERSION,
            flags,
            actual: self.actual.into(),
            poison: self.poison.into(),
            hinting: [wanted, heard, last, oldest.unwrap_or(0)].map(U32::new),
            // A chain has less than 4 GiB.
            served: self.served.map(|served| U32::new(served as u32)),
        };
        saved.as_bytes().to_vec()
    }

    /// Goes on where another device stopped.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed then.
    pub fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        let saved = Saved::read_from_bytes(state).ok().filter(|saved| saved.version == VERSION);
        let saved = saved.ok_or(StateError(state.len()))?;
        let [wanted, heard, last, oldest] = saved.hinting.map(U32::get);
        let oldest = (saved.flags & HAS_OLDEST != 0).then_some(oldest);
        self.hinting = Hinting { wanted, heard, last, oldest };
        self.is_read = saved.flags & IS_READ != 0;
        (self.actual, self.poison) = (saved.actual.get(), saved.poison.get());
        self.served = saved.served.map(|served| served.get() as usize);
        Ok(())
    }
}
