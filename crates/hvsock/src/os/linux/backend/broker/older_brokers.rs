//! Brokers of an older version that this process has met, so that it asks each of them once.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hvsock_sys::sync::lock;

/// The most brokers that are remembered. Any other one is asked each time.
const MAX: usize = 64;

/// The endpoints that do not know names in a request.
static PATHS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Returns true if the broker at `path` is known to be an older one.
pub(super) fn contains(path: &Path) -> bool {
    lock(&PATHS).iter().any(|known| known == path)
}

/// Remembers the broker at `path`.
pub(super) fn insert(path: &Path) {
    let mut paths = lock(&PATHS);
    if paths.len() < MAX && !paths.iter().any(|known| known == path) {
        paths.push(path.to_owned());
    }
}
