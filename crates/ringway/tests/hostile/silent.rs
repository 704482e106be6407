//! Front-ends that stop talking and stay: in the middle of a message, or with answers that they do not read.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use ringway_testkit::frontend::NetFrontend;
use ringway_testkit::frontend::wire::{self, HEADER_LEN, request};

use crate::common::{FEATURES, Mark, QUIET, World, exchange, mac, options, switch, up};

/// Where a front-end stops: what it sends last, and with which files.
fn last_words(guest: &NetFrontend) -> Vec<(Vec<u8>, Vec<BorrowedFd<'_>>)> {
    let table = wire::message(request::SET_MEM_TABLE, 0, &guest.memory().table_payload());
    let cut = |at: usize| (table[..at].to_vec(), guest.memory().fds());
    let questions = wire::message(request::GET_FEATURES, 0, &[]).repeat(500);
    vec![cut(1), cut(HEADER_LEN), cut(table.len() - 1), (questions, vec![])]
}

/// Its own rings go on, as its guest does; the others do not notice; another attaches elsewhere meanwhile. When it
/// leaves in the end, its port is free.
#[test]
fn costs_nobody_anything() {
    let mut world = World::new();
    for case in 0.. {
        let mut a = world.attach();
        let Some((bytes, fds)) = last_words(&a).into_iter().nth(case) else { break };
        a.connection().send_raw(&bytes, &fds).unwrap();
        for _ in 0..10 {
            exchange((&mut a, World::A), (&mut world.d, World::D));
            let mut e = up(&world.server, "e", FEATURES, options());
            exchange((&mut e, mac(0xe)), (&mut world.d, World::D));
            world.honest.check();
        }
        drop(a);
        world.check();
    }
    world.finish();
}

/// After a while inside of a message it loses its session, and another has the port.
#[test]
fn costs_the_session_in_the_end() {
    let server = switch(&["a"]);
    let start = Mark::now(&server);
    let a = up(&server, "a", FEATURES, options());
    let (bytes, fds) = last_words(&a).swap_remove(2);
    a.connection().send_raw(&bytes, &fds).unwrap();
    assert!(!a.connection().is_closed(Duration::from_secs(5)).unwrap(), "it may have been held up");
    assert!(a.connection().is_closed(Duration::from_secs(10)).unwrap(), "it is silent for good");
    start.expect_one_warning(&server, "in the middle of a message", "a", "session ended");
    up(&server, "a", FEATURES, options());
}

/// Nothing is done for it while nothing comes: no processor time goes by.
#[test]
fn costs_no_time() {
    let server = switch(&["a"]);
    for case in 0.. {
        let a = up(&server, "a", FEATURES, options());
        let Some((bytes, fds)) = last_words(&a).into_iter().nth(case) else { break };
        a.connection().send_raw(&bytes, &fds).unwrap();
        std::thread::sleep(QUIET);
        let before = server.cpu_ticks().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let ticks = server.cpu_ticks().unwrap() - before;
        assert!(ticks <= 2, "case {case}: {ticks} ticks of 10 ms in 0.5 s");
    }
}
