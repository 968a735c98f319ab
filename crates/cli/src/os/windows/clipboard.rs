//! The clipboard of the session.

use anyhow::Result;

/// Puts `text` into the clipboard.
pub fn copy(text: &str) -> Result<()> {
    clipboard_win::set_clipboard_string(text)
        .map_err(|error| anyhow::anyhow!("Windows does not take it: {error}"))
}
