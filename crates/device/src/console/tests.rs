use alloc::vec;

use proptest::prelude::*;
use ringway_spec::console::{CONSOLE_PORT, PORT_ADD, PORT_NAME, PORT_REMOVE, RESIZE};

use super::*;
use crate::loopback::Loopback;

/// A driver's or a device's message: port, event, value, and what follows.
type Message = (u32, u16, u16, Vec<u8>);

const SIZE: Size = Size { cols: 80, rows: 25 };

fn console() -> PortSettings {
    PortSettings { name: None, is_console: true }
}

fn named(name: &str) -> PortSettings {
    PortSettings { name: Some(name.into()), is_console: false }
}

fn settings(ports: Vec<PortSettings>, max_ports: u16) -> Settings {
    Settings { ports, max_ports, size: Some(SIZE), iommu: false }
}

/// A device whose driver accepted everything.
fn device(ports: Vec<PortSettings>, max_ports: u16) -> ConsoleDevice {
    let mut device = ConsoleDevice::new(settings(ports, max_ports)).unwrap();
    device.negotiation.ack(device.negotiation.offered()).unwrap();
    device
}

fn control(id: u32, event: u16, value: u16) -> [u8; CONTROL_LEN] {
    let mut bytes = [0; CONTROL_LEN];
    bytes.copy_from_slice(Control { id: id.into(), event: event.into(), value: value.into() }.as_bytes());
    bytes
}

/// The driver says this; what the device makes of it.
fn say(device: &mut ConsoleDevice, pair: &mut Loopback, message: &[u8]) -> Vec<Event> {
    pair.add(&[message], &[]);
    let mut events = Vec::new();
    let Loopback { device: queue, burst, .. } = pair;
    let _ = device.control_transmit(queue, burst, &mut |event| events.push(event)).unwrap();
    assert_eq!(pair.used(), Some(vec![]));
    events
}

/// What the device has to say to a driver with buffers of so many bytes.
fn listen(device: &mut ConsoleDevice, pair: &mut Loopback, rooms: &[u32]) -> Vec<Message> {
    for &room in rooms {
        pair.add(&[], &[room]);
    }
    let _ = device.control_receive(&mut pair.device, &mut pair.burst).unwrap();
    let mut messages = Vec::new();
    while let Some(bytes) = pair.used() {
        if let Ok((control, rest)) = Control::read_from_prefix(&bytes) {
            let Control { id, event, value } = control;
            messages.push((id.get(), event.get(), value.get(), rest.to_vec()));
        }
    }
    messages
}

/// [DEV-CONSOLE-init-01] [DEV-CONSOLE-init-02] A byte written to `emerg_wr` is taken before anything was negotiated, and
/// after a reset; whoever serves the device gets it.
#[test]
fn emergency_bytes_are_taken_at_any_time() {
    let mut device = ConsoleDevice::new(settings(vec![console()], 1)).unwrap();
    assert!(device.write_config(CONFIG_EMERG_WR, &0x1234_5641_u32.to_le_bytes()));
    device.reset();
    assert!(device.write_config(CONFIG_EMERG_WR, b"!"));
    assert!(!device.write_config(CONFIG_EMERG_WR + 1, b"?"), "only the lowest byte is shown");
    assert!(!device.write_config(0, &[1, 0]), "the size is not the driver's");
    assert!(device.write_config(0, &[80, 0, 25, 0, 0, 0, 0, 0, b'?', 0, 0, 0]), "all of the configuration");
    assert_eq!(device.emergency_bytes().collect::<Vec<_>>(), b"A!?");
    for _ in 0..10_000 {
        assert!(device.write_config(CONFIG_EMERG_WR, b"x"));
    }
    assert_eq!(device.emergency_bytes().count(), EMERGENCY_MAX, "bounded, whatever a driver writes");
}

#[test]
fn queues_and_configuration_are_those_of_the_features() {
    let mut one = ConsoleDevice::new(settings(vec![console()], 1)).unwrap();
    assert_eq!((one.max_queues(), one.negotiation.offered() & F_MULTIPORT), (2, 0));
    one.negotiation.ack(one.negotiation.offered()).unwrap();
    assert_eq!((one.role(0), one.role(1)), (Some(Role::Receive(0)), Some(Role::Transmit(0))));
    assert_eq!(one.role(2), None);

    let mut three = ConsoleDevice::new(settings(vec![console()], 3)).unwrap();
    assert_eq!((three.max_queues(), three.role(2)), (8, None), "MULTIPORT is not negotiated yet");
    three.negotiation.ack(three.negotiation.offered()).unwrap();
    let roles: Vec<_> = (0..9).map_while(|index| three.role(index)).collect();
    let due = [
        Role::Receive(0),
        Role::Transmit(0),
        Role::ControlReceive,
        Role::ControlTransmit,
        Role::Receive(1),
        Role::Transmit(1),
        Role::Receive(2),
        Role::Transmit(2),
    ];
    assert_eq!(roles, due);
    let mut config = [0xff; 14];
    three.read_config(0, &mut config);
    assert_eq!(config, [80, 0, 25, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn impossible_settings_are_refused() {
    let refused = |ports, max| ConsoleDevice::new(settings(ports, max)).err();
    assert_eq!(refused(vec![], 1), Some(SettingsError::Ports { ports: 0, max: 1 }));
    assert_eq!(refused(vec![console(), console()], 1), Some(SettingsError::Ports { ports: 2, max: 1 }));
    assert_eq!(refused(vec![console()], 512), Some(SettingsError::Ports { ports: 1, max: 512 }));
    for name in ["", "a\0b", &"x".repeat(256)] {
        assert_eq!(refused(vec![named(name)], 1), Some(SettingsError::Name));
    }
    let mut device = device(vec![console()], 2);
    assert_eq!(device.add_port(0, named("a")), Err(SettingsError::NotFree(0)));
    assert_eq!(device.add_port(2, named("a")), Err(SettingsError::NotFree(2)));
}

/// The whole conversation about a console and a named port: what is told, when, and that it is told once.
#[test]
fn ports_are_announced_step_by_step() {
    for (mut to, mut from) in Loopback::formats().zip(Loopback::formats()) {
        let mut device = device(vec![console(), named("agent")], 3);
        let rooms = [64; 8];
        assert_eq!(listen(&mut device, &mut from, &rooms), [], "the driver is not ready");
        assert_eq!(say(&mut device, &mut to, &control(0, DEVICE_READY, 1)), [Event::Ready(true)]);
        let added = [(0, PORT_ADD, 0, vec![]), (1, PORT_ADD, 0, vec![])];
        assert_eq!(listen(&mut device, &mut from, &[]), added, "in the buffers from before");

        assert_eq!(say(&mut device, &mut to, &control(0, PORT_READY, 1)), [Event::PortReady(0, true)]);
        let size = vec![80, 0, 25, 0];
        let told = [(0, CONSOLE_PORT, 1, vec![]), (0, RESIZE, 0, size), (0, PORT_OPEN, 1, vec![])];
        assert_eq!(listen(&mut device, &mut from, &[]), told);
        assert!(!device.is_open_in_driver(0));
        assert_eq!(say(&mut device, &mut to, &control(0, PORT_OPEN, 1)), [Event::PortOpen(0, true)]);
        assert!(device.is_open_in_driver(0));

        device.set_open(1, true);
        assert_eq!(listen(&mut device, &mut from, &rooms), [], "port 1 is not ready");
        assert_eq!(say(&mut device, &mut to, &control(1, PORT_READY, 1)), [Event::PortReady(1, true)]);
        device.set_open(1, false);
        device.set_open(1, true);
        let told = [(1, PORT_NAME, 1, b"agent".to_vec()), (1, PORT_OPEN, 1, vec![])];
        assert_eq!(listen(&mut device, &mut from, &[]), told);

        device.remove_port(1);
        device.add_port(1, named("other")).unwrap();
        device.add_port(2, named("third")).unwrap();
        let told = [(1, PORT_REMOVE, 0, vec![]), (1, PORT_ADD, 0, vec![]), (2, PORT_ADD, 0, vec![])];
        assert_eq!(listen(&mut device, &mut from, &rooms), told);
        assert!(!device.resize(1, SIZE), "not in the configuration");
        assert!(device.resize(0, Size { cols: 132, rows: 50 }));
        assert!(!device.resize(0, Size { cols: 132, rows: 50 }), "no change");
        assert_eq!(listen(&mut device, &mut from, &[]), [(0, RESIZE, 0, vec![132, 0, 50, 0])]);
        assert_eq!(device.refused(), 0);
    }
}

/// A driver's messages about nothing, and such as are none, change nothing and are counted.
#[test]
fn messages_about_nothing_are_refused() {
    for (mut to, mut from) in Loopback::formats().zip(Loopback::formats()) {
        let mut device = device(vec![console()], 2);
        let bad = [
            control(0, PORT_READY, 1).to_vec(),
            control(1, PORT_OPEN, 1).to_vec(),
            control(2, PORT_READY, 1).to_vec(),
            control(0x1_0000, PORT_READY, 1).to_vec(),
            control(0, PORT_ADD, 1).to_vec(),
            control(0, 99, 0).to_vec(),
            control(0, DEVICE_READY, 2).to_vec(),
            control(0, DEVICE_READY, 1)[..7].to_vec(),
        ];
        for message in &bad {
            assert_eq!(say(&mut device, &mut to, message), []);
        }
        assert_eq!(device.refused(), bad.len() as u64);
        assert_eq!(listen(&mut device, &mut from, &[64]), []);
        say(&mut device, &mut to, &control(0, DEVICE_READY, 1));
        assert_eq!(listen(&mut device, &mut from, &[7, 64]).len(), 1, "ADD, in the second buffer");
        assert_eq!(say(&mut device, &mut to, &control(0, PORT_OPEN, 1)), [], "it never was ready");
        assert!(!device.is_open_in_driver(0));
    }
}

/// What a sink does not take stays in the ring, and nothing is lost or comes twice, whatever the pieces.
#[test]
fn a_slow_sink_holds_the_driver_back() {
    for mut pair in Loopback::formats() {
        let mut device = device(vec![console()], 1);
        pair.add(&[b"Hello", b", "], &[]);
        pair.add(&[b"world"], &[4]);
        let mut heard = Vec::new();
        for room in [3, 0, 4, 1, 2] {
            let mut left = room;
            let mut sink = |bytes: &[u8]| {
                let n = left.min(bytes.len());
                heard.extend_from_slice(&bytes[..n]);
                left -= n;
                n
            };
            let _ = device.transmit(0, &mut pair.device, &mut pair.burst, &mut sink).unwrap();
        }
        assert_eq!(heard, b"Hello, wor");
        assert_eq!((pair.used(), pair.used()), (Some(vec![]), None));
        let mut sink = |bytes: &[u8]| {
            heard.extend_from_slice(bytes);
            bytes.len() + 1
        };
        let _ = device.transmit(0, &mut pair.device, &mut pair.burst, &mut sink).unwrap();
        assert_eq!(heard, b"Hello, world");
        assert_eq!(pair.used(), Some(vec![]), "and nothing written");
    }
}

/// Much text in one chain is passed on whole, over several calls: each does a bounded amount of work.
#[test]
fn a_call_is_bounded() {
    for mut pair in Loopback::formats() {
        let mut device = device(vec![console()], 1);
        let text = [&[b'x'; 4096][..]; 48];
        pair.add(&text, &[]);
        let mut heard = 0;
        let mut sink = |bytes: &[u8]| {
            heard += bytes.len();
            bytes.len()
        };
        let _ = device.transmit(0, &mut pair.device, &mut pair.burst, &mut sink).unwrap();
        assert_eq!(pair.used(), None);
        let _ = device.transmit(0, &mut pair.device, &mut pair.burst, &mut sink).unwrap();
        assert_eq!((heard, pair.used()), (48 * 4096, Some(vec![])));
    }
}

/// What a driver sends to a port that was taken away is dropped; it is not left without its buffers.
#[test]
fn a_port_that_is_gone_drops_what_it_is_sent() {
    for mut pair in Loopback::formats() {
        let mut device = device(vec![console()], 2);
        pair.add(&[b"lost"], &[]);
        let mut sink = |_: &[u8]| panic!("a port that is not there has no sink");
        let _ = device.transmit(1, &mut pair.device, &mut pair.burst, &mut sink).unwrap();
        assert_eq!(pair.used(), Some(vec![]));
    }
}

/// A driver gets what the source has, and nothing before it has opened the port.
#[test]
fn a_closed_port_receives_nothing() {
    for (mut pair, (mut to, mut from)) in
        Loopback::formats().zip(Loopback::formats().zip(Loopback::formats()))
    {
        let mut device = device(vec![console()], 2);
        pair.add(&[], &[4]);
        pair.add(&[b"?"], &[]);
        pair.add(&[], &[4, 4]);
        let mut text = b"typed".to_vec();
        let mut source = |to: &mut [u8]| {
            let n = text.len().min(to.len());
            to[..n].copy_from_slice(&text[..n]);
            text.drain(..n);
            n
        };
        let _ = device.receive(0, &mut pair.device, &mut pair.burst, &mut source).unwrap();
        assert_eq!(pair.used(), None);
        say(&mut device, &mut to, &control(0, DEVICE_READY, 1));
        listen(&mut device, &mut from, &[64; 4]);
        say(&mut device, &mut to, &control(0, PORT_READY, 1));
        say(&mut device, &mut to, &control(0, PORT_OPEN, 1));
        let _ = device.receive(0, &mut pair.device, &mut pair.burst, &mut source).unwrap();
        assert_eq!(pair.used(), Some(b"type".to_vec()));
        assert_eq!(pair.used(), Some(vec![]), "a chain without room goes back");
        assert_eq!(pair.used(), Some(b"d".to_vec()));
    }
}

/// After a reset the driver knows nothing, and is told all again.
#[test]
fn a_reset_begins_anew() {
    let mut device = device(vec![console()], 2);
    let (mut to, mut from) = (Loopback::new(0), Loopback::new(0));
    for _ in 0..2 {
        say(&mut device, &mut to, &control(0, DEVICE_READY, 1));
        assert_eq!(listen(&mut device, &mut from, &[64; 2]), [(0, PORT_ADD, 0, vec![])]);
        device.reset();
        device.negotiation.ack(device.negotiation.offered()).unwrap();
        from = Loopback::new(0);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Say(u32, u16, u16),
    Listen(Vec<u32>),
    Add(u16),
    Remove(u16),
    Open(u16, bool),
    Resize(u16, u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = 0..5_u16;
    let step = prop_oneof![
        4 => (0..6_u32, 0..9_u16, 0..3_u16).prop_map(|(id, event, value)| Step::Say(id, event, value)),
        4 => prop::collection::vec(prop_oneof![0..20_u32, Just(64)], 0..6).prop_map(Step::Listen),
        1 => port.clone().prop_map(Step::Add),
        1 => port.clone().prop_map(Step::Remove),
        1 => (port.clone(), any::<bool>()).prop_map(|(port, is_open)| Step::Open(port, is_open)),
        1 => (port, any::<u16>()).prop_map(|(port, cols)| Step::Resize(port, cols)),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// [DEV-CONSOLE-multiport-device-operation-01] [DEV-CONSOLE-multiport-device-operation-02] Whatever a driver and an
    /// operator do: a port is added only while it does not exist, removed only while it does, and named in no other message
    /// while it does not.
    #[test]
    fn ports_are_added_and_removed_in_turn(steps in steps()) {
        let mut device = device(vec![console(), named("a")], 4);
        let (mut to, mut from) = (Loopback::new(0), Loopback::new(0));
        let mut exists = [false; 4];
        let mut given = 0;
        for step in steps {
            match step {
                Step::Say(id, event, value) => {
                    say(&mut device, &mut to, &control(id, event, value));
                }
                Step::Listen(mut rooms) => {
                    // The ring has room for 64.
                    rooms.truncate(60 - given);
                    given += rooms.len();
                    let before = from.driver.in_flight();
                    let messages = listen(&mut device, &mut from, &rooms);
                    given -= usize::from(before) + rooms.len() - usize::from(from.driver.in_flight());
                    for (id, event, ..) in messages {
                        prop_assert!(id < 4, "port {id}");
                        let exists = &mut exists[id as usize];
                        prop_assert_eq!(*exists, event != PORT_ADD, "port {}, event {}", id, event);
                        *exists = event != PORT_REMOVE;
                    }
                }
                Step::Add(port) => {
                    let _ = device.add_port(port, named("b"));
                }
                Step::Remove(port) => device.remove_port(port),
                Step::Open(port, is_open) => device.set_open(port, is_open),
                Step::Resize(port, cols) => {
                    device.resize(port, Size { cols, rows: 1 });
                }
            }
        }
    }
}
