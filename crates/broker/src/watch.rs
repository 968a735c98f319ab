//! Applies changes of the stores by others (by hand, or by a configuration manager) at once.

use std::io;

use hvsock_registry::store::Watch;

use crate::Handle;

/// Watches the registrations until the returned value is dropped.
pub(crate) fn services(handle: &Handle) -> io::Result<Watch> {
    let follower = handle.clone();
    let notify = Box::new(move || follower.follow_services());
    handle.services.lock().watch(notify)
}
