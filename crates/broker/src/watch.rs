//! Applies changes of the stores by others (by hand, or by a configuration manager) at once.

use std::io;

use hvsock_endpoint::Dirs;
use hvsock_registry::entry_folder::{self, FolderWatch, WatchHealth};
use hvsock_registry::store::Watch;

use crate::Handle;

/// Watches the registrations until the returned value is dropped.
pub(crate) fn services(handle: &Handle) -> io::Result<Watch> {
    let follower = handle.clone();
    let notify = Box::new(move || follower.follow_services());
    handle.services.lock().watch(notify)
}

/// Watches the partition files until the returned value is dropped.
pub(crate) fn partitions(dirs: &Dirs, handle: &Handle) -> io::Result<FolderWatch> {
    let follower = handle.clone();
    let folder = dirs.partitions();
    let name = folder.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let health = WatchHealth::default();
    let of_watch = health.clone();
    entry_folder::watch(&dirs.config, &[name], &health, move |changed| {
        follower.follow_partitions(&changed, of_watch.fault());
    })
}
