//! A monitor in a few lines: what a guest's driver accesses goes to a device's registers, and what these ask for is done at
//! once.
//!
//! ```text
//!   driver ──► Registers, ConfigSpace ──► Vmm ──► MmioDevice, PciDevice
//!                                          └──► DeviceQueue ──► the model serves it
//! ```
#![allow(unsafe_code, reason = "a platform promises that its memory is the device's")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use ringway_device::mmio::MmioDevice;
use ringway_device::model::DeviceModel;
use ringway_device::pci::PciDevice;
use ringway_device::registers::{Action, QueueSetup};
use ringway_driver::transport::pci::ConfigSpace;
use ringway_driver::transport::registers::Registers;
use ringway_driver::{OutOfMemory, Platform};
use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, Region};
use ringway_queue::{Burst, DeviceQueue, QueueError};
use rustix::fs::{MemfdFlags, memfd_create};

/// Where the guest's memory begins.
const BASE: u64 = 0x1_0000_0000;
const LEN: u64 = 64 << 20;

/// The guest's memory, of which each part is given out once.
pub(crate) struct Machine {
    region: Region,
    file: std::fs::File,
    next: Mutex<u64>,
}

impl Machine {
    pub(crate) fn new() -> Arc<Self> {
        let file = std::fs::File::from(memfd_create("registers", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(LEN).unwrap();
        let region = map(&file, 0, LEN).unwrap();
        Arc::new(Self { region, file, next: Mutex::new(0) })
    }

    pub(crate) fn memory(&self) -> Arc<MemoryTable> {
        Arc::new(MemoryTable::new(vec![self.region.clone()]).unwrap())
    }
}

fn map(file: &std::fs::File, offset: u64, len: u64) -> Option<Region> {
    Mapping::region(file.try_clone().ok()?.into(), offset, len, Gpa(BASE + offset), FrontendVa(offset)).ok()
}

// SAFETY: each part of the file is given out once, by the address at which the device finds it.
unsafe impl Platform for Machine {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        let mut next = self.next.lock().unwrap();
        let offset = *next;
        *next += len.next_multiple_of(4096);
        map(&self.file, offset, len).filter(|_| *next <= LEN).ok_or(OutOfMemory { len })
    }

    fn wait(&self, round: u32) -> bool {
        round < 10
    }
}

/// What a monitor calls of both kinds of registers.
pub(crate) trait Bus {
    type Model: DeviceModel;
    fn read(&mut self, offset: u64, to: &mut [u8]);
    fn write(&mut self, offset: u64, from: &[u8]);
    fn read_config_space(&mut self, offset: u16, to: &mut [u8]);
    fn write_config_space(&mut self, offset: u16, from: &[u8]);
    fn next_action(&mut self) -> Option<Action>;
    fn queue(&self, index: u16) -> Option<QueueSetup>;
    fn used(&mut self, index: u16);
    fn need_reset(&mut self);
    fn config_changed(&mut self);
    fn queue_was_reset(&mut self, index: u16);
    fn model_mut(&mut self) -> &mut Self::Model;
}

macro_rules! bus {
    ($device:ident) => {
        type Model = M;

        fn read(&mut self, offset: u64, to: &mut [u8]) {
            $device::read(self, offset, to);
        }

        fn write(&mut self, offset: u64, from: &[u8]) {
            $device::write(self, offset, from);
        }

        fn next_action(&mut self) -> Option<Action> {
            $device::next_action(self)
        }

        fn queue(&self, index: u16) -> Option<QueueSetup> {
            $device::queue(self, index)
        }

        fn used(&mut self, index: u16) {
            $device::used(self, index);
        }

        fn need_reset(&mut self) {
            $device::need_reset(self);
        }

        fn config_changed(&mut self) {
            $device::config_changed(self);
        }

        fn queue_was_reset(&mut self, index: u16) {
            $device::queue_was_reset(self, index);
        }

        fn model_mut(&mut self) -> &mut M {
            $device::model_mut(self)
        }
    };
}

impl<M: DeviceModel> Bus for MmioDevice<M> {
    fn read_config_space(&mut self, _offset: u16, _to: &mut [u8]) {
        unreachable!("MMIO has none");
    }

    fn write_config_space(&mut self, _offset: u16, _from: &[u8]) {
        unreachable!("MMIO has none");
    }

    bus!(MmioDevice);
}

impl<M: DeviceModel> Bus for PciDevice<M> {
    fn read_config_space(&mut self, offset: u16, to: &mut [u8]) {
        PciDevice::read_config_space(self, offset, to);
    }

    fn write_config_space(&mut self, offset: u16, from: &[u8]) {
        PciDevice::write_config_space(self, offset, from);
    }

    bus!(PciDevice);
}

/// How a device serves one of its queues; returns whether to call the driver.
pub(crate) type Serve<M> = fn(&mut M, &mut DeviceQueue, &mut Burst) -> Result<bool, QueueError>;

/// A monitor with one device.
pub(crate) struct Vmm<B: Bus> {
    pub(crate) device: B,
    serve: Serve<B::Model>,
    memory: Arc<MemoryTable>,
    pub(crate) queues: BTreeMap<u16, DeviceQueue>,
    burst: Burst,
    /// The interrupt line.
    pub(crate) line: bool,
    /// What messages carried.
    pub(crate) messages: Vec<u32>,
    /// How often the driver reset the device.
    pub(crate) resets: usize,
}

/// A monitor that the driver's side reaches as well.
pub(crate) type Shared<B> = Rc<RefCell<Vmm<B>>>;

impl<B: Bus> Vmm<B> {
    pub(crate) fn new(device: B, machine: &Machine, serve: Serve<B::Model>) -> Shared<B> {
        let (memory, queues) = (machine.memory(), BTreeMap::new());
        let (burst, messages) = (Burst::default(), Vec::new());
        let vmm = Self { device, serve, memory, queues, burst, line: false, messages, resets: 0 };
        Rc::new(RefCell::new(vmm))
    }

    /// Does all that there is to do.
    pub(crate) fn act(&mut self) {
        while let Some(action) = self.device.next_action() {
            match action {
                Action::Reset => {
                    self.queues.clear();
                    self.resets += 1;
                }
                Action::QueueStarted(index) => self.start(index),
                Action::QueueReset(index) => {
                    self.queues.remove(&index);
                    self.device.queue_was_reset(index);
                }
                Action::Notified { index, .. } => self.serve(index),
                Action::Line(level) => self.line = level,
                Action::Message { data, .. } => self.messages.push(data),
                _ => {}
            }
        }
    }

    fn start(&mut self, index: u16) {
        match self.device.queue(index).map(|setup| setup.start(&self.memory)) {
            Some(Ok(queue)) => {
                self.queues.insert(index, queue);
            }
            Some(Err(_)) => self.device.need_reset(),
            None => {}
        }
    }

    fn serve(&mut self, index: u16) {
        let Some(queue) = self.queues.get_mut(&index) else { return };
        loop {
            match (self.serve)(self.device.model_mut(), queue, &mut self.burst) {
                Ok(true) => self.device.used(index),
                Ok(false) => {}
                Err(_) => return self.device.need_reset(),
            }
            if !queue.arm() {
                return;
            }
        }
    }
}

/// A part of a device's registers.
pub(crate) struct Window<B: Bus> {
    pub(crate) vmm: Shared<B>,
    pub(crate) start: u64,
    pub(crate) len: usize,
}

/// A PCI function's configuration space.
pub(crate) struct Function<B: Bus>(pub(crate) Shared<B>);

macro_rules! accesses {
    ($read:ident, $write:ident, $value:ty, |$vmm:ident, $self:ident, $offset:ident, $bytes:ident| $get:expr, $set:expr) => {
        fn $read(&$self, $offset: usize) -> $value {
            let mut bytes = <$value>::default().to_le_bytes();
            let mut $vmm = $self.vmm();
            let $bytes = &mut bytes;
            $get;
            $vmm.act();
            <$value>::from_le_bytes(bytes)
        }

        fn $write(&$self, $offset: usize, value: $value) {
            let mut $vmm = $self.vmm();
            let $bytes = &value.to_le_bytes();
            $set;
            $vmm.act();
        }
    };
}

impl<B: Bus> Window<B> {
    fn vmm(&self) -> std::cell::RefMut<'_, Vmm<B>> {
        self.vmm.borrow_mut()
    }

    fn at(&self, offset: usize, len: usize) -> u64 {
        assert!(offset + len <= self.len, "{offset:#x} is not of the window");
        self.start + offset as u64
    }
}

impl<B: Bus> Function<B> {
    fn vmm(&self) -> std::cell::RefMut<'_, Vmm<B>> {
        self.0.borrow_mut()
    }
}

macro_rules! window_accesses {
    ($read:ident, $write:ident, $value:ty) => {
        accesses!(
            $read,
            $write,
            $value,
            |vmm, self, offset, bytes| vmm.device.read(self.at(offset, bytes.len()), bytes),
            vmm.device.write(self.at(offset, bytes.len()), bytes)
        );
    };
}

macro_rules! function_accesses {
    ($read:ident, $write:ident, $value:ty) => {
        accesses!(
            $read,
            $write,
            $value,
            |vmm, self, offset, bytes| vmm.device.read_config_space(offset as u16, bytes),
            vmm.device.write_config_space(offset as u16, bytes)
        );
    };
}

impl<B: Bus> Registers for Window<B> {
    fn len(&self) -> usize {
        self.len
    }

    window_accesses!(read_u8, write_u8, u8);
    window_accesses!(read_u16, write_u16, u16);
    window_accesses!(read_u32, write_u32, u32);
}

impl<B: Bus> ConfigSpace for Function<B> {
    function_accesses!(read_u8, write_u8, u8);
    function_accesses!(read_u16, write_u16, u16);
    function_accesses!(read_u32, write_u32, u32);
}
