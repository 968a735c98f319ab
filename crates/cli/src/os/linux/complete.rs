//! Names for shell completion and for similar names in errors, from the broker's control API.

use std::env;

use anyhow::Result;
use hvsock_control::{Partition, PartitionKind};
use hvsock_services::catalog;

use super::broker_args::BrokerArgs;
use super::format;
use crate::complete::Name;

/// The integration services, as on the command line.
pub fn integration_keys() -> Vec<&'static str> {
    catalog::ALL.iter().map(|service| service.key).collect()
}

/// The child partitions of one kind, or of both.
pub fn guests(broker: &BrokerArgs, kind: Option<PartitionKind>) -> Result<Vec<Name>> {
    let partitions = broker.client()?.partitions()?;
    let is_wanted = |partition: &Partition| match kind {
        Some(kind) => partition.kind == kind,
        None => partition.kind != PartitionKind::Host,
    };
    let wanted = partitions.into_iter().filter(is_wanted);
    let names = wanted.map(|partition| Name {
        about: format!(
            "{}, {}",
            format::kind(partition.kind),
            format::state(partition.state)
        ),
        name: partition.name.to_string(),
    });
    Ok(names.collect())
}

/// The registered services, with those that are built in.
pub fn services(broker: &BrokerArgs) -> Result<Vec<Name>> {
    let services = broker.client()?.services(true)?.into_iter();
    let names = services.filter(|service| !service.in_box);
    let names = names.map(|service| Name {
        name: service.name.to_string(),
        about: service.purpose.unwrap_or_else(|| service.id.to_string()),
    });
    Ok(names.collect())
}

/// The ids of connections.
pub fn connections(broker: &BrokerArgs) -> Result<Vec<Name>> {
    let connections = broker.client()?.connections()?.into_iter();
    let names = connections.map(|connection| {
        let service = format::service(connection.service, connection.service_name.as_ref());
        let (from, to) = (connection.from.partition, connection.to.partition);
        Name {
            name: connection.id.to_string(),
            about: format!("{service}, {from} to {to}"),
        }
    });
    Ok(names.collect())
}

/// The broker of the command line that a shell completes. Its words follow `--` in the arguments of
/// this process.
pub fn typed_broker() -> BrokerArgs {
    let mut words = env::args_os().skip_while(|word| word != "--");
    while let Some(word) = words.next() {
        let dir = match word.to_string_lossy().strip_prefix("--dir=") {
            Some(dir) => Some(dir.into()),
            None if word == "--dir" => words.next(),
            None => continue,
        };
        return dir.map_or_else(BrokerArgs::default, BrokerArgs::in_dir);
    }
    BrokerArgs::default()
}
