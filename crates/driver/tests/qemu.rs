//! The transports, and the network driver, against QEMU's own devices, without a guest: the processor is halted, and
//! accesses that it would make QEMU is told to make by a pipe (its `qtest`). Needs `qemu-system-x86_64`.
#![allow(unsafe_code, reason = "a platform promises that its memory is the device's")]

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ringway_driver::entropy::{Entropy, Options};
use ringway_driver::net::{Mode, Net, Offload, Options as NetOptions};
use ringway_driver::transport::mmio::{Mmio, MmioError};
use ringway_driver::transport::pci::{
    BarRange, ConfigSpace, ConfigWindow, Ecam, Message, Pci, Space, bar_sizes, device_id,
};
use ringway_driver::transport::registers::Registers;
use ringway_driver::{Error, Interrupt, OutOfMemory, Platform, Transport};
use ringway_memory::{FrontendVa, Gpa, Mapping, Region};
use ringway_spec::entropy::DEVICE_ID;
use ringway_spec::net;
use ringway_spec::pci::header;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};

const MEMORY: u64 = 64 << 20;
/// Where the first allocation is, behind what is not memory on a PC.
const FIRST: u64 = 1 << 20;
/// The largest allocation there can be.
const PART: u64 = 1 << 20;
/// Where a message is sent to, so that it is found.
const MAILBOX: u64 = 0x9000;

/// Firmware: `cli`, `hlt`, and `hlt` again if it ever wakes.
const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
/// Bytes of the firmware, and where in it the processor begins.
const FIRMWARE: usize = 0x1_0000;
const RESET_VECTOR: usize = 0xfff0;

/// A machine whose processor does nothing, and its memory.
struct Qemu {
    child: Child,
    pipe: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    memory: File,
    next: Mutex<u64>,
}

impl Qemu {
    /// `machine` and `device` are QEMU's options of these names.
    fn start(machine: &str, device: &str) -> Arc<Self> {
        Self::start_with(machine, device, &[])
    }

    fn start_with(machine: &str, device: &str, more: &[&str]) -> Arc<Self> {
        let [memory, mut firmware] = [MEMORY, FIRMWARE as u64].map(|len| {
            let file = File::from(memfd_create("qemu", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(len).unwrap();
            file
        });
        firmware.seek(SeekFrom::Start(RESET_VECTOR as u64)).unwrap();
        firmware.write_all(&HALT).unwrap();
        let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let (path, bios) = (path(&memory), path(&firmware));
        let backend = format!("memory-backend-file,id=memory,size={MEMORY},share=on,mem-path={path}");
        let machine = format!("{machine},memory-backend=memory");
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-machine", &machine, "-object", &backend, "-m", "64M", "-device", device])
            .args(["-accel", "tcg", "-bios", &bios, "-qtest", "stdio", "-qtest-log", "/dev/null"])
            .args(["-nodefaults", "-display", "none"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64 is installed");
        let pipe = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let qemu = Self { child, pipe: Mutex::new(pipe), memory, next: Mutex::new(FIRST) };
        // When it answers it has read the firmware, which goes away here.
        qemu.access("readb 0");
        Arc::new(qemu)
    }

    /// Has an access made; returns what was read, if it reads.
    fn access(&self, command: &str) -> u32 {
        let (to, from) = &mut *self.pipe.lock().unwrap();
        writeln!(to, "{command}").unwrap();
        let mut answer = String::new();
        from.read_line(&mut answer).unwrap();
        let value = answer.trim().strip_prefix("OK").unwrap_or_else(|| panic!("{command}: {answer}")).trim();
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap() as u32,
            None => 0,
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

// SAFETY: each part of the machine's memory is allocated once, and devices find it where it is in the file.
unsafe impl Platform for Qemu {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        let mut next = self.next.lock().unwrap();
        if len > PART || *next + PART > MEMORY {
            return Err(OutOfMemory { len });
        }
        let file = self.memory.try_clone().map_err(|_| OutOfMemory { len })?;
        let region = Mapping::region(file.into(), *next, len, Gpa(*next), FrontendVa(*next));
        *next += PART;
        region.map_err(|_| OutOfMemory { len })
    }

    fn wait(&self, round: u32) -> bool {
        thread::sleep(Duration::from_millis(1));
        round < 10_000
    }
}

/// Registers in the machine's memory space.
struct Memory {
    qemu: Arc<Qemu>,
    base: u64,
    len: usize,
}

impl Registers for Memory {
    fn len(&self) -> usize {
        self.len
    }

    fn read_u8(&self, offset: usize) -> u8 {
        self.qemu.access(&format!("readb {:#x}", self.base + offset as u64)) as u8
    }

    fn read_u16(&self, offset: usize) -> u16 {
        self.qemu.access(&format!("readw {:#x}", self.base + offset as u64)) as u16
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.qemu.access(&format!("readl {:#x}", self.base + offset as u64))
    }

    fn write_u8(&self, offset: usize, value: u8) {
        self.qemu.access(&format!("writeb {:#x} {value:#x}", self.base + offset as u64));
    }

    fn write_u16(&self, offset: usize, value: u16) {
        self.qemu.access(&format!("writew {:#x} {value:#x}", self.base + offset as u64));
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.qemu.access(&format!("writel {:#x} {value:#x}", self.base + offset as u64));
    }
}

/// A function on bus 0, reached by two ports.
struct Ports {
    qemu: Arc<Qemu>,
    device: u32,
}

impl Ports {
    /// Selects a register; returns the port that shows it.
    fn select(&self, offset: usize) -> usize {
        self.qemu.access(&format!("outl 0xcf8 {:#x}", 1 << 31 | self.device << 11 | offset as u32 & !3));
        0xcfc + (offset & 3)
    }
}

impl ConfigSpace for Ports {
    fn read_u8(&self, offset: usize) -> u8 {
        let port = self.select(offset);
        self.qemu.access(&format!("inb {port:#x}")) as u8
    }

    fn read_u16(&self, offset: usize) -> u16 {
        let port = self.select(offset);
        self.qemu.access(&format!("inw {port:#x}")) as u16
    }

    fn read_u32(&self, offset: usize) -> u32 {
        let port = self.select(offset);
        self.qemu.access(&format!("inl {port:#x}"))
    }

    fn write_u8(&self, offset: usize, value: u8) {
        let port = self.select(offset);
        self.qemu.access(&format!("outb {port:#x} {value:#x}"));
    }

    fn write_u16(&self, offset: usize, value: u16) {
        let port = self.select(offset);
        self.qemu.access(&format!("outw {port:#x} {value:#x}"));
    }

    fn write_u32(&self, offset: usize, value: u32) {
        let port = self.select(offset);
        self.qemu.access(&format!("outl {port:#x} {value:#x}"));
    }
}

/// The function in slot 3.
fn function(qemu: &Arc<Qemu>) -> Ports {
    Ports { qemu: Arc::clone(qemu), device: 3 }
}

/// Gives the function's memory BARs addresses, one behind the other, as firmware does; returns all sizes.
fn assign_bars(function: &impl ConfigSpace) -> [u64; header::BARS] {
    let sizes = bar_sizes(function);
    let mut next = 0xe000_0000;
    for (size, at) in sizes.into_iter().zip((header::BAR..).step_by(4)) {
        if size > 0 && function.read_u32(at) & header::BAR_IO == 0 {
            next = u64::next_multiple_of(next, size);
            function.write_u32(at, next as u32);
            next += size;
        }
    }
    sizes
}

/// The device in slot 3, its BARs assigned and mapped.
fn pci<C: ConfigSpace>(qemu: &Arc<Qemu>, function: C) -> Pci<C, Memory> {
    assert!(matches!(device_id(&function), Some(DEVICE_ID | net::DEVICE_ID)));
    let sizes = assign_bars(&function);
    let map = |range: &BarRange| {
        assert!(range.is_inside(&sizes), "{range:?}");
        let base = range.address().filter(|_| range.space == Space::Memory)?;
        Some(Memory { qemu: Arc::clone(qemu), base, len: range.len as usize })
    };
    Pci::new(function, map).unwrap()
}

/// Has a device fill some bytes, and some more, then stops it.
fn check<T: Transport>(qemu: &Arc<Qemu>, transport: T, options: &Options) {
    let mut entropy = Entropy::new(transport, Arc::clone(qemu) as Arc<dyn Platform>, options).unwrap();
    let [mut first, mut second] = [[0; 600]; 2];
    entropy.fill(&mut first).unwrap();
    entropy.fill(&mut second).unwrap();
    // 600 bytes in a row of chance are not 0, nor twice the same.
    assert!(first != [0; 600] && second != [0; 600] && first != second);
    entropy.stop().unwrap();
}

/// Waits for an answer by interrupts, whose cause `transport` says.
fn check_interrupt<T: Transport>(qemu: &Arc<Qemu>, transport: T) {
    let mut entropy =
        Entropy::new(transport, Arc::clone(qemu) as Arc<dyn Platform>, &Options::default()).unwrap();
    assert!(!entropy.arm());
    assert_eq!(entropy.interrupt().unwrap(), Interrupt::empty());
    assert!(entropy.request(16).unwrap());
    let mut round = 0;
    while !entropy.interrupt().unwrap().contains(Interrupt::QUEUE) {
        assert!(qemu.wait(round), "no interrupt");
        round += 1;
    }
    assert_eq!(entropy.interrupt().unwrap(), Interrupt::empty(), "it was acknowledged");
    assert_eq!(entropy.receive(&mut [0; 16]).unwrap(), Some(16));
}

/// Both ring formats, of a modern device and of a transitional one.
#[test]
fn pci_devices_are_driven() {
    for settings in ["disable-legacy=on,packed=off", "disable-legacy=on,packed=on", "disable-legacy=off"] {
        let qemu = Qemu::start("pc", &format!("virtio-rng-pci,addr=3,disable-modern=off,{settings}"));
        check(&qemu, pci(&qemu, function(&qemu)), &Options::default());
        check_interrupt(&qemu, pci(&qemu, function(&qemu)));
    }
}

/// A vector's message is found in memory, where it is sent to.
#[test]
fn pci_vectors_send_messages() {
    let qemu = Qemu::start("pc", "virtio-rng-pci,addr=3,disable-legacy=on");
    let mut transport = pci(&qemu, function(&qemu));
    assert_eq!(transport.vectors(), 2);
    transport.set_vector(1, Message { address: MAILBOX, data: 0xabcd }).unwrap();
    transport.enable_vectors(true).unwrap();
    let options = Options { vector: Some(1), ..Options::default() };
    let mut entropy = Entropy::new(transport, Arc::clone(&qemu) as Arc<dyn Platform>, &options).unwrap();
    assert!(!entropy.arm());
    assert!(entropy.request(16).unwrap());
    let mut round = 0;
    while qemu.access(&format!("readl {MAILBOX:#x}")) != 0xabcd {
        assert!(qemu.wait(round), "no message");
        round += 1;
    }
    assert_eq!(entropy.receive(&mut [0; 16]).unwrap(), Some(16));
}

/// A device whose BARs have no addresses is driven by its configuration space alone.
#[test]
fn pci_devices_are_driven_by_their_window() {
    let qemu = Qemu::start("pc", "virtio-rng-pci,addr=3,disable-legacy=on");
    let function = Rc::new(function(&qemu));
    let window = ConfigWindow::find(&function).unwrap();
    let transport = Pci::new(Rc::clone(&function), |range| {
        assert_eq!(range.address(), None);
        window.map(range)
    });
    check(&qemu, transport.unwrap(), &Options::default());
}

/// Configuration spaces are reached as memory too, where the chipset is told to show them.
#[test]
fn pci_devices_are_found_in_memory() {
    const ECAM: u32 = 0xb000_0000;
    let qemu = Qemu::start("q35", "virtio-rng-pci,bus=pcie.0,addr=3,disable-legacy=on");
    // The register PCIEXBAR of the chipset, in its own configuration space.
    Ports { qemu: Arc::clone(&qemu), device: 0 }.write_u32(0x60, ECAM | 1);
    let ecam = Ecam::new(Memory { qemu: Arc::clone(&qemu), base: ECAM.into(), len: 1 << 20 });
    assert_eq!(device_id(&ecam.function(0, 4, 0).unwrap()), None);
    check(&qemu, pci(&qemu, ecam.function(0, 3, 0).unwrap()), &Options::default());
}

/// One of microvm's places has the device; the others are there without.
#[test]
fn mmio_devices_are_driven() {
    for packed in ["off", "on"] {
        let device = format!("virtio-rng-device,packed={packed}");
        let qemu = Qemu::start_with("microvm", &device, &["-global", "virtio-mmio.force-legacy=off"]);
        let place = |i: u64| Memory { qemu: Arc::clone(&qemu), base: 0xfeb0_0000 + i * 0x200, len: 0x200 };
        let find = || {
            let mut found = (0..24).filter_map(|i| Mmio::new(place(i)).unwrap());
            let device = found.next().unwrap();
            assert!(found.next().is_none());
            device
        };
        assert_eq!(find().device_id(), DEVICE_ID);
        check(&qemu, find(), &Options::default());
        check_interrupt(&qemu, find());
    }
}

/// QEMU's MMIO devices are legacy ones unless they are told otherwise, and those are not driven.
#[test]
fn legacy_mmio_devices_are_refused() {
    let qemu = Qemu::start("microvm", "virtio-rng-device");
    let registers = Memory { qemu, base: 0xfeb0_0000, len: 0x200 };
    assert_eq!(Mmio::new(registers).err(), Some(MmioError::BadVersion(1)));
}

/// A network device and what is at the other end of its wire: a datagram is a frame.
struct Wire {
    qemu: Arc<Qemu>,
    net: Net<Pci<Ports, Memory>>,
    far: UnixDatagram,
}

impl Wire {
    fn up(packed: &str, mergeable: &str) -> Self {
        let (far, near) = UnixDatagram::pair().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        fcntl_setfd(&near, FdFlags::empty()).unwrap();
        let netdev = format!("dgram,id=wire,local.type=fd,local.str={}", near.as_raw_fd());
        let device = format!(
            "virtio-net-pci,addr=3,disable-legacy=on,netdev=wire,mac=02:00:00:00:00:07,host_mtu=9000,\
             packed={packed},mrg_rxbuf={mergeable}"
        );
        let qemu = Qemu::start_with("pc", &device, &["-netdev", &netdev]);
        let transport = pci(&qemu, function(&qemu));
        let options = NetOptions { queue_size: 64, ..NetOptions::default() };
        let net = Net::new(transport, Arc::clone(&qemu) as Arc<dyn Platform>, &options).unwrap();
        Self { qemu, net, far }
    }

    /// The next frame that comes to the driver.
    fn next(&mut self) -> Vec<u8> {
        let rx = &mut self.net.pair(0).rx;
        let mut round = 0;
        loop {
            if let Some(received) = rx.next().unwrap() {
                let mut bytes = vec![0; received.frame.len()];
                received.frame.read(0, &mut bytes);
                rx.recycle(received.frame);
                rx.flush();
                return bytes;
            }
            assert!(self.qemu.wait(round), "no frame");
            round += 1;
        }
    }

    /// Whether a frame to this address reaches the driver.
    fn reaches(&mut self, to: [u8; 6]) -> bool {
        for to in [to, [0xff; 6]] {
            self.far.send(&frame(to, 60)).unwrap();
        }
        let reaches = self.next()[..6] == to;
        if reaches {
            assert_eq!(self.next()[..6], [0xff; 6]);
        }
        reaches
    }
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame: Vec<_> = (0..len).map(|i| i as u8).collect();
    frame[..6].copy_from_slice(&to);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// Frames of all sizes go out and come in, whole and in order.
#[test]
fn network_devices_are_driven() {
    for (packed, mergeable) in [("off", "off"), ("off", "on"), ("on", "off"), ("on", "on")] {
        let mut wire = Wire::up(packed, mergeable);
        assert_eq!((wire.net.mac(), wire.net.mtu()), ([2, 0, 0, 0, 0, 7], 9000));
        assert!(wire.net.link().is_up);
        let sizes: Vec<_> = (0..200).map(|i| 60 + i * 977 % 8900).collect();
        for burst in sizes.chunks(5) {
            let tx = &mut wire.net.pair(0).tx;
            for len in burst {
                tx.send(&frame([2; 6], *len), &Offload::None).unwrap();
            }
            tx.flush();
            for len in burst {
                let mut bytes = vec![0; 1 << 16];
                let received = wire.far.recv(&mut bytes).unwrap();
                assert!(bytes[..received] == frame([2; 6], *len), "{packed} {mergeable} {len}");
                wire.far.send(&frame([0xff; 6], *len)).unwrap();
                assert!(wire.next() == frame([0xff; 6], *len), "{packed} {mergeable} {len}");
            }
        }
        wire.net.stop().unwrap();
    }
}

/// QEMU carries out what it is told on the control queue, and refuses what it was not asked for.
#[test]
fn network_devices_do_as_they_are_told() {
    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
    const GROUP: [u8; 6] = [3, 0, 0, 0, 0, 9];
    for packed in ["off", "on"] {
        let mut wire = Wire::up(packed, "on");
        wire.net.set_mode(Mode::Promiscuous, false).unwrap();
        assert_eq!([OWN, OTHER, GROUP].map(|to| wire.reaches(to)), [true, false, false]);
        wire.net.set_addresses(&[OTHER], &[GROUP]).unwrap();
        assert_eq!([OWN, OTHER, GROUP].map(|to| wire.reaches(to)), [true, true, true]);
        wire.net.set_addresses(&[], &[]).unwrap();
        wire.net.set_mac(OTHER).unwrap();
        assert_eq!([OWN, OTHER, GROUP].map(|to| wire.reaches(to)), [false, true, false]);
        wire.net.set_mode(Mode::AllMulticast, true).unwrap();
        assert!(wire.reaches(GROUP));
        wire.net.set_vlan(100, true).unwrap();
        assert!(matches!(wire.net.announced(), Err(Error::Refused { .. })));
    }
}
