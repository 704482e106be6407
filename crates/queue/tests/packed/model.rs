//! Random histories against a model of what the ring must then hold, and random bursts in which the way they
//! are taken must make no difference.

use std::collections::VecDeque;

use proptest::prelude::*;
use ringway_queue::{Burst, DeviceQueue, InFlight};
use ringway_spec::feature::{IN_ORDER, RING_INDIRECT_DESC};
use ringway_spec::packed::{DESC_F_INDIRECT, DESC_F_WRITE};

use crate::common::packed::{Buffer, Desc, Driver, Used, used};
use crate::common::{Guest, buffer};

#[derive(Debug, Clone)]
enum Step {
    /// A chain of readable and writable buffers.
    Offer(u64, u64),
    Take(usize),
    /// Hands a chain of the burst out.
    Handle,
    /// Completes one of those handed out.
    Complete(usize),
    Publish,
    Rewind,
    /// Stops and starts again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4u64, 0..4u64).prop_map(|(readable, writable)| Step::Offer(readable, writable)),
        3 => (0..9usize).prop_map(Step::Take),
        5 => Just(Step::Handle),
        5 => any::<usize>().prop_map(Step::Complete),
        3 => Just(Step::Publish),
        1 => Just(Step::Rewind),
        1 => Just(Step::Restart),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    id: u16,
    readable: u64,
    writable: u64,
}

impl Sent {
    fn slots(self) -> u64 {
        self.readable + self.writable
    }

    fn buffer_len(self) -> u32 {
        u32::from(self.id) % 100 + 2
    }
}

struct World {
    driver: Driver,
    queue: DeviceQueue,
    burst: Burst,
    features: u64,
    next_id: u16,
    /// Chains by where they are.
    offered: VecDeque<Sent>,
    waiting: VecDeque<Sent>,
    handed_out: Vec<(InFlight, Sent)>,
    completed: Vec<(Sent, u32)>,
    /// The next slots to take, and to use, by free-running positions.
    avail: u64,
    used: u64,
    /// What the ring must hold once all is published.
    ring: Vec<Desc>,
}

impl World {
    fn new(guest: &Guest, size: u16, start: u64, features: u64) -> Self {
        let driver = Driver::in_guest(guest.clone(), size, start);
        let queue = driver.start(features);
        let ring = driver.ring();
        Self {
            driver,
            queue,
            burst: Burst::default(),
            features,
            next_id: 0,
            offered: VecDeque::new(),
            waiting: VecDeque::new(),
            handed_out: Vec::new(),
            completed: Vec::new(),
            avail: start,
            used: start,
            ring,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Offer(readable, writable) => self.offer(readable, writable),
            Step::Take(max) => self.take(max),
            Step::Handle => self.handle(),
            Step::Complete(nth) => self.complete(nth),
            Step::Publish => self.publish(),
            Step::Rewind => self.rewind(),
            Step::Restart => self.restart(),
        }
        let occupied = self.avail - self.used;
        let expected = !self.offered.is_empty() && occupied < self.driver.size.into();
        assert_eq!(self.queue.has_available(), expected);
    }

    fn offer(&mut self, readable: u64, writable: u64) {
        let free = u64::from(self.driver.size) - (self.driver.avail - self.driver.used);
        let sent = Sent { id: self.next_id, readable, writable };
        if sent.slots() == 0 || sent.slots() > free {
            return;
        }
        self.next_id += 1;
        let at = buffer(u64::from(sent.id) % 512);
        self.driver.guest.write(at, &sent.id.to_le_bytes());
        let mut buffers: Vec<Buffer> = vec![(at, sent.buffer_len(), 0); readable as usize];
        buffers.resize(sent.slots() as usize, (at, sent.buffer_len(), DESC_F_WRITE));
        let head = self.driver.avail;
        self.driver.offer(sent.id, &buffers);
        for position in head..self.driver.avail {
            self.ring[usize::from(self.driver.slot(position))] = self.driver.desc(position);
        }
        self.offered.push_back(sent);
    }

    fn take(&mut self, max: usize) {
        let expected = max.min(self.offered.len());
        assert_eq!(self.queue.take(&mut self.burst, max), Ok(expected));
        for sent in self.offered.drain(..expected) {
            self.avail += sent.slots();
            self.waiting.push_back(sent);
        }
        assert_eq!(self.burst.len(), self.waiting.len());
        let lens = self.waiting.iter().map(|sent| sent.buffer_len() * sent.writable as u32);
        assert!(self.burst.writable_lens().eq(lens));
    }

    fn handle(&mut self) {
        let Some(chain) = self.burst.next() else { return assert!(self.waiting.is_empty()) };
        let sent = self.waiting.pop_front().expect("a chain of the model");
        let readable = chain.readable();
        assert_eq!(readable.len() as u64, u64::from(sent.buffer_len()) * sent.readable);
        if sent.readable > 0 {
            assert_eq!(readable.read_array(), Some(sent.id.to_le_bytes()));
        }
        self.handed_out.push((chain.detach(), sent));
    }

    fn complete(&mut self, nth: usize) {
        if self.handed_out.is_empty() {
            return;
        }
        let nth = if self.features & IN_ORDER != 0 { 0 } else { nth % self.handed_out.len() };
        let (chain, sent) = self.handed_out.remove(nth);
        let written = sent.buffer_len() * sent.writable as u32 / 2 * u32::from(sent.id % 3 != 0);
        self.queue.complete(chain, written);
        self.used += sent.slots();
        self.completed.push((sent, written));
        assert_eq!(self.driver.peek(), None, "not published yet");
    }

    fn publish(&mut self) {
        assert_eq!(self.queue.publish(), !self.completed.is_empty());
        self.check_used();
    }

    /// Reclaims what was completed, after it was published.
    fn check_used(&mut self) {
        let is_read_only = |(sent, _): &(Sent, u32)| sent.writable == 0;
        let merged = match self.features & IN_ORDER {
            0 => 0,
            _ => self.completed.iter().take_while(|chain| is_read_only(chain)).count(),
        };
        let mut slots = 0;
        for (i, (sent, written)) in self.completed.drain(..).enumerate() {
            slots += sent.slots();
            if i + 1 < merged {
                continue;
            }
            let at = self.driver.used;
            let slot = &mut self.ring[usize::from(self.driver.slot(at))];
            let flags = self.driver.used_flags(at) | if written > 0 { DESC_F_WRITE } else { 0 };
            *slot = Desc { addr: slot.addr, len: written, id: sent.id, flags };
            assert_eq!(self.driver.reclaim(slots), Some(used(sent.id, written)));
            slots = 0;
        }
        assert_eq!(self.driver.used, self.used);
        assert_eq!(self.driver.ring(), self.ring);
    }

    fn rewind(&mut self) {
        self.queue.rewind(&mut self.burst);
        while let Some(sent) = self.waiting.pop_back() {
            self.avail -= sent.slots();
            self.offered.push_front(sent);
        }
    }

    fn restart(&mut self) {
        self.rewind();
        while !self.handed_out.is_empty() {
            self.complete(0);
        }
        let next = self.driver.start_at(self.features, self.avail, self.used);
        let state = std::mem::replace(&mut self.queue, next).stop();
        assert_eq!(state, self.driver.state(self.avail, self.used));
        self.check_used();
    }
}

/// One slot, or one with a table behind it, or several.
#[derive(Debug, Clone)]
enum Shape {
    One(bool),
    Table(bool),
    List(usize, usize),
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        12 => any::<bool>().prop_map(Shape::One),
        1 => any::<bool>().prop_map(Shape::Table),
        2 => (1..3usize, 0..3usize).prop_map(|(readable, writable)| Shape::List(readable, writable)),
    ]
}

/// What a device and then the driver get of a chain: readable bytes, room, used descriptor.
type Seen = (Vec<u8>, u32, Used);

/// Has chains go round from `start`, taken by `maxes` at a time.
fn go_round(guest: &Guest, size: u16, start: u64, chains: &[Shape], maxes: &[usize]) -> Vec<Seen> {
    let mut driver = Driver::in_guest(guest.clone(), size, start);
    let mut queue = driver.start(RING_INDIRECT_DESC);
    let mut burst = Burst::default();
    let mut slots = Vec::new();
    for (n, shape) in (0..).zip(chains) {
        let len = n as u32 + 1;
        guest.write(buffer(n), &n.to_le_bytes());
        let flag = |is_writable| if is_writable { DESC_F_WRITE } else { 0 };
        let buffers = match *shape {
            Shape::One(is_writable) => vec![(buffer(n), len, flag(is_writable))],
            Shape::Table(is_writable) => {
                guest.write_table(buffer(n) + 64, &[(buffer(n), len, 0, flag(is_writable))]);
                vec![(buffer(n) + 64, 16, DESC_F_INDIRECT)]
            }
            Shape::List(readable, writable) => {
                let mut list = vec![(buffer(n), len, 0); readable];
                list.resize(readable + writable, (buffer(n), len, DESC_F_WRITE));
                list
            }
        };
        driver.offer(n as u16 ^ 0xa5, &buffers);
        slots.push(buffers.len() as u64);
    }
    let mut seen = Vec::new();
    for max in maxes.iter().cycle() {
        let left = chains.len() - seen.len();
        assert_eq!(queue.take(&mut burst, *max), Ok(left.min(*max)));
        if left == 0 {
            break;
        }
        while let Some(chain) = burst.next() {
            let mut bytes = vec![0; chain.readable().len()];
            chain.readable().read(&mut bytes);
            let room = chain.writable_len();
            seen.push((bytes, room));
            queue.complete(chain, room);
        }
    }
    assert!(queue.publish());
    assert_eq!(seen.len(), slots.len());
    let mut reclaim = |slots| driver.reclaim(slots).expect("a used chain");
    seen.into_iter().zip(slots).map(|((bytes, room), slots)| (bytes, room, reclaim(slots))).collect()
}

proptest! {
    /// Any history of a queue leaves the ring as the model says, at every publication: what is used stands
    /// where it is expected, and nothing else has changed.
    #[test]
    fn any_history_agrees_with_the_model(
        size in 1..14u16,
        start in 0..28u64,
        features in prop_oneof![Just(0), Just(IN_ORDER)],
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new(&Guest::new(), size, start % (2 * u64::from(size)), features);
        for step in &steps {
            world.step(step);
        }
        world.restart();
    }

    /// Chains are the same whether whole cache lines of them are taken at once or one at a time, wherever
    /// they stand in their lines.
    #[test]
    fn bursts_and_single_chains_are_the_same(
        chains in prop::collection::vec(shape(), 1..17),
        size in 64..72u16,
        start in 0..144u64,
        maxes in prop::collection::vec(1..9usize, 1..5),
    ) {
        let guest = Guest::new();
        let start = start % (2 * u64::from(size));
        let one_by_one = go_round(&guest, size, start, &chains, &[1]);
        prop_assert_eq!(&go_round(&guest, size, start, &chains, &[64]), &one_by_one);
        prop_assert_eq!(&go_round(&guest, size, start, &chains, &maxes), &one_by_one);
        for shift in 1..4 {
            prop_assert_eq!(&go_round(&guest, size, start + shift, &chains, &[64]), &one_by_one);
        }
        for (n, (bytes, room, told)) in one_by_one.iter().enumerate() {
            let (readable, writable) = match chains[n] {
                Shape::One(is_writable) | Shape::Table(is_writable) => {
                    (usize::from(!is_writable), usize::from(is_writable))
                }
                Shape::List(readable, writable) => (readable, writable),
            };
            prop_assert_eq!((bytes.len(), *room as usize), (readable * (n + 1), writable * (n + 1)));
            prop_assert!(bytes.first().is_none_or(|byte| usize::from(*byte) == n));
            prop_assert_eq!(*told, used(n as u16 ^ 0xa5, *room));
        }
    }
}
