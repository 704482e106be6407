//! An uplink, as the command line names it.

use std::str::FromStr;

use ringway_net::switch::PortPolicy;
use ringway_net::{Mac, UplinkSpec};

use super::policy::PolicyOptions;

/// An interface of this host that is a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UplinkArg {
    pub(crate) spec: UplinkSpec,
    pub(crate) mac: Option<Mac>,
    pub(crate) policy: PortPolicy,
}

impl FromStr for UplinkArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let spec = parts.next().unwrap_or_default().parse()?;
        let (mut mac, mut policy) = (None, PolicyOptions::default());
        for part in parts {
            match part.split_once('=') {
                Some(("mac", value)) => mac = Some(value.parse()?),
                _ if policy.read(part)? => {}
                _ => return Err(format!("{part:?} is none of mac=ADDRESS, {}", PolicyOptions::NAMES)),
            }
        }
        Ok(Self { spec, mac, policy: policy.finish(mac)? })
    }
}

#[cfg(test)]
mod tests {
    use ringway_net::switch::Mode;

    use super::*;

    #[test]
    fn uplinks_have_options() {
        let uplink: UplinkArg = "packet:eth1,vlan=5,mac=02:00:00:00:00:01".parse().unwrap();
        assert_eq!(
            (uplink.spec.to_string().as_str(), &uplink.policy.mode),
            ("packet:eth1", &Mode::Access(5))
        );
        assert_eq!(uplink.mac, Some(Mac::new([2, 0, 0, 0, 0, 1])));
        for wrong in ["eth1", "packet:eth1,", "packet:eth1,client", "packet:eth1,mac=1", "packet:eth1,vlan=x"]
        {
            assert!(wrong.parse::<UplinkArg>().is_err(), "{wrong}");
        }
    }
}
