//! What a driver has made of a device, for another device to go on with: the orders as the commands that give them.
//!
//! ```text
//!   version (1) │ length (2) command │ length (2) command │ …
//! ```
//!
//! The first version had the number of pairs in use and nothing else. It can still be read.

use alloc::vec::Vec;

use ringway_spec::net::{CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, MQ_PAIRS_MIN};
use thiserror::Error;

use super::NetDevice;
use super::command::Command;
use super::control::Orders;
use crate::status::FeatureError;

/// First byte of a saved state, for others to come.
const VERSION: u8 = 2;
/// First byte of the version before, with the number of pairs in two more.
const VERSION_PAIRS: u8 = 1;

/// What a driver has made of a device: all that it takes to go on with another one of the same settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The features acked, if any were.
    pub acked: Option<u64>,
    /// The device status.
    pub status: u8,
    /// The driver has been asked to announce itself, and has not acknowledged that.
    pub announce: bool,
    /// As by [`NetDevice::save`].
    pub orders: Vec<u8>,
}

/// Why a saved state cannot be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StateError {
    /// It is not of a form that this version reads.
    #[error("{0} bytes are not the state of a network device, or of another version")]
    Form(usize),
    /// The device does not have what the driver uses.
    #[error("the driver gave the command {class}.{number}, which this device does not carry out")]
    Command {
        /// The command's class.
        class: u8,
        /// Its number there.
        number: u8,
    },
}

/// Why a device cannot go on where another was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// It does not offer what was acked.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// It cannot be ordered what the other was.
    #[error(transparent)]
    Orders(#[from] StateError),
}

impl NetDevice {
    /// What the driver has made of it.
    pub fn state(&self) -> State {
        let Self { negotiation, orders, .. } = self;
        let (acked, status) = (negotiation.accepted(), negotiation.status().bits());
        State { acked, status, announce: orders.announce, orders: self.save() }
    }

    /// A device after reset goes on where another was.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore(&mut self, state: &State) -> Result<(), RestoreError> {
        let State { acked, status, announce, orders } = state;
        self.negotiation.restore(*acked, *status)?;
        self.load(orders)?;
        self.orders.announce = *announce;
        Ok(())
    }

    /// What another device of the same settings needs to go on where this one stopped, beside the features that were
    /// acked: a transport moves those itself.
    pub fn save(&self) -> Vec<u8> {
        let mut state = Vec::from([VERSION]);
        for command in self.orders.commands() {
            let bytes = command.to_bytes();
            state.extend((bytes.len() as u16).to_le_bytes());
            state.extend(bytes);
        }
        state
    }

    /// Goes on where another device stopped. Whether the driver is to announce itself is not part of it.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed then.
    pub fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        let form = StateError::Form(state.len());
        let mut orders = Orders { announce: self.orders.announce, ..Orders::default() };
        match *state {
            // A device with one pair has no such command, and says so here all the same.
            [VERSION_PAIRS, low, high] if u16::from_le_bytes([low, high]) == MQ_PAIRS_MIN => {}
            [VERSION_PAIRS, low, high] => {
                self.repeat(&mut orders, &[CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, low, high])?;
            }
            [VERSION, ref rest @ ..] => {
                let mut rest = rest;
                while let Some((len, more)) = rest.split_first_chunk() {
                    let len = u16::from_le_bytes(*len).into();
                    let (command, more) = more.split_at_checked(len).ok_or(form)?;
                    self.repeat(&mut orders, command).map_err(|e| if len < 2 { form } else { e })?;
                    rest = more;
                }
                if !rest.is_empty() {
                    return Err(form);
                }
            }
            _ => return Err(form),
        }
        self.orders = orders;
        Ok(())
    }

    /// Gives a command that the driver gave another device. What it acked may not be known yet.
    fn repeat(&self, orders: &mut Orders, command: &[u8]) -> Result<(), StateError> {
        let (features, max_pairs) = (self.negotiation.offered(), self.settings.max_pairs);
        if Command::parse(command).is_some_and(|command| orders.obey(command, features, max_pairs)) {
            return Ok(());
        }
        let [class, number] = command.first_chunk().copied().unwrap_or_default();
        Err(StateError::Command { class, number })
    }
}

#[cfg(test)]
#[path = "saved_tests.rs"]
mod tests;
