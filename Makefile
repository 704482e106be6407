# Every chore of the project. `make demo` and `make test` install what they need (apt, as root), or say what is
# missing. They work from any directory: make -C PATH demo.

SHELL := /bin/bash
CARGO ?= cargo

.PHONY: build demo test lint bench fuzz setup clean

build:
	$(CARGO) build --release --package ringway

# Two Linux guests, QEMU and User-Mode Linux, exchange traffic through `ringway switch`.
demo:
	$(CARGO) build --release --package ringway --package xtask
	guests/setup.sh
	cd '$(CURDIR)' && target/release/xtask demo

# All tests, with the real peers, and the fuzz targets for a minute.
test: setup
	$(CARGO) test --workspace --doc
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --workspace; \
	else \
		$(CARGO) test --workspace -- --test-threads 1; \
	fi
	fuzz/run.sh 60

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --quiet

# Interleaved with DPDK's own vhost back-end on the same two cores.
bench:
	$(CARGO) build --release --package ringway --package xtask
	guests/setup.sh
	cd '$(CURDIR)' && target/release/xtask bench --no-in-order

# Each fuzz target for ten minutes.
fuzz:
	fuzz/run.sh 600

# Peers' programs and guests' images.
setup:
	guests/setup.sh

clean:
	$(CARGO) clean
