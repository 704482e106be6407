//! Our drivers on our registers: each transport, its interrupts, both formats of rings, resets of queues and devices.

mod vmm;

use std::rc::Rc;
use std::sync::Arc;

use ringway_device::blk::{BlkDevice, HEADER_LEN, Request, Settings as BlkSettings, Status};
use ringway_device::entropy::EntropyDevice;
use ringway_device::mmio::MmioDevice;
use ringway_device::model::DeviceModel;
use ringway_device::pci::PciDevice;
use ringway_device::registers::Settings;
use ringway_driver::entropy::{Entropy, Options};
use ringway_driver::transport::mmio::Mmio;
use ringway_driver::transport::pci::{ConfigWindow, Message, Pci};
use ringway_driver::{Device, Error, Interrupt, QueueOptions, QueueSetup, Transport, Virtqueue, Wanted};
use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::{Burst, DeviceQueue, QueueError, Segment, Used};
use ringway_spec::blk;
use ringway_spec::feature::{NOTIF_CONFIG_DATA, NOTIFICATION_DATA, RING_EVENT_IDX, RING_PACKED, RING_RESET};

use self::vmm::{Bus, Function, Machine, Serve, Shared, Vmm, Window};

/// What is left out of what both sides can do.
const WITHOUT: [u64; 4] = [0, RING_PACKED, RING_EVENT_IDX | NOTIFICATION_DATA, RING_PACKED | RING_EVENT_IDX];

/// Where the monitor puts the BAR.
const BAR: u64 = 0xe_0000_0000;

fn mmio<M: DeviceModel>(model: M, machine: &Machine, serve: Serve<M>) -> Shared<MmioDevice<M>> {
    let settings = Settings { features: RING_RESET | NOTIFICATION_DATA, ..Settings::default() };
    Vmm::new(MmioDevice::new(model, settings).unwrap(), machine, serve)
}

fn pci<M: DeviceModel>(model: M, machine: &Machine, serve: Serve<M>) -> Shared<PciDevice<M>> {
    let features = RING_RESET | NOTIFICATION_DATA | NOTIF_CONFIG_DATA;
    let mut device = PciDevice::new(model, Settings { features, ..Settings::default() }, 3).unwrap();
    device.write_config_space(0x10, &(BAR as u32).to_le_bytes());
    device.write_config_space(0x14, &((BAR >> 32) as u32).to_le_bytes());
    Vmm::new(device, machine, serve)
}

fn over_mmio<M: DeviceModel>(vmm: &Shared<MmioDevice<M>>) -> Mmio<Window<MmioDevice<M>>> {
    let len = vmm.borrow().device.len() as usize;
    Mmio::new(Window { vmm: Rc::clone(vmm), start: 0, len }).unwrap().unwrap()
}

type PciTransport<M> = Pci<Function<PciDevice<M>>, Window<PciDevice<M>>>;

fn over_pci<M: DeviceModel>(vmm: &Shared<PciDevice<M>>) -> PciTransport<M> {
    Pci::new(Function(Rc::clone(vmm)), |range| {
        assert_eq!(range.base, BAR);
        let start = range.address().unwrap() - BAR;
        assert!(start + u64::from(range.len) <= vmm.borrow().device.bar_len());
        Some(Window { vmm: Rc::clone(vmm), start, len: range.len as usize })
    })
    .unwrap()
}

/// With vectors: 1 is the configuration's, 2 the queues'.
fn over_messages<M: DeviceModel>(vmm: &Shared<PciDevice<M>>) -> PciTransport<M> {
    let mut transport = over_pci(vmm);
    assert_eq!(transport.vectors(), 3);
    for vector in [1, 2] {
        let message = Message { address: 0xfee0_0000, data: 0x40 + u32::from(vector) };
        transport.set_vector(vector, message).unwrap();
    }
    transport.enable_vectors(true).unwrap();
    transport
}

fn serve_entropy(
    model: &mut EntropyDevice,
    queue: &mut DeviceQueue,
    burst: &mut Burst,
) -> Result<bool, QueueError> {
    model.serve(queue, burst, &mut |bytes| {
        bytes.fill(0x5a);
        bytes.len()
    })
}

/// Has a device give bytes; then asks, and is told of the answer by an interrupt.
fn use_entropy<T: Transport>(entropy: &mut Entropy<T>, is_interrupted: impl Fn() -> bool) {
    let mut bytes = [0; 5000];
    entropy.fill(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0x5a));
    // There may have been interrupts meanwhile: that they are not wanted is a hint.
    entropy.interrupt().unwrap();
    is_interrupted();
    for _ in 0..3 {
        assert!(!entropy.arm());
        assert!(!is_interrupted());
        assert!(entropy.request(32).unwrap());
        assert!(is_interrupted());
        assert!(entropy.interrupt().unwrap().contains(Interrupt::QUEUE));
        assert_eq!(entropy.receive(&mut bytes).unwrap(), Some(32));
    }
}

#[test]
fn entropy_over_mmio() {
    for without in WITHOUT {
        let machine = Machine::new();
        let vmm = mmio(EntropyDevice::new(false), &machine, serve_entropy);
        let options = Options { without, ..Options::default() };
        let mut entropy = Entropy::new(over_mmio(&vmm), machine, &options).unwrap();
        use_entropy(&mut entropy, || vmm.borrow().line);
    }
}

#[test]
fn entropy_over_pci_with_a_line() {
    for without in WITHOUT {
        let machine = Machine::new();
        let vmm = pci(EntropyDevice::new(false), &machine, serve_entropy);
        let options = Options { without, ..Options::default() };
        let mut entropy = Entropy::new(over_pci(&vmm), machine, &options).unwrap();
        use_entropy(&mut entropy, || vmm.borrow().line);
        assert!(vmm.borrow().messages.is_empty());
    }
}

#[test]
fn entropy_over_pci_with_messages() {
    for without in WITHOUT {
        let machine = Machine::new();
        let vmm = pci(EntropyDevice::new(false), &machine, serve_entropy);
        let options = Options { without, vector: Some(2), ..Options::default() };
        let mut entropy = Entropy::new(over_messages(&vmm), machine, &options).unwrap();
        use_entropy(&mut entropy, || {
            let messages = std::mem::take(&mut vmm.borrow_mut().messages);
            assert!(messages.iter().all(|data| *data == 0x42) && messages.len() < 2);
            !messages.is_empty()
        });
        assert!(!vmm.borrow().line);
    }
}

/// All of it through the configuration space, as firmware does that maps nothing.
#[test]
fn entropy_over_the_window() {
    for without in WITHOUT {
        let machine = Machine::new();
        let vmm = pci(EntropyDevice::new(false), &machine, serve_entropy);
        let window = ConfigWindow::find(&Rc::new(Function(Rc::clone(&vmm)))).unwrap();
        let transport = Pci::new(Function(Rc::clone(&vmm)), |range| window.map(range)).unwrap();
        let options = Options { without, ..Options::default() };
        let mut entropy = Entropy::new(transport, machine, &options).unwrap();
        use_entropy(&mut entropy, || vmm.borrow().line);
    }
}

/// Each time everything is set up anew, by the same transport.
fn reset_often<B: Bus, T: Transport>(vmm: &Shared<B>, machine: &Arc<Machine>, mut transport: T) {
    let before = vmm.borrow().resets;
    for round in 0..100 {
        let options = Options { without: WITHOUT[round % 4], ..Options::default() };
        let mut entropy = Entropy::new(transport, Arc::clone(machine) as _, &options).unwrap();
        let mut bytes = [0; 300];
        entropy.fill(&mut bytes).unwrap();
        assert_eq!(vmm.borrow().queues.len(), 1);
        transport = entropy.stop().unwrap();
        assert!(vmm.borrow().queues.is_empty());
        assert!(transport.status().unwrap().is_empty());
    }
    assert!(vmm.borrow().resets >= before + 100);
}

#[test]
fn a_device_is_reset_a_hundred_times() {
    let machine = Machine::new();
    let vmm = mmio(EntropyDevice::new(false), &machine, serve_entropy);
    reset_often(&vmm, &machine, over_mmio(&vmm));
    let vmm = pci(EntropyDevice::new(false), &machine, serve_entropy);
    reset_often(&vmm, &machine, over_pci(&vmm));
}

// A disk.

const SECTORS: u64 = 64;

/// A disk that holds its sectors' numbers, and of which what is written is left.
struct Disk {
    device: BlkDevice,
    bytes: Vec<u8>,
}

impl Disk {
    fn new() -> Self {
        let settings = BlkSettings {
            size: SECTORS * 512,
            block_size: 512,
            physical_block_exp: 0,
            alignment_offset: 0,
            min_io_size: 0,
            opt_io_size: 0,
            read_only: false,
            queues: 2,
            writeback: true,
            flush: true,
            discard: None,
            write_zeroes: None,
            zeroes_may_unmap: false,
            secure_erase: None,
            id: *b"registers           ",
            iommu: false,
        };
        let bytes = (0..SECTORS * 512).map(|i| (i / 512) as u8).collect();
        Self { device: BlkDevice::new(settings).unwrap(), bytes }
    }

    fn serve(&mut self, queue: &mut DeviceQueue, burst: &mut Burst) -> Result<bool, QueueError> {
        queue.take(burst, 32)?;
        while let Some(chain) = burst.next() {
            let (readable, writable) = (chain.readable(), chain.writable());
            let mut header = [0; HEADER_LEN];
            readable.read(&mut header);
            let (out, room) = (readable.advance(HEADER_LEN), writable.len() - 1);
            let request = self.device.rules().judge(header, out.len() as u32, room as u32);
            let mut written = 0;
            let status = match request {
                Ok(Request::Read { offset }) => {
                    written = writable.truncate(room).write(&self.bytes[offset as usize..][..room]);
                    Status::Ok
                }
                Ok(Request::Write { offset, .. }) => {
                    out.read(&mut self.bytes[offset as usize..][..out.len()]);
                    Status::Ok
                }
                Ok(_) => Status::Unsupported,
                Err(status) => status,
            };
            writable.advance(room).write(&[status.to_byte()]);
            queue.complete(chain, written as u32 + 1);
        }
        Ok(queue.publish())
    }
}

impl DeviceModel for Disk {
    fn id(&self) -> u32 {
        self.device.id()
    }

    fn negotiation(&self) -> &ringway_device::status::Negotiation {
        self.device.negotiation()
    }

    fn negotiation_mut(&mut self) -> &mut ringway_device::status::Negotiation {
        self.device.negotiation_mut()
    }

    fn reset(&mut self) {
        self.device.reset();
    }

    fn max_queues(&self) -> u16 {
        self.device.max_queues()
    }

    fn config_len(&self) -> usize {
        self.device.config_len()
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        self.device.read_config(offset, to);
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> bool {
        self.device.write_config(offset, bytes)
    }
}

const DISK: Wanted = Wanted {
    id: blk::DEVICE_ID,
    features: blk::F_MQ | blk::F_CONFIG_WCE | blk::F_FLUSH,
    required: blk::F_MQ | RING_RESET,
    requires: &[],
    without: 0,
};

/// Header, data, status.
type Owner = [SharedBuf; 3];

/// Writes a sector, or reads it.
fn transfer<N: ringway_driver::Notify>(
    queue: &mut Virtqueue<Owner, N>,
    mut owner: Owner,
    sector: u64,
    write: Option<&[u8]>,
) -> (Owner, Vec<u8>) {
    let kind: u32 = if write.is_some() { blk::T_OUT } else { blk::T_IN };
    owner[0].write(&[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    if let Some(bytes) = write {
        owner[1].write(bytes);
    }
    let part = |i: usize, len| Segment { addr: owner[i].addr(), len };
    let (header, data, status) = (part(0, 16), part(1, 512), part(2, 1));
    let added = if write.is_some() {
        queue.add(&[header, data], &[status], owner)
    } else {
        queue.add(&[header], &[data, status], owner)
    };
    assert!(added.is_ok());
    queue.publish();
    let Used { owner, written } = queue.reclaim().unwrap().expect("it was served at once");
    assert_eq!(written, if write.is_some() { 1 } else { 513 });
    let (mut status, mut data) = ([0xff], vec![0; 512]);
    owner[2].read(&mut status);
    owner[1].read(&mut data);
    assert_eq!(status, [0]);
    (owner, data)
}

/// Reads and writes by two queues, one of which is reset in between and comes back with another size.
fn use_disk<B: Bus<Model = Disk>, T: Transport>(
    vmm: &Shared<B>,
    machine: Arc<Machine>,
    transport: T,
    without: u64,
) {
    let options = |max_size| QueueOptions { max_size, ..QueueOptions::default() };
    let wanted = Wanted { without, ..DISK };
    let (mut device, mut queues) = Device::set_up(transport, machine, &wanted, |device| {
        Ok([device.queue::<Owner>(0, options(64))?, device.queue(1, options(16))?])
    })
    .unwrap();
    let buffers = device.buffers(3, 512).unwrap();
    let Ok(mut owner) = Owner::try_from(buffers) else { unreachable!("three were asked for") };
    let mut data;
    for sector in 0..100 {
        let queue = &mut queues[sector as usize % 2];
        let sector = sector % SECTORS;
        (owner, data) = transfer(queue, owner, sector, None);
        assert!(data.iter().all(|byte| *byte == sector as u8), "{sector}");
        (owner, _) = transfer(queue, owner, sector, Some(&[0xff; 512]));
        (owner, _) = transfer(queue, owner, sector, Some(&[sector as u8; 512]));
    }
    let [first, second] = queues;
    assert_eq!((first.queue().size(), second.queue().size()), (64, 16));
    assert!(device.reset_queue(second).unwrap().is_empty());
    assert_eq!(vmm.borrow().queues.keys().collect::<Vec<_>>(), [&0]);
    let second = device.queue::<Owner>(1, options(128)).unwrap();
    assert_eq!(vmm.borrow().queues[&1].size(), 128);
    for mut queue in [second, first] {
        (owner, data) = transfer(&mut queue, owner, 7, None);
        assert_eq!(data, [7; 512]);
    }

    // The disk grows, and its driver hears of it.
    let capacity = |device: &mut Device<T>| device.config(|config| config.u64(0)).unwrap();
    assert_eq!(capacity(&mut device), SECTORS);
    {
        let mut vmm = vmm.borrow_mut();
        assert!(vmm.device.model_mut().device.set_size(1 << 20));
        vmm.device.config_changed();
        vmm.act();
        assert!(vmm.line);
    }
    assert!(device.interrupt().unwrap().contains(Interrupt::CONFIG));
    assert_eq!(capacity(&mut device), 2048);
    assert!(!vmm.borrow().line);
    // It turns the cache off.
    device.write_config_u8(blk::CONFIG_WRITEBACK, 0).unwrap();
    assert!(vmm.borrow_mut().device.model_mut().device.rules().is_stable());
}

#[test]
fn a_disk_over_mmio() {
    for without in WITHOUT {
        let machine = Machine::new();
        let vmm = mmio(Disk::new(), &machine, Disk::serve);
        use_disk(&vmm, machine, over_mmio(&vmm), without);
    }
}

#[test]
fn a_disk_over_pci() {
    for without in WITHOUT {
        let machine = Machine::new();
        let vmm = pci(Disk::new(), &machine, Disk::serve);
        use_disk(&vmm, machine, over_pci(&vmm), without);
    }
}

/// A queue where there is no memory: the device fails, and says so to its driver.
fn fail<T: Transport>(machine: Arc<Machine>, transport: T, is_interrupted: impl Fn() -> bool) {
    let wanted = Wanted { id: 4, features: 0, required: 0, requires: &[], without: 0 };
    let (mut device, ()) = Device::set_up(transport, machine, &wanted, |device| {
        let features = device.features();
        let nowhere = Gpa(0x1000);
        let setup = QueueSetup {
            size: 8,
            features,
            descriptor: nowhere,
            driver: nowhere,
            device: nowhere,
            vector: None,
        };
        // Where interrupts are not messages, that is refused.
        device.transport_mut().set_config_vector(Some(1)).ok();
        device.transport_mut().set_up_queue(0, &setup)?;
        Ok(())
    })
    .unwrap();
    assert!(is_interrupted());
    assert!(matches!(device.interrupt(), Err(Error::NeedsReset)));
    assert!(device.stop().unwrap().into_transport().status().unwrap().is_empty());
}

#[test]
fn a_device_that_fails_tells_its_driver() {
    let machine = Machine::new();
    let vmm = mmio(EntropyDevice::new(false), &machine, serve_entropy);
    fail(Arc::clone(&machine), over_mmio(&vmm), || vmm.borrow().line);
    let vmm = pci(EntropyDevice::new(false), &machine, serve_entropy);
    fail(Arc::clone(&machine), over_pci(&vmm), || vmm.borrow().line);
    let vmm = pci(EntropyDevice::new(false), &machine, serve_entropy);
    fail(machine, over_messages(&vmm), || vmm.borrow().messages == [0x41]);
}
