//! Capture, read by `tshark`: what is in the file, and that nobody but the file waits for it.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::{
    FEATURES, Honest, PROGRAM, SOON, drain, eventually, exchange, expect_number, mac, numbered, options, up,
};
use ringway_testkit::frontend::frame::{self, BROADCAST, Checksum, Flow, Mac};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{Arrangement, NetFrontend, Options, VnetHeader};
use ringway_testkit::process::Process;
use ringway_testkit::server::Server;
use ringway_testkit::tshark;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const INBOUND: &str = "0x00000001";
const OUTBOUND: &str = "0x00000002";

/// A directory with a file in it that is yet to be.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture");
    (dir, path)
}

fn switch(ports: &[&str], captures: &[String]) -> Server {
    let args: Vec<_> = captures.iter().map(|capture| format!("--capture={capture}")).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Server::switch(Path::new(PROGRAM), ports, &args).unwrap()
}

/// `ringway capture` on a server.
fn command(server: &mut Server, args: &[&str]) -> Process {
    let pid = server.process().pid().to_string();
    Process::start("ringway capture", Command::new(PROGRAM).args(["capture", "--pid", &pid]).args(args))
        .unwrap()
}

fn guests(server: &Server) -> [NetFrontend; 2] {
    let mut guests = ["a", "b"].map(|port| up(server, port, FEATURES, options()));
    let [a, b] = &mut guests;
    exchange((a, A), (b, B));
    guests
}

/// The numbers in "N frames captured, M dropped".
fn summary(output: &str) -> (u64, u64) {
    let words: Vec<_> = output.split_whitespace().collect();
    let at = words.windows(2).position(|pair| pair == ["frames", "captured,"]).expect("a summary");
    (words[at - 1].parse().unwrap(), words[at + 2].parse().unwrap())
}

/// Both directions of one port and nothing of the others: lengths, bytes, tags, the direction, times that do not go back,
/// and as many frames as are counted.
#[test]
fn tshark_reads_what_passed() {
    let (_dir, path) = place();
    let server = switch(&["a", "b", "c"], &[format!("a={}", path.display())]);
    let [mut a, mut b] = guests(&server);
    let mut c = up(&server, "c", FEATURES, options());
    let before = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - 10.0;
    let tagged = frame::tagged(&numbered(BROADCAST, A, 1), 7);
    a.send_frame(&tagged).unwrap();
    a.send_frame(&frame::ethernet(BROADCAST, A, 0x88b5, &[0x5a; 1500])).unwrap();
    assert_eq!(drain(&mut c, SOON / 10).len(), 2);
    // Known behind b: it does not come to a.
    c.send_frame(&numbered(B, mac(0xc), 2)).unwrap();
    expect_number(&mut b, mac(0xc), 2);
    b.send_frame(&numbered(A, B, 3)).unwrap();
    expect_number(&mut a, B, 3);
    drop((a, b, c));
    let (status, counters) = server.terminate().unwrap();
    assert!(status.success());

    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.len",
        "frame.cap_len",
        "eth.src",
        "vlan.id",
        "frame.time_epoch",
    ];
    let packets = tshark::fields(&path, &fields).unwrap();
    assert_eq!(packets.len() as u64, counters.get("a", "from") + counters.get("a", "to"));
    let (a, b) = ("02:00:00:00:00:0a", "02:00:00:00:00:0b");
    // A number's frame has 62 bytes.
    let expected = [
        ["a", INBOUND, "62", "62", a, ""],
        ["a", OUTBOUND, "62", "62", b, ""],
        ["a", INBOUND, "66", "66", a, "7"],
        ["a", INBOUND, "1514", "1514", a, ""],
        ["a", OUTBOUND, "62", "62", b, ""],
    ];
    let seen: Vec<_> = packets.iter().map(|packet| &packet[..6]).collect();
    assert_eq!(seen, expected);
    let times: Vec<f64> = packets.iter().map(|packet| packet[6].parse().unwrap()).collect();
    assert!(times.is_sorted() && times[0] > before && times[4] < before + 60.0, "{times:?}");
}

/// Two ports in one file, one of them with its frames cut.
#[test]
fn a_file_can_have_several_ports() {
    let (_dir, path) = place();
    let file = path.display();
    let server = switch(&["a", "b"], &[format!("a={file},snaplen=20"), format!("b={file}")]);
    drop(guests(&server));
    server.terminate().unwrap();
    let fields = ["frame.interface_name", "frame.packet_flags_direction", "frame.len", "frame.cap_len"];
    let expected = [
        ["a", INBOUND, "62", "20"],
        ["b", OUTBOUND, "62", "62"],
        ["b", INBOUND, "62", "62"],
        ["a", OUTBOUND, "62", "20"],
    ];
    assert_eq!(tshark::fields(&path, &fields).unwrap(), expected);
}

/// A segment of 64 KiB is whole, and its flags say what is yet to be done to it.
#[test]
fn a_long_segment_is_whole() {
    let (_dir, path) = place();
    let capture = format!("--capture=net={}", path.display());
    let server = Server::net(Path::new(PROGRAM), "sink", &[&capture]).unwrap();
    let offloads = feature::NET_CSUM | feature::NET_HOST_TSO4;
    let mut guest = up(&server, "net", FEATURES | offloads, options());
    assert_eq!(guest.features() & offloads, offloads);
    let flow = Flow {
        src_mac: A,
        dst_mac: B,
        src_ip: [10, 0, 0, 1].into(),
        dst_ip: [10, 0, 0, 2].into(),
        src_port: 1000,
        dst_port: 2000,
    };
    let bytes = frame::tcp(&flow, 1, 0x10, &vec![7; 65_000], Checksum::Partial);
    let partial = frame::partial_header(&bytes).unwrap();
    let header = VnetHeader { gso_type: VnetHeader::GSO_TCPV4, gso_size: 1448, hdr_len: 54, ..partial };
    guest.send_frame_with_header(&header, &bytes, &Arrangement::header_apart()).unwrap();
    guest.pair(0).wait_sent(SOON).unwrap();
    drop(guest);
    let (_, counters) = server.terminate().unwrap();
    assert_eq!(counters.get("net", "from"), 1, "{counters:?}");
    let packets =
        tshark::fields(&path, &["frame.cap_len", "frame.packet_flags", "ip.src", "tcp.len"]).unwrap();
    // Inbound, checksum not ready, segmentation offloaded.
    assert_eq!(packets, [["65054", "0x00000a01", "10.0.0.1", "65000"]]);
}

/// Frames that the reader does not take in time are counted, and their guests do not notice.
#[test]
fn nobody_waits_for_the_reader() {
    let (_dir, path) = place();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let server = switch(&["a", "b", "c", "d"], &[format!("a={}", path.display())]);
    // A reader that does not read.
    let mut reader = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(&path)
        .unwrap();
    let honest = Honest::start(&server, [("c", mac(0xc)), ("d", mac(0xd))]);
    let mut a = up(&server, "a", FEATURES, Options { ring_size: 256, max_frame: 1600, ..options() });
    let mut b = up(&server, "b", FEATURES, options());
    exchange((&mut a, A), (&mut b, B));
    let frame = frame::ethernet(B, A, 0x88b5, &[7; 1500]);
    // More than all batches take.
    for _ in 0..6000 {
        a.send_frame(&frame).unwrap();
    }
    a.pair(0).wait_sent(SOON).unwrap();
    honest.finish();
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::empty()).unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let from = server.counters().unwrap();
    let passed = from.get("a", "from") + from.get("a", "to");
    let output = end(server);
    let (captured, dropped) = summary(&output);
    println!("{captured} captured, {dropped} dropped");
    assert_eq!(captured + dropped, passed, "{output}");
    assert!(dropped > 1000 && captured > 1000);
    let (_dir, file) = place();
    std::fs::write(&file, reader.join().unwrap()).unwrap();
    assert_eq!(tshark::fields(&file, &["frame.number"]).unwrap().len() as u64, captured);
}

/// Ends it; what it said in all.
fn end(mut server: Server) -> String {
    assert!(server.process().terminate(SOON).unwrap().success());
    server.process().wait_for("syscalls per frame", SOON).unwrap();
    server.output()
}

/// A full disk ends the capture with one line in the log, the file can be read, and traffic goes on.
#[test]
fn a_full_disk_ends_the_capture() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // A disk that only the server sees, and that goes with it.
    let script = dir.path().join("server");
    let text = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs -o size=64k none \"$0\" && exec {PROGRAM} \"$@\"' {} \"$@\"\n",
        disk.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let capture = format!("--capture=a={}/file", disk.display());
    let mut server = Server::switch(&script, &["a", "b"], &[&capture]).unwrap();
    let [mut a, mut b] = guests(&server);
    // Frames that find the writer busy are not captured: as many as it takes.
    eventually("the disk is full", || {
        for _ in 0..20 {
            a.send_frame(&frame::ethernet(B, A, 0x88b5, &[7; 1500])).unwrap();
        }
        drain(&mut b, Duration::from_millis(5));
        server.output().contains("No space left on device")
    });
    drain(&mut b, SOON / 10);
    exchange((&mut a, A), (&mut b, B));
    let file = PathBuf::from(format!("/proc/{}/root{}/file", server.process().pid(), disk.display()));
    let (captured, _) = summary(&server.output());
    assert_eq!(tshark::fields(&file, &["frame.number"]).unwrap().len() as u64, captured);
    let output = end(server);
    assert_eq!(common::warnings(&output).len(), 1, "{output}");
}

/// A running server is asked to capture, and stops when the one who asked has ended.
#[test]
fn a_running_server_captures() {
    let (_dir, path) = place();
    let mut server = switch(&["a", "b"], &[]);
    let [mut a, mut b] = guests(&server);
    let before = server.open_fds().unwrap();
    let file = path.to_str().unwrap();

    let mut capture = command(&mut server, &["--port", "a", "--port", "b", "--write", file]);
    eventually("it has begun", || path.metadata().is_ok_and(|meta| meta.len() > 0));
    exchange((&mut a, A), (&mut b, B));
    assert!(capture.terminate(SOON).unwrap().success());
    assert_eq!(summary(&capture.output()), (4, 0));
    exchange((&mut a, A), (&mut b, B));
    assert_eq!(tshark::fields(&path, &["frame.number"]).unwrap().len(), 4);

    // One that is killed leaves nothing behind either.
    let mut capture = command(&mut server, &["--port", "a", "--write", file]);
    eventually("it has begun", || server.open_fds().unwrap() > before && path.metadata().unwrap().len() > 0);
    capture.kill();
    eventually("it has ended", || server.open_fds().unwrap() == before);
    exchange((&mut a, A), (&mut b, B));

    let mut refused = command(&mut server, &["--port", "x", "--write", file]);
    assert!(!refused.wait(SOON).unwrap().success());
    let said = refused.output();
    assert!(said.contains("there is no port \"x\"; there are a, b"), "{said}");

    if rustix::process::geteuid().is_root() {
        let pid = server.process().pid().to_string();
        let args = ["capture", "--pid", &pid, "--port", "a", "--write", "/dev/null"];
        let run = Command::new(PROGRAM).args(args).uid(65534).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(!run.status.success() && said.contains("neither the user that it runs as"), "{said}");
    }
}

/// What is captured can be watched as it comes, over a pipe.
#[test]
fn tshark_follows_live() {
    let mut server = switch(&["a", "b"], &[]);
    let [mut a, mut b] = guests(&server);
    let pid = server.process().pid();
    let tshark = tshark::command().unwrap();
    let line = format!(
        "{PROGRAM} capture --pid {pid} --port a --write - | {} -i - -l -n -c 2 -T fields -E separator='|' \
         -e frame.len -e eth.src",
        tshark.get_program().display()
    );
    let shell = Process::start_group("tshark", Command::new("sh").args(["-c", &line])).unwrap();
    shell.wait_for("Capturing on", Duration::from_secs(20)).unwrap();
    exchange((&mut a, A), (&mut b, B));
    shell.wait_for("62|02:00:00:00:00:0b", Duration::from_secs(20)).unwrap();
    assert!(shell.output().contains("62|02:00:00:00:00:0a"), "{}", shell.output());
}

/// A capture of the command line goes on in the same file when another process takes over.
#[test]
fn a_capture_goes_on_in_an_upgrade() {
    let (_dir, path) = place();
    let mut server = switch(&["a", "b"], &[format!("a={}", path.display())]);
    let [mut a, mut b] = guests(&server);
    server.upgrade().unwrap();
    exchange((&mut a, A), (&mut b, B));
    drop((a, b));
    let (_, counters) = server.terminate().unwrap();
    let packets = tshark::fields(&path, &["frame.number"]).unwrap();
    assert_eq!(packets.len() as u64, counters.get("a", "from") + counters.get("a", "to"));
    assert_eq!(packets.len(), 4);
}

/// A capture that cannot be is refused at the start.
#[test]
fn a_wrong_capture_is_refused() {
    let (_dir, path) = place();
    let running = switch(&["a"], &[format!("a={}", path.display())]);
    for (capture, text) in [
        (format!("x={}", path.display()), "there is no port \"x\""),
        ("a=/nonexistent/file".into(), "cannot capture to /nonexistent/file"),
        (format!("a={}", path.display()), "another process captures to it"),
        ("a".into(), "NAME=FILE"),
        (format!("a={},snaplen=x", path.display()), "snaplen=x"),
    ] {
        let (_dir, socket) = place();
        let port = format!("--port=a={}", socket.display());
        let run = Command::new(PROGRAM).args(["switch", &port, "--capture", &capture]).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!run.status.success() && said.contains(text), "{capture}: {said}");
    }
    drop(running);
}
