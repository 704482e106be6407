//! Interrupts, counted; faults, told; and time.
//!
//! ```text
//! device, MSI-X: a message ────────────────────┐
//! device, MMIO: a line ──► I/O APIC, an edge ──┼──► local APIC ──► stub of the vector: counts it, end of interrupt
//! timer, every 10 ms ──────────────────────────┘
//! ```
//!
//! The processor takes interrupts while it sleeps ([`sleep`]) and at no other time. So there is nothing that an interrupt
//! could come in between of, and all that a handler does is to count: who slept looks what there is to do.
//!
//! A line is taken as an edge: it falls when the driver acknowledges what it was about, and the next interrupt raises it.

use core::arch::{asm, global_asm};
use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use crate::port;

const VECTORS: usize = 256;
/// Vectors below are the processor's faults.
const FAULTS: usize = 32;
const TIMER: u8 = 32;
const FIRST_FREE: u32 = 33;
const SPURIOUS: u8 = 255;

/// How often each vector came.
static COUNTS: [AtomicU32; VECTORS] = [const { AtomicU32::new(0) }; VECTORS];
static NEXT_FREE: AtomicU32 = AtomicU32::new(FIRST_FREE);

/// The interrupt descriptor table: two words for each vector.
static IDT: [AtomicU64; 2 * VECTORS] = [const { AtomicU64::new(0) }; 2 * VECTORS];

unsafe extern "C" {
    /// 8 bytes of code for each vector.
    static stubs: [u64; VECTORS];
}

global_asm!(
    ".pushsection .text.interrupts, \"ax\"",
    ".global stubs",
    ".balign 8",
    "stubs:",
    ".rept {vectors}",
    ".balign 8",
    // What it pushes tells which stub it was.
    "call 2f",
    ".endr",
    "2:",
    "push rax",
    "mov rax, [rsp + 8]",
    "sub rax, offset stubs",
    "shr rax, 3",
    "cmp eax, {faults}",
    "jb 3f",
    "lock inc dword ptr [{counts} + rax * 4]",
    "mov eax, {eoi}",
    "mov dword ptr [rax], 0",
    "pop rax",
    // The stub's address; then the processor's frame.
    "add rsp, 8",
    "iretq",
    "3:",
    "mov rdi, rax",
    "lea rsi, [rsp + 16]",
    "and rsp, -16",
    "call {fault}",
    "ud2",
    ".popsection",
    vectors = const VECTORS,
    faults = const FAULTS,
    counts = sym COUNTS,
    eoi = const LOCAL_APIC + local::END_OF_INTERRUPT,
    fault = sym fault,
);

/// A fault is a mistake of this program: it is told, and is the end.
extern "C" fn fault(vector: u64, frame: *const u64) -> ! {
    // SAFETY: the processor has pushed this and more.
    let [first, second] = unsafe { frame.cast::<[u64; 2]>().read() };
    let has_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
    let (code, address) = if has_code { (first, second) } else { (0, first) };
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack)) };
    panic!("fault {vector} (code {code:#x}) at {address:#x}, CR2 {cr2:#x}");
}

const LOCAL_APIC: usize = 0xfee0_0000;
const IO_APIC: usize = 0xfec0_0000;

/// Registers of the local APIC.
mod local {
    pub(super) const ID: usize = 0x20;
    pub(super) const TASK_PRIORITY: usize = 0x80;
    pub(super) const END_OF_INTERRUPT: usize = 0xb0;
    pub(super) const SPURIOUS_VECTOR: usize = 0xf0;
    pub(super) const TIMER: usize = 0x320;
    pub(super) const INITIAL_COUNT: usize = 0x380;
    pub(super) const CURRENT_COUNT: usize = 0x390;
    pub(super) const DIVIDE: usize = 0x3e0;

    pub(super) const ENABLE: u32 = 1 << 8;
    pub(super) const MASKED: u32 = 1 << 16;
    pub(super) const PERIODIC: u32 = 1 << 17;
    pub(super) const BY_16: u32 = 3;
}

fn read_local(register: usize) -> u32 {
    // SAFETY: a register of the local APIC, which is mapped where it is.
    unsafe { ptr::with_exposed_provenance::<u32>(LOCAL_APIC + register).read_volatile() }
}

fn write_local(register: usize, value: u32) {
    // SAFETY: as for `read_local`; no register makes it write to memory.
    unsafe { ptr::with_exposed_provenance_mut::<u32>(LOCAL_APIC + register).write_volatile(value) };
}

fn write_io_apic(register: u32, value: u32) {
    let select = ptr::with_exposed_provenance_mut::<u32>(IO_APIC);
    // SAFETY: the I/O APIC's register that selects another.
    unsafe { select.write_volatile(register) };
    // SAFETY: and the one that was selected.
    unsafe { select.wrapping_byte_add(0x10).write_volatile(value) };
}

/// Ticks of the local APIC's timer in a millisecond: QEMU's runs at 1 GHz, here divided by 16.
const TIMER_PER_MS: u32 = 1_000_000 / 16;

/// Ticks of the time stamp counter in a microsecond.
static TSC_PER_US: AtomicU64 = AtomicU64::new(1);

/// What the processor is told of the table: its last byte, and where it is.
#[repr(C, packed)]
struct IdtPointer(u16, u64);

/// Makes interrupts work, and time. To be called once.
pub(crate) fn set_up() {
    for (vector, gate) in IDT.chunks_exact(2).enumerate() {
        let stub = (&raw const stubs) as u64 + 8 * vector as u64;
        // Present, an interrupt gate, of segment 8.
        let low = stub & 0xffff | 8 << 16 | 0x8e00 << 32 | (stub >> 16 & 0xffff) << 48;
        gate[0].store(low, Ordering::Relaxed);
        gate[1].store(stub >> 32, Ordering::Relaxed);
    }
    let pointer = IdtPointer(size_of_val(&IDT) as u16 - 1, IDT.as_ptr() as u64);
    // SAFETY: the table is whole, and stays.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack)) };

    // The old interrupt controllers stay silent.
    for mask in [0x21, 0xa1] {
        // SAFETY: masks all of a controller's lines.
        unsafe { port::write_u8(mask, 0xff) };
    }
    write_local(local::SPURIOUS_VECTOR, local::ENABLE | u32::from(SPURIOUS));
    write_local(local::TASK_PRIORITY, 0);
    write_local(local::DIVIDE, local::BY_16);
    measure_tsc();
    write_local(local::TIMER, local::PERIODIC | u32::from(TIMER));
    write_local(local::INITIAL_COUNT, 10 * TIMER_PER_MS);
}

/// Finds out how fast the time stamp counter counts, in five milliseconds or as many as pass.
fn measure_tsc() {
    write_local(local::TIMER, local::MASKED);
    write_local(local::INITIAL_COUNT, u32::MAX);
    let start = tsc();
    loop {
        let ticks = u32::MAX - read_local(local::CURRENT_COUNT);
        let per_us = (tsc() - start) * u64::from(TIMER_PER_MS) / u64::from(ticks.max(1)) / 1000;
        if ticks >= 5 * TIMER_PER_MS {
            return TSC_PER_US.store(per_us.max(1), Ordering::Relaxed);
        }
    }
}

fn tsc() -> u64 {
    // SAFETY: every processor of 64 bits has the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The time since the machine began.
pub(crate) fn now() -> Duration {
    Duration::from_micros(tsc() / TSC_PER_US.load(Ordering::Relaxed))
}

/// Sleeps until the next interrupt, 10 ms at most.
pub(crate) fn sleep() {
    // SAFETY: handlers leave everything but the counts as it is. Between `sti` and `hlt` no interrupt is taken.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Takes the interrupts that are pending.
pub(crate) fn take_pending() {
    // SAFETY: as for `sleep`.
    unsafe { asm!("sti", "nop", "nop", "cli") };
}

/// Sleeps until something is so, as it is looked at after every interrupt; for so long at most. Returns whether it is.
pub(crate) fn wait_until(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = now() + limit;
    loop {
        if is_so() {
            return true;
        }
        if now() >= deadline {
            return false;
        }
        sleep();
    }
}

/// An interrupt vector that one source has for itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vector(u8);

impl Vector {
    /// One that nobody has yet.
    pub(crate) fn allocate() -> Self {
        let number = NEXT_FREE.fetch_add(1, Ordering::Relaxed);
        assert!(number < u32::from(SPURIOUS), "all interrupt vectors are in use");
        Self(number as u8)
    }

    /// How often it came.
    pub(crate) fn count(self) -> u32 {
        COUNTS[usize::from(self.0)].load(Ordering::Relaxed)
    }

    /// The message that raises it: address and data, for a table of MSI-X.
    pub(crate) fn message(self) -> (u64, u32) {
        let id = u64::from(read_local(local::ID) >> 24);
        (LOCAL_APIC as u64 | id << 12, self.0.into())
    }

    /// Has a line of the I/O APIC raise it.
    pub(crate) fn route(self, line: u8) {
        let entry = 0x10 + 2 * u32::from(line);
        write_io_apic(entry + 1, read_local(local::ID) & 0xff00_0000);
        // An edge, active high, to the one processor.
        write_io_apic(entry, self.0.into());
    }
}
