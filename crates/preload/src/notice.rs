//! What the user of a program is told on its standard error.

use std::os::fd::AsFd;

use hvsock_interpose::model::Address;

/// A listener that only this partition reaches. Says why.
pub fn unregistered(address: &Address) {
    let service = match address.service().port() {
        Some(port) => format!("port {port}"),
        None => address.service().to_string(),
    };
    let text = format!(
        "hvsock: only this partition reaches the listener at {service}: the service is not registered\n"
    );
    // The program goes on if nobody reads it.
    let _ = hvsock_sys::write(std::io::stderr().as_fd(), text.as_bytes());
}
