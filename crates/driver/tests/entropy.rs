//! The entropy driver, against a device that fills what the test says.
#![allow(unsafe_code, reason = "a platform promises that its memory is the device's")]

mod common;

use std::sync::{Arc, Mutex};

use common::{Fake, FakeTransport, RINGS, TestPlatform};
use ringway_driver::entropy::{Entropy, Options};
use ringway_driver::{Error, Interrupt, OutOfMemory, Platform};
use ringway_memory::{FrontendVa, Region};
use ringway_queue::{Burst, DeviceQueue, DriverError};
use ringway_spec::entropy::DEVICE_ID;
use ringway_spec::split::{IDX, USED_ALIGN};
use ringway_spec::status::DeviceStatus;

fn live(features: u64, options: &Options) -> (Fake, Entropy<FakeTransport>, DeviceQueue) {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, DEVICE_ID, features, 1);
    let entropy = Entropy::new(transport, platform, options).unwrap();
    let queue = fake.device_queue(0);
    (fake, entropy, queue)
}

/// Answers the next request with `bytes`, and says that they are `written`; returns its room, none if there is no request.
///
/// A readable byte fails the test.
fn answer(queue: &mut DeviceQueue, bytes: &[u8], written: u32) -> Option<usize> {
    let mut burst = Burst::default();
    queue.take(&mut burst, 1).unwrap();
    let chain = burst.next()?;
    assert_eq!(chain.readable().len(), 0, "the device has nothing to read");
    let room = chain.writable().len();
    chain.writable().write(bytes);
    queue.complete(chain, written);
    let _ = queue.publish();
    Some(room)
}

/// [DRV-ENTROPY-op-01] A request is room for the device to write, and nothing that it reads.
/// [DRV-ENTROPY-op-02] What it says to have written is what is received, and not a byte more.
#[test]
fn an_answer_is_as_long_as_the_device_says() {
    for rings in RINGS {
        let (_, mut entropy, mut queue) = live(rings, &Options::default());
        for written in [0, 1, 16, 31, 32] {
            assert!(entropy.request(32).unwrap());
            let mut bytes = [0xee; 40];
            assert_eq!(entropy.receive(&mut bytes).unwrap(), None);
            assert_eq!(answer(&mut queue, &[7; 32], written), Some(32));
            assert_eq!(entropy.receive(&mut bytes).unwrap(), Some(written as usize));
            let (received, rest) = bytes.split_at(written as usize);
            assert!(received.iter().all(|byte| *byte == 7) && rest.iter().all(|byte| *byte == 0xee));
        }
    }
}

#[test]
fn there_is_one_request_at_a_time() {
    let (fake, mut entropy, mut queue) = live(0, &Options { max_len: 100, ..Options::default() });
    assert!(!entropy.request(0).unwrap());
    assert!(entropy.request(1000).unwrap());
    assert!(!entropy.request(1000).unwrap());
    assert_eq!(fake.kicks(0), 1);
    assert_eq!(answer(&mut queue, &[1; 100], 100), Some(100));
    assert_eq!(answer(&mut queue, &[], 0), None);
    // What does not fit is lost, and the room is there again.
    let mut bytes = [0; 3];
    assert_eq!(entropy.receive(&mut bytes).unwrap(), Some(3));
    assert!(entropy.request(1).unwrap());
}

/// A machine whose device does its work while a driver waits.
struct Serving {
    machine: Arc<TestPlatform>,
    device: Mutex<Box<dyn FnMut() + Send>>,
}

// SAFETY: the memory is the test platform's.
unsafe impl Platform for Serving {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        self.machine.allocate(len)
    }

    fn wait(&self, round: u32) -> bool {
        self.device.lock().unwrap()();
        round < 100
    }
}

/// A driver of requests of 64 bytes at most. The device answers them with so many bytes, which count up.
fn served(mut lengths: impl FnMut() -> usize + Send + 'static) -> Entropy<FakeTransport> {
    let machine = TestPlatform::new();
    let (fake, transport) = Fake::new(&machine, DEVICE_ID, 0, 1);
    let platform = Arc::new(Serving { machine, device: Mutex::new(Box::new(|| {})) });
    let options = Options { max_len: 64, ..Options::default() };
    let entropy = Entropy::new(transport, Arc::clone(&platform) as _, &options).unwrap();
    let (mut queue, mut next, mut length) = (fake.device_queue(0), 0u8, lengths());
    *platform.device.lock().unwrap() = Box::new(move || {
        let bytes: Vec<u8> = (0..length).map(|i| next.wrapping_add(i as u8)).collect();
        if let Some(room) = answer(&mut queue, &bytes, length as u32) {
            next = next.wrapping_add(length.min(room) as u8);
            length = lengths();
        }
    });
    entropy
}

/// Filling goes on over answers that are shorter than was asked, and empty ones.
#[test]
fn filling_takes_as_many_answers_as_it_takes() {
    let mut length = 0;
    let mut entropy = served(move || {
        length = (length + 5) % 33;
        length
    });
    let mut bytes = [0xee; 500];
    entropy.fill(&mut bytes).unwrap();
    assert!(bytes.iter().zip(0u32..).all(|(byte, i)| *byte == i as u8), "{bytes:?}");
}

/// A device that answers at once, but with nothing, is not waited for without end.
#[test]
fn filling_ends_if_the_device_has_nothing() {
    let result = served(|| 0).fill(&mut [0; 4]);
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
}

/// A device that does nothing, and one that says it has failed, cost an error.
#[test]
fn filling_ends_if_the_device_does_nothing() {
    let (fake, mut entropy, _queue) = live(0, &Options::default());
    assert!(matches!(entropy.fill(&mut [0; 4]), Err(Error::TimedOut { .. })));
    fake.state().status |= DeviceStatus::DEVICE_NEEDS_RESET;
    assert!(matches!(entropy.fill(&mut [0; 4]), Err(Error::NeedsReset)));
    // Nothing is asked for.
    entropy.fill(&mut []).unwrap();
}

/// A device that uses what it was not given is found out, each time it is asked.
#[test]
fn a_device_that_breaks_the_rules_is_an_error() {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, DEVICE_ID, 0, 1);
    let mut entropy = Entropy::new(transport, Arc::clone(&platform) as _, &Options::default()).unwrap();
    let used_ring = FrontendVa(fake.state().queues[&0].device.0);
    platform.memory().area(used_ring, 64, USED_ALIGN).unwrap().store_u16(IDX, 5);
    for _ in 0..2 {
        let result = entropy.receive(&mut [0; 4]);
        assert!(matches!(result, Err(Error::Device(DriverError::IndexJump { .. }))), "{result:?}");
        assert!(matches!(entropy.fill(&mut [0; 4]), Err(Error::Device(_))));
    }
}

/// The device is asked for an interrupt only while somebody waits for it.
#[test]
fn interrupts_are_for_who_waits() {
    for rings in RINGS {
        let (fake, mut entropy, mut queue) = live(rings, &Options::default());
        let mut call = |entropy: &mut Entropy<_>| {
            entropy.request(1).unwrap();
            let mut burst = Burst::default();
            queue.take(&mut burst, 1).unwrap();
            queue.complete(burst.next().unwrap(), 1);
            queue.publish()
        };
        // With `EVENT_IDX` a driver cannot say no to the first.
        call(&mut entropy);
        entropy.receive(&mut [0]).unwrap();
        assert!(!call(&mut entropy));
        assert!(entropy.arm());
        entropy.receive(&mut [0]).unwrap();
        assert!(!entropy.arm());
        assert!(call(&mut entropy));
        fake.state().interrupt = Interrupt::QUEUE;
        assert_eq!(entropy.interrupt().unwrap(), Interrupt::QUEUE);
        assert!(entropy.arm());
    }
}

#[test]
fn a_device_without_its_queue_is_an_error() {
    let platform = TestPlatform::new();
    let (_, transport) = Fake::new(&platform, DEVICE_ID, 0, 0);
    let result = Entropy::new(transport, platform, &Options::default()).map(|_| ());
    assert!(matches!(result, Err(Error::NoQueue { index: 0 })), "{result:?}");
}

/// A stopped device can be set up anew, and a request that was under way is forgotten.
#[test]
fn a_stopped_device_starts_anew() {
    let platform = TestPlatform::new();
    let (fake, transport) = Fake::new(&platform, DEVICE_ID, 0, 1);
    let mut entropy = Entropy::new(transport, Arc::clone(&platform) as _, &Options::default()).unwrap();
    entropy.request(8).unwrap();
    let transport = entropy.stop().unwrap();
    assert!(fake.state().status.is_empty() && fake.state().queues.is_empty());
    let mut entropy = Entropy::new(transport, platform, &Options::default()).unwrap();
    assert!(entropy.request(8).unwrap());
    assert_eq!(answer(&mut fake.device_queue(0), &[9; 8], 8), Some(8));
    let mut bytes = [0; 8];
    assert_eq!(entropy.receive(&mut bytes).unwrap(), Some(8));
    assert_eq!(bytes, [9; 8]);
}
