//! With the back-end of this crate, and behind it a device that answers what it is asked: both formats, both ends of
//! the connection, stops, resets and lost back-ends.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::{Burst, ResumeState, Segment};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED, VERSION_1};
use ringway_vhost::backend::Device;
use ringway_vhost::endpoint::{Endpoint, Source};
use ringway_vhost::frontend::{
    Connection, DirtyLog, Frontend, FrontendError, Memory, PROTOCOL_FEATURES, Pages, Signals, Vring,
    VringConfig,
};
use ringway_vhost::message::{ChannelRequest, protocol_feature as pf};
use ringway_vhost::{Kick, Notifier, Running};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const LIMIT: Duration = Duration::from_secs(5);
/// Long enough for a device that would do what it must not.
const MOMENT: Duration = Duration::from_millis(30);
const SIZE: u16 = 8;
const OFFERED: u64 = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC | RING_PACKED | IN_ORDER;

#[derive(Default)]
struct State {
    status: u8,
    config: [u8; 4],
    vrings: [Option<Running>; 2],
    burst: Burst,
}

/// A device with two queues that writes back what it reads.
#[derive(Clone, Default)]
struct Echo(Rc<RefCell<State>>);

impl Echo {
    /// Serves the rings that are enabled.
    fn serve(&self) {
        let State { vrings, burst, .. } = &mut *self.0.borrow_mut();
        for vring in vrings.iter_mut().flatten().filter(|v| v.enabled) {
            if let Kick::Fd(kick) = &vring.kick {
                let _ = rustix::io::read(kick, &mut [0; 8]);
            }
            loop {
                while let Some(chain) = vring.queue.next(burst).expect("a good driver") {
                    let written = chain.readable().copy_to(chain.writable());
                    vring.queue.complete(chain, written as u32);
                }
                if vring.queue.publish() {
                    vring.call.notify();
                }
                if !vring.queue.arm() {
                    break;
                }
            }
        }
    }

    fn with_vring<T>(&self, index: u16, change: impl FnOnce(&mut Option<Running>) -> T) -> T {
        change(&mut self.0.borrow_mut().vrings[usize::from(index)])
    }

    fn with_running(&self, index: u16, change: impl FnOnce(&mut Running)) {
        self.with_vring(index, |vring| change(vring.as_mut().expect("it runs")));
    }
}

impl Device for Echo {
    fn features(&self) -> u64 {
        OFFERED
    }

    fn protocol_features(&self) -> u64 {
        pf::CONFIG | pf::DEVICE_STATE
    }

    fn max_queues(&self) -> u16 {
        2
    }

    fn queue_num(&self) -> u64 {
        2
    }

    fn ack_features(&mut self, _features: u64) -> Result<(), String> {
        Ok(())
    }

    fn status(&self) -> u8 {
        self.0.borrow().status
    }

    fn set_status(&mut self, status: u8) {
        self.0.borrow_mut().status = status;
    }

    fn reset(&mut self) {
        self.0.borrow_mut().status = 0;
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.0.borrow().config[offset..][..to.len()]);
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8], _is_migration: bool) -> bool {
        self.0.borrow_mut().config[offset..][..bytes.len()].copy_from_slice(bytes);
        true
    }

    fn save_state(&self) -> Vec<u8> {
        self.0.borrow().config.to_vec()
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), String> {
        let state = state.try_into().map_err(|_| "not four bytes".to_owned())?;
        self.0.borrow_mut().config = state;
        Ok(())
    }

    fn has_vring(&self, _index: u16) -> bool {
        true
    }

    fn start_vring(&mut self, index: u16, running: Running) {
        self.with_vring(index, |vring| *vring = Some(running));
    }

    fn stop_vring(&mut self, index: u16) -> ResumeState {
        self.with_vring(index, |vring| vring.take().expect("it runs").queue.stop())
    }

    fn enable_vring(&mut self, index: u16, enabled: bool) {
        self.with_running(index, |vring| vring.enabled = enabled);
    }

    fn set_call(&mut self, index: u16, call: Notifier) {
        self.with_running(index, |vring| vring.call = call);
    }

    fn set_err(&mut self, index: u16, err: Notifier) {
        self.with_running(index, |vring| vring.err = err);
    }
}

/// A thread that serves one front-end. Dropped, it ends at once, as in a crash.
struct BackEnd {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BackEnd {
    fn start(source: Source) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&is_over);
        let thread = Some(std::thread::spawn(move || {
            let device = Echo::default();
            let mut endpoint = Endpoint::new("echo".to_owned(), source, device.clone());
            while !end.load(Ordering::Relaxed) {
                endpoint.turn();
                device.serve();
                wait(&endpoint, &device);
            }
        }));
        Self { is_over, thread }
    }

    /// One that is connected to a new session, with these features at most.
    fn attach(features: u64) -> (Frontend, Self) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let back_end = Self::start(Source::Connected(theirs));
        let connection = Connection::from_stream(ours).expect("a connection");
        (Frontend::negotiate(connection, features, PROTOCOL_FEATURES).expect("a session"), back_end)
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Waits for a message or a kick, not for long.
fn wait(endpoint: &Endpoint<Echo>, device: &Echo) {
    let state = device.0.borrow();
    let kicks = state
        .vrings
        .iter()
        .flatten()
        .filter_map(|v| if let Kick::Fd(fd) = &v.kick { Some(fd) } else { None });
    let kicks = kicks.map(|kick| PollFd::from_borrowed_fd(kick.as_fd(), PollFlags::IN));
    let sockets = endpoint.interests().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
    let mut fds: Vec<_> = sockets.chain(kicks).collect();
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 }));
}

/// A question and room for its answer.
type Pair = (SharedBuf, SharedBuf);

/// A driver of one queue.
struct Driver {
    vring: Vring<Pair>,
    free: Vec<SharedBuf>,
    /// Questions so far.
    asked: u32,
    /// Answers so far.
    answered: u32,
}

impl Driver {
    fn new(frontend: &mut Frontend, config: VringConfig, memory: &mut Memory) -> Self {
        let vring = frontend.set_up_vring(config, memory).expect("a vring");
        let free = memory.buffers(2 * usize::from(SIZE), 64).expect("buffers");
        Self { vring, free, asked: 0, answered: 0 }
    }

    /// Asks as often as there is room, `most` times at most.
    fn ask(&mut self, most: usize) {
        self.add(most);
        self.vring.publish().expect("a kick");
    }

    fn add(&mut self, most: usize) {
        for _ in 0..most {
            let queue = self.vring.queue_mut();
            if queue.free() < 2 {
                break;
            }
            let (mut question, answer) = (self.free.pop().expect("free"), self.free.pop().expect("free"));
            question.write(&self.asked.to_le_bytes());
            let (readable, writable) =
                ([Segment { len: 4, ..Segment::from(&question) }], [Segment::from(&answer)]);
            let added = queue.add(&readable, &writable, (question, answer));
            added.map_err(|refused| refused.error).expect("room");
            self.asked += 1;
        }
    }

    /// Takes what was answered, in the order of the questions.
    fn take_answers(&mut self) {
        while let Some(used) = self.vring.queue_mut().reclaim().expect("a good device") {
            let (question, answer) = used.owner;
            let mut bytes = [0; 4];
            answer.read(&mut bytes);
            assert_eq!((u32::from_le_bytes(bytes), used.written), (self.answered, 4));
            self.answered += 1;
            self.free.extend([question, answer]);
        }
    }

    /// Waits for all answers.
    fn finish(&mut self) {
        let deadline = Instant::now() + LIMIT;
        while self.answered < self.asked {
            assert!(Instant::now() < deadline, "{} of {} answers", self.answered, self.asked);
            self.vring.wait(LIMIT).expect("a call");
            self.take_answers();
        }
    }

    /// Asks and waits, again and again.
    fn exchange(&mut self, rounds: usize) {
        for round in 0..rounds {
            self.ask(1 + round % usize::from(SIZE));
            self.finish();
        }
    }

    /// That nothing is answered, however long it is waited for.
    fn expect_silence(&mut self) {
        assert!(!self.vring.wait(MOMENT).expect("no call"));
        assert_eq!(self.vring.queue().in_flight(), (self.asked - self.answered) as u16);
    }
}

fn memory() -> Memory {
    Memory::new(Gpa(1 << 30), 1 << 20, Pages::Small).expect("memory")
}

/// Starts all that it takes.
fn start(frontend: &mut Frontend, driver: &mut Driver) {
    frontend.enable(&driver.vring, true).expect("enabled");
    frontend.start(&mut driver.vring).expect("a start");
    frontend.set_driver_ok().expect("a live device");
}

/// Every format, with all that was negotiated, over many laps of the ring; near the wrap of a split ring's indices too.
#[test]
fn what_is_asked_is_answered() {
    let wrap = Some(ResumeState::Split { next_avail: 65530 });
    for (features, start_at) in [
        (VERSION_1, None),
        (VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC, wrap),
        (VERSION_1 | RING_PACKED, None),
        (OFFERED, None),
    ] {
        let (mut frontend, _back_end) = BackEnd::attach(features);
        assert_eq!(frontend.features(), features);
        let mut memory = memory();
        frontend.add_memory([&memory]).unwrap();
        let config = VringConfig { start: start_at, table_entries: 4, ..VringConfig::new(0, SIZE) };
        let mut driver = Driver::new(&mut frontend, config, &mut memory);
        start(&mut frontend, &mut driver);
        driver.exchange(50);
        assert!(driver.asked > 50);
    }
}

/// A ring that stops goes on where it was, in either format, with what was added in between; the start alone
/// makes the device look.
#[test]
fn a_stopped_ring_goes_on() {
    for features in [VERSION_1, VERSION_1 | RING_PACKED] {
        let (mut frontend, _back_end) = BackEnd::attach(features);
        let mut memory = memory();
        frontend.add_memory([&memory]).unwrap();
        let mut driver = Driver::new(&mut frontend, VringConfig::new(1, SIZE), &mut memory);
        start(&mut frontend, &mut driver);
        driver.exchange(5);
        let base = frontend.stop(&mut driver.vring).unwrap();
        // Each of the 14 questions took one entry of the available ring, or two slots of the packed one, which is in
        // its fourth lap.
        let wanted = if features & RING_PACKED == 0 { 14 } else { 0x0004_0004 };
        assert_eq!(base, wanted, "{base:#x}");
        driver.ask(3);
        driver.expect_silence();
        driver.vring.kick().take().unwrap();
        frontend.start(&mut driver.vring).unwrap();
        driver.finish();
        driver.exchange(20);
    }
}

#[test]
fn a_disabled_ring_waits() {
    let (mut frontend, _back_end) = BackEnd::attach(VERSION_1);
    let mut memory = memory();
    frontend.add_memory([&memory]).unwrap();
    let mut driver = Driver::new(&mut frontend, VringConfig::new(0, SIZE), &mut memory);
    start(&mut frontend, &mut driver);
    frontend.enable(&driver.vring, false).unwrap();
    driver.ask(2);
    driver.expect_silence();
    frontend.enable(&driver.vring, true).unwrap();
    driver.finish();
}

/// [DRV-SPLIT-used-buffer-notification-suppression-05] A call that is about nothing ends no wait.
#[test]
fn a_driver_waits_for_a_used_chain() {
    let (mut frontend, _back_end) = BackEnd::attach(VERSION_1);
    let mut memory = memory();
    let mut driver = Driver::new(&mut frontend, VringConfig::new(0, SIZE), &mut memory);
    let call = driver.vring.call().share().unwrap();
    let begin = Instant::now();
    let caller = std::thread::spawn(move || {
        for _ in 0..3 {
            std::thread::sleep(MOMENT / 10);
            rustix::io::write(&call, &1_u64.to_ne_bytes()).unwrap();
        }
    });
    assert!(!driver.vring.wait(MOMENT).unwrap());
    assert!(begin.elapsed() >= MOMENT);
    caller.join().unwrap();
}

#[test]
fn a_ring_without_event_counters_is_polled() {
    let (mut frontend, _back_end) = BackEnd::attach(VERSION_1 | RING_PACKED);
    let mut memory = memory();
    frontend.add_memory([&memory]).unwrap();
    let config = VringConfig { signals: Signals::Polled, ..VringConfig::new(0, SIZE) };
    let mut driver = Driver::new(&mut frontend, config, &mut memory);
    start(&mut frontend, &mut driver);
    driver.exchange(10);
    assert_eq!((driver.vring.kick().take().unwrap(), driver.vring.call().take().unwrap()), (0, 0));
}

/// A back-end that crashed is replaced by another, to which the program listens: a split ring tells where to go on, and
/// nothing that was asked is lost.
#[test]
fn another_back_end_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let features = VERSION_1 | RING_EVENT_IDX;
    let attach = || {
        let back_end = BackEnd::start(Source::Connect(path.clone()));
        let connection = Connection::accept(&listener).unwrap();
        (Frontend::negotiate(connection, features, PROTOCOL_FEATURES).unwrap(), back_end)
    };
    let mut memory = memory();
    let (mut frontend, mut back_end) = attach();
    let mut driver = Driver::new(&mut frontend, VringConfig::new(0, SIZE), &mut memory);
    for crash in 0..5 {
        frontend.add_memory([&memory]).unwrap();
        start(&mut frontend, &mut driver);
        driver.exchange(3);
        frontend.enable(&driver.vring, false).unwrap();
        driver.ask(1 + crash);
        drop(back_end);
        (frontend, back_end) = attach();
        driver.vring.recover();
    }
    frontend.add_memory([&memory]).unwrap();
    start(&mut frontend, &mut driver);
    driver.finish();
    drop(back_end);
}

/// A reset leaves the session as it was begun: the driver has its buffers back, and may make other rings.
#[test]
fn a_device_is_reset() {
    for protocol_features in [pf::RESET_DEVICE | pf::STATUS | pf::REPLY_ACK, pf::STATUS] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let _back_end = BackEnd::start(Source::Connected(theirs));
        let connection = Connection::from_stream(ours).unwrap();
        let mut frontend = Frontend::negotiate(connection, OFFERED, protocol_features).unwrap();
        let mut memory = memory();
        frontend.add_memory([&memory]).unwrap();
        let mut driver = Driver::new(&mut frontend, VringConfig::new(0, SIZE), &mut memory);
        start(&mut frontend, &mut driver);
        driver.exchange(3);
        frontend.enable(&driver.vring, false).unwrap();
        driver.ask(2);
        frontend.reset().unwrap();
        driver.vring.recover();
        assert_eq!(driver.vring.retire().ok().map(|lent| lent.len()), Some(2));

        let mut driver = Driver::new(&mut frontend, VringConfig::new(0, SIZE), &mut memory);
        start(&mut frontend, &mut driver);
        driver.exchange(3);
        // One that is started may be written to.
        assert!(driver.vring.retire().is_err());
    }
}

/// Memory comes and goes while a ring is served; what a ring is in cannot go.
#[test]
fn memory_comes_and_goes() {
    let (mut frontend, _back_end) = BackEnd::attach(VERSION_1);
    let mut memory = memory();
    let other = Memory::new(Gpa(2 << 30), 1 << 20, Pages::Small).unwrap();
    frontend.add_memory([&memory]).unwrap();
    let mut driver = Driver::new(&mut frontend, VringConfig::new(0, SIZE), &mut memory);
    start(&mut frontend, &mut driver);
    for _ in 0..3 {
        frontend.add_memory([&other]).unwrap();
        driver.exchange(3);
        frontend.remove_memory(&other).unwrap();
        driver.exchange(3);
    }
    let error = frontend.remove_memory(&memory).expect_err("in use");
    assert!(matches!(error, FrontendError::Refused { request: "REM_MEM_REG", .. }), "{error}");
    driver.exchange(3);
}

#[test]
fn a_configuration_is_read_and_written() {
    let (mut frontend, _back_end) = BackEnd::attach(VERSION_1);
    assert_eq!(frontend.queue_num().unwrap(), Some(2));
    assert_eq!(frontend.config(0, 4).unwrap(), [0; 4]);
    frontend.set_config(1, &[5, 6]).unwrap();
    assert_eq!(frontend.config(0, 4).unwrap(), [0, 5, 6, 0]);
}

/// [VU-FE-migrating-back-end-state-01] The device's state goes from one back-end to another; one that cannot be is refused.
#[test]
fn a_device_moves() {
    let (mut from, _one) = BackEnd::attach(VERSION_1);
    let (mut to, _other) = BackEnd::attach(VERSION_1);
    from.set_config(0, &[1, 2, 3, 4]).unwrap();
    let state = from.save_state(100).unwrap();
    to.load_state(&state).unwrap();
    assert_eq!(to.config(0, 4).unwrap(), [1, 2, 3, 4]);
    let error = to.load_state(&[1, 2, 3]).expect_err("three bytes");
    assert!(matches!(error, FrontendError::Refused { request: "CHECK_DEVICE_STATE", .. }), "{error}");
    to.load_state(&[0; 4]).unwrap();
}

/// What the device writes is in the log, answers and used entries, from when it begins to when it ends; the next log
/// has only what came after.
#[test]
fn what_the_device_writes_is_logged() {
    for features in [VERSION_1, VERSION_1 | RING_PACKED] {
        let (mut frontend, _back_end) = BackEnd::attach(features);
        let mut memory = memory();
        frontend.add_memory([&memory]).unwrap();
        let mut driver = Driver::new(&mut frontend, VringConfig::new(0, SIZE), &mut memory);
        start(&mut frontend, &mut driver);
        driver.exchange(3);
        let pages = |log: &DirtyLog| log.pages().unwrap().map(|page| page.0).collect::<Vec<_>>();
        // The first page of the memory has the ring, the second the buffers.
        let both = [1 << 30, (1 << 30) + 0x1000];
        let log = || DirtyLog::new(Gpa((1 << 30) + (1 << 20))).unwrap();
        let (first, second, third) = (log(), log(), log());
        frontend.start_log(&first).unwrap();
        driver.exchange(3);
        assert_eq!(pages(&first), both);
        frontend.start_log(&second).unwrap();
        driver.exchange(3);
        assert_eq!(pages(&second), both);
        frontend.start_log(&third).unwrap();
        frontend.stop_log().unwrap();
        // What it wrote by itself, to be kicked.
        let before = pages(&third);
        assert!(!before.contains(&both[1]));
        driver.exchange(3);
        assert_eq!(pages(&third), before);
    }
}

/// Kicks by messages, calls by the channel.
#[test]
fn a_ring_is_signalled_in_band() {
    let (mut frontend, _back_end) = BackEnd::attach(VERSION_1 | RING_PACKED);
    let mut channel = frontend.open_channel().unwrap();
    let mut memory = memory();
    frontend.add_memory([&memory]).unwrap();
    let config = VringConfig { signals: Signals::Inband, ..VringConfig::new(1, SIZE) };
    let mut driver = Driver::new(&mut frontend, config, &mut memory);
    start(&mut frontend, &mut driver);
    for _ in 0..5 {
        driver.add(1);
        frontend.publish(&mut driver.vring).unwrap();
        let incoming = channel.next(LIMIT).unwrap().expect("a call");
        assert!(matches!(incoming.request, ChannelRequest::VringCall { index: 1 }), "{incoming:?}");
        channel.answer(incoming.answer, 0).unwrap();
        driver.take_answers();
        assert_eq!(driver.answered, driver.asked);
    }
}
