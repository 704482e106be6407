//! A driver and its device, both in the test's hand.
#![allow(unsafe_code, reason = "a platform promises that its memory is the device's")]

use std::sync::{Arc, Mutex};

use ringway_driver::net::{Net, Options};
use ringway_driver::{Error, OutOfMemory, Platform};
use ringway_memory::{FrontendVa, MemoryTable, Region};
use ringway_queue::{Burst, DeviceQueue};
use ringway_spec::net::{CTRL_OK, Config, DEVICE_ID, HDR_LEN, Header};
use ringway_spec::split;
use zerocopy::{FromBytes, IntoBytes};

use crate::common::{Fake, FakeTransport, TestPlatform};

pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Length of a header, and of what is before a frame's payload.
pub(crate) const ETH: usize = 14;

/// What is done while the driver waits.
type Hook = Box<dyn FnMut() + Send>;

/// A platform on which the device works while its driver waits, and only then.
struct Waiting {
    platform: Arc<TestPlatform>,
    hook: Arc<Mutex<Option<Hook>>>,
}

// SAFETY: the memory is that of the platform within.
unsafe impl Platform for Waiting {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        self.platform.allocate(len)
    }

    fn wait(&self, round: u32) -> bool {
        if let Some(hook) = &mut *self.hook.lock().unwrap() {
            hook();
        }
        round < 16
    }
}

/// Commands that the driver sent.
pub(crate) type Commands = Arc<Mutex<Vec<Vec<u8>>>>;

/// A driver with its device.
pub(crate) struct Lab {
    pub(crate) fake: Fake,
    pub(crate) net: Net<FakeTransport>,
    /// The device's half of each queue, by its index.
    queues: Vec<Option<DeviceQueue>>,
    burst: Burst,
    memory: Arc<MemoryTable>,
    hook: Arc<Mutex<Option<Hook>>>,
}

/// A device of these features and this configuration, not set up.
pub(crate) struct Bench {
    pub(crate) fake: Fake,
    transport: FakeTransport,
    waiting: Waiting,
    pub(crate) options: Options,
}

/// A configuration like that of most devices: four pairs.
pub(crate) fn config() -> Config {
    Config {
        mac: MAC,
        status: 1.into(),
        max_virtqueue_pairs: 4.into(),
        mtu: 1500.into(),
        speed: 10_000.into(),
        duplex: 1,
        ..Config::default()
    }
}

impl Bench {
    pub(crate) fn new(features: u64) -> Self {
        let platform = TestPlatform::new();
        let (fake, transport) = Fake::new(&platform, DEVICE_ID, features, 9);
        fake.state().config = config().as_bytes().to_vec();
        let waiting = Waiting { platform, hook: Arc::default() };
        Self { fake, transport, waiting, options: Options { features: u64::MAX, ..Options::default() } }
    }

    pub(crate) fn config(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config();
        change(&mut config);
        self.fake.state().config = config.as_bytes().to_vec();
        self
    }

    pub(crate) fn options(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    pub(crate) fn try_up(self) -> Result<Lab, Error> {
        let Self { fake, transport, waiting, options } = self;
        let (hook, memory) = (Arc::clone(&waiting.hook), waiting.platform.memory());
        let net = Net::new(transport, Arc::new(waiting), &options)?;
        let queues = fake.state().queues.keys().copied().collect::<Vec<_>>();
        let mut halves: Vec<_> = (0..9).map(|_| None).collect();
        for index in queues {
            halves[usize::from(index)] = Some(fake.device_queue(index));
        }
        Ok(Lab { fake, net, queues: halves, burst: Burst::default(), memory, hook })
    }

    pub(crate) fn up(self) -> Lab {
        self.try_up().expect("a driver")
    }
}

impl Lab {
    /// A driver that accepts all of `features` that it knows.
    pub(crate) fn new(features: u64) -> Self {
        Bench::new(features).up()
    }

    /// The device's half of a queue.
    pub(crate) fn queue(&mut self, index: usize) -> &mut DeviceQueue {
        self.queues[index].as_mut().expect("a queue that was set up")
    }

    /// The device writes bytes to as many buffers of receive queue `pair` as `lens` has, so many to each; it shows all at once.
    pub(crate) fn fill(&mut self, pair: usize, mut bytes: &[u8], lens: &[usize]) {
        let Self { queues, burst, .. } = self;
        let queue = queues[2 * pair].as_mut().expect("a queue that was set up");
        for len in lens {
            let chain = queue.next(burst).expect("a good ring").expect("a buffer");
            let (now, rest) = bytes.split_at((*len).min(bytes.len()));
            assert_eq!(chain.readable().len(), 0);
            assert_eq!(chain.writable().write(now), now.len(), "the buffer is too small");
            queue.complete(chain, *len as u32);
            bytes = rest;
        }
        assert!(bytes.is_empty(), "{} bytes are left", bytes.len());
        let _ = queue.publish();
    }

    /// The device gives a frame, in one buffer.
    pub(crate) fn give(&mut self, header: Header, frame: &[u8]) {
        let bytes = with_header(header, frame);
        self.fill(0, &bytes, &[bytes.len()]);
    }

    /// The device gives a frame, in as many buffers as it needs.
    pub(crate) fn give_merged(&mut self, frame: &[u8]) -> usize {
        let room = self.buffer_len();
        let bytes = HDR_LEN + frame.len();
        let count = bytes.div_ceil(room);
        let mut lens = vec![room; count - 1];
        lens.push(bytes - room * (count - 1));
        let header = Header { num_buffers: (count as u16).into(), ..Header::default() };
        self.fill(0, &with_header(header, frame), &lens);
        count
    }

    /// How long the driver's receive buffers are.
    pub(crate) fn buffer_len(&mut self) -> usize {
        let Self { queues, burst, .. } = self;
        let queue = queues[0].as_mut().expect("a queue that was set up");
        queue.take(burst, 1).expect("a good ring");
        let len = burst.next_writable_len() as usize;
        queue.rewind(burst);
        len
    }

    /// The device counts buffers of a receive queue.
    pub(crate) fn buffers(&mut self, pair: usize) -> usize {
        let Self { queues, burst, .. } = self;
        let queue = queues[2 * pair].as_mut().expect("a queue that was set up");
        while queue.take(burst, 1024).expect("a good ring") > 0 {}
        let count = burst.len();
        queue.rewind(burst);
        count
    }

    /// All that came on a pair, by the copying way.
    pub(crate) fn received(&mut self, pair: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let rx = &mut self.net.pair(pair).rx;
        while rx.receive(|received| frames.push(bytes(&received.frame))).expect("a good device") > 0 {}
        frames
    }

    /// What the driver has sent on a pair, with the number of descriptors it took.
    pub(crate) fn sent(&mut self, pair: usize) -> Vec<(Header, Vec<u8>)> {
        let Self { queues, burst, .. } = self;
        let queue = queues[2 * pair + 1].as_mut().expect("a queue that was set up");
        let mut sent = Vec::new();
        while let Some(chain) = queue.next(burst).expect("a good ring") {
            assert_eq!(chain.writable_len(), 0);
            let mut bytes = vec![0; chain.readable().len()];
            chain.readable().read(&mut bytes);
            let (header, frame) = Header::read_from_prefix(&bytes).expect("a header");
            sent.push((header, frame.to_vec()));
            queue.complete(chain, 0);
        }
        let _ = queue.publish();
        sent
    }

    /// The device says in the used ring of a split queue that it has used as many chains as it has not.
    pub(crate) fn break_queue(&mut self, index: u16, used: u16) {
        let at = FrontendVa(self.fake.state().queues[&index].device.0);
        self.memory.area(at, 4, 4).expect("the used ring").store_u16(split::IDX, used);
    }

    /// Has the device answer commands; `None`: with nothing. Returns what was commanded.
    pub(crate) fn serve(&mut self, mut answer: impl FnMut(&[u8]) -> Option<u8> + Send + 'static) -> Commands {
        let commands = Commands::default();
        let mut queue = self.queues.iter_mut().rev().find_map(Option::take).expect("a control queue");
        let (mut burst, seen) = (Burst::default(), Arc::clone(&commands));
        *self.hook.lock().unwrap() = Some(Box::new(move || {
            while let Some(chain) = queue.next(&mut burst).expect("a good ring") {
                let mut command = vec![0; chain.readable().len()];
                chain.readable().read(&mut command);
                let answer = answer(&command);
                seen.lock().unwrap().push(command);
                let written = answer.map_or(0, |answer| chain.writable().write(&[answer]));
                queue.complete(chain, written as u32);
            }
            let _ = queue.publish();
        }));
        commands
    }

    /// The device works, though the driver does not wait.
    pub(crate) fn run_hook(&mut self) {
        let mut hook = self.hook.lock().unwrap();
        hook.as_mut().expect("a device that answers")();
    }

    /// Has the device carry out every command.
    pub(crate) fn obey(&mut self) -> Commands {
        self.serve(|_| Some(CTRL_OK))
    }
}

pub(crate) fn bytes(frame: &ringway_driver::net::Frame) -> Vec<u8> {
    let mut bytes = vec![0; frame.len()];
    assert_eq!(frame.read(0, &mut bytes), bytes.len());
    bytes
}

pub(crate) fn with_header(header: Header, frame: &[u8]) -> Vec<u8> {
    [header.as_bytes(), frame].concat()
}

/// A frame of so many bytes, each another one than the one before.
pub(crate) fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<_> = (0..len).map(|i| (i % 251) as u8).collect();
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame
}
