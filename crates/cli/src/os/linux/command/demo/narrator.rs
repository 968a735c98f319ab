//! How the demo tells its story: numbered chapters, and lines that say who does what.

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

/// Prints the story.
#[derive(Default)]
pub struct Narrator {
    chapter: u32,
}

impl Narrator {
    /// A new chapter, with what it is about.
    pub fn chapter(&mut self, title: &str, about: &str) -> Result<()> {
        self.chapter += 1;
        output::text(&format!("\n{TITLE}{}. {title}{TITLE:#}\n", self.chapter))?;
        for line in about.lines() {
            output::text(&format!("   {line}\n"))?;
        }
        Ok(())
    }

    /// What somebody does.
    pub fn does(&self, who: &str, what: &str) -> Result<()> {
        self.line(Style::new(), who, what)
    }

    /// What went well.
    pub fn good(&self, who: &str, what: &str) -> Result<()> {
        self.line(GOOD, who, what)
    }

    /// What was refused or cut.
    pub fn bad(&self, who: &str, what: &str) -> Result<()> {
        self.line(BAD, who, what)
    }

    /// The command that does what is done here.
    pub fn command(&self, command: &str) -> Result<()> {
        output::text(&format!(
            "   {FAINT}${FAINT:#} {COMMAND}{command}{COMMAND:#}\n"
        ))
    }

    /// An aside.
    pub fn aside(&self, what: &str) -> Result<()> {
        if what.is_empty() {
            return output::text("\n");
        }
        output::text(&format!("   {FAINT}{}{FAINT:#}\n", printable(what)))
    }

    /// Figures.
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
