//! The state of a device that moves to another host, and memory that follows it there.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use ringway_vhost::message::{
    DEVICE_STATE_NO_FD, DeviceStateTransfer, Outgoing, Request, StateDirection, protocol_feature as pf,
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::case::{Case, Seen, Verdict, expect, fail, trouble};
use crate::context::Context;
use crate::event::wait_readable;
use crate::session::Session;

/// More state than any device has.
const MAX_STATE: usize = 64 << 20;
/// The request's number.
const SET_DEVICE_STATE_FD: u32 = 42;
const SET_MEM_TABLE: u32 = 5;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "device-state-saved",
        &[
            "VU-BE-set-device-state-fd-00",
            "VU-BE-set-device-state-fd-03",
            "VU-BE-set-device-state-fd-04",
            "VU-FB-migrating-back-end-state-01",
        ],
        "a stopped device writes its state to the channel, and closes it",
        |c| save(c).map(|state| format!("{} bytes", state.len())),
    )
    .with_protocol(pf::DEVICE_STATE),
    Case::must(
        "device-state-loaded",
        &[
            "VU-BE-check-device-state-00",
            "VU-BE-check-device-state-01",
            "VU-BE-migrating-back-end-state-03",
            "VU-FB-migrating-back-end-state-02",
        ],
        "a device takes the state that one of its kind wrote",
        load,
    )
    .with_protocol(pf::DEVICE_STATE),
    Case::must(
        "postcopy-advise",
        &["VU-BE-postcopy-advise-00", "VU-BE-postcopy-advise-01"],
        "POSTCOPY_ADVISE is answered with a userfaultfd",
        postcopy_advise,
    )
    .with_protocol(pf::PAGEFAULT),
    Case::must(
        "postcopy",
        &[
            "VU-BE-postcopy-listen-00",
            "VU-BE-postcopy-end-00",
            "VU-BE-postcopy-end-02",
            "VU-BE-set-mem-table-01",
        ],
        "after POSTCOPY_LISTEN the memory table is answered with where it is mapped; POSTCOPY_END with 0",
        postcopy,
    )
    .with_protocol(pf::PAGEFAULT | pf::REPLY_ACK),
];

/// The two ends of a pipe: to read, to write.
fn pipe() -> Result<(OwnedFd, OwnedFd), Verdict> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|e| trouble("pipe", e))
}

/// Hands over our end of a channel, or takes the back-end's; returns the end that is ours.
fn transfer(
    session: &mut Session<'_>,
    direction: StateDirection,
    ours: OwnedFd,
    theirs: OwnedFd,
) -> Result<OwnedFd, Verdict> {
    session.tell(Request::SetDeviceStateFd(DeviceStateTransfer { direction, phase: 0 }, theirs))?;
    let reply = session.reply(SET_DEVICE_STATE_FD)?;
    let bytes = reply.payload.as_slice().try_into();
    let answer = u64::from_le_bytes(bytes.map_err(|_| fail("8 bytes", reply.payload.len().to_string()))?);
    let (fails, has_no_fd) = (answer & 0xff != 0, answer & DEVICE_STATE_NO_FD != 0);
    expect(!fails, "success in bits 0 to 7", || format!("{answer:#x}"))?;
    expect(has_no_fd == reply.fds.is_empty(), "bit 8 if and only if no file descriptor comes", || {
        format!("{answer:#x} with {} file descriptors", reply.fds.len())
    })?;
    Ok(reply.fds.into_iter().next().unwrap_or(ours))
}

/// The state of a device that was never started.
fn save(context: &Context) -> Result<Vec<u8>, Verdict> {
    let mut session = context.negotiate(0, pf::DEVICE_STATE)?;
    let (ours, theirs) = pipe()?;
    let end = transfer(&mut session, StateDirection::Save, ours, theirs)?;
    let mut file = File::from(end);
    let (mut state, mut part) = (Vec::new(), [0; 4096]);
    loop {
        if !wait_readable(file.as_fd(), context.time_left()) {
            return Err(fail("the end of the state", format!("silence after {} bytes", state.len())));
        }
        match file.read(&mut part) {
            Ok(0) => break,
            Ok(n) if state.len() < MAX_STATE => state.extend_from_slice(&part[..n]),
            Ok(_) => return Err(fail("the end of the state", format!("more than {MAX_STATE} bytes"))),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(fail("the state", error.to_string())),
        }
    }
    check(&mut session)?;
    Ok(state)
}

fn check(session: &mut Session<'_>) -> Result<(), Verdict> {
    let result = session.ask_u64(Request::CheckDeviceState)?;
    expect(result == 0, "CHECK_DEVICE_STATE says 0", || result.to_string())
}

fn load(context: &Context) -> Seen {
    let state = save(context)?;
    let mut session = context.negotiate(0, pf::DEVICE_STATE)?;
    let (theirs, ours) = pipe()?;
    let end = transfer(&mut session, StateDirection::Load, ours, theirs)?;
    // What a pipe has room for; devices' states are shorter.
    let room = state.len().min(65536);
    File::from(end).write_all(&state[..room]).map_err(|e| fail("the state is read", e.to_string()))?;
    check(&mut session)?;
    Ok(format!("{room} bytes"))
}

fn advise(session: &mut Session<'_>) -> Result<OwnedFd, Verdict> {
    let reply = session.ask(Request::PostcopyAdvise)?;
    reply.fds.into_iter().next().ok_or_else(|| fail("a file descriptor", "none"))
}

fn postcopy_advise(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::PAGEFAULT)?;
    advise(&mut session)?;
    Ok("a file descriptor".into())
}

fn postcopy(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::PAGEFAULT)?;
    let _userfaultfd = advise(&mut session)?;
    session.set(Request::PostcopyListen)?;
    let guest = crate::guest::Guest::new(0)?;
    session.tell(Request::SetMemTable(vec![guest.region()?]))?;
    let reply = session.reply(SET_MEM_TABLE)?;
    // The table as it was sent, but for where each region is.
    let table = Request::SetMemTable(vec![guest.region()?]).encode(false).bytes;
    let (same, len) = (reply.payload.get(..24) == table.get(12..36), reply.payload.len());
    expect(same, "the table that was sent", || format!("{len} other bytes"))?;
    // The front-end's consent: the same message once more, with nothing in it.
    let Outgoing { bytes, .. } = Request::SetMemTable(Vec::new()).encode(false);
    session.send_raw(&bytes, &[]);
    let result = session.ask_u64(Request::PostcopyEnd)?;
    expect(result == 0, "POSTCOPY_END says 0", || result.to_string())?;
    Ok("answered".into())
}
