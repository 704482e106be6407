//! A disk in memory, on the device's half of a queue; and a machine that waits for its thread.
#![allow(unsafe_code, reason = "a platform promises that its memory is the device's")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_driver::{OutOfMemory, Platform};
use ringway_memory::Region;
use ringway_queue::{Burst, DeviceQueue};
use ringway_spec::blk::{self, S_IOERR, S_OK};

use crate::common::{Fake, TestPlatform};

const HEADER: usize = 16;
const SECTOR: usize = 512;

/// A machine whose devices are threads, which may not get a processor at once.
pub(crate) struct Patient {
    memory: Arc<TestPlatform>,
    /// How often it lets a driver look again.
    pub(crate) rounds: AtomicU32,
}

impl Patient {
    pub(crate) fn new(memory: &Arc<TestPlatform>) -> Arc<Self> {
        Arc::new(Self { memory: Arc::clone(memory), rounds: AtomicU32::new(100_000) })
    }
}

// SAFETY: as of the other.
unsafe impl Platform for Patient {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        self.memory.allocate(len)
    }

    fn wait(&self, round: u32) -> bool {
        std::thread::sleep(Duration::from_micros(if round < 100 { 0 } else { 100 }));
        round < self.rounds.load(Ordering::Relaxed)
    }
}

/// A configuration without surprises.
pub(crate) fn config(capacity: u64) -> blk::Config {
    let mut config = blk::Config { capacity: capacity.into(), writeback: 1, ..Default::default() };
    config.size_max.set(1 << 20);
    config.seg_max.set(128);
    config.blk_size.set(512);
    config.num_queues.set(1);
    for limit in [
        &mut config.max_discard_sectors,
        &mut config.max_write_zeroes_sectors,
        &mut config.max_secure_erase_sectors,
    ] {
        limit.set(1024);
    }
    for limit in
        [&mut config.max_discard_seg, &mut config.max_write_zeroes_seg, &mut config.max_secure_erase_seg]
    {
        limit.set(8);
    }
    config.discard_sector_alignment.set(8);
    config.secure_erase_sector_alignment.set(8);
    config.write_zeroes_may_unmap = 1;
    config
}

/// A request as the device has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) kind: u32,
    pub(crate) sector: u64,
    /// What is behind the header.
    pub(crate) data: Vec<u8>,
    /// Room before the status.
    pub(crate) room: usize,
    /// The status before anybody wrote it.
    pub(crate) status: u8,
}

impl Asked {
    /// Where, and how many sectors: of a request for ranges, those of the first.
    pub(crate) fn range(&self) -> (u64, u32) {
        match self.kind {
            blk::T_IN => (self.sector, (self.room / SECTOR) as u32),
            blk::T_OUT => (self.sector, (self.data.len() / SECTOR) as u32),
            blk::T_DISCARD | blk::T_WRITE_ZEROES | blk::T_SECURE_ERASE => {
                assert_eq!(self.data.len(), 16, "one range");
                (u64::from_le_bytes(part(&self.data, 0)), u32::from_le_bytes(part(&self.data, 8)))
            }
            _ => (self.sector, 0),
        }
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

/// Takes a request that there is, and answers it with a status and data.
pub(crate) fn one(queue: &mut DeviceQueue, answer: impl FnOnce(&Asked) -> (u8, Vec<u8>)) -> Asked {
    try_one(queue, answer).expect("a request")
}

fn try_one(queue: &mut DeviceQueue, answer: impl FnOnce(&Asked) -> (u8, Vec<u8>)) -> Option<Asked> {
    let mut burst = Burst::default();
    let chain = queue.next(&mut burst).unwrap()?;
    let mut bytes = vec![0; chain.readable().len()];
    chain.readable().read(&mut bytes);
    let room = chain.writable().len() - 1;
    let [status] = chain.writable().advance(room).read_array().unwrap();
    let kind = u32::from_le_bytes(part(&bytes, 0));
    assert_eq!(bytes[4..8], [0; 4], "reserved");
    let sector = u64::from_le_bytes(part(&bytes, 8));
    let asked = Asked { kind, sector, data: bytes.split_off(HEADER), room, status };
    let (status, data) = answer(&asked);
    assert!(data.len() <= room);
    chain.writable().write(&data);
    chain.writable().advance(room).write(&[status]);
    // All of the room, or none of it, and the status.
    let written = if data.is_empty() { 1 } else { room + 1 };
    queue.complete(chain, written as u32);
    let _ = queue.publish();
    Some(asked)
}

/// Uses the next chain, with or without a status, and says how much was written.
pub(crate) fn answer(queue: &mut DeviceQueue, status: Option<u8>, written: u32) {
    let mut burst = Burst::default();
    let chain = queue.next(&mut burst).unwrap().expect("a request");
    if let Some(status) = status {
        chain.writable().advance(chain.writable().len() - 1).write(&[status]);
    }
    queue.complete(chain, written);
    let _ = queue.publish();
}

/// A disk's contents, and its faults.
pub(crate) struct Disk {
    pub(crate) data: Vec<u8>,
    /// Which requests fail, counted from 0.
    pub(crate) fails: Vec<usize>,
}

impl Disk {
    pub(crate) fn new(capacity: u64) -> Self {
        Self { data: vec![0; capacity as usize * SECTOR], fails: Vec::new() }
    }

    fn serve(&mut self, asked: &Asked, number: usize) -> (u8, Vec<u8>) {
        if self.fails.contains(&number) {
            return (S_IOERR, Vec::new());
        }
        let (sector, count) = asked.range();
        let start = sector as usize * SECTOR;
        let bytes = &mut self.data[start..start + count as usize * SECTOR];
        let answer = match asked.kind {
            blk::T_IN => bytes.to_vec(),
            blk::T_GET_ID => b"a name of 20 letters".to_vec(),
            blk::T_GET_LIFETIME => vec![1, 0, 2, 0, 3, 0],
            blk::T_OUT => {
                bytes.copy_from_slice(&asked.data);
                Vec::new()
            }
            blk::T_WRITE_ZEROES => {
                bytes.fill(0);
                Vec::new()
            }
            _ => Vec::new(),
        };
        (S_OK, answer)
    }
}

/// What a disk was asked.
pub(crate) struct Heard {
    pub(crate) asked: Vec<Asked>,
}

impl Heard {
    pub(crate) fn kinds(&self) -> Vec<u32> {
        self.asked.iter().map(|asked| asked.kind).collect()
    }
}

/// A disk at work.
pub(crate) struct Served {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Heard>,
}

impl Served {
    /// What it was asked, all in all.
    pub(crate) fn end(self) -> Heard {
        self.is_over.store(true, Ordering::Release);
        self.thread.join().expect("the disk found nothing wrong")
    }
}

/// Serves a queue on a thread of its own.
pub(crate) fn serve(fake: &Fake, index: u16, disk: Disk) -> Served {
    serve_until(fake.device_queue(index), disk, usize::MAX)
}

/// Serves so many requests.
pub(crate) fn serve_until(mut queue: DeviceQueue, mut disk: Disk, most: usize) -> Served {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let thread = std::thread::spawn(move || {
        let mut heard = Heard { asked: Vec::new() };
        while !over.load(Ordering::Acquire) {
            let number = heard.asked.len();
            let asked =
                if number < most { try_one(&mut queue, |asked| disk.serve(asked, number)) } else { None };
            match asked {
                Some(asked) => heard.asked.push(asked),
                None => std::thread::yield_now(),
            }
        }
        heard
    });
    Served { is_over, thread }
}
