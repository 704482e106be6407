//! Upgrades that cannot be: the server goes on, with one line in the log, and no frame is lost.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ringway_testkit::server::Server;
use rustix::process::Signal;

use crate::common::{FEATURES, Honest, PROGRAM, eventually, expect_number, numbered, options, up, warnings};
use crate::{A, B, leftovers};

/// A server whose program can be replaced.
struct Replaceable {
    server: Server,
    program: PathBuf,
    _dir: tempfile::TempDir,
}

impl Replaceable {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("ringway");
        std::fs::copy(PROGRAM, &program).unwrap();
        let server = Server::switch(&program, &["a", "b"], &[]).unwrap().upgraded_by(Path::new(PROGRAM));
        Self { server, program, _dir: dir }
    }

    /// Puts another file in the program's place, as an installation does.
    fn replace(&self, with: impl FnOnce(&Path)) {
        let new = self.program.with_extension("new");
        with(&new);
        std::fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &self.program).unwrap();
    }

    fn replace_by_script(&self, script: &str) {
        self.replace(|path| std::fs::write(path, format!("#!/bin/bash\n{script}\n")).unwrap());
    }

    /// An upgrade fails for this reason, and after that all is as before.
    fn fails(&mut self, why: &str) {
        let before = leftovers(&mut self.server);
        let lines = warnings(&self.server.output()).len();
        let begin = Instant::now();
        let error = self.server.upgrade().expect_err(why).to_string();
        println!("{:?}: {error}", begin.elapsed());
        assert!(error.contains(why), "{why}: {error}");
        eventually(why, || leftovers(&mut self.server) == before);
        eventually("it is told", || warnings(&self.server.output()).len() > lines);
        let output = self.server.output();
        let lines = &warnings(&output)[lines..];
        assert!(lines.len() == 1 && lines[0].contains(why), "{why}: {lines:?}");
    }
}

/// What a new program says first that speaks version 1.
const READY_1: &str = r"printf 'RWUP\x01\0\0\0\x07\0\0\0\0\0\0\0\x22ready\x22' >&$RINGWAY_UPGRADE_FD";
const READY: &str = r"printf 'RWUP\x02\0\0\0\x07\0\0\0\0\0\0\0\x22ready\x22' >&$RINGWAY_UPGRADE_FD";
const FAILED: &str = r#"printf 'RWUP\x02\0\0\0\x14\0\0\0\0\0\0\0{"failed":"no luck"}' >&$RINGWAY_UPGRADE_FD"#;

/// Each way in which a new program fails before it is ready: nobody notices. When there is a good one at last, it takes
/// over.
#[test]
fn a_program_that_is_not_ready_costs_nothing() {
    let mut old = Replaceable::new();
    let honest = Honest::start(&old.server, [("a", A), ("b", B)]);
    for (script, why) in [
        ("exit 3", "ended before it was ready (exit status: 3)"),
        ("kill -SEGV $$", "ended before it was ready (signal: 11"),
        (READY_1, "version 1 of the hand-over, this one version 2"),
        ("echo 'hello, what is this?' >&$RINGWAY_UPGRADE_FD", "no message of a hand-over"),
        ("printf R >&$RINGWAY_UPGRADE_FD; sleep 60", "did not say in time that it was ready"),
        ("printf 'RWUP\\x02\\0\\0\\0\\x03\\0\\0\\0\\0\\0\\0\\0{}}' >&$RINGWAY_UPGRADE_FD", "cannot be read"),
        (FAILED, "no luck"),
        ("sleep 60", "did not say in time that it was ready"),
    ] {
        old.replace_by_script(script);
        old.fails(why);
        honest.check();
    }
    old.replace(|path| std::fs::write(path, "no program").unwrap());
    old.fails("cannot start");
    std::fs::remove_file(&old.program).unwrap();
    old.fails("No such file");
    honest.check();
    old.replace(|path| assert!(std::fs::copy(PROGRAM, path).is_ok()));
    old.server.upgrade().unwrap();
    honest.finish();
}

/// A new program that fails when the rings stand still already: they go on after a pause, and frames that were sent
/// meanwhile arrive.
#[test]
fn a_program_that_fails_in_the_pause_costs_a_pause() {
    let mut old = Replaceable::new();
    let mut a = up(&old.server, "a", FEATURES, options());
    let mut b = up(&old.server, "b", FEATURES, options());
    b.send_frame(&numbered(A, B, 0)).unwrap();
    expect_number(&mut a, B, 0);
    for (number, (then, why)) in [
        ("exit 4", "ended before all was set up (exit status: 4)"),
        ("sleep 60", "did not say in time that all was set up"),
        (FAILED, "no luck"),
    ]
    .into_iter()
    .enumerate()
    {
        // It is ready a while after frames have begun to come.
        old.replace_by_script(&format!("{READY}; {then}"));
        let number = 100 * (number as u64 + 1);
        std::thread::scope(|scope| {
            let (a, b) = (&mut a, &mut b);
            let traffic = scope.spawn(move || {
                for number in number..number + 100 {
                    a.send_frame(&numbered(B, A, number)).unwrap();
                    let deadline = Instant::now() + Duration::from_secs(4);
                    loop {
                        let left = deadline.saturating_duration_since(Instant::now());
                        let (_, frame) = b.recv_frame(left).unwrap().expect("frames arrive in the end");
                        if crate::common::number_of(&frame, A) == Some(number) {
                            break;
                        }
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            old.fails(why);
            traffic.join().unwrap();
        });
    }
    let counters = old.server.counters().unwrap();
    assert_eq!(counters.get("a", "from"), 300);
    assert_eq!(counters.get("b", "to"), 300);
}

/// A program with other ports, as an option's change of meaning would make it, is refused by itself.
#[test]
fn other_ports_are_refused() {
    let mut old = Replaceable::new();
    let honest = Honest::start(&old.server, [("a", A), ("b", B)]);
    let other = format!("exec {PROGRAM} switch --port=a=/nowhere/a");
    old.replace_by_script(&other);
    let error = old.server.upgrade().unwrap_err().to_string();
    assert!(error.contains("other ports"), "{error}");
    let fewer = format!("exec {PROGRAM} switch --port=a=/nowhere/a,queues=1 --port=b=/nowhere/b");
    old.replace_by_script(&fewer);
    let error = old.server.upgrade().unwrap_err().to_string();
    assert!(error.contains("port a: the number of vrings"), "{error}");
    honest.finish();
}

/// A server that ends while its successor starts takes it along.
#[test]
fn the_end_of_the_old_is_the_end_of_both() {
    let mut old = Replaceable::new();
    let pid_file = old.program.with_extension("pid");
    old.replace_by_script(&format!("echo $$ >{0}.part; mv {0}.part {0}; sleep 60", pid_file.display()));
    old.server.process().signal(Signal::USR2).unwrap();
    eventually("it starts", || pid_file.exists());
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let (status, _) = old.server.terminate().unwrap();
    assert!(status.success());
    assert!(!Path::new("/proc").join(pid.trim()).exists());
}

/// The command tells what it cannot do, and hurts nobody: SIGUSR2 would end a process that does not await it.
#[test]
fn the_command_spares_other_processes() {
    let mut sleep = Command::new("sleep").arg("60").spawn().unwrap();
    for (pid, says) in
        [(sleep.id().to_string(), "does not await SIGUSR2"), ("2147483647".into(), "there is no process")]
    {
        let run = Command::new(PROGRAM).args(["upgrade", "--pid", &pid]).output().unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success() && said.contains(says), "{said}");
    }
    assert!(sleep.try_wait().unwrap().is_none());
    sleep.kill().unwrap();
    sleep.wait().unwrap();
}
