//! What the fuzz targets run of the arguments of VMMs.

use std::path::PathBuf;

use super::{options, qemu};

/// Reads arguments, one a line.
pub(crate) fn options(text: &str) {
    let arguments: Vec<String> = text.lines().map(str::to_owned).collect();
    for argument in &arguments {
        let _ = options::split(argument);
        let _ = options::value_or_first(argument, "path");
        let _ = options::cid(argument);
    }
    let _ = qemu::reach(&arguments, &|path| PathBuf::from(path));
}
