//! What a test chooses about its session.

use super::super::ring::KickPolicy;
use super::super::wire::protocol;
use super::VnetHeader;

/// How the back-end is told about the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMethod {
    /// All regions in one `SET_MEM_TABLE`.
    Table,
    /// `GET_MAX_MEM_SLOTS`, then an `ADD_MEM_REG` for each.
    AddRegions,
}

/// When `SET_VRING_ENABLE` is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enable {
    /// Before `SET_FEATURES`, as QEMU does: the rings are enabled, then started.
    BeforeStart,
    /// After every ring is started.
    AfterStart,
    /// Both.
    Twice,
    /// Not at all: the rings stay disabled until [`enable_ring`](super::NetFrontend::enable_ring).
    Never,
}

/// What happens to receive buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxPolicy {
    /// The ring is filled, and a buffer is posted again once its frame is taken.
    Recycle,
    /// The ring is filled once and then runs dry.
    Once,
    /// No buffer is ever posted.
    Never,
}

/// The choices of a session; [`Options::default`] behaves as well as can be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Protocol features to ack if they are offered.
    pub protocol_features: u64,
    /// Pairs of a receive and a transmit ring.
    pub queue_pairs: u16,
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// Where all rings start: 65530 for tests of the wrap.
    pub vring_base: u16,
    /// Memory regions `(gpa, size, mmap_offset)`; files are sparse, so size costs nothing.
    pub memory: Vec<(u64, u64, u64)>,
    /// How the back-end is told about them.
    pub memory_method: MemoryMethod,
    /// When rings are enabled.
    pub enable: Enable,
    /// If `REPLY_ACK` is negotiated: ask for an acknowledgement of everything, and check it.
    pub ack_everything: bool,
    /// Lengths of the buffers of each receive chain, header included.
    pub rx_chain: Vec<u32>,
    /// What happens to receive buffers.
    pub rx_policy: RxPolicy,
    /// When the device is kicked.
    pub kick_policy: KickPolicy,
    /// The longest frame that will be sent.
    pub max_frame: usize,
    /// Accept a `num_buffers` of zero when buffers are not mergeable: the specification wants one, but some
    /// back-ends leave the field alone.
    pub tolerate_no_num_buffers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            protocol_features: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIGURE_MEM_SLOTS
                | protocol::LOG_SHMFD,
            queue_pairs: 1,
            ring_size: 256,
            vring_base: 0,
            // Below and above 4 GiB, as a PC has it.
            memory: vec![(0, 128 << 20, 0), (4 << 30, 128 << 20, 0)],
            memory_method: MemoryMethod::Table,
            enable: Enable::BeforeStart,
            ack_everything: true,
            rx_chain: vec![2048],
            rx_policy: RxPolicy::Recycle,
            kick_policy: KickPolicy::Always,
            max_frame: 65_550,
            tolerate_no_num_buffers: false,
        }
    }
}

/// How a frame's bytes, header first, are spread over descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrangement {
    /// Lengths of all descriptors but the last, which takes the rest; none if nothing is left.
    pub pieces: Vec<usize>,
    /// Whether the descriptors stand in an indirect table.
    pub indirect: bool,
}

impl Arrangement {
    /// Everything in one descriptor.
    pub fn whole() -> Self {
        Self::default()
    }

    /// The header (of twelve bytes) in a descriptor of its own.
    pub fn header_apart() -> Self {
        Self::pieces(&[VnetHeader::LEN])
    }

    /// Descriptors of these lengths, and a last one with the rest.
    pub fn pieces(lengths: &[usize]) -> Self {
        Self { pieces: lengths.to_vec(), indirect: false }
    }

    /// The same in an indirect table.
    #[must_use]
    pub fn indirect(self) -> Self {
        Self { indirect: true, ..self }
    }

    /// The lengths of all descriptors for `total` bytes.
    pub(in crate::frontend) fn lengths(&self, total: usize) -> Vec<usize> {
        let mut left = total;
        let mut lengths = Vec::new();
        for &piece in &self.pieces {
            if left == 0 {
                break;
            }
            lengths.push(piece.min(left));
            left -= piece.min(left);
        }
        if left > 0 {
            lengths.push(left);
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrangement_covers_every_byte_once() {
        assert_eq!(Arrangement::whole().lengths(100), [100]);
        assert_eq!(Arrangement::header_apart().lengths(100), [12, 88]);
        assert_eq!(Arrangement::pieces(&[5, 20, 1]).lengths(100), [5, 20, 1, 74]);
        assert_eq!(Arrangement::pieces(&[60, 40, 7]).lengths(100), [60, 40]);
        assert_eq!(Arrangement::pieces(&[60, 60]).lengths(100), [60, 40]);
    }
}
