//! The console driver (5.3): text for people, and streams of bytes between programs of guest and host.
//!
//! ```text
//!   device ──PORT_ADD──► Added ──PORT_READY──► device ──CONSOLE_PORT, PORT_NAME, RESIZE, PORT_OPEN──► Event
//!   program ──set_open──► PORT_OPEN ──► device        read, write: the port's two queues
//! ```
//!
//! A device has one console, port 0, that is always there, or with `MULTIPORT` any number of ports that come and go. Whoever
//! drives it [polls](Console::poll) for what becomes of ports, reads and writes; nothing waits but what says so.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use ringway_driver::console::{Console, Event, Options};
//! # use ringway_driver::{Error, Platform, Transport};
//! # trait Shell { fn answer(&mut self, typed: &[u8]) -> Vec<u8>; fn resize(&mut self, cols: u16, rows: u16); }
//! # fn wait_for_interrupt() {}
//! /// A shell on the first console.
//! fn run<T: Transport>(transport: T, platform: Arc<dyn Platform>, shell: &mut dyn Shell) -> Result<(), Error> {
//!     let mut console = Console::new(transport, platform, &Options::default())?;
//!     console.write_all(0, b"Hello!\r\n")?;
//!     loop {
//!         while let Some(event) = console.poll()? {
//!             if let (Event::Resized(0), Some(size)) = (event, console.port(0).and_then(|port| port.size)) {
//!                 shell.resize(size.cols, size.rows);
//!             }
//!         }
//!         let mut typed = [0; 64];
//!         let n = console.read(0, &mut typed)?;
//!         let answer = shell.answer(&typed[..n]);
//!         console.write_all(0, &answer)?;
//!         // What came before arming comes without an interrupt.
//!         if !console.arm() {
//!             wait_for_interrupt();
//!             console.interrupt()?;
//!         }
//!     }
//! }
//! ```
//!
//! Before a device is set up, and when all else has failed, there is [`emergency_write`].
#![forbid(unsafe_code)]

mod control;
mod port;

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_spec::console::{
    CONFIG_COLS, CONFIG_EMERG_WR, CONFIG_MAX_NR_PORTS, CONFIG_ROWS, CONSOLE_PORT, Control, DEVICE_ID,
    DEVICE_READY, F_EMERG_WRITE, F_MULTIPORT, F_SIZE, PORT_ADD, PORT_NAME, PORT_OPEN, PORT_READY,
    PORT_REMOVE, RESIZE, Resize,
};
use zerocopy::FromBytes;

use crate::{Device, Error, Interrupt, Platform, Stopped, Transport, Wanted};
use control::{MESSAGES, Message, Messages};
use port::Port;

/// The most ports: of others the queues have no index.
const PORTS_MAX: u16 = 0x7ffe;

/// How a device shall be used.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The most ports: queues and buffers are made for so many, and the device is told that there is no room for others.
    pub max_ports: u16,
    /// Buffers of each port, for each direction.
    pub buffers: u16,
    /// Bytes of a buffer.
    pub buffer_len: u32,
    /// Features of any kind that are not to be accepted, as of the rings.
    pub without: u64,
    /// The interrupt for queues, where there are several (MSI-X).
    pub vector: Option<u16>,
    /// The interrupt for changes of the configuration, where there are several.
    pub config_vector: Option<u16>,
}

impl Default for Options {
    /// 4 ports, 8 buffers of 512 bytes each way, no interrupts of their own.
    fn default() -> Self {
        Self { max_ports: 4, buffers: 8, buffer_len: 512, without: 0, vector: None, config_vector: None }
    }
}

/// How large a console is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters of a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

/// What the device said of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortInfo {
    /// Somebody is at the other side.
    pub is_open: bool,
    /// It is for text, and people.
    pub is_console: bool,
    /// By which it can be found.
    pub name: Option<String>,
    /// Of a console, if it is known.
    pub size: Option<Size>,
}

/// What has become of a port, by its number. [`Console::port`] has the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// There is a new one.
    Added(u16),
    /// There is none any more. What was not read is gone.
    Removed(u16),
    /// It is a console.
    Console(u16),
    /// It has a name.
    Named(u16),
    /// Its console has a size, or another.
    Resized(u16),
    /// Somebody is at the other side.
    Opened(u16),
    /// Nobody is at the other side.
    Closed(u16),
}

/// A console device. Dropped, it is reset.
pub struct Console<T: Transport> {
    device: Device<T>,
    ports: Vec<Port<T::Notifier>>,
    /// With `MULTIPORT`.
    messages: Option<Messages<T::Notifier>>,
    /// The configuration may have another size than is known.
    has_changed: bool,
}

impl<T: Transport> Console<T> {
    /// Sets the device up.
    ///
    /// # Errors
    /// Those of [`Device::set_up`]; [`Error::BadConfig`] for a device of several ports that has none.
    pub fn new(transport: T, platform: Arc<dyn Platform>, options: &Options) -> Result<Self, Error> {
        let wanted = Wanted {
            id: DEVICE_ID,
            features: F_SIZE | F_MULTIPORT | F_EMERG_WRITE,
            required: 0,
            requires: &[],
            without: options.without,
        };
        let (device, (ports, messages)) = Device::set_up(transport, platform, &wanted, |device| {
            device.transport_mut().set_config_vector(options.config_vector)?;
            let (mut count, mut messages) = (1, None);
            if device.has(F_MULTIPORT) {
                count = match device.config(|config| config.u32(CONFIG_MAX_NR_PORTS))? {
                    0 => return Err(Error::BadConfig { what: "number of ports" }),
                    // There are not so many queues.
                    count => {
                        u16::try_from(count).unwrap_or(u16::MAX).min(options.max_ports).clamp(1, PORTS_MAX)
                    }
                };
                messages = Some(Messages::new(device, options.vector)?);
            }
            let ports: Result<Vec<_>, _> = (0..count).map(|id| Port::new(id, device, options)).collect();
            Ok((ports?, messages))
        })?;
        let mut console = Self { device, ports, messages, has_changed: true };
        if let Some(messages) = &mut console.messages {
            messages.begin();
            messages.say(0, DEVICE_READY, 1)?;
        } else {
            console.ports[0].begin()?;
            console.ports[0].info = Some(PortInfo { is_open: true, is_console: true, ..PortInfo::default() });
        }
        Ok(console)
    }

    /// What the device said of this port; `None` if there is none.
    pub fn port(&self, port: u16) -> Option<&PortInfo> {
        self.ports.get(usize::from(port))?.info.as_ref()
    }

    /// The next thing that has become of a port.
    ///
    /// # Errors
    /// [`Error::Device`] if the device breaks the rules of its queues.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        if core::mem::take(&mut self.has_changed)
            && let Some(event) = self.read_size()?
        {
            return Ok(Some(event));
        }
        for _ in 0..MESSAGES {
            // There is no message without a buffer for the answer to it.
            let Some(messages) = self.messages.as_mut() else { break };
            if !messages.can_say()? {
                break;
            }
            let Some(message) = messages.hear()? else { break };
            if let Some(event) = self.act(&message)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Reads what has come; returns how many bytes, 0 if nothing has.
    ///
    /// # Errors
    /// [`Error::NoPort`], [`Error::Device`].
    pub fn read(&mut self, port: u16, to: &mut [u8]) -> Result<usize, Error> {
        self.existing(port)?.read(to)
    }

    /// Writes, and does not wait; returns how many bytes the device has been given, 0 if it has yet to take those from before, or
    /// nobody is at the other side.
    ///
    /// # Errors
    /// [`Error::NoPort`], [`Error::Device`].
    pub fn write(&mut self, port: u16, bytes: &[u8]) -> Result<usize, Error> {
        let port = self.existing(port)?;
        let is_taken = port.info.as_ref().is_some_and(|info| info.is_open || info.is_console);
        if is_taken { port.write(bytes) } else { Ok(0) }
    }

    /// Writes all, and waits until the device has taken it, as long as the platform does.
    ///
    /// # Errors
    /// [`Error::TimedOut`], and those of [`write`](Self::write).
    pub fn write_all(&mut self, port: u16, mut bytes: &[u8]) -> Result<(), Error> {
        let mut round = 0;
        loop {
            let n = self.write(port, bytes)?;
            bytes = &bytes[n..];
            if bytes.is_empty() && self.existing(port)?.is_flushed()? {
                return Ok(());
            }
            round = if n > 0 { 0 } else { round + 1 };
            if !self.device.wait(round) {
                self.device.check()?;
                return Err(Error::TimedOut { what: "taking what was written" });
            }
        }
    }

    /// Tells the device whether a program has this port open.
    ///
    /// # Errors
    /// [`Error::NoPort`]; [`Error::NotNegotiated`] if there is one port, which always is; [`Error::Add`] if the device has yet to
    /// take what it was told before.
    pub fn set_open(&mut self, port: u16, is_open: bool) -> Result<(), Error> {
        self.existing(port)?;
        let Some(messages) = &mut self.messages else {
            return Err(Error::NotNegotiated { feature: F_MULTIPORT });
        };
        messages.say(port.into(), PORT_OPEN, is_open.into())
    }

    /// See [`emergency_write`].
    ///
    /// # Errors
    /// As there.
    pub fn emergency_write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        emergency_write(self.device.transport_mut(), bytes)
    }

    /// Asks for interrupts: for messages, for bytes to read, and for room where there is none to write. Returns whether there
    /// is such a thing already; only if not is there something to wait for.
    #[must_use = "what came before arming comes without an interrupt"]
    pub fn arm(&mut self) -> bool {
        let mut is_there = self.has_changed;
        if let Some(messages) = &mut self.messages {
            is_there |= messages.arm();
        }
        for port in self.ports.iter_mut().filter(|port| port.info.is_some()) {
            is_there |= port.arm();
        }
        is_there
    }

    /// See [`Device::interrupt`].
    ///
    /// # Errors
    /// [`Error::NeedsReset`].
    pub fn interrupt(&mut self) -> Result<Interrupt, Error> {
        let interrupt = self.device.interrupt()?;
        self.has_changed |= interrupt.contains(Interrupt::CONFIG);
        Ok(interrupt)
    }

    /// See [`Device::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(self) -> Result<Stopped<T>, Error> {
        self.device.stop()
    }

    fn existing(&mut self, id: u16) -> Result<&mut Port<T::Notifier>, Error> {
        let port = self.ports.get_mut(usize::from(id)).filter(|port| port.info.is_some());
        port.ok_or(Error::NoPort { port: id })
    }

    /// The size in the configuration: of port 0 (5.3.6).
    fn read_size(&mut self) -> Result<Option<Event>, Error> {
        if !self.device.has(F_SIZE) {
            return Ok(None);
        }
        let size = self
            .device
            .config(|config| Ok(Size { cols: config.u16(CONFIG_COLS)?, rows: config.u16(CONFIG_ROWS)? }))?;
        Ok(self.ports[0].info.as_mut().and_then(|info| info.resize(0, size)))
    }

    /// Does what a message of the device asks for. One that is about no port, or that no driver knows, is ignored.
    fn act(&mut self, message: &Message) -> Result<Option<Event>, Error> {
        let Message { control: Control { id, event, value }, .. } = message;
        let id = id.get();
        let Some(messages) = &mut self.messages else { return Ok(None) };
        let found = u16::try_from(id).ok().and_then(|id| Some((id, self.ports.get_mut(usize::from(id))?)));
        let Some((port_id, port)) = found else {
            if event.get() == PORT_ADD {
                messages.say(id, PORT_READY, 0)?;
            }
            return Ok(None);
        };
        let Some(info) = &mut port.info else {
            if event.get() != PORT_ADD {
                return Ok(None);
            }
            port.begin()?;
            messages.say(id, PORT_READY, 1)?;
            self.has_changed |= port_id == 0;
            return Ok(Some(Event::Added(port_id)));
        };
        match event.get() {
            // It knows that one already, and says so again.
            PORT_ADD => messages.say(id, PORT_READY, 1)?,
            PORT_REMOVE => {
                port.info = None;
                return Ok(Some(Event::Removed(port_id)));
            }
            CONSOLE_PORT => {
                messages.say(id, PORT_OPEN, 1)?;
                info.is_console = true;
                return Ok(Some(Event::Console(port_id)));
            }
            RESIZE => {
                let size = Resize::read_from_prefix(message.payload()).ok();
                let size = size.map(|(Resize { cols, rows }, _)| Size { cols: cols.get(), rows: rows.get() });
                return Ok(size.and_then(|size| info.resize(port_id, size)));
            }
            PORT_OPEN => {
                info.is_open = value.get() == 1;
                let event = if info.is_open { Event::Opened } else { Event::Closed };
                return Ok(Some(event(port_id)));
            }
            PORT_NAME => {
                // Some devices end it with a NUL.
                let name = message.payload().split(|byte| *byte == 0).next().unwrap_or_default();
                info.name = core::str::from_utf8(name).ok().filter(|name| !name.is_empty()).map(String::from);
                return Ok(info.name.is_some().then_some(Event::Named(port_id)));
            }
            _ => {}
        }
        Ok(None)
    }
}

impl PortInfo {
    fn resize(&mut self, port: u16, size: Size) -> Option<Event> {
        (self.size.replace(size) != Some(size)).then_some(Event::Resized(port))
    }
}

/// Shows bytes by a device that offers `EMERG_WRITE`, in whatever state it is (5.3.5): before it is set up, or when all else has
/// failed. It costs an access to the device's registers each, and needs no memory.
///
/// # Errors
/// [`Error::LacksFeatures`], and those of the transport.
pub fn emergency_write<T: Transport>(transport: &mut T, bytes: &[u8]) -> Result<(), Error> {
    if transport.offered()? & F_EMERG_WRITE == 0 {
        return Err(Error::LacksFeatures { missing: F_EMERG_WRITE });
    }
    for byte in bytes {
        transport.write_config(CONFIG_EMERG_WR, &u32::from(*byte).to_le_bytes())?;
    }
    Ok(())
}
