//! The registers of one queue.
//!
//! ```text
//!   size, areas, vector
//!     ┌──────┐   enable          reset or stop
//!     ▼      │   ──────► Enabled ─────────────► Stopping
//!     SetUp ─┘  ◄───────────────────────────────────┘  the VMM let go of it: all as after a reset
//! ```

use ringway_spec::pci::MSI_NO_VECTOR;

use super::Action;

/// How far a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The driver says how it shall be.
    SetUp,
    /// The device may use it.
    Enabled,
    /// The driver wants it back, and the VMM still has it.
    Stopping,
}

/// A queue's registers, and what the VMM has not been told of it.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    /// Number of descriptors; 0 if the driver wrote one that cannot be.
    pub(super) size: u16,
    /// Where descriptor, driver and device area are.
    pub(super) areas: [u64; 3],
    /// The MSI-X vector of its interrupts.
    pub(super) vector: u16,
    pub(super) phase: Phase,
    pub(super) due: Due,
    /// Whether the queue is in the list of those with something due.
    pub(super) is_listed: bool,
}

/// What the VMM is to be told of a queue.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Due {
    pub(super) stop: bool,
    pub(super) start: bool,
    /// An [`Action::Notified`].
    pub(super) notification: Option<Action>,
}

impl Queue {
    /// A queue as after a reset.
    pub(super) fn new(size: u16) -> Self {
        Self {
            size,
            areas: [0; 3],
            vector: MSI_NO_VECTOR,
            phase: Phase::SetUp,
            due: Due::default(),
            is_listed: false,
        }
    }

    /// Back to that, but for its place in the list.
    pub(super) fn reset(&mut self, size: u16) {
        *self = Self { is_listed: self.is_listed, ..Self::new(size) };
    }

    /// The next of what is due.
    pub(super) fn next_action(&mut self, index: u16) -> Option<Action> {
        let Due { stop, start, notification } = &mut self.due;
        if core::mem::take(stop) {
            return Some(Action::QueueReset(index));
        }
        if core::mem::take(start) {
            return Some(Action::QueueStarted(index));
        }
        notification.take()
    }
}
