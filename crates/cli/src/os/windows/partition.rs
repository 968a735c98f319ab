//! Partitions on the command line.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use hvsock_address::{ParseRefError, PartitionRef, ServiceRef};
use hvsock_control::ExplanationReport;

use super::local;
use crate::context::Context;

/// A partition by name or GUID, or a virtual machine by its name in Hyper-V, which may be any text.
#[derive(Clone, Debug)]
pub enum Partition {
    Known(PartitionRef),
    Named(String),
}

impl FromStr for Partition {
    type Err = ParseRefError;

    fn from_str(text: &str) -> Result<Self, ParseRefError> {
        match text.parse() {
            Ok(partition) => Ok(Self::Known(partition)),
            Err(error) if text.trim().is_empty() => Err(error),
            Err(_) => Ok(Self::Named(text.to_owned())),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(partition) => partition.fmt(f),
            Self::Named(name) => f.pad(name),
        }
    }
}

impl Partition {
    /// The partition.
    ///
    /// # Errors
    ///
    /// Fails if no virtual machine has this name in Hyper-V.
    pub fn resolve(&self) -> Result<PartitionRef> {
        match self {
            Self::Known(partition) => Ok(partition.clone()),
            Self::Named(name) => Ok(local::vm(name)?.id.into()),
        }
    }
}

/// No options: Windows can explain for this process only.
#[derive(Debug, Args)]
pub struct ExplainAs {}

impl ExplainAs {
    /// Always `None`: no other partition can be given.
    pub fn explain(
        &self,
        _context: &Context,
        _partition: &PartitionRef,
        _service: &ServiceRef,
        _listen: bool,
    ) -> Result<Option<ExplanationReport>> {
        Ok(None)
    }
}
