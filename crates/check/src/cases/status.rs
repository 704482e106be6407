//! The device status, and resets.

use ringway_spec::status::DeviceStatus;
use ringway_vhost::message::{Request, protocol_feature as pf};

use crate::case::{Case, Seen, expect};
use crate::context::Context;
use crate::rig::Rig;

/// The status before the driver is ready.
const NEGOTIATED: u64 =
    DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER).union(DeviceStatus::FEATURES_OK).bits() as u64;
const DRIVER_OK: u64 = NEGOTIATED | DeviceStatus::DRIVER_OK.bits() as u64;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "get-status",
        &["VU-BE-get-status-00"],
        "GET_STATUS of a new session is answered with 0",
        get_status,
    )
    .with_protocol(pf::STATUS),
    Case::must(
        "set-status",
        &["VU-BE-set-status-00", "VU-BE-get-status-00"],
        "GET_STATUS gives what SET_STATUS said",
        set_status,
    )
    .with_protocol(pf::STATUS),
    Case::must(
        "status-zero",
        &["DEV-CORE-device-reset-01", "VU-BE-set-status-00"],
        "SET_STATUS of 0 resets the device",
        status_zero,
    )
    .with_protocol(pf::STATUS),
    Case::must(
        "status-zero-stops",
        &["DEV-CORE-device-reset-02"],
        "after a reset by status no ring is processed",
        status_zero_stops,
    )
    .with_protocol(pf::STATUS)
    .with_requests(),
    Case::must("driver-ok", &["VU-BE-set-status-00"], "with STATUS, rings work after DRIVER_OK", driver_ok)
        .with_protocol(pf::STATUS)
        .with_requests(),
    Case::must(
        "reset-device",
        &["VU-BE-reset-device-00"],
        "RESET_DEVICE succeeds, and the device works after it",
        reset_device,
    )
    .with_protocol(pf::RESET_DEVICE),
];

fn get_status(context: &Context) -> Seen {
    let mut session = context.connect()?;
    session.set_protocol_features(pf::STATUS)?;
    let status = session.ask_u64(Request::GetStatus)?;
    expect(status == 0, "0", || format!("{status:#x}"))?;
    Ok("0".into())
}

fn set_status(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::STATUS)?;
    session.set(Request::SetStatus(NEGOTIATED))?;
    let status = session.ask_u64(Request::GetStatus)?;
    expect(status == NEGOTIATED, &format!("{NEGOTIATED:#x}"), || format!("{status:#x}"))?;
    Ok(format!("{status:#x}"))
}

fn status_zero(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::STATUS)?;
    session.set(Request::SetStatus(NEGOTIATED))?;
    session.set(Request::SetStatus(0))?;
    let status = session.ask_u64(Request::GetStatus)?;
    expect(status == 0, "0", || format!("{status:#x}"))?;
    Ok("0".into())
}

/// Rings that run, of a driver that is ready.
fn ready(context: &Context) -> Result<Rig<'_>, crate::case::Verdict> {
    let mut session = context.negotiate(0, pf::STATUS)?;
    session.set(Request::SetStatus(NEGOTIATED))?;
    let mut rig = Rig::new(session)?;
    rig.share_memory()?;
    rig.set_up_all()?;
    rig.session.set(Request::SetStatus(DRIVER_OK))?;
    rig.session.barrier()?;
    rig.kick_all();
    Ok(rig)
}

fn driver_ok(context: &Context) -> Seen {
    let mut rig = ready(context)?;
    rig.requests_are_used(5)?;
    Ok("5 requests".into())
}

fn status_zero_stops(context: &Context) -> Seen {
    let mut rig = ready(context)?;
    rig.requests_are_used(2)?;
    rig.session.set(Request::SetStatus(0))?;
    rig.session.barrier()?;
    rig.offer(2)?;
    rig.kick_all();
    rig.nothing_used("the device was reset")?;
    Ok("nothing is used".into())
}

fn reset_device(context: &Context) -> Seen {
    let mut rig = context.running(0, pf::RESET_DEVICE)?;
    rig.session.set(Request::ResetDevice)?;
    rig.session.barrier()?;
    drop(rig);
    context.check_alive()?;
    Ok("answered".into())
}
