//! Ringway's drivers over vhost-user: with `ringway`, and with a back-end that is not of this project.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_driver::blk::{Blk, BlkError, Operation, Options, Range};
use ringway_driver::transport::vhost_user::{Pages, SharedMemory, VhostUser};
use ringway_driver::{Device, Error, Interrupt, QueueOptions, Wanted};
use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::Segment;
use ringway_spec::blk;
use ringway_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use ringway_testkit::backend::{Backend, Project};
use ringway_testkit::server::Server;

use crate::common::PROGRAM;

const LIMIT: Duration = Duration::from_secs(20);
const SECTOR: usize = 512;
const MIB: usize = 1 << 20;
/// What a driver leaves out for its ring to be of this kind.
const KINDS: [u64; 4] = [0, RING_PACKED, RING_EVENT_IDX | RING_INDIRECT_DESC, RING_PACKED | RING_EVENT_IDX];

type Disk = Blk<VhostUser>;

fn memory() -> SharedMemory {
    SharedMemory::new(64 << 20, Pages::Small).unwrap()
}

fn disk(socket: impl AsRef<Path>, options: Options) -> Disk {
    let memory = memory();
    let transport = VhostUser::connect(socket, blk::DEVICE_ID, &memory).unwrap();
    Blk::new(transport, Arc::new(memory), options).unwrap()
}

fn without(features: u64) -> Options {
    let queue = QueueOptions { table_entries: 4, ..Default::default() };
    Options { without: features, queue, ..Default::default() }
}

/// Bytes that are others wherever they are.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

/// The next request that is complete, slept for on the queue's call.
fn complete(disk: &mut Disk, queue: u16) -> ringway_driver::blk::Completion {
    let deadline = Instant::now() + LIMIT;
    let call = Arc::clone(disk.transport_mut().call(queue).expect("a queue"));
    loop {
        if let Some(done) = disk.complete(queue).expect("an honest device") {
            return done;
        }
        assert!(Instant::now() < deadline, "nothing completes");
        if !disk.arm(queue) {
            call.wait(Duration::from_secs(1)).unwrap();
        }
        disk.suppress(queue);
    }
}

/// Does to a disk of 16 MiB all that it offers, and looks whether it was done; leaves `pattern(MIB, 1)` at its start.
fn exercise(disk: &mut Disk) {
    assert_eq!(disk.properties().capacity, (16 * MIB / SECTOR) as u64);
    let data = pattern(MIB, 1);
    disk.write_blocks(0, &data).unwrap();
    disk.write_blocks(3 * 2048, &data).unwrap();
    disk.flush().unwrap();
    let mut back = vec![0; MIB];
    disk.read_blocks(3 * 2048, &mut back).unwrap();
    assert!(back == data, "what was written is read");
    disk.id().unwrap();

    let has = |disk: &Disk, feature| disk.features() & feature != 0;
    if has(disk, blk::F_WRITE_ZEROES) {
        disk.write_zeroes(3 * 2048 + 8, 1024, false).unwrap();
        disk.read_blocks(3 * 2048, &mut back).unwrap();
        let zeroed = 8 * SECTOR..1032 * SECTOR;
        assert!(back[zeroed.clone()].iter().all(|byte| *byte == 0));
        assert!(back[..zeroed.start] == data[..zeroed.start] && back[zeroed.end..] == data[zeroed.end..]);
    }
    if has(disk, blk::F_DISCARD) {
        disk.discard(3 * 2048, 2048).unwrap();
    }
    if has(disk, blk::F_CONFIG_WCE) {
        disk.set_writeback(false).unwrap();
        assert!(!disk.properties().writeback);
        disk.set_writeback(true).unwrap();
    }
    under_way(disk);
    let past = disk.read_blocks(disk.properties().capacity, &mut back[..SECTOR]);
    assert!(matches!(past, Err(BlkError::OutOfRange { .. })));
}

/// Many requests at once, on every queue, in whatever order they are done: each block is written, and then read.
fn under_way(disk: &mut Disk) {
    const BLOCK: u32 = 4096;
    const BLOCKS: u64 = 256;
    const FIRST: u64 = 5 * 2048;
    let queues = u64::from(disk.queues());
    let sector = |block: u64| FIRST + block * u64::from(BLOCK) / SECTOR as u64;
    let mut idle: BTreeMap<u64, Vec<SharedBuf>> =
        (0..queues).map(|queue| (queue, disk.buffers(16, BLOCK).unwrap())).collect();
    for is_write in [true, false] {
        for queue in 0..queues {
            let mut next = (queue..BLOCKS).step_by(queues as usize);
            let mut left = next.clone().count();
            while left > 0 {
                while let Some(mut buffer) = idle.get_mut(&queue).unwrap().pop() {
                    let Some(block) = next.next() else {
                        idle.get_mut(&queue).unwrap().push(buffer);
                        break;
                    };
                    let (sector, len) = (sector(block), BLOCK);
                    let operation = if is_write {
                        buffer.write(&pattern(BLOCK as usize, block));
                        Operation::Write { sector, len }
                    } else {
                        Operation::Read { sector, len }
                    };
                    let submitted = disk.submit(queue as u16, operation, Some(buffer), block);
                    submitted.map_err(|refused| refused.error).unwrap();
                }
                disk.publish(queue as u16);
                let done = complete(disk, queue as u16);
                done.result.unwrap();
                let buffer = done.buffer.expect("its buffer");
                if !is_write {
                    let mut bytes = vec![0; BLOCK as usize];
                    buffer.read(&mut bytes);
                    assert!(bytes == pattern(BLOCK as usize, done.token), "block {}", done.token);
                }
                idle.get_mut(&queue).unwrap().push(buffer);
                left -= 1;
            }
        }
    }
}

#[test]
fn a_disk_in_memory_and_one_in_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    File::create(&image).unwrap().set_len(16 * MIB as u64).unwrap();
    for kind in KINDS {
        for storage in ["mem:16M", image.to_str().unwrap()] {
            let server = Server::blk(PROGRAM.as_ref(), storage, &["--num-queues=3"]).unwrap();
            let options = Options { queues: 2, ..without(kind) };
            let mut disk = disk(server.socket("disk"), options);
            assert_eq!((disk.queues(), disk.features() & kind), (2, 0));
            exercise(&mut disk);
        }
        let mut start = vec![0; MIB];
        File::open(&image).unwrap().read_exact_at(&mut start, 0).unwrap();
        assert!(start == pattern(MIB, 1), "what was flushed is in the file");
    }
}

/// QEMU's back-end has split rings only, keeps no status, and knows no reset.
#[test]
fn a_disk_of_qemu_storage_daemon() {
    let backend = Backend::start(Project::Qemu, Path::new(PROGRAM)).unwrap();
    // It serves one front-end after the other.
    for kind in [0, RING_EVENT_IDX | RING_INDIRECT_DESC] {
        let mut disk = disk(backend.socket(), Options { queues: 2, ..without(kind) });
        let capacity = disk.properties().capacity as usize;
        assert_eq!(capacity, MIB / SECTOR);
        let data = pattern(MIB / 2, 3);
        disk.write_blocks(512, &data).unwrap();
        disk.flush().unwrap();
        let mut back = vec![0; MIB / 2];
        disk.read_blocks(512, &mut back).unwrap();
        assert!(back == data);
        disk.write_zeroes(512, 8, true).unwrap();
        disk.discard(520, 8).unwrap();
        disk.read_blocks(512, &mut back[..SECTOR]).unwrap();
        assert!(back[..SECTOR].iter().all(|byte| *byte == 0));
        disk.id().unwrap();
        // Several ranges in one request.
        let ranges = [Range { sector: 0, count: 8 }, Range { sector: 64, count: 8 }];
        let buffer = disk.buffers(1, 512).unwrap().pop();
        if disk.properties().discard.is_some_and(|limits| limits.ranges > 1) {
            disk.submit(1, Operation::Discard(&ranges), buffer, 5).map_err(|r| r.error).unwrap();
            disk.publish(1);
            let done = complete(&mut disk, 1);
            assert_eq!((done.token, done.result), (5, Ok(())));
        }
    }
}

/// A disk that was stopped can be set up again, by the same session: with other rings, and the same contents.
#[test]
fn a_disk_is_set_up_again() {
    let server = Server::blk(PROGRAM.as_ref(), "mem:16M", &[]).unwrap();
    let memory = memory();
    let mut transport = VhostUser::connect(server.socket("disk"), blk::DEVICE_ID, &memory).unwrap();
    for (round, kind) in (0..).zip(KINDS) {
        let mut disk = Blk::new(transport, Arc::new(memory.clone()), without(kind)).unwrap();
        let mut sector = [0; SECTOR];
        disk.read_blocks(7, &mut sector).unwrap();
        assert_eq!(sector, [round; SECTOR]);
        disk.write_blocks(7, &[round + 1; SECTOR]).unwrap();
        let (buffers, stopped) = disk.stop().unwrap();
        assert!(buffers.is_empty());
        transport = stopped;
    }
}

/// A back-end tells of its disk's new size, and the driver goes by it.
#[test]
fn a_disk_grows() {
    let server = Server::blk(PROGRAM.as_ref(), "mem:1M", &[]).unwrap();
    let mut disk = disk(server.socket("disk"), Options::default());
    assert_eq!(disk.interrupt().unwrap(), Interrupt::empty());
    assert!(disk.write_blocks(2048, &[1; SECTOR]).is_err());
    server.resize(Some(2 * MIB as u64)).unwrap();
    let deadline = Instant::now() + LIMIT;
    while !disk.interrupt().unwrap().contains(Interrupt::CONFIG) {
        assert!(Instant::now() < deadline, "nobody says so");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(disk.properties().capacity, 4096);
    disk.write_blocks(2048, &[1; SECTOR]).unwrap();
}

/// A ring that the back-end finds broken is a device that needs a reset, and works after one.
#[test]
fn a_broken_ring_is_told_of() {
    let server = Server::blk(PROGRAM.as_ref(), "mem:16M", &[]).unwrap();
    let memory = memory();
    let transport = VhostUser::connect(server.socket("disk"), blk::DEVICE_ID, &memory).unwrap();
    let wanted = Wanted { id: blk::DEVICE_ID, features: 0, required: 0, requires: &[], without: 0 };
    let one_queue = |device: &mut Device<VhostUser>| device.queue::<()>(0, QueueOptions::default());
    let (mut device, mut queue) =
        Device::set_up(transport, Arc::new(memory.clone()), &wanted, one_queue).unwrap();
    device.check().unwrap();
    let nowhere = Segment { addr: Gpa(1), len: 16 };
    assert!(queue.add(&[nowhere], &[], ()).is_ok());
    queue.publish();
    let deadline = Instant::now() + LIMIT;
    while device.check().is_ok() {
        assert!(Instant::now() < deadline, "nobody says so");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(device.check(), Err(Error::NeedsReset)));
    assert!(matches!(device.interrupt(), Err(Error::NeedsReset)));
    let stopped = device.stop().unwrap();
    assert_eq!(queue.retire(&stopped).len(), 1);
    let mut disk = Blk::new(stopped.into_transport(), Arc::new(memory), Options::default()).unwrap();
    exercise(&mut disk);
}

/// A back-end that dies costs an error, and no wait.
#[test]
fn a_back_end_that_dies() {
    let server = Server::blk(PROGRAM.as_ref(), "mem:16M", &[]).unwrap();
    let mut disk = disk(server.socket("disk"), Options::default());
    drop(server);
    let start = Instant::now();
    assert!(disk.refresh().is_err());
    assert!(disk.stop().is_err());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
