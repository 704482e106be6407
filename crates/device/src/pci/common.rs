//! The common configuration (4.1.4.3): [`Registers`](crate::registers::Registers) as a structure. A field is read and
//! written by an access of its own width, one of 64 bits by two of 32; any other finds nothing and does nothing (4.1.3.1).

use ringway_spec::feature::NOTIF_CONFIG_DATA;
use ringway_spec::pci::{MSI_NO_VECTOR, common as field};

use super::PciDevice;
use crate::model::DeviceModel;
use crate::registers::Area;

/// The fields of 64 bits, by halves.
const AREAS: [(usize, Area, bool); 6] = [
    (field::QUEUE_DESC, Area::Descriptor, false),
    (field::QUEUE_DESC + 4, Area::Descriptor, true),
    (field::QUEUE_DRIVER, Area::Driver, false),
    (field::QUEUE_DRIVER + 4, Area::Driver, true),
    (field::QUEUE_DEVICE, Area::Device, false),
    (field::QUEUE_DEVICE + 4, Area::Device, true),
];

/// Which half of which area a field is.
fn area(offset: usize) -> Option<(Area, bool)> {
    AREAS.iter().find(|(at, ..)| *at == offset).map(|(_, area, is_high)| (*area, *is_high))
}

impl<D: DeviceModel> PciDevice<D> {
    /// A field of `len` bytes.
    pub(super) fn read_common(&self, offset: usize, len: usize) -> u32 {
        let registers = &self.registers;
        match (offset, len) {
            (field::DEVICE_FEATURE_SELECT, 4) => registers.device_feature_select,
            (field::DEVICE_FEATURE, 4) => registers.offered(),
            (field::DRIVER_FEATURE_SELECT, 4) => registers.driver_feature_select,
            (field::DRIVER_FEATURE, 4) => registers.accepted(),
            (field::CONFIG_MSIX_VECTOR, 2) => self.config_vector.into(),
            (field::NUM_QUEUES, 2) => registers.model.max_queues().into(),
            (field::DEVICE_STATUS, 1) => registers.status().bits().into(),
            (field::CONFIG_GENERATION, 1) => registers.generation() & 0xff,
            (field::QUEUE_SELECT, 2) => registers.queue_select.into(),
            (field::QUEUE_SIZE, 2) => registers.size().into(),
            (field::QUEUE_MSIX_VECTOR, 2) => registers.vector().unwrap_or(MSI_NO_VECTOR).into(),
            (field::QUEUE_ENABLE, 2) => registers.is_ready().into(),
            (field::QUEUE_NOTIFY_OFF, 2) => registers.notify_index().into(),
            (field::QUEUE_NOTIF_CONFIG_DATA, 2) if registers.has(NOTIF_CONFIG_DATA) => {
                registers.notify_index().into()
            }
            (field::QUEUE_RESET, 2) => registers.is_resetting().into(),
            // What is left is an area's half, an administration queue's field (there is none), or nothing.
            (_, 4) => area(offset).map_or(0, |(area, is_high)| registers.area(area, is_high)),
            _ => 0,
        }
    }

    /// Writes a field of `len` bytes.
    pub(super) fn write_common(&mut self, offset: usize, len: usize, value: u32) {
        let registers = &mut self.registers;
        match (offset, len) {
            (field::DEVICE_FEATURE_SELECT, 4) => registers.device_feature_select = value,
            (field::DRIVER_FEATURE_SELECT, 4) => registers.driver_feature_select = value,
            (field::DRIVER_FEATURE, 4) => registers.accept(value),
            (field::CONFIG_MSIX_VECTOR, 2) => self.config_vector = self.vector(value),
            (field::DEVICE_STATUS, 1) if value == 0 => self.reset(),
            (field::DEVICE_STATUS, 1) => registers.write_status(value as u8),
            (field::QUEUE_SELECT, 2) => registers.queue_select = value as u16,
            (field::QUEUE_SIZE, 2) => registers.set_size(value as u16),
            (field::QUEUE_MSIX_VECTOR, 2) => {
                let vector = self.vector(value);
                self.registers.set_vector(vector);
            }
            (field::QUEUE_ENABLE, 2) if value == 1 => registers.enable(),
            (field::QUEUE_RESET, 2) if value == 1 => registers.reset_queue(),
            (_, 4) => {
                if let Some((area, is_high)) = area(offset) {
                    registers.set_area(area, is_high, value);
                }
            }
            _ => {}
        }
    }

    /// The vector, if there is one; else none is mapped, as the driver reads back (4.1.5.1.2).
    fn vector(&self, value: u32) -> u16 {
        let vector = value as u16;
        if self.msix.has(vector) { vector } else { MSI_NO_VECTOR }
    }
}
