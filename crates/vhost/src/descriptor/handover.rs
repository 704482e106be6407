//! A file of the front-end's as plain data.

use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::NonBlocking;
use crate::handover::{FdIndex, FilesIn, FilesOut, HandoverError};

/// The file is ready to be used: nothing of [`NonBlocking::new`] is to be done again.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NonBlockingState {
    File(FdIndex),
    Socket(FdIndex),
}

impl NonBlocking {
    pub(crate) fn state<'n>(&'n self, files: &mut FilesOut<'n>) -> NonBlockingState {
        let file = files.add(self.as_fd());
        match self {
            Self::File(_) => NonBlockingState::File(file),
            Self::Socket(_) => NonBlockingState::Socket(file),
        }
    }

    pub(crate) fn restore(state: NonBlockingState, files: &mut FilesIn) -> Result<Self, HandoverError> {
        Ok(match state {
            NonBlockingState::File(file) => Self::File(files.take(file)?),
            NonBlockingState::Socket(file) => Self::Socket(files.take(file)?),
        })
    }
}
