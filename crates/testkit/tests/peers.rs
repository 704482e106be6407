//! Ringway's front-end with back-ends that others wrote: DPDK's and QEMU's.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::Segment;
use ringway_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1};
use ringway_testkit::dpdk::{Forward, NetVhost, TestPmd, Traffic};
use ringway_testkit::driver::NetDriver;
use ringway_testkit::frontend::blk::{Answer, kind, status};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{BlkFrontend, BlkOptions, DiskRequest, Layout};
use ringway_testkit::process::{Process, find_program};
use ringway_vhost::frontend::{
    Connection, Frontend, FrontendError, Memory, PROTOCOL_FEATURES, Pages, Vring, VringConfig,
};
use ringway_vhost::message::protocol_feature as pf;

const LIMIT: Duration = Duration::from_secs(10);

/// A frame that says its number.
fn frame(number: u32) -> Vec<u8> {
    let mut frame = [&[2, 0, 0, 0, 0, 2][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5]].concat();
    frame.extend(number.to_le_bytes());
    frame.resize(60 + number as usize % 1000, number as u8);
    frame
}

/// Sends frames that come back with their addresses exchanged.
fn exchange(driver: &mut NetDriver, numbers: std::ops::Range<u32>) {
    let mut sent = numbers.start;
    for number in numbers.clone() {
        while sent < numbers.end && sent < number + 32 {
            driver.send(&frame(sent)).unwrap();
            sent += 1;
        }
        let back = driver.receive(LIMIT).unwrap().unwrap_or_else(|| panic!("frame {number} comes back"));
        let mut wanted = frame(number);
        wanted[..12].rotate_left(6);
        assert!(back == wanted, "frame {number} came back as {back:x?}");
    }
}

/// DPDK's back-end returns each frame, in both formats, also after the rings were stopped and started again, and to a
/// session after another.
#[test]
fn frames_through_dpdk() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut back_end = TestPmd::net_vhost(&NetVhost::new(&socket), &Traffic::new(Forward::MacSwap)).unwrap();
    back_end.start().unwrap();
    for features in [0, RING_EVENT_IDX | RING_INDIRECT_DESC, RING_PACKED, RING_PACKED | RING_EVENT_IDX] {
        let mut driver = NetDriver::start(Connection::connect(&socket).unwrap(), features).unwrap();
        back_end.wait_link_up(LIMIT).unwrap();
        exchange(&mut driver, 0..300);
        let NetDriver { frontend, rx, tx, .. } = &mut driver;
        for vring in [&mut *rx, &mut *tx] {
            frontend.stop(vring).unwrap();
        }
        for vring in [rx, tx] {
            frontend.enable(vring, true).unwrap();
            frontend.start(vring).unwrap();
        }
        back_end.wait_link_up(LIMIT).unwrap();
        exchange(&mut driver, 300..600);
    }
    back_end.quit().unwrap();
}

const SECTOR: usize = 512;
const SECTORS: u64 = 2048;
const READ: u32 = 0;
const WRITE: u32 = 1;

/// A driver of a disk with one queue; a request is its header, its data and its status.
struct Disk {
    vring: Vring<[SharedBuf; 3]>,
    idle: Vec<[SharedBuf; 3]>,
}

impl Disk {
    fn start(frontend: &mut Frontend, memory: &mut Memory) -> Self {
        let config = VringConfig { table_entries: 4, ..VringConfig::new(0, 64) };
        let mut vring = frontend.set_up_vring(config, memory).unwrap();
        let mut parts = [16, 4096, 1].map(|len| memory.buffers(8, len).unwrap().into_iter());
        let idle = (0..8).map(|_| parts.each_mut().map(|part| part.next().expect("eight"))).collect();
        frontend.add_memory([&*memory]).unwrap();
        frontend.enable(&vring, true).unwrap();
        frontend.start(&mut vring).unwrap();
        frontend.set_driver_ok().unwrap();
        Self { vring, idle }
    }

    /// Carries out a request on eight sectors; returns what it read, if it reads.
    fn request(&mut self, kind: u32, sector: u64, data: &[u8; 8 * SECTOR]) -> Vec<u8> {
        let [mut header, mut room, mut status] = self.idle.pop().expect("one at a time");
        header.write(&[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        room.write(data);
        status.write(&[0xff]);
        let [head, body, tail] = [&header, &room, &status].map(Segment::from);
        let owner = [header, room, status];
        let queue = self.vring.queue_mut();
        let added = match kind {
            READ => queue.add(&[head], &[body, tail], owner),
            _ => queue.add(&[head, body], &[tail], owner),
        };
        added.map_err(|refused| refused.error).unwrap();
        self.vring.publish().unwrap();
        let deadline = Instant::now() + LIMIT;
        let used = loop {
            assert!(Instant::now() < deadline, "the request comes back");
            if let Some(used) = self.vring.queue_mut().reclaim().unwrap() {
                break used;
            }
            self.vring.wait(LIMIT).unwrap();
        };
        let [_, room, status] = &used.owner;
        let (mut data, mut result) = (vec![0; 8 * SECTOR], [0xff]);
        room.read(&mut data);
        status.read(&mut result);
        let written = if kind == READ { 8 * SECTOR as u32 + 1 } else { 1 };
        assert_eq!((result, used.written), ([0], written), "request {kind} at sector {sector}");
        self.idle.push(used.owner);
        data
    }
}

/// QEMU's block back-end is killed and another takes its place: the disk goes on, with the ring that it had.
#[test]
fn a_disk_outlives_its_back_end() {
    let dir = tempfile::tempdir().unwrap();
    let (path, socket) = (dir.path().join("image"), dir.path().join("s"));
    std::fs::File::create_new(&path).unwrap().set_len(SECTORS * SECTOR as u64).unwrap();
    let attach = || {
        // The file of the killed one's socket is in the way.
        let _ = std::fs::remove_file(&socket);
        let daemon = storage_daemon(&path, &socket);
        let connection = Connection::connect(&socket).unwrap();
        (Frontend::negotiate(connection, VERSION_1, PROTOCOL_FEATURES).unwrap(), daemon)
    };
    let mut memory = Memory::new(Gpa(1 << 30), 1 << 20, Pages::Small).unwrap();
    let (mut frontend, mut daemon) = attach();
    let mut disk = Disk::start(&mut frontend, &mut memory);
    for round in 0..3 {
        for sector in (0..SECTORS).step_by(64) {
            disk.request(WRITE, sector, &[round + sector as u8; 8 * SECTOR]);
        }
        daemon.kill();
        assert!(frontend.connection().is_closed_within(LIMIT).unwrap());
        (frontend, daemon) = attach();
        disk.vring.recover();
        frontend.add_memory([&memory]).unwrap();
        frontend.start(&mut disk.vring).unwrap();
        frontend.enable(&disk.vring, true).unwrap();
        for sector in (0..SECTORS).step_by(64) {
            let data = disk.request(READ, sector, &[0; 8 * SECTOR]);
            assert!(data == [round + sector as u8; 8 * SECTOR], "sector {sector}");
        }
    }
}

fn storage_daemon(image: &Path, socket: &Path) -> Process {
    let mut command = Command::new(find_program("qemu-storage-daemon").unwrap());
    command.arg("--blockdev").arg(format!("driver=file,node-name=f,filename={}", image.display()));
    command.arg("--export").arg(format!(
        "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues=1",
        socket.display()
    ));
    Process::start("qemu-storage-daemon", &mut command).unwrap()
}

/// QEMU's block back-end: the disk's size is what its file's is, what is written is read again
/// and in the file, by this session and the next, which goes on where the first stopped.
#[test]
fn sectors_through_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let (path, socket) = (dir.path().join("image"), dir.path().join("s"));
    let image = std::fs::File::create_new(&path).unwrap();
    image.set_len(SECTORS * SECTOR as u64).unwrap();
    let image = std::fs::File::open(&path).unwrap();
    let _daemon = storage_daemon(&path, &socket);
    let pattern = |n: u64| std::array::from_fn(|at| (at as u64 * 7 + n * 13 + at as u64 / 256) as u8);
    for session in 0..2 {
        let connection = Connection::connect(&socket).unwrap();
        let wanted = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC;
        let mut frontend = Frontend::negotiate(connection, wanted, PROTOCOL_FEATURES).unwrap();
        assert_ne!(frontend.features() & VERSION_1, 0);
        assert_ne!(frontend.protocol_features() & pf::CONFIG, 0);
        assert_eq!(frontend.config(0, 8).unwrap(), SECTORS.to_le_bytes());
        assert_eq!(frontend.queue_num().unwrap(), Some(1));

        let mut memory = Memory::new(Gpa(1 << 30), 1 << 20, Pages::Small).unwrap();
        let mut disk = Disk::start(&mut frontend, &mut memory);
        let sectors = || (0..SECTORS).step_by(64).map(|sector| (sector, pattern(sector + session)));
        for (at, (sector, data)) in sectors().enumerate() {
            disk.request(WRITE, sector, &data);
            // Stopped in the middle, and started where it was.
            if at == 10 {
                let base = frontend.stop(&mut disk.vring).unwrap();
                assert_eq!(base, 11);
                frontend.start(&mut disk.vring).unwrap();
                frontend.enable(&disk.vring, true).unwrap();
            }
        }
        for (sector, data) in sectors() {
            assert!(disk.request(READ, sector, &[0; 8 * SECTOR]) == data, "sector {sector}");
            let mut bytes = [0; 8 * SECTOR];
            image.read_exact_at(&mut bytes, sector * SECTOR as u64).unwrap();
            assert!(bytes == data, "sector {sector} of the file");
        }
        // Memory comes and goes beside it.
        let other = Memory::new(Gpa(2 << 30), 1 << 20, Pages::Small).unwrap();
        frontend.add_memory([&other]).unwrap();
        disk.request(WRITE, 0, &pattern(1));
        frontend.remove_memory(&other).unwrap();
        assert_eq!(disk.request(READ, 0, &[0; 8 * SECTOR]), pattern(1));
        assert!(matches!(frontend.send_rarp([0; 6]), Err(FrontendError::NotNegotiated { .. })));
    }
}

/// The tests' own block front-end, in all its ways, against a back-end that nobody here wrote.
#[test]
fn requests_of_every_layout_through_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let (path, socket) = (dir.path().join("image"), dir.path().join("s"));
    std::fs::File::create_new(&path).unwrap().set_len(SECTORS * SECTOR as u64).unwrap();
    let _daemon = storage_daemon(&path, &socket);
    let options = BlkOptions { vring_base: 65530, ..BlkOptions::default() };
    let features = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC | feature::BLK_WRITE_ZEROES;
    let mut disk = BlkFrontend::up(&socket, features, options).unwrap();
    assert_eq!(disk.capacity().unwrap(), SECTORS);
    let layouts = [Layout::whole(), Layout::pieces(8, 512), Layout::pieces(11, 7), Layout::pieces(100, 513)];
    for (n, layout) in
        layouts.iter().flat_map(|layout| [layout.clone(), layout.clone().indirect()]).enumerate()
    {
        let data = [n as u8 + 1; SECTOR];
        let written = disk.request_on(0, &DiskRequest::write(9, &data), &layout).unwrap();
        assert_eq!((written.status, written.written), (0, 1), "{layout:?}");
        let read = disk.request_on(0, &DiskRequest::read(9, SECTOR as u32), &layout).unwrap();
        assert_eq!(read, Answer { status: 0, data: data.to_vec(), written: SECTOR as u32 + 1 }, "{layout:?}");
    }
    let zeroes = DiskRequest::ranges(kind::WRITE_ZEROES, &[(9, 1, 0)]);
    let requests = [DiskRequest::flush(), DiskRequest::get_id(), zeroes, DiskRequest::new(77, 0)];
    let answers = disk.requests(0, &requests).unwrap();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [0, 0, 0, status::UNSUPP]);
    assert!(answers[1].data.starts_with(b"vhost_user_blk\0"));
    assert_eq!(disk.read(9, SECTOR as u32).unwrap(), [0; SECTOR]);
    assert_eq!(disk.request(&DiskRequest::read(SECTORS, 512)).unwrap().status, status::IOERR);
}
