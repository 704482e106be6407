//! Files of a peer: mapped, refused, shortened under us, and let go.

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt as _, MetadataExt};

use common::{PAGE, fd, file, list, map, read, region, table, write};
use ringway_memory::{FrontendVa, Gpa, MapError, Mapping, MemoryError};
use rustix::event::{EventfdFlags, eventfd};

/// How many mappings of a file this process has.
fn mappings_of(file: &File) -> usize {
    let inode = file.metadata().expect("metadata").ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
    maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode)).count()
}

fn try_map(file: &File, offset: u64, len: u64) -> Option<MapError> {
    Mapping::region(fd(file), offset, len, Gpa(0), FrontendVa(0)).err()
}

#[test]
fn a_region_ends_inside_its_file() {
    let file = file(3 * PAGE + 5);
    for (offset, len) in [(0, 1), (0, 3 * PAGE + 5), (PAGE, PAGE), (7, 100), (3 * PAGE, 5), (3 * PAGE + 4, 1)]
    {
        assert!(try_map(&file, offset, len).is_none(), "{offset} {len}");
    }
    for (offset, len) in [(0, 3 * PAGE + 6), (3 * PAGE, 6), (3 * PAGE + 5, 1), (1 << 40, 1), (0, 1 << 62)] {
        let error = try_map(&file, offset, len);
        let Some(MapError::PastEnd { offset: o, end, size }) = error else { panic!("{error:?}") };
        assert_eq!((o, end, size), (offset, offset + len, 3 * PAGE + 5));
    }
    for (offset, len) in [(u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        let error = try_map(&file, offset, len);
        assert!(matches!(error, Some(MapError::BadRange { .. })), "{offset} {len}: {error:?}");
    }
    for offset in [0, PAGE, 3 * PAGE + 5] {
        assert!(try_map(&file, offset, 0).is_some(), "an empty region");
    }
    assert_eq!(mappings_of(&file), 0, "nothing stays of what was refused");
}

#[test]
fn a_region_fits_its_address_spaces() {
    let file = file(PAGE);
    for (gpa, va) in [(u64::MAX, 0), (0, u64::MAX), (0u64.wrapping_sub(PAGE), 0)] {
        let error = map(&file, PAGE, gpa, va).err();
        assert!(matches!(error, Some(MapError::Region(MemoryError::BadSize { .. }))), "{error:?}");
    }
    assert!(map(&file, PAGE, u64::MAX - PAGE, u64::MAX - PAGE).is_ok());
    assert_eq!(mappings_of(&file), 0);
}

#[test]
fn what_is_no_memory_is_refused() {
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let (pipe, _other) = rustix::pipe::pipe().expect("a pipe");
    let directory = File::open("/").expect("a directory");
    let (null, readable) =
        (File::open("/dev/null").expect("null"), File::open("/proc/self/exe").expect("a file"));
    for (what, file) in [
        ("an eventfd", event.into()),
        ("a pipe", File::from(pipe)),
        ("a directory", directory),
        ("a device", null),
        ("a file that cannot be written", readable),
    ] {
        assert!(try_map(&file, 0, 16).is_some(), "{what}");
    }
}

/// A region may begin anywhere in its file, and what it holds is what the file holds. By the file that it keeps it
/// can be mapped again.
#[test]
fn a_region_is_a_window_on_its_file() {
    use std::os::unix::fs::FileExt;
    let file = file(4 * PAGE);
    for offset in [0, 1, PAGE - 1, PAGE, PAGE + 123, 2 * PAGE] {
        let map = |file, at| Mapping::region(file, at, PAGE + 1, Gpa(0), FrontendVa(0)).expect("a region");
        let region = map(fd(&file), offset);
        let (kept, at) = region.file().expect("its file");
        let again = map(kept.try_clone_to_owned().expect("a clone"), at);
        let [table, again] = [region, again].map(|region| table(vec![region]));
        file.write_all_at(b"from the file", offset + PAGE - 12).expect("written");
        assert_eq!(read(&table, PAGE - 12, 13), b"from the file");
        write(&table, 3, b"from here");
        assert_eq!(read(&again, 3, 9), b"from here");
        let mut bytes = [0; 9];
        file.read_exact_at(&mut bytes, offset + 3).expect("read");
        assert_eq!(&bytes, b"from here");
    }
}

/// A peer shortens its file: what is read is zeros, what is written is lost, nobody dies, and whoever asks is
/// told. Mappings of other files are whole.
#[test]
fn a_shortened_file_costs_its_own_mapping_only() {
    let other = region(0, PAGE, 0x7000_0000);
    let (victim, bystander) = (file(4 * PAGE), table(vec![region(0, PAGE, 0)]));
    let table = table(vec![other, map(&victim, 4 * PAGE, PAGE, 0x7000_1000).expect("a region")]);
    let area = table.area(FrontendVa(0x7000_4000), 64, 16).expect("an area");
    write(&table, 0, b"other");
    write(&bystander, 0, b"bystander");
    write(&table, PAGE, b"first page");
    area.store_u64(0, 77);

    victim.set_len(PAGE).expect("shortened");
    assert_eq!(read(&table, PAGE, 10), b"first page", "what is left is read");
    assert!(table.is_intact(), "nobody has touched what is gone");
    assert_eq!(area.load_u64(0), 0);
    assert!(!table.is_intact() && bystander.is_intact());
    // From here on the mapping is ours alone: reads, writes, copies, all of it.
    assert_eq!(read(&table, PAGE, 10), [0; 10]);
    area.store_u64_release(8, 1);
    area.store_u16(62, 2);
    assert_eq!((area.load_u64_acquire(8), area.load_u16_acquire(62)), (1, 2));
    write(&table, PAGE, &vec![9; 4 * PAGE as usize]);
    let (from, to) = (list(&table, &[(PAGE, 100)]), list(&bystander, &[(100, 100)]));
    assert_eq!(from.buf(0..1).copy_to(to.buf(0..1)), 100);
    assert_eq!(read(&bystander, 150, 3), [9; 3]);
    assert_eq!((read(&table, 0, 5), read(&bystander, 0, 9)), (b"other".to_vec(), b"bystander".to_vec()));
    assert!(bystander.is_intact());
    // A mapping made where this one was starts whole.
    drop((table, area, from));
    victim.set_len(4 * PAGE).expect("longer again");
    let again = common::table(vec![map(&victim, 4 * PAGE, 0, 0).expect("a region")]);
    assert_eq!(read(&again, 0, 10), b"first page");
    assert!(again.is_intact());
}

/// Written to first, by each of the ways there are.
#[test]
fn a_shortened_file_may_be_written_first() {
    let ways: [fn(&std::sync::Arc<ringway_memory::MemoryTable>); 3] = [
        |table| write(table, PAGE - 3, b"across"),
        |table| table.area(FrontendVa(PAGE), 8, 8).expect("an area").store_u32(4, 1),
        |table| {
            let mut ours = [1; 10];
            let slices = [ringway_memory::GuestSlice::from_mut(&mut ours)];
            let list = list(table, &[(2 * PAGE - 10, 10)]);
            assert_eq!(ringway_memory::GuestBuf::new(&slices).copy_to(list.buf(0..1)), 10);
        },
    ];
    for way in ways {
        let file = file(2 * PAGE);
        let table = table(vec![map(&file, 2 * PAGE, 0, 0).expect("a region")]);
        file.set_len(PAGE).expect("shortened");
        way(&table);
        assert!(!table.is_intact());
    }
}

/// The kernel, given such memory, says so; nothing dies of it either.
/// An area and its parts are windows on the file, each as long as it was asked for.
#[test]
fn an_area_may_be_in_no_region() {
    let file = file(2 * PAGE);
    let area = Mapping::area(fd(&file), 64, 512).expect("an area");
    let parts = [area.part(0..64), area.part(64..512)];
    assert_eq!((area.len(), parts[0].len(), parts[1].len()), (512, 64, 448));
    parts[0].store_u64(56, 7);
    parts[1].store_u16(0, 0x0201);
    drop((area, parts));
    let mut bytes = [0; 10];
    file.read_exact_at(&mut bytes, 64 + 56).expect("the file's bytes");
    assert_eq!(bytes, [7, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(mappings_of(&file), 0, "the parts keep it mapped, and nothing else");

    for (offset, len) in [(0, 2 * PAGE as usize + 1), (2 * PAGE, 1), (0, 0), (u64::MAX, 1)] {
        assert!(Mapping::area(fd(&file), offset, len).is_err(), "{offset} {len}");
    }
}

#[test]
fn a_shortened_file_is_seen_in_every_part_of_an_area() {
    let file = file(2 * PAGE);
    let area = Mapping::area(fd(&file), 0, 2 * PAGE as usize).expect("an area");
    let part = area.part(PAGE as usize..PAGE as usize + 64);
    assert!(area.is_intact() && part.is_intact());
    file.set_len(PAGE).expect("a shorter file");
    part.store_u64(0, 1);
    assert!(!area.is_intact() && !part.is_intact());
}

#[test]
fn the_kernel_meets_a_shortened_file() {
    let file = file(PAGE);
    let table = table(vec![map(&file, PAGE, 0, 0).expect("a region")]);
    let frame = list(&table, &[(0, 100)]);
    file.set_len(0).expect("shortened");
    let (_ours, theirs) = rustix::pipe::pipe().expect("a pipe");
    let written = ringway_memory::io::write_frame(theirs.as_fd(), &mut [0; 12], frame.buf(0..1));
    assert!(written.is_err() || written.is_ok_and(|n| n < 112));
}

/// A mapping lives as long as the last of its users, whichever that is.
#[test]
fn the_last_user_unmaps() {
    let file = file(PAGE);
    let region = map(&file, PAGE, 0, 0).expect("a region");
    assert_eq!(mappings_of(&file), 1);
    let table = table(vec![region.clone()]);
    let (area, list) = (table.area(FrontendVa(0), 16, 16).expect("an area"), list(&table, &[(0, 9)]));
    drop(table);
    drop(region);
    assert_eq!(mappings_of(&file), 1);
    drop(list);
    assert_eq!(mappings_of(&file), 1, "the area is left");
    area.store_u16(0, 1);
    drop(area);
    assert_eq!(mappings_of(&file), 0);
}
