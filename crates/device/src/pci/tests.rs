//! What is PCI's own; the rest is in [`registers`](crate::registers).

use alloc::vec;
use alloc::vec::Vec;

use ringway_queue::NotificationData;
use ringway_spec::feature::{NOTIF_CONFIG_DATA, NOTIFICATION_DATA, RING_RESET, VERSION_1};
use ringway_spec::pci::{MSI_NO_VECTOR, capability, common, header};
use ringway_spec::status::DeviceStatus;

use super::{PciDevice, class};
use crate::registers::bus::{Bus, CONFIG_LEN, Field, GAP, Interrupts, QueueSelect, Status, Thing};
use crate::registers::{Action, Settings, SettingsError};

const VECTORS: u16 = 70;
const ALL: u64 = RING_RESET | NOTIFICATION_DATA | NOTIF_CONFIG_DATA;

fn device() -> PciDevice<Thing> {
    offering(ALL)
}

fn offering(features: u64) -> PciDevice<Thing> {
    PciDevice::new(Thing::new(0), Settings { queue_size: 64, features }, VECTORS).unwrap()
}

/// A driver's view of the configuration space.
impl PciDevice<Thing> {
    fn config<const N: usize>(&mut self, offset: usize) -> [u8; N] {
        let mut bytes = [0xee; N];
        self.read_config_space(offset as u16, &mut bytes);
        bytes
    }

    fn config_word(&mut self, offset: usize) -> u32 {
        u32::from_le_bytes(self.config(offset))
    }

    fn set_config(&mut self, offset: usize, bytes: &[u8]) {
        self.write_config_space(offset as u16, bytes);
    }

    fn set_command(&mut self, command: u16) {
        self.set_config(header::COMMAND, &command.to_le_bytes());
    }

    /// All capabilities: where, which ID, and if it is virtio's the type.
    fn capabilities(&mut self) -> Vec<(usize, u8, Option<u8>)> {
        let mut found = Vec::new();
        let [mut at] = self.config(header::CAPABILITIES);
        while at != 0 {
            assert!(at.is_multiple_of(4) && found.len() < 48);
            let [id, next, _, kind] = self.config(at.into());
            found.push((at.into(), id, (id == 9).then_some(kind)));
            at = next;
        }
        found
    }

    fn capability(&mut self, kind: u8) -> usize {
        self.capabilities().iter().find(|found| found.2 == Some(kind)).expect("a capability").0
    }

    fn msix(&mut self) -> usize {
        self.capabilities().iter().find(|found| found.1 == 0x11).expect("MSI-X").0
    }

    fn set_msix(&mut self, control: u16) {
        let at = self.msix();
        self.set_config(at + 2, &control.to_le_bytes());
    }

    /// Sets a vector's address and data to what tells it apart, and whether it is masked.
    fn set_vector(&mut self, vector: u16, is_masked: bool) {
        let entry = 0x8000 + 16 * u64::from(vector);
        let words = [0xfee0_0000 | u32::from(vector) << 4, 1, u32::from(vector) + 0x40, u32::from(is_masked)];
        for (offset, word) in (entry..).step_by(4).zip(words) {
            self.write(offset, &word.to_le_bytes());
        }
    }

    fn map_queue(&mut self, index: u16, vector: u16) -> u16 {
        self.set(QueueSelect, index.into());
        self.write(common::QUEUE_MSIX_VECTOR as u64, &vector.to_le_bytes());
        self.half(common::QUEUE_MSIX_VECTOR)
    }

    fn map_config(&mut self, vector: u16) -> u16 {
        self.write(common::CONFIG_MSIX_VECTOR as u64, &vector.to_le_bytes());
        self.half(common::CONFIG_MSIX_VECTOR)
    }

    fn half(&mut self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset as u64, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn pending(&mut self) -> Vec<u16> {
        let mut bytes = [0; 16];
        for (i, chunk) in bytes.chunks_mut(4).enumerate() {
            self.read(0x3000 + 4 * i as u64, chunk);
        }
        (0..128).filter(|v| bytes[usize::from(v / 8)] >> (v % 8) & 1 != 0).collect()
    }

    fn interrupt_status(&mut self) -> bool {
        u16::from_le_bytes(self.config(header::STATUS)) & header::STATUS_INTERRUPT != 0
    }
}

const ENABLE: u16 = 1 << 15;
const MASK: u16 = 1 << 14;
const MASTER: u16 = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;

fn message(vector: u16) -> Action {
    let vector = u32::from(vector);
    Action::Message { address: u64::from(0xfee0_0000 | vector << 4) | 1 << 32, data: vector + 0x40 }
}

/// [DEV-PCI-pci-device-discovery-01] [DEV-PCI-pci-device-discovery-02] [DEV-PCI-pci-device-discovery-04]
/// [DEV-PCI-pci-device-discovery-05] [DEV-PCI-pci-device-discovery-06] [DEV-PCI-virtio-over-pci-bus-01] The header is of type
/// 0, says that a modern virtio device is here, and that there are capabilities and INTA#.
#[test]
fn the_header_says_what_it_is() {
    let mut device = device();
    assert_eq!(device.config(0), [0xf4, 0x1a, 0x40 + 42, 0x10]);
    assert_eq!(device.config(header::STATUS), 0x10_u16.to_le_bytes());
    assert_eq!(device.config(8), [1, 0, 0, 0xff], "revision, class");
    assert_eq!(device.config(header::HEADER_TYPE), [0]);
    assert_eq!(device.config(header::SUBSYSTEM_VENDOR_ID), [0xf4, 0x1a, 0x40 + 42, 0x10]);
    assert_eq!(device.config(header::INTERRUPT_PIN), [1]);
    assert_eq!((class(1), class(2), class(3)), ([2, 0, 0], [1, 0x80, 0], [7, 0x80, 0]));
    // Nothing past the end.
    assert_eq!(device.config(0xfe), [0; 4]);
    assert_eq!(device.config(0xffff), [0; 4]);
}

#[test]
fn a_device_that_pci_cannot_show_is_refused() {
    struct Other(Thing, u32, usize);
    impl crate::model::DeviceModel for Other {
        fn id(&self) -> u32 {
            self.1
        }
        fn negotiation(&self) -> &crate::status::Negotiation {
            self.0.negotiation()
        }
        fn negotiation_mut(&mut self) -> &mut crate::status::Negotiation {
            self.0.negotiation_mut()
        }
        fn reset(&mut self) {}
        fn max_queues(&self) -> u16 {
            1
        }
        fn config_len(&self) -> usize {
            self.2
        }
        fn read_config(&self, _offset: usize, to: &mut [u8]) {
            to.fill(0);
        }
    }
    let new = |id, config_len, vectors| {
        PciDevice::new(Other(Thing::new(0), id, config_len), Settings::default(), vectors).err()
    };
    for id in [0, 0x40, 0x1_0001, u32::MAX] {
        assert_eq!(new(id, 0, 2), Some(SettingsError::Id(id)));
    }
    for vectors in [1, 2049, u16::MAX] {
        assert_eq!(new(1, 0, vectors), Some(SettingsError::Vectors(vectors)));
    }
    assert_eq!(new(1, 4097, 2), Some(SettingsError::ConfigLen(4097)));
    assert_eq!([new(0x3f, 4096, 2048), new(1, 0, 0)], [None, None]);
}

/// [DEV-PCI-virtio-over-pci-bus-01] A BAR's size is found by writing ones; it answers at its address while memory is enabled,
/// and the VMM is told. What is not the guest's to write stays.
#[test]
fn the_bar_is_sized_and_mapped() {
    let mut device = device();
    let before: Vec<_> = (0..0x40).step_by(4).map(|at| device.config_word(at)).collect();
    for at in (0..0x100).step_by(4) {
        device.set_config(at, &[0xff; 4]);
    }
    let bar = u64::from(device.config_word(0x10)) | u64::from(device.config_word(0x14)) << 32;
    assert_eq!(bar & 0xf, 4, "memory, 64 bits, not prefetchable");
    assert_eq!(!(bar & !0xf) + 1, device.bar_len());
    assert_eq!(device.bar_len(), 0x2_0000);
    let command = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER | header::COMMAND_INTX_DISABLE;
    for (i, before) in before.iter().enumerate() {
        let is = device.config_word(4 * i);
        let writable = match 4 * i {
            0x04 => u32::from(command),
            0x0c | 0x3c => 0xff,
            0x10 => 0xfffe_0000,
            0x14 => u32::MAX,
            _ => 0,
        };
        assert_eq!(is, before | writable, "{:#x}", 4 * i);
    }
    device.actions();

    device.set_command(0);
    assert_eq!(device.actions(), [Action::Mapped(None)]);
    device.set_config(0x10, &0x8004_5678_u32.to_le_bytes());
    device.set_config(0x14, &[0x12, 0, 0, 0]);
    assert_eq!(device.actions(), []);
    device.set_command(header::COMMAND_MEMORY);
    assert_eq!(device.actions(), [Action::Mapped(Some(0x12_8004_0000))]);
    device.set_command(header::COMMAND_MEMORY);
    assert_eq!(device.actions(), []);
}

/// [DEV-PCI-common-configuration-structure-layout-01] [DEV-PCI-common-configuration-structure-layout-02]
/// [DEV-PCI-notification-capability-01] [DEV-PCI-isr-status-capability-01] [DEV-PCI-device-specific-configuration-01]
/// [DEV-PCI-pci-configuration-access-capability-01] [DEV-PCI-virtio-structure-pci-capabilities-01] There is one capability of
/// each structure, of its length, and what it names is aligned, in the BAR, and no other's.
#[test]
fn each_structure_has_a_capability() {
    let mut device = device();
    let mut found = device.capabilities();
    let mut ends = found.iter().map(|found| found.0).skip(1).collect::<Vec<_>>();
    ends.push(0x100);
    let mut taken = vec![(0x3000, 0x3000 + 2 * 8), (0x8000, 0x8000 + 16 * u32::from(VECTORS))];
    for ((at, id, kind), end) in found.iter().zip(ends) {
        let Some(kind) = kind else {
            assert_eq!((*id, at + 12 <= end), (0x11, true));
            continue;
        };
        let len = if [2, 5].contains(kind) { 20 } else { 16 };
        assert_eq!(device.config(at + capability::LEN), [len]);
        assert!(at + usize::from(len) <= end);
        let start = device.config_word(at + capability::OFFSET);
        let length = device.config_word(at + capability::LENGTH);
        assert_eq!(device.config(at + capability::BAR), [0]);
        if *kind != 5 {
            let due = match kind {
                1 => 0x40,
                2 => 16,
                3 => 1,
                _ => CONFIG_LEN as u32,
            };
            assert_eq!((length, start % 4), (due, 0));
            taken.push((start, start + length));
        }
    }
    found.sort_by_key(|found| found.2);
    assert_eq!(
        found.iter().map(|f| f.2).collect::<Vec<_>>(),
        [None, Some(1), Some(2), Some(3), Some(4), Some(5)]
    );
    taken.sort_unstable();
    assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    assert!(u64::from(taken.last().unwrap().1) <= device.bar_len());
}

/// [DEV-PCI-notification-capability-02] [DEV-PCI-notification-capability-03] [DEV-PCI-notification-capability-04]
/// [DEV-PCI-notification-capability-05] [DEV-PCI-notification-capability-06] [DEV-PCI-notification-capability-07]
/// [DEV-PCI-notification-capability-08] [DEV-PCI-notification-capability-09] Every queue has its place for kicks, with room
/// for notification data whether or not that is offered; a kick there is of that queue.
#[test]
fn every_queue_has_a_place_for_kicks() {
    for features in [0, NOTIFICATION_DATA] {
        let mut device = offering(features);
        device.go_live(0);
        let at = device.capability(capability::NOTIFY_CFG);
        let multiplier = device.config_word(at + capability::NOTIFY_OFF_MULTIPLIER);
        let (offset, len) =
            (device.config_word(at + capability::OFFSET), device.config_word(at + capability::LENGTH));
        assert_eq!((multiplier, offset % 4), (4, 0));
        assert_eq!(device.half(common::NUM_QUEUES), 4);
        for index in [0, 1, 3_u16] {
            device.set(QueueSelect, index.into());
            let queue = u32::from(device.half(common::QUEUE_NOTIFY_OFF)) * multiplier;
            assert!(queue + 4 <= len);
            let kick = u64::from(offset + queue);
            device.write(kick, &index.to_le_bytes());
            let data = None;
            let due = if index < 2 { vec![Action::Notified { index, data }] } else { vec![] };
            assert_eq!(device.actions(), due);
            assert_eq!(kick, device.notify_offset(index));
        }
        device.write(u64::from(offset) + 0xffff * 4, &[0; 4]);
        device.write(u64::MAX - 3, &[0; 4]);
        device.write(device.notify_offset(GAP), &[0; 4]);
        device.write(device.notify_offset(0), &[0]);
        assert_eq!(device.actions(), []);
    }
}

/// With `NOTIF_CONFIG_DATA` a kick carries what the device says; here that is the queue's index.
#[test]
fn the_device_says_what_kicks_carry() {
    let mut device = device();
    for (features, due) in [(0, [0, 0]), (NOTIF_CONFIG_DATA | NOTIFICATION_DATA, [1, 0])] {
        device.go_live(features);
        let said = [1, u32::from(GAP)].map(|index| {
            device.set(QueueSelect, index);
            device.half(common::QUEUE_NOTIF_CONFIG_DATA)
        });
        assert_eq!(said, due);
    }
    let data = NotificationData { vqn: 1, next: 4 };
    device.write(device.notify_offset(1), &data.to_word().to_le_bytes());
    assert_eq!(device.actions(), [Action::Notified { index: 1, data: Some(data) }]);
}

/// [DEV-PCI-common-configuration-structure-layout-04] What the driver wrote of its features is what it reads, by 32 bits.
#[test]
fn the_answer_is_read_back() {
    let mut device = device();
    device.accept(0x1234_5678_9abc_def0);
    for (select, bits) in [(0, 0x9abc_def0), (1, 0x1234_5678), (2, 0), (u32::MAX, 0)] {
        device.set(Field::DriverFeatureSelect, select);
        assert_eq!(device.get(Field::DriverFeatureSelect), select);
        assert_eq!(device.get(Field::DriverFeature), bits);
    }
}

/// A field is accessed by its own width, one of 64 bits by halves, or both at once; else nothing happens.
#[test]
fn fields_have_their_width() {
    let mut device = device();
    assert!(device.negotiate(VERSION_1));
    for (area, offset) in
        [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE].into_iter().enumerate()
    {
        let offset = offset as u64;
        device.write(offset, &0x1122_3344_5566_7788_u64.to_le_bytes());
        device.write(offset + 4, &0x99_u32.to_le_bytes());
        assert_eq!([false, true].map(|high| device.get(Field::Area(area, high))), [0x5566_7788, 0x99]);
        let mut whole = [0; 8];
        device.read(offset, &mut whole);
        assert_eq!(u64::from_le_bytes(whole), 0x99_5566_7788);
    }
    let all = |device: &mut PciDevice<Thing>| -> Vec<u32> {
        let mut words = vec![device.get(Status)];
        words.extend((0..2).map(|i| u32::from(device.half(common::QUEUE_SIZE + 2 * i))));
        words
    };
    let before = all(&mut device);
    for (offset, len) in
        [(0x14, 2), (0x14, 4), (0x16, 4), (0x18, 1), (0x18, 4), (0x1a, 1), (0x15, 3), (0x13, 2), (0x18, 3)]
    {
        device.write(offset, &vec![1; len]);
        let mut bytes = vec![0xff; len];
        device.read(offset, &mut bytes);
        assert_eq!(bytes, vec![0; len], "{len} at {offset:#x}");
    }
    assert_eq!(all(&mut device), before);
}

/// [DEV-PCI-isr-status-capability-02] [DEV-PCI-isr-status-capability-03] [DEV-PCI-isr-status-capability-04]
/// [DEV-PCI-isr-status-capability-05] Without MSI-X, the ISR status says what an interrupt is about and reading it
/// acknowledges; the PCI status says whether there is one. The line can be turned off.
#[test]
fn the_line_follows_the_isr_status() {
    let mut device = device();
    device.go_live(0);
    assert!(!device.interrupt_status());
    for (cause, bits) in [(1, 1), (2, 2), (3, 3)] {
        if cause & 1 != 0 {
            device.used(1);
        }
        if cause & 2 != 0 {
            device.config_changed();
        }
        assert!(device.interrupt_status());
        assert_eq!(device.actions(), [Action::Line(true)]);
        assert_eq!([device.get(Interrupts), device.get(Interrupts)], [bits, 0]);
        assert!(!device.interrupt_status());
        assert_eq!(device.actions(), [Action::Line(false)]);
    }
    device.set_command(header::COMMAND_INTX_DISABLE);
    device.used(0);
    assert_eq!((device.actions(), device.interrupt_status()), (vec![], true));
    device.set_command(0);
    assert_eq!(device.actions(), [Action::Line(true)]);
    device.set_msix(ENABLE);
    assert_eq!((device.actions(), device.interrupt_status()), (vec![Action::Line(false)], false));
}

/// [DEV-PCI-msi-x-vector-configuration-01] [DEV-PCI-msi-x-vector-configuration-02] [DEV-PCI-msi-x-vector-configuration-04]
/// [DEV-PCI-msi-x-vector-configuration-05] [DEV-PCI-msi-x-vector-configuration-06]
/// [DEV-PCI-msi-x-vector-configuration-08] [DEV-PCI-msi-x-vector-configuration-09] Every event can have every vector that
/// there is, or none; one that there is not is none.
#[test]
fn any_event_has_any_vector() {
    let mut device = device();
    let at = device.msix();
    assert_eq!(u16::from_le_bytes(device.config(at + 2)), VECTORS - 1);
    for vector in [0, 1, 63, 64, VECTORS - 1, MSI_NO_VECTOR] {
        assert_eq!([device.map_queue(1, vector), device.map_config(vector)], [vector; 2]);
        assert_eq!(device.map_queue(GAP, vector), MSI_NO_VECTOR);
    }
    for vector in [VECTORS, 0x7fff, 0xfffe] {
        assert_eq!((device.map_queue(1, 3), device.map_config(3)), (3, 3));
        assert_eq!([device.map_queue(1, vector), device.map_config(vector)], [MSI_NO_VECTOR; 2]);
    }
}

/// A live device with queue 0 at vector 65, queue 1 at none, the configuration at 2.
fn with_messages() -> PciDevice<Thing> {
    let mut device = device();
    device.set_command(MASTER);
    device.set_msix(ENABLE);
    for vector in [2, 65] {
        device.set_vector(vector, false);
    }
    device.go_live(RING_RESET);
    device.map_queue(0, 65);
    device.map_config(2);
    device
}

/// [DEV-PCI-isr-status-capability-02] [DEV-PCI-used-buffer-notifications-01]
/// [DEV-PCI-notification-of-device-configuration-changes-01] With MSI-X an event sends its vector's message; one without a
/// vector sends none, and there is no line.
#[test]
fn events_send_their_messages() {
    let mut device = with_messages();
    device.used(0);
    assert_eq!((device.actions(), device.get(Interrupts)), (vec![message(65)], 0));
    device.used(1);
    assert_eq!(device.actions(), []);
    device.config_changed();
    assert_eq!((device.actions(), device.get(Interrupts)), (vec![message(2)], 2));
    device.map_config(MSI_NO_VECTOR);
    device.map_queue(0, MSI_NO_VECTOR);
    device.config_changed();
    device.need_reset();
    device.used(0);
    assert_eq!(device.actions(), []);
}

/// [DEV-CORE-device-status-field-03] By message as well.
#[test]
fn a_failure_sends_a_message() {
    let mut device = with_messages();
    device.need_reset();
    assert_eq!(device.actions(), [message(2)]);
}

/// While a vector, the function or the bus is masked, its messages are pending, each once, and are sent when it no longer is.
#[test]
fn what_is_masked_is_pending() {
    for mask in [
        |device: &mut PciDevice<Thing>, is_masked| device.set_vector(65, is_masked),
        |device: &mut PciDevice<Thing>, is_masked| {
            device.set_msix(if is_masked { ENABLE | MASK } else { ENABLE });
        },
        |device: &mut PciDevice<Thing>, is_masked| device.set_command(if is_masked { 2 } else { MASTER }),
    ] {
        let mut device = with_messages();
        mask(&mut device, true);
        for _ in 0..3 {
            device.used(0);
        }
        assert_eq!((device.actions(), device.pending()), (vec![], vec![65]));
        device.write(0x3000 + 8, &[0; 4]);
        assert_eq!(device.pending(), [65], "not the guest's to write");
        mask(&mut device, false);
        assert_eq!((device.actions(), device.pending()), (vec![message(65)], vec![]));
    }
}

/// A masked vector keeps no other back.
#[test]
fn vectors_are_masked_apart() {
    let mut device = with_messages();
    device.set_vector(2, true);
    device.config_changed();
    device.used(0);
    assert_eq!((device.actions(), device.pending()), (vec![message(65)], vec![2]));
}

/// The table holds what is written, is masked at first, and ends where it ends.
#[test]
fn the_table_is_memory() {
    let mut device = device();
    let word = |device: &mut PciDevice<Thing>, offset: u64| {
        let mut bytes = [0xff; 4];
        device.read(0x8000 + offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let end = 16 * u64::from(VECTORS);
    for offset in (0..end).step_by(4) {
        assert_eq!(word(&mut device, offset), u32::from(offset % 16 == 12));
        device.write(0x8000 + offset, &[0xff; 4]);
        let due = [0xffff_fffc, u32::MAX, u32::MAX, 1][offset as usize % 16 / 4];
        assert_eq!(word(&mut device, offset), due);
    }
    device.write(0x8000 + 16, &0x1_2345_6780_u64.to_le_bytes());
    assert_eq!([word(&mut device, 16), word(&mut device, 20)], [0x2345_6780, 1]);
    device.write(0x8000 + end, &[0xff; 4]);
    assert_eq!(word(&mut device, end), 0);
}

/// [DEV-PCI-msi-x-vector-configuration-07] After a reset no event has a vector and no message is pending; the function is as
/// it was.
#[test]
fn a_reset_takes_the_vectors() {
    let mut device = with_messages();
    device.set_vector(65, true);
    device.map_queue(1, 65);
    device.used(0);
    assert_eq!(device.pending(), [65]);
    device.set(Status, 0);
    assert_eq!((device.actions(), device.pending()), (vec![Action::Reset], vec![]));
    device.set_vector(65, false);
    assert_eq!(device.half(common::CONFIG_MSIX_VECTOR), MSI_NO_VECTOR);
    for index in [0, 1] {
        device.set(QueueSelect, index);
        assert_eq!(device.half(common::QUEUE_MSIX_VECTOR), MSI_NO_VECTOR);
    }
    device.go_live(0);
    device.used(0);
    device.config_changed();
    assert_eq!((device.actions(), device.status().contains(DeviceStatus::DRIVER_OK)), (vec![], true));
    device.map_queue(0, 65);
    device.used(0);
    assert_eq!(device.actions(), [message(65)], "still enabled, and still there");
}

/// [DEV-PCI-pci-configuration-access-capability-02] [DEV-PCI-pci-configuration-access-capability-03] The window reads and
/// writes what it is set to, and as much, with all that such an access does; where it is set to nothing, nothing happens.
#[test]
fn the_window_reaches_the_bar() {
    let mut device = device();
    let at = device.capability(capability::PCI_CFG);
    let show = |device: &mut PciDevice<Thing>, bar: u8, offset: u32, len: u32| {
        device.set_config(at + capability::BAR, &[bar]);
        device.set_config(at + capability::OFFSET, &offset.to_le_bytes());
        device.set_config(at + capability::LENGTH, &len.to_le_bytes());
    };
    let data = at + capability::PCI_CFG_DATA;

    device.go_live(0);
    show(&mut device, 0, 0x2001, 1);
    assert_eq!(device.config::<1>(data), [101]);
    show(&mut device, 0, 0x2004, 4);
    assert_eq!(device.config_word(data), u32::from_le_bytes([104, 105, 106, 107]));
    // Only the first bytes are of the access.
    show(&mut device, 0, 0x2002, 2);
    assert_eq!(device.config(data), [102, 103, 106, 107]);
    device.used(0);
    show(&mut device, 0, 0x1000, 1);
    assert_eq!(device.actions(), [Action::Line(true)]);
    assert_eq!((device.config(data), device.config(data)), ([1], [0]), "acknowledged");
    assert_eq!(device.actions(), [Action::Line(false)]);

    show(&mut device, 0, 0x2000, 1);
    device.set_config(data, &[77, 1, 1, 1]);
    assert_eq!((device.model().config[0], device.actions()), (77, vec![Action::ConfigWritten]));
    let kick = device.notify_offset(1) as u32;
    show(&mut device, 0, kick, 2);
    device.set_config(data, &[1, 0]);
    assert_eq!(device.actions(), [Action::Notified { index: 1, data: None }]);

    let status = common::DEVICE_STATUS as u32;
    for (bar, offset, len) in
        [(1, status, 1), (0, status, 0), (0, status, 3), (0, status, 8), (0, 2, 4), (0, u32::MAX, 1)]
    {
        show(&mut device, bar, offset, len);
        device.set_config(data, &[0; 4]);
        assert_eq!(device.config_word(data), 0);
    }
    assert!(device.queue(0).is_some() && device.actions().is_empty());
    show(&mut device, 0, status, 1);
    device.set_config(data, &[0]);
    assert_eq!((device.get(Status), device.actions()), (0, vec![Action::Reset]));
}

/// A device without vectors has no MSI-X, and one without a configuration no structure for it.
#[test]
fn what_a_device_lacks_has_no_capability() {
    let mut device = PciDevice::new(Thing::new(0), Settings::default(), 0).unwrap();
    assert!(device.capabilities().iter().all(|found| found.1 == 9));
    device.go_live(0);
    assert_eq!([device.map_queue(0, 0), device.map_config(0)], [MSI_NO_VECTOR; 2]);
    device.set_config(0x98, &[0xff; 16]);
    device.used(0);
    assert_eq!(device.actions(), [Action::Line(true)]);
}
