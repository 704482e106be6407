//! What holds for all devices, tried with the simplest: a device that fills buffers with random bytes.
//!
//! But for one, that tries the driver of such devices, these checks use [`Device`] and [`Virtqueue`] directly, as drivers do.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use ringway_driver::entropy::{self, Entropy};
use ringway_driver::{Device, Error, Interrupt, Platform, QueueOptions, Transport, Virtqueue, Wanted};
use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::Segment;
use ringway_spec::feature;

use super::{LIMIT, QUIET, Tally, Variant, device};
use crate::bus::{Interrupts, Slot};
use crate::failure::{Failure, Result, ensure, fail};
use crate::interrupts::wait_until;
use crate::memory::Dma;

const ENTROPY: u32 = 4;

pub(super) fn run<S: Slot>(tally: &mut Tally, slots: &[S], variant: Variant) {
    tally.check("features are those chosen", || features(device(slots, ENTROPY)?, variant));
    tally.check("buffers are filled", || fill(device(slots, ENTROPY)?, variant));
    tally.check("the driver fills what it is given", || driver(device(slots, ENTROPY)?, variant));
    tally.check("interrupts come when asked for", || interrupts(device(slots, ENTROPY)?, variant));
    tally.check("a ring wraps around", || wraps(device(slots, ENTROPY)?, variant));
    tally.check("set up 100 times", || again(device(slots, ENTROPY)?, variant));
    if offers(slots, feature::RING_RESET) {
        tally.check("a queue is reset", || queue_reset(device(slots, ENTROPY)?, variant));
    }
    // When a packed ring breaks, QEMU (10.0) spins.
    if variant.without & feature::RING_PACKED != 0 {
        tally.check("a broken ring needs a reset", || broken(device(slots, ENTROPY)?, variant));
    }
    tally.check("what is missing is told", || refused(device(slots, ENTROPY)?, variant));
}

type Notifier<S> = <<S as Slot>::Transport as Transport>::Notifier;

/// Whether the device offers these features.
fn offers<S: Slot>(slots: &[S], features: u64) -> bool {
    let offered = device(slots, ENTROPY).and_then(|slot| Ok(slot.open()?.offered()?));
    offered.is_ok_and(|offered| offered & features == features)
}

/// An entropy device, and its queue.
struct Live<S: Slot> {
    device: Device<S::Transport>,
    queue: Virtqueue<Vec<SharedBuf>, Notifier<S>>,
    interrupts: Interrupts,
}

fn wanted(variant: Variant) -> Wanted {
    Wanted { id: ENTROPY, features: 0, required: 0, requires: &[], without: variant.without }
}

fn options(interrupts: Interrupts, max_size: u16) -> QueueOptions {
    QueueOptions { max_size, table_entries: 4, vector: interrupts.queues.entry }
}

impl<S: Slot> Live<S> {
    fn set_up(slot: &S, variant: Variant) -> Result<Self> {
        Self::with_size(slot, variant, 16)
    }

    fn with_size(slot: &S, variant: Variant, size: u16) -> Result<Self> {
        let interrupts = slot.interrupts();
        let platform: Arc<dyn Platform> = Arc::new(Dma);
        let (device, queue) = Device::set_up(slot.open()?, platform, &wanted(variant), |device| {
            device.transport_mut().set_config_vector(interrupts.config.entry)?;
            device.queue(0, options(interrupts, size))
        })?;
        Ok(Self { device, queue, interrupts })
    }

    /// Has so many buffers of these bytes filled, as one chain.
    fn ask(&mut self, buffers: usize, len: u32) -> Result<()> {
        let buffers = self.device.buffers(buffers, len)?;
        let segments: Vec<_> = buffers.iter().map(Segment::from).collect();
        self.queue.add(&[], &segments, buffers).map_err(|refused| refused.error)?;
        self.queue.publish();
        Ok(())
    }

    /// Waits for the next chain, and returns its bytes, as many as were written.
    fn bytes(&mut self) -> Result<Vec<u8>> {
        ensure!(wait_until(LIMIT, || self.queue.has_used()), "the device does not answer");
        let Some(used) = self.queue.reclaim()? else { fail!("a used chain that is none") };
        let mut bytes = Vec::new();
        for buffer in &used.owner {
            let mut part = vec![0; buffer.len() as usize];
            buffer.read(&mut part);
            bytes.extend(part);
        }
        bytes.truncate(used.written as usize);
        Ok(bytes)
    }

    /// Acknowledges an interrupt, where that is needed for the next to come.
    fn acknowledge(&mut self) -> Result<()> {
        self.device.interrupt()?;
        Ok(())
    }
}

fn features<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let live = Live::set_up(slot, variant)?;
    let features = live.device.features();
    ensure!(features & feature::VERSION_1 != 0, "{features:#x} are not those of version 1");
    ensure!(features & variant.without == 0, "{features:#x} has some of {:#x}", variant.without);
    for wanted in [feature::RING_PACKED, feature::RING_INDIRECT_DESC, feature::RING_EVENT_IDX] {
        let is_wanted = variant.without & wanted == 0;
        ensure!(live.device.has(wanted) == is_wanted, "{features:#x} should have {wanted:#x}: {is_wanted}");
    }
    Ok(())
}

fn fill<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut live = Live::set_up(slot, variant)?;
    live.ask(1, 64)?;
    let first = live.bytes()?;
    ensure!(!first.is_empty(), "no byte was written");
    // Chains of several buffers: through a table, where there is one.
    live.ask(4, 16)?;
    let second = live.bytes()?;
    ensure!(!second.is_empty() && second.len() <= 64, "{} bytes were written to 64", second.len());
    let len = first.len().min(second.len());
    ensure!(first[..len] != second[..len], "the same bytes twice: {first:x?}");
    ensure!(first.iter().any(|byte| *byte != 0), "{} zeros", first.len());
    Ok(())
}

fn driver<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let queues = slot.interrupts().queues;
    let options =
        entropy::Options { without: variant.without, vector: queues.entry, ..entropy::Options::default() };
    let mut entropy = Entropy::new(slot.open()?, Arc::new(Dma), &options)?;
    let mut bytes = [0; 1000];
    entropy.fill(&mut bytes)?;
    for part in bytes.chunks(100) {
        ensure!(part.iter().any(|byte| *byte != part[0]), "100 bytes of {:#x}", part[0]);
    }
    ensure!(!entropy.arm(), "there is an answer, and was no request");
    let seen = queues.seen();
    ensure!(entropy.request(32)?, "a request is said to be under way");
    ensure!(queues.wait(seen, LIMIT), "no interrupt");
    entropy.interrupt()?;
    let len = entropy.receive(&mut bytes)?;
    ensure!(len.is_some_and(|len| (1..=32).contains(&len)), "{len:?} bytes of 32");
    Ok(())
}

fn interrupts<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut live = Live::set_up(slot, variant)?;
    let source = live.interrupts.queues;
    for round in 0..10 {
        ensure!(!live.queue.arm(), "a chain was used that was not there");
        let seen = source.seen();
        live.ask(1, 8)?;
        ensure!(source.wait(seen, LIMIT), "no interrupt in round {round}");
        if source.entry.is_none() {
            let what = live.device.interrupt()?;
            ensure!(what == Interrupt::QUEUE, "the interrupt is about {what:?}");
        }
        live.bytes()?;
    }
    live.queue.suppress();
    live.acknowledge()?;
    let seen = source.seen();
    live.ask(1, 8)?;
    live.bytes()?;
    ensure!(!source.wait(seen, QUIET), "an interrupt that nobody asked for");
    Ok(())
}

/// More chains than a short ring has room for, at various lengths, with several in flight.
fn wraps<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut live = Live::with_size(slot, variant, 8)?;
    ensure!(live.queue.queue().size() == 8, "the queue has size {}", live.queue.queue().size());
    let mut in_flight = 0;
    for round in 0..200 {
        live.ask(1 + round % 3, 8)?;
        in_flight += 1;
        if in_flight == 2 {
            let bytes = live.bytes()?;
            ensure!(!bytes.is_empty(), "no bytes in round {round}");
            in_flight -= 1;
        }
    }
    Ok(())
}

fn again<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    for round in 0..100 {
        let mut live = Live::set_up(slot, variant)?;
        live.ask(1, 16)?;
        if round % 2 == 0 {
            ensure!(!live.bytes()?.is_empty(), "no bytes in round {round}");
        } else {
            // A chain may be in flight, and comes back.
            let Live { device, queue, .. } = live;
            let in_flight = usize::from(queue.queue().in_flight());
            let stopped = device.stop()?;
            let kept = queue.retire(&stopped);
            ensure!(kept.len() == in_flight, "{} chains of {in_flight} came back", kept.len());
        }
    }
    Ok(())
}

fn queue_reset<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut live = Live::set_up(slot, variant)?;
    for _ in 0..3 {
        live.ask(1, 16)?;
        live.bytes()?;
        let Live { mut device, queue, interrupts } = live;
        let kept = device.reset_queue(queue)?;
        ensure!(kept.is_empty(), "{} chains were in flight", kept.len());
        let queue = device.queue(0, options(interrupts, 4))?;
        live = Live { device, queue, interrupts };
    }
    live.ask(1, 16)?;
    live.bytes()?;
    Ok(())
}

/// A buffer without a byte, which no driver may make available: the device stops, says so, and works again after a reset.
fn broken<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let mut live = Live::set_up(slot, variant)?;
    live.device.check()?;
    let config = live.interrupts.config;
    let seen = config.seen();
    let buffers = live.device.buffers(1, 16)?;
    let segments = [Segment::from(&buffers[0]), Segment { addr: Gpa(0), len: 0 }];
    live.queue.add(&[], &segments, buffers).map_err(|refused| refused.error)?;
    live.queue.publish();
    let needs_reset = |live: &mut Live<S>| matches!(live.device.check(), Err(Error::NeedsReset));
    ensure!(wait_until(LIMIT, || needs_reset(&mut live)), "the device does not say that it needs a reset");
    ensure!(config.wait(seen, LIMIT), "no interrupt tells that the device needs a reset");
    drop(live);

    let mut live = Live::set_up(slot, variant)?;
    live.device.check()?;
    live.ask(1, 16)?;
    ensure!(!live.bytes()?.is_empty(), "no bytes after the reset");
    Ok(())
}

fn refused<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    const NO_SUCH_FEATURE: u64 = 1 << 63;
    let set_up = |wanted: &Wanted| {
        Device::set_up(slot.open()?, Arc::new(Dma), wanted, |_| Ok(())).map_err(Failure::from)
    };
    let set_up_error = |wanted: &Wanted| -> Result<Error> {
        match Device::set_up(slot.open()?, Arc::new(Dma), wanted, |_| Ok(())) {
            Ok(_) => fail!("the device was set up"),
            Err(error) => Ok(error),
        }
    };
    let wanted = wanted(variant);
    let error = set_up_error(&Wanted { id: ENTROPY + 1, ..wanted })?;
    ensure!(matches!(error, Error::WrongDevice { .. }), "{error}");
    let error = set_up_error(&Wanted { required: NO_SUCH_FEATURE, ..wanted })?;
    ensure!(matches!(error, Error::LacksFeatures { missing: NO_SUCH_FEATURE }), "{error}");
    let (mut device, ()) = set_up(&wanted)?;
    let Err(error) = device.queue::<()>(1, QueueOptions::default()) else {
        fail!("an entropy device has a second queue")
    };
    ensure!(matches!(error, Error::NoQueue { index: 1 }), "{error}");
    Ok(())
}
