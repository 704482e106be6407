//! Other people's drivers on a virtual machine's devices: the crate `virtio-drivers` over virtio-mmio, without an operating
//! system. What is found is printed on the serial line:
//!
//! ```text
//! ok blk: what was written is read
//! not ok rng: no interrupt
//! done
//! ```
//!
//! It starts by PVH, finds devices by the command line (`virtio_mmio.device=4096@0xd0000000:5`), and ends by the port of
//! QEMU's `isa-debug-exit`. Interrupts are not taken but looked for at the two old interrupt controllers, which need no
//! interrupt table, and tell of lines as they are.
#![no_std]
#![no_main]

mod boot;
#[path = "../../bytes.rs"]
mod bytes;
mod hal;

use core::arch::asm;
use core::ffi::CStr;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::ptr::{self, NonNull};

use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, InterruptStatus, Transport};

use hal::Identity;

const SERIAL: u16 = 0x3f8;
/// QEMU's `isa-debug-exit`: writing `x` ends the machine with status `2x + 1`.
const DEBUG_EXIT: u16 = 0x501;
/// Which word of the start information says where the command line is.
const COMMAND_LINE: usize = 3;
/// How often something is looked for.
const PATIENCE: u32 = 1_000_000;

/// A check that failed, and why.
type Result<T> = core::result::Result<T, &'static str>;

/// A device's place.
struct Place {
    base: usize,
    len: usize,
    line: u8,
}

/// Where execution begins, with memory mapped where it is.
extern "C" fn start(info: *const [u64; 4]) -> ! {
    // SAFETY: a PVH loader passes its start information, which is longer than that.
    let text = unsafe { info.read() }[COMMAND_LINE];
    let mut all_well = true;
    take_lines();
    for word in words(text as usize) {
        let Some(place) = word.strip_prefix(b"virtio_mmio.device=").and_then(Place::parse) else { continue };
        all_well &= examine(&place);
    }
    say("done\n");
    outb(DEBUG_EXIT, if all_well { 16 } else { 17 });
    panic!("the machine goes on")
}

/// The words of a text that ends with a zero.
fn words(text: usize) -> impl Iterator<Item = &'static [u8]> {
    // SAFETY: the loader's text ends with a zero, and nobody writes there.
    let text = unsafe { CStr::from_ptr(ptr::with_exposed_provenance(text)) };
    text.to_bytes().split(|byte| *byte == b' ')
}

impl Place {
    /// `4096@0xd0000000:5`
    fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.split(|byte| matches!(byte, b'@' | b':'));
        let len = number(parts.next()?, 10)?;
        let base = number(parts.next()?.strip_prefix(b"0x")?, 16)?;
        Some(Self { base, len, line: number(parts.next()?, 10)? as u8 })
    }

    fn transport(&self) -> Option<MmioTransport<'static>> {
        let header = NonNull::new(ptr::with_exposed_provenance_mut::<VirtIOHeader>(self.base))?;
        // SAFETY: the command line says that registers are there; a device has one driver at a time.
        unsafe { MmioTransport::new(header, self.len) }.ok()
    }
}

fn number(text: &[u8], radix: u32) -> Option<usize> {
    text.iter()
        .try_fold(0, |sum, byte| Some(sum * radix as usize + char::from(*byte).to_digit(radix)? as usize))
}

/// Examines a device; whether all was well.
fn examine(place: &Place) -> bool {
    let Some(transport) = place.transport() else {
        say("not ok mmio: no registers\n");
        return false;
    };
    let (name, result) = match transport.device_type() {
        DeviceType::Network => ("net", net(transport, place.line)),
        DeviceType::Block => ("blk", blk(transport, place.line)),
        DeviceType::Console => ("console", console(transport, place.line)),
        DeviceType::EntropySource => ("rng", rng(transport, place.line)),
        // The crate has no driver of it.
        DeviceType::MemoryBalloon => ("balloon", balloon(&transport)),
        _ => ("mmio", Err("an unknown device")),
    };
    match result {
        Ok(()) => say_all(&["ok ", name, "\n"]),
        Err(why) => say_all(&["not ok ", name, ": ", why, "\n"]),
    }
    result.is_ok()
}

/// The line is raised, and falls when the driver has acknowledged what it was about.
fn interrupt(line: u8, acknowledge: impl FnOnce() -> bool) -> Result<()> {
    wait(|| poll_line(line))?;
    if !acknowledge() {
        return Err("the interrupt was about nothing");
    }
    end_of_interrupt(line);
    if poll_line(line) { Err("the line stays") } else { Ok(()) }
}

fn blk(transport: MmioTransport<'static>, line: u8) -> Result<()> {
    let mut disk = VirtIOBlk::<Identity, _>::new(transport).map_err(|_| "no disk")?;
    let mut sector = [0; 512];
    disk.read_blocks(0, &mut sector).map_err(|_| "no sector is read")?;
    interrupt(line, || disk.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT))?;
    // What the host wrote to sector 0 is to be in the last one.
    let last = disk.capacity() as usize - 1;
    disk.write_blocks(last, &sector).map_err(|_| "no sector is written")?;
    disk.flush().map_err(|_| "no flush")?;
    let mut again = [0; 512];
    disk.read_blocks(last, &mut again).map_err(|_| "no sector is read again")?;
    if again != sector {
        return Err("other bytes were read than written");
    }
    match disk.read_blocks(last + 1, &mut again) {
        Ok(()) => Err("a sector behind the disk was read"),
        Err(_) => Ok(()),
    }
}

fn rng(transport: MmioTransport<'static>, line: u8) -> Result<()> {
    let mut rng = VirtIORng::<Identity, _>::new(transport).map_err(|_| "no entropy")?;
    let mut bytes = [[0; 64]; 2];
    for bytes in &mut bytes {
        let len = rng.request_entropy(bytes).map_err(|_| "no bytes")?;
        if len != bytes.len() {
            return Err("too few bytes");
        }
    }
    interrupt(line, || rng.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT))?;
    if bytes[0] == bytes[1] || bytes[0] == [0; 64] { Err("the bytes are not random") } else { Ok(()) }
}

/// The host answers each byte by the next one.
fn console(transport: MmioTransport<'static>, line: u8) -> Result<()> {
    let mut console = VirtIOConsole::<Identity, _>::new(transport).map_err(|_| "no console")?;
    console.send_bytes(b"console: type\n").map_err(|_| "nothing is sent")?;
    for expected in *b"typed\n" {
        let mut byte = None;
        wait(|| {
            byte = console.recv(true).unwrap_or(None);
            byte.is_some()
        })?;
        if byte != Some(expected) {
            return Err("other bytes came than were typed");
        }
    }
    interrupt(line, || console.ack_interrupt().is_ok())
}

/// The host sends each frame back.
fn net(transport: MmioTransport<'static>, line: u8) -> Result<()> {
    let mut card = VirtIONetRaw::<Identity, _, 4>::new(transport).map_err(|_| "no card")?;
    let mut room = [0; 2048];
    let mut frame = [0x5a; 200];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&card.mac_address());
    // SAFETY: the buffer is not used until it is complete.
    let token = unsafe { card.receive_begin(&mut room) }.map_err(|_| "no buffer is taken")?;
    card.send(&frame).map_err(|_| "nothing is sent")?;
    wait(|| card.poll_receive() == Some(token))?;
    // SAFETY: this is the buffer that was given.
    let (header, len) = unsafe { card.receive_complete(token, &mut room) }.map_err(|_| "no frame")?;
    interrupt(line, || card.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT))?;
    if room[header..header + len] == frame { Ok(()) } else { Err("another frame came back") }
}

/// It wants some pages: the first word of its configuration.
fn balloon(transport: &MmioTransport<'static>) -> Result<()> {
    match transport.read_config_space::<u32>(0) {
        Ok(0) | Err(_) => Err("it wants no pages"),
        Ok(_) => Ok(()),
    }
}

fn wait(mut is_so: impl FnMut() -> bool) -> Result<()> {
    if (0..PATIENCE).any(|_| is_so()) { Ok(()) } else { Err("nothing comes") }
}

// The old interrupt controllers, polled (OCW3): a read tells of the highest line that is raised, and takes it.

const CONTROLLERS: [u16; 2] = [0x20, 0xa0];
/// In what is read: a line was raised, and is in service now.
const TAKEN: u8 = 0x80;

/// Makes lines known to the controllers; the processor takes no interrupts.
fn take_lines() {
    for (controller, wiring) in CONTROLLERS.into_iter().zip([4, 2]) {
        outb(controller, 0x11);
        for word in [0x20, wiring, 1, 0] {
            outb(controller + 1, word);
        }
    }
}

/// Whether a line is raised; then it is in service, until its end.
fn poll_line(line: u8) -> bool {
    let controller = CONTROLLERS[usize::from(line / 8)];
    outb(controller, 0x0c);
    inb(controller) == TAKEN | (line % 8)
}

fn end_of_interrupt(line: u8) {
    outb(CONTROLLERS[usize::from(line / 8)], 0x20);
}

fn outb(port: u16, value: u8) {
    // SAFETY: no port that is used here changes memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: as before.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

fn say(text: &str) {
    text.bytes().for_each(|byte| outb(SERIAL, byte));
}

fn say_all(parts: &[&str]) {
    parts.iter().copied().for_each(say);
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        say(text);
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Serial, "panic: {info}");
    outb(DEBUG_EXIT, 17);
    loop {
        core::hint::spin_loop();
    }
}
