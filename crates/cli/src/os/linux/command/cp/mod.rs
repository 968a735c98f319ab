//! `hvsock cp`: files and trees to a guest and from it.

mod place;
mod progress;

use std::ffi::OsString;

use anyhow::Result;
use clap::Args;
use hvsock_services::copy::{CopyError, Tally};
use hvsock_services::host::copy::{Copy, Get, Put};

use self::place::Place;
use self::progress::Progress;
use crate::context::Context;
use crate::failure::Failure;
use crate::os::Partition;
use crate::os::linux::guest_services;

/// Copy files and folders to a virtual machine or container, and from it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hvsock cp app.conf web:/etc/                    into a folder that is there
  hvsock cp app.conf web:/etc/app.conf.new        under a new name
  hvsock cp -r site web:/var/www                  a folder with what is in it
  hvsock cp -r web:/var/log/. logs/               what is in a folder, without the folder itself
  hvsock cp -a web:/home/alice /backup            with times, permissions and owners
  hvsock cp disk.img web:/images/                 again after a break: goes on where it stopped

A place in a guest is NAME:PATH, where a relative path begins at the root. Write ./a:b for a file
here whose name has a colon. A file gets its name once all of it has come and its checksum is
right; until then it lies beside it as .NAME.hvsock.part. Holes stay holes. Devices, sockets and
pipes are not copied.")]
pub struct Cp {
    /// Copy folders with what is in them, and symbolic links as such
    #[arg(long, short)]
    recursive: bool,
    /// Give the copies the permissions, times and, for root, owners of what they are copied from
    #[arg(long, short)]
    preserve: bool,
    /// Both of these
    #[arg(long, short)]
    archive: bool,
    /// Do not end before all of it is on the disk
    #[arg(long)]
    sync: bool,
    /// What to copy, and last where to: paths, or NAME:PATH in a guest
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "DESTINATION"])]
    paths: Vec<OsString>,
}

impl Cp {
    pub fn run(self, context: &Context) -> Result<()> {
        let (last, first) = self.paths.split_last().expect("clap wants two");
        let destination = Place::parse(last)?;
        let sources = first.iter().map(|path| Place::parse(path));
        let sources: Vec<Place> = sources.collect::<Result<_>>()?;
        let several = sources.len() > 1;
        let mut progress = Progress::new(context);
        let count = progress.is_shown();
        let (recursive, archive) = (
            self.recursive || self.archive,
            self.preserve || self.archive,
        );
        let ended = match place::direction(sources, destination)? {
            place::Direction::Put(sources, partition, path) => {
                let put = Put {
                    recursive,
                    archive,
                    count,
                    sync: self.sync,
                    ..Put::to(path)
                };
                let copy = connect(context, &partition)?;
                copy.put(&sources, &put, &mut progress)
            }
            place::Direction::Get(partition, sources, path) => {
                let mut get = Get {
                    recursive,
                    archive,
                    count,
                    sync: self.sync,
                    ..Get::to(sources, path)
                };
                get.into |= several;
                let copy = connect(context, &partition)?;
                copy.get(&get, &mut progress)
            }
        };
        end(ended, progress)
    }
}

fn connect(context: &Context, partition: &Partition) -> Result<Copy> {
    let target = guest_services::target(context, partition)?;
    let connected = guest_services::block_on(Copy::connect(&target))?;
    connected.map_err(|error| guest_services::failure(context, error))
}

/// Tells how it ended.
fn end(ended: Result<Tally, CopyError>, progress: Progress) -> Result<()> {
    match ended {
        Ok(tally) => {
            progress.done(&tally);
            match tally.failed {
                0 => Ok(()),
                1 => Err(Failure::new("one entry was not copied").into()),
                many => Err(Failure::new(format!("{many} entries were not copied")).into()),
            }
        }
        Err(error) => {
            progress.given_up();
            let failure = Failure::new(error.to_string());
            Err(match error.may_go_on() {
                true => failure.help("the same command goes on where it stopped"),
                false => failure,
            }
            .into())
        }
    }
}
