//! What is said on the wire, without a socket: the handshake, requests, replies (`doc/proto.md` of the NBD project).
//!
//! ```text
//!   Greeting ─► STARTTLS ─► (TLS) ─► GO ─► infos … ─► Done          fixed newstyle
//!            └────────────────────►   └─unknown option─► EXPORT_NAME ─► Done
//!            └─not fixed───────────────────────────────► EXPORT_NAME ─► Done
//! ```
//!
//! A handshake says how many bytes it wants to hear next, and is given exactly these: nothing that came in the clear can be
//! taken for something that came by TLS. Not here: the old style, whose servers cannot refuse; structured replies.

use std::{fmt, io};

use bitflags::bitflags;

/// Length of a request's header.
pub(super) const REQUEST_LEN: usize = 28;
/// Length of a simple reply's header.
pub(super) const REPLY_LEN: usize = 16;
/// No payload is longer ("Size constraints"): a server may take one for an attack.
const MAX_PAYLOAD: u32 = 32 << 20;
/// The most bytes in reply to an option: a string, and something around it.
const MAX_OPTION_REPLY: u32 = 8192;
/// The most replies to an option before its last one.
const MAX_INFOS: u32 = 64;
/// No size or offset is larger, as in the kernel's calls.
const MAX_SIZE: u64 = i64::MAX as u64;

const INIT_MAGIC: [u8; 8] = *b"NBDMAGIC";
const NEWSTYLE_MAGIC: [u8; 8] = *b"IHAVEOPT";
const OLDSTYLE_MAGIC: [u8; 8] = 0x0000_4202_8186_1253_u64.to_be_bytes();
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

const GREETING_LEN: usize = 18;
const OPTION_REPLY_LEN: usize = 20;
/// The reply to `EXPORT_NAME`, and the zeroes behind it if they were not declined.
const EXPORT_LEN: usize = 10;
const ZEROES_LEN: usize = 124;

/// Flags of the greeting, and the client's answer.
const FIXED_NEWSTYLE: u16 = 1 << 0;
const NO_ZEROES: u16 = 1 << 1;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_STARTTLS: u32 = 5;
const OPT_GO: u32 = 7;

const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_FLAG_ERROR: u32 = 1 << 31;
const REP_ERR_UNSUP: u32 = REP_FLAG_ERROR + 1;
const REP_ERR_TLS_REQD: u32 = REP_FLAG_ERROR + 5;
const REP_ERR_UNKNOWN: u32 = REP_FLAG_ERROR + 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const ESHUTDOWN: u32 = 108;

bitflags! {
    /// What a server can do with an export ("Transmission flags").
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Flags: u16 {
        const HAS_FLAGS = 1 << 0;
        const READ_ONLY = 1 << 1;
        const SEND_FLUSH = 1 << 2;
        const SEND_FUA = 1 << 3;
        const SEND_TRIM = 1 << 5;
        const SEND_WRITE_ZEROES = 1 << 6;
    }
}

/// What a server says of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Its size in bytes.
    pub size: u64,
    /// What requests must be aligned to, a power of two of at most 64 KiB.
    pub min_block: u32,
    /// What requests should be aligned to, a power of two.
    pub preferred_block: u32,
    /// The longest transfer of one request; longer ones are divided.
    pub max_payload: u32,
    flags: Flags,
}

impl Export {
    /// An export whose server says nothing of blocks ("Size constraints").
    fn new(size: u64, flags: u16) -> Result<Self, ProtocolError> {
        if size > MAX_SIZE {
            return Err(ProtocolError::Size(size));
        }
        let flags = Flags::from_bits_truncate(flags);
        let flags = if flags.contains(Flags::HAS_FLAGS) { flags } else { Flags::empty() };
        Ok(Self { size, flags, min_block: 512, preferred_block: 4096, max_payload: MAX_PAYLOAD })
    }

    fn with_blocks(mut self, (min, preferred, max): (u32, u32, u32)) -> Result<Self, ProtocolError> {
        let fits = min.is_power_of_two()
            && min <= 1 << 16
            && preferred.is_power_of_two()
            && preferred >= min
            && max >= preferred;
        if !fits {
            return Err(ProtocolError::Blocks { min, preferred, max });
        }
        (self.min_block, self.preferred_block) = (min, preferred);
        // Parts of a transfer are aligned as the whole is.
        self.max_payload = max.min(MAX_PAYLOAD) / min * min;
        Ok(self)
    }

    /// Whether it cannot be written to.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(Flags::READ_ONLY)
    }

    /// Whether it can be flushed; if not, nothing is known of when data are on stable storage.
    pub fn can_flush(&self) -> bool {
        self.flags.contains(Flags::SEND_FLUSH)
    }

    /// Whether a single write can be made stable.
    pub fn can_write_stably(&self) -> bool {
        self.flags.contains(Flags::SEND_FUA)
    }

    /// Whether ranges can be given back.
    pub fn can_discard(&self) -> bool {
        self.flags.contains(Flags::SEND_TRIM)
    }

    /// Whether ranges can be zeroed without sending zeroes.
    pub fn can_write_zeroes(&self) -> bool {
        self.flags.contains(Flags::SEND_WRITE_ZEROES)
    }

    /// The same, but for its size.
    pub(super) fn with_size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    /// What of `old` is not so any more; what it can do besides, nobody knows of.
    pub(super) fn change_since(&self, old: &Self) -> Option<String> {
        let lost = old.flags.difference(self.flags | Flags::HAS_FLAGS | Flags::READ_ONLY);
        if self.size != old.size {
            Some(format!("it has {} bytes, and had {}", self.size, old.size))
        } else if self.min_block > old.min_block {
            Some(format!("it has blocks of {} bytes, and had {}", self.min_block, old.min_block))
        } else if self.is_read_only() && !old.is_read_only() {
            Some("it is read-only now".to_owned())
        } else if !lost.is_empty() {
            Some(format!("it has no {lost} any more"))
        } else {
            None
        }
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}

/// What a server must not say, or what it refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Its first words are others.
    #[error("the server does not speak NBD")]
    NotNbd,
    /// It is of before 2011.
    #[error("the server speaks only the old style of NBD")]
    OldStyle,
    /// TLS was asked for.
    #[error("the server cannot do TLS (reply {0:#x})")]
    NoTls(u32),
    /// TLS was not asked for.
    #[error("the server serves this export only by TLS: use nbds://")]
    TlsRequired,
    /// It has no such export.
    #[error("the server has no export {0:?}")]
    NoExport(String),
    /// An error in reply to an option.
    #[error("the server refuses the export (reply {reply:#x}): {text:?}")]
    Refused {
        /// The kind of error.
        reply: u32,
        /// What it says of it.
        text: String,
    },
    /// Not a reply, or not to what was said.
    #[error("the server sent {got:#x} where {what} was due")]
    Unexpected {
        /// What it should have been.
        what: &'static str,
        /// What it was.
        got: u64,
    },
    /// More than anybody has to say.
    #[error("the server sent a reply of {0} bytes in the handshake")]
    TooLong(u32),
    /// Replies without an end.
    #[error("the server sends informations without an end")]
    Endless,
    /// Fewer or more bytes than it has.
    #[error("the server sent an information {kind} of {len} bytes")]
    InfoLength {
        /// Which.
        kind: u16,
        /// How many bytes.
        len: usize,
    },
    /// Consent, but nothing of the export.
    #[error("the server did not say how large the export is")]
    NoInfo,
    /// Larger than offsets can be.
    #[error("the server has an export of {0} bytes, which no disk can have")]
    Size(u64),
    /// Constraints that contradict each other or the protocol.
    #[error("the server has blocks of {min} bytes, {preferred} preferred, {max} at most, which cannot be")]
    Blocks {
        /// The smallest.
        min: u32,
        /// The best.
        preferred: u32,
        /// The longest payload.
        max: u32,
    },
}

/// What to do next in a handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send these bytes, if any; then receive so many, and tell them.
    Exchange { say: Vec<u8>, hear: usize },
    /// From here on everything is by TLS. Nothing is to be told after it.
    StartTls,
    /// Requests may be sent.
    Done(Export),
}

/// A client's side of the handshake.
pub(super) struct Handshake<'a> {
    name: &'a str,
    with_tls: bool,
    no_zeroes: bool,
    infos: u32,
    export: Option<Export>,
    blocks: Option<(u32, u32, u32)>,
    due: Due,
}

/// What is heard next.
#[derive(Clone, Copy)]
enum Due {
    Greeting,
    /// A reply's header.
    Reply {
        to: u32,
    },
    /// What is behind the header.
    ReplyData {
        to: u32,
        reply: u32,
    },
    /// Nothing, TLS begins.
    Secured,
    /// The reply to `EXPORT_NAME`, which has no header.
    Export,
}

impl<'a> Handshake<'a> {
    /// A handshake for the export of this name, and the step to begin with.
    pub(super) fn new(name: &'a str, with_tls: bool) -> (Self, Step) {
        let start = Self {
            name,
            with_tls,
            no_zeroes: false,
            infos: 0,
            export: None,
            blocks: None,
            due: Due::Greeting,
        };
        (start, Step::Exchange { say: Vec::new(), hear: GREETING_LEN })
    }

    /// What was heard is `bytes`, as many as were asked for.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Step, ProtocolError> {
        match self.due {
            Due::Greeting => {
                self.greeting(array(bytes, 0), array(bytes, 8), u16::from_be_bytes(array(bytes, 16)))
            }
            Due::Secured => Ok(self.go(Vec::new())),
            Due::Reply { to } => self.reply_header(to, bytes),
            Due::ReplyData { to, reply } => self.reply(to, reply, bytes),
            Due::Export => {
                let export =
                    Export::new(u64::from_be_bytes(array(bytes, 0)), u16::from_be_bytes(array(bytes, 8)))?;
                Ok(Step::Done(export))
            }
        }
    }

    fn greeting(&mut self, magic: [u8; 8], style: [u8; 8], flags: u16) -> Result<Step, ProtocolError> {
        match (magic, style) {
            (INIT_MAGIC, NEWSTYLE_MAGIC) => {}
            (INIT_MAGIC, OLDSTYLE_MAGIC) => return Err(ProtocolError::OldStyle),
            _ => return Err(ProtocolError::NotNbd),
        }
        self.no_zeroes = flags & NO_ZEROES != 0;
        let is_fixed = flags & FIXED_NEWSTYLE != 0;
        let answer = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes().to_vec();
        match (is_fixed, self.with_tls) {
            // Only a fixed server knows other options.
            (false, true) => Err(ProtocolError::NoTls(REP_ERR_UNSUP)),
            (false, false) => Ok(self.export_name(answer)),
            (true, true) => Ok(self.ask(answer, OPT_STARTTLS, &[])),
            (true, false) => Ok(self.go(answer)),
        }
    }

    /// Says an option after what is to be said before it.
    fn ask(&mut self, say: Vec<u8>, option: u32, data: &[u8]) -> Step {
        self.due = Due::Reply { to: option };
        Step::Exchange { say: with_option(say, option, data), hear: OPTION_REPLY_LEN }
    }

    fn go(&mut self, say: Vec<u8>) -> Step {
        let mut data = (self.name.len() as u32).to_be_bytes().to_vec();
        data.extend(self.name.as_bytes());
        data.extend(1u16.to_be_bytes());
        data.extend(INFO_BLOCK_SIZE.to_be_bytes());
        self.ask(say, OPT_GO, &data)
    }

    fn export_name(&mut self, say: Vec<u8>) -> Step {
        self.due = Due::Export;
        let hear = EXPORT_LEN + if self.no_zeroes { 0 } else { ZEROES_LEN };
        Step::Exchange { say: with_option(say, OPT_EXPORT_NAME, self.name.as_bytes()), hear }
    }

    fn reply_header(&mut self, to: u32, bytes: &[u8]) -> Result<Step, ProtocolError> {
        let magic = u64::from_be_bytes(array(bytes, 0));
        let [option, reply, len] = [8, 12, 16].map(|at| u32::from_be_bytes(array(bytes, at)));
        if magic != OPTION_REPLY_MAGIC {
            return Err(ProtocolError::Unexpected { what: "a reply to an option", got: magic });
        }
        if option != to {
            return Err(ProtocolError::Unexpected { what: "a reply to another option", got: option.into() });
        }
        match len {
            0 => self.reply(to, reply, &[]),
            1..=MAX_OPTION_REPLY => {
                self.due = Due::ReplyData { to, reply };
                Ok(Step::Exchange { say: Vec::new(), hear: len as usize })
            }
            _ => Err(ProtocolError::TooLong(len)),
        }
    }

    fn reply(&mut self, to: u32, reply: u32, data: &[u8]) -> Result<Step, ProtocolError> {
        match (to, reply) {
            (OPT_STARTTLS, REP_ACK) => {
                self.due = Due::Secured;
                Ok(Step::StartTls)
            }
            (OPT_STARTTLS, _) => Err(ProtocolError::NoTls(reply)),
            (_, REP_INFO) => {
                self.info(data)?;
                self.infos += 1;
                if self.infos > MAX_INFOS {
                    return Err(ProtocolError::Endless);
                }
                self.due = Due::Reply { to };
                Ok(Step::Exchange { say: Vec::new(), hear: OPTION_REPLY_LEN })
            }
            (_, REP_ACK) => {
                let export = self.export.ok_or(ProtocolError::NoInfo)?;
                let blocks = self.blocks;
                Ok(Step::Done(blocks.map_or(Ok(export), |blocks| export.with_blocks(blocks))?))
            }
            (_, REP_ERR_UNSUP) => Ok(self.export_name(Vec::new())),
            (_, REP_ERR_TLS_REQD) => Err(ProtocolError::TlsRequired),
            (_, REP_ERR_UNKNOWN) => Err(ProtocolError::NoExport(self.name.to_owned())),
            (_, REP_FLAG_ERROR..) => {
                let text = String::from_utf8_lossy(data).chars().take(200).collect();
                Err(ProtocolError::Refused { reply, text })
            }
            _ => Err(ProtocolError::Unexpected { what: "an answer about the export", got: reply.into() }),
        }
    }

    fn info(&mut self, data: &[u8]) -> Result<(), ProtocolError> {
        let kind = data.first_chunk().map(|kind| u16::from_be_bytes(*kind));
        let len = data.len();
        match (kind, len) {
            (Some(INFO_EXPORT), 12) => {
                let (size, flags) = (u64::from_be_bytes(array(data, 2)), u16::from_be_bytes(array(data, 10)));
                self.export = Some(Export::new(size, flags)?);
            }
            (Some(INFO_BLOCK_SIZE), 14) => {
                let [min, preferred, max] = [2, 6, 10].map(|at| u32::from_be_bytes(array(data, at)));
                self.blocks = Some((min, preferred, max));
            }
            (Some(kind @ (INFO_EXPORT | INFO_BLOCK_SIZE)), _) => {
                return Err(ProtocolError::InfoLength { kind, len });
            }
            // Names and descriptions, of which nothing was asked.
            (Some(_), _) => {}
            (None, _) => return Err(ProtocolError::InfoLength { kind: 0, len }),
        }
        Ok(())
    }
}

/// What is said before, and an option behind it.
fn with_option(mut say: Vec<u8>, option: u32, data: &[u8]) -> Vec<u8> {
    say.extend(NEWSTYLE_MAGIC);
    say.extend(option.to_be_bytes());
    say.extend((data.len() as u32).to_be_bytes());
    say.extend(data);
    say
}

/// `N` bytes from `at` on, which were asked for.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("as many bytes are told as were asked for")
}

/// What is asked of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// The write is on stable storage before the reply.
pub(super) const FLAG_FUA: u16 = 1 << 0;
/// The space of what is zeroed stays allocated.
pub(super) const FLAG_NO_HOLE: u16 = 1 << 1;

/// The header of a request ("Request message").
pub(super) fn request(command: Command, flags: u16, cookie: u64, offset: u64, len: u32) -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// A reply ("Simple reply message"); the data of a read that went well are behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    error: u32,
}

impl Reply {
    pub(super) fn parse(bytes: [u8; REPLY_LEN]) -> Result<Self, ProtocolError> {
        let magic = u32::from_be_bytes(array(&bytes, 0));
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(ProtocolError::Unexpected { what: "a reply", got: magic.into() });
        }
        Ok(Self { error: u32::from_be_bytes(array(&bytes, 4)), cookie: u64::from_be_bytes(array(&bytes, 8)) })
    }

    /// Whether the server is about to end, and the request is to be sent to the next one.
    pub(super) fn is_shutdown(self) -> bool {
        self.error == ESHUTDOWN
    }

    /// The error, if it is one ("Error values", whose numbers are the kernel's).
    pub(super) fn error(self) -> Option<io::Error> {
        match self.error {
            0 => None,
            known @ (1 | 5 | 12 | 22 | 28 | 75 | 95 | ESHUTDOWN) => {
                Some(io::Error::from_raw_os_error(known.cast_signed()))
            }
            _ => Some(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
