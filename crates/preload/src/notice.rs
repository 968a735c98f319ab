//! What the user of a program is told on its standard error.

use std::os::fd::AsFd;
use std::sync::OnceLock;

use hvsock_interpose::model::Address;
use hvsock_interpose::preload::HELP_VARIABLE;

/// The help that the environment had when the program started. `None`: nothing is to be said.
static HELP: OnceLock<Option<String>> = OnceLock::new();

/// Reads the environment. Called before the program has threads.
pub fn prepare() {
    HELP.get_or_init(|| std::env::var(HELP_VARIABLE).ok());
}

/// A listener that only this partition reaches. Says why, and what to do.
pub fn unregistered(address: &Address) {
    let Some(help) = HELP.get().and_then(Option::as_ref) else {
        return;
    };
    let text = match address.service().port() {
        Some(port) => {
            let help = help.replace("PORT", &port.to_string());
            format!(
                "warning: nobody outside can connect to vsock port {port}: the service is not registered\n\
                 help: {help}\n"
            )
        }
        None => format!(
            "warning: nobody outside can connect to service {}: the service is not registered\n",
            address.service()
        ),
    };
    // The program goes on if nobody reads it.
    let _ = hvsock_sys::write(std::io::stderr().as_fd(), text.as_bytes());
}
