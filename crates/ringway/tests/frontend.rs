//! Ringway's own front-end with `ringway`: drivers in user space, in both formats, that stop, go on and come back.

use std::time::Duration;

use ringway_spec::feature::{ACCESS_PLATFORM, IN_ORDER, RING_EVENT_IDX, RING_PACKED, VERSION_1};
use ringway_spec::net::F_MAC;
use ringway_testkit::driver::NetDriver;
use ringway_testkit::server::Server;
use ringway_vhost::frontend::{Connection, Frontend, FrontendError, PROTOCOL_FEATURES};
use ringway_vhost::message::protocol_feature as pf;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");
const LIMIT: Duration = Duration::from_secs(10);
/// Long enough for a frame that must not come.
const MOMENT: Duration = Duration::from_millis(50);

fn switch() -> Server {
    Server::switch(PROGRAM.as_ref(), &["a", "b"], &[]).expect("ringway runs")
}

fn connect(server: &Server, port: &str) -> Connection {
    Connection::connect(server.socket(port)).expect("a connection")
}

/// A driver at a port, that the switch knows by the frame it sent.
fn driver(server: &Server, port: &str, features: u64) -> NetDriver {
    NetDriver::start(connect(server, port), features).expect("a driver")
}

/// A broadcast frame that says its number.
fn frame(number: u32) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5]].concat();
    frame.extend(number.to_le_bytes());
    frame.resize(60 + number as usize % 1000, number as u8);
    frame
}

/// Sends frames one way, a few ahead of those that arrive.
fn exchange(from: &mut NetDriver, to: &mut NetDriver, numbers: std::ops::Range<u32>) {
    let mut sent = numbers.start;
    for number in numbers.clone() {
        while sent < numbers.end && sent < number + 32 {
            from.send(&frame(sent)).unwrap();
            sent += 1;
        }
        let arrived = to.receive(LIMIT).unwrap();
        assert!(arrived.as_deref() == Some(&frame(number)[..]), "frame {number} is {arrived:x?}");
    }
}

/// Every format to every other, over many laps.
#[test]
fn frames_between_two_drivers() {
    let server = switch();
    let all = [0, RING_EVENT_IDX, RING_PACKED, RING_PACKED | RING_EVENT_IDX | IN_ORDER];
    for (of_a, of_b) in all.into_iter().zip(all.into_iter().rev()) {
        let (mut a, mut b) = (driver(&server, "a", of_a), driver(&server, "b", of_b));
        exchange(&mut a, &mut b, 0..400);
        exchange(&mut b, &mut a, 0..400);
    }
}

/// Rings that are stopped take and give nothing; started again they go on where they were.
#[test]
fn rings_stop_and_go_on() {
    for features in [0, RING_PACKED] {
        let server = switch();
        let (mut a, mut b) = (driver(&server, "a", features), driver(&server, "b", features));
        exchange(&mut a, &mut b, 0..100);
        let stopped = b.frontend.stop(&mut b.tx).unwrap();
        for number in 0..3 {
            b.send(&frame(number)).unwrap();
        }
        assert_eq!(a.receive(MOMENT).unwrap(), None);
        assert_eq!(b.tx.base(), stopped);
        b.frontend.start(&mut b.tx).unwrap();
        for number in 0..3 {
            assert_eq!(a.receive(LIMIT).unwrap(), Some(frame(number)));
        }
        exchange(&mut a, &mut b, 100..300);
    }
}

/// A transmit ring that is not enabled is emptied, and its frames go nowhere.
#[test]
fn a_disabled_ring_is_emptied() {
    let server = switch();
    let (mut a, mut b) = (driver(&server, "a", 0), driver(&server, "b", 0));
    a.frontend.enable(&a.tx, false).unwrap();
    a.send(&frame(1)).unwrap();
    assert!(a.tx.wait(LIMIT).unwrap());
    assert_eq!(b.receive(MOMENT).unwrap(), None);
    a.frontend.enable(&a.tx, true).unwrap();
    exchange(&mut a, &mut b, 2..100);
}

/// `ringway` is killed under the drivers and started again: they attach anew with the rings and the buffers they had.
#[test]
fn drivers_outlive_the_server() {
    for (of_a, of_b) in [(0, RING_EVENT_IDX), (RING_PACKED, RING_PACKED | RING_EVENT_IDX)] {
        let mut server = switch();
        let (mut a, mut b) = (driver(&server, "a", of_a), driver(&server, "b", of_b));
        for round in 0..5 {
            exchange(&mut a, &mut b, round * 100..round * 100 + 100);
            exchange(&mut b, &mut a, 0..20);
            server.restart().unwrap();
            assert!(a.frontend.connection().is_closed_within(LIMIT).unwrap());
            // Sent to nobody; whoever comes next finds it.
            a.send(&frame(7)).unwrap();
            b.reconnect(connect(&server, "b")).unwrap();
            a.reconnect(connect(&server, "a")).unwrap();
            assert_eq!(
                b.receive(LIMIT).unwrap(),
                Some(frame(7)),
                "round {round} {of_a:#x} {}",
                server.counters().unwrap().summary
            );
        }
    }
}

/// Behind an IOMMU the device asks for what it does not know, rings and frames, and again for what is taken back.
#[test]
fn a_device_behind_an_iommu() {
    for features in [ACCESS_PLATFORM, ACCESS_PLATFORM | RING_PACKED] {
        let server = Server::switch(PROGRAM.as_ref(), &["a,iommu", "b"], &[]).unwrap();
        let (mut a, mut b) = (driver(&server, "a", features), driver(&server, "b", 0));
        for round in 0..3 {
            exchange(&mut a, &mut b, 0..100);
            exchange(&mut b, &mut a, 0..100);
            a.frontend.invalidate_iotlb(0, 1 << 40).unwrap();
            a.send(&frame(round)).unwrap();
            a.answer_misses().unwrap();
            assert_eq!(b.receive(LIMIT).unwrap(), Some(frame(round)));
        }
    }
}

/// What a network device is asked about itself; without a protocol feature there is no asking.
#[test]
fn the_device_answers() {
    let server = Server::switch(PROGRAM.as_ref(), &["a,mac=02:00:00:00:00:07"], &[]).unwrap();
    let features = VERSION_1 | F_MAC;
    let mut frontend = Frontend::negotiate(connect(&server, "a"), features, PROTOCOL_FEATURES).unwrap();
    assert_eq!(frontend.features(), features);
    for _ in 0..2 {
        assert!(frontend.queue_num().unwrap().is_some_and(|pairs| pairs >= 1));
        assert_eq!(frontend.config(0, 6).unwrap(), [2, 0, 0, 0, 0, 7]);
        frontend.reset().unwrap();
    }
    drop(frontend);
    let mut frontend = Frontend::negotiate(connect(&server, "a"), features, pf::REPLY_ACK).unwrap();
    assert_eq!(frontend.queue_num().unwrap(), None);
    assert!(matches!(frontend.config(0, 6), Err(FrontendError::NotNegotiated { .. })));
}
