//! The terminal that this command has.

use std::env;
use std::io;

use hvsock_services::host::session::{Size, Terminal};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// What is asked for in the guest, to be like the one here.
pub(super) fn terminal() -> Terminal {
    Terminal {
        term: env::var("TERM").unwrap_or_default(),
        size: size(),
    }
}

/// Its size; what a terminal has always had, if it does not say.
pub(super) fn size() -> Size {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => Size {
            rows: size.ws_row,
            cols: size.ws_col,
        },
        _ => Size { rows: 24, cols: 80 },
    }
}

/// The terminal while it passes on everything that is typed; dropped, also by a panic, it is what
/// it was.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // It may be gone. What was typed meanwhile stays for whoever reads next.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
