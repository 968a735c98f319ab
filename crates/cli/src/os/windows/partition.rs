//! Partitions as people name them, and who asks.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use hvsock_address::{ParseRefError, PartitionRef, ServiceRef};
use hvsock_control::Explanation;

use super::local;
use crate::context::Context;

/// A partition, or a virtual machine by the name that its owner gave it, which may be anything.
#[derive(Clone, Debug)]
pub enum Partition {
    Known(PartitionRef),
    Called(String),
}

impl FromStr for Partition {
    type Err = ParseRefError;

    fn from_str(text: &str) -> Result<Self, ParseRefError> {
        match text.parse() {
            Ok(partition) => Ok(Self::Known(partition)),
            Err(error) if text.trim().is_empty() => Err(error),
            Err(_) => Ok(Self::Called(text.to_owned())),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(partition) => partition.fmt(f),
            Self::Called(name) => f.pad(name),
        }
    }
}

impl Partition {
    /// The partition that is meant.
    pub fn resolve(&self) -> Result<PartitionRef> {
        match self {
            Self::Known(partition) => Ok(partition.clone()),
            Self::Called(name) => Ok(local::vm(name)?.id.into()),
        }
    }
}

/// As whom to ask why: Windows judges this process only.
#[derive(Debug, Args)]
pub struct Asker {}

impl Asker {
    /// What somebody else would meet, who cannot be named here.
    pub fn explain(
        &self,
        _context: &Context,
        _partition: &PartitionRef,
        _service: &ServiceRef,
        _listen: bool,
    ) -> Result<Option<Explanation>> {
        Ok(None)
    }
}
