//! What every case has at hand: the back-end's address, what it offers, and how long to wait for it.

use std::cell::{Cell, RefCell};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringway_spec::feature;
use ringway_vhost::frontend::Connection;
use ringway_vhost::message::{F_PROTOCOL_FEATURES, Request, protocol_feature as pf};

use crate::case::{Verdict, fail};
use crate::device::Device;
use crate::rig::Rig;
use crate::session::Session;

/// How long to look at what must not happen.
pub(crate) const QUIET: Duration = Duration::from_millis(150);
/// The most time of one case.
const CASE_LIMIT: Duration = Duration::from_secs(20);

/// Where the back-end is.
#[derive(Debug)]
pub enum Target {
    /// It listens here.
    Connect(PathBuf),
    /// It connects to this socket, again and again.
    Listen(UnixListener),
}

/// What a back-end says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Offer {
    /// The virtio features.
    pub features: u64,
    /// The protocol features; 0 without `F_PROTOCOL_FEATURES`.
    pub protocol_features: u64,
    /// The answer to `GET_QUEUE_NUM`, if there is `MQ`.
    pub queue_num: Option<u64>,
}

/// See the module.
pub(crate) struct Context {
    target: Target,
    /// How long the back-end may take for an answer.
    patience: Duration,
    pub(crate) offer: Offer,
    pub(crate) device: Device,
    deadline: Cell<Instant>,
    /// What was sent to the back-end in this case.
    sent: RefCell<Vec<String>>,
}

impl Context {
    pub(crate) fn new(target: Target, patience: Duration) -> Self {
        Self {
            target,
            patience,
            offer: Offer::default(),
            device: Device::Generic,
            deadline: Cell::new(Instant::now() + CASE_LIMIT),
            sent: RefCell::default(),
        }
    }

    /// Begins a case.
    pub(crate) fn begin(&self) {
        self.deadline.set(Instant::now() + CASE_LIMIT);
        self.sent.borrow_mut().clear();
    }

    /// What was sent since the case began.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.sent.borrow().clone()
    }

    pub(crate) fn note_sent(&self, what: impl Into<String>) {
        self.sent.borrow_mut().push(what.into());
    }

    /// How long to wait for something that should happen now.
    pub(crate) fn time_left(&self) -> Duration {
        self.patience.min(self.deadline.get().saturating_duration_since(Instant::now()))
    }

    /// How long that is at most.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) fn has_protocol(&self, feature: u64) -> bool {
        self.offer.protocol_features & feature == feature
    }

    pub(crate) fn has_features(&self, features: u64) -> bool {
        self.offer.features & features == features
    }

    /// Learns what the back-end offers.
    pub(crate) fn probe(&mut self) -> Result<(), Verdict> {
        self.begin();
        let mut offer = Offer::default();
        {
            let mut session = self.connect()?;
            offer.features = session.ask_u64(Request::GetFeatures)?;
            if offer.features & F_PROTOCOL_FEATURES != 0 {
                offer.protocol_features = session.ask_u64(Request::GetProtocolFeatures)?;
            }
            if offer.protocol_features & pf::MQ != 0 {
                let protocol = offer.protocol_features & (pf::MQ | pf::REPLY_ACK);
                session.tell(Request::SetProtocolFeatures(protocol))?;
                offer.queue_num = Some(session.ask_u64(Request::GetQueueNum)?);
            }
        }
        self.offer = offer;
        Ok(())
    }

    /// A new connection, on which nothing was said.
    pub(crate) fn connect(&self) -> Result<Session<'_>, Verdict> {
        let connection = match &self.target {
            Target::Connect(path) => Connection::connect(path),
            Target::Listen(listener) => Connection::accept(listener),
        };
        let connection = connection.map_err(|error| fail("a connection", error.to_string()))?;
        self.note_sent("connect");
        Ok(Session::new(self, connection))
    }

    /// A connection on which the features are negotiated that are wanted and offered: `VERSION_1` always, and
    /// protocol features if there are any.
    pub(crate) fn negotiate(&self, features: u64, protocol: u64) -> Result<Session<'_>, Verdict> {
        let mut session = self.connect()?;
        session.ask_u64(Request::GetFeatures)?;
        let features = (features | feature::VERSION_1 | F_PROTOCOL_FEATURES) & self.offer.features;
        if features & F_PROTOCOL_FEATURES != 0 {
            session.ask_u64(Request::GetProtocolFeatures)?;
            let wanted = protocol | pf::REPLY_ACK | pf::MQ | pf::CONFIG;
            session.set_protocol_features(wanted & self.offer.protocol_features)?;
        }
        session.set(Request::SetOwner)?;
        session.set(Request::SetFeatures(features))?;
        session.features = features;
        Ok(session)
    }

    /// A front-end with memory and rings that the back-end was told of, none of them set up yet.
    pub(crate) fn rig(&self, features: u64, protocol: u64) -> Result<Rig<'_>, Verdict> {
        let session = self.negotiate(features, protocol)?;
        let mut rig = Rig::new(session)?;
        rig.share_memory()?;
        Ok(rig)
    }

    /// A front-end whose rings run and are enabled.
    pub(crate) fn running(&self, features: u64, protocol: u64) -> Result<Rig<'_>, Verdict> {
        let mut rig = self.rig(features, protocol)?;
        rig.start_all()?;
        Ok(rig)
    }

    /// Whether the back-end answers a new front-end.
    pub(crate) fn check_talks(&self) -> Result<(), Verdict> {
        self.begin();
        self.connect()?.ask_u64(Request::GetFeatures).map(drop)
    }

    /// Whether the back-end serves a front-end that behaves: it carries out requests, if it is known what they are.
    pub(crate) fn check_alive(&self) -> Result<(), Verdict> {
        if self.device == Device::Generic {
            return self.check_talks();
        }
        self.begin();
        self.running(0, 0)?.requests_are_used(3)
    }
}
