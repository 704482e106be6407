//! Somebody else's code for PCI buses and virtio devices on them, crate `virtio-drivers`, finds in our configuration space
//! what we put there.
#![allow(unsafe_code, reason = "the other crate's traits have unsafe methods")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::rc::Rc;

use ringway_device::blk::{self, BlkDevice};
use ringway_device::entropy::EntropyDevice;
use ringway_device::model::DeviceModel;
use ringway_device::net::{self, NetDevice};
use ringway_device::pci::PciDevice;
use ringway_device::registers::{Action, Settings};
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, HeaderType, MemoryBarType, PciRoot, Status,
};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::transport::{DeviceType, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// A bus with one device.
struct Bus<M>(Rc<RefCell<PciDevice<M>>>);

const AT: DeviceFunction = DeviceFunction { bus: 0, device: 3, function: 0 };

impl<M: DeviceModel> ConfigurationAccess for Bus<M> {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        let mut word = [0xff; 4];
        if function == AT {
            self.0.borrow_mut().read_config_space(offset.into(), &mut word);
        }
        u32::from_le_bytes(word)
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        if function == AT {
            self.0.borrow_mut().write_config_space(offset.into(), &data.to_le_bytes());
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// Where the BAR is put.
const BAR: u64 = 0x40_0000_0000;
const BAR_LEN: u64 = 0x2_0000;

/// A platform where registers are memory that does nothing: it is enough to find them.
struct Inert;

// SAFETY: what is mapped is memory of that size, which nobody else has and which is never freed.
unsafe impl Hal for Inert {
    fn dma_alloc(_pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        unreachable!("no queue is made")
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        unreachable!("no queue is made")
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        assert!(paddr >= BAR && paddr + size as u64 <= BAR + BAR_LEN);
        let words = Box::leak(vec![0u64; size.max(PAGE_SIZE) / 8 + 1].into_boxed_slice());
        NonNull::from(words).cast()
    }

    unsafe fn share(_buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        unreachable!("no queue is made")
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {
        unreachable!("no queue is made")
    }
}

/// What a bus finds of a device.
fn find<M: DeviceModel>(model: M, kind: DeviceType, class: [u8; 3]) {
    let has_config = model.config_len() > 0;
    let device = Rc::new(RefCell::new(PciDevice::new(model, Settings::default(), 4).unwrap()));
    let mut root = PciRoot::new(Bus(Rc::clone(&device)));
    let found: Vec<_> = root.enumerate_bus(0).collect();
    let [(function, info)] = &found[..] else { panic!("not one device: {found:?}") };
    assert_eq!((*function, info.revision, info.header_type), (AT, 1, HeaderType::Standard));
    assert_eq!(virtio_device_type(info), Some(kind));
    assert_eq!([info.class, info.subclass, info.prog_if], class);

    let bar = |address| BarInfo::Memory {
        address_type: MemoryBarType::Width64,
        prefetchable: false,
        address,
        size: BAR_LEN,
    };
    assert_eq!(root.bars(AT).unwrap(), [Some(bar(0)), None, None, None, None, None]);
    root.set_bar_64(AT, 0, BAR);
    root.set_command(AT, Command::MEMORY_SPACE | Command::BUS_MASTER);
    assert_eq!(root.bar_info(AT, 0).unwrap(), Some(bar(BAR)));
    let actions: Vec<_> = std::iter::from_fn(|| device.borrow_mut().next_action()).collect();
    assert_eq!(actions.last(), Some(&Action::Mapped(Some(BAR))));
    assert_eq!(root.get_status_command(AT).0, Status::CAPABILITIES_LIST);

    let mut counts = BTreeMap::new();
    for capability in root.capabilities(AT) {
        let kind = if capability.id == 9 { capability.private_header >> 8 } else { 0 };
        *counts.entry((capability.id, kind)).or_insert(0) += 1;
    }
    let mut due = BTreeMap::from([((0x11, 0), 1)]);
    due.extend([1, 2, 3, 5].map(|kind| ((9, kind), 1)));
    if has_config {
        due.insert((9, 4), 1);
    }
    assert_eq!(counts, due);

    let transport = PciTransport::new::<Inert, _>(&mut root, AT).unwrap();
    assert_eq!(transport.device_type(), kind);
}

/// [DEV-PCI-virtio-over-pci-bus-01] A bus finds the device, its BAR and its capabilities, and virtio's structures by these.
#[test]
fn a_bus_finds_each_kind() {
    find(EntropyDevice::new(false), DeviceType::EntropySource, [0xff, 0, 0]);
    let settings = net::Settings {
        mac: None,
        mtu: None,
        max_pairs: 2,
        segmentation: true,
        iommu: false,
        speed: None,
        rss: true,
        filters: true,
    };
    find(NetDevice::new(settings).unwrap(), DeviceType::Network, [2, 0, 0]);
    let settings = blk::Settings {
        size: 1 << 20,
        block_size: 512,
        physical_block_exp: 0,
        alignment_offset: 0,
        min_io_size: 0,
        opt_io_size: 0,
        read_only: false,
        queues: 1,
        writeback: true,
        flush: true,
        discard: None,
        write_zeroes: None,
        zeroes_may_unmap: false,
        secure_erase: None,
        id: [0; 20],
        iommu: false,
    };
    find(BlkDevice::new(settings).unwrap(), DeviceType::Block, [1, 0x80, 0]);
}
