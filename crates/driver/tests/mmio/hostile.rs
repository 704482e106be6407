//! What a device can do to its driver by what its registers read: errors, and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use ringway_driver::transport::mmio::{Mmio, MmioError};
use ringway_driver::transport::registers::Registers;
use ringway_driver::{Device, Error, Platform, QueueOptions};
use ringway_spec::mmio::{CONFIG, DEVICE_ID, MAGIC, MAGIC_VALUE, VERSION, VERSION_MODERN};

use super::common::TestPlatform;
use super::device::FakeMmio;
use super::{ID, WANTED, one_queue, set_up};

/// A reset that never ends.
#[test]
fn a_reset_that_never_ends_is_an_error() {
    let registers = FakeMmio::new(ID, 0, 1);
    registers.state().status = 0xff;
    registers.state().reset_takes = None;
    let result = set_up(&registers, &TestPlatform::new(), one_queue).map(|_| ());
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
}

/// Registers that read what the script says, over and over; writes change nothing.
struct Scripted {
    len: usize,
    words: Vec<u32>,
    next: AtomicUsize,
}

impl Scripted {
    fn read(&self, offset: usize) -> u32 {
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => VERSION_MODERN,
            DEVICE_ID => ID,
            _ => self.words[self.next.fetch_add(1, Ordering::Relaxed) % self.words.len()],
        }
    }
}

impl Registers for Scripted {
    fn len(&self) -> usize {
        self.len
    }

    fn read_u8(&self, offset: usize) -> u8 {
        self.read(offset) as u8
    }

    fn read_u16(&self, offset: usize) -> u16 {
        self.read(offset) as u16
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.read(offset)
    }

    fn write_u8(&self, _: usize, _: u8) {}

    fn write_u16(&self, _: usize, _: u16) {}

    fn write_u32(&self, _: usize, _: u32) {}
}

/// Registers without room for the table are not touched.
#[test]
fn too_few_registers_are_no_device() {
    let registers = Scripted { len: CONFIG - 1, words: Vec::new(), next: AtomicUsize::new(0) };
    assert_eq!(Mmio::new(registers).err(), Some(MmioError::Short { len: CONFIG - 1 }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever its registers read, a set-up ends.
    #[test]
    fn no_registers_hang_or_break_a_driver(
        words in prop::collection::vec(prop_oneof![Just(0), Just(1), Just(9), Just(u32::MAX), any::<u32>()], 1..24),
    ) {
        let registers = Scripted { len: CONFIG + 8, words, next: AtomicUsize::new(0) };
        let transport = Mmio::new(registers).unwrap().unwrap();
        let platform: Arc<dyn Platform> = TestPlatform::new();
        let result = Device::set_up(transport, platform, &WANTED, |device| {
            device.config(|config| Ok((config.u64(0)?, config.u32(8).is_err())))?;
            device.queue::<()>(0, QueueOptions::default())
        });
        if let Ok((mut device, queue)) = result {
            // Either is right, as long as it comes back.
            let _ = device.interrupt();
            let _ = device.reset_queue(queue);
        }
    }
}
