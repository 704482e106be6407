//! What a driver does wrong costs that request, or that ring, and nothing else.

use std::time::Duration;

use ringway_testkit::frontend::ring::{Buffer, DESC_NEXT, DESC_WRITE, Descriptor};
use ringway_testkit::frontend::wire::request;

use super::*;
use crate::common::{SOON, eventually};

/// Requests that cannot be are refused, one by one, and the disk is as it was.
#[test]
fn wrong_requests_cost_themselves() {
    with_each(&[], |server| {
        let mut guest = up(server, FEATURES);
        let data = pattern(LEN as usize, 9);
        guest.write(0, &data).unwrap();
        let segments = |n: usize| vec![(0, 1, 0); n];
        let far = [SECTORS, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55, 1 << 63];
        let mut wrong = Vec::new();
        for sector in far {
            wrong.push(DiskRequest::read(sector, 512));
            wrong.push(DiskRequest::write(sector, &[0; 512]));
            wrong.push(DiskRequest::ranges(kind::WRITE_ZEROES, &[(sector, 1, 0)]));
            wrong.push(DiskRequest::ranges(kind::WRITE_ZEROES, &[(0, 1, 0), (sector, 1, 0)]));
            wrong.push(DiskRequest::ranges(kind::DISCARD, &[(sector, 1, 0)]));
        }
        wrong.push(DiskRequest::write(SECTORS - 1, &[0; 1024]));
        for len in [1, 511, 513, 1023] {
            wrong.push(DiskRequest::read(0, len));
            wrong.push(DiskRequest::write(0, &vec![0; len as usize]));
        }
        wrong.push(DiskRequest::ranges(kind::WRITE_ZEROES, &segments(1000)));
        wrong.push(DiskRequest::ranges(kind::WRITE_ZEROES, &[]));
        wrong.push(DiskRequest { data: vec![0; 15], ..DiskRequest::new(kind::DISCARD, 0) });
        wrong.push(DiskRequest::ranges(kind::WRITE_ZEROES, &[(0, u32::MAX, 0)]));
        // Data the wrong way.
        wrong.push(DiskRequest { room: 512, ..DiskRequest::new(kind::OUT, 0) });
        wrong.push(DiskRequest { data: vec![0; 512], ..DiskRequest::new(kind::IN, 0) });
        wrong.push(DiskRequest { room: 19, ..DiskRequest::get_id() });
        for len in [1, 15] {
            wrong.push(DiskRequest { header: vec![0; len], data: vec![], room: 512 });
        }
        for request in &wrong {
            assert_eq!(status_of(&mut guest, request), status::IOERR, "{request:x?}");
        }
        assert!(guest.read(0, LEN as u32).unwrap() == data);
        let refused = server.counters().unwrap().get("blk", "refused");
        assert_eq!(refused, wrong.len() as u64);
    });
}

/// A request that moves nothing is done.
#[test]
fn empty_requests_are_done() {
    with_each(&[], |server| {
        let mut guest = up(server, FEATURES);
        for request in [DiskRequest::read(0, 0), DiskRequest::write(SECTORS, &[])] {
            assert_eq!(status_of(&mut guest, &request), status::OK);
        }
        let nothing = DiskRequest::ranges(kind::WRITE_ZEROES, &[(1, 0, 0), (2, 0, 1)]);
        assert_eq!(status_of(&mut guest, &nothing), status::OK);
        // Something among nothing.
        let some = DiskRequest::ranges(kind::WRITE_ZEROES, &[(1, 0, 0)]);
        guest.write(0, &[7; SECTOR]).unwrap();
        assert_eq!(status_of(&mut guest, &some), status::OK);
        assert_eq!(guest.read(0, SECTOR as u32).unwrap(), [7; SECTOR]);
    });
}

/// A chain without room for a status is used, with nothing written, and counted; others go on.
#[test]
fn chains_without_a_status() {
    with_each(&[], |server| {
        let mut guest = up(server, FEATURES);
        for request in
            [DiskRequest::flush(), DiskRequest::write(0, &[1; SECTOR]), DiskRequest::new(kind::GET_ID, 0)]
        {
            let layout = Layout::whole().without_status();
            assert_eq!(guest.request_on(0, &request, &layout).unwrap().written, 0);
        }
        assert_eq!(
            guest.read(0, SECTOR as u32).unwrap(),
            [0; SECTOR],
            "nothing is written without an answer"
        );
        assert_eq!(server.counters().unwrap().get("blk", "malformed"), 3);
    });
}

/// A ring that its driver broke is not served any more; the disk's other rings, and the next session, are.
#[test]
fn a_broken_ring_costs_itself() {
    with_each(&["--num-queues=2"], |server| {
        let options = BlkOptions { queues: 2, ..BlkOptions::default() };
        let mut guest = BlkFrontend::up(server.socket("disk"), FEATURES, options).unwrap();
        guest.write(0, &[1; SECTOR]).unwrap();
        let ring = guest.ring(0);
        // A chain that comes back to its first descriptor.
        let descriptor = Descriptor { addr: 0, len: 16, flags: DESC_NEXT | DESC_WRITE, next: 0 };
        ring.write_descriptor(0, descriptor).unwrap();
        ring.push_raw(0).unwrap();
        ring.publish_and_kick().unwrap();
        assert!(ring.error.wait(SOON).unwrap() > 0, "the front-end is told");
        let read = DiskRequest::read(0, SECTOR as u32);
        let answer = guest.request_on(1, &read, &Layout::usual(&read)).unwrap();
        assert_eq!((answer.status, answer.data), (status::OK, vec![1; SECTOR]));
        drop(guest);
        assert_eq!(up(server, FEATURES).read(0, SECTOR as u32).unwrap(), [1; SECTOR]);
    });
}

/// Buffers that are in no memory break the ring, not the server.
#[test]
fn buffers_outside_of_memory() {
    with_each(&[], |server| {
        for addr in [u64::MAX - 511, 1 << 60, (512 << 20) - 100] {
            let mut guest = up(server, FEATURES);
            let header = guest.memory().allocate(16, 16).unwrap();
            guest.memory().write(header, &DiskRequest::new(kind::OUT, 0).header).unwrap();
            let buffers =
                [Buffer::readable(header, 16), Buffer::readable(addr, 512), Buffer::writable(header + 16, 1)];
            let ring = guest.ring(0);
            ring.add(&buffers).unwrap().unwrap();
            ring.publish_and_kick().unwrap();
            assert!(ring.error.wait(SOON).unwrap() > 0, "the front-end is told of {addr:#x}");
        }
        assert_eq!(up(server, FEATURES).read(0, SECTOR as u32).unwrap(), [0; SECTOR]);
    });
}

/// Many requests under way that nobody waits for.
fn begin(guest: &mut BlkFrontend, round: usize) {
    for n in 0..60 {
        let request = DiskRequest::write(n * 32, &pattern(16 << 10, round));
        guest.enqueue(0, &request, &Layout::usual(&request)).unwrap();
    }
    guest.flush_queue(0).unwrap();
}

/// A reset in the middle of requests ends them; the device starts anew, and the next driver finds a disk in order.
#[test]
fn a_reset_in_the_middle() {
    with_each(&[], |server| {
        for round in 0..20 {
            let mut guest = up(server, FEATURES);
            begin(&mut guest, round);
            guest.connection().request_accepted(request::RESET_DEVICE, &[], &[]).unwrap();
            // After the answer nothing of the guest's memory is touched.
            let before = guest.memory().read_vec(0, 4 << 20).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            assert!(guest.memory().read_vec(0, 4 << 20).unwrap() == before, "round {round}");
        }
        let mut guest = up(server, FEATURES);
        guest.write(0, &[3; SECTOR]).unwrap();
        assert_eq!(guest.read(0, SECTOR as u32).unwrap(), [3; SECTOR]);
    });
}

/// A ring that stops has done what it took, and goes on where it was.
#[test]
fn a_stop_in_the_middle() {
    with_each(&[], |server| {
        let mut guest = up(server, FEATURES);
        for round in 0..10 {
            begin(&mut guest, round);
            let base = guest.stop_ring(0).unwrap();
            let used = guest.ring(0).used_index().unwrap();
            assert_eq!(base, used, "what was taken is used");
            guest.start_ring(0).unwrap();
            let mut done = 0;
            while done < 60 {
                let answers = guest.answers(0, SOON).unwrap();
                assert!(!answers.is_empty(), "{done} are done in round {round}");
                assert!(answers.iter().all(|(_, answer)| answer.status == status::OK));
                done += answers.len();
            }
        }
    });
}

/// A front-end that goes in the middle of its requests takes nothing with it but its memory.
#[test]
fn a_front_end_that_dies() {
    with_each(&[], |server| {
        let mut quiet = None;
        for round in 0..20 {
            let mut guest = up(server, FEATURES);
            begin(&mut guest, round);
            drop(guest);
            let files = server.open_fds().unwrap();
            if round == 3 {
                quiet = Some(files);
            }
        }
        let mut guest = up(server, FEATURES);
        guest.write(0, &[3; SECTOR]).unwrap();
        assert_eq!(guest.read(0, SECTOR as u32).unwrap(), [3; SECTOR]);
        drop(guest);
        let quiet = quiet.unwrap();
        eventually("file descriptors of front-ends are closed", || server.open_fds().unwrap() <= quiet);
    });
}
