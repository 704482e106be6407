//! What a driver has made of a console, for another device to go on with: what it was told of each port, and what it said. What
//! the ports are is the other's own; where that differs, its driver is told.

use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::ConsoleDevice;
use super::port::Saved;

/// First byte of a saved state, for others to come.
const VERSION: u8 = 1;

/// A saved state is not of a form that this version reads, or of a device with another number of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0} bytes are not the state of a console of as many ports, or of another version")]
pub struct StateError(usize);

impl ConsoleDevice {
    /// What another device of as many ports needs to go on where this one stopped, beside the features that were acked: a
    /// transport moves those itself.
    pub fn save(&self) -> Vec<u8> {
        let mut state: Vec<u8> = [VERSION, u8::from(self.is_ready)].into();
        for port in &self.ports {
            state.extend_from_slice(port.save().as_bytes());
        }
        state
    }

    /// Goes on where another device stopped. There may be something to [tell](Self::control_receive) after.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed then.
    pub fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        let wrong = StateError(state.len());
        let [VERSION, is_ready @ (0 | 1), ports @ ..] = state else { return Err(wrong) };
        let ports = <[Saved]>::ref_from_bytes(ports).map_err(|_| wrong)?;
        if ports.len() != self.ports.len() {
            return Err(wrong);
        }
        self.is_ready = *is_ready == 1;
        for (port, saved) in self.ports.iter_mut().zip(ports) {
            port.load(saved);
        }
        Ok(())
    }
}
