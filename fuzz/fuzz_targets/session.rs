//! `ringway_testkit::hostile::session` on whatever the fuzzer makes up.
#![no_main]

use std::sync::Arc;

libfuzzer_sys::fuzz_target!(
    init: {
        // As the Rust runtime has it, which is not there: writing to a pipe that nobody reads fails, and kills nobody.
        signal_hook::flag::register(signal_hook::consts::SIGPIPE, Arc::default()).expect("a handler");
    },
    |data: &[u8]| ringway_testkit::hostile::session(data)
);
