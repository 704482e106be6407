# Every chore of the project. `make demo` and `make test` install what they need (apt, as root), or say what is
# missing. They work from any directory: make -C PATH demo.

SHELL := /bin/bash
CARGO ?= cargo

# How long `make soak` takes, in its ordinary length.
SOAK ?= 1
# Options of `make bench` and `make bench-block`: see `target/release/xtask bench --help`.
BENCH ?=

.PHONY: build demo test soak model lint bench bench-block bench-queue fuzz setup clean

build:
	$(CARGO) build --release --package ringway

# Two Linux guests, QEMU and User-Mode Linux, exchange traffic through `ringway switch`; one has a disk of `ringway blk`.
demo:
	$(CARGO) build --release --package ringway --package xtask
	guests/setup.sh
	cd '$(CURDIR)' && target/release/xtask demo

# All tests, with the real peers, the models, and each fuzz target for half a minute.
test: setup model
	$(CARGO) test --workspace --doc
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --workspace; \
	else \
		$(CARGO) test --workspace -- --test-threads 1; \
	fi
	FUZZ_JOBS=$$(nproc) fuzz/run.sh 30

# Crashes, migrations, messages and traffic at length: about a quarter of an hour times SOAK.
soak: setup
	RINGWAY_SOAK='$(SOAK)' $(CARGO) test --release --package ringway --package ringway-testkit --tests -- \
		--ignored --test-threads 1 --nocapture soak_

# The rings under a model of the processor's memory: every order of two threads, every stale value.
model:
	RUSTFLAGS="$$RUSTFLAGS --cfg loom" $(CARGO) test --package ringway-queue --test loom --release \
		--target-dir target/loom

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	cd '$(CURDIR)/guests/bare' && $(CARGO) fmt --check && \
		$(CARGO) clippy --release --locked --target-dir ../../target/bare -- -D warnings
	cd '$(CURDIR)/guests/peer' && $(CARGO) fmt --check && \
		$(CARGO) clippy --release --locked --target-dir ../../target/peer -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --quiet
	$(CARGO) xtask conformance --check

# Against DPDK, Open vSwitch, QEMU and the kernel, in turns; makes docs/BENCHMARKS.md, in about 40 minutes.
# `make bench BENCH=--quick` takes a few.
bench:
	$(CARGO) build --release --package ringway --package xtask --package ringway-bench
	guests/setup.sh
	guests/bench.sh
	cd '$(CURDIR)' && target/release/xtask bench --page $(BENCH)

# Disks, against qemu-storage-daemon and fio, in turns; makes its part of docs/BENCHMARKS.md, in about a quarter of an
# hour. `make bench-block BENCH=--quick` takes two minutes.
bench-block:
	$(CARGO) build --release --package ringway --package xtask --package ringway-bench
	guests/setup.sh
	guests/bench.sh
	cd '$(CURDIR)' && target/release/xtask bench-block --page $(BENCH)

# What a chain costs in crates/queue, next to the crates virtio-queue and virtio-drivers, in one run of seconds.
bench-queue:
	$(CARGO) bench --package ringway-bench --bench queue

# Each fuzz target for ten minutes at full speed, as many at a time as there are processors, and for one under the
# address sanitizer.
fuzz:
	FUZZ_SANITIZER=none FUZZ_JOBS=$$(nproc) fuzz/run.sh 600
	FUZZ_JOBS=$$(nproc) fuzz/run.sh 60

# Peers' programs and guests' images.
setup:
	guests/setup.sh

clean:
	$(CARGO) clean
