//! Copies files to a guest and from it.
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
//! // `put` blocks: in an async program call it in `spawn_blocking`.
//! let done = copy.put(&sources, &Put::to("/tmp/"), &mut Unobserved)?;
//! assert_eq!(done.failed, 0);
//! # Ok(())
//! # }
//! ```

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hvsock::HvStream;
use prost::bytes::Bytes;

use super::requester::Requester;
use crate::catalog::COPY;
use crate::copy::{
    CopyCounters, CopyError, Destination, IDLE_TIMEOUT, MessageStream, Observer, Receiver, Sender,
    Source, Trust,
};
use crate::link::{CallError, Target};
use crate::wire::copy as wire;

/// A connection for one copy.
#[derive(Debug)]
pub struct Copy {
    stream: HvStream,
}

/// The parameters of a copy to the guest.
#[derive(Clone, Debug)]
pub struct Put {
    /// A path in the guest: an existing folder, or a new name in one. A relative path starts at the root.
    pub destination: PathBuf,
    /// The destination must be an existing folder.
    pub into: bool,
    /// Copy folders with their contents, and symbolic links as links.
    pub recursive: bool,
    /// Preserve permissions, times and, if the agent may, owners.
    pub archive: bool,
    /// Write everything to the guest's disk before the copy counts as done.
    pub sync: bool,
    /// Count files and bytes first, for the progress display.
    pub count: bool,
}

impl Put {
    /// A copy to `destination`, which must be a folder if it ends in `/`.
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

/// The parameters of a copy from the guest.
#[derive(Clone, Debug)]
pub struct Get {
    /// Paths in the guest; relative ones start at the root.
    pub sources: Vec<Source>,
    /// A path on this machine: an existing folder, or a new name in one.
    pub destination: PathBuf,
    /// The destination must be an existing folder.
    pub into: bool,
    /// Copy folders with their contents, and symbolic links as links.
    pub recursive: bool,
    /// Preserve permissions (except setuid and setgid), times and, if this process may, owners.
    pub archive: bool,
    /// Write everything to the disk before the copy counts as done.
    pub sync: bool,
    /// Count files and bytes first, for the progress display.
    pub count: bool,
}

impl Get {
    /// A copy of `sources` to `destination`, which must be a folder if it ends in `/` or if there
    /// are several sources.
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
    ///
    /// # Errors
    ///
    /// [`CallError`] if the guest's copy service cannot be reached.
    pub async fn connect(target: &Target) -> Result<Self, CallError> {
        let stream = target.stream(&COPY).await?.into_std();
        Ok(Self { stream })
    }

    /// The id of its connection in the broker's list.
    pub fn connection_id(&self) -> u64 {
        self.stream.connection_id()
    }

    fn messages(self) -> Result<MessageStream<HvStream>, CopyError> {
        let prepared = (|| {
            self.stream.set_nonblocking(false)?;
            self.stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
            self.stream.set_write_timeout(Some(IDLE_TIMEOUT))
        })();
        prepared.map_err(CopyError::Broken)?;
        Ok(MessageStream::new(self.stream))
    }

    /// Copies `sources` of this machine to the guest. Blocks until the copy is done.
    ///
    /// # Errors
    ///
    /// [`CopyError`] if two sources have the same name or the copy is aborted. An entry that fails
    /// alone is counted in the result and reported to `observer`.
    pub fn put(
        self,
        sources: &[Source],
        put: &Put,
        observer: &mut dyn Observer,
    ) -> Result<CopyCounters, CopyError> {
        check_names(sources)?;
        let requester = Some(Requester::of(self.connection_id()).into());
        let mut messages = self.messages()?;
        let open = wire::open::Way::Put(wire::Put {
            destination: bytes(&put.destination),
            into: put.into || sources.len() > 1,
            archive: put.archive,
            sync: put.sync,
        });
        messages.send(&wire::Open {
            way: Some(open),
            requester,
        })?;
        Sender::new(&mut messages, observer, put.recursive).run(sources, put.count)
    }

    /// Copies from the guest. Blocks until the copy is done. A guest that sends entries that were
    /// not requested aborts the copy.
    ///
    /// # Errors
    ///
    /// [`CopyError`] if two sources have the same name, the destination cannot be opened, or the
    /// copy is aborted. An entry that fails alone is counted in the result and reported to `observer`.
    pub fn get(self, get: &Get, observer: &mut dyn Observer) -> Result<CopyCounters, CopyError> {
        let destination = Destination::open(&get.destination, get.into)?;
        self.get_to(destination, get, observer)
    }

    /// As [`Copy::get`], to an opened destination.
    ///
    /// # Errors
    ///
    /// As of [`Copy::get`].
    pub fn get_to(
        self,
        destination: Destination,
        get: &Get,
        observer: &mut dyn Observer,
    ) -> Result<CopyCounters, CopyError> {
        check_names(&get.sources)?;
        let requester = Some(Requester::of(self.connection_id()).into());
        let mut messages = self.messages()?;
        let open = wire::open::Way::Get(wire::Get {
            sources: get
                .sources
                .iter()
                .map(|source| bytes(source.path()))
                .collect(),
            recursive: get.recursive,
            count: get.count,
        });
        messages.send(&wire::Open {
            way: Some(open),
            requester,
        })?;
        messages.flush()?;
        Receiver::new(&mut messages, observer, destination)
            .requested(&get.sources, get.recursive)
            .archive(get.archive.then_some(Trust::NoSetId))
            .sync(get.sync)
            .run()
    }
}

/// Checks that no source would replace another one at the destination.
fn check_names(sources: &[Source]) -> Result<(), CopyError> {
    let Some(source) = Source::find_clash(sources) else {
        return Ok(());
    };
    let path = source.path().to_owned();
    let why = "another source has the same name and would replace it";
    let error = io::Error::new(io::ErrorKind::AlreadyExists, why);
    Err(CopyError::Local { path, error })
}

fn bytes(path: &Path) -> Bytes {
    path.as_os_str().as_bytes().to_vec().into()
}

/// Whether the path names a folder by its form: empty, or with a trailing `/`.
fn is_folder_by_name(path: &Path) -> bool {
    let path = path.as_os_str().as_bytes();
    path.is_empty() || path.ends_with(b"/")
}
