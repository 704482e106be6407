//! A front-end that is not ours: that of the crate `vhost`, which Cloud Hypervisor and others use. It sends and checks
//! every message by its own reading of the protocol; only the rings behind it are driven by our driver's half.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, SharedBuf};
use ringway_queue::{Areas, DriverConfig, DriverQueue, ResumeState, Segment};
use ringway_spec::feature;
use ringway_testkit::server::Server;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserHeaderFlag,
    VhostUserInflight, VhostUserProtocolFeatures as Protocol,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const LEN: u64 = 1 << 20;
const GPA: u64 = 0x4000_0000;
const VA: u64 = 0x7000_0000;
const SIZE: u16 = 16;
/// Length of the header before each frame, in bytes.
const HEADER: usize = 12;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;
const FRAMES: u8 = 50;
const SOON: Duration = Duration::from_secs(5);

/// The crate's front-end, with memory that it shares.
struct Guest {
    front: Frontend,
    file: File,
    features: u64,
}

/// A ring in that memory, with its events.
struct Ring {
    queue: DriverQueue<SharedBuf>,
    buffers: Vec<SharedBuf>,
    kick: EventFd,
    _call: EventFd,
}

impl Guest {
    /// Negotiates as a virtual machine monitor does; every request wants an answer.
    fn up(server: &Server, packed: bool) -> Self {
        let mut front = Frontend::connect(server.socket("net"), 2).expect("connect");
        front.set_owner().expect("SET_OWNER");
        let offered = front.get_features().expect("GET_FEATURES");
        let format = if packed { feature::RING_PACKED } else { 0 };
        let features = feature::VERSION_1 | feature::RING_EVENT_IDX | format;
        assert_eq!(offered & features, features, "offered");
        front.set_features(features | PROTOCOL_FEATURES).expect("SET_FEATURES");
        let protocol = front.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
        let wanted = Protocol::MQ
            | Protocol::REPLY_ACK
            | Protocol::CONFIG
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::INFLIGHT_SHMFD
            | Protocol::DEVICE_STATE
            | Protocol::RESET_DEVICE;
        assert!(protocol.contains(wanted), "{protocol:?}");
        front.set_protocol_features(wanted).expect("SET_PROTOCOL_FEATURES");
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let file = tempfile::tempfile().expect("a file");
        file.set_len(LEN).expect("its length");
        Self { front, file, features }
    }

    fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GPA,
            memory_size: LEN,
            userspace_addr: VA,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Sets up ring `index` at its beginning, enabled, and starts it.
    fn ring(&mut self, index: usize) -> Ring {
        let file: OwnedFd = self.file.try_clone().expect("a clone").into();
        let region = Mapping::region(file, 0, LEN, Gpa(GPA), FrontendVa(VA)).expect("a region");
        let at = index as u64 * (LEN / 2);
        let buffers = SharedBuf::divide(&region, at + 0x4000..at + 0x10000, 2048).expect("buffers").collect();
        let memory = Arc::new(MemoryTable::new(vec![region]).expect("a table"));
        let [desc, avail, used] = [0, 0x1000, 0x2000].map(|offset| VA + at + offset);
        let areas = Areas::resolve(
            &memory,
            SIZE,
            self.features,
            FrontendVa(desc),
            FrontendVa(avail),
            FrontendVa(used),
        );
        let start = ResumeState::start(self.features);
        let config = DriverConfig {
            size: SIZE,
            features: self.features,
            areas: areas.expect("areas"),
            start,
            max_chain: SIZE,
            tables: None,
        };
        let queue = DriverQueue::new(config).expect("a queue");
        let (kick, call) = (EventFd::new(0).expect("an event"), EventFd::new(0).expect("an event"));
        self.front.set_vring_num(index, SIZE).expect("SET_VRING_NUM");
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        self.front.set_vring_addr(index, &addresses).expect("SET_VRING_ADDR");
        self.front.set_vring_base(index, 0).expect("SET_VRING_BASE");
        self.front.set_vring_call(index, &call).expect("SET_VRING_CALL");
        self.front.set_vring_kick(index, &kick).expect("SET_VRING_KICK");
        self.front.set_vring_enable(index, true).expect("SET_VRING_ENABLE");
        Ring { queue, buffers, kick, _call: call }
    }
}

impl Ring {
    /// Lends a buffer to the device, to be read or to be written.
    fn lend(&mut self, buffer: SharedBuf, len: usize, is_writable: bool) {
        let segment = [Segment { len: len as u32, ..Segment::from(&buffer) }];
        let (readable, writable) =
            if is_writable { (&[][..], &segment[..]) } else { (&segment[..], &[][..]) };
        assert!(self.queue.add(readable, writable, buffer).is_ok(), "room in the ring");
        if self.queue.publish() {
            self.kick.write(1).expect("a kick");
        }
    }

    /// The next buffer that comes back, and how much was written to it.
    fn wait(&mut self) -> (SharedBuf, usize) {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(used) = self.queue.reclaim().expect("a good ring") {
                return (used.owner, used.written as usize);
            }
            assert!(Instant::now() < deadline, "nothing was used in {SOON:?}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn echo() -> Server {
    Server::net(Path::new(env!("CARGO_BIN_EXE_ringway")), "echo", &[]).expect("a server")
}

/// A frame to be echoed, behind a header that says nothing.
fn frame(number: u8) -> Vec<u8> {
    let (dst, src) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    [&[0; HEADER][..], &dst, &src, &[0x88, 0xb5], &[number; 100]].concat()
}

/// [VU-BE-get-features-00] [VU-BE-get-queue-num-00] [VU-BE-get-max-mem-slots-00] [VU-BE-add-mem-reg-00]
/// [VU-BE-rem-mem-reg-00] Frames go out and come back, in both formats, with the memory told as a table or region by
/// region; then the rings stop, and their bases are where they stand.
#[test]
fn frames_are_echoed() {
    let server = echo();
    for (packed, by_region) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut guest = Guest::up(&server, packed);
        assert_eq!(guest.front.get_queue_num().expect("GET_QUEUE_NUM"), 8);
        assert_eq!(guest.front.get_max_mem_slots().expect("GET_MAX_MEM_SLOTS"), 509);
        let region = guest.region();
        if by_region {
            guest.front.add_mem_region(&region).expect("ADD_MEM_REG");
        } else {
            guest.front.set_mem_table(&[region]).expect("SET_MEM_TABLE");
        }
        let mut rx = guest.ring(0);
        let mut tx = guest.ring(1);
        for number in 0..FRAMES {
            let room = rx.buffers.pop().expect("a buffer");
            rx.lend(room, 2048, true);
            let mut sent = tx.buffers.pop().expect("a buffer");
            let bytes = frame(number);
            sent.write(&bytes);
            tx.lend(sent, bytes.len(), false);
            let (sent, _) = tx.wait();
            let (room, written) = rx.wait();
            let mut back = vec![0; written];
            room.read(&mut back);
            assert_eq!(back[HEADER..HEADER + 12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1], "swapped");
            assert_eq!(back[HEADER + 12..], bytes[HEADER + 12..], "the same frame");
            tx.buffers.push(sent);
            rx.buffers.push(room);
        }
        for index in 0..2 {
            let base = guest.front.get_vring_base(index).expect("GET_VRING_BASE");
            // 50 chains of one descriptor: in a ring of 16 three laps and two, so the wrap counter is 0.
            let wanted = if packed { 0x0002_0002 } else { u32::from(FRAMES) };
            assert_eq!(base, wanted, "packed {packed}, ring {index}");
        }
        if by_region {
            guest.front.remove_mem_region(&region).expect("REM_MEM_REG");
        }
        guest.front.reset_device().expect("RESET_DEVICE");
    }
}

/// [VU-BE-get-config-00] [VU-BE-get-config-01] [VU-BE-get-inflight-fd-00] [VU-BE-set-inflight-fd-00]
/// [VU-BE-set-device-state-fd-00] [VU-BE-check-device-state-00] Configuration, in-flight region and the device's state,
/// as the crate asks for them.
#[test]
fn questions_are_answered_as_the_crate_expects() {
    let server = echo();
    let mut guest = Guest::up(&server, false);
    let (config, bytes) =
        guest.front.get_config(0, 12, VhostUserConfigFlags::empty(), &[0; 12]).expect("GET_CONFIG");
    assert_eq!((config.size, bytes.len()), (12, 12));
    assert_eq!(bytes[6..10], [1, 0, 8, 0], "link up, eight pairs");

    let wanted = VhostUserInflight::new(0, 0, 2, SIZE);
    let (inflight, file) = guest.front.get_inflight_fd(&wanted).expect("GET_INFLIGHT_FD");
    assert_eq!((inflight.num_queues, inflight.queue_size), (2, SIZE));
    assert!(inflight.mmap_size > 0 && file.metadata().expect("a file").len() >= inflight.mmap_size);
    guest.front.set_inflight_fd(&inflight, file.as_raw_fd()).expect("SET_INFLIGHT_FD");

    let stopped = VhostTransferStatePhase::STOPPED;
    let (mut ours, theirs) = rustix::pipe::pipe().map(|(r, w)| (File::from(r), w)).expect("a pipe");
    let channel = guest.front.set_device_state_fd(VhostTransferStateDirection::SAVE, stopped, theirs);
    assert!(channel.expect("SET_DEVICE_STATE_FD").is_none(), "our channel is good");
    let mut state = Vec::new();
    ours.read_to_end(&mut state).expect("the state");
    assert!(!state.is_empty());
    guest.front.check_device_state().expect("it was saved");

    for (state, is_good) in [(&state[..], true), (b"nonsense", false)] {
        let (theirs, mut ours) = rustix::pipe::pipe().map(|(r, w)| (r, File::from(w))).expect("a pipe");
        let channel = guest.front.set_device_state_fd(VhostTransferStateDirection::LOAD, stopped, theirs);
        assert!(channel.expect("SET_DEVICE_STATE_FD").is_none());
        ours.write_all(state).expect("written");
        drop(ours);
        assert_eq!(guest.front.check_device_state().is_ok(), is_good);
    }
}
