//! A port: two streams of bytes, in buffers that go to the device and come back.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use ringway_memory::{GuestBuf, SharedBuf};
use ringway_queue::Segment;

use super::{Options, PortInfo};
use crate::{Device, Error, Notify, QueueOptions, Transport, Virtqueue};

pub(super) struct Port<N> {
    /// What the device said of it; `None`: there is no such port.
    pub(super) info: Option<PortInfo>,
    receive: Virtqueue<SharedBuf, N>,
    transmit: Virtqueue<SharedBuf, N>,
    /// Buffers to receive that the device has not.
    rested: Vec<SharedBuf>,
    /// Buffers to transmit that the device has not.
    spare: Vec<SharedBuf>,
    /// What was received last, until it is read.
    received: Option<Received>,
}

struct Received {
    buffer: SharedBuf,
    len: usize,
    read: usize,
}

impl<N: Notify> Port<N> {
    /// Makes the queues of port `id` (5.3.2).
    pub(super) fn new<T: Transport<Notifier = N>>(
        id: u16,
        device: &mut Device<T>,
        options: &Options,
    ) -> Result<Self, Error> {
        let receive = if id == 0 { 0 } else { 2 * id + 2 };
        let queue = QueueOptions { max_size: options.buffers, table_entries: 0, vector: options.vector };
        let count = usize::from(options.buffers);
        Ok(Self {
            info: None,
            receive: device.queue(receive, queue)?,
            transmit: device.queue(receive + 1, queue)?,
            rested: device.buffers(count, options.buffer_len)?,
            spare: device.buffers(count, options.buffer_len)?,
            received: None,
        })
    }

    /// Gives the device buffers to fill.
    fn refill(&mut self) {
        while let Some(buffer) = self.rested.pop() {
            let room = Segment::from(&buffer);
            if let Err(full) = self.receive.add(&[], &[room], buffer) {
                self.rested.push(full.owner);
                break;
            }
        }
        self.receive.publish();
    }

    /// There is such a port from now on. What was received by one before it is dropped.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        self.info = Some(PortInfo::default());
        self.rested.extend(self.received.take().map(|received| received.buffer));
        while let Some(used) = self.receive.reclaim()? {
            self.rested.push(used.owner);
        }
        self.refill();
        Ok(())
    }

    pub(super) fn read(&mut self, to: &mut [u8]) -> Result<usize, Error> {
        let mut done = 0;
        while done < to.len() {
            let mut received = match self.received.take() {
                Some(received) => received,
                None => match self.receive.reclaim()? {
                    Some(used) => Received { buffer: used.owner, len: used.written as usize, read: 0 },
                    None => break,
                },
            };
            let text = [received.buffer.slice()];
            let text = GuestBuf::new(&text).truncate(received.len).advance(received.read);
            let n = text.read(&mut to[done..]);
            done += n;
            received.read += n;
            if received.read < received.len {
                self.received = Some(received);
            } else {
                self.rested.push(received.buffer);
            }
        }
        self.refill();
        Ok(done)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        self.reclaim()?;
        let mut done = 0;
        while done < bytes.len()
            && let Some(mut buffer) = self.spare.pop()
        {
            let n = buffer.write(&bytes[done..]);
            let text = Segment { addr: buffer.addr(), len: n as u32 };
            if let Err(full) = self.transmit.add(&[text], &[], buffer) {
                self.spare.push(full.owner);
                break;
            }
            done += n;
        }
        self.transmit.publish();
        Ok(done)
    }

    /// Whether the device has taken all that was written.
    pub(super) fn is_flushed(&mut self) -> Result<bool, Error> {
        self.reclaim()?;
        Ok(self.transmit.queue().in_flight() == 0)
    }

    fn reclaim(&mut self) -> Result<(), Error> {
        while let Some(used) = self.transmit.reclaim()? {
            self.spare.push(used.owner);
        }
        Ok(())
    }

    /// See [`Console::arm`](super::Console::arm): there is something to read, or room to write where there was none.
    pub(super) fn arm(&mut self) -> bool {
        let can_read = self.receive.arm() || self.received.is_some();
        if self.spare.is_empty() {
            return self.transmit.arm() || can_read;
        }
        self.transmit.suppress();
        can_read
    }
}
