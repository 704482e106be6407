//! Which frames the driver wants: modes, addresses, VLANs (5.1.6.5.1 to 5.1.6.5.3).
//!
//! ```text
//!   promiscuous? ─yes─► accepted
//!        │no
//!   VLAN of a tag in the table? ─no─► dropped
//!        │yes, or no tag
//!   its kind (unicast, multicast, broadcast): suppressed? ─yes─► dropped
//!        │no
//!   all of its kind, or its address? ─no─► dropped
//! ```
//!
//! A device is promiscuous after reset, so that a driver that never says what it wants gets what a device without
//! filters would give it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_spec::net::{
    CTRL_RX_ALLMULTI, CTRL_RX_ALLUNI, CTRL_RX_NOBCAST, CTRL_RX_NOMULTI, CTRL_RX_NOUNI, CTRL_RX_PROMISC,
};

/// An Ethernet address.
pub(super) type Address = [u8; 6];

const BROADCAST: Address = [0xff; 6];
/// Words of a set of VLANs.
const VLAN_WORDS: usize = 4096 / 64;

/// The frames that a driver wants. Without a part, that part does not filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub(super) addresses: Option<Addresses>,
    pub(super) vlans: Option<Vlans>,
}

/// Which destinations a driver wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addresses {
    /// The device's own, if it has one that the driver knows; else any unicast address may be.
    pub(super) own: Option<Address>,
    pub(super) modes: Modes,
    pub(super) table: AddressTable,
}

/// The addresses of the filtering table, each kind in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct AddressTable {
    pub(super) unicast: Vec<Address>,
    pub(super) multicast: Vec<Address>,
}

/// The receive modes that are on: a bit for each command of `CTRL_RX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Modes(pub(super) u8);

/// The VLANs whose frames are received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vlans(Box<[u64; VLAN_WORDS]>);

impl Filter {
    /// Whether the driver wants a frame to this address, with the VLAN of its tag if it has one.
    #[inline]
    pub fn accepts(&self, dst: [u8; 6], vlan: Option<u16>) -> bool {
        let Self { addresses, vlans } = self;
        if addresses.as_ref().is_some_and(|a| a.modes.has(CTRL_RX_PROMISC)) {
            return true;
        }
        if let (Some(vlans), Some(vlan)) = (vlans, vlan)
            && !vlans.has(vlan)
        {
            return false;
        }
        addresses.as_ref().is_none_or(|addresses| addresses.accept(dst))
    }
}

impl Addresses {
    fn accept(&self, dst: Address) -> bool {
        let Self { own, modes, table } = self;
        if dst == BROADCAST {
            return !modes.has(CTRL_RX_NOBCAST);
        }
        let is_listed = |list: &[Address]| list.binary_search(&dst).is_ok();
        if dst[0] & 1 != 0 {
            !modes.has(CTRL_RX_NOMULTI) && (modes.has(CTRL_RX_ALLMULTI) || is_listed(&table.multicast))
        } else {
            let is_own = own.is_none_or(|own| own == dst);
            !modes.has(CTRL_RX_NOUNI) && (modes.has(CTRL_RX_ALLUNI) || is_own || is_listed(&table.unicast))
        }
    }
}

impl Default for Modes {
    fn default() -> Self {
        Self(1 << CTRL_RX_PROMISC)
    }
}

impl Modes {
    /// Whether a mode is on.
    pub(super) fn has(self, mode: u8) -> bool {
        self.0 & 1 << mode != 0
    }

    /// Turns a mode on or off.
    pub(super) fn set(&mut self, mode: u8, on: bool) {
        self.0 = self.0 & !(1 << mode) | u8::from(on) << mode;
    }
}

impl AddressTable {
    /// A table of these addresses, in any order.
    pub(super) fn new(mut unicast: Vec<Address>, mut multicast: Vec<Address>) -> Self {
        for list in [&mut unicast, &mut multicast] {
            list.sort_unstable();
            list.dedup();
        }
        Self { unicast, multicast }
    }
}

impl Default for Vlans {
    fn default() -> Self {
        Self(Box::new([0; VLAN_WORDS]))
    }
}

impl Vlans {
    fn has(&self, vlan: u16) -> bool {
        self.0.get(usize::from(vlan / 64)).is_some_and(|word| word & 1 << (vlan % 64) != 0)
    }

    /// Puts a VLAN in or out; false if there is no such VLAN.
    pub(super) fn set(&mut self, vlan: u16, wanted: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(vlan / 64)) else { return false };
        *word = *word & !(1 << (vlan % 64)) | u64::from(wanted) << (vlan % 64);
        true
    }

    /// Those wanted, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        (0..VLAN_WORDS as u16 * 64).filter(|&vlan| self.has(vlan))
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
