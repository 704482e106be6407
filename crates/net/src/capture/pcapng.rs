//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng), little-endian, as they are written.
//!
//! ```text
//!   section header │ interface 0 │ interface 1 │ packet │ packet │ … │ statistics 0 │ statistics 1
//!
//!   block:  type (4) │ length (4) │ fields │ options │ length (4)      all of it a multiple of 4 bytes
//!   option: code (2) │ length (2) │ value, padded
//! ```
//!
//! Nothing is read here. Times are nanoseconds since 1970.

const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const LINKTYPE_ETHERNET: u16 = 1;

const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// Bits of a packet's flags (section 4.3.1).
pub(super) mod flag {
    /// It came in.
    pub(in super::super) const INBOUND: u32 = 1;
    /// It went out.
    pub(in super::super) const OUTBOUND: u32 = 2;
    /// Its checksum is yet to be computed.
    pub(in super::super) const CHECKSUM_NOT_READY: u32 = 1 << 9;
    /// It is yet to be segmented.
    pub(in super::super) const SEGMENTATION_OFFLOADED: u32 = 1 << 11;
}

/// Bytes before a packet's data, and after.
const PACKET_HEAD: usize = 28;
const PACKET_TAIL: usize = 16;

/// Appends the head of a file.
pub(super) fn section(out: &mut Vec<u8>, application: &str) {
    let mut fields = Vec::from(BYTE_ORDER_MAGIC.to_le_bytes());
    // Version 1.0, of a length that is not known yet.
    fields.extend([1, 0, 0, 0]);
    fields.extend(u64::MAX.to_le_bytes());
    block(out, SECTION, &fields, &[(SHB_USERAPPL, application.as_bytes())]);
}

/// Appends an interface; its number is how many there were before it.
pub(super) fn interface(out: &mut Vec<u8>, name: &str, snaplen: u32) {
    let [low, high] = LINKTYPE_ETHERNET.to_le_bytes();
    let fields = [[low, high, 0, 0], snaplen.to_le_bytes()].concat();
    block(out, INTERFACE, &fields, &[(IF_NAME, name.as_bytes()), (IF_TSRESOL, &[9])]);
}

/// What became of an interface's packets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statistics {
    pub(super) interface: u32,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Packets that came by, the dropped among them.
    pub(super) received: u64,
    /// Packets that are not in the file.
    pub(super) dropped: u64,
}

/// Appends the statistics of an interface.
pub(super) fn statistics(out: &mut Vec<u8>, statistics: &Statistics) {
    let &Statistics { interface, start, end, received, dropped } = statistics;
    let fields = [&interface.to_le_bytes()[..], &time(end)].concat();
    let options: [(u16, &[u8]); 4] = [
        (ISB_STARTTIME, &time(start)),
        (ISB_ENDTIME, &time(end)),
        (ISB_IFRECV, &received.to_le_bytes()),
        (ISB_IFDROP, &dropped.to_le_bytes()),
    ];
    block(out, STATISTICS, &fields, &options);
}

/// All of a packet but its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    pub(super) interface: u32,
    pub(super) time: u64,
    /// Bytes that are kept, and that it had.
    pub(super) captured: usize,
    pub(super) len: usize,
    /// Bits of [`flag`].
    pub(super) flags: u32,
}

impl Packet {
    /// The length of its block.
    fn block_len(&self) -> usize {
        PACKET_HEAD + self.captured.next_multiple_of(4) + PACKET_TAIL
    }

    /// Writes its block to the beginning of `out`; returns the block's length and the place for the data, or `None` if
    /// there is no room.
    pub(super) fn write<'o>(&self, out: &'o mut [u8]) -> Option<(usize, &'o mut [u8])> {
        let block_len = self.block_len();
        let block = out.get_mut(..block_len)?;
        let total = (block_len as u32).to_le_bytes();
        let (head, rest) = block.split_at_mut(PACKET_HEAD);
        let (data, tail) = rest.split_at_mut(rest.len() - PACKET_TAIL);
        let [high, low] = halves(self.time);
        let words =
            [PACKET, block_len as u32, self.interface, high, low, self.captured as u32, self.len as u32];
        for (place, word) in head.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        let [code, _] = EPB_FLAGS.to_le_bytes();
        let words = [[code, 0, 4, 0], self.flags.to_le_bytes(), [0; 4], total];
        tail.copy_from_slice(words.as_flattened());
        let (data, padding) = data.split_at_mut(self.captured);
        padding.fill(0);
        Some((block_len, data))
    }
}

/// Appends a block with these fields, of a multiple of 4 bytes, and options.
fn block(out: &mut Vec<u8>, kind: u32, fields: &[u8], options: &[(u16, &[u8])]) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    out.extend(fields);
    for (code, value) in options {
        // A longer one is not worth a format's limit.
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        out.extend(code.to_le_bytes());
        out.extend((value.len() as u16).to_le_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    // The end of the options.
    out.extend([0; 4]);
    let total = ((out.len() - start + 4) as u32).to_le_bytes();
    out[start + 4..start + 8].copy_from_slice(&total);
    out.extend(total);
}

/// A time as the format has it: the high half first.
fn time(nanoseconds: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(halves(nanoseconds).map(u32::to_le_bytes).as_flattened());
    bytes
}

fn halves(time: u64) -> [u32; 2] {
    [(time >> 32) as u32, time as u32]
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A block that was read back: its type, fields and options together, without padding at its end.
    pub(in super::super) fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !bytes.is_empty() {
            let len = word(&bytes[4..]) as usize;
            assert!(len >= 12 && len.is_multiple_of(4), "a block of {len} bytes");
            assert_eq!(word(&bytes[len - 4..]) as usize, len, "both lengths");
            blocks.push((word(bytes), bytes[8..len - 4].to_vec()));
            bytes = &bytes[len..];
        }
        blocks
    }

    /// The packets of a file: interface, time, length, flags, data.
    pub(in super::super) fn packets(bytes: &[u8]) -> Vec<(u32, u64, u32, u32, Vec<u8>)> {
        let packets = blocks(bytes).into_iter().filter(|(kind, _)| *kind == PACKET).map(|(_, body)| {
            let (words, rest) = body.split_at(20);
            let words: Vec<u32> =
                words.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
            let [interface, high, low, captured, len] = words[..] else { panic!("five words") };
            let (data, options) = rest.split_at(captured.next_multiple_of(4) as usize);
            assert_eq!(options[..4], [2, 0, 4, 0], "flags and nothing else");
            assert_eq!(options[8..], [0; 4], "the end of options");
            let flags = u32::from_le_bytes(options[4..8].try_into().unwrap());
            let time = u64::from(high) << 32 | u64::from(low);
            (interface, time, len, flags, data[..captured as usize].to_vec())
        });
        packets.collect()
    }

    /// The bytes as sections 4.1, 4.2, 4.3 and 4.6 of the draft have them.
    #[test]
    fn the_bytes_are_these() {
        let mut out = Vec::new();
        section(&mut out, "ringway");
        #[rustfmt::skip]
        assert_eq!(out, [
            0x0a, 0x0d, 0x0d, 0x0a, 44, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0,
            255, 255, 255, 255, 255, 255, 255, 255,
            4, 0, 7, 0, b'r', b'i', b'n', b'g', b'w', b'a', b'y', 0, 0, 0, 0, 0, 44, 0, 0, 0,
        ]);
        out.clear();
        interface(&mut out, "a", 96);
        #[rustfmt::skip]
        assert_eq!(out, [
            1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 96, 0, 0, 0,
            2, 0, 1, 0, b'a', 0, 0, 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0,
        ]);
        let packet = Packet {
            interface: 2,
            time: 0x0102_0304_0506_0708,
            captured: 5,
            len: 0x1_0002,
            flags: flag::OUTBOUND | flag::CHECKSUM_NOT_READY | flag::SEGMENTATION_OFFLOADED,
        };
        let mut out = [0xee; 53];
        let (len, data) = packet.write(&mut out).unwrap();
        assert_eq!(len, 52);
        data.copy_from_slice(b"frame");
        #[rustfmt::skip]
        assert_eq!(out, [
            6, 0, 0, 0, 52, 0, 0, 0, 2, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 5, 0, 0, 0, 2, 0, 1, 0,
            b'f', b'r', b'a', b'm', b'e', 0, 0, 0,
            2, 0, 4, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 52, 0, 0, 0, 0xee,
        ]);
        assert!(packet.write(&mut [0; 51]).is_none());
        let mut out = Vec::new();
        statistics(&mut out, &Statistics { interface: 1, start: 1 << 32, end: 2, received: 9, dropped: 4 });
        #[rustfmt::skip]
        assert_eq!(out, [
            5, 0, 0, 0, 76, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0,
            2, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 8, 0, 0, 0, 0, 0, 2, 0, 0, 0,
            4, 0, 8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 8, 0, 4, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 76, 0, 0, 0,
        ]);
    }

    proptest! {
        /// Whatever is written can be read back, block by block, and a packet that does not fit leaves no trace.
        #[test]
        fn what_is_written_can_be_read(
            names in prop::collection::vec("\\PC{0,20}", 0..4),
            sent in prop::collection::vec((any::<u32>(), any::<u64>(), 0..3000_usize, 0..100_usize, any::<u32>()), 0..20),
        ) {
            let mut out = Vec::new();
            section(&mut out, "x");
            for name in &names {
                interface(&mut out, name, 0);
            }
            prop_assert_eq!(blocks(&out).len(), 1 + names.len());
            let mut room = vec![0xee; 20_000];
            let (mut at, mut expected) = (0, Vec::new());
            for (number, (interface, time, captured, cut, flags)) in sent.into_iter().enumerate() {
                let packet = Packet { interface, time, captured, len: captured + cut, flags };
                let rest = &mut room[at..];
                let before = rest.to_vec();
                if let Some((len, data)) = packet.write(rest) {
                    prop_assert_eq!(data.len(), captured);
                    data.fill(number as u8);
                    at += len;
                    let data = vec![number as u8; captured];
                    expected.push((interface, time, (captured + cut) as u32, flags, data));
                } else {
                    prop_assert_eq!(&room[at..], &before[..]);
                }
            }
            prop_assert_eq!(packets(&room[..at]), expected);
        }
    }
}
