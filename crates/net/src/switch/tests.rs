use super::table::MAX_AGE;
use super::*;

fn mac(n: u16) -> Mac {
    let [high, low] = n.to_be_bytes();
    Mac::new([2, 0, 0, 0, high, low])
}

fn frame(src: u16, dst: u16) -> Ethernet {
    Ethernet { src: mac(src), dst: mac(dst), vlan: 0, len: 14 }
}

fn tagged(vlan: u16, src: u16, dst: u16) -> Ethernet {
    Ethernet { vlan, len: 18, ..frame(src, dst) }
}

fn broadcast(src: u16) -> Ethernet {
    Ethernet { dst: Mac::new([0xff; 6]), ..frame(src, 0) }
}

/// A switch with one worker.
struct Bench {
    switch: Switch,
    cache: Cache,
    now: Now,
}

/// What becomes of a frame.
#[derive(Debug, PartialEq)]
enum Fate {
    To(PortIndex),
    Flood(Vec<PortIndex>),
    Drop(DropReason),
}
use Fate::{Drop, To};

fn flood<const N: usize>(ports: [PortIndex; N]) -> Fate {
    Fate::Flood(ports.to_vec())
}

impl Bench {
    fn new(policies: &[PortPolicy]) -> Self {
        Self { switch: Switch::new(policies, &[]), cache: Cache::default(), now: Now::default() }
    }

    fn plain(ports: usize) -> Self {
        Self::new(&vec![PortPolicy::default(); ports])
    }

    fn send(&mut self, from: PortIndex, frame: &Ethernet) -> Fate {
        match self.switch.decide(&mut self.cache, from, frame, self.now) {
            Decision::To(port, _) => To(port),
            Decision::Flood(flood) => Fate::Flood(self.switch.targets(flood).map(|(port, _)| port).collect()),
            Decision::Drop(reason) => Drop(reason),
        }
    }

    fn at(&mut self, seconds: u64) -> &mut Self {
        self.now = Now { seconds, nanos: seconds * 1_000_000_000 };
        self
    }
}

fn isolated() -> PortPolicy {
    PortPolicy { isolated: true, ..PortPolicy::default() }
}

fn pinned(macs: &[u16]) -> PortPolicy {
    PortPolicy { pinned: macs.iter().map(|&n| mac(n)).collect(), ..PortPolicy::default() }
}

fn access(vlan: u16) -> PortPolicy {
    PortPolicy { mode: Mode::Access(vlan), ..PortPolicy::default() }
}

#[test]
fn learns_forwards_filters_and_moves() {
    let mut switch = Bench::plain(3);
    assert_eq!(switch.send(0, &frame(1, 2)), flood([1, 2]), "nobody knows 2");
    assert_eq!(switch.send(1, &frame(2, 1)), To(0));
    assert_eq!(switch.send(0, &frame(1, 2)), To(1));
    assert_eq!(switch.send(1, &frame(3, 2)), Drop(DropReason::Filtered), "2 is on the same port");
    assert_eq!(switch.send(2, &frame(2, 1)), To(0), "2 has moved");
    assert_eq!(switch.send(0, &frame(1, 2)), To(2));
}

#[test]
fn groups_are_flooded_and_never_learned() {
    let mut switch = Bench::plain(2);
    assert_eq!(switch.send(0, &broadcast(1)), flood([1]));
    let forged = Ethernet { src: Mac::new([0xff; 6]), ..frame(0, 9) };
    assert_eq!(switch.send(0, &forged), Drop(DropReason::Filtered));
    assert_eq!(switch.switch.learned(0).len(), 1);
    let pause = Ethernet { dst: Mac::new([1, 0x80, 0xc2, 0, 0, 1]), ..frame(1, 0) };
    assert_eq!(switch.send(0, &pause), Drop(DropReason::Filtered));
}

#[test]
fn vlans_are_apart() {
    let mut switch = Bench::plain(2);
    switch.send(0, &frame(1, 2));
    assert_eq!(switch.send(1, &tagged(7, 2, 1)), flood([0]), "1 is known without a tag only");
    switch.send(0, &tagged(7, 1, 2));
    assert_eq!(switch.send(1, &tagged(7, 2, 1)), To(0));
    assert_eq!(switch.send(1, &tagged(0xfff, 2, 1)), Drop(DropReason::Vlan));
}

#[test]
fn old_addresses_are_forgotten_and_active_ones_are_not() {
    let mut switch = Bench::plain(2);
    switch.send(0, &frame(1, 9));
    switch.send(1, &frame(2, 9));
    switch.at(MAX_AGE).send(1, &frame(2, 9));
    assert_eq!(switch.send(1, &frame(3, 1)), To(0));
    assert_eq!(switch.at(MAX_AGE + 1).send(1, &frame(3, 1)), flood([0]));
    assert_eq!(switch.send(0, &frame(4, 2)), To(1));
}

#[test]
fn a_port_that_leaves_takes_its_addresses_along() {
    let mut switch = Bench::plain(2);
    switch.send(0, &frame(1, 9));
    assert_eq!(switch.send(1, &frame(2, 1)), To(0));
    switch.switch.forget_port(0);
    assert_eq!(switch.send(1, &frame(2, 1)), flood([0]));
    assert_eq!(switch.send(0, &frame(1, 2)), To(1));
    assert_eq!(switch.send(1, &frame(2, 1)), To(0), "it has come back");
}

/// One worker sees at once what another has learned, whatever it remembers.
#[test]
fn workers_share_what_they_learn() {
    let mut switch = Bench::plain(3);
    switch.send(0, &frame(1, 9));
    assert_eq!(switch.send(1, &frame(2, 1)), To(0));
    let mut other = Cache::default();
    switch.switch.decide(&mut other, 2, &frame(1, 9), switch.now);
    assert_eq!(switch.send(1, &frame(2, 1)), To(2), "1 has moved");
    assert_eq!(switch.send(0, &frame(1, 2)), To(1));
    assert_eq!(switch.send(1, &frame(2, 1)), To(0), "and back");
}

/// A port with a rule and others without: a tag is added and taken away, and VLANs stay apart.
#[test]
fn access_ports_and_trunks() {
    let mut switch = Bench::new(&[access(7), access(8), PortPolicy::default(), access(7)]);
    let Decision::Flood(all) = switch.switch.decide(&mut switch.cache, 0, &broadcast(1), switch.now) else {
        panic!("flooded")
    };
    let targets: Vec<_> = switch.switch.targets(all).collect();
    assert_eq!(targets, [(2, Retag::Push(7)), (3, Retag::Keep)]);
    let back = switch.switch.decide(&mut switch.cache, 2, &tagged(7, 2, 1), switch.now);
    assert_eq!(back, Decision::To(0, Retag::Pop));
    assert_eq!(switch.send(2, &tagged(8, 2, 1)), flood([1]), "1 is unknown in VLAN 8");
    assert_eq!(switch.send(2, &frame(2, 1)), flood([]));
    assert_eq!(switch.send(0, &tagged(7, 1, 2)), Drop(DropReason::Vlan));
}

#[test]
fn isolated_ports_reach_others_only() {
    let mut switch = Bench::new(&[isolated(), isolated(), PortPolicy::default()]);
    assert_eq!(switch.send(0, &broadcast(1)), flood([2]));
    assert_eq!(switch.send(2, &broadcast(3)), flood([0, 1]));
    assert_eq!(switch.send(1, &frame(2, 1)), Drop(DropReason::Filtered));
    assert_eq!(switch.send(1, &frame(2, 3)), To(2));
    assert_eq!(switch.send(2, &frame(3, 2)), To(1));
}

/// A port with pinned addresses sends from these only, and no other port does.
#[test]
fn pinned_addresses_are_the_ports_own() {
    let mut switch = Bench::new(&[pinned(&[1, 2]), PortPolicy::default(), pinned(&[5])]);
    assert_eq!(switch.send(0, &frame(1, 9)), flood([1, 2]));
    assert_eq!(switch.send(0, &frame(2, 9)), flood([1, 2]));
    assert_eq!(switch.send(0, &frame(3, 9)), Drop(DropReason::Secured));
    assert_eq!(switch.send(1, &frame(3, 9)), flood([0, 2]));
    assert_eq!(switch.send(1, &frame(1, 9)), Drop(DropReason::Secured), "taken over");
    assert_eq!(switch.send(2, &frame(1, 9)), Drop(DropReason::Secured), "taken over");
    assert_eq!(switch.send(1, &frame(3, 1)), To(0));
}

/// Another VLAN has other stations, which may have the same addresses.
#[test]
fn pinned_addresses_are_of_their_vlans() {
    let pinned = |vlan| PortPolicy { pinned: vec![mac(1)], ..access(vlan) };
    let mut switch = Bench::new(&[pinned(7), pinned(8), access(7), access(8), access(9)]);
    assert_eq!(switch.send(0, &frame(1, 9)), flood([2]));
    assert_eq!(switch.send(1, &frame(1, 9)), flood([3]));
    assert_eq!(switch.send(2, &frame(1, 9)), Drop(DropReason::Secured));
    assert_eq!(switch.send(3, &frame(1, 9)), Drop(DropReason::Secured));
    assert_eq!(switch.send(4, &frame(1, 9)), flood([]));
}

/// Frames for all are limited, to groups, and to addresses that nobody knows; others are not.
#[test]
fn storms_are_stopped() {
    let mut switch =
        Bench::new(&[PortPolicy { storm: Some(100), ..PortPolicy::default() }, PortPolicy::default()]);
    assert!(switch.switch.is_metered());
    switch.send(1, &frame(2, 9));
    for frames in [broadcast(1), frame(1, 9)] {
        let next = switch.now.seconds + 1;
        switch.at(next);
        let flooded = (0..1000).filter(|_| switch.send(0, &frames) == flood([1])).count();
        assert!((8..=9).contains(&flooded), "{flooded}");
        assert_eq!(switch.send(0, &frames), Drop(DropReason::Storm));
        assert_eq!(switch.send(0, &frame(1, 2)), To(1));
        assert_eq!(switch.send(1, &broadcast(2)), flood([0]), "others are not concerned");
    }
}

#[test]
fn rates_are_per_port_and_direction() {
    let limit = Limit { bits: None, frames: Some(100) };
    let policy = PortPolicy { to: limit, ..PortPolicy::default() };
    let switch = Bench::new(&[policy, PortPolicy { from: limit, ..PortPolicy::default() }]).switch;
    let received = |port| (0..100).filter(|_| switch.may_receive(port, 60, Now::default())).count();
    assert_eq!([0, 1].map(received), [9, 100]);
    assert!(switch.sending(0).is_none() && switch.sending(1).is_some());
}

/// A port that watches gets copies and nothing else, and has no say.
#[test]
fn watchers_only_watch() {
    let mirrors = [Mirror { from: 0, to: 2 }, Mirror { from: 1, to: 2 }, Mirror { from: 0, to: 3 }];
    let mut switch = Bench::plain(4);
    switch.switch = Switch::new(&vec![PortPolicy::default(); 4], &mirrors);
    assert_eq!([0, 1, 2].map(|port| switch.switch.watchers(port)), [&[2, 3][..], &[2], &[]]);
    assert_eq!(switch.send(0, &broadcast(1)), flood([1]));
    assert_eq!(switch.send(2, &broadcast(2)), Drop(DropReason::Filtered));
    assert_eq!(switch.send(0, &frame(1, 2)), flood([1]), "2 was not learned");
}
