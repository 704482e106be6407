//! Initialization, configuration and the end of a device, step by step.

mod common;

use std::sync::Arc;

use common::{Event, Fake, FakeTransport, RINGS, TestPlatform};
use ringway_driver::{Device, Error, Interrupt, Platform, QueueOptions, Virtqueue, Wanted};
use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::{Burst, Segment};
use ringway_spec::feature::{
    ACCESS_PLATFORM, IN_ORDER, NOTIFICATION_DATA, ORDER_PLATFORM, RING_EVENT_IDX, RING_INDIRECT_DESC,
    RING_PACKED, RING_RESET, VERSION_1,
};
use ringway_spec::status::DeviceStatus;

/// A type of device that there is not.
const ID: u32 = 77;
const A: u64 = 1;
const NEEDS_A: u64 = 2;
const WANTED: Wanted =
    Wanted { id: ID, features: A | NEEDS_A, required: 0, requires: &[(NEEDS_A, A)], without: 0 };

type Queue = Virtqueue<SharedBuf, common::FakeNotifier>;

fn set_up<R>(
    platform: &Arc<TestPlatform>,
    transport: FakeTransport,
    wanted: &Wanted,
    then: impl FnOnce(&mut Device<FakeTransport>) -> Result<R, Error>,
) -> Result<(Device<FakeTransport>, R), Error> {
    Device::set_up(transport, Arc::clone(platform) as Arc<dyn Platform>, wanted, then)
}

fn one_queue(device: &mut Device<FakeTransport>) -> Result<Queue, Error> {
    device.queue(0, QueueOptions::default())
}

/// A live device of these features with one queue.
fn live(features: u64) -> (Fake, Device<FakeTransport>, Queue, Arc<TestPlatform>) {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, ID, features, 1);
    let (device, queue) = set_up(&platform, transport, &WANTED, one_queue).unwrap();
    (fake, device, queue, platform)
}

/// [DRV-CORE-init-01] [DRV-CORE-init-02] [DRV-CORE-init-03] [DRV-CORE-init-04] [DRV-CORE-init-06] [DRV-CORE-init-08]
/// [DRV-CORE-init-09] [DRV-CORE-init-10] [DRV-CORE-device-status-field-01] The steps come in the book's order, a status bit
/// each, and none is taken back [DRV-CORE-device-status-field-02]; features come once, before `FEATURES_OK`
/// [DRV-CORE-init-07], and the configuration is not touched until then [DRV-CORE-init-05].
#[test]
fn initialization_is_by_the_book() {
    let (fake, _device, _queue, _) = live(A);
    let mut status = DeviceStatus::ACKNOWLEDGE;
    let mut expected = vec![Event::Reset, Event::ReadStatus, Event::Status(status)];
    status |= DeviceStatus::DRIVER;
    expected.extend([Event::Status(status), Event::Offered, Event::Accepted(A | VERSION_1)]);
    status |= DeviceStatus::FEATURES_OK;
    let setup = fake.state().queues[&0];
    expected.extend([Event::Status(status), Event::ReadStatus, Event::Queue(0, setup)]);
    expected.push(Event::Status(status | DeviceStatus::DRIVER_OK));
    assert_eq!(fake.take_log(), expected);
}

/// [DRV-CORE-device-reset-01] [DRV-CORE-init-01] Nothing is written until the status was read as 0.
#[test]
fn a_reset_is_awaited() {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, ID, A, 1);
    fake.state().reset_takes = 5;
    fake.state().status = DeviceStatus::all();
    let _live = set_up(&platform, transport, &WANTED, one_queue).unwrap();
    let log = fake.take_log();
    assert_eq!(log[0], Event::Reset);
    assert!(log[1..7].iter().all(|event| *event == Event::ReadStatus), "{log:?}");
    assert_eq!(log[7], Event::Status(DeviceStatus::ACKNOWLEDGE));
}

/// A device that is never reset costs an error, not the driver's life.
#[test]
fn a_reset_that_never_ends_is_given_up() {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, ID, A, 1);
    fake.state().reset_takes = u32::MAX;
    fake.state().status = DeviceStatus::DRIVER_OK;
    let result = set_up(&platform, transport, &WANTED, |_| Ok(()));
    assert!(matches!(result, Err(Error::TimedOut { what: "a reset" })));
}

/// [DRV-CORE-features-01] [DRV-CORE-features-02] [DRV-CORE-features-03] [DRV-CORE-features-04] [DRV-CORE-features-05]
/// [DRV-CORE-features-06] [DRV-CORE-features-08] [DRV-CORE-reserved-feature-bits-05] [DRV-CORE-reserved-feature-bits-09] Of each
/// set offered only what is understood, carried by the transport and not
/// without what it requires is accepted, and nothing else hinders.
#[test]
fn only_what_is_understood_is_accepted() {
    let understood = A | NEEDS_A | VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX | RING_PACKED | IN_ORDER;
    let understood = understood | ACCESS_PLATFORM | NOTIFICATION_DATA | RING_RESET;
    for (offered, carries, accepted) in [
        (VERSION_1, 0, VERSION_1),
        (A | VERSION_1, 0, A | VERSION_1),
        (A | NEEDS_A | VERSION_1, 0, A | NEEDS_A | VERSION_1),
        (NEEDS_A | VERSION_1, 0, VERSION_1),
        (u64::MAX, 0, understood & !(NOTIFICATION_DATA | RING_RESET)),
        (u64::MAX, NOTIFICATION_DATA | RING_RESET, understood),
        (ORDER_PLATFORM | 1 << 63 | VERSION_1, 0, VERSION_1),
    ] {
        let platform = TestPlatform::new();
        let (fake, transport) = Fake::new(&platform, ID, offered, 1);
        fake.state().carries = carries;
        let (device, ()) = set_up(&platform, transport, &WANTED, |_| Ok(())).unwrap();
        assert_eq!((fake.state().accepted, device.features()), (accepted, accepted), "{offered:#x}");
    }
}

/// [DRV-CORE-reserved-feature-bits-01] [DRV-CORE-reserved-feature-bits-02] [DRV-CORE-features-07] Without `VERSION_1`, or what
/// the driver requires, the device is marked as failed, and left alone [DRV-CORE-init-11] [DRV-CORE-init-12].
#[test]
fn what_is_required_and_not_offered_ends_it() {
    for (offered, required, missing) in
        [(A, 0, VERSION_1), (VERSION_1, A, A), (VERSION_1, NEEDS_A | A, NEEDS_A | A)]
    {
        let platform = TestPlatform::new();
        let (fake, transport) = Fake::new(&platform, ID, 0, 1);
        fake.state().offered = offered;
        let wanted = Wanted { required, ..WANTED };
        let result = set_up(&platform, transport, &wanted, one_queue);
        assert!(matches!(result, Err(Error::LacksFeatures { missing: m }) if m == missing));
        let log = fake.take_log();
        assert!(!log.iter().any(|event| matches!(event, Event::Accepted(_) | Event::Queue(..))), "{log:?}");
        assert_eq!(log.last(), Some(&Event::Status(DeviceStatus::FAILED)));
    }
}

/// Features that the caller does not want are not accepted, of rings too.
#[test]
fn a_feature_can_be_declined() {
    let platform = TestPlatform::new();
    let (_, transport) = Fake::new(&platform, ID, A | RING_PACKED | RING_EVENT_IDX, 1);
    let wanted = Wanted { without: RING_PACKED | A, ..WANTED };
    let (device, ()) = set_up(&platform, transport, &wanted, |_| Ok(())).unwrap();
    assert_eq!(device.features(), RING_EVENT_IDX | VERSION_1);
    assert!(device.has(RING_EVENT_IDX) && !device.has(A) && !device.has(RING_EVENT_IDX | A));
}

/// [DRV-CORE-init-08] `FEATURES_OK` is read back; if it is gone, the device gets no queue and is marked [DRV-CORE-init-12].
#[test]
fn refused_features_end_it() {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, ID, A, 1);
    fake.state().takes_features = false;
    let result = set_up(&platform, transport, &WANTED, one_queue);
    assert!(matches!(result, Err(Error::FeaturesRefused { features }) if features == A | VERSION_1));
    let log = fake.take_log();
    assert!(!log.iter().any(|event| matches!(event, Event::Queue(..))), "{log:?}");
    assert_eq!(log.last(), Some(&Event::Status(DeviceStatus::FAILED)));
}

/// [DRV-CORE-init-11] An error of the driver's own set-up ends it likewise; the device is reset before it is marked, so that it
/// knows of no memory [DRV-CORE-device-status-field-03], and is reset anew by the next driver.
#[test]
fn a_failed_set_up_leaves_the_device_reset_and_marked() {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, ID, A, 1);
    let result = set_up(&platform, transport, &WANTED, |device| {
        one_queue(device)?;
        Err::<(), _>(Error::BadConfig { what: "number" })
    });
    assert!(matches!(result, Err(Error::BadConfig { what: "number" })));
    assert!(fake.state().queues.is_empty());
    let log = fake.take_log();
    let end = [Event::Reset, Event::ReadStatus, Event::Status(DeviceStatus::FAILED)];
    assert!(log.ends_with(&end), "{log:?}");
}

#[test]
fn a_device_of_another_type_is_not_touched() {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, ID + 1, A, 1);
    let result = set_up(&platform, transport, &WANTED, one_queue);
    assert!(matches!(result, Err(Error::WrongDevice { found: 78, wanted: ID })));
    assert_eq!(fake.take_log(), []);
}

/// [DRV-CORE-device-configuration-space-01] What is read in several accesses is read again when the generation has changed.
#[test]
fn a_configuration_that_changes_is_read_again() {
    let (fake, mut device, ..) = live(A);
    fake.state().config = (1..=16).collect();
    fake.state().restless = 4;
    let mut times = 0;
    let (wide, bytes) = device
        .config(|config| {
            times += 1;
            Ok((config.u64(8)?, config.bytes::<6>(0)?))
        })
        .unwrap();
    assert_eq!((wide, bytes), (0x100f_0e0d_0c0b_0a09, [1, 2, 3, 4, 5, 6]));
    assert_eq!(times, 3, "generations were 1/2, 3/4, 4/4");
    // A read that failed while the configuration changed says nothing; one that failed while it stood still does.
    for (restless, is_over) in [(2, true), (0, false)] {
        fake.state().restless = restless;
        let mut is_first = true;
        let result = device.config(|config| {
            if std::mem::take(&mut is_first) {
                return Err(Error::BadConfig { what: "half" });
            }
            config.u16(2)
        });
        assert_eq!(result.is_ok(), is_over, "{result:?}");
    }
}

#[test]
fn a_configuration_that_never_settles_is_given_up() {
    let (fake, mut device, ..) = live(A);
    fake.state().config = vec![0; 8];
    fake.state().restless = u32::MAX;
    let result = device.config(|config| config.u32(0));
    assert!(matches!(result, Err(Error::TimedOut { what: "a configuration that stays" })));
}

/// [DRV-CORE-device-configuration-space-03] [DRV-CORE-device-configuration-space-04] A space longer than what is known is no
/// matter; one that ends before a field costs that field.
#[test]
fn only_fields_that_are_needed_must_be_there() {
    let (fake, mut device, ..) = live(A);
    fake.state().config = vec![7; 5];
    assert_eq!(device.config(|config| config.u32(0)).unwrap(), 0x0707_0707);
    let result = device.config(|config| config.u32(4));
    assert!(matches!(result, Err(Error::Transport(_))));
    fake.state().config = vec![7; 4096];
    assert_eq!(device.config(|config| config.u8(4)).unwrap(), 7);
}

#[test]
fn configuration_is_written_field_by_field() {
    let (fake, mut device, ..) = live(A);
    fake.state().config = vec![0; 8];
    fake.take_log();
    device.write_config_u8(1, 0x11).unwrap();
    device.write_config_u16(2, 0x2233).unwrap();
    device.write_config_u32(4, 0x4455_6677).unwrap();
    let writes = [(1, vec![0x11]), (2, vec![0x33, 0x22]), (4, vec![0x77, 0x66, 0x55, 0x44])];
    assert_eq!(fake.take_log(), writes.map(|(at, bytes)| Event::WriteConfig(at, bytes)));
    assert!(device.write_config_u32(8, 0).is_err());
}

/// [DRV-CORE-reserved-feature-bits-03] [DRV-CORE-reserved-feature-bits-04] Whether or not an IOMMU translates them, the device is
/// given addresses that the platform has for it, and no other.
#[test]
fn addresses_are_the_platforms() {
    for features in [0, ACCESS_PLATFORM, RING_PACKED] {
        let (fake, mut device, _queue, platform) = live(features);
        let memory = platform.memory();
        let is_there =
            |at: Gpa, len: u64| memory.slices(at, len).map(|slice| slice.len() as u64).sum::<u64>() == len;
        let setup = fake.state().queues[&0];
        for area in [setup.descriptor, setup.driver, setup.device] {
            assert!(is_there(area, 4), "{area}");
        }
        for buffer in device.buffers(3, 5000).unwrap() {
            assert!(is_there(buffer.addr(), 5000));
        }
    }
}

/// Sizes are the device's, no more than wanted, and powers of two where they must be.
#[test]
fn a_queue_has_a_size_that_both_can() {
    for (features, device_max, wanted, size) in [
        (0, 256, 64, 64),
        (0, 64, 256, 64),
        (0, 100, 256, 64),
        (0, 256, 100, 64),
        (0, u16::MAX, u16::MAX, 32768),
        (RING_PACKED, 100, 256, 100),
        (RING_PACKED, u16::MAX, u16::MAX, 32768),
        (0, 1, 256, 1),
    ] {
        let platform = TestPlatform::new();
        let (fake, transport) = Fake::new(&platform, ID, features, 1);
        fake.state().queue_sizes = vec![device_max];
        let options = QueueOptions { max_size: wanted, ..QueueOptions::default() };
        let (_device, queue) =
            set_up(&platform, transport, &WANTED, |device| device.queue::<()>(0, options)).unwrap();
        assert_eq!((queue.queue().size(), fake.state().queues[&0].size), (size, size));
    }
    let platform = TestPlatform::new();
    let (_, transport) = Fake::new(&platform, ID, 0, 1);
    let result = set_up(&platform, transport, &WANTED, |device| {
        device.queue::<()>(1, QueueOptions::default()).map(|_| ())
    });
    assert!(matches!(result, Err(Error::NoQueue { index: 1 })));
}

/// Chains go to the device and come back, in each format, with tables and without; it is kicked when it asks for that.
#[test]
fn a_queue_works() {
    for features in RINGS {
        for table_entries in [0, 4] {
            let platform = TestPlatform::new();
            let (fake, transport) = Fake::new(&platform, ID, features | RING_INDIRECT_DESC, 1);
            let options = QueueOptions { max_size: 4, table_entries, vector: Some(3) };
            let (mut device, mut queue) =
                set_up(&platform, transport, &WANTED, |device| device.queue::<[SharedBuf; 2]>(0, options))
                    .unwrap();
            assert_eq!(fake.state().queues[&0].vector, Some(3));
            let mut theirs = fake.device_queue(0);
            let mut burst = Burst::default();
            let mut buffers = device.buffers(2, 64).unwrap();
            for round in 0..20_u8 {
                let (mut request, answer) = (buffers.pop().unwrap(), buffers.pop().unwrap());
                request.write(&[round; 64]);
                fake.take_log();
                queue
                    .add(&[(&request).into()], &[(&answer).into()], [request, answer])
                    .map_err(|_| ())
                    .unwrap();
                assert_eq!(fake.kicks(0), 0, "not before it is published");
                queue.publish();
                assert_eq!(fake.kicks(0), 1);
                let chain = theirs.next(&mut burst).unwrap().unwrap();
                let written = chain.readable().copy_to(chain.writable()) as u32;
                theirs.complete(chain, written);
                assert!(!queue.has_used());
                let _ = theirs.publish();
                assert!(!theirs.arm());
                let used = queue.reclaim().unwrap().unwrap();
                assert_eq!(used.written, 64);
                let mut bytes = [0; 64];
                used.owner[1].read(&mut bytes);
                assert_eq!(bytes, [round; 64]);
                buffers.extend(used.owner);
            }
        }
    }
}

/// With `NOTIFICATION_DATA` a kick says how far the driver has come.
#[test]
fn kicks_say_what_comes_next() {
    for (features, expected) in [(NOTIFICATION_DATA, 2), (NOTIFICATION_DATA | RING_PACKED, 2 | 1 << 15)] {
        let (fake, mut device, mut queue, _) = live(features);
        for buffer in device.buffers(2, 16).unwrap() {
            queue.add(&[Segment::from(&buffer)], &[], buffer).map_err(|_| ()).unwrap();
        }
        queue.publish();
        assert_eq!(fake.take_log().last(), Some(&Event::Kick(0, expected)));
    }
}

/// [DRV-CORE-init-13] What is put into a queue while it is set up comes without a kick.
#[test]
fn nothing_is_kicked_before_the_device_is_live() {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, ID, 0, 1);
    let (mut device, mut queue) = set_up(&platform, transport, &WANTED, |device| {
        let mut queue = one_queue(device)?;
        let buffer = device.buffers(1, 64)?.remove(0);
        queue.add(&[], &[(&buffer).into()], buffer).map_err(|refused| refused.error)?;
        Ok(queue)
    })
    .unwrap();
    assert_eq!(fake.kicks(0), 0);
    queue.publish();
    assert_eq!(fake.kicks(0), 1);
    device.check().unwrap();
}

/// [DRV-CORE-virtqueue-reset-01] [DRV-CORE-virtqueue-reset-02] [DRV-CORE-virtqueue-re-enable-01] The queue's buffers come back
/// when the device has said that it is reset, and it is set up from the start again, here with another size.
#[test]
fn a_queue_is_reset_alone() {
    for packed in [0, RING_PACKED] {
        let (fake, mut device, mut queue, _) = live(RING_RESET | packed);
        let buffer = device.buffers(1, 64).unwrap().remove(0);
        let place = buffer.addr();
        queue.add(&[], &[(&buffer).into()], buffer).map_err(|_| ()).unwrap();
        queue.publish();
        fake.state().queue_reset_takes = 3;
        let back = device.reset_queue(queue).unwrap();
        assert_eq!(back.iter().map(SharedBuf::addr).collect::<Vec<_>>(), [place]);
        assert_eq!(fake.state().queue_reset_takes, 0, "it was asked until it was so");
        let options = QueueOptions { max_size: 16, ..QueueOptions::default() };
        let mut queue: Queue = device.queue(0, options).unwrap();
        assert_eq!(fake.state().queues[&0].size, 16);
        for buffer in back {
            queue.add(&[], &[(&buffer).into()], buffer).map_err(|_| ()).unwrap();
        }
        queue.publish();
        let mut theirs = fake.device_queue(0);
        assert!(theirs.next(&mut Burst::default()).unwrap().is_some());
    }
}

#[test]
fn a_queue_reset_takes_its_feature_and_an_end() {
    let (_, mut device, queue, _) = live(0);
    assert!(matches!(device.reset_queue(queue), Err(Error::NotNegotiated { feature: RING_RESET })));
    let (fake, mut device, queue, _) = live(RING_RESET);
    fake.state().queue_reset_takes = u32::MAX;
    assert!(matches!(device.reset_queue(queue), Err(Error::TimedOut { what: "a queue's reset" })));
}

/// [DRV-CORE-device-status-field-04] A device that has failed is told of, by its interrupt and when it is asked.
#[test]
fn a_device_that_needs_a_reset_says_so() {
    let (fake, mut device, queue, platform) = live(A);
    device.check().unwrap();
    fake.state().interrupt = Interrupt::QUEUE;
    assert_eq!(device.interrupt().unwrap(), Interrupt::QUEUE);
    assert_eq!(device.interrupt().unwrap(), Interrupt::empty(), "it was acknowledged");
    fake.state().interrupt = Interrupt::CONFIG;
    assert_eq!(device.interrupt().unwrap(), Interrupt::CONFIG);
    fake.state().status |= DeviceStatus::DEVICE_NEEDS_RESET;
    fake.state().interrupt = Interrupt::CONFIG | Interrupt::QUEUE;
    assert!(matches!(device.interrupt(), Err(Error::NeedsReset)));
    assert!(matches!(device.check(), Err(Error::NeedsReset)));
    // A reset mends it.
    let stopped = device.stop().unwrap();
    assert!(queue.retire(&stopped).is_empty());
    let (mut device, _queue) = set_up(&platform, stopped.into_transport(), &WANTED, one_queue).unwrap();
    device.check().unwrap();
}

/// [DRV-CORE-device-cleanup-02] What is in flight comes back only from a device that was reset.
#[test]
fn stopping_returns_what_was_in_flight() {
    let (fake, mut device, mut queue, _) = live(A);
    for buffer in device.buffers(3, 64).unwrap() {
        queue.add(&[], &[(&buffer).into()], buffer).map_err(|_| ()).unwrap();
    }
    queue.publish();
    fake.take_log();
    let stopped = device.stop().unwrap();
    assert_eq!(fake.take_log(), [Event::Reset, Event::ReadStatus]);
    assert_eq!(queue.retire(&stopped).len(), 3);
}

/// A driver that is dropped leaves its device reset, and once.
#[test]
fn a_dropped_device_is_reset() {
    let (fake, device, queue, _) = live(A);
    fake.take_log();
    drop(queue);
    assert_eq!(fake.take_log(), [], "the queue's memory is the device's as long as that is live");
    drop(device);
    assert_eq!(fake.take_log(), [Event::Reset, Event::ReadStatus]);
}

/// What a queue has lent is freed with it once the device was reset, and never while the device may write to it.
#[test]
fn what_was_lent_is_freed_after_a_reset() {
    for (device_first, resets, left) in [(true, true, 1), (false, true, 2), (true, false, 2)] {
        let platform = TestPlatform::new();
        let (fake, transport) = Fake::new(&platform, ID, A, 1);
        let (mut device, mut queue) =
            set_up(&platform, transport, &WANTED, |device| device.queue(0, QueueOptions::default())).unwrap();
        let buffer = device.buffers(1, 64).unwrap().remove(0);
        let lent = Arc::new(buffer);
        assert!(queue.add(&[], &[(&*lent).into()], Arc::clone(&lent)).is_ok());
        queue.publish();
        fake.state().reset_takes = if resets { 0 } else { u32::MAX };
        if device_first {
            drop(device);
            drop(queue);
        } else {
            drop(queue);
            drop(device);
        }
        assert_eq!(Arc::strong_count(&lent), left, "{device_first} {resets}");
    }
}

#[test]
fn buffers_are_apart_and_as_long_as_asked() {
    let (_, mut device, ..) = live(A);
    let buffers = device.buffers(5, 1000).unwrap();
    let places: Vec<_> = buffers.iter().map(|buffer| (buffer.addr().0, buffer.len())).collect();
    let first = places[0].0;
    assert!(first.is_multiple_of(4096));
    assert_eq!(places, (0..5).map(|i| (first + i * 1000, 1000)).collect::<Vec<_>>());
    assert!(device.buffers(0, 64).unwrap().is_empty());
    assert!(device.buffers(1, 0).is_err());
}
