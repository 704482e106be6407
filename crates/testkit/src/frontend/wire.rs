//! The vhost-user wire: numbers of requests, flags, feature bits, and the bytes of headers and payloads.
//!
//! All integers are little-endian (the protocol says host order; these tests run on little-endian hosts).

/// Bytes of a message's header: request, flags, payload size, 32 bits each.
pub const HEADER_LEN: usize = 12;

/// Header flag bits.
pub mod flag {
    /// The protocol's version, in bits 0 and 1.
    pub const VERSION: u32 = 0x1;
    /// The mask of the version bits.
    pub const VERSION_MASK: u32 = 0x3;
    /// This message is a reply.
    pub const REPLY: u32 = 1 << 2;
    /// The sender wants a reply, whatever the request.
    pub const NEED_REPLY: u32 = 1 << 3;
}

/// Requests of the front-end.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const IOTLB_MSG: u32 = 22;
    pub const SET_VRING_ENDIAN: u32 = 23;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const CREATE_CRYPTO_SESSION: u32 = 26;
    pub const CLOSE_CRYPTO_SESSION: u32 = 27;
    pub const POSTCOPY_ADVISE: u32 = 28;
    pub const POSTCOPY_LISTEN: u32 = 29;
    pub const POSTCOPY_END: u32 = 30;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const GPU_SET_SOCKET: u32 = 33;
    pub const RESET_DEVICE: u32 = 34;
    pub const VRING_KICK: u32 = 35;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const GET_SHARED_OBJECT: u32 = 41;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
    pub const GET_SHMEM_CONFIG: u32 = 44;
}

/// Protocol features, as masks.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const RARP: u64 = 1 << 2;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const MTU: u64 = 1 << 4;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    pub const HOST_NOTIFIER: u64 = 1 << 11;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const DEVICE_STATE: u64 = 1 << 19;
}

/// Virtio feature bits, as masks: the device-independent ones and those of network and block devices.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod feature {
    pub const NET_CSUM: u64 = 1 << 0;
    pub const NET_GUEST_CSUM: u64 = 1 << 1;
    pub const NET_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub const NET_MTU: u64 = 1 << 3;
    pub const NET_MAC: u64 = 1 << 5;
    pub const NET_GUEST_TSO4: u64 = 1 << 7;
    pub const NET_GUEST_TSO6: u64 = 1 << 8;
    pub const NET_GUEST_ECN: u64 = 1 << 9;
    pub const NET_GUEST_UFO: u64 = 1 << 10;
    pub const NET_HOST_TSO4: u64 = 1 << 11;
    pub const NET_HOST_TSO6: u64 = 1 << 12;
    pub const NET_HOST_ECN: u64 = 1 << 13;
    pub const NET_HOST_UFO: u64 = 1 << 14;
    pub const NET_MRG_RXBUF: u64 = 1 << 15;
    pub const NET_STATUS: u64 = 1 << 16;
    pub const NET_CTRL_VQ: u64 = 1 << 17;
    pub const NET_CTRL_RX: u64 = 1 << 18;
    pub const NET_CTRL_VLAN: u64 = 1 << 19;
    pub const NET_CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const NET_GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const NET_MQ: u64 = 1 << 22;
    pub const NET_CTRL_MAC_ADDR: u64 = 1 << 23;
    pub const NET_GUEST_USO4: u64 = 1 << 54;
    pub const NET_GUEST_USO6: u64 = 1 << 55;
    pub const NET_HOST_USO: u64 = 1 << 56;
    pub const NET_HASH_REPORT: u64 = 1 << 57;
    pub const NET_RSS: u64 = 1 << 60;
    pub const NET_SPEED_DUPLEX: u64 = 1 << 63;
    pub const BLK_SIZE_MAX: u64 = 1 << 1;
    pub const BLK_SEG_MAX: u64 = 1 << 2;
    pub const BLK_RO: u64 = 1 << 5;
    pub const BLK_BLK_SIZE: u64 = 1 << 6;
    pub const BLK_FLUSH: u64 = 1 << 9;
    pub const BLK_TOPOLOGY: u64 = 1 << 10;
    pub const BLK_CONFIG_WCE: u64 = 1 << 11;
    pub const BLK_MQ: u64 = 1 << 12;
    pub const BLK_DISCARD: u64 = 1 << 13;
    pub const BLK_WRITE_ZEROES: u64 = 1 << 14;
    pub const BLK_SECURE_ERASE: u64 = 1 << 16;
    /// Of vhost, in a bit that virtio leaves alone: log writes for migration.
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Of vhost-user, in a bit that virtio leaves alone: protocol features exist.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    pub const RING_PACKED: u64 = 1 << 34;
    pub const IN_ORDER: u64 = 1 << 35;
}

/// Bit 8 of the payload of `SET_VRING_KICK`, `CALL` and `ERR`: no file descriptor comes with it.
pub const NO_FD: u64 = 1 << 8;

/// The header of a request; `flags` as given, right or wrong.
pub fn header(request: u32, flags: u32, payload_len: u32) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[0..4].copy_from_slice(&request.to_le_bytes());
    bytes[4..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..12].copy_from_slice(&payload_len.to_le_bytes());
    bytes
}

/// A well-formed message of protocol version 1 with `extra_flags`.
pub fn message(request: u32, extra_flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(request, flag::VERSION | extra_flags, payload.len() as u32).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// The payload "vring state": a ring's index and a number (size, base or enable).
pub fn vring_state(index: u32, number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0..4].copy_from_slice(&index.to_le_bytes());
    bytes[4..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The payload of `SET_VRING_ADDR`; the three areas are front-end virtual addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VringAddress {
    /// The ring's index.
    pub index: u32,
    /// Bit 0: log writes to the used ring.
    pub flags: u32,
    /// The descriptor table.
    pub descriptor: u64,
    /// The used ring: it stands before the available ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
    /// Where, as a guest address, writes to the used ring are logged.
    pub log: u64,
}

impl VringAddress {
    /// The bytes on the wire.
    pub fn to_bytes(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[0..4].copy_from_slice(&self.index.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        for (field, value) in
            bytes[8..].chunks_exact_mut(8).zip([self.descriptor, self.used, self.available, self.log])
        {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

/// A memory region as messages describe it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionDescription {
    /// Its guest physical address.
    pub gpa: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Its address in the front-end.
    pub frontend_va: u64,
    /// Where it starts in its file.
    pub mmap_offset: u64,
}

impl RegionDescription {
    /// The bytes on the wire.
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let values = [self.gpa, self.size, self.frontend_va, self.mmap_offset];
        for (field, value) in bytes.chunks_exact_mut(8).zip(values) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

/// The payload of `SET_MEM_TABLE`; `count` as given, so that it can lie about the regions that follow.
pub fn mem_table(count: u32, regions: &[RegionDescription]) -> Vec<u8> {
    let mut bytes = count.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0; 4]);
    for region in regions {
        bytes.extend_from_slice(&region.to_bytes());
    }
    bytes
}

/// The payload of `ADD_MEM_REG` and `REM_MEM_REG`.
pub fn single_region(region: &RegionDescription) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend_from_slice(&region.to_bytes());
    bytes
}

/// The 64-bit number in a payload of exactly eight bytes.
pub fn parse_u64(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_le_bytes)
}

/// The index and the number in a payload of exactly eight bytes.
pub fn parse_vring_state(payload: &[u8]) -> Option<(u32, u32)> {
    parse_u64(payload).map(|both| (both as u32, (both >> 32) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_header_then_its_payload() {
        let bytes = message(request::SET_VRING_NUM, flag::NEED_REPLY, &vring_state(1, 256));
        assert_eq!(bytes, [8, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(parse_vring_state(&bytes[HEADER_LEN..]), Some((1, 256)));
    }

    #[test]
    fn payload_sizes_are_the_protocols() {
        let region = RegionDescription { gpa: 1, size: 2, frontend_va: 3, mmap_offset: 4 };
        assert_eq!(mem_table(2, &[region, region]).len(), 8 + 2 * 32);
        assert_eq!(single_region(&region).len(), 40);
        assert_eq!(VringAddress::default().to_bytes().len(), 40);
    }

    #[test]
    fn the_used_ring_stands_before_the_available_ring() {
        let bytes =
            VringAddress { descriptor: 1, used: 2, available: 3, log: 4, ..Default::default() }.to_bytes();
        assert_eq!([bytes[8], bytes[16], bytes[24], bytes[32]], [1, 2, 3, 4]);
    }
}
