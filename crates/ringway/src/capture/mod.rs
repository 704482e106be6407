//! The captures of a server: those of its command line, and those that `ringway capture` asks for.
//!
//! ```text
//!   ringway capture                     server
//!   ports, an open file ──────────────► starts a capture
//!                       ◄── started ───
//!   closes its side ──────────────────► ends it
//!                       ◄── ended ─────   how many frames, from the writer's thread
//! ```
//!
//! Who asks is the server's own user, or root; it opens the file, so it can have written what it could write itself.
//!
//! Not here: how frames get to a file ([`ringway_net::capture`]).

pub(crate) mod command;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_net::capture::{Capture, Interface, Summary, Target};
use ringway_net::plane::Plane;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::args::CaptureArg;
use crate::ask::{self, Listener};

/// The most that are asked for at a time: each has memory of its own.
const MAX_CLIENTS: usize = 16;
/// How long the end of a server waits for files to be written.
const LAST: Duration = Duration::from_secs(1);

/// How it is asked ([`ask`]).
const COMMAND: &str = "capture";

/// What is asked for. The file to write to comes with it.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    ports: Vec<String>,
    snaplen: u32,
}

/// What the server says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Started,
    Refused(String),
    Ended { captured: u64, dropped: u64, error: Option<String> },
}

impl From<&Summary> for Reply {
    fn from(summary: &Summary) -> Self {
        let &Summary { captured, dropped, ref error } = summary;
        Self::Ended { captured, dropped, error: error.as_ref().map(ToString::to_string) }
    }
}

/// The captures that run, and where further ones are asked for.
pub(crate) struct Captures {
    listener: Listener,
    clients: Vec<Client>,
    own: Vec<Capture>,
}

/// A command that is connected.
struct Client {
    /// The capture's end is told over it.
    socket: Arc<OwnedFd>,
    /// `None` until it has asked.
    capture: Option<Capture>,
}

impl Captures {
    /// Starts the captures of the command line. With `goes_on` their files may be those of the server before.
    pub(crate) fn start(args: &[CaptureArg], names: &[String], plane: &Plane, goes_on: bool) -> Result<Self> {
        let mut files: BTreeMap<&PathBuf, Vec<Interface>> = BTreeMap::new();
        for CaptureArg { port, file, snaplen } in args {
            let interface = interface(port, *snaplen, names)?;
            files.entry(file).or_default().push(interface);
        }
        let start = |(path, interfaces): (&PathBuf, Vec<Interface>)| {
            start_own(path, &interfaces, plane, goes_on)
                .with_context(|| format!("cannot capture to {}", path.display()))
        };
        let own = files.into_iter().map(start).collect::<Result<_>>()?;
        Ok(Self { listener: Listener::open(COMMAND), clients: Vec::new(), own })
    }

    /// What to poll, to read.
    pub(crate) fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listener.interest().into_iter().chain(self.clients.iter().map(|client| client.socket.as_fd()))
    }

    /// Does what can be done now.
    pub(crate) fn turn(&mut self, plane: &Plane, names: &[String]) {
        self.accept();
        let mut has_ended = false;
        self.clients.retain_mut(|client| {
            let goes_on = client.turn(plane, names);
            has_ended |= !goes_on;
            goes_on
        });
        if has_ended {
            plane.end_captures();
        }
    }

    fn accept(&mut self) {
        while let Some((socket, is_ours)) = self.listener.accept() {
            let refusal = if !is_ours {
                ask::NOT_OURS
            } else if self.clients.len() == MAX_CLIENTS {
                "too many captures run"
            } else {
                self.clients.push(Client { socket: socket.into(), capture: None });
                continue;
            };
            // Who asked may have gone.
            let _ = ask::send(&socket, &Reply::Refused(refusal.into()), None);
        }
    }
}

impl Drop for Captures {
    /// The workers have ended: waits a little for what they captured.
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST;
        let clients = self.clients.iter().filter_map(|client| client.capture.as_ref());
        for capture in clients.clone().chain(&self.own) {
            capture.end();
        }
        for capture in clients.chain(&self.own) {
            capture.wait(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

impl Client {
    /// Does what it asks for; returns whether it stays.
    fn turn(&mut self, plane: &Plane, names: &[String]) -> bool {
        let request = match ask::receive(&self.socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Ok(Some(request)) if self.capture.is_none() => request,
            // It has closed its side, or said what it should not.
            _ => {
                if let Some(capture) = &self.capture {
                    capture.end();
                }
                return false;
            }
        };
        let socket = Arc::clone(&self.socket);
        // It may have gone, which shows the next time.
        let reply = move |reply: &Reply| _ = ask::send(&socket, reply, None);
        match start_asked(request, plane, names, reply.clone()) {
            Ok(capture) => {
                self.capture = Some(capture);
                reply(&Reply::Started);
                true
            }
            Err(error) => {
                reply(&Reply::Refused(format!("{error:#}")));
                false
            }
        }
    }
}

fn start_own(path: &Path, interfaces: &[Interface], plane: &Plane, goes_on: bool) -> Result<Capture> {
    let target = Target::open(path, goes_on).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => anyhow::anyhow!("another process captures to it"),
        _ => error.into(),
    })?;
    let path = path.to_owned();
    let on_end = move |summary: &Summary| {
        let &Summary { captured, dropped, ref error } = summary;
        let mut text = format!("the capture to {} has ended: ", path.display());
        if let Some(error) = error {
            _ = write!(text, "{error}; ");
        }
        _ = write!(text, "{captured} frames captured, {dropped} dropped");
        if error.is_some() { warn!("{text}") } else { info!("{text}") }
    };
    Ok(plane.start_capture(target, interfaces, on_end)?)
}

fn start_asked(
    (request, file): (Request, Option<OwnedFd>),
    plane: &Plane,
    names: &[String],
    reply: impl Fn(&Reply) + Send + 'static,
) -> Result<Capture> {
    let file = File::from(file.context("no file to write to")?);
    ensure!(!request.ports.is_empty(), "no port to capture");
    let interfaces = request.ports.iter().map(|port| interface(port, request.snaplen, names));
    let interfaces = interfaces.collect::<Result<Vec<_>>>()?;
    let on_end = move |summary: &Summary| reply(&summary.into());
    Ok(plane.start_capture(Target::File(file), &interfaces, on_end)?)
}

fn interface(name: &str, snaplen: u32, names: &[String]) -> Result<Interface> {
    let port = names.iter().position(|known| known == name);
    let port = port.with_context(|| format!("there is no port {name:?}; there are {}", names.join(", ")))?;
    Ok(Interface { port, name: name.to_owned(), snaplen })
}
