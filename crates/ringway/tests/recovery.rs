//! What survives a crash: the server's, a guest's, a front-end's. The peer is a Linux guest under QEMU, and what
//! it talks to is this host's own network stack, in a namespace.

#[path = "common/lan.rs"]
mod lan;

use std::time::{Duration, Instant};

use lan::{Lan, SOON, configure, expect_no_complaint, expect_no_warning};
use ringway_testkit::guest::{BOOT_LIMIT, Guest, Nic, QemuOptions};
use ringway_testkit::server::Server;
use ringway_testkit::soak_factor;

/// A host with a server of one guest, and the guest.
fn world(kernel_args: &str) -> (Lan, Server, Guest) {
    let lan = Lan::new();
    let server = lan.server("tap", &[]);
    let guest = boot(&server, kernel_args);
    (lan, server, guest)
}

fn boot(server: &Server, kernel_args: &str) -> Guest {
    let mut options = QemuOptions::new([Nic::new(server.socket("net")).reconnect()]);
    options.memory = 128;
    options.kernel_args += kernel_args;
    lan::boot(&options)
}

/// How often a front-end has attached.
fn attached(server: &Server) -> usize {
    server.output().matches("front-end attached").count()
}

/// The server is killed while it moves frames both ways, and started anew, 20 times. One TCP session lives through
/// all of it: each time it goes on by itself, and not a byte of it is lost, repeated or changed. The guest's driver
/// has nothing to say against the rings.
#[test]
fn a_session_outlives_20_crashes_of_the_server() {
    crashes(20);
}

/// The same, more often than a ring has entries: one that got lost in each crash would be missed by now.
#[test]
#[ignore = "long: make soak"]
fn soak_a_session_outlives_crashes_of_the_server() {
    crashes(300 * soak_factor());
}

fn crashes(count: u32) {
    let (lan, mut server, mut guest) = world("");
    let echo = lan.start_echo(&mut guest);
    let mut times = Vec::new();
    for crash in 0..count {
        // At another moment each time.
        std::thread::sleep(Duration::from_millis(u64::from(crash) * 37 % 200));
        server.process().kill();
        let start = Instant::now();
        // What had come through before is read by now.
        std::thread::sleep(Duration::from_millis(20));
        server.restart().unwrap();
        echo.wait_for(1 << 20, SOON).unwrap_or_else(|e| panic!("after crash {crash}: {e}"));
        times.push(start.elapsed());
        expect_no_warning(&server);
    }
    let megabytes = echo.finish(SOON).unwrap() >> 20;
    times.sort();
    let [median, longest] = [times.len() / 2, times.len() - 1].map(|i| times[i].as_secs_f64());
    println!(
        "{count} crashes: {megabytes} MiB each way; a MiB later after {median:.1} s, at most {longest:.1} s"
    );
    expect_no_complaint(&mut guest);
}

/// A guest that panics boots again, on a session that stays; and when its QEMU is killed, another one takes its
/// place. Each time the network is there.
#[test]
fn a_guest_panics_and_its_front_end_is_killed() {
    let (lan, server, mut guest) = world("panic=1");
    for incident in ["panic", "kill"] {
        let echo = lan.start_echo(&mut guest);
        if incident == "panic" {
            guest.process().write("0 echo c >/proc/sysrq-trigger\n").unwrap();
            guest.wait_ready(BOOT_LIMIT).unwrap();
            configure(&mut guest);
            assert_eq!(attached(&server), 1);
        } else {
            guest.kill();
            guest = boot(&server, "");
            assert_eq!(attached(&server), 2);
        }
        drop(echo);
        lan.reaches_guest();
        lan.start_echo(&mut guest).finish(SOON).unwrap();
        expect_no_warning(&server);
    }
}
