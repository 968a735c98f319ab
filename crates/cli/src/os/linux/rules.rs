//! Access rules of a service. The broker stores them, and counts listeners and connections.

use clap::{Args, ValueEnum};
use hvsock_control::{AccessList, NewService, TransportSetting};

/// Whether the numbers of a service's listeners and connections are known.
pub const REPORTS_USAGE: bool = true;
/// Whether a service has access rules.
pub const HAS_ACCESS_RULES: bool = true;

/// The access rules of a new service.
#[derive(Debug, Args)]
pub struct Rules {
    /// A user of this partition who may connect, or * for all [default: *]
    #[arg(long = "connect-user", value_name = "USER", conflicts_with = "lease")]
    connect_users: Vec<String>,
    /// A user of this partition who may listen, or * for all [default: the one who registers]
    #[arg(long = "bind-user", value_name = "USER", conflicts_with = "lease")]
    bind_users: Vec<String>,
    /// A child partition or @GROUP that may connect and listen, or * for all [default: *]
    #[arg(long = "partition", value_name = "PARTITION", conflicts_with = "lease")]
    partitions: Vec<String>,
    /// How the bytes of its connections travel [default: auto]
    #[arg(long, value_name = "TRANSPORT", conflicts_with = "lease", value_enum)]
    transport: Option<TransportName>,
}

/// How bytes travel, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransportName {
    /// The best that both ends and the broker support
    Auto,
    /// One socket pair of both ends: full speed, bytes are not counted, cannot be suspended
    Direct,
}

impl From<TransportName> for TransportSetting {
    fn from(name: TransportName) -> Self {
        match name {
            TransportName::Auto => Self::Auto,
            TransportName::Direct => Self::Direct,
        }
    }
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
            transport: self.transport.map(Into::into),
            ..service
        }
    }
}
