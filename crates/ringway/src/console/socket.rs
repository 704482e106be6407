//! A port behind a listening Unix socket: one client at a time, the next one waits.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ringway_vhost::endpoint::{SocketFile, Source};
use ringway_vhost::handover::FilesOut;
use rustix::event::PollFlags;

use super::end::{End, EndState, look};

/// How long a client that has gone is remembered for what it said last, if the driver does not take it.
const GRACE: Duration = Duration::from_secs(1);

pub(super) struct Socket {
    listener: UnixListener,
    file: SocketFile,
    client: Option<Client>,
}

struct Client {
    stream: UnixStream,
    /// It says no more.
    is_silent: bool,
    /// When it has been gone for long enough.
    gone: Option<Instant>,
}

impl Socket {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let source = Source::listen(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let Source::Listen(listener, Some(file)) = source else { bail!("{} is no socket", path.display()) };
        Ok(Self { listener, file, client: None })
    }

    /// Goes on with the sockets of another process.
    pub(super) fn restore(path: &Path, listener: OwnedFd, client: Option<OwnedFd>) -> Self {
        let client = client.map(|fd| Client { stream: fd.into(), is_silent: false, gone: None });
        Self { listener: listener.into(), file: SocketFile::found(path.to_owned()), client }
    }
}

impl End for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(client) = &mut self.client else { return Err(ErrorKind::NotConnected.into()) };
        let written = client.stream.write(bytes);
        if written.as_ref().is_err_and(|error| error.kind() != ErrorKind::WouldBlock) {
            client.gone.get_or_insert_with(|| Instant::now() + GRACE);
        }
        written
    }

    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let Some(client) = self.client.as_mut().filter(|client| !client.is_silent) else {
            return Err(ErrorKind::WouldBlock.into());
        };
        let read = client.stream.read(to);
        let is_over = match &read {
            Ok(n) => *n == 0 && !to.is_empty(),
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        client.is_silent = is_over;
        read
    }

    fn interests(&self, wanted: PollFlags) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        match &self.client {
            None => vec![(self.listener.as_fd(), PollFlags::IN)],
            Some(Client { gone: Some(_), .. }) => Vec::new(),
            Some(Client { stream, is_silent: true, .. }) => vec![(stream.as_fd(), wanted - PollFlags::IN)],
            Some(Client { stream, .. }) => vec![(stream.as_fd(), wanted)],
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.client.as_ref()?.gone
    }

    fn turn(&mut self) {
        if let Some(client) = &mut self.client {
            if client.gone.is_none() && look(&client.stream).contains(PollFlags::HUP) {
                client.gone = Some(Instant::now() + GRACE);
            }
            let is_over = |until| client.is_silent || Instant::now() >= until;
            if client.gone.is_some_and(is_over) {
                self.client = None;
            }
        }
        if self.client.is_none()
            && let Ok((stream, _)) = self.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            self.client = Some(Client { stream, is_silent: false, gone: None });
        }
    }

    fn is_open(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.gone.is_none())
    }

    fn state<'s>(&'s self, files: &mut FilesOut<'s>) -> EndState {
        let client = self.client.as_ref().map(|client| files.add(client.stream.as_fd()));
        EndState { main: Some(files.add(self.listener.as_fd())), client }
    }

    fn own(&mut self, is_ours: bool) {
        self.file.own(is_ours);
    }
}
