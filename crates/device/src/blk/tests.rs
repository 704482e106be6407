use ringway_spec::blk::{CONFIG_WRITEBACK, F_GEOMETRY, F_LIFETIME, F_ZONED};
use ringway_spec::status::DeviceStatus;

use super::*;
use crate::status::FeatureError;

pub(super) const LIMITS: Limits = Limits { sectors: 64, segments: 4, alignment: 8 };

pub(super) const SETTINGS: Settings = Settings {
    size: 1 << 20,
    block_size: 512,
    physical_block_exp: 3,
    alignment_offset: 1,
    min_io_size: 8,
    opt_io_size: 128,
    read_only: false,
    queues: 4,
    writeback: true,
    flush: true,
    discard: Some(LIMITS),
    write_zeroes: Some(Limits { sectors: 32, segments: 2, alignment: 0 }),
    zeroes_may_unmap: true,
    secure_erase: Some(Limits { sectors: 16, segments: 1, alignment: 4 }),
    id: *b"a disk of ours\0\0\0\0\0\0",
    iommu: false,
};

fn new(settings: Settings) -> BlkDevice {
    BlkDevice::new(settings).unwrap()
}

/// A device whose driver acked these features.
pub(super) fn with(settings: Settings, acked: u64) -> BlkDevice {
    let mut device = new(settings);
    device.negotiation_mut().ack(acked).unwrap();
    device
}

fn writeback(device: &BlkDevice) -> u8 {
    let mut byte = [0xaa];
    device.read_config(CONFIG_WRITEBACK, &mut byte);
    byte[0]
}

fn is_stable(device: &BlkDevice) -> bool {
    device.rules().stable
}

#[test]
fn settings_out_of_range_make_no_device() {
    for block_size in [0, 1, 256, 513, 1536, 1 << 17] {
        let settings = Settings { block_size, ..SETTINGS };
        assert_eq!(BlkDevice::new(settings).unwrap_err(), SettingsError::BlockSize(block_size));
    }
    let settings = Settings { queues: 0, ..SETTINGS };
    assert_eq!(BlkDevice::new(settings).unwrap_err(), SettingsError::NoQueues);
    for none in [Limits { sectors: 0, ..LIMITS }, Limits { segments: 0, ..LIMITS }] {
        for (settings, kind) in [
            (Settings { discard: Some(none), ..SETTINGS }, RangeKind::Discard),
            (Settings { write_zeroes: Some(none), ..SETTINGS }, RangeKind::WriteZeroes),
            (Settings { secure_erase: Some(none), ..SETTINGS }, RangeKind::SecureErase),
        ] {
            assert_eq!(BlkDevice::new(settings).unwrap_err(), SettingsError::Limits(kind));
        }
    }
}

/// [DEV-BLK-init-01] [DEV-BLK-init-04] [DEV-BLK-init-05] [DEV-BLK-op-14] [DEV-CORE-features-01]
/// [DEV-CORE-reserved-feature-bits-03] What is offered follows the settings: a cache mode only with a flush, translated
/// addresses behind an IOMMU, never zones, nor figures of wear.
#[test]
fn offers_follow_the_settings() {
    let offered = |settings| new(settings).negotiation().offered();
    let never = F_GEOMETRY | F_LIFETIME | F_ZONED | feature::IN_ORDER | 1 << 37;
    let always = feature::VERSION_1
        | feature::RING_INDIRECT_DESC
        | feature::RING_EVENT_IDX
        | feature::RING_PACKED
        | F_SIZE_MAX
        | F_SEG_MAX
        | F_BLK_SIZE
        | F_TOPOLOGY;
    let bare = Settings {
        queues: 1,
        flush: false,
        discard: None,
        write_zeroes: None,
        secure_erase: None,
        ..SETTINGS
    };
    assert_eq!(offered(bare), always);
    for (settings, features) in [
        (Settings { read_only: true, ..bare }, F_RO),
        (Settings { queues: 2, ..bare }, F_MQ),
        (Settings { flush: true, ..bare }, F_FLUSH | F_CONFIG_WCE),
        (Settings { flush: true, writeback: false, ..bare }, F_FLUSH | F_CONFIG_WCE),
        (Settings { discard: Some(LIMITS), ..bare }, F_DISCARD),
        (Settings { write_zeroes: Some(LIMITS), ..bare }, F_WRITE_ZEROES),
        (Settings { secure_erase: Some(LIMITS), ..bare }, F_SECURE_ERASE),
        (Settings { iommu: true, ..bare }, feature::ACCESS_PLATFORM),
        (Settings { read_only: true, discard: Some(LIMITS), write_zeroes: Some(LIMITS), ..bare }, F_RO),
    ] {
        assert_eq!(offered(settings), always | features, "{settings:?}");
        assert_eq!(offered(settings) & never, 0);
    }
}

/// [DEV-BLK-init-03] [DEV-BLK-init-06] [DEV-CORE-device-configuration-space-01] Every field is where and what it should be, before the
/// negotiation and after it, at any offset; padding and fields without a feature are 0.
#[test]
fn config_is_readable_from_the_start() {
    let settings = Settings { secure_erase: None, ..SETTINGS };
    let mut whole = [0; 96];
    for (at, field) in [
        (0, &2048_u64.to_le_bytes()[..]),
        (8, &SIZE_MAX.to_le_bytes()),
        (12, &SEG_MAX.to_le_bytes()),
        (20, &512_u32.to_le_bytes()),
        (24, &[3, 1, 8, 0, 128, 0, 0, 0]),
        (32, &[1, 0, 4, 0]),
        (36, &[64, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0]),
        (48, &[32, 0, 0, 0, 2, 0, 0, 0, 1]),
    ] {
        whole[at..at + field.len()].copy_from_slice(field);
    }
    let offered = new(settings).negotiation().offered();
    for device in [new(settings), with(settings, offered)] {
        for offset in 0..whole.len() {
            let mut bytes = [0xaa; 8];
            device.read_config(offset, &mut bytes);
            for (i, byte) in bytes.into_iter().enumerate() {
                assert_eq!(byte, whole.get(offset + i).copied().unwrap_or(0), "{i} behind {offset}");
            }
        }
        let mut bytes = [1; 3];
        device.read_config(usize::MAX, &mut bytes);
        assert_eq!(bytes, [0; 3]);
    }
    let mut erase = [0; 12];
    new(SETTINGS).read_config(60, &mut erase);
    assert_eq!(erase, [16, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0]);
}

/// [DEV-BLK-op-09] The field says that zeroes may leave sectors without storage exactly if they may.
#[test]
fn zeroes_may_unmap_as_the_settings_say() {
    for zeroes_may_unmap in [false, true] {
        let mut field = [0xaa];
        new(Settings { zeroes_may_unmap, ..SETTINGS }).read_config(56, &mut field);
        assert_eq!(field, [zeroes_may_unmap.into()]);
    }
}

/// [DEV-BLK-init-02] [DEV-BLK-op-12] Which cache mode there is at first, and whether writes must be stable then: by what was
/// acked and by what the operator wants.
#[test]
fn writes_are_stable_unless_the_driver_can_flush() {
    const BOTH: u64 = F_CONFIG_WCE | F_FLUSH;
    for (wanted, acked, mode, stable) in [
        (true, BOTH, 1, false),
        (true, F_FLUSH, 1, false),
        (true, F_CONFIG_WCE, 0, true),
        (true, 0, 1, true),
        (false, BOTH, 0, true),
        (false, F_FLUSH, 0, true),
        (false, F_CONFIG_WCE, 0, true),
        (false, 0, 0, true),
    ] {
        let device = with(Settings { writeback: wanted, ..SETTINGS }, acked);
        let case = (wanted, acked);
        assert_eq!(is_stable(&device), stable, "{case:?}");
        if acked & F_CONFIG_WCE != 0 {
            assert_eq!(writeback(&device), mode, "{case:?}");
        }
    }
    let device = with(Settings { flush: false, ..SETTINGS }, 0);
    assert!(!is_stable(&device), "storage that cannot flush is not asked to");
    assert_eq!(writeback(&device), 0);
}

/// The driver switches the cache mode if it negotiated that, and writes nothing else.
#[test]
fn only_the_cache_mode_is_written() {
    let mut device = with(SETTINGS, F_CONFIG_WCE | F_FLUSH);
    for (mode, stable) in [(0, true), (1, false), (0, true)] {
        assert!(device.write_config(CONFIG_WRITEBACK, &[mode]));
        assert_eq!((writeback(&device), is_stable(&device)), (mode, stable));
    }
    for (offset, bytes) in [
        (CONFIG_WRITEBACK, &[2][..]),
        (CONFIG_WRITEBACK, &[]),
        (CONFIG_WRITEBACK, &[1, 0]),
        (CONFIG_WRITEBACK - 1, &[1]),
        (CONFIG_WRITEBACK + 1, &[1]),
        (0, &[0; 8]),
        (usize::MAX, &[1]),
    ] {
        assert!(!device.write_config(offset, bytes), "{bytes:?} at {offset}");
        assert_eq!(writeback(&device), 0);
    }
    device.reset();
    assert_eq!(writeback(&device), 1, "as at first");
    device.negotiation_mut().ack(F_FLUSH).unwrap();
    assert!(!device.write_config(CONFIG_WRITEBACK, &[0]), "not negotiated");
    assert!(!is_stable(&device));
}

/// A driver that may not flush but turns the cache on does not lose what it writes.
#[test]
fn a_cache_that_cannot_be_flushed_stays_off() {
    let mut device = with(SETTINGS, F_CONFIG_WCE);
    assert!(device.write_config(CONFIG_WRITEBACK, &[1]));
    assert_eq!(writeback(&device), 1);
    assert!(is_stable(&device));
}

/// A cache mode may arrive before the features. It holds if the driver turns out to have negotiated that.
#[test]
fn a_cache_mode_may_arrive_early() {
    for (acked, stable) in [(F_CONFIG_WCE | F_FLUSH, true), (F_FLUSH, false)] {
        let mut device = new(SETTINGS);
        assert!(device.write_config(CONFIG_WRITEBACK, &[0]));
        device.negotiation_mut().ack(acked).unwrap();
        assert_eq!(is_stable(&device), stable, "{acked:#x}");
    }
    let mut device = new(Settings { flush: false, ..SETTINGS });
    assert!(!device.write_config(CONFIG_WRITEBACK, &[0]), "not offered");
}

/// [DEV-BLK-op-01] Another size is another capacity, in the configuration and for requests; half a block is none.
#[test]
fn the_capacity_changes() {
    let settings = Settings { block_size: 4096, size: 4096 * 3 + 4095, ..SETTINGS };
    let mut device = new(settings);
    let capacity = |device: &BlkDevice| {
        let mut bytes = [0; 8];
        device.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    assert_eq!((capacity(&device), device.size(), device.rules().size), (24, 12288, 12288));
    assert!(!device.set_size(4096 * 3), "the same blocks");
    assert!(device.set_size(4096 * 4));
    assert_eq!((capacity(&device), device.rules().size), (32, 16384));
    assert!(device.set_size(0));
    assert_eq!(capacity(&device), 0);
    assert!(device.set_size(u64::MAX));
    assert_eq!(capacity(&device), (u64::MAX - 4095) / 512);
}

#[test]
fn queues_follow_the_negotiation() {
    assert_eq!(new(SETTINGS).max_queues(), 4);
    assert_eq!(with(SETTINGS, F_MQ).queues(), 4);
    assert_eq!(with(SETTINGS, 0).queues(), 1);
}

/// [DEV-CORE-features-02] The format of rings, the order in which they are used and how they are notified are for the
/// driver to choose, one without the other; and so is everything that the disk can do.
#[test]
fn any_part_of_the_offer_is_accepted() {
    let offered = new(SETTINGS).negotiation().offered();
    for bit in (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit != 0) {
        for acked in [bit, offered & !bit] {
            assert_eq!(with(SETTINGS, acked).negotiation().acked(), acked);
        }
    }
}

/// Another device goes on where this one was; one that does not offer what was acked does not.
#[test]
fn a_device_goes_on_where_another_was() {
    let acked = F_CONFIG_WCE | F_FLUSH | F_DISCARD;
    for mode in [None, Some(0), Some(1)] {
        let mut old = with(SETTINGS, acked);
        let status = DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK;
        old.negotiation_mut().write_status(status.bits());
        old.negotiation_mut().need_reset();
        if let Some(mode) = mode {
            assert!(old.write_config(CONFIG_WRITEBACK, &[mode]));
        }
        let mut new = new(SETTINGS);
        new.restore(&old.state()).unwrap();
        assert_eq!(new.state(), old.state());
        assert_eq!(new.rules(), old.rules());
        assert_eq!(new.negotiation().status(), status | DeviceStatus::DEVICE_NEEDS_RESET);
    }
    let mut other = new(Settings { discard: None, ..SETTINGS });
    let error = other.restore(&with(SETTINGS, acked).state()).unwrap_err();
    assert_eq!(error, FeatureError::NotOffered(F_DISCARD));
}

#[test]
fn other_states_are_refused() {
    let mut device = with(SETTINGS, F_CONFIG_WCE | F_FLUSH);
    assert!(device.write_config(CONFIG_WRITEBACK, &[0]));
    for state in [&[][..], &[0], &[2], &[1, 2], &[1, 0, 0]] {
        assert!(device.load(state).is_err(), "{state:?}");
        assert_eq!(writeback(&device), 0, "as before");
    }
}
