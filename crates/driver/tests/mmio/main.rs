//! MMIO (4.2), against a device that allows no access but those of the table of registers.

#[path = "../common/mod.rs"]
mod common;
mod device;
mod hostile;

use std::sync::Arc;

use common::{RINGS, TestPlatform};
use device::{Access, FakeMmio, read, write};
use ringway_driver::transport::mmio::{Mmio, MmioError, MmioNotifier};
use ringway_driver::{Device, Error, Interrupt, Platform, QueueOptions, TransportError, Virtqueue, Wanted};
use ringway_memory::SharedBuf;
use ringway_queue::{Burst, NotificationData};
use ringway_spec::feature::{
    ADMIN_VQ, NOTIF_CONFIG_DATA, NOTIFICATION_DATA, RING_PACKED, RING_RESET, SR_IOV, VERSION_1,
};
use ringway_spec::mmio::*;
use ringway_spec::status::DeviceStatus;

/// A type of device that there is not.
const ID: u32 = 77;
const WANTED: Wanted = Wanted { id: ID, features: 0, required: 0, requires: &[], without: 0 };

type Queue = Virtqueue<SharedBuf, MmioNotifier<FakeMmio>>;

/// The device behind these registers, set up as `then` says.
fn set_up<R>(
    registers: &FakeMmio,
    platform: &Arc<TestPlatform>,
    then: impl FnOnce(&mut Device<Mmio<FakeMmio>>) -> Result<R, Error>,
) -> Result<(Device<Mmio<FakeMmio>>, R), Error> {
    let transport = Mmio::new(registers.clone()).unwrap().unwrap();
    Device::set_up(transport, Arc::clone(platform) as Arc<dyn Platform>, &WANTED, then)
}

fn one_queue(device: &mut Device<Mmio<FakeMmio>>) -> Result<Queue, Error> {
    device.queue(0, QueueOptions::default())
}

/// A live device of these features with one queue.
fn live(features: u64) -> (FakeMmio, Device<Mmio<FakeMmio>>, Queue, Arc<TestPlatform>) {
    let platform = TestPlatform::new();
    let registers = FakeMmio::new(ID, features, 1);
    let (device, queue) = set_up(&registers, &platform, one_queue).unwrap();
    (registers, device, queue, platform)
}

/// Lends the device a buffer, and shows it.
fn lend(device: &mut Device<Mmio<FakeMmio>>, queue: &mut Queue) {
    let buffer = device.buffers(1, 64).unwrap().remove(0);
    queue.add(&[], &[(&buffer).into()], buffer).map_err(|not_added| not_added.error).unwrap();
    queue.publish();
}

/// [DRV-MMIO-init-01] [DRV-MMIO-init-02] The device is identified by three reads in this order, and by nothing else.
#[test]
fn a_device_is_known_by_magic_version_and_id() {
    let registers = FakeMmio::new(ID, 0, 1);
    let transport = Mmio::new(registers.clone()).unwrap().unwrap();
    assert_eq!(ringway_driver::Transport::device_id(&transport), ID);
    let known = [read(MAGIC_VALUE, MAGIC), read(VERSION, 2), read(DEVICE_ID, ID)];
    assert_eq!(registers.take_log(), known);
}

/// [DRV-MMIO-mmio-device-register-layout-04] Registers that begin with something else are left alone.
#[test]
fn another_magic_value_is_no_device() {
    let registers = FakeMmio::new(ID, 0, 1);
    registers.state().magic = MAGIC + 1;
    assert_eq!(Mmio::new(registers.clone()).err(), Some(MmioError::BadMagic(MAGIC + 1)));
    assert_eq!(registers.take_log(), [read(MAGIC_VALUE, MAGIC + 1)]);
}

/// [DRV-MMIO-mmio-device-register-layout-05] So is a device of another version, such as the legacy one.
#[test]
fn another_version_is_not_driven() {
    for version in [0, 1, 3, u32::MAX] {
        let registers = FakeMmio::new(ID, 0, 1);
        registers.state().version = version;
        assert_eq!(Mmio::new(registers.clone()).err(), Some(MmioError::BadVersion(version)));
        assert_eq!(registers.take_log(), [read(MAGIC_VALUE, MAGIC), read(VERSION, version)]);
    }
}

/// [DRV-MMIO-mmio-device-register-layout-06] [DRV-MMIO-init-02] A place without a device is no error, and nothing more of
/// it is read.
#[test]
fn a_place_without_a_device_is_no_error() {
    let registers = FakeMmio::new(0, 0, 0);
    assert!(Mmio::new(registers.clone()).unwrap().is_none());
    assert_eq!(registers.take_log(), [read(MAGIC_VALUE, MAGIC), read(VERSION, 2), read(DEVICE_ID, 0)]);
}

/// [DRV-MMIO-init-04] [DRV-MMIO-mmio-device-register-layout-02] [DRV-MMIO-mmio-device-register-layout-07]
/// [DRV-MMIO-mmio-device-register-layout-08] All accesses of a set-up, one by one: 32 bits each, a selector before what it
/// selects. No other register is touched [DRV-MMIO-mmio-device-register-layout-01], those of shared memory not either
/// [DRV-MMIO-init-03].
#[test]
fn a_device_is_set_up_access_by_access() {
    let (registers, _device, _queue, _) = live(1 << 5);
    let at = registers.queue(0);
    let mut status = u32::from(DeviceStatus::ACKNOWLEDGE.bits());
    let mut expected = vec![read(MAGIC_VALUE, MAGIC), read(VERSION, 2), read(DEVICE_ID, ID)];
    expected.extend([write(STATUS, 0), read(STATUS, 0), write(STATUS, status)]);
    status |= u32::from(DeviceStatus::DRIVER.bits());
    expected.push(write(STATUS, status));
    expected.extend([write(DEVICE_FEATURES_SEL, 0), read(DEVICE_FEATURES, 1 << 5)]);
    expected.extend([write(DEVICE_FEATURES_SEL, 1), read(DEVICE_FEATURES, 1)]);
    expected.extend([write(DRIVER_FEATURES_SEL, 0), write(DRIVER_FEATURES, 0)]);
    expected.extend([write(DRIVER_FEATURES_SEL, 1), write(DRIVER_FEATURES, 1)]);
    status |= u32::from(DeviceStatus::FEATURES_OK.bits());
    expected.extend([write(STATUS, status), read(STATUS, status)]);
    expected.extend([write(QUEUE_SEL, 0), read(QUEUE_SIZE_MAX, 256)]);
    expected.extend([write(QUEUE_SEL, 0), read(QUEUE_READY, 0), read(QUEUE_SIZE_MAX, 256)]);
    expected.push(write(QUEUE_SIZE, 256));
    for (low, address) in
        [(QUEUE_DESC_LOW, at.descriptor), (QUEUE_DRIVER_LOW, at.driver), (QUEUE_DEVICE_LOW, at.device)]
    {
        expected.extend([write(low, address.0 as u32), write(low + 4, (address.0 >> 32) as u32)]);
    }
    expected.push(write(QUEUE_READY, 1));
    expected.push(write(STATUS, status | u32::from(DeviceStatus::DRIVER_OK.bits())));
    assert_eq!(registers.take_log(), expected);
}

/// The transport's features are accepted if the transport has them, and those of PCI are not
/// [DRV-CORE-reserved-feature-bits-09].
#[test]
fn features_of_other_transports_are_not_accepted() {
    let offered = NOTIFICATION_DATA | RING_RESET | NOTIF_CONFIG_DATA | SR_IOV | ADMIN_VQ;
    let (registers, device, _, _) = live(offered);
    assert_eq!(device.features(), VERSION_1 | NOTIFICATION_DATA | RING_RESET);
    assert_eq!(registers.state().accepted, device.features());
}

/// What the driver adds, the device takes, and what it uses comes back; kicks carry the queue's index.
#[test]
fn chains_go_there_and_back() {
    for rings in RINGS {
        let (registers, mut device, mut queue, platform) = live(rings);
        let mut theirs = platform.device_queue(&registers.queue(0));
        assert!(!theirs.arm());
        registers.take_log();
        lend(&mut device, &mut queue);
        assert_eq!(registers.take_log(), [write(QUEUE_NOTIFY, 0)]);
        let mut burst = Burst::default();
        assert_eq!(theirs.take(&mut burst, 8).unwrap(), 1);
        let chain = burst.next().unwrap();
        theirs.complete(chain, 17);
        let _ = theirs.publish();
        assert_eq!(queue.reclaim().unwrap().unwrap().written, 17);
    }
}

/// A kick is the queue's index, and with `NOTIFICATION_DATA` also what comes next (2.9).
#[test]
fn kicks_carry_what_was_negotiated() {
    for (features, next) in [(0, 0), (NOTIFICATION_DATA, 1), (NOTIFICATION_DATA | RING_PACKED, 0x8001)] {
        let platform = TestPlatform::new();
        let registers = FakeMmio::new(ID, features, 4);
        let queue_3 = |device: &mut Device<_>| device.queue(3, QueueOptions::default());
        let (mut device, mut queue) = set_up(&registers, &platform, queue_3).unwrap();
        registers.take_log();
        lend(&mut device, &mut queue);
        let value = NotificationData { vqn: 3, next }.to_word();
        assert_eq!(registers.take_log(), [write(QUEUE_NOTIFY, value)]);
    }
}

/// [DRV-MMIO-mmio-device-register-layout-03] Fields are read and written by accesses of their width, those of 64 bits in
/// halves; again while the generation changes.
#[test]
fn fields_are_accessed_by_their_width() {
    let (registers, mut device, _, _) = live(0);
    registers.take_log();
    registers.state().restless = 2;
    let all = device.config(|config| {
        Ok((config.u8(1)?, config.u16(2)?, config.u32(4)?, config.u64(8)?, config.bytes::<3>(5)?))
    });
    assert_eq!(all.unwrap(), (1, 0x0302, 0x0706_0504, 0x0f0e_0d0c_0b0a_0908, [5, 6, 7]));
    let mut once = vec![Access::Read(CONFIG + 1, 1, 1), Access::Read(CONFIG + 2, 2, 0x0302)];
    once.extend([4, 8, 12].map(|at| Access::Read(CONFIG + at, 4, 0x0302_0100 + at as u32 * 0x0101_0101)));
    once.extend([5, 6, 7].map(|at| Access::Read(CONFIG + at, 1, at as u32)));
    let generation = |value| vec![read(CONFIG_GENERATION, value)];
    let expected = [generation(1), once.clone(), generation(2), generation(2), once, generation(2)].concat();
    assert_eq!(registers.take_log(), expected);

    device.write_config_u8(3, 0xa1).unwrap();
    device.write_config_u16(6, 0xa2a3).unwrap();
    device.write_config_u32(12, 0xa4a5_a6a7).unwrap();
    let written = [(3, 1, 0xa1), (6, 2, 0xa2a3), (12, 4, 0xa4a5_a6a7)]
        .map(|(at, width, value)| Access::Write(CONFIG + at, width, value));
    assert_eq!(registers.take_log(), written);
}

/// A field that the device's configuration has not is not touched.
#[test]
fn a_short_configuration_is_an_error() {
    let (registers, mut device, _, _) = live(0);
    registers.take_log();
    for (offset, len) in [(16, 1), (16, 4), (20, 2), (usize::MAX - 3, 4), (usize::MAX - 0xff, 1)] {
        let result = match len {
            1 => device.config(|config| config.u8(offset).map(drop)),
            2 => device.config(|config| config.u16(offset).map(drop)),
            _ => device.config(|config| config.u32(offset).map(drop)),
        };
        let expected = matches!(result, Err(Error::Transport(TransportError::ShortConfig { offset: o, len: l }))
            if (o, l) == (offset, len));
        assert!(expected, "{result:?}");
    }
    assert!(registers.take_log().iter().all(|access| *access == read(CONFIG_GENERATION, 0)));
}

/// [DRV-MMIO-mmio-device-register-layout-09] A queue is never longer than the device has it, whatever the driver would like.
#[test]
fn a_queue_is_as_long_as_the_device_has_it() {
    for (max, size) in [(1, 1), (64, 64), (100, 64), (256, 256), (1024, 256), (u32::MAX, 256)] {
        let platform = TestPlatform::new();
        let registers = FakeMmio::new(ID, 0, 1);
        registers.state().queues[0].max = max;
        set_up(&registers, &platform, one_queue).map(|_| ()).unwrap();
        assert!(registers.take_log().contains(&write(QUEUE_SIZE, size)), "{max}");
    }
}

#[test]
fn a_queue_that_is_not_there_is_an_error() {
    let registers = FakeMmio::new(ID, 0, 1);
    let queue_1 = |device: &mut Device<_>| device.queue::<()>(1, QueueOptions::default());
    let result = set_up(&registers, &TestPlatform::new(), queue_1).map(|_| ());
    assert!(matches!(result, Err(Error::NoQueue { index: 1 })), "{result:?}");
}

/// [DRV-MMIO-mmio-device-register-layout-11] [DRV-MMIO-mmio-device-register-layout-10] A queue that somebody left ready is
/// stopped before it is set up: 0 written, and read back.
#[test]
fn a_queue_that_is_ready_is_stopped_first() {
    let (registers, mut device, _queue, _) = live(0);
    registers.take_log();
    let _again = one_queue(&mut device).unwrap();
    let log = registers.take_log();
    let stop = [read(QUEUE_READY, 1), write(QUEUE_READY, 0), read(QUEUE_READY, 0)];
    assert_eq!(log[3..6], stop, "{log:?}");
}

#[test]
fn a_queue_that_does_not_stop_is_an_error() {
    let registers = FakeMmio::new(ID, 0, 1);
    registers.state().queues[0].is_stubborn = true;
    registers.state().queues[0].ready = true;
    let result = set_up(&registers, &TestPlatform::new(), one_queue).map(|_| ());
    assert!(matches!(result, Err(Error::Transport(TransportError::QueueInUse(0)))), "{result:?}");
}

/// [DRV-MMIO-notifications-from-the-device-01] [DRV-MMIO-notifications-from-the-device-03]
/// [DRV-MMIO-mmio-device-register-layout-12] [DRV-MMIO-mmio-device-register-layout-13] An interrupt is asked what it is
/// about; exactly that is acknowledged, and bits that mean nothing are ignored.
#[test]
fn interrupts_are_asked_and_acknowledged() {
    let (registers, mut device, _, _) = live(0);
    for (status, interrupt) in [
        (0, Interrupt::empty()),
        (1, Interrupt::QUEUE),
        (2, Interrupt::CONFIG),
        (3, Interrupt::all()),
        (0xffff_fffc, Interrupt::empty()),
        (0xffff_fffd, Interrupt::QUEUE),
        (0x100, Interrupt::empty()),
    ] {
        registers.state().interrupt = status;
        registers.take_log();
        assert_eq!(device.interrupt().unwrap(), interrupt, "{status:#x}");
        let log = registers.take_log();
        assert_eq!(log[0], read(INTERRUPT_STATUS, status));
        let acknowledged = log[1..].iter().find(|access| matches!(access, Access::Write(..)));
        let expected = write(INTERRUPT_ACK, interrupt.bits().into());
        assert_eq!(acknowledged, (!interrupt.is_empty()).then_some(&expected), "{status:#x}");
    }
}

/// [DRV-MMIO-notifications-from-the-device-02] One interrupt is about every queue: both have something.
#[test]
fn an_interrupt_is_about_all_queues() {
    let platform = TestPlatform::new();
    let registers = FakeMmio::new(ID, 0, 2);
    let queues = |device: &mut Device<_>| {
        Ok([device.queue(0, QueueOptions::default())?, device.queue(1, QueueOptions::default())?])
    };
    let (mut device, mut queues) = set_up(&registers, &platform, queues).unwrap();
    for (index, queue) in (0..).zip(&mut queues) {
        lend(&mut device, queue);
        let mut theirs = platform.device_queue(&registers.queue(index));
        let mut burst = Burst::default();
        theirs.take(&mut burst, 8).unwrap();
        theirs.complete(burst.next().unwrap(), 1);
        let _ = theirs.publish();
    }
    registers.state().interrupt = INTERRUPT_USED_BUFFER;
    assert_eq!(device.interrupt().unwrap(), Interrupt::QUEUE);
    assert!(queues.iter().all(Virtqueue::has_used));
}

/// [DRV-MMIO-mmio-device-register-layout-14] A queue's reset is complete when it reads 0. Then the queue is set up again
/// [DRV-MMIO-mmio-device-register-layout-15], in another size and place [DRV-MMIO-mmio-device-register-layout-16].
#[test]
fn a_queue_is_reset_alone() {
    let (registers, mut device, mut queue, _) = live(RING_RESET);
    lend(&mut device, &mut queue);
    let before = registers.queue(0);
    registers.state().queue_reset_takes = 3;
    registers.take_log();
    assert_eq!(device.reset_queue(queue).unwrap().len(), 1);
    let log = registers.take_log();
    let asked = |value| vec![write(QUEUE_SEL, 0), read(QUEUE_RESET, value)];
    let begin = vec![write(QUEUE_SEL, 0), write(QUEUE_RESET, 1)];
    let expected = [begin, asked(1), asked(1), asked(1), asked(0), vec![read(QUEUE_READY, 0)]].concat();
    assert_eq!(log, expected);

    let _again: Queue = device.queue(0, QueueOptions { max_size: 16, ..QueueOptions::default() }).unwrap();
    let after = registers.queue(0);
    assert_eq!(after.size, 16);
    assert_ne!(after.descriptor, before.descriptor);
}
