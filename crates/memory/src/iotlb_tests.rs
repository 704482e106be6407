use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;

/// What a lookup finds: ranges, joined where they adjoin, or why not.
fn lookup(iotlb: &Iotlb, iova: u64, len: u64, access: Access) -> Result<Vec<(u64, u64)>, MemoryError> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    iotlb.translate(Iova(iova), len, access, &mut |va, len| {
        match found.last_mut() {
            Some((start, so_far)) if *start + *so_far == va.0 => *so_far += len,
            _ => found.push((va.0, len)),
        }
        Ok(())
    })?;
    Ok(found)
}

fn miss(iova: u64, access: Access) -> MemoryError {
    MemoryError::Miss { iova: Iova(iova), access }
}

fn update(iotlb: &Iotlb, iova: u64, size: u64, to: u64, access: Access) {
    iotlb.update(Iova(iova), size, FrontendVa(to), access).expect("a range");
}

fn len(iotlb: &Iotlb) -> usize {
    iotlb.entries.read().expect("the lock").by_start.len()
}

#[test]
fn a_lookup_goes_over_entries_and_stops_at_the_first_gap() {
    let iotlb = Iotlb::default();
    assert_eq!(lookup(&iotlb, 0, 0, Access::READ), Ok(Vec::new()), "nothing is nowhere");
    assert_eq!(lookup(&iotlb, 5, 1, Access::WRITE), Err(miss(5, Access::WRITE)));
    update(&iotlb, 0x1000, PAGE, 0x7000, Access::READ_WRITE);
    update(&iotlb, 0x2000, PAGE, 0x8000, Access::READ_WRITE);
    update(&iotlb, 0x3000, PAGE, 0x1000, Access::READ_WRITE);
    let found = lookup(&iotlb, 0x1ff0, 0x1020, Access::READ_WRITE);
    assert_eq!(found, Ok(vec![(0x7ff0, 0x1010), (0x1000, 0x10)]));
    assert_eq!(lookup(&iotlb, 0xfff, 2, Access::READ), Err(miss(0xfff, Access::READ)));
    assert_eq!(lookup(&iotlb, 0x3fff, 2, Access::READ), Err(miss(0x4000, Access::READ)));
    assert_eq!(lookup(&iotlb, 0x3fff, 1, Access::READ), Ok(vec![(0x1fff, 1)]));
}

#[test]
fn an_entry_allows_what_it_was_told_to() {
    let none = Access { read: false, write: false };
    let all = [none, Access::READ, Access::WRITE, Access::READ_WRITE];
    for (given, allowed) in all.into_iter().zip([&all[..1], &[none, all[1]], &[none, all[2]], &all]) {
        let iotlb = Iotlb::default();
        update(&iotlb, 0, PAGE, 0, Access::READ_WRITE);
        update(&iotlb, PAGE, PAGE, PAGE, given);
        for wanted in all {
            let denied = Err(MemoryError::Denied { iova: Iova(PAGE), access: wanted });
            let expected = if allowed.contains(&wanted) { Ok(vec![(PAGE - 1, 2)]) } else { denied };
            assert_eq!(lookup(&iotlb, PAGE - 1, 2, wanted), expected, "{given} for {wanted}");
        }
    }
}

#[test]
fn ranges_end_with_the_address_space() {
    let iotlb = Iotlb::default();
    for (iova, size, to) in [(0, 0, 0), (u64::MAX, 2, 0), (0, 2, u64::MAX), (2, u64::MAX, 0)] {
        let bad = MemoryError::BadRange { iova: Iova(iova), len: size };
        assert_eq!(iotlb.update(Iova(iova), size, FrontendVa(to), Access::READ), Err(bad));
    }
    update(&iotlb, u64::MAX - 1, 2, u64::MAX - 1, Access::READ);
    assert_eq!(lookup(&iotlb, u64::MAX, 1, Access::READ), Ok(vec![(u64::MAX, 1)]));
    let bad = MemoryError::BadRange { iova: Iova(u64::MAX), len: 2 };
    assert_eq!(lookup(&iotlb, u64::MAX, 2, Access::READ), Err(bad));
    update(&iotlb, 0, u64::MAX, 0, Access::READ);
    assert_eq!(lookup(&iotlb, 0, u64::MAX, Access::READ), Ok(vec![(0, u64::MAX)]));
    iotlb.invalidate(Iova(u64::MAX - 1), u64::MAX);
    assert_eq!(lookup(&iotlb, u64::MAX - 2, 2, Access::READ), Err(miss(u64::MAX - 1, Access::READ)));
    iotlb.invalidate(Iova(0), 0);
    assert_eq!(len(&iotlb), 0);
}

/// What is told past the bound takes the place of something else, also where an entry becomes two.
#[test]
fn entries_are_bounded() {
    let iotlb = Iotlb::default();
    let flood = MAX_ENTRIES as u64 + 1000;
    for page in 0..flood {
        update(&iotlb, page * 2 * PAGE, 2 * PAGE, page, Access::READ);
        assert!(lookup(&iotlb, page * 2 * PAGE, 1, Access::READ).is_ok(), "it is there when it was told");
    }
    assert_eq!(len(&iotlb), MAX_ENTRIES);
    let found = (0..flood).filter(|page| lookup(&iotlb, page * 2 * PAGE, 1, Access::READ).is_ok());
    assert_eq!(found.count(), MAX_ENTRIES);
    for page in flood - 10..flood {
        iotlb.invalidate(Iova(page * 2 * PAGE + 5), 1);
        assert_eq!(len(&iotlb), MAX_ENTRIES);
    }
    iotlb.invalidate(Iova(0), u64::MAX);
    assert_eq!(len(&iotlb), 0);
}

/// A device that waits for an update knows whether there was one.
#[test]
fn updates_are_counted() {
    let iotlb = Iotlb::default();
    assert_eq!(iotlb.updates(), 0);
    update(&iotlb, 0, PAGE, 0, Access::READ);
    assert_eq!(iotlb.updates(), 1);
    update(&iotlb, 0, 2 * PAGE, 0, Access::READ);
    iotlb.invalidate(Iova(0), PAGE);
    assert_eq!(iotlb.updates(), 2, "nothing is known by what is taken back");
}

/// What is done to an IOTLB, in bytes of a small space.
#[derive(Debug, Clone)]
enum Step {
    Update { start: u8, size: u8, to: u16, access: Access },
    Invalidate { start: u8, size: u8 },
}

fn access() -> impl Strategy<Value = Access> {
    (any::<bool>(), any::<bool>()).prop_map(|(read, write)| Access { read, write })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let update = (any::<u8>(), 1..60u8, any::<u16>(), access())
        .prop_map(|(start, size, to, access)| Step::Update { start, size, to, access });
    let invalidate = (any::<u8>(), 1..60u8).prop_map(|(start, size)| Step::Invalidate { start, size });
    prop::collection::vec(prop_oneof![2 => update, 1 => invalidate], 0..40)
}

proptest! {
    /// Against a map from each byte to where it leads, at either end of the address space.
    #[test]
    fn each_byte_leads_where_it_was_last_told(steps in steps(), is_at_end in any::<bool>()) {
        let base = if is_at_end { u64::MAX - 319 } else { 0 };
        let iotlb = Iotlb::default();
        let mut model = [None; 320];
        for step in steps {
            match step {
                Step::Update { start, size, to, access } => {
                    update(&iotlb, base + u64::from(start), size.into(), to.into(), access);
                    let bytes = &mut model[usize::from(start)..][..size.into()];
                    bytes.iter_mut().zip(u64::from(to)..).for_each(|(byte, to)| *byte = Some((to, access)));
                }
                Step::Invalidate { start, size } => {
                    iotlb.invalidate(Iova(base + u64::from(start)), size.into());
                    model[usize::from(start)..][..size.into()].fill(None);
                }
            }
        }
        for (byte, offset) in model.iter().zip(0..) {
            let iova = base + offset;
            for wanted in [Access::READ, Access::WRITE, Access::READ_WRITE] {
                let expected = match byte {
                    None => Err(miss(iova, wanted)),
                    Some((_, given)) if !given.allows(wanted) => {
                        Err(MemoryError::Denied { iova: Iova(iova), access: wanted })
                    }
                    Some((to, _)) => Ok(vec![(*to, 1)]),
                };
                prop_assert_eq!(lookup(&iotlb, iova, 1, wanted), expected);
            }
        }
        let entries = iotlb.entries.read().expect("the lock");
        let mut free = base;
        for (&start, entry) in &entries.by_start {
            prop_assert!(start >= free && entry.last >= start, "{:?}", entries.by_start);
            free = entry.last.saturating_add(1);
        }
    }
}

/// A thread that looks up finds, of a range that leads here or there, one or the other, whole.
#[test]
fn a_lookup_is_of_one_moment() {
    let (iotlb, stop) = (&Iotlb::default(), &AtomicBool::new(false));
    let deadline = Instant::now() + Duration::from_secs(20);
    thread::scope(|scope| {
        scope.spawn(move || {
            for round in (0..).take_while(|_| !stop.load(Ordering::Relaxed) && Instant::now() < deadline) {
                update(iotlb, 0, 4 * PAGE, round % 2 * (1 << 32), Access::READ);
                if round % 3 == 0 {
                    iotlb.invalidate(Iova(PAGE), PAGE);
                }
            }
        });
        let (mut seen, mut lookups) = (BTreeSet::new(), 0);
        while (seen.len() < 2 || lookups < 20_000) && Instant::now() < deadline {
            lookups += 1;
            match lookup(iotlb, 0, 4 * PAGE, Access::READ) {
                Ok(found) => {
                    assert!(found == [(0, 4 * PAGE)] || found == [(1 << 32, 4 * PAGE)], "{found:x?}");
                    seen.insert(found[0].0);
                }
                Err(error) => assert!(error == miss(PAGE, Access::READ) || error == miss(0, Access::READ)),
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(seen.len(), 2, "it was looked at while it changed");
    });
}
