//! Images go over to another server, with their locks and their memory.

mod common;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{buffer, contents, run};
use ringway_block::image::{Cache, Format, Image, ImageError, ImageSpec, ImageState, OpenOptions, Way};
use ringway_block::job::{Executor, Operation};
use ringway_vhost::handover::{FilesOut, Link};

const MIB: u64 = 1 << 20;

/// What another server makes of an image, with options of its own.
fn restored(image: &Image, spec: &ImageSpec, options: &OpenOptions) -> Result<Image, ImageError> {
    let (here, there) = Link::pair().unwrap();
    let there = Link::new(there);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut files = FilesOut::default();
    let state = image.state(&mut files);
    here.send(&state, &files, deadline).unwrap();
    let (state, mut files): (ImageState, _) = there.receive(deadline).unwrap();
    Image::restore(spec, options, &state, &mut files)
}

fn executor(image: &Image) -> Arc<dyn Executor> {
    match image.way() {
        Way::File { aside, .. } | Way::Elsewhere(aside) => aside,
        _ => panic!("a file"),
    }
}

fn is_refused(path: &Path) -> bool {
    let tried = Command::new("qemu-io").args(["-f", "raw", "-c", "write -q 0 512"]).arg(path).output();
    let said = String::from_utf8(tried.expect("QEMU's tools are installed").stderr).unwrap();
    said.contains("Is another process using the image")
}

fn raw_file(directory: &tempfile::TempDir) -> ImageSpec {
    let path = directory.path().join("disk");
    File::create(&path).unwrap().set_len(MIB).unwrap();
    ImageSpec::File(path)
}

#[test]
fn a_files_lock_goes_over() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = raw_file(&directory);
    let path = directory.path().join("disk");
    let options = OpenOptions::default();
    let old = Image::open(&spec, &options).unwrap();
    let new = restored(&old, &spec, &options).unwrap();
    assert_eq!(new.facts(), old.facts());
    drop(old);
    assert!(is_refused(&path));
    run(&*executor(&new), Operation::Write { offset: 0, stable: true }, &[7; 512]).0.unwrap();
    drop(new);
    assert!(!is_refused(&path));
}

#[test]
fn memory_goes_over_as_it_is_and_as_large() {
    let spec = ImageSpec::Memory(MIB);
    let mut old = Image::open(&spec, &OpenOptions::default()).unwrap();
    old.resize(2 * MIB, false).unwrap();
    let disk = |image: &Image| if let Way::Here(disk) = image.way() { disk } else { panic!("memory") };
    disk(&old).write(MIB, buffer(&[5; 4096], &[]).buf(), false).unwrap();
    let new = restored(&old, &spec, &OpenOptions::default()).unwrap();
    drop(old);
    assert_eq!(new.facts().size, 2 * MIB);
    let to = buffer(&[0; 4096], &[]);
    disk(&new).read(MIB, to.buf()).unwrap();
    assert_eq!(contents(&to), [5; 4096]);
    let spec = ImageSpec::Null(MIB);
    let mut old = Image::open(&spec, &OpenOptions::default()).unwrap();
    old.resize(3 * MIB, false).unwrap();
    assert_eq!(restored(&old, &spec, &OpenOptions::default()).unwrap().facts().size, 3 * MIB);
}

#[test]
fn an_image_that_is_another_there_does_not_go_over() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = raw_file(&directory);
    let options = OpenOptions::default();
    let old = Image::open(&spec, &options).unwrap();
    let others = [
        (ImageSpec::Memory(MIB), options.clone()),
        (spec.clone(), OpenOptions { read_only: true, ..options.clone() }),
        (spec.clone(), OpenOptions { cache: Cache::Writeback, ..options.clone() }),
        (spec.clone(), OpenOptions { logical_block_size: Some(4096), ..options.clone() }),
        (spec.clone(), OpenOptions { format: Format::Qcow2, ..options.clone() }),
    ];
    for (spec, other) in others {
        let error = restored(&old, &spec, &other).err().unwrap();
        assert!(matches!(error, ImageError::Other { .. }), "{error}");
    }
    // Nothing has changed for who still has it.
    run(&*executor(&old), Operation::Write { offset: 0, stable: true }, &[7; 512]).0.unwrap();
}

#[test]
fn a_raw_image_stays_raw_whatever_its_guest_wrote() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = raw_file(&directory);
    let old = Image::open(&spec, &OpenOptions::default()).unwrap();
    let mut block = [0; 512];
    block[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    run(&*executor(&old), Operation::Write { offset: 0, stable: true }, &block).0.unwrap();
    let new = restored(&old, &spec, &OpenOptions::default()).unwrap();
    assert!(matches!(new.way(), Way::File { .. }));
}

#[test]
fn a_qcow2_image_is_open_in_one_place_at_a_time() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk.qcow2");
    let created = Command::new("qemu-img").args(["create", "-qf", "qcow2"]).arg(&path).arg("4M").status();
    assert!(created.expect("QEMU's tools are installed").success());
    let (spec, options) = (ImageSpec::File(path.clone()), OpenOptions::default());
    let old = Image::open(&spec, &options).unwrap();
    let write = |image: &Image, byte: u8, offset| {
        run(&*executor(image), Operation::Write { offset, stable: false }, &vec![byte; 65536]).0
    };
    write(&old, 1, 0).unwrap();
    old.suspend().unwrap();
    assert_eq!(write(&old, 9, 0).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    // The other server fails after it has begun.
    let new = restored(&old, &spec, &options).unwrap();
    drop(new);
    old.resume().unwrap();
    write(&old, 2, 65536).unwrap();
    old.suspend().unwrap();
    let new = restored(&old, &spec, &options).unwrap();
    drop(old);
    assert!(is_refused(&path));
    write(&new, 3, 2 * 65536).unwrap();
    let (result, bytes) = run(&*executor(&new), Operation::Read { offset: 0 }, &vec![0; 4 * 65536]);
    result.unwrap();
    for (i, cluster) in bytes.chunks(65536).enumerate() {
        let want = [1, 2, 3, 0][i];
        assert!(cluster.iter().all(|&b| b == want), "cluster {i}");
    }
    drop(new);
    let checked = Command::new("qemu-img").arg("check").arg(&path).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
