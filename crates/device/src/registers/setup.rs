//! A queue as its driver set it up, and how it becomes one that runs.

use alloc::sync::Arc;

use ringway_memory::{FrontendVa, Gpa, MemoryError, MemoryTable};
use ringway_queue::{Areas, ConfigError, DeviceQueue, QueueConfig, ResumeState};
use thiserror::Error;

/// What the driver said of a queue before it enabled it. Behind an IOMMU the addresses are I/O virtual ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of descriptors.
    pub size: u16,
    /// The negotiated features.
    pub features: u64,
    /// The descriptor area.
    pub descriptor: Gpa,
    /// The driver area.
    pub driver: Gpa,
    /// The device area.
    pub device: Gpa,
}

/// Why a queue cannot start. The device [needs a reset](crate::status::Negotiation::need_reset) then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StartError {
    /// An area is not in the guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The queue cannot be as it was set up.
    #[error(transparent)]
    Queue(#[from] ConfigError),
}

impl QueueSetup {
    /// Starts the queue, from its beginning.
    ///
    /// # Errors
    /// [`StartError`]; nothing of the ring has been touched then.
    pub fn start(&self, memory: &Arc<MemoryTable>) -> Result<DeviceQueue, StartError> {
        let Self { size, features, .. } = *self;
        let [descriptor, driver, device] =
            [self.descriptor, self.driver, self.device].map(|area| resolvable(memory, area));
        let config = QueueConfig {
            size,
            features,
            areas: Areas::resolve(memory, size, features, descriptor?, driver?, device?)?,
            memory: Arc::clone(memory),
            used_log: None,
            resume: ResumeState::start(features),
            inflight: None,
        };
        Ok(DeviceQueue::start(config)?)
    }
}

/// The address by which [`Areas::resolve`] finds a ring: that of the front-end's process, or behind an IOMMU the same.
fn resolvable(memory: &MemoryTable, addr: Gpa) -> Result<FrontendVa, MemoryError> {
    if memory.translation().is_some() {
        return Ok(FrontendVa(addr.0));
    }
    let offset_in = |region: &ringway_memory::Region| addr.0.checked_sub(region.gpa().0);
    let found = memory.regions().iter().find_map(|region| {
        let offset = offset_in(region).filter(|offset| *offset < region.len())?;
        region.frontend_va().checked_add(offset)
    });
    found.ok_or(MemoryError::Unmapped { addr, len: 1 })
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use ringway_memory::{GuestBuf, Mapping};
    use ringway_queue::Burst;
    use ringway_spec::feature::RING_PACKED;

    use super::*;

    const LEN: u64 = 0x1_0000;
    const BASE: u64 = 0x4000_0000;

    /// Memory at the same address in the VMM and in the guest, or at another one.
    fn memory(va: u64) -> Arc<MemoryTable> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        let region = Mapping::region(file.into(), 0, LEN, Gpa(BASE), FrontendVa(va)).unwrap();
        Arc::new(MemoryTable::new(vec![region]).unwrap())
    }

    fn setup(features: u64, size: u16, areas: [u64; 3]) -> QueueSetup {
        let [descriptor, driver, device] = areas.map(|offset| Gpa(BASE.wrapping_add(offset)));
        QueueSetup { size, features, descriptor, driver, device }
    }

    #[test]
    fn a_queue_starts_where_the_driver_said() {
        for va in [BASE, 0x7000_0000_0000] {
            let memory = memory(va);
            for (features, size) in [(0, 16), (RING_PACKED, 13)] {
                let mut queue = setup(features, size, [0, 0x1000, 0x2000]).start(&memory).unwrap();
                assert_eq!(queue.size(), size);
                assert!(queue.next(&mut Burst::default()).unwrap().is_none());
            }
            // What the driver makes available there is found.
            let write = |offset, bytes: &[u8]| {
                let slices = memory.slices(Gpa(BASE + offset), bytes.len() as u64).collect::<Vec<_>>();
                assert_eq!(GuestBuf::new(&slices).write(bytes), bytes.len());
            };
            let head = BASE + 0x3000;
            write(0, &[head.to_le_bytes(), [64, 0, 0, 0, 2, 0, 0, 0]].concat());
            write(0x1002, &[1, 0, 0, 0]);
            let mut queue = setup(0, 16, [0, 0x1000, 0x2000]).start(&memory).unwrap();
            let mut burst = Burst::default();
            let chain = queue.next(&mut burst).unwrap().unwrap();
            assert_eq!((chain.readable().len(), chain.writable().len()), (0, 64));
        }
    }

    #[test]
    fn a_queue_that_cannot_be_does_not_start() {
        let memory = memory(0);
        let whole = LEN.wrapping_neg();
        for areas in [[LEN, 0, 0], [0, LEN, 0], [0, 0, LEN], [whole, 0, 0], [BASE.wrapping_neg(), 0, 0]] {
            let error = setup(0, 16, areas).start(&memory).err();
            assert!(matches!(error, Some(StartError::Memory(MemoryError::Unmapped { .. }))), "{error:?}");
        }
        let error = setup(0, 16, [LEN - 16, 0, 0]).start(&memory).err();
        assert!(matches!(error, Some(StartError::Memory(MemoryError::UnmappedArea { .. }))), "{error:?}");
        let error = setup(0, 16, [8, 0, 0]).start(&memory).err();
        assert!(matches!(error, Some(StartError::Memory(MemoryError::Misaligned { .. }))), "{error:?}");
        let error = setup(0, 13, [0, 0x1000, 0x2000]).start(&memory).err();
        assert_eq!(error, Some(StartError::Queue(ConfigError::BadSplitSize(13))));
    }
}
