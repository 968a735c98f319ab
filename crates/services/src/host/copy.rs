//! Copying files to a guest and from it.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use hvsock::Endpoint;
//! use hvsock_services::copy::{Source, Unobserved};
//! use hvsock_services::host::copy::{Copy, Put};
//! use hvsock_services::link::Target;
//!
//! let target = Target::new(Endpoint::from_env(), "web".parse::<hvsock::PartitionRef>()?);
//! let copy = Copy::connect(&target).await?;
//! let sources = [Source::new("/etc/os-release")];
//! // It blocks: in a program with other tasks this goes to `spawn_blocking`.
//! let done = copy.put(&sources, &Put::to("/tmp/"), &mut Unobserved)?;
//! assert_eq!(done.failed, 0);
//! # Ok(())
//! # }
//! ```

use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hvsock::HvStream;
use prost::bytes::Bytes;

use crate::catalog::COPY;
use crate::copy::{
    CopyError, Destination, Line, Observer, PATIENCE, Receiver, Sender, Source, Tally, Trust,
};
use crate::link::{CallError, Target};
use crate::wire::copy as wire;

/// A connection for one copy.
#[derive(Debug)]
pub struct Copy {
    stream: HvStream,
}

/// Where to put what, and how.
#[derive(Clone, Debug)]
pub struct Put {
    /// A path in the guest: a folder that is there, or a new name in one. A relative one begins
    /// at the root.
    pub destination: PathBuf,
    /// It must be a folder that is there.
    pub into: bool,
    /// Folders with what is in them, and symbolic links as such.
    pub recursive: bool,
    /// With permissions, times and, if the agent may, owners.
    pub archive: bool,
    /// Everything is on the disk of the guest before it is said to be done.
    pub sync: bool,
    /// Say first how much it will be.
    pub count: bool,
}

impl Put {
    /// Puts to `destination`, which must be a folder if it ends in `/`.
    pub fn to(destination: impl Into<PathBuf>) -> Self {
        let destination = destination.into();
        Self {
            into: is_folder_by_name(&destination),
            destination,
            recursive: false,
            archive: false,
            sync: false,
            count: false,
        }
    }
}

/// What to get, and how.
#[derive(Clone, Debug)]
pub struct Get {
    /// Paths in the guest; relative ones begin at the root.
    pub sources: Vec<Source>,
    /// A path of this machine: a folder that is there, or a new name in one.
    pub destination: PathBuf,
    /// It must be a folder that is there.
    pub into: bool,
    /// Folders with what is in them, and symbolic links as such.
    pub recursive: bool,
    /// With permissions (but setuid and setgid), times and, if this process may, owners.
    pub archive: bool,
    /// Everything is on the disk before it is said to be done.
    pub sync: bool,
    /// Say first how much it will be.
    pub count: bool,
}

impl Get {
    /// Gets `sources` to `destination`, which must be a folder if it ends in `/` or there are
    /// several.
    pub fn to(sources: Vec<Source>, destination: impl Into<PathBuf>) -> Self {
        let destination = destination.into();
        Self {
            into: sources.len() > 1 || is_folder_by_name(&destination),
            sources,
            destination,
            recursive: false,
            archive: false,
            sync: false,
            count: false,
        }
    }
}

impl Copy {
    /// Connects to the agent of a partition.
    pub async fn connect(target: &Target) -> Result<Self, CallError> {
        let stream = target.stream(&COPY).await?.into_std();
        Ok(Self { stream })
    }

    fn line(self) -> Result<Line<HvStream>, CopyError> {
        let prepared = (|| {
            self.stream.set_nonblocking(false)?;
            self.stream.set_read_timeout(Some(PATIENCE))?;
            self.stream.set_write_timeout(Some(PATIENCE))
        })();
        prepared.map_err(CopyError::Broken)?;
        Ok(Line::new(self.stream))
    }

    /// Copies `sources` of this machine to the guest; blocks until that is done.
    pub fn put(
        self,
        sources: &[Source],
        put: &Put,
        observer: &mut dyn Observer,
    ) -> Result<Tally, CopyError> {
        let mut line = self.line()?;
        let open = wire::open::Way::Put(wire::Put {
            destination: bytes(&put.destination),
            into: put.into || sources.len() > 1,
            archive: put.archive,
            sync: put.sync,
        });
        line.send(&wire::Open { way: Some(open) })?;
        Sender::new(&mut line, observer, put.recursive).run(sources, put.count)
    }

    /// Copies from the guest; blocks until that is done. What the guest sends that was not asked
    /// for ends the copy.
    pub fn get(self, get: &Get, observer: &mut dyn Observer) -> Result<Tally, CopyError> {
        let mut names = HashSet::new();
        for source in &get.sources {
            let name = source.name().map_or(&b""[..], |name| name.as_bytes());
            if !names.insert(name.to_vec()) {
                let path = source.path().to_owned();
                let why = "another source has the same name, and would be replaced";
                let error = io::Error::new(io::ErrorKind::AlreadyExists, why);
                return Err(CopyError::Here { path, error });
            }
        }
        let place = Destination::open(&get.destination, get.into)?;
        let mut line = self.line()?;
        let open = wire::open::Way::Get(wire::Get {
            sources: get
                .sources
                .iter()
                .map(|source| bytes(source.path()))
                .collect(),
            recursive: get.recursive,
            count: get.count,
        });
        line.send(&wire::Open { way: Some(open) })?;
        line.flush()?;
        Receiver::new(&mut line, observer, place)
            .asked(names)
            .archive(get.archive.then_some(Trust::NoSetId))
            .sync(get.sync)
            .run()
    }
}

fn bytes(path: &Path) -> Bytes {
    path.as_os_str().as_bytes().to_vec().into()
}

/// Whether a path says that it is a folder's.
fn is_folder_by_name(path: &Path) -> bool {
    let path = path.as_os_str().as_bytes();
    path.is_empty() || path.ends_with(b"/")
}
