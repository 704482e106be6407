//! What the options of ports promise: VLANs, isolation, pinned addresses, storms, rates, limits, mirrors.

mod common;

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{FEATURES, Honest, PROGRAM, SOON, eventually, exchange, mac, numbered, options, switch, up};
use ringway_testkit::frontend::frame::{self, BROADCAST, Checksum, Flow, Mac};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{Arrangement, NetFrontend, Options, VnetHeader};
use ringway_testkit::server::Server;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const C: Mac = [2, 0, 0, 0, 0, 0xc];
const D: Mac = [2, 0, 0, 0, 0, 0xd];
/// A priority, as the high bits of a tag.
const PRIORITY: u16 = 5 << 13;

/// A server with two workers and these ports, options included, and an ordinary guest on each.
fn guests<const N: usize>(ports: [&str; N], extra: &[&str]) -> (Server, [NetFrontend; N]) {
    let extra = [&["--workers=2"], extra].concat();
    let server = Server::switch(Path::new(PROGRAM), &ports, &extra).unwrap();
    let guests = ports.map(|port| {
        let name = port.split(',').next().unwrap();
        up(&server, name, FEATURES, Options { rx_chain: vec![4096], ring_size: 64, ..options() })
    });
    (server, guests)
}

/// The next frame that comes is this one.
#[track_caller]
fn expect(to: &mut NetFrontend, bytes: &[u8]) {
    let (_, got) = to.recv_frame(SOON).unwrap().expect("the frame arrives");
    assert!(got == bytes, "got {got:02x?}, not {bytes:02x?}");
}

/// A frame with a number that differs from all others'.
fn fresh(dst: Mac, src: Mac) -> Vec<u8> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    numbered(dst, src, NUMBER.fetch_add(1, Ordering::Relaxed))
}

// ---- VLANs ----

/// From an access port to trunks and back: the tag is added and taken away and nothing else changes, whatever the length
/// and however the frame is spread over buffers.
#[test]
fn access_ports_and_trunks() {
    let (server, [mut a, mut b, mut c, mut d]) = guests(["a,vlan=7", "b,trunk=7+8", "c,vlan=8", "d"], &[]);
    let arrangements = [
        Arrangement::whole(),
        Arrangement::header_apart(),
        Arrangement::pieces(&[12, 12, 2]),
        Arrangement::pieces(&[12, 5, 8, 33]),
        Arrangement::pieces(&[12, 13, 1, 1]).indirect(),
    ];
    let none = VnetHeader::default();
    for len in [14usize, 15, 17, 18, 19, 60, 301, 1514, 3000] {
        for arrangement in &arrangements {
            let mut bytes: Vec<u8> = (0..len).map(|n| (n * 7 + len) as u8).collect();
            bytes[..14].copy_from_slice(&frame::ethernet(BROADCAST, A, 0x88b5, &[]));
            a.send_frame_with_header(&none, &bytes, arrangement).unwrap();
            expect(&mut b, &frame::tagged(&bytes, 7));
            expect(&mut d, &frame::tagged(&bytes, 7));
            bytes[..12].copy_from_slice(&[A, B].concat());
            b.send_frame_with_header(&none, &frame::tagged(&bytes, PRIORITY | 7), arrangement).unwrap();
            expect(&mut a, &bytes);
        }
    }
    let last = fresh(BROADCAST, B);
    b.send_frame(&frame::tagged(&last, 8)).unwrap();
    expect(&mut c, &last);
    let counters = server.counters().unwrap();
    assert_eq!(counters.get("c", "to"), 1, "VLAN 7 is not its own");
    assert_eq!(["a", "b", "c", "d"].map(|port| counters.dropped(port)), [0; 4]);
}

/// What a port is not told to take it drops, and it is counted.
#[test]
fn frames_of_other_vlans_are_dropped() {
    let (server, [mut a, mut b, mut c]) = guests(["a,vlan=7", "b,trunk=7+9,native=9", "c"], &[]);
    for tag in [7, 8, PRIORITY | 7] {
        a.send_frame(&frame::tagged(&fresh(BROADCAST, A), tag)).unwrap();
    }
    b.send_frame(&frame::tagged(&fresh(BROADCAST, B), 8)).unwrap();
    c.send_frame(&fresh(BROADCAST, C)).unwrap();
    c.send_frame(&frame::tagged(&fresh(BROADCAST, C), 0xfff)).unwrap();
    let (priority, native) = (fresh(BROADCAST, A), fresh(BROADCAST, B));
    a.send_frame(&frame::tagged(&priority, PRIORITY)).unwrap();
    expect(&mut b, &frame::tagged(&priority, PRIORITY | 7));
    expect(&mut c, &frame::tagged(&priority, PRIORITY | 7));
    b.send_frame(&native).unwrap();
    expect(&mut c, &frame::tagged(&native, 9));
    c.send_frame(&frame::tagged(&native, PRIORITY | 9)).unwrap();
    expect(&mut b, &native);
    let counters = server.counters().unwrap();
    assert_eq!(["a", "b", "c"].map(|port| counters.get(port, "vlan")), [3, 1, 1]);
    assert_eq!(counters.get("c", "filtered"), 1, "nobody else is in the VLAN of frames without a tag");
}

/// A partial checksum moves with the tag: who takes it finds it where the header says, for others it is completed.
#[test]
fn checksums_move_with_tags() {
    let server = switch(&["a,vlan=7", "b", "c", "d,vlan=7"]);
    let long = Options { rx_chain: vec![4096], ..options() };
    let take = [("a", feature::NET_CSUM), ("b", feature::NET_CSUM | feature::NET_GUEST_CSUM), ("c", 0)];
    let [mut a, mut b, mut c] = take.map(|(port, more)| up(&server, port, FEATURES | more, long.clone()));
    let mut d = up(&server, "d", FEATURES | feature::NET_GUEST_CSUM, long.clone());
    let ip = |n: u8| -> IpAddr { [10, 0, 0, n].into() };
    for src_mac in [A, B] {
        let flow = Flow {
            src_mac,
            dst_mac: BROADCAST,
            src_ip: ip(1),
            dst_ip: ip(2),
            src_port: 1234,
            dst_port: 5001,
        };
        let bytes = frame::udp(&flow, &[0x5a; 333], Checksum::Partial);
        let tagged = frame::tagged(&bytes, PRIORITY | 7);
        let (from, sent) = if src_mac == A { (&mut a, &bytes) } else { (&mut b, &tagged) };
        let header = frame::partial_header(sent).unwrap();
        from.send_frame_with_header(&header, sent, &Arrangement::pieces(&[12, 14, 9])).unwrap();
        let (header, got) = d.recv_frame(SOON).unwrap().expect("d is in VLAN 7");
        assert!(got == bytes);
        let moved = frame::partial_header(&bytes).unwrap();
        assert_eq!(header, VnetHeader { num_buffers: 1, ..moved });
        let (_, got) = c.recv_frame(SOON).unwrap().expect("c takes all VLANs");
        frame::check(&got).unwrap();
        if src_mac == A {
            let (header, got) = b.recv_frame(SOON).unwrap().expect("b takes all VLANs");
            assert!(got == frame::tagged(&bytes, 7));
            let moved = frame::partial_header(&got).unwrap();
            assert_eq!(header, VnetHeader { num_buffers: 1, ..moved });
        }
    }
}

// ---- Trust ----

#[test]
fn isolated_ports_reach_others_only() {
    let (server, [mut a, mut b, mut c]) = guests(["a,isolated", "b,isolated", "c"], &[]);
    let all = fresh(BROADCAST, A);
    a.send_frame(&all).unwrap();
    expect(&mut c, &all);
    exchange((&mut b, B), (&mut c, C));
    exchange((&mut a, A), (&mut c, C));
    a.send_frame(&fresh(B, A)).unwrap();
    eventually("the frame is filtered", || server.counters().unwrap().get("a", "filtered") == 1);
    assert_eq!(server.counters().unwrap().get("b", "to"), 1, "what c sent, and nothing of a");
}

/// A port sends from its own address only, and nobody else does.
#[test]
fn pinned_addresses() {
    let pinned = format!("a,mac=02:00:00:00:00:0a,pinned=02:00:00:00:00:{:02x}", D[5]);
    let (server, [mut a, mut b, mut c]) = guests([&pinned, "b", "c"], &[]);
    a.send_frame(&fresh(BROADCAST, C)).unwrap();
    b.send_frame(&fresh(BROADCAST, A)).unwrap();
    for src in [A, D] {
        let own = fresh(BROADCAST, src);
        a.send_frame(&own).unwrap();
        expect(&mut b, &own);
        expect(&mut c, &own);
    }
    exchange((&mut a, A), (&mut b, B));
    let counters = server.counters().unwrap();
    assert_eq!(["a", "b", "c"].map(|port| counters.get(port, "secured")), [1, 1, 0]);
}

/// Frames for all are dropped beyond so many; frames for one are not, nor are other ports'.
#[test]
fn storms() {
    let (server, [mut a, mut b, mut c]) = guests(["a,storm=100", "b", "c"], &[]);
    exchange((&mut a, A), (&mut b, B));
    let start = Instant::now();
    for n in 0..1000 {
        let dst = if n % 2 == 0 { BROADCAST } else { mac(99) };
        a.send_frame(&fresh(dst, A)).unwrap();
    }
    a.pair(0).wait_sent(SOON).unwrap();
    let counters = server.counters().unwrap();
    let most = 10 + start.elapsed().as_millis() as u64 / 10;
    let passed = counters.get("c", "to") - 1;
    assert!((8..=most).contains(&passed), "{passed} passed, {most} may");
    assert_eq!(counters.get("a", "storm") + passed, 1000);
    exchange((&mut a, A), (&mut b, B));
    let other = fresh(BROADCAST, B);
    b.send_frame(&other).unwrap();
    while c.recv_frame(SOON).unwrap().expect("b's frame arrives").1 != other {}
}

/// A port has so many addresses; frames to its others go everywhere.
#[test]
fn addresses_are_limited() {
    let (_server, [mut a, mut b, mut c]) = guests(["a,macs=2", "b", "c"], &[]);
    for n in 1..=3 {
        let all = fresh(BROADCAST, mac(n));
        a.send_frame(&all).unwrap();
        expect(&mut b, &all);
        expect(&mut c, &all);
    }
    let known = [1, 2].map(|n| fresh(mac(n), B));
    let unknown = fresh(mac(3), B);
    for bytes in known.iter().chain([&unknown]) {
        b.send_frame(bytes).unwrap();
        expect(&mut a, bytes);
    }
    expect(&mut c, &unknown);
}

/// A guest that invents addresses, each frame another, hurts nobody else: the others' frames are neither lost nor
/// flooded.
#[test]
fn invented_addresses_hurt_nobody_else() {
    let server = switch(&["a", "b", "c", "d"]);
    let honest = Honest::start(&server, [("b", B), ("c", C)]);
    let mut a = up(&server, "a", FEATURES, Options { ring_size: 256, max_frame: 100, ..options() });
    a.send_frame(&fresh(A, A)).unwrap();
    for n in 0..30_000u32 {
        let [_, x, y, z] = n.to_be_bytes();
        // To its own port: they are dropped, once they were learned.
        let invented = numbered(A, [2, 1, 0, x, y, z], n.into());
        while !a.pair(0).enqueue(&VnetHeader::default(), &invented, &Arrangement::whole()).unwrap() {
            a.pair(0).flush().unwrap();
            std::thread::yield_now();
        }
    }
    a.pair(0).flush().unwrap();
    a.pair(0).wait_sent(SOON).unwrap();
    let mut d = up(&server, "d", FEATURES, Options { ring_size: 256, ..options() });
    honest.check();
    honest.finish();
    assert_eq!(server.counters().unwrap().get("a", "filtered"), 30_001);
    assert!(d.recv_frame(Duration::ZERO).unwrap().is_none(), "frames of b and c go to each other alone");
}

// ---- Rates ----

/// Sends frames of `len` bytes, more than a thousand in a second, and checks that a thousand arrive, give or take 10 %.
/// None may be lost or overtaken unless `lossy`.
fn expect_thousand(from: &mut NetFrontend, to: &mut NetFrontend, len: usize, lossy: bool) {
    const BEGIN: Duration = Duration::from_millis(200);
    const END: Duration = Duration::from_millis(1200);
    // So long the port's burst lasts, and more.
    const PAUSE: Duration = Duration::from_millis(10);
    let start = Instant::now();
    let (mut sent, mut next, mut counted) = (0u64, 0u64, 0u64);
    let (mut turn, mut away) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < END {
        // Enough to exceed the rate, and little enough not to overrun the receiver for lack of buffers.
        let pause = turn.elapsed();
        if pause >= Duration::from_micros(300) {
            turn = Instant::now();
            // When this thread does not run it sends nothing.
            away += if pause > PAUSE { pause } else { Duration::ZERO };
            for _ in 0..=pause.as_millis().min(20) {
                let mut bytes = numbered(B, A, sent);
                bytes.resize(len, 0);
                let has_room = from.pair(0).enqueue(&VnetHeader::default(), &bytes, &Arrangement::whole());
                sent += u64::from(has_room.unwrap());
            }
            from.pair(0).flush().unwrap();
        }
        while let Some((_, got)) = to.recv_frame(Duration::ZERO).unwrap() {
            let Some(number) = common::number_of(&got, A) else { continue };
            assert!(number == next || lossy && number > next, "frame {number} after {next}");
            next = number + 1;
            counted += u64::from((BEGIN..END).contains(&start.elapsed()));
        }
    }
    let least = 900_u64.saturating_sub(away.as_millis() as u64);
    assert!(
        (least..=1100).contains(&counted),
        "{counted} frames of {sent}; the sender was away for {away:?}"
    );
}

/// What a guest sends too fast waits in its ring: nothing is lost, and the switch sleeps meanwhile.
#[test]
fn what_is_sent_too_fast_waits() {
    for (ports, len) in [(["a,tx-frames=1000", "b"], 60), (["a,tx-rate=8M", "b"], 1000)] {
        let (server, [mut a, mut b]) = guests(ports, &[]);
        b.send_frame(&fresh(BROADCAST, B)).unwrap();
        expect_thousand(&mut a, &mut b, len, false);
        let counters = server.counters().unwrap();
        assert_eq!(["a", "b"].map(|port| counters.dropped(port)), [0, 0]);
    }
}

/// A sender that waits costs no time, and its turn comes without a kick.
#[test]
fn waiting_is_asleep() {
    let (server, [mut a, mut b]) = guests(["a,tx-frames=20", "b"], &[]);
    for n in 0..40 {
        a.send_frame(&numbered(BROADCAST, A, n)).unwrap();
    }
    let (before, start) = (server.cpu_ticks().unwrap(), Instant::now());
    for n in 0..40 {
        common::expect_number(&mut b, A, n);
    }
    let ticks = server.cpu_ticks().unwrap() - before;
    assert!(start.elapsed() > Duration::from_millis(1300), "40 frames less a burst, at 20 in a second");
    assert!(ticks < 20, "{ticks} hundredths of a second");
}

/// What a guest gets too fast is dropped, and counted there.
#[test]
fn what_is_received_too_fast_is_dropped() {
    for (ports, len) in [(["a", "b,rx-frames=1000"], 60), (["a", "b,rx-rate=8M"], 1000)] {
        let (server, [mut a, mut b]) = guests(ports, &[]);
        b.send_frame(&fresh(BROADCAST, B)).unwrap();
        expect_thousand(&mut a, &mut b, len, true);
        a.pair(0).wait_sent(SOON).unwrap();
        let counters = server.counters().unwrap();
        assert!(counters.get("b", "limited") > 100);
        assert_eq!(counters.get("a", "from"), counters.get("b", "to") + counters.get("b", "limited"));
        assert_eq!(["a", "b"].map(|port| counters.dropped(port)), [0, counters.get("b", "limited")]);
    }
}

// ---- Mirrors ----

/// The watcher sees what its port sends and gets, as the port sees it, and nothing else; it has no say.
#[test]
fn mirrors() {
    let (server, [mut a, mut b, mut c, mut m]) = guests(["a,vlan=7", "b", "c", "m"], &["--mirror", "a=m"]);
    let out = fresh(BROADCAST, A);
    a.send_frame(&out).unwrap();
    expect(&mut b, &frame::tagged(&out, 7));
    expect(&mut m, &out);
    let back = fresh(A, B);
    b.send_frame(&frame::tagged(&back, 7)).unwrap();
    expect(&mut a, &back);
    expect(&mut m, &back);
    exchange((&mut b, B), (&mut c, C));
    m.send_frame(&fresh(BROADCAST, D)).unwrap();
    let last = fresh(A, B);
    b.send_frame(&frame::tagged(&last, 7)).unwrap();
    expect(&mut a, &last);
    expect(&mut m, &last);
    eventually("the watcher's frame is dropped", || server.counters().unwrap().get("m", "filtered") == 1);
    assert_eq!(server.counters().unwrap().get("m", "to"), 3);
}

// ---- Live upgrade ----

/// The next server has the same rules, and knows where the stations are.
#[test]
fn rules_outlive_an_upgrade() {
    let (mut server, [mut a, mut b, mut c]) =
        guests(["a,vlan=7,mac=02:00:00:00:00:0a,pinned", "b", "c"], &[]);
    let all = fresh(BROADCAST, A);
    a.send_frame(&all).unwrap();
    expect(&mut b, &frame::tagged(&all, 7));
    expect(&mut c, &frame::tagged(&all, 7));
    server.upgrade().unwrap();
    a.send_frame(&fresh(BROADCAST, D)).unwrap();
    let back = fresh(A, B);
    b.send_frame(&frame::tagged(&back, 7)).unwrap();
    expect(&mut a, &back);
    let last = fresh(BROADCAST, A);
    a.send_frame(&last).unwrap();
    expect(&mut c, &frame::tagged(&last, 7));
    assert_eq!(server.counters().unwrap().get("a", "secured"), 1);
}

// ---- The command line ----

/// What contradicts itself is refused at the start, with a message that says what and where.
#[test]
fn contradictions_are_refused() {
    for (args, wanted) in [
        (&["--port=a=/nowhere/a,vlan=5000"][..], "VLAN from 1 to 4094"),
        (&["--port=a=/nowhere/a,vlan=5,native=6"], "native=N"),
        (&["--port=a=/nowhere/a,pinned"], "mac=ADDRESS"),
        (&["--port=a=/nowhere/a", "--mirror=a=x"], "no port x"),
        (&["--port=a=/nowhere/a", "--port=b=/nowhere/b", "--mirror=a=b", "--mirror=b=a"], "watches"),
        (
            &[
                "--port=a=/nowhere/a,mac=02:00:00:00:00:01,pinned",
                "--port=b=/nowhere/b,mac=02:00:00:00:00:01,pinned",
            ],
            "02:00:00:00:00:01",
        ),
    ] {
        let output = Command::new(PROGRAM).arg("switch").args(args).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(wanted), "{args:?}: {message}");
    }
}
