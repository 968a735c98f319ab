//! What the fuzz targets run of the guest's half.

use prost::Message as _;

use super::freeze::mounts;
use super::kvp::pool::Pool;
use super::{os_release, session};
use crate::wire::session as wire;

/// Validates the request for a command, without running it.
pub(crate) fn start(bytes: &[u8]) {
    if let Ok(wire::Input {
        what: Some(wire::input::What::Start(start)),
    }) = wire::Input::decode(bytes)
    {
        session::validate(start);
    }
}

/// Decodes a pool's file, changes it, and decodes what is written.
pub(crate) fn pool(file: &[u8]) {
    let mut pool = Pool::decode(file);
    let again = Pool::decode(&pool.encode());
    assert!(again.iter().eq(pool.iter()));
    let keys: Vec<String> = pool.iter().map(|(key, _)| key.to_owned()).collect();
    for key in keys {
        if pool.unset(&key).is_ok() {
            assert_eq!(pool.get(&key), None);
        }
    }
}

/// Reads a table of mounts and selects what to freeze.
pub(crate) fn mounts(table: &[u8]) {
    let mounts = mounts::parse(table);
    let points = mounts.iter().map(|mount| mount.point.clone());
    let points: Vec<_> = points.take(2).collect();
    for wanted in [&[][..], &points] {
        let _ = mounts::select(&mounts, wanted);
    }
}

/// Reads a value of `os-release`.
pub(crate) fn os_release(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for name in ["NAME", "PRETTY_NAME", ""] {
        let _ = os_release::value(&text, name);
    }
}
