//! The code of docs/write-a-driver.md and docs/write-a-device.md, run against each other: a driver reads the clock that a
//! device has, by registers that a virtual machine monitor would trap.
#![allow(unsafe_code, reason = "a platform promises what its memory is; the page shows how")]

#[path = "pages/clock_device.rs"]
mod clock_device;
#[path = "pages/clock_driver.rs"]
mod clock_driver;
#[path = "pages/clock_vmm.rs"]
mod clock_vmm;
#[path = "pages/machine.rs"]
mod machine;

use std::fs::File;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use clock_driver::Clock;
use clock_vmm::ClockInVm;
use machine::Machine;
use ringway_driver::transport::mmio::Mmio;
use ringway_driver::transport::registers::Registers;
use ringway_driver::{OutOfMemory, Platform};
use ringway_memory::{FrontendVa, Gpa, GuestBuf, Mapping, MemoryTable, Region};

/// Where the guest's memory begins.
const BASE: u64 = 0x4000_0000;
/// Its length.
const LEN: u64 = 1 << 20;

/// The machine that the guest runs on: a file is its memory, and each allocation a mapping of a part of it.
struct Guest {
    file: File,
    allocated: Mutex<u64>,
}

impl Guest {
    fn new() -> Self {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(LEN).expect("its length");
        Self { file, allocated: Mutex::new(0) }
    }

    fn map(&self, offset: u64, len: u64) -> Option<Region> {
        let at = BASE + offset;
        Mapping::region(self.file.try_clone().ok()?.into(), offset, len, Gpa(at), FrontendVa(at)).ok()
    }

    /// All of it, as the virtual machine monitor has it.
    fn memory(&self) -> Arc<MemoryTable> {
        Arc::new(MemoryTable::new(vec![self.map(0, LEN).expect("a mapping")]).expect("a table"))
    }
}

// SAFETY: each part of the file is allocated once, and the monitor has it at the same address.
unsafe impl Platform for Guest {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        let mut allocated = self.allocated.lock().expect("nobody panicked");
        let offset = *allocated;
        *allocated = (offset + len).next_multiple_of(4096);
        self.map(offset, len).ok_or(OutOfMemory { len })
    }

    fn wait(&self, round: u32) -> bool {
        round < 1000
    }
}

/// The registers of a device in a virtual machine: each access is an exit.
#[derive(Clone)]
struct Trapped(Arc<Mutex<ClockInVm>>);

impl Trapped {
    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.lock().expect("nobody panicked").read(offset as u64, &mut bytes);
        bytes
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        self.0.lock().expect("nobody panicked").write(offset as u64, bytes);
    }
}

impl Registers for Trapped {
    fn len(&self) -> usize {
        0x1000
    }

    fn read_u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.read(offset))
    }

    fn read_u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn read_u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn write_u8(&self, offset: usize, value: u8) {
        self.write(offset, &[value]);
    }

    fn write_u16(&self, offset: usize, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
}

/// The driver of one page and the device of the other, and the way to its registers.
fn clock() -> (Clock<Mmio<Trapped>>, Trapped) {
    let guest = Guest::new();
    let registers = Trapped(Arc::new(Mutex::new(ClockInVm::new(guest.memory()).expect("registers"))));
    let transport = Mmio::new(registers.clone()).expect("a device").expect("of some type");
    (Clock::new(transport, Arc::new(guest)).expect("a driver"), registers)
}

#[test]
fn the_driver_reads_the_devices_clock() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let (mut clock, _) = clock();
    for _ in 0..100 {
        let before = now();
        let told = clock.read(0).expect("the time");
        assert!((before..=now()).contains(&told), "{told}");
    }
    let error = clock.read(1).expect_err("there is one clock").to_string();
    assert_eq!(error, "the device answered a read of its clock with nonsense");
    clock.read(0).expect("the driver goes on");
}

/// A driver that goes resets its device, which lets go of the queue.
#[test]
fn a_device_is_set_up_anew() {
    let (clock, registers) = clock();
    drop(clock);
    assert_eq!(registers.read_u32(ringway_spec::mmio::STATUS), 0);
    assert!(registers.0.lock().expect("nobody panicked").queue.is_none(), "the queue was let go");
}

/// The machine of the page gives memory as a platform must: zeroed, aligned, and a device finds it by the address told.
#[test]
fn the_machine_has_memory_for_devices() {
    let region = Machine.allocate(10_000).expect("memory");
    assert!(region.gpa().0.is_multiple_of(4096) && region.len() == 10_000);
    let mut bytes = vec![1; 10_000];
    let table = MemoryTable::new(vec![region.clone()]).expect("a table");
    let slices = |at| table.slices(at, 10_000).collect::<Vec<_>>();
    assert_eq!(GuestBuf::new(&slices(region.gpa())).read(&mut bytes), 10_000);
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert!(Machine.allocate(u64::MAX).is_err());
    assert!(Machine.allocate(0).is_err());
}

#[test]
fn a_page_of_registers_may_have_no_device() {
    let at = |words: &mut [u32; 1024]| {
        // SAFETY: the array outlives what looks at it, and nobody else reaches it meanwhile.
        let clock = unsafe { clock_driver::clock_at(NonNull::from(words).cast(), Arc::new(Machine)) };
        clock.map(|clock| clock.is_some()).map_err(|error| error.to_string())
    };
    let mut words = [0; 1024];
    words[..3].copy_from_slice(&[0x7472_6976, 2, 0]);
    assert_eq!(at(&mut words), Ok(false));
    words[2] = 1;
    assert_eq!(at(&mut words), Err("the device has type 1, and the driver is for 17".to_owned()));
    words[0] = 0;
    assert!(at(&mut words).is_err());
}

/// What the pages show is the code above, to the letter.
#[test]
fn the_pages_show_this_code() {
    let sources = [
        include_str!("pages/clock_device.rs"),
        include_str!("pages/clock_driver.rs"),
        include_str!("pages/clock_vmm.rs"),
        include_str!("pages/machine.rs"),
    ];
    let pages =
        [include_str!("../../../docs/write-a-driver.md"), include_str!("../../../docs/write-a-device.md")];
    let mut count = 0;
    for page in pages {
        for block in page.split("```rust\n").skip(1) {
            let code = block.split("```").next().expect("a block ends").trim_end();
            assert!(sources.iter().any(|source| source.contains(code)), "nowhere in the tests:\n{code}");
            count += 1;
        }
    }
    assert!(count >= 6, "{count} blocks of code");
}
