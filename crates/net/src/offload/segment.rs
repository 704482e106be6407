//! Cutting a frame into the segments that its sender left to the device (5.1.6.2): what a network card does, and the
//! kernel's segmentation when there is none.
//!
//! ```text
//!  gso      headers to repeat          pieces of gso_size bytes    changed from segment to segment
//!  TCPV4    Ethernet, IPv4, TCP        payload                     IP id and length; sequence number; FIN, PSH, CWR
//!  TCPV6    Ethernet, IPv6, TCP        payload                     IP length; as above
//!  UDP_L4   Ethernet, IP, UDP          payload                     IP id and length; UDP length
//!  UDP      Ethernet, IP               UDP header and payload      IP length and fragment: one datagram remains
//! ```
//!
//! Ethernet has up to two tags, IPv4 its options, IPv6 its extension headers. A [`Segmenter`] copies the headers and never
//! sees the payload: a segment is headers to be written and a range of the frame. So who takes partial checksums
//! gets payload from where it is; for others [`Segment::complete`] sums it.
//!
//! A segment's partial checksum is made from the sender's, which covers what is alike in all of them: a length in the
//! pseudo-header is exchanged for another. What a header says of lengths and positions has to agree with the
//! frame, or there are no segments.
//!
//! Not here: tunnels, and IPv6 packets longer than 65575 bytes (jumbograms).

use std::ops::Range;

use ringway_device::net::Checksum;
use ringway_spec::net::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_NEEDS_CSUM, Header,
};
use thiserror::Error;

use super::checksum::Sum;

/// How many bytes of a frame a [`Segmenter`] looks at: its headers are no longer.
pub const MAX_HEADERS: usize = 512;

const ETHERNET_LEN: usize = 14;
const TAG_LEN: usize = 4;
const MAX_TAGS: usize = 2;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const FRAGMENT_LEN: usize = 8;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const TYPE_TAG: u16 = 0x8100;
const TYPE_SERVICE_TAG: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// IPv4's bit that says that fragments follow, and its mask of the bits that say that this is one.
const MORE_FRAGMENTS: u16 = 0x2000;
const IS_FRAGMENT: u16 = 0x3fff;

/// Why a frame cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SegmentError {
    /// The frame, or what is looked at of it, ends inside a header.
    #[error("the frame ends in its headers")]
    Truncated,
    /// The device's header asks for nothing, or for a kind of segments that is not known.
    #[error("there are no segments of type {0:#x}")]
    Type(u8),
    /// The packet is not of the protocol that the device's header says.
    #[error("the packet's protocol is {0}, and not the one to be segmented")]
    Protocol(u16),
    /// A header's own length, or a version, that cannot be.
    #[error("a header is malformed")]
    Header,
    /// A header says another length of the packet than it has.
    #[error("a header says {says} bytes of a packet, and there are {are}")]
    Length {
        /// By the header.
        says: usize,
        /// In the frame.
        are: usize,
    },
    /// The packet is a fragment.
    #[error("the packet is a fragment")]
    Fragment,
    /// The checksum is not where the protocol has it.
    #[error("the checksum is elsewhere than in the packet's transport header")]
    Checksum,
    /// No byte of the packet fits a segment, or not its headers.
    #[error("segments of {0} bytes are too short")]
    Size(u16),
}

/// What is done to the headers of a segment beside IP's lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `flags` and `sequence` are the frame's.
    Tcp {
        flags: u8,
        sequence: u32,
    },
    Datagrams,
    Fragments,
}

/// Where things are in a frame.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// The IP header.
    ip: usize,
    is_v6: bool,
    /// Where IPv6's fragment header belongs, and the byte that says which header follows there.
    fragment: usize,
    next_header: usize,
    /// The TCP or UDP header.
    transport: usize,
    /// Behind it.
    payload: usize,
}

/// A frame being cut.
#[derive(Debug, Clone)]
pub struct Segmenter {
    /// The headers, changed for each segment in turn.
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    layout: Layout,
    kind: Kind,
    /// IPv4's identification of the next segment.
    id: u16,
    /// The sender's partial checksum, without the length that is in it.
    seed: Sum,
    /// What is cut begins here, and what the next segment carries.
    start: usize,
    at: usize,
    end: usize,
    size: usize,
    is_done: bool,
}

/// One of the frames that a frame is cut into.
#[derive(Debug)]
pub struct Segment<'s> {
    /// Its headers.
    pub headers: &'s mut [u8],
    /// What follows them: these bytes of the frame that is cut.
    pub payload: Range<usize>,
    /// Where its checksum is, which is partial; a fragment has none of its own.
    pub checksum: Option<Checksum>,
    /// In UDP a checksum of zero says that there is none.
    is_udp: bool,
}

impl Segmenter {
    /// Looks at a frame of `len` bytes, of which `head` has the first [`MAX_HEADERS`], or all. `header` is its sender's,
    /// checked for itself.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn new(header: Header, head: &[u8], len: usize) -> Result<Self, SegmentError> {
        let head = &head[..head.len().min(MAX_HEADERS).min(len)];
        let layout = Layout::parse(header, head, len)?;
        let Layout { ip, transport, payload, .. } = layout;
        let gso_size = header.gso_size.get();
        let mut size = usize::from(gso_size);
        let (kind, start, headers_len) = match header.gso_type & !GSO_ECN {
            GSO_UDP if len - transport > size => {
                // All fragments but the last have a multiple of eight bytes; the first has all headers.
                size &= !7;
                let start = if layout.is_v6 { layout.fragment } else { transport };
                let longest = start - ip + FRAGMENT_LEN + size;
                if size < payload - start || longest > IPV6_LEN + usize::from(u16::MAX) {
                    return Err(SegmentError::Size(gso_size));
                }
                (Kind::Fragments, start, start)
            }
            GSO_UDP | GSO_UDP_L4 => (Kind::Datagrams, payload, payload),
            _ => {
                let flags = byte(head, transport + 13)?;
                let sequence = u32::from(word(head, transport + 4)?) << 16;
                let sequence = sequence | u32::from(word(head, transport + 6)?);
                (Kind::Tcp { flags, sequence }, payload, payload)
            }
        };
        if size == 0 {
            return Err(SegmentError::Size(gso_size));
        }
        let checksum = transport + usize::from(header.csum_offset.get());
        let seed = Sum::from(word(head, checksum)?) - Sum::from((len - transport) as u16);
        let id = if layout.is_v6 { 0 } else { word(head, ip + 4)? };
        let mut headers = [0; MAX_HEADERS];
        headers[..headers_len].copy_from_slice(&head[..headers_len]);
        let mut this = Self {
            headers,
            headers_len,
            layout,
            kind,
            id,
            seed,
            start,
            at: start,
            end: len,
            size,
            is_done: false,
        };
        if layout.is_v6 && kind == Kind::Fragments {
            this.insert_fragment_header()?;
        }
        Ok(this)
    }

    /// Length of the frame's headers, the transport's included.
    pub fn hdr_len(&self) -> u16 {
        self.layout.payload as u16
    }

    /// How many segments there are.
    pub fn count(&self) -> usize {
        (self.end - self.start).div_ceil(self.size).max(1)
    }

    /// The checksum that has to be completed before the frame is cut: fragments share one.
    pub fn whole_checksum(&self) -> Option<Checksum> {
        let start = self.layout.transport;
        (self.kind == Kind::Fragments).then_some(Checksum { start, at: start + 6 })
    }

    /// The next segment; `None` after the last. There is at least one.
    pub fn next_segment(&mut self) -> Option<Segment<'_>> {
        if self.is_done {
            return None;
        }
        let payload = self.at..self.end.min(self.at + self.size);
        self.is_done = payload.end == self.end;
        self.write_ip(&payload);
        let checksum = self.write_transport(payload.len());
        self.at = payload.end;
        let headers = &mut self.headers[..self.headers_len];
        Some(Segment { headers, payload, checksum, is_udp: self.kind == Kind::Datagrams })
    }

    /// The network header's lengths, identification and checksum.
    fn write_ip(&mut self, payload: &Range<usize>) {
        let Layout { ip, is_v6, fragment, .. } = self.layout;
        let len = self.headers_len - ip + payload.len();
        // A fragment's place is said in units of eight bytes, above three bits of IPv6 and below three of IPv4.
        let offset = (payload.start - self.start) as u16;
        if is_v6 {
            put(&mut self.headers, ip + 4, (len - IPV6_LEN) as u16);
            if self.kind == Kind::Fragments {
                put(&mut self.headers, fragment + 2, offset | u16::from(!self.is_done));
            }
            return;
        }
        put(&mut self.headers, ip + 2, len as u16);
        if self.kind == Kind::Fragments {
            let more = if self.is_done { 0 } else { MORE_FRAGMENTS };
            put(&mut self.headers, ip + 6, offset >> 3 | more);
        } else {
            put(&mut self.headers, ip + 4, self.id);
            self.id = self.id.wrapping_add(1);
        }
        put(&mut self.headers, ip + 10, 0);
        let end = ip + usize::from(self.headers[ip] & 15) * 4;
        let sum = Sum::of(&self.headers[ip..end]);
        put(&mut self.headers, ip + 10, sum.complement().get());
    }

    /// The transport header of a segment with `len` bytes of payload, and its partial checksum.
    fn write_transport(&mut self, len: usize) -> Option<Checksum> {
        let Layout { transport, payload, .. } = self.layout;
        let len = (payload - transport + len) as u16;
        let offset = match self.kind {
            Kind::Fragments => return None,
            Kind::Datagrams => {
                put(&mut self.headers, transport + 4, len);
                6
            }
            Kind::Tcp { mut flags, sequence } => {
                // Only the end is pushed and finishes; the window was reduced once (RFC 3168, 6.1.2).
                if !self.is_done {
                    flags &= !(FIN | PSH);
                }
                if self.at != self.start {
                    flags &= !CWR;
                }
                self.headers[transport + 13] = flags;
                let sequence = sequence.wrapping_add((self.at - self.start) as u32);
                self.headers[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
                16
            }
        };
        let seed = self.seed + Sum::from(len);
        put(&mut self.headers, transport + offset, seed.partial().get());
        Some(Checksum { start: transport, at: transport + offset })
    }

    /// Makes room for IPv6's fragment header (RFC 8200, 4.5), behind the headers that every fragment has.
    fn insert_fragment_header(&mut self) -> Result<(), SegmentError> {
        let Layout { fragment, next_header, .. } = self.layout;
        let follows = std::mem::replace(&mut self.headers[next_header], FRAGMENT);
        let room = self.headers.get_mut(fragment..fragment + FRAGMENT_LEN).ok_or(SegmentError::Truncated)?;
        room[..4].copy_from_slice(&[follows, 0, 0, 0]);
        room[4..].copy_from_slice(&super::identification().to_be_bytes());
        self.headers_len += FRAGMENT_LEN;
        Ok(())
    }
}

impl Segment<'_> {
    /// The header before it, for a receiver that takes partial checksums.
    pub fn header(&self) -> Header {
        let Some(Checksum { start, at }) = self.checksum else { return Header::default() };
        Header {
            flags: HDR_F_NEEDS_CSUM,
            gso_type: GSO_NONE,
            csum_start: (start as u16).into(),
            csum_offset: ((at - start) as u16).into(),
            ..Header::default()
        }
    }

    /// Completes its checksum, if it has one; `payload` is what follows the headers.
    pub fn complete(&mut self, payload: &[u8]) {
        let Some(Checksum { start, at }) = self.checksum.take() else { return };
        // Transport headers are of even lengths, so the two sums add up.
        let sum = Sum::of(&self.headers[start..]) + Sum::of(payload);
        let field = match sum.complement().get() {
            0 if self.is_udp => 0xffff,
            field => field,
        };
        put(self.headers, at, field);
    }
}

impl Layout {
    /// Finds the headers of a frame of `len` bytes in `head`, and has them agree with each other and with `header`.
    fn parse(header: Header, head: &[u8], len: usize) -> Result<Self, SegmentError> {
        let gso_type = header.gso_type;
        let (wanted, ip_type) = match gso_type & !GSO_ECN {
            GSO_TCPV4 => (TCP, Some(TYPE_IPV4)),
            GSO_TCPV6 => (TCP, Some(TYPE_IPV6)),
            GSO_UDP | GSO_UDP_L4 => (UDP, None),
            _ => return Err(SegmentError::Type(gso_type)),
        };
        let (ethertype, ip) = network(head)?;
        if ip_type.is_some_and(|wanted| wanted != ethertype) {
            return Err(SegmentError::Protocol(ethertype));
        }
        let mut layout = Self { ip, is_v6: false, fragment: 0, next_header: 0, transport: 0, payload: 0 };
        let protocol = match ethertype {
            TYPE_IPV4 => layout.parse_v4(head, len)?,
            TYPE_IPV6 => layout.parse_v6(head, len)?,
            other => return Err(SegmentError::Protocol(other)),
        };
        if protocol != wanted {
            return Err(SegmentError::Protocol(protocol.into()));
        }
        let csum_offset = layout.parse_transport(protocol, head, len)?;
        let is_there = usize::from(header.csum_start.get()) == layout.transport
            && header.csum_offset.get() == csum_offset;
        if is_there { Ok(layout) } else { Err(SegmentError::Checksum) }
    }

    /// The IPv4 header and its options; returns the protocol in it.
    fn parse_v4(&mut self, head: &[u8], len: usize) -> Result<u8, SegmentError> {
        let first = byte(head, self.ip)?;
        let header_len = usize::from(first & 15) * 4;
        if first >> 4 != 4 || header_len < IPV4_LEN {
            return Err(SegmentError::Header);
        }
        self.transport = self.ip + header_len;
        expect_length(word(head, self.ip + 2)?.into(), len - self.ip)?;
        if word(head, self.ip + 6)? & IS_FRAGMENT != 0 {
            return Err(SegmentError::Fragment);
        }
        byte(head, self.ip + 9)
    }

    /// The IPv6 header and the extension headers that segments repeat; returns the protocol behind them.
    fn parse_v6(&mut self, head: &[u8], len: usize) -> Result<u8, SegmentError> {
        if byte(head, self.ip)? >> 4 != 6 {
            return Err(SegmentError::Header);
        }
        self.is_v6 = true;
        let says = usize::from(word(head, self.ip + 4)?) + IPV6_LEN;
        expect_length(says, len - self.ip)?;
        let mut next_header = self.ip + 6;
        let mut at = self.ip + IPV6_LEN;
        (self.fragment, self.next_header) = (at, next_header);
        // Each turn goes on by eight bytes at least, so the frame's end ends it.
        loop {
            let protocol = byte(head, next_header)?;
            match protocol {
                HOP_BY_HOP | ROUTING | DESTINATION => {}
                FRAGMENT => return Err(SegmentError::Fragment),
                _ => {
                    self.transport = at;
                    return Ok(protocol);
                }
            }
            next_header = at;
            at += (usize::from(byte(head, at + 1)?) + 1) * 8;
            // Options for the destination are fragmented unless a routing header follows them (RFC 8200, 4.5).
            if protocol != DESTINATION {
                (self.fragment, self.next_header) = (at, next_header);
            }
        }
    }

    /// The TCP or UDP header; returns where its checksum is.
    fn parse_transport(&mut self, protocol: u8, head: &[u8], len: usize) -> Result<u16, SegmentError> {
        let at = self.transport;
        let (header_len, least, csum_offset) = if protocol == TCP {
            (usize::from(byte(head, at + 12)? >> 4) * 4, TCP_LEN, 16)
        } else {
            expect_length(word(head, at + 4)?.into(), len.saturating_sub(at))?;
            (UDP_LEN, UDP_LEN, 6)
        };
        if header_len < least {
            return Err(SegmentError::Header);
        }
        self.payload = at + header_len;
        if self.payload > head.len() { Err(SegmentError::Truncated) } else { Ok(csum_offset) }
    }
}

/// The type of what is behind Ethernet's header and tags, and where that begins.
fn network(head: &[u8]) -> Result<(u16, usize), SegmentError> {
    let mut at = ETHERNET_LEN;
    loop {
        match word(head, at - 2)? {
            TYPE_TAG | TYPE_SERVICE_TAG if at < ETHERNET_LEN + MAX_TAGS * TAG_LEN => at += TAG_LEN,
            ethertype => return Ok((ethertype, at)),
        }
    }
}

fn expect_length(says: usize, are: usize) -> Result<(), SegmentError> {
    if says == are { Ok(()) } else { Err(SegmentError::Length { says, are }) }
}

fn byte(head: &[u8], at: usize) -> Result<u8, SegmentError> {
    head.get(at).copied().ok_or(SegmentError::Truncated)
}

fn word(head: &[u8], at: usize) -> Result<u16, SegmentError> {
    match head.get(at..) {
        Some([high, low, ..]) => Ok(u16::from_be_bytes([*high, *low])),
        _ => Err(SegmentError::Truncated),
    }
}

/// Writes a word to headers that were parsed.
fn put(headers: &mut [u8], at: usize, word: u16) {
    headers[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
