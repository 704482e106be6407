//! What each failure is: looked up in the document and, where it is open, in the back-end's source.

use ringway_testkit::backend::Project::{self, Dpdk, Qemu};

/// The back-end, the case, and why it fails.
pub(super) const NOTES: &[(Project, &str, &str)] = &[
    (
        Dpdk,
        "base-is-kept-packed",
        "It keeps one position for both sides of a packed ring, and leaves the upper 16 bits of the base 0.",
    ),
    (Dpdk, "base-counts-packed", "The same."),
    (Dpdk, "stopped-at-first", "It polls every ring that is set up and enabled, and reads no kicks."),
    (
        Dpdk,
        "disabled-transmits",
        "It serves no ring of a device until the first two are both set up and enabled.",
    ),
    (
        Dpdk,
        "rings-are-independent",
        "Stopping one ring stops the device: the rings of a pair are served together.",
    ),
    (Dpdk, "status-zero-stops", "It keeps the status for its own use, and does not act on a reset."),
    (Dpdk, "iotlb-answered-unasked", "It answers if `need_reply` is set only. QEMU always sets it."),
    (
        Dpdk,
        "hostile-fd-kinds",
        "SIGPIPE ends testpmd when it calls on a socket whose other end is closed; it is for the program to ignore it.",
    ),
    (
        Dpdk,
        "hostile-full-call",
        "The polling thread waits in a write to the pipe, and SIGPIPE ends testpmd when the front-end goes.",
    ),
    (Dpdk, "hostile-memory-truncated", "SIGBUS. DPDK trusts its front-end with this."),
    (Dpdk, "hostile-memory-short", "SIGBUS, as above."),
    (
        Qemu,
        "failure-is-told",
        "A table that cannot be mapped ends the session, but the answer that goes before says 0.",
    ),
    (Qemu, "polling", "It takes a ring without a kick file descriptor as started, and never looks at it."),
    (
        Qemu,
        "without-call",
        "It signals the call file descriptor that it does not have, takes the error as fatal, and stops.",
    ),
    (
        Qemu,
        "get-config-part",
        "libvhost-user reads from the start whatever the offset. QEMU always asks from 0 on.",
    ),
    (Qemu, "get-config-outside", "The same: the offset is not looked at."),
    (
        Qemu,
        "set-config-refusal",
        "A write that the device refuses ends the session, but the answer that goes before says 0. The field is as it was.",
    ),
    (Qemu, "hostile-payloads", "A memory table without its files ends in SIGSEGV."),
    (Qemu, "hostile-no-fds", "SIGSEGV, as above."),
    (
        Qemu,
        "hostile-vring-index",
        "An assertion of libvhost-user's, `vu_get_queue`: some requests' indices go unchecked.",
    ),
    (Qemu, "hostile-memory-truncated", "SIGBUS. libvhost-user trusts its front-end with this."),
    (Qemu, "hostile-memory-short", "SIGBUS, as above."),
    (
        Qemu,
        "hostile-log",
        "An assertion of libvhost-user's, `vu_log_write`: the log's length is checked there only.",
    ),
];
