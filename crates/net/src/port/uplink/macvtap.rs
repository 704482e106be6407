//! Where a macvtap's device is: `/dev/tapN`, N the interface's number, or a node of our own for the same device.
//!
//! Interfaces of different network namespaces have the same numbers, and `/dev` is often of one namespace and often of a
//! container. So sysfs is asked for the device, and a node counts only if it is that one.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::UplinkError;
use super::tap::open_device;

/// A macvtap's device.
pub(super) struct Device<'n> {
    name: &'n str,
    path: PathBuf,
    /// Its number.
    number: u64,
}

impl<'n> Device<'n> {
    /// Finds it by the interface's name.
    pub(super) fn find(name: &'n str) -> Result<Self, UplinkError> {
        let class = Path::new("/sys/class/net").join(name);
        let find = || {
            let index: u32 = fs::read_to_string(class.join("ifindex")).ok()?.trim().parse().ok()?;
            let node = format!("tap{index}");
            let number = fs::read_to_string(class.join("macvtap").join(&node).join("dev")).ok()?;
            let (major, minor) = number.trim().split_once(':')?;
            let number = makedev(major.parse().ok()?, minor.parse().ok()?);
            Some(Self { name, path: Path::new("/dev").join(node), number })
        };
        find().ok_or_else(|| UplinkError::NoMacvtap { name: name.to_owned() })
    }

    /// Opens it: each file is a queue.
    pub(super) fn open(&self) -> Result<OwnedFd, UplinkError> {
        let is_node = fs::metadata(&self.path)
            .is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == self.number);
        let file = if is_node { open_device(&self.path) } else { self.open_own_node() };
        let path = || self.path.display().to_string();
        file.map_err(|error| UplinkError::OpenMacvtap { name: self.name.to_owned(), path: path(), error })
    }

    /// Makes a node for the moment of opening it.
    fn open_own_node(&self) -> io::Result<OwnedFd> {
        let path = std::env::temp_dir().join(format!("ringway-{}-{}", std::process::id(), self.name));
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, self.number)?;
        let file = open_device(&path);
        // It is of use to nobody else; that it stays would be no harm.
        let _ = fs::remove_file(&path);
        file
    }
}
