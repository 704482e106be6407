//! Questions and settings before there is memory or a ring.

use ringway_spec::feature;
use ringway_vhost::message::{F_PROTOCOL_FEATURES, Request, protocol_feature as pf};

use crate::case::{Case, Seen, expect};
use crate::context::Context;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "get-features",
        &["VU-BE-get-features-00"],
        "GET_FEATURES is answered, the same each time",
        get_features,
    ),
    Case::must("version-1", &["DEV-CORE-reserved-feature-bits-01"], "VERSION_1 is offered", version_1),
    Case::must(
        "reply-header",
        &["VU-FB-header-01"],
        "an answer has the reply flag, version 1 and its request's number",
        reply_header,
    ),
    Case::must(
        "order",
        &["VU-BE-get-features-00", "VU-BE-get-protocol-features-00"],
        "requests that arrive together are answered one by one, in order",
        order,
    )
    .with_features(F_PROTOCOL_FEATURES),
    Case::must(
        "get-protocol-features",
        &["VU-BE-get-protocol-features-00", "VU-BE-get-protocol-features-01"],
        "GET_PROTOCOL_FEATURES is answered before SET_FEATURES",
        get_protocol_features,
    )
    .with_features(F_PROTOCOL_FEATURES),
    Case::must(
        "set-protocol-features",
        &["VU-BE-set-protocol-features-00", "VU-BE-set-protocol-features-01"],
        "SET_PROTOCOL_FEATURES is taken before SET_FEATURES, and counts",
        set_protocol_features,
    )
    .with_protocol(pf::REPLY_ACK),
    Case::should(
        "multiple-queues",
        &["VU-BE-multiple-queue-support-02", "VU-BE-multiple-queue-support-01"],
        "protocol feature MQ is offered",
        multiple_queues,
    ),
    Case::must(
        "get-queue-num",
        &["VU-BE-get-queue-num-00"],
        "GET_QUEUE_NUM is answered with 1 at least",
        get_queue_num,
    )
    .with_protocol(pf::MQ),
    Case::must(
        "reset-owner",
        &["VU-BE-reset-owner-00"],
        "RESET_OWNER is taken, and answered if that is asked for",
        reset_owner,
    )
    .with_protocol(pf::REPLY_ACK),
    Case::should(
        "reset-owner-ends-nothing",
        &["VU-BE-reset-owner-01"],
        "RESET_OWNER does not end a session with running rings",
        reset_owner_running,
    ),
    Case::should(
        "inband-alone",
        &["VU-BE-in-band-notifications-01"],
        "INBAND_NOTIFICATIONS without what it needs ends the connection",
        inband_alone,
    )
    .with_protocol(pf::INBAND_NOTIFICATIONS),
    Case::must(
        "get-max-mem-slots",
        &["VU-BE-get-max-mem-slots-00", "VU-BE-get-max-mem-slots-01"],
        "GET_MAX_MEM_SLOTS is answered with 1 at least",
        get_max_mem_slots,
    )
    .with_protocol(pf::CONFIGURE_MEM_SLOTS),
    Case::must(
        "set-backend-req-fd",
        &["VU-BE-set-backend-req-fd-00", "VU-BE-set-backend-req-fd-01"],
        "SET_BACKEND_REQ_FD is answered with 0",
        set_backend_req_fd,
    )
    .with_protocol(pf::BACKEND_REQ | pf::REPLY_ACK),
    Case::must(
        "get-shared-object",
        &["VU-BE-get-shared-object-00", "VU-BE-get-shared-object-01"],
        "GET_SHARED_OBJECT of an unknown object is answered without a file descriptor",
        get_shared_object,
    )
    .with_protocol(pf::SHARED_OBJECT),
    Case::must(
        "get-shmem-config",
        &["VU-BE-get-shmem-config-00", "VU-BE-get-shmem-config-01", "VU-BE-get-shmem-config-02"],
        "GET_SHMEM_CONFIG is answered, the same each time, with sizes in pages",
        get_shmem_config,
    )
    .with_protocol(pf::SHMEM),
    Case::must(
        "reconnect",
        &["VU-BE-ring-states-06"],
        "front-ends may come and go, each finds everything as new",
        reconnect,
    ),
];

fn get_features(context: &Context) -> Seen {
    let mut session = context.connect()?;
    let first = session.ask_u64(Request::GetFeatures)?;
    let second = session.ask_u64(Request::GetFeatures)?;
    expect(first == second, "the same features each time", || format!("{first:#x}, then {second:#x}"))?;
    Ok(format!("{first:#x}"))
}

fn version_1(context: &Context) -> Seen {
    let features = context.offer.features;
    expect(features & feature::VERSION_1 != 0, "bit 32 of the features", || format!("{features:#x}"))?;
    Ok(format!("{features:#x}"))
}

fn reply_header(context: &Context) -> Seen {
    let mut session = context.connect()?;
    session.ask(Request::GetFeatures)?;
    if context.has_features(F_PROTOCOL_FEATURES) {
        session.ask(Request::GetProtocolFeatures)?;
    }
    drop(session);
    let mut session = context.negotiate(0, 0)?;
    session.vring_base(0)?;
    Ok("each answer is one".into())
}

fn order(context: &Context) -> Seen {
    let mut session = context.connect()?;
    let questions = [Request::GetFeatures, Request::GetProtocolFeatures, Request::GetFeatures];
    let numbers = questions.each_ref().map(Request::number);
    let bytes: Vec<u8> = questions.into_iter().flat_map(|request| request.encode(false).bytes).collect();
    session.send_raw(&bytes, &[]);
    for number in numbers {
        session.reply(number)?;
    }
    Ok("three answers in order".into())
}

fn get_protocol_features(context: &Context) -> Seen {
    let mut session = context.connect()?;
    let features = session.ask_u64(Request::GetProtocolFeatures)?;
    Ok(format!("{features:#x}"))
}

fn set_protocol_features(context: &Context) -> Seen {
    let mut session = context.connect()?;
    session.set_protocol_features(pf::REPLY_ACK)?;
    session.set(Request::SetOwner)?;
    Ok("REPLY_ACK counts at once".into())
}

fn multiple_queues(context: &Context) -> Seen {
    let features = context.offer.protocol_features;
    expect(features & pf::MQ != 0, "protocol feature MQ", || format!("protocol features {features:#x}"))?;
    Ok("offered".into())
}

fn get_queue_num(context: &Context) -> Seen {
    let mut session = context.negotiate(0, 0)?;
    let count = session.ask_u64(Request::GetQueueNum)?;
    expect(count > 0, "1 at least", || count.to_string())?;
    Ok(count.to_string())
}

fn reset_owner(context: &Context) -> Seen {
    let mut session = context.negotiate(0, 0)?;
    let answer = session.ack(Request::ResetOwner)?;
    session.barrier()?;
    Ok(format!("answer {answer}"))
}

fn reset_owner_running(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    rig.session.tell(Request::ResetOwner)?;
    rig.session.barrier()?;
    Ok("the session goes on".into())
}

fn inband_alone(context: &Context) -> Seen {
    let mut session = context.connect()?;
    session.tell(Request::SetProtocolFeatures(pf::INBAND_NOTIFICATIONS))?;
    let is_closed = session.is_closed(context.time_left());
    expect(is_closed, "the end of the connection", || "it stays open".into())?;
    Ok("the connection ends".into())
}

fn get_max_mem_slots(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIGURE_MEM_SLOTS)?;
    let slots = session.ask_u64(Request::GetMaxMemSlots)?;
    expect(slots > 0, "1 at least", || slots.to_string())?;
    Ok(slots.to_string())
}

fn set_backend_req_fd(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::BACKEND_REQ)?;
    let (_ours, theirs) = super::notifications::channel()?;
    session.set(Request::SetBackendReqFd(theirs))?;
    Ok("taken".into())
}

fn get_shared_object(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::SHARED_OBJECT)?;
    let reply = session.ask(Request::GetSharedObject([0x77; 16]))?;
    expect(reply.fds.is_empty(), "no file descriptor", || format!("{}", reply.fds.len()))?;
    Ok("no file descriptor".into())
}

fn get_shmem_config(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::SHMEM)?;
    let first = session.ask(Request::GetShmemConfig)?.payload;
    let second = session.ask(Request::GetShmemConfig)?.payload;
    expect(first == second, "the same each time", || "another answer".into())?;
    // A number of regions, padding, and sizes.
    let sizes = first.get(8..).unwrap_or_default().chunks_exact(8);
    let sizes: Vec<_> = sizes.map(|s| u64::from_le_bytes(s.try_into().unwrap_or_default())).collect();
    expect(sizes.iter().all(|size| size % 4096 == 0), "multiples of a page", || format!("{sizes:?}"))?;
    Ok(format!("{} sizes", sizes.len()))
}

fn reconnect(context: &Context) -> Seen {
    for _ in 0..5 {
        let mut rig = context.running(0, 0)?;
        rig.session.barrier()?;
    }
    // Half of a session, and none at all.
    context.negotiate(0, 0)?;
    context.connect()?;
    // Nothing is left of the rings that ran.
    let mut session = context.negotiate(0, 0)?;
    let base = session.vring_base(0)?;
    let starts = [0, 0x8000_8000];
    expect(starts.contains(&base), "the base of a new vring", || format!("{base:#x}"))?;
    Ok("7 front-ends, one after the other".into())
}
