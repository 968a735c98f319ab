//! Why a manager could not be asked.

use std::io;
use std::path::{Path, PathBuf};

use hvsock_text::printable;

/// Why a manager did not list its virtual machines.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// There is none on this machine: it has no socket.
    #[error("nothing listens at {}", .path.display())]
    Absent {
        /// The socket that it would have.
        path: PathBuf,
    },
    /// This user may not ask it.
    #[error("permission to use {} is denied", .path.display())]
    Forbidden {
        /// Its socket.
        path: PathBuf,
    },
    /// No answer within the time limit.
    #[error("no answer at {} within the time limit", .path.display())]
    Silent {
        /// Its socket.
        path: PathBuf,
    },
    /// The answer is not one of its protocol, or is too long.
    #[error("{} sent an invalid answer: {why}", .path.display())]
    Invalid {
        /// Its socket.
        path: PathBuf,
        /// What is invalid, without text of the answer.
        why: &'static str,
    },
    /// Some users have more, or slower, processes than are looked at, so that not all are listed.
    #[error("{}: not all processes are listed, those of the {} are too many or too slow", .path.display(), users(.uids))]
    Partial {
        /// The folder of the processes.
        path: PathBuf,
        /// The users whose processes are not all listed, in ascending order.
        uids: Vec<u32>,
    },
    /// It refused the question.
    #[error("{} refused: {}", .path.display(), printable(.why))]
    Refused {
        /// Its socket.
        path: PathBuf,
        /// Its words. Untrusted text.
        why: String,
    },
    /// A system call failed.
    #[error("cannot ask {}: {error}", .path.display())]
    Io {
        /// Its socket or file.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

impl Unavailable {
    /// The error for a system call on the socket or file at `path`.
    pub fn io(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::Absent { path },
            io::ErrorKind::PermissionDenied => Self::Forbidden { path },
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent { path },
            _ => Self::Io { path, error },
        }
    }

    /// Whether there is no such manager on this machine, which is no fault.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }
}

/// Some users, the first few by their ids.
fn users(uids: &[u32]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = uids.iter().take(SHOWN).map(u32::to_string).collect();
    let word = if uids.len() == 1 { "user" } else { "users" };
    let more = match uids.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{word} {}{more}", shown.join(", "))
}
