//! `hvsock man` and `hvsock completions`: what packages install beside the command.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use crate::os::help;
use crate::output;

/// Print shell completions
#[derive(Debug, Args)]
#[command(after_help = help::COMPLETIONS)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "hvsock", &mut script);
        output::bytes(&script)
    }
}

/// Print the manual page, or write one for each subcommand into a folder
#[derive(Debug, Args)]
#[command(after_help = help::MAN)]
pub struct Man {
    /// The folder
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Man {
    pub fn run(self) -> Result<()> {
        let mut command = Cli::command();
        command.build();
        match self.output {
            None => output::bytes(&page(command, "hvsock")?),
            Some(folder) => {
                fs::create_dir_all(&folder)
                    .with_context(|| format!("cannot make {}", folder.display()))?;
                write(&folder, &command, "hvsock")
            }
        }
    }
}

/// Writes the pages of a command and all below it.
fn write(folder: &Path, command: &Command, name: &str) -> Result<()> {
    let path = folder.join(format!("{name}.1"));
    fs::write(&path, page(command.clone(), name)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let below = command.get_subcommands();
    for sub in below.filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        write(folder, sub, &format!("{name}-{}", sub.get_name()))?;
    }
    Ok(())
}

fn page(command: Command, name: &str) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .title(name.to_uppercase())
        .manual("hvsock")
        .render(&mut page)?;
    Ok(page)
}
