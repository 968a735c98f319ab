//! Access rules and use of a service: Windows keeps no rules of ours beside a registration, and
//! tells nobody who listens or is connected.

use anyhow::Result;
use clap::Args;
use hvsock_control::NewService;
use serde::Serialize;
use serde_json::Value;

use crate::output;

/// Whether it is known how many listeners and connections a service has.
pub const COUNTS_USE: bool = false;
/// Whether a service has access rules.
pub const KEEPS_RULES: bool = false;

/// There are none to give.
#[derive(Debug, Args)]
pub struct Rules {}

impl Rules {
    /// `service` as it is.
    pub fn of(self, service: NewService) -> NewService {
        service
    }
}

/// Prints a service, or a list of them, without the counts that nobody has.
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
