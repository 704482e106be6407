//! A guest whose network card is behind an IOMMU: the addresses in its rings mean what the guest's kernel has put into
//! the IOMMU for a while, a page at a time, and nothing before or after.
//!
//! The IOMMU is QEMU's of Intel's kind. The guest's kernel is strict: it takes every mapping back as soon as a buffer
//! was used, and waits until all who might remember it have forgotten it. So an address that is used too late is an
//! error that QEMU and the guest's kernel tell.

#[path = "common/lan.rs"]
mod lan;

use lan::{Lan, SOON, configure, expect_no_complaint, expect_no_warning};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::guest::{BOOT_LIMIT, Guest, Nic, QemuOptions};
use ringway_testkit::server::Server;
use ringway_testkit::soak_factor;

/// Behind an IOMMU, whose card has a cache of translations: the server is that cache.
fn boot(server: &Server, properties: &str) -> Guest {
    let nic = Nic::new(server.socket("net"))
        .reconnect()
        .property("iommu_platform=on,ats=on,disable-legacy=on")
        .property(properties);
    let mut options = QemuOptions::new([nic]);
    options.memory = 192;
    options.kernel_args = "intel_iommu=on iommu=strict iommu.strict=1".into();
    options.args = ["-device", "intel-iommu,device-iotlb=on,intremap=off"].map(str::to_owned).into();
    let mut guest = lan::boot(&options);
    assert_ne!(guest.features().unwrap() & feature::ACCESS_PLATFORM, 0);
    // "DMA" is the strict one; the other is "DMA-FQ".
    let group = "cat /sys/class/net/eth0/device/../iommu_group/type";
    assert_eq!(guest.run(group, SOON).unwrap().trim(), "DMA");
    guest
}

/// Neither the guest's IOMMU nor QEMU has seen an address that means nothing.
fn expect_no_fault(guest: &mut Guest) {
    let (status, said) = guest.run_status("dmesg | grep 'DMAR.*fault'", SOON).unwrap();
    assert_eq!(status, 1, "{said}");
    let said = guest.process().output();
    assert!(!said.contains("vtd_"), "{said}");
}

/// Moves `mebibytes` each way over one session; then the server is killed, which forgets all it knew, and the guest
/// boots again, which takes all mappings away. The traffic goes on each time.
fn moves(properties: &str, mebibytes: u64) {
    let lan = Lan::new();
    let mut server = lan.server("tap", &["--iommu"]);
    let mut guest = boot(&server, properties);
    let echo = lan.start_echo(&mut guest);
    let time = echo.wait_for(mebibytes << 20, SOON * mebibytes as u32).unwrap();
    println!("{mebibytes} MiB each way in {time:?}");
    echo.finish(SOON).unwrap();
    expect_no_warning(&server);
    expect_no_fault(&mut guest);
    expect_no_complaint(&mut guest);
    // Where packed rings stand only the server knew.
    if !properties.contains("packed=on") {
        server.restart().unwrap();
        lan.reaches_guest();
    }
    guest.reboot(BOOT_LIMIT).unwrap();
    configure(&mut guest);
    lan.start_echo(&mut guest).finish(SOON).unwrap();
    expect_no_fault(&mut guest);
    expect_no_complaint(&mut guest);
    expect_no_warning(&server);
}

/// Split rings.
#[test]
fn split_rings_behind_an_iommu() {
    moves("packed=off", 64);
}

/// Packed rings.
#[test]
fn packed_rings_behind_an_iommu() {
    moves("packed=on", 64);
}

/// A gibibyte each way.
#[test]
#[ignore = "long: make soak"]
fn soak_a_gibibyte_behind_an_iommu() {
    for format in ["packed=off", "packed=on"] {
        moves(format, 1024 * u64::from(soak_factor()));
    }
}
