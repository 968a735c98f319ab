//! What helps against failures that any command may meet.

use hvsock_broker::api::client::ClientError;

/// The command that would help, or another step.
pub fn advice(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref()? {
        ClientError::NotRunning { .. } => {
            Some("hvsock broker (or --dir DIR, if one runs elsewhere)".to_owned())
        }
        ClientError::Refused { status: 403, .. } => Some("sudo hvsock …".to_owned()),
        _ => None,
    }
}
