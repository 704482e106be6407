//! A vring as its driver has it: the driver's half of the queue, where it is, and the wires beside it.
//!
//! ```text
//!   Vring::new ──► stopped ──Frontend::start──► started ──Frontend::stop──► stopped, at the base told
//!                     ▲                            │
//!                     └────Vring::recover──────────┘ the back-end is gone
//! ```
//!
//! The queue outlives the sessions in which it is used: what is in flight when a ring stops is still in flight when it
//! starts again.

use std::io;
use std::time::{Duration, Instant};

use ringway_memory::{FrontendVa, MemoryTable, RingArea};
use ringway_queue::{Areas, DriverConfig, DriverQueue, IndirectTables, ResumeState};
use ringway_spec::{feature, packed, split};

use super::bare::{BareVring, Signals, VringPlace};
use super::{Event, FrontendError, Memory};
use crate::message::VringAddresses;

/// What vring to make.
#[derive(Debug, Clone, Copy)]
pub struct VringConfig {
    /// Its index, below 256.
    pub index: u32,
    /// Number of descriptors; of a split ring a power of two.
    pub size: u16,
    /// Where it begins; `None`: where a new ring does.
    pub start: Option<ResumeState>,
    /// Segments that an indirect table has room for; 0: there are none. It takes `INDIRECT_DESC` to use them.
    pub table_entries: u16,
    /// How kicks and calls go.
    pub signals: Signals,
}

impl VringConfig {
    /// A vring of this index and size, with event counters and without indirect tables.
    pub fn new(index: u32, size: u16) -> Self {
        Self { index, size, start: None, table_entries: 0, signals: Signals::Events }
    }
}

/// A vring of our own, whose chains hold a `T` each while the device has them.
pub struct Vring<T> {
    bare: BareVring,
    queue: DriverQueue<T>,
    /// The used index is found there again.
    device_area: RingArea,
}

impl<T> Vring<T> {
    /// Makes a ring in `memory`, for use with these negotiated virtio features.
    ///
    /// # Errors
    /// [`FrontendError::Memory`] if there is no room, [`FrontendError::Queue`] for a size that cannot be.
    pub fn new(features: u64, config: VringConfig, memory: &mut Memory) -> Result<Self, FrontendError> {
        let VringConfig { index, size, start, table_entries, signals } = config;
        let is_packed = features & feature::RING_PACKED != 0;
        let lens = if is_packed {
            [packed::desc_area_size(size), packed::EVENT_SIZE, packed::EVENT_SIZE]
        } else {
            [split::desc_area_size(size), split::avail_area_size(size), split::used_area_size(size)]
        };
        let mut areas = [0; 3];
        for (area, len) in areas.iter_mut().zip(lens) {
            // Each in cache lines of its own: the two sides write to different ones.
            *area = memory.allocate(len as u64, 64)?;
        }
        let table = MemoryTable::new(vec![memory.region().clone()])?;
        let [descriptor, driver, device] = areas.map(|offset| memory.frontend_va(offset));
        let resolved = Areas::resolve(&table, size, features, descriptor, driver, device)?;
        let device_area = table.area(device, lens[2], 4)?;
        let tables = if table_entries > 0 {
            let len = usize::from(size) * usize::from(table_entries) * split::DESC_SIZE;
            let offset = memory.allocate(len as u64, 64)?;
            let area = table.area(memory.frontend_va(offset), len, 16)?;
            Some(IndirectTables { area, addr: memory.gpa(offset), entries: table_entries })
        } else {
            None
        };
        let at = start.unwrap_or(ResumeState::start(features));
        let config = DriverConfig { size, features, areas: resolved, start: at, max_chain: size, tables };
        let queue = DriverQueue::new(config)?;
        // With an IOMMU rings are named as the device finds them: here it finds all where the guest does.
        let named = |offset| {
            if features & feature::ACCESS_PLATFORM == 0 {
                memory.frontend_va(offset)
            } else {
                FrontendVa(memory.gpa(offset).0)
            }
        };
        let [descriptor, driver, device] = areas.map(named);
        let place = VringPlace {
            index,
            size,
            addresses: VringAddresses { descriptor, driver, device, log: None },
            log: memory.gpa(areas[2]),
            start: at,
        };
        Ok(Self { bare: BareVring::new(place, features, signals)?, queue, device_area })
    }

    /// Its index.
    pub fn index(&self) -> u32 {
        self.bare.index()
    }

    /// The driver's half of the queue.
    pub fn queue(&self) -> &DriverQueue<T> {
        &self.queue
    }

    /// The driver's half of the queue, to add chains and to reclaim them.
    pub fn queue_mut(&mut self) -> &mut DriverQueue<T> {
        &mut self.queue
    }

    /// Where the ring is, as messages name it.
    pub fn addresses(&self) -> VringAddresses {
        self.bare.addresses()
    }

    /// The virtio features that it was made for.
    pub fn features(&self) -> u64 {
        self.bare.features()
    }

    /// How kicks and calls go.
    pub fn signals(&self) -> Signals {
        self.bare.signals()
    }

    /// The counter that we kick by.
    pub fn kick(&self) -> &Event {
        self.bare.kick()
    }

    /// The counter that the device calls by.
    pub fn call(&self) -> &Event {
        self.bare.call()
    }

    /// The counter that tells of a ring which failed.
    pub fn err(&self) -> &Event {
        self.bare.err()
    }

    /// Shows the device what was added, and kicks it if it asked for that. A ring with signals in band is published by
    /// [`Frontend::publish`](super::Frontend::publish).
    ///
    /// # Errors
    /// The kernel's.
    pub fn publish(&mut self) -> io::Result<()> {
        if self.queue.publish() && self.signals() == Signals::Events {
            self.kick().signal()?;
        }
        Ok(())
    }

    /// Waits until the device has used a chain, or did wrong; false if neither came within `limit`. Only a ring with
    /// event counters can be waited for; of another this says how it is now.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        if self.signals() != Signals::Events {
            return Ok(self.queue.has_used());
        }
        wait_used(&mut self.queue, self.bare.call(), limit)
    }

    /// The vring base from which the ring is started.
    pub fn base(&self) -> u32 {
        self.bare.base
    }

    /// Says from where to start the ring. In flight must be what is between that and where the driver is.
    pub fn set_base(&mut self, base: u32) {
        self.bare.base = base;
    }

    /// Makes the ring ready to be started again after the back-end went, or was reset, without stopping it.
    ///
    /// A split ring goes on behind the last chain that was used: what the back-end had taken and not used, it finds
    /// again. Chains that it used out of order before one that it did not use are done twice then, unless the new
    /// back-end gets the [in-flight region](super::Inflight). A packed ring does not tell where it was; it goes on only
    /// with that region, or from a base that the caller says.
    pub fn recover(&mut self) {
        self.bare.is_started = false;
        if self.features() & feature::RING_PACKED == 0 {
            self.bare.base = self.device_area.load_u16_acquire(split::IDX).into();
        }
    }

    /// Gives up the ring, and returns what was in flight: once the device touches it no more, since it was reset or
    /// the ring stopped.
    ///
    /// # Errors
    /// The ring, if it is started.
    #[allow(clippy::result_large_err, reason = "a ring that is in use stays")]
    pub fn retire(self) -> Result<Vec<T>, Self> {
        let Self { bare, queue, device_area } = self;
        queue.reset(|| !bare.is_started).map_err(|queue| Self { bare, queue, device_area })
    }
}

impl<T> AsRef<BareVring> for Vring<T> {
    fn as_ref(&self) -> &BareVring {
        &self.bare
    }
}

impl<T> AsMut<BareVring> for Vring<T> {
    fn as_mut(&mut self) -> &mut BareVring {
        &mut self.bare
    }
}

/// Waits until the device has used a chain of `queue`, of which it tells by `call`, or did wrong; false if neither came
/// within `limit`.
///
/// # Errors
/// The kernel's.
pub fn wait_used<T>(queue: &mut DriverQueue<T>, call: &Event, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    // A call may be about chains reclaimed long ago, or about none: a device may call at any time (2.7.7.1).
    call.take()?;
    while !queue.arm() {
        let left = deadline.saturating_duration_since(Instant::now());
        if call.wait(left)? == 0 || left.is_zero() {
            break;
        }
    }
    queue.suppress();
    Ok(queue.has_used())
}
