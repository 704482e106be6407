//! Free page hinting (5.5.6.5): which pages need not be migrated.
//!
//! ```text
//!            a new ID: say it                   no more pages, or another ID: say STOP
//!   ended ──────────────────────► hinting ─────────────────────────────────────────────► ended
//!     ▲                             pages ──► device ──► kept, until the device says DONE   │
//!     └────────────────────────── the same ID: nothing is said again ───────────────────────┘
//! ```
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use ringway_memory::SharedBuf;
use ringway_queue::Segment;
use ringway_spec::balloon::{CMD_ID_DONE, CMD_ID_MIN, CMD_ID_STOP, FREE_PAGE_QUEUE};

use crate::{Device, Error, Notify, PageRange, Pages, Purpose, QueueOptions, Stopped, Transport, Virtqueue};

/// Descriptors of the queue: pages and commands that are under way at most.
const QUEUE_SIZE: u16 = 64;
/// Commands among them: the end of a round, and the beginning of the next.
const COMMANDS: usize = 2;

/// What a chain is.
enum Hint {
    Command(SharedBuf),
    Pages(PageRange),
}

pub(super) struct Hints<N> {
    queue: Virtqueue<Hint, N>,
    /// Buffers for commands that the device has not.
    commands: Vec<SharedBuf>,
    /// The ID of the round, this one or the last.
    round: u32,
    is_hinting: bool,
    /// What the device was told is free.
    hinted: Vec<PageRange>,
}

impl<N: Notify> Hints<N> {
    pub(super) fn new<T: Transport<Notifier = N>>(
        device: &mut Device<T>,
        vector: Option<u16>,
    ) -> Result<Self, Error> {
        let options = QueueOptions { max_size: QUEUE_SIZE, table_entries: 0, vector };
        let queue = device.queue(FREE_PAGE_QUEUE, options)?;
        let commands = device.buffers(COMMANDS, size_of::<u32>() as u32)?;
        Ok(Self { queue, commands, round: CMD_ID_STOP, is_hinting: false, hinted: Vec::new() })
    }

    /// Does what the configuration's `wanted` command asks for.
    pub(super) fn poll(&mut self, wanted: u32, pages: &mut dyn Pages) -> Result<(), Error> {
        while let Some(used) = self.queue.reclaim()? {
            match used.owner {
                Hint::Command(buffer) => self.commands.push(buffer),
                Hint::Pages(range) => self.hinted.push(range),
            }
        }
        if self.is_hinting {
            let is_over = wanted != self.round || self.supply(pages);
            if is_over && self.say(CMD_ID_STOP) {
                self.is_hinting = false;
            }
        }
        if !self.is_hinting && wanted >= CMD_ID_MIN && wanted != self.round && self.say(wanted) {
            (self.round, self.is_hinting) = (wanted, true);
            if self.supply(pages) && self.say(CMD_ID_STOP) {
                self.is_hinting = false;
            }
        }
        if !self.is_hinting && wanted < CMD_ID_MIN {
            // The ID of the last round may come again (5.5.6.5.2).
            self.round = wanted;
        }
        if wanted == CMD_ID_DONE {
            self.hinted.drain(..).for_each(|range| pages.return_lent(range, None));
        }
        self.queue.publish();
        Ok(())
    }

    /// Hints pages, as many as there is room for; whether there are no more. A descriptor is left for the end of the round.
    fn supply(&mut self, pages: &mut dyn Pages) -> bool {
        while self.queue.queue().free() > 1 {
            let Some(range) = pages.lend(Purpose::Hint, None) else { return true };
            let room = Segment { addr: range.addr, len: range.len };
            if self.queue.add(&[], &[room], Hint::Pages(range)).is_err() {
                pages.return_lent(range, None);
                return false;
            }
        }
        false
    }

    /// Says this command; false if the device has yet to take those from before.
    fn say(&mut self, command: u32) -> bool {
        let Some(mut buffer) = self.commands.pop() else { return false };
        buffer.write(&command.to_le_bytes());
        let said = Segment::from(&buffer);
        match self.queue.add(&[said], &[], Hint::Command(buffer)) {
            Ok(()) => true,
            Err(full) => {
                self.commands.extend(full.owner.into_command());
                false
            }
        }
    }

    /// What the device was told is free, of a device that was stopped.
    pub(super) fn retire<T>(self, stopped: &Stopped<T>) -> impl Iterator<Item = PageRange> {
        let under_way = self.queue.retire(stopped).into_iter().filter_map(|hint| match hint {
            Hint::Pages(range) => Some(range),
            Hint::Command(_) => None,
        });
        self.hinted.into_iter().chain(under_way)
    }

    pub(super) fn arm(&mut self) -> bool {
        self.queue.arm()
    }
}

impl Hint {
    fn into_command(self) -> Option<SharedBuf> {
        match self {
            Self::Command(buffer) => Some(buffer),
            Self::Pages(_) => None,
        }
    }
}
