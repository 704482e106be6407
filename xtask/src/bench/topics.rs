//! What is measured: the rows' names, in the order of the page, and what the page says of each.

use anyhow::Result;
use clap::ValueEnum;

use super::backends::Role;
use super::comparison::{Comparison, Part};
use super::machine::package;
use super::sampling::Taken;
use super::{Options, drivers, flood, frames, guests, idle, ovs};

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Topic {
    /// Frames between two guests, through a learning switch
    Switch,
    /// Frames that one guest gets back
    Echo,
    /// Frames to one guest
    Generate,
    /// Frames from one guest
    Sink,
    /// Ringway's own driver next to DPDK's
    Drivers,
    /// TCP between two guests
    Tcp,
    /// A driver's memory of ordinary pages and of huge ones
    Pages,
    /// Ports that are there and not busy
    Ports,
    /// A thousand ports that do nothing
    Idle,
    /// System calls under load
    Calls,
    /// Pings between guests, and to the host
    Latency,
    /// TCP between a guest and the host
    Host,
    /// Pings beside guests that flood
    Fairness,
}

impl Topic {
    /// Takes its samples.
    pub(super) fn measure(self, options: &Options) -> Result<Taken> {
        let name = self.name();
        match self {
            Self::Switch => Ok(frames::role(options, name, Role::Switch)),
            Self::Echo => Ok(frames::role(options, name, Role::Echo)),
            Self::Generate => Ok(frames::role(options, name, Role::Generate)),
            Self::Sink => Ok(frames::role(options, name, Role::Sink)),
            Self::Drivers => Ok(drivers::measure(options, name)),
            Self::Tcp => guests::tcp(options, name),
            Self::Pages => frames::pages(options, name),
            Self::Ports => Ok(frames::ports(options, name)),
            Self::Idle => idle::measure(options, name),
            Self::Calls => Ok(frames::calls(options, name)),
            Self::Latency => guests::latency(options, name),
            Self::Host => guests::host(options, name),
            Self::Fairness => flood::fairness(options, name),
        }
    }
}

impl Comparison for Topic {
    const PART: Part = Part {
        name: "network",
        title: "Network",
        reading: READING,
        plots: "",
        results: "results.json",
        peers: || {
            vec![
                ("DPDK", package("dpdk-dev")),
                ("Open vSwitch", ovs::version()),
                ("QEMU", package("qemu-system-x86")),
                ("User-Mode Linux", package("user-mode-linux")),
                ("iperf3", package("iperf3")),
            ]
        },
    };

    fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Echo => "echo",
            Self::Generate => "generate",
            Self::Sink => "sink",
            Self::Drivers => "drivers",
            Self::Tcp => "tcp",
            Self::Pages => "pages",
            Self::Ports => "ports",
            Self::Idle => "idle",
            Self::Calls => "calls",
            Self::Latency => "latency",
            Self::Host => "host",
            Self::Fairness => "fairness",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Switch => "Guest to guest",
            Self::Echo => "Echo",
            Self::Generate => "To a guest",
            Self::Sink => "From a guest",
            Self::Drivers => "Drivers in user space",
            Self::Tcp => "TCP, guest to guest",
            Self::Pages => "Pages of 4 KiB",
            Self::Ports => "Many ports, two of them busy",
            Self::Idle => "A thousand idle ports",
            Self::Calls => "System calls under load",
            Self::Latency => "Round trips after idle",
            Self::Host => "TCP, guest and host",
            Self::Fairness => "Beside a flood",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Switch
            | Self::Echo
            | Self::Generate
            | Self::Sink
            | Self::Drivers
            | Self::Pages
            | Self::Ports => "million frames/s",
            Self::Idle => "KiB/port",
            Self::Calls => "system calls/1000 frames",
            Self::Tcp | Self::Host => "Gbit/s",
            Self::Latency => "µs, p50",
            Self::Fairness => "µs, p99",
        }
    }

    fn higher_is_better(self) -> bool {
        !matches!(self, Self::Idle | Self::Calls | Self::Latency | Self::Fairness)
    }

    fn about(self) -> &'static str {
        match self {
            Self::Switch => {
                "Two ports of one DPDK driver send to each other through the back-end, a fixed number of frames going \
                 round, half a ring each way. Ringway is a learning switch, and so is Open vSwitch (action NORMAL, one \
                 polling thread, with huge pages); testpmd only moves frames from one `net_vhost` port to the other."
            }
            Self::Echo => {
                "The driver sends as fast as it can, the back-end returns each frame with its addresses swapped."
            }
            Self::Generate => {
                "The back-end sends as fast as the driver takes frames, and the driver drops them."
            }
            Self::Sink => "The driver sends as fast as it can, the back-end reads the frames and drops them.",
            Self::Drivers => {
                "The three roles above with Ringway as the back-end: driven by `ringway-driver` over vhost-user \
                 (`benches/net-driver`), and by DPDK's virtio_user as in the other tables. Where DPDK's is vectorized, \
                 Ringway's has packed rings, used in order."
            }
            Self::Tcp => {
                "Two guests of User-Mode Linux, one connection of iperf3 from one to the other: through Ringway, \
                 through taps and the kernel's bridge by UML's own `vector` transport (with the tap's offloads), and \
                 through `uml_switch` by its `daemon` transport."
            }
            Self::Pages => {
                "Guest to guest through Ringway. The driver's memory, which the back-end maps, is made of ordinary \
                 pages in all other rows."
            }
            Self::Ports => {
                "Guest to guest through Ringway, between two ports of a switch that has more; at the others \
                 front-ends are attached, their rings run, and they send nothing."
            }
            Self::Idle => {
                "A switch with a thousand front-ends attached, one queue pair of 256 entries each, rings running, \
                 nothing sent. Memory is what the server's own grew by since it had none (the guests' memory, which it \
                 maps, is not its own); processor time is over five seconds."
            }
            Self::Calls => {
                "Guest to guest as in the first table, with `strace -c -f` on the back-end. The driver's kicks and \
                 the calls to it are by Ringway's own counters; the other back-ends have none."
            }
            Self::Latency => {
                "Pings ten milliseconds apart, so that guests and servers sleep in between: a guest's, another's and \
                 the server's wake-up are in each. The middle round trip of a sample is its value."
            }
            Self::Host => {
                "A guest under QEMU's emulation and its host, through a tap: with `ringway net` as the back-end, and with \
                 QEMU's own (in QEMU's process: what vhost was made to replace). Processor time is that of QEMU and the \
                 back-end, and the same without the emulated processor; system calls are those of both, for each \
                 frame on the tap, as strace counts them a moment later."
            }
            Self::Fairness => {
                "Pings between two guests of User-Mode Linux through Ringway, while two other guests are away, and while \
                 they (DPDK) send each other 64-byte frames as fast as they can. The server has a core to itself; all \
                 guests share the other, the flooding ones at the lowest priority. The value of a sample is the round \
                 trip that 99 of 100 keep."
            }
        }
    }
}

const READING: &str = "
What the columns say:

- Busy shares are what the programs count as spent on bursts that had frames. *CPU ns/frame* is all processor time that
  a back-end took: polling ones take their whole core always, Ringway sleeps when there has been nothing to do for a while
  (`--busy-poll`).
- *limit* is the side that a row waits for: the one that was busy more than 90 % of the time, the driver first. Where the
  driver sends by itself it is the back-end if the driver often found the ring full. Where the driver is the limit, the
  back-end could do more than the figure says.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_one_name() {
        for topic in Topic::value_variants() {
            assert_eq!(topic.to_possible_value().unwrap().get_name(), topic.name());
        }
    }
}
