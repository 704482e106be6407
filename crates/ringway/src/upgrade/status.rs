//! How an upgrade went, told to `ringway upgrade` in a datagram. It waits at an abstract address with the old server's
//! process id in it; if nobody waits there, nobody is told.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The outcome.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    /// This process serves now.
    Done { pid: u32, pause: Duration },
    /// The old one goes on, for this reason.
    Failed(String),
}

/// Where the outcome of the upgrade of this process is awaited.
pub(super) fn address(pid: u32) -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("ringway-upgrade-{pid}"))
}

/// Tells who waits.
pub(super) fn send(pid: u32, status: &Status) {
    let send = || {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(&serde_json::to_vec(status)?, &address(pid)?)
    };
    // Mostly nobody waits.
    let _: std::io::Result<usize> = send();
}
