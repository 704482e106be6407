//! `virtio-queue` for a device and `virtio-drivers` for a driver, each used in the fastest way that its interface
//! allows.

#![allow(unsafe_code, reason = "the interface of virtio-drivers asks for it")]

use std::cell::Cell as StdCell;
use std::hint::black_box;
use std::ptr::NonNull;

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use crate::cell::{CHAINS, Cell, Contestant, Half};
use crate::memory::{BUFFER, Memory, PAGE, Rings, SIZE};
use crate::raw::{self, Device as _, Driver as _};

/// Nobody, if the cell is nothing that they can do.
pub(crate) fn contestant(cell: Cell) -> Option<Box<dyn Contestant>> {
    let memory = Memory::new();
    Some(match cell.half {
        // Its indirect tables are on the heap, which is no memory of the device's.
        Half::Both if cell.indirect => return None,
        Half::Both => {
            let (driver, rings) = Driver::new(memory, cell);
            Box::new(Loop { driver, device: Device::new(memory, rings) })
        }
        Half::Device => {
            let rings = memory.rings();
            let driver = raw::SplitDriver::new(memory, rings, cell);
            Box::new(DeviceAlone { driver, device: Device::new(memory, rings) })
        }
        Half::Driver => {
            let (driver, rings) = Driver::new(memory, cell);
            Box::new(DriverAlone { driver, device: raw::SplitDevice::new(memory, rings, cell) })
        }
    })
}

struct Device {
    queue: Queue,
    memory: &'static GuestMemoryMmap,
    chains: Vec<Taken>,
    /// Address here and length of the chains' buffers.
    slices: Vec<(*mut u8, usize)>,
}

struct Taken {
    head: u16,
    first: usize,
    writable_len: u32,
}

impl Device {
    fn new(memory: &'static Memory, rings: Rings) -> Self {
        let halves = |addr: u64| (Some(addr as u32), Some((addr >> 32) as u32));
        let mut queue = Queue::new(SIZE as u16).expect("a queue");
        let (low, high) = halves(rings.descriptor);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(rings.driver);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(rings.device);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(true);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory.map), "a queue in memory");
        let (chains, slices) = (Vec::with_capacity(CHAINS.into()), Vec::with_capacity(SIZE));
        Self { queue, memory: &memory.map, chains, slices }
    }

    #[inline]
    fn serve(&mut self) {
        self.chains.clear();
        self.slices.clear();
        // The iterator borrows the queue, so chains are returned after it.
        for chain in self.queue.iter(self.memory).expect("a good ring") {
            let (head, first) = (chain.head_index(), self.slices.len());
            let mut writable_len = 0;
            for descriptor in chain {
                let len = descriptor.len();
                let slice = self.memory.get_slice(descriptor.addr(), len as usize).expect("in memory");
                writable_len += if descriptor.is_write_only() { len } else { 0 };
                self.slices.push((slice.ptr_guard_mut().as_ptr(), slice.len()));
            }
            self.chains.push(Taken { head, first, writable_len });
        }
        for chain in &self.chains {
            black_box(self.slices.get(chain.first));
            let written = chain.writable_len / BUFFER as u32;
            self.queue.add_used(self.memory, chain.head, written).expect("in memory");
        }
        black_box(self.queue.needs_notification(self.memory).expect("in memory"));
    }
}

thread_local! {
    /// Where the next queue of `virtio-drivers` has its rings: its interface leaves no other way.
    static MEMORY: StdCell<Option<&'static Memory>> = const { StdCell::new(None) };
}

/// Addresses are the same for the device.
struct Identity;

// SAFETY: `dma_alloc` returns zeroed pages that are never used for anything else.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let memory = MEMORY.get().expect("set before a queue is made");
        let addr = memory.alloc(pages * PAGE, PAGE);
        (addr, NonNull::new(addr as *mut u8).expect("mapped"))
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("there are no registers")
    }

    #[inline]
    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as PhysAddr
    }

    #[inline]
    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// Learns where a queue's rings are.
impl Transport for Rings {
    fn queue_set(
        &mut self,
        _queue: u16,
        _size: u32,
        descriptor: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        *self = Self { descriptor, driver, device };
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        SIZE as u32
    }

    fn queue_used(&mut self, _queue: u16) -> bool {
        false
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }

    fn read_device_features(&mut self) -> u64 {
        0
    }

    fn write_driver_features(&mut self, _features: u64) {}

    fn notify(&mut self, _queue: u16) {}

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::empty()
    }

    fn set_status(&mut self, _status: DeviceStatus) {}

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn queue_unset(&mut self, _queue: u16) {}

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T>(&self, _offset: usize) -> virtio_drivers::Result<T> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }

    fn write_config_space<T>(&mut self, _offset: usize, _value: T) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }
}

struct Driver {
    queue: Box<VirtQueue<Identity, SIZE>>,
    /// By chain.
    buffers: Vec<Buffers>,
    /// By token: whose buffers are lent.
    lent: Vec<Buffers>,
    segments: u16,
    burst: usize,
}

/// Where a chain's buffers begin: room for three, one after the other.
#[derive(Clone, Copy)]
struct Buffers(*mut u8);

impl Buffers {
    /// The first, which is to be read, and the others.
    ///
    /// # Safety
    /// No other slice of them is in use.
    #[inline]
    unsafe fn slices<'a>(self) -> (&'a [u8], &'a mut [u8], &'a mut [u8]) {
        let slice = |i: usize| {
            // SAFETY: allocated for three of them; the caller's.
            unsafe { std::slice::from_raw_parts_mut(self.0.wrapping_add(i * BUFFER), BUFFER) }
        };
        (slice(0), slice(1), slice(2))
    }
}

impl Driver {
    fn new(memory: &'static Memory, cell: Cell) -> (Self, Rings) {
        MEMORY.set(Some(memory));
        let mut rings = Rings::default();
        let queue = VirtQueue::new(&mut rings, 0, cell.indirect, true).expect("a queue");
        let len = 3 * BUFFER;
        let buffers: Vec<_> = (0..CHAINS).map(|_| Buffers(memory.alloc(len, BUFFER) as *mut u8)).collect();
        let lent = vec![buffers[0]; SIZE];
        let (segments, burst) = (cell.segments, cell.burst.into());
        (Self { queue: Box::new(queue), buffers, lent, segments, burst }, rings)
    }

    #[inline]
    fn submit(&mut self) {
        for &buffers in &self.buffers[..self.burst] {
            // SAFETY: nobody else uses them, and they are lent once at a time.
            let (first, second, third) = unsafe { buffers.slices() };
            let token = if self.segments == 1 {
                // SAFETY: the buffers are left alone until `reclaim`.
                unsafe { self.queue.add(&[first], &mut []) }
            } else {
                // SAFETY: as before.
                unsafe { self.queue.add(&[first], &mut [second, third]) }
            };
            self.lent[usize::from(token.expect("room"))] = buffers;
        }
        black_box(self.queue.should_notify());
    }

    #[inline]
    fn reclaim(&mut self) {
        let mut count = 0;
        while let Some(token) = self.queue.peek_used() {
            let buffers = self.lent[usize::from(token)];
            // SAFETY: nobody else uses them.
            let (first, second, third) = unsafe { buffers.slices() };
            let written = if self.segments == 1 {
                // SAFETY: the buffers that were added under this token.
                unsafe { self.queue.pop_used(token, &[first], &mut []) }
            } else {
                // SAFETY: as before.
                unsafe { self.queue.pop_used(token, &[first], &mut [second, third]) }
            };
            black_box((buffers.0, written.expect("a good ring")));
            count += 1;
        }
        assert_eq!(count, self.burst, "all was used");
    }
}

struct Loop {
    driver: Driver,
    device: Device,
}

impl Contestant for Loop {
    fn run(&mut self, bursts: u64) {
        for _ in 0..bursts {
            self.driver.submit();
            self.device.serve();
            self.driver.reclaim();
        }
    }
}

struct DeviceAlone {
    driver: raw::SplitDriver,
    device: Device,
}

impl Contestant for DeviceAlone {
    fn run(&mut self, bursts: u64) {
        for _ in 0..bursts {
            self.driver.offer();
            self.device.serve();
            self.driver.check();
        }
    }
}

struct DriverAlone {
    driver: Driver,
    device: raw::SplitDevice,
}

impl Contestant for DriverAlone {
    fn run(&mut self, bursts: u64) {
        for _ in 0..bursts {
            self.driver.submit();
            self.device.serve();
            self.driver.reclaim();
        }
    }
}
