//! Every byte that a peer can write, and the only place that touches one.
//!
//! ```text
//! file descriptor ──► Mapping (mmap, SIGBUS guard) ──► Region ──► MemoryTable
//!                                                                  │      │
//!                                     RingArea: a ring's area, ◄───┘      └───► ScatterList: buffers of
//!                                     resolved once per start                    chains, as slices
//! ```
//!
//! While a guest migrates, its front-end wants to know which pages are written to: a table can have a [`DirtyLog`].
//! Behind an IOMMU a device sees other addresses than the guest: a table can have a [`Translation`].
//!
//! What is worked on for longer than a burst is [`Kept`]: a buffer with the table that maps it.
//!
//! A driver's buffers are [`SharedBuf`]s: ranges of a region that have one owner, who lends them to the device.
//!
//! No reference (`&T`, `&[u8]`) ever points into such memory: a peer writes to it while we read. What
//! crosses the border is a copy ([`GuestBuf::read`]), an atomic word ([`RingArea`]), or a raw slice handed to
//! the kernel ([`io`]). A copy that races with the peer yields some mix of old and new bytes, which is the
//! peer's own loss; everything read is validated after it was copied, and never read again.
//!
//! This crate does not know what a virtqueue is. Without the `std` feature it has no mappings and no files;
//! regions then come from [`Region::new`].
#![cfg_attr(not(feature = "std"), no_std)]
#![allow(unsafe_code, reason = "this crate is the home of unsafe: memory that a peer writes to")]

extern crate alloc;

mod addr;
#[cfg_attr(loom, path = "area_model.rs")]
mod area;
mod buf;
#[cfg(feature = "std")]
pub mod io;
#[cfg(feature = "std")]
mod iotlb;
mod kept;
mod log;
#[cfg(feature = "std")]
mod mapping;
#[cfg(feature = "std")]
mod packet_ring;
mod scatter;
mod shared;
#[cfg(feature = "std")]
mod sigbus;
mod table;
mod translation;
#[cfg(feature = "std")]
mod userfault;

pub use addr::{BusAddr, FrontendVa, Gpa, Iova};
pub use area::RingArea;
pub use buf::{GuestBuf, GuestSlice};
#[cfg(feature = "std")]
pub use iotlb::Iotlb;
pub use kept::Kept;
pub use log::DirtyLog;
#[cfg(feature = "std")]
pub use mapping::{MapError, Mapping};
#[cfg(feature = "std")]
pub use packet_ring::{PACKET_HDR_LEN, PacketFrame, PacketRing};
pub use scatter::ScatterList;
pub use shared::SharedBuf;
pub use table::{Backing, MemoryError, MemoryTable, Region};
pub use translation::{Access, Translation};
#[cfg(feature = "std")]
pub use userfault::Userfault;
