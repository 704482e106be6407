//! Memory that arrives later: in a postcopy migration a guest runs before all its pages have come.
//!
//! Whoever touches a page of a watched region that is not there waits in the kernel, and whoever holds the file
//! descriptor is told. The front-end holds it: it fetches the page, puts it into the file that the region is mapped
//! from, and lets the waiter go on. This side opens the watch and registers regions; it never reads an event.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::Region;

/// What `linux/userfaultfd.h` calls `UFFD_API`.
const API: u64 = 0xaa;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const IOCTL_API: libc::Ioctl = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const IOCTL_REGISTER: libc::Ioctl = 0xc020_aa00;
/// `_IOR(0xaa, 0x01, struct uffdio_range)`.
const IOCTL_UNREGISTER: libc::Ioctl = 0x8010_aa01;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MODE_MISSING: u64 = 1;
/// Pages are at least this long, in bytes.
const PAGE: u64 = 4096;

/// `struct uffdio_api`.
#[repr(C)]
struct ApiRequest {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

impl Range {
    /// A region's mapping, which begins and ends with a page.
    fn of(region: &Region) -> Self {
        let start = region.backend_va() & !(PAGE - 1);
        let end = (region.backend_va() + region.len()).next_multiple_of(PAGE);
        Self { start, len: end - start }
    }
}

/// `struct uffdio_register`.
#[repr(C)]
struct RegisterRequest {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// A watch over regions whose pages arrive later. Closed by everyone who holds it, it ends, and pages that have not
/// come read as zeros.
pub struct Userfault(OwnedFd);

impl Userfault {
    /// Opens a watch.
    ///
    /// # Errors
    /// The kernel's. `EPERM`: faults of the kernel's own accesses (a tap reads from guests' memory) are shown only to
    /// processes with `CAP_SYS_PTRACE`, or if `vm.unprivileged_userfaultfd` is 1.
    pub fn open() -> io::Result<Self> {
        // SAFETY: the call takes flags and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        let Ok(fd @ 0..) = libc::c_int::try_from(fd) else { return Err(io::Error::last_os_error()) };
        // SAFETY: the kernel has just opened it, for us.
        let watch = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        watch.ioctl(IOCTL_API, &mut ApiRequest { api: API, features: 0, ioctls: 0 })?;
        Ok(watch)
    }

    /// Watches a region: of its pages, those that are missing when they are touched.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` if the region's file is of a kind that cannot be watched.
    pub fn watch(&self, region: &Region) -> io::Result<()> {
        let range = Range::of(region);
        // A huge page would bring in what has not arrived. That the kernel may not know the advice is no loss.
        // SAFETY: the range is the region's mapping.
        unsafe { libc::madvise(range.start as *mut libc::c_void, range.len as usize, libc::MADV_NOHUGEPAGE) };
        self.ioctl(IOCTL_REGISTER, &mut RegisterRequest { range, mode: MODE_MISSING, ioctls: 0 })
    }

    /// Watches a region no longer: who waits for a page of it goes on, and pages that have not come read as zeros.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` if the region's file is of a kind that cannot be watched.
    pub fn unwatch(&self, region: &Region) -> io::Result<()> {
        self.ioctl(IOCTL_UNREGISTER, &mut Range::of(region))
    }

    /// The file descriptor, for who is to be told.
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    fn ioctl<T>(&self, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        // SAFETY: the request's argument is a `T`, which the kernel reads and writes.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request, &raw mut *argument) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
