//! All `unsafe` code of this crate: turns addresses into accesses.

use hvsock_sys::shared_memory::{Mapping, ReadOnlyMapping};

use crate::arena::{ArenaWords, GrantWords};
use crate::layout::Header;

/// A type that consists of atomics only. Every bit pattern is valid for it, and other processes may
/// change it while references exist.
///
/// # Safety
///
/// All fields are atomics, or arrays and structures of atomics.
unsafe trait Words {}

// SAFETY: atomics only.
unsafe impl Words for Header {}
// SAFETY: atomics only.
unsafe impl Words for ArenaWords {}
// SAFETY: atomics only.
unsafe impl Words for GrantWords {}

/// The header at an offset in shared memory.
#[inline]
pub(crate) fn header(mapping: &Mapping, at: usize) -> &Header {
    words(mapping, at)
}

/// The words at the start of an arena.
#[inline]
pub(crate) fn arena(mapping: &Mapping) -> &ArenaWords {
    words(mapping, 0)
}

/// The words of a grant page, in the process that writes it.
pub(crate) fn grant(mapping: &Mapping) -> &GrantWords {
    words(mapping, 0)
}

/// The words of a grant page in another process, which must only load them.
#[inline]
pub(crate) fn granted(mapping: &ReadOnlyMapping) -> &GrantWords {
    assert!(mapping.len() >= size_of::<GrantWords>());
    // SAFETY: a mapping is page-aligned and, by the assertion above, long enough; the rest is the
    // contract of `Words`. The mapping is read-only: a store would fault, and a load does not.
    unsafe { mapping.start().cast::<GrantWords>().as_ref() }
}

#[inline]
fn words<T: Words>(mapping: &Mapping, at: usize) -> &T {
    const {
        // A mapping begins at a page.
        assert!(align_of::<T>() <= 4096);
    }
    let end = at.checked_add(size_of::<T>());
    assert!(end.is_some_and(|end| end <= mapping.len()) && at.is_multiple_of(align_of::<T>()));
    // SAFETY: the mapping is page-aligned, so by the assertions above the address is aligned and the
    // value lies in the mapping, which outlives the result. The rest is the contract of `Words`.
    unsafe { mapping.start().add(at).cast::<T>().as_ref() }
}
