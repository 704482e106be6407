//! The generator: frames from nowhere, for benchmarks and tests.

use ringway_memory::{GuestBuf, GuestSlice};

use crate::fabric::{Fabric, Forward};
use crate::frame::{ETHERNET_LEN, Frame};
use crate::offload::MAX_FRAME;
use crate::port::guest::Undelivered;

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

    /// Sends frames to a guest until it has no more buffers, a burst at most; returns how many.
    pub(crate) fn send(&mut self, fabric: &mut Fabric, port: usize) -> usize {
        let Fabric { ports, scratch, .. } = &mut *fabric;
        let Some(guest) = ports[port].guest().filter(|g| g.can_receive()) else { return 0 };
        for count in 0..BURST {
            self.frame[ETHERNET_LEN..][..8].copy_from_slice(&self.number.to_be_bytes());
            let slices = [GuestSlice::from_mut(&mut self.frame)];
            let data = GuestBuf::new(&slices);
            let frame = Frame { header: None, data, ethernet_len: ETHERNET_LEN, addresses: None };
            match guest.deliver(frame, scratch) {
                Ok(()) => self.number += 1,
                Err(Undelivered::Failed(index, error)) => {
                    fabric.fail(port, index, error);
                    return count;
                }
                // No buffer is no loss: the frame has yet to be sent.
                Err(Undelivered::Dropped(_)) => return count,
            }
        }
        BURST
    }
}
