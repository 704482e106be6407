//! What every device model has: the seam between a kind of device and the transport that shows it to a driver.
//!
//! ```text
//!   driver ──registers──► mmio, pci ──┐
//!                                     ├──► DeviceModel     features, status, configuration
//!   front-end ──vhost-user messages───┘
//! ```
//!
//! What a device does with its queues is not here: each kind has functions of its own for them.

use ringway_spec::{blk, net};

use crate::blk::BlkDevice;
use crate::net::NetDevice;
use crate::status::Negotiation;

/// A kind of device, as a transport sees it.
pub trait DeviceModel {
    /// The virtio device ID (5).
    fn id(&self) -> u32;

    /// Features and status.
    fn negotiation(&self) -> &Negotiation;

    /// Features and status, to be changed by the driver. A status of 0 is not written here: [`reset`](Self::reset).
    fn negotiation_mut(&mut self) -> &mut Negotiation;

    /// Back to the start: what the driver has said is forgotten.
    fn reset(&mut self);

    /// Number of queues that the device has at most: indices are below it.
    fn max_queues(&self) -> u16;

    /// Whether there is a queue `index`; some devices have gaps.
    fn has_queue(&self, index: u16) -> bool {
        index < self.max_queues()
    }

    /// Bytes of the configuration space.
    fn config_len(&self) -> usize;

    /// Copies `to.len()` bytes of the configuration space from `offset` on; bytes past its end read as zero.
    fn read_config(&self, offset: usize, to: &mut [u8]);

    /// The driver writes to the configuration space, a field at a time; whether it may.
    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) -> bool {
        false
    }
}

impl DeviceModel for NetDevice {
    fn id(&self) -> u32 {
        net::DEVICE_ID
    }

    fn negotiation(&self) -> &Negotiation {
        self.negotiation()
    }

    fn negotiation_mut(&mut self) -> &mut Negotiation {
        self.negotiation_mut()
    }

    fn reset(&mut self) {
        self.reset();
    }

    fn max_queues(&self) -> u16 {
        self.max_queues()
    }

    fn config_len(&self) -> usize {
        size_of::<net::Config>()
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        self.read_config(offset, to);
    }
}

impl DeviceModel for BlkDevice {
    fn id(&self) -> u32 {
        blk::DEVICE_ID
    }

    fn negotiation(&self) -> &Negotiation {
        self.negotiation()
    }

    fn negotiation_mut(&mut self) -> &mut Negotiation {
        self.negotiation_mut()
    }

    fn reset(&mut self) {
        self.reset();
    }

    fn max_queues(&self) -> u16 {
        self.max_queues()
    }

    fn config_len(&self) -> usize {
        size_of::<blk::Config>()
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        self.read_config(offset, to);
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> bool {
        self.write_config(offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Settings;

    /// A transport has devices of any kind behind one type, and what it does to one is done to the device.
    #[test]
    fn a_device_is_driven_without_its_kind() {
        let settings = Settings {
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: None,
            max_pairs: 2,
            segmentation: false,
            iommu: false,
            speed: None,
            rss: false,
            filters: false,
        };
        let mut device = NetDevice::new(settings).unwrap();
        let model: &mut dyn DeviceModel = &mut device;
        assert_eq!(model.id(), 1);
        assert!(model.has_queue(4) && !model.has_queue(5));
        let mut mac = [0; 6];
        model.read_config(0, &mut mac);
        assert_eq!(mac, [2, 0, 0, 0, 0, 1]);
        assert!(!model.write_config(0, &[0]), "nothing of it is the driver's");
        let offered = model.negotiation().offered();
        model.negotiation_mut().ack(offered).unwrap();
        assert_eq!(device.negotiation().acked(), offered);
        DeviceModel::reset(&mut device);
        assert_eq!(device.negotiation().acked(), 0);
    }
}
