//! What a front-end is asked of its IOMMU.

use std::io::Read;

use ringway_memory::{Access, Iova};
use ringway_queue::Missing;

use super::*;

const IOTLB_MSG: u32 = 22;
/// What a message says: a page, to be read, or none any more.
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const READ: u8 = 1;
const PAGE: u64 = 4096;

impl FrontEnd {
    /// A vring waits for a page since there were so many updates.
    fn miss(&mut self, page: u64, updates: u64) {
        let iova = Iova(page * PAGE + 5);
        self.session.ask_translation(Missing { iova, access: Access::READ, updates });
    }

    /// Tells of a page, or takes it back.
    fn tell(&mut self, page: u64, kind: u8) {
        let at = page * PAGE;
        let message = [words64(&[at, PAGE, at]), vec![READ, kind, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(self.ask(IOTLB_MSG, &message), words64(&[0]));
    }
}

/// The pages that were asked for, in order.
fn asked(channel: &mut UnixStream) -> Vec<u64> {
    channel.set_nonblocking(true).expect("a socket");
    let mut message = [0; HEADER_LEN + 32];
    let mut next = || channel.read_exact(&mut message).ok().map(|()| message);
    let iova = |message: [u8; HEADER_LEN + 32]| {
        u64::from_le_bytes(message[HEADER_LEN..][..8].try_into().expect("8 bytes"))
    };
    std::iter::from_fn(|| next().map(|message| iova(message) / PAGE)).collect()
}

/// What was asked and not answered is not asked again: the driver may have taken the mapping back when the second
/// question comes, and its IOMMU would report it. It is asked again if the answer was taken back, and after a stop.
#[test]
fn a_translation_is_asked_for_once() {
    let mut front = FrontEnd::new();
    front.send_u64(SET_PROTOCOL_FEATURES, pf::BACKEND_REQ);
    front.send_u64(SET_FEATURES, ACKED | feature::ACCESS_PLATFORM);
    let mut channel = front.channel();
    front.miss(1, 0);
    front.miss(1, 0);
    front.miss(2, 0);
    assert_eq!(asked(&mut channel), [1, 2]);

    front.tell(2, UPDATE);
    front.miss(2, 0);
    assert_eq!(asked(&mut channel), [0; 0], "the vring is about to look again");
    front.miss(1, 1);
    assert_eq!(asked(&mut channel), [0; 0], "the answer is still to come");
    front.tell(2, INVALIDATE);
    front.miss(2, 1);
    assert_eq!(asked(&mut channel), [2], "the answer came and is gone");

    front.base(0);
    front.miss(1, 1);
    assert_eq!(asked(&mut channel), [1], "nobody waits for the answer to come");
}
