//! The console driver against a device that says whatever the test says.

mod common;

use std::sync::Arc;

use common::{Event as Done, Fake, FakeTransport, RINGS, TestPlatform};
use proptest::prelude::*;
use ringway_driver::console::{Console, Event, Options, Size, emergency_write};
use ringway_driver::{Error, Interrupt, Platform};
use ringway_queue::{Burst, DeviceQueue};
use ringway_spec::console::{
    CONFIG_EMERG_WR, CONSOLE_PORT, Control, DEVICE_ID, DEVICE_READY, F_EMERG_WRITE, F_MULTIPORT, F_SIZE,
    PORT_ADD, PORT_NAME, PORT_OPEN, PORT_READY, PORT_REMOVE, RESIZE,
};
use zerocopy::{FromBytes, IntoBytes};

/// The device's side: its queues, as they are looked at.
struct Host {
    fake: Fake,
    queues: Vec<DeviceQueue>,
    burst: Burst,
}

impl Host {
    /// Sends these bytes by queue `index`; whether there was a buffer.
    fn send(&mut self, index: usize, bytes: &[u8]) -> bool {
        let queue = &mut self.queues[index];
        let Some(chain) = queue.next(&mut self.burst).unwrap() else { return false };
        assert!(chain.readable().is_empty(), "a readable buffer in a receive queue");
        let written = chain.writable().write(bytes);
        queue.complete(chain, written as u32);
        let _ = queue.publish();
        true
    }

    fn say(&mut self, id: u32, event: u16, value: u16, rest: &[u8]) {
        let control = Control { id: id.into(), event: event.into(), value: value.into() };
        assert!(self.send(2, &[control.as_bytes(), rest].concat()), "no buffer for a message");
    }

    /// What has come by queue `index`, a chain at a time.
    fn receive(&mut self, index: usize) -> Option<Vec<u8>> {
        let queue = &mut self.queues[index];
        let chain = queue.next(&mut self.burst).unwrap()?;
        assert!(chain.writable().is_empty(), "a writable buffer in a transmit queue");
        let mut bytes = vec![0; chain.readable().len()];
        chain.readable().read(&mut bytes);
        queue.complete(chain, 0);
        let _ = queue.publish();
        Some(bytes)
    }

    /// What the driver has said: port, event, value.
    fn hear(&mut self) -> Vec<(u32, u16, u16)> {
        let mut heard = Vec::new();
        while let Some(bytes) = self.receive(3) {
            let Control { id, event, value } = Control::read_from_bytes(&bytes).unwrap();
            heard.push((id.get(), event.get(), value.get()));
        }
        heard
    }
}

fn config(cols: u16, rows: u16, ports: u32) -> Vec<u8> {
    [&cols.to_le_bytes()[..], &rows.to_le_bytes(), &ports.to_le_bytes(), &[0; 4]].concat()
}

const OPTIONS: Options =
    Options { max_ports: 2, buffers: 4, buffer_len: 8, without: 0, vector: None, config_vector: None };

fn set_up(features: u64, ports: u32) -> (Host, Console<FakeTransport>) {
    let platform = TestPlatform::new();
    let queues = if features & F_MULTIPORT == 0 { 2 } else { 2 * (ports as usize + 1) };
    let (fake, transport) = Fake::new(&platform, DEVICE_ID, features, queues);
    fake.state().config = config(80, 25, ports);
    let console = Console::new(transport, Arc::clone(&platform) as Arc<dyn Platform>, &OPTIONS).unwrap();
    let indices: Vec<_> = fake.state().queues.keys().copied().collect();
    let queues = indices.into_iter().map(|index| fake.device_queue(index)).collect();
    (Host { fake, queues, burst: Burst::default() }, console)
}

/// A device of two ports whose port 0 was added.
fn with_port(ring: u64) -> (Host, Console<FakeTransport>) {
    let (mut host, mut console) = set_up(ring | F_MULTIPORT, 2);
    host.say(0, PORT_ADD, 0, b"");
    assert_eq!(console.poll().unwrap(), Some(Event::Added(0)));
    assert_eq!(host.hear(), [(0, DEVICE_READY, 1), (0, PORT_READY, 1)]);
    (host, console)
}

/// [DRV-CONSOLE-op-01] [DRV-CONSOLE-op-02] Bytes go both ways, in buffers of the right kind: the host's side checks each. What
/// does not fit waits on either side.
#[test]
fn bytes_go_both_ways() {
    for ring in RINGS {
        let (mut host, mut console) = set_up(ring, 0);
        assert!(console.port(0).unwrap().is_console);
        assert_eq!(console.write(0, b"Hello, world").unwrap(), 12);
        let sent = |host: &mut Host| std::iter::from_fn(|| host.receive(1)).collect::<Vec<_>>().concat();
        assert_eq!(sent(&mut host), b"Hello, world");
        assert_eq!(console.write(0, &[b'x'; 100]).unwrap(), 32, "all buffers");
        assert_eq!(console.write(0, b"y").unwrap(), 0, "the device has taken none");
        assert_eq!(sent(&mut host), [b'x'; 32]);
        assert_eq!(console.write(0, b"y").unwrap(), 1);

        let mut read = [0; 10];
        assert_eq!(console.read(0, &mut read).unwrap(), 0);
        for text in [&b"one"[..], b"", b"two thre", b"four"] {
            assert!(host.send(0, text));
        }
        assert!(!host.send(0, b"five"), "the driver has not read");
        assert_eq!((console.read(0, &mut read).unwrap(), &read), (10, b"onetwo thr"));
        assert!(host.send(0, b"five"));
        assert_eq!((console.read(0, &mut read).unwrap(), &read[..9]), (9, &b"efourfive"[..]));
        assert!(matches!(console.read(1, &mut read), Err(Error::NoPort { port: 1 })));
        assert!(matches!(console.set_open(0, true), Err(Error::NotNegotiated { feature: F_MULTIPORT })));
    }
}

/// Who writes all waits until the device has taken it, and not for ever.
#[test]
fn writing_all_waits() {
    let (mut host, mut console) = set_up(0, 0);
    let error = console.write_all(0, &[b'x'; 33]);
    assert!(matches!(error, Err(Error::TimedOut { .. })), "{error:?}");
    while host.receive(1).is_some() {}
    let thread = std::thread::spawn(move || {
        let mut taken = 0;
        while taken < 200 {
            taken += host.receive(1).map_or(0, |bytes| bytes.len());
            std::thread::yield_now();
        }
        taken
    });
    console.write_all(0, &[b'x'; 200]).unwrap();
    assert_eq!(thread.join().unwrap(), 200);
}

/// [DRV-CONSOLE-multiport-device-operation-01] The driver says that it is ready, and that each port is;
/// [DRV-CONSOLE-multiport-device-operation-02] it opens a port that it is told is a console.
#[test]
fn ports_are_answered_step_by_step() {
    for ring in RINGS {
        let (mut host, mut console) = with_port(ring);
        host.say(0, CONSOLE_PORT, 1, b"");
        assert_eq!(console.poll().unwrap(), Some(Event::Console(0)));
        assert_eq!(host.hear(), [(0, PORT_OPEN, 1)]);
        host.say(0, RESIZE, 0, &[132, 0, 50, 0]);
        host.say(0, RESIZE, 0, &[132, 0, 50, 0]);
        assert_eq!(console.poll().unwrap(), Some(Event::Resized(0)));
        assert_eq!(console.port(0).unwrap().size, Some(Size { cols: 132, rows: 50 }));
        assert_eq!(console.poll().unwrap(), None, "the same size");

        host.say(1, PORT_ADD, 0, b"");
        host.say(1, PORT_NAME, 1, b"org.example.agent\0");
        assert_eq!(console.poll().unwrap(), Some(Event::Added(1)));
        assert_eq!(console.poll().unwrap(), Some(Event::Named(1)));
        assert_eq!(console.port(1).unwrap().name.as_deref(), Some("org.example.agent"));
        assert_eq!(console.write(1, b"?").unwrap(), 0, "nobody is there");
        host.say(1, PORT_OPEN, 1, b"");
        assert_eq!(console.poll().unwrap(), Some(Event::Opened(1)));
        assert_eq!(console.write(1, b"?").unwrap(), 1);
        assert_eq!(host.receive(5).unwrap(), b"?");
        console.set_open(1, true).unwrap();
        console.set_open(1, false).unwrap();
        assert_eq!(host.hear(), [(1, PORT_READY, 1), (1, PORT_OPEN, 1), (1, PORT_OPEN, 0)]);

        assert!(host.send(4, b"unread"));
        host.say(1, PORT_OPEN, 0, b"");
        host.say(1, PORT_REMOVE, 0, b"");
        assert_eq!(console.poll().unwrap(), Some(Event::Closed(1)));
        assert_eq!(console.poll().unwrap(), Some(Event::Removed(1)));
        assert!(matches!(console.write(1, b"?"), Err(Error::NoPort { port: 1 })));
        host.say(1, PORT_ADD, 0, b"");
        assert_eq!(console.poll().unwrap(), Some(Event::Added(1)));
        assert_eq!(console.port(1).unwrap().name, None);
        assert_eq!(console.read(1, &mut [0; 9]).unwrap(), 0, "what the port before it received");
    }
}

/// What a device says of ports that there are not, or that there is no room for, and what is no message, changes nothing.
#[test]
fn nonsense_is_ignored() {
    let (mut host, mut console) = with_port(0);
    assert!(host.send(2, &[0, 0, 0, 0, 1, 0, 0]), "too short");
    host.say(0, 99, 1, b"");
    host.say(0, RESIZE, 0, &[1, 0, 1]);
    host.say(0, PORT_NAME, 0, &[0xff, 0xfe]);
    host.say(1, PORT_OPEN, 1, b"");
    host.say(2, PORT_REMOVE, 0, b"");
    host.say(2, PORT_ADD, 0, b"");
    host.say(u32::MAX, PORT_ADD, 0, b"");
    host.say(0, PORT_ADD, 0, b"");
    assert_eq!(console.poll().unwrap(), None);
    assert_eq!(host.hear(), [(2, PORT_READY, 0), (u32::MAX, PORT_READY, 0), (0, PORT_READY, 1)]);
    assert_eq!(console.port(0), Some(&ringway_driver::console::PortInfo::default()));
}

/// A device that takes no messages is sent no more of them than there are buffers, and none is lost.
#[test]
fn a_device_that_does_not_listen_is_waited_for() {
    let (mut host, mut console) = with_port(0);
    for _ in 0..16 {
        console.set_open(0, true).unwrap();
    }
    assert!(matches!(console.set_open(0, true), Err(Error::Add(_))));
    host.say(1, PORT_ADD, 0, b"");
    assert_eq!(console.poll().unwrap(), None, "there is no buffer for the answer");
    assert_eq!(host.hear().len(), 16);
    assert_eq!(console.poll().unwrap(), Some(Event::Added(1)));
}

/// The size in the configuration is port 0's, from the start and when it changes.
#[test]
fn the_size_follows_the_configuration() {
    let (host, mut console) = set_up(F_SIZE, 0);
    assert_eq!(console.poll().unwrap(), Some(Event::Resized(0)));
    assert_eq!(console.port(0).unwrap().size, Some(Size { cols: 80, rows: 25 }));
    host.fake.state().config = config(100, 30, 0);
    assert_eq!(console.poll().unwrap(), None, "nobody said so");
    host.fake.state().interrupt = Interrupt::CONFIG;
    console.interrupt().unwrap();
    assert_eq!(console.poll().unwrap(), Some(Event::Resized(0)));
    assert_eq!(console.port(0).unwrap().size, Some(Size { cols: 100, rows: 30 }));
}

/// Before anything is set up, a byte is one access.
#[test]
fn emergencies_need_no_set_up() {
    let (fake, mut transport) = Fake::new(&TestPlatform::new(), DEVICE_ID, F_EMERG_WRITE, 0);
    fake.state().config = config(0, 0, 0);
    emergency_write(&mut transport, b"no").unwrap();
    let writes = [b'n', b'o'].map(|byte| Done::WriteConfig(CONFIG_EMERG_WR, vec![byte, 0, 0, 0]));
    assert_eq!(fake.take_log()[1..], writes);
    fake.state().offered = 0;
    assert!(matches!(emergency_write(&mut transport, b"no"), Err(Error::LacksFeatures { .. })));
    assert_eq!(fake.take_log(), [Done::Offered]);
}

/// A device of several ports has one at least; of more than there is room for, there are as many as there is.
#[test]
fn the_number_of_ports_is_checked() {
    let platform = TestPlatform::new();
    for (ports, due) in [(0, Err(())), (1, Ok(4)), (2, Ok(6)), (u32::MAX, Ok(6))] {
        let (fake, transport) = Fake::new(&platform, DEVICE_ID, F_MULTIPORT, 6);
        fake.state().config = config(0, 0, ports);
        let console = Console::new(transport, Arc::clone(&platform) as Arc<dyn Platform>, &OPTIONS);
        let queues = fake.state().queues.len();
        assert_eq!(console.map(|_| queues).map_err(|_| ()), due, "{ports} ports");
    }
}

proptest! {
    /// Whatever a device sends by any of its queues, the driver goes on.
    #[test]
    fn any_bytes_are_survived(sends in prop::collection::vec(
        (0..6_usize, prop::collection::vec(prop_oneof![3 => 0..8_u8, 1 => any::<u8>()], 0..20)), 0..80
    )) {
        let (mut host, mut console) = set_up(F_MULTIPORT, 2);
        for (index, bytes) in sends {
            if matches!(index, 0 | 2 | 4) {
                host.send(index, &bytes);
            } else {
                while host.receive(index).is_some() {}
            }
            while console.poll().unwrap().is_some() {}
            for port in 0..2 {
                if console.port(port).is_some() {
                    console.read(port, &mut [0; 5]).unwrap();
                    console.write(port, &bytes).unwrap();
                }
            }
        }
    }
}
