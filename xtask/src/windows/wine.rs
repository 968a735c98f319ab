//! Wine: its folder ("prefix") under the target folder, and `cargo xtask wine`, which runs one
//! program in it. Cargo runs tests through the same command.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{dll, stand_in};
use crate::run;

const WINE: &str = "/usr/lib/wine/wine64";
const SERVER: &str = "/usr/lib/wine/wineserver64";
const USAGE: &str = "usage: cargo xtask wine [--stand-in] [--limit SECONDS] PROGRAM [ARGS…]";

/// Runs a program, and ends this process with its exit code.
pub fn run(arguments: &[String]) -> Result<()> {
    let mut over_stand_in = false;
    let mut limit = None;
    let mut rest = arguments.iter();
    let program = loop {
        match rest.next().context(USAGE)?.as_str() {
            "--stand-in" => over_stand_in = true,
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
    if over_stand_in || stand_in::is_meant_for(program) {
        let copies = stand_in::copies(Path::new(program))?;
        command.arg(&copies.program);
        command.env(stand_in::VARIABLE, copies.folder);
    } else {
        command.arg(program);
    }
    let status = bounded(command.args(rest), limit)?;
    let killed = || status.signal().map_or(1, |signal| 128 + signal);
    std::process::exit(status.code().unwrap_or_else(killed));
}

/// Ends what Wine leaves running when this is dropped.
pub struct Session(());

/// Begins a run of many programs: Wine's folder is there, and its server stays between them, for a
/// minute at the longest if nobody is left to end it.
pub fn begin() -> Result<Session> {
    make_prefix()?;
    run::run(server().arg("--persistent=60"))?;
    Ok(Session(()))
}

impl Drop for Session {
    fn drop(&mut self) {
        // Their status says whether there was anything to end.
        for what in ["--kill", "--wait"] {
            let _ = server().arg(what).status();
        }
    }
}

/// Makes Wine's folder once. A file in it says that it is whole, and by which version.
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
    fs::create_dir_all(super::folder())?;
    let lock = File::create(prefix.with_extension("lock"))?;
    lock.lock()?;
    if is_whole() {
        return Ok(());
    }
    if prefix.exists() {
        fs::remove_dir_all(&prefix)
            .with_context(|| format!("cannot remove {}", prefix.display()))?;
    }
    // What it says of 32-bit programs and of displays, which there are none of, helps nobody.
    run::run(
        wine()
            .args(["wineboot", "--init"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    // It writes its registry when its server ends, which is soon after the last program.
    run::run(server().arg("--wait"))?;
    fs::write(&mark, version).with_context(|| format!("cannot write {}", mark.display()))
}

fn prefix() -> PathBuf {
    super::folder().join("wine")
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
        // It would ask for add-ons that nothing here needs, and put entries into desktop menus.
        .env("WINEDLLOVERRIDES", "mscoree,mshtml=;winemenubuilder.exe=d")
        // No windows, either: what is tested is a library and a command.
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY");
    if std::env::var_os("WINEDEBUG").is_none() {
        command.env("WINEDEBUG", "-all");
    }
}

/// A path of this machine as Wine's programs see it: its root is their drive Z.
fn dos_path(path: &Path) -> String {
    format!("Z:{}", path.display().to_string().replace('/', "\\"))
}

/// Runs a command to its end, which is made by force if it does not come in time.
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
            bail!("no end after {limit:?}: killed");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
