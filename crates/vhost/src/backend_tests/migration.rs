//! Precopy: what is logged and when, and how a guest arrives.

use std::os::unix::fs::FileExt;

use super::*;

const SET_LOG_BASE: u32 = 6;
const SET_LOG_FD: u32 = 7;
const SEND_RARP: u32 = 19;

const LOGGED: u64 = ACKED | F_LOG_ALL;
/// Pages of the guest: 8 has the buffers, 0 ring 0.
const DATA: u64 = 8;
/// Where the used ring is logged, if it is.
const USED: u64 = 5;

/// A log, which the front-end looks at in its file.
struct Log {
    file: File,
    offset: u64,
}

impl Log {
    fn new() -> Self {
        Self::at(0)
    }

    fn at(offset: u64) -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(offset + 4096).expect("its length");
        Self { file, offset }
    }

    fn fd(&self) -> OwnedFd {
        self.file.try_clone().expect("a clone").into()
    }

    /// The pages marked since the last look, lowest first.
    fn take(&self) -> Vec<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, self.offset).expect("the log");
        self.file.write_all_at(&[0; 8], self.offset).expect("cleared");
        let bits = u64::from_le_bytes(bytes);
        (0..64).filter(|page| bits >> page & 1 == 1).collect()
    }
}

impl FrontEnd {
    /// The answer to `SET_LOG_BASE`, which nobody asked for.
    fn set_log(&mut self, log: &Log, len: u64) -> Option<Vec<u8>> {
        let description = words64(&[len, log.offset]);
        self.handle(SET_LOG_BASE, false, &description, vec![log.fd()]).expect("the session goes on")
    }

    fn use_log(&mut self, log: &Log) {
        assert_eq!(self.set_log(log, 4096), Some(words64(&[0])));
    }

    /// Places ring 0, with its used ring logged or not.
    fn place(&mut self, guest: &Guest, is_logged: bool) {
        let [descriptor, driver, device] = [0, 1, 2].map(|area| guest.area_at(0, area));
        let log = words64(&[descriptor, device, driver, USED * 4096]);
        self.send(SET_VRING_ADDR, &[words32(&[0, is_logged.into()]), log].concat());
    }
}

fn with_log(guest: &Guest, features: u64) -> (FrontEnd, Log) {
    let mut front = FrontEnd::with_features(guest, pf::LOG_SHMFD, features, 0);
    let log = Log::new();
    front.use_log(&log);
    (front, log)
}

/// [VU-BE-set-log-base-00] Answered whether or not it was asked for, well or not; refused without the feature, and
/// as an address of the front-end's.
#[test]
fn a_log_is_always_answered() {
    let log = Log::new();
    for (protocol, need_reply) in [(0, false), (REPLY_ACK, false), (REPLY_ACK, true)] {
        let mut front = FrontEnd::new();
        front.send_u64(SET_PROTOCOL_FEATURES, pf::LOG_SHMFD | protocol);
        let mut answer = |payload: &[u8], fds| {
            let reply = front.handle(SET_LOG_BASE, need_reply, payload, fds);
            let reply = reply.expect("the session goes on").expect("an answer");
            u64::from_le_bytes(reply.try_into().expect("8 bytes"))
        };
        assert_eq!(answer(&words64(&[4096, 0]), vec![log.fd()]), 0);
        assert_ne!(answer(&words64(&[4097, 0]), vec![log.fd()]), 0, "longer than its file");
        assert_ne!(answer(&words64(&[0, 0]), vec![log.fd()]), 0, "empty");
        assert_ne!(answer(&words64(&[8, u64::MAX]), vec![log.fd()]), 0);
        assert_ne!(answer(&words64(&[8, 0]), vec![event()]), 0, "no file to map");
        assert_ne!(answer(&words64(&[0x7fff_0000_0000]), vec![]), 0, "an address");
    }
    let mut front = FrontEnd::new();
    let error = front.refused(SET_LOG_BASE, &words64(&[4096, 0]), vec![log.fd()]);
    assert!(matches!(error, RequestError::NotNegotiated), "{error}");
    let error = front.refused(SET_LOG_BASE, &words64(&[0x7fff_0000_0000]), vec![]);
    assert!(matches!(error, RequestError::LogAddress), "{error}");
}

/// [VU-BE-migration-01] [VU-BE-migration-02] [VU-BE-migration-04] [VU-FB-migration-01] Data is marked while
/// `F_LOG_ALL` is acked, the used ring if its address says so, where that says; switched while the ring runs.
#[test]
fn the_log_is_switched_on_and_off() {
    let guest = Guest::new();
    let (mut front, log) = with_log(&guest, ACKED);
    front.run(&guest, 2);
    assert!(log.take().is_empty(), "there is a log, but nothing is logged");
    front.send_u64(SET_FEATURES, LOGGED);
    assert_eq!(front.told(), [Told::Stop(0), start(0, false)], "the device's features are the same");
    front.run(&guest, 1);
    assert_eq!(log.take(), [DATA]);
    front.place(&guest, true);
    front.run(&guest, 1);
    assert_eq!(log.take(), [USED, DATA]);
    assert_eq!(front.serve(0), 0);
    assert!(log.take().is_empty(), "nothing was written");
    front.place(&guest, false);
    front.run(&guest, 1);
    assert_eq!(log.take(), [DATA]);
    front.place(&guest, true);
    front.send_u64(SET_FEATURES, ACKED);
    // It was on when the ring was placed.
    log.take();
    front.run(&guest, 3);
    assert!(log.take().is_empty(), "off");
    // A second migration.
    front.send_u64(SET_FEATURES, LOGGED);
    front.run(&guest, 1);
    assert_eq!(log.take(), [USED, DATA]);
    assert_eq!((front.base(0), guest.used_idx(0)), (9, 9));
}

/// The log may come after the feature, be replaced while the ring runs, and is that of a new memory too.
#[test]
fn the_log_moves() {
    let guest = Guest::new();
    let mut front = FrontEnd::with_features(&guest, pf::LOG_SHMFD, LOGGED, 0);
    front.run(&guest, 1);
    let logs = [Log::new(), Log::at(4096), Log::new()];
    for log in &logs {
        front.use_log(log);
        assert_eq!(front.told(), [Told::Stop(0), start(0, false)]);
        front.run(&guest, 1);
        assert_eq!(logs.each_ref().map(Log::take).concat(), [DATA], "in the newest alone");
    }
    front.set_mem_table(&guest);
    front.run(&guest, 1);
    assert_eq!(logs.each_ref().map(Log::take), [vec![], vec![], vec![DATA]]);
    // One that cannot be mapped leaves the old one.
    assert_ne!(front.set_log(&logs[0], 1 << 30), Some(words64(&[0])));
    front.run(&guest, 1);
    assert_eq!(logs.each_ref().map(Log::take), [vec![], vec![], vec![DATA]]);
}

/// A log that is shorter than the memory has no room for what is past it.
#[test]
fn a_short_log() {
    let guest = Guest::new();
    let (mut front, _) = with_log(&guest, LOGGED);
    front.place(&guest, true);
    let short = Log::new();
    assert_eq!(front.set_log(&short, 1), Some(words64(&[0])));
    front.run(&guest, 2);
    assert_eq!(short.take(), [USED]);
}

/// A log taken away is found out as memory is, and breaks nothing.
#[test]
fn a_log_taken_away_is_noticed() {
    let guest = Guest::new();
    let (mut front, log) = with_log(&guest, LOGGED);
    assert!(front.session.is_memory_intact());
    log.file.set_len(0).expect("shortened");
    front.run(&guest, 2);
    assert!(!front.session.is_memory_intact());
    assert_eq!(front.base(0), 2);
}

/// [VU-BE-set-log-fd-00] [VU-BE-migration-05] A file descriptor to be told of marks is taken, and let be.
#[test]
fn the_log_tells_nobody() {
    let guest = Guest::new();
    let (mut front, log) = with_log(&guest, LOGGED);
    let told = event();
    front.send_with(SET_LOG_FD, &[], vec![told.try_clone().expect("a clone")]);
    front.run(&guest, 1);
    assert_eq!((log.take(), signals(&told)), (vec![DATA], 0));
    assert!(matches!(
        front.handle(SET_LOG_FD, false, &[], vec![]),
        Err(SessionError::Message(MessageError::BadFdCount { count: 0, .. }))
    ));
}

/// [VU-BE-migration-06] [VU-BE-suspended-device-state-01] [VU-BE-suspended-device-state-02]
/// [VU-BE-suspended-device-state-04] Once `GET_VRING_BASE` is answered nothing is written or signalled, whatever
/// the driver does; questions are answered.
#[test]
fn a_stopped_ring_is_left_alone() {
    let guest = Guest::new();
    let (mut front, log) = with_log(&guest, LOGGED);
    front.place(&guest, true);
    let call = front.call(0);
    front.run(&guest, 3);
    assert_eq!((front.base(0), log.take(), signals(&call)), (3, vec![USED, DATA], 1));
    let before = memory(&guest);
    guest.offer(0, 2);
    let offered = memory(&guest);
    assert_ne!(before, offered);
    let log_again = Log::new();
    front.use_log(&log_again);
    front.send_u64(SET_FEATURES, ACKED);
    front.send_u64(SET_FEATURES, LOGGED);
    front.set_mem_table(&guest);
    front.send_state(SET_VRING_ENABLE, 0, 1);
    let again = front.call(0);
    assert_eq!(front.ask_u64(GET_FEATURES), OFFERED | TRANSPORT_FEATURES);
    assert_eq!(front.base(0), 3);
    assert!(front.session.device().running_vrings().is_empty());
    assert_eq!(memory(&guest), offered);
    assert_eq!((log.take(), log_again.take()), (vec![], vec![]));
    assert_eq!((signals(&call), signals(&again)), (0, 0));
}

fn memory(guest: &Guest) -> Vec<u8> {
    let mut bytes = vec![0; GUEST_LEN as usize];
    guest.file.read_exact_at(&mut bytes, guest.offset).expect("the memory");
    bytes
}

/// [VU-BE-send-rarp-00] The guest's address, first byte first, goes to the device, if that was negotiated.
#[test]
fn a_guest_that_has_arrived_is_announced() {
    let address = words64(&[0xdead_0605_0403_0201]);
    let mut front = FrontEnd::with_more(pf::RARP, REPLY_ACK);
    front.send(SEND_RARP, &address);
    assert_eq!(front.ack(SEND_RARP, &address, vec![]), 0);
    assert_eq!(front.told(), [Told::Announce([1, 2, 3, 4, 5, 6]), Told::Announce([1, 2, 3, 4, 5, 6])]);
    front.send_u64(SET_PROTOCOL_FEATURES, REPLY_ACK);
    assert_ne!(front.ack(SEND_RARP, &address, vec![]), 0);
    assert!(matches!(front.refused(SEND_RARP, &address, vec![]), RequestError::NotNegotiated));
    assert_eq!(front.told(), []);
}

/// As QEMU migrates: log, features and addresses while rings run, an answer wanted to what switches the log on; a
/// migration that is cancelled, one that succeeds, and the same device at the other end.
#[test]
fn qemu_migrates() {
    let (guest, log) = (Guest::new(), Log::new());
    let protocol = (SESSION_FEATURES | pf::CONFIG) & !pf::STATUS;
    let mut front = FrontEnd::with_more(pf::RARP, protocol);
    front.start_ring(&guest, ACKED);
    front.send_state(SET_VRING_ENABLE, 0, 1);
    front.run(&guest, 2);
    let place = |is_logged: u32| {
        let areas = [0, 2, 1].map(|area| guest.area_at(0, area));
        [words32(&[0, is_logged]), words64(&areas), words64(&[guest.gpa + 0x800])].concat()
    };
    for is_cancelled in [true, false] {
        front.use_log(&log);
        assert_eq!(front.ack(SET_FEATURES, &words64(&[LOGGED]), vec![]), 0);
        assert_eq!(front.ack(SET_VRING_ADDR, &place(1), vec![]), 0);
        front.run(&guest, 2);
        assert_eq!(log.take(), [0, DATA]);
        if is_cancelled {
            front.send_u64(SET_FEATURES, ACKED);
            front.send(SET_VRING_ADDR, &place(0));
            front.run(&guest, 2);
            assert!(log.take().is_empty());
        }
    }
    let base = front.base(0);
    assert_eq!((base, log.take()), (8, vec![]));

    // The memory has been copied.
    let mut arrived = FrontEnd::with_more(pf::RARP, protocol);
    arrived.send_u64(SET_FEATURES, ACKED);
    arrived.set_mem_table(&guest);
    arrived.describe(&guest, 0, base);
    arrived.kick(0);
    arrived.send_state(SET_VRING_ENABLE, 0, 1);
    arrived.send(SEND_RARP, &words64(&[0x0605_0403_0201]));
    arrived.run(&guest, 1);
    assert_eq!((arrived.base(0), guest.used_idx(0)), (9, 9));
}
