//! A case: what it shows, what it needs of the back-end, and what it came to.

use std::fmt;

use crate::context::Context;
use crate::device::Device;

/// How much a requirement asks; a prohibition weighs as much as a demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The document allows it.
    May,
    /// The document recommends it.
    Should,
    /// The document demands it; hostile input that ends more than its own session is counted here too.
    Must,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::May => "MAY",
            Self::Should => "SHOULD",
            Self::Must => "MUST",
        })
    }
}

/// What a case came to if it did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The back-end does not do as it should.
    Fail {
        /// What it should have done.
        expected: String,
        /// What it did.
        seen: String,
    },
    /// The case says nothing about this back-end.
    Skip(String),
    /// The case could not be tried, by no fault of the back-end that is known.
    Error(String),
}

/// What was seen, if it is what should be.
pub(crate) type Seen = Result<String, Verdict>;

/// It should have been `expected`.
pub(crate) fn fail(expected: impl Into<String>, seen: impl Into<String>) -> Verdict {
    Verdict::Fail { expected: expected.into(), seen: seen.into() }
}

/// Nothing can be said, because `why`.
pub(crate) fn skip(why: impl Into<String>) -> Verdict {
    Verdict::Skip(why.into())
}

/// An error on this side.
pub(crate) fn trouble(what: &str, error: impl fmt::Display) -> Verdict {
    Verdict::Error(format!("{what}: {error}"))
}

/// A failure unless `holds`.
pub(crate) fn expect(holds: bool, expected: &str, seen: impl FnOnce() -> String) -> Result<(), Verdict> {
    if holds { Ok(()) } else { Err(fail(expected, seen())) }
}

/// Something to be tried on a back-end.
pub struct Case {
    /// Its name, unique.
    pub name: &'static str,
    /// The requirements that it shows, the most important one first. Hostile cases may have none.
    pub ids: &'static [&'static str],
    /// How much they ask.
    pub level: Level,
    /// What should be so.
    pub title: &'static str,
    /// The virtio features that it needs.
    pub(crate) features: u64,
    /// The protocol features that it needs.
    pub(crate) protocol: u64,
    /// The devices that it can be tried on.
    pub(crate) devices: &'static [Device],
    /// Whether it sends what no front-end should.
    pub hostile: bool,
    pub(crate) run: fn(&Context) -> Seen,
}

impl Case {
    const fn new(
        level: Level,
        name: &'static str,
        ids: &'static [&'static str],
        title: &'static str,
        run: fn(&Context) -> Seen,
    ) -> Self {
        Self { name, ids, level, title, features: 0, protocol: 0, devices: &Device::ALL, hostile: false, run }
    }

    pub(crate) const fn must(
        name: &'static str,
        ids: &'static [&'static str],
        title: &'static str,
        run: fn(&Context) -> Seen,
    ) -> Self {
        Self::new(Level::Must, name, ids, title, run)
    }

    pub(crate) const fn should(
        name: &'static str,
        ids: &'static [&'static str],
        title: &'static str,
        run: fn(&Context) -> Seen,
    ) -> Self {
        Self::new(Level::Should, name, ids, title, run)
    }

    pub(crate) const fn may(
        name: &'static str,
        ids: &'static [&'static str],
        title: &'static str,
        run: fn(&Context) -> Seen,
    ) -> Self {
        Self::new(Level::May, name, ids, title, run)
    }

    /// What no front-end should send; the back-end must serve the next one all the same.
    pub(crate) const fn hostile(name: &'static str, title: &'static str, run: fn(&Context) -> Seen) -> Self {
        let mut case = Self::new(Level::Must, name, &[], title, run);
        case.hostile = true;
        case
    }

    pub(crate) const fn with_features(mut self, features: u64) -> Self {
        self.features |= features;
        self
    }

    pub(crate) const fn with_protocol(mut self, protocol: u64) -> Self {
        self.protocol |= protocol;
        self
    }

    /// For a device whose requests are known, so that rings can be seen to work.
    pub(crate) const fn with_requests(mut self) -> Self {
        self.devices = &[Device::Net, Device::Blk];
        self
    }

    pub(crate) const fn of(mut self, devices: &'static [Device]) -> Self {
        self.devices = devices;
        self
    }
}
