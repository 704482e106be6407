//! What is printed goes to the first serial line, which the firmware may have set up or not: QEMU's needs no speed.

use core::fmt;

use crate::port;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// The line.
pub(crate) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: reading the status changes nothing else.
            while unsafe { port::read_u8(LINE_STATUS) } & TRANSMITTER_EMPTY == 0 {
                core::hint::spin_loop();
            }
            // SAFETY: sends the byte.
            unsafe { port::write_u8(COM1, byte) };
        }
        Ok(())
    }
}

/// Prints a line.
macro_rules! say {
    ($($arguments:tt)*) => {{
        let _ = core::fmt::Write::write_fmt(&mut $crate::serial::Serial, format_args!("{}\n", format_args!($($arguments)*)));
    }};
}
pub(crate) use say;
