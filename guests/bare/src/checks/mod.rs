//! What is checked. The kernel's command line says of which devices: `checks=core,blk`.
//!
//! A device's checks are made over again with every kind of ring that a driver can choose ([`Variant`]). Each prints a line,
//! `ok` or `not ok`, with a name that begins with the device and the variant.
//!
//! What only the host can do is asked for on the serial line ([`ask`]): whoever reads it is to do it, and the
//! check waits for the effect.

mod balloon;
mod blk;
mod console;
mod core_rules;
mod net;

use alloc::format;
use alloc::string::String;
use core::time::Duration;

use ringway_spec::feature;

use crate::bus::Slot;
use crate::failure::{Failure, Result, fail};
use crate::serial::say;

/// How long anything may take that must happen, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(20);
/// How long to look for what must not happen.
const QUIET: Duration = Duration::from_millis(50);

/// A kind of ring: what a driver does without, of what the device offers.
#[derive(Clone, Copy)]
pub(crate) struct Variant {
    name: &'static str,
    without: u64,
}

const PLAIN: u64 = feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX;

const VARIANTS: [Variant; 4] = [
    Variant { name: "packed", without: 0 },
    Variant { name: "packed-plain", without: PLAIN },
    Variant { name: "split", without: feature::RING_PACKED },
    Variant { name: "split-plain", without: feature::RING_PACKED | PLAIN },
];

/// What went well, and what did not.
#[derive(Default)]
pub(crate) struct Tally {
    prefix: String,
    ok: u32,
    failed: u32,
}

impl Tally {
    /// Makes a check, and tells how it went.
    pub(crate) fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        let prefix = &self.prefix;
        match check() {
            Ok(()) => {
                self.ok += 1;
                say!("ok {prefix}: {name}");
            }
            Err(failure) => {
                self.failed += 1;
                say!("not ok {prefix}: {name}: {failure}");
            }
        }
    }
}

/// Numbers that look random, the same each time (xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Asks whoever reads the serial line for something.
pub(crate) fn ask(request: &str) {
    say!("ask: {request}");
}

/// Makes the checks that the command line asks for, of the machine's devices. Returns whether all went well.
pub(crate) fn run<S: Slot>(command_line: &str, slots: &[S]) -> bool {
    let mut tally = Tally::default();
    let wanted =
        command_line.split_whitespace().find_map(|word| word.strip_prefix("checks=")).unwrap_or_default();
    for name in wanted.split(',') {
        for variant in VARIANTS {
            tally.prefix = format!("{name} {}", variant.name);
            match name {
                "balloon" => balloon::run(&mut tally, slots, variant),
                "blk" => blk::run(&mut tally, slots, variant),
                "core" => core_rules::run(&mut tally, slots, variant),
                "net" => net::run(&mut tally, slots, variant),
                "console" => console::run(&mut tally, slots, variant),
                "wire" => net::run_wire(&mut tally, slots, variant),
                _ => tally.check("known", || fail!("there are no such checks")),
            }
        }
    }
    say!("done: {} ok, {} failed", tally.ok, tally.failed);
    tally.failed == 0
}

/// The devices of a type.
fn devices<S: Slot>(slots: &[S], id: u32) -> impl Iterator<Item = &S> {
    slots.iter().filter(move |slot| slot.device_id() == id)
}

/// The first of them.
fn device<S: Slot>(slots: &[S], id: u32) -> Result<&S> {
    let slot = devices(slots, id).next();
    slot.ok_or_else(|| Failure(format!("the machine has no device of type {id}")))
}
