//! Connections to peers that answer, answer wrongly, fall silent or leave.

use std::io::{Read, Write};

use super::*;
use crate::frontend::Event;
use crate::message::MessageError;

const SHORT: Duration = Duration::from_millis(20);

/// A connection, and its peer as a plain stream.
fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.set_read_timeout(Some(LIMIT)).expect("a time limit");
    (Connection::from_stream(ours).expect("a connection"), theirs)
}

fn reply(request: u32, payload: &[u8]) -> Vec<u8> {
    Header::request(request, 0, false).reply(payload)
}

#[test]
fn a_question_gets_its_reply() {
    let (mut ours, mut theirs) = pair();
    theirs.write_all(&reply(1, &0x1234_u64.to_le_bytes())).unwrap();
    assert_eq!(ours.ask_number(Request::GetFeatures).unwrap(), 0x1234);
    let mut sent = [0; 12];
    theirs.read_exact(&mut sent).unwrap();
    assert_eq!(sent, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

/// [VU-FE-communication-01] The file descriptors of a request arrive with its first byte, and none later.
#[test]
fn descriptors_go_with_the_first_byte() {
    let (mut ours, theirs) = pair();
    let fd = Event::new().unwrap().share().unwrap();
    ours.send(Request::SetVringKick { index: 3, fd: Some(fd) }, false).unwrap();
    // Reads of one byte: each takes the file descriptors that belong to it.
    let counts: Vec<_> = (0..20).map(|_| receive_byte(&theirs)).collect();
    assert_eq!(counts[0], 1);
    assert!(counts[1..].iter().all(|n| *n == 0), "{counts:?}");
}

/// Reads a byte; returns how many file descriptors came with it.
fn receive_byte(stream: &UnixStream) -> usize {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [io::IoSliceMut::new(&mut byte)];
    assert_eq!(recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes, 1);
    control.drain().map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { fds.count() } else { 0 }).sum()
}

#[test]
fn an_answer_is_asked_for_only_when_acking() {
    let (mut ours, mut theirs) = pair();
    let mut sent = [0; 12];
    ours.call(Request::SetOwner).unwrap();
    theirs.read_exact(&mut sent).unwrap();
    assert_eq!(sent[4], 1);

    ours.set_acking(true);
    for value in [0_u64, 7] {
        theirs.write_all(&reply(3, &value.to_le_bytes())).unwrap();
    }
    ours.call(Request::SetOwner).unwrap();
    theirs.read_exact(&mut sent).unwrap();
    assert_eq!(sent[4], 1 | 1 << 3);
    let refused = ours.call(Request::SetOwner).expect_err("refused");
    assert!(matches!(refused, FrontendError::Refused { request: "SET_OWNER", value: 7 }), "{refused}");
}

/// A reply of another request, of another size, with a file descriptor too many, or that is none.
#[test]
fn wrong_replies_are_told() {
    let wrong = |bytes: &[u8]| {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(bytes).unwrap();
        ours.ask_number(Request::GetFeatures).expect_err("no good reply")
    };
    for bytes in [reply(15, &[0; 8]), reply(1, &[0; 4]), reply(1, &[])] {
        let error = wrong(&bytes);
        assert!(matches!(error, FrontendError::WrongReply { request: "GET_FEATURES", .. }), "{error}");
    }
    let error = wrong(&Outgoing::request(1, &[0; 8], Vec::new(), false).bytes);
    let bad_flags = |e: &FrontendError| {
        matches!(e, FrontendError::Socket(SocketError::Message(MessageError::BadFlags { .. })))
    };
    assert!(bad_flags(&error), "{error}");
}

#[test]
fn silence_ends_in_time() {
    let (mut ours, _theirs) = pair();
    ours.set_limit(SHORT);
    assert!(ours.reply_within(SHORT).unwrap().is_none());
    let start = Instant::now();
    let error = ours.ask(Request::GetFeatures).expect_err("silence");
    assert!(matches!(error, FrontendError::TimedOut { what: "reply", .. }), "{error}");
    // Half a reply is none.
    let (mut ours, mut theirs) = pair();
    ours.set_limit(SHORT);
    theirs.write_all(&reply(1, &[0; 8])[..15]).unwrap();
    assert!(matches!(ours.ask(Request::GetFeatures), Err(FrontendError::TimedOut { .. })));
    assert!(start.elapsed() < LIMIT);
}

#[test]
fn a_peer_that_reads_nothing_is_not_waited_for() {
    let (mut ours, _theirs) = pair();
    ours.set_limit(SHORT);
    let error = (0..100_000).find_map(|_| ours.call(Request::SetOwner).err());
    assert!(matches!(error, Some(FrontendError::TimedOut { what: "reader of requests", .. })), "{error:?}");
}

#[test]
fn a_peer_that_leaves_is_noticed() {
    let (mut ours, mut theirs) = pair();
    assert!(!ours.is_closed_within(Duration::ZERO).unwrap());
    theirs.write_all(&reply(1, &[0; 8])).unwrap();
    ours.send(Request::GetFeatures, false).unwrap();
    drop(theirs);
    assert!(ours.is_closed_within(LIMIT).unwrap());
    let closed = |r: Result<(), FrontendError>| matches!(r, Err(FrontendError::Socket(SocketError::Closed)));
    assert!(closed(ours.send(Request::GetFeatures, false)));
    assert!(closed(ours.ask(Request::GetFeatures).map(drop)));
}

/// As many file descriptors as the kernel passes can be sent, and no more.
#[test]
fn tests_of_manners_can_send_anything() {
    let (mut ours, mut theirs) = pair();
    let event = Event::new().unwrap();
    ours.send_raw(b"no message at all", &[event.as_fd(); MAX_SENT_FDS]).unwrap();
    assert!(ours.send_raw(b"x", &[event.as_fd(); MAX_SENT_FDS + 1]).is_err());
    let mut read = [0; 17];
    theirs.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"no message at all");
}

#[test]
fn a_back_end_may_connect_to_us_or_come_late() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let late = path.clone();
    let back_end = std::thread::spawn(move || {
        std::thread::sleep(SHORT);
        UnixListener::bind(late).unwrap().accept().unwrap().0
    });
    let mut ours = Connection::connect(&path).unwrap();
    let _theirs = back_end.join().unwrap();
    ours.send(Request::GetFeatures, false).unwrap();

    let listener = UnixListener::bind(dir.path().join("ours")).unwrap();
    let _theirs = UnixStream::connect(dir.path().join("ours")).unwrap();
    Connection::accept(&listener).unwrap().send(Request::GetFeatures, false).unwrap();
}
