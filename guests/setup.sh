#!/bin/bash
# Gets this machine ready to boot test guests: installs the programs that the tests run as peers, fetches
# a Linux kernel, and packs the two initial RAM disks that the guests run from.
#
#   guests/setup.sh            install and build whatever is missing (does nothing when all is there)
#   guests/setup.sh --check    only say whether anything is missing
#
# Installing packages needs root, apt and Debian bookworm; packing the images needs neither. All that is
# built goes to target/guests/; outside the repository only packages and one apt source are added.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=$here/../target/guests
kernel=$out/kernel
backports_source=/etc/apt/sources.list.d/ringway-backports.sources
uml_modules=/usr/lib/uml/modules
# What the images load; what these depend on is found and loaded before them. User-Mode Linux has no virtio_rng.
modules="virtio_net virtio_blk virtio_balloon"
modules_qemu="$modules virtio_rng"
modules_uml="$modules virtio_console"
# What a guest does with a disk, beside fio and what busybox has.
disk_programs="mkfs.ext4 e2fsck resize2fs"

say() { echo "guests/setup.sh: $*" >&2; }
die() { say "$*"; exit 1; }

main() {
    case ${1-} in
        '') check_only= ;;
        --check) check_only=yes ;;
        *) die "usage: guests/setup.sh [--check]" ;;
    esac
    # Some of the programs live where only root's PATH looks.
    PATH=$PATH:/usr/sbin:/sbin

    missing=$(what_is_missing)
    # Nothing to do is the common case: no lock, no root, no network.
    [ -n "$missing" ] || return 0
    say "missing: ${missing//$'\n'/, }"
    [ -z "$check_only" ] || die "run guests/setup.sh as root to get all of it"

    mkdir -p "$out"
    # Tests start this in parallel: the first one works, the others wait and then find all done.
    exec 9>>"$out/.lock"
    flock 9
    work=$(mktemp -d "$out/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    install_packages
    [ -e "$kernel/vmlinuz" ] || fetch_kernel
    [ -x "$out/fio" ] || build_fio
    images_are_current || build_images
}

# One line for each thing that is still to be done.
what_is_missing() {
    missing_packages | sed 's/^/package /'
    [ -e "$kernel/vmlinuz" ] || echo "the guests' kernel"
    [ -x "$out/fio" ] || echo "the guests' fio"
    images_are_current || echo "images of the guests (or they are out of date)"
}

# --- packages -------------------------------------------------------------------------------------------

# The Debian packages whose programs are not here. A program counts however it was installed.
missing_packages() {
    has qemu-system-x86_64 && [ "$(qemu_major qemu-system-x86_64)" -ge 10 ] || echo qemu-system-x86
    has qemu-storage-daemon && [ "$(qemu_major qemu-storage-daemon)" -ge 10 ] || echo qemu-utils
    has linux.uml && [ -d "$uml_modules" ] || echo user-mode-linux
    # The `busybox` package is linked dynamically and has fewer commands; a guest has no libraries.
    has busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1 || echo busybox-static
    has dpdk-testpmd || echo dpdk-dev
    has iperf3 || echo iperf3
    has nbdkit || echo nbdkit
    has ip || echo iproute2
    has tshark || echo tshark
    has fio || echo fio
    has mkfs.ext4 && has e2fsck && has resize2fs || echo e2fsprogs
    # To take a kernel out of its image.
    has xz || echo xz-utils
    has zstd || echo zstd
    # For the guests' fio.
    has cc || echo gcc libc6-dev
    has make || echo make
}

has() { command -v "$1" >/dev/null; }

# The first number of the version of one of QEMU's programs.
qemu_major() {
    local version
    version=$("$1" --version | sed -n '1s/.*version \([0-9]*\)\..*/\1/p')
    echo "${version:-0}"
}

install_packages() {
    local packages package
    packages=$(missing_packages | tr '\n' ' ')
    [ -n "$packages" ] || return 0
    need_bookworm "packages $packages"
    [ "$(id -u)" = 0 ] || die "not installed: $packages; run this as root, or install them with apt" \
        "(qemu-system-x86 and qemu-utils from bookworm-backports: they must be version 10 or newer)"
    say "installing $packages"
    export DEBIAN_FRONTEND=noninteractive
    update_apt
    # bookworm's own QEMU is 7.2; everything else comes from bookworm itself.
    for package in qemu-system-x86 qemu-utils; do
        case " $packages" in *" $package "*)
            apt-get install -qy --no-install-recommends -t bookworm-backports "$package" >&2
            packages=${packages/"$package "/} ;;
        esac
    done
    # shellcheck disable=SC2086  # a list of words
    [ -z "$packages" ] || apt-get install -qy --no-install-recommends $packages >&2
    packages=$(missing_packages | tr '\n' ' ')
    [ -z "$packages" ] || die "apt succeeded, but these still lack their programs: $packages"
}

need_bookworm() {
    has apt-get && grep -qs '^VERSION_CODENAME=bookworm$' /etc/os-release ||
        die "missing: $*; this script can get them only with apt on Debian bookworm. Elsewhere, install" \
            "QEMU >= 10, user-mode-linux with its modules in $uml_modules, busybox-static," \
            "dpdk-testpmd, iperf3, iproute2, tshark, fio, nbdkit, e2fsprogs, a C compiler and make, and give a" \
            "kernel as $kernel/vmlinuz with its modules in $kernel/modules/ and fio, linked statically, as" \
            "$out/fio"
}

# Brings apt's lists up to date, backports included.
update_apt() {
    if ! has_backports; then
        say "adding $backports_source"
        cat >"$backports_source" <<-END
			Types: deb
			URIs: http://deb.debian.org/debian
			Suites: bookworm-backports
			Components: main
			Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
		END
    fi
    apt-get update -q >&2
}

has_backports() {
    apt-get indextargets --format '$(RELEASE)' 'Created-By: Packages' | grep -qx bookworm-backports
}

# --- kernel ---------------------------------------------------------------------------------------------

# Unpacks the newest 6.12 cloud kernel of backports into $kernel; it is not installed.
fetch_kernel() {
    need_bookworm "the guests' kernel"
    if ! has_backports || [ -z "$(kernel_package)" ]; then
        [ "$(id -u)" = 0 ] || die "no guests' kernel: apt does not know linux-image-cloud-amd64 of" \
            "bookworm-backports; run this as root"
        update_apt
    fi
    local package
    package=$(kernel_package)
    [ -n "$package" ] || die "bookworm-backports has no linux-image-6.12.*-cloud-amd64"
    say "downloading $package"
    # The sandbox user of apt may not enter the repository's directory.
    (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "$package" >&2 &&
        dpkg -x "$package"_*.deb tree)
    mkdir -p "$work/new"
    mv "$work"/tree/lib/modules/* "$work/new/modules"
    mv "$work"/tree/boot/vmlinuz-* "$work/new/vmlinuz"
    rm -rf "$kernel"
    mv "$work/new" "$kernel"
}

# The package that linux-image-cloud-amd64 of backports stands for; nothing if apt's lists lack it.
kernel_package() {
    apt-cache show linux-image-cloud-amd64 2>/dev/null | sed -n 's/^Depends: \(linux-image-6\.12\.[^ ]*-cloud-amd64\).*/\1/p' |
        sort -V | tail -n 1
}

# --- fio ------------------------------------------------------------------------------------------------

# Debian's fio is linked with the clients of storage clusters, 80 MB of libraries. This one is of the same source and
# linked with nothing.
build_fio() {
    need_bookworm "a static fio"
    local apt=$work/apt
    mkdir -p "$apt"/{lists,cache,parts}
    cat >"$apt/parts/source.sources" <<-END
		Types: deb-src
		URIs: http://deb.debian.org/debian
		Suites: bookworm
		Components: main
		Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
	END
    # Lists of its own: it is no business of the machine's where its packages' sources are.
    local options=(-q -o APT::Sandbox::User=root -o Dir::Etc::SourceList=/dev/null
        -o "Dir::Etc::SourceParts=$apt/parts" -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache")
    say "building fio"
    apt-get "${options[@]}" update >&2
    (cd "$apt" && apt-get "${options[@]}" source --download-only fio >&2 && tar xf fio_*.orig.tar.gz)
    # What else its configure finds on this machine would be linked in.
    local without=() library
    for library in native numa rdma rados rbd gfapi http pmem libzbc xnvme tcmalloc lex libnfs; do
        without+=("--disable-$library")
    done
    (cd "$apt"/fio-*/ && ./configure --build-static "${without[@]}" && make -j "$(nproc)" fio && strip fio) \
        >"$apt/log" 2>&1 || die "cannot build fio: $(tail -n 20 "$apt/log")"
    mv "$apt"/fio-*/fio "$out/fio"
}

# --- images ---------------------------------------------------------------------------------------------

# Whether the images were made from exactly what is here now.
images_are_current() {
    [ -e "$out/qemu-initrd.gz" ] && [ -e "$out/qemu-disk-initrd.gz" ] && [ -e "$out/uml-initrd.gz" ] &&
        [ -e "$out/vmlinuz" ] &&
        [ "$(made_from 2>/dev/null)" = "$(cat "$out/made-from" 2>/dev/null)" ]
}

made_from() {
    local program
    sha256sum "$here/init" "$here/setup.sh" "$kernel/vmlinuz" "$out/fio" | cut -d' ' -f1
    for program in busybox iperf3 linux.uml $disk_programs; do
        sha256sum "$(command -v "$program")" | cut -d' ' -f1
    done
}

build_images() {
    say "building the guests' images"
    rm -f "$out/made-from"
    # A guest under QEMU takes a while to unpack libraries, so it has programs only where it has a use for them.
    build_image qemu "$kernel/modules" "$modules_qemu"
    # shellcheck disable=SC2086  # a list of words
    build_image qemu-disk "$kernel/modules" "$modules_qemu" "$out/fio" $disk_programs
    # shellcheck disable=SC2086
    build_image uml "$uml_modules/$(linux.uml --version)" "$modules_uml" "$out/fio" $disk_programs iperf3
    cp "$kernel/vmlinuz" "$work/vmlinuz"
    mv "$work/vmlinuz" "$out/vmlinuz"
    # Last, so that an interrupted run is noticed.
    made_from >"$out/made-from"
}

# build_image GUEST DIRECTORY MODULES [PROGRAM...]: packs busybox, the init script, the modules out of a directory and
# the programs of this machine into GUEST-initrd.gz.
build_image() {
    local root=$work/$1 module
    mkdir -p "$root"/{bin,dev,lib,proc,sys,tmp}
    cp "$(command -v busybox)" "$root/bin/busybox"
    install -m 755 "$here/init" "$root/init"
    : >"$root/modules.list"
    for module in $3; do
        add_module "$root" "$2" "$module"
    done
    for program in "${@:4}"; do
        add_program "$root" "$program"
    done
    (cd "$root" && find . | busybox cpio -o -H newc -R 0:0 2>/dev/null | gzip -9n) >"$work/initrd.gz"
    mv "$work/initrd.gz" "$out/$1-initrd.gz"
}

# add_program ROOT PROGRAM: adds a program with the libraries it is linked with, at their paths here.
add_program() {
    local file library
    file=$(command -v "$2")
    cp "$file" "$1/bin/"
    # One that is linked with nothing has none.
    for library in $(ldd "$file" 2>/dev/null | grep -o '/[^ ]*'); do
        install -D "$library" "$1$library"
    done
}

# add_module ROOT MODULES NAME: adds a module after those it depends on, each once.
add_module() {
    local name=$3 file dependency
    [ ! -e "$1/lib/$name.ko" ] || return 0
    # A module's name has underscores where its file may have dashes.
    if grep -q "/${name//_/[-_]}\.ko$" "$2/modules.builtin"; then return 0; fi
    file=$(find "$2" -name "${name//_/[-_]}.ko" -o -name "${name//_/[-_]}.ko.xz" | head -n 1)
    [ -n "$file" ] || die "no module $name below $2"
    case $file in
        *.xz) busybox xzcat "$file" >"$1/lib/$name.ko" ;;
        *) cp "$file" "$1/lib/$name.ko" ;;
    esac
    for dependency in $(tr '\0' '\n' <"$1/lib/$name.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
        add_module "$1" "$2" "$dependency"
    done
    echo "/lib/$name.ko" >>"$1/modules.list"
}

main "$@"
