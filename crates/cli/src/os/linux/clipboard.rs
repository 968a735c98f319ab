//! Copies text to the desktop's clipboard with the desktop's own tools.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// Programs that copy their standard input to the clipboard, with their arguments.
const TOOLS: [(&str, &[&str]); 3] = [
    ("wl-copy", &[]),
    ("xclip", &["-selection", "clipboard"]),
    ("xsel", &["--clipboard", "--input"]),
];

/// Copies `text` to the clipboard.
///
/// # Errors
///
/// Fails if no tool is installed, or if each one that is installed fails.
pub fn copy(text: &str) -> Result<()> {
    let mut failed = Vec::new();
    for (tool, arguments) in TOOLS {
        match run(tool, arguments, text) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failed.push(format!("{tool}: {error}")),
        }
    }
    if failed.is_empty() {
        bail!("install wl-clipboard (Wayland), or xclip or xsel (X11)");
    }
    bail!("{}", failed.join("; "));
}

fn run(tool: &str, arguments: &[&str], text: &str) -> io::Result<()> {
    // Each tool leaves a process behind that owns the text. It must not keep our output open.
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // If the tool fails before it has read everything, its exit status is reported, not EPIPE.
    let written = child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(text.as_bytes()));
    let status = child.wait()?;
    match written {
        _ if !status.success() => Err(io::Error::other(status.to_string())),
        Some(Err(error)) => Err(error),
        _ => Ok(()),
    }
}
