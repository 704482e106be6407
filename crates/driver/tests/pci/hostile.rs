//! What a device can do to its driver by what its configuration space and its registers read: errors, and no more.

use std::cell::Cell;
use std::sync::Arc;

use proptest::prelude::*;
use ringway_driver::transport::pci::{
    BarRange, ConfigSpace, ConfigWindow, Message, Pci, PciError, Structure, bar_sizes,
};
use ringway_driver::transport::registers::Registers;
use ringway_driver::{
    Device, Error, Notify, Platform, QueueOptions, QueueSetup, Transport as _, TransportError,
};
use ringway_memory::Gpa;
use ringway_spec::feature::NOTIFICATION_DATA;
use ringway_spec::pci::{capability, header};

use super::common::TestPlatform;
use super::function::{FIRST, Function, STEP};
use super::{PCI_ID, WANTED, one_queue, set_up, transport};

#[test]
fn a_reset_that_never_ends_is_an_error() {
    let function = Function::new(PCI_ID, 0, 0);
    function.state().status = 1;
    function.state().reset_takes = None;
    let result = set_up(transport(&function), &TestPlatform::new(), one_queue).map(|_| ());
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
}

/// A list that comes back to itself, and one that leads into the header or past all capabilities, end.
#[test]
fn a_list_of_capabilities_ends() {
    for (link, to) in [(FIRST, FIRST), (FIRST + STEP, FIRST), (FIRST, 0x10), (FIRST, 0xfc), (FIRST, 0x43)] {
        let function = Function::new(PCI_ID, 0, 0);
        function.state().space[link + capability::NEXT] = to as u8;
        let result = Pci::new(function.clone(), |range| Some(function.map(range))).map(|_| ());
        assert!(matches!(result, Err(PciError::NoStructure(_))), "{link:#x} to {to:#x}: {result:?}");
    }
}

/// A kick's address that wraps, lies outside of the structure, or is misaligned is refused before the queue is enabled.
#[test]
fn impossible_notification_addresses_are_refused() {
    let notify = FIRST + 3 * STEP;
    for (features, notify_off, multiplier, offset, is_possible) in [
        (0, 0x3ff, 4, 0x4000, true),
        (0, 0x400, 4, 0x4000, false),
        (0, 0xffff, 0, 0x4000, true),
        (0, 0xffff, u32::MAX, 0x4000, false),
        (0, 2, 0x8000_0000, 0x4000, false),
        (0, 1, 1, 0x4000, false),
        (0, 0, 4, 0x4002, true),
        (NOTIFICATION_DATA, 0x3fe, 4, 0x4000, true),
        (NOTIFICATION_DATA, 1, 2, 0x4000, false),
        (NOTIFICATION_DATA, 0, 4, 0x4002, false),
        (NOTIFICATION_DATA, 0x7ff, 2, 0x4000, false),
    ] {
        let function = Function::new(PCI_ID, features, 0);
        {
            let mut state = function.state();
            state.queues[0].notify_off = notify_off;
            state.put_u32(notify + capability::NOTIFY_OFF_MULTIPLIER, multiplier);
            state.put_u32(notify + capability::OFFSET, offset);
            state.places[3].offset = offset;
        }
        let result = set_up(transport(&function), &TestPlatform::new(), one_queue).map(|_| ());
        let refused = matches!(result, Err(Error::Transport(TransportError::BadNotifyAddress(0))));
        assert_eq!(
            (result.is_ok(), refused),
            (is_possible, !is_possible),
            "{notify_off:#x} {multiplier:#x} {offset:#x}"
        );
    }
}

/// A part past its BAR's end has no address that is not past the end too, and an address that wraps is none.
#[test]
fn addresses_do_not_wrap() {
    let function = Function::new(PCI_ID, 0, 0);
    function.state().put_u32(header::BAR + 16, 0xffff_f000 | header::BAR_TYPE_64);
    function.state().put_u32(header::BAR + 20, u32::MAX);
    let mut ranges = Vec::new();
    let result = Pci::new(function.clone(), |range| {
        ranges.push(*range);
        range.address().map(|_| function.map(range))
    });
    assert_eq!(result.map(|_| ()), Err(PciError::NoStructure(Structure::Common)));
    assert_eq!(ranges.len(), 1);
    assert_eq!((ranges[0].base, ranges[0].address()), (0xffff_ffff_ffff_f000, None));
}

/// Registers that read what the script says, over and over, and keep nothing. An access past the end fails the test.
struct Scripted {
    words: Vec<u32>,
    next: Cell<usize>,
    /// First address, for alignment.
    start: usize,
    len: usize,
}

impl Scripted {
    fn check(&self, offset: usize, width: usize) {
        assert!(offset + width <= self.len && (self.start + offset).is_multiple_of(width));
    }

    fn read(&self, offset: usize, width: usize) -> u32 {
        self.check(offset, width);
        self.next.set(self.next.get() + 1);
        self.words[self.next.get() % self.words.len()]
    }
}

impl Registers for Scripted {
    fn len(&self) -> usize {
        self.len
    }

    fn read_u8(&self, offset: usize) -> u8 {
        self.read(offset, 1) as u8
    }

    fn read_u16(&self, offset: usize) -> u16 {
        self.read(offset, 2) as u16
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.read(offset, 4)
    }

    fn write_u8(&self, offset: usize, _: u8) {
        self.check(offset, 1);
    }

    fn write_u16(&self, offset: usize, _: u16) {
        self.check(offset, 2);
    }

    fn write_u32(&self, offset: usize, _: u32) {
        self.check(offset, 4);
    }
}

/// A configuration space of these bytes, which keeps nothing either.
#[derive(Debug, Clone)]
struct Space {
    bytes: [u8; header::SPACE],
}

impl ConfigSpace for Space {
    fn read_u8(&self, offset: usize) -> u8 {
        self.bytes[offset]
    }

    fn read_u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    fn read_u32(&self, offset: usize) -> u32 {
        u32::from(self.read_u16(offset)) | u32::from(self.read_u16(offset + 2)) << 16
    }

    fn write_u8(&self, offset: usize, _: u8) {
        assert!(offset < header::SPACE);
    }

    fn write_u16(&self, offset: usize, _: u16) {
        assert!(offset + 2 <= header::SPACE);
    }

    fn write_u32(&self, offset: usize, _: u32) {
        assert!(offset + 4 <= header::SPACE);
    }
}

/// Bytes that are often those of a device: a good configuration space, with some of it replaced.
fn spaces() -> impl Strategy<Value = Space> {
    let bytes = prop_oneof![Just(0), Just(1), Just(4), Just(9), Just(0x11), Just(0xff), any::<u8>()];
    // What makes it a virtio device at all stays.
    let spoilt = prop::collection::vec((4..header::SPACE, bytes), 0..40);
    (prop::bool::weighted(0.8), spoilt).prop_map(|(is_good, spoilt)| {
        let function = Function::new(PCI_ID, 0, 4);
        let mut space = Space { bytes: function.state().space };
        if !is_good {
            space.bytes[FIRST..].fill(0x41);
        }
        for (at, byte) in spoilt {
            space.bytes[at] = byte;
        }
        space
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in the configuration space and in the registers, finding a device and setting it up ends, without an access
    /// outside of what was mapped.
    #[test]
    fn no_function_hangs_or_breaks_a_driver(
        space in spaces(),
        words in prop::collection::vec(
            prop_oneof![3 => Just(0), 3 => Just(1), 2 => Just(9), 2 => Just(0x100), 1 => Just(u32::MAX), 1 => any::<u32>()],
            1..24,
        ),
        features in any::<u64>(),
    ) {
        bar_sizes(&space);
        ConfigWindow::find(&std::rc::Rc::new(space.clone()));
        let map = |range: &BarRange| {
            Some(Scripted {
                words: words.clone(),
                next: Cell::new(0),
                start: range.offset as usize,
                len: range.len as usize,
            })
        };
        let Ok(mut transport) = Pci::new(space, map) else { return Ok(()) };
        if transport.enable_vectors(true).is_ok() {
            let vectors = transport.vectors();
            prop_assert!((1..=0x800).contains(&vectors));
            transport.set_vector(vectors - 1, Message { address: 0xfee0_0000, data: 0 }).unwrap();
        }
        let (at, vector) = (Gpa(0x1000), None);
        let setup = QueueSetup { size: 1, features, descriptor: at, driver: at, device: at, vector };
        for index in [0, 1] {
            if let Ok(notifier) = transport.set_up_queue(index, &setup) {
                notifier.notify(0x1234);
            }
        }
        let platform: Arc<dyn Platform> = TestPlatform::new();
        let result = Device::set_up(transport, platform, &WANTED, |device| {
            let _ = device.config(|config| config.u64(0));
            let _ = device.transport_mut().set_config_vector(Some(0));
            device.queue::<()>(0, QueueOptions { vector: Some(1), ..QueueOptions::default() })
        });
        if let Ok((mut device, queue)) = result {
            // Either is right, as long as it comes back.
            let _ = device.interrupt();
            let _ = device.reset_queue(queue);
        }
    }
}
