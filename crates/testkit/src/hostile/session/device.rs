//! A device that serves all rings that run, and sees that nobody forgets one.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use ringway_queue::{Burst, Missing, ResumeState};
use ringway_vhost::backend::Device;
use ringway_vhost::message::{Uuid, protocol_feature as pf};
use ringway_vhost::{Notifier, Running};

use super::{OFFERED, QUEUES};

/// More than a pipe holds.
const STATE_LEN: usize = 100_000;

/// See the module.
#[derive(Default)]
pub(super) struct Served {
    /// Whether memory may arrive by postcopy.
    pub(super) may_wait: bool,
    /// The session and whoever serves reach them.
    vrings: RefCell<[Option<Vring>; QUEUES as usize]>,
    status: u8,
}

struct Vring {
    running: Running,
    burst: Burst,
}

impl Served {
    pub(super) fn new(may_wait: bool) -> Self {
        Self { may_wait, ..Self::default() }
    }

    fn vring(&mut self, index: u16) -> &mut Option<Vring> {
        &mut self.vrings.get_mut()[usize::from(index)]
    }

    pub(super) fn is_idle(&self) -> bool {
        self.vrings.borrow().iter().all(Option::is_none)
    }

    /// Takes a burst of each ring, completes some of it, and publishes that.
    /// Returns the translations that are missing.
    pub(super) fn serve(&self) -> Vec<Missing> {
        let mut missing = vec![];
        for Vring { running, burst } in self.vrings.borrow_mut().iter_mut().flatten() {
            if running.queue.take(burst, 32).is_err() {
                running.err.notify();
            }
            missing.extend(running.queue.missing());
            let keep = usize::from(running.enabled);
            while burst.len() > keep {
                let chain = burst.next().expect("there is more than one");
                let written = chain.readable().copy_to(chain.writable());
                assert!(written <= chain.writable_len() as usize);
                running.queue.complete(chain, written as u32);
            }
            if running.queue.publish() {
                running.call.notify();
            }
            let _ = running.queue.arm();
        }
        missing
    }
}

impl Device for Served {
    fn features(&self) -> u64 {
        OFFERED
    }

    fn protocol_features(&self) -> u64 {
        let waits = if self.may_wait { pf::PAGEFAULT } else { 0 };
        pf::CONFIG | pf::MTU | pf::RARP | pf::DEVICE_STATE | pf::SHARED_OBJECT | waits
    }

    fn max_queues(&self) -> u16 {
        QUEUES
    }

    fn queue_num(&self) -> u64 {
        u64::from(QUEUES / 2)
    }

    fn ack_features(&mut self, features: u64) -> Result<(), String> {
        if features & !OFFERED == 0 { Ok(()) } else { Err("not offered".to_owned()) }
    }

    fn status(&self) -> u8 {
        self.status
    }

    fn set_status(&mut self, status: u8) {
        assert_ne!(status, 0, "0 is a reset");
        self.status = status;
    }

    fn reset(&mut self) {
        assert!(self.is_idle(), "vrings are stopped before a reset");
        self.status = 0;
    }

    fn read_config(&self, _: usize, to: &mut [u8]) {
        to.fill(1);
    }

    fn save_state(&self) -> Vec<u8> {
        assert!(self.is_idle(), "vrings are stopped when the state is saved");
        vec![2; STATE_LEN]
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), String> {
        assert!(self.is_idle(), "vrings are stopped when a state is loaded");
        if state.len().is_multiple_of(2) { Ok(()) } else { Err("of another device".to_owned()) }
    }

    fn shared_object(&self, name: Uuid) -> Option<OwnedFd> {
        (name[0] & 1 == 1).then(super::event)
    }

    fn start_vring(&mut self, index: u16, running: Running) {
        let before = self.vring(index).replace(Vring { running, burst: Burst::default() });
        assert!(before.is_none(), "a vring is stopped before it starts again");
    }

    fn stop_vring(&mut self, index: u16) -> ResumeState {
        let mut vring = self.vring(index).take().expect("only a running vring stops");
        vring.running.queue.rewind(&mut vring.burst);
        vring.running.queue.stop()
    }

    fn enable_vring(&mut self, index: u16, enabled: bool) {
        self.vring(index).as_mut().expect("only a running vring is enabled").running.enabled = enabled;
    }

    fn kick_vring(&mut self, index: u16) {
        assert!(self.vring(index).is_some(), "only a running vring is kicked");
    }

    fn translations_changed(&mut self, lost: bool) {
        for Vring { running, burst } in self.vrings.get_mut().iter_mut().flatten().filter(|_| lost) {
            running.queue.rewind(burst);
        }
    }

    fn set_call(&mut self, index: u16, call: Notifier) {
        self.vring(index).as_mut().expect("only a running vring gets a call").running.call = call;
    }

    fn set_err(&mut self, index: u16, err: Notifier) {
        self.vring(index).as_mut().expect("only a running vring gets an err").running.err = err;
    }

    fn has_vring(&self, index: u16) -> bool {
        index + 1 < self.max_queues()
    }
}
