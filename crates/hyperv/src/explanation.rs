//! What would become of a connect or listen on Windows, and why.

use std::fmt;

use hvsock_fabric::{Refusal, Step};

/// What would become of a connect or listen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What would become of it.
    pub verdict: Result<Outlook, Refusal>,
    /// The questions, in their order.
    pub steps: Vec<Step>,
    /// The command, or another step, that would turn a refusal into a success.
    pub fix: Option<String>,
}

/// How it looks where nothing that this machine says stands against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outlook {
    /// Windows takes it there, and who listens, or whether the address is free, it alone knows.
    Open,
    /// The host of this virtual machine decides, and cannot be asked from here.
    HostDecides,
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outlook::Open => "nothing stands against it; what is left, Windows alone knows",
            Outlook::HostDecides => "nothing here stands against it; the host decides",
        })
    }
}
