//! Rings of either format: what their sizes and bases mean, and when that is known.

use ringway_queue::Cursor;
use ringway_spec::packed;

use super::*;

const PACKED: u64 = ACKED | feature::RING_PACKED;
/// The base of a new packed ring: slot 0 in the first lap, twice.
const NEW: u32 = 0x8000_8000;
/// One who starts where the ring begins.
const START: Cursor = Cursor::START;

impl Guest {
    /// Makes `count` slots of a packed ring available from `at` on, each a buffer of four bytes to write to.
    /// Returns where the next is made available.
    fn offer_packed(&self, ring: u32, at: Cursor, count: u16) -> Cursor {
        let desc = self.area(ring, 0, packed::desc_area_size(SIZE));
        for at in (0..count).map(|n| at.advance(n, SIZE)) {
            let slot = usize::from(at.index()) * packed::DESC_SIZE;
            desc.store_u64(slot + packed::ADDR, self.gpa + BUFFERS + u64::from(ring) * 16);
            let flags = packed::DESC_F_WRITE | at.available_flags();
            desc.store_u64_release(slot + packed::TAIL, packed::tail(4, 40 + at.index(), flags));
        }
        at.advance(count, SIZE)
    }

    /// How many slots from `at` on are used, a lap at most.
    fn used_packed(&self, ring: u32, at: Cursor) -> usize {
        let desc = self.area(ring, 0, packed::desc_area_size(SIZE));
        let is_used = |at: &Cursor| {
            let slot = usize::from(at.index()) * packed::DESC_SIZE;
            at.is_used(packed::tail_flags(desc.load_u64_acquire(slot + packed::TAIL)))
        };
        (0..SIZE).map(|n| at.advance(n, SIZE)).take_while(is_used).count()
    }

    /// Leaves a ring as a driver does that starts it.
    fn clear_ring(&self, ring: u32) {
        let desc = self.area(ring, 0, packed::desc_area_size(SIZE));
        for at in (0..packed::desc_area_size(SIZE)).step_by(8) {
            desc.store_u64(at, 0);
        }
        self.set_indices(ring, 0);
    }
}

/// The base with both halves at this place.
fn both(at: Cursor) -> u32 {
    u32::from(at.to_off_wrap()) * 0x1_0001
}

/// [VU-BE-get-vring-base-00] [VU-BE-set-vring-base-00] A packed ring that is stopped says both its places, each
/// with its lap, and goes on there: by itself, and where the front-end says.
#[test]
fn a_packed_ring_goes_on_where_it_was() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_features(&guest, 0, PACKED, NEW);
    let mut at = START;
    for round in 0..9 {
        // Three at a time go round eight slots once, twice, three times.
        let next = guest.offer_packed(0, at, 3);
        assert_eq!(front.serve(0), 3, "round {round}");
        assert_eq!(guest.used_packed(0, at), 3);
        assert_eq!(front.base(0), both(next), "round {round}");
        assert_eq!(front.base(0), both(next), "again, of a stopped ring");
        if round % 2 == 0 {
            front.send_state(SET_VRING_BASE, 0, both(next));
            assert_eq!(front.base(0), both(next), "as it was said");
        }
        front.kick(0);
        assert!(front.is_running(0));
        at = next;
    }
    // Memory and features that come anew leave it where it is.
    let next = guest.offer_packed(0, at, 1);
    front.set_mem_table(&guest);
    assert_eq!(front.serve(0), 1);
    front.send_u64(SET_FEATURES, PACKED | feature::IN_ORDER);
    guest.offer_packed(0, next, 2);
    assert_eq!(front.serve(0), 2);
    assert_eq!(front.base(0), both(next.advance(2, SIZE)));
}

/// [VU-BE-set-vring-base-00] The base may come before the features that say what it means.
#[test]
fn a_base_is_read_when_the_ring_starts() {
    let at = Cursor::new(5, false);
    for base_first in [false, true] {
        let guest = Guest::new();
        let mut front = FrontEnd::new();
        front.set_mem_table(&guest);
        if base_first {
            front.describe(&guest, 0, both(at));
            assert_eq!(front.base(0), both(at));
            front.kick(0);
        }
        front.send_u64(SET_FEATURES, PACKED);
        if !base_first {
            front.describe(&guest, 0, both(at));
            front.kick(0);
        }
        let next = guest.offer_packed(0, at, 4);
        assert_eq!(front.serve(0), 4);
        assert_eq!(front.base(0), both(next));
    }
}

/// User-Mode Linux says 0, DPDK 0x8000, QEMU both halves: all mean a new ring.
#[test]
fn every_front_end_starts_a_packed_ring() {
    for base in [0, 0x8000, NEW] {
        let guest = Guest::new();
        // The driver may be done with the first buffers already.
        let next = guest.offer_packed(0, START, 3);
        let mut front = FrontEnd::with_features(&guest, 0, PACKED, base);
        assert_eq!(front.serve(0), 3, "{base:#x}");
        assert_eq!((guest.used_packed(0, START), front.base(0)), (3, both(next)), "{base:#x}");
    }
}

/// [VU-FB-vhost-user-protocol-f-reply-ack-01] What cannot be is told when the ring starts, and is that ring's
/// trouble alone.
#[test]
fn a_ring_that_cannot_be_does_not_start() {
    let starts = |features: u64, size: u32, base: u32| {
        let guest = Guest::new();
        let mut front = FrontEnd::new();
        front.send_u64(SET_PROTOCOL_FEATURES, REPLY_ACK);
        front.send_u64(SET_FEATURES, features);
        front.set_mem_table(&guest);
        front.describe(&guest, 1, base);
        front.send_state(SET_VRING_NUM, 1, size);
        let is_refused = front.ack(SET_VRING_KICK, &words64(&[1]), vec![kicked()]) != 0;
        assert_eq!(front.is_running(1), !is_refused);
        // Its neighbour starts, and so does the ring itself once it is described well.
        front.describe(&guest, 0, 0);
        front.kick(0);
        assert!(front.is_running(0));
        if is_refused {
            front.describe(&guest, 1, 0);
            front.kick(1);
            assert!(front.is_running(1));
        }
        !is_refused
    };
    for (size, base, is_split, is_packed) in [
        (8, 0, true, true),
        (8, 0xffff, true, false),
        (8, 0x1_0000, false, false),
        (8, 0x8000, true, true),
        (8, NEW, false, true),
        (8, 0x0007_0007, false, true),
        (8, 0x8007_8008, false, false),
        (8, 0x8008_8007, false, false),
        (8, u32::MAX, false, false),
        // One lap ahead and no further, nor behind.
        (8, 0x8003_0003, false, true),
        (8, 0x8003_0004, false, false),
        (8, 0x8003_8002, false, false),
        (1, 0, true, true),
        (6, 0, false, true),
        (7, 0x8006_8006, false, true),
        (6, 0x8006_8006, false, false),
    ] {
        assert_eq!(starts(ACKED, size, base), is_split, "split, {size}, {base:#x}");
        assert_eq!(starts(PACKED, size, base), is_packed, "packed, {size}, {base:#x}");
    }
}

#[test]
fn the_error_names_the_base() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, 0, 0);
    front.base(0);
    front.send_state(SET_VRING_BASE, 0, NEW);
    let error = front.refused(SET_VRING_KICK, &words64(&[0]), vec![event()]);
    assert!(matches!(error, RequestError::VringBase(NEW)), "{error}");
}

/// A ring that goes on in the other format has no place there, and begins anew; so does every ring after a reset.
#[test]
fn another_format_is_another_ring() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_features(&guest, pf::RESET_DEVICE, PACKED, NEW);
    let next = guest.offer_packed(0, START, 5);
    assert_eq!(front.serve(0), 5);

    // The same ring, from one request to the next.
    guest.clear_ring(0);
    front.send_u64(SET_FEATURES, ACKED);
    assert_eq!(front.told(), [Told::Stop(0), Told::Features(feature::VERSION_1), start(0, false)]);
    guest.offer(0, 2);
    assert_eq!((front.serve(0), guest.used_idx(0)), (2, 2));
    guest.clear_ring(0);
    front.send_u64(SET_FEATURES, PACKED);
    assert_eq!(guest.offer_packed(0, START, 5), next);
    assert_eq!((front.serve(0), front.base(0)), (5, both(next)));
    front.told();

    // A reset, and no base said after it.
    front.send(RESET_DEVICE, &[]);
    for (features, word) in [(ACKED, 0), (PACKED, NEW)] {
        guest.clear_ring(0);
        assert_eq!(front.base(0), 0, "no features, no format");
        front.send_u64(SET_FEATURES, features);
        assert_eq!(front.base(0), word);
        front.kick(0);
        assert!(front.is_running(0));
        front.send(RESET_DEVICE, &[]);
    }
}
