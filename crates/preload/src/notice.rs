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
    text += &help_line(help, address, refusal);
    // The program goes on if nobody reads it.
    let _ = hvsock_sys::write(std::io::stderr().as_fd(), text.as_bytes());
}

/// The command that helps: the first of [`HELP_VARIABLE`] registers a port, the second one explains any other refusal.
fn help_line(help: &str, address: &Address, refusal: &Refusal) -> String {
    let (register, explain) = help.split_once('\n').unwrap_or((help, ""));
    let service = address.service();
    let command = match (refusal, service.port()) {
        (Refusal::Unregistered, Some(port)) => register.replace("PORT", &port.to_string()),
        (_, Some(port)) => explain.replace("SERVICE", &port.to_string()),
        (_, None) => explain.replace("SERVICE", &service.to_string()),
    };
    match command.is_empty() {
        true => String::new(),
        false => format!("help: {command}\n"),
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::{ServiceId, SockAddrHv, SockAddrVm};

    use super::*;

    #[test]
    fn a_port_is_registered_and_another_refusal_explained() {
        let help = "register PORT\nwhy SERVICE";
        let port = Address::Vsock(SockAddrVm::new(2, 99));
        let service = ServiceId::from_guid_bytes([7; 16]);
        let named = Address::HyperV(SockAddrHv::new(VmId::LOOPBACK, service));
        let line = |address, refusal| help_line(help, address, &refusal);
        assert_eq!(line(&port, Refusal::Unregistered), "help: register 99\n");
        let explained = line(&port, Refusal::WildcardNotAllowed);
        assert_eq!(explained, "help: why 99\n");
        let explained = line(&named, Refusal::Unregistered);
        assert_eq!(explained, format!("help: why {service}\n"));
        let old = help_line("register PORT", &port, &Refusal::WildcardNotAllowed);
        assert_eq!(old, "", "of an older command");
    }
}
