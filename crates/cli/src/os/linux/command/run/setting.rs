//! What all ways of running a program need.

use hvsock::Endpoint;
use hvsock_interpose::model::OwnCid;

use crate::context::Context;

/// What all ways need.
#[derive(Debug)]
pub struct Setting<'a> {
    pub context: &'a Context,
    /// The endpoint of this process's partition.
    pub endpoint: Endpoint,
    /// The context id of that partition.
    pub own: OwnCid,
}
