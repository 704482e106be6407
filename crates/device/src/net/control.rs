//! The control queue's commands (5.1.6.5): the number of queue pairs, and an error for all others.

use ringway_spec::net::{CTRL_ERR, CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, CTRL_OK, MQ_PAIRS_MIN};

use super::NetDevice;

/// Carries out the command whose class, command and arguments are these bytes.
pub(super) fn run(device: &mut NetDevice, command: &[u8]) -> u8 {
    match *command {
        [CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, low, high] => {
            let pairs = u16::from_le_bytes([low, high]);
            if !(MQ_PAIRS_MIN..=device.settings.max_pairs).contains(&pairs) {
                return CTRL_ERR;
            }
            device.active_pairs = pairs;
            CTRL_OK
        }
        _ => CTRL_ERR,
    }
}
