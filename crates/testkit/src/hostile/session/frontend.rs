//! A front-end that says what it likes in any order, with any file descriptors.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use ringway_spec::feature::{ACCESS_PLATFORM, IN_ORDER, RING_PACKED, VERSION_1};
use ringway_vhost::message::{
    F_LOG_ALL, F_PROTOCOL_FEATURES, HEADER_LEN, Header, Kind, MAX_FDS, Outgoing, protocol_feature as pf,
};
use ringway_vhost::socket::Message;
use rustix::fs::{FallocateFlags, MemfdFlags};

use super::super::Input;
use super::{OFFERED, QUEUES, SPLIT};

/// Length of each of the front-end's files: a few pages.
const FILE_LEN: u64 = 0x8000;
/// Where the front-end has its memory.
const VA: u64 = 0x7f00_0000_0000;
/// The most ends of pipes and sockets that it keeps.
const MAX_ENDS: usize = 4;

/// What the front-end has, beside what it says.
pub(super) struct Peer {
    pub(super) files: [File; 2],
    /// Its ends of what it gave away, the oldest first.
    ends: VecDeque<OwnedFd>,
    /// The in-flight region that it was given.
    inflight: Option<(Vec<u8>, OwnedFd)>,
    /// The protocol features that it is offered.
    offered: u64,
}

impl Peer {
    pub(super) fn new(offered: u64) -> Self {
        let files = [(); 2].map(|()| {
            let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
            // Every page is there: who watches the memory is not made to wait for one.
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, FILE_LEN).expect("its pages");
            file
        });
        Self { files, ends: VecDeque::new(), inflight: None, offered }
    }

    fn keep(&mut self, end: OwnedFd) {
        rustix::io::ioctl_fionbio(&end, true).expect("not to wait");
        if self.ends.len() == MAX_ENDS {
            self.ends.pop_front();
        }
        self.ends.push_back(end);
    }

    /// Keeps what an answer brings.
    pub(super) fn take(&mut self, answer: Outgoing) {
        if let Some(fd) = answer.fds.into_iter().next()
            && answer.bytes[0] == 31
        {
            self.inflight = Some((answer.bytes[HEADER_LEN..].to_vec(), fd));
        }
    }

    /// Reads what is in its ends, or writes to one: answers, or anything.
    pub(super) fn use_ends(&mut self, input: &mut Input<'_>) {
        let [how, len] = input.array();
        let bytes = match how & 3 {
            0 => return self.read_ends(),
            1 => return drop(self.ends.pop_back()),
            2 => [words32(&[u32::from(how >> 2 & 15), 5, 8]), words64(&[0])].concat(),
            _ => input.bytes(len.into()).to_vec(),
        };
        if let Some(end) = self.ends.back() {
            // One that is full, or that nobody reads, takes nothing.
            let _ = rustix::io::write(end, &bytes);
        }
    }

    pub(super) fn read_ends(&mut self) {
        let mut bytes = vec![0; 1 << 16];
        for end in &self.ends {
            let _ = rustix::io::read(end, &mut bytes[..]);
        }
    }

    pub(super) fn close_ends(&mut self) {
        self.ends.clear();
    }
}

/// A message's header, payload and files, all at random; `None` if the header alone is refused.
pub(super) fn any_message(input: &mut Input<'_>, peer: &mut Peer) -> Option<Message> {
    let header = Header::decode(input.array(), Kind::Request).ok()?;
    let fds = fds(input, peer);
    let mut payload = input.bytes(header.payload_len()).to_vec();
    payload.resize(header.payload_len(), 0);
    Some(Message { header, payload, fds })
}

/// Up to as many file descriptors as a message may have.
fn fds(input: &mut Input<'_>, peer: &mut Peer) -> Vec<OwnedFd> {
    let [count, kinds] = input.array();
    (0..usize::from(count) % (MAX_FDS + 1)).map(|i| fd(kinds >> (i % 4 * 2), peer)).collect()
}

/// A file of memory, an event, or an end of a pipe or a socket, whose other end is kept.
fn fd(kind: u8, peer: &mut Peer) -> OwnedFd {
    match kind & 7 {
        n @ (0 | 1 | 4 | 5) => peer.files[usize::from(n & 1)].try_clone().expect("a clone").into(),
        2 => super::event(),
        3 => {
            let (theirs, ours) = UnixStream::pair().expect("a pair of sockets");
            peer.keep(ours.into());
            theirs.into()
        }
        n => {
            let (read, write) = rustix::pipe::pipe().expect("a pipe");
            let (theirs, ours) = if n == 6 { (read, write) } else { (write, read) };
            peer.keep(ours);
            theirs
        }
    }
}

fn message(request: u32, need_reply: bool, payload: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
    let flags = if need_reply { 9 } else { 1 };
    let mut head = [0; HEADER_LEN];
    for (bytes, word) in head.chunks_mut(4).zip([request, flags, payload.len() as u32]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    Message { header: Header::decode(head, Kind::Request).expect("a good header"), payload, fds }
}

fn words32(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn words64(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Where region `n` is: address in the guest, length, address in the front-end, start in the file.
fn region(n: u8) -> [u64; 4] {
    let (place, shape) = (u64::from(n & 3), u64::from(n >> 2));
    let len = if shape & 1 == 0 { FILE_LEN } else { 0x1000 };
    let offset = if shape & 2 == 0 { 0 } else { 0x800 };
    [place * FILE_LEN + (shape & 4) * 0x400, len - offset, VA + place * FILE_LEN, offset]
}

/// Addresses of a ring, in the region of its number more often than not.
fn addresses(index: u32, at: u8) -> Vec<u8> {
    let base = VA + u64::from(at >> 6) * FILE_LEN + u64::from(at & 31) * 0x100;
    [words32(&[index, 0]), words64(&[base, base + 0x800, base + 0x400, 0])].concat()
}

/// A message of the right form, whose values are more or less good.
pub(super) fn likely_message(input: &mut Input<'_>, peer: &mut Peer) -> Message {
    const REQUESTS: [u32; 26] =
        [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 24, 25, 34, 36, 37, 38, 39, 40];
    let [which, how, value] = input.array();
    let request = REQUESTS[usize::from(which) % REQUESTS.len()];
    let index = u32::from(how & 7) % u32::from(QUEUES + 1);
    let number = match value {
        255 => input.u64(),
        254 => OFFERED | F_PROTOCOL_FEATURES,
        253 => pf::MQ | pf::REPLY_ACK | pf::CONFIG | pf::CONFIGURE_MEM_SLOTS | pf::RESET_DEVICE | pf::STATUS,
        n => n.into(),
    };
    let state = || words32(&[index, number as u32]);
    let mut fd_count = 0;
    let payload = match request {
        2 => words64(&[number | if how & 8 == 0 { VERSION_1 | F_PROTOCOL_FEATURES } else { 0 }]),
        16 | 20 | 39 => words64(&[number]),
        5 => {
            fd_count = value & 3;
            let regions = (0..fd_count).flat_map(|n| words64(&region(value >> 2 ^ n)));
            words32(&[fd_count.into(), 0]).into_iter().chain(regions).collect()
        }
        8 if how & 8 == 0 => words32(&[index, 1 << (value % 8)]),
        8 | 10 | 11 => state(),
        9 => addresses(index, value),
        12..=14 => {
            fd_count = value & 1;
            words64(&[u64::from(index) | if fd_count == 0 { 0x100 } else { 0 }])
        }
        18 => words32(&[index, u32::from(value & 1)]),
        21 => {
            fd_count = 1;
            vec![]
        }
        24 | 25 => [words32(&[how.into(), value.into(), 0]), vec![how; value.into()]].concat(),
        37 | 38 => {
            fd_count = u8::from(request == 37);
            [words64(&[0]), words64(&region(value))].concat()
        }
        _ => vec![],
    };
    // Memory comes from files, and signals by events; unless they do not.
    let first = if matches!(request, 5 | 37) { how >> 5 & 1 } else { 2 };
    let fds = (0..fd_count).map(|n| fd(if how & 16 == 0 { first ^ n & 1 } else { how >> 5 }, peer)).collect();
    message(request, how & 0x80 != 0, payload, fds)
}

/// The messages that get a ring running, if nothing before them is in the way.
pub(super) fn set_up(input: &mut Input<'_>, peer: &mut Peer) -> Vec<Message> {
    let [how, at, base] = input.array();
    let index = u32::from(how) % u32::from(QUEUES);
    let ring = u64::from(index);
    let event = || vec![super::event()];
    let table = [words32(&[1, 0]), words64(&region(0))].concat();
    let packed = if base & 4 == 0 { 0 } else { RING_PACKED | IN_ORDER };
    let features = packed | if how & 4 == 0 { SPLIT } else { VERSION_1 | F_PROTOCOL_FEATURES };
    let behind_iommu = if base & 16 == 0 { 0 } else { ACCESS_PLATFORM };
    // New packed rings, as three front-ends name their base, and anything small.
    let base = [0, 0x8000, 0x8000_8000, base.into()][usize::from(base & 3)];
    // With little, or with all that there is but what makes a ring wait for the driver; then with a log and a channel.
    let (protocol, logs) = if base & 8 == 0 {
        (pf::REPLY_ACK | pf::CONFIGURE_MEM_SLOTS | pf::CONFIG, 0)
    } else {
        (peer.offered & !pf::STATUS, F_LOG_ALL)
    };
    let mut messages = vec![
        message(16, false, words64(&[protocol]), vec![]),
        message(2, true, words64(&[features | logs | behind_iommu]), vec![]),
        message(5, true, table, vec![fd(how >> 3 & 1, peer)]),
        message(8, true, words32(&[index, 1 << (how >> 5)]), vec![]),
        message(9, true, addresses(index, at & 31), vec![]),
        message(10, true, words32(&[index, base]), vec![]),
        message(13, true, words64(&[ring]), event()),
        message(12, true, words64(&[ring]), event()),
        message(18, true, words32(&[index, 1]), vec![]),
    ];
    if behind_iommu != 0 {
        // The ring's areas, and its buffers, are where the addresses say.
        for iova in [VA, 0] {
            messages.push(message(22, true, iotlb(iova, FILE_LEN, VA, 3, 2), vec![]));
        }
    }
    if logs != 0 {
        messages.insert(1, message(21, true, vec![], vec![fd(at >> 5 | 3, peer)]));
        messages.insert(2, message(6, true, words64(&[0x10, 0]), vec![fd(1, peer)]));
    }
    messages
}

/// The messages by which the device's state goes over.
pub(super) fn transfer(how: u8, peer: &mut Peer) -> Vec<Message> {
    let channel = fd([3, 6, 7, 0][usize::from(how >> 1 & 3)], peer);
    vec![
        message(16, false, words64(&[peer.offered & !pf::STATUS]), vec![]),
        message(34, true, vec![], vec![]),
        message(42, false, words32(&[u32::from(how & 1), 0]), vec![channel]),
        message(43, false, vec![], vec![]),
    ]
}

/// The messages by which memory arrives later.
pub(super) fn postcopy(input: &mut Input<'_>, peer: &mut Peer) -> Vec<Message> {
    let [how, at] = input.array();
    let mut messages = vec![
        message(16, false, words64(&[peer.offered & !pf::STATUS]), vec![]),
        message(2, true, words64(&[SPLIT]), vec![]),
        message(5, true, words32(&[0, 0]), vec![]),
        message(28, true, vec![], vec![]),
        message(29, true, vec![], vec![]),
    ];
    if how & 1 == 0 {
        let table = [words32(&[1, 0]), words64(&region(at))].concat();
        messages.push(message(5, false, table, vec![fd(how >> 1 & 1, peer)]));
        messages.push(message(5, how & 4 == 0, words64(&[0]), vec![]));
    } else {
        let single = [words64(&[0]), words64(&region(at))].concat();
        messages.push(message(37, false, single, vec![fd(how >> 1 & 1, peer)]));
        messages.push(message(37, how & 4 == 0, words64(&[0]), vec![]));
    }
    messages.truncate(usize::from(how >> 5) + 1);
    messages
}

/// Writes to a file: any bytes anywhere, or descriptors, either packed ones or with an available ring that names
/// them.
pub(super) fn write(input: &mut Input<'_>, peer: &Peer) {
    let [how, at, len] = input.array();
    let file = &peer.files[usize::from(how & 1)];
    let base = u64::from(at & 31) * 0x100;
    if how & 2 == 0 {
        file.write_all_at(input.bytes(len.into()), base + u64::from(at >> 5)).expect("written");
        return;
    }
    for i in 0..u64::from(len % 16) {
        let [flags, next, a, b] = input.array();
        let descriptor = words64(&[u64::from(a) * 0x80 + u64::from(b & 7), u64::from(b) << 2]);
        file.write_all_at(&descriptor, base + i * 16).expect("written");
        if how & 4 != 0 {
            // AVAIL and USED are the highest bits of the flags' bytes.
            let packed = [next, 0, flags & 0x87, flags << 1 & 0x80];
            file.write_all_at(&packed, base + i * 16 + 12).expect("written");
            continue;
        }
        file.write_all_at(&[flags & 7, 0, next % 16, 0], base + i * 16 + 12).expect("written");
        file.write_all_at(&[i as u8, 0], base + 0x404 + i * 2).expect("written");
    }
    file.write_all_at(&input.u16().to_le_bytes(), base + 0x402).expect("written");
}

/// A message about logs, postcopy, device state, the channel, translations or what is in flight; more or less good.
pub(super) fn other_message(input: &mut Input<'_>, peer: &mut Peer) -> Message {
    const REQUESTS: [u32; 20] = [2, 6, 7, 9, 16, 19, 21, 22, 23, 28, 29, 30, 31, 32, 35, 37, 41, 42, 43, 44];
    let [which, how, value] = input.array();
    let request = REQUESTS[usize::from(which) % REQUESTS.len()];
    let index = u32::from(how & 7) % u32::from(QUEUES + 1);
    let mut fds = vec![];
    let payload = match request {
        2 => {
            let more = [F_LOG_ALL, ACCESS_PLATFORM, RING_PACKED, IN_ORDER];
            let bits = more.iter().enumerate().filter(|(bit, _)| value >> bit & 1 == 1);
            words64(&[SPLIT | F_PROTOCOL_FEATURES | bits.map(|(_, feature)| feature).sum::<u64>()])
        }
        6 => {
            fds.push(fd(how >> 4, peer));
            words64(&[u64::from(value) << 4, u64::from(how & 15) << 2])
        }
        7 | 21 => {
            fds.push(fd(if how & 16 == 0 { how | 3 } else { how >> 4 }, peer));
            vec![]
        }
        9 => {
            let mut payload = addresses(index, value);
            payload[4] = how >> 4 & 1;
            payload[32] = how;
            payload
        }
        16 => words64(&[peer.offered & !if value & 1 == 0 { pf::STATUS } else { 0 }]),
        22 => {
            let at = u64::from(value) * 0x800;
            let kind = [2, 2, 2, 3, 3, 1, 4, 0][usize::from(how & 7)];
            iotlb(at, u64::from(how >> 5) * 0x800, VA + (at ^ 0x1000), how >> 3 & 3, kind)
        }
        31 => inflight(0, u16::from(how & 7), u16::from(value)),
        32 => match &peer.inflight {
            Some((description, file)) if how & 16 == 0 => {
                fds.push(file.try_clone().expect("a clone"));
                description.clone()
            }
            _ => {
                fds.push(fd(how >> 4, peer));
                inflight(u64::from(value) << 4, u16::from(how & 7), u16::from(value))
            }
        },
        // Regions are mapped here, says one who was told.
        37 => words64(&[u64::from(value >> 7)]),
        41 => vec![value; 16],
        42 => {
            let kind = [3, 6, 7, 7, 6, 0, 1, 2][usize::from(how & 7)];
            fds.push(fd(kind, peer));
            words32(&[u32::from(value & 1), u32::from(value >> 7)])
        }
        19 => words64(&[value.into()]),
        23 | 35 => words32(&[index, u32::from(value & 1)]),
        _ => vec![],
    };
    message(request, how & 0x80 != 0, payload, fds)
}

fn iotlb(iova: u64, len: u64, va: u64, access: u8, kind: u8) -> Vec<u8> {
    [words64(&[iova, len, va]), vec![access, kind, 0, 0, 0, 0, 0, 0]].concat()
}

/// The payload of the requests about the in-flight region.
fn inflight(len: u64, queues: u16, size: u16) -> Vec<u8> {
    [words64(&[len, 0]), queues.to_le_bytes().to_vec(), size.to_le_bytes().to_vec(), vec![0; 4]].concat()
}
