//! What all ways of running a program need.

use std::path;
use std::process::Command;

use anyhow::{Context as _, Result};
use hvsock::Endpoint;
use hvsock_interpose::model::OwnCid;

use crate::context::Context;

/// Where programs with a library of hvsock find the endpoint, and the preloaded library.
const ENDPOINT: &str = "HVSOCK_ENDPOINT";

/// What all ways need.
#[derive(Debug)]
pub struct Setting<'a> {
    pub context: &'a Context,
    /// The endpoint of this process's partition.
    pub endpoint: Endpoint,
    /// The context id of that partition.
    pub own: OwnCid,
}

impl Setting<'_> {
    /// Names the endpoint in the environment of the program: what has a library of hvsock in it uses the same broker.
    ///
    /// # Errors
    ///
    /// If the endpoint's path is relative, and there is no working directory.
    pub fn name_endpoint(&self, command: &mut Command) -> Result<()> {
        // Of several paths the environment decides, as it did for this command.
        if let [path] = self.endpoint.paths() {
            let path = path::absolute(path).context("cannot find the endpoint's path")?;
            command.env(ENDPOINT, path);
        }
        Ok(())
    }
}
