//! Live upgrade: a server hands everything to another process while front-ends are attached, in every state that they can
//! be in; or it cannot, and goes on.

mod common;
#[path = "upgrade/failures.rs"]
mod failures;

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{
    FEATURES, Honest, PROGRAM, SOON, eventually, exchange, expect_number, is_answered, mac, numbered,
    options, switch, up, warnings,
};
use ringway_testkit::frontend::wire::{protocol, request};
use ringway_testkit::frontend::{Connection, MemoryMethod, NetFrontend, Options};
use ringway_testkit::server::Server;
use rustix::io::{FdFlags, fcntl_setfd};

const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// A server's files, and processes that it has started.
fn leftovers(server: &mut Server) -> (usize, String) {
    let pid = server.process().pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    (server.open_fds().unwrap(), children)
}

/// Busy guests lose no frame in ten upgrades, and do not notice: no session ends, no address is forgotten, the counters
/// go on. Nothing is left of the old processes, and no file descriptor more is open in the new ones.
#[test]
fn busy_guests_notice_nothing() {
    let mut server = switch(&["a", "b", "free"]);
    let honest = Honest::start(&server, [("a", A), ("b", B)]);
    let before = leftovers(&mut server);
    for _ in 0..10 {
        honest.check();
        let counted = server.counters().unwrap();
        let pause = server.upgrade().unwrap();
        println!("paused for {pause:?}");
        let counters = server.counters().unwrap();
        assert!(counters.get("a", "from") >= counted.get("a", "from"), "{counted:?} {counters:?}");
        honest.check();
        eventually("nothing is left", || leftovers(&mut server) == before);
    }
    honest.finish();
    assert_eq!(warnings(&server.output()), [""; 0]);
    let (status, counters) = server.terminate().unwrap();
    assert!(status.success());
    for (port, other) in [("a", "b"), ("b", "a")] {
        assert_eq!(
            counters.get(port, "from"),
            counters.get(other, "to") + counters.dropped(other),
            "{counters:?}"
        );
        assert_eq!(counters.get(port, "sessions"), 1);
        // Had an address been forgotten, frames would have been flooded to the free port, which takes none.
        assert_eq!(counters.dropped(port), counters.get(port, "filtered"), "{counters:?}");
    }
}

/// What a front-end has said before the upgrade holds after it, however far it had come.
#[test]
fn sessions_go_on_in_every_state() {
    let mut server = switch(&["a", "b", "c", "d", "e"]);
    let status = Options { protocol_features: common::PROTOCOL | protocol::STATUS, ..options() };
    // Attached, and silent.
    let mut silent = NetFrontend::connect(server.socket("b"), options()).unwrap();
    // Negotiated, nothing set up.
    let mut negotiated = NetFrontend::connect(server.socket("c"), options()).unwrap();
    negotiated.negotiate(FEATURES).unwrap();
    // All set up, but the driver is not ready.
    let mut not_ready = up(&server, "d", FEATURES, status);
    // Stopped after it ran.
    let mut stopped = up(&server, "e", FEATURES, options());
    let bases = stopped.stop().unwrap();
    let before = leftovers(&mut server);
    server.upgrade().unwrap();
    eventually("nothing is left", || leftovers(&mut server) == before);

    let mut a = up(&server, "a", FEATURES, options());
    silent.negotiate(FEATURES).unwrap();
    silent.start().unwrap();
    exchange((&mut a, mac(1)), (&mut silent, mac(2)));
    negotiated.start().unwrap();
    exchange((&mut a, mac(1)), (&mut negotiated, mac(3)));
    not_ready.connection().request_accepted(request::SET_STATUS, &15u64.to_le_bytes(), &[]).unwrap();
    exchange((&mut a, mac(1)), (&mut not_ready, mac(4)));
    for (ring, base) in bases.into_iter().enumerate() {
        stopped.restart_ring(ring, base).unwrap();
    }
    exchange((&mut a, mac(1)), (&mut stopped, mac(5)));
    assert_eq!(warnings(&server.output()), [""; 0]);
}

/// A message that is on its way: half of it comes before the upgrade, with its file descriptor, and half after.
#[test]
fn half_a_message_is_handed_over() {
    use ringway_testkit::frontend::Event;
    use std::os::fd::AsFd;
    let mut server = switch(&["a"]);
    for (number, at) in [1, 11, 12, 13, 19].into_iter().enumerate() {
        let a = NetFrontend::connect(server.socket("a"), options()).unwrap();
        assert!(is_answered(&a), "its turn has come");
        let event = Event::new().unwrap();
        let message = [13u32, 1, 8].map(u32::to_le_bytes).concat();
        let message = [&message[..], &(number as u64).to_le_bytes()].concat();
        a.connection().send_raw(&message[..at], &[event.as_fd()]).unwrap();
        std::thread::sleep(common::QUIET);
        server.upgrade().unwrap();
        a.connection().send_raw(&message[at..], &[]).unwrap();
        assert!(is_answered(&a), "at {at}");
        drop(a);
    }
    assert_eq!(warnings(&server.output()), [""; 0]);
}

/// Front-ends that connect while an upgrade is under way are served, by one or the other.
#[test]
fn front_ends_come_and_go_meanwhile() {
    let mut server = switch(&["a", "b", "c"]);
    let honest = Honest::start(&server, [("a", A), ("b", B)]);
    let socket = server.socket("c");
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let comer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // While this process starts the command, that has a copy of the last connection, which is not closed yet.
                let Ok(mut c) = NetFrontend::up(&socket, FEATURES, options()) else { continue };
                c.send_frame(&numbered(A, mac(3), 1 << 50)).unwrap();
                c.pair(0).wait_sent(SOON).unwrap();
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..10 {
            server.upgrade().unwrap();
        }
        eventually("they are served", || {
            server.upgrade().unwrap();
            comer.is_finished() || served.load(Ordering::Relaxed) > 20
        });
        stop.store(true, Ordering::Relaxed);
        comer.join().unwrap();
    });
    honest.finish();
    assert!(warnings(&server.output()).iter().all(|line| line.contains("turned away")));
}

/// A server that connects to its front-end goes on with it, and connects again when that has gone.
#[test]
fn a_client_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    let port = format!("--port=c={},client", path.display());
    let mut server = Server::switch(Path::new(PROGRAM), &["a"], &[&port]).unwrap();
    let mut a = up(&server, "a", FEATURES, options());
    server.upgrade().unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let mut c = NetFrontend::accept(&listener, options()).unwrap();
        c.negotiate(FEATURES).unwrap();
        c.start().unwrap();
        server.upgrade().unwrap();
        exchange((&mut a, mac(1)), (&mut c, mac(3)));
    }
}

/// A connection that was inherited goes on, and its end is the end of the last server, which prints the counters.
#[test]
fn an_inherited_connection_goes_on() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
    let mut server = Server::net_on(Path::new(PROGRAM), theirs.as_raw_fd(), "echo").unwrap();
    drop(theirs);
    let mut guest = NetFrontend::new(Connection::from_stream(ours).unwrap(), options()).unwrap();
    guest.negotiate(FEATURES).unwrap();
    guest.start().unwrap();
    for number in 0..5 {
        guest.send_frame(&numbered(B, A, number)).unwrap();
        expect_number(&mut guest, B, number);
        server.upgrade().unwrap();
    }
    drop(guest);
    assert!(server.process().wait(SOON).unwrap().success());
    let output = server.output();
    assert_eq!(output.matches("port net: from 5 frames").count(), 1, "{output}");
    assert_eq!(output.matches("all: delivered").count(), 1, "{output}");
}

/// The new server's sockets are its own: they are gone when it has ended, and were there until then.
#[test]
fn sockets_are_removed_by_the_last() {
    let mut server = switch(&["a"]);
    let socket = server.socket("a");
    server.upgrade().unwrap();
    assert!(socket.exists());
    let a = up(&server, "a", FEATURES, options());
    server.upgrade().unwrap();
    drop(a);
    assert!(server.terminate().unwrap().0.success());
    assert!(!socket.exists());
}

/// A front-end that has shortened its memory loses its session, and does not hold the upgrade up.
#[test]
fn a_thief_of_memory_does_not_hold_it_up() {
    let mut server = switch(&["a", "b", "c"]);
    let honest = Honest::start(&server, [("a", A), ("b", B)]);
    let c = up(&server, "c", FEATURES, options());
    c.memory().truncate(0, 0).unwrap();
    server.upgrade().unwrap();
    honest.finish();
    assert!(c.connection().is_closed(SOON).unwrap());
    eventually("it is told", || server.output().contains("port c: session ended"));
    drop(c);
    let mut c = up(&server, "c", FEATURES, options());
    let mut a = up(&server, "a", FEATURES, options());
    exchange((&mut a, A), (&mut c, mac(3)));
}

/// A service manager hears that the server is ready, and in an upgrade which process it is from now on.
#[test]
fn the_service_manager_is_told() {
    use std::os::unix::net::UnixDatagram;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let receive = || {
        let mut bytes = [0; 256];
        let len = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    };
    let server = Server::switch_in(Path::new(PROGRAM), &["a"], &[], &[("NOTIFY_SOCKET", path.as_os_str())]);
    let mut server = server.unwrap();
    assert_eq!(receive(), "READY=1");
    server.upgrade().unwrap();
    assert_eq!(receive(), format!("MAINPID={}\nREADY=1", server.process().pid()));
}

/// Hundreds of regions, of which each has a file: more than one message of the kernel's takes.
#[test]
fn many_regions_are_handed_over() {
    let mut server = switch(&["a", "b"]);
    let slots = Options {
        memory_method: MemoryMethod::AddRegions,
        memory: (0..400).map(|n| (n << 24, 1 << 20, 0)).collect(),
        ..options()
    };
    let mut a = up(&server, "a", FEATURES, slots);
    let mut b = up(&server, "b", FEATURES, options());
    exchange((&mut a, A), (&mut b, B));
    let before = leftovers(&mut server);
    let pause = server.upgrade().unwrap();
    println!("400 regions: paused for {pause:?}");
    eventually("nothing is left", || leftovers(&mut server) == before);
    exchange((&mut a, A), (&mut b, B));
    assert!(pause < Duration::from_secs(1));
}
