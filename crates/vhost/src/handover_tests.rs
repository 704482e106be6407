//! Two ends of a link, and bytes that no program of ours sends.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn pair() -> (Link, Link) {
    let (here, there) = Link::pair().expect("a pair");
    (here, Link::new(there))
}

/// Data and files arrive together and in order, more files than one message of the kernel's takes, and a message after
/// them.
#[test]
fn data_and_files_arrive() {
    let (here, there) = pair();
    let files: Vec<File> = (0..300)
        .map(|len| {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(len).expect("its length");
            file
        })
        .collect();
    let mut outgoing = FilesOut::default();
    let indices: Vec<_> = files.iter().map(|file| outgoing.add(file.as_fd())).collect();
    let long = "x".repeat(1 << 20);
    let sender = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            here.send(&(&indices, &long), &outgoing, soon())?;
            here.send(&"and another", &FilesOut::default(), soon())
        });
        let ((taken, text), mut incoming): ((Vec<FdIndex>, String), _) = there.receive(soon()).expect("all");
        assert_eq!((&taken, &text), (&indices, &long));
        for (len, index) in (0..).zip(taken) {
            let file = File::from(incoming.take(index).expect("a file"));
            assert_eq!(file.metadata().expect("metadata").size(), len);
            assert!(matches!(incoming.take(index), Err(HandoverError::NoFile(n)) if u64::from(n) == len));
        }
        assert!(matches!(incoming.take(FdIndex(300)), Err(HandoverError::NoFile(300))));
        assert_eq!(there.receive::<String>(soon()).expect("another").0, "and another");
        sender.join().expect("no panic")
    });
    sender.expect("sent");
}

/// What other programs say is refused for what it is.
#[test]
fn other_bytes_are_refused() {
    let head = |words: [u32; 4]| words.map(u32::to_le_bytes).concat();
    for (bytes, expected) in [
        (b"hello, who is there?".to_vec(), "NotAHandover"),
        (head([MAGIC, VERSION + 1, 0, 0]), "Version(3)"),
        (head([MAGIC, VERSION, MAX_LEN + 1, 0]), "NotAHandover"),
        (head([MAGIC, VERSION, 0, MAX_FILES + 1]), "NotAHandover"),
        ([head([MAGIC, VERSION, 2, 1]), vec![0; 3]].concat(), "NotAHandover"),
        ([head([MAGIC, VERSION, 2, 0]), b"{}".to_vec()].concat(), "Data"),
        (head([MAGIC, VERSION, 2, 0]), "Closed"),
        (vec![0; 15], "Closed"),
        (vec![], "Closed"),
    ] {
        let (here, there) = pair();
        here.write(&bytes, soon()).expect("written");
        drop(here);
        let error = there.receive::<String>(soon()).err().expect("refused");
        assert!(format!("{error:?}").starts_with(expected), "{bytes:x?}: {error:?}");
    }
}

/// Nobody waits for ever: not for a message, not for the rest of one, not for one to be taken.
#[test]
fn waits_have_an_end() {
    let (here, there) = pair();
    let limit = || Instant::now() + Duration::from_millis(20);
    assert!(matches!(there.receive::<String>(limit()), Err(HandoverError::TimedOut)));
    here.write(&[MAGIC.to_le_bytes(), [0; 4]].concat(), soon()).expect("written");
    assert!(matches!(there.receive::<String>(limit()), Err(HandoverError::TimedOut)));
    let long = "x".repeat(1 << 24);
    assert!(matches!(here.send(&long, &FilesOut::default(), limit()), Err(HandoverError::TimedOut)));
    drop(there);
    assert!(matches!(here.send(&long, &FilesOut::default(), soon()), Err(HandoverError::Closed)));
}
