//! What a session says, and what it does not say for want of a feature.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use ringway_memory::Gpa;
use ringway_queue::{ResumeState, Segment};
use ringway_spec::feature::{RING_PACKED, VERSION_1};
use ringway_vhost::frontend::{
    Connection, Frontend, FrontendError, Memory, PROTOCOL_FEATURES, Pages, Signals, Vring, VringConfig,
};
use ringway_vhost::message::{F_PROTOCOL_FEATURES, Request, protocol_feature as pf};
use ringway_vhost::socket::SocketError;

use crate::book::{Book, Heard};

const FEATURES: u64 = VERSION_1 | F_PROTOCOL_FEATURES;
const GET_QUEUE_NUM: u32 = 17;
const SET_MEM_TABLE: u32 = 5;

fn memory() -> Memory {
    Memory::new(Gpa(1 << 30), 1 << 20, Pages::Small).expect("memory")
}

fn vring(frontend: &Frontend, memory: &mut Memory, signals: Signals) -> Vring<()> {
    let config = VringConfig { signals, ..VringConfig::new(1, 8) };
    frontend.set_up_vring(config, memory).expect("a vring")
}

/// [VU-FE-get-protocol-features-02] [VU-FE-set-protocol-features-02] Protocol features come first, before any feature
/// is acked. The device status goes along, up to the features, which the device has to accept.
#[test]
fn features_are_negotiated_in_order() {
    let (frontend, open) = Book::new(FEATURES, u64::MAX).negotiate();
    assert_eq!((frontend.features(), frontend.protocol_features()), (VERSION_1, PROTOCOL_FEATURES));
    drop(frontend);
    let heard = open.close();
    let numbers: Vec<_> = heard.iter().map(|h| h.request.number()).collect();
    assert_eq!(numbers, [1, 15, 16, 3, 39, 39, 2, 39, 40]);
    assert!(matches!(heard[2].request, Request::SetProtocolFeatures(PROTOCOL_FEATURES)));
    assert!(matches!(heard[6].request, Request::SetFeatures(FEATURES)));
    for (at, wanted) in [(4, 1), (5, 3), (7, 11)] {
        assert!(matches!(heard[at].request, Request::SetStatus(status) if status == wanted), "{heard:?}");
    }
    // Answers are asked for as soon as it is agreed that they come, and to questions never.
    let asked: Vec<_> = heard.iter().filter(|h| h.needs_reply).map(|h| h.request.number()).collect();
    assert_eq!(asked, [3, 39, 39, 2, 39]);
}

/// [VU-FE-get-protocol-features-01] [VU-FE-set-protocol-features-01] [VU-FE-set-vring-enable-01] A back-end
/// without protocol features is asked for none, and its rings are not enabled but started.
#[test]
fn a_back_end_without_protocol_features() {
    let (mut frontend, open) = Book::new(VERSION_1, u64::MAX).negotiate();
    let mut memory = memory();
    let mut vring = vring(&frontend, &mut memory, Signals::Events);
    frontend.add_memory([&memory]).unwrap();
    frontend.start(&mut vring).unwrap();
    frontend.set_driver_ok().unwrap();
    frontend.enable(&vring, true).unwrap();
    assert!(matches!(frontend.enable(&vring, false), Err(FrontendError::NotNegotiated { .. })));
    assert_eq!(frontend.stop(&mut vring).unwrap(), 0);
    drop(frontend);
    let heard = open.close();
    let numbers: Vec<_> = heard.iter().map(|h| h.request.number()).collect();
    assert_eq!(numbers, [1, 3, 2, SET_MEM_TABLE, 8, 10, 9, 14, 13, 12, 11]);
    assert!(matches!(heard[2].request, Request::SetFeatures(VERSION_1)), "{heard:?}");
    assert!(heard.iter().all(|h| !h.needs_reply));
}

/// [VU-FE-get-queue-num-01] [VU-FE-send-rarp-01] [VU-FE-set-backend-req-fd-01] [VU-FE-iotlb-msg-01]
/// [VU-FE-reset-device-01] [VU-FE-set-device-state-fd-03] [VU-FE-check-device-state-01] What was not negotiated is not
/// sent.
#[test]
fn what_was_not_negotiated_is_not_sent() {
    let (mut frontend, open) = Book::new(FEATURES, 0).negotiate();
    let mut memory = memory();
    let mut vring = vring(&frontend, &mut memory, Signals::Inband);
    let inflight = ringway_vhost::frontend::Inflight {
        description: ringway_vhost::message::InflightDescription {
            len: 0,
            offset: 0,
            queues: 1,
            queue_size: 8,
        },
        file: memory.share().unwrap(),
    };
    let log = ringway_vhost::frontend::DirtyLog::new(Gpa(1 << 31)).unwrap();
    assert_eq!(frontend.queue_num().unwrap(), None);
    assert_eq!(frontend.status().unwrap(), None);
    let refused = [
        frontend.send_rarp([0; 6]),
        frontend.set_mtu(1500),
        frontend.config(0, 8).map(drop),
        frontend.set_config(0, &[0]),
        frontend.reset(),
        frontend.inflight(1, 8).map(drop),
        frontend.set_inflight(&inflight),
        frontend.start_log(&log),
        frontend.save_state(1).map(drop),
        frontend.load_state(&[]),
        frontend.update_iotlb(0, 4096, memory.frontend_va(0), true, true),
        frontend.invalidate_iotlb(0, 4096),
        frontend.open_channel().map(drop),
        frontend.start(&mut vring),
    ];
    for result in refused {
        assert!(
            matches!(result, Err(FrontendError::NotNegotiated { .. } | FrontendError::Memory(_))),
            "{result:?}"
        );
    }
    drop(frontend);
    assert_eq!(open.close_numbers(), [1, 15, 16, 3, 2]);
}

/// [VU-FE-in-band-notifications-01] [VU-FE-get-vring-base-02] A feature that needs another is not acked without it.
#[test]
fn features_that_need_others_are_not_acked_alone() {
    let inband = pf::INBAND_NOTIFICATIONS | pf::BACKEND_REQ | pf::REPLY_ACK;
    let inflight = pf::GET_VRING_BASE_INFLIGHT | pf::INFLIGHT_SHMFD;
    for (offered, acked) in [
        (inband, inband),
        (inband & !pf::BACKEND_REQ, pf::REPLY_ACK),
        (inband & !pf::REPLY_ACK, pf::BACKEND_REQ),
        (inflight, inflight),
        (pf::GET_VRING_BASE_INFLIGHT, 0),
        // What is not for this type to use.
        (pf::PAGEFAULT | pf::MQ, pf::MQ),
    ] {
        let (frontend, open) = Book::new(FEATURES, offered).negotiate();
        assert_eq!(frontend.protocol_features(), acked);
        drop(frontend);
        let heard = open.close();
        assert!(matches!(heard[2].request, Request::SetProtocolFeatures(a) if a == acked), "{heard:?}");
    }
}

#[test]
fn a_device_may_refuse_the_features() {
    let mut book = Book::new(FEATURES, pf::STATUS);
    book.stuck = 8;
    let (result, open) = book.try_negotiate();
    let error = result.err().expect("refused");
    assert!(matches!(error, FrontendError::FeaturesRefused { features: VERSION_1 }), "{error}");
    assert_eq!(open.close_numbers().last(), Some(&40));
}

/// [VU-FE-get-vring-base-01] A ring is started by its kick, when all else is known, and goes on where it stopped.
#[test]
fn a_ring_is_described_then_started_then_stopped() {
    let mut book = Book::new(FEATURES, pf::REPLY_ACK);
    book.base = 0x1234;
    let (mut frontend, open) = book.negotiate();
    let mut memory = memory();
    let mut vring = vring(&frontend, &mut memory, Signals::Events);
    frontend.start(&mut vring).unwrap();
    assert!(matches!(frontend.start(&mut vring), Err(FrontendError::InUse { index: 1 })));
    frontend.enable(&vring, true).unwrap();
    frontend.enable(&vring, false).unwrap();
    assert_eq!(frontend.stop(&mut vring).unwrap(), 0x1234);
    frontend.start(&mut vring).unwrap();
    drop(frontend);

    let heard = open.close();
    let rings: Vec<_> = heard[5..].iter().map(|h| h.request.number()).collect();
    assert_eq!(rings, [8, 10, 9, 14, 13, 12, 18, 18, 11, 8, 10, 9, 14, 13, 12]);
    let bases: Vec<_> = heard
        .iter()
        .filter_map(
            |h| if let Request::SetVringBase { index: 1, base } = h.request { Some(base) } else { None },
        )
        .collect();
    assert_eq!(bases, [0, 0x1234]);
    let stop = heard.iter().find(|h| matches!(h.request, Request::GetVringBase { .. })).unwrap();
    assert_eq!(stop.payload, [1, 0, 0, 0, 0, 0, 0, 0]);
    let at = vring.addresses();
    assert!(
        heard
            .iter()
            .any(|h| matches!(h.request, Request::SetVringAddr { index: 1, addresses } if addresses == at))
    );
    assert_eq!(at.log, None);
}

/// [VU-FB-a-vring-descriptor-index-for-split-virtqueues-01] The base of a packed ring has both cursors; that of a split one is where it begins.
#[test]
fn a_ring_begins_where_it_is_to() {
    for (features, start, base) in [
        (FEATURES, None, 0),
        (FEATURES, Some(ResumeState::Split { next_avail: 65530 }), 65530),
        (FEATURES | RING_PACKED, None, 0x8000_8000),
    ] {
        let (mut frontend, open) = Book::new(features, pf::MQ).negotiate();
        let config = VringConfig { start, ..VringConfig::new(0, 8) };
        let mut vring: Vring<()> = frontend.set_up_vring(config, &mut memory()).unwrap();
        assert_eq!(vring.base(), base);
        frontend.start(&mut vring).unwrap();
        drop(frontend);
        let told = |h: &Heard| matches!(h.request, Request::SetVringBase { index: 0, base: b } if b == base);
        assert!(open.close().iter().any(told));
    }
}

/// [VU-FE-set-vring-kick-01] [VU-FE-set-vring-call-01] [VU-FE-set-vring-err-01] [VU-FE-vring-kick-01]
/// [VU-FE-vring-kick-02] A ring with signals in band is started and
/// kicked by messages, whose second number is zero; polled ones are started without file descriptors.
#[test]
fn rings_without_event_counters() {
    let inband = pf::INBAND_NOTIFICATIONS | pf::BACKEND_REQ | pf::REPLY_ACK;
    let (mut frontend, open) = Book::new(FEATURES, inband).negotiate();
    let mut memory = memory();
    let mut buffers = memory.buffers(1, 64).unwrap();
    let mut vring = frontend
        .set_up_vring(VringConfig { signals: Signals::Inband, ..VringConfig::new(3, 8) }, &mut memory)
        .unwrap();
    frontend.start(&mut vring).unwrap();
    let buffer = buffers.pop().unwrap();
    vring.queue_mut().add(&[Segment::from(&buffer)], &[], buffer).map_err(|r| r.error).unwrap();
    frontend.publish(&mut vring).unwrap();
    drop(frontend);
    let heard = open.close();
    let numbers: Vec<_> = heard[5..].iter().map(|h| h.request.number()).collect();
    assert_eq!(numbers, [8, 10, 9, 35, 35]);
    assert!(heard[8..].iter().all(|h| h.payload == [3, 0, 0, 0, 0, 0, 0, 0] && h.needs_reply), "{heard:?}");

    let (mut frontend, open) = Book::new(FEATURES, 0).negotiate();
    let mut vring = self::vring(&frontend, &mut memory, Signals::Polled);
    frontend.start(&mut vring).unwrap();
    drop(frontend);
    let heard = open.close();
    let files: Vec<_> = heard[5..].iter().map(|h| (h.request.number(), h.fds)).collect();
    assert_eq!(files, [(8, 0), (10, 0), (9, 0), (13, 0), (12, 0)]);
}

/// [VU-FE-set-mem-table-01] Each region of a table has its own file, in the table's order; what is added or
/// taken away is told by a new table.
#[test]
fn memory_in_tables() {
    let (mut frontend, open) = Book::new(FEATURES, pf::REPLY_ACK).negotiate();
    let memories: Vec<_> =
        (1..=9).map(|n| Memory::new(Gpa(n << 30), 4096 * n, Pages::Small).unwrap()).collect();
    let [first, second, third, ..] = memories.as_slice() else { unreachable!() };
    frontend.add_memory([first, second]).unwrap();
    frontend.add_memory([third]).unwrap();
    frontend.remove_memory(second).unwrap();
    assert!(matches!(
        frontend.remove_memory(second),
        Err(FrontendError::NotShared { gpa: Gpa(0x8000_0000) })
    ));
    // A table has eight.
    let error = frontend.add_memory(&memories[2..]).expect_err("too many");
    assert!(matches!(error, FrontendError::TooManyRegions { max: 8 }), "{error}");
    drop(frontend);

    let tables: Vec<_> = open
        .close()
        .into_iter()
        .filter_map(|h| if let Request::SetMemTable(table) = h.request { Some(table) } else { None })
        .collect();
    let inode = |memory: &Memory| std::fs::File::from(memory.share().unwrap()).metadata().unwrap().ino();
    let told = tables.into_iter().map(|table| {
        table
            .into_iter()
            .map(|(region, file)| (region, std::fs::File::from(file).metadata().unwrap().ino()))
            .collect::<Vec<_>>()
    });
    let wanted = [vec![first, second], vec![first, second, third], vec![first, third]];
    let wanted =
        wanted.map(|memories| memories.into_iter().map(|m| (m.description(), inode(m))).collect::<Vec<_>>());
    assert_eq!(told.collect::<Vec<_>>(), wanted);
}

/// [VU-FE-add-mem-reg-01] [VU-FE-rem-mem-reg-01] Regions come one by one, each with its file, and go without one.
#[test]
fn memory_in_slots() {
    let mut book = Book::new(FEATURES, pf::CONFIGURE_MEM_SLOTS);
    book.slots = 2;
    let (mut frontend, open) = book.negotiate();
    let memories: Vec<_> = (1..=3).map(|n| Memory::new(Gpa(n << 30), 4096, Pages::Small).unwrap()).collect();
    frontend.add_memory(&memories[..2]).unwrap();
    let error = frontend.add_memory(&memories[2..]).expect_err("too many");
    assert!(matches!(error, FrontendError::TooManyRegions { max: 2 }), "{error}");
    frontend.remove_memory(&memories[0]).unwrap();
    frontend.add_memory(&memories[2..]).unwrap();
    drop(frontend);
    let heard = open.close();
    let told: Vec<_> = heard[5..].iter().map(|h| (h.request.number(), h.fds)).collect();
    assert_eq!(told, [(36, 0), (37, 1), (37, 1), (38, 0), (37, 1)]);
    let removed = memories[0].description();
    assert!(matches!(heard[8].request, Request::RemMemReg(region) if region == removed), "{heard:?}");
}

#[test]
fn memory_that_is_refused_is_not_shared() {
    let book =
        Book::new(FEATURES, pf::REPLY_ACK).instead(SET_MEM_TABLE, &[1, 0, 0, 0, 0, 0, 0, 0], Vec::new());
    let (mut frontend, open) = book.negotiate();
    let memory = memory();
    let error = frontend.add_memory([&memory]).expect_err("refused");
    assert!(matches!(error, FrontendError::Refused { request: "SET_MEM_TABLE", value: 1 }), "{error}");
    assert!(matches!(frontend.remove_memory(&memory), Err(FrontendError::NotShared { .. })));
    // The session goes on.
    frontend.add_memory([&memory]).unwrap();
    drop(frontend);
    assert_eq!(open.close_numbers()[5..], [SET_MEM_TABLE, SET_MEM_TABLE]);
}

/// [VU-FE-communication-02] After a reply that is wrong, or none in time, the connection is closed.
#[test]
fn a_wrong_reply_ends_the_session() {
    let book = Book::new(FEATURES, pf::MQ).instead(GET_QUEUE_NUM, &[0; 4], Vec::new());
    let (mut frontend, open) = book.negotiate();
    let error = frontend.queue_num().expect_err("four bytes");
    assert!(matches!(error, FrontendError::WrongReply { request: "GET_QUEUE_NUM", .. }), "{error}");
    assert_eq!(open.close_numbers().last(), Some(&GET_QUEUE_NUM));
    let error = frontend.queue_num().expect_err("closed");
    assert!(matches!(error, FrontendError::Socket(SocketError::Closed)), "{error}");

    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut silent = Connection::from_stream(ours).unwrap();
    silent.set_limit(Duration::from_millis(20));
    let error = Frontend::negotiate(silent, VERSION_1, 0).err().expect("silence");
    assert!(matches!(error, FrontendError::TimedOut { .. }), "{error}");
    drop(theirs);
}

/// What a device with a configuration space, a status and an announcement is asked.
#[test]
fn questions_about_the_device() {
    let (mut frontend, open) = Book::new(FEATURES, pf::CONFIG | pf::RARP | pf::MQ | pf::MTU | pf::STATUS)
        .instead(24, &[], Vec::new())
        .negotiate();
    assert!(matches!(frontend.config(4, 8), Err(FrontendError::WrongReply { request: "GET_CONFIG", .. })));
    assert_eq!(frontend.config(4, 3).unwrap(), [0, 1, 2]);
    frontend.set_config(6, &[1, 2]).unwrap();
    frontend.send_rarp([1, 2, 3, 4, 5, 6]).unwrap();
    frontend.set_mtu(1500).unwrap();
    assert_eq!(frontend.queue_num().unwrap(), Some(3));
    frontend.set_driver_ok().unwrap();
    assert_eq!(frontend.status().unwrap().map(|s| s.bits()), Some(15));
    frontend.reset().unwrap();
    assert_eq!(frontend.status().unwrap().map(|s| s.bits()), Some(11));
    assert!(frontend.connection().as_fd().try_clone_to_owned().is_ok());
    drop(frontend);
    let heard = open.close();
    let heard = &heard[9..];
    assert!(
        matches!(&heard[2].request, Request::SetConfig { offset: 6, flags: 0, bytes } if bytes == &[1, 2]),
        "{heard:?}"
    );
    assert!(matches!(heard[3].request, Request::SendRarp(0x0605_0403_0201)), "{heard:?}");
    assert!(matches!(heard[4].request, Request::NetSetMtu(1500)), "{heard:?}");
    assert!(matches!(heard[8].request, Request::SetStatus(0)), "{heard:?}");
    assert!(matches!(heard[11].request, Request::SetFeatures(FEATURES)), "{heard:?}");
}
