//! Who wants to be notified, in both directions.

use ringway_queue::Burst;
use ringway_spec::feature::RING_EVENT_IDX;
use ringway_spec::packed::{EVENT_F_DESC, EVENT_F_DISABLE, EVENT_F_ENABLE};

use crate::common::packed::Driver;
use crate::common::{Guest, buffer, complete, take};

const SIZES: [u16; 5] = [1, 2, 3, 5, 8];

/// Whether the driver is called for `chains`, of as many slots each, that go round from `start`, if it asked
/// so.
fn is_called(guest: &Guest, size: u16, start: u64, chains: &[usize], features: u64, ask: (u16, u16)) -> bool {
    let mut driver = Driver::in_guest(guest.clone(), size, start);
    let mut queue = driver.start(features);
    let mut burst = Burst::default();
    driver.ask(ask.0, ask.1);
    for slots in chains {
        driver.offer(0, &vec![(buffer(0), 1, 0); *slots]);
    }
    assert_eq!(take(&mut queue, &mut burst), chains.len());
    complete(&mut queue, &mut burst, 0);
    let called = queue.publish();
    assert!(!queue.publish(), "nothing new, nobody to call");
    called
}

/// With EVENT_IDX the driver is called exactly if its event is one of the slots that were used: at every
/// position of both laps, inside of a chain, inside of a burst, behind and ahead.
#[test]
fn the_driver_is_called_when_its_event_is_passed() {
    let guest = Guest::new();
    for size in SIZES {
        let laps = 2 * u64::from(size);
        for start in 0..laps {
            for slots in 1..=size {
                for event in 0..laps {
                    let wanted = (start..start + u64::from(slots)).any(|at| at % laps == event);
                    for chains in [&vec![1; slots.into()], &vec![usize::from(slots)]] {
                        let lap = if event < u64::from(size) { 0x8000 } else { 0 };
                        let ask = ((event % u64::from(size)) as u16 | lap, EVENT_F_DESC);
                        assert_eq!(
                            is_called(&guest, size, start, chains, RING_EVENT_IDX, ask),
                            wanted,
                            "size {size}, {chains:?} from {start}, event {event}"
                        );
                    }
                }
            }
        }
    }
}

/// A burst that is published in parts passes the event once.
#[test]
fn the_driver_is_called_once_for_an_event() {
    let guest = Guest::new();
    for start in 0..10 {
        for event in 0..5 {
            let mut driver = Driver::in_guest(guest.clone(), 5, start);
            let mut queue = driver.start(RING_EVENT_IDX);
            let mut burst = Burst::default();
            driver.ask(driver.cursor(start + event).to_off_wrap(), EVENT_F_DESC);
            (0..5).for_each(|id| driver.offer(id, &[(buffer(0), 1, 0)]));
            for at in 0..5 {
                assert_eq!(queue.take(&mut burst, 1), Ok(1));
                complete(&mut queue, &mut burst, 0);
                assert_eq!(queue.publish(), at == event);
            }
        }
    }
}

/// The flags alone decide if they say all or nothing. What is reserved, or needs EVENT_IDX that was not
/// negotiated, asks for every call; the bits beside the flags mean nothing.
#[test]
fn the_driver_is_called_as_its_flags_say() {
    let guest = Guest::new();
    for features in [0, RING_EVENT_IDX] {
        for off_wrap in [0, 1, 0x8000, 0x8001, 0xffff] {
            for reserved in [0, 4, 0xfffc] {
                for start in [0, 7] {
                    let called =
                        |flags| is_called(&guest, 4, start, &[1], features, (off_wrap, flags | reserved));
                    assert!(called(EVENT_F_ENABLE));
                    assert!(!called(EVENT_F_DISABLE));
                    assert!(called(3));
                    if features == 0 {
                        assert!(called(EVENT_F_DESC), "EVENT_IDX was not negotiated");
                    }
                }
            }
        }
    }
}

/// An event at a slot that the ring does not have is answered by a call or none.
#[test]
fn an_event_past_the_ring_is_survived() {
    let guest = Guest::new();
    let mut called = [0; 2];
    for size in SIZES {
        for off_wrap in [size, size | 0x8000, 0x7fff, 0xffff] {
            let call = is_called(&guest, size, 1, &[1], RING_EVENT_IDX, (off_wrap, EVENT_F_DESC));
            called[usize::from(call)] += 1;
        }
    }
    assert_eq!(called.iter().sum::<usize>(), SIZES.len() * 4);
}

/// With EVENT_IDX the device asks for a kick at the very next slot it will take, without for every kick; a
/// device that polls asks for none. The reserved bits are 0.
#[test]
fn kicks_are_armed_and_suppressed() {
    let guest = Guest::new();
    for size in SIZES {
        for start in 0..2 * u64::from(size) {
            for features in [0, RING_EVENT_IDX] {
                let mut driver = Driver::in_guest(guest.clone(), size, start);
                let mut queue = driver.start(features);
                let mut burst = Burst::default();
                let armed = |at| match features {
                    0 => (0, EVENT_F_ENABLE),
                    _ => (driver.cursor(at).to_off_wrap(), EVENT_F_DESC),
                };
                let (first, second) = (armed(start), armed(start + 1));
                assert_eq!(driver.device_asks(), (0, EVENT_F_ENABLE), "until it says otherwise");
                assert!(!queue.arm());
                assert_eq!(driver.device_asks(), first);
                driver.offer(0, &[(buffer(0), 1, 0)]);
                assert_eq!(take(&mut queue, &mut burst), 1);
                assert!(!queue.arm());
                assert_eq!(driver.device_asks(), second, "for what is not taken yet");
                queue.suppress();
                assert_eq!(driver.device_asks().1, EVENT_F_DISABLE);
                complete(&mut queue, &mut burst, 0);
                assert!(queue.publish());
                assert_eq!(driver.device_asks().1, EVENT_F_DISABLE);
                assert!(!queue.arm());
                assert_eq!(driver.device_asks(), second);
                assert!(!queue.arm());
                assert_eq!(driver.device_asks(), second, "as it was");
            }
        }
    }
}

/// A queue that is started asks for kicks, whatever the area held.
#[test]
fn a_started_queue_asks_for_kicks() {
    let driver = Driver::new(4, 0);
    let mut queue = driver.start(0);
    queue.suppress();
    assert_eq!(driver.device_asks().1, EVENT_F_DISABLE);
    drop(queue);
    let mut queue = driver.start(0);
    assert_eq!(driver.device_asks(), (0, EVENT_F_ENABLE));
    queue.suppress();
    assert_eq!(driver.device_asks().1, EVENT_F_DISABLE);
}

/// Arming sees a chain that came before it, and one that was given back; looking at an empty ring, as after a
/// kick for nothing, is no error.
#[test]
fn arming_looks_again() {
    let guest = Guest::new();
    for start in 0..10 {
        for features in [0, RING_EVENT_IDX] {
            let mut driver = Driver::in_guest(guest.clone(), 5, start);
            let mut queue = driver.start(features);
            let mut burst = Burst::default();
            assert_eq!(queue.take(&mut burst, 64), Ok(0));
            assert!(!queue.has_available());
            driver.offer(0, &[(buffer(0), 1, 0), (buffer(0), 1, 0)]);
            assert!(queue.arm());
            assert_eq!(take(&mut queue, &mut burst), 1);
            queue.rewind(&mut burst);
            assert!(queue.arm());
            assert_eq!(take(&mut queue, &mut burst), 1);
            complete(&mut queue, &mut burst, 0);
            assert!(!queue.arm());
            assert!(queue.publish());
        }
    }
}
