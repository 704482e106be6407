//! The program from outside: its command line, its socket files, its signals.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{NetFrontend, Options};
use ringway_testkit::server::Server;
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().expect("ringway runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// [VU-BE-backend-program-conventions-09] The capabilities are printed whatever else is said.
#[test]
fn capabilities() {
    let (net, block) =
        (json!({ "type": "net" }), json!({ "type": "block", "features": ["read-only", "blk-file"] }));
    for (args, capabilities) in [
        (&["net", "--print-capabilities"][..], &net),
        (&["net", "--print-capabilities", "--socket-path=/nowhere/at/all", "--fd=3"], &net),
        (&["net", "--uplink=what", "--no-such-option", "--print-capabilities"], &net),
        (&["--print-capabilities"], &net),
        (&["blk", "--print-capabilities"], &block),
        (&["blk", "--blk-file=/nowhere/at/all", "--cache=what", "--print-capabilities", "--fd=3"], &block),
        (&["--print-capabilities", "blk"], &block),
        (&["rng", "--print-capabilities", "--source=/nowhere/at/all"], &json!({ "type": "rng" })),
        (&["console", "--print-capabilities"], &json!({ "type": "console" })),
        (&["balloon", "--target=what", "--print-capabilities"], &json!({ "type": "balloon" })),
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap(), *capabilities, "{args:?}");
    }
}

/// A link with the name of a command is a program without commands.
#[test]
fn the_name_stands_for_a_command() {
    let directory = tempfile::tempdir().unwrap();
    for (name, kind, says) in [
        ("ringway-blk", "block", "--blk-file"),
        ("ringway-net", "net", "--fd"),
        ("ringway-rng", "rng", "--socket-path"),
        ("ringway-console", "console", "--port"),
        ("ringway-balloon", "balloon", "--socket-path"),
    ] {
        let link = directory.path().join(name);
        std::os::unix::fs::symlink(PROGRAM, &link).unwrap();
        let output = |arg: &str| Command::new(&link).arg(arg).output().unwrap();
        let printed: serde_json::Value =
            serde_json::from_slice(&output("--print-capabilities").stdout).unwrap();
        assert_eq!(printed["type"], kind);
        let refused = output(match kind {
            "block" | "console" => "--socket-path=/tmp/s",
            "net" => "--mtu=1500",
            _ => "--client",
        });
        assert!(!refused.status.success());
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains(says), "{told}");
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
        (&["blk"], "--socket-path"),
        (&["rng"], "--socket-path"),
        (&["rng", "--socket-path=/tmp/s", "--source=/dev/zero"], "/dev/zero: it repeats itself"),
        (&["rng", "--socket-path=/tmp/s", "--source=/etc/passwd"], "not random twice"),
        (&["rng", "--guest=a=/nowhere/a", "--guest=a=/nowhere/b"], "guest a: the name is given twice"),
        (&["console", "--socket-path=/tmp/s"], "--port=NAME=pty"),
        (
            &["console", "--socket-path=/tmp/s", "--port=a=file:/nowhere/log"],
            "port a: cannot write to /nowhere/log",
        ),
        (
            &["console", "--socket-path=/tmp/s", "--port=a=pty", "--port=a=stdio"],
            "port a: the name is given twice",
        ),
        (&["console", "--socket-path=/tmp/s", "--port=a=pty:/etc/passwd"], "/etc/passwd is there already"),
        (&["balloon", "--socket-path=/tmp/s", "--target=1.5G"], "1.5G"),
        (&["balloon-target", "--pid=1"], "process 1 is no server that has balloons"),
        (&["blk", "--socket-path=/tmp/s"], "--blk-file"),
        (&["blk", "--socket-path=/nowhere/s", "--blk-file=null:1M"], "/nowhere/s"),
        (&["blk", "--socket-path=/tmp/s", "--blk-file=/nowhere/img"], "/nowhere/img"),
        (&["blk", "--socket-path=/tmp/s", "--blk-file=/dev/null"], "/dev/null"),
        (&["blk", "--socket-path=/tmp/s", "--blk-file=mem:1"], "\"1\""),
        (&["blk", "--socket-path=/tmp/s", "--blk-file=null:1M", "--num-queues=0"], "from 1 to 256"),
        (
            &["blk", "--socket-path=/tmp/s", "--blk-file=null:1M", "--serial=012345678901234567890"],
            "20 ASCII",
        ),
        (&["blk", "--socket-path=/tmp/s", "--blk-file=null:1M", "--logical-block-size=513"], "power of two"),
        (&["blk", "--fd=99", "--blk-file=null:1M"], "--fd=99"),
        (&["blk", "--fd=9", "--client", "--blk-file=null:1M"], "--client"),
        (&["blk", "--disk=a=/tmp/s"], "NAME=SOCKET,IMAGE"),
        (&["blk", "--disk=a=/nowhere/s,null:1M"], "disk a"),
        (&["blk", "--disk=a=/tmp/s,/nowhere/img"], "disk a"),
        (&["blk", "--disk=a=/tmp/s,null:1M", "--disk=a=/tmp/t,null:1M"], "given twice"),
        (
            &["blk", "--disk=a=/tmp/s,null:1M", "--disk=b=/tmp/s,null:1M"],
            "disk a has the socket /tmp/s already",
        ),
        (&["blk", "--disk=a=/tmp/s,null:1M", "--read-only"], "--read-only"),
        (&["blk", "--disk=a=/tmp/s,null:1M", "--socket-path=/tmp/t"], "--socket-path"),
        (&["resize", "--pid=1", "--shrink"], "--size"),
        (&["resize", "--pid=2147483647"], "no process 2147483647"),
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
