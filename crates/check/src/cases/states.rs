//! What a vring is: stopped or started, disabled or enabled, and what it does as such.

use ringway_queue::Segment;
use ringway_spec::feature::RING_PACKED;
use ringway_vhost::message::{F_PROTOCOL_FEATURES, Request, protocol_feature as pf};

use crate::case::{Case, Seen, Verdict, expect, skip};
use crate::context::{Context, QUIET};
use crate::device::Device;
use crate::event::is_signalled;
use crate::guest::Guest;
use crate::rig::{KickBy, Lent, Rig};

pub(super) const CASES: &[Case] = &[
    Case::must(
        "started-and-enabled",
        &["VU-BE-ring-states-05", "VU-BE-ring-states-07"],
        "a split ring that is kicked and enabled carries requests out",
        |c| works(c, 0),
    )
    .with_requests(),
    Case::must(
        "started-and-enabled-packed",
        &["VU-BE-ring-states-05", "VU-BE-ring-states-07"],
        "a packed ring that is kicked and enabled carries requests out",
        |c| works(c, RING_PACKED),
    )
    .with_features(RING_PACKED)
    .with_requests(),
    Case::must(
        "stopped-at-first",
        &["VU-BE-ring-states-06", "VU-BE-ring-states-01"],
        "a ring that is set up and enabled is not processed before its first kick",
        stopped_at_first,
    )
    .with_requests(),
    Case::must(
        "disabled-at-first",
        &["VU-BE-ring-states-06", "VU-BE-ring-states-04"],
        "no frame comes to a receive ring that was never enabled",
        |c| receives_nothing(c, None),
    )
    .with_features(F_PROTOCOL_FEATURES)
    .of(&[Device::Net]),
    Case::must(
        "stopped",
        &["VU-BE-ring-states-01", "VU-BE-ring-states-07"],
        "after GET_VRING_BASE the ring is not processed",
        |c| stopped(c, 0),
    )
    .with_requests(),
    Case::must(
        "stopped-packed",
        &["VU-BE-ring-states-01", "VU-BE-ring-states-07"],
        "after GET_VRING_BASE a packed ring is not processed",
        |c| stopped(c, RING_PACKED),
    )
    .with_features(RING_PACKED)
    .with_requests(),
    Case::should(
        "enabled-before-start",
        &["VU-BE-ring-states-02"],
        "a ring that is enabled while stopped is enabled when it starts",
        enabled_before_start,
    )
    .with_features(F_PROTOCOL_FEATURES)
    .with_requests(),
    Case::must(
        "disabled-transmits",
        &["VU-BE-ring-states-03", "VU-BE-ring-states-04"],
        "frames in a transmit ring that is disabled are taken and thrown away",
        disabled_transmits,
    )
    .with_features(F_PROTOCOL_FEATURES)
    .of(&[Device::Net]),
    Case::must(
        "disabled-receives-nothing",
        &["VU-BE-ring-states-04"],
        "no frame comes to a receive ring that is disabled",
        |c| receives_nothing(c, Some(false)),
    )
    .with_features(F_PROTOCOL_FEATURES)
    .of(&[Device::Net]),
    Case::must(
        "enabled-again",
        &["VU-BE-ring-states-05", "VU-BE-set-vring-enable-00"],
        "a ring that is disabled and enabled again goes on",
        enabled_again,
    )
    .with_features(F_PROTOCOL_FEATURES)
    .with_requests(),
    Case::must(
        "enabled-without-protocol-features",
        &["VU-BE-ring-states-08"],
        "without bit 30 in SET_FEATURES all rings are enabled",
        enabled_without_protocol_features,
    )
    .with_requests(),
    Case::should(
        "polling",
        &["VU-BE-set-vring-kick-01"],
        "a ring without a kick file descriptor is polled",
        polling,
    )
    .with_requests(),
    Case::must(
        "rings-are-independent",
        &["VU-BE-ring-states-07"],
        "stopping one ring leaves another running",
        independent,
    )
    .of(&[Device::Net]),
    Case::must(
        "suspended-answers",
        &["VU-BE-suspended-device-state-04"],
        "a device whose rings are all stopped answers",
        suspended_answers,
    ),
    Case::must(
        "suspended-writes-nothing",
        &["VU-BE-suspended-device-state-01", "VU-BE-migration-06"],
        "a device whose rings are all stopped writes to no memory",
        suspended_writes_nothing,
    )
    .with_requests(),
    Case::must(
        "suspended-is-silent",
        &["VU-BE-suspended-device-state-02", "VU-BE-suspended-device-state-03"],
        "a device whose rings are all stopped sends no notification and no message",
        suspended_is_silent,
    )
    .with_requests(),
];

fn works(context: &Context, format: u64) -> Seen {
    let mut rig = context.running(format, 0)?;
    // More than the ring has room for, in bursts of several sizes.
    for burst in [1, 2, 32, 7].into_iter().cycle().take(40) {
        rig.requests_are_used(burst)?;
    }
    Ok("420 requests".into())
}

fn stopped_at_first(context: &Context) -> Seen {
    let mut rig = context.rig(0, 0)?;
    // A device that looks at a ring when it is set up finds this.
    rig.offer(1)?;
    rig.set_up_all()?;
    rig.nothing_used("the ring was not kicked")?;
    rig.kick_all();
    rig.used(1)?;
    Ok("the request is used after the kick".into())
}

fn stopped(context: &Context, format: u64) -> Seen {
    let mut rig = context.running(format, 0)?;
    rig.requests_are_used(3)?;
    let at = rig.data_at();
    rig.stop(at)?;
    rig.offer(2)?;
    // Occasions to look at the ring all the same, but for a kick, which would start it.
    for (other, vring) in rig.vrings.iter().enumerate() {
        if other != at {
            let _ = vring.kick.signal();
        }
    }
    rig.enable(at, false)?;
    rig.enable(at, true)?;
    rig.session.barrier()?;
    rig.nothing_used("the ring is stopped")?;
    Ok("nothing is used".into())
}

fn enabled_before_start(context: &Context) -> Seen {
    let mut rig = context.rig(0, 0)?;
    for at in 0..rig.vrings.len() {
        rig.enable(at, true)?;
    }
    for at in 0..rig.vrings.len() {
        rig.describe(at, None)?;
        rig.connect_kick(at, KickBy::Fd)?;
    }
    rig.session.barrier()?;
    rig.kick_all();
    rig.requests_are_used(3)?;
    Ok("requests are used".into())
}

/// A network device whose rings run, each enabled, disabled, or neither.
fn net_with(context: &Context, enabled: [Option<bool>; 2]) -> Result<Rig<'_>, Verdict> {
    let mut rig = context.rig(0, 0)?;
    for (at, enable) in enabled.into_iter().enumerate() {
        rig.describe(at, None)?;
        rig.connect_kick(at, KickBy::Fd)?;
        if let Some(enable) = enable {
            rig.enable(at, enable)?;
        }
    }
    rig.session.barrier()?;
    rig.kick_all();
    Ok(rig)
}

fn disabled_transmits(context: &Context) -> Seen {
    let mut rig = net_with(context, [Some(true), Some(false)])?;
    rig.requests_are_used(5)?;
    Ok("5 frames are taken".into())
}

/// Lends buffers to the receive ring.
pub(super) fn lend_receive_buffers(rig: &mut Rig<'_>, count: usize) -> Result<(), Verdict> {
    for _ in 0..count {
        let (at, len) = (rig.guest.buffer(2048), 2048);
        let lent = Lent { writable: vec![(at, len)] };
        let added = rig.vrings[0].queue.add(&[], &[Segment { addr: Guest::gpa(at), len }], lent);
        added.map_err(|refused| crate::case::trouble("add a buffer", refused.error))?;
    }
    let _ = rig.vrings[0].queue.publish();
    let _ = rig.vrings[0].kick.signal();
    Ok(())
}

fn receives_nothing(context: &Context, enabled: Option<bool>) -> Seen {
    let mut rig = net_with(context, [enabled, Some(true)])?;
    lend_receive_buffers(&mut rig, 64)?;
    // Frames, in case that they come back here.
    rig.offer(3)?;
    rig.kick();
    std::thread::sleep(QUIET);
    expect(!rig.vrings[0].queue.has_used(), "no frame comes", || "one came".into())?;
    // It means something only if one comes as soon as it may.
    rig.enable(0, true)?;
    rig.session.barrier()?;
    rig.offer(3)?;
    rig.kick_all();
    match rig.used_of(0, 1) {
        Ok(_) => Ok("frames come only once it is enabled".into()),
        Err(_) => Err(skip("no frames come here anyway")),
    }
}

fn enabled_again(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    for _ in 0..3 {
        rig.requests_are_used(3)?;
        for enable in [false, true] {
            for at in 0..rig.vrings.len() {
                rig.enable(at, enable)?;
            }
        }
        rig.session.barrier()?;
    }
    rig.requests_are_used(3)?;
    Ok("12 requests".into())
}

fn enabled_without_protocol_features(context: &Context) -> Seen {
    let mut session = context.connect()?;
    session.tell(Request::SetOwner)?;
    let features = context.offer.features & ringway_spec::feature::VERSION_1;
    session.tell(Request::SetFeatures(features))?;
    session.features = features;
    let mut rig = Rig::new(session)?;
    rig.share_memory()?;
    rig.start_all()?;
    rig.requests_are_used(3)?;
    Ok("requests are used".into())
}

fn polling(context: &Context) -> Seen {
    let mut rig = context.rig(0, 0)?;
    for at in 0..rig.vrings.len() {
        rig.describe(at, None)?;
        rig.connect_kick(at, KickBy::Polling)?;
        rig.enable(at, true)?;
    }
    rig.session.barrier()?;
    for _ in 0..3 {
        rig.offer(2)?;
        rig.used(2)?;
    }
    Ok("6 requests are used without a kick".into())
}

fn independent(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    rig.requests_are_used(3)?;
    rig.stop(0)?;
    rig.requests_are_used(3)?;
    Ok("frames are taken while the receive ring is stopped".into())
}

/// A device whose rings ran and are stopped; `Blk` and `Net` have carried out requests.
fn suspended(context: &Context, protocol: u64) -> Result<Rig<'_>, Verdict> {
    let mut rig = context.running(0, protocol)?;
    if context.device != Device::Generic {
        rig.requests_are_used(3)?;
    }
    if context.device == Device::Net {
        lend_receive_buffers(&mut rig, 16)?;
    }
    for at in 0..rig.vrings.len() {
        rig.stop(at)?;
    }
    Ok(rig)
}

fn suspended_answers(context: &Context) -> Seen {
    let mut rig = suspended(context, 0)?;
    rig.session.barrier()?;
    rig.session.vring_base(0)?;
    Ok("it answers".into())
}

fn suspended_writes_nothing(context: &Context) -> Seen {
    let mut rig = suspended(context, 0)?;
    rig.offer(3)?;
    let before = rig.guest.snapshot()?;
    let at = rig.data_at();
    rig.enable(at, true)?;
    rig.session.barrier()?;
    std::thread::sleep(QUIET);
    let after = rig.guest.snapshot()?;
    match before.iter().zip(&after).position(|(a, b)| a != b) {
        None => Ok("4 MiB unchanged".into()),
        Some(at) => Err(crate::case::fail("memory stays as it is", format!("byte {at:#x} changed"))),
    }
}

fn suspended_is_silent(context: &Context) -> Seen {
    let protocol = context.offer.protocol_features & pf::BACKEND_REQ;
    let mut rig = context.running(0, protocol)?;
    let channel = super::notifications::open_channel(&mut rig.session)?;
    rig.requests_are_used(3)?;
    for at in 0..rig.vrings.len() {
        rig.stop(at)?;
    }
    for vring in &rig.vrings {
        is_signalled(&vring.call, std::time::Duration::ZERO)?;
    }
    rig.offer(3)?;
    for vring in &rig.vrings {
        expect(!is_signalled(&vring.call, QUIET)?, "no call", || format!("a call of ring {}", vring.index))?;
    }
    rig.session.is_quiet(QUIET)?;
    if let Some(channel) = channel {
        expect(!channel.has_message(QUIET), "no message on the channel", || "one".into())?;
    }
    Ok("no call, no message".into())
}
