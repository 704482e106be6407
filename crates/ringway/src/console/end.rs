//! What a port of a console leads to on this side: a terminal, a socket, a file, or this program's own streams.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use ringway_device::console::Size;
use ringway_vhost::handover::{FdIndex, FilesIn, FilesOut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcgetwinsize, tcsetattr};
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGWINCH;

use super::pty::Pty;
use super::socket::Socket;
use crate::args::EndArg;
use crate::serve;

/// One end of a port. Nothing here waits: what cannot be done now is `WouldBlock`.
pub(super) trait End {
    /// Passes on as many of these bytes as it takes now.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Fetches what there is now.
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize>;

    /// What to poll for, if the port waits for these of its streams.
    fn interests(&self, wanted: PollFlags) -> Vec<(BorrowedFd<'_>, PollFlags)>;

    /// When it wants its turn even if nothing is ready.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Looks who has come or gone.
    fn turn(&mut self) {}

    /// Whether somebody is there. What the driver sends is dropped otherwise.
    fn is_open(&self) -> bool {
        true
    }

    /// How large it is, if it is a terminal.
    fn size(&self) -> Option<Size> {
        None
    }

    /// What another process needs to go on with it.
    fn state<'s>(&'s self, _files: &mut FilesOut<'s>) -> EndState {
        EndState::default()
    }

    /// Whether what it has put on the file system is this process's to remove.
    fn own(&mut self, _is_ours: bool) {}
}

/// The files of an end.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct EndState {
    /// The terminal's, or the listening socket.
    pub(super) main: Option<FdIndex>,
    pub(super) client: Option<FdIndex>,
}

/// Opens an end. `name` is how messages call the port.
pub(super) fn open(name: &str, arg: &EndArg) -> Result<Box<dyn End>> {
    Ok(match arg {
        EndArg::Pty(link) => Box::new(Pty::open(name, link.as_deref())?),
        EndArg::Socket(path) => Box::new(Socket::open(path)?),
        EndArg::File(path) => Box::new(Log::open(path)?),
        EndArg::Stdio => Box::new(Stdio::open()?),
    })
}

/// Goes on with the end of another process.
pub(super) fn restore(arg: &EndArg, state: EndState, files: &mut FilesIn) -> Result<Box<dyn End>> {
    Ok(match arg {
        EndArg::Pty(link) => {
            Box::new(Pty::restore(files.take(state.main.context("no terminal")?)?, link.as_deref())?)
        }
        EndArg::Socket(path) => {
            let listener = files.take(state.main.context("no socket")?)?;
            let client = state.client.map(|client| files.take(client)).transpose()?;
            Box::new(Socket::restore(path, listener, client))
        }
        EndArg::File(path) => Box::new(Log::open(path)?),
        EndArg::Stdio => Box::new(Stdio::open()?),
    })
}

/// What there is to know of a file now.
pub(super) fn look(fd: impl AsFd) -> PollFlags {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&no_wait)) {
        Ok(1..) => fds[0].revents(),
        _ => PollFlags::empty(),
    }
}

/// How large a terminal is, if it says so.
pub(super) fn terminal_size(terminal: impl AsFd) -> Option<Size> {
    let Winsize { ws_row: rows, ws_col: cols, .. } = tcgetwinsize(terminal).ok()?;
    (rows > 0 && cols > 0).then_some(Size { cols, rows })
}

/// A file that what the driver sends is appended to.
struct Log(File);

impl Log {
    fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().append(true).create(true).custom_flags(flags).open(path);
        Ok(Self(file.with_context(|| format!("cannot write to {}", path.display()))?))
    }
}

impl End for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn read(&mut self, _to: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn interests(&self, wanted: PollFlags) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let out = wanted & PollFlags::OUT;
        if out.is_empty() { Vec::new() } else { vec![(self.0.as_fd(), out)] }
    }
}

/// The program's standard input and output. A terminal is without echo and lines meanwhile; its keys for signals are the
/// program's.
struct Stdio {
    input: Option<File>,
    output: File,
    /// A terminal is to be as others expect it, in the end.
    is_changed: bool,
    resized: UnixStream,
}

impl Stdio {
    fn open() -> Result<Self> {
        // Others have the same streams and expect that they wait: these are opened anew.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let input = File::options().read(true).custom_flags(flags).open("/proc/self/fd/0");
        let output = File::options().write(true).custom_flags(flags).open("/proc/self/fd/1");
        let (input, output) = (
            input.context("standard input cannot be read without waiting")?,
            output.context("standard output cannot be written without waiting")?,
        );
        let is_changed = input.is_terminal();
        let stdio = Self { input: Some(input), output, is_changed, resized: serve::pipe(&[SIGWINCH])? };
        stdio.set_modes(false)?;
        Ok(stdio)
    }

    /// Has the terminal, if it is one, echo and edit lines, or not.
    fn set_modes(&self, is_usual: bool) -> io::Result<()> {
        if let Some(input) = self.input.as_ref().filter(|_| self.is_changed) {
            let mut modes = tcgetattr(input)?;
            modes.local_modes.set(LocalModes::ICANON | LocalModes::ECHO, is_usual);
            tcsetattr(input, OptionalActions::Now, &modes)?;
        }
        Ok(())
    }
}

impl End for Stdio {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let Some(input) = &mut self.input else { return Err(ErrorKind::WouldBlock.into()) };
        let n = input.read(to)?;
        if n == 0 && !to.is_empty() {
            self.input = None;
        }
        Ok(n)
    }

    fn interests(&self, wanted: PollFlags) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let (input, output) = (wanted & PollFlags::IN, wanted & PollFlags::OUT);
        let streams = [
            self.input.as_ref().filter(|_| !input.is_empty()).map(|file| (file.as_fd(), input)),
            Some((self.output.as_fd(), output)).filter(|_| !output.is_empty()),
            Some((self.resized.as_fd(), PollFlags::IN)),
        ];
        streams.into_iter().flatten().collect()
    }

    fn turn(&mut self) {
        // Only that it came counts.
        let _ = self.resized.read(&mut [0; 16]);
    }

    fn size(&self) -> Option<Size> {
        terminal_size(&self.output)
    }

    fn own(&mut self, is_ours: bool) {
        self.is_changed &= is_ours;
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        // It may be gone.
        let _ = self.set_modes(true);
    }
}
