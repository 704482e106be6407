//! The control queue (5.1.6.5): a command at a time, whose answer is waited for.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use ringway_memory::SharedBuf;
use ringway_queue::Segment;
use ringway_spec::net::{
    CTRL_ANNOUNCE, CTRL_ANNOUNCE_ACK, CTRL_ERR, CTRL_GUEST_OFFLOADS, CTRL_GUEST_OFFLOADS_SET, CTRL_MAC,
    CTRL_MAC_ADDR_SET, CTRL_MAC_TABLE_SET, CTRL_MQ, CTRL_MQ_RSS_CONFIG, CTRL_MQ_VQ_PAIRS_SET, CTRL_OK,
    CTRL_RX, CTRL_RX_ALLMULTI, CTRL_RX_ALLUNI, CTRL_RX_NOBCAST, CTRL_RX_NOMULTI, CTRL_RX_NOUNI,
    CTRL_RX_PROMISC, CTRL_VLAN, CTRL_VLAN_ADD, CTRL_VLAN_DEL, F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR,
    F_CTRL_RX, F_CTRL_RX_EXTRA, F_CTRL_VLAN, F_CTRL_VQ, F_GUEST_ANNOUNCE, F_GUEST_CSUM, F_GUEST_ECN,
    F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6, F_MQ, F_RSS,
};

use super::{Mac, Net, REQUIRES};
use crate::{Device, Error, Notify, QueueOptions, Transport, Virtqueue};

/// The longest command: a table of some 680 addresses. Who wants more takes all multicast frames.
const COMMAND_LEN: u32 = 4096;
/// The offloads of the receive side.
const GUEST_OFFLOADS: u64 =
    F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_USO4 | F_GUEST_USO6;
/// Not an answer.
const UNANSWERED: u8 = 0xff;

/// Which frames to receive beside those for the device's own address and table (5.1.6.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All frames.
    Promiscuous,
    /// All multicast frames.
    AllMulticast,
    /// All unicast frames.
    AllUnicast,
    /// No multicast frame.
    NoMulticast,
    /// No unicast frame.
    NoUnicast,
    /// No broadcast frame.
    NoBroadcast,
}

impl Mode {
    /// The command, and the feature that lets it be said.
    fn command(self) -> (u8, u64) {
        match self {
            Self::Promiscuous => (CTRL_RX_PROMISC, F_CTRL_RX),
            Self::AllMulticast => (CTRL_RX_ALLMULTI, F_CTRL_RX),
            Self::AllUnicast => (CTRL_RX_ALLUNI, F_CTRL_RX_EXTRA),
            Self::NoMulticast => (CTRL_RX_NOMULTI, F_CTRL_RX_EXTRA),
            Self::NoUnicast => (CTRL_RX_NOUNI, F_CTRL_RX_EXTRA),
            Self::NoBroadcast => (CTRL_RX_NOBCAST, F_CTRL_RX_EXTRA),
        }
    }
}

/// How a device shall choose the receive queue of a frame: by the low bits of its hash as an index of a table (5.1.6.5.7).
#[derive(Debug, Clone, Copy)]
pub struct Rss<'a> {
    /// What is hashed, of what frames: `HASH_TYPE_` bits.
    pub hash_types: u32,
    /// Numbers of pairs; a power of two of them.
    pub table: &'a [u16],
    /// The pair for frames without a hash.
    pub unclassified: u16,
    /// How many pairs are used to transmit, the first ones.
    pub transmit: u16,
    /// The key of the hash (Toeplitz).
    pub key: &'a [u8],
}

/// What a device can do of receive-side scaling (5.1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RssLimits {
    /// The longest key, in bytes.
    pub key_len: u8,
    /// The longest table, in entries.
    pub table_len: u16,
    /// What can be hashed: `HASH_TYPE_` bits, beside those that are not known.
    pub hash_types: u32,
}

/// The control queue, and memory for one command and its answer.
pub(super) struct Control<N> {
    queue: Virtqueue<[SharedBuf; 2], N>,
    /// `None` while the device has them.
    buffers: Option<[SharedBuf; 2]>,
}

impl<N: Notify> Control<N> {
    pub(super) fn new<T: Transport<Notifier = N>>(
        device: &mut Device<T>,
        index: u16,
        vector: Option<u16>,
    ) -> Result<Self, Error> {
        let mut queue = device.queue(index, QueueOptions { max_size: 2, table_entries: 0, vector })?;
        queue.suppress();
        let mut buffers = device.buffers(2, COMMAND_LEN)?.into_iter();
        let buffers = buffers.next().zip(buffers.next()).map(Into::into);
        Ok(Self { queue, buffers })
    }

    pub(super) fn into_queue(self) -> Virtqueue<[SharedBuf; 2], N> {
        self.queue
    }

    /// Has the device carry out a command, and waits for the answer.
    fn execute<T>(&mut self, device: &mut Device<T>, what: &'static str, command: &[u8]) -> Result<(), Error>
    where
        T: Transport<Notifier = N>,
    {
        // The answer to one that was given up is of no more interest.
        if let Some(late) = self.queue.reclaim()? {
            self.buffers = Some(late.owner);
        }
        let Some([mut readable, mut writable]) = self.buffers.take() else {
            return Err(Error::TimedOut { what });
        };
        if readable.write(command) < command.len() {
            self.buffers = Some([readable, writable]);
            return Err(Error::BadArgument { what });
        }
        writable.write(&[UNANSWERED]);
        let segments = [
            [Segment { len: command.len() as u32, ..Segment::from(&readable) }],
            [Segment { len: 1, ..Segment::from(&writable) }],
        ];
        if let Err(refused) = self.queue.add(&segments[0], &segments[1], [readable, writable]) {
            self.buffers = Some(refused.owner);
            return Err(refused.error.into());
        }
        self.queue.publish();
        self.answer(device, what)
    }

    fn answer<T: Transport>(&mut self, device: &mut Device<T>, what: &'static str) -> Result<(), Error> {
        let mut round = 0;
        let used = loop {
            if let Some(used) = self.queue.reclaim()? {
                break used;
            }
            if !device.wait(round) {
                // One that has failed answers nothing.
                device.check()?;
                return Err(Error::TimedOut { what });
            }
            round = round.saturating_add(1);
        };
        let mut answer = [UNANSWERED];
        if used.written > 0 {
            used.owner[1].read(&mut answer);
        }
        self.buffers = Some(used.owner);
        match answer {
            [CTRL_OK] => Ok(()),
            [CTRL_ERR] => Err(Error::Refused { what }),
            _ => Err(Error::BadAnswer { what }),
        }
    }
}

/// Commands to the device: each waits for the answer. They need a feature each, else they are
/// [`Error::NotNegotiated`]; a device that says no is [`Error::Refused`].
impl<T: Transport> Net<T> {
    /// Gives the device another address.
    pub fn set_mac(&mut self, mac: Mac) -> Result<(), Error> {
        let what = "a MAC address";
        if mac[0] & 1 != 0 {
            return Err(Error::BadArgument { what });
        }
        // The whole class belongs to `CTRL_RX` (5.1.6.5.2.2).
        self.command(F_CTRL_RX | F_CTRL_MAC_ADDR, what, CTRL_MAC, CTRL_MAC_ADDR_SET, &[&mac])?;
        self.mac = mac;
        Ok(())
    }

    /// Has the device receive frames for these addresses too, and for no others said before; beside its own, and
    /// broadcasts. It may receive more.
    pub fn set_addresses(&mut self, unicast: &[Mac], multicast: &[Mac]) -> Result<(), Error> {
        let what = "a table of addresses";
        let is_multicast = |mac: &Mac| mac[0] & 1 != 0;
        if unicast.iter().any(is_multicast) || !multicast.iter().all(is_multicast) {
            return Err(Error::BadArgument { what });
        }
        let counts = [unicast, multicast].map(|table| (table.len() as u32).to_le_bytes());
        let data = [&counts[0], unicast.as_flattened(), &counts[1], multicast.as_flattened()];
        self.command(F_CTRL_RX, what, CTRL_MAC, CTRL_MAC_TABLE_SET, &data)
    }

    /// Turns a way to receive on or off.
    pub fn set_mode(&mut self, mode: Mode, on: bool) -> Result<(), Error> {
        let (command, feature) = mode.command();
        self.command(feature, "a receive mode", CTRL_RX, command, &[&[on.into()]])
    }

    /// Has the device receive frames of a VLAN, or not.
    pub fn set_vlan(&mut self, vlan: u16, wanted: bool) -> Result<(), Error> {
        let what = "a VLAN";
        if vlan >= 4096 {
            return Err(Error::BadArgument { what });
        }
        let command = if wanted { CTRL_VLAN_ADD } else { CTRL_VLAN_DEL };
        self.command(F_CTRL_VLAN, what, CTRL_VLAN, command, &[&vlan.to_le_bytes()])
    }

    /// The driver has told its network where it is: see [`Change::announce`](super::Change::announce).
    pub fn announced(&mut self) -> Result<(), Error> {
        self.command(F_GUEST_ANNOUNCE, "an announcement", CTRL_ANNOUNCE, CTRL_ANNOUNCE_ACK, &[])
    }

    /// Has the device use so many pairs, the first ones, and chooses the receive queues by itself. Frames may be sent on these
    /// pairs only; those that come on others were on their way.
    ///
    /// # Errors
    /// Beside those of all commands [`Error::BadArgument`] for none, or more than were set up.
    pub fn set_pairs(&mut self, pairs: u16) -> Result<(), Error> {
        let what = "a number of pairs";
        if pairs == 0 || usize::from(pairs) > self.pairs.len() {
            return Err(Error::BadArgument { what });
        }
        self.use_pairs(pairs, |net| {
            net.command(F_MQ, what, CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, &[&pairs.to_le_bytes()])
        })
    }

    /// Has the device choose receive queues by a hash and a table, until [`Net::set_pairs`] is said.
    ///
    /// # Errors
    /// Beside those of all commands [`Error::BadArgument`] for what the device cannot do, or pairs that were not set up.
    pub fn set_rss(&mut self, rss: &Rss<'_>) -> Result<(), Error> {
        let Rss { hash_types, table, unclassified, transmit, key } = *rss;
        let RssLimits { key_len, table_len, hash_types: supported } = self.rss_limits;
        let is_pair = |pair: &u16| usize::from(*pair) < self.pairs.len();
        let what = "receive-side scaling";
        let is_possible = hash_types & !supported == 0
            && table.len().is_power_of_two()
            && table.len() <= table_len.into()
            && table.iter().chain([&unclassified]).all(is_pair)
            && (1..=self.pairs.len()).contains(&transmit.into())
            && key.len() <= key_len.into();
        self.need(F_RSS)?;
        if !is_possible {
            return Err(Error::BadArgument { what });
        }
        let mask = (table.len() - 1) as u16;
        let queues = [mask, unclassified].into_iter().chain(table.iter().copied()).chain([transmit]);
        let queues: Vec<u8> = queues.flat_map(u16::to_le_bytes).collect();
        let data = [&hash_types.to_le_bytes(), &queues[..], &[key.len() as u8], key];
        self.use_pairs(transmit, |net| net.command(F_RSS, what, CTRL_MQ, CTRL_MQ_RSS_CONFIG, &data))
    }

    /// Carries out a command after which so many pairs are used to transmit. None of those left out is used once the device
    /// may have seen it (5.1.6.5.6.1).
    fn use_pairs(
        &mut self,
        pairs: u16,
        command: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let before = self.active;
        self.activate(pairs.min(before));
        let result = command(self);
        match result {
            Ok(()) => self.activate(pairs),
            Err(Error::Refused { .. } | Error::NotNegotiated { .. }) => self.activate(before),
            // It may have done so: only what is used either way is used.
            Err(_) => {}
        }
        result
    }

    /// Of the receive side's offloads that were negotiated, has the device use these: `GUEST_` feature bits, none without
    /// what it requires. Frames that are on their way may still have others.
    pub fn set_guest_offloads(&mut self, offloads: u64) -> Result<(), Error> {
        let what = "offloads";
        let lacks = |&(feature, other): &(u64, u64)| offloads & feature != 0 && offloads & other == 0;
        if offloads & !(GUEST_OFFLOADS & self.features()) != 0 || REQUIRES.iter().any(lacks) {
            return Err(Error::BadArgument { what });
        }
        let data = offloads.to_le_bytes();
        self.command(F_CTRL_GUEST_OFFLOADS, what, CTRL_GUEST_OFFLOADS, CTRL_GUEST_OFFLOADS_SET, &[&data])
    }

    fn command(
        &mut self,
        features: u64,
        what: &'static str,
        class: u8,
        command: u8,
        data: &[&[u8]],
    ) -> Result<(), Error> {
        self.need(features | F_CTRL_VQ)?;
        let Some(control) = &mut self.control else {
            return Err(Error::NotNegotiated { feature: F_CTRL_VQ });
        };
        let command = [&[&[class, command][..]], data].concat().concat();
        control.execute(&mut self.device, what, &command)
    }

    /// These features were negotiated.
    fn need(&self, features: u64) -> Result<(), Error> {
        let missing = features & !self.features();
        if missing == 0 { Ok(()) } else { Err(Error::NotNegotiated { feature: missing }) }
    }

    /// Frames are sent on the first pairs only.
    pub(super) fn activate(&mut self, pairs: u16) {
        self.active = pairs;
        for (pair, index) in self.pairs.iter_mut().zip(0..) {
            pair.tx.is_active = index < pairs;
        }
    }
}
