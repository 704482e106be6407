//! The virtual machine as KVM sees it: memory, interrupt controllers, one processor; and its exits.
//!
//! ```text
//!   KVM_RUN ──► in, out ────────► serial line, keyboard controller (reset), test exit; nothing else is there
//!           ──► MMIO ───────────► the windows of the devices
//!           ──► shutdown, error ─► the end, told with what the processor was about to do
//! ```
//!
//! `hlt`, timers and interrupts are KVM's own affair: PIC, IOAPIC, local APIC and PIT are inside of it.

use std::fmt;

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip,
    kvm_pit_config, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use ringway_memory::{GuestBuf, Region};

use crate::boot::Entry;

/// Three pages that KVM needs for itself on some processors, below the BIOS and above all memory and windows.
const KVM_PAGES: usize = 0xfffb_d000;

/// Protected mode, without paging.
const CR0_PE: u64 = 1;
/// The one flag that is always set.
const RFLAGS_FIXED: u64 = 2;

/// The first serial line's ports.
const SERIAL: std::ops::Range<u16> = 0x3f8..0x400;
/// The keyboard controller's command port, and the command that resets a PC.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
/// Where a test says how it went, as QEMU's `isa-debug-exit` has it.
const TEST_EXIT: u16 = 0x501;

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// It reset its machine, which is how one without ACPI is turned off.
    Reset,
    /// A test said how it went.
    Tested(u8),
    /// The processor cannot go on (a third fault while the second was delivered), or KVM cannot.
    Stuck(String, Place),
}

/// Where the processor was, and the bytes that it found there, if any can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    rip: u64,
    cr2: u64,
    code: Option<[u8; 8]>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rip, cr2, code } = self;
        write!(f, "at {rip:#x}, before {:02x?} (CR2 {cr2:#x})", code.as_ref().map_or(&[][..], |code| code))
    }
}

/// What lies behind ports and addresses that KVM does not know.
pub(crate) trait Bus {
    /// The guest reads from one of the serial line's eight registers.
    fn serial_in(&mut self, register: u8) -> u8;
    /// The guest writes to one.
    fn serial_out(&mut self, register: u8, value: u8);
    /// The guest reads at a guest-physical address without memory.
    fn read(&mut self, address: u64, to: &mut [u8]);
    /// The guest writes there.
    fn write(&mut self, address: u64, from: &[u8]);
}

/// Memory and interrupt controllers. `level` are the interrupts that stay until their cause is gone.
pub(crate) fn create(kvm: &Kvm, memory: &Region, level: &[u32]) -> Result<VmFd> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    vm.set_tss_address(KVM_PAGES).context("KVM_SET_TSS_ADDR")?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).context("KVM_CREATE_PIT2")?;
    make_level(&vm, level)?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: memory.gpa().0,
        memory_size: memory.len(),
        userspace_addr: memory.backend_va(),
    };
    // SAFETY: the range is the region's mapping, which `main` keeps until the process ends, and so longer than the
    // machine; only `ringway-memory` reaches it here, and as memory that a peer writes to.
    unsafe { vm.set_user_memory_region(slot) }.context("KVM_SET_USER_MEMORY_REGION")?;
    Ok(vm)
}

/// Sets the trigger mode of the two PICs as a BIOS would; whoever uses the IOAPIC sets that itself.
fn make_level(vm: &VmFd, level: &[u32]) -> Result<()> {
    for (chip_id, first) in [(KVM_IRQCHIP_PIC_MASTER, 0), (KVM_IRQCHIP_PIC_SLAVE, 8)] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).context("KVM_GET_IRQCHIP")?;
        let bits = level
            .iter()
            .filter(|&&irq| (first..first + 8).contains(&irq))
            .fold(0, |b, irq| b | 1 << (irq - first));
        chip.chip.pic.elcr = bits;
        vm.set_irqchip(&chip).context("KVM_SET_IRQCHIP")?;
    }
    Ok(())
}

/// A processor that begins at `entry`.
pub(crate) fn create_vcpu(kvm: &Kvm, vm: &VmFd, entry: &Entry) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let flat = |selector, type_| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let (code, data) = (11, 3);
    sregs.cs = flat(0x10, code);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = flat(0x18, data);
    }
    // Who enters protected mode has a task register, a busy TSS of the smallest size.
    sregs.tr = kvm_segment { limit: 0x67, type_: 11, present: 1, ..Default::default() };
    sregs.cr0 |= CR0_PE;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rip = entry.rip;
    regs.rbx = entry.rbx;
    regs.rflags = RFLAGS_FIXED;
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    Ok(vcpu)
}

/// Runs the processor until the guest ends.
pub(crate) fn run(vcpu: &mut VcpuFd, memory: &Region, bus: &mut impl Bus) -> Result<End> {
    loop {
        let what = match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                // What is not there reads as all ones.
                data.fill(0xff);
                if SERIAL.contains(&port) {
                    data[0] = bus.serial_in((port - SERIAL.start) as u8);
                } else if port == I8042_COMMAND {
                    // Ready to be written to.
                    data[0] = 0;
                }
                continue;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                match (port, data[0]) {
                    (I8042_COMMAND, I8042_RESET) => return Ok(End::Reset),
                    (TEST_EXIT, value) => return Ok(End::Tested(value)),
                    (port, value) if SERIAL.contains(&port) => {
                        bus.serial_out((port - SERIAL.start) as u8, value);
                    }
                    _ => {}
                }
                continue;
            }
            Ok(VcpuExit::MmioRead(address, to)) => {
                bus.read(address, to);
                continue;
            }
            Ok(VcpuExit::MmioWrite(address, from)) => {
                bus.write(address, from);
                continue;
            }
            Ok(exit) => format!("{exit:?}"),
            // A signal that has been dealt with.
            Err(e) if e.errno() == rustix::io::Errno::INTR.raw_os_error() => continue,
            Err(e) => return Err(e).context("KVM_RUN"),
        };
        return Ok(End::Stuck(what, place(vcpu, memory)?));
    }
}

fn place(vcpu: &VcpuFd, memory: &Region) -> Result<Place> {
    let rip = vcpu.get_regs().context("KVM_GET_REGS")?.rip;
    let cr2 = vcpu.get_sregs().context("KVM_GET_SREGS")?.cr2;
    let translation = vcpu.translate_gva(rip).context("KVM_TRANSLATE")?;
    let code = memory
        .bytes(translation.physical_address, 8)
        .filter(|_| translation.valid != 0)
        .and_then(|slice| GuestBuf::new(&[slice]).read_array());
    Ok(Place { rip, cr2, code })
}
