//! The Internet checksum (RFC 1071): sums of 16-bit words in ones' complement.
//!
//! Such a sum may be taken over words of any size and of either byte order, and put right in the end. So it is taken over
//! 32-bit words of the processor's own order in 64-bit sums, which nothing overflows and compilers vectorise.

use std::ops::{Add, AddAssign, Sub};

use zerocopy::byteorder::big_endian::U16;

/// A sum in ones' complement. Of its two zeros, 0 and 0xffff, only the sum of nothing but zeros is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u16);

impl Sum {
    /// The sum of `bytes`. A last one without a partner counts as a word's first.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum: u64 = words.iter().map(|&word| u64::from(u32::from_ne_bytes(word))).sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
        // Four words of 16 bits, the carries of which are added until there are none.
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        Self(u16::from_be_bytes((sum as u16).to_ne_bytes()))
    }

    /// What a field holds that makes the sum of all that it covers 0xffff.
    #[inline]
    pub fn complement(self) -> U16 {
        U16::new(!self.0)
    }

    /// The sum itself, as a field holds it whose checksum is yet to be completed.
    #[inline]
    pub fn partial(self) -> U16 {
        U16::new(self.0)
    }
}

impl From<u16> for Sum {
    fn from(word: u16) -> Self {
        Self(word)
    }
}

impl Add for Sum {
    type Output = Self;

    #[inline]
    fn add(self, other: Self) -> Self {
        let (sum, carry) = self.0.overflowing_add(other.0);
        Self(sum + u16::from(carry))
    }
}

impl AddAssign for Sum {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Sum {
    type Output = Self;

    #[inline]
    fn sub(self, other: Self) -> Self {
        self + Self(!other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of RFC 1071, section 3, odd lengths, and more than any frame has of the largest words.
    #[test]
    fn sums_are_right() {
        assert_eq!(Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), Sum(0xddf2));
        assert_eq!(Sum::of(&[0x01]), Sum(0x0100));
        assert_eq!(Sum::of(&[]), Sum(0));
        assert_eq!(Sum::of(&[0; 9]).complement(), U16::new(0xffff));
        assert_eq!(Sum::of(&vec![0xff; 1 << 20]), Sum(0xffff));
        assert_eq!(Sum::of(&vec![0xff; 65535]), Sum(0xff00), "32767 × 0xffff + 0xff00");
    }

    /// By the definition: word by word, the carry added back at once.
    fn slowly(bytes: &[u8]) -> Sum {
        bytes.chunks(2).fold(Sum(0), |sum, pair| {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            let (sum, carry) = sum.0.overflowing_add(word);
            Sum(sum + u16::from(carry))
        })
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Sum::of(&bytes), slowly(&bytes));
        }

        /// What was added is taken away again; zero may come back in its other form.
        #[test]
        fn a_difference(a in 1..u16::MAX, b: u16) {
            prop_assert_eq!(Sum(a) + Sum(b) - Sum(b), Sum(a));
        }
    }
}
