//! The device of docs/write-a-device.md.

use ringway_device::model::DeviceModel;
use ringway_device::status::Negotiation;
use ringway_queue::{Burst, Chain, DeviceQueue, QueueError};
use ringway_spec::feature;

/// The real-time clock device (5.23), with one clock.
pub(crate) struct ClockDevice {
    negotiation: Negotiation,
}

impl ClockDevice {
    pub(crate) fn new() -> Self {
        let mut offered = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
        offered |= feature::RING_PACKED | feature::IN_ORDER;
        // The second list has pairs of a feature and one that it requires; these have none.
        Self { negotiation: Negotiation::new(offered, &[]) }
    }
}

impl DeviceModel for ClockDevice {
    fn id(&self) -> u32 {
        17
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

const REQ_READ: u16 = 0x0001;
const REQ_CFG: u16 = 0x1000;
const S_EOPNOTSUPP: u8 = 2;
const S_ENODEV: u8 = 3;
const S_EINVAL: u8 = 4;

/// Requests that are answered before others have their turn.
const BURST: usize = 32;

/// Answers what is in the request queue; `now` is the time in nanoseconds. Returns whether to call the driver.
pub(crate) fn serve(
    queue: &mut DeviceQueue,
    burst: &mut Burst,
    now: impl Fn() -> u64,
) -> Result<bool, QueueError> {
    queue.take(burst, BURST)?;
    while let Some(chain) = burst.next() {
        let answer = answer(&chain, &now);
        let written = chain.writable().write(&answer);
        queue.complete(chain, written as u32);
    }
    Ok(queue.publish())
}

/// The answer to a request: a status, seven reserved bytes, and a field of eight bytes or none.
fn answer(chain: &Chain<'_>, now: impl Fn() -> u64) -> [u8; 16] {
    let mut answer = [0; 16];
    match judge(chain, now) {
        Ok(value) => answer[8..].copy_from_slice(&value.to_le_bytes()),
        Err(status) => answer[0] = status,
    }
    answer
}

/// What a request asks for, or why it is not answered.
fn judge(chain: &Chain<'_>, now: impl Fn() -> u64) -> Result<u64, u8> {
    // Copied once: whatever the driver writes to its buffer from now on is of no matter.
    let head: [u8; 8] = chain.readable().read_array().ok_or(S_EINVAL)?;
    let room = chain.writable_len();
    match u16::from_le_bytes([head[0], head[1]]) {
        REQ_CFG if room >= 16 => Ok(1),
        REQ_READ if room >= 16 => match chain.readable().advance(8).read_array::<8>() {
            Some([0, 0, ..]) => Ok(now()),
            Some(_) => Err(S_ENODEV),
            None => Err(S_EINVAL),
        },
        REQ_CFG | REQ_READ => Err(S_EINVAL),
        _ => Err(S_EOPNOTSUPP),
    }
}
