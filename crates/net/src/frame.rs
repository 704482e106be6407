//! A frame on its way: where its bytes are, and what a switch reads of it.

use std::fmt;
use std::str::FromStr;

use ringway_memory::GuestBuf;
use ringway_spec::net::Header;

use crate::switch::Retag;

/// Length of an Ethernet header without a tag, in bytes: the shortest frame taken.
pub(crate) const ETHERNET_LEN: usize = 14;
/// Length of an Ethernet header with a tag.
const TAGGED_LEN: usize = 18;
/// What [`Frame::flow_hash`] looks at: addresses and ports behind a tag and an IPv6 header.
const FLOW_PREFIX: usize = 62;

/// Length of [`rarp`] frames: the shortest that an Ethernet carries, in bytes.
const RARP_LEN: usize = 60;

/// The type that says a tag follows (IEEE 802.1Q).
const TPID_VLAN: u16 = 0x8100;

/// An Ethernet address, its first byte lowest.
///
/// A number rather than six bytes: addresses of frames stay in registers that way. Bytes written one by one and
/// read back as a word would wait for every store before them, and those go to memory of other processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(u64);

impl Mac {
    /// The address of these bytes.
    pub const fn new(octets: [u8; 6]) -> Self {
        let [low @ .., e, f] = octets;
        Self(u32::from_le_bytes(low) as u64 | (u16::from_le_bytes([e, f]) as u64) << 32)
    }

    /// The low 48 bits of a little-endian word.
    const fn from_low(word: u64) -> Self {
        Self(word & 0xffff_ffff_ffff)
    }

    /// Its bytes.
    pub const fn octets(self) -> [u8; 6] {
        let [octets @ .., _, _] = self.0.to_le_bytes();
        octets
    }

    /// Its bits, the high 16 of which are 0.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// Whether it names a group of stations, all of them included.
    pub const fn is_multicast(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether it is for the neighbour on the link only, never to be forwarded (IEEE 802.1D, table 7-10).
    pub(crate) const fn is_link_local(self) -> bool {
        const FIRST: u64 = Mac::new([0x01, 0x80, 0xc2, 0, 0, 0]).0;
        self.0 & !(15 << 40) == FIRST
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.octets().iter().enumerate() {
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
        if parts.next().is_some() { Err(error()) } else { Ok(Self::new(bytes)) }
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
    /// Reads the header of a frame, once; `None` if the frame ends inside of it.
    #[inline]
    pub(crate) fn read(frame: GuestBuf<'_>) -> Option<Self> {
        if let Some(bytes) = frame.read_array() {
            let bytes = u128::from_le_bytes(bytes);
            let ethernet = Self::parse(bytes as u64, (bytes >> 64) as u64);
            return (ethernet.len == ETHERNET_LEN || frame.len() >= ethernet.len).then_some(ethernet);
        }
        // Too short for a tag: what it lacks of one reads as zero.
        let mut bytes = [0; 16];
        let len = frame.read(&mut bytes);
        let [low, high] = zerocopy::transmute!(bytes);
        let ethernet = Self::parse(u64::from_le(low), u64::from_le(high));
        (len >= ethernet.len).then_some(ethernet)
    }

    /// Whether it has a tag.
    #[inline]
    pub(crate) const fn is_tagged(&self) -> bool {
        self.len > ETHERNET_LEN
    }

    /// The header that begins with these 16 bytes, as little-endian words:
    /// destination (6) | source (6) | type (2) | tag's control information (2).
    #[inline]
    const fn parse(low: u64, high: u64) -> Self {
        let dst = Mac::from_low(low);
        let src = Mac::from_low(low >> 48 | high << 16);
        let ethertype = ((high >> 32) as u16).swap_bytes();
        let tci = ((high >> 48) as u16).swap_bytes();
        let (vlan, len) = if ethertype == TPID_VLAN { (tci & 0xfff, TAGGED_LEN) } else { (0, ETHERNET_LEN) };
        Self { dst, src, vlan, len }
    }
}

/// A frame that tells every switch on its way behind which port `mac` is now: a reverse ARP request of that station
/// (RFC 903), which nobody answers.
pub(crate) fn rarp(mac: Mac) -> [u8; RARP_LEN] {
    const HEAD: [u8; 10] = [
        0x80, 0x35, // reverse ARP
        0, 1, 8, 0, 6, 4, // Ethernet and IPv4, addresses of 6 and 4 bytes
        0, 3, // a request
    ];
    let mut frame = [0; RARP_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.octets());
    frame[12..22].copy_from_slice(&HEAD);
    // Sender and target are the station itself; neither knows its IPv4 address.
    frame[22..28].copy_from_slice(&mac.octets());
    frame[32..38].copy_from_slice(&mac.octets());
    frame
}

/// Bytes that come before the rest of a frame, in place of some that its sender wrote: both addresses, and a tag
/// perhaps. As numbers, for the reason that [`Mac`] is one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Prefix {
    low: u64,
    high: u64,
    len: usize,
}

impl Prefix {
    /// Destination and source.
    pub(crate) const ADDRESSES: usize = 12;
    /// Destination, source and type.
    const TYPED: usize = 14;
    /// Destination, source and tag.
    const TAGGED: usize = 16;

    /// Destination and source alone, as bytes.
    #[inline]
    pub(crate) fn addresses(dst: Mac, src: Mac) -> [u8; Self::ADDRESSES] {
        let Self { low, high, .. } = Self::new(dst, src, None);
        let both = u128::from(low) | u128::from(high) << 64;
        let [addresses @ .., _, _, _, _] = both.to_le_bytes();
        addresses
    }

    #[inline]
    fn new(dst: Mac, src: Mac, tci: Option<u16>) -> Self {
        let low = dst.bits() | src.bits() << 48;
        let high = src.bits() >> 16;
        match tci {
            None => Self { low, high, len: Self::ADDRESSES },
            Some(tci) => {
                let tag = u64::from(TPID_VLAN.swap_bytes()) | u64::from(tci.swap_bytes()) << 16;
                Self { low, high: high | tag << 32, len: Self::TAGGED }
            }
        }
    }

    /// Destination, source, and the type of what follows.
    fn typed(dst: Mac, src: Mac, ethertype: u16) -> Self {
        let Self { low, high, .. } = Self::new(dst, src, None);
        Self { low, high: high | u64::from(ethertype.swap_bytes()) << 32, len: Self::TYPED }
    }

    #[inline]
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes; the first [`Prefix::len`] count.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.low.to_le_bytes());
        bytes[8..].copy_from_slice(&self.high.to_le_bytes());
        bytes
    }

    /// Writes it where there is room for it, and for what follows.
    #[inline]
    pub(crate) fn write(self, to: GuestBuf<'_>) {
        let second = to.advance(8);
        let is_whole = to.write_array(self.low.to_le_bytes())
            && match self.len {
                Self::TAGGED => second.write_array(self.high.to_le_bytes()),
                Self::ADDRESSES => second.write_array((self.high as u32).to_le_bytes()),
                _ => false,
            };
        if !is_whole {
            // Of another length, or room in pieces that end inside of it.
            to.write(&self.to_bytes()[..self.len]);
        }
    }
}

/// A frame to be delivered.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// The sender's header, checked; `None` if it says nothing.
    pub(crate) header: Option<Header>,
    /// What its Ethernet header says; the length is that of the header as it is delivered.
    pub(crate) ethernet: Ethernet,
    /// What it begins with, if not with `data`.
    pub(crate) prefix: Prefix,
    /// The rest of the frame.
    pub(crate) data: GuestBuf<'a>,
}

impl Frame<'_> {
    /// Its length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.prefix.len() + self.data.len()
    }

    /// Gives it other addresses.
    #[inline]
    pub(crate) fn set_addresses(&mut self, dst: Mac, src: Mac) {
        self.data = self.data.advance(Prefix::ADDRESSES);
        self.prefix = Prefix::new(dst, src, None);
        self.ethernet = Ethernet { dst, src, ..self.ethernet };
    }

    /// The same frame with its addresses and its tag as they were read: its sender may have written others since, that it
    /// has no leave for. `None` if it has written a tag where there was none. It has no prefix yet.
    pub(crate) fn settled(mut self) -> Option<Self> {
        let Ethernet { dst, src, vlan, .. } = self.ethernet;
        if self.ethernet.is_tagged() {
            return Some(self.retagged(Retag::Set(vlan)));
        }
        let ethertype = u16::from_be_bytes(self.data.advance(Prefix::ADDRESSES).read_array()?);
        self.data = self.data.advance(ETHERNET_LEN);
        self.prefix = Prefix::typed(dst, src, ethertype);
        (ethertype != TPID_VLAN).then_some(self)
    }

    /// The same frame with its tag changed; what its header says of places in the frame moves along. It has no prefix
    /// yet.
    pub(crate) fn retagged(mut self, retag: Retag) -> Self {
        let Ethernet { dst, src, len, .. } = self.ethernet;
        let (tci, vlan) = match retag {
            Retag::Keep => return self,
            Retag::Pop => (None, 0),
            Retag::Push(vlan) => (Some(vlan), vlan),
            Retag::Set(vlan) => {
                let tci = self.data.advance(ETHERNET_LEN).read_array().map_or(0, u16::from_be_bytes);
                (Some(tci & !0xfff | vlan), vlan)
            }
        };
        // The type of what it carries stays.
        self.data = self.data.advance(len - 2);
        self.prefix = Prefix::new(dst, src, tci);
        self.ethernet = Ethernet { dst, src, vlan, len: self.prefix.len() + 2 };
        if let Some(header) = &mut self.header {
            let moved =
                |place: u16| place.saturating_add(self.ethernet.len as u16).saturating_sub(len as u16);
            header.csum_start = moved(header.csum_start.get()).into();
            if header.hdr_len.get() != 0 {
                header.hdr_len = moved(header.hdr_len.get()).into();
            }
        }
        self
    }

    /// The VLAN of its tag, if it has one.
    #[inline]
    pub(crate) fn tag(&self) -> Option<u16> {
        (self.ethernet.len > ETHERNET_LEN).then_some(self.ethernet.vlan)
    }

    /// Copies it to `to`, which is made as long.
    pub(crate) fn copy_to(&self, to: &mut Vec<u8>) {
        to.clear();
        to.resize(self.len(), 0);
        self.read(to);
    }

    /// Copies what it begins with to `to`, as much as there is room for a prefix at least; how much.
    pub(crate) fn read(&self, to: &mut [u8]) -> usize {
        let (prefix, rest) = to.split_at_mut(self.prefix.len());
        prefix.copy_from_slice(&self.prefix.to_bytes()[..prefix.len()]);
        prefix.len() + self.data.read(rest)
    }

    /// A number that is the same for all frames of a flow: by addresses, protocol and ports of IPv4 and IPv6, by
    /// Ethernet addresses for others.
    pub(crate) fn flow_hash(&self) -> u32 {
        let mut bytes = [0; FLOW_PREFIX];
        let len = self.read(&mut bytes);
        flow_hash(&self.ethernet, &bytes[..len])
    }
}

/// See [`Frame::flow_hash`].
fn flow_hash(ethernet: &Ethernet, bytes: &[u8]) -> u32 {
    let (l3, len) = (ethernet.len, bytes.len());
    let mut hash = 0x811c_9dc5_u32;
    let mut mix = |part: Option<&[u8]>| {
        for &byte in part.unwrap_or_default() {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    };
    let (protocol, l4) = match (bytes.get(l3 - 2..l3), bytes.get(l3)) {
        // A fragment has no ports; all of a datagram go the same way.
        (Some([0x08, 0x00]), Some(first)) => {
            mix(bytes.get(l3 + 12..l3 + 20));
            let is_fragment = bytes.get(l3 + 6..l3 + 8).is_none_or(|f| f[0] & 0x3f != 0 || f[1] != 0);
            let l4 = if is_fragment { len } else { l3 + usize::from(first & 15) * 4 };
            (bytes.get(l3 + 9), l4)
        }
        (Some([0x86, 0xdd]), Some(_)) => {
            mix(bytes.get(l3 + 8..l3 + 40));
            (bytes.get(l3 + 6), l3 + 40)
        }
        _ => {
            mix(Some(&ethernet.dst.octets()));
            mix(Some(&ethernet.src.octets()));
            (None, len)
        }
    };
    mix(protocol.map(std::slice::from_ref));
    if matches!(protocol, Some(6 | 17)) {
        mix(bytes.get(l4..l4 + 4));
    }
    hash ^ (hash >> 15)
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
