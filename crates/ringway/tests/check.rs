//! `ringway check`: on Ringway, on other back-ends, on none, and on one that does each thing wrong in turn.

#[path = "check/proxy.rs"]
mod proxy;

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use proxy::{Fault, Proxy};
use ringway_testkit::backend::{Backend, Project};
use ringway_testkit::process::Process;
use ringway_testkit::server::Server;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");

fn check(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM).arg("check").arg(socket).args(arguments).output().expect("run ringway check")
}

/// The exit status, and what the JSON says.
fn check_json(socket: &Path, arguments: &[&str]) -> (i32, Value) {
    let output = check(socket, &[&["--json"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let json = serde_json::from_str(&text);
    let json = json.unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().expect("an exit status"), json)
}

/// The names of the cases with this result.
fn cases(report: &Value, result: &str) -> BTreeSet<String> {
    let cases = report["cases"].as_array().expect("cases").iter();
    let cases = cases.filter(|case| case["result"] == result);
    cases.map(|case| case["case"].as_str().expect("a name").to_owned()).collect()
}

/// Exactly these cases fail, and all are tried.
fn fails_exactly(report: &Value, expected: &[&str]) {
    let expected: BTreeSet<_> = expected.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(cases(report, "fail"), expected, "{report:#}");
    assert_eq!(cases(report, "error"), BTreeSet::new(), "{report:#}");
}

fn net(uplink: &str) -> Server {
    Server::net(Path::new(PROGRAM), uplink, &["--mtu=1500", "--iommu", "--postcopy"]).expect("ringway net")
}

#[test]
fn ringway_passes() {
    let server = net("echo");
    let (_, report) = check_json(&server.socket("net"), &["--hostile"]);
    fails_exactly(&report, &[]);
    assert_eq!(report["device"], "net");
    // No device of ours has objects or memory to share, and this one is no disk.
    let mut skipped = cases(&report, "skip");
    skipped.retain(|case| !case.starts_with("blk-") && !case.starts_with("hostile-blk-"));
    assert_eq!(skipped, ["get-shared-object", "get-shmem-config"].map(str::to_owned).into());
}

/// So do entropy devices, consoles of one port and of several, and balloons.
#[test]
fn ringway_passes_with_small_devices() {
    let ports: &[&str] = &["--port=a=pty", "--port=b=pty"];
    for (kind, arguments) in
        [("rng", &["--iommu"][..]), ("console", &ports[..1]), ("console", ports), ("balloon", &[])]
    {
        let server = Server::device(Path::new(PROGRAM), kind, arguments).expect("ringway starts");
        let (status, report) = check_json(&server.socket(kind), &["--hostile"]);
        fails_exactly(&report, &[]);
        assert_eq!((status, &report["device"]), (0, &"generic".into()), "{kind}");
    }
}

/// Disks of all kinds pass, with requests of every kind, and what was on them is there after.
#[test]
fn ringway_passes_with_a_disk() {
    let blk =
        |image: &str, extra: &[&str]| Server::blk(Path::new(PROGRAM), image, extra).expect("ringway blk");
    let server = blk("mem:1M", &["--iommu"]);
    let (_, report) = check_json(&server.socket("disk"), &["--hostile"]);
    fails_exactly(&report, &[]);
    assert_eq!(report["device"], "blk");
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    let content: Vec<_> = (0..1 << 20).map(|n: u32| (n % 253) as u8).collect();
    std::fs::write(&image, &content).expect("an image");
    for extra in [&[][..], &["--read-only"], &["--logical-block-size=4096"], &["--cache=writethrough"]] {
        let extra = [&["--format=raw"], extra].concat();
        let server = blk(&image.to_string_lossy(), &extra);
        let (_, report) = check_json(&server.socket("disk"), &["--only=blk-"]);
        fails_exactly(&report, &[]);
        assert!(cases(&report, "pass").len() >= 11, "{report:#}");
        drop(server);
        assert!(std::fs::read(&image).expect("the image") == content, "{extra:?}: it is as it was");
    }
}

/// [VU-BE-iotlb-msg-00] [VU-BE-iotlb-msg-01] [VU-BE-iommu-support-01] [VU-BE-iommu-support-02]
/// [VU-BE-backend-iotlb-msg-01] Behind an IOMMU the device asks for what it does not know, and only there; each update and
/// each invalidation is answered.
#[test]
fn translations() {
    let server = net("sink");
    let (_, report) = check_json(&server.socket("net"), &["--only=iotlb-"]);
    let due = ["iotlb-answered", "iotlb-answered-unasked", "iotlb-miss", "iotlb-only-if-negotiated"];
    assert_eq!(cases(&report, "pass"), due.map(str::to_owned).into(), "{report:#}");
}

/// A device from which no frame ever comes fails nothing.
#[test]
fn a_silent_device_passes() {
    let server = net("sink");
    let (_, report) = check_json(&server.socket("net"), &[]);
    fails_exactly(&report, &[]);
    assert!(cases(&report, "skip").contains("disabled-receives-nothing"), "{report:#}");
}

#[test]
fn the_exit_status_is_by_the_result() {
    let server = net("sink");
    let socket = server.socket("net");
    let status = |arguments: &[&str]| check(&socket, arguments).status.code();
    assert_eq!(status(&["--only=get-features"]), Some(0));
    let proxy = Proxy::start(&socket, Fault::NoKickNeeded);
    assert_eq!(check(proxy.socket(), &["--only=stopped-at-first"]).status.code(), Some(1));
    assert_eq!(status(&["--device=toaster"]), Some(2), "a wrong argument");
    assert_eq!(check(Path::new("/nonexistent/socket"), &[]).status.code(), Some(2));
}

#[test]
fn a_pattern_chooses_by_name_and_by_id() {
    let server = net("sink");
    let (status, report) = check_json(&server.socket("net"), &["--only=VU-BE-get-vring-base-01"]);
    let due = ["drained-split", "drained-packed"].map(str::to_owned);
    assert_eq!((status, cases(&report, "pass")), (0, due.into()));
    let (_, report) = check_json(&server.socket("net"), &["--only=hostile"]);
    assert_eq!(report["cases"].as_array().map(Vec::len), Some(0), "not without --hostile");
}

/// The table for people names the requirement, and the summary comes last.
#[test]
fn the_table_can_be_read() {
    let server = net("sink");
    let proxy = Proxy::start(&server.socket("net"), Fault::NoKickNeeded);
    let output = check(proxy.socket(), &["--only=stop"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("PASS  MUST   VU-BE-ring-states-01 "), "{text}");
    assert!(text.contains("expected: no chain is used: the ring was not kicked\n"), "{text}");
    assert!(text.contains("passed, 1 failed (MUST)"), "{text}");
}

#[test]
fn every_requirement_is_listed() {
    let output = Command::new(PROGRAM).args(["check", "--list"]).output().expect("run ringway check");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let row = |id: &str| text.lines().find(|line| line.starts_with(id)).expect("a row").to_owned();
    assert!(row("VU-BE-get-vring-base-01 ").contains("drained-split, drained-packed"));
    assert!(row("VU-BE-backend-program-conventions-06 ").contains("not seen: "));
    assert_eq!(output.status.code(), Some(0));
}

/// A generic device is asked nothing that only some devices know.
#[test]
fn a_device_of_any_kind_can_be_examined() {
    let server = net("sink");
    let (status, report) = check_json(&server.socket("net"), &["--device=generic", "--hostile"]);
    fails_exactly(&report, &[]);
    assert_eq!((status, &report["device"]), (0, &"generic".into()));
}

#[test]
fn nobody_there_and_somebody_silent() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("socket");
    let start = Instant::now();
    let output = check(&socket, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not answer"));

    let _listener = UnixListener::bind(&socket).expect("bind");
    let output = check(&socket, &["--patience=300"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing in 300ms"));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// A back-end that connects to a front-end is examined the other way round.
#[test]
fn a_back_end_that_connects_to_us() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("socket");
    let mut command = Command::new(PROGRAM);
    command.arg("switch").arg(format!("--port=a={},client", socket.display()));
    let _server = Process::start("ringway", &mut command).expect("ringway switch");
    let (status, report) = check_json(&socket, &["--listen", "--only=get-"]);
    fails_exactly(&report, &[]);
    assert_eq!((status, socket.exists()), (0, false));
}

/// Each fault of a back-end makes the cases fail that are about it.
#[test]
fn faults_are_found() {
    let server = net("echo");
    let mut missed = Vec::new();
    for (fault, found) in proxy::FAULTS {
        let proxy = Proxy::start(&server.socket("net"), *fault);
        for case in *found {
            let (_, report) = check_json(proxy.socket(), &["--patience=500", "--only", case]);
            if !cases(&report, "fail").contains(*case) {
                missed.push(format!("{fault:?}: {case}: {:#}", report["cases"]));
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    // The proxy itself does no harm.
    let proxy = Proxy::start(&server.socket("net"), Fault::None);
    let (_, report) = check_json(proxy.socket(), &[]);
    fails_exactly(&report, &[]);
}

/// A back-end that does not survive is told from one that does; what comes after cannot be tried.
#[test]
fn a_back_end_that_dies_is_noticed() {
    let server = net("echo");
    let proxy = Proxy::start(&server.socket("net"), Fault::DiesOfUnknownRequests);
    let (status, report) = check_json(proxy.socket(), &["--patience=500", "--only=hostile-", "--hostile"]);
    assert_eq!(status, 1);
    assert_eq!(cases(&report, "fail"), ["hostile-unknown".to_owned()].into());
    assert!(cases(&report, "error").contains("hostile-crowd"), "{report:#}");
}

/// Another project's back-end: what fails is known, by name. docs/PEERS.md says why.
fn peer_fails_exactly(project: Project, device: &str, expected: &[&str]) {
    let peer = Backend::start(project, Path::new(PROGRAM)).expect("a back-end");
    let (status, report) = check_json(peer.socket(), &[]);
    fails_exactly(&report, expected);
    assert_eq!((status, &report["device"]), (1, &device.into()));
}

/// qemu-storage-daemon 10.0, by QEMU's library for vhost-user devices.
#[test]
fn qemu_storage_daemon() {
    let expected = [
        "failure-is-told",
        "polling",
        "without-call",
        "get-config-part",
        "get-config-outside",
        "set-config-refusal",
    ];
    peer_fails_exactly(Project::Qemu, "blk", &expected);
}

/// DPDK 22.11.
#[test]
fn dpdk_net_vhost() {
    let expected = [
        "base-is-kept-packed",
        "base-counts-packed",
        "stopped-at-first",
        "disabled-transmits",
        "rings-are-independent",
        "status-zero-stops",
        "iotlb-answered-unasked",
    ];
    peer_fails_exactly(Project::Dpdk, "net", &expected);
}
