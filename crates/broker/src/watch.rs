//! Edits of registrations by hand or by a configuration manager take effect at once.

use std::io;
use std::sync::Arc;

use hvsock_endpoint::Dirs;
use hvsock_registry::store;

use crate::Handle;
use crate::books::ServiceBook;

/// Watches the registrations until dropped.
pub(crate) struct Watch {
    _watch: store::Watch,
}

impl Watch {
    /// Watches the files of `services` and tells the core what they say.
    pub(crate) fn start(
        dirs: &Dirs,
        services: Arc<ServiceBook>,
        handle: Handle,
    ) -> io::Result<Self> {
        let watch = store::watch(&dirs.config, &[store::SERVICES], move |changed| {
            // The book stays held while the core takes the changes in, so that they cannot
            // overtake those of an operator.
            let mut store = services.lock();
            let changes = store.reload(&changed);
            if !changes.is_empty()
                && let Err(error) = handle.apply(changes)
            {
                tracing::warn!("changed registrations are not in force: {error}");
            }
        })?;
        Ok(Self { _watch: watch })
    }
}
