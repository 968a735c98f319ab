//! The seam: who knows virtual machines.

use std::fmt;
use std::time::Instant;

use crate::error::Unavailable;
use crate::kind::ManagerKind;
use crate::machine::Machine;

/// Something that knows virtual machines.
pub trait Manager: fmt::Debug + Send + Sync {
    /// Which one it is.
    fn kind(&self) -> ManagerKind;

    /// Lists its virtual machines, those that are off too if it knows them. Blocks until `deadline` at most.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if it is not there, forbids the question, or does not answer.
    fn list(&self, deadline: Instant) -> Result<Vec<Machine>, Unavailable>;

    /// As [`list`](Self::list), but with what was found until it failed. A list that is not whole says nothing
    /// about the virtual machines that are not in it.
    fn list_found(&self, deadline: Instant) -> (Vec<Machine>, Option<Unavailable>) {
        match self.list(deadline) {
            Ok(machines) => (machines, None),
            Err(why) => (Vec::new(), Some(why)),
        }
    }
}
