//! What no front-end and no driver should do. Whatever the back-end makes of it, it must go on to serve the next
//! front-end; the runner looks whether it does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use ringway_memory::{FrontendVa, Gpa};
use ringway_queue::Segment;
use ringway_spec::feature::{RING_INDIRECT_DESC, RING_PACKED};
use ringway_spec::split::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use ringway_vhost::message::{
    Header, InflightDescription, Iotlb, IotlbKind, RegionDescription, Request, VringAddresses,
    protocol_feature as pf,
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::case::{Case, Seen, Verdict, trouble};
use crate::context::{Context, QUIET};
use crate::event::{event, share};
use crate::guest::{Guest, LEN, memory_file};
use crate::rig::{KickBy, Rig, SIZE};
use crate::session::Session;

/// A moment for the back-end to look at what it got.
const MOMENT: Duration = Duration::from_millis(50);

pub(super) const CASES: &[Case] = &[
    Case::hostile("hostile-no-message", "bytes that are no message", no_message),
    Case::hostile("hostile-half-header", "the connection ends inside a header", half_header),
    Case::hostile("hostile-half-payload", "the connection ends inside a payload", half_payload),
    Case::hostile("hostile-pieces", "a message byte by byte", pieces),
    Case::hostile("hostile-silence", "silence inside a message, while others wait", silence),
    Case::hostile("hostile-versions", "other versions, and replies where requests should be", versions),
    Case::hostile("hostile-unknown", "requests that do not exist", unknown),
    Case::hostile("hostile-size", "payloads that claim to be gigantic", gigantic),
    Case::hostile("hostile-payloads", "each request with payloads of the wrong size", payloads),
    Case::hostile("hostile-many-fds", "more file descriptors than any message has", many_fds),
    Case::hostile("hostile-no-fds", "requests without the file descriptors that they need", no_fds),
    Case::hostile("hostile-fd-kinds", "kicks and calls that are directories, files, dead sockets", fd_kinds),
    Case::hostile("hostile-full-call", "a call pipe that is full, and nobody reads", full_call)
        .with_requests(),
    Case::hostile("hostile-replies-unread", "questions without end, whose answers nobody reads", unread),
    Case::hostile("hostile-regions", "memory regions that are impossible", regions),
    Case::hostile("hostile-vring-index", "vrings that do not exist", vring_index),
    Case::hostile("hostile-vring-num", "vring sizes that are impossible", vring_num),
    Case::hostile("hostile-vring-addr", "rings that are in no memory, or misaligned", vring_addr),
    Case::hostile("hostile-vring-base", "bases that are no place in the ring", vring_base),
    Case::hostile("hostile-start-without-memory", "rings started before there is memory", without_memory),
    Case::hostile("hostile-memory-removed", "memory replaced under running rings", memory_removed)
        .with_requests(),
    Case::hostile("hostile-memory-truncated", "memory whose file is cut under running rings", truncated)
        .with_requests(),
    Case::hostile("hostile-memory-short", "memory longer than its file", short_file),
    Case::hostile("hostile-index-jump", "an available index that jumps", index_jump).with_requests(),
    Case::hostile("hostile-head", "an available ring that names a descriptor outside", bad_head)
        .with_requests(),
    Case::hostile("hostile-loop", "a chain that loops", looping).with_requests(),
    Case::hostile("hostile-next", "a chain that leaves its table", bad_next).with_requests(),
    Case::hostile("hostile-addresses", "buffers that are in no memory", addresses).with_requests(),
    Case::hostile("hostile-lengths", "buffers of no bytes, and of 4 GiB", lengths).with_requests(),
    Case::hostile("hostile-direction", "chains of the wrong direction", direction).with_requests(),
    Case::hostile("hostile-indirect", "indirect tables that are none", indirect)
        .with_features(RING_INDIRECT_DESC)
        .with_requests(),
    Case::hostile("hostile-packed-descriptors", "a packed ring full of anything", packed_garbage)
        .with_features(RING_PACKED)
        .with_requests(),
    Case::hostile("hostile-packed-chain", "a packed chain longer than its ring", packed_chain)
        .with_features(RING_PACKED)
        .with_requests(),
    Case::hostile("hostile-config", "configuration spaces of absurd size", config).with_protocol(pf::CONFIG),
    Case::hostile("hostile-log", "logs that are too short, or no memory", log).with_protocol(pf::LOG_SHMFD),
    Case::hostile("hostile-inflight", "in-flight regions that are impossible", inflight)
        .with_protocol(pf::INFLIGHT_SHMFD),
    Case::hostile("hostile-inflight-content", "an in-flight region full of anything", inflight_content)
        .with_protocol(pf::INFLIGHT_SHMFD)
        .with_requests(),
    Case::hostile("hostile-iotlb", "translations that are impossible", iotlb),
    Case::hostile("hostile-crowd", "many front-ends at once", crowd),
];

/// Sends a request on a session of its own.
fn alone(context: &Context, protocol: u64, request: Request) -> Result<String, Verdict> {
    let mut session = context.negotiate(0, protocol)?;
    let _ = session.tell(request);
    Ok(fate(&mut session))
}

/// What became of the session.
fn fate(session: &mut Session<'_>) -> String {
    if session.is_closed(MOMENT) { "it ends the session" } else { "it goes on" }.into()
}

fn no_message(context: &Context) -> Seen {
    let mut session = context.connect()?;
    session.send_raw(&[0xff; 300], &[]);
    Ok(fate(&mut session))
}

fn half_header(context: &Context) -> Seen {
    let mut session = context.connect()?;
    session.send_raw(&Header::request(1, 0, false).encode()[..7], &[]);
    drop(session);
    Ok("closed".into())
}

fn half_payload(context: &Context) -> Seen {
    let mut session = context.connect()?;
    let message = Request::SetVringNum { index: 0, num: 8 }.encode(false);
    session.send_raw(&message.bytes[..15], &[]);
    drop(session);
    Ok("closed".into())
}

fn pieces(context: &Context) -> Seen {
    let mut session = context.connect()?;
    for byte in Request::SetOwner.encode(false).bytes {
        session.send_raw(&[byte], &[]);
        sleep(Duration::from_millis(2));
    }
    Ok(fate(&mut session))
}

fn silence(context: &Context) -> Seen {
    let mut session = context.connect()?;
    session.send_raw(&Header::request(2, 8, false).encode()[..6], &[]);
    sleep(QUIET);
    drop(session);
    Ok("closed".into())
}

fn versions(context: &Context) -> Seen {
    for flags in [0_u32, 2, 3, 5, 0xffff_fffd] {
        let mut session = context.connect()?;
        let bytes = [1, flags, 0].map(u32::to_le_bytes).concat();
        session.send_raw(&bytes, &[]);
        fate(&mut session);
    }
    Ok("five flags".into())
}

fn unknown(context: &Context) -> Seen {
    for number in [0, 45, 100, 0xffff_ffff] {
        for need_reply in [false, true] {
            let mut session = context.negotiate(0, 0)?;
            session.send_raw(&Header::request(number, 0, need_reply).encode(), &[]);
            fate(&mut session);
        }
    }
    Ok("four numbers".into())
}

fn gigantic(context: &Context) -> Seen {
    for size in [0xffff_ffff_u32, 0x8000_0000, 0x10_0000, 5000] {
        for number in [2, 5, 24, 25] {
            let mut session = context.connect()?;
            let head = [number, 1, size].map(u32::to_le_bytes).concat();
            session.send_raw(&head, &[]);
            session.send_raw(&[0xa5; 4000], &[]);
            fate(&mut session);
        }
    }
    Ok("four sizes".into())
}

fn payloads(context: &Context) -> Seen {
    for number in 1..=44 {
        for len in [0, 1, 7, 9, 13, 255] {
            let mut session = context.connect()?;
            session.send_message(number, &[0x11; 255][..len], &[]);
            session.send_message(1, &[], &[]);
        }
    }
    Ok("44 requests, 6 sizes".into())
}

/// Sends the request with so many event counters.
fn with_fds(context: &Context, number: u32, payload: &[u8], count: usize) -> Seen {
    let mut session = context.negotiate(0, context.offer.protocol_features)?;
    let event = event()?;
    let fds: Vec<BorrowedFd<'_>> = vec![event.as_fd(); count];
    session.send_message(number, payload, &fds);
    Ok(fate(&mut session))
}

fn many_fds(context: &Context) -> Seen {
    for count in [2, 8, 9, 32, 253] {
        for number in [1, 5, 12, 13, 14, 21, 37] {
            with_fds(context, number, &[0; 8], count)?;
        }
    }
    Ok("up to 253".into())
}

fn no_fds(context: &Context) -> Seen {
    let table = [2_u32, 0].map(u32::to_le_bytes).concat();
    let table = [table, vec![0x10; 64]].concat();
    for count in [0, 1] {
        with_fds(context, 5, &table, count)?;
    }
    for (number, len) in [(6, 16), (7, 0), (12, 8), (13, 8), (14, 8), (21, 0), (32, 24), (37, 40), (42, 8)] {
        with_fds(context, number, &[0; 40][..len], 0)?;
    }
    // A table of more regions than a message can have.
    let table = [1000_u32, 0].map(u32::to_le_bytes).concat();
    with_fds(context, 5, &table, 8)?;
    Ok("ten requests".into())
}

fn fd_kinds(context: &Context) -> Seen {
    let directory = || std::fs::File::open("/").map(OwnedFd::from).map_err(|e| trouble("open /", e));
    let dead = || UnixStream::pair().map(|(a, _)| OwnedFd::from(a)).map_err(|e| trouble("socketpair", e));
    let file = || memory_file(0);
    let kinds: [&dyn Fn() -> Result<OwnedFd, Verdict>; 3] = [&directory, &dead, &file];
    for make in kinds {
        let mut rig = context.rig(0, 0)?;
        for at in 0..rig.vrings.len() {
            // It may hang up at any of these.
            let index = rig.vrings[at].index;
            let _ = rig.describe(at, None);
            let _ = rig.session.tell(Request::SetVringCall { index, fd: Some(make()?) });
            let _ = rig.session.tell(Request::SetVringErr { index, fd: Some(make()?) });
            let _ = rig.session.tell(Request::SetVringKick { index, fd: Some(make()?) });
            let _ = rig.enable(at, true);
        }
        let _ = rig.offer(3);
        sleep(MOMENT);
        fate(&mut rig.session);
    }
    Ok("three kinds".into())
}

fn full_call(context: &Context) -> Seen {
    let (_read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| trouble("pipe", e))?;
    rustix::io::ioctl_fionbio(&write, true).map_err(|e| trouble("fionbio", e))?;
    while rustix::io::write(&write, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&write, false).map_err(|e| trouble("fionbio", e))?;
    let mut rig = context.rig(0, 0)?;
    for at in 0..rig.vrings.len() {
        rig.describe(at, None)?;
        let (index, fd) = (rig.vrings[at].index, write.try_clone().map_err(|e| trouble("dup", e))?);
        rig.session.tell(Request::SetVringCall { index, fd: Some(fd) })?;
        rig.start(at)?;
    }
    let _ = rig.data().queue.arm();
    let _ = rig.requests_are_used(5);
    Ok(fate(&mut rig.session))
}

fn unread(context: &Context) -> Seen {
    let mut session = context.connect()?;
    let many = Request::GetFeatures.encode(false).bytes.repeat(5000);
    session.send_raw(&many, &[]);
    sleep(MOMENT);
    drop(session);
    Ok("5000 questions".into())
}

fn regions(context: &Context) -> Seen {
    let good =
        RegionDescription { gpa: Gpa(0), len: 0x1000, frontend_va: FrontendVa(0x1000_0000), offset: 0 };
    let bad = [
        RegionDescription { len: 0, ..good },
        RegionDescription { len: u64::MAX, ..good },
        RegionDescription { gpa: Gpa(u64::MAX - 0xfff), ..good },
        RegionDescription { frontend_va: FrontendVa(u64::MAX - 0xfff), ..good },
        RegionDescription { offset: u64::MAX, ..good },
        RegionDescription { offset: 0x7fff_ffff_ffff_f000, ..good },
        RegionDescription { len: 1 << 46, ..good },
    ];
    for region in bad {
        alone(context, 0, Request::SetMemTable(vec![(region, memory_file(0x1000)?)]))?;
        if context.has_protocol(pf::CONFIGURE_MEM_SLOTS) {
            alone(context, pf::CONFIGURE_MEM_SLOTS, Request::AddMemReg(region, memory_file(0x1000)?))?;
            alone(context, pf::CONFIGURE_MEM_SLOTS, Request::RemMemReg(region))?;
        }
    }
    let twice = vec![(good, memory_file(0x1000)?), (good, memory_file(0x1000)?)];
    alone(context, 0, Request::SetMemTable(twice))
}

fn vring_index(context: &Context) -> Seen {
    let guest = Guest::new(0)?;
    for index in [255, 256, 0x7fff_ffff, u32::MAX] {
        let addresses = guest.addresses(0, None);
        let requests = [
            Request::SetVringNum { index, num: 8 },
            Request::SetVringAddr { index, addresses },
            Request::SetVringBase { index, base: 0 },
            Request::GetVringBase { index },
            Request::SetVringEnable { index, enable: true },
            Request::SetVringKick { index, fd: Some(share(&event()?)?) },
            Request::SetVringCall { index, fd: Some(share(&event()?)?) },
            Request::SetVringErr { index, fd: Some(share(&event()?)?) },
            Request::SetVringErr { index, fd: None },
        ];
        for request in requests {
            alone(context, 0, request)?;
        }
    }
    Ok("four indices, nine requests".into())
}

fn vring_num(context: &Context) -> Seen {
    for num in [0, 3, 32769, 65536, u32::MAX] {
        let mut rig = context.rig(0, 0)?;
        let _ = rig.session.tell(Request::SetVringNum { index: 0, num });
        let addresses = rig.guest.addresses(0, None);
        let _ = rig.session.tell(Request::SetVringAddr { index: 0, addresses });
        let _ = rig.start(0);
        fate(&mut rig.session);
    }
    Ok("five sizes".into())
}

fn vring_addr(context: &Context) -> Seen {
    let guest = Guest::new(0)?;
    let VringAddresses { descriptor, driver, device, log } = guest.addresses(0, None);
    let outside = guest.frontend_va(LEN - 8);
    let bad = [
        VringAddresses { descriptor: FrontendVa(0), driver, device, log },
        VringAddresses { descriptor: FrontendVa(u64::MAX), driver, device, log },
        VringAddresses { descriptor: outside, driver, device, log },
        VringAddresses { descriptor, driver: outside, device, log },
        VringAddresses { descriptor, driver, device: outside, log },
        VringAddresses { descriptor: FrontendVa(descriptor.0 + 1), driver, device, log },
        VringAddresses { descriptor, driver: FrontendVa(driver.0 + 1), device, log },
        VringAddresses { descriptor, driver, device: FrontendVa(device.0 + 1), log },
        VringAddresses { descriptor, driver: descriptor, device: descriptor, log },
    ];
    for addresses in bad {
        let mut rig = context.rig(0, 0)?;
        let _ = rig.describe(0, None);
        let _ = rig.session.tell(Request::SetVringAddr { index: 0, addresses });
        let _ = rig.start(0);
        sleep(MOMENT);
        fate(&mut rig.session);
    }
    Ok("nine places".into())
}

fn vring_base(context: &Context) -> Seen {
    for base in [SIZE.into(), 0x1_0000, 0x7fff_7fff, u32::MAX] {
        let mut rig = context.rig(RING_PACKED, 0)?;
        for at in 0..rig.vrings.len() {
            rig.vrings[at].base = base;
            let _ = rig.describe(at, None);
            let _ = rig.start(at);
        }
        sleep(MOMENT);
        fate(&mut rig.session);
    }
    Ok("four bases".into())
}

fn without_memory(context: &Context) -> Seen {
    let session = context.negotiate(0, 0)?;
    let mut rig = Rig::new(session)?;
    for at in 0..rig.vrings.len() {
        let _ = rig.describe(at, None);
        let _ = rig.connect_kick(at, KickBy::Fd);
        let _ = rig.enable(at, true);
    }
    rig.kick_all();
    sleep(MOMENT);
    Ok(fate(&mut rig.session))
}

fn memory_removed(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    rig.requests_are_used(3)?;
    let elsewhere =
        RegionDescription { gpa: Gpa(0), len: 0x1000, frontend_va: FrontendVa(0x1000), offset: 0 };
    let _ = rig.session.tell(Request::SetMemTable(vec![(elsewhere, memory_file(0x1000)?)]));
    let _ = rig.offer(5);
    rig.kick_all();
    sleep(MOMENT);
    Ok(fate(&mut rig.session))
}

fn truncated(context: &Context) -> Seen {
    // All of it, rings too; and the buffers only.
    for len in [0, LEN / 4] {
        let mut rig = context.running(0, 0)?;
        rig.requests_are_used(3)?;
        if len > 0 {
            let addr = Guest::gpa(LEN - 4096);
            let chain = [Segment { addr, len: 100 }];
            let lent = crate::rig::Lent { writable: Vec::new() };
            rig.add(&chain, &[], lent)?;
            rig.guest.truncate(len)?;
            rig.publish();
        } else {
            rig.guest.truncate(0)?;
        }
        rig.kick();
        sleep(QUIET);
        fate(&mut rig.session);
        // The driver's ring must be there again before it is looked at.
        rig.guest.truncate(LEN)?;
    }
    Ok("twice".into())
}

fn short_file(context: &Context) -> Seen {
    let mut rig = Rig::new(context.negotiate(0, 0)?)?;
    let description = rig.guest.description();
    let _ = rig.session.tell(Request::SetMemTable(vec![(description, memory_file(0x1000)?)]));
    for at in 0..rig.vrings.len() {
        let _ = rig.describe(at, None);
        let _ = rig.start(at);
    }
    rig.kick_all();
    sleep(MOMENT);
    Ok(fate(&mut rig.session))
}

/// A descriptor of either format: what its last two words mean is the format's.
fn bytes_of(addr: u64, len: u32, third: u16, last: u16) -> Vec<u8> {
    let (addr, len) = (addr.to_le_bytes(), len.to_le_bytes());
    [&addr[..], &len, &third.to_le_bytes(), &last.to_le_bytes()].concat()
}

/// Writes this to a split ring of requests while it runs: descriptors from the first one on, and an available ring
/// that names the first, with this index.
fn split_ring(context: &Context, descriptors: &[(u64, u32, u16, u16)], head: u16, idx: u16) -> Seen {
    let mut rig = context.rig(0, 0)?;
    rig.start_all()?;
    let [descriptor, driver, _] = Guest::ring(rig.data().index);
    for (slot, (addr, len, flags, next)) in descriptors.iter().enumerate() {
        rig.guest.write(descriptor + slot as u64 * 16, &bytes_of(*addr, *len, *flags, *next))?;
    }
    rig.guest.write(driver + 4, &head.to_le_bytes().repeat(usize::from(SIZE)))?;
    rig.guest.write(driver + 2, &idx.to_le_bytes())?;
    rig.kick();
    sleep(MOMENT);
    let fate = fate(&mut rig.session);
    // Other front-ends come after this; the ring must be stopped by then.
    let at = rig.data_at();
    let _ = rig.stop(at);
    Ok(fate)
}

/// A place with a good request's bytes, or nothing.
const GOOD: u64 = 0x1020_0000;

fn index_jump(context: &Context) -> Seen {
    split_ring(context, &[(GOOD, 72, 0, 0)], 0, 40_000)
}

fn bad_head(context: &Context) -> Seen {
    split_ring(context, &[(GOOD, 72, 0, 0)], SIZE, 1)?;
    split_ring(context, &[(GOOD, 72, 0, 0)], 0xffff, 1)
}

fn looping(context: &Context) -> Seen {
    split_ring(context, &[(GOOD, 72, DESC_F_NEXT, 0)], 0, 1)?;
    split_ring(context, &[(GOOD, 16, DESC_F_NEXT, 1), (GOOD, 72, DESC_F_NEXT, 0)], 0, 1)
}

fn bad_next(context: &Context) -> Seen {
    split_ring(context, &[(GOOD, 16, DESC_F_NEXT, SIZE)], 0, 1)?;
    split_ring(context, &[(GOOD, 16, DESC_F_NEXT, 0xffff)], 0, 1)
}

fn addresses(context: &Context) -> Seen {
    for addr in [0, u64::MAX, u64::MAX - 16, 0x7fff_0000_0000] {
        split_ring(context, &[(addr, 72, 0, 0)], 0, 1)?;
        split_ring(context, &[(GOOD, 16, DESC_F_NEXT, 1), (addr, 72, DESC_F_WRITE, 0)], 0, 1)?;
    }
    Ok("four addresses".into())
}

fn lengths(context: &Context) -> Seen {
    for len in [0, 1, 11, u32::MAX] {
        split_ring(context, &[(GOOD, len, 0, 0)], 0, 1)?;
        split_ring(context, &[(GOOD, 16, DESC_F_NEXT, 1), (GOOD, len, DESC_F_WRITE, 0)], 0, 1)?;
    }
    Ok("four lengths".into())
}

fn direction(context: &Context) -> Seen {
    split_ring(context, &[(GOOD, 72, DESC_F_WRITE, 0)], 0, 1)?;
    split_ring(context, &[(GOOD, 16, DESC_F_NEXT | DESC_F_WRITE, 1), (GOOD, 72, 0, 0)], 0, 1)
}

fn indirect(context: &Context) -> Seen {
    let mut results = Vec::new();
    for (addr, len) in [(0, 16), (GOOD, 0), (GOOD, 15), (GOOD, !15), (u64::MAX - 15, 16)] {
        results.push(split_ring(context, &[(addr, len, DESC_F_INDIRECT, 0)], 0, 1)?);
    }
    split_ring(context, &[(GOOD, 64, DESC_F_INDIRECT | DESC_F_NEXT, 0)], 0, 1)?;
    Ok(results.swap_remove(0))
}

/// Fills a packed ring of requests with copies of a descriptor.
fn packed_ring(context: &Context, addr: u64, len: u32, id: u16, flags: u16) -> Seen {
    let mut rig = context.rig(RING_PACKED, 0)?;
    rig.start_all()?;
    let [descriptor, ..] = Guest::ring(rig.data().index);
    rig.guest.write(descriptor, &bytes_of(addr, len, id, flags).repeat(usize::from(SIZE)))?;
    rig.kick();
    sleep(MOMENT);
    let fate = fate(&mut rig.session);
    let at = rig.data_at();
    let _ = rig.stop(at);
    Ok(fate)
}

/// Available in the first lap.
const AVAILABLE: u16 = 1 << 7;

fn packed_garbage(context: &Context) -> Seen {
    packed_ring(context, u64::MAX, u32::MAX, 0xffff, 0xffff)?;
    packed_ring(context, 0, 64, 0, AVAILABLE)?;
    packed_ring(context, GOOD, 0, 7, AVAILABLE)?;
    packed_ring(context, GOOD, 64, 0xffff, AVAILABLE | DESC_F_INDIRECT)
}

fn packed_chain(context: &Context) -> Seen {
    packed_ring(context, GOOD, 64, 0, AVAILABLE | DESC_F_NEXT)
}

fn config(context: &Context) -> Seen {
    for (offset, size) in [(0, 0), (0, 256), (255, 256), (u32::MAX, 4), (4, u32::MAX)] {
        for number in [24, 25] {
            let mut session = context.negotiate(0, pf::CONFIG)?;
            let head = [offset, size, 0].map(u32::to_le_bytes).concat();
            session.send_message(number, &[head, vec![0x33; size.min(256) as usize]].concat(), &[]);
            fate(&mut session);
        }
    }
    Ok("five ranges".into())
}

fn log(context: &Context) -> Seen {
    for (len, offset) in [(0, 0), (8, 0), (u64::MAX, 0), (4096, u64::MAX), (1 << 50, 4096)] {
        let mut rig = context.running(1 << 26, pf::LOG_SHMFD)?;
        let _ = rig.session.tell(Request::SetLogBase { len, offset, fd: memory_file(4096)? });
        if context.device != crate::device::Device::Generic {
            let _ = rig.offer(3);
            rig.kick();
        }
        sleep(MOMENT);
        fate(&mut rig.session);
    }
    let mut session = context.negotiate(1 << 26, pf::LOG_SHMFD)?;
    let _ = session.tell(Request::SetLogBase { len: 4096, offset: 0, fd: share(&event()?)? });
    Ok(fate(&mut session))
}

fn inflight(context: &Context) -> Seen {
    let good = InflightDescription { len: 0x1_0000, offset: 0, queues: 2, queue_size: SIZE };
    let bad = [
        InflightDescription { queues: 0, ..good },
        InflightDescription { queues: u16::MAX, queue_size: u16::MAX, ..good },
        InflightDescription { queue_size: 0, ..good },
        InflightDescription { len: 0, ..good },
        InflightDescription { len: u64::MAX, ..good },
        InflightDescription { offset: u64::MAX, ..good },
        InflightDescription { len: 64, ..good },
    ];
    for description in bad {
        alone(context, pf::INFLIGHT_SHMFD, Request::GetInflightFd(description))?;
        let file = memory_file(0x1000)?;
        alone(context, pf::INFLIGHT_SHMFD, Request::SetInflightFd(description, file))?;
    }
    Ok("seven regions".into())
}

fn inflight_content(context: &Context) -> Seen {
    for byte in [0xff, 1] {
        for format in [0, RING_PACKED] {
            let mut rig = context.rig(format, pf::INFLIGHT_SHMFD)?;
            let region = InflightDescription {
                len: 0x8000,
                offset: 0,
                queues: rig.vrings.len() as u16,
                queue_size: SIZE,
            };
            let file = memory_file(region.len)?;
            rustix::io::pwrite(&file, &vec![byte; region.len as usize], 0)
                .map_err(|e| trouble("write to a file", e))?;
            let _ = rig.session.tell(Request::SetInflightFd(region, file));
            for at in 0..rig.vrings.len() {
                let _ = rig.describe(at, None);
                let _ = rig.start(at);
            }
            sleep(MOMENT);
            fate(&mut rig.session);
        }
    }
    Ok("two fillings, two formats".into())
}

fn iotlb(context: &Context) -> Seen {
    let good = Iotlb {
        iova: 0x1000,
        len: 0x1000,
        frontend_va: FrontendVa(0x1000),
        read: true,
        write: true,
        kind: IotlbKind::Update,
    };
    let bad = [
        good,
        Iotlb { iova: u64::MAX, len: u64::MAX, ..good },
        Iotlb { len: 0, ..good },
        Iotlb { frontend_va: FrontendVa(u64::MAX), ..good },
        Iotlb { kind: IotlbKind::Miss, ..good },
        Iotlb { kind: IotlbKind::AccessFail, ..good },
        Iotlb { kind: IotlbKind::Invalidate, len: u64::MAX, iova: 0, ..good },
    ];
    for message in bad {
        for features in [0, ringway_spec::feature::ACCESS_PLATFORM] {
            let mut rig = context.rig(features, 0)?;
            let _ = rig.session.tell(Request::Iotlb(message));
            fate(&mut rig.session);
        }
    }
    Ok("seven messages".into())
}

fn crowd(context: &Context) -> Seen {
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(context.connect()?);
    }
    for session in &mut sessions {
        session.send_raw(&Request::GetFeatures.encode(false).bytes, &[]);
    }
    sleep(MOMENT);
    // All leave at once, before any is waited for.
    sessions.iter().for_each(Session::hang_up);
    Ok("20 front-ends".into())
}
