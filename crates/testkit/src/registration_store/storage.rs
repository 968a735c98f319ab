//! What the suite needs of a storage, and registrations for its cases.

use std::collections::BTreeMap;
use std::time::Duration;

use hvsock_address::{ElementName, ServiceId};
use hvsock_registry::Registration;
use hvsock_registry::store::{Change, Entry, RegistrationStore};

/// How long the suite waits for a notification.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// A place that keeps registrations, shared by all stores that are open on it.
pub trait Storage: Send + Sync {
    /// Opens one more store on it, as another process would.
    fn open(&self) -> Box<dyn RegistrationStore>;

    /// What the storage can represent.
    fn capabilities(&self) -> Capabilities;
}

/// What a storage can represent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Access rules, and settings for single partitions.
    pub rules: bool,
    /// Leases of the process that has the store open.
    pub leases: bool,
}

/// A registration on the vsock template.
pub(super) fn registration(port: u32, name: &str) -> Registration {
    let name = ElementName::new(name).expect("a name");
    Registration::new(ServiceId::from_port(port), name)
}

/// A registration with an owner.
pub(super) fn owned(port: u32, name: &str, owner: &str) -> Registration {
    Registration {
        owner: Some(owner.to_owned()),
        creator: Some(format!("tool of {owner}")),
        ..registration(port, name)
    }
}

/// The registrations that a new user of the storage finds, by id.
pub(super) fn stored(storage: &dyn Storage) -> BTreeMap<ServiceId, Entry> {
    by_id(storage.open().load().expect("the store").entries)
}

pub(super) fn by_id(entries: Vec<Entry>) -> BTreeMap<ServiceId, Entry> {
    let entries = entries.into_iter();
    entries.map(|one| (one.registration.id, one)).collect()
}

/// The registration that a list of changes adds, if that is all that it does.
pub(super) fn only_added(changes: &[Change]) -> &Registration {
    match changes {
        [Change::Added(entry)] => &entry.registration,
        _ => panic!("one registration is added: {changes:?}"),
    }
}

/// The registration that a list of changes updates, if that is all that it does.
pub(super) fn only_updated(changes: &[Change]) -> &Registration {
    match changes {
        [Change::Updated(entry)] => &entry.registration,
        _ => panic!("one registration is updated: {changes:?}"),
    }
}
