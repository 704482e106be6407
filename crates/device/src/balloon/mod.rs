//! The traditional memory balloon (5.5): pages that the guest gives up, and what it says of those that it does not use.
//!
//! ```text
//!   operator ──target──► num_pages ──► driver ──inflateq──► inflate ──► PageRange     the host can have them
//!                                             ──deflateq──► deflate ──► PageRange     the driver has them back
//!                                             ──actual────► actual
//!   operator ──ask─────────────────► statsq ───────────────► statistics
//!   operator ──start_hinting───────► driver ──free_page_vq─► hints ───► GuestSlice    not needed, if not written to
//!                                             ──reporting_vq► reports ─► GuestSlice    not needed now
//! ```
//!
//! What becomes of pages is for whoever serves the device. It may take a page from the guest as soon as it is handed out here; a
//! driver that uses the page again, told or not, finds zeroes there.
//!
//! Page numbers are guest-physical, whatever stands between the guest and its devices; so the device does not offer to be
//! behind an IOMMU, and Linux would not accept it. A number without a page is ignored and counted.

mod hinting;
mod pages;
mod saved;
mod statistics;

use alloc::sync::Arc;

use ringway_memory::GuestSlice;
use ringway_queue::{Burst, DeviceQueue, QueueError};
use ringway_spec::balloon::{
    CMD_ID_DONE, CMD_ID_STOP, CONFIG_ACTUAL, CONFIG_POISON_VAL, Config, DEFLATE_QUEUE, DEVICE_ID,
    F_DEFLATE_ON_OOM, F_FREE_PAGE_HINT, F_MUST_TELL_HOST, F_PAGE_POISON, F_PAGE_REPORTING, F_STATS_VQ,
    FREE_PAGE_QUEUE, INFLATE_QUEUE, REPORTING_QUEUE, STATS_QUEUE,
};
use ringway_spec::feature;
use zerocopy::IntoBytes;

use crate::model::DeviceModel;
use crate::serving::{PIECE, Serving};
use crate::status::Negotiation;
use hinting::Hinting;

pub use pages::PageRange;
pub use saved::State;
pub use statistics::Statistics;

/// Bytes of a page's number.
const PFN_LEN: usize = size_of::<u32>();
/// The queues that are there with a feature only (5.5.2).
const OPTIONAL: [(u16, u64, Role); 3] = [
    (STATS_QUEUE, F_STATS_VQ, Role::Statistics),
    (FREE_PAGE_QUEUE, F_FREE_PAGE_HINT, Role::Hints),
    (REPORTING_QUEUE, F_PAGE_REPORTING, Role::Reports),
];

/// How a device shall be: each is a feature that is offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is so or not, whatever the others")]
pub struct Settings {
    /// Whether the driver is to wait for an answer before it uses pages again: for a host that cannot give a page on demand.
    pub must_tell_host: bool,
    /// Whether the driver can be asked for statistics.
    pub statistics: bool,
    /// Whether a driver that runs out of memory may take from the balloon.
    pub deflate_on_oom: bool,
    /// Whether the driver can be asked which pages are free.
    pub free_page_hinting: bool,
    /// Whether the driver may say what it fills free pages with.
    pub page_poison: bool,
    /// Whether the driver may report free pages at any time.
    pub page_reporting: bool,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Pages into the balloon: [`BalloonDevice::inflate`].
    Inflate,
    /// Pages out of it: [`BalloonDevice::deflate`].
    Deflate,
    /// [`BalloonDevice::statistics`].
    Statistics,
    /// [`BalloonDevice::hints`].
    Hints,
    /// [`BalloonDevice::reports`].
    Reports,
}

/// A memory balloon.
#[derive(Debug, Clone)]
pub struct BalloonDevice {
    negotiation: Negotiation,
    target: u32,
    actual: u32,
    poison: u32,
    hinting: Hinting,
    /// How many bytes of the oldest chain have been served, of the inflate queue and of the deflate queue.
    served: [usize; 2],
    /// The statistics that are in the queue have been read.
    is_read: bool,
    refused: u64,
}

impl BalloonDevice {
    /// A device after reset, which wants no pages.
    pub fn new(settings: Settings) -> Self {
        let mut offered = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
        offered |= feature::RING_PACKED | feature::IN_ORDER;
        for (is_offered, feature) in [
            (settings.must_tell_host, F_MUST_TELL_HOST),
            (settings.statistics, F_STATS_VQ),
            (settings.deflate_on_oom, F_DEFLATE_ON_OOM),
            (settings.free_page_hinting, F_FREE_PAGE_HINT),
            (settings.page_poison, F_PAGE_POISON),
            (settings.page_reporting, F_PAGE_REPORTING),
        ] {
            if is_offered {
                offered |= feature;
            }
        }
        Self {
            negotiation: Negotiation::new(offered, &[]),
            target: 0,
            actual: 0,
            poison: 0,
            hinting: Hinting::new(),
            served: [0; 2],
            is_read: false,
            refused: 0,
        }
    }

    /// What queue `index` is for, by what the driver acked.
    ///
    /// Linux has long numbered the queues that there are without gaps, where 5.5.2 gives each its number. An index that is
    /// nobody's by the book is taken like that.
    pub fn role(&self, index: u16) -> Option<Role> {
        match index {
            INFLATE_QUEUE => return Some(Role::Inflate),
            DEFLATE_QUEUE => return Some(Role::Deflate),
            _ => {}
        }
        let mut there = OPTIONAL.into_iter().filter(|(_, feature, _)| self.has(*feature));
        let by_the_book = there.clone().find(|(at, ..)| *at == index);
        let found = by_the_book.or_else(|| there.nth(usize::from(index - STATS_QUEUE)));
        found.map(|(.., role)| role)
    }

    /// How many pages of 4096 bytes shall be in the balloon. Returns whether that is another number: then the
    /// configuration has changed.
    pub fn set_target(&mut self, pages: u32) -> bool {
        core::mem::replace(&mut self.target, pages) != pages
    }

    /// How many pages shall be in the balloon.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// How many pages are in the balloon, as the driver says.
    pub fn actual(&self) -> u32 {
        self.actual
    }

    /// How many page numbers were of no page, and how many commands were none.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// A queue was reset, alone: what is in it from now on is new.
    pub fn reset_queue(&mut self, role: Role) {
        match role {
            Role::Inflate => self.served[0] = 0,
            Role::Deflate => self.served[1] = 0,
            Role::Statistics => self.is_read = false,
            Role::Hints => self.hinting.heard = CMD_ID_STOP,
            Role::Reports => {}
        }
    }

    // Pages

    /// Serves [`Role::Inflate`]: passes on pages that the driver gives up, those together that lie together. Returns whether
    /// to call the driver. `burst` is empty, and stays so.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn inflate(
        &mut self,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
        each: &mut dyn FnMut(PageRange),
    ) -> Result<bool, QueueError> {
        self.pages(0, queue, burst, each)
    }

    /// Serves [`Role::Deflate`]: as [`inflate`](Self::inflate), with pages that the driver takes back.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn deflate(
        &mut self,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
        each: &mut dyn FnMut(PageRange),
    ) -> Result<bool, QueueError> {
        self.pages(1, queue, burst, each)
    }

    fn pages(
        &mut self,
        which: usize,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
        each: &mut dyn FnMut(PageRange),
    ) -> Result<bool, QueueError> {
        let Self { served, refused, .. } = self;
        let memory = Arc::clone(queue.memory());
        let mut serving = Serving::new(queue, burst);
        let mut pfns = [0; PIECE / PFN_LEN];
        serving.pass_on(&mut served[which], &mut |bytes| {
            let (numbers, rest) = bytes.as_chunks::<PFN_LEN>();
            for (pfn, number) in pfns.iter_mut().zip(numbers) {
                *pfn = u32::from_le_bytes(*number);
            }
            *refused += u64::from(!rest.is_empty());
            *refused += pages::ranges(&mut pfns[..numbers.len()], &memory, each);
            bytes.len()
        });
        serving.end()
    }

    // Statistics

    /// Serves [`Role::Statistics`]: what the driver says of its memory, if it has said something new. Its buffer stays in the
    /// queue.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn statistics(
        &mut self,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Option<Statistics>, QueueError> {
        let mut serving = Serving::new(queue, burst);
        let statistics = serving.readable().filter(|_| !self.is_read).map(Statistics::read);
        self.is_read |= statistics.is_some();
        serving.end()?;
        Ok(statistics)
    }

    /// Asks for new statistics: gives the driver its buffer back, on the same queue. If it has not given one, it will. Returns
    /// whether to call the driver.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn ask(&mut self, queue: &mut DeviceQueue, burst: &mut Burst) -> Result<bool, QueueError> {
        let mut serving = Serving::new(queue, burst);
        if serving.readable().is_some() {
            serving.answer(&[]);
            self.is_read = false;
        }
        serving.end()
    }

    // Free pages

    /// Asks the driver which pages are free: the configuration has changed. False if it cannot: the feature was not
    /// negotiated, or all IDs of rounds are used up, which takes four billion rounds that the driver does not answer.
    pub fn start_hinting(&mut self) -> bool {
        self.has(F_FREE_PAGE_HINT) && self.hinting.start()
    }

    /// No hint is of use now, but pages that were hinted are to stay unused: the configuration has changed.
    pub fn stop_hinting(&mut self) {
        self.hinting.wanted = CMD_ID_STOP;
    }

    /// No hint is of use any more, nor are those from before: the configuration has changed.
    pub fn finish_hinting(&mut self) {
        self.hinting.wanted = CMD_ID_DONE;
    }

    /// Whether the driver is giving the hints that were asked for, and may give more.
    pub fn is_hinting(&self) -> bool {
        self.hinting.counts()
    }

    /// Serves [`Role::Hints`]: passes on pages that are free, and stay so if the driver does not write to them. Returns whether
    /// to call the driver. `burst` is empty, and stays so.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn hints(
        &mut self,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
        each: &mut dyn FnMut(GuestSlice<'_>),
    ) -> Result<bool, QueueError> {
        let mut serving = Serving::new(queue, burst);
        while let Some(command) = serving.readable() {
            match (command.len(), command.read_array()) {
                (0, _) => {}
                (PFN_LEN, Some(id)) => self.hinting.hear(u32::from_le_bytes(id)),
                _ => self.refused += 1,
            }
            let counts = self.hinting.counts();
            serving.complete(|chain| {
                chain.writable().pieces().filter(|_| counts).for_each(&mut *each);
                0
            });
        }
        serving.end()
    }

    /// Serves [`Role::Reports`]: passes on pages that are free until the driver is answered, and zeroes afterwards as far as it
    /// is concerned. If it wants something else there (5.5.6.7), nothing is passed on. Returns whether to call the driver.
    /// `burst` is empty, and stays so.
    ///
    /// # Errors
    /// As of [`DeviceQueue::take`].
    pub fn reports(
        &mut self,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
        each: &mut dyn FnMut(GuestSlice<'_>),
    ) -> Result<bool, QueueError> {
        let may_be_zero = !self.has(F_PAGE_POISON) || self.poison == 0;
        let mut serving = Serving::new(queue, burst);
        while serving.room().is_some() {
            serving.complete(|chain| {
                chain.writable().pieces().filter(|_| may_be_zero).for_each(&mut *each);
                0
            });
        }
        serving.end()
    }

    /// Whether this feature was negotiated.
    fn has(&self, feature: u64) -> bool {
        self.negotiation.acked() & feature != 0
    }
}

impl DeviceModel for BalloonDevice {
    fn id(&self) -> u32 {
        DEVICE_ID
    }

    fn negotiation(&self) -> &Negotiation {
        &self.negotiation
    }

    fn negotiation_mut(&mut self) -> &mut Negotiation {
        &mut self.negotiation
    }

    fn reset(&mut self) {
        self.negotiation.reset();
        (self.actual, self.poison) = (0, 0);
        self.hinting = Hinting::new();
        self.served = [0; 2];
        self.is_read = false;
    }

    fn max_queues(&self) -> u16 {
        let offered = self.negotiation.offered();
        let last = OPTIONAL.into_iter().rfind(|(_, feature, _)| offered & feature != 0);
        last.map_or(DEFLATE_QUEUE, |(index, ..)| index) + 1
    }

    fn config_len(&self) -> usize {
        size_of::<Config>()
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        let config = Config {
            num_pages: self.target.into(),
            actual: self.actual.into(),
            free_page_hint_cmd_id: self.hinting.wanted.into(),
            poison_val: self.poison.into(),
        };
        to.fill(0);
        let bytes = config.as_bytes();
        for (to, from) in to.iter_mut().zip(bytes.get(offset..).unwrap_or_default()) {
            *to = *from;
        }
    }

    /// `actual`, and `poison_val` until the driver is set up (5.5.6.6), if they are written whole. Some front-ends write all of the
    /// configuration when the driver has written a part.
    fn write_config(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let field = |at: usize| {
            let start = at.checked_sub(offset)?;
            Some(u32::from_le_bytes(bytes.get(start..start + size_of::<u32>())?.try_into().ok()?))
        };
        let actual = field(CONFIG_ACTUAL);
        let may_poison = self.negotiation.offered() & F_PAGE_POISON != 0 && !self.negotiation.is_live();
        let poison = field(CONFIG_POISON_VAL).filter(|_| may_poison);
        self.actual = actual.unwrap_or(self.actual);
        self.poison = poison.unwrap_or(self.poison);
        actual.is_some() || poison.is_some()
    }
}

#[cfg(test)]
mod tests;
