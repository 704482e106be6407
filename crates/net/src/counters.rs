//! What workers count. Each counter has one writer, a worker or the control thread, and may be read at any time; what
//! all count of a port is the sum.
//!
//! Frames add up: what came from a port was delivered to others, or is named by a reason.

use std::collections::BTreeMap;
use std::fmt;

pub use ringway_vhost::Counter;

macro_rules! drops {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a frame went nowhere.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The reason as the counters print it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

drops! {
    /// Counted at the receiver: it gave no buffers.
    NoBuffer = "no-buffer",
    /// Counted at the receiver: no front-end is attached, or its rings do not run.
    NotReady = "not-ready",
    /// Counted at the receiver: longer than its MTU, or than its buffer without merging.
    TooLong = "too-long",
    /// Counted at the receiver: it takes segments only, and the frame cannot be cut.
    Unsegmentable = "unsegmentable",
    /// Counted at the sender: too short for a frame, or a header that contradicts it.
    Malformed = "malformed",
    /// Counted at the sender: its ring is not enabled.
    Disabled = "disabled",
    /// Counted at the sender: the destination is on the port that it came from, there is no other port, or the
    /// address belongs to the link.
    Filtered = "filtered",
    /// Counted at the sender: a VLAN that its port is not in.
    Vlan = "vlan",
    /// Counted at the sender: from an address that it may not have.
    Secured = "secured",
    /// Counted at the sender: too many frames for all.
    Storm = "storm",
    /// Counted at the receiver: more than its rate; or at an uplink that it came from.
    Limited = "limited",
}

/// The counters of a port. "From" and "to" are seen from the switch: frames from the port's guest or uplink, and
/// frames to it.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames taken from the port.
    pub from_frames: Counter,
    /// Their bytes, headers of the transport apart.
    pub from_bytes: Counter,
    /// Frames delivered to the port.
    pub to_frames: Counter,
    /// Their bytes.
    pub to_bytes: Counter,
    /// Copies made of frames delivered to the port.
    pub copies: Counter,
    /// Frames cut into segments for the port, all of which it took.
    pub segmented: Counter,
    /// Segments delivered to the port, each of them one of [`Counters::to_frames`].
    pub segments: Counter,
    /// Times the worker woke up because the driver kicked.
    pub kicks: Counter,
    /// Times the driver was called.
    pub calls: Counter,
    /// System calls made for the port: calls, reads and writes of an uplink.
    pub syscalls: Counter,
    /// Front-ends that attached and started a ring.
    pub sessions: Counter,
    /// Rings that failed.
    pub failures: Counter,
    drops: [Counter; DropReason::ALL.len()],
}

impl Counters {
    /// Counts a call to a driver, if there was one.
    #[inline]
    pub(crate) fn count_call(&self, was_called: bool) {
        if was_called {
            self.calls.add(1);
            self.syscalls.add(1);
        }
    }

    /// Counts a ring that failed, if it did not before; returns whether that is so.
    pub(crate) fn count_failure(&self, is_news: bool) -> bool {
        self.failures.add(is_news.into());
        is_news
    }

    /// Counts a frame that went nowhere.
    #[inline]
    pub fn count_drop(&self, reason: DropReason) {
        self.drops[reason as usize].add(1);
    }

    /// Adds what another one counted.
    pub(crate) fn add(&self, other: &Self) {
        for ((_, counter), (_, other)) in self.named().zip(other.named()) {
            counter.add(other.get());
        }
    }

    /// Goes on from what was counted, by name.
    pub(crate) fn restore(&self, counted: &BTreeMap<String, u64>) {
        for (name, counter) in self.named() {
            counter.add(counted.get(name).copied().unwrap_or_default());
        }
    }

    /// All counters, by names that stay.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &Counter)> {
        let Self { from_frames, from_bytes, to_frames, to_bytes, copies, segmented, segments, .. } = self;
        let Self { kicks, calls, syscalls, sessions, failures, drops, .. } = self;
        let drops = DropReason::ALL.iter().map(|reason| reason.name()).zip(drops);
        [
            ("from-frames", from_frames),
            ("from-bytes", from_bytes),
            ("to-frames", to_frames),
            ("to-bytes", to_bytes),
            ("copies", copies),
            ("segmented", segmented),
            ("segments", segments),
            ("kicks", kicks),
            ("calls", calls),
            ("syscalls", syscalls),
            ("sessions", sessions),
            ("failures", failures),
        ]
        .into_iter()
        .chain(drops)
    }

    /// How many frames went nowhere for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "from {} frames {} bytes, to {} frames {} bytes, copies {}, segmented {}, segments {}, kicks {}, calls {}, syscalls {}, \
             sessions {}, failed rings {}, dropped",
            self.from_frames.get(),
            self.from_bytes.get(),
            self.to_frames.get(),
            self.to_bytes.get(),
            self.copies.get(),
            self.segmented.get(),
            self.segments.get(),
            self.kicks.get(),
            self.calls.get(),
            self.syscalls.get(),
            self.sessions.get(),
            self.failures.get(),
        )?;
        for &reason in DropReason::ALL {
            write!(f, " {} {}", reason.name(), self.dropped(reason))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No counter is left out, and no name is there twice.
    #[test]
    fn every_counter_has_a_name() {
        let counters = Counters::default();
        let names: std::collections::BTreeSet<_> = counters.named().map(|(name, _)| name).collect();
        assert_eq!(names.len() * size_of::<Counter>(), size_of::<Counters>());
    }
}
