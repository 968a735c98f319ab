//! `hvsock cp`: copies files and folders to and from a guest.

mod location;
mod progress;

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock_services::copy::{CopyCounters, CopyError, Destination};
use hvsock_services::host::copy::{Copy, Get, Put};

use self::location::{Direction, Location};
use self::progress::Progress;
use crate::context::Context;
use crate::failure::{Failure, OutputGone};
use crate::os::Partition;
use crate::os::linux::guest_services;

/// Copy files and folders to or from a virtual machine or container
#[derive(Debug, Args)]
pub struct Cp {
    /// Copy folders with their contents, and symbolic links as links
    #[arg(long, short)]
    recursive: bool,
    /// Preserve permissions and times and, as root, owners
    #[arg(long, short)]
    preserve: bool,
    /// The same as -r -p
    #[arg(long, short)]
    archive: bool,
    /// Wait until all data is on the disk
    #[arg(long)]
    sync: bool,
    /// The sources and the destination: paths, NAME:PATH in a guest, or - for standard input or output
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "DESTINATION"])]
    paths: Vec<OsString>,
}

impl Cp {
    pub fn run(self, context: &Context) -> Result<()> {
        let (last, first) = self.paths.split_last().expect("clap requires two paths");
        let destination = Location::parse(last)?;
        let sources = first.iter().map(|path| Location::parse(path));
        let sources: Vec<Location> = sources.collect::<Result<_>>()?;
        let several = sources.len() > 1;
        let all = || sources.iter().chain([&destination]);
        let standard = all().any(Location::is_standard);
        if standard && (self.recursive || self.preserve || self.archive) {
            let what = "- is the content of one file: -r, -p and -a do not apply";
            return Err(Failure::usage(what).into());
        }
        let mut progress = Progress::new(context, destination.is_standard());
        let count = progress.is_shown();
        let (recursive, archive) = (
            self.recursive || self.archive,
            self.preserve || self.archive,
        );
        let direction = location::direction(sources, destination)?;
        let to_output = matches!(direction, Direction::Print(..));
        let (connection, result) = match direction {
            Direction::Put(sources, partition, path) => {
                let put = Put {
                    recursive,
                    archive,
                    count,
                    sync: self.sync,
                    ..Put::to(path)
                };
                let copy = self.connect(context, &partition)?;
                let id = copy.connection_id();
                (id, copy.put(&sources, &put, &mut progress))
            }
            Direction::Get(partition, sources, path) => {
                let mut get = Get {
                    recursive,
                    archive,
                    count,
                    sync: self.sync,
                    ..Get::to(sources, path)
                };
                get.into |= several;
                let copy = self.connect(context, &partition)?;
                let id = copy.connection_id();
                (id, copy.get(&get, &mut progress))
            }
            Direction::Print(partition, source) => {
                let get = Get {
                    count,
                    sync: self.sync,
                    ..Get::to(vec![source], "-")
                };
                let output = std::io::stdout().as_fd().try_clone_to_owned();
                let output = output.context("cannot use standard output")?;
                let output = Destination::descriptor(output, "standard output");
                let copy = self.connect(context, &partition)?;
                let id = copy.connection_id();
                (id, copy.get_to(output, &get, &mut progress))
            }
        };
        let said = match &result {
            Ok(counters) => counters.summary(),
            Err(error) => error.to_string(),
        };
        guest_services::state_result(context, connection, &said);
        if to_output
            && let Err(CopyError::Local { error, .. }) = &result
            && error.kind() == ErrorKind::BrokenPipe
        {
            return Err(OutputGone.into());
        }
        finish(result, progress)
    }

    /// Connects to the agent. The audit gets the paths as they were given, so the direction, too.
    fn connect(&self, context: &Context, partition: &Partition) -> Result<Copy> {
        let paths: Vec<&OsStr> = self.paths.iter().map(OsString::as_os_str).collect();
        let target = guest_services::target_for(context, partition, "cp", &paths)?;
        let connected = guest_services::block_on(Copy::connect(&target))?;
        connected.map_err(|error| guest_services::failure(context, error))
    }
}

/// Prints the result of a copy.
fn finish(result: Result<CopyCounters, CopyError>, progress: Progress) -> Result<()> {
    match result {
        Ok(counters) => {
            progress.done(&counters);
            match counters.failed {
                0 => Ok(()),
                1 => Err(Failure::new("one entry was not copied").into()),
                many => Err(Failure::new(format!("{many} entries were not copied")).into()),
            }
        }
        Err(error) => {
            progress.abort();
            let failure = Failure::new(error.to_string());
            Err(match error.is_resumable() {
                true => failure.help("run the same command again to resume the copy"),
                false => failure,
            }
            .into())
        }
    }
}
