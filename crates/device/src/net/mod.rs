//! The network device (5.1).
//!
//! ```text
//!   driver ──features, status──► negotiation ─┬─► offloads, header_len   which frames, behind which header
//!     └─────control commands───► orders ──────┼─► steering               to which receive queue
//!                                             └─► filter                 whether at all
//! ```
//!
//! What the data path needs of it is a value to keep, which it asks for anew when the driver has said something.

mod command;
mod control;
mod control_queue;
mod filter;
mod header;
mod rss;
mod saved;

pub use command::MAX_COMMAND;
pub use control_queue::ControlQueue;
pub use filter::Filter;
pub use header::{Checksum, HeaderError, Offloads, Receive, Work};
pub use rss::{HEADERS_LEN, Hash, Steering};
pub use saved::{RestoreError, State, StateError};

use ringway_spec::feature;
use ringway_spec::net::{
    CTRL_ERR, CTRL_OK, Config, DUPLEX_FULL, F_CSUM, F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX,
    F_CTRL_RX_EXTRA, F_CTRL_VLAN, F_CTRL_VQ, F_GUEST_ANNOUNCE, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4,
    F_GUEST_TSO6, F_GUEST_UFO, F_GUEST_USO4, F_GUEST_USO6, F_HASH_REPORT, F_HOST_ECN, F_HOST_TSO4,
    F_HOST_TSO6, F_HOST_UFO, F_HOST_USO, F_MAC, F_MQ, F_MRG_RXBUF, F_MTU, F_RSS, F_SPEED_DUPLEX, F_STATUS,
    HDR_LEN, HDR_LEN_HASH, HDR_LEN_LEGACY, MQ_PAIRS_MAX, MQ_PAIRS_MIN, MTU_MIN, RSS_KEY_SIZE, RSS_TABLE_LEN,
    S_ANNOUNCE, S_LINK_UP, SPEED_MAX,
};
use thiserror::Error;
use zerocopy::IntoBytes;

use self::command::Command;
use self::control::Orders;
use self::filter::Addresses;
use crate::status::Negotiation;

/// What a feature needs one of beside it (5.1.3.1); what needs something comes behind that. Features without these have no
/// effect. They are not refused: QEMU's `csum=off` alone has Linux ack what needs checksums without them, and never use
/// it. `MQ` needs `CTRL_VQ` too, but a vhost-user front-end that serves the control queue itself acks `MQ` alone.
const REQUIRES: &[(u64, u64)] = &[
    (F_GUEST_TSO4, F_GUEST_CSUM),
    (F_GUEST_TSO6, F_GUEST_CSUM),
    (F_GUEST_ECN, F_GUEST_TSO4 | F_GUEST_TSO6),
    (F_GUEST_UFO, F_GUEST_CSUM),
    (F_GUEST_USO4, F_GUEST_CSUM),
    (F_GUEST_USO6, F_GUEST_CSUM),
    (F_HOST_TSO4, F_CSUM),
    (F_HOST_TSO6, F_CSUM),
    (F_HOST_ECN, F_HOST_TSO4 | F_HOST_TSO6),
    (F_HOST_UFO, F_CSUM),
    (F_HOST_USO, F_CSUM),
];

/// The receive side's offloads, which the driver may turn on and off.
const GUEST_OFFLOADS: u64 =
    F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_UFO | F_GUEST_USO4 | F_GUEST_USO6;

/// Features that mean nothing without the control queue (5.1.3.1).
const CONTROLLED: u64 = F_CTRL_RX | F_CTRL_VLAN | F_GUEST_ANNOUNCE | F_HASH_REPORT;

/// How a device shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is offered or not, whatever the others")]
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
    /// The speed in Mbit/s that it says, up to 2³¹ - 1, both ways at once.
    pub speed: Option<u32>,
    /// Whether the driver may choose receive queues by a hash, and have hashes reported. Of no use where a front-end
    /// has the control queue for itself: the device would never learn the key.
    pub rss: bool,
    /// Whether the driver may say which frames it wants, and by which address. Of no use there either.
    pub filters: bool,
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
    /// See [`Settings::speed`].
    #[error("a speed of {0} Mbit/s is more than 2147483647")]
    Speed(u32),
    /// A multicast address belongs to no device.
    #[error("the MAC address is a multicast address")]
    MulticastMac,
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

/// A network device.
#[derive(Debug, Clone)]
pub struct NetDevice {
    settings: Settings,
    negotiation: Negotiation,
    orders: Orders,
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
        if let Some(speed) = settings.speed
            && speed > SPEED_MAX
        {
            return Err(SettingsError::Speed(speed));
        }
        let negotiation = Negotiation::new(offered(&settings), &[]);
        Ok(Self { settings, negotiation, orders: Orders::default() })
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
        self.orders = Orders::default();
    }

    /// Copies `to.len()` bytes of the configuration space from `offset` on; fields past the space's end read
    /// as zero, as do fields whose feature is not offered.
    pub fn read_config(&self, offset: usize, to: &mut [u8]) {
        let Self { settings, orders, .. } = self;
        let announce = if self.has(F_GUEST_ANNOUNCE) && orders.announce { S_ANNOUNCE } else { 0 };
        let mut config = Config {
            mac: orders.address.or(settings.mac).unwrap_or_default(),
            status: (S_LINK_UP | announce).into(),
            max_virtqueue_pairs: settings.max_pairs.into(),
            mtu: settings.mtu.unwrap_or_default().into(),
            ..Config::default()
        };
        if let Some(speed) = settings.speed {
            config.speed = speed.into();
            config.duplex = DUPLEX_FULL;
        }
        if settings.rss {
            config.rss_max_key_size = RSS_KEY_SIZE;
            config.rss_max_indirection_table_length = RSS_TABLE_LEN.into();
            config.supported_hash_types = rss::HASH_TYPES.into();
        }
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
        let pairs = if acked & (F_MQ | F_RSS) != 0 { self.settings.max_pairs } else { 1 };
        match index {
            _ if acked & F_CTRL_VQ != 0 && index == 2 * pairs => Some(Role::Control),
            _ if index >= 2 * self.settings.max_pairs => None,
            _ if index.is_multiple_of(2) => Some(Role::Receive(index / 2)),
            _ => Some(Role::Transmit(index / 2)),
        }
    }

    /// How many pairs the driver uses, if it says so on the control queue; else as many as are enabled.
    pub fn active_pairs(&self) -> u16 {
        match &self.orders {
            _ if self.negotiation.acked() & F_CTRL_VQ == 0 => self.settings.max_pairs,
            Orders { rss: Some((table, _)), .. } => table.pairs(),
            Orders { pairs, .. } => *pairs,
        }
    }

    /// Carries out a command of the control queue, its device-readable bytes; returns the answer's byte.
    pub fn control(&mut self, command: &[u8]) -> u8 {
        let (features, max_pairs) = (self.negotiation.acked(), self.settings.max_pairs);
        let is_done = Command::parse(command).is_some_and(|c| self.orders.obey(c, features, max_pairs));
        if is_done { CTRL_OK } else { CTRL_ERR }
    }

    /// The driver shall tell its network where it is, for it may be elsewhere than before; whether it can: then the
    /// configuration has changed.
    pub fn announce(&mut self) -> bool {
        self.orders.announce = true;
        self.has(F_GUEST_ANNOUNCE | F_STATUS)
    }

    /// How a frame finds its receive queue.
    pub fn steering(&self) -> Steering {
        let Orders { hash, rss, .. } = &self.orders;
        let is_wanted = rss.is_some() || self.has(F_HASH_REPORT);
        Steering::new(hash.as_ref().filter(|_| is_wanted), rss.as_ref().map(|(table, _)| table))
    }

    /// Which frames the driver wants; `None` if that is all.
    pub fn filter(&self) -> Option<Filter> {
        let Orders { address, modes, addresses, vlans, .. } = &self.orders;
        let own = address.or(self.settings.mac.filter(|_| self.has(F_MAC)));
        let addresses = Addresses { own, modes: *modes, table: addresses.clone() };
        let addresses = self.has(F_CTRL_RX).then_some(addresses);
        let vlans = self.has(F_CTRL_VLAN).then(|| vlans.clone());
        (addresses.is_some() || vlans.is_some()).then_some(Filter { addresses, vlans })
    }

    /// Whether these features were negotiated, and those that are about the control queue together with it: a
    /// front-end may have that for itself, and what the driver says there is not known then.
    fn has(&self, features: u64) -> bool {
        let acked = self.negotiation.acked();
        let queue = if features & CONTROLLED == 0 { 0 } else { F_CTRL_VQ };
        acked & (features | queue) == features | queue
    }

    /// What frames the driver takes and gives.
    pub fn offloads(&self) -> Offloads {
        let acked = self.negotiation.acked();
        let off = self.orders.offloads.map_or(0, |on| GUEST_OFFLOADS & !on);
        Offloads::new(effective(acked & !off), self.settings.mtu)
    }
}

/// Size of the header before each frame, by what was acked (5.1.6.1).
pub fn header_len(acked: u64) -> usize {
    match acked {
        _ if acked & F_HASH_REPORT != 0 => HDR_LEN_HASH,
        _ if acked & (feature::VERSION_1 | F_MRG_RXBUF) != 0 => HDR_LEN,
        _ => HDR_LEN_LEGACY,
    }
}

/// The features acked, without those that lack what they require.
fn effective(acked: u64) -> u64 {
    REQUIRES.iter().fold(
        acked,
        |acked, (feature, requires)| {
            if acked & requires == 0 { acked & !feature } else { acked }
        },
    )
}

/// The features of a device of these settings.
fn offered(settings: &Settings) -> u64 {
    let mut features = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
    // Frames are used in the order in which buffers were taken, both ways, so that may be promised.
    features |= feature::RING_PACKED | feature::IN_ORDER;
    features |= F_CSUM | F_GUEST_CSUM | F_MRG_RXBUF | F_STATUS;
    features |= F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS | F_GUEST_ANNOUNCE;
    if settings.segmentation {
        features |= F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | F_HOST_UFO | F_HOST_USO;
        features |= F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;
        features |= F_GUEST_UFO | F_GUEST_USO4 | F_GUEST_USO6;
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
        features |= F_MQ;
    }
    if settings.speed.is_some() {
        features |= F_SPEED_DUPLEX;
    }
    if settings.rss {
        features |= F_RSS | F_HASH_REPORT;
    }
    if settings.filters {
        features |= F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_VLAN | F_CTRL_MAC_ADDR;
    }
    features
}

#[cfg(test)]
mod tests;
