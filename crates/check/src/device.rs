//! What is known of device types: which vrings to set up, and a request that every such device carries out.

use std::fmt;
use std::str::FromStr;

use ringway_spec::net;

/// A device type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Any: its rings can be started, and nothing is put in them.
    Generic,
    /// A network device: it takes frames.
    Net,
    /// A block device: it tells its name.
    Blk,
}

/// Bits that are features of a network device and of no other that is common: `CTRL_RX` to `CTRL_MAC_ADDR`.
const NET_ONLY: u64 = 0x3f << 18;
/// What a block device offers: the longest chain, and the size of a block.
const BLK_BOTH: u64 = 1 << 2 | 1 << 6;

/// A frame to all stations, of an Ethernet type for experiments, shorter than any medium's limit.
const FRAME: [u8; 60] = {
    let mut frame = [0; 60];
    let head = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0x77, 0x88, 0xb5];
    let mut i = 0;
    while i < head.len() {
        frame[i] = head[i];
        i += 1;
    }
    frame
};
/// `VIRTIO_BLK_T_GET_ID`.
const GET_ID: u32 = 8;
/// Length of a block device's name.
const ID_LEN: u32 = 20;

/// A request: what the device reads, and how many bytes it may write.
#[derive(Debug, Clone)]
pub(crate) struct RequestShape {
    /// A header, and what follows it.
    pub(crate) readable: Vec<Vec<u8>>,
    /// The lengths of the parts to be written.
    pub(crate) writable: Vec<u32>,
}

impl Device {
    pub(crate) const ALL: [Self; 3] = [Self::Generic, Self::Net, Self::Blk];

    /// A guess by the features offered.
    pub(crate) fn guess(features: u64) -> Self {
        if features & NET_ONLY != 0 {
            Self::Net
        } else if features & BLK_BOTH == BLK_BOTH {
            Self::Blk
        } else {
            Self::Generic
        }
    }

    /// The vrings that a driver sets up at least.
    pub(crate) fn vrings(self) -> u32 {
        match self {
            Self::Net => 2,
            Self::Generic | Self::Blk => 1,
        }
    }

    /// The vring that requests go to.
    pub(crate) fn request_vring(self) -> usize {
        match self {
            Self::Net => 1,
            Self::Generic | Self::Blk => 0,
        }
    }

    /// A request that the device carries out whatever its state: a frame to all stations, or the question for its
    /// name.
    pub(crate) fn request(self) -> RequestShape {
        match self {
            Self::Generic => RequestShape { readable: Vec::new(), writable: vec![64] },
            Self::Net => {
                RequestShape { readable: vec![vec![0; net::HDR_LEN], FRAME.to_vec()], writable: Vec::new() }
            }
            Self::Blk => {
                let mut header = vec![0; 16];
                header[..4].copy_from_slice(&GET_ID.to_le_bytes());
                RequestShape { readable: vec![header], writable: vec![ID_LEN, 1] }
            }
        }
    }

    /// How many bytes the device writes to carry it out.
    pub(crate) fn written(self) -> u32 {
        self.request().writable.iter().sum()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Generic => "generic",
            Self::Net => "net",
            Self::Blk => "blk",
        })
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|device| device.to_string() == text);
        found.ok_or_else(|| "it is net, blk or generic".into())
    }
}
