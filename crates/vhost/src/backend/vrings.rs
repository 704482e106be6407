//! Requests about vrings, and when one starts and stops.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringway_spec::packed;
use ringway_spec::status::DeviceStatus;

use tracing::warn;

use super::channel::{Channel, Note};
use super::{Answer, Device, RequestError, Session};
use crate::base::Base;
use crate::message::{VringAddresses, protocol_feature as pf};
use crate::vring::{Kick, Notifier, Vring, check_kick};

impl<D: Device> Session<D> {
    fn vring(&mut self, index: u32) -> Result<(u16, &mut Vring), RequestError> {
        let count = self.vrings.len() as u16;
        match self.vrings.get_mut(index as usize) {
            Some(vring) => Ok((index as u16, vring)),
            None => Err(RequestError::NoVring { index, count }),
        }
    }

    fn stopped_vring(&mut self, index: u32) -> Result<&mut Vring, RequestError> {
        let (_, vring) = self.vring(index)?;
        if vring.is_running { Err(RequestError::IsRunning(index)) } else { Ok(vring) }
    }

    pub(super) fn set_vring_num(&mut self, index: u32, num: u32) -> Result<(), RequestError> {
        let vring = self.stopped_vring(index)?;
        // Whether it has to be a power of two depends on the features, which may come later.
        match u16::try_from(num) {
            Ok(size @ 1..=packed::MAX_SIZE) => vring.num = Some(size),
            _ => return Err(RequestError::VringSize(num)),
        }
        self.start_ready()
    }

    pub(super) fn set_vring_addr(
        &mut self,
        index: u32,
        addresses: VringAddresses,
    ) -> Result<(), RequestError> {
        let (index, vring) = self.vring(index)?;
        let was_running = vring.is_running;
        vring.addresses = Some(addresses);
        if was_running {
            self.pause(index);
        }
        self.start_ready()
    }

    pub(super) fn set_vring_base(&mut self, index: u32, base: u32) -> Result<(), RequestError> {
        self.stopped_vring(index)?.base = Base::Told(base);
        Ok(())
    }

    pub(super) fn get_vring_base(&mut self, index: u32) -> Result<Answer, RequestError> {
        let (at, _) = self.vring(index)?;
        self.pause(at);
        if let Some(channel) = &self.channel {
            // A stopped ring says nothing any more (Suspended device state).
            channel.hurry();
        }
        let features = self.features.unwrap_or_default();
        // What it waited for may never be told now, and be wanted by what comes after.
        self.asked.clear();
        let (_, vring) = self.vring(index)?;
        // The ring is stopped, not reset: it goes on with the next kick.
        vring.forget_kick();
        let base = vring.base.to_word(features);
        Ok(Answer::Reply(crate::message::state(index, base), None))
    }

    pub(super) fn set_vring_kick(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), RequestError> {
        if let Some(fd) = &fd {
            check_kick(fd)?;
        }
        let (index, vring) = self.vring(index)?;
        vring.kick = Some(fd.map_or(Kick::Polled, Kick::Fd));
        self.pause(index);
        self.start_ready()
    }

    /// A kick by message: the first starts the ring, if no file descriptor did before.
    pub(super) fn vring_kick(&mut self, index: u32) -> Result<(), RequestError> {
        self.require(pf::INBAND_NOTIFICATIONS)?;
        let (index, vring) = self.vring(index)?;
        vring.kick.get_or_insert(Kick::InBand);
        vring.is_kicked = true;
        self.start_ready()?;
        if self.vrings[usize::from(index)].is_running {
            self.device.kick_vring(index);
        }
        Ok(())
    }

    pub(super) fn set_vring_call(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), RequestError> {
        let (at, vring) = self.vring(index)?;
        let call = vring.call.insert(Notifier::new(fd)?);
        if vring.is_running {
            let call = call.try_clone()?;
            self.device.set_call(at, call);
        }
        Ok(())
    }

    pub(super) fn set_vring_err(&mut self, index: u32, fd: Option<OwnedFd>) -> Result<(), RequestError> {
        let (at, vring) = self.vring(index)?;
        let err = vring.err.insert(Notifier::new(fd)?);
        if vring.is_running {
            let err = err.try_clone()?;
            self.device.set_err(at, err);
        }
        Ok(())
    }

    pub(super) fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<(), RequestError> {
        let (index, vring) = self.vring(index)?;
        vring.enabled = enable;
        if vring.is_running {
            self.device.enable_vring(index, enable);
        }
        Ok(())
    }

    /// The channel for requests of ours. Rings that run and have no other way to signal go on with it.
    pub(super) fn set_channel(&mut self, fd: OwnedFd) -> Result<(), RequestError> {
        self.require(pf::BACKEND_REQ)?;
        self.channel = Some(Channel::new(fd, self.has_protocol(pf::REPLY_ACK))?);
        self.asked.clear();
        for index in 0..self.vrings.len() as u16 {
            let Vring { is_running, call, err, .. } = &self.vrings[usize::from(index)];
            let (has_no_call, has_no_err) = (*is_running && call.is_none(), *is_running && err.is_none());
            let [call, err] = self.in_band(index);
            if has_no_call {
                self.device.set_call(index, call);
            }
            if has_no_err {
                self.device.set_err(index, err);
            }
        }
        Ok(())
    }

    /// How a ring signals call and err if the front-end gave no file descriptors for them.
    fn in_band(&self, index: u16) -> [Notifier; 2] {
        match &self.channel {
            Some(channel) if self.has_protocol(pf::INBAND_NOTIFICATIONS) => {
                [Note::Call(index), Note::Err(index)].map(|note| Notifier::in_band(channel, note))
            }
            _ => Default::default(),
        }
    }

    /// Whether the session allows rings to run: features are acked, the driver is ready if it says so, and the
    /// memory may be touched.
    fn may_run(&self) -> Option<u64> {
        let is_live =
            DeviceStatus::from_bits_truncate(self.device.status()).contains(DeviceStatus::DRIVER_OK);
        let may_touch = !self.postcopy.is_awaiting_ack();
        self.features.filter(|_| may_touch && (is_live || !self.has_protocol(pf::STATUS)))
    }

    /// Starts the rings that are complete and do not run. One that cannot start holds no other up: it needs
    /// another kick before it is tried again, and the first error is returned.
    pub(super) fn start_ready(&mut self) -> Result<(), RequestError> {
        let Some(features) = self.may_run() else { return Ok(()) };
        let mut result = Ok(());
        for index in 0..self.vrings.len() as u16 {
            let vring = &self.vrings[usize::from(index)];
            if vring.is_running || !vring.is_complete() {
                continue;
            }
            if let Err(error) = self.start(index, features) {
                if self.awaits_translation(&error) {
                    continue;
                }
                self.vrings[usize::from(index)].forget_kick();
                result = result.and(Err(error));
            }
        }
        self.tell_config_changed();
        result
    }

    /// The kicks that rings wait for to start; none as long as no ring may run.
    pub(super) fn first_kicks(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let may_run = self.may_run().is_some();
        let awaits = move |vring: &&Vring| may_run && vring.awaits_kick;
        self.vrings.iter().filter(awaits).filter_map(|vring| match &vring.kick {
            Some(Kick::Fd(fd)) => Some(fd.as_fd()),
            _ => None,
        })
    }

    /// Starts the rings whose first kick has come.
    pub(super) fn look_for_first_kicks(&mut self) {
        let is_kicked = |vring: &mut Vring| vring.awaits_kick && vring.look_for_kick();
        if self.vrings.iter_mut().any(is_kicked)
            && let Err(error) = self.start_ready()
        {
            // It could have started when it was set up; memory or features have changed since.
            warn!("{}: {error}", self.name);
        }
    }

    fn start(&mut self, index: u16, features: u64) -> Result<(), RequestError> {
        if !self.device.has_vring(index) {
            return Err(RequestError::NotNegotiatedVring(index));
        }
        let in_band = self.in_band(index);
        let inflight = match &self.inflight {
            Some(file) => file.area(index, features)?,
            None => None,
        };
        let vring = &mut self.vrings[usize::from(index)];
        if let Some(running) = vring.start(features, &self.memory, inflight, in_band)? {
            self.device.start_vring(index, running);
        }
        Ok(())
    }

    /// Stops a ring, if it runs, and keeps where it was.
    pub(super) fn pause(&mut self, index: u16) {
        let vring = &mut self.vrings[usize::from(index)];
        if vring.is_running {
            vring.base = Base::Stopped(self.device.stop_vring(index));
            vring.is_running = false;
        }
    }

    pub(super) fn pause_all(&mut self) {
        for index in 0..self.vrings.len() as u16 {
            self.pause(index);
        }
    }

    /// Stops all rings for good: each needs a new kick.
    pub(super) fn stop_all(&mut self) {
        self.pause_all();
        for vring in &mut self.vrings {
            vring.forget_kick();
        }
    }
}
