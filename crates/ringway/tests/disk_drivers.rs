//! Drivers of disks that are not ours: the crates `blkio` (libblkio, which QEMU and others use) and `virtio-driver` below
//! it. They have their own front-end, which gives memory in slots only and wants an answer to everything, and rings of
//! their own.
//!
//! Both do the same: rounds of random requests, 32 at once, each in a part of the disk of its own, so that it is known
//! what every byte is to be.
#![allow(unsafe_code, reason = "both crates take and give raw memory")]

#[path = "common/disks.rs"]
mod disks;

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use disks::{Image, SOON, expect_no_warning};
use memmap2::MmapMut;
use ringway_testkit::disk::checker::Random;
use ringway_testkit::server::Server;
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

/// A part of the disk that one request at a time is about, and the room for its data.
const PART: usize = 64 << 10;
const SECTOR: usize = 512;
/// Requests at once.
const DEPTH: usize = 32;
const ROUNDS: u32 = 100;

/// What a request is to do with bytes from `start` on.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Read { start: u64, len: usize },
    Write { start: u64, len: usize },
    WriteZeroes { start: u64, len: usize, unmap: bool },
    Discard { start: u64, len: usize },
    Flush,
}

/// A driver, whose data is in `memory`: request `tag` has the `tag`th part of it.
trait Driver {
    fn queues(&self) -> usize;
    fn memory(&mut self) -> &mut [u8];
    /// Gives the device a request.
    fn submit(&mut self, queue: usize, ask: Ask, tag: usize);
    /// Tells it of them, and waits for some or all of `count`: their tags, with what the driver says became of them.
    fn wait(&mut self, queue: usize, count: usize) -> Vec<(usize, i32)>;
}

/// What every byte of the disk is to be.
struct Model {
    bytes: Vec<u8>,
    /// By part: false from when it is discarded until it is all written.
    known: Vec<bool>,
    random: Random,
}

impl Model {
    fn below(&mut self, n: usize) -> usize {
        self.random.below(n as u64) as usize
    }

    /// Draws a request about this part of the disk.
    fn draw(&mut self, part: usize) -> Ask {
        let first = part * PART;
        let from = self.below(PART / SECTOR - 1) * SECTOR;
        let len = (1 + self.below((PART - from) / SECTOR)) * SECTOR;
        let (start, len) = if self.below(2) == 0 { (first, PART) } else { (first + from, len) };
        let start = start as u64;
        match self.below(12) {
            0 => Ask::Flush,
            1 => Ask::Discard { start: first as u64, len: PART },
            2 | 3 => Ask::WriteZeroes { start, len, unmap: self.below(2) == 0 },
            4..=7 => Ask::Read { start, len },
            _ => Ask::Write { start, len },
        }
    }

    /// A request is done: `data` is what was read or written.
    fn apply(&mut self, ask: Ask, data: &[u8]) {
        let part = |start: u64| start as usize / PART;
        let place = |start: u64, len: usize| start as usize..start as usize + len;
        match ask {
            Ask::Read { start, len } if self.known[part(start)] => {
                assert!(data[..len] == self.bytes[place(start, len)], "{ask:?}");
            }
            Ask::Write { start, len } => {
                self.bytes[place(start, len)].copy_from_slice(&data[..len]);
                self.known[part(start)] |= len == PART;
            }
            Ask::WriteZeroes { start, len, .. } => {
                self.bytes[place(start, len)].fill(0);
                self.known[part(start)] |= len == PART;
            }
            Ask::Discard { start, .. } => self.known[part(start)] = false,
            Ask::Read { .. } | Ask::Flush => {}
        }
    }
}

/// Puts a driver through its rounds; then the image is to hold what the model says.
fn exercise(driver: &mut dyn Driver, image: &Image) {
    let parts = image.path().metadata().unwrap().len() as usize / PART;
    let seed = disks::seed();
    let mut model = Model { bytes: vec![0; parts * PART], known: vec![true; parts], random: Random(seed) };
    let start = Instant::now();
    for _ in 0..ROUNDS {
        // Parts that are not the same.
        let first = model.below(parts);
        let asks: Vec<_> = (0..DEPTH).map(|i| model.draw((first + i * 3) % parts)).collect();
        for (tag, ask) in asks.iter().enumerate() {
            let fill = model.random.below(1 << 60).to_le_bytes().repeat(PART / 8);
            driver.memory()[tag * PART..][..PART].copy_from_slice(&fill);
            driver.submit(tag % driver.queues(), *ask, tag);
        }
        let mut done = [false; DEPTH];
        for queue in 0..driver.queues() {
            let mut left = (queue..DEPTH).step_by(driver.queues()).count();
            while left > 0 {
                for (tag, status) in driver.wait(queue, left) {
                    assert_eq!(status, 0, "{:?}", asks[tag]);
                    assert!(!std::mem::replace(&mut done[tag], true), "{:?} is done twice", asks[tag]);
                    model.apply(asks[tag], &driver.memory()[tag * PART..][..PART]);
                    left -= 1;
                }
            }
        }
    }
    println!("{} requests in {:?}", ROUNDS as usize * DEPTH, start.elapsed());
    let bytes = std::fs::read(image.path()).unwrap();
    assert_eq!(bytes.len(), model.bytes.len());
    let parts = bytes.chunks(PART).zip(model.bytes.chunks(PART)).zip(&model.known);
    for (part, ((found, due), known)) in parts.enumerate() {
        assert!(!known || found == due, "part {part} of the image is wrong");
    }
}

/// Memory that is shared with a device, for the data of all requests.
struct Shared {
    file: File,
    map: MmapMut,
}

impl Shared {
    fn new() -> Self {
        let file = File::from(memfd_create("data", MemfdFlags::CLOEXEC).unwrap());
        file.set_len((DEPTH * PART) as u64).unwrap();
        // SAFETY: the file is ours, and nobody makes it shorter; only the device writes to it beside us, and that
        // only where a request is under way, which we do not look at.
        let map = unsafe { MmapMut::map_mut(&file) }.unwrap();
        Self { file, map }
    }
}

// --- blkio ----------------------------------------------------------------------------------------------

struct Libblkio {
    queues: Vec<Blkioq>,
    memory: Shared,
    _disk: Blkio,
}

impl Libblkio {
    fn connect(server: &Server, queues: i32) -> Self {
        let memory = Shared::new();
        let mut disk = Blkio::new("virtio-blk-vhost-user").unwrap();
        disk.set_str("path", server.socket("disk").to_str().unwrap()).unwrap();
        disk.connect().unwrap();
        disk.set_i32("num-queues", queues).unwrap();
        disk.set_i32("queue-size", 128).unwrap();
        let queues = disk.start().unwrap().queues;
        let region = MemoryRegion {
            addr: memory.map.as_ptr() as usize,
            iova: 0,
            len: memory.map.len(),
            fd: memory.file.as_raw_fd(),
            fd_offset: 0,
            flags: 0,
        };
        disk.map_mem_region(&region).unwrap();
        Self { queues, memory, _disk: disk }
    }
}

impl Driver for Libblkio {
    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn memory(&mut self) -> &mut [u8] {
        &mut self.memory.map
    }

    fn submit(&mut self, queue: usize, ask: Ask, tag: usize) {
        let data = &mut self.memory.map[tag * PART..][..PART];
        let (queue, none) = (&mut self.queues[queue], ReqFlags::empty());
        match ask {
            Ask::Read { start, len } => queue.read(start, data.as_mut_ptr(), len, tag, none),
            Ask::Write { start, len } => queue.write(start, data.as_ptr(), len, tag, none),
            Ask::WriteZeroes { start, len, unmap } => {
                let flags = if unmap { none } else { ReqFlags::NO_UNMAP };
                queue.write_zeroes(start, len as u64, tag, flags);
            }
            Ask::Discard { start, len } => queue.discard(start, len as u64, tag, none),
            Ask::Flush => queue.flush(tag, none),
        }
    }

    fn wait(&mut self, queue: usize, count: usize) -> Vec<(usize, i32)> {
        let mut done: Vec<MaybeUninit<Completion>> = (0..count).map(|_| MaybeUninit::uninit()).collect();
        let mut limit = SOON;
        let count = self.queues[queue].do_io(&mut done, 1, Some(&mut limit), None).expect("in time");
        // SAFETY: `do_io` has filled in so many.
        done[..count]
            .iter()
            .map(|done| unsafe { done.assume_init_ref() })
            .map(|d| (d.user_data, d.ret))
            .collect()
    }
}

/// [`blkio`], which has split rings only.
#[test]
fn blkio_uses_a_disk() {
    for queues in [1, 2] {
        let image = Image::new(8);
        let server = image.serve(&["--num-queues=2"]);
        exercise(&mut Libblkio::connect(&server, queues), &image);
        expect_no_warning(&server);
    }
}

// --- virtio-driver --------------------------------------------------------------------------------------

struct VirtioDriver {
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    transport: Box<VirtioBlkTransport>,
    memory: Shared,
}

impl VirtioDriver {
    fn connect(server: &Server, queues: usize, features: VirtioFeatureFlags) -> Self {
        let memory = Shared::new();
        let disk = VirtioBlkFeatureFlags::all().bits();
        let wanted = features | VirtioFeatureFlags::VERSION_1;
        let transport =
            VhostUser::new(server.socket("disk").to_str().unwrap(), disk | wanted.bits()).unwrap();
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        assert_eq!(transport.get_features() & wanted.bits(), wanted.bits(), "offered");
        let size = u16::try_from(4 * DEPTH).unwrap();
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, queues, size).unwrap();
        let place = (memory.map.as_ptr() as usize, memory.map.len());
        transport.map_mem_region(place.0, place.1, memory.file.as_raw_fd(), 0).unwrap();
        Self { queues, transport, memory }
    }
}

impl Driver for VirtioDriver {
    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn memory(&mut self) -> &mut [u8] {
        &mut self.memory.map
    }

    fn submit(&mut self, queue: usize, ask: Ask, tag: usize) {
        let data = &mut self.memory.map[tag * PART..][..PART];
        let queue = &mut self.queues[queue];
        match ask {
            Ask::Read { start, len } => queue.read(start, &mut data[..len], tag),
            Ask::Write { start, len } => queue.write(start, &data[..len], tag),
            Ask::WriteZeroes { start, len, unmap } => queue.write_zeroes(start, len as u64, unmap, tag),
            Ask::Discard { start, len } => queue.discard(start, len as u64, tag),
            Ask::Flush => queue.flush(tag),
        }
        .expect("there is room");
    }

    fn wait(&mut self, queue: usize, _count: usize) -> Vec<(usize, i32)> {
        // Always: with split rings it asks whether it must without a fence before, and can miss that it must.
        self.transport.get_submission_notifier(queue).notify().unwrap();
        let deadline = Instant::now() + SOON;
        loop {
            let done: Vec<_> =
                self.queues[queue].completions().map(|done| (done.context, done.ret)).collect();
            if !done.is_empty() {
                return done;
            }
            assert!(Instant::now() < deadline, "no request is done in time");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// [`virtio_driver`] with both kinds of rings.
#[test]
fn virtio_driver_uses_a_disk() {
    for format in [VirtioFeatureFlags::empty(), VirtioFeatureFlags::RING_PACKED] {
        for queues in [1, 2] {
            let image = Image::new(8);
            let server = image.serve(&["--num-queues=2"]);
            let features = format | VirtioFeatureFlags::RING_EVENT_IDX;
            exercise(&mut VirtioDriver::connect(&server, queues, features), &image);
            expect_no_warning(&server);
        }
    }
}
