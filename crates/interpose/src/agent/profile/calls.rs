//! The calls that the agent must see, by their names. Profiles know no numbers.

use hvsock_sys::seccomp::Rule;

use crate::calls;

/// The name of the call that makes sockets.
pub const SOCKET: &str = "socket";

/// Calls `each` with the name and the rules of every call that has rules.
pub fn for_each<E>(
    mut each: impl FnMut(&'static str, &[Rule<'_>]) -> Result<(), E>,
) -> Result<(), E> {
    for (syscall, name) in calls::NAMES {
        let rules: Vec<_> = calls::RULES
            .iter()
            .filter(|rule| rule.syscall == syscall)
            .copied()
            .collect();
        each(name, &rules)?;
    }
    Ok(())
}
