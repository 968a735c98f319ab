//! The sources and destinations of `hvsock cp`: `PATH` here, `NAME:PATH` in a guest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use anyhow::Result;
use hvsock_services::copy::Source;

use crate::failure::Failure;
use crate::os::Partition;

/// A path here or in a guest.
#[derive(Clone, Debug)]
pub struct Location {
    /// The partition and its name as given. `None` for a path here.
    partition: Option<(String, Partition)>,
    path: PathBuf,
}

/// The direction of a copy.
#[derive(Debug)]
pub enum Direction {
    /// From here to a guest.
    Put(Vec<Source>, Partition, PathBuf),
    /// From a guest to here.
    Get(Partition, Vec<Source>, PathBuf),
}

impl Location {
    /// Parses a location. A colon before any slash ends the name of a partition.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        let at = bytes.iter().position(|byte| matches!(byte, b':' | b'/'));
        let Some(at) = at.filter(|at| bytes[*at] == b':') else {
            let partition = None;
            let path = PathBuf::from(text);
            return Ok(Self { partition, path });
        };
        let (name, path) = (&bytes[..at], &bytes[at + 1..]);
        let name = OsStr::from_bytes(name).to_string_lossy().into_owned();
        let partition: Partition = name.parse().map_err(|error| {
            Failure::usage(format!(
                "{name:?} is not the name of a virtual machine or container: {error}"
            ))
            .help(format!("write ./{} for a local file", text.display()))
        })?;
        Ok(Self {
            partition: Some((name, partition)),
            path: PathBuf::from(OsStr::from_bytes(path)),
        })
    }
}

/// The direction of a copy of `sources` to `destination`.
///
/// # Errors
///
/// Fails unless exactly one side is in a guest and all sources are on the same side.
pub fn direction(sources: Vec<Location>, destination: Location) -> Result<Direction> {
    let mut all = sources.iter().map(|source| source.partition.as_ref());
    let from = all.next().flatten().cloned();
    let same = |one: Option<&(String, Partition)>| {
        one.map(|(name, _)| name) == from.as_ref().map(|(name, _)| name)
    };
    if !all.all(same) {
        return Err(
            Failure::usage("all sources must be on this machine or in the same guest").into(),
        );
    }
    let sources = sources.into_iter().map(|source| Source::new(source.path));
    match (from, destination.partition) {
        (None, Some((_, to))) => Ok(Direction::Put(sources.collect(), to, destination.path)),
        (Some((_, from)), None) => Ok(Direction::Get(from, sources.collect(), destination.path)),
        (None, None) => Err(
            Failure::usage("neither side is in a guest: write NAME:PATH for one")
                .help("hvsock status lists their names")
                .into(),
        ),
        (Some(_), Some(_)) => {
            Err(Failure::usage("both sides are in guests: copy to this machine first").into())
        }
    }
}
