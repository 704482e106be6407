//! A driver that asks a disk for what it likes, in chains as it likes them, and a model that says what must come of it.
//!
//! ```text
//!   input ──► chains ──► virtqueue ──► the disk's thread ──► memory of the disk
//!               │                          │                      │
//!               └──► model ──────► guest's memory, to the byte ≟  ≟ the model's disk
//! ```
//!
//! The rings themselves are sound here: what hostile ones do is for [`split_device`](super::split_device) and its siblings.
//! The disk is in memory, so its requests are carried out in their order, and the model need not guess.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_block::disk::DiskDevice;
use ringway_block::image::{MemoryDisk, Way};
use ringway_block::job::BlockingImage;
use ringway_device::blk::{BlkDevice, Limits, Settings};
use ringway_memory::{Access, BusAddr, FrontendVa, Gpa, Mapping, MemoryTable, ScatterList};
use ringway_queue::{Areas, DeviceQueue, DriverConfig, DriverQueue, QueueConfig, ResumeState, Segment};
use ringway_spec::feature;
use ringway_vhost::backend::Device;
use ringway_vhost::{Kick, Notifier, Running};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;

use super::{Input, MAX_STEPS};
use crate::frontend::blk::{kind, status};
use crate::frontend::wire::feature as bit;

const BASE: u64 = 0x10_0000;
/// Bytes of the guest's memory, and where buffers begin in it.
const LEN: usize = 0x1_0000;
const BUFFERS: usize = 0x2000;
const SIZE: u16 = 64;
/// Bytes of the disk.
const DISK: usize = 0x8000;
const SECTOR: usize = 512;
/// The most pieces that one direction of a request is cut into.
const MAX_PIECES: usize = 12;
/// How long the disk may take for its requests.
const LIMIT: Duration = Duration::from_secs(10);
const ID: [u8; 20] = *b"twenty bytes of name";
const DISCARD: Limits = Limits { sectors: 16, segments: 2, alignment: 1 };
const ZEROES: Limits = Limits { sectors: 24, segments: 3, alignment: 0 };

/// Carries out the requests that `data` describes.
///
/// # Panics
/// If one of them does what it must not, or does not what it must.
pub fn blk(data: &[u8]) {
    let mut input = Input(data);
    let mut peer = Peer::new(&mut input);
    let mut steps = 0;
    while steps < MAX_STEPS && !input.is_empty() {
        let count = usize::from(input.u8() % 8) + 1;
        steps += count;
        peer.batch(&mut input, count);
    }
    peer.finish();
}

/// The guest's memory, and what it is to hold where buffers are.
struct Guest {
    file: File,
    table: Arc<MemoryTable>,
    image: Vec<u8>,
}

impl Guest {
    fn new() -> Self {
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.set_len(LEN as u64).expect("its length");
        let fd = OwnedFd::from(file.try_clone().expect("a clone"));
        let region = Mapping::region(fd, 0, LEN as u64, Gpa(BASE), FrontendVa(BASE)).expect("a region");
        let table = Arc::new(MemoryTable::new(vec![region]).expect("a table"));
        Self { file, table, image: vec![0; LEN] }
    }

    fn areas(&self, features: u64) -> Areas {
        let at = |offset| FrontendVa(BASE + offset);
        Areas::resolve(&self.table, SIZE, features, at(0), at(0x800), at(0x1000)).expect("areas")
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, at as u64).expect("guest memory");
        self.expect(at, bytes);
    }

    /// Says what the disk is to write.
    fn expect(&mut self, at: usize, bytes: &[u8]) {
        self.image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn check(&self) {
        let mut seen = vec![0; LEN - BUFFERS];
        self.file.read_exact_at(&mut seen, BUFFERS as u64).expect("guest memory");
        let differs = seen.iter().zip(&self.image[BUFFERS..]).position(|(seen, due)| seen != due);
        assert_eq!(differs, None, "a byte behind {BUFFERS:#x} is not what it should be");
    }
}

/// What a disk does with requests, from the specification.
struct Model {
    bytes: Vec<u8>,
    block: usize,
    read_only: bool,
    features: u64,
}

/// What a request is to write: data from the start of its device-writable part on, zeroes behind it, and a status at its end.
struct Outcome {
    data: Vec<u8>,
    status: u8,
}

impl Outcome {
    fn of(status: u8) -> Self {
        Self { data: Vec::new(), status }
    }
}

impl Model {
    /// `room` is what may be written before the status.
    fn carry_out(&mut self, readable: &[u8], room: usize) -> Outcome {
        let Some((header, data)) = readable.split_at_checked(16) else { return Outcome::of(status::IOERR) };
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let sector = u64::from(word(8)) | u64::from(word(12)) << 32;
        match word(0) {
            kind::IN => match self.place(sector, room) {
                Some(_) if room == 0 && !data.is_empty() => Outcome::of(status::IOERR),
                Some(at) => Outcome { data: self.bytes[at..at + room].to_vec(), status: status::OK },
                None => Outcome::of(status::IOERR),
            },
            kind::OUT => match self.place(sector, data.len()) {
                Some(_) if self.read_only || data.is_empty() && room > 0 => Outcome::of(status::IOERR),
                Some(at) => {
                    self.bytes[at..at + data.len()].copy_from_slice(data);
                    Outcome::of(status::OK)
                }
                None => Outcome::of(status::IOERR),
            },
            kind::FLUSH => Outcome::of(status::OK),
            kind::GET_ID if room < ID.len() => Outcome::of(status::IOERR),
            kind::GET_ID => Outcome { data: ID.to_vec(), status: status::OK },
            kind::DISCARD if self.features & bit::BLK_DISCARD != 0 => {
                // What is there then is for the storage to say; this one gives its memory back.
                Outcome::of(self.ranges(data, DISCARD, 0))
            }
            kind::WRITE_ZEROES if self.features & bit::BLK_WRITE_ZEROES != 0 => {
                Outcome::of(self.ranges(data, ZEROES, 1))
            }
            _ => Outcome::of(status::UNSUPP),
        }
    }

    /// Where so many bytes from a sector on are, if they are whole blocks of the disk.
    fn place(&self, sector: u64, len: usize) -> Option<usize> {
        let at = u128::from(sector) * SECTOR as u128;
        let is_good = at + len as u128 <= DISK as u128
            && at.is_multiple_of(self.block as u128)
            && len.is_multiple_of(self.block);
        is_good.then_some(at as usize)
    }

    /// Zeroes what the segments name, if all of them are good.
    fn ranges(&mut self, data: &[u8], limits: Limits, flags: u32) -> u8 {
        let (segments, rest) = data.as_chunks::<16>();
        if !rest.is_empty() || segments.is_empty() || segments.len() > limits.segments as usize {
            return status::IOERR;
        }
        let fields = |segment: &[u8; 16]| {
            let all = u128::from_le_bytes(*segment);
            (all as u64, (all >> 64) as u32, (all >> 96) as u32)
        };
        if segments.iter().any(|segment| fields(segment).2 & !flags != 0) {
            return status::UNSUPP;
        }
        let mut places = Vec::new();
        for (sector, sectors, _) in segments.iter().map(fields) {
            let len = sectors as usize * SECTOR;
            match self.place(sector, len) {
                Some(at) if sectors <= limits.sectors => places.push(at..at + len),
                _ => return status::IOERR,
            }
        }
        for place in places {
            self.bytes[place].fill(0);
        }
        status::OK
    }
}

/// A request in the ring: what it is to write, and where.
struct Asked {
    at: usize,
    writable: usize,
    outcome: Option<Outcome>,
}

struct Peer {
    guest: Guest,
    model: Model,
    queue: DriverQueue<Asked>,
    kick: OwnedFd,
    device: DiskDevice,
    image: Arc<MemoryDisk>,
}

impl Peer {
    fn new(input: &mut Input<'_>) -> Self {
        let [how, rings] = input.array();
        let read_only = how & 2 != 0;
        let settings = Settings {
            size: DISK as u64,
            block_size: if how & 1 == 0 { 512 } else { 4096 },
            physical_block_exp: 0,
            alignment_offset: 0,
            min_io_size: 0,
            opt_io_size: 0,
            read_only,
            queues: 1,
            writeback: how & 4 != 0,
            flush: true,
            discard: Some(DISCARD),
            write_zeroes: Some(ZEROES),
            zeroes_may_unmap: how & 8 != 0,
            secure_erase: None,
            id: ID,
            iommu: false,
        };
        let mut model = BlkDevice::new(settings).expect("good settings");
        let mut features = model.negotiation().offered();
        let dropped = [bit::BLK_DISCARD, bit::BLK_WRITE_ZEROES, bit::BLK_FLUSH, bit::BLK_CONFIG_WCE];
        for (n, dropped) in dropped.into_iter().enumerate() {
            if how >> (4 + n) & 1 != 0 {
                features &= !dropped;
            }
        }
        for (n, dropped) in [feature::RING_PACKED, feature::RING_EVENT_IDX].into_iter().enumerate() {
            if rings >> n & 1 != 0 {
                features &= !dropped;
            }
        }
        model.negotiation_mut().ack(features).expect("a part of the offer");
        let guest = Guest::new();
        let image = Arc::new(MemoryDisk::new(DISK as u64).expect("a disk"));
        let way = Way::Here(Arc::clone(&image) as _);
        let mut device = DiskDevice::new("d".into(), model, way, Duration::ZERO).expect("a disk");
        let start = ResumeState::start(features);
        let config = DriverConfig {
            size: SIZE,
            features,
            areas: guest.areas(features),
            start,
            max_chain: SIZE,
            tables: None,
        };
        let queue = DriverQueue::new(config).expect("a driver");
        let kick = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        device.start_vring(
            0,
            Running {
                queue: DeviceQueue::start(QueueConfig {
                    size: SIZE,
                    features,
                    areas: guest.areas(features),
                    memory: Arc::clone(&guest.table),
                    used_log: None,
                    resume: start,
                    inflight: None,
                })
                .expect("a device"),
                kick: Kick::Fd(kick.try_clone().expect("a clone")),
                call: Notifier::default(),
                err: Notifier::default(),
                enabled: true,
                is_resumed: false,
            },
        );
        let block = settings.block_size as usize;
        let model = Model { bytes: vec![0; DISK], block, read_only, features };
        Self { guest, model, queue, kick, device, image }
    }

    /// Makes requests, shows them all at once, and looks at what came of them.
    fn batch(&mut self, input: &mut Input<'_>, count: usize) {
        let (mut at, mut asked) = (BUFFERS, 0);
        for _ in 0..count {
            let Some(end) = self.ask(input, at) else { break };
            at = end;
            asked += 1;
        }
        if self.queue.publish() {
            rustix::io::write(&self.kick, &1u64.to_ne_bytes()).expect("a kick");
        }
        let deadline = Instant::now() + LIMIT;
        while asked > 0 {
            let Some(used) = self.queue.reclaim().expect("a sound ring") else {
                assert!(Instant::now() < deadline, "{asked} requests are not done");
                std::thread::yield_now();
                continue;
            };
            asked -= 1;
            let Asked { at, writable, outcome } = used.owner;
            let Some(Outcome { mut data, status }) = outcome else {
                assert_eq!(used.written, 0);
                continue;
            };
            assert_eq!(used.written as usize, writable);
            data.resize(writable - 1, 0);
            self.guest.expect(at, &data);
            self.guest.expect(at + writable - 1, &[status]);
        }
        self.guest.check();
    }

    /// Adds a request whose buffers begin at `at`; where they end, or nothing if there is no room.
    fn ask(&mut self, input: &mut Input<'_>, at: usize) -> Option<usize> {
        let (readable, room, has_status) = request(input, self.model.block);
        let writable = room + usize::from(has_status);
        let [cut_readable, cut_writable] = input.array();
        let (middle, end) = (at + readable.len(), at + readable.len() + writable);
        if end > LEN || readable.len() + writable == 0 {
            return None;
        }
        let segments = |at: usize, len: usize, piece: u8| -> Vec<Segment> {
            let piece = if piece == 0 { len } else { piece.into() }.max(len / MAX_PIECES + 1);
            let cut = |start: usize| Segment {
                addr: Gpa(BASE + (at + start) as u64),
                len: piece.min(len - start) as u32,
            };
            (0..len).step_by(piece).map(cut).collect()
        };
        let reads = segments(at, readable.len(), cut_readable);
        let writes = segments(middle, writable, cut_writable);
        self.guest.write(at, &readable);
        self.guest.write(middle, &vec![0x5a; writable]);
        // The model carries requests out in the order in which they are shown.
        if self.queue.free() < (reads.len() + writes.len()) as u16 {
            return None;
        }
        let outcome = (writable > 0).then(|| self.model.carry_out(&readable, writable - 1));
        let owner = Asked { at: middle, writable, outcome };
        assert!(self.queue.add(&reads, &writes, owner).is_ok(), "there is room");
        Some(end)
    }

    /// The disk stops with nothing left undone, and holds what the model does.
    fn finish(mut self) {
        self.device.stop_vring(0);
        let mut list = ScatterList::with_capacity(1);
        list.bind(&self.guest.table);
        list.push(BusAddr(BASE + BUFFERS as u64), DISK as u32, Access::WRITE).expect("guest memory");
        self.image.read(0, list.buf_of_len(0..1, DISK)).expect("all of the disk");
        self.guest.expect(BUFFERS, &self.model.bytes);
        self.guest.check();
    }
}

/// What a request reads, how much it can write before its status, and whether it has one.
fn request(input: &mut Input<'_>, block: usize) -> (Vec<u8>, usize, bool) {
    let [how, place, amount, filling] = input.array();
    let number = match how % 16 {
        0..=2 => kind::IN,
        3..=6 => kind::OUT,
        7 => kind::FLUSH,
        8 => kind::GET_ID,
        9 | 10 => kind::DISCARD,
        11 | 12 => kind::WRITE_ZEROES,
        13 => kind::SECURE_ERASE,
        14 => u32::from(filling),
        _ => u32::from_le_bytes(input.array()),
    };
    let sector = |place: u8, input: &mut Input<'_>| match place {
        0..192 => {
            u64::from(place) % (DISK / SECTOR + 2) as u64 / (block / SECTOR) as u64 * (block / SECTOR) as u64
        }
        192..240 => u64::from(place - 192),
        _ => input.u64(),
    };
    let first = sector(place, input);
    let mut readable = [&number.to_le_bytes()[..], &[0; 4], &first.to_le_bytes()].concat();
    // Mostly whole blocks, sometimes a little more or less.
    let len = match amount {
        0..200 => usize::from(amount % 5) * block,
        200..230 => usize::from(amount - 200),
        _ => (2 * block + usize::from(amount)).saturating_sub(243),
    };
    let mut room = 0;
    match number {
        kind::OUT => readable.extend((0..len).map(|at| filling.wrapping_add(at as u8))),
        kind::DISCARD | kind::WRITE_ZEROES | kind::SECURE_ERASE => {
            for _ in 0..amount % 5 {
                let [place, sectors, flags] = input.array();
                let flags = match flags {
                    0..150 => 0,
                    150..200 => 1,
                    _ => u32::from(flags) << (flags % 24),
                };
                let sectors = if sectors < 200 { sectors % 32 } else { sectors };
                readable.extend(sector(place, input).to_le_bytes());
                readable.extend(u32::from(sectors).to_le_bytes());
                readable.extend(flags.to_le_bytes());
            }
        }
        _ => room = len,
    }
    match how >> 4 {
        // Too short, or too long, or with data the wrong way.
        13 => readable.truncate(usize::from(input.u8())),
        14 => readable.extend(input.array::<7>()),
        15 => room = filling.into(),
        _ => {}
    }
    (readable, room, how >> 4 != 12)
}
