//! Wine: programs for Windows on Linux, each test with a Windows registry of its own.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use crate::{TempFolder, process, require};

/// Where Debian's package wine64 puts its programs, which are not on `PATH`.
const WINE: &str = "/usr/lib/wine/wine64";
const SERVER: &str = "/usr/lib/wine/wineserver64";

/// The longest that one program may take; the first one makes some 700 MB of Wine's own files.
const LIMIT: Duration = Duration::from_secs(120);

/// A new Windows, as far as Wine is one. What it leaves running ends when this is dropped.
#[derive(Debug)]
pub struct Wine {
    wine: PathBuf,
    prefix: TempFolder,
}

impl Wine {
    /// Prepares one, or skips the test where there is no Wine.
    pub fn new() -> Option<Self> {
        Some(Self {
            wine: require::program(WINE, &["--version"])?,
            prefix: TempFolder::new(),
        })
    }

    /// A folder for files, on drive Z as all others.
    pub fn folder(&self) -> &TempFolder {
        &self.prefix
    }

    /// Runs a program to its end, in that folder.
    ///
    /// A program that `cargo xtask windows` built finds the DLLs that it needs beside itself.
    pub fn run(&self, program: &str, arguments: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(&self.wine);
        command.arg(program).args(arguments);
        process::output(self.inside(&mut command), b"", LIMIT)
    }

    fn inside<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(&self.prefix)
            .env("WINEPREFIX", self.prefix.join("wine"))
            // Add-ons for .NET and HTML, which it would ask for, and entries in desktop menus.
            .env("WINEDLLOVERRIDES", "mscoree,mshtml=;winemenubuilder.exe=d")
            .env("WINEDEBUG", "-all")
            .env_remove("DISPLAY")
            .env_remove("WAYLAND_DISPLAY")
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        for what in ["--kill", "--wait"] {
            // It fails if there is nothing to end.
            let mut command = Command::new(SERVER);
            let _ = process::output(self.inside(command.arg(what)), b"", LIMIT);
        }
    }
}
