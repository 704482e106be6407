//! `ringway_testkit::hostile::blk` on whatever the fuzzer makes up.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringway_testkit::hostile::blk(data));
