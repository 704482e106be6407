//! The disk's driver: what it asks, what it does not ask, and what it makes of answers.

mod blk_disk;
mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blk_disk::{Asked, Disk, Patient, config, serve};
use common::{Event, Fake, FakeTransport, RINGS, TestPlatform};
use ringway_driver::blk::{
    Blk, BlkError, Completion, Failure, Operation, Options, Properties, Range, RangeLimits,
};
use ringway_driver::{Error, Interrupt, QueueOptions};
use ringway_memory::{FrontendVa, SharedBuf};
use ringway_queue::{AddError, Burst, DriverError};
use ringway_spec::blk::{self, S_IOERR, S_OK, S_UNSUPP};
use ringway_spec::status::DeviceStatus;
use zerocopy::IntoBytes;

/// How ranges are asked for.
type Kind = for<'a> fn(&'a [Range]) -> Operation<'a>;
/// What is wrong with a configuration.
type Flaw<'a> = &'a dyn Fn(&mut blk::Config);

/// Sectors of the disk, unless a test says otherwise.
const CAPACITY: u64 = 2048;
const ALL: u64 = blk::F_SIZE_MAX
    | blk::F_SEG_MAX
    | blk::F_GEOMETRY
    | blk::F_BLK_SIZE
    | blk::F_FLUSH
    | blk::F_TOPOLOGY
    | blk::F_CONFIG_WCE
    | blk::F_MQ
    | blk::F_DISCARD
    | blk::F_WRITE_ZEROES
    | blk::F_LIFETIME
    | blk::F_SECURE_ERASE;
const NO_LIMITS: u64 = ALL & !(blk::F_SIZE_MAX | blk::F_SEG_MAX | blk::F_BLK_SIZE);

type Driver = Blk<FakeTransport>;

/// A disk that offers these features and has this configuration, not set up yet.
fn offered(features: u64, config: &blk::Config) -> (Fake, FakeTransport, Arc<TestPlatform>) {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, blk::DEVICE_ID, features, 4);
    fake.state().config = config.as_bytes().to_vec();
    (fake, transport, platform)
}

fn live_with(features: u64, config: &blk::Config, options: Options) -> (Fake, Driver) {
    let (fake, transport, platform) = offered(features, config);
    (fake, Blk::new(transport, Patient::new(&platform), options).unwrap())
}

fn live(features: u64) -> (Fake, Driver) {
    live_with(features, &config(CAPACITY), Options::default())
}

fn buffer(driver: &mut Driver, len: u32) -> SharedBuf {
    driver.buffers(1, len).unwrap().pop().unwrap()
}

/// Submits with a buffer of this length, none if it is 0.
fn submit(driver: &mut Driver, operation: Operation<'_>, len: u32, token: u64) -> Result<(), BlkError> {
    let buffer = (len > 0).then(|| buffer(driver, len));
    driver.submit(0, operation, buffer, token).map_err(|refused| {
        assert_eq!(refused.buffer.map_or(0, |buffer| buffer.len()), len, "it comes back");
        refused.error
    })
}

fn complete(driver: &mut Driver) -> Completion {
    driver.complete(0).unwrap().expect("a request that is complete")
}

/// [DRV-BLK-op-04] [DRV-BLK-op-05] [DRV-BLK-op-06] [DRV-BLK-op-07] [DRV-BLK-op-08] [DRV-BLK-op-14] [DRV-BLK-init-01]
/// Every request as the device has it, in both ring formats: its header, its data, room for its answer. A status is in none
/// of them before the device writes one.
#[test]
fn requests_are_by_the_book() {
    let one = [Range { sector: 8, count: 16 }];
    let two = [one[0], Range { sector: 100, count: 4 }];
    let segment = |sector: u64, count: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let both = |flags| [segment(8, 16, flags), segment(100, 4, flags)].concat();
    let cases = [
        (Operation::Read { sector: 3, len: 1024 }, 1024, blk::T_IN, 3, Vec::new(), 1024),
        (Operation::Write { sector: 5, len: 512 }, 4096, blk::T_OUT, 5, vec![0; 512], 0),
        (Operation::Flush, 0, blk::T_FLUSH, 0, Vec::new(), 0),
        (Operation::Id, 64, blk::T_GET_ID, 0, Vec::new(), 20),
        (Operation::Lifetime, 6, blk::T_GET_LIFETIME, 0, Vec::new(), 6),
        (Operation::Discard(&two), 32, blk::T_DISCARD, 0, both(0), 0),
        (
            Operation::WriteZeroes { ranges: &one, unmap: false },
            64,
            blk::T_WRITE_ZEROES,
            0,
            segment(8, 16, 0),
            0,
        ),
        (Operation::WriteZeroes { ranges: &two, unmap: true }, 32, blk::T_WRITE_ZEROES, 0, both(1), 0),
        (Operation::SecureErase(&one), 16, blk::T_SECURE_ERASE, 0, segment(8, 16, 0), 0),
    ];
    for rings in RINGS {
        let (fake, mut driver) = live(NO_LIMITS | rings);
        let mut queue = fake.device_queue(0);
        for (token, (operation, len, kind, sector, data, room)) in (0..).zip(&cases) {
            submit(&mut driver, *operation, *len, token).unwrap();
            driver.publish(0);
            let asked = blk_disk::one(&mut queue, |asked| (S_OK, vec![7; asked.room]));
            let expected =
                Asked { kind: *kind, sector: *sector, data: data.clone(), room: *room, status: 0xff };
            assert_eq!(asked, expected, "{operation:?}");
            let done = complete(&mut driver);
            assert_eq!((done.token, done.result), (token, Ok(())), "{operation:?}");
            assert_eq!(done.buffer.as_ref().map_or(0, SharedBuf::len), *len);
            if *room > 0 {
                let mut bytes = vec![0; *room];
                done.buffer.unwrap().read(&mut bytes);
                assert!(bytes.iter().all(|byte| *byte == 7), "{operation:?}");
            }
        }
        assert!(driver.complete(0).unwrap().is_none());
    }
}

/// [DRV-BLK-op-02] [DRV-BLK-op-06] What is past the end, not in whole blocks, or has no room in its buffer is refused, and
/// nothing goes out.
#[test]
fn what_cannot_be_is_not_asked() {
    let read = |sector, len| Operation::Read { sector, len };
    let write = |sector, len| Operation::Write { sector, len };
    let (fake, mut driver) = live(NO_LIMITS);
    for (operation, len) in [
        (read(CAPACITY - 1, 1024), 1024),
        (write(CAPACITY, 512), 512),
        (read(u64::MAX, 512), 512),
        (write(u64::MAX / 512, 1024), 1024),
        (Operation::Discard(&[Range { sector: CAPACITY - 1, count: 2 }]), 16),
        (Operation::Discard(&[Range { sector: 0, count: 1 }, Range { sector: u64::MAX, count: 1 }]), 32),
    ] {
        let error = submit(&mut driver, operation, len, 0).unwrap_err();
        assert!(matches!(error, BlkError::OutOfRange { capacity: CAPACITY, .. }), "{operation:?} {error}");
    }
    for (operation, len) in [
        (read(0, 511), 512),
        (write(0, 513), 1024),
        (read(0, 0), 0),
        (Operation::Discard(&[]), 16),
        (Operation::Discard(&[Range { sector: 0, count: 0 }]), 16),
    ] {
        let error = submit(&mut driver, operation, len, 0).unwrap_err();
        assert!(matches!(error, BlkError::Unaligned { block_size: 512, .. }), "{operation:?} {error}");
    }
    for (operation, len, wanted) in [
        (read(0, 1024), 512, 1024),
        (write(0, 512), 0, 512),
        (Operation::Flush, 512, 0),
        (Operation::Id, 19, 20),
        (Operation::Discard(&[Range { sector: 0, count: 1 }]), 15, 16),
    ] {
        let error = submit(&mut driver, operation, len, 0).unwrap_err();
        assert!(matches!(error, BlkError::Buffer { wanted: w, .. } if w == wanted), "{operation:?} {error}");
    }
    let mut block = [0; 600];
    assert!(matches!(driver.read_blocks(0, &mut block), Err(BlkError::Unaligned { len: 600, .. })));
    assert!(matches!(driver.write_blocks(CAPACITY, &block[..512]), Err(BlkError::OutOfRange { .. })));
    let error = driver.submit(1, read(0, 512), Some(buffer_of(&fake)), 0).err().unwrap();
    assert!(matches!(error.error, BlkError::Device(Error::NoQueue { index: 1 })) && error.buffer.is_some());
    driver.publish(0);
    assert!(!fake.device_queue(0).has_available());

    // Blocks of 4096 bytes.
    let mut large = config(CAPACITY);
    large.blk_size.set(4096);
    let (_, mut driver) = live_with(blk::F_BLK_SIZE, &large, Options::default());
    for (sector, len) in [(1, 4096), (0, 512), (8, 4608)] {
        let error = submit(&mut driver, read(sector, len), 8192, 0).unwrap_err();
        assert!(matches!(error, BlkError::Unaligned { block_size: 4096, .. }), "{error}");
    }
    submit(&mut driver, read(8, 8192), 8192, 0).unwrap();
}

/// A buffer that another driver made: here it is only to come back.
fn buffer_of(_: &Fake) -> SharedBuf {
    let (_, mut other) = live(0);
    buffer(&mut other, 512)
}

/// [DRV-BLK-op-09] [DRV-BLK-op-10] [DRV-BLK-op-11] As many ranges as the disk takes go out, of as many sectors each, and
/// not one more.
#[test]
fn ranges_are_limited() {
    let mut limited = config(CAPACITY);
    limited.max_discard_seg.set(3);
    limited.max_write_zeroes_seg.set(2);
    limited.max_secure_erase_seg.set(1);
    for sectors in [
        &mut limited.max_discard_sectors,
        &mut limited.max_write_zeroes_sectors,
        &mut limited.max_secure_erase_sectors,
    ] {
        sectors.set(64);
    }
    let (_, mut driver) = live_with(NO_LIMITS, &limited, Options::default());
    let ranges = |len: usize, count: u32| vec![Range { sector: 0, count }; len];
    let kinds: [(Kind, usize); 3] = [
        (|ranges| Operation::Discard(ranges), 3),
        (|ranges| Operation::WriteZeroes { ranges, unmap: true }, 2),
        (|ranges| Operation::SecureErase(ranges), 1),
    ];
    for (kind, max) in kinds {
        submit(&mut driver, kind(&ranges(max, 64)), 64, 0).unwrap();
        let error = submit(&mut driver, kind(&ranges(max + 1, 1)), 64, 0).unwrap_err();
        assert!(
            matches!(error, BlkError::TooLarge { what: "ranges", max: m, .. } if m as usize == max),
            "{error}"
        );
        let error = submit(&mut driver, kind(&ranges(1, 65)), 64, 0).unwrap_err();
        assert!(matches!(error, BlkError::TooLarge { what: "sectors", asked: 65, max: 64 }), "{error}");
    }
    // They are data of a request, of which there can be no more than the segments that a device takes.
    let mut small = config(CAPACITY);
    small.size_max.set(16);
    small.max_discard_seg.set(u32::MAX);
    let (_, mut driver) = live_with(ALL, &small, Options::default());
    assert_eq!(driver.max_request(), 512);
    submit(&mut driver, Operation::Discard(&ranges(32, 8)), 1024, 0).unwrap();
    let error = submit(&mut driver, Operation::Discard(&ranges(33, 8)), 1024, 0).unwrap_err();
    assert!(matches!(error, BlkError::TooLarge { what: "ranges", asked: 33, max: 32 }), "{error}");
    // Limits of nothing: whatever is asked is too much, and no call goes round in circles.
    let mut nothing = config(CAPACITY);
    nothing.max_discard_sectors.set(0);
    let (_, mut driver) = live_with(NO_LIMITS, &nothing, Options::default());
    assert!(matches!(driver.discard(0, 8), Err(BlkError::TooLarge { max: 0, .. })));
}

/// [DRV-BLK-init-04] [DRV-BLK-init-05] [DRV-BLK-op-03] [DRV-CORE-device-configuration-space-02] All is accepted that is understood, zones are not. The configuration
/// is read after `FEATURES_OK`, and nothing of it that belongs to what was not negotiated.
#[test]
fn features_and_configuration() {
    let mut all = config(CAPACITY);
    all.size_max.set(8192);
    all.seg_max.set(5);
    all.geometry = [4, 1, 16, 63];
    all.blk_size.set(4096);
    (all.physical_block_exp, all.alignment_offset) = (1, 2);
    all.min_io_size.set(3);
    all.opt_io_size.set(4);
    all.num_queues.set(2);
    all.writeback = 0;
    let (fake, mut driver) = live_with(ALL | blk::F_RO | blk::F_ZONED, &all, Options::default());
    assert_eq!(driver.features() & ((1 << 24) - 1), ALL | blk::F_RO);
    let is_features_ok =
        |event: &Event| matches!(event, Event::Status(status) if status.contains(DeviceStatus::FEATURES_OK));
    let log = fake.take_log();
    let reads = |log: &[Event]| log.iter().filter(|event| matches!(event, Event::ReadConfig(..))).count();
    let ok = log.iter().position(is_features_ok).unwrap();
    assert_eq!(reads(&log[..ok]), 0, "{log:?}");
    assert!(reads(&log[ok..]) > 15, "{log:?}");
    let Properties { geometry, topology, .. } = *driver.properties();
    let (geometry, topology) = (geometry.unwrap(), topology.unwrap());
    assert_eq!((geometry.cylinders, geometry.heads, geometry.sectors), (260, 16, 63));
    assert_eq!((topology.physical_block_exp, topology.alignment_offset), (1, 2));
    assert_eq!((topology.min_io_size, topology.opt_io_size), (3, 4));
    let expected = Properties {
        capacity: CAPACITY,
        block_size: 4096,
        max_segment: 8192,
        max_segments: 5,
        geometry: Some(geometry),
        topology: Some(topology),
        writeback: false,
        read_only: true,
        queues: 2,
        discard: Some(RangeLimits { sectors: 1024, ranges: 8, alignment: 8 }),
        write_zeroes: Some(RangeLimits { sectors: 1024, ranges: 8, alignment: 1 }),
        zeroes_may_unmap: true,
        secure_erase: Some(RangeLimits { sectors: 1024, ranges: 8, alignment: 8 }),
    };
    assert_eq!(*driver.properties(), expected);
    assert_eq!(driver.max_request(), 5 * 8192);
    // A disk that is not to be written to is not asked to.
    for operation in [
        Operation::Write { sector: 0, len: 4096 },
        Operation::Discard(&[Range { sector: 0, count: 8 }]),
        Operation::SecureErase(&[Range { sector: 0, count: 8 }]),
    ] {
        assert!(matches!(submit(&mut driver, operation, 4096, 0), Err(BlkError::ReadOnly)));
    }

    let (fake, mut driver) = live(0);
    let read: Vec<_> = fake
        .take_log()
        .into_iter()
        .filter_map(|event| if let Event::ReadConfig(at, len) = event { Some((at, len)) } else { None })
        .collect();
    assert_eq!(read, [(0, 4), (4, 4)]);
    assert_eq!(driver.properties().discard, None);
    for operation in
        [Operation::Flush, Operation::Lifetime, Operation::Discard(&[Range { sector: 0, count: 1 }])]
    {
        let len = if operation == Operation::Flush { 0 } else { 512 };
        let error = submit(&mut driver, operation, len, 0).unwrap_err();
        assert!(matches!(error, BlkError::Device(Error::NotNegotiated { .. })), "{operation:?} {error}");
    }
}

/// What a driver cannot work with ends its initialization; the device is told.
#[test]
fn impossible_configurations() {
    let with = |change: Flaw<'_>| {
        let mut config = config(CAPACITY);
        change(&mut config);
        let (fake, transport, platform) = offered(ALL, &config);
        (Blk::new(transport, platform, Options::default()).err(), fake)
    };
    let changes: [(Flaw<'_>, &str); 4] = [
        (&|c| c.blk_size.set(0), "block size"),
        (&|c| c.blk_size.set(513), "block size"),
        (&|c| c.num_queues.set(0), "num_queues"),
        (&|c| c.size_max.set(1), "size_max for its block size"),
    ];
    for (change, field) in changes {
        let (error, fake) = with(change);
        assert!(matches!(error, Some(Error::BadConfig { what }) if what == field), "{field}: {error:?}");
        assert!(fake.state().queues.is_empty(), "{field}: reset");
        assert_eq!(fake.state().log.last(), Some(&Event::Status(DeviceStatus::FAILED)), "{field}");
    }
    // Of segments nothing is said, or that there is to be one.
    let mut silent = config(CAPACITY);
    silent.size_max.set(0);
    silent.seg_max.set(0);
    let (_, driver) = live_with(ALL, &silent, Options::default());
    let Properties { max_segment, max_segments, .. } = *driver.properties();
    assert_eq!((max_segment, max_segments), (u32::MAX, 1));
    let (fake, transport, platform) = offered(0, &config(CAPACITY));
    fake.state().queue_sizes = vec![2];
    let small = Blk::new(transport, platform, Options::default()).err();
    assert!(matches!(small, Some(Error::BadConfig { what: "queue size" })), "{small:?}");
}

/// [DRV-BLK-init-02] [DRV-BLK-init-03] A disk that can be flushed needs it, unless it says that it does not; one that cannot
/// is stable at once, and a flush of it is nothing to ask.
#[test]
fn cache_modes_are_deduced() {
    for (features, mode, writeback) in [
        (0, 1, false),
        (blk::F_FLUSH, 0, true),
        (blk::F_FLUSH | blk::F_CONFIG_WCE, 0, false),
        (blk::F_FLUSH | blk::F_CONFIG_WCE, 1, true),
        // Without the flush that it requires the switch is not accepted.
        (blk::F_CONFIG_WCE, 1, false),
    ] {
        let (fake, driver) =
            live_with(features, &blk::Config { writeback: mode, ..config(CAPACITY) }, Options::default());
        assert_eq!(driver.properties().writeback, writeback, "{features:#x} {mode}");
        assert_eq!(
            fake.state().accepted & blk::F_CONFIG_WCE != 0,
            features == blk::F_FLUSH | blk::F_CONFIG_WCE
        );
    }
    let (fake, mut driver) = live(0);
    driver.flush().unwrap();
    assert!(!fake.device_queue(0).has_available());
}

/// [DRV-BLK-op-12] [DRV-BLK-op-13] The driver switches the cache mode by its field, and after the switch to writethrough
/// flushes what was written before.
#[test]
fn cache_modes_are_switched() {
    let (fake, mut driver) = live(blk::F_FLUSH | blk::F_CONFIG_WCE);
    let disk = serve(&fake, 0, Disk::new(CAPACITY));
    fake.take_log();
    driver.set_writeback(false).unwrap();
    assert!(!driver.properties().writeback);
    driver.set_writeback(true).unwrap();
    assert!(driver.properties().writeback);
    let written: Vec<_> =
        fake.take_log().into_iter().filter(|event| matches!(event, Event::WriteConfig(..))).collect();
    let write = |value| Event::WriteConfig(blk::CONFIG_WRITEBACK, vec![value]);
    assert_eq!(written, [write(0), write(1)]);
    assert_eq!(disk.end().kinds(), [blk::T_FLUSH]);
    let (_, mut driver) = live(blk::F_FLUSH);
    assert!(matches!(driver.set_writeback(false), Err(BlkError::Device(Error::NotNegotiated { .. }))));
}

/// [DRV-BLK-op-01] When the configuration has changed, so has what may be read.
#[test]
fn a_disk_grows_and_shrinks() {
    let (fake, mut driver) = live(0);
    let last = Operation::Read { sector: CAPACITY, len: 512 };
    assert!(submit(&mut driver, last, 512, 0).is_err());
    fake.state().config[..8].copy_from_slice(&(CAPACITY + 1).to_le_bytes());
    fake.state().interrupt = Interrupt::QUEUE;
    assert_eq!(driver.interrupt().unwrap(), Interrupt::QUEUE);
    assert!(submit(&mut driver, last, 512, 0).is_err());
    fake.state().interrupt = Interrupt::CONFIG;
    assert_eq!(driver.interrupt().unwrap(), Interrupt::CONFIG);
    submit(&mut driver, last, 512, 0).unwrap();
    assert!(!driver.refresh().unwrap());
    fake.state().config[..8].copy_from_slice(&1u64.to_le_bytes());
    assert!(driver.refresh().unwrap());
    assert!(submit(&mut driver, Operation::Read { sector: 1, len: 512 }, 512, 0).is_err());
    fake.state().interrupt = Interrupt::CONFIG;
    fake.state().status |= DeviceStatus::DEVICE_NEEDS_RESET;
    assert!(matches!(driver.interrupt(), Err(Error::NeedsReset)));
}

/// [DRV-BLK-op-16] What the device says is done is done only if it says so by a status that there is, and wrote what was
/// asked. Of a request that failed nothing is taken for done.
#[test]
fn answers_are_checked() {
    for rings in RINGS {
        let (fake, mut driver) = live(NO_LIMITS | rings);
        let mut queue = fake.device_queue(0);
        let ranges = [Range { sector: 0, count: 8 }, Range { sector: 8, count: 8 }];
        let read = Operation::Read { sector: 0, len: 1024 };
        let discard = Operation::Discard(&ranges);
        for (operation, status, written, result) in [
            (read, Some(S_OK), 1025, Ok(())),
            (read, Some(S_OK), 1024, Err(Failure::Short { written: 1024, wanted: 1025 })),
            (read, Some(S_OK), 0, Err(Failure::Short { written: 0, wanted: 1025 })),
            (read, None, 1025, Err(Failure::Status(0xff))),
            (read, Some(3), 1025, Err(Failure::Status(3))),
            (read, Some(S_IOERR), 1025, Err(Failure::Io)),
            (read, Some(S_UNSUPP), 1, Err(Failure::Unsupported)),
            (discard, Some(S_OK), 0, Err(Failure::Short { written: 0, wanted: 1 })),
            (discard, Some(S_IOERR), 1, Err(Failure::Io)),
            (discard, None, 1, Err(Failure::Status(0xff))),
        ] {
            submit(&mut driver, operation, 1024, 9).unwrap();
            driver.publish(0);
            blk_disk::answer(&mut queue, status, written);
            let done = complete(&mut driver);
            assert_eq!((done.token, done.result), (9, result), "{operation:?}");
            assert!(done.buffer.is_some());
        }
    }
}

/// A device that uses what it was not given costs an error that stays; the buffers that it has come back by a reset.
#[test]
fn a_device_that_breaks_its_queue() {
    let (fake, transport, platform) = offered(0, &config(CAPACITY));
    let memory = platform.memory();
    let mut driver = Blk::new(transport, platform, Options::default()).unwrap();
    submit(&mut driver, Operation::Read { sector: 0, len: 512 }, 512, 1).unwrap();
    driver.publish(0);
    let used = FrontendVa(fake.state().queues[&0].device.0);
    let used = memory.area(used, 12, 4).unwrap();
    used.store_u32(4, 77);
    used.store_u32(8, 513);
    used.store_u16_release(2, 1);
    for _ in 0..2 {
        let error = driver.complete(0).err().expect("an error");
        assert!(matches!(error, Error::Device(DriverError::NotInFlight { id: 77 })), "{error}");
    }
    assert!(matches!(driver.read_blocks(0, &mut [0; 512]), Err(BlkError::Device(Error::Device(_)))));
    let (buffers, _transport) = driver.stop().unwrap();
    assert_eq!(buffers.iter().map(SharedBuf::len).collect::<Vec<_>>(), [512]);
}

/// A buffer is cut at the device's largest segment, and refused if it takes more of them than the device does.
#[test]
fn data_is_cut_into_segments() {
    let mut limited = config(CAPACITY);
    limited.size_max.set(1536);
    limited.seg_max.set(3);
    for rings in RINGS {
        let options =
            Options { queue: QueueOptions { table_entries: 5, ..Default::default() }, ..Default::default() };
        let features = rings | blk::F_SIZE_MAX | blk::F_SEG_MAX | ringway_spec::feature::RING_INDIRECT_DESC;
        let (fake, mut driver) = live_with(features, &limited, options);
        assert_eq!(driver.max_request(), 4608);
        let mut queue = fake.device_queue(0);
        let mut burst = Burst::default();
        for (len, segments) in [(512, 1), (1536, 1), (2048, 2), (4608, 3)] {
            submit(&mut driver, Operation::Read { sector: 0, len }, 8192, 0).unwrap();
            driver.publish(0);
            let chain = queue.next(&mut burst).unwrap().expect("a request");
            let lens: Vec<_> = chain.writable().pieces().map(|piece| piece.len()).collect();
            let (status, data) = lens.split_last().unwrap();
            assert_eq!((*status, data.len(), data.iter().sum::<usize>()), (1, segments, len as usize));
            assert!(data.iter().all(|len| *len <= 1536));
            queue.complete(chain, len + 1);
            let _ = queue.publish();
            assert!(driver.complete(0).unwrap().is_some());
        }
        let error = submit(&mut driver, Operation::Read { sector: 0, len: 5120 }, 8192, 0).unwrap_err();
        assert!(matches!(error, BlkError::TooLarge { what: "bytes", asked: 5120, max: 4608 }));
    }
}

/// A queue that is full says so and gives the buffer back; a burst is one kick.
#[test]
fn a_queue_has_an_end() {
    let options =
        Options { queue: QueueOptions { max_size: 16, ..Default::default() }, ..Default::default() };
    let (fake, mut driver) = live_with(0, &config(CAPACITY), options);
    let read = Operation::Read { sector: 0, len: 512 };
    for token in 0..5 {
        submit(&mut driver, read, 512, token).unwrap();
    }
    let error = submit(&mut driver, read, 512, 5).unwrap_err();
    assert!(matches!(error, BlkError::Device(Error::Add(AddError::Full))), "{error}");
    assert_eq!(fake.kicks(0), 0);
    driver.publish(0);
    assert_eq!(fake.kicks(0), 1);
    let mut queue = fake.device_queue(0);
    assert!(!driver.arm(0));
    for token in 0..5 {
        blk_disk::one(&mut queue, |asked| (S_OK, vec![0; asked.room]));
        assert!(driver.arm(0));
        assert_eq!(complete(&mut driver).token, token);
    }
    driver.suppress(0);
    submit(&mut driver, read, 512, 5).unwrap();
}

/// Each queue has requests of its own, and there are no more queues than the device has.
#[test]
fn several_queues() {
    let mut three = config(CAPACITY);
    three.num_queues.set(3);
    for (features, wanted, queues) in [(blk::F_MQ, 8, 3), (blk::F_MQ, 2, 2), (0, 8, 1), (blk::F_MQ, 0, 1)] {
        let options = Options { queues: wanted, ..Default::default() };
        let (fake, mut driver) = live_with(features, &three, options);
        assert_eq!((driver.queues(), fake.state().queues.len()), (queues, usize::from(queues)));
        for queue in (0..queues).rev() {
            let buffer = buffer(&mut driver, 512);
            let read = Operation::Read { sector: queue.into(), len: 512 };
            assert!(driver.submit(queue, read, Some(buffer), queue.into()).is_ok());
            driver.publish(queue);
            assert_eq!(fake.kicks(queue), 1);
            let mut device = fake.device_queue(queue);
            let asked = blk_disk::one(&mut device, |asked| (S_OK, vec![0; asked.room]));
            assert_eq!(asked.sector, u64::from(queue));
            assert_eq!(driver.complete(queue).unwrap().unwrap().token, u64::from(queue));
        }
        assert!(matches!(driver.complete(queues), Err(Error::NoQueue { .. })));
    }
}

/// Blocking calls, of more than a request can be and more than the staging buffer has: the disk has what was written, and
/// what was zeroed. Each request is as large as may be and none larger.
#[test]
fn one_thing_after_the_other() {
    let mut limited = config(CAPACITY);
    limited.size_max.set(2048);
    limited.seg_max.set(2);
    limited.max_discard_sectors.set(100);
    limited.discard_sector_alignment.set(8);
    limited.max_write_zeroes_sectors.set(64);
    for rings in RINGS {
        let (fake, mut driver) = live_with(rings | ALL & !blk::F_CONFIG_WCE, &limited, Options::default());
        assert_eq!(driver.max_request(), 4096);
        let disk = serve(&fake, 0, Disk::new(CAPACITY));
        let data: Vec<u8> = (0..10_240u32).map(|at| (at % 251) as u8).collect();
        driver.write_blocks(7, &data).unwrap();
        let mut read = vec![0; 10_240 + 512];
        driver.read_blocks(6, &mut read).unwrap();
        assert!(read[..512].iter().all(|byte| *byte == 0) && read[512..] == data[..], "rings {rings:#x}");
        driver.flush().unwrap();
        assert_eq!(&driver.id().unwrap(), b"a name of 20 letters");
        assert_eq!(driver.lifetime().unwrap().device_lifetime_est_typ_b.get(), 3);
        driver.write_zeroes(7, 130, true).unwrap();
        driver.discard(5, 200).unwrap();
        driver.secure_erase(0, 8).unwrap();
        driver.read_blocks(7, &mut read[..512]).unwrap();
        assert!(read[..512].iter().all(|byte| *byte == 0));
        let heard = disk.end();
        let of = |kind| {
            heard.asked.iter().filter(|asked| asked.kind == kind).map(Asked::range).collect::<Vec<_>>()
        };
        assert_eq!(of(blk::T_OUT), [(7, 8), (15, 8), (23, 4)]);
        assert_eq!(of(blk::T_IN), [(6, 8), (14, 8), (22, 5), (7, 1)]);
        assert_eq!(of(blk::T_WRITE_ZEROES), [(7, 57), (64, 64), (128, 9)]);
        // 96 is the most that is a multiple of the alignment.
        assert_eq!(of(blk::T_DISCARD), [(5, 91), (96, 96), (192, 13)]);
        assert_eq!(of(blk::T_SECURE_ERASE), [(0, 8)]);
        assert_eq!(of(blk::T_FLUSH).len(), 1);
    }
}

/// A blocking call between requests that are under way takes none of their completions away, and finds room in a full queue.
#[test]
fn blocking_calls_among_others() {
    let options =
        Options { queue: QueueOptions { max_size: 16, ..Default::default() }, ..Default::default() };
    let (fake, mut driver) = live_with(0, &config(CAPACITY), options);
    for token in 0..5 {
        submit(&mut driver, Operation::Read { sector: token, len: 512 }, 512, token).unwrap();
    }
    let disk = serve(&fake, 0, Disk::new(CAPACITY));
    driver.write_blocks(100, &[9; 512]).unwrap();
    let mut read = [0; 512];
    driver.read_blocks(100, &mut read).unwrap();
    assert_eq!(read, [9; 512]);
    assert!(driver.arm(0));
    let tokens: Vec<_> = (0..5).map(|_| complete(&mut driver).token).collect();
    assert_eq!(tokens, [0, 1, 2, 3, 4]);
    assert!(driver.complete(0).unwrap().is_none());
    assert_eq!(disk.end().asked.len(), 7);
}

/// A device that does not answer costs the call, and its buffer until it does; a late answer is none to the next call.
#[test]
fn a_disk_that_takes_too_long() {
    let (fake, transport, platform) = offered(blk::F_FLUSH, &config(CAPACITY));
    let machine = Patient::new(&platform);
    let mut driver = Blk::new(transport, Arc::clone(&machine) as Arc<_>, Options::default()).unwrap();
    machine.rounds.store(10, Ordering::Relaxed);
    let mut queue = fake.device_queue(0);
    let mut sector = [0; 512];
    for call in 0..2 {
        let error = driver.read_blocks(0, &mut sector).unwrap_err();
        assert!(matches!(error, BlkError::Device(Error::TimedOut { .. })), "call {call}: {error}");
    }
    assert!(matches!(driver.flush(), Err(BlkError::Device(Error::TimedOut { .. }))));
    // One read and one flush went out.
    blk_disk::one(&mut queue, |asked| (S_OK, vec![1; asked.room]));
    blk_disk::one(&mut queue, |_| (S_OK, Vec::new()));
    machine.rounds.store(100_000, Ordering::Relaxed);
    let mut twos = Disk::new(CAPACITY);
    twos.data.fill(2);
    let disk = blk_disk::serve_until(queue, twos, usize::MAX);
    driver.read_blocks(1, &mut sector).unwrap();
    assert_eq!(sector, [2; 512]);
    assert!(driver.complete(0).unwrap().is_none());
    assert_eq!(disk.end().kinds(), [blk::T_IN]);
}

/// A blocking call that the disk fails is an error, and the next one works.
#[test]
fn a_disk_that_fails() {
    let (fake, mut driver) = live(NO_LIMITS);
    let disk = serve(&fake, 0, Disk { fails: vec![1, 3], ..Disk::new(CAPACITY) });
    let mut sector = [0; 512];
    driver.write_blocks(1, &[5; 512]).unwrap();
    assert!(matches!(driver.read_blocks(1, &mut sector), Err(BlkError::Failed(Failure::Io))));
    driver.read_blocks(1, &mut sector).unwrap();
    assert_eq!(sector, [5; 512]);
    assert!(matches!(driver.flush(), Err(BlkError::Failed(Failure::Io))));
    driver.flush().unwrap();
    driver.id().unwrap();
    assert_eq!(disk.end().asked.len(), 6);
}

/// What is in flight when the disk is stopped comes back, and so does what was complete and not asked for.
#[test]
fn a_stop_gives_all_buffers_back() {
    let (fake, mut driver) = live(0);
    for len in [512, 1024, 2048] {
        submit(&mut driver, Operation::Read { sector: 0, len }, len, 0).unwrap();
    }
    driver.publish(0);
    let mut queue = fake.device_queue(0);
    blk_disk::one(&mut queue, |asked| (S_OK, vec![0; asked.room]));
    let disk = blk_disk::serve_until(queue, Disk::new(CAPACITY), 3);
    driver.read_blocks(0, &mut [0; 512]).unwrap();
    disk.end();
    submit(&mut driver, Operation::Read { sector: 0, len: 4096 }, 4096, 0).unwrap();
    let (buffers, _transport) = driver.stop().unwrap();
    let lens: Vec<_> = buffers.iter().map(SharedBuf::len).collect();
    assert_eq!(lens, [512, 1024, 2048, 4096]);
}
