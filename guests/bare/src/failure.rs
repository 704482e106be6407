//! Why something failed: text, for whoever reads it.

use alloc::string::{String, ToString};
use core::error::Error;
use core::fmt;

/// Why it failed. Made of any error, or of what was expected.
pub(crate) struct Failure(pub(crate) String);

/// What may fail like that.
pub(crate) type Result<T> = core::result::Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Ends a function, with why.
macro_rules! fail {
    ($($why:tt)*) => {
        return Err($crate::failure::Failure(alloc::format!($($why)*)))
    };
}

/// Ends a function with why, unless something is so.
macro_rules! ensure {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            $crate::failure::fail!($($why)*);
        }
    };
}

pub(crate) use {ensure, fail};
