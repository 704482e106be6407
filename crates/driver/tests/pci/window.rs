//! The window in the configuration space (4.1.4.9): a device without a mapped BAR.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use ringway_driver::transport::pci::{ConfigSpace, ConfigWindow, Pci, Structure};
use ringway_driver::{Device, Platform, QueueOptions};
use ringway_memory::SharedBuf;
use ringway_spec::pci::{capability, header};

use super::common::TestPlatform;
use super::function::{Function, Place};
use super::{PCI_ID, WANTED};

/// A function whose BARs have no addresses, and whose window works.
struct Windowed {
    function: Function,
    window: usize,
    accesses: Cell<usize>,
}

impl Windowed {
    fn new(function: Function) -> Self {
        for bar in 0..header::BARS {
            let kind = if bar == 4 { header::BAR_TYPE_64 } else { 0 };
            function.state().put_u32(header::BAR + 4 * bar, kind);
        }
        // The capability's own bar, offset and length are what the driver writes.
        let window = function.put(Place { structure: Structure::VectorTable, bar: 0, offset: 0, len: 0 });
        function.state().space[window + capability::LEN] = capability::PCI_CFG_SIZE as u8;
        Self { function, window, accesses: Cell::new(0) }
    }

    /// What the window shows: a structure, and where in it. Fails the test unless it is one, as wide as the access, and
    /// aligned.
    fn shown(&self, width: usize) -> (Structure, usize) {
        self.accesses.set(self.accesses.get() + 1);
        let bar = self.function.read_u8(self.window + capability::BAR);
        let offset = self.function.read_u32(self.window + capability::OFFSET);
        assert_eq!(self.function.read_u32(self.window + capability::LENGTH) as usize, width);
        assert!(offset.is_multiple_of(width as u32), "{offset:#x} is misaligned for {width} bytes");
        let state = self.function.state();
        let is_here = |place: &&Place| {
            place.bar == bar && place.offset <= offset && offset + width as u32 <= place.offset + place.len
        };
        let place = state.places.iter().find(is_here).expect("a structure");
        (place.structure, (offset - place.offset) as usize)
    }

    fn is_data(&self, offset: usize) -> bool {
        offset == self.window + capability::PCI_CFG_DATA
    }

    fn read(&self, width: usize) -> u32 {
        let (structure, offset) = self.shown(width);
        self.function.state().read(structure, offset, width)
    }

    fn write(&self, width: usize, value: u32) {
        let (structure, offset) = self.shown(width);
        self.function.state().write(structure, offset, width, value);
    }
}

impl ConfigSpace for Windowed {
    fn read_u8(&self, offset: usize) -> u8 {
        if self.is_data(offset) { self.read(1) as u8 } else { self.function.read_u8(offset) }
    }

    fn read_u16(&self, offset: usize) -> u16 {
        if self.is_data(offset) { self.read(2) as u16 } else { self.function.read_u16(offset) }
    }

    fn read_u32(&self, offset: usize) -> u32 {
        if self.is_data(offset) { self.read(4) } else { self.function.read_u32(offset) }
    }

    fn write_u8(&self, offset: usize, value: u8) {
        if self.is_data(offset) {
            return self.write(1, value.into());
        }
        assert_eq!(offset, self.window + capability::BAR, "of the capability's bytes this one is written");
        self.function.state().space[offset] = value;
    }

    fn write_u16(&self, offset: usize, value: u16) {
        if self.is_data(offset) {
            return self.write(2, value.into());
        }
        self.function.write_u16(offset, value);
    }

    fn write_u32(&self, offset: usize, value: u32) {
        if self.is_data(offset) {
            return self.write(4, value);
        }
        assert!([capability::OFFSET, capability::LENGTH].map(|at| self.window + at).contains(&offset));
        self.function.state().put_u32(offset, value);
    }
}

/// [DRV-PCI-pci-configuration-access-capability-01] [DRV-PCI-pci-configuration-access-capability-02] A device is driven by its
/// window alone: each access is aligned, and inside of one of its structures.
#[test]
fn a_device_is_driven_by_its_window() {
    let config_space = Rc::new(Windowed::new(Function::new(PCI_ID, 0, 2)));
    let window = ConfigWindow::find(&config_space).unwrap();
    let transport = Pci::new(Rc::clone(&config_space), |range| window.map(range)).unwrap();
    assert_eq!(transport.vectors(), 0, "the table of vectors is no structure of virtio");
    let platform = TestPlatform::new();
    let (mut device, mut queue) =
        Device::set_up(transport, Arc::clone(&platform) as Arc<dyn Platform>, &WANTED, |d| {
            let field = d.config(|config| config.u32(12))?;
            assert_eq!(field, 0x0f0e_0d0c);
            d.queue::<SharedBuf>(1, QueueOptions::default())
        })
        .unwrap();
    let mut theirs = platform.device_queue(&config_space.function.queue(1));
    let buffer = device.buffers(1, 64).unwrap().remove(0);
    assert!(queue.add(&[], &[(&buffer).into()], buffer).is_ok());
    let before = config_space.accesses.get();
    queue.publish();
    assert_eq!(config_space.accesses.get(), before + 1, "a kick");
    assert_eq!(theirs.take(&mut ringway_queue::Burst::default(), 8).unwrap(), 1);
    device.write_config_u8(5, 0x77).unwrap();
    assert_eq!(config_space.function.state().config[5], 0x77);
    // Its BARs answer nowhere.
    assert_eq!(config_space.function.state().u16(header::COMMAND), header::COMMAND_BUS_MASTER);
}

/// A window that is cut off by the end of the configuration space, or too short, is none.
#[test]
fn a_window_has_room_for_its_data() {
    let function = Windowed::new(Function::new(PCI_ID, 0, 0));
    let window = function.window;
    function.function.state().space[window + capability::LEN] = 19;
    assert!(ConfigWindow::find(&Rc::new(function)).is_none());
    assert!(ConfigWindow::find(&Rc::new(Function::new(PCI_ID, 0, 0))).is_none());
}
