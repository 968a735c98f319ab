//! A state that does not leave the process, for tests of tables and links.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use super::bundle::{Carrier, Exports, Imports};
use super::error::HandoverError;

/// Keeps the descriptors that it is given.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<OwnedFd>>>);

impl Carrier for Kept {
    fn carry(&mut self, _first: u32, batch: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        let mut kept = self.0.lock().unwrap();
        kept.extend(batch.iter().map(|fd| fd.try_clone_to_owned().unwrap()));
        Ok(())
    }
}

/// What `export` returns, and what it has exported.
pub(crate) fn exported<T>(export: impl FnOnce(&mut Exports) -> T) -> (T, Imports) {
    let kept = Kept::default();
    let mut exports = Exports::new(Box::new(kept.clone()));
    let result = export(&mut exports);
    let (_, blobs) = exports.finish().unwrap();
    let descriptors = std::mem::take(&mut *kept.0.lock().unwrap());
    (result, Imports::new(descriptors, blobs))
}
