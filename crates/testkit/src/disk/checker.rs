//! What a disk owes to who writes to it, watched while its server is killed.
//!
//! Writes and reads go to random blocks, dozens at once. A block is written to by one request at a time, so it is known
//! what it may hold:
//!
//! ```text
//!   write 7 done        write 9 goes out             write 9 done
//!        │ 7, always         │  7 or 9, sector by sector    │ 9, always, and never 7 again
//! ```
//!
//! Each sector written says which one it is, and the number of its write. So what is found out is a write that was
//! acknowledged and is not there, one that was never asked for, and one of a server which is dead by now that comes late
//! and undoes a newer one. A read is held to what was acknowledged before it went out. That no request is lost or done
//! twice the [driver](super::DiskDriver) sees, by its ring and by the status bytes.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringway_spec::blk;
use ringway_vhost::frontend::Connection;

use super::{Ask, DiskDriver, DiskOptions, Done};

const SECTOR: usize = blk::SECTOR_SIZE as usize;
/// What is written at once and read at once is some of these.
const BLOCK: usize = 4096;
/// The most blocks of a request.
const MAX_BLOCKS: u64 = 4;

/// What a block may hold: the numbers of writes, 0 if there was none.
#[derive(Clone, Copy, Default)]
struct Block {
    /// The newest that is done.
    acked: u64,
    /// The newest that went out.
    newest: u64,
    /// It is under way.
    busy: bool,
}

/// A request under way.
struct Under {
    /// Its first block.
    block: u64,
    /// What its blocks held at least when it went out.
    acked: Vec<u64>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads, all of them right.
    pub reads: u64,
    /// Flushes.
    pub flushes: u64,
}

/// A driver whose every request is checked.
pub struct Checker {
    driver: DiskDriver,
    blocks: Vec<Block>,
    under_way: HashMap<u64, Under>,
    /// The number of the next request.
    next: u64,
    random: Random,
    tally: Tally,
}

impl Checker {
    /// A driver for a disk of zeroes, whose requests are drawn by `seed`.
    ///
    /// # Errors
    /// As of [`DiskDriver::start`].
    pub fn start(connection: Connection, options: DiskOptions, seed: u64) -> Result<Self> {
        let mut driver = DiskDriver::start(connection, options)?;
        let blocks = vec![Block::default(); driver.size()? as usize / BLOCK];
        ensure!(blocks.len() as u64 > 2 * MAX_BLOCKS, "too small a disk");
        let random = Random(seed);
        Ok(Self { driver, blocks, under_way: HashMap::new(), next: 1, random, tally: Tally::default() })
    }

    /// What was done so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// A number below `n`, by the seed.
    pub fn below(&mut self, n: u64) -> u64 {
        self.random.below(n)
    }

    /// Goes on with another back-end.
    ///
    /// # Errors
    /// As of [`DiskDriver::start`].
    pub fn reconnect(&mut self, connection: Connection) -> Result<()> {
        self.driver.reconnect(connection)
    }

    /// Goes away with requests under way, and comes again as another front-end with memory of its own. What was written and
    /// not acknowledged may be there or not; once something newer is, it may not come back.
    ///
    /// # Errors
    /// As of [`DiskDriver::start`].
    pub fn replace(&mut self, connection: impl FnOnce() -> Connection, options: DiskOptions) -> Result<()> {
        self.driver.frontend.connection().close();
        self.driver = DiskDriver::start(connection(), options)?;
        self.under_way.clear();
        self.blocks.iter_mut().for_each(|block| block.busy = false);
        Ok(())
    }

    /// Keeps as many requests under way as can be, for so long.
    ///
    /// # Errors
    /// If anything is not as it should be.
    pub fn run(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.fill()?;
            self.reap(Duration::from_millis(1).min(time))?;
        }
        Ok(())
    }

    /// Adds requests while there is room, without looking at any that is done.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fill(&mut self) -> Result<()> {
        for queue in 0..self.driver.queues() {
            while self.driver.has_room(queue) {
                self.add(queue)?;
            }
            self.driver.publish(queue)?;
        }
        Ok(())
    }

    /// Goes on until all that is under way now is done; how long that took.
    ///
    /// # Errors
    /// If a request is not done within `limit`, or anything is not as it should be.
    pub fn settle(&mut self, limit: Duration) -> Result<Duration> {
        let (start, last) = (Instant::now(), self.next);
        while let Some(oldest) = self.under_way.keys().min().filter(|tag| **tag < last) {
            ensure!(start.elapsed() < limit, "request {oldest} is not done within {limit:?}");
            self.fill()?;
            self.reap(Duration::from_millis(1))?;
        }
        Ok(start.elapsed())
    }

    /// Waits until nothing is under way, and reads all of the disk.
    ///
    /// # Errors
    /// If anything is not as it should be.
    pub fn finish(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut next_block = 0;
        loop {
            while self.driver.has_room(0) && next_block < self.blocks.len() as u64 {
                let count = MAX_BLOCKS.min(self.blocks.len() as u64 - next_block);
                self.ask(0, blk::T_IN, next_block, count)?;
                next_block += count;
            }
            self.driver.publish(0)?;
            if self.under_way.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{} requests are not done within {limit:?}",
                self.under_way.len()
            );
            self.reap(Duration::from_millis(1))?;
        }
    }

    /// Looks at the image itself: all that was acknowledged is there, and nothing else. Nothing may be under way.
    ///
    /// # Errors
    /// If that is not so.
    pub fn look_at(&self, image: &Path) -> Result<()> {
        ensure!(self.under_way.is_empty(), "{} requests are under way", self.under_way.len());
        let bytes = std::fs::read(image)?;
        ensure!(bytes.len() == self.blocks.len() * BLOCK, "the image has {} bytes", bytes.len());
        for (at, content) in bytes.chunks(BLOCK).enumerate() {
            check(self.blocks[at], at as u64, content, self.blocks[at].acked).context("in the image")?;
        }
        Ok(())
    }

    /// Draws a request and adds it.
    fn add(&mut self, queue: usize) -> Result<()> {
        let count = 1 + self.random.below(MAX_BLOCKS);
        let block = self.random.below(self.blocks.len() as u64 - count + 1);
        match self.random.below(16) {
            0 => self.ask(queue, blk::T_FLUSH, 0, 0),
            1..=4 => self.ask(queue, blk::T_IN, block, count),
            _ if self.range(block, count).iter().any(|block| block.busy) => {
                self.ask(queue, blk::T_IN, block, count)
            }
            _ => self.ask(queue, blk::T_OUT, block, count),
        }
    }

    fn ask(&mut self, queue: usize, kind: u32, block: u64, count: u64) -> Result<()> {
        let tag = self.next;
        self.next += 1;
        let sector = block * (BLOCK / SECTOR) as u64;
        let len = count as usize * BLOCK;
        let data = if kind == blk::T_OUT { content(sector, len, tag) } else { Vec::new() };
        let acked = self.range(block, count).iter().map(|block| block.acked).collect();
        if kind == blk::T_OUT {
            for block in self.range(block, count) {
                (block.newest, block.busy) = (tag, true);
            }
        }
        self.under_way.insert(tag, Under { block, acked });
        self.driver.submit(queue, Ask { kind, sector, len: len as u32, tag }, &data)
    }

    /// Looks at all that is done; waits up to `limit` if nothing is.
    fn reap(&mut self, limit: Duration) -> Result<()> {
        let mut count = 0;
        for queue in 0..self.driver.queues() {
            while let Some(done) = self.driver.completed(queue)? {
                self.judge(&done).with_context(|| format!("{:?}", done.ask))?;
                count += 1;
            }
        }
        if count == 0 {
            let queue = self.random.below(self.driver.queues() as u64) as usize;
            self.driver.wait(queue, limit)?;
        }
        Ok(())
    }

    fn judge(&mut self, done: &Done) -> Result<()> {
        let Ask { kind, tag, len, .. } = done.ask;
        let under = self.under_way.remove(&tag).context("it is done twice")?;
        ensure!(done.status == blk::S_OK, "status {}", done.status);
        match kind {
            blk::T_OUT => {
                for block in self.range(under.block, u64::from(len) / BLOCK as u64) {
                    *block = Block { acked: tag, newest: tag, busy: false };
                }
                self.tally.writes += 1;
            }
            blk::T_IN => {
                for (i, (content, acked)) in done.data.chunks(BLOCK).zip(under.acked).enumerate() {
                    let at = under.block + i as u64;
                    check(self.blocks[at as usize], at, content, acked)?;
                }
                self.tally.reads += 1;
            }
            _ => self.tally.flushes += 1,
        }
        Ok(())
    }

    fn range(&mut self, block: u64, count: u64) -> &mut [Block] {
        &mut self.blocks[block as usize..(block + count) as usize]
    }
}

/// Each sector of block `at` holds what was written to it, by a write as new as `acked` or newer, as far as there is one.
fn check(block: Block, at: u64, bytes: &[u8], acked: u64) -> Result<()> {
    for (sector, bytes) in (at * (BLOCK / SECTOR) as u64..).zip(bytes.chunks(SECTOR)) {
        let number = u64::from_le_bytes(*bytes.last_chunk().context("a sector")?);
        if number < acked || number > block.newest {
            bail!("sector {sector} is of write {number}, not of {acked} to {}", block.newest);
        }
        let due = if number == 0 { vec![0; SECTOR] } else { content(sector, SECTOR, number) };
        ensure!(bytes == due, "sector {sector} of write {number} is damaged");
    }
    Ok(())
}

/// What write `number` writes from `sector` on: both numbers, in turns.
fn content(sector: u64, len: usize, number: u64) -> Vec<u8> {
    let words = |sector: u64| [sector.to_le_bytes(), number.to_le_bytes()].concat().repeat(SECTOR / 16);
    (sector..).map(words).take(len / SECTOR).flatten().collect()
}

/// Numbers that look random, from a seed: `SplitMix64`.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next, below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Write 5 is done, and 7 under way.
    const BUSY: Block = Block { acked: 5, newest: 7, busy: true };

    fn block(numbers: [u64; 2]) -> Vec<u8> {
        numbers
            .iter()
            .zip([24, 28])
            .flat_map(|(number, sector)| content(sector, BLOCK / 2, *number))
            .collect()
    }

    #[test]
    fn a_block_under_way_is_old_or_new_by_sectors() {
        for numbers in [[5, 5], [5, 7], [7, 5], [7, 7]] {
            check(BUSY, 3, &block(numbers), 5).unwrap();
        }
        check(Block::default(), 3, &[0; BLOCK], 0).unwrap();
    }

    #[test]
    fn what_is_old_or_unheard_of_or_elsewhere_or_torn_is_found() {
        let torn = [&block([7, 7])[..100], &block([5, 5])[100..]].concat();
        for (at, bytes) in
            [(3, block([5, 4])), (3, block([8, 7])), (3, vec![0; BLOCK]), (2, block([5, 5])), (3, torn)]
        {
            check(BUSY, at, &bytes, 5).unwrap_err();
        }
        // A read that went out when write 7 was done.
        check(Block { acked: 7, newest: 7, busy: false }, 3, &block([5, 5]), 7).unwrap_err();
    }
}
