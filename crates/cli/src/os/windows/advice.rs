//! The next step after errors that any command may have. Those of Windows contain it already.

/// The command that helps, or another next step.
pub fn advice(_error: &anyhow::Error) -> Option<String> {
    None
}
