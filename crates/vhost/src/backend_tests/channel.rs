//! The back-end's channel: what is said on it, when, how often, and to whom.

use std::io::{Read, Write};

use rustix::event::{PollFd, Timespec, poll};

use super::*;
use crate::message::{ChannelRequest, VringArea};
use crate::socket::Socket;

const SEND_RARP: u32 = 19;
const VRING_KICK: u32 = 35;
const CONFIG_CHANGE: u32 = 2;
const VRING_CALL: u32 = 4;
const VRING_ERR: u32 = 5;

const IN_BAND: u64 = pf::INBAND_NOTIFICATIONS | pf::BACKEND_REQ | pf::REPLY_ACK;
const TOLD: u64 = pf::CONFIG | pf::BACKEND_REQ;

/// What the front-end hears: request, flags, payload.
type Heard = (u32, u32, Vec<u8>);

/// A vring's signal, to be answered or not.
fn signal(request: u32, ring: u32, needs_reply: bool) -> Heard {
    (request, if needs_reply { 9 } else { 1 }, words32(&[ring, 0]))
}

fn config_change() -> Heard {
    (CONFIG_CHANGE, 1, vec![])
}

/// All that waits in our end of the channel.
fn heard(mut ours: impl Read + std::os::fd::AsFd) -> Vec<Heard> {
    let mut messages = vec![];
    loop {
        let flags = rustix::fs::fcntl_getfl(&ours).expect("flags");
        rustix::fs::fcntl_setfl(&ours, flags | rustix::fs::OFlags::NONBLOCK).expect("not to wait");
        let mut head = [0; HEADER_LEN];
        if !matches!(ours.read(&mut head), Ok(HEADER_LEN)) {
            return messages;
        }
        let [request, flags, len] =
            [0, 4, 8].map(|at| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes")));
        let mut payload = vec![0; len as usize];
        ours.read_exact(&mut payload).expect("the payload");
        messages.push((request, flags, payload));
    }
}

/// Answers a request of the back-end's.
fn answer(mut ours: &UnixStream, request: u32) {
    ours.write_all(&[words32(&[request, 5, 8]), words64(&[0])].concat()).expect("an answer");
}

impl FrontEnd {
    /// In-band signals, and a channel.
    fn in_band(protocol: u64) -> (Self, UnixStream) {
        let mut front = Self::new();
        front.send_u64(SET_PROTOCOL_FEATURES, IN_BAND | protocol);
        let ours = front.channel();
        (front, ours)
    }

    fn running(&self, ring: u16) -> &Running {
        self.session.device.running[usize::from(ring)].as_ref().expect("a running vring")
    }
}

/// [VU-BE-back-end-communication-01] [VU-BE-set-backend-req-fd-00] A changed configuration is told on a socket and on a
/// pipe, if both features were negotiated.
#[test]
fn a_changed_configuration_is_told() {
    let guest = Guest::new();
    for is_pipe in [false, true] {
        for (protocol, is_told) in [(TOLD, true), (pf::BACKEND_REQ, false)] {
            let mut front = FrontEnd::new();
            front.send_u64(SET_PROTOCOL_FEATURES, protocol);
            let ours: File = if is_pipe {
                let (ours, theirs) = rustix::pipe::pipe().expect("a pipe");
                front.send_with(SET_BACKEND_REQ_FD, &[], vec![theirs]);
                ours.into()
            } else {
                OwnedFd::from(front.channel()).into()
            };
            front.start_ring(&guest, ACKED);
            for _ in 0..2 {
                front.session.config_changed();
                assert_eq!(heard(&ours), if is_told { vec![config_change()] } else { vec![] });
            }
            assert!(!front.is_ready());
        }
    }
    // Without a channel there is nobody to tell.
    let mut front = FrontEnd::with_ring(&guest, pf::CONFIG, 0);
    front.session.config_changed();
}

/// [VU-BE-suspended-device-state-03] While all rings are stopped nothing is said; what changes meanwhile is told when
/// one runs.
#[test]
fn a_suspended_device_says_nothing() {
    let guest = Guest::new();
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, TOLD);
    let ours = front.channel();
    front.session.config_changed();
    assert_eq!(heard(&ours), []);
    front.start_ring(&guest, ACKED);
    assert_eq!(heard(&ours), [config_change()]);
    front.base(0);
    front.session.config_changed();
    front.session.config_changed();
    assert!(front.session.turn().is_none());
    assert_eq!(heard(&ours), []);
    front.kick(0);
    assert_eq!(heard(&ours), [config_change()]);
    front.set_mem_table(&guest);
    assert_eq!(heard(&ours), [], "once");
}

/// A guest that has arrived and announces itself when the configuration asks it to is told to look there.
#[test]
fn an_announcement_is_asked_for() {
    let guest = Guest::new();
    for asks_drivers in [true, false] {
        let mut front = FrontEnd::of(Fake { more: pf::RARP, asks_drivers, ..Fake::default() });
        front.send_u64(SET_PROTOCOL_FEATURES, TOLD | pf::RARP);
        let ours = front.channel();
        front.start_ring(&guest, ACKED);
        front.send(SEND_RARP, &words64(&[0x0605_0403_0201]));
        assert_eq!(heard(&ours), if asks_drivers { vec![config_change()] } else { vec![] });
    }
}

/// [VU-BE-backend-vring-call-01] [VU-BE-backend-vring-call-02] [VU-BE-backend-vring-err-01]
/// [VU-BE-backend-vring-err-02] [VU-FB-in-band-notifications-01] A ring without file descriptors is signalled by messages, if that was negotiated;
/// a file descriptor is preferred, and a front-end that polls is left alone.
#[test]
fn rings_are_signalled_in_band() {
    let guest = Guest::new();
    let (mut front, ours) = FrontEnd::in_band(0);
    front.start_ring(&guest, ACKED);
    front.describe(&guest, 3, 0);
    front.kick(3);
    front.run(&guest, 1);
    assert_eq!(heard(&ours), [signal(VRING_CALL, 0, true)]);
    assert!(front.running(3).err.notify());
    assert_eq!(heard(&ours), [signal(VRING_ERR, 3, true)]);

    let (call, err) = (front.call(3), event());
    front.send_with(SET_VRING_ERR, &words64(&[3]), vec![err.try_clone().expect("a clone")]);
    assert!(front.running(3).call.notify() && front.running(3).err.notify());
    assert_eq!((signals(&call), signals(&err), heard(&ours)), (1, 1, vec![]));
    for request in [SET_VRING_CALL, SET_VRING_ERR] {
        front.send_u64(request, 0x103);
    }
    assert!(!front.running(3).call.notify() && !front.running(3).err.notify());
    assert_eq!(heard(&ours), []);
    // So it stays over a restart.
    front.base(3);
    front.kick(3);
    assert!(!front.running(3).call.notify());

    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, pf::BACKEND_REQ | pf::REPLY_ACK);
    let ours = front.channel();
    front.start_ring(&guest, ACKED);
    assert!(!front.running(0).call.notify());
    assert_eq!(heard(&ours), []);
}

/// A signal is said again when the front-end has answered, once however often it was wanted.
#[test]
fn signals_wait_for_answers() {
    let guest = Guest::new();
    let (mut front, ours) = FrontEnd::in_band(0);
    front.start_ring(&guest, ACKED);
    for _ in 0..5 {
        front.run(&guest, 1);
    }
    assert!(front.running(0).err.notify(), "another signal");
    assert_eq!(heard(&ours), [signal(VRING_CALL, 0, true), signal(VRING_ERR, 0, true)]);
    assert!(!front.is_ready());
    answer(&ours, VRING_CALL);
    assert!(front.is_ready());
    assert!(front.session.turn().is_none());
    assert_eq!(heard(&ours), [signal(VRING_CALL, 0, true)]);
    answer(&ours, VRING_ERR);
    answer(&ours, VRING_CALL);
    assert!(front.session.turn().is_none());
    assert_eq!((heard(&ours), front.is_ready()), (vec![], false), "all is said");
    front.run(&guest, 1);
    assert_eq!(heard(&ours), [signal(VRING_CALL, 0, true)]);
}

/// [VU-BE-suspended-device-state-02] [VU-BE-suspended-device-state-03] What a ring has to say is said before the ring
/// is reported stopped, and nothing after.
#[test]
fn a_stopped_ring_has_said_all() {
    let guest = Guest::new();
    let (mut front, ours) = FrontEnd::in_band(0);
    front.start_ring(&guest, ACKED);
    front.run(&guest, 1);
    front.run(&guest, 1);
    assert_eq!(heard(&ours).len(), 1);
    assert_eq!(front.base(0), 2);
    assert_eq!(heard(&ours), [signal(VRING_CALL, 0, true)]);
    answer(&ours, VRING_CALL);
    answer(&ours, VRING_CALL);
    guest.offer(0, 1);
    assert!(front.session.turn().is_none());
    assert_eq!((heard(&ours), front.is_ready()), (vec![], false));
}

/// A front-end that does not read costs nothing, and hears the last of what it missed once it reads.
#[test]
fn a_channel_that_nobody_reads() {
    let guest = Guest::new();
    for is_pipe in [false, true] {
        let mut front = FrontEnd::new();
        front.send_u64(SET_PROTOCOL_FEATURES, TOLD | IN_BAND);
        let ours: File = if is_pipe {
            let (ours, theirs) = rustix::pipe::pipe().expect("a pipe");
            front.send_with(SET_BACKEND_REQ_FD, &[], vec![theirs]);
            ours.into()
        } else {
            let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
            rustix::net::sockopt::set_socket_send_buffer_size(&theirs, 1).expect("the least");
            front.send_with(SET_BACKEND_REQ_FD, &[], vec![theirs.into()]);
            OwnedFd::from(ours).into()
        };
        front.start_ring(&guest, ACKED);
        assert!(!front.is_ready());
        for _ in 0..20_000 {
            front.session.config_changed();
        }
        front.run(&guest, 1);
        assert!(!front.is_ready(), "nobody spins");
        assert!(front.session.turn().is_none());
        assert!(!front.is_ready());

        let mut all = heard(&ours);
        assert!(all.len() < 20_000 && all.iter().all(|m| *m == config_change()), "{}", all.len());
        while front.is_ready() {
            assert!(front.session.turn().is_none());
            let more = heard(&ours);
            assert!(!more.is_empty(), "there was room, and something to say");
            all.extend(more);
        }
        assert_eq!(all.last(), Some(&config_change()));
        let calls: Vec<_> = all.iter().filter(|m| m.0 == VRING_CALL).collect();
        assert_eq!(calls, [&signal(VRING_CALL, 0, !is_pipe)], "the call was not lost");
    }
}

/// Room may end in the thread that serves the vrings, while another waits for the channel.
#[test]
fn who_polls_learns_of_room() {
    let guest = Guest::new();
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, IN_BAND);
    let (ours, theirs) = rustix::pipe::pipe().expect("a pipe");
    rustix::pipe::fcntl_setpipe_size(&theirs, 4096).expect("a page");
    front.send_with(SET_BACKEND_REQ_FD, &[], vec![theirs]);
    front.start_ring(&guest, ACKED);
    let running = front.session.device.running[0].take().expect("a running vring");
    let mut ours = File::from(ours);
    std::thread::scope(|scope| {
        let session = &front.session;
        let waiter = scope.spawn(move || {
            let interests = session.interests();
            let mut fds: Vec<_> = interests.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
            poll(&mut fds, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).expect("polled")
        });
        while running.call.notify() {}
        assert!(!waiter.is_finished(), "the pipe is full");
        assert!(ours.read(&mut [0; 4096]).expect("room") > 4000);
        assert_eq!(waiter.join().expect("it ends"), 1);
    });
    front.session.device.running[0] = Some(running);
}

/// A channel that is closed, or on which no answers come but something else, is no more, and the session goes on.
#[test]
fn a_channel_that_ends() {
    let guest = Guest::new();
    for is_closed in [false, true] {
        let (mut front, mut ours) = FrontEnd::in_band(pf::CONFIG);
        front.start_ring(&guest, ACKED);
        let ours = if is_closed {
            drop(ours);
            None
        } else {
            ours.write_all(&words32(&[CONFIG_CHANGE, 1, 0])).expect("a request, where none is due");
            Some(ours)
        };
        assert!(front.is_ready());
        assert!(front.session.turn().is_none());
        assert!(!front.is_ready());
        front.run(&guest, 1);
        front.session.config_changed();
        assert!(front.session.turn().is_none());
        assert!(!front.is_ready() && ours.is_none_or(|ours| heard(&ours).is_empty()));
        // Another one takes its place.
        let ours = front.channel();
        front.run(&guest, 1);
        assert_eq!(heard(&ours), [signal(VRING_CALL, 0, true)]);
    }
    let (mut front, ours) = FrontEnd::in_band(pf::CONFIG);
    front.start_ring(&guest, ACKED);
    drop(ours);
    front.run(&guest, 1);
    assert!(!front.is_ready(), "found out by saying something");
}

/// No answers are waited for on a pipe, nor read without end on a socket.
#[test]
fn answers_that_nobody_asked_for() {
    let guest = Guest::new();
    let (mut front, ours) = FrontEnd::in_band(0);
    front.start_ring(&guest, ACKED);
    for _ in 0..100 {
        answer(&ours, VRING_CALL);
    }
    assert!(front.session.turn().is_none());
    assert!(front.is_ready(), "others get their turn");
    assert!(front.session.turn().is_none());
    assert!(!front.is_ready());
    front.run(&guest, 1);
    front.run(&guest, 1);
    assert_eq!(heard(&ours), [signal(VRING_CALL, 0, true)], "they count for nothing");
}

/// A channel given while rings run is theirs, unless they have file descriptors.
#[test]
fn a_channel_after_the_ring() {
    let guest = Guest::new();
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, IN_BAND);
    front.start_ring(&guest, ACKED);
    front.describe(&guest, 1, 0);
    let call = front.call(1);
    front.kick(1);
    assert!(!front.running(0).call.notify());
    let ours = front.channel();
    assert!(front.running(0).call.notify() && front.running(0).err.notify());
    assert!(front.running(1).call.notify());
    assert_eq!(heard(&ours), [signal(VRING_CALL, 0, true), signal(VRING_ERR, 0, true)]);
    assert_eq!(signals(&call), 1);
}

/// [VU-BE-set-backend-req-fd-01] What is no channel is refused.
#[test]
fn what_is_no_channel() {
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, IN_BAND);
    let file = tempfile::tempfile().expect("a temporary file");
    for fd in [event(), file.into()] {
        assert_ne!(front.ack(SET_BACKEND_REQ_FD, &[], vec![fd]), 0);
    }
    let error = front.refused(SET_BACKEND_REQ_FD, &[], vec![event()]);
    assert!(matches!(error, RequestError::NotAChannel), "{error}");
}

/// [VU-BE-vring-kick-00] A kick by a message starts a ring as a file descriptor does, and wakes one that runs; not
/// without the feature.
#[test]
fn rings_are_kicked_in_band() {
    let guest = Guest::new();
    let (mut front, ours) = FrontEnd::in_band(0);
    front.send_u64(SET_FEATURES, ACKED);
    front.set_mem_table(&guest);
    front.send_state(VRING_KICK, 0, 0);
    assert_eq!(front.told(), [Told::Features(feature::VERSION_1)], "there is no ring yet");
    front.describe(&guest, 0, 0);
    front.told();
    front.describe(&guest, 1, 0);
    guest.offer(1, 1);
    front.send_state(VRING_KICK, 1, 0);
    assert_eq!(front.told(), [start(1, false), Told::Kick(1)]);
    assert!(matches!(front.running(1).kick, Kick::InBand));
    assert_eq!((front.serve(1), heard(&ours)), (1, vec![signal(VRING_CALL, 1, true)]));
    front.send_state(VRING_KICK, 1, 0);
    assert_eq!(front.told(), [Told::Kick(1)]);
    // Stopped, it waits for the next kick; a file descriptor is preferred from then on.
    assert_eq!(front.base(1), 1);
    front.send_state(VRING_KICK, 1, 0);
    front.kick(1);
    let told = [Told::Stop(1), start(1, false), Told::Kick(1), Told::Stop(1), start(1, false)];
    assert_eq!(front.told(), told);
    assert_ne!(front.ack(VRING_KICK, &words32(&[4, 0]), vec![]), 0, "there is no such vring");

    front.send_u64(SET_PROTOCOL_FEATURES, pf::BACKEND_REQ);
    let error = front.refused(VRING_KICK, &words32(&[1, 0]), vec![]);
    assert!(matches!(error, RequestError::NotNegotiated), "{error}");
}

/// [VU-BE-back-end-communication-02] File descriptors go over the channel beside a message, eight at most.
#[test]
fn file_descriptors_go_over_the_channel() {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut back = Socket::new(ours, Kind::Reply).expect("a channel");
    let mut front = Socket::new(theirs, Kind::Request).expect("its other end");
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(0x1234).expect("its length");
    let area = VringArea { index: 3, len: 4096, offset: 0 };
    back.send(ChannelRequest::VringHostNotifier(area, Some(file.into())).encode(false)).expect("sent");
    let eight = Outgoing::request(9, &[0; 40], (0..8).map(|_| event()).collect(), true);
    back.send(eight).expect("sent");
    let message = front.receive().expect("received").expect("a message");
    let request = ChannelRequest::decode(&message.header, &message.payload, message.fds).expect("a request");
    let ChannelRequest::VringHostNotifier(got, Some(fd)) = request else { panic!("{request:?}") };
    assert_eq!((got, File::from(fd).metadata().expect("a file").len()), (area, 0x1234));
    let message = front.receive().expect("received").expect("a message");
    assert_eq!((message.header.request, message.fds.len()), (9, 8));
}
