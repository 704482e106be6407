//! The three areas of a queue, resolved to where they are mapped.

use ringway_memory::{Access, FrontendVa, MemoryError, MemoryTable};
use ringway_spec::{feature, packed, split};

use crate::ConfigError;
use crate::area::{self, RingArea};

/// The three areas of a queue. Both formats name them alike; what is in them differs.
pub struct Areas {
    /// Split: the descriptor table. Packed: the descriptor ring.
    pub descriptor: RingArea,
    /// Written by the driver. Split: the available ring. Packed: its event suppression.
    pub driver: RingArea,
    /// Written by the device. Split: the used ring. Packed: its event suppression.
    pub device: RingArea,
}

/// Sizes and alignments of the areas, and what a device does with them: descriptor, driver, device.
struct Layout([(usize, u64, Access); 3]);

impl Layout {
    fn new(size: u16, features: u64) -> Self {
        if features & feature::RING_PACKED != 0 {
            let event = |access| (packed::EVENT_SIZE, packed::EVENT_ALIGN, access);
            let descriptors = (packed::desc_area_size(size), packed::DESC_ALIGN, Access::READ_WRITE);
            Self([descriptors, event(Access::READ), event(Access::READ_WRITE)])
        } else {
            Self([
                (split::desc_area_size(size), split::DESC_ALIGN, Access::READ),
                (split::avail_area_size(size), split::AVAIL_ALIGN, Access::READ),
                (split::used_area_size(size), split::USED_ALIGN, Access::READ_WRITE),
            ])
        }
    }
}

impl Areas {
    /// Resolves the areas of a queue of `size` descriptors by their addresses in the front-end's process, or I/O virtual
    /// ones if `memory` has a translation, see [`MemoryTable::area_for`]; the format is by the negotiated `features`.
    ///
    /// # Errors
    /// [`MemoryError`] where an area is in no region or is misaligned (2.7, 2.8); [`MemoryError::Miss`] if the front-end
    /// is to be asked for a translation first.
    pub fn resolve(
        memory: &MemoryTable,
        size: u16,
        features: u64,
        descriptor: FrontendVa,
        driver: FrontendVa,
        device: FrontendVa,
    ) -> Result<Self, MemoryError> {
        let Layout([a, b, c]) = Layout::new(size, features);
        let area = |at, (len, align, access)| memory.area_for(at, len, align, access).map(area::resolved);
        Ok(Self { descriptor: area(descriptor, a)?, driver: area(driver, b)?, device: area(device, c)? })
    }

    /// Whether a queue can have this size and these areas.
    pub(crate) fn check(&self, size: u16, features: u64) -> Result<(), ConfigError> {
        if features & feature::RING_PACKED != 0 {
            if size == 0 || size > packed::MAX_SIZE {
                return Err(ConfigError::BadPackedSize(size));
            }
        } else if !size.is_power_of_two() || size > split::MAX_SIZE {
            return Err(ConfigError::BadSplitSize(size));
        }
        let areas = [&self.descriptor, &self.driver, &self.device];
        for ((needed, align, _), area) in Layout::new(size, features).0.into_iter().zip(areas) {
            if !area.is_aligned(align) {
                return Err(ConfigError::MisalignedArea { align });
            }
            if area.len() < needed {
                return Err(ConfigError::SmallArea { needed, len: area.len() });
            }
        }
        Ok(())
    }
}
