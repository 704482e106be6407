//! A strict function of a PCI device: it fails the test at any access that the specification does not allow a driver
//! (4.1.4), and writes all others to a log. Its structures are in BARs as the test puts them.

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::rc::Rc;

use ringway_driver::QueueSetup;
use ringway_driver::transport::pci::{BarRange, ConfigSpace, Structure};
use ringway_driver::transport::registers::Registers;
use ringway_memory::Gpa;
use ringway_spec::feature::{NOTIF_CONFIG_DATA, NOTIFICATION_DATA, RING_PACKED, RING_RESET, VERSION_1};
use ringway_spec::pci::common::*;
use ringway_spec::pci::{MSI_NO_VECTOR, VENDOR_ID, capability, header, msix};

/// What a driver did: in the configuration space, or in a structure. With the offset, the width in bytes, and the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    WriteConfigSpace(usize, usize, u32),
    Read(Structure, usize, usize, u32),
    Write(Structure, usize, usize, u32),
}

/// Where a test puts a structure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) structure: Structure,
    pub(crate) bar: u8,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// A queue, as the driver sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue {
    pub(crate) size: u16,
    pub(crate) vector: u16,
    pub(crate) enabled: u16,
    pub(crate) notify_off: u16,
    pub(crate) notif_config_data: u16,
    addresses: [u32; 6],
    /// Reads until its reset is done.
    resetting: Option<u32>,
}

/// What the device is like. Tests set the fields at will.
pub(crate) struct State {
    /// The configuration space.
    pub(crate) space: [u8; header::SPACE],
    pub(crate) places: Vec<Place>,
    pub(crate) offered: u64,
    pub(crate) accepted: u64,
    pub(crate) status: u8,
    /// Reads of the status until a reset is done; none: never.
    pub(crate) reset_takes: Option<u32>,
    resetting: Option<u32>,
    selectors: BTreeMap<usize, u32>,
    pub(crate) config_vector: u16,
    /// Vectors that the device cannot use.
    pub(crate) refused: Vec<u16>,
    pub(crate) queues: Vec<Queue>,
    /// Reads until a queue's reset is done.
    pub(crate) queue_reset_takes: u32,
    pub(crate) generation: u8,
    pub(crate) isr: u8,
    pub(crate) config: Vec<u8>,
    pub(crate) table: BTreeMap<usize, u32>,
    pub(crate) log: Vec<Access>,
}

/// The function, from both sides.
#[derive(Clone)]
pub(crate) struct Function {
    state: Rc<RefCell<State>>,
}

/// Where the first capability is, and how far each is behind the last.
pub(crate) const FIRST: usize = 0x40;
pub(crate) const STEP: usize = 0x18;
/// Where the MSI-X capability is: behind four others.
pub(crate) const MSIX: usize = FIRST + 4 * STEP;
/// What a queue's notify offset is multiplied by.
pub(crate) const MULTIPLIER: u32 = 4;

impl Function {
    /// A device of type `id` with these features and `VERSION_1`, three queues of 256 descriptors, and 16 bytes of
    /// configuration; all of it in BAR 4, which is of 64 bits. It has as many vectors, up to 2048.
    pub(crate) fn new(id: u16, features: u64, vectors: u16) -> Self {
        let function = Self::bare(id, features);
        let place = |structure, offset, len| Place { structure, bar: 4, offset, len };
        function.put(place(Structure::Common, 0x1000, SIZE as u32));
        function.put(place(Structure::Isr, 0x2000, 4));
        function.put(place(Structure::Device, 0x3000, 16));
        function.put(place(Structure::Notify, 0x4000, 0x1000));
        if vectors > 0 {
            function.state().put_msix(vectors);
        }
        function
    }

    /// A device without a capability.
    pub(crate) fn bare(id: u16, features: u64) -> Self {
        Self { state: Rc::new(RefCell::new(State::new(id, features))) }
    }

    pub(crate) fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// The accesses since the last call.
    pub(crate) fn take_log(&self) -> Vec<Access> {
        std::mem::take(&mut self.state().log)
    }

    /// Puts a structure somewhere, and a capability for it at the end of the list. Returns where that is.
    pub(crate) fn put(&self, place: Place) -> usize {
        let (mut at, mut link) = (FIRST, header::CAPABILITIES);
        let mut state = self.state();
        while state.space[link] != 0 {
            link = usize::from(state.space[link]) + capability::NEXT;
            at += STEP;
        }
        state.space[link] = at as u8;
        state.places.push(place);
        let cfg_type = match place.structure {
            Structure::Common => capability::COMMON_CFG,
            Structure::Notify => capability::NOTIFY_CFG,
            Structure::Isr => capability::ISR_CFG,
            Structure::Device => capability::DEVICE_CFG,
            Structure::VectorTable => capability::PCI_CFG,
        };
        let len =
            if place.structure == Structure::Notify { capability::NOTIFY_SIZE } else { capability::SIZE };
        state.space[at..at + 5].copy_from_slice(&[capability::ID_VENDOR, 0, len as u8, cfg_type, place.bar]);
        state.put_u32(at + capability::OFFSET, place.offset);
        state.put_u32(at + capability::LENGTH, place.len);
        state.put_u32(at + capability::NOTIFY_OFF_MULTIPLIER, MULTIPLIER);
        at
    }

    /// The window on a part of a BAR. Fails the test if there is no such structure.
    pub(crate) fn map(&self, range: &BarRange) -> Window {
        let place = self.state().place(range.bar, range.offset, range.len);
        assert_eq!(place.structure, range.structure);
        Window { function: self.clone(), range: *range }
    }

    /// How a queue was set up.
    pub(crate) fn queue(&self, index: u16) -> QueueSetup {
        let state = self.state();
        let queue = &state.queues[usize::from(index)];
        assert_eq!(queue.enabled, 1, "queue {index} is not enabled");
        let address =
            |at: usize| Gpa(u64::from(queue.addresses[at]) | u64::from(queue.addresses[at + 1]) << 32);
        QueueSetup {
            size: queue.size,
            features: state.accepted,
            descriptor: address(0),
            driver: address(2),
            device: address(4),
            vector: Some(queue.vector).filter(|vector| *vector != MSI_NO_VECTOR),
        }
    }
}

impl State {
    fn new(id: u16, features: u64) -> Self {
        let queue = |index: u16| Queue {
            size: 256,
            vector: MSI_NO_VECTOR,
            enabled: 0,
            notify_off: 10 + index,
            notif_config_data: 100 + index,
            addresses: [0; 6],
            resetting: None,
        };
        let mut state = Self {
            space: [0; header::SPACE],
            places: Vec::new(),
            offered: features | VERSION_1,
            accepted: 0,
            status: 0,
            reset_takes: Some(0),
            resetting: None,
            selectors: BTreeMap::new(),
            config_vector: MSI_NO_VECTOR,
            refused: Vec::new(),
            queues: (0..3).map(queue).collect(),
            queue_reset_takes: 0,
            generation: 0,
            isr: 0,
            config: (0..16).collect(),
            table: BTreeMap::new(),
            log: Vec::new(),
        };
        state.put_u16(header::VENDOR_ID, VENDOR_ID);
        state.put_u16(header::DEVICE_ID, id);
        state.put_u16(header::STATUS, header::STATUS_CAPABILITIES);
        state.put_u32(header::BAR, 0xc001);
        state.put_u32(header::BAR + 4, 0xfebd_0000);
        state.put_u32(header::BAR + 16, header::BAR_TYPE_64 | header::BAR_PREFETCHABLE);
        state.put_u32(header::BAR + 20, 0x80);
        state
    }

    pub(crate) fn put_u16(&mut self, at: usize, value: u16) {
        self.space[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn put_u32(&mut self, at: usize, value: u32) {
        self.space[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.space[at], self.space[at + 1]])
    }

    fn put_msix(&mut self, vectors: u16) {
        let before = MSIX - STEP + capability::NEXT;
        assert_eq!(self.space[before], 0, "the end of the list");
        self.space[before] = MSIX as u8;
        self.space[MSIX] = msix::CAPABILITY_ID;
        self.put_u16(MSIX + msix::CONTROL, vectors - 1);
        self.put_u32(MSIX + msix::TABLE, 0x800 | 1);
        let len = u32::from(vectors) * msix::ENTRY_SIZE as u32;
        self.places.push(Place { structure: Structure::VectorTable, bar: 1, offset: 0x800, len });
    }

    /// The structure that a part of a BAR is in.
    fn place(&self, bar: u8, offset: u32, len: u32) -> Place {
        let is_here = |place: &&Place| {
            let (start, end) = (u64::from(place.offset), u64::from(place.offset) + u64::from(place.len));
            let part = u64::from(offset)..u64::from(offset) + u64::from(len);
            place.bar == bar && start <= part.start && part.end <= end
        };
        *self.places.iter().find(is_here).unwrap_or_else(|| panic!("{len} bytes at {offset:#x} are nowhere"))
    }

    fn vectors_enabled(&self) -> bool {
        self.u16(MSIX + msix::CONTROL) & msix::CONTROL_ENABLE != 0
    }

    fn selected(&mut self) -> Option<&mut Queue> {
        let index = *self.selectors.get(&QUEUE_SELECT).expect("it was selected which queue is meant");
        self.queues.get_mut(index as usize)
    }

    fn half(&self, selector: usize) -> u32 {
        let half = *self.selectors.get(&selector).expect("it was selected which half is meant");
        assert!(half < 2, "there are two halves");
        half
    }

    pub(crate) fn read(&mut self, structure: Structure, offset: usize, width: usize) -> u32 {
        match structure {
            Structure::Common => {
                assert_eq!(width, field_width(offset), "the width of {offset:#x}");
                self.read_common(offset)
            }
            Structure::Isr => {
                assert_eq!((offset, width), (0, 1));
                assert!(!self.vectors_enabled(), "with vectors there is nothing to ask");
                std::mem::take(&mut self.isr).into()
            }
            Structure::Device => {
                let mut bytes = [0; 4];
                bytes[..width].copy_from_slice(&self.config[offset..offset + width]);
                u32::from_le_bytes(bytes)
            }
            Structure::VectorTable => *self.table.get(&offset).unwrap_or(&0),
            Structure::Notify => panic!("where kicks go nothing is read"),
        }
    }

    pub(crate) fn write(&mut self, structure: Structure, offset: usize, width: usize, value: u32) {
        match structure {
            Structure::Common => {
                assert_eq!(width, field_width(offset), "the width of {offset:#x}");
                self.write_common(offset, value);
            }
            Structure::Notify => {
                let is_long = self.accepted & NOTIFICATION_DATA != 0;
                assert_eq!(width, if is_long { 4 } else { 2 }, "the width of a kick");
            }
            Structure::Device => {
                self.config[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            Structure::VectorTable => {
                assert_eq!(width, 4);
                let control = offset / msix::ENTRY_SIZE * msix::ENTRY_SIZE + msix::ENTRY_CONTROL;
                let is_masked = self.table.get(&control).is_some_and(|word| word & msix::ENTRY_MASKED != 0);
                assert!(offset == control || is_masked, "a message is changed while it is masked");
                self.table.insert(offset, value);
            }
            Structure::Isr => panic!("the ISR status is not written"),
        }
    }

    fn read_common(&mut self, offset: usize) -> u32 {
        match offset {
            DEVICE_FEATURE => (self.offered >> (32 * self.half(DEVICE_FEATURE_SELECT))) as u32,
            CONFIG_MSIX_VECTOR => self.config_vector.into(),
            NUM_QUEUES => self.queues.len() as u32,
            DEVICE_STATUS => self.read_status().into(),
            CONFIG_GENERATION => self.generation.into(),
            QUEUE_SIZE => self.selected().map_or(0, |queue| queue.size).into(),
            QUEUE_MSIX_VECTOR => self.selected().expect("a queue").vector.into(),
            QUEUE_ENABLE => self.selected().expect("a queue").enabled.into(),
            QUEUE_NOTIFY_OFF => self.selected().expect("a queue").notify_off.into(),
            QUEUE_NOTIF_CONFIG_DATA => {
                assert!(self.accepted & NOTIF_CONFIG_DATA != 0, "the field is there if that was negotiated");
                self.selected().expect("a queue").notif_config_data.into()
            }
            QUEUE_RESET => self.read_queue_reset(),
            _ => panic!("{offset:#x} is not read"),
        }
    }

    fn read_status(&mut self) -> u8 {
        match self.resetting {
            Some(0) => {
                self.resetting = None;
                self.status = 0;
            }
            Some(left) => self.resetting = Some(left - 1),
            None => {}
        }
        self.status
    }

    fn read_queue_reset(&mut self) -> u32 {
        let queue = self.selected().expect("a queue");
        match queue.resetting {
            None => 0,
            Some(0) => {
                *queue = Queue { size: 256, enabled: 0, addresses: [0; 6], resetting: None, ..*queue };
                0
            }
            Some(left) => {
                queue.resetting = Some(left - 1);
                1
            }
        }
    }

    fn write_common(&mut self, offset: usize, value: u32) {
        let vectors = self.vectors_enabled();
        let granted = if self.refused.contains(&(value as u16)) { MSI_NO_VECTOR } else { value as u16 };
        let (is_packed, can_reset) = (self.accepted & RING_PACKED != 0, self.accepted & RING_RESET != 0);
        match offset {
            DEVICE_FEATURE_SELECT | DRIVER_FEATURE_SELECT | QUEUE_SELECT => {
                self.selectors.insert(offset, value);
                return;
            }
            DRIVER_FEATURE => {
                let shift = 32 * self.half(DRIVER_FEATURE_SELECT);
                self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
                return;
            }
            DEVICE_STATUS => return self.write_status(value as u8),
            CONFIG_MSIX_VECTOR => {
                assert!(vectors, "a vector, while they are enabled");
                self.config_vector = granted;
                return;
            }
            QUEUE_RESET => {
                assert!(can_reset && value == 1, "a queue is reset, if that was negotiated");
                let takes = self.queue_reset_takes;
                self.selected().expect("a queue").resetting = Some(takes);
                return;
            }
            _ => {}
        }
        let queue = self.selected().expect("a queue");
        assert_eq!(queue.enabled, 0, "{offset:#x} is not written after the queue was enabled");
        match offset {
            QUEUE_SIZE => {
                assert!(is_packed || (value as u16).is_power_of_two(), "a power of two");
                assert!(value > 0 && value <= queue.size.into(), "a size that the device has");
                queue.size = value as u16;
            }
            QUEUE_MSIX_VECTOR => {
                assert!(vectors, "a vector, while they are enabled");
                queue.vector = granted;
            }
            QUEUE_ENABLE => {
                assert_eq!(value, 1, "a queue is not disabled");
                queue.enabled = 1;
            }
            QUEUE_DESC..QUEUE_NOTIF_CONFIG_DATA => queue.addresses[(offset - QUEUE_DESC) / 4] = value,
            _ => panic!("{offset:#x} is not written"),
        }
    }

    fn write_status(&mut self, value: u8) {
        if value != 0 {
            self.status = value;
            return;
        }
        self.resetting = self.reset_takes;
        self.accepted = 0;
        self.config_vector = MSI_NO_VECTOR;
        for queue in &mut self.queues {
            *queue = Queue { size: 256, enabled: 0, vector: MSI_NO_VECTOR, ..*queue };
        }
    }
}

/// How wide a field of the common configuration is; those of 64 bits are two.
fn field_width(offset: usize) -> usize {
    match offset {
        DEVICE_FEATURE_SELECT | DEVICE_FEATURE | DRIVER_FEATURE_SELECT | DRIVER_FEATURE => 4,
        DEVICE_STATUS | CONFIG_GENERATION => 1,
        QUEUE_DESC..QUEUE_NOTIF_CONFIG_DATA if offset.is_multiple_of(4) => 4,
        CONFIG_MSIX_VECTOR | NUM_QUEUES | QUEUE_SELECT..QUEUE_DESC | QUEUE_NOTIF_CONFIG_DATA..SIZE => {
            assert!(offset.is_multiple_of(2), "no field begins at {offset:#x}");
            2
        }
        _ => panic!("no field begins at {offset:#x}"),
    }
}

impl ConfigSpace for Function {
    fn read_u8(&self, offset: usize) -> u8 {
        self.state().space[offset]
    }

    fn read_u16(&self, offset: usize) -> u16 {
        assert!(offset.is_multiple_of(2));
        self.state().u16(offset)
    }

    fn read_u32(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4));
        u32::from(self.read_u16(offset)) | u32::from(self.read_u16(offset + 2)) << 16
    }

    fn write_u8(&self, offset: usize, value: u8) {
        panic!("{value:#x} is written to {offset:#x}");
    }

    /// Only the command, and what enables MSI-X, are to be written; the latter has read-only bits.
    fn write_u16(&self, offset: usize, value: u16) {
        let mut state = self.state();
        state.log.push(Access::WriteConfigSpace(offset, 2, value.into()));
        let writable = match offset {
            header::COMMAND => u16::MAX,
            _ if offset == MSIX + msix::CONTROL => !msix::CONTROL_TABLE_SIZE,
            _ => panic!("{value:#x} is written to {offset:#x}"),
        };
        let value = state.u16(offset) & !writable | value & writable;
        state.put_u16(offset, value);
    }

    fn write_u32(&self, offset: usize, value: u32) {
        panic!("{value:#x} is written to {offset:#x}");
    }
}

/// A part of a BAR that is mapped.
pub(crate) struct Window {
    function: Function,
    range: BarRange,
}

impl Window {
    fn check(&self, offset: usize, width: usize) {
        assert!(offset + width <= self.range.len as usize, "{offset:#x} is not mapped");
        let at = self.range.offset as usize + offset;
        assert!(at.is_multiple_of(width), "{at:#x} is misaligned for {width} bytes");
        // Nothing is accessed before the function answers, and may reach memory.
        let command = self.function.state().u16(header::COMMAND);
        assert!(command & header::COMMAND_BUS_MASTER != 0 && command & header::COMMAND_MEMORY != 0);
    }

    fn read(&self, offset: usize, width: usize) -> u32 {
        self.check(offset, width);
        let mut state = self.function.state();
        let value = state.read(self.range.structure, offset, width);
        state.log.push(Access::Read(self.range.structure, offset, width, value));
        value
    }

    fn write(&self, offset: usize, width: usize, value: u32) {
        self.check(offset, width);
        let mut state = self.function.state();
        state.log.push(Access::Write(self.range.structure, offset, width, value));
        state.write(self.range.structure, offset, width, value);
    }
}

impl Registers for Window {
    fn len(&self) -> usize {
        self.range.len as usize
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

    fn write_u8(&self, offset: usize, value: u8) {
        self.write(offset, 1, value.into());
    }

    fn write_u16(&self, offset: usize, value: u16) {
        self.write(offset, 2, value.into());
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, 4, value);
    }
}
