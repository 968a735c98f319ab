//! `hvsock why`: what a connect or listen would meet, and what to do about it.

use std::fmt::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use clap::Args;
use hvsock::HvAddr;
use hvsock_control::Explanation;

use super::target::Target;
use crate::context::Context;
use crate::explain;
use crate::failure::printable;
use crate::os::{Asker, help};
use crate::output::{self, Json};

/// Say why a connect or listen would be refused, without doing it
#[derive(Debug, Args)]
#[command(after_help = help::WHY)]
pub struct Why {
    #[command(flatten)]
    target: Target,
    /// A listen that accepts from TARGET, instead of a connect to it
    #[arg(long)]
    listen: bool,
    #[command(flatten)]
    asker: Asker,
    #[command(flatten)]
    json: Json,
}

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const HELP: Style = AnsiColor::Cyan.on_default().bold();

impl Why {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let (partition, service) = self.target.address()?;
        let asked = self.asker;
        let explanation = match asked.explain(context, &partition, &service, self.listen)? {
            Some(explanation) => explanation,
            // By the endpoint: in a container there is nothing else, and what it says is about
            // the very process that asks.
            None => explain::ask(context, &HvAddr::new(partition, service), self.listen)?,
        };
        if self.json.json {
            output::json(&explanation)?;
        } else {
            output::text(&told(context, &explanation))?;
        }
        Ok(match explanation.refusal {
            Some(_) => ExitCode::FAILURE,
            None => ExitCode::SUCCESS,
        })
    }
}

fn told(context: &Context, explanation: &Explanation) -> String {
    let style = if explanation.refusal.is_some() {
        BAD
    } else {
        GOOD
    };
    let mut text = format!("{style}{}{style:#}\n", printable(&explanation.verdict));
    for step in &explanation.steps {
        let (style, mark) = if step.pass {
            (GOOD, "✓")
        } else {
            (BAD, "✗")
        };
        let (question, answer) = (printable(&step.question), printable(&step.answer));
        let _ = writeln!(text, "  {style}{mark}{style:#} {question} {answer}");
    }
    if let Some(fix) = explanation
        .refusal
        .as_ref()
        .and_then(|refusal| refusal.fix.as_ref())
    {
        let fix = printable(&context.command(fix));
        let _ = writeln!(text, "{HELP}help:{HELP:#} {fix}");
    }
    text
}
