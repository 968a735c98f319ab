//! Shared code of the commands that use a guest's integration services.

use std::ffi::OsStr;
use std::future::Future;

use anyhow::{Context as _, Result};
use hvsock::{HvAddr, Refusal};
use hvsock_services::catalog::{Integration, ServiceSide};
use hvsock_services::link::{CallError, Target};

use crate::context::Context;
use crate::explain;
use crate::failure::Failure;
use crate::format::shell_word;
use crate::os::Partition;

/// The integration services of a virtual machine or container.
pub fn target(context: &Context, partition: &Partition) -> Result<Target> {
    Ok(Target::new(context.endpoint(), partition.resolve()?))
}

/// The same, whose connections the broker's audit records with `action` and the words of `detail`.
pub fn target_for(
    context: &Context,
    partition: &Partition,
    action: &'static str,
    detail: &[&OsStr],
) -> Result<Target> {
    let words = detail
        .iter()
        .map(|word| shell_word(&word.to_string_lossy()));
    let detail = words.collect::<Vec<_>>().join(" ");
    Ok(target(context, partition)?.describe(action, detail))
}

/// Tells the broker's audit how a connection of this process ended. Without a broker, or with an older
/// one, nobody is told.
pub fn state_result(context: &Context, connection: u64, result: &str) {
    if let Ok(client) = context.client() {
        let _ = client.state_result(connection, result);
    }
}

/// Runs a future on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    Ok(runtime
        .context("cannot start the runtime")?
        .block_on(future))
}

/// The error of a call that failed, with the next step.
pub fn failure(context: &Context, error: CallError) -> anyhow::Error {
    match error {
        CallError::Connect {
            service,
            partition,
            error,
        } => {
            let address = HvAddr::new(partition, service.id());
            match hvsock::refusal_of(&error) {
                Some(Refusal::NoListener) => no_agent(service, &address),
                _ => explain::named_failure(context, error, &address, service.name, false),
            }
        }
        CallError::Status(_) => Failure::new(error.to_string()).into(),
    }
}

fn no_agent(service: &Integration, address: &HvAddr) -> anyhow::Error {
    let (partition, key) = (shell_word(&address.partition().to_string()), service.key);
    let what = match service.side {
        ServiceSide::Guest => "no hvsock-agent offers it there",
        ServiceSide::Host => "no broker offers it there",
    };
    Failure::new(format!(
        "cannot reach the {key} service of {partition}: {what}"
    ))
    .help("start hvsock-agent in the guest; docs/services.md shows how")
    .into()
}
