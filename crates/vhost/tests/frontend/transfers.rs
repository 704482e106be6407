//! What goes over beside the rings: logs, states, translations, regions, and the back-end's own requests.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use ringway_memory::{FrontendVa, Gpa};
use ringway_spec::feature::{ACCESS_PLATFORM, VERSION_1};
use ringway_vhost::frontend::{
    Channel, DirtyLog, Frontend, FrontendError, Incoming, Memory, Pages, Vring, VringConfig,
};
use ringway_vhost::message::{
    ChannelRequest, DEVICE_STATE_NO_FD, F_LOG_ALL, F_PROTOCOL_FEATURES, InflightDescription, Iotlb,
    IotlbKind, Kind, Request, SharedMemoryMap, VringArea, protocol_feature as pf,
};
use ringway_vhost::socket::Socket;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::book::{Book, Heard, receive};

const FEATURES: u64 = VERSION_1 | F_PROTOCOL_FEATURES;
const SET_DEVICE_STATE_FD: u32 = 42;
const CHECK_DEVICE_STATE: u32 = 43;
const LIMIT: Duration = Duration::from_secs(5);

fn memory() -> Memory {
    Memory::new(Gpa(0x10_0000), 0x10_0000, Pages::Small).expect("memory")
}

fn started(frontend: &mut Frontend, memory: &mut Memory) -> Vring<()> {
    let mut vring = frontend.set_up_vring(VringConfig::new(0, 8), memory).expect("a vring");
    frontend.start(&mut vring).expect("a start");
    vring
}

/// [VU-FE-migration-02] [VU-FE-migration-03] [VU-FE-migration-04] The log comes before it is switched on, for data and
/// for each used ring, and is for all memory, used rings included. It can move, and be switched off.
#[test]
fn a_log_is_begun_moved_and_ended() {
    let (mut frontend, open) =
        Book::new(FEATURES | F_LOG_ALL, pf::LOG_SHMFD).instead(6, &[], Vec::new()).negotiate();
    assert_eq!(frontend.features(), VERSION_1);
    let mut memory = memory();
    frontend.add_memory([&memory]).unwrap();
    let vring = started(&mut frontend, &mut memory);
    let short = DirtyLog::new(Gpa(0x10_0000)).unwrap();
    assert!(matches!(frontend.start_log(&short), Err(FrontendError::ShortLog { gpa: Gpa(0x10_0000) })));
    let log = DirtyLog::new(Gpa(0x20_0000)).unwrap();
    frontend.start_log(&log).unwrap();
    frontend.start_log(&log).unwrap();
    frontend.stop_log().unwrap();
    frontend.stop_log().unwrap();
    drop(frontend);

    let heard = open.close();
    let begin = heard.iter().position(|h| h.request.number() == 12).unwrap() + 1;
    let numbers: Vec<_> = heard[begin..].iter().map(|h| h.request.number()).collect();
    assert_eq!(numbers, [6, 2, 9, 6, 2, 9]);
    let logged: Vec<_> = heard
        .iter()
        .filter_map(|h| {
            if let Request::SetVringAddr { addresses, .. } = h.request { Some(addresses) } else { None }
        })
        .map(|addresses| addresses.log)
        .collect();
    let used = vring.addresses().device.0 - memory.frontend_va(0).0 + 0x10_0000;
    assert_eq!(logged, [None, Some(Gpa(used)), None]);
    let features: Vec<_> = heard
        .iter()
        .filter_map(|h| if let Request::SetFeatures(features) = h.request { Some(features) } else { None })
        .collect();
    assert_eq!(features, [FEATURES, FEATURES | F_LOG_ALL, FEATURES]);
    // The file that was sent is the one that is read.
    for Heard { request, .. } in heard {
        if let Request::SetLogBase { len, offset: 0, fd } = request {
            assert!(len * 8 * 4096 > used + 8 * 8);
            File::from(fd).write_all_at(&[1], 1).unwrap();
        }
    }
    assert_eq!(log.pages().unwrap().collect::<Vec<_>>(), [Gpa(0x8000)]);
}

/// [VU-FE-set-device-state-fd-01] [VU-FE-set-device-state-fd-02] [VU-FB-set-device-state-fd-01] The state goes by the
/// channel that the back-end made, if it made one.
#[test]
fn a_state_goes_by_the_back_ends_channel() {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let ((reader, writer), (other_reader, other_writer)) = (pipe(), pipe());
    let (mut frontend, open) = Book::new(FEATURES, pf::DEVICE_STATE)
        .instead(SET_DEVICE_STATE_FD, &[0; 8], vec![reader])
        .instead(SET_DEVICE_STATE_FD, &[0; 8], vec![other_writer])
        .negotiate();
    let mut writer = File::from(writer);
    writer.write_all(b"what the device knows").unwrap();
    drop(writer);
    let state = frontend.save_state(100).unwrap();
    assert_eq!(state, b"what the device knows");
    frontend.load_state(&state).unwrap();
    let mut loaded = Vec::new();
    File::from(other_reader).read_to_end(&mut loaded).unwrap();
    assert_eq!(loaded, state);
    drop(frontend);
    open.close();
}

/// [VU-FB-migrating-back-end-state-01] [VU-FB-migrating-back-end-state-02] [VU-FB-set-device-state-fd-02]
/// [VU-FB-set-device-state-fd-03] [VU-FB-set-device-state-fd-04] By our channel: it is read to its end, and closed
/// when all is written, more than a pipe holds. Only then is it asked whether all went well.
#[test]
fn a_state_goes_by_our_channel() {
    let state: Vec<_> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    let mut book = Book::new(FEATURES, pf::DEVICE_STATE);
    book.state.clone_from(&state);
    let (mut frontend, open) = book.negotiate();
    assert!(frontend.save_state(state.len()).unwrap() == state);
    frontend.load_state(&state[..100_000]).unwrap();
    assert!(frontend.save_state(state.len()).unwrap() == state[..100_000]);
    drop(frontend);
    assert_eq!(open.close_numbers()[5..], [CHECK_DEVICE_STATE; 3]);
}

#[test]
fn a_state_that_does_not_go_over() {
    let refused = |value: u64| {
        let book = Book::new(FEATURES, pf::DEVICE_STATE);
        book.instead(SET_DEVICE_STATE_FD, &value.to_le_bytes(), Vec::new()).negotiate()
    };
    let (mut frontend, open) = refused(DEVICE_STATE_NO_FD | 1);
    let error = frontend.load_state(&[1]).expect_err("refused");
    assert!(matches!(error, FrontendError::Refused { request: "SET_DEVICE_STATE_FD", .. }), "{error}");
    drop(frontend);
    open.close();

    // It says that its channel comes along, and none does.
    let (mut frontend, open) = refused(0);
    let error = frontend.load_state(&[1]).expect_err("no channel");
    assert!(matches!(error, FrontendError::WrongReply { .. }), "{error}");
    open.close();

    let book = Book::new(FEATURES, pf::DEVICE_STATE).instead(CHECK_DEVICE_STATE, &[1; 8], Vec::new());
    let (mut frontend, open) = book.negotiate();
    let error = frontend.load_state(&[1]).expect_err("of no use");
    assert!(matches!(error, FrontendError::Refused { request: "CHECK_DEVICE_STATE", .. }), "{error}");
    drop(frontend);
    open.close();

    let mut book = Book::new(FEATURES, pf::DEVICE_STATE);
    book.state = vec![0; 200_000];
    let (mut frontend, open) = book.negotiate();
    assert!(matches!(frontend.save_state(199_999), Err(FrontendError::LongState { max: 199_999 })));
    open.close();
}

/// What was recorded comes back as it was.
#[test]
fn the_inflight_region_is_kept_for_the_next_back_end() {
    let (mut frontend, open) = Book::new(FEATURES, pf::INFLIGHT_SHMFD).negotiate();
    let inflight = frontend.inflight(2, 8).unwrap();
    let described = InflightDescription { len: 4096, offset: 0, queues: 2, queue_size: 8 };
    assert_eq!(inflight.description, described);
    drop(frontend);
    open.close();
    let (mut frontend, open) = Book::new(FEATURES, pf::INFLIGHT_SHMFD).negotiate();
    frontend.set_inflight(&inflight).unwrap();
    drop(frontend);
    let heard = open.close().pop().unwrap();
    assert!(matches!(heard.request, Request::SetInflightFd(d, _) if d == described), "{heard:?}");
}

/// [VU-FE-iommu-support-01] [VU-FE-iommu-support-02] [VU-FE-iommu-support-03] Translations are of shared memory; rings
/// are named as the device finds them.
#[test]
fn translations_are_told_and_taken_back() {
    let (mut frontend, open) = Book::new(FEATURES | ACCESS_PLATFORM, pf::BACKEND_REQ).negotiate();
    let mut memory = memory();
    frontend.add_memory([&memory]).unwrap();
    let vring = started(&mut frontend, &mut memory);
    assert_eq!(vring.addresses().descriptor, FrontendVa(0x10_0000));
    let miss = |iova| Iotlb {
        iova,
        len: 1,
        frontend_va: FrontendVa(0),
        read: true,
        write: false,
        kind: IotlbKind::Miss,
    };
    assert!(frontend.answer_miss(&miss(0x1f_ffff)).unwrap());
    assert!(!frontend.answer_miss(&miss(0x20_0000)).unwrap());
    let at = memory.frontend_va(0xff000);
    frontend.update_iotlb(0x7000, 0x1000, at, true, false).unwrap();
    let error = frontend.update_iotlb(0x7000, 0x1001, at, true, false).expect_err("past the end");
    assert!(matches!(error, FrontendError::Memory(_)), "{error}");
    frontend.invalidate_iotlb(0x7000, 0x1000).unwrap();
    drop(frontend);

    let told: Vec<_> = open
        .close()
        .into_iter()
        .filter_map(|h| if let Request::Iotlb(message) = h.request { Some(message) } else { None })
        .collect();
    let update = |iova, len, frontend_va, write| Iotlb {
        iova,
        len,
        frontend_va,
        read: true,
        write,
        kind: IotlbKind::Update,
    };
    let all = update(0x10_0000, 0x10_0000, memory.frontend_va(0), true);
    let gone = Iotlb {
        iova: 0x7000,
        len: 0x1000,
        frontend_va: FrontendVa(0),
        read: false,
        write: false,
        kind: IotlbKind::Invalidate,
    };
    assert_eq!(told, [all, update(0x7000, 0x1000, at, false), gone]);
}

/// A session whose channel is open: its end, and the back-end's.
fn channel(protocol_features: u64) -> (Channel, Socket) {
    let (mut frontend, open) = Book::new(FEATURES, pf::BACKEND_REQ | protocol_features).negotiate();
    let channel = frontend.open_channel().expect("a channel");
    drop(frontend);
    let Some(Heard { request: Request::SetBackendReqFd(fd), .. }) = open.close().pop() else {
        panic!("the channel comes last")
    };
    (channel, Socket::new(fd.into(), Kind::Reply).expect("a socket"))
}

fn file() -> OwnedFd {
    tempfile::tempfile().expect("a file").into()
}

/// Requests that are answered if the back-end wants it.
fn orders() -> Vec<ChannelRequest> {
    let miss = Iotlb {
        iova: 0x1000,
        len: 1,
        frontend_va: FrontendVa(0),
        read: true,
        write: false,
        kind: IotlbKind::Miss,
    };
    let map = SharedMemoryMap {
        region: 0,
        padding: [0; 7],
        file_offset: 0.into(),
        region_offset: 0.into(),
        len: 4096.into(),
        flags: 0.into(),
    };
    let area = VringArea { index: 0, len: 4096, offset: 0 };
    vec![
        ChannelRequest::Iotlb(miss),
        ChannelRequest::ConfigChange,
        ChannelRequest::VringHostNotifier(area, Some(file())),
        ChannelRequest::VringCall { index: 0 },
        ChannelRequest::VringErr { index: 0 },
        ChannelRequest::SharedObjectAdd([5; 16]),
        ChannelRequest::SharedObjectRemove([5; 16]),
        ChannelRequest::ShmemMap(map, file()),
        ChannelRequest::ShmemUnmap(map),
    ]
}

/// [VU-FE-backend-iotlb-msg-01] [VU-FE-backend-config-change-msg-01] [VU-FE-backend-shared-object-add-01]
/// [VU-FE-backend-shared-object-remove-02] [VU-FE-backend-shmem-map-01] The back-end is answered, with zero or another
/// number, if it asks for that and may.
#[test]
fn the_back_ends_requests_are_answered() {
    for (acking, needs_reply) in [(true, true), (true, false), (false, true)] {
        let (mut channel, mut back_end) = channel(if acking { pf::REPLY_ACK } else { 0 });
        assert!(channel.next(Duration::ZERO).unwrap().is_none());
        for (value, request) in (0_u64..).zip(orders()) {
            let number = request.number();
            back_end.send(request.encode(needs_reply)).unwrap();
            let Incoming { request, answer } = channel.next(LIMIT).unwrap().expect("a request");
            assert_eq!(request.number(), number);
            channel.answer(answer, value).unwrap();
            if acking && needs_reply {
                let reply = receive(&mut back_end).unwrap();
                assert_eq!((reply.header.request, &reply.payload[..]), (number, &value.to_le_bytes()[..]));
            }
            assert!(back_end.receive().unwrap().is_none());
        }
        drop(back_end);
        assert!(matches!(channel.next(LIMIT), Err(FrontendError::Socket(_))));
    }
}

/// [VU-FE-backend-shared-object-lookup-01] [VU-FE-backend-shared-object-lookup-02] A lookup is answered always: by the
/// object, or by a number that is not zero and nothing else.
#[test]
fn a_shared_object_is_looked_up() {
    let (mut channel, mut back_end) = channel(0);
    for is_there in [true, false] {
        back_end.send(ChannelRequest::SharedObjectLookup([5; 16]).encode(false)).unwrap();
        let incoming = channel.next(LIMIT).unwrap().expect("a request");
        assert!(matches!(incoming.request, ChannelRequest::SharedObjectLookup(uuid) if uuid == [5; 16]));
        if is_there {
            channel.answer_with(incoming.answer, file()).unwrap();
        } else {
            channel.answer(incoming.answer, 1).unwrap();
        }
        let reply = receive(&mut back_end).unwrap();
        assert_eq!((reply.payload[0], reply.fds.len()), (u8::from(!is_there), usize::from(is_there)));
    }
}
