//! The crate `virtio-driver`.
#![allow(unsafe_code, reason = "the crate's driver takes buffers by their address")]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use virtio_driver::{
    QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::load::{Driver, Load};
use crate::memory::Memory;

pub(crate) struct Theirs {
    queues: Vec<(VirtioBlkQueue<'static, usize>, Box<dyn QueueNotifier>)>,
    load: Load,
    memory: Memory,
    kicks: u64,
    /// Has the rings' memory, and so goes last.
    transport: Box<VirtioBlkTransport>,
}

impl Driver for Theirs {
    fn attach(socket: &Path, load: &Load) -> Result<Self> {
        let mut ring = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        ring.set(VirtioFeatureFlags::RING_PACKED, load.packed);
        // Without FLUSH every write would have to be stable at once.
        let mut disk = VirtioBlkFeatureFlags::FLUSH;
        disk.set(VirtioBlkFeatureFlags::MQ, load.queues > 1);
        let wanted = ring.bits() | disk.bits();
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, wanted).context("connect")?);
        let missing = wanted & !transport.get_features();
        ensure!(missing == 0, "the back-end lacks features {missing:#x}");

        let rings = VirtioBlkQueue::setup_queues(transport.as_mut(), load.queues, load.queue_size)?;
        let memory = Memory::new(load.queues * load.depth * load.block)?;
        transport.map_mem_region(memory.at(0) as usize, memory.len(), memory.fd(), 0)?;
        let queues = rings.into_iter().enumerate().map(|(index, mut ring)| {
            ring.set_used_notif_enabled(false);
            (ring, transport.get_submission_notifier(index))
        });
        let queues = queues.collect();
        Ok(Self { queues, load: load.clone(), memory, kicks: 0, transport })
    }

    fn capacity(&self) -> Result<u64> {
        Ok(u64::from(self.transport.get_config()?.capacity) * 512)
    }

    fn has_completed(&mut self, queue: usize) -> bool {
        self.queues[queue].0.completions().has_next()
    }

    fn complete(&mut self, queue: usize) -> Result<Option<usize>> {
        let Some(completion) = self.queues[queue].0.completions().next() else { return Ok(None) };
        let error = || std::io::Error::from_raw_os_error(-completion.ret);
        ensure!(completion.ret == 0, "a request failed: {}", error());
        Ok(Some(completion.context))
    }

    fn submit(&mut self, queue: usize, slot: usize, offset: u64, write: bool) -> Result<()> {
        let Load { depth, block, .. } = self.load;
        let data = self.memory.at((queue * depth + slot) * block);
        let ring = &mut self.queues[queue].0;
        if write {
            // SAFETY: the slot's part of the memory is there until the process ends; nobody has a reference to it.
            unsafe { ring.write_raw(offset, data, block, slot) }?;
        } else {
            // SAFETY: as above.
            unsafe { ring.read_raw(offset, data, block, slot) }?;
        }
        Ok(())
    }

    fn publish(&mut self, queue: usize) -> Result<()> {
        let (ring, notifier) = &mut self.queues[queue];
        if ring.avail_notif_needed() {
            self.kicks += 1;
            notifier.notify()?;
        }
        Ok(())
    }

    fn kicks(&mut self) -> u64 {
        self.kicks
    }
}
