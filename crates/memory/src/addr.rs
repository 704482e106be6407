//! The address spaces that meet here, each its own type so that none is taken for another.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `offset` bytes further, unless it leaves the address space.
            pub fn checked_add(self, offset: u64) -> Option<Self> {
                self.0.checked_add(offset).map(Self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address.
    Gpa
}
address! {
    /// An I/O virtual address: what the device sees from behind an IOMMU.
    Iova
}
address! {
    /// What a descriptor holds: a guest-physical address, or where the memory table has a translation an I/O virtual
    /// one.
    BusAddr
}
address! {
    /// An address in the front-end's process: how vhost-user messages name rings.
    FrontendVa
}
