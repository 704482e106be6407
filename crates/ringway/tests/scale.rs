//! Scale: many ports, many queue pairs, many workers.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{EXPERIMENT, PROGRAM, SOON, eventually, expect_number, number_of, numbered, options, up};
use ringway_testkit::frontend::frame::{self, BROADCAST, Mac};
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::frontend::{Arrangement, Flood, Options, VnetHeader};
use ringway_testkit::server::Server;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const FEATURES: u64 = feature::VERSION_1 | feature::NET_MRG_RXBUF;

/// A guest that costs its own process next to nothing.
fn light() -> Options {
    Options { ring_size: 16, memory: vec![(0, 1 << 20, 0)], max_frame: 100, ..options() }
}

/// As the program does.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.unwrap_or(u64::MAX)
}

/// Memory of the server that is in use, in bytes.
fn resident(server: &mut Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process().pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// The address of guest `n` of many.
fn address(n: usize) -> Mac {
    let [high, low] = (n as u16).to_be_bytes();
    [2, 0, 0, 7, high, low]
}

/// A thousand idle guests cost no processor time and little memory, attach and leave in a bounded time, and reach each
/// other.
#[test]
fn a_thousand_idle_ports_cost_nothing() {
    const PORTS: usize = 1000;
    assert!(raise_file_limit() > 12 * PORTS as u64, "this test needs 12000 open files: see `ulimit -Hn`");
    let names: Vec<_> = (0..PORTS).map(|n| format!("p{n},queues=1")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut server = Server::switch(Path::new(PROGRAM), &names, &[]).unwrap();
    let empty = resident(&mut server);

    let start = Instant::now();
    let mut guests: Vec<_> = (0..PORTS).map(|n| up(&server, &format!("p{n}"), FEATURES, light())).collect();
    let attached = start.elapsed();
    // All that was to be done for them is done.
    std::thread::sleep(Duration::from_millis(500));
    let each = (resident(&mut server) - empty) / PORTS as u64;
    let before = server.cpu_ticks().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let ticks = server.cpu_ticks().unwrap() - before;

    for (from, to) in [(0, PORTS - 1), (PORTS / 2, 7), (7, PORTS / 2)] {
        guests[from].send_frame(&numbered(BROADCAST, address(from), 1)).unwrap();
        expect_number(&mut guests[to], address(from), 1);
        guests[to].send_frame(&numbered(address(from), address(to), 2)).unwrap();
        expect_number(&mut guests[from], address(to), 2);
    }
    let start = Instant::now();
    let mut left = server.process().output().len();
    drop(guests);
    for _ in 0..PORTS {
        left = server.process().wait_for_from(left, "front-end detached", Duration::from_secs(30)).unwrap();
    }
    let detached = start.elapsed();
    println!(
        "{PORTS} ports: {} KiB each, {ticks} ticks in 2 s, attached in {attached:.2?}, detached in {detached:.2?}",
        each / 1024
    );
    assert!(each < 1 << 20, "{each} bytes for each port");
    assert!(ticks <= 1, "{ticks} ticks of 10 ms while nobody did anything");
    assert!(attached < Duration::from_mins(1) && detached < Duration::from_secs(30));
    assert!(server.process().is_running());
}

/// Frames a second between two busy guests of a switch with this many attached.
fn rate(ports: usize) -> f64 {
    raise_file_limit();
    let names: Vec<_> = (0..ports).map(|n| format!("p{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let server = Server::switch(Path::new(PROGRAM), &names, &[]).unwrap();
    let busy = || Options { ring_size: 256, max_frame: 100, ..options() };
    let _idle: Vec<_> = (2..ports).map(|n| up(&server, &format!("p{n}"), FEATURES, light())).collect();
    let sender = up(&server, "p0", FEATURES, busy());
    let mut taker = up(&server, "p1", FEATURES, busy());
    taker.send_frame(&numbered(BROADCAST, address(1), 0)).unwrap();
    let frame = frame::ethernet(address(1), address(0), EXPERIMENT, &[0; 46]);
    let flood = Flood::new(sender, &[frame], vec![taker]).unwrap();
    flood.turn(true);
    std::thread::sleep(Duration::from_millis(100));
    let count = || server.counters().unwrap().get("p0", "from");
    let (before, start) = (count(), Instant::now());
    std::thread::sleep(Duration::from_millis(400));
    let frames = u32::try_from(count() - before).unwrap();
    let rate = f64::from(frames) / start.elapsed().as_secs_f64();
    flood.finish().unwrap();
    rate
}

/// What a frame costs does not depend on how many others are attached. The medians are compared; the bound is for
/// machines that do other things too.
#[test]
fn idle_ports_do_not_slow_busy_ones() {
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..5 {
        for (rates, ports) in rates.iter_mut().zip([2, 16, 64]) {
            rates.push(rate(ports));
        }
    }
    let medians = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("frames/s with 2, 16, 64 ports: {medians:.0?}");
    assert!(medians[2] > 0.5 * medians[0], "{medians:?}");
}

/// Guests with eight queue pairs each, spread over four workers, send to a guest with one ring: every frame arrives, those
/// of a pair in their order, and the counters of all workers add up.
#[test]
fn many_workers_feed_one_ring() {
    const SENDERS: usize = 3;
    const PAIRS: usize = 8;
    const BURST: usize = 8;
    const ROUNDS: usize = 300;
    let names = ["taker", "s0", "s1", "s2"];
    let server = Server::switch(Path::new(PROGRAM), &names, &["--workers=4"]).unwrap();
    let roomy = Options { ring_size: 256, max_frame: 100, ..options() };
    let mut taker = up(&server, "taker", FEATURES, roomy.clone());
    let eight = Options { queue_pairs: PAIRS as u16, ..roomy };
    let mut senders: Vec<_> = (0..SENDERS)
        .map(|n| up(&server, &format!("s{n}"), FEATURES | feature::NET_MQ, eight.clone()))
        .collect();
    taker.send_frame(&numbered(BROADCAST, address(9), 0)).unwrap();
    for sender in &mut senders {
        let mut arrived = |pair| sender.pair(pair).recv(Duration::ZERO).unwrap().is_some();
        eventually("it came, on whichever pair", || (0..PAIRS).any(&mut arrived));
    }

    let mut next = [[0; PAIRS]; SENDERS];
    for round in 0..ROUNDS {
        for (n, sender) in senders.iter_mut().enumerate() {
            for pair in 0..PAIRS {
                for number in round * BURST..(round + 1) * BURST {
                    let frame = numbered(address(9), address(n), (pair << 32 | number) as u64);
                    let pair = sender.pair(pair);
                    assert!(pair.enqueue(&VnetHeader::default(), &frame, &Arrangement::whole()).unwrap());
                }
            }
            for pair in 0..PAIRS {
                sender.pair(pair).flush().unwrap();
            }
        }
        for _ in 0..SENDERS * PAIRS * BURST {
            let (_, frame) = taker.recv_frame(SOON).unwrap().expect("every frame arrives");
            let numbers = (0..SENDERS).find_map(|n| Some((n, number_of(&frame, address(n))?)));
            let (sender, number) = numbers.expect("a frame of ours");
            let (pair, number) = ((number >> 32) as usize, number as u32 as usize);
            assert_eq!(number, next[sender][pair], "sender {sender}, pair {pair}");
            next[sender][pair] += 1;
        }
        for sender in &mut senders {
            (0..PAIRS).for_each(|pair| sender.pair(pair).wait_sent(SOON).unwrap());
        }
    }
    let counters = server.counters().unwrap();
    let each = (ROUNDS * PAIRS * BURST) as u64;
    assert_eq!(counters.get("taker", "to"), each * SENDERS as u64);
    for n in 0..SENDERS {
        assert_eq!(counters.get(&format!("s{n}"), "from"), each);
    }
    assert_eq!(names.map(|name| counters.dropped(name)), [0; 4]);
}
