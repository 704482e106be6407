//! Addresses of a device that is behind an IOMMU: what its descriptors hold goes through a translation of somebody
//! else's, which may not know an address yet.

use core::fmt;

use crate::{FrontendVa, Iova, MemoryError};

/// What is done with memory, or may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    /// It is read.
    pub read: bool,
    /// It is written.
    pub write: bool,
}

impl Access {
    /// Reading.
    pub const READ: Self = Self { read: true, write: false };
    /// Writing.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Both.
    pub const READ_WRITE: Self = Self { read: true, write: true };

    /// Whether who may do this may do all that is `wanted`.
    pub const fn allows(self, wanted: Self) -> bool {
        (self.read || !wanted.read) && (self.write || !wanted.write)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.read, self.write) {
            (true, true) => "reading and writing",
            (true, false) => "reading",
            (false, true) => "writing",
            (false, false) => "no access",
        })
    }
}

/// Where I/O virtual addresses lead.
pub trait Translation: Send + Sync {
    /// Hands the `len` bytes at `iova` to `piece`, in order, one by one of those ranges that adjoin for the front-end too;
    /// all of one moment.
    ///
    /// # Errors
    /// [`MemoryError::Miss`] for an address that is not known, [`MemoryError::Denied`] for one that may not be accessed
    /// this way, [`MemoryError::BadRange`] if the range leaves the address space, and those of `piece`.
    fn translate(
        &self,
        iova: Iova,
        len: u64,
        access: Access,
        piece: &mut dyn FnMut(FrontendVa, u64) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError>;

    /// How often something was told that can make an address known. As long as this stays, so does every miss.
    fn updates(&self) -> u64;
}
