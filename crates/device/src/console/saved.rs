//! What a console's driver knows, for a device that goes on in the place of another.

use alloc::vec::Vec;

use super::{ConsoleDevice, Port};

/// A console in a process that ends. What was negotiated is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The driver is ready for messages.
    pub is_ready: bool,
    /// By their numbers.
    pub ports: Vec<PortState>,
}

/// A port there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortState {
    /// What the driver was told of it, and has told; a bit for each.
    pub told: u8,
    /// How many bytes of the oldest chain of the transmit queue have been passed on.
    pub passed_on: usize,
}

impl ConsoleDevice {
    /// What another device needs to go on with this one's driver.
    pub fn state(&self) -> State {
        let port = |port: &Port| PortState { told: port.view_bits(), passed_on: port.passed_on };
        State { is_ready: self.is_ready, ports: self.ports.iter().map(port).collect() }
    }

    /// Goes on with the driver of another device, which had the same ports. A driver that was told a size is told again.
    pub fn restore(&mut self, state: &State) {
        self.is_ready = state.is_ready;
        for (port, &PortState { told, passed_on }) in self.ports.iter_mut().zip(&state.ports) {
            port.set_view_bits(told);
            port.passed_on = passed_on;
        }
    }
}
