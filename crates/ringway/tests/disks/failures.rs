//! Upgrades of a server of disks that cannot be: it goes on, and no request fails.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ringway_testkit::server::Server;

use crate::common::{PROGRAM, eventually, warnings};
use crate::{Busy, Image, MIB, up};

/// A server of disks a and b whose program can be replaced by a script.
struct Replaceable {
    server: Server,
    program: PathBuf,
    image: Image,
}

impl Replaceable {
    fn new() -> Self {
        let image = Image::new(MIB);
        let program = image.dir.path().join("ringway");
        std::fs::copy(PROGRAM, &program).unwrap();
        let name = image.with(",cache=writeback");
        let server = Server::disks(&program, &[("a", &name), ("b", "mem:1M")], &[]).unwrap();
        Self { server: server.upgraded_by(Path::new(PROGRAM)), program, image }
    }

    /// Puts this in the program's place.
    fn replace(&self, script: &str) {
        let new = self.program.with_extension("new");
        std::fs::write(&new, format!("#!/bin/bash\n{script}\n")).unwrap();
        std::fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &self.program).unwrap();
    }

    /// An upgrade to this fails for this reason, which the log tells in a line.
    fn fails(&mut self, script: &str, why: &str) {
        self.replace(script);
        let lines = warnings(&self.server.output()).len();
        let error = self.server.upgrade().expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
        eventually("it is told", || warnings(&self.server.output()).len() > lines);
        let output = self.server.output();
        let lines = &warnings(&output)[lines..];
        assert!(lines.len() == 1 && lines[0].contains(why), "{why}: {lines:?}");
    }
}

/// What a new program says when it is ready.
const READY: &str = r"printf 'RWUP\x02\0\0\0\x07\0\0\0\0\0\0\0\x22ready\x22' >&$RINGWAY_UPGRADE_FD";

/// A new program that fails, before or in the pause; one with other disks, other images, or of another kind; one whose disk
/// cannot do what its driver knows. Requests go on, and in the end a good one takes over.
#[test]
fn requests_go_on() {
    let mut old = Replaceable::new();
    let [a, b] = ["a", "b"].map(|disk| Busy::start(up(&old.server, disk)));
    let image = old.image.path().display().to_string();
    let blk = |disks: &str| format!("exec {PROGRAM} blk {disks}");
    for (script, why) in [
        ("exit 3".to_owned(), "ended before it was ready"),
        (format!("{READY}; exit 4"), "ended before all was set up (exit status: 4)"),
        (format!("{READY}; sleep 60"), "did not say in time that all was set up"),
        (blk(&format!("--disk=a=/nowhere/a,{image},cache=writeback")), "other disks"),
        (blk("--disk=a=/nowhere/a,mem:1M --disk=b=/nowhere/b,mem:1M"), "disk a: "),
        (blk(&format!("--disk=a=/nowhere/a,{image} --disk=b=/nowhere/b,mem:1M")), "disk a: "),
        (
            blk(&format!(
                "--disk=a=/nowhere/a,{image},cache=writeback,num-queues=1 --disk=b=/nowhere/b,mem:1M"
            )),
            "disk a: ",
        ),
        (format!("exec {PROGRAM} net --socket-path=/nowhere/a"), "cannot be read"),
    ] {
        old.fails(&script, why);
        a.check();
        b.check();
    }
    old.replace(&format!("exec {PROGRAM} \"$@\""));
    old.server.upgrade().unwrap();
    let ((_a, rounds), (_b, _)) = (a.finish(), b.finish());
    assert_eq!(old.server.counters().unwrap().get("a", "written"), rounds * Busy::DEPTH);
}
