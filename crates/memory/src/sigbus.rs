//! The SIGBUS guard: a peer that truncates its file costs its own session, not the server.
//!
//! Touching a page past the end of a mapped file raises SIGBUS. The handler looks the address up in a fixed
//! table of mappings, puts anonymous zero pages in the place of the whole mapping and marks it; the access is
//! repeated and succeeds. Whoever owns the session asks [`Guard::has_faulted`] once per burst and ends it.
//!
//! ```text
//! free ──new──► guarded ──fault──► faulted
//!   ▲              └───────release────┴──────► free
//! ```
//!
//! The handler only reads atomics and calls `mmap`, both safe in a signal. A SIGBUS elsewhere meets the
//! default action: it is a bug of ours and must not hide.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// As many mappings as the process can guard: 509 regions (the most a front-end may add) for 16 guests, or
/// the usual handful for a thousand.
const SLOTS: usize = 8192;

struct Slot {
    /// Length of the mapping; 0: the slot is free; [`CLAIMED`]: being filled.
    len: AtomicUsize,
    start: AtomicUsize,
    faulted: AtomicBool,
}

const CLAIMED: usize = usize::MAX;

static TABLE: [Slot; SLOTS] = [const {
    Slot { len: AtomicUsize::new(0), start: AtomicUsize::new(0), faulted: AtomicBool::new(false) }
}; SLOTS];

/// The watch over one mapping.
pub(crate) struct Guard {
    slot: &'static Slot,
}

impl Guard {
    /// Watches a mapping; `None` if the table is full.
    pub(crate) fn new(start: usize, len: usize) -> Option<Self> {
        let claim =
            |s: &&Slot| s.len.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let slot = TABLE.iter().find(claim)?;
        slot.start.store(start, Ordering::Relaxed);
        slot.faulted.store(false, Ordering::Relaxed);
        // Pairs with the handler's acquire load: who sees the length sees the start.
        slot.len.store(len, Ordering::Release);
        Some(Self { slot })
    }

    /// Whether an access met the end of the file.
    pub(crate) fn has_faulted(&self) -> bool {
        self.slot.faulted.load(Ordering::Relaxed)
    }

    /// Ends the watch; the slot is free for another mapping.
    pub(crate) fn release(&self) {
        self.slot.len.store(0, Ordering::Release);
    }
}

/// Installs the handler, once per process.
pub(crate) fn install() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = set_handler());
    result
}

fn set_handler() -> io::Result<()> {
    // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what a signal may.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS fills in the address.
    let addr = unsafe { info.si_addr() } as usize;
    if !replace_faulting(addr) {
        // Not a peer's doing. With the default action the repeated access ends the process, visibly.
        // SAFETY: restoring the default action is allowed in a signal.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

/// Puts zero pages in the place of the guarded mapping that holds `addr`; false if there is none.
fn replace_faulting(addr: usize) -> bool {
    for slot in &TABLE {
        let len = slot.len.load(Ordering::Acquire);
        let start = slot.start.load(Ordering::Relaxed);
        if len == 0 || len == CLAIMED || addr.wrapping_sub(start) >= len {
            continue;
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the range is a mapping of ours that its owner has not released, since the access that
        // faulted is an access through it; nothing else is mapped there.
        let zeros = unsafe { libc::mmap(start as *mut libc::c_void, len, prot, flags, -1, 0) };
        slot.faulted.store(true, Ordering::Relaxed);
        return zeros != libc::MAP_FAILED;
    }
    false
}
