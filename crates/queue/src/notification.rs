//! What a kick carries when `NOTIFICATION_DATA` was negotiated (2.9): pure.

/// An available buffer notification as the 32-bit value that a transport passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotificationData {
    /// The queue's index, or what the device asked to be given in its place.
    pub vqn: u16,
    /// What the driver will make available next. Split: the available index. Packed: the cursor's
    /// [`to_off_wrap`](crate::Cursor::to_off_wrap).
    pub next: u16,
}

impl NotificationData {
    /// The value as it is written.
    pub const fn to_word(self) -> u32 {
        self.vqn as u32 | (self.next as u32) << 16
    }

    /// The value as it was read.
    pub const fn from_word(word: u32) -> Self {
        Self { vqn: word as u16, next: (word >> 16) as u16 }
    }
}

#[cfg(test)]
mod tests {
    use super::NotificationData;
    use crate::Cursor;

    #[test]
    fn the_queue_is_in_the_low_half() {
        let next = Cursor::new(0x123, true).to_off_wrap();
        assert_eq!(NotificationData { vqn: 0x4567, next }.to_word(), 0x8123_4567);
        assert_eq!(NotificationData { vqn: 0xffff, next: 0 }.to_word(), 0x0000_ffff);
        assert_eq!(NotificationData { vqn: 0, next: 0xffff }.to_word(), 0xffff_0000);
    }

    #[test]
    fn what_is_written_is_read() {
        let values = [0, 1, 0x1234, 0x7fff, 0x8000, 0xfffe, 0xffff];
        for vqn in values {
            for next in values {
                let data = NotificationData { vqn, next };
                assert_eq!(NotificationData::from_word(data.to_word()), data);
            }
        }
    }
}
