//! A turn at a queue, for devices whose chains wait until there is something for them.
//!
//! A chain is looked at first, and completed when it is known what becomes of it; those left at the end of the turn are given
//! back, as if they had not been taken. A turn is bounded, whatever the driver makes available meanwhile.

use ringway_memory::GuestBuf;
use ringway_queue::{Burst, Chain, DeviceQueue, QueueError};

/// The most chains of a turn.
const TURN: usize = 32;
/// The most bytes that are moved at once, and as many times [`TURN`] in a turn: a multiple of what streams are made of.
pub(crate) const PIECE: usize = 4096;

/// A turn at a queue.
pub(crate) struct Serving<'a> {
    queue: &'a mut DeviceQueue,
    burst: &'a mut Burst,
    /// How many chains may still be taken.
    left: usize,
    failed: Option<QueueError>,
}

impl<'a> Serving<'a> {
    pub(crate) fn new(queue: &'a mut DeviceQueue, burst: &'a mut Burst) -> Self {
        Self { queue, burst, left: TURN, failed: None }
    }

    /// How many bytes the next chain has room for; `None` if there is none.
    pub(crate) fn room(&mut self) -> Option<usize> {
        self.look().then(|| self.burst.next_writable_len() as usize)
    }

    /// What the driver wrote in the next chain, if there is one.
    pub(crate) fn readable(&mut self) -> Option<GuestBuf<'_>> {
        self.look();
        self.burst.readable().next()
    }

    /// Completes the next chain with what `answer` says it has written.
    pub(crate) fn complete(&mut self, answer: impl FnOnce(&Chain<'_>) -> usize) {
        if let Some(chain) = self.burst.next() {
            let written = answer(&chain);
            self.queue.complete(chain, written as u32);
        }
    }

    /// Completes the next chain with these bytes, or as many as it has room for.
    pub(crate) fn answer(&mut self, bytes: &[u8]) {
        self.complete(|chain| chain.writable().write(bytes));
    }

    /// Passes what the driver wrote on to `sink`, which says how many bytes it took; what it did not take stays in the queue. So
    /// much of the first chain was passed on before: `passed_on`.
    pub(crate) fn pass_on(&mut self, passed_on: &mut usize, sink: &mut dyn FnMut(&[u8]) -> usize) {
        let mut bytes = [0; PIECE];
        for _ in 0..TURN {
            let Some(text) = self.readable() else { break };
            let len = text.len();
            let n = text.advance(*passed_on).read(&mut bytes);
            let taken = if n == 0 { 0 } else { sink(&bytes[..n]).min(n) };
            *passed_on += taken;
            if *passed_on >= len {
                *passed_on = 0;
                self.answer(&[]);
            } else if taken < n {
                break;
            }
        }
    }

    /// Whether a chain waits. What was taken once may be all that the queue knew of then, so it is asked again.
    fn look(&mut self) -> bool {
        if self.burst.is_empty() && self.left > 0 && self.failed.is_none() {
            match self.queue.take(self.burst, self.left) {
                Ok(taken) => self.left -= taken,
                Err(error) => self.failed = Some(error),
            }
        }
        !self.burst.is_empty()
    }

    /// Shows the driver what was completed, and gives back the rest. Returns whether to call the driver.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`]: what was completed before the malformed chain is shown as well.
    pub(crate) fn end(self) -> Result<bool, QueueError> {
        // With nothing to give back the queue may have stopped at an address that has no translation, which it is to remember.
        if !self.burst.is_empty() {
            self.queue.rewind(self.burst);
        }
        let call = self.queue.publish();
        self.failed.map_or(Ok(call), Err)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use ringway_memory::Gpa;
    use ringway_queue::Segment;

    use super::*;
    use crate::loopback::Loopback;

    /// What comes after chains that were given back is served in the same turn; but not more than a turn's worth.
    #[test]
    fn a_turn_is_all_there_is_up_to_a_bound() {
        for mut pair in Loopback::formats() {
            pair.add(&[], &[1]);
            let mut serving = Serving::new(&mut pair.device, &mut pair.burst);
            assert_eq!(serving.room(), Some(1));
            serving.end().unwrap();
            (1..TURN + 5).for_each(|_| pair.add(&[], &[1]));
            for due in [TURN, 5, 0] {
                let mut serving = Serving::new(&mut pair.device, &mut pair.burst);
                while serving.room().is_some() {
                    serving.answer(b"x");
                }
                serving.end().unwrap();
                assert_eq!(core::iter::from_fn(|| pair.used()).count(), due);
            }
        }
    }

    /// A malformed chain ends the queue, and the driver has those before it.
    #[test]
    fn chains_before_a_malformed_one_are_answered() {
        for mut pair in Loopback::formats() {
            pair.add(&[], &[1]);
            let nowhere = [Segment { addr: Gpa(0), len: 1 }];
            assert!(pair.driver.add(&[], &nowhere, (Vec::new(), Vec::new())).is_ok());
            let _ = pair.driver.publish();
            let mut serving = Serving::new(&mut pair.device, &mut pair.burst);
            while serving.room().is_some() {
                serving.answer(b"x");
            }
            assert!(matches!(serving.end(), Err(QueueError::Memory(_))));
            assert_eq!((pair.used(), pair.used()), (Some(vec![b'x']), None));
        }
    }
}
