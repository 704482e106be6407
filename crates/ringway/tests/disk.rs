//! One disk as its driver sees it: what each request does, to whatever is behind it, and what wrong ones cost.

mod common;
#[path = "disk/hostile.rs"]
mod hostile;
#[path = "disk/stable.rs"]
mod stable;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use ringway_testkit::frontend::blk::{Answer, kind, status};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{BlkFrontend, BlkOptions, DiskRequest, Layout};
use ringway_testkit::server::Server;

use crate::common::PROGRAM;

/// What an ordinary driver wants.
const FEATURES: u64 = feature::VERSION_1
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::BLK_RO
    | feature::BLK_BLK_SIZE
    | feature::BLK_FLUSH
    | feature::BLK_CONFIG_WCE
    | feature::BLK_MQ
    | feature::BLK_DISCARD
    | feature::BLK_WRITE_ZEROES;
const SECTOR: usize = 512;
/// Bytes of a disk.
const LEN: u64 = 1 << 20;
const SECTORS: u64 = LEN / SECTOR as u64;

/// An image of nothing but zeroes, and where it is.
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let image = Self { dir: tempfile::tempdir().unwrap() };
        File::create(image.path()).unwrap().set_len(LEN).unwrap();
        image
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn bytes(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(self.path()).unwrap().read_exact_at(&mut bytes, sector * SECTOR as u64).unwrap();
        bytes
    }

    /// 512-byte blocks that the file system has given it.
    fn blocks(&self) -> u64 {
        std::fs::metadata(self.path()).unwrap().blocks()
    }
}

fn serve(image: &str, extra: &[&str]) -> Server {
    Server::blk(Path::new(PROGRAM), image, extra).unwrap()
}

fn up(server: &Server, features: u64) -> BlkFrontend {
    BlkFrontend::up(server.socket("disk"), features, BlkOptions::default()).unwrap()
}

/// Does this to a disk in memory, and to one in a file.
fn with_each(extra: &[&str], act: impl Fn(&Server)) {
    act(&serve("mem:1M", extra));
    let image = Image::new();
    act(&serve(&image.path().to_string_lossy(), &[extra, &["--format=raw"]].concat()));
}

/// Bytes that differ from sector to sector.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251 + seed * 13 + 1) as u8).collect()
}

fn status_of(guest: &mut BlkFrontend, request: &DiskRequest) -> u8 {
    guest.request(request).unwrap().status
}

/// [DEV-SPLIT-message-framing-01] However a request lies in descriptors, it is the same request: in direct chains and in
/// indirect tables, over the wrap of the ring.
#[test]
fn layouts_of_every_kind() {
    with_each(&[], |server| {
        let options = BlkOptions { vring_base: 65530, ..BlkOptions::default() };
        let mut guest = BlkFrontend::up(server.socket("disk"), FEATURES, options).unwrap();
        let mut layouts = vec![Layout::whole()];
        // The header cut, or with the first of the data; the status with the last of it, or alone.
        for (readable, writable) in [(1, 512), (7, 7), (8, 511), (16, 513), (17, 171), (100, 1000), (528, 1)]
        {
            let pieces = Layout::pieces(readable, writable);
            layouts.extend([
                Layout { readable: vec![], ..pieces.clone() },
                Layout { writable: vec![], ..pieces },
            ]);
        }
        let layouts: Vec<_> = layouts.iter().flat_map(|l| [l.clone(), l.clone().indirect()]).collect();
        for (n, layout) in layouts.iter().enumerate() {
            for sectors in [1, 3] {
                let data = pattern(sectors * SECTOR, n);
                let write = DiskRequest::write(5, &data);
                let written = guest.request_on(0, &write, layout).unwrap();
                assert_eq!((written.status, written.written), (status::OK, 1), "{layout:?}");
                let flushed = guest.request_on(0, &DiskRequest::flush(), layout).unwrap();
                assert_eq!(flushed.status, status::OK, "{layout:?}");
                let read = guest.request_on(0, &DiskRequest::read(5, data.len() as u32), layout).unwrap();
                let due = Answer { status: status::OK, written: data.len() as u32 + 1, data };
                assert!(read == due, "{layout:?}, {sectors} sectors");
            }
        }
    });
}

/// What is written is in the file, after a flush at the latest, and what is in the file is read.
#[test]
fn the_file_has_what_the_guest_has() {
    let image = Image::new();
    for cache in ["direct", "writeback", "writethrough"] {
        let path = image.path();
        let server = serve(&path.to_string_lossy(), &["--format=raw", &format!("--cache={cache}")]);
        let mut guest = up(&server, FEATURES);
        assert_eq!(guest.capacity().unwrap(), SECTORS);
        let data = pattern(64 << 10, cache.len());
        let requests: Vec<_> = (0..16).map(|n| DiskRequest::write(n * 128, &data)).collect();
        assert!(guest.requests(0, &requests).unwrap().iter().all(|answer| answer.status == status::OK));
        assert_eq!(status_of(&mut guest, &DiskRequest::flush()), status::OK);
        for n in 0..16 {
            assert!(image.bytes(n * 128, data.len()) == data, "{cache}, write {n}");
            assert!(guest.read(n * 128, data.len() as u32).unwrap() == data);
        }
    }
}

/// [DEV-BLK-op-03] A disk that can only be read is not written to, whatever the driver makes of the feature.
#[test]
fn a_read_only_disk_stays_as_it_is() {
    let image = Image::new();
    let before = pattern(SECTOR, 3);
    File::options().write(true).open(image.path()).unwrap().write_all_at(&before, 0).unwrap();
    let server = serve(&image.path().to_string_lossy(), &["--format=raw", "--read-only"]);
    for features in [FEATURES, FEATURES & !feature::BLK_RO] {
        let mut guest = up(&server, features);
        assert_ne!(guest.offered() & feature::BLK_RO, 0);
        assert_eq!(guest.offered() & (feature::BLK_DISCARD | feature::BLK_WRITE_ZEROES), 0);
        assert_eq!(status_of(&mut guest, &DiskRequest::write(0, &[9; SECTOR])), status::IOERR);
        for kind in [kind::DISCARD, kind::WRITE_ZEROES, kind::SECURE_ERASE] {
            assert_eq!(status_of(&mut guest, &DiskRequest::ranges(kind, &[(0, 1, 0)])), status::UNSUPP);
        }
        assert_eq!(guest.read(0, SECTOR as u32).unwrap(), before);
        assert_eq!(image.bytes(0, SECTOR), before);
    }
}

/// [DEV-BLK-op-08] [DEV-BLK-op-07] [DEV-BLK-op-06] Zeroes read as zeroes, whether the sectors lose their storage or not, and
/// nothing else changes; so do discards nothing but what they name.
#[test]
fn ranges_are_zeroed_and_discarded() {
    with_each(&[], |server| {
        let mut guest = up(server, FEATURES);
        let offered = [feature::BLK_DISCARD, feature::BLK_WRITE_ZEROES].map(|f| guest.offered() & f != 0);
        assert_eq!(offered, [true, true]);
        let data = pattern(LEN as usize, 1);
        for flags in [0, 1] {
            guest.write(0, &data).unwrap();
            // Of no size that a file system likes, and of several of its blocks.
            let zeroed = [(3, 5), (64, 256)];
            for (sector, sectors) in zeroed {
                let request = DiskRequest::ranges(kind::WRITE_ZEROES, &[(sector, sectors, flags)]);
                assert_eq!(status_of(&mut guest, &request), status::OK);
            }
            let mut due = data.clone();
            for (sector, sectors) in zeroed {
                due[sector as usize * SECTOR..][..sectors as usize * SECTOR].fill(0);
            }
            assert!(guest.read(0, LEN as u32).unwrap() == due, "flags {flags}");
        }
        guest.write(0, &data).unwrap();
        let discard = DiskRequest::ranges(kind::DISCARD, &[(64, 256, 0)]);
        assert_eq!(status_of(&mut guest, &discard), status::OK);
        let found = guest.read(0, LEN as u32).unwrap();
        let (before, behind) = (64 * SECTOR, 320 * SECTOR);
        assert!(found[..before] == data[..before] && found[behind..] == data[behind..]);
    });
}

/// A discard gives the file system its blocks back, and so do zeroes that may; others do not.
#[test]
fn discards_give_storage_back() {
    let image = Image::new();
    let server = serve(&image.path().to_string_lossy(), &["--format=raw"]);
    let mut guest = up(&server, FEATURES);
    let fill = |guest: &mut BlkFrontend| {
        guest.write(0, &pattern(LEN as usize, 2)).unwrap();
        assert_eq!(status_of(guest, &DiskRequest::flush()), status::OK);
        assert!(image.blocks() >= SECTORS);
    };
    for (kind, flags, gives_back) in
        [(kind::DISCARD, 0, true), (kind::WRITE_ZEROES, 1, true), (kind::WRITE_ZEROES, 0, false)]
    {
        fill(&mut guest);
        assert_eq!(
            status_of(&mut guest, &DiskRequest::ranges(kind, &[(0, SECTORS as u32, flags)])),
            status::OK
        );
        assert_eq!(image.blocks() < SECTORS, gives_back, "{kind} with {flags}: {} blocks", image.blocks());
    }
}

/// [DEV-BLK-op-04] [DEV-BLK-op-05] [DEV-BLK-op-16] What is not supported says so and does nothing.
#[test]
fn what_is_not_supported_does_nothing() {
    with_each(&[], |server| {
        let mut guest = up(server, FEATURES);
        let data = pattern(SECTOR, 5);
        guest.write(8, &data).unwrap();
        for (kind, flags) in [
            (kind::DISCARD, 1),
            (kind::DISCARD, 2),
            (kind::WRITE_ZEROES, 2),
            (kind::WRITE_ZEROES, 1 << 31 | 1),
            (kind::SECURE_ERASE, 4),
        ] {
            let request = DiskRequest::ranges(kind, &[(0, 1, 0), (8, 1, flags)]);
            let found = status_of(&mut guest, &DiskRequest { data: request.data[16..].to_vec(), ..request });
            assert_eq!(found, status::UNSUPP, "{kind} with {flags:#x}");
        }
        for kind in [2, 3, 5, 9, 15, 16, 18, 20, 22, 24, 26, kind::GET_LIFETIME, 1 << 31, u32::MAX] {
            let request = DiskRequest { room: 512, ..DiskRequest::new(kind, 8) };
            assert_eq!(status_of(&mut guest, &request), status::UNSUPP, "{kind}");
        }
        assert_eq!(guest.read(8, SECTOR as u32).unwrap(), data);
    });
}

/// The name is what the operator gave it, up to 20 bytes, without anything behind it if it has as many.
#[test]
fn the_disk_tells_its_name() {
    for (name, due) in [
        ("short", *b"short\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("01234567890123456789", *b"01234567890123456789"),
    ] {
        let server = serve("mem:1M", &[&format!("--serial={name}")]);
        let answer = up(&server, FEATURES).request(&DiskRequest::get_id()).unwrap();
        assert_eq!((answer.status, &answer.data[..]), (status::OK, &due[..]));
    }
}

/// Requests begin and end at blocks of 4096 bytes if the disk has such.
#[test]
fn large_blocks() {
    with_each(&["--logical-block-size=4096"], |server| {
        let mut guest = up(server, FEATURES);
        assert_eq!(guest.config().unwrap()[20..24], 4096_u32.to_le_bytes());
        assert_eq!(guest.capacity().unwrap(), SECTORS, "in sectors of 512 bytes all the same");
        let data = pattern(4096, 4);
        guest.write(8, &data).unwrap();
        for (sector, len) in [(8, 512), (9, 4096), (8, 6144)] {
            let request = DiskRequest::read(sector, len);
            assert_eq!(status_of(&mut guest, &request), status::IOERR, "{len} from {sector} on");
            let request = DiskRequest::write(sector, &vec![0; len as usize]);
            assert_eq!(status_of(&mut guest, &request), status::IOERR, "{len} from {sector} on");
        }
        for segment in [(8, 4, 0), (9, 8, 0)] {
            let request = DiskRequest::ranges(kind::WRITE_ZEROES, &[segment]);
            assert_eq!(status_of(&mut guest, &request), status::IOERR, "{segment:?}");
        }
        assert_eq!(guest.read(8, 4096).unwrap(), data);
        let layout = Layout::pieces(500, 100);
        let answer = guest.request_on(0, &DiskRequest::read(8, 4096), &layout).unwrap();
        assert_eq!((answer.status, answer.data), (status::OK, data), "of buffers that no kernel likes");
    });
}

/// All queues are of one disk, and each carries out requests; without MQ there is one.
#[test]
fn several_queues() {
    with_each(&["--num-queues=4"], |server| {
        let options = BlkOptions { queues: 4, ring_size: 64, ..BlkOptions::default() };
        let mut guest = BlkFrontend::up(server.socket("disk"), FEATURES, options).unwrap();
        assert_eq!(guest.max_queues(), Some(4));
        assert_eq!(guest.config().unwrap()[34..36], [4, 0]);
        let write = |queue: usize| {
            let place = |n: u64| (queue as u64 * 16 + n) * 8;
            (0..16).map(|n| DiskRequest::write(place(n), &pattern(4096, queue * 16 + n as usize))).collect()
        };
        for queue in 0..4 {
            let requests: Vec<_> = write(queue);
            assert!(guest.requests(queue, &requests).unwrap().iter().all(|answer| answer.status == 0));
        }
        for queue in 0..4 {
            // Each reads what the next one wrote.
            let other: Vec<DiskRequest> = write((queue + 1) % 4);
            for written in other {
                let sector = u64::from_le_bytes(written.header[8..].try_into().unwrap());
                let read = DiskRequest::read(sector, 4096);
                let answer = guest.request_on(queue, &read, &Layout::usual(&read)).unwrap();
                assert!(answer.status == 0 && answer.data == written.data, "queue {queue}, sector {sector}");
            }
        }
    });
}

/// The driver turns the cache off and on, and reads that it did; nobody else writes there.
#[test]
fn the_cache_mode_is_the_drivers() {
    let image = Image::new();
    for (cache, at_first) in [("direct", 1), ("writeback", 1), ("writethrough", 0)] {
        let server = serve(&image.path().to_string_lossy(), &["--format=raw", &format!("--cache={cache}")]);
        let mut guest = up(&server, FEATURES);
        let mode = |guest: &BlkFrontend| guest.config().unwrap()[32];
        assert_eq!(mode(&guest), at_first, "{cache}");
        for on in [false, true, false] {
            guest.set_writeback(on).unwrap();
            assert_eq!(mode(&guest), u8::from(on));
            guest.write(0, &pattern(SECTOR, on.into())).unwrap();
        }
        for (offset, bytes) in [(0, &[1; 8][..]), (32, &[2]), (33, &[1]), (32, &[1, 1])] {
            assert!(!guest.write_config(offset, bytes).unwrap(), "{bytes:?} at {offset}");
        }
        assert_eq!((mode(&guest), guest.capacity().unwrap()), (0, SECTORS));
        drop(guest);
        assert_eq!(mode(&up(&server, FEATURES)), at_first, "of another driver");
        // Without FLUSH there is no cache to speak of.
        assert_eq!(mode(&up(&server, FEATURES & !feature::BLK_FLUSH)), 0);
    }
}
