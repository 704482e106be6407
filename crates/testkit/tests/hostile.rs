//! The fuzz targets' functions with seeded inputs, for where no fuzzer is. `PROPTEST_CASES` says how many cases
//! are run instead; one that fails is printed, smaller.

use proptest::prelude::*;
use ringway_testkit::hostile;

/// Bytes as a fuzzer has them: small numbers more often than others, and the same again and again.
fn bytes(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => any::<u8>(), 2 => 0u8..16, 1 => Just(0), 1 => 250u8..=255];
    prop::collection::vec(byte, 0..len)
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    // The case that fails is in the message; nothing is written to the sources.
    ProptestConfig { cases: cases.unwrap_or(3000), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_hostile_front_end(data in bytes(600)) {
        hostile::session(&data);
    }

    #[test]
    fn a_hostile_driver(data in bytes(600)) {
        hostile::split_ring(&data);
    }
}
