//! The control queue's commands as bytes (5.1.6.5): class, number, and what the command is about.

use alloc::vec::Vec;

use ringway_spec::net::{
    CTRL_ANNOUNCE, CTRL_ANNOUNCE_ACK, CTRL_GUEST_OFFLOADS, CTRL_GUEST_OFFLOADS_SET, CTRL_MAC,
    CTRL_MAC_ADDR_SET, CTRL_MAC_TABLE_SET, CTRL_MQ, CTRL_MQ_HASH_CONFIG, CTRL_MQ_RSS_CONFIG,
    CTRL_MQ_VQ_PAIRS_SET, CTRL_RX, CTRL_RX_ALLMULTI, CTRL_RX_NOBCAST, CTRL_VLAN, CTRL_VLAN_ADD,
    CTRL_VLAN_DEL, F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_CTRL_VLAN,
    F_GUEST_ANNOUNCE, F_HASH_REPORT, F_MQ, F_RSS, RSS_KEY_SIZE, RSS_TABLE_LEN,
};

use super::filter::{Address, AddressTable};
use super::rss::{HashConfig, QueueTable};

/// The longest command that is looked at: it has room for ten thousand addresses.
pub const MAX_COMMAND: usize = u16::MAX as usize;
/// The bit of a queue's number that means nothing (5.1.6.5.7).
const RESERVED: u16 = 1 << 15;
/// Reserved bytes where `HASH_CONFIG` has no table.
const HASH_RESERVED: [u8; 8] = [0; 8];

/// A command that is well-formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// A receive mode, by its number, is turned on or off.
    Receive { mode: u8, on: bool },
    /// These addresses are received.
    Addresses(AddressTable),
    /// The device has this address.
    Address(Address),
    /// A VLAN is received, or is not.
    Vlan { vlan: u16, wanted: bool },
    /// The driver has seen that it shall announce itself.
    Announced,
    /// So many pairs are used.
    Pairs(u16),
    /// Receive queues are chosen by hash and table.
    Rss(RssConfig),
    /// Hashes are reported.
    Hash(HashConfig),
    /// Of the receive side's offloads these are used.
    Offloads(u64),
}

/// Receive-side scaling as the driver wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RssConfig {
    pub(super) hash: HashConfig,
    pub(super) table: QueueTable,
    /// Transmit queues in use.
    pub(super) transmit: u16,
}

impl Command {
    /// Reads a command; `None` if it is unknown, too short or too long, or contradicts itself.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut args = Args(Some(bytes).filter(|bytes| bytes.len() <= MAX_COMMAND)?);
        let [class, number] = args.take()?;
        let command = match (class, number) {
            (CTRL_RX, mode @ ..=CTRL_RX_NOBCAST) => match args.take()? {
                [on @ (0 | 1)] => Self::Receive { mode, on: on == 1 },
                _ => return None,
            },
            (CTRL_MAC, CTRL_MAC_TABLE_SET) => {
                Self::Addresses(AddressTable::new(args.addresses()?, args.addresses()?))
            }
            (CTRL_MAC, CTRL_MAC_ADDR_SET) => Self::Address(args.take()?),
            (CTRL_VLAN, CTRL_VLAN_ADD | CTRL_VLAN_DEL) => {
                Self::Vlan { vlan: args.u16()?, wanted: number == CTRL_VLAN_ADD }
            }
            (CTRL_ANNOUNCE, CTRL_ANNOUNCE_ACK) => Self::Announced,
            (CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET) => Self::Pairs(args.u16()?),
            (CTRL_MQ, CTRL_MQ_RSS_CONFIG) => Self::Rss(args.rss()?),
            (CTRL_MQ, CTRL_MQ_HASH_CONFIG) => {
                let types = args.u32()?;
                let _: [u8; HASH_RESERVED.len()] = args.take()?;
                Self::Hash(args.hash(types)?)
            }
            (CTRL_GUEST_OFFLOADS, CTRL_GUEST_OFFLOADS_SET) => {
                Self::Offloads(u64::from_le_bytes(args.take()?))
            }
            _ => return None,
        };
        args.0.is_empty().then_some(command)
    }

    /// The command as bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Receive { mode, on } => bytes.extend([CTRL_RX, *mode, (*on).into()]),
            Self::Addresses(AddressTable { unicast, multicast }) => {
                bytes.extend([CTRL_MAC, CTRL_MAC_TABLE_SET]);
                for list in [unicast, multicast] {
                    bytes.extend((list.len() as u32).to_le_bytes());
                    bytes.extend(list.iter().flatten());
                }
            }
            Self::Address(address) => {
                bytes.extend([CTRL_MAC, CTRL_MAC_ADDR_SET]);
                bytes.extend(address);
            }
            Self::Vlan { vlan, wanted } => {
                bytes.extend([CTRL_VLAN, if *wanted { CTRL_VLAN_ADD } else { CTRL_VLAN_DEL }]);
                bytes.extend(vlan.to_le_bytes());
            }
            Self::Announced => bytes.extend([CTRL_ANNOUNCE, CTRL_ANNOUNCE_ACK]),
            Self::Pairs(pairs) => {
                bytes.extend([CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET]);
                bytes.extend(pairs.to_le_bytes());
            }
            Self::Rss(RssConfig { hash, table, transmit }) => {
                bytes.extend([CTRL_MQ, CTRL_MQ_RSS_CONFIG]);
                bytes.extend(hash.types.to_le_bytes());
                let mask = (table.entries.len() - 1) as u16;
                let queues = [mask, table.unclassified];
                let queues = queues.iter().chain(&table.entries).chain([transmit]);
                bytes.extend(queues.flat_map(|queue| queue.to_le_bytes()));
                write_key(hash, &mut bytes);
            }
            Self::Hash(hash) => {
                bytes.extend([CTRL_MQ, CTRL_MQ_HASH_CONFIG]);
                bytes.extend(hash.types.to_le_bytes());
                bytes.extend(HASH_RESERVED);
                write_key(hash, &mut bytes);
            }
            Self::Offloads(offloads) => {
                bytes.extend([CTRL_GUEST_OFFLOADS, CTRL_GUEST_OFFLOADS_SET]);
                bytes.extend(offloads.to_le_bytes());
            }
        }
        bytes
    }

    /// The features of which one lets a driver say this.
    pub(super) fn needs(&self) -> u64 {
        match self {
            Self::Receive { mode: ..=CTRL_RX_ALLMULTI, .. } | Self::Addresses(_) => F_CTRL_RX,
            Self::Receive { .. } => F_CTRL_RX_EXTRA,
            Self::Address(_) => F_CTRL_MAC_ADDR,
            Self::Vlan { .. } => F_CTRL_VLAN,
            Self::Announced => F_GUEST_ANNOUNCE,
            Self::Pairs(_) => F_MQ | F_RSS,
            Self::Rss(_) => F_RSS,
            Self::Hash(_) => F_HASH_REPORT,
            Self::Offloads(_) => F_CTRL_GUEST_OFFLOADS,
        }
    }
}

fn write_key(hash: &HashConfig, bytes: &mut Vec<u8>) {
    bytes.push(hash.key_len);
    bytes.extend(&hash.key[..usize::from(hash.key_len)]);
}

/// The bytes not read yet.
struct Args<'a>(&'a [u8]);

impl Args<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// A number of addresses, and the addresses.
    fn addresses(&mut self) -> Option<Vec<Address>> {
        let count = self.u32()? as usize;
        let (addresses, _) = self.0.as_chunks();
        let addresses = addresses.get(..count)?;
        self.0 = &self.0[size_of_val(addresses)..];
        Some(addresses.to_vec())
    }

    /// The number of a pair.
    fn queue(&mut self) -> Option<u16> {
        Some(self.u16()? & !RESERVED)
    }

    fn rss(&mut self) -> Option<RssConfig> {
        let types = self.u32()?;
        let len = self.u16().filter(|mask| *mask < RSS_TABLE_LEN)? + 1;
        let unclassified = self.queue()?;
        let entries = (0..len).map(|_| self.queue()).collect::<Option<_>>()?;
        let transmit = self.u16()?;
        let table = QueueTable { entries, unclassified };
        len.is_power_of_two().then_some(RssConfig { hash: self.hash(types)?, table, transmit })
    }

    /// The length of a key, and the key.
    fn hash(&mut self, types: u32) -> Option<HashConfig> {
        let [key_len] = self.take()?;
        let mut key = [0; RSS_KEY_SIZE as usize];
        let (given, rest) = self.0.split_at_checked(key_len.into())?;
        key.get_mut(..given.len())?.copy_from_slice(given);
        self.0 = rest;
        Some(HashConfig { types, key, key_len })
    }
}
