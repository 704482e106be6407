//! Event suppression arithmetic (2.7.7.2, 2.7.10): pure, and the same for both directions.

/// Whether moving a ring's index from `old` to `new` passed `event`, the position at which the peer asked to
/// be notified: whether `event` lies in `old..new`, modulo 2¹⁶.
///
/// Equality with `new - 1` would miss an event inside a burst.
pub const fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::passed;

    /// The definition, step by step: some index on the way from old to new is the event.
    fn by_steps(event: u16, new: u16, old: u16) -> bool {
        let mut at = old;
        while at != new {
            if at == event {
                return true;
            }
            at = at.wrapping_add(1);
        }
        false
    }

    /// [DEV-SPLIT-used-buffer-notification-suppression-05] [DEV-SPLIT-used-buffer-notification-suppression-06]
    /// Every event near, inside and far from every short move, around every wrap.
    #[test]
    fn passed_agrees_with_its_definition() {
        for old in (0..40).chain(65500..=65535) {
            for step in 0..40u16 {
                let new = u16::wrapping_add(old, step);
                for offset in -80i16..80 {
                    let event = old.wrapping_add_signed(offset);
                    assert_eq!(passed(event, new, old), by_steps(event, new, old), "{event} {new} {old}");
                }
                assert!(!passed(new, new, old), "the next entry has not been written yet");
            }
        }
    }
}
