//! What is so on both buses.

use alloc::vec;

use ringway_queue::NotificationData;
use ringway_spec::feature::{NOTIFICATION_DATA, RING_PACKED, RING_RESET, SR_IOV, VERSION_1};
use ringway_spec::status::DeviceStatus;

use super::bus::{
    A, Bus, CONFIG_LEN, Enable, Field, GAP, Generation, Interrupts, NEEDS_A, QueueMax, QueueSelect,
    QueueSize, Reset, Status, Thing, areas, both, both_with,
};
use super::{Action, QueueSetup, Settings, SettingsError};
use crate::mmio::MmioDevice;
use crate::model::DeviceModel;
use crate::pci::PciDevice;

const NOT_DATA: Option<NotificationData> = None;

/// [DEV-PCI-common-configuration-structure-layout-03] [DEV-CORE-reserved-feature-bits-01] What is offered can be read 32 bits
/// at a time, whichever the driver selects; VERSION_1 is among it.
#[test]
fn offers_are_read_by_halves() {
    both(|bus| {
        let offered = A | NEEDS_A | VERSION_1 | RING_RESET | NOTIFICATION_DATA;
        assert_eq!(bus.offered(), offered);
        for (select, bits) in [
            (1, (offered >> 32) as u32),
            (0, offered as u32),
            (2, 0),
            (3, 0),
            (32, 0),
            (0x8000_0001, 0),
            (u32::MAX, 0),
        ] {
            bus.set(Field::DeviceFeatureSelect, select);
            assert_eq!(bus.get(Field::DeviceFeature), bits, "{select}");
        }
    });
}

/// [DEV-CORE-features-03] [DEV-CORE-reserved-feature-bits-09] Registers offer no feature of the transport but those that they
/// have.
#[test]
fn nothing_is_offered_that_is_not_there() {
    for bit in 0..64 {
        let settings = Settings { features: 1 << bit, ..Settings::default() };
        let (is_mmio, is_pci) = (bit == 38 || bit == 40, (38..=40).contains(&bit));
        let refused = Some(SettingsError::Features(1 << bit));
        let mmio = MmioDevice::new(Thing::new(0), settings);
        assert_eq!(mmio.err(), refused.filter(|_| !is_mmio), "{bit}");
        let pci = PciDevice::new(Thing::new(0), settings, 2);
        assert_eq!(pci.err(), refused.filter(|_| !is_pci), "{bit}");
    }
    both(|bus| assert_eq!(bus.offered() & SR_IOV, 0));
}

#[test]
fn queues_have_a_good_size() {
    for queue_size in [0, 3, 6, 100, 32769, 65535] {
        let settings = Settings { queue_size, features: 0 };
        let error = Some(SettingsError::QueueSize(queue_size));
        assert_eq!(MmioDevice::new(Thing::new(0), settings).err(), error);
        assert_eq!(PciDevice::new(Thing::new(0), settings, 0).err(), error);
    }
}

/// [DEV-CORE-features-02] FEATURES_OK sticks after a valid subset, and after nothing else; nothing is live without it.
#[test]
fn a_bad_answer_is_refused() {
    both(|bus| {
        for (features, is_good) in [
            (VERSION_1, true),
            (VERSION_1 | A, true),
            (VERSION_1 | A | NEEDS_A | RING_RESET, true),
            (VERSION_1 | NEEDS_A, false),
            (VERSION_1 | SR_IOV, false),
            (VERSION_1 | 1 << 63, false),
            (A, false),
            (0, false),
        ] {
            assert_eq!(bus.negotiate(features), is_good, "{features:#x}");
            let accepted = if is_good { features } else { 0 };
            assert_eq!(bus.model().negotiation().acked(), accepted, "{features:#x}");
            assert_eq!(bus.step(DeviceStatus::DRIVER_OK), is_good, "{features:#x}");
            assert_eq!(bus.actions().contains(&Action::Started), is_good, "{features:#x}");
        }
    });
}

/// Features past the 64 that there are were not offered either.
#[test]
fn features_past_the_last_are_refused() {
    both(|bus| {
        bus.set(Status, 0);
        bus.step(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        bus.accept(VERSION_1);
        bus.set(Field::DriverFeatureSelect, 2);
        bus.set(Field::DriverFeature, 1);
        assert!(!bus.step(DeviceStatus::FEATURES_OK));
        assert!(bus.negotiate(VERSION_1), "a reset forgets it");
    });
}

/// A driver that is not content with what it accepted begins anew, by a reset; no bit of the status goes away without.
#[test]
fn what_was_negotiated_stays_until_a_reset() {
    both(|bus| {
        bus.go_live(A);
        let live = bus.status();
        bus.accept(VERSION_1);
        bus.set(Status, DeviceStatus::ACKNOWLEDGE.bits().into());
        assert_eq!(bus.status(), live);
        assert_eq!(bus.model().negotiation().acked(), VERSION_1 | A);
        bus.set(Status, DeviceStatus::FAILED.bits().into());
        assert_eq!(bus.status(), live | DeviceStatus::FAILED);
    });
}

/// [DEV-CORE-device-status-field-01] [DEV-MMIO-mmio-device-register-layout-07] The device has no queue before DRIVER_OK, nor
/// one that is not enabled, and tells the driver nothing.
#[test]
fn nothing_moves_before_driver_ok() {
    both(|bus| {
        assert!(bus.negotiate(VERSION_1));
        bus.actions();
        bus.set_up(1, 16);
        let idle = |bus: &mut dyn Bus| {
            for index in [0, 1, GAP, 3, 4, 0xffff] {
                bus.kick(index, index.into());
                bus.used(index);
            }
            assert_eq!(bus.get(Interrupts), 0);
            assert_eq!(bus.actions(), []);
        };
        bus.config_changed();
        idle(bus);
        assert!(bus.step(DeviceStatus::DRIVER_OK));
        let [descriptor, driver, device] = areas(1).map(ringway_memory::Gpa);
        let setup = QueueSetup { size: 16, features: VERSION_1, descriptor, driver, device };
        assert_eq!(
            (bus.queue(0), bus.queue(1), bus.queue(GAP), bus.queue(4)),
            (None, Some(setup), None, None)
        );
        assert_eq!(bus.actions(), [Action::Started, Action::QueueStarted(1)]);
        bus.set(Status, DeviceStatus::all().bits().into());
        assert_eq!(bus.actions(), [], "it is told once");
        bus.set(Status, 0);
        assert_eq!(bus.actions(), [Action::Reset]);
        assert_eq!(bus.queue(1), None);
        idle(bus);
    });
}

/// [DEV-MMIO-mmio-device-register-layout-03] [DEV-PCI-isr-status-capability-03] An event is shown from when it happens until
/// it is acknowledged; the line follows.
#[test]
fn used_buffers_interrupt() {
    both(|bus| {
        bus.go_live(0);
        bus.kick(1, 1);
        assert_eq!(bus.actions(), [Action::Notified { index: 1, data: NOT_DATA }]);
        bus.used(1);
        bus.used(0);
        assert_eq!(bus.actions(), [Action::Line(true)]);
        bus.used(3);
        assert_eq!(bus.actions(), [], "the level is told once");
        bus.config_changed();
        assert_eq!(bus.get(Interrupts), 3);
    });
}

/// [DEV-CORE-device-status-field-02] [DEV-CORE-device-status-field-03] A device that needs a reset says so in its status, and
/// by a change of its configuration if the driver is set up; it takes no more kicks.
#[test]
fn a_device_that_failed_says_so() {
    both(|bus| {
        assert!(bus.negotiate(VERSION_1));
        bus.actions();
        bus.need_reset();
        assert!(bus.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
        assert_eq!((bus.actions(), bus.get(Interrupts)), (vec![], 0), "not set up yet");

        bus.go_live(0);
        assert!(!bus.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
        bus.need_reset();
        assert!(bus.status().contains(DeviceStatus::DEVICE_NEEDS_RESET | DeviceStatus::DRIVER_OK));
        assert_eq!(bus.actions(), [Action::Line(true)]);
        bus.kick(0, 0);
        assert_eq!(bus.actions(), []);
        assert_eq!(bus.get(Interrupts), 2);
        bus.set(Status, 0);
        assert!(bus.status().is_empty());
    });
}

/// [DEV-CORE-device-reset-01] [DEV-CORE-device-reset-02] [DEV-MMIO-mmio-device-register-layout-05]
/// [DEV-MMIO-mmio-device-register-layout-08] [DEV-PCI-common-configuration-structure-layout-07]
/// [DEV-PCI-common-configuration-structure-layout-08] [DEV-PCI-common-configuration-structure-layout-09] After a reset, also
/// one amid the reset of a queue, everything is as at first.
#[test]
fn a_reset_leaves_nothing() {
    both(|bus| {
        for _ in 0..100 {
            bus.go_live(RING_RESET);
            bus.used(0);
            bus.config_changed();
            assert_eq!(bus.actions(), [Action::Line(true)]);
            bus.set(QueueSelect, 1);
            bus.set(Reset, 1);
            assert_eq!((bus.actions(), bus.get(Reset)), (vec![Action::QueueReset(1)], 1));
            bus.kick(0, 0);

            bus.set(Status, 0);
            assert_eq!(bus.get(Status), 0);
            assert_eq!(bus.actions(), [Action::Reset, Action::Line(false)], "the kick is forgotten");
            bus.queue_was_reset(1);
            bus.used(0);
            bus.used(1);
            assert_eq!((bus.get(Interrupts), bus.actions()), (0, vec![]));
            assert!(bus.negotiate(VERSION_1 | RING_RESET));
            for index in 0..4 {
                bus.set(QueueSelect, index);
                assert_eq!((bus.get(Enable), bus.get(Reset)), (0, 0), "{index}");
                let max = if index == GAP.into() { 0 } else { 64 };
                assert_eq!(bus.get(QueueMax), max, "{index}");
            }
            bus.set(Enable, 1);
            assert!(bus.step(DeviceStatus::DRIVER_OK));
            let nowhere = ringway_memory::Gpa(0);
            let (size, features) = (64, VERSION_1 | RING_RESET);
            let setup = QueueSetup { size, features, descriptor: nowhere, driver: nowhere, device: nowhere };
            assert_eq!(bus.queue(3), Some(setup));
            assert_eq!(bus.actions(), [Action::Reset, Action::Started, Action::QueueStarted(3)]);
        }
    });
}

/// [DEV-MMIO-mmio-device-register-layout-09] [DEV-MMIO-mmio-device-register-layout-10]
/// [DEV-MMIO-mmio-device-register-layout-11] [DEV-MMIO-mmio-device-register-layout-12]
/// [DEV-PCI-common-configuration-structure-layout-10] [DEV-PCI-common-configuration-structure-layout-11]
/// [DEV-PCI-common-configuration-structure-layout-12] [DEV-PCI-common-configuration-structure-layout-13]
/// [DEV-CORE-virtqueue-reset-01] [DEV-CORE-virtqueue-reset-02] [DEV-CORE-virtqueue-re-enable-01] One queue is reset, which
/// takes as long as the VMM takes, and is enabled again with another size.
#[test]
fn a_queue_is_reset_alone() {
    both(|bus| {
        bus.go_live(RING_RESET);
        bus.set(QueueSelect, 1);
        bus.kick(1, 1);
        bus.set(Reset, 1);
        bus.queue_was_reset(1);
        assert_eq!(bus.get(Reset), 1, "the VMM does not know yet");
        assert_eq!(bus.actions(), [Action::QueueReset(1)], "the kick is forgotten");
        for _ in 0..2 {
            assert_eq!((bus.get(Reset), bus.get(Enable)), (1, 1), "still under way");
            bus.used(1);
            bus.kick(1, 1);
            bus.set(Enable, 1);
            bus.set(QueueSize, 4);
            bus.set(Reset, 1);
            assert_eq!((bus.actions(), bus.get(Interrupts)), (vec![], 0));
            assert_eq!(bus.queue(1), None);
        }
        bus.queue_was_reset(0);
        assert!(bus.queue(0).is_some(), "nobody asked for it");
        bus.queue_was_reset(1);
        assert_eq!((bus.get(Reset), bus.get(Enable)), (0, 0));
        assert_eq!(bus.get(QueueMax), 64, "as at first");
        bus.used(1);
        bus.kick(1, 1);
        assert_eq!((bus.actions(), bus.get(Interrupts)), (vec![], 0));

        bus.set_up(1, 32);
        assert_eq!((bus.get(Reset), bus.get(Enable)), (0, 1));
        assert_eq!(bus.actions(), [Action::QueueStarted(1)]);
        assert_eq!(bus.queue(1).unwrap().size, 32);
        bus.used(1);
        assert_eq!(bus.actions(), [Action::Line(true)]);
    });
}

/// A queue that the VMM does not have yet is reset at once.
#[test]
fn a_queue_is_reset_before_it_starts() {
    both(|bus| {
        assert!(bus.negotiate(VERSION_1 | RING_RESET));
        bus.set_up(0, 8);
        bus.set(Reset, 1);
        assert_eq!((bus.get(Reset), bus.get(Enable)), (0, 0));
        bus.set_up(0, 16);
        assert!(bus.step(DeviceStatus::DRIVER_OK));
        bus.set(Reset, 1);
        assert_eq!((bus.get(Reset), bus.get(Enable)), (0, 0));
        assert_eq!(bus.actions(), [Action::Reset, Action::Started]);
    });
}

/// Without `RING_RESET` there is no such register.
#[test]
fn a_queue_is_not_reset_unless_that_was_negotiated() {
    both(|bus| {
        bus.go_live(0);
        bus.set(QueueSelect, 0);
        bus.set(Reset, 1);
        assert_eq!((bus.get(Reset), bus.get(Enable), bus.actions()), (0, 1, vec![]));
    });
}

/// [DEV-MMIO-mmio-device-register-layout-06] [DEV-PCI-common-configuration-structure-layout-06] The generation is another
/// one whenever the driver may have read what is no longer so, however often it changed; and stays if it read nothing.
#[test]
fn the_generation_follows_the_configuration() {
    both(|bus| {
        bus.go_live(0);
        for changes in [1, 2, 255, 256, 512] {
            let mut byte = [0];
            bus.read_config(3, &mut byte);
            let before = bus.get(Generation);
            assert_eq!(bus.get(Generation), before, "reading it changes nothing");
            for _ in 0..changes {
                bus.config_changed();
            }
            let after = bus.get(Generation);
            assert_ne!(after, before, "{changes}");
            bus.config_changed();
            assert_eq!(bus.get(Generation), after, "nothing was read in between");
        }
        // What the driver itself writes, or negotiates, changes it as well.
        let mut byte = [0];
        for change in [
            |bus: &mut dyn Bus| bus.write_config(0, &[7]),
            |bus: &mut dyn Bus| bus.set(Status, 0),
            |bus: &mut dyn Bus| assert!(bus.negotiate(VERSION_1)),
        ] {
            bus.read_config(0, &mut byte);
            let before = bus.get(Generation);
            change(bus);
            assert_ne!(bus.get(Generation), before);
        }
    });
}

/// [DEV-CORE-device-configuration-space-01] [DEV-PCI-layout-01] The configuration is read before FEATURES_OK as after, by
/// accesses of any width at any place; past its end there is nothing.
#[test]
fn the_configuration_is_read_by_any_width() {
    both(|bus| {
        let all: [u8; CONFIG_LEN] = core::array::from_fn(|i| i as u8 + 100);
        for is_live in [false, true] {
            if is_live {
                bus.go_live(0);
            }
            for len in [1, 2, 4, 8] {
                for offset in 0..=CONFIG_LEN + 1 {
                    let mut bytes = [0xff; 8];
                    bus.read_config(offset as u64, &mut bytes[..len]);
                    let due = |i: usize| all.get(offset + i).copied().unwrap_or(0);
                    assert!(bytes[..len].iter().enumerate().all(|(i, b)| *b == due(i)), "{len} at {offset}");
                }
            }
        }
    });
}

/// The model says what may be written, and is not asked about what it does not have.
#[test]
fn the_configuration_is_written_if_the_model_lets_it() {
    both(|bus| {
        bus.go_live(0);
        for (offset, bytes) in [(0, &[1, 2][..]), (1, &[1]), (CONFIG_LEN as u64, &[1]), (0x80, &[1])] {
            bus.write_config(offset, bytes);
            assert_eq!((bus.actions(), bus.model().config[0]), (vec![], 100));
        }
        bus.write_config(0, &[9]);
        assert_eq!((bus.actions(), bus.model().config[0]), (vec![Action::ConfigWritten], 9));
    });
}

/// [DEV-PCI-common-configuration-structure-layout-14] [DEV-PCI-common-configuration-structure-layout-15] A queue that is not
/// there has size 0; the others a power of two at first, and never what a split queue cannot have.
#[test]
fn sizes_are_what_queues_can_have() {
    both_with(RING_PACKED, |bus| {
        for (features, is_packed) in [(VERSION_1, false), (VERSION_1 | RING_PACKED, true)] {
            assert!(bus.negotiate(features));
            for (index, max) in [(0, 64), (GAP.into(), 0), (3, 64), (4, 0), (0xffff, 0)] {
                bus.set(QueueSelect, index);
                assert_eq!(bus.get(QueueMax), max, "{index}");
            }
            for (size, is_good) in [
                (64, true),
                (1, true),
                (32, true),
                (3, is_packed),
                (63, is_packed),
                (0, false),
                (65, false),
                (128, false),
            ] {
                assert!(bus.negotiate(features));
                bus.set_up(0, size);
                assert_eq!(bus.get(Enable) == 1, is_good, "{size}");
                // A driver that goes on would use another ring than the device.
                let is_broken = bus.status().contains(DeviceStatus::DEVICE_NEEDS_RESET);
                assert_eq!(is_broken, !is_good, "{size}");
            }
        }
    });
}

/// What the driver says of a queue after it enabled it, or of one that is not there, changes nothing; neither does what
/// it says before FEATURES_OK.
#[test]
fn what_comes_late_or_early_is_ignored() {
    both(|bus| {
        bus.set_up(0, 8);
        assert_eq!(bus.get(Enable), 0, "features first");
        bus.go_live(0);
        let before = bus.queue(0);
        bus.set_up(0, 16);
        bus.set_up(GAP, 8);
        bus.set_up(9, 8);
        assert_eq!((bus.get(Enable), bus.queue(0), bus.queue(GAP), bus.queue(9)), (0, before, None, None));
        assert_eq!(bus.actions(), []);
    });
}

/// With `NOTIFICATION_DATA` a kick says how far the ring goes.
#[test]
fn a_kick_carries_data_if_negotiated() {
    both(|bus| {
        bus.go_live(NOTIFICATION_DATA);
        let data = NotificationData { vqn: 1, next: 0x8005 };
        bus.kick(1, data.to_word());
        bus.kick(0, 0x7_0000);
        let first = Action::Notified { index: 1, data: Some(data) };
        let second = Action::Notified { index: 0, data: Some(NotificationData { vqn: 0, next: 7 }) };
        assert_eq!(bus.actions(), [first, second]);
    });
}

/// However much a driver does that the VMM is not asked about meanwhile, what is due stays bounded: one thing of a kind.
#[test]
fn what_is_due_is_bounded() {
    both(|bus| {
        bus.go_live(RING_RESET);
        for _ in 0..1000 {
            bus.kick(0, 0);
            bus.kick(1, 1);
            bus.used(0);
            bus.config_changed();
            bus.write_config(0, &[1]);
        }
        let [first, second] = [0, 1].map(|index| Action::Notified { index, data: NOT_DATA });
        assert_eq!(bus.actions(), [Action::ConfigWritten, first, second, Action::Line(true)]);
        for _ in 0..1000 {
            bus.set(Status, 0);
            bus.go_live_untold(0);
        }
        let due = [
            Action::Reset,
            Action::Started,
            Action::QueueStarted(0),
            Action::QueueStarted(1),
            Action::Line(false),
        ];
        assert_eq!(bus.actions(), due);
    });
}
