#!/usr/bin/env bash
# Fuzzes each target for a time: fuzz/run.sh SECONDS [TARGET...]
#
#   FUZZ_SANITIZER  address (the default), or none, which is several times as fast
#   FUZZ_JOBS       how many targets are fuzzed at a time, 1 by default
#
# With a nightly compiler and cargo-fuzz (installed if it can be), by libFuzzer; else by seeded tests, and says so.
# Prints how often each target was executed, and the sum. Fails with the path of the input that did it if something
# is found. New inputs and logs go to fuzz/target; fuzz/corpus is read only.
set -euo pipefail

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
targets=("$@")
if ((${#targets[@]} == 0)); then
    targets=(session split_device packed_device split_driver packed_driver pair segmenter blk registers)
fi
sanitizer=${FUZZ_SANITIZER:-address}
jobs=${FUZZ_JOBS:-1}
cd "$(dirname "${BASH_SOURCE[0]}")"
mkdir -p target/log

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
    local target end round=0
    cargo test --manifest-path ../Cargo.toml --package ringway-testkit --test hostile --no-run
    for target in "${targets[@]}"; do
        end=$((SECONDS + seconds))
        while ((SECONDS < end)); do
            PROPTEST_CASES=20000 cargo test --quiet --manifest-path ../Cargo.toml --package ringway-testkit \
                --test hostile -- --exact "$target" >target/log/tests 2>&1 || { cat target/log/tests; return 1; }
            round=$((round + 1))
        done
    done
    echo "fuzz: nothing found by random inputs in $round rounds of 20000"
}

# Comparisons are not traced: the targets read steps and small numbers, no magic ones, and are twice as fast.
build() {
    cargo +nightly fuzz build --sanitizer "$sanitizer" --no-trace-compares "$1"
}

fuzz() {
    local target=$1 max_len=256
    if [[ $target == session ]]; then
        max_len=2048
    fi
    # Outside of what is checked in, so that a run that finds nothing leaves nothing.
    local scratch=target/corpus/$target artifacts=target/artifacts/$target
    mkdir -p "$scratch" "$artifacts"
    if ! cargo +nightly fuzz run --sanitizer "$sanitizer" --no-trace-compares "$target" \
        "$scratch" "corpus/$target" -- -max_total_time="$seconds" -max_len="$max_len" -rss_limit_mb=2048 \
        -timeout=10 -print_final_stats=1 -artifact_prefix="$PWD/$artifacts/" >"target/log/$target" 2>&1; then
        tail -n 40 "target/log/$target" >&2
        echo "fuzz: $target failed; the input is the newest of:" >&2
        ls -1t "$PWD/$artifacts"/* >&2 || true
        return 1
    fi
    echo "fuzz: $target: $(executions "$target") executions"
}

executions() {
    sed -n 's/^stat::number_of_executed_units: *//p' "target/log/$1"
}

why=$(missing)
if [[ -n $why ]]; then
    echo "fuzz: $why; random inputs without a fuzzer instead, which reach less" >&2
    fuzz_without_fuzzer
    exit
fi

if [[ $sanitizer == address ]] && ! build "${targets[0]}"; then
    echo "fuzz: the address sanitizer does not build here; without it" >&2
    sanitizer=none
fi
for target in "${targets[@]}"; do
    build "$target"
done
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
running=0
for target in "${targets[@]}"; do
    if ((running == jobs)); then
        wait -n
        running=$((running - 1))
    fi
    fuzz "$target" &
    running=$((running + 1))
done
while ((running > 0)); do
    wait -n
    running=$((running - 1))
done
sum=0
for target in "${targets[@]}"; do
    sum=$((sum + $(executions "$target")))
done
echo "fuzz: nothing found in $seconds seconds of each of: ${targets[*]}; $sum executions, sanitizer: $sanitizer"
