//! Disks. The first can be written to and has several queues, the second cannot be written to.
//!
//! The host has filled both: each sector with its number, as 64 words of 8 bytes.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use ringway_driver::blk::{Blk, BlkError, Completion, Operation, Options};
use ringway_driver::{Error, Interrupt, QueueOptions, Transport};
use ringway_queue::AddError;
use ringway_spec::blk::DEVICE_ID;

use super::{LIMIT, Random, Tally, Variant, ask, device, devices};
use crate::bus::{Interrupts, Slot};
use crate::failure::{Result, ensure, fail};
use crate::interrupts::wait_until;
use crate::memory::Dma;

const SECTOR: usize = 512;
/// Sectors of both disks, at first.
const CAPACITY: u64 = 32768;
/// What the disk becomes when the host is asked.
const GROWN: u64 = 40960;
const QUEUES: u16 = 2;
const QUEUE_SIZE: u16 = 128;

pub(super) fn run<S: Slot>(tally: &mut Tally, slots: &[S], variant: Variant) {
    tally.check("what the disk says", || properties(device(slots, DEVICE_ID)?, variant));
    tally.check("what the host wrote is read", || host_wrote(device(slots, DEVICE_ID)?, variant));
    tally.check("what was written is read", || written(device(slots, DEVICE_ID)?, variant));
    tally.check("zeroes and discards", || zeroes(device(slots, DEVICE_ID)?, variant));
    tally.check("10000 requests, many at once", || many(device(slots, DEVICE_ID)?, variant));
    tally.check("an interrupt for each queue", || interrupts(device(slots, DEVICE_ID)?, variant));
    tally.check("past the end", || past_the_end(device(slots, DEVICE_ID)?, variant));
    tally.check("stopped with requests in flight", || stopped(device(slots, DEVICE_ID)?, variant));
    tally.check("another size", || resized(device(slots, DEVICE_ID)?, variant));
    tally.check("a disk that cannot be written to", || read_only(slots, variant));
}

fn open<S: Slot>(slot: &S, variant: Variant) -> Result<(Blk<S::Transport>, Interrupts)> {
    let interrupts = slot.interrupts();
    let queue = QueueOptions { max_size: QUEUE_SIZE, table_entries: 8, vector: interrupts.queues.entry };
    let options = Options { queues: QUEUES, queue, without: variant.without, staging: 64 << 10 };
    let mut disk = Blk::new(slot.open()?, Arc::new(Dma), options)?;
    disk.transport_mut().set_config_vector(interrupts.config.entry)?;
    Ok((disk, interrupts))
}

/// A sector that has its number and the generation of its contents in all words.
fn sector(number: u64, generation: u64) -> Vec<u8> {
    let word = number | generation << 32;
    word.to_le_bytes().repeat(SECTOR / 8)
}

fn properties<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let (mut disk, _) = open(slot, variant)?;
    let properties = *disk.properties();
    ensure!(properties.capacity == CAPACITY, "{properties:?}");
    ensure!(
        properties.block_size == 512 && !properties.read_only && properties.queues == QUEUES,
        "{properties:?}"
    );
    ensure!(properties.discard.is_some() && properties.write_zeroes.is_some(), "{properties:?}");
    ensure!(disk.queues() == QUEUES, "{} queues", disk.queues());
    let id = disk.id()?;
    ensure!(id.starts_with(b"ringway-bare\0"), "the disk is {id:?}");
    let writeback = properties.writeback;
    disk.set_writeback(!writeback)?;
    disk.refresh()?;
    ensure!(disk.properties().writeback != writeback, "the cache was not switched");
    disk.set_writeback(writeback)?;
    Ok(())
}

fn host_wrote<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let (mut disk, _) = open(slot, variant)?;
    // The last quarter is not written to by any check.
    for first in [CAPACITY - 1, CAPACITY - 200, CAPACITY - 8192] {
        let count = (CAPACITY - first).min(200);
        let mut bytes = vec![0; count as usize * SECTOR];
        disk.read_blocks(first, &mut bytes)?;
        for (number, bytes) in (first..).zip(bytes.chunks(SECTOR)) {
            ensure!(bytes == sector(number, 0), "sector {number} begins with {:x?}", &bytes[..8]);
        }
    }
    Ok(())
}

fn written<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    const COUNT: u64 = 500;
    for generation in 1..3 {
        let (mut disk, _) = open(slot, variant)?;
        let bytes: Vec<_> = (0..COUNT).flat_map(|number| sector(number, generation)).collect();
        disk.write_blocks(0, &bytes)?;
        disk.flush()?;
        drop(disk);
        let (mut disk, _) = open(slot, variant)?;
        let mut found = vec![0; bytes.len()];
        disk.read_blocks(0, &mut found)?;
        ensure!(found == bytes, "other bytes than those written, generation {generation}");
    }
    Ok(())
}

fn zeroes<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let (mut disk, _) = open(slot, variant)?;
    disk.write_blocks(1000, &vec![0xa5; 100 * SECTOR])?;
    disk.write_zeroes(1010, 50, false)?;
    disk.write_zeroes(1070, 10, true)?;
    let mut bytes = vec![0; 100 * SECTOR];
    disk.read_blocks(1000, &mut bytes)?;
    for (number, bytes) in bytes.chunks(SECTOR).enumerate() {
        let expected = if (10..60).contains(&number) || (70..80).contains(&number) { 0 } else { 0xa5 };
        ensure!(
            bytes.iter().all(|byte| *byte == expected),
            "sector {number} behind 1000 is not all {expected:#x}"
        );
    }
    disk.discard(1000, 100)?;
    disk.flush()?;
    Ok(())
}

/// Reads and writes at random places of both queues; what is read is what was written there last.
fn many<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    const REQUESTS: u64 = 10_000;
    const PLACES: usize = 256;
    const DEPTH: usize = 40;
    const FIRST: u64 = 4096;
    let (mut disk, _) = open(slot, variant)?;
    let mut random = Random::new(1);
    // What each place has; none while a request is on its way there.
    let mut places: Vec<Option<u64>> = vec![Some(0); PLACES];
    for place in 0..PLACES as u64 {
        disk.write_blocks(FIRST + place * 4, &sector(place, 0).repeat(4))?;
    }
    let mut buffers = disk.buffers(DEPTH, 4 * SECTOR as u32)?;
    let (mut submitted, mut done) = (0, 0);
    // By its token: the place, and what it has when the request is done.
    let mut asked: Vec<(usize, u64, bool)> = Vec::new();
    while done < REQUESTS {
        while submitted < REQUESTS
            && let Some(mut buffer) = buffers.pop()
        {
            let place = loop {
                let place = random.below(PLACES as u64) as usize;
                if places[place].is_some() {
                    break place;
                }
            };
            let before = places[place].take().unwrap_or_default();
            let is_write = random.below(2) == 0;
            let generation = if is_write { submitted + 1 } else { before };
            let bytes = if is_write { sector(place as u64, generation) } else { vec![0xee; SECTOR] };
            buffer.write(&bytes.repeat(4));
            let (first, len) = (FIRST + place as u64 * 4, 4 * SECTOR as u32);
            let operation = if is_write {
                Operation::Write { sector: first, len }
            } else {
                Operation::Read { sector: first, len }
            };
            disk.submit(submitted as u16 % QUEUES, operation, Some(buffer), submitted)
                .map_err(|refused| refused.error)?;
            asked.push((place, generation, is_write));
            submitted += 1;
        }
        for queue in 0..QUEUES {
            disk.publish(queue);
        }
        let Completion { token, result, buffer } = next(&mut disk)?;
        result?;
        let Some(buffer) = buffer else { fail!("request {token} came back without its buffer") };
        let (place, generation, is_write) = asked[token as usize];
        if !is_write {
            let mut found = vec![0; 4 * SECTOR];
            buffer.read(&mut found);
            let expected = sector(place as u64, generation).repeat(4);
            ensure!(found == expected, "place {place} has {:x?} after {done} requests", &found[..8]);
        }
        places[place] = Some(generation);
        buffers.push(buffer);
        done += 1;
    }
    Ok(())
}

/// Waits for a request to be complete, of any queue.
fn next<T: Transport>(disk: &mut Blk<T>) -> Result<Completion> {
    let mut found = None;
    wait_until(LIMIT, || {
        found = (0..QUEUES).find_map(|queue| disk.complete(queue).transpose());
        // What is complete from here on ends the sleep.
        if found.is_none() && (0..QUEUES).fold(false, |is_there, queue| disk.arm(queue) | is_there) {
            found = (0..QUEUES).find_map(|queue| disk.complete(queue).transpose());
        }
        found.is_some()
    });
    let Some(completion) = found else { fail!("no request is complete in time") };
    Ok(completion?)
}

fn interrupts<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let (mut disk, interrupts) = open(slot, variant)?;
    let mut buffers = disk.buffers(1, SECTOR as u32)?;
    for round in 0..20 {
        // One vector is for the first queue, and with MSI-X the next one is for the second.
        let source = interrupts.queue(round % QUEUES);
        ensure!(!disk.arm(round % QUEUES), "a request is complete that was not made");
        let seen = source.seen();
        let read = Operation::Read { sector: 0, len: SECTOR as u32 };
        disk.submit(round % QUEUES, read, buffers.pop(), 7).map_err(|refused| refused.error)?;
        disk.publish(round % QUEUES);
        ensure!(source.wait(seen, LIMIT), "no interrupt in round {round}");
        let what = disk.interrupt()?;
        ensure!(what.contains(Interrupt::QUEUE), "the interrupt is about {what:?}");
        let Some(done) = disk.complete(round % QUEUES)? else {
            fail!("nothing is complete after an interrupt")
        };
        done.result?;
        buffers.extend(done.buffer);
        disk.suppress(round % QUEUES);
    }
    Ok(())
}

fn past_the_end<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let (mut disk, _) = open(slot, variant)?;
    let capacity = disk.properties().capacity;
    let error = disk.read_blocks(capacity, &mut [0; SECTOR]).err();
    ensure!(matches!(error, Some(BlkError::OutOfRange { .. })), "reading past the end: {error:?}");
    // What the driver refuses is not asked; the disk still answers, and full queues are told as such.
    let buffers = disk.buffers(usize::from(QUEUE_SIZE) + 1, SECTOR as u32)?;
    let mut taken = 0;
    for buffer in buffers {
        let read = Operation::Read { sector: 0, len: SECTOR as u32 };
        match disk.submit(0, read, Some(buffer), 0) {
            Ok(()) => taken += 1,
            Err(refused) => {
                let is_full = matches!(refused.error, BlkError::Device(Error::Add(AddError::Full)));
                ensure!(is_full, "{}", refused.error);
            }
        }
    }
    disk.publish(0);
    ensure!(
        (QUEUE_SIZE / 3..=QUEUE_SIZE).contains(&taken),
        "{taken} requests fit into a queue of {QUEUE_SIZE}"
    );
    for _ in 0..taken {
        next(&mut disk)?.result?;
    }
    Ok(())
}

fn stopped<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    for count in 0..10 {
        let (mut disk, _) = open(slot, variant)?;
        for (token, buffer) in (0..).zip(disk.buffers(count, 4096)?) {
            let read = Operation::Read { sector: 8 * token, len: 4096 };
            disk.submit(0, read, Some(buffer), token).map_err(|refused| refused.error)?;
        }
        disk.publish(0);
        let mut back = usize::from(disk.complete(0)?.is_some());
        back += disk.stop()?.0.len();
        ensure!(back == count, "{back} of {count} buffers came back");
    }
    Ok(())
}

/// The host changes the size of the disk, and the driver is told.
fn resized<S: Slot>(slot: &S, variant: Variant) -> Result<()> {
    let (mut disk, interrupts) = open(slot, variant)?;
    for (request, capacity) in [("resize d0 20971520", GROWN), ("resize d0 16777216", CAPACITY)] {
        let seen = interrupts.config.seen();
        ask(request);
        ensure!(interrupts.config.wait(seen, LIMIT), "no interrupt tells of another size");
        disk.interrupt()?;
        ensure!(disk.properties().capacity == capacity, "{} sectors", disk.properties().capacity);
    }
    Ok(())
}

fn read_only<S: Slot>(slots: &[S], variant: Variant) -> Result<()> {
    let Some(slot) = devices(slots, DEVICE_ID).nth(1) else { fail!("there is no second disk") };
    let (mut disk, _) = open(slot, variant)?;
    ensure!(disk.properties().read_only, "{:?}", disk.properties());
    let error = disk.write_blocks(0, &[0; SECTOR]).err();
    ensure!(matches!(error, Some(BlkError::ReadOnly)), "writing: {error:?}");
    let mut bytes = [0; SECTOR];
    disk.read_blocks(9, &mut bytes)?;
    ensure!(bytes[..] == sector(9, 0), "sector 9 begins with {:x?}", &bytes[..8]);
    Ok(())
}
