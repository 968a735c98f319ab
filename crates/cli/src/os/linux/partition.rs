//! Partitions on the command line.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use hvsock_address::{ParseRefError, PartitionRef, ServiceRef};
use hvsock_control::ExplanationReport;

use crate::context::Context;

/// A partition by name or GUID.
#[derive(Clone, Debug)]
pub struct Partition(PartitionRef);

impl FromStr for Partition {
    type Err = ParseRefError;

    fn from_str(text: &str) -> Result<Self, ParseRefError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Partition {
    /// The partition. Names are resolved by the broker.
    pub fn resolve(&self) -> Result<PartitionRef> {
        Ok(self.0.clone())
    }
}

/// The option of `why` that selects the partition that connects or listens.
#[derive(Debug, Args)]
pub struct ExplainAs {
    /// Explain for a process in this partition [default: for this process]
    #[arg(long, value_name = "PARTITION")]
    from: Option<PartitionRef>,
}

impl ExplainAs {
    /// The explanation for the given partition. `None` if the option is absent.
    pub fn explain(
        &self,
        context: &Context,
        partition: &PartitionRef,
        service: &ServiceRef,
        listen: bool,
    ) -> Result<Option<ExplanationReport>> {
        let Some(from) = &self.from else {
            return Ok(None);
        };
        let client = context.client()?;
        let explanation = if listen {
            client.explain_listen(Some(from), partition, service)
        } else {
            client.explain_connect(Some(from), partition, service)
        };
        Ok(Some(explanation?))
    }
}
