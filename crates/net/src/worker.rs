//! The worker: one thread that owns ports and moves frames between them.
//!
//! ```text
//!          work                    nothing for a while              armed, and still nothing
//!  busy ─────────► busy      busy ────────────────────► arm rings ──────────────────────────► asleep
//!                              ▲                            │ a chain came meanwhile             │
//!                              └────────────────────────────┴──────── kick, tap, command ◄───────┘
//! ```
//!
//! A round polls every ring once, a burst at most, so that no port starves another. Commands of the control
//! thread are carried out between rounds; one of them suspends the rounds until another resumes them. What a driver
//! does wrong stops its ring, and is told by an [`Event`]; all else goes on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_device::net::{NetDevice, Offloads};
use ringway_memory::{GuestBuf, GuestSlice};
use ringway_queue::{Burst, Chain, QueueError, ResumeState};
use ringway_spec::net::{F_GUEST_CSUM, Header};
use ringway_vhost::{Kick, Notifier, Running};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use crate::counters::{Counter, Counters, DropReason};
use crate::fabric::{Event, Fabric, Forward, Port, PortKind};
use crate::frame::{ETHERNET_LEN, Ethernet, Frame, Mac, rarp};
use crate::generator::Generator;
use crate::handover::{HeldWorker, WorkerState};
use crate::offload::MAX_FRAME;
use crate::port::guest::{GuestPort, Vring};
use crate::port::tap::{Tap, TapBuffer};
use crate::switch::Switch;

/// Chains, or frames of a tap, handled before the next ring's turn.
const BURST: usize = 32;
/// Rounds between two looks for readable taps while busy, and while there is nothing to do, when rounds are short.
const TAP_ROUNDS: u32 = 32;
const IDLE_TAP_ROUNDS: u32 = 512;
/// Rounds between two looks at the clock while busy.
const CLOCK_ROUNDS: u32 = 256;
/// How long to sleep at most if a ring has no kick: its front-end wants it to be polled.
const POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000 };

/// A port to be.
pub enum PortSpec {
    /// A guest, with the device that its session shares.
    Guest(Arc<Mutex<NetDevice>>),
    /// A tap.
    Tap(Tap),
}

impl PortSpec {
    fn open(self) -> Port {
        let counters = Arc::new(Counters::default());
        let kind = match self {
            Self::Guest(device) => PortKind::Guest(Box::new(GuestPort::new(device, Arc::clone(&counters)))),
            Self::Tap(tap) => PortKind::Tap { tap, is_ready: true },
        };
        Port { kind, counters }
    }
}

/// What the control thread asks for.
pub(crate) enum Command {
    Start { port: usize, session: u64, index: u16, vring: Box<Running> },
    Stop { port: usize, index: u16, reply: SyncSender<ResumeState> },
    Enable { port: usize, index: u16, enabled: bool },
    SetCall { port: usize, index: u16, call: Notifier },
    SetErr { port: usize, index: u16, err: Notifier },
    Sync { reply: SyncSender<()> },
    Forget { port: usize },
    Retake { port: usize },
    Announce { port: usize, mac: Mac },
    Suspend { reply: SyncSender<HeldWorker> },
    Resume,
    Quit,
}

/// How the two threads wake each other.
pub(crate) struct Signal {
    raised: AtomicBool,
    fd: OwnedFd,
}

impl Signal {
    fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self { raised: AtomicBool::new(false), fd: eventfd(0, flags)? })
    }

    pub(crate) fn raise(&self) {
        // Pairs with the swap in `take`: who sees the flag sees the message sent before.
        self.raised.store(true, Ordering::Release);
        // A counter at its limit is readable, which is all that is wanted.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    fn take(&self) -> bool {
        self.raised.load(Ordering::Relaxed) && self.raised.swap(false, Ordering::Acquire)
    }
}

/// The way to a worker.
#[derive(Clone)]
pub struct Mailbox {
    commands: Sender<Command>,
    signal: Arc<Signal>,
}

impl Mailbox {
    pub(crate) fn send(&self, command: Command) {
        // A worker that has quit needs no commands.
        if self.commands.send(command).is_ok() {
            self.signal.raise();
        }
    }

    /// Has the worker look at all rings, if it sleeps.
    pub(crate) fn wake(&self) {
        self.signal.raise();
    }

    /// Waits until the worker has carried out what was sent before; not long, it does so between two rounds.
    pub(crate) fn wait(&self) {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.send(Command::Sync { reply });
        // A worker that has quit has nothing left to carry out.
        let _ = answer.recv();
    }
}

/// What a worker counts beside its ports' counters.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// System calls made to wait, or to see whether taps are readable.
    pub waits: Counter,
}

/// A running worker. Dropping it ends it.
pub struct Worker {
    mailbox: Mailbox,
    events: Receiver<Event>,
    event_signal: Arc<Signal>,
    ports: Vec<Arc<Counters>>,
    counters: Arc<WorkerCounters>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker. `busy_poll` is how long it goes on polling when there is nothing to do.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(ports: Vec<PortSpec>, forward: Forward, busy_poll: Duration) -> io::Result<Self> {
        let worker = Self::restore(ports, forward, busy_poll, &WorkerState::default())?;
        worker.resume();
        Ok(worker)
    }

    /// Starts a worker that goes on where another was, once it is resumed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn restore(
        ports: Vec<PortSpec>,
        forward: Forward,
        busy_poll: Duration,
        state: &WorkerState,
    ) -> io::Result<Self> {
        let (commands, inbox) = channel();
        let (event_sender, events) = channel();
        let signal = Arc::new(Signal::new()?);
        let event_signal = Arc::new(Signal::new()?);
        let counters = Arc::new(WorkerCounters::default());
        counters.waits.add(state.waits);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, signal.fd.as_fd(), Token::Command)?;
        let mut ports: Vec<Port> = ports.into_iter().map(PortSpec::open).collect();
        for (port, state) in ports.iter_mut().zip(&state.ports) {
            port.restore(state);
        }
        let mut switch = Switch::new(ports.len());
        switch.learn_again(&state.learned, state.now);
        for (index, port) in ports.iter().enumerate() {
            if let PortKind::Tap { tap, .. } = &port.kind {
                watch(&epoll, tap.as_fd(), Token::Tap(index))?;
                if forward == Forward::Switch {
                    // It has many receivers: a checksum can be completed for who needs it, a frame not be cut.
                    tap.set_offloads(Offloads::new(F_GUEST_CSUM, None))?;
                }
            }
        }
        let port_counters = ports.iter().map(|p| Arc::clone(&p.counters)).collect();
        let thread = Loop {
            fabric: Fabric {
                switch,
                ports,
                forward,
                scratch: Vec::with_capacity(MAX_FRAME),
                now: state.now,
                events: event_sender,
                event_signal: Arc::clone(&event_signal),
            },
            generator: Generator::new(forward),
            busy_poll,
            inbox,
            signal: Arc::clone(&signal),
            counters: Arc::clone(&counters),
            epoll,
            burst: Burst::default(),
            tap_buffer: TapBuffer::default(),
            start: Instant::now().checked_sub(Duration::from_secs(state.now)).unwrap_or_else(Instant::now),
            rounds: 0,
            is_busy: false,
        };
        let mailbox = Mailbox { commands, signal };
        // Before its first round.
        mailbox.send(Command::Suspend { reply: std::sync::mpsc::sync_channel(1).0 });
        let thread = std::thread::Builder::new().name("worker".into()).spawn(move || thread.run())?;
        Ok(Self { mailbox, events, event_signal, ports: port_counters, counters, thread: Some(thread) })
    }

    /// Suspends it: from when this returns it looks at no ring and no tap until [`Worker::resume`], and carries out
    /// commands. `None` if it has ended.
    pub fn suspend(&self) -> Option<HeldWorker> {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.mailbox.send(Command::Suspend { reply });
        answer.recv().ok()
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.mailbox.send(Command::Resume);
    }

    /// The way to it.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// The counters of its ports, in their order.
    pub fn port_counters(&self) -> &[Arc<Counters>] {
        &self.ports
    }

    /// Its own counters.
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// Readable when there are events.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event_signal.fd.as_fd()
    }

    /// The next event, if there is one; clears [`Worker::event_fd`].
    pub fn next_event(&self) -> Option<Event> {
        let mut counter = [0; 8];
        // Nothing to read is as good.
        let _ = rustix::io::read(&self.event_signal.fd, &mut counter);
        self.events.try_recv().ok()
    }
}

impl std::ops::Drop for Worker {
    fn drop(&mut self) {
        self.mailbox.send(Command::Quit);
        if let Some(thread) = self.thread.take() {
            // A panic of the worker was printed by the worker.
            let _ = thread.join();
        }
    }
}

/// What an epoll event is about.
#[derive(Clone, Copy)]
enum Token {
    Command,
    Tap(usize),
    Kick(usize),
}

impl Token {
    const TAP: u64 = 1 << 62;

    fn encode(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Self::Command => u64::MAX,
            Self::Tap(port) => Self::TAP | port as u64,
            Self::Kick(port) => port as u64,
        })
    }

    fn decode(data: epoll::EventData) -> Self {
        match data.u64() {
            u64::MAX => Self::Command,
            tap if tap & Self::TAP != 0 => Self::Tap((tap & !Self::TAP) as usize),
            port => Self::Kick(port as usize),
        }
    }
}

/// Watches for the moments at which `fd` becomes readable. What is readable need not be read: a further kick
/// is a further moment.
fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: Token) -> rustix::io::Result<()> {
    epoll::add(epoll, fd, token.encode(), epoll::EventFlags::IN | epoll::EventFlags::ET)
}

/// The worker's thread.
struct Loop {
    fabric: Fabric,
    generator: Generator,
    busy_poll: Duration,
    inbox: Receiver<Command>,
    signal: Arc<Signal>,
    counters: Arc<WorkerCounters>,
    epoll: OwnedFd,
    /// The burst at hand; empty between rings.
    burst: Burst,
    tap_buffer: TapBuffer,
    start: Instant,
    rounds: u32,
    /// The last round had something to do.
    is_busy: bool,
}

impl Loop {
    fn run(mut self) {
        let mut idle_since = None;
        loop {
            if self.signal.take() && self.obey() {
                return;
            }
            self.rounds = self.rounds.wrapping_add(1);
            self.is_busy = self.round() > 0;
            if self.is_busy {
                idle_since = None;
                if self.rounds.is_multiple_of(CLOCK_ROUNDS) {
                    self.tell_time(Instant::now());
                }
                continue;
            }
            let now = Instant::now();
            self.tell_time(now);
            if now.duration_since(*idle_since.get_or_insert(now)) >= self.busy_poll {
                self.sleep();
                idle_since = None;
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn tell_time(&mut self, now: Instant) {
        let now = now.duration_since(self.start).as_secs();
        if now != self.fabric.now {
            self.fabric.now = now;
            self.fabric.switch.age(now);
        }
    }

    /// Carries out the commands that have come; returns whether to quit.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Suspend { reply } => {
                    // The control thread waits for it, but at the start.
                    let _ = reply.send(self.hold());
                    if self.stand_by() {
                        return true;
                    }
                }
                Command::Quit => return true,
                other => self.carry_out(other),
            }
        }
        false
    }

    /// Carries out commands, and does nothing else until it is resumed; returns whether to quit.
    fn stand_by(&mut self) -> bool {
        loop {
            match self.inbox.recv() {
                Ok(Command::Resume) => return false,
                Ok(Command::Quit) | Err(_) => return true,
                Ok(other) => self.carry_out(other),
            }
        }
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Start { port, session, index, vring } => {
                self.start_vring(port, session, index, *vring);
            }
            Command::Stop { port, index, reply } => {
                // The session waits for the answer.
                let _ = reply.send(self.stop_vring(port, index));
            }
            Command::Enable { port, index, enabled } => self.fabric.guest(port).enable(index, enabled),
            Command::SetCall { port, index, call } => self.fabric.guest(port).set_call(index, call),
            Command::SetErr { port, index, err } => self.fabric.guest(port).set_err(index, err),
            Command::Sync { reply } => {
                // The session waits for it.
                let _ = reply.send(());
            }
            Command::Announce { port, mac } => self.announce(port, mac),
            Command::Retake { port } => {
                self.burst = Burst::default();
                self.fabric.guest(port).retake();
            }
            Command::Forget { port } => self.fabric.switch.forget_port(port),
            // What the rounds do has no meaning outside of them.
            Command::Suspend { .. } | Command::Resume | Command::Quit => {}
        }
    }

    /// What another worker needs to go on, but for the rings.
    fn hold(&self) -> HeldWorker {
        let ports = self.fabric.ports.iter().map(|port| match &port.kind {
            PortKind::Guest(guest) => (guest.counted, None),
            PortKind::Tap { tap, .. } => (None, Some(tap.try_clone())),
        });
        let ports = ports.collect();
        HeldWorker { now: self.fabric.now, learned: self.fabric.switch.learned(), ports }
    }

    fn start_vring(&mut self, port: usize, session: u64, index: u16, mut vring: Running) {
        if let Kick::Fd(kick) = &vring.kick
            && watch(&self.epoll, kick.as_fd(), Token::Kick(port)).is_err()
        {
            // The kernel has no more room for watches: the ring is polled instead.
            vring.kick = Kick::Polled;
        }
        let guest = self.fabric.guest(port);
        guest.start(session, index, vring);
        let offloads = guest.offloads();
        self.set_tap_offloads(offloads);
    }

    /// Sends a frame in a guest's name that tells its network where it is now.
    fn announce(&mut self, port: usize, mac: Mac) {
        let mut bytes = rarp(mac);
        let slices = [GuestSlice::from_mut(&mut bytes)];
        let data = GuestBuf::new(&slices);
        if let Some(ethernet) = Ethernet::read(data) {
            let frame = Frame { header: None, data, ethernet_len: ethernet.len, addresses: None };
            let counters = &self.fabric.ports[port].counters;
            counters.from_frames.add(1);
            counters.from_bytes.add(data.len() as u64);
            self.fabric.forward(port, &ethernet, frame);
        }
    }

    /// On a wire the tap gives what its one receiver takes.
    fn set_tap_offloads(&self, offloads: Offloads) {
        for port in &self.fabric.ports {
            if let PortKind::Tap { tap, .. } = &port.kind
                && self.fabric.forward == Forward::Wire
                && let Err(error) = tap.set_offloads(offloads)
            {
                tracing::warn!("the tap refuses offloads: {error}");
            }
        }
    }

    fn stop_vring(&mut self, port: usize, index: u16) -> ResumeState {
        let Self { fabric, epoll, burst, .. } = self;
        let guest = fabric.guest(port);
        if let Some(kick) = guest.kick(index) {
            // The front-end still has it open, so closing ours would leave the watch in place. A kick that could
            // not be watched cannot be unwatched.
            let _ = epoll::delete(epoll, kick);
        }
        // It keeps the memory of its last chains mapped.
        *burst = Burst::default();
        guest.stop(index)
    }

    /// Polls every port once; returns how much there was to do.
    fn round(&mut self) -> usize {
        let tap_rounds = if self.is_busy { TAP_ROUNDS } else { IDLE_TAP_ROUNDS };
        if self.rounds.is_multiple_of(tap_rounds) && self.has_taps() {
            self.wait(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        }
        let mut work = 0;
        for port in 0..self.fabric.ports.len() {
            work += match &self.fabric.ports[port].kind {
                PortKind::Guest(_) => self.poll_guest(port),
                PortKind::Tap { is_ready: true, .. } => self.poll_tap(port),
                PortKind::Tap { is_ready: false, .. } => 0,
            };
        }
        for port in 0..self.fabric.ports.len() {
            if self.fabric.ports[port].guest().is_some_and(GuestPort::publish) {
                self.fabric.check_memory(port);
            }
        }
        work
    }

    fn has_taps(&self) -> bool {
        self.fabric.ports.iter().any(|p| matches!(p.kind, PortKind::Tap { .. }))
    }

    // Frames

    fn poll_guest(&mut self, port: usize) -> usize {
        let pairs = self.fabric.guest(port).tx.len();
        let mut work: usize = (0..pairs).map(|pair| self.poll_tx(port, pair)).sum();
        if matches!(self.fabric.forward, Forward::Generate(_)) {
            work += self.generator.send(&mut self.fabric, port);
        }
        self.fabric.ask_translations(port);
        let guest = self.fabric.guest(port);
        match guest.serve_control(&mut self.burst) {
            Ok(count) => work + count,
            Err(error) => {
                let index = guest.control_index().unwrap_or_default();
                self.fabric.fail(port, index, error);
                work
            }
        }
    }

    /// Takes a burst of frames from a transmit ring and forwards them.
    fn poll_tx(&mut self, port: usize, pair: usize) -> usize {
        let guest = self.fabric.guest(port);
        // Out of its place while its frames go to other ports, or back to this one.
        let Some(mut vring) = guest.tx[pair].take_if(|v| v.is_ready()) else { return 0 };
        let format =
            TxFormat { offloads: guest.offloads(), header_len: guest.header_len(), enabled: vring.enabled };
        let count = self.forward_burst(port, &mut vring, format);
        self.fabric.guest(port).tx[pair] = Some(vring);
        match count {
            Ok(count) => {
                self.fabric.check_memory(port);
                count
            }
            Err(error) => {
                self.fabric.fail(port, pair as u16 * 2 + 1, error);
                0
            }
        }
    }

    fn forward_burst(
        &mut self,
        port: usize,
        vring: &mut Vring,
        format: TxFormat,
    ) -> Result<usize, QueueError> {
        let Self { fabric, burst, .. } = self;
        let count = vring.queue.take(burst, BURST)?;
        if count == 0 {
            return Ok(0);
        }
        let mut bytes = 0;
        while let Some(chain) = burst.next() {
            match format.read(&chain) {
                Ok((ethernet, frame)) => {
                    bytes += frame.data.len() as u64;
                    if format.enabled {
                        fabric.forward(port, &ethernet, frame);
                    } else {
                        fabric.ports[port].counters.count_drop(DropReason::Disabled);
                    }
                }
                Err(reason) => fabric.ports[port].counters.count_drop(reason),
            }
            vring.queue.complete(chain, 0);
        }
        let counters = &fabric.ports[port].counters;
        counters.from_frames.add(count as u64);
        counters.from_bytes.add(bytes);
        vring.publish(counters);
        Ok(count)
    }

    /// Takes a burst of frames from a tap and forwards them.
    fn poll_tap(&mut self, port: usize) -> usize {
        let Self { fabric, tap_buffer, .. } = self;
        let mut work = 0;
        while work < BURST {
            let Port { kind: PortKind::Tap { tap, is_ready }, counters } = &mut fabric.ports[port] else {
                break;
            };
            counters.syscalls.add(1);
            let (header, bytes) = match tap.read(tap_buffer) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    *is_ready = false;
                    break;
                }
                Err(error) => {
                    *is_ready = false;
                    fabric.report(Event::TapFailed { port, error });
                    break;
                }
            };
            work += 1;
            counters.from_frames.add(1);
            counters.from_bytes.add(bytes.len() as u64);
            let slices = [GuestSlice::from_mut(bytes)];
            let data = GuestBuf::new(&slices);
            let Some(ethernet) = Ethernet::read(data) else {
                counters.count_drop(DropReason::Malformed);
                continue;
            };
            fabric.forward(
                port,
                &ethernet,
                Frame { header: Some(header), data, ethernet_len: ethernet.len, addresses: None },
            );
        }
        work
    }

    // Sleep

    /// Arms the rings, looks once more, and waits until something happens.
    fn sleep(&mut self) {
        let awaits_buffers = matches!(self.fabric.forward, Forward::Generate(_));
        let mut is_pending = false;
        let mut is_polled = false;
        let mut arm = |vring: &mut Vring| {
            is_pending |= vring.queue.arm();
            is_polled |= matches!(vring.kick, Kick::Polled);
        };
        for guest in self.fabric.ports.iter_mut().filter_map(Port::guest) {
            guest.senders().for_each(&mut arm);
            guest.lacking().for_each(&mut arm);
            if awaits_buffers {
                guest.starved().for_each(&mut arm);
            }
        }
        // A ring in memory that was taken away looks empty.
        for port in 0..self.fabric.ports.len() {
            if self.fabric.ports[port].guest().is_some() {
                self.fabric.check_memory(port);
            }
        }
        if !is_pending {
            self.wait(is_polled.then_some(&POLL_INTERVAL));
        }
        for (_, vring) in self.fabric.ports.iter_mut().filter_map(Port::guest).flat_map(GuestPort::vrings) {
            vring.queue.suppress();
        }
    }

    /// Waits for events, and notes them.
    fn wait(&mut self, limit: Option<&Timespec>) {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 32];
        self.counters.waits.add(1);
        let count = match epoll::wait(&self.epoll, &mut events, limit) {
            Ok(count) => count,
            // A signal; whatever is ready is so the next time.
            Err(Errno::INTR) => return,
            Err(errno) => panic!("epoll_wait on our own epoll: {errno}"),
        };
        for event in &events[..count] {
            match Token::decode(event.data) {
                Token::Command => {}
                Token::Kick(port) => self.fabric.ports[port].counters.kicks.add(1),
                Token::Tap(port) => {
                    if let PortKind::Tap { is_ready, .. } = &mut self.fabric.ports[port].kind {
                        *is_ready = true;
                    }
                }
            }
        }
    }
}

/// How to read the frames of a transmit ring.
#[derive(Clone, Copy)]
struct TxFormat {
    offloads: Offloads,
    header_len: usize,
    enabled: bool,
}

impl TxFormat {
    /// Reads a frame's headers, once.
    #[inline]
    fn read<'c>(&self, chain: &Chain<'c>) -> Result<(Ethernet, Frame<'c>), DropReason> {
        let buffer = chain.readable();
        let data = buffer.advance(self.header_len);
        if !(ETHERNET_LEN..=MAX_FRAME).contains(&data.len()) {
            return Err(DropReason::Malformed);
        }
        let ethernet = Ethernet::read(data).ok_or(DropReason::Malformed)?;
        Ok((
            ethernet,
            Frame {
                header: self.header(buffer, data.len())?,
                data,
                ethernet_len: ethernet.len,
                addresses: None,
            },
        ))
    }

    /// Reads the header before a frame of `len` bytes, once. A legacy header begins as a modern one does; the
    /// field it lacks means nothing here.
    #[inline]
    fn header(&self, buffer: GuestBuf<'_>, len: usize) -> Result<Option<Header>, DropReason> {
        let low = buffer.read_array::<8>().ok_or(DropReason::Malformed)?;
        let csum_offset = buffer.advance(8).read_array::<2>().ok_or(DropReason::Malformed)?;
        // Nearly all frames: no partial checksum (bit 0 of `flags`), nothing to segment (`gso_type`).
        if u64::from_le_bytes(low) & 0xff01 == 0 {
            return Ok(None);
        }
        let mut bytes = [0; size_of::<Header>()];
        bytes[..8].copy_from_slice(&low);
        bytes[8..10].copy_from_slice(&csum_offset);
        let sent: Header = zerocopy::transmute!(bytes);
        Ok(Some(self.offloads.check_sent(sent, len)?))
    }
}
