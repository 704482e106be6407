//! Disks that become larger or smaller under their guests (`ringway resize`).

use std::process::Command;
use std::time::Duration;

use ringway_testkit::server::Server;
use ringway_vhost::message::ChannelRequest;

use crate::common::{PROGRAM, SOON};
use crate::{Image, MIB, SECTOR, disks, idle_driver, sector, up};

/// Runs the command; what it said, as an error if it failed.
fn resize(server: &mut Server, args: &[&str]) -> Result<String, String> {
    let pid = server.process().pid().to_string();
    let run = Command::new(PROGRAM).args(["resize", "--pid", &pid]).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if run.status.success() { Ok(text(run.stdout)) } else { Err(text(run.stderr)) }
}

/// A disk grows by the command, or with its image; what is behind the old end can be read and written then, and the end is
/// the end.
#[test]
fn a_disk_grows() {
    let image = Image::new(MIB);
    let mut server = disks(&[("a", &image.with("")), ("b", "null:1M")]);
    let mut a = up(&server, "a");
    let behind = MIB / SECTOR as u64;
    assert!(a.read(behind, 512).is_err());
    let said = resize(&mut server, &["--disk=a", "--size=2M"]).unwrap();
    assert_eq!(said, "disk a: 1048576 bytes before, 2097152 bytes now\n");
    assert_eq!(a.capacity().unwrap(), 2 * behind);
    a.write(behind, &sector(5)).unwrap();
    assert_eq!(image.sector(behind), sector(5));
    assert!(a.read(2 * behind, 512).is_err());

    std::fs::File::options().write(true).open(image.path()).unwrap().set_len(3 * MIB).unwrap();
    assert_eq!(a.capacity().unwrap(), 2 * behind, "nobody has said so");
    let said = resize(&mut server, &["--disk=a"]).unwrap();
    assert_eq!(said, "disk a: 2097152 bytes before, 3145728 bytes now\n");
    assert!(a.read(2 * behind, 512).unwrap().iter().all(|&byte| byte == 0));

    server.upgrade().unwrap();
    assert_eq!(a.capacity().unwrap(), 3 * behind);
    resize(&mut server, &["--disk=a", "--size=1M", "--shrink"]).unwrap();
    assert_eq!(a.capacity().unwrap(), behind);
    assert!(a.write(behind, &sector(5)).is_err());
}

/// [DEV-BLK-op-02] The driver hears of it: its front-end gets the note that the configuration has changed.
#[test]
fn the_front_end_is_told() {
    let mut server = disks(&[("a", "mem:1M")]);
    let (mut frontend, mut channel, _ring) = idle_driver(&server, "a");
    for (size, sectors) in [("2M", 4096u64), ("3M", 6144)] {
        resize(&mut server, &[&format!("--size={size}")]).unwrap();
        let note = channel.next(SOON).unwrap().expect("a note");
        assert!(matches!(note.request, ChannelRequest::ConfigChange), "{:?}", note.request);
        assert_eq!(frontend.config(0, 8).unwrap(), sectors.to_le_bytes());
    }
    // As large as it was: there is nothing to tell.
    resize(&mut server, &["--size=3M"]).unwrap();
    assert!(channel.next(Duration::from_millis(50)).unwrap().is_none());
}

/// What cannot be is told, and changes nothing.
#[test]
fn refusals_say_why() {
    let image = Image::new(MIB);
    let mut server = disks(&[("a", &image.with(",read-only")), ("b", "mem:1M")]);
    let b = up(&server, "b");
    for (args, why) in [
        (&[][..], "say which disk; there are a, b"),
        (&["--disk=c"], "no disk \"c\"; there are a, b"),
        (&["--disk=a", "--size=2M"], "cannot be resized"),
        (&["--disk=b", "--size=512K"], "would lose some"),
        (&["--disk=b", "--size=1000"], "not a size"),
        (&["--disk=b", "--shrink"], "--size"),
    ] {
        let error = resize(&mut server, args).unwrap_err();
        assert!(error.contains(why), "{args:?}: {error}");
    }
    assert_eq!(b.capacity().unwrap() * SECTOR as u64, MIB);
    assert_eq!(image.path().metadata().unwrap().len(), MIB);
    let mut switch = crate::common::switch(&["a"]);
    let error = resize(&mut switch, &[]).unwrap_err();
    assert!(error.contains("no server that has disks"), "{error}");
}
