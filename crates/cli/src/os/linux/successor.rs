//! How a broker of this program is started again, for an upgrade.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hvsock_broker::Successor;

const TAKE_OVER: &str = "--take-over";
const DRY_RUN: &str = "--dry-run";

/// This program with its arguments, to take this process's broker over. `None` if its file is not found.
pub fn find() -> Option<Successor> {
    let args: Vec<OsString> = env::args_os().collect();
    Some(Successor {
        program: program(args.first()?)?,
        args: arguments(args.into_iter().skip(1)),
        dry_run: vec![DRY_RUN.into()],
    })
}

fn arguments(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let others = args.filter(|arg| arg != TAKE_OVER && arg != DRY_RUN);
    others.chain([TAKE_OVER.into()]).collect()
}

/// The path by which this program was started, so that a link leads to the next version once it is changed.
fn program(name: &OsString) -> Option<PathBuf> {
    let own = env::current_exe().ok()?;
    let named = Path::new(name);
    let found = match named.components().count() > 1 {
        true => std::path::absolute(named).ok(),
        false => env::var_os("PATH").and_then(|path| {
            let mut all = env::split_paths(&path).map(|folder| folder.join(named));
            all.find(|path| path.is_file())
        }),
    };
    // The name may say anything.
    Some(found.filter(|found| is_same(found, &own)).unwrap_or(own))
}

fn is_same(a: &Path, b: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((id(a), id(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_has_the_same_arguments_and_takes_over() {
        let args = |args: &[&str]| arguments(args.iter().map(OsString::from));
        let expected: [OsString; 4] = ["--dir", "/d", "broker", "--take-over"].map(Into::into);
        assert_eq!(args(&["--dir", "/d", "broker"]), expected);
        assert_eq!(args(&["--dir", "/d", "broker", "--take-over"]), expected);
    }

    #[test]
    fn a_link_by_which_the_program_was_started_is_followed_again() {
        let dir = tempfile::tempdir().unwrap();
        let own = env::current_exe().unwrap();
        let link = dir.path().join("hvsock");
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert_eq!(program(&link.clone().into_os_string()), Some(link));
        // A name that is another program's is not this one.
        assert_eq!(program(&OsString::from("/bin/sh")), Some(own.clone()));
        assert_eq!(program(&OsString::from("no such program")), Some(own));
    }
}
