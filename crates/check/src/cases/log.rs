//! The log of what the device writes to memory, for migrations.

use std::collections::BTreeSet;

use ringway_memory::Gpa;
use ringway_vhost::frontend::DirtyLog;
use ringway_vhost::message::{F_LOG_ALL, Request, protocol_feature as pf};

use crate::case::{Case, Seen, Verdict, expect, fail, skip, trouble};
use crate::context::Context;
use crate::device::Device;
use crate::event::{event, share};
use crate::guest::{Guest, LEN};
use crate::rig::Rig;

/// The page size of the log.
const PAGE: u64 = 4096;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "set-log-base",
        &["VU-BE-set-log-base-00"],
        "SET_LOG_BASE with a file is answered, whether or not that is asked for",
        set_log_base,
    )
    .with_protocol(pf::LOG_SHMFD),
    Case::must("set-log-fd", &["VU-BE-set-log-fd-00"], "SET_LOG_FD succeeds", set_log_fd)
        .with_protocol(pf::LOG_SHMFD | pf::REPLY_ACK),
    Case::should(
        "log-used-ring",
        &["VU-BE-migration-02", "VU-BE-migration-04"],
        "writes to the used ring are logged where SET_VRING_ADDR says",
        |c| used_ring(c, 0),
    )
    .with_features(F_LOG_ALL)
    .with_protocol(pf::LOG_SHMFD)
    .with_requests(),
    Case::should(
        "log-used-ring-packed",
        &["VU-BE-migration-02", "VU-BE-migration-04"],
        "writes to a packed ring are logged where SET_VRING_ADDR says",
        |c| used_ring(c, ringway_spec::feature::RING_PACKED),
    )
    .with_features(F_LOG_ALL | ringway_spec::feature::RING_PACKED)
    .with_protocol(pf::LOG_SHMFD)
    .with_requests(),
    Case::should("log-data", &["VU-BE-migration-01"], "writes to buffers are logged", data)
        .with_features(F_LOG_ALL)
        .with_protocol(pf::LOG_SHMFD)
        .with_requests(),
    Case::should(
        "log-switched-off",
        &["VU-BE-migration-01"],
        "without F_LOG_ALL nothing is logged, also if it was before",
        switched_off,
    )
    .with_features(F_LOG_ALL)
    .with_protocol(pf::LOG_SHMFD)
    .with_requests(),
];

/// A log for all of the guest's memory.
fn new_log() -> Result<DirtyLog, Verdict> {
    DirtyLog::new(Guest::gpa(LEN)).map_err(|e| trouble("a log", e))
}

/// Hands a log over; the answer comes in any case.
fn set_log(rig: &mut Rig<'_>, log: &DirtyLog) -> Result<(), Verdict> {
    let fd = log.share().map_err(|e| trouble("dup", e))?;
    rig.session.ask(Request::SetLogBase { len: log.len(), offset: 0, fd }).map(drop)
}

/// The pages that are marked.
fn marked(log: &DirtyLog) -> Result<BTreeSet<Gpa>, Verdict> {
    Ok(log.pages().map_err(|e| trouble("read a log", e))?.collect())
}

/// The page of an address must be marked.
fn expect_marked(log: &DirtyLog, addr: Gpa) -> Result<(), Verdict> {
    let page = Gpa(addr.0 - addr.0 % PAGE);
    expect(marked(log)?.contains(&page), "the page is marked", || "it is not".into())
}

fn set_log_base(context: &Context) -> Seen {
    let mut rig = context.rig(0, pf::LOG_SHMFD)?;
    set_log(&mut rig, &new_log()?)?;
    rig.session.barrier()?;
    Ok("answered".into())
}

fn set_log_fd(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::LOG_SHMFD)?;
    session.set(Request::SetLogFd(share(&event()?)?))?;
    session.barrier()?;
    Ok("taken".into())
}

/// Where we say that used rings are, for the log: a page that nothing is ever written to.
fn ring_page(index: u32) -> Gpa {
    let [at, ..] = Guest::ring(12 + index);
    Guest::gpa(at)
}

/// Rings that run, and then are logged.
fn logged(context: &Context, format: u64) -> Result<(Rig<'_>, DirtyLog), Verdict> {
    let mut rig = context.running(format, pf::LOG_SHMFD)?;
    rig.requests_are_used(2)?;
    let log = new_log()?;
    set_log(&mut rig, &log)?;
    let features = rig.session.features | F_LOG_ALL;
    rig.session.set(Request::SetFeatures(features))?;
    for index in 0..rig.vrings.len() as u32 {
        let addresses = rig.guest.addresses(index, Some(ring_page(index)));
        rig.session.set(Request::SetVringAddr { index, addresses })?;
    }
    rig.session.barrier()?;
    Ok((rig, log))
}

fn used_ring(context: &Context, format: u64) -> Seen {
    let (mut rig, log) = logged(context, format)?;
    rig.requests_are_used(2)?;
    let index = rig.data().index;
    // The marks may follow the used index.
    rig.session.barrier()?;
    expect_marked(&log, ring_page(index))?;
    Ok(format!("{} pages marked", marked(&log)?.len()))
}

fn data(context: &Context) -> Seen {
    let (mut rig, log) = logged(context, 0)?;
    let used = if context.device == Device::Net {
        super::states::lend_receive_buffers(&mut rig, 32)?;
        rig.requests_are_used(4)?;
        match rig.used_of(0, 1) {
            Ok(used) => used,
            Err(_) => return Err(skip("no frames come here")),
        }
    } else {
        rig.offer(2)?;
        rig.kick();
        rig.used(2)?
    };
    rig.session.barrier()?;
    for (lent, _) in used {
        for (at, _) in lent.writable {
            expect_marked(&log, Guest::gpa(at))?;
        }
    }
    Ok(format!("{} pages marked", marked(&log)?.len()))
}

fn switched_off(context: &Context) -> Seen {
    let (mut rig, _log) = logged(context, 0)?;
    rig.requests_are_used(2)?;
    let features = rig.session.features;
    rig.session.set(Request::SetFeatures(features))?;
    // Another, in which nothing is marked yet.
    let log = new_log()?;
    set_log(&mut rig, &log)?;
    rig.requests_are_used(2)?;
    rig.session.barrier()?;
    match marked(&log)?.len() {
        0 => Ok("nothing marked".into()),
        count => Err(fail("no page marked", format!("{count} are"))),
    }
}
