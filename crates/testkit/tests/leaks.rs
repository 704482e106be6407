//! Sessions leave nothing behind, whatever their front-ends do. Alone in its process, for it counts what all of it has.

use std::fs;
use std::sync::{Mutex, PoisonError};

use ringway_testkit::hostile;

/// One test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes by xorshift, as a fuzzer has them: small numbers more often than others.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self) -> Vec<u8> {
        let byte = |n: u64| if n & 0x300 == 0 { n as u8 % 16 } else { n as u8 };
        (0..self.next() % 600).map(|_| byte(self.next() >> 20)).collect()
    }
}

/// How many file descriptors the process has, and mappings of files: those of the heap come and go.
fn open() -> (usize, usize) {
    let maps = fs::read_to_string("/proc/self/maps").expect("the mappings");
    let of_files = maps.lines().filter(|line| line.contains("memfd:") || line.contains("(deleted)")).count();
    (fs::read_dir("/proc/self/fd").expect("the file descriptors").count(), of_files)
}

/// About 60 messages an input.
fn run(inputs: u32) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // The first may leave what a process opens once.
    hostile::session(&random.bytes());
    let before = open();
    for n in 0..inputs {
        let seed = random.0;
        hostile::session(&random.bytes());
        if n % 256 == 0 {
            assert_eq!(open(), before, "after {n} inputs, the last of seed {seed:#x}");
        }
    }
    assert_eq!(open(), before);
}

#[test]
fn sessions_leave_nothing() {
    run(2000);
}

/// A million messages and more.
#[test]
#[ignore = "for `make soak`"]
fn soak_a_million_messages_leave_nothing() {
    run(30_000);
}
