//! Device models: what a device offers, accepts and answers. Bytes in, decisions out.
//!
//! [`status`] is the machine every device goes through: features are negotiated, then the device is live.
//! [`net`] is the network device: its configuration space, its control commands, and the rules by which the
//! header of a frame that one driver sent becomes the header that another receives.
//! [`blk`] is the block device: its configuration space, and what becomes of a request.
//! [`console`] is the console device with its ports, [`entropy`] the entropy device, [`balloon`] the memory balloon.
//! [`model`] is what they have in common, for a transport that does not care which it shows.
//! [`mmio`] and [`pci`] are such transports, for people who write virtual machine monitors.
//!
//! A model knows no file descriptor, no thread, no socket and no clock. Those of networks and disks touch no ring either:
//! `net` (the crate) moves the frames, `block` the sectors. The small devices serve their queues themselves, a bounded turn
//! at a time. Chains that there is nothing for stay in their queue: whether it has some does not say whether it is to be
//! served again, but a kick does, and what whoever serves it has for the driver.
//!
//! # A device in a virtual machine
//!
//! A monitor gives a guest's accesses to the registers as bytes, and takes what there is to do as [`registers::Action`]s. It
//! has the guest's memory, the interrupt lines, and the threads, and starts a queue of what the driver said of it.
//!
//! ```
//! # use std::sync::Arc;
//! # use ringway_device::entropy::EntropyDevice;
//! # use ringway_device::mmio::MmioDevice;
//! # use ringway_device::registers::{Action, Settings, SettingsError};
//! # use ringway_memory::MemoryTable;
//! # use ringway_queue::{Burst, DeviceQueue};
//! struct Entropy {
//!     device: MmioDevice<EntropyDevice>,
//!     /// Its queue, while the driver lets it have one.
//!     queue: Option<DeviceQueue>,
//!     burst: Burst,
//!     memory: Arc<MemoryTable>,
//! }
//!
//! impl Entropy {
//!     fn new(memory: Arc<MemoryTable>) -> Result<Self, SettingsError> {
//!         let device = MmioDevice::new(EntropyDevice::new(false), Settings::default())?;
//!         Ok(Self { device, queue: None, burst: Burst::default(), memory })
//!     }
//!
//!     /// A processor of the guest wrote to a register. A read is given to `device.read` in the same way.
//!     fn write(&mut self, offset: u64, bytes: &[u8], set_line: &mut dyn FnMut(bool)) {
//!         self.device.write(offset, bytes);
//!         while let Some(action) = self.device.next_action() {
//!             match action {
//!                 Action::Line(level) => set_line(level),
//!                 Action::Notified { index, .. } => self.serve(index),
//!                 Action::QueueStarted(index) => self.start(index),
//!                 Action::QueueReset(index) => {
//!                     self.queue = None;
//!                     self.device.queue_was_reset(index);
//!                 }
//!                 Action::Reset => self.queue = None,
//!                 _ => {}
//!             }
//!         }
//!     }
//!
//!     fn start(&mut self, index: u16) {
//!         match self.device.queue(index).map(|setup| setup.start(&self.memory)) {
//!             Some(Ok(queue)) => self.queue = Some(queue),
//!             Some(Err(_)) => self.device.need_reset(),
//!             None => {}
//!         }
//!     }
//!
//!     fn serve(&mut self, index: u16) {
//!         let Some(queue) = &mut self.queue else { return };
//!         let mut random = |bytes: &mut [u8]| {
//! #           let getrandom = |bytes: &mut [u8]| bytes.fill(4);
//!             getrandom(bytes);
//!             bytes.len()
//!         };
//!         loop {
//!             match self.device.model_mut().serve(queue, &mut self.burst, &mut random) {
//!                 Ok(true) => self.device.used(index),
//!                 Ok(false) => {}
//!                 Err(_) => return self.device.need_reset(),
//!             }
//!             // The driver kicks again only if it was asked to, and may have made more available before.
//!             if !queue.arm() {
//!                 return;
//!             }
//!         }
//!     }
//! }
//!
//! let mut entropy = Entropy::new(Arc::default())?;
//! let mut first = [0; 4];
//! entropy.device.read(0, &mut first);
//! assert_eq!(&first, b"virt");
//! # entropy.write(0x70, &[1, 0, 0, 0], &mut |_| ());
//! # Ok::<(), SettingsError>(())
//! ```
//!
//! Rings that other threads serve are started in the same way and sent there; these say in the end `used`, through whatever
//! lock the registers are behind. A [`pci::PciDevice`] has two more things to give and to take: accesses of the configuration
//! space, and messages.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod balloon;
pub mod blk;
pub mod console;
pub mod entropy;
#[cfg(test)]
mod loopback;
pub mod mmio;
pub mod model;
pub mod net;
pub mod pci;
pub mod registers;
mod serving;
pub mod status;
