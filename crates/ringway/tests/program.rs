//! The program from outside: its command line, its socket files, its signals.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{NetFrontend, Options};
use ringway_testkit::server::Server;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().expect("ringway runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// [VU-BE-backend-program-conventions-09] The capabilities are printed whatever else is said.
#[test]
fn capabilities() {
    for args in [
        &["net", "--print-capabilities"][..],
        &["net", "--print-capabilities", "--socket-path=/nowhere/at/all", "--fd=3"],
        &["net", "--uplink=what", "--no-such-option", "--print-capabilities"],
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}");
        assert!(out.contains("\"type\": \"net\""), "{out}");
    }
}

/// [VU-BE-backend-program-conventions-02] [VU-BE-backend-program-conventions-03] What cannot work ends early,
/// with a status and a line that says what and where.
#[test]
fn errors_are_early_and_say_what_to_do() {
    for (args, says) in [
        (&["net"][..], "--socket-path"),
        (&["net", "--socket-path=/nowhere/s"], "/nowhere/s"),
        (&["net", "--fd=99"], "--fd=99"),
        (&["net", "--fd=0"], "not a socket"),
        (&["net", "--socket-path=/tmp/s", "--uplink=tap:a/b"], "a/b"),
        (&["net", "--socket-path=/tmp/s", "--uplink=what"], "tap:IFNAME"),
        (&["switch", "--port=a"], "NAME=SOCKET"),
        (&["switch", "--port=a=/nowhere/a"], "port a"),
        (&["switch"], "--port"),
        (&["net", "--socket-path=/tmp/ringway-pin.s", "--pin=1000"], "processor 1000"),
        (&["switch", "--port=a=/nowhere/a", "--pin=2-1"], "2,4-7"),
        (&["switch", "--port=a=/nowhere/a", "--workers=0"], "from 1 to 64"),
    ] {
        let (code, _, err) = run(args);
        assert!(code.is_some_and(|c| c != 0), "{args:?}");
        assert!(err.contains(says), "{args:?}: {err}");
    }
}

/// A socket file that nobody listens on is replaced; one that somebody listens on, and any other file, is not.
#[test]
fn stale_sockets_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let socket = format!("--socket-path={}", path.display());

    let listener = UnixListener::bind(&path).unwrap();
    let (code, _, err) = run(&["net", &socket]);
    assert_eq!(code, Some(1));
    assert!(err.contains("another program listens"), "{err}");
    drop(listener);
    assert!(path.exists(), "a closed listener leaves its file");

    let mut child = Command::new(PROGRAM).args(["net", &socket]).stdout(Stdio::null()).spawn().unwrap();
    let frontend = NetFrontend::up(&path, feature::VERSION_1, Options::default()).unwrap();
    frontend.stop().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let (code, _, err) = run(&["net", &socket]);
    assert_eq!(code, Some(1));
    assert!(err.contains("no socket"), "{err}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// [VU-BE-backend-program-conventions-06] SIGTERM ends it at once, with its counters, and no socket stays.
#[test]
fn sigterm_ends_it() {
    let server = Server::switch(Path::new(PROGRAM), &["a", "b"], &[]).unwrap();
    let socket = server.socket("a");
    let frontend = NetFrontend::up(&socket, feature::VERSION_1, Options::default()).unwrap();
    let begin = std::time::Instant::now();
    let (status, counters) = server.terminate().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert!(status.success());
    assert_eq!(counters.get("a", "sessions"), 1);
    assert!(!socket.exists());
    assert!(frontend.connection().is_closed(Duration::from_secs(1)).unwrap());
}
