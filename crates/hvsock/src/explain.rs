//! Asking what would happen, without doing it.

use std::fmt;
use std::io;

use hvsock_endpoint::Refused;
use hvsock_fabric::Refusal;

use crate::{ConnectOptions, ListenOptions, ToHvAddr, error};

/// Whether a connect or listen would succeed, and the reasons, as the broker gives them.
///
/// It displays as the lines that the broker wrote: each question it asked itself with the answer,
/// and where something is wrong the command that would fix it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    refusal: Option<Refusal>,
    text: String,
}

impl Explanation {
    /// The first line is what the refusal carries, the others are for people.
    pub(crate) fn of_wire(explained: &Refused) -> Self {
        let (detail, text) = explained
            .detail
            .split_once('\n')
            .unwrap_or((&explained.detail, ""));
        let refused = Refused {
            detail: detail.to_owned(),
            ..*explained
        };
        let refusal = (explained.code != 0).then(|| error::refusal(&refused));
        Self {
            refusal,
            text: text.to_owned(),
        }
    }

    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self {
            refusal: Some(refusal),
            text: String::new(),
        }
    }

    /// Why it would be turned down; `None` if it would succeed.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// Whether it would succeed.
    pub fn would_succeed(&self) -> bool {
        self.refusal.is_none()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.refusal {
            _ if !self.text.is_empty() => f.write_str(self.text.trim_end()),
            Some(refusal) => refusal.fmt(f),
            None => f.write_str("it would succeed"),
        }
    }
}

/// What would become of a connect to `address`: the broker goes through the same steps and stops
/// before the last.
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
