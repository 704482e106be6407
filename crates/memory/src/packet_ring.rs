//! The ring in which a packet socket shows what its interface received (packet(7): `PACKET_RX_RING`, `TPACKET_V2`,
//! with `PACKET_VNET_HDR`): memory that the kernel writes and we read.
//!
//! ```text
//!   slot     0         1         2         3          …       one word of a slot says whose it is
//!         [ours    ][ours    ][kernel's][kernel's]
//!          ▲ next              ▲ the kernel's next            taken in order, given back when dropped
//!
//!   slot     status, lengths, tag │ … │ virtio-net header │ frame … │
//! ```
//!
//! A slot holds the longest frame, so that segments yet to be cut come whole. The kernel takes VLAN tags out of frames;
//! here they are put back.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::GuestSlice;

/// Length of the virtio-net header before a frame: the legacy one, without `num_buffers`.
pub const PACKET_HDR_LEN: usize = 10;

/// 64 KiB, a tag, and what the kernel puts before a frame; whole pages of 4 KiB.
const SLOT_LEN: usize = 17 * 4096;
/// Pages that the kernel allocates at once; a multiple of every size that a page may have.
const BLOCK_LEN: usize = 1 << 20;
const SLOTS_PER_BLOCK: usize = BLOCK_LEN / SLOT_LEN;
const BLOCKS: usize = 16;
const SLOTS: usize = BLOCKS * SLOTS_PER_BLOCK;
const LEN: usize = BLOCKS * BLOCK_LEN;

/// Where a frame can begin at the earliest: behind the slot's header and the frame's.
const FIRST: usize = size_of::<libc::tpacket2_hdr>() + PACKET_HDR_LEN;
const ADDRESSES_LEN: usize = 12;
const TAG_LEN: usize = 4;
const TPID_VLAN: u16 = 0x8100;

/// The mapped receive ring of a packet socket.
pub struct PacketRing {
    base: NonNull<u8>,
    /// The slot that the kernel fills next, or has.
    next: usize,
}

// SAFETY: the mapping may be accessed and unmapped from any thread.
unsafe impl Send for PacketRing {}

impl PacketRing {
    /// What to ask for by `PACKET_RX_RING`, before the socket is bound.
    pub fn request() -> libc::tpacket_req {
        libc::tpacket_req {
            tp_block_size: BLOCK_LEN as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: SLOT_LEN as u32,
            tp_frame_nr: SLOTS as u32,
        }
    }

    /// Maps the ring of a socket, made by [`PacketRing::request`], to go on at the slot `next`: 0 in a new one, or where
    /// another process stood.
    ///
    /// # Errors
    /// The kernel's, if the socket has no such ring; `InvalidInput` if there is no such slot.
    pub fn map(socket: BorrowedFd<'_>, next: usize) -> io::Result<Self> {
        if next >= SLOTS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice, disturbs no other.
        let base = unsafe { libc::mmap(ptr::null_mut(), LEN, prot, libc::MAP_SHARED, socket.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // It does not map the null page.
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, next })
    }

    /// The slot to go on at.
    pub fn position(&self) -> usize {
        self.next
    }

    /// Whether a frame waits. No system call.
    #[inline]
    pub fn has_frame(&self) -> bool {
        self.status().load(Ordering::Relaxed) & libc::TP_STATUS_USER != 0
    }

    /// The oldest frame that waits. Its slot is the kernel's again when it is dropped.
    #[inline]
    pub fn next_frame(&mut self) -> Option<PacketFrame<'_>> {
        // Pairs with the barrier before the kernel's store of the word: what is behind it was written before.
        let status = self.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let slot = self.slot();
        // SAFETY: a slot begins with this header, aligned; the kernel does not write to a slot of ours.
        let head = unsafe { slot.cast::<libc::tpacket2_hdr>().read() };
        let start = usize::from(head.tp_mac).clamp(FIRST, SLOT_LEN);
        let len = (head.tp_snaplen as usize).min(SLOT_LEN - start);
        let mut header = [0; PACKET_HDR_LEN];
        // SAFETY: the bytes before `start`, which is at least `FIRST`, are in the slot.
        let source = unsafe { slot.add(start - PACKET_HDR_LEN) };
        // SAFETY: as many bytes as `header` has, in the slot; see above.
        unsafe { ptr::copy_nonoverlapping(source.as_ptr(), header.as_mut_ptr(), PACKET_HDR_LEN) };
        let is_whole = head.tp_len == head.tp_snaplen;
        let mut frame = PacketFrame { ring: self, start, len, header, is_whole, tag_len: 0 };
        if status & libc::TP_STATUS_VLAN_VALID != 0 {
            let has_tpid = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            frame.put_tag(if has_tpid { head.tp_vlan_tpid } else { TPID_VLAN }, head.tp_vlan_tci);
        }
        Some(frame)
    }

    #[inline]
    fn slot(&self) -> NonNull<u8> {
        let offset = self.next / SLOTS_PER_BLOCK * BLOCK_LEN + self.next % SLOTS_PER_BLOCK * SLOT_LEN;
        // SAFETY: `next` is less than `SLOTS`, so the slot is in the mapping.
        unsafe { self.base.add(offset) }
    }

    /// The word that says whose the next slot is.
    #[inline]
    fn status(&self) -> &AtomicU32 {
        // SAFETY: a slot begins with it, aligned to more than a word; both sides access it as a whole.
        unsafe { self.slot().cast::<AtomicU32>().as_ref() }
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and frames in it borrow the ring.
        unsafe { libc::munmap(self.base.as_ptr().cast(), LEN) };
    }
}

/// A frame in its slot.
pub struct PacketFrame<'r> {
    ring: &'r mut PacketRing,
    start: usize,
    len: usize,
    header: [u8; PACKET_HDR_LEN],
    is_whole: bool,
    tag_len: usize,
}

impl PacketFrame<'_> {
    /// The header of virtio-net before it.
    pub fn header(&self) -> [u8; PACKET_HDR_LEN] {
        self.header
    }

    /// Whether all of it is there: none that has the longest length or less is cut off.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// How many bytes the tag that was put back has, 0 for none. The header's positions do not count them.
    pub fn tag_len(&self) -> usize {
        self.tag_len
    }

    /// The frame.
    pub fn data(&self) -> GuestSlice<'_> {
        // SAFETY: `start + len` is at most the slot's length.
        let base = unsafe { self.ring.slot().add(self.start) };
        // SAFETY: the range is in the slot, which is mapped and not the kernel's for as long as `self` lives.
        unsafe { GuestSlice::from_raw(base, self.len) }
    }

    /// Puts a tag behind the addresses, which move to the front, over the header that was read.
    fn put_tag(&mut self, tpid: u16, tci: u16) {
        if self.len < ADDRESSES_LEN {
            return;
        }
        let [a, b] = tpid.to_be_bytes();
        let [c, d] = tci.to_be_bytes();
        // SAFETY: `start` is at least `FIRST`, and there are at least `ADDRESSES_LEN` bytes.
        let from = unsafe { self.ring.slot().add(self.start) }.as_ptr();
        let to = from.wrapping_sub(TAG_LEN);
        // SAFETY: both ranges are in the slot, which is ours.
        unsafe { ptr::copy(from, to, ADDRESSES_LEN) };
        // SAFETY: as before: the last of the bytes that have moved.
        unsafe { to.wrapping_add(ADDRESSES_LEN).cast::<[u8; TAG_LEN]>().write([a, b, c, d]) };
        self.start -= TAG_LEN;
        self.len += TAG_LEN;
        self.tag_len = TAG_LEN;
    }
}

impl Drop for PacketFrame<'_> {
    fn drop(&mut self) {
        // Pairs with the kernel's reading of the word: what was read of the slot was read before.
        self.ring.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.ring.next = (self.ring.next + 1) % SLOTS;
    }
}
