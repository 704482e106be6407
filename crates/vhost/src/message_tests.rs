//! The codec: what every request looks like, and all that is refused.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use ringway_memory::{FrontendVa, Gpa};
use rustix::event::{EventfdFlags, eventfd};

use super::*;

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn some_fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")).collect()
}

fn header(request: u32, flags: u32, size: u32) -> Result<Header, MessageError> {
    let bytes = words32(&[request, flags, size]);
    Header::decode(bytes.try_into().expect("12 bytes"), Kind::Request)
}

fn decode_with(request: u32, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Request, MessageError> {
    let header = header(request, 1, payload.len() as u32).expect("a good header");
    Request::decode(&header, payload, fds)
}

fn decode(request: u32, payload: &[u8], fds: usize) -> Result<Request, MessageError> {
    decode_with(request, payload, some_fds(fds))
}

/// A memory table that says it has `count` regions and has `present`.
fn mem_table(count: u32, present: u64) -> Vec<u8> {
    let regions = (0..present).flat_map(|n| words64(&[n << 32, 0x1000 + n, 0x7000_0000 + n, n << 12]));
    words32(&[count, 0]).into_iter().chain(regions).collect()
}

fn region(n: u64) -> RegionDescription {
    RegionDescription {
        gpa: Gpa(n << 32),
        len: 0x1000 + n,
        frontend_va: FrontendVa(0x7000_0000 + n),
        offset: n << 12,
    }
}

/// A region alone, as added and removed.
fn one_region(n: u64) -> Vec<u8> {
    words64(&[0xaaaa, n << 32, 0x1000 + n, 0x7000_0000 + n, n << 12])
}

const INFLIGHT: InflightDescription =
    InflightDescription { len: 0x3000, offset: 0x1000, queues: 2, queue_size: 256 };

fn inflight() -> Vec<u8> {
    [words64(&[0x3000, 0x1000]), words32(&[2 | 256 << 16, 0])].concat()
}

/// A message about translations with these permissions and of this type.
fn iotlb(access: u8, kind: u8) -> Vec<u8> {
    [words64(&[0x1000, 0x2000, 0x3000]), vec![access, kind, 0, 0, 0, 0, 0, 0]].concat()
}

/// A request's number, a good payload, the number of file descriptors, and what it means.
type Sample = (u32, Vec<u8>, usize, fn(&Request) -> bool);

/// Every request.
fn samples() -> Vec<Sample> {
    const WIDE: u64 = 0x0123_4567_89ab_cdef;
    let addresses = [words32(&[3, 1]), words64(&[0x1000, 0x3000, 0x2000, 0x4000])].concat();
    let config = [words32(&[20, 5, 1]), b"hello".to_vec()].concat();
    vec![
        (1, vec![], 0, |r| matches!(r, Request::GetFeatures)),
        (2, words64(&[WIDE]), 0, |r| matches!(r, Request::SetFeatures(WIDE))),
        (3, vec![], 0, |r| matches!(r, Request::SetOwner)),
        (4, vec![], 0, |r| matches!(r, Request::ResetOwner)),
        (5, mem_table(8, 8), 8, |r| matches!(r, Request::SetMemTable(t) if t.len() == 8)),
        (6, words64(&[0x2000, 0x1000]), 1, |r| {
            matches!(r, Request::SetLogBase { len: 0x2000, offset: 0x1000, fd: _ })
        }),
        (7, vec![], 1, |r| matches!(r, Request::SetLogFd(_))),
        (8, words32(&[2, 256]), 0, |r| matches!(r, Request::SetVringNum { index: 2, num: 256 })),
        (9, addresses, 0, |r| {
            let wanted = VringAddresses {
                descriptor: FrontendVa(0x1000),
                driver: FrontendVa(0x2000),
                device: FrontendVa(0x3000),
                log: Some(Gpa(0x4000)),
            };
            matches!(r, Request::SetVringAddr { index: 3, addresses } if *addresses == wanted)
        }),
        (10, words32(&[2, 77]), 0, |r| matches!(r, Request::SetVringBase { index: 2, base: 77 })),
        (11, words32(&[2, 0]), 0, |r| matches!(r, Request::GetVringBase { index: 2 })),
        (12, words64(&[0xff]), 1, |r| matches!(r, Request::SetVringKick { index: 0xff, fd: Some(_) })),
        (12, words64(&[0x103]), 0, |r| matches!(r, Request::SetVringKick { index: 3, fd: None })),
        (13, words64(&[4]), 1, |r| matches!(r, Request::SetVringCall { index: 4, fd: Some(_) })),
        (13, words64(&[0x104]), 0, |r| matches!(r, Request::SetVringCall { index: 4, fd: None })),
        (14, words64(&[5]), 1, |r| matches!(r, Request::SetVringErr { index: 5, fd: Some(_) })),
        (14, words64(&[0x105]), 0, |r| matches!(r, Request::SetVringErr { index: 5, fd: None })),
        (15, vec![], 0, |r| matches!(r, Request::GetProtocolFeatures)),
        (16, words64(&[WIDE]), 0, |r| matches!(r, Request::SetProtocolFeatures(WIDE))),
        (17, vec![], 0, |r| matches!(r, Request::GetQueueNum)),
        (18, words32(&[1, 1]), 0, |r| matches!(r, Request::SetVringEnable { index: 1, enable: true })),
        (18, words32(&[1, 0]), 0, |r| matches!(r, Request::SetVringEnable { index: 1, enable: false })),
        (19, words64(&[WIDE]), 0, |r| matches!(r, Request::SendRarp(WIDE))),
        (20, words64(&[1500]), 0, |r| matches!(r, Request::NetSetMtu(1500))),
        (21, vec![], 1, |r| matches!(r, Request::SetBackendReqFd(_))),
        (22, iotlb(3, 2), 0, |r| {
            let wanted = Iotlb {
                iova: 0x1000,
                len: 0x2000,
                frontend_va: FrontendVa(0x3000),
                read: true,
                write: true,
                kind: IotlbKind::Update,
            };
            matches!(r, Request::Iotlb(message) if *message == wanted)
        }),
        (23, words32(&[3, 1]), 0, |r| matches!(r, Request::SetVringEndian { index: 3, is_big: true })),
        (24, config.clone(), 0, |r| matches!(r, Request::GetConfig { offset: 20, size: 5, flags: 1 })),
        (
            25,
            config,
            0,
            |r| matches!(r, Request::SetConfig { offset: 20, flags: 1, bytes } if bytes == b"hello"),
        ),
        (28, vec![], 0, |r| matches!(r, Request::PostcopyAdvise)),
        (29, vec![], 0, |r| matches!(r, Request::PostcopyListen)),
        (30, vec![], 0, |r| matches!(r, Request::PostcopyEnd)),
        (31, inflight(), 0, |r| matches!(r, Request::GetInflightFd(d) if *d == INFLIGHT)),
        (32, inflight(), 1, |r| matches!(r, Request::SetInflightFd(d, _) if *d == INFLIGHT)),
        (34, vec![], 0, |r| matches!(r, Request::ResetDevice)),
        (35, words32(&[3, 0]), 0, |r| matches!(r, Request::VringKick { index: 3 })),
        (36, vec![], 0, |r| matches!(r, Request::GetMaxMemSlots)),
        (37, one_region(3), 1, |r| matches!(r, Request::AddMemReg(d, _) if *d == region(3))),
        (38, one_region(3), 0, |r| matches!(r, Request::RemMemReg(d) if *d == region(3))),
        (39, words64(&[15]), 0, |r| matches!(r, Request::SetStatus(15))),
        (40, vec![], 0, |r| matches!(r, Request::GetStatus)),
        (41, vec![7; 16], 0, |r| matches!(r, Request::GetSharedObject(uuid) if *uuid == [7; 16])),
        (42, words32(&[1, 0]), 1, |r| {
            let wanted = DeviceStateTransfer { direction: StateDirection::Load, phase: 0 };
            matches!(r, Request::SetDeviceStateFd(transfer, _) if *transfer == wanted)
        }),
        (43, vec![], 0, |r| matches!(r, Request::CheckDeviceState)),
        (44, vec![], 0, |r| matches!(r, Request::GetShmemConfig)),
    ]
}

#[test]
fn every_request_is_read() {
    for (number, payload, fds, means) in samples() {
        let request = decode(number, &payload, fds).unwrap_or_else(|e| panic!("{}: {e}", name(number)));
        assert!(means(&request), "{}: {request:?}", name(number));
    }
}

/// What is made of a request is read as the same again, with its file descriptors.
#[test]
fn every_request_is_written_as_it_is_read() {
    for (number, payload, fds, means) in samples() {
        for need_reply in [false, true] {
            let request = decode(number, &payload, fds).expect("a good request");
            let Outgoing { bytes, fds: sent } = request.encode(need_reply);
            let (head, body) = bytes.split_first_chunk().expect("a header");
            let header = Header::decode(*head, Kind::Request).expect("a good header");
            assert_eq!((header.request, header.needs_reply()), (number, need_reply));
            assert_eq!((header.payload_len(), sent.len()), (body.len(), fds), "{}", name(number));
            let again = Request::decode(&header, body, sent).expect("what we wrote");
            assert!(means(&again), "{}: {again:?}", name(number));
        }
    }
}

/// A request of the back-end: its number, a good payload, the number of file descriptors, and what it means.
type ChannelSample = (u32, Vec<u8>, usize, fn(&ChannelRequest) -> bool);

fn is_the_map(map: &SharedMemoryMap) -> bool {
    let SharedMemoryMap { region, file_offset, region_offset, len, flags, .. } = *map;
    region == 3
        && [file_offset, region_offset, len, flags].map(zerocopy::little_endian::U64::get)
            == [0x1000, 0x2000, 0x3000, 1]
}

/// Every request of the back-end.
fn channel_samples() -> Vec<ChannelSample> {
    let map = words64(&[3, 0x1000, 0x2000, 0x3000, 1]);
    vec![
        (
            1,
            iotlb(1, 1),
            0,
            |r| matches!(r, ChannelRequest::Iotlb(m) if m.kind == IotlbKind::Miss && m.read && !m.write),
        ),
        (2, vec![], 0, |r| matches!(r, ChannelRequest::ConfigChange)),
        (3, words64(&[5, 0x1000, 0x2000]), 1, |r| {
            let wanted = VringArea { index: 5, len: 0x1000, offset: 0x2000 };
            matches!(r, ChannelRequest::VringHostNotifier(area, Some(_)) if *area == wanted)
        }),
        (3, words64(&[0x105, 0, 0]), 0, |r| {
            matches!(r, ChannelRequest::VringHostNotifier(VringArea { index: 5, .. }, None))
        }),
        (4, words32(&[6, 0]), 0, |r| matches!(r, ChannelRequest::VringCall { index: 6 })),
        (5, words32(&[7, 0]), 0, |r| matches!(r, ChannelRequest::VringErr { index: 7 })),
        (6, vec![1; 16], 0, |r| matches!(r, ChannelRequest::SharedObjectAdd(uuid) if *uuid == [1; 16])),
        (7, vec![2; 16], 0, |r| matches!(r, ChannelRequest::SharedObjectRemove(uuid) if *uuid == [2; 16])),
        (8, vec![3; 16], 0, |r| matches!(r, ChannelRequest::SharedObjectLookup(uuid) if *uuid == [3; 16])),
        (9, map.clone(), 1, |r| matches!(r, ChannelRequest::ShmemMap(m, _) if is_the_map(m))),
        (10, map, 0, |r| matches!(r, ChannelRequest::ShmemUnmap(m) if is_the_map(m))),
    ]
}

#[test]
fn every_request_of_the_back_end_is_read_and_written() {
    for (number, payload, fds, means) in channel_samples() {
        let header = header(number, 1, payload.len() as u32).expect("a good header");
        let read = |payload: &[u8], fds| ChannelRequest::decode(&header, payload, some_fds(fds));
        let request = read(&payload, fds).expect("a good request");
        assert!(means(&request), "{request:?}");
        let Outgoing { bytes, fds: sent } = request.encode(true);
        assert_eq!(bytes, [words32(&[number, 9, payload.len() as u32]), payload.clone()].concat());
        assert_eq!(sent.len(), fds);
        for size in 0..payload.len() {
            assert!(matches!(read(&payload[..size], fds), Err(MessageError::BadSize { .. })), "{number}");
        }
        assert!(matches!(read(&payload, fds + 1), Err(MessageError::BadFdCount { .. })), "{number}");
    }
    for number in [0, 11, 99] {
        let header = header(number, 1, 0).expect("a good header");
        let error = ChannelRequest::decode(&header, &[], vec![]).err();
        assert_eq!(error, Some(MessageError::Unsupported(number)));
    }
}

#[test]
fn a_payload_of_another_size_is_refused() {
    for (number, payload, fds, _) in samples() {
        let bad = |size| Some(MessageError::BadSize { name: name(number), size });
        let has_another = |size| match number {
            // The log as an address; an acknowledgement in a region's place.
            6 | 37 | 38 => size == 8,
            // With or without padding behind it.
            31 | 32 => size == 20,
            _ => false,
        };
        for size in (0..payload.len()).filter(|size| !has_another(*size)) {
            assert_eq!(decode(number, &payload[..size], fds).err(), bad(size));
        }
        for more in [1, 4, 8, 32] {
            let longer = [payload.clone(), vec![0; more]].concat();
            assert_eq!(decode(number, &longer, fds).err(), bad(longer.len()));
        }
    }
}

#[test]
fn another_number_of_file_descriptors_is_refused() {
    for (number, payload, fds, _) in samples() {
        let (least, most) = if number == 38 { (0, 1) } else { (fds, fds) };
        for count in (0..=MAX_FDS + 1).filter(|n| !(least..=most).contains(n)) {
            match decode(number, &payload, count).err() {
                Some(MessageError::BadFdCount { name: n, .. }) => assert_eq!(n, name(number)),
                other => panic!("{} with {count} file descriptors: {other:?}", name(number)),
            }
        }
    }
}

#[test]
fn impossible_values_are_refused() {
    let bad = |request, field, value| MessageError::BadValue { name: name(request), field, value };
    for value in [2, 3, 0x8000_0000, u32::MAX] {
        let error = decode(18, &words32(&[0, value]), 0).expect_err("neither 0 nor 1");
        assert_eq!(error, bad(18, "enable", value.into()));
    }
    for request in [12, 13, 14] {
        for value in [0x200, 0x300, 0x8000, 1 << 32, u64::MAX] {
            for fds in 0..2 {
                let error = decode(request, &words64(&[value]), fds).expect_err("bits past the ninth");
                assert_eq!(error, bad(request, "vring index", value));
            }
        }
    }
    for access in [4, 5, 0xff] {
        let error = decode(22, &iotlb(access, 2), 0).expect_err("neither read nor write");
        assert_eq!(error, bad(22, "permissions", access.into()));
    }
    for kind in [0, 5, 0xff] {
        let error = decode(22, &iotlb(3, kind), 0).expect_err("no such type");
        assert_eq!(error, bad(22, "type", kind.into()));
    }
    for value in [2, u32::MAX] {
        let error = decode(23, &words32(&[0, value]), 0).expect_err("neither little nor big");
        assert_eq!(error, bad(23, "endianness", value.into()));
        let error = decode(42, &words32(&[value, 0]), 1).expect_err("neither save nor load");
        assert_eq!(error, bad(42, "direction", value.into()));
    }
    for count in [9, 10, 0x0800_0000, u32::MAX] {
        let error = decode(5, &mem_table(count, 9), 9).expect_err("more than eight regions");
        assert_eq!(error, bad(5, "number of regions", count.into()));
    }
}

#[test]
fn unknown_requests_are_told_from_broken_ones() {
    let known: Vec<_> = samples().iter().map(|s| s.0).collect();
    for number in (0..100).chain([u32::MAX]).filter(|n| !known.contains(n)) {
        for fds in 0..2 {
            assert_eq!(decode(number, &[1, 2, 3], fds).err(), Some(MessageError::Unsupported(number)));
        }
    }
}

/// The regions and their files stay together, in the order sent.
#[test]
fn a_memory_table_keeps_regions_and_files_together() {
    for count in [0, 1, 7, 8] {
        let files: Vec<_> = (0..count).map(|_| tempfile::tempfile().expect("a temporary file")).collect();
        let clones = files.iter().map(|f| f.try_clone().expect("a clone"));
        for (size, file) in (1..).zip(&files) {
            file.set_len(size).expect("its length");
        }
        let payload = mem_table(count as u32, count);
        let request = decode_with(5, &payload, clones.map(OwnedFd::from).collect()).expect("a table");
        let Request::SetMemTable(table) = request else { panic!("{request:?}") };
        assert_eq!(table.len() as u64, count);
        for (n, (description, file)) in (0..).zip(table) {
            assert_eq!(description, region(n));
            assert_eq!(File::from(file).metadata().expect("metadata").len(), n + 1);
        }
    }
}

/// A count says how many regions there are; bytes up to the whole array may follow, and nothing more.
#[test]
fn a_memory_tables_count_must_be_true() {
    for count in 0..=8u32 {
        let fds = count as usize;
        let whole = decode(5, &mem_table(count, 8), fds).expect("the whole array");
        assert!(matches!(whole, Request::SetMemTable(t) if t.len() == fds), "only those counted");
        let long = mem_table(count, 9);
        assert_eq!(
            decode(5, &long, fds).err(),
            Some(MessageError::BadSize { name: name(5), size: long.len() })
        );
        for missing in 1..=count {
            let short = mem_table(count, (count - missing).into());
            let error = decode(5, &short, fds).expect_err("fewer than it says");
            assert_eq!(error, MessageError::BadSize { name: name(5), size: short.len() });
        }
    }
}

/// [VU-BE-rem-mem-reg-03] [VU-BE-rem-mem-reg-04] A file descriptor that comes with `REM_MEM_REG` is closed.
#[test]
fn the_file_of_a_removed_region_is_closed() {
    let (ours, theirs) = rustix::pipe::pipe().expect("a pipe");
    let request = decode_with(38, &one_region(1), vec![theirs]).expect("one is tolerated");
    assert_eq!(File::from(ours).read(&mut [0]).expect("no writer is left"), 0);
    assert!(matches!(request, Request::RemMemReg(_)));
}

#[test]
fn file_descriptors_of_a_refused_request_are_closed() {
    for (number, payload) in
        [(1, vec![]), (12, words64(&[0x100])), (99, vec![]), (37, vec![1]), (38, vec![1])]
    {
        let (ours, theirs) = rustix::pipe::pipe().expect("a pipe");
        assert!(decode_with(number, &payload, vec![theirs]).is_err());
        assert_eq!(File::from(ours).read(&mut [0]).expect("no writer is left"), 0, "{}", name(number));
    }
}

/// A header is of version 1 and no reply; other bits of the flags are no concern of this version.
#[test]
fn headers_are_checked() {
    for flags in (0..64).chain([0xffff_fff1, 0xffff_fffb, u32::MAX]) {
        let is_good = flags & 0b111 == 1;
        let bytes = words32(&[1, flags, 0]).try_into().expect("12 bytes");
        assert_eq!(Header::decode(bytes, Kind::Reply).is_ok(), flags & 0b111 == 5, "{flags:#x}");
        match header(1, flags, 0) {
            Ok(header) => {
                assert!(is_good, "{flags:#x}");
                assert_eq!(header.needs_reply(), flags & 8 != 0);
            }
            Err(error) => {
                assert!(!is_good, "{flags:#x}");
                assert_eq!(error, MessageError::BadFlags { request: 1, flags, expected: "request" });
            }
        }
    }
    for size in [0, 1, 4095, 4096] {
        assert_eq!(header(7, 1, size).expect("a size in bounds").payload_len(), size as usize);
    }
    for size in [4097, 1 << 16, 1 << 31, u32::MAX] {
        assert_eq!(header(7, 1, size), Err(MessageError::TooLong { request: 7, size }));
    }
}

/// [VU-FB-header-01] A reply has the request's number, version 1, the reply flag and nothing else, and its size.
#[test]
fn replies_are_made() {
    for flags in [1, 9, 0xffff_fff9] {
        let header = header(17, flags, 0).expect("a header");
        assert_eq!(header.reply(&[]), [17, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header.reply(&[0xab, 0xcd]), [17, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 0xab, 0xcd]);
    }
}

#[test]
fn every_request_has_a_name() {
    for (number, ..) in samples() {
        assert_ne!(name(number), name(0), "{number}");
        // Those, and a few that ask for more than success.
        let asks = name(number).starts_with("GET_") || matches!(number, 22 | 28 | 30 | 42 | 43);
        assert_eq!(Request::is_question(number), asks, "{}", name(number));
    }
}

proptest! {
    /// Whatever comes, the result is a request or an error; a good payload cut anywhere too.
    #[test]
    fn no_bytes_are_too_strange(
        head in prop_oneof![
            any::<[u8; HEADER_LEN]>(),
            (0u32..48, any::<u8>()).prop_map(|(request, size)| {
                words32(&[request, 9, size.into()]).try_into().expect("12 bytes")
            }),
        ],
        payload in prop::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u8>()], 0..400),
        fds in 0usize..10,
    ) {
        if let Ok(header) = Header::decode(head, Kind::Request) {
            prop_assert!(header.payload_len() <= MAX_PAYLOAD);
            let _ = Request::decode(&header, &payload, some_fds(fds));
        }
    }
}
