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

/// [VU-BE-iommu-support-03] What the driver's IOMMU does not allow is told as that, with the
/// address and what was to be done there; only if the driver has an IOMMU, and there is a channel.
#[test]
fn what_is_not_allowed_is_told() {
    use crate::message::{ChannelRequest, Iotlb, IotlbKind};

    let mut front = FrontEnd::new();
    front.session.access_failed(Iova(7), Access::WRITE);
    front.send_u64(SET_PROTOCOL_FEATURES, pf::BACKEND_REQ);
    front.send_u64(SET_FEATURES, ACKED | feature::ACCESS_PLATFORM);
    let mut channel = front.channel();
    for (iova, access) in [(0x1005, Access::READ), (0x2006, Access::WRITE)] {
        front.session.access_failed(Iova(iova), access);
        let mut message = [0; HEADER_LEN + 32];
        channel.read_exact(&mut message).expect("a message");
        let (head, payload) = message.split_first_chunk().expect("a header");
        let header = Header::decode(*head, Kind::Request).expect("a good header");
        let ChannelRequest::Iotlb(told) =
            ChannelRequest::decode(&header, payload, vec![]).expect("a request")
        else {
            panic!("another request")
        };
        let Access { read, write } = access;
        let wanted =
            Iotlb { iova, len: 0, frontend_va: FrontendVa(0), read, write, kind: IotlbKind::AccessFail };
        assert_eq!(told, wanted);
    }
}
