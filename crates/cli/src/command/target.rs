//! The address that `connect` and `why` take.

use std::str::FromStr;

use anyhow::Result;
use hvsock_address::{HvUrl, ParseRefError, ParseUrlError, PartitionRef, ServiceRef};

use crate::failure::Failure;
use crate::format::shell_word;
use crate::os::Partition;

/// A partition and a service, or both in one address.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// parent, loopback, a partition's name or GUID, or a URL
    target: TargetArg,
    /// The service's friendly name, GUID or vsock port
    service: Option<ServiceRef>,
}

#[derive(Clone, Debug)]
enum TargetArg {
    Partition(Partition),
    Url(HvUrl),
}

#[derive(Debug, thiserror::Error)]
enum TargetError {
    #[error(transparent)]
    Partition(#[from] ParseRefError),
    #[error(transparent)]
    Url(#[from] ParseUrlError),
}

impl FromStr for TargetArg {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if text.contains("://") {
            Ok(Self::Url(text.parse()?))
        } else {
            Ok(Self::Partition(text.parse()?))
        }
    }
}

impl Target {
    /// The partition and the service.
    pub fn address(&self) -> Result<(PartitionRef, ServiceRef)> {
        match (&self.target, &self.service) {
            (TargetArg::Partition(partition), Some(service)) => {
                Ok((partition.resolve()?, service.clone()))
            }
            (TargetArg::Url(url), None) => Ok((url.partition.clone(), url.service.clone())),
            (TargetArg::Partition(partition), None) => {
                let partition = shell_word(&partition.to_string());
                let help = format!("hvsock connect {partition} SERVICE");
                Err(Failure::usage("no service is given").help(help).into())
            }
            (TargetArg::Url(url), Some(_)) => {
                let help = format!("hvsock connect {url}");
                Err(Failure::usage("the URL names a service already")
                    .help(help)
                    .into())
            }
        }
    }
}
