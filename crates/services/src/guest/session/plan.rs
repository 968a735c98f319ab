//! A validated request for a command.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt as _;

use rustix::termios::Winsize;

use crate::wire::session as wire;

/// A command.
#[derive(Debug)]
pub(super) struct Plan {
    /// The program and its arguments; empty means the user's shell.
    pub(super) argv: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    /// `None` means the user's home.
    pub(super) folder: Option<CString>,
    /// `None` means the agent's user.
    pub(super) user: Option<String>,
    pub(super) terminal: Option<Terminal>,
    pub(super) stdin: bool,
}

/// The parent's terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) term: OsString,
    pub(super) size: Winsize,
}

impl Plan {
    /// Validates a request. The error is a text for the parent.
    pub(super) fn new(start: wire::Start) -> Result<Self, String> {
        let argv: Vec<Vec<u8>> = start.argv.into_iter().map(Into::into).collect();
        if argv.iter().any(|word| word.contains(&0)) {
            return Err("an argument contains a NUL".to_owned());
        }
        if argv.first().is_some_and(Vec::is_empty) {
            return Err("the program's name is empty".to_owned());
        }
        let mut env = Vec::with_capacity(start.env.len());
        for variable in start.env {
            let (name, value) = (variable.name, variable.value);
            if name.is_empty() || name.contains(&b'=') || name.contains(&0) || value.contains(&0) {
                return Err("a variable has an empty name, a `=` in its name, or a NUL".to_owned());
            }
            let name = OsString::from_vec(name.into());
            env.push((name, OsString::from_vec(value.into())));
        }
        let folder = match &start.dir[..] {
            [] => None,
            dir => Some(CString::new(dir).map_err(|_| "the directory contains a NUL")?),
        };
        let user = (!start.user.is_empty()).then_some(start.user);
        let terminal = start.terminal.map(Terminal::new).transpose()?;
        Ok(Self {
            argv: argv.into_iter().map(OsString::from_vec).collect(),
            env,
            folder,
            user,
            stdin: start.stdin || terminal.is_some(),
            terminal,
        })
    }
}

impl Terminal {
    fn new(terminal: wire::Terminal) -> Result<Self, String> {
        if terminal.term.contains('\0') {
            return Err("the terminal's type contains a NUL".to_owned());
        }
        Ok(Self {
            term: terminal.term.into(),
            size: size(terminal.size.unwrap_or_default())?,
        })
    }
}

/// Validates a terminal's size.
pub(super) fn size(size: wire::Size) -> Result<Winsize, String> {
    let cells = |count: u32| u16::try_from(count).map_err(|_| "the terminal's size exceeds 65535");
    Ok(Winsize {
        ws_row: cells(size.rows)?,
        ws_col: cells(size.cols)?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &'static str, value: &'static str) -> wire::Variable {
        wire::Variable {
            name: name.into(),
            value: value.into(),
        }
    }

    #[test]
    fn invalid_requests_are_rejected() {
        let of = |start| Plan::new(start).map(drop);
        assert!(of(wire::Start::default()).is_ok());
        let argv = |words: &[&'static str]| wire::Start {
            argv: words.iter().map(|word| (*word).into()).collect(),
            ..wire::Start::default()
        };
        assert!(of(argv(&["a", ""])).is_ok());
        assert!(of(argv(&[""])).is_err());
        assert!(of(argv(&["a", "b\0c"])).is_err());
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
            let env = vec![variable(name, value)];
            let start = wire::Start {
                env,
                ..wire::Start::default()
            };
            assert!(of(start).is_err(), "{name:?}={value:?}");
        }
        let dir = "/a\0b".into();
        assert!(
            of(wire::Start {
                dir,
                ..wire::Start::default()
            })
            .is_err()
        );
        let terminal = |term: &str, rows| wire::Start {
            terminal: Some(wire::Terminal {
                term: term.to_owned(),
                size: Some(wire::Size { rows, cols: 80 }),
            }),
            ..wire::Start::default()
        };
        assert!(of(terminal("xterm", 65_535)).is_ok());
        assert!(of(terminal("xterm", 65_536)).is_err());
        assert!(of(terminal("x\0", 24)).is_err());
    }

    #[test]
    fn a_terminal_implies_standard_input() {
        let terminal = Some(wire::Terminal::default());
        let start = wire::Start {
            terminal,
            ..wire::Start::default()
        };
        assert!(Plan::new(start).unwrap().stdin);
        assert!(!Plan::new(wire::Start::default()).unwrap().stdin);
    }
}
