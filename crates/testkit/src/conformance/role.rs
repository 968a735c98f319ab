//! What the other end of a connection does, in a process that a case kills.

use std::io;
use std::process::{Command, ExitCode};
use std::thread;

use super::pattern;
use super::stream::{LONGEST_CASE, Stream};

const ROLE: &str = "HVSOCK_TESTKIT_ROLE";
/// The seed of the pattern that a flooding peer writes.
pub(super) const FLOOD: u64 = 11;

/// What the peer process does with its stream until it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Neither reads nor writes.
    Hold,
    /// Writes without end.
    Flood,
    /// Reads without end.
    Drain,
}

impl Role {
    const ALL: [(Role, &str); 3] = [
        (Role::Hold, "hold"),
        (Role::Flood, "flood"),
        (Role::Drain, "drain"),
    ];

    /// The role of this process, if [`Role::command`] started it.
    pub fn of_this_process() -> Option<Role> {
        let name = std::env::var(ROLE).ok()?;
        let role = Self::ALL.iter().find(|(_, known)| *known == name);
        role.map(|(role, _)| *role)
    }

    /// A command that runs this program in the role. The caller and its `main` must agree on how the
    /// process gets its stream.
    ///
    /// # Errors
    /// If the path of this program is unknown.
    pub fn command(self) -> io::Result<Command> {
        let name = Self::ALL
            .iter()
            .find(|(role, _)| *role == self)
            .map(|(_, name)| *name);
        let mut command = Command::new(std::env::current_exe()?);
        command.env(ROLE, name.unwrap_or_default());
        Ok(command)
    }

    /// Runs the role on a stream. Returns when the stream ends, or after [`LONGEST_CASE`].
    pub fn run<S: Stream>(self, stream: &S) -> ExitCode {
        let mut buffer = vec![0; 65_536];
        match self {
            Role::Hold => thread::sleep(LONGEST_CASE),
            Role::Flood => {
                let mut sent = 0;
                while let Ok(count) = stream.write(&pattern::bytes(FLOOD, sent, 65_536)) {
                    sent += count as u64;
                }
            }
            Role::Drain => while let Ok(1..) = stream.read(&mut buffer) {},
        }
        ExitCode::SUCCESS
    }
}
