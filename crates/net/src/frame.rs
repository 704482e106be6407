//! A frame on its way: where its bytes are, and what a switch reads of it.

use std::fmt;
use std::str::FromStr;

use ringway_memory::GuestBuf;
use ringway_spec::net::Header;

/// Length of an Ethernet header without a tag, in bytes: the shortest frame taken.
pub(crate) const ETHERNET_LEN: usize = 14;
/// What [`Ethernet::parse`] needs of a frame at most: an Ethernet header with a tag.
pub(crate) const ETHERNET_PREFIX: usize = 18;
/// What [`flow_hash`] looks at: addresses and ports behind a tag and an IPv6 header.
const FLOW_PREFIX: usize = 62;

const TPID_VLAN: [u8; 2] = [0x81, 0x00];

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether it names a group of stations, all of them included.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it is for the neighbour on the link only, never to be forwarded (IEEE 802.1D, table 7-10).
    pub(crate) fn is_link_local(self) -> bool {
        matches!(self.0, [0x01, 0x80, 0xc2, 0, 0, last] if last < 16)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a MAC address such as 02:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

/// What a switch decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ethernet {
    pub(crate) dst: Mac,
    pub(crate) src: Mac,
    /// The VLAN's number, 0 without a tag.
    pub(crate) vlan: u16,
    /// Length of the header in bytes: 14, or 18 with a tag.
    pub(crate) len: usize,
}

impl Ethernet {
    /// Reads the header of a frame of which these are the first bytes; `None` if it is too short for one.
    #[inline]
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&dst, rest) = bytes.split_first_chunk::<6>()?;
        let (&src, rest) = rest.split_first_chunk::<6>()?;
        let (vlan, len) = match rest {
            [a, b, high, low, ..] if [*a, *b] == TPID_VLAN => {
                (u16::from_be_bytes([*high, *low]) & 0xfff, ETHERNET_PREFIX)
            }
            [_, _, ..] => (0, ETHERNET_LEN),
            _ => return None,
        };
        Some(Self { dst: Mac(dst), src: Mac(src), vlan, len })
    }
}

/// A frame to be delivered.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// The sender's header, checked.
    pub(crate) header: Header,
    /// The frame from its destination address on.
    pub(crate) data: GuestBuf<'a>,
    /// How many of its bytes are the Ethernet header.
    pub(crate) ethernet_len: usize,
    /// The two addresses to write in place of the frame's own.
    pub(crate) addresses: Option<[u8; 12]>,
}

/// A number that is the same for all frames of a flow: by addresses, protocol and ports of IPv4 and IPv6, by
/// Ethernet addresses for others.
pub(crate) fn flow_hash(data: GuestBuf<'_>) -> u32 {
    let mut bytes = [0; FLOW_PREFIX];
    let len = data.read(&mut bytes);
    let bytes = &bytes[..len];
    let l3 = if bytes.get(12..14) == Some(&TPID_VLAN) { ETHERNET_LEN + 4 } else { ETHERNET_LEN };
    let (addresses, protocol, l4) = match (bytes.get(l3 - 2..l3), bytes.get(l3)) {
        // A fragment has no ports; all of a datagram go the same way.
        (Some([0x08, 0x00]), Some(first)) => {
            let is_fragment = bytes.get(l3 + 6..l3 + 8).is_none_or(|f| f[0] & 0x3f != 0 || f[1] != 0);
            let l4 = if is_fragment { len } else { l3 + usize::from(first & 15) * 4 };
            (l3 + 12..l3 + 20, bytes.get(l3 + 9), l4)
        }
        (Some([0x86, 0xdd]), Some(_)) => (l3 + 8..l3 + 40, bytes.get(l3 + 6), l3 + 40),
        _ => (0..12, None, len),
    };
    let mut hash = 0x811c_9dc5_u32;
    let mut mix = |part: Option<&[u8]>| {
        for &byte in part.unwrap_or_default() {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    };
    mix(bytes.get(addresses));
    mix(protocol.map(std::slice::from_ref));
    if matches!(protocol, Some(6 | 17)) {
        mix(bytes.get(l4..l4 + 4));
    }
    hash ^ (hash >> 15)
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
