//! The learning switch (IEEE 802.1D, 7.8 and 7.9): which port a frame goes to, by VLAN and address.
//!
//! Time is an argument, in seconds; nothing here asks a clock. Addresses are a guest's to choose, so each port
//! may fill its share of the table and no more: beyond it, its further addresses are flooded, not learned.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::frame::{Ethernet, Mac};
use crate::handover::Learned;

/// Seconds after which an address that sent nothing is forgotten.
const MAX_AGE: u64 = 300;
/// Seconds between two looks for addresses to forget.
const SWEEP: u64 = 10;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    port: PortIndex,
    seen: u64,
}

/// An address in a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key(u64);

impl Key {
    fn new(vlan: u16, mac: Mac) -> Self {
        Self(u64::from(vlan) << 48 | mac.bits())
    }
}

/// The addresses learned.
pub(crate) struct Switch {
    table: HashMap<Key, Entry, RandomState>,
    /// Addresses learned, per port.
    learned: Vec<usize>,
    next_sweep: u64,
    /// The last source and the last destination looked up: most frames come in trains.
    last_src: Option<(Key, Entry)>,
    last_dst: Option<(Key, PortIndex)>,
}

impl Switch {
    pub(crate) fn new(ports: usize) -> Self {
        Self {
            table: HashMap::default(),
            learned: vec![0; ports],
            next_sweep: 0,
            last_src: None,
            last_dst: None,
        }
    }

    /// Learns from a frame that came from `port` at `now`, and decides where it goes.
    #[inline]
    pub(crate) fn decide(&mut self, frame: &Ethernet, port: PortIndex, now: u64) -> Decision {
        if frame.dst.is_link_local() || frame.src.is_multicast() {
            return Decision::Filter;
        }
        let src = Key::new(frame.vlan, frame.src);
        if self.last_src != Some((src, Entry { port, seen: now })) {
            self.learn(src, port, now);
        }
        if frame.dst.is_multicast() {
            return Decision::Flood;
        }
        let dst = Key::new(frame.vlan, frame.dst);
        let to = match self.last_dst {
            Some((key, to)) if key == dst => to,
            _ => {
                let Some(entry) = self.table.get(&dst) else { return Decision::Flood };
                self.last_dst = Some((dst, entry.port));
                entry.port
            }
        };
        if to == port { Decision::Filter } else { Decision::To(to) }
    }

    fn learn(&mut self, key: Key, port: PortIndex, now: u64) {
        let entry = Entry { port, seen: now };
        if let Some(known) = self.table.get_mut(&key) {
            if known.port != port {
                self.learned[known.port] -= 1;
                self.learned[port] += 1;
                self.last_dst = None;
            }
            *known = entry;
        } else if self.learned[port] < MAX_PER_PORT {
            self.table.insert(key, entry);
            self.learned[port] += 1;
        } else {
            return;
        }
        self.last_src = Some((key, entry));
    }

    /// The addresses learned, for another switch of as many ports.
    pub(crate) fn learned(&self) -> Vec<Learned> {
        let learned =
            |(key, entry): (&Key, &Entry)| Learned { key: key.0, port: entry.port, seen: entry.seen };
        self.table.iter().map(learned).collect()
    }

    /// Learns what another switch had learned, within the bounds of this one.
    pub(crate) fn learn_again(&mut self, learned: &[Learned], now: u64) {
        let ports = self.learned.len();
        for &Learned { key, port, seen } in learned.iter().filter(|l| l.port < ports) {
            self.learn(Key(key), port, seen.min(now));
        }
    }

    /// Forgets addresses that have sent nothing for long. To be called every now and then.
    pub(crate) fn age(&mut self, now: u64) {
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.forget(|entry| now.saturating_sub(entry.seen) > MAX_AGE);
        }
    }

    /// Forgets the addresses of a port whose guest has gone.
    pub(crate) fn forget_port(&mut self, port: PortIndex) {
        self.forget(|entry| entry.port == port);
    }

    fn forget(&mut self, is_old: impl Fn(&Entry) -> bool) {
        let Self { table, learned, .. } = self;
        table.retain(|_, entry| {
            let old = is_old(entry);
            learned[entry.port] -= usize::from(old);
            !old
        });
        self.last_src = None;
        self.last_dst = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u16) -> Mac {
        let [high, low] = n.to_be_bytes();
        Mac::new([2, 0, 0, 0, high, low])
    }

    fn frame(src: u16, dst: u16) -> Ethernet {
        Ethernet { src: mac(src), dst: mac(dst), vlan: 0, len: 14 }
    }

    #[test]
    fn learns_forwards_filters_and_moves() {
        let mut switch = Switch::new(3);
        assert_eq!(switch.decide(&frame(1, 2), 0, 0), Decision::Flood, "nobody knows 2");
        assert_eq!(switch.decide(&frame(2, 1), 1, 0), Decision::To(0));
        assert_eq!(switch.decide(&frame(1, 2), 0, 0), Decision::To(1));
        assert_eq!(switch.decide(&frame(3, 2), 1, 0), Decision::Filter, "2 is on the same port");
        assert_eq!(switch.decide(&frame(2, 1), 2, 0), Decision::To(0), "2 has moved");
        assert_eq!(switch.decide(&frame(1, 2), 0, 0), Decision::To(2));
    }

    #[test]
    fn groups_are_flooded_and_never_learned() {
        let mut switch = Switch::new(2);
        let broadcast = Ethernet { src: mac(1), dst: Mac::new([0xff; 6]), vlan: 0, len: 14 };
        assert_eq!(switch.decide(&broadcast, 0, 0), Decision::Flood);
        let forged = Ethernet { src: Mac::new([0xff; 6]), dst: mac(9), vlan: 0, len: 14 };
        assert_eq!(switch.decide(&forged, 0, 0), Decision::Filter);
        assert_eq!(switch.table.len(), 1);
        let pause = Ethernet { src: mac(1), dst: Mac::new([1, 0x80, 0xc2, 0, 0, 1]), vlan: 0, len: 14 };
        assert_eq!(switch.decide(&pause, 0, 0), Decision::Filter);
    }

    #[test]
    fn vlans_are_apart() {
        let mut switch = Switch::new(2);
        let tagged = |src, dst| Ethernet { vlan: 7, ..frame(src, dst) };
        switch.decide(&frame(1, 2), 0, 0);
        assert_eq!(switch.decide(&tagged(2, 1), 1, 0), Decision::Flood, "1 is known without a tag only");
        switch.decide(&tagged(1, 2), 0, 0);
        assert_eq!(switch.decide(&tagged(2, 1), 1, 0), Decision::To(0));
    }

    #[test]
    fn old_addresses_are_forgotten_and_active_ones_are_not() {
        let mut switch = Switch::new(2);
        switch.decide(&frame(1, 9), 0, 0);
        switch.decide(&frame(2, 9), 1, 0);
        switch.decide(&frame(2, 9), 1, MAX_AGE);
        switch.age(MAX_AGE + 1);
        assert_eq!(switch.decide(&frame(3, 1), 1, MAX_AGE + 1), Decision::Flood);
        assert_eq!(switch.decide(&frame(4, 2), 0, MAX_AGE + 1), Decision::To(1));
    }

    #[test]
    fn a_port_that_leaves_takes_its_addresses_along() {
        let mut switch = Switch::new(2);
        switch.decide(&frame(1, 9), 0, 0);
        assert_eq!(switch.decide(&frame(2, 1), 1, 0), Decision::To(0));
        switch.forget_port(0);
        assert_eq!(switch.decide(&frame(2, 1), 1, 0), Decision::Flood);
        assert_eq!(switch.learned, [0, 1]);
    }

    /// Another switch goes on with the addresses, and forgets them when this one would have; what it has no port or no
    /// room for it leaves.
    #[test]
    fn another_switch_learns_it_again() {
        let mut switch = Switch::new(3);
        switch.decide(&frame(1, 9), 0, 0);
        switch.decide(&frame(2, 9), 1, 100);
        switch.decide(&frame(3, 9), 2, 100);
        let mut other = Switch::new(2);
        other.learn_again(&switch.learned(), 100);
        assert_eq!(other.learned, [1, 1]);
        assert_eq!(other.decide(&frame(1, 2), 0, 100), Decision::To(1));
        other.learn_again(&switch.learned(), 100);
        other.age(MAX_AGE + 100);
        assert_eq!(other.decide(&frame(4, 2), 0, MAX_AGE + 100), Decision::To(1));
        other.age(MAX_AGE + 111);
        assert_eq!(other.decide(&frame(4, 2), 0, MAX_AGE + 111), Decision::Flood);
        let many: Vec<_> =
            (0..=MAX_PER_PORT as u64).map(|key| Learned { key, port: 0, seen: u64::MAX }).collect();
        let mut other = Switch::new(1);
        other.learn_again(&many, 7);
        assert_eq!(other.learned, [MAX_PER_PORT]);
        assert!(other.learned().iter().all(|l| l.seen == 7));
    }

    /// A guest that invents addresses fills its own share only.
    #[test]
    fn the_table_is_bounded_per_port() {
        let mut switch = Switch::new(2);
        for n in 0..=u16::MAX {
            switch.decide(&frame(n, 0), 0, 0);
        }
        assert_eq!(switch.table.len(), MAX_PER_PORT);
        let other = Ethernet { src: Mac::new([6; 6]), dst: mac(0), vlan: 0, len: 14 };
        assert_eq!(switch.decide(&other, 1, 0), Decision::To(0));
        assert_eq!(switch.learned, [MAX_PER_PORT, 1]);
        switch.forget_port(0);
        switch.decide(&frame(60000, 1), 0, 1);
        assert_eq!(switch.learned, [1, 1], "room is made again");
    }
}
