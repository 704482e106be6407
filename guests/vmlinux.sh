#!/bin/bash
# Takes the kernel out of a bzImage: the ELF file that a loader without a decompressor can start (by PVH, say).
#
#   guests/vmlinux.sh target/guests/vmlinuz target/guests/vmlinux
set -eu

image=$1 kernel=$2

# field OFFSET BYTES: a number of the header (Documentation/arch/x86/boot.rst in Linux).
field() { od --endian=little -An -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' '; }

setup_sects=$(field 0x1f1 1)
start=$(((setup_sects + 1) * 512 + $(field 0x248 4)))
length=$(field 0x24c 4)

payload() { tail -c "+$((start + 1))" "$image" | head -c "$1"; }

# All but gzip are followed by the size of what comes out.
case $(payload 4 | od -An -t x1 | tr -d ' ') in
    1f8b*) payload "$length" | gzip -dc >"$kernel" ;;
    fd377a58) payload $((length - 4)) | xz -dc >"$kernel" ;;
    28b52ffd) payload $((length - 4)) | zstd -dqc >"$kernel" ;;
    02214c18) payload $((length - 4)) | lz4 -dqc >"$kernel" ;;
    *) echo "guests/vmlinux.sh: $image is compressed in a way that is not known here" >&2 && exit 1 ;;
esac
