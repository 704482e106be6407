//! A guest that sends, and one that takes, as fast as the back-end can: rings that never run dry, in a thread that costs
//! next to nothing.
//!
//! The sender's ring is full of the same frames for ever; the taker's buffers are given again unread. What both do per
//! frame is less than the back-end does, so the back-end is what limits them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use super::net::{Arrangement, NetFrontend, VnetHeader};

/// Between two looks at the rings.
const TURN: Duration = Duration::from_micros(20);

/// Guests whose rings never run dry. Dropped, they stop.
pub struct Flood {
    is_on: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// `sender` is to send these frames again and again, as many as its ring has room for, or a part of them that divides
    /// that; `takers` take what comes. It is off at first.
    pub fn new(mut sender: NetFrontend, frames: &[Vec<u8>], mut takers: Vec<NetFrontend>) -> Result<Self> {
        let size = usize::from(sender.ring(1).layout().size);
        ensure!(size.is_multiple_of(frames.len()), "{} frames in a ring of {size}", frames.len());
        let (is_on, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (on, stopped) = (Arc::clone(&is_on), Arc::clone(&stop));
        let frames = frames.to_vec();
        let run = move || {
            let mut is_begun = false;
            while !stopped.load(Ordering::Relaxed) {
                for taker in &mut takers {
                    taker.ring(0).renew()?;
                }
                if on.load(Ordering::Relaxed) && !is_begun {
                    for frame in frames.iter().cycle().take(size) {
                        let is_in =
                            sender.pair(0).enqueue(&VnetHeader::default(), frame, &Arrangement::whole())?;
                        ensure!(is_in, "the ring has room for fewer frames than its size");
                    }
                    sender.pair(0).flush()?;
                    is_begun = true;
                } else if on.load(Ordering::Relaxed) {
                    sender.ring(1).renew()?;
                }
                std::thread::sleep(TURN);
            }
            Ok(())
        };
        Ok(Self { is_on, stop, thread: Some(std::thread::spawn(run)) })
    }

    /// Turns it on or off.
    pub fn turn(&self, on: bool) {
        self.is_on.store(on, Ordering::Relaxed);
    }

    /// Ends it; an error if it could not do what it should.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        ended.map_or(Ok(()), |result| result.map_err(|_| anyhow!("the flood panicked"))?)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
