//! All `unsafe` code of this crate: turns addresses into accesses.

use hvsock_sys::shared_memory::Mapping;

use crate::layout::Header;

/// The header at the start of shared memory.
pub(crate) fn header(mapping: &Mapping) -> &Header {
    // Every mapping of this crate covers at least the header page.
    assert!(mapping.len() >= size_of::<Header>());
    // SAFETY: a mapping is page-aligned and, by the assertion above, long enough. A header consists
    // of atomics, for which every bit pattern is valid and which other processes may change while
    // references exist.
    unsafe { mapping.start().cast::<Header>().as_ref() }
}
