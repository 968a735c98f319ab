//! What the core knows of the store of registrations, beside those that the fabric has: which of them
//! are built in.

use std::collections::HashSet;

use hvsock_address::ServiceId;
use hvsock_registry::store::{Entry, Origin};

/// The built-in registrations, whose number the store bounds.
#[derive(Debug, Default)]
pub(super) struct Stored {
    built_in: HashSet<ServiceId>,
}

impl Stored {
    /// Records where a registration that came into force comes from.
    pub(super) fn set_origin(&mut self, entry: &Entry) {
        match entry.origin {
            Origin::BuiltIn => self.built_in.insert(entry.registration.id),
            Origin::Stored(_) | Origin::Lease => self.built_in.remove(&entry.registration.id),
        };
    }

    /// Records that a registration is no longer in force.
    pub(super) fn remove(&mut self, service: ServiceId) {
        self.built_in.remove(&service);
    }

    /// Whether the registration is built in and unchanged.
    pub(super) fn is_built_in(&self, service: ServiceId) -> bool {
        self.built_in.contains(&service)
    }

    /// The number of unchanged built-in registrations.
    pub(super) fn built_in_count(&self) -> usize {
        self.built_in.len()
    }
}
