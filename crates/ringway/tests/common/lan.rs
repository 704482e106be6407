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
pub(crate) const HOST_MAC: &str = "02:00:00:00:08:01";
pub(crate) const GUEST: &str = "10.8.0.2";

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");

pub(crate) struct Lan {
    host: Netns,
}

impl Lan {
    pub(crate) fn new() -> Self {
        let host = Netns::new().expect("a network namespace");
        host.add_bridge("bridge", HOST_MAC, &format!("{HOST}/24")).unwrap();
        Self { host }
    }

    /// A server of one guest, on a tap of its own; `extra` are further arguments.
    pub(crate) fn server(&self, tap: &str, extra: &[&str]) -> Server {
        self.host.add_tap(tap, "bridge").unwrap();
        Server::net_in(&self.host, PROGRAM, &format!("tap:{tap}"), extra).expect("ringway starts")
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

    /// Tells the host the guest's hardware address for good.
    pub(crate) fn knows_guest(&self, mac: &str) {
        let neighbour = ["neigh", "replace", GUEST, "lladdr", mac, "dev", "bridge", "nud", "permanent"];
        self.host.run("ip", &neighbour).unwrap();
    }

    /// The tap behind which the bridge has seen an address.
    pub(crate) fn port_of(&self, mac: &str) -> Option<String> {
        let table = self.host.run("bridge", &["fdb", "show", "br", "bridge"]).unwrap();
        let line = table.lines().find(|l| l.starts_with(mac))?;
        line.split(' ').skip_while(|word| *word != "dev").nth(1).map(str::to_owned)
    }

    /// Waits until the host reaches the guest.
    pub(crate) fn reaches_guest(&self) {
        let deadline = Instant::now() + SOON;
        while self.host.run("busybox", &["ping", "-c", "1", "-W", "1", GUEST]).is_err() {
            assert!(Instant::now() < deadline, "the host does not reach the guest");
        }
    }
}

/// A guest that boots, or waits to be migrated.
pub(crate) fn start(options: &QemuOptions) -> Guest {
    let images = ensure_images().expect("guests/setup.sh gets the guests' images");
    boot_qemu("guest", &images, options).expect("it starts")
}

/// A guest that has booted and has its address.
pub(crate) fn boot(options: &QemuOptions) -> Guest {
    let mut guest = start(options);
    guest.wait_ready(BOOT_LIMIT).expect("it boots");
    configure(&mut guest);
    guest
}

/// Gives a guest that has booted its address.
pub(crate) fn configure(guest: &mut Guest) {
    guest.configure(&format!("{GUEST}/24"), None).expect("it has a virtio network interface");
}

/// The guest's driver says so when a used entry names no chain of its own.
pub(crate) fn expect_no_complaint(guest: &mut Guest) {
    let (status, said) = guest.run_status("dmesg | grep virtio_net", SOON).unwrap();
    assert_eq!(status, 1, "{said}");
}

pub(crate) fn expect_no_warning(server: &Server) {
    let output = server.output();
    assert!(!output.contains("WARN") && !output.contains("ERROR"), "{output}");
}
