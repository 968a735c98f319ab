//! A state that does not leave the process, for tests of tables and links.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use super::bundle::{Carrier, Exports, Imports};
use super::error::HandoverError;

/// Keeps the descriptors that it is given.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<OwnedFd>>>);

impl Carrier for Kept {
    fn carry(&mut self, first: u32, batch: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        let mut kept = self.0.lock().unwrap();
        assert_eq!(first as usize, kept.len());
        kept.extend(batch.iter().map(|fd| fd.try_clone_to_owned().unwrap()));
        Ok(())
    }
}

/// What a document refers to, as another process gets it.
pub(crate) struct Exported {
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) blobs: Vec<Vec<u8>>,
}

impl Exported {
    pub(crate) fn imports(self) -> Imports {
        Imports::new(self.descriptors, self.blobs)
    }
}

/// What `export` returns, and what it has exported.
pub(crate) fn exported<T>(export: impl FnOnce(&mut Exports) -> T) -> (T, Imports) {
    let (result, exported) = kept(export);
    (result, exported.imports())
}

/// As [`exported`], for a test that looks at the descriptors or replaces some.
pub(crate) fn kept<T>(export: impl FnOnce(&mut Exports) -> T) -> (T, Exported) {
    let kept = Kept::default();
    let mut exports = Exports::new(Box::new(kept.clone()));
    let result = export(&mut exports);
    let (count, blobs) = exports.finish().unwrap();
    let descriptors = std::mem::take(&mut *kept.0.lock().unwrap());
    assert_eq!(count as usize, descriptors.len());
    (result, Exported { descriptors, blobs })
}
