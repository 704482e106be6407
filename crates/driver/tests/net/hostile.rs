//! A device that does what no device may.

use ringway_driver::Error;
use ringway_driver::net::Dropped;
use ringway_queue::DriverError;
use ringway_spec::net::{F_MRG_RXBUF, HDR_LEN, Header};

use crate::common::RINGS;
use crate::lab::{Bench, Lab, frame, with_header};

/// Buffers without a whole header, or that belong to more than there can be, are dropped, counted, and lent again.
#[test]
fn impossible_buffers_are_dropped() {
    for rings in RINGS {
        let mut lab = Bench::new(rings | F_MRG_RXBUF).options(|options| options.queue_size = 32).up();
        for round in 0..10 {
            for written in 0..HDR_LEN {
                lab.fill(0, &vec![0xff; written], &[written]);
            }
            for buffers in [0, 33, 64, 65, u16::MAX] {
                let header = Header { num_buffers: buffers.into(), ..Header::default() };
                lab.give(header, &frame(60));
            }
            assert!(lab.received(0).is_empty());
            let dropped = Dropped { buffers: 17 * (round + 1), frames: round };
            assert_eq!(lab.net.pair(0).rx.dropped(), dropped);
            // A frame shorter than an Ethernet header.
            let short = with_header(Header { num_buffers: 2.into(), ..Header::default() }, &[0; 13]);
            lab.fill(0, &short, &[short.len(), 0]);
            assert!(lab.received(0).is_empty());
            assert_eq!(lab.net.pair(0).rx.dropped().frames, round + 1);
            assert_eq!(lab.buffers(0), 32);
        }
        lab.give_merged(&frame(5000));
        assert!(lab.received(0) == [frame(5000)]);
    }
}

/// Without `MRG_RXBUF` the number of buffers means nothing, whatever it is.
#[test]
fn the_number_of_buffers_is_ignored_where_it_is_none() {
    let mut lab = Lab::new(0);
    for buffers in [0, 1, 2, u16::MAX] {
        lab.give(Header { num_buffers: buffers.into(), ..Header::default() }, &frame(60));
        assert!(lab.received(0) == [frame(60)]);
    }
}

/// A frame that is never whole costs what the device keeps back, and no more: nothing is handed out, nothing hangs.
#[test]
fn a_frame_that_is_never_whole_ends_nothing() {
    let mut lab = Bench::new(F_MRG_RXBUF).options(|options| options.queue_size = 16).up();
    let header = Header { num_buffers: 16.into(), ..Header::default() };
    let bytes = with_header(header, &frame(60));
    lab.fill(0, &bytes, &[bytes.len()]);
    for left in (1..16).rev() {
        assert!(lab.received(0).is_empty());
        assert_eq!(lab.buffers(0), left);
        lab.fill(0, &[], &[0]);
    }
    assert!(lab.received(0) == [frame(60)], "empty buffers add nothing");
    assert_eq!(lab.buffers(0), 16);
}

/// Of a queue that the device breaks the driver hears once and for all.
#[test]
fn a_broken_receive_queue_is_told() {
    let mut lab = Lab::new(0);
    lab.break_queue(0, 300);
    for _ in 0..2 {
        let error = lab.net.pair(0).rx.receive(|_| panic!("a frame")).unwrap_err();
        assert!(matches!(error, Error::Device(DriverError::IndexJump { idx: 300, .. })), "{error}");
    }
    lab.net.stop().unwrap();
}
