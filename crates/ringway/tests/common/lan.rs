//! A guest under QEMU and this host's own network stack, in a namespace, with `ringway` between them: what the tests
//! of crashes and moves have in common.
//!
//! ```text
//!   host's sockets ── bridge ─┬─ tap ── ringway ── QEMU, guest
//!                             └─ tap ── ringway ── …
//! ```
//!
//! The bridge learns behind which tap the guest is; the taps stay when a `ringway` ends.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use ringway_testkit::guest::{BOOT_LIMIT, Guest, QemuOptions, boot_qemu, ensure_images};
use ringway_testkit::netns::Netns;
use ringway_testkit::server::Server;
use ringway_testkit::stream::{ECHO, Echo};

/// For anything that must happen; emulated guests are slow on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const HOST: &str = "10.8.0.1";
pub(crate) const GUEST: &str = "10.8.0.2";

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");

pub(crate) struct Lan {
    host: Netns,
}

impl Lan {
    pub(crate) fn new() -> Self {
        let host = Netns::new().expect("a network namespace");
        host.add_bridge("bridge", &format!("{HOST}/24")).unwrap();
        Self { host }
    }

    /// A server of one guest, on a tap of its own.
    pub(crate) fn server(&self, tap: &str) -> Server {
        self.host.add_tap(tap, "bridge").unwrap();
        Server::net_in(&self.host, PROGRAM, &format!("tap:{tap}"), &[]).expect("ringway starts")
    }

    /// A socket of the host's that listens.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        self.host.enter(|| TcpListener::bind((HOST, port))).unwrap().unwrap()
    }

    /// Starts a session between the host and the guest.
    pub(crate) fn start_echo(&self, guest: &mut Guest) -> Echo {
        let listener = self.listen(7);
        guest.start_background(&format!("nc {HOST} 7 -e {ECHO}"), "/tmp/echo.log").unwrap();
        let echo = Echo::accept(&listener, SOON).unwrap();
        echo.wait_for(1 << 20, SOON).unwrap();
        echo
    }

    /// Waits until the host reaches the guest.
    pub(crate) fn reaches_guest(&self) {
        let deadline = Instant::now() + SOON;
        while self.host.run("busybox", &["ping", "-c", "1", "-W", "1", GUEST]).is_err() {
            assert!(Instant::now() < deadline, "the host does not reach the guest");
        }
    }
}

/// A guest that has booted and has its address.
pub(crate) fn boot(options: &QemuOptions) -> Guest {
    let images = ensure_images().expect("guests/setup.sh gets the guests' images");
    let mut guest = boot_qemu("guest", &images, options).expect("it starts");
    guest.wait_ready(BOOT_LIMIT).expect("it boots");
    configure(&mut guest);
    guest
}

/// Gives a guest that has booted its address.
pub(crate) fn configure(guest: &mut Guest) {
    guest.configure(&format!("{GUEST}/24"), None).expect("it has a virtio network interface");
}

pub(crate) fn expect_no_warning(server: &Server) {
    let output = server.output();
    assert!(!output.contains("WARN") && !output.contains("ERROR"), "{output}");
}
