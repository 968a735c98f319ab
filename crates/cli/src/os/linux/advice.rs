//! The next step after errors that any command may have.

use hvsock::Fix;
use hvsock_broker::StartError;
use hvsock_client::ClientError;

use crate::fix;
use crate::hint::Help;

/// The command that helps, or another next step.
pub fn advice(error: &anyhow::Error) -> Option<Help> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref() {
            return advice_of_client(error);
        }
        let fix = cause.downcast_ref::<StartError>()?.fix()?;
        Some(fix::help(&fix))
    })
}

fn advice_of_client(error: &ClientError) -> Option<Help> {
    let fix = match error {
        ClientError::NotRunning { .. } => Fix::StartBroker,
        ClientError::Refused { fix, status, .. } => match fix {
            Some(fix) => Fix::from(fix),
            // A broker that sends no fix.
            None if *status == 403 => Fix::BecomeOperator,
            None => return None,
        },
        _ => return None,
    };
    Some(match fix {
        Fix::ListServices => {
            Help::sentence("`hvsock service list` lists them, `hvsock service register` adds one")
        }
        Fix::ListPartitions => Help::sentence(
            "`hvsock status` lists them, `hvsock container add` and `hvsock vm add` add one",
        ),
        Fix::ListConnections => Help::sentence("`hvsock connections` lists them"),
        other => fix::help(&other),
    })
}
