//! Explains whether a connect or listen would succeed, without doing it.

use std::fmt;
use std::io;

use hvsock_fabric::Refusal;

use crate::{ConnectOptions, ListenOptions, ToHvAddr};

/// Whether a connect or listen would succeed, and why.
///
/// Its `Display` output has one line for each step, with question and answer, then the verdict and
/// the [`fix`](Self::fix).
#[doc(alias = "dry run")]
#[doc(alias = "access check")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub(crate) refusal: Option<Refusal>,
    /// A sentence that names the system with the final decision, if that system cannot be queried.
    pub(crate) undecided: Option<String>,
    pub(crate) steps: Vec<ExplanationStep>,
    pub(crate) fix: Option<String>,
}

/// One question on the way to the verdict of an [`Explanation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplanationStep {
    pub(crate) question: String,
    pub(crate) answer: String,
    pub(crate) pass: bool,
}

impl Explanation {
    /// A refusal that came before the broker could explain anything, with its message.
    pub(crate) fn refused(refusal: Refusal, text: &str) -> Self {
        // The message may be the text of the refusal itself; it is shown once.
        let steps = match text == refusal.to_string() {
            true => Vec::new(),
            false => vec![ExplanationStep {
                question: "Does this address resolve?".to_owned(),
                answer: text.to_owned(),
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

    /// Returns why the request would be refused, or `None` if nothing would refuse it.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// Returns true if nothing that can be queried would refuse the request: see
    /// [`undecided`](Self::undecided).
    pub fn would_succeed(&self) -> bool {
        self.refusal.is_none()
    }

    /// Returns a sentence that names the system with the final decision, if nothing refuses the
    /// request but that system cannot be queried.
    ///
    /// This happens on Windows, which reports neither the listeners nor the rules of a guest's host.
    pub fn undecided(&self) -> Option<&str> {
        self.undecided.as_deref()
    }

    /// Returns the steps, in the order in which they were evaluated.
    pub fn steps(&self) -> &[ExplanationStep] {
        &self.steps
    }

    /// Returns the command or other action that would turn a refusal into a success.
    pub fn fix(&self) -> Option<&str> {
        self.fix.as_deref()
    }
}

impl ExplanationStep {
    /// Returns the question.
    pub fn question(&self) -> &str {
        &self.question
    }

    /// Returns the answer and the rule that it follows from.
    pub fn answer(&self) -> &str {
        &self.answer
    }

    /// Returns true if this step permits the request.
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
            Some(fix) => write!(f, "\nhelp: {fix}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ExplanationStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.question, self.answer)
    }
}

/// Explains what [`HvStream::connect`](crate::HvStream::connect) would do with `address`, without
/// connecting.
///
/// Runs the checks of a connect and stops before the connection is made. Blocks up to 5 seconds for
/// the broker. To set options or the endpoint use [`ConnectOptions::explain`].
///
/// # Errors
///
/// As [`ConnectOptions::explain`]. A refusal is not an error here but the explanation's content.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let explanation = hvsock::explain_connect(("parent", "HV Socket Demo"))?;
/// println!("{explanation}");
/// # Ok(())
/// # }
/// ```
#[doc(alias = "dry run")]
pub fn explain_connect(address: impl ToHvAddr) -> io::Result<Explanation> {
    ConnectOptions::new().explain(address)
}

/// Explains what [`HvListener::bind`](crate::HvListener::bind) would do with `address`, without
/// listening.
///
/// Runs the checks of a bind and stops before the listener is made. Blocks up to 5 seconds for the
/// broker. To set options or the endpoint use [`ListenOptions::explain`].
///
/// # Errors
///
/// As [`ListenOptions::explain`]. A refusal is not an error here but the explanation's content.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// let explanation = hvsock::explain_listen(("children", "HV Socket Demo"))?;
/// assert!(explanation.would_succeed(), "{explanation}");
/// # Ok(())
/// # }
/// ```
#[doc(alias = "dry run")]
pub fn explain_listen(address: impl ToHvAddr) -> io::Result<Explanation> {
    ListenOptions::new().explain(address)
}
