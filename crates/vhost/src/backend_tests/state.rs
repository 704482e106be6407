//! A device's inner state on its way: through pipes, sockets and files, in pieces, and not at all.

use std::io::{Read, Write};
use std::net::Shutdown;

use super::*;

const SET_DEVICE_STATE_FD: u32 = 42;
const CHECK_DEVICE_STATE: u32 = 43;

/// No file descriptor comes with the answer; success.
const NO_FD: u64 = 1 << 8;
/// More than a pipe or a socket holds.
const LONG: usize = 900_000;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Save,
    Load,
}

impl FrontEnd {
    fn with_state(state: Vec<u8>) -> Self {
        let mut front = Self::of(Fake { more: pf::DEVICE_STATE, state, ..Fake::default() });
        front.send_u64(SET_PROTOCOL_FEATURES, pf::DEVICE_STATE);
        front
    }

    /// The answer to the beginning of a transfer, with which no file descriptor comes.
    fn transfer(&mut self, way: Way, phase: u32, fd: impl Into<OwnedFd>) -> u64 {
        let payload = words32(&[u32::from(way == Way::Load), phase]);
        let reply = self.handle(SET_DEVICE_STATE_FD, false, &payload, vec![fd.into()]);
        let reply = reply.expect("the session goes on").expect("an answer");
        u64::from_le_bytes(reply.try_into().expect("8 bytes"))
    }

    /// Asks how it went, and hears of it now or later.
    fn check(&mut self) -> Option<u64> {
        let reply = self.handle(CHECK_DEVICE_STATE, false, &[], vec![]).expect("the session goes on");
        assert_eq!(self.session.owes_reply(), reply.is_none());
        reply.map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
    }

    /// Gives the session its turn. Returns the answer to the check, once it is there.
    fn turn(&mut self) -> Option<u64> {
        let reply = self.session.turn()?;
        assert_eq!((reply.number(), reply.fds.len()), (CHECK_DEVICE_STATE, 0));
        Some(u64::from_le_bytes(reply.bytes[HEADER_LEN..].try_into().expect("8 bytes")))
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// The back-end's end of a pipe or a socket, and ours.
fn ends(is_pipe: bool, way: Way) -> (OwnedFd, File) {
    if !is_pipe {
        let (theirs, ours) = UnixStream::pair().expect("a pair of sockets");
        return (theirs.into(), OwnedFd::from(ours).into());
    }
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let (theirs, ours) = if way == Way::Save { (write, read) } else { (read, write) };
    (theirs, ours.into())
}

/// [VU-BE-set-device-state-fd-00] [VU-BE-set-device-state-fd-03] [VU-BE-check-device-state-00]
/// [VU-BE-check-device-state-01] [VU-BE-migrating-back-end-state-01] [VU-BE-migrating-back-end-state-03]
/// [VU-FB-migrating-back-end-state-01] [VU-FB-migrating-back-end-state-02] A state that does not fit the channel
/// goes over in pieces, nobody waits for anybody, and the end is told by closing; the answer comes when it is known.
#[test]
fn a_state_goes_over() {
    for (is_pipe, len) in [(true, 1), (true, LONG), (false, 1), (false, LONG)] {
        let mut front = FrontEnd::with_state(bytes(len));
        let (theirs, mut ours) = ends(is_pipe, Way::Save);
        assert_eq!(front.transfer(Way::Save, 0, theirs), NO_FD);
        // Looked at before all is written, or after.
        let mut answer = if len == LONG { front.check() } else { None };
        assert_eq!(answer, None);
        let mut saved = vec![];
        while answer.is_none() && len == LONG {
            assert!(!front.is_ready(), "there is no room");
            assert_eq!(front.turn(), None);
            let mut piece = vec![0; 1 << 20];
            let n = ours.read(&mut piece).expect("a piece");
            saved.extend_from_slice(&piece[..n]);
            assert!(front.is_ready(), "there is room");
            answer = front.turn();
        }
        ours.read_to_end(&mut saved).expect("the rest, and the end");
        assert_eq!(answer.or_else(|| front.check()), Some(0));
        assert!(saved == bytes(len), "{} bytes arrive", saved.len());

        let mut other = FrontEnd::with_state(bytes(1));
        let (theirs, mut ours) = ends(is_pipe, Way::Load);
        assert_eq!(other.transfer(Way::Load, 0, theirs), NO_FD);
        for (n, piece) in saved.chunks(50_000).enumerate() {
            assert!(!other.is_ready());
            ours.write_all(piece).expect("a piece");
            assert!(other.is_ready(), "there is something to read");
            if n == 0 {
                assert_eq!(other.check(), None);
            }
            assert_eq!(other.turn(), None, "the end has not come");
        }
        assert_eq!(other.told(), []);
        drop(ours);
        assert!(other.is_ready());
        assert_eq!(other.turn(), Some(0));
        assert_eq!(other.told(), [Told::Load(saved)]);
        assert_eq!(other.session.interests().count(), 0);
    }
}

/// While the answer is not known, the request after it is not taken.
#[test]
fn answers_stay_in_order() {
    let mut front = FrontEnd::with_state(bytes(1));
    let (theirs, ours) = ends(true, Way::Load);
    assert_eq!(front.transfer(Way::Load, 0, theirs), NO_FD);
    assert_eq!(front.check(), None);
    let error = front.handle(GET_FEATURES, false, &[], vec![]).expect_err("out of turn");
    assert!(matches!(error, SessionError::OwesReply("GET_FEATURES")), "{error}");
    drop(ours);
    assert_eq!(front.turn(), Some(1), "an empty state is not this device's");
    assert_eq!(front.ask_u64(GET_FEATURES), OFFERED | TRANSPORT_FEATURES);
}

/// [VU-BE-set-device-state-fd-04] An error has its bits, and brings no file descriptor; the session goes on.
#[test]
fn a_transfer_that_cannot_begin() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_state(bytes(9));
    let fd = || ends(true, Way::Load).0;
    let is_error = |answer: u64| answer & 0xff != 0 && answer & NO_FD != 0;
    assert!(is_error(front.transfer(Way::Load, 1, fd())), "there is one phase");
    assert!(is_error(front.transfer(Way::Load, 0, event())), "no channel");
    front.start_ring(&guest, ACKED);
    assert!(is_error(front.transfer(Way::Save, 0, fd())), "a ring runs");
    assert!(is_error(front.transfer(Way::Load, 0, fd())), "a ring runs");
    assert_eq!(front.check(), Some(1), "no transfer has begun");
    front.base(0);
    assert_eq!(front.transfer(Way::Load, 0, fd()), NO_FD);

    front.send_u64(SET_PROTOCOL_FEATURES, 0);
    assert!(is_error(front.transfer(Way::Load, 0, fd())), "not negotiated");
    assert_eq!(front.check(), Some(1), "not negotiated");
    assert_eq!(front.told(), [Told::Stop(0)]);
}

/// [VU-BE-check-device-state-01] What goes wrong on the way is told by the check, and once.
#[test]
fn a_transfer_that_fails() {
    // Nobody reads on.
    for (is_pipe, len) in [(true, LONG), (false, LONG)] {
        let mut front = FrontEnd::with_state(bytes(len));
        let (theirs, ours) = ends(is_pipe, Way::Save);
        assert_eq!(front.transfer(Way::Save, 0, theirs), NO_FD);
        drop(ours);
        assert_eq!(front.check(), Some(1));
        assert_eq!(front.check(), Some(1), "there is none any more");
    }
    // More than any device's, and another device's.
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len((1 << 20) + 1).expect("its length");
    let mut front = FrontEnd::with_state(vec![1]);
    assert_eq!(front.transfer(Way::Load, 0, file), NO_FD);
    assert_eq!((front.check(), front.told()), (Some(1), vec![]));
    let (theirs, mut ours) = UnixStream::pair().expect("a pair of sockets");
    assert_eq!(front.transfer(Way::Load, 0, theirs), NO_FD);
    ours.write_all(&[2, 3]).expect("a state");
    ours.shutdown(Shutdown::Write).expect("its end");
    assert_eq!((front.check(), front.told()), (Some(1), vec![Told::Load(vec![2, 3])]));
}

/// Rings that were started since are not put into another state.
#[test]
fn no_state_is_loaded_under_a_running_ring() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_state(bytes(1));
    let (theirs, mut ours) = ends(true, Way::Load);
    assert_eq!(front.transfer(Way::Load, 0, theirs), NO_FD);
    front.start_ring(&guest, ACKED);
    ours.write_all(&bytes(1)).expect("a state");
    drop(ours);
    assert_eq!((front.check(), front.told()), (Some(1), vec![]));
    assert!(front.is_running(0));
}

/// A file is a channel as well, and a new transfer takes the place of one that was not finished.
#[test]
fn files_and_second_thoughts() {
    let mut front = FrontEnd::with_state(bytes(5000));
    let (theirs, ours) = ends(true, Way::Load);
    assert_eq!(front.transfer(Way::Load, 0, theirs), NO_FD);
    let mut file = tempfile::tempfile().expect("a temporary file");
    assert_eq!(front.transfer(Way::Save, 0, file.try_clone().expect("a clone")), NO_FD);
    assert_eq!(front.check(), Some(0));
    std::io::Seek::rewind(&mut file).expect("its start");
    let mut saved = vec![];
    file.read_to_end(&mut saved).expect("the state");
    assert!(saved == bytes(5000));
    drop(ours);
    assert_eq!(front.told(), []);
}
