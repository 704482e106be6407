//! The entropy device (5.4): it fills the driver's buffers with random bytes, which whoever serves it has.
//!
//! A chain is used when there is a byte for it, and then with as many as there are, up to a bound. A chain without room for
//! one is given back as it is, and what a driver wrote for the device to read is not read: it may not write any.

use ringway_queue::{Burst, DeviceQueue, QueueError};
use ringway_spec::entropy::DEVICE_ID;
use ringway_spec::feature;

use crate::model::DeviceModel;
use crate::serving::Serving;
use crate::status::Negotiation;

/// The most bytes that a chain gets.
const CHAIN_MAX: usize = 1024;

/// An entropy device.
#[derive(Debug, Clone)]
pub struct EntropyDevice {
    negotiation: Negotiation,
}

impl EntropyDevice {
    /// A device after reset; whether it offers to be behind an IOMMU.
    pub fn new(iommu: bool) -> Self {
        let mut offered = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
        offered |= feature::RING_PACKED | feature::IN_ORDER;
        if iommu {
            offered |= feature::ACCESS_PLATFORM;
        }
        Self { negotiation: Negotiation::new(offered, &[]) }
    }

    /// Fills up to 32 chains by `fill`, which says how many bytes it had; 0 is none now: chains wait for the next call.
    /// Returns whether to call the driver. `burst` is empty, and stays so.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn serve(
        &mut self,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
        fill: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Result<bool, QueueError> {
        let mut serving = Serving::new(queue, burst);
        let mut bytes = [0; CHAIN_MAX];
        while let Some(room) = serving.room() {
            let bytes = &mut bytes[..CHAIN_MAX.min(room)];
            let filled = if bytes.is_empty() { 0 } else { fill(bytes).min(bytes.len()) };
            if filled == 0 && !bytes.is_empty() {
                break;
            }
            serving.answer(&bytes[..filled]);
        }
        serving.end()
    }
}

impl DeviceModel for EntropyDevice {
    fn id(&self) -> u32 {
        DEVICE_ID
    }

    fn negotiation(&self) -> &Negotiation {
        &self.negotiation
    }

    fn negotiation_mut(&mut self) -> &mut Negotiation {
        &mut self.negotiation
    }

    fn reset(&mut self) {
        self.negotiation.reset();
    }

    fn max_queues(&self) -> u16 {
        1
    }

    fn config_len(&self) -> usize {
        0
    }

    fn read_config(&self, _offset: usize, to: &mut [u8]) {
        to.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::loopback::Loopback;

    fn serve(pair: &mut Loopback, fill: &mut dyn FnMut(&mut [u8]) -> usize) {
        let _ = EntropyDevice::new(false).serve(&mut pair.device, &mut pair.burst, fill).unwrap();
    }

    /// [DEV-ENTROPY-op-01] A buffer is used with a byte or more, and not before there is one.
    #[test]
    fn a_buffer_waits_until_there_is_a_byte_for_it() {
        for mut pair in Loopback::formats() {
            pair.add(&[], &[3]);
            pair.add(&[], &[2, 2000]);
            serve(&mut pair, &mut |_| 0);
            assert_eq!(pair.used(), None);
            let mut left = 7;
            let mut source = |to: &mut [u8]| {
                let n = left.min(to.len());
                to[..n].fill(0xa5);
                left -= n;
                n
            };
            serve(&mut pair, &mut source);
            assert_eq!(pair.used(), Some(vec![0xa5; 3]));
            assert_eq!(pair.used(), Some(vec![0xa5; 4]), "less than there is room for");
            pair.add(&[], &[1]);
            serve(&mut pair, &mut |_| 0);
            assert_eq!(pair.used(), None);
            serve(&mut pair, &mut |to| to.len() + 100);
            assert_eq!(pair.used(), Some(vec![0]), "a source that says too much");
        }
    }

    /// What the driver wrote is not read, and a chain without room costs no random byte.
    #[test]
    fn readable_buffers_are_ignored() {
        for mut pair in Loopback::formats() {
            pair.add(&[b"seed"], &[]);
            pair.add(&[b"seed"], &[2]);
            serve(&mut pair, &mut |to| {
                to.fill(7);
                to.len()
            });
            assert_eq!((pair.used(), pair.used()), (Some(vec![]), Some(vec![7; 2])));
        }
    }
}
