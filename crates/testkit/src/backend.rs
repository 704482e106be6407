//! Back-ends of several projects, each on a socket of its own, as `ringway check` examines them.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Process, find_program};

/// How long a back-end may take to listen.
const START: Duration = Duration::from_secs(30);
/// A disk image's size in bytes.
const IMAGE: u64 = 1 << 20;

/// Whose back-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Project {
    /// `ringway net`.
    Ringway,
    /// DPDK's `net_vhost` under testpmd.
    Dpdk,
    /// qemu-storage-daemon's `vhost-user-blk`, on QEMU's libvhost-user.
    Qemu,
}

impl Project {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ringway, Self::Dpdk, Self::Qemu];

    /// The program and its arguments, with the socket and, where one is needed, a disk image. Frames that a network
    /// device is given come back.
    pub fn command(self, ringway: &Path, socket: &str, image: &str) -> Vec<String> {
        let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
        match self {
            Self::Ringway => words(format!(
                "{} net --socket-path={socket} --uplink=echo --mtu=1500 --iommu --postcopy",
                ringway.display()
            )),
            Self::Dpdk => words(format!(
                "dpdk-testpmd --lcores=0@0,1@0 --no-pci --no-huge -m 300 --no-telemetry --no-shconf \
                 --vdev=net_vhost0,iface={socket},queues=1,iommu-support=1,postcopy-support=1 \
                 -- --no-mlockall --mask-event=all --total-num-mbufs=16384 --auto-start --forward-mode=io"
            )),
            Self::Qemu => words(format!(
                "qemu-storage-daemon --blockdev driver=file,node-name=f,filename={image} --export \
                 type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=2,addr.type=unix,addr.path={socket}"
            )),
        }
    }
}

/// A running back-end. Dropped, it is killed and its files removed.
pub struct Backend {
    process: Process,
    socket: PathBuf,
    /// Outlives the process.
    _dir: tempfile::TempDir,
}

impl Backend {
    /// Starts it, and waits until it listens.
    pub fn start(project: Project, ringway: &Path) -> Result<Self> {
        let dir = tempfile::tempdir().context("make a directory for a socket")?;
        let (socket, image) = (dir.path().join("socket"), dir.path().join("image"));
        std::fs::File::create(&image).and_then(|file| file.set_len(IMAGE)).context("make a disk image")?;
        let words = project.command(ringway, &socket.to_string_lossy(), &image.to_string_lossy());
        let (program, arguments) = words.split_first().context("a command has words")?;
        let program = if project == Project::Ringway { ringway.to_owned() } else { find_program(program)? };
        let process = Process::start(&format!("{project:?}"), Command::new(program).args(arguments))?;
        let mut backend = Self { process, socket, _dir: dir };
        backend.wait_listening()?;
        Ok(backend)
    }

    fn wait_listening(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while UnixStream::connect(&self.socket).is_err() {
            if !self.process.is_running() || Instant::now() > deadline {
                bail!("it does not listen; it said:\n{}", self.process.output());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}
