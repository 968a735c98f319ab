//! Copies text to the session's clipboard.

use anyhow::Result;

/// Copies `text` to the clipboard.
///
/// # Errors
///
/// Fails if Windows rejects it, such as while another program has the clipboard open.
pub fn copy(text: &str) -> Result<()> {
    clipboard_win::set_clipboard_string(text)
        .map_err(|error| anyhow::anyhow!("Windows rejects it: {error}"))
}
