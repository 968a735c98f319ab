//! How the program's socket calls reach the broker.

use std::ffi::OsStr;
use std::path::PathBuf;

use anstyle::Style;
use anyhow::Result;

use super::setting::Setting;
use super::{preload, seccomp};
use crate::failure::{self, Failure};

/// A way that works here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A seccomp filter makes the calls wait, and this process answers them. Serves every program.
    Seccomp,
    /// This library answers the calls within the program, which must be linked dynamically.
    Preload(PathBuf),
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The best that works here.
    Best,
    /// By seccomp or not at all.
    Seccomp,
    /// By the preloaded library or not at all.
    Preload,
}

impl Choice {
    /// Tries whether a way works here, for this program.
    ///
    /// # Errors
    ///
    /// What stands in the way, and what helps.
    pub fn resolve(self, setting: &Setting<'_>, program: &OsStr) -> Result<Way> {
        preload::check_width(program)?;
        if self == Self::Preload {
            let library = preload::check(program).map_err(preload::Obstacle::into_failure)?;
            return Ok(Way::Preload(library));
        }
        let Err(obstacle) = seccomp::check(setting) else {
            return Ok(Way::Seccomp);
        };
        let refused = format!("cannot serve the program's sockets by seccomp: {obstacle}");
        if self == Self::Seccomp {
            return Err(Failure::new(refused).help(obstacle.help()).into());
        }
        match preload::check(program) {
            Ok(library) => {
                if !setting.context.quiet {
                    let text = format!("{obstacle}; taking the preloaded library instead");
                    failure::print(Style::new().bold(), "note", &text);
                }
                Ok(Way::Preload(library))
            }
            Err(other) => {
                let text = format!("{refused}; nor by the preloaded library: {other}");
                Err(Failure::new(text).help(obstacle.help()).into())
            }
        }
    }
}
