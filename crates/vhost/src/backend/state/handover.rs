//! A device's state that moves between back-ends, moving on in another process.

use serde::{Deserialize, Serialize};

use super::{MAX_STATE, Transfer};
use crate::backend::RequestError;
use crate::descriptor::NonBlocking;
use crate::descriptor::handover::NonBlockingState;
use crate::handover::{FilesIn, FilesOut, HandoverError};
use crate::message::StateDirection;

/// A transfer, however far it has come.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::backend) struct TransferState {
    is_load: bool,
    channel: Option<NonBlockingState>,
    data: Vec<u8>,
    /// Why it failed, for people.
    error: Option<String>,
}

impl Transfer {
    /// Its state; its file is added to `files`.
    pub(in crate::backend) fn state<'t>(&'t self, files: &mut FilesOut<'t>) -> TransferState {
        let Self { direction, channel, data, result } = self;
        TransferState {
            is_load: *direction == StateDirection::Load,
            channel: channel.as_ref().map(|channel| channel.state(files)),
            data: data.clone(),
            error: result.as_ref().err().map(ToString::to_string),
        }
    }

    /// The transfer goes on here.
    pub(in crate::backend) fn restore(
        state: TransferState,
        files: &mut FilesIn,
    ) -> Result<Self, HandoverError> {
        let TransferState { is_load, channel, data, error } = state;
        if data.len() > MAX_STATE {
            return Err(HandoverError::BadValue("a device's state"));
        }
        Ok(Self {
            direction: if is_load { StateDirection::Load } else { StateDirection::Save },
            channel: channel.map(|channel| NonBlocking::restore(channel, files)).transpose()?,
            data,
            result: error.map_or(Ok(()), |error| Err(RequestError::DeviceState(error))),
        })
    }
}
