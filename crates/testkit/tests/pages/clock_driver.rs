//! The driver of docs/write-a-driver.md.

use std::error::Error as StdError;
use std::ptr::NonNull;
use std::sync::Arc;

use ringway_driver::transport::mmio::Mmio;
use ringway_driver::transport::registers::MappedRegisters;
use ringway_driver::{Device, Error, Platform, QueueOptions, Transport, Virtqueue, Wanted};
use ringway_memory::SharedBuf;

/// A real-time clock device (5.23).
pub(crate) struct Clock<T: Transport> {
    device: Device<T>,
    requests: Virtqueue<[SharedBuf; 2], T::Notifier>,
    /// For a request and its answer. The device has them while they are not here.
    buffers: Option<[SharedBuf; 2]>,
}

impl<T: Transport> Clock<T> {
    pub(crate) fn new(transport: T, platform: Arc<dyn Platform>) -> Result<Self, Error> {
        let wanted = Wanted { id: 17, features: 0, required: 0, requires: &[], without: 0 };
        let (device, (requests, buffers)) = Device::set_up(transport, platform, &wanted, |device| {
            let requests = device.queue(0, QueueOptions { max_size: 4, ..QueueOptions::default() })?;
            let buffers = device.buffers(2, 16)?.try_into().ok();
            Ok((requests, buffers))
        })?;
        Ok(Self { device, requests, buffers })
    }
}

const REQ_READ: u16 = 0x0001;
const S_OK: u8 = 0;

impl<T: Transport> Clock<T> {
    /// What clock `id` says, in nanoseconds since its epoch.
    pub(crate) fn read(&mut self, id: u16) -> Result<u64, Error> {
        // They are gone if the device has not answered the time before.
        let Some([mut request, answer]) = self.buffers.take() else {
            return Err(Error::TimedOut { what: "an answer" });
        };
        let mut message = [0; 16];
        message[..2].copy_from_slice(&REQ_READ.to_le_bytes());
        message[8..10].copy_from_slice(&id.to_le_bytes());
        request.write(&message);

        let (readable, writable) = ([(&request).into()], [(&answer).into()]);
        self.requests.add(&readable, &writable, [request, answer]).map_err(|refused| refused.error)?;
        self.requests.publish();

        let mut round = 0;
        let used = loop {
            if let Some(used) = self.requests.reclaim()? {
                break used;
            }
            if !self.device.wait(round) {
                return Err(Error::TimedOut { what: "an answer" });
            }
            round += 1;
        };

        // A copy: the device can still write to the buffer, whatever the rules are.
        let mut bytes = [0; 16];
        used.owner[1].read(&mut bytes);
        self.buffers = Some(used.owner);
        if used.written < 16 || bytes[0] != S_OK {
            return Err(Error::BadAnswer { what: "a read of its clock" });
        }
        Ok(bytes[8..].iter().rev().fold(0, |time, byte| time << 8 | u64::from(*byte)))
    }
}

/// The clock behind the registers at `base`, if there is one.
///
/// # Safety
/// There are 4 KiB of registers at `base`, mapped for as long as the clock is used, and nothing else.
pub(crate) unsafe fn clock_at(
    base: NonNull<u8>,
    platform: Arc<dyn Platform>,
) -> Result<Option<Clock<Mmio<MappedRegisters>>>, Box<dyn StdError>> {
    // SAFETY: as promised.
    let registers = unsafe { MappedRegisters::new(base, 0x1000) };
    match Mmio::new(registers)? {
        Some(transport) => Ok(Some(Clock::new(transport, platform)?)),
        None => Ok(None),
    }
}
