//! Receive-side scaling: which queue a frame goes to, and the hash that says so (5.1.6.4.3, 5.1.6.4.4, 5.1.6.5.7).
//!
//! ```text
//!   frame ──► addresses, ports ──► Toeplitz hash ──► & mask ──► table ──► queue
//!                  └── none: no hash ──────────────────────────► the queue for these
//! ```
//!
//! A hash type that the driver enabled is tried before those that cover less: TCP and UDP before their addresses alone.
//! Fragments have no ports, so that all of a datagram go the same way. Tags of VLANs and extension headers of IPv6 are
//! stepped over. Mobile IPv6's home addresses (the types `_EX`) are not supported.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_spec::net::{
    HASH_REPORT_NONE, HASH_TYPE_IPV4, HASH_TYPE_IPV6, HASH_TYPE_TCPV4, HASH_TYPE_TCPV6, HASH_TYPE_UDPV4,
    HASH_TYPE_UDPV6, HashReport, RSS_KEY_SIZE,
};

/// The hash types that the device calculates.
pub(super) const HASH_TYPES: u32 =
    HASH_TYPE_IPV4 | HASH_TYPE_TCPV4 | HASH_TYPE_UDPV4 | HASH_TYPE_IPV6 | HASH_TYPE_TCPV6 | HASH_TYPE_UDPV6;

/// A key, filled up with zeros.
pub(super) type Key = [u8; RSS_KEY_SIZE as usize];

/// How many bytes of a frame [`Steering::hash`] looks at, at most.
pub const HEADERS_LEN: usize = 128;
/// The longest input of a hash: two addresses of IPv6, two ports.
const INPUT_LEN: usize = 36;
/// The most tags of VLANs, and the most extension headers of IPv6, that are stepped over.
const MAX_STEPS: usize = 8;

/// How a frame's receive queue is found.
#[derive(Debug, Clone, Default)]
pub struct Steering {
    hasher: Option<Box<Hasher>>,
    table: Option<QueueTable>,
}

/// A frame's hash, and what it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hash {
    value: u32,
    /// 0, or one more than the number of the hash type's bit.
    report: u16,
}

/// What the driver wants to be hashed, and by which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HashConfig {
    pub(super) types: u32,
    pub(super) key: Key,
    /// As it was given.
    pub(super) key_len: u8,
}

/// Where hashes lead to. The entries' number is a power of two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueTable {
    pub(super) entries: Vec<u16>,
    /// For frames without a hash.
    pub(super) unclassified: u16,
}

/// The Toeplitz hash of a key. It is linear: each half byte of the input contributes a word of its own.
#[derive(Debug, Clone)]
struct Hasher {
    types: u32,
    words: [[u32; 16]; INPUT_LEN * 2],
}

impl Steering {
    pub(super) fn new(hash: Option<&HashConfig>, table: Option<&QueueTable>) -> Self {
        let hasher = hash.filter(|hash| hash.types != 0).map(|hash| Box::new(Hasher::new(hash)));
        Self { hasher, table: table.cloned() }
    }

    /// Whether [`Steering::hash`] may find a hash at all.
    pub fn hashes(&self) -> bool {
        self.hasher.is_some()
    }

    /// Whether the device chooses the queue of every frame.
    pub fn is_automatic(&self) -> bool {
        self.table.is_none()
    }

    /// The hash of a frame that begins with these bytes; [`HEADERS_LEN`] are enough.
    pub fn hash(&self, frame: &[u8]) -> Hash {
        let hash = |hasher: &Hasher| {
            let input = Input::find(frame)?;
            let (types, len) = (hasher.types, input.addresses);
            let (report, len) = match input.ports {
                Some(kind) if types & kind != 0 => (kind, len + 4),
                _ if types & input.kind != 0 => (input.kind, len),
                _ => return None,
            };
            let value = hasher.sum(&input.bytes[..len]);
            Some(Hash { value, report: report.trailing_zeros() as u16 + 1 })
        };
        self.hasher.as_deref().and_then(hash).unwrap_or_default()
    }

    /// The number of the receive queue's pair, if the driver has a table; the device chooses otherwise.
    #[inline]
    pub fn queue(&self, hash: Hash) -> Option<u16> {
        let table = self.table.as_ref()?;
        if hash.report == HASH_REPORT_NONE {
            return Some(table.unclassified);
        }
        let index = hash.value as usize & (table.entries.len() - 1);
        Some(table.entries[index])
    }
}

impl Hash {
    /// As the header tells the driver.
    pub fn report(self) -> HashReport {
        HashReport { value: self.value.into(), report: self.report.into(), padding: 0.into() }
    }
}

impl QueueTable {
    /// How many pairs have to be there for it.
    pub(super) fn pairs(&self) -> u16 {
        self.entries.iter().fold(self.unclassified, |most, &entry| most.max(entry)) + 1
    }
}

impl Hasher {
    fn new(config: &HashConfig) -> Self {
        let mut words = [[0; 16]; INPUT_LEN * 2];
        for (at, words) in words.iter_mut().enumerate() {
            for (half, word) in words.iter_mut().enumerate() {
                let set = (0..4).filter(|bit| half & (8 >> bit) != 0);
                *word = set.fold(0, |word, bit| word ^ window(&config.key, at * 4 + bit));
            }
        }
        Self { types: config.types, words }
    }

    fn sum(&self, input: &[u8]) -> u32 {
        let halves = input.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        self.words.iter().zip(halves).fold(0, |sum, (words, half)| sum ^ words[usize::from(half)])
    }
}

/// The 32 bits of the key from this bit on.
fn window(key: &Key, bit: usize) -> u32 {
    let mut bytes = [0; 8];
    bytes[3..].copy_from_slice(&key[bit / 8..bit / 8 + 5]);
    (u64::from_be_bytes(bytes) >> (8 - bit % 8)) as u32
}

/// What of a frame is hashed: its addresses, and its ports behind them.
struct Input {
    bytes: [u8; INPUT_LEN],
    /// Length of the addresses.
    addresses: usize,
    /// The hash type of the addresses.
    kind: u32,
    /// The hash type with the ports, if there are any.
    ports: Option<u32>,
}

impl Input {
    fn find(frame: &[u8]) -> Option<Self> {
        let mut at = 12;
        for _ in 0..MAX_STEPS {
            let ethertype = frame.get(at..at + 2)?;
            at += 2;
            match ethertype {
                [0x81, 0x00] | [0x88, 0xa8] => at += 2,
                [0x08, 0x00] => return Self::ipv4(&frame[at..]),
                [0x86, 0xdd] => return Self::ipv6(&frame[at..]),
                _ => return None,
            }
        }
        None
    }

    fn ipv4(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..20)?;
        let mut input = Self::new(&header[12..20], HASH_TYPE_IPV4);
        let is_fragment = header[6] & 0x3f != 0 || header[7] != 0;
        let len = usize::from(header[0] & 15) * 4;
        if !is_fragment && len >= header.len() {
            let payload = packet.get(len..);
            input.add_ports(header[9], payload, HASH_TYPE_TCPV4, HASH_TYPE_UDPV4);
        }
        Some(input)
    }

    fn ipv6(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..40)?;
        let mut input = Self::new(&header[8..40], HASH_TYPE_IPV6);
        let (mut next, mut rest) = (header[6], &packet[40..]);
        for _ in 0..MAX_STEPS {
            let Some(&[following, len, high, low, ..]) = rest.get(..4) else { break };
            let len = match next {
                // Hop-by-hop options, routing, destination options.
                0 | 43 | 60 => (usize::from(len) + 1) * 8,
                // A fragment that is not the whole.
                44 if high != 0 || low & !6 != 0 => break,
                44 => 8,
                // Authentication.
                51 => (usize::from(len) + 2) * 4,
                _ => {
                    input.add_ports(next, Some(rest), HASH_TYPE_TCPV6, HASH_TYPE_UDPV6);
                    break;
                }
            };
            (next, rest) = (following, rest.get(len..).unwrap_or_default());
        }
        Some(input)
    }

    fn new(addresses: &[u8], kind: u32) -> Self {
        let mut bytes = [0; INPUT_LEN];
        bytes[..addresses.len()].copy_from_slice(addresses);
        Self { bytes, addresses: addresses.len(), kind, ports: None }
    }

    fn add_ports(&mut self, protocol: u8, payload: Option<&[u8]>, tcp: u32, udp: u32) {
        let kind = match protocol {
            6 => tcp,
            17 => udp,
            _ => return,
        };
        if let Some(ports) = payload.and_then(|payload| payload.get(..4)) {
            self.bytes[self.addresses..self.addresses + 4].copy_from_slice(ports);
            self.ports = Some(kind);
        }
    }
}

#[cfg(test)]
#[path = "rss_tests.rs"]
mod tests;
