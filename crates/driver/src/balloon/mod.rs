//! The driver of the traditional memory balloon (5.5): memory that the guest lends to its host.
//!
//! ```text
//!   num_pages ──► Balloon ──give_up──► Pages     what the guest can spare
//!                    │  inflateq, and acknowledged: held, counted in `actual`
//!                    │  deflateq, and acknowledged
//!                    └──────take_back──► Pages
//! ```
//!
//! Whoever has the guest's memory implements [`Pages`], and [polls](Balloon::poll): then pages go one way or the other, by
//! requests of up to 256, until there are as many in the balloon as the host wants. A page is taken out only when the host
//! wants fewer, or by [`release`](Balloon::release) when the guest has no other, if that was agreed on. It is used again only
//! when the host knows.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use ringway_driver::balloon::{Balloon, Options, Statistics};
//! # use ringway_driver::{Error, Pages, Platform, Transport};
//! # use ringway_spec::balloon::{S_MEMFREE, S_MEMTOT};
//! # fn wait_for_interrupt() {}
//! # fn free_bytes() -> u64 { 0 }
//! /// Follows what the host wants, and says how much memory there is.
//! fn run<T: Transport>(transport: T, platform: Arc<dyn Platform>, pages: &mut dyn Pages) -> Result<(), Error> {
//!     let value = |tag| if tag == S_MEMFREE { free_bytes() } else { 512 << 20 };
//!     let statistics = Statistics { tags: vec![S_MEMFREE, S_MEMTOT], value: Box::new(value) };
//!     let options = Options { statistics: Some(statistics), reporting: true, ..Options::default() };
//!     let mut balloon = Balloon::new(transport, platform, options)?;
//!     loop {
//!         balloon.poll(pages)?;
//!         balloon.report(pages)?;
//!         // What came before arming comes without an interrupt.
//!         if !balloon.arm() {
//!             wait_for_interrupt();
//!             balloon.interrupt()?;
//!         }
//!     }
//! }
//! ```
//!
//! Page numbers are guest-physical: a device that is behind an IOMMU is not used as such.
#![forbid(unsafe_code)]

mod hints;
mod reports;
mod statistics;
mod transfer;

use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_spec::balloon::{
    CONFIG_ACTUAL, CONFIG_FREE_PAGE_HINT_CMD_ID, CONFIG_NUM_PAGES, CONFIG_POISON_VAL, DEFLATE_QUEUE,
    DEVICE_ID, F_DEFLATE_ON_OOM, F_FREE_PAGE_HINT, F_MUST_TELL_HOST, F_PAGE_POISON, F_PAGE_REPORTING,
    F_STATS_VQ, INFLATE_QUEUE,
};
use ringway_spec::feature;

use crate::{Device, Error, Interrupt, Pages, Platform, Stopped, Transport, Wanted};
use hints::Hints;
use reports::Reports;
use statistics::Reporter;
use transfer::{PAGES_MAX, Transfer};

pub use statistics::Statistics;

/// How a device shall be used.
#[derive(Default)]
pub struct Options {
    /// Whether [`release`](Balloon::release) shall be allowed.
    pub deflate_on_oom: bool,
    /// Whether the host may ask which pages are free, while it migrates the guest.
    pub hinting: bool,
    /// Whether free pages shall be [reported](Balloon::report).
    pub reporting: bool,
    /// What the guest fills free pages with, and expects to find in them.
    pub poison: Option<u32>,
    /// What the guest tells of its memory, if it does; one tag at least.
    pub statistics: Option<Statistics>,
    /// Features of any kind that are not to be accepted, as of the rings.
    pub without: u64,
    /// The interrupt for queues, where there are several (MSI-X).
    pub vector: Option<u16>,
    /// The interrupt for changes of the configuration, where there are several.
    pub config_vector: Option<u16>,
}

impl Options {
    fn wanted(&self) -> Wanted {
        let mut features = F_MUST_TELL_HOST;
        for (is_wanted, feature) in [
            (self.deflate_on_oom, F_DEFLATE_ON_OOM),
            (self.hinting, F_FREE_PAGE_HINT),
            (self.reporting, F_PAGE_REPORTING),
            (self.poison.is_some(), F_PAGE_POISON),
            (self.statistics.as_ref().is_some_and(|statistics| !statistics.tags.is_empty()), F_STATS_VQ),
        ] {
            if is_wanted {
                features |= feature;
            }
        }
        // Reported pages come back as something else unless the device knows what is expected there (5.5.3.1).
        let requires: &[_] = if self.poison.is_some() { &[(F_PAGE_REPORTING, F_PAGE_POISON)] } else { &[] };
        let without = self.without | feature::ACCESS_PLATFORM;
        Wanted { id: DEVICE_ID, features, required: 0, requires, without }
    }
}

/// A memory balloon. Dropped, it is reset, and its pages are lost: [`stop`](Balloon::stop) returns them.
pub struct Balloon<T: Transport> {
    device: Device<T>,
    inflate: Transfer<T::Notifier>,
    deflate: Transfer<T::Notifier>,
    statistics: Option<Reporter<T::Notifier>>,
    hints: Option<Hints<T::Notifier>>,
    reports: Option<Reports<T::Notifier>>,
    /// What pages are to be filled with that are taken back.
    fill: Option<u32>,
    /// The pages in the balloon that are not on their way out.
    held: Vec<u32>,
    /// What the device was told last.
    actual: u32,
    /// The guest released pages while the host wanted so many; as long as it does, it gets no others.
    unmet: Option<u32>,
}

impl<T: Transport> Balloon<T> {
    /// Sets the device up.
    ///
    /// # Errors
    /// Those of [`Device::set_up`].
    pub fn new(transport: T, platform: Arc<dyn Platform>, options: Options) -> Result<Self, Error> {
        let wanted = options.wanted();
        let Options { poison, statistics, vector, config_vector, .. } = options;
        let (device, parts) = Device::set_up(transport, platform, &wanted, |device| {
            device.transport_mut().set_config_vector(config_vector)?;
            let fill = poison.filter(|_| device.has(F_PAGE_POISON));
            if let Some(fill) = fill {
                device.write_config_u32(CONFIG_POISON_VAL, fill)?;
            }
            let inflate = Transfer::new(INFLATE_QUEUE, device, vector)?;
            let deflate = Transfer::new(DEFLATE_QUEUE, device, vector)?;
            let statistics = statistics.filter(|_| device.has(F_STATS_VQ));
            let statistics = statistics.map(|source| Reporter::new(source, device, vector)).transpose()?;
            let hints = device.has(F_FREE_PAGE_HINT).then(|| Hints::new(device, vector)).transpose()?;
            let reports =
                device.has(F_PAGE_REPORTING).then(|| Reports::new(device, fill, vector)).transpose()?;
            Ok((inflate, deflate, statistics, hints, reports, fill))
        })?;
        let (inflate, deflate, mut statistics, hints, reports, fill) = parts;
        if let Some(statistics) = &mut statistics {
            statistics.publish();
        }
        let (held, actual, unmet) = (Vec::new(), 0, None);
        Ok(Self { device, inflate, deflate, statistics, hints, reports, fill, held, actual, unmet })
    }

    /// The negotiated features.
    pub fn features(&self) -> u64 {
        self.device.features()
    }

    /// How many pages are in the balloon: the device has acknowledged that they are in, and not that they are out.
    pub fn actual(&self) -> u32 {
        self.actual
    }

    /// Does what is to be done: asks the device what it wants, begins to do it, and ends what the device has acknowledged.
    ///
    /// # Errors
    /// [`Error::Device`] if the device breaks the rules of its queues, and those of the transport.
    pub fn poll(&mut self, pages: &mut dyn Pages) -> Result<(), Error> {
        self.settle(pages)?;
        let (target, command) = self.wanted()?;
        if self.unmet != Some(target) {
            self.unmet = None;
        }
        if self.inflate.is_idle() && self.deflate.is_idle() {
            let missing = target.saturating_sub(self.actual) as usize;
            let surplus = self.actual.saturating_sub(target) as usize;
            if missing > 0 && self.unmet.is_none() {
                self.inflate.begin(core::iter::from_fn(|| pages.give_up()).take(missing))?;
            } else if surplus > 0 {
                self.take_out(surplus)?;
            }
        }
        if let Some(statistics) = &mut self.statistics {
            statistics.poll()?;
        }
        if let Some(hints) = &mut self.hints {
            hints.poll(command, pages)?;
        }
        if let Some(reports) = &mut self.reports {
            reports.poll(pages)?;
        }
        Ok(())
    }

    /// The guest has no other memory: takes up to 256 pages out of the balloon, and waits until the device knows, as long as
    /// the platform does. Returns how many. The host gets no others until it wants another number of them.
    ///
    /// # Errors
    /// [`Error::NotNegotiated`] without `DEFLATE_ON_OOM`; [`Error::TimedOut`]; those of [`poll`](Self::poll).
    pub fn release(&mut self, count: usize, pages: &mut dyn Pages) -> Result<u32, Error> {
        if !self.device.has(F_DEFLATE_ON_OOM) {
            return Err(Error::NotNegotiated { feature: F_DEFLATE_ON_OOM });
        }
        self.finish(pages)?;
        let (before, (target, _)) = (self.actual, self.wanted()?);
        self.unmet = Some(target);
        self.take_out(count)?;
        self.finish(pages)?;
        Ok(before - self.actual)
    }

    /// Reports free pages to the host, up to 32 ranges of them, if the last report was acknowledged. Returns how many; 0 also if
    /// reporting was not negotiated.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Add`].
    pub fn report(&mut self, pages: &mut dyn Pages) -> Result<usize, Error> {
        let Some(reports) = &mut self.reports else { return Ok(0) };
        reports.poll(pages)?;
        reports.begin(pages)
    }

    /// Asks for interrupts. Returns whether the device has acknowledged or asked for something already; only if not is there
    /// something to wait for.
    #[must_use = "what came before arming comes without an interrupt"]
    pub fn arm(&mut self) -> bool {
        let mut is_there = self.inflate.arm();
        is_there |= self.deflate.arm();
        is_there |= self.statistics.as_mut().is_some_and(Reporter::arm);
        is_there |= self.hints.as_mut().is_some_and(Hints::arm);
        is_there |= self.reports.as_mut().is_some_and(Reports::arm);
        is_there
    }

    /// See [`Device::interrupt`]. After any, [`poll`](Self::poll) knows what to do.
    ///
    /// # Errors
    /// [`Error::NeedsReset`].
    pub fn interrupt(&mut self) -> Result<Interrupt, Error> {
        self.device.interrupt()
    }

    /// Resets the device, which empties the balloon: all pages come back.
    ///
    /// # Errors
    /// As of [`Device::stop`]; the pages are lost then.
    pub fn stop(self, pages: &mut dyn Pages) -> Result<Stopped<T>, Error> {
        let stopped = self.device.stop()?;
        let under_way = self.inflate.retire(&stopped).chain(self.deflate.retire(&stopped));
        for pfn in self.held.into_iter().chain(under_way) {
            pages.take_back(pfn, self.fill);
        }
        for range in self.hints.into_iter().flat_map(|hints| hints.retire(&stopped)) {
            pages.return_lent(range, None);
        }
        for range in self.reports.into_iter().flat_map(|reports| reports.retire(&stopped)) {
            pages.return_lent(range, self.fill);
        }
        Ok(stopped)
    }

    /// How many pages the device wants, and the command for hints.
    fn wanted(&mut self) -> Result<(u32, u32), Error> {
        let can_hint = self.hints.is_some();
        self.device.config(|config| {
            let command = if can_hint { config.u32(CONFIG_FREE_PAGE_HINT_CMD_ID)? } else { 0 };
            Ok((config.u32(CONFIG_NUM_PAGES)?, command))
        })
    }

    /// Begins to take out pages; only such as the device has acknowledged are held.
    fn take_out(&mut self, count: usize) -> Result<(), Error> {
        let count = count.min(PAGES_MAX).min(self.held.len());
        let first = self.held.len() - count;
        self.deflate.begin(self.held.drain(first..))
    }

    /// Ends what the device has acknowledged, and tells it how many pages are in.
    fn settle(&mut self, pages: &mut dyn Pages) -> Result<(), Error> {
        let (held, fill) = (&mut self.held, self.fill);
        let mut has_changed = self.inflate.end(|pfn| held.push(pfn))?;
        has_changed |= self.deflate.end(|pfn| pages.take_back(pfn, fill))?;
        if has_changed {
            self.actual = self.held.len() as u32;
            self.device.write_config_u32(CONFIG_ACTUAL, self.actual)?;
        }
        Ok(())
    }

    /// Waits until no page is on its way.
    fn finish(&mut self, pages: &mut dyn Pages) -> Result<(), Error> {
        let mut round = 0;
        loop {
            self.settle(pages)?;
            if self.inflate.is_idle() && self.deflate.is_idle() {
                return Ok(());
            }
            if !self.device.wait(round) {
                self.device.check()?;
                return Err(Error::TimedOut { what: "taking what is in the balloon into account" });
            }
            round = round.saturating_add(1);
        }
    }
}
