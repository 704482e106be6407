//! What block devices alone are told: requests of every kind, in chains of every shape.
//!
//! The disk may hold something. What a case overwrites it puts back, and it touches the middle of the disk only, where a back-end
//! that is stopped half-way loses least.

use ringway_queue::{ResumeState, Segment};
use ringway_spec::blk::{
    self, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_MQ, F_RO, F_SECURE_ERASE, F_WRITE_ZEROES, F_ZONED,
    RequestHeader, S_IOERR, S_OK, S_UNSUPP, SECTOR_SIZE, SEGMENT_F_UNMAP, T_DISCARD, T_FLUSH, T_GET_ID, T_IN,
    T_OUT, T_SECURE_ERASE, T_WRITE_ZEROES, T_ZONES,
};
use ringway_spec::feature::{RING_INDIRECT_DESC, RING_PACKED};
use ringway_vhost::message::{Request, protocol_feature as pf};
use zerocopy::{FromZeros, IntoBytes};

use super::rings::lend_tables;
use crate::case::{Case, Seen, Verdict, expect, fail, skip, trouble};
use crate::context::Context;
use crate::device::Device;
use crate::guest::Guest;
use crate::rig::{Lent, Rig, SIZE};
use crate::session::Session;

const BLK: &[Device] = &[Device::Blk];
/// Offset, size and flags before the bytes of the configuration.
const HEAD: usize = 12;
const HEADER_LEN: u32 = 16;
/// Fields that have been there for long.
const CONFIG_LEN: usize = 60;
/// The largest block that cases can do with.
const BLOCK_MAX: u32 = 4096;
/// A status that no device writes.
const NO_STATUS: u8 = 0xa5;

pub(super) const CASES: &[Case] = &[
    Case::must(
        "blk-cache-offer",
        &["DEV-BLK-init-01"],
        "a device that offers CONFIG_WCE offers FLUSH",
        cache_offer,
    )
    .of(BLK),
    Case::must("blk-padding", &["DEV-BLK-init-03"], "the configuration's padding is 0", padding)
        .with_protocol(pf::CONFIG)
        .of(BLK),
    Case::must(
        "blk-writeback-without-flush",
        &["DEV-BLK-init-02"],
        "with CONFIG_WCE and without FLUSH the cache is off at first",
        writeback_without_flush,
    )
    .with_features(F_CONFIG_WCE)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-writeback",
        &["DRV-BLK-op-12", "VU-BE-set-config-00"],
        "the driver turns the cache off and on, and reads that it did",
        writeback,
    )
    .with_features(F_CONFIG_WCE | F_FLUSH)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-layouts-split",
        &["DEV-SPLIT-message-framing-01"],
        "what was written is read, however header, data and status are laid out",
        |c| layouts(c, 0),
    )
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-layouts-packed",
        &["DEV-SPLIT-message-framing-01", "DEV-PACKED-scatter-gather-support-01"],
        "the same in a packed ring",
        |c| layouts(c, RING_PACKED),
    )
    .with_features(RING_PACKED)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-layouts-indirect",
        &["DEV-SPLIT-indirect-descriptors-02"],
        "the same in indirect tables",
        |c| layouts(c, RING_INDIRECT_DESC),
    )
    .with_features(RING_INDIRECT_DESC)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-used-length",
        &["DEV-SPLIT-used-ring-02"],
        "a read writes its data and its status, and says so",
        used_length,
    )
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-second-queue",
        &["VU-BE-get-queue-num-00"],
        "with MQ the second queue carries out requests",
        second_queue,
    )
    .with_features(F_MQ)
    .with_protocol(pf::CONFIG | pf::MQ)
    .of(BLK),
    Case::must(
        "blk-capacity",
        &["DRV-BLK-op-02"],
        "the last block can be read; a request beyond the capacity fails",
        capacity,
    )
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-length",
        &["DRV-BLK-op-06"],
        "a request whose data is not of whole sectors fails",
        odd_length,
    )
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must("blk-read-only", &["DEV-BLK-op-03"], "a disk that can only be read fails writes", read_only)
        .with_features(F_RO)
        .with_protocol(pf::CONFIG)
        .of(BLK),
    Case::must(
        "blk-unsupported",
        &["DEV-BLK-op-16"],
        "requests that nobody knows are not supported, nor those of zones without ZONED",
        unsupported,
    )
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must("blk-get-id", &["DRV-BLK-op-08"], "the device tells its name in 20 bytes", get_id)
        .with_protocol(pf::CONFIG)
        .of(BLK),
    Case::must(
        "blk-discard",
        &["DEV-BLK-op-06"],
        "a block can be discarded, and its neighbours stay",
        discard,
    )
    .with_features(F_DISCARD)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-discard-flags",
        &["DEV-BLK-op-04", "DEV-BLK-op-05"],
        "a discard with any flag is not supported, and discards nothing",
        |c| flags(c, T_DISCARD, F_DISCARD, 0),
    )
    .with_features(F_DISCARD)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-write-zeroes",
        &["DEV-BLK-op-08"],
        "a block that was zeroed reads as zeroes, with unmap and without, and its neighbours stay",
        write_zeroes,
    )
    .with_features(F_WRITE_ZEROES)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-write-zeroes-flags",
        &["DEV-BLK-op-04"],
        "writing zeroes with an unknown flag is not supported, and zeroes nothing",
        |c| flags(c, T_WRITE_ZEROES, F_WRITE_ZEROES, SEGMENT_F_UNMAP),
    )
    .with_features(F_WRITE_ZEROES)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-secure-erase-flags",
        &["DEV-BLK-op-04"],
        "an erasure with an unknown flag is not supported, and erases nothing",
        |c| flags(c, T_SECURE_ERASE, F_SECURE_ERASE, SEGMENT_F_UNMAP),
    )
    .with_features(F_SECURE_ERASE)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::must(
        "blk-ranges-limits",
        &["DRV-BLK-op-11"],
        "zeroes beyond the capacity, or in more segments than are allowed, are not written",
        limits,
    )
    .with_features(F_WRITE_ZEROES)
    .with_protocol(pf::CONFIG)
    .of(BLK),
    Case::hostile("hostile-blk-no-status", "requests without room for a status", no_status).of(BLK),
    Case::hostile("hostile-blk-header", "requests with half a header, or none", half_header).of(BLK),
    Case::hostile("hostile-blk-directions", "data in the wrong direction", directions).of(BLK),
];

/// Into how many descriptors the parts of a request go.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Header, data and status apart.
    Parts,
    /// All that is read in one, all that is written in one.
    Whole,
    /// Into pieces of so many bytes, wherever that falls.
    Pieces(u32),
}

impl Cut {
    /// The lengths of the pieces of a part and another behind it.
    fn lengths(self, parts: [u32; 2]) -> Vec<u32> {
        let whole = parts[0] + parts[1];
        let mut lengths = match self {
            Self::Parts => parts.to_vec(),
            Self::Whole => vec![whole],
            Self::Pieces(len) => (0..whole).step_by(len as usize).map(|at| len.min(whole - at)).collect(),
        };
        lengths.retain(|len| *len > 0);
        lengths
    }
}

/// How a chain is laid out.
#[derive(Debug, Clone, Copy)]
struct Layout {
    readable: Cut,
    writable: Cut,
}

const USUAL: Layout = Layout { readable: Cut::Parts, writable: Cut::Parts };

/// Descriptors of a chain at most: more do not fit an indirect table here.
const CHAIN_MAX: usize = 128;

/// All kinds of layouts. All can be had with blocks of 512 bytes; with larger ones those that are cut finely cannot.
const LAYOUTS: [Layout; 7] = [
    USUAL,
    Layout { readable: Cut::Whole, writable: Cut::Whole },
    Layout { readable: Cut::Whole, writable: Cut::Parts },
    Layout { readable: Cut::Parts, writable: Cut::Whole },
    // The header in two, the second with the first of the data; the last of the data with the status.
    Layout { readable: Cut::Pieces(8), writable: Cut::Pieces(512) },
    Layout { readable: Cut::Pieces(10), writable: Cut::Pieces(11) },
    Layout { readable: Cut::Pieces(513), writable: Cut::Pieces(171) },
];

/// What came of a request.
struct Answer {
    status: u8,
    data: Vec<u8>,
    /// As the used entry says.
    written: u32,
}

/// A disk whose first ring runs.
struct Disk<'c> {
    rig: Rig<'c>,
    config: blk::Config,
    /// The ring that requests go to.
    ring: usize,
}

/// The configuration space, without fields that the back-end may not have.
fn config(session: &mut Session<'_>) -> Result<blk::Config, Verdict> {
    let reply = session.ask(Request::GetConfig { offset: 0, size: CONFIG_LEN as u32, flags: 0 })?;
    let mut config = blk::Config::new_zeroed();
    let bytes = reply.payload.get(HEAD..).filter(|bytes| bytes.len() == CONFIG_LEN);
    let bytes = bytes.ok_or_else(|| {
        fail(
            format!("{CONFIG_LEN} bytes of configuration"),
            format!("a payload of {} bytes", reply.payload.len()),
        )
    })?;
    config.as_mut_bytes()[..CONFIG_LEN].copy_from_slice(bytes);
    Ok(config)
}

impl<'c> Disk<'c> {
    /// A disk with the features that are wanted and offered.
    fn open(context: &'c Context, features: u64) -> Result<Self, Verdict> {
        let mut rig = context.rig(features | F_FLUSH | F_RO | blk::F_BLK_SIZE, 0)?;
        if features & RING_INDIRECT_DESC != 0 {
            lend_tables(&mut rig, 0, 128)?;
        }
        let config = config(&mut rig.session)?;
        rig.start_all()?;
        Ok(Self { rig, config, ring: 0 })
    }

    /// Bytes of a block.
    fn block(&self) -> u32 {
        let is_said = self.rig.session.features & blk::F_BLK_SIZE != 0;
        if is_said { self.config.blk_size.get().max(SECTOR_SIZE) } else { SECTOR_SIZE }
    }

    /// Sectors of a block.
    fn step(&self) -> u64 {
        (self.block() / SECTOR_SIZE).into()
    }

    /// Three blocks in the middle of the disk: the first one's sector.
    fn middle(&self) -> Result<u64, Verdict> {
        let blocks = self.config.capacity.get() / self.step();
        if blocks < 8 || self.block() > BLOCK_MAX {
            return Err(skip("the disk is too small, or its blocks are too large"));
        }
        Ok(blocks / 2 * self.step())
    }

    /// Makes a request and waits for its end.
    fn request(&mut self, layout: Layout, header: &[u8], data: &[u8], room: u32) -> Result<Answer, Verdict> {
        let Self { rig, ring, .. } = self;
        let readable = [header, data].concat();
        let (from, to) = (rig.guest.buffer(readable.len() as u64), rig.guest.buffer(u64::from(room) + 1));
        rig.guest.write(from, &readable)?;
        rig.guest.write(to, &vec![NO_STATUS; room as usize + 1])?;
        let segments = |mut at: u64, lengths: Vec<u32>| -> Vec<Segment> {
            let place = |len: u32| {
                let segment = Segment { addr: Guest::gpa(at), len };
                at += u64::from(len);
                segment
            };
            lengths.into_iter().map(place).collect()
        };
        let readable = segments(from, layout.readable.lengths([header.len() as u32, data.len() as u32]));
        let writable = segments(to, layout.writable.lengths([room, 1]));
        let vring = &mut rig.vrings[*ring];
        let added = vring.queue.add(&readable, &writable, Lent { writable: vec![(to, room + 1)] });
        added.map_err(|refused| trouble("add a chain", refused.error))?;
        let _ = vring.queue.publish();
        let _ = vring.kick.signal();
        rig.session.context.note_sent("a request");
        let used = rig.used_of(*ring, 1)?;
        let mut data = vec![0; room as usize + 1];
        rig.guest.read_to(to, &mut data)?;
        let status = data.pop().unwrap_or(NO_STATUS);
        Ok(Answer { status, data, written: used[0].1 })
    }

    /// A request of a kind that has this sector and this data, in the usual layout; its status.
    fn status(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> Result<u8, Verdict> {
        Ok(self.request(USUAL, &header(kind, sector), data, room)?.status)
    }

    fn read(&mut self, sector: u64, len: u32) -> Result<Vec<u8>, Verdict> {
        let answer = self.request(USUAL, &header(T_IN, sector), &[], len)?;
        is_status(answer.status, S_OK, "a read")?;
        Ok(answer.data)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), Verdict> {
        let status = self.status(T_OUT, sector, data, 0)?;
        is_status(status, S_OK, "a write")
    }

    /// Three blocks with a pattern, for `what`, which is told where the middle one is; then what was there before.
    fn with_pattern(
        &mut self,
        what: impl FnOnce(&mut Self, u64, &[u8]) -> Result<(), Verdict>,
    ) -> Result<(), Verdict> {
        if self.rig.session.features & F_RO != 0 {
            return Err(skip("the disk can only be read"));
        }
        let (first, len) = (self.middle()?, 3 * self.block());
        let before = self.read(first, len)?;
        let pattern: Vec<_> = (0..len).map(|at| (at % 251) as u8 + 1).collect();
        let result = self.write(first, &pattern).and_then(|()| what(self, first + self.step(), &pattern));
        let restored = self.write(first, &before);
        result.and(restored)
    }

    /// Whether the three blocks around `sector` hold this.
    fn holds(&mut self, sector: u64, due: &[u8], what: &str) -> Result<(), Verdict> {
        let found = self.read(sector - self.step(), due.len() as u32)?;
        let differs = found.iter().zip(due).position(|(found, due)| found != due);
        expect(differs.is_none(), what, || format!("byte {} differs", differs.unwrap_or(0)))
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    RequestHeader { kind: kind.into(), reserved: 0.into(), sector: sector.into() }.as_bytes().to_vec()
}

fn segment(sector: u64, sectors: u64, flags: u32) -> Vec<u8> {
    let num_sectors = (sectors as u32).into();
    blk::Segment { sector: sector.into(), num_sectors, flags: flags.into() }.as_bytes().to_vec()
}

fn is_status(status: u8, due: u8, what: &str) -> Result<(), Verdict> {
    expect(status == due, &format!("{what} ends with status {due}"), || format!("status {status:#x}"))
}

/// Any end but success.
fn is_failed(status: u8, what: &str) -> Result<(), Verdict> {
    let is_failed = matches!(status, S_IOERR | S_UNSUPP);
    expect(is_failed, &format!("{what} fails, with status 1 or 2"), || format!("status {status:#x}"))
}

fn cache_offer(context: &Context) -> Seen {
    let (cache, flush) = (context.has_features(F_CONFIG_WCE), context.has_features(F_FLUSH));
    expect(!cache || flush, "FLUSH", || "CONFIG_WCE alone".into())?;
    Ok(format!("CONFIG_WCE {cache}, FLUSH {flush}"))
}

fn padding(context: &Context) -> Seen {
    let config = config(&mut context.negotiate(0, pf::CONFIG)?)?;
    let is_zero = config.unused0 == 0 && config.unused1 == [0; 3];
    expect(is_zero, "zeroes", || format!("{:#x}, {:x?}", config.unused0, config.unused1))?;
    Ok("zeroes".into())
}

fn writeback_without_flush(context: &Context) -> Seen {
    let mut session = context.negotiate(F_CONFIG_WCE, pf::CONFIG)?;
    session.barrier()?;
    let mode = config(&mut session)?.writeback;
    expect(mode == 0, "writeback 0", || mode.to_string())?;
    Ok("off".into())
}

fn writeback(context: &Context) -> Seen {
    let mut session = context.negotiate(F_CONFIG_WCE | F_FLUSH, pf::CONFIG)?;
    let before = config(&mut session)?.writeback;
    let offset = blk::CONFIG_WRITEBACK as u32;
    for mode in [0, 1, before] {
        session.set(Request::SetConfig { offset, flags: 0, bytes: vec![mode] })?;
        session.barrier()?;
        let found = config(&mut session)?.writeback;
        expect(found == mode, &format!("writeback {mode}"), || found.to_string())?;
    }
    Ok(format!("{before} at first"))
}

fn layouts(context: &Context, features: u64) -> Seen {
    let mut disk = Disk::open(context, features)?;
    let block = disk.block();
    let fits = |layout: &Layout| {
        let readable = layout.readable.lengths([HEADER_LEN, block]).len();
        readable.max(layout.writable.lengths([block, 1]).len()) < CHAIN_MAX
    };
    let layouts: Vec<_> = LAYOUTS.into_iter().filter(fits).collect();
    disk.with_pattern(|disk, sector, _| {
        for (i, &layout) in layouts.iter().enumerate() {
            let data: Vec<_> =
                (0..block).map(|at| (at as u8).wrapping_mul(3).wrapping_add(i as u8)).collect();
            let answer = disk.request(layout, &header(T_OUT, sector), &data, 0)?;
            is_status(answer.status, S_OK, &format!("a write in {layout:?}"))?;
            if context.has_features(F_FLUSH) {
                let answer = disk.request(layout, &header(T_FLUSH, 0), &[], 0)?;
                is_status(answer.status, S_OK, &format!("a flush in {layout:?}"))?;
            }
            let answer = disk.request(layout, &header(T_IN, sector), &[], block)?;
            is_status(answer.status, S_OK, &format!("a read in {layout:?}"))?;
            expect(answer.data == data, &format!("what was written, in {layout:?}"), || {
                "something else".into()
            })?;
        }
        Ok(())
    })?;
    Ok(format!("{} layouts", layouts.len()))
}

fn used_length(context: &Context) -> Seen {
    let mut disk = Disk::open(context, 0)?;
    let (sector, len) = (disk.middle()?, disk.block());
    let read = disk.request(USUAL, &header(T_IN, sector), &[], len)?;
    expect(read.written == len + 1, &format!("{} bytes", len + 1), || read.written.to_string())?;
    Ok(format!("{} bytes", read.written))
}

fn second_queue(context: &Context) -> Seen {
    let mut rig = context.rig(F_MQ | F_RO | blk::F_BLK_SIZE, 0)?;
    let config = config(&mut rig.session)?;
    if config.num_queues.get() < 2 || context.offer.queue_num.is_some_and(|num| num < 2) {
        return Err(skip("it has one queue"));
    }
    let second = rig.vring(1, SIZE, ResumeState::start(rig.session.features))?;
    rig.vrings.push(second);
    rig.start_all()?;
    let mut disk = Disk { rig, config, ring: 1 };
    let (sector, block) = (disk.middle()?, disk.block());
    let data = disk.read(sector, block)?;
    disk.ring = 0;
    let same = disk.read(sector, block)?;
    expect(data == same, "the same disk through both queues", || "different data".into())?;
    Ok("a read through each".into())
}

fn capacity(context: &Context) -> Seen {
    let mut disk = Disk::open(context, 0)?;
    let (capacity, block, step) = (disk.config.capacity.get(), disk.block(), disk.step());
    let last = (capacity / step).checked_sub(1).ok_or_else(|| skip("the disk is empty"))? * step;
    disk.read(last, block)?;
    for (sector, len) in [
        (last, 2 * block),
        (last + step, block),
        (1 << 55, block),
        (u64::MAX / u64::from(block) * step, block),
        (u64::MAX, block),
    ] {
        let status = disk.status(T_IN, sector, &[], len)?;
        is_status(status, S_IOERR, &format!("a read of {len} bytes from sector {sector} on"))?;
    }
    disk.read(last, block)?;
    Ok(format!("{capacity} sectors"))
}

fn odd_length(context: &Context) -> Seen {
    let mut disk = Disk::open(context, 0)?;
    let (sector, block) = (disk.middle()?, disk.block());
    for len in [1, 511, 513] {
        is_failed(disk.status(T_IN, sector, &[], len)?, &format!("a read of {len} bytes"))?;
    }
    disk.read(sector, block)?;
    Ok("three lengths".into())
}

fn read_only(context: &Context) -> Seen {
    let mut disk = Disk::open(context, 0)?;
    let (sector, block) = (disk.middle()?, disk.block());
    let before = disk.read(sector, block)?;
    let other: Vec<_> = before.iter().map(|byte| !byte).collect();
    is_status(disk.status(T_OUT, sector, &other, 0)?, S_IOERR, "a write")?;
    expect(disk.read(sector, block)? == before, "the data as it was", || "other data".into())?;
    Ok("status 1".into())
}

fn unsupported(context: &Context) -> Seen {
    let mut disk = Disk::open(context, 0)?;
    let zones = if context.has_features(F_ZONED) { &[][..] } else { &T_ZONES };
    for &kind in zones.iter().chain(&[9, 0x7777]) {
        is_status(disk.status(kind, 0, &[], SECTOR_SIZE)?, S_UNSUPP, &format!("a request of type {kind}"))?;
    }
    Ok(format!("{} types", zones.len() + 2))
}

fn get_id(context: &Context) -> Seen {
    let mut disk = Disk::open(context, 0)?;
    let answer = disk.request(USUAL, &header(T_GET_ID, 0), &[], blk::ID_LEN as u32)?;
    is_status(answer.status, S_OK, "the question for the name")?;
    let name: Vec<_> = answer.data.iter().copied().take_while(|byte| *byte != 0).collect();
    Ok(format!("{:?}", String::from_utf8_lossy(&name)))
}

fn discard(context: &Context) -> Seen {
    let mut disk = Disk::open(context, F_DISCARD)?;
    disk.with_pattern(|disk, sector, pattern| {
        let (step, block) = (disk.step(), disk.block() as usize);
        is_status(disk.status(T_DISCARD, 0, &segment(sector, step, 0), 0)?, S_OK, "a discard")?;
        let found = disk.read(sector - step, pattern.len() as u32)?;
        let neighbours = [&found[..block], &found[2 * block..]];
        let due = [&pattern[..block], &pattern[2 * block..]];
        expect(neighbours == due, "the neighbours as they were", || "other data".into())
    })?;
    Ok("one block".into())
}

fn write_zeroes(context: &Context) -> Seen {
    for flags in [0, SEGMENT_F_UNMAP] {
        let mut disk = Disk::open(context, F_WRITE_ZEROES)?;
        disk.with_pattern(|disk, sector, pattern| {
            let (step, block) = (disk.step(), disk.block() as usize);
            let status = disk.status(T_WRITE_ZEROES, 0, &segment(sector, step, flags), 0)?;
            is_status(status, S_OK, &format!("writing zeroes with flags {flags}"))?;
            let mut due = pattern.to_vec();
            due[block..2 * block].fill(0);
            disk.holds(sector, &due, "zeroes in the middle block, and nowhere else")
        })?;
    }
    Ok("with unmap and without".into())
}

fn flags(context: &Context, kind: u32, feature: u64, known: u32) -> Seen {
    let mut disk = Disk::open(context, feature)?;
    disk.with_pattern(|disk, sector, pattern| {
        for flags in [1, 2, 1 << 31, u32::MAX].into_iter().filter(|flags| flags & !known != 0) {
            let status = disk.status(kind, 0, &segment(sector, disk.step(), flags), 0)?;
            is_status(status, S_UNSUPP, &format!("flags {flags:#x}"))?;
        }
        disk.holds(sector, pattern, "the data as it was")
    })?;
    Ok("not supported".into())
}

fn limits(context: &Context) -> Seen {
    let mut disk = Disk::open(context, F_WRITE_ZEROES)?;
    disk.with_pattern(|disk, sector, pattern| {
        let (step, capacity) = (disk.step(), disk.config.capacity.get());
        let good = segment(sector, step, 0);
        let too_many = good.repeat(disk.config.max_write_zeroes_seg.get().clamp(1, 1000) as usize + 1);
        for (data, what) in [
            (segment(capacity / step * step, step, 0), "zeroes beyond the capacity"),
            (segment(u64::MAX - step + 1, step, 0), "zeroes at the end of all numbers"),
            (good[..15].to_vec(), "half a segment"),
            (too_many, "one segment more than allowed"),
        ] {
            is_failed(disk.status(T_WRITE_ZEROES, 0, &data, 0)?, what)?;
        }
        disk.holds(sector, pattern, "the data as it was")
    })?;
    Ok("four requests".into())
}

/// Makes a chain available that no driver should make; what becomes of it is the back-end's affair.
fn send(context: &Context, readable: &[u8], writable: &[u32]) -> Result<(), Verdict> {
    let mut rig = context.running(0, 0)?;
    let from = rig.guest.buffer(readable.len() as u64);
    rig.guest.write(from, readable)?;
    let readable = Segment { addr: Guest::gpa(from), len: readable.len() as u32 };
    let place = |&len: &u32| Segment { addr: Guest::gpa(rig.guest.buffer(len.into())), len };
    let writable: Vec<_> = writable.iter().map(place).collect();
    let readable = if readable.len == 0 { &[][..] } else { &[readable] };
    rig.add(readable, &writable, Lent { writable: Vec::new() })?;
    rig.publish();
    rig.kick();
    let _ = rig.used(1);
    Ok(())
}

fn no_status(context: &Context) -> Seen {
    send(context, &header(T_IN, 0), &[])?;
    send(context, &header(T_GET_ID, 0), &[])?;
    send(context, &header(T_FLUSH, 0), &[])?;
    Ok("three requests".into())
}

fn half_header(context: &Context) -> Seen {
    for len in [0, 1, 15] {
        send(context, &header(T_IN, 0)[..len], &[SECTOR_SIZE, 1])?;
    }
    Ok("three requests".into())
}

fn directions(context: &Context) -> Seen {
    send(context, &header(T_OUT, 0), &[SECTOR_SIZE, 1])?;
    send(context, &[&header(T_IN, 0)[..], &[0; 512]].concat(), &[1])?;
    send(context, &header(T_DISCARD, 0), &[16, 1])?;
    Ok("three requests".into())
}
