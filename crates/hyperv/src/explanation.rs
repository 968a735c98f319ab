//! Whether a connect or listen on Windows would succeed, and why.

use std::fmt;

use hvsock_fabric::{ExplanationStep, Refusal};

/// Whether a connect or listen would succeed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HyperVExplanation {
    /// The verdict.
    pub verdict: Result<Outlook, Refusal>,
    /// The checks, in order.
    pub steps: Vec<ExplanationStep>,
    /// The command or step that removes the cause of a refusal, if there is one.
    pub fix: Option<String>,
}

/// The verdict if no known fact prevents the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outlook {
    /// Windows would attempt it. Windows does not reveal whether a listener exists or the address is
    /// free.
    Open,
    /// The host of this virtual machine decides. It cannot be queried from here.
    HostDecides,
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outlook::Open => "no known obstacle; only Windows knows the rest",
            Outlook::HostDecides => "no known obstacle here; the host decides",
        })
    }
}
