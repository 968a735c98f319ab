//! The names of keys.

use hvsock_address::ServiceId;

/// Whether a key name is the GUID of a service.
pub fn is_service(name: &str) -> bool {
    service_id(name).is_some()
}

/// Parses a key's name: a GUID with hyphens, with or without braces.
pub(super) fn service_id(name: &str) -> Option<ServiceId> {
    const HYPHENATED: usize = 36;
    let bare = name
        .strip_prefix('{')
        .and_then(|name| name.strip_suffix('}'));
    let bare = bare.unwrap_or(name);
    let id = bare.parse().ok().filter(|id| *id != ServiceId::ZERO);
    id.filter(|_| bare.len() == HYPHENATED)
}
