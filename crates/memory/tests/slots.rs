//! The places of the SIGBUS guard. One test: it takes all that the process has.

mod common;

use common::{PAGE, file, map, read, table};
use ringway_memory::MapError;

/// More mappings one after the other than there are places, then more at once, then some again.
#[test]
fn places_are_used_again() {
    let file = file(PAGE);
    for n in 0..20_000 {
        map(&file, PAGE, 0, 0).unwrap_or_else(|e| panic!("cycle {n}: {e}"));
    }
    let mut all = vec![];
    let error = loop {
        match map(&file, PAGE, all.len() as u64 * PAGE, 0) {
            Ok(region) => all.push(region),
            Err(error) => break error,
        }
        assert!(all.len() < 20_000, "there is a bound");
    };
    assert!(matches!(error, MapError::TooMany), "{error}");
    assert!(all.len() >= 16 * 509, "for 16 guests with all the regions they may have: {}", all.len());
    all.truncate(all.len() - 2);
    let [one, other] = [0, PAGE].map(|gpa| map(&file, PAGE, gpa, 0).expect("a place that is free again"));
    assert!(map(&file, PAGE, 0, 0).is_err());

    // All of the guards see it.
    let all = table(all);
    assert!(all.is_intact());
    file.set_len(0).expect("shortened");
    assert_eq!(read(&table(vec![other]), PAGE, 4), [0; 4]);
    assert!(all.is_intact() && table(vec![one]).is_intact(), "each mapping by itself");
    let last = (all.regions().len() as u64 - 1) * PAGE;
    assert_eq!(read(&all, last, 4), [0; 4]);
    assert!(!all.is_intact());
}
