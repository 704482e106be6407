//! A stopped vring as plain data.

use std::os::fd::AsFd;

use ringway_memory::{FrontendVa, Gpa};
use ringway_queue::{Cursor, ResumeState};
use serde::{Deserialize, Serialize};

use super::{Kick, Notifier, Sink, Vring};
use crate::base::Base;
use crate::descriptor::NonBlocking;
use crate::descriptor::handover::NonBlockingState;
use crate::handover::{FdIndex, FilesIn, FilesOut, HandoverError};
use crate::message::VringAddresses;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VringState {
    num: Option<u16>,
    addresses: Option<AddressesState>,
    base: BaseState,
    kick: Option<KickState>,
    call: Option<NotifierState>,
    err: Option<NotifierState>,
    enabled: bool,
    #[serde(default)]
    is_kicked: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct AddressesState {
    descriptor: u64,
    driver: u64,
    device: u64,
    log: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KickState {
    File(FdIndex),
    InBand,
    Polled,
}

/// Cursors of packed rings are as a vring base has them: the index in 15 bits, the wrap counter above.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BaseState {
    Start,
    Told(u32),
    Split { next_avail: u16 },
    Packed { avail: u16, used: u16 },
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum NotifierState {
    Nobody,
    Fd(NonBlockingState),
}

impl VringState {
    /// Its state; its files are added to `files`.
    pub(crate) fn of<'v>(vring: &'v Vring, files: &mut FilesOut<'v>) -> Self {
        let Vring { num, addresses, base, kick, call, err, enabled, is_kicked, .. } = vring;
        // Whether it runs or waits follows from these.
        let Vring { is_running: _, awaits_kick: _, lens: _, .. } = vring;
        Self {
            num: *num,
            addresses: addresses.map(|VringAddresses { descriptor, driver, device, log }| AddressesState {
                descriptor: descriptor.0,
                driver: driver.0,
                device: device.0,
                log: log.map(|log| log.0),
            }),
            base: match *base {
                Base::Start => BaseState::Start,
                Base::Told(word) => BaseState::Told(word),
                Base::Stopped(ResumeState::Split { next_avail }) => BaseState::Split { next_avail },
                Base::Stopped(ResumeState::Packed { avail, used }) => {
                    BaseState::Packed { avail: avail.to_off_wrap(), used: used.to_off_wrap() }
                }
            },
            kick: kick.as_ref().map(|kick| match kick {
                Kick::Fd(fd) => KickState::File(files.add(fd.as_fd())),
                Kick::InBand => KickState::InBand,
                Kick::Polled => KickState::Polled,
            }),
            call: call.as_ref().and_then(|call| call.state(files)),
            err: err.as_ref().and_then(|err| err.state(files)),
            enabled: *enabled,
            is_kicked: *is_kicked,
        }
    }

    /// The vring, stopped.
    pub(crate) fn restore(self, files: &mut FilesIn) -> Result<Vring, HandoverError> {
        Ok(Vring {
            num: self.num,
            addresses: self.addresses.map(|AddressesState { descriptor, driver, device, log }| {
                VringAddresses {
                    descriptor: FrontendVa(descriptor),
                    driver: FrontendVa(driver),
                    device: FrontendVa(device),
                    log: log.map(Gpa),
                }
            }),
            base: match self.base {
                BaseState::Start => Base::Start,
                BaseState::Told(word) => Base::Told(word),
                BaseState::Split { next_avail } => Base::Stopped(ResumeState::Split { next_avail }),
                BaseState::Packed { avail, used } => Base::Stopped(ResumeState::Packed {
                    avail: Cursor::from_off_wrap(avail),
                    used: Cursor::from_off_wrap(used),
                }),
            },
            kick: match self.kick {
                Some(KickState::File(file)) => Some(Kick::Fd(files.take(file)?)),
                Some(KickState::InBand) => Some(Kick::InBand),
                Some(KickState::Polled) => Some(Kick::Polled),
                None => None,
            },
            call: self.call.map(|call| Notifier::restore(call, files)).transpose()?,
            err: self.err.map(|err| Notifier::restore(err, files)).transpose()?,
            enabled: self.enabled,
            is_running: false,
            is_kicked: self.is_kicked,
            awaits_kick: false,
            lens: [0; 3],
        })
    }
}

impl Notifier {
    /// `None` if it is the session's own: in-band signals follow from what was negotiated.
    fn state<'n>(&'n self, files: &mut FilesOut<'n>) -> Option<NotifierState> {
        match &self.0 {
            Sink::Nobody => Some(NotifierState::Nobody),
            Sink::Fd(fd) => Some(NotifierState::Fd(fd.state(files))),
            Sink::InBand(..) => None,
        }
    }

    fn restore(state: NotifierState, files: &mut FilesIn) -> Result<Self, HandoverError> {
        Ok(Self(match state {
            NotifierState::Nobody => Sink::Nobody,
            NotifierState::Fd(fd) => Sink::Fd(NonBlocking::restore(fd, files)?),
        }))
    }
}
