//! The devices of this process: what each does with its queues, in as few lines as it takes.
//!
//! What a device is to its driver (features, configuration, what may be asked for) is `ringway-device`'s; here is only
//! where bytes come from and go to.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ringway_device::balloon::{self, BalloonDevice};
use ringway_device::blk::{self, BlkDevice, HEADER_LEN, Request, Rules, Status};
use ringway_device::console::{self, ConsoleDevice, PortSettings, Role};
use ringway_device::entropy::EntropyDevice;
use ringway_device::net::{self, NetDevice, Offloads};
use ringway_device::status::Negotiation;
use ringway_memory::{GuestSlice, MemoryTable};
use ringway_queue::{Burst, Chain, DeviceQueue, QueueError};
use ringway_spec::feature;
use ringway_spec::net::{F_MAC, Header};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::IntoBytes;

use crate::window::{Served, Work};

/// The most chains that are served at once.
const BURST: usize = 32;
/// How much of a disk's data is moved at once.
const PIECE: usize = 16 << 10;
/// The longest frame, with a VLAN tag.
const FRAME_MAX: usize = 1518;
/// The two queues of a network device that is served here.
const RECEIVE: u16 = 0;

/// Whether a read returns at once.
fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Random bytes of the kernel.
pub(crate) struct Entropy(File);

impl Entropy {
    pub(crate) fn open() -> Result<(EntropyDevice, Self)> {
        Ok((EntropyDevice::new(false), Self(File::open("/dev/urandom").context("/dev/urandom")?)))
    }
}

impl Work for Entropy {
    type Model = EntropyDevice;

    fn serve(
        &mut self,
        model: &mut EntropyDevice,
        _index: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Served, QueueError> {
        let mut total = 0;
        let call = model.serve(queue, burst, &mut |to| {
            let n = self.0.read(to).unwrap_or(0);
            total += n;
            n
        })?;
        Ok(Served { call, more: total > 0 })
    }
}

/// A console on two files, such as standard input and output.
pub(crate) struct Console {
    input: File,
    output: File,
}

impl Console {
    pub(crate) fn new(input: File, output: File) -> Result<(ConsoleDevice, Self)> {
        let settings = console::Settings {
            ports: vec![PortSettings { name: None, is_console: true }],
            max_ports: 1,
            size: None,
            iommu: false,
        };
        Ok((ConsoleDevice::new(settings)?, Self { input, output }))
    }
}

impl Work for Console {
    type Model = ConsoleDevice;

    fn serve(
        &mut self,
        model: &mut ConsoleDevice,
        index: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Served, QueueError> {
        match model.role(index) {
            Some(Role::Transmit(port)) => {
                // A console that nobody reads any more loses what is written to it.
                let call = model.transmit(port, queue, burst, &mut |text| {
                    let _ = self.output.write_all(text);
                    text.len()
                })?;
                Ok(Served { call, more: true })
            }
            Some(Role::Receive(port)) => {
                let mut more = false;
                let call = model.receive(port, queue, burst, &mut |to| {
                    let n =
                        if is_readable(self.input.as_fd()) { self.input.read(to).unwrap_or(0) } else { 0 };
                    more |= n > 0;
                    n
                })?;
                Ok(Served { call, more })
            }
            _ => Ok(Served { call: false, more: false }),
        }
    }

    fn source(&self) -> Option<(BorrowedFd<'_>, u16)> {
        Some((self.input.as_fd(), 0))
    }
}

/// A balloon: what goes into it goes back to the host.
pub(crate) struct Balloon(Arc<MemoryTable>);

impl Balloon {
    /// A balloon that is to have `pages` pages.
    pub(crate) fn new(table: Arc<MemoryTable>, pages: u32) -> (BalloonDevice, Self) {
        let settings = balloon::Settings {
            must_tell_host: false,
            statistics: false,
            deflate_on_oom: true,
            free_page_hinting: false,
            page_poison: false,
            page_reporting: true,
        };
        let mut model = BalloonDevice::new(settings);
        model.set_target(pages);
        (model, Self(table))
    }
}

impl Work for Balloon {
    type Model = BalloonDevice;

    fn serve(
        &mut self,
        model: &mut BalloonDevice,
        index: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Served, QueueError> {
        // A page that the host cannot take stays the guest's, which is no loss to it.
        let mut give_back = |slice: GuestSlice<'_>| drop(ringway_memory::io::remove(slice));
        let call = match model.role(index) {
            Some(balloon::Role::Inflate) => model.inflate(queue, burst, &mut |pages| {
                self.0.slices(pages.addr, pages.len).for_each(&mut give_back);
            })?,
            // A page that is taken out comes back as it is touched.
            Some(balloon::Role::Deflate) => model.deflate(queue, burst, &mut |_| {})?,
            Some(balloon::Role::Reports) => model.reports(queue, burst, &mut give_back)?,
            _ => return Ok(Served { call: false, more: false }),
        };
        Ok(Served { call, more: true })
    }
}

/// A disk that is a file, read and written while its driver waits.
pub(crate) struct Disk(File);

impl Disk {
    pub(crate) fn open(path: &Path) -> Result<(BlkDevice, Self)> {
        let name = path.display();
        let file =
            File::options().read(true).write(true).open(path).with_context(|| format!("disk {name}"))?;
        let mut id = [0; 20];
        id[..7].copy_from_slice(b"ringway");
        let settings = blk::Settings {
            size: file.metadata()?.len(),
            block_size: 512,
            physical_block_exp: 0,
            alignment_offset: 0,
            min_io_size: 0,
            opt_io_size: 0,
            read_only: false,
            queues: 1,
            writeback: true,
            flush: true,
            discard: None,
            write_zeroes: None,
            zeroes_may_unmap: false,
            secure_erase: None,
            id,
            iommu: false,
        };
        Ok((BlkDevice::new(settings).with_context(|| format!("disk {name}"))?, Self(file)))
    }

    /// Carries out a request; returns how much was written to the guest's memory, of which the last byte is the status.
    fn request(&self, rules: &Rules, chain: &Chain<'_>) -> u32 {
        let (readable, writable) = (chain.readable(), chain.writable());
        // Without room for a status nothing can be answered.
        let Some(room) = writable.len().checked_sub(1) else { return 0 };
        let header = readable.read_array::<HEADER_LEN>();
        let data = readable.advance(HEADER_LEN);
        let judged =
            header.ok_or(Status::IoError).and_then(|h| rules.judge(h, data.len() as u32, room as u32));
        let mut buffer = [0; PIECE];
        let mut written = 0;
        let done = match judged {
            Err(status) => Ok(status),
            Ok(Request::Ranges(_)) => Ok(Status::Unsupported),
            Ok(Request::Flush) => self.0.sync_data().map(|()| Status::Ok),
            Ok(Request::GetId) => {
                written = writable.write(&rules.id());
                Ok(Status::Ok)
            }
            Ok(Request::Read { offset }) => pieces(room).try_fold(Status::Ok, |ok, (at, len)| {
                self.0.read_exact_at(&mut buffer[..len], offset + at as u64)?;
                written += writable.advance(at).write(&buffer[..len]);
                io::Result::Ok(ok)
            }),
            Ok(Request::Write { offset, stable }) => pieces(data.len())
                .try_for_each(|(at, len)| {
                    data.advance(at).read(&mut buffer[..len]);
                    self.0.write_all_at(&buffer[..len], offset + at as u64)
                })
                .and_then(|()| if stable { self.0.sync_data() } else { Ok(()) })
                .map(|()| Status::Ok),
        };
        writable.advance(room).write(&[done.unwrap_or(Status::IoError).to_byte()]);
        // Used bytes are counted from the start: with a status behind data that was not written, there are none.
        (if written == room { written + 1 } else { written }) as u32
    }
}

/// Where the pieces of so many bytes begin, and their lengths.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(PIECE).map(move |at| (at, PIECE.min(len - at)))
}

impl Work for Disk {
    type Model = BlkDevice;

    fn serve(
        &mut self,
        model: &mut BlkDevice,
        _index: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Served, QueueError> {
        let rules = model.rules();
        queue.take(burst, BURST)?;
        while let Some(chain) = burst.next() {
            let written = self.request(&rules, &chain);
            queue.complete(chain, written);
        }
        Ok(Served { call: queue.publish(), more: true })
    }
}

/// A network card on a datagram socket: a frame is a datagram, as for QEMU's `-netdev dgram`.
pub(crate) struct Net(UnixDatagram);

impl Net {
    /// `here` is made, `there` is where frames go to.
    pub(crate) fn open(here: &Path, there: &Path, mac: [u8; 6]) -> Result<(NetDevice, Self)> {
        let socket = UnixDatagram::bind(here).with_context(|| format!("socket {}", here.display()))?;
        socket.connect(there).with_context(|| format!("socket {}", there.display()))?;
        socket.set_nonblocking(true)?;
        let settings = net::Settings {
            mac: Some(mac),
            mtu: None,
            max_pairs: 1,
            segmentation: false,
            iommu: false,
            speed: None,
            rss: false,
            filters: false,
        };
        let mut model = NetDevice::new(settings)?;
        // Nobody here sums, merges or takes commands.
        let rings =
            feature::RING_PACKED | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC | feature::IN_ORDER;
        *model.negotiation_mut() = Negotiation::new(feature::VERSION_1 | rings | F_MAC, &[]);
        Ok((model, Self(socket)))
    }

    /// Sends what the driver gave. A frame that nobody takes is lost, as on a wire.
    fn transmit(
        &self,
        offloads: Offloads,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<bool, QueueError> {
        queue.take(burst, BURST)?;
        while let Some(chain) = burst.next() {
            let sent = chain.readable();
            let mut frame = [0; FRAME_MAX];
            let len = sent.advance(size_of::<Header>()).read(&mut frame);
            let header =
                sent.read_array().map(|bytes: [u8; size_of::<Header>()]| zerocopy::transmute!(bytes));
            if header.is_some_and(|header: Header| offloads.check_sent(header, len).is_ok()) {
                let _ = self.0.send(&frame[..len]);
            }
            queue.complete(chain, 0);
        }
        Ok(queue.publish())
    }

    /// Gives the driver what came, a frame for each chain that is there.
    fn receive(&self, queue: &mut DeviceQueue, burst: &mut Burst) -> Result<Served, QueueError> {
        let mut more = false;
        for _ in 0..BURST {
            if queue.take(burst, 1)? == 0 {
                break;
            }
            let mut frame = [0; FRAME_MAX];
            let Ok(len) = self.0.recv(&mut frame) else {
                more = false;
                queue.rewind(burst);
                break;
            };
            more = true;
            let Some(chain) = burst.next() else { break };
            let header = Header { num_buffers: 1.into(), ..Header::default() };
            let room = chain.writable();
            // Where it does not fit, it is lost, and the chain comes back with nothing.
            let mut written = 0;
            if room.len() >= size_of::<Header>() + len {
                written = room.write(header.as_bytes());
                written += room.advance(written).write(&frame[..len]);
            }
            queue.complete(chain, written as u32);
        }
        Ok(Served { call: queue.publish(), more })
    }
}

impl Work for Net {
    type Model = NetDevice;

    fn serve(
        &mut self,
        model: &mut NetDevice,
        index: u16,
        queue: &mut DeviceQueue,
        burst: &mut Burst,
    ) -> Result<Served, QueueError> {
        if index == RECEIVE {
            return self.receive(queue, burst);
        }
        Ok(Served { call: self.transmit(model.offloads(), queue, burst)?, more: true })
    }

    fn source(&self) -> Option<(BorrowedFd<'_>, u16)> {
        Some((self.0.as_fd(), RECEIVE))
    }
}
