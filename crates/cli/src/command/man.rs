//! `hvsock man` and `hvsock completions`: the files that a package installs beside the command.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, bold, roman};

use crate::help::{Topic, join, topic};
use crate::os::help::{ENVIRONMENT, EXIT_STATUS};
use crate::{complete, output};

/// Print the completion script for a shell
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the script for the command line `definition`.
    pub fn run(self, definition: Command) -> Result<()> {
        output::bytes(&complete::script(self.shell, definition)?)
    }
}

/// Print the manual page, or write the pages of all commands
#[derive(Debug, Args)]
pub struct Man {
    /// Write one page for each command into this folder
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Man {
    /// Prints or writes the pages of the command line `definition`.
    pub fn run(self, definition: Command) -> Result<()> {
        let mut command = definition.disable_help_subcommand(true);
        command.build();
        match self.output {
            None => output::bytes(&page(&command, "")?),
            Some(folder) => {
                fs::create_dir_all(&folder)
                    .with_context(|| format!("cannot make {}", folder.display()))?;
                write(&folder, &command, "")
            }
        }
    }
}

/// Writes the pages of a command and of all its subcommands.
fn write(folder: &Path, command: &Command, path: &str) -> Result<()> {
    let file = folder.join(format!("{}.1", name(path)));
    fs::write(&file, page(command, path)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    for sub in command.get_subcommands() {
        write(folder, sub, &join(path, sub.get_name()))?;
    }
    Ok(())
}

/// The name of the page of the command `path`.
fn name(path: &str) -> String {
    match path {
        "" => "hvsock".to_owned(),
        path => format!("hvsock-{}", path.replace(' ', "-")),
    }
}

/// The page of the command `path`, with the sections in the order of man-pages(7).
fn page(command: &Command, path: &str) -> Result<Vec<u8>> {
    let topic = topic(path).unwrap_or(&Topic::EMPTY);
    let page = Page::new(command.clone());
    // roff drops an empty argument, so that the source would take the place of the date.
    let mut text = format!(
        ".TH {} 1 \"\" \"hvsock {}\" \"User Commands\"\n",
        name(path).to_uppercase(),
        env!("CARGO_PKG_VERSION")
    )
    .into_bytes();
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    description(command, topic).to_writer(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    let exit_status = match topic.exit_status {
        [] => EXIT_STATUS,
        own => own,
    };
    list("EXIT STATUS", exit_status.iter()).to_writer(&mut text)?;
    let environment = topic.environment.iter().chain(ENVIRONMENT);
    list("ENVIRONMENT", environment).to_writer(&mut text)?;
    examples(topic).to_writer(&mut text)?;
    see_also(path, topic).to_writer(&mut text)?;
    Ok(with_one_preamble(&String::from_utf8(text)?).into_bytes())
}

/// Removes all but the first of the apostrophe definitions that begin each rendered section.
fn with_one_preamble(page: &str) -> String {
    const PREAMBLE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
    match page.split_once(PREAMBLE) {
        Some((before, rest)) => format!("{before}{PREAMBLE}{}", rest.replace(PREAMBLE, "")),
        None => page.to_owned(),
    }
}

fn description(command: &Command, topic: &Topic) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["DESCRIPTION"]);
    let about = command.get_long_about().or_else(|| command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let paragraphs = about.split("\n\n").chain(topic.notes.iter().copied());
    for (index, paragraph) in paragraphs.enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        // clap wants an `about` without a full stop.
        let end = match paragraph.ends_with(['.', ':']) {
            true => "",
            false => ".",
        };
        roff.text([roman(format!("{paragraph}{end}"))]);
    }
    roff
}

fn list<'a>(heading: &str, terms: impl Iterator<Item = &'a (&'a str, &'a str)>) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [heading]);
    for (term, about) in terms {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*about)]);
    }
    roff
}

/// Each example verbatim, so that it can be pasted, below what it does.
fn examples(topic: &Topic) -> Roff {
    let mut roff = Roff::new();
    if topic.examples.is_empty() {
        return roff;
    }
    roff.control("SH", ["EXAMPLES"]);
    for (index, (command, about)) in topic.examples.iter().enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        if !about.is_empty() {
            roff.text([roman(format!("{}:", capitalised(about)))]);
        }
        roff.control("RS", ["4"]);
        roff.control("nf", []);
        for line in command.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
        roff.control("RE", []);
    }
    roff
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

/// The command above, the topic's related commands, and `hvsock` itself.
fn see_also(path: &str, topic: &Topic) -> Roff {
    let mut pages = Vec::new();
    if let Some((above, _)) = path.rsplit_once(' ') {
        pages.push(name(above));
    }
    pages.extend(topic.see_also.iter().map(|path| name(path)));
    if !path.is_empty() {
        pages.push(name(""));
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for (index, page) in pages.into_iter().enumerate() {
        if index > 0 {
            line.push(roman(", "));
        }
        line.extend([bold(page), roman("(1)")]);
    }
    roff.text(line);
    roff
}
