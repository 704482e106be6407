//! A vhost-user front-end for tests: well-behaved by default, misbehaving on demand.
//!
//! Written from the definition of the protocol and of the split virtqueue, with its own constants and
//! layouts: nothing here is shared with the back-end's crates, so a mistake there is not repeated here.
//!
//! From the bottom up: [`wire`] (numbers and payloads), [`connection`] (messages and raw bytes on the
//! socket), [`memory`] (the guest's memory as memfds), [`event`] (eventfds), [`ring`] (the driver's half of
//! a split virtqueue), [`frame`] (frames and their checksums), [`net`] (a whole network session), [`flood`] (sessions that
//! send without an end), [`blk`] (a whole session with a disk).
//!
//! Guest memory is reached by `pread` and `pwrite` on the memfd, which are coherent with the back-end's
//! shared mapping; that is why a hostile guest can be written here without a line of unsafe code.

pub mod blk;
pub mod connection;
pub mod event;
pub mod flood;
pub mod frame;
pub mod memory;
pub mod net;
pub mod ring;
pub mod wire;

pub use blk::{BlkFrontend, BlkOptions, DiskRequest, Layout};
pub use connection::Connection;
pub use event::Event;
pub use flood::Flood;
pub use memory::GuestMemory;
pub use net::{Arrangement, Enable, MemoryMethod, NetFrontend, Options, RxPolicy, VnetHeader};
pub use ring::{Buffer, Descriptor, RingLayout, SplitRing};
