//! Registrations of services that the program listens for, which the process that started it makes.

use std::path::PathBuf;
use std::sync::OnceLock;

use hvsock_address::ServiceId;
use hvsock_interpose::preload::{REGISTER_VARIABLE, ask_to_register};

/// Where to ask. `None`: nothing is to be registered.
static REGISTRAR: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Reads the environment. Called before the program has threads.
pub fn prepare() {
    REGISTRAR.get_or_init(|| std::env::var_os(REGISTER_VARIABLE).map(PathBuf::from));
}

/// Has a service registered that is not. Returns whether it is now.
pub fn request(service: ServiceId) -> bool {
    match REGISTRAR.get() {
        Some(Some(path)) => ask_to_register(path, service).unwrap_or(false),
        _ => false,
    }
}
