//! Disks of guests, and what tests do with them there.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Guest, SHORT, parse_features};

/// For a file system of some dozen MiB to be made, looked through or grown.
const FILE_SYSTEM: Duration = Duration::from_mins(1);

/// A virtio-blk device of a QEMU guest, behind a vhost-user socket that a back-end listens on.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The socket.
    pub socket: PathBuf,
    /// Its virtqueues.
    pub queues: u16,
    /// After how many milliseconds QEMU reconnects once the back-end has gone away, if it is to.
    pub reconnect: Option<u32>,
    /// Further properties of `-device vhost-user-blk-pci`, such as `packed=on`, separated by commas.
    pub properties: String,
}

impl Disk {
    /// A disk with one queue that does not reconnect.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), queues: 1, reconnect: None, properties: String::new() }
    }

    /// Sets the number of queues. The guest uses no more of them than it has processors.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Has QEMU try to reconnect every so many milliseconds after the back-end has gone away.
    #[must_use]
    pub fn reconnect(mut self, milliseconds: u32) -> Self {
        self.reconnect = Some(milliseconds);
        self
    }

    /// Adds a property of the device, such as `packed=on`.
    #[must_use]
    pub fn property(mut self, property: &str) -> Self {
        if !self.properties.is_empty() {
            self.properties.push(',');
        }
        self.properties.push_str(property);
        self
    }

    /// The arguments for QEMU that make this the disk number `index`.
    pub(super) fn arguments(&self, index: usize) -> [String; 4] {
        let mut chardev = format!("socket,id=d{index},path={}", self.socket.display());
        if let Some(milliseconds) = self.reconnect {
            let _ = write!(chardev, ",reconnect-ms={milliseconds}");
        }
        let mut device =
            format!("vhost-user-blk-pci,id=disk{index},chardev=d{index},num-queues={}", self.queues);
        if !self.properties.is_empty() {
            let _ = write!(device, ",{}", self.properties);
        }
        ["-chardev".into(), chardev, "-device".into(), device]
    }
}

/// What `fio` is to do: write at random places, and look at what it wrote.
#[derive(Clone, Debug)]
pub struct FioJob {
    /// A device or a file.
    pub target: String,
    /// How many MiB of it, for each job.
    pub mebibytes: u32,
    /// Jobs side by side, each in a part of its own.
    pub jobs: u32,
    /// Requests of a job under way at once; more than one if the engine can.
    pub depth: u32,
    /// Further options, such as `--ioengine=io_uring`, separated by blanks.
    pub options: String,
}

impl FioJob {
    /// One job with 16 requests under way.
    pub fn new(target: &str, mebibytes: u32) -> Self {
        Self { target: target.to_owned(), mebibytes, jobs: 1, depth: 16, options: String::new() }
    }

    /// Sets the number of jobs.
    #[must_use]
    pub fn jobs(mut self, jobs: u32) -> Self {
        self.jobs = jobs;
        self
    }

    /// Adds an option.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(' ');
        self.options.push_str(option);
        self
    }

    /// The command. It fails if a request does, or if what is read is not what was written.
    pub fn command(&self) -> String {
        let Self { target, mebibytes, jobs, depth, options } = self;
        format!(
            "fio --name=job --filename={target} --rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=io_uring \
             --iodepth={depth} --numjobs={jobs} --size={mebibytes}M --offset_increment={mebibytes}M \
             --verify=crc32c --verify_fatal=1 --verify_backlog=256 --randrepeat=0 --group_reporting \
             --output-format=terse --terse-version=3{options}"
        )
    }
}

impl Guest {
    /// The virtio feature bits that the driver of a disk, such as `vda`, has agreed on with the device.
    pub fn disk_features(&mut self, disk: &str) -> Result<u64> {
        parse_features(&self.run(&format!("cat /sys/block/{disk}/device/features"), SHORT)?)
    }

    /// The number that a file of a disk's directory in sysfs holds, such as `queue/logical_block_size`.
    pub fn disk_attribute(&mut self, disk: &str, name: &str) -> Result<u64> {
        let text = self.run(&format!("cat /sys/block/{disk}/{name}"), SHORT)?;
        text.trim().parse().with_context(|| format!("{}: {disk}'s {name} is {text:?}", self.name()))
    }

    /// How many bytes the guest finds a disk to have.
    pub fn disk_size(&mut self, disk: &str) -> Result<u64> {
        Ok(self.disk_attribute(disk, "size")? * 512)
    }

    /// How many queues the driver of a disk uses.
    pub fn disk_queues(&mut self, disk: &str) -> Result<usize> {
        Ok(self.run(&format!("ls -1 /sys/block/{disk}/mq"), SHORT)?.lines().count())
    }

    /// Makes a file system of kind ext4 on a disk and mounts it at `/tmp/DISK`.
    pub fn make_ext4(&mut self, disk: &str) -> Result<()> {
        self.run(&format!("mkfs.ext4 -q -F /dev/{disk}"), FILE_SYSTEM)?;
        self.mount(disk)
    }

    /// Mounts a disk at `/tmp/DISK`.
    pub fn mount(&mut self, disk: &str) -> Result<()> {
        self.run(&format!("mkdir -p /tmp/{disk} && mount -t ext4 /dev/{disk} /tmp/{disk}"), SHORT)?;
        Ok(())
    }

    /// Unmounts a disk, and has its file system checked: nothing must be wrong with it.
    pub fn unmount_clean(&mut self, disk: &str) -> Result<()> {
        self.run(&format!("umount /tmp/{disk} && e2fsck -f -n /dev/{disk}"), FILE_SYSTEM)?;
        Ok(())
    }

    /// Runs `fio`; an error if a request failed or what was read is not what was written. Returns the bytes written.
    pub fn fio(&mut self, job: &FioJob, limit: Duration) -> Result<u64> {
        let said = self.run(&job.command(), limit)?;
        self.fio_written(&said)
    }

    /// Takes out of what `fio` said how many bytes it wrote, and that nothing went wrong.
    pub fn fio_written(&self, said: &str) -> Result<u64> {
        let line = said.lines().find(|l| l.starts_with("3;fio-"));
        let fields: Vec<_> = line.with_context(|| format!("fio said:\n{said}"))?.split(';').collect();
        // In kibibytes, after 41 fields that are about it all and about reading.
        let (error, written) = (fields.get(4), fields.get(46).and_then(|field| field.parse::<u64>().ok()));
        ensure!(error == Some(&"0"), "{}: fio failed:\n{said}", self.name());
        Ok(written.with_context(|| format!("fio said:\n{said}"))? << 10)
    }

    /// What the kernel has said of errors of disks and file systems; nothing if there were none.
    pub fn disk_complaints(&mut self) -> Result<String> {
        let words = "I/O error|EXT4-fs error|EXT4-fs warning|virtio_blk.*(fail|error)|timeout|blk_update_request|\
                     critical|BUG|WARNING|hung";
        Ok(self.run_status(&format!("dmesg | grep -E '{words}'"), SHORT)?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_in_qemu_words() {
        let disk = Disk::new("/s").queues(2).reconnect(500).property("packed=on");
        assert_eq!(
            disk.arguments(1).join(" "),
            "-chardev socket,id=d1,path=/s,reconnect-ms=500 \
             -device vhost-user-blk-pci,id=disk1,chardev=d1,num-queues=2,packed=on"
        );
    }
}
