//! Drivers that break packed rings. Their slots are written raw, where the front-end has a split ring's descriptors.

use anyhow::Result;
use ringway_testkit::frontend::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use ringway_testkit::frontend::wire::{self, feature, request};
use ringway_testkit::frontend::{NetFrontend, SplitRing, frame};

use super::rings::{END, FREE, NOWHERE, attach_with_err};
use crate::common::{Mark, SOON, World, eventually, expect_number, is_answered, numbered};

const NEXT: u16 = DESC_NEXT;
const WRITE: u16 = DESC_WRITE;
const INDIRECT: u16 = DESC_INDIRECT;
/// What makes a slot available in the first lap, and with the other what makes it used.
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// The buffer ID of all chains.
const ID: u16 = 7;
const PACKED: u64 = feature::VERSION_1 | feature::RING_PACKED | feature::IN_ORDER | feature::INDIRECT_DESC;

/// A slot of the ring, or of an indirect table.
#[derive(Clone, Copy)]
struct Slot {
    addr: u64,
    len: u32,
    flags: u16,
}

fn slot(addr: u64, len: u32, flags: u16) -> Slot {
    Slot { addr, len, flags }
}

/// Writes slots from `at` on, the first one's flags last.
fn write(ring: &SplitRing, at: u64, slots: &[Slot]) -> Result<()> {
    for (n, Slot { addr, len, flags }) in slots.iter().enumerate().rev() {
        let at = at + 16 * n as u64;
        let head = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &ID.to_le_bytes()].concat();
        ring.memory().write(at, &head)?;
        ring.memory().store_u16(at + 14, *flags, false)?;
    }
    Ok(())
}

/// Writes slots to the ring, and kicks.
fn supply(ring: &SplitRing, slots: &[Slot]) -> Result<()> {
    write(ring, ring.layout().descriptors, slots)?;
    ring.kick.signal()
}

/// Makes a table of `len` bytes with these slots available.
fn table(ring: &SplitRing, len: u32, slots: &[Slot]) -> Result<()> {
    write(ring, FREE, slots)?;
    supply(ring, &[slot(FREE, len, INDIRECT | AVAIL)])
}

/// What a driver does to its ring; `access` is the flag of the ring's ordinary buffers.
type Spoil = fn(&SplitRing, access: u16) -> Result<()>;

/// No fault of a transmit ring, where it is all the same which of a table's buffers a driver calls writable.
const DISORDER: &str = "readable after writable in a table";

const FAULTS: &[(&str, Spoil)] = &[
    ("a chain that goes on at a slot that is not available", |ring, access| {
        supply(ring, &[slot(FREE, 100, access | NEXT | AVAIL), slot(FREE, 100, access)])
    }),
    ("a chain that goes on at a slot of the lap before", |ring, access| {
        supply(ring, &[slot(FREE, 100, access | NEXT | AVAIL), slot(FREE, 100, access | AVAIL | USED)])
    }),
    ("a chain without an end", |ring, access| {
        let all = vec![slot(FREE, 10, access | NEXT | AVAIL); ring.layout().size.into()];
        supply(ring, &all)
    }),
    ("readable after writable", |ring, _| {
        supply(ring, &[slot(FREE, 100, WRITE | NEXT | AVAIL), slot(FREE, 100, AVAIL)])
    }),
    ("a buffer outside of memory", |ring, access| supply(ring, &[slot(NOWHERE, 100, access | AVAIL)])),
    ("the second buffer outside of memory", |ring, access| {
        supply(ring, &[slot(FREE, 100, access | NEXT | AVAIL), slot(NOWHERE, 100, access | AVAIL)])
    }),
    ("a buffer across a region's end", |ring, access| supply(ring, &[slot(END - 50, 51, access | AVAIL)])),
    ("a buffer that wraps", |ring, access| supply(ring, &[slot(u64::MAX - 8, 64, access | AVAIL)])),
    ("4 GiB in many buffers", |ring, access| table(ring, 16 * 33, &[slot(FREE, 128 << 20, access); 33])),
    ("indirect with a successor", |ring, access| {
        write(ring, FREE, &[slot(FREE, 100, access)])?;
        supply(ring, &[slot(FREE, 16, INDIRECT | NEXT | AVAIL), slot(FREE, 100, access | AVAIL)])
    }),
    ("indirect after another buffer", |ring, access| {
        write(ring, FREE, &[slot(FREE, 100, access)])?;
        supply(ring, &[slot(FREE, 100, access | NEXT | AVAIL), slot(FREE, 16, INDIRECT | AVAIL)])
    }),
    (DISORDER, |ring, _| table(ring, 32, &[slot(FREE, 100, WRITE), slot(FREE, 100, 0)])),
    ("outside of memory in a table", |ring, access| table(ring, 16, &[slot(NOWHERE, 100, access)])),
    ("an empty table", |ring, _| table(ring, 0, &[])),
    ("a table of 15 bytes", |ring, access| table(ring, 15, &[slot(FREE, 100, access)])),
    ("a table of 4 GiB", |ring, access| table(ring, 0xffff_fff0, &[slot(FREE, 100, access)])),
    ("a table outside of memory", |ring, _| supply(ring, &[slot(NOWHERE, 16, INDIRECT | AVAIL)])),
    ("a table across a region's end", |ring, _| supply(ring, &[slot(END - 16, 32, INDIRECT | AVAIL)])),
];

/// The ring's base, as the back-end says it: the ring is stopped.
fn stop(guest: &NetFrontend, index: usize) -> u32 {
    let question = wire::vring_state(index as u32, 0);
    let reply = guest.connection().request_reply(request::GET_VRING_BASE, &question).unwrap();
    wire::parse_vring_state(&reply).unwrap().1
}

/// Takes all slots back.
fn clear(ring: &SplitRing) {
    let none = vec![slot(0, 0, 0); ring.layout().size.into()];
    write(ring, ring.layout().descriptors, &none).unwrap();
}

/// The ring passes a frame: the driver has started it again.
fn passes_a_frame(a: &mut NetFrontend, world: &mut World, index: usize) {
    if index == 1 {
        let bytes = [&[0; 12][..], &numbered(World::D, World::A, 5)].concat();
        a.memory().write(FREE + 4096, &bytes).unwrap();
        supply(a.ring(1), &[slot(FREE + 4096, bytes.len() as u32, AVAIL)]).unwrap();
        expect_number(&mut world.d, World::A, 5);
    } else {
        supply(a.ring(0), &[slot(FREE + 4096, 2048, WRITE | AVAIL)]).unwrap();
        world.d.send_frame(&numbered(frame::BROADCAST, World::D, 6)).unwrap();
    }
    let at = a.ring(index).layout().descriptors;
    let flags = |a: &NetFrontend| a.memory().load_u16(at + 14).unwrap();
    eventually("the buffer is used", || flags(a) & (AVAIL | USED) == AVAIL | USED);
    let (id, len) = (a.memory().load_u16(at + 12).unwrap(), a.memory().load_u16(at + 8).unwrap());
    let written = 12 + numbered(World::A, World::D, 6).len() as u16;
    assert_eq!((id, len), (ID, if index == 1 { 0 } else { written }), "ring {index}");
}

/// Breaks the ring in every way. As with split rings, it alone stops: one line in the log, one signal, one count.
fn break_rings(index: usize) {
    let mut world = World::new();
    for (name, spoil) in FAULTS.iter().filter(|(name, _)| index == 0 || *name != DISORDER) {
        let failed = world.server.counters().unwrap().get("a", "failed rings");
        let mark = Mark::now(&world.server);
        let mut a = attach_with_err(&world, PACKED);
        assert_eq!(a.features() & PACKED, PACKED, "all is offered");
        spoil(a.ring(index), if index == 0 { WRITE } else { 0 }).unwrap();
        if index == 0 {
            // A receive ring is looked at when there is a frame for it.
            world.d.send_frame(&numbered(frame::BROADCAST, World::D, 0)).unwrap();
        }
        assert_eq!(a.ring(index).error.wait(SOON).unwrap(), 1, "{name}: the front-end is told");
        mark.wait_for(&mut world.server, "WARN");
        world.honest.check();
        assert!(is_answered(&a), "{name}: the session has ended");
        // The other ring lives.
        passes_a_frame(&mut a, &mut world, 1 - index);

        assert_eq!(stop(&a, index), 0x8000_8000, "{name}: nothing was taken");
        clear(a.ring(index));
        a.restart_ring(index, 0x8000).unwrap();
        passes_a_frame(&mut a, &mut world, index);
        assert_eq!(stop(&a, index), 0x8001_8001, "{name}");
        assert_eq!(world.server.counters().unwrap().get("a", "failed rings"), failed + 1, "{name}");
        let detach = Mark::now(&world.server);
        drop(a);
        detach.wait_for(&mut world.server, "port a: front-end detached");
        mark.expect_one_warning(&world.server, name, "a", &format!("vring {index} "));
    }
    world.finish();
}

/// [VU-BE-ring-states-01] A stopped ring is not processed; the session and the other ring live.
#[test]
fn broken_packed_transmit_rings() {
    break_rings(1);
}

#[test]
fn broken_packed_receive_rings() {
    break_rings(0);
}
