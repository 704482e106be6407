//! The codec: what every request looks like, and all that is refused.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
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
    Header::decode(bytes.try_into().expect("12 bytes"))
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
        (8, words32(&[2, 256]), 0, |r| matches!(r, Request::SetVringNum { index: 2, num: 256 })),
        (9, addresses, 0, |r| {
            let wanted = VringAddresses {
                descriptor: FrontendVa(0x1000),
                driver: FrontendVa(0x2000),
                device: FrontendVa(0x3000),
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
        (20, words64(&[1500]), 0, |r| matches!(r, Request::NetSetMtu(1500))),
        (21, vec![], 1, |r| matches!(r, Request::SetBackendReqFd(_))),
        (24, config.clone(), 0, |r| matches!(r, Request::GetConfig { offset: 20, size: 5, flags: 1 })),
        (
            25,
            config,
            0,
            |r| matches!(r, Request::SetConfig { offset: 20, flags: 1, bytes } if bytes == b"hello"),
        ),
        (34, vec![], 0, |r| matches!(r, Request::ResetDevice)),
        (36, vec![], 0, |r| matches!(r, Request::GetMaxMemSlots)),
        (37, one_region(3), 1, |r| matches!(r, Request::AddMemReg(d, _) if *d == region(3))),
        (38, one_region(3), 0, |r| matches!(r, Request::RemMemReg(d) if *d == region(3))),
        (39, words64(&[15]), 0, |r| matches!(r, Request::SetStatus(15))),
        (40, vec![], 0, |r| matches!(r, Request::GetStatus)),
    ]
}

#[test]
fn every_request_is_read() {
    for (number, payload, fds, means) in samples() {
        let request = decode(number, &payload, fds).unwrap_or_else(|e| panic!("{}: {e}", name(number)));
        assert!(means(&request), "{}: {request:?}", name(number));
    }
}

#[test]
fn a_payload_of_another_size_is_refused() {
    for (number, payload, fds, _) in samples() {
        let bad = |size| Some(MessageError::BadSize { name: name(number), size });
        for size in 0..payload.len() {
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
        match header(1, flags, 0) {
            Ok(header) => {
                assert!(is_good, "{flags:#x}");
                assert_eq!(header.needs_reply(), flags & 8 != 0);
            }
            Err(error) => {
                assert!(!is_good, "{flags:#x}");
                assert_eq!(error, MessageError::BadFlags { request: 1, flags });
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
        assert_eq!(Request::is_question(number), name(number).starts_with("GET_"), "{}", name(number));
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
        if let Ok(header) = Header::decode(head) {
            prop_assert!(header.payload_len() <= MAX_PAYLOAD);
            let _ = Request::decode(&header, &payload, some_fds(fds));
        }
    }
}
