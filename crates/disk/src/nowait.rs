//! Reading a file only as far as that needs no disk.
//!
//! `preadv2` with `RWF_NOWAIT` answers from the page cache or says that it would have to wait. So the task that serves a
//! socket can read warm data itself, with no thread in between, and never stands still because of a slow disk.

use std::fs::File;
use std::io::IoSliceMut;

use rustix::io::ReadWriteFlags;

/// Fills `buffer` from `offset` if the page cache has all of it; false otherwise, with `buffer` in any state.
pub(crate) fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> bool {
    while !buffer.is_empty() {
        let slices = &mut [IoSliceMut::new(buffer)];
        match rustix::io::preadv2(file, slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(0) | Err(_) => return false,
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
        }
    }
    true
}
