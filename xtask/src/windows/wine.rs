//! Wine: its prefix under the target folder, and `cargo xtask wine`, which runs one program in it. Cargo runs
//! tests through the same command.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{dll, folders, shim};
use crate::run;

const WINE: &str = "/usr/lib/wine/wine64";
const SERVER: &str = "/usr/lib/wine/wineserver64";
const USAGE: &str = "usage: cargo xtask wine [--shim] [--limit SECONDS] PROGRAM [ARGS…]";

/// Runs a program and exits with its exit code.
pub fn run(arguments: &[String]) -> Result<()> {
    let mut over_shim = false;
    let mut limit = None;
    let mut rest = arguments.iter();
    let program = loop {
        match rest.next().context(USAGE)?.as_str() {
            "--shim" => over_shim = true,
            "--limit" => {
                let seconds = rest.next().context(USAGE)?;
                limit = Some(Duration::from_secs(seconds.parse().context(USAGE)?));
            }
            flag if flag.starts_with('-') => bail!("unknown option {flag}\n{USAGE}"),
            program => break program,
        }
    };
    dll::build()?;
    make_prefix()?;
    let mut command = wine();
    if over_shim || shim::is_meant_for(program) {
        let copies = shim::copies(Path::new(program))?;
        command.arg(&copies.program);
        command.env(shim::VARIABLE, copies.folder);
    } else {
        command.arg(program);
    }
    let status = bounded(command.args(rest), limit)?;
    let killed = || status.signal().map_or(1, |signal| 128 + signal);
    std::process::exit(status.code().unwrap_or_else(killed));
}

/// Stops Wine's server when dropped.
pub struct Session(());

/// Starts a run of many programs: creates the prefix and keeps Wine's server between them, for at most a
/// minute after the last one.
pub fn begin() -> Result<Session> {
    make_prefix()?;
    run::run(server().arg("--persistent=60"))?;
    Ok(Session(()))
}

impl Drop for Session {
    fn drop(&mut self) {
        // The exit status reports whether a server was running; either is fine.
        for what in ["--kill", "--wait"] {
            let _ = server().arg(what).status();
        }
    }
}

/// Creates Wine's prefix once. A file in it marks it as complete and holds Wine's version.
fn make_prefix() -> Result<()> {
    let prefix = prefix();
    let version = Command::new(WINE).arg("--version").output();
    let version = version
        .with_context(|| format!("{WINE} does not run"))?
        .stdout;
    let mark = prefix.join("made-by-xtask");
    let is_whole = || fs::read(&mark).is_ok_and(|by| by == version);
    if is_whole() {
        return Ok(());
    }
    fs::create_dir_all(folders::target())?;
    let lock = File::create(prefix.with_extension("lock"))?;
    lock.lock()?;
    if is_whole() {
        return Ok(());
    }
    if prefix.exists() {
        fs::remove_dir_all(&prefix)
            .with_context(|| format!("cannot remove {}", prefix.display()))?;
    }
    // Its warnings about 32-bit programs and displays are irrelevant here.
    run::run(
        wine()
            .args(["wineboot", "--init"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    // The server writes the registry when it exits, soon after the last program.
    run::run(server().arg("--wait"))?;
    fs::write(&mark, version).with_context(|| format!("cannot write {}", mark.display()))
}

fn prefix() -> PathBuf {
    folders::target().join("wine")
}

fn wine() -> Command {
    let mut command = Command::new(WINE);
    in_prefix(&mut command);
    command.env("WINEPATH", dos_path(&dll::folder()));
    command
}

fn server() -> Command {
    let mut command = Command::new(SERVER);
    in_prefix(&mut command);
    command
}

fn in_prefix(command: &mut Command) {
    command
        .env("WINEPREFIX", prefix())
        // Disables prompts for add-ons and entries in desktop menus.
        .env("WINEDLLOVERRIDES", "mscoree,mshtml=;winemenubuilder.exe=d")
        // No display: the tests need no windows.
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY");
    if std::env::var_os("WINEDEBUG").is_none() {
        command.env("WINEDEBUG", "-all");
    }
}

/// A path of this machine as programs under Wine see it: the root is drive Z.
fn dos_path(path: &Path) -> String {
    format!("Z:{}", path.display().to_string().replace('/', "\\"))
}

/// Runs a command and kills it at the time limit.
fn bounded(command: &mut Command, limit: Option<Duration>) -> Result<ExitStatus> {
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {WINE}"))?;
    let Some(limit) = limit else {
        return Ok(child.wait()?);
    };
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("killed after {limit:?}, its time limit");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
