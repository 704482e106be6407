//! Our network driver on our network device, in one process: a monitor of a few lines between them.
//!
//! ```text
//!   Net ──► Mmio ──► MmioDevice ──► DeviceQueue ─┬─ control ──► ControlQueue ──► NetDevice
//!                                                └─ frames ──► wire ──► the other one's DeviceQueue ──► Net
//! ```
#![allow(unsafe_code, reason = "a platform promises that its memory is the device's")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use ringway_device::mmio::MmioDevice;
use ringway_device::net::{Checksum as Place, ControlQueue, NetDevice, Role, Settings, Work};
use ringway_device::registers::{Action, Settings as RegisterSettings};
use ringway_driver::net::{
    Checksum, Mode, Net, Offload, Options, PLAIN, Partial, RECEIVE_CHECKSUMS, RECEIVE_SEGMENTS, Rss,
    SEND_SEGMENTS,
};
use ringway_driver::transport::mmio::Mmio;
use ringway_driver::transport::registers::Registers;
use ringway_driver::{OutOfMemory, Platform};
use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, Region};
use ringway_queue::{Burst, DeviceQueue};
use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED};
use ringway_spec::net::{F_GUEST_CSUM, F_MRG_RXBUF, HASH_TYPE_IPV4, HDR_LEN, Header};
use ringway_testkit::frontend::frame;
use rustix::fs::{MemfdFlags, memfd_create};
use zerocopy::{FromBytes, IntoBytes};

const LEN: u64 = 256 << 20;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// What a driver leaves out for its rings to be of this kind.
const KINDS: [u64; 4] = [0, RING_PACKED, RING_EVENT_IDX, RING_PACKED | RING_EVENT_IDX];

/// A guest's memory, of which each part is given out once.
struct Machine {
    file: File,
    next: Mutex<u64>,
}

impl Machine {
    fn new() -> Arc<Self> {
        let file = File::from(memfd_create("pair", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(LEN).unwrap();
        Arc::new(Self { file, next: Mutex::new(0) })
    }

    fn map(&self, offset: u64, len: u64) -> Option<Region> {
        Mapping::region(self.file.try_clone().ok()?.into(), offset, len, Gpa(offset), FrontendVa(offset)).ok()
    }
}

// SAFETY: each part of the file is given out once, by the address at which the device finds it.
unsafe impl Platform for Machine {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        let mut next = self.next.lock().unwrap();
        let offset = *next;
        *next += len.next_multiple_of(4096);
        self.map(offset, len).ok_or(OutOfMemory { len })
    }

    fn wait(&self, round: u32) -> bool {
        round < 10
    }
}

/// A monitor with a network device.
struct Monitor {
    device: MmioDevice<NetDevice>,
    memory: Arc<MemoryTable>,
    queues: BTreeMap<u16, DeviceQueue>,
    commands: ControlQueue,
    /// What the driver sent: checked headers and frames.
    sent: Vec<(Header, Vec<u8>)>,
}

impl Monitor {
    fn act(&mut self) {
        while let Some(action) = self.device.next_action() {
            match action {
                Action::Reset => self.queues.clear(),
                Action::QueueStarted(index) => {
                    let queue = self.device.queue(index).expect("it has started").start(&self.memory);
                    self.queues.insert(index, queue.expect("a queue as it was set up"));
                    self.serve(index);
                }
                Action::Notified { index, .. } => self.serve(index),
                _ => {}
            }
        }
    }

    fn serve(&mut self, index: u16) {
        let Some(queue) = self.queues.get_mut(&index) else { return };
        match self.device.model().role(index) {
            Some(Role::Control) => {
                while self.commands.serve(queue, self.device.model_mut()).unwrap() > 0 || queue.arm() {
                    let _ = queue.publish();
                }
            }
            Some(Role::Transmit(_)) => self.send(index),
            _ => {}
        }
    }

    /// Takes what the driver has sent.
    fn send(&mut self, index: u16) {
        let queue = self.queues.get_mut(&index).expect("it was notified");
        let offloads = self.device.model().offloads();
        let mut burst = Burst::default();
        loop {
            while let Some(chain) = queue.next(&mut burst).unwrap() {
                let mut bytes = vec![0; chain.readable().len()];
                chain.readable().read(&mut bytes);
                let (header, frame) = Header::read_from_prefix(&bytes).expect("a header");
                let header = offloads.check_sent(header, frame.len()).expect("a header as it may be");
                self.sent.push((header, frame.to_vec()));
                queue.complete(chain, 0);
            }
            let _ = queue.publish();
            if !queue.arm() {
                return;
            }
        }
    }

    /// Gives the driver a frame on a pair, as the device's rules want it.
    fn receive(&mut self, pair: u16, sent: Header, mut frame: Vec<u8>) {
        let receive = self.device.model().offloads().receive(sent, frame.len() - 14).expect("not too long");
        if let Work::Complete(Place { start, at }) = receive.work {
            let sum = frame[start..]
                .chunks(2)
                .map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)));
            let sum = sum.fold(0, |sum, word| (sum + word) % 0xffff);
            frame[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        } else {
            assert_eq!(receive.work, Work::Nothing);
        }
        let queue = self.queues.get_mut(&(2 * pair)).expect("it has started");
        let mut burst = Burst::default();
        let len = HDR_LEN + frame.len();
        let mut buffers: usize = 0;
        while burst.writable_lens().map(|len| len as usize).sum::<usize>() < len {
            assert_eq!(queue.take(&mut burst, 1), Ok(1), "the frame finds no room");
            buffers += 1;
        }
        let header = Header { num_buffers: (buffers as u16).into(), ..receive.header };
        let bytes = [header.as_bytes(), &frame].concat();
        let mut rest = &bytes[..];
        while let Some(chain) = burst.next() {
            let written = chain.writable().write(rest);
            rest = &rest[written..];
            queue.complete(chain, written as u32);
        }
        let _ = queue.publish();
    }
}

/// The monitor, as the driver's accesses reach it.
struct Guest {
    monitor: Rc<RefCell<Monitor>>,
    len: usize,
}

macro_rules! accesses {
    ($read:ident, $write:ident, $value:ty) => {
        fn $read(&self, offset: usize) -> $value {
            let mut bytes = [0; size_of::<$value>()];
            let mut monitor = self.monitor.borrow_mut();
            monitor.device.read(offset as u64, &mut bytes);
            monitor.act();
            <$value>::from_le_bytes(bytes)
        }

        fn $write(&self, offset: usize, value: $value) {
            let mut monitor = self.monitor.borrow_mut();
            monitor.device.write(offset as u64, &value.to_le_bytes());
            monitor.act();
        }
    };
}

impl Registers for Guest {
    fn len(&self) -> usize {
        self.len
    }

    accesses!(read_u8, write_u8, u8);
    accesses!(read_u16, write_u16, u16);
    accesses!(read_u32, write_u32, u32);
}

type Driver = Net<Mmio<Guest>>;

/// A device of four pairs, and the driver on it.
fn up(options: &Options) -> (Rc<RefCell<Monitor>>, Driver) {
    let machine = Machine::new();
    let settings = Settings {
        mac: Some(MAC),
        mtu: Some(9000),
        max_pairs: 4,
        segmentation: true,
        iommu: false,
        speed: Some(25_000),
        rss: true,
        filters: true,
    };
    let device = MmioDevice::new(NetDevice::new(settings).unwrap(), RegisterSettings::default()).unwrap();
    let len = device.len() as usize;
    let memory = Arc::new(MemoryTable::new(vec![machine.map(0, LEN).unwrap()]).unwrap());
    let (queues, commands) = (BTreeMap::new(), ControlQueue::default());
    let monitor = Rc::new(RefCell::new(Monitor { device, memory, queues, commands, sent: Vec::new() }));
    let registers = Guest { monitor: Rc::clone(&monitor), len };
    let transport = Mmio::new(registers).unwrap().expect("a device");
    (monitor, Net::new(transport, machine, options).unwrap())
}

fn all(without: u64) -> Options {
    let features = PLAIN | SEND_SEGMENTS | RECEIVE_CHECKSUMS | RECEIVE_SEGMENTS;
    Options { features, without, pairs: 4, ..Options::default() }
}

/// What the driver has received on a pair.
fn received(net: &mut Driver, pair: usize) -> Vec<(Vec<u8>, Checksum)> {
    let mut all = Vec::new();
    let mut receive = |received: &ringway_driver::net::Received| {
        let mut bytes = vec![0; received.frame.len()];
        received.frame.read(0, &mut bytes);
        all.push((bytes, received.checksum));
    };
    while net.pair(pair).rx.receive(&mut receive).unwrap() > 0 {}
    all
}

/// What the driver finds of the device is what that was made to be.
#[test]
fn the_driver_finds_the_device_as_it_is() {
    for kind in KINDS {
        let (monitor, net) = up(&all(kind));
        assert_eq!((net.mac(), net.mtu(), net.link().speed), (MAC, 9000, Some(25_000)));
        assert_eq!((net.link().is_up, net.link().is_full_duplex), (true, Some(true)));
        assert_eq!(monitor.borrow().device.model().negotiation().acked(), net.features());
        assert_eq!(monitor.borrow().queues.len(), 9);
        net.stop().unwrap();
        assert!(monitor.borrow().queues.is_empty());
    }
}

/// Each command changes the device as it says, through the control queue.
#[test]
fn commands_change_the_device() {
    for kind in KINDS {
        let (monitor, mut net) = up(&all(kind));
        let pairs = || monitor.borrow().device.model().active_pairs();
        let wants =
            |to: [u8; 6]| monitor.borrow().device.model().filter().expect("a filter").accepts(to, None);
        for count in [4, 1, 3] {
            net.set_pairs(count).unwrap();
            assert_eq!((pairs(), net.active_pairs()), (count, count));
        }
        net.set_rss(&Rss {
            hash_types: HASH_TYPE_IPV4,
            table: &[0, 1],
            unclassified: 0,
            transmit: 2,
            key: &[1; 40],
        })
        .unwrap();
        assert_eq!(pairs(), 2);

        let (other, group) = ([2, 0, 0, 0, 0, 9], [3, 0, 0, 0, 0, 9]);
        net.set_mode(Mode::Promiscuous, false).unwrap();
        assert_eq!([MAC, other, group].map(wants), [true, false, false]);
        net.set_addresses(&[other], &[group]).unwrap();
        assert_eq!([MAC, other, group].map(wants), [true, true, true]);
        net.set_mac(other).unwrap();
        net.set_addresses(&[], &[]).unwrap();
        assert_eq!([MAC, other, group].map(wants), [false, true, false]);
        net.set_mode(Mode::AllMulticast, true).unwrap();
        assert!(wants(group));
        net.set_vlan(5, true).unwrap();

        let takes_partial = || monitor.borrow().device.model().offloads().completes_checksums();
        net.set_guest_offloads(0).unwrap();
        assert!(!takes_partial());
        net.set_guest_offloads(F_GUEST_CSUM).unwrap();
        assert!(takes_partial());

        assert!(monitor.borrow_mut().device.model_mut().announce());
        monitor.borrow_mut().device.config_changed();
        assert!(net.interrupt().unwrap().announce);
        net.announced().unwrap();
        assert!(!net.config_changed().unwrap().announce);
    }
}

/// Frames go from one driver to another by the rules of their devices: whole, and with checksums completed where that is
/// wanted.
#[test]
fn frames_go_from_driver_to_driver() {
    for (kind, merged) in KINDS.into_iter().flat_map(|kind| [(kind, 0), (kind, F_MRG_RXBUF)]) {
        let (a_monitor, mut a) = up(&all(kind));
        let (b_monitor, mut b) = up(&all(kind | merged));
        for completes in [true, false] {
            b.set_guest_offloads(if completes { F_GUEST_CSUM } else { 0 }).unwrap();
            for round in 0..100 {
                let flow = frame::Flow {
                    src_mac: MAC,
                    dst_mac: [2; 6],
                    src_ip: "192.0.2.1".parse().unwrap(),
                    dst_ip: "192.0.2.2".parse().unwrap(),
                    src_port: round,
                    dst_port: 7,
                };
                let payloads: Vec<_> =
                    (0..8).map(|i| vec![i as u8; (usize::from(round) * 8 + i) * 11]).collect();
                let partial = Partial { start: 34, offset: 6 };
                for payload in &payloads {
                    let frame = frame::udp(&flow, payload, frame::Checksum::Partial);
                    a.pair(0).tx.send(&frame, &Offload::Checksum(partial)).unwrap();
                }
                a.pair(0).tx.flush();
                for (header, frame) in a_monitor.borrow_mut().sent.drain(..) {
                    b_monitor.borrow_mut().receive(0, header, frame);
                }
                let came = received(&mut b, 0);
                assert_eq!(came.len(), payloads.len());
                for ((frame, checksum), payload) in came.iter().zip(&payloads) {
                    assert!(frame[42..] == payload[..], "{kind:#x} round {round}");
                    if completes {
                        assert_eq!(*checksum, Checksum::Partial(partial));
                    } else {
                        assert_eq!(*checksum, Checksum::Unknown);
                        frame::check(frame).unwrap();
                    }
                }
            }
        }
    }
}
