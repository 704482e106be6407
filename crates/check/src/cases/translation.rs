//! Addresses that an IOMMU translates: the device asks the front-end for what it does not know.

use std::time::Instant;

use ringway_memory::{FrontendVa, Gpa};
use ringway_queue::Segment;
use ringway_spec::feature::ACCESS_PLATFORM;
use ringway_vhost::message::{
    ChannelRequest, Iotlb, IotlbKind, Request, VringAddresses, protocol_feature as pf,
};

use crate::case::{Case, Seen, Verdict, expect, fail};
use crate::context::{Context, QUIET};
use crate::guest::{Guest, LEN};
use crate::rig::{KickBy, Rig};

use super::notifications::{Channel, open_channel};

/// What is added to an offset in memory to make its address on the device's bus.
const IOVA: u64 = 0x9_0000_0000;
/// As much as one answer translates.
const PAGE: u64 = 4096;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "iotlb-answered",
        &["VU-BE-iotlb-msg-01", "VU-BE-iommu-support-01"],
        "updates and invalidations that ask for an answer get 0",
        |c| answered(c, true),
    )
    .with_features(ACCESS_PLATFORM)
    .with_protocol(pf::BACKEND_REQ | pf::REPLY_ACK),
    Case::must(
        "iotlb-answered-unasked",
        &["VU-BE-iotlb-msg-00"],
        "updates and invalidations are answered with 0, whether or not that is asked for",
        |c| answered(c, false),
    )
    .with_features(ACCESS_PLATFORM)
    .with_protocol(pf::BACKEND_REQ),
    Case::must(
        "iotlb-miss",
        &["VU-BE-iommu-support-02"],
        "what is not known is asked for by its address, and used when it was told",
        miss,
    )
    .with_features(ACCESS_PLATFORM)
    .with_protocol(pf::BACKEND_REQ)
    .with_requests(),
    Case::should(
        "iotlb-only-if-negotiated",
        &["VU-BE-backend-iotlb-msg-01"],
        "without ACCESS_PLATFORM no translation is asked for",
        only_if_negotiated,
    )
    .with_protocol(pf::BACKEND_REQ)
    .with_requests(),
];

/// What the front-end knows of the page at `iova`.
fn translation(rig: &Rig<'_>, iova: u64, kind: IotlbKind) -> Iotlb {
    let frontend_va = rig.guest.frontend_va(iova - IOVA);
    Iotlb { iova, len: PAGE, frontend_va, read: true, write: true, kind }
}

fn answered(context: &Context, need_reply: bool) -> Seen {
    let mut rig = context.rig(ACCESS_PLATFORM, pf::BACKEND_REQ)?;
    let _channel = open_channel(&mut rig.session)?;
    for kind in [IotlbKind::Update, IotlbKind::Invalidate] {
        let request = Request::Iotlb(translation(&rig, IOVA, kind));
        let answer = if need_reply { rig.session.ack(request)? } else { rig.session.ask_u64(request)? };
        expect(answer == 0, "an answer of 0", || answer.to_string())?;
    }
    Ok("both are answered".into())
}

/// Sets ring `at` up by addresses on the bus.
fn describe(rig: &mut Rig<'_>, at: usize) -> Result<(), Verdict> {
    rig.describe(at, None)?;
    let index = rig.vrings[at].index;
    let [descriptor, driver, device] = Guest::ring(index).map(|offset| FrontendVa(IOVA + offset));
    let addresses = VringAddresses { descriptor, driver, device, log: None };
    rig.session.set(Request::SetVringAddr { index, addresses })?;
    rig.connect_kick(at, KickBy::Fd)?;
    rig.enable(at, true)
}

/// Answers misses until the request is used; how many there were.
fn serve(rig: &mut Rig<'_>, channel: &mut Channel) -> Result<u32, Verdict> {
    let end = Instant::now() + rig.session.context.time_left();
    let mut misses = 0;
    while !rig.data().queue.has_used() {
        if Instant::now() >= end {
            return Err(fail("the request is used", format!("it is not, after {misses} translations")));
        }
        let Some(request) = channel.next(std::time::Duration::from_millis(5))? else { continue };
        let ChannelRequest::Iotlb(miss) = request else { continue };
        let is_ours = (IOVA..IOVA + LEN).contains(&miss.iova);
        let is_good = miss.kind == IotlbKind::Miss && is_ours && (miss.read || miss.write);
        expect(is_good, "a miss of an address that was named, with permissions", || format!("{miss:x?}"))?;
        let answer = translation(rig, miss.iova - miss.iova % PAGE, IotlbKind::Update);
        let status = rig.session.ack(Request::Iotlb(answer))?;
        expect(status == 0, "an update that is answered with 0", || status.to_string())?;
        misses += 1;
    }
    Ok(misses)
}

fn miss(context: &Context) -> Seen {
    let mut rig = context.rig(ACCESS_PLATFORM, pf::BACKEND_REQ)?;
    let Some(mut channel) = open_channel(&mut rig.session)? else {
        return Err(fail("BACKEND_REQ", "it was not negotiated"));
    };
    for at in 0..rig.vrings.len() {
        describe(&mut rig, at)?;
    }
    rig.session.barrier()?;
    let (mut readable, mut writable, lent) = rig.write_request()?;
    for segment in readable.iter_mut().chain(&mut writable) {
        let Segment { addr, len } = *segment;
        *segment = Segment { addr: Gpa(addr.0 - Guest::gpa(0).0 + IOVA), len };
    }
    rig.add(&readable, &writable, lent)?;
    rig.publish();
    rig.kick_all();
    let misses = serve(&mut rig, &mut channel)?;
    let used = rig.used(1)?;
    rig.check_answers(&used)?;
    expect(misses > 0, "misses", || "none".into())?;
    Ok(format!("{misses} misses"))
}

fn only_if_negotiated(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::BACKEND_REQ)?;
    let channel = open_channel(&mut session)?;
    let mut rig = Rig::new(session)?;
    rig.share_memory()?;
    rig.start_all()?;
    rig.requests_are_used(3)?;
    let is_quiet = !channel.is_some_and(|channel| channel.has_message(QUIET));
    expect(is_quiet, "no message on the channel", || "one".into())?;
    Ok("none".into())
}
