//! Tests of the ring: the device's side is played by hand.

use super::*;

fn ring(size: u16, base: u16) -> SplitRing {
    let memory = Arc::new(GuestMemory::new(&[(0x1000, 0x1_0000)]).unwrap());
    SplitRing::new(memory, RingLayout::contiguous(size, 0x1000, 4096), base).unwrap()
}

/// Uses the chain `id` as a device does.
fn use_chain(ring: &SplitRing, id: u32, len: u32) {
    let index = ring.used_index().unwrap();
    let entry = u64::from(id) | u64::from(len) << 32;
    ring.memory.write(ring.layout.used_entry(index), &entry.to_le_bytes()).unwrap();
    ring.write_used_index(index.wrapping_add(1)).unwrap();
}

#[test]
fn the_areas_are_where_the_specification_puts_them() {
    let layout = RingLayout::contiguous(8, 0, 4);
    assert_eq!((layout.descriptors, layout.available, layout.used), (0, 128, 152));
    assert_eq!((layout.used_event(), layout.avail_event(), layout.end()), (148, 220, 222));
    assert_eq!((layout.available_entry(9), layout.used_entry(9)), (134, 164));
}

#[test]
fn a_chain_is_linked_and_published_last() {
    let mut ring = ring(8, 0);
    let head = ring.add(&[Buffer::readable(0x5000, 12), Buffer::writable(0x6000, 100)]).unwrap().unwrap();
    let table = ring.memory.read_vec(ring.layout.descriptor(head), 32).unwrap();
    assert_eq!(table[..16], Descriptor { addr: 0x5000, len: 12, flags: DESC_NEXT, next: 1 }.to_bytes());
    assert_eq!(table[16..], Descriptor { addr: 0x6000, len: 100, flags: DESC_WRITE, next: 0 }.to_bytes());
    assert_eq!(ring.memory.load_u16(ring.layout.available + 2).unwrap(), 0);
    ring.publish_and_kick().unwrap();
    assert_eq!(ring.memory.load_u16(ring.layout.available + 2).unwrap(), 1);
    assert_eq!(ring.kick.take().unwrap(), 1);
}

#[test]
fn descriptors_come_back_across_the_wrap_of_the_index() {
    let mut ring = ring(4, 65530);
    for turn in 0..20 {
        let head = ring.add(&[Buffer::readable(0x5000, 1); 3]).unwrap().expect("descriptors are free");
        assert_eq!(ring.add(&[Buffer::readable(0x5000, 1); 2]).unwrap(), None);
        ring.publish_and_kick().unwrap();
        assert!(ring.poll().unwrap().is_empty());
        use_chain(&ring, head.into(), turn);
        assert_eq!(ring.poll().unwrap(), [(head.into(), turn)]);
    }
    assert_eq!((ring.next_available(), ring.next_used(), ring.free()), (14, 14, 4));
}

#[test]
fn an_indirect_chain_takes_one_descriptor() {
    let mut ring = ring(4, 0);
    let head = ring.add_indirect(0x8000, &[Buffer::readable(1, 2), Buffer::writable(3, 4)]).unwrap().unwrap();
    assert_eq!(ring.free(), 3);
    let expected = Descriptor { addr: 0x8000, len: 32, flags: DESC_INDIRECT, next: 0 };
    assert_eq!(ring.memory.read_vec(ring.layout.descriptor(head), 16).unwrap(), expected.to_bytes());
    let first = Descriptor { addr: 1, len: 2, flags: DESC_NEXT, next: 1 };
    assert_eq!(ring.memory.read_vec(0x8000, 16).unwrap(), first.to_bytes());
}

#[test]
fn a_device_that_lies_is_found_out() {
    let mut ring = ring(4, 0);
    let head = ring.add(&[Buffer::readable(0x5000, 1)]).unwrap().unwrap();
    use_chain(&ring, u32::from(head) + 1, 0);
    assert!(ring.poll().is_err(), "an id that is not in flight");
    ring.reset(0).unwrap();
    ring.write_used_index(1).unwrap();
    assert!(ring.poll().is_err(), "more used than available");
}

#[test]
fn kicks_follow_the_devices_wish_if_told_to() {
    let mut ring = ring(8, 65535);
    ring.kick_policy = KickPolicy::IfWanted;
    let add_one = |ring: &mut SplitRing| {
        ring.add(&[Buffer::readable(0x5000, 1)]).unwrap().unwrap();
        ring.publish_and_kick().unwrap()
    };
    assert!(add_one(&mut ring));
    ring.memory.store_u16(ring.layout.used, USED_NO_NOTIFY, false).unwrap();
    assert!(!add_one(&mut ring));
    ring.event_idx = true;
    ring.memory.store_u16(ring.layout.avail_event(), 1, false).unwrap();
    assert!(add_one(&mut ring), "index 1 is announced");
    assert!(!add_one(&mut ring), "index 1 was announced before");
}

#[test]
fn an_event_is_passed_only_by_the_step_over_it() {
    assert!(passes(65535, 65535, 0));
    assert!(passes(0, 65534, 3));
    assert!(!passes(3, 65534, 3));
    assert!(!passes(65533, 65534, 3));
    assert!(!passes(7, 7, 7));
}
