//! Ringway's own front-end with `ringway`: drivers in user space, in both formats, that stop, go on and come back.

use std::time::{Duration, Instant};

use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::Segment;
use ringway_spec::feature::{ACCESS_PLATFORM, IN_ORDER, RING_EVENT_IDX, RING_PACKED, VERSION_1};
use ringway_spec::net::{F_CTRL_VQ, F_GUEST_ANNOUNCE, F_MAC, F_MQ, F_STATUS, S_ANNOUNCE, S_LINK_UP};
use ringway_testkit::driver::NetDriver;
use ringway_testkit::server::Server;
use ringway_vhost::frontend::{
    Connection, Frontend, FrontendError, Memory, PROTOCOL_FEATURES, Pages, Vring, VringConfig,
};
use ringway_vhost::message::protocol_feature as pf;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");
const LIMIT: Duration = Duration::from_secs(10);
/// Long enough for a frame that must not come.
const MOMENT: Duration = Duration::from_millis(50);

fn switch() -> Server {
    Server::switch(PROGRAM.as_ref(), &["a", "b"], &[]).expect("ringway runs")
}

fn connect(server: &Server, port: &str) -> Connection {
    Connection::connect(server.socket(port)).expect("a connection")
}

/// A driver at a port, that the switch knows by the frame it sent.
fn driver(server: &Server, port: &str, features: u64) -> NetDriver {
    NetDriver::start(connect(server, port), features).expect("a driver")
}

/// A broadcast frame that says its number.
fn frame(number: u32) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5]].concat();
    frame.extend(number.to_le_bytes());
    frame.resize(60 + number as usize % 1000, number as u8);
    frame
}

/// Sends frames one way, a few ahead of those that arrive.
fn exchange(from: &mut NetDriver, to: &mut NetDriver, numbers: std::ops::Range<u32>) {
    let mut sent = numbers.start;
    for number in numbers.clone() {
        while sent < numbers.end && sent < number + 32 {
            from.send(&frame(sent)).unwrap();
            sent += 1;
        }
        let arrived = to.receive(LIMIT).unwrap();
        assert!(arrived.as_deref() == Some(&frame(number)[..]), "frame {number} is {arrived:x?}");
    }
}

/// Every format to every other, over many laps.
#[test]
fn frames_between_two_drivers() {
    let server = switch();
    let all = [0, RING_EVENT_IDX, RING_PACKED, RING_PACKED | RING_EVENT_IDX | IN_ORDER];
    for (of_a, of_b) in all.into_iter().zip(all.into_iter().rev()) {
        let (mut a, mut b) = (driver(&server, "a", of_a), driver(&server, "b", of_b));
        exchange(&mut a, &mut b, 0..400);
        exchange(&mut b, &mut a, 0..400);
    }
}

/// Rings that are stopped take and give nothing; started again they go on where they were.
#[test]
fn rings_stop_and_go_on() {
    for features in [0, RING_PACKED] {
        let server = switch();
        let (mut a, mut b) = (driver(&server, "a", features), driver(&server, "b", features));
        exchange(&mut a, &mut b, 0..100);
        let stopped = b.frontend.stop(&mut b.tx).unwrap();
        for number in 0..3 {
            b.send(&frame(number)).unwrap();
        }
        assert_eq!(a.receive(MOMENT).unwrap(), None);
        assert_eq!(b.tx.base(), stopped);
        b.frontend.start(&mut b.tx).unwrap();
        for number in 0..3 {
            assert_eq!(a.receive(LIMIT).unwrap(), Some(frame(number)));
        }
        exchange(&mut a, &mut b, 100..300);
    }
}

/// A transmit ring that is not enabled is emptied, and its frames go nowhere.
#[test]
fn a_disabled_ring_is_emptied() {
    let server = switch();
    let (mut a, mut b) = (driver(&server, "a", 0), driver(&server, "b", 0));
    a.frontend.enable(&a.tx, false).unwrap();
    a.send(&frame(1)).unwrap();
    assert!(a.tx.wait(LIMIT).unwrap());
    assert_eq!(b.receive(MOMENT).unwrap(), None);
    a.frontend.enable(&a.tx, true).unwrap();
    exchange(&mut a, &mut b, 2..100);
}

/// `ringway` is killed under the drivers and started again: they attach anew with the rings and the buffers they had.
#[test]
fn drivers_outlive_the_server() {
    for (of_a, of_b) in [(0, RING_EVENT_IDX), (RING_PACKED, RING_PACKED | RING_EVENT_IDX)] {
        let mut server = switch();
        let (mut a, mut b) = (driver(&server, "a", of_a), driver(&server, "b", of_b));
        for round in 0..5 {
            exchange(&mut a, &mut b, round * 100..round * 100 + 100);
            exchange(&mut b, &mut a, 0..20);
            server.restart().unwrap();
            assert!(a.frontend.connection().is_closed_within(LIMIT).unwrap());
            // Sent to nobody; whoever comes next finds it.
            a.send(&frame(7)).unwrap();
            b.reconnect(connect(&server, "b")).unwrap();
            a.reconnect(connect(&server, "a")).unwrap();
            assert_eq!(
                b.receive(LIMIT).unwrap(),
                Some(frame(7)),
                "round {round} {of_a:#x} {}",
                server.counters().unwrap().summary
            );
        }
    }
}

/// Behind an IOMMU the device asks for what it does not know, rings and frames, and again for what is taken back.
#[test]
fn a_device_behind_an_iommu() {
    for features in [ACCESS_PLATFORM, ACCESS_PLATFORM | RING_PACKED] {
        let server = Server::switch(PROGRAM.as_ref(), &["a,iommu", "b"], &[]).unwrap();
        let (mut a, mut b) = (driver(&server, "a", features), driver(&server, "b", 0));
        for round in 0..3 {
            exchange(&mut a, &mut b, 0..100);
            exchange(&mut b, &mut a, 0..100);
            a.frontend.invalidate_iotlb(0, 1 << 40).unwrap();
            a.send(&frame(round)).unwrap();
            a.answer_misses().unwrap();
            assert_eq!(b.receive(LIMIT).unwrap(), Some(frame(round)));
        }
    }
}

/// What a network device is asked about itself; without a protocol feature there is no asking.
#[test]
fn the_device_answers() {
    let server = Server::switch(PROGRAM.as_ref(), &["a,mac=02:00:00:00:00:07"], &[]).unwrap();
    let features = VERSION_1 | F_MAC;
    let mut frontend = Frontend::negotiate(connect(&server, "a"), features, PROTOCOL_FEATURES).unwrap();
    assert_eq!(frontend.features(), features);
    for _ in 0..2 {
        assert!(frontend.queue_num().unwrap().is_some_and(|pairs| pairs >= 1));
        assert_eq!(frontend.config(0, 6).unwrap(), [2, 0, 0, 0, 0, 7]);
        frontend.reset().unwrap();
    }
    drop(frontend);
    let mut frontend = Frontend::negotiate(connect(&server, "a"), features, pf::REPLY_ACK).unwrap();
    assert_eq!(frontend.queue_num().unwrap(), None);
    assert!(matches!(frontend.config(0, 6), Err(FrontendError::NotNegotiated { .. })));
}

// A driver with two pairs and a control queue

/// Two pairs of rings and a control queue, whose receive rings hold buffers.
struct TwoPairs {
    frontend: Frontend,
    memory: Memory,
    vrings: Vec<Vring<SharedBuf>>,
}

const RX: [usize; 2] = [0, 2];
const CONTROL: usize = 4;
const FLOWS: u16 = 32;

impl TwoPairs {
    fn negotiate(server: &Server) -> Frontend {
        let features = VERSION_1 | F_MQ | F_CTRL_VQ | F_STATUS | F_GUEST_ANNOUNCE;
        let frontend = Frontend::negotiate(connect(server, "a"), features, PROTOCOL_FEATURES).unwrap();
        assert_eq!(frontend.features(), features);
        frontend
    }

    fn start(server: &Server) -> Self {
        let frontend = Self::negotiate(server);
        let mut memory = Memory::new(Gpa(1 << 30), 4 << 20, Pages::Small).unwrap();
        let new = |index| frontend.set_up_vring(VringConfig::new(index, 64), &mut memory).unwrap();
        let vrings = (0..=CONTROL as u32).map(new).collect();
        let mut driver = Self { frontend, memory, vrings };
        for ring in RX {
            for buffer in driver.memory.buffers(60, 2048).unwrap() {
                let room = [Segment::from(&buffer)];
                assert!(driver.vrings[ring].queue_mut().add(&[], &room, buffer).is_ok());
            }
        }
        driver.frontend.add_memory([&driver.memory]).unwrap();
        driver.run();
        driver
    }

    fn run(&mut self) {
        for vring in &mut self.vrings {
            self.frontend.enable(vring, true).unwrap();
            self.frontend.start(vring).unwrap();
            vring.publish().unwrap();
        }
        self.frontend.set_driver_ok().unwrap();
    }

    /// Has the device use both pairs (5.1.6.5.5).
    fn use_both(&mut self) {
        let mut buffers = self.memory.buffers(2, 64).unwrap();
        let (mut command, answer) = (buffers.pop().unwrap(), buffers.pop().unwrap());
        command.write(&[4, 0, 2, 0]);
        let (readable, writable) =
            ([Segment { len: 4, ..Segment::from(&command) }], [Segment { len: 1, ..Segment::from(&answer) }]);
        let control = &mut self.vrings[CONTROL];
        assert!(control.queue_mut().add(&readable, &writable, answer).is_ok());
        control.publish().unwrap();
        assert!(control.wait(LIMIT).unwrap());
        let answer = control.queue_mut().reclaim().unwrap().expect("an answer").owner;
        let mut bytes = [0xff];
        answer.read(&mut bytes);
        assert_eq!(bytes, [0], "it is carried out");
    }

    /// Stops all rings and takes the device's state.
    fn stop(&mut self) -> Vec<u8> {
        for vring in &mut self.vrings {
            self.frontend.stop(vring).unwrap();
        }
        self.frontend.save_state(1000).unwrap()
    }

    /// Goes on with another server, where the rings are and with the memory they are in.
    fn go_on(&mut self, server: &Server, state: Option<&[u8]>) {
        self.frontend = Self::negotiate(server);
        self.frontend.add_memory([&self.memory]).unwrap();
        if let Some(state) = state {
            self.frontend.load_state(state).unwrap();
        }
        self.run();
    }

    /// How many of several flows' frames arrive in each receive ring.
    fn spread(&mut self, from: &mut NetDriver) -> [usize; 2] {
        for flow in 0..FLOWS {
            from.send(&datagram(flow)).unwrap();
        }
        let mut counts = [0; 2];
        let deadline = Instant::now() + LIMIT;
        while counts.iter().sum::<usize>() < FLOWS.into() {
            for (count, ring) in counts.iter_mut().zip(RX) {
                while let Some(used) = self.vrings[ring].queue_mut().reclaim().unwrap() {
                    *count += 1;
                    let room = [Segment::from(&used.owner)];
                    assert!(self.vrings[ring].queue_mut().add(&[], &room, used.owner).is_ok());
                }
                self.vrings[ring].publish().unwrap();
            }
            assert!(Instant::now() < deadline, "{counts:?} of {FLOWS}");
            std::thread::sleep(Duration::from_millis(1));
        }
        counts
    }
}

/// A UDP datagram of a flow of its own, to all stations.
fn datagram(port: u16) -> Vec<u8> {
    let ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let udp = [port.to_be_bytes(), [0, 9], [0, 8], [0, 0]].concat();
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[8, 0], &ip, &udp].concat();
    frame.resize(60, 0);
    frame
}

/// [VU-BE-migrating-back-end-state-01] [VU-BE-migrating-back-end-state-02] A driver goes to another server, rings and memory
/// and all. With the device's state its frames are spread over the pairs that it asked for before; without, they are not. It
/// is asked to announce itself where its state has come to.
#[test]
fn the_state_of_a_device_moves_along() {
    for moves_state in [true, false] {
        let servers = [0; 2].map(|_| Server::switch(PROGRAM.as_ref(), &["a,queues=2", "b"], &[]).unwrap());
        let mut others = servers.each_ref().map(|server| driver(server, "b", 0));
        let mut a = TwoPairs::start(&servers[0]);
        assert_eq!(a.spread(&mut others[0]), [32, 0]);
        a.use_both();
        let [first, second] = a.spread(&mut others[0]);
        assert!(first > 0 && second > 0, "{first} and {second}");
        let state = a.stop();
        a.go_on(&servers[1], moves_state.then_some(&state[..]));
        let (wanted, status) =
            if moves_state { ([first, second], S_LINK_UP | S_ANNOUNCE) } else { ([32, 0], S_LINK_UP) };
        assert_eq!(a.frontend.config(6, 2).unwrap(), status.to_le_bytes());
        assert_eq!(a.spread(&mut others[1]), wanted);
    }
}
