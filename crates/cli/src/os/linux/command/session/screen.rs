//! The terminal of this process.

use std::env;
use std::io;

use hvsock_services::host::session::{Size, Terminal};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal to request in the guest: the same type and size as this one.
pub(super) fn terminal() -> Terminal {
    Terminal {
        term: env::var("TERM").unwrap_or_default(),
        size: size(),
    }
}

/// The size of the terminal, or 24 by 80 if it is unknown.
pub(super) fn size() -> Size {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => Size {
            rows: size.ws_row,
            cols: size.ws_col,
        },
        _ => Size { rows: 24, cols: 80 },
    }
}

/// The terminal in raw mode. Dropping it restores the previous mode, also during a panic.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Switches to raw mode.
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
        // The terminal may be gone. Unread input stays for the next reader.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
