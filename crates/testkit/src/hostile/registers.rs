//! A guest that accesses the registers of a device as it likes, and a monitor that does what they ask for.
//!
//! ```text
//!   input ──► reads, writes, of any width ──► MmioDevice, PciDevice ──► actions ──► queues on a small memory
//!         └─► bytes of that memory                   ▲                                  │
//!         └─► what a monitor says ───────────────────┴──────────────────── used ────────┘
//! ```
//!
//! What the monitor is asked for must be what a monitor can rely on: a queue is started once before it is kicked or taken
//! away, a line changes when it is said to, and nothing comes of a device that was reset.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ringway_device::entropy::EntropyDevice;
use ringway_device::mmio::MmioDevice;
use ringway_device::model::DeviceModel;
use ringway_device::net::{NetDevice, Settings as NetSettings};
use ringway_device::pci::PciDevice;
use ringway_device::registers::{Action, QueueSetup, Settings};
use ringway_device::status::Negotiation;
use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable};
use ringway_queue::{Burst, DeviceQueue};
use ringway_spec::feature::{NOTIF_CONFIG_DATA, NOTIFICATION_DATA, RING_PACKED, RING_RESET};
use ringway_spec::mmio as reg;
use ringway_spec::pci::{common, header};
use ringway_spec::status::DeviceStatus;
use rustix::fs::MemfdFlags;

use super::{Input, MAX_STEPS};

const BASE: u64 = 0x1_0000;
/// Bytes of the guest's memory.
const LEN: u64 = 0x4000;
/// The most entries of a queue.
const SIZE: u16 = 32;
const VECTORS: u16 = 5;
/// Chains that a queue is served at a time.
const CHAINS: usize = 8;
/// Where a PCI device has its structures.
const PLACES: [u64; 6] = [0, 0x1000, 0x2000, 0x3000, 0x8000, 0x1_0000];

/// Does what `data` says to a device.
///
/// # Panics
/// If the device asks for what makes no sense.
pub fn registers(data: &[u8]) {
    let mut input = Input(data);
    let how = input.u8();
    let net = NetSettings {
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: None,
        max_pairs: 2,
        segmentation: false,
        iommu: false,
        speed: None,
        rss: false,
        filters: false,
    };
    if how & 2 == 0 {
        drive(EntropyDevice::new(false), how, &mut input);
    } else {
        drive(NetDevice::new(net).expect("good settings"), how, &mut input);
    }
}

fn drive<M: DeviceModel>(model: M, how: u8, input: &mut Input<'_>) {
    let offered = if how & 4 == 0 { 0 } else { RING_RESET | NOTIFICATION_DATA };
    let settings = Settings { queue_size: SIZE, features: offered };
    if how & 1 == 0 {
        Vmm::new(Bus::Mmio(MmioDevice::new(model, settings).expect("good settings"))).run(input);
    } else {
        let of_pci = if offered == 0 { 0 } else { NOTIF_CONFIG_DATA };
        let settings = Settings { features: offered | of_pci, ..settings };
        let device = PciDevice::new(model, settings, VECTORS).expect("good settings");
        Vmm::new(Bus::Pci(Box::new(device))).run(input);
    }
}

/// A device on either bus.
enum Bus<M> {
    Mmio(MmioDevice<M>),
    Pci(Box<PciDevice<M>>),
}

/// Calls what both have.
macro_rules! on {
    ($bus:expr, $device:ident => $call:expr) => {
        match $bus {
            Bus::Mmio($device) => $call,
            Bus::Pci($device) => $call,
        }
    };
}

/// A field that leads somewhere, where each bus has it, and the field's width on PCI.
#[derive(Clone, Copy)]
struct Field(usize, usize, usize);

const DRIVER_FEATURES_SEL: Field = Field(reg::DRIVER_FEATURES_SEL, common::DRIVER_FEATURE_SELECT, 4);
const DRIVER_FEATURES: Field = Field(reg::DRIVER_FEATURES, common::DRIVER_FEATURE, 4);
const STATUS: Field = Field(reg::STATUS, common::DEVICE_STATUS, 1);
const QUEUE_SEL: Field = Field(reg::QUEUE_SEL, common::QUEUE_SELECT, 2);
const QUEUE_SIZE: Field = Field(reg::QUEUE_SIZE, common::QUEUE_SIZE, 2);
const AREAS: [Field; 3] = [
    Field(reg::QUEUE_DESC_LOW, common::QUEUE_DESC, 4),
    Field(reg::QUEUE_DRIVER_LOW, common::QUEUE_DRIVER, 4),
    Field(reg::QUEUE_DEVICE_LOW, common::QUEUE_DEVICE, 4),
];
const ENABLE: Field = Field(reg::QUEUE_READY, common::QUEUE_ENABLE, 2);
const RESET: Field = Field(reg::QUEUE_RESET, common::QUEUE_RESET, 2);

/// A queue that the monitor was told of.
enum Queue {
    Running(Box<DeviceQueue>),
    /// It could not be started, or broke.
    Broken,
    /// Its driver wants it back.
    Wanted,
}

struct Vmm<M> {
    bus: Bus<M>,
    file: File,
    memory: Arc<MemoryTable>,
    queues: BTreeMap<u16, Queue>,
    burst: Burst,
    line: bool,
}

impl<M: DeviceModel> Vmm<M> {
    fn new(bus: Bus<M>) -> Self {
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.set_len(LEN).expect("its length");
        let fd = OwnedFd::from(file.try_clone().expect("a clone"));
        let region = Mapping::region(fd, 0, LEN, Gpa(BASE), FrontendVa(0)).expect("a region");
        let memory = Arc::new(MemoryTable::new(vec![region]).expect("a table"));
        Self { bus, file, memory, queues: BTreeMap::new(), burst: Burst::default(), line: false }
    }

    fn run(&mut self, input: &mut Input<'_>) {
        let mut steps = 0;
        while steps < MAX_STEPS && !input.is_empty() {
            steps += 1;
            let step = input.u8();
            self.step(step, input);
            // A monitor may be late.
            if step & 0x80 == 0 {
                self.act();
            }
        }
        self.set(STATUS, 0);
        self.act();
        assert!(self.queues.is_empty() && self.negotiation().status().is_empty());
        assert!(!self.line);
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        match step % 16 {
            0..=3 => self.access(input),
            4 | 5 => self.access_config_space(input),
            6 => self.negotiate(input),
            7 | 8 => self.set_up_queue(input),
            9 => self.set(STATUS, DeviceStatus::all().bits().into()),
            10 => {
                let index = input.u8();
                self.set(QUEUE_SEL, (index % 8).into());
                self.set(if index & 0x80 == 0 { RESET } else { ENABLE }, u32::from(index & 0x80 == 0));
            }
            11 => self.kick(input),
            12 | 13 => {
                let at = u64::from(input.u16()) % LEN;
                let bytes = input.array::<18>();
                let len = bytes.len().min((LEN - at) as usize);
                self.file.write_all_at(&bytes[..len], at).expect("guest memory");
            }
            _ => self.tell(input),
        }
    }

    fn negotiation(&self) -> &Negotiation {
        on!(&self.bus, device => device.model().negotiation())
    }

    /// Any access to the registers.
    fn access(&mut self, input: &mut Input<'_>) {
        let [how, place, at] = input.array();
        let len = [4, 4, 4, 2, 2, 1, 8, usize::from(at) % 20][usize::from(how % 8)];
        let offset = match (&self.bus, place) {
            (_, 250..) => input.u64(),
            (Bus::Mmio(_), _) => 4 * u64::from(at),
            (Bus::Pci(_), _) => PLACES[usize::from(place) % PLACES.len()] + u64::from(at),
        };
        let mut bytes = vec![0; len];
        if how & 0x80 == 0 {
            on!(&mut self.bus, device => device.read(offset, &mut bytes));
        } else {
            bytes = input.bytes(len).to_vec();
            on!(&mut self.bus, device => device.write(offset, &bytes));
        }
    }

    /// Any access to the configuration space, mostly where something is.
    fn access_config_space(&mut self, input: &mut Input<'_>) {
        let [how, at] = input.array();
        let len = [4, 4, 2, 1, usize::from(how >> 3)][usize::from(how % 8).min(4)];
        let Bus::Pci(device) = &mut self.bus else { return };
        let at = if how & 0x40 == 0 { at.into() } else { input.u16() };
        let mut bytes = vec![0; len];
        if how & 0x80 == 0 {
            device.read_config_space(at, &mut bytes);
        } else {
            bytes = input.bytes(len).to_vec();
            device.write_config_space(at, &bytes);
        }
    }

    fn set(&mut self, Field(mmio, pci, len): Field, value: u32) {
        let bytes = value.to_le_bytes();
        match &mut self.bus {
            Bus::Mmio(device) => device.write(mmio as u64, &bytes),
            Bus::Pci(device) => device.write(pci as u64, &bytes[..len]),
        }
    }

    /// A driver as it should be, up to `FEATURES_OK`.
    fn negotiate(&mut self, input: &mut Input<'_>) {
        let [without, more] = input.array();
        let bits = u64::from(without) << 28 | u64::from(more & 1) << 40;
        let features = self.negotiation().offered() & !(bits & !(1 << 32));
        self.set(STATUS, 0);
        self.set(STATUS, 3);
        for half in [0, 1] {
            self.set(DRIVER_FEATURES_SEL, half);
            self.set(DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.set(STATUS, 11);
        if let Bus::Pci(device) = &mut self.bus {
            device.write_config_space(header::COMMAND as u16, &[more, 0]);
        }
    }

    /// A queue, mostly one that can be.
    fn set_up_queue(&mut self, input: &mut Input<'_>) {
        let [index, size, at] = input.array();
        self.set(QUEUE_SEL, (index % 8).into());
        let sizes = [SIZE.into(), 8, 4, 1, size.into()];
        self.set(QUEUE_SIZE, sizes[usize::from(size % 5)]);
        for (area, field) in (0..).zip(AREAS) {
            let wild = if at < 250 { 0 } else { u64::from(input.u16()) << 5 };
            let place = BASE + u64::from(at % 8) * 0x400 + area * 0x400 + wild;
            self.set(field, place as u32);
            let Field(mmio, pci, len) = field;
            self.set(Field(mmio + 4, pci + 4, len), (place >> 32) as u32);
        }
        self.set(ENABLE, 1);
    }

    fn kick(&mut self, input: &mut Input<'_>) {
        let word = u32::from_le_bytes(input.array());
        match &mut self.bus {
            Bus::Mmio(device) => device.write(reg::QUEUE_NOTIFY as u64, &word.to_le_bytes()),
            Bus::Pci(device) => device.write(device.notify_offset(word as u16 % 8), &word.to_le_bytes()),
        }
    }

    /// What a monitor may say at any time.
    fn tell(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        let index = u16::from(what >> 2) % 8;
        match what % 4 {
            0 => on!(&mut self.bus, device => device.used(index)),
            1 => on!(&mut self.bus, device => device.config_changed()),
            2 => on!(&mut self.bus, device => device.need_reset()),
            _ => {
                if let Some(Queue::Wanted) = self.queues.get(&index) {
                    self.queues.remove(&index);
                }
                on!(&mut self.bus, device => device.queue_was_reset(index));
            }
        }
    }

    fn setup(&self, index: u16) -> Option<QueueSetup> {
        on!(&self.bus, device => device.queue(index))
    }

    /// Does all that there is to do; there is not much at any time, but for what comes of doing it.
    fn act(&mut self) {
        let mut left = 100;
        while let Some(action) = on!(&mut self.bus, device => device.next_action()) {
            left -= 1;
            assert!(left > 0, "there is no end of it");
            match action {
                Action::Reset => self.queues.clear(),
                Action::QueueStarted(index) => self.start(index),
                Action::QueueReset(index) => {
                    let before = self.queues.insert(index, Queue::Wanted);
                    assert!(matches!(before, Some(Queue::Running(_) | Queue::Broken)));
                    assert_eq!(self.setup(index), None);
                }
                Action::Notified { index, data } => {
                    assert_eq!(data.is_some(), self.negotiation().acked() & NOTIFICATION_DATA != 0);
                    self.serve(index);
                }
                Action::Line(level) => {
                    assert_ne!(level, self.line);
                    self.line = level;
                }
                Action::Started => assert!(self.negotiation().is_live()),
                Action::ConfigWritten | Action::Message { .. } | Action::Mapped(_) => {}
            }
        }
    }

    fn start(&mut self, index: u16) {
        let setup = self.setup(index).expect("a queue that starts");
        let is_packed = self.negotiation().acked() & RING_PACKED != 0;
        assert!((1..=SIZE).contains(&setup.size) && (is_packed || setup.size.is_power_of_two()));
        let queue = if let Ok(queue) = setup.start(&self.memory) {
            Queue::Running(Box::new(queue))
        } else {
            on!(&mut self.bus, device => device.need_reset());
            Queue::Broken
        };
        assert!(self.queues.insert(index, queue).is_none(), "queue {index} was started already");
    }

    fn serve(&mut self, index: u16) {
        let queue = self.queues.get_mut(&index).expect("a kicked queue was started");
        let Queue::Running(running) = queue else {
            assert!(matches!(queue, Queue::Broken), "nobody kicks a queue that is taken away");
            return;
        };
        let result = running.take(&mut self.burst, CHAINS);
        while let Some(chain) = self.burst.next() {
            let written = chain.writable().write(&[0x5a; 16]);
            running.complete(chain, written as u32);
        }
        if running.publish() {
            on!(&mut self.bus, device => device.used(index));
        }
        if result.is_err() {
            *queue = Queue::Broken;
            on!(&mut self.bus, device => device.need_reset());
        }
    }
}
