//! Simple devices: those whose rings need no thread of their own.
//!
//! ```text
//!              main thread
//!   kicks ──────────┐
//!   front-ends ─────┼─► Server: a unit at a time ─► Host: its rings, each for a while ─► Service: rng, console, balloon
//!   pty, timers … ──┘        (server.rs)                 (host.rs)
//! ```
//!
//! All of it is done in the main thread, when something has happened and never by looking for it. A kind of device is a
//! [`Service`]: a model of `ringway_device`, and what is behind it. What vhost-user wants of every device is [`Host`](host::Host), and
//! what the program wants of every server is [`Server`]; neither knows what kind it is.

mod host;
mod plan;
mod server;

use std::os::fd::BorrowedFd;
use std::time::Instant;

use anyhow::Result;
use ringway_device::model::DeviceModel;
use ringway_queue::{Burst, DeviceQueue, QueueError};
use ringway_vhost::handover::{FilesIn, FilesOut};
use rustix::event::PollFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use self::plan::{Plan, UnitPlan};
pub(crate) use self::server::Server;

/// A kind of device: its model, and what serves its queues.
pub(crate) trait Service: Sized {
    /// What people call it.
    const KIND: &'static str;
    /// What its virtio side is.
    type Model: DeviceModel;
    /// What the command line says of one.
    type Settings;
    /// What it hands over in an upgrade, beside features and status.
    type State: Serialize + DeserializeOwned;
    /// The command of `ringway` that one can be asked by while it runs, and what is asked and answered.
    const COMMAND: Option<&'static str> = None;
    type Question: DeserializeOwned;
    type Answer: Serialize;

    /// Opens what is behind it. `name` is how messages call it.
    fn open(name: &str, settings: &Self::Settings) -> Result<Self>;

    fn model(&self) -> &Self::Model;
    fn model_mut(&mut self) -> &mut Self::Model;

    /// Serves a queue, for a bounded while, and publishes what it completed. `burst` is empty, and stays so.
    ///
    /// # Errors
    /// What the driver did wrong.
    fn serve(&mut self, index: u16, queue: &mut DeviceQueue, burst: &mut Burst)
    -> Result<Served, QueueError>;

    /// A queue runs from now on.
    fn started(&mut self, _index: u16, _queue: &DeviceQueue) {}

    /// The driver has reset the device, or is gone; the model has been reset.
    fn reset(&mut self) {}

    /// What to poll for beside kicks.
    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        Vec::new()
    }

    /// When it wants its turn even if nothing is ready.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Does what can be done without a queue. Queues that wait for it are served next.
    fn turn(&mut self) {}

    /// Whether the configuration space has changed by itself since it was asked.
    fn take_config_change(&mut self) -> bool {
        false
    }

    /// Answers a question.
    ///
    /// # Errors
    /// For people.
    fn answer(&mut self, question: Self::Question) -> Result<Self::Answer>;

    /// What it has counted, by names.
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// What it hands over; its files are added to `files`.
    fn state<'s>(&'s self, files: &mut FilesOut<'s>) -> Self::State;

    /// As [`Service::open`], to go on where another was. The model has not been told what was negotiated yet.
    fn restore(
        name: &str,
        settings: &Self::Settings,
        state: Self::State,
        files: &mut FilesIn,
    ) -> Result<Self>;

    /// Another process has it now: what is on the file system is its.
    fn hand_over(&mut self) {}

    /// Another process is done with it.
    fn take_over(&mut self) {}
}

/// What is asked of one device among several.
#[derive(Serialize, Deserialize)]
pub(crate) struct Question<Q> {
    pub(crate) guest: Option<String>,
    pub(crate) question: Q,
}

/// Nothing is asked of a kind of device, or answered.
#[derive(Serialize, Deserialize)]
pub(crate) enum Nothing {}

/// How far a queue was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Served {
    /// The driver is to be called.
    pub(crate) call: bool,
    /// Chains are there, but not what they need: the queue is served again after [`Service::turn`], and after other queues.
    pub(crate) is_blocked: bool,
}
