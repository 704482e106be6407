//! The configuration space.

use ringway_vhost::message::{CONFIG_MIGRATION, Request, protocol_feature as pf};

use crate::case::{Case, Seen, Verdict, expect};
use crate::context::Context;
use crate::device::Device;
use crate::session::Session;

/// Offset, size and flags before the bytes.
const HEAD: usize = 12;
/// What every device of these types has: a MAC address, status and queue pairs, or a capacity and more.
const LEN: u32 = 10;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "get-config",
        &["VU-BE-get-config-00", "VU-BE-get-config-01"],
        "GET_CONFIG is answered with as many bytes as were asked for",
        get_config,
    )
    .with_protocol(pf::CONFIG)
    .with_requests(),
    Case::must(
        "get-config-part",
        &["VU-BE-get-config-00"],
        "GET_CONFIG from an offset on gives those bytes of the whole",
        get_config_part,
    )
    .with_protocol(pf::CONFIG)
    .with_requests(),
    Case::must(
        "get-config-outside",
        &["VU-BE-get-config-01"],
        "GET_CONFIG past the end of any configuration space is answered without bytes",
        get_config_outside,
    )
    .with_protocol(pf::CONFIG),
    Case::must(
        "set-config-read-only",
        &["VU-BE-set-config-01"],
        "SET_CONFIG by a driver does not change a field that is read-only",
        set_config_read_only,
    )
    .with_protocol(pf::CONFIG)
    .with_requests(),
    Case::should(
        "set-config-refusal",
        &["VU-FB-vhost-user-protocol-f-reply-ack-01"],
        "SET_CONFIG by a driver of a field that is read-only is not answered with 0",
        set_config_refusal,
    )
    .with_protocol(pf::CONFIG | pf::REPLY_ACK)
    .with_requests(),
    Case::must(
        "set-config-answer",
        &["VU-BE-set-config-00"],
        "SET_CONFIG is answered if that is asked for",
        set_config_answer,
    )
    .with_protocol(pf::CONFIG | pf::REPLY_ACK)
    .of(&[Device::Net]),
];

/// What a part of the configuration space holds.
fn read(session: &mut Session<'_>, offset: u32, size: u32) -> Result<Vec<u8>, Verdict> {
    let reply = session.ask(Request::GetConfig { offset, size, flags: 0 })?;
    let due = HEAD + size as usize;
    let len = reply.payload.len();
    expect(len == due, &format!("a payload of {due} bytes, as asked"), || format!("{len} bytes"))?;
    Ok(reply.payload[HEAD..].to_vec())
}

fn get_config(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIG)?;
    for size in [1, 4, LEN] {
        read(&mut session, 0, size)?;
    }
    Ok(format!("{:02x?}", read(&mut session, 0, LEN)?))
}

fn get_config_part(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIG)?;
    let whole = read(&mut session, 0, LEN)?;
    for offset in [4, 6, 8] {
        let part = read(&mut session, offset, 2)?;
        let due = &whole[offset as usize..offset as usize + 2];
        expect(part == due, &format!("{due:02x?} from {offset} on"), || format!("{part:02x?}"))?;
    }
    Ok("three parts".into())
}

fn get_config_outside(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIG)?;
    let reply = session.ask(Request::GetConfig { offset: 256, size: 8, flags: 0 })?;
    expect(reply.payload.is_empty(), "no payload", || format!("{} bytes", reply.payload.len()))?;
    session.barrier()?;
    Ok("no payload".into())
}

fn set_config_read_only(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIG)?;
    let before = read(&mut session, 0, 6)?;
    let bytes: Vec<_> = before.iter().map(|byte| byte ^ 0x5a).collect();
    // What it answers is another case's matter.
    session.tell(Request::SetConfig { offset: 0, flags: 0, bytes })?;
    drop(session);
    let mut session = context.negotiate(0, pf::CONFIG)?;
    let after = read(&mut session, 0, 6)?;
    expect(before == after, "the field as it was", || format!("{before:02x?} became {after:02x?}"))?;
    Ok("unchanged".into())
}

fn set_config_refusal(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIG)?;
    let bytes = read(&mut session, 0, 6)?.iter().map(|byte| byte ^ 0x5a).collect();
    session.refused(Request::SetConfig { offset: 0, flags: 0, bytes })
}

fn set_config_answer(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIG)?;
    let bytes = read(&mut session, 0, 6)?;
    let answer = session.ack(Request::SetConfig { offset: 0, flags: CONFIG_MIGRATION, bytes })?;
    session.barrier()?;
    Ok(format!("answer {answer}"))
}
