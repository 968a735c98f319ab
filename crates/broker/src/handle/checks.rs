//! What the broker's surroundings lack, as problems.

use std::io;

use hvsock_fabric::Fix;

use super::Handle;
use crate::folders;
use crate::model::ProblemKind;

/// Below this number of descriptors a broker serves a few hundred connections only.
const FEW_DESCRIPTORS: u64 = 4096;

/// The most descriptors that one connection needs.
const PER_CONNECTION: u64 = 5;

impl Handle {
    /// Raises a problem if this process may open only few descriptors. `limit` is what raising its
    /// limit has led to.
    pub(crate) fn check_descriptors(&self, limit: io::Result<u64>) {
        let text = match limit {
            Err(error) => {
                format!("cannot raise the limit of open descriptors (RLIMIT_NOFILE): {error}")
            }
            Ok(limit) if limit < FEW_DESCRIPTORS => format!(
                "the broker may open {limit} files at most (RLIMIT_NOFILE), which is enough for about \
                 {} connections",
                limit / PER_CONNECTION
            ),
            Ok(_) => return,
        };
        let (kind, fix) = (ProblemKind::Descriptors, Some(Fix::RaiseDescriptorLimit));
        self.post(move |core| core.raise(kind, "limit", text, fix));
    }

    /// Raises a problem if other users cannot enter the folder of the machine's broker, and clears it
    /// if they can.
    pub(crate) fn check_run_folder(&self) {
        let dirs = &self.about.dirs;
        let object = dirs.run.display().to_string();
        let kind = ProblemKind::FolderMode;
        match folders::closed_to_others(dirs) {
            Some(mode) => {
                let text = format!(
                    "only the broker's user can reach its sockets: {object} has the mode {mode:04o}"
                );
                let path = object.clone();
                let fix = Some(Fix::OpenFolder { path });
                self.post(move |core| core.raise(kind, object, text, fix));
            }
            None => self.post(move |core| core.clear(kind, &object)),
        }
    }
}
