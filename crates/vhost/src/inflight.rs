//! The file in which a device records what is in flight: made here, kept by the front-end, and given back to the
//! next process ("Inflight I/O tracking").
//!
//! ```text
//!   GET_INFLIGHT_FD ──► create ──► description and file to the front-end
//!   SET_INFLIGHT_FD ──► adopt  ──► area(n) to the queue of vring n when it starts
//!
//!   file   … │ queue 0 │ queue 1 │ … ║ orders      from `offset` on, each as long as the queue size and the format ask for
//! ```
//!
//! A driver's orders to the device, such as a disk's cache mode, are given once, and no front-end gives them again to the
//! next process. So they are kept here as well, in a word behind the region that the front-end is told of: 0xA5, their
//! length, up to six bytes. A file that was not made here has no such word.
//!
//! What is in a queue's part is the queue's matter. The front-end may write to all of it, and may cut the file off.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringway_memory::{MapError, Mapping, RingArea};
use ringway_queue::inflight::region_size;
use ringway_spec::feature::RING_PACKED;
use ringway_spec::split;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::pwrite;
use thiserror::Error;

use crate::message::InflightDescription;

/// What a file's offset must be a multiple of: the size of the largest word in it.
const ALIGN: u64 = 8;
/// Length of the driver's orders behind the queues.
const ORDERS: usize = 8;
/// Their first byte.
const ORDERS_MAGIC: u8 = 0xa5;
/// Their length while there are none.
const NO_ORDERS: u8 = 0xff;

/// Why a file cannot record what is in flight.
#[derive(Debug, Error)]
pub enum InflightFileError {
    /// None, or more than the device has.
    #[error("{queues} vrings to be recorded, the device has {max}")]
    Queues {
        /// How many.
        queues: u16,
        /// How many there are.
        max: u16,
    },
    /// No queue has this size.
    #[error("queue size {0} is not from 1 to 32768")]
    QueueSize(u16),
    /// The words would not be aligned.
    #[error("in-flight memory at file offset {0} is not at a multiple of 8")]
    Misaligned(u64),
    /// The vrings do not fit.
    #[error("in-flight memory has {len} bytes, {needed} are needed")]
    Short {
        /// Bytes that the vrings need.
        needed: usize,
        /// Bytes that there are.
        len: u64,
    },
    /// The file cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The file cannot be made.
    #[error("cannot make a file for what is in flight: {0}")]
    Io(#[from] io::Error),
}

/// The file, mapped.
pub struct InflightFile {
    file: OwnedFd,
    description: InflightDescription,
    area: RingArea,
    /// The word for a driver's orders, if there is one.
    orders: Option<RingArea>,
}

impl InflightFile {
    /// Makes a file for `queues` vrings of `queue_size` descriptors, with these negotiated features, of a device that
    /// has `max_queues`.
    pub fn create(
        queues: u16,
        queue_size: u16,
        features: u64,
        max_queues: u16,
    ) -> Result<Self, InflightFileError> {
        check(queues, queue_size, max_queues)?;
        let len = (usize::from(queues) * region_size(queue_size, features)) as u64;
        let file = memfd_create("inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(io::Error::from)?;
        ftruncate(&file, len + ORDERS as u64).map_err(io::Error::from)?;
        pwrite(&file, &[ORDERS_MAGIC, NO_ORDERS], len).map_err(io::Error::from)?;
        // Nobody can take it away under us.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(io::Error::from)?;
        let description = InflightDescription { len, offset: 0, queues, queue_size };
        Self::adopt(file, description, features, max_queues)
    }

    /// Takes over a file that a device like this one made before.
    pub fn adopt(
        file: OwnedFd,
        description: InflightDescription,
        features: u64,
        max_queues: u16,
    ) -> Result<Self, InflightFileError> {
        let InflightDescription { len, offset, queues, queue_size } = description;
        check(queues, queue_size, max_queues)?;
        if !offset.is_multiple_of(ALIGN) {
            return Err(InflightFileError::Misaligned(offset));
        }
        let needed = usize::from(queues) * region_size(queue_size, features);
        if len < needed as u64 {
            return Err(InflightFileError::Short { needed, len });
        }
        // Features may be negotiated later, and the other format needs more. What is there beyond that is of no use.
        let most = usize::from(queues) * region_size(queue_size, RING_PACKED);
        let area = Mapping::area(file.try_clone()?, offset, most.min(len.try_into().unwrap_or(most)))?;
        let orders = offset.checked_add(len).and_then(|at| orders_at(&file, at));
        Ok(Self { file, description, area, orders })
    }

    /// What the front-end is told of the file, or told us.
    pub fn description(&self) -> InflightDescription {
        self.description
    }

    /// Records a driver's orders to the device, if they are so few and there is room.
    pub fn record_orders(&self, orders: &[u8]) {
        let mut word = [0; ORDERS];
        if let Some(area) = &self.orders
            && let Some(room) = word[2..].get_mut(..orders.len())
        {
            room.copy_from_slice(orders);
            word[..2].copy_from_slice(&[ORDERS_MAGIC, orders.len() as u8]);
            area.store_u64(0, u64::from_le_bytes(word));
        }
    }

    /// The orders that were recorded, if any were.
    pub fn orders(&self) -> Option<Vec<u8>> {
        let word = self.orders.as_ref()?.load_u64(0).to_le_bytes();
        let [ORDERS_MAGIC, len, rest @ ..] = word else { return None };
        rest.get(..len.into()).map(<[u8]>::to_vec)
    }

    /// The part of vring `index`, by the negotiated features; `None`: it is not among those recorded.
    pub fn area(&self, index: u16, features: u64) -> Result<Option<RingArea>, InflightFileError> {
        let InflightDescription { len, queues, queue_size, .. } = self.description;
        if index >= queues {
            return Ok(None);
        }
        let size = region_size(queue_size, features);
        let start = usize::from(index) * size;
        if start + size > self.area.len() {
            return Err(InflightFileError::Short { needed: start + size, len });
        }
        Ok(Some(self.area.part(start..start + size)))
    }
}

impl AsFd for InflightFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The word for orders at this place of a file, if the file was made here.
fn orders_at(file: &OwnedFd, at: u64) -> Option<RingArea> {
    if !at.is_multiple_of(ALIGN) {
        return None;
    }
    let area = Mapping::area(file.try_clone().ok()?, at, ORDERS).ok()?;
    (area.load_u64(0).to_le_bytes()[0] == ORDERS_MAGIC).then_some(area)
}

fn check(queues: u16, queue_size: u16, max: u16) -> Result<(), InflightFileError> {
    if queues == 0 || queues > max {
        return Err(InflightFileError::Queues { queues, max });
    }
    if queue_size == 0 || queue_size > split::MAX_SIZE {
        return Err(InflightFileError::QueueSize(queue_size));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const FORMATS: [u64; 2] = [0, RING_PACKED];

    fn adopt(
        file: &InflightFile,
        change: impl FnOnce(&mut InflightDescription),
    ) -> Result<InflightFile, InflightFileError> {
        let mut description = file.description();
        change(&mut description);
        InflightFile::adopt(file.file.try_clone().expect("a descriptor"), description, 0, 4)
    }

    /// Each vring has a part of its own, and all of it comes back in another process.
    #[test]
    fn what_is_recorded_comes_back() {
        for features in FORMATS {
            let file = InflightFile::create(3, 256, features, 4).expect("a file");
            let size = region_size(256, features);
            let description = file.description();
            let expected =
                InflightDescription { len: 3 * size as u64, offset: 0, queues: 3, queue_size: 256 };
            assert_eq!(description, expected);
            for index in 0..3 {
                let area = file.area(index, features).expect("room").expect("a part");
                assert_eq!((area.len(), area.load_u64(0), area.load_u64(size - 8)), (size, 0, 0));
                area.store_u64(0, u64::from(index) + 1);
                area.store_u64(size - 8, u64::from(index) + 1);
            }
            assert!(file.area(3, features).expect("no part").is_none());

            let given = file.as_fd().try_clone_to_owned().expect("a descriptor");
            drop(file);
            let file = InflightFile::adopt(given, description, features, 4).expect("the same file");
            for index in 0..3 {
                let area = file.area(index, features).expect("room").expect("a part");
                assert_eq!(
                    (area.load_u64(0), area.load_u64(size - 8)),
                    (u64::from(index) + 1, u64::from(index) + 1)
                );
            }
        }
    }

    /// What a driver ordered comes back as well, from a file that was made here.
    #[test]
    fn orders_come_back() {
        for features in FORMATS {
            let file = InflightFile::create(2, 64, features, 4).expect("a file");
            assert_eq!(file.orders(), None);
            for orders in [&[1, 0][..], &[], &[1, 2, 3, 4, 5, 6]] {
                file.record_orders(orders);
                let same = adopt(&file, |_| {}).expect("the same file");
                assert_eq!(same.orders().as_deref(), Some(orders));
            }
            file.record_orders(&[9; 7]);
            assert_eq!(file.orders().as_deref(), Some(&[1, 2, 3, 4, 5, 6][..]), "too many to be recorded");
            let area = file.orders.as_ref().expect("it is ours");
            for word in [u64::MAX, 0x07a5, 0xffa5] {
                area.store_u64(0, word);
                assert_eq!(file.orders(), None, "{word:#x}");
            }
            let last = file.area(1, features).expect("room").expect("a part");
            assert_eq!(last.load_u64(last.len() - 8), 0, "queues have their parts for themselves");
            // What stands behind a region of another's making stays as it is.
            area.store_u64(0, 7);
            let others = adopt(&file, |_| {}).expect("a file");
            others.record_orders(&[1]);
            assert_eq!((others.orders(), area.load_u64(0)), (None, 7));
        }
    }

    #[test]
    fn nobody_can_shorten_a_file_of_ours() {
        let file = InflightFile::create(1, 256, 0, 1).expect("a file");
        assert!(ftruncate(&file, 0).is_err());
        let file = std::fs::File::from(file.as_fd().try_clone_to_owned().expect("a descriptor"));
        assert_eq!(file.metadata().expect("metadata").size(), region_size(256, 0) as u64 + 8);
    }

    /// One that is not ours can be cut off: that is seen, and does no harm.
    #[test]
    fn a_shortened_file_is_seen() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(8192).expect("its length");
        let description = InflightDescription { len: 8192, offset: 0, queues: 1, queue_size: 256 };
        let given = file.try_clone().expect("a descriptor").into();
        let inflight = InflightFile::adopt(given, description, 0, 1).expect("a file");
        let area = inflight.area(0, 0).expect("room").expect("a part");
        assert!(area.is_intact());
        file.set_len(0).expect("no length");
        area.store_u64(0, 1);
        assert!(!area.is_intact());
    }

    #[test]
    fn what_is_not_the_devices_is_refused() {
        use InflightFileError as E;

        assert!(matches!(InflightFile::create(0, 4, 0, 4), Err(E::Queues { queues: 0, max: 4 })));
        assert!(matches!(InflightFile::create(5, 4, 0, 4), Err(E::Queues { queues: 5, max: 4 })));
        for size in [0, 32769, 65535] {
            assert!(matches!(InflightFile::create(4, size, 0, 4), Err(E::QueueSize(at)) if at == size));
        }
        for features in FORMATS {
            assert!(InflightFile::create(4, 32768, features, 4).is_ok());
        }

        let file = InflightFile::create(4, 64, 0, 4).expect("a file");
        assert!(adopt(&file, |_| {}).is_ok());
        assert!(matches!(adopt(&file, |d| d.queues = 5), Err(E::Queues { queues: 5, max: 4 })));
        assert!(matches!(adopt(&file, |d| d.queue_size = 0), Err(E::QueueSize(0))));
        assert!(matches!(adopt(&file, |d| d.len -= 1), Err(E::Short { .. })));
        assert!(matches!(adopt(&file, |d| d.queue_size = 128), Err(E::Short { .. })));
        assert!(matches!(adopt(&file, |d| d.offset = 4), Err(E::Misaligned(4))));
        assert!(matches!(adopt(&file, |d| d.offset = 16), Err(E::Map(MapError::PastEnd { .. }))));
        assert!(matches!(adopt(&file, |d| d.offset = u64::MAX - 7), Err(E::Map(_))));
        assert!(adopt(&file, |d| d.len = u64::MAX).is_err(), "longer than the file");
        // Made for one format, used in the other: as many as fit.
        assert!(file.area(1, RING_PACKED).is_ok());
        assert!(matches!(file.area(3, RING_PACKED), Err(E::Short { .. })));
    }

    /// A region somewhere in a file, as a front-end may keep it.
    #[test]
    fn a_file_may_hold_more() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(0x3000).expect("its length");
        let description = InflightDescription { len: 0x2000, offset: 0x0ff8, queues: 2, queue_size: 64 };
        let given = file.try_clone().expect("a descriptor").into();
        let inflight = InflightFile::adopt(given, description, RING_PACKED, 2).expect("a file");
        inflight.area(1, RING_PACKED).expect("room").expect("a part").store_u64(0, 0x0706_0504_0302_0100);
        let mut bytes = [0; 8];
        let at = 0x0ff8 + region_size(64, RING_PACKED) as u64;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, at).expect("its bytes");
        assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
