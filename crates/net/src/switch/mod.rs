//! The learning switch (IEEE 802.1Q, 8.6 and 8.7): where a frame goes, by its VLAN and address and the rules of ports.
//!
//! ```text
//!  frame ─► in: VLAN ─► may it send? ─► learn ─► known? ─ yes ─► out: isolation, VLAN, tag ─► one port
//!            (vlan)       (secured)     (table)     └ no, or a group ─► storm ─► out ─► all ports
//! ```
//!
//! One `Switch` serves all workers and nobody waits for another; each worker has a `Cache`. Time is an argument;
//! nothing here asks a clock. Counting, copying and changing frames are others' work.

mod cache;
mod meter;
mod policy;
mod table;
mod vlan;

use std::collections::HashMap;

use foldhash::fast::RandomState;

pub(crate) use self::cache::Cache;
use self::cache::Flow;
pub(crate) use self::meter::{Allowance, Meter};
pub use self::policy::{Limit, Mirror, PortPolicy};
use self::table::{Key, Table};
pub(crate) use self::vlan::Retag;
pub use self::vlan::{Mode, VlanSet, number as vlan_number};
use self::vlan::{RESERVED, Tag};
use crate::counters::DropReason;
use crate::frame::{Ethernet, Mac};
use crate::handover::Learned;

/// A port of the switch, by its place among them.
pub(crate) type PortIndex = usize;

/// A moment since the switch, or the first of those before it, started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Now {
    /// For addresses, which are remembered for minutes.
    pub(crate) seconds: u64,
    /// For meters; needed only if [`Switch::is_metered`].
    pub(crate) nanos: u64,
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// To this port, another than it came from.
    To(PortIndex, Retag),
    /// To all ports that [`Switch::targets`] names.
    Flood(Flood),
    /// Nowhere.
    Drop(DropReason),
}

/// A frame for many ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flood {
    from: PortIndex,
    vlan: u16,
    tag: Tag,
}

/// The rules of a port.
struct Rules {
    policy: PortPolicy,
    storm: Option<Meter>,
    from: Option<Meter>,
    to: Option<Meter>,
    /// The ports that get a copy of its frames.
    watchers: Vec<PortIndex>,
    /// It gets copies, and has no other part.
    watches: bool,
}

/// See the module.
pub(crate) struct Switch {
    table: Table,
    ports: Vec<Rules>,
    /// The ports that addresses are pinned to; one in each VLAN.
    owners: HashMap<Mac, Vec<PortIndex>, RandomState>,
    /// No port has a rule that a frame's way depends on: most switches.
    is_plain: bool,
    is_metered: bool,
}

impl Switch {
    pub(crate) fn new(policies: &[PortPolicy], mirrors: &[Mirror]) -> Self {
        let table = Table::new(policies.iter().map(|policy| policy.macs));
        let mut owners = HashMap::<_, Vec<_>, _>::default();
        for (port, policy) in policies.iter().enumerate() {
            for &mac in &policy.pinned {
                owners.entry(mac).or_default().push(port);
            }
        }
        let rules = policies.iter().enumerate().map(|(port, policy)| Rules {
            storm: Meter::new(Limit { bits: None, frames: policy.storm }),
            from: Meter::new(policy.from),
            to: Meter::new(policy.to),
            watchers: mirrors.iter().filter(|m| m.from == port).map(|m| m.to).collect(),
            watches: mirrors.iter().any(|m| m.to == port),
            policy: policy.clone(),
        });
        let ports: Vec<Rules> = rules.collect();
        Self {
            table,
            owners,
            is_plain: mirrors.is_empty() && ports.iter().all(Rules::are_plain),
            is_metered: ports.iter().any(|p| p.storm.is_some() || p.from.is_some() || p.to.is_some()),
            ports,
        }
    }

    /// Whether decisions and meters need to know the time in nanoseconds.
    pub(crate) fn is_metered(&self) -> bool {
        self.is_metered
    }

    /// What limits the frames that a port sends.
    pub(crate) fn sending(&self, port: PortIndex) -> Option<&Meter> {
        self.ports[port].from.as_ref()
    }

    /// Whether a frame may be delivered to a port, as far as its rate is concerned; it is counted if so.
    #[inline]
    pub(crate) fn may_receive(&self, port: PortIndex, bytes: usize, now: Now) -> bool {
        self.ports[port].to.as_ref().is_none_or(|meter| meter.admit(bytes, now.nanos))
    }

    /// Whether a sender may not have every address and every tag.
    #[inline]
    pub(crate) fn has_rules(&self) -> bool {
        !self.is_plain
    }

    /// The ports that get a copy of what comes from a port or goes to it.
    #[inline]
    pub(crate) fn watchers(&self, port: PortIndex) -> &[PortIndex] {
        if self.is_plain { &[] } else { &self.ports[port].watchers }
    }

    /// Has a worker forget the decisions that no longer hold: to be called before a burst.
    #[inline]
    pub(crate) fn renew(&self, cache: &mut Cache, now: Now) {
        cache.renew(self.table.version(), now.seconds);
    }

    /// The port that a frame goes to as it is, if one like it was decided on before and nobody watches.
    #[inline]
    pub(crate) fn known(&self, cache: &Cache, from: PortIndex, frame: &Ethernet) -> Option<PortIndex> {
        let (to, retag) = cache.get(Flow::new(from, frame))?;
        (self.is_plain && retag == Retag::Keep).then_some(to)
    }

    /// Learns from a frame that came from a port, and decides where it goes.
    #[inline]
    pub(crate) fn decide(&self, cache: &mut Cache, from: PortIndex, frame: &Ethernet, now: Now) -> Decision {
        cache.renew(self.table.version(), now.seconds);
        let flow = Flow::new(from, frame);
        if let Some((to, retag)) = cache.get(flow) {
            return Decision::To(to, retag);
        }
        self.decide_anew(cache, flow, from, frame, now).unwrap_or_else(Decision::Drop)
    }

    fn decide_anew(
        &self,
        cache: &mut Cache,
        flow: Flow,
        from: PortIndex,
        frame: &Ethernet,
        now: Now,
    ) -> Result<Decision, DropReason> {
        if frame.dst.is_link_local() || frame.src.is_multicast() {
            return Err(DropReason::Filtered);
        }
        let tag = Tag { vlan: frame.vlan, is_there: frame.is_tagged() };
        let vlan = self.enter(from, tag)?;
        if !self.may_send(from, vlan, frame.src) {
            return Err(DropReason::Secured);
        }
        let is_learned = self.table.learn(Key::new(vlan, frame.src), from, now.seconds);
        let all = Flood { from, vlan, tag };
        match self.find(vlan, frame.dst, now) {
            None if self.is_storm(from, now) => Err(DropReason::Storm),
            None => Ok(Decision::Flood(all)),
            Some(to) => {
                let retag = self.leave(to, all).ok_or(DropReason::Filtered)?;
                if is_learned {
                    cache.set(flow, to, retag);
                }
                Ok(Decision::To(to, retag))
            }
        }
    }

    /// The ports that a frame for many goes to.
    pub(crate) fn targets(&self, flood: Flood) -> impl Iterator<Item = (PortIndex, Retag)> {
        (0..self.ports.len()).filter_map(move |port| Some((port, self.leave(port, flood)?)))
    }

    /// The VLAN of a frame that comes in.
    #[inline]
    fn enter(&self, from: PortIndex, tag: Tag) -> Result<u16, DropReason> {
        if tag.vlan == RESERVED {
            return Err(DropReason::Vlan);
        }
        if self.is_plain {
            return Ok(tag.vlan);
        }
        let rules = &self.ports[from];
        if rules.watches {
            return Err(DropReason::Filtered);
        }
        rules.policy.mode.ingress(tag).ok_or(DropReason::Vlan)
    }

    /// What is done to a frame's tag before it goes out of a port; `None` if it does not.
    #[inline]
    fn leave(&self, to: PortIndex, Flood { from, vlan, tag }: Flood) -> Option<Retag> {
        if to == from {
            return None;
        }
        if self.is_plain {
            return Some(Retag::Keep);
        }
        let rules = &self.ports[to];
        let is_apart = rules.policy.isolated && self.ports[from].policy.isolated;
        if is_apart || rules.watches { None } else { rules.policy.mode.egress(vlan, tag) }
    }

    /// Whether a station may send from a port: no address that is pinned elsewhere, and no other where one is pinned.
    fn may_send(&self, from: PortIndex, vlan: u16, mac: Mac) -> bool {
        let owners = self.owners.get(&mac).map_or(&[][..], Vec::as_slice);
        let policy = |port: PortIndex| &self.ports[port].policy;
        owners.contains(&from)
            || policy(from).pinned.is_empty() && !owners.iter().any(|&port| policy(port).mode.has(vlan))
    }

    /// The port of an address, unless it is unknown or a group's.
    fn find(&self, vlan: u16, mac: Mac, now: Now) -> Option<PortIndex> {
        if mac.is_multicast() { None } else { self.table.find(Key::new(vlan, mac), now.seconds) }
    }

    /// Whether a port sends too many frames for all; counts one.
    fn is_storm(&self, from: PortIndex, now: Now) -> bool {
        self.ports[from].storm.as_ref().is_some_and(|storm| !storm.admit(0, now.nanos))
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

impl Rules {
    /// Whether a frame's way depends on none of them.
    fn are_plain(&self) -> bool {
        let PortPolicy { mode, pinned, isolated, .. } = &self.policy;
        mode.is_transparent() && pinned.is_empty() && !isolated
    }
}

#[cfg(test)]
mod tests;
