//! Our drivers of consoles and balloons on our models of these: a guest and its VMM in one thread.
//!
//! ```text
//!   driver ──► Mmio ──► Bus ──► MmioDevice ──► model
//!                        └──────actions──────► serve: queues, as far as they go, before the guest runs on
//! ```
#![allow(
    unsafe_code,
    reason = "a platform promises that its memory is the device's, and pages that nobody uses them"
)]

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use ringway_device::balloon::{self, BalloonDevice};
use ringway_device::console::{self, ConsoleDevice, PortSettings};
use ringway_device::mmio::MmioDevice;
use ringway_device::model::DeviceModel;
use ringway_device::registers::{Action, Settings};
use ringway_driver::balloon::{Balloon, Options as BalloonOptions, Statistics};
use ringway_driver::console::{Console, Event, Options as ConsoleOptions, emergency_write};
use ringway_driver::transport::mmio::Mmio;
use ringway_driver::transport::registers::Registers;
use ringway_driver::{OutOfMemory, PageRange, Pages, Platform, Purpose};
use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, Region, io};
use ringway_queue::{Burst, DeviceQueue};
use ringway_spec::balloon::{PAGE_SIZE, S_MEMFREE, S_MEMTOT};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_PACKED};
use rustix::fs::{MemfdFlags, memfd_create};

/// Features that are not accepted: each leaves another ring.
const WITHOUT: [u64; 4] = [0, RING_PACKED, RING_EVENT_IDX | IN_ORDER, RING_PACKED | RING_EVENT_IDX];

/// Where the guest's memory is, and how much there is.
const START: u64 = 0x8000_0000;
const LEN: u64 = 4 << 20;

/// The guest's memory.
struct Guest {
    file: File,
    next: Mutex<u64>,
}

impl Guest {
    fn new() -> Arc<Self> {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(LEN).unwrap();
        Arc::new(Self { file, next: Mutex::new(0) })
    }

    fn map(&self, offset: u64, len: u64) -> Region {
        let (file, at) = (self.file.try_clone().unwrap(), START + offset);
        Mapping::region(file.into(), offset, len, Gpa(at), FrontendVa(at)).unwrap()
    }

    /// How many pages of a region hold nothing; by the file, for whoever looks at a page that is gone gets another.
    fn gone(&self, region: &Region) -> usize {
        let mut bytes = vec![0; region.len() as usize];
        self.file.read_exact_at(&mut bytes, region.gpa().0 - START).unwrap();
        bytes.chunks(PAGE_SIZE as usize).filter(|page| page.iter().all(|byte| *byte == 0)).count()
    }
}

// SAFETY: each part of the file is allocated once, and the device reaches it by the same address.
unsafe impl Platform for Guest {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        let mut next = self.next.lock().unwrap();
        let offset = *next;
        *next = (offset + len).next_multiple_of(PAGE_SIZE);
        if *next > LEN { Err(OutOfMemory { len }) } else { Ok(self.map(offset, len)) }
    }

    fn wait(&self, round: u32) -> bool {
        round < 10
    }
}

/// What the host does with a queue; whether to call the driver.
type Serve<D> = dyn FnMut(&mut D, u16, &mut DeviceQueue, &mut Burst) -> bool + Send;

/// The VMM's side.
struct Vm<D> {
    device: MmioDevice<D>,
    memory: Arc<MemoryTable>,
    queues: BTreeMap<u16, DeviceQueue>,
    burst: Burst,
    serve: Box<Serve<D>>,
}

impl<D: DeviceModel> Vm<D> {
    /// Does what is to be done.
    fn act(&mut self) {
        while let Some(action) = self.device.next_action() {
            match action {
                Action::Reset => self.queues.clear(),
                Action::QueueStarted(index) => {
                    let queue = self.device.queue(index).unwrap().start(&self.memory).unwrap();
                    self.queues.insert(index, queue);
                }
                Action::Notified { .. } => self.serve(),
                _ => {}
            }
        }
    }

    /// Serves all queues, twice: what a driver says by one may be answered by another.
    fn serve(&mut self) {
        let Self { device, queues, burst, serve, .. } = self;
        for _ in 0..2 {
            for (index, queue) in &mut *queues {
                if serve(device.model_mut(), *index, queue, burst) {
                    device.used(*index);
                }
                // Whether there is more is seen at the next kick.
                let _ = queue.arm();
            }
        }
    }
}

/// The guest's way to the registers.
struct Bus<D>(Arc<Mutex<Vm<D>>>);

impl<D: DeviceModel> Bus<D> {
    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.lock().unwrap().device.read(offset as u64, &mut bytes);
        bytes
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        let mut vm = self.0.lock().unwrap();
        vm.device.write(offset as u64, bytes);
        vm.act();
    }
}

impl<D: DeviceModel> Registers for Bus<D> {
    fn len(&self) -> usize {
        self.0.lock().unwrap().device.len() as usize
    }

    fn read_u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.read(offset))
    }

    fn read_u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn read_u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn write_u8(&self, offset: usize, value: u8) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write_u16(&self, offset: usize, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
}

/// The VMM's side of a machine with one device.
struct Host<D>(Arc<Mutex<Vm<D>>>);

impl<D: DeviceModel> Host<D> {
    fn vm(&self) -> MutexGuard<'_, Vm<D>> {
        self.0.lock().unwrap()
    }

    /// The host changes the device, and whatever follows from that is done.
    fn change<R>(&self, change: impl FnOnce(&mut D) -> R) -> R {
        let mut vm = self.vm();
        let result = change(vm.device.model_mut());
        vm.device.config_changed();
        vm.serve();
        vm.act();
        result
    }
}

fn machine<D: DeviceModel>(
    guest: &Guest,
    model: D,
    serve: impl FnMut(&mut D, u16, &mut DeviceQueue, &mut Burst) -> bool + Send + 'static,
) -> (Host<D>, Mmio<Bus<D>>) {
    let vm = Arc::new(Mutex::new(Vm {
        device: MmioDevice::new(model, Settings::default()).unwrap(),
        memory: Arc::new(MemoryTable::new(vec![guest.map(0, LEN)]).unwrap()),
        queues: BTreeMap::new(),
        burst: Burst::default(),
        serve: Box::new(serve),
    }));
    let transport = Mmio::new(Bus(Arc::clone(&vm))).unwrap().expect("a device");
    (Host(vm), transport)
}

/// What the host's programs have said and heard, port by port.
#[derive(Default)]
struct Streams {
    to_guest: [VecDeque<u8>; 2],
    from_guest: [Vec<u8>; 2],
    events: Vec<console::Event>,
}

fn serve_console(
    streams: &Mutex<Streams>,
    device: &mut ConsoleDevice,
    index: u16,
    queue: &mut DeviceQueue,
    burst: &mut Burst,
) -> bool {
    let Streams { to_guest, from_guest, events } = &mut *streams.lock().unwrap();
    let call = match device.role(index).expect("a queue has a role") {
        console::Role::Receive(port) => {
            let source = &mut to_guest[usize::from(port)];
            device.receive(port, queue, burst, &mut |to| {
                let n = to.len().min(source.len());
                to.iter_mut().zip(source.drain(..n)).for_each(|(to, byte)| *to = byte);
                n
            })
        }
        console::Role::Transmit(port) => device.transmit(port, queue, burst, &mut |bytes| {
            from_guest[usize::from(port)].extend_from_slice(bytes);
            bytes.len()
        }),
        console::Role::ControlReceive => device.control_receive(queue, burst),
        console::Role::ControlTransmit => {
            device.control_transmit(queue, burst, &mut |event| events.push(event))
        }
    };
    call.unwrap()
}

#[test]
fn ports_connect_guest_and_host() {
    for without in WITHOUT {
        let (guest, streams) = (Guest::new(), Arc::new(Mutex::new(Streams::default())));
        let ports = vec![PortSettings { name: None, is_console: true }];
        let size = Some(console::Size { cols: 80, rows: 25 });
        let model = console::Settings { ports, max_ports: 2, size, iommu: false };
        let served = Arc::clone(&streams);
        let (host, mut transport) =
            machine(&guest, ConsoleDevice::new(model).unwrap(), move |device, index, queue, burst| {
                serve_console(&served, device, index, queue, burst)
            });
        emergency_write(&mut transport, b"boot").unwrap();
        assert_eq!(host.vm().device.model_mut().emergency_bytes().collect::<Vec<_>>(), b"boot");

        let options = ConsoleOptions { without, ..ConsoleOptions::default() };
        let mut console = Console::new(transport, guest, &options).unwrap();
        let mut events = Vec::new();
        let mut poll = |console: &mut Console<_>| {
            events.clear();
            while let Some(event) = console.poll().unwrap() {
                events.push(event);
            }
            events.clone()
        };
        let due = [Event::Added(0), Event::Resized(0), Event::Console(0), Event::Opened(0)];
        let seen = poll(&mut console);
        assert!(due.iter().all(|event| seen.contains(event)), "{seen:?}");
        console.write_all(0, b"login: ").unwrap();
        assert_eq!(streams.lock().unwrap().from_guest[0], b"login: ");

        let settings = PortSettings { name: Some("agent".into()), is_console: false };
        host.change(|device| device.add_port(1, settings)).unwrap();
        host.change(|device| device.set_open(1, true));
        assert_eq!(poll(&mut console), [Event::Added(1), Event::Named(1), Event::Opened(1)]);
        assert_eq!(console.port(1).unwrap().name.as_deref(), Some("agent"));
        streams.lock().unwrap().to_guest[1].extend(b"ping");
        host.change(|_| ());
        let mut bytes = [0; 8];
        assert_eq!(console.read(1, &mut bytes).unwrap(), 0, "no program of the guest has it open");
        console.set_open(1, true).unwrap();
        assert_eq!((console.read(1, &mut bytes).unwrap(), &bytes[..4]), (4, &b"ping"[..]));
        console.write_all(1, b"pong").unwrap();
        host.change(|device| device.resize(0, console::Size { cols: 132, rows: 50 }));
        host.change(|device| device.remove_port(1));
        assert_eq!(poll(&mut console), [Event::Resized(0), Event::Removed(1)]);

        let streams = streams.lock().unwrap();
        assert_eq!(streams.from_guest[1], b"pong");
        let open = console::Event::PortOpen;
        assert!(streams.events.contains(&open(0, true)) && streams.events.contains(&open(1, true)));
        assert_eq!(host.vm().device.model().refused(), 0);
    }
}

/// Pages of the guest that nothing uses.
struct Free {
    pages: Vec<u32>,
    lent: Option<PageRange>,
    filled: Vec<u32>,
}

// SAFETY: they were allocated for this, and nothing uses them.
unsafe impl Pages for Free {
    fn give_up(&mut self) -> Option<u32> {
        self.pages.pop()
    }

    fn take_back(&mut self, pfn: u32, fill: Option<u32>) {
        self.filled.extend(fill);
        self.pages.push(pfn);
    }

    fn lend(&mut self, _purpose: Purpose, _fill: Option<u32>) -> Option<PageRange> {
        self.lent.take()
    }

    fn return_lent(&mut self, pages: PageRange, _fill: Option<u32>) {
        self.lent = Some(pages);
    }
}

#[test]
fn the_host_gets_the_pages_it_wants() {
    const COUNT: u32 = 400;
    for without in WITHOUT {
        let guest = Guest::new();
        let region = guest.allocate((u64::from(COUNT) + 16) * PAGE_SIZE).unwrap();
        // They are all in use, once.
        let memory = MemoryTable::new(vec![region.clone()]).unwrap();
        for slice in memory.slices(region.gpa(), region.len()) {
            let ones = vec![1; slice.len()];
            assert_eq!(ringway_memory::GuestBuf::new(&[slice]).write(&ones), ones.len());
        }
        let first = (region.gpa().0 / PAGE_SIZE) as u32;
        let lent = PageRange { addr: Gpa(region.gpa().0 + u64::from(COUNT) * PAGE_SIZE), len: 16 << 12 };
        let mut free = Free { pages: (first..first + COUNT).collect(), lent: Some(lent), filled: vec![] };

        let heard = Arc::new(Mutex::new((Vec::new(), 0)));
        let told = Arc::clone(&heard);
        let settings = balloon::Settings {
            statistics: true,
            free_page_hinting: true,
            page_reporting: true,
            ..balloon::Settings::default()
        };
        let (host, transport) =
            machine(&guest, BalloonDevice::new(settings), move |device, index, queue, burst| {
                let memory = Arc::clone(queue.memory());
                let (statistics, hinted) = &mut *told.lock().unwrap();
                let mut remove = |range: balloon::PageRange| {
                    memory.slices(range.addr, range.len).for_each(|slice| io::remove(slice).unwrap());
                };
                let call = match device.role(index).expect("a queue has a role") {
                    balloon::Role::Inflate => device.inflate(queue, burst, &mut remove),
                    balloon::Role::Deflate => device.deflate(queue, burst, &mut |_| ()),
                    balloon::Role::Hints => device.hints(queue, burst, &mut |slice| *hinted += slice.len()),
                    balloon::Role::Reports => {
                        device.reports(queue, burst, &mut |slice| io::remove(slice).unwrap())
                    }
                    balloon::Role::Statistics => {
                        statistics.extend(device.statistics(queue, burst).unwrap());
                        Ok(false)
                    }
                };
                call.unwrap()
            });
        let value = |tag| if tag == S_MEMTOT { LEN } else { 7 };
        let statistics = Some(Statistics { tags: vec![S_MEMTOT, S_MEMFREE], value: Box::new(value) });
        let options = BalloonOptions {
            hinting: true,
            reporting: true,
            statistics,
            without,
            ..BalloonOptions::default()
        };
        let mut balloon = Balloon::new(transport, Arc::clone(&guest) as Arc<dyn Platform>, options).unwrap();
        let settle = |balloon: &mut Balloon<_>, free: &mut Free| {
            (0..6).for_each(|_| balloon.poll(free).unwrap());
        };
        settle(&mut balloon, &mut free);
        assert_eq!(guest.gone(&region), 0);
        host.change(|device| device.set_target(300));
        settle(&mut balloon, &mut free);
        assert_eq!((host.vm().device.model().actual(), guest.gone(&region)), (300, 300));
        host.change(|device| device.set_target(10));
        settle(&mut balloon, &mut free);
        assert_eq!((host.vm().device.model().actual(), free.pages.len()), (10, 390));

        assert!(host.change(BalloonDevice::start_hinting));
        settle(&mut balloon, &mut free);
        assert_eq!((heard.lock().unwrap().1, free.lent), (16 << 12, None));
        host.change(BalloonDevice::finish_hinting);
        settle(&mut balloon, &mut free);
        assert_eq!(free.lent, Some(lent));
        assert_eq!(balloon.report(&mut free).unwrap(), 1);
        settle(&mut balloon, &mut free);
        assert_eq!((guest.gone(&region), free.lent), (300 + 16, Some(lent)));
        let statistics = heard.lock().unwrap().0.clone();
        assert_eq!(statistics.len(), 1);
        assert_eq!((statistics[0].get(S_MEMTOT), statistics[0].get(S_MEMFREE)), (Some(LEN), Some(7)));
        assert_eq!(host.vm().device.model().refused(), 0);

        balloon.stop(&mut free).unwrap();
        assert_eq!((free.pages.len(), host.vm().device.model().actual()), (COUNT as usize, 0));
    }
}
