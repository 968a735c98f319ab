//! Sockets with their options.

use std::io;
use std::os::windows::io::OwnedSocket;

use hvsock_sys::hyperv::{self, HvOption};

use super::refusal;
use crate::backend::Settings;

/// Creates a socket with the options that apply from its creation.
pub(super) fn socket(settings: Settings) -> io::Result<OwnedSocket> {
    let socket = hyperv::socket().map_err(refusal::of_socket)?;
    let options = [
        (HvOption::ContainerPassthru, settings.container_passthru),
        (HvOption::ConnectedSuspend, settings.connected_suspend),
        (HvOption::HighVtl, settings.high_vtl),
    ];
    // An older Windows does not support all options. That matters only if one is requested.
    for (option, _) in options.into_iter().filter(|(_, on)| *on) {
        hyperv::set_option(&socket, option, 1)
            .map_err(|error| refusal::of_option(option, error))?;
    }
    Ok(socket)
}
