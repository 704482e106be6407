//! Console device (5.3).
//!
//! Queue indices: port 0 receives on 0 and transmits on 1. With `MULTIPORT` the control queues are 2 (device to driver) and
//! 3 (driver to device), and port n, from 1 on, receives on 2n + 2 and transmits on 2n + 3 (5.3.2). Receive and transmit
//! are the driver's.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device id of a console.
pub const DEVICE_ID: u32 = 3;

/// The device says how large the console of port 0 is (5.3.3).
pub const F_SIZE: u64 = 1 << 0;
/// There can be several ports, and there are control queues.
pub const F_MULTIPORT: u64 = 1 << 1;
/// The driver may write single bytes to the configuration space.
pub const F_EMERG_WRITE: u64 = 1 << 2;

/// The device configuration (5.3.4).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// In characters, with `F_SIZE`.
    pub cols: U16,
    /// With `F_SIZE`.
    pub rows: U16,
    /// Ports that there can be, with `F_MULTIPORT`.
    pub max_nr_ports: U32,
    /// The driver writes a byte here to have it shown; with `F_EMERG_WRITE`, which need not be negotiated.
    pub emerg_wr: U32,
}

/// Where [`Config::cols`] is.
pub const CONFIG_COLS: usize = core::mem::offset_of!(Config, cols);
/// Where [`Config::rows`] is.
pub const CONFIG_ROWS: usize = core::mem::offset_of!(Config, rows);
/// Where [`Config::max_nr_ports`] is.
pub const CONFIG_MAX_NR_PORTS: usize = core::mem::offset_of!(Config, max_nr_ports);
/// Where [`Config::emerg_wr`] is.
pub const CONFIG_EMERG_WR: usize = core::mem::offset_of!(Config, emerg_wr);

/// What a message on a control queue begins with (5.3.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Control {
    /// The port.
    pub id: U32,
    /// [`DEVICE_READY`] and its siblings.
    pub event: U16,
    /// What the event needs; 1 is yes, 0 is no.
    pub value: U16,
}

/// Size of [`Control`].
pub const CONTROL_LEN: usize = size_of::<Control>();

/// What follows [`RESIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Resize {
    /// In characters.
    pub cols: U16,
    /// In lines.
    pub rows: U16,
}

/// Driver: it is ready for control messages (1), or failed (0).
pub const DEVICE_READY: u16 = 0;
/// Device: there is a new port; `VIRTIO_CONSOLE_PORT_ADD` in some places of the specification.
pub const PORT_ADD: u16 = 1;
/// Device: a port is gone.
pub const PORT_REMOVE: u16 = 2;
/// Driver: it can use the port (1), or cannot (0).
pub const PORT_READY: u16 = 3;
/// Device: the port is a console.
pub const CONSOLE_PORT: u16 = 4;
/// Device: the console's size is another; [`Resize`] follows.
pub const RESIZE: u16 = 5;
/// Both: the port was opened (1) or closed (0) on this side.
pub const PORT_OPEN: u16 = 6;
/// Device: the port has a name, which follows in UTF-8, without a NUL.
pub const PORT_NAME: u16 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields are where the figures of 5.3.4 and 5.3.6.2 have them.
    #[test]
    fn fields_are_in_their_places() {
        assert_eq!((CONFIG_COLS, CONFIG_ROWS, CONFIG_MAX_NR_PORTS, CONFIG_EMERG_WR), (0, 2, 4, 8));
        assert_eq!((size_of::<Config>(), CONTROL_LEN, size_of::<Resize>()), (12, 8, 4));
    }
}
