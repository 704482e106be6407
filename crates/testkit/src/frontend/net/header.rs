//! The header in front of every frame in a virtqueue.

/// `virtio_net_hdr`: ten bytes of a legacy device, twelve with `VERSION_1` or mergeable buffers, twenty with
/// `HASH_REPORT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`NEEDS_CSUM`](Self::NEEDS_CSUM), [`DATA_VALID`](Self::DATA_VALID).
    pub flags: u8,
    /// One of the `GSO_…` numbers, perhaps with [`GSO_ECN`](Self::GSO_ECN).
    pub gso_type: u8,
    /// Bytes of all headers of the frame.
    pub hdr_len: u16,
    /// Payload bytes of each segment to be made.
    pub gso_size: u16,
    /// Where the sum to be made starts.
    pub csum_start: u16,
    /// Where its field stands, from there.
    pub csum_offset: u16,
    /// How many buffers the frame was put in; zero on the way out.
    pub num_buffers: u16,
    /// The frame's hash.
    pub hash_value: u32,
    /// What it covers.
    pub hash_report: u16,
}

impl VnetHeader {
    /// Bytes with `num_buffers`.
    pub const LEN: usize = 12;
    /// Bytes with a hash.
    pub const HASH_LEN: usize = 20;
    /// Bytes without.
    pub const LEGACY_LEN: usize = 10;
    /// Flag: the checksum is partial.
    pub const NEEDS_CSUM: u8 = 1;
    /// Flag: the checksum was verified.
    pub const DATA_VALID: u8 = 2;
    /// Not a frame to be segmented.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// UDP by IP fragments.
    pub const GSO_UDP: u8 = 3;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP by datagrams.
    pub const GSO_UDP_L4: u8 = 5;
    /// With a type: the congestion bits are set.
    pub const GSO_ECN: u8 = 0x80;

    /// The bytes in memory; a shorter header is the first of them.
    pub fn to_bytes(&self) -> [u8; Self::HASH_LEN] {
        let mut bytes = [0; Self::HASH_LEN];
        bytes[..2].copy_from_slice(&[self.flags, self.gso_type]);
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes[12..16].copy_from_slice(&self.hash_value.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.hash_report.to_le_bytes());
        bytes
    }

    /// The header in `bytes`; what a shorter header lacks is zero. `None` of less than a legacy header.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let field = |at: usize| Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        Some(Self {
            flags: *bytes.first()?,
            gso_type: *bytes.get(1)?,
            hdr_len: field(2)?,
            gso_size: field(4)?,
            csum_start: field(6)?,
            csum_offset: field(8)?,
            num_buffers: field(10).unwrap_or(0),
            hash_value: bytes.get(12..16).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            hash_report: field(16).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_in_the_specifications_order() {
        let header = VnetHeader {
            flags: 1,
            gso_type: 4,
            hdr_len: 0x0203,
            gso_size: 0x0405,
            csum_start: 0x0607,
            csum_offset: 0x0809,
            num_buffers: 0x0a0b,
            hash_value: 0x0c0d_0e0f,
            hash_report: 0x1011,
        };
        let bytes = header.to_bytes();
        let expected = [1, 4, 3, 2, 5, 4, 7, 6, 9, 8, 0xb, 0xa, 0xf, 0xe, 0xd, 0xc, 0x11, 0x10, 0, 0];
        assert_eq!(bytes, expected);
        assert_eq!(VnetHeader::from_bytes(&bytes), Some(header));
        let short = VnetHeader { hash_value: 0, hash_report: 0, ..header };
        assert_eq!(VnetHeader::from_bytes(&bytes[..12]), Some(short));
        let legacy = VnetHeader::from_bytes(&bytes[..10]).unwrap();
        assert_eq!(legacy, VnetHeader { num_buffers: 0, ..short });
        assert_eq!(VnetHeader::from_bytes(&bytes[..9]), None);
    }
}
