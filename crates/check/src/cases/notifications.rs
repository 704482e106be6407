//! Kicks and calls: by event counters, and in band.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED};
use ringway_vhost::message::{ChannelRequest, Header, Kind, Request, protocol_feature as pf};
use ringway_vhost::socket::{Message, Socket};

use crate::case::{Case, Seen, Verdict, expect, fail, trouble};
use crate::context::{Context, QUIET};
use crate::event::{event, is_signalled, share, wait_readable};
use crate::guest::Guest;
use crate::rig::Rig;
use crate::session::Session;

/// In band, by the document's conditions.
const INBAND: u64 = pf::INBAND_NOTIFICATIONS | pf::BACKEND_REQ | pf::REPLY_ACK;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "call-split",
        &["DEV-SPLIT-used-buffer-notification-suppression-03", "VU-BE-set-vring-call-00"],
        "used chains are called for if the driver asks",
        |c| called(c, 0),
    )
    .with_requests(),
    Case::must(
        "call-packed",
        &["VU-BE-set-vring-call-00"],
        "used chains of a packed ring are called for if the driver asks",
        |c| called(c, RING_PACKED),
    )
    .with_features(RING_PACKED)
    .with_requests(),
    Case::must(
        "call-event-idx-split",
        &["DEV-SPLIT-used-buffer-notification-suppression-05"],
        "with EVENT_IDX a call comes when the index asked for is passed",
        |c| called(c, RING_EVENT_IDX),
    )
    .with_features(RING_EVENT_IDX)
    .with_requests(),
    Case::must(
        "call-event-idx-packed",
        &["VU-BE-set-vring-call-00"],
        "with EVENT_IDX a call comes when the slot asked for is passed",
        |c| called(c, RING_EVENT_IDX | RING_PACKED),
    )
    .with_features(RING_EVENT_IDX | RING_PACKED)
    .with_requests(),
    Case::should(
        "no-call-split",
        &["DEV-SPLIT-used-buffer-notification-suppression-02"],
        "no call comes while the driver wants none",
        |c| not_called(c, 0),
    )
    .with_requests(),
    Case::should(
        "no-call-event-idx",
        &["DEV-SPLIT-used-buffer-notification-suppression-06"],
        "with EVENT_IDX no call comes before the index asked for",
        |c| not_called(c, RING_EVENT_IDX),
    )
    .with_features(RING_EVENT_IDX)
    .with_requests(),
    Case::must(
        "event-idx-ignores-flag",
        &["DEV-SPLIT-used-buffer-notification-suppression-04"],
        "with EVENT_IDX the available ring's flag counts for nothing",
        event_idx_ignores_flag,
    )
    .with_features(RING_EVENT_IDX)
    .with_requests(),
    Case::must(
        "call-replaced",
        &["VU-BE-ring-states-09", "VU-BE-set-vring-call-00"],
        "a call file descriptor can be replaced while the ring runs",
        call_replaced,
    )
    .with_requests(),
    Case::must(
        "without-call",
        &["VU-BE-set-vring-call-00"],
        "a ring without a call file descriptor works, and no call comes",
        without_call,
    )
    .with_requests(),
    Case::must(
        "spurious-kicks",
        &["DEV-SPLIT-available-buffer-notification-suppression-05"],
        "kicks for nothing do no harm",
        spurious_kicks,
    )
    .with_requests(),
    Case::must(
        "kick-inband",
        &["VU-BE-vring-kick-00", "VU-BE-ring-states-07"],
        "VRING_KICK starts and kicks a ring",
        kick_inband,
    )
    .with_protocol(INBAND)
    .with_requests(),
    Case::may(
        "call-inband",
        &["VU-BE-backend-vring-call-01", "VU-BE-backend-vring-call-02"],
        "a call in band names the ring, and nothing else",
        call_inband,
    )
    .with_protocol(INBAND)
    .with_requests(),
    Case::must(
        "inband-taken",
        &["VU-BE-vring-kick-00"],
        "VRING_KICK is answered if that is asked for",
        inband_taken,
    )
    .with_protocol(INBAND),
];

/// The channel for requests of the back-end: our end.
pub(super) struct Channel(Socket);

/// Our end, and the one to be sent.
pub(super) fn channel() -> Result<(Channel, OwnedFd), Verdict> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| trouble("socketpair", e))?;
    let ours = Socket::new(ours, Kind::Request).map_err(|e| trouble("socketpair", e))?;
    Ok((Channel(ours), theirs.into()))
}

/// Gives the back-end its channel, if `BACKEND_REQ` was negotiated.
pub(super) fn open_channel(session: &mut Session<'_>) -> Result<Option<Channel>, Verdict> {
    if !session.has_protocol(pf::BACKEND_REQ) {
        return Ok(None);
    }
    let (ours, theirs) = channel()?;
    session.set(Request::SetBackendReqFd(theirs))?;
    Ok(Some(ours))
}

impl Channel {
    /// Whether something comes within `limit`.
    pub(super) fn has_message(&self, limit: Duration) -> bool {
        wait_readable(self.0.as_fd(), limit)
    }

    /// The next request of the back-end, answered with success if that is asked for.
    pub(super) fn next(&mut self, limit: Duration) -> Result<Option<ChannelRequest>, Verdict> {
        Ok(self.next_with_payload(limit)?.map(|(request, _)| request))
    }

    /// The same, with the payload's bytes.
    fn next_with_payload(&mut self, limit: Duration) -> Result<Option<(ChannelRequest, Vec<u8>)>, Verdict> {
        loop {
            let broken = |error: &dyn std::fmt::Display| fail("a request on the channel", error.to_string());
            if let Some(message) = self.0.receive().map_err(|e| broken(&e))? {
                let Message { header, payload, fds } = message;
                let request = ChannelRequest::decode(&header, &payload, fds).map_err(|e| broken(&e))?;
                self.answer(header)?;
                return Ok(Some((request, payload)));
            }
            if !self.has_message(limit) {
                return Ok(None);
            }
        }
    }

    fn answer(&mut self, header: Header) -> Result<(), Verdict> {
        if header.needs_reply() {
            self.0.send(header.reply(&0_u64.to_le_bytes())).map_err(|e| trouble("answer", e))?;
        }
        Ok(())
    }
}

/// The driver asks for a call and waits for it.
fn called(context: &Context, features: u64) -> Seen {
    let mut rig = context.running(features, 0)?;
    rig.requests_are_used(1)?;
    for burst in [1, 5, 1, 32] {
        // Calls for what was used before.
        is_signalled(&rig.data().call, Duration::ZERO)?;
        let _ = rig.data().queue.arm();
        rig.offer(burst)?;
        rig.kick();
        let is_called = is_signalled(&rig.data().call, context.time_left())?;
        expect(is_called, "a call", || "none came".into())?;
        rig.used(burst)?;
        rig.data().queue.suppress();
    }
    Ok("4 calls".into())
}

fn not_called(context: &Context, features: u64) -> Seen {
    let mut rig = context.running(features, 0)?;
    rig.requests_are_used(1)?;
    rig.data().queue.suppress();
    std::thread::sleep(QUIET);
    is_signalled(&rig.data().call, Duration::ZERO)?;
    rig.requests_are_used(3)?;
    expect(!is_signalled(&rig.data().call, QUIET)?, "no call", || "one came".into())?;
    Ok("no call".into())
}

fn event_idx_ignores_flag(context: &Context) -> Seen {
    let mut rig = context.running(RING_EVENT_IDX, 0)?;
    rig.requests_are_used(1)?;
    let [_, driver, _] = Guest::ring(rig.data().index);
    let _ = rig.data().queue.arm();
    rig.guest.write(driver, &1_u16.to_le_bytes())?;
    is_signalled(&rig.data().call, Duration::ZERO)?;
    rig.offer(1)?;
    rig.kick();
    let is_called = is_signalled(&rig.data().call, context.time_left())?;
    expect(is_called, "a call", || "none came".into())?;
    Ok("called".into())
}

fn call_replaced(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    rig.requests_are_used(1)?;
    let at = rig.data_at();
    for _ in 0..3 {
        let (call, index) = (event()?, rig.vrings[at].index);
        rig.session.set(Request::SetVringCall { index, fd: Some(share(&call)?) })?;
        rig.session.barrier()?;
        rig.vrings[at].call = call;
        let _ = rig.data().queue.arm();
        rig.offer(1)?;
        rig.kick();
        let is_called = is_signalled(&rig.data().call, context.time_left())?;
        expect(is_called, "a call on the new file descriptor", || "none came".into())?;
        rig.used(1)?;
    }
    Ok("3 replacements".into())
}

fn without_call(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    let index = rig.data().index;
    rig.session.set(Request::SetVringCall { index, fd: None })?;
    rig.session.barrier()?;
    is_signalled(&rig.data().call, Duration::ZERO)?;
    let _ = rig.data().queue.arm();
    rig.requests_are_used(5)?;
    expect(!is_signalled(&rig.data().call, QUIET)?, "no call", || "one came".into())?;
    Ok("5 requests".into())
}

fn spurious_kicks(context: &Context) -> Seen {
    let mut rig = context.running(0, 0)?;
    for _ in 0..3 {
        for _ in 0..100 {
            rig.kick_all();
        }
        rig.requests_are_used(2)?;
    }
    Ok("300 kicks".into())
}

/// A rig that is notified in band, with its channel.
fn inband(context: &Context) -> Result<(Rig<'_>, Channel), Verdict> {
    let mut session = context.negotiate(0, INBAND)?;
    let (ours, theirs) = channel()?;
    session.set(Request::SetBackendReqFd(theirs))?;
    let mut rig = Rig::new(session)?;
    rig.share_memory()?;
    for at in 0..rig.vrings.len() {
        rig.describe_ring(at, None)?;
        rig.enable(at, true)?;
    }
    Ok((rig, ours))
}

fn kick_inband(context: &Context) -> Seen {
    let (mut rig, _channel) = inband(context)?;
    let index = rig.data().index;
    for other in 0..rig.vrings.len() as u32 {
        rig.session.set(Request::VringKick { index: other })?;
    }
    for _ in 0..3 {
        rig.offer(2)?;
        rig.session.set(Request::VringKick { index })?;
        rig.used(2)?;
    }
    Ok("6 requests".into())
}

fn call_inband(context: &Context) -> Seen {
    let (mut rig, mut channel) = inband(context)?;
    let index = rig.data().index;
    for other in 0..rig.vrings.len() as u32 {
        rig.session.set(Request::VringKick { index: other })?;
    }
    let _ = rig.data().queue.arm();
    rig.offer(1)?;
    rig.session.set(Request::VringKick { index })?;
    while let Some((request, payload)) = channel.next_with_payload(context.time_left())? {
        let ChannelRequest::VringCall { index: called } = request else { continue };
        let rest = payload.get(4..).unwrap_or_default();
        expect(rest == [0; 4], "a number of 0 beside the index", || format!("{rest:?}"))?;
        if called == index {
            return Ok("called".into());
        }
    }
    Err(fail("BACKEND_VRING_CALL", "none came"))
}

fn inband_taken(context: &Context) -> Seen {
    let (mut rig, _channel) = inband(context)?;
    rig.session.set(Request::VringKick { index: 0 })?;
    Ok("answer 0".into())
}
