//! The result of the checks of a connect.

use crate::tree::Relation;
use crate::{Destination, PartitionKey};

/// The destination of an allowed connect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) target: PartitionKey,
    pub(crate) relation: Relation,
    pub(crate) destination: Destination,
    /// The partition whose registry the connection depends on; `None` inside a container.
    pub(crate) registry: Option<PartitionKey>,
    /// The registry wants the processes to have one socket pair.
    pub(crate) direct: bool,
}
