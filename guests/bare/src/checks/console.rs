//! A console and ports, at whose other sides the host connects, and sends back what it is sent.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use alloc::{format, string::String};

use ringway_driver::console::{Console, Event, Options, PortInfo, emergency_write};
use ringway_driver::{Error, Transport};
use ringway_spec::console::{DEVICE_ID, F_MULTIPORT};

use super::{LIMIT, Random, Tally, Variant, ask, device};
use crate::bus::{Interrupts, Slot};
use crate::failure::{Result, ensure};
use crate::interrupts::wait_until;
use crate::memory::Dma;

/// The console's number, which also is its name on the host.
const CONSOLE: u16 = 0;
const PORT: u16 = 1;
/// A port that the host adds and removes.
const LATE: u16 = 2;

pub(super) fn run<S: Slot>(tally: &mut Tally, slots: &[S], variant: Variant) {
    tally.check("ports are told", || ports(device(slots, DEVICE_ID)?, variant));
    tally.check("a port opens, echoes and closes", || port(device(slots, DEVICE_ID)?, variant));
    tally.check("a console echoes", || console(device(slots, DEVICE_ID)?, variant, 0));
    tally.check("a console alone echoes", || console(device(slots, DEVICE_ID)?, variant, F_MULTIPORT));
    tally.check("a byte in an emergency", || emergency(device(slots, DEVICE_ID)?, variant));
    tally.check("a port comes and goes", || late(device(slots, DEVICE_ID)?, variant));
}

struct Live<T: Transport> {
    console: Console<T>,
    interrupts: Interrupts,
}

fn open<S: Slot>(slot: &S, variant: Variant, without: u64) -> Result<Live<S::Transport>> {
    let interrupts = slot.interrupts();
    let options = Options {
        without: variant.without | without,
        vector: interrupts.queues.entry,
        config_vector: interrupts.config.entry,
        ..Options::default()
    };
    Ok(Live { console: Console::new(slot.open()?, Arc::new(Dma), &options)?, interrupts })
}

impl<T: Transport> Live<T> {
    /// Waits until a port is as it should be.
    fn wait_for(&mut self, port: u16, what: &str, is_so: impl Fn(Option<&PortInfo>) -> bool) -> Result<()> {
        let mut events: Vec<Event> = Vec::new();
        let mut poll = || -> core::result::Result<bool, Error> {
            while let Some(event) = self.console.poll()? {
                events.push(event);
            }
            // What came before is seen at the timer's next interrupt.
            let _ = self.console.arm();
            Ok(is_so(self.console.port(port)))
        };
        let mut is_there = Ok(false);
        wait_until(LIMIT, || {
            is_there = poll();
            !matches!(is_there, Ok(false))
        });
        let is_there = is_there?;
        ensure!(is_there, "{what}: port {port} is {:?} after {events:?}", self.console.port(port));
        Ok(())
    }

    /// Has the host connect to a port, and waits for its greeting.
    fn connect(&mut self, port: u16) -> Result<()> {
        ask(&format!("connect port{port}"));
        self.expect(port, b"hello")
    }

    /// Reads just these bytes.
    fn expect(&mut self, port: u16, bytes: &[u8]) -> Result<()> {
        let mut found: Vec<u8> = Vec::new();
        let mut part = [0; 8];
        let mut read = Ok(0);
        wait_until(LIMIT, || {
            read = self.console.read(port, &mut part);
            found.extend(&part[..*read.as_ref().unwrap_or(&0)]);
            let _ = self.console.arm();
            read.is_err() || found.len() >= bytes.len()
        });
        read?;
        ensure!(found == bytes, "port {port} has {found:x?}, not {bytes:x?}");
        Ok(())
    }

    /// Sends bytes to a port, of which the host sends back as many: they come as they went.
    fn echo(&mut self, port: u16, len: usize) -> Result<()> {
        ask(&format!("echo port{port} {len}"));
        let mut random = Random::new(len as u64);
        let bytes: Vec<_> = (0..len).map(|_| random.below(256) as u8).collect();
        let mut found: Vec<u8> = Vec::new();
        let mut sent = 0;
        let mut step = || -> core::result::Result<bool, Error> {
            let mut part = vec![0; 700];
            loop {
                let written = self.console.write(port, &bytes[sent..])?;
                sent += written;
                let read = self.console.read(port, &mut part)?;
                found.extend(&part[..read]);
                if written + read == 0 && (found.len() >= len || !self.console.arm()) {
                    return Ok(found.len() >= len);
                }
            }
        };
        let mut is_done = Ok(false);
        wait_until(LIMIT, || {
            is_done = step();
            !matches!(is_done, Ok(false))
        });
        is_done?;
        ensure!(found.len() == len, "{} bytes of {len} came back, {sent} were sent", found.len());
        ensure!(found == bytes, "other bytes came back than were sent");
        Ok(())
    }
}

fn ports<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut live = open(slot, variant, 0)?;
    live.wait_for(CONSOLE, "a console", |info| info.is_some_and(|info| info.is_console))?;
    let name = Some(String::from("ringway.port"));
    live.wait_for(PORT, "a name", |info| info.is_some_and(|info| info.name == name))?;
    ensure!(
        live.console.port(PORT).is_some_and(|info| !info.is_console && !info.is_open),
        "open, or a console"
    );
    ensure!(live.console.port(LATE).is_none(), "there is a third port");
    Ok(())
}

fn port<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut live = open(slot, variant, 0)?;
    live.wait_for(PORT, "a port", |info| info.is_some())?;
    live.console.set_open(PORT, true)?;
    let seen = live.interrupts.queues.seen();
    let _ = live.console.arm();
    ask("connect port1");
    ensure!(live.interrupts.queues.wait(seen, LIMIT), "no interrupt tells of the connection");
    live.console.interrupt()?;
    live.wait_for(PORT, "the host's side is open", |info| info.is_some_and(|info| info.is_open))?;
    live.expect(PORT, b"hello")?;
    for len in [1, 512, 5000, 40_000] {
        live.echo(PORT, len)?;
    }
    ask("disconnect port1");
    live.wait_for(PORT, "the host's side is closed", |info| info.is_some_and(|info| !info.is_open))?;
    ensure!(live.console.write(PORT, b"nobody")? == 0, "bytes were written to nobody");
    Ok(())
}

fn console<S: Slot>(slot: &S, variant: Variant, without: u64) -> Result<()> {
    let mut live = open(slot, variant, without)?;
    live.wait_for(CONSOLE, "a console", |info| info.is_some_and(|info| info.is_console))?;
    live.connect(CONSOLE)?;
    live.echo(CONSOLE, 3000)?;
    ask("disconnect port0");
    Ok(())
}

/// A byte that goes out before the device is set up.
fn emergency<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    open(slot, variant, F_MULTIPORT)?.connect(CONSOLE)?;
    ask("echo port0 2");
    emergency_write(&mut slot.open()?, b"!?")?;
    let mut live = open(slot, variant, F_MULTIPORT)?;
    live.expect(CONSOLE, b"!?")?;
    ask("disconnect port0");
    Ok(())
}

fn late<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut live = open(slot, variant, 0)?;
    live.wait_for(PORT, "a port", |info| info.is_some())?;
    for _ in 0..2 {
        ask("plug port2");
        let name = Some(String::from("ringway.late"));
        live.wait_for(LATE, "a name", |info| info.is_some_and(|info| info.name == name))?;
        ask("unplug port2");
        live.wait_for(LATE, "its end", |info| info.is_none())?;
    }
    Ok(())
}
