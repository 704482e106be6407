//! A session goes on in another process: here, in another session, over a socket.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;
use crate::backend::handover::SessionState;
use crate::handover::{FilesIn, FilesOut, HandoverError, Link};

/// What another process receives of a session's state.
fn pass(state: &Value, files: &FilesOut<'_>) -> (Value, FilesIn) {
    let (here, there) = Link::pair().expect("a pair");
    let deadline = Instant::now() + Duration::from_secs(5);
    here.send(state, files, deadline).expect("sent");
    Link::new(there).receive(deadline).expect("received")
}

/// The session's state and its files, as another process receives them.
fn handed_over(front: &mut FrontEnd) -> (Value, FilesIn) {
    front.session.suspend();
    let mut files = FilesOut::default();
    let state = front.session.state(&mut files).expect("a state");
    pass(&serde_json::to_value(&state).expect("JSON"), &files)
}

/// A session restored from this state, with a device of this status.
fn restore(state: Value, mut files: FilesIn, status: u8) -> Result<FrontEnd, HandoverError> {
    let mut state: SessionState = serde_json::from_value(state)?;
    let memory = state.map(QUEUES, &mut files)?;
    let device = Fake { status, ..Fake::default() };
    let session = Session::restore("a", device, state, memory, &mut files)?;
    Ok(FrontEnd { session, need_reply: false })
}

/// Rings go on where they stopped, with the same events; those that did not run do not, and what was said of them holds.
#[test]
fn a_session_goes_on() {
    for (packed, base) in [(false, 0), (false, 65533), (true, 0x8000_8000), (true, 0x7_0007)] {
        let guest = Guest::new();
        let features = if packed { ACKED | feature::RING_PACKED } else { ACKED };
        if !packed {
            guest.set_indices(0, base as u16);
        }
        let mut front = FrontEnd::with_features(&guest, 0, features, base);
        front.send_u64(SET_PROTOCOL_FEATURES, pf::STATUS);
        front.describe(&guest, 1, 5);
        let call = front.call(0);
        front.send_state(SET_VRING_ENABLE, 0, 1);
        front.send_u64(SET_STATUS, DRIVER_OK);
        assert_eq!(front.session.device.running_vrings(), [0]);
        if !packed {
            guest.offer(0, 3);
            assert_eq!(front.serve(0), 3);
            assert_eq!(signals(&call), 1);
            guest.offer(0, 2);
        }

        let (state, files) = handed_over(&mut front);
        assert_eq!(front.session.device.running_vrings(), [0; 0], "only one touches the rings");
        let mut other = restore(state, files, DRIVER_OK as u8).expect("restored");
        assert_eq!(other.told(), [start(0, true)]);
        if !packed {
            assert_eq!(other.serve(0), 2);
            assert_eq!((guest.used_idx(0), signals(&call)), ((base as u16).wrapping_add(5), 1));
            assert_eq!(guest.last_used(0), (0, 4));
        }
        let wanted = if packed { base } else { u32::from((base as u16).wrapping_add(5)) };
        assert_eq!(other.base(0), wanted);
        assert_eq!(other.base(1), 5);
        // Nothing is left of it with the one before.
        front.session.end();
        other.kick(0);
        assert_eq!(other.session.device.running_vrings(), [0]);
        assert_eq!(other.ask_u64(GET_STATUS), DRIVER_OK);
    }
}

/// A call on the back-end's channel that the front-end has yet to answer is waited for, a further one is said after it, and
/// the log is on: all as before.
#[test]
fn calls_in_band_and_the_log_go_on() {
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;
    const VRING_CALL: u32 = 4;
    let guest = Guest::new();
    let mut front = FrontEnd::new();
    let in_band = pf::INBAND_NOTIFICATIONS | pf::BACKEND_REQ | pf::REPLY_ACK;
    front.send_u64(SET_PROTOCOL_FEATURES, in_band | pf::LOG_SHMFD);
    front.send_u64(SET_FEATURES, ACKED | F_LOG_ALL);
    front.set_mem_table(&guest);
    let log = tempfile::tempfile().expect("a log");
    log.set_len(4096).expect("its length");
    let file = log.try_clone().expect("a clone").into();
    front.handle(SET_LOG_BASE, false, &words64(&[4096, 0]), vec![file]).expect("taken");
    let mut ours = front.channel();
    ours.set_nonblocking(true).expect("a flag");
    front.describe(&guest, 0, 0);
    front.kick(0);
    guest.offer(0, 1);
    assert_eq!(front.serve(0), 1);

    let (state, files) = handed_over(&mut front);
    let mut other = restore(state, files, 0).expect("restored");
    drop(front);
    log.write_at(&[0], 1).expect("cleared");
    guest.offer(0, 1);
    assert_eq!(other.serve(0), 1);
    let call = [words32(&[VRING_CALL, 9, 8]), words32(&[0, 0])].concat();
    let mut received = [0; 64];
    assert_eq!(ours.read(&mut received).expect("one call"), call.len());
    assert_eq!(received[..call.len()], call);
    assert!(ours.read(&mut received).is_err(), "no other before the answer");
    ours.write_all(&[words32(&[VRING_CALL, 5, 8]), words64(&[0])].concat()).expect("an answer");
    assert!(other.session.turn().is_none());
    assert_eq!(ours.read(&mut received).expect("the other call"), call.len());

    let mut bits = [0];
    log.read_at(&mut bits, 1).expect("read");
    assert_eq!(bits, [1], "the page at 0x8000 was written to");
}

/// What is in flight is recorded in the same file, translations are known, and a change of the configuration is still to be
/// told, as an answer is.
#[test]
fn what_belongs_to_no_ring_goes_on() {
    use ringway_memory::{Access, Iova};
    let guest = Guest::new();
    let mut front = FrontEnd::new();
    front.session.inflight = Some(InflightFile::create(2, SIZE, ACKED, QUEUES).expect("a file"));
    let (iova, to) = (Iova(0x5000), FrontendVa(guest.va));
    front.session.translations.update(iova, 0x1000, to, Access::READ).expect("an entry");
    front.send_u64(SET_FEATURES, ACKED);
    front.set_mem_table(&guest);
    front.describe(&guest, 0, 0);
    let area = |session: &Session<Fake>| session.inflight.as_ref().unwrap().area(1, ACKED).unwrap().unwrap();
    area(&front.session).store_u64(8, 77);
    front.session.is_config_new = true;
    front.session.owed = Some(Header::request(GET_STATUS, 0, false));

    let (state, files) = handed_over(&mut front);
    let other = restore(state, files, 0).expect("restored").session;
    let inflight = |session: &Session<Fake>| session.inflight.as_ref().unwrap().description();
    assert_eq!(inflight(&other), inflight(&front.session));
    assert_eq!(area(&other).load_u64(8), 77);
    assert_eq!(other.translations.entries(), [(iova, 0x1000, to, Access::READ)]);
    assert!(other.is_config_new && other.owed == front.session.owed);
}

/// If the other process fails, the rings go on here.
#[test]
fn a_suspended_session_resumes() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, 0, 0);
    guest.offer(0, 1);
    drop(handed_over(&mut front));
    front.session.resume().expect("the rings start");
    assert_eq!(front.serve(0), 1);
}

/// Features that this version does not offer, and what was said under them, cannot be passed over.
#[test]
fn features_that_are_not_offered_are_refused() {
    for (field, features) in [("features", 1 << 60), ("protocol_features", 1 << 40)] {
        let guest = Guest::new();
        let (mut state, files) = handed_over(&mut FrontEnd::with_ring(&guest, 0, 0));
        state[field] = (state[field].as_u64().expect("a number") | features).into();
        let error = restore(state, files, 0).err().expect("refused");
        assert!(matches!(error, HandoverError::Features { features: f, .. } if f == features), "{error}");
    }
}

/// A field that this version does not know is passed over.
#[test]
fn unknown_fields_are_passed_over() {
    let guest = Guest::new();
    let (mut state, files) = handed_over(&mut FrontEnd::with_ring(&guest, 0, 0));
    state["from_the_future"] = 7.into();
    state["vrings"][0]["from_the_future"] = "too".into();
    let other = restore(state, files, 0).expect("restored");
    assert!(other.is_running(0));
}

/// The paths of all values inside of a value.
fn paths(value: &Value, at: String, to: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| paths(value, format!("{at}/{name}"), to));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| paths(value, format!("{at}/{i}"), to));
        }
        _ => {}
    }
    to.push(at);
}

/// Each value is replaced by each of some that are wrong, or missing: the session is refused or goes on, and nobody panics.
#[test]
fn a_wrong_value_is_no_panic() {
    let guest = Guest::new();
    let state = |front: &mut FrontEnd| {
        let call = front.call(0);
        drop(call);
        handed_over(front)
    };
    let mut all = Vec::new();
    paths(&state(&mut FrontEnd::with_ring(&guest, 0, 0)).0, String::new(), &mut all);
    let wrong = [
        Value::Null,
        0.into(),
        1.into(),
        0x7fff.into(),
        0xffff.into(),
        u32::MAX.into(),
        u64::MAX.into(),
        (-1).into(),
        "polled".into(),
        Value::Array(vec![]),
        serde_json::json!({ "packed": { "avail": 9, "used": 0x8009 } }),
        serde_json::json!({ "told": 0x1_0000 }),
        serde_json::json!({ "file": 1 }),
    ];
    let mut refused = 0;
    for path in &all {
        for value in &wrong {
            let (mut state, files) = state(&mut FrontEnd::with_ring(&guest, 0, 0));
            *state.pointer_mut(path).expect("a path of it") = value.clone();
            refused += usize::from(restore(state, files, 0).is_err());
        }
    }
    assert!(refused > all.len() * 5, "{refused} of {}", all.len() * wrong.len());
}
