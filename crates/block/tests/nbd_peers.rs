//! The NBD client with the servers of others: nbdkit and qemu-nbd.

mod common;

use std::collections::VecDeque;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{SOON, buffer, run, run_all, wait_for};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ringway_block::image::{Image, OpenOptions, Way};
use ringway_block::job::{Executor, Job, Mailbox, Operation, Range};
use ringway_block::nbd::{Client, NbdError, Options, ProtocolError, Uri};
use ringway_testkit::process::Process;
use tempfile::TempDir;

const MIB: usize = 1 << 20;

fn connect(uri: &str) -> Arc<Client> {
    Client::connect(&uri.parse().unwrap(), &Options::default()).unwrap_or_else(|e| panic!("{uri}: {e}")).0
}

fn refusal(uri: &str) -> NbdError {
    let uri: Uri = uri.parse().unwrap();
    match Client::connect(&uri, &Options::default()) {
        Ok(_) => panic!("{uri} was connected to"),
        Err(e) => e,
    }
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// nbdkit on a Unix socket in `dir`, and the socket's URI.
fn nbdkit(dir: &Path, arguments: &[&str]) -> (Process, String) {
    let (socket, pid_file) = (dir.join("nbdkit.sock"), dir.join("nbdkit.pid"));
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(&socket);
    let process = start(command.arg("--pidfile").arg(&pid_file).args(arguments), &pid_file);
    (process, format!("nbd+unix:///?socket={}", socket.display()))
}

/// qemu-nbd for a raw file, which listens as these arguments say.
fn qemu_nbd(dir: &Path, image: &Path, arguments: &[&str]) -> Process {
    let pid_file = dir.join("qemu-nbd.pid");
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=4", "--format=raw", "--discard=unmap"]).args(arguments);
    start(command.arg("--pid-file").arg(&pid_file).arg(image), &pid_file)
}

/// Starts a server that writes its pid to a file when it can be connected to.
fn start(command: &mut Command, pid_file: &Path) -> Process {
    let _ = std::fs::remove_file(pid_file);
    let name = command.get_program().to_string_lossy().into_owned();
    let mut process = Process::start(&name, command).expect("is it installed? guests/setup.sh does that");
    let deadline = Instant::now() + SOON;
    while std::fs::read_to_string(pid_file).is_ok_and(|pid| pid.ends_with('\n')).eq(&false) {
        assert!(process.is_running(), "{name} ended:\n{}", process.output());
        assert!(Instant::now() < deadline, "{name} did not start:\n{}", process.output());
        std::thread::sleep(Duration::from_millis(10));
    }
    process
}

fn image(dir: &Path, size: usize) -> PathBuf {
    let path = dir.join("disk.img");
    std::fs::write(&path, vec![0x5a; size]).unwrap();
    path
}

fn read(client: &Client, offset: u64, len: usize) -> Vec<u8> {
    let (result, bytes) = run(client, Operation::Read { offset }, &vec![0xee; len]);
    result.unwrap();
    bytes
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 256 + seed) as u8).collect()
}

/// Everything that a disk can be asked for, on an export of at least 4 MiB.
fn exercise(client: &Client) {
    let write = |offset, stable| Operation::Write { offset, stable };
    let (a, b) = (pattern(70_000, 1), pattern(4096, 2));
    let done = run_all(
        client,
        vec![
            (write(512, false), buffer(&a, &[1, 511, 4096])),
            (write(2 << 20, true), buffer(&b, &[])),
            (Operation::Flush, buffer(b"", &[])),
        ],
    );
    assert!(done.iter().all(|(result, _)| result.is_ok()));
    let reads = vec![
        (Operation::Read { offset: 512 }, buffer(&vec![0; a.len()], &[3; 300])),
        (Operation::Read { offset: 2 << 20 }, buffer(&[0; 4096], &[4000])),
    ];
    let [(_, got_a), (_, got_b)] = run_all(client, reads).try_into().unwrap_or_else(|_| panic!("two reads"));
    assert!(got_a == a && got_b == b, "what was written is read");

    let zeroes = |offset, unmap| Operation::WriteZeroes { range: Range { offset, len: 1024 }, unmap };
    run(client, zeroes(1024, false), b"").0.unwrap();
    run(client, zeroes(4096, true), b"").0.unwrap();
    let now = read(client, 0, 8192);
    assert_eq!(now[512..1024], a[..512]);
    assert!(now[1024..2048].iter().all(|&byte| byte == 0));
    assert_eq!(now[2048..4096], a[1536..3584]);
    assert!(now[4096..5120].iter().all(|&byte| byte == 0));
    run(client, Operation::Discard(Range { offset: 2 << 20, len: 4096 }), b"").0.unwrap();
    let erase = Operation::SecureErase(Range { offset: 0, len: 512 });
    assert_eq!(run(client, erase, b"").0.unwrap_err().kind(), std::io::ErrorKind::Unsupported);
}

#[test]
fn nbdkit_on_a_unix_socket() {
    let dir = TempDir::new().unwrap();
    let (_server, uri) = nbdkit(dir.path(), &["memory", "size=64M"]);
    let (client, export) = Client::connect(&uri.parse().unwrap(), &Options::default()).unwrap();
    assert_eq!(export.size, 64 << 20);
    assert!(!export.is_read_only() && export.can_flush() && export.can_write_stably());
    assert!(export.can_discard() && export.can_write_zeroes());
    exercise(&client);
    // Longer than any one request may be.
    let long = pattern(40 * MIB, 7);
    run(&*client, Operation::Write { offset: 4 << 20, stable: false }, &long).0.unwrap();
    assert!(read(&client, 4 << 20, long.len()) == long);
}

#[test]
fn qemu_nbd_on_a_unix_socket_and_by_tcp() {
    let dir = TempDir::new().unwrap();
    let image = image(dir.path(), 4 * MIB);
    let socket = dir.path().join("socket");
    let server =
        qemu_nbd(dir.path(), &image, &["--export-name=a disk", "--socket", socket.to_str().unwrap()]);
    let uri = format!("nbd+unix:///a%20disk?socket={}", socket.display());
    exercise(&connect(&uri));
    let error = refusal(&uri.replace("a%20disk", "another"));
    assert!(
        matches!(&error, NbdError::Protocol(ProtocolError::NoExport(name)) if name == "another"),
        "{error}"
    );
    drop(server);

    let port = free_port();
    let _server =
        qemu_nbd(dir.path(), &image, &["--bind=127.0.0.1", &format!("--port={port}"), "--read-only"]);
    let (client, export) =
        Client::connect(&format!("nbd://localhost:{port}").parse().unwrap(), &Options::default()).unwrap();
    assert!(export.is_read_only());
    assert_eq!(export.size, 4 << 20);
    assert_eq!(read(&client, 512, 512), pattern(70_000, 1)[..512]);
    let write = Operation::Write { offset: 0, stable: false };
    run(&*client, write, &[0; 512]).0.expect_err("it is read-only");
    assert_eq!(read(&client, 512, 512), pattern(70_000, 1)[..512]);
}

/// An authority, and what it has signed for a server and a client: a directory for each.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    for (role, name) in [("server", "store.example"), ("client", "guest.example")] {
        let dir = dir.join(role);
        std::fs::create_dir(&dir).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), authority.pem()).unwrap();
        std::fs::write(dir.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn tls_is_verified_by_both_sides() {
    let dir = TempDir::new().unwrap();
    certificates(dir.path());
    let image = image(dir.path(), 4 * MIB);
    let port = free_port();
    let object = format!(
        "tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir={}",
        dir.path().join("server").display()
    );
    let listen = format!("--port={port}");
    let arguments = ["--bind=127.0.0.1", &listen, "--object", &object, "--tls-creds=tls"];
    let _server = qemu_nbd(dir.path(), &image, &arguments);
    let (plain, client_dir) = (format!("nbd://127.0.0.1:{port}/"), dir.path().join("client"));
    let tls = format!(
        "nbds://127.0.0.1:{port}/?tls-hostname=store.example&tls-certificates={}",
        client_dir.display()
    );
    let client = connect(&tls);
    exercise(&client);
    let long = pattern(3 * MIB, 9);
    run(&*client, Operation::Write { offset: MIB as u64, stable: true }, &long).0.unwrap();
    assert!(read(&client, MIB as u64, long.len()) == long);

    let error = refusal(&plain);
    assert!(matches!(error, NbdError::Protocol(ProtocolError::TlsRequired)), "{error}");
    let error = refusal(&tls.replace("store.example", "other.example"));
    assert!(matches!(&error, NbdError::Tls(text) if text.contains("other.example")), "{error}");
    // An authority that nobody here trusts.
    let error = refusal(&tls.replace(&format!("&tls-certificates={}", client_dir.display()), ""));
    assert!(matches!(error, NbdError::Tls(_)), "{error}");
    // A client without a certificate.
    std::fs::remove_file(client_dir.join("client-cert.pem")).unwrap();
    let error = refusal(&tls);
    assert!(matches!(error, NbdError::Tls(_) | NbdError::Io(_) | NbdError::Closed), "{error}");
    std::fs::remove_file(client_dir.join("ca-cert.pem")).unwrap();
    let error = refusal(&tls);
    assert!(
        matches!(&error, NbdError::Certificates { path, .. } if path.ends_with("ca-cert.pem")),
        "{error}"
    );
}

#[test]
fn nbdkit_with_tls_on_a_unix_socket() {
    let dir = TempDir::new().unwrap();
    certificates(dir.path());
    let server_dir = dir.path().join("server");
    let tls = ["--tls=require", "--tls-certificates", server_dir.to_str().unwrap(), "memory", "size=8M"];
    let (_server, uri) = nbdkit(dir.path(), &tls);
    let uri = uri.replace("nbd+", "nbds+");
    let client_dir = dir.path().join("client");
    exercise(&connect(&format!(
        "{uri}&tls-hostname=store.example&tls-certificates={}",
        client_dir.display()
    )));
}

#[test]
fn a_server_without_tls_is_refused_where_it_is_asked_for() {
    let dir = TempDir::new().unwrap();
    certificates(dir.path());
    let (_server, uri) = nbdkit(dir.path(), &["--tls=off", "memory", "size=1M"]);
    let client_dir = dir.path().join("client");
    let uri =
        format!("{}&tls-hostname=x&tls-certificates={}", uri.replace("nbd+", "nbds+"), client_dir.display());
    let error = refusal(&uri);
    assert!(matches!(error, NbdError::Protocol(ProtocolError::NoTls(_))), "{error}");
}

#[test]
fn errors_of_the_server_are_those_of_jobs() {
    for (name, errno) in
        [("EIO", libc::EIO), ("ENOSPC", libc::ENOSPC), ("EPERM", libc::EPERM), ("EINVAL", libc::EINVAL)]
    {
        let dir = TempDir::new().unwrap();
        let error = format!("error={name}");
        let (_server, uri) =
            nbdkit(dir.path(), &["--filter=error", "memory", "size=1M", &error, "error-rate=100%"]);
        let client = connect(&uri);
        for operation in [
            Operation::Read { offset: 0 },
            Operation::Write { offset: 0, stable: false },
            Operation::Write { offset: 0, stable: true },
        ] {
            let (result, _) = run(&*client, operation, &[0; 4096]);
            assert_eq!(result.unwrap_err().raw_os_error(), Some(errno), "{name} of {operation:?}");
        }
    }
}

#[test]
fn only_some_of_many_fail() {
    let dir = TempDir::new().unwrap();
    let arguments = ["--filter=error", "memory", "size=4M", "error-pread-rate=30%"];
    let (_server, uri) = nbdkit(dir.path(), &arguments);
    let client = connect(&uri);
    let bytes = pattern(4 * MIB, 3);
    run(&*client, Operation::Write { offset: 0, stable: false }, &bytes).0.unwrap();
    let reads = (0..1024).map(|i| (Operation::Read { offset: i * 4096 }, buffer(&[0; 4096], &[100])));
    let mut failed = 0;
    for ((result, got), expected) in run_all(&*client, reads.collect()).iter().zip(bytes.chunks(4096)) {
        match result {
            Ok(()) => assert!(got == expected),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO));
                failed += 1;
            }
        }
    }
    assert!((1..1024).contains(&failed), "{failed} failed");
}

#[test]
fn many_at_once_take_one_delay() {
    let dir = TempDir::new().unwrap();
    let arguments =
        ["--threads=64", "--filter=delay", "memory", "size=1M", "delay-read=500ms", "delay-write=500ms"];
    let (_server, uri) = nbdkit(dir.path(), &arguments);
    let client = connect(&uri);
    let start = Instant::now();
    let all = (0..32).map(|i| {
        let offset = i * 8192;
        let write = i % 2 == 0;
        (
            if write { Operation::Write { offset, stable: false } } else { Operation::Read { offset } },
            buffer(&[0; 4096], &[]),
        )
    });
    assert!(run_all(&*client, all.collect()).iter().all(|(result, _)| result.is_ok()));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(500), "the delay is there: {took:?}");
    assert!(took < Duration::from_secs(5), "32 requests of half a second took {took:?}");
}

#[test]
fn a_server_s_largest_payload_and_smallest_block_are_heeded() {
    let dir = TempDir::new().unwrap();
    let arguments = [
        "--filter=blocksize-policy",
        "memory",
        "size=8M",
        "blocksize-minimum=4096",
        "blocksize-preferred=65536",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    ];
    let (_server, uri) = nbdkit(dir.path(), &arguments);
    let (client, export) = Client::connect(&uri.parse().unwrap(), &Options::default()).unwrap();
    assert_eq!((export.min_block, export.preferred_block, export.max_payload), (4096, 65536, 1 << 20));
    // More parts than are in flight at once.
    let bytes = pattern(8 * MIB, 5);
    run(&*client, Operation::Write { offset: 0, stable: false }, &bytes).0.unwrap();
    assert!(read(&client, 0, bytes.len()) == bytes);
}

#[test]
fn servers_of_old() {
    let dir = TempDir::new().unwrap();
    let (server, uri) = nbdkit(dir.path(), &["--mask-handshake=0", "memory", "size=4M"]);
    exercise(&connect(&uri));
    drop(server);
    let _ = std::fs::remove_file(dir.path().join("nbdkit.sock"));
    let (_server, uri) = nbdkit(dir.path(), &["--oldstyle", "memory", "size=4M"]);
    let error = refusal(&uri);
    assert!(matches!(error, NbdError::Protocol(ProtocolError::OldStyle)), "{error}");
}

#[test]
fn an_image_grows_as_its_export_does() {
    let dir = TempDir::new().unwrap();
    let path = image(dir.path(), MIB);
    let (_server, uri) = nbdkit(dir.path(), &["file", path.to_str().unwrap()]);
    let mut image = Image::open(&uri.parse().unwrap(), &OpenOptions::default()).unwrap();
    assert_eq!(image.facts().size, MIB as u64);
    // nbdkit looks at the size when it is connected to.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3 << 20).unwrap();
    assert_eq!(image.refresh().unwrap().size, 3 << 20);
    let Way::Elsewhere(client) = image.way() else { panic!("an NBD client is elsewhere") };
    let bytes = pattern(MIB, 4);
    run(&*client, Operation::Write { offset: 2 << 20, stable: true }, &bytes).0.unwrap();
    assert!(std::fs::read(&path).unwrap()[2 * MIB..] == bytes);
}

/// What nbdkit's log says of requests, in their order: `Write fua=1`, `Flush`, …
fn logged(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap();
    let requests = text.lines().filter(|line| line.contains(" id=") && line.ends_with("..."));
    let word = |line: &str| {
        let kind = ["Write", "Flush", "Read", "Trim", "Zero"]
            .into_iter()
            .find(|kind| line.contains(&format!(" {kind} ")));
        let fua = if line.contains("fua=1") { " fua" } else { "" };
        kind.map(|kind| format!("{kind}{fua}"))
    };
    requests.filter_map(word).collect()
}

#[test]
fn a_stable_write_is_made_so_by_what_the_server_has() {
    // The filter `fua` takes it away.
    for (filters, expected) in [
        (&["--filter=log"][..], &["Write fua"][..]),
        (&["--filter=log", "--filter=fua"], &["Write", "Flush"]),
    ] {
        let dir = TempDir::new().unwrap();
        let log = dir.path().join("log");
        let log_argument = format!("logfile={}", log.display());
        let (_server, uri) = nbdkit(dir.path(), &[filters, &["memory", "size=1M", &log_argument]].concat());
        let client = connect(&uri);
        run(&*client, Operation::Write { offset: 0, stable: true }, &[1; 512]).0.unwrap();
        assert_eq!(logged(&log), expected);
    }
}

/// Writes with many in flight while the server is killed and started again, and checks in the end that what was
/// acknowledged is there.
fn write_while_it_dies(uri: &str, mut start: impl FnMut() -> Process) {
    const BLOCK: usize = 4096;
    const BLOCKS: usize = 256;
    const DEPTH: usize = 32;
    let mut server = Some(start());
    let client = connect(uri);
    let mailbox = Arc::new(Mailbox::new().unwrap());
    let mut versions = vec![0usize; BLOCKS];
    // Blocks that are not under way, in the order of their turns.
    let mut free: VecDeque<usize> = (0..BLOCKS).collect();
    let (mut written, mut deaths, mut last_death) = (0, 0, Instant::now());
    let mut submit_next = |free: &mut VecDeque<usize>| {
        let block = free.pop_front().unwrap();
        versions[block] += 1;
        let operation = Operation::Write { offset: (block * BLOCK) as u64, stable: block.is_multiple_of(7) };
        let data = buffer(&pattern(BLOCK, block + versions[block] * 13), &[100]);
        client.submit(&mut vec![Job::new(block as u32, operation, data, &mailbox)]);
    };
    (0..DEPTH).for_each(|_| submit_next(&mut free));
    while deaths < 6 || last_death.elapsed() < Duration::from_millis(300) {
        for (block, result, _) in wait_for(&mailbox, 1) {
            result.unwrap_or_else(|e| panic!("block {block}: {e}"));
            written += 1;
            free.push_back(block as usize);
            submit_next(&mut free);
        }
        if deaths < 6 && last_death.elapsed() > Duration::from_millis(150) {
            drop(server.take());
            if deaths % 2 == 1 {
                std::thread::sleep(Duration::from_millis(200));
            }
            server = Some(start());
            (deaths, last_death) = (deaths + 1, Instant::now());
        }
    }
    for (_, result, _) in wait_for(&mailbox, DEPTH) {
        result.unwrap();
    }
    let bytes = read(&client, 0, BLOCKS * BLOCK);
    for (block, &version) in versions.iter().enumerate().filter(|(_, version)| **version > 0) {
        let expected = pattern(BLOCK, block + version * 13);
        assert!(
            bytes[block * BLOCK..][..BLOCK] == expected,
            "block {block}, version {version}, {written} writes"
        );
    }
    println!("{written} writes, {deaths} deaths");
}

#[test]
fn nothing_is_lost_when_qemu_nbd_is_killed() {
    let dir = TempDir::new().unwrap();
    let image = image(dir.path(), 4 * MIB);
    let socket = dir.path().join("socket");
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    write_while_it_dies(&uri, || {
        let _ = std::fs::remove_file(&socket);
        qemu_nbd(dir.path(), &image, &["--socket", socket.to_str().unwrap()])
    });
}

#[test]
fn nothing_is_lost_when_nbdkit_is_killed_behind_tls() {
    let dir = TempDir::new().unwrap();
    certificates(dir.path());
    let image = image(dir.path(), 4 * MIB);
    let port = free_port().to_string();
    let (server_dir, client_dir) = (dir.path().join("server"), dir.path().join("client"));
    let uri = format!(
        "nbds://127.0.0.1:{port}/?tls-hostname=store.example&tls-certificates={}",
        client_dir.display()
    );
    let pid_file = dir.path().join("pid");
    write_while_it_dies(&uri, || {
        let mut command = Command::new("nbdkit");
        command.args([
            "--foreground",
            "--exit-with-parent",
            "--ipaddr=127.0.0.1",
            "--port",
            &port,
            "--tls=require",
        ]);
        command
            .arg("--tls-certificates")
            .arg(&server_dir)
            .arg("--pidfile")
            .arg(&pid_file)
            .arg("file")
            .arg(&image);
        start(&mut command, &pid_file)
    });
}
