//! Standard output: text for people, JSON for programs, and no error when the reader closes it.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

use crate::failure::OutputGone;

/// The option `--json`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Json {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints text, with colours only on a terminal.
pub fn text(text: &str) -> Result<()> {
    let mut stdout = anstream::stdout().lock();
    gone(
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush()),
    )
}

/// Prints one line.
pub fn line(line: impl std::fmt::Display) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Prints bytes unchanged.
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    gone(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// Prints a value as indented JSON.
pub fn json(value: &(impl Serialize + ?Sized)) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    bytes(&text)
}

/// Turns a broken pipe into [`OutputGone`], which is not an error.
fn gone(written: io::Result<()>) -> Result<()> {
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputGone.into(),
        _ => anyhow::Error::new(error).context("cannot write the output"),
    })
}
