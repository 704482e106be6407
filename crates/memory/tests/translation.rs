//! Tables behind an IOMMU: buffers and areas of rings by I/O virtual addresses.

mod common;

use std::sync::Arc;

use common::{PAGE, fd, file, region};
use ringway_memory::{
    Access, BusAddr, DirtyLog, FrontendVa, Gpa, GuestSlice, Iotlb, Iova, MemoryError, MemoryTable,
    ScatterList,
};

/// Two regions, one after the other to the front-end and far from each other to the guest, of four pages each.
const VA: u64 = 0x7f00_0000_0000;
const LOW: u64 = 0x10_0000;
const HIGH: u64 = 0x80_0000;
/// Where the device sees memory.
const IOVA: u64 = 0xffff_0000;

struct World {
    plain: MemoryTable,
    iotlb: Arc<Iotlb>,
    table: Arc<MemoryTable>,
    list: ScatterList,
}

impl World {
    fn new() -> Self {
        let regions = vec![region(LOW, 4 * PAGE, VA), region(HIGH, 4 * PAGE, VA + 4 * PAGE)];
        let plain = MemoryTable::new(regions).expect("a table");
        let iotlb = Arc::new(Iotlb::default());
        let table = Arc::new(plain.with_translation(Some(iotlb.clone())));
        let mut list = ScatterList::with_capacity(8);
        list.bind(&table);
        Self { plain, iotlb, table, list }
    }

    fn update(&self, iova: u64, size: u64, to: u64, access: Access) {
        self.iotlb.update(Iova(iova), size, FrontendVa(to), access).expect("a range");
    }

    /// Appends a buffer; where it is in guest-physical memory, or why it is not.
    fn push(&mut self, iova: u64, len: u32, access: Access) -> Result<Vec<(u64, u64)>, MemoryError> {
        let at = self.list.len();
        self.list.push(BusAddr(iova), len, access)?;
        Ok(self.list.places(at..self.list.len()).map(|(gpa, len)| (gpa.0, len)).collect())
    }
}

fn miss(iova: u64, access: Access) -> MemoryError {
    MemoryError::Miss { iova: Iova(iova), access }
}

/// Pages that adjoin for the device lie anywhere, in any order; an entry may go on in the next region.
#[test]
fn a_buffer_is_where_its_pages_are() {
    let mut world = World::new();
    for (page, to) in [(0, 7), (1, 0), (2, 2)] {
        world.update(IOVA + page * PAGE, PAGE, VA + to * PAGE, Access::READ_WRITE);
    }
    world.update(IOVA + 3 * PAGE, 2 * PAGE, VA + 3 * PAGE, Access::READ_WRITE);
    let whole = world.push(IOVA + 5, 5 * PAGE as u32 - 5, Access::READ);
    let high = |page| HIGH + page * PAGE;
    let expected = vec![
        (high(3) + 5, PAGE - 5),
        (LOW, PAGE),
        (LOW + 2 * PAGE, PAGE),
        (LOW + 3 * PAGE, PAGE),
        (high(0), PAGE),
    ];
    assert_eq!(whole, Ok(expected));
    assert_eq!(world.push(IOVA + PAGE - 1, 2, Access::WRITE), Ok(vec![(high(3) + PAGE - 1, 1), (LOW, 1)]));
    let bytes: Vec<u8> = (0..5 * PAGE - 5).map(|i| (i % 251) as u8).collect();
    assert_eq!(world.list.buf(0..5).write(&bytes), bytes.len());
    let mut plain = ScatterList::with_capacity(1);
    plain.bind(&Arc::new(world.plain));
    plain.push(BusAddr(high(3) + 5), 3, Access::READ).expect("by its guest address");
    let mut got = [9; 3];
    plain.buf(0..1).read(&mut got);
    assert_eq!(got, [0, 1, 2]);
}

/// Without an entry, without the permission, and with an entry that leads nowhere.
#[test]
fn what_is_not_known_or_not_allowed_is_told() {
    let mut world = World::new();
    assert_eq!(world.push(LOW, 1, Access::READ), Err(miss(LOW, Access::READ)), "no guest-physical address");
    assert_eq!(world.push(LOW, 0, Access::READ), Ok(vec![]));
    world.update(IOVA, PAGE, VA, Access::READ);
    world.update(IOVA + PAGE, PAGE, VA + 100 * PAGE, Access::READ_WRITE);
    let denied = MemoryError::Denied { iova: Iova(IOVA + 1), access: Access::WRITE };
    assert_eq!(world.push(IOVA + 1, 2, Access::WRITE), Err(denied));
    let nowhere = MemoryError::UnmappedArea { addr: FrontendVa(VA + 100 * PAGE), len: 7 };
    assert_eq!(world.push(IOVA + PAGE - 1, 8, Access::READ), Err(nowhere));
    let bad = MemoryError::BadRange { iova: Iova(u64::MAX), len: 2 };
    assert_eq!(world.push(u64::MAX, 2, Access::READ), Err(bad));
    // What was known a moment ago is not remembered.
    assert_eq!(world.push(IOVA, 1, Access::READ), Ok(vec![(LOW, 1)]));
    world.iotlb.invalidate(Iova(IOVA), PAGE);
    assert_eq!(world.push(IOVA, 1, Access::READ), Err(miss(IOVA, Access::READ)));
    world.update(IOVA, PAGE, VA + 4 * PAGE, Access::READ);
    assert_eq!(world.push(IOVA, 1, Access::READ), Ok(vec![(HIGH, 1)]));
}

/// A translation byte by byte does not fill our memory with slices.
#[test]
fn pieces_are_bounded() {
    let mut world = World::new();
    for byte in 0..=1 << 10 {
        world.update(IOVA + byte, 1, VA + byte % 2, Access::READ);
    }
    let mut pushed = 0;
    let error = loop {
        match world.push(IOVA, 1 << 10, Access::READ) {
            Ok(_) => pushed += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error, pushed), (MemoryError::Scattered { iova: Iova(IOVA), len: 1 << 10 }, 64));
    assert_eq!(world.list.len(), 1 << 16);
}

/// The area of a ring is where its pages are, if they are in one piece.
#[test]
fn an_area_is_in_one_piece() {
    let world = World::new();
    let area = |iova, len, access| world.table.area_for(FrontendVa(iova), len, 16, access);
    let scattered = MemoryError::Scattered { iova: Iova(IOVA), len: 2 * PAGE };
    let two = 2 * PAGE as usize;
    let error = |iova, len, access| area(iova, len, access).err();
    assert_eq!(error(IOVA, two, Access::READ_WRITE), Some(miss(IOVA, Access::READ_WRITE)));
    world.update(IOVA, PAGE, VA + PAGE, Access::READ_WRITE);
    assert_eq!(error(IOVA, two, Access::READ), Some(miss(IOVA + PAGE, Access::READ)));
    for other in [VA, VA + PAGE, VA + 3 * PAGE] {
        world.update(IOVA + PAGE, PAGE, other, Access::READ);
        assert_eq!(error(IOVA, two, Access::READ), Some(scattered));
    }
    world.update(IOVA + PAGE, PAGE, VA + 2 * PAGE, Access::READ);
    let denied = MemoryError::Denied { iova: Iova(IOVA + PAGE), access: Access::READ_WRITE };
    assert_eq!(error(IOVA, two, Access::READ_WRITE), Some(denied));
    assert_eq!(
        error(IOVA + 8, 8, Access::READ),
        Some(MemoryError::Misaligned { addr: FrontendVa(IOVA + 8), align: 16 })
    );
    let found = area(IOVA, two, Access::READ).expect("in one piece");
    assert_eq!((found.len(), found.gpa()), (two, Gpa(LOW + PAGE)));
    found.store_u64(PAGE as usize, 77);
    assert_eq!(area(IOVA + PAGE, 8, Access::READ).expect("its second page").load_u64(0), 77);
    // In one piece to the front-end, in two here.
    world.update(IOVA, 2 * PAGE, VA + 3 * PAGE, Access::READ);
    assert!(matches!(error(IOVA, two, Access::READ), Some(MemoryError::UnmappedArea { .. })));
    assert_eq!(error(IOVA, 0, Access::READ), Some(MemoryError::Scattered { iova: Iova(IOVA), len: 0 }));
}

/// What is written by way of an I/O virtual address is where the guest has it, for the dirty log.
#[test]
fn a_table_has_both_a_translation_and_a_log() {
    let world = World::new();
    let file = file(PAGE);
    let log = Arc::new(DirtyLog::map(fd(&file), 0, PAGE).expect("a log"));
    let logged = world.table.with_log(Some(log));
    assert!(logged.translation().is_some() && logged.log().is_some());
    let plain = logged.with_translation(None);
    assert!(plain.translation().is_none() && plain.log().is_some());
    let mut list = ScatterList::with_capacity(1);
    list.bind(&Arc::new(plain));
    list.push(BusAddr(HIGH), 4, Access::READ).expect("a guest-physical address");
    assert_eq!(list.slices(0..1).iter().map(GuestSlice::len).sum::<usize>(), 4);
}
