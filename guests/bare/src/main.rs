//! A program that needs no operating system: it boots under QEMU (x86-64, the direct boot of PVH), finds the machine's
//! virtio devices, drives them with `ringway-driver`, and prints on the serial line what it found.
//!
//! ```text
//! $ qemu-system-x86_64 -accel tcg -cpu max -M q35 -m 256M -nodefaults -display none -serial stdio \
//!       -device isa-debug-exit -kernel target/bare/x86_64-unknown-linux-gnu/release/bare -append 'checks=core' \
//!       -device virtio-rng-pci,disable-legacy=on,packed=on
//! ok core packed: features are those chosen
//! …
//! done: 34 ok, 0 failed
//! ```
//!
//! It is two things: a proof that the drivers work with devices that were written by others, on both transports that a
//! machine has (PCI on `-M q35`, MMIO on `-M microvm`); and an example of what a kernel adds to `ringway-driver` to
//! use it.
//!
//! | what a kernel adds | here |
//! |---|---|
//! | memory that devices can reach | `memory.rs` |
//! | where the devices are | `pci.rs`, `mmio.rs` |
//! | interrupts | `interrupts.rs` |
//!
//! The rest is a machine's beginning (`boot.rs`, `start_info.rs`), printing (`serial.rs`), and the checks (`checks/`).
#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod bus;
#[path = "../../bytes.rs"]
mod bytes;
mod checks;
mod failure;
mod interrupts;
mod memory;
mod mmio;
mod pci;
mod port;
mod serial;
mod start_info;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use serial::say;
use start_info::StartInfo;

/// Where execution begins, on the boot processor, with memory mapped where it is.
extern "C" fn start(info: *const StartInfo) -> ! {
    let mut text = [0; 2048];
    // SAFETY: the boot code passes on what the loader gave it; the heap is not in use before the next lines.
    let info = unsafe { StartInfo::read(info) };
    // SAFETY: as before.
    let free = unsafe { info.free_memory() };
    // SAFETY: as before.
    let command_line = unsafe { info.command_line(&mut text) };
    // SAFETY: behind the image and within RAM, and what the loader left there has been read.
    unsafe { memory::add_heap(&free) };
    interrupts::set_up();
    // A machine has one kind of them.
    let functions = pci::find();
    let is_well = if functions.is_empty() {
        checks::run(command_line, &mmio::find(command_line))
    } else {
        checks::run(command_line, &functions)
    };
    end(is_well)
}

/// Ends QEMU, with exit status 33 if all went well, else 35.
fn end(is_well: bool) -> ! {
    /// QEMU's `isa-debug-exit`, at its default place: writing `x` makes it exit with status `2x + 1`.
    const DEBUG_EXIT: u16 = 0x501;
    let code = if is_well { 16 } else { 17 };
    // SAFETY: ends the machine.
    unsafe { port::write_u8(DEBUG_EXIT, code) };
    loop {
        interrupts::sleep();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    static HAS_PANICKED: AtomicBool = AtomicBool::new(false);
    if !HAS_PANICKED.swap(true, Ordering::Relaxed) {
        say!("panic: {info}");
    }
    end(false)
}
