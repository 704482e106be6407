//! The flight, with anything for a server.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use ringway_memory::{Access, BusAddr, FrontendVa, Gpa, Kept, Mapping, MemoryTable, ScatterList};

use super::super::protocol::{Handshake, Step};
use super::*;
use crate::job::Mailbox;

const READS: u64 = 4;
const OTHERS: u64 = 3;
const LEN: usize = 700;

/// An export of 1 MiB that can be flushed, of a server that takes 512 bytes at once.
fn export() -> Export {
    let (mut handshake, _) = Handshake::new("", false);
    let reply = |reply: u32, data: &[u8]| {
        let header =
            [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &7u32.to_be_bytes(), &reply.to_be_bytes()];
        (header.concat(), (data.len() as u32).to_be_bytes(), data.to_vec())
    };
    handshake.next(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
    let infos = [&b"\0\0\0\0\0\0\0\x10\0\0\0\x05"[..], b"\0\x03\0\0\0\x01\0\0\x02\0\0\0\x02\0"];
    for (header, len, data) in infos.map(|info| reply(3, info)) {
        handshake.next(&[header, len.to_vec()].concat()).unwrap();
        handshake.next(&data).unwrap();
    }
    let (header, len, _) = reply(1, b"");
    match handshake.next(&[header, len.to_vec()].concat()) {
        Ok(Step::Done(export)) => export,
        other => panic!("{other:?}"),
    }
}

fn buffer() -> Kept {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN as u64).unwrap();
    let region = Mapping::region(file.into(), 0, LEN as u64, Gpa(0), FrontendVa(0)).unwrap();
    let mut list = ScatterList::with_capacity(2);
    list.bind(&Arc::new(MemoryTable::new(vec![region]).unwrap()));
    list.push(BusAddr(0), 100, Access::WRITE).unwrap();
    list.push(BusAddr(100), LEN as u32 - 100, Access::WRITE).unwrap();
    let mut kept = Kept::default();
    list.keep(0..2, 0, LEN, &mut kept);
    kept
}

/// Sends all that there is to send, in pieces of at most `most` bytes; what was sent.
fn send(flight: &mut Flight, most: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while flight.has_outgoing() {
        let mut bytes = vec![0; most];
        let n = GuestBuf::new(&flight.pieces_out()).read(&mut bytes);
        assert!(n > 0);
        all.extend(&bytes[..n]);
        flight.sent(n);
    }
    all
}

fn begin_all(flight: &mut Flight, mailbox: &Arc<Mailbox>) {
    for token in 0..READS {
        flight.begin(Job::new(token as u32, Operation::Read { offset: token * 1024 }, buffer(), mailbox));
    }
    for token in READS..READS + OTHERS {
        let operation = Operation::Write { offset: token * 1024, stable: token % 2 == 0 };
        flight.begin(Job::new(token as u32, operation, buffer(), mailbox));
    }
}

fn reply(cookie: u64, error: u32) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

#[test]
fn requests_are_the_same_in_pieces_of_any_length() {
    let mailbox = Arc::new(Mailbox::new().unwrap());
    let mut whole = Flight::new(export());
    begin_all(&mut whole, &mailbox);
    let expected = send(&mut whole, 1 << 20);
    // Each job is in two requests.
    let requests = 2 * (READS + OTHERS) as usize;
    assert_eq!(expected.len(), requests * REQUEST_LEN + OTHERS as usize * LEN);
    for most in [1, 2, 27, 28, 29, 100, 555] {
        let mut flight = Flight::new(export());
        begin_all(&mut flight, &mailbox);
        assert_eq!(send(&mut flight, most), expected, "pieces of {most}");
    }
}

#[test]
fn a_reply_to_what_was_not_sent_whole_is_refused() {
    let mailbox = Arc::new(Mailbox::new().unwrap());
    let mut flight = Flight::new(export());
    flight.begin(Job::new(0, Operation::Write { offset: 0, stable: false }, buffer(), &mailbox));
    flight.sent(REQUEST_LEN + 511);
    let n = GuestBuf::new(&flight.pieces_in()).write(&reply(0, 0));
    assert!(flight.received(n).is_err());
}

proptest! {
    #[test]
    fn whatever_a_server_answers_is_judged(
        said in vec(prop_oneof![
            20 => (0..2 * (READS + OTHERS) + 2, prop_oneof![4 => Just(0u32), 1 => 1u32..110]).prop_map(Ok),
            1 => vec(any::<u8>(), 1..30).prop_map(Err),
        ], 0..30),
        lens in vec(1usize..1500, 1..20),
        abandon_at in proptest::option::of(0usize..30),
    ) {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let mut flight = Flight::new(export());
        begin_all(&mut flight, &mailbox);
        send(&mut flight, 1 << 20);
        let stream: Vec<u8> = said.into_iter().flat_map(|said| match said {
            Ok((cookie, error)) => {
                // Reads are the first, of 512 bytes and of what is left.
                let data = match cookie % 2 { 0 => 512, _ => LEN - 512 };
                let data = if cookie < 2 * READS && error == 0 { data } else { 0 };
                [reply(cookie, error), vec![cookie as u8 + 1; data]].concat()
            }
            Err(nonsense) => nonsense,
        }).collect();
        let (mut rest, mut lens) = (&stream[..], lens.into_iter().cycle().enumerate());
        while !rest.is_empty() {
            let (turn, len) = lens.next().unwrap();
            if abandon_at == Some(turn) {
                mailbox.abandon();
                prop_assert!(flight.abandon().is_ok(), "all was sent");
                prop_assert!(flight.tasks.is_empty());
            }
            let n = GuestBuf::new(&flight.pieces_in()).write(&rest[..len.min(rest.len())]);
            prop_assert!(n > 0, "it always listens");
            rest = &rest[n..];
            if flight.received(n).is_err() {
                break;
            }
            send(&mut flight, 1 << 20);
        }
        let done = mailbox.take();
        for done in &done {
            let mut bytes = [0; LEN];
            done.data.buf().read(&mut bytes);
            if done.result.is_ok() && u64::from(done.token) < READS {
                let cookie = done.token as u8 * 2;
                prop_assert!(bytes[..512] == [cookie + 1; 512] && bytes[512..] == [cookie + 2; LEN - 512]);
            }
        }
        let undone = flight.into_jobs().count();
        prop_assert_eq!(done.len() + undone, (READS + OTHERS) as usize, "each is done once, or not yet");
    }
}
