//! Standard output, with JSON lines for values that arrive one at a time.

use anyhow::Result;
use serde::Serialize;

pub use crate::output::*;

/// Prints a value as one line of JSON.
pub fn json_line(value: &(impl Serialize + ?Sized)) -> Result<()> {
    json_text(&serde_json::to_string(value)?)
}
