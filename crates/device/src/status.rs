//! Feature negotiation and the device status (2.1, 2.2, 3.1).
//!
//! ```text
//!  reset ──► ACKNOWLEDGE, DRIVER ──features acked──► FEATURES_OK ──► DRIVER_OK (live)
//!    ▲                                  └─ refused: the bit does not stick          │
//!    └──────────────────────────────── status := 0 ────────────────────────────────┘
//! ```

use ringway_spec::feature::SUSPEND;
use ringway_spec::status::DeviceStatus;
use thiserror::Error;

/// Why a set of features is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FeatureError {
    /// Bits that the device did not offer.
    #[error("features {0:#x} were acked but not offered")]
    NotOffered(u64),
    /// A feature without another that it requires (2.2.1).
    #[error("feature {feature:#x} was acked without {requires:#x}, which it requires")]
    Requires {
        /// The bit that was acked.
        feature: u64,
        /// The bit it needs.
        requires: u64,
    },
}

/// Where a device and its driver are in their negotiation.
#[derive(Debug, Clone)]
pub struct Negotiation {
    offered: u64,
    /// Pairs of a feature and one that it requires.
    requires: &'static [(u64, u64)],
    acked: Option<u64>,
    status: DeviceStatus,
}

impl Negotiation {
    /// A device after reset that offers `offered`; `requires` lists pairs of a feature and one that it requires.
    pub fn new(offered: u64, requires: &'static [(u64, u64)]) -> Self {
        Self { offered, requires, acked: None, status: DeviceStatus::empty() }
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The device offers these as well: what concerns the transport is known to who shows the device, not to its model.
    pub fn offer(&mut self, features: u64) {
        self.offered |= features;
    }

    /// What the driver acked; 0 before it did.
    pub fn acked(&self) -> u64 {
        self.acked.unwrap_or(0)
    }

    /// What the driver acked, if it did.
    pub fn accepted(&self) -> Option<u64> {
        self.acked
    }

    /// The driver acks features.
    ///
    /// # Errors
    /// [`FeatureError`]; what was acked before is forgotten, so that `FEATURES_OK` will not stick.
    pub fn ack(&mut self, features: u64) -> Result<(), FeatureError> {
        self.acked = None;
        let unknown = features & !self.offered;
        if unknown != 0 {
            return Err(FeatureError::NotOffered(unknown));
        }
        let has = |bit: u64| features & bit != 0;
        if let Some(&(feature, requires)) = self.requires.iter().find(|(f, r)| has(*f) && !has(*r)) {
            return Err(FeatureError::Requires { feature, requires });
        }
        self.acked = Some(features);
        Ok(())
    }

    /// The device status as the driver reads it.
    pub fn status(&self) -> DeviceStatus {
        self.status
    }

    /// The driver writes the device status. 0 resets. `FEATURES_OK` sticks only if the features were accepted;
    /// unknown bits never do.
    pub fn write_status(&mut self, value: u8) {
        let mut status = DeviceStatus::from_bits_truncate(value);
        if status.is_empty() {
            self.reset();
            return;
        }
        if self.acked.is_none() {
            status.remove(DeviceStatus::FEATURES_OK);
        }
        // Only a device that offers to be suspended can be (3.4).
        status.set(
            DeviceStatus::SUSPEND,
            status.contains(DeviceStatus::SUSPEND) && self.acked() & SUSPEND != 0,
        );
        // The device alone sets this one, and only a reset clears it.
        status.set(DeviceStatus::DEVICE_NEEDS_RESET, self.status.contains(DeviceStatus::DEVICE_NEEDS_RESET));
        self.status = status;
    }

    /// The device has failed in a way that only a reset mends (2.1.2).
    pub fn need_reset(&mut self) {
        self.status |= DeviceStatus::DEVICE_NEEDS_RESET;
    }

    /// Whether the driver said that it is set up.
    pub fn is_live(&self) -> bool {
        self.status.contains(DeviceStatus::DRIVER_OK)
    }

    /// Goes on, after reset, where another device's negotiation was.
    ///
    /// # Errors
    /// [`FeatureError`], if this device does not offer what the other did.
    pub fn restore(&mut self, acked: Option<u64>, status: u8) -> Result<(), FeatureError> {
        if let Some(acked) = acked {
            self.ack(acked)?;
        }
        if status != 0 {
            self.write_status(status);
        }
        if DeviceStatus::from_bits_retain(status).contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            self.need_reset();
        }
        Ok(())
    }

    /// Back to the start: status 0, nothing acked.
    pub fn reset(&mut self) {
        self.acked = None;
        self.status = DeviceStatus::empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 1;
    const NEEDS_A: u64 = 2;

    fn device() -> Negotiation {
        Negotiation::new(A | NEEDS_A, &[(NEEDS_A, A)])
    }

    /// [DEV-CORE-features-02] Every valid subset is accepted; FEATURES_OK does not stick after another.
    #[test]
    fn features_ok_sticks_only_after_a_valid_subset() {
        for (acked, valid) in
            [(0, true), (A, true), (A | NEEDS_A, true), (NEEDS_A, false), (4, false), (A | 4, false)]
        {
            let mut device = device();
            assert_eq!(device.ack(acked).is_ok(), valid, "{acked}");
            let wanted = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK;
            device.write_status(wanted.bits());
            assert_eq!(device.status().contains(DeviceStatus::FEATURES_OK), valid, "{acked}");
            assert_eq!(device.acked(), if valid { acked } else { 0 });
        }
    }

    /// A later refusal takes the earlier acceptance back: the driver must not go on with either.
    #[test]
    fn a_refused_ack_forgets_the_one_before() {
        let mut device = device();
        device.ack(A).unwrap();
        assert_eq!(device.ack(8), Err(FeatureError::NotOffered(8)));
        device.write_status(DeviceStatus::FEATURES_OK.bits());
        assert!(device.status().is_empty());
    }

    /// [DEV-CORE-device-reset-01] Status 0 resets the status, and renegotiating the same features succeeds
    /// [DEV-CORE-features-04].
    #[test]
    fn writing_zero_resets() {
        let mut device = device();
        for _ in 0..2 {
            device.ack(A).unwrap();
            device.write_status((DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK).bits());
            assert!(device.is_live());
            device.write_status(0);
            assert_eq!(device.status().bits(), 0);
            assert!(!device.is_live());
            assert_eq!(device.acked(), 0);
        }
    }

    #[test]
    fn the_driver_cannot_set_what_is_the_devices() {
        let mut device = device();
        device.write_status(0xff);
        assert!(!device.status().contains(DeviceStatus::DEVICE_NEEDS_RESET));
    }

    /// [DEV-CORE-device-suspend-01] A device is not suspended before it is set up, and not after either: it did not offer
    /// that.
    #[test]
    fn a_driver_cannot_suspend_what_does_not_offer_it() {
        let mut device = device();
        device.write_status((DeviceStatus::ACKNOWLEDGE | DeviceStatus::SUSPEND).bits());
        assert_eq!(device.status(), DeviceStatus::ACKNOWLEDGE);
        device.ack(A).unwrap();
        let live = DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK;
        device.write_status((live | DeviceStatus::SUSPEND).bits());
        assert_eq!(device.status(), live);
    }
}
