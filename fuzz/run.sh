#!/usr/bin/env bash
# Fuzzes each target for a time: fuzz/run.sh SECONDS
#
# With a nightly compiler and cargo-fuzz (installed if it can be), by libFuzzer with the address sanitizer; else by
# seeded tests, and says so. Fails with the path of the input that did it if something is found. New inputs go to
# fuzz/target/corpus; fuzz/corpus is read only.
set -euo pipefail

seconds=${1:?usage: fuzz/run.sh SECONDS}
targets=(session split_ring)
cd "$(dirname "${BASH_SOURCE[0]}")"

# A CARGO that `make` passes on is of no use here: the toolchain is chosen by name.
unset CARGO RUSTUP_TOOLCHAIN

missing() {
    if ! cargo +nightly --version >/dev/null 2>&1; then
        echo "there is no nightly compiler (rustup toolchain install nightly)"
    elif ! command -v g++ >/dev/null; then
        echo "there is no g++, which libFuzzer is built with"
    elif ! cargo fuzz --version >/dev/null 2>&1 && ! cargo install cargo-fuzz --locked; then
        echo "cargo-fuzz cannot be installed"
    fi
}

# The same functions with random inputs, each with another seed, until the time is over.
fuzz_without_fuzzer() {
    local test end round=0
    cargo test --manifest-path ../Cargo.toml --package ringway-testkit --test hostile --no-run
    for test in a_hostile_front_end a_hostile_driver; do
        end=$((SECONDS + seconds))
        while ((SECONDS < end)); do
            PROPTEST_CASES=20000 cargo test --quiet --manifest-path ../Cargo.toml --package ringway-testkit \
                --test hostile -- --exact "$test" >target/log 2>&1 || { cat target/log; return 1; }
            round=$((round + 1))
        done
    done
    echo "fuzz: nothing found by random inputs in $round rounds of 20000"
}

mkdir -p target
why=$(missing)
if [[ -n $why ]]; then
    echo "fuzz: $why; random inputs without a fuzzer instead, which reach less" >&2
    fuzz_without_fuzzer
    exit
fi

sanitizer=address
if ! cargo +nightly fuzz build --sanitizer address "${targets[0]}"; then
    echo "fuzz: the address sanitizer does not build here; without it" >&2
    sanitizer=none
fi
for target in "${targets[@]}"; do
    cargo +nightly fuzz build --sanitizer "$sanitizer" "$target"
    # Outside of what is checked in, so that a run that finds nothing leaves nothing.
    scratch=target/corpus/$target artifacts=target/artifacts/$target
    mkdir -p "$scratch" "$artifacts"
    if ! cargo +nightly fuzz run --sanitizer "$sanitizer" "$target" "$scratch" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=2048 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="$PWD/$artifacts/"; then
        echo "fuzz: $target failed; the input is the newest of:" >&2
        ls -1t "$PWD/$artifacts"/* >&2 || true
        exit 1
    fi
done
echo "fuzz: nothing found in $seconds seconds of each of: ${targets[*]}"
