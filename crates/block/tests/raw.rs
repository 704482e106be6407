//! Raw images, with real files and devices; locks, with QEMU's tools.

mod common;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{buffer, run, run_all};
use ringway_block::image::{Cache, Facts, Image, ImageError, ImageSpec, OpenOptions, Pool, SpecError, Way};
use ringway_block::job::{Executor, Operation, Range};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const CACHES: [Cache; 3] = [Cache::Direct, Cache::Writeback, Cache::Writethrough];

/// A directory on a disk: files in memory know less.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn file_of(directory: &Path, len: u64) -> PathBuf {
    let path = directory.join("disk");
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

fn open(path: &Path, options: &OpenOptions) -> Result<Image, ImageError> {
    Image::open(&ImageSpec::File(path.to_owned()), options)
}

fn cached(cache: Cache) -> OpenOptions {
    OpenOptions { cache, ..OpenOptions::default() }
}

/// Who does what `io_uring` does not.
fn aside(image: &Image) -> Arc<dyn Executor> {
    match image.way() {
        Way::File { aside, .. } => aside,
        Way::Here(image) => Arc::new(Pool::new(image)),
        _ => panic!("a file"),
    }
}

fn os_error(result: &io::Result<()>) -> Option<i32> {
    result.as_ref().err().and_then(io::Error::raw_os_error)
}

/// Bytes that are different everywhere.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}

#[test]
fn what_is_written_is_read_whatever_the_guests_memory_looks_like() {
    let directory = directory();
    let path = file_of(directory.path(), 4 * MIB);
    for cache in CACHES {
        let image = open(&path, &cached(cache)).unwrap();
        let pool = aside(&image);
        // Addresses are odd, pieces as small as they get and more than a call takes, lengths longer than our own buffer.
        let shapes: [(usize, Vec<usize>); 4] =
            [(512, vec![]), (4096, vec![1, 511, 512]), (8192, vec![4; 1500]), (3 << 20, vec![4096, 77])];
        for (seed, (len, pieces)) in shapes.into_iter().enumerate() {
            let (offset, bytes) = (512 * 8 * seed as u64, pattern(len, seed as u8));
            let write = Operation::Write { offset, stable: seed % 2 == 0 };
            let written = run_all(&*pool, vec![(write, buffer(&bytes, &pieces))]).remove(0);
            written.0.unwrap();
            let read = (Operation::Read { offset }, buffer(&vec![0; len], &pieces));
            let (result, read) = run_all(&*pool, vec![read]).remove(0);
            result.unwrap();
            assert!(read == bytes, "{cache:?}: {len} bytes in {} pieces", pieces.len() + 1);
            let mut in_file = vec![0; len];
            File::open(&path).unwrap().read_exact_at(&mut in_file, offset).unwrap();
            assert!(in_file == bytes, "{cache:?}: {len} bytes");
        }
        run(&*pool, Operation::Flush, &[]).0.unwrap();
    }
}

#[test]
fn zeroes_are_zeroes_and_the_file_keeps_its_size() {
    let directory = directory();
    for parent in [directory.path(), Path::new("/dev/shm")] {
        let own = tempfile::tempdir_in(parent).unwrap();
        let path = file_of(own.path(), 2 * MIB);
        let image = open(&path, &cached(Cache::Writeback)).unwrap();
        let pool = aside(&image);
        let all = pattern(2 << 20, 7);
        run(&*pool, Operation::Write { offset: 0, stable: false }, &all).0.unwrap();
        let before = std::fs::metadata(&path).unwrap().blocks();
        // Neither begins nor ends with a block of the file system, and is longer than what is written at once.
        let kept = Range { offset: 512, len: 300 * 1024 };
        run(&*pool, Operation::WriteZeroes { range: kept, unmap: false }, &[]).0.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().blocks(), before, "space was given back unasked");
        let unmapped = Range { offset: MIB, len: MIB };
        run(&*pool, Operation::WriteZeroes { range: unmapped, unmap: true }, &[]).0.unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert!(meta.blocks() < before, "no space was given back");
        assert_eq!(meta.size(), 2 * MIB);
        let mut want = all;
        for range in [kept, unmapped] {
            want[range.offset as usize..range.end() as usize].fill(0);
        }
        let (result, read) = run(&*pool, Operation::Read { offset: 0 }, &vec![1; 2 << 20]);
        result.unwrap();
        assert!(read == want, "on {}", parent.display());
    }
}

#[test]
fn discarding_gives_space_back() {
    let directory = directory();
    let path = file_of(directory.path(), 2 * MIB);
    let image = open(&path, &OpenOptions::default()).unwrap();
    assert!(image.facts().can_discard);
    let pool = aside(&image);
    run(&*pool, Operation::Write { offset: 0, stable: true }, &pattern(2 << 20, 1)).0.unwrap();
    let before = std::fs::metadata(&path).unwrap().blocks();
    run(&*pool, Operation::Discard(Range { offset: MIB, len: MIB }), &[]).0.unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert!(meta.blocks() + 1024 < before + 8, "{} of {before} blocks are left", meta.blocks());
    assert_eq!(meta.size(), 2 * MIB);
    let erased = run(&*pool, Operation::SecureErase(Range { offset: 0, len: MIB }), &[]).0;
    assert_eq!(erased.unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(!image.facts().can_secure_erase);
}

#[test]
fn a_file_cut_short_costs_errors_and_does_not_grow() {
    let directory = directory();
    for cache in CACHES {
        let path = file_of(directory.path(), MIB);
        let image = open(&path, &cached(cache)).unwrap();
        let pool = aside(&image);
        let is_lost = |operation, bytes: &[u8]| {
            assert_eq!(os_error(&run(&*pool, operation, bytes).0), Some(libc::EIO), "{operation:?}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192, "{operation:?}");
        };
        File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
        for offset in [4096, 8192, MIB - 8192] {
            is_lost(Operation::Read { offset }, &[0; 8192]);
            is_lost(Operation::Write { offset, stable: false }, &[1; 8192]);
            let range = Range { offset, len: 8192 };
            is_lost(Operation::WriteZeroes { range, unmap: true }, &[]);
            is_lost(Operation::WriteZeroes { range, unmap: false }, &[]);
        }
        run(&*pool, Operation::Write { offset: 4096, stable: false }, &[1; 4096]).0.unwrap();
        run(&*pool, Operation::Discard(Range { offset: 4096, len: MIB - 4096 }), &[]).0.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
    }
}

#[test]
fn errors_of_the_storage_keep_their_number() {
    let full = tempfile::tempdir().unwrap();
    let is_mounted = |status: io::Result<std::process::ExitStatus>| status.unwrap().success();
    assert!(is_mounted(
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1M", "none"]).arg(full.path()).status()
    ));
    let path = file_of(full.path(), 4 * MIB);
    let image = open(&path, &cached(Cache::Writeback)).unwrap();
    let (result, _) = run(&*aside(&image), Operation::Write { offset: 0, stable: false }, &vec![1; 2 << 20]);
    drop(image);
    assert!(is_mounted(Command::new("umount").arg("-l").arg(full.path()).status()));
    assert_eq!(os_error(&result), Some(libc::ENOSPC));
}

#[test]
fn facts_of_a_file() {
    let directory = directory();
    let path = file_of(directory.path(), MIB + 700);
    let image = open(&path, &cached(Cache::Writeback)).unwrap();
    let facts = image.facts();
    assert_eq!((facts.size, facts.logical_block_size, facts.memory_alignment), (MIB + 512, 512, 1));
    assert_eq!(facts.physical_block_size, 4096);
    drop(image);
    let blocks =
        |cache, logical_block_size| open(&path, &OpenOptions { logical_block_size, ..cached(cache) });
    let image = blocks(Cache::Writeback, Some(4096)).unwrap();
    assert_eq!((image.facts().size, image.facts().logical_block_size), (MIB, 4096));
    drop(image);
    for bad in [0, 256, 513, 1 << 17] {
        assert!(matches!(blocks(Cache::Writeback, Some(bad)), Err(ImageError::BadBlockSize(n)) if n == bad));
    }
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = open(&path, &read_only).unwrap();
    let Facts { read_only, can_discard, can_write_zeroes, .. } = *image.facts();
    assert_eq!((read_only, can_discard, can_write_zeroes), (true, false, false));
    let write = run(&*aside(&image), Operation::Write { offset: 0, stable: false }, &[1; 512]).0;
    assert_eq!(os_error(&write), Some(libc::EBADF));
}

#[test]
fn what_is_no_image_is_refused() {
    let directory = directory();
    let options = OpenOptions::default();
    assert!(matches!(open(directory.path(), &options), Err(ImageError::NotAnImage(_))));
    assert!(matches!(open(Path::new("/dev/null"), &options), Err(ImageError::NotAnImage(_))));
    let missing = directory.path().join("missing");
    let error = open(&missing, &options).err().unwrap().to_string();
    assert_eq!(error, format!("cannot open {}: No such file or directory (os error 2)", missing.display()));
    for (text, error) in [
        ("", "an image has a name"),
        ("mem:", "\"\" is not a size: a number of bytes, or of K, M, G or T (1G), in multiples of 512"),
        ("http://x/y", "there are no images at http://"),
    ] {
        assert_eq!(text.parse::<ImageSpec>().unwrap_err().to_string(), error);
    }
    for bad in ["null:1", "mem:1GG", "mem:-1", "mem:99999999T", "null:18446744073709551616"] {
        assert!(bad.parse::<ImageSpec>().is_err(), "{bad}");
    }
    let nbd = "nbd+unix:///disk?socket=/run/nbd";
    assert_eq!(nbd.parse::<ImageSpec>().unwrap().to_string(), nbd);
    assert!(matches!("nbd://".parse::<ImageSpec>(), Err(SpecError::Nbd(_))));
    assert_eq!("mem:1G".parse(), Ok(ImageSpec::Memory(1 << 30)));
    assert_eq!("null:1536".parse(), Ok(ImageSpec::Null(1536)));
    assert_eq!("./mem:1G".parse(), Ok(ImageSpec::File("./mem:1G".into())));
}

#[test]
fn sizes_change_and_nothing_is_lost_unasked() {
    let directory = directory();
    let path = file_of(directory.path(), MIB);
    for spec in [ImageSpec::File(path.clone()), ImageSpec::Memory(MIB), ImageSpec::Null(MIB)] {
        let mut image = Image::open(&spec, &OpenOptions::default()).unwrap();
        assert_eq!(image.resize(3 * MIB, false).unwrap().size, 3 * MIB, "{spec}");
        let error = image.resize(2 * MIB, false).unwrap_err();
        assert!(matches!(error, ImageError::WouldShrink { from, to } if (from, to) == (3 * MIB, 2 * MIB)));
        assert_eq!(image.refresh().unwrap().size, 3 * MIB, "{spec}");
        assert_eq!(image.resize(2 * MIB, true).unwrap().size, 2 * MIB, "{spec}");
    }
    let mut image = open(&path, &OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
    assert!(matches!(image.resize(9 * MIB, false), Err(ImageError::NotResizable(_))));
    File::options().write(true).open(&path).unwrap().set_len(5 * MIB).unwrap();
    assert_eq!(image.refresh().unwrap().size, 5 * MIB);
}

/// Runs one of QEMU's tools on an image; whether it did what it was to, and what it said.
fn qemu(tool: &str, args: &[&str], path: &Path) -> (bool, String) {
    let output = Command::new(tool).args(args).arg(path).output().expect("QEMU's tools are installed");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn qemus_tools_and_others_keep_off() {
    let directory = directory();
    let path = file_of(directory.path(), MIB);
    let shrink = || {
        let args = ["resize", "--shrink", "-f", "raw", path.to_str().unwrap(), "4096"];
        Command::new("qemu-img").args(args).output().expect("QEMU's tools are installed")
    };
    let write = || qemu("qemu-io", &["-f", "raw", "-c", "write -q 0 512"], &path);
    let image = open(&path, &OpenOptions::default()).unwrap();
    let said = String::from_utf8(shrink().stderr).unwrap();
    assert!(said.contains("Is another process using the image"), "{said}");
    let (ok, said) = write();
    assert!(!ok && said.contains("Is another process using the image"), "{said}");
    drop(image);
    assert!(write().0);
    // Readers do not mind each other, but writers.
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let first = open(&path, &read_only).unwrap();
    let second = open(&path, &read_only).unwrap();
    assert!(qemu("qemu-io", &["-r", "-f", "raw", "-c", "read -q 0 512"], &path).0);
    let (ok, said) = write();
    assert!(!ok && said.contains("Is another process using the image"), "{said}");
    drop((first, second));
    assert!(shrink().status.success());
}

#[test]
fn writers_that_share_do_not_mind_each_other() {
    let directory = directory();
    let path = file_of(directory.path(), MIB);
    let options = OpenOptions { share: true, ..OpenOptions::default() };
    let _first = open(&path, &options).unwrap();
    let _second = open(&path, &options).unwrap();
    assert!(qemu("qemu-io", &["-f", "raw", "-c", "write -q 0 512"], &path).0);
}

#[test]
fn an_image_in_use_is_waited_for_and_then_refused() {
    let directory = directory();
    let path = file_of(directory.path(), MIB);
    let first = open(&path, &OpenOptions::default()).unwrap();
    let goes = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(first);
    });
    let start = Instant::now();
    let second = open(&path, &OpenOptions::default()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
    goes.join().unwrap();
    let start = Instant::now();
    let error = open(&path, &OpenOptions { read_only: true, ..OpenOptions::default() }).err().unwrap();
    assert_eq!(error.to_string(), format!("{} is in use by another process", path.display()));
    let waited = start.elapsed();
    assert!((9..15).contains(&waited.as_secs()), "{waited:?}");
    drop(second);
}

#[test]
fn a_pool_has_threads_only_while_there_is_work() {
    let directory = directory();
    let path = file_of(directory.path(), MIB);
    let image = ringway_block::image::Raw::open(&path, &OpenOptions::default()).unwrap();
    let pool = Pool::new(Arc::new(image));
    assert_eq!(pool.threads(), 0);
    let writes = (0..200).map(|i| {
        let write = Operation::Write { offset: i * 4096, stable: false };
        (write, buffer(&pattern(4096, i as u8), &[]))
    });
    for (result, _) in run_all(&pool, writes.collect()) {
        result.unwrap();
    }
    assert!((1..=64).contains(&pool.threads()), "{}", pool.threads());
    for i in 0..200 {
        let (result, bytes) = run(&pool, Operation::Read { offset: i * 4096 }, &[0; 4096]);
        result.unwrap();
        assert!(bytes == pattern(4096, i as u8), "{i}");
    }
    let deadline = Instant::now() + common::SOON;
    while pool.threads() > 0 {
        assert!(Instant::now() < deadline, "{} threads stay", pool.threads());
        std::thread::sleep(Duration::from_millis(50));
    }
    run(&pool, Operation::Flush, &[]).0.unwrap();
}

/// A loop device, gone when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, args: &[&str]) -> Self {
        let output = Command::new("losetup").args(["-f", "--show"]).args(args).arg(file).output();
        let output = output.expect("losetup");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8(output.stdout).unwrap().trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_device_that_is_used_otherwise_is_refused() {
    let directory = directory();
    let file = file_of(directory.path(), MIB);
    let device = Loop::new(&file, &[]);
    // As a mounted file system has it.
    let alone = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(&device.0).unwrap();
    let error = open(&device.0, &OpenOptions::default()).err().unwrap();
    assert!(matches!(error, ImageError::InUse { by: None, .. }), "{error}");
    drop(alone);
    open(&device.0, &OpenOptions::default()).unwrap();
}

#[test]
fn a_block_device() {
    let directory = directory();
    let file = file_of(directory.path(), 4 * MIB);
    let device = Loop::new(&file, &["--sector-size=4096"]);
    let mut image = open(&device.0, &OpenOptions::default()).unwrap();
    let facts = image.facts().clone();
    assert_eq!((facts.size, facts.logical_block_size), (4 * MIB, 4096));
    assert_eq!((facts.physical_block_size, facts.can_discard), (4096, true));
    assert!(!facts.can_secure_erase);
    let small = OpenOptions { logical_block_size: Some(512), ..OpenOptions::default() };
    let pool = aside(&image);
    let all = pattern(4 << 20, 3);
    run(&*pool, Operation::Write { offset: 0, stable: true }, &all).0.unwrap();
    let full = std::fs::metadata(&file).unwrap().blocks();
    // What is no whole block is not discarded.
    run(&*pool, Operation::Discard(Range { offset: MIB - 512, len: 1024 }), &[]).0.unwrap();
    run(&*pool, Operation::Discard(Range { offset: MIB, len: MIB }), &[]).0.unwrap();
    assert!(std::fs::metadata(&file).unwrap().blocks() < full);
    for unmap in [false, true] {
        let range = Range { offset: 2 * MIB, len: MIB };
        run(&*pool, Operation::Write { offset: range.offset, stable: false }, &all[..1 << 20]).0.unwrap();
        run(&*pool, Operation::WriteZeroes { range, unmap }, &[]).0.unwrap();
        let (result, read) = run(&*pool, Operation::Read { offset: range.offset }, &vec![1; 1 << 20]);
        result.unwrap();
        assert!(read.iter().all(|&b| b == 0), "unmap {unmap}");
    }
    let (result, read) = run(&*pool, Operation::Read { offset: 0 }, &vec![0; 1 << 20]);
    result.unwrap();
    assert!(read == all[..1 << 20]);
    let erased = run(&*pool, Operation::SecureErase(Range { offset: 0, len: MIB }), &[]).0;
    assert_eq!(erased.unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(matches!(image.resize(8 * MIB, false), Err(ImageError::NotResizable(_))));
    File::options().write(true).open(&file).unwrap().set_len(8 * MIB).unwrap();
    assert!(Command::new("losetup").arg("-c").arg(&device.0).status().unwrap().success());
    assert_eq!(image.refresh().unwrap().size, 8 * MIB);
    drop((image, pool));
    let error = open(&device.0, &small).err().unwrap();
    assert!(matches!(error, ImageError::BlockSize { given: 512, needed: 4096, .. }), "{error}");
    // Through the page cache any block will do.
    let image = open(&device.0, &OpenOptions { cache: Cache::Writeback, ..small }).unwrap();
    assert_eq!(image.facts().logical_block_size, 512);
}
