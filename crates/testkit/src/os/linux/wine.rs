//! Runs Windows programs under Wine, each test with a separate Windows registry.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use crate::{TempFolder, process, require};

/// Programs of Debian's package wine64, which are not on `PATH`.
const WINE: &str = "/usr/lib/wine/wine64";
const SERVER: &str = "/usr/lib/wine/wineserver64";

/// Timeout of one program. The first program also waits until Wine has written some 700 MB.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A fresh Wine prefix. Dropping it ends all processes in it.
#[derive(Debug)]
pub struct Wine {
    wine: PathBuf,
    prefix: TempFolder,
}

impl Wine {
    /// Creates a prefix. `None` skips the test: Wine is not installed.
    pub fn new() -> Option<Self> {
        Some(Self {
            wine: require::program(WINE, &["--version"])?,
            prefix: TempFolder::new(),
        })
    }

    /// The working folder of the programs. Windows sees it on drive Z.
    pub fn folder(&self) -> &TempFolder {
        &self.prefix
    }

    /// Runs a program in that folder, for at most 120 s.
    ///
    /// A program built by `cargo xtask windows` finds its DLLs in its own folder.
    ///
    /// # Errors
    /// If Wine cannot be started, or `TimedOut`.
    pub fn run(&self, program: &str, arguments: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(&self.wine);
        command.arg(program).args(arguments);
        process::output(self.in_prefix(&mut command), b"", TIMEOUT)
    }

    fn in_prefix<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(&self.prefix)
            .env("WINEPREFIX", self.prefix.join("wine"))
            // No prompts for the .NET and HTML add-ons, no entries in desktop menus.
            .env("WINEDLLOVERRIDES", "mscoree,mshtml=;winemenubuilder.exe=d")
            .env("WINEDEBUG", "-all")
            .env_remove("DISPLAY")
            .env_remove("WAYLAND_DISPLAY")
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        for option in ["--kill", "--wait"] {
            // Fails if no process is left.
            let mut command = Command::new(SERVER);
            let _ = process::output(self.in_prefix(command.arg(option)), b"", TIMEOUT);
        }
    }
}
