//! `ringway resize`, and how a server hears it.
//!
//! ```text
//!   ringway resize          main thread            disk's thread
//!   disk, size ───────────► which disk? ─ order ─► image, device, front-end
//!              ◄──────────────────────────────────  before and after, or why not
//! ```

use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use crate::args;
use crate::ask::{self, Client, Desk};

/// How it is asked ([`ask`]).
const COMMAND: &str = "resize";
/// How long a server may take to answer: it may have to ask another.
const LIMIT: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// Which disk, if there are several.
    pub(super) disk: Option<String>,
    /// Else what its image has.
    pub(super) size: Option<u64>,
    pub(super) shrink: bool,
}

/// A disk's size in bytes, before and after.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Resized {
    pub(super) disk: String,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// Where a server is asked.
pub(super) struct Resizes(Desk);

impl Resizes {
    pub(super) fn open() -> Self {
        Self(Desk::open(COMMAND))
    }

    /// What to poll, to read.
    pub(super) fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.interests()
    }

    /// Does what can be done now.
    pub(super) fn turn(&mut self, disks: &[Disk]) {
        for (request, client) in self.0.questions() {
            pass_on(request, client, disks);
        }
    }
}

fn pass_on(request: Request, client: Client, disks: &[Disk]) {
    match find(request.disk.as_deref(), disks) {
        Ok(disk) => disk.resize(request, client),
        Err(error) => client.answer::<()>(Err(error)),
    }
}

fn find<'d>(name: Option<&str>, disks: &'d [Disk]) -> Result<&'d Disk> {
    let all = || disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, disks) {
        (None, [disk]) => Ok(disk),
        (None, _) => bail!("say which disk; there are {}", all()),
        (Some(name), _) => {
            let disk = disks.iter().find(|disk| disk.name == name);
            disk.with_context(|| format!("there is no disk {name:?}; there are {}", all()))
        }
    }
}

/// `ringway resize`.
pub(crate) fn run(args: &args::Resize) -> Result<()> {
    let request = Request { disk: args.disk.clone(), size: args.size, shrink: args.shrink };
    let limit = (LIMIT, "the disk's storage may hang");
    let Resized { disk, from, to } = ask::question(COMMAND, args.pid, &request, "has disks", limit)?;
    println!("disk {disk}: {from} bytes before, {to} bytes now");
    Ok(())
}
