//! The clipboard of the desktop, by the programs that every desktop has for it.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// What puts its standard input into the clipboard, and the package that it comes with.
const TOOLS: [(&str, &[&str]); 3] = [
    ("wl-copy", &[]),
    ("xclip", &["-selection", "clipboard"]),
    ("xsel", &["--clipboard", "--input"]),
];

/// Puts `text` into the clipboard.
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
    // Each leaves a process behind that has the text, which must not have our output open.
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // One that fails before it has read everything is told of by its status.
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
