//! The control queues: messages of a few bytes, both ways (5.3.6.2).
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use ringway_memory::SharedBuf;
use ringway_queue::{AddError, Segment};
use ringway_spec::console::{CONTROL_LEN, Control};
use zerocopy::{FromBytes, IntoBytes};

use crate::{Device, Error, Notify, QueueOptions, Transport, Virtqueue};

/// From the device, and to it (5.3.2).
const RECEIVE_QUEUE: u16 = 2;
const TRANSMIT_QUEUE: u16 = 3;
/// Messages that are under way at most, each way.
pub(super) const MESSAGES: u16 = 16;
/// The longest message that the device may send: a port's name of some length, and no more of it.
const MESSAGE_LEN: usize = 512;

/// The queues, with their buffers.
pub(super) struct Messages<N> {
    receive: Virtqueue<SharedBuf, N>,
    transmit: Virtqueue<SharedBuf, N>,
    /// Buffers to transmit that the device has not.
    spare: Vec<SharedBuf>,
}

/// A message of the device: what it begins with, and what follows.
pub(super) struct Message {
    pub(super) control: Control,
    bytes: [u8; MESSAGE_LEN],
    len: usize,
}

impl Message {
    /// What follows.
    pub(super) fn payload(&self) -> &[u8] {
        self.bytes.get(CONTROL_LEN..self.len).unwrap_or_default()
    }
}

impl<N: Notify> Messages<N> {
    /// Makes the queues, and fills the one that the device sends by.
    pub(super) fn new<T: Transport<Notifier = N>>(
        device: &mut Device<T>,
        vector: Option<u16>,
    ) -> Result<Self, Error> {
        let options = QueueOptions { max_size: MESSAGES, table_entries: 0, vector };
        let mut receive = device.queue(RECEIVE_QUEUE, options)?;
        let transmit = device.queue(TRANSMIT_QUEUE, options)?;
        let size = receive.queue().size().into();
        for buffer in device.buffers(size, MESSAGE_LEN as u32)? {
            give(&mut receive, buffer)?;
        }
        let spare = device.buffers(transmit.queue().size().into(), CONTROL_LEN as u32)?;
        Ok(Self { receive, transmit, spare })
    }

    /// Shows the device what it may send by, once it is live.
    pub(super) fn begin(&mut self) {
        self.transmit.suppress();
        self.receive.publish();
    }

    /// Whether there is a buffer for a message.
    pub(super) fn can_say(&mut self) -> Result<bool, Error> {
        while let Some(used) = self.transmit.reclaim()? {
            self.spare.push(used.owner);
        }
        Ok(!self.spare.is_empty())
    }

    pub(super) fn say(&mut self, id: u32, event: u16, value: u16) -> Result<(), Error> {
        self.can_say()?;
        let Some(mut buffer) = self.spare.pop() else { return Err(AddError::Full.into()) };
        buffer.write(Control { id: id.into(), event: event.into(), value: value.into() }.as_bytes());
        if let Err(full) = self.transmit.add(&[Segment::from(&buffer)], &[], buffer) {
            self.spare.push(full.owner);
            return Err(full.error.into());
        }
        self.transmit.publish();
        Ok(())
    }

    /// The device's next message. The buffer of one that is too short to be one has gone back all the same.
    pub(super) fn hear(&mut self) -> Result<Option<Message>, Error> {
        while let Some(used) = self.receive.reclaim()? {
            let mut bytes = [0; MESSAGE_LEN];
            let len = used.owner.read(&mut bytes).min(used.written as usize);
            give(&mut self.receive, used.owner)?;
            self.receive.publish();
            if let Ok((control, _)) = Control::read_from_prefix(&bytes[..len]) {
                return Ok(Some(Message { control, bytes, len }));
            }
        }
        Ok(None)
    }

    /// See [`Console::arm`](super::Console::arm).
    pub(super) fn arm(&mut self) -> bool {
        self.receive.arm()
    }
}

fn give<N: Notify>(queue: &mut Virtqueue<SharedBuf, N>, buffer: SharedBuf) -> Result<(), Error> {
    queue.add(&[], &[Segment::from(&buffer)], buffer).map_err(|full| full.error.into())
}
