//! Applies edits of registration files (by hand or by a configuration manager) at once.

use std::io;
use std::sync::Arc;

use hvsock_endpoint::Dirs;
use hvsock_registry::entry_folder::{self, FolderWatch};
use hvsock_registry::store::SERVICES;

use crate::Handle;
use crate::stores::ServiceStore;

/// Watches the folder of registrations until dropped.
pub(crate) struct Watch {
    _watch: FolderWatch,
}

impl Watch {
    /// Watches the files of `services` and applies changes to the core.
    pub(crate) fn start(
        dirs: &Dirs,
        services: Arc<ServiceStore>,
        handle: Handle,
    ) -> io::Result<Self> {
        let watch = entry_folder::watch(&dirs.config, &[SERVICES], move |changed| {
            // The store stays locked until the core has applied the changes. Otherwise they could
            // be reordered with an operator's.
            let mut store = services.lock();
            let changes = store.reload(&changed);
            if !changes.is_empty()
                && let Err(error) = handle.apply(changes)
            {
                tracing::warn!("cannot apply changed registrations: {error}");
            }
        })?;
        Ok(Self { _watch: watch })
    }
}
