//! Both halves under random operations, against the model in `loopback/mod.rs`.

mod common;
mod loopback;

use common::Guest;
use loopback::{Config, Pair, SEGMENT};
use proptest::prelude::*;
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};

#[derive(Debug, Clone)]
enum Op {
    Add(Vec<u32>, Vec<u32>),
    Publish,
    Take(usize),
    Next(u8),
    Handle(u8),
    /// By its place among the chains in flight; with `IN_ORDER` the oldest.
    Complete(prop::sample::Index),
    PublishUsed,
    Reclaim,
    Rewind,
    ArmKicks,
    SuppressKicks,
    ArmCalls,
    SuppressCalls,
    Restart,
    Reset(Config),
}

fn segments() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![1 => Just(0), 20 => 0..=SEGMENT], 0..5)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        300 => (segments(), segments()).prop_map(|(readable, writable)| Op::Add(readable, writable)),
        120 => Just(Op::Publish),
        120 => (0usize..20).prop_map(Op::Take),
        40 => any::<u8>().prop_map(Op::Next),
        200 => any::<u8>().prop_map(Op::Handle),
        240 => any::<prop::sample::Index>().prop_map(Op::Complete),
        120 => Just(Op::PublishUsed),
        250 => Just(Op::Reclaim),
        40 => Just(Op::Rewind),
        60 => Just(Op::ArmKicks),
        30 => Just(Op::SuppressKicks),
        60 => Just(Op::ArmCalls),
        30 => Just(Op::SuppressCalls),
        15 => Just(Op::Restart),
        5 => config().prop_map(Op::Reset),
    ]
}

/// A queue of either format with any of the features, most often a few steps before its indices wrap.
fn config() -> impl Strategy<Value = Config> {
    let sizes = (0u32..6, 1u16..=40);
    let features = [RING_PACKED, RING_EVENT_IDX, RING_INDIRECT_DESC, IN_ORDER];
    let features = prop::sample::subsequence(features.to_vec(), 0..=4);
    (sizes, features, any::<u16>(), 0u16..=24, 1u16..=40, 0u16..=6).prop_map(
        |((log, any), features, start, before, max_chain, table)| {
            let features = features.iter().fold(0, |all, one| all | one);
            let size = if features & RING_PACKED != 0 { any } else { 1 << log };
            let mut config = Config { size, features, start: 0, max_chain, table };
            let start = if start % 4 == 0 { start } else { 0u16.wrapping_sub(before) };
            config.start = u64::from(start) % config.period();
            config
        },
    )
}

fn run(pair: &mut Pair, op: &Op) {
    match op {
        // Too long, too many, none: the pair knows what is to be said.
        Op::Add(readable, writable) => drop(pair.add(readable, writable)),
        Op::Publish => drop(pair.publish()),
        Op::Take(max) => drop(pair.take(*max)),
        Op::Next(fill) => pair.next(*fill),
        Op::Handle(fill) => pair.handle(*fill),
        Op::Complete(which) => match pair.counts().in_flight {
            0 => {}
            _ if pair.config.is_in_order() => pair.complete(0),
            n => pair.complete(which.index(n)),
        },
        Op::PublishUsed => drop(pair.publish_used()),
        Op::Reclaim => drop(pair.reclaim()),
        Op::Rewind => pair.rewind(),
        Op::ArmKicks => drop(pair.arm_kicks()),
        Op::SuppressKicks => pair.suppress_kicks(),
        Op::ArmCalls => drop(pair.arm_calls()),
        Op::SuppressCalls => pair.suppress_calls(),
        Op::Restart => pair.restart(),
        Op::Reset(config) => pair.reset(*config),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_agree_with_the_model(
        config in config(),
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let mut pair = Pair::new(&Guest::new(), config);
        for op in &ops {
            run(&mut pair, op);
        }
        // Whatever was left undone, the chains come home.
        pair.publish();
        while pair.counts().available + pair.counts().waiting + pair.counts().in_flight > 0 {
            pair.take(7);
            pair.handle(128);
            while pair.counts().in_flight > 0 {
                pair.complete(0);
            }
        }
        pair.publish_used();
        while pair.reclaim() {}
        prop_assert!(pair.is_idle());
    }
}
