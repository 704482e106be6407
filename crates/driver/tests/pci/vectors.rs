//! MSI-X: vectors, their messages, and the events that are mapped to them.

use ringway_driver::transport::pci::{Message, Pci, Structure};
use ringway_driver::{Device, Error, Interrupt, QueueOptions, Transport as _, TransportError};
use ringway_spec::pci::common::{CONFIG_MSIX_VECTOR, QUEUE_MSIX_VECTOR};
use ringway_spec::pci::{MSI_NO_VECTOR, msix};

use super::common::TestPlatform;
use super::function::{Access, Function, MSIX};
use super::{PCI_ID, Queue, Transport, read, set_up, transport, write};

/// A device whose vectors are enabled, set up with one queue.
fn live(
    function: &Function,
    config: Option<u16>,
    queue: Option<u16>,
) -> Result<(Device<Transport>, Queue), Error> {
    let mut transport = transport(function);
    transport.enable_vectors(true).unwrap();
    function.take_log();
    set_up(transport, &TestPlatform::new(), |device| {
        device.transport_mut().set_config_vector(config)?;
        device.queue(0, QueueOptions { vector: queue, ..QueueOptions::default() })
    })
}

/// The accesses of vectors since the last call.
fn vector_accesses(function: &Function) -> Vec<Access> {
    let is_one = |access: &Access| {
        matches!(access, Access::Read(Structure::Common, at, ..) | Access::Write(Structure::Common, at, ..)
            if [CONFIG_MSIX_VECTOR, QUEUE_MSIX_VECTOR].contains(at))
    };
    function.take_log().into_iter().filter(is_one).collect()
}

/// [DRV-PCI-msi-x-vector-configuration-01] [DRV-PCI-msi-x-vector-configuration-03] A table of any size will do, and the driver
/// is told how many there are.
#[test]
fn any_number_of_vectors_will_do() {
    for count in [1, 2, 3, 1000, 0x7ff, 0x800] {
        let function = Function::new(PCI_ID, 0, count);
        assert_eq!(transport(&function).vectors(), count);
        let last = Some(count - 1);
        live(&function, last, last).unwrap();
        assert_eq!(vector_accesses(&function).len(), 4);
    }
    assert_eq!(transport(&Function::new(PCI_ID, 0, 0)).vectors(), 0);
}

/// [DRV-PCI-msi-x-vector-configuration-05] A vector is read back after it was written.
#[test]
fn a_vector_is_read_back() {
    let function = Function::new(PCI_ID, 0, 2);
    live(&function, Some(0), Some(1)).unwrap();
    let expected = [
        write(CONFIG_MSIX_VECTOR, 2, 0),
        read(CONFIG_MSIX_VECTOR, 2, 0),
        write(QUEUE_MSIX_VECTOR, 2, 1),
        read(QUEUE_MSIX_VECTOR, 2, 1),
    ];
    assert_eq!(vector_accesses(&function), expected);
}

/// [DRV-PCI-msi-x-vector-configuration-05] [DRV-PCI-msi-x-vector-configuration-06] If the device cannot use it, that is an
/// error, and the driver can go on with another.
#[test]
fn a_vector_can_be_refused() {
    let function = Function::new(PCI_ID, 0, 3);
    function.state().refused = vec![2];
    for (config, queue) in [(Some(2), Some(1)), (Some(1), Some(2))] {
        let result = live(&function, config, queue).map(|_| ());
        let refused = matches!(result, Err(Error::Transport(TransportError::VectorRefused { vector: 2 })));
        assert!(refused, "{result:?}");
    }
    live(&function, Some(1), Some(1)).unwrap();
}

/// [DRV-PCI-msi-x-vector-configuration-04] No vector is written that the table has not.
#[test]
fn a_vector_that_is_not_there_is_not_written() {
    let function = Function::new(PCI_ID, 0, 3);
    for vector in [3, 0x7ff, 0x800, MSI_NO_VECTOR] {
        for (config, queue) in [(Some(vector), None), (None, Some(vector))] {
            let result = live(&function, config, queue).map(|_| ());
            let none = matches!(result, Err(Error::Transport(TransportError::NoVector { vector: v, count: 3 }))
                if v == vector);
            assert!(none, "{result:?}");
            let written = [CONFIG_MSIX_VECTOR, QUEUE_MSIX_VECTOR].map(|at| write(at, 2, vector.into()));
            // NO_VECTOR is written where there shall be none.
            let is_written = vector_accesses(&function).iter().any(|access| written.contains(access));
            assert!(!is_written || vector == MSI_NO_VECTOR && config.is_none());
        }
    }
}

/// An event that shall have no vector is told so.
#[test]
fn an_event_can_have_no_vector() {
    let function = Function::new(PCI_ID, 0, 2);
    function.state().config_vector = 1;
    live(&function, None, None).unwrap();
    let expected = [CONFIG_MSIX_VECTOR, QUEUE_MSIX_VECTOR].map(|at| write(at, 2, MSI_NO_VECTOR.into()));
    assert_eq!(vector_accesses(&function), expected);
}

/// [DRV-PCI-msi-x-vector-configuration-02] Vectors are not enabled unless the driver wants them: then the pin is used, with one
/// vector or with many, and no event is mapped to any.
#[test]
fn the_pin_is_used_without_vectors() {
    for count in [0, 1, 8] {
        let function = Function::new(PCI_ID, 0, count);
        let platform = TestPlatform::new();
        let queue = |vector| {
            move |device: &mut Device<Transport>| {
                device.transport_mut().set_config_vector(None)?;
                device.queue::<()>(0, QueueOptions { vector, ..QueueOptions::default() })
            }
        };
        let (mut device, _) = set_up(transport(&function), &platform, queue(None)).unwrap();
        assert!(vector_accesses(&function).is_empty());
        function.state().isr = 1;
        assert_eq!(device.interrupt().unwrap(), Interrupt::QUEUE);
        drop(device);
        let result = set_up(transport(&function), &platform, queue(Some(0))).map(|_| ());
        let none = TransportError::NoVector { vector: 0, count: 0 }.to_string();
        assert_eq!(result.unwrap_err().to_string(), none);
    }
}

/// [DRV-PCI-isr-status-capability-01] With vectors the ISR status is not read; one that is shared may be about anything
/// [DRV-PCI-notification-of-device-configuration-changes-01].
#[test]
fn with_vectors_nothing_is_asked() {
    let function = Function::new(PCI_ID, 0, 1);
    let (mut device, _queue) = live(&function, Some(0), Some(0)).unwrap();
    function.take_log();
    assert_eq!(device.interrupt().unwrap(), Interrupt::all());
    let asked = |access: &Access| matches!(access, Access::Read(Structure::Isr, ..));
    assert!(!function.take_log().iter().any(asked));
}

/// A message is set while its vector is masked, as the function sees to; each is in its own entry.
#[test]
fn vectors_send_what_they_are_told() {
    let function = Function::new(PCI_ID, 0, 3);
    let mut transport = transport(&function);
    for vector in 0..3 {
        let message =
            Message { address: 0xfee0_0000_1000 + u64::from(vector), data: 0x40 + u32::from(vector) };
        transport.set_vector(vector, message).unwrap();
    }
    transport.mask_vector(1, true).unwrap();
    for (vector, control) in [(0, 0), (1, 1), (2, 0)] {
        let words: Vec<u32> = (0..4).map(|i| function.state().table[&(vector * 16 + i * 4)]).collect();
        assert_eq!(words, [0x1000 + vector as u32, 0xfee0, 0x40 + vector as u32, control]);
    }
    transport.mask_vector(1, false).unwrap();
    assert_eq!(function.state().table[&(16 + msix::ENTRY_CONTROL)], 0);
    for vector in [3, 0x7ff, u16::MAX] {
        let none = TransportError::NoVector { vector, count: 3 }.to_string();
        let message = Message { address: 0, data: 0 };
        assert_eq!(transport.set_vector(vector, message).unwrap_err().to_string(), none);
        assert_eq!(transport.mask_vector(vector, true).unwrap_err().to_string(), none);
    }
}

/// Vectors are enabled and disabled by one register of the configuration space, and whoever was here before has left none
/// enabled.
#[test]
fn vectors_are_enabled_on_request() {
    let control = |function: &Function| function.state().u16(MSIX + msix::CONTROL);
    let function = Function::new(PCI_ID, 0, 5);
    function.state().put_u16(MSIX + msix::CONTROL, 4 | msix::CONTROL_ENABLE | msix::CONTROL_FUNCTION_MASK);
    let mut transport = transport(&function);
    assert_eq!(control(&function), 4 | msix::CONTROL_FUNCTION_MASK);
    transport.enable_vectors(true).unwrap();
    assert_eq!(control(&function), 4 | msix::CONTROL_ENABLE);
    transport.enable_vectors(false).unwrap();
    assert_eq!(control(&function), 4);
}

/// Without vectors, or if their table is not mapped, there are none to enable.
#[test]
fn without_a_table_there_are_no_vectors() {
    let function = Function::new(PCI_ID, 0, 2);
    let map = |range: &_| Some(function.map(range));
    let mut transport =
        Pci::new(
            function.clone(),
            |range| if range.structure == Structure::VectorTable { None } else { map(range) },
        )
        .unwrap();
    assert_eq!(transport.vectors(), 0);
    assert!(matches!(transport.enable_vectors(true), Err(TransportError::NoVector { .. })));
    function.state().put_u32(MSIX + msix::TABLE, 0x806);
    let transport = Pci::new(function.clone(), map).unwrap();
    assert_eq!(transport.vectors(), 0, "the table is in a reserved BAR");
}
