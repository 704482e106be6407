use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use ringway_memory::Gpa;
use ringway_spec::balloon::{
    CMD_ID_MIN, CONFIG_FREE_PAGE_HINT_CMD_ID, CONFIG_NUM_PAGES, PAGE_SIZE, S_AVAIL, S_MEMFREE, S_NR,
    S_SWAP_IN,
};
use ringway_spec::status::DeviceStatus;

use super::*;
use crate::loopback::{BASE, LEN, Loopback};

/// The number of the guest's first page.
const FIRST: u32 = (BASE / PAGE_SIZE) as u32;
/// How many it has.
const PAGES: u32 = (LEN / PAGE_SIZE) as u32;

const ALL: Settings = Settings {
    must_tell_host: true,
    statistics: true,
    deflate_on_oom: true,
    free_page_hinting: true,
    page_poison: true,
    page_reporting: true,
};

/// A device of all features whose driver accepted all but these.
fn device_without(features: u64) -> BalloonDevice {
    let mut device = BalloonDevice::new(ALL);
    device.negotiation.ack(device.negotiation.offered() & !features).unwrap();
    device
}

fn config(device: &BalloonDevice, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    device.read_config(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn pfns(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| (FIRST + page).to_le_bytes()).collect()
}

/// What is handed out of one turn at the inflate queue, as the first page and how many.
fn inflate(device: &mut BalloonDevice, pair: &mut Loopback) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut each = |PageRange { addr, len }| {
        ranges.push(((addr.0.wrapping_sub(BASE)) / PAGE_SIZE, len / PAGE_SIZE));
    };
    let _ = device.inflate(&mut pair.device, &mut pair.burst, &mut each).unwrap();
    ranges
}

/// The lengths of what is handed out of one turn at the hinting queue.
fn hints(device: &mut BalloonDevice, pair: &mut Loopback) -> Vec<usize> {
    let mut lens = Vec::new();
    let mut each = |slice: GuestSlice<'_>| lens.push(slice.len());
    let _ = device.hints(&mut pair.device, &mut pair.burst, &mut each).unwrap();
    lens
}

#[test]
fn queues_are_numbered_by_the_book() {
    let roles =
        |device: &BalloonDevice| (0..6).filter_map(|at| Some((at, device.role(at)?))).collect::<Vec<_>>();
    let (inflate, deflate) = ((0, Role::Inflate), (1, Role::Deflate));
    let all = device_without(0);
    let due = [inflate, deflate, (2, Role::Statistics), (3, Role::Hints), (4, Role::Reports)];
    assert_eq!((roles(&all), all.max_queues()), (due.to_vec(), 5));
    let none = device_without(F_STATS_VQ | F_FREE_PAGE_HINT | F_PAGE_REPORTING);
    assert_eq!(roles(&none), [inflate, deflate]);
    assert_eq!(BalloonDevice::new(Settings::default()).max_queues(), 2);
    // Index 3 is nobody's by the book: a driver that uses it has left no gap.
    let gap = device_without(F_FREE_PAGE_HINT);
    let due = [inflate, deflate, (2, Role::Statistics), (3, Role::Reports), (4, Role::Reports)];
    assert_eq!(roles(&gap), due);
}

#[test]
fn the_configuration_says_how_many_pages() {
    let mut device = BalloonDevice::new(ALL);
    assert!(device.set_target(1000));
    assert!(!device.set_target(1000));
    assert_eq!(config(&device, CONFIG_NUM_PAGES), 1000);
    assert!(device.write_config(CONFIG_ACTUAL, &7_u32.to_le_bytes()));
    assert_eq!((device.actual(), config(&device, CONFIG_ACTUAL)), (7, 7));
    assert!(!device.write_config(CONFIG_ACTUAL, &[1, 0]), "a part of it");
    assert!(!device.write_config(CONFIG_NUM_PAGES, &7_u32.to_le_bytes()), "not the driver's");
    assert!(!device.write_config(usize::MAX, &[0; 16]));
    let all: Vec<u8> = [9_u32, 8, 9, 3].into_iter().flat_map(u32::to_le_bytes).collect();
    assert!(device.write_config(0, &all), "as some front-ends do");
    assert_eq!((device.target(), device.actual(), config(&device, CONFIG_POISON_VAL)), (1000, 8, 3));
    device.reset();
    assert_eq!((device.target(), device.actual()), (1000, 0));
}

/// A driver may say what it fills pages with until it is set up.
#[test]
fn poison_is_settled_at_the_start() {
    let mut device = device_without(0);
    assert!(device.write_config(CONFIG_POISON_VAL, &5_u32.to_le_bytes()));
    device.negotiation.write_status((DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK).bits());
    assert!(!device.write_config(CONFIG_POISON_VAL, &6_u32.to_le_bytes()));
    assert_eq!(config(&device, CONFIG_POISON_VAL), 5);
    let mut without = BalloonDevice::new(Settings::default());
    assert!(!without.write_config(CONFIG_POISON_VAL, &5_u32.to_le_bytes()));
}

/// Numbers come in any order and in buffers of any length; what lies together is handed out together.
#[test]
fn pages_that_lie_together_are_handed_out_together() {
    for mut pair in Loopback::formats() {
        let mut device = device_without(0);
        let numbers = pfns(&[9, 3, 5, 4, 3, 8, 100]);
        pair.add(&[&numbers[..5], &numbers[5..6], &numbers[6..]], &[]);
        assert_eq!(inflate(&mut device, &mut pair), [(3, 3), (8, 2), (100, 1)]);
        assert_eq!((pair.used(), device.refused()), (Some(vec![]), 0));
        pair.add(&[&pfns(&[7])], &[]);
        let mut back = Vec::new();
        let _ = device.deflate(&mut pair.device, &mut pair.burst, &mut |range| back.push(range)).unwrap();
        assert_eq!(back, [PageRange { addr: Gpa(BASE + 7 * PAGE_SIZE), len: PAGE_SIZE }]);
    }
}

/// What is no page costs its driver nothing but that it is counted.
#[test]
fn numbers_of_no_page_are_ignored() {
    for mut pair in Loopback::formats() {
        let mut device = device_without(0);
        let mut numbers = pfns(&[PAGES, PAGES - 1]);
        for number in [0, FIRST - 1, u32::MAX] {
            numbers.extend(number.to_le_bytes());
        }
        numbers.push(7);
        pair.add(&[&numbers], &[4]);
        pair.add(&[], &[4]);
        assert_eq!(inflate(&mut device, &mut pair), [(u64::from(PAGES) - 1, 1)]);
        assert_eq!(device.refused(), 5);
        assert_eq!((pair.used(), pair.used()), (Some(vec![]), Some(vec![])));
    }
}

/// A request is served in bounded turns, and answered when all of it was.
#[test]
fn a_large_request_takes_turns() {
    for mut pair in Loopback::formats() {
        let mut device = device_without(0);
        let numbers = pfns(&(0..1024).map(|n| n % PAGES).collect::<Vec<_>>());
        pair.add(&[&numbers[..]; 40], &[]);
        assert_eq!(inflate(&mut device, &mut pair).len(), 32);
        assert_eq!(pair.used(), None);
        assert_eq!(inflate(&mut device, &mut pair).len(), 8);
        assert_eq!(pair.used(), Some(vec![]));
    }
}

/// [DEV-BALLOON-memory-statistics-01] [DEV-BALLOON-memory-statistics-02] Statistics come in any order, unknown ones among
/// them. The buffer is the device's until it asks anew.
#[test]
fn statistics_are_read_once_and_asked_for() {
    for mut pair in Loopback::formats() {
        let mut device = device_without(0);
        let read = |device: &mut BalloonDevice, pair: &mut Loopback| {
            device.statistics(&mut pair.device, &mut pair.burst).unwrap()
        };
        assert_eq!(read(&mut device, &mut pair), None);
        assert!(!device.ask(&mut pair.device, &mut pair.burst).unwrap(), "there is nothing to give back");
        let mut bytes = Vec::new();
        for (tag, value) in [(S_AVAIL, 5_u64), (S_NR as u16, 1), (0xffff, 2), (S_SWAP_IN, 3), (S_AVAIL, 4)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([S_MEMFREE as u8, 0, 9]);
        pair.add(&[&bytes[..13], &bytes[13..]], &[]);
        let statistics = read(&mut device, &mut pair).unwrap();
        assert_eq!(statistics.iter().collect::<Vec<_>>(), [(S_SWAP_IN, 3), (S_AVAIL, 4)]);
        assert_eq!((statistics.get(S_AVAIL), statistics.get(S_MEMFREE)), (Some(4), None));
        assert_eq!((read(&mut device, &mut pair), pair.used()), (None, None), "nothing new");
        let _ = device.ask(&mut pair.device, &mut pair.burst).unwrap();
        assert_eq!(pair.used(), Some(vec![]));
        pair.add(&[&bytes[..10]], &[]);
        assert_eq!(read(&mut device, &mut pair).unwrap().get(S_AVAIL), Some(5));
    }
}

/// [DEV-BALLOON-free-page-hinting-03] Pages count while the driver's command is the configuration's, and at no other time;
/// [DEV-BALLOON-free-page-hinting-05] [DEV-BALLOON-free-page-hinting-06] so none does after `DONE`, which the device says
/// when it needs them no more; [DEV-BALLOON-free-page-hinting-01] `STOP` when it needs them later.
#[test]
fn hints_count_during_their_round() {
    for mut pair in Loopback::formats() {
        let mut device = device_without(0);
        let wanted = |device: &BalloonDevice| config(device, CONFIG_FREE_PAGE_HINT_CMD_ID);
        let page = |pair: &mut Loopback| pair.add(&[], &[4096, 100]);
        assert_eq!(wanted(&device), CMD_ID_DONE);
        for command in [0, CMD_ID_DONE, CMD_ID_MIN] {
            pair.add(&[&command.to_le_bytes()], &[4096]);
            page(&mut pair);
            assert_eq!(hints(&mut device, &mut pair), [], "no round has begun");
        }
        assert!(device.start_hinting());
        let first = wanted(&device).to_le_bytes();
        pair.add(&[&first[..2], &first[2..]], &[]);
        assert!(!device.is_hinting());
        page(&mut pair);
        assert_eq!(hints(&mut device, &mut pair), [4096, 100]);
        assert!(device.is_hinting());
        device.stop_hinting();
        page(&mut pair);
        assert_eq!((hints(&mut device, &mut pair), wanted(&device)), (vec![], CMD_ID_STOP));
        assert!(device.start_hinting());
        assert_ne!(wanted(&device), u32::from_le_bytes(first));
        page(&mut pair);
        assert_eq!(hints(&mut device, &mut pair), [], "of the round before");
        pair.add(&[&wanted(&device).to_le_bytes()], &[4096]);
        assert_eq!(hints(&mut device, &mut pair), [4096]);
        pair.add(&[&CMD_ID_STOP.to_le_bytes()], &[]);
        page(&mut pair);
        assert_eq!(hints(&mut device, &mut pair), [], "the driver has no more");
        pair.add(&[&wanted(&device).to_le_bytes()], &[]);
        page(&mut pair);
        device.finish_hinting();
        assert_eq!((hints(&mut device, &mut pair), wanted(&device)), (vec![], CMD_ID_DONE));
        pair.add(&[&[2, 0, 0]], &[]);
        pair.add(&[&[2, 0, 0, 0, 0]], &[]);
        assert_eq!((hints(&mut device, &mut pair), device.refused()), (vec![], 2));
        while pair.used().is_some() {}
        assert_eq!(pair.driver.in_flight(), 0);
    }
    assert!(!device_without(F_FREE_PAGE_HINT).start_hinting());
}

/// [DEV-BALLOON-free-page-reporting-02] Pages that are reported are handed out if zeroes in them are what the driver wants, or if
/// it wants nothing.
#[test]
fn poisoned_pages_are_not_handed_out() {
    for (without, poison, due) in [(0, 0, 2), (0, 0xaa, 0), (F_PAGE_POISON, 0, 2), (F_PAGE_POISON, 0xaa, 2)] {
        for mut pair in Loopback::formats() {
            let mut device = device_without(without);
            device.write_config(CONFIG_POISON_VAL, &u32::to_le_bytes(poison));
            pair.add(&[], &[4096, 4096]);
            let mut count = 0;
            let _ = device.reports(&mut pair.device, &mut pair.burst, &mut |_| count += 1).unwrap();
            assert_eq!((count, pair.used()), (due, Some(vec![])));
        }
    }
}

proptest! {
    /// Whatever the numbers: what is handed out is in memory, once for each request, and all of it.
    #[test]
    fn ranges_are_the_pages(numbers in prop::collection::vec(prop_oneof![
        4 => FIRST - 3..FIRST + 12, 1 => FIRST + PAGES - 3..FIRST + PAGES + 3, 1 => any::<u32>()
    ], 0..200)) {
        let (mut pair, mut device) = (Loopback::new(0), device_without(0));
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        pair.add(&[&bytes], &[]);
        let ranges = inflate(&mut device, &mut pair);
        let (mut due, absent): (Vec<u32>, Vec<u32>) =
            numbers.into_iter().partition(|number| (FIRST..FIRST + PAGES).contains(number));
        due.sort_unstable();
        due.dedup();
        let handed_out: Vec<u32> =
            ranges.iter().flat_map(|(at, n)| (*at as u32..(at + n) as u32).map(|page| FIRST + page)).collect();
        prop_assert_eq!(handed_out, due);
        prop_assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0), "apart: {:?}", ranges);
        prop_assert_eq!(device.refused(), absent.len() as u64);
    }

    /// Whatever chains a driver gives to whichever queue, each is answered, and what is handed out was in one of them.
    #[test]
    fn any_chains_are_survived(chains in prop::collection::vec((
        0..4_usize, prop::collection::vec(any::<u8>(), 0..12), prop::collection::vec(0..4097_u32, 0..3)
    ), 0..20)) {
        let mut device = device_without(0);
        prop_assert!(device.start_hinting());
        let mut pairs: Vec<_> = (0..4).map(|_| Loopback::new(0)).collect();
        for (which, bytes, rooms) in chains {
            let pair = &mut pairs[which];
            let (head, tail) = bytes.split_at(bytes.len() / 3);
            let readable: Vec<&[u8]> = [head, tail].into_iter().filter(|part| !part.is_empty()).collect();
            let writable: Vec<u32> = rooms.into_iter().filter(|room| *room > 0).collect();
            if readable.is_empty() && writable.is_empty() {
                continue;
            }
            pair.add(&readable, &writable);
            let Loopback { device: queue, burst, .. } = pair;
            let mut handed_out = Vec::new();
            let mut each = |slice: GuestSlice<'_>| handed_out.push(slice.len() as u32);
            let _ = match which {
                0 => device.inflate(queue, burst, &mut |range| assert!(range.len >= PAGE_SIZE)),
                1 => device.hints(queue, burst, &mut each),
                2 => device.reports(queue, burst, &mut each),
                _ => {
                    device.statistics(queue, burst).unwrap();
                    device.ask(queue, burst)
                }
            }
            .unwrap();
            prop_assert!(which != 2 || handed_out == writable, "{:?}", handed_out);
            prop_assert!(handed_out.is_empty() || handed_out == writable);
            prop_assert_eq!(pair.used(), Some(vec![]));
        }
    }
}
