//! Frames for tests: Ethernet, VLAN tags, UDP and TCP over IPv4 and IPv6, and their checksums.
//!
//! [`Checksum::Partial`] leaves the transport checksum as a guest with checksum offload does: the sum of the
//! pseudo-header alone. [`check`] verifies what arrives; it sums in another way than the builder does.

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};

use super::net::VnetHeader;

/// Ethertype of IPv4.
pub const IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Ethertype of a VLAN tag.
pub const VLAN: u16 = 0x8100;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Bytes of an Ethernet header without a tag.
const ETHERNET_LEN: usize = 14;

/// A MAC address.
pub type Mac = [u8; 6];

/// Everyone's address.
pub const BROADCAST: Mac = [0xff; 6];

/// The ends of a flow; both IP addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Flow {
    pub src_mac: Mac,
    pub dst_mac: Mac,
    pub src_ip: IpAddr,
    pub dst_ip: IpAddr,
    pub src_port: u16,
    pub dst_port: u16,
}

/// What the transport checksum's field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The right checksum.
    Complete,
    /// The sum of the pseudo-header: the rest is left to an offload.
    Partial,
    /// This number.
    Raw(u16),
}

/// A frame of any ethertype.
pub fn ethernet(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src[..], &ethertype.to_be_bytes()[..], payload].concat()
}

/// The same frame with a VLAN tag (priority and identifier as in the tag).
pub fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    [&frame[..12], &VLAN.to_be_bytes()[..], &tag.to_be_bytes()[..], &frame[12..]].concat()
}

/// A UDP datagram in a frame.
pub fn udp(flow: &Flow, payload: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut segment = ports(flow);
    segment.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    segment.extend_from_slice(&[0; 2]);
    segment.extend_from_slice(payload);
    ip(flow, UDP, segment, 6, checksum)
}

/// A TCP segment in a frame: `flags` as in the header's byte 13 (ACK is 0x10, PSH 0x08, FIN 0x01).
pub fn tcp(flow: &Flow, sequence: u32, flags: u8, payload: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut segment = ports(flow);
    segment.extend_from_slice(&sequence.to_be_bytes());
    segment.extend_from_slice(&[0; 4]);
    // Five words of header, a window of 64 KiB - 1, no checksum yet, no urgent pointer.
    segment.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(payload);
    ip(flow, TCP, segment, 16, checksum)
}

/// The header that goes with a frame whose transport checksum is partial.
pub fn partial_header(frame: &[u8]) -> Result<VnetHeader> {
    let packet = Packet::parse(frame)?;
    let csum_offset = if packet.protocol == UDP { 6 } else { 16 };
    let csum_start = packet.transport_at as u16;
    Ok(VnetHeader { flags: VnetHeader::NEEDS_CSUM, csum_start, csum_offset, ..VnetHeader::default() })
}

/// Does what [`VnetHeader::NEEDS_CSUM`] asks of whoever passes the frame on.
pub fn complete(header: &VnetHeader, frame: &mut [u8]) -> Result<()> {
    let (start, field) = (header.csum_start.into(), usize::from(header.csum_start + header.csum_offset));
    ensure!(header.flags & VnetHeader::NEEDS_CSUM != 0, "the checksum is not asked for");
    ensure!(field + 2 <= frame.len() && start < field, "the checksum's field is outside of the frame");
    let value = !ones_complement_sum(&frame[start..]);
    frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
    Ok(())
}

/// Verifies an IPv4 or IPv6 frame with UDP or TCP in it: lengths, and both checksums.
pub fn check(frame: &[u8]) -> Result<()> {
    let packet = Packet::parse(frame)?;
    let remainder = remainder_of(&packet.pseudo_header()) + remainder_of(packet.transport);
    ensure!(remainder.is_multiple_of(0xffff), "the transport checksum is wrong by {:#x}", remainder % 0xffff);
    Ok(())
}

/// The source and destination ports.
fn ports(flow: &Flow) -> Vec<u8> {
    [flow.src_port.to_be_bytes(), flow.dst_port.to_be_bytes()].concat()
}

/// Wraps a segment, whose checksum's field is zero, in IP and Ethernet.
fn ip(flow: &Flow, protocol: u8, mut segment: Vec<u8>, field: usize, checksum: Checksum) -> Vec<u8> {
    let (addresses, ethertype) = match (flow.src_ip, flow.dst_ip) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ([src.octets(), dst.octets()].concat(), IPV4),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ([src.octets(), dst.octets()].concat(), IPV6),
        _ => panic!("a flow between two families of addresses"),
    };
    let pseudo = pseudo_header(&addresses, protocol, segment.len());
    let value = match checksum {
        Checksum::Raw(value) => value,
        Checksum::Partial => ones_complement_sum(&pseudo),
        Checksum::Complete => {
            let sum = !ones_complement_sum(&[&pseudo[..], &segment[..]].concat());
            // In UDP a zero says that there is no checksum.
            if sum == 0 && protocol == UDP { 0xffff } else { sum }
        }
    };
    segment[field..field + 2].copy_from_slice(&value.to_be_bytes());
    let length = segment.len() as u16;
    let packet = if ethertype == IPV4 {
        let [len_high, len_low] = (20 + length).to_be_bytes();
        // Version and words, type of service, length, identifier, don't fragment, hops, protocol, checksum.
        let mut header = vec![0x45, 0, len_high, len_low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        header.extend_from_slice(&addresses);
        let sum = !ones_complement_sum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [header, segment].concat()
    } else {
        let [len_high, len_low] = length.to_be_bytes();
        [&[0x60, 0, 0, 0, len_high, len_low, protocol, 64][..], &addresses[..], &segment[..]].concat()
    };
    ethernet(flow.dst_mac, flow.src_mac, ethertype, &packet)
}

/// What the transport checksum covers besides the segment; the IPv6 form sums the same as the IPv4 one.
fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = addresses.to_vec();
    bytes.extend_from_slice(&[0, protocol]);
    bytes.extend_from_slice(&(length as u16).to_be_bytes());
    bytes
}

/// The builder's sum: 16-bit words, every carry added back at once.
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum: u16, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// The checker's sum: data with its checksum is a multiple of 65535, seen as one number in base 65536.
fn remainder_of(bytes: &[u8]) -> u64 {
    bytes.iter().enumerate().map(|(at, &byte)| u64::from(byte) << if at % 2 == 0 { 8 } else { 0 }).sum()
}

/// The parts of a frame that [`check`] looks at.
struct Packet<'a> {
    addresses: &'a [u8],
    protocol: u8,
    transport_at: usize,
    transport: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Finds the parts; the IPv4 header's checksum is verified on the way.
    fn parse(frame: &'a [u8]) -> Result<Self> {
        ensure!(frame.len() >= ETHERNET_LEN, "a frame of {} bytes", frame.len());
        let is_tagged = frame[12..14] == VLAN.to_be_bytes();
        let ip_at = if is_tagged { ETHERNET_LEN + 4 } else { ETHERNET_LEN };
        ensure!(frame.len() >= ip_at + 20, "no room for IP in {} bytes", frame.len());
        let packet = &frame[ip_at..];
        let number = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        let (header, length, protocol, addresses) =
            match u16::from_be_bytes([frame[ip_at - 2], frame[ip_at - 1]]) {
                IPV4 => {
                    ensure!(packet[0] == 0x45, "IPv4 with options, or another version");
                    ensure!(
                        remainder_of(&packet[..20]).is_multiple_of(0xffff),
                        "the IPv4 header's checksum is wrong"
                    );
                    (20, number(2), packet[9], &packet[12..20])
                }
                IPV6 => {
                    ensure!(packet.len() >= 40, "an IPv6 packet of {} bytes", packet.len());
                    (40, 40 + number(4), packet[6], &packet[8..40])
                }
                other => bail!("ethertype {other:#06x}"),
            };
        // Short frames are padded on the way.
        ensure!((header..=packet.len()).contains(&length), "IP says {length} bytes of {}", packet.len());
        let transport = &packet[header..length];
        match protocol {
            UDP => {
                ensure!(transport.len() >= 8, "a datagram of {} bytes", transport.len());
                let says = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
                ensure!(says == transport.len(), "UDP says {says} bytes of {}", transport.len());
            }
            TCP => ensure!(transport.len() >= 20, "a segment of {} bytes", transport.len()),
            other => bail!("protocol {other}"),
        }
        Ok(Self { addresses, protocol, transport_at: ip_at + header, transport })
    }

    /// The pseudo-header of what was parsed.
    fn pseudo_header(&self) -> Vec<u8> {
        pseudo_header(self.addresses, self.protocol, self.transport.len())
    }
}

#[cfg(test)]
mod tests;
