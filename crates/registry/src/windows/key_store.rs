//! The registrations of this machine, in the registry of Windows.
//!
//! [`KeyStore::open`] is all there is to do before [`read`](crate::keys::Store::read),
//! [`put`](crate::keys::Store::put), [`replace`](crate::keys::Store::replace),
//! [`set_enabled`](crate::keys::Store::set_enabled) and [`remove`](crate::keys::Store::remove);
//! or [`lease`](crate::keys::Store::lease), for as long as the process lives.

use crate::keys::{self, Store};

pub use super::hklm::Hklm;
pub use crate::keys::{KeyError, Listing};

/// The key of Windows for services, under `HKEY_LOCAL_MACHINE`.
pub const SERVICES: &str =
    r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices";

/// The key for services that are switched off, under `HKEY_LOCAL_MACHINE`.
pub const DISABLED: &str = r"SOFTWARE\hvsock\Disabled";

/// A registration that lives as long as its process.
pub type KeyLease = keys::Lease<Hklm>;

/// The registrations of this machine. Reading needs no rights, changing needs an administrator's.
pub type KeyStore = Store<Hklm>;

impl KeyStore {
    /// The registrations that Windows itself looks at.
    pub fn open() -> Result<Self, KeyError> {
        Self::open_at(SERVICES, DISABLED)
    }

    /// Registrations under other keys of `HKEY_LOCAL_MACHINE`, which Windows does not look at.
    pub fn open_at(services: &str, disabled: &str) -> Result<Self, KeyError> {
        Ok(Store::new(Hklm::new(services, disabled)))
    }
}

/// The user whom this process acts for, as `DOMAIN\user`: the owner of what it registers.
pub fn user() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = variable("USERNAME").unwrap_or_else(|| "unknown".to_owned());
    match variable("USERDOMAIN") {
        Some(domain) => format!("{domain}\\{user}"),
        None => user,
    }
}
