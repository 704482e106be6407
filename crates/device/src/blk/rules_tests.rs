use alloc::vec::Vec;

use proptest::prelude::*;
use ringway_spec::blk::{
    F_DISCARD, F_FLUSH, F_SECURE_ERASE, F_WRITE_ZEROES, S_IOERR, S_OK, S_UNSUPP, T_GET_LIFETIME, T_ZONES,
};
use zerocopy::IntoBytes;

use super::super::tests::{LIMITS, SETTINGS, with};
use super::super::{BlkDevice, Settings};
use super::*;

const ALL: u64 = F_FLUSH | F_DISCARD | F_WRITE_ZEROES | F_SECURE_ERASE;
const RANGES: [(u32, RangeKind); 3] = [
    (T_DISCARD, RangeKind::Discard),
    (T_WRITE_ZEROES, RangeKind::WriteZeroes),
    (T_SECURE_ERASE, RangeKind::SecureErase),
];

/// Rules of a disk of 2048 sectors whose driver acked all that it could.
fn rules(settings: Settings) -> Rules {
    let offered = BlkDevice::new(settings).unwrap().negotiation().offered();
    with(settings, offered & ALL).rules()
}

fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN] {
    let header = RequestHeader { kind: kind.into(), reserved: u32::MAX.into(), sector: sector.into() };
    header.as_bytes().try_into().unwrap()
}

fn segment(sector: u64, num_sectors: u32, flags: u32) -> blk::Segment {
    blk::Segment { sector: sector.into(), num_sectors: num_sectors.into(), flags: flags.into() }
}

fn ranges(rules: &Rules, kind: RangeKind, segments: &[blk::Segment]) -> Result<Vec<Segment>, Status> {
    rules.ranges(kind, segments.as_bytes()).map(Iterator::collect)
}

#[test]
fn status_bytes() {
    let bytes = [Status::Ok, Status::IoError, Status::Unsupported].map(Status::to_byte);
    assert_eq!(bytes, [S_OK, S_IOERR, S_UNSUPP]);
}

/// Reads and writes are of whole blocks that the disk has.
#[test]
fn data_is_within_the_disk() {
    let small = rules(SETTINGS);
    let large = rules(Settings { block_size: 4096, ..SETTINGS });
    let last = 2048;
    for (rules, sector, len, offset) in [
        (small, 0, 512, Ok(0)),
        (small, 3, 1024, Ok(1536)),
        (small, 0, 1 << 20, Ok(0)),
        (small, last - 1, 512, Ok((last - 1) * 512)),
        (small, last - 1, 1024, Err(Status::IoError)),
        (small, last, 512, Err(Status::IoError)),
        (small, 0, (1 << 20) + 512, Err(Status::IoError)),
        (small, u64::MAX, 512, Err(Status::IoError)),
        (small, u64::MAX / 512, 512, Err(Status::IoError)),
        (small, u64::MAX / 512 + 1, 512, Err(Status::IoError)),
        (small, 1 << 55, 512, Err(Status::IoError)),
        (small, 0, 1, Err(Status::IoError)),
        (small, 0, 511, Err(Status::IoError)),
        (small, 0, 513, Err(Status::IoError)),
        (small, 0, u32::MAX, Err(Status::IoError)),
        (large, 8, 4096, Ok(4096)),
        (large, 8, 512, Err(Status::IoError)),
        (large, 1, 4096, Err(Status::IoError)),
        (large, last - 8, 4096, Ok((last - 8) * 512)),
        // Nothing to do is done, if it is to be done somewhere.
        (small, 3, 0, Err(Status::Ok)),
        (small, last, 0, Err(Status::Ok)),
        (small, last + 1, 0, Err(Status::IoError)),
    ] {
        let read = rules.judge(header(T_IN, sector), 0, len);
        assert_eq!(read, offset.map(|offset| Request::Read { offset }), "{len} bytes from {sector} on");
        let write = rules.judge(header(T_OUT, sector), len, 0);
        assert_eq!(write, offset.map(|offset| Request::Write { offset, stable: false }));
    }
}

/// Data in the other direction is not looked at, unless there is no other.
#[test]
fn data_goes_one_way() {
    let rules = rules(SETTINGS);
    assert_eq!(rules.judge(header(T_IN, 0), 7, 512), Ok(Request::Read { offset: 0 }));
    assert_eq!(rules.judge(header(T_OUT, 0), 512, 7), Ok(Request::Write { offset: 0, stable: false }));
    assert_eq!(rules.judge(header(T_IN, 0), 512, 0), Err(Status::IoError));
    assert_eq!(rules.judge(header(T_OUT, 0), 0, 512), Err(Status::IoError));
    assert_eq!(rules.judge(header(T_FLUSH, 5), 512, 512), Ok(Request::Flush));
}

/// [DEV-BLK-op-03] Nothing that changes a read-only disk is carried out.
#[test]
fn read_only_disks_are_not_written_to() {
    let rules = rules(Settings { read_only: true, ..SETTINGS });
    assert_eq!(rules.judge(header(T_OUT, 0), 512, 0), Err(Status::IoError));
    assert_eq!(rules.judge(header(T_OUT, 0), 0, 0), Err(Status::IoError));
    for (kind, range) in RANGES {
        assert_eq!(rules.judge(header(kind, 0), 16, 0), Err(Status::Unsupported));
        assert_eq!(ranges(&rules, range, &[segment(0, 1, 0)]), Err(Status::Unsupported));
    }
    assert_eq!(rules.judge(header(T_IN, 0), 0, 512), Ok(Request::Read { offset: 0 }));
    assert_eq!(rules.judge(header(T_FLUSH, 0), 0, 0), Ok(Request::Flush));
}

/// [DEV-BLK-op-16] What this device does not do it says so of: zones, wear, and what has no meaning any longer or yet.
#[test]
fn other_requests_are_not_supported() {
    let rules = rules(SETTINGS);
    let legacy = [2, 3, 5, T_IN | 1 << 31, T_OUT | 1 << 31];
    for kind in T_ZONES.into_iter().chain(legacy).chain([T_GET_LIFETIME, 9, 12, 27, u32::MAX]) {
        for (readable, writable) in [(0, 0), (512, 0), (0, 512)] {
            assert_eq!(rules.judge(header(kind, 0), readable, writable), Err(Status::Unsupported), "{kind}");
        }
    }
}

/// What was not negotiated is not supported, but a flush: it does no harm.
#[test]
fn ranges_are_for_drivers_that_negotiated_them() {
    let none = with(SETTINGS, 0).rules();
    for (kind, range) in RANGES {
        assert_eq!(none.judge(header(kind, 0), 16, 0), Err(Status::Unsupported));
        assert_eq!(ranges(&none, range, &[segment(0, 1, 0)]), Err(Status::Unsupported));
        assert_eq!(rules(SETTINGS).judge(header(kind, 0), 16, 0), Ok(Request::Ranges(range)));
    }
    assert_eq!(none.judge(header(T_FLUSH, 0), 0, 0), Ok(Request::Flush));
    assert_eq!(none.judge(header(T_OUT, 0), 512, 0), Ok(Request::Write { offset: 0, stable: true }));
    let cannot = rules(Settings { flush: false, ..SETTINGS });
    assert_eq!(cannot.judge(header(T_FLUSH, 0), 0, 0), Err(Status::Unsupported));
}

#[test]
fn the_name_needs_room() {
    let rules = rules(SETTINGS);
    for (writable, due) in [(0, Err(Status::IoError)), (19, Err(Status::IoError)), (20, Ok(Request::GetId))] {
        assert_eq!(rules.judge(header(T_GET_ID, 0), 0, writable), due, "{writable} bytes");
    }
    assert_eq!(rules.judge(header(T_GET_ID, 0), 0, 4096), Ok(Request::GetId));
    assert_eq!(&rules.id(), b"a disk of ours\0\0\0\0\0\0");
}

/// The number of segments is checked before a byte of them is read.
#[test]
fn segments_are_counted() {
    let rules = rules(SETTINGS);
    for (len, due) in [
        (0, Err(Status::IoError)),
        (15, Err(Status::IoError)),
        (16, Ok(Request::Ranges(RangeKind::Discard))),
        (17, Err(Status::IoError)),
        (LIMITS.segments * 16, Ok(Request::Ranges(RangeKind::Discard))),
        (LIMITS.segments * 16 + 16, Err(Status::IoError)),
        (u32::MAX, Err(Status::IoError)),
        (!15, Err(Status::IoError)),
    ] {
        assert_eq!(rules.judge(header(T_DISCARD, 0), len, 0), due, "{len} bytes");
    }
    assert_eq!(ranges(&rules, RangeKind::Discard, &[]), Err(Status::IoError));
    assert_eq!(ranges(&rules, RangeKind::SecureErase, &[segment(0, 1, 0); 2]), Err(Status::IoError));
}

/// [DEV-BLK-op-04] [DEV-BLK-op-05] Flags that are unknown, or have no meaning there, are not supported, whatever else may be
/// wrong.
#[test]
fn unknown_flags_are_not_supported() {
    let rules = rules(SETTINGS);
    let absurd = u64::MAX;
    for (_, kind) in RANGES {
        for flags in (1..32).map(|bit| 1 << bit).chain([u32::MAX]) {
            for sector in [0, absurd] {
                assert_eq!(
                    ranges(&rules, kind, &[segment(sector, 1, flags)]),
                    Err(Status::Unsupported),
                    "{kind:?}"
                );
            }
        }
    }
    for kind in [RangeKind::Discard, RangeKind::SecureErase] {
        assert_eq!(ranges(&rules, kind, &[segment(0, 1, 1)]), Err(Status::Unsupported), "{kind:?}");
    }
    let behind_a_good_one = [segment(0, 1, 0), segment(0, 1, 1)];
    assert_eq!(ranges(&rules, RangeKind::Discard, &behind_a_good_one), Err(Status::Unsupported));
}

/// Segments are ranges of the disk, each of which is checked before the first is there.
#[test]
fn segments_are_within_the_disk_and_the_limits() {
    let rules = rules(SETTINGS);
    let range =
        |sector: u64, sectors: u64| Segment { offset: sector * 512, len: sectors * 512, unmap: false };
    let good = [segment(0, 64, 0), segment(2047, 1, 0), segment(5, 0, 0), segment(2048, 0, 0)];
    let found = ranges(&rules, RangeKind::Discard, &good).unwrap();
    assert_eq!(found, [range(0, 64), range(2047, 1), range(5, 0), range(2048, 0)]);
    for bad in [
        segment(0, 65, 0),
        segment(0, u32::MAX, 0),
        segment(2047, 2, 0),
        segment(2048, 1, 0),
        segment(u64::MAX, 1, 0),
        segment(u64::MAX / 512, 64, 0),
    ] {
        assert_eq!(ranges(&rules, RangeKind::Discard, &[good[0], bad]), Err(Status::IoError), "{bad:?}");
    }
    let large = super::tests::rules(Settings { block_size: 4096, ..SETTINGS });
    assert_eq!(ranges(&large, RangeKind::Discard, &[segment(8, 16, 0)]), Ok([range(8, 16)].into()));
    for bad in [segment(1, 8, 0), segment(8, 7, 0)] {
        assert_eq!(ranges(&large, RangeKind::Discard, &[bad]), Err(Status::IoError), "{bad:?}");
    }
}

/// [DEV-BLK-op-07] Zeroes leave sectors without storage if the driver allows it and the device said so.
#[test]
fn zeroes_unmap_if_they_may() {
    for (zeroes_may_unmap, flags, unmap) in
        [(true, 0, false), (true, 1, true), (false, 0, false), (false, 1, false)]
    {
        let rules = rules(Settings { zeroes_may_unmap, ..SETTINGS });
        let found = ranges(&rules, RangeKind::WriteZeroes, &[segment(8, 2, flags)]);
        assert_eq!(found, Ok([Segment { offset: 4096, len: 1024, unmap }].into()));
    }
}

proptest! {
    /// Whatever a driver says, what is carried out is within the disk, of whole blocks, and not a write if there must be none.
    #[test]
    fn what_is_carried_out_is_within_the_disk(
        kind in prop_oneof![0_u32..30, any::<u32>()],
        sector in prop_oneof![0_u64..2100, any::<u64>()],
        readable in prop_oneof![0_u32..2_000_000, (0_u32..4096).prop_map(|n| n * 512), any::<u32>()],
        writable in prop_oneof![0_u32..2_000_000, (0_u32..4096).prop_map(|n| n * 512), any::<u32>()],
        shift in 0_u32..4,
        read_only: bool,
    ) {
        let block_size = 512 << shift;
        let rules = rules(Settings { block_size, read_only, ..SETTINGS });
        let (offset, len) = match rules.judge(header(kind, sector), readable, writable) {
            Ok(Request::Read { offset }) => (offset, writable),
            Ok(Request::Write { offset, .. }) => {
                prop_assert!(!read_only);
                (offset, readable)
            }
            Ok(Request::Ranges(_)) => {
                prop_assert!(!read_only && readable > 0 && readable <= LIMITS.segments * 16);
                return Ok(());
            }
            Ok(Request::Flush | Request::GetId) | Err(_) => return Ok(()),
        };
        prop_assert!(len > 0);
        prop_assert_eq!(offset, sector * 512);
        prop_assert!(offset + u64::from(len) <= SETTINGS.size);
        prop_assert!(offset.is_multiple_of(block_size.into()) && len.is_multiple_of(block_size));
    }

    /// The same of segments, of any bytes.
    #[test]
    fn segments_that_are_carried_out_are_within_the_disk(
        numbers in proptest::collection::vec((0_u64..2100, 0_u32..80, 0_u32..2), 0..6),
        noise in proptest::collection::vec(any::<u8>(), 0..40),
        is_noise: bool,
        kind in 0_usize..3,
    ) {
        let rules = rules(SETTINGS);
        let segments: Vec<_> = numbers.iter().map(|&(sector, sectors, flags)| segment(sector, sectors, flags)).collect();
        let data = if is_noise { &noise[..] } else { segments.as_bytes() };
        let (_, kind) = RANGES[kind];
        if let Ok(found) = rules.ranges(kind, data) {
            let found: Vec<_> = found.collect();
            prop_assert_eq!(found.len() * 16, data.len());
            for Segment { offset, len, unmap } in found {
                prop_assert!(offset + len <= SETTINGS.size);
                prop_assert!(!unmap || kind == RangeKind::WriteZeroes);
            }
        }
    }
}
