//! Registrations under names without a port, for the preloaded library.

use std::collections::{HashMap, VecDeque};
use std::io;

use anstyle::{AnsiColor, Style};
use hvsock::{ElementName, Endpoint, Lease, ServiceId, SockAddrHv, VmId};
use hvsock_interpose::model::{Address, place};

use super::setting::Setting;
use crate::failure;

/// The names, and what was registered under them. A name is a service's for good: a program that listens again, or a
/// broker that has started again, gets the same registration.
#[derive(Debug)]
pub struct Names {
    endpoint: Endpoint,
    free: VecDeque<ElementName>,
    taken: HashMap<ServiceId, (ElementName, Option<Lease>)>,
    is_quiet: bool,
}

impl Names {
    pub fn new(setting: &Setting<'_>, free: VecDeque<ElementName>) -> Self {
        Self {
            endpoint: setting.endpoint.clone(),
            free,
            taken: HashMap::new(),
            is_quiet: setting.context.quiet,
        }
    }

    /// Whether there are any.
    pub fn are_there(&self) -> bool {
        !self.free.is_empty()
    }

    /// Registers a service under its name, or the next free one. Returns whether it is registered.
    pub fn register(&mut self, service: ServiceId) -> bool {
        let held = self.taken.remove(&service);
        let (name, lease) = match (held, self.free.pop_front()) {
            (Some(held), free) => {
                self.free.extend(free);
                held
            }
            (None, Some(name)) => (name, None),
            (None, None) => return false,
        };
        let is_known = lease.is_some();
        let lease = lease.filter(|lease| lease.check().is_ok());
        let lease = match lease {
            Some(lease) => Ok(lease),
            None => Lease::register_at(&self.endpoint, name.as_str(), service, ""),
        };
        self.report(&name, service, lease.as_ref().err(), is_known);
        let is_registered = lease.is_ok();
        self.taken.insert(service, (name, lease.ok()));
        is_registered
    }

    fn report(
        &self,
        name: &ElementName,
        service: ServiceId,
        error: Option<&io::Error>,
        is_known: bool,
    ) {
        let address = SockAddrHv::new(VmId::WILDCARD, service);
        let place = place(&Address::HyperV(address));
        match error {
            Some(error) => {
                let text = format!("cannot register \"{name}\": {error}");
                failure::print(AnsiColor::Yellow.on_default().bold(), "warning", &text);
            }
            None if self.is_quiet || is_known => {}
            None => {
                let text = format!("registered {place} as \"{name}\"");
                failure::print(Style::new().bold(), "note", &text);
            }
        }
    }
}
