//! Images in QEMU's copy-on-write format: QEMU's tools judge what became of them.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use common::{buffer, run, run_all};
use ringway_block::image::{Cache, Format, Image, ImageError, ImageSpec, OpenOptions, Qcow2Error, Way};
use ringway_block::job::{Executor, Operation, Range};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;
/// Requests at once, each in a part of the disk that is its own.
const DEPTH: u64 = 16;
const PART: u64 = SIZE / DEPTH;

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn try_qemu_img(at: &Path, args: &[&str]) -> Output {
    Command::new("qemu-img").current_dir(at).args(args).output().expect("QEMU's tools are installed")
}

/// Runs `qemu-img` in a directory.
fn qemu_img(at: &Path, args: &[&str]) -> String {
    let output = try_qemu_img(at, args);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{args:?}: {}{}", said(&output.stdout), said(&output.stderr));
    said(&output.stdout)
}

fn options() -> OpenOptions {
    OpenOptions { format: Format::Qcow2, ..OpenOptions::default() }
}

fn open(path: &Path, options: &OpenOptions) -> Result<Image, ImageError> {
    Image::open(&ImageSpec::File(path.to_owned()), options)
}

fn pool(image: &Image) -> Arc<dyn Executor> {
    let Way::Elsewhere(pool) = image.way() else { panic!("no file that io_uring could read") };
    pool
}

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let first = self.below(256) as u8;
        (0..len).map(|i| first.wrapping_add((i / 512) as u8) | 1).collect()
    }

    /// Whole sectors of a part of the disk: short, or up to a third of it.
    fn range(&mut self, part: u64) -> Range {
        let limit = [8, 8, 129, PART / 512 / 3][self.below(4) as usize];
        let len = (1 + self.below(limit)) * 512;
        Range { offset: part * PART + self.below((PART - len) / 512 + 1) * 512, len }
    }
}

/// What is in a range of the disk.
fn of(disk: &mut [u8], range: Range) -> &mut [u8] {
    &mut disk[range.offset as usize..range.end() as usize]
}

/// Does so many batches of anything to an image, and to what ought to be in it.
fn stir(pool: &dyn Executor, disk: &mut [u8], random: &mut Random, batches: usize) {
    for _ in 0..batches {
        let mut jobs = Vec::new();
        let mut want = Vec::new();
        for part in 0..DEPTH {
            let range = random.range(part);
            let (operation, bytes) = match random.below(10) {
                0..5 => {
                    let bytes = random.bytes(range.len);
                    of(disk, range).copy_from_slice(&bytes);
                    (Operation::Write { offset: range.offset, stable: random.below(16) == 0 }, bytes)
                }
                5 => {
                    of(disk, range).fill(0);
                    (Operation::WriteZeroes { range, unmap: random.below(2) == 0 }, Vec::new())
                }
                6 if random.below(4) == 0 => (Operation::Flush, Vec::new()),
                _ => (Operation::Read { offset: range.offset }, vec![0xaa; range.len as usize]),
            };
            want.push(if let Operation::Read { .. } = operation {
                of(disk, range).to_vec()
            } else {
                bytes.clone()
            });
            jobs.push((operation, buffer(&bytes, &[100, 512])));
        }
        let operations: Vec<_> = jobs.iter().map(|(operation, _)| *operation).collect();
        for ((result, bytes), (want, operation)) in
            run_all(pool, jobs).into_iter().zip(want.into_iter().zip(operations))
        {
            result.unwrap_or_else(|e| panic!("{operation:?}: {e}"));
            assert!(bytes == want, "{operation:?}");
        }
    }
}

/// That an image is sound and holds these bytes, in the eyes of QEMU.
fn judge(at: &Path, image: &str, disk: &[u8]) {
    let checked = qemu_img(at, &["check", "-f", "qcow2", image]);
    assert!(checked.contains("No errors were found"), "{checked}");
    std::fs::write(at.join("want.raw"), disk).unwrap();
    qemu_img(at, &["compare", "-f", "qcow2", "-F", "raw", image, "want.raw"]);
}

/// Stirs an image that was made like this, on top of bytes, twice.
fn stirred(seed: u64, cache: Cache, behind: &str, disk: &mut [u8], at: &Path, create: &[&str]) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    args.extend(create);
    if !behind.is_empty() {
        args.extend(["-b", behind]);
    }
    let size = SIZE.to_string();
    args.extend(["disk.qcow2", &size]);
    qemu_img(at, &args);
    for _ in 0..2 {
        let image = open(&at.join("disk.qcow2"), &OpenOptions { cache, ..options() }).unwrap();
        assert_eq!(image.facts().size, SIZE);
        stir(&*pool(&image), disk, &mut random, 20);
        run(&*pool(&image), Operation::Flush, &[]).0.unwrap();
        drop(image);
        judge(at, "disk.qcow2", disk);
    }
}

/// A raw file of bytes to be behind an image.
fn base(at: &Path, seed: u64, len: u64) -> Vec<u8> {
    let mut disk = Random(seed).bytes(len);
    disk[..MIB as usize].fill(0);
    std::fs::write(at.join("base.raw"), &disk).unwrap();
    disk.resize(SIZE as usize, 0);
    disk
}

#[test]
fn random_requests_leave_what_qemu_reads() {
    for (seed, cache, create) in [
        (0x5eed_0001, Cache::Direct, &["-o", "cluster_size=64k"][..]),
        (0x5eed_0002, Cache::Writeback, &["-o", "cluster_size=4k,lazy_refcounts=on"]),
        (0x5eed_0003, Cache::Writethrough, &["-o", "cluster_size=2M"]),
        (0x5eed_0004, Cache::Writeback, &["-o", "compat=0.10"]),
        (0x5eed_0005, Cache::Direct, &["-o", "preallocation=metadata,refcount_bits=64"]),
    ] {
        let at = directory();
        stirred(seed, cache, "", &mut vec![0; SIZE as usize], at.path(), create);
    }
}

#[test]
fn what_is_behind_an_image_shows_through_and_is_not_touched() {
    // Shorter than the disk.
    let at = directory();
    let mut disk = base(at.path(), 11, 9 * MIB);
    let before = std::fs::read(at.path().join("base.raw")).unwrap();
    stirred(0x5eed_0011, Cache::Direct, "base.raw", &mut disk, at.path(), &["-F", "raw"]);
    assert!(std::fs::read(at.path().join("base.raw")).unwrap() == before);
    // Two deep, the first in another directory, named from where each is, and compressed.
    let at = directory();
    let mut disk = base(at.path(), 12, SIZE);
    std::fs::create_dir(at.path().join("deep")).unwrap();
    qemu_img(at.path(), &["convert", "-c", "-O", "qcow2", "base.raw", "deep/first.qcow2"]);
    let middle = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "first.qcow2", "deep/second.qcow2"];
    qemu_img(at.path(), &middle);
    let before = std::fs::read(at.path().join("deep/first.qcow2")).unwrap();
    let create = ["-F", "qcow2", "-o", "cluster_size=2M"];
    stirred(0x5eed_0012, Cache::Writeback, "deep/second.qcow2", &mut disk, at.path(), &create);
    assert!(std::fs::read(at.path().join("deep/first.qcow2")).unwrap() == before);
}

#[test]
fn snapshots_inside_an_image_stay_what_they_are() {
    let at = directory();
    let mut disk = vec![0; SIZE as usize];
    stirred(0x5eed_0021, Cache::Direct, "", &mut disk, at.path(), &[]);
    qemu_img(at.path(), &["snapshot", "-c", "then", "disk.qcow2"]);
    let then = disk.clone();
    let image = open(&at.path().join("disk.qcow2"), &options()).unwrap();
    stir(&*pool(&image), &mut disk, &mut Random(0x5eed_0022), 20);
    drop(image);
    judge(at.path(), "disk.qcow2", &disk);
    qemu_img(at.path(), &["snapshot", "-a", "then", "disk.qcow2"]);
    judge(at.path(), "disk.qcow2", &then);
}

#[test]
fn what_is_done_is_in_the_file_though_nobody_flushed() {
    let at = directory();
    let mut disk = base(at.path(), 31, SIZE);
    let size = SIZE.to_string();
    qemu_img(at.path(), &["create", "-qf", "qcow2", "-F", "raw", "-b", "base.raw", "disk.qcow2", &size]);
    let image = open(&at.path().join("disk.qcow2"), &options()).unwrap();
    let mut random = Random(0x5eed_0031);
    for _ in 0..10 {
        stir(&*pool(&image), &mut disk, &mut random, 2);
        // What a server that takes the place of one that was killed finds.
        std::fs::copy(at.path().join("disk.qcow2"), at.path().join("copy.qcow2")).unwrap();
        judge(at.path(), "copy.qcow2", &disk);
    }
}

#[test]
fn discarding_gives_clusters_back() {
    let at = directory();
    let size = SIZE.to_string();
    qemu_img(at.path(), &["create", "-qf", "qcow2", "disk.qcow2", &size]);
    let path = at.path().join("disk.qcow2");
    let image = open(&path, &options()).unwrap();
    assert_eq!((image.facts().can_discard, image.facts().discard_alignment), (true, 65536));
    let pool = pool(&image);
    let write =
        |offset| run(&*pool, Operation::Write { offset, stable: false }, &vec![1; 4 << 20]).0.unwrap();
    write(0);
    let full = std::fs::metadata(&path).unwrap().len();
    for round in 1..4 {
        run(&*pool, Operation::Discard(Range { offset: (round - 1) * 4 * MIB, len: 4 * MIB }), &[])
            .0
            .unwrap();
        write(round * 4 * MIB);
    }
    let len = std::fs::metadata(&path).unwrap().len();
    assert!(len < full + 2 * MIB, "{len} bytes, {full} before clusters were used again");
    let erased = run(&*pool, Operation::SecureErase(Range { offset: 0, len: MIB }), &[]).0;
    assert_eq!(erased.unwrap_err().kind(), std::io::ErrorKind::Unsupported);
}

fn problem(path: &Path, options: &OpenOptions) -> Qcow2Error {
    match open(path, options).err() {
        Some(ImageError::Qcow2 { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_format_that_was_found_out_follows_no_name() {
    let at = directory();
    base(at.path(), 41, SIZE);
    let create = |args: &[&str]| qemu_img(at.path(), &[&["create", "-qf", "qcow2"], args].concat());
    create(&["-F", "raw", "-b", "base.raw", "disk.qcow2"]);
    let path = at.path().join("disk.qcow2");
    let auto = OpenOptions::default();
    assert!(matches!(problem(&path, &auto), Qcow2Error::Untrusted));
    assert!(open(&path, &options()).is_ok());
    // As raw it is bytes, and so is anything that does not look like an image.
    let raw = OpenOptions { format: Format::Raw, ..auto.clone() };
    let len = std::fs::metadata(&path).unwrap().len();
    let image = open(&path, &raw).unwrap();
    assert!(matches!(image.way(), Way::File { .. }) && image.facts().size == len - len % 512);
    drop(image);
    assert!(matches!(open(&at.path().join("base.raw"), &auto).unwrap().way(), Way::File { .. }));
    assert!(matches!(problem(&at.path().join("base.raw"), &options()), Qcow2Error::Magic));
    // Without a name it is found out, and used.
    create(&["alone.qcow2", "1M"]);
    assert_eq!(open(&at.path().join("alone.qcow2"), &auto).unwrap().facts().size, MIB);
}

/// Where the header's extension that says what is behind an image is, as a test knows it.
fn forget_backing_format(path: &Path) {
    const BACKING_FORMAT: [u8; 4] = 0xe279_2aca_u32.to_be_bytes();
    let mut bytes = vec![0; 4096];
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.read_at(&mut bytes, 0).unwrap();
    let at = bytes.windows(4).position(|word| word == BACKING_FORMAT).unwrap();
    // An extension that nobody knows is passed over.
    file.write_all_at(&[0x12, 0x34, 0x56, 0x78], at as u64).unwrap();
}

#[test]
fn a_backing_file_of_a_format_that_nobody_said_is_raw_or_refused() {
    let at = directory();
    base(at.path(), 51, SIZE);
    let create = |args: &[&str]| qemu_img(at.path(), &[&["create", "-qf", "qcow2"], args].concat());
    create(&["-F", "raw", "-b", "base.raw", "front.qcow2"]);
    let front = at.path().join("front.qcow2");
    forget_backing_format(&front);
    assert!(open(&front, &options()).is_ok());
    create(&["base.qcow2", "1M"]);
    create(&["-F", "qcow2", "-b", "base.qcow2", "front.qcow2"]);
    forget_backing_format(&front);
    let error = problem(&front, &options());
    assert!(matches!(&error, Qcow2Error::BackingFormat(name) if name == "base.qcow2"), "{error}");
}

#[test]
fn chains_that_cannot_be_are_refused() {
    let at = directory();
    let create = |args: &[&str]| qemu_img(at.path(), &[&["create", "-qf", "qcow2"], args].concat());
    for (behind, front) in [("b.qcow2", "a.qcow2"), ("a.qcow2", "b.qcow2"), ("a.qcow2", "front.qcow2")] {
        create(&["-u", "-F", "qcow2", "-b", behind, front, "1M"]);
    }
    assert!(matches!(problem(&at.path().join("front.qcow2"), &options()), Qcow2Error::Chain));
    create(&["-u", "-F", "vmdk", "-b", "x.vmdk", "front.qcow2", "1M"]);
    File::create(at.path().join("x.vmdk")).unwrap();
    let error = problem(&at.path().join("front.qcow2"), &options());
    assert!(matches!(&error, Qcow2Error::BackingFormatUnknown { format, .. } if format == "vmdk"), "{error}");
    create(&["-u", "-F", "raw", "-b", "nbd://localhost/x", "front.qcow2", "1M"]);
    let error = problem(&at.path().join("front.qcow2"), &options());
    assert!(matches!(&error, Qcow2Error::BackingName(name) if name == "nbd://localhost/x"), "{error}");
    create(&["-u", "-F", "raw", "-b", "missing.raw", "front.qcow2", "1M"]);
    let error = open(&at.path().join("front.qcow2"), &options()).err().unwrap().to_string();
    assert!(error.contains("missing.raw: No such file"), "{error}");
}

#[test]
fn images_that_need_more_are_refused_and_stay_as_they_are() {
    let at = directory();
    let path = at.path().join("disk.qcow2");
    let secret = ["--object", "secret,id=s,data=x"];
    for (args, feature) in [
        (&["-o", "extended_l2=on"][..], "subclusters"),
        (&["-o", "compression_type=zstd"], "another compression than deflate"),
        (&["-o", "data_file=data.raw"], "an external data file"),
        (&["-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"], "encryption"),
    ] {
        qemu_img(
            at.path(),
            &[&["create", "-qf", "qcow2"], &secret[..], args, &["disk.qcow2", "1M"]].concat(),
        );
        let before = std::fs::read(&path).unwrap();
        let error = problem(&path, &options());
        assert!(matches!(&error, Qcow2Error::Feature(name) if *name == feature), "{feature}: {error}");
        assert!(std::fs::read(&path).unwrap() == before, "{feature}");
    }
    for (bits, says) in
        [(1, "not closed properly"), (2, "marked as corrupt"), (1 << 40, "not known: 0x10000000000")]
    {
        qemu_img(at.path(), &["create", "-qf", "qcow2", "disk.qcow2", "1M"]);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&u64::to_be_bytes(bits), 72).unwrap();
        let error = problem(&path, &options()).to_string();
        assert!(error.contains(says), "{error}");
    }
    for len in [3, 4, 71, 75] {
        qemu_img(at.path(), &["create", "-qf", "qcow2", "disk.qcow2", "1M"]);
        File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
        assert!(matches!(problem(&path, &options()), Qcow2Error::Magic), "{len} bytes");
    }
}

#[test]
fn nobody_else_writes_to_an_image() {
    let directory = directory();
    qemu_img(directory.path(), &["create", "-f", "qcow2", "image", "1M"]);
    let shared = OpenOptions { share: true, ..options() };
    assert!(matches!(problem(&directory.path().join("image"), &shared), Qcow2Error::Shared));
}

#[test]
fn qemu_img_keeps_off_and_readers_share() {
    let at = directory();
    base(at.path(), 61, SIZE);
    for name in ["one.qcow2", "two.qcow2"] {
        qemu_img(at.path(), &["create", "-qf", "qcow2", "-F", "raw", "-b", "base.raw", name]);
    }
    let one = open(&at.path().join("one.qcow2"), &options()).unwrap();
    let said = |args: &[&str]| String::from_utf8(try_qemu_img(at.path(), args).stderr).unwrap();
    for args in [&["info", "one.qcow2"][..], &["resize", "one.qcow2", "+1M"], &["check", "one.qcow2"]] {
        assert!(said(args).contains("Is another process using the image"), "{args:?}: {}", said(args));
    }
    // What is behind it may be read, and not written to.
    let _two = open(&at.path().join("two.qcow2"), &options()).unwrap();
    let resize = ["resize", "-f", "raw", "base.raw", "+1M"];
    assert!(said(&resize).contains("Is another process using the image"), "{}", said(&resize));
    drop(one);
    qemu_img(at.path(), &["info", "one.qcow2"]);
}

#[test]
fn an_image_grows_and_what_is_behind_does_not_show() {
    let at = directory();
    let disk = base(at.path(), 71, SIZE);
    qemu_img(at.path(), &["create", "-qf", "qcow2", "-F", "raw", "-b", "base.raw", "disk.qcow2", "4M"]);
    let mut image = open(&at.path().join("disk.qcow2"), &options()).unwrap();
    assert_eq!(image.resize(SIZE, false).unwrap().size, SIZE);
    assert!(matches!(image.resize(MIB, false), Err(ImageError::WouldShrink { .. })));
    drop(image);
    let mut want = disk;
    want[4 << 20..].fill(0);
    judge(at.path(), "disk.qcow2", &want);
    let mut image = open(&at.path().join("disk.qcow2"), &options()).unwrap();
    assert_eq!(image.resize(2 * MIB, true).unwrap().size, 2 * MIB);
    drop(image);
    judge(at.path(), "disk.qcow2", &want[..2 << 20]);
}

#[test]
fn a_file_cut_short_is_an_error_and_no_zeroes() {
    let at = directory();
    qemu_img(at.path(), &["create", "-qf", "qcow2", "disk.qcow2", "4M"]);
    let path: PathBuf = at.path().join("disk.qcow2");
    let image = open(&path, &options()).unwrap();
    let pool = pool(&image);
    run(&*pool, Operation::Write { offset: 0, stable: true }, &vec![1; 1 << 20]).0.unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 65536).unwrap();
    let range = Range { offset: 0, len: 4096 };
    for operation in [
        Operation::Read { offset: 0 },
        Operation::Write { offset: 0, stable: false },
        Operation::Flush,
        Operation::Discard(range),
        Operation::WriteZeroes { range, unmap: true },
        Operation::WriteZeroes { range, unmap: false },
    ] {
        let result = run(&*pool, operation, &[0; 4096]).0;
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO), "{operation:?}");
    }
}

fn mount(args: &[&str], at: &Path) {
    let status = Command::new("mount").args(args).arg(at).status().expect("mount");
    assert!(status.success(), "{args:?}");
}

#[test]
fn a_full_file_system_costs_errors_and_not_the_image() {
    let at = directory();
    mount(&["-t", "tmpfs", "-o", "size=3M", "none"], at.path());
    qemu_img(at.path(), &["create", "-qf", "qcow2", "disk.qcow2", "16M"]);
    let image = open(&at.path().join("disk.qcow2"), &options()).unwrap();
    let executor = pool(&image);
    let mut disk = vec![0; SIZE as usize];
    let mut failed = Vec::new();
    for (i, part) in disk.chunks_mut(65536).enumerate().take(64) {
        let offset = i as u64 * 65536;
        match run(&*executor, Operation::Write { offset, stable: false }, &vec![i as u8 + 1; 65536]).0 {
            Ok(()) => part.fill(i as u8 + 1),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                failed.push(offset);
            }
        }
    }
    assert!((1..60).contains(&failed.len()), "{} of 64 writes failed", failed.len());
    mount(&["-o", "remount,size=64M"], at.path());
    for offset in failed {
        run(&*executor, Operation::Write { offset, stable: true }, &vec![0xee; 65536]).0.unwrap();
        of(&mut disk, Range { offset, len: 65536 }).fill(0xee);
    }
    drop((image, executor));
    let checked = try_qemu_img(at.path(), &["check", "-f", "qcow2", "disk.qcow2"]);
    // Clusters that are leaked (3) are no broken image.
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&checked.stdout));
    std::fs::write(at.path().join("want.raw"), &disk).unwrap();
    qemu_img(at.path(), &["compare", "-f", "qcow2", "-F", "raw", "disk.qcow2", "want.raw"]);
    assert!(Command::new("umount").arg("-l").arg(at.path()).status().unwrap().success());
}

#[test]
fn a_disk_that_is_only_read_leaves_the_image_as_it_is() {
    let at = directory();
    let disk = base(at.path(), 81, SIZE);
    qemu_img(at.path(), &["convert", "-O", "qcow2", "base.raw", "disk.qcow2"]);
    let before = std::fs::read(at.path().join("disk.qcow2")).unwrap();
    let read_only = OpenOptions { read_only: true, ..options() };
    let image = open(&at.path().join("disk.qcow2"), &read_only).unwrap();
    let again = open(&at.path().join("disk.qcow2"), &read_only).unwrap();
    let facts = image.facts();
    assert!(facts.read_only && !facts.can_discard && !facts.can_write_zeroes);
    for image in [&image, &again] {
        let (result, bytes) = run(&*pool(image), Operation::Read { offset: 0 }, &vec![0; SIZE as usize]);
        result.unwrap();
        assert!(bytes == disk);
    }
    let range = Range { offset: 0, len: 65536 };
    for operation in [
        Operation::Write { offset: 0, stable: true },
        Operation::Discard(range),
        Operation::WriteZeroes { range, unmap: false },
    ] {
        assert!(run(&*pool(&image), operation, &[1; 512]).0.is_err(), "{operation:?}");
    }
    run(&*pool(&image), Operation::Flush, &[]).0.unwrap();
    drop((image, again));
    assert!(std::fs::read(at.path().join("disk.qcow2")).unwrap() == before);
}

#[test]
fn a_write_beside_zeroes_in_one_cluster_is_not_lost() {
    const CLUSTER: u64 = 65536;
    let at = directory();
    qemu_img(at.path(), &["create", "-qf", "qcow2", "disk.qcow2", "16M"]);
    let options = OpenOptions { cache: Cache::Writeback, ..options() };
    let image = open(&at.path().join("disk.qcow2"), &options).unwrap();
    let mut disk = vec![0; SIZE as usize];
    for clusters in (0..SIZE / CLUSTER).collect::<Vec<_>>().chunks(16) {
        let jobs = clusters.iter().flat_map(|cluster| {
            let (offset, half) = (cluster * CLUSTER, CLUSTER / 2);
            let range = Range { offset, len: half };
            let written = Range { offset: offset + half, len: half };
            of(&mut disk, written).fill(7);
            let zero = (Operation::WriteZeroes { range, unmap: false }, buffer(&[], &[]));
            let write = Operation::Write { offset: written.offset, stable: false };
            [(write, buffer(&vec![7; half as usize], &[])), zero]
        });
        for (result, _) in run_all(&*pool(&image), jobs.collect()) {
            result.unwrap();
        }
    }
    drop(image);
    judge(at.path(), "disk.qcow2", &disk);
}
