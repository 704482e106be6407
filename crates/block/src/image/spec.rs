//! How people name an image.
//!
//! ```text
//!   mem:SIZE      a disk in memory           null:SIZE     a disk of nothing
//!   nbd://…       an export of an NBD server: nbds://, nbd+unix:// and nbds+unix:// as well
//!   PATH          a file or a block device; `./mem:1G` is a file
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::nbd::{Uri, UriError};

/// Which image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSpec {
    /// A file or a block device.
    File(PathBuf),
    /// So many bytes of memory.
    Memory(u64),
    /// So many bytes that nobody keeps: reads leave the buffer as it is.
    Null(u64),
    /// What an NBD server has.
    Nbd(Uri),
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    /// Nothing.
    #[error("an image has a name")]
    Empty,
    /// Not a size.
    #[error("{0:?} is not a size: a number of bytes, or of K, M, G or T (1G), in multiples of 512")]
    Size(String),
    /// Nothing that can be reached like this.
    #[error("there are no images at {0}://")]
    Scheme(String),
    /// What a server has is named in another way.
    #[error(transparent)]
    Nbd(#[from] UriError),
}

impl FromStr for ImageSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.is_empty() {
            return Err(SpecError::Empty);
        }
        if let Some(size) = text.strip_prefix("mem:") {
            return Ok(Self::Memory(parse_size(size)?));
        }
        if let Some(size) = text.strip_prefix("null:") {
            return Ok(Self::Null(parse_size(size)?));
        }
        if let Some((scheme, _)) = text.split_once("://")
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+')
        {
            let is_nbd = scheme.to_ascii_lowercase().starts_with("nbd");
            return if is_nbd {
                Ok(Self::Nbd(text.parse()?))
            } else {
                Err(SpecError::Scheme(scheme.to_owned()))
            };
        }
        Ok(Self::File(text.into()))
    }
}

impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Memory(size) => write!(f, "mem:{size}"),
            Self::Null(size) => write!(f, "null:{size}"),
            Self::Nbd(uri) => uri.fmt(f),
        }
    }
}

/// A disk's size: bytes, or with a suffix K, M, G, T powers of 1024 of them.
///
/// # Errors
/// [`SpecError::Size`] for anything else, and if it is no multiple of 512.
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    let bad = || SpecError::Size(text.to_owned());
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let size = number.checked_mul(1 << shift).ok_or_else(bad)?;
    // More than a file can have.
    if size % 512 != 0 || i64::try_from(size).is_err() { Err(bad()) } else { Ok(size) }
}
