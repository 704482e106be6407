//! Requests about the guest's memory: which there is, what of it was written to, and how it arrives.
//!
//! Postcopy: the guest runs here before all its memory has arrived.
//!
//! ```text
//!        POSTCOPY_ADVISE            POSTCOPY_LISTEN          SET_MEM_TABLE       acknowledged
//!   off ────────────────► advised ────────────────► listening ──────────► mapped ───────────► listening
//!    ▲                                                                                            │
//!    └─────────────────────────────────── POSTCOPY_END ───────────────────────────────────────────┘
//! ```
//!
//! Regions that are mapped while listening are watched: who touches a page that has not arrived waits until the
//! front-end has put it there. For that the front-end is told where the regions are mapped here.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ringway_memory::{DirtyLog, FrontendVa, MapError, Mapping, MemoryTable, Region, Userfault};

use tracing::debug;

use super::{Answer, Device, MAX_REGIONS, RequestError, Session};
use crate::inflight::InflightFile;
use crate::message::{F_LOG_ALL, InflightDescription, RegionDescription, protocol_feature as pf};

/// How far a postcopy migration has come.
#[derive(Default)]
pub(super) struct Postcopy {
    /// Tells the front-end of pages that are missing; since `POSTCOPY_ADVISE`.
    userfault: Option<Userfault>,
    /// Since `POSTCOPY_LISTEN`.
    is_listening: bool,
    /// Regions were mapped, and the front-end does not know yet where.
    is_awaiting_ack: bool,
}

impl Postcopy {
    /// Whether the memory may not be touched yet.
    pub(super) fn is_awaiting_ack(&self) -> bool {
        self.is_awaiting_ack
    }

    /// Whether memory still arrives, or is about to.
    pub(super) fn is_under_way(&self) -> bool {
        self.userfault.is_some()
    }

    /// What watches regions that are mapped now.
    fn watcher(&self) -> Option<&Userfault> {
        self.userfault.as_ref().filter(|_| self.is_listening)
    }
}

impl<D: Device> Session<D> {
    pub(super) fn set_mem_table(
        &mut self,
        table: Vec<(RegionDescription, OwnedFd)>,
    ) -> Result<Answer, RequestError> {
        if table.is_empty() && self.postcopy.is_awaiting_ack {
            self.postcopy_memory_ack()?;
            return Ok(Answer::Done);
        }
        let descriptions: Vec<_> = table.iter().map(|(description, _)| *description).collect();
        let regions: Vec<_> = table.into_iter().map(|(r, file)| map(r, file)).collect::<Result<_, _>>()?;
        let memory = self.new_memory(regions.clone())?;
        let bases = self.watch(&descriptions, &regions)?;
        self.go_on_in(memory)?;
        Ok(bases.map_or(Answer::Done, |b| Answer::Reply(RegionDescription::encode_table(b.iter()), None)))
    }

    pub(super) fn add_mem_reg(
        &mut self,
        description: RegionDescription,
        file: OwnedFd,
    ) -> Result<Answer, RequestError> {
        self.require(pf::CONFIGURE_MEM_SLOTS)?;
        if self.memory.regions().len() >= MAX_REGIONS {
            return Err(RequestError::TooManyRegions);
        }
        let region = map(description, file)?;
        let added = std::slice::from_ref(&region);
        let memory = self.new_memory([self.memory.regions(), added].concat())?;
        let bases = self.watch(&[description], added)?;
        self.go_on_in(memory)?;
        Ok(match bases.as_deref() {
            Some([base]) => Answer::Reply(base.encode(), None),
            _ => Answer::Done,
        })
    }

    pub(super) fn rem_mem_reg(&mut self, region: RegionDescription) -> Result<(), RequestError> {
        self.require(pf::CONFIGURE_MEM_SLOTS)?;
        let is_other =
            |r: &&Region| (r.gpa(), r.len(), r.frontend_va()) != (region.gpa, region.len, region.frontend_va);
        let left: Vec<_> = self.memory.regions().iter().filter(is_other).cloned().collect();
        if left.len() == self.memory.regions().len() {
            return Err(RequestError::NoRegion(region));
        }
        let memory = self.new_memory(left)?;
        self.go_on_in(memory)
    }

    /// Memory of these regions. One that a running ring is not in is refused.
    fn new_memory(&self, regions: Vec<Region>) -> Result<Arc<MemoryTable>, RequestError> {
        let table = Arc::new(self.dressed(&MemoryTable::new(regions)?));
        // Rings run by the features that were acked.
        let features = self.features.unwrap_or_default();
        for vring in self.vrings.iter().filter(|v| v.is_running) {
            vring.resolve(features, &table)?;
        }
        Ok(table)
    }

    /// Rings that run go on in the new memory; their areas may have moved.
    fn go_on_in(&mut self, memory: Arc<MemoryTable>) -> Result<(), RequestError> {
        self.pause_all();
        self.memory = memory;
        self.start_ready()
    }

    // The log

    pub(super) fn set_log_base(
        &mut self,
        file: OwnedFd,
        offset: u64,
        len: u64,
    ) -> Result<Answer, RequestError> {
        self.require(pf::LOG_SHMFD)?;
        self.log = Some(Arc::new(DirtyLog::map(file, offset, len)?));
        if self.active_log().is_some() {
            self.pause_all();
            self.update_memory();
            self.start_ready()?;
        }
        // It is answered in any case (Communication).
        Ok(Answer::number(0))
    }

    /// The log, if it is on.
    fn active_log(&self) -> Option<Arc<DirtyLog>> {
        let is_on = self.features.is_some_and(|features| features & F_LOG_ALL != 0);
        self.log.clone().filter(|_| is_on)
    }

    /// The table with the log and the IOMMU that are on now.
    fn dressed(&self, table: &MemoryTable) -> MemoryTable {
        table.with_log(self.active_log()).with_translation(self.active_translations())
    }

    /// Has the memory logged and translated as it is wanted now; rings that run have been stopped.
    pub(super) fn update_memory(&mut self) {
        self.memory = Arc::new(self.dressed(&self.memory));
    }

    // What is in flight

    pub(super) fn get_inflight_fd(&mut self, wanted: InflightDescription) -> Result<Answer, RequestError> {
        self.require(pf::INFLIGHT_SHMFD)?;
        let InflightDescription { queues, queue_size, .. } = wanted;
        // One that asks before it acks features gets room for all that are offered.
        let features = self.features.unwrap_or_else(|| self.device.features());
        let file = InflightFile::create(queues, queue_size, features, self.vrings.len() as u16)?;
        let fd = file.as_fd().try_clone_to_owned()?;
        // It is used once the front-end gives it back.
        Ok(Answer::Reply(file.description().encode(), Some(fd)))
    }

    pub(super) fn set_inflight_fd(
        &mut self,
        description: InflightDescription,
        file: OwnedFd,
    ) -> Result<(), RequestError> {
        self.require(pf::INFLIGHT_SHMFD)?;
        if self.vrings.iter().any(|vring| vring.is_running) {
            return Err(RequestError::OutOfTurn("a vring is running"));
        }
        let features = self.features.unwrap_or_default();
        let file = InflightFile::adopt(file, description, features, self.vrings.len() as u16)?;
        let orders = file.orders();
        self.inflight = Some(file);
        if self.has_orders {
            self.record_orders();
        } else if let Some(orders) = orders
            // Given to the process before this one. Those that make no sense are the front-end's loss.
            && let Err(error) = self.device.restore_orders(&orders)
        {
            debug!("what was recorded of a driver's orders is of no use: {error}");
        }
        Ok(())
    }

    /// Records what the driver has ordered, for the process after this one.
    pub(super) fn record_orders(&self) {
        if let Some(file) = &self.inflight {
            file.record_orders(&self.device.orders());
        }
    }

    // Postcopy

    pub(super) fn postcopy_advise(&mut self) -> Result<Answer, RequestError> {
        self.require(pf::PAGEFAULT)?;
        if self.postcopy.is_listening {
            return Err(RequestError::OutOfTurn("postcopy is under way"));
        }
        let userfault = Userfault::open()?;
        let fd = userfault.try_clone_fd()?;
        self.postcopy = Postcopy { userfault: Some(userfault), ..Postcopy::default() };
        Ok(Answer::Reply(Vec::new(), Some(fd)))
    }

    pub(super) fn postcopy_listen(&mut self) -> Result<(), RequestError> {
        self.require(pf::PAGEFAULT)?;
        if self.postcopy.userfault.is_none() {
            return Err(RequestError::OutOfTurn("POSTCOPY_ADVISE comes before it"));
        }
        if !self.memory.regions().is_empty() {
            // The front-end does not know where it is mapped here, and could not make its pages arrive.
            return Err(RequestError::OutOfTurn("there is memory already"));
        }
        self.postcopy.is_listening = true;
        Ok(())
    }

    /// Watches regions, if they arrive by postcopy. Returns where they are mapped here then.
    fn watch(
        &mut self,
        descriptions: &[RegionDescription],
        regions: &[Region],
    ) -> Result<Option<Vec<RegionDescription>>, RequestError> {
        let Some(userfault) = self.postcopy.watcher() else { return Ok(None) };
        for region in regions {
            userfault.watch(region)?;
        }
        self.postcopy.is_awaiting_ack = true;
        let here = |(description, region): (&RegionDescription, &Region)| RegionDescription {
            frontend_va: FrontendVa(region.backend_va()),
            ..*description
        };
        Ok(Some(descriptions.iter().zip(regions).map(here).collect()))
    }

    /// The front-end knows where the regions are mapped. QEMU says so after every change of them, also after one that
    /// mapped none.
    pub(super) fn postcopy_memory_ack(&mut self) -> Result<(), RequestError> {
        if !self.postcopy.is_listening {
            return Err(RequestError::OutOfTurn("there is nothing to acknowledge"));
        }
        self.postcopy.is_awaiting_ack = false;
        self.start_ready()
    }

    /// All memory has arrived.
    pub(super) fn postcopy_end(&mut self) -> Result<Answer, RequestError> {
        self.require(pf::PAGEFAULT)?;
        if self.postcopy.userfault.is_none() {
            return Err(RequestError::OutOfTurn("there is no postcopy"));
        }
        self.stop_watching();
        self.start_ready()?;
        Ok(Answer::number(0))
    }

    /// Ends postcopy. Nobody waits for a page any more, even if the front-end keeps the watch open.
    pub(super) fn stop_watching(&mut self) {
        if let Some(userfault) = self.postcopy.watcher() {
            for region in self.memory.regions() {
                // Where the kernel refuses, nothing was watched.
                let _ = userfault.unwatch(region);
            }
        }
        self.postcopy = Postcopy::default();
    }
}

fn map(region: RegionDescription, file: OwnedFd) -> Result<Region, MapError> {
    let RegionDescription { gpa, len, frontend_va, offset } = region;
    Mapping::region(file, offset, len, gpa, frontend_va)
}
