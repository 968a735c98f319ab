//! Asking what would happen, without doing it.

use std::fmt;
use std::io;

use hvsock_fabric::Refusal;

use crate::{ConnectOptions, ListenOptions, ToHvAddr};

/// Whether a connect or listen would succeed, and why, as the broker tells the one who asks.
///
/// It displays as lines: each question that the broker asked itself, with the answer, and the
/// command that would make a refusal a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub(crate) refusal: Option<Refusal>,
    /// Who decides, where nobody who was asked knows.
    pub(crate) undecided: Option<String>,
    pub(crate) steps: Vec<Step>,
    pub(crate) fix: Option<String>,
}

/// One question on the way to a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub(crate) question: String,
    pub(crate) answer: String,
    pub(crate) pass: bool,
}

impl Explanation {
    /// A refusal that came before there was anything to explain, and what was said of it.
    pub(crate) fn refused(refusal: Refusal, said: &str) -> Self {
        // Where that is the refusal's own sentence it is enough once.
        let steps = match said == refusal.to_string() {
            true => Vec::new(),
            false => vec![Step {
                question: "Where does this address lead?".to_owned(),
                answer: said.to_owned(),
                pass: false,
            }],
        };
        Self {
            refusal: Some(refusal),
            undecided: None,
            steps,
            fix: None,
        }
    }

    /// Why it would be turned down; `None` if nothing stands against it.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// Whether it would succeed, as far as anybody who was asked knows: see
    /// [`undecided`](Self::undecided).
    pub fn would_succeed(&self) -> bool {
        self.refusal.is_none()
    }

    /// Who decides in the end, as a sentence, where nothing stands against it and no one who can be
    /// asked knows all: Windows tells nobody who listens, nor a guest what its host allows.
    pub fn undecided(&self) -> Option<&str> {
        self.undecided.as_deref()
    }

    /// The questions, in the order in which the broker asked them.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The command, or another step, that would turn a refusal into a success.
    pub fn fix(&self) -> Option<&str> {
        self.fix.as_deref()
    }
}

impl Step {
    /// What was asked.
    pub fn question(&self) -> &str {
        &self.question
    }

    /// What the answer was, and which rule gave it.
    pub fn answer(&self) -> &str {
        &self.answer
    }

    /// Whether the request could go on.
    pub fn pass(&self) -> bool {
        self.pass
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        match (&self.refusal, &self.undecided) {
            (Some(refusal), _) => write!(f, "refused: {refusal}")?,
            (None, Some(undecided)) => f.write_str(undecided)?,
            (None, None) => f.write_str("it would succeed")?,
        }
        match &self.fix {
            Some(fix) => write!(f, "\nto change that: {fix}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.question, self.answer)
    }
}

/// What would become of a connect to `address`: the broker goes through the same questions and
/// stops before it connects.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let explanation = hvsock::explain_connect(("parent", "HV Socket Demo"))?;
/// println!("{explanation}");
/// # Ok(())
/// # }
/// ```
pub fn explain_connect(address: impl ToHvAddr) -> io::Result<Explanation> {
    ConnectOptions::new().explain(address)
}

/// What would become of a listen at `address`, likewise.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let explanation = hvsock::explain_listen(("children", "HV Socket Demo"))?;
/// assert!(explanation.would_succeed(), "{explanation}");
/// # Ok(())
/// # }
/// ```
pub fn explain_listen(address: impl ToHvAddr) -> io::Result<Explanation> {
    ListenOptions::new().explain(address)
}
