//! What is on stable storage when a request ends, as the storage tells it: nbdkit logs what it was asked for, and when it was
//! done with it.

use std::process::Command;
use std::time::Instant;

use ringway_testkit::process::{Process, find_program};

use super::*;
use crate::common::SOON;

/// An NBD server of a disk in memory.
struct Nbdkit {
    dir: tempfile::TempDir,
    _process: Process,
}

impl Nbdkit {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(find_program("nbdkit").unwrap());
        command
            .args(["--foreground", "--exit-with-parent", "--filter=log", "--unix"])
            .arg(dir.path().join("nbd"));
        command.args(["memory", "1M"]).arg(format!("logfile={}", dir.path().join("log").display()));
        let process = Process::start("nbdkit", &mut command).unwrap();
        let limit = Instant::now() + SOON;
        while !dir.path().join("nbd").exists() {
            assert!(Instant::now() < limit, "nbdkit does not listen");
            std::thread::yield_now();
        }
        Self { dir, _process: process }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.dir.path().join("nbd").display())
    }

    /// How many lines its log has.
    fn len(&self) -> usize {
        self.log(0).len()
    }

    /// What it did since its log had so many lines: what it ended, each with whether it was to be stable at once.
    fn done_since(&self, len: usize) -> Vec<(String, bool)> {
        let lines = self.log(len);
        let word = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap_or_default().to_owned();
        let ended = lines.iter().filter_map(|line| {
            // Date, time, connection, then "...Write id=5 return=0".
            let what = word(line, 3).strip_prefix("...").map(str::to_owned)?;
            assert!(line.contains(" return=0"), "{line}");
            let id = word(line, 4);
            let begun = lines.iter().find(|line| word(line, 3) == what && word(line, 4) == id);
            Some((what, begun.is_some_and(|line| line.contains(" fua=1"))))
        });
        ended.collect()
    }

    fn log(&self, from: usize) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().skip(from).map(str::to_owned).collect()
    }
}

/// [DEV-BLK-op-11] A write is committed when it ends, if the driver cannot flush or has turned the cache off, and so are
/// zeroes; a flush has committed all when it ends. Others are not held up.
#[test]
fn what_must_be_stable_is_committed_before_it_ends() {
    const BASE: u64 = feature::VERSION_1 | feature::BLK_WRITE_ZEROES;
    let nbdkit = Nbdkit::start();
    let server = serve(&nbdkit.uri(), &[]);
    for (features, mode, is_stable) in [
        (feature::BLK_FLUSH | feature::BLK_CONFIG_WCE, None, false),
        (feature::BLK_FLUSH | feature::BLK_CONFIG_WCE, Some(false), true),
        (feature::BLK_FLUSH | feature::BLK_CONFIG_WCE, Some(true), false),
        (feature::BLK_FLUSH, None, false),
        (feature::BLK_CONFIG_WCE, None, true),
        (0, None, true),
    ] {
        let case = format!("features {features:#x}, cache {mode:?}");
        let mut guest = up(&server, BASE | features);
        if let Some(mode) = mode {
            guest.set_writeback(mode).unwrap();
        }
        let before = nbdkit.len();
        guest.write(8, &pattern(4096, 1)).unwrap();
        assert_eq!(nbdkit.done_since(before), [("Write".to_owned(), is_stable)], "{case}");

        let before = nbdkit.len();
        let zeroes = DiskRequest::ranges(kind::WRITE_ZEROES, &[(0, 8, 0), (64, 8, 0)]);
        assert_eq!(status_of(&mut guest, &zeroes), status::OK);
        let done = nbdkit.done_since(before);
        assert_eq!(done.iter().filter(|(what, _)| what == "Zero").count(), 2, "{case}: {done:?}");
        assert_eq!(done.last().is_some_and(|(what, _)| what == "Flush"), is_stable, "{case}: {done:?}");

        let before = nbdkit.len();
        assert_eq!(status_of(&mut guest, &DiskRequest::flush()), status::OK);
        assert_eq!(nbdkit.done_since(before), [("Flush".to_owned(), false)], "{case}");
    }
}
