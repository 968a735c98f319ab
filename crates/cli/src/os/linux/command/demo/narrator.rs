//! Prints the demo: numbered chapters, and lines with a subject and what it does.

use anstyle::{AnsiColor, Style};
use anyhow::Result;

use crate::failure::printable;
use crate::output;
use crate::table::Columns;

const TITLE: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();
const COMMAND: Style = AnsiColor::Cyan.on_default();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();

/// Prints chapters and lines.
#[derive(Default)]
pub struct Narrator {
    chapter: u32,
}

impl Narrator {
    /// Begins a chapter with a title and an explanation.
    pub fn chapter(&mut self, title: &str, about: &str) -> Result<()> {
        self.chapter += 1;
        output::text(&format!("\n{TITLE}{}. {title}{TITLE:#}\n", self.chapter))?;
        for line in about.lines() {
            output::text(&format!("   {line}\n"))?;
        }
        Ok(())
    }

    /// An action.
    pub fn does(&self, who: &str, what: &str) -> Result<()> {
        self.line(Style::new(), who, what)
    }

    /// A success.
    pub fn good(&self, who: &str, what: &str) -> Result<()> {
        self.line(GOOD, who, what)
    }

    /// A refusal or a reset.
    pub fn bad(&self, who: &str, what: &str) -> Result<()> {
        self.line(BAD, who, what)
    }

    /// The command line of the next action.
    pub fn command(&self, command: &str) -> Result<()> {
        output::text(&format!(
            "   {FAINT}${FAINT:#} {COMMAND}{command}{COMMAND:#}\n"
        ))
    }

    /// A secondary line.
    pub fn aside(&self, what: &str) -> Result<()> {
        if what.is_empty() {
            return output::text("\n");
        }
        output::text(&format!("   {FAINT}{}{FAINT:#}\n", printable(what)))
    }

    /// A table.
    pub fn table(&self, table: &Columns) -> Result<()> {
        for line in table.text().lines() {
            output::text(&format!("   {line}\n"))?;
        }
        Ok(())
    }

    fn line(&self, style: Style, who: &str, what: &str) -> Result<()> {
        let what = printable(what);
        output::text(&format!(
            "   {TITLE}{who:<6}{TITLE:#} {style}{what}{style:#}\n"
        ))
    }
}
