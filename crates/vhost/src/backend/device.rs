//! What a session serves.

use std::os::fd::OwnedFd;

use ringway_queue::ResumeState;

use crate::message::Uuid;
use crate::{Notifier, Running};

/// A device behind a session. Vrings are named by their index, below [`Device::max_queues`].
pub trait Device {
    /// The virtio features offered.
    fn features(&self) -> u64;

    /// The protocol features that this device has beside those of every session
    /// ([`SESSION_FEATURES`](super::SESSION_FEATURES)). Each stands for methods below:
    ///
    /// | feature | methods |
    /// |---|---|
    /// | `CONFIG` | `read_config`, `write_config` |
    /// | `MTU` | `set_mtu` |
    /// | `RARP` | `announce` |
    /// | `DEVICE_STATE` | `save_state`, `load_state` |
    /// | `PAGEFAULT` | none: whoever serves the vrings may be made to wait for memory, by the front-end |
    /// | `SHARED_OBJECT` | `shared_object` |
    fn protocol_features(&self) -> u64 {
        0
    }

    /// Whether `STATUS` is offered: who accepts it says when the driver is ready, and no vring runs before. QEMU says it of
    /// network cards and disks, and of its other devices accepts it and never does.
    fn is_told_status(&self) -> bool {
        true
    }

    /// How many vrings there can be.
    fn max_queues(&self) -> u16;

    /// The answer to `GET_QUEUE_NUM`: queue pairs for a network device, queues for others.
    fn queue_num(&self) -> u64;

    /// The driver acked these features. The message of an error is for people.
    fn ack_features(&mut self, features: u64) -> Result<(), String>;

    /// The device status.
    fn status(&self) -> u8;

    /// The driver wrote the device status, not 0.
    fn set_status(&mut self, status: u8);

    /// Back to the state of the start; all vrings have been stopped.
    fn reset(&mut self);

    /// Copies the configuration space from `offset` on.
    fn read_config(&self, offset: usize, to: &mut [u8]);

    /// The driver wrote to the configuration space, or a migration did (`is_migration`), which may write to fields
    /// that the driver may not; false if it is not allowed.
    fn write_config(&mut self, _offset: usize, _bytes: &[u8], _is_migration: bool) -> bool {
        false
    }

    /// What the driver has ordered by [`Device::write_config`], in six bytes at most. It is recorded with what is in flight:
    /// the driver does not say it again to the next process.
    fn orders(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Goes by what the driver ordered of the process before this one. The message of an error is for people.
    fn restore_orders(&mut self, _orders: &[u8]) -> Result<(), String> {
        Ok(())
    }

    /// The front-end's MTU; false if the device cannot have it.
    fn set_mtu(&mut self, _mtu: u64) -> bool {
        false
    }

    /// The guest has arrived from elsewhere, and its network is to learn so: its hardware address. True if the
    /// configuration has changed with it, which then asks the driver to say so itself.
    fn announce(&mut self, _address: [u8; 6]) -> bool {
        false
    }

    /// The device's inner state, to be taken to another back-end; all vrings are stopped.
    fn save_state(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over what another back-end saved; the configuration may have changed then. The message of an error is for
    /// people.
    fn load_state(&mut self, _state: &[u8]) -> Result<(), String> {
        Ok(())
    }

    /// The file of a shared object.
    fn shared_object(&self, _name: Uuid) -> Option<OwnedFd> {
        None
    }

    /// Whether this vring exists by what was negotiated.
    fn has_vring(&self, index: u16) -> bool;

    /// A vring runs from now on. The device looks at the ring at once: a kick may have come before.
    fn start_vring(&mut self, index: u16, vring: Running);

    /// A running vring stops: chains in flight are completed, and the ring is not touched after.
    fn stop_vring(&mut self, index: u16) -> ResumeState;

    /// A running vring is enabled or disabled.
    fn enable_vring(&mut self, index: u16, enabled: bool);

    /// The driver kicked a running vring, by a message.
    fn kick_vring(&mut self, _index: u16) {}

    /// The IOMMU's translations have changed: the device looks again at the vrings that had to wait for one. If some
    /// were `lost` it uses none that it found before, once this returns.
    fn translations_changed(&mut self, _lost: bool) {}

    /// Another call file descriptor for a running vring. It is signalled once: a call may have gone to the one
    /// before.
    fn set_call(&mut self, index: u16, call: Notifier);

    /// Another err file descriptor for a running vring.
    fn set_err(&mut self, index: u16, err: Notifier);
}
