//! `ringway resize`, and how a server hears it.
//!
//! ```text
//!   ringway resize          main thread            disk's thread
//!   disk, size ───────────► which disk? ─ order ─► image, device, front-end
//!              ◄──────────────────────────────────  before and after, or why not
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use crate::ask::{self, Listener};
use crate::{args, serve};

/// How it is asked ([`ask`]).
const COMMAND: &str = "resize";
/// How long a server may take to answer: it may have to ask another.
const LIMIT: Duration = Duration::from_secs(10);
/// The most that wait to ask.
const MAX_CLIENTS: usize = 16;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// Which disk, if there are several.
    pub(super) disk: Option<String>,
    /// Else what its image has.
    pub(super) size: Option<u64>,
    pub(super) shrink: bool,
}

/// What the server says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Done(Resized),
    Refused(String),
}

/// A disk's size in bytes, before and after.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Resized {
    pub(super) disk: String,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// A command that is connected.
pub(super) struct Client(OwnedFd);

impl Client {
    /// Tells it how it went.
    pub(super) fn answer(&self, result: &Result<Resized>) {
        let reply = match result {
            Ok(resized) => Reply::Done(resized.clone()),
            Err(error) => Reply::Refused(format!("{error:#}")),
        };
        // It may have gone.
        let _ = ask::send(&self.0, &reply, None);
    }
}

/// Where a server is asked.
pub(super) struct Resizes {
    listener: Listener,
    /// They have not asked yet.
    clients: Vec<Client>,
}

impl Resizes {
    pub(super) fn open() -> Self {
        Self { listener: Listener::open(COMMAND), clients: Vec::new() }
    }

    /// What to poll, to read.
    pub(super) fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listener.interest().into_iter().chain(self.clients.iter().map(|client| client.0.as_fd()))
    }

    /// Does what can be done now.
    pub(super) fn turn(&mut self, disks: &[Disk]) {
        while let Some((socket, is_ours)) = self.listener.accept() {
            let refusal = match self.clients.len() {
                _ if !is_ours => ask::NOT_OURS,
                MAX_CLIENTS.. => "too many ask at a time",
                _ => {
                    self.clients.push(Client(socket));
                    continue;
                }
            };
            Client(socket).answer(&Err(anyhow::Error::msg(refusal)));
        }
        for client in std::mem::take(&mut self.clients) {
            match ask::receive(&client.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.clients.push(client),
                Ok(Some((request, _))) => pass_on(request, client, disks),
                // It has gone, or said what it should not.
                _ => {}
            }
        }
    }
}

fn pass_on(request: Request, client: Client, disks: &[Disk]) {
    match find(request.disk.as_deref(), disks) {
        Ok(disk) => disk.resize(request, client),
        Err(error) => client.answer(&Err(error)),
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
    let server = ask::connect(COMMAND, args.pid, "has disks")?;
    let request = Request { disk: args.disk.clone(), size: args.size, shrink: args.shrink };
    let sent = ask::send(&server, &request, None);
    let deadline = (None, Instant::now() + LIMIT);
    loop {
        match ask::hear(&server) {
            Ok(Some(Reply::Done(Resized { disk, from, to }))) => {
                println!("disk {disk}: {from} bytes before, {to} bytes now");
                return Ok(());
            }
            Ok(Some(Reply::Refused(why))) => bail!("process {}: {why}", args.pid),
            Ok(None) => bail!("process {} has ended", args.pid),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && sent.is_ok() => {}
            // If it did not take the request it may have told why, which would have been heard.
            Err(error) => return Err(sent.err().unwrap_or(error)).context("cannot ask the server"),
        }
        if Instant::now() >= deadline.1 {
            bail!("process {} does not answer: the disk's storage may hang; see its log", args.pid);
        }
        serve::wait(std::iter::once((None, server.as_fd(), PollFlags::IN)), std::iter::once(deadline))?;
    }
}
