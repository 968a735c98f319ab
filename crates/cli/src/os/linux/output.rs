//! Standard output, with JSON lines for values that arrive one at a time.

use anyhow::Result;
use serde::Serialize;

pub use crate::output::*;

/// Prints a value as one line of JSON.
pub fn json_line(value: &(impl Serialize + ?Sized)) -> Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    bytes(&text)
}
