//! Bad input: front-ends and drivers that say what they must not. Each costs itself only: one line in the log,
//! its session or its ring; the other guests' frames all arrive, and the port is there for the next.

mod common;
#[path = "hostile/packed.rs"]
mod packed;
#[path = "hostile/rings.rs"]
mod rings;
#[path = "hostile/silent.rs"]
mod silent;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Result;
use common::{FEATURES, Mark, PROTOCOL, QUIET, SOON, World, eventually, is_answered, options};
use ringway_testkit::frontend::wire::{
    self, HEADER_LEN, NO_FD, RegionDescription, VringAddress, feature, flag, protocol, request,
};
use ringway_testkit::frontend::{Event, NetFrontend};
use ringway_testkit::server::Server;

/// How far a front-end is with its set-up when it misbehaves.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Connected,
    Negotiated,
    Running,
}

/// What is to become of it.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// The session is ended.
    Session,
    /// The request, which asks for an answer, is refused; the session goes on.
    Refusal,
}

type Attack = Box<dyn FnOnce(&mut NetFrontend) -> Result<()>>;

/// One misbehaviour.
struct Case {
    name: String,
    stage: Stage,
    end: End,
    attack: Attack,
}

impl Case {
    fn new(
        name: impl Into<String>,
        stage: Stage,
        end: End,
        attack: impl FnOnce(&mut NetFrontend) -> Result<()> + 'static,
    ) -> Self {
        Self { name: name.into(), stage, end, attack: Box::new(attack) }
    }

    /// Bytes that end the session.
    fn raw(name: impl Into<String>, stage: Stage, bytes: Vec<u8>, fds: usize) -> Self {
        Self::new(name, stage, End::Session, move |guest| {
            let event = Event::new()?;
            guest.connection().send_raw(&bytes, &vec![event.as_fd(); fds])
        })
    }

    /// A request that is refused, asked with and without `NEED_REPLY`: without, the session ends.
    fn refused(
        name: &str,
        stage: Stage,
        number: u32,
        payload: impl Fn(&mut NetFrontend) -> Vec<u8> + Clone + 'static,
        fds: impl Fn(&NetFrontend) -> Vec<OwnedFd> + Clone + 'static,
    ) -> [Self; 2] {
        let (payload_too, fds_too) = (payload.clone(), fds.clone());
        [
            Self::new(format!("{name}, answered"), stage, End::Refusal, move |guest| {
                let (bytes, files) = (payload(guest), fds(guest));
                guest.connection().request_refused(number, &bytes, &borrow(&files))
            }),
            Self::new(format!("{name}, not answered"), stage, End::Session, move |guest| {
                let (bytes, files) = (payload_too(guest), fds_too(guest));
                guest.connection().request(number, &bytes, &borrow(&files))
            }),
        ]
    }
}

fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

/// Tries every case on a connection of its own. After each, one line in the log names the port, the port takes
/// an honest front-end, and the other guests have not noticed.
fn run(cases: impl IntoIterator<Item = Case>) {
    let mut world = World::new();
    for Case { name, stage, end, attack } in cases {
        let mark = Mark::now(&world.server);
        let mut guest = match stage {
            Stage::Connected => world.connect(),
            Stage::Negotiated => world.negotiate(),
            Stage::Running => world.attach(),
        };
        attack(&mut guest).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        match end {
            End::Session => {
                assert!(guest.connection().is_closed(SOON).unwrap(), "{name}: the session goes on");
            }
            End::Refusal => assert!(is_answered(&guest), "{name}: the session has ended"),
        }
        drop(guest);
        world.check();
        match end {
            End::Session => mark.expect_one_warning(&world.server, &name, "a", ""),
            // See `a_refusal_names_its_port`.
            End::Refusal => assert_eq!(common::warnings(&mark.log(&world.server)).len(), 1, "{name}"),
        }
    }
    world.finish();
}

/// A refusal is a line in the log too.
#[test]
fn a_refusal_names_its_port() {
    let mut world = World::new();
    let mark = Mark::now(&world.server);
    let guest = world.negotiate();
    guest.connection().request_refused(request::SET_VRING_NUM, &wire::vring_state(0, 0), &[]).unwrap();
    drop(guest);
    world.check();
    mark.expect_one_warning(&world.server, "a refusal", "a", "SET_VRING_NUM");
    world.finish();
}

/// Requests that the program knows, and the shortest payload of each.
const KNOWN: &[(u32, usize)] = &[
    (request::GET_FEATURES, 0),
    (request::SET_FEATURES, 8),
    (request::SET_OWNER, 0),
    (request::RESET_OWNER, 0),
    (request::SET_MEM_TABLE, 8),
    (request::SET_LOG_BASE, 16),
    (request::SET_LOG_FD, 0),
    (request::SET_VRING_NUM, 8),
    (request::SET_VRING_ADDR, 40),
    (request::SET_VRING_BASE, 8),
    (request::GET_VRING_BASE, 8),
    (request::SET_VRING_KICK, 8),
    (request::SET_VRING_CALL, 8),
    (request::SET_VRING_ERR, 8),
    (request::GET_PROTOCOL_FEATURES, 0),
    (request::SET_PROTOCOL_FEATURES, 8),
    (request::GET_QUEUE_NUM, 0),
    (request::SET_VRING_ENABLE, 8),
    (request::SEND_RARP, 8),
    (request::NET_SET_MTU, 8),
    (request::SET_BACKEND_REQ_FD, 0),
    (request::IOTLB_MSG, 32),
    (request::SET_VRING_ENDIAN, 8),
    (request::GET_CONFIG, 12),
    (request::SET_CONFIG, 12),
    (request::POSTCOPY_ADVISE, 0),
    (request::POSTCOPY_LISTEN, 0),
    (request::POSTCOPY_END, 0),
    (request::GET_INFLIGHT_FD, 24),
    (request::SET_INFLIGHT_FD, 24),
    (request::RESET_DEVICE, 0),
    (request::VRING_KICK, 8),
    (request::GET_MAX_MEM_SLOTS, 0),
    (request::ADD_MEM_REG, 40),
    (request::REM_MEM_REG, 40),
    (request::SET_STATUS, 8),
    (request::GET_STATUS, 0),
    (request::GET_SHARED_OBJECT, 16),
    (request::SET_DEVICE_STATE_FD, 8),
    (request::CHECK_DEVICE_STATE, 0),
    (request::GET_SHMEM_CONFIG, 0),
];

/// All requests that exist, some that do not, and numbers at the edges.
fn all_requests() -> impl Iterator<Item = u32> {
    (0..=46).chain([255, 1 << 16, u32::MAX])
}

/// Headers that are none: another version, a reply, a payload beyond all bounds, the end inside of it.
#[test]
fn headers() {
    use Stage::Connected;
    let header = |number, flags, size| wire::header(number, flags, size).to_vec();
    let bad = |n: u32| {
        [
            Case::raw(format!("request {n}: version 0"), Connected, header(n, 0, 0), 0),
            Case::raw(format!("request {n}: version 2"), Connected, header(n, 2, 0), 0),
            Case::raw(format!("request {n}: reply"), Connected, header(n, flag::VERSION | flag::REPLY, 0), 0),
            Case::raw(format!("request {n}: 4 GiB"), Connected, header(n, flag::VERSION, u32::MAX), 0),
            Case::raw(format!("request {n}: 4097 bytes"), Connected, header(n, flag::VERSION, 4097), 0),
        ]
    };
    run((0..=46).step_by(2).chain([u32::MAX]).flat_map(bad));
}

/// A message that ends before it is whole: the front-end closes inside of it.
#[test]
fn cut_messages() {
    let mut world = World::new();
    for (number, len) in KNOWN.iter().copied().filter(|(n, _)| n % 3 == 0 || *n == request::SET_FEATURES) {
        let message = wire::message(number, 0, &vec![0; len]);
        for cut in [1, HEADER_LEN - 1, HEADER_LEN, HEADER_LEN + 1, message.len() - 1] {
            if cut >= message.len() {
                continue;
            }
            let name = format!("request {number}: cut after {cut} bytes");
            let mark = Mark::now(&world.server);
            let guest = world.negotiate();
            guest.connection().send_raw(&message[..cut], &[]).unwrap();
            drop(guest);
            mark.wait_for(&mut world.server, "WARN");
            world.check();
            mark.expect_one_warning(&world.server, &name, "a", "inside a message");
        }
    }
    world.finish();
}

/// A byte too few, a byte too many, nothing at all.
#[test]
fn payload_sizes() {
    let cases = KNOWN.iter().flat_map(|&(number, len)| {
        let sizes = [0, len.saturating_sub(1), len + 1, 4096];
        let wrong = sizes.into_iter().filter(move |&s| s != len);
        wrong.map(move |size| {
            let message = wire::message(number, 0, &vec![0; size]);
            // SET_MEM_TABLE may have up to eight regions more than it counts.
            let message = if number == request::SET_MEM_TABLE && size == len + 1 {
                wire::message(number, 0, &wire::mem_table(1, &[]))
            } else {
                message
            };
            Case::raw(format!("request {number}: {size} bytes"), Stage::Negotiated, message, 0)
        })
    });
    run(cases);
}

/// Requests that do not exist or are not offered end the session, or are refused if an answer is asked for.
#[test]
fn unknown_requests() {
    let is_known = |n: u32| KNOWN.iter().any(|(known, _)| *known == n);
    let unknown = all_requests().filter(move |n| !is_known(*n));
    run(unknown.map(|n| {
        let message = wire::message(n, 0, &[0; 8]);
        Case::raw(format!("request {n}"), Stage::Negotiated, message, 0)
    }));
}

/// The same, with an answer asked for.
#[test]
fn unknown_requests_are_refused() {
    let mut world = World::new();
    let guest = world.negotiate();
    for number in all_requests().filter(|n| !KNOWN.iter().any(|(known, _)| known == n)) {
        guest.connection().request_refused(number, &[0; 8], &[]).unwrap();
    }
    assert!(is_answered(&guest));
    drop(guest);
    world.check();
    world.finish();
}

/// File descriptors: too many for any message, or where none belong, or none where one is needed.
#[test]
fn file_descriptors() {
    let one = |number, len: usize, fds| {
        let message = wire::message(number, 0, &vec![0; len]);
        Case::raw(format!("request {number}: {fds} descriptors"), Stage::Negotiated, message, fds)
    };
    let takes_fds = [
        request::SET_MEM_TABLE,
        request::SET_LOG_BASE,
        request::SET_LOG_FD,
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
        request::SET_BACKEND_REQ_FD,
        request::SET_INFLIGHT_FD,
        request::ADD_MEM_REG,
        request::REM_MEM_REG,
        request::SET_DEVICE_STATE_FD,
    ];
    let unexpected = KNOWN.iter().filter(|(n, _)| !takes_fds.contains(n)).map(|&(n, len)| one(n, len, 1));
    let too_many = KNOWN.iter().step_by(3).flat_map(|&(n, len)| [one(n, len, 9), one(n, len, 40)]);
    let wrong_count = [
        one(request::SET_MEM_TABLE, 8, 1),
        one(request::SET_LOG_BASE, 16, 0),
        one(request::SET_LOG_BASE, 16, 2),
        one(request::SET_LOG_FD, 0, 0),
        one(request::SET_LOG_FD, 0, 2),
        one(request::SET_INFLIGHT_FD, 24, 0),
        one(request::SET_INFLIGHT_FD, 24, 2),
        one(request::SET_DEVICE_STATE_FD, 8, 0),
        one(request::SET_DEVICE_STATE_FD, 8, 2),
        one(request::SET_VRING_KICK, 8, 0),
        one(request::SET_VRING_CALL, 8, 0),
        one(request::SET_VRING_ERR, 8, 0),
        one(request::SET_VRING_KICK, 8, 2),
        one(request::SET_VRING_CALL, 8, 2),
        one(request::SET_VRING_ERR, 8, 8),
        one(request::SET_BACKEND_REQ_FD, 0, 0),
        one(request::SET_BACKEND_REQ_FD, 0, 2),
        one(request::ADD_MEM_REG, 40, 0),
        one(request::ADD_MEM_REG, 40, 2),
        one(request::REM_MEM_REG, 40, 2),
    ];
    let beside_no_fd = [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR].map(|n| {
        let message = wire::message(n, 0, &NO_FD.to_le_bytes());
        Case::raw(format!("request {n}: a descriptor beside NO_FD"), Stage::Negotiated, message, 1)
    });
    run(unexpected.chain(too_many).chain(wrong_count).chain(beside_no_fd));
}

fn no_fds(_: &NetFrontend) -> Vec<OwnedFd> {
    Vec::new()
}

/// Numbers of rings and sizes that cannot be.
#[test]
fn ring_values() {
    use Stage::{Negotiated, Running};
    let state = |name: &str, stage, number, index, value| {
        Case::refused(name, stage, number, move |_| wire::vring_state(index, value).to_vec(), no_fds)
    };
    let mut cases = Vec::new();
    for num in [0, 32769, 65535, 65536, 1 << 31, u32::MAX] {
        cases.extend(state(&format!("size {num}"), Negotiated, request::SET_VRING_NUM, 0, num));
    }
    for index in [17, 254, 1000, u32::MAX] {
        for number in [request::SET_VRING_NUM, request::SET_VRING_BASE, request::SET_VRING_ENABLE] {
            cases.extend(state(&format!("request {number}, ring {index}"), Negotiated, number, index, 1));
        }
        let address = VringAddress { index, ..VringAddress::default() }.to_bytes().to_vec();
        cases.extend(Case::refused(
            &format!("addresses of ring {index}"),
            Negotiated,
            request::SET_VRING_ADDR,
            move |_| address.clone(),
            no_fds,
        ));
        let message = wire::message(request::GET_VRING_BASE, 0, &wire::vring_state(index, 0));
        cases.push(Case::raw(format!("base of ring {index}?"), Negotiated, message, 0));
    }
    for number in [request::SET_VRING_KICK, request::SET_VRING_CALL, request::SET_VRING_ERR] {
        for value in [17, 254] {
            cases.extend(Case::refused(
                &format!("request {number}, ring {value}"),
                Negotiated,
                number,
                move |_| (value | NO_FD).to_le_bytes().to_vec(),
                no_fds,
            ));
        }
        let message = wire::message(number, 0, &(1u64 << 9).to_le_bytes());
        cases.push(Case::raw(format!("request {number}: bit 9"), Negotiated, message, 0));
    }
    let message = wire::message(request::SET_VRING_ENABLE, 0, &wire::vring_state(0, 2));
    cases.push(Case::raw("enable 2", Negotiated, message, 0));
    cases.extend(state("size of a running ring", Running, request::SET_VRING_NUM, 0, 8));
    cases.extend(state("base of a running ring", Running, request::SET_VRING_BASE, 0, 8));
    run(cases);
}

/// Sizes and bases that cannot be in the format that was negotiated: the ring does not start.
#[test]
fn rings_of_a_format() {
    let case = |packed: u64, size, base, end| {
        let name = format!("features {packed:#x}, size {size}, base {base:#x}");
        Case::new(name, Stage::Negotiated, end, move |guest| {
            let features = guest.features() | packed;
            guest.tell(request::SET_FEATURES, &features.to_le_bytes(), &[])?;
            guest.share_memory()?;
            let address = guest.vring_address(0).to_bytes();
            guest.tell(request::SET_VRING_NUM, &wire::vring_state(0, size), &[])?;
            guest.tell(request::SET_VRING_BASE, &wire::vring_state(0, base), &[])?;
            guest.tell(request::SET_VRING_ADDR, &address, &[])?;
            let kick = guest.ring(0).kick.as_fd().try_clone_to_owned()?;
            let c = guest.connection();
            match end {
                End::Refusal => c.request_refused(request::SET_VRING_KICK, &[0; 8], &[kick.as_fd()]),
                End::Session => c.request(request::SET_VRING_KICK, &[0; 8], &[kick.as_fd()]),
            }
        })
    };
    let cases = [
        (0, 3, 0),
        (0, 12, 0),
        (0, 8, 0x1_0000),
        (0, 8, 0x8000_8000),
        (0, 8, u32::MAX),
        // Outside of the ring, or the device behind by more than the ring has.
        (feature::RING_PACKED, 8, 8),
        (feature::RING_PACKED, 8, 0x8007_8008),
        (feature::RING_PACKED, 8, 0x8003_0004),
        (feature::RING_PACKED, 3, 0x8003_8003),
        (feature::RING_PACKED, 8, u32::MAX),
    ];
    let ends = |(packed, size, base)| [End::Refusal, End::Session].map(|end| case(packed, size, base, end));
    run(cases.into_iter().flat_map(ends));
}

/// Features that were not offered, and requests of protocol features that were not acked.
#[test]
fn features() {
    use Stage::{Connected, Negotiated};
    let number = |name: &str, request, value: u64| {
        Case::refused(name, Negotiated, request, move |_| value.to_le_bytes().to_vec(), no_fds)
    };
    let mut cases = Vec::new();
    for bit in [4, 18, 33, 36, 38, 63] {
        cases.extend(number(&format!("feature {bit}"), request::SET_FEATURES, FEATURES | 1 << bit));
    }
    for bit in [6, 7, 8, 11, 17, 18, 21, 22, 63] {
        let features = protocol::REPLY_ACK | 1 << bit;
        cases.extend(number(&format!("protocol feature {bit}"), request::SET_PROTOCOL_FEATURES, features));
    }
    cases.extend(number("an MTU though MTU is not offered", request::NET_SET_MTU, 1500));
    cases.extend(number("a status though it was not negotiated", request::SET_STATUS, 1));
    let config = [&[0; 4][..], &4u32.to_le_bytes(), &[0; 4], &[0; 4]].concat();
    cases.extend(Case::refused(
        "a write to the configuration",
        Negotiated,
        request::SET_CONFIG,
        move |_| config.clone(),
        no_fds,
    ));
    for (n, len) in KNOWN.iter().copied().filter(|(n, _)| {
        [
            request::NET_SET_MTU,
            request::SET_BACKEND_REQ_FD,
            request::SET_CONFIG,
            request::RESET_DEVICE,
            request::SET_STATUS,
            request::GET_STATUS,
            request::ADD_MEM_REG,
            request::REM_MEM_REG,
        ]
        .contains(n)
    }) {
        let fds = usize::from([request::ADD_MEM_REG, request::SET_BACKEND_REQ_FD].contains(&n));
        let message = wire::message(n, flag::NEED_REPLY, &vec![0; len]);
        cases.push(Case::raw(format!("request {n} before protocol features"), Connected, message, fds));
    }
    run(cases);
}

// ---- Memory ----

const PAGE: u64 = 4096;

/// A file of `len` bytes.
fn memfd(len: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, len).unwrap();
    file
}

fn files(count: usize) -> impl Fn(&NetFrontend) -> Vec<OwnedFd> + Clone {
    move |_| (0..count).map(|_| memfd(4 * PAGE)).collect()
}

fn region(gpa: u64, size: u64, mmap_offset: u64) -> RegionDescription {
    RegionDescription { gpa, size, frontend_va: 0x7000_0000_0000 + (gpa & 0xffff_ffff), mmap_offset }
}

/// Tables that cannot be.
#[test]
fn memory_tables() {
    use Stage::{Negotiated, Running};
    let table = |name: &str, regions: &[RegionDescription]| {
        let (payload, count) = (wire::mem_table(regions.len() as u32, regions), regions.len());
        Case::refused(name, Negotiated, request::SET_MEM_TABLE, move |_| payload.clone(), files(count))
    };
    let mut cases = Vec::new();
    for (name, regions) in [
        ("overlap by a byte", &[region(0, 2 * PAGE, 0), region(2 * PAGE - 1, PAGE, 0)][..]),
        ("one in the other", &[region(0, 4 * PAGE, 0), region(PAGE, PAGE, 0)]),
        ("the same twice", &[region(0, PAGE, 0), region(0, PAGE, 0)]),
        ("empty", &[region(0, 0, 0)]),
        ("past the file's end", &[region(0, 4 * PAGE + 1, 0)]),
        ("past the file's end by its offset", &[region(0, 4 * PAGE, PAGE)]),
        ("wholly past the file's end", &[region(0, PAGE, 4 * PAGE)]),
        ("offset and size overflow", &[region(0, 2 * PAGE, u64::MAX - PAGE)]),
        ("the largest size", &[region(0, u64::MAX, 0)]),
        ("half of all addresses", &[region(0, 1 << 63, 0)]),
        ("guest addresses overflow", &[region(u64::MAX - PAGE + 2, PAGE, 0)]),
        (
            "front-end addresses overflow",
            &[RegionDescription { gpa: 0, size: PAGE, frontend_va: u64::MAX - 1, mmap_offset: 0 }],
        ),
    ] {
        cases.extend(table(name, regions));
    }
    let nine: Vec<_> = (0..9).map(|n| region(n * PAGE, PAGE, 0)).collect();
    for (name, count, regions, fds) in [
        ("nine regions", 9, &nine[..], 8),
        ("more regions counted than sent", 2, &nine[..1], 2),
        ("a count of 2³²-1", u32::MAX, &nine[..1], 1),
        ("nine sent, one counted", 1, &nine[..], 1),
        ("more descriptors than regions", 1, &nine[..1], 2),
        ("fewer descriptors than regions", 2, &nine[..2], 1),
        ("no descriptor", 1, &nine[..1], 0),
    ] {
        let message =
            wire::message(request::SET_MEM_TABLE, flag::NEED_REPLY, &wire::mem_table(count, regions));
        cases.push(Case::raw(name, Negotiated, message, fds));
    }
    cases.extend(Case::refused(
        "a table without the rings that run",
        Running,
        request::SET_MEM_TABLE,
        |_| wire::mem_table(1, &[region(1 << 40, PAGE, 0)]),
        files(1),
    ));
    run(cases);
}

/// Files that are no memory.
#[test]
fn files_that_cannot_be_mapped() {
    let open = |path: &'static str| {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        move |_: &NetFrontend| vec![rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap()]
    };
    let payload = |_: &mut NetFrontend| wire::mem_table(1, &[region(0, PAGE, 0)]);
    let eventfd = |_: &NetFrontend| vec![Event::new().unwrap().as_fd().try_clone_to_owned().unwrap()];
    let pipe = |_: &NetFrontend| vec![rustix::pipe::pipe().unwrap().0];
    let sealed = |_: &NetFrontend| {
        use rustix::fs::{MemfdFlags, SealFlags};
        let file = rustix::fs::memfd_create("sealed", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, 4 * PAGE).unwrap();
        rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
        vec![file]
    };
    let case = |name, fds| Case::refused(name, Stage::Negotiated, request::SET_MEM_TABLE, payload, fds);
    let mut cases = Vec::new();
    cases.extend(case("a directory", open("/")));
    cases.extend(case("/dev/null", open("/dev/null")));
    cases.extend(case("a file that is not ours to write", open("/proc/self/exe")));
    let case = |name, fds: fn(&NetFrontend) -> Vec<OwnedFd>| {
        Case::refused(name, Stage::Negotiated, request::SET_MEM_TABLE, payload, fds)
    };
    cases.extend(case("an eventfd", eventfd));
    cases.extend(case("a pipe", pipe));
    cases.extend(case("a memfd sealed against writing", sealed));
    run(cases);
}

/// [VU-BE-rem-mem-reg-04] Regions one by one: what is there cannot come again, what is not there cannot go.
#[test]
fn memory_slots() {
    use Stage::{Negotiated, Running};
    let slot = |name: &str, stage, number, regions: fn(&NetFrontend) -> RegionDescription, fds| {
        Case::refused(name, stage, number, move |g| wire::single_region(&regions(g)), files(fds))
    };
    let (add, rem) = (request::ADD_MEM_REG, request::REM_MEM_REG);
    let own = |g: &NetFrontend| g.memory().descriptions()[0];
    let mut cases = Vec::new();
    cases.extend(slot(
        "the same again",
        Running,
        add,
        |g| RegionDescription { size: PAGE, mmap_offset: 0, ..g.memory().descriptions()[0] },
        1,
    ));
    cases.extend(slot("an empty region", Negotiated, add, |_| region(0, 0, 0), 1));
    cases.extend(slot("past the end", Negotiated, add, |_| region(0, 5 * PAGE, 0), 1));
    cases.extend(slot("never added", Negotiated, rem, |_| region(0, PAGE, 0), 0));
    cases.extend(slot("never added, with a file", Negotiated, rem, |_| region(0, PAGE, 0), 1));
    cases.extend(slot(
        "another size",
        Running,
        rem,
        |g| RegionDescription { size: PAGE, ..g.memory().descriptions()[0] },
        0,
    ));
    cases.extend(slot("with the rings that run", Running, rem, own, 0));
    run(cases);
}

/// As many regions as are offered are taken, and not one more; all of them go with the session.
#[test]
fn the_last_memory_slot() {
    let mut world = World::new();
    let before = world.server.guest_mappings().unwrap();
    let guest = world.negotiate();
    let slots = guest.connection().request_u64(request::GET_MAX_MEM_SLOTS).unwrap();
    let file = memfd(PAGE);
    let add = |n: u64| wire::single_region(&region(n * PAGE, PAGE, 0));
    for n in 0..slots {
        guest.connection().request_accepted(request::ADD_MEM_REG, &add(n), &[file.as_fd()]).unwrap();
    }
    guest.connection().request_refused(request::ADD_MEM_REG, &add(slots), &[file.as_fd()]).unwrap();
    assert_eq!(world.server.guest_mappings().unwrap() - before, slots as usize);
    drop(guest);
    world.check();
    eventually("the mappings go", || world.server.guest_mappings().unwrap() == before);
    world.finish();
}

// ---- Addresses of rings ----

/// Ring addresses that cannot be: the ring does not start.
#[test]
fn ring_addresses() {
    type Spoil = fn(&mut VringAddress);
    let spoiled: &[(&str, Spoil)] = &[
        ("descriptors at 0", |a| a.descriptor = 0),
        ("available ring at 0", |a| a.available = 0),
        ("used ring at 0", |a| a.used = 0),
        ("descriptors at odd 8", |a| a.descriptor += 8),
        ("available ring at an odd byte", |a| a.available += 1),
        ("used ring at odd 2", |a| a.used += 2),
        ("descriptors across the region's end", |a| a.descriptor = 0x7a00_0000_0000 + (128 << 20) - 16),
        ("available ring across the region's end", |a| a.available = 0x7a00_0000_0000 + (128 << 20) - 2),
        ("used ring across the region's end", |a| a.used = 0x7a00_0000_0000 + (128 << 20) - 4),
        ("descriptors before the region", |a| a.descriptor = 0x7a00_0000_0000 - 16),
        ("descriptors that wrap", |a| a.descriptor = u64::MAX - 15),
        ("available ring that wraps", |a| a.available = u64::MAX - 1),
        ("used ring that wraps", |a| a.used = u64::MAX - 3),
        ("descriptors at the end of addresses", |a| a.descriptor = 1 << 63),
    ];
    let cases = spoiled.iter().flat_map(|&(name, spoil)| {
        let payload = move |guest: &mut NetFrontend| {
            let mut address = guest.vring_address(1);
            spoil(&mut address);
            address.to_bytes().to_vec()
        };
        Case::refused(name, Stage::Running, request::SET_VRING_ADDR, payload, no_fds)
    });
    run(cases);
}

/// Everything about a ring before there is memory: it does not start.
#[test]
fn rings_before_memory() {
    let describe = |guest: &mut NetFrontend| -> Result<()> {
        let features = guest.features().to_le_bytes();
        let address = guest.vring_address(0).to_bytes();
        guest.tell(request::SET_VRING_NUM, &wire::vring_state(0, 16), &[])?;
        guest.tell(request::SET_VRING_BASE, &wire::vring_state(0, 0), &[])?;
        guest.tell(request::SET_VRING_ADDR, &address, &[])?;
        guest.tell(request::SET_FEATURES, &features, &[])
    };
    let kick = request::SET_VRING_KICK;
    run([
        Case::new("answered", Stage::Negotiated, End::Refusal, move |guest| {
            describe(guest)?;
            let event = guest.ring(0).kick.as_fd().try_clone_to_owned()?;
            guest.connection().request_refused(kick, &0u64.to_le_bytes(), &[event.as_fd()])
        }),
        Case::new("not answered", Stage::Negotiated, End::Session, move |guest| {
            describe(guest)?;
            let event = guest.ring(0).kick.as_fd().try_clone_to_owned()?;
            guest.connection().request(kick, &0u64.to_le_bytes(), &[event.as_fd()])
        }),
    ]);
}

// ---- Event file descriptors ----

/// A kick, call or err that is a plain file is refused, and told with its port; the ring goes on as it was.
#[test]
fn a_kick_that_is_a_file() {
    let mut world = World::new();
    let mut a = world.attach();
    let base = a.stop_ring(1).unwrap();
    a.start_ring(1, base).unwrap();
    for (message, name) in [
        (request::SET_VRING_KICK, "SET_VRING_KICK"),
        (request::SET_VRING_CALL, "SET_VRING_CALL"),
        (request::SET_VRING_ERR, "SET_VRING_ERR"),
    ] {
        let mark = Mark::now(&world.server);
        a.connection().request_refused(message, &1u64.to_le_bytes(), &[memfd(8).as_fd()]).unwrap();
        mark.expect_one_warning(&world.server, "a file of no events", "a", name);
    }
    common::exchange((&mut a, World::A), (&mut world.d, World::D));
    world.honest.check();
    drop(a);
    world.check();
    world.finish();
}

/// A guest on the port a whose calls go to a full pipe.
fn attach_with_a_full_call(world: &mut World) -> (NetFrontend, OwnedFd, OwnedFd) {
    let a = world.attach();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    fill(&writer);
    for ring in 0..2u64 {
        a.tell(request::SET_VRING_CALL, &ring.to_le_bytes(), &[writer.as_fd()]).unwrap();
    }
    (a, reader, writer)
}

/// A call that is a full pipe which nobody reads does not hold anybody up.
#[test]
fn a_call_that_is_a_full_pipe() {
    let mut world = World::new();
    let (mut a, reader, _writer) = attach_with_a_full_call(&mut world);
    common::exchange((&mut a, World::A), (&mut world.d, World::D));
    world.honest.check();
    drop((a, reader));
    world.check();
    world.finish();
}

/// The same, and the front-end takes the mode back that keeps a writer from waiting: the file is its own too.
#[test]
fn a_call_that_blocks() {
    use rustix::fs::OFlags;
    let mut world = World::new();
    let (mut a, reader, writer) = attach_with_a_full_call(&mut world);
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags - OFlags::NONBLOCK).unwrap();
    // The worker has taken the new call by then.
    std::thread::sleep(QUIET);
    a.send_frame(&common::numbered(World::D, World::A, 1)).unwrap();
    std::thread::sleep(QUIET);
    world.honest.check();
    drop((a, reader));
    world.check();
    world.finish();
}

/// Fills a pipe.
fn fill(writer: &OwnedFd) {
    rustix::fs::fcntl_setfl(writer, rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(writer, &[0; 4096]).is_ok() {}
}

/// A front-end that asks and asks and never reads the answers is cut off.
#[test]
fn answers_that_nobody_reads() {
    let mut world = World::new();
    let mark = Mark::now(&world.server);
    let guest = world.negotiate();
    let questions = wire::message(request::GET_FEATURES, 0, &[]).repeat(1000);
    let asked = (0..1000).take_while(|_| guest.connection().send_raw(&questions, &[]).is_ok()).count();
    assert!(asked < 1000, "a million questions");
    world.honest.check();
    drop(guest);
    world.check();
    mark.expect_one_warning(&world.server, "unread answers", "a", "does not read");
    world.finish();
}

/// A front-end that leaves before its answers come has done nothing wrong.
#[test]
fn a_front_end_that_does_not_wait_for_the_answer() {
    let mut world = World::new();
    let mark = Mark::now(&world.server);
    for _ in 0..50 {
        let guest = world.negotiate();
        guest.connection().send_raw(&wire::message(request::GET_FEATURES, 0, &[]).repeat(100), &[]).unwrap();
        drop(guest);
    }
    world.check();
    let log = mark.log(&world.server);
    assert_eq!(common::warnings(&log), [""; 0]);
    world.finish();
}

/// A vring that is none of the pairs' unless the control queue was negotiated.
#[test]
fn a_vring_past_the_pairs() {
    for features in [FEATURES, FEATURES | wire::feature::NET_CTRL_VQ, FEATURES | wire::feature::NET_MQ] {
        let mut world = World::new();
        let mut a = common::up(&world.server, "a", features, options());
        let address = VringAddress { index: 16, ..a.vring_address(1) };
        let event = Event::new().unwrap();
        a.stop().unwrap();
        // Refused or served: the other guests must not notice.
        let c = a.connection();
        c.request_with_ack(request::SET_VRING_NUM, &wire::vring_state(16, 16), &[]).unwrap();
        c.request_with_ack(request::SET_VRING_ADDR, &address.to_bytes(), &[]).unwrap();
        c.request_with_ack(request::SET_VRING_KICK, &16u64.to_le_bytes(), &[event.as_fd()]).unwrap();
        world.honest.check();
        drop(a);
        world.check();
        world.finish();
    }
}

/// Every protocol feature that the tests ask for is one that is offered.
#[test]
fn the_protocol_features_are_offered() {
    let world = World::new();
    let guest = world.negotiate();
    assert_eq!(guest.protocol_features(), PROTOCOL);
    drop(guest);
    world.finish();
}

// ---- Storms ----

/// A front-end that sends message after message, those included that stop and start its rings, holds up neither
/// traffic nor another's attaching.
#[test]
fn a_storm_of_messages() {
    let mut world = World::new();
    let mut a = world.attach();
    common::exchange((&mut a, World::A), (&mut world.d, World::D));
    let question = wire::message(request::GET_FEATURES, 0, &[]);
    for round in 0..300 {
        a.share_memory().unwrap();
        a.connection().send_raw(&question.repeat(50), &[]).unwrap();
        for _ in 0..50 {
            a.connection().reply(request::GET_FEATURES).unwrap();
        }
        if round % 30 == 0 {
            let mut e = common::up(&world.server, "e", FEATURES, options());
            common::exchange((&mut e, common::mac(0xe)), (&mut world.d, World::D));
            world.honest.check();
        }
    }
    common::exchange((&mut a, World::A), (&mut world.d, World::D));
    drop(a);
    world.check();
    world.finish();
}

/// A ring that cannot start is no reason to refuse another.
#[test]
fn a_ring_that_cannot_start_is_alone() {
    let mut world = World::new();
    let mut a = world.attach();
    let bad = VringAddress { descriptor: 1 << 60, ..a.vring_address(0) };
    a.connection().request_refused(request::SET_VRING_ADDR, &bad.to_bytes(), &[]).unwrap();
    let base = a.stop_ring(1).unwrap();
    a.restart_ring(1, base).expect("the other ring starts");
    a.send_frame(&common::numbered(World::D, World::A, 1)).unwrap();
    common::expect_number(&mut world.d, World::A, 1);
    drop(a);
    world.check();
    world.finish();
}

/// When a front-end has used up the program's file descriptors, others cannot attach; that is told once, costs
/// no processor time, and ends with that front-end.
#[test]
fn no_file_descriptor_is_left() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    const LIMIT: u64 = 40;
    let mut server = common::switch(&["a", "b"]);
    let pid = Pid::from_raw(server.process().pid().cast_signed());
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) }).unwrap();

    let mut a = NetFrontend::connect(server.socket("a"), options()).unwrap();
    a.negotiate(FEATURES).unwrap();
    let event = Event::new().unwrap();
    // Those that cost one descriptor each, whatever the program held before: a kick starts a ring, which takes
    // more than one, and would be refused with one left.
    let mut requests = (0..17u64)
        .flat_map(|ring| [request::SET_VRING_CALL, request::SET_VRING_ERR].map(|number| (number, ring)));
    let is_full = |server: &mut Server| {
        // What it inherited may have numbers beyond the limit.
        let entries = std::fs::read_dir(format!("/proc/{}/fd", server.process().pid())).unwrap();
        let numbers = entries.filter_map(|e| e.unwrap().file_name().to_str()?.parse::<u64>().ok());
        numbers.filter(|n| *n < LIMIT).count() == LIMIT as usize
    };
    while !is_full(&mut server) {
        let (number, ring) = requests.next().expect("34 file descriptors are enough");
        a.connection().request_accepted(number, &ring.to_le_bytes(), &[event.as_fd()]).unwrap();
    }
    let before = server.cpu_ticks().unwrap();
    let waiting = NetFrontend::connect(server.socket("b"), options()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let ticks = server.cpu_ticks().unwrap() - before;
    let lines = common::warnings(&server.output()).len();
    assert!(ticks <= 2 && lines <= 2, "{ticks} ticks of 10 ms, {lines} lines in 0.5 s");
    drop(a);
    eventually("the one that waited is served", || is_answered(&waiting));
}
