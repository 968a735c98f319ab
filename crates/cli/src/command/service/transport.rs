//! `hvsock service transport`: how the bytes of a service's connections travel.

use anyhow::Result;
use clap::{Args, ValueEnum};
use hvsock_address::ServiceRef;
use hvsock_control::{TransportChange, TransportSetting};

use super::show;
use crate::context::Context;
use crate::os::Partition;
use crate::output::{self, Json, Lines};

/// Choose how the bytes of a service's new connections travel
#[derive(Debug, Args)]
pub struct Transport {
    /// The service's friendly name, GUID or vsock port
    service: ServiceRef,
    /// The transport
    #[arg(value_enum)]
    transport: Choice,
    /// Only for connections with this child partition
    #[arg(long, value_name = "PARTITION")]
    vm: Option<Partition>,
    #[command(flatten)]
    json: Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// The best that both ends and the broker support
    Auto,
    /// One socket pair of both ends: full speed, bytes are not counted, cannot be suspended
    Direct,
    /// No setting here: that of the level below applies
    Inherit,
}

impl Choice {
    fn setting(self) -> Option<TransportSetting> {
        match self {
            Self::Auto => Some(TransportSetting::Auto),
            Self::Direct => Some(TransportSetting::Direct),
            Self::Inherit => None,
        }
    }
}

impl Transport {
    pub fn run(self, context: &Context) -> Result<()> {
        let vm = self.vm.as_ref().map(Partition::resolve).transpose()?;
        let change = TransportChange {
            transport: self.transport.setting(),
            vm,
        };
        let service = context.client()?.set_transport(&self.service, &change)?;
        if self.json.json {
            return output::json(&service);
        }
        let scope = self
            .vm
            .map_or_else(String::new, |vm| format!(" with `{vm}`"));
        let text = match self.transport {
            Choice::Auto => "use the best transport of both ends",
            Choice::Direct => "are direct: bytes are not counted, and a pause closes them",
            Choice::Inherit => "follow the level below",
        };
        context.note(&format!(
            "new connections of `{}`{scope} {text}",
            service.name
        ));
        let mut lines = Lines::default();
        show::rules(&mut lines, &service);
        lines.print()
    }
}
