//! Simple devices, as the command line names them.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args as ClapArgs};

/// Where front-ends attach to one device.
#[derive(ClapArgs, Debug)]
#[command(group(ArgGroup::new("socket").args(["socket_path", "fd"])))]
pub(crate) struct Attach {
    /// Listen at this path, or with --client connect to it
    #[arg(long, value_name = "PATH")]
    pub(crate) socket_path: Option<PathBuf>,

    /// Use this inherited file descriptor, a listening or a connected socket
    #[arg(long, value_name = "N")]
    pub(crate) fd: Option<i32>,

    /// Connect to the socket instead of listening there, and try on until it succeeds
    #[arg(long)]
    pub(crate) client: bool,

    /// Print what this program can do as JSON, and exit, whatever else is said
    #[arg(long)]
    #[allow(dead_code, reason = "for the help; `main` looks for it before the other arguments are read")]
    print_capabilities: bool,
}

/// One of several guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestArg {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
}

impl FromStr for GuestArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, socket)) if !name.is_empty() && !socket.is_empty() => {
                Ok(Self { name: name.to_owned(), socket: socket.into() })
            }
            _ => Err("it is NAME=SOCKET".into()),
        }
    }
}

/// Random numbers for virtual machines: an entropy device over a vhost-user socket
///
/// For QEMU:
///
///   ringway rng --socket-path=/run/ringway/rng
///
///   qemu-system-x86_64 … -chardev socket,id=r0,path=/run/ringway/rng \
///     -device vhost-user-rng-pci,chardev=r0
///
/// The guest finds them in /dev/hwrng, and its kernel mixes them into its own. SIGUSR1 prints
/// the counters, SIGTERM ends the program.
#[derive(ClapArgs, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Rng {
    #[command(flatten)]
    pub(crate) attach: Attach,

    /// A guest among several: its name and the path of its socket
    #[arg(long = "guest", value_name = "NAME=SOCKET", conflicts_with_all = ["socket_path", "fd"])]
    pub(crate) guests: Vec<GuestArg>,

    /// Take random bytes from this character device or FIFO, such as /dev/hwrng, and not from the kernel
    ///
    /// What it gives is looked at: a source that repeats itself is told of, and not used any more.
    #[arg(long, value_name = "FILE")]
    pub(crate) source: Option<PathBuf>,

    /// The most bytes in a second that a guest gets, such as 64K
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    pub(crate) rate: Option<u64>,

    /// Offer `ACCESS_PLATFORM`: the guest's IOMMU decides which of its memory the device reaches
    #[arg(long)]
    pub(crate) iommu: bool,
}

fn rate(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("a rate is at least a byte in a second".into()),
        rate => Ok(rate),
    }
}

/// Consoles and serial ports for a virtual machine: a console device over a vhost-user socket
///
/// For User-Mode Linux, whose /dev/hvc0 is then a terminal of this host:
///
///   ringway console --socket-path=/tmp/console --port=con=pty:/tmp/vm-console
///
///   linux.uml … virtio_uml.device=/tmp/console:3
///   screen /tmp/vm-console
///
/// With several ports the first is the console, and programs of the guest find the others by
/// their names in /dev/virtio-ports. SIGUSR1 prints the counters, SIGTERM ends the program.
#[derive(ClapArgs, Debug)]
#[command(verbatim_doc_comment)]
#[allow(clippy::doc_markdown, reason = "it is the text of the help")]
pub(crate) struct Console {
    #[command(flatten)]
    pub(crate) attach: Attach,

    /// A port: its name and where it leads; the first is the console
    ///
    /// pty is a pseudo-terminal whose path is printed, pty:LINK has a symbolic link too; socket:PATH is a Unix socket to
    /// connect to, one client at a time; file:PATH is a file that is appended to; stdio is this program's standard input
    /// and output. What the guest sends where nobody is, is dropped; who is there and does not read holds the guest up.
    #[arg(long = "port", value_name = "NAME=pty[:LINK]|socket:PATH|file:PATH|stdio")]
    pub(crate) ports: Vec<ConsolePort>,

    /// Offer `ACCESS_PLATFORM`: the guest's IOMMU decides which of its memory the device reaches
    #[arg(long)]
    pub(crate) iommu: bool,
}

/// A port of a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConsolePort {
    pub(crate) name: String,
    pub(crate) end: EndArg,
}

/// Where a port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EndArg {
    Pty(Option<PathBuf>),
    Socket(PathBuf),
    File(PathBuf),
    Stdio,
}

impl ConsolePort {
    /// How messages call it.
    pub(crate) fn label(&self) -> String {
        format!("port {}", self.name)
    }
}

impl FromStr for ConsolePort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "it is NAME=pty[:LINK], NAME=socket:PATH, NAME=file:PATH or NAME=stdio".to_owned();
        let (name, end) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
        let end = match end.split_once(':').map_or((end, None), |(kind, path)| (kind, Some(path))) {
            (_, Some("")) => return Err(wrong()),
            ("pty", link) => EndArg::Pty(link.map(PathBuf::from)),
            ("socket", Some(path)) => EndArg::Socket(path.into()),
            ("file", Some(path)) => EndArg::File(path.into()),
            ("stdio", None) => EndArg::Stdio,
            _ => return Err(wrong()),
        };
        Ok(Self { name: name.to_owned(), end })
    }
}

/// Memory balloons for virtual machines: guests give memory up, and the host has it back
///
/// For User-Mode Linux, which has it give 128 MiB, and then all of it back:
///
///   ringway balloon --socket-path=/tmp/balloon --target=128M
///
///   linux.uml … virtio_uml.device=/tmp/balloon:5
///   ringway balloon-target --pid PID --size 0
///
/// What the guest does not use it also reports, and it leaves the host's memory as well; it
/// comes back when it is used. SIGUSR1 prints the counters, SIGTERM ends the program.
#[derive(ClapArgs, Debug)]
#[command(verbatim_doc_comment)]
#[allow(clippy::doc_markdown, reason = "it is the text of the help")]
pub(crate) struct Balloon {
    #[command(flatten)]
    pub(crate) attach: Attach,

    /// A guest among several: its name and the path of its socket
    #[arg(long = "guest", value_name = "NAME=SOCKET", conflicts_with_all = ["socket_path", "fd"])]
    pub(crate) guests: Vec<GuestArg>,

    /// How much each guest is to give, such as 128M; no more than it has
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = bytes)]
    pub(crate) target: u64,

    /// Let a guest that runs out of memory take some back by itself
    #[arg(long)]
    pub(crate) deflate_on_oom: bool,

    /// Do not have guests report memory that they do not use
    #[arg(long)]
    pub(crate) no_reporting: bool,
}

/// Says how much memory the guest of a running server is to give, or how it is with it
///
/// The guest gives what it can, and takes back what is not wanted any more. What it says of its
/// memory is printed as well.
///
///   ringway balloon-target --pid PID --size 512M
#[derive(ClapArgs, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct BalloonTarget {
    /// The process of the running server
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: i32,

    /// The guest, by its name; not needed if there is one only
    #[arg(long, value_name = "NAME")]
    pub(crate) guest: Option<String>,

    /// How much it is to give, such as 512M; if nothing is said, it stays as it is
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) size: Option<u64>,
}

/// Bytes, or with a suffix K, M, G, T powers of 1024 of them.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of bytes, such as 4096, 64K, 512M or 2G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, value) in [("0", 0), ("1000", 1000), ("64K", 1 << 16), ("3m", 3 << 20), ("1T", 1 << 40)] {
            assert_eq!(bytes(text), Ok(value));
        }
        for text in ["", "K", "-1", "1X", "1.5G", "99999999T"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert!(rate("0").is_err());
    }

    #[test]
    fn ports_are_read() {
        let port = |text: &str| text.parse::<ConsolePort>().map(|port| (port.name, port.end));
        let named = |end| Ok(("a".to_owned(), end));
        assert_eq!(port("a=pty"), named(EndArg::Pty(None)));
        assert_eq!(port("a=pty:/tmp/x:y"), named(EndArg::Pty(Some("/tmp/x:y".into()))));
        assert_eq!(port("a=socket:/s=1"), named(EndArg::Socket("/s=1".into())));
        assert_eq!(port("a=file:log"), named(EndArg::File("log".into())));
        assert_eq!(port("a=stdio"), named(EndArg::Stdio));
        for wrong in ["", "a", "=pty", "a=", "a=pty:", "a=socket", "a=file:", "a=stdio:x", "a=tty"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "a", "a=", "=s"] {
            assert!(wrong.parse::<GuestArg>().is_err(), "{wrong}");
        }
    }
}
