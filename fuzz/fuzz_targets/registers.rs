//! `ringway_testkit::hostile::registers` on whatever the fuzzer makes up.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringway_testkit::hostile::registers(data));
