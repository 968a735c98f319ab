//! Folders for a moment, wherever this process may write.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

/// Folders that may be writable.
pub(super) fn folders() -> impl Iterator<Item = PathBuf> {
    let own = ["XDG_RUNTIME_DIR", "TMPDIR"];
    let own = own.into_iter().filter_map(std::env::var_os);
    let own = own.map(PathBuf::from).filter(|path| path.is_absolute());
    own.chain(["/run", "/tmp", "/dev/shm", "/var/tmp"].map(PathBuf::from))
}

/// Calls `call` with a new folder in `place`, to which only this user may write, and removes the folder, which must be
/// empty then.
pub(super) fn with_folder<T>(
    place: &Path,
    call: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let name = random_name()?;
    let folder = place.join(format!(".hvsock-{}", String::from_utf8_lossy(&name)));
    rustix::fs::mkdir(&folder, Mode::RWXU)?;
    let result = call(&folder);
    let _ = std::fs::remove_dir(&folder);
    result
}

/// 32 hexadecimal digits.
pub(super) fn random_name() -> io::Result<Vec<u8>> {
    let mut bytes = [0; 16];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if count != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    Ok(digits.collect::<String>().into_bytes())
}
