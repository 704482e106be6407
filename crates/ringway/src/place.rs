//! Where front-ends attach, as the command line says.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ringway_vhost::endpoint::Source;

use crate::inherit;

/// Where the front-ends of a device attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Listen(PathBuf),
    Connect(PathBuf),
    Inherited(i32),
}

impl Place {
    /// Opens it for the device that the user calls so.
    pub(crate) fn open(&self, device: &str) -> Result<Source> {
        match self {
            Self::Listen(path) => Source::listen(path).with_context(|| {
                format!(
                    "{device}: cannot listen at {} (is its directory there, and yours to write to?)",
                    path.display()
                )
            }),
            Self::Connect(path) => Ok(Source::Connect(path.clone())),
            Self::Inherited(number) => inherit::socket(*number),
        }
    }
}
