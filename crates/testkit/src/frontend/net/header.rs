//! The header in front of every frame in a virtqueue.

/// `virtio_net_hdr`: ten bytes of a legacy device, twelve with `VERSION_1` or mergeable buffers.
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
}

impl VnetHeader {
    /// Bytes with `num_buffers`.
    pub const LEN: usize = 12;
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

    /// The bytes in memory; a legacy header is the first [`LEGACY_LEN`](Self::LEGACY_LEN) of them.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// The header in `bytes`; of ten bytes, `num_buffers` is zero. `None` of fewer.
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
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes, [1, 4, 3, 2, 5, 4, 7, 6, 9, 8, 0xb, 0xa]);
        assert_eq!(VnetHeader::from_bytes(&bytes), Some(header));
        let legacy = VnetHeader::from_bytes(&bytes[..10]).unwrap();
        assert_eq!(legacy, VnetHeader { num_buffers: 0, ..header });
        assert_eq!(VnetHeader::from_bytes(&bytes[..9]), None);
    }
}
