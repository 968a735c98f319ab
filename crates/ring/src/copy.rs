//! What this crate does with addresses: all of its `unsafe`.

use hvsock_sys::shared_memory::Mapping;

use crate::layout::Header;

/// The words at the front of shared memory.
pub(crate) fn header(mapping: &Mapping) -> &Header {
    // Every mapping of this crate has at least a header's page.
    assert!(mapping.len() >= size_of::<Header>());
    // SAFETY: a mapping begins at a page's bound and is long enough, as was just seen; a header is
    // made of atomic words, for which any bits are a value and which any process may change while
    // there are references to them.
    unsafe { mapping.start().cast::<Header>().as_ref() }
}
