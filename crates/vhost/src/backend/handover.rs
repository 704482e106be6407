//! The state of a session as plain data: what its front-end has said so far.
//!
//! Which vrings run needs no saying: those that are complete, once the features are acked and the driver is ready. So a
//! session is restored as it came to be, by what was said and then starting what can start. The device's own state is
//! the device's to hand over, before.

use std::os::fd::AsFd;
use std::sync::Arc;

use ringway_memory::{Access, DirtyLog, FrontendVa, Gpa, Iova, Mapping, MemoryTable};
use ringway_queue::ConfigError;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::channel::Channel;
use super::channel::handover::ChannelState;
use super::state::Transfer;
use super::state::handover::TransferState;
use super::{Device, MAX_REGIONS, RequestError, Session, TRANSPORT_FEATURES};
use crate::handover::{FdIndex, FilesIn, FilesOut, HandoverError};
use crate::inflight::{InflightFile, InflightFileError};
use crate::message::{HEADER_LEN, Header, InflightDescription, Kind};
use crate::vring::handover::VringState;

/// A session with all vrings stopped.
#[derive(Debug, Serialize, Deserialize)]
pub struct SessionState {
    features: Option<u64>,
    protocol_features: u64,
    memory: Vec<RegionState>,
    channel: Option<ChannelState>,
    log: Option<LogState>,
    translations: Vec<TranslationState>,
    inflight: Option<InflightState>,
    is_config_new: bool,
    transfer: Option<TransferState>,
    /// The header of a request that is still to be answered.
    owed: Option<[u8; HEADER_LEN]>,
    vrings: Vec<VringState>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RegionState {
    gpa: u64,
    len: u64,
    frontend_va: u64,
    offset: u64,
    file: FdIndex,
}

#[derive(Debug, Serialize, Deserialize)]
struct LogState {
    len: u64,
    offset: u64,
    file: FdIndex,
}

#[derive(Debug, Serialize, Deserialize)]
struct InflightState {
    len: u64,
    offset: u64,
    queues: u16,
    queue_size: u16,
    file: FdIndex,
}

/// Files of the front-end's, mapped.
pub(crate) struct Mapped {
    memory: MemoryTable,
    log: Option<DirtyLog>,
    inflight: Option<InflightFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TranslationState {
    iova: u64,
    len: u64,
    frontend_va: u64,
    read: bool,
    write: bool,
}

impl<D: Device> Session<D> {
    /// Stops all vrings that run, until [`Session::resume`].
    pub(crate) fn suspend(&mut self) {
        self.pause_all();
    }

    /// Starts the vrings that ran.
    pub(crate) fn resume(&mut self) -> Result<(), RequestError> {
        self.start_ready()
    }

    /// The state of a suspended session; its files are added to `files`.
    pub(crate) fn state<'s>(&'s self, files: &mut FilesOut<'s>) -> Result<SessionState, HandoverError> {
        // The name and the device are the owner's to hand over.
        let Self { name: _, device: _, vrings, memory, features, protocol_features, .. } = self;
        let Self { channel, log, translations, inflight, is_config_new, postcopy, transfer, owed, .. } = self;
        if postcopy.is_under_way() {
            // The watch over missing pages belongs to this process.
            return Err(HandoverError::UnderWay("a postcopy migration"));
        }
        let file_of = |file: Option<_>| file.ok_or(HandoverError::BadValue("memory without a file"));
        let mut regions = Vec::new();
        for region in memory.regions() {
            let (file, offset) = file_of(region.file())?;
            let (gpa, frontend_va, file) = (region.gpa().0, region.frontend_va().0, files.add(file));
            regions.push(RegionState { gpa, len: region.len(), frontend_va, offset, file });
        }
        let log = match log {
            Some(log) => {
                let (file, offset) = file_of(log.file())?;
                Some(LogState { len: log.len(), offset, file: files.add(file) })
            }
            None => None,
        };
        Ok(SessionState {
            features: *features,
            protocol_features: *protocol_features,
            memory: regions,
            log,
            inflight: inflight.as_ref().map(|inflight| InflightState::of(inflight, files)),
            is_config_new: *is_config_new,
            translations: translations.entries().into_iter().map(TranslationState::of).collect(),
            channel: channel.as_ref().map(|channel| channel.handover_state(files)).transpose()?,
            transfer: transfer.as_ref().map(|transfer| transfer.state(files)),
            owed: owed.as_ref().map(Header::encode),
            vrings: vrings.iter().map(|vring| VringState::of(vring, files)).collect(),
        })
    }

    /// The session goes on here; the device is as it was there. Vrings that ran start.
    pub(crate) fn restore(
        name: &str,
        device: D,
        state: SessionState,
        mapped: Mapped,
        files: &mut FilesIn,
    ) -> Result<Self, HandoverError> {
        let mut session = Self::new(name, device);
        let check = |kind, acked: u64, offered: u64| match acked & !offered {
            0 => Ok(()),
            features => Err(HandoverError::Features { kind, features }),
        };
        let offered = session.device.features() | TRANSPORT_FEATURES;
        check("virtio", state.features.unwrap_or_default(), offered)?;
        check("protocol", state.protocol_features, session.offered_protocol_features())?;
        if state.vrings.len() != session.vrings.len() {
            return Err(HandoverError::BadValue("the number of vrings"));
        }
        session.features = state.features;
        session.protocol_features = state.protocol_features;
        session.memory = Arc::new(mapped.memory);
        session.log = mapped.log.map(Arc::new);
        session.inflight = mapped.inflight;
        session.is_config_new = state.is_config_new;
        for TranslationState { iova, len, frontend_va, read, write } in state.translations {
            let to = FrontendVa(frontend_va);
            session.translations.update(Iova(iova), len, to, Access { read, write })?;
        }
        session.update_memory();
        session.channel = state.channel.map(|channel| Channel::restore(channel, files)).transpose()?;
        session.transfer = state.transfer.map(|transfer| Transfer::restore(transfer, files)).transpose()?;
        session.owed = state.owed.map(|head| Header::decode(head, Kind::Request)).transpose()?;
        for (vring, state) in session.vrings.iter_mut().zip(state.vrings) {
            *vring = state.restore(files)?;
        }
        match session.start_ready() {
            // The front-end writes to that memory too. As at any start, it has cost itself the ring.
            Err(error @ RequestError::Queue(ConfigError::Inflight(_))) => {
                warn!("{name}: a vring cannot go on: {error}");
            }
            other => other?,
        }
        Ok(session)
    }
}

impl InflightState {
    fn of<'f>(inflight: &'f InflightFile, files: &mut FilesOut<'f>) -> Self {
        let InflightDescription { len, offset, queues, queue_size } = inflight.description();
        Self { len, offset, queues, queue_size, file: files.add(inflight.as_fd()) }
    }

    fn map(self, features: u64, max_queues: u16, files: &mut FilesIn) -> Result<InflightFile, HandoverError> {
        let Self { len, offset, queues, queue_size, file } = self;
        let description = InflightDescription { len, offset, queues, queue_size };
        let file = files.take(file)?;
        InflightFile::adopt(file, description, features, max_queues).map_err(|error| match error {
            InflightFileError::Map(error) => error.into(),
            other => HandoverError::Request(other.into()),
        })
    }
}

impl TranslationState {
    fn of((iova, len, to, Access { read, write }): (Iova, u64, FrontendVa, Access)) -> Self {
        Self { iova: iova.0, len, frontend_va: to.0, read, write }
    }
}

impl SessionState {
    /// Maps the session's memory, and what else it has mapped.
    pub(crate) fn map(&mut self, max_queues: u16, files: &mut FilesIn) -> Result<Mapped, HandoverError> {
        if self.memory.len() > MAX_REGIONS {
            return Err(RequestError::TooManyRegions.into());
        }
        let regions = self.memory.drain(..).map(|region| {
            let RegionState { gpa, len, frontend_va, offset, file } = region;
            Ok(Mapping::region(files.take(file)?, offset, len, Gpa(gpa), FrontendVa(frontend_va))?)
        });
        let memory = MemoryTable::new(regions.collect::<Result<_, HandoverError>>()?)?;
        let log = match self.log.take() {
            Some(LogState { len, offset, file }) => Some(DirtyLog::map(files.take(file)?, offset, len)?),
            None => None,
        };
        let inflight = match self.inflight.take() {
            Some(state) => Some(state.map(self.features.unwrap_or_default(), max_queues, files)?),
            None => None,
        };
        Ok(Mapped { memory, log, inflight })
    }
}
