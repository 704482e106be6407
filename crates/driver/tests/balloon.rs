//! The balloon driver against a device that acknowledges what the test says, when it says so.
#![allow(unsafe_code, reason = "the pages that are given up are numbers here, with nothing behind them")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Event as Done, Fake, FakeTransport, RINGS, TestPlatform};
use proptest::prelude::*;
use ringway_driver::balloon::{Balloon, Options, Statistics};
use ringway_driver::{Error, PageRange, Pages, Platform, Purpose};
use ringway_memory::Gpa;
use ringway_queue::{Burst, Chain, DeviceQueue};
use ringway_spec::balloon::{
    CMD_ID_DONE, CMD_ID_STOP, CONFIG_ACTUAL, CONFIG_POISON_VAL, DEVICE_ID, F_DEFLATE_ON_OOM,
    F_FREE_PAGE_HINT, F_MUST_TELL_HOST, F_PAGE_POISON, F_PAGE_REPORTING, F_STATS_VQ, S_AVAIL, S_MEMFREE,
    S_MEMTOT, S_SWAP_IN, STAT_LEN,
};
use ringway_spec::feature::{ACCESS_PLATFORM, VERSION_1};
use ringway_spec::status::DeviceStatus;

const ALL: u64 =
    F_MUST_TELL_HOST | F_STATS_VQ | F_DEFLATE_ON_OOM | F_FREE_PAGE_HINT | F_PAGE_POISON | F_PAGE_REPORTING;
const POISON: u32 = 0xaaaa_aaaa;

/// Where pages to lend are: the test's own memory, which the device's side can look up.
const FREE: u64 = 0x4800_0000;

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    InBalloon,
    /// Taken back, to be filled with this.
    Back(Option<u32>),
}

/// The guest's pages, as far as it can spare them.
#[derive(Default)]
struct TestPages {
    /// By number, the pages that were given up.
    given: BTreeMap<u32, Page>,
    /// How many more can be spared, and lent.
    spare: u32,
    free: u32,
    lent: Vec<(Purpose, Option<u32>, PageRange)>,
    returned: Vec<(PageRange, Option<u32>)>,
}

impl TestPages {
    fn new(spare: u32, free: u32) -> Self {
        Self { spare, free, ..Self::default() }
    }

    fn in_balloon(&self) -> usize {
        self.given.values().filter(|page| **page == Page::InBalloon).count()
    }
}

// SAFETY: the pages do not exist.
unsafe impl Pages for TestPages {
    fn give_up(&mut self) -> Option<u32> {
        self.spare = self.spare.checked_sub(1)?;
        let mut back = self.given.iter().filter(|(_, page)| **page != Page::InBalloon);
        let pfn = back.next().map_or(self.given.len() as u32, |(pfn, _)| *pfn);
        self.given.insert(pfn, Page::InBalloon);
        Some(pfn)
    }

    fn take_back(&mut self, pfn: u32, fill: Option<u32>) {
        let before = self.given.insert(pfn, Page::Back(fill));
        assert_eq!(before, Some(Page::InBalloon), "page {pfn} was not given up");
        self.spare += 1;
    }

    fn lend(&mut self, purpose: Purpose, fill: Option<u32>) -> Option<PageRange> {
        self.free = self.free.checked_sub(1)?;
        let range = PageRange { addr: Gpa(FREE + self.lent.len() as u64 * 0x1_0000), len: 0x1_0000 };
        self.lent.push((purpose, fill, range));
        Some(range)
    }

    fn return_lent(&mut self, pages: PageRange, fill: Option<u32>) {
        self.returned.push((pages, fill));
    }
}

/// The device's side.
struct Host {
    fake: Fake,
    queues: BTreeMap<u16, DeviceQueue>,
    burst: Burst,
}

impl Host {
    fn set(&self, field: usize, value: u32) {
        self.fake.state().config[field..field + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn want(&self, pages: u32) {
        self.set(0, pages);
    }

    fn command(&self, id: u32) {
        self.set(8, id);
    }

    fn actual(&self) -> u32 {
        u32::from_le_bytes(self.fake.state().config[CONFIG_ACTUAL..][..4].try_into().unwrap())
    }

    /// Acknowledges the next chain of a queue, once `look` has seen it.
    fn take<R>(&mut self, index: u16, look: impl FnOnce(&Chain<'_>) -> R) -> Option<R> {
        let queue = self.queues.get_mut(&index).expect("the queue was set up");
        let chain = queue.next(&mut self.burst).unwrap()?;
        let seen = look(&chain);
        queue.complete(chain, 0);
        let _ = queue.publish();
        Some(seen)
    }

    /// What the driver wrote in the next chain of a queue; the device writes nothing there.
    fn read(&mut self, index: u16) -> Option<Vec<u8>> {
        self.take(index, |chain| {
            let mut bytes = vec![0; chain.readable().len()];
            chain.readable().read(&mut bytes);
            bytes
        })
    }

    /// The pages of the next request of the inflate or the deflate queue.
    fn pages(&mut self, index: u16) -> Option<Vec<u32>> {
        let bytes = self.read(index)?;
        Some(bytes.as_chunks().0.iter().map(|pfn| u32::from_le_bytes(*pfn)).collect())
    }

    fn has_request(&self, index: u16) -> bool {
        self.queues[&index].has_available()
    }
}

fn options() -> Options {
    Options { deflate_on_oom: true, hinting: true, reporting: true, ..Options::default() }
}

fn set_up(offered: u64, queues: usize, options: Options) -> (Host, Balloon<FakeTransport>) {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, DEVICE_ID, offered, queues);
    fake.state().config = vec![0; 16];
    let balloon = Balloon::new(transport, Arc::clone(&platform) as Arc<dyn Platform>, options).unwrap();
    let indices: Vec<_> = fake.state().queues.keys().copied().collect();
    let queues = indices.into_iter().map(|index| (index, fake.device_queue(index))).collect();
    (Host { fake, queues, burst: Burst::default() }, balloon)
}

/// [DRV-BALLOON-op-01] Pages go in until there are as many as the device wants; [DRV-BALLOON-op-09] those under way are not
/// used, and [DRV-BALLOON-op-10] not taken out again, before they are acknowledged; [DRV-BALLOON-op-11] after each request
/// the device is told how many there are.
#[test]
fn pages_go_in_until_there_are_enough() {
    for ring in RINGS {
        let (mut host, mut balloon) = set_up(ALL | ring, 5, options());
        let mut pages = TestPages::new(1000, 0);
        balloon.poll(&mut pages).unwrap();
        assert!(!host.has_request(0), "nothing is wanted");
        host.want(300);
        balloon.poll(&mut pages).unwrap();
        balloon.poll(&mut pages).unwrap();
        assert_eq!((pages.in_balloon(), balloon.actual(), host.actual()), (256, 0, 0));
        // The device thinks better of it, and has not acknowledged.
        host.want(0);
        balloon.poll(&mut pages).unwrap();
        assert!(!host.has_request(1));
        assert_eq!(pages.in_balloon(), 256);
        host.want(300);
        assert_eq!(host.pages(0).unwrap(), (0..256).collect::<Vec<_>>());
        balloon.poll(&mut pages).unwrap();
        assert_eq!((balloon.actual(), host.actual()), (256, 256));
        assert_eq!(host.pages(0).unwrap().len(), 44);
        balloon.poll(&mut pages).unwrap();
        assert_eq!((balloon.actual(), host.actual()), (300, 300));
        assert!(!host.has_request(0));
    }
}

/// [DRV-BALLOON-op-06] What is taken out is said by the deflate queue first, and [DRV-BALLOON-op-07] taken back when the device
/// has acknowledged that, when it wants fewer [DRV-BALLOON-op-02]; [DRV-BALLOON-op-04] no page is taken out while the device wants what is there, or more.
#[test]
fn pages_come_out_when_the_device_knows() {
    for ring in RINGS {
        for features in [ALL, ALL & !F_MUST_TELL_HOST, ALL & !F_DEFLATE_ON_OOM] {
            let (mut host, mut balloon) = set_up(features | ring, 5, options());
            let mut pages = TestPages::new(10, 0);
            host.want(20);
            balloon.poll(&mut pages).unwrap();
            host.pages(0).unwrap();
            for target in [20, 10] {
                host.want(target);
                balloon.poll(&mut pages).unwrap();
                assert!(!host.has_request(1), "{target} wanted, 10 there");
                assert_eq!(pages.in_balloon(), 10);
            }
            host.want(7);
            balloon.poll(&mut pages).unwrap();
            assert_eq!((pages.in_balloon(), host.actual()), (10, 10), "not acknowledged yet");
            let out = host.pages(1).unwrap();
            assert_eq!(out.len(), 3);
            balloon.poll(&mut pages).unwrap();
            assert_eq!((pages.in_balloon(), host.actual()), (7, 7));
            assert!(out.iter().all(|pfn| pages.given[pfn] == Page::Back(None)), "no fill was agreed on");
        }
    }
}

/// [DRV-BALLOON-op-05] A guest without memory takes pages out, if that was agreed on, and keeps them while the device wants what it wanted.
#[test]
fn a_guest_in_need_takes_pages_out() {
    let (host, mut balloon) = set_up(ALL & !F_DEFLATE_ON_OOM, 5, options());
    drop(host);
    let refused = balloon.release(1, &mut TestPages::new(1, 0));
    assert!(matches!(refused, Err(Error::NotNegotiated { feature: F_DEFLATE_ON_OOM })));

    let (mut host, mut balloon) = set_up(ALL, 5, options());
    let mut pages = TestPages::new(10, 0);
    host.want(10);
    balloon.poll(&mut pages).unwrap();
    assert!(matches!(balloon.release(4, &mut pages), Err(Error::TimedOut { .. })));
    host.pages(0).unwrap();
    let thread = std::thread::spawn(move || {
        while host.pages(1).is_none() {
            std::thread::yield_now();
        }
        host
    });
    assert_eq!(balloon.release(4, &mut pages).unwrap(), 4);
    let mut host = thread.join().unwrap();
    assert_eq!((pages.in_balloon(), host.actual()), (6, 6));
    balloon.poll(&mut pages).unwrap();
    assert!(!host.has_request(0), "they are in use");
    host.want(9);
    balloon.poll(&mut pages).unwrap();
    assert_eq!(host.pages(0).unwrap().len(), 3);
}

/// [DRV-BALLOON-features-01] `MUST_TELL_HOST` is accepted; [DRV-BALLOON-features-02] a poison only by a guest that has one;
/// [DRV-BALLOON-features-03] and then reporting only with it. Nobody translates page numbers.
#[test]
fn features_are_accepted_with_what_they_need() {
    let accepted = |offered, poison| {
        let options = Options { poison, ..options() };
        set_up(offered | ACCESS_PLATFORM, 5, options).1.features() & !VERSION_1
    };
    let wanted = F_MUST_TELL_HOST | F_DEFLATE_ON_OOM | F_FREE_PAGE_HINT | F_PAGE_REPORTING;
    assert_eq!(accepted(ALL, None), wanted);
    assert_eq!(accepted(ALL, Some(POISON)), wanted | F_PAGE_POISON);
    assert_eq!(accepted(ALL & !F_PAGE_POISON, Some(POISON)), wanted & !F_PAGE_REPORTING);
    assert_eq!(accepted(ALL & !F_PAGE_POISON, None), wanted);
    let none = set_up(ALL, 5, Options::default()).1.features();
    assert_eq!(none & !VERSION_1, F_MUST_TELL_HOST);
}

/// [DRV-BALLOON-page-poison-02] [DRV-BALLOON-page-poison-03] The device is told the poison once, before it is live;
/// [DRV-BALLOON-page-poison-01] the pages it gives back are filled with it.
#[test]
fn poison_is_said_first_and_filled_in_last() {
    let (mut host, mut balloon) = set_up(ALL, 5, Options { poison: Some(POISON), ..options() });
    let mut pages = TestPages::new(2, 0);
    host.want(2);
    balloon.poll(&mut pages).unwrap();
    host.pages(0).unwrap();
    host.want(0);
    balloon.poll(&mut pages).unwrap();
    host.pages(1).unwrap();
    balloon.poll(&mut pages).unwrap();
    assert!(pages.given.values().all(|back| *back == Page::Back(Some(POISON))), "{:?}", pages.given);
    let log = host.fake.take_log();
    let said: Vec<_> = (0..log.len())
        .filter(|at| matches!(log[*at], Done::WriteConfig(CONFIG_POISON_VAL, ref value) if *value == POISON.to_le_bytes()))
        .collect();
    let live = log
        .iter()
        .position(|done| matches!(done, Done::Status(status) if status.contains(DeviceStatus::DRIVER_OK)));
    assert!(said.len() == 1 && Some(said[0]) < live, "{said:?}, {live:?}");
}

/// [DRV-BALLOON-memory-statistics-02] One buffer is there from the start, [DRV-BALLOON-memory-statistics-03] another after each
/// that was used, [DRV-BALLOON-memory-statistics-01] and never a second one. Each has all statistics
/// [DRV-BALLOON-memory-statistics-04] [DRV-BALLOON-memory-statistics-08], and a good length
/// [DRV-BALLOON-memory-statistics-05]; which they are, and in what order, is the guest's to say
/// [DRV-BALLOON-memory-statistics-06] [DRV-BALLOON-memory-statistics-07].
#[test]
fn there_is_one_buffer_of_statistics() {
    for ring in RINGS {
        for tags in [vec![S_MEMTOT], vec![S_AVAIL, S_SWAP_IN, S_MEMFREE], vec![3, 2, 1, 0]] {
            let time = Arc::new(AtomicU64::new(7));
            let clock = Arc::clone(&time);
            let value = move |tag: u16| u64::from(tag) << 32 | clock.load(Ordering::Relaxed);
            let statistics = Some(Statistics { tags: tags.clone(), value: Box::new(value) });
            let (mut host, mut balloon) = set_up(ALL | ring, 5, Options { statistics, ..options() });
            assert_eq!(host.fake.kicks(2), 1);
            let mut pages = TestPages::default();
            for now in 7..10 {
                balloon.poll(&mut pages).unwrap();
                let bytes = host.read(2).expect("a buffer");
                assert!(bytes.len().is_multiple_of(6) && bytes.len().is_multiple_of(STAT_LEN));
                let said: Vec<(u16, u64)> = bytes
                    .chunks(STAT_LEN)
                    .map(|stat| {
                        let (tag, value) = stat.split_at(2);
                        (
                            u16::from_le_bytes(tag.try_into().unwrap()),
                            u64::from_le_bytes(value.try_into().unwrap()),
                        )
                    })
                    .collect();
                let due: Vec<_> = tags.iter().map(|tag| (*tag, u64::from(*tag) << 32 | now)).collect();
                assert_eq!(said[..due.len()], due);
                assert!(said[due.len()..].iter().all(|stat| *stat == due[due.len() - 1]), "{said:?}");
                assert!(!host.has_request(2), "only one");
                time.store(now + 1, Ordering::Relaxed);
            }
        }
    }
}

/// What comes by the queue of hints: a command, or how many bytes of pages.
fn hints(host: &mut Host) -> Vec<Result<u32, u32>> {
    let mut seen = Vec::new();
    while let Some(hint) = host.take(3, |chain| match chain.writable_len() {
        0 => {
            assert_eq!(chain.readable().len(), 4, "a command has 4 bytes");
            Ok(u32::from_le_bytes(chain.readable().read_array().unwrap()))
        }
        len => {
            assert!(chain.readable().is_empty());
            Err(len)
        }
    }) {
        seen.push(hint);
    }
    seen
}

/// [DRV-BALLOON-free-page-hinting-02] [DRV-BALLOON-free-page-hinting-03] A round begins with its ID, said once, in a buffer of
/// four bytes [DRV-BALLOON-free-page-hinting-01]; pages follow [DRV-BALLOON-free-page-hinting-04], and `STOP` when there are no
/// more [DRV-BALLOON-free-page-hinting-06]. They come back when the device says `DONE` [DRV-BALLOON-free-page-hinting-10] and not
/// before [DRV-BALLOON-free-page-hinting-09], as memory that holds anything [DRV-BALLOON-free-page-hinting-08].
#[test]
fn a_round_of_hints_is_by_the_book() {
    for ring in RINGS {
        let (mut host, mut balloon) = set_up(ALL | ring, 5, Options { poison: Some(POISON), ..options() });
        let mut pages = TestPages::new(0, 3);
        for idle in [CMD_ID_DONE, CMD_ID_STOP] {
            host.command(idle);
            balloon.poll(&mut pages).unwrap();
            assert_eq!(hints(&mut host), []);
        }
        host.command(5);
        for _ in 0..3 {
            balloon.poll(&mut pages).unwrap();
        }
        let page = Err(0x1_0000);
        assert_eq!(hints(&mut host), [Ok(5), page, page, page, Ok(CMD_ID_STOP)]);
        pages.free = 1;
        balloon.poll(&mut pages).unwrap();
        assert_eq!(hints(&mut host), [], "the round is over");
        host.command(6);
        balloon.poll(&mut pages).unwrap();
        assert_eq!(hints(&mut host), [Ok(6), page, Ok(CMD_ID_STOP)]);
        host.command(CMD_ID_STOP);
        balloon.poll(&mut pages).unwrap();
        assert_eq!(pages.returned, []);
        host.command(6);
        balloon.poll(&mut pages).unwrap();
        assert_eq!(hints(&mut host), [Ok(6), Ok(CMD_ID_STOP)], "the ID may come again");
        host.command(CMD_ID_DONE);
        balloon.poll(&mut pages).unwrap();
        let due: Vec<_> = pages.lent.iter().map(|(.., range)| (*range, None)).collect();
        assert_eq!((pages.returned.len(), &pages.returned), (4, &due));
    }
}

/// [DRV-BALLOON-free-page-hinting-05] A round that the device ends gets no more pages, however many there are; the next one begins
/// behind its end. A slow device holds the driver back.
#[test]
fn a_round_ends_when_the_device_says_so() {
    for ring in RINGS {
        for end in [CMD_ID_STOP, CMD_ID_DONE, 9] {
            let (mut host, mut balloon) = set_up(ALL | ring, 5, options());
            let mut pages = TestPages::new(0, 1000);
            host.command(8);
            balloon.poll(&mut pages).unwrap();
            balloon.poll(&mut pages).unwrap();
            let seen = hints(&mut host);
            assert_eq!((seen.len(), seen[0], seen[62]), (63, Ok(8), Err(0x1_0000)));
            host.command(end);
            balloon.poll(&mut pages).unwrap();
            let seen = hints(&mut host);
            assert_eq!(seen[0], Ok(CMD_ID_STOP));
            assert_eq!(seen.get(1), (end == 9).then_some(&Ok(9)), "{seen:?}");
            assert_eq!(seen.len() > 2, end == 9);
        }
    }
}

/// [DRV-BALLOON-free-page-reporting-03] Reported pages come back when the device has acknowledged the report;
/// [DRV-BALLOON-free-page-reporting-01] without a poison, as memory that holds anything;
/// [DRV-BALLOON-free-page-reporting-02] with one they are filled before. [DRV-BALLOON-free-page-reporting-05] A report is of
/// ranges as large as they are lent, many at once; the driver knows no more of them than where they are
/// [DRV-BALLOON-free-page-reporting-06].
#[test]
fn reported_pages_come_back_when_the_device_knows() {
    for ring in RINGS {
        for poison in [None, Some(POISON)] {
            let (mut host, mut balloon) = set_up(ALL | ring, 5, Options { poison, ..options() });
            let mut pages = TestPages::new(0, 40);
            assert_eq!(balloon.report(&mut pages).unwrap(), 32);
            assert_eq!(balloon.report(&mut pages).unwrap(), 0, "one is under way");
            balloon.poll(&mut pages).unwrap();
            assert_eq!(pages.returned, []);
            let seen = host.take(4, |chain| (chain.readable().len(), chain.writable_len()));
            assert_eq!(seen, Some((0, 32 * 0x1_0000)));
            assert_eq!(balloon.report(&mut pages).unwrap(), 8);
            assert!(
                pages.lent.iter().all(|(purpose, fill, _)| (*purpose, *fill) == (Purpose::Report, poison))
            );
            let due: Vec<_> = pages.lent[..32].iter().map(|(.., range)| (*range, poison)).collect();
            assert_eq!(pages.returned, due);
        }
    }
}

/// A device that numbers its queues without gaps is understood.
#[test]
fn the_queue_of_reports_is_found() {
    let options = Options { reporting: true, ..Options::default() };
    let (mut host, mut balloon) = set_up(F_PAGE_REPORTING, 4, options);
    assert_eq!(balloon.report(&mut TestPages::new(0, 1)).unwrap(), 1);
    assert_eq!(host.take(3, |chain| chain.writable().len()), Some(0x1_0000));
}

/// When the device is stopped all pages come back, wherever they were.
#[test]
fn a_balloon_that_is_stopped_gives_all_back() {
    let (mut host, mut balloon) = set_up(ALL, 5, options());
    let mut pages = TestPages::new(400, 2);
    host.want(400);
    balloon.poll(&mut pages).unwrap();
    host.pages(0).unwrap();
    host.command(4);
    balloon.poll(&mut pages).unwrap();
    pages.free = 1;
    assert_eq!(balloon.report(&mut pages).unwrap(), 1);
    assert_eq!((pages.in_balloon(), pages.returned.len()), (400, 0));
    balloon.stop(&mut pages).unwrap();
    assert_eq!((pages.in_balloon(), pages.returned.len()), (0, 3));
}

#[derive(Debug, Clone)]
enum Step {
    Want(u32),
    Command(u32),
    Acknowledge(u16),
    Report,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => prop_oneof![0..600_u32, any::<u32>()].prop_map(Step::Want),
        2 => prop_oneof![0..5_u32, any::<u32>()].prop_map(Step::Command),
        6 => (0..5_u16).prop_map(Step::Acknowledge),
        1 => Just(Step::Report),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// Whatever a device wants, and whatever it acknowledges when: no page is in two places, what the device is told is what it
    /// has acknowledged, and rounds of hints have a beginning, pages and an end, in this order.
    #[test]
    fn any_device_is_survived(steps in steps()) {
        let (mut host, mut balloon) = set_up(ALL, 5, options());
        let mut pages = TestPages::new(500, 100);
        let (mut inside, mut round) = (0, CMD_ID_STOP);
        for step in steps {
            match step {
                Step::Want(target) => host.want(target),
                Step::Command(id) => host.command(id),
                Step::Acknowledge(index @ (0 | 1)) => {
                    let moved = host.pages(index).map_or(0, |pages| pages.len());
                    inside = if index == 0 { inside + moved } else { inside - moved };
                }
                Step::Acknowledge(3) => {
                    for hint in hints(&mut host) {
                        match hint {
                            Ok(CMD_ID_STOP) => prop_assert_ne!(std::mem::take(&mut round), CMD_ID_STOP),
                            Ok(id) => prop_assert_eq!(std::mem::replace(&mut round, id), CMD_ID_STOP),
                            Err(_) => prop_assert_ne!(round, CMD_ID_STOP),
                        }
                    }
                }
                Step::Acknowledge(4) => {
                    host.take(4, |_| ());
                }
                Step::Acknowledge(_) => {}
                Step::Report => {
                    balloon.report(&mut pages).unwrap();
                }
            }
            balloon.poll(&mut pages).unwrap();
            prop_assert_eq!(balloon.actual() as usize, inside);
            prop_assert_eq!(host.actual(), balloon.actual());
            prop_assert!(pages.in_balloon() >= inside);
        }
        balloon.stop(&mut pages).unwrap();
        prop_assert_eq!((pages.in_balloon(), pages.returned.len()), (0, pages.lent.len()));
    }
}
