//! A guest port as its session sees it: the device that the driver negotiates with, and the way to the worker.

use std::sync::{Arc, Mutex};

use ringway_device::net::NetDevice;
use ringway_queue::ResumeState;
use ringway_vhost::backend::Device;
use ringway_vhost::message::protocol_feature;
use ringway_vhost::{Notifier, Running};

use crate::frame::Mac;
use crate::port::guest::lock;
use crate::worker::{Command, Mailbox};

/// The network device of one port, on the control thread.
pub struct GuestDevice {
    port: usize,
    pub(crate) device: Arc<Mutex<NetDevice>>,
    worker: Mailbox,
    mtu: Option<u16>,
    /// The worker may be made to wait for memory that has not arrived.
    postcopy: bool,
    /// Counts resets: what the worker tells of a ring set up before one is of no more interest.
    pub(crate) session: u64,
}

impl GuestDevice {
    /// The device of the worker's port `port`, which the worker was given too. With `postcopy` its front-end may have
    /// the worker wait for memory that has not arrived, and all ports with it.
    pub fn new(
        port: usize,
        device: Arc<Mutex<NetDevice>>,
        mtu: Option<u16>,
        postcopy: bool,
        worker: Mailbox,
    ) -> Self {
        Self { port, device, worker, mtu, postcopy, session: 0 }
    }

    /// The device has failed in a way that only a reset mends.
    pub fn need_reset(&self) {
        lock(&self.device).negotiation_mut().need_reset();
    }

    /// The number that the worker's events about this port carry, if they are about its rings of now.
    pub fn session(&self) -> u64 {
        self.session
    }
}

impl Device for GuestDevice {
    fn features(&self) -> u64 {
        lock(&self.device).negotiation().offered()
    }

    fn protocol_features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { protocol_feature::MTU } else { 0 };
        let postcopy = if self.postcopy { protocol_feature::PAGEFAULT } else { 0 };
        protocol_feature::CONFIG | protocol_feature::RARP | protocol_feature::DEVICE_STATE | mtu | postcopy
    }

    fn max_queues(&self) -> u16 {
        lock(&self.device).max_queues()
    }

    fn queue_num(&self) -> u64 {
        lock(&self.device).max_pairs().into()
    }

    fn ack_features(&mut self, features: u64) -> Result<(), String> {
        lock(&self.device).negotiation_mut().ack(features).map_err(|e| e.to_string())
    }

    fn status(&self) -> u8 {
        lock(&self.device).negotiation().status().bits()
    }

    fn set_status(&mut self, status: u8) {
        lock(&self.device).negotiation_mut().write_status(status);
    }

    fn reset(&mut self) {
        lock(&self.device).reset();
        self.session += 1;
        self.worker.send(Command::Forget { port: self.port });
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        lock(&self.device).read_config(offset, to);
    }

    fn set_mtu(&mut self, mtu: u64) -> bool {
        self.mtu.is_some_and(|most| mtu <= most.into())
    }

    fn announce(&mut self, address: [u8; 6]) {
        self.worker.send(Command::Announce { port: self.port, mac: Mac::new(address) });
    }

    fn save_state(&self) -> Vec<u8> {
        lock(&self.device).save().to_vec()
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), String> {
        lock(&self.device).load(state).map_err(|e| e.to_string())
    }

    fn has_vring(&self, index: u16) -> bool {
        lock(&self.device).role(index).is_some()
    }

    fn start_vring(&mut self, index: u16, vring: Running) {
        let vring = Box::new(vring);
        self.worker.send(Command::Start { port: self.port, session: self.session, index, vring });
    }

    fn stop_vring(&mut self, index: u16) -> ResumeState {
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        self.worker.send(Command::Stop { port: self.port, index, reply });
        // The worker answers between two bursts. Without one there is nothing to resume.
        answer.recv().unwrap_or_else(|_| ResumeState::start(lock(&self.device).negotiation().acked()))
    }

    fn enable_vring(&mut self, index: u16, enabled: bool) {
        self.worker.send(Command::Enable { port: self.port, index, enabled });
        self.worker.wait();
    }

    fn kick_vring(&mut self, _index: u16) {
        self.worker.wake();
    }

    fn translations_changed(&mut self, lost: bool) {
        if lost {
            self.worker.send(Command::Retake { port: self.port });
            self.worker.wait();
        } else {
            self.worker.wake();
        }
    }

    fn set_call(&mut self, index: u16, call: Notifier) {
        self.worker.send(Command::SetCall { port: self.port, index, call });
        self.worker.wait();
    }

    fn set_err(&mut self, index: u16, err: Notifier) {
        self.worker.send(Command::SetErr { port: self.port, index, err });
        self.worker.wait();
    }
}
