//! PCI (4.1), against a function that allows no access but those of its structures and their fields.

#[path = "../common/mod.rs"]
mod common;
mod discovery;
mod function;
mod hostile;
mod vectors;
mod window;

use std::sync::Arc;

use common::{RINGS, TestPlatform};
use function::{Access, Function, MULTIPLIER, Window};
use ringway_driver::transport::pci::{Pci, PciNotifier, Structure};
use ringway_driver::{Device, Error, Interrupt, Platform, QueueOptions, TransportError, Virtqueue, Wanted};
use ringway_memory::SharedBuf;
use ringway_queue::{Burst, NotificationData};
use ringway_spec::feature::{
    ADMIN_VQ, NOTIF_CONFIG_DATA, NOTIFICATION_DATA, RING_PACKED, RING_RESET, SR_IOV, VERSION_1,
};
use ringway_spec::pci::common::*;
use ringway_spec::pci::header;
use ringway_spec::status::DeviceStatus;

/// A type of device that there is not, and its PCI device ID.
const ID: u32 = 0x3f;
const PCI_ID: u16 = 0x107f;
const WANTED: Wanted = Wanted { id: ID, features: 0, required: 0, requires: &[], without: 0 };

type Transport = Pci<Function, Window>;
type Queue = Virtqueue<SharedBuf, PciNotifier<Window>>;

fn transport(function: &Function) -> Transport {
    Pci::new(function.clone(), |range| Some(function.map(range))).unwrap()
}

fn set_up<R>(
    transport: Transport,
    platform: &Arc<TestPlatform>,
    then: impl FnOnce(&mut Device<Transport>) -> Result<R, Error>,
) -> Result<(Device<Transport>, R), Error> {
    Device::set_up(transport, Arc::clone(platform) as Arc<dyn Platform>, &WANTED, then)
}

fn one_queue(device: &mut Device<Transport>) -> Result<Queue, Error> {
    device.queue(0, QueueOptions::default())
}

/// A live device of these features with one queue, whose interrupts come by its pin.
fn live(features: u64) -> (Function, Device<Transport>, Queue, Arc<TestPlatform>) {
    let platform = TestPlatform::new();
    let function = Function::new(PCI_ID, features, 0);
    let (device, queue) = set_up(transport(&function), &platform, one_queue).unwrap();
    (function, device, queue, platform)
}

/// Lends the device a buffer, and shows it.
fn lend(device: &mut Device<Transport>, queue: &mut Queue) {
    let buffer = device.buffers(1, 64).unwrap().remove(0);
    queue.add(&[], &[(&buffer).into()], buffer).map_err(|not_added| not_added.error).unwrap();
    queue.publish();
}

fn read(offset: usize, width: usize, value: u32) -> Access {
    Access::Read(Structure::Common, offset, width, value)
}

fn write(offset: usize, width: usize, value: u32) -> Access {
    Access::Write(Structure::Common, offset, width, value)
}

/// [DRV-PCI-common-configuration-structure-layout-04] All accesses of a set-up, one by one: a queue is enabled when all else
/// of it was written, and nothing that is only read is written [DRV-PCI-common-configuration-structure-layout-01].
/// [DRV-PCI-layout-01] [DRV-PCI-layout-02] Each is as wide as its field, and fields of 64 bits are two.
#[test]
fn a_device_is_set_up_access_by_access() {
    let (function, _device, _queue, _) = live(1 << 5);
    let at = function.queue(0);
    let mut status = DeviceStatus::ACKNOWLEDGE.bits();
    let command = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;
    let mut expected = vec![Access::WriteConfigSpace(header::COMMAND, 2, command.into())];
    expected.extend([write(DEVICE_STATUS, 1, 0), read(DEVICE_STATUS, 1, 0)]);
    expected.push(write(DEVICE_STATUS, 1, status.into()));
    status |= DeviceStatus::DRIVER.bits();
    expected.push(write(DEVICE_STATUS, 1, status.into()));
    expected.extend([write(DEVICE_FEATURE_SELECT, 4, 0), read(DEVICE_FEATURE, 4, 1 << 5)]);
    expected.extend([write(DEVICE_FEATURE_SELECT, 4, 1), read(DEVICE_FEATURE, 4, 1)]);
    expected.extend([write(DRIVER_FEATURE_SELECT, 4, 0), write(DRIVER_FEATURE, 4, 0)]);
    expected.extend([write(DRIVER_FEATURE_SELECT, 4, 1), write(DRIVER_FEATURE, 4, 1)]);
    status |= DeviceStatus::FEATURES_OK.bits();
    expected.extend([write(DEVICE_STATUS, 1, status.into()), read(DEVICE_STATUS, 1, status.into())]);
    for _ in 0..2 {
        expected.extend([read(NUM_QUEUES, 2, 3), write(QUEUE_SELECT, 2, 0), read(QUEUE_SIZE, 2, 256)]);
    }
    expected.extend([read(QUEUE_ENABLE, 2, 0), read(QUEUE_NOTIFY_OFF, 2, 10), write(QUEUE_SIZE, 2, 256)]);
    for (field, address) in
        [(QUEUE_DESC, at.descriptor), (QUEUE_DRIVER, at.driver), (QUEUE_DEVICE, at.device)]
    {
        expected.extend([write(field, 4, address.0 as u32), write(field + 4, 4, (address.0 >> 32) as u32)]);
    }
    expected.push(write(QUEUE_ENABLE, 2, 1));
    expected.push(write(DEVICE_STATUS, 1, (status | DeviceStatus::DRIVER_OK.bits()).into()));
    assert_eq!(function.take_log(), expected);
}

/// [DRV-PCI-common-configuration-structure-layout-05] After a reset nothing is written until the status was read as 0.
#[test]
fn a_reset_is_awaited() {
    let function = Function::new(PCI_ID, 0, 0);
    function.state().status = 0xff;
    function.state().reset_takes = Some(4);
    let transport = transport(&function);
    function.take_log();
    let _live = set_up(transport, &TestPlatform::new(), one_queue).unwrap();
    let mut expected = vec![write(DEVICE_STATUS, 1, 0)];
    expected.extend([read(DEVICE_STATUS, 1, 0xff); 4]);
    expected.extend([read(DEVICE_STATUS, 1, 0), write(DEVICE_STATUS, 1, 1)]);
    assert_eq!(function.take_log()[..7], expected);
}

/// What the driver adds, the device takes, and what it uses comes back.
#[test]
fn chains_go_there_and_back() {
    for rings in RINGS {
        let (function, mut device, mut queue, platform) = live(rings);
        let mut theirs = platform.device_queue(&function.queue(0));
        assert!(!theirs.arm());
        lend(&mut device, &mut queue);
        let mut burst = Burst::default();
        assert_eq!(theirs.take(&mut burst, 8).unwrap(), 1);
        theirs.complete(burst.next().unwrap(), 17);
        let _ = theirs.publish();
        assert_eq!(queue.reclaim().unwrap().unwrap().written, 17);
    }
}

/// [DRV-PCI-common-configuration-structure-layout-02] [DRV-PCI-common-configuration-structure-layout-03] A queue is never
/// longer than the device has it; a split one has a power of two, a packed one at least one descriptor.
#[test]
fn a_queue_has_a_size_that_it_can_have() {
    for (features, has, wanted, size) in [
        (0, 256, 100, 64),
        (0, 100, 256, 64),
        (0, 1, 256, 1),
        (RING_PACKED, 100, 256, 100),
        (RING_PACKED, 256, 1, 1),
    ] {
        let function = Function::new(PCI_ID, features, 0);
        function.state().queues[0].size = has;
        let transport = transport(&function);
        let options = QueueOptions { max_size: wanted, ..QueueOptions::default() };
        // The reset gives a queue its size back, so it is changed after that.
        let queue = |device: &mut Device<_>| {
            function.state().queues[0].size = has;
            device.queue::<()>(0, options)
        };
        set_up(transport, &TestPlatform::new(), queue).map(|_| ()).unwrap();
        assert!(function.take_log().contains(&write(QUEUE_SIZE, 2, size)), "{has} {wanted}");
    }
}

/// Sizes that the transport is not to be asked for are refused, and nothing of the queue is written.
#[test]
fn impossible_sizes_are_refused() {
    use ringway_driver::Transport as _;
    for (features, size) in [(0, 0), (0, 3), (0, 512), (RING_PACKED, 0), (RING_PACKED, 257)] {
        let (function, mut device, _, _) = live(features);
        let setup = ringway_driver::QueueSetup { size, ..function.queue(0) };
        function.take_log();
        let result = device.transport_mut().set_up_queue(1, &setup).map(|_| ());
        assert!(matches!(result, Err(TransportError::BadQueueSize { index: 1, max: 256, .. })), "{result:?}");
        let writes =
            |access: &Access| matches!(access, Access::Write(_, offset, ..) if *offset != QUEUE_SELECT);
        assert!(!function.take_log().iter().any(writes));
    }
}

/// [DRV-PCI-common-configuration-structure-layout-06] A queue that is enabled is not disabled, but an error.
#[test]
fn a_queue_that_is_enabled_is_left_alone() {
    let (_function, mut device, _queue, _) = live(0);
    let result = one_queue(&mut device).map(|_| ());
    assert!(matches!(result, Err(Error::Transport(TransportError::QueueInUse(0)))), "{result:?}");
}

/// There are as many queues as the device says, and of those the ones that have a size.
#[test]
fn a_queue_that_is_not_there_is_an_error() {
    let (function, mut device, _, _) = live(0);
    function.state().queues[2].size = 0;
    function.take_log();
    for index in [2, 3, u16::MAX] {
        let result = device.queue::<()>(index, QueueOptions::default()).map(|_| ());
        assert!(matches!(result, Err(Error::NoQueue { index: i }) if i == index), "{result:?}");
    }
    let selected = |access: &Access| matches!(access, Access::Write(_, QUEUE_SELECT, ..));
    assert_eq!(
        function.take_log().into_iter().filter(selected).collect::<Vec<_>>(),
        [write(QUEUE_SELECT, 2, 2)]
    );
}

/// [DRV-PCI-common-configuration-structure-layout-07] A queue's reset is complete when it reads 0. Then the queue is enabled
/// again [DRV-PCI-common-configuration-structure-layout-08], in another size and place
/// [DRV-PCI-common-configuration-structure-layout-09].
#[test]
fn a_queue_is_reset_alone() {
    let (function, mut device, mut queue, _) = live(RING_RESET);
    lend(&mut device, &mut queue);
    let before = function.queue(0);
    function.state().queue_reset_takes = 2;
    function.take_log();
    assert_eq!(device.reset_queue(queue).unwrap().len(), 1);
    let mut expected = vec![write(QUEUE_SELECT, 2, 0), write(QUEUE_RESET, 2, 1)];
    for value in [1, 1, 0] {
        expected.extend([write(QUEUE_SELECT, 2, 0), read(QUEUE_RESET, 2, value)]);
    }
    expected.push(read(QUEUE_ENABLE, 2, 0));
    assert_eq!(function.take_log(), expected);

    let _again: Queue = device.queue(0, QueueOptions { max_size: 16, ..QueueOptions::default() }).unwrap();
    let after = function.queue(0);
    assert_eq!(after.size, 16);
    assert_ne!(after.descriptor, before.descriptor);
}

/// [DRV-PCI-available-buffer-notifications-01] [DRV-PCI-available-buffer-notifications-02] A kick has 16 bits, or 32 with
/// `NOTIFICATION_DATA`. [DRV-PCI-available-buffer-notifications-03] [DRV-PCI-available-buffer-notifications-04] It carries
/// the queue's index, or with `NOTIF_CONFIG_DATA` what the device says in its place
/// [DRV-PCI-available-buffer-notifications-05] [DRV-PCI-available-buffer-notifications-06]; and it goes where the device
/// wants it.
#[test]
fn kicks_are_what_was_negotiated() {
    let data = |vqn, next| NotificationData { vqn, next }.to_word();
    for (features, width, value) in [
        (0, 2, 2),
        (NOTIF_CONFIG_DATA, 2, 102),
        (NOTIFICATION_DATA, 4, data(2, 1)),
        (NOTIFICATION_DATA | RING_PACKED, 4, data(2, 0x8001)),
        (NOTIFICATION_DATA | NOTIF_CONFIG_DATA, 4, data(102, 1)),
        (NOTIFICATION_DATA | NOTIF_CONFIG_DATA | RING_PACKED, 4, data(102, 0x8001)),
    ] {
        let function = Function::new(PCI_ID, features, 0);
        let queue_2 = |device: &mut Device<_>| device.queue(2, QueueOptions::default());
        let (mut device, mut queue) = set_up(transport(&function), &TestPlatform::new(), queue_2).unwrap();
        function.take_log();
        lend(&mut device, &mut queue);
        let at = 12 * MULTIPLIER as usize;
        assert_eq!(
            function.take_log(),
            [Access::Write(Structure::Notify, at, width, value)],
            "{features:#x}"
        );
    }
}

/// [DRV-CORE-reserved-feature-bits-12] The features of this transport are accepted, but those that nobody uses.
#[test]
fn features_of_the_transport_are_accepted() {
    let carried = NOTIFICATION_DATA | RING_RESET | NOTIF_CONFIG_DATA;
    let (_, device, _, _) = live(carried | SR_IOV | ADMIN_VQ);
    assert_eq!(device.features(), VERSION_1 | carried);
}

/// [DRV-PCI-layout-01] [DRV-PCI-layout-02] Fields of the configuration are read and written by accesses of their width, those
/// of 64 bits in halves.
#[test]
fn fields_are_accessed_by_their_width() {
    let (function, mut device, _, _) = live(0);
    function.take_log();
    let all = device.config(|config| Ok((config.u8(1)?, config.u16(2)?, config.u32(4)?, config.u64(8)?)));
    assert_eq!(all.unwrap(), (1, 0x0302, 0x0706_0504, 0x0f0e_0d0c_0b0a_0908));
    device.write_config_u8(3, 0xa1).unwrap();
    device.write_config_u16(6, 0xa2a3).unwrap();
    device.write_config_u32(12, 0xa4a5_a6a7).unwrap();
    let mut expected = vec![read(CONFIG_GENERATION, 1, 0)];
    let reads = [(1, 1, 1), (2, 2, 0x0302), (4, 4, 0x0706_0504), (8, 4, 0x0b0a_0908), (12, 4, 0x0f0e_0d0c)];
    expected.extend(reads.map(|(at, width, value)| Access::Read(Structure::Device, at, width, value)));
    expected.push(read(CONFIG_GENERATION, 1, 0));
    let writes = [(3, 1, 0xa1), (6, 2, 0xa2a3), (12, 4, 0xa4a5_a6a7)];
    expected.extend(writes.map(|(at, width, value)| Access::Write(Structure::Device, at, width, value)));
    assert_eq!(function.take_log(), expected);
}

/// [DRV-PCI-notification-of-device-configuration-changes-01] The pin's interrupt can be about both; bits that mean nothing
/// are ignored. Reading it is all there is to do.
#[test]
fn the_pins_interrupt_is_asked() {
    let (function, mut device, _, _) = live(0);
    for (isr, interrupt) in [
        (0, Interrupt::empty()),
        (1, Interrupt::QUEUE),
        (2, Interrupt::CONFIG),
        (3, Interrupt::all()),
        (0xfc, Interrupt::empty()),
        (0xff, Interrupt::all()),
    ] {
        function.state().isr = isr;
        function.take_log();
        assert_eq!(device.interrupt().unwrap(), interrupt, "{isr:#x}");
        assert_eq!(function.take_log()[0], Access::Read(Structure::Isr, 0, 1, isr.into()));
        assert_eq!(function.state().isr, 0);
    }
}
