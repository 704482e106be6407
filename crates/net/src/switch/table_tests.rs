use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;

fn key(n: u64) -> Key {
    let [octets @ .., _, _] = (n << 16 | 2).to_le_bytes();
    Key::new((n >> 32) as u16, Mac::new(octets))
}

fn table(limits: &[usize]) -> Table {
    Table::new(limits.iter().copied())
}

fn counts(table: &Table) -> Vec<usize> {
    (0..table.accounts.len()).map(|port| table.count(port)).collect()
}

/// Learns `count` addresses that no other port has; returns how many the table took.
fn fill(table: &Table, port: PortIndex, count: u64, now: u64) -> usize {
    (0..count).filter(|&n| table.learn(key((port as u64) << 24 | n), port, now)).count()
}

#[test]
fn knows_where_an_address_is() {
    let table = table(&[4, 4]);
    assert_eq!(table.find(key(1), 0), None);
    assert!(table.learn(key(1), 0, 0));
    assert_eq!((table.find(key(1), 0), table.version()), (Some(0), 0));
    assert!(table.learn(key(1), 1, 0));
    assert_eq!((table.find(key(1), 0), table.version()), (Some(1), 1), "it has moved");
    assert_eq!(counts(&table), [0, 1]);
    table.forget_port(1);
    assert_eq!((table.find(key(1), 0), table.version()), (None, 2));
    assert_eq!(counts(&table), [0, 0]);
    assert!(table.learn(Key::new(0, Mac::new([0; 6])), 0, 0));
    assert_eq!(table.find(Key::new(0, Mac::new([0; 6])), 0), Some(0), "zeros are an address too");
}

/// Addresses are as old as their last frame; those too old make room in as many sweeps as a round takes.
#[test]
fn addresses_age() {
    let table = table(&[4096, 4096]);
    fill(&table, 0, 1000, 0);
    fill(&table, 1, 1000, 0);
    fill(&table, 1, 500, 100);
    let now = MAX_AGE + 1;
    assert_eq!((table.find(key(0), now - 1), table.find(key(0), now)), (Some(0), None));
    assert_eq!(table.find(key(1 << 24), now), Some(1));
    for _ in 0..SWEEPS {
        table.sweep(now);
    }
    assert_eq!(counts(&table), [0, 500]);
    assert_eq!(table.learned(now).len(), 500);
}

/// An address refreshed after it had grown old is alive again.
#[test]
fn a_late_frame_renews() {
    let table = table(&[4]);
    table.learn(key(1), 0, 0);
    assert!(table.learn(key(1), 0, 1000));
    assert_eq!(table.find(key(1), 1000), Some(0));
    assert!(table.learn(key(1), 0, 999), "another worker's clock may be late");
    assert_eq!(table.find(key(1), 1000 + MAX_AGE), Some(0));
}

/// A guest that invents addresses fills its own share and no more, and nobody loses an address to it.
#[test]
fn ports_are_bounded() {
    let table = table(&[4096, 10, 4096]);
    fill(&table, 2, 50, 0);
    assert_eq!([fill(&table, 0, 100_000, 0), fill(&table, 1, 100, 0)], [4096, 10]);
    assert_eq!(fill(&table, 2, 50, 0), 50);
    assert!(!table.learn(key(2 << 24), 0, 0), "nor does it move one where there is no room");
    assert_eq!(table.find(key(2 << 24), 0), Some(2));
    table.forget_port(0);
    assert_eq!(counts(&table), [0, 10, 50]);
    assert!(table.learn(key(1), 0, 0), "room is made again");
}

/// A limit that is said can be reached.
#[test]
fn a_port_gets_what_it_is_told() {
    let table = table(&[60_000, 4096, 4096]);
    assert_eq!([fill(&table, 1, 5000, 0), fill(&table, 0, 70_000, 0)], [4096, 60_000]);
}

/// However many ports there are, and whatever the others do, each can have a few; and the table stays small.
#[test]
fn every_port_has_a_share() {
    let table = table(&[4096; 1000]);
    let total: usize = (0..999).map(|port| fill(&table, port, 200, 0)).sum();
    assert!(total < 1000 * CAPACITY_PER_PORT, "{total}");
    assert_eq!(fill(&table, 999, 200, 0), CAPACITY_PER_PORT / 2);
    assert_eq!(table.find(key(999 << 24), 0), Some(999));
    assert!(size_of_val(&*table.buckets) < 5 << 20);
    for _ in 0..SWEEPS {
        table.sweep(MAX_AGE + 1);
    }
    assert!(counts(&table).iter().all(|&count| count == 0));
    assert_eq!(table.beyond.load(Ordering::Relaxed), 0);
}

/// Another table goes on with the addresses, as old as they are; what it has no port or no room for it leaves.
#[test]
fn another_table_learns_it_again() {
    let first = table(&[4, 4, 4]);
    first.learn(key(1), 0, 0);
    first.learn(key(2), 1, 100);
    first.learn(key(3), 2, 100);
    let learned = first.learned(100);
    assert!(learned.iter().any(|l| (l.key, l.port, l.seen) == (key(2).0 & !Key::TAKEN, 1, 100)));
    let other = table(&[4, 4]);
    other.learn_again(&learned, 100);
    assert_eq!(counts(&other), [1, 1]);
    assert_eq!([1, 2, 3].map(|n| other.find(key(n), MAX_AGE + 100)), [None, Some(1), None]);
    let many: Vec<_> = (0..9).map(|key| Learned { key, port: 0, seen: u64::MAX }).collect();
    let other = table(&[4]);
    other.learn_again(&many, 7);
    assert_eq!(counts(&other), [4]);
    assert!(other.learned(7).iter().all(|l| l.seen == 7));
}

/// Three workers learn, move, forget and sweep while three look up. Each address has two ports that it is ever
/// behind, so an answer that mixes two entries would show; and the counts come out right.
#[test]
fn nobody_sees_half_an_entry() {
    const KEYS: u64 = 400;
    const PORTS: u64 = 8;
    let home = |n: u64| (n % (PORTS / 2)) as PortIndex;
    let away = |n: u64| home(n) + PORTS as usize / 2;
    // So small that every line is written all the time.
    let table = &table(&[20; PORTS as usize]);
    let done = &AtomicBool::new(false);
    let found = thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|seed| {
                scope.spawn(move || {
                    let mut found = 0;
                    let mut n = seed;
                    while !done.load(Ordering::Relaxed) || found == 0 {
                        n = (n + 7) % KEYS;
                        if let Some(port) = table.find(key(n), 1) {
                            assert!(port == home(n) || port == away(n), "{n} on {port}");
                            found += 1;
                        }
                    }
                    found
                })
            })
            .collect();
        let writers: Vec<_> = (0..3)
            .map(|seed: u64| {
                scope.spawn(move || {
                    for step in 0..100_000 {
                        let n = (step * 31 + seed * 7) % KEYS;
                        table.learn(key(n), if step & 8 == 0 { home(n) } else { away(n) }, step & 1);
                        if step % 64 == 0 {
                            table.forget_port((step / 64 % PORTS) as PortIndex);
                        }
                        table.sweep(0);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        table.learn(key(0), 0, 1);
        done.store(true, Ordering::Relaxed);
        readers.into_iter().map(|r| r.join().unwrap()).sum::<u64>()
    });
    assert!(found > 0);
    let mut counted = [0; PORTS as usize];
    for learned in table.learned(1) {
        counted[learned.port] += 1;
    }
    assert_eq!(counts(table), counted);
    assert!(counted.iter().all(|&count| count <= 20));
}
