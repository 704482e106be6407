//! A port behind a pseudo-terminal, for programs that open terminals: its slave is raw, and may have a link.
//!
//! A slave that nobody has open is told by a hang-up that lasts, so it is not polled then; that somebody opens it is told by a
//! watch on its file.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ringway_device::console::Size;
use ringway_vhost::handover::FilesOut;
use rustix::event::PollFlags;
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::end::{End, EndState, look, terminal_size};

pub(super) struct Pty {
    master: File,
    /// Readable when somebody has opened or closed the slave.
    watch: OwnedFd,
    /// Somebody has the slave open.
    is_open: bool,
    link: Option<Link>,
}

/// A symbolic link to the slave.
struct Link {
    path: PathBuf,
    is_ours: bool,
}

impl Pty {
    /// A new terminal; its slave's path is printed.
    pub(super) fn open(name: &str, link: Option<&Path>) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).context("no pseudo-terminal")?;
        rustix::io::ioctl_fionbio(&master, true)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = slave_of(&master)?;
        // By a file that is closed at once: the terminal begins as one that nobody has open.
        let opened = File::options().read(true).write(true).open(&slave)?;
        let mut modes = tcgetattr(&opened)?;
        modes.make_raw();
        tcsetattr(&opened, OptionalActions::Now, &modes)?;
        let link = link.map(|path| Link::make(path, &slave)).transpose()?;
        println!("{name}: {}", slave.display());
        Self::new(master, &slave, link)
    }

    /// Goes on with the terminal of another process.
    pub(super) fn restore(master: OwnedFd, link: Option<&Path>) -> Result<Self> {
        let slave = slave_of(&master)?;
        Self::new(master, &slave, link.map(|path| Link { path: path.to_owned(), is_ours: false }))
    }

    fn new(master: OwnedFd, slave: &Path, link: Option<Link>) -> Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, slave, inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE)?;
        Ok(Self { master: master.into(), watch, is_open: false, link })
    }
}

fn slave_of(master: &OwnedFd) -> Result<PathBuf> {
    let name = ptsname(master, Vec::new())?;
    Ok(std::ffi::OsString::from_vec(name.into_bytes()).into())
}

impl End for Pty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.master.write(bytes)
    }

    /// What was typed before the slave was closed is there after.
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self.master.read(to) {
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                Err(ErrorKind::WouldBlock.into())
            }
            other => other,
        }
    }

    fn interests(&self, wanted: PollFlags) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let master = self.is_open.then(|| (self.master.as_fd(), wanted));
        master.into_iter().chain([(self.watch.as_fd(), PollFlags::IN)]).collect()
    }

    fn turn(&mut self) {
        // What has happened to it is seen by what it is now. Events that do not fit come with the next turn.
        let _ = rustix::io::read(&self.watch, &mut [0; 4096]);
        self.is_open = !look(&self.master).contains(PollFlags::HUP);
    }

    fn is_open(&self) -> bool {
        self.is_open
    }

    fn size(&self) -> Option<Size> {
        terminal_size(&self.master)
    }

    fn state<'s>(&'s self, files: &mut FilesOut<'s>) -> EndState {
        EndState { main: Some(files.add(self.master.as_fd())), client: None }
    }

    fn own(&mut self, is_ours: bool) {
        if let Some(link) = &mut self.link {
            link.is_ours = is_ours;
        }
    }
}

impl Link {
    /// Makes it, in the place of one that somebody left behind.
    fn make(path: &Path, to: &Path) -> Result<Self> {
        if let Ok(meta) = std::fs::symlink_metadata(path) {
            if !meta.is_symlink() {
                bail!("{} is there already, and no symbolic link", path.display());
            }
            std::fs::remove_file(path)?;
        }
        std::os::unix::fs::symlink(to, path).with_context(|| format!("no link at {}", path.display()))?;
        Ok(Self { path: path.to_owned(), is_ours: true })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.is_ours {
            // Gone already is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
