//! A disk's control thread: it serves the front-end, and does what the main thread orders.
//!
//! ```text
//!             go(parts)                       suspend: what is in flight is done, rings stop
//!   waiting ─────────────► serves one front-end after the other ─────────────► gives the parts back, waits
//!      ▲                          ▲                                                 │
//!      └──────────────────────────┼───────── nobody takes them any more: goes on ◄──┤
//!                                 └───────── go(parts): the upgrade failed ◄────────┘
//! ```
//!
//! All that it may have to wait for, it waits for here: for a ring to stop, for an image to tell its size.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SendError, Sender, SyncSender, TryRecvError, channel, sync_channel,
};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use ringway_block::disk::{DiskDevice, Event};
use ringway_block::image::Image;
use ringway_memory::MemoryError;
use ringway_queue::QueueError;
use ringway_vhost::Signal;
use ringway_vhost::endpoint::Endpoint;
use rustix::event::PollFlags;
use tracing::{error, info, warn};

use super::counters::DiskCounters;
use super::resize;
use crate::ask::Client;
use crate::serve::wait;

/// What a disk is made of. Its thread has it; in an upgrade, the main thread.
pub(crate) struct Parts {
    pub(super) endpoint: Endpoint<DiskDevice>,
    pub(super) image: Image,
}

/// What the main thread wants.
enum Order {
    /// Serve.
    Go(Box<Parts>),
    /// Stop all rings and give the parts, unless requests are still under way then.
    Suspend {
        until: Instant,
        give: SyncSender<Result<Box<Parts>>>,
    },
    Resize(resize::Request, Client),
}

/// A disk, as the main thread knows it.
pub(super) struct Disk {
    pub(super) name: String,
    pub(super) counters: DiskCounters,
    /// The thread ends when this is gone.
    orders: Option<Sender<Order>>,
    bell: Arc<Signal>,
    is_spent: Arc<AtomicBool>,
    /// Nothing comes here, and nothing can when the thread has ended.
    ended: Receiver<()>,
}

/// What a disk's thread has of it.
struct Mail {
    name: String,
    orders: Receiver<Order>,
    bell: Arc<Signal>,
    is_spent: Arc<AtomicBool>,
    /// Where the main thread hears that there is something to see.
    main: Arc<Signal>,
    _alive: Sender<()>,
}

impl Disk {
    /// A disk whose thread waits for its parts. `main` is rung when [`Disk::is_spent`] may have changed.
    pub(super) fn new(name: &str, counters: DiskCounters, main: &Arc<Signal>) -> Result<Self> {
        let (sender, orders) = channel();
        let (alive, ended) = channel();
        let (bell, is_spent) = (Arc::new(Signal::new()?), Arc::<AtomicBool>::default());
        let mail = Mail {
            name: name.to_owned(),
            orders,
            bell: Arc::clone(&bell),
            is_spent: Arc::clone(&is_spent),
            main: Arc::clone(main),
            _alive: alive,
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(move || mail.run()).with_context(|| format!("disk {name}: no thread"))?;
        Ok(Self { name: name.to_owned(), counters, orders: Some(sender), bell, is_spent, ended })
    }

    /// No front-end can come any more, or its thread has failed.
    pub(super) fn is_spent(&self) -> bool {
        self.is_spent.load(Ordering::Relaxed)
    }

    /// Has it serve.
    pub(super) fn go(&self, parts: Box<Parts>) {
        self.order(Order::Go(parts));
    }

    /// Has it change its size, or look what it is.
    pub(super) fn resize(&self, request: resize::Request, client: Client) {
        self.order(Order::Resize(request, client));
    }

    /// Has it stop its rings, if what is in flight is done in time.
    pub(super) fn suspend(&self, until: Instant) -> Suspended<'_> {
        let (give, parts) = sync_channel(0);
        self.order(Order::Suspend { until, give });
        Suspended { disk: self, until, parts }
    }

    /// Has it end.
    pub(super) fn end(&mut self) {
        self.orders = None;
        self.bell.raise();
    }

    /// Waits until it has ended, but not for longer.
    pub(super) fn wait(&self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        if self.ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            warn!("disk {}: ends with requests under way, which the storage does not answer", self.name);
        }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A thread that has failed said so.
            let _ = orders.send(order);
            self.bell.raise();
        }
    }
}

/// A disk that is about to stand still. Dropped, it goes on, now or when it would have stood still.
pub(super) struct Suspended<'d> {
    disk: &'d Disk,
    until: Instant,
    parts: Receiver<Result<Box<Parts>>>,
}

/// How much longer than it was told a disk may take to say that it cannot stand still.
const GRACE: Duration = Duration::from_millis(200);

impl Suspended<'_> {
    /// Waits for its parts.
    pub(super) fn parts(self) -> Result<Box<Parts>> {
        let left = (self.until + GRACE).saturating_duration_since(Instant::now());
        let parts = self.parts.recv_timeout(left);
        parts.unwrap_or_else(|_| Err(anyhow!(STUCK))).with_context(|| format!("disk {}", self.disk.name))
    }
}

/// Why a disk cannot stand still.
const STUCK: &str = "its requests do not come to an end";

/// Why a thread stops serving.
enum Stop {
    End,
    Give(SyncSender<Result<Box<Parts>>>),
}

impl Mail {
    fn run(self) {
        let Ok(Order::Go(mut parts)) = self.orders.recv() else { return };
        while let Stop::Give(to) = self.serve(&mut parts) {
            let Some(back) = self.give(parts, &to) else { return };
            parts = back;
        }
    }

    /// Stops the rings and gives the parts away; returns them when the disk is to go on here.
    fn give(&self, mut parts: Box<Parts>, to: &SyncSender<Result<Box<Parts>>>) -> Option<Box<Parts>> {
        parts.endpoint.suspend();
        if let Err(error) = parts.image.suspend() {
            parts.endpoint.resume();
            // Who does not wait any more has another reason.
            let _ = to.send(Err(error.into()));
            return Some(parts);
        }
        let mut parts = match to.send(Ok(parts)) {
            Ok(()) => match self.orders.recv() {
                Ok(Order::Go(parts)) => parts,
                _ => return None,
            },
            // Nobody waits for them any more.
            Err(SendError(unsent)) => unsent.ok()?,
        };
        if let Err(error) = parts.image.resume() {
            error!("disk {}: its requests will fail: {error}", self.name);
        }
        parts.endpoint.resume();
        Some(parts)
    }

    /// Serves the front-end until it is to stop.
    fn serve(&self, parts: &mut Parts) -> Stop {
        let mut is_turn = true;
        loop {
            if is_turn {
                parts.endpoint.turn();
            }
            for event in parts.endpoint.device_mut().events() {
                obey(&event, &mut parts.endpoint);
            }
            if parts.endpoint.is_spent() && !self.is_spent.swap(true, Ordering::Relaxed) {
                self.main.raise();
            }
            self.bell.clear();
            if let Some(stop) = self.carry_out_orders(parts) {
                return stop;
            }
            let sockets = parts.endpoint.interests().map(|(fd, flags)| (Some(0), fd, flags));
            let own = [self.bell.as_fd(), parts.endpoint.device().event_fd()];
            let own = own.into_iter().map(|fd| (None, fd, PollFlags::IN));
            let deadline = parts.endpoint.next_try().map(|at| (Some(0), at));
            match wait(sockets.chain(own), deadline.into_iter()) {
                Ok(turns) => is_turn = !turns.is_empty(),
                Err(errno) => {
                    error!("disk {}: cannot wait for events: {errno}", self.name);
                    return Stop::End;
                }
            }
        }
    }
    /// Does what the main thread wants; says if it is to stop serving.
    fn carry_out_orders(&self, parts: &mut Parts) -> Option<Stop> {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Suspend { until, give }) => {
                    let limit = until.saturating_duration_since(Instant::now());
                    if parts.endpoint.device().drain(limit) {
                        return Some(Stop::Give(give));
                    }
                    // Who does not wait any more knows.
                    let _ = give.send(Err(anyhow!(STUCK)));
                }
                Ok(Order::Resize(request, client)) => client.answer(self.resize(parts, &request)),
                // It serves already.
                Ok(Order::Go(_)) => {}
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(Stop::End),
            }
        }
    }

    fn resize(&self, parts: &mut Parts, request: &resize::Request) -> Result<resize::Resized> {
        let Parts { endpoint, image } = parts;
        let from = image.facts().size;
        let facts = match request.size {
            Some(size) => image.resize(size, request.shrink)?,
            None => image.refresh()?,
        };
        let to = facts.size;
        if endpoint.device_mut().set_size(to) {
            info!("disk {}: {from} bytes became {to}", self.name);
            endpoint.config_changed();
        }
        Ok(resize::Resized { disk: self.name.clone(), from, to })
    }
}

impl Drop for Mail {
    /// The thread ends, perhaps in a panic.
    fn drop(&mut self) {
        self.is_spent.store(true, Ordering::Relaxed);
        self.main.raise();
    }
}

/// Acts on what a queue's thread tells. Each is one line of the log.
fn obey(event: &Event, endpoint: &mut Endpoint<DiskDevice>) {
    let now = endpoint.device().session();
    match *event {
        Event::QueueFailed { session, index, ref error } if session == now => {
            warn!("{}: vring {index} is stopped until the driver resets it: {error}", endpoint.name());
            endpoint.device_mut().need_reset();
            endpoint.config_changed();
            if let QueueError::Memory(MemoryError::Denied { iova, access }) = *error {
                endpoint.access_failed(iova, access);
            }
        }
        Event::MemoryFault { session } if session == now => {
            endpoint.device_mut().lose_memory();
            endpoint.cut_off("the front-end took away memory that it had shared");
        }
        Event::TranslationMissing { session, missing } if session == now => endpoint.ask_translation(missing),
        // Of a session that has ended.
        Event::QueueFailed { .. } | Event::MemoryFault { .. } | Event::TranslationMissing { .. } => {}
    }
}
