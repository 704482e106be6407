#!/bin/bash
# Gets what only the benchmarks need: Open vSwitch with DPDK, uml_switch and strace. They are unpacked into
# target/bench/peers/ and not installed, so that no switch starts with the machine; libraries that they lack are
# installed.
#
#   guests/bench.sh            fetch whatever is missing (does nothing when all is there)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=$here/../target/bench
peers=$out/peers
# They depend on a running switch's scripts and on Python; none of that is used.
packages="openvswitch-common openvswitch-switch openvswitch-switch-dpdk uml-utilities strace"
programs="usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk usr/sbin/ovsdb-server usr/bin/ovs-vsctl
    usr/bin/ovs-appctl usr/bin/ovsdb-tool usr/bin/uml_switch usr/bin/strace"
# The libraries of the programs, as packages.
libraries="libbpf1 libcap-ng0 libnuma1 libunbound8 libunwind8 libxdp1 librte-vhost23 librte-mempool23"

say() { echo "guests/bench.sh: $*" >&2; }
die() { say "$*"; exit 1; }

main() {
    [ $# = 0 ] || die "usage: guests/bench.sh"
    [ -n "$(what_is_missing)" ] || return 0
    command -v apt-get >/dev/null || die "needs apt, to get: $packages"
    mkdir -p "$out"
    exec 9>>"$out/.lock"
    flock 9
    [ -e "$peers" ] || unpack
    [ -n "$(missing_libraries)" ] || return 0
    [ "$(id -u)" = 0 ] || die "not installed, run this as root: $(missing_libraries)"
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $libraries >&2
    [ -z "$(missing_libraries)" ] || die "apt succeeded, but these are missing: $(missing_libraries)"
}

what_is_missing() {
    [ -e "$peers" ] || echo programs
    missing_libraries
}

# The names of libraries that a program is linked with and that are not here.
missing_libraries() {
    local program
    for program in $programs; do
        [ ! -e "$peers/$program" ] || ldd "$peers/$program" | sed -n 's/^\s*\(.*\) => not found/\1/p'
    done | sort -u
}

unpack() {
    work=$(mktemp -d "$out/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    local package program
    say "downloading $packages"
    # The sandbox user of apt may not enter the repository's directory.
    # shellcheck disable=SC2086  # a list of words
    (cd "$work" && apt-get download -q -o APT::Sandbox::User=root $packages >&2) ||
        die "apt-get download failed (are apt's lists up to date?)"
    for package in "$work"/*.deb; do
        dpkg -x "$package" "$work/tree"
    done
    for program in $programs; do
        [ -x "$work/tree/$program" ] || die "the packages have no $program"
    done
    mv "$work/tree" "$peers"
}

main "$@"
