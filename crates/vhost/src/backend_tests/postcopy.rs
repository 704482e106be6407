//! Postcopy: who is told what before a guest's memory has arrived, and when it may be touched. The kernel shows its
//! own faults to processes with `CAP_SYS_PTRACE` only, or if `vm.unprivileged_userfaultfd` is 1.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};
use rustix::fs::MemfdFlags;

use super::*;

const POSTCOPY_ADVISE: u32 = 28;
const POSTCOPY_LISTEN: u32 = 29;
const POSTCOPY_END: u32 = 30;

/// Regions one by one, or all in a table.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Table,
    Slots,
}

impl Guest {
    /// In a file that can be watched.
    fn arriving() -> Self {
        let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        let file = File::from(file);
        file.set_len(GUEST_LEN).expect("its length");
        Self { file, ..Self::new() }
    }
}

impl FrontEnd {
    fn new_postcopy() -> Self {
        Self::with_more(pf::PAGEFAULT, pf::CONFIGURE_MEM_SLOTS)
    }

    /// Advises, and returns the watch.
    fn advise(&mut self) -> OwnedFd {
        let reply = self.exchange(POSTCOPY_ADVISE, false, &[], vec![]);
        let mut reply = reply.expect("carried out").expect("an answer");
        assert_eq!((reply.bytes.len(), reply.fds.len()), (HEADER_LEN, 1), "is CAP_SYS_PTRACE missing?");
        reply.fds.remove(0)
    }

    /// Gives memory while listening. Returns where it is mapped here.
    fn give(&mut self, guest: &Guest, way: Way) -> u64 {
        let (request, payload, at) = match way {
            Way::Table => (SET_MEM_TABLE, guest.table(), 8 + 16),
            Way::Slots => (ADD_MEM_REG, guest.single(), 8 + 16),
        };
        let reply = self.handle(request, false, &payload, vec![guest.fd()]);
        let reply = reply.expect("carried out").expect("an answer that nobody asked for");
        assert_eq!(reply.len(), payload.len());
        // All as it was said, but where the region is.
        assert_eq!((&reply[..at], &reply[at + 8..]), (&payload[..at], &payload[at + 8..]));
        let here = u64::from_le_bytes(reply[at..at + 8].try_into().expect("8 bytes"));
        assert_eq!(here, self.session.memory.regions().last().expect("a region").backend_va());
        here
    }

    /// Says that it knows where all regions are.
    fn acknowledge(&mut self, way: Way) {
        let request = if way == Way::Table { SET_MEM_TABLE } else { ADD_MEM_REG };
        self.send(request, &words64(&[0]));
    }
}

/// Whether a page was missed within the time; then where.
fn missed(watch: &OwnedFd, wait: i64) -> Option<u64> {
    let mut fds = [PollFd::new(watch, rustix::event::PollFlags::IN)];
    if poll(&mut fds, Some(&Timespec { tv_sec: wait, tv_nsec: 0 })).expect("polled") == 0 {
        return None;
    }
    // `struct uffd_msg`: a byte for the event, UFFD_EVENT_PAGEFAULT, and the address at 16.
    let mut message = [0; 32];
    assert_eq!(rustix::io::read(watch, &mut message).expect("an event"), 32);
    assert_eq!(message[0], 0x12);
    Some(u64::from_le_bytes(message[16..24].try_into().expect("8 bytes")))
}

/// [VU-BE-postcopy-advise-00] [VU-BE-postcopy-advise-01] [VU-BE-postcopy-listen-00] [VU-BE-postcopy-listen-01]
/// [VU-BE-postcopy-end-00] [VU-BE-postcopy-end-01] [VU-BE-postcopy-end-02] [VU-BE-set-mem-table-01]
/// [VU-BE-set-mem-table-02] [VU-BE-add-mem-reg-02] [VU-BE-migration-07] The front-end learns where regions are; until
/// it says so nothing is touched; who touches a missing page then waits, and the end lets go, although the front-end
/// keeps the watch open.
#[test]
fn memory_arrives_later() {
    for way in [Way::Table, Way::Slots] {
        let guest = Guest::arriving();
        let mut front = FrontEnd::new_postcopy();
        let watch = front.advise();
        front.send(POSTCOPY_LISTEN, &[]);
        front.send_u64(SET_FEATURES, ACKED);
        let here = front.give(&guest, way);
        front.describe(&guest, 0, 0);
        front.kick(0);
        assert!(!front.is_running(0), "before it is acknowledged");
        assert_eq!(missed(&watch, 0), None, "nothing was touched");
        // The ring's page has come.
        guest.offer(0, 1);
        front.acknowledge(way);
        assert!(front.is_running(0));
        assert_eq!(missed(&watch, 0), None);

        let mut running = front.session.device.running[0].take().expect("a running vring");
        let server = std::thread::spawn(move || {
            let mut burst = Burst::default();
            assert_eq!(running.queue.take(&mut burst, 8).expect("a good ring"), 1);
            let chain = burst.next().expect("the chain");
            let written = chain.writable().write(b"good") as u32;
            running.queue.complete(chain, written);
            let _ = running.queue.publish();
            running
        });
        assert_eq!(missed(&watch, 10), Some(here + BUFFERS), "the buffer's page");
        assert_eq!(missed(&watch, 0), None, "and no other");
        assert!(!server.is_finished(), "it waits");
        assert_eq!(front.ask(POSTCOPY_END, &[]), words64(&[0]));
        let end = Instant::now() + Duration::from_secs(10);
        while !server.is_finished() {
            assert!(Instant::now() < end, "nobody waits for a page any more");
            std::thread::sleep(Duration::from_millis(1));
        }
        front.session.device.running[0] = Some(server.join().expect("served"));
        assert_eq!((guest.last_used(0), front.base(0)), ((0, 4), 1));
        assert_eq!(missed(&watch, 0), None);
        // Memory comes as usual again.
        front.set_mem_table(&guest);
    }
}

/// Several regions are acknowledged once.
#[test]
fn regions_are_acknowledged_together() {
    let (low, high) = (Guest::arriving(), Guest { gpa: 0x10_0000, va: 0x6000_0000, ..Guest::arriving() });
    let mut front = FrontEnd::new_postcopy();
    let _watch = front.advise();
    front.send(POSTCOPY_LISTEN, &[]);
    front.send_u64(SET_FEATURES, ACKED);
    assert_ne!(front.give(&low, Way::Slots), front.give(&high, Way::Slots));
    front.describe(&high, 0, 0);
    front.kick(0);
    assert!(!front.is_running(0));
    // The ring's page has come.
    high.set_indices(0, 0);
    front.acknowledge(Way::Slots);
    assert!(front.is_running(0));
    // Said once more, as QEMU does after a change that maps nothing.
    for request in [ADD_MEM_REG, REM_MEM_REG] {
        front.send(request, &words64(&[0]));
    }
    assert!(front.is_running(0));
}

/// [VU-BE-postcopy-end-02] Each has its place, and is refused elsewhere in the form of its answer.
#[test]
fn postcopy_out_of_turn() {
    let guest = Guest::arriving();
    let mut front = FrontEnd::with_more(pf::PAGEFAULT, SLOTS);
    assert_ne!(front.ack(POSTCOPY_LISTEN, &[], vec![]), 0, "before ADVISE");
    assert_eq!(front.ask(POSTCOPY_END, &[]), words64(&[1]), "before ADVISE");
    assert_ne!(front.ack(ADD_MEM_REG, &words64(&[0]), vec![]), 0, "nothing to acknowledge");
    front.set_mem_table(&guest);
    let _watch = front.advise();
    assert_ne!(front.ack(POSTCOPY_LISTEN, &[], vec![]), 0, "there is memory that nobody watches");
    front.send(SET_MEM_TABLE, &words64(&[0]));
    assert_eq!(front.session.memory.regions().len(), 0, "not listening, a table without regions is one");
    assert_eq!(front.ack(POSTCOPY_LISTEN, &[], vec![]), 0);
    assert!(front.ask(POSTCOPY_ADVISE, &[]).is_empty(), "once is enough");

    // A table that is refused leaves nothing to acknowledge.
    let both = [words32(&[2, 0]), guest.region(), guest.region()].concat();
    assert_ne!(front.ack(SET_MEM_TABLE, &both, vec![guest.fd(), guest.fd()]), 0, "they overlap");
    assert!(!front.session.postcopy.is_awaiting_ack());
    // A file whose pages cannot be made to arrive.
    let file = File::open(std::env::current_exe().expect("a program")).expect("a file");
    let region = words64(&[0, 0, 4096, 0, 0]);
    assert_ne!(front.ack(ADD_MEM_REG, &region, vec![file.into()]), 0);
    assert_eq!(front.session.memory.regions().len(), 0);
    assert_eq!(front.ask(POSTCOPY_END, &[]), words64(&[0]));
}

/// A device that nobody may make wait has none of it.
#[test]
fn no_postcopy_without_the_feature() {
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, REPLY_ACK);
    assert_eq!(front.ask_u64(GET_PROTOCOL_FEATURES) & pf::PAGEFAULT, 0);
    assert!(front.ask(POSTCOPY_ADVISE, &[]).is_empty());
    assert_ne!(front.ack(POSTCOPY_LISTEN, &[], vec![]), 0);
    assert_eq!(front.ask(POSTCOPY_END, &[]), words64(&[1]));
}

/// Whoever serves a ring and waits for a page goes on when the session ends, for the ring is to be stopped.
#[test]
fn the_end_of_a_session_lets_go() {
    let guest = Guest::arriving();
    let mut front = FrontEnd::new_postcopy();
    let watch = front.advise();
    front.send(POSTCOPY_LISTEN, &[]);
    front.send_u64(SET_FEATURES, ACKED);
    let here = front.give(&guest, Way::Table);
    front.acknowledge(Way::Table);
    let memory = std::sync::Arc::clone(&front.session.memory);
    let area = memory.area(FrontendVa(guest.va + 0x3000), 8, 8).expect("an area");
    let waiter = std::thread::spawn(move || area.load_u64(0));
    assert_eq!(missed(&watch, 10), Some(here + 0x3000));
    front.session.end();
    assert_eq!(waiter.join().expect("it goes on"), 0);
}
