//! The processor's I/O ports.

use core::arch::asm;

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads a port.
        ///
        /// # Safety
        /// What reading the port does must be meant; it touches no memory that Rust knows.
        pub(crate) unsafe fn $read(port: u16) -> $type {
            let value;
            // SAFETY: the caller's.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nomem, nostack));
            }
            value
        }

        /// Writes to a port.
        ///
        /// # Safety
        /// What writing to the port does must be meant; it touches no memory that Rust knows.
        pub(crate) unsafe fn $write(port: u16, value: $type) {
            // SAFETY: the caller's.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nomem, nostack));
            }
        }
    };
}

access!(read_u8, write_u8, u8, "al");
access!(read_u16, write_u16, u16, "ax");
access!(read_u32, write_u32, u32, "eax");
