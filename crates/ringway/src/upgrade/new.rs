//! The server that takes over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringway_vhost::handover::{FilesOut, Link};
use tracing::{info, warn};

use super::{FromNew, FromOld, LINK, LONG_PAUSE, PAUSE_LIMIT, READY_LIMIT, State, clock, status};
use crate::inherit;
use crate::serve::Server;

/// The server that started this one, to be replaced by it.
pub(crate) struct Predecessor {
    link: Link,
    pid: u32,
}

impl Predecessor {
    /// Finds it, if this program was started for an upgrade.
    pub(crate) fn find() -> Result<Option<Self>> {
        let Some(number) = std::env::var_os(LINK) else { return Ok(None) };
        let number =
            number.to_str().and_then(|n| n.parse().ok()).with_context(|| format!("{LINK} is no number"))?;
        let link = Link::new(inherit::take(number).context(LINK)?);
        Ok(Some(Self { link, pid: std::os::unix::process::parent_id() }))
    }

    /// Takes everything over; when this returns, this server runs and the other does not.
    pub(crate) fn take_over<S: Server>(self, plan: S::Plan) -> Result<S> {
        let taken = self.try_to_take_over::<S>(plan);
        if let Err(error) = &taken {
            // The other server goes on, and says why in its log too.
            let failed = FromNew::Failed(format!("{error:#}"));
            let _ = self.link.send(&failed, &FilesOut::default(), Instant::now() + Duration::from_secs(1));
        }
        taken.with_context(|| format!("cannot take over from process {}", self.pid))
    }

    fn try_to_take_over<S: Server>(&self, plan: S::Plan) -> Result<S> {
        self.say(&FromNew::Ready)?;
        let (message, files) = self.link.receive(Instant::now() + READY_LIMIT + PAUSE_LIMIT)?;
        let FromOld::State(State { since, server }) = message else { bail!("told to go without a state") };
        let mut server = S::restore(plan, server, files)?;
        self.say(&FromNew::SetUp)?;
        let go = self.link.receive(Instant::now() + PAUSE_LIMIT).context("not told to go")?;
        ensure!(matches!(go, (FromOld::<S::State>::Go, _)), "two states");
        server.take_over();
        let pause = Duration::from_nanos(clock().saturating_sub(since));
        let text = format!(
            "took over from process {}: rings paused for {:.1} ms",
            self.pid,
            pause.as_secs_f64() * 1e3
        );
        if pause > LONG_PAUSE {
            warn!("{text}");
        } else {
            info!("{text}");
        }
        status::send(self.pid, &status::Status::Done { pid: std::process::id(), pause });
        Ok(server)
    }

    fn say(&self, message: &FromNew) -> Result<()> {
        Ok(self.link.send(message, &FilesOut::default(), Instant::now() + PAUSE_LIMIT)?)
    }
}
