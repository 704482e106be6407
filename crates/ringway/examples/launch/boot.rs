//! What a bootloader does: the kernel, its initial RAM disk and its command line, put into the guest's memory, and where
//! the processor begins.
//!
//! ```text
//!   0x0_0000_7000  start information, memory map, list of modules
//!   0x0_0002_0000  command line
//!   0x0_0010_0000  the kernel, where its headers say
//!              …   initial RAM disk, at the end of the memory
//! ```
//!
//! A kernel is begun by PVH (Xen's `hvm_start_info`): in protected mode without paging. There is no BIOS and no real mode.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Elf, KernelLoader, load_cmdline};
use ringway_memory::Region;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const PARAMS: GuestAddress = GuestAddress(0x7000);
const MEMORY_MAP: GuestAddress = GuestAddress(0x8000);
const MODULES: GuestAddress = GuestAddress(0x9000);
const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
const COMMAND_LINE_MAX: usize = 2048;
/// Where conventional memory ends, and where that above 1 MiB begins.
const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;

const START_INFO_MAGIC: u32 = 0x336e_c578;
/// A type of the memory map.
const RAM: u32 = 1;

/// What is booted: an ELF file with a PVH entry, and what goes with it.
pub(crate) struct Boot {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) command_line: Cmdline,
}

/// Where the processor begins, and where the start information is, which a register points to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) rip: u64,
    pub(crate) rbx: u64,
}

impl Boot {
    /// Fills the memory, which begins at guest address 0.
    pub(crate) fn load(&self, memory: &Region) -> Result<Entry> {
        let len = memory.len();
        let memory = second_view(memory)?;
        load_cmdline(&memory, COMMAND_LINE, &self.command_line)?;
        let initrd = self.load_initrd(&memory, len)?;
        let path = self.kernel.display();
        let mut kernel = File::open(&self.kernel).with_context(|| format!("kernel {path}"))?;
        let loaded = Elf::load(&memory, None, &mut kernel, None).with_context(|| format!("kernel {path}"))?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            bail!("kernel {path} has no PVH entry");
        };
        write_start_info(&memory, len, initrd)?;
        Ok(Entry { rip: entry.0, rbx: PARAMS.0 })
    }

    /// Puts the initial RAM disk at the end of the memory; returns where, and its length.
    fn load_initrd(&self, memory: &GuestMemoryMmap, end: u64) -> Result<Option<(u64, u64)>> {
        let Some(path) = &self.initrd else { return Ok(None) };
        let mut file = File::open(path).with_context(|| format!("initrd {}", path.display()))?;
        let len = file.metadata()?.len();
        ensure!(len < end / 2, "initrd {} fills more than half of the memory", path.display());
        let start = (end - len) & !0xfff;
        memory.read_exact_volatile_from(GuestAddress(start), &mut file, len as usize)?;
        Ok(Some((start, len)))
    }
}

fn write_start_info(memory: &GuestMemoryMmap, len: u64, initrd: Option<(u64, u64)>) -> Result<()> {
    let map = ranges(len).map(|(addr, size)| hvm_memmap_table_entry { addr, size, type_: RAM, reserved: 0 });
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: MODULES.0,
        cmdline_paddr: COMMAND_LINE.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, PARAMS);
    params.set_sections(&map, MEMORY_MAP);
    if let Some((paddr, size)) = initrd {
        params.set_modules(&[hvm_modlist_entry { paddr, size, ..Default::default() }], MODULES);
    }
    Ok(PvhBootConfigurator::write_bootparams(&params, memory)?)
}

/// A command line, with room for all that a kernel takes.
pub(crate) fn command_line(text: &str) -> Result<Cmdline> {
    Cmdline::try_from(text, COMMAND_LINE_MAX).with_context(|| format!("command line {text:?}"))
}

/// The parts of `len` bytes of memory that a guest may use: all but the hole of the PC below 1 MiB.
fn ranges(len: u64) -> [(u64, u64); 2] {
    [(0, LOW_END), (HIGH_START, len - HIGH_START)]
}

/// The same memory as the loader's crate wants it, for as long as it is filled.
fn second_view(memory: &Region) -> Result<GuestMemoryMmap> {
    let (file, offset) = memory.file().context("the guest's memory is no file")?;
    let file = FileOffset::new(File::from(file.try_clone_to_owned()?), offset);
    let range = (GuestAddress(memory.gpa().0), memory.len() as usize, Some(file));
    Ok(GuestMemoryMmap::from_ranges_with_files([range])?)
}
