//! Drivers that break their rings, send what is no frame, take their memory away, or never give buffers.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Result;
use ringway_testkit::frontend::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use ringway_testkit::frontend::wire::{feature, request};
use ringway_testkit::frontend::{
    Arrangement, Descriptor, NetFrontend, Options, RxPolicy, SplitRing, VnetHeader, frame,
};

use crate::common::{
    FEATURES, Mark, QUIET, SOON, World, drain, eventually, exchange, expect_number, is_answered, number_of,
    numbered, options, switch, up, warnings,
};

const NEXT: u16 = DESC_NEXT;
const WRITE: u16 = DESC_WRITE;
const INDIRECT: u16 = DESC_INDIRECT;
/// Guest memory that no ring and no buffer of the front-end uses.
pub(super) const FREE: u64 = 4 << 30;
/// The end of the first region.
pub(super) const END: u64 = 128 << 20;
/// An address in no region.
pub(super) const NOWHERE: u64 = 1 << 40;

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { addr, len, flags, next }
}

/// What a driver does to its ring, which has a chain of `access` buffers.
struct Fault {
    name: &'static str,
    /// Whether `INDIRECT_DESC` is negotiated.
    indirect: bool,
    spoil: fn(&mut SplitRing, access: u16) -> Result<()>,
}

/// Makes the chain at descriptor 0 available.
fn chain(ring: &mut SplitRing, descriptors: &[Descriptor]) -> Result<()> {
    for (index, descriptor) in (0..).zip(descriptors) {
        ring.write_descriptor(index, *descriptor)?;
    }
    ring.push_raw(0)?;
    ring.publish_and_kick().map(drop)
}

/// Makes a chain available whose only descriptor refers to a table of `len` bytes that holds these.
fn table(ring: &mut SplitRing, len: u32, descriptors: &[Descriptor]) -> Result<()> {
    for (at, descriptor) in (FREE..).step_by(16).zip(descriptors) {
        ring.memory().write(at, &descriptor.to_bytes())?;
    }
    chain(ring, &[desc(FREE, len, INDIRECT, 0)])
}

/// The faults that a transmit ring and a receive ring can have alike. `access` is the flag of an ordinary
/// buffer of the ring.
const FAULTS: &[Fault] = &[
    fault("the available index jumps", |ring, _| {
        let far = ring.next_available().wrapping_add(ring.layout().size + 1);
        ring.write_available_index(far)?;
        ring.kick.signal()
    }),
    fault("the available index goes back", |ring, _| {
        ring.write_available_index(ring.next_available().wrapping_sub(1))?;
        ring.kick.signal()
    }),
    fault("head outside of the table", |ring, _| {
        ring.push_raw(ring.layout().size)?;
        ring.publish_and_kick().map(drop)
    }),
    fault("head 65535", |ring, _| {
        ring.push_raw(0xffff)?;
        ring.publish_and_kick().map(drop)
    }),
    fault("next outside of the table", |ring, access| {
        chain(ring, &[desc(FREE, 100, access | NEXT, ring.layout().size)])
    }),
    fault("a chain into itself", |ring, access| chain(ring, &[desc(FREE, 100, access | NEXT, 0)])),
    fault("a loop of two", |ring, access| {
        chain(ring, &[desc(FREE, 100, access | NEXT, 1), desc(FREE, 100, access | NEXT, 0)])
    }),
    fault("a loop of empty buffers", |ring, access| chain(ring, &[desc(FREE, 0, access | NEXT, 0)])),
    fault("readable after writable", |ring, _| {
        chain(ring, &[desc(FREE, 100, WRITE | NEXT, 1), desc(FREE, 100, 0, 0)])
    }),
    fault("a buffer outside of memory", |ring, access| chain(ring, &[desc(NOWHERE, 100, access, 0)])),
    fault("the second buffer outside of memory", |ring, access| {
        chain(ring, &[desc(FREE, 100, access | NEXT, 1), desc(NOWHERE, 100, access, 0)])
    }),
    fault("a buffer across a region's end", |ring, access| chain(ring, &[desc(END - 50, 51, access, 0)])),
    fault("a buffer that wraps", |ring, access| chain(ring, &[desc(u64::MAX - 8, 64, access, 0)])),
    fault("a buffer of 4 GiB", |ring, access| chain(ring, &[desc(FREE, u32::MAX, access, 0)])),
    fault("4 GiB in many buffers", |ring, access| {
        let all = |next| desc(FREE, 128 << 20, access | NEXT, next);
        let many: Vec<_> = (1..33).map(all).chain([desc(FREE, 128 << 20, access, 0)]).collect();
        for (at, descriptor) in (FREE..).step_by(16).zip(&many) {
            ring.memory().write(at, &descriptor.to_bytes())?;
        }
        chain(ring, &[desc(FREE, 16 * 33, INDIRECT, 0)])
    }),
    Fault {
        name: "indirect, not negotiated",
        indirect: false,
        spoil: |ring, access| table(ring, 16, &[desc(FREE + 4096, 100, access, 0)]),
    },
    fault("indirect in indirect", |ring, _| table(ring, 16, &[desc(FREE + 4096, 16, INDIRECT, 0)])),
    fault("indirect with a successor", |ring, access| {
        ring.memory().write(FREE, &desc(FREE + 4096, 100, access, 0).to_bytes())?;
        chain(ring, &[desc(FREE, 16, INDIRECT | NEXT, 1), desc(FREE, 100, access, 0)])
    }),
    fault("an empty table", |ring, _| table(ring, 0, &[])),
    fault("a table of 15 bytes", |ring, access| table(ring, 15, &[desc(FREE + 4096, 100, access, 0)])),
    fault("a table of 17 bytes", |ring, access| table(ring, 17, &[desc(FREE + 4096, 100, access, 0)])),
    fault("a table of a megabyte", |ring, access| {
        table(ring, 1 << 20, &[desc(FREE + (2 << 20), 100, access, 0)])
    }),
    fault("a table of 4 GiB", |ring, access| table(ring, 0xffff_fff0, &[desc(FREE, 100, access, 0)])),
    fault("a table outside of memory", |ring, _| chain(ring, &[desc(NOWHERE, 16, INDIRECT, 0)])),
    fault("a table across a region's end", |ring, _| chain(ring, &[desc(END - 16, 32, INDIRECT, 0)])),
    fault("a table that wraps", |ring, _| chain(ring, &[desc(u64::MAX - 15, 32, INDIRECT, 0)])),
    fault("a table that loops", |ring, access| {
        table(ring, 32, &[desc(FREE, 100, access | NEXT, 1), desc(FREE, 100, access | NEXT, 0)])
    }),
    fault("next outside of the indirect table", |ring, access| {
        table(ring, 32, &[desc(FREE, 100, access | NEXT, 2)])
    }),
    fault("readable after writable in a table", |ring, _| {
        table(ring, 32, &[desc(FREE, 100, WRITE | NEXT, 1), desc(FREE, 100, 0, 0)])
    }),
    fault("outside of memory in a table", |ring, access| table(ring, 16, &[desc(NOWHERE, 100, access, 0)])),
];

const fn fault(name: &'static str, spoil: fn(&mut SplitRing, u16) -> Result<()>) -> Fault {
    Fault { name, indirect: true, spoil }
}

/// A front-end that gives no receive buffers, and its err file descriptors before its kicks.
pub(super) fn attach_with_err(world: &World, features: u64) -> NetFrontend {
    let withheld = Options { rx_policy: RxPolicy::Never, ..options() };
    let mut a = NetFrontend::connect(world.server.socket("a"), withheld).unwrap();
    a.negotiate(features).unwrap();
    for ring in 0..2 {
        let error = a.ring(ring).error.as_fd().try_clone_to_owned().unwrap();
        a.tell(request::SET_VRING_ERR, &(ring as u64).to_le_bytes(), &[error.as_fd()]).unwrap();
    }
    a.start().unwrap();
    a
}

/// Breaks the ring in every way. The ring alone stops: one line in the log, one signal, one count. The session
/// goes on, and when the driver has started the ring again, frames pass.
fn break_rings(index: usize, faults: impl Iterator<Item = &'static Fault>) {
    let mut world = World::new();
    for Fault { name, indirect, spoil } in faults {
        let failed = world.server.counters().unwrap().get("a", "failed rings");
        let mark = Mark::now(&world.server);
        let features = if *indirect { FEATURES } else { FEATURES & !feature::INDIRECT_DESC };
        let mut a = attach_with_err(&world, features);
        let access = if index == 0 { WRITE } else { 0 };
        spoil(a.ring(index), access).unwrap();
        if index == 0 {
            // A receive ring is looked at when there is a frame for it.
            world.d.send_frame(&numbered(frame::BROADCAST, World::D, 0)).unwrap();
        }
        assert_eq!(a.ring(index).error.wait(SOON).unwrap(), 1, "{name}: the front-end is told");
        mark.wait_for(&mut world.server, "WARN");
        world.honest.check();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(a.ring(index).error.take().unwrap(), 0, "{name}: told again");
        assert!(is_answered(&a), "{name}: the session has ended");

        a.stop().unwrap();
        a.pair(0).reset(0).unwrap();
        for ring in 0..2 {
            a.restart_ring(ring, 0).unwrap();
        }
        a.pair(0).post().unwrap();
        exchange((&mut a, World::A), (&mut world.d, World::D));
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
fn broken_transmit_rings() {
    break_rings(1, FAULTS.iter());
}

#[test]
fn broken_receive_rings() {
    break_rings(0, FAULTS.iter());
}

/// A broken ring leaves the session's other ring alone.
#[test]
fn the_other_ring_goes_on() {
    let mut world = World::new();
    let mut a = world.attach();
    exchange((&mut a, World::A), (&mut world.d, World::D));
    chain(a.ring(1), &[desc(NOWHERE, 100, 0, 0)]).unwrap();
    eventually("the ring fails", || world.server.counters().unwrap().get("a", "failed rings") == 1);
    world.d.send_frame(&numbered(World::A, World::D, 77)).unwrap();
    expect_number(&mut a, World::D, 77);
    drop(a);
    world.check();
    world.finish();
}

/// [VU-BE-ring-states-09] The err file descriptor of a ring that runs already counts too.
#[test]
fn err_after_the_start() {
    let world = World::new();
    let mut a = world.attach();
    let error = a.ring(1).error.as_fd().try_clone_to_owned().unwrap();
    a.tell(request::SET_VRING_ERR, &1u64.to_le_bytes(), &[error.as_fd()]).unwrap();
    chain(a.ring(1), &[desc(NOWHERE, 100, 0, 0)]).unwrap();
    assert_eq!(a.ring(1).error.wait(SOON).unwrap(), 1);
    drop(a);
    world.finish();
}

/// Longest chains that are allowed, and one more.
#[test]
fn long_chains() {
    let mut world = World::new();
    let mut a = world.attach();
    let bytes = [&[0; 12][..], &numbered(World::D, World::A, 5)].concat();
    let memory = std::sync::Arc::clone(a.memory());
    memory.write(FREE + (1 << 20), &bytes).unwrap();
    for (count, is_taken) in [(1024_u64, true), (1025, false)] {
        for n in 0..count {
            // One buffer has the frame, the others are empty.
            let len = if n == count / 2 { bytes.len() as u32 } else { 0 };
            let next = if n + 1 < count { NEXT } else { 0 };
            let d = desc(FREE + (1 << 20), len, next, n as u16 + 1);
            memory.write(FREE + 16 * n, &d.to_bytes()).unwrap();
        }
        chain(a.ring(1), &[desc(FREE, 16 * count as u32, INDIRECT, 0)]).unwrap();
        if is_taken {
            expect_number(&mut world.d, World::A, 5);
        } else {
            eventually("it is refused", || world.server.counters().unwrap().get("a", "failed rings") == 1);
        }
    }
    drop(a);
    world.finish();
}

// ---- Frames ----

/// [DEV-SPLIT-message-framing-01] What is too short or too long for a frame is dropped and counted; the ring
/// goes on.
#[test]
fn runts_and_giants() {
    const GIANT: usize = 65535 + 18 + 1;
    let mut world = World::new();
    let mut a = up(&world.server, "a", FEATURES, Options { max_frame: 70_000, ..options() });
    let mark = Mark::now(&world.server);
    // Shorter than the header.
    for len in 0..12 {
        chain(a.ring(1), &[desc(FREE, len, 0, 0)]).unwrap();
        a.ring(1).kick.signal().unwrap();
    }
    // Only writable: nothing to read at all.
    chain(a.ring(1), &[desc(FREE, 100, WRITE, 0)]).unwrap();
    eventually("headers are counted", || world.server.counters().unwrap().get("a", "malformed") == 13);
    // The front-end's books know nothing of these chains.
    a.stop().unwrap();
    a.pair(0).reset(0).unwrap();
    for ring in 0..2 {
        a.restart_ring(ring, 0).unwrap();
    }
    a.pair(0).post().unwrap();
    for len in 0..14 {
        a.send_frame(&vec![2; len]).unwrap();
    }
    for len in [GIANT, GIANT + 1, 70_000] {
        a.send_frame(&vec![2; len]).unwrap();
    }
    let pieces = Arrangement::pieces(&[12, 1, 1, 1]);
    a.send_frame_with_header(&VnetHeader::default(), &[2; 13], &pieces).unwrap();
    a.pair(0).wait_sent(SOON).unwrap();
    exchange((&mut a, World::A), (&mut world.d, World::D));
    drop(a);
    let counters = world.server.counters().unwrap();
    assert_eq!(counters.get("a", "malformed"), 13 + 14 + 3 + 1);
    assert_eq!(counters.get("a", "failed rings"), 0);
    assert_eq!(warnings(&mark.log(&world.server)), [""; 0]);
    world.finish();
}

/// [DEV-NET-packet-transmission-02] The shortest and the longest frames pass, with the lying header fields of a
/// driver that negotiated no offload.
#[test]
fn the_shortest_and_the_longest_frame() {
    let world = World::new();
    drop(world.d);
    let features = FEATURES | feature::NET_MRG_RXBUF;
    let mut a = up(&world.server, "a", features, Options { max_frame: 65_553, ..options() });
    let mut d = up(&world.server, "d", features, Options { rx_chain: vec![8192], ..options() });
    let junk = VnetHeader {
        flags: 0xfe,
        csum_start: 0xffff,
        csum_offset: 0xffff,
        num_buffers: 9,
        ..VnetHeader::default()
    };
    for len in [14, 15, 17, 18, 60, 1514, 9014, 65_553] {
        let mut bytes = numbered(World::D, World::A, len as u64);
        bytes.resize(len, 0x5a);
        a.send_frame_with_header(&junk, &bytes, &Arrangement::whole()).unwrap();
        let (header, got) = d.recv_frame(SOON).unwrap().unwrap();
        assert_eq!((header.flags, header.gso_type, header.csum_start), (0, 0, 0), "{len}");
        assert!(got == bytes, "{len} bytes arrive unchanged, not {}", got.len());
    }
    drop((a, d));
    world.honest.finish();
}

// ---- Memory that goes away ----

/// A front-end whose rings are in a region of two pages, its buffers in another.
fn split_memory() -> Options {
    Options { memory: vec![(0, 8192, 0), (4 << 30, 64 << 20, 0)], ..options() }
}

/// Attaches at port a, passes traffic if `warm`, does `spoil`, and expects the end of the session: one line in
/// the log; the others go on; the port takes another.
fn take_memory_away(name: &str, warm: bool, spoil: impl FnOnce(&mut World, &mut NetFrontend)) {
    let mut world = World::new();
    let mark = Mark::now(&world.server);
    let mut a = up(&world.server, "a", FEATURES, split_memory());
    if warm {
        exchange((&mut a, World::A), (&mut world.d, World::D));
    }
    spoil(&mut world, &mut a);
    assert!(a.connection().is_closed(SOON).unwrap(), "{name}: the session goes on");
    drop(a);
    world.honest.check();
    world.check();
    mark.expect_one_warning(&world.server, name, "a", "took away memory");
    assert_eq!(world.server.counters().unwrap().get("a", "failed rings"), 2, "{name}: both rings, once");
    world.finish();
}

#[test]
fn rings_in_memory_that_is_gone() {
    take_memory_away("rings", true, |_, a| {
        a.memory().truncate(0, 0).unwrap();
        a.ring(1).kick.signal().unwrap();
    });
}

/// The same before the first frame: where the ring was, the device finds what looks like an empty ring.
#[test]
fn fresh_rings_in_memory_that_is_gone() {
    take_memory_away("fresh rings", false, |_, a| {
        a.memory().truncate(0, 0).unwrap();
        a.ring(1).kick.signal().unwrap();
    });
}

#[test]
fn frames_in_memory_that_is_gone() {
    take_memory_away("transmit buffers", true, |_, a| {
        a.memory().truncate(1, 0).unwrap();
        chain(a.ring(1), &[desc(FREE + 4096, 200, 0, 0)]).unwrap();
    });
}

#[test]
fn receive_buffers_in_memory_that_is_gone() {
    take_memory_away("receive buffers", true, |world, a| {
        a.memory().truncate(1, 0).unwrap();
        world.d.send_frame(&numbered(World::A, World::D, 1)).unwrap();
    });
}

#[test]
fn a_table_in_memory_that_is_gone() {
    take_memory_away("indirect table", true, |_, a| {
        a.memory().truncate(1, 0).unwrap();
        chain(a.ring(1), &[desc(FREE + 4096, 64, INDIRECT, 0)]).unwrap();
    });
}

/// A front-end that takes its memory away and leaves at once costs the next one nothing.
#[test]
fn memory_taken_away_by_the_one_before() {
    let mut world = World::new();
    for round in 0..100 {
        let mut a = up(&world.server, "a", FEATURES, split_memory());
        a.memory().truncate(1, 0).unwrap();
        chain(a.ring(1), &[desc(FREE + 4096, 200, 0, 0)]).unwrap();
        drop(a);
        let mut next = world.attach();
        exchange((&mut next, World::A), (&mut world.d, World::D));
        assert!(is_answered(&next), "round {round}");
    }
    world.check();
    world.finish();
}

/// Memory that is cut only where nothing is: nobody notices.
#[test]
fn memory_cut_where_nothing_is() {
    let mut world = World::new();
    let mut a = up(&world.server, "a", FEATURES, split_memory());
    a.memory().truncate(1, 32 << 20).unwrap();
    exchange((&mut a, World::A), (&mut world.d, World::D));
    drop(a);
    world.check();
    world.finish();
}

// ---- Guests that do not take what is sent to them ----

/// Frames to a guest that gives no buffers are dropped and counted there; another receiver gets all of its own.
#[test]
fn a_guest_that_never_takes_frames() {
    const FRAMES: u64 = 1000;
    let server = switch(&["a", "b", "d"]);
    let a = up(&server, "a", FEATURES, Options { rx_policy: RxPolicy::Never, ..options() });
    let mut b = up(&server, "b", FEATURES, Options { ring_size: 64, ..options() });
    let mut d = up(&server, "d", FEATURES, options());
    for first in (0..FRAMES).step_by(50) {
        for number in first..first + 50 {
            d.send_frame(&numbered(frame::BROADCAST, World::D, number)).unwrap();
        }
        for number in first..first + 50 {
            expect_number(&mut b, World::D, number);
        }
    }
    let counters = server.counters().unwrap();
    assert_eq!(counters.get("d", "from"), FRAMES);
    assert_eq!((counters.get("b", "to"), counters.dropped("b")), (FRAMES, 0));
    assert_eq!((counters.get("a", "to"), counters.get("a", "no-buffer")), (0, FRAMES));
    drop(a);
}

/// A guest whose buffers run dry gets as many frames as it had buffers, the first ones.
#[test]
fn a_guest_whose_buffers_run_dry() {
    let server = switch(&["a", "d"]);
    let mut a = up(&server, "a", FEATURES, Options { rx_policy: RxPolicy::Once, ..options() });
    let mut d = up(&server, "d", FEATURES, options());
    for number in 0..100 {
        d.send_frame(&numbered(frame::BROADCAST, World::D, number)).unwrap();
    }
    d.pair(0).wait_sent(SOON).unwrap();
    let got: Vec<_> = drain(&mut a, QUIET).iter().map(|f| number_of(f, World::D).unwrap()).collect();
    assert_eq!(got, (0..16).collect::<Vec<_>>());
    let counters = server.counters().unwrap();
    assert_eq!((counters.get("a", "to"), counters.get("a", "no-buffer")), (16, 84));
}

/// The switch table cannot be filled to the others' harm: addresses of a flood push nobody's out.
#[test]
fn a_flood_of_addresses() {
    let mut world = World::new();
    let mut a = up(&world.server, "a", FEATURES, Options { ring_size: 256, ..options() });
    for n in 0..10_000_u32 {
        let [b0, b1, b2, b3] = n.to_be_bytes();
        // To a's own address: nothing is flooded.
        let bytes = numbered(World::A, if n == 0 { World::A } else { [6, 0, b0, b1, b2, b3] }, 0);
        while !a.pair(0).enqueue(&VnetHeader::default(), &bytes, &Arrangement::whole()).unwrap() {
            a.pair(0).flush().unwrap();
        }
    }
    a.pair(0).flush().unwrap();
    a.pair(0).wait_sent(SOON).unwrap();
    world.honest.check();
    drop(a);
    world.check();
    world.finish();
}
