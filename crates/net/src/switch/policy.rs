//! What a port may do, and what it gets; all of it said before the switch starts.

use crate::frame::Mac;
use crate::switch::vlan::Mode;

/// The most addresses learned on one port, if nothing else is said.
const MACS: usize = 4096;

/// How much may pass in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bits of frames, from the destination address on. A frame to be segmented counts as it is.
    pub bits: Option<u64>,
    /// Frames.
    pub frames: Option<u64>,
}

/// The rules of a port. By default it is one of a plain learning switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPolicy {
    /// Its VLANs.
    pub mode: Mode,
    /// The only addresses it may send from, which are its own; empty for any.
    pub pinned: Vec<Mac>,
    /// It reaches only ports that are not isolated.
    pub isolated: bool,
    /// The most addresses learned on it.
    pub macs: usize,
    /// Frames to all, to groups and to unknown addresses that it may send in a second.
    pub storm: Option<u64>,
    /// What it may send: more has to wait.
    pub from: Limit,
    /// What it gets: more is dropped.
    pub to: Limit,
}

impl Default for PortPolicy {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            pinned: Vec::new(),
            isolated: false,
            macs: MACS,
            storm: None,
            from: Limit::default(),
            to: Limit::default(),
        }
    }
}

/// Another port gets a copy of all that comes from a port and goes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirror {
    /// The port that is watched.
    pub from: usize,
    /// The port that watches. It has no other part in the switch.
    pub to: usize,
}
