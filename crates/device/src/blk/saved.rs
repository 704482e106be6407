//! What a driver has made of a device, for another device to go on with: the cache mode, if the driver wrote one.
//!
//! ```text
//!   version (1) │ 0 or 1, or nothing
//! ```

use alloc::vec::Vec;

use thiserror::Error;

use super::BlkDevice;
use crate::status::FeatureError;

/// First byte of a saved state, for others to come.
const VERSION: u8 = 1;

/// What a driver has made of a device: all that it takes to go on with another one of the same settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// The features acked, if any were.
    pub acked: Option<u64>,
    /// The device status.
    pub status: u8,
    /// The cache mode that the driver wrote, if it did: whether it is writeback.
    pub writeback: Option<bool>,
}

/// A saved state is not of a form that this version reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0} bytes are not the state of a block device, or of another version")]
pub struct StateError(usize);

impl BlkDevice {
    /// What the driver has made of it.
    pub fn state(&self) -> State {
        let (acked, status) = (self.negotiation.accepted(), self.negotiation.status().bits());
        State { acked, status, writeback: self.written }
    }

    /// A device after reset goes on where another was.
    ///
    /// # Errors
    /// [`FeatureError`], if this device does not offer what was acked.
    pub fn restore(&mut self, state: &State) -> Result<(), FeatureError> {
        self.negotiation.restore(state.acked, state.status)?;
        self.written = state.writeback;
        Ok(())
    }

    /// What another device of the same settings needs to go on where this one stopped, beside the features that were
    /// acked: a transport moves those itself.
    pub fn save(&self) -> Vec<u8> {
        [VERSION].into_iter().chain(self.written.map(u8::from)).collect()
    }

    /// Goes on where another device stopped; the [`rules`](Self::rules) and the configuration may have changed with it.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed then.
    pub fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.written = match *state {
            [VERSION] => None,
            [VERSION, mode @ (0 | 1)] => Some(mode == 1),
            _ => return Err(StateError(state.len())),
        };
        Ok(())
    }
}
