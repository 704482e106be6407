//! A network driver in user space: Ringway's own front-end and driver half, for tests that need frames in either ring
//! format and a well-behaved driver. What checks the back-end independently is [`frontend`](crate::frontend).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::Segment;
use ringway_spec::feature::{ACCESS_PLATFORM, VERSION_1};
use ringway_vhost::frontend::{
    Channel, Connection, Frontend, Inflight, Memory, PROTOCOL_FEATURES, Pages, Vring, VringConfig,
};
use ringway_vhost::message::{ChannelRequest, protocol_feature};

/// Zeros in front of a sent frame: `virtio_net_hdr` with nothing to say.
const HEADER: usize = 12;
const RING_SIZE: u16 = 64;
const BUFFER: u32 = 2048;

/// A driver with one pair of rings.
pub struct NetDriver {
    /// The session.
    pub frontend: Frontend,
    /// Frames for us.
    pub rx: Vring<SharedBuf>,
    /// Frames from us.
    pub tx: Vring<SharedBuf>,
    memory: Memory,
    /// What the back-end has taken and not used, for the next one, if this one records it.
    inflight: Option<Inflight>,
    /// Where the back-end asks for translations, if the device is behind an IOMMU.
    channel: Option<Channel>,
    /// Buffers for frames to be sent.
    idle: Vec<SharedBuf>,
}

impl NetDriver {
    /// A driver with these virtio features and `VERSION_1`, running.
    ///
    /// # Errors
    /// If the back-end lacks one of them, and all that can go wrong.
    pub fn start(connection: Connection, features: u64) -> Result<Self> {
        let mut frontend = negotiate(connection, features | VERSION_1)?;
        let mut memory = Memory::new(Gpa(1 << 30), 4 << 20, Pages::Small)?;
        let rx = frontend.set_up_vring(VringConfig::new(0, RING_SIZE), &mut memory)?;
        let tx = frontend.set_up_vring(VringConfig::new(1, RING_SIZE), &mut memory)?;
        let mut idle = memory.buffers(2 * usize::from(RING_SIZE), BUFFER)?;
        let posted = idle.split_off(RING_SIZE.into());
        let records = frontend.protocol_features() & protocol_feature::INFLIGHT_SHMFD != 0;
        let inflight = records.then(|| frontend.inflight(2, RING_SIZE)).transpose()?;
        let mut driver = Self { frontend, rx, tx, memory, inflight, channel: None, idle };
        driver.run()?;
        for buffer in posted {
            driver.post(buffer)?;
        }
        driver.rx.publish()?;
        Ok(driver)
    }

    /// Goes on with another back-end after the one before has gone, with what was in flight.
    ///
    /// # Errors
    /// As of [`NetDriver::start`].
    pub fn reconnect(&mut self, connection: Connection) -> Result<()> {
        self.frontend = negotiate(connection, self.frontend.features())?;
        self.rx.recover();
        self.tx.recover();
        self.run()
    }

    /// Starts both rings.
    fn run(&mut self) -> Result<()> {
        self.frontend.add_memory([&self.memory])?;
        if self.frontend.features() & ACCESS_PLATFORM != 0 {
            self.channel = Some(self.frontend.open_channel()?);
        }
        if let Some(inflight) = &self.inflight {
            self.frontend.set_inflight(inflight)?;
        }
        for vring in [&mut self.rx, &mut self.tx] {
            self.frontend.enable(vring, true)?;
            self.frontend.start(vring)?;
        }
        self.frontend.set_driver_ok()?;
        if self.channel.is_some() { self.answer_misses() } else { Ok(()) }
    }

    /// Answers the miss that is to come, and those that come with it: all memory is where the guest has it.
    ///
    /// # Errors
    /// If none comes, or something else does.
    pub fn answer_misses(&mut self) -> Result<()> {
        let channel = self.channel.as_mut().context("no IOMMU")?;
        let mut limit = Duration::from_secs(5);
        let mut count = 0;
        while let Some(incoming) = channel.next(limit)? {
            let ChannelRequest::Iotlb(miss) = incoming.request else { bail!("{:?}", incoming.request) };
            let is_known = self.frontend.answer_miss(&miss)?;
            channel.answer(incoming.answer, u64::from(!is_known))?;
            ensure!(is_known, "a miss outside of memory: {miss:?}");
            limit = Duration::from_millis(20);
            count += 1;
        }
        ensure!(count > 0, "no miss");
        Ok(())
    }

    fn post(&mut self, buffer: SharedBuf) -> Result<()> {
        let room = [Segment::from(&buffer)];
        self.rx.queue_mut().add(&[], &room, buffer).map_err(|refused| refused.error)?;
        Ok(())
    }

    /// Sends a frame; waits for room if there is none.
    ///
    /// # Errors
    /// If there is none in time, and all that can go wrong.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        while let Some(used) = self.tx.queue_mut().reclaim()? {
            self.idle.push(used.owner);
        }
        if self.idle.is_empty() {
            ensure!(self.tx.wait(Duration::from_secs(5))?, "no room for a frame");
            return self.send(frame);
        }
        let mut buffer = self.idle.pop().context("a buffer")?;
        let bytes = [&[0; HEADER], frame].concat();
        ensure!(buffer.write(&bytes) == bytes.len(), "a frame of {} bytes", frame.len());
        let chain = [Segment { len: bytes.len() as u32, ..Segment::from(&buffer) }];
        self.tx.queue_mut().add(&chain, &[], buffer).map_err(|refused| refused.error)?;
        Ok(self.tx.publish()?)
    }

    /// The next frame, `None` if none comes within `limit`.
    ///
    /// # Errors
    /// All that can go wrong.
    pub fn receive(&mut self, limit: Duration) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(used) = self.rx.queue_mut().reclaim()? {
                let mut bytes = vec![0; used.written as usize];
                used.owner.read(&mut bytes);
                self.post(used.owner)?;
                self.rx.publish()?;
                ensure!(bytes.len() > HEADER, "a frame of {} bytes with its header", bytes.len());
                return Ok(Some(bytes.split_off(HEADER)));
            }
            if !self.rx.wait(deadline.saturating_duration_since(Instant::now()))? {
                return Ok(None);
            }
        }
    }
}

fn negotiate(connection: Connection, features: u64) -> Result<Frontend> {
    let frontend = Frontend::negotiate(connection, features, PROTOCOL_FEATURES)?;
    let lacking = features & !frontend.features();
    ensure!(lacking == 0, "the back-end does not offer features {lacking:#x}");
    Ok(frontend)
}
