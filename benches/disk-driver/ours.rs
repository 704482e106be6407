//! Ringway's own driver.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ringway_driver::QueueOptions;
use ringway_driver::blk::{Blk, Operation, Options};
use ringway_driver::transport::vhost_user::{Pages, SharedMemory, VhostUser};
use ringway_memory::SharedBuf;
use ringway_spec::blk::{DEVICE_ID, SECTOR_SIZE};
use ringway_spec::feature::{RING_INDIRECT_DESC, RING_PACKED};

use crate::load::{Driver, Load};

/// Rings and slots of headers, beside the data.
const RINGS: usize = 16 << 20;
/// Requests that are shown to the device at once. Of whole bursts the driver and the device would take turns, and each wait for
/// the other.
const SHARE: usize = 4;

pub(crate) struct Ours {
    disk: Blk<VhostUser>,
    /// The buffers of slots that have no request in flight.
    buffers: Vec<Vec<Option<SharedBuf>>>,
    /// Requests of each queue that the device does not see yet.
    unseen: Vec<usize>,
    load: Load,
}

impl Driver for Ours {
    fn attach(socket: &Path, load: &Load) -> Result<Self> {
        let data = load.queues * load.depth * load.block;
        let memory = SharedMemory::new((data + RINGS).next_multiple_of(2 << 20) as u64, Pages::Small)?;
        let transport = VhostUser::connect(socket, DEVICE_ID, &memory)?;
        let queue = QueueOptions { max_size: load.queue_size, ..Default::default() };
        // As the other driver: chains in the ring.
        let without = RING_INDIRECT_DESC | if load.packed { 0 } else { RING_PACKED };
        let queues = load.queues as u16;
        let options = Options { queues, queue, without, ..Default::default() };
        let mut disk = Blk::new(transport, Arc::new(memory), options)?;
        ensure!(disk.queues() == queues, "the disk has {} queues", disk.queues());
        ensure!(load.packed == (disk.features() & RING_PACKED != 0), "the back-end has no packed rings");
        let contents: Vec<u8> = (0..load.block).map(|at| (at % 251) as u8).collect();
        let mut fill = || {
            let mut buffers = disk.buffers(load.depth, load.block as u32)?;
            for buffer in &mut buffers {
                buffer.write(&contents);
            }
            Ok(buffers.into_iter().map(Some).collect())
        };
        let buffers = (0..load.queues).map(|_| fill()).collect::<Result<_>>()?;
        Ok(Self { disk, buffers, unseen: vec![0; load.queues], load: load.clone() })
    }

    fn capacity(&self) -> Result<u64> {
        Ok(self.disk.properties().capacity * u64::from(SECTOR_SIZE))
    }

    fn has_completed(&mut self, queue: usize) -> bool {
        self.disk.has_completed(queue as u16)
    }

    fn complete(&mut self, queue: usize) -> Result<Option<usize>> {
        let Some(done) = self.disk.complete(queue as u16)? else { return Ok(None) };
        done.result?;
        let slot = done.token as usize;
        self.buffers[queue][slot] = done.buffer;
        Ok(Some(slot))
    }

    fn submit(&mut self, queue: usize, slot: usize, offset: u64, write: bool) -> Result<()> {
        let buffer = self.buffers[queue][slot].take().context("the slot is in use")?;
        let (sector, len) = (offset / u64::from(SECTOR_SIZE), self.load.block as u32);
        let operation =
            if write { Operation::Write { sector, len } } else { Operation::Read { sector, len } };
        let submitted = self.disk.submit(queue as u16, operation, Some(buffer), slot as u64);
        submitted.map_err(|refused| refused.error)?;
        self.unseen[queue] += 1;
        if self.unseen[queue] == SHARE { self.publish(queue) } else { Ok(()) }
    }

    fn publish(&mut self, queue: usize) -> Result<()> {
        self.unseen[queue] = 0;
        self.disk.publish(queue as u16);
        Ok(())
    }

    fn kicks(&mut self) -> u64 {
        let queues = 0..self.disk.queues();
        queues.filter_map(|queue| self.disk.transport_mut().kicks(queue)).sum()
    }
}
