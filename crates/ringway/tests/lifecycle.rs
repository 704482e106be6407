//! Sessions from the first byte to the last: attach, detach, crash, reset, restart, in every order that a
//! front-end may choose, with traffic on. Nothing leaks, and no frame is lost that no counter names.

mod common;
#[path = "lifecycle/rings.rs"]
mod rings;
#[path = "lifecycle/sockets.rs"]
mod sockets;

use std::os::fd::AsFd;
use std::time::Duration;

use common::{
    FEATURES, Mark, PROTOCOL, QUIET, SOON, drain, eventually, exchange, expect_number, is_answered, numbered,
    options, switch, up,
};
use ringway_testkit::frontend::wire::{self, NO_FD, feature, flag, protocol, request};
use ringway_testkit::frontend::{NetFrontend, Options, frame};
use ringway_testkit::server::Server;

const A: frame::Mac = [2, 0, 0, 0, 0, 0xa];
const D: frame::Mac = [2, 0, 0, 0, 0, 0xd];

/// A switch of two ports with a guest on d.
fn two_ports() -> (Server, NetFrontend) {
    let server = switch(&["a", "d"]);
    let mut d = up(&server, "d", FEATURES, Options { ring_size: 256, ..options() });
    d.send_frame(&numbered(frame::BROADCAST, D, 0)).unwrap();
    d.pair(0).wait_sent(SOON).unwrap();
    (server, d)
}

// ---- Attach and detach ----

/// A hundred guests come and go, in order or not. What they brought goes with them: every file descriptor and
/// every mapping.
#[test]
fn a_hundred_sessions_leave_nothing() {
    let (server, mut d) = two_ports();
    let resources = || (server.open_fds().unwrap(), server.guest_mappings().unwrap());
    let before = resources();
    for n in 0..100 {
        let slots = n % 2 == 0;
        let protocol_features = if slots { PROTOCOL | protocol::STATUS } else { PROTOCOL };
        let mut a = up(&server, "a", FEATURES, Options { protocol_features, ..options() });
        if slots {
            set_status(&a, LIVE);
        }
        exchange((&mut a, A), (&mut d, D));
        if n % 3 == 0 {
            a.stop().unwrap();
        }
    }
    eventually("all is given back", || resources() == before);
    let counters = server.counters().unwrap();
    assert_eq!((counters.get("a", "sessions"), counters.get("d", "sessions")), (100, 1));
}

/// A front-end that dies in the middle of a storm of frames, in both directions, harms nobody.
#[test]
fn dropped_in_the_middle_of_traffic() {
    let (server, mut d) = two_ports();
    let before = (server.open_fds().unwrap(), server.guest_mappings().unwrap());
    for round in 0..30 {
        let mut a = up(&server, "a", FEATURES, Options { ring_size: 64, ..options() });
        a.send_frame(&numbered(D, A, 0)).unwrap();
        for number in 0..40 {
            a.pair(0).send(&numbered(D, A, 1000 * round + number)).unwrap();
            d.pair(0).send(&numbered(A, D, number)).unwrap();
        }
        drop(a);
        drain(&mut d, Duration::ZERO);
    }
    d.pair(0).wait_sent(SOON).unwrap();
    eventually("all is given back", || {
        (server.open_fds().unwrap(), server.guest_mappings().unwrap()) == before
    });
    let mut a = up(&server, "a", FEATURES, options());
    exchange((&mut a, A), (&mut d, D));
    // Frames add up, whatever happened between.
    d.pair(0).wait_sent(SOON).unwrap();
    a.pair(0).wait_sent(SOON).unwrap();
    let c = server.counters().unwrap();
    let from = c.get("a", "from") + c.get("d", "from");
    let to = c.get("a", "to") + c.get("d", "to");
    assert_eq!(from, to + c.dropped("a") + c.dropped("d"), "{c:?}");
}

/// A port is one device: the second front-end is turned away, the first goes on.
#[test]
fn a_second_front_end_is_turned_away() {
    let (mut server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    let mark = Mark::now(&server);
    let second = NetFrontend::connect(server.socket("a"), options()).unwrap();
    assert!(second.connection().is_closed(SOON).unwrap());
    exchange((&mut a, A), (&mut d, D));
    mark.wait_for(&mut server, "WARN");
    mark.expect_one_warning(&server, "a second front-end", "a", "turned away");
    drop(a);
    let mut a = up(&server, "a", FEATURES, options());
    exchange((&mut a, A), (&mut d, D));
}

/// A session counts once, however often its rings stop and start.
#[test]
fn a_session_counts_once() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    exchange((&mut a, A), (&mut d, D));
    a.share_memory().unwrap();
    let bases = a.stop().unwrap();
    for (ring, base) in bases.into_iter().enumerate() {
        a.restart_ring(ring, base).unwrap();
    }
    exchange((&mut a, A), (&mut d, D));
    assert_eq!(server.counters().unwrap().get("a", "sessions"), 1);
}

// ---- Messages ----

/// The reply to each message: a question is answered whatever its flags; any other message only if it asks for
/// it, with zero.
///
/// [VU-BE-get-features-00] [VU-BE-set-features-00] [VU-BE-get-protocol-features-00]
/// [VU-BE-set-protocol-features-00] [VU-BE-set-owner-00] [VU-BE-reset-owner-00] [VU-BE-set-vring-num-00]
/// [VU-BE-set-vring-addr-00] [VU-BE-set-vring-base-00] [VU-BE-get-vring-base-00] [VU-BE-set-vring-kick-00]
/// [VU-BE-set-vring-call-00] [VU-BE-set-vring-err-00] [VU-BE-get-queue-num-00] [VU-BE-set-vring-enable-00]
/// [VU-BE-net-set-mtu-00] [VU-BE-get-config-00] [VU-BE-reset-device-00] [VU-BE-get-max-mem-slots-00]
/// [VU-BE-set-status-00] [VU-BE-get-status-00] [VU-BE-vhost-user-protocol-f-reply-ack-01]
/// [VU-BE-vhost-user-protocol-f-reply-ack-02] [VU-FB-vhost-user-protocol-f-reply-ack-01] [VU-FB-header-01]
#[test]
fn replies() {
    let server = switch(&["a,mtu=1500"]);
    let protocol_features = PROTOCOL | protocol::STATUS | protocol::MTU;
    let mut a = NetFrontend::connect(server.socket("a"), Options { protocol_features, ..options() }).unwrap();
    a.negotiate(FEATURES).unwrap();
    a.share_memory().unwrap();
    let state = |value| wire::vring_state(1, value).to_vec();
    let number = |value: u64| value.to_le_bytes().to_vec();
    let config = [0u32, 12, 0].map(u32::to_le_bytes).concat();
    let config = [&config[..], &[0; 12]].concat();
    let address = a.vring_address(1).to_bytes().to_vec();
    let event = a.ring(1).kick.as_fd().try_clone_to_owned().unwrap();
    let c = a.connection();
    // The reply's length; 0: no reply of its own.
    for (request, payload, has_fd, own) in [
        (request::SET_OWNER, vec![], false, 0),
        (request::GET_FEATURES, vec![], false, 8),
        (request::GET_PROTOCOL_FEATURES, vec![], false, 8),
        (request::SET_PROTOCOL_FEATURES, number(a.protocol_features()), false, 0),
        (request::GET_QUEUE_NUM, vec![], false, 8),
        (request::GET_MAX_MEM_SLOTS, vec![], false, 8),
        (request::SET_FEATURES, number(a.features()), false, 0),
        (request::NET_SET_MTU, number(1500), false, 0),
        (request::GET_CONFIG, config, false, 24),
        (request::SET_STATUS, number(3), false, 0),
        (request::GET_STATUS, vec![], false, 8),
        (request::SET_VRING_NUM, state(16), false, 0),
        (request::SET_VRING_BASE, state(0), false, 0),
        (request::SET_VRING_ADDR, address, false, 0),
        (request::SET_VRING_KICK, number(1), true, 0),
        (request::SET_VRING_CALL, number(1), true, 0),
        (request::SET_VRING_ERR, number(1), true, 0),
        (request::SET_VRING_KICK, number(1 | NO_FD), false, 0),
        (request::SET_VRING_CALL, number(1 | NO_FD), false, 0),
        (request::SET_VRING_ERR, number(1 | NO_FD), false, 0),
        (request::SET_VRING_ENABLE, state(1), false, 0),
        (request::GET_VRING_BASE, state(0), false, 8),
        (request::RESET_DEVICE, vec![], false, 0),
        (request::RESET_OWNER, vec![], false, 0),
    ] {
        let fds = if has_fd { vec![event.as_fd()] } else { vec![] };
        for extra in [0, flag::NEED_REPLY] {
            c.send_raw(&wire::message(request, extra, &payload), &fds).unwrap();
            if own > 0 {
                assert_eq!(c.reply(request).unwrap().payload.len(), own, "request {request}");
            } else if extra != 0 {
                assert_eq!(c.reply(request).unwrap().payload, [0; 8], "request {request}");
            }
            // The next reply is to the next question: there was none in between.
            c.request_u64(request::GET_FEATURES).unwrap();
        }
    }
}

/// [VU-BE-net-set-mtu-01] An MTU that the device cannot have is refused.
#[test]
fn the_mtu_is_checked() {
    let server = switch(&["a,mtu=1500"]);
    let protocol_features = PROTOCOL | protocol::MTU;
    let mut a = NetFrontend::connect(server.socket("a"), Options { protocol_features, ..options() }).unwrap();
    a.negotiate(FEATURES).unwrap();
    let c = a.connection();
    for (mtu, is_valid) in [(1500u64, true), (1501, false), (68, true), (u64::MAX, false)] {
        let ack = c.request_with_ack(request::NET_SET_MTU, &mtu.to_le_bytes(), &[]).unwrap();
        assert_eq!(ack == 0, is_valid, "{mtu}");
    }
}

/// [VU-BE-get-protocol-features-01] [VU-BE-set-protocol-features-01] [VU-BE-multiple-queue-support-02]
/// [VU-BE-get-max-mem-slots-01] Protocol features come before features; `MQ` is always among them.
#[test]
fn protocol_features_come_first() {
    let server = switch(&["a,queues=1"]);
    let a = NetFrontend::connect(server.socket("a"), options()).unwrap();
    let c = a.connection();
    let offered = c.request_u64(request::GET_PROTOCOL_FEATURES).unwrap();
    assert_ne!(offered & protocol::MQ, 0);
    c.request(request::SET_PROTOCOL_FEATURES, &offered.to_le_bytes(), &[]).unwrap();
    assert_eq!(c.request_u64(request::GET_QUEUE_NUM).unwrap(), 1);
    assert!(c.request_u64(request::GET_MAX_MEM_SLOTS).unwrap() >= 8);
}

/// [VU-BE-get-config-01] [DEV-CORE-device-configuration-space-01] [DEV-NET-cfg-01] [DEV-NET-cfg-02]
/// [VU-BE-set-config-01] The configuration can be read before anything was negotiated, any part of it, and no
/// other size comes back than was asked for; it cannot be written.
#[test]
fn the_configuration_space() {
    let server = switch(&["a,mac=02:00:00:00:00:07,mtu=9000,queues=3"]);
    let a = NetFrontend::connect(server.socket("a"), options()).unwrap();
    let c = a.connection();
    c.request(request::SET_PROTOCOL_FEATURES, &PROTOCOL.to_le_bytes(), &[]).unwrap();
    // Address, status (link up), pairs, MTU.
    let expected = [2, 0, 0, 0, 0, 7, 1, 0, 3, 0, 0x28, 0x23];
    for _ in 0..2 {
        for offset in 0..14 {
            for size in 0..64 {
                let head = [offset as u32, size as u32, 0].map(u32::to_le_bytes).concat();
                let payload = [&head[..], &vec![0xee; size]].concat();
                let reply = c.request_reply(request::GET_CONFIG, &payload).unwrap();
                assert_eq!((reply.len(), &reply[..12]), (12 + size, &head[..]));
                for (at, byte) in reply[12..].iter().enumerate() {
                    let known = expected.get(offset + at);
                    assert!(known.is_none_or(|k| k == byte), "byte {at} from {offset}");
                }
            }
        }
        let write = [0u32, 2, 0].map(u32::to_le_bytes).concat();
        c.request_refused(request::SET_CONFIG, &[&write[..], &[0xff; 2]].concat(), &[]).unwrap();
    }
}

/// [VU-BE-reset-owner-01] Somebody else's message: it changes nothing.
#[test]
fn reset_owner_is_ignored() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    a.tell(request::RESET_OWNER, &[], &[]).unwrap();
    exchange((&mut a, A), (&mut d, D));
}

// ---- Features, status, reset ----

const ACKNOWLEDGE: u64 = 1;
const DRIVER: u64 = 2;
const DRIVER_OK: u64 = 4;
const FEATURES_OK: u64 = 8;
const LIVE: u64 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK;

fn set_status(guest: &NetFrontend, status: u64) {
    guest.connection().request_accepted(request::SET_STATUS, &status.to_le_bytes(), &[]).unwrap();
}

fn status(guest: &NetFrontend) -> u64 {
    guest.connection().request_u64(request::GET_STATUS).unwrap()
}

fn with_status() -> Options {
    Options { protocol_features: PROTOCOL | protocol::STATUS, ..options() }
}

/// Looks whether the device touches a chain of the transmit ring.
fn is_served(guest: &mut NetFrontend) -> bool {
    let used = guest.ring(1).used_index().unwrap();
    guest.send_frame(&numbered(D, A, 1)).unwrap();
    std::thread::sleep(QUIET);
    guest.ring(1).used_index().unwrap() != used
}

/// [DEV-CORE-device-status-field-01] [DEV-CORE-device-reset-01] [DEV-CORE-device-reset-02]
/// [DEV-CORE-features-04] Where the status is told, nothing moves before `DRIVER_OK`, nor after a reset until
/// the next; the same features are accepted again.
#[test]
fn nothing_moves_before_driver_ok() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, with_status());
    for round in 0..3 {
        assert_eq!(status(&a), 0, "round {round}");
        for ring in 0..2 {
            a.ring(ring).call.take().unwrap();
        }
        for step in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK] {
            assert!(!is_served(&mut a), "before {step}");
            set_status(&a, step);
            assert_eq!(status(&a), step);
        }
        d.send_frame(&numbered(A, D, 2)).unwrap();
        assert_eq!(a.recv_frame(QUIET).unwrap(), None);
        assert_eq!((a.ring(0).call.take().unwrap(), a.ring(1).call.take().unwrap()), (0, 0));
        set_status(&a, LIVE);
        // What was made available before is taken now, without a kick.
        expect_number(&mut d, A, 1);
        drain(&mut d, QUIET);
        exchange((&mut a, A), (&mut d, D));

        set_status(&a, 0);
        a.pair(0).reset(0).unwrap();
        assert!(!is_served(&mut a), "after the reset");
        a.pair(0).reset(0).unwrap();
        assert!(a.connection().request_u64(request::GET_FEATURES).is_ok());
        a.start().unwrap();
    }
}

/// [DEV-CORE-features-02] `FEATURES_OK` does not stay after features that were not offered.
#[test]
fn features_ok_is_refused() {
    let server = switch(&["a"]);
    let mut a = NetFrontend::connect(server.socket("a"), with_status()).unwrap();
    let features = a.negotiate(FEATURES).unwrap();
    let c = a.connection();
    for wrong in [features | 1 << 63, features | 1 << 33, features | 1 << 38] {
        c.request_refused(request::SET_FEATURES, &wrong.to_le_bytes(), &[]).unwrap();
        set_status(&a, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(status(&a) & FEATURES_OK, 0, "{wrong:#x}");
    }
    c.request_accepted(request::SET_FEATURES, &features.to_le_bytes(), &[]).unwrap();
    set_status(&a, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(status(&a), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    for wrong in [256, u64::MAX] {
        c.request_refused(request::SET_STATUS, &wrong.to_le_bytes(), &[]).unwrap();
    }
}

/// What a feature needs beside it (5.1.3.1); of several, one is enough.
const NEEDS: &[(u64, u64)] = &[
    (feature::NET_GUEST_TSO4, feature::NET_GUEST_CSUM),
    (feature::NET_GUEST_TSO6, feature::NET_GUEST_CSUM),
    (feature::NET_GUEST_ECN, feature::NET_GUEST_TSO4 | feature::NET_GUEST_TSO6),
    (feature::NET_HOST_TSO4, feature::NET_CSUM),
    (feature::NET_HOST_TSO6, feature::NET_CSUM),
    (feature::NET_HOST_ECN, feature::NET_HOST_TSO4 | feature::NET_HOST_TSO6),
    (feature::NET_GUEST_ANNOUNCE, feature::NET_CTRL_VQ),
    (feature::NET_MQ, feature::NET_CTRL_VQ),
];

/// [DEV-CORE-reserved-feature-bits-01] [DEV-CORE-features-01] What is offered goes together, and every subset
/// that does is taken.
#[test]
fn any_subset_of_features_is_accepted() {
    let switch = switch(&["a", "b,queues=1"]);
    let net = Server::net(std::path::Path::new(common::PROGRAM), "sink", &["--mtu=1500"]).unwrap();
    for socket in [switch.socket("a"), switch.socket("b"), net.socket("net")] {
        let mut a = NetFrontend::connect(socket, options()).unwrap();
        let offered = a.negotiate(u64::MAX).unwrap();
        assert_ne!(offered & feature::VERSION_1, 0);
        let fits = |set: u64| NEEDS.iter().all(|(f, needs)| set & f == 0 || set & needs != 0);
        assert!(fits(offered), "{offered:#x}");
        for n in 0..1000_u64 {
            // Another subset each time.
            let subset = offered & n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n as u32);
            if fits(subset) {
                a.tell(request::SET_FEATURES, &subset.to_le_bytes(), &[]).unwrap();
            }
        }
    }
}

/// `RESET_DEVICE` stops the rings; the session goes on, and the driver may start anew.
#[test]
fn reset_device() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    for _ in 0..3 {
        exchange((&mut a, A), (&mut d, D));
        a.tell(request::RESET_DEVICE, &[], &[]).unwrap();
        a.pair(0).reset(0).unwrap();
        assert!(!is_served(&mut a));
        a.pair(0).reset(0).unwrap();
        assert!(is_answered(&a));
        a.start().unwrap();
    }
    exchange((&mut a, A), (&mut d, D));
}

/// A guest that reboots behind a front-end that knows neither status nor reset: the rings stop, and start anew
/// with other features.
#[test]
fn a_reboot_into_another_driver() {
    let (server, mut d) = two_ports();
    let mut a = up(&server, "a", FEATURES, options());
    exchange((&mut a, A), (&mut d, D));
    for features in [feature::VERSION_1, 0, FEATURES, feature::EVENT_IDX] {
        a.stop().unwrap();
        a.pair(0).reset(0).unwrap();
        a.ack_anew(features);
        a.start().unwrap();
        exchange((&mut a, A), (&mut d, D));
    }
}

// ---- Memory ----

/// [VU-BE-ring-states-09] The memory table is replaced, whole or by a region, while frames flow both ways; every
/// frame arrives or is counted.
#[test]
fn memory_changes_under_traffic() {
    let (server, mut d) = two_ports();
    let roomy = Options { ring_size: 256, ..options() };
    let mut a = up(&server, "a", FEATURES, roomy);
    exchange((&mut a, A), (&mut d, D));
    let before = server.counters().unwrap();
    let spare = ringway_testkit::frontend::GuestMemory::new(&[(1 << 40, 1 << 20)]).unwrap();
    let region = wire::single_region(&spare.descriptions()[0]);
    let (mut to_a, mut to_d) = (0, 0);
    for round in 0..60 {
        for n in 0..20 {
            a.send_frame(&numbered(D, A, n)).unwrap();
            d.send_frame(&numbered(A, D, n)).unwrap();
        }
        match round % 3 {
            0 => a.share_memory().unwrap(),
            1 => a.tell(request::ADD_MEM_REG, &region, &spare.fds()).unwrap(),
            _ => a.tell(request::REM_MEM_REG, &region, &[]).unwrap(),
        }
        to_a += drain(&mut a, Duration::ZERO).len() as u64;
        to_d += drain(&mut d, Duration::ZERO).len() as u64;
    }
    a.pair(0).wait_sent(SOON).unwrap();
    d.pair(0).wait_sent(SOON).unwrap();
    // On a busy machine the server may pause for longer than it takes to look.
    eventually("frames add up", || {
        to_a += drain(&mut a, QUIET).len() as u64;
        to_d += drain(&mut d, QUIET).len() as u64;
        let dropped = server.counters().unwrap().dropped("a") - before.dropped("a");
        (to_d, to_a + dropped) == (1200, 1200)
    });
    exchange((&mut a, A), (&mut d, D));
}

/// [VU-BE-add-mem-reg-00] [VU-BE-add-mem-reg-01] [VU-BE-rem-mem-reg-00] [VU-BE-rem-mem-reg-01]
/// [VU-BE-rem-mem-reg-02] [VU-BE-rem-mem-reg-03] [VU-BE-rem-mem-reg-04] Regions come and go; a file that comes
/// with a removal is closed, the offset does not count.
#[test]
fn memory_slots() {
    let (server, mut d) = two_ports();
    let method = Options { memory_method: ringway_testkit::frontend::MemoryMethod::AddRegions, ..options() };
    let mut a = up(&server, "a", FEATURES, method);
    // Rings that start again have all their file descriptors.
    for ring in 0..2 {
        let base = a.stop_ring(ring).unwrap();
        a.restart_ring(ring, base).unwrap();
    }
    a.tell(request::REM_MEM_REG, &wire::single_region(&a.memory().descriptions()[1]), &[]).unwrap();
    exchange((&mut a, A), (&mut d, D));
    let resources = || (server.open_fds().unwrap(), server.guest_mappings().unwrap());
    let before = resources();
    let spare = ringway_testkit::frontend::GuestMemory::new(&[(1 << 40, 1 << 20)]).unwrap();
    let mut region = spare.descriptions()[0];
    for with_file in [false, true] {
        region.mmap_offset = 0;
        a.tell(request::ADD_MEM_REG, &wire::single_region(&region), &spare.fds()).unwrap();
        eventually("it is mapped, its file kept", || resources() == (before.0 + 1, before.1 + 1));
        region.mmap_offset = 0x1234_5000;
        let fds = if with_file { spare.fds() } else { vec![] };
        a.tell(request::REM_MEM_REG, &wire::single_region(&region), &fds).unwrap();
        exchange((&mut a, A), (&mut d, D));
        eventually("it is gone", || resources() == before);
    }
}

/// [VU-BE-set-mem-table-00] Regions with offsets into their files, above 4 GiB, adjoining: a frame may lie in
/// two of them.
#[test]
fn memory_regions_with_offsets() {
    let (server, mut d) = two_ports();
    let memory = vec![(0, 1 << 20, 4096), (1 << 20, 8 << 20, 12288), (6 << 30, 8 << 20, 0)];
    let mut a = up(&server, "a", FEATURES, Options { memory, max_frame: 2000, ..options() });
    for _ in 0..50 {
        exchange((&mut a, A), (&mut d, D));
    }
    // The first region ends here, the second begins.
    let frame = [&[0; 12][..], &numbered(D, A, 99)].concat();
    let (at, split) = (1 << 20, 20);
    a.memory().write(at - split, &frame[..split as usize]).unwrap();
    a.memory().write(at, &frame[split as usize..]).unwrap();
    let buffer = ringway_testkit::frontend::Buffer::readable(at - split, frame.len() as u32);
    a.ring(1).add(&[buffer]).unwrap();
    a.ring(1).publish_and_kick().unwrap();
    expect_number(&mut d, A, 99);
}

// ---- Idle ----

/// Nothing to do costs nothing: attached guests that are silent, after traffic, one with a ring that failed,
/// one whose rings are disabled.
#[test]
fn idle_costs_nothing() {
    let server = switch(&["a", "b", "c", "d"]);
    let mut d = up(&server, "d", FEATURES, options());
    let mut a = up(&server, "a", FEATURES & !feature::EVENT_IDX, options());
    let never = Options { enable: ringway_testkit::frontend::Enable::Never, ..options() };
    let b = up(&server, "b", FEATURES, never);
    let mut c = up(&server, "c", FEATURES, options());
    c.ring(1).push_raw(0xffff).unwrap();
    c.ring(1).publish_and_kick().unwrap();
    for _ in 0..10 {
        exchange((&mut a, A), (&mut d, D));
    }
    std::thread::sleep(QUIET);
    let before = server.cpu_ticks().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let ticks = server.cpu_ticks().unwrap() - before;
    assert!(ticks <= 2, "{ticks} ticks of 10 ms in 2 s");
    assert_eq!(server.counters().unwrap().get("c", "failed rings"), 1);
    exchange((&mut a, A), (&mut d, D));
    drop(b);
}

/// A generator whose frames nobody takes is idle too: the guest's rings are disabled, or its buffers too short.
#[test]
fn a_generator_without_takers_is_idle() {
    let server = Server::net(std::path::Path::new(common::PROGRAM), "generate:1514", &[]).unwrap();
    let never = Options { enable: ringway_testkit::frontend::Enable::Never, ..options() };
    let short = Options { rx_chain: vec![256], ring_size: 256, ..options() };
    for (name, guest) in [("disabled", never), ("short", short)] {
        let a = up(&server, "net", feature::VERSION_1, guest);
        std::thread::sleep(QUIET);
        let before = server.cpu_ticks().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let ticks = server.cpu_ticks().unwrap() - before;
        assert!(ticks <= 2, "{name}: {ticks} ticks of 10 ms in 0.5 s");
        drop(a);
    }
}
