//! How the processes of a machine share what the broker has a limited amount of.

use serde::{Deserialize, Serialize};

/// A resource of the broker and who uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SharedResource {
    /// What is in use.
    pub used: u64,
    /// What there is.
    pub capacity: u64,
    /// Who uses something, the largest use first: at most 64.
    pub owners: Vec<Share>,
}

/// The use of a resource by one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Share {
    /// The owner: `operators` (root and the broker's user), `user NAME` or `partition NAME`.
    pub owner: String,
    /// What it uses.
    pub used: u64,
    /// What it may use at present: a part of what the others leave.
    pub limit: u64,
}

impl Share {
    /// Whether less than half of the share is free.
    pub fn is_short(&self) -> bool {
        self.used.saturating_mul(2) > self.limit
    }
}
