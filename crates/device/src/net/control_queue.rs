//! The control queue (5.1.6.5): commands come as chains, and each is answered by a byte.
//!
//! ```text
//!   take ──► copy, bounded ──► NetDevice::control ──► answer ──► complete │ the caller: what changed? ──► publish
//! ```
//!
//! The driver is not told here. It may go by an answer as soon as it sees one, so whoever serves the queue first
//! applies what was ordered (filter, steering, offloads, pairs), and then publishes.

use alloc::vec::Vec;

use ringway_queue::{Burst, DeviceQueue, QueueError};
use ringway_spec::net::CTRL_ERR;

use super::{MAX_COMMAND, NetDevice};

/// Commands served before others' turn.
const COMMANDS: usize = 16;

/// Serves the control queue of a [`NetDevice`], a few commands at a time.
///
/// ```
/// # use ringway_device::net::{ControlQueue, NetDevice};
/// # use ringway_queue::{DeviceQueue, QueueError};
/// # fn apply(_: &NetDevice) {}
/// /// Says whether to call the driver.
/// fn kicked(commands: &mut ControlQueue, queue: &mut DeviceQueue, device: &mut NetDevice) -> Result<bool, QueueError> {
///     let mut call = false;
///     while commands.serve(queue, device)? > 0 || queue.arm() {
///         apply(device);
///         call |= queue.publish();
///     }
///     Ok(call)
/// }
/// ```
#[derive(Default)]
pub struct ControlQueue {
    burst: Burst,
    /// The copy of a command, at most [`MAX_COMMAND`] bytes.
    command: Vec<u8>,
}

impl ControlQueue {
    /// Carries out some of the commands that wait in `queue`; returns how many, 0 if there was none. They are answered
    /// once the queue was published.
    ///
    /// # Errors
    /// [`QueueError`] if the driver broke the queue.
    pub fn serve(&mut self, queue: &mut DeviceQueue, device: &mut NetDevice) -> Result<usize, QueueError> {
        let count = queue.take(&mut self.burst, COMMANDS)?;
        while let Some(chain) = self.burst.next() {
            let command = chain.readable();
            let answer = if command.len() > MAX_COMMAND {
                CTRL_ERR
            } else {
                self.command.resize(command.len(), 0);
                command.read(&mut self.command);
                device.control(&self.command)
            };
            let written = chain.writable().write(&[answer]);
            queue.complete(chain, written as u32);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec;

    use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, SharedBuf};
    use ringway_queue::{Areas, DriverConfig, DriverQueue, QueueConfig, ResumeState, Segment};
    use ringway_spec::feature::{RING_PACKED, VERSION_1};
    use ringway_spec::net::{CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, CTRL_OK, F_CTRL_VQ, F_MQ};

    use super::super::tests::SETTINGS;
    use super::*;

    const SIZE: u16 = 64;
    const BUFFER: u32 = 0x2_0000;

    /// Both ends of a control queue, and buffers for the driver.
    fn queue(features: u64) -> (DriverQueue<[SharedBuf; 2]>, DeviceQueue, Vec<SharedBuf>) {
        let len = 0x8000 + u64::from(BUFFER) * 40;
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        let region = Mapping::region(file.into(), 0, len, Gpa(0x1000_0000), FrontendVa(0)).unwrap();
        let buffers = SharedBuf::divide(&region, 0x8000..len, BUFFER).unwrap().collect();
        let memory = Arc::new(MemoryTable::new(vec![region]).unwrap());
        let [descriptor, driver, device] = [0, 0x2000, 0x4000].map(FrontendVa);
        let areas = || Areas::resolve(&memory, SIZE, features, descriptor, driver, device).unwrap();
        let start = ResumeState::start(features);
        let driver =
            DriverConfig { size: SIZE, features, areas: areas(), start, max_chain: SIZE, tables: None };
        let device = QueueConfig {
            size: SIZE,
            features,
            areas: areas(),
            memory: Arc::clone(&memory),
            used_log: None,
            resume: start,
            inflight: None,
        };
        (DriverQueue::new(driver).unwrap(), DeviceQueue::start(device).unwrap(), buffers)
    }

    /// [DEV-SPLIT-message-framing-01] Commands reach the model, a few at a time, and each is
    /// answered by a byte, however the driver divides it.
    #[test]
    fn commands_are_answered_in_turn() {
        for features in [VERSION_1, VERSION_1 | RING_PACKED] {
            let mut device = NetDevice::new(SETTINGS).unwrap();
            device.negotiation_mut().ack(features | F_CTRL_VQ | F_MQ).unwrap();
            let (mut driver, mut queue, mut buffers) = queue(features);
            // Pairs 1 to 8 can be had, 9 to 18 cannot.
            for pairs in 1..=18 {
                let (mut command, answer) = (buffers.pop().unwrap(), buffers.pop().unwrap());
                command.write(&[CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, pairs, 0]);
                let readable = [
                    Segment { len: 1, ..Segment::from(&command) },
                    Segment { addr: Gpa(command.addr().0 + 1), len: 3 },
                ];
                let writable = [Segment { len: 1, ..Segment::from(&answer) }];
                driver.add(&readable, &writable, [command, answer]).unwrap_or_else(|_| panic!("room"));
            }
            let _ = driver.publish();
            let mut commands = ControlQueue::default();
            assert_eq!(commands.serve(&mut queue, &mut device), Ok(COMMANDS));
            assert!(!driver.has_used(), "not before what was ordered is applied");
            assert_eq!(device.active_pairs(), 8);
            let _ = queue.publish();
            assert_eq!(commands.serve(&mut queue, &mut device), Ok(2));
            let _ = queue.publish();
            assert_eq!(commands.serve(&mut queue, &mut device), Ok(0));
            for pairs in 1..=18 {
                let used = driver.reclaim().unwrap().expect("an answer");
                let mut answer = [0xff];
                used.owner[1].read(&mut answer);
                assert_eq!((answer[0] == CTRL_OK, used.written), (pairs <= 8, 1), "{pairs} pairs");
            }
        }
    }

    /// A command that is too long is refused without a look at it; one without room for an
    /// answer is carried out, and nothing is written.
    #[test]
    fn odd_chains_are_used_up() {
        let mut device = NetDevice::new(SETTINGS).unwrap();
        device.negotiation_mut().ack(VERSION_1 | F_CTRL_VQ | F_MQ).unwrap();
        let (mut driver, mut queue, mut buffers) = queue(VERSION_1);
        let mut buffer = || {
            let mut buffer = buffers.pop().unwrap();
            buffer.write(&[CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, 2, 0]);
            buffer
        };
        let (long, answer) = (buffer(), buffer());
        let segments = ([Segment::from(&long)], [Segment::from(&answer)]);
        driver.add(&segments.0, &segments.1, [long, answer]).unwrap_or_else(|_| panic!("room"));
        let (mute, other) = (buffer(), buffer());
        let segment = Segment { len: 4, ..Segment::from(&mute) };
        driver.add(&[segment], &[], [mute, other]).unwrap_or_else(|_| panic!("room"));
        let _ = driver.publish();

        let mut commands = ControlQueue::default();
        assert_eq!(commands.serve(&mut queue, &mut device), Ok(2));
        let _ = queue.publish();
        assert_eq!(device.active_pairs(), 2, "by the second one");
        let used = driver.reclaim().unwrap().expect("an answer");
        let mut answer = [0xff];
        used.owner[1].read(&mut answer);
        assert_eq!((answer[0], used.written), (CTRL_ERR, 1));
        assert_eq!(driver.reclaim().unwrap().expect("used").written, 0);
        assert!(commands.command.len() <= MAX_COMMAND);
    }
}
