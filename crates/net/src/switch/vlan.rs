//! Which VLAN a frame belongs to, and what becomes of its tag (IEEE 802.1Q).
//!
//! ```text
//!            in                                        out
//!  access    without a tag: the port's VLAN            the port's VLAN, without a tag
//!  trunk     a tag: its VLAN, if allowed               allowed VLANs, with a tag
//!            without a tag: the native VLAN            the native VLAN, without one
//! ```
//!
//! VLAN 0 is that of frames without a tag where nobody gave them another. It is the native one of a port that was
//! told nothing, and all others are allowed there: frames cross as they are. A tag that says 0 has a priority
//! only and counts as none (6.9.1). Tags of providers (0x88a8) are not looked at.

use std::str::FromStr;

/// The number that no frame may carry (9.6, table 9-2).
pub(super) const RESERVED: u16 = 0xfff;

/// What a port does with tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// A station that knows no VLANs is in this one.
    Access(u16),
    /// The frames of several VLANs, told apart by their tags.
    Trunk {
        /// The VLANs whose frames cross.
        allowed: VlanSet,
        /// The VLAN of frames without a tag, one of those allowed.
        native: u16,
    },
}

impl Default for Mode {
    fn default() -> Self {
        Self::Trunk { allowed: VlanSet::all(), native: 0 }
    }
}

/// A set of VLANs.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    /// All that a frame may be in.
    pub fn all() -> Self {
        let mut all = Self(Box::new([u64::MAX; 64]));
        all.remove(RESERVED);
        all
    }

    /// No VLAN.
    pub fn none() -> Self {
        Self(Box::new([0; 64]))
    }

    /// Adds a VLAN.
    pub fn insert(&mut self, vlan: u16) {
        self.0[usize::from(vlan / 64 % 64)] |= 1 << (vlan % 64);
    }

    /// Takes a VLAN away.
    pub fn remove(&mut self, vlan: u16) {
        self.0[usize::from(vlan / 64 % 64)] &= !(1 << (vlan % 64));
    }

    /// Whether a VLAN is in it.
    #[inline]
    pub fn contains(&self, vlan: u16) -> bool {
        self.0[usize::from(vlan / 64 % 64)] >> (vlan % 64) & 1 != 0
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..=RESERVED).filter(|&vlan| self.contains(vlan))).finish()
    }
}

impl FromStr for VlanSet {
    type Err = String;

    /// Reads `all`, or numbers and ranges such as `10+20-29`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::all());
        }
        let mut set = Self::none();
        for part in text.split('+') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{part:?} is not a range of VLANs"));
            }
            (first..=last).for_each(|vlan| set.insert(vlan));
        }
        Ok(set)
    }
}

/// The number of a VLAN.
///
/// # Errors
/// A message for people.
pub fn number(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(vlan @ 1..RESERVED) => Ok(vlan),
        _ => Err(format!("{text:?} is not a VLAN from 1 to 4094")),
    }
}

/// A frame's tag, as far as a port is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    /// The VLAN in it, 0 without one.
    pub(super) vlan: u16,
    /// Whether there is one, though it may say 0.
    pub(super) is_there: bool,
}

/// What is to be done to a frame's tag before it goes out of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retag {
    /// Nothing.
    Keep,
    /// It gets one, of this VLAN.
    Push(u16),
    /// Its tag, which has a priority only, gets this VLAN.
    Set(u16),
    /// It loses its tag.
    Pop,
}

impl Mode {
    /// Whether frames cross as they are.
    pub(super) fn is_transparent(&self) -> bool {
        *self == Self::default()
    }

    /// Whether frames of one VLAN may cross both ports.
    pub fn meets(&self, other: &Self) -> bool {
        (0..RESERVED).any(|vlan| self.has(vlan) && other.has(vlan))
    }

    /// Whether frames of a VLAN cross.
    pub(super) fn has(&self, vlan: u16) -> bool {
        match self {
            Self::Access(own) => vlan == *own,
            Self::Trunk { allowed, .. } => allowed.contains(vlan),
        }
    }

    /// The VLAN of a frame that comes in; `None` if the port does not take it.
    #[inline]
    pub(super) fn ingress(&self, tag: Tag) -> Option<u16> {
        match self {
            Self::Access(vlan) => (tag.vlan == 0).then_some(*vlan),
            Self::Trunk { allowed, native } => {
                let vlan = if tag.vlan == 0 { *native } else { tag.vlan };
                allowed.contains(vlan).then_some(vlan)
            }
        }
    }

    /// What a frame of this VLAN, which came with this tag, goes out with; `None` if it does not.
    #[inline]
    pub(super) fn egress(&self, vlan: u16, tag: Tag) -> Option<Retag> {
        let untagged = if tag.is_there { Retag::Pop } else { Retag::Keep };
        match self {
            Self::Access(own) => (vlan == *own).then_some(untagged),
            Self::Trunk { allowed, .. } if !allowed.contains(vlan) => None,
            // Frames that nobody gave a VLAN may keep a tag for its priority.
            Self::Trunk { native: 0, .. } if vlan == 0 => Some(Retag::Keep),
            Self::Trunk { native, .. } if vlan == *native => Some(untagged),
            Self::Trunk { .. } if tag.vlan == vlan => Some(Retag::Keep),
            Self::Trunk { .. } if tag.is_there => Some(Retag::Set(vlan)),
            Self::Trunk { .. } => Some(Retag::Push(vlan)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTAGGED: Tag = Tag { vlan: 0, is_there: false };
    const PRIORITY: Tag = Tag { vlan: 0, is_there: true };

    const fn tagged(vlan: u16) -> Tag {
        Tag { vlan, is_there: true }
    }

    fn trunk(allowed: &str, native: u16) -> Mode {
        Mode::Trunk { allowed: allowed.parse().unwrap(), native }
    }

    #[test]
    fn sets_are_read() {
        let set: VlanSet = "10+20-22+64+4094".parse().unwrap();
        assert_eq!(format!("{set:?}"), "{10, 20, 21, 22, 64, 4094}");
        let all: VlanSet = "all".parse().unwrap();
        assert!((0..RESERVED).all(|vlan| all.contains(vlan)) && !all.contains(RESERVED));
        for wrong in ["", "0", "4095", "1+", "5-4", "1-", "-1", "x", "1,2", "1-2-3", "All"] {
            assert!(wrong.parse::<VlanSet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_port_that_was_told_nothing_is_transparent() {
        let mode = Mode::default();
        assert!(mode.is_transparent());
        for tag in [UNTAGGED, PRIORITY, tagged(1), tagged(4094)] {
            let vlan = mode.ingress(tag).unwrap();
            assert_eq!((vlan, mode.egress(vlan, tag)), (tag.vlan, Some(Retag::Keep)));
        }
        assert_eq!(mode.ingress(tagged(RESERVED)), None);
    }

    #[test]
    fn access_ports_know_no_tags() {
        let mode = Mode::Access(7);
        assert_eq!([UNTAGGED, PRIORITY].map(|tag| mode.ingress(tag)), [Some(7), Some(7)]);
        assert_eq!([tagged(7), tagged(8)].map(|tag| mode.ingress(tag)), [None, None]);
        assert_eq!(mode.egress(7, UNTAGGED), Some(Retag::Keep));
        assert_eq!([PRIORITY, tagged(7)].map(|tag| mode.egress(7, tag)), [Some(Retag::Pop); 2]);
        assert_eq!([0, 8].map(|vlan| mode.egress(vlan, UNTAGGED)), [None, None]);
    }

    #[test]
    fn trunks_tag_all_but_the_native_vlan() {
        let mode = trunk("7+9", 9);
        assert_eq!([UNTAGGED, PRIORITY, tagged(9)].map(|tag| mode.ingress(tag)), [Some(9); 3]);
        assert_eq!([tagged(7), tagged(8)].map(|tag| mode.ingress(tag)), [Some(7), None]);
        assert_eq!(mode.egress(7, UNTAGGED), Some(Retag::Push(7)));
        assert_eq!(mode.egress(7, tagged(7)), Some(Retag::Keep));
        assert_eq!(mode.egress(7, PRIORITY), Some(Retag::Set(7)), "the priority is kept");
        assert_eq!(mode.egress(9, UNTAGGED), Some(Retag::Keep));
        assert_eq!([PRIORITY, tagged(9)].map(|tag| mode.egress(9, tag)), [Some(Retag::Pop); 2]);
        assert_eq!([0, 8].map(|vlan| mode.egress(vlan, UNTAGGED)), [None, None]);
    }

    /// Without a native VLAN among those allowed, there is nowhere for a frame without a tag to go.
    #[test]
    fn trunks_without_a_native_vlan() {
        let mode = trunk("7", 0);
        assert_eq!([UNTAGGED, PRIORITY].map(|tag| mode.ingress(tag)), [None, None]);
        assert_eq!(mode.egress(0, UNTAGGED), None);
        assert_eq!(mode.egress(7, UNTAGGED), Some(Retag::Push(7)));
    }

    /// Whatever the modes of two ports: a frame comes out in the VLAN that it went in with, read by the same rules,
    /// and comes out at all only if both ports have that VLAN.
    #[test]
    fn no_frame_changes_its_vlan() {
        let modes = [
            Mode::default(),
            Mode::Access(7),
            Mode::Access(9),
            trunk("7+9", 0),
            trunk("7+9", 7),
            trunk("8", 0),
        ];
        for (a, b) in modes.iter().flat_map(|a| modes.iter().map(move |b| (a, b))) {
            for tag in [UNTAGGED, PRIORITY, tagged(7), tagged(8), tagged(9)] {
                let Some(vlan) = a.ingress(tag) else { continue };
                assert!(a.has(vlan));
                let Some(retag) = b.egress(vlan, tag) else {
                    assert!(!b.has(vlan), "{a:?} {b:?} {tag:?}");
                    continue;
                };
                let out = match retag {
                    Retag::Keep => tag,
                    Retag::Pop => UNTAGGED,
                    Retag::Push(vlan) | Retag::Set(vlan) => tagged(vlan),
                };
                let fits = match retag {
                    Retag::Keep => true,
                    Retag::Push(_) => !tag.is_there,
                    Retag::Pop | Retag::Set(_) => tag.is_there,
                };
                assert!(fits, "{a:?} {b:?} {tag:?} {retag:?}");
                assert_eq!(b.ingress(out), Some(vlan), "{a:?} {b:?} {tag:?} {retag:?}");
            }
        }
    }
}
