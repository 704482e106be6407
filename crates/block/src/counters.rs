//! What a disk counts. A queue's thread counts in a set of its own, which may be read at any time; a disk's is the sum.

pub use ringway_vhost::Counter;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a queue, or a disk, has counted.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Adds what another has counted.
            pub fn add(&self, other: &Self) {
                $(self.$name.add(other.$name.get());)*
            }

            /// Every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get()),)*].into_iter()
            }

            /// Sets the counter of this name, if there is one: what was counted before an upgrade.
            pub fn restore(&self, name: &str, value: u64) {
                match name {
                    $(stringify!($name) => self.$name.add(value),)*
                    _ => {}
                }
            }
        }
    };
}

counters! {
    /// Reads that went well.
    reads,
    /// Bytes read.
    read_bytes,
    /// Writes that went well.
    writes,
    /// Bytes written.
    written_bytes,
    /// Flushes that went well.
    flushes,
    /// Discards, secure erasures and writes of zeroes that went well.
    range_requests,
    /// Other requests that went well.
    other_requests,
    /// Requests that the storage failed.
    storage_errors,
    /// Requests that may not be, such as one behind the end of the disk.
    refused,
    /// Requests of a kind that the disk does not have.
    unsupported,
    /// Requests without room for an answer.
    malformed,
    /// Times that a driver's kick woke a queue's thread.
    kicks,
    /// Times that the driver was called.
    calls,
    /// System calls made to begin requests, to wait, and to call the driver; not those of an image in memory that are the
    /// request.
    syscalls,
    /// Rings that their drivers broke.
    failures,
    /// Sessions that had a ring running.
    sessions,
    /// Nanoseconds spent on requests.
    busy,
    /// Nanoseconds spent looking for some, in vain.
    polling,
    /// Nanoseconds asleep.
    asleep,
}
