//! Where Windows builds are put.

use std::path::PathBuf;

use crate::run;

/// The target folder of all Windows builds.
pub fn target() -> PathBuf {
    run::root().join("target/windows")
}
