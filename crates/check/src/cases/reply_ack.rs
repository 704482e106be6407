//! Answers to requests that are no questions: if and only if `REPLY_ACK` was negotiated and one is asked for.

use std::time::Duration;

use ringway_vhost::message::{Request, protocol_feature as pf};

use crate::case::{Case, Seen, Verdict, expect, skip};
use crate::context::Context;
use crate::event::{Tracer, event, share};
use crate::guest::Guest;
use crate::rig::Rig;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "ack-set-owner",
        &["VU-BE-set-owner-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_OWNER succeeds",
        |c| acked(c, |_| Ok(Request::SetOwner)),
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-features",
        &["VU-BE-set-features-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_FEATURES with a subset of the offer succeeds",
        |c| acked(c, |rig| Ok(Request::SetFeatures(rig.session.features))),
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-mem-table",
        &["VU-BE-set-mem-table-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_MEM_TABLE succeeds",
        |c| acked(c, |rig| Ok(Request::SetMemTable(vec![rig.guest.region()?]))),
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-vring-num",
        &["VU-BE-set-vring-num-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_VRING_NUM succeeds",
        |c| acked(c, |_| Ok(Request::SetVringNum { index: 0, num: 128 })),
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-vring-addr",
        &["VU-BE-set-vring-addr-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_VRING_ADDR succeeds",
        |c| {
            acked(c, |rig| {
                let addresses = rig.guest.addresses(0, None);
                Ok(Request::SetVringAddr { index: 0, addresses })
            })
        },
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-vring-base",
        &["VU-BE-set-vring-base-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_VRING_BASE succeeds",
        |c| acked(c, |_| Ok(Request::SetVringBase { index: 0, base: 0 })),
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-vring-call",
        &["VU-BE-set-vring-call-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_VRING_CALL succeeds",
        |c| acked(c, |_| Ok(Request::SetVringCall { index: 0, fd: Some(share(&event()?)?) })),
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-vring-call-without-fd",
        &["VU-BE-set-vring-call-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_VRING_CALL without a file descriptor succeeds",
        |c| acked(c, |_| Ok(Request::SetVringCall { index: 0, fd: None })),
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-vring-err",
        &["VU-BE-set-vring-err-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_VRING_ERR succeeds",
        |c| acked(c, |_| Ok(Request::SetVringErr { index: 0, fd: Some(share(&event()?)?) })),
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-vring-err-without-fd",
        &["VU-BE-set-vring-err-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_VRING_ERR without a file descriptor succeeds",
        |c| acked(c, |_| Ok(Request::SetVringErr { index: 0, fd: None })),
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-vring-kick",
        &["VU-BE-set-vring-kick-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_VRING_KICK of a ring that is described succeeds",
        |c| {
            acked(c, |rig| {
                rig.describe(0, None)?;
                Ok(Request::SetVringKick { index: 0, fd: Some(share(&rig.vrings[0].kick)?) })
            })
        },
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "ack-set-vring-enable",
        &["VU-BE-set-vring-enable-00", "VU-BE-vhost-user-protocol-f-reply-ack-01"],
        "SET_VRING_ENABLE succeeds, both ways",
        |c| {
            acked(c, |_| Ok(Request::SetVringEnable { index: 0, enable: true }))?;
            acked(c, |_| Ok(Request::SetVringEnable { index: 0, enable: false }))
        },
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "questions-unchanged",
        &["VU-BE-vhost-user-protocol-f-reply-ack-02"],
        "a question that asks for an answer gets one, its own",
        questions_unchanged,
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "no-ack-unless-asked",
        &["VU-BE-set-owner-00", "VU-BE-set-vring-num-00", "VU-BE-set-mem-table-00"],
        "requests that ask for no answer get none",
        no_ack_unless_asked,
    )
    .with_protocol(pf::REPLY_ACK),
    Case::should(
        "failure-is-told",
        &["VU-FB-vhost-user-protocol-f-reply-ack-01"],
        "memory that cannot be mapped is not answered with 0",
        failure_is_told,
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "fds-are-closed",
        &["VU-BE-set-vring-call-00"],
        "a file descriptor that another replaces, or whose session ends, is closed",
        fds_are_closed,
    ),
];

/// Sends the request with a wish for an answer, which must be 0, and nothing else may come.
fn acked(context: &Context, request: impl FnOnce(&mut Rig<'_>) -> Result<Request, Verdict>) -> Seen {
    let mut rig = context.rig(0, 0)?;
    let request = request(&mut rig)?;
    rig.session.set(request)?;
    rig.session.barrier()?;
    Ok("answer 0".into())
}

fn questions_unchanged(context: &Context) -> Seen {
    let mut session = context.negotiate(0, 0)?;
    let answer = session.ack(Request::GetFeatures)?;
    let offered = context.offer.features;
    expect(answer == offered, "the features", || format!("{answer:#x} instead of {offered:#x}"))?;
    let answer = session.ack(Request::GetVringBase { index: 0 })?;
    expect(answer as u32 == 0, "the base of vring 0", || format!("{answer:#x}"))?;
    if context.has_protocol(pf::MQ) {
        session.ack(Request::GetQueueNum)?;
    }
    session.barrier()?;
    Ok("one answer each".into())
}

fn no_ack_unless_asked(context: &Context) -> Seen {
    let mut rig = context.rig(0, 0)?;
    let region = rig.guest.region()?;
    let session = &mut rig.session;
    session.tell(Request::SetOwner)?;
    session.tell(Request::SetVringNum { index: 0, num: 64 })?;
    session.tell(Request::SetVringBase { index: 0, base: 0 })?;
    session.tell(Request::SetMemTable(vec![region]))?;
    session.tell(Request::SetVringErr { index: 0, fd: None })?;
    session.barrier()?;
    Ok("no answer".into())
}

fn failure_is_told(context: &Context) -> Seen {
    let mut session = context.negotiate(0, 0)?;
    // An event counter cannot be mapped.
    let description = Guest::new(0)?.description();
    session.refused(Request::SetMemTable(vec![(description, share(&event()?)?)]))
}

fn fds_are_closed(context: &Context) -> Seen {
    let mut rig = context.rig(0, 0)?;
    let (first, fd) = Tracer::new()?;
    rig.session.set(Request::SetVringCall { index: 0, fd: Some(fd) })?;
    rig.session.barrier()?;
    if first.is_closed(Duration::ZERO) {
        return Err(skip("call file descriptors are not kept"));
    }
    let (second, fd) = Tracer::new()?;
    rig.session.set(Request::SetVringCall { index: 0, fd: Some(fd) })?;
    rig.session.barrier()?;
    let patience = context.time_left();
    expect(first.is_closed(patience), "the first is closed when a second comes", || "it stays open".into())?;
    drop(rig);
    expect(second.is_closed(patience), "the second is closed with the session", || "it stays open".into())?;
    Ok("closed".into())
}
