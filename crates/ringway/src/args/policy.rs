//! The options that say what a port of the switch may do: the same for guests and for uplinks.

use ringway_net::Mac;
use ringway_net::switch::{Limit, Mode, PortPolicy, VlanSet, vlan_number};

/// The options read so far.
#[derive(Debug, Default)]
pub(crate) struct PolicyOptions {
    vlan: Option<u16>,
    trunk: Option<VlanSet>,
    native: Option<u16>,
    pinned: Option<Vec<Mac>>,
    isolated: bool,
    macs: Option<usize>,
    storm: Option<u64>,
    sending: Limit,
    receiving: Limit,
}

impl PolicyOptions {
    /// The options, for messages.
    pub(crate) const NAMES: &str = "vlan=N, trunk=LIST, native=N, pinned[=ADDRESSES], isolated, macs=N, storm=FRAMES, \
                                    tx-rate=BITS, rx-rate=BITS, tx-frames=N, rx-frames=N";

    /// Reads an option; returns whether it is one of these.
    ///
    /// # Errors
    /// A message for people.
    pub(crate) fn read(&mut self, option: &str) -> Result<bool, String> {
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("vlan", Some(value)) => self.vlan = Some(vlan_number(value)?),
            ("trunk", Some(value)) => self.trunk = Some(value.parse()?),
            ("native", Some(value)) => self.native = Some(vlan_number(value)?),
            ("pinned", None) => self.pinned = Some(Vec::new()),
            ("pinned", Some(value)) => {
                self.pinned = Some(value.split('+').map(str::parse).collect::<Result<_, _>>()?);
            }
            ("isolated", None) => self.isolated = true,
            ("macs", Some(value)) => self.macs = Some(macs(value)?),
            ("storm", Some(value)) => self.storm = Some(amount(option, value)?),
            ("tx-rate", Some(value)) => self.sending.bits = Some(amount(option, value)?),
            ("rx-rate", Some(value)) => self.receiving.bits = Some(amount(option, value)?),
            ("tx-frames", Some(value)) => self.sending.frames = Some(amount(option, value)?),
            ("rx-frames", Some(value)) => self.receiving.frames = Some(amount(option, value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What they come to, for a port with this address of its own.
    ///
    /// # Errors
    /// A message for people, if they contradict each other.
    pub(crate) fn finish(self, mac: Option<Mac>) -> Result<PortPolicy, String> {
        let Self { vlan, trunk, native, pinned, isolated, macs, storm, sending, receiving } = self;
        let mode = match (vlan, trunk, native) {
            (None, None, None) => Mode::default(),
            (Some(vlan), None, None) => Mode::Access(vlan),
            (Some(_), ..) => {
                return Err(
                    "vlan=N is for a port in one VLAN, trunk=LIST and native=N for one in several".into()
                );
            }
            (None, trunk, native) => {
                let mut allowed = trunk.unwrap_or_else(VlanSet::all);
                if let Some(native) = native {
                    allowed.insert(native);
                    // Without a tag a frame is in that one, so none can be in VLAN 0.
                    allowed.remove(0);
                }
                Mode::Trunk { allowed, native: native.unwrap_or(0) }
            }
        };
        let pinned = pinned.map(|more| mac.into_iter().chain(more).collect::<Vec<_>>());
        if pinned.as_ref().is_some_and(Vec::is_empty) {
            return Err("pinned needs the port's address, mac=ADDRESS, or pinned=ADDRESS+ADDRESS".into());
        }
        let policy = PortPolicy::default();
        Ok(PortPolicy {
            mode,
            pinned: pinned.unwrap_or_default(),
            isolated,
            macs: macs.unwrap_or(policy.macs),
            storm,
            from: sending,
            to: receiving,
        })
    }
}

/// The most addresses that `macs=` may say.
const MAX_MACS: usize = 65536;

fn macs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(macs @ 1..=MAX_MACS) => Ok(macs),
        _ => Err(format!("macs={text} is not a number of addresses from 1 to {MAX_MACS}")),
    }
}

/// So many in a second, with k, M or G behind it for thousands, millions and billions.
fn amount(option: &str, text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes() {
        [.., b'k' | b'K'] => (&text[..text.len() - 1], 1_000),
        [.., b'M'] => (&text[..text.len() - 1], 1_000_000),
        [.., b'G'] => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let amount = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|&n| n > 0);
    amount.ok_or_else(|| format!("{option} is not a number per second such as 1000, 64k, 100M or 10G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &str) -> Result<PortPolicy, String> {
        let mut policy = PolicyOptions::default();
        for option in options.split(',').filter(|o| !o.is_empty()) {
            assert!(policy.read(option)?, "{option} is none");
        }
        policy.finish(Some(Mac::new([2, 0, 0, 0, 0, 1])))
    }

    #[test]
    fn nothing_said_is_a_plain_switch() {
        assert_eq!(read(""), Ok(PortPolicy::default()));
    }

    #[test]
    fn vlans_are_read() {
        assert_eq!(read("vlan=5").unwrap().mode, Mode::Access(5));
        assert_eq!(read("trunk=all").unwrap().mode, Mode::default());
        let Ok(Mode::Trunk { allowed, native: 7 }) = read("trunk=10+20-22,native=7").map(|p| p.mode) else {
            panic!("a trunk")
        };
        assert_eq!(allowed, "7+10+20-22".parse().unwrap());
        let Ok(Mode::Trunk { allowed, native: 7 }) = read("native=7").map(|p| p.mode) else {
            panic!("a trunk")
        };
        assert!(!allowed.contains(0) && allowed.contains(7) && allowed.contains(4094));
    }

    #[test]
    fn rules_and_limits_are_read() {
        let policy =
            read("isolated,macs=9,storm=1k,tx-rate=100M,rx-rate=1G,tx-frames=5,rx-frames=10k").unwrap();
        assert!(policy.isolated);
        assert_eq!((policy.macs, policy.storm), (9, Some(1000)));
        assert_eq!(policy.from, Limit { bits: Some(100_000_000), frames: Some(5) });
        assert_eq!(policy.to, Limit { bits: Some(1_000_000_000), frames: Some(10_000) });
        let own = Mac::new([2, 0, 0, 0, 0, 1]);
        assert_eq!(read("pinned").unwrap().pinned, [own]);
        let more = read("pinned=02:00:00:00:00:02+02:00:00:00:00:03").unwrap().pinned;
        assert_eq!(more, [own, Mac::new([2, 0, 0, 0, 0, 2]), Mac::new([2, 0, 0, 0, 0, 3])]);
        let mut nobody = PolicyOptions::default();
        assert_eq!(nobody.read("pinned"), Ok(true));
        assert!(nobody.finish(None).unwrap_err().contains("mac=ADDRESS"));
    }

    /// Every bad value has a message that names it.
    #[test]
    fn bad_values_are_refused() {
        for wrong in [
            "vlan=0",
            "vlan=4095",
            "vlan=x",
            "trunk=",
            "trunk=4095",
            "trunk=5-4",
            "native=0",
            "macs=0",
            "macs=65537",
            "storm=0",
            "storm=-1",
            "tx-rate=",
            "tx-rate=1T",
            "tx-rate=1.5G",
            "tx-rate=M",
            "rx-rate=99999999999G",
            "rx-frames=x",
            "pinned=",
            "pinned=1",
        ] {
            let value = wrong.split_once('=').unwrap().1;
            let error = read(wrong).unwrap_err();
            assert!(error.contains(value), "{wrong}: {error}");
        }
        assert!(read("vlan=5,native=6").unwrap_err().contains("in one VLAN"));
        let mut options = PolicyOptions::default();
        for other in ["", "vlan", "isolated=1", "mac=02:00:00:00:00:01", "rate=1"] {
            assert_eq!(options.read(other), Ok(false), "{other}");
        }
    }
}
