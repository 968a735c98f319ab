//! The next step after errors that any command may have.

use hvsock_client::ClientError;

/// The command that helps, or another next step.
pub fn advice(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref()? {
        ClientError::NotRunning { .. } => {
            Some("hvsock broker (or --dir DIR, if one runs elsewhere)".to_owned())
        }
        ClientError::Refused { status: 403, .. } => Some("sudo hvsock …".to_owned()),
        _ => None,
    }
}
