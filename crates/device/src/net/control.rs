//! What a driver orders on the control queue (5.1.6.5), and what is kept of it.
//!
//! A command is carried out whole or not at all; one that is unknown, not negotiated or malformed is an error. What has
//! been ordered can be written down as the commands that order it again. So it is saved, and what is read back is
//! checked by the rules for a driver's own bytes.

use alloc::vec::Vec;

use ringway_spec::net::{CTRL_RX_NOBCAST, MQ_PAIRS_MIN};

use super::command::{Command, RssConfig};
use super::filter::{Address, AddressTable, Modes, Vlans};
use super::rss::{HASH_TYPES, HashConfig, QueueTable};
use super::{GUEST_OFFLOADS, REQUIRES};

/// What a driver has ordered since the last reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Orders {
    /// Pairs in use, while the device chooses receive queues.
    pub(super) pairs: u16,
    pub(super) hash: Option<HashConfig>,
    /// Receive queues are chosen by a table; and so many transmit queues are in use.
    pub(super) rss: Option<(QueueTable, u16)>,
    pub(super) address: Option<Address>,
    pub(super) modes: Modes,
    pub(super) addresses: AddressTable,
    pub(super) vlans: Vlans,
    /// The receive side's offloads in use; all that were negotiated, if nothing is said.
    pub(super) offloads: Option<u64>,
    /// The driver shall announce itself, and has not acknowledged that yet.
    pub(super) announce: bool,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            pairs: MQ_PAIRS_MIN,
            hash: None,
            rss: None,
            address: None,
            modes: Modes::default(),
            addresses: AddressTable::default(),
            vlans: Vlans::default(),
            offloads: None,
            announce: false,
        }
    }
}

impl Orders {
    /// Carries out a command for a driver that has these features of a device with so many pairs; false if it is
    /// refused.
    pub(super) fn obey(&mut self, command: Command, features: u64, max_pairs: u16) -> bool {
        let is_valid = |pairs: u16| (MQ_PAIRS_MIN..=max_pairs).contains(&pairs);
        if features & command.needs() == 0 {
            return false;
        }
        match command {
            Command::Receive { mode, on } => self.modes.set(mode, on),
            Command::Addresses(table) => self.addresses = table,
            Command::Address([first, ..]) if first & 1 != 0 => return false,
            Command::Address(address) => self.address = Some(address),
            Command::Vlan { vlan, wanted } => return self.vlans.set(vlan, wanted),
            Command::Announced => self.announce = false,
            Command::Pairs(pairs) if is_valid(pairs) => (self.pairs, self.rss) = (pairs, None),
            Command::Rss(RssConfig { hash, table, transmit })
                if is_valid(table.pairs()) && is_valid(transmit) && hash.types & !HASH_TYPES == 0 =>
            {
                (self.hash, self.rss) = (Some(hash), Some((table, transmit)));
            }
            Command::Hash(hash) if hash.types & !HASH_TYPES == 0 => {
                (self.hash, self.rss) = (Some(hash), None);
            }
            Command::Offloads(offloads) if is_offered(offloads, features) => self.offloads = Some(offloads),
            Command::Pairs(_) | Command::Rss(_) | Command::Hash(_) | Command::Offloads(_) => return false,
        }
        true
    }

    /// The commands that order the same of a device after reset; a pending announcement is no order.
    pub(super) fn commands(&self) -> Vec<Command> {
        let Self { pairs, hash, rss, address, modes, addresses, vlans, offloads, announce: _ } = self;
        let mut commands = Vec::new();
        if *pairs != MQ_PAIRS_MIN {
            commands.push(Command::Pairs(*pairs));
        }
        match (*hash, rss) {
            (Some(hash), Some((table, transmit))) => {
                let (table, transmit) = (table.clone(), *transmit);
                commands.push(Command::Rss(RssConfig { hash, table, transmit }));
            }
            (Some(hash), None) => commands.push(Command::Hash(hash)),
            (None, _) => {}
        }
        commands.extend(address.map(Command::Address));
        let changed = |&mode: &u8| modes.has(mode) != Modes::default().has(mode);
        let modes = (0..=CTRL_RX_NOBCAST).filter(changed);
        commands.extend(modes.map(|mode| Command::Receive { mode, on: self.modes.has(mode) }));
        if *addresses != AddressTable::default() {
            commands.push(Command::Addresses(addresses.clone()));
        }
        commands.extend(vlans.iter().map(|vlan| Command::Vlan { vlan, wanted: true }));
        commands.extend(offloads.map(Command::Offloads));
        commands
    }
}

/// Whether these are offloads of the receive side, negotiated, and none without what it requires.
fn is_offered(offloads: u64, features: u64) -> bool {
    let has = |feature| offloads & feature != 0;
    offloads & !(features & GUEST_OFFLOADS) == 0 && REQUIRES.iter().all(|&(f, r)| !has(f) || has(r))
}
