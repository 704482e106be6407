//! The network device (5.1).

mod control;
mod header;

pub use header::{Checksum, HeaderError, Offloads, Receive};

use ringway_spec::feature;
use ringway_spec::net::{
    Config, F_CSUM, F_CTRL_VQ, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_HOST_ECN,
    F_HOST_TSO4, F_HOST_TSO6, F_MAC, F_MQ, F_MRG_RXBUF, F_MTU, F_STATUS, HDR_LEN, HDR_LEN_LEGACY,
    MQ_PAIRS_MAX, MQ_PAIRS_MIN, MTU_MIN, S_LINK_UP,
};
use ringway_spec::status::DeviceStatus;
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::status::{FeatureError, Negotiation};

/// What a feature needs beside it (5.1.3.1). `MQ` needs `CTRL_VQ` too, but a vhost-user front-end that serves
/// the control queue itself acks `MQ` alone.
const REQUIRES: &[(u64, u64)] = &[
    (F_GUEST_TSO4, F_GUEST_CSUM),
    (F_GUEST_TSO6, F_GUEST_CSUM),
    (F_HOST_TSO4, F_CSUM),
    (F_HOST_TSO6, F_CSUM),
];

/// How a device shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Its MAC address, if the device says one.
    pub mac: Option<[u8; 6]>,
    /// Its largest frame without the Ethernet header, 68 to 65535 bytes, if the device says one.
    pub mtu: Option<u16>,
    /// The most queue pairs, 1 to 32768.
    pub max_pairs: u16,
    /// Whether the device takes frames to be segmented, and gives such frames to the driver.
    pub segmentation: bool,
    /// Whether the device offers to be behind an IOMMU.
    pub iommu: bool,
}

/// Why a device cannot be as its settings say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// See [`Settings::mtu`].
    #[error("mtu {0} is not in 68..=65535")]
    Mtu(u16),
    /// See [`Settings::max_pairs`].
    #[error("{0} queue pairs are not in 1..=32768")]
    Pairs(u16),
    /// A multicast address belongs to no device.
    #[error("the MAC address is a multicast address")]
    MulticastMac,
}

/// What a driver has made of a device: all that it takes to go on with another one of the same settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// The features acked, if any were.
    pub acked: Option<u64>,
    /// The device status.
    pub status: u8,
    /// Pairs in use by the control command.
    pub active_pairs: u16,
}

/// What a queue is for (5.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Frames for the driver; the number is the pair's.
    Receive(u16),
    /// Frames from the driver; the number is the pair's.
    Transmit(u16),
    /// Commands.
    Control,
}

/// First byte of a saved state, for others to come.
const STATE_VERSION: u8 = 1;

/// Why a saved state cannot be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StateError {
    /// It is not of the form that this version saves.
    #[error("{0} bytes are not the state of a network device, or of another version")]
    Form(usize),
    /// It uses more queue pairs than there are.
    #[error("the driver uses {pairs} queue pairs, and there are {most}")]
    Pairs {
        /// In use.
        pairs: u16,
        /// There are.
        most: u16,
    },
}

/// A network device.
#[derive(Debug, Clone)]
pub struct NetDevice {
    settings: Settings,
    negotiation: Negotiation,
    /// Pairs in use by the control command; all that the transport enabled if there is no control queue.
    active_pairs: u16,
}

impl NetDevice {
    /// A device after reset.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        if let Some(mtu) = settings.mtu
            && mtu < MTU_MIN
        {
            return Err(SettingsError::Mtu(mtu));
        }
        if !(MQ_PAIRS_MIN..=MQ_PAIRS_MAX).contains(&settings.max_pairs) {
            return Err(SettingsError::Pairs(settings.max_pairs));
        }
        if settings.mac.is_some_and(|mac| mac[0] & 1 != 0) {
            return Err(SettingsError::MulticastMac);
        }
        let negotiation = Negotiation::new(offered(&settings), REQUIRES);
        Ok(Self { settings, negotiation, active_pairs: 1 })
    }

    /// Features and status.
    pub fn negotiation(&self) -> &Negotiation {
        &self.negotiation
    }

    /// Features and status, to be changed by the driver.
    pub fn negotiation_mut(&mut self) -> &mut Negotiation {
        &mut self.negotiation
    }

    /// Back to the start.
    pub fn reset(&mut self) {
        self.negotiation.reset();
        self.active_pairs = 1;
    }

    /// What the driver has made of it.
    pub fn state(&self) -> State {
        let Self { negotiation, active_pairs, .. } = self;
        let (acked, status) = (negotiation.accepted(), negotiation.status().bits());
        State { acked, status, active_pairs: *active_pairs }
    }

    /// A device after reset goes on where another was. Of pairs in use it takes as many as it has.
    ///
    /// # Errors
    /// [`FeatureError`] if it does not offer what was acked.
    pub fn restore(&mut self, state: State) -> Result<(), FeatureError> {
        let State { acked, status, active_pairs } = state;
        if let Some(acked) = acked {
            self.negotiation.ack(acked)?;
        }
        if status != 0 {
            self.negotiation.write_status(status);
        }
        if DeviceStatus::from_bits_retain(status).contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            self.negotiation.need_reset();
        }
        self.active_pairs = active_pairs.clamp(MQ_PAIRS_MIN, self.settings.max_pairs);
        Ok(())
    }

    /// Copies `to.len()` bytes of the configuration space from `offset` on; fields past the space's end read
    /// as zero, as do fields whose feature is not offered.
    pub fn read_config(&self, offset: usize, to: &mut [u8]) {
        let config = Config {
            mac: self.settings.mac.unwrap_or_default(),
            status: S_LINK_UP.into(),
            max_virtqueue_pairs: self.settings.max_pairs.into(),
            mtu: self.settings.mtu.unwrap_or_default().into(),
        };
        to.fill(0);
        let bytes = config.as_bytes();
        for (to, from) in to.iter_mut().zip(bytes.get(offset..).unwrap_or_default()) {
            *to = *from;
        }
    }

    /// Number of queues that the device has at most, the control queue included.
    pub fn max_queues(&self) -> u16 {
        self.settings.max_pairs * 2 + 1
    }

    /// The most queue pairs.
    pub fn max_pairs(&self) -> u16 {
        self.settings.max_pairs
    }

    /// What queue `index` is for, by what the driver acked; `None` if there is no such queue. The control queue
    /// is the last of the queues that were negotiated, and there only if `CTRL_VQ` was.
    pub fn role(&self, index: u16) -> Option<Role> {
        let acked = self.negotiation.acked();
        let pairs = if acked & F_MQ != 0 { self.settings.max_pairs } else { 1 };
        match index {
            _ if acked & F_CTRL_VQ != 0 && index == 2 * pairs => Some(Role::Control),
            _ if index >= 2 * self.settings.max_pairs => None,
            _ if index.is_multiple_of(2) => Some(Role::Receive(index / 2)),
            _ => Some(Role::Transmit(index / 2)),
        }
    }

    /// How many pairs the driver uses, if it says so on the control queue; else as many as are enabled.
    pub fn active_pairs(&self) -> u16 {
        if self.negotiation.acked() & F_CTRL_VQ != 0 { self.active_pairs } else { self.settings.max_pairs }
    }

    /// Carries out a command of the control queue, its device-readable bytes; returns the answer's byte.
    pub fn control(&mut self, command: &[u8]) -> u8 {
        control::run(self, command)
    }

    /// What another device of the same settings needs to go on where this one stopped, beside the features that were
    /// acked: a transport moves those itself.
    pub fn save(&self) -> [u8; 3] {
        let [low, high] = self.active_pairs.to_le_bytes();
        [STATE_VERSION, low, high]
    }

    /// Goes on where another device stopped.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed then.
    pub fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        let &[STATE_VERSION, low, high] = state else { return Err(StateError::Form(state.len())) };
        match u16::from_le_bytes([low, high]) {
            pairs if (1..=self.settings.max_pairs).contains(&pairs) => self.active_pairs = pairs,
            pairs => return Err(StateError::Pairs { pairs, most: self.settings.max_pairs }),
        }
        Ok(())
    }

    /// What frames the driver takes and gives.
    pub fn offloads(&self) -> Offloads {
        Offloads::new(self.negotiation.acked(), self.settings.mtu)
    }
}

/// Size of the header before each frame, by what was acked (5.1.6.1).
pub fn header_len(acked: u64) -> usize {
    if acked & (feature::VERSION_1 | F_MRG_RXBUF) == 0 { HDR_LEN_LEGACY } else { HDR_LEN }
}

/// The features of a device of these settings.
fn offered(settings: &Settings) -> u64 {
    let mut features = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
    // Frames are used in the order in which buffers were taken, both ways, so that may be promised.
    features |= feature::RING_PACKED | feature::IN_ORDER;
    features |= F_CSUM | F_GUEST_CSUM | F_MRG_RXBUF | F_STATUS;
    if settings.segmentation {
        features |= F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;
    }
    if settings.iommu {
        features |= feature::ACCESS_PLATFORM;
    }
    if settings.mac.is_some() {
        features |= F_MAC;
    }
    if settings.mtu.is_some() {
        features |= F_MTU;
    }
    if settings.max_pairs > 1 {
        features |= F_MQ | F_CTRL_VQ;
    }
    features
}

#[cfg(test)]
mod tests;
