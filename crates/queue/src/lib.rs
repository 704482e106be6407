//! Virtqueues, both halves and both formats (2.6 to 2.9): chains go to the device and come back used.
//!
//! ```text
//!   driver                                                             device
//!   DriverQueue::add ──publish──►  available  ──take──►  Chain  ──complete──►  used  ──publish──┐
//!        ▲                             ▲                   │                                    │
//!        │                             └──────rewind───────┘                                    │
//!        └───────────────────────── reclaim ◄───────────────────────────────────────────────────┘
//! ```
//!
//! # A device
//!
//! ```
//! # use ringway_queue::{Burst, DeviceQueue, QueueError};
//! /// Answers every chain with as many zeros as it has room for; says whether to call the driver.
//! fn serve(queue: &mut DeviceQueue, burst: &mut Burst) -> Result<bool, QueueError> {
//!     queue.take(burst, 32)?;
//!     while let Some(chain) = burst.next() {
//!         let written = chain.writable().write(&[0; 64]);
//!         queue.complete(chain, written as u32);
//!     }
//!     Ok(queue.publish())
//! }
//! ```
//!
//! [`QueueError`] is final: the queue gives no further chain until it is started anew. An empty queue is not an
//! error, it is a burst of no chains. Before sleeping a device calls [`DeviceQueue::arm`] and sleeps only if
//! that says the queue is empty. A device without a need for bursts takes chains by [`DeviceQueue::next`]. Behind an
//! IOMMU a device asks for what is [`missing`](DeviceQueue::missing) after it took chains, or none.
//!
//! # A driver
//!
//! ```
//! # use std::sync::Arc;
//! # use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, SharedBuf};
//! # use ringway_queue::{Areas, Burst, DeviceQueue, DriverConfig, DriverQueue, QueueConfig, ResumeState, Segment, Used};
//! # use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED};
//! # let features = RING_PACKED | RING_EVENT_IDX;
//! # let start = ResumeState::start(features);
//! // Memory that both sides reach: here a file, as a vhost-user front-end shares it.
//! let file = tempfile::tempfile()?;
//! file.set_len(0x1_0000)?;
//! let region = Mapping::region(file.into(), 0, 0x1_0000, Gpa(0x4000_0000), FrontendVa(0))?;
//! let mut buffers = SharedBuf::divide(&region, 0x8000..0x1_0000, 64)?.collect::<Vec<_>>();
//! let memory = Arc::new(MemoryTable::new(vec![region])?);
//! let areas =
//!     || Areas::resolve(&memory, 8, features, FrontendVa(0), FrontendVa(0x1000), FrontendVa(0x2000));
//! let config = DriverConfig { size: 8, features, areas: areas()?, start, max_chain: 8, tables: None };
//! let mut driver = DriverQueue::new(config)?;
//!
//! // A request, and room for the answer, are lent to the device.
//! let (mut request, answer) = (buffers.pop().unwrap(), buffers.pop().unwrap());
//! request.write(b"ping");
//! let (readable, writable) = ([Segment::from(&request)], [Segment::from(&answer)]);
//! driver.add(&readable, &writable, (request, answer)).map_err(|refused| refused.error)?;
//! if driver.publish() {
//!     // Kick the device.
//! }
//!
//! // Elsewhere, the device.
//! let memory_of_the_guest = Arc::clone(&memory);
//! let config = QueueConfig {
//!     size: 8,
//!     features,
//!     areas: areas()?,
//!     memory: memory_of_the_guest,
//!     used_log: None,
//!     resume: start,
//!     inflight: None,
//! };
//! let mut device = DeviceQueue::start(config)?;
//! let mut burst = Burst::default();
//! while let Some(chain) = device.next(&mut burst)? {
//!     let written = chain.readable().truncate(4).copy_to(chain.writable());
//!     device.complete(chain, written as u32);
//! }
//! if device.publish() {
//!     // Call the driver.
//! }
//!
//! // They come back with the answer.
//! while let Some(Used { owner: (request, answer), written }) = driver.reclaim()? {
//!     let mut text = [0; 4];
//!     answer.read(&mut text);
//!     assert_eq!((&text, written), (b"ping", 4));
//!     buffers.extend([request, answer]);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A driver that has nothing to do sleeps as a device does: only if [`DriverQueue::arm`] says that nothing was used.
//! [`DriverError`] is final too: the device is to be reset.
//!
//! # Formats
//!
//! Split or packed is a private matter of a queue, chosen by the negotiated features. This crate does no I/O, takes
//! no lock, and allocates nothing after a queue was made and a [`Burst`] has grown to its working size, which is
//! bounded.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod area;
mod areas;
mod cursor;
mod device;
mod driver;
pub mod event;
mod notification;
mod resume;
mod sync;
mod wish;

pub use areas::Areas;
pub use cursor::Cursor;
pub use device::inflight;
pub use device::{Burst, Chain, ConfigError, DeviceQueue, InFlight, Missing, QueueConfig, QueueError, Taken};
pub use driver::{AddError, DriverConfig, DriverError, DriverQueue, IndirectTables, NotAdded, Segment, Used};
pub use notification::NotificationData;
pub use resume::ResumeState;
#[cfg(loom)]
pub use sync::{Fence, model};
