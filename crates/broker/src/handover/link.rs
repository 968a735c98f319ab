//! The state of a link, whose type only the link knows.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::HandoverError;

/// The state of a VM's link: the kind of the link, and a value whose type only that kind knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkDocument {
    kind: String,
    state: serde_json::Value,
}

impl LinkDocument {
    /// The state of a link of this kind. `state` starts with its version.
    ///
    /// # Errors
    ///
    /// If the state has no form in JSON.
    pub fn new(kind: &str, state: &impl Serialize) -> Result<Self, HandoverError> {
        let state = serde_json::to_value(state).map_err(|error| HandoverError::Damaged {
            what: error.to_string(),
        })?;
        Ok(Self {
            kind: kind.to_owned(),
            state,
        })
    }

    /// The kind of the link.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The state, for a link of this kind.
    ///
    /// # Errors
    ///
    /// If it is the state of another kind of link, or damaged.
    pub fn read<T: DeserializeOwned>(self, kind: &str) -> Result<T, HandoverError> {
        let damaged = |what| HandoverError::Damaged { what };
        if self.kind != kind {
            let found = self.kind.escape_debug();
            return Err(damaged(format!(
                "it is of a link of the kind {found}, not {kind}"
            )));
        }
        serde_json::from_value(self.state).map_err(|error| damaged(error.to_string()))
    }
}
