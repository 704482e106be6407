//! What the tests of the running program share: a switch with honest guests on it, and what it logged.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_testkit::frontend::frame::{self, Mac};
use ringway_testkit::frontend::wire::{feature, protocol, request};
use ringway_testkit::frontend::{NetFrontend, Options};
use ringway_testkit::server::Server;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");
/// How long anything that must happen may take.
pub(crate) const SOON: Duration = Duration::from_secs(2);
/// How long to look for what must not happen.
pub(crate) const QUIET: Duration = Duration::from_millis(20);
/// What an ordinary driver wants.
pub(crate) const FEATURES: u64 =
    feature::VERSION_1 | feature::NET_MRG_RXBUF | feature::INDIRECT_DESC | feature::EVENT_IDX;
/// All protocol features that the program offers, and `LOG_SHMFD`, which it does not.
pub(crate) const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::CONFIG
    | protocol::RESET_DEVICE;
/// Ethertype for local experiments (IEEE 802, 9.2.3).
pub(crate) const EXPERIMENT: u16 = 0x88b5;

/// The address of guest `n`.
pub(crate) fn mac(n: u8) -> Mac {
    [2, 0, 0, 0, 0, n]
}

/// Short rings: quick to set up.
pub(crate) fn options() -> Options {
    Options { ring_size: 16, protocol_features: PROTOCOL, ..Options::default() }
}

/// A switch with these ports.
pub(crate) fn switch(ports: &[&str]) -> Server {
    Server::switch(Path::new(PROGRAM), ports, &[]).unwrap()
}

/// A front-end on `port` with `features`.
pub(crate) fn up(server: &Server, port: &str, features: u64, options: Options) -> NetFrontend {
    NetFrontend::up(server.socket(port), features, options).unwrap()
}

/// A frame with a number in it.
pub(crate) fn numbered(dst: Mac, src: Mac, number: u64) -> Vec<u8> {
    frame::ethernet(dst, src, EXPERIMENT, &[&number.to_be_bytes()[..], &[0; 40]].concat())
}

/// The number of such a frame from `src`; `None` for any other frame.
pub(crate) fn number_of(frame: &[u8], src: Mac) -> Option<u64> {
    let is_ours = frame.len() >= 22 && frame[6..12] == src && frame[12..14] == EXPERIMENT.to_be_bytes();
    is_ours.then(|| u64::from_be_bytes(frame[14..22].try_into().unwrap()))
}

/// Waits for the frame that `src` gave this number; others are passed over. Panics if it does not come.
pub(crate) fn expect_number(to: &mut NetFrontend, src: Mac, number: u64) {
    let deadline = Instant::now() + SOON;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (_, frame) =
            to.recv_frame(left).unwrap().unwrap_or_else(|| panic!("frame {number} did not arrive"));
        if number_of(&frame, src) == Some(number) {
            return;
        }
    }
}

/// All frames that come within `limit` of each other.
pub(crate) fn drain(to: &mut NetFrontend, limit: Duration) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| to.recv_frame(limit).unwrap()).map(|(_, frame)| frame).collect()
}

/// One frame each way between two guests, by their addresses.
pub(crate) fn exchange((a, a_mac): (&mut NetFrontend, Mac), (b, b_mac): (&mut NetFrontend, Mac)) {
    static NUMBER: AtomicU64 = AtomicU64::new(1 << 40);
    let number = NUMBER.fetch_add(2, Ordering::Relaxed);
    a.send_frame(&numbered(b_mac, a_mac, number)).unwrap();
    expect_number(b, a_mac, number);
    b.send_frame(&numbered(a_mac, b_mac, number + 1)).unwrap();
    expect_number(a, b_mac, number + 1);
}

/// Waits until `done`; panics if it does not come to that.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The session is alive: a question is answered.
pub(crate) fn is_answered(guest: &NetFrontend) -> bool {
    guest.connection().request_u64(request::GET_FEATURES).is_ok()
}

/// The lines of a log that warn.
pub(crate) fn warnings(log: &str) -> Vec<&str> {
    log.lines().filter(|l| l.contains("WARN") || l.contains("ERROR") || l.contains("panicked")).collect()
}

/// A place in the log from which on lines are looked at.
#[derive(Clone, Copy)]
pub(crate) struct Mark(usize);

impl Mark {
    /// The end of the log now.
    pub(crate) fn now(server: &Server) -> Self {
        Self(server.output().len())
    }

    /// What was logged since.
    pub(crate) fn log(self, server: &Server) -> String {
        server.output()[self.0..].to_owned()
    }

    /// Waits for a text in the log.
    pub(crate) fn wait_for(self, server: &mut Server, text: &str) {
        server.process().wait_for_from(self.0, text, SOON).unwrap();
    }

    /// Checks that there is one warning since, about `port`, with `text` in it. It may arrive a little after what
    /// it is about.
    pub(crate) fn expect_one_warning(self, server: &Server, case: &str, port: &str, text: &str) {
        let deadline = Instant::now() + SOON;
        let mut log = self.log(server);
        while (warnings(&log).is_empty() || !log.ends_with('\n')) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            log = self.log(server);
        }
        let lines = warnings(&log);
        let port = format!("port {port}: ");
        assert_eq!(lines.len(), 1, "{case}: one line in the log: {lines:#?}");
        assert!(lines[0].contains(&port) && lines[0].contains(text), "{case}: {port}…{text}: {}", lines[0]);
    }
}

/// Two guests that go on exchanging numbered frames in a thread of their own. None of them may be lost, ever.
pub(crate) struct Honest {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Honest {
    /// Starts the traffic between two ports.
    pub(crate) fn start(server: &Server, ports: [(&str, Mac); 2]) -> Self {
        let roomy = Options { ring_size: 128, ..options() };
        let [mut b, mut c] = ports.map(|(port, mac)| (up(server, port, FEATURES, roomy.clone()), mac));
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&rounds), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let number = counted.load(Ordering::Relaxed);
                b.0.send_frame(&numbered(c.1, b.1, number)).unwrap();
                expect_number(&mut c.0, b.1, number);
                c.0.send_frame(&numbered(b.1, c.1, number)).unwrap();
                expect_number(&mut b.0, c.1, number);
                counted.store(number + 1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let honest = Self { rounds, stop, thread: Some(thread) };
        honest.check();
        honest
    }

    /// Checks that frames of now still arrive, both ways.
    pub(crate) fn check(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        let deadline = Instant::now() + SOON;
        while self.rounds.load(Ordering::Relaxed) < before + 2 {
            let is_alive = self.thread.as_ref().is_some_and(|t| !t.is_finished());
            assert!(is_alive && Instant::now() < deadline, "the honest guests' frames do not arrive");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Ends the traffic; panics if a frame was lost.
    pub(crate) fn finish(mut self) {
        self.check();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("every honest frame arrives");
    }
}

impl Drop for Honest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A switch on which port a is attacked, b and c are honest and busy, d is honest and waits to be told, and e is
/// free.
pub(crate) struct World {
    /// The program.
    pub(crate) server: Server,
    /// The guests of ports b and c.
    pub(crate) honest: Honest,
    /// The guest of port d.
    pub(crate) d: NetFrontend,
}

impl World {
    /// Address of the guest at port a.
    pub(crate) const A: Mac = [2, 0, 0, 0, 0, 0xa];
    /// Address of the guest at port d.
    pub(crate) const D: Mac = [2, 0, 0, 0, 0, 0xd];

    /// Starts the program and its honest guests.
    pub(crate) fn new() -> Self {
        let server = switch(&["a", "b", "c", "d", "e"]);
        let honest = Honest::start(&server, [("b", mac(0xb)), ("c", mac(0xc))]);
        let mut d = up(&server, "d", FEATURES, options());
        d.send_frame(&numbered(frame::BROADCAST, Self::D, 0)).unwrap();
        d.pair(0).wait_sent(SOON).unwrap();
        Self { server, honest, d }
    }

    /// A front-end on port a that has said nothing yet.
    pub(crate) fn connect(&self) -> NetFrontend {
        NetFrontend::connect(self.server.socket("a"), options()).unwrap()
    }

    /// A front-end on port a that has negotiated and not started.
    pub(crate) fn negotiate(&self) -> NetFrontend {
        let mut guest = self.connect();
        guest.negotiate(FEATURES).unwrap();
        guest
    }

    /// A front-end on port a, up.
    pub(crate) fn attach(&self) -> NetFrontend {
        up(&self.server, "a", FEATURES, options())
    }

    /// An honest front-end attaches at port a, passes traffic, and leaves; the others have not noticed.
    pub(crate) fn check(&mut self) {
        let mark = Mark::now(&self.server);
        let mut a = self.attach();
        exchange((&mut a, Self::A), (&mut self.d, Self::D));
        drop(a);
        mark.wait_for(&mut self.server, "port a: front-end detached");
        self.honest.check();
    }

    /// The end: the program is alive, and no honest frame was lost.
    pub(crate) fn finish(mut self) {
        self.honest.finish();
        assert!(self.server.process().is_running());
        let (status, counters) = self.server.terminate().unwrap();
        assert!(status.success(), "{status}");
        for port in ["b", "c"] {
            assert_eq!(counters.get(port, "failed rings"), 0, "port {port}");
            assert_eq!(counters.get(port, "no-buffer"), 0, "port {port}");
        }
    }
}
