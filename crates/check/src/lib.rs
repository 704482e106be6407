//! Conformance of a vhost-user back-end, as far as it can be seen from outside.
//!
//! ```text
//!  cases ──► runner ──► a connection each ──► the back-end
//!    │          │
//!    │          └──► Report: a table, JSON
//!    └─ ids of requirements: `statements` knows them all, and why some cannot be seen
//! ```
//!
//! Each [`Case`] is a front-end of its own: it connects, does what it does, and says what it saw. It goes by the
//! back-end's answers and by the memory and the file descriptors that both sides share, never by what is known of
//! the program. Nothing here needs a virtual machine.
#![forbid(unsafe_code)]

mod case;
mod cases;
mod context;
mod device;
mod event;
mod guest;
mod report;
mod rig;
mod runner;
mod session;
pub mod statements;

pub use case::{Case, Level, Verdict};
pub use cases::{Chapter, chapters};
pub use context::{Offer, Target};
pub use device::Device;
pub use report::{CaseReport, Report, Summary};
pub use runner::{Options, run};
