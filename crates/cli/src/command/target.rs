//! What `connect` and `why` are pointed at.

use std::str::FromStr;

use anyhow::Result;
use hvsock_address::{HvUrl, ParseRefError, ParseUrlError, PartitionRef, ServiceRef};

use crate::failure::Failure;
use crate::os::Partition;
use crate::words::shell_word;

/// A partition and a service, or both in one address.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// parent, loopback, a partition's name or GUID; or a whole hvsock://PARTITION/SERVICE
    target: Place,
    /// The service's friendly name, GUID or vsock port
    service: Option<ServiceRef>,
}

#[derive(Clone, Debug)]
enum Place {
    Partition(Partition),
    Whole(HvUrl),
}

#[derive(Debug, thiserror::Error)]
enum PlaceError {
    #[error(transparent)]
    Partition(#[from] ParseRefError),
    #[error(transparent)]
    Whole(#[from] ParseUrlError),
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        if text.contains("://") {
            Ok(Self::Whole(text.parse()?))
        } else {
            Ok(Self::Partition(text.parse()?))
        }
    }
}

impl Target {
    /// The partition and the service.
    pub fn address(&self) -> Result<(PartitionRef, ServiceRef)> {
        match (&self.target, &self.service) {
            (Place::Partition(partition), Some(service)) => {
                Ok((partition.resolve()?, service.clone()))
            }
            (Place::Whole(url), None) => Ok((url.partition.clone(), url.service.clone())),
            (Place::Partition(partition), None) => {
                let partition = shell_word(&partition.to_string());
                let help = format!("hvsock connect {partition} SERVICE");
                Err(Failure::usage("which service? name it after the partition")
                    .help(help)
                    .into())
            }
            (Place::Whole(url), Some(_)) => {
                let help = format!("hvsock connect {url}");
                Err(Failure::usage("the address names the service already")
                    .help(help)
                    .into())
            }
        }
    }
}
