//! What is MMIO's own; the rest is in [`registers`](crate::registers).

use alloc::vec;
use alloc::vec::Vec;

use ringway_spec::feature::{RING_RESET, VERSION_1};
use ringway_spec::mmio as reg;

use super::MmioDevice;
use crate::registers::bus::{
    Bus, CONFIG_LEN, Enable, Interrupts, QueueMax, QueueSelect, Reset, Status, Thing,
};
use crate::registers::{Action, Settings};

fn device() -> MmioDevice<Thing> {
    MmioDevice::new(Thing::new(0), Settings { queue_size: 64, features: RING_RESET }).unwrap()
}

fn word(device: &mut MmioDevice<Thing>, offset: usize) -> u32 {
    let mut bytes = [0xff; 4];
    device.read(offset as u64, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// [DEV-MMIO-mmio-device-register-layout-01] [DEV-MMIO-mmio-device-register-layout-02] The first registers say what is here.
#[test]
fn the_device_says_what_it_is() {
    let mut device = device();
    let first = [0, 4, 8, 12].map(|offset| word(&mut device, offset));
    assert_eq!(first, [0x7472_6976, 2, 42, 0x1af4]);
    assert_eq!(device.len(), 0x100 + CONFIG_LEN as u64);
}

/// There are no shared memory regions, whichever the driver selects.
#[test]
fn no_shared_memory_is_shown() {
    let mut device = device();
    for region in [0u32, 1, u32::MAX] {
        device.write(reg::SHM_SEL as u64, &region.to_le_bytes());
        for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
            assert_eq!(word(&mut device, offset), u32::MAX);
        }
    }
}

/// Registers that are only written, and places where none is, read as 0; those that are only read do not change.
#[test]
fn what_is_only_written_reads_as_nothing() {
    let mut device = device();
    device.go_live(0);
    let readable = [0x0, 0x4, 0x8, 0xc, 0x10, 0x34, 0x44, 0x60, 0x70, 0xb0, 0xb4, 0xb8, 0xbc, 0xc0, 0xfc];
    for offset in (0..0x100).step_by(4).filter(|offset| !readable.contains(offset)) {
        assert_eq!(word(&mut device, offset), 0, "{offset:#x}");
    }
    let constants = [0x0, 0x4, 0x8, 0xc, 0x34, 0x60, 0xfc];
    let all = |device: &mut MmioDevice<Thing>| constants.map(|offset| word(device, offset));
    let before = all(&mut device);
    for offset in constants {
        device.write(offset as u64, &[0xff; 4]);
    }
    assert_eq!((all(&mut device), device.actions()), (before, vec![]));
}

/// A register is accessed whole, by 32 bits; anything else does nothing, at any address.
#[test]
fn other_widths_are_ignored() {
    let mut device = device();
    device.go_live(0);
    let status = device.get(Status);
    for len in [0, 1, 2, 3, 5, 8, 16] {
        for offset in (0..0x100).step_by(4) {
            device.write(offset, &vec![0; len]);
            let mut bytes = vec![0xff; len];
            device.read(offset, &mut bytes);
            assert_eq!(bytes, vec![0; len]);
        }
    }
    for offset in [1, 2, 0x71, 0x45, u64::MAX, u64::MAX - 3] {
        device.write(offset, &[0; 4]);
        let mut bytes = [0xff; 4];
        device.read(offset, &mut bytes);
        assert_eq!(bytes, [0; 4]);
    }
    assert_eq!((device.get(Status), device.actions()), (status, vec![]));
    assert!(device.queue(0).is_some());
}

/// [DEV-MMIO-mmio-device-register-layout-03] [DEV-MMIO-mmio-device-register-layout-04] A bit is there from the event on until
/// it is acknowledged, and is no other event's.
#[test]
fn events_stay_until_they_are_acknowledged() {
    let mut device = device();
    let acknowledge = |device: &mut MmioDevice<Thing>, bits: u32| {
        device.write(reg::INTERRUPT_ACK as u64, &bits.to_le_bytes());
    };
    device.go_live(0);
    assert_eq!(device.get(Interrupts), 0);
    device.used(0);
    assert_eq!([device.get(Interrupts), device.get(Interrupts)], [1, 1], "reading acknowledges nothing");
    assert_eq!(device.actions(), [Action::Line(true)]);
    device.config_changed();
    assert_eq!(device.get(Interrupts), 3);
    acknowledge(&mut device, 1);
    assert_eq!((device.get(Interrupts), device.actions()), (2, vec![]), "one is left");
    acknowledge(&mut device, 0xffff_fffd);
    assert_eq!(device.get(Interrupts), 2);
    acknowledge(&mut device, 2);
    assert_eq!((device.get(Interrupts), device.actions()), (0, vec![Action::Line(false)]));
    device.used(1);
    assert_eq!((device.get(Interrupts), device.actions()), (1, vec![Action::Line(true)]));
}

/// [DEV-MMIO-mmio-device-register-layout-07] A driver takes a queue back by writing 0 to `QueueReady`, which reads 1 for as
/// long as the VMM has the queue, and sets it up anew.
#[test]
fn a_queue_is_taken_back() {
    let mut device = device();
    device.go_live(0);
    device.set(QueueSelect, 1);
    device.set(Enable, 0);
    assert_eq!((device.actions(), device.get(Enable)), (vec![Action::QueueReset(1)], 1));
    assert_eq!((device.queue(1), device.get(Reset)), (None, 0), "RING_RESET was not negotiated");
    device.queue_was_reset(1);
    assert_eq!((device.get(Enable), device.get(QueueMax)), (0, 64));
    device.set_up(1, 4);
    assert_eq!(device.actions(), [Action::QueueStarted(1)]);
}

/// Indices that have no queue, also those past 16 bits.
#[test]
fn only_queues_that_are_there_are_selected() {
    let mut device = device();
    device.go_live(0);
    for index in [2, 4, 0x1_0000, 0x1_0001, u32::MAX] {
        device.set(QueueSelect, index);
        assert_eq!((device.get(QueueMax), device.get(Enable)), (0, 0), "{index:#x}");
        device.kick(0, index);
    }
    device.set(QueueSelect, 0);
    device.write(reg::QUEUE_SIZE as u64, &0x1_0008_u32.to_le_bytes());
    assert_eq!(device.actions(), Vec::new());
    assert_eq!(device.queue(0).unwrap().features, VERSION_1);
}
