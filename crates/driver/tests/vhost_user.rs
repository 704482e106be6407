//! What a back-end hears of a driver, message by message.
#![cfg(feature = "vhost-user")]

#[allow(dead_code, reason = "the session's own tests use all of it")]
#[path = "../../vhost/tests/frontend/book.rs"]
mod book;

use std::sync::Arc;

use book::{Book, Heard, Open};
use ringway_driver::transport::vhost_user::{Kick, Pages, SharedMemory, VhostUser};
use ringway_driver::{Device, Error, QueueOptions, Transport, TransportError, Virtqueue, Wanted};
use ringway_spec::feature::{ACCESS_PLATFORM, RING_RESET, VERSION_1};
use ringway_spec::net;
use ringway_spec::status::DeviceStatus;
use ringway_vhost::message::{F_PROTOCOL_FEATURES, Request, protocol_feature as pf};

/// A type of device that there is not.
const ID: u32 = 77;
const WANTED: Wanted = Wanted { id: ID, features: 1, required: 0, requires: &[], without: 0 };
const FEATURES: u64 = 1 | VERSION_1 | F_PROTOCOL_FEATURES;
const GET_CONFIG: u32 = 24;

type Queue = Virtqueue<(), Kick>;

fn live(book: Book) -> (Device<VhostUser>, Queue, Open) {
    let memory = SharedMemory::new(1 << 20, Pages::Small).unwrap();
    let (connection, open) = book.open();
    let transport = VhostUser::new(connection, ID, &memory).unwrap();
    let one_queue = |device: &mut Device<VhostUser>| device.queue(2, QueueOptions::default());
    let (device, queue) = Device::set_up(transport, Arc::new(memory), &WANTED, one_queue).unwrap();
    (device, queue, open)
}

fn numbers(heard: &[Heard]) -> Vec<u32> {
    heard.iter().map(|heard| heard.request.number()).collect()
}

/// A queue is told of as the driver becomes ready, all of it before the status says so, and is kicked once to start. Its
/// end is told before the reset.
#[test]
fn a_queue_starts_as_the_driver_is_ready() {
    let (device, queue, open) = live(Book::new(FEATURES, pf::STATUS | pf::REPLY_ACK | pf::MQ));
    drop((device, queue));
    let heard = open.close();
    let session = [1, 15, 16, 3, 17];
    let negotiation = [39, 40, 39, 39, 2, 5, 39, 40];
    let ring = [8, 10, 9, 14, 13, 12, 18, 39];
    let end = [11, 39, 40];
    assert_eq!(numbers(&heard), [&session[..], &negotiation, &ring, &end].concat());
    assert!(matches!(heard[9].request, Request::SetFeatures(FEATURES)), "{heard:?}");
    let statuses: Vec<_> = heard
        .iter()
        .filter_map(|heard| if let Request::SetStatus(status) = heard.request { Some(status) } else { None })
        .collect();
    assert_eq!(statuses, [0, 1, 3, 11, 15, 0]);
    let Request::SetVringKick { index: 2, fd: Some(kick) } = &heard[18].request else { panic!("{heard:?}") };
    let mut count = [0; 8];
    assert_eq!((rustix::io::read(kick, &mut count), u64::from_ne_bytes(count)), (Ok(8), 1));
}

/// A back-end that keeps no status is asked for what is left of a reset, if it knows one.
#[test]
fn a_back_end_that_keeps_no_status() {
    for (protocol_features, end) in [(0, &[11][..]), (pf::RESET_DEVICE, &[11, 34])] {
        let (mut device, queue, open) = live(Book::new(FEATURES, protocol_features));
        let ready = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
        assert_eq!(device.transport_mut().status().unwrap(), ready | DeviceStatus::DRIVER_OK);
        drop((device, queue));
        let expected = [&[1, 15, 16, 3, 2, 5, 8, 10, 9, 14, 13, 12, 18], end].concat();
        assert_eq!(open.close_numbers(), expected);
    }
    let (device, queue, open) = live(Book::new(VERSION_1, 0));
    drop((device, queue));
    assert_eq!(open.close_numbers(), [1, 3, 2, 5, 8, 10, 9, 14, 13, 12, 11]);
}

/// A queue is reset by stopping its vring, and may begin anew on a device that is live.
#[test]
fn a_queue_is_reset_alone() {
    let (mut device, queue, open) = live(Book::new(FEATURES | RING_RESET, 0));
    assert!(device.has(RING_RESET));
    assert!(device.transport_mut().call(2).is_some());
    assert!(device.reset_queue(queue).unwrap().is_empty());
    assert!(device.transport_mut().call(2).is_none());
    let again: Queue = device.queue(2, QueueOptions::default()).unwrap();
    let twice = device.queue::<()>(2, QueueOptions::default());
    assert!(matches!(twice, Err(Error::Transport(TransportError::QueueInUse(2)))));
    drop((device, again));
    let heard = open.close_numbers();
    assert_eq!(heard[13..], [11, 8, 10, 9, 14, 13, 12, 18, 11]);
}

/// Fields are taken from one answer, which is asked for anew when somebody looks whether it has changed. It has when other
/// bytes come, whether or not a back-end says so: here between the two fields.
#[test]
fn a_configuration_comes_in_one_piece() {
    let before = [&[0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0][..], &[9; 4]].concat();
    let book = Book::new(FEATURES, pf::CONFIG).instead(GET_CONFIG, &before, Vec::new());
    let (mut device, queue, open) = live(book);
    let first = device.config(|config| Ok((config.u32(0)?, config.u32(4)?))).unwrap();
    assert_eq!(first, (0x0302_0100, 0x0706_0504));
    let again = device.config(|config| Ok((config.u8(0)?, config.u16(2)?, config.u32(4)?))).unwrap();
    assert_eq!(again, (0, 0x0302, 0x0706_0504));
    let far = device.config(|config| config.u32(256));
    assert!(matches!(far, Err(Error::Transport(TransportError::ShortConfig { offset: 256, len: 4 }))));
    drop((device, queue));
    let asked: Vec<_> = open
        .close()
        .iter()
        .filter_map(|h| {
            if let Request::GetConfig { offset: 0, size, .. } = h.request { Some(size) } else { None }
        })
        .collect();
    assert_eq!(asked, [4, 8, 8, 8]);
}

/// A back-end may be fit for an IOMMU: the driver's device has none. What it says of its queues is taken at its word: a
/// network device's are pairs, with one beside them.
#[test]
fn what_is_offered() {
    for (id, count) in [(ID, 3), (net::DEVICE_ID, 7)] {
        let memory = SharedMemory::new(1 << 20, Pages::Small).unwrap();
        let (connection, open) = Book::new(FEATURES | ACCESS_PLATFORM, pf::MQ).open();
        let mut transport = VhostUser::new(connection, id, &memory).unwrap();
        assert_eq!(transport.offered().unwrap(), 1 | VERSION_1);
        let sizes = [count - 1, count].map(|index| transport.max_queue_size(index).unwrap());
        assert_eq!(sizes, [32768, 0]);
        drop(transport);
        open.close();
    }
}
