//! What wakes a thread: kicks, uplinks, the other threads.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// Another thread has something to say.
    Wake,
    /// The transmit ring at this place was kicked.
    Tx(usize),
    /// A receive ring that is cared for was kicked.
    Care,
    /// The uplink at this place can be read.
    Uplink(usize),
    /// The control queue of this port was kicked.
    Command(usize),
}

impl Token {
    fn encode(self) -> epoll::EventData {
        let (kind, value) = match self {
            Self::Wake => (0, 0),
            Self::Tx(place) => (1, place),
            Self::Care => (2, 0),
            Self::Uplink(place) => (3, place),
            Self::Command(port) => (4, port),
        };
        epoll::EventData::new_u64(kind << 32 | value as u64)
    }

    fn decode(data: epoll::EventData) -> Self {
        let value = data.u64() as u32 as usize;
        match data.u64() >> 32 {
            1 => Self::Tx(value),
            2 => Self::Care,
            3 => Self::Uplink(value),
            4 => Self::Command(value),
            _ => Self::Wake,
        }
    }
}

/// Watches for the moments at which `fd` becomes readable. What is readable need not be read: a further kick
/// is a further moment.
pub(crate) fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: Token) -> rustix::io::Result<()> {
    epoll::add(epoll, fd, token.encode(), epoll::EventFlags::IN | epoll::EventFlags::ET)
}

/// How many events one call brings; others come with the next.
const EVENTS: usize = 64;

/// What has happened and was not noted yet.
pub(crate) struct Wakes {
    events: [epoll::Event; EVENTS],
    count: usize,
    is_fresh: bool,
}

impl Default for Wakes {
    fn default() -> Self {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        Self { events: [none; EVENTS], count: 0, is_fresh: false }
    }
}

impl Wakes {
    /// Waits until something happens. What happened before was taken.
    pub(crate) fn wait(&mut self, epoll: &OwnedFd, limit: Option<&Timespec>) {
        self.is_fresh = true;
        self.count = match epoll::wait(epoll, &mut self.events, limit) {
            Ok(count) => count,
            // A signal; whatever is ready is so the next time.
            Err(Errno::INTR) => 0,
            Err(errno) => panic!("epoll_wait on our own epoll: {errno}"),
        };
    }

    /// Whether it has waited since it was looked at.
    pub(crate) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// Takes what has happened.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Token> {
        self.is_fresh = false;
        let count = std::mem::take(&mut self.count);
        self.events[..count].iter().map(|event| Token::decode(event.data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        for token in [Token::Wake, Token::Tx(7), Token::Care, Token::Uplink(1), Token::Command(999)] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
