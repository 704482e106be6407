//! The driver's half of `virtio-drivers` against our device's half of a split ring.
//!
//! ```text
//!   VirtQueue ──share: copied into──► the guest's memory, mapped twice ──► DeviceQueue
//! ```
//!
//! Their driver copies nothing by itself: it asks a `Hal` for memory, and for the device's address of each
//! buffer.
//! Ours gives pages of the guest's memory, and copies buffers there and back.

#![allow(
    unsafe_code,
    reason = "their queue takes its memory from an unsafe trait, and buffers by unsafe calls"
)]

mod common;
mod foreign;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;

use common::{BASE, FRONTEND, Guest};
use foreign::memory;
use ringway_memory::FrontendVa;
use ringway_queue::{Areas, Burst, DeviceQueue, InFlight, QueueConfig, ResumeState};
use ringway_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The guest's memory as their driver has it.
struct Shared {
    memory: GuestMemoryMmap,
    /// Pages never given out, and those given back.
    fresh: u64,
    free: Vec<u64>,
}

impl Shared {
    /// `count` pages in a row; single ones are used again.
    fn pages(&mut self, count: usize) -> u64 {
        if count == 1
            && let Some(page) = self.free.pop()
        {
            return page;
        }
        let at = self.fresh;
        self.fresh += (count * PAGE_SIZE) as u64;
        at
    }
}

thread_local! {
    // A `Hal` has no `self`: each test has its guest in its thread.
    static SHARED: RefCell<Option<Shared>> = const { RefCell::new(None) };
}

fn with_shared<T>(f: impl FnOnce(&mut Shared) -> T) -> T {
    SHARED.with_borrow_mut(|shared| f(shared.as_mut().expect("a guest")))
}

struct GuestHal;

// SAFETY: pages are mapped for as long as the guest of this thread is, which the test keeps until its queues
// are gone; they are aligned, zeroed, and given to nobody else until they come back.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        with_shared(|shared| {
            let at = shared.pages(pages);
            shared.memory.write_slice(&vec![0; pages * PAGE_SIZE], GuestAddress(at)).expect("in memory");
            let host = shared.memory.get_host_address(GuestAddress(at)).expect("in memory");
            (at, NonNull::new(host).expect("memory is not at null"))
        })
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        with_shared(|shared| shared.free.extend((0..pages).map(|n| paddr + (n * PAGE_SIZE) as u64)));
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("there is no bus")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        assert!(buffer.len() <= PAGE_SIZE);
        with_shared(|shared| {
            let at = shared.pages(1);
            // SAFETY: the caller says that the buffer is valid and that nobody else touches it.
            let bytes = unsafe { buffer.as_ref() };
            shared.memory.write_slice(bytes, GuestAddress(at)).expect("in memory");
            at
        })
    }

    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        with_shared(|shared| {
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: as for `share`; a buffer that the device wrote to came to them as `&mut`.
                let bytes = unsafe { buffer.as_mut() };
                shared.memory.read_slice(bytes, GuestAddress(paddr)).expect("in memory");
            }
            shared.free.push(paddr);
        });
    }
}

/// A transport that does no more than to keep where the queue's areas are.
#[derive(Default)]
struct Addresses {
    size: u32,
    at: [PhysAddr; 3],
}

impl Transport for Addresses {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }

    fn read_device_features(&mut self) -> u64 {
        0
    }

    fn write_driver_features(&mut self, _features: u64) {}

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        32768
    }

    fn notify(&mut self, _queue: u16) {}

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::empty()
    }

    fn set_status(&mut self, _status: DeviceStatus) {}

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, _queue: u16, size: u32, desc: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        *self = Self { size, at: [desc, driver, device] };
    }

    fn queue_unset(&mut self, _queue: u16) {}

    fn queue_used(&mut self, _queue: u16) -> bool {
        false
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, _offset: usize) -> virtio_drivers::Result<T> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }
}

/// A number below `n`, from a generator with a long period (xorshift).
fn below(state: &mut u64, n: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % n as u64) as usize
}

/// What a side writes into a chain.
fn noise(tag: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (tag.wrapping_mul(0x9e37) ^ i.wrapping_mul(0x3b)) as u8).collect()
}

/// A chain of their driver: what they know it by, its buffers, and what our device answered.
struct Lent {
    tag: u64,
    token: u16,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    answer: Vec<u8>,
}

impl Lent {
    fn new(tag: u64, size: usize, seed: &mut u64) -> Self {
        // They take neither empty buffers nor empty chains.
        let mut buffers =
            |count| -> Vec<Vec<u8>> { (0..count).map(|_| vec![0; 1 + below(seed, 50)]).collect() };
        let (inputs, outputs) = match tag % 5 {
            0 => (buffers(1), buffers(0)),
            1 => (buffers(0), buffers(1)),
            2 if size >= 4 => (buffers(2), buffers(2)),
            _ => (buffers(1), buffers(1)),
        };
        let mut lent = Self { tag, token: 0, inputs, outputs, answer: Vec::new() };
        let sent = noise(tag, lent.inputs.iter().map(Vec::len).sum());
        let mut rest = sent.as_slice();
        for input in &mut lent.inputs {
            let (part, behind) = rest.split_at(input.len());
            input.copy_from_slice(part);
            rest = behind;
        }
        lent
    }

    fn room(&self) -> usize {
        self.outputs.iter().map(Vec::len).sum()
    }

    /// Its buffers in the form in which they are added and popped.
    fn with_buffers<T>(&mut self, f: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> T) -> T {
        let inputs: Vec<&[u8]> = self.inputs.iter().map(Vec::as_slice).collect();
        let mut outputs: Vec<&mut [u8]> = self.outputs.iter_mut().map(Vec::as_mut_slice).collect();
        f(&inputs, &mut outputs)
    }
}

/// Their driver and our device.
struct Mixed<const SIZE: usize> {
    driver: VirtQueue<GuestHal, SIZE>,
    device: DeviceQueue,
    features: u64,
    burst: Burst,
    seed: u64,
    available: VecDeque<Lent>,
    taken: Vec<(InFlight, Lent)>,
    used: VecDeque<Lent>,
    added: u64,
    completed: u64,
    reclaimed: u64,
    is_suppressed: bool,
}

impl<const SIZE: usize> Drop for Mixed<SIZE> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("with a queue of {SIZE}, features {:#x}, after {} chains", self.features, self.added);
        }
    }
}

impl<const SIZE: usize> Mixed<SIZE> {
    fn new(features: u64) -> Self {
        let (guest, theirs) = memory();
        // Not at 0, which they take for a failure.
        SHARED.set(Some(Shared { memory: theirs, fresh: BASE, free: Vec::new() }));
        let mut transport = Addresses::default();
        let (is_indirect, has_event) = (features & RING_INDIRECT_DESC != 0, features & RING_EVENT_IDX != 0);
        let driver = VirtQueue::new(&mut transport, 0, is_indirect, has_event).expect("a queue");
        assert_eq!(transport.size as usize, SIZE);
        Self {
            driver,
            device: device(&guest, SIZE as u16, features, transport.at),
            features,
            burst: Burst::default(),
            seed: SIZE as u64 + 1,
            available: VecDeque::new(),
            taken: Vec::new(),
            used: VecDeque::new(),
            added: 0,
            completed: 0,
            reclaimed: 0,
            is_suppressed: false,
        }
    }

    /// They add up to `max` chains, each visible at once.
    fn add(&mut self, max: usize) {
        for _ in 0..max {
            let mut lent = Lent::new(self.added, SIZE, &mut self.seed);
            let driver = &mut self.driver;
            // SAFETY: the buffers are kept, untouched, until they are popped with this token.
            let added = lent.with_buffers(|inputs, outputs| unsafe { driver.add(inputs, outputs) });
            let Ok(token) = added else { return };
            lent.token = token;
            self.available.push_back(lent);
            self.added += 1;
        }
    }

    /// Our device takes up to `max`, reads and answers them.
    fn take(&mut self, max: usize) {
        let count = self.device.take(&mut self.burst, max).expect("a good ring");
        assert!(count <= max && (count > 0 || max == 0 || self.available.is_empty()));
        for _ in 0..count {
            let chain = self.burst.next().expect("it was taken");
            let mut lent = self.available.pop_front().expect("it was added");
            let mut read = vec![0; chain.readable().len()];
            assert_eq!(chain.readable().read(&mut read), read.len());
            assert_eq!(read, lent.inputs.concat());
            assert_eq!(chain.writable().len(), lent.room());
            lent.answer = noise(!lent.tag, below(&mut self.seed, 1 + lent.room()));
            assert_eq!(chain.writable().write(&lent.answer), lent.answer.len());
            self.taken.push((chain.detach(), lent));
        }
    }

    /// Our device completes `count` of the chains it has, whichever, and calls if they asked for it: with
    /// `EVENT_IDX` they do at every chain that they take back.
    fn complete(&mut self, count: usize) {
        let before = self.completed;
        for _ in 0..count {
            let which = below(&mut self.seed, self.taken.len());
            let (chain, lent) = self.taken.swap_remove(which);
            self.device.complete(chain, lent.answer.len() as u32);
            self.used.push_back(lent);
            self.completed += 1;
        }
        let is_due = if self.features & RING_EVENT_IDX != 0 {
            (before..self.completed).any(|at| at as u16 == self.reclaimed as u16)
        } else {
            count > 0 && !self.is_suppressed
        };
        assert_eq!(self.device.publish(), is_due);
    }

    /// They take up to `max` back.
    fn reclaim(&mut self, max: usize) {
        for _ in 0..max.min(self.used.len()) {
            let mut lent = self.used.pop_front().expect("one was used");
            assert_eq!(self.driver.peek_used(), Some(lent.token));
            let (driver, token) = (&mut self.driver, lent.token);
            // SAFETY: these are the buffers that were added when this token was given.
            let popped =
                lent.with_buffers(|inputs, outputs| unsafe { driver.pop_used(token, inputs, outputs) });
            assert_eq!(popped.map(|len| len as usize), Ok(lent.answer.len()));
            assert_eq!(lent.outputs.concat()[..lent.answer.len()], lent.answer);
            self.reclaimed += 1;
        }
        assert_eq!(self.driver.can_pop(), !self.used.is_empty());
    }

    /// When our device has nothing to do it asks for a kick, and the next chain brings one. They compare
    /// positions as if these did not wrap, so more than one chain at a time would prove nothing.
    fn ask_for_a_kick(&mut self) {
        assert_eq!(self.device.arm(), !self.available.is_empty());
        if self.available.is_empty() {
            self.add(1);
            assert!(self.available.is_empty() || self.driver.should_notify());
        }
        self.device.suppress();
        if self.features & RING_EVENT_IDX == 0 {
            assert!(!self.driver.should_notify());
        }
    }

    fn run(mut self, count: u64) {
        while self.added < count {
            let (add, take) = (1 + below(&mut self.seed, SIZE), below(&mut self.seed, SIZE + 1));
            self.add(add);
            self.take(take);
            self.is_suppressed = below(&mut self.seed, 2) == 0;
            self.driver.set_dev_notify(!self.is_suppressed);
            let complete = below(&mut self.seed, self.taken.len() + 1);
            self.complete(complete);
            let reclaim = below(&mut self.seed, SIZE + 1);
            self.reclaim(reclaim);
            self.ask_for_a_kick();
        }
    }
}

/// Our device's half of their queue: its areas are in the guest's memory, where both sides have them.
fn device(guest: &Guest, size: u16, features: u64, at: [PhysAddr; 3]) -> DeviceQueue {
    let [desc, driver, device] = at.map(|addr| FrontendVa(addr - BASE + FRONTEND));
    DeviceQueue::start(QueueConfig {
        size,
        features,
        areas: Areas::resolve(&guest.memory, size, features, desc, driver, device).expect("areas"),
        memory: Arc::clone(&guest.memory),
        used_log: None,
        resume: ResumeState::start(features),
        inflight: None,
    })
    .expect("a queue")
}

const FEATURES: [u64; 4] = [0, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_EVENT_IDX | RING_INDIRECT_DESC];

/// What each side reads is what the other wrote, in whatever order chains are completed.
#[test]
fn our_device_serves_their_driver() {
    for features in FEATURES {
        Mixed::<2>::new(features).run(3000);
        Mixed::<4>::new(features).run(3000);
        Mixed::<16>::new(features).run(3000);
        Mixed::<32>::new(features).run(3000);
        Mixed::<64>::new(features).run(3000);
        Mixed::<128>::new(features).run(3000);
    }
}

#[test]
fn our_device_serves_their_driver_round_all_indices() {
    for features in FEATURES {
        Mixed::<8>::new(features).run(70_000);
        Mixed::<256>::new(features).run(70_000);
    }
}
