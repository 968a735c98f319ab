//! Access rules of a service, which the broker keeps, and its use, which the broker counts.

use clap::Args;
use hvsock_control::{AccessList, NewService};

/// Whether it is known how many listeners and connections a service has.
pub const COUNTS_USE: bool = true;
/// Whether a service has access rules.
pub const KEEPS_RULES: bool = true;

/// Who may use a service that is registered.
#[derive(Debug, Args)]
pub struct Rules {
    /// A user of this partition who may connect; * is everyone [default: everyone]
    #[arg(long = "connect-user", value_name = "USER", conflicts_with = "lease")]
    connect_users: Vec<String>,
    /// A user of this partition who may listen; * is everyone [default: who registers it]
    #[arg(long = "bind-user", value_name = "USER", conflicts_with = "lease")]
    bind_users: Vec<String>,
    /// A child partition, or @GROUP, that may connect and listen; * is every one [default: *]
    #[arg(long = "partition", value_name = "PARTITION", conflicts_with = "lease")]
    partitions: Vec<String>,
}

impl Rules {
    /// `service` with these rules.
    pub fn of(self, service: NewService) -> NewService {
        let some = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
        let partitions = some(self.partitions);
        NewService {
            bind: AccessList {
                users: some(self.bind_users),
                groups: None,
                partitions: partitions.clone(),
            },
            connect: AccessList {
                users: some(self.connect_users),
                groups: None,
                partitions,
            },
            ..service
        }
    }
}
