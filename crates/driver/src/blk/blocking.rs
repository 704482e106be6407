//! One thing after the other: requests that are waited for, through a buffer of the driver's own.
//!
//! They go by the first queue, and may stand between requests of the caller's, whose completions are kept for
//! [`Blk::complete`]. What is larger than a request can be is cut.
#![forbid(unsafe_code)]

use ringway_memory::SharedBuf;
use ringway_queue::AddError;
use ringway_spec::blk::{self, ID_LEN, LIFETIME_LEN, Lifetime, SECTOR_SIZE};
use zerocopy::FromBytes;

use super::{Blk, BlkError, Completion, Lent, Operation, Outcome, Range, RangeLimits, Token};
use crate::{Error, Transport};

/// The queue that is used.
const QUEUE: u16 = 0;

impl<T: Transport> Blk<T> {
    /// Reads blocks from `sector` on.
    ///
    /// # Errors
    /// [`BlkError`]; `to` may be filled in part.
    pub fn read_blocks(&mut self, sector: u64, to: &mut [u8]) -> Result<(), BlkError> {
        self.properties.check_range(sector, to.len() as u64)?;
        let step = self.step();
        for (sector, part) in steps(sector, step).zip(to.chunks_mut(step as usize)) {
            let staging = self.staging()?;
            let operation = Operation::Read { sector, len: part.len() as u32 };
            self.carry_out(operation, Some(staging))?;
            self.answer(part);
        }
        Ok(())
    }

    /// Writes blocks from `sector` on. They are stable after a [flush](Blk::flush), or at once if the disk is not
    /// [writeback](super::Properties::writeback).
    ///
    /// # Errors
    /// [`BlkError`]; a part may have been written.
    pub fn write_blocks(&mut self, sector: u64, from: &[u8]) -> Result<(), BlkError> {
        self.properties.check_range(sector, from.len() as u64)?;
        let step = self.step();
        for (sector, part) in steps(sector, step).zip(from.chunks(step as usize)) {
            let mut staging = self.staging()?;
            staging.write(part);
            let operation = Operation::Write { sector, len: part.len() as u32 };
            self.carry_out(operation, Some(staging))?;
        }
        Ok(())
    }

    /// Makes stable what was written by requests that are complete. Where there is no flush it is so already (5.2.5.1).
    ///
    /// # Errors
    /// [`BlkError`]; nothing is known of what was written then.
    pub fn flush(&mut self) -> Result<(), BlkError> {
        if !self.device.has(blk::F_FLUSH) {
            return Ok(());
        }
        self.carry_out(Operation::Flush, None)
    }

    /// Switches between writeback and writethrough. What was written before is flushed on the way to the latter: the switch
    /// alone does not do that.
    ///
    /// # Errors
    /// [`Error::NotNegotiated`] if the device cannot be switched.
    pub fn set_writeback(&mut self, writeback: bool) -> Result<(), BlkError> {
        let feature = blk::F_CONFIG_WCE;
        if !self.device.has(feature) {
            return Err(Error::NotNegotiated { feature }.into());
        }
        self.device.write_config_u8(blk::CONFIG_WRITEBACK, writeback.into())?;
        self.refresh()?;
        if writeback { Ok(()) } else { self.flush() }
    }

    /// The disk's name: ASCII, and zeros behind it if it is shorter.
    ///
    /// # Errors
    /// [`BlkError`].
    pub fn id(&mut self) -> Result<[u8; ID_LEN], BlkError> {
        self.ask(Operation::Id)
    }

    /// How worn the storage is.
    ///
    /// # Errors
    /// [`BlkError`]; [`Error::NotNegotiated`] if the device does not say.
    pub fn lifetime(&mut self) -> Result<Lifetime, BlkError> {
        let bytes = self.ask::<LIFETIME_LEN>(Operation::Lifetime)?;
        Lifetime::read_from_bytes(&bytes).map_err(|_| Error::BadAnswer { what: "its lifetime" }.into())
    }

    /// Says that sectors are not needed any longer: what is read of them then can be anything.
    ///
    /// # Errors
    /// [`BlkError`]; some may have been discarded, any of them.
    pub fn discard(&mut self, sector: u64, count: u64) -> Result<(), BlkError> {
        let limits = self.properties.discard;
        self.for_ranges(sector, count, limits, |blk, ranges, staging| {
            blk.carry_out(Operation::Discard(ranges), Some(staging))
        })
    }

    /// Has sectors read as zeroes; with `unmap` they may be left without storage.
    ///
    /// # Errors
    /// [`BlkError`]; some may have been zeroed, any of them.
    pub fn write_zeroes(&mut self, sector: u64, count: u64, unmap: bool) -> Result<(), BlkError> {
        let limits = self.properties.write_zeroes;
        self.for_ranges(sector, count, limits, |blk, ranges, staging| {
            blk.carry_out(Operation::WriteZeroes { ranges, unmap }, Some(staging))
        })
    }

    /// Erases sectors so that nobody reads again what was in them.
    ///
    /// # Errors
    /// [`BlkError`]; some may have been erased, any of them.
    pub fn secure_erase(&mut self, sector: u64, count: u64) -> Result<(), BlkError> {
        let limits = self.properties.secure_erase;
        self.for_ranges(sector, count, limits, |blk, ranges, staging| {
            blk.carry_out(Operation::SecureErase(ranges), Some(staging))
        })
    }

    /// Bytes that are copied at a time: whole blocks.
    fn step(&self) -> u32 {
        let staging = self.staging.as_ref().map_or(SECTOR_SIZE, SharedBuf::len);
        let whole = staging - staging % self.properties.block_size;
        whole.clamp(self.properties.block_size, self.max_request)
    }

    fn staging(&mut self) -> Result<SharedBuf, BlkError> {
        // The device may be done by now with what it was not done with in time.
        if self.staging.is_none() {
            self.turn()?;
        }
        self.staging.take().ok_or(Error::TimedOut { what: "an earlier request's end" }.into())
    }

    /// Asks what is answered by bytes.
    fn ask<const N: usize>(&mut self, operation: Operation<'_>) -> Result<[u8; N], BlkError> {
        let staging = self.staging()?;
        self.carry_out(operation, Some(staging))?;
        let mut bytes = [0; N];
        self.answer(&mut bytes);
        Ok(bytes)
    }

    /// Copies what a request has brought that is done.
    fn answer(&self, to: &mut [u8]) {
        if let Some(staging) = &self.staging {
            staging.read(to);
        }
    }

    /// Does something to sectors, as many at a time as the disk takes in a range.
    fn for_ranges(
        &mut self,
        sector: u64,
        count: u64,
        limits: Option<RangeLimits>,
        mut request: impl FnMut(&mut Self, &[Range], SharedBuf) -> Result<(), BlkError>,
    ) -> Result<(), BlkError> {
        self.properties.check_range(sector, count.saturating_mul(SECTOR_SIZE.into()))?;
        let (mut sector, mut left) = (sector, count);
        let best = limits.map_or(0, |limits| limits.best(self.properties.block_size / SECTOR_SIZE));
        while left > 0 {
            // Up to a multiple of what is best, and from there on in steps of it. Where there is none, a request says why.
            let to_cut = if best == 0 { left } else { u64::from(best) - sector % u64::from(best) };
            let count = left.min(to_cut).min(u32::MAX.into());
            let staging = self.staging()?;
            request(self, &[Range { sector, count: count as u32 }], staging)?;
            sector += count;
            left -= count;
        }
        Ok(())
    }

    /// Submits a request and waits until it is complete. The staging buffer is back then, if it has that.
    fn carry_out(&mut self, operation: Operation<'_>, buffer: Option<SharedBuf>) -> Result<(), BlkError> {
        self.calls = self.calls.wrapping_add(1);
        self.add_blocking(operation, buffer)?;
        self.publish(QUEUE);
        let mut round = 0;
        loop {
            if let Some(outcome) = self.turn()? {
                return Ok(outcome?);
            }
            self.pause(&mut round)?;
        }
    }

    /// Adds a request; waits for room if there is none.
    fn add_blocking(
        &mut self,
        operation: Operation<'_>,
        mut buffer: Option<SharedBuf>,
    ) -> Result<(), BlkError> {
        let token = Token::Blocking(self.calls);
        let mut round = 0;
        loop {
            let Err(refused) = self.add(QUEUE, operation, buffer, token) else {
                return Ok(());
            };
            let is_full = matches!(refused.error, BlkError::Device(Error::Add(AddError::Full)));
            if !is_full || round > 0 && self.pause(&mut round).is_err() {
                self.staging = self.staging.take().or(refused.buffer);
                return Err(refused.error);
            }
            buffer = refused.buffer;
            // Nothing becomes free of what the device was not shown.
            self.publish(QUEUE);
            self.turn()?;
            round = round.saturating_add(1);
        }
    }

    fn pause(&self, round: &mut u32) -> Result<(), BlkError> {
        if !self.device.wait(*round) {
            return Err(Error::TimedOut { what: "a request's end" }.into());
        }
        *round = round.saturating_add(1);
        Ok(())
    }

    /// Takes what is complete; how the last call's request went, if it is among that.
    fn turn(&mut self) -> Result<Option<Outcome>, Error> {
        let mut own = None;
        let queue = self.queues.get_mut(usize::from(QUEUE)).ok_or(Error::NoQueue { index: QUEUE })?;
        while let Some((Lent { buffer, token, .. }, outcome)) = queue.reclaim()? {
            match token {
                Token::Caller(token) => queue.early.push_back(Completion { token, result: outcome, buffer }),
                Token::Blocking(call) => {
                    // Calls before did not wait so long.
                    if call == self.calls {
                        own = Some(outcome);
                    }
                    self.staging = self.staging.take().or(buffer);
                }
            }
        }
        Ok(own)
    }
}

/// The sectors that steps of so many bytes begin at.
fn steps(sector: u64, step: u32) -> impl Iterator<Item = u64> {
    (sector..).step_by((step / SECTOR_SIZE) as usize)
}
