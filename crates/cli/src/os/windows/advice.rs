//! What helps against failures that any command may meet: Windows' own say so themselves.

/// The command that would help, or another step.
pub fn advice(_error: &anyhow::Error) -> Option<String> {
    None
}
