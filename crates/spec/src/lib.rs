//! Constants and little-endian wire structures of the virtio specification, version 1.4, a module per
//! chapter. Nothing here decides anything: the rules live in `queue`, `device` and `vhost`.
//!
//! | module | chapter |
//! |---|---|
//! | [`status`] | 2.1 Device Status Field |
//! | [`feature`] | 2.2 Feature Bits, 6 Reserved Feature Bits |
//! | [`split`] | 2.7 Split Virtqueues |
//! | [`packed`] | 2.8 Packed Virtqueues |
//! | [`pci`] | 4.1 Virtio Over PCI Bus |
//! | [`mmio`] | 4.2 Virtio Over MMIO |
//! | [`net`] | 5.1 Network Device |
//! | [`blk`] | 5.2 Block Device |
//! | [`console`] | 5.3 Console Device |
//! | [`entropy`] | 5.4 Entropy Device |
//! | [`balloon`] | 5.5 Traditional Memory Balloon Device |
#![no_std]
#![forbid(unsafe_code)]

pub mod balloon;
pub mod blk;
pub mod console;
pub mod entropy;
pub mod feature;
pub mod mmio;
pub mod net;
pub mod packed;
pub mod pci;
pub mod split;
pub mod status;
