//! What the command line or API of a VMM yields.

use crate::machine::{Reach, State};

/// What a VMM's process says about its virtual machine.
#[derive(Debug, Default)]
pub struct Description {
    /// Its name.
    pub name: Option<String>,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Its state, if the VMM was asked.
    pub state: Option<State>,
    /// How it can be reached.
    pub reach: Vec<Reach>,
}
