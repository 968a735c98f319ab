//! The sources and destinations of `hvsock cp`: `PATH` here, `NAME:PATH` in a guest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use anyhow::Result;
use hvsock_address::PartitionName;
use hvsock_services::copy::Source;

use crate::failure::Failure;
use crate::os::Partition;

/// A path here or in a guest, or standard input or output.
#[derive(Clone, Debug)]
pub struct Location {
    /// The partition and its name as given. `None` for a path here.
    partition: Option<(String, Partition)>,
    path: PathBuf,
    /// It is `-`.
    is_standard: bool,
}

/// The direction of a copy.
#[derive(Debug)]
pub enum Direction {
    /// From here to a guest.
    Put(Vec<Source>, Partition, PathBuf),
    /// From a guest to here.
    Get(Partition, Vec<Source>, PathBuf),
    /// From a guest to standard output.
    Print(Partition, Source),
}

impl Location {
    /// Parses a location. A colon before any slash ends the name of a partition, and so does one after
    /// the name of a container in a virtual machine, such as `web/box`.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b':');
        let Some(at) = at.filter(|at| is_partition(&bytes[..*at])) else {
            let partition = None;
            return Ok(Self {
                partition,
                path: PathBuf::from(text),
                is_standard: bytes == b"-",
            });
        };
        let (name, path) = (&bytes[..at], &bytes[at + 1..]);
        let name = OsStr::from_bytes(name).to_string_lossy().into_owned();
        let partition: Partition = name.parse().map_err(|error| {
            Failure::usage(format!(
                "{name:?} is not the name of a virtual machine or container: {error}"
            ))
            .help(format!("write ./{} for a local file", text.display()))
        })?;
        if path == b"-" {
            let what = "- is standard input or output of this command, and a guest has neither";
            return Err(Failure::usage(what)
                .help(format!("write {name}:/- for a file of this name"))
                .into());
        }
        Ok(Self {
            partition: Some((name, partition)),
            path: PathBuf::from(OsStr::from_bytes(path)),
            is_standard: false,
        })
    }

    /// Whether it is standard input or output.
    pub fn is_standard(&self) -> bool {
        self.is_standard
    }

    fn into_source(self) -> Source {
        match self.is_standard {
            true => Source::standard_input(),
            false => Source::new(self.path),
        }
    }
}

/// Whether what precedes a colon names a partition, and not a folder here.
fn is_partition(text: &[u8]) -> bool {
    let nested = || std::str::from_utf8(text).is_ok_and(|text| PartitionName::new(text).is_ok());
    !text.contains(&b'/') || nested()
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
    let standard = destination.is_standard || sources.iter().any(Location::is_standard);
    if standard && sources.len() > 1 {
        return Err(Failure::usage("- takes or gives the content of one file only").into());
    }
    let mut sources = sources.into_iter().map(Location::into_source);
    match (from, destination.partition) {
        (None, Some((_, to))) => Ok(Direction::Put(sources.collect(), to, destination.path)),
        (Some((_, from)), None) if destination.is_standard => {
            let source = sources.next().expect("clap requires a source");
            Ok(Direction::Print(from, source))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(Option<String>, String)> {
        let parsed = Location::parse(OsStr::new(text)).ok()?;
        let name = parsed.partition.map(|(name, _)| name);
        Some((name, parsed.path.to_string_lossy().into_owned()))
    }

    #[test]
    fn a_colon_ends_the_name_of_a_partition_or_of_a_container_in_a_vm() {
        let guest = |name: &str, path: &str| Some((Some(name.to_owned()), path.to_owned()));
        let here = |path: &str| Some((None, path.to_owned()));
        for (text, want) in [
            ("web:/etc/hosts", guest("web", "/etc/hosts")),
            ("web/box:/etc/hosts", guest("web/box", "/etc/hosts")),
            ("Web.1/box-2:a/b:c", guest("Web.1/box-2", "a/b:c")),
            ("web/box:", guest("web/box", "")),
            ("web/box", here("web/box")),
            ("./web/box:x", here("./web/box:x")),
            ("/web/box:x", here("/web/box:x")),
            ("a/b/c:x", here("a/b/c:x")),
            ("../box:x", here("../box:x")),
            ("a/.b:x", here("a/.b:x")),
            ("a/b c:x", here("a/b c:x")),
            ("-", here("-")),
            ("web/box:-", None),
            ("a b:x", None),
            (":x", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}
