//! Live upgrade under the load of real peers: DPDK's driver, which counts every frame, and Linux guests with TCP sessions.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringway_testkit::dpdk::{Counters, Forward, TestPmd, Totals, Traffic, VirtioUser};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::guest::{
    self, BOOT_LIMIT, Guest, Nic, QemuOptions, UmlOptions, boot_qemu, boot_uml, ensure_images, transfer,
};
use ringway_testkit::server::Server;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringway");
const LIMIT: Duration = Duration::from_secs(10);
/// Upgrades of each kind of ring.
const UPGRADES: usize = 10;
/// How long the rings may pause.
const GOAL: Duration = Duration::from_millis(50);
const MACS: [&str; 2] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"];

fn plus(sums: &mut [Counters], totals: &Totals) {
    for (sum, more) in sums.iter_mut().zip(&totals.ports) {
        *sum = sum.plus(more);
    }
}

/// Two ports of DPDK's driver send to each other as fast as they can through ten upgrades, with split rings and with packed
/// ones. Every frame that one counts as sent the other receives, or the server says that there was no buffer for it.
#[test]
fn dpdk_loses_no_frame() {
    let mut pauses: Vec<_> = [false, true].into_iter().flat_map(dpdk_through_upgrades).collect();
    pauses.sort_unstable();
    let (median, max) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    println!("{} upgrades: rings paused for {median:?} (median), {max:?} (most)", pauses.len());
    assert!(median < GOAL, "{pauses:?}");
}

fn dpdk_through_upgrades(packed: bool) -> Vec<Duration> {
    let mut server = Server::switch(Path::new(PROGRAM), &["a", "b"], &[]).unwrap();
    let sockets = ["a", "b"].map(|port| server.socket(port)).to_vec();
    let options = VirtioUser { sockets, macs: MACS.map(Into::into).to_vec(), packed, ..VirtioUser::new("") };
    let peers = vec![MACS[1].into(), MACS[0].into()];
    let traffic = Traffic { peers, ..Traffic::new(Forward::FlowGen) };
    let mut pmd = TestPmd::virtio_user(&options, &traffic).unwrap();
    assert_eq!(pmd.features().unwrap() & feature::RING_PACKED != 0, packed);
    // Both addresses are known before the load: no frame is flooded.
    pmd.send_exactly(1, LIMIT).unwrap();
    let mut sums = vec![Counters::default(); 2];
    plus(&mut sums, &pmd.stop().unwrap());

    pmd.command("set fwd flowgen", LIMIT).unwrap();
    pmd.start().unwrap();
    let mut pauses = Vec::new();
    for _ in 0..UPGRADES {
        std::thread::sleep(Duration::from_millis(100));
        let before = server.counters().unwrap();
        pauses.push(server.upgrade().unwrap());
        std::thread::sleep(Duration::from_millis(50));
        let after = server.counters().unwrap();
        for port in ["a", "b"] {
            assert!(after.get(port, "to") > before.get(port, "to"), "{before:?} {after:?}");
        }
    }
    plus(&mut sums, &pmd.stop().unwrap());
    pmd.command("set fwd rxonly", LIMIT).unwrap();
    pmd.start().unwrap();
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut all = sums.clone();
        plus(&mut all, &pmd.totals().unwrap());
        let counters = server.counters().unwrap();
        let agree = ["a", "b"].iter().zip(&all).all(|(port, own)| {
            (own.tx_packets, own.rx_packets) == (counters.get(port, "from"), counters.get(port, "to"))
        });
        if agree {
            for (from, to) in [("a", "b"), ("b", "a")] {
                let lost =
                    counters.get(to, "no-buffer") + counters.dropped(from) - counters.get(from, "no-buffer");
                assert_eq!(counters.get(from, "from"), counters.get(to, "to") + lost, "{counters:?}");
                // The first frames found no receiver yet.
                assert!(counters.get(from, "filtered") <= 64, "{counters:?}");
                assert_eq!((counters.get(from, "failed rings"), counters.get(from, "sessions")), (0, 1));
                assert_eq!((counters.get(to, "not-ready"), counters.get(from, "malformed")), (0, 0));
                assert!(counters.get(from, "from") > 10_000, "{counters:?}");
            }
            break;
        }
        assert!(Instant::now() < deadline, "{all:?} and {counters:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    pmd.quit().unwrap();
    assert!(!server.output().contains("WARN") && !server.output().contains("ERROR"), "{}", server.output());
    assert!(server.terminate().unwrap().0.success());
    println!("packed {packed}: {pauses:?}");
    pauses
}

fn ready(mut guest: Guest, address: &str) -> Guest {
    guest.wait_ready(BOOT_LIMIT).expect("it boots");
    guest.configure(&format!("{address}/24"), None).expect("it has a virtio network interface");
    guest
}

/// A guest under QEMU and a User-Mode Linux have TCP sessions with each other while the server is upgraded again and
/// again: all bytes arrive as they were sent, and the guests are never told of a loss of the link.
#[test]
fn tcp_sessions_go_on() {
    for packed in ["packed=off", "packed=on"] {
        let mut server = Server::switch(Path::new(PROGRAM), &["a", "b,mac=02:00:00:00:00:0b"], &[]).unwrap();
        let images = ensure_images().expect("guests/setup.sh gets the guests' images");
        let nic = Nic::new(server.socket("a")).mac("02:00:00:00:00:0a").property(packed);
        let mut a = ready(boot_qemu("a", &images, &QemuOptions::new([nic])).unwrap(), "10.0.0.1");
        let mut b =
            ready(boot_uml("b", &images, &UmlOptions::new([server.socket("b")])).unwrap(), "10.0.0.2");
        assert!(a.ping("10.0.0.2", 3).unwrap().received > 0);
        let is_done = AtomicBool::new(false);
        let pauses = std::thread::scope(|scope| {
            let upgrades = scope.spawn(|| {
                let mut pauses = Vec::new();
                while !is_done.load(Ordering::Relaxed) {
                    pauses.push(server.upgrade().unwrap());
                    std::thread::sleep(Duration::from_millis(200));
                }
                pauses
            });
            let moved = [both_ways(&mut a, &mut b, 5000), both_ways(&mut a, &mut b, 5002)];
            is_done.store(true, Ordering::Relaxed);
            let pauses = upgrades.join().unwrap();
            println!("{packed}: {moved:?} MB/s");
            pauses
        });
        println!("{packed}: {} upgrades, the longest pause {:?}", pauses.len(), pauses.iter().max());
        assert!(pauses.len() >= 5, "{pauses:?}");
        let counters = server.counters().unwrap();
        for port in ["a", "b"] {
            assert_eq!(
                (counters.get(port, "sessions"), counters.get(port, "not-ready")),
                (1, 0),
                "{counters:?}"
            );
        }
        // A reboot, which QEMU does with the server that it finds.
        a.reboot(BOOT_LIMIT).unwrap();
        a.configure("10.0.0.1/24", None).unwrap();
        assert!(a.ping("10.0.0.2", 3).unwrap().received > 0);
    }
}

fn both_ways(a: &mut Guest, b: &mut Guest, port: u16) -> [f64; 2] {
    let there = transfer(a, b, "10.0.0.2", port, 24).expect("a transfer");
    let back = transfer(b, a, "10.0.0.1", port + 1, 24).expect("a transfer");
    [there, back].map(|done: guest::Transfer| {
        assert!(done.is_intact(), "{done:?}");
        done.megabytes_per_second()
    })
}
