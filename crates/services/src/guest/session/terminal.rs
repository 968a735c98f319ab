//! A pseudo-terminal: the command has the slave (inner) end, the agent the master (outer) end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Uid, fchown};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{
    InputModes, OptionalActions, SpecialCodeIndex, Winsize, tcgetattr, tcsetattr, tcsetwinsize,
};

/// Both ends.
pub(super) struct Pair {
    pub(super) outer: OwnedFd,
    pub(super) inner: OwnedFd,
}

/// Opens a terminal of this size, owned by `owner` if that is set.
pub(super) fn open(size: Winsize, owner: Option<u32>) -> io::Result<Pair> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let outer = openpt(flags)?;
    unlockpt(&outer)?;
    // By descriptor (TIOCGPTPEER), because something else may be mounted at the path.
    let inner = ioctl_tiocgptpeer(&outer, flags)?;
    tcsetwinsize(&outer, size)?;
    let mut modes = tcgetattr(&inner)?;
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&inner, OptionalActions::Now, &modes)?;
    if let Some(owner) = owner {
        // Otherwise programs could not open their own /dev/tty by name. The group is set by the system.
        fchown(&inner, Some(Uid::from_raw(owner)), None)?;
    }
    Ok(Pair { outer, inner })
}

/// The end-of-file character of the terminal's current settings.
pub(super) fn end_of_file(outer: impl AsFd) -> io::Result<u8> {
    Ok(tcgetattr(outer)?.special_codes[SpecialCodeIndex::VEOF])
}
