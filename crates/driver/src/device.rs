//! A device from its driver's side, whatever its type: initialization by the book (3.1.1), configuration, the end.
//!
//! ```text
//!   reset ─► ACKNOWLEDGE ─► DRIVER ─► features ─► FEATURES_OK ─ still set? ─► queues ─► DRIVER_OK ─► live
//!     ▲  awaited                                     │ no                       │ error              │
//!     │                                              └────────► reset, FAILED ◄─┘                    │
//!     └──────────────────── drop, stop: awaited; only then is its memory given back ◄────────────────┘
//! ```
//!
//! Suspending a device (3.4) is not here, nor are administration queues and shared memory regions.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use ringway_memory::{FrontendVa, Gpa, MemoryError, MemoryTable, Region, SharedBuf};
use ringway_queue::{Areas, DriverConfig, DriverQueue, IndirectTables, ResumeState};
use ringway_spec::status::DeviceStatus;
use ringway_spec::{feature, packed, split};

use crate::{Error, Interrupt, Platform, QueueSetup, Transport, TransportError, Virtqueue};

/// The features of rings, and of every device, that drivers here understand. `ORDER_PLATFORM` is not among them: the rings'
/// barriers are for devices that are software.
const UNDERSTOOD: u64 = feature::VERSION_1
    | feature::RING_INDIRECT_DESC
    | feature::RING_EVENT_IDX
    | feature::RING_PACKED
    | feature::IN_ORDER
    | feature::ACCESS_PLATFORM;
/// Each area of a ring in cache lines of its own: the two sides write to different ones.
const AREA_ALIGN: u64 = 64;

/// What a driver wants of its device.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The device's type (5).
    pub id: u32,
    /// Features of this type that the driver understands.
    pub features: u64,
    /// Features, of any kind, without which it cannot work. `VERSION_1` always is one.
    pub required: u64,
    /// Pairs of a feature and one that it requires: without the other it is not accepted.
    pub requires: &'static [(u64, u64)],
    /// Features, of any kind, that are not to be accepted.
    pub without: u64,
}

impl Wanted {
    /// What to accept of what is offered (2.2.1): nothing that is not understood, nothing that lacks what it requires.
    fn choose(&self, offered: u64, carried: u64) -> Result<u64, Error> {
        let mut accepted = offered & (UNDERSTOOD | carried | self.features) & !self.without;
        while let Some(&(feature, _)) =
            self.requires.iter().find(|(feature, other)| accepted & feature != 0 && accepted & other == 0)
        {
            accepted &= !feature;
        }
        let missing = (self.required | feature::VERSION_1) & !accepted;
        if missing == 0 { Ok(accepted) } else { Err(Error::LacksFeatures { missing }) }
    }
}

/// How a queue shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueOptions {
    /// The most descriptors; the device may have less. Of a split queue it is a power of two, or the next smaller one.
    pub max_size: u16,
    /// Segments that an indirect table has room for; 0: there are no tables.
    pub table_entries: u16,
    /// The interrupt for used chains, where there are several (MSI-X).
    pub vector: Option<u16>,
}

impl Default for QueueOptions {
    /// 256 descriptors, no tables, no interrupt of its own.
    fn default() -> Self {
        Self { max_size: 256, table_entries: 0, vector: None }
    }
}

/// A device that is set up, or being set up. Dropped, it is reset.
///
/// It keeps all memory that the device was told of until the device has been reset; if that fails, the memory is never
/// given back. A queue that is dropped after its device frees what it had lent; one that is dropped before never does.
pub struct Device<T: Transport> {
    /// There until the device is stopped.
    transport: Option<T>,
    platform: Arc<dyn Platform>,
    features: u64,
    /// What the device was told of: rings, by their queue, and buffers.
    memory: Vec<(Option<u16>, Region)>,
    /// For queues: the device has been reset, and touches nothing of theirs any more.
    is_reset: Arc<AtomicBool>,
}

/// A device that was reset, and has forgotten all it was told.
pub struct Stopped<T> {
    transport: T,
}

impl<T> Stopped<T> {
    /// The way to the device, to set it up anew.
    pub fn into_transport(self) -> T {
        self.transport
    }
}

impl<T: Transport> Device<T> {
    /// Initializes a device (3.1.1). `set_up` does what is particular to its type: it reads the configuration, makes queues
    /// and fills them. It must not kick: the device is not live before this function returns.
    ///
    /// # Errors
    /// Any; the device is then left reset and marked as `FAILED`.
    pub fn set_up<R>(
        transport: T,
        platform: Arc<dyn Platform>,
        wanted: &Wanted,
        set_up: impl FnOnce(&mut Self) -> Result<R, Error>,
    ) -> Result<(Self, R), Error> {
        let found = transport.device_id();
        if found != wanted.id {
            return Err(Error::WrongDevice { found, wanted: wanted.id });
        }
        let (memory, is_reset) = (Vec::new(), Arc::default());
        let mut device = Self { transport: Some(transport), platform, features: 0, memory, is_reset };
        match device.initialize(wanted, set_up) {
            Ok(result) => Ok((device, result)),
            Err(error) => {
                device.give_up();
                Err(error)
            }
        }
    }

    fn initialize<R>(
        &mut self,
        wanted: &Wanted,
        set_up: impl FnOnce(&mut Self) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.reset()?;
        let mut status = DeviceStatus::ACKNOWLEDGE;
        self.transport_mut().set_status(status)?;
        status |= DeviceStatus::DRIVER;
        self.transport_mut().set_status(status)?;

        let carried = self.transport_mut().carries();
        let offered = self.transport_mut().offered()?;
        let features = wanted.choose(offered, carried)?;
        self.transport_mut().accept(features)?;
        status |= DeviceStatus::FEATURES_OK;
        self.transport_mut().set_status(status)?;
        if !self.transport_mut().status()?.contains(DeviceStatus::FEATURES_OK) {
            return Err(Error::FeaturesRefused { features });
        }
        self.features = features;

        let result = set_up(self)?;
        self.transport_mut().set_status(status | DeviceStatus::DRIVER_OK)?;
        Ok(result)
    }

    /// Leaves the device to whoever looks at it: reset, so that it has forgotten our memory, and marked.
    fn give_up(mut self) {
        let is_reset = self.end().is_ok();
        if let Some(mut transport) = self.transport.take() {
            // What went wrong is the caller's to be told; there may be no way to the device any more.
            let _ = transport.set_status(DeviceStatus::FAILED);
        }
        if !is_reset {
            self.forget_memory();
        }
    }

    /// Never gives the memory back: the device may still write to it.
    fn forget_memory(&mut self) {
        core::mem::forget(core::mem::take(&mut self.memory));
    }

    /// Resets the device for good: what its queues had lent is free.
    fn end(&mut self) -> Result<(), Error> {
        self.reset()?;
        self.is_reset.store(true, Ordering::Release);
        Ok(())
    }

    /// Resets the device, and waits until it has (2.4.2).
    fn reset(&mut self) -> Result<(), Error> {
        self.transport_mut().begin_reset()?;
        self.wait_until("a reset", |transport| Ok(transport.status()?.is_empty()))
    }

    /// Asks again and again, as long as the platform has the patience.
    fn wait_until(
        &mut self,
        what: &'static str,
        mut is_so: impl FnMut(&mut T) -> Result<bool, TransportError>,
    ) -> Result<(), Error> {
        let mut round = 0;
        while !is_so(self.transport_mut())? {
            if !self.platform.wait(round) {
                return Err(Error::TimedOut { what });
            }
            round = round.saturating_add(1);
        }
        Ok(())
    }

    /// The negotiated features.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether a feature was negotiated, all of them if several are given.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }

    /// The way to the device, for what it has and this type has not.
    ///
    /// # Panics
    /// Never: there is one until the device is stopped.
    pub fn transport_mut(&mut self) -> &mut T {
        self.transport.as_mut().expect("a device that was not stopped has a transport")
    }

    /// See [`Platform::wait`]: for drivers that wait for a chain.
    pub fn wait(&self, round: u32) -> bool {
        self.platform.wait(round)
    }

    // Configuration

    /// Reads fields of the configuration that belong together: again, until nothing has changed meanwhile (2.5.1). What
    /// belongs to a feature that was not negotiated is not to be read.
    ///
    /// # Errors
    /// Those of `read`; [`Error::TimedOut`] if the configuration never stands still.
    pub fn config<R>(
        &mut self,
        mut read: impl FnMut(&mut Config<'_, T>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut round = 0;
        loop {
            let before = self.transport_mut().generation()?;
            let result = read(&mut Config { transport: self.transport_mut() });
            if self.transport_mut().generation()? == before {
                return result;
            }
            if !self.platform.wait(round) {
                return Err(Error::TimedOut { what: "a configuration that stays" });
            }
            round = round.saturating_add(1);
        }
    }

    /// Writes a field of one byte.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn write_config_u8(&mut self, offset: usize, value: u8) -> Result<(), Error> {
        Ok(self.transport_mut().write_config(offset, &[value])?)
    }

    /// Writes a field of two bytes.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn write_config_u16(&mut self, offset: usize, value: u16) -> Result<(), Error> {
        Ok(self.transport_mut().write_config(offset, &value.to_le_bytes())?)
    }

    /// Writes a field of four bytes.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn write_config_u32(&mut self, offset: usize, value: u32) -> Result<(), Error> {
        Ok(self.transport_mut().write_config(offset, &value.to_le_bytes())?)
    }

    // Memory and queues

    /// Memory that the device reaches, kept until the device is reset, or the queue that it is for.
    fn allocate(&mut self, len: u64, queue: Option<u16>) -> Result<Region, Error> {
        let region = self.platform.allocate(len)?;
        if region.len() < len {
            return Err(MemoryError::BadSize { addr: region.gpa(), len: region.len() }.into());
        }
        self.memory.push((queue, region.clone()));
        Ok(region)
    }

    /// `count` buffers of `len` bytes, to lend to the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Memory`] if `len` is 0.
    pub fn buffers(&mut self, count: usize, len: u32) -> Result<Vec<SharedBuf>, Error> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let total = count as u64 * u64::from(len);
        let region = self.allocate(total, None)?;
        Ok(SharedBuf::divide(&region, 0..total, len)?.take(count).collect())
    }

    /// Makes queue `index`, and tells the device of it. Only while the device is set up, or after the queue was reset.
    ///
    /// # Errors
    /// [`Error::NoQueue`] if the device has none, and those of memory and transport.
    pub fn queue<O>(
        &mut self,
        index: u16,
        options: QueueOptions,
    ) -> Result<Virtqueue<O, T::Notifier>, Error> {
        let features = self.features;
        let max_size = self.transport_mut().max_queue_size(index)?.min(options.max_size);
        let is_packed = features & feature::RING_PACKED != 0;
        let size = match max_size {
            0 => return Err(Error::NoQueue { index }),
            size if is_packed => size.min(packed::MAX_SIZE),
            size => 1 << size.min(split::MAX_SIZE).ilog2(),
        };
        let place = Place::new(size, is_packed, options.table_entries);
        let region = self.allocate(place.len, Some(index))?;
        let va = |offset: u64| FrontendVa(region.frontend_va().0 + offset);
        let gpa = |offset: u64| Gpa(region.gpa().0 + offset);
        let table = MemoryTable::new(vec![region.clone()])?;
        let [descriptor, driver, device] = place.areas;
        let areas = Areas::resolve(&table, size, features, va(descriptor), va(driver), va(device))?;
        let tables = (options.table_entries > 0).then(|| {
            let area =
                table.area(va(place.tables), (place.len - place.tables) as usize, split::DESC_ALIGN)?;
            Ok::<_, MemoryError>(IndirectTables {
                area,
                addr: gpa(place.tables),
                entries: options.table_entries,
            })
        });
        let start = ResumeState::start(features);
        let tables = tables.transpose()?;
        let config = DriverConfig { size, features, areas, start, max_chain: size, tables };
        let mut queue = DriverQueue::new(config)?;
        queue.free_after(Arc::clone(&self.is_reset));
        let setup = QueueSetup {
            size,
            features,
            descriptor: gpa(descriptor),
            driver: gpa(driver),
            device: gpa(device),
            vector: options.vector,
        };
        let notifier = self.transport_mut().set_up_queue(index, &setup)?;
        Ok(Virtqueue::new(index, queue, notifier))
    }

    /// Resets a queue alone (2.6.1), and returns what it had in flight; then it can be [made](Device::queue) again.
    ///
    /// # Errors
    /// [`Error::NotNegotiated`] without `RING_RESET`, and those of the transport. The queue's buffers are lost then, until
    /// the device is reset.
    pub fn reset_queue<O>(&mut self, queue: Virtqueue<O, T::Notifier>) -> Result<Vec<O>, Error> {
        if !self.has(feature::RING_RESET) {
            return Err(Error::NotNegotiated { feature: feature::RING_RESET });
        }
        let index = queue.index();
        self.transport_mut().reset_queue(index)?;
        self.wait_until("a queue's reset", |transport| transport.is_queue_reset(index))?;
        self.memory.retain(|(queue, _)| *queue != Some(index));
        Ok(queue.end())
    }

    // Life

    /// What the interrupt that has come is about. It is acknowledged with this.
    ///
    /// # Errors
    /// [`Error::NeedsReset`] if the device says with it that it has failed.
    pub fn interrupt(&mut self) -> Result<Interrupt, Error> {
        let interrupt = self.transport_mut().interrupt()?;
        if interrupt.contains(Interrupt::CONFIG) {
            self.check()?;
        }
        Ok(interrupt)
    }

    /// Asks the device whether it works.
    ///
    /// # Errors
    /// [`Error::NeedsReset`]: nothing that is in flight will be done (2.1.1).
    pub fn check(&mut self) -> Result<(), Error> {
        let status = self.transport_mut().status()?;
        if status.contains(DeviceStatus::DEVICE_NEEDS_RESET) { Err(Error::NeedsReset) } else { Ok(()) }
    }

    /// Resets the device, so that its queues can be [retired](Virtqueue::retire), and it be set up anew.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the device does not come to it; it is asked once more as `self` is dropped.
    ///
    /// # Panics
    /// Never.
    pub fn stop(mut self) -> Result<Stopped<T>, Error> {
        self.end()?;
        let transport = self.transport.take().expect("a device that was not stopped has a transport");
        Ok(Stopped { transport })
    }
}

impl<T: Transport> Drop for Device<T> {
    fn drop(&mut self) {
        if self.transport.is_some() && self.end().is_err() {
            self.forget_memory();
        }
    }
}

/// Where the parts of a queue are in their memory.
struct Place {
    /// Descriptor, driver, device.
    areas: [u64; 3],
    tables: u64,
    len: u64,
}

impl Place {
    fn new(size: u16, is_packed: bool, table_entries: u16) -> Self {
        let lens = if is_packed {
            [packed::desc_area_size(size), packed::EVENT_SIZE, packed::EVENT_SIZE]
        } else {
            [split::desc_area_size(size), split::avail_area_size(size), split::used_area_size(size)]
        };
        let mut end = 0;
        let areas = lens.map(|len| {
            let start = end;
            end = (start + len as u64).next_multiple_of(AREA_ALIGN);
            start
        });
        let tables = u64::from(size) * u64::from(table_entries) * split::DESC_SIZE as u64;
        Self { areas, tables: end, len: end + tables }
    }
}

/// The device's configuration, while it is read.
pub struct Config<'a, T> {
    transport: &'a mut T,
}

impl<T: Transport> Config<'_, T> {
    /// A field of one byte.
    ///
    /// # Errors
    /// Those of the transport, as of all that follow.
    pub fn u8(&mut self, offset: usize) -> Result<u8, Error> {
        self.field(offset).map(u8::from_le_bytes)
    }

    /// A field of two bytes.
    pub fn u16(&mut self, offset: usize) -> Result<u16, Error> {
        self.field(offset).map(u16::from_le_bytes)
    }

    /// A field of four bytes.
    pub fn u32(&mut self, offset: usize) -> Result<u32, Error> {
        self.field(offset).map(u32::from_le_bytes)
    }

    /// A field of eight bytes, read in halves.
    pub fn u64(&mut self, offset: usize) -> Result<u64, Error> {
        Ok(u64::from(self.u32(offset)?) | u64::from(self.u32(offset + 4)?) << 32)
    }

    /// A field of bytes.
    pub fn bytes<const N: usize>(&mut self, offset: usize) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        for (offset, byte) in (offset..).zip(&mut bytes) {
            *byte = self.u8(offset)?;
        }
        Ok(bytes)
    }

    fn field<const N: usize>(&mut self, offset: usize) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.transport.read_config(offset, &mut bytes)?;
        Ok(bytes)
    }
}
