//! Disks, as the command line names them.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{ArgGroup, Args as ClapArgs};
use ringway_block::image::{Cache, Format, ImageSpec, parse_size};

use crate::place::Place;

/// Disks for virtual machines: block devices over vhost-user sockets
///
/// One disk, by the conventions of QEMU's back-end programs:
///
///   ringway blk --socket-path=/run/ringway/root --blk-file=/var/lib/vm/root.img
///
/// or several, each of which goes on whatever becomes of the others:
///
///   ringway blk --disk root=/run/ringway/root,/var/lib/vm/root.qcow2 \
///     --disk data=/run/ringway/data,/dev/vg0/data,serial=data,cache=writeback
///
/// What a guest has flushed is on stable storage, whatever happens to it, to its hypervisor or
/// to this program. SIGUSR1 prints the counters of every disk, SIGTERM ends the program.
#[derive(ClapArgs, Debug)]
#[command(
    verbatim_doc_comment,
    group(ArgGroup::new("socket").args(["socket_path", "fd"])),
    group(ArgGroup::new("one").args(["socket_path", "fd", "blk_file"]).multiple(true).conflicts_with("disks")),
)]
pub(crate) struct Blk {
    /// Listen at this path, or with --client connect to it
    #[arg(long, value_name = "PATH")]
    pub(crate) socket_path: Option<PathBuf>,

    /// Use this inherited file descriptor, a listening or a connected socket
    #[arg(long, value_name = "N")]
    pub(crate) fd: Option<i32>,

    /// What is on the disk
    ///
    /// PATH is a file or a block device of this host; ./mem:1G is a file. `nbd://HOST/EXPORT`, `nbds://…` (TLS) and
    /// `nbd+unix:///EXPORT?socket=PATH` are exports of an NBD server. mem:SIZE is memory that is lost with the server;
    /// null:SIZE is nothing at all, for benchmarks: reads leave what was in the guest's memory. SIZE is in bytes, or 64K,
    /// 512M, 20G, 1T.
    #[arg(long = "blk-file", id = "blk_file", value_name = "PATH|nbd://…|mem:SIZE|null:SIZE")]
    pub(crate) image: Option<ImageSpec>,

    #[command(flatten)]
    pub(crate) options: DiskOptions,

    /// A disk: its name, the path of its socket, what is on it, and options after commas
    ///
    /// The options are those of the single disk above, without the dashes: read-only, num-queues=N, serial=TEXT,
    /// cache=MODE, format=FORMAT, logical-block-size=BYTES, share-rw, nbd-reconnect=SECONDS, nbd-timeout=SECONDS, iommu,
    /// client. A comma in a path is written twice.
    #[arg(long = "disk", value_name = "NAME=SOCKET,IMAGE[,OPTION…]")]
    pub(crate) disks: Vec<DiskArg>,

    /// How long to go on polling a queue after its last request, before asking for a kick
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub(crate) busy_poll: u64,

    /// Print what this program can do as JSON, and exit, whatever else is said
    #[arg(long)]
    #[allow(dead_code, reason = "for the help; `main` looks for it before the other arguments are read")]
    print_capabilities: bool,
}

/// How a disk is.
#[derive(ClapArgs, Debug, Clone, PartialEq, Eq)]
#[group(id = "disk_options", multiple = true, conflicts_with = "disks")]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct DiskOptions {
    /// The guest cannot write
    #[arg(long)]
    pub(crate) read_only: bool,

    /// The most queues; one that the guest does not use costs nothing
    #[arg(long, value_name = "N", default_value_t = DEFAULT_QUEUES, value_parser = queues)]
    pub(crate) num_queues: u16,

    /// How the disk names itself to its driver: 20 bytes at most
    #[arg(long, value_name = "TEXT", value_parser = serial)]
    pub(crate) serial: Option<String>,

    /// How writes get to a file
    ///
    /// direct goes past the page cache, writeback through it; what the guest has flushed is on stable storage with either.
    /// writethrough makes each write stable before it is done, unless the driver asks for less.
    #[arg(long, value_name = "direct|writeback|writethrough", default_value = "direct", value_parser = cache)]
    pub(crate) cache: Cache,

    /// What a file holds
    ///
    /// auto looks at its first bytes. A guest can write what it likes there: say raw for an image that is raw.
    #[arg(long, value_name = "auto|raw|qcow2", default_value = "auto", value_parser = format)]
    pub(crate) format: Format,

    /// The disk's logical block size; what suits the image, if nothing is said
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    pub(crate) logical_block_size: Option<u32>,

    /// Let others write to the image at the same time: a file system for clusters, or a guest that migrates
    #[arg(long)]
    pub(crate) share_rw: bool,

    /// How long requests wait for an NBD server that has gone to come back, before they fail
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_RECONNECT, value_parser = nbd_reconnect)]
    pub(crate) nbd_reconnect: u64,

    /// Take an NBD server for gone that has said nothing for so long; if nothing is said, TCP decides
    #[arg(long, value_name = "SECONDS", value_parser = nbd_timeout)]
    pub(crate) nbd_timeout: Option<u64>,

    /// Offer `ACCESS_PLATFORM`: the guest's IOMMU decides which of its memory the device reaches
    #[arg(long)]
    pub(crate) iommu: bool,

    /// Connect to the socket instead of listening there, and try on until it succeeds
    #[arg(long)]
    pub(crate) client: bool,
}

/// A disk among several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArg {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    pub(crate) image: ImageSpec,
    pub(crate) options: DiskOptions,
}

/// Changes the size of a running server's disk, or has it look at an image that has grown
///
/// The guest is told and sees the new size at once. Its partitions and file systems are its own
/// to grow.
///
///   ringway resize --pid PID --disk root --size 40G
#[derive(ClapArgs, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Resize {
    /// The process of the running server
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: i32,

    /// The disk, by its name; not needed if there is one only
    #[arg(long, value_name = "NAME")]
    pub(crate) disk: Option<String>,

    /// The size to give it, such as 40G; if nothing is said, the one that its image has now
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) size: Option<u64>,

    /// Let it become smaller, and lose what is behind its end
    #[arg(long, requires = "size")]
    pub(crate) shrink: bool,
}

/// As many as virtual machines have processors, mostly: QEMU wants a queue for each of them.
const DEFAULT_QUEUES: u16 = 64;
/// A vring is named by 8 bits.
const MAX_QUEUES: u16 = 256;
/// As long as Linux waits for other storage on a network.
const DEFAULT_RECONNECT: u64 = 120;
/// More is for ever.
const MAX_SECONDS: u64 = 1 << 31;
/// The longest serial number (5.2.6).
const MAX_SERIAL: usize = 20;

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            num_queues: DEFAULT_QUEUES,
            serial: None,
            cache: Cache::default(),
            format: Format::default(),
            logical_block_size: None,
            share_rw: false,
            nbd_reconnect: DEFAULT_RECONNECT,
            nbd_timeout: None,
            iommu: false,
            client: false,
        }
    }
}

impl DiskOptions {
    /// Reads an option.
    fn read(&mut self, option: &str) -> Result<(), String> {
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("read-only", None) => self.read_only = true,
            ("num-queues", Some(value)) => self.num_queues = queues(value)?,
            ("serial", Some(value)) => self.serial = Some(serial(value)?),
            ("cache", Some(value)) => self.cache = cache(value)?,
            ("format", Some(value)) => self.format = format(value)?,
            ("logical-block-size", Some(value)) => self.logical_block_size = Some(block_size(value)?),
            ("share-rw", None) => self.share_rw = true,
            ("nbd-reconnect", Some(value)) => self.nbd_reconnect = nbd_reconnect(value)?,
            ("nbd-timeout", Some(value)) => self.nbd_timeout = Some(nbd_timeout(value)?),
            ("iommu", None) => self.iommu = true,
            ("client", None) => self.client = true,
            _ => {
                return Err(format!(
                    "{option:?} is none of read-only, num-queues=N, serial=TEXT, cache=MODE, format=FORMAT, \
                     logical-block-size=BYTES, share-rw, nbd-reconnect=SECONDS, nbd-timeout=SECONDS, iommu, client; a comma in a path is written twice"
                ));
            }
        }
        Ok(())
    }
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = split(text).into_iter();
        let first = parts.next().unwrap_or_default();
        let begin = first.split_once('=').filter(|(name, socket)| !name.is_empty() && !socket.is_empty());
        let (Some((name, socket)), Some(image)) = (begin, parts.next()) else {
            return Err("it begins with NAME=SOCKET,IMAGE".into());
        };
        let image = image.parse().map_err(|error| format!("{error}"))?;
        let mut options = DiskOptions::default();
        for part in parts {
            options.read(&part)?;
        }
        Ok(Self { name: name.to_owned(), socket: socket.into(), image, options })
    }
}

/// The parts between commas; two commas are one that is meant.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, parts.last_mut()) {
            (',', Some(part)) if rest.next_if_eq(&',').is_some() => part.push(','),
            (',', _) => parts.push(String::new()),
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    parts
}

/// Where front-ends attach, with this path.
pub(crate) fn place(path: &Path, client: bool) -> Place {
    let path = path.to_owned();
    if client { Place::Connect(path) } else { Place::Listen(path) }
}

fn queues(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(n @ 1..=MAX_QUEUES) => Ok(n),
        _ => Err(format!("{text:?} is not a number of queues from 1 to {MAX_QUEUES}")),
    }
}

fn serial(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_SERIAL if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err(format!(
            "{text:?} is not a serial number of 1 to {MAX_SERIAL} ASCII characters without blanks"
        )),
    }
}

fn cache(text: &str) -> Result<Cache, String> {
    match text {
        "direct" => Ok(Cache::Direct),
        "writeback" => Ok(Cache::Writeback),
        "writethrough" => Ok(Cache::Writethrough),
        _ => Err(format!("{text:?} is no cache mode: direct, writeback or writethrough")),
    }
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "auto" => Ok(Format::Auto),
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        _ => Err(format!("{text:?} is no format: auto, raw or qcow2")),
    }
}

fn block_size(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(size @ 512..=65536) if size.is_power_of_two() => Ok(size),
        _ => Err(format!("{text:?} is not a logical block size: a power of two from 512 to 65536")),
    }
}

fn nbd_reconnect(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(seconds @ ..=MAX_SECONDS) => Ok(seconds),
        _ => Err(format!("{text:?} is not a number of seconds")),
    }
}

fn nbd_timeout(text: &str) -> Result<u64, String> {
    match nbd_reconnect(text)? {
        0 => Err("a server needs more than 0 seconds to answer".into()),
        seconds => Ok(seconds),
    }
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read() {
        let disk: DiskArg = "root=/run/root.sock,/vm/root.img".parse().unwrap();
        assert_eq!((disk.name.as_str(), disk.socket.to_str()), ("root", Some("/run/root.sock")));
        assert_eq!(disk.image, ImageSpec::File("/vm/root.img".into()));
        assert_eq!(disk.options, DiskOptions::default());
        let disk: DiskArg = "a=s,mem:1M,read-only,num-queues=2,serial=x,cache=writeback,format=raw,\
                             logical-block-size=4096,share-rw,nbd-reconnect=0,nbd-timeout=9,iommu,client"
            .parse()
            .unwrap();
        assert_eq!(disk.image, ImageSpec::Memory(1 << 20));
        let expected = DiskOptions {
            read_only: true,
            num_queues: 2,
            serial: Some("x".into()),
            cache: Cache::Writeback,
            format: Format::Raw,
            logical_block_size: Some(4096),
            share_rw: true,
            nbd_reconnect: 0,
            nbd_timeout: Some(9),
            iommu: true,
            client: true,
        };
        assert_eq!(disk.options, expected);
    }

    #[test]
    fn exports_are_read() {
        let disk: DiskArg = "a=s,nbd+unix:///x?socket=/run/a,,b,nbd-reconnect=5".parse().unwrap();
        assert_eq!(disk.image.to_string(), "nbd+unix:///x?socket=/run/a,b");
        assert_eq!(disk.options.nbd_reconnect, 5);
    }

    #[test]
    fn two_commas_are_one_in_a_path() {
        let disk: DiskArg = "a=/s,,1,/vm/a,,b=c.img,read-only".parse().unwrap();
        assert_eq!(disk.socket.to_str(), Some("/s,1"));
        assert_eq!(disk.image, ImageSpec::File("/vm/a,b=c.img".into()));
        assert!(disk.options.read_only);
        assert_eq!(split("a,,,b"), ["a,", "b"]);
        assert_eq!(split(",a,,"), ["", "a,"]);
    }

    /// What is wrong is named.
    #[test]
    fn wrong_disks_are_refused() {
        for (wrong, says) in [
            ("", "NAME=SOCKET,IMAGE"),
            ("a", "NAME=SOCKET,IMAGE"),
            ("a=s", "NAME=SOCKET,IMAGE"),
            ("=s,i", "NAME=SOCKET,IMAGE"),
            ("a=,i", "NAME=SOCKET,IMAGE"),
            ("a=s,", "image"),
            ("a=s,mem:x", "\"x\""),
            ("a=s,http://x", "http"),
            ("a=s,i,", "\"\" is none"),
            ("a=s,i,b.img", "written twice"),
            ("a=s,i,read-only=1", "\"read-only=1\" is none"),
            ("a=s,i,num-queues=0", "from 1 to 256"),
            ("a=s,i,num-queues=257", "from 1 to 256"),
            ("a=s,i,serial=", "20 ASCII"),
            ("a=s,i,serial=123456789012345678901", "20 ASCII"),
            ("a=s,i,cache=none", "\"none\" is no cache mode"),
            ("a=s,i,format=vmdk", "\"vmdk\" is no format"),
            ("a=s,i,logical-block-size=1000", "\"1000\""),
            ("a=s,i,nbd-reconnect=x", "\"x\" is not a number of seconds"),
            ("a=s,i,nbd-timeout=0", "more than 0 seconds"),
            ("a=s,nbd:///x", "no host"),
        ] {
            let error = wrong.parse::<DiskArg>().unwrap_err();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
