//! The program with the preloaded library, which answers its calls within it.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result};
use hvsock_interpose::preload::{
    HELP_VARIABLE, LIBRARY_VARIABLE, NoLibrary, Preload, Registrar, Unsuitable,
    check as check_program, check_width as check_program_width, find_libraries,
};
use hvsock_sys::init::has_children;

use super::init::Init;
use super::registering::Names;
use super::seccomp::not_started;
use super::setting::Setting;
use crate::failure::Failure;

/// The variable of the dynamic loader with the libraries to load first.
const LD_PRELOAD: &str = "LD_PRELOAD";

/// What the library says to the user of a program that listens at an unregistered port, and at one of another service that
/// not all partitions reach.
const HELP: [&str; 2] = [
    "hvsock service register NAME --port PORT",
    "hvsock why --listen any SERVICE",
];

/// What helps with a 32-bit program.
const NARROW: &str = "run a 64-bit build of the program";

/// What stands in the way of this way.
#[derive(Debug)]
pub enum Obstacle {
    /// The library is not installed.
    Library(NoLibrary),
    /// The program would not load it.
    Program(Unsuitable),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(error) => error.fmt(f),
            Self::Program(error) => error.fmt(f),
        }
    }
}

impl Obstacle {
    /// What helps.
    pub fn help(&self) -> String {
        match self {
            Self::Library(_) => format!("set {LIBRARY_VARIABLE} to the path of the library"),
            Self::Program(Unsuitable::GainsRights(_)) => {
                "run it as the user that it changes to, or by `hvsock run --seccomp`".into()
            }
            Self::Program(Unsuitable::Narrow(_)) => NARROW.into(),
            Self::Program(_) => "hvsock run --seccomp".into(),
        }
    }

    /// The error of a user who wants this way.
    pub fn into_failure(self) -> Failure {
        let text = format!("cannot serve the program's sockets by the preloaded library: {self}");
        Failure::new(text).help(self.help())
    }
}

/// Looks for the library, and whether the program would load it.
///
/// # Errors
///
/// What stands in the way.
pub fn check(program: &OsStr) -> Result<PathBuf, Obstacle> {
    let command = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/hvsock"));
    let named = std::env::var_os(LIBRARY_VARIABLE);
    let libraries = find_libraries(named, &command).map_err(Obstacle::Library)?;
    let path = std::env::var_os("PATH");
    let mut first = None;
    for library in libraries {
        match check_program(program, path.as_deref(), &library) {
            Ok(()) => return Ok(library),
            Err(unsuitable) => drop(first.get_or_insert(unsuitable)),
        }
    }
    Err(match first {
        Some(unsuitable) => Obstacle::Program(unsuitable),
        None => Obstacle::Library(NoLibrary {
            searched: Vec::new(),
        }),
    })
}

/// Fails if no way sees the program's calls.
pub fn check_width(program: &OsStr) -> Result<()> {
    let path = std::env::var_os("PATH");
    check_program_width(program, path.as_deref()).map_err(|unsuitable| {
        let text = format!("cannot serve the program's sockets: {unsuitable}");
        Failure::new(text).help(NARROW).into()
    })
}

/// Runs the program. Returns its exit status, if there are registrations (`keeps_leases`) when all of its processes have
/// ended: one of them may listen.
pub fn run(
    setting: &Setting<'_>,
    init: &Init,
    mut command: Command,
    library: PathBuf,
    mut names: Names,
    keeps_leases: bool,
) -> Result<u8> {
    let preload = Preload::new(library).context("cannot preload the library")?;
    preload.apply(&mut command, std::env::var_os(LD_PRELOAD));
    if !setting.context.quiet {
        let help = HELP.map(|help| setting.context.command(help));
        command.env(HELP_VARIABLE, help.join("\n"));
    }
    if names.are_there() {
        let registrar = Registrar::new().context("cannot offer to register services")?;
        registrar.apply(&mut command);
        let thread = thread::Builder::new().name("registrar".into());
        thread.spawn(move || registrar.serve(|service| names.register(service)))?;
    }
    init.prepare(&mut command);
    let program = command.get_program().to_owned();
    let child = command.spawn();
    let child = child.map_err(|error| not_started(Path::new(&program), &error))?;
    init.wait(child.id(), || !(keeps_leases && has_children()))
}
