//! Access rules of a service. Windows stores none with a registration, and does not report listeners
//! and connections.

use anyhow::Result;
use clap::Args;
use hvsock_control::NewService;
use serde::Serialize;
use serde_json::Value;

use crate::output;

/// Whether the numbers of a service's listeners and connections are known.
pub const REPORTS_USAGE: bool = false;
/// Whether a service has access rules.
pub const HAS_ACCESS_RULES: bool = false;

/// No options.
#[derive(Debug, Args)]
pub struct Rules {}

impl Rules {
    /// `service` unchanged.
    pub fn of(self, service: NewService) -> NewService {
        service
    }
}

/// Prints a service, or a list of services, without the unknown counts.
pub fn json_of_services(services: &(impl Serialize + ?Sized)) -> Result<()> {
    let mut value = serde_json::to_value(services)?;
    let all = match &mut value {
        Value::Array(all) => all.as_mut_slice(),
        one => std::slice::from_mut(one),
    };
    for service in all.iter_mut().filter_map(Value::as_object_mut) {
        service.remove("listeners");
        service.remove("connections");
    }
    output::json(&value)
}
