//! A virtual machine for Linux in a thousand lines: KVM, virtio devices on MMIO registers, a serial line, and nothing else.
//!
//! ```text
//!            guest memory: one file, mapped here, by KVM, and by every vhost-user back-end
//!   ┌────────────────────────────────────────────────────────────────────────────────────────┐
//!   │ kernel, initrd, command line (boot.rs)                            rings, buffers       │
//!   └────────────────────────────────────────────────────────────────────────────────────────┘
//!      ▲ runs                                                     ▲ serve              ▲ serve
//!   processor ──in, out──► serial line, reset                     │                    │
//!   (machine.rs, a thread)                                        │                    │
//!      └────────MMIO─────► windows ─► MmioDevice ─┬─► Local: entropy, console,         │
//!               d0000000   (window.rs)            │          balloon, disk, network ───┘
//!               +n·1000                           │          (devices.rs, main thread)
//!      ◄────interrupts──── lines 5, 9…12 ◄────────┴─► Remote: a vhost-user back-end (remote.rs) ───┘
//! ```
//!
//! The machine has one processor and less than 3 GiB of memory, no BIOS, no PCI, no ACPI. Devices are announced on the kernel's
//! command line (`virtio_mmio.device=4096@0xd0000000:5`). See `docs/launch.md` for how to run it.
//!
//! It ends with 0 when the guest resets its machine, 1 after an error, 2 for a wrong command line, 3 where there is no KVM,
//! 4 when the guest or its KVM could not go on, and as QEMU's `isa-debug-exit` when a test says how it went.
#![allow(unsafe_code, reason = "KVM is told where memory is, and the crates' descriptors are of two types")]

mod boot;
mod devices;
mod machine;
mod remote;
mod window;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Kvm, VmFd};
use ringway_memory::{Gpa, MemoryTable};
use ringway_spec::{blk, net};
use ringway_vhost::frontend::{Event, Memory, Pages};
use rustix::event::epoll;
use vm_superio::{Serial, Trigger};

use crate::boot::Boot;
use crate::machine::{Bus, End};
use crate::remote::Remote;
use crate::window::{Device, Local, Slot, WINDOW_LEN, Work};

const SERIAL_IRQ: u32 = 4;
/// The first MiB, and some for a kernel; and where windows begin.
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 16..=3072;

/// Boots a Linux kernel with virtio devices.
#[derive(Parser)]
#[command(name = "launch")]
struct Args {
    /// The kernel: an ELF file with a PVH entry (vmlinux).
    kernel: PathBuf,
    /// The initial RAM disk.
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// The kernel's command line; devices are added to it.
    #[arg(long, default_value = "console=ttyS0 reboot=k panic=-1")]
    cmdline: String,
    /// Memory in MiB.
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// A disk: a file, or vhost-user:SOCKET.
    #[arg(long)]
    blk: Option<String>,
    /// A network card: SOCKET,PEER for frames as datagrams, or vhost-user:SOCKET.
    #[arg(long)]
    net: Option<String>,
    /// Entropy.
    #[arg(long)]
    rng: bool,
    /// A console on standard input and output. The serial line then goes to standard error.
    #[arg(long)]
    console: bool,
    /// A balloon that is to have so many MiB.
    #[arg(long)]
    balloon: Option<u32>,
    /// The device that virtual machines are made by.
    #[arg(long, default_value = "/dev/kvm")]
    kvm: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let kvm = match open(&args.kvm) {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("launch: no virtual machine without {}: {error:#}", args.kvm.display());
            return ExitCode::from(3);
        }
    };
    match run(&kvm, &args) {
        Ok(end) => report(&end),
        Err(error) => {
            eprintln!("launch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// KVM, if it is what it is said to be.
fn open(path: &Path) -> Result<Kvm> {
    let kvm = Kvm::new_with_path(CString::new(path.as_os_str().as_bytes())?)?;
    let version = kvm.get_api_version();
    ensure!(version == KVM_API_VERSION.cast_signed(), "it is no KVM, or one of version {version}");
    Ok(kvm)
}

/// Tells how the guest ended, if it is not what guests do.
fn report(end: &End) -> ExitCode {
    match end {
        End::Reset => ExitCode::SUCCESS,
        End::Tested(value) => ExitCode::from(value << 1 | 1),
        End::Stuck(why, place) => {
            eprintln!("launch: the guest cannot go on ({why}) {place}");
            ExitCode::from(4)
        }
    }
}

fn run(kvm: &Kvm, args: &Args) -> Result<End> {
    ensure!(MEMORY_MIB.contains(&args.memory), "{} MiB of memory are not in {MEMORY_MIB:?}", args.memory);
    let memory = Arc::new(Memory::new(Gpa(0), args.memory << 20, Pages::Small)?);
    let vm = Arc::new(machine::create(kvm, memory.region(), &Slot::IRQS)?);
    let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
    let table = Arc::new(MemoryTable::new(vec![memory.region().clone()])?);
    let mut machine = Machine { slot: Slot { vm, memory, table, epoll, number: 0 }, devices: Vec::new() };
    machine.add_devices(args)?;
    let mut command_line = boot::command_line(&args.cmdline)?;
    for number in 0..machine.slot.number {
        let slot = Slot { number, ..machine.slot.clone() };
        let (window, irq) = (slot.window(), slot.irq());
        command_line.insert_str(format!("virtio_mmio.device={WINDOW_LEN}@{window:#x}:{irq}"))?;
    }
    let boot = Boot { kernel: args.kernel.clone(), initrd: args.initrd.clone(), command_line };
    let entry = boot.load(machine.slot.memory.region())?;
    let vcpu = machine::create_vcpu(kvm, &machine.slot.vm, &entry)?;
    machine.run(vcpu, args.console)
}

/// All that a guest meets outside of its processor.
struct Machine {
    /// Where the next device goes.
    slot: Slot,
    devices: Vec<Mutex<Box<dyn Device>>>,
}

impl Machine {
    fn add(&mut self, device: impl Device + 'static) {
        self.devices.push(Mutex::new(Box::new(device)));
        self.slot.number += 1;
    }

    fn add_local<W: Work + 'static>(&mut self, (model, work): (W::Model, W)) -> Result<()> {
        self.add(Local::new(self.slot.clone(), model, work)?);
        Ok(())
    }

    /// Adds a device of another process, if the option says so: `vhost-user:SOCKET`.
    fn add_remote(&mut self, id: u32, option: &str) -> Result<bool> {
        let Some(path) = option.strip_prefix("vhost-user:") else { return Ok(false) };
        self.add(Remote::connect(self.slot.clone(), id, path.as_ref())?);
        Ok(true)
    }

    fn add_devices(&mut self, args: &Args) -> Result<()> {
        if let Some(net) = &args.net
            && !self.add_remote(net::DEVICE_ID, net)?
        {
            let (here, there) =
                net.split_once(',').context("a network is SOCKET,PEER or vhost-user:SOCKET")?;
            self.add_local(devices::Net::open(here.as_ref(), there.as_ref(), MAC)?)?;
        }
        if let Some(blk) = &args.blk
            && !self.add_remote(blk::DEVICE_ID, blk)?
        {
            self.add_local(devices::Disk::open(blk.as_ref())?)?;
        }
        if args.console {
            let [input, output] =
                [io::stdin().as_fd(), io::stdout().as_fd()].map(|fd| fd.try_clone_to_owned());
            self.add_local(devices::Console::new(File::from(input?), File::from(output?))?)?;
        }
        if let Some(mib) = args.balloon {
            // Of 4 KiB.
            let pages = mib.checked_mul(256).context("the balloon is larger than any memory")?;
            self.add_local(devices::Balloon::new(Arc::clone(&self.slot.table), pages))?;
        }
        if args.rng {
            self.add_local(devices::Entropy::open()?)?;
        }
        Ok(())
    }

    /// Runs the processor in a thread of its own, and serves the devices here.
    fn run(self, mut vcpu: kvm_ioctls::VcpuFd, has_console: bool) -> Result<End> {
        let output: Box<dyn Write + Send> =
            if has_console { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
        let serial = Mutex::new(Serial::new(Line(Arc::clone(&self.slot.vm)), output));
        let ended = Event::new()?;
        self.watch(ended.as_fd(), ENDED)?;
        if !has_console {
            // A file, or nothing, is no input.
            let _ = self.watch(io::stdin().as_fd(), TYPED);
        }
        thread::scope(|threads| {
            let processor = threads.spawn(|| {
                let mut panel = Panel { serial: &serial, devices: &self.devices };
                let end = machine::run(&mut vcpu, self.slot.memory.region(), &mut panel);
                ended.signal()?;
                end
            });
            loop {
                let mut events = Vec::with_capacity(16);
                match epoll::wait(&self.slot.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
                for event in events {
                    match event.data.u64() {
                        ENDED => {
                            let end = processor.join();
                            return end.unwrap_or_else(|_| bail!("the processor's thread panicked"));
                        }
                        TYPED if type_in(&serial) => {}
                        TYPED => epoll::delete(&self.slot.epoll, io::stdin())?,
                        data => {
                            let (number, wake) = Slot::decode(data);
                            lock(&self.devices[number]).wake(wake);
                        }
                    }
                }
            }
        })
    }

    fn watch(&self, fd: rustix::fd::BorrowedFd<'_>, data: u64) -> Result<()> {
        let data = epoll::EventData::new_u64(data);
        epoll::add(&self.slot.epoll, fd, data, epoll::EventFlags::IN).context("epoll")
    }
}

/// The card's address, of those that anybody may use.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// The main thread is woken for this when the guest has ended, and when somebody types.
const ENDED: u64 = u64::MAX;
const TYPED: u64 = u64::MAX - 1;

/// The serial line's interrupt.
struct Line(Arc<VmFd>);

impl Trigger for Line {
    type E = kvm_ioctls::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.set_irq_line(SERIAL_IRQ, true)?;
        self.0.set_irq_line(SERIAL_IRQ, false)
    }
}

type SerialLine = Serial<Line, vm_superio::serial::NoEvents, Box<dyn Write + Send>>;

/// Gives the serial line what was typed, as far as it has room; whether there may be more.
fn type_in(serial: &Mutex<SerialLine>) -> bool {
    let mut typed = [0; 16];
    let len = rustix::io::read(io::stdin(), &mut typed).unwrap_or(0);
    let _ = lock(serial).enqueue_raw_bytes(&typed[..len]);
    len > 0
}

/// What the processor's thread sees of it all.
struct Panel<'a> {
    serial: &'a Mutex<SerialLine>,
    devices: &'a [Mutex<Box<dyn Device>>],
}

impl Bus for Panel<'_> {
    fn serial_in(&mut self, register: u8) -> u8 {
        lock(self.serial).read(register)
    }

    fn serial_out(&mut self, register: u8, value: u8) {
        // Output that nobody takes is lost, as on a wire.
        let _ = lock(self.serial).write(register, value);
    }

    fn read(&mut self, address: u64, to: &mut [u8]) {
        to.fill(0xff);
        if let Some((number, offset)) = Slot::find(address)
            && let Some(device) = self.devices.get(number)
        {
            lock(device).read(offset, to);
        }
    }

    fn write(&mut self, address: u64, from: &[u8]) {
        if let Some((number, offset)) = Slot::find(address)
            && let Some(device) = self.devices.get(number)
        {
            lock(device).write(offset, from);
        }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
