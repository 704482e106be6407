//! Live upgrade: the running server hands everything to a newer program, which goes on where it stopped.
//!
//! ```text
//!   old                                                 new
//!   SIGUSR2: starts the program, goes on serving ─────► reads its arguments
//!                                    ◄───── ready ─────
//!   suspends its server                 ┐
//!                                    ───── state ─────► maps memory, sets the rings up, looks at none
//!                                    ◄───── set up ────
//!                                    ───── go ────────► ┘ resumes
//!   ends
//! ```
//!
//! Who has not been told to go does not touch a ring, and who has said it never does again. Until then the old server
//! can go on: if the new one fails, ends, or is late, it is killed, and the old one starts its rings again once it is
//! gone. A crash of one of the two at the very moment of `go` is a crash.
//!
//! Not here: what is handed over ([`Server`](crate::serve::Server), [`ringway_vhost::handover`]).

pub(crate) mod command;
mod new;
mod old;
mod status;

pub(crate) use new::Predecessor;
pub(crate) use old::{Program, Successor, begin, hand_over};

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The environment variable with the number of the new server's end of the socket between the two.
const LINK: &str = "RINGWAY_UPGRADE_FD";
/// How long the new program may take to be ready. Nothing stands still meanwhile.
const READY_LIMIT: Duration = Duration::from_secs(5);
/// How long the rings may stand still before the old server goes on.
const PAUSE_LIMIT: Duration = Duration::from_secs(2);
/// A pause that is worth a warning.
const LONG_PAUSE: Duration = Duration::from_millis(50);

/// What the old server says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromOld<S> {
    State(State<S>),
    Go,
}

/// What the new server says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromNew {
    Ready,
    SetUp,
    Failed(String),
}

/// A server that stands still.
#[derive(Serialize, Deserialize)]
struct State<S> {
    /// When it began to, in nanoseconds of the machine's monotonic clock.
    since: u64,
    #[serde(flatten)]
    server: S,
}

/// The machine's monotonic clock, which is one for all processes, in nanoseconds.
fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
