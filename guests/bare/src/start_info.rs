//! What a PVH kernel is told when it begins: the memory map and the command line.

use core::ffi::{CStr, c_char};
use core::ops::Range;
use core::ptr;

/// `hvm_start_info`, version 1.
#[repr(C)]
pub(crate) struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

const MAGIC: u32 = 0x336e_c578;

/// An entry of the memory map.
#[repr(C)]
struct MemoryMapEntry {
    addr: u64,
    len: u64,
    kind: u32,
    reserved: u32,
}

const KIND_RAM: u32 = 1;

unsafe extern "C" {
    /// Where the image ends (`link.ld`).
    static image_end: u8;
}

impl StartInfo {
    /// What is at `address`.
    ///
    /// # Safety
    /// The address is the one that the boot protocol has given, and no memory was written to but the image's.
    pub(crate) unsafe fn read(address: *const Self) -> Self {
        // SAFETY: the caller's.
        let info = unsafe { address.read_unaligned() };
        assert!(info.magic == MAGIC && info.version >= 1, "not booted by PVH");
        info
    }

    /// The largest piece of memory below 4 GiB behind the image.
    ///
    /// # Safety
    /// As for [`StartInfo::read`].
    pub(crate) unsafe fn free_memory(&self) -> Range<u64> {
        let image = (&raw const image_end) as u64;
        let entries = ptr::with_exposed_provenance::<MemoryMapEntry>(self.memory_map as usize);
        (0..self.memory_map_entries as usize)
            .map(|i| {
                // SAFETY: there are so many entries; the caller's.
                unsafe { entries.wrapping_add(i).read_unaligned() }
            })
            .filter(|entry| entry.kind == KIND_RAM)
            .map(|entry| entry.addr.max(image)..(entry.addr + entry.len).min(1 << 32))
            .max_by_key(|range| range.end.saturating_sub(range.start))
            .expect("there is a memory map")
    }

    /// The command line, copied to `to` as far as that goes.
    ///
    /// # Safety
    /// As for [`StartInfo::read`].
    pub(crate) unsafe fn command_line<'a>(&self, to: &'a mut [u8]) -> &'a str {
        let mut len = 0;
        if self.command_line != 0 {
            let text = ptr::with_exposed_provenance::<c_char>(self.command_line as usize);
            // SAFETY: the boot protocol says that a C string is there; the caller's.
            let text = unsafe { CStr::from_ptr(text) }.to_bytes();
            len = text.len().min(to.len());
            to[..len].copy_from_slice(&text[..len]);
        }
        core::str::from_utf8(&to[..len]).expect("the command line is text")
    }
}
