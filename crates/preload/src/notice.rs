//! What the user of a program is told on its standard error.

use std::os::fd::AsFd;
use std::sync::OnceLock;

use hvsock::Refusal;
use hvsock_address::VmId;
use hvsock_interpose::model::{Address, restriction};
use hvsock_interpose::preload::HELP_VARIABLE;

/// The help that the environment had when the program started. `None`: nothing is to be said.
static HELP: OnceLock<Option<String>> = OnceLock::new();

/// Reads the environment. Called before the program has threads.
pub fn prepare() {
    HELP.get_or_init(|| std::env::var(HELP_VARIABLE).ok());
}

/// A listener that fewer partitions reach than its address names. Says why, and what to do.
pub fn restricted(address: &Address, accepts_from: VmId, refusal: &Refusal) {
    let Some(help) = HELP.get().and_then(Option::as_ref) else {
        return;
    };
    let mut text = format!("warning: {}\n", restriction(address, accepts_from, refusal));
    if let (Refusal::Unregistered, Some(port)) = (refusal, address.service().port()) {
        text += &format!("help: {}\n", help.replace("PORT", &port.to_string()));
    }
    // The program goes on if nobody reads it.
    let _ = hvsock_sys::write(std::io::stderr().as_fd(), text.as_bytes());
}
