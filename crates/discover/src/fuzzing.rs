//! What the fuzz targets (`fuzz/`) run, where the API of the crate has no such function. No part of that API.

use crate::libvirt::fuzzing as libvirt;
use crate::machined::fuzzing as machined;
use crate::processes::fuzzing as processes;
use crate::{incus, text};

/// Reads what a manager or a VMM says, chosen by `kind`.
pub fn read(kind: u8, bytes: &[u8]) {
    match kind % 6 {
        0 => libvirt::description(bytes),
        1 => libvirt::domains(bytes),
        2 => machined::dbus(bytes),
        3 => machined::varlink(bytes),
        4 => {
            if let Ok(document) = serde_json::from_slice(bytes) {
                incus::fuzz(&document);
            }
        }
        _ => {
            let words = String::from_utf8_lossy(bytes);
            processes::options(&words);
            let _ = text::hyphenated(&words);
        }
    }
}
