//! Buffers scattered over a guest's memory, against a plain vector of bytes.

mod common;

use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;

use common::{PAGE, list, read, region, table, write};
use proptest::prelude::*;
use ringway_memory::{
    Access, BusAddr, FrontendVa, Gpa, GuestBuf, GuestSlice, MemoryError, MemoryTable, ScatterList, io,
};

/// Where the memory begins, and its length: two regions of a page each, which adjoin.
const BASE: u64 = 0x10_0000;
const LEN: u32 = 2 * PAGE as u32;

fn two_regions() -> Arc<MemoryTable> {
    table(vec![region(BASE, PAGE, 0x7000_0000), region(BASE + PAGE, PAGE, 0x6000_0000)])
}

fn noise(len: u32, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8 ^ seed).collect()
}

/// Offset and length of ranges inside `from..LEN`, some empty, some across the border of the two regions.
fn ranges(within: std::ops::Range<u32>) -> impl Strategy<Value = Vec<(u32, u32)>> {
    let border = PAGE as u32;
    let at = prop_oneof![3 => within.clone(), 1 => border - 40..border + 40];
    let range = (at, prop_oneof![1 => Just(0), 6 => 1u32..60, 1 => 60u32..2000]);
    let clip = move |(at, len): (u32, u32)| {
        let at = at.clamp(within.start, within.end);
        (at, len.min(within.end - at))
    };
    prop::collection::vec(range.prop_map(clip), 0..12)
}

/// The offsets of all bytes of `ranges`, in their order.
fn offsets(ranges: &[(u32, u32)]) -> Vec<usize> {
    ranges.iter().flat_map(|(at, len)| *at as usize..(at + len) as usize).collect()
}

/// What `advance` and `truncate` leave of all, in the order given.
fn cut<T: Copy>(all: &[T], cuts: &[(bool, usize)]) -> Vec<T> {
    let mut left = all.to_vec();
    for (is_advance, n) in cuts {
        let n = (*n).min(left.len());
        left = if *is_advance { left[n..].to_vec() } else { left[..n].to_vec() };
    }
    left
}

fn cut_buf<'a>(buf: GuestBuf<'a>, cuts: &[(bool, usize)]) -> GuestBuf<'a> {
    cuts.iter().fold(buf, |buf, (is_advance, n)| if *is_advance { buf.advance(*n) } else { buf.truncate(*n) })
}

fn gpas(ranges: &[(u32, u32)]) -> Vec<(u64, u32)> {
    ranges.iter().map(|(at, len)| (BASE + u64::from(*at), *len)).collect()
}

fn cuts() -> impl Strategy<Value = Vec<(bool, usize)>> {
    prop::collection::vec((any::<bool>(), prop_oneof![0usize..100, 0usize..5000, Just(usize::MAX)]), 0..4)
}

proptest! {
    /// Reading and writing any part of any list of ranges, which may overlap.
    #[test]
    fn read_and_write_agree_with_the_model(ranges in ranges(0..LEN), cuts in cuts(), len in 0usize..3000) {
        let table = two_regions();
        let mut model = noise(LEN, 0);
        write(&table, BASE, &model);
        let list = list(&table, &gpas(&ranges));
        let buf = cut_buf(list.buf(0..list.len()), &cuts);
        let at = cut(&offsets(&ranges), &cuts);
        prop_assert_eq!((buf.len(), buf.is_empty()), (at.len(), at.is_empty()));
        prop_assert_eq!(buf.pieces().map(|p| p.len()).sum::<usize>(), at.len());
        prop_assert!(buf.pieces().all(|p| !p.is_empty()));

        let mut bytes = vec![0xee; len];
        let n = buf.read(&mut bytes);
        prop_assert_eq!(n, len.min(at.len()));
        let wanted: Vec<_> = at.iter().take(n).map(|i| model[*i]).collect();
        prop_assert_eq!(&bytes[..n], wanted);
        prop_assert!(bytes[n..].iter().all(|b| *b == 0xee));

        let bytes = noise(len as u32, 0x55);
        prop_assert_eq!(buf.write(&bytes), n);
        for (i, byte) in at.iter().zip(&bytes) {
            model[*i] = *byte;
        }
        prop_assert_eq!(read(&table, BASE, LEN), model);
    }

    /// A copy from one list of ranges to another, of other places.
    #[test]
    fn copy_agrees_with_the_model(
        from in ranges(0..LEN / 2 + 100),
        to in ranges(LEN / 2 + 100..LEN),
        (cut_from, cut_to) in (cuts(), cuts()),
    ) {
        let (source, target) = (two_regions(), two_regions());
        for tables in [(&source, &source), (&source, &target)] {
            let (mut from_model, mut to_model) = (noise(LEN, 0), noise(LEN, 0x77));
            write(tables.1, BASE, &to_model);
            write(tables.0, BASE, &from_model);
            if Arc::ptr_eq(tables.0, tables.1) {
                to_model.clone_from(&from_model);
            }
            let lists = (list(tables.0, &gpas(&from)), list(tables.1, &gpas(&to)));
            let buf_from = cut_buf(lists.0.buf(0..lists.0.len()), &cut_from);
            let buf_to = cut_buf(lists.1.buf(0..lists.1.len()), &cut_to);
            let (at_from, at_to) = (cut(&offsets(&from), &cut_from), cut(&offsets(&to), &cut_to));
            // Targets may overlap each other: the last one written stays.
            let is_once = at_to.iter().collect::<std::collections::HashSet<_>>().len() == at_to.len();
            prop_assert_eq!(buf_from.copy_to(buf_to), at_from.len().min(at_to.len()));
            if is_once {
                for (f, t) in at_from.iter().zip(&at_to) {
                    to_model[*t] = from_model[*f];
                }
                prop_assert_eq!(read(tables.1, BASE, LEN), to_model.clone());
            }
            if Arc::ptr_eq(tables.0, tables.1) {
                from_model.clone_from(&to_model);
            }
            if is_once {
                prop_assert_eq!(read(tables.0, BASE, LEN), from_model);
            }
        }
    }

    /// A copy onto itself: of one range it is exact; of several it may garble, but only where it was told to.
    #[test]
    fn overlapping_copies_stay_inside(from in ranges(0..LEN), to in ranges(0..LEN), at in 0u32..4000) {
        let table = two_regions();
        let model = noise(LEN, 0);
        write(&table, BASE, &model);
        let (f, t) = (list(&table, &gpas(&from)), list(&table, &gpas(&to)));
        let n = f.buf(0..f.len()).copy_to(t.buf(0..t.len()));
        let touched = offsets(&to);
        prop_assert_eq!(n, touched.len().min(offsets(&from).len()));
        let after = read(&table, BASE, LEN);
        for i in (0..LEN as usize).filter(|i| !touched[..n].contains(i)) {
            prop_assert_eq!(after[i], model[i], "byte {}", i);
        }

        write(&table, BASE, &model);
        let (f, t) = (list(&table, &[(BASE + 2000, 2000)]), list(&table, &[(BASE + u64::from(at / 2), 2000)]));
        prop_assert_eq!(f.buf(0..1).copy_to(t.buf(0..1)), 2000);
        let to = at as usize / 2;
        prop_assert_eq!(&read(&table, BASE, PAGE as u32)[to..to + 2000], &model[2000..4000]);
    }
}

/// A range across two regions is two slices, in order, although the regions lie elsewhere here.
#[test]
fn a_range_goes_on_in_the_next_region() {
    let table = two_regions();
    write(&table, BASE + PAGE - 3, b"abcdef");
    assert_eq!(read(&table, BASE + PAGE - 3, 3), b"abc");
    assert_eq!(read(&table, BASE + PAGE, 3), b"def");
    let list = list(&table, &[(BASE + PAGE - 3, 6)]);
    assert_eq!(list.slices(0..list.len()).iter().map(GuestSlice::len).collect::<Vec<_>>(), [3, 3]);
    assert_eq!(read(&table, BASE + 1, LEN - 1).len(), LEN as usize - 1);
}

#[test]
fn ranges_outside_of_memory_are_refused() {
    let table = table(vec![region(BASE, PAGE, 0), region(BASE + 2 * PAGE, PAGE, 0x1_0000)]);
    let mut list = ScatterList::with_capacity(0);
    list.bind(&table);
    for (addr, len) in [
        (0, 1),
        (BASE - 1, 1),
        (BASE - 1, 2),
        (BASE + PAGE - 1, 2),
        (BASE + PAGE, 1),
        (BASE + PAGE / 2, 2 * PAGE as u32),
        (BASE + 3 * PAGE, 1),
        (BASE + 3 * PAGE - 1, 2),
        (BASE, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
    ] {
        let unmapped = MemoryError::Unmapped { addr: Gpa(addr), len: len.into() };
        assert_eq!(list.push(BusAddr(addr), len, Access::READ), Err(unmapped), "{addr:#x} {len}");
    }
    // Nothing is nowhere: an empty range is fine wherever it is.
    list.clear();
    for addr in [0, BASE, BASE + PAGE, u64::MAX] {
        assert_eq!(list.push(BusAddr(addr), 0, Access::READ), Ok(()));
    }
    assert!(list.is_empty());
    assert!(list.buf(0..0).is_empty());
}

/// No range goes round the end of the address space, even if there is memory at both ends.
#[test]
fn addresses_do_not_wrap() {
    let top = 0u64.wrapping_sub(PAGE);
    let table = table(vec![region(0, PAGE, 0), region(top, PAGE - 1, 0x1_0000)]);
    assert_eq!(read(&table, u64::MAX - 1, 1), [0]);
    let mut list = ScatterList::with_capacity(0);
    list.bind(&table);
    for (addr, len) in [(u64::MAX - 1, 2), (u64::MAX, 1), (u64::MAX, 2), (u64::MAX - 1, 200), (top, u32::MAX)]
    {
        assert!(list.push(BusAddr(addr), len, Access::READ).is_err(), "{addr:#x} {len}");
    }
}

#[test]
fn a_list_shrinks_from_both_ends() {
    let table = two_regions();
    write(&table, BASE, &noise(100, 0));
    let mut list = list(&table, &[(BASE, 10), (BASE + 20, 1), (BASE + 30, 2), (BASE + 40, 3)]);
    list.drop_first(1);
    list.truncate(2);
    let mut bytes = [0; 10];
    assert_eq!(list.buf(0..2).read(&mut bytes), 3);
    let model = noise(100, 0);
    assert_eq!(bytes[..3], [model[20], model[30], model[31]]);
    // Another table, another list; the same, the same.
    list.bind(&Arc::clone(&table));
    assert_eq!(list.len(), 2);
    list.bind(&two_regions());
    assert!(list.is_empty());
}

/// The memory stays for as long as a list of it does.
#[test]
fn a_list_keeps_its_memory() {
    let table = two_regions();
    write(&table, BASE, b"here");
    let list = list(&table, &[(BASE, 4)]);
    drop(table);
    let mut bytes = [0; 4];
    assert_eq!(list.buf(0..1).read(&mut bytes), 4);
    assert_eq!(&bytes, b"here");
}

#[test]
fn memory_of_our_own_stands_where_a_guests_can() {
    let table = two_regions();
    let list = list(&table, &[(BASE + PAGE - 2, 4)]);
    let mut ours = *b"1234567";
    let slices = [GuestSlice::from_mut(&mut ours)];
    assert_eq!(GuestBuf::new(&slices).advance(1).copy_to(list.buf(0..2)), 4);
    assert_eq!(read(&table, BASE + PAGE - 2, 4), b"2345");
    assert!(GuestBuf::new(&[]).advance(5).truncate(9).is_empty());
    assert_eq!(GuestBuf::new(&[]).copy_to(list.buf(0..2)) + GuestBuf::new(&[]).read(&mut [1]), 0);
}

#[test]
fn a_frame_is_written_as_it_lies() {
    let table = two_regions();
    write(&table, BASE, &noise(LEN, 3));
    let (ours, theirs) = rustix::pipe::pipe().expect("a pipe");
    let many = list(&table, &vec![(BASE + 5, 1); io::MAX_PIECES]);
    let pieces = many.buf(0..io::MAX_PIECES - 1);
    assert_eq!(io::write_frame(theirs.as_fd(), &mut [7], pieces).expect("a frame"), io::MAX_PIECES);
    let error = io::write_frame(theirs.as_fd(), &mut [7], many.buf(0..io::MAX_PIECES)).expect_err("too many");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    let frame = list(&table, &[(BASE + PAGE - 2, 4), (BASE, 0), (BASE, 1)]);
    assert_eq!(io::write_frame(theirs.as_fd(), b"head".to_vec().as_mut(), frame.buf(0..3)).expect("9"), 9);
    drop(theirs);
    let mut written = vec![];
    std::fs::File::from(ours).read_to_end(&mut written).expect("all of it");
    let model = noise(LEN, 3);
    let first = [vec![7], vec![model[5]; io::MAX_PIECES - 1]].concat();
    assert_eq!(written, [&first, &b"head"[..], &model[4094..4098], &model[..1]].concat());
}

#[test]
fn tables_are_sorted_and_free_of_overlaps() {
    let at = |gpa: u64, len: u64| region(gpa, len, gpa);
    let sorted = table(vec![at(0x3000, PAGE), at(0x1000, PAGE), at(0x2000, PAGE)]);
    assert_eq!(sorted.regions().iter().map(|r| r.gpa().0).collect::<Vec<_>>(), [0x1000, 0x2000, 0x3000]);
    assert_eq!(sorted.regions()[0].len(), PAGE);
    let bad = [
        (vec![at(0x1000, PAGE), at(0x1000, PAGE)], 0x1000),
        (vec![at(0x1001, PAGE), at(0x1000, 2)], 0x1001),
        (vec![at(0x5000, 1), at(0x4000, PAGE + 1)], 0x5000),
        (vec![at(0x1000, 0x3000), at(0x2000, 0x10), at(0x9000, PAGE)], 0x2000),
    ];
    for (regions, later) in bad {
        match MemoryTable::new(regions).err() {
            Some(MemoryError::Overlap { addr, .. }) => assert_eq!(addr, Gpa(later)),
            other => panic!("{other:?}"),
        }
    }
    assert!(MemoryTable::new(vec![]).expect("no memory at all").regions().is_empty());
}

#[test]
fn areas_lie_in_one_region_at_their_alignment() {
    let table = table(vec![region(0, 2 * PAGE, 0x7000_0000), region(2 * PAGE, PAGE, 0x7000_2000)]);
    let area = |va: u64, len: usize, align: u64| table.area(FrontendVa(va), len, align).err();
    for (va, len, align) in
        [(0x7000_0000, 8192, 16), (0x7000_1ffe, 2, 2), (0x7000_1ff0, 16, 16), (0x7000_2000, 4096, 4)]
    {
        assert_eq!(area(va, len, align), None, "{va:#x} {len} {align}");
    }
    for (va, len) in [
        (0, 16),
        (0x6fff_fff0, 32),
        (0x7000_1ff0, 17),
        (0x7000_0000, 8193),
        (0x7000_3000, 1),
        (!15, 16),
        (!15, 32),
    ] {
        let addr = FrontendVa(va);
        assert_eq!(area(va, len, 16), Some(MemoryError::UnmappedArea { addr, len: len as u64 }));
    }
    for (va, align) in [(0x7000_0008, 16), (0x7000_0001, 2), (0x7000_0002, 4)] {
        assert_eq!(area(va, 2, align), Some(MemoryError::Misaligned { addr: FrontendVa(va), align }));
    }
    // Aligned for the front-end, but not here: the words would be torn.
    let odd = common::file(2 * PAGE);
    let odd = ringway_memory::Mapping::region(common::fd(&odd), 1, PAGE, Gpa(0), FrontendVa(0x1000))
        .expect("a region");
    let odd = MemoryTable::new(vec![odd]).expect("a table");
    let misaligned = MemoryError::Misaligned { addr: FrontendVa(0x1000), align: 2 };
    assert_eq!(odd.area(FrontendVa(0x1000), 4, 2).err(), Some(misaligned));
    assert!(odd.area(FrontendVa(0x1000), 4, 1).is_ok());
}

#[test]
fn an_area_is_words() {
    let table = two_regions();
    let area = table.area(FrontendVa(0x6000_0000), 24, 8).expect("an area");
    area.store_u64(8, 0x0102_0304_0506_0708);
    area.store_u32_release(16, 0x1112_1314);
    area.store_u16_release(20, 0x2122);
    assert_eq!(
        (area.load_u16(8), area.load_u32_acquire(12), area.load_u64(16)),
        (0x708, 0x102_0304, 0x2122_1112_1314)
    );
    let bytes = [8, 7, 6, 5, 4, 3, 2, 1, 0x14, 0x13, 0x12, 0x11, 0x22, 0x21];
    assert_eq!(read(&table, BASE + PAGE + 8, 14), bytes, "little-endian, in the second region");
    area.prefetch(0);
    area.prefetch(usize::MAX);
}
