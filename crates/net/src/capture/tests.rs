//! Captures into files and pipes, without workers.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;

use ringway_memory::{GuestBuf, GuestSlice};
use ringway_spec::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM, Header};

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn interface(port: usize, name: &str, snaplen: u32) -> Interface {
    Interface { port, name: name.into(), snaplen }
}

fn record(probes: &mut Probes, port: usize, direction: Direction, header: Option<&Header>, bytes: &[u8]) {
    let (prefix, rest) = bytes.split_at(bytes.len().min(3));
    let mut rest = rest.to_vec();
    let slices = [GuestSlice::from_mut(&mut rest)];
    probes.record(port, direction, header, prefix, GuestBuf::new(&slices));
}

/// A capture with one worker's probes, and where its end is told.
fn start(target: Target, interfaces: &[Interface]) -> (Capture, Probes, Receiver<Summary>) {
    let (told, summary): (Sender<Summary>, _) = channel();
    let on_end = move |summary: &Summary| {
        let Summary { captured, dropped, ref error } = *summary;
        let error = error.as_ref().map(|error| error.kind().into());
        told.send(Summary { captured, dropped, error }).unwrap();
    };
    let (capture, probes) = Capture::start(target, interfaces, 1, on_end).unwrap();
    let mut all = Probes::default();
    for probe in probes {
        all.add(probe);
    }
    (capture, all, summary)
}

fn end(capture: &Capture, probes: Probes, summary: &Receiver<Summary>) -> Summary {
    capture.end();
    drop(probes);
    assert!(capture.wait(SOON), "it has not ended");
    summary.try_recv().unwrap()
}

/// Both directions and two ports, lengths, snaplen, flags, times; other ports are not captured.
#[test]
fn frames_are_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let interfaces = [interface(3, "d", 1 << 18), interface(1, "b", 5)];
    let before = SystemTime::UNIX_EPOCH.elapsed().map(nanoseconds).unwrap();
    let (capture, mut probes, summary) = start(Target::open(&path, false).unwrap(), &interfaces);
    let long: Vec<u8> = (0..65_553_u32).map(|n| n as u8).collect();
    let header = Header { flags: HDR_F_NEEDS_CSUM, gso_type: GSO_TCPV4, ..Header::default() };
    probes.tell_time();
    record(&mut probes, 3, Direction::From, None, b"one frame");
    record(&mut probes, 0, Direction::From, None, b"of another port");
    record(&mut probes, 9, Direction::From, None, b"of another port");
    record(&mut probes, 1, Direction::To, None, b"one frame");
    probes.flush(false);
    probes.tell_time();
    record(&mut probes, 3, Direction::To, Some(&header), &long);
    record(&mut probes, 1, Direction::To, None, b"x");
    let Summary { captured, dropped, error } = end(&capture, probes, &summary);
    assert_eq!((captured, dropped, error.is_none()), (4, 0, true));

    let packets = pcapng::tests::packets(&std::fs::read(&path).unwrap());
    let seen: Vec<_> = packets.iter().map(|(i, _, len, flags, data)| (*i, *len, *flags, &data[..])).collect();
    let expected: [(u32, u32, u32, &[u8]); 4] = [
        (0, 9, 1, b"one frame"),
        (1, 9, 2, b"one f"),
        (0, 65_553, 2 | 1 << 9 | 1 << 11, &long),
        (1, 1, 2, b"x"),
    ];
    assert_eq!(seen, expected);
    let times: Vec<_> = packets.iter().map(|packet| packet.1).collect();
    assert!(times.is_sorted() && times[0] >= before && times[3] < before + 60_000_000_000, "{times:?}");
}

/// What a disk does not take in time is dropped and counted, and what was taken is whole; memory is bounded.
#[test]
fn a_slow_reader_costs_frames() {
    let (mut reader, writer) = io::pipe().unwrap();
    let target = Target::File(OwnedFd::from(writer).into());
    let (capture, mut probes, summary) = start(target, &[interface(0, "a", 1 << 18)]);
    let frame = [7; 1500];
    let sent = 2 * (BATCHES * BATCH / frame.len()) as u64;
    for _ in 0..sent {
        record(&mut probes, 0, Direction::From, None, &frame);
        // As often as can be: batches that are nearly empty do not use up the room.
        probes.flush(true);
    }
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let Summary { captured, dropped, error } = end(&capture, probes, &summary);
    assert!(error.is_none() && dropped > 0, "{dropped} {error:?}");
    assert!(captured > (BATCHES / 2 * (BATCH / 1600)) as u64, "{captured}");
    assert_eq!(captured + dropped, sent);
    let bytes = reader.join().unwrap();
    assert_eq!(pcapng::tests::packets(&bytes).len() as u64, captured);
    let (_, statistics) = pcapng::tests::blocks(&bytes).pop().unwrap();
    assert_eq!(statistics[36 + 4..][..8], sent.to_le_bytes());
    assert_eq!(statistics[48 + 4..][..8], dropped.to_le_bytes());
}

/// The end is not held up by who does not read, and a reader that leaves ends the capture.
#[test]
fn a_reader_is_not_waited_for() {
    let (reader, writer) = io::pipe().unwrap();
    let target = Target::File(OwnedFd::from(writer.try_clone().unwrap()).into());
    let (capture, mut probes, summary) = start(target, &[interface(0, "a", 1 << 18)]);
    for _ in 0..200 {
        record(&mut probes, 0, Direction::From, None, &[7; 1500]);
    }
    let Summary { captured, error, .. } = end(&capture, probes, &summary);
    assert_eq!((captured, error.unwrap().kind()), (0, io::ErrorKind::TimedOut));

    drop(reader);
    let (capture, mut probes, summary) =
        start(Target::File(OwnedFd::from(writer).into()), &[interface(0, "a", 1 << 18)]);
    assert!(capture.wait(SOON));
    assert_eq!(summary.recv().unwrap().error.unwrap().kind(), io::ErrorKind::BrokenPipe);
    record(&mut probes, 0, Direction::From, None, b"frame");
    probes.flush(true);
    assert!(probes.is_empty(), "it is not captured any more");
}

/// A FIFO is opened when its reader comes, and has all of the file then.
#[test]
fn a_fifo_may_be_read_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let (capture, mut probes, summary) = start(Target::open(&path, false).unwrap(), &[interface(0, "a", 9)]);
    record(&mut probes, 0, Direction::From, None, b"frame");
    probes.flush(true);
    let (begun, has_begun) = channel();
    let reader = std::thread::spawn(move || {
        let mut file = File::open(path).unwrap();
        let mut bytes = vec![0; 4];
        file.read_exact(&mut bytes).unwrap();
        begun.send(()).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    });
    has_begun.recv_timeout(SOON).unwrap();
    let Summary { captured, error, .. } = end(&capture, probes, &summary);
    assert_eq!((captured, error.is_none()), (1, true));
    assert_eq!(pcapng::tests::packets(&reader.join().unwrap())[0].4, b"frame");
}

/// A FIFO that nobody reads does not hold up the end either.
#[test]
fn a_fifo_need_not_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let (capture, probes, summary) = start(Target::open(&path, false).unwrap(), &[interface(0, "a", 9)]);
    assert!(end(&capture, probes, &summary).error.is_some());
}

/// A file has one writer at a time; the next of the same server waits for the one before, and goes on behind it.
#[test]
fn a_file_has_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let interfaces = [interface(0, "a", 99)];
    let (old, mut probes, old_summary) = start(Target::open(&path, false).unwrap(), &interfaces);
    record(&mut probes, 0, Direction::From, None, b"old");
    assert_eq!(Target::open(&path, false).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let (new, mut new_probes, new_summary) = start(Target::open(&path, true).unwrap(), &interfaces);
    record(&mut new_probes, 0, Direction::From, None, b"new");
    new_probes.flush(true);
    assert!(!new.wait(Duration::from_millis(50)));
    assert_eq!(end(&old, probes, &old_summary).captured, 1);
    // It has the file once it has written the packet.
    while pcapng::tests::packets(&std::fs::read(&path).unwrap()).len() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(end(&new, new_probes, &new_summary).captured, 1);
    let data: Vec<_> =
        pcapng::tests::packets(&std::fs::read(&path).unwrap()).into_iter().map(|packet| packet.4).collect();
    assert_eq!(data, [b"old", b"new"]);
}
