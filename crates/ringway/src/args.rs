//! The command line.

mod blk;
mod policy;
mod port;
mod simple;
mod uplink;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{ArgGroup, Args as ClapArgs, Parser, Subcommand};
use ringway_check::Device;
use ringway_net::Mac;
use ringway_net::switch::PortPolicy;
use serde_json::json;

pub(crate) use self::blk::{Blk, DiskArg, DiskOptions, Resize, place};
pub(crate) use self::port::{MirrorArg, PortArg};
pub(crate) use self::simple::{Attach, Balloon, BalloonTarget, Console, ConsolePort, EndArg, GuestArg, Rng};
pub(crate) use self::uplink::UplinkArg;

/// Gives virtual machines their network and their disks over vhost-user sockets.
///
/// A virtual machine attaches with a vhost-user device whose socket is a port or a disk of
/// ringway, and with its memory shared. For QEMU:
///
///   qemu-system-x86_64 … -machine q35,memory-backend=mem \
///     -object memory-backend-memfd,id=mem,size=1G,share=on \
///     -chardev socket,id=c0,path=/run/ringway/a,reconnect-ms=1000 \
///     -netdev vhost-user,id=n0,chardev=c0 -device virtio-net-pci,netdev=n0 \
///     -chardev socket,id=c1,path=/run/ringway/root,reconnect-ms=1000 \
///     -device vhost-user-blk-pci,chardev=c1
///
/// Log messages go to standard error; `RINGWAY_LOG=info` or `=debug` shows more.
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Switch(Switch),
    Net(Net),
    Blk(Blk),
    Rng(Rng),
    Console(Console),
    Balloon(Balloon),
    Upgrade(Upgrade),
    Capture(Capture),
    Resize(Resize),
    BalloonTarget(BalloonTarget),
    Check(Check),
}

/// An Ethernet switch whose ports are vhost-user sockets
///
/// It learns which addresses are behind which port, floods frames to unknown and to all
/// stations, and forgets an address after 300 seconds. A guest may come, go, crash or reboot
/// without the others' noticing; its port then waits for the next. SIGUSR1 prints the counters
/// of every port, SIGTERM ends the program.
///
/// Two guests and the host:
///
///   ringway switch --port a=/run/ringway/a --port b=/run/ringway/b --uplink tap:tap0
#[derive(ClapArgs, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Switch {
    /// A port: its name and the path of its socket, and options after commas
    ///
    /// The device: mac=ADDRESS and mtu=BYTES are what it tells its driver (a front-end such as QEMU may say otherwise),
    /// queues=N is the most queue pairs (8). iommu offers `ACCESS_PLATFORM`, for a guest whose IOMMU is to decide which
    /// of its memory the device reaches. postcopy lets a migrating guest run here before its memory has arrived: the
    /// whole switch waits for a page that is missing, so a front-end that does not bring it stops every port.
    ///
    /// The socket: client connects to it instead of listening there, and tries on until it succeeds.
    ///
    /// What the driver may order: rss lets it choose receive queues by hash and table, and have hashes reported; filters
    /// lets it say which addresses and VLANs it wants. Both are for front-ends that pass the control queue on, as
    /// User-Mode Linux and drivers in user space do. QEMU has it for itself, and these would not work. speed=MBITS is what
    /// the driver is told.
    ///
    /// VLANs: vlan=N makes an access port, trunk=LIST (such as 10+20-29) allows some VLANs only, native=N is that of
    /// frames without a tag. With none of these, frames cross as they are.
    ///
    /// Trust: pinned drops frames from other addresses than mac=, pinned=ADDRESS+ADDRESS allows more; isolated ports
    /// do not reach each other; macs=N is the most addresses learned (4096); storm=N is the most frames to all, to
    /// groups and to unknown addresses in a second.
    ///
    /// Rates, as the guest sees them: tx-rate=BITS and rx-rate=BITS in a second, such as 100M; tx-frames=N and
    /// rx-frames=N. What it sends too fast waits, what it would get too fast is dropped.
    #[arg(long = "port", value_name = "NAME=SOCKET[,OPTION…]", required = true)]
    pub(crate) ports: Vec<PortArg>,

    /// Copy all that comes from a port and goes to it to another, which has no other part in the switch
    #[arg(long = "mirror", value_name = "NAME=WATCHER")]
    pub(crate) mirrors: Vec<MirrorArg>,

    /// A further port: an interface of this host
    ///
    /// tap:IFNAME is a tap, created if it does not exist. macvtap:IFNAME is a macvtap that exists; of frames from outside
    /// it takes those for its own address, unless its mode is passthru. packet:IFNAME is a packet socket on any interface,
    /// which is to have no IP address.
    ///
    /// Options follow, each after a comma: mac=ADDRESS gives the interface that address. Those of VLANs, trust and rates
    /// are those of --port.
    #[arg(long = "uplink", value_name = "tap:IFNAME|macvtap:IFNAME|packet:IFNAME[,OPTION…]")]
    pub(crate) uplinks: Vec<UplinkArg>,

    #[command(flatten)]
    pub(crate) workers: Workers,

    #[command(flatten)]
    pub(crate) captures: Captures,
}

/// One network device, by the conventions of QEMU's back-end programs
///
/// The device's frames go to the uplink and come from there.
///
///   ringway net --socket-path=/run/ringway/a --uplink=tap:tap0
#[derive(ClapArgs, Debug)]
#[command(verbatim_doc_comment, group(ArgGroup::new("socket").args(["socket_path", "fd"])))]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Net {
    /// Listen at this path
    #[arg(long, value_name = "PATH")]
    pub(crate) socket_path: Option<PathBuf>,

    /// Use this inherited file descriptor, a listening or a connected socket
    #[arg(long, value_name = "N")]
    pub(crate) fd: Option<i32>,

    /// Where the frames go
    ///
    /// tap:IFNAME is a tap of this host, created if it does not exist; macvtap:IFNAME is a macvtap, whose address is the
    /// device's unless --mac says another; packet:IFNAME is a packet socket on any interface. Behind a comma, mac=ADDRESS
    /// gives the interface that address.
    ///
    /// The others are for tests and benchmarks: sink reads frames and drops them; echo returns each frame with its
    /// addresses swapped; generate, or generate:SIZE, sends broadcast frames of SIZE bytes (60) as fast as the guest
    /// takes them.
    #[arg(
        long,
        value_name = "tap:IFNAME|macvtap:IFNAME|packet:IFNAME[,mac=ADDRESS]|sink|echo|generate[:SIZE]",
        default_value = "sink"
    )]
    pub(crate) uplink: Uplink,

    /// MAC address that the device tells its driver
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) mac: Option<Mac>,

    /// MTU that the device tells its driver, in bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) mtu: Option<u16>,

    /// The most queue pairs
    #[arg(long, value_name = "N", default_value_t = DEFAULT_QUEUES, value_parser = queues)]
    pub(crate) queues: u16,

    /// Offer `ACCESS_PLATFORM`: the guest's IOMMU decides which of its memory the device reaches
    #[arg(long)]
    pub(crate) iommu: bool,

    /// Let the driver choose receive queues by hash and table, and have hashes reported
    ///
    /// For front-ends that pass the control queue on; QEMU does not.
    #[arg(long)]
    pub(crate) rss: bool,

    /// Let the driver say which addresses and VLANs it wants
    ///
    /// For front-ends that pass the control queue on; QEMU does not.
    #[arg(long)]
    pub(crate) filters: bool,

    /// Speed that the device tells its driver, in Mbit/s
    #[arg(long, value_name = "MBITS")]
    pub(crate) speed: Option<u32>,

    /// Let a migrating guest run here before its memory has arrived, and wait for pages that are missing
    #[arg(long)]
    pub(crate) postcopy: bool,

    /// Print what this program can do as JSON, and exit, whatever else is said
    #[arg(long)]
    #[allow(dead_code, reason = "for the help; `main` looks for it before the other arguments are read")]
    print_capabilities: bool,

    #[command(flatten)]
    pub(crate) workers: Workers,

    #[command(flatten)]
    pub(crate) captures: Captures,
}

/// Replaces a running server by the program that now lies where it was started from
///
/// The server starts the new program with its own arguments and hands everything over: sockets, guests' memory, rings.
/// Guests see a short pause at most. If that fails, the server goes on as before, and this command says why. SIGUSR2 to
/// the server does the same.
#[derive(ClapArgs, Debug)]
pub(crate) struct Upgrade {
    /// The process of the running server
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: i32,
}

/// Copies the frames of a running server's ports to a pcapng file
///
/// The server captures until this command is interrupted, or until it ends itself. What the file does not take in time
/// is dropped and counted. To watch frames as they pass:
///
///   ringway capture --pid PID --port a --write - | wireshark -k -i -
#[derive(ClapArgs, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Capture {
    /// The process of the running server
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: i32,

    /// A port, by its name; there may be several
    #[arg(long = "port", value_name = "NAME", required = true)]
    pub(crate) ports: Vec<String>,

    /// The file, a FIFO, or - for standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) write: PathBuf,

    /// The most bytes kept of a frame
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SNAPLEN, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) snaplen: u32,
}

/// Tells how a vhost-user back-end, any, keeps to the protocol
///
/// It connects to the back-end as a front-end, again and again, and tries what the documents
/// require as far as it can be seen from outside. Each line of the output is a requirement and
/// what was seen; the exit status is 0 if nothing that is a MUST failed, 1 if something did,
/// 2 if the back-end cannot be spoken to. No virtual machine is needed; none may be attached.
///
///   ringway check /run/backend.sock --device blk
#[derive(ClapArgs, Debug)]
#[command(verbatim_doc_comment)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Check {
    /// The back-end's socket
    #[arg(value_name = "SOCKET", required_unless_present = "list")]
    pub(crate) socket: Option<PathBuf>,

    /// Listen at the socket: the back-end connects there, and connects again each time
    #[arg(long)]
    pub(crate) listen: bool,

    /// What kind of device it is, if the guess by its features is wrong
    #[arg(long, value_name = "net|blk|generic")]
    pub(crate) device: Option<Device>,

    /// Only what has this in its name or in the id of a requirement
    #[arg(long, value_name = "PATTERN")]
    pub(crate) only: Option<String>,

    /// Also send what no front-end should: a bad back-end may crash or hang
    #[arg(long)]
    pub(crate) hostile: bool,

    /// How long the back-end may take for anything
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub(crate) patience: u64,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Print all requirements on back-ends and how each is tried, or why it cannot be seen
    #[arg(long)]
    pub(crate) list: bool,
}

/// How the workers work.
#[derive(ClapArgs, Debug)]
pub(crate) struct Workers {
    /// How many threads move frames; queue pairs are spread over them
    #[arg(long = "workers", value_name = "N", default_value_t = 1, value_parser = workers)]
    pub(crate) count: usize,

    /// Keep each worker on a processor of its own: numbers and ranges, such as 2,4-7
    #[arg(long, value_name = "CPUS", value_parser = cpus, default_value = "", hide_default_value = true)]
    pub(crate) pin: Cpus,

    /// How long to go on polling a ring after its last frame, before asking for a kick
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub(crate) busy_poll: u64,
}

/// What is captured from the start.
#[derive(ClapArgs, Debug)]
pub(crate) struct Captures {
    /// Copy the frames of a port to a pcapng file, which may be a FIFO; more ports may go to the same one
    #[arg(long = "capture", value_name = "NAME=FILE[,snaplen=BYTES]")]
    pub(crate) captures: Vec<CaptureArg>,
}

/// A port to be captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CaptureArg {
    pub(crate) port: String,
    pub(crate) file: PathBuf,
    pub(crate) snaplen: u32,
}

impl FromStr for CaptureArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, rest) = text.split_once('=').ok_or("it begins with NAME=FILE")?;
        let (file, snaplen) = match rest.rsplit_once(",snaplen=") {
            None => (rest, DEFAULT_SNAPLEN),
            Some((file, bytes)) => match bytes.parse() {
                Ok(snaplen @ 1..) => (file, snaplen),
                _ => return Err(format!("snaplen={bytes} is not a number of bytes")),
            },
        };
        if port.is_empty() || file.is_empty() {
            return Err("it begins with NAME=FILE".into());
        }
        Ok(Self { port: port.to_owned(), file: file.into(), snaplen })
    }
}

/// The commands that are back-end programs by QEMU's conventions: what the name of a program without commands ends in, and
/// what it can do (`docs/interop/vhost-user.json` of QEMU).
fn back_ends() -> [(&'static str, serde_json::Value); 5] {
    [
        ("net", json!({ "type": "net" })),
        ("blk", json!({ "type": "block", "features": ["read-only", "blk-file"] })),
        ("rng", json!({ "type": "rng" })),
        ("console", json!({ "type": "console" })),
        ("balloon", json!({ "type": "balloon" })),
    ]
}

/// The arguments, with the command that the program's name stands for: `ringway-blk` and the like are what QEMU's
/// conventions call a back-end program, which has no commands.
pub(crate) fn with_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<_> = args.into_iter().collect();
    let name = args.first().and_then(|name| Path::new(name).file_name()).and_then(OsStr::to_str);
    let named = name.and_then(|name| name.strip_prefix("ringway-"));
    if let Some((command, _)) = back_ends().into_iter().find(|(command, _)| named == Some(command)) {
        args.insert(1, command.into());
    }
    args
}

/// What [`PRINT_CAPABILITIES`] prints for these arguments, of which the first is the program's name.
pub(crate) fn capabilities(args: impl IntoIterator<Item = OsString>) -> String {
    let command = args.into_iter().skip(1).find(|arg| !arg.as_encoded_bytes().starts_with(b"-"));
    let [net, others @ ..] = back_ends();
    let found = others.into_iter().find(|(name, _)| command.as_ref().is_some_and(|command| command == name));
    format!("{:#}\n", found.unwrap_or(net).1)
}

/// See [`Net::print_capabilities`].
pub(crate) const PRINT_CAPABILITIES: &str = "--print-capabilities";

/// The most bytes kept of a captured frame, if nothing else is said: all of any, as other programs have it.
const DEFAULT_SNAPLEN: u32 = 262_144;
/// The most queue pairs of a device, if nothing else is said.
const DEFAULT_QUEUES: u16 = 8;
/// The most that may be said: a vring is named by 8 bits, and one is the control queue.
const MAX_QUEUES: u16 = 127;
/// More workers than any host for guests has processors to spare.
const MAX_WORKERS: usize = 64;
/// The last processor that the kernel's interface names.
const MAX_CPU: usize = 1023;
/// Size of generated frames in bytes, if nothing else is said: the shortest on a wire, its checksum apart.
const DEFAULT_FRAME: usize = 60;
const FRAME_SIZES: std::ops::RangeInclusive<usize> = 60..=65535;

/// The uplink of a single device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Uplink {
    Host(UplinkArg),
    Sink,
    Echo,
    Generate(usize),
}

impl FromStr for Uplink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "sink" => Ok(Self::Sink),
            None if text == "echo" => Ok(Self::Echo),
            None if text == "generate" => Ok(Self::Generate(DEFAULT_FRAME)),
            Some(("generate", size)) => match size.parse() {
                Ok(size) if FRAME_SIZES.contains(&size) => Ok(Self::Generate(size)),
                _ => Err(format!("{size:?} is not a size from 60 to 65535 bytes")),
            },
            Some(("tap" | "macvtap" | "packet", _)) => {
                let uplink: UplinkArg = text.parse()?;
                let is_plain = uplink.policy == PortPolicy::default();
                is_plain
                    .then_some(Self::Host(uplink))
                    .ok_or_else(|| "the options of a switch's port are not for it".into())
            }
            _ => Err("it is tap:IFNAME, macvtap:IFNAME, packet:IFNAME, sink, echo or generate[:SIZE]".into()),
        }
    }
}

/// Processors by their numbers.
type Cpus = Vec<usize>;

/// The processors of `--pin`.
fn cpus(text: &str) -> Result<Cpus, String> {
    let error = || format!("{text:?} is not a list of processors such as 2,4-7");
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.parse().map_err(|_| error())?;
        let last: usize = last.parse().map_err(|_| error())?;
        if first > last || last > MAX_CPU {
            return Err(error());
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=MAX_WORKERS) => Ok(n),
        _ => Err(format!("{text:?} is not a number of workers from 1 to {MAX_WORKERS}")),
    }
}

fn queues(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(n @ 1..=MAX_QUEUES) => Ok(n),
        _ => Err(format!("{text:?} is not a number of queue pairs from 1 to {MAX_QUEUES}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn captures_are_read() {
        let capture: CaptureArg = "tap:tap0=/tmp/a=b,c".parse().unwrap();
        assert_eq!((capture.port.as_str(), capture.file.to_str()), ("tap:tap0", Some("/tmp/a=b,c")));
        assert_eq!(capture.snaplen, DEFAULT_SNAPLEN);
        let capture: CaptureArg = "a=f,snaplen=96".parse().unwrap();
        assert_eq!((capture.file.to_str(), capture.snaplen), (Some("f"), 96));
        for wrong in ["", "a", "=f", "a=", "a=f,snaplen=", "a=f,snaplen=0", "a=,snaplen=1", "a=f,snaplen=x"] {
            assert!(wrong.parse::<CaptureArg>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn uplinks_are_read() {
        assert_eq!("generate".parse(), Ok(Uplink::Generate(60)));
        assert_eq!("generate:1514".parse(), Ok(Uplink::Generate(1514)));
        let Ok(Uplink::Host(UplinkArg { spec, mac, .. })) = "tap:tap0".parse() else {
            panic!("an interface")
        };
        assert_eq!((spec.to_string().as_str(), mac), ("tap:tap0", None));
        let Ok(Uplink::Host(UplinkArg { spec, mac, .. })) = "packet:e,mac=02:00:00:00:00:01".parse() else {
            panic!("an interface")
        };
        assert_eq!((spec.to_string().as_str(), mac), ("packet:e", Some(Mac::new([2, 0, 0, 0, 0, 1]))));
        for wrong in
            ["tap:t,vlan=5", "tap:t,mac=1", "tap:t,mac", "tap:t,", "sink,mac=02:00:00:00:00:01", "macvtap:"]
        {
            assert!(wrong.parse::<Uplink>().is_err(), "{wrong}");
        }
        for wrong in ["", "tap", "tap:", "sink:1", "generate:59", "generate:65536", "generate:x", "echo:"] {
            assert!(wrong.parse::<Uplink>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_help_knows_the_capabilities() {
        let args = Args::try_parse_from(["ringway", "net", PRINT_CAPABILITIES]).unwrap();
        assert!(matches!(args.command, Command::Net(Net { print_capabilities: true, .. })));
    }

    /// [VU-BE-backend-program-conventions-07] [VU-BE-backend-program-conventions-08]
    #[test]
    fn path_and_fd_exclude_each_other() {
        assert!(Args::try_parse_from(["ringway", "net", "--socket-path=/s", "--fd=3"]).is_err());
    }
}
