//! `hvsock why`: explains whether a connect or listen would succeed, and what would fix it.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use clap::Args;
use hvsock::{Fix, HvAddr};
use hvsock_control::ExplanationReport;

use super::target::Target;
use crate::context::Context;
use crate::explain;
use crate::failure::printable;
use crate::fix;
use crate::hint::Help;
use crate::os::ExplainAs;
use crate::output::{self, Json, Lines};

/// Explain why a connect or listen would be refused
#[derive(Debug, Args)]
pub struct Why {
    #[command(flatten)]
    target: Target,
    /// Explain a listen that accepts from TARGET, instead of a connect to it
    #[arg(long)]
    listen: bool,
    #[command(flatten)]
    explain_as: ExplainAs,
    #[command(flatten)]
    json: Json,
}

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const HELP: Style = AnsiColor::Cyan.on_default().bold();

impl Why {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let (partition, service) = self.target.address()?;
        let as_other = self.explain_as;
        let explanation = match as_other.explain(context, &partition, &service, self.listen)? {
            Some(explanation) => explanation,
            // The endpoint explains for this process. A container has no control API to ask.
            None => explain::explain(context, &HvAddr::new(partition, service), self.listen)?,
        };
        if self.json.json {
            output::json(&with_command(context, &explanation)?)?;
        } else {
            text_of(context, &explanation).print()?;
        }
        Ok(match explanation.refusal {
            Some(_) => ExitCode::FAILURE,
            None => ExitCode::SUCCESS,
        })
    }
}

fn text_of(context: &Context, explanation: &ExplanationReport) -> Lines {
    let style = if explanation.refusal.is_some() {
        BAD
    } else {
        GOOD
    };
    let mut lines = Lines::default();
    let verdict = printable(&explanation.verdict);
    lines.push(format_args!("{style}{verdict}{style:#}"));
    for step in &explanation.steps {
        let (style, mark) = if step.pass {
            (GOOD, "✓")
        } else {
            (BAD, "✗")
        };
        let (question, answer) = (printable(&step.question), printable(&step.answer));
        lines.push(format_args!("  {style}{mark}{style:#} {question} {answer}"));
    }
    if let Some(fix) = explanation.fix() {
        let help = context.help(&fix::help(&Fix::from(fix)));
        lines.push(format_args!("{HELP}help:{HELP:#} {}", printable(&help)));
    }
    lines
}

/// The explanation as JSON. A fix that is a command has it as its `command`.
fn with_command(context: &Context, explanation: &ExplanationReport) -> Result<serde_json::Value> {
    let mut value = serde_json::to_value(explanation)?;
    let help = explanation.fix().map(|fix| fix::help(&Fix::from(fix)));
    let at = match explanation.refusal {
        Some(_) => "/refusal/fix",
        None => "/fix",
    };
    if let Some(help @ Help::Command(_)) = help
        && let Some(object) = value.pointer_mut(at)
    {
        object["command"] = context.help(&help).into();
    }
    Ok(value)
}
