//! Where front-ends come from: a socket that the program connects to, or one that it inherited.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ringway_testkit::frontend::wire::{self, request};
use ringway_testkit::frontend::{Connection, NetFrontend, frame};
use ringway_testkit::server::Server;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{
    FEATURES, PROGRAM, SOON, eventually, exchange, expect_number, mac, number_of, numbered, options, up,
};
use crate::{A, D};

/// A front-end that the program has found.
fn found(listener: &UnixListener) -> NetFrontend {
    let mut a = NetFrontend::accept(listener, options()).unwrap();
    a.negotiate(FEATURES).unwrap();
    a.start().unwrap();
    a
}

/// The program connects to the front-end's socket: it tries until it is there, and again when the front-end has
/// gone, whether its socket stays or is made anew.
#[test]
fn a_port_that_connects() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let port = format!("--port=a={},client", path.display());
    let mut server = Server::switch(Path::new(PROGRAM), &["d"], &[&port]).unwrap();
    let mut d = up(&server, "d", FEATURES, options());
    d.send_frame(&numbered(frame::BROADCAST, D, 0)).unwrap();
    server.process().wait_for("trying on", SOON).unwrap();
    for _ in 0..2 {
        let listener = UnixListener::bind(&path).unwrap();
        for _ in 0..2 {
            let mut a = found(&listener);
            exchange((&mut a, A), (&mut d, D));
        }
        // One has connected already, and finds the socket closed.
        drop(listener);
        std::fs::remove_file(&path).unwrap();
    }
    let tries = server.output().matches("trying on").count();
    assert!(tries <= 3, "a failure to connect is told once, not at every try: {tries}");
}

/// A front-end that takes every connection and closes it at once is not tried without a pause.
#[test]
fn a_front_end_that_always_closes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let port = format!("--port=a={},client", path.display());
    let server = Server::switch(Path::new(PROGRAM), &["d"], &[&port]).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (begin, mut tries) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_millis(1200) {
        match listener.accept() {
            Ok(_) => tries += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert!((2..=4).contains(&tries), "{tries} tries in 1.2 s, with half a second between two");
    server.terminate().unwrap();
}

/// The program with a socket as its standard input, killed when dropped.
struct Inherited(Child);

impl Inherited {
    fn start(socket: OwnedFd) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["net", "--fd=0", "--uplink=echo"]);
        command.stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn echo(guest: &mut NetFrontend) {
    guest.send_frame(&numbered(mac(1), mac(2), 7)).unwrap();
    let (_, frame) = guest.recv_frame(SOON).unwrap().expect("an echo");
    assert_eq!((number_of(&frame, mac(1)), &frame[..6]), (Some(7), &mac(2)[..]), "addresses are swapped");
}

/// [VU-BE-backend-program-conventions-04] A connected socket is inherited: when its front-end leaves, there
/// will be no other, and the program ends well. It stays the process that was started.
#[test]
fn an_inherited_connection() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut program = Inherited::start(theirs.into());
    let mut guest = NetFrontend::new(Connection::from_stream(ours).unwrap(), options()).unwrap();
    guest.negotiate(FEATURES).unwrap();
    guest.start().unwrap();
    echo(&mut guest);
    assert!(program.0.try_wait().unwrap().is_none());
    drop(guest);
    assert!(program.wait().success());
}

/// A listening socket is inherited: front-ends come and go; the socket's file is not ours to remove.
#[test]
fn an_inherited_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let mut program = Inherited::start(UnixListener::bind(&path).unwrap().into());
    for _ in 0..3 {
        let mut guest = NetFrontend::up(&path, FEATURES, options()).unwrap();
        echo(&mut guest);
    }
    kill_process(Pid::from_child(&program.0), Signal::TERM).unwrap();
    assert!(program.wait().success());
    assert!(path.exists());
}

/// A front-end that connects when the one before it has closed finds the port free, however soon that is.
#[test]
fn one_front_end_after_the_other() {
    let server = Server::net(Path::new(PROGRAM), "sink", &[]).unwrap();
    // More than the program handles before it looks whether somebody else has come.
    let requests = wire::message(request::SET_OWNER, 0, &[]).repeat(1000);
    for number in 0..20 {
        let one = Connection::connect(server.socket("net")).unwrap();
        let answer = one.request_u64(request::GET_FEATURES);
        assert!(answer.is_ok(), "front-end {number}: {answer:?}");
        one.send_raw(&requests, &[]).unwrap();
    }
}

/// Many front-ends at once at one socket: one is served, the others are told by the close.
#[test]
fn a_crowd_at_one_port() {
    let server = Server::net(Path::new(PROGRAM), "echo", &[]).unwrap();
    let mut first = NetFrontend::up(server.socket("net"), FEATURES, options()).unwrap();
    let crowd: Vec<_> = (0..50).map(|_| Connection::connect(server.socket("net")).unwrap()).collect();
    echo(&mut first);
    for one in crowd {
        assert!(one.is_closed(SOON).unwrap());
    }
    echo(&mut first);
    drop(first);
    eventually("the port is free", || {
        NetFrontend::up(server.socket("net"), FEATURES, options()).is_ok_and(|mut g| {
            g.send_frame(&numbered(mac(1), mac(2), 7)).unwrap();
            expect_number(&mut g, mac(1), 7);
            true
        })
    });
}
