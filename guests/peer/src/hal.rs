//! Memory for the drivers: pages of a pool, and addresses that are the same for the device.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

const PAGES: usize = 256;

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[[u8; PAGE_SIZE]; PAGES]>);

// SAFETY: each page is handed out once, and reached by who has it only.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([[0; PAGE_SIZE]; PAGES]));
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// What the drivers keep for themselves comes from the same pool, by whole pages: it is little.
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: pages are handed out once, and are aligned to more than anything asks for.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size().div_ceil(PAGE_SIZE)).as_ptr()
    }

    unsafe fn dealloc(&self, _start: *mut u8, _layout: Layout) {}
}

/// So many pages of zeroes.
fn take(pages: usize) -> NonNull<u8> {
    let first = TAKEN.fetch_add(pages, Ordering::Relaxed);
    assert!(first + pages <= PAGES, "no pages are left");
    let start = POOL.0.get().cast::<u8>().wrapping_add(first * PAGE_SIZE);
    NonNull::new(start).expect("a place in the pool")
}

/// Memory is mapped where it is.
pub(crate) struct Identity;

// SAFETY: pages come from a pool of zeroes, each once, and are aligned; addresses of memory are those that devices see.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let start = take(pages);
        (start.as_ptr().expose_provenance() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        // The pool is larger than all that is ever taken.
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(paddr as usize))
            .expect("a device is not at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr().expose_provenance() as PhysAddr
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
