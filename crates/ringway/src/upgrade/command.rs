//! `ringway upgrade`: asks a server to replace itself, and tells how it went.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::status::{self, Status};
use super::{PAUSE_LIMIT, READY_LIMIT};

/// Longer than an upgrade can take that fails.
const LIMIT: Duration = READY_LIMIT.saturating_add(PAUSE_LIMIT).saturating_add(Duration::from_secs(2));

/// Replaces the server that is process `pid`.
pub(crate) fn run(pid: i32) -> Result<()> {
    let server = Pid::from_raw(pid).context("no process id")?;
    let number = pid.cast_unsigned();
    let process =
        pidfd_open(server, PidfdFlags::empty()).with_context(|| format!("there is no process {pid}"))?;
    ensure!(
        takes_upgrades(pid)?,
        "process {pid} is no server that can be upgraded: it does not await SIGUSR2"
    );
    let owner = std::fs::metadata(format!("/proc/{pid}"))?.uid();
    let outcome = UnixDatagram::bind_addr(&status::address(number)?).with_context(|| {
        format!("cannot wait for the outcome; is another upgrade of process {pid} under way?")
    })?;
    rustix::net::sockopt::set_socket_passcred(&outcome, true)?;
    pidfd_send_signal(&process, Signal::USR2).with_context(|| format!("cannot signal process {pid}"))?;

    let deadline = Instant::now() + LIMIT;
    let (mut done, mut has_ended) = (None, false);
    loop {
        let mut fds = vec![PollFd::new(&outcome, PollFlags::IN)];
        if !has_ended {
            fds.push(PollFd::new(&process, PollFlags::IN));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // The new server tells before the old one's end is seen, or at the same time.
        let left = if has_ended { left.min(Duration::from_millis(500)) } else { left };
        let limit = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let is_late = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)))? == 0;
        has_ended |= fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if !fds[0].revents().is_empty() {
            match receive(&outcome, owner)? {
                Some(Status::Failed(why)) => bail!("process {pid} goes on: {why}"),
                Some(Status::Done { pid, pause }) => done = Some((pid, pause)),
                None => {}
            }
        }
        match done {
            Some((new, pause)) if has_ended => {
                println!(
                    "process {new} has taken over from process {pid}; rings paused for {:.1} ms",
                    pause.as_secs_f64() * 1e3
                );
                return Ok(());
            }
            _ if is_late && has_ended => {
                bail!("process {pid} has ended, and no other said that it took over: see its log")
            }
            _ if is_late => bail!("process {pid} has said nothing for {} s: see its log", LIMIT.as_secs()),
            _ => {}
        }
    }
}

/// Whether the process has a handler for SIGUSR2; others would be killed by it.
fn takes_upgrades(pid: i32) -> Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).context("no SigCgt")?;
    let caught = u64::from_str_radix(caught.trim(), 16)?;
    Ok(caught >> (Signal::USR2.as_raw() - 1) & 1 != 0)
}

/// Receives an outcome; what another user than the server's sends is none.
fn receive(socket: &UnixDatagram, owner: u32) -> Result<Option<Status>> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::DONTWAIT)?;
    let is_owners = control.drain().any(
        |message| matches!(message, RecvAncillaryMessage::ScmCredentials(peer) if peer.uid.as_raw() == owner),
    );
    Ok(if is_owners { serde_json::from_slice(&bytes[..received.bytes]).ok() } else { None })
}
