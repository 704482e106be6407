//! The cases, by chapter.

mod blk;
mod config;
mod hostile;
mod inflight;
mod log;
mod memory;
mod messages;
mod migration;
mod net;
mod notifications;
mod reply_ack;
mod rings;
mod states;
mod status;
mod translation;
mod vrings;

use crate::case::Case;

/// Cases about one thing.
pub struct Chapter {
    /// What it is about.
    pub name: &'static str,
    /// Its cases, in the order in which they are tried.
    pub cases: &'static [Case],
}

/// All cases, the hostile ones last.
pub fn chapters() -> &'static [Chapter] {
    const ALL: &[Chapter] = &[
        Chapter { name: "messages", cases: messages::CASES },
        Chapter { name: "answers", cases: reply_ack::CASES },
        Chapter { name: "memory", cases: memory::CASES },
        Chapter { name: "vrings", cases: vrings::CASES },
        Chapter { name: "ring states", cases: states::CASES },
        Chapter { name: "rings", cases: rings::CASES },
        Chapter { name: "notifications", cases: notifications::CASES },
        Chapter { name: "configuration", cases: config::CASES },
        Chapter { name: "network device", cases: net::CASES },
        Chapter { name: "block device", cases: blk::CASES },
        Chapter { name: "status and reset", cases: status::CASES },
        Chapter { name: "in-flight region", cases: inflight::CASES },
        Chapter { name: "log", cases: log::CASES },
        Chapter { name: "IOMMU", cases: translation::CASES },
        Chapter { name: "migration", cases: migration::CASES },
        Chapter { name: "hostile", cases: hostile::CASES },
    ];
    ALL
}
