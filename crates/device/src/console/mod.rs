//! The console device (5.3): ports for text and for streams of bytes.
//!
//! ```text
//!   driver ──transmit queue──► transmit ──► sink       a file, a socket, a terminal: whoever serves the device has it
//!          ◄──receive queue─── receive ◄── source
//!          ──control queue───► control_transmit ──► Event
//!          ◄──control queue─── control_receive ◄── what ports have to be told   (with MULTIPORT)
//!          ──emerg_wr────────► emergency_bytes                                  (at any time)
//! ```
//!
//! Nothing is kept of a stream: what a sink does not take stays in the driver's ring, and a source is asked for as much as
//! the driver has room for. A driver that has not opened a port gets nothing of it.
//!
//! Which queue is which port's is said by [`role`](ConsoleDevice::role). What a driver says that is no message, or is about no
//! port, is ignored and counted.
//!
//! `RESIZE` says columns first, as 5.3.6.2 has it. Linux reads rows first there; only the size that it reads from the
//! configuration, without `MULTIPORT`, is what was meant.

mod port;
mod saved;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use ringway_queue::{Burst, DeviceQueue, QueueError};
use ringway_spec::console::{
    CONFIG_EMERG_WR, CONTROL_LEN, Config, Control, DEVICE_ID, DEVICE_READY, F_EMERG_WRITE, F_MULTIPORT,
    F_SIZE, PORT_OPEN, PORT_READY,
};
use ringway_spec::feature;
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::model::DeviceModel;
use crate::serving::{PIECE, Serving};
use crate::status::Negotiation;
use port::Port;
pub use saved::{PortState, State};

/// The most ports: with their control queues, as many queues as a transport over PCI has.
pub const PORTS_MAX: u16 = 511;
/// The longest name of a port, in bytes: its message fits the buffers of every driver.
pub const NAME_MAX: usize = 255;
/// The most bytes of emergency writes that wait to be fetched.
const EMERGENCY_MAX: usize = 256;

/// How large a console is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

/// How a port shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortSettings {
    /// By which programs of the guest find it: 1 to 255 bytes, no NUL.
    pub name: Option<String>,
    /// Whether it is for a terminal. Such a port is open from the start.
    pub is_console: bool,
}

/// How a device shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The ports that are there from the start, 1 or more.
    pub ports: Vec<PortSettings>,
    /// How many there can be, at least as many: 1 to 511. `MULTIPORT` is offered for more than one, and for one that is not
    /// just a console.
    pub max_ports: u16,
    /// How large the console of port 0 is, if that is known.
    pub size: Option<Size>,
    /// Whether the device offers to be behind an IOMMU.
    pub iommu: bool,
}

/// Why a device or a port cannot be as its settings say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// See [`Settings::ports`] and [`Settings::max_ports`].
    #[error("a console cannot have {ports} ports of at most {max}")]
    Ports {
        /// How many there are.
        ports: usize,
        /// How many there can be.
        max: u16,
    },
    /// See [`PortSettings::name`].
    #[error("the name of a port has 1 to 255 bytes, and no NUL")]
    Name,
    /// The port is there already, or its number is too high.
    #[error("there can be no new port {0}")]
    NotFree(u16),
}

/// What a queue is for; receive and transmit are the driver's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Bytes to the driver, of this port.
    Receive(u16),
    /// Bytes from the driver, of this port.
    Transmit(u16),
    /// Messages to the driver.
    ControlReceive,
    /// Messages from the driver.
    ControlTransmit,
}

/// What a driver has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Whether it is ready for messages.
    Ready(bool),
    /// Whether it can use the port.
    PortReady(u16, bool),
    /// Whether a program of the guest has the port open.
    PortOpen(u16, bool),
}

/// A console.
#[derive(Debug, Clone)]
pub struct ConsoleDevice {
    negotiation: Negotiation,
    size: Option<Size>,
    ports: Vec<Port>,
    /// The driver is ready for messages.
    is_ready: bool,
    emergency: VecDeque<u8>,
    refused: u64,
    /// Room for a message.
    message: Vec<u8>,
}

impl ConsoleDevice {
    /// A device after reset.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let Settings { ports, max_ports: max, size, iommu } = settings;
        if ports.is_empty() || max > PORTS_MAX || ports.len() > max.into() {
            return Err(SettingsError::Ports { ports: ports.len(), max });
        }
        ports.iter().try_for_each(PortSettings::check)?;
        let is_plain = max == 1 && ports[0] == PortSettings { name: None, is_console: true };
        let mut offered = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
        offered |= feature::RING_PACKED | feature::IN_ORDER | F_EMERG_WRITE;
        for (is_offered, feature) in
            [(iommu, feature::ACCESS_PLATFORM), (size.is_some(), F_SIZE), (!is_plain, F_MULTIPORT)]
        {
            if is_offered {
                offered |= feature;
            }
        }
        let mut ports: Vec<_> = ports.into_iter().map(Port::new).collect();
        ports.resize_with(max.into(), Port::default);
        if let Some(size) = size {
            ports[0].set_size(size);
        }
        Ok(Self {
            negotiation: Negotiation::new(offered, &[]),
            size,
            ports,
            is_ready: false,
            emergency: VecDeque::new(),
            refused: 0,
            message: Vec::new(),
        })
    }

    /// What queue `index` is for, by what the driver acked (5.3.2).
    pub fn role(&self, index: u16) -> Option<Role> {
        let port = match index {
            0 | 1 => 0,
            _ if !self.is_multiport() || index >= self.max_queues() => return None,
            2 => return Some(Role::ControlReceive),
            3 => return Some(Role::ControlTransmit),
            _ => index / 2 - 1,
        };
        Some(if index.is_multiple_of(2) { Role::Receive(port) } else { Role::Transmit(port) })
    }

    /// Bytes that the driver wrote to [`CONFIG_EMERG_WR`], oldest first, up to 256 since they were asked for.
    pub fn emergency_bytes(&mut self) -> impl Iterator<Item = u8> + '_ {
        self.emergency.drain(..)
    }

    /// How many messages of the driver were none, or were about no port.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The console of this port has another size. Returns whether the configuration has changed, and the driver is to be
    /// notified of that; with `MULTIPORT` there is a message for it.
    pub fn resize(&mut self, port: u16, size: Size) -> bool {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.set_size(size);
        }
        let is_shown = port == 0 && self.size.is_some_and(|shown| shown != size);
        if is_shown {
            self.size = Some(size);
        }
        is_shown
    }

    /// Somebody is at this side of the port from now on, or is not. There is a message for it, with `MULTIPORT`.
    pub fn set_open(&mut self, port: u16, is_open: bool) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.set_open(is_open);
        }
    }

    /// Whether what is sent to the driver reaches a program: it opened the port, or there is one port that is always open.
    pub fn is_open_in_driver(&self, port: u16) -> bool {
        if !self.is_multiport() {
            return port == 0;
        }
        self.ports.get(usize::from(port)).is_some_and(Port::has_opened)
    }

    /// There is a new port.
    ///
    /// # Errors
    /// [`SettingsError::NotFree`], [`SettingsError::Name`].
    pub fn add_port(&mut self, port: u16, settings: PortSettings) -> Result<(), SettingsError> {
        settings.check()?;
        let place = self.ports.get_mut(usize::from(port)).filter(|place| !place.exists());
        place.ok_or(SettingsError::NotFree(port))?.replace(Some(settings));
        Ok(())
    }

    /// There is no such port any more.
    pub fn remove_port(&mut self, port: u16) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.replace(None);
        }
    }

    /// The queue of [`Role::Transmit`] was reset, alone: what is in it from now on is new.
    pub fn reset_transmit(&mut self, port: u16) {
        if let Some(port) = self.ports.get_mut(usize::from(port)) {
            port.passed_on = 0;
        }
    }

    /// Serves [`Role::Transmit`]: passes bytes to `sink`, which says how many of them it took. What it did not take stays in
    /// the queue for the next call. What is sent to a port that is not there is dropped. Returns whether to call the driver.
    /// `burst` is empty, and stays so.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn transmit(
        &mut self,
        port: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
        sink: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Result<bool, QueueError> {
        let mut serving = Serving::new(queue, burst);
        match self.ports.get_mut(usize::from(port)).filter(|port| port.exists()) {
            Some(port) => serving.pass_on(&mut port.passed_on, sink),
            None => {
                while serving.readable().is_some() {
                    serving.answer(&[]);
                }
            }
        }
        serving.end()
    }

    /// Serves [`Role::Receive`]: fills the driver's buffers by `source`, which says how many bytes it had; 0 is none now.
    /// It is not asked while the driver has the port closed. Returns whether to call the driver. `burst` is empty, and stays so.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn receive(
        &mut self,
        port: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
        source: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Result<bool, QueueError> {
        if !self.is_open_in_driver(port) {
            return Ok(false);
        }
        let mut serving = Serving::new(queue, burst);
        let mut bytes = [0; PIECE];
        while let Some(room) = serving.room() {
            let bytes = &mut bytes[..PIECE.min(room)];
            let filled = if bytes.is_empty() { 0 } else { source(bytes).min(bytes.len()) };
            if filled == 0 && !bytes.is_empty() {
                break;
            }
            serving.answer(&bytes[..filled]);
        }
        serving.end()
    }

    /// Serves [`Role::ControlReceive`]: tells the driver what it is to know, for as long as it has buffers. To be called when it
    /// has given some, and when there is something to tell: the driver said something, or a method of the device says so.
    /// Returns whether to call the driver. `burst` is empty, and stays so.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn control_receive(
        &mut self,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<bool, QueueError> {
        let mut serving = Serving::new(queue, burst);
        while let Some(room) = serving.room() {
            if room < CONTROL_LEN {
                // A buffer that has room for no message at all goes back empty.
                serving.answer(&[]);
            } else if self.next_message(room) {
                serving.answer(&self.message);
            } else {
                break;
            }
        }
        serving.end()
    }

    /// Serves [`Role::ControlTransmit`]: takes what the driver says, and passes on what there is to be known. There may be
    /// something to [tell](Self::control_receive) after. Returns whether to call the driver. `burst` is empty, and stays so.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn control_transmit(
        &mut self,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<bool, QueueError> {
        let mut serving = Serving::new(queue, burst);
        while let Some(message) = serving.readable() {
            match message.read_array::<CONTROL_LEN>().and_then(|message| self.hear(message)) {
                Some(event) => on_event(event),
                None => self.refused += 1,
            }
            serving.answer(&[]);
        }
        serving.end()
    }

    /// Writes the next message to be told, of at most `room` bytes; false if there is none. One that is longer is not told:
    /// its driver has no room for it.
    fn next_message(&mut self, room: usize) -> bool {
        if !self.is_ready {
            return false;
        }
        for (port, id) in self.ports.iter_mut().zip(0..) {
            while let Some(due) = port.due() {
                port.write_message(id, due, &mut self.message);
                port.told(due);
                if self.message.len() <= room {
                    return true;
                }
            }
        }
        false
    }

    /// What a message of the driver says, if it says something.
    fn hear(&mut self, message: [u8; CONTROL_LEN]) -> Option<Event> {
        let Control { id, event, value } = Control::read_from_bytes(&message).ok()?;
        let is_so = match value.get() {
            0 => false,
            1 => true,
            _ => return None,
        };
        if event.get() == DEVICE_READY {
            self.is_ready = is_so;
            return Some(Event::Ready(is_so));
        }
        let id = u16::try_from(id.get()).ok()?;
        let port = self.ports.get_mut(usize::from(id))?;
        match event.get() {
            PORT_READY => port.set_ready(is_so).then_some(Event::PortReady(id, is_so)),
            PORT_OPEN => port.set_opened(is_so).then_some(Event::PortOpen(id, is_so)),
            _ => None,
        }
    }

    fn is_multiport(&self) -> bool {
        self.negotiation.acked() & F_MULTIPORT != 0
    }
}

impl PortSettings {
    fn check(&self) -> Result<(), SettingsError> {
        let is_good = |name: &String| (1..=NAME_MAX).contains(&name.len()) && !name.contains('\0');
        if self.name.as_ref().is_none_or(is_good) { Ok(()) } else { Err(SettingsError::Name) }
    }
}

impl DeviceModel for ConsoleDevice {
    fn id(&self) -> u32 {
        DEVICE_ID
    }

    fn negotiation(&self) -> &Negotiation {
        &self.negotiation
    }

    fn negotiation_mut(&mut self) -> &mut Negotiation {
        &mut self.negotiation
    }

    fn reset(&mut self) {
        self.negotiation.reset();
        self.is_ready = false;
        self.ports.iter_mut().for_each(Port::forget);
    }

    fn max_queues(&self) -> u16 {
        if self.negotiation.offered() & F_MULTIPORT == 0 { 2 } else { 2 * (self.ports.len() as u16 + 1) }
    }

    fn config_len(&self) -> usize {
        size_of::<Config>()
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        let Size { cols, rows } = self.size.unwrap_or(Size { cols: 0, rows: 0 });
        let max_nr_ports = if self.max_queues() > 2 { self.ports.len() as u32 } else { 0 };
        let config = Config {
            cols: cols.into(),
            rows: rows.into(),
            max_nr_ports: max_nr_ports.into(),
            emerg_wr: 0.into(),
        };
        to.fill(0);
        let bytes = config.as_bytes();
        for (to, from) in to.iter_mut().zip(bytes.get(offset..).unwrap_or_default()) {
            *to = *from;
        }
    }

    /// `emerg_wr`, alone, whatever the status and the features (5.3.5.1): of what is written there, the lowest byte. Some
    /// front-ends write all of the configuration when the driver has written a part.
    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let byte = CONFIG_EMERG_WR.checked_sub(offset).and_then(|at| bytes.get(at));
        let Some(byte) = byte else { return false };
        if self.emergency.len() < EMERGENCY_MAX {
            self.emergency.push_back(*byte);
        }
        true
    }
}

#[cfg(test)]
mod tests;
