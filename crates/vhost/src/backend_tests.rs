//! The session, as each front-end drives it, with real memory and rings behind it and a device that remembers
//! what it was told.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use ringway_memory::{FrontendVa, Gpa, MapError, Mapping, RingArea};
use ringway_queue::{Burst, ResumeState};
use ringway_spec::feature;
use ringway_spec::split::{self as layout, AVAIL_ENTRY, DESC_F_WRITE, IDX, RING, USED_ENTRY};
use rustix::event::{EventfdFlags, PollFd, Timespec, eventfd, poll};

use super::*;
use crate::message::{HEADER_LEN, Header, Kind};
use crate::{Kick, Notifier, Running};

#[path = "backend_tests/channel.rs"]
mod channel;
#[path = "backend_tests/formats.rs"]
mod formats;
#[path = "backend_tests/handover.rs"]
mod handover;
#[path = "backend_tests/iotlb.rs"]
mod iotlb;
#[path = "backend_tests/migration.rs"]
mod migration;
#[path = "backend_tests/postcopy.rs"]
mod postcopy;
#[path = "backend_tests/refused.rs"]
mod refused;
#[path = "backend_tests/state.rs"]
mod state;

// Requests by number.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const RESET_OWNER: u32 = 4;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const NET_SET_MTU: u32 = 20;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const GPU_SET_SOCKET: u32 = 33;
const RESET_DEVICE: u32 = 34;
const GET_MAX_MEM_SLOTS: u32 = 36;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;

const QUEUES: u16 = 4;
const SIZE: u16 = 8;
/// What the device offers; `F_PROTOCOL_FEATURES` is the session's.
const OFFERED: u64 = feature::VERSION_1
    | feature::RING_EVENT_IDX
    | feature::RING_INDIRECT_DESC
    | feature::ACCESS_PLATFORM
    | feature::RING_PACKED
    | feature::IN_ORDER;
const ACKED: u64 = feature::VERSION_1 | F_PROTOCOL_FEATURES;
const DRIVER_OK: u64 = 15;
const CONFIG_LEN: usize = 32;

/// What a device was told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Features(u64),
    Status(u8),
    Reset,
    Start { index: u16, polled: bool, enabled: bool },
    Stop(u16),
    Enable(u16, bool),
    Call(u16),
    Err(u16),
    Mtu(u64),
    Config(usize, Vec<u8>),
    Kick(u16),
    Announce([u8; 6]),
    Load(Vec<u8>),
}

fn start(index: u16, enabled: bool) -> Told {
    Told::Start { index, polled: false, enabled }
}

/// A device that remembers what it was told.
#[derive(Default)]
struct Fake {
    /// The protocol features that it has beside `CONFIG` and `MTU`.
    more: u64,
    /// Its inner state. It takes no other over that does not begin with the same byte.
    state: Vec<u8>,
    /// Its drivers announce themselves when the configuration asks them to.
    asks_drivers: bool,
    told: Vec<Told>,
    status: u8,
    running: [Option<Running>; QUEUES as usize],
}

impl Fake {
    fn is_running(&self, index: u16) -> bool {
        self.running[usize::from(index)].is_some()
    }

    fn running_vrings(&self) -> Vec<u16> {
        (0..QUEUES).filter(|i| self.is_running(*i)).collect()
    }
}

impl Device for Fake {
    fn features(&self) -> u64 {
        OFFERED
    }

    fn protocol_features(&self) -> u64 {
        pf::CONFIG | pf::MTU | self.more
    }

    fn max_queues(&self) -> u16 {
        QUEUES
    }

    fn queue_num(&self) -> u64 {
        u64::from(QUEUES / 2)
    }

    fn ack_features(&mut self, features: u64) -> Result<(), String> {
        self.told.push(Told::Features(features));
        if features & !OFFERED == 0 { Ok(()) } else { Err("not offered".to_owned()) }
    }

    fn status(&self) -> u8 {
        self.status
    }

    fn set_status(&mut self, status: u8) {
        self.status = status;
        self.told.push(Told::Status(status));
    }

    fn reset(&mut self) {
        assert!(self.running_vrings().is_empty(), "vrings are stopped before a reset");
        self.status = 0;
        self.told.push(Told::Reset);
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        for (byte, at) in to.iter_mut().zip(offset..) {
            *byte = if at < CONFIG_LEN { at as u8 + 100 } else { 0 };
        }
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8], _is_migration: bool) -> bool {
        self.told.push(Told::Config(offset, bytes.to_vec()));
        offset + bytes.len() <= CONFIG_LEN
    }

    fn set_mtu(&mut self, mtu: u64) -> bool {
        self.told.push(Told::Mtu(mtu));
        (68..=9000).contains(&mtu)
    }

    fn start_vring(&mut self, index: u16, vring: Running) {
        self.told.push(Told::Start {
            index,
            polled: matches!(vring.kick, Kick::Polled),
            enabled: vring.enabled,
        });
        let before = self.running[usize::from(index)].replace(vring);
        assert!(before.is_none(), "a vring is stopped before it starts again");
    }

    fn stop_vring(&mut self, index: u16) -> ResumeState {
        self.told.push(Told::Stop(index));
        self.running[usize::from(index)].take().expect("a running vring").queue.stop()
    }

    fn enable_vring(&mut self, index: u16, enabled: bool) {
        self.told.push(Told::Enable(index, enabled));
        self.running[usize::from(index)].as_mut().expect("a running vring").enabled = enabled;
    }

    fn set_call(&mut self, index: u16, call: Notifier) {
        self.told.push(Told::Call(index));
        self.running[usize::from(index)].as_mut().expect("a running vring").call = call;
    }

    fn set_err(&mut self, index: u16, err: Notifier) {
        self.told.push(Told::Err(index));
        self.running[usize::from(index)].as_mut().expect("a running vring").err = err;
    }

    fn kick_vring(&mut self, index: u16) {
        assert!(self.is_running(index), "only a running vring is kicked");
        self.told.push(Told::Kick(index));
    }

    fn announce(&mut self, address: [u8; 6]) -> bool {
        self.told.push(Told::Announce(address));
        self.asks_drivers
    }

    fn save_state(&self) -> Vec<u8> {
        assert!(self.running_vrings().is_empty(), "vrings are stopped when the state is saved");
        self.state.clone()
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), String> {
        assert!(self.running_vrings().is_empty(), "vrings are stopped when a state is loaded");
        self.told.push(Told::Load(state.to_vec()));
        if state.first() == self.state.first() { Ok(()) } else { Err("of another device".to_owned()) }
    }

    fn has_vring(&self, index: u16) -> bool {
        index < QUEUES
    }
}

/// A file that is a guest's memory, with room for the rings at its start and a buffer for each after.
struct Guest {
    file: File,
    gpa: u64,
    va: u64,
    /// Where the memory begins in the file.
    offset: u64,
}

const GUEST_LEN: u64 = 0x1_0000;
const BUFFERS: u64 = 0x8000;

impl Guest {
    fn new() -> Self {
        Self::at(0, 0x7fff_0000_0000, 0)
    }

    fn at(gpa: u64, va: u64, offset: u64) -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(offset + GUEST_LEN).expect("its length");
        Self { file, gpa, va, offset }
    }

    fn fd(&self) -> OwnedFd {
        self.file.try_clone().expect("a clone").into()
    }

    fn region(&self) -> Vec<u8> {
        words64(&[self.gpa, GUEST_LEN, self.va, self.offset])
    }

    /// The payload of `SET_MEM_TABLE` with this memory alone.
    fn table(&self) -> Vec<u8> {
        [words32(&[1, 0]), self.region()].concat()
    }

    /// The payload of `ADD_MEM_REG` and `REM_MEM_REG`.
    fn single(&self) -> Vec<u8> {
        [words64(&[0]), self.region()].concat()
    }

    /// Address of an area of a ring in the front-end: 0 descriptors, 1 driver's, 2 device's.
    fn area_at(&self, ring: u32, area: u64) -> u64 {
        self.va + u64::from(ring) * 0x1000 + area * 0x400
    }

    /// The payload of `SET_VRING_ADDR`.
    fn addresses(&self, ring: u32) -> Vec<u8> {
        let [descriptor, driver, device] = [0, 1, 2].map(|a| self.area_at(ring, a));
        [words32(&[ring, 0]), words64(&[descriptor, device, driver, 0])].concat()
    }

    fn area(&self, ring: u32, area: u64, len: usize) -> RingArea {
        let region =
            Mapping::region(self.fd(), self.offset, GUEST_LEN, Gpa(self.gpa), FrontendVa(self.va)).unwrap();
        MemoryTable::new(vec![region]).unwrap().area(FrontendVa(self.area_at(ring, area)), len, 2).unwrap()
    }

    /// Makes `count` chains available: each the one descriptor 0, a buffer of four bytes to write to.
    fn offer(&self, ring: u32, count: u16) {
        let desc = self.area(ring, 0, layout::desc_area_size(SIZE));
        desc.store_u64(0, self.gpa + BUFFERS + u64::from(ring) * 16);
        desc.store_u64(8, 4 | u64::from(DESC_F_WRITE) << 32);
        let avail = self.area(ring, 1, layout::avail_area_size(SIZE));
        let idx = avail.load_u16(IDX);
        for i in 0..count {
            avail.store_u16(RING + usize::from(idx.wrapping_add(i) % SIZE) * AVAIL_ENTRY, 0);
        }
        avail.store_u16_release(IDX, idx.wrapping_add(count));
    }

    /// Puts both indices of a ring at `base`, as after a migration.
    fn set_indices(&self, ring: u32, base: u16) {
        self.area(ring, 1, layout::avail_area_size(SIZE)).store_u16(IDX, base);
        self.area(ring, 2, layout::used_area_size(SIZE)).store_u16(IDX, base);
    }

    fn used_idx(&self, ring: u32) -> u16 {
        self.area(ring, 2, layout::used_area_size(SIZE)).load_u16_acquire(IDX)
    }

    /// The used entry before the last index: head, and bytes written.
    fn last_used(&self, ring: u32) -> (u32, u32) {
        let used = self.area(ring, 2, layout::used_area_size(SIZE));
        let at = RING + usize::from(used.load_u16_acquire(IDX).wrapping_sub(1) % SIZE) * USED_ENTRY;
        (used.load_u32(at), used.load_u32(at + 4))
    }
}

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

/// A kick that has come.
fn kicked() -> OwnedFd {
    let kick = event();
    rustix::io::write(&kick, &1u64.to_ne_bytes()).expect("a kick");
    kick
}

/// How often an event was signalled.
fn signals(event: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    rustix::io::read(event, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
}

/// A front-end, connected.
struct FrontEnd {
    session: Session<Fake>,
    /// Asks for an answer to every request.
    need_reply: bool,
}

impl FrontEnd {
    fn new() -> Self {
        Self::of(Fake::default())
    }

    /// In front of a device with these protocol features beside the usual ones, which are acked with `others`.
    fn with_more(more: u64, others: u64) -> Self {
        let mut front = Self::of(Fake { more, ..Fake::default() });
        front.send_u64(SET_PROTOCOL_FEATURES, more | others);
        front
    }

    fn of(device: Fake) -> Self {
        Self { session: Session::new("a", device), need_reply: false }
    }

    /// The bytes of the answer's payload.
    fn handle(
        &mut self,
        request: u32,
        need_reply: bool,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Vec<u8>>, SessionError> {
        let Some(reply) = self.exchange(request, need_reply, payload, fds)? else { return Ok(None) };
        assert!(reply.fds.is_empty(), "a file descriptor that nobody asked for");
        Ok(Some(reply.bytes[HEADER_LEN..].to_vec()))
    }

    /// The whole answer.
    fn exchange(
        &mut self,
        request: u32,
        need_reply: bool,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Outgoing>, SessionError> {
        let flags = if need_reply { 9 } else { 1 };
        let bytes: [u8; HEADER_LEN] =
            words32(&[request, flags, payload.len() as u32]).try_into().expect("12 bytes");
        let header = Header::decode(bytes, Kind::Request).expect("a good header");
        let reply = self.session.handle(Message { header, payload: payload.to_vec(), fds })?;
        if let Some(Outgoing { bytes, .. }) = &reply {
            assert_eq!(bytes[..8], words32(&[request, 5]), "of this request, version 1, a reply");
            assert_eq!(bytes[8..12], (bytes.len() as u32 - 12).to_le_bytes());
        }
        Ok(reply)
    }

    /// Sends a request that is carried out: without an answer, or with an answer of 0.
    fn send_with(&mut self, request: u32, payload: &[u8], fds: Vec<OwnedFd>) {
        let reply = self.handle(request, self.need_reply, payload, fds).expect("carried out");
        let wanted = self.need_reply.then(|| words64(&[0]));
        assert_eq!(reply, wanted, "{}", name(request));
    }

    fn send(&mut self, request: u32, payload: &[u8]) {
        self.send_with(request, payload, vec![]);
    }

    fn send_u64(&mut self, request: u32, value: u64) {
        self.send(request, &words64(&[value]));
    }

    fn send_state(&mut self, request: u32, index: u32, value: u32) {
        self.send(request, &words32(&[index, value]));
    }

    /// Sends a request with `NEED_REPLY` and returns the answer.
    fn ack(&mut self, request: u32, payload: &[u8], fds: Vec<OwnedFd>) -> u64 {
        let reply =
            self.handle(request, true, payload, fds).expect("the session goes on").expect("an answer");
        u64::from_le_bytes(reply.try_into().expect("8 bytes"))
    }

    /// Asks a question and returns the answer's payload.
    fn ask(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        let reply = self.handle(request, self.need_reply, payload, vec![]);
        reply.expect("carried out").expect("a reply")
    }

    fn ask_u64(&mut self, request: u32) -> u64 {
        u64::from_le_bytes(self.ask(request, &[]).try_into().expect("8 bytes"))
    }

    /// Sends a request that is refused: the session ends with this.
    fn refused(&mut self, request: u32, payload: &[u8], fds: Vec<OwnedFd>) -> RequestError {
        match self.handle(request, false, payload, fds) {
            Err(SessionError::Request { request: r, error }) => {
                assert_eq!(r, name(request));
                error
            }
            other => panic!("{}: {other:?}", name(request)),
        }
    }

    /// Gives a socket as the channel for the back-end's requests, and returns our end.
    fn channel(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        self.send_with(SET_BACKEND_REQ_FD, &[], vec![theirs.into()]);
        ours
    }

    fn set_mem_table(&mut self, guest: &Guest) {
        self.send_with(SET_MEM_TABLE, &guest.table(), vec![guest.fd()]);
    }

    /// Describes a ring, all but its kick.
    fn describe(&mut self, guest: &Guest, ring: u32, base: u32) {
        self.send_state(SET_VRING_NUM, ring, SIZE.into());
        self.send_state(SET_VRING_BASE, ring, base);
        self.send(SET_VRING_ADDR, &guest.addresses(ring));
    }

    fn kick(&mut self, ring: u32) {
        self.send_with(SET_VRING_KICK, &words64(&[ring.into()]), vec![kicked()]);
    }

    /// Gives a call file descriptor, and returns our end.
    fn call(&mut self, ring: u32) -> OwnedFd {
        let ours = event();
        let theirs = ours.try_clone().expect("a clone");
        self.send_with(SET_VRING_CALL, &words64(&[ring.into()]), vec![theirs]);
        ours
    }

    fn base(&mut self, ring: u32) -> u32 {
        let state = self.ask(GET_VRING_BASE, &words32(&[ring, 0]));
        assert_eq!((state.len(), &state[..4]), (8, &ring.to_le_bytes()[..]));
        u32::from_le_bytes(state[4..].try_into().expect("4 bytes"))
    }

    /// What the device was told since the last look.
    fn told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.session.device.told)
    }

    fn is_running(&self, ring: u16) -> bool {
        self.session.device().is_running(ring)
    }

    /// The device serves a ring: what is available is used. Returns how many chains that was.
    fn serve(&mut self, ring: u16) -> usize {
        let running = self.session.device.running[usize::from(ring)].as_mut().expect("a running vring");
        let mut burst = Burst::default();
        let count = running.queue.take(&mut burst, usize::MAX).expect("a good ring");
        while let Some(chain) = burst.next() {
            let written = chain.writable().write(b"good") as u32;
            running.queue.complete(chain, written);
        }
        if running.queue.publish() {
            running.call.notify();
        }
        count
    }

    /// `count` chains of ring 0 are made available and used.
    fn run(&mut self, guest: &Guest, count: u16) {
        guest.offer(0, count);
        assert_eq!(self.serve(0), usize::from(count));
    }

    /// Whether the session wants its turn.
    fn is_ready(&self) -> bool {
        let interests = self.session.interests();
        let mut fds: Vec<_> = interests.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("polled") > 0
    }

    /// Gives memory and starts ring 0, after the protocol features.
    fn start_ring(&mut self, guest: &Guest, features: u64) {
        self.send_u64(SET_FEATURES, features);
        self.set_mem_table(guest);
        self.describe(guest, 0, 0);
        self.kick(0);
        assert!(self.is_running(0));
        self.told();
    }

    /// Negotiates, gives memory, and starts ring 0 at `base`.
    fn with_ring(guest: &Guest, protocol: u64, base: u32) -> Self {
        Self::with_features(guest, protocol, ACKED, base)
    }

    /// The same with these features.
    fn with_features(guest: &Guest, protocol: u64, features: u64, base: u32) -> Self {
        let mut front = Self::new();
        front.send_u64(SET_PROTOCOL_FEATURES, protocol);
        front.send_u64(SET_FEATURES, features);
        front.set_mem_table(guest);
        front.describe(guest, 0, base);
        front.kick(0);
        assert!(front.is_running(0));
        front.told();
        front
    }
}

const REPLY_ACK: u64 = pf::REPLY_ACK;
const SLOTS: u64 = pf::CONFIGURE_MEM_SLOTS | pf::REPLY_ACK;

// The orders of the front-ends that there are

/// [VU-BE-get-protocol-features-01] [VU-BE-set-protocol-features-01] [VU-BE-get-features-00]
/// [VU-BE-set-features-00] [VU-BE-get-protocol-features-00] [VU-BE-set-protocol-features-00]
/// [VU-BE-get-queue-num-00] [VU-BE-set-owner-00] [VU-BE-get-status-00] [VU-BE-set-status-00]
/// [VU-BE-multiple-queue-support-01] [VU-BE-multiple-queue-support-02] As QEMU does it: an ask for each feature first, calls before memory, the
/// rings before the device is live, enabled last.
#[test]
fn qemu() {
    let guest = Guest::new();
    let mut front = FrontEnd::new();
    assert_eq!(front.ask_u64(GET_FEATURES), OFFERED | TRANSPORT_FEATURES);
    let protocol = front.ask_u64(GET_PROTOCOL_FEATURES);
    assert_eq!(protocol, SESSION_FEATURES | pf::CONFIG | pf::MTU);
    assert_ne!(protocol & pf::MQ, 0);
    front.send_u64(SET_PROTOCOL_FEATURES, protocol);
    assert_eq!(front.ask_u64(GET_QUEUE_NUM), 2);
    let _channel = front.channel();
    assert_eq!(front.ask_u64(GET_MAX_MEM_SLOTS), 509);
    front.send(SET_OWNER, &[]);
    let calls = [0, 1].map(|ring| front.call(ring));
    front.send_with(SET_VRING_ERR, &words64(&[0]), vec![event()]);
    front.send_u64(SET_FEATURES, ACKED);
    assert_eq!(front.ask_u64(GET_STATUS), 0);
    front.send_u64(SET_STATUS, 11);
    assert_eq!(front.ask_u64(GET_STATUS), 11);
    assert_eq!(front.ack(ADD_MEM_REG, &guest.single(), vec![guest.fd()]), 0);
    for ring in 0..2 {
        front.describe(&guest, ring, 0);
        front.kick(ring);
    }
    assert_eq!(front.told(), [Told::Features(feature::VERSION_1), Told::Status(11)], "not live, no ring");
    front.send_u64(SET_STATUS, DRIVER_OK);
    assert_eq!(front.told(), [Told::Status(15), start(0, false), start(1, false)]);
    for ring in 0..2 {
        front.send_state(SET_VRING_ENABLE, ring, 1);
    }
    assert_eq!(front.told(), [Told::Enable(0, true), Told::Enable(1, true)]);

    guest.offer(1, 3);
    assert_eq!(front.serve(1), 3);
    assert_eq!((guest.used_idx(1), guest.last_used(1)), (3, (0, 4)));
    assert_eq!(calls.each_ref().map(signals), [0, 1]);

    // The guest goes down: rings are stopped first.
    for ring in 0..2 {
        front.send_state(SET_VRING_ENABLE, ring, 0);
    }
    assert_eq!([0, 1].map(|ring| front.base(ring)), [0, 3]);
    front.send_u64(SET_STATUS, 0);
    assert_eq!(front.ack(REM_MEM_REG, &guest.single(), vec![]), 0);
    assert_eq!(
        front.told(),
        [Told::Enable(0, false), Told::Enable(1, false), Told::Stop(0), Told::Stop(1), Told::Reset]
    );
}

/// [VU-BE-ring-states-08] [VU-BE-set-backend-req-fd-00] As User-Mode Linux does it: features twice, the second
/// time without bit 30, and no ring is ever enabled; memory that begins inside its file and its address space.
#[test]
fn user_mode_linux() {
    let guest = Guest::at(0x10_0000, 0x6010_0000, 0x3000);
    let mut front = FrontEnd::new();
    front.send(SET_OWNER, &[]);
    assert_ne!(front.ask_u64(GET_FEATURES) & F_PROTOCOL_FEATURES, 0);
    front.send_u64(SET_FEATURES, ACKED);
    front.ask_u64(GET_PROTOCOL_FEATURES);
    front.send_u64(SET_PROTOCOL_FEATURES, pf::REPLY_ACK | pf::BACKEND_REQ | pf::CONFIG);
    front.need_reply = true;
    // Its channel is a pipe.
    let (_channel, theirs) = rustix::pipe::pipe().expect("a pipe");
    front.send_with(SET_BACKEND_REQ_FD, &[], vec![theirs]);
    front.send_u64(SET_FEATURES, feature::VERSION_1);
    front.set_mem_table(&guest);
    let mut calls = vec![];
    for ring in 0..2 {
        calls.push(front.call(ring));
        front.describe(&guest, ring, 0);
        front.kick(ring);
    }
    assert_eq!(front.told(), [Told::Features(feature::VERSION_1), start(0, true), start(1, true)]);
    guest.offer(0, 2);
    assert_eq!(front.serve(0), 2);
    assert_eq!((guest.used_idx(0), guest.last_used(0)), (2, (0, 4)));
    assert_eq!((signals(&calls[0]), signals(&calls[1])), (1, 0));
}

/// As DPDK's `virtio_user` does it: calls for all rings before the features, status negotiated, so rings wait
/// for `DRIVER_OK`; an answer wanted to a few requests; rings are disabled before they stop.
#[test]
fn dpdk_virtio_user() {
    let guest = Guest::at(0x1_0000_0000, 0x1_0000_0000, 0);
    let mut front = FrontEnd::new();
    front.send(SET_OWNER, &[]);
    front.ask_u64(GET_FEATURES);
    front.ask_u64(GET_PROTOCOL_FEATURES);
    front.send_u64(SET_PROTOCOL_FEATURES, 0x1_0009);
    assert_eq!(front.ask_u64(GET_QUEUE_NUM), 2);
    for status in [0, 1, 3] {
        assert_eq!(front.ack(SET_STATUS, &words64(&[status]), vec![]), 0);
    }
    let calls: Vec<_> = (0..QUEUES.into()).map(|ring| front.call(ring)).collect();
    front.send_u64(SET_FEATURES, ACKED);
    assert_eq!(front.ack(SET_STATUS, &words64(&[11]), vec![]), 0);
    assert_eq!(front.ask_u64(GET_STATUS), 11);
    assert_eq!(front.ack(SET_MEM_TABLE, &guest.table(), vec![guest.fd()]), 0);
    for ring in 0..QUEUES.into() {
        front.describe(&guest, ring, 0);
        front.kick(ring);
    }
    for ring in 0..2 {
        front.send_state(SET_VRING_ENABLE, ring, 1);
    }
    assert!(front.session.device().running_vrings().is_empty(), "before DRIVER_OK");
    front.told();
    assert_eq!(front.ack(SET_STATUS, &words64(&[DRIVER_OK]), vec![]), 0);
    let started = [start(0, true), start(1, true), start(2, false), start(3, false)];
    assert_eq!(front.told(), [&[Told::Status(15)], &started[..]].concat());
    guest.offer(2, 1);
    assert_eq!(front.serve(2), 1);
    assert_eq!(signals(&calls[2]), 1);

    for ring in 0..2 {
        front.send_state(SET_VRING_ENABLE, ring, 0);
    }
    assert_eq!([0, 1, 2, 3].map(|ring| front.base(ring)), [0, 0, 1, 0]);
    assert_eq!(front.ack(SET_STATUS, &words64(&[0]), vec![]), 0);
    assert!(front.session.device().running_vrings().is_empty());
}

/// As libblkio does it: features before protocol features, memory region by region, an answer to everything.
#[test]
fn libblkio() {
    let (low, high) = (Guest::at(0, 0x1000_0000, 0), Guest::at(0x1_0000, 0x2000_0000, 0));
    let mut front = FrontEnd::new();
    front.need_reply = true;
    // Without REPLY_ACK, which comes later, nothing is answered.
    assert_eq!(front.handle(SET_OWNER, true, &[], vec![]).expect("carried out"), None);
    front.ask_u64(GET_FEATURES);
    assert_eq!(front.handle(SET_FEATURES, true, &words64(&[ACKED]), vec![]).expect("carried out"), None);
    front.ask_u64(GET_PROTOCOL_FEATURES);
    front.send_u64(SET_PROTOCOL_FEATURES, SLOTS | pf::CONFIG | pf::MQ);
    assert_eq!(front.ask_u64(GET_MAX_MEM_SLOTS), 509);
    for guest in [&high, &low] {
        front.send_with(ADD_MEM_REG, &guest.single(), vec![guest.fd()]);
    }
    front.describe(&low, 0, 0);
    front.describe(&high, 1, 0);
    for ring in 0..2 {
        front.kick(ring);
        front.call(ring);
        front.send_state(SET_VRING_ENABLE, ring, 1);
    }
    assert_eq!(front.session.device().running_vrings(), [0, 1]);
    for (ring, guest) in (0..).zip([&low, &high]) {
        guest.offer(ring.into(), 2);
        assert_eq!(front.serve(ring), 2);
        assert_eq!(guest.used_idx(ring.into()), 2);
    }
}

// Answers

/// [VU-BE-vhost-user-protocol-f-reply-ack-01] `REPLY_ACK` counts once acked, although nobody asked what is
/// offered; only for requests that say so.
#[test]
fn answers_follow_what_was_acked() {
    let mut front = FrontEnd::new();
    assert_eq!(front.handle(SET_OWNER, true, &[], vec![]).expect("carried out"), None);
    // The very request that acks it is answered already.
    assert_eq!(front.ack(SET_PROTOCOL_FEATURES, &words64(&[REPLY_ACK]), vec![]), 0);
    assert_eq!(front.ack(SET_OWNER, &[], vec![]), 0);
    assert_eq!(front.ack(RESET_OWNER, &[], vec![]), 0);
    assert_eq!(front.handle(SET_OWNER, false, &[], vec![]).expect("carried out"), None);
    // And no more once taken back.
    front.send_u64(SET_PROTOCOL_FEATURES, 0);
    assert_eq!(front.handle(SET_OWNER, true, &[], vec![]).expect("carried out"), None);
}

/// [VU-BE-vhost-user-protocol-f-reply-ack-02] A question has one answer, its own, whatever was negotiated.
#[test]
fn questions_are_answered_once() {
    for protocol in [0, REPLY_ACK] {
        for need_reply in [false, true] {
            let mut front = FrontEnd::new();
            front.need_reply = need_reply;
            let rest = (SESSION_FEATURES | pf::CONFIG) & !pf::INBAND_NOTIFICATIONS;
            front.send_protocol_features_quietly(rest & !REPLY_ACK | protocol);
            for (request, wanted) in [
                (GET_FEATURES, OFFERED | TRANSPORT_FEATURES),
                (GET_PROTOCOL_FEATURES, SESSION_FEATURES | pf::CONFIG | pf::MTU),
                (GET_QUEUE_NUM, 2),
                (GET_MAX_MEM_SLOTS, 509),
                (GET_STATUS, 0),
            ] {
                assert_eq!(front.ask_u64(request), wanted, "{}", name(request));
            }
            assert_eq!(front.base(3), 0);
            assert_eq!(front.ask(GET_CONFIG, &words32(&[0, 0, 0])).len(), 12);
        }
    }
}

impl FrontEnd {
    fn send_protocol_features_quietly(&mut self, features: u64) {
        let reply = self.handle(SET_PROTOCOL_FEATURES, false, &words64(&[features]), vec![]);
        assert_eq!(reply.expect("carried out"), None);
    }
}

/// [VU-FB-vhost-user-protocol-f-reply-ack-01] [VU-BE-communication-03] What is refused is answered with another number
/// than 0, and the session goes on.
#[test]
fn a_refused_request_is_answered_and_the_session_goes_on() {
    let guest = Guest::new();
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, SLOTS);
    let addresses = guest.addresses(9);
    for (request, payload) in [
        (SET_FEATURES, words64(&[1 << 63])),
        (SET_PROTOCOL_FEATURES, words64(&[1 << 63])),
        (SET_VRING_NUM, words32(&[0, 0])),
        (SET_VRING_NUM, words32(&[4, 8])),
        (SET_VRING_ADDR, addresses),
        (SET_VRING_BASE, words32(&[4, 0])),
        (SET_VRING_ENABLE, words32(&[u32::MAX, 1])),
        (SET_VRING_KICK, words64(&[0x104])),
        (SET_VRING_CALL, words64(&[0x1ff])),
        (REM_MEM_REG, guest.single()),
        (SET_STATUS, words64(&[1])),
        (NET_SET_MTU, words64(&[1500])),
        (RESET_DEVICE, vec![]),
        (SET_CONFIG, words32(&[0, 0, 0])),
    ] {
        assert_ne!(front.ack(request, &payload, vec![]), 0, "{} {payload:?}", name(request));
    }
    // With file descriptors, which are closed.
    assert_ne!(front.ack(SET_BACKEND_REQ_FD, &[], vec![event()]), 0);
    assert_ne!(front.ack(SET_VRING_ERR, &words64(&[4]), vec![event()]), 0);
    assert_ne!(front.ack(SET_MEM_TABLE, &guest.table(), vec![event()]), 0, "no file to map");
    assert_ne!(front.ack(ADD_MEM_REG, &guest.single(), vec![event()]), 0, "no file to map");
    // And all goes on as if nothing had been said.
    front.send_u64(SET_FEATURES, ACKED);
    front.set_mem_table(&guest);
    front.describe(&guest, 0, 0);
    front.kick(0);
    assert!(front.is_running(0));
}

/// [VU-BE-communication-02] Where there is no other way to tell it, the session ends.
#[test]
fn a_refused_request_without_an_answer_ends_the_session() {
    let guest = Guest::new();
    let mut front = FrontEnd::new();
    assert!(matches!(front.refused(SET_FEATURES, &words64(&[1]), vec![]), RequestError::Features(_)));
    assert!(matches!(
        front.refused(SET_PROTOCOL_FEATURES, &words64(&[1 << 63]), vec![]),
        RequestError::Features(_)
    ));
    assert!(matches!(
        front.refused(SET_VRING_NUM, &words32(&[4, 8]), vec![]),
        RequestError::NoVring { index: 4, count: QUEUES }
    ));
    for num in [0, 0x8001, 0x1_0000, u32::MAX] {
        let error = front.refused(SET_VRING_NUM, &words32(&[0, num]), vec![]);
        assert!(matches!(error, RequestError::VringSize(n) if n == num), "{error}");
    }
    let error = front.refused(SET_MEM_TABLE, &guest.table(), vec![event()]);
    assert!(matches!(error, RequestError::Map(MapError::PastEnd { .. })), "{error}");
    let not_negotiated: [(u32, Vec<u8>); 7] = [
        (NET_SET_MTU, words64(&[1500])),
        (SET_CONFIG, words32(&[0, 0, 0])),
        (RESET_DEVICE, vec![]),
        (REM_MEM_REG, guest.single()),
        (SET_STATUS, words64(&[1])),
        (GET_STATUS, vec![]),
        (SET_STATUS, words64(&[0])),
    ];
    for (request, payload) in not_negotiated {
        let error = front.refused(request, &payload, vec![]);
        assert!(matches!(error, RequestError::NotNegotiated), "{}: {error}", name(request));
    }
    let error = front.refused(ADD_MEM_REG, &guest.single(), vec![guest.fd()]);
    assert!(matches!(error, RequestError::NotNegotiated));
    let error = front.refused(SET_BACKEND_REQ_FD, &[], vec![event()]);
    assert!(matches!(error, RequestError::NotNegotiated));
}

#[test]
fn an_unknown_request_is_refused() {
    let mut front = FrontEnd::new();
    let error = front.handle(GPU_SET_SOCKET, true, &[0; 16], vec![]).expect_err("not supported");
    assert!(matches!(error, SessionError::Message(MessageError::Unsupported(GPU_SET_SOCKET))));
    front.send_u64(SET_PROTOCOL_FEATURES, REPLY_ACK);
    for request in [0, 26, 27, 33, 45, 1000, u32::MAX] {
        assert_ne!(front.ack(request, &[1, 2, 3], vec![event()]), 0);
        let error = front.handle(request, false, &[], vec![]).expect_err("not supported");
        assert!(matches!(error, SessionError::Message(MessageError::Unsupported(r)) if r == request));
    }
    // Bytes that are no request end the session, whatever was asked for.
    assert!(matches!(
        front.handle(SET_FEATURES, true, &[0; 7], vec![]),
        Err(SessionError::Message(MessageError::BadSize { size: 7, .. }))
    ));
}

// Rings

/// [VU-BE-ring-states-02] [VU-BE-ring-states-06] [VU-BE-set-vring-kick-00] [VU-BE-set-vring-num-00]
/// [VU-BE-set-vring-addr-00] [VU-BE-set-vring-base-00] [VU-BE-set-vring-enable-00] A ring starts when it is
/// complete, in whatever order it was described, disabled; enabled before it starts counts when it does.
#[test]
fn a_ring_starts_when_it_is_complete() {
    let guest = Guest::new();
    let steps: [fn(&mut FrontEnd, &Guest); 5] = [
        |f, _| f.send_u64(SET_FEATURES, ACKED),
        |f, _| f.send_state(SET_VRING_NUM, 1, SIZE.into()),
        |f, g| f.send(SET_VRING_ADDR, &g.addresses(1)),
        |f, _| f.kick(1),
        |f, _| f.send_state(SET_VRING_ENABLE, 1, 1),
    ];
    // Every rotation, both ways, with the memory first: an area outside of it is an error.
    for first in 0..steps.len() {
        for backwards in [false, true] {
            let mut front = FrontEnd::new();
            front.set_mem_table(&guest);
            let mut order: Vec<_> = (0..steps.len()).map(|i| (first + i) % steps.len()).collect();
            if backwards {
                order.reverse();
            }
            let mut done = vec![];
            for step in order {
                steps[step](&mut front, &guest);
                done.push(step);
                let is_complete = [0, 1, 2, 3].iter().all(|s| done.contains(s));
                assert_eq!(front.is_running(1), is_complete, "{done:?}");
                assert_eq!(front.session.device().running_vrings().len(), usize::from(is_complete));
                if let Some(running) = &front.session.device().running[1] {
                    assert_eq!(running.enabled, done.contains(&4), "{done:?}");
                }
            }
        }
    }
}

/// [VU-BE-ring-states-01] [VU-BE-get-vring-base-00]
/// [VU-FB-a-vring-descriptor-index-for-split-virtqueues-01] `GET_VRING_BASE` stops, and says where, in 16 bits; what is made available after stays where it is; with another kick file descriptor the ring goes on.
#[test]
fn a_stopped_ring_goes_on_where_it_was() {
    let guest = Guest::new();
    guest.set_indices(0, 65534);
    let mut front = FrontEnd::with_ring(&guest, 0, 65534);
    guest.offer(0, 3);
    assert_eq!(front.serve(0), 3);
    assert_eq!(front.base(0), 1);
    assert_eq!(front.told(), [Told::Stop(0)]);
    assert_eq!(front.base(0), 1, "again, of a stopped ring");
    guest.offer(0, 2);
    // None of this starts it, the kick file descriptor is gone.
    front.send_state(SET_VRING_ENABLE, 0, 1);
    front.send_state(SET_VRING_NUM, 0, SIZE.into());
    front.send(SET_VRING_ADDR, &guest.addresses(0));
    front.set_mem_table(&guest);
    assert_eq!((front.told(), guest.used_idx(0)), (vec![], 1));
    front.kick(0);
    assert_eq!(front.told(), [start(0, true)], "still enabled");
    assert_eq!(front.serve(0), 2);
    assert_eq!((guest.used_idx(0), front.base(0)), (3, 3));
    // The front-end may also say where.
    guest.set_indices(0, 100);
    front.send_state(SET_VRING_BASE, 0, 100);
    front.kick(0);
    guest.offer(0, 1);
    assert_eq!((front.serve(0), front.base(0)), (1, 101));
}

/// [VU-BE-set-vring-base-01] The base is that of the available ring; the used index is found in the ring.
#[test]
fn the_used_index_is_read_from_the_ring() {
    let guest = Guest::new();
    guest.set_indices(0, 40);
    let mut front = FrontEnd::with_ring(&guest, 0, 38);
    assert_eq!(front.serve(0), 2, "38 and 39 are taken again");
    assert_eq!((guest.used_idx(0), front.base(0)), (42, 40));
}

/// [VU-BE-set-vring-kick-01] [VU-BE-set-vring-call-00] [VU-BE-set-vring-err-00] Without a kick file descriptor
/// the device polls, without call and err it stays silent.
#[test]
fn rings_without_file_descriptors() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, 0, 0);
    front.describe(&guest, 1, 0);
    for request in [SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK] {
        front.send_u64(request, 0x101);
    }
    assert_eq!(front.told(), [Told::Start { index: 1, polled: true, enabled: false }]);
    guest.offer(1, 1);
    assert_eq!(front.serve(1), 1);
    let running = front.session.device.running[1].as_ref().expect("it runs");
    assert!(!running.call.notify() && !running.err.notify());

    // All three on the fly.
    let [call, err] = [event(), event()];
    front.send_with(SET_VRING_CALL, &words64(&[1]), vec![call.try_clone().unwrap()]);
    assert_eq!(front.told(), [Told::Call(1)]);
    assert!(front.session.device.running[1].as_ref().expect("it runs").call.notify());
    assert_eq!(signals(&call), 1);
    front.send_with(SET_VRING_ERR, &words64(&[1]), vec![err.try_clone().unwrap()]);
    front.kick(1);
    assert_eq!(front.told(), [Told::Err(1), Told::Stop(1), start(1, false)]);
    assert!(front.session.device.running[1].as_ref().expect("it runs").err.notify());
    assert_eq!(signals(&err), 1);
}

/// [VU-BE-ring-states-09] The areas of a running ring may move: it goes on in the new place.
#[test]
fn the_areas_of_a_running_ring_move() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, REPLY_ACK, 0);
    guest.offer(0, 2);
    assert_eq!(front.serve(0), 2);
    // Ring 0 is where ring 3 was.
    guest.set_indices(3, 2);
    let moved = [words32(&[0]), guest.addresses(3)[4..].to_vec()].concat();
    front.send(SET_VRING_ADDR, &moved);
    assert_eq!(front.told(), [Told::Stop(0), start(0, false)]);
    guest.offer(3, 4);
    assert_eq!(front.serve(0), 4);
    assert_eq!((guest.used_idx(0), guest.used_idx(3)), (2, 6));
    // To nowhere: refused, and it stands still.
    let nowhere = [words32(&[0, 0]), words64(&[0x10, 0x20, 0x30, 0])].concat();
    assert_ne!(front.ack(SET_VRING_ADDR, &nowhere, vec![]), 0);
    assert_eq!(front.told(), [Told::Stop(0)]);
    assert_eq!(front.base(0), 6);
    front.send(SET_VRING_ADDR, &moved);
    front.kick(0);
    assert!(front.is_running(0));
}

#[test]
fn size_and_base_of_a_running_ring_stay() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, 0, 5);
    for request in [SET_VRING_NUM, SET_VRING_BASE] {
        let error = front.refused(request, &words32(&[0, 4]), vec![]);
        assert!(matches!(error, RequestError::IsRunning(0)), "{error}");
    }
    assert_eq!((front.told(), front.base(0)), (vec![], 5));
    front.send_state(SET_VRING_NUM, 0, 4);
    front.send_state(SET_VRING_BASE, 0, 4);
}

/// [VU-BE-ring-states-01] [VU-BE-ring-states-06] [VU-BE-ring-states-07] A new ring starts with its first kick, whatever is
/// available before, and stops when its base is asked for. One that goes on where it was does not wait: its kick may
/// have gone to another back-end. A kick that cannot come any more is as good as one.
#[test]
fn a_new_ring_waits_for_its_first_kick() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, 0, 0);
    front.told();
    guest.offer(1, 2);
    front.describe(&guest, 1, 0);
    let kick = event();
    let clone = kick.try_clone().expect("a clone");
    front.send_with(SET_VRING_KICK, &words64(&[1]), vec![clone]);
    front.send_state(SET_VRING_ENABLE, 1, 1);
    assert!(front.session.turn().is_none());
    assert_eq!((front.told(), guest.used_idx(1)), (vec![], 0));
    // Who polls for the session polls for the kick.
    assert_eq!(front.session.interests().count(), 1);
    rustix::io::write(&kick, &1u64.to_ne_bytes()).expect("a kick");
    assert!(front.session.turn().is_none());
    assert_eq!((front.told(), front.session.interests().count()), (vec![start(1, true)], 0));
    // It has kicked: other memory and other addresses do not have it wait again.
    front.send(SET_VRING_ADDR, &guest.addresses(1));
    assert_eq!(front.told(), [Told::Stop(1), start(1, true)]);
    assert_eq!(front.serve(1), 2);

    assert_eq!((front.base(1), front.told()), (2, vec![Told::Stop(1)]));
    front.send_with(SET_VRING_KICK, &words64(&[1]), vec![event()]);
    assert_eq!(front.told(), [start(1, true)], "it goes on");

    front.describe(&guest, 2, 0);
    let (kick, writer) = rustix::pipe::pipe().expect("a pipe");
    front.send_with(SET_VRING_KICK, &words64(&[2]), vec![kick]);
    assert_eq!(front.told(), []);
    drop(writer);
    assert!(front.session.turn().is_none());
    assert_eq!(front.told(), [start(2, false)]);
}

/// While no ring may run nobody polls for kicks: they would be there, and nothing to be done about it.
#[test]
fn nobody_polls_for_a_kick_in_vain() {
    let guest = Guest::new();
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, pf::STATUS);
    front.send_u64(SET_FEATURES, ACKED);
    front.set_mem_table(&guest);
    front.describe(&guest, 0, 0);
    let kick = event();
    front.send_with(SET_VRING_KICK, &words64(&[0]), vec![kick.try_clone().expect("a clone")]);
    let polled = |front: &FrontEnd| front.session.interests().count();
    assert_eq!(polled(&front), 0);
    front.send_u64(SET_STATUS, DRIVER_OK);
    assert_eq!(polled(&front), 1);
    front.send_u64(SET_STATUS, 1);
    rustix::io::write(&kick, &1u64.to_ne_bytes()).expect("a kick");
    assert_eq!(polled(&front), 0);
    front.send_u64(SET_STATUS, DRIVER_OK);
    assert!(front.is_running(0));
    assert_eq!(polled(&front), 0);
}

/// [VU-BE-ring-states-08] Features without bit 30 enable all rings at once, also those that run.
#[test]
fn features_without_protocol_features_enable_all() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, 0, 0);
    front.send_u64(SET_FEATURES, feature::VERSION_1);
    assert_eq!(front.told(), [Told::Enable(0, true)]);
    front.describe(&guest, 2, 0);
    front.kick(2);
    assert_eq!(front.told(), [start(2, true)]);
    // The same once more changes nothing, but for a ring disabled since.
    front.send_u64(SET_FEATURES, feature::VERSION_1);
    assert_eq!(front.told(), []);
    front.send(SET_VRING_ENABLE, &words32(&[0, 0]));
    front.send_u64(SET_FEATURES, feature::VERSION_1);
    assert_eq!(front.told(), [Told::Enable(0, false), Told::Enable(0, true)]);
}

#[test]
fn refused_features_leave_no_ring_running() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, REPLY_ACK, 0);
    assert_ne!(front.ack(SET_FEATURES, &words64(&[ACKED | 1]), vec![]), 0);
    assert_eq!(front.told(), [Told::Stop(0), Told::Features(feature::VERSION_1 | 1)]);
    front.send_u64(SET_FEATURES, ACKED);
    assert_eq!(front.told(), [Told::Features(feature::VERSION_1), start(0, false)]);
}

// Memory

/// [VU-BE-set-mem-table-00] Memory replaced while rings run: they stop, and go on in the new memory.
#[test]
fn memory_is_replaced_under_running_rings() {
    let (old, new) = (Guest::new(), Guest::at(0x8_0000, 0x7fff_0000_0000, 0x1000));
    let mut front = FrontEnd::with_ring(&old, REPLY_ACK, 0);
    front.send_state(SET_VRING_ENABLE, 0, 1);
    old.offer(0, 2);
    assert_eq!(front.serve(0), 2);
    front.told();
    new.set_indices(0, 2);
    front.set_mem_table(&new);
    assert_eq!(front.told(), [Told::Stop(0), start(0, true)]);
    new.offer(0, 3);
    assert_eq!(front.serve(0), 3);
    assert_eq!((old.used_idx(0), new.used_idx(0)), (2, 5));
    // Memory that cannot be mapped changes nothing.
    assert_ne!(front.ack(SET_MEM_TABLE, &old.table(), vec![event()]), 0);
    let both = [words32(&[2, 0]), old.region(), old.region()].concat();
    assert_ne!(front.ack(SET_MEM_TABLE, &both, vec![old.fd(), old.fd()]), 0, "they overlap");
    assert_eq!(front.told(), []);
    new.offer(0, 1);
    assert_eq!((front.serve(0), front.base(0)), (1, 6));
}

/// [VU-BE-add-mem-reg-00] [VU-BE-add-mem-reg-01] [VU-BE-rem-mem-reg-00] [VU-BE-rem-mem-reg-01]
/// [VU-BE-rem-mem-reg-02] Regions come and go while a ring runs; without the one it lies in it does not.
#[test]
fn regions_come_and_go() {
    let (rings, other) = (Guest::new(), Guest::at(0x8_0000, 0x6000_0000, 0x2000));
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, SLOTS);
    front.send_u64(SET_FEATURES, ACKED);
    front.need_reply = true;
    front.send_with(ADD_MEM_REG, &rings.single(), vec![rings.fd()]);
    front.describe(&rings, 0, 0);
    front.kick(0);
    front.told();
    front.send_with(ADD_MEM_REG, &other.single(), vec![other.fd()]);
    assert_eq!(front.told(), [Told::Stop(0), start(0, false)]);
    assert_ne!(front.ack(ADD_MEM_REG, &other.single(), vec![other.fd()]), 0, "it is there already");
    assert_eq!(front.session.memory.regions().len(), 2);
    // What names a region is where it is; where it begins in its file does not count. A file may come along.
    let [gpa, len, va] = [other.gpa, GUEST_LEN, other.va];
    for (gpa, len, va) in [(gpa + 1, len, va), (gpa, len - 1, va), (gpa, len, va + 1)] {
        assert_ne!(front.ack(REM_MEM_REG, &words64(&[0, gpa, len, va, 0]), vec![]), 0);
    }
    front.send_with(REM_MEM_REG, &words64(&[0, gpa, len, va, 0xdead]), vec![other.fd()]);
    assert_eq!(front.session.memory.regions().len(), 1);
    rings.offer(0, 2);
    assert_eq!(front.serve(0), 2);
    front.told();

    // A running ring keeps its memory: the request is refused, and nothing has changed.
    assert_ne!(front.ack(REM_MEM_REG, &rings.single(), vec![]), 0);
    assert_eq!((front.told(), front.session.memory.regions().len()), (vec![], 1));
    rings.offer(0, 1);
    assert_eq!(front.serve(0), 1);
    assert_eq!(front.base(0), 3);
    front.told();
    front.send_with(REM_MEM_REG, &rings.single(), vec![]);
    assert_eq!(front.session.memory.regions().len(), 0);
}

/// A ring that cannot start holds no other up, and is not tried again before another kick.
#[test]
fn a_ring_that_cannot_start_is_alone() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, REPLY_ACK, 0);
    front.base(0);
    let nowhere = [words32(&[0, 0]), words64(&[0x10, 0x20, 0x30, 0])].concat();
    front.send(SET_VRING_ADDR, &nowhere);
    assert_ne!(front.ack(SET_VRING_KICK, &words64(&[0]), vec![event()]), 0);
    front.told();
    front.describe(&guest, 2, 0);
    front.kick(2);
    assert_eq!(front.told(), [start(2, false)]);
}

/// [VU-BE-get-max-mem-slots-00] [VU-BE-get-max-mem-slots-01] As many regions as said, and not one more.
#[test]
fn regions_are_bounded() {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(4096).expect("its length");
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, SLOTS);
    let most = front.ask_u64(GET_MAX_MEM_SLOTS);
    let mut add = |n: u64| {
        let region = words64(&[0, n * 4096, 4096, n * 8192, 0]);
        front.ack(ADD_MEM_REG, &region, vec![file.try_clone().expect("a clone").into()])
    };
    for n in 0..most {
        assert_eq!(add(n), 0, "region {n}");
    }
    assert_ne!(add(most), 0);
    assert_ne!(add(0), 0);
    assert_eq!(front.session.memory.regions().len() as u64, most);
    assert_eq!(front.ack(REM_MEM_REG, &words64(&[0, 4096, 4096, 8192, 0]), vec![]), 0);
    assert_eq!(front.ack(ADD_MEM_REG, &words64(&[0, 4096, 4096, 8192, 0]), vec![file.into()]), 0);
}

/// A front-end that shortens its file is found out, and nothing breaks.
#[test]
fn memory_taken_away_is_noticed() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, 0, 0);
    assert!(front.session.is_memory_intact());
    guest.file.set_len(0).expect("shortened");
    assert_eq!(front.serve(0), 0);
    assert!(!front.session.is_memory_intact());
    assert_eq!(front.base(0), 0);
    front.session.end();
}

// Reset and end

/// [VU-BE-reset-device-00] A reset stops and disables all, keeps the memory and the calls, and the device is set
/// up anew.
#[test]
fn a_reset_device_is_set_up_again() {
    let guest = Guest::new();
    for request in [RESET_DEVICE, SET_STATUS] {
        let mut front = FrontEnd::new();
        front.send_u64(SET_PROTOCOL_FEATURES, pf::RESET_DEVICE | pf::STATUS | pf::REPLY_ACK);
        front.need_reply = true;
        front.set_mem_table(&guest);
        let call = front.call(0);
        for round in 0..3u16 {
            guest.set_indices(0, 0);
            guest.set_indices(1, 0);
            front.send_u64(SET_FEATURES, ACKED);
            for ring in 0..2 {
                front.describe(&guest, ring, 0);
                front.kick(ring);
            }
            front.send_state(SET_VRING_ENABLE, 0, 1);
            front.told();
            front.send_u64(SET_STATUS, DRIVER_OK);
            let started = [Told::Status(15), start(0, true), start(1, false)];
            assert_eq!(front.told(), started, "round {round}");
            guest.offer(0, 2);
            assert_eq!((front.serve(0), signals(&call)), (2, 1));

            match request {
                RESET_DEVICE => front.send(RESET_DEVICE, &[]),
                _ => front.send_u64(SET_STATUS, 0),
            }
            assert_eq!(front.told(), [Told::Stop(0), Told::Stop(1), Told::Reset]);
            assert_eq!(front.ask_u64(GET_STATUS), 0);
            // Features and kicks are to be given anew; nothing less starts a ring.
            front.send_u64(SET_STATUS, DRIVER_OK);
            front.set_mem_table(&guest);
            assert_eq!(front.told(), [Told::Status(15)]);
            front.send_u64(SET_STATUS, 0);
        }
    }
}

#[test]
fn a_status_is_one_byte() {
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, pf::STATUS | pf::REPLY_ACK);
    for status in [0x100, 1 << 63, u64::MAX] {
        assert_ne!(front.ack(SET_STATUS, &words64(&[status]), vec![]), 0);
    }
    front.send_u64(SET_STATUS, 0xff);
    assert_eq!((front.told(), front.ask_u64(GET_STATUS)), (vec![Told::Status(0xff)], 0xff));
}

#[test]
fn the_end_stops_all() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_ring(&guest, 0, 0);
    front.describe(&guest, 3, 0);
    front.kick(3);
    let device = front.session.end();
    assert_eq!(device.told[device.told.len() - 3..], [Told::Stop(0), Told::Stop(3), Told::Reset]);
    assert!(device.running_vrings().is_empty());
}

// Configuration

/// [VU-BE-get-config-00] [VU-BE-get-config-01] The reply has the request's offset, size and flags, and as many
/// bytes; past the largest configuration space, or without being negotiated, it has nothing.
#[test]
fn the_configuration_space_is_read() {
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, pf::CONFIG);
    for (offset, size, flags) in [(0, 32, 0), (6, 2, 1), (0, 0, 0), (31, 5, 0), (200, 56, 0)] {
        let head = words32(&[offset, size, flags]);
        // What the front-end sends in the place of the bytes is of no concern.
        let reply = front.ask(GET_CONFIG, &[head.clone(), vec![0xee; size as usize]].concat());
        let bytes = (0..size).map(|i| match offset.checked_add(i) {
            Some(at @ 0..32) => at as u8 + 100,
            _ => 0,
        });
        assert_eq!(reply, head.into_iter().chain(bytes).collect::<Vec<_>>());
    }
    for (offset, size) in [(4000, 9), (u32::MAX, 1), (200, 57)] {
        let request = [words32(&[offset, size, 0]), vec![0; size as usize]].concat();
        assert!(front.ask(GET_CONFIG, &request).is_empty());
    }
    front.send_u64(SET_PROTOCOL_FEATURES, 0);
    assert!(front.ask(GET_CONFIG, &words32(&[0, 0, 0])).is_empty());
}

/// [VU-BE-set-config-00] [VU-BE-net-set-mtu-00] [VU-BE-net-set-mtu-01] [VU-BE-set-backend-req-fd-01] The
/// device decides on writes and on the MTU, and the front-end is told.
#[test]
fn the_device_decides() {
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, pf::CONFIG | pf::MTU | pf::BACKEND_REQ | pf::REPLY_ACK);
    let write = |offset| [words32(&[offset, 3, 0]), b"abc".to_vec()].concat();
    assert_eq!(front.ack(SET_CONFIG, &write(4), vec![]), 0);
    assert_ne!(front.ack(SET_CONFIG, &write(30), vec![]), 0);
    assert_eq!(front.ack(NET_SET_MTU, &words64(&[1500]), vec![]), 0);
    assert_ne!(front.ack(NET_SET_MTU, &words64(&[10]), vec![]), 0);
    let bytes = b"abc".to_vec();
    let told = [Told::Config(4, bytes.clone()), Told::Config(30, bytes), Told::Mtu(1500), Told::Mtu(10)];
    assert_eq!(front.told(), told);
    let _channel = front.channel();
    assert!(matches!(front.refused(SET_CONFIG, &write(31), vec![]), RequestError::Refused));
    assert!(matches!(front.refused(NET_SET_MTU, &words64(&[1 << 20]), vec![]), RequestError::Refused));
}
