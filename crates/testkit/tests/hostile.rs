//! The fuzz targets' functions where no fuzzer is, with the inputs that fuzzers found and with seeded ones.
//! `PROPTEST_CASES` says how many of these are run instead; one that fails is printed, smaller.

use std::fs;
use std::panic::{catch_unwind, resume_unwind};

use proptest::prelude::*;
use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable};
use ringway_queue::{Areas, DriverConfig, DriverError, DriverQueue, ResumeState, Segment};
use ringway_spec::feature::{IN_ORDER, RING_PACKED};
use ringway_spec::{packed, split};
use ringway_testkit::hostile;

type Target = fn(&[u8]);

/// More than a ring of 64 descriptors and whoever looks at it hold at any time, with bursts of 4096 slices and lists
/// that grow by doubling.
const MAX_BYTES: u64 = 512 << 10;

/// Bytes as a fuzzer has them: small numbers more often than others, and the same again and again.
fn bytes(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => any::<u8>(), 2 => 0u8..16, 1 => Just(0), 1 => 250u8..=255];
    prop::collection::vec(byte, 0..len)
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    // The case that fails is in the message; nothing is written to the sources.
    ProptestConfig { cases: cases.unwrap_or(3000), failure_persistence: None, ..ProptestConfig::default() }
}

/// Runs a target, which may not make a queue allocate more and more.
fn run(target: Target, data: &[u8]) {
    let mut result = Ok(());
    // The counter does not bear a panic.
    let used = allocation_counter::measure(|| result = catch_unwind(|| target(data)));
    result.unwrap_or_else(|panic| resume_unwind(panic));
    assert!(used.bytes_max < MAX_BYTES, "{} bytes were in use", used.bytes_max);
}

/// What is kept in `fuzz/corpus`: it goes deeper than chance, and has been where something was found.
#[test]
fn corpus() {
    let targets: [(&str, Target); 9] = [
        ("session", hostile::session),
        ("split_device", hostile::split_device),
        ("packed_device", hostile::packed_device),
        ("split_driver", hostile::split_driver),
        ("packed_driver", hostile::packed_driver),
        ("pair", hostile::pair),
        ("segmenter", hostile::segmenter),
        ("blk", hostile::blk),
        ("registers", hostile::registers),
    ];
    for (name, target) in targets {
        let folder = format!("{}/../../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for file in fs::read_dir(&folder).expect(&folder) {
            let path = file.expect("an entry").path();
            println!("{}", path.display());
            run(target, &fs::read(&path).expect("an input"));
            count += 1;
        }
        assert!(count >= 10, "{folder} has {count} inputs");
    }
}

/// A driver's queue of eight descriptors with no device, whose part a test plays.
struct Lonely {
    queue: DriverQueue<u32>,
    areas: Areas,
}

impl Lonely {
    fn new(features: u64) -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(0x1000).expect("its length");
        let region = Mapping::region(file.into(), 0, 0x1000, Gpa(0), FrontendVa(0)).expect("a region");
        let memory = MemoryTable::new(vec![region]).expect("a table");
        let at = [0, 0x400, 0x800].map(FrontendVa);
        let areas = || Areas::resolve(&memory, 8, features, at[0], at[1], at[2]).expect("areas");
        let start = ResumeState::start(features);
        let config = DriverConfig { size: 8, features, areas: areas(), start, max_chain: 8, tables: None };
        Self { queue: DriverQueue::new(config).expect("a queue"), areas: areas() }
    }

    fn add(&mut self, owner: u32) {
        self.queue.add(&[Segment { addr: Gpa(0xc00), len: 16 }], &[], owner).expect("room");
    }

    /// The device of a split ring writes its first used entry, and the used index.
    fn use_split(&self, id: u32, idx: u16) {
        self.areas.device.store_u32(split::RING, id);
        self.areas.device.store_u16(split::IDX, idx);
    }

    /// The device of a packed ring writes its first used descriptor.
    fn use_packed(&self, id: u16) {
        let flags = packed::DESC_F_AVAIL | packed::DESC_F_USED;
        self.areas.descriptor.store_u64(packed::TAIL, packed::tail(0, id, flags));
    }
}

/// A chain that is given back before the device is shown it would be shown all the same, later.
#[test]
fn a_chain_is_used_before_it_was_published() {
    for features in [0, RING_PACKED] {
        let mut driver = Lonely::new(features);
        driver.add(100);
        let _ = driver.queue.publish();
        driver.add(101);
        if features == RING_PACKED {
            driver.use_packed(1);
        } else {
            driver.use_split(1, 1);
        }
        assert_eq!(driver.queue.reclaim(), Err(DriverError::NotInFlight { id: 1 }));
        assert_eq!(driver.queue.reset(|| true).ok(), Some(vec![100, 101]));
    }
}

/// Nobody sleeps over an error: the used index tells of one chain, its entry of a batch of three.
#[test]
fn a_batch_goes_past_the_used_index() {
    let mut driver = Lonely::new(IN_ORDER);
    for owner in 100..103 {
        driver.add(owner);
    }
    let _ = driver.queue.publish();
    driver.use_split(2, 1);
    let first = driver.queue.reclaim().expect("the batch's first chain");
    assert_eq!(first.map(|used| used.owner), Some(100));
    assert!(driver.queue.arm());
    assert_eq!(driver.queue.reclaim(), Err(DriverError::BatchTooLong { id: 2 }));
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn session(data in bytes(600)) {
        run(hostile::session, &data);
    }

    #[test]
    fn split_device(data in bytes(256)) {
        run(hostile::split_device, &data);
    }

    #[test]
    fn packed_device(data in bytes(256)) {
        run(hostile::packed_device, &data);
    }

    #[test]
    fn split_driver(data in bytes(256)) {
        run(hostile::split_driver, &data);
    }

    #[test]
    fn packed_driver(data in bytes(256)) {
        run(hostile::packed_driver, &data);
    }

    #[test]
    fn pair(data in bytes(256)) {
        run(hostile::pair, &data);
    }

    #[test]
    fn segmenter(data in bytes(256)) {
        run(hostile::segmenter, &data);
    }

    #[test]
    fn blk(data in bytes(256)) {
        run(hostile::blk, &data);
    }

    #[test]
    fn registers(data in bytes(256)) {
        run(hostile::registers, &data);
    }
}
