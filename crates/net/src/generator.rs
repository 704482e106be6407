//! The generator: frames from nowhere, for benchmarks and tests.

use ringway_device::net::Hash;
use ringway_memory::{GuestBuf, GuestSlice};

use crate::fabric::{Delivery, Forward};
use crate::frame::{ETHERNET_LEN, Ethernet, Frame, Prefix};
use crate::offload::MAX_FRAME;
use crate::port::guest::{PLAIN_HEADER, RxRing, Undelivered};

/// Frames generated before the next ring's turn.
const BURST: usize = 64;

/// The frames of [`Forward::Generate`]: to all stations, of the type for local experiments (IEEE 802, 9.2.3),
/// numbered from 0.
pub(crate) struct Generator {
    frame: Vec<u8>,
    number: u64,
}

impl Generator {
    pub(crate) fn new(forward: Forward) -> Self {
        let Forward::Generate(size) = forward else { return Self { frame: Vec::new(), number: 0 } };
        let mut frame = vec![0xff; 6];
        frame.extend([0x02, 0, 0, 0, 0, 0x01, 0x88, 0xb5]);
        frame.resize(size.clamp(ETHERNET_LEN + 8, MAX_FRAME), 0);
        Self { frame, number: 0 }
    }

    /// Sends frames to a ring until it has no more buffers, a burst at most; returns how many.
    pub(crate) fn send<'w>(&mut self, ring: &'w RxRing, delivery: &mut Delivery<'w>) -> usize {
        for count in 0..BURST {
            self.frame[ETHERNET_LEN..][..8].copy_from_slice(&self.number.to_be_bytes());
            let slices = [GuestSlice::from_mut(&mut self.frame)];
            let data = GuestBuf::new(&slices);
            if delivery.is_plain() && delivery.send_plain(ring.port, ETHERNET_LEN, PLAIN_HEADER, data) {
                self.number += 1;
                continue;
            }
            let Some(ethernet) = Ethernet::read(data) else { return count };
            let frame = Frame { header: None, ethernet, prefix: Prefix::default(), data };
            match delivery.send_to_ring(ring.port, ring, Hash::default(), &frame) {
                Ok(()) => self.number += 1,
                // No buffer is no loss: the frame has yet to be sent.
                Err(Undelivered::Dropped(_)) => return count,
                Err(failed @ Undelivered::Failed(_)) => {
                    delivery.refuse(ring.port, ring, &failed);
                    return count;
                }
            }
        }
        BURST
    }
}
