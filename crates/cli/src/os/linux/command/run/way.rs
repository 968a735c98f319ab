//! How the program's socket calls reach the broker.

use anyhow::Result;

use super::seccomp;
use super::setting::Setting;
use crate::failure::Failure;

/// A way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A seccomp filter makes the calls wait, and this process answers them. Serves every program.
    Seccomp,
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The best that works here.
    Best,
    /// This one or none.
    Only(Way),
}

impl Choice {
    /// Tries whether a way works here.
    ///
    /// # Errors
    ///
    /// What stands in the way, and what helps.
    pub fn resolve(self, setting: &Setting<'_>) -> Result<Way> {
        match self {
            Self::Best | Self::Only(Way::Seccomp) => match seccomp::check(setting) {
                Ok(()) => Ok(Way::Seccomp),
                Err(obstacle) => {
                    let text = format!("cannot serve the program's sockets: {obstacle}");
                    Err(Failure::new(text).help(obstacle.help()).into())
                }
            },
        }
    }
}
