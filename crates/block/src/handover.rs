//! What a disk hands to that of another process: what its driver negotiated, and its counters. The rings are the session's to
//! stop and to start again, the image goes over by itself ([`crate::image`]).

use std::collections::BTreeMap;

use ringway_device::blk::State;
use ringway_vhost::handover::HandoverError;
use serde::{Deserialize, Serialize};

use crate::disk::DiskDevice;

/// The state of a disk whose rings have stopped.
#[derive(Debug, Serialize, Deserialize)]
pub struct DiskState {
    acked: Option<u64>,
    status: u8,
    /// The cache mode that the driver wrote.
    writeback: Option<bool>,
    session: u64,
    counted: Option<u64>,
    /// By their names.
    counters: BTreeMap<String, u64>,
}

impl DiskDevice {
    /// The state to hand over.
    pub fn state(&self) -> DiskState {
        let State { acked, status, writeback } = self.device.state();
        let counters = self.counters();
        let counters = counters.iter().map(|(name, value)| (name.to_owned(), value)).collect();
        DiskState { acked, status, writeback, session: self.session, counted: self.counted, counters }
    }

    /// A new disk goes on where another was.
    ///
    /// # Errors
    /// [`HandoverError::Features`] if it does not offer what was acked.
    pub fn restore(&mut self, state: &DiskState) -> Result<(), HandoverError> {
        let DiskState { acked, status, writeback, session, counted, ref counters } = *state;
        let features = acked.unwrap_or_default() & !self.device.negotiation().offered();
        let state = State { acked, status, writeback };
        let lacking = |_| HandoverError::Features { kind: "virtio", features };
        self.device.restore(&state).map_err(lacking)?;
        self.session = session;
        self.counted = counted;
        for (name, &value) in counters {
            self.own.restore(name, value);
        }
        self.set_rules();
        Ok(())
    }
}
