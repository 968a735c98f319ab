//! `hvsock service export` and `import`: all registrations at once.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use hvsock_control::NewService;

use super::confusable;
use crate::context::Context;
use crate::failure::Failure;
use crate::format;
use crate::os::stdio;
use crate::output;

/// Export all registrations for another machine
#[derive(Debug, Args)]
pub struct Export {
    /// Write a .reg file for Windows instead of JSON
    #[arg(long)]
    reg: bool,
    /// The file to write [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Register all services of a file, and keep existing registrations
#[derive(Debug, Args)]
pub struct Import {
    /// A file of `service export` (JSON or .reg), or - for standard input
    file: PathBuf,
}

impl Export {
    pub fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        let file = if self.reg {
            client.export_reg()?.to_vec()
        } else {
            let text = serde_json::to_string_pretty(&client.export_json()?)?;
            format!("{}\n", hvsock_text::json(&text)).into_bytes()
        };
        match self.output {
            None => output::bytes(&file),
            Some(path) => {
                fs::write(&path, file).with_context(|| format!("cannot write {}", path.display()))
            }
        }
    }
}

impl Import {
    pub fn run(self, context: &Context) -> Result<()> {
        let file = read(&self.file)?;
        let client = context.client()?;
        let imported = if is_json(&file) {
            let services: Vec<NewService> = serde_json::from_slice(&file)
                .map_err(|error| Failure::new(format!("{}: {error}", self.file.display())))?;
            client.import_json(&services)?
        } else {
            client.import_reg(&file)?
        };
        for service in &imported.added {
            output::line(format_args!("{} {}", service.id, service.name))?;
        }
        for service in &imported.removed {
            context.note(&format!(
                "`{}` ({}) is no longer registered",
                service.name, service.id
            ));
        }
        for note in &imported.notes {
            context.note(note);
        }
        confusable::warn(context, imported.added.iter().map(|service| &service.name));
        context.note(&format!(
            "{} added",
            format::count(imported.added.len(), "service")
        ));
        Ok(())
    }
}

/// The largest file to import, in bytes. The broker has the same limit.
const LARGEST: u64 = 64 << 20;

fn read(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let source: Box<dyn Read> = if path == Path::new("-") {
        // The standard library takes a descriptor that cannot be read for an empty file.
        Box::new(stdio::input().context("cannot read standard input")?)
    } else {
        Box::new(fs::File::open(path).with_context(|| format!("cannot read {shown}"))?)
    };
    let mut file = Vec::new();
    let read = source.take(LARGEST + 1).read_to_end(&mut file);
    read.with_context(|| format!("cannot read {shown}"))?;
    if file.len() as u64 > LARGEST {
        bail!("{shown} is larger than {}", format::bytes(LARGEST));
    }
    Ok(file)
}

/// Distinguishes JSON from a `.reg` file, which begins with a byte order mark or its format's name.
fn is_json(file: &[u8]) -> bool {
    file.trim_ascii_start().first() == Some(&b'[') && !file.starts_with(b"[HKEY")
}
