//! Disks in memory, and disks of nothing.

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;

use common::{buffer, contents};
use ringway_block::image::{Image, ImageSpec, MemoryDisk, OpenOptions, Way};
use ringway_block::job::{BlockingImage, Range};

const MIB: u64 = 1 << 20;

fn here(image: &Image) -> Arc<dyn BlockingImage> {
    let Way::Here(disk) = image.way() else { panic!("in memory") };
    disk
}

/// Pages that it takes.
fn blocks(disk: &MemoryDisk) -> i64 {
    rustix::fs::fstat(disk.as_fd()).unwrap().st_blocks
}

#[test]
fn a_disk_in_memory_keeps_what_is_written() {
    let image = Image::open(&ImageSpec::Memory(4 * MIB), &OpenOptions::default()).unwrap();
    assert_eq!(image.facts().size, 4 * MIB);
    let disk = here(&image);
    let bytes: Vec<u8> = (0..8192_u32).map(|i| (i * 7) as u8).collect();
    disk.write(4 * MIB - 8192, buffer(&bytes, &[1, 4095]).buf(), true).unwrap();
    let to = buffer(&vec![9; 3 * 8192], &[5000]);
    disk.read(4 * MIB - 3 * 8192, to.buf()).unwrap();
    let read = contents(&to);
    assert!(read[..2 * 8192].iter().all(|&b| b == 0) && read[2 * 8192..] == bytes);
    for offset in [4 * MIB - 8191, 4 * MIB, u64::MAX] {
        assert_eq!(disk.read(offset, to.buf()).unwrap_err().raw_os_error(), Some(libc::EIO), "{offset}");
        let range = Range { offset, len: 8192 };
        assert_eq!(disk.write_zeroes(range, true).unwrap_err().raw_os_error(), Some(libc::EIO), "{offset}");
    }
}

#[test]
fn zeroes_give_memory_back_only_if_they_may() {
    let disk = MemoryDisk::new(4 * MIB).unwrap();
    assert_eq!((disk.size(), blocks(&disk)), (4 * MIB, 0));
    disk.write(0, buffer(&vec![1; 4 << 20], &[]).buf(), false).unwrap();
    let full = blocks(&disk);
    let range = Range { offset: 512, len: 2 * MIB };
    disk.write_zeroes(range, false).unwrap();
    assert_eq!(blocks(&disk), full);
    disk.write_zeroes(Range { offset: 2 * MIB, len: MIB }, true).unwrap();
    assert_eq!(full - blocks(&disk), 2048);
    let to = buffer(&vec![9; 4 << 20], &[]);
    disk.read(0, to.buf()).unwrap();
    let mut want = vec![1; 4 << 20];
    want[512..3 << 20].fill(0);
    assert!(contents(&to) == want);
    disk.write_zeroes(Range { offset: 0, len: 0 }, true).unwrap();
}

#[test]
fn a_size_can_change_while_the_disk_is_reached() {
    let mut image = Image::open(&ImageSpec::Memory(0), &OpenOptions::default()).unwrap();
    let disk = here(&image);
    let bytes = buffer(&[5; 4096], &[]);
    assert!(disk.write(0, bytes.buf(), false).is_err());
    image.resize(MIB, false).unwrap();
    disk.write(MIB - 4096, bytes.buf(), false).unwrap();
    image.resize(2 * MIB, false).unwrap();
    let to = buffer(&[0; 4096], &[]);
    disk.read(MIB - 4096, to.buf()).unwrap();
    assert_eq!(contents(&to), [5; 4096]);
}

#[test]
fn a_size_that_no_memory_has_is_an_error() {
    let error = Image::open(&ImageSpec::Memory(1 << 62), &OpenOptions::default()).err().unwrap();
    assert!(error.to_string().starts_with("cannot keep a disk in memory: "), "{error}");
}

#[test]
fn a_disk_of_nothing_has_a_size() {
    let options = OpenOptions { logical_block_size: Some(4096), ..OpenOptions::default() };
    let image = Image::open(&ImageSpec::Null(MIB + 512), &options).unwrap();
    assert!(matches!(image.way(), Way::Null));
    assert_eq!((image.facts().size, image.facts().logical_block_size), (MIB, 4096));
}
