//! `hvsock container oci-hooks`: the files of the OCI hooks directory, by which podman and CRI-O run hooks for
//! containers with an annotation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use hvsock_text::printable_path;
use serde_json::{Value, json};

use super::hook_command::{self, CREATE_RUNTIME, POSTSTOP};
use super::oci_hook::NAME_ANNOTATION;
use crate::context::Context;
use crate::output;

/// After how many seconds a runtime ends a hook, which has a limit of its own that is lower.
const TIMEOUT_SECONDS: u32 = 5;

/// The folder in which podman and CRI-O look for hooks.
const FOLDER: &str = "/usr/share/containers/oci/hooks.d";

/// Give containers with the annotation hvsock.dev/name a partition, in podman and CRI-O
#[derive(Debug, Subcommand)]
pub enum OciHooks {
    /// Write the files of the hooks
    Install(Install),
    /// Print the files of the hooks
    Show(Which),
}

#[derive(Debug, Args)]
pub struct Install {
    /// The folder of the hooks
    #[arg(long, value_name = "DIR", default_value = FOLDER)]
    folder: PathBuf,
    #[command(flatten)]
    which: Which,
}

/// Which containers the hooks take.
#[derive(Debug, Args)]
pub struct Which {
    /// Take also names that were added with `hvsock container add`
    #[arg(long)]
    existing: bool,
    /// Take only names that begin with this
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
}

impl OciHooks {
    pub fn run(self, context: &Context) -> Result<()> {
        let (folder, which) = match &self {
            Self::Install(install) => (Some(&install.folder), &install.which),
            Self::Show(which) => (None, which),
        };
        let files = which.files(context)?;
        let Some(folder) = folder else {
            return files.iter().try_for_each(|(_, text)| output::json(text));
        };
        for (name, text) in files {
            let path = folder.join(name);
            let what = || format!("cannot write {}", printable_path(&path));
            write(&path, &text).with_context(what)?;
            context.note(&format!("{} is written", printable_path(&path)));
        }
        context.note(&format!(
            "A container with the annotation {NAME_ANNOTATION}=NAME is the partition NAME while it runs"
        ));
        Ok(())
    }
}

impl Which {
    /// The names and texts of the files, one for each point of a container's life.
    fn files(&self, context: &Context) -> Result<Vec<(String, Value)>> {
        let run = context.broker.dirs()?.run;
        let mut files = Vec::new();
        for hook @ (stage, verb) in [CREATE_RUNTIME, POSTSTOP] {
            let command = hook_command::of_broker(&run, hook);
            let (program, mut args) = command.context("cannot name the hooks")?;
            // It says which container by its annotation, not by a name.
            args.pop();
            args.push("--annotation".to_owned());
            if hook == CREATE_RUNTIME {
                args.push("--mount".to_owned());
                args.extend(self.existing.then(|| "--existing".to_owned()));
                if let Some(prefix) = &self.prefix {
                    args.extend(["--prefix".to_owned(), prefix.clone()]);
                }
            }
            let pattern = NAME_ANNOTATION.replace('.', "\\.");
            let text = json!({
                "version": "1.0.0",
                "hook": {"path": program, "args": args, "timeout": TIMEOUT_SECONDS},
                "when": {"annotations": {format!("^{pattern}$"): "."}},
                "stages": [stage],
            });
            files.push((format!("hvsock-{verb}.json"), text));
        }
        Ok(files)
    }
}

/// Writes a file in place of an older one.
fn write(path: &Path, text: &Value) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(text)?;
    bytes.push(b'\n');
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Readers skip files without the extension.
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
}
