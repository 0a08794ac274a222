//! The allocator, and what it says of itself: whether a process that runs for months holds more than it did is answered by
//! what its objects take, and not by what the kernel has given it.

use std::{fs, io};
use tikv_jemalloc_ctl::{epoch, stats};

/// Buffers of an upload come and go by the megabyte. The system's allocator hands each back to the kernel,
/// which clears its pages again for the next one: a tenth of the time that an upload takes. This one keeps them for some
/// seconds, and counts what it keeps. It takes `malloc`'s place too, so that what SQLite and the cryptography allocate is
/// counted, and does not lie about in the C library's arenas, of which every thread wants its own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What the process has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In objects that nobody has freed, and in what threads keep of freed ones for their next.
    pub live: u64,
    /// In the pages that these are in. What it has beyond `live` is lost between objects.
    pub active: u64,
    /// What the allocator has from the kernel: those pages, freed ones that go back within seconds, and its own notes.
    pub held: u64,
    /// What is in RAM and in no file: the allocator's, stacks, and what files' pages became by being written to.
    pub anonymous: u64,
}

impl Memory {
    /// What the process has now.
    ///
    /// # Errors
    /// When the allocator keeps no account, or the kernel shows none.
    pub fn now() -> io::Result<Self> {
        // What is read is as of the last turn of the epoch.
        epoch::advance().map_err(io::Error::other)?;
        let bytes = |read: tikv_jemalloc_ctl::Result<usize>| -> io::Result<u64> {
            u64::try_from(read.map_err(io::Error::other)?).map_err(io::Error::other)
        };
        Ok(Self {
            live: bytes(stats::allocated::read())?,
            active: bytes(stats::active::read())?,
            held: bytes(stats::resident::read())?,
            anonymous: anonymous(&fs::read_to_string("/proc/self/status")?)?,
        })
    }
}

/// Bytes in RAM that are in no file, by what the kernel says of a process.
fn anonymous(status: &str) -> io::Result<u64> {
    let said = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = said.and_then(|said| said.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let kib = kib.ok_or_else(|| io::Error::other("/proc/self/status says no RssAnon in kB"))?;
    Ok(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_seen_and_what_is_given_back_too() -> io::Result<()> {
        const SIZE: usize = 64 << 20;
        // Other tests of this process allocate meanwhile, by far less than half of this.
        let half = SIZE as u64 / 2;
        let before = Memory::now()?;
        let buffer = vec![1_u8; SIZE];
        let with = Memory::now()?;
        assert!(with.live > before.live + half && with.active >= with.live, "{before:?} {with:?}");
        assert!(with.held >= with.active && with.anonymous > half, "{with:?}");
        drop(buffer);
        let after = Memory::now()?;
        assert!(after.live + half < with.live, "{with:?} {after:?}");
        Ok(())
    }

    #[test]
    fn a_kernel_that_says_nothing_is_not_taken_for_nothing() {
        assert_eq!(anonymous("VmRSS:\t 9 kB\nRssAnon:\t    4 kB\n").ok(), Some(4096));
        for other in ["", "RssAnon:\t 4 MB\n", "RssAnon:\n", "RssAnon: -1 kB\n"] {
            assert!(anonymous(other).is_err(), "{other}");
        }
    }
}
