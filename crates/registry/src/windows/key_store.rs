//! The registrations of this machine, stored in the Windows registry.
//!
//! Open the store with [`KeyStore::open`]. Then use [`read`](crate::keys::Store::read),
//! [`put`](crate::keys::Store::put), [`replace`](crate::keys::Store::replace),
//! [`set_enabled`](crate::keys::Store::set_enabled) and [`remove`](crate::keys::Store::remove), or
//! [`lease`](crate::keys::Store::lease) for a registration that ends with the process.

use crate::keys::{self, Store};

pub use super::local_machine::LocalMachineBackend;
pub use crate::keys::{KeyError, Listing};

/// The key under `HKEY_LOCAL_MACHINE` where Windows registers services.
pub const SERVICES: &str =
    r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices";

/// The key under `HKEY_LOCAL_MACHINE` where hvsock keeps disabled services.
pub const DISABLED: &str = r"SOFTWARE\hvsock\Disabled";

/// A registration that ends with its process.
pub type KeyLease = keys::Lease<LocalMachineBackend>;

/// The registrations of this machine as a [`RegistrationStore`](crate::store::RegistrationStore).
pub type KeyRegistrationStore = keys::KeyRegistrations<LocalMachineBackend>;

/// The registrations of this machine. Reading needs no privilege, writing needs an administrator.
pub type KeyStore = Store<LocalMachineBackend>;

impl KeyStore {
    /// Opens the registrations that Windows reads.
    ///
    /// # Errors
    /// None at present: missing keys are created by the first change.
    pub fn open() -> Result<Self, KeyError> {
        Self::open_at(SERVICES, DISABLED)
    }

    /// Opens registrations under other keys of `HKEY_LOCAL_MACHINE`, which Windows does not read.
    ///
    /// # Errors
    /// None at present: missing keys are created by the first change.
    pub fn open_at(services: &str, disabled: &str) -> Result<Self, KeyError> {
        Ok(Store::new(LocalMachineBackend::new(services, disabled)))
    }
}

/// The user of this process as `DOMAIN\user`, recorded as the owner of its registrations.
pub fn user() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = variable("USERNAME").unwrap_or_else(|| "unknown".to_owned());
    match variable("USERDOMAIN") {
        Some(domain) => format!("{domain}\\{user}"),
        None => user,
    }
}
