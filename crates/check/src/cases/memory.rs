//! Memory: tables, regions one by one, and what becomes of them.
//!
//! Whether a back-end has a file mapped can be seen: the kernel refuses to seal a file against writes while it is
//! mapped writable anywhere.

use std::os::fd::OwnedFd;

use ringway_memory::{FrontendVa, Gpa};
use ringway_queue::Segment;
use ringway_vhost::message::{Outgoing, RegionDescription, Request, protocol_feature as pf};
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::Errno;

use crate::case::{Case, Seen, Verdict, expect, fail, trouble};
use crate::context::Context;
use crate::event::Tracer;
use crate::guest::{Guest, dup, memory_file};
use crate::rig::Rig;
use crate::session::Session;

/// The request's number.
const REM_MEM_REG: u32 = 38;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "mem-table-of-eight",
        &["VU-BE-set-mem-table-00"],
        "SET_MEM_TABLE takes eight regions, and none",
        table_of_eight,
    )
    .with_protocol(pf::REPLY_ACK),
    Case::must(
        "mmap-offset",
        &["VU-BE-set-mem-table-00"],
        "a region may begin anywhere in its file",
        mmap_offset,
    )
    .with_requests(),
    Case::must(
        "mem-table-replaced",
        &["VU-BE-set-mem-table-00"],
        "SET_MEM_TABLE replaces what was there: the old memory is let go, rings work in the new",
        table_replaced,
    )
    .with_requests(),
    Case::must(
        "mem-table-while-running",
        &["VU-BE-ring-states-09"],
        "SET_MEM_TABLE while rings run: they go on in the new table",
        table_while_running,
    )
    .with_requests(),
    Case::must(
        "add-mem-reg",
        &["VU-BE-add-mem-reg-00", "VU-BE-add-mem-reg-01"],
        "ADD_MEM_REG maps a region",
        add_region,
    )
    .with_protocol(pf::CONFIGURE_MEM_SLOTS | pf::REPLY_ACK),
    Case::must(
        "add-mem-reg-is-used",
        &["VU-BE-add-mem-reg-01"],
        "rings and buffers in memory that came by ADD_MEM_REG work",
        added_memory_is_used,
    )
    .with_protocol(pf::CONFIGURE_MEM_SLOTS)
    .with_requests(),
    Case::must(
        "all-mem-slots",
        &["VU-BE-get-max-mem-slots-00", "VU-BE-add-mem-reg-00"],
        "there is room for as many regions as GET_MAX_MEM_SLOTS says",
        all_slots,
    )
    .with_protocol(pf::CONFIGURE_MEM_SLOTS | pf::REPLY_ACK),
    Case::must(
        "rem-mem-reg",
        &["VU-BE-rem-mem-reg-00", "VU-BE-rem-mem-reg-01"],
        "REM_MEM_REG unmaps a region",
        remove_region,
    )
    .with_protocol(pf::CONFIGURE_MEM_SLOTS | pf::REPLY_ACK),
    Case::must(
        "rem-mem-reg-offset",
        &["VU-BE-rem-mem-reg-02"],
        "REM_MEM_REG finds the region whatever offset in the file it names",
        remove_region_by_other_offset,
    )
    .with_protocol(pf::CONFIGURE_MEM_SLOTS | pf::REPLY_ACK),
    Case::must(
        "rem-mem-reg-fd",
        &["VU-BE-rem-mem-reg-04"],
        "a file descriptor that comes with REM_MEM_REG is closed",
        remove_region_closes_fd,
    )
    .with_protocol(pf::CONFIGURE_MEM_SLOTS | pf::REPLY_ACK),
    Case::may(
        "rem-mem-reg-fd-taken",
        &["VU-BE-rem-mem-reg-03"],
        "REM_MEM_REG with a file descriptor is taken",
        remove_region_with_fd,
    )
    .with_protocol(pf::CONFIGURE_MEM_SLOTS | pf::REPLY_ACK),
    Case::must(
        "memory-is-let-go",
        &["VU-BE-set-mem-table-00"],
        "when a session ends, its memory is let go",
        let_go,
    ),
];

/// A region of a page or more, and its file.
fn small_region(slot: u64, len: u64) -> Result<(RegionDescription, OwnedFd), Verdict> {
    let at = 0x2_0000_0000 + slot * 0x20_0000;
    let description =
        RegionDescription { gpa: Gpa(at), len, frontend_va: FrontendVa(0x6000_0000_0000 + at), offset: 0 };
    Ok((description, memory_file(len)?))
}

/// Whether the file is mapped, writable, anywhere. If it was not, it can be mapped no more.
fn is_mapped(file: &OwnedFd) -> Result<bool, Verdict> {
    match fcntl_add_seals(file, SealFlags::WRITE) {
        Ok(()) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        Err(error) => Err(trouble("seal a file", error)),
    }
}

fn table_of_eight(context: &Context) -> Seen {
    let mut session = context.negotiate(0, 0)?;
    let regions = (0..8).map(|slot| small_region(slot, 0x1000)).collect::<Result<Vec<_>, _>>()?;
    session.set(Request::SetMemTable(regions))?;
    session.set(Request::SetMemTable(Vec::new()))?;
    Ok("eight regions, then none".into())
}

fn mmap_offset(context: &Context) -> Seen {
    let session = context.negotiate(0, 0)?;
    let mut rig = Rig::with_guest(session, Guest::new(0x20_0000)?)?;
    rig.share_memory()?;
    rig.start_all()?;
    rig.requests_are_used(3)?;
    Ok("requests are used".into())
}

fn table_replaced(context: &Context) -> Seen {
    let mut session = context.negotiate(0, 0)?;
    let (description, file) = small_region(0, 0x1000)?;
    session.set(Request::SetMemTable(vec![(description, dup(&file)?)]))?;
    session.barrier()?;
    let mut rig = Rig::new(session)?;
    rig.share_memory()?;
    rig.start_all()?;
    rig.requests_are_used(3)?;
    expect(!is_mapped(&file)?, "the old memory is unmapped", || "it is mapped".into())?;
    Ok("requests are used, the old memory is unmapped".into())
}

fn table_while_running(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    rig.requests_are_used(3)?;
    for slot in 0..4 {
        let regions = vec![rig.guest.region()?, small_region(slot, 0x1000)?];
        rig.session.set(Request::SetMemTable(regions))?;
        rig.requests_are_used(3)?;
    }
    Ok("requests are used after each".into())
}

fn add_region(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIGURE_MEM_SLOTS)?;
    let (description, file) = small_region(0, 0x1000)?;
    session.set(Request::AddMemReg(description, dup(&file)?))?;
    expect(is_mapped(&file)?, "the file is mapped", || "it is not".into())?;
    Ok("mapped".into())
}

fn added_memory_is_used(context: &Context) -> Seen {
    let session = context.negotiate(0, pf::CONFIGURE_MEM_SLOTS)?;
    let mut rig = Rig::new(session)?;
    let (description, file) = rig.guest.region()?;
    rig.session.set(Request::AddMemReg(description, file))?;
    rig.start_all()?;
    rig.requests_are_used(3)?;
    // A buffer in a region that came while the ring ran.
    let (description, file) = small_region(0, 0x1000)?;
    rig.session.set(Request::AddMemReg(description, dup(&file)?))?;
    rig.session.barrier()?;
    let (mut readable, writable, lent) = rig.write_request()?;
    let Some(last) = readable.last_mut() else { return Err(fail("a request", "none")) };
    let mut bytes = vec![0; last.len as usize];
    rig.guest.read_to(last.addr.0 - Guest::gpa(0).0, &mut bytes)?;
    rustix::io::pwrite(&file, &bytes, 0).map_err(|e| trouble("write to a file", e))?;
    *last = Segment { addr: description.gpa, len: last.len };
    rig.add(&readable, &writable, lent)?;
    rig.publish();
    rig.kick();
    let used = rig.used(1)?;
    rig.check_answers(&used)?;
    Ok("requests are used".into())
}

fn all_slots(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIGURE_MEM_SLOTS)?;
    let slots = session.ask_u64(Request::GetMaxMemSlots)?.min(512);
    for slot in 0..slots {
        let (description, file) = small_region(slot, 0x1000)?;
        session.set(Request::AddMemReg(description, file))?;
    }
    for slot in 0..slots {
        session.set(Request::RemMemReg(small_region(slot, 0x1000)?.0))?;
    }
    Ok(format!("{slots} regions, and gone again"))
}

fn remove_region(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIGURE_MEM_SLOTS)?;
    let (description, file) = small_region(0, 0x1000)?;
    session.set(Request::AddMemReg(description, dup(&file)?))?;
    session.set(Request::RemMemReg(description))?;
    expect(!is_mapped(&file)?, "the file is unmapped", || "it is mapped".into())?;
    // The place is free again.
    let (description, file) = small_region(0, 0x1000)?;
    session.set(Request::AddMemReg(description, file))?;
    Ok("unmapped".into())
}

fn remove_region_by_other_offset(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIGURE_MEM_SLOTS)?;
    let (description, file) = small_region(0, 0x1000)?;
    session.set(Request::AddMemReg(description, dup(&file)?))?;
    session.set(Request::RemMemReg(RegionDescription { offset: 0x4000, ..description }))?;
    expect(!is_mapped(&file)?, "the file is unmapped", || "it is mapped".into())?;
    Ok("unmapped".into())
}

/// Adds a region, and removes it by a message with a file descriptor; the answer, if one came.
fn remove_with_fd(session: &mut Session<'_>, fd: OwnedFd) -> Result<Option<u64>, Verdict> {
    let (description, file) = small_region(0, 0x1000)?;
    session.set(Request::AddMemReg(description, file))?;
    let Outgoing { bytes, .. } = Request::RemMemReg(description).encode(true);
    session.send_outgoing(&Outgoing { bytes, fds: vec![fd] });
    Ok(session.reply_u64(REM_MEM_REG).ok())
}

fn remove_region_closes_fd(context: &Context) -> Seen {
    let (tracer, fd) = Tracer::new()?;
    let mut session = context.negotiate(0, pf::CONFIGURE_MEM_SLOTS)?;
    remove_with_fd(&mut session, fd)?;
    let is_closed = tracer.is_closed(context.time_left());
    expect(is_closed, "the file descriptor is closed", || "it is open".into())?;
    Ok("closed".into())
}

fn remove_region_with_fd(context: &Context) -> Seen {
    let mut session = context.negotiate(0, pf::CONFIGURE_MEM_SLOTS)?;
    match remove_with_fd(&mut session, memory_file(0x1000)?)? {
        Some(0) => Ok("taken".into()),
        Some(other) => Err(fail("an answer of 0", other.to_string())),
        None => Err(fail("an answer of 0", "none")),
    }
}

fn let_go(context: &Context) -> Seen {
    let mut session = context.negotiate(0, 0)?;
    let (description, file) = small_region(0, 0x1000)?;
    session.set(Request::SetMemTable(vec![(description, dup(&file)?)]))?;
    session.barrier()?;
    drop(session);
    // A back-end that has answered the next front-end is done with the last.
    context.connect()?.barrier()?;
    expect(!is_mapped(&file)?, "the memory is unmapped", || "it is mapped".into())?;
    Ok("unmapped".into())
}
