//! The learning switch (IEEE 802.1Q, 8.6 and 8.7): where a frame goes, by its VLAN and address.
//!
//! One [`Switch`] serves all workers and nobody waits for another; each worker has a [`Cache`]. Time is an argument, in
//! seconds; nothing here asks a clock.

mod cache;
mod table;

pub(crate) use self::cache::Cache;
use self::table::{Key, Table};
use crate::frame::Ethernet;
use crate::handover::Learned;

/// The most addresses learned on one port.
const MAX_PER_PORT: usize = 4096;

/// A port of the switch, by its place among them.
pub(crate) type PortIndex = usize;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// To this port, another than it came from.
    To(PortIndex),
    /// To all ports but the one it came from.
    Flood,
    /// Nowhere.
    Filter,
}

/// See the module.
pub(crate) struct Switch {
    table: Table,
}

impl Switch {
    pub(crate) fn new(ports: usize) -> Self {
        Self { table: Table::new((0..ports).map(|_| MAX_PER_PORT)) }
    }

    /// Learns from a frame that came from `port` at `now`, and decides where it goes.
    #[inline]
    pub(crate) fn decide(&self, cache: &mut Cache, frame: &Ethernet, port: PortIndex, now: u64) -> Decision {
        if frame.dst.is_link_local() || frame.src.is_multicast() {
            return Decision::Filter;
        }
        cache.renew(self.table.version(), now);
        let src = Key::new(frame.vlan, frame.src);
        if cache.sources.get(src) != Some(port) && self.table.learn(src, port, now) {
            cache.sources.set(src, port);
        }
        if frame.dst.is_multicast() {
            return Decision::Flood;
        }
        let dst = Key::new(frame.vlan, frame.dst);
        let to = cache.destinations.get(dst).or_else(|| {
            let to = self.table.find(dst, now)?;
            cache.destinations.set(dst, to);
            Some(to)
        });
        match to {
            None => Decision::Flood,
            Some(to) if to == port => Decision::Filter,
            Some(to) => Decision::To(to),
        }
    }

    /// The addresses learned, for another switch of as many ports.
    pub(crate) fn learned(&self, now: u64) -> Vec<Learned> {
        self.table.learned(now)
    }

    /// Learns what another switch had learned, within the bounds of this one.
    pub(crate) fn learn_again(&self, learned: &[Learned], now: u64) {
        self.table.learn_again(learned, now);
    }

    /// Makes room of addresses that have sent nothing for long. To be called every second or so.
    pub(crate) fn age(&self, now: u64) {
        self.table.sweep(now);
    }

    /// Forgets the addresses of a port whose guest has gone.
    pub(crate) fn forget_port(&self, port: PortIndex) {
        self.table.forget_port(port);
    }
}

#[cfg(test)]
mod tests;
