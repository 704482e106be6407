//! Rings of every size, at every position, started, stopped, enabled, disabled, notified and not.

use std::os::fd::AsFd;
use std::time::Duration;

use ringway_testkit::frontend::ring::AVAIL_NO_INTERRUPT;
use ringway_testkit::frontend::wire::{NO_FD, feature, request};
use ringway_testkit::frontend::{
    Arrangement, Buffer, Enable, Event, NetFrontend, Options, RxPolicy, VnetHeader, frame,
};

use crate::common::{
    FEATURES, QUIET, SOON, drain, eventually, exchange, expect_number, number_of, numbered, options, up,
};
use crate::{A, D, two_ports};

/// Frames each way, several at a time.
fn many_frames(a: &mut NetFrontend, d: &mut NetFrontend, batch: u64) {
    exchange((a, A), (d, D));
    for first in (0..300).step_by(batch as usize) {
        for number in first..first + batch {
            a.send_frame(&numbered(D, A, number)).unwrap();
            d.send_frame(&numbered(A, D, number)).unwrap();
        }
        for number in first..first + batch {
            expect_number(d, A, number);
            expect_number(a, D, number);
        }
    }
}

/// [DEV-SPLIT-used-ring-01] [DEV-SPLIT-used-ring-02] Rings of every size, both with and without event indices,
/// from a start near the indices' wrap: all frames arrive, in order and whole.
#[test]
fn sizes_and_wraps() {
    let (server, mut d) = two_ports();
    for (ring_size, batch) in [(1, 1), (2, 1), (256, 30), (1024, 30)] {
        for vring_base in [0, 65530, 32760] {
            for features in [FEATURES, feature::VERSION_1] {
                let guest = Options { ring_size, vring_base, max_frame: 2000, ..options() };
                let mut a = up(&server, "a", features, guest);
                many_frames(&mut a, &mut d, batch);
            }
        }
    }
    let dropped = server.counters().unwrap();
    assert_eq!((dropped.dropped("a"), dropped.dropped("d")), (0, 1), "{dropped:?}");
}

/// The longest ring there is.
#[test]
fn a_ring_of_32768() {
    let (server, mut d) = two_ports();
    let guest = Options {
        ring_size: 32768,
        vring_base: 65000,
        memory: vec![(0, 1 << 30, 0)],
        max_frame: 200,
        rx_chain: vec![1600],
        ..options()
    };
    let mut a = up(&server, "a", FEATURES, guest);
    many_frames(&mut a, &mut d, 60);
    // All of it at once, to nobody: every chain comes back.
    for _ in 0..32768 {
        assert!(
            a.pair(0).enqueue(&VnetHeader::default(), &numbered(A, A, 0), &Arrangement::whole()).unwrap()
        );
    }
    a.pair(0).flush().unwrap();
    a.pair(0).wait_sent(SOON).unwrap();
    many_frames(&mut a, &mut d, 60);
}

/// [VU-BE-get-vring-base-01] [VU-BE-set-vring-base-01] [VU-BE-ring-states-07] Rings stop and start again in the
/// middle of traffic: what the driver sends arrives, all of it; what it is sent arrives or is counted. A
/// stopped ring has nothing in flight.
#[test]
fn stop_and_restart_under_traffic() {
    let (server, mut d) = two_ports();
    let guest = Options { ring_size: 64, vring_base: 65500, ..options() };
    let mut a = up(&server, "a", FEATURES, guest);
    exchange((&mut a, A), (&mut d, D));
    let before = server.counters().unwrap();
    let (mut at_a, mut at_d) = (Vec::new(), Vec::new());
    let collect = |to: &mut NetFrontend, src, limit| {
        drain(to, limit).iter().filter_map(|f| number_of(f, src)).collect::<Vec<_>>()
    };
    for round in 0..50_u64 {
        for n in 0..20 {
            a.send_frame(&numbered(D, A, round * 20 + n)).unwrap();
            d.send_frame(&numbered(A, D, round * 20 + n)).unwrap();
        }
        let ring = (round % 2) as usize;
        let base = a.stop_ring(ring).unwrap();
        assert_eq!(base, a.ring(ring).used_index().unwrap(), "what was taken was used");
        at_d.extend(collect(&mut d, A, Duration::ZERO));
        a.restart_ring(ring, base).unwrap();
        at_a.extend(collect(&mut a, D, Duration::ZERO));
    }
    a.pair(0).wait_sent(SOON).unwrap();
    d.pair(0).wait_sent(SOON).unwrap();
    at_d.extend(collect(&mut d, A, QUIET));
    at_a.extend(collect(&mut a, D, QUIET));
    let after = server.counters().unwrap();
    assert_eq!(at_d, (0..1000).collect::<Vec<_>>(), "all in order");
    assert!(at_a.is_sorted());
    assert_eq!(at_a.len() as u64 + after.dropped("a") - before.dropped("a"), 1000, "{after:?}");
    many_frames(&mut a, &mut d, 10);
}

/// [VU-BE-ring-states-01] A stopped ring is not touched, enabled or not.
#[test]
fn a_stopped_ring_is_left_alone() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    exchange((&mut a, A), (&mut d, D));
    let bases = a.stop().unwrap();
    for enable in [true, false, true] {
        for ring in 0..2 {
            a.enable_ring(ring, enable).unwrap();
        }
        d.send_frame(&numbered(A, D, 5)).unwrap();
        a.send_frame(&numbered(D, A, 5)).unwrap();
        std::thread::sleep(QUIET);
        for (ring, base) in bases.iter().enumerate() {
            assert_eq!(a.ring(ring).used_index().unwrap(), *base, "ring {ring}");
        }
    }
    // [VU-BE-ring-states-02]: the last state counts when the ring starts.
    a.start_ring(1, bases[1]).unwrap();
    for _ in 0..3 {
        expect_number(&mut d, A, 5);
    }
}

/// [VU-BE-ring-states-03] [VU-BE-ring-states-04] [VU-BE-ring-states-05] [VU-BE-ring-states-06] Rings start
/// disabled: what is sent is thrown away and counted, nothing is received; once enabled, they are like any.
#[test]
fn disabled_rings() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, Options { enable: Enable::Never, ..options() });
    for round in 1..4 {
        for n in 0..10 {
            a.send_frame(&numbered(D, A, n)).unwrap();
            d.send_frame(&numbered(frame::BROADCAST, D, n)).unwrap();
        }
        a.pair(0).wait_sent(SOON).unwrap();
        d.pair(0).wait_sent(SOON).unwrap();
        assert_eq!(a.recv_frame(QUIET).unwrap(), None);
        assert_eq!(d.recv_frame(QUIET).unwrap(), None);
        assert_eq!(server.counters().unwrap().get("a", "disabled"), round * 10);
        for ring in 0..2 {
            a.enable_ring(ring, true).unwrap();
        }
        exchange((&mut a, A), (&mut d, D));
        for ring in 0..2 {
            a.enable_ring(ring, false).unwrap();
        }
    }
}

/// [VU-BE-ring-states-08] Features without bit 30 enable the rings, which then start enabled: a front-end from
/// before protocol features, with a driver from before version 1.
#[test]
fn features_without_bit_30_enable_rings() {
    let (server, mut d) = two_ports();
    let mut a = NetFrontend::connect(server.socket("a"), options()).unwrap();
    a.connection().request(request::SET_OWNER, &[], &[]).unwrap();
    a.connection().request_u64(request::GET_FEATURES).unwrap();
    a.connection().request(request::SET_FEATURES, &0u64.to_le_bytes(), &[]).unwrap();
    a.share_memory().unwrap();
    for ring in 0..2 {
        a.start_ring(ring, 0).unwrap();
    }
    a.pair(0).post().unwrap();
    exchange((&mut a, A), (&mut d, D));
}

/// [VU-BE-ring-states-08] The same for rings that run already and are disabled.
#[test]
fn features_without_bit_30_enable_rings_that_run() {
    let (server, mut d) = two_ports();
    let features = FEATURES | feature::PROTOCOL_FEATURES;
    let mut a = up(&server, "a", FEATURES, Options { enable: Enable::Never, ..options() });
    a.tell(request::SET_FEATURES, &(features & !feature::PROTOCOL_FEATURES).to_le_bytes(), &[]).unwrap();
    exchange((&mut a, A), (&mut d, D));
    for ring in 0..2 {
        a.enable_ring(ring, false).unwrap();
    }
    // The same features once more are features without bit 30 too.
    a.tell(request::SET_FEATURES, &(features & !feature::PROTOCOL_FEATURES).to_le_bytes(), &[]).unwrap();
    exchange((&mut a, A), (&mut d, D));
}

/// A frame that was made available, and kicked, before the ring started is sent when it does.
#[test]
fn a_kick_before_the_start_is_not_lost() {
    for enable in [Enable::BeforeStart, Enable::Twice] {
        let (server, mut d) = two_ports();
        let mut a = NetFrontend::connect(server.socket("a"), Options { enable, ..options() }).unwrap();
        a.negotiate(FEATURES).unwrap();
        let bytes = [&[0; 12][..], &numbered(D, A, 3)].concat();
        a.memory().write(4 << 30, &bytes).unwrap();
        a.ring(1).add(&[Buffer::readable(4 << 30, bytes.len() as u32)]).unwrap();
        a.ring(1).publish_and_kick().unwrap();
        a.start().unwrap();
        expect_number(&mut d, A, 3);
    }
}

/// Receive buffers that are there before the ring is enabled are used after, without a kick.
#[test]
fn buffers_before_enable_are_used() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, Options { enable: Enable::Never, ..options() });
    a.ring(0).kick.take().unwrap();
    a.enable_ring(0, true).unwrap();
    d.send_frame(&numbered(frame::BROADCAST, D, 3)).unwrap();
    expect_number(&mut a, D, 3);
}

/// [VU-BE-set-vring-kick-01] Without a kick file descriptor the ring is polled.
#[test]
fn a_ring_without_kick_is_polled() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    a.tell(request::SET_VRING_KICK, &(1 | NO_FD).to_le_bytes(), &[]).unwrap();
    a.ring(1).kick_policy = ringway_testkit::frontend::ring::KickPolicy::Never;
    for number in 0..5 {
        std::thread::sleep(Duration::from_millis(5));
        a.send_frame(&numbered(D, A, number)).unwrap();
        expect_number(&mut d, A, number);
    }
    // And with one again, it is waited for.
    let kick = Event::new().unwrap();
    a.tell(request::SET_VRING_KICK, &1u64.to_le_bytes(), &[kick.as_fd()]).unwrap();
    std::thread::sleep(QUIET);
    a.send_frame(&numbered(D, A, 9)).unwrap();
    kick.signal().unwrap();
    expect_number(&mut d, A, 9);
}

/// [VU-BE-ring-states-09] The addresses of a running ring are told once more, and its call is taken away.
#[test]
fn a_running_ring_is_configured() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES & !feature::EVENT_IDX, options());
    exchange((&mut a, A), (&mut d, D));
    for ring in 0..2 {
        let address = a.vring_address(ring).to_bytes();
        a.tell(request::SET_VRING_ADDR, &address, &[]).unwrap();
    }
    exchange((&mut a, A), (&mut d, D));
    a.tell(request::SET_VRING_CALL, &NO_FD.to_le_bytes(), &[]).unwrap();
    exchange((&mut a, A), (&mut d, D));
}

/// [VU-BE-ring-states-09] A call that replaces another is the one that is called once the front-end knows that
/// it was taken: it may not look at the old one any more.
#[test]
fn a_call_that_is_replaced() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES & !feature::EVENT_IDX, options());
    exchange((&mut a, A), (&mut d, D));
    let mut old = Event::new().unwrap();
    for number in 0..300 {
        let call = Event::new().unwrap();
        a.tell(request::SET_VRING_CALL, &0u64.to_le_bytes(), &[call.as_fd()]).unwrap();
        old.take().unwrap();
        d.send_frame(&numbered(A, D, number)).unwrap();
        let calls = call.wait(SOON / 4).unwrap();
        assert!(calls > 0, "call {number} is not called, the one before it {} times", old.take().unwrap());
        expect_number(&mut a, D, number);
        old = call;
    }
}

/// [VU-BE-ring-states-04] [VU-BE-ring-states-05] What a ring is once the front-end knows that its change was
/// taken, it is: no frame of a ring that is enabled is thrown away, none of one that is disabled passes.
#[test]
fn an_acknowledged_state_is_in_effect() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    exchange((&mut a, A), (&mut d, D));
    for number in 1..300 {
        a.enable_ring(1, true).unwrap();
        a.send_frame(&numbered(D, A, 2 * number)).unwrap();
        expect_number(&mut d, A, 2 * number);
        a.enable_ring(1, false).unwrap();
        a.send_frame(&numbered(D, A, 2 * number + 1)).unwrap();
        a.pair(0).wait_sent(SOON).unwrap();
        assert_eq!(server.counters().unwrap().get("a", "disabled"), number);
    }
}

/// One frame for a, whose used buffer is not looked at; how often a was called for it.
fn calls_for_a_frame(a: &mut NetFrontend, d: &mut NetFrontend) -> u64 {
    a.ring(0).call.take().unwrap();
    let used = a.ring(0).used_index().unwrap();
    d.send_frame(&numbered(A, D, 1)).unwrap();
    eventually("the frame is there", || a.ring(0).used_index().unwrap() != used);
    a.ring(0).call.wait(QUIET).unwrap()
}

/// [DEV-SPLIT-used-buffer-notification-suppression-01] [DEV-SPLIT-used-buffer-notification-suppression-02]
/// [DEV-SPLIT-used-buffer-notification-suppression-03] Without event indices, the flag decides.
#[test]
fn calls_by_the_flag() {
    let (server, mut d) = two_ports();
    let guest = Options { rx_policy: RxPolicy::Once, ..options() };
    let mut a = up(&server, "a", feature::VERSION_1, guest);
    a.send_frame(&numbered(D, A, 1)).unwrap();
    expect_number(&mut d, A, 1);
    for used_event in [0, 1, 2, 3, 1000] {
        a.ring(0).write_used_event(used_event).unwrap();
        for (flags, calls) in [(0, 1), (AVAIL_NO_INTERRUPT, 0)] {
            a.ring(0).write_available_flags(flags).unwrap();
            assert_eq!(calls_for_a_frame(&mut a, &mut d), calls, "flags {flags}, used_event {used_event}");
        }
    }
}

/// [DEV-SPLIT-used-buffer-notification-suppression-04] [DEV-SPLIT-used-buffer-notification-suppression-05]
/// [DEV-SPLIT-used-buffer-notification-suppression-06] With event indices, the index decides, also where the
/// indices wrap; the flag means nothing.
#[test]
fn calls_by_the_index() {
    let (server, mut d) = two_ports();
    let guest = Options { rx_policy: RxPolicy::Once, vring_base: 65529, ..options() };
    let mut a = up(&server, "a", FEATURES, guest);
    a.send_frame(&numbered(D, A, 1)).unwrap();
    expect_number(&mut d, A, 1);
    for n in 0..12_u16 {
        a.ring(0).write_available_flags(n % 2).unwrap();
        let used = a.ring(0).used_index().unwrap();
        // The next use, the one after it, one long ago, one far ahead.
        let (ahead, calls) = [(0, 1), (1, 0), (0xffff, 0), (0x8000, 0)][usize::from(n % 4)];
        a.ring(0).write_used_event(used.wrapping_add(ahead)).unwrap();
        assert_eq!(calls_for_a_frame(&mut a, &mut d), calls, "used {used}, used_event {ahead} ahead");
    }
}

/// [DEV-SPLIT-available-buffer-notification-suppression-01]
/// [DEV-SPLIT-available-buffer-notification-suppression-02]
/// [DEV-SPLIT-available-buffer-notification-suppression-03]
/// [DEV-SPLIT-available-buffer-notification-suppression-05] The used ring's flags are 0 with event indices, 0
/// or 1 without; kicks for nothing do nothing.
#[test]
fn kicks() {
    for features in [FEATURES, FEATURES & !feature::EVENT_IDX] {
        let (server, mut d) = two_ports();
        let mut a = up(&server, "a", features, options());
        a.ring(1).kick_policy = ringway_testkit::frontend::ring::KickPolicy::IfWanted;
        let most = u16::from(features & feature::EVENT_IDX == 0);
        for number in 0..200 {
            for ring in 0..2 {
                assert!(a.ring(ring).used_flags().unwrap() <= most);
                a.ring(ring).kick.signal().unwrap();
            }
            a.send_frame(&numbered(D, A, number)).unwrap();
            expect_number(&mut d, A, number);
            if number % 50 == 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        assert_eq!(server.counters().unwrap().dropped("a"), 0);
    }
}

/// [DEV-SPLIT-desc-table-01] [DEV-SPLIT-desc-table-02] The device writes the used ring and what is writable,
/// and nothing else: not the descriptors, not the available ring, not what it reads.
#[test]
fn the_device_writes_what_it_may() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    exchange((&mut a, A), (&mut d, D));
    let bytes = [&[0; 12][..], &numbered(D, A, 1)].concat();
    a.memory().write(4 << 30, &bytes).unwrap();
    a.ring(1).add(&[Buffer::readable(4 << 30, bytes.len() as u32)]).unwrap();
    let layout = a.ring(1).layout();
    let snapshot = |a: &NetFrontend| {
        let driver = a.memory().read_vec(layout.descriptors, (layout.used - layout.descriptors) as usize);
        (driver.unwrap(), a.memory().read_vec(4 << 30, 4096).unwrap())
    };
    a.ring(1).publish().unwrap();
    let before = snapshot(&a);
    a.ring(1).kick.signal().unwrap();
    expect_number(&mut d, A, 1);
    eventually("it is used", || a.ring(1).used_index().unwrap() == a.ring(1).next_available());
    assert!(snapshot(&a) == before);
}

/// [DEV-SPLIT-indirect-descriptors-01] [DEV-SPLIT-indirect-descriptors-02] [DEV-SPLIT-message-framing-01] Chains
/// before an indirect descriptor, a write flag on it, pieces of every size: all are the same frame.
#[test]
fn every_arrangement_of_descriptors() {
    use ringway_testkit::frontend::Descriptor;
    use ringway_testkit::frontend::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    for indirect in [false, true] {
        for pieces in [
            &[][..],
            &[12],
            &[10],
            &[1],
            &[12, 14],
            &[6, 6, 6, 6],
            &[13, 13],
            &[25, 1],
            &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ] {
            let arrangement = Arrangement { pieces: pieces.to_vec(), indirect };
            a.send_frame_with_header(&VnetHeader::default(), &numbered(D, A, 4), &arrangement).unwrap();
            expect_number(&mut d, A, 4);
        }
    }
    a.pair(0).wait_sent(SOON).unwrap();
    a.stop().unwrap();
    a.pair(0).reset(0).unwrap();
    a.restart_ring(1, 0).unwrap();
    // Two ordinary descriptors, then the table with the rest.
    let frame = [&[0; 12][..], &numbered(D, A, 8)].concat();
    let (data, table) = (4u64 << 30, (4u64 << 30) + 8192);
    a.memory().write(data, &frame).unwrap();
    let at = |from: usize, to: usize, flags, next| Descriptor {
        addr: data + from as u64,
        len: (to - from) as u32,
        flags,
        next,
    };
    for (n, desc) in [at(20, 30, DESC_NEXT, 1), at(30, frame.len(), 0, 0)].into_iter().enumerate() {
        a.memory().write(table + 16 * n as u64, &desc.to_bytes()).unwrap();
    }
    for write in [0, DESC_WRITE] {
        let last = Descriptor { addr: table, len: 32, flags: DESC_INDIRECT | write, next: 0 };
        for (n, desc) in [at(0, 5, DESC_NEXT, 1), at(5, 20, DESC_NEXT, 2), last].into_iter().enumerate() {
            a.ring(1).write_descriptor(n as u16, desc).unwrap();
        }
        a.ring(1).push_raw(0).unwrap();
        a.ring(1).publish_and_kick().unwrap();
        expect_number(&mut d, A, 8);
    }
}

/// Two rings with one kick file descriptor between them are both served.
#[test]
fn one_kick_for_two_rings() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    let kick = Event::new().unwrap();
    for ring in 0..2u64 {
        a.tell(request::SET_VRING_KICK, &ring.to_le_bytes(), &[kick.as_fd()]).unwrap();
    }
    std::thread::sleep(QUIET);
    a.send_frame(&numbered(D, A, 1)).unwrap();
    kick.signal().unwrap();
    expect_number(&mut d, A, 1);
    d.send_frame(&numbered(A, D, 1)).unwrap();
    expect_number(&mut a, D, 1);
    // One of them stops; the other's kick still works.
    a.stop_ring(0).unwrap();
    std::thread::sleep(QUIET);
    a.send_frame(&numbered(D, A, 2)).unwrap();
    kick.signal().unwrap();
    expect_number(&mut d, A, 2);
}
