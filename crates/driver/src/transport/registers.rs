//! Registers of a device, and the fields in them: reached one at a time, by accesses of a field's own width.

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

/// A window on registers: of a device, or of a PCI function's configuration space. Values are numbers; in the registers
/// they are little-endian.
///
/// Each method is one access of that width, at an offset that is a multiple of it and inside the window. What the driver
/// wrote to memory before it writes a register is visible to the device then; what the device wrote to memory before a
/// register was read is visible to the driver after.
pub trait Registers {
    /// Bytes of the window.
    fn len(&self) -> usize;

    /// Whether there is no register.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads 8 bits.
    fn read_u8(&self, offset: usize) -> u8;

    /// Reads 16 bits.
    fn read_u16(&self, offset: usize) -> u16;

    /// Reads 32 bits.
    fn read_u32(&self, offset: usize) -> u32;

    /// Writes 8 bits.
    fn write_u8(&self, offset: usize, value: u8);

    /// Writes 16 bits.
    fn write_u16(&self, offset: usize, value: u16);

    /// Writes 32 bits.
    fn write_u32(&self, offset: usize, value: u32);
}

/// Registers that are mapped as memory.
///
/// The compiler chooses the instructions of a volatile access, and the fences are those of `core`, which order memory. An
/// architecture where a hypervisor cannot emulate every load and store (`AArch64`), or where such a fence leaves
/// device registers out (RISC-V), has accessors of its own: implement [`Registers`] by these.
#[derive(Debug)]
pub struct MappedRegisters {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: registers belong to no thread; each access is one load or store of what `MappedRegisters::new` was promised.
unsafe impl Send for MappedRegisters {}
// SAFETY: as for Send; there is no state but the device's.
unsafe impl Sync for MappedRegisters {}

macro_rules! accesses {
    ($value:ty, $read:ident, $write:ident) => {
        #[inline]
        fn $read(&self, offset: usize) -> $value {
            let register = self.register::<$value>(offset);
            // SAFETY: `register` is in the window, aligned, and valid for reads as `new` was promised.
            let value = unsafe { register.read_volatile() };
            fence(Ordering::SeqCst);
            <$value>::from_le(value)
        }

        #[inline]
        fn $write(&self, offset: usize, value: $value) {
            let register = self.register::<$value>(offset);
            fence(Ordering::SeqCst);
            // SAFETY: `register` is in the window, aligned, and valid for writes as `new` was promised.
            unsafe { register.write_volatile(value.to_le()) };
        }
    };
}

impl MappedRegisters {
    /// The `len` bytes of registers at `base`.
    ///
    /// # Safety
    /// For as long as this value lives the range must be mapped, for the device's registers (uncached) and nothing else, and
    /// no Rust reference may point into it.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len }
    }

    /// Where a register is.
    ///
    /// # Panics
    /// If it is not in the window, or its address no multiple of its width: the caller's fault.
    #[inline]
    fn register<T>(&self, offset: usize) -> NonNull<T> {
        let fits = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len);
        assert!(fits, "no register of {} bytes at {offset:#x}", size_of::<T>());
        // SAFETY: in the window, as was just checked.
        let register = unsafe { self.base.add(offset) }.cast::<T>();
        assert!(register.is_aligned(), "a misaligned register at {offset:#x}");
        register
    }
}

impl Registers for MappedRegisters {
    fn len(&self) -> usize {
        self.len
    }

    accesses!(u8, read_u8, write_u8);
    accesses!(u16, read_u16, write_u16);
    accesses!(u32, read_u32, write_u32);
}

/// Reads a field of 1, 2 or 4 bytes by one access.
///
/// # Panics
/// If it has another width.
pub(super) fn read_field(registers: &impl Registers, offset: usize, to: &mut [u8]) {
    match to.len() {
        1 => to.copy_from_slice(&registers.read_u8(offset).to_le_bytes()),
        2 => to.copy_from_slice(&registers.read_u16(offset).to_le_bytes()),
        4 => to.copy_from_slice(&registers.read_u32(offset).to_le_bytes()),
        len => panic!("a field of {len} bytes is read in parts"),
    }
}

/// Writes a field of 1, 2 or 4 bytes by one access.
///
/// # Panics
/// If it has another width.
pub(super) fn write_field(registers: &impl Registers, offset: usize, from: &[u8]) {
    match *from {
        [a] => registers.write_u8(offset, a),
        [a, b] => registers.write_u16(offset, u16::from_le_bytes([a, b])),
        [a, b, c, d] => registers.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
        _ => panic!("a field of {} bytes is written in parts", from.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::{MappedRegisters, NonNull, Registers, read_field, write_field};

    /// Runs `test` on registers that are plain memory, then returns their bytes.
    fn registers(test: impl FnOnce(&MappedRegisters)) -> [u8; 16] {
        let mut words = [0u32; 4];
        let base = NonNull::from(&mut words).cast();
        // SAFETY: the array outlives the registers, and nobody else reaches it meanwhile.
        test(&unsafe { MappedRegisters::new(base, 16) });
        let mut bytes = [0; 16];
        for (to, word) in bytes.chunks_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn what_is_written_stands_there_little_endian() {
        let bytes = registers(|registers| {
            registers.write_u8(1, 0x11);
            registers.write_u16(2, 0x3322);
            registers.write_u32(12, 0x7766_5544);
            assert_eq!(registers.read_u32(0), 0x3322_1100);
            assert_eq!((registers.read_u16(14), registers.read_u8(14)), (0x7766, 0x66));
        });
        assert_eq!(bytes, [0, 0x11, 0x22, 0x33, 0, 0, 0, 0, 0, 0, 0, 0, 0x44, 0x55, 0x66, 0x77]);
    }

    #[test]
    fn fields_are_bytes_as_they_stand_there() {
        let bytes = registers(|registers| {
            write_field(registers, 4, &[1]);
            write_field(registers, 6, &[2, 3]);
            write_field(registers, 8, &[4, 5, 6, 7]);
            let mut field = [0; 4];
            read_field(registers, 4, &mut field);
            assert_eq!(field, [1, 0, 2, 3]);
            read_field(registers, 6, &mut field[..2]);
            read_field(registers, 11, &mut field[2..3]);
            assert_eq!(field, [2, 3, 7, 3]);
        });
        assert_eq!(bytes, [0, 0, 0, 0, 1, 0, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "no register of 2 bytes at 0x10")]
    fn there_is_nothing_past_the_window() {
        registers(|registers| registers.write_u16(16, 0));
    }

    #[test]
    #[should_panic(expected = "misaligned")]
    fn an_access_is_aligned() {
        registers(|registers| {
            registers.read_u32(2);
        });
    }
}
