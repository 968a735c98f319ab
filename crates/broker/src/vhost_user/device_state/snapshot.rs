//! A state that a VMM is writing, in the document of its device.

use std::fs::File;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Loading, MAX_LEN};
use crate::handover::{Blob, Exports, FdIndex, HandoverError, Imports};
use crate::vhost_user::state_file::{Direction, StateFile};

/// A state that a VMM is writing.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct LoadingState {
    file: Option<FdIndex>,
    state: Blob,
    failure: Option<String>,
}

impl Loading {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
    ) -> Result<LoadingState, HandoverError> {
        let Self {
            file,
            state,
            failure,
        } = self;
        let file = file.as_deref();
        Ok(LoadingState {
            file: file.map(|file| exports.fd(file)).transpose()?,
            state: exports.blob(state)?,
            failure: failure.as_ref().map(ToString::to_string),
        })
    }

    pub(in super::super) fn resume(
        document: LoadingState,
        imports: &mut Imports,
    ) -> Result<Self, HandoverError> {
        let LoadingState {
            file,
            state,
            failure,
        } = document;
        let file = file.map(|file| imports.fd(file)).transpose()?;
        let file = file.map(|file| StateFile::new(File::from(file), Direction::Read));
        let file = file.transpose();
        let file = file.map_err(HandoverError::io("go on with loading a device's state"))?;
        let state = imports.blob(state)?;
        if state.len() > MAX_LEN + 4096 {
            return Err(HandoverError::inconsistent("a device's state is too long"));
        }
        Ok(Self {
            file: file.map(Arc::new),
            state,
            failure: failure.map(io::Error::other),
        })
    }
}
