//! What a balloon's driver has said and was promised, for a device that goes on in the place of another.

use super::BalloonDevice;

/// A balloon in a process that ends. What was negotiated, the target, and hints of free pages are not in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// See [`BalloonDevice::actual`].
    pub actual: u32,
    /// What the driver fills free pages with.
    pub poison: u32,
    /// How many bytes of the oldest chain have been served, of the inflate queue and of the deflate queue.
    pub served: [usize; 2],
    /// The statistics that are in the queue have been read.
    pub is_read: bool,
}

impl BalloonDevice {
    /// What another device needs to go on with this one's driver.
    pub fn state(&self) -> State {
        let Self { actual, poison, served, is_read, .. } = *self;
        State { actual, poison, served, is_read }
    }

    /// Goes on with the driver of another device.
    pub fn restore(&mut self, state: &State) {
        let State { actual, poison, served, is_read } = *state;
        (self.actual, self.poison, self.served, self.is_read) = (actual, poison, served, is_read);
    }
}
