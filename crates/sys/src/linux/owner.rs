//! The owner of a file, compared with this process.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The user id of a path's owner, if that is neither root nor the user whom this process acts as (its
/// effective user). `None` also if there is nothing at the path.
pub fn other_owner(path: &Path) -> Option<u32> {
    let owner = std::fs::metadata(path).ok()?.uid();
    let trusted = [0, rustix::process::geteuid().as_raw()];
    (!trusted.contains(&owner)).then_some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_this_user_or_of_root_has_no_other_owner() {
        let own = std::env::temp_dir().join(format!("hvsock-owner-{}", std::process::id()));
        std::fs::write(&own, "").unwrap();
        assert_eq!(other_owner(&own), None);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&own, Some(65_534), None).unwrap();
            assert_eq!(other_owner(&own), Some(65_534));
        }
        std::fs::remove_file(&own).unwrap();
        assert_eq!(other_owner(&own), None);
        assert_eq!(other_owner(Path::new("/")), None);
    }
}
