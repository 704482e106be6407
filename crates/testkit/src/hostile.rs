//! Peers made of arbitrary bytes, who do what they please: a front-end with a socket, a driver or a device with
//! a ring, a sender of frames, a driver with a disk, and a guest with registers.
//!
//! The functions read their input as a list of steps, so that every input means something and a small change
//! of it is a small change of what the peer does. None does more work than a bound, whatever the input; what
//! must always hold is asserted on the way. The fuzz targets call them, and so do tests with seeded inputs.

mod blk;
mod registers;
mod ring;
mod segmenter;
mod session;

pub use blk::blk;
pub use registers::registers;
pub use ring::{packed_device, packed_driver, pair, split_device, split_driver};
pub use segmenter::segmenter;
pub use session::session;

/// The most steps taken of one input.
const MAX_STEPS: usize = 200;

/// Bytes that are read from the front; past their end come zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let n = N.min(self.0.len());
        let mut array = [0; N];
        array[..n].copy_from_slice(self.bytes(n));
        array
    }

    /// Up to `n` bytes: fewer if there are fewer.
    fn bytes(&mut self, n: usize) -> &[u8] {
        let (bytes, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn u8(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}
