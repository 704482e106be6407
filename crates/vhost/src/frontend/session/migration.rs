//! What lets a device go on elsewhere: the record of what is in flight, the log, its state.

use std::os::fd::OwnedFd;

use super::{Inflight, Started};
use crate::frontend::{DirtyLog, Frontend, FrontendError, state};
use crate::message::{
    DEVICE_STATE_NO_FD, DeviceStateTransfer, F_LOG_ALL, InflightDescription, Request, StateDirection, name,
    protocol_feature as pf,
};

impl Frontend {
    /// Asks for the region in which the back-end will record what is in flight: for this many vrings of this size.
    /// To be [given](Frontend::set_inflight) to it before any of them is started.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn inflight(&mut self, queues: u16, queue_size: u16) -> Result<Inflight, FrontendError> {
        let wanted = InflightDescription { len: 0, offset: 0, queues, queue_size };
        let question = Request::GetInflightFd(wanted);
        self.require(pf::INFLIGHT_SHMFD, &question)?;
        let mut reply = self.ask(question)?;
        // It is the request's payload, filled in.
        let described = Request::decode(&reply.header, &reply.payload, Vec::new());
        match (described, reply.fds.pop(), reply.fds.is_empty()) {
            (Ok(Request::GetInflightFd(description)), Some(file), true) => Ok(Inflight { description, file }),
            (Ok(_), ..) => self.checked(Err(reply.wrong("not one file descriptor".to_owned()))),
            (Err(error), ..) => self.checked(Err(error.into())),
        }
    }

    /// Gives the back-end its own record of what is in flight, or that of the one before.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn set_inflight(&mut self, inflight: &Inflight) -> Result<(), FrontendError> {
        let file = inflight.file.try_clone()?;
        self.call_with(pf::INFLIGHT_SHMFD, Request::SetInflightFd(inflight.description, file))
    }

    /// Has the back-end log what it writes to, from now on, in `log`. If it has logged elsewhere before, it does so no
    /// more when this returns.
    ///
    /// # Errors
    /// [`FrontendError::NotNegotiated`] if it cannot, [`FrontendError::ShortLog`] if `log` is not for all of the memory,
    /// and those of a connection.
    pub fn start_log(&mut self, log: &DirtyLog) -> Result<(), FrontendError> {
        let request = Request::SetLogBase { len: log.len(), offset: 0, fd: log.share()? };
        self.require(pf::LOG_SHMFD, &request)?;
        if !self.offers_log {
            let request = name(request.number());
            return Err(FrontendError::NotNegotiated { request, feature: F_LOG_ALL });
        }
        if let Some((region, _)) = self.memory.iter().find(|(r, _)| r.gpa.0 + r.len > log.end().0) {
            return Err(FrontendError::ShortLog { gpa: region.gpa });
        }
        // This one is answered, whether or not other requests are, by a number or by nothing.
        let number = request.number();
        let reply = self.ask(request)?;
        if !reply.payload.is_empty() {
            let answer = reply.number();
            match self.checked(answer)? {
                0 => {}
                value => return Err(FrontendError::Refused { request: name(number), value }),
            }
        }
        if self.is_logging { Ok(()) } else { self.switch_log(true) }
    }

    /// Has the back-end stop logging.
    ///
    /// # Errors
    /// Those of a connection.
    pub fn stop_log(&mut self) -> Result<(), FrontendError> {
        if self.is_logging { self.switch_log(false) } else { Ok(()) }
    }

    /// Data by the features, used rings one by one.
    fn switch_log(&mut self, on: bool) -> Result<(), FrontendError> {
        self.is_logging = on;
        self.set_features()?;
        for at in 0..self.started.len() {
            let Started { index, addresses } = self.started[at];
            self.set_vring_addr(index, addresses)?;
        }
        Ok(())
    }

    /// Reads the device's state out of a back-end whose rings are all stopped; `max` bytes at most.
    ///
    /// # Errors
    /// [`FrontendError::LongState`], [`FrontendError::Refused`], and those of a connection.
    pub fn save_state(&mut self, max: usize) -> Result<Vec<u8>, FrontendError> {
        let ours = self.open_state(StateDirection::Save)?;
        let state = state::read(&ours, max, self.limit);
        let state = self.checked(state)?;
        self.call(Request::CheckDeviceState)?;
        Ok(state)
    }

    /// Writes a device's state into a back-end whose rings are all stopped.
    ///
    /// # Errors
    /// [`FrontendError::Refused`] if the back-end cannot use it, and those of a connection.
    pub fn load_state(&mut self, state: &[u8]) -> Result<(), FrontendError> {
        let ours = self.open_state(StateDirection::Load)?;
        let written = state::write(ours, state, self.limit);
        self.checked(written)?;
        self.call(Request::CheckDeviceState)
    }

    /// Agrees on a way for the state; returns our end of it.
    fn open_state(&mut self, direction: StateDirection) -> Result<OwnedFd, FrontendError> {
        let (ours, theirs) = state::pipe(direction)?;
        let request = Request::SetDeviceStateFd(DeviceStateTransfer { direction, phase: 0 }, theirs);
        self.require(pf::DEVICE_STATE, &request)?;
        let number = request.number();
        let mut reply = self.ask(request)?;
        let answer = reply.exactly().map(u64::from_le_bytes);
        let answer = self.checked(answer)?;
        match (answer & !DEVICE_STATE_NO_FD, answer & DEVICE_STATE_NO_FD != 0, reply.fds.pop()) {
            (0, true, None) => Ok(ours),
            // The back-end made a channel of its own, which takes the place of ours.
            (0, false, Some(end)) if reply.fds.is_empty() => Ok(end),
            (0, ..) => self.checked(Err(reply.wrong("not as many file descriptors as it says".to_owned()))),
            (value, ..) => Err(FrontendError::Refused { request: name(number), value }),
        }
    }
}
