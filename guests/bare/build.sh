#!/bin/bash
# Builds the program that boots without an operating system: target/bare/x86_64-unknown-linux-gnu/release/bare.
set -eu
cd "$(dirname "$0")"
# Flags that are meant for programs of an operating system; its own are in .cargo/config.toml.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS CARGO_BUILD_TARGET
exec "${CARGO:-cargo}" build --release --locked --quiet --target-dir ../../target/bare
