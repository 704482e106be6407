//! A port of the switch, as the command line names it.

use std::path::PathBuf;
use std::str::FromStr;

use ringway_net::Mac;
use ringway_net::switch::PortPolicy;

use super::policy::PolicyOptions;
use super::{DEFAULT_QUEUES, queues};

/// A port of the switch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
pub(crate) struct PortArg {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: Option<u16>,
    pub(crate) queues: u16,
    pub(crate) client: bool,
    pub(crate) iommu: bool,
    pub(crate) postcopy: bool,
    pub(crate) rss: bool,
    pub(crate) filters: bool,
    pub(crate) speed: Option<u32>,
    pub(crate) policy: PortPolicy,
}

impl FromStr for PortArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let (name, socket) = parts
            .next()
            .and_then(|p| p.split_once('='))
            .filter(|(name, socket)| !name.is_empty() && !socket.is_empty())
            .ok_or("it begins with NAME=SOCKET")?;
        let (name, socket) = (name.to_owned(), socket.into());
        let mut port = Self {
            name,
            socket,
            mac: None,
            mtu: None,
            queues: DEFAULT_QUEUES,
            client: false,
            iommu: false,
            postcopy: false,
            rss: false,
            filters: false,
            speed: None,
            policy: PortPolicy::default(),
        };
        let mut policy = PolicyOptions::default();
        for part in parts {
            match part.split_once('=') {
                Some(("mac", value)) => port.mac = Some(value.parse()?),
                Some(("mtu", value)) => {
                    port.mtu =
                        Some(value.parse().map_err(|_| format!("mtu={value} is not a number of bytes"))?);
                }
                Some(("queues", value)) => port.queues = queues(value)?,
                Some(("speed", value)) => {
                    port.speed =
                        Some(value.parse().map_err(|_| format!("speed={value} is not a number of Mbit/s"))?);
                }
                None if part == "client" => port.client = true,
                None if part == "iommu" => port.iommu = true,
                None if part == "postcopy" => port.postcopy = true,
                None if part == "rss" => port.rss = true,
                None if part == "filters" => port.filters = true,
                _ if policy.read(part)? => {}
                _ => {
                    return Err(format!(
                        "{part:?} is none of mac=ADDRESS, mtu=BYTES, queues=N, speed=MBITS, client, iommu, postcopy, rss, filters, {}",
                        PolicyOptions::NAMES
                    ));
                }
            }
        }
        port.policy = policy.finish(port.mac)?;
        Ok(port)
    }
}

/// A port that is watched, and the one that watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MirrorArg {
    pub(crate) from: String,
    pub(crate) to: String,
}

impl FromStr for MirrorArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((from, to)) if from == to => Err("a port cannot watch itself".into()),
            Some((from, to)) if !from.is_empty() && !to.is_empty() => {
                Ok(Self { from: from.to_owned(), to: to.to_owned() })
            }
            _ => Err("it is NAME=WATCHER, the names of two ports".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let port: PortArg = "a=/run/a.sock".parse().unwrap();
        assert_eq!((port.name.as_str(), port.socket.to_str(), port.queues), ("a", Some("/run/a.sock"), 8));
        assert_eq!(port.policy, PortPolicy::default());
        let port: PortArg = "b=s,client,mac=02:00:00:00:00:01,mtu=9000,queues=2".parse().unwrap();
        assert_eq!((port.client, port.mtu, port.queues), (true, Some(9000), 2));
        assert_eq!(port.mac, Some(Mac::new([2, 0, 0, 0, 0, 1])));
        assert!(!port.iommu && !port.postcopy);
        let port: PortArg = "b=s,postcopy,iommu".parse().unwrap();
        assert!(port.iommu && port.postcopy && !port.client);
        assert!(!port.rss && !port.filters && port.speed.is_none());
        let port: PortArg = "b=s,rss,filters,speed=25000".parse().unwrap();
        assert_eq!((port.rss, port.filters, port.speed), (true, true, Some(25_000)));
        for wrong in [
            "",
            "a",
            "=s",
            "a=",
            "a=s,",
            "a=s,mac=1",
            "a=s,mtu=x",
            "a=s,queues=0",
            "a=s,queues=128",
            "a=s,clint",
            "a=s,speed=fast",
            "a=s,vlan=0",
            "a=s,pinned",
        ] {
            assert!(wrong.parse::<PortArg>().is_err(), "{wrong}");
        }
    }

    /// An address may be said before or after it is pinned.
    #[test]
    fn policies_are_read() {
        for text in ["a=s,pinned,mac=02:00:00:00:00:01,isolated", "a=s,mac=02:00:00:00:00:01,isolated,pinned"]
        {
            let PortPolicy { pinned, isolated, .. } = text.parse::<PortArg>().unwrap().policy;
            assert_eq!((pinned, isolated), (vec![Mac::new([2, 0, 0, 0, 0, 1])], true));
        }
    }

    #[test]
    fn mirrors_are_read() {
        assert_eq!("a=b".parse(), Ok(MirrorArg { from: "a".into(), to: "b".into() }));
        for wrong in ["", "a", "a=", "=a", "a=a"] {
            assert!(wrong.parse::<MirrorArg>().is_err(), "{wrong}");
        }
    }
}
