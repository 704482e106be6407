//! Which function is a device, and where its structures are.

use ringway_driver::transport::pci::{
    BarRange, ConfigSpace, Ecam, Pci, PciError, Space, Structure, bar_sizes, device_id,
};
use ringway_driver::transport::registers::Registers;
use ringway_driver::{Error, TransportError};
use ringway_spec::feature::{NOTIF_CONFIG_DATA, NOTIFICATION_DATA, RING_RESET};
use ringway_spec::pci::{capability, common, header};

use super::common::TestPlatform;
use super::function::{Access, FIRST, Function, Place, STEP};
use super::{PCI_ID, one_queue, set_up, transport};

/// [DRV-PCI-pci-device-discovery-01] [DRV-PCI-pci-device-discovery-02] The vendor's functions from 0x1040 to 0x107f, and the
/// transitional ones, are devices of the type that their ID says; no others are.
#[test]
fn functions_are_known_by_vendor_and_device() {
    for (id, expected) in [
        (0x1041, Some(1)),
        (0x1042, Some(2)),
        (0x107f, Some(63)),
        (0x1000, Some(1)),
        (0x1001, Some(2)),
        (0x1002, Some(5)),
        (0x1003, Some(3)),
        (0x1004, Some(8)),
        (0x1005, Some(4)),
        (0x1009, Some(9)),
        (0x1006, None),
        (0x103f, None),
        (0x1040, None),
        (0x1080, None),
        (0xffff, None),
    ] {
        let function = Function::new(id, 0, 0);
        assert_eq!(device_id(&function), expected, "{id:#x}");
        let device = Pci::new(function.clone(), |range| Some(function.map(range))).map(|_| ());
        let other = PciError::NotVirtio { vendor: 0x1af4, device: id };
        assert_eq!(device, if expected.is_some() { Ok(()) } else { Err(other) });
    }
    let function = Function::new(0x1041, 0, 0);
    function.state().put_u16(header::VENDOR_ID, 0x8086);
    assert_eq!(device_id(&function), None);
}

/// [DRV-PCI-pci-device-discovery-03] [DRV-PCI-pci-device-discovery-04] Revision and subsystem do not matter.
#[test]
fn any_revision_and_subsystem_will_do() {
    for value in [0, 1, 0xff] {
        let function = Function::new(PCI_ID, 0, 0);
        function.state().space[header::REVISION_ID] = value;
        for at in [header::SUBSYSTEM_VENDOR_ID, header::SUBSYSTEM_ID] {
            function.state().put_u16(at, u16::from(value) << 8);
        }
        assert_eq!(device_id(&function), Some(super::ID));
        transport(&function);
    }
}

/// Where the parts are that the driver asks to be mapped; no others are mapped.
fn ranges(function: &Function, refused: fn(&BarRange) -> bool) -> (Vec<BarRange>, Result<(), PciError>) {
    let mut ranges = Vec::new();
    let result = Pci::new(function.clone(), |range| {
        ranges.push(*range);
        if refused(range) { None } else { Some(function.map(range)) }
    });
    (ranges, result.map(|_| ()))
}

/// [DRV-PCI-virtio-structure-pci-capabilities-05] [DRV-PCI-virtio-structure-pci-capabilities-06] As much is mapped of a
/// structure as is of use, however long it is.
#[test]
fn no_more_is_mapped_than_is_of_use() {
    let function = Function::bare(PCI_ID, 0);
    let structures = [Structure::Common, Structure::Isr, Structure::Device, Structure::Notify];
    for (bar, structure) in (1..).zip(structures) {
        // BARs 1 to 4: those of 32 bits are memory as well.
        function.state().put_u32(header::BAR + 4 * usize::from(bar), 0xf000_0000);
        function.put(Place { structure, bar, offset: 0x8000_0000, len: 0x7fff_ffff });
    }
    let (ranges, result) = ranges(&function, |_| false);
    result.unwrap();
    let found: Vec<_> = ranges.iter().map(|range| (range.structure, range.bar, range.len)).collect();
    let notify = 0xffff * super::MULTIPLIER + 4;
    let expected = [
        (Structure::Common, 1, common::ADMIN_QUEUE_INDEX as u32),
        (Structure::Notify, 4, notify),
        (Structure::Isr, 2, 1),
        (Structure::Device, 3, 4096),
    ];
    assert_eq!(found, expected);
    assert!(ranges.iter().all(|range| range.offset == 0x8000_0000 && range.space == Space::Memory));
}

/// [DRV-PCI-virtio-structure-pci-capabilities-02] The first instance of a structure is used that can be mapped.
#[test]
fn the_first_instance_is_used() {
    let function = Function::new(PCI_ID, 0, 0);
    for (structure, offset) in [(Structure::Common, 0), (Structure::Isr, 0x40)] {
        function.put(Place { structure, bar: 1, offset, len: 0x40 });
    }
    let (found, result) = ranges(&function, |_| false);
    result.unwrap();
    assert!(found.iter().all(|range| range.bar == 4), "{found:?}");
    let (found, result) = ranges(&function, |range| range.structure == Structure::Isr && range.bar == 4);
    result.unwrap();
    let isrs: Vec<_> = found.iter().filter(|range| range.structure == Structure::Isr).collect();
    assert_eq!(
        isrs.iter().map(|range| (range.bar, range.offset)).collect::<Vec<_>>(),
        [(4, 0x2000), (1, 0x40)]
    );
}

/// [DRV-PCI-virtio-structure-pci-capabilities-01] [DRV-PCI-virtio-structure-pci-capabilities-04] Capabilities of reserved types
/// or BARs are passed over, as are those that are too short, misaligned, or of another kind.
#[test]
fn what_cannot_be_used_is_passed_over() {
    type Spoil = fn(&mut super::function::State, usize);
    let spoils: [Spoil; 12] = [
        |state, at| state.space[at + capability::CFG_TYPE] = 0,
        |state, at| state.space[at + capability::CFG_TYPE] = 6,
        |state, at| state.space[at + capability::CFG_TYPE] = 0xff,
        |state, at| state.space[at + capability::BAR] = 6,
        |state, at| state.space[at + capability::BAR] = 0xff,
        // The upper half of BAR 4.
        |state, at| state.space[at + capability::BAR] = 5,
        |state, at| state.space[at + capability::LEN] = 15,
        |state, at| state.space[at + capability::ID] = 0x10,
        |state, at| state.put_u32(at + capability::OFFSET, 0x1002),
        |state, at| state.put_u32(at + capability::OFFSET, 0xffff_fffc),
        |state, at| state.put_u32(at + capability::LENGTH, 0x37),
        |state, at| state.put_u32(at + capability::LENGTH, 0),
    ];
    for (spoil, i) in spoils.into_iter().zip(0..) {
        let function = Function::new(PCI_ID, 0, 0);
        spoil(&mut function.state(), FIRST);
        let (_, result) = ranges(&function, |_| false);
        assert_eq!(result, Err(PciError::NoStructure(Structure::Common)), "{i}");
        // Another one, behind it, can be used.
        function.put(Place { structure: Structure::Common, bar: 1, offset: 0, len: 0x38 });
        let (ranges, result) = ranges(&function, |_| false);
        result.unwrap();
        assert_eq!((ranges[0].structure, ranges[0].bar, ranges[0].len), (Structure::Common, 1, 0x38), "{i}");
    }
}

/// [DRV-PCI-virtio-structure-pci-capabilities-03] A capability may be longer than what is read of it.
#[test]
fn capabilities_may_be_longer() {
    let function = Function::new(PCI_ID, 0, 0);
    for at in (0..4).map(|i| FIRST + i * STEP) {
        function.state().space[at + capability::LEN] = 0xff;
    }
    transport(&function);
}

/// [DRV-PCI-virtio-structure-pci-capabilities-07] Finding a device, setting it up and using it writes to no capability: the
/// function fails the test if it does, and the command is all that is written.
#[test]
fn capabilities_are_only_read() {
    let function = Function::new(PCI_ID, 0, 2);
    let (mut device, mut queue) = set_up(transport(&function), &TestPlatform::new(), one_queue).unwrap();
    super::lend(&mut device, &mut queue);
    drop(device);
    let log = function.take_log();
    let writes: Vec<_> = log.iter().filter(|access| matches!(access, Access::WriteConfigSpace(..))).collect();
    let command = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;
    assert_eq!(writes, [&Access::WriteConfigSpace(header::COMMAND, 2, command.into())]);
}

/// A device that lacks a structure, as a legacy one lacks all, is not driven. One without configuration may lack that.
#[test]
fn structures_that_are_missing_are_named() {
    let all = [Structure::Common, Structure::Notify, Structure::Isr, Structure::Device];
    for missing in all {
        let function = Function::bare(PCI_ID, 0);
        for (structure, i) in all.into_iter().zip(0..).filter(|(structure, _)| *structure != missing) {
            function.put(Place { structure, bar: 4, offset: 0x1000 * i, len: 0x1000 });
        }
        let (_, result) = ranges(&function, |_| false);
        let is_needed = missing != Structure::Device;
        assert_eq!(result, if is_needed { Err(PciError::NoStructure(missing)) } else { Ok(()) });
    }
    let function = Function::new(PCI_ID, 0, 0);
    function.state().put_u16(header::STATUS, 0);
    assert_eq!(ranges(&function, |_| false), (Vec::new(), Err(PciError::NoStructure(Structure::Common))));
}

/// Fields behind the configuration's end are not touched, if there is a configuration at all.
#[test]
fn a_short_configuration_is_an_error() {
    for len in [0, 6, 16] {
        let function = Function::new(PCI_ID, 0, 0);
        function.state().put_u32(FIRST + 2 * STEP + capability::LENGTH, len);
        let (mut device, _queue) = set_up(transport(&function), &TestPlatform::new(), one_queue).unwrap();
        for offset in [0, 4, 8, 12, 16, 0x8000_0000, usize::MAX - 3] {
            let result = device.config(|config| config.u32(offset));
            let fits = offset.checked_add(4).is_some_and(|end| end <= len as usize);
            let is_short = matches!(result, Err(Error::Transport(TransportError::ShortConfig { offset: o, len: 4 }))
                if o == offset);
            assert_eq!((result.is_ok(), is_short), (fits, !fits), "{offset:#x} of {len}: {result:?}");
        }
    }
}

/// Without the fields that a feature brings, it is not accepted.
#[test]
fn a_short_common_configuration_has_fewer_features() {
    let with_fields =
        [(0x38, 0), (0x39, 0), (0x3a, NOTIF_CONFIG_DATA), (0x3c, NOTIF_CONFIG_DATA | RING_RESET)];
    for (len, features) in with_fields {
        let function = Function::new(PCI_ID, NOTIFICATION_DATA | NOTIF_CONFIG_DATA | RING_RESET, 0);
        function.state().put_u32(FIRST + capability::LENGTH, len);
        let (device, _) = set_up(transport(&function), &TestPlatform::new(), one_queue).unwrap();
        let expected = features | NOTIFICATION_DATA | ringway_spec::feature::VERSION_1;
        assert_eq!(device.features(), expected, "{len:#x}");
    }
}

/// Ranges know their addresses: of memory BARs of 32 and 64 bits, and of I/O.
#[test]
fn bars_say_where_they_are() {
    let function = Function::bare(PCI_ID, 0);
    let bars = [(4, Structure::Common), (1, Structure::Notify), (0, Structure::Isr), (2, Structure::Device)];
    for (bar, structure) in bars {
        function.put(Place { structure, bar, offset: 0x40, len: 0x40 });
    }
    let (ranges, result) = ranges(&function, |_| false);
    result.unwrap();
    let found: Vec<_> = ranges.iter().map(|range| (range.space, range.base, range.address())).collect();
    let memory = [0x80_0000_0000, 0xfebd_0000].map(|base| (Space::Memory, base, Some(base + 0x40)));
    assert_eq!(found[..2], memory);
    assert_eq!(found[2..], [(Space::Io, 0xc000, Some(0xc040)), (Space::Memory, 0, None)]);
    let command = header::COMMAND_MEMORY | header::COMMAND_IO | header::COMMAND_BUS_MASTER;
    assert_eq!(function.state().u16(header::COMMAND), command);
}

/// A part is inside of its BAR if the BAR does not end before it.
#[test]
fn ranges_are_inside_of_their_bars_or_not() {
    let function = Function::new(PCI_ID, 0, 0);
    let (ranges, result) = ranges(&function, |_| false);
    result.unwrap();
    let common = &ranges[0];
    assert_eq!((common.structure, common.bar), (Structure::Common, 4));
    for (size, is_inside) in [(0, false), (0x1000, false), (0x103b, false), (0x103c, true), (1 << 40, true)] {
        assert_eq!(
            common.is_inside(&[1 << 40, 1 << 40, 1 << 40, 1 << 40, size, 1 << 40]),
            is_inside,
            "{size:#x}"
        );
    }
}

/// Registers that keep some bits of what is written, as BARs do.
struct Bars {
    words: std::cell::RefCell<[u32; 64]>,
}

impl ConfigSpace for Bars {
    fn read_u8(&self, _: usize) -> u8 {
        unreachable!()
    }

    fn read_u16(&self, offset: usize) -> u16 {
        self.words.borrow()[offset / 4] as u16
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.words.borrow()[offset / 4]
    }

    fn write_u8(&self, _: usize, _: u8) {
        unreachable!()
    }

    fn write_u16(&self, offset: usize, value: u16) {
        assert_eq!(offset, header::COMMAND);
        self.words.borrow_mut()[1] = value.into();
    }

    fn write_u32(&self, offset: usize, value: u32) {
        let mut words = self.words.borrow_mut();
        assert_eq!(words[1], u32::from(header::COMMAND_BUS_MASTER), "the function does not answer meanwhile");
        // I/O of 32 bytes; memory of 4 KiB, of 16 GiB with 64 bits, and of none.
        let writable = [0xffff_ffe0, 0xffff_f000, 0, 0, 0, 0xffff_fffc][(offset - header::BAR) / 4];
        let word = &mut words[offset / 4];
        *word = *word & !writable | value & writable;
    }
}

/// The sizes of BARs are found out, and their values are what they were.
#[test]
fn sizes_of_bars_are_asked() {
    let mut words = [0; 64];
    words[1] = u32::from(header::COMMAND_BUS_MASTER | header::COMMAND_IO | header::COMMAND_MEMORY);
    words[4..10].copy_from_slice(&[0xc001, 0xfebd_0000, 0, 0, header::BAR_TYPE_64, 0x80]);
    let bars = Bars { words: words.into() };
    assert_eq!(bar_sizes(&bars), [32, 0x1000, 0, 0, 16 << 30, 0]);
    assert_eq!(*bars.words.borrow(), words);
}

/// A mapping of two buses, that reads where it is read.
struct Mapped;

impl Registers for Mapped {
    fn len(&self) -> usize {
        2 << 20
    }

    fn read_u8(&self, offset: usize) -> u8 {
        offset as u8
    }

    fn read_u16(&self, offset: usize) -> u16 {
        offset as u16
    }

    fn read_u32(&self, offset: usize) -> u32 {
        offset as u32
    }

    fn write_u8(&self, offset: usize, value: u8) {
        assert_eq!(offset, usize::from(value));
    }

    fn write_u16(&self, offset: usize, value: u16) {
        assert_eq!(offset, usize::from(value));
    }

    fn write_u32(&self, offset: usize, value: u32) {
        assert_eq!(offset, value as usize);
    }
}

#[test]
fn functions_have_their_place_in_memory() {
    let ecam = Ecam::new(Mapped);
    for (bus, device, function, at) in
        [(0, 0, 0, 0), (0, 0, 7, 0x7000), (0, 1, 0, 0x8000), (1, 31, 7, 0x1f_f000)]
    {
        let function = ecam.function(bus, device, function).unwrap();
        assert_eq!(function.read_u32(4), at + 4);
        assert_eq!(function.read_u16(4), at as u16 + 4);
        assert_eq!(function.read_u8(4), 4);
        function.write_u32(8, at + 8);
    }
    for (bus, device, function) in [(2, 0, 0), (255, 31, 7), (0, 32, 0), (0, 0, 8)] {
        assert!(ecam.function(bus, device, function).is_none());
    }
}
