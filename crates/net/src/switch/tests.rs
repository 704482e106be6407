use super::table::MAX_AGE;
use super::*;
use crate::frame::Mac;

fn mac(n: u16) -> Mac {
    let [high, low] = n.to_be_bytes();
    Mac::new([2, 0, 0, 0, high, low])
}

fn frame(src: u16, dst: u16) -> Ethernet {
    Ethernet { src: mac(src), dst: mac(dst), vlan: 0, len: 14 }
}

/// A switch with one worker.
struct Bench {
    switch: Switch,
    cache: Cache,
    now: u64,
}

impl Bench {
    fn new(ports: usize) -> Self {
        Self { switch: Switch::new(ports), cache: Cache::default(), now: 0 }
    }

    fn send(&mut self, from: PortIndex, frame: &Ethernet) -> Decision {
        self.switch.decide(&mut self.cache, frame, from, self.now)
    }

    fn at(&mut self, seconds: u64) -> &mut Self {
        self.now = seconds;
        self
    }
}

#[test]
fn learns_forwards_filters_and_moves() {
    let mut switch = Bench::new(3);
    assert_eq!(switch.send(0, &frame(1, 2)), Decision::Flood, "nobody knows 2");
    assert_eq!(switch.send(1, &frame(2, 1)), Decision::To(0));
    assert_eq!(switch.send(0, &frame(1, 2)), Decision::To(1));
    assert_eq!(switch.send(1, &frame(3, 2)), Decision::Filter, "2 is on the same port");
    assert_eq!(switch.send(2, &frame(2, 1)), Decision::To(0), "2 has moved");
    assert_eq!(switch.send(0, &frame(1, 2)), Decision::To(2));
}

#[test]
fn groups_are_flooded_and_never_learned() {
    let mut switch = Bench::new(2);
    let broadcast = Ethernet { dst: Mac::new([0xff; 6]), ..frame(1, 0) };
    assert_eq!(switch.send(0, &broadcast), Decision::Flood);
    let forged = Ethernet { src: Mac::new([0xff; 6]), ..frame(0, 9) };
    assert_eq!(switch.send(0, &forged), Decision::Filter);
    assert_eq!(switch.switch.learned(0).len(), 1);
    let pause = Ethernet { dst: Mac::new([1, 0x80, 0xc2, 0, 0, 1]), ..frame(1, 0) };
    assert_eq!(switch.send(0, &pause), Decision::Filter);
}

#[test]
fn vlans_are_apart() {
    let mut switch = Bench::new(2);
    let tagged = |src, dst| Ethernet { vlan: 7, len: 18, ..frame(src, dst) };
    switch.send(0, &frame(1, 2));
    assert_eq!(switch.send(1, &tagged(2, 1)), Decision::Flood, "1 is known without a tag only");
    switch.send(0, &tagged(1, 2));
    assert_eq!(switch.send(1, &tagged(2, 1)), Decision::To(0));
}

#[test]
fn old_addresses_are_forgotten_and_active_ones_are_not() {
    let mut switch = Bench::new(2);
    switch.send(0, &frame(1, 9));
    switch.send(1, &frame(2, 9));
    switch.at(MAX_AGE).send(1, &frame(2, 9));
    assert_eq!(switch.send(1, &frame(3, 1)), Decision::To(0));
    assert_eq!(switch.at(MAX_AGE + 1).send(1, &frame(3, 1)), Decision::Flood);
    assert_eq!(switch.send(0, &frame(4, 2)), Decision::To(1));
}

#[test]
fn a_port_that_leaves_takes_its_addresses_along() {
    let mut switch = Bench::new(2);
    switch.send(0, &frame(1, 9));
    assert_eq!(switch.send(1, &frame(2, 1)), Decision::To(0));
    switch.switch.forget_port(0);
    assert_eq!(switch.send(1, &frame(2, 1)), Decision::Flood);
    assert_eq!(switch.send(0, &frame(1, 2)), Decision::To(1));
    assert_eq!(switch.send(1, &frame(2, 1)), Decision::To(0), "it has come back");
}

/// One worker sees at once what another has learned, whatever it remembers.
#[test]
fn workers_share_what_they_learn() {
    let mut switch = Bench::new(3);
    switch.send(0, &frame(1, 9));
    assert_eq!(switch.send(1, &frame(2, 1)), Decision::To(0));
    let mut other = Cache::default();
    switch.switch.decide(&mut other, &frame(1, 9), 2, 0);
    assert_eq!(switch.send(1, &frame(2, 1)), Decision::To(2), "1 has moved");
    assert_eq!(switch.send(0, &frame(1, 2)), Decision::To(1));
    assert_eq!(switch.send(1, &frame(2, 1)), Decision::To(0), "and back");
}
